//! One request over HTTP/2, from its head to the end of its answer. In a task of its own, where one thread does all as soon as it
//! waits for something: whoever takes its time holds up nobody else on the connection.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_service::Service;

use mesh_core::error::BoxError;

use super::Tunnel;
use crate::Body;
use crate::dates::Kept;

/// Pieces of an answer in a row, before others have their turn: it may have no end of empty ones.
const PIECES: usize = 1024;

const HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
];

pin_project! {
    /// A request that is being served. Dropped, its stream is reset unless all is sent.
    pub(super) struct Exchange<S, B>
    where
        S: Service<Request<Body>>,
    {
        reply: SendResponse<Bytes>,
        tunnel: Option<Box<Tunnel>>,
        dates: Arc<Kept>,
        // It asks for a head alone.
        head: bool,
        #[pin]
        step: Step<S, S::Future, B>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<S, F, B> {
        Asking { service: S, request: Option<Request<Body>> },
        Serving { #[pin] answer: F },
        Sending { #[pin] download: Download<B> },
    }
}

impl<S, B> Exchange<S, B>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    pub(super) fn new(
        request: Request<Body>,
        service: S,
        reply: SendResponse<Bytes>,
        tunnel: Option<Box<Tunnel>>,
        dates: Arc<Kept>,
    ) -> Self {
        let head = request.method() == Method::HEAD;
        Self { reply, tunnel, dates, head, step: Step::Asking { service, request: Some(request) } }
    }
}

impl<S, B> Future for Exchange<S, B>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let StepProjection::Asking { service, request } = this.step.as_mut().project() {
            match service.poll_ready(cx) {
                // Once the peer wants no answer any more, or is gone, it is over.
                Poll::Pending => return this.reply.poll_reset(cx).map(drop),
                Poll::Ready(Err(error)) => return fail(this.reply, error.into()),
                Poll::Ready(Ok(())) => {
                    let answer = service.call(request.take().expect("it is called once"));
                    this.step.set(Step::Serving { answer });
                }
            }
        }
        if let StepProjection::Serving { answer } = this.step.as_mut().project() {
            match answer.poll(cx) {
                Poll::Pending => return this.reply.poll_reset(cx).map(drop),
                Poll::Ready(Err(error)) => return fail(this.reply, error.into()),
                Poll::Ready(Ok(answer)) => {
                    match begin(this.reply, answer, this.dates, *this.head, this.tunnel.take()) {
                        Some(download) => this.step.set(Step::Sending { download }),
                        None => return Poll::Ready(()),
                    }
                }
            }
        }
        match this.step.project() {
            StepProjection::Sending { download } => download.poll(cx),
            _ => unreachable!("it is served, and its answer has begun"),
        }
    }
}

fn fail(reply: &mut SendResponse<Bytes>, error: BoxError) -> Poll<()> {
    tracing::debug!(%error, "a request failed without an answer");
    reply.send_reset(reason(&*error));
    Poll::Ready(())
}

/// Why a stream is reset whose answer failed: for what another stream was that it depended on, if it did, and if that says of
/// this one that it failed, and not before anybody looked at it.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return match reason {
                Reason::NO_ERROR | Reason::REFUSED_STREAM => Reason::INTERNAL_ERROR,
                other => other,
            };
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

/// Sends the head of an answer. What is left of it is returned.
fn begin<B: http_body::Body<Data = Bytes>>(
    reply: &mut SendResponse<Bytes>,
    answer: Response<B>,
    dates: &Kept,
    head_alone: bool,
    tunnel: Option<Box<Tunnel>>,
) -> Option<Download<B>> {
    let (mut head, body) = answer.into_parts();
    strip(&mut head.headers);
    if !head.headers.contains_key(DATE)
        && let Some(date) = dates.now()
    {
        head.headers.insert(DATE, date);
    }
    let tunnel = tunnel.filter(|_| head.status.is_success());
    let mut empty = false;
    if tunnel.is_some() {
        // There is none (RFC 9110, section 9.3.6).
        head.headers.remove(CONTENT_LENGTH);
    } else if body.is_end_stream() || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        empty = true;
        if head.status == StatusCode::NO_CONTENT {
            // Nor has it a length (RFC 9110, section 8.6).
            head.headers.remove(CONTENT_LENGTH);
        }
    } else {
        empty = head_alone;
        if let Some(length) = body.size_hint().exact() {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
    }
    match (reply.send_response(Response::from_parts(head, ()), empty), tunnel) {
        (Ok(stream), Some(tunnel)) => {
            tunnel.open(stream);
            None
        }
        (Ok(stream), None) => (!empty).then_some(Download { body, stream, waiting: None }),
        (Err(error), _) => {
            tracing::debug!(%error, "the head of an answer cannot be sent");
            reply.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// Takes out what HTTP/2 does not have (RFC 9113, section 8.2.2).
fn strip(headers: &mut HeaderMap) {
    // Nearly always there is none: one look at all of them instead of one for each.
    if !headers.keys().any(|name| *name == CONNECTION || HOP_BY_HOP.contains(name)) {
        return;
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let listed: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    for name in listed.iter().flat_map(|value| value.to_str().unwrap_or_default().split(',')) {
        headers.remove(name.trim());
    }
}

pin_project! {
    /// What is left to send of an answer.
    struct Download<B> {
        #[pin]
        body: B,
        stream: SendStream<Bytes>,
        // What the peer has no room for yet, and whether it is the last.
        waiting: Option<(Bytes, bool)>,
    }
}

impl<B: http_body::Body<Data = Bytes, Error: Into<BoxError>>> Download<B> {
    fn poll_send(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let mut this = self.project();
        for _ in 0..PIECES {
            if let Some((data, last)) = this.waiting.take() {
                while this.stream.capacity() == 0 {
                    match this.stream.poll_capacity(cx) {
                        Poll::Ready(Some(capacity)) => capacity?,
                        // It is no longer one to send on.
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => {
                            *this.waiting = Some((data, last));
                            return Poll::Pending;
                        }
                    };
                }
                this.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.stream.send_reset(reason(&*error.into()));
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(this.stream.send_data(Bytes::new(), true)),
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = this.body.is_end_stream();
                    if data.is_empty() && !last {
                        // Says nothing, and however many there are, the peer need not have room for them.
                        continue;
                    }
                    if data.is_empty() {
                        return Poll::Ready(this.stream.send_data(data, true));
                    }
                    // One byte, and the rest as it is there: room that is reserved is taken from other streams, which may
                    // need it more. However little it is, it is not given away before: what waits for a peer that gives no
                    // room is in flight, and counted.
                    this.stream.reserve_capacity(1);
                    *this.waiting = Some((data, last));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(this.stream.send_trailers(trailers));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.as_mut().poll_send(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "an answer breaks off");
                Poll::Ready(())
            }
            // Whatever it waits for: once the peer wants no more of it, or is gone, it is over.
            Poll::Pending => self.project().stream.poll_reset(cx).map(drop),
        }
    }
}
