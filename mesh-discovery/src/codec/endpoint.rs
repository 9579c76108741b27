//! `ClusterLoadAssignment` ⇄ [`Endpoints`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{self as core, HealthStatus, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::{
    self as xds, Endpoint as HostProto, LbEndpoint as EndpointProto, LocalityLbEndpoints as LocalityProto,
    cluster_load_assignment::{Policy, policy},
    endpoint::{AdditionalAddress, HealthCheckConfig},
    lb_endpoint::HostIdentifier,
    locality_lb_endpoints,
};
use foldhash::fast::RandomState;
use mesh_core::id::{Locality, Workload};
use mesh_core::policy::{
    Address, DropOverload, Endpoint, EndpointMetadata, Endpoints, Health, HealthCheckTarget, LocalityEndpoints,
};

use super::common::{self, non_empty};
use super::extension::{self, LB, url};
use super::report::{At, Report, consider};

pub(super) use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as Proto;

/// Metadata whose `tlsMode: istio` marks an endpoint that takes mesh mTLS.
const TLS_MODE: (&str, &str, &str) = ("envoy.transport_socket_match", "tlsMode", "istio");
/// Metadata with which a control plane of ours says that an endpoint is sent nothing in plaintext.
const STRICT: (&str, &str, &str) = ("mesh", "plaintext", "refused");
/// Metadata whose `workload` says who runs there.
const WORKLOAD: (&str, &str) = ("istio", "workload");
/// Typed metadata that names an HTTP CONNECT proxy (gRFC A86).
const PROXY: &str = "envoy.http11_proxy_transport_socket.proxy_address";

pub(super) fn encode(endpoints: &Endpoints) -> Proto {
    let drops = endpoints.drops.iter().map(|d| policy::DropOverload {
        category: d.category.clone(),
        drop_percentage: Some(common::fraction(d.share)),
    });
    let policy = Policy {
        drop_overloads: drops.collect(),
        overprovisioning_factor: endpoints.overprovisioning_factor.and_then(common::uint32),
        ..Default::default()
    };
    Proto {
        cluster_name: endpoints.cluster.clone(),
        endpoints: endpoints.localities.iter().map(encode_locality).collect(),
        policy: (policy != Policy::default()).then_some(policy),
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
    consider!(proto, at, report, Proto {
        read: [cluster_name, endpoints, policy],
        idle: [],
        named_endpoints => "named endpoints are not used",
    });
    let drops = proto.policy.as_ref().map(|p| read_policy(p, &at.field("policy"), report)).unwrap_or_default();
    let factor = proto.policy.as_ref().and_then(|p| p.overprovisioning_factor).map(|f| f.value);
    if factor == Some(0) {
        report.problem(&at.field("policy.overprovisioning_factor"), "it must be above 0");
    }
    Endpoints { cluster: proto.cluster_name.clone(), localities, drops, overprovisioning_factor: factor }
}

fn read_policy(proto: &Policy, at: &At<'_>, report: &mut Report) -> Vec<DropOverload> {
    consider!(proto, at, report, Policy {
        read: [drop_overloads, overprovisioning_factor],
        idle: [],
        endpoint_stale_after => "endpoints stay until the next update",
        weighted_priority_health => "priority health counts endpoints, not weights",
    });
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
    consider!(proto, at, report, LocalityProto {
        read: [locality, metadata, lb_endpoints, load_balancing_weight, priority, lb_config],
        idle: [],
        proximity => "priority and weight say which locality is used",
    });
    let proxy = read_proxy(proto.metadata.as_ref(), at, report);
    let listed = match &proto.lb_config {
        Some(locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        _ => &proto.lb_endpoints,
    };
    let Some(weight) = weight else {
        let effect = "the locality has no weight: its endpoints get no traffic (gRFC A27)";
        report.unenforced_if(!listed.is_empty(), at, "load_balancing_weight", effect);
        return None;
    };
    let mut endpoints = Vec::with_capacity(listed.len());
    for (i, endpoint) in listed.iter().enumerate() {
        endpoints.extend(read_endpoint(endpoint, proxy.as_ref(), shared, &at.item("lb_endpoints", i), report));
    }
    if endpoints.iter().try_fold(0_u32, |sum, e| sum.checked_add(e.weight.get())).is_none() {
        report.problem(&at.field("lb_endpoints"), "the endpoints' weights sum to more than a u32 holds");
    }
    let locality = proto.locality.as_ref().map(|l| Locality {
        region: l.region.clone(),
        zone: l.zone.clone(),
        sub_zone: l.sub_zone.clone(),
    });
    Some(LocalityEndpoints { locality: locality.unwrap_or_default(), priority: proto.priority, weight, endpoints })
}

/// Whether the priorities of an assignment are as they have to be.
pub(super) fn has_orderly_priorities(localities: &[LocalityEndpoints]) -> bool {
    match localities {
        [] => true,
        [only] => only.priority == 0,
        several => {
            let mut report = Report::new("", "");
            check_priorities(several, &At::ROOT, &mut report);
            report.is_clean()
        }
    }
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

/// A health as xDS says it.
pub(super) fn health(health: Health) -> HealthStatus {
    match health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unknown => HealthStatus::Unknown,
        Health::Draining => HealthStatus::Draining,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Degraded => HealthStatus::Degraded,
    }
}

/// A health as xDS says it. A status of a later xDS than this is not a reason to send traffic.
pub(super) fn read_health(status: i32) -> Health {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Unknown) => Health::Unknown,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Degraded) => Health::Degraded,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    }
}

fn encode_endpoint(endpoint: &Endpoint) -> xds::LbEndpoint {
    xds::LbEndpoint {
        health_status: health(endpoint.health).into(),
        load_balancing_weight: common::uint32(endpoint.weight.get()),
        metadata: encode_metadata(&endpoint.metadata),
        host_identifier: Some(HostIdentifier::Endpoint(xds::Endpoint {
            address: Some(common::address(&endpoint.address)),
            hostname: endpoint.metadata.hostname.clone().unwrap_or_default(),
            additional_addresses: endpoint
                .additional_addresses
                .iter()
                .map(|a| AdditionalAddress { address: Some(common::address(a)) })
                .collect(),
            health_check_config: encode_target(&endpoint.metadata.health_check),
            ..Default::default()
        })),
    }
}

fn encode_target(target: &HealthCheckTarget) -> Option<HealthCheckConfig> {
    (*target != HealthCheckTarget::default()).then(|| HealthCheckConfig {
        port_value: target.port.map_or(0, u32::from),
        hostname: target.host.clone().unwrap_or_default(),
        address: target.address.as_ref().map(common::address),
        disable_active_health_check: target.disabled,
    })
}

fn read_target(proto: Option<&HealthCheckConfig>, at: &At<'_>, report: &mut Report) -> HealthCheckTarget {
    let Some(proto) = proto else { return HealthCheckTarget::default() };
    let at = at.field("health_check_config");
    let port = Some(proto.port_value).filter(|port| *port != 0);
    let address = proto.address.as_ref();
    HealthCheckTarget {
        disabled: proto.disable_active_health_check,
        port: port.and_then(|port| common::read_port(port, &at, report)),
        host: non_empty(&proto.hostname),
        address: address.and_then(|address| common::read_address(Some(address), &at.field("address"), report)),
    }
}

/// `proxy` is the locality's.
fn read_endpoint(
    proto: &EndpointProto,
    proxy: Option<&Address>,
    shared: &mut Shared,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Endpoint> {
    let Some(HostIdentifier::Endpoint(host)) = &proto.host_identifier else {
        report.problem(&at.field("endpoint"), "an endpoint with an address is required");
        return None;
    };
    let at_host = at.field("endpoint");
    let address = common::read_address(host.address.as_ref(), &at_host.field("address"), report);
    let HostProto {
        address: _,
        health_check_config: _,
        hostname: _,
        additional_addresses: _,
        // For statistics.
        observability_name: _,
    } = host;
    let EndpointProto { health_status: _, metadata: _, load_balancing_weight: _, host_identifier: _ } = proto;
    let more = host.additional_addresses.iter().enumerate().filter_map(|(i, more)| {
        common::read_address(more.address.as_ref(), &at_host.item("additional_addresses", i), report)
    });
    let additional_addresses: Box<[Address]> = more.collect();
    let weight = NonZeroU32::new(proto.load_balancing_weight.map_or(1, |w| w.value));
    if weight.is_none() {
        report.problem(&at.field("load_balancing_weight"), "an endpoint's weight must be above 0");
    }
    let health = read_health(proto.health_status);
    let address = address?;
    for address in std::iter::once(&address).chain(&additional_addresses) {
        if !shared.addresses.insert(address.clone()) {
            report.problem(&at_host.field("address"), format!("{address} is listed twice"));
        }
    }
    let mut metadata = read_metadata(&host.hostname, proto.metadata.as_ref());
    metadata.proxy = read_proxy(proto.metadata.as_ref(), at, report).or_else(|| proxy.cloned());
    metadata.health_check = read_target(host.health_check_config.as_ref(), &at_host, report);
    Some(Endpoint { address, additional_addresses, weight: weight?, health, metadata: shared.metadata(metadata) })
}

/// What the endpoints of one assignment share.
#[derive(Default)]
pub(super) struct Shared {
    addresses: HashSet<Address, RandomState>,
    metadata: HashSet<Arc<EndpointMetadata>, RandomState>,
    last: Option<Arc<EndpointMetadata>>,
}

impl Shared {
    pub(super) fn metadata(&mut self, metadata: EndpointMetadata) -> Arc<EndpointMetadata> {
        // Neighbours are mostly of one workload.
        if let Some(last) = self.last.as_ref().filter(|last| ***last == metadata) {
            return last.clone();
        }
        let shared = self.metadata.get(&metadata).cloned().unwrap_or_else(|| Arc::new(metadata));
        // Put aside only now: most assignments know one alone.
        self.metadata.extend(self.last.replace(shared.clone()));
        shared
    }
}

fn encode_metadata(facts: &EndpointMetadata) -> Option<Metadata> {
    let mut metadata = None;
    if facts.mesh_tls {
        let (key, field, value) = TLS_MODE;
        extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::string(value))]));
    }
    if facts.plaintext_refused {
        let (key, field, value) = STRICT;
        extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::string(value))]));
    }
    if let Some(w) = &facts.workload {
        let text = [&w.name, &w.namespace, &w.canonical_name, &w.canonical_revision, &w.cluster];
        let text = text.map(String::as_str).join(";");
        let (key, field) = WORKLOAD;
        extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::string(text))]));
    }
    if !facts.lb.is_empty() {
        extension::put_struct(&mut metadata, LB, extension::labels(&facts.lb));
    }
    if let Some(proxy) = &facts.proxy {
        let address = extension::pack(url::ADDRESS, &common::address(proxy));
        metadata.get_or_insert_default().typed_filter_metadata.insert(PROXY.to_owned(), address);
    }
    metadata
}

pub(super) fn read_metadata(hostname: &str, metadata: Option<&Metadata>) -> EndpointMetadata {
    let text = |key, field| extension::struct_field(metadata, key, field).and_then(extension::as_str);
    let says = |(key, field, value)| text(key, field) == Some(value);
    EndpointMetadata {
        mesh_tls: says(TLS_MODE),
        plaintext_refused: says(STRICT),
        hostname: non_empty(hostname),
        workload: text(WORKLOAD.0, WORKLOAD.1).map(read_workload),
        lb: extension::read_lb_metadata(metadata),
        ..EndpointMetadata::default()
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

/// The proxy that metadata names (gRFC A86); metadata of another type is not one.
fn read_proxy(metadata: Option<&Metadata>, at: &At<'_>, report: &mut Report) -> Option<Address> {
    let any = metadata?.typed_filter_metadata.get(PROXY).filter(|any| any.type_url == url::ADDRESS)?;
    let at = at.field("metadata");
    let at = at.key("typed_filter_metadata", PROXY);
    let address: core::Address = extension::unpack(any, &at, report)?;
    common::read_address(Some(&address), &at, report)
}
