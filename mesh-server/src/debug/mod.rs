//! A small server for operators: health, metrics, what this process really runs.
//!
//! Its content comes from closures, so it depends on nothing it shows. It listens on loopback only,
//! unless told otherwise, because it has neither TLS nor authentication.
//!
//! | Path | Answer |
//! |---|---|
//! | `/` | this list |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200, or 503 with the reasons; with what else an operator should know |
//! | `/metrics` | Prometheus text |
//! | `/config_dump` | configuration as it was received and understood |
//! | `/clusters` | destinations and their endpoints |
//! | `/drain` | `POST` begins the drain, where [`on_drain`](DebugServerBuilder::on_drain) asks for it |
//!
//! Beside these, over HTTP/1.1 or HTTP/2, the same port may carry gRPC: what is behind it is the business of
//! whoever gives the service.

pub mod prometheus;

mod respond;
mod worker;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use mesh_core::error::BoxError;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tower_service::Service;

use crate::Readiness;

/// Makes the content of a path: content type and body. Called for each request, so it may take a
/// while, but must not block for long.
pub type Content = Arc<dyn Fn() -> (&'static str, Bytes) + Send + Sync>;

/// What an operator should know, a line each, although it holds nothing back.
pub type Notes = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Grpc = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What a debug server shows; a path without content answers 404.
#[derive(Clone, Default)]
#[must_use]
pub struct DebugServerBuilder {
    readiness: Readiness,
    notes: Option<Notes>,
    metrics: Option<Content>,
    config_dump: Option<Content>,
    clusters: Option<Content>,
    drain: Option<Arc<dyn Fn() + Send + Sync>>,
    grpc: Option<Grpc>,
    hosts: Vec<String>,
    beyond_loopback: bool,
}

impl DebugServerBuilder {
    /// What `/readyz` answers from. Default: always ready.
    pub fn readiness(mut self, readiness: Readiness) -> Self {
        self.readiness = readiness;
        self
    }

    /// Further lines of `/readyz`, ready or not. Default: none.
    pub fn notes(mut self, notes: Notes) -> Self {
        self.notes = Some(notes);
        self
    }

    /// `/metrics`; [`prometheus::content`] makes it.
    pub fn metrics(mut self, content: Content) -> Self {
        self.metrics = Some(content);
        self
    }

    /// `/config_dump`.
    pub fn config_dump(mut self, content: Content) -> Self {
        self.config_dump = Some(content);
        self
    }

    /// `/clusters`.
    pub fn clusters(mut self, content: Content) -> Self {
        self.clusters = Some(content);
        self
    }

    /// What `POST /drain` does.
    pub fn on_drain(mut self, drain: Arc<dyn Fn() + Send + Sync>) -> Self {
        self.drain = Some(drain);
        self
    }

    /// What answers gRPC: every HTTP/2 request with a content type of `application/grpc`. Without, HTTP/2 is not
    /// spoken. At most 8 connections at once are HTTP/2; they may stay open. How large a message may be is for the service to
    /// say; unread at most 64 KiB of a connection's bodies are held.
    pub fn grpc<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.grpc = Some(Arc::new(move |request| {
            let mut service = service.clone();
            Box::pin(async move {
                let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
                let answer = match ready {
                    Ok(()) => service.call(request).await,
                    Err(never) => match never {},
                };
                answer.unwrap_or_else(|never| match never {}).map(|body| body.map_err(Into::into).boxed_unsync())
            })
        }));
        self
    }

    /// A further name (without port) that requests may carry in their `Host` header, beside
    /// `localhost` and loopback addresses.
    pub fn allow_host(mut self, host: impl Into<String>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// Lets [`bind`](Self::bind) take an address that others can reach, as Prometheus and the kubelet
    /// need it. Everyone who reaches it can read all and begin the drain.
    pub fn beyond_loopback(mut self) -> Self {
        self.beyond_loopback = true;
        self
    }

    /// Listens and serves until the answer is dropped. Needs a Tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound, or it is not loopback and
    /// [`beyond_loopback`](Self::beyond_loopback) was not said.
    pub async fn bind(self, address: SocketAddr) -> io::Result<DebugServer> {
        if !address.ip().is_loopback() && !self.beyond_loopback {
            let why = format!("{address} is not a loopback address: the debug server has no authentication");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let task = worker::spawn(listener, self);
        Ok(DebugServer { address, task })
    }
}

/// A running debug server; dropping it closes its socket and its connections.
#[derive(Debug)]
pub struct DebugServer {
    address: SocketAddr,
    task: AbortHandle,
}

impl DebugServer {
    /// Begins a debug server.
    pub fn builder() -> DebugServerBuilder {
        DebugServerBuilder::default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DebugServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
