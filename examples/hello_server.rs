//! The smallest server on the mesh: an axum application that greets its caller by its verified name.
//!
//! Needs a control plane; README says how to start one. Then: `cargo run --example hello_server`.

use axum::{Router, routing::get};
use mesh::{Mesh, PeerIdentity};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let app = Router::new().route("/", get(hello));
    let mesh = Mesh::from_env().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    // Announces the process as hello:8080, serves until SIGTERM or Ctrl-C, and drains.
    mesh.serve(listener, app).service("hello", 8080).await?;
    Ok(())
}

async fn hello(peer: PeerIdentity) -> String {
    match peer.spiffe_id {
        Some(id) => format!("hello, {id}\n"),
        None => "hello, stranger\n".to_owned(),
    }
}
