//! gRPC over the mesh with generated tonic code: a server, a client and a control plane in one process.
//!
//! `cargo run --example grpc_greeter` prints the greeting and the caller's verified identity; it fails
//! if either is not as expected, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use mesh::Mesh;
use mesh_control::ControlPlane;
use mesh_control::ca::JoinTokens;
use tonic::{Request, Response, Status};

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod hello;

use hello::greeter_client::GreeterClient;
use hello::greeter_server::{Greeter, GreeterServer};
use hello::{HelloReply, HelloRequest};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

struct Polite;

#[tonic::async_trait]
impl Greeter for Polite {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let caller = mesh::caller().and_then(|peer| peer.spiffe_id.as_ref().map(ToString::to_string));
        let caller = caller.unwrap_or_default();
        let message = format!("Hello, {}!", request.into_inner().name);
        Ok(Response::new(HelloReply { message, caller }))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let dir = tempfile::tempdir()?;
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let plane = ControlPlane::builder().manifests(manifests).state_dir(dir.path().join("state"));
    let plane = plane.listen(free).debug_listen(None).start().await?;
    let join = |account: &str| -> Result<_> {
        let token = JoinTokens::open(&dir.path().join("state"))?.mint("default", account, Duration::from_secs(60))?;
        let root = plane.root_cert_path();
        Ok(Mesh::builder().control_plane(plane.address()).root_cert(root).join_token(token).service_account(account))
    };

    // The server: what you would write, with `Mesh::from_env()` in place of `join`.
    let server = join("greeter")?.build().await?;
    let listener = tokio::net::TcpListener::bind(free).await?;
    let serving =
        tokio::spawn(server.serve(listener, GreeterServer::new(Polite)).service("greeter", 50051).into_future());

    // The client: a generated tonic client on a mesh channel.
    let client = join("caller")?.build().await?;
    let mut greeter = GreeterClient::new(client.channel("greeter:50051")?);
    let reply = greet_when_announced(&mut greeter).await?;
    println!("{}\ncalled by {}", reply.message, reply.caller);

    client.shutdown().await;
    server.shutdown().await;
    serving.await??;
    plane.shutdown().await;
    if reply.message != "Hello, mesh!" || reply.caller != "spiffe://cluster.local/ns/default/sa/caller" {
        return Err("that is not the expected greeting".into());
    }
    Ok(())
}

/// The server announces itself while the client already asks; the first answers may be UNAVAILABLE.
async fn greet_when_announced(greeter: &mut GreeterClient<mesh::Channel>) -> Result<HelloReply> {
    let mut last = None;
    for _ in 0..100 {
        match greeter.say_hello(HelloRequest { name: "mesh".into() }).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => last = Some(status),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(last.map_or_else(|| "no answer".into(), Into::into))
}
