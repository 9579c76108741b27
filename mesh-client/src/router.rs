//! One destination's snapshot made ready for requests: the compiled route table, and beside each route
//! what it needs at run time, with its clusters resolved. Built when the snapshot changes, never per
//! request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use http::HeaderName;
use mesh_core::balance::hash::HashRules;
use mesh_core::id::{ClusterName, Target};
use mesh_core::matcher::{CompiledRoute, RouteTable};
use mesh_core::policy::{
    ClusterChoice, ClusterState, Discovery, FilterOverride, Forward, HttpFilter, HttpFilterKind, RetryPolicy,
    RouteAction, Snapshot, StatefulSession, WeightedCluster, WeightedClusters,
};
use mesh_core::retry::{Backoff, Budget, RetryRules};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::env::Env;
use crate::error::Cause;
use crate::outbound::filters::{Compiler, Filter, Limits, RoutePlace};

/// Levels of an aggregate's tree, its leaves included (gRFC A37).
const MAX_DEPTH: usize = 16;

/// A destination ready to route requests.
pub(crate) struct Router {
    snapshot: Arc<Snapshot>,
    table: RouteTable,
    // By `CompiledRoute::id`.
    plans: Box<[Plan]>,
    clusters: BTreeMap<ClusterName, Slot>,
    budget: Option<Arc<Budget>>,
    // Kept for the next router.
    limits: Limits,
}

/// A cluster as routes find it.
#[derive(Clone)]
pub(crate) enum Slot {
    /// Usable.
    Ready(Arc<Cluster>),
    /// The leaves of an aggregate's tree in order, none of them an aggregate; the first with a usable endpoint
    /// serves.
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
    pub(crate) retry: Option<Retries>,
    pub(crate) hash: HashRules,
    pub(crate) session: Option<StatefulSession>,
}

/// Where a route's requests go.
pub(crate) enum Choice {
    /// Nowhere: the route answers by itself.
    None,
    /// One cluster.
    One(Slot),
    /// Drawn by weight; in the order of the policy's entries.
    Weighted(Box<[Share]>),
    /// Named by a request header.
    Header(HeaderName),
}

/// One entry of a weighted split.
pub(crate) struct Share {
    pub(crate) slot: Slot,
    filters: Arc<[Filter]>,
    session: Option<StatefulSession>,
}

/// What was drawn for one request.
pub(crate) struct Chosen<'r> {
    pub(crate) cluster: &'r Arc<Cluster>,
    /// The entry of a weighted split.
    pub(crate) share: Option<&'r WeightedCluster>,
    pub(crate) filters: &'r [Filter],
    pub(crate) session: Option<&'r StatefulSession>,
}

/// A retry policy, compiled.
pub(crate) struct Retries {
    pub(crate) policy: RetryPolicy,
    pub(crate) rules: RetryRules,
    pub(crate) backoff: Backoff,
}

impl Router {
    /// Makes `snapshot` ready. Clusters of `previous` whose policy is equal are taken over with their
    /// connections and counters, and get the new endpoints.
    pub(crate) fn build(target: &Target, snapshot: Arc<Snapshot>, previous: Option<&Self>, env: &Arc<Env>) -> Self {
        let clusters = clusters(target, &snapshot, previous, env);
        let table = RouteTable::compile(&snapshot.routes, target.port(), &env.workload);
        let filters = &snapshot.listener.filters;
        let mut compiler =
            Compiler { before: previous.map(|old| &old.limits), limits: Limits::default(), now: Instant::now() };
        let plans = table.routes().iter().map(|route| Plan::new(route, &clusters, filters, &mut compiler)).collect();
        let limits = compiler.limits;
        let budget = snapshot.routes.retry_budget.as_ref().map(|policy| {
            let kept = previous.filter(|old| old.snapshot.routes.retry_budget.as_ref() == Some(policy));
            let kept = kept.and_then(|old| old.budget.clone());
            kept.unwrap_or_else(|| Arc::new(Budget::new(policy.clone(), Instant::now())))
        });
        Self { snapshot, table, plans, clusters, budget, limits }
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub(crate) fn table(&self) -> &RouteTable {
        &self.table
    }

    pub(crate) fn plan(&self, route: &CompiledRoute) -> &Plan {
        &self.plans[route.id()]
    }

    /// Every cluster with its name.
    pub(crate) fn clusters(&self) -> &BTreeMap<ClusterName, Slot> {
        &self.clusters
    }

    /// Linkerd's retry budget of the destination.
    pub(crate) fn budget(&self) -> Option<&Budget> {
        self.budget.as_deref()
    }

    /// The cluster for one request, drawn by weight where there are several, unless the request is
    /// pinned to one of them (gRFC A60), and what comes with it.
    pub(crate) fn choose<'r>(
        &'r self,
        plan: &'r Plan,
        forward: &'r Forward,
        headers: &http::HeaderMap,
        pinned: Option<&ClusterName>,
        env: &Env,
    ) -> Result<Chosen<'r>, Cause> {
        let plain = |cluster| Chosen { cluster, share: None, filters: &plan.filters, session: plan.session.as_ref() };
        match &plan.choice {
            Choice::One(slot) => Ok(plain(slot.cluster()?)),
            Choice::Weighted(shares) => {
                let ClusterChoice::Weighted(weighted) = &forward.to else {
                    unreachable!("a weighted plan comes from a weighted policy")
                };
                let (entry, share) = draw_share(weighted, shares, pinned, env);
                let (cluster, session) = (share.slot.cluster()?, share.session.as_ref());
                Ok(Chosen { cluster, share: Some(entry), filters: &share.filters, session })
            }
            Choice::Header(name) => {
                let wanted = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
                match self.clusters.get(&ClusterName::new(wanted)) {
                    Some(slot) => Ok(plain(slot.cluster()?)),
                    None => Err(Cause::NoCluster {
                        cluster: wanted.into(),
                        reason: format!("named by header {name}, and this destination has no such cluster").into(),
                    }),
                }
            }
            Choice::None => Err(Cause::UnsupportedAction("the route does not forward")),
        }
    }

    /// Closes connections that were idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant) {
        for slot in self.clusters.values() {
            if let Slot::Ready(cluster) = slot {
                cluster.reap(now);
            }
        }
    }
}

impl Slot {
    /// The cluster to use now.
    pub(crate) fn cluster(&self) -> Result<&Arc<Cluster>, Cause> {
        match self {
            Self::Ready(cluster) => Ok(cluster),
            Self::Failed(cluster, reason) => Err(Cause::NoCluster { cluster: cluster.clone(), reason: reason.clone() }),
            Self::Aggregate(parts) => {
                let ready = || parts.iter().filter_map(|part| part.cluster().ok());
                match ready().find(|cluster| cluster.is_usable()).or_else(|| ready().next()) {
                    Some(cluster) => Ok(cluster),
                    // None is there: the first says why.
                    None => match parts.first() {
                        Some(first) => first.cluster(),
                        None => Err(Cause::NoCluster {
                            cluster: "".into(),
                            reason: "the aggregate cluster stands for no cluster".into(),
                        }),
                    },
                }
            }
        }
    }
}

impl Plan {
    fn new(
        route: &CompiledRoute,
        clusters: &BTreeMap<ClusterName, Slot>,
        filters: &[HttpFilter],
        compiler: &mut Compiler<'_>,
    ) -> Self {
        let slot = |name: &ClusterName| match clusters.get(name) {
            Some(slot) => slot.clone(),
            None => Slot::Failed(name.clone(), "the snapshot does not hold it".into()),
        };
        let own = &route.route().filters;
        let place = |entry: Option<&ClusterName>| {
            let (host, matcher) = (route.virtual_host().name.clone(), route.route().matcher.clone());
            Some(RoutePlace { host, matcher, entry: entry.cloned() })
        };
        let of_route = |name: &str| Some((own.get(name)?, place(None)));
        let all = compiler.compile(filters, of_route);
        let mut share = |slot, entry: &WeightedCluster| {
            let of_entry = |name: &str| Some((entry.filters.get(name)?, place(Some(&entry.name))));
            let filters_of_entry = match entry.filters.is_empty() {
                true => all.clone(),
                false => compiler.compile(filters, |name| of_entry(name).or_else(|| of_route(name))),
            };
            let session = session(filters, |name| entry.filters.get(name).or_else(|| own.get(name)));
            Share { slot, filters: filters_of_entry, session }
        };
        let choice = match &route.route().action {
            RouteAction::Forward(forward) => match &forward.to {
                ClusterChoice::Cluster(name) => Choice::One(slot(name)),
                ClusterChoice::Weighted(weighted) => {
                    Choice::Weighted(weighted.entries().iter().map(|entry| share(slot(&entry.name), entry)).collect())
                }
                ClusterChoice::Header(name) => Choice::Header(name.clone()),
            },
            RouteAction::Redirect(_) | RouteAction::DirectResponse(_) | RouteAction::NonForwarding => Choice::None,
        };
        let retry = route.retry().filter(|policy| policy.attempts > 0).map(|policy| Retries {
            rules: RetryRules::new(&policy.on, &route.route().response_classes),
            backoff: Backoff::of(policy),
            policy: policy.clone(),
        });
        let hash = match &route.route().action {
            RouteAction::Forward(forward) => HashRules::new(&forward.hash),
            _ => HashRules::default(),
        };
        let high_priority = matches!(&route.route().action, RouteAction::Forward(forward) if forward.high_priority);
        let session = session(filters, |name| own.get(name));
        Self { choice, hash, filters: all, high_priority, retry, session }
    }
}

/// The entry of a split for one request.
fn draw_share<'r>(
    weighted: &'r WeightedClusters,
    shares: &'r [Share],
    pinned: Option<&ClusterName>,
    env: &Env,
) -> (&'r WeightedCluster, &'r Share) {
    let all = || weighted.entries().iter().zip(shares);
    if let Some(own) = pinned.and_then(|pinned| all().find(|(entry, _)| entry.name == *pinned && entry.weight > 0)) {
        return own;
    }
    let mut left = env.draw(u64::from(weighted.total()));
    for (entry, share) in all() {
        match left.checked_sub(u64::from(entry.weight)) {
            None => return (entry, share),
            Some(rest) => left = rest,
        }
    }
    unreachable!("the draw is below the sum of the weights")
}

/// Session affinity in the place that `overridden` looks at.
fn session<'p>(
    filters: &'p [HttpFilter],
    overridden: impl Fn(&str) -> Option<&'p FilterOverride>,
) -> Option<StatefulSession> {
    let mut found = filters.iter().filter_map(|filter| match (&filter.kind, overridden(&filter.name)) {
        (HttpFilterKind::Session(_), Some(FilterOverride::Session(session))) => Some(session),
        (HttpFilterKind::Session(_), Some(FilterOverride::Disabled)) => None,
        (HttpFilterKind::Session(session), _) => session.as_ref(),
        _ => None,
    });
    found.next().cloned()
}

fn clusters(
    target: &Target,
    snapshot: &Snapshot,
    previous: Option<&Router>,
    env: &Arc<Env>,
) -> BTreeMap<ClusterName, Slot> {
    let mut slots = BTreeMap::new();
    let mut aggregates: HashMap<&ClusterName, &[ClusterName]> = HashMap::new();
    for (name, state) in &snapshot.clusters {
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
        let kept = match previous.and_then(|old| old.clusters.get(name)) {
            Some(Slot::Ready(old)) if old.policy() == policy => Some(old.clone()),
            _ => None,
        };
        let cluster = match kept {
            Some(kept) => {
                kept.update(endpoints, env);
                kept
            }
            None => Cluster::new(policy.clone(), endpoints.clone(), target, env),
        };
        slots.insert(name.clone(), Slot::Ready(cluster));
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
