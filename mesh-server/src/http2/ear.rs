//! Hears whether anything comes from a peer, and asks no further when nothing is there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of bytes that notes when some have come. While its task has its turn it is asked once whether more are there: h2 asks
/// with each request that it hands out, through TLS down to the socket.
pub(super) struct Ear<T> {
    io: T,
    heard: Arc<Heard>,
}

/// What was heard.
#[derive(Default)]
pub(super) struct Heard {
    // Something has come since it was asked last.
    some: AtomicBool,
    // All that is there was read, and the task is woken when there is more.
    all: AtomicBool,
}

impl Heard {
    /// Whether something has come since it was asked last.
    pub(super) fn take(&self) -> bool {
        // Nearly always it is whoever polls the connection that asks, after it has read: no need to write what is there.
        self.some.load(Ordering::Relaxed) && self.some.swap(false, Ordering::Relaxed)
    }

    /// The task of the connection has its turn: more may be there.
    pub(super) fn begin(&self) {
        self.all.store(false, Ordering::Relaxed);
    }
}

impl<T> Ear<T> {
    pub(super) fn new(io: T) -> (Self, Arc<Heard>) {
        let heard = Arc::<Heard>::default();
        (Self { io, heard: heard.clone() }, heard)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ear<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.heard.all.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_pending() {
            this.heard.all.store(true, Ordering::Relaxed);
        }
        ready!(read)?;
        if buf.filled().len() > before {
            this.heard.some.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ear<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
