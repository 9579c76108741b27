//! `ClusterLoadAssignment` ⇄ [`Endpoints`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{self as core, HealthStatus, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::{
    self as xds,
    cluster_load_assignment::{Policy, policy},
    lb_endpoint::HostIdentifier,
    locality_lb_endpoints,
};
use envoy_types::pb::google::protobuf::value::Kind;
use mesh_core::id::{Locality, Workload};
use mesh_core::policy::{Address, DropOverload, Endpoint, EndpointMetadata, Endpoints, Health, LocalityEndpoints};

use super::common::{self, non_empty};
use super::extension;
use super::report::{At, Report};

pub(super) use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as Proto;

/// Metadata whose `tlsMode: istio` marks an endpoint that takes mesh mTLS.
const TLS_MODE: (&str, &str, &str) = ("envoy.transport_socket_match", "tlsMode", "istio");
/// Metadata whose `workload` says who runs there.
const WORKLOAD: (&str, &str) = ("istio", "workload");
/// Metadata for load balancers.
const LB: &str = "envoy.lb";

pub(super) fn encode(endpoints: &Endpoints) -> Proto {
    let drops = endpoints.drops.iter().map(|d| policy::DropOverload {
        category: d.category.clone(),
        drop_percentage: Some(common::fraction(d.share)),
    });
    Proto {
        cluster_name: endpoints.cluster.clone(),
        endpoints: endpoints.localities.iter().map(encode_locality).collect(),
        policy: (!endpoints.drops.is_empty()).then(|| Policy { drop_overloads: drops.collect(), ..Default::default() }),
        ..Default::default()
    }
}

/// Decodes an EDS resource, where gRPC's rule holds that a locality without a weight gets no traffic.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Endpoints> {
    Some(read(proto, Origin::Eds, at, report))
}

/// Decodes an assignment written inside a cluster, where weights and localities may be left out.
pub(super) fn decode_inline(proto: &Proto, at: &At<'_>, report: &mut Report) -> Endpoints {
    read(proto, Origin::Cluster, at, report)
}

#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Eds,
    Cluster,
}

fn read(proto: &Proto, origin: Origin, at: &At<'_>, report: &mut Report) -> Endpoints {
    let mut shared = Shared::default();
    let mut localities = Vec::with_capacity(proto.endpoints.len());
    for (i, locality) in proto.endpoints.iter().enumerate() {
        localities.extend(read_locality(locality, origin, &mut shared, &at.item("endpoints", i), report));
    }
    check_priorities(&localities, at, report);
    let no_effect = "named endpoints are not used";
    report.unenforced_if(!proto.named_endpoints.is_empty(), at, "named_endpoints", no_effect);
    let drops = proto.policy.as_ref().map(|p| read_policy(p, &at.field("policy"), report)).unwrap_or_default();
    Endpoints { cluster: proto.cluster_name.clone(), localities, drops }
}

fn read_policy(proto: &Policy, at: &At<'_>, report: &mut Report) -> Vec<DropOverload> {
    let set = proto.overprovisioning_factor.is_some();
    report.unenforced_if(set, at, "overprovisioning_factor", "a priority is left by its panic threshold alone");
    let set = proto.endpoint_stale_after.is_some();
    report.unenforced_if(set, at, "endpoint_stale_after", "endpoints stay until the next update");
    let set = proto.weighted_priority_health;
    report.unenforced_if(set, at, "weighted_priority_health", "priority health counts endpoints, not weights");
    let mut drops = Vec::with_capacity(proto.drop_overloads.len());
    for (i, drop) in proto.drop_overloads.iter().enumerate() {
        let at = at.item("drop_overloads", i);
        if drop.category.is_empty() {
            report.problem(&at.field("category"), "a category is required");
        }
        let Some(share) = &drop.drop_percentage else { continue };
        let Some(share) = common::read_fraction(share, &at.field("drop_percentage"), report) else { continue };
        drops.push(DropOverload { category: drop.category.clone(), share });
    }
    drops
}

fn encode_locality(group: &LocalityEndpoints) -> xds::LocalityLbEndpoints {
    xds::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: group.locality.region.clone(),
            zone: group.locality.zone.clone(),
            sub_zone: group.locality.sub_zone.clone(),
        }),
        priority: group.priority,
        load_balancing_weight: common::uint32(group.weight.get()),
        lb_endpoints: group.endpoints.iter().map(encode_endpoint).collect(),
        ..Default::default()
    }
}

fn read_locality(
    proto: &xds::LocalityLbEndpoints,
    origin: Origin,
    shared: &mut Shared,
    at: &At<'_>,
    report: &mut Report,
) -> Option<LocalityEndpoints> {
    let weight = match (proto.load_balancing_weight, origin) {
        (Some(weight), _) => NonZeroU32::new(weight.value),
        (None, Origin::Cluster) => Some(NonZeroU32::MIN),
        (None, Origin::Eds) => None,
    };
    if proto.locality.is_none() && origin == Origin::Eds {
        report.problem(&at.field("locality"), "a locality is required");
    }
    if let Some(locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(_)) = &proto.lb_config {
        report.problem(&at.field("leds_cluster_locality_config"), "LEDS is not supported");
    }
    let listed = match &proto.lb_config {
        Some(locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        _ => &proto.lb_endpoints,
    };
    let mut endpoints = Vec::with_capacity(listed.len());
    for (i, endpoint) in listed.iter().enumerate() {
        endpoints.extend(read_endpoint(endpoint, shared, &at.item("lb_endpoints", i), report));
    }
    if endpoints.iter().try_fold(0_u32, |sum, e| sum.checked_add(e.weight.get())).is_none() {
        report.problem(&at.field("lb_endpoints"), "the endpoints' weights sum to more than a u32 holds");
    }
    let Some(weight) = weight else {
        let effect = "the locality has no weight: its endpoints get no traffic (gRFC A27)";
        report.unenforced_if(!endpoints.is_empty(), at, "load_balancing_weight", effect);
        return None;
    };
    let locality = proto.locality.as_ref().map(|l| Locality {
        region: l.region.clone(),
        zone: l.zone.clone(),
        sub_zone: l.sub_zone.clone(),
    });
    Some(LocalityEndpoints { locality: locality.unwrap_or_default(), priority: proto.priority, weight, endpoints })
}

/// gRFC A27: priorities without gaps, one entry per locality and priority, weights that fit.
fn check_priorities(localities: &[LocalityEndpoints], at: &At<'_>, report: &mut Report) {
    let mut seen: BTreeMap<u32, (u64, HashSet<&Locality>)> = BTreeMap::new();
    for group in localities {
        let (sum, names) = seen.entry(group.priority).or_default();
        *sum += u64::from(group.weight.get());
        if !names.insert(&group.locality) {
            let Locality { region, zone, sub_zone } = &group.locality;
            let reason = format!("locality {region}/{zone}/{sub_zone} is twice in priority {}", group.priority);
            report.problem(&at.field("endpoints"), reason);
        }
    }
    for (expected, (priority, (sum, _))) in (0_u32..).zip(&seen) {
        if *priority != expected {
            let reason = format!("priority {expected} is missing below {priority}");
            report.problem(&at.field("endpoints"), reason);
            break;
        }
        if *sum > u64::from(u32::MAX) {
            let reason = format!("the locality weights of priority {priority} sum to more than a u32 holds");
            report.problem(&at.field("endpoints"), reason);
        }
    }
}

fn encode_endpoint(endpoint: &Endpoint) -> xds::LbEndpoint {
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unknown => HealthStatus::Unknown,
        Health::Draining => HealthStatus::Draining,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Degraded => HealthStatus::Degraded,
    };
    xds::LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: common::uint32(endpoint.weight.get()),
        metadata: encode_metadata(&endpoint.metadata),
        host_identifier: Some(HostIdentifier::Endpoint(xds::Endpoint {
            address: Some(common::address(&endpoint.address)),
            hostname: endpoint.metadata.hostname.clone().unwrap_or_default(),
            ..Default::default()
        })),
    }
}

fn read_endpoint(proto: &xds::LbEndpoint, shared: &mut Shared, at: &At<'_>, report: &mut Report) -> Option<Endpoint> {
    let Some(HostIdentifier::Endpoint(host)) = &proto.host_identifier else {
        report.problem(&at.field("endpoint"), "an endpoint with an address is required");
        return None;
    };
    let at_host = at.field("endpoint");
    let address = common::read_address(host.address.as_ref(), &at_host.field("address"), report);
    let effect = "only the first address of the endpoint is used";
    report.unenforced_if(!host.additional_addresses.is_empty(), &at_host, "additional_addresses", effect);
    let effect = "health checks go to the endpoint's own address";
    report.unenforced_if(host.health_check_config.is_some(), &at_host, "health_check_config", effect);
    let weight = NonZeroU32::new(proto.load_balancing_weight.map_or(1, |w| w.value));
    if weight.is_none() {
        report.problem(&at.field("load_balancing_weight"), "an endpoint's weight must be above 0");
    }
    let health = match HealthStatus::try_from(proto.health_status) {
        Ok(HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Unknown) => Health::Unknown,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Degraded) => Health::Degraded,
        // A status of a later xDS than this is not a reason to send traffic.
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    };
    let address = address?;
    if !shared.addresses.insert(address.clone()) {
        report.problem(&at_host.field("address"), format!("{address} is listed twice"));
    }
    let metadata = read_metadata(&host.hostname, proto.metadata.as_ref());
    Some(Endpoint { weight: weight?, health, metadata: shared.metadata(metadata), ..Endpoint::new(address) })
}

/// What the endpoints of one assignment share.
#[derive(Default)]
struct Shared {
    addresses: HashSet<Address>,
    metadata: HashMap<EndpointMetadata, Arc<EndpointMetadata>>,
}

impl Shared {
    fn metadata(&mut self, metadata: EndpointMetadata) -> Arc<EndpointMetadata> {
        self.metadata.entry(metadata).or_insert_with_key(|m| Arc::new(m.clone())).clone()
    }
}

fn encode_metadata(facts: &EndpointMetadata) -> Option<Metadata> {
    let mut metadata = None;
    if facts.mesh_tls {
        let (key, field, value) = TLS_MODE;
        extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::string(value))]));
    }
    if let Some(w) = &facts.workload {
        let text = [&w.name, &w.namespace, &w.canonical_name, &w.canonical_revision, &w.cluster];
        let text = text.map(String::as_str).join(";");
        let (key, field) = WORKLOAD;
        extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::string(text))]));
    }
    if !facts.lb.is_empty() {
        let fields = facts.lb.iter().map(|(k, v)| (k.clone(), extension::string(v))).collect();
        extension::put_struct(&mut metadata, LB, fields);
    }
    metadata
}

fn read_metadata(hostname: &str, metadata: Option<&Metadata>) -> EndpointMetadata {
    let text = |key, field| extension::struct_field(metadata, key, field).and_then(extension::as_str);
    let (key, field, value) = TLS_MODE;
    let lb = metadata.and_then(|m| m.filter_metadata.get(LB)).map(|s| {
        let fields = s.fields.iter().filter_map(|(k, v)| Some((k.clone(), scalar(v.kind.as_ref()?)?)));
        fields.collect()
    });
    EndpointMetadata {
        mesh_tls: text(key, field) == Some(value),
        hostname: non_empty(hostname),
        workload: text(WORKLOAD.0, WORKLOAD.1).map(read_workload),
        lb: lb.unwrap_or_default(),
    }
}

/// `name;namespace;canonical-name;canonical-revision;cluster`, as istiod writes it; missing parts stay
/// empty.
fn read_workload(text: &str) -> Workload {
    let mut parts = text.splitn(5, ';').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Workload {
        name: next(),
        namespace: next(),
        canonical_name: next(),
        canonical_revision: next(),
        cluster: next(),
        labels: BTreeMap::new(),
    }
}

/// Subset keys may be booleans and numbers in Envoy; here they are text.
fn scalar(kind: &Kind) -> Option<String> {
    match kind {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(value) => Some(value.to_string()),
        Kind::NumberValue(value) => Some(value.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}
