//! The smallest client on the mesh: one GET to `hello:8080`, wherever that is.
//!
//! Needs a control plane and a `hello_server`; README says how. Then: `cargo run --example hello_client`.

use http_body_util::BodyExt;
use mesh::{Body, Mesh};

#[allow(clippy::print_stdout)] // The answer is this program's output.
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mesh = Mesh::from_env().await?;
    let request = http::Request::get("http://hello:8080/").body(Body::empty())?;
    let response = mesh.client().send(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    print!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
