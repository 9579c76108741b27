//! [`Accepted`]: a connection that policy let in, for an application that serves its requests by itself.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::{ArcWake, AtomicWaker, waker_ref};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use mesh_core::drain::DrainWatch;
use mesh_core::identity::PeerIdentity;

use crate::InboundLayer;
use crate::listen::{Detected, HttpVersion};

/// A connection of HTTP from a caller that policy let in, made by [`Server::accept`](crate::Server::accept): plaintext, or
/// mutual TLS, whose plain bytes are read and written here. Once policy or trust do not let its peer in any more, reading and
/// writing fail; where a new policy may refuse something to it that was open before, after
/// [`Config::unwelcome_limit`](crate::Config), of which [`leaving`](Self::leaving) tells.
pub struct Accepted {
    io: Detected,
    version: HttpVersion,
    peer: PeerIdentity,
    layer: InboundLayer,
    leaving: DrainWatch,
    // Ends it; `None` once it has.
    closing: Option<Closing>,
    woken: Arc<Woken>,
}

type Closing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whether what ends a connection has something to do: it is polled then, and not with every read and write.
struct Woken {
    is: AtomicBool,
    // The two halves may be in two tasks, of which one may have ended.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl ArcWake for Woken {
    fn wake_by_ref(this: &Arc<Self>) {
        this.is.store(true, Ordering::Release);
        this.reader.wake();
        this.writer.wake();
    }
}

impl Accepted {
    pub(crate) fn new(
        io: Detected,
        version: HttpVersion,
        peer: PeerIdentity,
        layer: InboundLayer,
        (closing, leaving): (Closing, DrainWatch),
    ) -> Self {
        let woken = Woken { is: true.into(), reader: AtomicWaker::new(), writer: AtomicWaker::new() };
        Self { io, version, peer, layer, leaving, closing: Some(closing), woken: Arc::new(woken) }
    }

    /// Goes on with what ends the connection. If that is done, `io` says so.
    fn poll_closing(&mut self) {
        if !self.woken.is.swap(false, Ordering::AcqRel) {
            return;
        }
        let waker = waker_ref(&self.woken);
        if let Some(closing) = &mut self.closing
            && closing.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
        {
            self.closing = None;
        }
    }

    // What an answer is written to may not be read from for as long as it lasts.
    fn writing(&mut self, cx: &Context<'_>) -> Pin<&mut Detected> {
        self.woken.writer.register(cx.waker());
        self.poll_closing();
        Pin::new(&mut self.io)
    }

    /// The caller: its address, and who it is if the connection is the mesh's mutual TLS.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The TLS server name that the caller asked for; empty if it named none or there is no TLS.
    pub fn server_name(&self) -> &str {
        self.io.server_name()
    }

    /// Whether the caller speaks HTTP/2, by its first bytes. Else it is HTTP/1.
    pub fn is_http2(&self) -> bool {
        self.version == HttpVersion::Http2
    }

    /// Resolves when the connection has its age ([`Config::max_connection_age`](crate::Config), or the listener's), or when a
    /// policy has come that may refuse what was open to the caller before: then it is cut after
    /// [`Config::unwelcome_limit`](crate::Config). An HTTP server that is told to end it gracefully loses no request that
    /// is done in time. It is noticed while somebody reads or writes.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        self.leaving.drained()
    }

    /// What judges and counts the requests of this connection: around the service that they are given to.
    pub fn layer(&self) -> InboundLayer {
        self.layer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.woken.reader.register(cx.waker());
        this.poll_closing();
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().writing(cx).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writing(cx).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writing(cx).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().writing(cx).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("peer", &self.peer).field("version", &self.version).finish_non_exhaustive()
    }
}
