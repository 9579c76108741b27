//! [`RawConnection`]: bytes of a caller that policy let in, counted, in the application's hands until they are taken back.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use mesh_core::drain::DrainWatch;
use mesh_core::identity::PeerIdentity;
use mesh_core::telemetry::TcpSeries;

use crate::listen::{Stream, Tether};

/// A connection that carries no HTTP, from a caller that policy let in; given to the handler of
/// [`Server::serve_tcp`](crate::Server::serve_tcp).
///
/// Reads and writes pass through TLS where there is some: the application sees plain bytes either way. It is closed when it
/// is dropped. If the mesh ends it, reading and writing fail: with [`ConnectionAborted`](io::ErrorKind::ConnectionAborted)
/// where policy does not let the caller in any more, the connection is too old or the server has left, with [`TimedOut`](io::ErrorKind::TimedOut)
/// where no byte has gone for too long.
pub struct RawConnection {
    // None: ended by the mesh.
    io: Option<Stream>,
    tether: Tether,
    activity: Arc<Activity>,
    account: Account,
    leaving: DrainWatch,
}

impl RawConnection {
    pub(crate) fn new(
        stream: Stream,
        tether: Tether,
        activity: Arc<Activity>,
        account: Account,
        leaving: DrainWatch,
    ) -> Self {
        Self { io: Some(stream), tether, activity, account, leaving }
    }

    /// The caller: its address, and who it is if the connection is the mesh's mutual TLS.
    pub fn peer(&self) -> &PeerIdentity {
        &self.account.peer
    }

    /// The TLS server name that the caller asked for; empty if it named none or there is no TLS.
    pub fn server_name(&self) -> &str {
        &self.account.server_name
    }

    /// Waits until the connection is to end, so that the handler can end its dialogue in good order: because the server
    /// begins to leave, for which it has [`Config::lame_duck`](crate::Config) and [`Config::drain_limit`](crate::Config), or
    /// because the connection has its age (the listener's `max_connection_age` or
    /// [`Config::max_connection_age`](crate::Config)), for which it has `drain_limit`.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        self.leaving.drained()
    }

    /// Does one thing with the stream unless that was taken back; `wait` = who waits hears of it.
    fn poll_io<T>(
        &mut self,
        cx: &mut Context<'_>,
        wait: impl FnOnce(&mut Tether, &Waker) -> io::Result<()>,
        poll: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let ended = match (&mut self.io, self.tether.check()) {
            (Some(io), Ok(())) => {
                let polled = poll(Pin::new(io), cx);
                if polled.is_ready() {
                    return polled;
                }
                wait(&mut self.tether, cx.waker())
            }
            (_, Err(ended)) => Err(ended),
            (None, Ok(())) => unreachable!("it is given up only when it was taken back, for good"),
        };
        match ended {
            Ok(()) => Poll::Pending,
            Err(ended) => {
                // Closed here and not when it is dropped: the other side is to know.
                self.io = None;
                Poll::Ready(Err(ended))
            }
        }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled
            && *bytes > 0
        {
            self.account.sent += *bytes as u64;
            self.account.series.send(*bytes);
            self.activity.moved();
        }
        polled
    }
}

impl AsyncRead for RawConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = this.poll_io(cx, Tether::wait_to_read, |io, cx| io.poll_read(cx, buf));
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            this.account.received += bytes as u64;
            this.account.series.receive(bytes);
            this.activity.moved();
        }
        polled
    }
}

impl AsyncWrite for RawConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = this.poll_io(cx, Tether::wait_to_write, |io, cx| io.poll_write(cx, buf));
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = this.poll_io(cx, Tether::wait_to_write, |io, cx| io.poll_write_vectored(cx, bufs));
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_io(cx, Tether::wait_to_write, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_io(cx, Tether::wait_to_write, |io, cx| io.poll_shutdown(cx))
    }
}

impl fmt::Debug for RawConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawConnection")
            .field("peer", self.peer())
            .field("server_name", &self.server_name())
            .finish_non_exhaustive()
    }
}

/// When a byte went over a connection last.
pub(crate) struct Activity {
    begun: Instant,
    /// Since then, milliseconds.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), last: AtomicU64::new(0) })
    }

    fn moved(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for so long; for ever without a limit.
    pub(crate) async fn silent_for(self: Arc<Self>, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let Some(end) = last.checked_add(limit).and_then(|silent| self.begun.checked_add(silent)) else {
                return std::future::pending().await;
            };
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// What is counted and told of a connection; it ends when this is dropped.
pub(crate) struct Account {
    series: Arc<TcpSeries>,
    peer: PeerIdentity,
    server_name: Box<str>,
    opened: Instant,
    received: u64,
    sent: u64,
    /// Why it was denied, in Envoy's words.
    details: Option<Box<str>>,
}

impl Account {
    pub(crate) fn open(series: Arc<TcpSeries>, peer: PeerIdentity, server_name: Box<str>) -> Self {
        series.open();
        Self { series, peer, server_name, opened: Instant::now(), received: 0, sent: 0, details: None }
    }

    /// It ends before it has begun.
    pub(crate) fn deny(mut self, details: Box<str>) {
        self.details = Some(details);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.series.close();
        tracing::info!(
            target: "mesh::access",
            protocol = "tcp",
            received = self.received,
            sent = self.sent,
            details = self.details.as_deref(),
            duration_ms = self.opened.elapsed().as_secs_f64() * 1000.0,
            peer = %self.peer.address,
            principal = self.peer.spiffe_id.as_ref().map(tracing::field::display),
            server_name = &*self.server_name,
        );
    }
}
