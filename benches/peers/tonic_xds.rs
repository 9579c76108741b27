//! tonic-xds between a client and a plain tonic server: a channel of its own, told by a control plane of ours where the
//! server is.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use mesh_control::ControlPlane;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tonic::Status;
use tonic_xds::{BootstrapConfig, XdsChannelBuilder, XdsChannelConfig, XdsChannelGrpc, XdsUri};
use tower::Service;

use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Worker, Workers};
use crate::{Error, Protocol, Running, sidecars};

/// The control plane and the server.
pub(crate) struct TonicXds {
    _plane: ControlPlane,
    _running: Running,
    _folders: [TempDir; 2],
}

/// Starts a server on `server` and as many workers of one channel.
pub(crate) async fn start(workers: usize, server: &Handle) -> Result<(TonicXds, Workers), Error> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let mut running = Running::default();
    running.spawn(server, async move { sidecars::accept(crate::listener(listener)?, Protocol::Grpc).await });

    let (manifests, state) = (tempfile::tempdir()?, tempfile::tempdir()?);
    std::fs::write(manifests.path().join("echo.yaml"), manifest(address))?;
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::builder().manifests(manifests.path()).state_dir(state.path()).listen(free);
    let plane = plane.insecure_xds(Some(free)).start().await?;
    let xds = plane.insecure_address().ok_or("xDS is served in plaintext too")?;
    let bootstrap = serde_json::json!({
        "xds_servers": [{ "server_uri": format!("http://{xds}"), "channel_creds": [{ "type": "insecure" }] }],
        "node": { "id": "tonic-xds", "metadata": { "NAMESPACE": "default" } },
    });
    let config = XdsChannelConfig::new(XdsUri::parse("xds:///echo.example.com:8080")?)
        .with_bootstrap(BootstrapConfig::from_json(&bootstrap.to_string())?);
    let channel = Channel(XdsChannelBuilder::new(config).build_grpc_channel()?);
    let mut all: Workers = Vec::with_capacity(workers);
    for _ in 0..workers {
        all.push(Box::new(Grpc(GreeterClient::new(channel.clone()))));
    }
    for worker in &mut all {
        worker.exchange(crate::load::body()).await?;
    }
    Ok((TonicXds { _plane: plane, _running: running, _folders: [manifests, state] }, all))
}

fn manifest(server: SocketAddr) -> String {
    let port = server.port();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: echo, namespace: default }}\n\
         spec:\n  hosts: [echo.example.com]\n  resolution: STATIC\n  location: MESH_INTERNAL\n\
         \x20 ports: [{{ number: 8080, name: grpc, protocol: GRPC }}]\n\
         \x20 endpoints: [{{ address: 127.0.0.1, ports: {{ grpc: {port} }} }}]\n"
    )
}

/// With an error of a type that has a name: of a boxed one the compiler does not see that it may go from thread to thread.
#[derive(Clone)]
struct Channel(XdsChannelGrpc);

type Asked = Request<tonic::body::Body>;

impl Service<Asked> for Channel {
    type Response = <XdsChannelGrpc as Service<Asked>>::Response;
    type Error = Status;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(cx).map_err(Status::from_error)
    }

    fn call(&mut self, request: Asked) -> Answer {
        Answer(self.0.call(request))
    }
}

struct Answer(<XdsChannelGrpc as Service<Asked>>::Future);

impl Future for Answer {
    type Output = Result<<XdsChannelGrpc as Service<Asked>>::Response, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(Status::from_error)
    }
}

struct Grpc(GreeterClient<Channel>);

impl Worker for Grpc {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let name = String::from_utf8(body.into())?;
            self.0.say_hello(HelloRequest { name }).await?;
            Ok(())
        })
    }
}
