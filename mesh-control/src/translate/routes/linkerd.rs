//! Routes of a Linkerd ServiceProfile and an SMI TrafficSplit. A split is an override of the profile's
//! destination, as Linkerd's adaptor makes it.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::ClusterName;
use mesh_core::policy::{
    ClusterChoice, Forward, PerMillionRatio, RetryBudget, RetryOn, RetryPolicy, Route, RouteAction, WeightedCluster,
    WeightedClusters,
};

use super::{Place, Table, forward_all, istio};
use crate::model::{Object, ProfileRoute, ServiceProfile, TrafficSplit};
use crate::translate::catalog::Host;
use crate::translate::{World, names};

/// Linkerd bounds retries by the budget alone; this only keeps one request from going on for ever.
const MAX_ATTEMPTS: u32 = 64;
/// What no route of a profile takes, as Linkerd's tools show it.
const DEFAULT_ROUTE: &str = "[DEFAULT]";

/// The routes of the profile or the split that holds here.
pub(super) fn table(place: &Place<'_>, known: &Host) -> Option<Table> {
    let profile = profile(place.world, &place.scope.namespace, &known.name, &known.namespace);
    let split = split(place.world, known);
    let shares = match (split, profile) {
        (Some(split), _) => shares_of_split(place, split),
        (None, Some(profile)) => shares_of_profile(place, profile),
        (None, None) => return None,
    };
    let (forward, hashed) = forward(place, known, shares);
    let Some(profile) = profile else {
        let forward = if hashed { istio::keeping_the_endpoint(forward) } else { forward };
        return Some(Table {
            routes: vec![forward_all("split", forward)],
            retry: Some(RetryPolicy::istio_default()),
            budget: None,
        });
    };
    let mut routes: Vec<Route> =
        profile.spec.routes.iter().flat_map(|route| profile_routes(route, &forward, hashed)).collect();
    routes.push(forward_all(DEFAULT_ROUTE, Forward { retry: Some(no_retries()), ..forward }));
    // Linkerd counts by route whatever a profile has routes for, and the rest together.
    routes.iter_mut().for_each(|route| route.stat_prefix.clone_from(&route.name));
    let retries = profile.spec.routes.iter().any(|route| route.retryable);
    let budget = profile.spec.budget.clone().or_else(|| retries.then(default_budget));
    Some(Table { routes, retry: None, budget })
}

/// The profile for a host: in the client's namespace, else in the service's.
pub(in crate::translate) fn profile<'a>(
    world: &'a World,
    client: &str,
    host: &str,
    owner: &str,
) -> Option<&'a Arc<Object<ServiceProfile>>> {
    let profiles = &world.model.service_profiles;
    let at = |namespace: &str| profiles.get(&(namespace.to_owned(), host.to_owned()));
    at(client).or_else(|| at(owner))
}

/// The oldest split whose root is this service.
fn split<'a>(world: &'a World, host: &Host) -> Option<&'a Arc<Object<TrafficSplit>>> {
    let key = || (host.namespace.clone(), host.short.clone());
    host.kubernetes.then(|| world.splits.get(&key())).flatten()
}

/// A part of the traffic: host, port, weight.
type Share = (String, u16, u32);

fn shares_of_split(place: &Place<'_>, split: &Object<TrafficSplit>) -> Vec<Share> {
    let full = |name: &str| names::fqdn(name, split.namespace(), &place.world.options);
    split.spec.backends.iter().map(|(name, weight)| (full(name), place.port, *weight)).collect()
}

fn shares_of_profile(place: &Place<'_>, profile: &Object<ServiceProfile>) -> Vec<Share> {
    let overrides = profile.spec.overrides.iter();
    overrides.map(|entry| (entry.host.clone(), entry.port.unwrap_or(place.port), entry.weight)).collect()
}

/// Forwarding by shares, and whether endpoints are chosen by a hash, as the rules of the backends say. A backend that
/// has no such port is left out; one that does not exist keeps its share, which fails.
fn forward(place: &Place<'_>, known: &Host, mut shares: Vec<Share>) -> (Forward, bool) {
    let portless = |host: &str, port: u16| {
        place.world.catalog.get(place.scope, host).is_some_and(|backend| backend.port(port).is_none())
    };
    shares.retain(|(host, port, weight)| *weight > 0 && !portless(host, *port));
    let entry = |(host, port, weight): &Share| WeightedCluster::new(ClusterName::outbound(*port, "", host), *weight);
    let mut forward = Forward::to(ClusterName::outbound(place.port, "", &known.name));
    match WeightedClusters::new(shares.iter().map(entry).collect()) {
        Ok(clusters) => forward.to = ClusterChoice::Weighted(clusters),
        // Nobody is left: the service itself.
        Err(_) => shares = vec![(known.name.clone(), place.port, 1)],
    }
    let targets: Vec<(&str, u16, &str)> = shares.iter().map(|(host, port, _)| (&**host, *port, "")).collect();
    let hashed = istio::add_hash(place, &mut forward, &targets);
    (forward, hashed)
}

fn profile_routes<'a>(route: &'a ProfileRoute, to: &'a Forward, hashed: bool) -> impl Iterator<Item = Route> + 'a {
    route.matches.iter().map(move |matcher| {
        let mut forward = to.clone();
        forward.timeout = route.timeout;
        forward.retry = Some(match route.retryable {
            true => {
                let on = RetryOn { classified_failure: true, ..RetryOn::default() };
                RetryPolicy { avoid_previous_hosts: !hashed, ..RetryPolicy::new(MAX_ATTEMPTS, on) }
            }
            false => no_retries(),
        });
        let action = RouteAction::Forward(Box::new(forward));
        let response_classes = route.classes.clone();
        Route { name: route.name.clone(), response_classes, ..Route::new(matcher.clone(), action) }
    })
}

/// What a profile means that does not say `isRetryable`: a client that is told nothing would send what is idempotent once
/// more where its connection closes.
fn no_retries() -> RetryPolicy {
    RetryPolicy::new(0, RetryOn::default())
}

/// Linkerd's budget for a profile that has none.
fn default_budget() -> RetryBudget {
    RetryBudget { retry_ratio: PerMillionRatio(200_000), min_retries_per_second: 10, ttl: Duration::from_secs(10) }
}
