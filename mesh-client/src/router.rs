//! One destination's snapshot made ready for requests: the compiled route table, and beside each route
//! what it needs at run time, with its clusters resolved. Built when the snapshot changes, never per
//! request.

mod part;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use mesh_core::balance::hash::{HashInput, HashRules, of_source};
use mesh_core::balance::merged;
use mesh_core::balance::session::{self, Pinned};
use mesh_core::id::{ClusterName, Target};
use mesh_core::matcher::{CompiledRoute, CorsRules, HeaderCondition, RequestView, RouteTable};
use mesh_core::policy::{
    ClusterChoice, ClusterState, Discovery, Endpoints, FilterOverride, FilterOverrides, Forward, HttpFilter,
    HttpFilterKind, ResponseClass, RetryPolicy, RouteAction, Snapshot, StatefulSession, TcpForward, TcpShare,
    WeightedCluster, WeightedClusters,
};
use mesh_core::retry::{Backoff, Budget, FailureKind, RetryRules, RetryTokens, TryOutcome, is_failure};
use mesh_core::telemetry::{Outcome, RouteSeries};
use tokio::time::Instant;

pub(crate) use self::part::Part;
use crate::cluster::{Backend, Cluster, Labels};
use crate::connect::Rest;
use crate::connect::worker::Drain;
use crate::env::{self, Env};
use crate::error::Cause;
use crate::outbound::affinity::Affinity;
use crate::outbound::composite::{Composites, Draws};
use crate::outbound::deadline::Told;
use crate::outbound::filters::{Compiler, Filter, Limits, Place, RoutePlace, Throttling};
use crate::outbound::header_policies;

/// Levels of an aggregate's tree, its leaves included (gRFC A37).
const MAX_DEPTH: usize = 16;

/// What is under way at clusters that are gone.
pub(crate) type Left = BTreeMap<ClusterName, Vec<Rest>>;

/// A destination ready to route requests.
pub(crate) struct Router {
    snapshot: Arc<Snapshot>,
    wiring: Arc<Wiring>,
}

/// What a change of endpoints leaves as it is.
struct Wiring {
    table: RouteTable,
    // By `CompiledRoute::id`.
    plans: Box<[Plan]>,
    clusters: BTreeMap<ClusterName, Slot>,
    // In the order of the listener's clusters for raw connections; empty if it says nothing of those.
    tcp: Box<[Slot]>,
    budget: Option<Arc<Budget>>,
    tokens: Option<Arc<RetryTokens>>,
    throttling: Option<Arc<Throttling>>,
    // Kept for the next router.
    limits: Limits,
}

/// Where a raw connection goes.
pub(crate) struct Raw<'r> {
    pub(crate) part: Part<'r>,
    /// What it is kept together by with others, for balancers that hash.
    pub(crate) hash: Option<u64>,
    /// Endpoints to try.
    pub(crate) attempts: u32,
    /// How long it may be silent.
    pub(crate) idle: Option<Duration>,
}

/// A cluster as routes find it.
#[derive(Clone)]
pub(crate) enum Slot {
    /// Usable.
    Ready(Backend),
    /// The leaves of an aggregate's tree in order, none of them an aggregate: the first serves as far as it can, and the
    /// next ones what is left.
    Aggregate(Arc<[Slot]>),
    /// Named by a route, and missing or refused.
    Failed(ClusterName, Arc<str>),
}

/// What one route needs at run time.
pub(crate) struct Plan {
    pub(crate) choice: Choice,
    pub(crate) filters: Arc<[Filter]>,
    /// Its requests have limits of their own (Envoy's routing priority).
    pub(crate) high_priority: bool,
    /// The route, its host or its table has header operations; entries of a weighted split have their own.
    pub(crate) changes_headers: bool,
    /// The route's timeout.
    pub(crate) told: Option<Told>,
    pub(crate) retry: Option<Retries>,
    pub(crate) hash: HashRules,
    pub(crate) session: Affinity,
    pub(crate) cors: Option<CorsRules>,
    /// Where copies go; in the order of the policy's entries.
    pub(crate) mirrors: Box<[Slot]>,
    /// Its own numbers, if policy asks for such.
    pub(crate) counted: Option<Arc<CountedRoute>>,
}

/// A route whose requests are counted on their own.
pub(crate) struct CountedRoute {
    series: Arc<RouteSeries>,
    classes: Box<[ResponseClass]>,
}

impl CountedRoute {
    fn of(route: &CompiledRoute, target: &Target, env: &Env) -> Option<Arc<Self>> {
        let route = route.route();
        let name = Some(route.stat_prefix.as_str()).filter(|name| !name.is_empty())?;
        let series = env.metrics.route(target.host_port(), name);
        Some(Arc::new(Self { series, classes: route.response_classes.as_slice().into() }))
    }

    /// Counts a request that has ended. What broke off, or got no answer, is a failure whatever its class.
    pub(crate) fn record(&self, outcome: &Outcome, complete: bool, duration: Duration) {
        // The application gave up before anybody answered: that says nothing of the route, as in Linkerd.
        let Ok(status) = StatusCode::from_u16(outcome.code) else { return };
        let failed = !complete || is_failure(&self.classes, status, outcome.grpc_status);
        self.series.record(!failed, duration);
    }
}

/// Where a route's requests go.
pub(crate) enum Choice {
    /// Nowhere: the route answers by itself.
    None,
    /// One cluster.
    One(Slot),
    /// Drawn by weight; in the order of the policy's entries.
    Weighted(Box<[Share]>),
    /// Named by a request header; all there are.
    Header(HeaderName, BTreeMap<ClusterName, (Slot, Arc<[Filter]>)>),
}

/// One entry of a weighted split.
pub(crate) struct Share {
    pub(crate) slot: Slot,
    filters: Arc<[Filter]>,
    session: Affinity,
}

/// What was drawn for one request.
pub(crate) struct Chosen<'r> {
    pub(crate) part: Part<'r>,
    /// The entry of a weighted split.
    pub(crate) share: Option<&'r WeightedCluster>,
    pub(crate) filters: &'r [Filter],
    pub(crate) session: Option<&'r StatefulSession>,
    /// What the request says of its session.
    pub(crate) pinned: Option<Pinned>,
}

/// A retry policy, compiled.
pub(crate) struct Retries {
    pub(crate) policy: RetryPolicy,
    pub(crate) rules: RetryRules,
    pub(crate) backoff: Backoff,
    // One must hold for a request to be retried; empty = all are.
    requests: Box<[HeaderCondition]>,
    hedges_on_timeout: bool,
    /// The time for one try.
    pub(crate) told: Option<Told>,
    /// gRPC statuses that are retried: one bit for each.
    pub(crate) statuses: u32,
}

impl Retries {
    fn new(policy: &RetryPolicy, route: &CompiledRoute) -> Self {
        let hedge = match &route.route().action {
            RouteAction::Forward(forward) => forward.hedge.as_ref(),
            _ => None,
        };
        let rules = RetryRules::new(&policy.on, &route.route().response_classes);
        Self {
            statuses: rules.grpc_statuses(),
            rules,
            backoff: Backoff::of(policy),
            requests: policy.request_headers.iter().map(HeaderCondition::new).collect(),
            hedges_on_timeout: hedge.is_some_and(|hedge| hedge.on_per_try_timeout),
            told: policy.per_try_timeout.and_then(Told::new),
            policy: policy.clone(),
        }
    }

    /// Whether the policy is about this request.
    pub(crate) fn concerns<'r>(&self, request: impl FnOnce() -> RequestView<'r>) -> bool {
        if self.requests.is_empty() {
            return true;
        }
        let request = request();
        self.requests.iter().any(|condition| condition.holds(&request))
    }

    /// Retries of one request. A gRPC call has five tries at most, whatever the policy says (gRFC A6, A44).
    pub(crate) fn attempts(&self, grpc: bool) -> u32 {
        const OF_A_CALL: u32 = 4;
        self.policy.attempts.min(if grpc { OF_A_CALL } else { u32::MAX })
    }

    /// Time for one try.
    pub(crate) fn per_try_timeout(&self) -> Option<Duration> {
        self.policy.per_try_timeout.filter(|timeout| !timeout.is_zero())
    }

    /// Longest silence of one try.
    pub(crate) fn per_try_idle(&self) -> Option<Duration> {
        self.policy.per_try_idle_timeout.filter(|timeout| !timeout.is_zero())
    }

    /// Whether a try goes on after its time, beside the next one.
    pub(crate) fn hedges_on_timeout(&self) -> bool {
        self.hedges_on_timeout
    }
}

impl Router {
    /// Makes `snapshot` ready. Clusters of `previous` whose policy is equal are taken over with their
    /// connections and counters, and get the new endpoints.
    pub(crate) fn build(target: &Target, snapshot: Arc<Snapshot>, previous: Option<&Self>, env: &Arc<Env>) -> Self {
        if let Some(old) = previous.filter(|old| differ_in_endpoints_only(&old.snapshot, &snapshot)) {
            let wiring = old.wiring.clone();
            for (name, endpoints) in moved(&old.snapshot, &snapshot) {
                if let Some(Slot::Ready(cluster)) = wiring.clusters.get(name) {
                    cluster.update(endpoints, env);
                }
            }
            return Self { snapshot, wiring };
        }
        let clusters = clusters(target, &snapshot, previous, env);
        let table = RouteTable::compile(&snapshot.routes, target.port(), &env.workload);
        let filters = &snapshot.listener.filters;
        let mut compiler = Compiler {
            before: previous.map(|old| &old.wiring.limits),
            limits: Limits::default(),
            now: Instant::now(),
            composites: Composites::default(),
            shared: HashMap::new(),
        };
        let plan = |route: &CompiledRoute| Plan {
            counted: CountedRoute::of(route, target, env),
            ..Plan::new(route, &clusters, filters, &mut compiler, env)
        };
        let plans = table.routes().iter().map(plan).collect();
        let limits = compiler.limits;
        let raw = snapshot.listener.tcp.iter().flat_map(|all| all.clusters().iter().map(move |share| (all, share)));
        let labels = |(all, share): (&TcpForward, &TcpShare)| merged(&all.metadata_match, &share.metadata_match);
        let tcp = raw.map(|raw| slot(&clusters, &raw.1.name, &labels(raw), env)).collect();
        let budget = snapshot.routes.retry_budget.as_ref().map(|policy| {
            let kept = previous.filter(|old| old.snapshot.routes.retry_budget.as_ref() == Some(policy));
            let kept = kept.and_then(|old| old.wiring.budget.clone());
            kept.unwrap_or_else(|| Arc::new(Budget::new(policy.clone(), Instant::now())))
        });
        // The destination's, whatever policy becomes of it. One that was gone and is back begins anew.
        let (tokens, throttling) = match previous {
            Some(old) => (old.wiring.tokens.clone(), old.wiring.throttling.clone()),
            None => {
                let env::Limits { retry_throttling, throttling, .. } = &env.limits;
                let tokens = retry_throttling.clone().map(|policy| Arc::new(RetryTokens::new(policy)));
                (tokens, throttling.map(|(k, window)| Arc::new(Throttling::sre(k, window, Instant::now()))))
            }
        };
        let wiring = Wiring { table, plans, clusters, tcp, budget, tokens, throttling, limits };
        Self { snapshot, wiring: Arc::new(wiring) }
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub(crate) fn table(&self) -> &RouteTable {
        &self.wiring.table
    }

    pub(crate) fn plan(&self, route: &CompiledRoute) -> &Plan {
        &self.wiring.plans[route.id()]
    }

    /// Every cluster with its name.
    pub(crate) fn clusters(&self) -> &BTreeMap<ClusterName, Slot> {
        &self.wiring.clusters
    }

    /// Linkerd's retry budget of the destination.
    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.wiring.budget.as_deref()
    }

    /// What the destination is spared of while it fails.
    pub(crate) fn throttling(&self) -> Option<&Arc<Throttling>> {
        self.wiring.throttling.as_ref()
    }

    /// gRPC's retry tokens of the destination.
    pub(crate) fn tokens(&self) -> Option<&Arc<RetryTokens>> {
        self.wiring.tokens.as_ref()
    }

    /// The cluster for one request, drawn by weight where there are several, unless the request is
    /// pinned to one of them (gRFC A60), and what comes with it. `path` is that of the request; all of it is looked at, as
    /// it came, where its headers decide about its session.
    pub(crate) fn choose<'r, 'q>(
        &'r self,
        plan: &'r Plan,
        forward: &'r Forward,
        (headers, path): (&http::HeaderMap, &str),
        request: impl Fn() -> RequestView<'q>,
        draws: &Draws<'_>,
        env: &Env,
    ) -> Result<Chosen<'r>, Cause> {
        let said = |policy: &StatefulSession| session::read(policy, headers, path);
        let session_of = |session: &'r Affinity| session.of(&request, draws);
        let plain = |part| {
            let session = session_of(&plan.session);
            Chosen { part, share: None, filters: &plan.filters, session, pinned: session.and_then(said) }
        };
        match &plan.choice {
            Choice::One(slot) => Ok(plain(slot.choose(env)?)),
            Choice::Weighted(shares) => {
                let ClusterChoice::Weighted(weighted) = &forward.to else {
                    unreachable!("a weighted plan comes from a weighted policy")
                };
                let pinned = pinned_share(weighted, shares, session_of, said);
                let (entry, share, pinned) = pinned.unwrap_or_else(|| {
                    let (entry, share) = draw_share(weighted, shares, env);
                    (entry, share, session_of(&share.session).and_then(said))
                });
                let (part, session) = (share.slot.choose(env)?, session_of(&share.session));
                Ok(Chosen { part, share: Some(entry), filters: &share.filters, session, pinned })
            }
            Choice::Header(name, slots) => {
                let wanted = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
                match slots.get(&ClusterName::new(wanted)) {
                    Some((slot, filters)) => Ok(Chosen { filters, ..plain(slot.choose(env)?) }),
                    None => Err(Cause::NoCluster {
                        cluster: wanted.into(),
                        reason: format!("named by header {name}, and this destination has no such cluster").into(),
                    }),
                }
            }
            Choice::None => Err(Cause::UnsupportedAction("the route does not forward")),
        }
    }

    /// The clusters that raw connections go to, with their weights; `None` = the listener has no routes for such.
    pub(crate) fn tcp(&self) -> Option<impl Iterator<Item = (&ClusterName, u32, &Slot)>> {
        let shares = self.snapshot.listener.tcp.as_ref()?.clusters().iter();
        Some(shares.zip(&self.wiring.tcp).map(|(share, slot)| (&share.name, share.weight.get(), slot)))
    }

    /// The cluster for one raw connection, drawn by weight where there are several, and what is to be known of it; `source` is
    /// that of [`HashInput`]. Where the listener says nothing of raw connections, what a `GET /` for `authority` would get.
    pub(crate) fn choose_tcp(&self, authority: &str, source: Option<IpAddr>, env: &Env) -> Result<Raw<'_>, Cause> {
        if let Some(forward) = &self.snapshot.listener.tcp {
            // Below the sum of the weights, which fits.
            let place = forward.pick(env.draw(u64::from(forward.total())) as u32);
            let (attempts, idle) = (forward.max_connect_attempts.get(), forward.idle_timeout);
            let hash = forward.by_source.then(|| of_source(source, env.channel_id));
            return Ok(Raw { part: self.wiring.tcp[place].choose(env)?, hash, attempts, idle });
        }
        let (headers, draw) = (http::HeaderMap::new(), || env.draw_million());
        let view = RequestView {
            authority,
            method: &Method::GET,
            path_and_query: "/",
            scheme: "http",
            headers: &headers,
            draw: &draw,
        };
        let route = self.table().route(&view).ok_or_else(|| Cause::NoRoute {
            method: Method::GET,
            authority: authority.to_owned(),
            path: "/".to_owned(),
        })?;
        let RouteAction::Forward(forward) = &route.route().action else {
            return Err(Cause::UnsupportedAction(
                "raw connections go where a GET of / goes, and its route answers by itself",
            ));
        };
        let plan = self.plan(route);
        let chosen = self.choose(plan, forward, (&headers, "/"), || view, &Draws::new(env), env)?;
        let unreached = TryOutcome::Failure(FailureKind::ConnectFailed);
        let retries = plan.retry.as_ref().filter(|retries| retries.rules.condition(&unreached, false).is_some());
        let attempts = retries.map_or(1, |retries| retries.policy.attempts.saturating_add(1));
        let input = HashInput { headers: &headers, query: "", source, channel_id: env.channel_id };
        let hash = plan.hash.hash(&input, &mut |below| env.draw(below)).hash;
        Ok(Raw { part: chosen.part, hash, attempts, idle: Some(TcpForward::IDLE_TIMEOUT) })
    }

    /// Lets go of the clusters that `next` has no use for; none = of all, for there is no such destination any more.
    /// Requests under way hold them, but not their idle connections, and they have `limit` for what discovery says is
    /// gone. That no route names a cluster does not say so: requests to it end in peace, as in Envoy and gRPC (A31). What is
    /// left of those that are gone is put to `left`.
    pub(crate) fn retire(&self, next: Option<&Self>, limit: Drain, left: &mut Left) {
        if next.is_some_and(|next| Arc::ptr_eq(&self.wiring, &next.wiring)) {
            return;
        }
        for (name, slot) in &self.wiring.clusters {
            let Slot::Ready(cluster) = slot else { continue };
            match next.map(|next| next.wiring.clusters.get(name)) {
                Some(Some(Slot::Ready(next))) if Arc::ptr_eq(cluster, next) => {}
                Some(Some(Slot::Ready(next))) => cluster.give_way(next, limit),
                Some(Some(Slot::Aggregate(_)) | None) => cluster.retire(),
                Some(Some(Slot::Failed(..))) | None => {
                    left.entry(name.clone()).or_default().extend(cluster.leave(limit));
                }
            }
        }
    }

    /// Clusters that were gone and are there again go on with what was `left` of them.
    pub(crate) fn return_to(&self, left: &mut Left, limit: Drain) {
        left.retain(|_, rests| {
            rests.retain(|rest| !rest.is_over());
            !rests.is_empty()
        });
        for (name, slot) in &self.wiring.clusters {
            if let Slot::Ready(cluster) = slot
                && let Some(rests) = left.remove(name)
            {
                cluster.return_to(rests, limit);
            }
        }
    }

    /// Begins anew on the caller's runtime what looks after endpoints: where it ran it has ended, or stands still.
    pub(crate) fn resume(&self, env: &Arc<Env>) {
        for slot in self.wiring.clusters.values() {
            if let Slot::Ready(cluster) = slot {
                cluster.resume(env);
            }
        }
    }

    /// Closes connections that were idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant, env: &Env) {
        for slot in self.wiring.clusters.values() {
            if let Slot::Ready(cluster) = slot {
                cluster.reap(now, env);
            }
        }
    }
}

impl Slot {
    /// The same for a route whose endpoints must have these labels.
    fn part(&self, wanted: &Labels, env: &Env) -> Self {
        match self {
            Self::Ready(backend) => Self::Ready(backend.part(wanted, env)),
            Self::Aggregate(parts) => Self::Aggregate(parts.iter().map(|slot| slot.part(wanted, env)).collect()),
            Self::Failed(..) => self.clone(),
        }
    }

    /// The cluster to use now.
    pub(crate) fn choose(&self, env: &Env) -> Result<Part<'_>, Cause> {
        match self {
            Self::Ready(cluster) => Ok(Part::only(cluster)),
            Self::Failed(cluster, reason) => Err(Cause::NoCluster { cluster: cluster.clone(), reason: reason.clone() }),
            Self::Aggregate(parts) => match Part::of(parts, env) {
                Some(part) => Ok(part),
                // None is there: the first says why.
                None => match parts.first() {
                    Some(first) => first.choose(env),
                    None => Err(Cause::NoCluster {
                        cluster: "".into(),
                        reason: "the aggregate cluster stands for no cluster".into(),
                    }),
                },
            },
        }
    }
}

impl Plan {
    fn new(
        route: &CompiledRoute,
        clusters: &BTreeMap<ClusterName, Slot>,
        filters: &[HttpFilter],
        compiler: &mut Compiler<'_>,
        env: &Env,
    ) -> Self {
        let slot = |name: &ClusterName, labels: &Labels| slot(clusters, name, labels, env);
        let own = &route.route().filters;
        let place = |entry: Option<&ClusterName>| {
            let (host, matcher) = (route.virtual_host().name.clone(), route.route().matcher.clone());
            Some(RoutePlace { host, matcher, entry: entry.cloned() })
        };
        let of_route = |name: &str| Some((&**own.get(name)?, place(None)));
        let only = match &route.route().action {
            RouteAction::Forward(forward) => match &forward.to {
                ClusterChoice::Cluster(name) => Some(name),
                _ => None,
            },
            _ => None,
        };
        let all = compiler.compile(filters, only, of_route);
        let per_cluster = follow_latency(filters, own, compiler);
        let session = Affinity::new(filters, only, of_route, compiler);
        let mut share = |slot, entry: &WeightedCluster| {
            let of_entry = |name: &str| Some((&**entry.filters.get(name)?, place(Some(&entry.name))));
            let own = |name: &str| in_entry(of_entry(name), || of_route(name));
            let filters_of_entry = match entry.filters.is_empty() && !per_cluster {
                true => all.clone(),
                false => compiler.compile(filters, Some(&entry.name), own),
            };
            let session = Affinity::new(filters, Some(&entry.name), own, compiler);
            Share { slot, filters: filters_of_entry, session }
        };
        let choice = match &route.route().action {
            RouteAction::Forward(forward) => match &forward.to {
                ClusterChoice::Cluster(name) => Choice::One(slot(name, &forward.metadata_match)),
                ClusterChoice::Weighted(weighted) => {
                    let labels = |entry: &WeightedCluster| merged(&forward.metadata_match, &entry.metadata_match);
                    let shares = weighted.entries().iter();
                    Choice::Weighted(shares.map(|entry| share(slot(&entry.name, &labels(entry)), entry)).collect())
                }
                ClusterChoice::Header(header) => {
                    let named = clusters.keys().map(|name| {
                        let own =
                            if per_cluster { compiler.compile(filters, Some(name), of_route) } else { all.clone() };
                        (name.clone(), (slot(name, &forward.metadata_match), own))
                    });
                    Choice::Header(header.clone(), named.collect())
                }
            },
            RouteAction::Redirect(_) | RouteAction::DirectResponse(_) | RouteAction::NonForwarding => Choice::None,
        };
        // Without attempts too: the time for one try counts for the only one.
        let retry = route.retry().map(|policy| Retries::new(policy, route));
        let (hash, cors, mirrors, told, high_priority) = match &route.route().action {
            RouteAction::Forward(forward) => {
                // Copies want nothing, as in Envoy.
                let mirrors = forward.mirrors.iter().map(|mirror| slot(&mirror.cluster, &Labels::new())).collect();
                let (cors, told) = (forward.cors.as_deref().map(CorsRules::new), forward.timeout.and_then(Told::new));
                (HashRules::new(&forward.hash), cors, mirrors, told, forward.high_priority)
            }
            _ => (HashRules::default(), None, Box::default(), None, false),
        };
        let changes_headers = header_policies(route, None).next().is_some();
        Self {
            choice,
            hash,
            filters: all,
            high_priority,
            changes_headers,
            told,
            retry,
            session,
            cors,
            mirrors,
            counted: None,
        }
    }
}

fn slot(clusters: &BTreeMap<ClusterName, Slot>, name: &ClusterName, labels: &Labels, env: &Env) -> Slot {
    match clusters.get(name) {
        Some(slot) => slot.part(labels, env),
        None => Slot::Failed(name.clone(), "the snapshot does not hold it".into()),
    }
}

/// The entry of a split that a request is pinned to, each asked in its own words: an entry may have another cookie than
/// the route, or be the only one with sessions.
fn pinned_share<'r>(
    weighted: &'r WeightedClusters,
    shares: &'r [Share],
    session_of: impl Fn(&'r Affinity) -> Option<&'r StatefulSession>,
    said: impl Fn(&StatefulSession) -> Option<Pinned>,
) -> Option<(&'r WeightedCluster, &'r Share, Option<Pinned>)> {
    // Most of the time all have the same policy: read once.
    let mut last: Option<(&StatefulSession, Option<Pinned>)> = None;
    for (entry, share) in weighted.entries().iter().zip(shares).filter(|(entry, _)| entry.weight > 0) {
        let Some(policy) = session_of(&share.session) else { continue };
        if last.as_ref().is_none_or(|(of, _)| *of != policy) {
            last = Some((policy, said(policy)));
        }
        if let Some((_, Some(Pinned { cluster: Some(cluster), .. }))) = &last
            && *cluster == entry.name
        {
            return last.map(|(_, pinned)| (entry, share, pinned));
        }
    }
    None
}

fn draw_share<'r>(weighted: &'r WeightedClusters, shares: &'r [Share], env: &Env) -> (&'r WeightedCluster, &'r Share) {
    let mut left = env.draw(u64::from(weighted.total()));
    for (entry, share) in weighted.entries().iter().zip(shares) {
        match left.checked_sub(u64::from(entry.weight)) {
            None => return (entry, share),
            Some(rest) => left = rest,
        }
    }
    unreachable!("the draw is below the sum of the weights")
}

/// How a filter differs in an entry of a split, and where that is said. That it is on there says nothing of how: it is as the
/// route has it, unless that has it off.
fn in_entry<'p>(
    of_entry: Option<(&'p FilterOverride, Place)>,
    of_route: impl FnOnce() -> Option<(&'p FilterOverride, Place)>,
) -> Option<(&'p FilterOverride, Place)> {
    match of_entry {
        Some(on @ (FilterOverride::Enabled, _)) => {
            of_route().filter(|(own, _)| !matches!(own, FilterOverride::Disabled)).or(Some(on))
        }
        None => of_route(),
        own => own,
    }
}

/// Whether a limit that follows latency, of which each cluster has its own, is among filters or what a route makes of them.
fn follow_latency(filters: &[HttpFilter], own: &FilterOverrides, compiler: &mut Compiler<'_>) -> bool {
    let is_one = |filter: &HttpFilter| match &filter.kind {
        HttpFilterKind::AdaptiveConcurrency(_) => true,
        HttpFilterKind::Composite(composite) => compiler.follows_latency(composite),
        _ => false,
    };
    filters.iter().any(is_one)
        || own.values().any(|own| matches!(&**own, FilterOverride::Composite(own) if compiler.follows_latency(own)))
}

/// Whether two snapshots are the same but for who serves their clusters. Compares no values: what did not change
/// is shared.
fn differ_in_endpoints_only(old: &Snapshot, new: &Snapshot) -> bool {
    let same = |((a, old), (b, new)): ((&ClusterName, &ClusterState), (&ClusterName, &ClusterState))| {
        let (ClusterState::Ready { cluster: old, .. }, ClusterState::Ready { cluster: new, .. }) = (old, new) else {
            return false;
        };
        a == b && Arc::ptr_eq(old, new)
    };
    Arc::ptr_eq(&old.listener, &new.listener)
        && Arc::ptr_eq(&old.routes, &new.routes)
        && old.clusters.len() == new.clusters.len()
        && old.clusters.iter().zip(new.clusters.iter()).all(same)
}

/// The clusters of two such snapshots that have other endpoints, with the new ones.
fn moved<'s>(old: &'s Snapshot, new: &'s Snapshot) -> impl Iterator<Item = (&'s ClusterName, &'s Arc<Endpoints>)> {
    old.clusters.values().zip(new.clusters.iter()).filter_map(|(old, (name, new))| match (old, new) {
        (ClusterState::Ready { endpoints: old, .. }, ClusterState::Ready { endpoints: new, .. }) => {
            (!Arc::ptr_eq(old, new)).then_some((name, new))
        }
        _ => None,
    })
}

fn clusters(
    target: &Target,
    snapshot: &Snapshot,
    previous: Option<&Router>,
    env: &Arc<Env>,
) -> BTreeMap<ClusterName, Slot> {
    let mut slots = BTreeMap::new();
    let mut aggregates: HashMap<&ClusterName, &[ClusterName]> = HashMap::new();
    for (name, state) in snapshot.clusters.iter() {
        let (policy, endpoints) = match state {
            ClusterState::Failed(reason) => {
                slots.insert(name.clone(), Slot::Failed(name.clone(), reason.clone()));
                continue;
            }
            ClusterState::Ready { cluster, endpoints } => (cluster, endpoints),
        };
        if let Discovery::Aggregate(parts) = &policy.discovery {
            aggregates.insert(name, parts);
            continue;
        }
        let before = match previous.and_then(|old| old.wiring.clusters.get(name)) {
            Some(Slot::Ready(old)) => Some(&**old),
            _ => None,
        };
        let cluster = match before {
            Some(kept) if kept.policy() == policy => {
                kept.update(endpoints, env);
                kept.clone()
            }
            _ => Cluster::new(policy.clone(), endpoints.clone(), target, env, before),
        };
        slots.insert(name.clone(), Slot::Ready(Backend::whole(cluster)));
    }
    let made = aggregates.keys().map(|&name| {
        let mut leaves = Leaves { slots: &slots, aggregates: &aggregates, seen: HashSet::new(), found: Vec::new() };
        leaves.collect(name, 1);
        (name.clone(), Slot::Aggregate(leaves.found.into()))
    });
    let made: Vec<_> = made.collect();
    slots.extend(made);
    slots
}

/// The walk through an aggregate's tree (gRFC A37).
struct Leaves<'a> {
    slots: &'a BTreeMap<ClusterName, Slot>,
    aggregates: &'a HashMap<&'a ClusterName, &'a [ClusterName]>,
    /// What is named again keeps its first place; so circles end.
    seen: HashSet<&'a ClusterName>,
    found: Vec<Slot>,
}

impl<'a> Leaves<'a> {
    fn collect(&mut self, name: &'a ClusterName, depth: usize) {
        if !self.seen.insert(name) {
            return;
        }
        let failed = |why: &str| Slot::Failed(name.clone(), why.into());
        match (self.aggregates.get(name), self.slots.get(name)) {
            (Some(_), _) if depth >= MAX_DEPTH => self.found.push(failed("aggregates are nested more than 16 deep")),
            (Some(parts), _) => parts.iter().for_each(|part| self.collect(part, depth + 1)),
            (None, Some(slot)) => self.found.push(slot.clone()),
            (None, None) => self.found.push(failed("the snapshot does not hold this part of an aggregate")),
        }
    }
}
