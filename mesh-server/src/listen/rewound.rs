//! A connection of HTTP/1 of which a part was read, from a head's first byte on: given again to who goes on with it, and held to
//! the limits on heads from there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Messages;

/// Such a connection.
pub(crate) struct Rewound<T> {
    io: T,
    seen: BytesMut,
    messages: Messages,
}

impl<T> Rewound<T> {
    /// The first byte of what was `seen` came at `since`; a head may take `head_limit`.
    pub(crate) fn new(io: T, seen: BytesMut, since: Instant, head_limit: Duration) -> Self {
        Self { io, seen, messages: Messages::new(head_limit, since) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.seen.is_empty() {
            let read = Pin::new(&mut this.io).poll_read(cx, buf);
            if read.is_pending() {
                this.messages.wait(cx)?;
            }
            ready!(read)?;
        } else {
            let now = this.seen.len().min(buf.remaining());
            buf.put_slice(&this.seen[..now]);
            this.seen.advance(now);
        }
        this.messages.see(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
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
