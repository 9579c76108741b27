//! HTTP/2 connections of the own acceptor, on the library that hyper's own HTTP/2 is made of.
//!
//! hyper asks the connection's lock, and the clock, several times for each request and each piece of an answer, as it does not
//! know how long one will be waited for, and keeps room for bodies of any kind. Here one is asked once.
//!
//! ```text
//! connection: frames → a head → a task of its own: the service → the answer's head, its body, its trailers
//!                            └▶ (one thread does all) as far as it comes at once, and a task for the rest
//! ```
//!
//! Refuses to know policy, and what bytes are read from.

mod ear;
mod exchange;
mod keepalive;
mod tunnel;
mod upload;

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response};
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Handle, RuntimeFlavor};
use tower_service::Service;

use mesh_core::context;
use mesh_core::error::BoxError;

use self::ear::Ear;
use self::exchange::Exchange;
use self::keepalive::{KeepAlive, Silent};
use self::tunnel::Tunnel;
pub(crate) use self::upload::Upload;
use crate::config::MOST_HEADER_BYTES;
use crate::dates::{Dates, Kept};
use crate::{Body, Config};

/// How connections of a server are.
#[derive(Clone)]
pub(crate) struct Http2 {
    builder: server::Builder,
    interval: Duration,
    timeout: Duration,
    body_idle: Option<Duration>,
    dates: Arc<Dates>,
}

impl Http2 {
    pub(crate) fn new(config: &Config, dates: Arc<Dates>) -> Self {
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(config.max_concurrent_streams)
            .max_header_list_size(config.max_header_bytes.min(MOST_HEADER_BYTES))
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .data_frame_budget(small_frames(config))
            .max_frame_size(16 * 1024)
            .header_table_size(4096)
            .max_send_buffer_size(config.max_buffer)
            .max_pending_accept_reset_streams(config.max_pending_resets)
            .max_local_error_reset_streams(Some(config.max_local_resets))
            // WebSockets over HTTP/2 (RFC 8441).
            .enable_connect_protocol();
        Self {
            builder,
            interval: config.keep_alive_interval,
            timeout: config.keep_alive_timeout,
            body_idle: config.body_idle_timeout,
            dates,
        }
    }

    /// Serves a connection with as many `streams` at once.
    pub(crate) fn serve<T, S>(&self, io: T, streams: u32, service: S) -> Http2Connection<T, S>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (io, heard) = Ear::new(io);
        let handshake = self.builder.clone().max_concurrent_streams(streams).handshake(io);
        let (dates, body_idle) = (Arc::new(Kept::new(self.dates.clone())), self.body_idle);
        let keepalive = KeepAlive::new(heard, self.interval, self.timeout);
        let (state, leaving, waiting) = (State::Opening(handshake), false, VecDeque::new());
        Http2Connection { state, keepalive, leaving, at_once: false, service, waiting, streams, body_idle, dates }
    }
}

/// Requests that are begun in a row, before those have their turn and what they answer goes out: the peer of many at once then
/// works on the first answers while the others are made, and does not wait for the last one.
const IN_A_ROW: usize = 8;

/// Of those as many are served within the connection's own turn, where one thread does all. The others have tasks: so who else
/// waits for the thread is held up less, and with sixteen calls in flight both ends do more than if all were served in it, for the
/// peer works meanwhile.
const AT_ONCE: usize = 4;

/// A request that has come, and its answer's place.
type Taken = (Request<RecvStream>, SendResponse<Bytes>);

/// What DATA frames of less than 256 bytes that nobody has read may cost beside their bytes: of memory that no window
/// bounds. h2 would take half of the connection's window, by which one that lets sixteen handlers be slow would let a peer
/// waste as much.
fn small_frames(config: &Config) -> usize {
    (config.connection_window as usize / 32).max(25_600)
}

/// A connection of HTTP/2 that is being served ([`Server::serve_http2`](crate::Server::serve_http2)): a future that ends with
/// it, and is to be polled, or nothing goes over it. Dropped, the connection is closed, and its requests are given up.
pub struct Http2Connection<T, S> {
    state: State<T>,
    keepalive: KeepAlive,
    // It is to leave, and has not said so yet.
    leaving: bool,
    // One thread does all: a request is served as far as it comes before there is a task for it. Where there are several, tasks
    // go where there is time, and none holds up the connection.
    at_once: bool,
    service: S,
    // To be begun. Taken all the same: of requests that nobody has taken h2 lets a peer give up but a few.
    waiting: VecDeque<Taken>,
    // As many wait at most: who gives them up may send others at once.
    streams: u32,
    body_idle: Option<Duration>,
    dates: Arc<Kept>,
}

#[allow(clippy::large_enum_variant, reason = "there is one a connection, and no copy is made of it")]
enum State<T> {
    Opening(Handshake<Ear<T>, Bytes>),
    Open(server::Connection<Ear<T>, Bytes>),
}

// The service is called by clones of it, which are pinned elsewhere.
impl<T, S> Unpin for Http2Connection<T, S> {}

impl<T: AsyncRead + AsyncWrite + Unpin, S> Http2Connection<T, S> {
    /// Says that it takes no further requests (GOAWAY in two steps). Those that have come by the time the peer hears of it are
    /// served, and the connection ends with the last of them.
    pub fn leave(&mut self) {
        match &mut self.state {
            State::Opening(_) => self.leaving = true,
            State::Open(connection) => connection.graceful_shutdown(),
        }
    }
}

impl<T, S, RB> Http2Connection<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Body>, Response = Response<RB>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    RB: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    /// Serves a request in a task of its own, or has it wait in `begun` until all that has come with it is read.
    fn begin(&self, (request, mut reply): Taken, begun: &mut Begun<S, RB>) {
        let (mut head, stream) = request.into_parts();
        if let Some(protocol) = head.extensions.remove::<h2::ext::Protocol>() {
            head.extensions.insert(Protocol::from(protocol.as_str()));
        }
        let (upload, tunnel) = if head.method != Method::CONNECT {
            (Upload::new(stream, &head.headers), None)
        } else if upload::length(&head.headers).is_some_and(|length| length > 0) {
            // It has no body (RFC 9110, section 9.3.6).
            reply.send_reset(Reason::INTERNAL_ERROR);
            return;
        } else {
            let (tunnel, upgrade) = Tunnel::dig(stream);
            if let Some(upgrade) = upgrade {
                head.extensions.insert(upgrade);
            }
            (None, Some(Box::new(tunnel)))
        };
        let body = Body::new(upload.into(), &head, self.body_idle);
        let request = Request::from_parts(head, body);
        let exchange = Exchange::new(request, self.service.clone(), reply, tunnel, self.dates.clone());
        match self.at_once && begun.len() < AT_ONCE {
            true => begun.push(Box::pin(exchange)),
            false => TokioExecutor::new().execute(exchange),
        }
    }

    /// Reads and writes as much as can be.
    fn turn(&mut self, begun: &mut Begun<S, RB>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.keepalive.turn();
        let mut left = IN_A_ROW;
        while left > 0
            && let Some(mut taken) = self.waiting.pop_front()
        {
            // Nobody waits for one that was given up.
            if taken.1.poll_reset(cx).is_pending() {
                left -= 1;
                self.begin(taken, begun);
            }
        }
        loop {
            match &mut self.state {
                State::Opening(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    self.keepalive.begin(&mut connection);
                    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
                    self.at_once = matches!(flavor, Ok(RuntimeFlavor::CurrentThread));
                    if self.leaving {
                        connection.graceful_shutdown();
                    }
                    self.state = State::Open(connection);
                }
                State::Open(connection) => {
                    if self.keepalive.is_over(cx) {
                        // Its streams end with this, too, and they are not whole.
                        connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                        // As much of it as the socket takes at once: nobody may be there to read it.
                        let _ = connection.poll_closed(cx);
                        return Poll::Ready(Err(Silent.into()));
                    }
                    let taken = match self.waiting.len() < self.streams as usize {
                        true => connection.poll_accept(cx),
                        false => connection.poll_closed(cx).map(|closed| closed.err().map(Err)),
                    };
                    self.keepalive.hear();
                    match taken {
                        Poll::Ready(Some(taken)) if left > 0 => {
                            left -= 1;
                            self.begin(taken?, begun);
                        }
                        Poll::Ready(Some(taken)) => self.waiting.push_back(taken?),
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending if begun.is_empty() => break,
                        // What they answer goes out in this turn.
                        Poll::Pending => begun.drain(..).for_each(|exchange| advance(exchange, cx)),
                    }
                }
            }
        }
        match self.waiting.is_empty() {
            // There may be none so soon.
            true => self.waiting = VecDeque::new(),
            false => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}

/// Requests that are to be served as far as they come.
type Begun<S, RB> = SmallVec<[Pin<Box<Exchange<S, RB>>>; AT_ONCE]>;

/// Serves a request as far as it comes; what is left of it goes on in a task of its own. As there, a panic ends it and nothing
/// else, and it is within the context of no request, whoever polls the connection.
fn advance<F: Future<Output = ()> + Send + 'static>(mut exchange: Pin<Box<F>>, cx: &mut Context<'_>) {
    context::enter(&mut None, || {
        let over = match catch_unwind(AssertUnwindSafe(|| exchange.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return TokioExecutor::new().execute(exchange),
            over => over,
        };
        // What it held, and what it panicked with, may panic as well. With what, nobody looks at.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop((exchange, over)))) {
            mem::forget(again);
        }
    });
}

impl<T, S, RB> Future for Http2Connection<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Body>, Response = Response<RB>, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    RB: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (this, mut begun) = (self.get_mut(), Begun::new());
        let turned = this.turn(&mut begun, cx);
        // A connection that ends in the same turn ends none of them unserved.
        begun.drain(..).for_each(|exchange| advance(exchange, cx));
        turned
    }
}
