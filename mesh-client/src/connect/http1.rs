//! HTTP/1.1 without a task for each connection: whoever sends a request writes it and reads its answer, and an idle connection
//! is a stream and two small buffers.
//!
//! hyper's client hands each request over a channel to the task of its connection, and its answer back over another: a quarter
//! of what a small request costs on both ends together. What it knows of the protocol is here as well (`http1/head.rs`,
//! `http1/chunked.rs`, `http1/upload.rs`), on the parser that it uses.
//!
//! ```text
//! idle ─▶ Flight: writes, reads the head ─▶ Download: reads the body ─▶ idle again
//!                  └▶ (answered before all is sent) ─▶ Relay: a task does both
//! ```
//!
//! Refuses to know which connection a request goes over.

mod chunked;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod head;
mod relay;
#[cfg(test)]
mod tests;
mod upload;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, Method, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};

use self::chunked::{Chunked, Next};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::fuzzing::answer;
pub(crate) use self::head::RequestHead;
use self::head::{Framing, Head, Progress};
use self::relay::Relay;
use self::upload::Upload;
use super::IoStream;
use super::pool::OpenGuard;
use super::worker::{self, Line, Owned};
use crate::body::{Broken, Incoming, Outgoing, Unanswered};
pub(super) use mesh_core::http1::has;

/// Bytes that are read at once: at first, and at most where an answer fills them.
const READ: usize = 8 * 1024;
const MAX_READ: usize = 128 * 1024;
/// Bytes of a buffer that stays with an idle connection until it is looked at.
const MAX_KEPT: usize = 8 * 1024;
/// Headers for which it keeps room.
const MAX_ROOM: usize = 24;

/// What is no answer, or no request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The peer closed the connection.
    #[error("the connection was closed before the answer was complete")]
    Incomplete,
    /// The connection ended when something of the answer was there: the peer has looked at the request.
    #[error("the connection ended within the answer's head: {0}")]
    Cut(#[source] io::Error),
    /// What came is no head of an answer.
    #[error("the answer is not HTTP/1.1: {0}")]
    Head(httparse::Error),
    /// Its head is too large.
    #[error("the answer's head has more than {} KiB", head::MAX_HEAD / 1024)]
    TooLarge,
    /// Its head contradicts itself, or answers another request.
    #[error("the answer cannot be read: {0}")]
    Framing(&'static str),
    /// Its body is not in the chunks that its head announces.
    #[error("a chunk of the answer cannot be read: {0}")]
    Chunk(&'static str),
    /// The request contradicts itself.
    #[error("the request's content-length is not that of its body")]
    Length,
}

/// A connection.
pub(super) struct Wire {
    io: IoStream,
    read: BytesMut,
    /// To be read at once.
    room: usize,
    written: Vec<u8>,
    line: Arc<Line>,
    /// Whose clock tells when its time is over. Whoever reads may be on none, or on one without timers.
    runtime: Option<Handle>,
    /// Once its end is near, and when that is.
    ending: Option<(Instant, Owned<()>)>,
    /// Of the answer. None is in it while it is waited for, but room, which a request before has left.
    headers: HeaderMap,
    progress: Progress,
    body: Body,
    to_head: bool,
    /// Whether it may carry another request.
    keep_alive: bool,
    /// The buffer grew beyond what an idle connection keeps.
    grew: bool,
    // Last: it counts until it is closed.
    open: Option<OpenGuard>,
}

/// What is left of an answer's body.
enum Body {
    Length(u64),
    Chunked(Chunked),
    ToEnd,
    Ended,
}

/// A request that goes out, until the head of its answer.
pub(crate) struct Flight {
    wire: Option<Box<Wire>>,
    upload: Option<Box<Upload>>,
    // Why no more of it goes out. The answer may be there all the same.
    lost: Option<Broken>,
}

/// The body of an answer.
pub(crate) struct Download(Source);

enum Source {
    Wire(Box<Wire>),
    Relay(Box<Relay>),
    Gone,
}

impl Wire {
    /// A new connection. `open` counts it.
    pub(super) fn new(io: IoStream, line: Arc<Line>, open: Option<OpenGuard>) -> Box<Self> {
        Box::new(Self {
            io,
            read: BytesMut::new(),
            room: READ,
            written: Vec::new(),
            line,
            runtime: Handle::try_current().ok(),
            ending: None,
            headers: HeaderMap::new(),
            progress: Progress::default(),
            body: Body::Ended,
            to_head: false,
            keep_alive: true,
            grew: false,
            open,
        })
    }

    /// The stream, for who speaks over it in another way, what ends it, and what counts it.
    pub(super) fn into_parts(self) -> (IoStream, Arc<Line>, Option<OpenGuard>) {
        (self.io, self.line, self.open)
    }

    /// Whether nothing has happened to it while it was idle: neither its end, nor bytes that nobody asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        if !self.io.may_have_news() {
            return true;
        }
        let (io, mut byte) = (&mut self.io, [0]);
        // Whoever has used up his time here sees it all the same.
        let look = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        unconstrained(look).now_or_never().is_none()
    }

    /// Frees what the next request can make anew.
    pub(super) fn shrink(&mut self) {
        (self.read, self.written, self.headers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
    }

    /// Whether it can be used again, now that the answer has ended; prepares it for that.
    fn rests(&mut self) -> bool {
        let rests = self.keep_alive && matches!(self.body, Body::Ended) && self.read.is_empty();
        if self.room > READ || self.grew {
            (self.read, self.room, self.grew) = (BytesMut::new(), READ, false);
        }
        if self.written.capacity() > MAX_KEPT {
            self.written = Vec::new();
        }
        self.line.rest();
        rests
    }

    /// Reads what has come; `false`: the peer has closed.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        // The next answer is read to where the last one was, which caches have, if nobody keeps a part of that.
        let reads_anew = self.read.is_empty() && self.read.try_reclaim(self.room);
        if !reads_anew && self.read.capacity() - self.read.len() < self.room / 2 {
            // What is split off such a buffer later leaves a handle on all of it.
            self.grew |= self.read.len() > MAX_KEPT;
            self.read.reserve(self.room);
        }
        let free = self.read.capacity() - self.read.len();
        let polled = pin!(self.io.read_buf(&mut self.read)).poll(cx);
        match polled {
            Poll::Ready(Ok(read)) => {
                // A peer that is faster than who reads is never waited for.
                if self.line.is_told()
                    && let Poll::Ready(over) = self.poll_over(cx)
                {
                    return Poll::Ready(Err(over));
                }
                if read == free {
                    self.room = (self.room * 2).min(MAX_READ);
                }
                Poll::Ready(Ok(read > 0))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_over(cx).map(Err),
        }
    }

    /// Its endpoint is gone, and so is the time for what was under way.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        const OVER: &str = "the endpoint is gone, and the time for what was under way";
        loop {
            let until = ready!(self.line.poll_told(cx));
            if Instant::now() < until {
                // A task, for a timer of a runtime that has ended must not be polled.
                if self.ending.is_none()
                    && let Some(runtime) = &self.runtime
                {
                    self.ending = Some((until, worker::spawn(runtime, async move { sleep_until(until).await })));
                }
                let Some((ends, ending)) = &mut self.ending else { return Poll::Pending };
                let (ends, ended) = (*ends, ready!(Pin::new(ending).poll(cx)));
                // It must not be polled again.
                self.ending = None;
                if ended.is_err() {
                    // That runtime has ended: what there is left is to look at the clock when somebody reads.
                    self.runtime = None;
                    return Poll::Pending;
                }
                // Told since that it ends later, or not at all. The clock of who reads may be another.
                if ends < until {
                    continue;
                }
            }
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, OVER));
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Broken>> {
        loop {
            if let Some(head) = self.progress.head(&mut self.read, self.to_head, &mut self.headers)? {
                self.body = match head.framing {
                    Framing::Empty => Body::Ended,
                    Framing::Length(length) => Body::Length(length),
                    Framing::Chunked => Body::Chunked(Chunked::default()),
                    Framing::ToEnd => Body::ToEnd,
                };
                self.keep_alive &= head.keep_alive;
                return Poll::Ready(Ok(head));
            }
            if !ready!(self.poll_fill(cx)).map_err(Broken::Io)? {
                return Poll::Ready(Err(Error::Incomplete.into()));
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match &mut self.body {
                Body::Ended => return Poll::Ready(None),
                Body::Length(left) if !self.read.is_empty() => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.read.len());
                    *left -= now as u64;
                    if *left == 0 {
                        self.body = Body::Ended;
                    }
                    return data(self.read.split_to(now).freeze());
                }
                Body::ToEnd if !self.read.is_empty() => return data(self.read.split().freeze()),
                Body::Chunked(chunked) => match chunked.next(&mut self.read)? {
                    Some(Next::Data(bytes)) => {
                        if chunked.ends(&mut self.read) {
                            self.body = Body::Ended;
                        }
                        return data(bytes);
                    }
                    Some(Next::Trailers(trailers)) => {
                        self.body = Body::Ended;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    Some(Next::End) => {
                        self.body = Body::Ended;
                        return Poll::Ready(None);
                    }
                    None => {}
                },
                Body::Length(_) | Body::ToEnd => {}
            }
            if !ready!(self.poll_fill(cx)).map_err(Broken::Io)? {
                if let Body::ToEnd = self.body {
                    self.body = Body::Ended;
                    return Poll::Ready(None);
                }
                return Poll::Ready(Some(Err(Error::Incomplete.into())));
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.body {
            Body::Length(left) => SizeHint::with_exact(left),
            Body::Ended => SizeHint::with_exact(0),
            Body::Chunked(_) | Body::ToEnd => SizeHint::default(),
        }
    }
}

fn data(bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
    Poll::Ready(Some(Ok(Frame::data(bytes))))
}

/// Sends a request, as much of it as goes out at once. `is_quiet`: nothing had happened to the connection a moment ago.
///
/// # Errors
/// There will be no answer.
pub(super) fn begin(
    mut wire: Box<Wire>,
    is_quiet: bool,
    head: &RequestHead<'_>,
    body: Outgoing,
) -> Result<Flight, Unanswered> {
    // Where nobody knows what a write that failed has sent, a connection that has ended is not written to.
    if let IoStream::Custom(_) = wire.io
        && !(is_quiet || wire.is_quiet())
    {
        return Err(Unanswered::unsent(Error::Incomplete));
    }
    let Wire { io, written, .. } = &mut *wire;
    written.clear();
    let (sending, keep_alive) = head.write(&body, written).map_err(|error| Unanswered::sent(error.into()))?;
    let mut upload = Upload::new(body, sending);
    // Nobody waits yet: it is polled again where somebody does.
    let sent = upload.poll_send(io, written, &mut Context::from_waker(Waker::noop()));
    let (mut rest, mut lost) = (None, None);
    match sent {
        Poll::Ready(Ok(())) => {}
        // Boxed: most requests have gone out, and what waits is no larger for the others.
        Poll::Pending => rest = Some(Box::new(upload)),
        Poll::Ready(Err(error @ Broken::Io(_))) if !upload.begun => return Err(Unanswered::unsent(error)),
        Poll::Ready(Err(error @ Broken::Io(_))) => lost = Some(error),
        Poll::Ready(Err(error)) => return Err(Unanswered::sent(error)),
    }
    wire.to_head = *head.method == Method::HEAD;
    wire.keep_alive = keep_alive;
    wire.progress = Progress::default();
    Ok(Flight { wire: Some(wire), upload: rest, lost })
}

impl Flight {
    /// Sends the rest of the request, and waits for the head of the answer.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Incoming>, Broken>> {
        let Some(wire) = &mut self.wire else { return Poll::Ready(Err(Error::Incomplete.into())) };
        if let Some(upload) = &mut self.upload {
            match upload.poll_send(&mut wire.io, &mut wire.written, cx) {
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Pending => {}
                Poll::Ready(Err(error @ Broken::Io(_))) => {
                    // A peer that takes no more of it may have answered: what it says is worth more.
                    (self.upload, self.lost) = (None, Some(error));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        let head = match ready!(wire.poll_head(cx)) {
            Ok(head) => head,
            Err(Broken::Io(error)) if wire.progress.is_begun() => return Poll::Ready(Err(Error::Cut(error).into())),
            Err(Broken::Http1(Error::Incomplete)) if wire.progress.is_begun() => {
                return Poll::Ready(Err(Error::Cut(io::ErrorKind::UnexpectedEof.into()).into()));
            }
            Err(Broken::Http1(Error::Incomplete)) if self.lost.is_some() => {
                return Poll::Ready(Err(self.lost.take().unwrap_or(Broken::Http1(Error::Incomplete))));
            }
            Err(error) => return Poll::Ready(Err(error)),
        };
        let mut answer = Response::new(());
        (*answer.status_mut(), *answer.version_mut()) = (head.status, head.version);
        *answer.headers_mut() = std::mem::take(&mut wire.headers);
        if let Some(reason) = head.reason {
            answer.extensions_mut().insert(reason);
        }
        let (Some(mut wire), upload) = (self.wire.take(), self.upload.take()) else {
            return Poll::Ready(Err(Error::Incomplete.into()));
        };
        let source = match upload {
            None => {
                wire.keep_alive &= self.lost.is_none();
                Source::Wire(wire)
            }
            // It says all that there is to say: nobody waits for the rest of the request.
            Some(_) if matches!(wire.body, Body::Ended) => {
                wire.keep_alive = false;
                Source::Wire(wire)
            }
            Some(upload) => Source::Relay(Box::new(Relay::begin(wire, *upload))),
        };
        Poll::Ready(Ok(answer.map(|()| Incoming::Http1(Download(source)))))
    }
}

impl Download {
    /// Keeps what held the headers of its request for those of the next answer: one map after the other, and none is made.
    pub(crate) fn leave_room(&mut self, mut headers: HeaderMap) {
        if let Source::Wire(wire) = &mut self.0
            && headers.capacity().max(headers.len()) <= MAX_ROOM
        {
            headers.clear();
            wire.headers = headers;
        }
    }

    /// Whether one thread does all on the runtime of its connection, which is most likely that of who reads it.
    pub(crate) fn is_of_one_thread(&self) -> bool {
        let is_one = |runtime: &Handle| runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
        matches!(&self.0, Source::Wire(wire) if wire.runtime.as_ref().is_some_and(is_one))
    }

    /// The connection, if the answer has ended and it can be used again.
    pub(super) fn into_wire(self) -> Option<Box<Wire>> {
        let wire = match self.0 {
            Source::Wire(wire) => Some(wire),
            Source::Relay(relay) => relay.into_wire(),
            Source::Gone => None,
        };
        wire.and_then(|mut wire| wire.rests().then_some(wire))
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match &mut self.0 {
            Source::Wire(wire) => ready!(wire.poll_body(cx)),
            Source::Relay(relay) => ready!(relay.poll_frame(cx)),
            Source::Gone => None,
        };
        if let Some(Err(_)) = &frame {
            self.0 = Source::Gone;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Wire(wire) => matches!(wire.body, Body::Ended),
            Source::Relay(relay) => relay.is_over(),
            Source::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Wire(wire) => wire.size_hint(),
            Source::Relay(relay) => relay.size_hint(),
            Source::Gone => SizeHint::with_exact(0),
        }
    }
}
