//! The life of one connection: policy → first byte → TLS → HTTP → drain.
//!
//! Policy is read when the first byte is there, so a change counts for every connection that has not
//! got past this point. What ends a connection afterwards is in `stay.rs`; requests in flight have time to finish.
//!
//! While a drain's lame duck time lasts, connections are served as before, those that come meanwhile too: who has not
//! heard yet would only come again. HTTP/2 can then say that it takes no further requests without losing one (GOAWAY in two
//! steps); HTTP/1.1 cannot: a request may be on its way while the connection is closed. So it is told by its answers in the
//! lame duck's time, and is closed at its end if it is idle. A connection that is closed by itself is told in the same way.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::authz::Caller;
use mesh_core::drain::{self, DrainTrigger, DrainWatch};
use mesh_core::error::BoxError;
use mesh_core::policy::{InboundListener, InboundState, InboundTls};
use mesh_core::source::Watched;

use super::stay::{Guest, LastChange, Leave, Left, after, aged, stay, stay_taken_over, unwelcome};
use super::{InboundStats, Refusal};
use crate::config::MOST_HEADER_BYTES;
use crate::dates::Dates;
use crate::http1::Http1;
use crate::http2::Http2;
use crate::listen::{
    Detected, HttpVersion, Stream, TlsAccept, TlsRefused, Verified, Why, detect, is_tls, leash, looks_like_http1,
    refuse_plaintext,
};
use crate::{Accepted, Body, Config, InboundLayer};

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
    /// Of policy, as connections saw it last.
    pub(super) change: Arc<LastChange>,
    pub(crate) own_http1: Http1,
    pub(crate) own_http2: Http2,
    /// For applications with a loop of their own.
    pub(crate) http1: http1::Builder,
    pub(crate) http2: http2::Builder<TokioExecutor>,
}

/// A connection that may carry requests.
struct Admitted {
    io: Detected,
    version: HttpVersion,
    guest: Guest,
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
        dates: Arc<Dates>,
    ) -> Self {
        let http1 = http1_builder(&config);
        let own_http1 = Http1::new(&config, http1.clone(), dates.clone());
        let (own_http2, http2) = (Http2::new(&config, dates), http2_builder(&config));
        let (close, change) = (drain::channel().0, Arc::default());
        Self { config, inbound, tls, layer, stats, drain, close, change, own_http1, own_http2, http1, http2 }
    }

    /// Takes a connection from its first byte to its end.
    pub(crate) async fn serve<S, RB>(&self, tcp: TcpStream, address: SocketAddr, service: S)
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
        let Some(Admitted { mut io, version, guest }) = admitted else { return };

        let streams = guest.listener.limits.max_concurrent_streams.unwrap_or(self.config.max_concurrent_streams);
        let layer = self.layer.for_connection(guest.peer.clone(), guest.server_name.clone(), true);
        let service = layer.layer(service);
        let is_welcome = |known: &_, now: &_, caller: Caller<'_>| self.change.may_ask_on(known, now, caller);
        let mut closing = stay(guest, self.close.watch(), self.inbound.clone(), &self.tls, &self.config, is_welcome);
        let mut left = None;
        let ended: Option<Result<(), BoxError>> = match version {
            HttpVersion::Http1 => {
                let (leash, tether) = leash();
                io.tether = Some(tether);
                let ended = {
                    let begun = io.unwatched();
                    let connection = self.own_http1.serve(io, Some(begun), service);
                    let told = |leave: Leave| {
                        layer.leave();
                        left = Some(leave);
                        leave.notice(&self.config)
                    };
                    let over = || layer.give_up();
                    drive(pin!(connection), |c| c.leave(), &mut closing, (told, over), &self.config).await
                };
                stay_taken_over(leash, left, closing, self.close.watch().drained(), &self.config).await;
                ended
            }
            HttpVersion::Http2 => {
                let connection = self.own_http2.serve(io, streams, service);
                let told = |leave: Leave| {
                    if leave == Leave::Distrusted {
                        layer.turn_away();
                    }
                    Duration::ZERO
                };
                let over = || layer.give_up();
                drive(pin!(connection), |c| c.get_mut().leave(), &mut closing, (told, over), &self.config).await
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(peer = %address, %error, "connection ended with an error"),
            None => tracing::warn!(peer = %address, "connection closed with requests in flight: their time was over"),
        }
    }

    /// Takes a connection as far as its requests.
    pub(crate) async fn accept(&self, tcp: TcpStream, address: SocketAddr) -> Option<Accepted> {
        // As the own loop does.
        let _ = tcp.set_nodelay(true);
        let Admitted { mut io, version, guest } = self.admit(tcp, address).await?;
        let peer = guest.peer.clone();
        let layer = self.layer.for_connection(peer.clone(), guest.server_name.clone(), false);
        let (leash, tether) = leash();
        io.tether = Some(tether);
        let (leave, leaving) = drain::channel();
        // Whoever may do less than before, or has another name, has some time left, as long as nothing worse comes.
        let (narrowed, change) = (Arc::<Notify>::default(), self.change.clone());
        let is_welcome = move |known: &_, now: &_, caller: Caller<'_>| change.may_ask_on(known, now, caller);
        let aged = aged(&guest.listener, &self.config);
        let unwelcome = unwelcome(guest, self.inbound.clone(), &self.tls, is_welcome, narrowed.clone());
        let (told, limit) = (layer.clone(), self.config.unwelcome_limit);
        let closing = Box::pin(async move {
            let time_is_over = async {
                let is_narrowed = tokio::select! {
                    () = narrowed.notified() => true,
                    () = aged => false,
                };
                told.leave();
                leave.drain();
                if !is_narrowed {
                    narrowed.notified().await;
                }
                sleep(limit).await;
            };
            tokio::select! {
                _ = unwelcome => {}
                () = time_is_over => {}
            }
            leash.cut(Why::Policy);
        });
        Some(Accepted::new(io, version, peer, layer, (closing, leaving)))
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
        let listener = self.policy(address)?;
        let tls = is_tls(first);
        match listener.tls {
            InboundTls::Strict if !tls => {
                self.stats.refuse(Refusal::Plaintext, address, &"policy demands mutual TLS");
                if looks_like_http1(first) {
                    refuse_plaintext(tcp).await;
                }
                return None;
            }
            InboundTls::Disable if tls => {
                return self.refuse(Refusal::TlsDisabled, address, &"policy disables TLS");
            }
            _ => {}
        }
        let (stream, verified) = self.open(tcp, address, &listener, tls).await?;
        match timeout(self.config.detect_timeout, detect(stream)).await {
            Err(_) => self.refuse(Refusal::Timeout, address, &"it sent no request"),
            Ok(Err(_)) => None,
            Ok(Ok((HttpVersion::Http2, io))) if !io.may_be_http2() => {
                self.refuse(Refusal::Alpn, address, &"it speaks HTTP/2 over TLS that did not agree on it (ALPN)")
            }
            Ok(Ok((version, mut io))) => {
                let stats = self.stats.clone();
                io.watch(version, &self.config, move || {
                    stats.refuse(Refusal::Flood, address, &"it sent a flood of control frames");
                });
                let guest = Guest::new(address, io.server_name(), verified, listener);
                Some(Admitted { io, version, guest })
            }
        }
    }

    /// The policy of this moment; `None` = there is none, and the connection is refused. A connection that is let in is
    /// judged by nothing older.
    pub(super) fn policy(&self, address: SocketAddr) -> Option<Arc<InboundListener>> {
        match &*self.layer.hear() {
            InboundState::Ready(listener) => Some(listener.clone()),
            InboundState::Pending => self.refuse(Refusal::NoPolicy, address, &"no policy has come yet"),
            InboundState::Failed(why) => self.refuse(Refusal::NoPolicy, address, why),
        }
    }

    /// Takes a socket as what policy lets it be: plaintext, or mutual TLS after a handshake.
    pub(super) async fn open(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
        listener: &InboundListener,
        tls: bool,
    ) -> Option<(Stream, Option<Verified>)> {
        if !tls {
            let _open = (listener.tls == InboundTls::Permissive).then(|| self.stats.served_plaintext(address));
            return Some((Stream::Plain { tcp, _open }, None));
        }
        match timeout(self.config.handshake_timeout, self.tls.accept(tcp, &listener.instances)).await {
            Err(_) => self.refuse(Refusal::Timeout, address, &"the handshake took too long"),
            Ok(Err(refused)) => self.refuse(reason(&refused), address, &refused),
            Ok(Ok((tls, verified))) => Some((Stream::Tls(Box::new(tls)), Some(verified))),
        }
    }

    pub(super) fn refuse<T>(&self, reason: Refusal, address: SocketAddr, why: &dyn fmt::Display) -> Option<T> {
        self.stats.refuse(reason, address, why);
        None
    }
}

/// Runs a connection to its end. Once it has to leave, `told` says how long it goes on as it is; then it is closed, and
/// what is in flight has the rest of its time, at the end of which `over` lets it say a last word. A worse reason that comes
/// meanwhile is told too, and leaves less. `None` = the time was over.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    close: impl FnOnce(Pin<&mut C>),
    closing: &mut (impl futures_util::Stream<Item = Leave> + Unpin),
    (mut told, over): (impl FnMut(Leave) -> Duration, impl FnOnce()),
    config: &Config,
) -> Option<C::Output> {
    let leave = tokio::select! {
        biased;
        ended = connection.as_mut() => return Some(ended),
        Some(leave) = closing.next() => leave,
    };
    let mut left = Left::new(leave, config);
    let mut notice = after(told(leave));
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Some(ended),
            () = sleep_until(notice) => break,
            shorter = left.shorter(closing, config) => {
                left = shorter;
                notice = notice.min(after(told(left.leave)));
            }
        }
    }
    close(connection.as_mut());
    let last = loop {
        let last = LAST_WORD.min(left.end.saturating_duration_since(Instant::now()) / 4);
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Some(ended),
            () = sleep_until(left.end - last) => break last,
            shorter = left.shorter(closing, config) => {
                left = shorter;
                told(left.leave);
            }
        }
    };
    over();
    timeout(last, connection).await.ok()
}

/// For which answers that are given up may still say so, of the time that what is in flight has.
const LAST_WORD: Duration = Duration::from_secs(1);

fn reason(refused: &TlsRefused) -> Refusal {
    match refused {
        TlsRefused::NoIdentity | TlsRefused::OwnIdentity(_) => Refusal::NoIdentity,
        TlsRefused::Handshake(_) | TlsRefused::Peer(_) | TlsRefused::NoCertificate => Refusal::Handshake,
    }
}

/// What hyper adds to the time of now.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn http1_builder(config: &Config) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .timer(TokioTimer::new())
        // The time of a head from its first byte on is counted by `Messages`.
        .header_read_timeout(config.idle_timeout.min(LONGEST))
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

pub(crate) fn http2_builder(config: &Config) -> http2::Builder<TokioExecutor> {
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
        .header_table_size(4096)
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
