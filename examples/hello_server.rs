//! The smallest server on the mesh: an axum application that greets its caller by its verified name.
//!
//! Needs a control plane; README says how to start one. Then: `cargo run --example hello_server`. With
//! `--smoke` it needs none: it asks itself once, without a mesh, and ends.

#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::io::IsTerminal;

use axum::{Router, routing::get};
use http_body_util::BodyExt;
use mesh::{Body, Mesh, PeerIdentity};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let app = Router::new().route("/", get(hello));
    if std::env::args().any(|arg| arg == "--smoke") {
        return smoke(app).await;
    }
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

/// One request to itself, as anybody outside the mesh would send it.
async fn smoke(app: Router) -> Result<()> {
    let mesh = Mesh::disabled()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let serving = tokio::spawn(mesh.serve(listener, app).service("hello", 8080).into_future());
    let response = mesh.client().send(http::Request::get(url).body(Body::empty())?).await?;
    let body = response.into_body().collect().await?.to_bytes();
    mesh.shutdown().await;
    serving.await??;
    if body != "hello, stranger\n" {
        return Err(format!("not the expected greeting: {body:?}").into());
    }
    Ok(())
}
