//! The bytes below HTTP: TCP, a unix socket, or TLS over one of them.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use mesh_core::id::SpiffeId;
use mesh_core::identity::peer_spiffe_id;
use mesh_core::policy::TcpKeepalive;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::coop::unconstrained;
use tokio_rustls::client::TlsStream;

use super::custom::Io;
use super::trust::Vouched;

/// A connected stream.
pub(crate) enum IoStream {
    Tcp(TcpStream),
    Unix(UnixStream),
    // In a mutex that nobody locks: what holds it is to be `Sync` like an answer's body, and an application's need not be.
    Custom(Mutex<Box<dyn Io>>),
    // Boxed: rustls' state is over a kilobyte.
    Tls(Box<TlsIo>),
}

/// A TLS connection.
pub(crate) struct TlsIo {
    pub(super) tls: TlsStream<IoStream>,
    /// Its peer, if it is the mesh's.
    pub(super) vouched: Option<Arc<Vouched>>,
}

impl TlsIo {
    /// The stream, if its peer is still trusted.
    fn open(&mut self) -> io::Result<Pin<&mut TlsStream<IoStream>>> {
        self.vouched.as_ref().map_or(Ok(()), |vouched| vouched.check())?;
        Ok(Pin::new(&mut self.tls))
    }
}

impl Drop for TlsIo {
    fn drop(&mut self) {
        // Says that this is the end, if it can be said at once: a stream that only stops might have been cut.
        let mut tls = Pin::new(&mut self.tls);
        let _ = unconstrained(poll_fn(|cx| tls.as_mut().poll_shutdown(cx))).now_or_never();
    }
}

/// Connects to a unix socket.
pub(super) async fn unix(path: &str) -> io::Result<IoStream> {
    Ok(IoStream::Unix(UnixStream::connect(path).await?))
}

/// Connects to a TCP port.
pub(super) async fn tcp(address: SocketAddr, keepalive: Option<&TcpKeepalive>) -> io::Result<IoStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(policy) = keepalive {
        keep_alive(&socket, policy)?;
    }
    // Requests are written whole; waiting for more to fill a packet only adds latency.
    socket.set_nodelay(true)?;
    Ok(IoStream::Tcp(socket.connect(address).await?))
}

fn keep_alive(socket: &TcpSocket, policy: &TcpKeepalive) -> io::Result<()> {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = policy.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = policy.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = policy.probes {
        keepalive = keepalive.with_retries(probes);
    }
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

impl From<Box<dyn Io>> for IoStream {
    fn from(io: Box<dyn Io>) -> Self {
        Self::Custom(Mutex::new(io))
    }
}

impl IoStream {
    /// Who the certificate at the other end says it is; `None` without TLS or without a SPIFFE ID.
    pub(super) fn peer_id(&self) -> Option<SpiffeId> {
        let Self::Tls(io) = self else { return None };
        peer_spiffe_id(io.tls.get_ref().1.peer_certificates()?.first()?).ok()
    }

    /// The peer of the mesh at the other end, and whether it is still trusted.
    pub(super) fn vouched(&self) -> Option<Arc<Vouched>> {
        let Self::Tls(io) = self else { return None };
        io.vouched.clone()
    }

    /// Whether bytes of a write that failed may be with the peer all the same: TLS writes several records, and of a stream of
    /// the application's own nobody knows what is in it.
    pub(super) fn may_have_sent(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Custom(_) => true,
            Self::Tls(io) => io.vouched.as_ref().is_none_or(|vouched| vouched.check().is_ok()),
        }
    }

    /// Whether something may have come that nobody has read. Asks the runtime alone, which is much less than to read.
    pub(super) fn may_have_news(&self) -> bool {
        // Whoever has used up his time here sees it all the same.
        match self {
            Self::Tcp(io) => unconstrained(poll_fn(|cx| io.poll_read_ready(cx))).now_or_never().is_some(),
            Self::Unix(io) => unconstrained(poll_fn(|cx| io.poll_read_ready(cx))).now_or_never().is_some(),
            Self::Custom(_) => true,
            Self::Tls(io) => {
                let (below, session) = io.tls.get_ref();
                // It does not want to where it holds what was read, or the word that this is the end.
                let is_told = io.vouched.as_ref().is_some_and(|vouched| vouched.check().is_err());
                is_told || !session.wants_read() || below.may_have_news()
            }
        }
    }

    /// Whether ALPN chose HTTP/2; `None` without TLS or without an answer that says so.
    pub(super) fn negotiated_h2(&self) -> Option<bool> {
        let Self::Tls(io) = self else { return None };
        match io.tls.get_ref().1.alpn_protocol()? {
            b"h2" | b"istio-h2" => Some(true),
            // Says only that it is the mesh.
            b"istio" => None,
            _ => Some(false),
        }
    }
}

impl AsyncRead for IoStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Self::Custom(io) => Pin::new(io.get_mut()).poll_read(cx, buf),
            Self::Tls(io) => {
                let polled = io.open()?.poll_read(cx, buf);
                if polled.is_pending()
                    && let Some(vouched) = &io.vouched
                {
                    vouched.wait(cx.waker())?;
                }
                polled
            }
        }
    }
}

impl AsyncWrite for IoStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Unix(io) => Pin::new(io).poll_write(cx, buf),
            Self::Custom(io) => Pin::new(io.get_mut()).poll_write(cx, buf),
            Self::Tls(io) => io.open()?.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Custom(io) => Pin::new(io.get_mut()).poll_write_vectored(cx, bufs),
            Self::Tls(io) => io.open()?.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::Custom(io) => io.try_lock().is_some_and(|io| io.is_write_vectored()),
            Self::Tls(io) => io.tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Unix(io) => Pin::new(io).poll_flush(cx),
            Self::Custom(io) => Pin::new(io.get_mut()).poll_flush(cx),
            Self::Tls(io) => io.open()?.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Self::Custom(io) => Pin::new(io.get_mut()).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(&mut io.tls).poll_shutdown(cx),
        }
    }
}
