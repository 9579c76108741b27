//! The debug server's accept loop; its handle is [`DebugServer`](super::DebugServer), which aborts it
//! on drop, and with it the connections it owns.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Answer, DebugServerBuilder, respond};
use crate::Config;
use crate::inbound::{Peers, http1_builder, http2_builder};
use crate::listen::{HttpVersion, Stream, detect};

/// Connections open at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
/// Those of them from one address, so that the probes of another find room; more are closed.
const MAX_OF_PEER: usize = 32;
/// Those of them that may be HTTP/2: they stay open, and must leave room for probes.
const MAX_HTTP2: usize = 8;
/// The whole life of an HTTP/1.1 connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection may be silent before its first bytes, between requests, and within a head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Pause after an error of the listening socket itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the connections share.
struct Shared {
    content: DebugServerBuilder,
    http2_places: Semaphore,
    config: Config,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

/// As for any port of this crate, and less of it: what is asked here is small.
fn limits() -> Config {
    Config {
        header_read_timeout: HEAD_LIMIT,
        idle_timeout: HEAD_LIMIT,
        max_header_bytes: 8 * 1024,
        max_concurrent_streams: 16,
        keep_alive_interval: Duration::from_secs(30),
        keep_alive_timeout: Duration::from_secs(10),
        // What a service behind this port has not read yet of a body.
        stream_window: 64 * 1024,
        connection_window: 64 * 1024,
        max_buffer: 64 * 1024,
        ..Config::default()
    }
}

// This is the worker file: the task is owned by the handle that is returned.
#[allow(clippy::disallowed_methods)]
pub(super) fn spawn(listener: TcpListener, content: DebugServerBuilder) -> AbortHandle {
    let config = limits();
    let (http1, http2) = (http1_builder(&config), http2_builder(&config));
    let shared = Arc::new(Shared { content, http2_places: Semaphore::new(MAX_HTTP2), config, http1, http2 });
    tokio::spawn(run(listener, shared)).abort_handle()
}

async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut peers = Peers::new(MAX_OF_PEER);
    loop {
        tokio::select! {
            Some(ended) = connections.join_next_with_id() => {
                peers.leave(ended.map_or_else(|error| error.id(), |(task, ())| task));
            }
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((_, peer)) if peers.full(peer.ip()).is_some() => {}
                Ok((tcp, peer)) => {
                    let task = connections.spawn(serve(tcp, shared.clone()));
                    peers.enter(peer.ip(), task.id());
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

async fn serve(tcp: TcpStream, shared: Arc<Shared>) {
    let Ok(Ok((version, mut io))) = timeout(HEAD_LIMIT, detect(Stream::Plain { tcp, _open: None })).await else {
        return;
    };
    io.watch(version, &shared.config, || tracing::warn!("a flood of control frames ended a debug connection"));
    let io = TokioIo::new(io);
    let service = service_fn(|request| {
        let answer = answer(shared.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = match version {
        HttpVersion::Http1 => {
            let served = timeout(CONNECTION_LIMIT, shared.http1.serve_connection(io, service)).await;
            served.unwrap_or(Ok(()))
        }
        HttpVersion::Http2 => {
            let grpc = shared.content.grpc.as_ref();
            let Some(_place) = grpc.and_then(|_| shared.http2_places.try_acquire().ok()) else { return };
            shared.http2.serve_connection(io, service).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "debug connection ended with an error");
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let content = &shared.content;
    match &content.grpc {
        Some(grpc) if respond::is_grpc(&request) && respond::known_host(content, &request) => grpc(request).await,
        _ => respond::respond(content, &request).map(|body| body.map_err(|never| match never {}).boxed_unsync()),
    }
}
