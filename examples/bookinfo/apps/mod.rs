//! The bookinfo applications: ordinary small axum programs that use `mesh` as a dependency.

pub(crate) mod details;
pub(crate) mod productpage;
pub(crate) mod ratings;
pub(crate) mod reviews;
pub(crate) mod webapp;

use mesh::{Client, Mesh, PeerIdentity};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// The port under which every service of bookinfo is known; processes listen wherever there is room.
pub(crate) const PORT: u16 = 9080;

pub(crate) type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// What an application is started with.
pub(crate) struct Start {
    pub(crate) mesh: Mesh,
    pub(crate) listener: TcpListener,
    pub(crate) version: String,
}

/// One hop of a request, as the page shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hop {
    pub(crate) service: String,
    pub(crate) version: String,
    pub(crate) process: u32,
    /// The caller's verified SPIFFE ID; absent for a plaintext caller.
    pub(crate) caller: Option<String>,
    /// Trace of the request, if the browser began one: the same on every hop, and no application passes it on.
    pub(crate) trace: Option<String>,
}

impl Hop {
    pub(crate) fn new(service: &str, version: &str, peer: &PeerIdentity) -> Self {
        Self {
            service: service.into(),
            version: version.into(),
            process: std::process::id(),
            caller: peer.spiffe_id.as_ref().map(ToString::to_string),
            trace: mesh::context::current().and_then(|context| Some(format!("{:032x}", context.trace?.trace_id()))),
        }
    }
}

/// GETs JSON from another service of the mesh.
pub(crate) async fn get_json<T: serde::de::DeserializeOwned>(
    client: &Client,
    url: &str,
    user: Option<&str>,
) -> Result<T> {
    let mut request = http::Request::get(url);
    if let Some(user) = user {
        request = request.header("end-user", user);
    }
    let response = client.send(request.body(mesh::Body::empty())?).await?;
    let status = response.status();
    let body = http_body_util::BodyExt::collect(response.into_body()).await?.to_bytes();
    if !status.is_success() {
        return Err(format!("{url} answered {status}").into());
    }
    Ok(serde_json::from_slice(&body)?)
}
