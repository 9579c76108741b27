//! The client's limits as Tower layers around any HTTP service, for programs without destinations and policy from
//! elsewhere: a `hyper` client, a `tonic` channel, a server's own service.
//!
//! Refuses to know where requests go.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use mesh_core::context;
use mesh_core::error::BoxError;
use mesh_core::limit::{Count, RateLimit};
use mesh_core::policy::{AdaptiveConcurrency, AdmissionControl, InvalidPolicy, LocalRateLimit};
use mesh_core::retry::grpc_status;
use mesh_core::telemetry::Outcome;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::error::{Cause, Error};
use crate::outbound::filters::{Concurrency, Throttling, Ticket, pass_rate};

/// One limit around a service of HTTP requests, which fails what is beyond it at once. For several, give several
/// layers: the outermost is asked first.
///
/// All services that one layer (or a clone of it) makes share its state, so clones of a service are limited together.
/// A request counts until the body of its answer has ended or is dropped; whether it succeeded is in the head of the answer,
/// of gRPC in the trailers unless the head has its status. What is refused is a
/// [`mesh_client::Error`](crate::Error) with its statuses for HTTP and gRPC; errors of the service pass through.
///
/// ```
/// use std::convert::Infallible;
///
/// use http::{Request, Response};
/// use mesh_client::{Body, LimitLayer};
/// use tower::{Layer, Service, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new(Body::from("hello"))) });
/// // A circuit breaker: one request at a time.
/// let mut service = LimitLayer::requests(1).layer(backend);
///
/// let answer = service.ready().await?.call(Request::new(String::new())).await?;
/// let refused = service.ready().await?.call(Request::new(String::new())).await.unwrap_err();
/// let refused: &mesh_client::Error = refused.downcast_ref().expect("the limit refused it");
/// assert_eq!(refused.http_status(), 503);
///
/// // The answer has ended: there is room again.
/// drop(answer);
/// assert!(service.ready().await?.call(Request::new(String::new())).await.is_ok());
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct LimitLayer(Limit);

#[derive(Clone)]
enum Limit {
    Requests { in_flight: Arc<Count>, most: u32 },
    Rate(Arc<RateLimit>),
    Admission(Arc<Throttling>),
    Adaptive(Arc<Concurrency>),
}

impl LimitLayer {
    /// So many requests in flight (Envoy's circuit breaker `max_requests`, gRFC A32). More are refused as `MESH-1301`.
    pub fn requests(most: u32) -> Self {
        Self(Limit::Requests { in_flight: Arc::default(), most })
    }

    /// As many requests in flight as their latency bears (Envoy `adaptive_concurrency`). More are refused with the
    /// policy's status, 503 by default.
    pub fn adaptive(policy: &AdaptiveConcurrency) -> Self {
        Self(Limit::Adaptive(Arc::new(Concurrency::new(policy, Instant::now()))))
    }

    /// A share of requests is refused that grows as fewer of them succeed (Envoy `admission_control`).
    pub fn admission(policy: &AdmissionControl) -> Self {
        Self(Limit::Admission(Arc::new(Throttling::new(policy, Instant::now()))))
    }

    /// The same by the SRE book's rule; see [`ClientBuilder::throttling`](crate::ClientBuilder::throttling).
    pub fn throttling(k: f64, window: Duration) -> Self {
        Self(Limit::Admission(Arc::new(Throttling::sre(k, window, Instant::now()))))
    }

    /// So many requests in a time (Envoy `local_ratelimit`). More are refused with the policy's status, 429 by default.
    ///
    /// # Errors
    /// The policy limits nothing: it has no bucket, or is not enforced.
    pub fn rate(policy: &LocalRateLimit) -> Result<Self, InvalidPolicy> {
        let limit = RateLimit::new(policy, Instant::now());
        let limit = limit.ok_or_else(|| InvalidPolicy::new("token_bucket", "the policy limits nothing"))?;
        Ok(Self(Limit::Rate(Arc::new(limit))))
    }
}

impl fmt::Debug for LimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Limit::Requests { .. } => "LimitLayer::requests",
            Limit::Rate(_) => "LimitLayer::rate",
            Limit::Admission(_) => "LimitLayer::admission",
            Limit::Adaptive(_) => "LimitLayer::adaptive",
        })
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { limit: self.0.clone(), inner }
    }
}

/// A service within a [limit](LimitLayer).
#[derive(Clone)]
pub struct Limited<S> {
    limit: Limit,
    inner: S,
}

impl<S: fmt::Debug> fmt::Debug for Limited<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, RB> Service<Request<B>> for Limited<S>
where
    S: Service<Request<B>, Response = Response<RB>, Error: Into<BoxError>, Future: Send + 'static>,
    RB: Body,
{
    type Response = Response<LimitedBody<RB>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let place = match self.limit.pass(request.headers_mut()) {
            Ok(place) => place,
            Err(cause) => {
                let target = request.uri().authority().map_or("-", |authority| authority.as_str());
                let refused = Error::new(target, cause, 0);
                return Box::pin(async move { Err(refused.into()) });
            }
        };
        let to_head = request.method() == Method::HEAD;
        let answer = self.inner.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(answer) => Ok(held(answer, place, to_head)),
                Err(error) => {
                    place.end(&Outcome { code: 503, grpc_status: None, flags: "-", grpc: false });
                    Err(error.into())
                }
            }
        })
    }
}

impl Limit {
    fn pass(&self, headers: &mut HeaderMap) -> Result<Place, Cause> {
        let now = Instant::now();
        match self {
            Self::Requests { in_flight, most } => match in_flight.enter_below(*most) {
                true => Ok(Place::Counted(Counted(in_flight.clone()))),
                false => Err(Cause::Breaker { cluster: "-".into(), limit: "max_requests", allowed: *most }),
            },
            Self::Rate(limit) => pass_rate(limit, headers, now, || fastrand::u32(..1_000_000)).map(|()| Place::Nothing),
            Self::Admission(limit) => limit.pass(now, fastrand::u32(..1_000_000)).map(Place::Owed),
            Self::Adaptive(limit) => limit.pass(now, || fastrand::u64(..)).map(Place::Owed),
        }
    }
}

/// What a request holds of its limit.
enum Place {
    Nothing,
    Counted(#[allow(dead_code, reason = "held for its drop")] Counted),
    Owed(Ticket),
}

struct Counted(Arc<Count>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Place {
    fn head(&mut self, outcome: &Outcome) {
        if let Self::Owed(ticket) = self {
            ticket.head(outcome, Instant::now());
        }
    }

    fn end(self, outcome: &Outcome) {
        if let Self::Owed(ticket) = self {
            ticket.settle(outcome, Instant::now(), true);
        }
    }
}

/// An answer that holds its request's place, unless it is whole: a server of HTTP/1.1 never asks for a body of which it has
/// nothing to write.
fn held<B: Body>(answer: Response<B>, mut place: Place, to_head: bool) -> Response<LimitedBody<B>> {
    let (status, headers, body) = (answer.status(), answer.headers(), answer.body());
    let grpc = headers.get(CONTENT_TYPE).is_some_and(context::is_grpc);
    let grpc_status = grpc_status(headers).filter(|_| grpc);
    let outcome = Outcome { code: status.as_u16(), grpc_status, flags: "-", grpc };
    // After gRPC's there are trailers.
    let length = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    let left: Option<u64> = if grpc { None } else { body.size_hint().exact().or_else(length) };
    let bodiless = to_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let place = if body.is_end_stream() || left == Some(0) || bodiless && !grpc {
        place.end(&outcome);
        None
    } else {
        place.head(&outcome);
        Some(place)
    };
    answer.map(|body| LimitedBody { body, place, left, outcome })
}

pin_project! {
    /// The body of an answer, which counts against the limit until it has ended.
    pub struct LimitedBody<B> {
        #[pin]
        body: B,
        // None = its end is known.
        place: Option<Place>,
        // Bytes to come, if their number was told: after the last one a server of HTTP/1.1 asks for no more.
        left: Option<u64>,
        outcome: Outcome,
    }
}

impl<B> fmt::Debug for LimitedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedBody").field("ended", &self.place.is_none()).finish_non_exhaustive()
    }
}

impl<B: Body> Body for LimitedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let polled = this.body.as_mut().poll_frame(cx);
        let ended = match &polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => true,
            // A body that breaks off is given up, as one that is dropped.
            Poll::Ready(Some(Err(_))) => {
                drop(this.place.take());
                false
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                    this.outcome.grpc_status = Some(status).filter(|_| this.outcome.grpc);
                }
                if let (Some(left), Some(data)) = (this.left.as_mut(), frame.data_ref()) {
                    *left = left.saturating_sub(data.remaining() as u64);
                }
                frame.is_trailers() || this.body.is_end_stream() || *this.left == Some(0)
            }
        };
        if ended && let Some(place) = this.place.take() {
            place.end(this.outcome);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Who is told so asks no more.
        self.place.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
