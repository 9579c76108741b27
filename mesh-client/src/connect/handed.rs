//! A connection that may become something else than HTTP: hyper has it, and the application after it. Until it is closed it
//! counts as open, and what its request held (its place in flight, at its endpoint and among the limits) is held, as Envoy
//! counts a WebSocket for a request under way.
//!
//! Refuses to know what goes over it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::IoStream;
use super::pool::OpenGuard;

/// What is let go with the connection.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<Mutex<Option<Box<dyn Send>>>>);

impl Held {
    pub(crate) fn keep(self, what: impl Send + 'static) {
        *self.0.lock() = Some(Box::new(what));
    }
}

/// The bytes below it.
pub(super) struct Handed {
    // First, so that the socket goes before its place.
    io: IoStream,
    _open: Option<OpenGuard>,
    _held: Held,
}

impl Handed {
    pub(super) fn new(io: IoStream, open: Option<OpenGuard>, held: Held) -> Self {
        Self { io, _open: open, _held: held }
    }
}

impl AsyncRead for Handed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Handed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
