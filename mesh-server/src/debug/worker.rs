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
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Answer, DebugServerBuilder, respond};
use crate::listen::{Detected, HttpVersion, Stream, detect};

/// Connections open at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 32;
/// Those of them that may be HTTP/2: they stay open, and must leave room for probes.
const MAX_HTTP2: usize = 8;
/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;
/// HTTP/2 PING, so that a peer that is gone gives its place free.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// The whole life of an HTTP/1.1 connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// From connecting, or from the end of the request before, to the end of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// The largest request head, bytes.
const HEAD_BYTES: usize = 8 * 1024;
/// Pause after an error of the listening socket itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the connections share.
struct Shared {
    content: DebugServerBuilder,
    http2: Semaphore,
}

// This is the worker file: the task is owned by the handle that is returned.
#[allow(clippy::disallowed_methods)]
pub(super) fn spawn(listener: TcpListener, content: DebugServerBuilder) -> AbortHandle {
    let shared = Arc::new(Shared { content, http2: Semaphore::new(MAX_HTTP2) });
    tokio::spawn(run(listener, shared)).abort_handle()
}

async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((tcp, _)) => {
                    connections.spawn(serve(tcp, shared.clone()));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

async fn serve(tcp: TcpStream, shared: Arc<Shared>) {
    let served = match timeout(HEAD_LIMIT, detect(Stream::Plain(tcp))).await {
        Ok(Ok((HttpVersion::Http1, io))) => timeout(CONNECTION_LIMIT, http1(io, &shared)).await.unwrap_or(Ok(())),
        Ok(Ok((HttpVersion::Http2, io))) => http2(io, &shared).await,
        Ok(Err(_)) | Err(_) => return,
    };
    if let Err(error) = served {
        tracing::debug!(%error, "debug connection ended with an error");
    }
}

async fn http1(io: Detected, shared: &Arc<Shared>) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let answer = answer(shared.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .await
}

async fn http2(io: Detected, shared: &Arc<Shared>) -> hyper::Result<()> {
    let Some(_place) = shared.content.grpc.as_ref().and_then(|_| shared.http2.try_acquire().ok()) else {
        return Ok(());
    };
    let service = service_fn(|request| {
        let answer = answer(shared.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .serve_connection(TokioIo::new(io), service)
        .await
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let content = &shared.content;
    match &content.grpc {
        Some(grpc) if respond::is_grpc(&request) && respond::known_host(content, &request) => grpc(request).await,
        _ => respond::respond(content, &request).map(|body| body.map_err(|never| match never {}).boxed_unsync()),
    }
}
