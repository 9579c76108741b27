//! The composite filter of a client (gRFC A103): which filters a request passes is decided by its headers.
//!
//! ```text
//! policy ─▶ conditions, once for each tree ─▶ chains, once for each place whose limits are its own
//! request as it came ─▶ what it passes, before anything of it is rewritten
//! ```
//!
//! Chains are made ready with the router, whichever a request will choose; their limits live on while their policy and
//! what leads to them are equal, as those of other filters do. Refuses to know how filters are passed.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::matcher::{MatchTree, RequestView, each_chain, place_within};
use mesh_core::policy::{self, ExecuteFilters, HttpFilterKind, MatcherTree, PerMillion, StatefulSession};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::fault::Faults;
use super::filters::{Compiler, Filter, Place, Policy};
use crate::env::Env;
use crate::error::Cause;
use crate::explain::FilterExplanation;

/// A composite filter, compiled.
pub(crate) struct Composite {
    conditions: Arc<Conditions>,
    /// By number.
    chains: Box<[Chain]>,
    /// Tells its draw from those of others.
    place: u64,
    /// What a request passes for which nothing is found.
    nothing: Filter,
}

/// What decides, and what is to be known of all that it may decide for: the same wherever the policy is.
struct Conditions {
    /// The chains' numbers; `None` = no filter.
    tree: MatchTree<Option<usize>>,
    has_limits: bool,
    follows_latency: bool,
    has_sessions: bool,
}

struct Chain {
    share: PerMillion,
    filters: Box<[Filter]>,
}

/// It fails the requests that get to it.
pub(crate) struct Failing {
    filter: Arc<str>,
    reason: &'static str,
}

/// What was compiled and is used again. What it is found by lives as long as the compiler.
#[derive(Default)]
pub(crate) struct Composites {
    conditions: HashMap<*const MatcherTree, Arc<Conditions>>,
    /// By name, and by what differs where one is: the place if it has limits, and the cluster if they follow its latency.
    made: HashMap<(*const MatcherTree, String, Place, Option<ClusterName>), Arc<Composite>>,
}

/// How often a limit was met in one composite: two chains of one place with equal ones have one each.
type Met = HashMap<(u64, Policy), usize>;

/// What a composite's parts have in common.
#[derive(Clone, Copy)]
struct Whole<'c> {
    name: &'c str,
    place: &'c Place,
    cluster: Option<&'c ClusterName>,
}

/// The draws of one request for the shares that composites have: one for each of them (gRFC A103), the same whenever it is
/// asked for. Nothing is drawn for who asks for none.
pub(crate) struct Draws<'e> {
    env: &'e Env,
    seed: OnceCell<u64>,
}

impl<'e> Draws<'e> {
    pub(crate) fn new(env: &'e Env) -> Self {
        Self { env, seed: OnceCell::new() }
    }

    fn of(&self, place: u64) -> u32 {
        million(*self.seed.get_or_init(|| self.env.id()), place)
    }
}

/// A number below a million; those of two places have nothing to do with each other (the finalizer of splitmix64).
fn million(seed: u64, place: u64) -> u32 {
    let mixed = (seed ^ place).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let whole = u128::from(PerMillion::ALL.get());
    ((u128::from(mixed ^ mixed >> 31) * whole) >> 64) as u32
}

/// Filters that one request passes, one list after another.
pub(super) type Passed<'f> = SmallVec<[&'f [Filter]; 2]>;

/// What a request passes of these filters: composites among them stand for what they find for it.
pub(super) fn passed<'f, 'q>(
    filters: &'f [Filter],
    request: impl FnOnce() -> RequestView<'q>,
    draws: &Draws<'_>,
) -> Passed<'f> {
    let mut passed = Passed::new();
    if filters.iter().any(|filter| matches!(filter, Filter::Composite(_))) {
        add(filters, &request(), draws, &mut passed);
    } else if !filters.is_empty() {
        passed.push(filters);
    }
    passed
}

fn add<'f>(filters: &'f [Filter], request: &RequestView<'_>, draws: &Draws<'_>, passed: &mut Passed<'f>) {
    let mut begun = 0;
    for (at, filter) in filters.iter().enumerate() {
        if let Filter::Composite(composite) = filter {
            passed.extend(Some(&filters[begun..at]).filter(|list| !list.is_empty()));
            add(composite.choose(request, draws), request, draws, passed);
            begun = at + 1;
        }
    }
    passed.extend(Some(&filters[begun..]).filter(|list| !list.is_empty()));
}

impl Compiler<'_> {
    /// The composite `name` of a place; `None` = it does nothing.
    pub(super) fn composite(
        &mut self,
        policy: &policy::Composite,
        name: &str,
        place: Place,
        cluster: Option<&ClusterName>,
    ) -> Option<Arc<Composite>> {
        let matcher = policy.matcher.as_ref()?;
        let conditions = self.conditions(matcher);
        let place = place.filter(|_| conditions.has_limits);
        let cluster = cluster.filter(|_| conditions.follows_latency);
        let key = (Arc::as_ptr(matcher), name.to_owned(), place, cluster.cloned());
        if let Some(made) = self.composites.made.get(&key) {
            return Some(made.clone());
        }
        let whole = Whole { name, place: &key.2, cluster };
        let made = self.composite_of(matcher, place_within(0, &name), whole, &mut Met::new());
        self.composites.made.insert(key, made.clone());
        Some(made)
    }

    /// Whether a limit that follows latency is in one.
    pub(crate) fn follows_latency(&mut self, policy: &policy::Composite) -> bool {
        policy.matcher.as_ref().is_some_and(|matcher| self.conditions(matcher).follows_latency)
    }

    /// Walks each tree once, however many places it is in.
    fn conditions(&mut self, matcher: &Arc<MatcherTree>) -> Arc<Conditions> {
        let make = || {
            let mut chains = 0;
            let mut number = |chain: Option<&ExecuteFilters>| {
                chain?;
                chains += 1;
                Some(chains - 1)
            };
            let tree = MatchTree::new(matcher, &mut number);
            let policy = policy::Composite { matcher: Some(matcher.clone()) };
            let follows_latency = policy.has(&|kind| matches!(kind, HttpFilterKind::AdaptiveConcurrency(_)));
            let limits = |kind: &HttpFilterKind| {
                matches!(kind, HttpFilterKind::RateLimit(_) | HttpFilterKind::AdmissionControl(_))
            };
            let has_limits = follows_latency || policy.has(&limits);
            let has_sessions = policy.has(&|kind| matches!(kind, HttpFilterKind::Session(Some(_))));
            Arc::new(Conditions { tree, has_limits, follows_latency, has_sessions })
        };
        self.composites.conditions.entry(Arc::as_ptr(matcher)).or_insert_with(make).clone()
    }

    fn composite_of(
        &mut self,
        matcher: &Arc<MatcherTree>,
        place: u64,
        whole: Whole<'_>,
        met: &mut Met,
    ) -> Arc<Composite> {
        let failing = |reason| Filter::Failing(Failing { filter: whole.name.into(), reason });
        let mut chains = Vec::new();
        each_chain(matcher, place, &mut |place, chain: &Arc<ExecuteFilters>| {
            let ExecuteFilters { filters, share, .. } = &**chain;
            let filters = if chain.are_a_servers() || !filters.iter().all(|filter| is_a_clients(&filter.kind)) {
                [failing(OF_SERVERS)].into()
            } else {
                let part = |filter: &policy::HttpFilter| {
                    self.part(&filter.kind, place_within(place, &filter.name), whole, met)
                };
                filters.iter().filter_map(part).collect()
            };
            chains.push(Chain { share: *share, filters });
        });
        let (conditions, chains) = (self.conditions(matcher), chains.into());
        Arc::new(Composite { conditions, chains, place, nothing: failing(NOTHING) })
    }

    /// A filter of a composite.
    fn part(&mut self, kind: &HttpFilterKind, place: u64, whole: Whole<'_>, met: &mut Met) -> Option<Filter> {
        let policy = match kind {
            HttpFilterKind::Fault(fault) => return Some(Filter::Fault(Faults::new(fault.as_ref()?))),
            HttpFilterKind::Session(session) => return session.clone().map(Filter::Session),
            HttpFilterKind::Composite(inner) => {
                let inner = self.composite_of(inner.matcher.as_ref()?, place, whole, met);
                return Some(Filter::Composite(inner));
            }
            HttpFilterKind::RateLimit(policy) => Policy::RateLimit(policy.clone()),
            HttpFilterKind::AdmissionControl(policy) => Policy::Throttle(policy.clone()?),
            HttpFilterKind::AdaptiveConcurrency(policy) => Policy::Concurrency(policy.clone()?, whole.cluster.cloned()),
            _ => return None,
        };
        let number = met.entry((place, policy.clone())).or_default();
        *number += 1;
        // No other filter has this name.
        self.limit(whole.place.clone(), &format!("{}\0{place:x}\0{number}", whole.name), policy)
    }
}

/// Whether a client knows what to do with it.
fn is_a_clients(kind: &HttpFilterKind) -> bool {
    matches!(
        kind,
        HttpFilterKind::Fault(_)
            | HttpFilterKind::RateLimit(_)
            | HttpFilterKind::AdmissionControl(_)
            | HttpFilterKind::AdaptiveConcurrency(_)
            | HttpFilterKind::Session(_)
            | HttpFilterKind::Composite(_)
    )
}

impl Composite {
    /// The filters that a request passes here; none if it is to pass none, or is not one of the share that does.
    fn choose(&self, request: &RequestView<'_>, draws: &Draws<'_>) -> &[Filter] {
        match self.find(request) {
            Some(Some(Chain { share, filters })) if *share == PerMillion::ALL || share.hit(draws.of(self.place)) => {
                filters
            }
            Some(_) => &[],
            None => std::slice::from_ref(&self.nothing),
        }
    }

    fn find(&self, request: &RequestView<'_>) -> Option<Option<&Chain>> {
        let found = self.conditions.tree.find(request)?;
        Some(found.map(|number| &self.chains[number]))
    }

    pub(super) fn has_sessions(&self) -> bool {
        self.conditions.has_sessions
    }

    /// The session affinity that it finds for a request.
    pub(super) fn session(&self, request: &RequestView<'_>, draws: &Draws<'_>) -> Option<&StatefulSession> {
        if !self.has_sessions() {
            return None;
        }
        self.choose(request, draws).iter().find_map(|filter| match filter {
            Filter::Session(session) => Some(session),
            Filter::Composite(inner) => inner.session(request, draws),
            _ => None,
        })
    }

    /// What it would do to a request to `cluster`, without doing it. `came` is the request before it was rewritten.
    pub(super) fn explain(&self, came: &RequestView<'_>, cluster: &ClusterName, now: Instant) -> FilterExplanation {
        let Chain { share, filters } = match self.find(came) {
            None => return FilterExplanation::Composite { share: PerMillion::NONE, filters: None },
            Some(None) => return FilterExplanation::Composite { share: PerMillion::NONE, filters: Some(Vec::new()) },
            Some(Some(chain)) => chain,
        };
        let known = !matches!(&**filters, [Filter::Failing(_)]);
        let each = || filters.iter().filter_map(|filter| filter.explain(came, cluster, now)).collect();
        FilterExplanation::Composite { share: *share, filters: known.then(each) }
    }

    /// Why it would surely fail a request.
    pub(super) fn fails(&self, came: &RequestView<'_>) -> Option<Cause> {
        match self.find(came) {
            None => self.nothing.fails(came),
            Some(Some(chain)) if chain.share == PerMillion::ALL => {
                chain.filters.iter().find_map(|filter| filter.fails(came))
            }
            Some(_) => None,
        }
    }
}

impl Failing {
    #[cold]
    pub(crate) fn cause(&self) -> Cause {
        Cause::NoFilters { filter: self.filter.clone(), reason: self.reason }
    }
}

const NOTHING: &str = "its matcher finds nothing for the request, and has no word for that";
const OF_SERVERS: &str = "the filters that it finds for the request are a server's";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use mesh_core::policy::{
        Fault, FilterOverride, HttpFilter, LocalRateLimit, MatcherRule, OnMatch, RouteMatch, SessionSource,
    };

    use super::super::affinity::{Affinity, Step};
    use super::super::filters::{Limits, RoutePlace};
    use super::*;

    fn compiler() -> Compiler<'static> {
        let (limits, composites, shared) = (Limits::default(), Composites::default(), HashMap::new());
        Compiler { before: None, limits, now: Instant::now(), composites, shared }
    }

    fn always(kinds: Vec<HttpFilterKind>) -> policy::Composite {
        let filters = kinds.into_iter().map(|kind| HttpFilter { name: "f".into(), kind }).collect();
        let end = OnMatch::Execute(Arc::new(ExecuteFilters::all(filters)));
        policy::Composite::of(MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(end) })
    }

    fn session() -> HttpFilterKind {
        let source = SessionSource::Header(http::HeaderName::from_static("x-session"));
        HttpFilterKind::Session(Some(StatefulSession { source, strict: false }))
    }

    /// What many routes make of one override, and their entries.
    fn compiled(compiler: &mut Compiler<'_>, own: &policy::Composite) -> Vec<Arc<Composite>> {
        let listener = HttpFilter { name: "c".into(), kind: HttpFilterKind::Composite(always(Vec::new())) };
        let own = FilterOverride::Composite(own.clone());
        let mut all = Vec::new();
        for host in 0..50 {
            for entry in [None, Some("one"), Some("two")].map(|entry| entry.map(ClusterName::new)) {
                let cluster = entry.clone();
                let place = RoutePlace { host: host.to_string(), matcher: RouteMatch::any(), entry };
                let overridden = |_: &str| Some((&own, Some(place.clone())));
                let filters = std::slice::from_ref(&listener);
                let made = compiler.compile(filters, cluster.as_ref(), overridden);
                let [Filter::Composite(made)] = &*made else { panic!("a composite") };
                // Its sessions are looked for in the same.
                match Affinity::new(filters, cluster.as_ref(), overridden, compiler) {
                    Affinity::Each(steps) => {
                        let [Step::Composite(step)] = &*steps else { panic!("one step") };
                        assert!(Arc::ptr_eq(step, made));
                    }
                    Affinity::All(session) => assert!(session.is_none() && !made.has_sessions()),
                }
                all.push(made.clone());
            }
        }
        all
    }

    fn distinct<T>(all: &[Arc<Composite>], part: impl Fn(&Arc<Composite>) -> *const T) -> usize {
        all.iter().map(part).collect::<HashSet<_>>().len()
    }

    #[tokio::test]
    async fn a_tree_is_compiled_once_however_many_places_it_is_in() {
        let fault = || HttpFilterKind::Fault(Some(Fault::default()));
        let limit = || {
            HttpFilterKind::RateLimit(LocalRateLimit {
                bucket: None,
                enabled: PerMillion::ALL,
                enforced: PerMillion::ALL,
                status: 429,
                resource_exhausted: false,
                response_headers: Vec::new(),
                request_headers: Vec::new(),
                per_connection: false,
                quota_headers: false,
                retry_after: false,
            })
        };
        let latency = || HttpFilterKind::AdaptiveConcurrency(Some(policy::AdaptiveConcurrency::default()));
        // Limits are each place's own; the conditions are not.
        for (kinds, want) in [
            (vec![fault(), session()], 1),
            (vec![HttpFilterKind::Composite(always(vec![fault()]))], 1),
            (vec![session(), limit()], 150),
            (vec![HttpFilterKind::Composite(always(vec![latency()]))], 150),
        ] {
            let (mut compiler, own) = (compiler(), always(kinds));
            let all = compiled(&mut compiler, &own);
            assert_eq!((all.len(), distinct(&all, Arc::as_ptr)), (150, want));
            assert_eq!(distinct(&all, |composite| Arc::as_ptr(&composite.conditions)), 1);
            assert!(compiler.composites.conditions.len() <= 2);
        }
    }

    #[test]
    fn draws_of_two_places_have_nothing_to_do_with_each_other() {
        let half = |place: u64| move |seed: u64| million(seed, place) < 500_000;
        let (one, other) = (half(place_within(0, &"one")), half(place_within(0, &"other")));
        // As seeds that are as alike as can be.
        let both = |a: bool, b: bool| (0..10_000).filter(|seed| one(*seed) == a && other(*seed) == b).count();
        for (a, b) in [(true, true), (true, false), (false, true), (false, false)] {
            assert!((2_300..2_700).contains(&both(a, b)), "{a} {b}: {}", both(a, b));
        }
        let ends = [0, 1, u64::MAX, u64::MAX - 1].map(|seed| million(seed, 0));
        assert!(ends.iter().all(|drawn| *drawn < 1_000_000), "{ends:?}");
    }
}
