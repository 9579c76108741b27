//! Endpoints of a cluster, grouped by locality, with failover tiers from the client's point of view.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

use mesh_core::id::Locality;
use mesh_core::policy::{Address, Endpoint, Endpoints, LocalityEndpoints};

use super::catalog::{HostPort, Lookup};
use super::instances::Instance;
use super::{NodeScope, World, names};
use crate::model::{Distribution, LocalitySetting, PortPolicy, REGION, SUB_ZONE, Subset, ZONE, covers_locality};

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
    let mut members: Vec<&Instance> = members.collect();
    // An address is one endpoint, whoever names it and in whichever locality: a pod that is in a slice and announces itself
    // would count twice. What manifests say comes first, and counts.
    members.sort_by(|a, b| a.address.cmp(&b.address));
    members.dedup_by(|a, b| a.address == b.address);
    let also: HashSet<&Address> = members.iter().flat_map(|instance| &instance.others).collect();
    if !also.is_empty() {
        // So would one that announces itself at its address of the other family.
        members.retain(|instance| !instance.others.is_empty() || !also.contains(&instance.address));
    }
    let shares = Shares::of(&members);
    let distribution = distribution(scope, policy);
    let mut groups: BTreeMap<(u32, &Locality), Vec<&Instance>> = BTreeMap::new();
    for instance in members {
        let tier = if distribution.is_some() { 0 } else { tier(scope, instance, policy) };
        groups.entry((tier, &instance.locality)).or_default().push(instance);
    }
    // Tiers nobody is in are closed up: priorities must be without gaps.
    let mut tiers: Vec<u32> = groups.keys().map(|(tier, _)| *tier).collect();
    tiers.dedup();
    let localities = groups.into_iter().map(|((tier, locality), instances)| {
        let weight = instances.iter().fold(0u32, |sum, instance| sum.saturating_add(shares.weight(instance).get()));
        let priority = tiers.iter().position(|other| *other == tier).unwrap_or(0);
        LocalityEndpoints {
            locality: locality.clone(),
            priority: u32::try_from(priority).unwrap_or(u32::MAX),
            weight: NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN),
            endpoints: instances.into_iter().map(|instance| endpoint(instance, shares.weight(instance))).collect(),
        }
    });
    let mut localities: Vec<LocalityEndpoints> = localities.collect();
    if let Some(distribution) = distribution {
        distribute(&mut localities, distribution);
    }
    Endpoints { cluster: name.to_owned(), localities, ..Endpoints::default() }
}

/// The entry of `distribute` that holds for a client: the first whose `from` matches its locality.
pub(super) fn distribution<'a>(scope: &NodeScope, policy: &'a PortPolicy) -> Option<&'a Distribution> {
    let setting = policy.load_balancer.as_ref().map(|lb| &lb.locality).filter(|setting| !setting.disabled)?;
    setting.distribute.iter().find(|entry| covers_locality(&entry.from, &scope.locality))
}

/// Gives each pattern's share to the localities it matches, in proportion to their endpoints' weights.
/// A locality that no pattern matches gets nothing.
fn distribute(localities: &mut Vec<LocalityEndpoints>, distribution: &Distribution) {
    // Shares are in percent; finer, so that a small one can be parted without being rounded up.
    const FINE: u64 = 10_000;
    let mut shares: Vec<Option<NonZeroU32>> = vec![None; localities.len()];
    for (pattern, percent) in &distribution.to {
        let matched: Vec<usize> = (0..localities.len())
            .filter(|at| shares[*at].is_none() && covers_locality(pattern, &localities[*at].locality))
            .collect();
        let own = |at: usize| u64::from(localities[at].weight.get());
        let total: u64 = matched.iter().map(|at| own(*at)).sum();
        for at in matched {
            let share = u128::from(*percent) * u128::from(FINE) * u128::from(own(at)) / u128::from(total);
            shares[at] = Some(NonZeroU32::new(u32::try_from(share).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN));
        }
    }
    let mut shares = shares.into_iter();
    localities.retain_mut(|group| {
        let share = shares.next().flatten();
        group.weight = share.unwrap_or(group.weight);
        share.is_some()
    });
}

/// Weights of the endpoints of one port, which together fit into 32 bits: clients refuse more.
struct Shares {
    /// What all add up to, and what they may, where that is less.
    less: Option<(u64, u64)>,
}

impl Shares {
    fn of(instances: &[&Instance]) -> Self {
        let total: u64 = instances.iter().map(|instance| u64::from(instance.weight.get())).sum();
        // None becomes nothing, so each may be one more than its share.
        let most = u64::from(u32::MAX).saturating_sub(instances.len() as u64);
        Self { less: (total > u64::from(u32::MAX)).then_some((total, most)) }
    }

    fn weight(&self, instance: &Instance) -> NonZeroU32 {
        let Some((total, most)) = self.less else { return instance.weight };
        let share = u128::from(instance.weight.get()) * u128::from(most) / u128::from(total);
        NonZeroU32::new(u32::try_from(share).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
    }
}

fn endpoint(instance: &Instance, weight: NonZeroU32) -> Endpoint {
    Endpoint {
        weight,
        health: instance.health,
        additional_addresses: instance.others.as_slice().into(),
        metadata: instance.metadata.clone(),
        ..Endpoint::new(instance.address.clone())
    }
}

/// In which order an endpoint is used: first by the labels of `failoverPriority`, then by locality.
///
/// As in Istio, tiers need outlier detection: without it nobody would notice that one is down.
fn tier(scope: &NodeScope, instance: &Instance, policy: &PortPolicy) -> u32 {
    let default = LocalitySetting::default();
    let setting = policy.load_balancer.as_ref().map_or(&default, |lb| &lb.locality);
    if policy.outlier.is_none() || setting.disabled {
        return 0;
    }
    let labels = &setting.failover_priority;
    let by_locality = labels.is_empty() || !setting.failover.is_empty();
    let near = match by_locality && !scope.locality.region.is_empty() {
        true => locality_tier(&scope.locality, &instance.locality, setting),
        false => 0,
    };
    let differs = |(label, said): &(String, Option<String>)| {
        let own = said.as_deref().unwrap_or_else(|| value(label, &scope.labels, &scope.locality));
        own != value(label, &instance.labels, &instance.locality)
    };
    // How many labels are left from the first that differs.
    let left = labels.iter().position(differs).map_or(0, |at| labels.len() - at);
    u32::try_from(left).unwrap_or(u32::MAX).saturating_mul(LOCALITY_TIERS).saturating_add(near)
}

/// The value of a label, of which some stand for the locality; empty if there is none.
fn value<'a>(label: &str, labels: &'a BTreeMap<String, String>, locality: &'a Locality) -> &'a str {
    match label {
        REGION => &locality.region,
        ZONE => &locality.zone,
        SUB_ZONE => &locality.sub_zone,
        other => labels.get(other).map_or("", String::as_str),
    }
}

const LOCALITY_TIERS: u32 = 5;

/// 0 same sub-zone, 1 same zone, 2 same region, 3 other region, 4 other region than the one that
/// `failover` names for ours.
fn locality_tier(client: &Locality, endpoint: &Locality, setting: &LocalitySetting) -> u32 {
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
