//! Routes of a VirtualService.

use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::policy::{
    AuthorityRewrite, Balancer, ClusterChoice, Fault, Forward, HeaderPolicy, Mirror, RetryPolicy, Rewrite, Route,
    RouteAction, RouteMatch, WeightedCluster, WeightedClusters,
};

use super::{Place, Table, delegate};
use crate::model::{
    Destination, HttpAction, HttpRoute, MatchBlock, Object, RedirectPort, VirtualService, WeightedDestination,
    is_catch_all,
};
use crate::translate::instances::includes;
use crate::translate::{NodeScope, World, names};

/// The routes of the VirtualService that holds here; `None` if there is none or it says nothing to this
/// client.
pub(super) fn table(place: &Place<'_>) -> Option<Table> {
    let service = place.world.virtual_services.find(place.scope, place.host)?;
    let mut routes = Vec::new();
    'routes: for http in &service.spec.http {
        for (matcher, labels, source) in expand(place, service, http) {
            let last = is_catch_all(&RouteMatch { port: None, ..matcher.clone() });
            let Some(route) = source.route(place, labels, matcher) else { continue };
            routes.push(route);
            if last {
                // Nothing falls through: what follows is dead.
                break 'routes;
            }
        }
    }
    // Every route was about other callers or ports: plain forwarding applies.
    if routes.is_empty() && !service.spec.http.iter().any(|http| applies(place, http)) {
        return None;
    }
    Some(Table { routes, retry: Some(RetryPolicy::istio_default()), budget: None })
}

/// The routes that a VirtualService makes by itself, each with its place in `http`; delegating ones make none.
pub(in crate::translate) fn made_by(world: &World, service: &Object<VirtualService>) -> Vec<(usize, Route)> {
    let scope = NodeScope::namespace(service.namespace());
    let host = service.spec.hosts.first().map_or("", String::as_str);
    let place = Place { world, scope: &scope, host, port: 80, known: None };
    let routes = service.spec.http.iter().enumerate().filter_map(|(i, http)| {
        let source = Source { namespace: service.namespace(), http, root: None };
        Some((i, source.route(&place, Labels { name: http.name.clone(), stat_prefix: "" }, RouteMatch::any())?))
    });
    routes.collect()
}

/// One route of the result: the written route with what a delegating route adds to it.
#[derive(Clone, Copy)]
struct Source<'a> {
    namespace: &'a str,
    http: &'a HttpRoute,
    /// The route that delegated here.
    root: Option<&'a HttpRoute>,
}

/// The match blocks of a route that hold for this client and port, each with its name and what to do.
fn expand<'a>(place: &Place<'a>, service: &'a Object<VirtualService>, http: &'a HttpRoute) -> Vec<Expanded<'a>> {
    let HttpAction::Delegate { name, namespace } = &http.action else {
        let source = Source { namespace: service.namespace(), http, root: None };
        return matches(place, http).map(|(matcher, labels)| (matcher, labels, source)).collect();
    };
    let target = place.world.model.virtual_services.get(&(namespace.clone(), name.clone()));
    let visible = |target: &&Arc<Object<VirtualService>>| {
        target.spec.hosts.is_empty() && target.spec.export_to.visible_to(service.namespace())
    };
    let mut expanded = Vec::new();
    // A missing delegate is a finding, and its route is skipped.
    for inner in target.filter(visible).into_iter().flat_map(|target| &target.spec.http) {
        let source = Source { namespace, http: inner, root: Some(http) };
        for (outer, root) in matches(place, http) {
            for (matcher, own) in matches(place, inner) {
                // A delegate's block that contradicts the root's drops out.
                let Some(both) = delegate::join(&outer, &matcher) else { continue };
                let stat_prefix = if own.stat_prefix.is_empty() { root.stat_prefix } else { own.stat_prefix };
                let name = joined(&root.name, &own.name, "-");
                expanded.push((both, Labels { name, stat_prefix }, source));
            }
        }
    }
    expanded
}

type Expanded<'a> = (RouteMatch, Labels<'a>, Source<'a>);

/// How a route is called, and what its requests are counted under.
struct Labels<'a> {
    name: String,
    stat_prefix: &'a str,
}

/// The conditions of a route that can hold here, with their names.
fn matches<'a>(place: &Place<'a>, http: &'a HttpRoute) -> impl Iterator<Item = (RouteMatch, Labels<'a>)> {
    let all = http.blocks.is_empty().then(|| (RouteMatch::any(), Labels { name: http.name.clone(), stat_prefix: "" }));
    let blocks = http.blocks.iter().filter(|block| holds(place, block));
    let labels =
        |block: &'a MatchBlock| Labels { name: joined(&http.name, &block.name, "."), stat_prefix: &block.stat_prefix };
    all.into_iter().chain(blocks.map(move |block| (block.matcher.clone(), labels(block))))
}

fn joined(first: &str, second: &str, by: &str) -> String {
    match (first, second) {
        (first, "") => first.to_owned(),
        ("", second) => second.to_owned(),
        (first, second) => format!("{first}{by}{second}"),
    }
}

fn applies(place: &Place<'_>, http: &HttpRoute) -> bool {
    http.blocks.is_empty() || http.blocks.iter().any(|block| holds(place, block))
}

/// Whether a block can match a request of this client on this port.
fn holds(place: &Place<'_>, block: &MatchBlock) -> bool {
    let matcher = &block.matcher;
    block.mesh()
        && matcher.port.is_none_or(|port| port == place.port)
        && matcher.source_namespace.as_ref().is_none_or(|namespace| *namespace == place.scope.namespace)
        && includes(&place.scope.labels, &matcher.source_labels)
}

impl Source<'_> {
    /// The policy route; `None` for a delegating route, of which only the delegate's routes remain.
    fn route(&self, place: &Place<'_>, labels: Labels<'_>, matcher: RouteMatch) -> Option<Route> {
        let own = &self.http.headers;
        let mut headers = self.root.filter(|_| own.is_empty()).map_or(own, |root| &root.headers).clone();
        let action = match &self.http.action {
            HttpAction::Redirect(redirect, port) => {
                let mut redirect = redirect.clone();
                if *port == RedirectPort::Request {
                    redirect.port = Some(place.port);
                }
                RouteAction::Redirect(redirect)
            }
            HttpAction::Direct(response) => RouteAction::DirectResponse(response.clone()),
            HttpAction::Forward(destinations) => {
                RouteAction::Forward(Box::new(self.forward(place, destinations, &mut headers)))
            }
            HttpAction::Delegate { .. } => return None,
        };
        let Labels { name, stat_prefix } = labels;
        let stat_prefix = stat_prefix.to_owned();
        let route = Route { name, headers, stat_prefix, ..Route::new(matcher, action) };
        Some(match self.fault() {
            Some(fault) => route.with_fault(fault),
            None => route,
        })
    }

    fn fault(&self) -> Option<Fault> {
        self.http.fault.clone().or_else(|| self.root.and_then(|root| root.fault.clone()))
    }

    fn forward(&self, place: &Place<'_>, list: &[WeightedDestination], headers: &mut HeaderPolicy) -> Forward {
        let root = self.root;
        let targets: Vec<(String, u16, &str)> =
            list.iter().map(|entry| self.target(place, &entry.destination)).collect();
        let name = |target: &(String, u16, &str)| ClusterName::outbound(target.1, target.2, &target.0);
        let mut rewrite = pick(&self.http.rewrite, root.map(|root| &root.rewrite));
        let to = match (list, targets.as_slice()) {
            ([only], [target]) => {
                append(headers, &only.headers);
                if let Some(authority) = &only.authority {
                    rewrite.authority.get_or_insert_with(|| AuthorityRewrite::Literal(authority.clone()));
                }
                ClusterChoice::Cluster(name(target))
            }
            _ => weighted(list.iter().zip(&targets).map(|(entry, target)| WeightedCluster {
                headers: entry.headers.clone(),
                ..WeightedCluster::new(name(target), entry.weight)
            })),
        };
        let mut forward = Forward::to(ClusterName::new(""));
        forward.to = to;
        forward.timeout = self.http.timeout.or(root.and_then(|root| root.timeout));
        // Also the ceiling of a gRPC caller's own timeout (config-surface 1.1.2).
        forward.grpc_timeout_max = forward.timeout;
        forward.retry = self.http.retries.clone().or_else(|| root.and_then(|root| root.retries.clone()));
        forward.rewrite = rewrite;
        forward.cors = self.http.cors.clone().or_else(|| root.and_then(|root| root.cors.clone()));
        let mirrors =
            if self.http.mirrors.is_empty() { root.map_or(&[][..], |root| &root.mirrors) } else { &self.http.mirrors };
        forward.mirrors = mirrors
            .iter()
            .map(|mirrored| {
                let (host, port, subset) = self.target(place, &mirrored.destination);
                Mirror {
                    cluster: ClusterName::outbound(port, subset, &host),
                    share: mirrored.share,
                    shadow_host: false,
                }
            })
            .collect();
        let hashed: Vec<(&str, u16, &str)> =
            targets.iter().map(|(host, port, subset)| (&**host, *port, *subset)).collect();
        let said = self.http.previous_hosts_said;
        if add_hash(place, &mut forward, &hashed) && !said {
            forward = keeping_the_endpoint(forward);
        }
        forward
    }

    /// Full host, port and subset of a destination as written.
    fn target<'d>(&self, place: &Place<'_>, destination: &'d Destination) -> (String, u16, &'d str) {
        target(place, self.namespace, destination)
    }
}

/// Full host, port and subset of a destination that a rule of `namespace` names.
pub(super) fn target<'d>(place: &Place<'_>, namespace: &str, destination: &'d Destination) -> (String, u16, &'d str) {
    let host = names::complete(&destination.host, namespace, &place.world.options);
    let known = place.world.catalog.get(place.scope, &host);
    let only = known.and_then(|host| match host.ports.as_slice() {
        [port] => Some(port.number),
        _ => None,
    });
    // The cluster carries the name of the entry that defines the host, a wildcard perhaps.
    let host = known.map_or(host, |known| known.name.clone());
    (host, destination.port.or(only).unwrap_or(place.port), &destination.subset)
}

fn weighted(entries: impl Iterator<Item = WeightedCluster>) -> ClusterChoice {
    let clusters = WeightedClusters::new(entries.collect());
    ClusterChoice::Weighted(clusters.expect("the sum of the weights was checked when the object was read"))
}

fn pick(own: &Rewrite, root: Option<&Rewrite>) -> Rewrite {
    match root {
        Some(root) if *own == Rewrite::default() => root.clone(),
        _ => own.clone(),
    }
}

fn append(headers: &mut HeaderPolicy, more: &HeaderPolicy) {
    headers.request.write.extend(more.request.write.iter().cloned());
    headers.request.remove.extend(more.request.remove.iter().cloned());
    headers.response.write.extend(more.response.write.iter().cloned());
    headers.response.remove.extend(more.response.remove.iter().cloned());
}

/// With consistent hashing the same endpoint is tried again unless the route says otherwise.
pub(super) fn keeping_the_endpoint(mut forward: Forward) -> Forward {
    let mut retry = forward.retry.take().unwrap_or_else(RetryPolicy::istio_default);
    retry.avoid_previous_hosts = false;
    forward.retry = Some(retry);
    forward
}

/// Adds the hash sources of the destinations' consistent-hash balancers; whether there is one.
///
/// A route has one list, so destinations with different sources share it in listed order.
pub(super) fn add_hash(place: &Place<'_>, forward: &mut Forward, targets: &[(&str, u16, &str)]) -> bool {
    let mut hashed = false;
    for (host, port, subset) in targets {
        let Some(known) = place.world.catalog.get(place.scope, host) else { continue };
        let rules = place.world.rules.find(place.scope, &known.name, &known.namespace);
        let Some(lb) = rules.policy(*port, rules.subset(subset)).load_balancer else { continue };
        hashed |= matches!(lb.balancer, Some(Balancer::RingHash { .. } | Balancer::Maglev { .. }));
        forward.hash.extend(lb.hash.filter(|hash| !forward.hash.contains(hash)));
    }
    hashed
}
