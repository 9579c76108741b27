//! Endpoints of a cluster, grouped by locality, with failover tiers from the client's point of view.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use mesh_core::id::Locality;
use mesh_core::policy::{Endpoint, Endpoints, LocalityEndpoints};

use super::catalog::{HostPort, Lookup};
use super::instances::Instance;
use super::{NodeScope, World, names};
use crate::model::{LocalitySetting, PortPolicy, Subset};

/// The EDS resource of that name; `None` where the cluster finds its own endpoints.
pub(super) fn assignment(world: &World, scope: &NodeScope, name: &str) -> Option<Endpoints> {
    let parts = names::parse(name).filter(|parts| !parts.passthrough)?;
    let host = world.catalog.get(scope, parts.host).filter(|host| host.resolution == Lookup::Known)?;
    let port = host.port(parts.port)?;
    let rules = world.rules.find(scope, &host.name, &host.namespace);
    let subset = match parts.subset {
        "" => None,
        wanted => Some(rules.subset(wanted)?),
    };
    Some(of_port(name, port, subset, scope, &rules.policy(parts.port, subset)))
}

/// The endpoints of a port, or of a subset of it.
pub(super) fn of_port(
    name: &str,
    port: &HostPort,
    subset: Option<&Subset>,
    scope: &NodeScope,
    policy: &PortPolicy,
) -> Endpoints {
    let members = port.instances.iter().filter(|instance| subset.is_none_or(|subset| instance.has(&subset.labels)));
    let default = LocalitySetting::default();
    let setting = policy.load_balancer.as_ref().map_or(&default, |lb| &lb.locality);
    // As in Istio, tiers need outlier detection: without it nobody would notice that a tier is down.
    let tiered = policy.outlier.is_some() && !setting.disabled && !scope.locality.region.is_empty();
    let mut groups: BTreeMap<(u32, &Locality), Vec<&Instance>> = BTreeMap::new();
    for instance in members {
        let tier = if tiered { tier(&scope.locality, &instance.locality, setting) } else { 0 };
        groups.entry((tier, &instance.locality)).or_default().push(instance);
    }
    // Tiers nobody is in are closed up: priorities must be without gaps.
    let mut tiers: Vec<u32> = groups.keys().map(|(tier, _)| *tier).collect();
    tiers.dedup();
    let localities = groups.into_iter().map(|((tier, locality), mut instances)| {
        instances.sort_by(|a, b| a.address.cmp(&b.address));
        instances.dedup_by(|a, b| a.address == b.address);
        let weight = instances.iter().fold(0u32, |sum, instance| sum.saturating_add(instance.weight.get()));
        let priority = tiers.iter().position(|other| *other == tier).unwrap_or(0);
        LocalityEndpoints {
            locality: locality.clone(),
            priority: u32::try_from(priority).unwrap_or(u32::MAX),
            weight: NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN),
            endpoints: instances.into_iter().map(endpoint).collect(),
        }
    });
    Endpoints { cluster: name.to_owned(), localities: localities.collect(), ..Endpoints::default() }
}

fn endpoint(instance: &Instance) -> Endpoint {
    Endpoint {
        weight: instance.weight,
        health: instance.health,
        metadata: instance.metadata.clone(),
        ..Endpoint::new(instance.address.clone())
    }
}

/// 0 same sub-zone, 1 same zone, 2 same region, 3 other region, 4 other region than the one that
/// `failover` names for ours.
fn tier(client: &Locality, endpoint: &Locality, setting: &LocalitySetting) -> u32 {
    if client.region != endpoint.region {
        let to = setting.failover.get(&client.region);
        return if to.is_none_or(|to| *to == endpoint.region) { 3 } else { 4 };
    }
    match (client.zone == endpoint.zone, client.sub_zone == endpoint.sub_zone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}
