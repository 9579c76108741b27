//! The body of a request as services receive it: hyper's, or an HTTP/2 stream's, with a limit on how long one that stalls is waited for.
//!
//! The limit counts while somebody waits for the body, from one frame to the next. It is not for streams that may well be
//! silent for long, gRPC's over HTTP/2 and what comes after CONNECT, once they were handed to the application.

use std::any::Any;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, Method, Request, Version, request};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use mesh_core::context;
use mesh_core::error::BoxError;

use crate::http2::Upload;
use crate::layer::read_trailers;

/// The body of a request as services behind [`Server::serve`](crate::Server::serve) receive it, and those that a loop of the
/// application's own hands it to ([`Server::request`](crate::Server::request)).
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    // How long a frame may take.
    idle: Option<Duration>,
    // To the application it may take longer.
    silent: bool,
    // Made when a frame is waited for the first time.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    // What was read before the application asks for it.
    ahead: Option<Box<Ahead>>,
    // Beside those that no caller may set.
    withheld: Option<Arc<[HeaderName]>>,
    // And those with an underscore in their name.
    underscores: bool,
}

/// The body of a request that may have trailers, where it can be reached: of this server's own acceptor.
pub(crate) fn with_trailers<B: Send + 'static>(request: &mut Request<B>) -> Option<&mut Body> {
    let body: &mut (dyn Any + Send) = request.body_mut();
    body.downcast_mut::<Body>().filter(|body| !http_body::Body::is_end_stream(*body))
}

/// What comes over the connection.
#[derive(Debug)]
pub(crate) enum Incoming {
    Hyper(hyper::body::Incoming),
    Http2(Upload),
    /// All of it is here; empty = there is none.
    Whole(Bytes),
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Hyper(body)
    }
}

impl From<Option<Upload>> for Incoming {
    fn from(body: Option<Upload>) -> Self {
        body.map_or(Self::Whole(Bytes::new()), Self::Http2)
    }
}

impl From<Bytes> for Incoming {
    fn from(body: Bytes) -> Self {
        Self::Whole(body)
    }
}

impl Incoming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Hyper(body) => {
                let frame = ready!(http_body::Body::poll_frame(Pin::new(body), cx));
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Http2(body) => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Whole(body) if body.is_empty() => Poll::Ready(None),
            Self::Whole(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
        }
    }

    /// Whether there was none from the first.
    fn is_none(&self) -> bool {
        match self {
            Self::Hyper(body) => http_body::Body::is_end_stream(body),
            Self::Http2(_) => false,
            Self::Whole(body) => body.is_empty(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => http_body::Body::is_end_stream(body),
            Self::Http2(body) => body.is_end_stream(),
            Self::Whole(body) => body.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => http_body::Body::size_hint(body),
            Self::Http2(body) => body.size_hint(),
            Self::Whole(body) => SizeHint::with_exact(body.len() as u64),
        }
    }
}

#[derive(Debug, Default)]
struct Ahead {
    // In one piece, however it came: each frame that is kept has its price, and may hold one byte.
    data: Bytes,
    trailers: Option<Frame<Bytes>>,
    // Nothing comes after them.
    ended: bool,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed, or the peer took the request back: as the HTTP library says it, hyper's own or, over HTTP/2, h2.
    #[error("{0}")]
    Connection(#[source] BoxError),
    /// Nothing came for so long ([`Config::body_idle_timeout`](crate::Config::body_idle_timeout)).
    #[error("nothing of the request's body came for {0:?}")]
    Stalled(Duration),
}

impl Body {
    /// Takes the body of a request.
    pub(crate) fn of<I: Into<Incoming>>(request: Request<I>, idle: Option<Duration>) -> Request<Self> {
        let (head, incoming) = request.into_parts();
        let body = Self::new(incoming.into(), &head, idle);
        Request::from_parts(head, body)
    }

    /// The same of a request that is being made of its parts.
    pub(crate) fn new(incoming: Incoming, head: &request::Parts, idle: Option<Duration>) -> Self {
        // A content type alone is only the caller's word: over HTTP/1.1 there is no gRPC.
        let grpc = || head.version == Version::HTTP_2 && crate::layer::is_grpc(&head.headers);
        Self::with(incoming, idle, |idle| idle.is_none() || head.method == Method::CONNECT || grpc())
    }

    /// One that is here, of HTTP/1.1.
    pub(crate) fn whole(data: Bytes, idle: Option<Duration>) -> Self {
        Self::with(Incoming::Whole(data), idle, |idle| idle.is_none())
    }

    fn with(incoming: Incoming, idle: Option<Duration>, silent: impl FnOnce(Option<Duration>) -> bool) -> Self {
        // Most requests have no body.
        let idle = idle.filter(|_| !incoming.is_none());
        let (silent, timer, waiting, ahead) = (silent(idle), None, false, None);
        Self { incoming, idle, silent, timer, waiting, ahead, withheld: None, underscores: false }
    }

    /// Has headers that filters write kept out of the trailers.
    pub(crate) fn withhold(&mut self, names: Arc<[HeaderName]>) {
        self.withheld = Some(match self.withheld.take() {
            Some(before) => before.iter().chain(&*names).cloned().collect(),
            None => names,
        });
    }

    /// The same of all that have an underscore in their name.
    pub(crate) fn withhold_underscores(&mut self) {
        self.underscores = true;
    }

    /// Reads up to `most` bytes and leaves them where they are: those, and whether there is more. No body may be silent
    /// meanwhile, whatever it is: nobody has let its sender in.
    ///
    /// # Errors
    /// The body ends before its end.
    pub(crate) async fn look_ahead(&mut self, most: usize) -> Result<(Bytes, bool), BodyError> {
        let mut ahead = self.ahead.take().unwrap_or_default();
        let silent = std::mem::replace(&mut self.silent, false);
        if ahead.data.len() <= most && !ahead.ended {
            let mut data = BytesMut::from(&ahead.data[..]);
            while data.len() <= most && !ahead.ended {
                match poll_fn(|cx| self.poll_incoming(cx)).await.transpose()?.map(Frame::into_data) {
                    Some(Ok(more)) => data.extend_from_slice(&more),
                    Some(Err(trailers)) => ahead.trailers = Some(trailers),
                    None => ahead.ended = true,
                }
            }
            ahead.data = data.freeze();
        }
        self.silent = silent;
        let read = ahead.data.len();
        let told = ahead.data.slice(..read.min(most));
        self.ahead = Some(ahead);
        Ok((told, read > most))
    }

    /// What was read ahead, then what comes.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(ahead) = &mut self.ahead {
            if !ahead.data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut ahead.data)))));
            }
            match ahead.trailers.take() {
                None if !ahead.ended => self.ahead = None,
                trailers => return Poll::Ready(trailers.map(Ok)),
            }
        }
        self.poll_incoming(cx)
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = self.incoming.poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Connection)));
        }
        let Some(idle) = self.idle.filter(|_| !self.silent) else { return Poll::Pending };
        let timer = match &mut self.timer {
            Some(timer) => {
                if !self.waiting {
                    timer.as_mut().reset(Instant::now() + idle);
                }
                timer
            }
            none => none.insert(Box::pin(sleep(idle))),
        };
        self.waiting = true;
        ready!(timer.as_mut().poll(cx));
        self.waiting = false;
        if let Some(context) = context::current() {
            context.stalled.set();
        }
        Poll::Ready(Some(Err(BodyError::Stalled(idle))))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut frame = ready!(this.poll_next(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            read_trailers(trailers, this.withheld.as_deref().unwrap_or_default(), this.underscores);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) if !ahead.data.is_empty() || ahead.trailers.is_some() => false,
            Some(ahead) if ahead.ended => true,
            _ => self.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let Some(ahead) = &self.ahead else { return rest };
        let read = ahead.data.len() as u64;
        if ahead.ended {
            return SizeHint::with_exact(read);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}
