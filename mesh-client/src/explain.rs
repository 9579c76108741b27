//! What the client holds and why it would do what it does: for people, not for the request path.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use mesh_core::balance::hash::HashInput;
use mesh_core::balance::session::Pinned;
use mesh_core::balance::{Pick, PoolExplanation, Rating};
use mesh_core::error::Code;
use mesh_core::health::{AccrualState, Standing};
use mesh_core::id::{ClusterName, Locality, Target};
use mesh_core::matcher::{Decision, RouteExplanation};
use mesh_core::policy::{
    Address, CircuitBreakers, ClusterChoice, DropOverload, Fault, Health, HedgePolicy, Mirror, PerMillion, RetryPolicy,
    RouteAction,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::cluster::{Backend, InFlight, Members};
use crate::destination::{Destination, Destinations, Phase};
use crate::env::Env;
use crate::error::Cause;
use crate::outbound::composite::Draws;
use crate::outbound::head::Head;
use crate::outbound::places::{Foreseen, Places};
use crate::outbound::session::Session;
use crate::outbound::trace::Trace;
use crate::outbound::{destination, header_policies, unsupported};
use crate::router::{Choice, Plan, Retries, Router, Slot};

/// Retries that are shown.
const MAX_RETRIES: u32 = 16;
/// Endpoints that are named for each of them.
const MAX_AMONG: usize = 32;

/// How far the configuration of a destination is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationPhase {
    /// Asked for; nothing came yet.
    Pending,
    /// Takes requests.
    Ready,
    /// Known not to exist, or refused: why.
    Failed(String),
    /// Nothing is known and no control plane could be asked: why.
    Unreachable(String),
}

/// Where a request or a raw connection would go and why.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The destination, `host:port`.
    pub target: String,
    /// Its state.
    pub state: DestinationPhase,
    /// What would keep the request from being sent, as far as that is known beforehand.
    pub error: Option<String>,
    /// The walk through the route table; none for a raw connection whose listener has routes for such.
    pub route: Option<RouteExplanation>,
    /// The clusters it may go to, each with its endpoints and their states.
    pub clusters: Vec<ClusterOption>,
    /// The session that the request says it is of, if the route has any.
    pub session: Option<SessionExplanation>,
    /// What its endpoint is chosen by where balancers hash; a cookie that it lacks is made anew each time.
    pub hash: Option<u64>,
    /// What it passes on the way to its cluster, in this order: faults and limits.
    pub filters: Vec<FilterExplanation>,
    /// Where copies of it go.
    pub mirrors: Vec<MirrorOption>,
    /// An endpoint that it could go to: a pick like any other, which takes a turn and which the next one may not repeat.
    pub pick: Option<PickExplanation>,
    /// The time that the route gives it; `None` = any. A deadline of the caller's may end it before.
    pub timeout: Option<Duration>,
    /// The tries that are made side by side, if the route has any: they are retries to what is said below.
    pub hedge: Option<HedgePolicy>,
    /// What follows a try that fails; `None` = the route has no retry policy, or no cluster for it. Without one what nobody
    /// has seen is sent again as well, and a request whose method is idempotent once, at the cost of a retry, if the
    /// HTTP/1.1 connection that it was to use again was closed as it went out.
    pub retry: Option<RetryExplanation>,
}

/// Where a request's session is.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SessionExplanation {
    /// The endpoint it is pinned to.
    pub address: Address,
    /// Its cluster, of a route with several.
    pub cluster: Option<ClusterName>,
    /// Whether that endpoint takes it now. Otherwise it moves to another one, or fails if it is strict.
    pub holds: bool,
    /// Whether that endpoint is outside of the part of the cluster that this client uses, and is known for its sessions alone.
    pub outside: bool,
    /// Whether it fails rather than move.
    pub strict: bool,
}

/// The endpoint of one pick.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PickExplanation {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Where it is.
    pub address: Address,
}

/// The retries of a request.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RetryExplanation {
    /// How many it may have; 0 if the policy is not about this request, or if it is `chained`.
    pub attempts: u32,
    /// The request being served is a retry itself, or made for one: what is called for it is not tried again.
    pub chained: bool,
    /// The longest back-off before each of them, the first 16. An answer may ask for another one.
    pub waits: Vec<Duration>,
    /// Where they would go, the first 16, if the try at [`pick`](Explanation::pick) and each of them were connected to and then
    /// of no use. All are in the cluster of the first try. Shorter if there is nowhere to go; each takes a turn, like a pick.
    pub places: Vec<RetryPlace>,
    /// How long one try may take, within what the route gives all of them; with a hedge policy that says so another one begins
    /// beside it then. `None` = as long as all of them.
    pub per_try_timeout: Option<Duration>,
    /// How long it may be without a byte; `None` = any time.
    pub per_try_idle_timeout: Option<Duration>,
    /// Retries in flight at the cluster that this request would go to.
    pub in_flight: u32,
    /// How many there may be now by its circuit breaker; `None` = any number.
    pub most: Option<u32>,
    /// Whether gRPC's retry tokens of the destination allow one now; `None` = it has none.
    pub tokens: Option<bool>,
    /// Whether Linkerd's budget of the destination has one left now; `None` = it has no budget.
    pub budget: Option<bool>,
    /// Which outcomes they are for, and everything else about them.
    pub policy: RetryPolicy,
}

/// Where one retry would go.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RetryPlace {
    /// The endpoint.
    pub address: Address,
    /// Its priority.
    pub priority: u32,
    /// Where it runs.
    pub locality: Locality,
    /// A try before it was there: policy does not mind, or nobody else is left.
    pub repeated: bool,
    /// How many endpoints it is one of, by what policy says of previous hosts, their priorities and metadata, and by who can be
    /// reached.
    pub candidates: usize,
    /// Who they are, 32 of them at most.
    pub among: Vec<Address>,
}

/// One cluster that a request may go to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ClusterOption {
    /// Its share, relative to the others'.
    pub weight: u32,
    /// The cluster.
    pub cluster: ClusterDump,
    /// If it is an aggregate, the clusters that it stands for, in their order. Each serves what it can of what those before it
    /// leave, and what they had nobody to take, for they could not be connected to.
    pub parts: Vec<ClusterDump>,
}

/// A fault or a limit on a request's way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FilterExplanation {
    /// Injected faults.
    Fault {
        /// Which, and for which share of requests.
        policy: Fault,
        /// Whether the request is one of those that are meant.
        meant: bool,
    },
    /// A local rate limit.
    RateLimit {
        /// Tokens in its bucket now.
        tokens: u32,
        /// How many there may be.
        most: u32,
    },
    /// Throttling by successes, Envoy's or the SRE book's.
    Throttling {
        /// The share of requests that is refused now.
        refused: PerMillion,
    },
    /// A limit that follows latency.
    Concurrency {
        /// Requests in flight that are allowed now.
        limit: u32,
        /// Those in flight.
        in_flight: u32,
    },
    /// Filters that the request's headers choose (gRFC A103).
    Composite {
        /// The share of such requests that passes them.
        share: PerMillion,
        /// They; `None` = the matcher finds nothing, or a server's filters, and the request fails.
        filters: Option<Vec<FilterExplanation>>,
    },
}

/// A cluster that copies of a request go to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MirrorOption {
    /// The share of requests that is copied.
    pub share: PerMillion,
    /// The cluster.
    pub cluster: ClusterDump,
}

/// Everything a client holds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ClientDump {
    /// Destinations by name.
    pub destinations: Vec<DestinationDump>,
    /// Copies of requests (mirrors) under way.
    pub mirrors: usize,
    /// Copies that were not sent: too many at once, or a body too large to be kept.
    pub mirrors_dropped: u64,
}

/// One destination.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DestinationDump {
    /// The destination, `host:port`.
    pub target: String,
    /// Its state.
    pub state: DestinationPhase,
    /// Its clusters.
    pub clusters: Vec<ClusterDump>,
}

/// One cluster at run time.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ClusterDump {
    /// Name of the policy.
    pub name: ClusterName,
    /// Why it cannot be used, if it cannot.
    pub failed: Option<String>,
    /// Parts of an aggregate.
    pub parts: Vec<ClusterName>,
    /// In flight with default priority, of all clients that share the counters.
    pub default_priority: InFlight,
    /// In flight with high priority.
    pub high_priority: InFlight,
    /// Limits of what is in flight with default priority; `None` within = any number.
    pub default_limits: CircuitBreakers,
    /// The same of high priority.
    pub high_limits: CircuitBreakers,
    /// Shares of requests that the control plane wants dropped.
    pub drops: Vec<DropOverload>,
    /// Open connections.
    pub open_connections: u32,
    /// Names that could not be looked up, and why; their last good addresses stay in use.
    pub dns_failures: Vec<String>,
    /// How much of all requests it can take as a part of an aggregate. `None` = none until a connection stands, for an endpoint of
    /// its could not be connected to and of none is known that it can. Of what is no part of its own (`failed`, `parts`) 0.
    pub availability: Option<PerMillion>,
    /// The priority in use.
    pub priority: u32,
    /// How its requests are shared out among priorities and healths.
    pub pools: Vec<PoolExplanation>,
    /// Its endpoints, usable or not.
    pub endpoints: Vec<EndpointDump>,
}

/// One endpoint at run time.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndpointDump {
    /// Where it is.
    pub address: Address,
    /// Where it runs.
    pub locality: Locality,
    /// Priority of its locality.
    pub priority: u32,
    /// Weight among its neighbours, as policy has it.
    pub weight: u32,
    /// What the control plane says of it.
    pub health: Health,
    /// What its answers and its health checks say of it.
    pub standing: Standing,
    /// Where the breaker of failure accrual is, if policy has one and a request went there: one at a time passes on
    /// probation, and none while a probe is under way.
    pub accrual: Option<AccrualState>,
    /// Whether the balancer may pick it now.
    pub usable: bool,
    /// Whether it is outside of the part of the cluster that this client uses (subsetting): only sessions that began elsewhere go
    /// there.
    pub outside: bool,
    /// The weight that counts, and the balancer's score; None if it may not pick it.
    pub rating: Option<Rating>,
    /// Whether it could be connected to when that was last tried, if ever. Others come before one that could not, until a connection
    /// stands.
    pub reachable: bool,
    /// What its answers take: the average that pickers by load compare. None before the first.
    pub latency: Option<Duration>,
    /// For how long it is still passed over because it gave no answer in time. None if it is not; shorter with each answer.
    pub late: Option<Duration>,
    /// Factor by which failures make its load look larger to them, 1 to 16; 16 while it is late.
    pub failure_penalty: f32,
    /// Requests in flight.
    pub in_flight: u32,
    /// Open connections.
    pub open_connections: u32,
    /// Of them, HTTP/1.1 connections that wait for a request.
    pub idle_connections: usize,
}

pub(crate) fn dump(destinations: &Destinations) -> ClientDump {
    let env = destinations.env();
    let one = |destination: Arc<Destination>| {
        let (state, router) = phase(&destination);
        let clusters = router.map(|router| router.clusters().iter().map(|(n, s)| cluster_dump(env, n, s)).collect());
        DestinationDump { target: destination.target().to_string(), state, clusters: clusters.unwrap_or_default() }
    };
    let mirrors = destinations.mirrors();
    ClientDump {
        destinations: destinations.all().into_iter().map(one).collect(),
        mirrors: mirrors.active(),
        mirrors_dropped: mirrors.dropped(),
    }
}

pub(crate) fn explain(env: &Arc<Env>, destinations: &Arc<Destinations>, request: &Request<()>) -> Explanation {
    let mut parts = Request::new(()).into_parts().0;
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.headers = request.headers().clone();
    let head = Head::new(parts);
    let (mut explanation, found) = standing(destination(destinations, None, &head));
    if let Some((router, destination)) = found {
        explain_route(env, &router, &destination, head, &mut explanation);
    }
    explanation
}

pub(crate) fn explain_connect(env: &Arc<Env>, destinations: &Arc<Destinations>, target: &Target) -> Explanation {
    let (mut explanation, found) = standing(destinations.to(target));
    let Some((router, destination)) = found else { return explanation };
    let Some(tcp) = router.tcp() else {
        // Without routes of their own, raw connections go where this goes.
        explain_route(env, &router, &destination, Head::new(Request::new(()).into_parts().0), &mut explanation);
        return explanation;
    };
    explanation.clusters = tcp.map(|(name, weight, slot)| option(env, weight, name, slot)).collect();
    match router.choose_tcp(target.host_port(), Trace::begin().source(), env) {
        Ok(raw) => {
            explanation.hash = raw.hash;
            explain_pick(env, raw.part.cluster, &raw.part.cluster.members(), raw.hash, false, &mut explanation);
        }
        Err(cause) => explanation.error = Some(coded(&cause)),
    }
    explanation
}

/// What decides about the requests of a destination.
type Decider = (Arc<Router>, Arc<Destination>);

/// How far a destination is, and what decides about its requests if it is there.
fn standing(found: Result<Arc<Destination>, Cause>) -> (Explanation, Option<Decider>) {
    let mut explanation = Explanation {
        target: String::new(),
        state: DestinationPhase::Pending,
        error: None,
        route: None,
        clusters: Vec::new(),
        session: None,
        hash: None,
        filters: Vec::new(),
        mirrors: Vec::new(),
        pick: None,
        timeout: None,
        hedge: None,
        retry: None,
    };
    let destination = match found {
        Ok(destination) => destination,
        Err(cause) => {
            explanation.state = DestinationPhase::Failed(cause.to_string());
            explanation.error = Some(coded(&cause));
            return (explanation, None);
        }
    };
    let (state, router) = phase(&destination);
    explanation.target = destination.target().to_string();
    explanation.error = match &state {
        DestinationPhase::Failed(why) => Some(coded(&Cause::NoListener(why.as_str().into()))),
        DestinationPhase::Unreachable(why) => Some(coded(&Cause::ControlPlaneUnreachable(why.as_str().into()))),
        DestinationPhase::Pending | DestinationPhase::Ready => None,
    };
    explanation.state = state;
    (explanation, router.map(|router| (router, destination)))
}

/// Which endpoint would be picked, and its index; or why none.
fn explain_pick(
    env: &Env,
    cluster: &Backend,
    members: &Members,
    hash: Option<u64>,
    https: bool,
    explanation: &mut Explanation,
) -> Option<usize> {
    let session = explanation.session.as_mut();
    let pinned = session.and_then(|session| {
        // Nothing is made for who asks.
        let found = members.ready.would_pin(&session.address, &cluster.policy().override_host);
        session.holds = found.is_some();
        session.outside = members.leaves_out(&session.address);
        found
    });
    let strict = explanation.session.as_ref().is_some_and(|session| session.strict);
    let index = pinned.or_else(|| {
        let pick = Pick { now: env.since_epoch(Instant::now()), hash, ..Pick::default() };
        let picked = (!strict).then(|| members.ready.pick(&pick, &mut |below| env.draw(below)))?;
        picked.map(|(index, _)| index)
    });
    match index {
        Some(index) => {
            let endpoint = members.ready.policy(index).1;
            let address = endpoint.address.clone();
            if https && !cluster.encrypts(endpoint) {
                explanation.fails(&Cause::HttpsToPlaintext { address: address.clone() });
            }
            let open = members.ready.endpoint(index).get().map_or(0, |endpoint| endpoint.pool().open());
            cluster.lacks(endpoint).filter(|_| open == 0).iter().for_each(|cause| explanation.fails(cause));
            explanation.pick = Some(PickExplanation { cluster: cluster.policy().name.clone(), address });
        }
        None => explanation.fails(&cluster.no_endpoint(members)),
    }
    index
}

impl Explanation {
    /// The first thing that would go wrong is the one that is told.
    fn fails(&mut self, cause: &Cause) {
        self.error.get_or_insert_with(|| coded(cause));
    }
}

/// What keeps every request from the endpoints of a cluster now, in the order in which requests meet it.
fn refusal(cluster: &Backend, high: bool) -> Option<Cause> {
    let members = cluster.members();
    let dropped = members.source().drops.iter().find(|drop| drop.share == PerMillion::ALL).map(|drop| Cause::Dropped {
        cluster: cluster.policy().name.clone(),
        category: drop.category.as_str().into(),
        share: drop.share,
    });
    dropped.or_else(|| cluster.refuses(high))
}

fn explain_route(
    env: &Arc<Env>,
    router: &Router,
    destination: &Destination,
    mut head: Head,
    explanation: &mut Explanation,
) {
    head.goes_to(destination);
    let draw = || env.draw_million();
    let walk = router.table().explain(&head.view(&draw));
    let decided = match &walk.decision {
        Decision::Route { id, .. } => router.table().routes().get(*id),
        Decision::NoRoute | Decision::NoVirtualHost => None,
    };
    explanation.route = Some(walk);
    let Some(route) = decided else {
        explanation.error = Some(format!("{} no matching route. {}", Code::NO_ROUTE, Code::NO_ROUTE.remedy()));
        return;
    };
    let action = &route.route().action;
    unsupported(action, is_grpc(&head)).iter().for_each(|cause| explanation.fails(cause));
    if let RouteAction::Forward(forward) = action {
        let plan = router.plan(route);
        explanation.timeout = forward.timeout.filter(|timeout| !timeout.is_zero());
        explanation.hedge = forward.hedge.clone();
        explanation.clusters = options(env, &plan.choice, &forward.to, &head);
        // A draw like any other: it shows the first thing that would go wrong, if anything would.
        let shown = (&head.headers, head.uri().path());
        let chosen = match router.choose(plan, forward, shown, || head.view(&draw), &Draws::new(env), env) {
            Ok(chosen) => chosen,
            Err(cause) => {
                explanation.error = Some(coded(&cause));
                return;
            }
        };
        explanation.session = chosen.session.zip(chosen.pinned.clone()).map(|(policy, Pinned { address, cluster })| {
            SessionExplanation { address, cluster, holds: false, outside: false, strict: policy.strict }
        });
        let mirrors = forward.mirrors.iter().zip(&plan.mirrors);
        let option = |(mirror, slot): (&Mirror, &Slot)| MirrorOption {
            share: mirror.share,
            cluster: cluster_dump(env, &mirror.cluster, slot),
        };
        explanation.mirrors = mirrors.map(option).collect();
        let came = head.copy();
        // Balancers hash what is sent, and the retry policy looks at that; filters see what came.
        head.rewrite(route, forward, chosen.share);
        for headers in header_policies(route, chosen.share) {
            headers.request.apply(&mut head.headers);
        }
        head.show_host();
        let session = Session::new(chosen.session, chosen.pinned, &came);
        let (came, now) = (came.view(&draw), Instant::now());
        let cluster = chosen.part.cluster;
        let name = &cluster.policy().name;
        let filters = chosen.filters.iter().filter_map(|filter| filter.explain(&came, name, now));
        let throttling = router.throttling().map(|throttling| throttling.explain(now));
        explanation.filters = filters.chain(throttling).collect();
        let refused = chosen.filters.iter().find_map(|filter| filter.fails(&came));
        refused.iter().for_each(|cause| explanation.fails(cause));
        let query = head.uri().query().unwrap_or_default();
        let source = Trace::begin().source();
        let input = HashInput { headers: &head.headers, query, source, channel_id: env.channel_id };
        explanation.hash = plan.hash.hash(&input, &mut |below| env.draw(below)).hash;
        refusal(cluster, plan.high_priority).iter().for_each(|cause| explanation.fails(cause));
        let (members, hash) = (cluster.members(), explanation.hash);
        let first = explain_pick(env, cluster, &members, hash, head.is_https(), explanation);
        let retries = plan.retry.as_ref();
        let places = Places { env, cluster, members, retries, session: &session, hash };
        let timeout = explanation.timeout;
        let retry = retries.map(|retries| explain_retry(router, plan, retries, (&places, first), &head, timeout));
        explanation.retry = retry;
    }
}

fn is_grpc(head: &Head) -> bool {
    head.headers.get(http::header::CONTENT_TYPE).is_some_and(mesh_core::context::is_grpc)
}

fn explain_retry(
    router: &Router,
    plan: &Plan,
    retries: &Retries,
    (places, first): (&Places<'_>, Option<usize>),
    head: &Head,
    timeout: Option<Duration>,
) -> RetryExplanation {
    let draw = || places.env.draw_million();
    let chained = Trace::begin().is_retry();
    let concerned = !chained && retries.concerns(|| head.view(&draw));
    let attempts = if concerned { retries.attempts(is_grpc(head)) } else { 0 };
    let (in_flight, most) = places.cluster.admission().retries(plan.high_priority);
    let shown = attempts.min(MAX_RETRIES);
    let foreseen = first.map_or_else(Vec::new, |first| places.foresee(first, shown));
    let per_try_timeout = retries.per_try_timeout();
    RetryExplanation {
        attempts,
        chained,
        waits: (0..shown).map(|retry| retries.backoff.bound(retry)).collect(),
        places: foreseen.into_iter().map(|foreseen| retry_place(&places.members, foreseen)).collect(),
        per_try_timeout: per_try_timeout.map(|time| timeout.map_or(time, |timeout| timeout.min(time))),
        per_try_idle_timeout: retries.per_try_idle(),
        in_flight,
        most,
        tokens: router.tokens().map(|tokens| tokens.allows()),
        budget: router.budget().map(|budget| budget.allows(Instant::now())),
        policy: retries.policy.clone(),
    }
}

fn retry_place(members: &Members, Foreseen { index, repeated, among }: Foreseen) -> RetryPlace {
    let (group, endpoint) = members.ready.policy(index);
    let addresses = among.iter().map(|index| members.ready.policy(*index).1.address.clone());
    RetryPlace {
        address: endpoint.address.clone(),
        priority: group.priority,
        locality: group.locality.clone(),
        repeated,
        candidates: among.len(),
        among: addresses.take(MAX_AMONG).collect(),
    }
}

fn options(env: &Env, choice: &Choice, to: &ClusterChoice, head: &Head) -> Vec<ClusterOption> {
    match (choice, to) {
        (Choice::One(slot), ClusterChoice::Cluster(name)) => vec![option(env, 1, name, slot)],
        (Choice::Weighted(shares), ClusterChoice::Weighted(weighted)) => {
            let entries = weighted.entries().iter().zip(shares).filter(|(entry, _)| entry.weight > 0);
            entries.map(|(entry, share)| option(env, entry.weight, &entry.name, &share.slot)).collect()
        }
        (Choice::Header(header, slots), _) => {
            let name = head.headers.get(header).and_then(|value| value.to_str().ok()).map(ClusterName::new);
            let slot = name.as_ref().and_then(|name| Some((name, &slots.get(name)?.0)));
            slot.map(|(name, slot)| option(env, 1, name, slot)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn option(env: &Env, weight: u32, name: &ClusterName, slot: &Slot) -> ClusterOption {
    let mut parts = Vec::new();
    if let Slot::Aggregate(slots) = slot {
        leaves(env, slots, &mut parts);
    }
    ClusterOption { weight, cluster: cluster_dump(env, name, slot), parts }
}

/// The tree of an aggregate has a bound, and so has this.
fn leaves(env: &Env, slots: &[Slot], parts: &mut Vec<ClusterDump>) {
    for slot in slots {
        match slot {
            Slot::Ready(cluster) => parts.push(cluster_dump(env, &cluster.policy().name, slot)),
            Slot::Failed(name, _) => parts.push(cluster_dump(env, name, slot)),
            Slot::Aggregate(slots) => leaves(env, slots, parts),
        }
    }
}

fn coded(cause: &Cause) -> String {
    format!("{} {cause}", cause.code())
}

fn phase(destination: &Destination) -> (DestinationPhase, Option<Arc<Router>>) {
    match &**destination.phase() {
        Phase::Pending => (DestinationPhase::Pending, None),
        Phase::Ready(router) => (DestinationPhase::Ready, Some(router.clone())),
        Phase::Failed(why) => (DestinationPhase::Failed(why.to_string()), None),
        Phase::Unreachable(why) => (DestinationPhase::Unreachable(why.to_string()), None),
    }
}

fn cluster_dump(env: &Env, name: &ClusterName, slot: &Slot) -> ClusterDump {
    let empty = ClusterDump {
        name: name.clone(),
        failed: None,
        parts: Vec::new(),
        default_priority: InFlight::default(),
        high_priority: InFlight::default(),
        default_limits: CircuitBreakers::default(),
        high_limits: CircuitBreakers::default(),
        drops: Vec::new(),
        open_connections: 0,
        dns_failures: Vec::new(),
        availability: Some(PerMillion::NONE),
        priority: 0,
        pools: Vec::new(),
        endpoints: Vec::new(),
    };
    match slot {
        Slot::Failed(_, why) => ClusterDump { failed: Some(why.to_string()), ..empty },
        Slot::Aggregate(parts) => {
            let part = |slot: &Slot| match slot {
                Slot::Ready(cluster) => Some(cluster.policy().name.clone()),
                Slot::Failed(name, _) => Some(name.clone()),
                Slot::Aggregate(_) => None,
            };
            ClusterDump { parts: parts.iter().filter_map(part).collect(), ..empty }
        }
        Slot::Ready(cluster) => {
            let members = cluster.members();
            ClusterDump {
                default_priority: cluster.admission().in_flight(false),
                high_priority: cluster.admission().in_flight(true),
                default_limits: cluster.admission().limits(false).clone(),
                high_limits: cluster.admission().limits(true).clone(),
                drops: members.source().drops.clone(),
                open_connections: cluster.open_connections(),
                dns_failures: cluster.dns_failures(),
                availability: cluster.availability(),
                priority: members.ready.priority(),
                pools: members.ready.pools().collect(),
                endpoints: endpoint_dumps(env, &members),
                ..empty
            }
        }
    }
}

fn endpoint_dumps(env: &Env, members: &Members) -> Vec<EndpointDump> {
    let now = env.since_epoch(Instant::now());
    let known = members.known();
    let ready = &members.ready;
    // Nothing is made for who asks.
    let find = |address: &Address| known.get(address).copied().or_else(|| ready.find_kept(address));
    members
        .everyone(&known)
        .map(|(group, policy)| {
            let index = find(&policy.address);
            let load = index.and_then(|index| ready.load(index));
            // Without a request so far there is no connection.
            let endpoint = index.and_then(|index| ready.endpoint(index).get());
            EndpointDump {
                address: policy.address.clone(),
                locality: group.locality.clone(),
                priority: group.priority,
                weight: policy.weight.get(),
                health: policy.health,
                standing: load.map_or(Standing::Good, |load| load.standing()),
                accrual: endpoint.and_then(|endpoint| endpoint.accrual()),
                usable: index.is_some_and(|index| ready.is_usable(index)),
                outside: !known.contains_key(&policy.address),
                rating: index.and_then(|index| ready.rating(index, now)),
                reachable: load.is_none_or(|load| !load.is_away()),
                latency: load.and_then(|load| load.measured_latency(now)),
                late: load.and_then(|load| load.late_for(now)),
                failure_penalty: load.map_or(1.0, |load| load.failure_penalty(now)),
                in_flight: load.map_or(0, |load| load.in_flight()),
                open_connections: endpoint.map_or(0, |endpoint| endpoint.pool().open()),
                idle_connections: endpoint.map_or(0, |endpoint| endpoint.pool().idle()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
