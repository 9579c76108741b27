//! Limits that filters of the listener set: rate limits, and limits on requests in flight that follow their latency.
//!
//! The state of a limit lives on while its policy there is equal. Refuses to know how a refusal is answered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use mesh_core::limit::{Gradient, RateLimit, RateLimited};
use mesh_core::matcher::{each_chain, place_within};
use mesh_core::policy::{
    AdaptiveConcurrency, Composite, Guards, HttpFilter, HttpFilterKind, InboundListener, MatcherTree, PerMillion,
};

use super::ask::grpc_status_of;
use super::callers::{Caller, Callers};
use super::composite::ChainId;
use super::routes::Place;

/// The limits of one scope, kept as long as the listener's configuration stays.
pub(crate) struct Limits {
    scope: Scope,
    current: ArcSwapOption<Ready>,
    // Whether there is one: asked where there are no filters.
    ready: AtomicBool,
    // Whether something of the listener is each connection's own: asked once for all of them.
    of_connections: AtomicBool,
}

/// Whose requests share a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of all connections.
    Server,
    /// Those of one connection (`local_rate_limit_per_downstream_connection`).
    Connection,
}

/// When in a request's way a limit is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before its tokens are verified and policies asked.
    First,
    /// When it may pass.
    Last,
}

/// The limits of a listener.
struct Ready {
    listener: Arc<InboundListener>,
    /// Each of them once, whoever it is for.
    all: HashMap<HttpFilter, Limit>,
    /// Of what has no route.
    whole: Stages,
    /// Of each route.
    each: Box<[Stages]>,
    /// Of each chain that a composite filter may choose, if it has any.
    chains: HashMap<ChainId, Box<[Limit]>>,
}

/// Those of one place.
#[derive(Default)]
struct Stages {
    first: Box<[Limit]>,
    last: Box<[Limit]>,
}

#[derive(Clone)]
enum Limit {
    Rate(Arc<RateLimit>),
    Callers(Arc<Callers>),
    Concurrency(Arc<Concurrency>),
}

/// Where a request stands, and how far it is.
pub(super) type At<'a> = (Option<&'a Arc<InboundListener>>, Place, Stage);

/// A limit that follows latency.
pub(crate) struct Concurrency {
    gradient: Gradient,
    status: StatusCode,
}

/// What a request that passed a limit has of it until its end.
pub(crate) enum Ticket {
    Latency(Owed),
    /// A rate limit that says in the answer what is left.
    Quota(Arc<RateLimit>),
}

/// What a request owes a limit that follows latency: word of its end. Dropped without one, it was given up.
pub(crate) struct Owed {
    to: Arc<Concurrency>,
    began: Instant,
    settled: bool,
}

/// A request that has to go, and how it is answered.
pub(super) struct Limited {
    pub(super) answer: RateLimited,
    /// Envoy's words: for the caller, and for the access log its flag and its details.
    pub(super) text: &'static str,
    pub(super) flag: &'static str,
    pub(super) details: &'static str,
}

impl Limits {
    pub(crate) fn new(scope: Scope) -> Self {
        let [ready, of_connections] = [false; 2].map(AtomicBool::new);
        Self { scope, current: ArcSwapOption::empty(), ready, of_connections }
    }

    /// Whether the listener that was asked for last has limits of connections.
    pub(super) fn are_of_connections(&self) -> bool {
        self.of_connections.load(Ordering::Relaxed)
    }

    /// Lets a request pass, with a ticket of each limit that wants to know its end or has to say something in its
    /// answer. Costs nothing where there are no filters.
    pub(super) fn pass(
        &self,
        (listener, place, stage): At<'_>,
        headers: &mut HeaderMap,
        caller: Caller<'_>,
        share: PerMillion,
        tickets: &mut Vec<Ticket>,
    ) -> Result<(), Box<Limited>> {
        let limits = |listener: &&Arc<InboundListener>| {
            !listener.filters.is_empty() || !listener.before.is_empty() || !listener.routes.are_all()
        };
        let Some(listener) = listener.filter(limits) else {
            if self.ready.load(Ordering::Relaxed) {
                self.forget();
            }
            return Ok(());
        };
        match &*self.current.load() {
            Some(ready) if Arc::ptr_eq(&ready.listener, listener) => {
                ready.pass((place, stage), headers, caller, share, tickets)
            }
            _ => self.make(listener).pass((place, stage), headers, caller, share, tickets),
        }
    }

    // Of two requests that do this at once the second takes what the first has made: nobody gets a second bucket.
    #[cold]
    fn make(&self, listener: &Arc<InboundListener>) -> Arc<Ready> {
        if self.scope == Scope::Server {
            self.of_connections.store(has_of_connections(listener), Ordering::Relaxed);
        }
        let of_this = |ready: &&Arc<Ready>| Arc::ptr_eq(&ready.listener, listener);
        let mut made = None;
        self.current.rcu(|before| {
            let known = before.as_ref().filter(of_this).cloned();
            made = known.or_else(|| Some(Arc::new(Ready::new(listener, before.as_deref(), self.scope))));
            made.clone()
        });
        self.ready.store(true, Ordering::Relaxed);
        made.expect("it was made or known")
    }

    #[cold]
    fn forget(&self) {
        self.ready.store(false, Ordering::Relaxed);
        self.of_connections.store(false, Ordering::Relaxed);
        self.current.store(None);
    }
}

fn has_of_connections(listener: &InboundListener) -> bool {
    let is = |filter: &HttpFilter| filter.kind.has(&|kind| Limit::is_of(kind, Scope::Connection));
    let guards = listener.routes.iter().filter_map(|route| route.serves.as_deref());
    let mut of_routes = guards.flat_map(|guards| guards.before.iter().chain(&guards.filters));
    listener.before.iter().chain(&listener.filters).any(is) || of_routes.any(is)
}

impl Ready {
    fn new(listener: &Arc<InboundListener>, before: Option<&Self>, scope: Scope) -> Self {
        let before = before.map(|before| &before.all);
        let mut maker = Maker { before, scope, now: Instant::now(), all: HashMap::new(), chains: HashMap::new() };
        let mut stages =
            |first: &[HttpFilter], last: &[HttpFilter]| Stages { first: maker.list(first), last: maker.list(last) };
        let whole = stages(&listener.before, &listener.filters);
        // Most listeners have none of a connection's, and there are many connections: a table of routes is for those that have.
        let guards = || listener.routes.iter().map(|route| route.serves.as_ref());
        let limits = |guards: &Arc<Guards>| {
            guards.before.iter().chain(&guards.filters).any(|filter| Limit::is_of(&filter.kind, scope))
        };
        let each = if guards().flatten().any(limits) {
            guards()
                .map(|guards| guards.map(|guards| stages(&guards.before, &guards.filters)).unwrap_or_default())
                .collect()
        } else {
            Box::default()
        };
        // Those alone that have something of this scope; many routes have the same ones.
        let of_listener = listener.before.iter().chain(&listener.filters);
        let of_routes = guards().flatten().flat_map(|guards| guards.before.iter().chain(&guards.filters));
        let mut seen = HashSet::new();
        for filter in of_listener.chain(of_routes) {
            if let HttpFilterKind::Composite(Composite { matcher: Some(tree) }) = &filter.kind
                && seen.insert(Arc::as_ptr(tree))
                && filter.kind.has(&|kind| Limit::is_of(kind, scope))
            {
                maker.chains_of(tree, place_within(0, &filter.name), &mut HashMap::new());
            }
        }
        let Maker { all, chains, .. } = maker;
        Self { listener: listener.clone(), each, whole, all, chains }
    }

    fn pass<'r>(
        &'r self,
        (place, stage): (Place, Stage),
        headers: &mut HeaderMap,
        caller: Caller<'_>,
        share: PerMillion,
        tickets: &mut Vec<Ticket>,
    ) -> Result<(), Box<Limited>> {
        let of = |stages: &'r Stages| match stage {
            Stage::First => &stages.first,
            Stage::Last => &stages.last,
        };
        let limits = match place {
            Place::Whole => of(&self.whole),
            Place::Route(_) if self.each.is_empty() => return Ok(()),
            // The positions are those of the listener, which is this one.
            Place::Route(at) => of(&self.each[at]),
            Place::Chain(id) => match self.chains.get(&id) {
                Some(limits) => limits,
                None => return Ok(()),
            },
        };
        for limit in limits {
            match limit {
                Limit::Rate(rate) => {
                    rate.pass(headers, Instant::now(), || fastrand::u32(..1_000_000)).map_err(rate_limited)?;
                    if rate.tells() {
                        tickets.push(Ticket::Quota(rate.clone()));
                    }
                }
                Limit::Callers(callers) => {
                    if !callers.take(caller, Instant::now()) {
                        return Err(rate_limited(RateLimited {
                            status: StatusCode::TOO_MANY_REQUESTS,
                            grpc_status: RESOURCE_EXHAUSTED,
                            headers: HeaderMap::new(),
                        }));
                    }
                }
                Limit::Concurrency(concurrency) => tickets.push(concurrency.pass(share)?),
            }
        }
        Ok(())
    }
}

/// Makes the limits of a listener, each once.
struct Maker<'b> {
    before: Option<&'b HashMap<HttpFilter, Limit>>,
    scope: Scope,
    now: Instant,
    all: HashMap<HttpFilter, Limit>,
    chains: HashMap<ChainId, Box<[Limit]>>,
}

impl Maker<'_> {
    fn list(&mut self, filters: &[HttpFilter]) -> Box<[Limit]> {
        filters.iter().filter_map(|filter| self.limit(filter)).collect()
    }

    fn limit(&mut self, filter: &HttpFilter) -> Option<Limit> {
        if let Some(limit) = self.all.get(filter) {
            return Some(limit.clone());
        }
        let limit = self.before.and_then(|before| before.get(filter).cloned());
        let limit = limit.or_else(|| Limit::new(&filter.kind, self.scope, self.now))?;
        self.all.insert(filter.clone(), limit.clone());
        Some(limit)
    }

    /// Those of the chains of a composite filter. `met` says how often a limit was met in one place: two chains with equal ones
    /// have one each.
    fn chains_of(&mut self, tree: &MatcherTree, place: u64, met: &mut HashMap<(u64, HttpFilterKind), usize>) {
        let mut chains = Vec::new();
        each_chain(tree, place, &mut |place, chain| chains.push((place, chain)));
        for (place, chain) in chains {
            let mut limits = Vec::new();
            for filter in &chain.filters {
                let place = place_within(place, &filter.name);
                if let HttpFilterKind::Composite(Composite { matcher: Some(inner) }) = &filter.kind {
                    self.chains_of(inner, place, met);
                } else if Limit::is_of(&filter.kind, self.scope) {
                    let number = met.entry((place, filter.kind.clone())).or_default();
                    *number += 1;
                    // No filter of a listener has such a name.
                    let name = format!("{}\0{place:x}\0{number}", filter.name);
                    limits.extend(self.limit(&HttpFilter { name, kind: filter.kind.clone() }));
                }
            }
            if !limits.is_empty() {
                self.chains.insert(ChainId::of(chain), limits.into());
            }
        }
    }
}

impl Limit {
    /// Whether it may limit something in this scope.
    fn is_of(kind: &HttpFilterKind, scope: Scope) -> bool {
        match kind {
            HttpFilterKind::RateLimit(policy) => policy.per_connection == (scope == Scope::Connection),
            HttpFilterKind::CallerRateLimit(_) | HttpFilterKind::AdaptiveConcurrency(_) => scope == Scope::Server,
            _ => false,
        }
    }

    /// `None` for what limits nothing, and for what belongs to the other scope.
    fn new(kind: &HttpFilterKind, scope: Scope, now: Instant) -> Option<Self> {
        match kind {
            _ if !Self::is_of(kind, scope) => None,
            HttpFilterKind::RateLimit(policy) => Some(Self::Rate(Arc::new(RateLimit::new(policy, now)?))),
            HttpFilterKind::CallerRateLimit(policy) => Some(Self::Callers(Arc::new(Callers::new(policy, now)))),
            HttpFilterKind::AdaptiveConcurrency(policy) => {
                Some(Self::Concurrency(Arc::new(Concurrency::new(policy.as_ref()?, now))))
            }
            _ => None,
        }
    }
}

/// Of gRPC.
const RESOURCE_EXHAUSTED: i32 = 8;

#[cold]
fn rate_limited(answer: RateLimited) -> Box<Limited> {
    Box::new(Limited { answer, text: "local_rate_limited", flag: "RL", details: "local_rate_limited" })
}

impl Concurrency {
    pub(crate) fn new(policy: &AdaptiveConcurrency, now: Instant) -> Self {
        let status = StatusCode::from_u16(policy.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self { gradient: Gradient::new(policy.clone(), now), status }
    }

    pub(super) fn pass(self: &Arc<Self>, share: PerMillion) -> Result<Ticket, Box<Limited>> {
        let now = Instant::now();
        if !self.gradient.try_begin_within(share, now) {
            let answer = RateLimited {
                status: self.status,
                grpc_status: grpc_status_of(self.status),
                headers: HeaderMap::new(),
            };
            let (text, details) = ("reached concurrency limit", "reached_concurrency_limit");
            return Err(Box::new(Limited { answer, text, flag: "-", details }));
        }
        Ok(Ticket::Latency(Owed { to: self.clone(), began: now, settled: false }))
    }
}

impl Ticket {
    /// Writes into the head of the answer what it is to say.
    pub(super) fn head(&self, headers: &mut HeaderMap) {
        if let Self::Quota(limit) = self {
            limit.tell(headers, Instant::now());
        }
    }

    /// The answer has ended.
    pub(super) fn finish(self) {
        if let Self::Latency(mut owed) = self {
            owed.settled = true;
            owed.to.gradient.finish(owed.began, Instant::now(), |below| fastrand::u64(..below));
        }
    }

    /// Whether it tells the caller something, of a refusal too.
    pub(super) fn tells(&self) -> bool {
        matches!(self, Self::Quota(_))
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        // How long it would have taken nobody knows.
        if !self.settled {
            self.to.gradient.cancel();
        }
    }
}
