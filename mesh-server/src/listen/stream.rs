//! One type for a plaintext and a TLS socket, so that everything above is compiled once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::cut::Tether;
use super::{Frames, HttpVersion, Messages};
use crate::Config;
use crate::inbound::PlaintextOpen;

/// An accepted socket.
pub(crate) enum Stream {
    Plain {
        tcp: TcpStream,
        /// Counts it while it is open.
        _open: Option<PlaintextOpen>,
    },
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The TLS server name that the peer asked for; empty if none.
    pub(crate) fn server_name(&self) -> &str {
        match self {
            Self::Plain { .. } => "",
            Self::Tls(tls) => tls.get_ref().1.server_name().unwrap_or_default(),
        }
    }

    /// Closes it at once, and so that the peer does not take it for an orderly end.
    pub(crate) fn reset(self) {
        let tcp = match &self {
            Self::Plain { tcp, .. } => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        };
        // A socket that refuses is closed all the same.
        let _ = tcp.set_zero_linger();
    }
}

/// A socket whose first bytes were read to look at them and are given again.
pub(crate) struct Detected {
    pub(super) stream: Stream,
    /// Those that are to be given again.
    pub(super) seen: BytesMut,
    /// When the first of them came.
    pub(super) since: Instant,
    /// Of HTTP/2.
    pub(super) frames: Option<Frames>,
    /// Of HTTP/1.
    pub(super) messages: Option<Messages>,
    /// Of HTTP/1, which the application may take over.
    pub(crate) tether: Option<Tether>,
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp, .. } => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain { tcp, .. } => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

impl Detected {
    /// The TLS server name that the peer asked for; empty if none.
    pub(crate) fn server_name(&self) -> &str {
        self.stream.server_name()
    }

    /// Whether HTTP/2 may be spoken. Over TLS that takes an agreement (RFC 9113, section 3.2), or Istio's that it is the mesh that
    /// speaks: bytes that came under another one, or under none, may have been meant for another protocol.
    pub(crate) fn may_be_http2(&self) -> bool {
        match &self.stream {
            Stream::Plain { .. } => true,
            Stream::Tls(tls) => matches!(tls.get_ref().1.alpn_protocol(), Some(b"h2" | b"istio")),
        }
    }

    /// Holds what comes to the limits on heads and control frames; `flooded` is called for the first frame beyond.
    pub(crate) fn watch(&mut self, version: HttpVersion, config: &Config, flooded: impl FnOnce() + Send + 'static) {
        let head = config.header_read_timeout;
        match version {
            HttpVersion::Http1 => self.messages = Some(Messages::new(head, self.since)),
            HttpVersion::Http2 => self.frames = Some(Frames::new(config.max_control_frames, head, Box::new(flooded))),
        }
    }

    /// Of HTTP/1 whoever serves it looks at heads himself. Gives when the first byte came.
    pub(crate) fn unwatched(&mut self) -> Instant {
        self.messages = None;
        self.since
    }

    fn check(&self) -> io::Result<()> {
        self.tether.as_ref().map_or(Ok(()), Tether::check)
    }

    /// Whoever waits to write hears that the connection was cut.
    fn wait_to_write<T>(&mut self, cx: &Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut self.tether {
            Some(tether) if polled.is_pending() => match tether.wait_to_write(cx.waker()) {
                Ok(()) => Poll::Pending,
                Err(cut) => Poll::Ready(Err(cut)),
            },
            _ => polled,
        }
    }

    /// Looks at what has come of frames. Who sends a flood is told before it is over, if the socket takes it at once.
    fn see_frames(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let Some(frames) = &mut self.frames else { return Ok(()) };
        let seen = frames.see(bytes);
        if seen.is_err()
            && let Some(last) = frames.farewell()
        {
            let mut stream = Pin::new(&mut self.stream);
            let _ = stream.as_mut().poll_write(cx, &last);
            let _ = stream.poll_flush(cx);
        }
        seen
    }
}

impl AsyncRead for Detected {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.is_empty() {
            this.check()?;
            let before = buf.filled().len();
            let read = Pin::new(&mut this.stream).poll_read(cx, buf);
            if read.is_pending() {
                if let Some(tether) = &mut this.tether {
                    tether.wait_to_read(cx.waker())?;
                }
                if let Some(frames) = &mut this.frames {
                    frames.wait(cx)?;
                }
                if let Some(messages) = &mut this.messages {
                    messages.wait(cx)?;
                }
            }
            ready!(read)?;
            if let Some(messages) = &mut this.messages {
                messages.see(&mut buf.filled_mut()[before..]);
            }
            return Poll::Ready(this.see_frames(cx, &buf.filled()[before..]));
        }
        let (before, now) = (buf.filled().len(), this.seen.len().min(buf.remaining()));
        buf.put_slice(&this.seen[..now]);
        this.seen.advance(now);
        if let Some(messages) = &mut this.messages {
            messages.see(&mut buf.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Detected {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        let written = ready!(this.wait_to_write(cx, polled))?;
        if let Some(frames) = &mut this.frames {
            frames.wrote(&buf[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.wait_to_write(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.wait_to_write(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        let written = ready!(this.wait_to_write(cx, polled))?;
        if let Some(frames) = &mut this.frames {
            let mut rest = written;
            for buf in bufs {
                let now = rest.min(buf.len());
                frames.wrote(&buf[..now]);
                rest -= now;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
