//! Processes of the mesh, by our library: a client, and a server that answers gRPC calls with its name and the
//! identity of its caller.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http_body_util::BodyExt;
use mesh::{Mesh, ServeError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::grpc;
use crate::world::{World, eventually};

/// A process that calls, as `account` of the namespace `default`. It says what it holds at its debug port.
pub(crate) async fn join(world: &World, account: &str, labels: &str) -> Mesh {
    Mesh::builder()
        .control_plane(world.address())
        .root_cert(world.root_cert())
        .join_token(world.token(account))
        .service_account(account)
        .labels(labels)
        .debug_address((Ipv4Addr::LOCALHOST, 0).into())
        .build()
        .await
        .unwrap()
}

/// A process that serves. It is gone once dropped, without a farewell; `leave` says one.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    mesh: Mesh,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    /// Serves `service`:9080 with these labels and is known to the control plane.
    pub(crate) async fn start(world: &World, service: &str, labels: &str, name: &'static str) -> Self {
        let server = Self::open(world, service, labels, name, Duration::from_secs(2)).await;
        server.registered(world).await;
        server
    }

    /// The same without waiting for anything: it may have no certificate yet. Once withdrawn it serves on for a minute, or
    /// until it is dropped.
    pub(crate) async fn begin(world: &World, service: &str, labels: &str, name: &'static str) -> Self {
        Self::open(world, service, labels, name, Duration::from_secs(60)).await
    }

    /// The same for another time.
    pub(crate) async fn open(
        world: &World,
        service: &str,
        labels: &str,
        name: &'static str,
        lame_duck: Duration,
    ) -> Self {
        let mesh = join(world, service, labels).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(move |request: axum::extract::Request| answer(name, request));
        let serve = mesh.serve(listener, app).service(service, 9080).http2().lame_duck(lame_duck).without_signals();
        Self { address, mesh, task: tokio::spawn(serve.into_future()) }
    }

    /// Waits until the control plane knows it.
    pub(crate) async fn registered(&self, world: &World) {
        let listed = format!("\"{}\"", self.address);
        eventually("the server is registered", async || {
            world.debug("/registrations").await.contains(&listed).then_some(())
        })
        .await;
    }

    /// Waits until the control plane does not name it any more. Of one that has not been withdrawn it would do so for 40 s after a
    /// restart, which is longer than anybody waits here.
    pub(crate) async fn unregistered(&self, world: &World) {
        let listed = format!("\"{}\"", self.address);
        eventually("the server is withdrawn", async || {
            (!world.debug("/registrations").await.contains(&listed)).then_some(())
        })
        .await;
    }

    /// Withdraws, and serves on for a while.
    pub(crate) fn withdraw(&self) {
        self.mesh.begin_shutdown();
    }

    /// Where it says what it holds.
    pub(crate) fn debug(&self) -> SocketAddr {
        self.mesh.debug_address().unwrap()
    }

    /// Withdraws, finishes what is under way and ends.
    pub(crate) async fn leave(mut self) {
        self.mesh.begin_shutdown();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(name: &str, request: axum::extract::Request) -> Result<http::Response<Body>, Infallible> {
    let peer = mesh::caller().and_then(|peer| peer.spiffe_id.clone());
    let _ = request.into_body().collect().await;
    let text = peer.map_or_else(|| name.to_owned(), |peer| format!("{name} {peer}"));
    Ok(grpc::answer(&text).map(Body::new))
}
