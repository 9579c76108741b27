//! How localities take part in balancing, and how consistent hashing places endpoints: settings that many
//! policies share.

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::ZoneAwareLbConfig as OlderProto;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::{
    ConsistentHashingLbConfig, LocalityLbConfig,
    locality_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
};
use mesh_core::policy::{Hashing, LocalityBalancing, PerMillion, ZoneAware};

use super::common;
use super::report::{At, Report, consider};

/// The setting of a typed policy. It holds one of both; the weights win, and zone awareness beside them
/// travels in the cluster's own field.
pub(super) fn encode(policy: &LocalityBalancing) -> Option<LocalityLbConfig> {
    let specifier = match (policy.weighted, &policy.zone_aware) {
        (true, _) => LocalityConfigSpecifier::LocalityWeightedLbConfig(Default::default()),
        (false, Some(zone)) => LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
            routing_enabled: Some(common::percent(zone.share)),
            min_cluster_size: common::uint64(zone.min_cluster_size),
            fail_traffic_on_panic: zone.fail_on_panic,
            ..Default::default()
        }),
        (false, None) => return None,
    };
    Some(LocalityLbConfig { locality_config_specifier: Some(specifier) })
}

/// The cluster's own field.
pub(super) fn encode_older(zone: &ZoneAware) -> OlderProto {
    OlderProto {
        routing_enabled: Some(common::percent(zone.share)),
        min_cluster_size: common::uint64(zone.min_cluster_size),
        fail_traffic_on_panic: zone.fail_on_panic,
    }
}

/// Reads `(by weight, zone aware)`.
pub(super) fn read_locality(
    proto: Option<&LocalityLbConfig>,
    at: &At<'_>,
    report: &mut Report,
) -> (bool, Option<ZoneAware>) {
    match proto.and_then(|p| p.locality_config_specifier.as_ref()) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => (true, None),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let at = at.field("locality_lb_config");
            let at = at.field("zone_aware_lb_config");
            consider!(zone, &at, report, ZoneAwareLbConfig {
                read: [routing_enabled, min_cluster_size, fail_traffic_on_panic],
                idle: [],
                force_locality_direct_routing => "a zone gets its share of requests, and no more",
                force_local_zone => "a zone gets its share of requests, and no more",
                locality_basis => "endpoints are counted, not weighed",
            });
            let older = OlderProto {
                routing_enabled: zone.routing_enabled.clone(),
                min_cluster_size: zone.min_cluster_size,
                fail_traffic_on_panic: zone.fail_traffic_on_panic,
            };
            (false, read_older(&older, &at, report))
        }
        None => (false, None),
    }
}

/// Reads the cluster's own field.
pub(super) fn read_older(proto: &OlderProto, at: &At<'_>, report: &mut Report) -> Option<ZoneAware> {
    let share = match &proto.routing_enabled {
        Some(percent) => common::read_percent(percent, &at.field("routing_enabled"), report)?,
        None => PerMillion::ALL,
    };
    let default = ZoneAware::default();
    let min_cluster_size = proto.min_cluster_size.map_or(default.min_cluster_size, |size| size.value);
    Some(ZoneAware { share, min_cluster_size, fail_on_panic: proto.fail_traffic_on_panic })
}

/// Writes how endpoints are placed; none if nothing is said.
pub(super) fn encode_hashing(hashing: Hashing) -> Option<ConsistentHashingLbConfig> {
    (hashing != Hashing::default()).then(|| ConsistentHashingLbConfig {
        use_hostname_for_hashing: hashing.use_hostname,
        hash_balance_factor: hashing.balance_factor.and_then(common::uint32),
        hash_policy: Vec::new(),
    })
}

/// Reads how endpoints are placed.
pub(super) fn read_hashing(proto: &ConsistentHashingLbConfig, at: &At<'_>, report: &mut Report) -> Hashing {
    consider!(proto, at, report, ConsistentHashingLbConfig {
        read: [use_hostname_for_hashing, hash_balance_factor],
        idle: [],
        hash_policy => "the route says what is hashed",
    });
    let balance_factor = proto.hash_balance_factor.map(|factor| factor.value);
    if let Some(factor) = balance_factor.filter(|factor| *factor < 100) {
        report.problem(&at.field("hash_balance_factor"), format!("{factor} is less than 100"));
    }
    Hashing { use_hostname: proto.use_hostname_for_hashing, balance_factor }
}
