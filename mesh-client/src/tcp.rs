//! [`TcpConnection`]: bytes to an endpoint and back, counted, and what is given back at its end.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_core::id::SpiffeId;
use mesh_core::policy::Address;
use mesh_core::telemetry::TcpSeries;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::cluster::{Attempt, Cluster, Endpoint};
use crate::connect::{self, Handed, IoStream, OpenGuard, Way};
use crate::destination::Destination;

/// A raw connection to an endpoint of a destination; made by [`Client::connect`](crate::Client::connect).
///
/// Reads and writes pass through TLS where policy says so: the application sees plain bytes either way. The
/// connection is the application's from now on. It stays when the destination's configuration changes, and when a
/// certificate is renewed; policy's longest life, which a proxy would keep, is not applied to it. It is closed, whether
/// anybody uses it then or not,
///
/// * if there is a [limit](crate::ClientBuilder::raw_drain_limit), when discovery says that its endpoint is gone, and it has not
///   come back within that: who waits for bytes then, or uses it after, gets
///   [`ConnectionAborted`](io::ErrorKind::ConnectionAborted) with the names of the cluster and the endpoint;
/// * where somebody uses it and no byte has gone over it for policy's idle timeout (Envoy `tcp_proxy`, Istio
///   `connectionPool.tcp.idleTimeout`; 1 h by default): he gets [`TimedOut`](io::ErrorKind::TimedOut).
///
/// Until it is closed or dropped it counts against the cluster's `max_connections` and as load of its endpoint.
pub struct TcpConnection {
    io: Handed,
    idle: Option<Box<Idle>>,
    peer: Option<SpiffeId>,
    series: Arc<TcpSeries>,
    endpoint: Arc<Endpoint>,
}

/// A connection to an endpoint, and what one try holds of that.
pub(crate) struct Held {
    pub(crate) io: IoStream,
    pub(crate) peer: Option<SpiffeId>,
    pub(crate) series: Arc<TcpSeries>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) attempt: Attempt,
    pub(crate) open: OpenGuard,
}

impl TcpConnection {
    /// `idle`: how long it may be silent.
    pub(crate) fn new(
        held: Held,
        cluster: Arc<Cluster>,
        destination: Arc<Destination>,
        idle: Option<Duration>,
    ) -> Self {
        let Held { io, peer, series, endpoint, attempt, open } = held;
        let held = connect::Held::default();
        // The destination is not forgotten meanwhile.
        held.clone().keep((attempt, Opened::new(&series), cluster, destination));
        let idle = idle.and_then(Idle::new).map(Box::new);
        Self { io: Handed::new(io, Some(open), held), idle, peer, series, endpoint }
    }

    /// The endpoint at the other end.
    pub fn address(&self) -> &Address {
        self.endpoint.address()
    }

    /// Who is at the other end, if the connection is the mesh's mutual TLS; policy has been checked against it.
    pub fn peer_id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// Does one thing with the stream, if it was not silent for too long; `moved` tells how many bytes went.
    fn poll_io<T>(
        &mut self,
        way: Way,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut IoStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
        moved: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let Some(idle) = &mut self.idle else { return self.io.poll_io(way, cx, poll) };
        let now = Instant::now();
        let over = now >= idle.end;
        let polled = if over { Poll::Pending } else { self.io.poll_io(way, cx, poll) };
        match &polled {
            Poll::Ready(Ok(done)) if moved(done) > 0 => idle.moved(now),
            Poll::Pending if over || idle.poll(way, cx) => return Poll::Ready(Err(self.io.silent())),
            _ => {}
        }
        polled
    }

    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.series.receive(*bytes);
        }
        polled
    }
}

/// The silence of one connection.
struct Idle {
    limit: Duration,
    end: Instant,
    // Reader and writer may be two tasks, and a timer wakes one.
    timers: [Pin<Box<Sleep>>; 2],
}

impl Idle {
    /// `None` if the end of the silence is beyond all time.
    fn new(limit: Duration) -> Option<Self> {
        let end = Instant::now().checked_add(limit)?;
        Some(Self { limit, end, timers: [Box::pin(sleep_until(end)), Box::pin(sleep_until(end))] })
    }

    fn moved(&mut self, now: Instant) {
        // It was within all time when the connection began; should it be no longer, it stays where it was.
        self.end = now.checked_add(self.limit).unwrap_or(self.end);
    }

    /// Whether it is over; else whoever waits is woken when it may be. The timers follow the end late: most of the
    /// time it moves on long before.
    fn poll(&mut self, way: Way, cx: &mut Context<'_>) -> bool {
        let timer = &mut self.timers[way as usize];
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.end {
                return true;
            }
            timer.as_mut().reset(self.end);
        }
        false
    }
}

/// One connection among those that metrics count as opened and closed.
struct Opened(Arc<TcpSeries>);

impl Opened {
    fn new(series: &Arc<TcpSeries>) -> Self {
        series.open();
        Self(series.clone())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl AsyncRead for TcpConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = |io: Pin<&mut IoStream>, cx: &mut Context<'_>| {
            io.poll_read(cx, buf).map_ok(|()| buf.filled().len() - before)
        };
        this.poll_io(Way::Read, cx, read, |bytes| *bytes).map_ok(|bytes| this.series.send(bytes))
    }
}

impl AsyncWrite for TcpConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = this.poll_io(Way::Write, cx, |io, cx| io.poll_write(cx, buf), |bytes| *bytes);
        this.written(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = this.poll_io(Way::Write, cx, |io, cx| io.poll_write_vectored(cx, bufs), |bytes| *bytes);
        this.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_io(Way::Write, cx, |io, cx| io.poll_flush(cx), |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_io(Way::Write, cx, |io, cx| io.poll_shutdown(cx), |()| 0)
    }
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConnection")
            .field("address", self.address())
            .field("peer_id", &self.peer)
            .finish_non_exhaustive()
    }
}
