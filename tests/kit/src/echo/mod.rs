//! A server that answers what it was asked, or misbehaves as it is told.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, Version};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::sync::watch;

use mesh_core::id::SpiffeId;
use mesh_core::identity::{Identity, server_config};
use mesh_core::policy::Endpoint;

use self::answer::answer;
use crate::crypto;
use crate::worker::{Accepted, Worker};

/// An HTTP/1.1 and HTTP/2 server on loopback. Dropping it closes its port and its connections.
///
/// An ordinary answer is 200 with the request's body, and these headers: `x-echo-server` (its name),
/// `x-echo-method`, `x-echo-path` (with query), `x-echo-authority`, `x-echo-version` (`HTTP/2.0`) and
/// `x-echo-peer` (the client's SPIFFE ID, or `-`). A gRPC request gets trailers with `grpc-status: 0`.
pub struct EchoServer {
    shared: Arc<Shared>,
    worker: Worker,
}

/// What the server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Answer 200 and give everything back.
    Echo,
    /// The same with this status.
    Status(u16),
    /// Answer 200 with this `grpc-status` in the headers and no body (trailers only).
    Grpc(i32),
    /// Answer 200 with an empty message, and this `grpc-status` in the trailers.
    GrpcTrailers(i32),
    /// Answer with this status, these headers and no body.
    Bare(u16, &'static [(&'static str, &'static str)]),
    /// Answer 200 with the beginning of a body, whose end comes with [`EchoServer::release`].
    Stall,
    /// Answer as `grpc.health.v1.Health/Check` does: serving or not.
    Serving(bool),
    /// Echo with a load report of this text (`cpu_utilization=0.5,rps_fractional=10`) in the headers, or the trailers of
    /// a gRPC answer. A stream of reports has one at once and one with each [`EchoServer::release`]; a probe is answered.
    Reporting(&'static str),
    /// Keep the request until [`EchoServer::release`], then echo.
    Hold,
    /// Close the connection without an answer.
    CloseConnection,
    /// Echo, and leave: over HTTP/2 say so (GOAWAY) and close the connection when its other answers have ended, over HTTP/1.1
    /// when this one has.
    Leave,
    /// Refuse the stream with HTTP/2 `REFUSED_STREAM`; over HTTP/1 the connection is closed.
    RefuseStream,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Method.
    pub method: Method,
    /// URI; over HTTP/2 with scheme and authority.
    pub uri: Uri,
    /// Version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// The client's verified identity.
    pub peer: Option<SpiffeId>,
}

/// What the server and its connections share.
struct Shared {
    name: String,
    usual: Mutex<Behaviour>,
    script: Mutex<VecDeque<Behaviour>>,
    received: Mutex<Vec<Received>>,
    requests: watch::Sender<u64>,
    releases: watch::Sender<u64>,
    connections: AtomicU64,
    streams: Option<u32>,
}

impl EchoServer {
    /// A plaintext server called `name`.
    pub async fn start(name: &str) -> Self {
        Self::run(name, None, None).await
    }

    /// The same, which takes this many streams at once on one HTTP/2 connection. Others: hyper's 200.
    pub async fn start_with_streams(name: &str, most: u32) -> Self {
        Self::run(name, None, Some(most)).await
    }

    /// A server with mesh mTLS: only clients with a certificate of the mesh get in.
    pub async fn start_mtls(name: &str, identity: &Identity) -> Self {
        let config = server_config(identity, true, &[b"h2", b"http/1.1"], &crypto());
        Self::run(name, Some(config.expect("the provider has the default versions")), None).await
    }

    /// A server with any TLS configuration.
    pub async fn start_tls(name: &str, config: ServerConfig) -> Self {
        Self::run(name, Some(config), None).await
    }

    async fn run(name: &str, tls: Option<ServerConfig>, streams: Option<u32>) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            usual: Mutex::new(Behaviour::Echo),
            script: Mutex::default(),
            received: Mutex::default(),
            requests: watch::Sender::new(0),
            releases: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            streams,
        });
        let serving = shared.clone();
        let worker = Worker::start(tls, move |accepted| serve(accepted, serving.clone())).await;
        Self { shared, worker }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.worker.address()
    }

    /// The endpoint for policy; it accepts mesh mTLS if the server was started with TLS.
    pub fn endpoint(&self) -> Endpoint {
        self.worker.endpoint()
    }

    /// From now on every request is treated so.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.usual.lock() = behaviour;
    }

    /// The next requests are treated so, one after the other; then as usual.
    pub fn script(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.script.lock().extend(behaviours);
    }

    /// Lets the requests go that are held now.
    pub fn release(&self) {
        self.shared.releases.send_modify(|n| *n += 1);
    }

    /// Requests that arrived, answered or not.
    pub fn requests(&self) -> u64 {
        *self.shared.requests.borrow()
    }

    /// Waits until at least `count` requests have arrived.
    pub async fn wait_for_requests(&self, count: u64) {
        let mut requests = self.shared.requests.subscribe();
        requests.wait_for(|n| *n >= count).await.expect("the sender is ours");
    }

    /// Connections accepted (with TLS: whose handshake succeeded).
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The requests that arrived, in order.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }
}

impl std::fmt::Debug for EchoServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EchoServer")
            .field("name", &self.shared.name)
            .field("address", &self.worker.address())
            .field("tls", &self.worker.has_tls())
            .finish_non_exhaustive()
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Leaves,
    Closes,
}

async fn serve(accepted: Accepted, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let fate = Arc::new(watch::Sender::new(Fate::Stays));
    let mut told = fate.subscribe();
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if let Some(most) = shared.streams {
        builder.http2().max_concurrent_streams(most);
    }
    let Accepted { stream, peer, .. } = accepted;
    let service = service_fn(move |request| answer(shared.clone(), peer.clone(), fate.clone(), request));
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            // Whatever ended it, the client has seen it.
            _ = &mut connection => return,
            Ok(()) = told.changed() => match *told.borrow() {
                Fate::Stays => {}
                Fate::Leaves => connection.as_mut().graceful_shutdown(),
                Fate::Closes => return,
            }
        }
    }
}
