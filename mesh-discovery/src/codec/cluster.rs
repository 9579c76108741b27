//! `Cluster` ⇄ [`Cluster`].

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, EdsClusterConfig, TransportSocketMatch,
    common_lb_config::LocalityConfigSpecifier,
};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Address, Cluster, ClusterTelemetry, Discovery, Endpoints, LocalityBalancing, MeshTls, UpstreamTls,
};

use super::common::{self, non_empty};
use super::extension::{self, url};
use super::report::{At, Report};
use super::{balancer, connection, endpoint, matcher, outlier, tls};
use crate::proto::policy::{AutoTls, ClusterPolicy, OutlierShares};

pub(super) use envoy_types::pb::envoy::config::cluster::v3::Cluster as Proto;

/// Metadata whose `services` names what the cluster is for: `[{host, name, namespace}]`.
const SERVICES: (&str, &str) = ("istio", "services");
/// Name of the custom cluster type.
const AGGREGATE: &str = "envoy.clusters.aggregate";

pub(super) fn encode(cluster: &Cluster) -> Proto {
    let mut proto = Proto { name: cluster.name.to_string(), ..Default::default() };
    let mut ours = ClusterPolicy::default();
    encode_discovery(&cluster.discovery, &mut proto);
    balancer::encode(cluster, &mut proto, &mut ours);
    proto.common_lb_config = cluster.locality.panic_threshold.map(|threshold| CommonLbConfig {
        healthy_panic_threshold: Some(common::percent(threshold)),
        ..Default::default()
    });
    proto.circuit_breakers = Some(outlier::encode_breaker(&cluster.breaker));
    if let Some((detection, shares)) = cluster.outlier.as_ref().map(outlier::encode) {
        proto.outlier_detection = Some(detection);
        ours.outlier = (shares != OutlierShares::default()).then_some(shares);
    }
    let checks = cluster.health_checks.iter();
    proto.health_checks = checks.map(|c| connection::encode_health_check(c, cluster.connection.protocol)).collect();
    proto.transport_socket = tls::encode_upstream(&cluster.tls);
    if let UpstreamTls::Auto(mesh) = &cluster.tls {
        ours.auto_tls =
            Some(AutoTls { peer_ids: mesh.peer_ids.iter().map(matcher::string).collect(), sni: mesh.sni.clone() });
    }
    connection::encode(&cluster.connection, &mut proto, &mut ours);
    proto.metadata = encode_telemetry(&cluster.telemetry);
    extension::put(&mut proto.metadata, "ClusterPolicy", &ours);
    proto
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Cluster> {
    note_unenforced(proto, at, report);
    let ours: ClusterPolicy = extension::take(proto.metadata.as_ref(), "ClusterPolicy", at, report);
    let discovery = decode_discovery(proto, at, report);
    let own_choice = matches!(discovery, Some(Discovery::OriginalDestination | Discovery::Aggregate(_)));
    let balancing = balancer::decode(proto, own_choice, &ours, at, report);
    let common = proto.common_lb_config.as_ref();
    let panic = common.and_then(|c| c.healthy_panic_threshold.as_ref());
    let at_panic = at.field("common_lb_config.healthy_panic_threshold");
    let panic_threshold = panic.and_then(|p| common::read_percent(p, &at_panic, report));
    let shares = ours.outlier.unwrap_or_default();
    let detection = proto.outlier_detection.as_ref();
    let outlier = detection.map(|d| outlier::decode(d, &shares, &at.field("outlier_detection"), report));
    let breaker = outlier::decode_breaker(proto.circuit_breakers.as_ref(), &at.field("circuit_breakers"), report);
    let checks = proto.health_checks.iter().enumerate();
    let health_checks =
        checks.filter_map(|(i, c)| connection::decode_health_check(c, &at.item("health_checks", i), report)).collect();
    let tls = decode_tls(proto, &ours, at, report);
    let connection = connection::decode(proto, &ours, at, report);
    let balancing = balancing?;
    Some(Cluster {
        name: ClusterName::from(proto.name.as_str()),
        discovery: discovery?,
        balancer: balancing.balancer,
        locality: LocalityBalancing { weighted: balancing.weighted, panic_threshold },
        slow_start: balancing.slow_start,
        breaker,
        outlier,
        health_checks,
        tls: tls?,
        connection,
        telemetry: decode_telemetry(proto.metadata.as_ref()),
    })
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    let common = proto.common_lb_config.clone().unwrap_or_default();
    let zone_aware = matches!(common.locality_config_specifier, Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)));
    let notes = [
        (proto.lb_subset_config.is_some(), "lb_subset_config", "subsets are clusters of their own"),
        (zone_aware, "common_lb_config.zone_aware_lb_config", "localities are used by weight and priority"),
        (
            common.consistent_hashing_lb_config.is_some(),
            "common_lb_config.consistent_hashing_lb_config",
            "hashing is by address or hash_key and not bounded by load",
        ),
        (common.override_host_status.is_some(), "common_lb_config.override_host_status", "sessions are not pinned"),
        (proto.lrs_server.is_some(), "lrs_server", "load is not reported"),
        (proto.upstream_bind_config.is_some(), "upstream_bind_config", "connections start from any local address"),
        (proto.preconnect_policy.is_some(), "preconnect_policy", "connections are made on demand"),
        (proto.track_cluster_stats.is_some(), "track_cluster_stats", "metrics are the client's own"),
        (!proto.filters.is_empty(), "filters", "clusters have no network filters"),
        (proto.upstream_config.is_some(), "upstream_config", "connection pools are the client's own"),
        (
            proto.close_connections_on_host_health_failure,
            "close_connections_on_host_health_failure",
            "open connections finish their requests",
        ),
        (
            proto.connection_pool_per_downstream_connection,
            "connection_pool_per_downstream_connection",
            "connections are shared",
        ),
        (!proto.dns_resolvers.is_empty(), "dns_resolvers", "names are resolved by the system"),
        (proto.dns_refresh_rate.is_some(), "dns_refresh_rate", "names are resolved anew at the client's own pace"),
    ];
    for (set, name, effect) in notes {
        report.unenforced_if(set, at, name, effect);
    }
}

fn encode_discovery(discovery: &Discovery, proto: &mut Proto) {
    let (kind, endpoints) = match discovery {
        Discovery::Eds { service_name } => {
            proto.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(common::ads()),
                service_name: service_name.clone().unwrap_or_default(),
            });
            (DiscoveryType::Eds, None)
        }
        Discovery::Static(endpoints) => (DiscoveryType::Static, Some(endpoints)),
        Discovery::StrictDns(endpoints) => (DiscoveryType::StrictDns, Some(endpoints)),
        Discovery::LogicalDns(endpoints) => (DiscoveryType::LogicalDns, Some(endpoints)),
        Discovery::OriginalDestination => (DiscoveryType::OriginalDst, None),
        Discovery::Aggregate(clusters) => {
            let config = ClusterConfig { clusters: clusters.iter().map(ToString::to_string).collect() };
            proto.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: AGGREGATE.to_owned(),
                typed_config: Some(extension::pack(url::AGGREGATE, &config)),
            }));
            return;
        }
    };
    proto.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
    proto.load_assignment = endpoints.map(|e| endpoint::encode(e));
}

fn decode_discovery(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Discovery> {
    let kind = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return decode_aggregate(custom, &at.field("cluster_type"), report);
        }
        // The first value of the enum is the default of an unset one.
        None => Ok(DiscoveryType::Static),
    };
    match kind {
        Ok(DiscoveryType::Eds) => {
            let at = at.field("eds_cluster_config");
            let config = proto.eds_cluster_config.clone().unwrap_or_default();
            common::check_source(config.eds_config.as_ref(), &at.field("eds_config"), report);
            Some(Discovery::Eds { service_name: non_empty(&config.service_name) })
        }
        Ok(DiscoveryType::Static) => Some(Discovery::Static(assignment(proto, at, report)?)),
        Ok(DiscoveryType::StrictDns) => Some(Discovery::StrictDns(assignment(proto, at, report)?)),
        Ok(DiscoveryType::LogicalDns) => {
            let endpoints = assignment(proto, at, report)?;
            check_logical_dns(&endpoints, &at.field("load_assignment"), report);
            Some(Discovery::LogicalDns(endpoints))
        }
        Ok(DiscoveryType::OriginalDst) => Some(Discovery::OriginalDestination),
        Err(_) => {
            report.problem(&at.field("type"), "the discovery type is not known");
            None
        }
    }
}

fn assignment(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Arc<Endpoints>> {
    let at = at.field("load_assignment");
    let Some(assignment) = &proto.load_assignment else {
        report.problem(&at, "endpoints are required for this discovery type");
        return None;
    };
    Some(Arc::new(endpoint::decode_inline(assignment, &at, report)))
}

/// gRFC A37: one locality with one endpoint, a name and a port.
fn check_logical_dns(endpoints: &Endpoints, at: &At<'_>, report: &mut Report) {
    let one = match endpoints.localities.as_slice() {
        [locality] => locality.endpoints.as_slice(),
        _ => &[],
    };
    let [endpoint] = one else {
        report.problem(&at.field("endpoints"), "LOGICAL_DNS takes exactly one locality with one endpoint (gRFC A37)");
        return;
    };
    if matches!(endpoint.address, Address::Unix(_)) {
        report.problem(&at.field("endpoints"), "LOGICAL_DNS takes a name and a port (gRFC A37)");
    }
}

fn decode_aggregate(custom: &CustomClusterType, at: &At<'_>, report: &mut Report) -> Option<Discovery> {
    let config = custom.typed_config.as_ref();
    let Some(config) = config.filter(|c| extension::type_of(c) == url::AGGREGATE) else {
        report.problem(at, format!("the cluster type {:?} is not supported", custom.name));
        return None;
    };
    let config: ClusterConfig = extension::unpack(config, at, report)?;
    if config.clusters.is_empty() || config.clusters.iter().any(String::is_empty) {
        report.problem(&at.field("clusters"), "a list of names is required (gRFC A37)");
        return None;
    }
    Some(Discovery::Aggregate(config.clusters.iter().map(|c| ClusterName::from(c.as_str())).collect()))
}

fn decode_tls(proto: &Proto, ours: &ClusterPolicy, at: &At<'_>, report: &mut Report) -> Option<UpstreamTls> {
    if proto.transport_socket_matcher.is_some() {
        report.problem(&at.field("transport_socket_matcher"), "matcher trees are not supported");
    }
    let socket = tls::decode_upstream(proto.transport_socket.as_ref(), &at.field("transport_socket"), report)?;
    if let Some(auto) = &ours.auto_tls {
        let peer_ids = matcher::read_strings(&auto.peer_ids, at, "auto_tls.peer_ids", report);
        return Some(UpstreamTls::Auto(MeshTls { peer_ids, sni: auto.sni.clone() }));
    }
    if proto.transport_socket_matches.is_empty() {
        return Some(socket);
    }
    read_matches(&proto.transport_socket_matches, &at.field("transport_socket_matches"), report)
}

/// Istio's automatic mTLS as its sidecars get it: mesh TLS where the endpoint says so, plaintext
/// elsewhere. Any other set of sockets is refused (gRFC A29): it may be about security.
fn read_matches(matches: &[TransportSocketMatch], at: &At<'_>, report: &mut Report) -> Option<UpstreamTls> {
    let says_istio = |m: &TransportSocketMatch| {
        let Some(Struct { fields }) = &m.r#match else { return false };
        let value = fields.get("tlsMode").and_then(|v| v.kind.as_ref()).and_then(extension::as_str);
        fields.len() == 1 && value == Some("istio")
    };
    let matches_all = |m: &TransportSocketMatch| m.r#match.as_ref().is_none_or(|s| s.fields.is_empty());
    if let [first, second] = matches
        && says_istio(first)
        && matches_all(second)
    {
        let mesh = tls::decode_upstream(first.transport_socket.as_ref(), at, report)?;
        let plain = tls::decode_upstream(second.transport_socket.as_ref(), at, report)?;
        if let (UpstreamTls::Mesh(mesh), UpstreamTls::Disable) = (mesh, plain) {
            return Some(UpstreamTls::Auto(mesh));
        }
    }
    report.problem(at, "only Istio's pair for automatic mTLS (tlsMode: istio, else plaintext) is supported");
    None
}

fn encode_telemetry(telemetry: &ClusterTelemetry) -> Option<Metadata> {
    if *telemetry == ClusterTelemetry::default() {
        return None;
    }
    let fields =
        [("host", &telemetry.service), ("name", &telemetry.service_name), ("namespace", &telemetry.service_namespace)];
    let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), extension::string(v))).collect();
    let service = Value { kind: Some(Kind::StructValue(Struct { fields })) };
    let mut metadata = None;
    let (key, field) = SERVICES;
    extension::put_struct(&mut metadata, key, HashMap::from([(field.to_owned(), extension::list(vec![service]))]));
    metadata
}

/// The first service; a cluster of several is none of them in particular, as in Istio.
fn decode_telemetry(metadata: Option<&Metadata>) -> ClusterTelemetry {
    let (key, field) = SERVICES;
    let Some(Kind::ListValue(list)) = extension::struct_field(metadata, key, field) else {
        return ClusterTelemetry::default();
    };
    let Some(Kind::StructValue(Struct { fields })) = list.values.first().and_then(|v| v.kind.as_ref()) else {
        return ClusterTelemetry::default();
    };
    let text = |name: &str| {
        let kind = fields.get(name).and_then(|v| v.kind.as_ref());
        kind.and_then(extension::as_str).unwrap_or_default().to_owned()
    };
    ClusterTelemetry { service: text("host"), service_name: text("name"), service_namespace: text("namespace") }
}
