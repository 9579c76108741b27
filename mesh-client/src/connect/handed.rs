//! A connection whose bytes are the application's: a raw one, or one that may become something else than HTTP, which hyper has
//! and the application after it. Until it is closed it counts as open, and what its request held (its place in flight, at its
//! endpoint and among the limits) is held, as Envoy counts a WebSocket for a request under way.
//!
//! It is closed when the application drops it, or taken back when its endpoint is gone and its time is over: whether anybody
//! reads or writes then or not.
//!
//! Refuses to know what goes over it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::IoStream;
use super::pool::OpenGuard;
use super::worker::{self, Owned};

/// What is let go with the connection.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    what: Option<Box<dyn Send>>,
    // It is closed: there is nothing to keep it for.
    over: bool,
}

impl Held {
    pub(crate) fn keep(self, what: impl Send + 'static) {
        let what: Box<dyn Send> = Box::new(what);
        let mut kept = self.0.lock();
        let left = if kept.over { Some(what) } else { kept.what.replace(what) };
        drop(kept);
        // Without the lock: it is whatever it is.
        drop(left);
    }

    fn let_go(&self) {
        let what = {
            let mut kept = self.0.lock();
            kept.over = true;
            kept.what.take()
        };
        drop(what);
    }
}

/// The bytes below it.
pub(crate) struct Handed {
    bytes: Arc<Bytes>,
    // Takes it back. None without an endpoint.
    _ending: Option<Owned<()>>,
}

struct Bytes {
    // Nobody else has this lock before the end, when the stream is closed under who may never ask for it again.
    stream: Mutex<Stream>,
    held: Held,
}

enum Stream {
    Open(Open),
    Ended(Why),
}

struct Open {
    // First, so that the socket goes before its place.
    io: IoStream,
    // Reader and writer may be two tasks.
    waiting: [Option<Waker>; 2],
    open: Option<OpenGuard>,
}

/// Why a connection is closed that the application has.
#[derive(Clone)]
enum Why {
    /// Its endpoint is gone, and so is the time for what was under way.
    Gone(Arc<str>),
    /// No byte has gone over it for too long.
    Silent,
}

impl From<Why> for io::Error {
    fn from(why: Why) -> Self {
        match why {
            Why::Gone(who) => {
                let why = format!("{who} is gone, and so is the time for what was under way to it");
                Self::new(io::ErrorKind::ConnectionAborted, why)
            }
            Why::Silent => {
                const SILENT: &str = "no byte has gone over the connection for policy's idle timeout";
                Self::new(io::ErrorKind::TimedOut, SILENT)
            }
        }
    }
}

/// Which of the two waits.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// Who waits for bytes.
    Read,
    /// Who has some.
    Write,
}

impl Handed {
    /// `open` counts it, and knows its endpoint.
    pub(crate) fn new(io: IoStream, open: Option<OpenGuard>, held: Held) -> Self {
        let counts = open.as_ref().map(|open| open.counts().clone());
        let stream = Mutex::new(Stream::Open(Open { io, waiting: [None, None], open }));
        let bytes = Arc::new(Bytes { stream, held });
        let ending = counts.map(|counts| {
            let (line, bytes) = (counts.lines.handed(), Arc::downgrade(&bytes));
            worker::when_over(line, move |line| {
                let Some(bytes) = bytes.upgrade() else { return true };
                let who = counts.lines.ended(line);
                who.map(|who| bytes.end(Why::Gone(who))).is_some()
            })
        });
        Self { bytes, _ending: ending }
    }

    /// Closed here and not when it is dropped, for it was silent too long: the other side is to know. Gives what reading and
    /// writing say from now on.
    pub(crate) fn silent(&self) -> io::Error {
        self.bytes.end(Why::Silent).into()
    }

    /// Does one thing with the stream.
    ///
    /// # Errors
    /// That of it, or why it is closed.
    pub(crate) fn poll_io<T>(
        &self,
        way: Way,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut IoStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.bytes.stream.lock() {
            Stream::Open(Open { io, waiting, .. }) => {
                let polled = poll(Pin::new(io), cx);
                if polled.is_pending() {
                    match &mut waiting[way as usize] {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                }
                polled
            }
            Stream::Ended(why) => Poll::Ready(Err(why.clone().into())),
        }
    }
}

impl Bytes {
    /// From now on reading and writing fail, and nothing is held. The first reason counts, and is given.
    fn end(&self, why: Why) -> Why {
        let former = {
            let mut stream = self.stream.lock();
            if let Stream::Ended(why) = &*stream {
                return why.clone();
            }
            std::mem::replace(&mut *stream, Stream::Ended(why.clone()))
        };
        if let Stream::Open(Open { io, waiting, open }) = former {
            drop(io);
            drop(open);
            self.held.let_go();
            waiting.into_iter().flatten().for_each(Waker::wake);
        }
        why
    }
}

impl AsyncRead for Handed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_io(Way::Read, cx, |io, cx| io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Handed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(Way::Write, cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(Way::Write, cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &*self.bytes.stream.lock() {
            Stream::Open(open) => open.io.is_write_vectored(),
            Stream::Ended(_) => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_io(Way::Write, cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_io(Way::Write, cx, |io, cx| io.poll_shutdown(cx))
    }
}
