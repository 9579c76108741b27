//! What a CONNECT request asks for: a stream in the application's hands, which has it from [`hyper::upgrade::on`] as over
//! HTTP/1.1.
//!
//! hyper alone can make what that gives. So one of its HTTP/1 connections is made of the stream: it reads a request for an
//! upgrade that is made up here, and is left with its answer, that goes nowhere, when the one to the real request is sent.
//! What it hands over then is the stream.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A tunnel that the application may take.
pub(super) struct Tunnel {
    stream: RecvStream,
    // Waits for `accept`.
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    accept: oneshot::Sender<()>,
    ends: oneshot::Sender<Ends>,
}

/// Both directions of a stream.
struct Ends {
    incoming: RecvStream,
    // What was read of it, and is not given yet.
    read: Bytes,
    outgoing: SendStream<Bytes>,
    ended: bool,
}

/// What hyper makes a connection of, and the application has in the end.
struct Way {
    // What is to be read of the request.
    asked: &'static [u8],
    // Bytes of `END` that were written of the answer last.
    answered: usize,
    coming: oneshot::Receiver<Ends>,
    ends: Option<Ends>,
}

const ASKED: &[u8] = b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: stream\r\n\r\n";
/// The end of a head.
const END: &[u8] = b"\r\n\r\n";
/// Bytes that are written at once.
const PIECE: usize = 16 * 1024;

impl Tunnel {
    /// One for a stream, and what the application takes it by.
    pub(super) fn dig(stream: RecvStream) -> (Self, Option<OnUpgrade>) {
        let (ends, coming) = oneshot::channel();
        let (accept, accepted) = oneshot::channel::<()>();
        let (taken, mut upgrade) = oneshot::channel();
        let once = Mutex::new(Some((taken, accepted)));
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let once = once.lock().take();
            async move {
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = StatusCode::BAD_REQUEST;
                if let Some((taken, accepted)) = once {
                    let _ = taken.send(hyper::upgrade::on(&mut request));
                    if accepted.await.is_ok() {
                        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                        response.headers_mut().insert("upgrade", http::HeaderValue::from_static("stream"));
                    }
                }
                Ok::<_, Infallible>(response)
            }
        });
        let way = Way { asked: ASKED, answered: 0, coming, ends: None };
        let connection = http1::Builder::new().max_buf_size(8192).serve_connection(TokioIo::new(way), service);
        let mut connection = Box::pin(async move { drop(connection.with_upgrades().await) });
        // As far as the answer, for which nobody has to be woken.
        let _ = connection.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        (Self { stream, connection, accept, ends }, upgrade.try_recv().ok())
    }

    /// The answer has begun: from now on the stream is the application's.
    pub(super) fn open(mut self, outgoing: SendStream<Bytes>) {
        let ends = Ends { incoming: self.stream, read: Bytes::new(), outgoing, ended: false };
        // Who does not want it has dropped it.
        let _ = self.ends.send(ends);
        let _ = self.accept.send(());
        // All is there that it has waited for.
        if self.connection.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            TokioExecutor::new().execute(self.connection);
        }
    }
}

impl AsyncRead for Way {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.asked.is_empty() {
            let now = this.asked.len().min(buf.remaining());
            buf.put_slice(&this.asked[..now]);
            this.asked = &this.asked[now..];
            return Poll::Ready(Ok(()));
        }
        // It is polled again when there is something.
        let Some(ends) = &mut this.ends else { return Poll::Pending };
        ready!(ends.poll_fill(cx))?;
        let now = ends.read.len().min(buf.remaining());
        buf.put_slice(&ends.read[..now]);
        ends.read.advance(now);
        // Of a stream that is over nothing is to be given back.
        let _ = ends.incoming.flow_control().release_capacity(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Way {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.ends {
            Some(ends) => ends.poll_send(cx, buf),
            None => {
                let told = this.swallow(buf);
                Poll::Ready(Ok(told))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(ends) = &mut self.get_mut().ends {
            ends.end();
        }
        Poll::Ready(Ok(()))
    }
}

impl Way {
    /// Takes what is of the answer's head. With its end the stream is there.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            self.answered = match END[self.answered] == *byte {
                true => self.answered + 1,
                false => usize::from(*byte == END[0]),
            };
            if self.answered == END.len() {
                self.answered = 0;
                self.ends = self.coming.try_recv().ok();
                return at + 1;
            }
        }
        bytes.len()
    }
}

impl Ends {
    /// Waits for bytes; none = the peer sends no more.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.incoming.poll_data(cx)) {
                Some(Ok(read)) => self.read = read,
                None => break,
                // Taken back, for whatever reason, it has not come to its end (RFC 9113, section 8.5).
                Some(Err(error)) => match error.reason() {
                    Some(Reason::STREAM_CLOSED) => return Poll::Ready(Err(broken(error))),
                    _ => return Poll::Ready(Err(failed(error))),
                },
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // One byte, and the rest as it is there: room that is reserved is taken from other streams, which may need it more.
        self.outgoing.reserve_capacity(1);
        while self.outgoing.capacity() == 0 {
            match ready!(self.outgoing.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(failed)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let now = bytes.len().min(PIECE);
        self.outgoing.send_data(Bytes::copy_from_slice(&bytes[..now]), false).map_err(broken)?;
        Poll::Ready(Ok(now))
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // Of one that has failed nobody is told any more.
            let _ = self.outgoing.send_data(Bytes::new(), true);
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.end();
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

fn failed(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into());
    }
    io::Error::other(error)
}
