//! The debug server's accept loop; its handle is [`DebugServer`](super::DebugServer), which aborts it
//! on drop, and with it the connections it owns.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{DebugServerBuilder, respond};

/// Connections open at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 32;
/// The whole life of a connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// From connecting, or from the end of the request before, to the end of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// The largest request head, bytes.
const HEAD_BYTES: usize = 8 * 1024;
/// Pause after an error of the listening socket itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

// This is the worker file: the task is owned by the handle that is returned.
#[allow(clippy::disallowed_methods)]
pub(super) fn spawn(listener: TcpListener, content: Arc<DebugServerBuilder>) -> AbortHandle {
    tokio::spawn(run(listener, content)).abort_handle()
}

async fn run(listener: TcpListener, content: Arc<DebugServerBuilder>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((tcp, _)) => {
                    let content = content.clone();
                    connections.spawn(timeout(CONNECTION_LIMIT, serve(tcp, content)));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

async fn serve(tcp: tokio::net::TcpStream, content: Arc<DebugServerBuilder>) {
    let service = service_fn(|request| {
        let response = respond::respond(&content, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(tcp), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "debug connection ended with an error");
    }
}
