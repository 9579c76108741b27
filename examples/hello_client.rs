//! The smallest client on the mesh: one GET to `hello:8080`, wherever that is.
//!
//! Needs a control plane and a `hello_server`; README says how. Then: `cargo run --example hello_client`.
//! With `--smoke` it needs neither: it asks a server of its own, without a mesh.

#![allow(clippy::print_stdout, reason = "the answer is this program's output")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::io::IsTerminal;

use http_body_util::BodyExt;
use mesh::{Body, Mesh};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    if std::env::args().any(|arg| arg == "--smoke") {
        return smoke().await;
    }
    let mesh = Mesh::from_env().await?;
    print!("{}", greeting(&mesh, "http://hello:8080/").await?);
    Ok(())
}

async fn greeting(mesh: &Mesh, url: &str) -> Result<String> {
    let request = http::Request::get(url).body(Body::empty())?;
    let response = mesh.client().send(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

async fn smoke() -> Result<()> {
    let mesh = Mesh::disabled()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let app = axum::Router::new().route("/", axum::routing::get(|| async { "hello\n" }));
    let serving = tokio::spawn(mesh.serve(listener, app).service("hello", 8080).into_future());
    let answer = greeting(&mesh, &url).await?;
    mesh.shutdown().await;
    serving.await??;
    if answer != "hello\n" {
        return Err(format!("not the expected greeting: {answer:?}").into());
    }
    Ok(())
}
