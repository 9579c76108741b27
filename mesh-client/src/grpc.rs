//! gRPC: a channel for generated tonic clients, and failures in gRPC's words.
//!
//! Refuses to know messages: it moves HTTP requests, as everything below.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Response, Uri, header};
use mesh_core::id::Target;

use crate::body::Body;
use crate::client::{Client, ResponseFuture};
use crate::error::Error;
use crate::outbound::warm::Warmed;

/// A destination for generated tonic clients: `GreeterClient::new(client.channel("greeter:50051")?)`.
///
/// Always ready; never fails: what keeps a request from being answered arrives as a gRPC status whose
/// message begins with the code, `MESH-nnnn`.
#[derive(Clone, Debug)]
pub struct Channel {
    client: Client,
    target: Arc<Target>,
    authority: Authority,
}

impl Channel {
    pub(crate) fn new(client: Client, target: Target) -> Self {
        let authority = target.host_port().parse().expect("a target's authority is one");
        Self { client, target: Arc::new(target), authority }
    }

    /// The destination: `host:port`, with its scheme if it has one.
    pub fn target(&self) -> &str {
        self.target.as_str()
    }

    /// Connects to the endpoints of the destination before there is a call for them: see [`Client::warm`].
    ///
    /// # Errors
    /// Nothing is known of the destination within [`ClientBuilder::config_wait`](crate::ClientBuilder::config_wait).
    pub async fn warm(&self) -> Result<Warmed, Error> {
        self.client.warm_grpc(&self.target).await
    }
}

/// The answer of a [`Channel`].
#[must_use = "futures do nothing unless polled"]
pub struct ChannelFuture(ResponseFuture);

impl Future for ChannelFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(|answer| {
            Ok(match answer {
                Ok(response) => response.map(Body::rescued),
                Err(error) => rescue(&error),
            })
        })
    }
}

impl fmt::Debug for ChannelFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelFuture").finish_non_exhaustive()
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ChannelFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> ChannelFuture {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = parts.path_and_query.or(Some(PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        ChannelFuture(self.client.send_to(self.target.clone(), request))
    }
}

/// A failure as an answer without messages (gRPC "trailers-only").
fn rescue(error: &Error) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.extend(error.headers().cloned().unwrap_or_default());
    // After those of policy: what gRPC needs is the last word.
    for (name, value) in &trailers(error) {
        headers.insert(name, value.clone());
    }
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A failure as trailers.
pub(crate) fn trailers(error: &Error) -> HeaderMap {
    status_headers(error.grpc_status(), &error.to_string())
}

/// `grpc-status` and `grpc-message`.
pub(crate) fn status_headers(code: i32, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert("grpc-status", HeaderValue::from(code));
    // Visible ASCII after encoding, so it is a header value.
    if let Ok(message) = HeaderValue::try_from(percent_encode(message)) {
        headers.insert("grpc-message", message);
    }
    headers
}

/// gRPC's percent-encoding: everything but visible ASCII and space, and `%` itself.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("50 % é\n"), "50 %25 %C3%A9%0A");
    }
}
