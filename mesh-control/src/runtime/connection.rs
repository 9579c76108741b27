//! One accepted connection: its handshake, who it is of, and its requests, until it or its caller's certificate ends.
//!
//! Refuses to know what is served.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::drain::{self, DrainWatch};
use mesh_core::identity::peer_spiffe_id;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tower_service::Service;

use super::admission::Admission;
use super::refusals::{Refusal, Refusals};
use super::standing::End;
use super::{Caller, Peer, ServerCertificate};
use crate::ca::is_joined;

/// A client that does not say its first message in this time is let go, and one that does not shake hands then either.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that lets others wait for so long loses its place among the handshakes, though not yet its connection.
const STALL: Duration = Duration::from_secs(1);
/// A connection that has had no stream for so long is ended.
const IDLE: Duration = Duration::from_secs(300);
/// A client without a certificate asks for one and leaves; it has no reason to stay longer.
const ANONYMOUS: Duration = Duration::from_secs(30);
/// A client whose host died is noticed after both together.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the headers of a request; the longest is a token.
const MAX_HEADERS: u32 = 16 << 10;
/// How long who asks for pages may be silent, before a request and within its head.
const PAGE_HEAD: Duration = Duration::from_secs(5);
/// The whole life of a connection that asks for pages.
const PAGES: Duration = Duration::from_secs(30);
/// How long streams have to end when the control plane stops.
pub(super) const GRACEFUL: Duration = Duration::from_secs(3);
/// How long who lost its root has to be told of the others.
const FAREWELL: Duration = Duration::from_secs(2);
const GONE: &str = "the root of your certificate is trusted no more";

/// What a port speaks.
#[derive(Clone)]
pub(crate) enum Speaks {
    /// gRPC over TLS.
    Secured(Arc<ServerCertificate>),
    /// gRPC in plaintext.
    Plaintext,
    /// Pages over HTTP/1.1, in plaintext.
    Pages,
}

/// What the connections of a port share.
pub(super) struct Door {
    pub(super) speaks: Speaks,
    pub(super) routes: axum::Router,
    pub(super) admission: Admission,
    pub(super) refusals: Arc<Refusals>,
    pub(super) drain: DrainWatch,
}

/// Serves one connection.
pub(super) async fn connection(stream: TcpStream, address: SocketAddr, door: &Door) {
    // Small messages, each awaited by somebody.
    let _ = stream.set_nodelay(true);
    match &door.speaks {
        Speaks::Secured(certificate) => secured(stream, address, certificate, door).await,
        Speaks::Plaintext => {
            http(stream, Peer { address, caller: Caller::Insecure, joined: false }, door, pending()).await;
        }
        Speaks::Pages => pages(stream, door).await,
    }
}

/// Serves one connection that begins with a handshake.
async fn secured<I>(io: I, address: SocketAddr, certificate: &ServerCertificate, door: &Door)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let refuse = |refusal, why: &dyn Display| door.refusals.connection(refusal, &address, why);
    let Some(unproved) = door.admission.unproved(address.ip()) else {
        return refuse(Refusal::AddressLimit, &"the address has too many without a certificate");
    };
    let stream = match handshake(io, address.ip(), certificate, &door.admission).await {
        Ok(Some(stream)) => stream,
        Ok(None) => return tracing::debug!(%address, "a connection was closed before its TLS handshake"),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return refuse(Refusal::Timeout, &"a TLS handshake was not finished in time");
        }
        Err(error) => return refuse(Refusal::Handshake, &format_args!("a TLS handshake failed: {error}")),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let Some(leaf) = chain.first() else {
        let Some(_place) = door.admission.anonymous() else {
            return refuse(Refusal::AnonymousLimit, &"there are too many without a certificate");
        };
        return anonymous(stream, address, door).await;
    };
    let (id, joined) = match peer_spiffe_id(leaf) {
        // Who has a certificate of a former name of the mesh is who it is under the present one.
        Ok(id) => (certificate.present(id), is_joined(leaf)),
        Err(error) => return refuse(Refusal::Handshake, &format_args!("a verified certificate names nobody: {error}")),
    };
    let Some(_place) = door.admission.identity(&id) else {
        let why = "has as many connections as one identity may; close some, one for each process will do";
        return refuse(Refusal::IdentityLimit, &format_args!("{id} {why}"));
    };
    drop(unproved);
    let standing = certificate.standing_of(chain);
    http(stream, Peer { address, caller: Caller::Workload(id), joined }, door, standing.end()).await;
}

/// Shakes hands; `None` = the peer left before it said all of its first message.
async fn handshake<I>(
    io: I,
    address: IpAddr,
    certificate: &ServerCertificate,
    admission: &Admission,
) -> io::Result<Option<TlsStream<I>>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    // Who does not say all of it takes no place.
    let hello = match timeout(HANDSHAKE, LazyConfigAcceptor::new(Acceptor::default(), io)).await? {
        Ok(hello) => hello,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let place = admission.handshake(address).await;
    let mut handshake = pin!(timeout(HANDSHAKE, hello.into_stream(certificate.config())));
    let done = tokio::select! {
        // What has come is taken in first, however late it is looked at: a busy control plane is no slow peer.
        biased;
        done = &mut handshake => done,
        () = sleep(STALL) => {
            drop(place);
            handshake.await
        }
    };
    done?.map(Some)
}

/// Serves somebody without a certificate for as long as it may take to ask for one.
async fn anonymous<I>(io: I, address: SocketAddr, door: &Door)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = Peer { address, caller: Caller::Anonymous, joined: false };
    if timeout(ANONYMOUS, http(io, peer, door, pending())).await.is_err() {
        tracing::debug!(%address, "a connection without a certificate is cut");
    }
}

/// Serves one connection, until `end` or until it has had no stream for long; HTTP/2 alone, for only gRPC is spoken here.
async fn http<I>(io: I, peer: Peer, door: &Door, end: impl Future<Output = End>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (from, routes) = (peer.clone(), door.routes.clone());
    let (closing, closed) = drain::channel();
    let (streams, open) = watch::channel(0);
    let streams = Arc::new(streams);
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (mut routes, closed, stream) = (routes.clone(), closed.clone(), OpenStream::new(&streams));
        async move {
            let answer = tokio::select! {
                biased;
                () = closed.drained() => Status::unauthenticated(GONE).into_http(),
                answer = routes.call(request) => infallible(answer),
            };
            Ok::<_, Infallible>(answer.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &stream;
                    frame
                })
            }))
        }
    });
    let connection = http2_builder(&from.caller).serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let end = async {
        tokio::select! {
            end = end => end,
            () = idle(open) => End::Idle,
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = door.drain.drained() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        end = end => match end {
            End::Aged | End::Idle => {
                tracing::debug!(peer = %from, reason = %end, "a connection is ended");
                connection.as_mut().graceful_shutdown();
                // Streams of configuration have no end of their own.
                timeout(GRACEFUL, connection).await.unwrap_or(Ok(()))
            }
            end => {
                tracing::info!(peer = %from, reason = %end, "a connection is cut: its certificate is no longer good");
                if matches!(end, End::RootGone(_)) {
                    // Nothing new is answered; what is told on open streams, of roots above all, still arrives.
                    closing.drain();
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(FAREWELL, connection).await;
                }
                return;
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %from, %error, "a connection broke");
    }
}

/// No limit is left to a library's default.
fn http2_builder(caller: &Caller) -> http2::Builder<TokioExecutor> {
    // What is kept of bodies that nobody has read yet; who has no certificate sends one small question.
    let (streams, window) = match caller {
        Caller::Anonymous => (16, 64 << 10),
        Caller::Workload(_) | Caller::Insecure => (100, 1 << 20),
    };
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEADERS)
        .adaptive_window(false)
        .initial_stream_window_size(window)
        .initial_connection_window_size(window)
        .max_frame_size(16 << 10)
        .max_send_buf_size(400 << 10)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1_024);
    http2
}

/// Serves a connection that asks for pages.
async fn pages<I>(io: I, door: &Door)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = door.routes.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| routes.clone().call(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PAGE_HEAD)
        .max_headers(100)
        .max_header_size(MAX_HEADERS as usize)
        .max_buf_size(64 << 10)
        .half_close(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let served = timeout(PAGES, async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = door.drain.drained() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    });
    if let Ok(Err(error)) = served.await {
        tracing::debug!(%error, "a connection of the debug port broke");
    }
}

/// A stream that is open, until it is dropped.
struct OpenStream(Arc<watch::Sender<usize>>);

impl OpenStream {
    fn new(all: &Arc<watch::Sender<usize>>) -> Self {
        all.send_modify(|open| *open += 1);
        Self(all.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// Waits until no stream has been open for a while.
async fn idle(mut open: watch::Receiver<usize>) {
    // The sender lives as long as the connection.
    while open.wait_for(|open| *open == 0).await.is_ok() {
        if timeout(IDLE, open.changed()).await.is_err() {
            return;
        }
    }
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
