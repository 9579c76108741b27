//! The inbound layer: everything that happens to a request between the connection and the
//! application, in this order.
//!
//! ```text
//! strip headers that only the mesh may set → settle path and authority, 400 or 431
//!   → open the request's context (trace, deadline, caller) → authorization, or 403
//!   → a place among the requests in flight, or 503
//!   → peer identity into the extensions → the application
//!   → metrics and access log when the response body ends
//! ```
//!
//! Refuses to know sockets: it works behind any acceptor.

mod body;
mod gate;
mod headers;
mod record;
mod target;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::context::{self, RequestContext, Scoped};
use mesh_core::drain::DrainWatch;
use mesh_core::error::{BoxError, Code};
use mesh_core::id::Workload;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::InboundState;
use mesh_core::source::{Watched, WatchedIdentity};
use mesh_core::target::EncodedSlash;
use mesh_core::telemetry::{Metrics, PeerLabels, Reporter, RequestLabels, RequestSeries};

use self::body::Content;
pub use self::body::InboundBody;
pub(crate) use self::gate::{Gate, demands_tokens};
pub(crate) use self::headers::grpc_status;
use self::record::Record;
use self::target::Unsettled;
use crate::load::{LoadReports, Question, Told};

/// Wraps a service with what the mesh does per request. [`Server`](crate::Server) adds it by itself;
/// alone it serves applications with an acceptor of their own:
/// [`Server::inbound_layer`](crate::Server::inbound_layer).
///
/// A request that comes through two of them is treated by the outer one only.
#[derive(Clone)]
pub struct InboundLayer {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

/// What all connections of a server have in common.
pub(crate) struct Shared {
    pub(crate) inbound: Watched<InboundState>,
    pub(crate) identity: WatchedIdentity,
    pub(crate) workload: Arc<Workload>,
    pub(crate) service_host: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: DrainWatch,
    // If callers are told.
    pub(crate) load: Option<Arc<LoadReports>>,
    pub(crate) gate: Gate,
    pub(crate) slash: EncodedSlash,
    pub(crate) max_headers: usize,
    /// One for each request that may be in flight, if that is limited.
    pub(crate) places: Option<Arc<Semaphore>>,
}

/// What all requests of a connection have in common.
struct Connection {
    peer: Option<PeerIdentity>,
    /// The TLS server name that the peer asked for, empty if it named none; `None` = not known.
    server_name: Option<Box<str>>,
    series: Arc<RequestSeries>,
}

impl InboundLayer {
    pub(crate) fn new(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let connection = Arc::new(shared.connection(None, None));
        Self { shared, connection }
    }

    /// The layer for the requests of one connection, whose peer is known. Resolves the connection's
    /// metrics: not for each request.
    #[must_use]
    pub fn for_peer(&self, peer: PeerIdentity) -> Self {
        self.for_connection(peer, None)
    }

    /// As [`for_peer`](Self::for_peer), with the TLS server name that the peer asked for.
    pub(crate) fn for_connection(&self, peer: PeerIdentity, server_name: Option<Box<str>>) -> Self {
        let connection = Arc::new(self.shared.connection(Some(peer), server_name));
        Self { shared: self.shared.clone(), connection }
    }
}

impl Shared {
    fn connection(&self, peer: Option<PeerIdentity>, server_name: Option<Box<str>>) -> Connection {
        let caller = peer.as_ref().and_then(|peer| peer.spiffe_id.as_ref());
        let own = self.identity.load();
        let mut service = self.service_host.split('.');
        let series = self.metrics.series(&RequestLabels {
            reporter: Reporter::Destination,
            source: PeerLabels {
                principal: caller.map(ToString::to_string).unwrap_or_default(),
                namespace: caller.and_then(|id| id.kubernetes()).map_or(String::new(), |(ns, _)| ns.to_owned()),
                ..PeerLabels::default()
            },
            destination: PeerLabels::of(&self.workload, Option::as_ref(&own).map(|identity| identity.id())),
            destination_service: self.service_host.clone(),
            destination_service_name: service.next().unwrap_or_default().to_owned(),
            destination_service_namespace: self.workload.namespace.clone(),
            mutual_tls: peer.as_ref().map(|peer| peer.spiffe_id.is_some()),
        });
        Connection { peer, server_name, series }
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = InboundService<S>;

    fn layer(&self, inner: S) -> InboundService<S> {
        InboundService { inner, layer: self.clone() }
    }
}

/// A service behind the [`InboundLayer`]. An error of the inner service becomes a 500 (for gRPC:
/// status 13) and is logged, so that one failed request does not cost the connection.
#[derive(Clone)]
pub struct InboundService<S> {
    inner: S,
    layer: InboundLayer,
}

/// In the extensions of a request that an inbound layer has treated.
#[derive(Clone, Copy)]
struct Treated;

impl<S, B, RB> Service<Request<B>> for InboundService<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
    S::Error: Into<BoxError>,
    B: Body<Data: Buf> + Send + 'static,
    RB: Body<Data = Bytes>,
{
    type Response = Response<InboundBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<S::Future> {
        if request.extensions().get::<Treated>().is_some() {
            let work = Work::Untreated { inner: self.inner.call(request) };
            return ResponseFuture { work, record: None, last: false };
        }
        let InboundLayer { shared, connection } = &self.layer;
        // HTTP/2 has its GOAWAY.
        let last = request.version() < Version::HTTP_2 && shared.drain.is_draining();
        headers::strip(request.headers_mut());
        let grpc = headers::is_grpc(request.headers());
        let settled = target::settle(&mut request, grpc, shared.slash);
        // Without a peer of our own acceptor, what another acceptor put there counts: extensions cannot
        // come from outside.
        let peer = connection.peer.as_ref().or_else(|| request.extensions().get());
        let context = open(request.headers(), peer);
        let mut record = Record::begin(&request, connection.series.clone(), grpc, context.trace, peer);

        let refused = match settled {
            _ if request.headers().len() > shared.max_headers => Some(Refused::Headers),
            Err(unsettled) => Some(Refused::Malformed(unsettled)),
            Ok(()) => {
                let server_name = connection.server_name.as_deref();
                let judged = shared.gate.judge(&shared.inbound.load(), &request, peer, server_name);
                judged.err().map(|closed| {
                    record.note(closed.details);
                    Refused::Closed(closed.code)
                })
            }
        };
        if let Some(why) = refused {
            return ResponseFuture { work: Work::Refused { why, grpc }, record: Some(record), last };
        }
        if let Some(load) = &shared.load {
            if let Some(question) = Question::of(&request, grpc) {
                record.forget();
                let told = load.answer(question, request.into_body(), &shared.drain);
                return ResponseFuture { work: Work::Told { told: Some(told) }, record: None, last };
            }
        }
        if let Some(places) = &shared.places {
            match places.clone().try_acquire_owned() {
                Ok(place) => record.hold(place),
                Err(_) => {
                    record.note("overload".into());
                    let work = Work::Refused { why: Refused::Busy, grpc };
                    return ResponseFuture { work, record: Some(record), last };
                }
            }
        }
        if let Some(load) = &shared.load {
            let reporting = load.begin();
            request.extensions_mut().insert(reporting.reporter());
            record.report_load(reporting);
        }
        request.extensions_mut().insert(Treated);
        if let Some(peer) = &connection.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let context = Arc::new(context);
        let inner = context::enter(context.clone(), || self.inner.call(request));
        let work = Work::Serving { inner: context::scope(context, inner), grpc };
        ResponseFuture { work, record: Some(record), last }
    }
}

/// The context of a request: trace and forwarded headers, the caller, and when it stops waiting.
fn open(headers: &http::HeaderMap, peer: Option<&PeerIdentity>) -> RequestContext {
    let mut context = RequestContext::from_headers(headers, || fastrand::u64(..));
    context.caller = peer.and_then(|peer| peer.spiffe_id.clone());
    context.deadline = headers::timeout(headers).and_then(|left| Instant::now().checked_add(left));
    context
}

/// Why the mesh answers in the application's place.
enum Refused {
    Malformed(Unsettled),
    /// It has more headers than it may.
    Headers,
    /// As many requests are in flight as may be.
    Busy,
    Closed(Code),
}

impl Refused {
    #[cold]
    fn answer<B>(&self, grpc: bool) -> Response<Content<B>> {
        match self {
            // gRPC calls a method that nobody has unimplemented, and a path of another form is none.
            Self::Malformed(why @ Unsettled::Grpc) => answer(grpc, StatusCode::BAD_REQUEST, 12, &why.to_string()),
            Self::Malformed(why) => {
                let code = Code::MALFORMED_REQUEST;
                let text = format!("{code}: {why}. To fix it: {}.", code.remedy());
                answer(grpc, code.http_status(), code.grpc_status(), &text)
            }
            Self::Headers => {
                answer(grpc, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 8, "the request has too many headers")
            }
            // As Envoy's overload manager answers.
            Self::Busy => answer(grpc, StatusCode::SERVICE_UNAVAILABLE, 14, "overloaded"),
            // Envoy's words, and no more: which rule decided is not for those it keeps out.
            Self::Closed(code @ Code::ACCESS_DENIED) => {
                answer(grpc, code.http_status(), code.grpc_status(), "RBAC: access denied")
            }
            Self::Closed(code) => {
                let text = format!("{code}: denied. To fix it: {}.", code.remedy());
                answer(grpc, code.http_status(), code.grpc_status(), &text)
            }
        }
    }
}

pin_project! {
    /// The answer of an [`InboundService`].
    pub struct ResponseFuture<F> {
        #[pin]
        work: Work<F>,
        record: Option<Record>,
        // The caller is told that the connection takes no further request.
        last: bool,
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        Serving { #[pin] inner: Scoped<F>, grpc: bool },
        Untreated { #[pin] inner: F },
        Told { told: Option<Told> },
        Refused { why: Refused, grpc: bool },
    }
}

impl<F, RB, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
    E: Into<BoxError>,
    RB: Body<Data = Bytes>,
{
    type Output = Result<Response<InboundBody<RB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.work.project() {
            WorkProjection::Untreated { inner } => {
                let response = ready!(inner.poll(cx))?;
                response.map(|body| Content::Application { body })
            }
            WorkProjection::Serving { inner, grpc } => match ready!(inner.poll(cx)) {
                Ok(response) => response.map(|body| Content::Application { body }),
                Err(error) => {
                    let error: BoxError = error.into();
                    tracing::error!(%error, "the application's service failed: answered with 500");
                    answer(*grpc, StatusCode::INTERNAL_SERVER_ERROR, 13, "the service failed; see its log")
                }
            },
            WorkProjection::Told { told } => tell(told.take().expect("a future is not polled after its end")),
            WorkProjection::Refused { why, grpc } => why.answer(*grpc),
        };
        if *this.last {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut record = this.record.take();
        if let Some(record) = &mut record {
            record.head(response.status(), response.headers_mut());
        }
        Poll::Ready(Ok(response.map(|content| InboundBody::new(content, record))))
    }
}

/// The answer to a question about the load.
fn tell<B>(told: Told) -> Response<Content<B>> {
    match told {
        Told::Once(response) => response.map(|()| Content::Text { text: None }),
        Told::Stream(stream) => {
            let mut response = Response::new(Content::Reports { stream });
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
    }
}

/// An answer of the mesh itself: a text for HTTP, a status without a body for gRPC. `text` is ASCII.
fn answer<B>(grpc: bool, status: StatusCode, grpc_status: i32, text: &str) -> Response<Content<B>> {
    if grpc {
        let mut response = Response::new(Content::Text { text: None });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(grpc_status));
        if let Ok(message) = HeaderValue::from_str(text) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    let mut response = Response::new(Content::Text { text: Some(Bytes::from(format!("{text}\n"))) });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
