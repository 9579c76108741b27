//! What the client holds and why it would do what it does: for people, not for the request path.

use std::sync::Arc;

use http::Request;
use mesh_core::error::Code;
use mesh_core::health::Standing;
use mesh_core::id::{ClusterName, Target};
use mesh_core::matcher::{Decision, RouteExplanation};
use mesh_core::policy::{Address, ClusterChoice, Health, RetryPolicy, RouteAction};
use serde::Serialize;

use crate::cluster::{Cluster, InFlight};
use crate::destination::{Destination, Destinations, Phase};
use crate::env::Env;
use crate::error::Cause;
use crate::outbound::head::Head;
use crate::router::{Choice, Router, Slot};

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
    /// The retry policy that would apply.
    pub retry: Option<RetryPolicy>,
}

/// One cluster that a request may go to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ClusterOption {
    /// Its share, relative to the others'.
    pub weight: u32,
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
    /// Open connections.
    pub open_connections: u32,
    /// Names that could not be looked up, and why; their last good addresses stay in use.
    pub dns_failures: Vec<String>,
    /// The priority in use.
    pub priority: u32,
    /// Its endpoints, usable or not.
    pub endpoints: Vec<EndpointDump>,
}

/// One endpoint at run time.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EndpointDump {
    /// Where it is.
    pub address: Address,
    /// Priority of its locality.
    pub priority: u32,
    /// Weight among its neighbours.
    pub weight: u32,
    /// What the control plane says of it.
    pub health: Health,
    /// What its answers and its health checks say of it.
    pub standing: Standing,
    /// Whether the balancer may pick it now.
    pub usable: bool,
    /// Requests in flight.
    pub in_flight: u32,
    /// Open connections.
    pub open_connections: u32,
    /// Of them, HTTP/1.1 connections that wait for a request.
    pub idle_connections: usize,
}

pub(crate) fn dump(destinations: &Destinations) -> ClientDump {
    let one = |destination: Arc<Destination>| {
        let (state, router) = phase(&destination);
        let clusters = router.map(|router| router.clusters().iter().map(|(n, s)| cluster_dump(n, s)).collect());
        DestinationDump { target: destination.target().to_string(), state, clusters: clusters.unwrap_or_default() }
    };
    let mirrors = destinations.mirrors();
    ClientDump {
        destinations: destinations.all().into_iter().map(one).collect(),
        mirrors: mirrors.active(),
        mirrors_dropped: mirrors.dropped(),
    }
}

pub(crate) fn explain(env: &Env, destinations: &Arc<Destinations>, request: &Request<()>) -> Explanation {
    let (mut explanation, found) = standing(destinations.of(request.uri(), request.headers()));
    if let Some((router, destination)) = found {
        explain_route(env, &router, &destination, request, &mut explanation);
    }
    explanation
}

pub(crate) fn explain_connect(env: &Env, destinations: &Arc<Destinations>, target: &Target) -> Explanation {
    let (mut explanation, found) = standing(destinations.to(target));
    let Some((router, destination)) = found else { return explanation };
    let Some(tcp) = router.tcp() else {
        // Without routes of their own, raw connections go where this goes.
        explain_route(env, &router, &destination, &Request::new(()), &mut explanation);
        return explanation;
    };
    let option = |(name, weight, slot)| ClusterOption { weight, cluster: cluster_dump(name, slot) };
    explanation.clusters = tcp.map(option).collect();
    explanation.error = match router.choose_tcp(target.host_port(), env) {
        Ok(raw) => trouble(raw.cluster),
        Err(cause) => Some(coded(&cause)),
    };
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

/// Why a cluster cannot take anything now, if so it is.
fn trouble(cluster: &Cluster) -> Option<String> {
    (!cluster.is_usable()).then(|| coded(&cluster.no_endpoint(&cluster.members())))
}

fn explain_route(
    env: &Env,
    router: &Router,
    destination: &Destination,
    request: &Request<()>,
    explanation: &mut Explanation,
) {
    let mut parts = Request::new(()).into_parts().0;
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.headers = request.headers().clone();
    let mut head = Head::new(parts);
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
    explanation.retry = route.retry().cloned();
    if let RouteAction::Forward(forward) = &route.route().action {
        let plan = router.plan(route);
        explanation.clusters = options(router, &plan.choice, &forward.to, &head);
        // A draw like any other: it shows the first thing that would go wrong, if anything would.
        let chosen = router.choose(plan, forward, &head.headers, None, env);
        explanation.error = match chosen {
            Err(cause) => Some(coded(&cause)),
            Ok(chosen) => trouble(chosen.cluster),
        };
    }
}

fn options(router: &Router, choice: &Choice, to: &ClusterChoice, head: &Head) -> Vec<ClusterOption> {
    let option = |weight, name: &ClusterName, slot: &Slot| ClusterOption { weight, cluster: cluster_dump(name, slot) };
    match (choice, to) {
        (Choice::One(slot), ClusterChoice::Cluster(name)) => vec![option(1, name, slot)],
        (Choice::Weighted(shares), ClusterChoice::Weighted(weighted)) => {
            let entries = weighted.entries().iter().zip(shares);
            entries.map(|(entry, share)| option(entry.weight, &entry.name, &share.slot)).collect()
        }
        (Choice::Header(header), _) => {
            let name = head.headers.get(header).and_then(|value| value.to_str().ok()).map(ClusterName::new);
            let slot = name.as_ref().and_then(|name| Some((name, router.clusters().get(name)?)));
            slot.map(|(name, slot)| option(1, name, slot)).into_iter().collect()
        }
        _ => Vec::new(),
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

fn cluster_dump(name: &ClusterName, slot: &Slot) -> ClusterDump {
    let empty = ClusterDump {
        name: name.clone(),
        failed: None,
        parts: Vec::new(),
        default_priority: InFlight::default(),
        high_priority: InFlight::default(),
        open_connections: 0,
        dns_failures: Vec::new(),
        priority: 0,
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
                open_connections: cluster.open_connections(),
                dns_failures: cluster.dns_failures(),
                priority: members.ready.priority(),
                endpoints: endpoint_dumps(cluster),
                ..empty
            }
        }
    }
}

fn endpoint_dumps(cluster: &Cluster) -> Vec<EndpointDump> {
    let members = cluster.members();
    let groups = members.source().localities.iter();
    let all = groups.flat_map(|group| group.endpoints.iter().map(move |endpoint| (group.priority, endpoint)));
    let load = |index: Option<usize>| members.ready.candidates()[index?].load();
    let known = members.known();
    all.map(|(priority, policy)| {
        let index = known.get(&policy.address).copied();
        // Without a request so far there is no connection.
        let endpoint = index.and_then(|index| members.ready.endpoints()[index].get());
        EndpointDump {
            address: policy.address.clone(),
            priority,
            weight: policy.weight.get(),
            health: policy.health,
            standing: load(index).map_or(Standing::Good, |load| load.standing()),
            usable: index.is_some_and(|index| members.ready.is_usable(index)),
            in_flight: index.map_or(0, |index| members.ready.candidates()[index].in_flight()),
            open_connections: endpoint.map_or(0, |endpoint| endpoint.pool().open()),
            idle_connections: endpoint.map_or(0, |endpoint| endpoint.pool().idle()),
        }
    })
    .collect()
}
