//! Authorization, and tokens before it: the policy in force, compiled when its first request comes, and what is told of
//! its decisions.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use http::Request;
use rustls::time_provider::TimeProvider;

use mesh_core::authz::{
    Attributes, Authorizer, Denial, DenialReason, ExternalAuthorizer, ExternalAuthorizers, Observation, Question, Step,
};
use mesh_core::error::Code;
use mesh_core::identity::PeerIdentity;
use mesh_core::jwt::Tokens;
use mesh_core::matcher::RequestView;
use mesh_core::policy::{
    AuthorizationPolicy, HttpFilter, HttpFilterKind, InboundListener, InboundTls, JwtAuthentication,
};
use mesh_core::target;
use mesh_core::telemetry::{DecisionLabels, Metrics};

use super::Refused;
use super::caught::caught;
use super::composite::{self, Caller, Chains, Composites};
use super::record::Record;
use super::routes::{Ambiguous, Place, Routes, guards};
use super::token::{Challenge, Filters};

/// The compiled policy of a listener, kept as long as the listener's configuration stays.
pub(crate) struct Gate {
    authorizers: Arc<dyn ExternalAuthorizers>,
    /// By which tokens are judged.
    clock: Arc<dyn TimeProvider>,
    metrics: Arc<Metrics>,
    current: ArcSwapOption<Current>,
    // Whether there is one: asked where there is no policy.
    compiled: AtomicBool,
}

/// A listener's policy.
struct Current {
    listener: Arc<InboundListener>,
    /// Of what has no route.
    whole: Arc<Compiled>,
    /// Of each route that serves.
    each: Box<[Option<Arc<Compiled>>]>,
    routes: Routes,
}

struct Compiled {
    destination: SocketAddr,
    trusted_proxies: u32,
    tokens: Filters,
    /// Those before tokens are looked at, and those after it.
    composites: [Composites; 2],
    authorizer: Authorizer,
    /// Who can be asked, by provider.
    external: Box<[External]>,
}

/// Somebody who can be asked.
struct External {
    provider: Box<str>,
    authorizer: Arc<dyn ExternalAuthorizer>,
    counters: [Arc<AtomicU64>; ANSWERS.len()],
}

/// What an authorizer's answers are counted as.
const ANSWERS: [&str; 3] = ["allowed", "denied", "unavailable"];

/// A request about which somebody has to be asked.
pub(super) struct Asking {
    compiled: Arc<Compiled>,
    external: usize,
    next: Step,
    /// For the log.
    rule: Box<str>,
}

/// A request that policy lets through, so far.
#[derive(Default)]
pub(super) struct Judged {
    /// Somebody has to be asked before.
    pub(super) asking: Option<Asking>,
    pub(super) place: Place,
    /// What composite filters chose, whose limits are asked where the listener's are.
    pub(super) chains: Chains,
}

/// How an authorizer's answer is counted.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    Allowed,
    Denied,
    Unavailable,
}

/// A request that policy does not let through.
pub(super) struct Closed {
    pub(super) code: Code,
    /// For the access log, in Envoy's words; the caller is not told.
    pub(super) details: Box<str>,
    /// If its tokens are why.
    pub(super) challenge: Option<Box<Challenge>>,
}

/// Why a request goes no further than here.
pub(super) enum Stopped {
    Closed(Closed),
    Limited(Refused),
}

impl Stopped {
    /// What it is answered with; why is noted.
    pub(super) fn noted(self, record: &mut Record) -> Refused {
        record.release();
        match self {
            Self::Limited(refused) => refused,
            Self::Closed(closed) => {
                record.note(closed.details);
                closed.challenge.map_or(Refused::Closed(closed.code), Refused::Token)
            }
        }
    }
}

impl From<Closed> for Stopped {
    fn from(closed: Closed) -> Self {
        Self::Closed(closed)
    }
}

impl Gate {
    pub(crate) fn new(
        authorizers: Arc<dyn ExternalAuthorizers>,
        clock: Arc<dyn TimeProvider>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { authorizers, clock, metrics, current: ArcSwapOption::empty(), compiled: AtomicBool::new(false) }
    }

    /// Decides about a request whose target is settled: it may pass, somebody has to be asked, or it may not. Its route is
    /// looked up first, then it has to be within what is limited `before`, then its tokens are looked at, and those that hold
    /// noted. Costs nothing where there is no policy.
    pub(super) fn judge<B: Send + 'static>(
        &self,
        listener: Option<&Arc<InboundListener>>,
        request: &mut Request<B>,
        peer: Option<&PeerIdentity>,
        server_name: Option<&str>,
        tokens: &mut Option<Arc<Tokens>>,
        mut before: impl FnMut(&mut Request<B>, Place) -> Result<(), Stopped>,
    ) -> Result<Judged, Stopped> {
        if let Some(listener) = listener
            && must_be_known(listener, peer)
        {
            return Err(unknown(&attributes(listener, Some(view(request)), peer, server_name)).into());
        }
        let says = |listener: &&Arc<InboundListener>| {
            !listener.before.is_empty()
                || !listener.authorization.is_empty()
                || !listener.jwt.is_empty()
                || !listener.routes.are_all()
                || listener.filters.iter().any(is_composite)
        };
        let Some(listener) = listener.filter(says) else {
            if self.compiled.load(Ordering::Relaxed) {
                self.forget();
            }
            return Ok(Judged::default());
        };
        let current = self.current.load();
        let current = match current.as_ref().filter(|current| Arc::ptr_eq(&current.listener, listener)) {
            Some(current) => current,
            None => &self.compile(listener),
        };
        let place = match listener.routes.are_all() {
            true => Ok(Some(Place::Whole)),
            false => current.routes.find(&view(request)),
        };
        let place = place.map_err(|Ambiguous| {
            let of = attributes(listener, Some(view(request)), peer, server_name);
            denied(
                &of,
                None,
                None,
                "a header, query parameter or cookie that is there twice makes two routes possible",
            );
            Closed { code: Code::MALFORMED_REQUEST, details: "ambiguous_route".into(), challenge: None }
        })?;
        let Some((place, compiled)) = place.and_then(|place| Some((place, current.at(place)?))) else {
            let of = attributes(listener, Some(view(request)), peer, server_name);
            denied(&of, None, None, "no route of the listener serves the request");
            let details = "route_not_found".into();
            return Err(Closed { code: Code::NO_INBOUND_ROUTE, details, challenge: None }.into());
        };
        let (Compiled { destination, trusted_proxies, .. }, clock) = (&**compiled, &*self.clock);
        let caller = Caller { peer, server_name, destination: *destination, trusted_proxies: *trusted_proxies, clock };
        let ([first, last], mut early, mut chains) = (&compiled.composites, Chains::new(), Chains::new());
        before(request, place)?;
        first.admit(request, caller, tokens, &mut early)?;
        early.into_iter().try_for_each(|chain| before(request, Place::Chain(chain)))?;
        compiled.tokens.admit(request, peer, tokens, clock)?;
        last.admit(request, caller, tokens, &mut chains)?;
        let asking = compiled.decide(Step::default(), request, peer, server_name, tokens.as_deref())?;
        Ok(Judged { asking, place, chains })
    }

    /// Decides about a connection that carries no requests. Nobody is asked about one, and none shows a token.
    pub(super) fn judge_raw(
        &self,
        listener: &Arc<InboundListener>,
        peer: &PeerIdentity,
        server_name: &str,
    ) -> Result<(), Closed> {
        let of = attributes(listener, None, Some(peer), Some(server_name));
        if must_be_known(listener, Some(peer)) {
            return Err(unknown(&of));
        }
        if !listener.routes.are_all() {
            denied(&of, None, None, "the listener serves what its routes say, and a raw connection has none");
            return Err(Closed { code: Code::NO_INBOUND_ROUTE, details: "route_not_found".into(), challenge: None });
        }
        if listener.jwt.iter().any(JwtAuthentication::demands_token) {
            let reason = "the listener's filters demand a token, and a raw connection cannot show one";
            denied(&of, None, None, reason);
            return Err(Closed { code: Code::TOKEN_REFUSED, details: "jwt_is_missing".into(), challenge: None });
        }
        let judges = |filter: &HttpFilter| matches!(&filter.kind, HttpFilterKind::Composite(c) if c.judges());
        if listener.before.iter().chain(&listener.filters).any(judges) {
            let reason = "who looks at the caller is chosen by headers, and a raw connection has none";
            denied(&of, None, None, reason);
            return Err(Closed { code: Code::ACCESS_DENIED, details: "composite_filter".into(), challenge: None });
        }
        if listener.authorization.is_empty() {
            return Ok(());
        }
        let current = self.current.load_full().filter(|current| Arc::ptr_eq(&current.listener, listener));
        let current = current.unwrap_or_else(|| self.compile(listener));
        current.whole.authorizer.decide(&of, |seen| observed(&seen, &of)).map_err(|denial| closed(&denial, &of))
    }

    // Two requests may do this at once; both get the same.
    #[cold]
    fn compile(&self, listener: &Arc<InboundListener>) -> Arc<Current> {
        let mut trees = composite::Known::new();
        let mut of = |jwt: &[_], policies: &[_], filters: [&[_]; 2]| {
            Arc::new(self.compiled(listener, jwt, policies, filters, &mut trees))
        };
        // Many routes have the same guards.
        let mut known = HashMap::new();
        let each = listener.routes.iter().map(|route| {
            let guards = guards(route)?;
            let compiled = known
                .entry(Arc::as_ptr(guards))
                .or_insert_with(|| of(&guards.jwt, &guards.authorization, [&guards.before, &guards.filters]));
            Some(compiled.clone())
        });
        let each = each.collect();
        let current = Arc::new(Current {
            listener: listener.clone(),
            each,
            whole: of(&listener.jwt, &listener.authorization, [&listener.before, &listener.filters]),
            routes: Routes::new(&listener.routes),
        });
        self.current.store(Some(current.clone()));
        self.compiled.store(true, Ordering::Relaxed);
        current
    }

    fn compiled(
        &self,
        listener: &InboundListener,
        jwt: &[JwtAuthentication],
        policies: &[AuthorizationPolicy],
        filters: [&[HttpFilter]; 2],
        trees: &mut composite::Known,
    ) -> Compiled {
        let decisions = self.metrics.decisions();
        let authorizer = Authorizer::counted(policies, decisions);
        let counter = |provider: &str, decision| {
            let (policy, action) = (format!("provider[{provider}]"), "custom");
            decisions.counter(DecisionLabels { policy, action, decision, dry_run: false })
        };
        let external = authorizer.providers().filter_map(|provider| {
            // It is the application's code; with nobody to ask, what the policy matches is denied.
            let asked = caught(|| self.authorizers.authorizer(provider)).unwrap_or_else(|panicked| {
                tracing::error!(target: "mesh::audit", provider = provider.name, error = %panicked, "no authorizer");
                None
            })?;
            let counters = ANSWERS.map(|decision| counter(&provider.name, decision));
            Some(External { provider: provider.name.as_str().into(), authorizer: asked, counters })
        });
        let external = external.collect();
        let (destination, trusted_proxies) = (listener.address, listener.trusted_proxies);
        let (tokens, composites) =
            (Filters::new(jwt, decisions), filters.map(|f| Composites::new(f, decisions, trees)));
        Compiled { destination, trusted_proxies, tokens, composites, authorizer, external }
    }

    #[cold]
    fn forget(&self) {
        self.compiled.store(false, Ordering::Relaxed);
        self.current.store(None);
    }
}

impl Current {
    fn at(&self, place: Place) -> Option<&Arc<Compiled>> {
        match place {
            Place::Whole => Some(&self.whole),
            Place::Route(at) => self.each.get(at)?.as_ref(),
            Place::Chain(_) => None,
        }
    }
}

impl Compiled {
    fn decide<B>(
        self: &Arc<Self>,
        from: Step,
        request: &Request<B>,
        peer: Option<&PeerIdentity>,
        server_name: Option<&str>,
        tokens: Option<&Tokens>,
    ) -> Result<Option<Asking>, Closed> {
        let (request, destination, trusted_proxies) = (Some(view(request)), self.destination, self.trusted_proxies);
        let attributes = Attributes { request, peer, destination, server_name, tokens, trusted_proxies };
        match self.authorizer.decide_from(from, &attributes, |seen| observed(&seen, &attributes)) {
            Ok(None) => Ok(None),
            Ok(Some(question)) => match self.asking(&question) {
                Some(asking) => Ok(Some(asking)),
                None => Err(closed(&question.unanswered(), &attributes)),
            },
            Err(denial) => Err(closed(&denial, &attributes)),
        }
    }

    fn asking(self: &Arc<Self>, question: &Question<'_>) -> Option<Asking> {
        let external = self.external.iter().position(|known| *known.provider == question.provider.name)?;
        Some(Asking { compiled: self.clone(), external, next: question.next, rule: question.rule.into() })
    }
}

impl Asking {
    /// Who is to be asked.
    pub(super) fn authorizer(&self) -> &dyn ExternalAuthorizer {
        &*self.compiled.external[self.external].authorizer
    }

    /// The address that was reached.
    pub(super) fn destination(&self) -> std::net::SocketAddr {
        self.compiled.destination
    }

    /// Counts the answer.
    pub(super) fn count(&self, answer: Answer) {
        self.compiled.external[self.external].counters[answer as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The provider, and the policy and the rule that ask it, for the log.
    pub(super) fn names(&self) -> (&str, Option<&str>, &str) {
        (&self.compiled.external[self.external].provider, self.compiled.authorizer.asked(self.next), &self.rule)
    }

    /// Goes on after a yes, with the policy that asked: one request is judged by one.
    pub(super) fn go_on<B>(
        &self,
        request: &Request<B>,
        peer: Option<&PeerIdentity>,
        server_name: Option<&str>,
        tokens: Option<&Tokens>,
    ) -> Result<Option<Self>, Closed> {
        self.compiled.decide(self.next, request, peer, server_name, tokens)
    }
}

fn is_composite(filter: &HttpFilter) -> bool {
    matches!(filter.kind, HttpFilterKind::Composite(_))
}

/// Whether policy lets nobody in without an identity, and the peer has none. A connection may be older than the policy, or of
/// another acceptor.
fn must_be_known(listener: &InboundListener, peer: Option<&PeerIdentity>) -> bool {
    listener.tls == InboundTls::Strict && peer.is_none_or(|peer| peer.spiffe_id.is_none())
}

/// What is known before tokens are looked at.
fn attributes<'a>(
    listener: &InboundListener,
    request: Option<RequestView<'a>>,
    peer: Option<&'a PeerIdentity>,
    server_name: Option<&'a str>,
) -> Attributes<'a> {
    let (destination, trusted_proxies) = (listener.address, listener.trusted_proxies);
    Attributes { request, peer, destination, server_name, tokens: None, trusted_proxies }
}

#[cold]
fn unknown(of: &Attributes<'_>) -> Closed {
    denied(of, None, None, "policy demands mutual TLS, and the peer has not shown who it is");
    Closed { code: Code::PLAINTEXT_REFUSED, details: "plaintext".into(), challenge: None }
}

/// What of a request is judged.
pub(super) fn view<B>(request: &Request<B>) -> RequestView<'_> {
    let uri = request.uri();
    RequestView {
        authority: authority(request),
        method: request.method(),
        path_and_query: uri.path_and_query().map_or("", |path| path.as_str()),
        scheme: uri.scheme_str().unwrap_or_default(),
        headers: request.headers(),
        draw: &|| fastrand::u32(..1_000_000),
    }
}

/// The authority of a request whose target is settled: the URI's, else the only `Host`.
pub(super) fn authority<B>(request: &Request<B>) -> &str {
    let host = || target::host(request.headers()).and_then(|host| host.to_str().ok());
    request.uri().authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default()
}

#[cold]
pub(super) fn closed(denial: &Denial<'_>, of: &Attributes<'_>) -> Closed {
    let code = match denial.reason {
        DenialReason::NoAuthorizer => Code::AUTHORIZATION_UNENFORCED,
        DenialReason::Denied | DenialReason::NotAllowed => Code::ACCESS_DENIED,
        DenialReason::NoRoute => Code::NO_SERVED_ROUTE,
    };
    let reason = match denial.reason {
        DenialReason::Denied => "a rule of a DENY policy matches",
        DenialReason::NotAllowed => "no rule of the ALLOW policies matches",
        DenialReason::NoAuthorizer if of.request.is_none() => {
            "a rule of a CUSTOM policy matches, and nobody is asked about raw connections"
        }
        DenialReason::NoAuthorizer => "a rule of a CUSTOM policy matches, and nobody knows its provider",
        DenialReason::NoRoute => "there are routes for this port, and none of them matches",
    };
    denied(of, Some(denial.policy), denial.rule, reason);
    let details = format!("rbac_access_denied_matched_policy[{}]", denial.rule.unwrap_or("none"));
    Closed { code, details: details.into(), challenge: None }
}

pub(super) fn denied(of: &Attributes<'_>, policy: Option<&str>, rule: Option<&str>, reason: &'static str) {
    tracing::info!(
        target: "mesh::audit",
        decision = "denied",
        policy,
        rule,
        reason,
        principal = principal(of),
        peer = peer(of),
        method = of.request.map(|request| tracing::field::display(request.method)),
        path = of.request.map(|request| request.path()),
        "RBAC: access denied"
    );
}

#[cold]
pub(super) fn observed(seen: &Observation<'_>, of: &Attributes<'_>) {
    tracing::info!(
        target: "mesh::audit",
        decision = if seen.allowed { "allowed" } else { "denied" },
        kind = ?seen.kind,
        policy = seen.policy,
        rule = seen.rule,
        principal = principal(of),
        peer = peer(of),
        method = of.request.map(|request| tracing::field::display(request.method)),
        path = of.request.map(|request| request.path()),
        "RBAC: decision recorded"
    );
}

fn principal<'a>(of: &Attributes<'a>) -> Option<tracing::field::DisplayValue<impl fmt::Display + use<'a>>> {
    of.peer.and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display)
}

fn peer<'a>(of: &Attributes<'a>) -> Option<tracing::field::DisplayValue<impl fmt::Display + use<'a>>> {
    of.peer.map(|peer| tracing::field::display(peer.address))
}
