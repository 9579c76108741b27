//! [`TcpConnection`]: bytes to an endpoint and back, counted, and what is given back at its end.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_core::id::SpiffeId;
use mesh_core::policy::Address;
use mesh_core::telemetry::TcpSeries;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::cluster::{Attempt, Endpoint, Permit};
use crate::connect::{IoStream, OpenGuard};
use crate::destination::Destination;

/// A raw connection to an endpoint of a destination; made by [`Client::connect`](crate::Client::connect).
///
/// Reads and writes pass through TLS where policy says so: the application sees plain bytes either way. The
/// connection is the application's from now on. It stays when its endpoint leaves the destination, when the
/// destination's configuration changes, and when a certificate is renewed; policy's idle timeout and longest
/// life, which a proxy would keep, are not applied to it. Until it is dropped it counts against the cluster's
/// `max_connections` and `max_requests` and as load of its endpoint.
pub struct TcpConnection {
    io: IoStream,
    peer: Option<SpiffeId>,
    series: Arc<TcpSeries>,
    endpoint: Arc<Endpoint>,
    // Given back when the connection is dropped; the destination is not forgotten meanwhile.
    _counted: (Attempt, OpenGuard, Permit, Arc<Destination>),
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
    pub(crate) fn new(held: Held, permit: Permit, destination: Arc<Destination>) -> Self {
        let Held { io, peer, series, endpoint, attempt, open } = held;
        series.open();
        Self { io, peer, series, endpoint, _counted: (attempt, open, permit, destination) }
    }

    /// The endpoint at the other end.
    pub fn address(&self) -> &Address {
        self.endpoint.address()
    }

    /// Who is at the other end, if the connection is the mesh's mutual TLS; policy has been checked against it.
    pub fn peer_id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    fn written(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.series.receive(*bytes);
        }
        polled
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.series.close();
    }
}

impl AsyncRead for TcpConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        this.series.send(buf.filled().len() - before);
        polled
    }
}

impl AsyncWrite for TcpConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.written(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
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
