//! Bodies: the answer's, which carries what must happen at its end, and the request's.
//!
//! Refuses to know how a request is routed.

mod incoming;
mod outgoing;

pub(crate) use self::incoming::{Broken, Incoming, Unanswered};
pub(crate) use self::outgoing::{AT_ONCE, Outgoing, Payload, Receipt};

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{Cause, Error};
use crate::grpc;
use crate::outbound::{Exchange, Silence};

/// The body of an answer. While it lasts, its request counts as in flight; its end (or its drop) gives
/// the connection back and counts the request.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    // Boxed: it is larger than the body and moved with every response.
    exchange: Option<Box<Exchange>>,
    deadline: Option<Deadline>,
    silence: Option<Box<Silence>>,
    // Failures become gRPC trailers instead of errors.
    rescue: bool,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
}

impl Body {
    /// A body without bytes.
    pub fn empty() -> Self {
        Self::default()
    }

    /// An answer's body; `exchange` ends with it.
    pub(crate) fn of(incoming: Incoming, mut exchange: Box<Exchange>) -> Self {
        if incoming.is_end_stream() {
            exchange.end(Some(incoming));
            return Self::empty();
        }
        let deadline = exchange.deadline().map(Deadline::at);
        let silence = exchange.idle().and_then(Silence::from_now).map(Box::new);
        Self { kind: Kind::Incoming(incoming), exchange: Some(exchange), deadline, silence, rescue: false }
    }

    /// Turns failures into gRPC trailers.
    pub(crate) fn rescued(mut self) -> Self {
        self.rescue = true;
        self
    }

    fn end(&mut self) {
        let kind = std::mem::take(&mut self.kind);
        self.deadline = None;
        if let Some(mut exchange) = self.exchange.take() {
            exchange.end(if let Kind::Incoming(incoming) = kind { Some(incoming) } else { None });
        }
    }

    fn fail(&mut self, failure: Failure) -> Option<Result<Frame<Bytes>, Error>> {
        self.kind = Kind::Empty;
        self.deadline = None;
        // Only answers from an endpoint fail, and those have an exchange.
        let error = self.exchange.take()?.fail(failure);
        Some(if self.rescue { Ok(Frame::trailers(grpc::trailers(&error))) } else { Err(error) })
    }
}

/// When an answer must have ended.
struct Deadline {
    at: Instant,
    // Of the request: whoever reads its answer may be on none, or on one without timers.
    runtime: Handle,
    // Made by who has to wait: most bodies are there with their head.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    fn at(at: Instant) -> Self {
        Self { at, runtime: Handle::current(), sleep: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { at, runtime, sleep } = self;
        let sleep = sleep.get_or_insert_with(|| {
            let _timers = runtime.enter();
            Box::pin(sleep_until(*at))
        });
        sleep.as_mut().poll(cx)
    }
}

/// Why an answer's body broke off.
pub(crate) enum Failure {
    /// The connection broke.
    Broken(Broken),
    /// Its time ran out.
    Late,
    /// Nothing moved for too long.
    Silent(Cause),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let incoming = match &mut this.kind {
            Kind::Empty => return Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Kind::Incoming(incoming) => incoming,
        };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let ended = incoming.is_end_stream() || frame.is_trailers();
                // Whoever reads slowly finds the next frame there, and the time over all the same. What is whole by now is
                // not thrown away.
                if !ended && this.deadline.as_ref().is_some_and(|deadline| deadline.at <= Instant::now()) {
                    return Poll::Ready(this.fail(Failure::Late));
                }
                if let Some(silence) = &mut this.silence {
                    silence.broken();
                }
                if let (Some(trailers), Some(exchange)) = (frame.trailers_ref(), &mut this.exchange) {
                    exchange.trailers(trailers);
                }
                if ended {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(this.fail(Failure::Broken(error))),
            Poll::Pending => {
                if this.deadline.as_mut().is_some_and(|deadline| deadline.poll(cx).is_ready()) {
                    return Poll::Ready(this.fail(Failure::Late));
                }
                let Some(silence) = &mut this.silence else { return Poll::Pending };
                let exchange = &this.exchange;
                match silence.poll(cx, || exchange.as_ref()?.sent()) {
                    Poll::Ready(cause) => Poll::Ready(this.fail(Failure::Silent(cause))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Incoming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(incoming) => incoming.size_hint(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let kind = if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) };
        Self { kind, ..Self::default() }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}
