//! A plain HTTP/1.1 GET from outside the mesh: what a browser or curl does.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::apps::Result;

/// A request that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// GETs a path over a connection of its own; gives status and body.
pub(crate) async fn get(address: SocketAddr, path: &str, user: Option<&str>) -> Result<(u16, Bytes)> {
    tokio::time::timeout(PATIENCE, exchange(address, path, user)).await?
}

async fn exchange(address: SocketAddr, path: &str, user: Option<&str>) -> Result<(u16, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = http::Request::get(path).header("host", address.to_string());
    if let Some(user) = user {
        request = request.header("end-user", user);
    }
    // The mesh carries a trace on and begins none.
    let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
    let request = request.header("traceparent", format!("00-{trace:032x}-{span:016x}-01"));
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, body))
    };
    tokio::pin!(answer);
    tokio::select! {
        result = &mut answer => Ok(result?),
        // The connection may end first, with the answer complete.
        result = connection => { result?; Ok(answer.await?) }
    }
}

/// GETs and reads JSON, whatever the status.
pub(crate) async fn get_json(address: SocketAddr, path: &str) -> Result<serde_json::Value> {
    let (_, body) = get(address, path, None).await?;
    Ok(serde_json::from_slice(&body)?)
}
