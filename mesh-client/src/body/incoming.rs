//! What an endpoint answers, over either version of HTTP.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Outgoing;
use super::outgoing::RequestBodyError;
use crate::connect::{Http1Download, Http1Error, Http2Download};
use crate::error::Source;

/// The body of an endpoint's answer.
pub(crate) enum Incoming {
    Http1(Http1Download),
    Http2(Http2Download),
    /// HTTP/1.1, of a request that might have changed the protocol.
    Hyper(hyper::body::Incoming),
}

impl Incoming {
    /// Whether it comes over a connection of HTTP/1.1, and one thread does all on its runtime.
    pub(crate) fn is_of_one_thread(&self) -> bool {
        matches!(self, Self::Http1(body) if body.is_of_one_thread())
    }

    /// Leaves to its connection what held the headers of its request, for those of the next answer.
    pub(crate) fn leave_room(&mut self, headers: HeaderMap) {
        if let Self::Http1(body) = self {
            body.leave_room(headers);
        }
    }
}

/// A request without an answer.
pub(crate) struct Unanswered {
    pub(crate) error: Broken,
    /// Some of it may have gone out.
    pub(crate) sent: bool,
    /// The request, if it was given away and nothing of it went out.
    pub(crate) back: Option<Box<Request<Outgoing>>>,
}

impl Unanswered {
    /// Some of it may have gone out.
    pub(crate) fn sent(error: Broken) -> Self {
        Self { error, sent: true, back: None }
    }

    /// Nothing of it went out; whoever has its head still has it.
    pub(crate) fn unsent(error: impl Into<Broken>) -> Self {
        Self { error: error.into(), sent: false, back: None }
    }

    /// Whether nothing of it went out is whether it is given back.
    pub(crate) fn with(error: Broken, back: Option<Request<Outgoing>>) -> Self {
        Self { error, sent: back.is_none(), back: back.map(Box::new) }
    }
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Http2(h2::Error),
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// The request's body is not to be had.
    #[error("the request's body failed: {0}")]
    RequestBody(RequestBodyError),
    /// The bytes below HTTP stopped.
    #[error(transparent)]
    Io(io::Error),
    /// The peer answered no ping.
    #[error("the peer did not answer an HTTP/2 PING in time")]
    Silent,
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            return Self::Io(error.into_io().expect("it is one"));
        }
        Self::Http2(error)
    }
}

impl Broken {
    /// Who said so.
    pub(crate) fn error(&self) -> &(dyn StdError + 'static) {
        match self {
            Self::Http1(error) => error,
            Self::Http2(error) => error,
            Self::Hyper(error) => error,
            Self::RequestBody(error) => error,
            Self::Io(error) => error,
            Self::Silent => self,
        }
    }

    /// The same, to be shared.
    pub(crate) fn into_source(self) -> Source {
        match self {
            Self::Http1(error) => Arc::new(error),
            Self::Http2(error) => Arc::new(error),
            Self::Hyper(error) => Arc::new(error),
            Self::RequestBody(error) => Arc::new(error),
            Self::Io(error) => Arc::new(error),
            Self::Silent => Arc::new(self),
        }
    }

    /// The request that ended in this way could not be sent as it is: that says nothing of the endpoint.
    pub(crate) fn of_request(&self) -> Option<Source> {
        matches!(self, Self::Http1(Http1Error::Length)).then(|| Arc::new(Http1Error::Length) as Source)
    }

    /// What ended a stream; `silent`: whether that was done to its connection for a ping without an answer.
    pub(crate) fn of_stream(error: h2::Error, silent: &AtomicBool) -> Self {
        if error.is_io() && silent.load(Ordering::Relaxed) { Self::Silent } else { error.into() }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Broken::from),
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(Broken::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Hyper(body) => body.size_hint(),
        }
    }
}
