//! The life of one connection: policy → first byte → TLS → HTTP → drain.
//!
//! Policy is read when the first byte is there, so a change counts for every connection that has not
//! got past this point. Afterwards only two things end a connection early: a drain (or its age), and
//! for a plaintext one the turn to STRICT. Both let requests in flight finish.
//!
//! HTTP/2 can say that it takes no further requests without losing one (GOAWAY in two steps); HTTP/1.1 cannot:
//! a request may be on its way while the connection is closed. So in a drain an HTTP/1.1 connection is told
//! by its next answer, and one that is idle is left alone until the lame duck's time is over. A connection
//! that comes after the drain began belongs to a caller who does not know yet: it is served meanwhile.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::drain::{self, DrainTrigger, DrainWatch};
use mesh_core::error::BoxError;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{InboundListener, InboundState, InboundTls};
use mesh_core::source::Watched;

use super::{InboundStats, Refusal};
use crate::config::MOST_HEADER_BYTES;
use crate::listen::{
    Detected, HttpVersion, Stream, TlsAccept, TlsRefused, Verified, detect, is_tls, looks_like_http1, refuse_plaintext,
};
use crate::{Body, Config, InboundLayer};

/// What every connection of a server needs.
pub(crate) struct Door {
    pub(crate) config: Config,
    pub(crate) inbound: Watched<InboundState>,
    pub(crate) tls: TlsAccept,
    pub(crate) layer: InboundLayer,
    pub(crate) stats: Arc<InboundStats>,
    pub(crate) drain: DrainWatch,
    /// The lame duck's time is over.
    pub(crate) close: DrainTrigger,
    pub(crate) http1: http1::Builder,
    pub(crate) http2: http2::Builder<TokioExecutor>,
}

/// A connection that may carry requests.
struct Admitted {
    io: Detected,
    version: HttpVersion,
    peer: PeerIdentity,
    verified: Option<Verified>,
    server_name: Box<str>,
    listener: Arc<InboundListener>,
}

/// How many bytes are looked at before anything is read: enough to see which protocol it is.
const PEEK: usize = 12;

impl Door {
    pub(crate) fn new(
        config: Config,
        inbound: Watched<InboundState>,
        tls: TlsAccept,
        layer: InboundLayer,
        stats: Arc<InboundStats>,
        drain: DrainWatch,
    ) -> Self {
        let http1 = http1_builder(&config);
        let http2 = http2_builder(&config);
        let close = drain::channel().0;
        Self { config, inbound, tls, layer, stats, drain, close, http1, http2 }
    }

    /// Takes a connection from its first byte to its end.
    pub(super) async fn serve<S, RB>(&self, tcp: TcpStream, address: SocketAddr, service: S)
    where
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        let admitted = tokio::select! {
            biased;
            // No request has been read yet: nothing to finish.
            () = self.close.watch().drained() => return,
            admitted = self.admit(tcp, address) => admitted,
        };
        let Some(Admitted { io, version, peer, verified, server_name, listener }) = admitted else { return };

        let knows = version == HttpVersion::Http2 && !self.drain.is_draining();
        let drained = if knows { self.drain.clone() } else { self.close.watch() };
        let closing = self.closing(drained, verified, &listener);
        let service = TowerToHyperService::new(self.layer.for_connection(peer, Some(server_name)).layer(service));
        let io = TokioIo::new(io);
        let limit = self.config.drain_limit;
        let ended = match version {
            HttpVersion::Http1 => {
                let connection = self.http1.serve_connection(io, service).with_upgrades();
                drive(connection, |connection| connection.graceful_shutdown(), closing, limit).await
            }
            HttpVersion::Http2 => {
                let streams = listener.limits.max_concurrent_streams.unwrap_or(self.config.max_concurrent_streams);
                let connection = self.http2.clone().max_concurrent_streams(streams).serve_connection(io, service);
                drive(connection, |connection| connection.graceful_shutdown(), closing, limit).await
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(peer = %address, %error, "connection ended with an error"),
            None => tracing::warn!(peer = %address, ?limit, "connection closed with requests in flight: drain limit"),
        }
    }

    /// Decides about a connection; `None` = refused and closed.
    async fn admit(&self, tcp: TcpStream, address: SocketAddr) -> Option<Admitted> {
        let mut first = [0; PEEK];
        let first = match timeout(self.config.detect_timeout, tcp.peek(&mut first)).await {
            Err(_) => return self.refuse(Refusal::Timeout, address, &"it sent nothing"),
            // Closed without a word, as port checks do.
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(seen)) => &first[..seen],
        };
        let listener = match &**self.inbound.load() {
            InboundState::Ready(listener) => listener.clone(),
            InboundState::Pending => return self.refuse(Refusal::NoPolicy, address, &"no policy has come yet"),
            InboundState::Failed(why) => return self.refuse(Refusal::NoPolicy, address, why),
        };
        let (stream, verified) = match (listener.tls, is_tls(first)) {
            (InboundTls::Strict, false) => {
                self.stats.refuse(Refusal::Plaintext, address, &"policy demands mutual TLS");
                if looks_like_http1(first) {
                    refuse_plaintext(tcp).await;
                }
                return None;
            }
            (InboundTls::Disable, true) => {
                return self.refuse(Refusal::TlsDisabled, address, &"policy disables TLS");
            }
            (InboundTls::Permissive, false) => {
                self.stats.served_plaintext(address);
                (Stream::Plain(tcp), None)
            }
            (InboundTls::Disable, false) => (Stream::Plain(tcp), None),
            (InboundTls::Strict | InboundTls::Permissive, true) => {
                match timeout(self.config.handshake_timeout, self.tls.accept(tcp)).await {
                    Err(_) => return self.refuse(Refusal::Timeout, address, &"the handshake took too long"),
                    Ok(Err(refused)) => return self.refuse(reason(&refused), address, &refused),
                    Ok(Ok((tls, verified))) => (Stream::Tls(Box::new(tls)), Some(verified)),
                }
            }
        };
        let server_name = stream.server_name().into();
        match timeout(self.config.detect_timeout, detect(stream)).await {
            Err(_) => self.refuse(Refusal::Timeout, address, &"it sent no request"),
            Ok(Err(_)) => None,
            Ok(Ok((version, io))) => {
                let peer = PeerIdentity { spiffe_id: verified.as_ref().map(|peer| peer.id.clone()), address };
                Some(Admitted { io, version, peer, verified, server_name, listener })
            }
        }
    }

    fn refuse<T>(&self, reason: Refusal, address: SocketAddr, why: &dyn fmt::Display) -> Option<T> {
        self.stats.refuse(reason, address, why);
        None
    }

    /// Waits until the connection should take no further requests.
    fn closing(
        &self,
        drain: DrainWatch,
        verified: Option<Verified>,
        listener: &InboundListener,
    ) -> impl Future<Output = ()> + Send + use<> {
        let drained = drain.drained();
        let mut inbound = self.inbound.clone();
        let age = listener.limits.max_connection_age.or(self.config.max_connection_age);
        let varied = |age: Duration| Duration::try_from_secs_f64(age.as_secs_f64() * (0.9 + 0.2 * fastrand::f64()));
        let oldest = age.and_then(|age| Instant::now().checked_add(varied(age).ok()?));
        let distrusted = verified.map(|peer| self.tls.distrusted(peer));
        async move {
            // Of a peer that proved who it is, the proof must still hold; any other needs a port that asks for none.
            let unwelcome = async {
                if let Some(distrusted) = distrusted {
                    return distrusted.await;
                }
                inbound.wait_for(|state| matches!(state, InboundState::Ready(l) if l.tls == InboundTls::Strict)).await;
            };
            let aged = async {
                match oldest {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drained => {}
                () = unwelcome => {}
                () = aged => {}
            }
        }
    }
}

/// Runs a connection; once `closing` is done, closes it gracefully within `limit`. `None` = the limit
/// was reached.
async fn drive<C: Future>(
    connection: C,
    close: impl FnOnce(Pin<&mut C>),
    closing: impl Future<Output = ()>,
    limit: Duration,
) -> Option<C::Output> {
    let mut connection = pin!(connection);
    // A set of one: polled when it is woken and not with every read of the connection.
    let mut closing: FuturesUnordered<_> = std::iter::once(closing).collect();
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Some(ended),
        _ = closing.next() => {}
    }
    close(connection.as_mut());
    timeout(limit, connection).await.ok()
}

fn reason(refused: &TlsRefused) -> Refusal {
    match refused {
        TlsRefused::NoIdentity | TlsRefused::OwnIdentity(_) => Refusal::NoIdentity,
        TlsRefused::Handshake(_) | TlsRefused::Peer(_) | TlsRefused::NoCertificate => Refusal::Handshake,
    }
}

fn http1_builder(config: &Config) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_read_timeout)
        .max_header_size(config.max_header_bytes.min(MOST_HEADER_BYTES) as usize)
        // hyper panics below 8 KiB.
        .max_buf_size(config.max_buffer.max(8192))
        .keep_alive(true)
        // A client that closes its half has gone away: its request is cancelled, as over HTTP/2.
        .half_close(false);
    // 100 is what hyper has room for without an allocation; the layer counts them all the same.
    if config.max_headers > 100 {
        http1.max_headers(config.max_headers);
    }
    http1
}

fn http2_builder(config: &Config) -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(config.max_header_bytes.min(MOST_HEADER_BYTES))
        .keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .adaptive_window(false)
        .initial_stream_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_frame_size(16 * 1024)
        .max_send_buf_size(config.max_buffer)
        .max_pending_accept_reset_streams(config.max_pending_resets)
        .max_local_error_reset_streams(config.max_local_resets)
        // WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol();
    http2
}

/// Whether an error of `accept` concerns the one connection only.
pub(super) fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
