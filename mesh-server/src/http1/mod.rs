//! HTTP/1.1 connections of the own acceptor: requests as nearly all are, read and answered here; a connection on which anything
//! else comes is hyper's from there on.
//!
//! hyper's connection is made for every kind of message in both directions at once, and pays for that with each request. Here one
//! is looked for whose head and body are there when they are read, with a length that is said once and as a number. What is not
//! whole by then, in chunks, an upgrade, an expectation, of HTTP/1.0 or no request at all goes to hyper as it came, so that there is
//! one answer to it and not two.
//!
//! ```text
//! resting ─▶ a request ─▶ calling the service ─▶ sending its answer ─▶ resting again
//!        └▶ anything else ─▶ hyper, to the connection's end
//! ```
//!
//! Refuses to know policy, and how long a connection may stay.

mod answer;
mod calls;
mod request;
mod silence;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use mesh_core::error::BoxError;
use mesh_core::http1::{Sending, Transfer};

use self::answer::Asked;
use self::calls::{Called, Calls};
use self::request::{Found, Said};
use self::silence::Silence;
use crate::config::MOST_HEADER_BYTES;
use crate::dates::Dates;
use crate::listen::Rewound;
use crate::{Body, Config};

/// Bytes that are read at once; a request that is longer goes to hyper.
const READ: usize = 8 * 1024;
/// Bytes of a buffer for answers that stays with a connection.
const MAX_KEPT: usize = 8 * 1024;
/// Headers for which a connection keeps room.
const MAX_ROOM: usize = 24;
/// Requests, and reads for one, before others have their turn: what ends the connection is one of them.
const ROUNDS: usize = 16;
/// Empty lines before a request. There is no reason for any; who sends some is understood (RFC 9112, section 2.2).
const MAX_EMPTY: usize = 100;

/// How connections of a server are.
#[derive(Clone)]
pub(crate) struct Http1 {
    builder: Builder,
    max_head: usize,
    max_headers: usize,
    head_limit: Duration,
    idle: Duration,
    body_idle: Option<Duration>,
    dates: Arc<Dates>,
}

impl Http1 {
    /// `builder` = what hyper goes by.
    pub(crate) fn new(config: &Config, builder: Builder, dates: Arc<Dates>) -> Self {
        Self {
            builder,
            max_head: config.max_header_bytes.min(MOST_HEADER_BYTES) as usize,
            max_headers: config.max_headers,
            head_limit: config.header_read_timeout,
            idle: config.idle_timeout,
            body_idle: config.body_idle_timeout,
            dates,
        }
    }

    /// Serves a connection. `begun` = when its first byte came, if it has.
    pub(crate) fn serve<T, S, B>(&self, io: T, begun: Option<Instant>, service: S) -> Http1Connection<T, S, B>
    where
        S: Service<Request<Body>>,
    {
        let wire = Wire {
            how: self.clone(),
            io,
            read: BytesMut::new(),
            written: Vec::new(),
            headers: HeaderMap::new(),
            keep_alive: true,
            trailers: false,
            begun,
            empty: 0,
            silent: None,
            silence: None,
        };
        Http1Connection { wire: Some(wire), service: Some(service), step: Step::Resting, to_head: false }
    }
}

pin_project! {
    /// A connection of HTTP/1.1 that is being served ([`Server::serve_http1`](crate::Server::serve_http1)): a future that ends
    /// with it, and is to be polled, or nothing goes over it. Dropped, the connection is closed, and its request is given up.
    pub struct Http1Connection<T, S, B>
    where
        S: Service<Request<Body>>,
    {
        // Until it is hyper's.
        wire: Option<Wire<T>>,
        service: Option<S>,
        // The request that is served asks for a head alone.
        to_head: bool,
        #[pin]
        step: Step<S, S::Future, B>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<S, F, B> {
        Resting,
        Calling { #[pin] called: Called<S, F> },
        Sending { #[pin] body: Option<B>, transfer: Transfer },
        Closing,
        Handed { connection: Pin<Box<dyn Rest>> },
    }
}

/// A connection that is hyper's.
trait Rest: Future<Output = hyper::Result<()>> + Send {
    fn leave(self: Pin<&mut Self>);
}

impl<T, S, B> Rest for UpgradeableConnection<TokioIo<Rewound<T>>, Calls<S>>
where
    Self: Future<Output = hyper::Result<()>> + Send,
    Calls<S>: hyper::service::HttpService<Incoming, ResBody = B, Error: Into<BoxError>>,
    B: http_body::Body<Error: Into<BoxError>> + 'static,
    T: AsyncRead + AsyncWrite + Unpin,
{
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// What there is of a connection beside the request that is served.
struct Wire<T> {
    how: Http1,
    io: T,
    read: BytesMut,
    written: Vec<u8>,
    /// None, but room that those of an answer before have left.
    headers: HeaderMap,
    /// Whether it may carry another request.
    keep_alive: bool,
    /// Whether who asks takes trailers.
    trailers: bool,
    /// When the first byte came, until a request is read or nothing is.
    begun: Option<Instant>,
    /// Empty lines that have come since the last request.
    empty: usize,
    /// Since when nothing has come that is waited for.
    silent: Option<Instant>,
    silence: Option<Pin<Box<Sleep>>>,
}

/// What comes next over a connection.
enum Next {
    /// There is one.
    Request,
    /// What is hyper's.
    Other,
    End,
}

impl<T, S, B> Http1Connection<T, S, B>
where
    S: Service<Request<Body>>,
{
    /// Takes no further request: it ends with the answer to the one that is served, which says so unless its head has gone out, or
    /// at once. One that is on its way is lost: where the answers of a while before have said `connection: close` there is none.
    pub fn leave(self: Pin<&mut Self>) {
        let this = self.project();
        if let Some(wire) = this.wire {
            wire.keep_alive = false;
        }
        if let StepProjection::Handed { connection } = this.step.project() {
            connection.as_mut().leave();
        }
    }
}

impl<T, S, B> Future for Http1Connection<T, S, B>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        for _ in 0..ROUNDS {
            if let StepProjection::Handed { connection } = this.step.as_mut().project() {
                return connection.as_mut().poll(cx).map_err(Into::into);
            }
            let wire = this.wire.as_mut().expect("it is there until it is handed on");
            if let StepProjection::Resting = this.step.as_mut().project() {
                let mut request = None;
                match ready!(wire.poll_next(&mut request, cx))? {
                    Next::Request => {
                        *this.to_head = request.as_ref().is_some_and(|request| *request.method() == Method::HEAD);
                        let service = this.service.clone().expect("it is there until the connection is handed on");
                        let called = Called::of(service, &mut request);
                        this.step.set(Step::Calling { called });
                    }
                    Next::Other => {
                        let (wire, service) = (this.wire.take(), this.service.take());
                        let (wire, service) = wire.zip(service).expect("they are there until now");
                        this.step.set(Step::Handed { connection: wire.hand_on(service) });
                        continue;
                    }
                    Next::End => this.step.set(Step::Closing),
                }
            }
            if let StepProjection::Calling { called } = this.step.as_mut().project() {
                match called.poll(cx)? {
                    Poll::Pending => return wire.poll_gone(cx).map(Err),
                    Poll::Ready(answer) => {
                        let sending = wire.begin(answer, *this.to_head);
                        this.step.set(sending);
                    }
                }
            }
            if let StepProjection::Sending { body, transfer } = this.step.as_mut().project() {
                match transfer.poll_send(body, &mut wire.io, &mut wire.written, cx) {
                    Poll::Pending => {
                        wire.silent = None;
                        return wire.poll_gone(cx).map(Err);
                    }
                    Poll::Ready(sent) => sent.map_err(answer::broken)?,
                }
                wire.rest();
                this.step.set(if wire.keep_alive { Step::Resting } else { Step::Closing });
            }
            if let StepProjection::Closing = this.step.as_mut().project() {
                return Pin::new(&mut wire.io).poll_shutdown(cx).map_err(Into::into);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// Waits for the next `request`.
    fn poll_next(&mut self, request: &mut Option<Request<Body>>, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        for _ in 0..ROUNDS {
            if !self.keep_alive {
                return Poll::Ready(Ok(Next::End));
            }
            // Empty lines before a request are none, and no reason to wait longer.
            self.empty += request::skip_empty(&mut self.read);
            if self.empty > MAX_EMPTY {
                return Poll::Ready(Ok(Next::Other));
            }
            if !self.read.is_empty() {
                match request::find(&mut self.read, &self.how, &mut self.headers, request) {
                    Found::Whole(Said { keep_alive, trailers }) => {
                        (self.keep_alive, self.trailers) = (keep_alive, trailers);
                        (self.begun, self.empty, self.silent) = (None, 0, None);
                        return Poll::Ready(Ok(Next::Request));
                    }
                    Found::Part if self.read.len() < READ => {}
                    Found::Part | Found::Other => return Poll::Ready(Ok(Next::Other)),
                }
            }
            match self.poll_read(READ / 2, cx) {
                Poll::Ready(Ok(0)) if self.read.is_empty() => return Poll::Ready(Ok(Next::End)),
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.read.is_empty() => return self.poll_silent(cx).map(|()| Ok(Next::End)),
                // A part of a request, and more is to be waited for, or is not to come.
                Poll::Ready(Ok(_)) | Poll::Pending => return Poll::Ready(Ok(Next::Other)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads, with room for so much at least.
    fn poll_read(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The next request is read to where the last one was, which caches have, if nobody keeps a part of that.
        let reads_anew = self.read.is_empty() && self.read.try_reclaim(READ);
        if !reads_anew && self.read.capacity() - self.read.len() < room {
            self.read.reserve(READ);
        }
        pin!(self.io.read_buf(&mut self.read)).poll(cx)
    }

    /// Nothing has come for as long as it may.
    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.begun = None;
        let since = *self.silent.get_or_insert_with(Instant::now);
        // An end beyond all time is none.
        let Some(until) = since.checked_add(self.how.idle) else { return Poll::Pending };
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep_until(until)));
        // One that is begun stays: when it is due for a request that has come long since, it goes on to the one that is waited for.
        while silence.as_mut().poll(cx).is_ready() {
            if silence.deadline() >= until {
                return Poll::Ready(());
            }
            silence.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// The peer wants no answer any more: it has closed its half. Looked for until it sends something else; that the connection
    /// was cut is told by it for as long as it lasts.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        if !self.read.is_empty() {
            return match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(error.into()),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            };
        }
        // What is served holds slices of the buffer: new room would be new memory.
        match ready!(self.poll_read(1, cx)) {
            Ok(0) => Poll::Ready("the peer has gone away before its answer was complete".into()),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// Writes the head of an answer.
    fn begin<S, F, B: http_body::Body>(&mut self, answer: Response<B>, to_head: bool) -> Step<S, F, B> {
        let (mut head, body) = answer.into_parts();
        let now = Instant::now();
        let date = self.how.dates.at(now);
        // If it goes out at once, as what is there already does. One look at the clock does for both.
        self.silent = body.size_hint().exact().map(|_| now);
        let to = Asked { head: to_head, trailers: self.trailers };
        let written = answer::write(&head, &body, to, &mut self.keep_alive, date.as_ref(), &mut self.written);
        let (sending, body) = match written {
            Ok(sending) => (sending, Some(body)),
            Err(wrong) => {
                tracing::warn!(status = %head.status, "an answer of the application's cannot be sent, its caller gets 500: {wrong}");
                self.keep_alive = false;
                answer::fail(date.as_ref(), &mut self.written);
                (Sending::Length(0), None)
            }
        };
        if head.headers.capacity().max(head.headers.len()) <= MAX_ROOM {
            head.headers.clear();
            self.headers = head.headers;
        }
        Step::Sending { body, transfer: Transfer::new(sending) }
    }

    /// An answer has ended.
    fn rest(&mut self) {
        if self.written.capacity() > MAX_KEPT {
            self.written = Vec::new();
        }
    }

    /// Gives the connection to hyper, with what was read of it.
    fn hand_on<S, B>(self, service: S) -> Pin<Box<dyn Rest>>
    where
        T: Send + 'static,
        S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let begun = self.begun.unwrap_or_else(Instant::now);
        let io = TokioIo::new(Rewound::new(self.io, self.read, begun, self.how.head_limit));
        let calls = Calls { service, idle: self.how.body_idle };
        let mut builder = self.how.builder;
        builder.timer(Silence::default());
        Box::pin(builder.serve_connection(io, calls).with_upgrades())
    }
}
