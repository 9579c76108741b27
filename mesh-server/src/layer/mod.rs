//! The inbound layer: everything that happens to a request between the connection and the
//! application, in this order.
//!
//! ```text
//! strip headers that only the mesh may set, join cookies → settle path and authority, 400 or 431
//!   → open the request's context (trace, deadline, caller) → who calls where policy demands it, or 403
//!   → its route, or 404 → limits that the listener's filters have before tokens → tokens, or 401
//!   → the filters that composites choose, or 503 → authorization, or 403
//!   → the limits of the listener's filters, or what they answer → a place among the requests in flight, or 503
//!   → an external authorizer is asked where one has to be, or what it answers
//!   → the application
//!   → metrics and access log when the response body ends
//! ```
//!
//! Refuses to know sockets: it works behind any acceptor.

mod ask;
mod body;
mod callers;
mod caught;
mod composite;
mod gate;
mod headers;
mod limits;
mod over;
mod parting;
mod places;
mod policy;
mod priority;
mod raw;
mod record;
mod routes;
mod target;
mod token;
mod tunnel;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::authz::HeaderChange;
use mesh_core::context::{self, RETRIED, RequestContext, Scoped};
use mesh_core::drain::DrainWatch;
use mesh_core::error::{BoxError, Code};
use mesh_core::id::{SpiffeId, Workload};
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{InboundState, PerMillion};
use mesh_core::source::Identities;
use mesh_core::telemetry::{Metrics, PeerLabels, Reporter, RequestLabels, RequestSeries};

use self::ask::{Ask, Proceed};
use self::body::Content;
pub use self::body::InboundBody;
use self::callers::{Caller, Own};
use self::caught::caught;
use self::composite::Chains;
pub(crate) use self::gate::Gate;
use self::gate::{Judged, Stopped};
pub(crate) use self::headers::{grpc_status, is_grpc, read_trailers};
use self::limits::{At, Limited, Stage};
pub(crate) use self::limits::{Concurrency, Limits, Scope};
use self::over::{Over, Wait};
use self::parting::Parting;
pub(crate) use self::places::Places;
pub(crate) use self::policy::Policy;
pub(crate) use self::priority::Priorities;
pub use self::priority::Priority;
use self::record::Record;
use self::routes::Place;
pub(crate) use self::target::Slashes;
use self::target::{Unsettled, Usual};
use self::token::Challenge;
use crate::load::{LoadReports, Question, Told};

/// Wraps a service with what the mesh does per request. [`Server`](crate::Server) adds it by itself;
/// alone it serves applications with an acceptor of their own:
/// [`Server::inbound_layer`](crate::Server::inbound_layer).
///
/// A request that comes through two of one server is treated by the outer one only, and through those of several servers by
/// the outermost of each. One that was given no policy to judge by leaves alone what is being served already. One whose
/// policy has not come yet refuses everything.
#[derive(Clone)]
pub struct InboundLayer {
    // One pointer: it is cloned with every request.
    connection: Arc<Connection>,
}

/// What all connections of a server have in common.
pub(crate) struct Shared {
    pub(crate) policy: Policy,
    pub(crate) identities: Identities,
    pub(crate) workload: Arc<Workload>,
    pub(crate) service_host: String,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: DrainWatch,
    // If callers are told.
    pub(crate) load: Option<Arc<LoadReports>>,
    pub(crate) gate: Gate,
    pub(crate) slashes: Slashes,
    /// Applications have layers of this server, so a request may come through two.
    pub(crate) lent: AtomicBool,
    pub(crate) max_headers: usize,
    /// One for each request that may be in flight, if that is limited.
    pub(crate) places: Option<Places>,
    pub(crate) priorities: Priorities,
    /// How many they may be, if that follows their latency.
    pub(crate) adaptive: Option<Arc<Concurrency>>,
    pub(crate) limits: Limits,
}

impl Shared {
    /// Whether the mesh answers a request itself.
    fn is_asked_itself<B>(&self, request: &Request<B>, grpc: bool) -> bool {
        self.load.is_some() && Question::of(request, grpc).is_some()
    }

    /// What is counted of a peer is counted under these.
    fn labels(&self, peer: Option<&PeerIdentity>) -> RequestLabels {
        let caller = peer.and_then(|peer| peer.spiffe_id.as_ref());
        let own = self.own_id();
        let mut service = self.service_host.split('.');
        RequestLabels {
            reporter: Reporter::Destination,
            source: PeerLabels {
                principal: caller.map(ToString::to_string).unwrap_or_default(),
                namespace: caller.and_then(|id| id.kubernetes()).map_or(String::new(), |(ns, _)| ns.to_owned()),
                ..PeerLabels::default()
            },
            destination: PeerLabels::of(&self.workload, own.as_ref()),
            destination_service: self.service_host.clone(),
            destination_service_name: service.next().unwrap_or_default().to_owned(),
            destination_service_namespace: self.workload.namespace.clone(),
            mutual_tls: peer.map(|peer| peer.spiffe_id.is_some()),
        }
    }

    /// Who we are behind this address.
    pub(crate) fn own_id(&self) -> Option<SpiffeId> {
        let instance = match &**self.policy.state() {
            InboundState::Ready(listener) => listener.instances.certificate.clone(),
            InboundState::Pending | InboundState::Failed(_) => None,
        };
        Option::as_ref(&self.identities.of(instance.as_deref()).load()).map(|own| own.id().clone())
    }
}

/// What all requests of a connection have in common.
struct Connection {
    shared: Arc<Shared>,
    peer: Option<Arc<PeerIdentity>>,
    /// The TLS server name that the peer asked for, empty if it named none; `None` = not known.
    server_name: Option<Box<str>>,
    usual: Usual,
    series: Arc<RequestSeries>,
    limits: Limits,
    /// The rate limit of its peer.
    rate: Own,
    /// It takes no further request.
    leaving: AtomicBool,
    /// Its peer is not who may make requests any more.
    unwelcome: AtomicBool,
    /// What is in flight has had its time. `None` = nobody drives the connection who would say so, or it is none.
    over: Option<Arc<Over>>,
}

impl InboundLayer {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { connection: Arc::new(Connection::new(&Arc::new(shared), None)) }
    }

    /// One for an application.
    pub(crate) fn lend(&self) -> Self {
        self.connection.shared.lent.store(true, Ordering::Relaxed);
        self.clone()
    }

    /// The layer for the requests of one connection, whose peer is known. Resolves the connection's
    /// metrics: not for each request.
    #[must_use]
    pub fn for_peer(&self, peer: PeerIdentity) -> Self {
        Self { connection: Arc::new(Connection::new(&self.connection.shared, Some(peer))) }
    }

    /// As [`for_peer`](Self::for_peer), with the TLS server name that the peer asked for. `ends` = whoever drives the connection
    /// says when what is in flight on it has had its time ([`give_up`](Self::give_up)).
    pub(crate) fn for_connection(&self, peer: PeerIdentity, server_name: Box<str>, ends: bool) -> Self {
        let connection = Connection::new(&self.connection.shared, Some(peer));
        let over = ends.then(Arc::default);
        Self { connection: Arc::new(Connection { server_name: Some(server_name), over, ..connection }) }
    }

    /// What the control plane says of the listener now; from now on requests are judged by it, and by what came last
    /// while there is no word.
    pub(crate) fn hear(&self) -> Arc<InboundState> {
        self.connection.shared.policy.hear()
    }

    /// From now on HTTP/1.1 answers say that the connection takes no further request.
    pub(crate) fn leave(&self) {
        self.connection.leaving.store(true, Ordering::Relaxed);
    }

    /// No request of the connection is served from now on. Over HTTP/2 they come until its peer has heard that it is to make none,
    /// which it may put off.
    pub(crate) fn turn_away(&self) {
        self.connection.unwelcome.store(true, Ordering::Relaxed);
    }

    /// What has no answer yet gets 503 from now on, and gRPC calls are UNAVAILABLE, those whose answers go on among them: the
    /// connection is about to be cut.
    pub(crate) fn give_up(&self) {
        if let Some(over) = &self.connection.over {
            over.give_up();
        }
    }
}

impl Connection {
    /// Whether its peer is trusted no more, which the record is told.
    fn turns_away(&self, record: &mut Record) -> bool {
        let unwelcome = self.unwelcome.load(Ordering::Relaxed);
        if unwelcome {
            record.note("peer_distrusted".into());
        }
        unwelcome
    }

    fn new(shared: &Arc<Shared>, peer: Option<PeerIdentity>) -> Self {
        let series = shared.metrics.series(&shared.labels(peer.as_ref()));
        Self {
            shared: shared.clone(),
            peer: peer.map(Arc::new),
            server_name: None,
            usual: Usual::default(),
            series,
            limits: Limits::new(Scope::Connection),
            rate: Own::default(),
            leaving: AtomicBool::new(false),
            unwelcome: AtomicBool::new(false),
            over: None,
        }
    }

    fn parting<B>(&self, request: &Request<B>) -> Parting {
        if request.version() >= Version::HTTP_2 {
            // It has its GOAWAY.
            Parting::Stays
        } else if self.shared.drain.is_draining() || self.leaving.load(Ordering::Relaxed) {
            Parting::Last
        } else if request.extensions().get::<hyper::upgrade::OnUpgrade>().is_some() {
            Parting::Switches { connect: request.method() == Method::CONNECT }
        } else {
            Parting::Stays
        }
    }

    /// Whether another layer has this request already.
    fn leaves_alone<B>(&self, request: &Request<B>) -> bool {
        request.extensions().get::<Treated>().is_some_and(|treated| treated.is_by(&self.shared))
            || (self.peer.is_none() && context::is_open() && !self.shared.policy.is_given())
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = InboundService<S>;

    fn layer(&self, inner: S) -> InboundService<S> {
        InboundService { inner, layer: self.clone(), broken: false }
    }
}

/// A service behind the [`InboundLayer`]. An error of the inner service becomes a 500 (for gRPC: status 13) and is logged,
/// so that one failed request does not cost the connection; so does a panic, in whatever layer of it, and one of an
/// external authorizer. A panic while a response's body is made ends that body with an error.
///
/// In a process built with `panic = "abort"` a panic ends the process.
#[derive(Clone)]
pub struct InboundService<S> {
    inner: S,
    layer: InboundLayer,
    /// It panicked when it was asked whether it is ready: it is not called.
    broken: bool,
}

/// In the extensions of a request that a layer of a server has treated of which applications have another one.
#[derive(Clone)]
struct Treated {
    by: Arc<Shared>,
    // By a layer of another server, around this one.
    before: Option<Box<Treated>>,
}

impl Treated {
    fn is_by(&self, server: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.by, server) || self.before.as_ref().is_some_and(|before| before.is_by(server))
    }
}

impl<S, B, RB> Service<Request<B>> for InboundService<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data: Buf> + Send + 'static,
    RB: Body<Data = Bytes>,
{
    type Response = Response<InboundBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match caught(|| self.inner.poll_ready(cx)) {
            Ok(ready) => ready,
            Err(panicked) => {
                tracing::error!(error = %panicked, "the application's service is asked whether it is ready");
                self.broken = true;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<S::Future> {
        let connection = &self.layer.connection;
        if connection.leaves_alone(&request) {
            let work = Work::Untreated { inner: self.inner.call(request) };
            return ResponseFuture { work, record: None, parting: Parting::Stays };
        }
        let shared = &connection.shared;
        let parting = connection.parting(&request);
        let seen = headers::read(request.headers_mut());
        let grpc = seen.grpc;
        let settled = target::settle(&mut request, &seen, &shared.slashes, &connection.usual);
        // Without a peer of our own acceptor, what another acceptor put there counts: extensions cannot
        // come from outside.
        let other = || request.extensions().get::<PeerIdentity>().cloned().map(Arc::new);
        let now = Instant::now();
        let mut context = open(request.headers(), &seen, now, connection.peer.clone().or_else(other));
        let peer = context.caller.as_deref();
        let mut record = Record::begin(&request, connection.series.clone(), now, grpc, context.trace, peer);
        if let Some(over) = &connection.over {
            record.ends_with(Wait::new(over, request.version() >= Version::HTTP_2));
        }
        // One look at it for the whole request.
        let (state, mut last) = (shared.policy.state(), None);
        let listener = shared.policy.in_force(&state, &mut last);
        if context.retried && !headers::is_believed(peer, listener.map(AsRef::as_ref)) {
            request.headers_mut().remove(&RETRIED);
            context.retried = false;
        }

        let settled = settled.and_then(|()| headers::judge_underscores(&mut request, listener.map(AsRef::as_ref)));
        let judged = match settled {
            _ if self.broken => Err(Refused::Failed),
            _ if connection.turns_away(&mut record) => Err(Refused::Closed(Code::PEER_REFUSED)),
            _ if seen.count > shared.max_headers => Err(Refused::Headers),
            Err(unsettled) => Err(Refused::Malformed(unsettled)),
            Ok(()) if listener.is_none() && shared.policy.is_given() => {
                record.note("no_policy".into());
                Err(Refused::Closed(Code::CONFIG_PENDING))
            }
            Ok(()) => {
                tunnel::as_upgrade(&mut request);
                let server_name = connection.server_name.as_deref();
                let tokens = &mut context.tokens;
                let limited = |request: &mut Request<B>, place| {
                    let (at, share) = ((listener, place, Stage::First), shared.priorities.share(request));
                    self.layer.limit(request, peer, at, share, &mut record).map_err(Stopped::Limited)
                };
                let judged = shared.gate.judge(listener, &mut request, peer, server_name, tokens, limited);
                judged.map_err(|stopped| stopped.noted(&mut record))
            }
        };
        let judged = judged.and_then(|Judged { asking, place, chains }| {
            // A question about the load needs no place, unless somebody has to be asked about it.
            if asking.is_some() || !shared.is_asked_itself(&request, grpc) {
                let (peer, at) = (context.caller.as_deref(), (listener, place, Stage::Last));
                self.layer.admit(&mut request, peer, at, &chains, &mut record)?;
            }
            Ok(asking)
        });
        let context = Arc::new(context);
        let mut record = Some(record);
        let work = match judged {
            Err(why) => Work::Refused { why, grpc },
            Ok(None) => self.layer.hand_over(&mut self.inner, request, context, grpc, &mut record),
            Ok(Some(asking)) => {
                // The one that said it was ready is used up.
                let fresh = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, fresh);
                let ask = Ask { layer: self.layer.clone(), inner, request, context, grpc };
                Work::Asking { asking: ask::ask(asking, ask), grpc }
            }
        };
        ResponseFuture { work, record, parting }
    }
}

impl InboundLayer {
    /// Whether a request is within all limits; if so it has its place until its answer has ended, or it is denied.
    ///
    /// Before an external authorizer is asked: what waits for it is in flight too, and a flood must not reach it.
    fn admit<B>(
        &self,
        request: &mut Request<B>,
        peer: Option<&PeerIdentity>,
        at: At<'_>,
        chains: &Chains,
        record: &mut Record,
    ) -> Result<(), Refused> {
        let shared = &self.connection.shared;
        let share = shared.priorities.share(request);
        self.limit(request, peer, at, share, record)?;
        for chain in chains {
            self.limit(request, peer, (at.0, Place::Chain(*chain), at.2), share, record)?;
        }
        if let Some(places) = &shared.places {
            let Some(place) = places.take(share) else {
                record.release();
                record.note("overload".into());
                return Err(Refused::Busy);
            };
            record.hold(place);
        }
        Ok(())
    }

    /// Whether a request, which may fill this `share` of them, is within the limits of the listener's filters and of the server
    /// at that stage.
    // With a refusal the tickets are dropped: what passes one limit and not the next says nothing of latency.
    fn limit<B>(
        &self,
        request: &mut Request<B>,
        peer: Option<&PeerIdentity>,
        at: At<'_>,
        share: PerMillion,
        record: &mut Record,
    ) -> Result<(), Refused> {
        let (shared, mut tickets) = (&self.connection.shared, Vec::new());
        let caller = Caller { peer, own: self.connection.peer.is_some().then_some(&self.connection.rate) };
        let mut pass = || {
            shared.limits.pass(at, request.headers_mut(), caller, share, &mut tickets)?;
            if shared.limits.are_of_connections() {
                self.connection.limits.pass(at, request.headers_mut(), caller, share, &mut tickets)?;
            }
            // Of the server, once.
            let own = at.2 == Stage::Last && !matches!(at.1, Place::Chain(_));
            if let Some(adaptive) = shared.adaptive.as_ref().filter(|_| own) {
                tickets.push(adaptive.pass(share)?);
            }
            Ok(())
        };
        pass().map_err(|limited: Box<Limited>| {
            // Those of the stage before as well.
            record.release();
            record.note(limited.details.into());
            record.flag(limited.flag);
            Refused::Limited(limited)
        })?;
        if !tickets.is_empty() {
            record.owe(tickets);
        }
        Ok(())
    }

    /// Gives a request that may pass to the application, or answers what the mesh is asked itself.
    fn hand_over<S: Service<Request<B>>, B: Body<Data: Buf> + Send + 'static>(
        &self,
        inner: &mut S,
        mut request: Request<B>,
        context: Arc<RequestContext>,
        grpc: bool,
        record: &mut Option<Record>,
    ) -> Work<S::Future> {
        let shared = &self.connection.shared;
        tunnel::as_sent(&mut request);
        if let Some(load) = &shared.load
            && let Some(question) = Question::of(&request, grpc)
        {
            if let Some(record) = record.take() {
                record.forget();
            }
            let told = load.answer(question, request.into_body(), &shared.drain);
            return Work::Told { told: Some(told) };
        }
        if let Some(load) = &shared.load {
            let reporting = load.begin();
            request.extensions_mut().insert(reporting.reporter());
            if let Some(record) = record {
                record.report_load(reporting);
            }
        }
        // Asked first, for the first word in a request's extensions allocates them.
        if shared.lent.load(Ordering::Relaxed) {
            let extensions = request.extensions_mut();
            let before = extensions.remove().map(Box::new);
            extensions.insert(Treated { by: shared.clone(), before });
        }
        // Both by reference: what a closure takes along or gives back is copied from one to the next.
        let (mut request, mut called, mut context) = (Some(request), None, Some(context));
        let mut call = || called = request.take().map(|request| inner.call(request));
        match caught(|| context::enter(&mut context, &mut call)) {
            Ok(()) => {
                let inner = Scoped::new(context, called.expect("it was called"));
                Work::Serving { inner, grpc, more: None }
            }
            Err(panicked) => {
                tracing::error!(error = %panicked, "the application's service failed: answered with 500");
                if let Some(record) = record {
                    record.release();
                }
                Work::Refused { why: Refused::Failed, grpc }
            }
        }
    }
}

/// The context of a request: trace and forwarded headers, the caller, and when it stops waiting.
fn open(
    headers: &http::HeaderMap,
    seen: &headers::Seen,
    now: Instant,
    caller: Option<Arc<PeerIdentity>>,
) -> RequestContext {
    let mut context = RequestContext::from_headers(headers);
    context.caller = caller;
    context.deadline = seen.timeout.and_then(|left| now.checked_add(left));
    context
}

/// Why the mesh answers in the application's place.
enum Refused {
    Malformed(Unsettled),
    /// It has more headers than it may.
    Headers,
    /// As many requests are in flight as may be.
    Busy,
    /// By the listener's filters or the latency of requests.
    Limited(Box<Limited>),
    Closed(Code),
    /// It has no answer, and its connection is about to be cut.
    Over,
    /// The application's code has panicked before there was an answer to wait for.
    Failed,
    /// By its tokens, or for want of one.
    Token(Box<Challenge>),
    /// With a status of its own.
    Unavailable(StatusCode),
    /// In an external authorizer's words.
    External(Box<mesh_core::authz::Refusal>),
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
            Self::Over => {
                let code = Code::DRAINING;
                answer(grpc, code.http_status(), code.grpc_status(), &format!("{code}: {}", over::WORD))
            }
            Self::Failed => failed(grpc),
            Self::Limited(limited) => {
                let told = &limited.answer;
                let mut response = answer(grpc, told.status, told.grpc_status, limited.text);
                response.headers_mut().extend(told.headers.clone());
                response
            }
            // Envoy's words, and no more: which rule decided is not for those it keeps out.
            Self::Closed(code @ Code::ACCESS_DENIED) => {
                answer(grpc, code.http_status(), code.grpc_status(), "RBAC: access denied")
            }
            // gRPC's word for it is UNAVAILABLE here: nobody says that the method is not there.
            Self::Closed(code @ Code::NO_INBOUND_ROUTE) => {
                answer(grpc, code.http_status(), code.grpc_status(), "no route serves the request")
            }
            Self::Closed(code @ Code::NO_INBOUND_FILTERS) => {
                answer(grpc, code.http_status(), code.grpc_status(), "no filters are known for the request")
            }
            Self::Closed(Code::NO_SERVED_ROUTE) => answer(grpc, StatusCode::NOT_FOUND, 12, "no such route"),
            Self::Closed(code) => {
                let text = format!("{code}: denied. To fix it: {}.", code.remedy());
                answer(grpc, code.http_status(), code.grpc_status(), &text)
            }
            // Envoy's words as well; there are none that say more of a token than its sender knows.
            Self::Token(challenge) => {
                let code = Code::TOKEN_REFUSED;
                let mut response = answer(grpc, code.http_status(), code.grpc_status(), &challenge.why.to_string());
                response.headers_mut().extend(challenge.header().map(|value| (header::WWW_AUTHENTICATE, value)));
                response
            }
            Self::Unavailable(status) => {
                let code = Code::AUTHORIZER_UNAVAILABLE;
                let text = format!("{code}: the external authorizer gives no answer. To fix it: {}.", code.remedy());
                answer(grpc, *status, ask::grpc_status_of(*status), &text)
            }
            Self::External(refusal) => ask::answer(grpc, refusal),
        }
    }
}

pin_project! {
    /// The answer of an [`InboundService`].
    pub struct ResponseFuture<F> {
        #[pin]
        work: Work<F>,
        record: Option<Record>,
        parting: Parting,
    }
}

pin_project! {
    #[project = WorkProjection]
    enum Work<F> {
        // With changes of the answer's headers that an external authorizer asks for.
        Serving { #[pin] inner: Scoped<F>, grpc: bool, more: Option<Box<[HeaderChange]>> },
        Asking { asking: ask::Asked<F>, grpc: bool },
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
        let mut this = self.project();
        while let WorkProjection::Asking { asking, grpc } = this.work.as_mut().project() {
            let next = match caught(|| asking.as_mut().poll(cx)) {
                Ok(Poll::Ready(proceed)) => {
                    let proceed: Proceed<F> = proceed;
                    proceed(this.record)
                }
                Ok(Poll::Pending) => {
                    ready!(is_over(this.record, cx));
                    Work::Refused { why: Refused::Over, grpc: *grpc }
                }
                Err(panicked) => {
                    tracing::error!(error = %panicked, "an external authorizer failed: answered with 500");
                    if let Some(record) = this.record {
                        record.release();
                    }
                    Work::Refused { why: Refused::Failed, grpc: *grpc }
                }
            };
            this.work.set(next);
        }
        let response = match this.work.project() {
            WorkProjection::Asking { .. } => unreachable!("who is asked has answered"),
            WorkProjection::Untreated { inner } => {
                let response = ready!(inner.poll(cx))?;
                response.map(|body| Content::Application { body })
            }
            WorkProjection::Serving { mut inner, grpc, more } => {
                let served: Result<_, BoxError> = match caught(|| inner.as_mut().poll(cx)) {
                    Ok(Poll::Ready(served)) => served.map_err(Into::into),
                    Ok(Poll::Pending) => {
                        ready!(is_over(this.record, cx));
                        let answer = Refused::Over.answer(*grpc);
                        return Poll::Ready(Ok(conclude(answer, *this.parting, this.record)));
                    }
                    Err(panicked) => Err(panicked.into()),
                };
                let (spent, stalled) = inner
                    .context()
                    .map_or((false, false), |context| (context.spent.is_set(), context.stalled.is_set()));
                match served {
                    // What the application makes of a body that broke off is said in a better way.
                    _ if stalled && !served.as_ref().is_ok_and(|served| served.status().is_success()) => {
                        if let Some(record) = this.record {
                            record.flag("SI");
                            record.note("stream_idle_timeout".into());
                        }
                        answer(*grpc, StatusCode::REQUEST_TIMEOUT, 4, "the request's body stopped coming")
                    }
                    Ok(mut response) => {
                        if let Some(changes) = more {
                            HeaderChange::apply(changes, response.headers_mut());
                        }
                        if spent && headers::is_failure(response.status(), response.headers()) {
                            response.headers_mut().insert(&RETRIED, HeaderValue::from_static("1"));
                        }
                        response.map(|body| Content::Application { body })
                    }
                    Err(error) => {
                        tracing::error!(%error, "the application's service failed: answered with 500");
                        failed(*grpc)
                    }
                }
            }
            WorkProjection::Told { told } => tell(told.take().expect("a future is not polled after its end")),
            WorkProjection::Refused { why, grpc } => why.answer(*grpc),
        };
        Poll::Ready(Ok(conclude(response, *this.parting, this.record)))
    }
}

/// Whether the time is over for a request that has no answer; it goes no further then.
fn is_over(record: &mut Option<Record>, cx: &Context<'_>) -> Poll<()> {
    let Some(record) = record.as_mut() else { return Poll::Pending };
    if !record.is_over(cx) {
        return Poll::Pending;
    }
    record.note("drain_limit".into());
    record.release();
    Poll::Ready(())
}

/// The head of an answer as the caller gets it, and in the record, which goes with its body.
fn conclude<B: Body>(
    mut response: Response<Content<B>>,
    parting: Parting,
    record: &mut Option<Record>,
) -> Response<InboundBody<B>> {
    if parting.is_last(response.status()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(record) = record {
        record.head(response.status(), response.headers_mut());
    }
    response.map(|content| InboundBody::new(content, record.take()))
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

/// The answer in place of the application's that failed.
#[cold]
fn failed<B>(grpc: bool) -> Response<Content<B>> {
    answer(grpc, StatusCode::INTERNAL_SERVER_ERROR, 13, "the service failed; see its log")
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
