//! `Cluster` ⇄ [`Cluster`].

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
    RefreshRate, TransportSocketMatch,
    common_lb_config::{ConsistentHashingLbConfig, LocalityConfigSpecifier},
};
use envoy_types::pb::envoy::config::core::v3::{
    ConfigSource, HealthStatus, HealthStatusSet, Metadata, config_source::ConfigSourceSpecifier,
};
use envoy_types::pb::envoy::extensions::clusters::{aggregate::v3::ClusterConfig, dns::v3::DnsCluster};
use envoy_types::pb::google::protobuf::{Any, Duration as WireDuration, Struct, Value, value::Kind};
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Address, Cluster, ClusterTelemetry, Discovery, DnsBackoff, DnsFamily, DnsOptions, Endpoints, Hashing, Health,
    HttpProxy, LoadReport, LocalityBalancing, MeshTls, UpstreamTls,
};

use super::common::{self, non_empty};
use super::extension::{self, url};
use super::report::{At, Report, consider};
use super::{balancer, connection, endpoint, health_check, locality, matcher, outlier, subset, tls};
use crate::proto::policy::{AutoTls, ClusterPolicy, METADATA_KEY, OutlierShares};

pub(super) use envoy_types::pb::envoy::config::cluster::v3::Cluster as Proto;

/// Metadata whose `services` names what the cluster is for: `[{host, name, namespace}]`.
const SERVICES: (&str, &str) = ("istio", "services");
/// Metadata that names the service for metrics (gRFC A89), read where [`SERVICES`] is missing.
const CSM: &str = "com.google.csm.telemetry_labels";
/// What an endpoint may be to keep its pinned sessions, when nothing is said (gRFC A55).
const PINNED: [Health; 2] = [Health::Healthy, Health::Unknown];
/// Name of the custom cluster type.
const AGGREGATE: &str = "envoy.clusters.aggregate";

pub(super) fn encode(cluster: &Cluster) -> Proto {
    let mut proto = Proto { name: cluster.name.to_string(), ..Default::default() };
    let mut ours = ClusterPolicy::default();
    encode_discovery(&cluster.discovery, &mut proto);
    balancer::encode(cluster, &mut proto, &mut ours);
    let common = encode_common(cluster);
    proto.common_lb_config = (common != CommonLbConfig::default()).then_some(common);
    proto.lb_subset_config = cluster.subsets.as_ref().map(subset::encode);
    proto.circuit_breakers = Some(outlier::encode_breakers(&cluster.breaker, cluster.breaker_high.as_ref()));
    if let Some((detection, shares)) = cluster.outlier.as_ref().map(outlier::encode) {
        proto.outlier_detection = Some(detection);
        ours.outlier = (shares != OutlierShares::default()).then_some(shares);
    }
    ours.accrual = cluster.accrual.as_ref().map(outlier::encode_accrual);
    proto.health_checks = cluster.health_checks.iter().map(health_check::encode).collect();
    proto.transport_socket = tls::encode_upstream(&cluster.tls);
    if let Some(proxy) = &cluster.proxy {
        proto.transport_socket = Some(tls::encode_proxy(proxy, proto.transport_socket.take()));
    }
    encode_dns(&cluster.dns, &mut proto);
    if let Some(load_report) = &cluster.load_report {
        let own = ConfigSourceSpecifier::Self_(Default::default());
        proto.lrs_server = Some(ConfigSource { config_source_specifier: Some(own), ..Default::default() });
        proto.lrs_report_endpoint_metrics.clone_from(&load_report.metrics);
    }
    if let UpstreamTls::Auto(mesh) = &cluster.tls {
        ours.auto_tls =
            Some(AutoTls { peer_ids: mesh.peer_ids.iter().map(matcher::string).collect(), sni: mesh.sni.clone() });
    }
    // Without a name of its own, what Envoy sends as SNI is told here.
    let auto_sni = matches!(&cluster.tls, UpstreamTls::Simple(tls) | UpstreamTls::Mutual(tls, _) if tls.sni.is_none());
    connection::encode(&cluster.connection, auto_sni, &mut proto, &mut ours);
    proto.metadata = encode_telemetry(&cluster.telemetry);
    extension::put(&mut proto.metadata, "ClusterPolicy", &ours);
    proto
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Cluster> {
    note_unenforced(proto, at, report);
    let ours: ClusterPolicy = extension::take(proto.metadata.as_ref(), "ClusterPolicy", at, report);
    let mut dns = decode_dns(proto, at, report);
    let discovery = decode_discovery(proto, &mut dns, at, report);
    let own_choice = matches!(discovery, Some(Discovery::OriginalDestination | Discovery::Aggregate(_)));
    let balancing = balancer::decode(proto, own_choice, &ours, at, report);
    let common = proto.common_lb_config.as_ref();
    let panic = common.and_then(|c| c.healthy_panic_threshold.as_ref());
    let at_panic = at.field("common_lb_config.healthy_panic_threshold");
    let panic_threshold = panic.and_then(|p| common::read_percent(p, &at_panic, report));
    let shares = ours.outlier.unwrap_or_default();
    let detection = proto.outlier_detection.as_ref();
    let outlier = detection.map(|d| outlier::decode(d, &shares, &at.field("outlier_detection"), report));
    let accrual = ours.accrual.as_ref().map(|accrual| outlier::decode_accrual(accrual, at, report));
    let at_breakers = at.field("circuit_breakers");
    let (breaker, breaker_high) = outlier::decode_breakers(proto.circuit_breakers.as_ref(), &at_breakers, report);
    let checks = proto.health_checks.iter().enumerate();
    let health_checks =
        checks.filter_map(|(i, c)| health_check::decode(c, &at.item("health_checks", i), report)).collect();
    let (connection, auto) = connection::decode(proto, &ours, at, report);
    let (tls, proxy) = decode_tls(proto, &ours, at, report).unzip();
    let tls = tls.map(|tls| tls::with_auto(tls, &auto, at, report));
    let subsets = proto.lb_subset_config.as_ref().map(|s| subset::decode(s, &at.field("lb_subset_config"), report));
    let load_report = decode_load_report(proto, at, report);
    let override_host = common.and_then(|c| c.override_host_status.as_ref()).map(decode_override_host);
    let balancing = balancing?;
    Some(Cluster {
        name: ClusterName::from(proto.name.as_str()),
        discovery: discovery?,
        balancer: balancing.balancer,
        locality: LocalityBalancing {
            weighted: balancing.weighted,
            panic_threshold,
            zone_aware: balancing.zone_aware,
            spill: balancing.spill,
        },
        slow_start: balancing.slow_start,
        hashing: balancing.hashing.unwrap_or_default(),
        subsets,
        override_host: override_host.unwrap_or_else(|| PINNED.to_vec()),
        breaker,
        breaker_high,
        outlier,
        accrual,
        health_checks,
        tls: tls?,
        connection,
        proxy: proxy?,
        dns,
        load_report,
        telemetry: decode_telemetry(proto.metadata.as_ref()),
    })
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Proto {
        read: [
            name, eds_cluster_config, connect_timeout, lb_policy, load_assignment, health_checks,
            max_requests_per_connection, circuit_breakers, upstream_http_protocol_options,
            common_http_protocol_options, http_protocol_options, http2_protocol_options,
            typed_extension_protocol_options, dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl,
            dns_lookup_family, outlier_detection, lb_subset_config, common_lb_config, transport_socket,
            transport_socket_matches, transport_socket_matcher, metadata, upstream_connection_options,
            load_balancing_policy, lrs_server, lrs_report_endpoint_metrics, cluster_discovery_type, lb_config,
        ],
        // Statistics; buffers; when Envoy begins to serve; and which of its two protocols it chose before
        // the protocol options said it.
        idle: [
            alt_stat_name, stats_matcher, per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout, wait_for_warm_on_init, cleanup_interval, protocol_selection,
            track_timeout_budgets, track_cluster_stats,
        ],
        dns_resolvers => "names are resolved by the system's servers",
        use_tcp_for_dns_lookups => "names are resolved over UDP, and over TCP where an answer is too long",
        dns_resolution_config => "names are resolved by the system's servers",
        typed_dns_resolver_config => "names are resolved by the system's servers",
        upstream_bind_config => "connections start from any local address",
        close_connections_on_host_health_failure => "open connections finish their requests",
        ignore_health_on_host_removal => "an endpoint that is removed gets no new requests, healthy or not",
        filters => "clusters have no network filters",
        upstream_config => "connection pools are the client's own",
        preconnect_policy => "connections are made on demand",
        connection_pool_per_downstream_connection => "connections are shared",
        queuing_policies => "requests wait in the order in which they came",
    });
    if let Some(common) = &proto.common_lb_config {
        consider!(common, &at.field("common_lb_config"), report, CommonLbConfig {
            read: [
                healthy_panic_threshold, consistent_hashing_lb_config, override_host_status,
                locality_config_specifier,
            ],
            // Updates take effect at once, which is the shortest window.
            idle: [update_merge_window],
            ignore_new_hosts_until_first_hc => "a new endpoint is used before its first health check",
            close_connections_on_host_set_change => "connections to endpoints that stay are kept",
        });
    }
    let typed = proto.metadata.iter().flat_map(|metadata| metadata.typed_filter_metadata.keys());
    let mut unread: Vec<&String> = typed.filter(|key| *key != METADATA_KEY).collect();
    unread.sort_unstable();
    for key in unread {
        report.unenforced(&at.field("metadata").key("typed_filter_metadata", key), "no filter here reads it");
    }
}

fn encode_common(cluster: &Cluster) -> CommonLbConfig {
    let zone_aware = cluster.locality.zone_aware.as_ref();
    let hashing = &cluster.hashing;
    CommonLbConfig {
        healthy_panic_threshold: cluster.locality.panic_threshold.map(common::percent),
        consistent_hashing_lb_config: (*hashing != Hashing::default()).then(|| ConsistentHashingLbConfig {
            use_hostname_for_hashing: hashing.use_hostname,
            hash_balance_factor: hashing.balance_factor.and_then(common::uint32),
        }),
        override_host_status: (cluster.override_host != PINNED).then(|| HealthStatusSet {
            statuses: cluster.override_host.iter().map(|health| endpoint::health(*health).into()).collect(),
        }),
        locality_config_specifier: zone_aware
            .map(|zone| LocalityConfigSpecifier::ZoneAwareLbConfig(locality::encode_older(zone))),
        ..Default::default()
    }
}

/// gRFC A55: of the statuses only these three are considered.
fn decode_override_host(proto: &HealthStatusSet) -> Vec<Health> {
    let known = |status: &i32| match HealthStatus::try_from(*status) {
        Ok(HealthStatus::Healthy) => Some(Health::Healthy),
        Ok(HealthStatus::Unknown) => Some(Health::Unknown),
        Ok(HealthStatus::Draining) => Some(Health::Draining),
        _ => None,
    };
    let mut statuses: Vec<Health> = proto.statuses.iter().filter_map(known).collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// gRFC A27: reports go to the server that the cluster came from.
fn decode_load_report(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<LoadReport> {
    let server = proto.lrs_server.as_ref()?;
    if !matches!(server.config_source_specifier, Some(ConfigSourceSpecifier::Self_(_))) {
        report.problem(&at.field("lrs_server"), "the server must be self (gRFC A27)");
    }
    Some(LoadReport { metrics: proto.lrs_report_endpoint_metrics.clone() })
}

fn encode_dns(dns: &DnsOptions, proto: &mut Proto) {
    let family = match dns.family {
        DnsFamily::Auto => DnsLookupFamily::Auto,
        DnsFamily::V4Only => DnsLookupFamily::V4Only,
        DnsFamily::V6Only => DnsLookupFamily::V6Only,
        DnsFamily::V4Preferred => DnsLookupFamily::V4Preferred,
        DnsFamily::All => DnsLookupFamily::All,
    };
    proto.dns_lookup_family = family.into();
    proto.dns_refresh_rate = dns.refresh.map(common::duration);
    proto.dns_failure_refresh_rate = dns.failure_refresh.map(|rate| RefreshRate {
        base_interval: Some(common::duration(rate.base)),
        max_interval: Some(common::duration(rate.max)),
    });
    proto.respect_dns_ttl = dns.respect_ttl;
    proto.dns_jitter = (!dns.jitter.is_zero()).then(|| common::duration(dns.jitter));
}

fn decode_dns(proto: &Proto, at: &At<'_>, report: &mut Report) -> DnsOptions {
    let failure = proto.dns_failure_refresh_rate.as_ref();
    DnsOptions {
        family: decode_family(proto.dns_lookup_family, at, report),
        refresh: common::nonzero_duration(proto.dns_refresh_rate.as_ref(), at, "dns_refresh_rate", report),
        failure_refresh: failure
            .and_then(|rate| decode_backoff(rate.base_interval.as_ref(), rate.max_interval.as_ref(), at, report)),
        respect_ttl: proto.respect_dns_ttl,
        jitter: common::opt_duration(proto.dns_jitter.as_ref(), at, "dns_jitter", report).unwrap_or_default(),
    }
}

/// Two messages of two places have the same two fields. `max_interval` is ten times `base_interval` unless it says
/// otherwise, as in Envoy.
fn decode_backoff(
    base: Option<&WireDuration>,
    max: Option<&WireDuration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<DnsBackoff> {
    let at = at.field("dns_failure_refresh_rate");
    if base.is_none() {
        report.problem(&at.field("base_interval"), "is required");
    }
    let base = common::nonzero_duration(base, &at, "base_interval", report)?;
    let max = common::nonzero_duration(max, &at, "max_interval", report).unwrap_or(base.saturating_mul(10));
    if max < base {
        report.problem(&at.field("max_interval"), "is below base_interval");
    }
    Some(DnsBackoff { base, max })
}

fn decode_family(family: i32, at: &At<'_>, report: &mut Report) -> DnsFamily {
    match DnsLookupFamily::try_from(family) {
        Ok(DnsLookupFamily::Auto) => DnsFamily::Auto,
        Ok(DnsLookupFamily::V4Only) => DnsFamily::V4Only,
        Ok(DnsLookupFamily::V6Only) => DnsFamily::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(DnsLookupFamily::All) => DnsFamily::All,
        Err(_) => {
            report.problem(&at.field("dns_lookup_family"), format!("{family} is not known"));
            DnsFamily::Auto
        }
    }
}

/// The extension that stands for both kinds of DNS cluster since Envoy 1.33.
fn decode_dns_cluster(
    config: &Any,
    proto: &Proto,
    dns: &mut DnsOptions,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Discovery> {
    let at_type = at.field("cluster_type");
    let config: DnsCluster = extension::unpack(config, &at_type, report)?;
    consider!(&config, &at_type, report, DnsCluster {
        read: [
            dns_refresh_rate, dns_failure_refresh_rate, respect_dns_ttl, dns_jitter, dns_lookup_family,
            all_addresses_in_single_endpoint,
        ],
        idle: [],
        typed_dns_resolver_config => "names are resolved by the system's servers",
        dns_min_refresh_rate => "names are resolved anew at the client's own floor",
    });
    let failure = config.dns_failure_refresh_rate.as_ref();
    *dns = DnsOptions {
        // 0 is "unspecified" here and the others are one further.
        family: match config.dns_lookup_family {
            0 => DnsFamily::Auto,
            family => decode_family(family - 1, &at_type, report),
        },
        refresh: common::nonzero_duration(config.dns_refresh_rate.as_ref(), &at_type, "dns_refresh_rate", report),
        failure_refresh: failure
            .and_then(|rate| decode_backoff(rate.base_interval.as_ref(), rate.max_interval.as_ref(), &at_type, report)),
        respect_ttl: config.respect_dns_ttl,
        jitter: common::opt_duration(config.dns_jitter.as_ref(), &at_type, "dns_jitter", report).unwrap_or_default(),
    };
    let endpoints = assignment(proto, at, report)?;
    if !config.all_addresses_in_single_endpoint {
        return Some(Discovery::StrictDns(endpoints));
    }
    check_logical_dns(&endpoints, &at.field("load_assignment"), report);
    Some(Discovery::LogicalDns(endpoints))
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

fn decode_discovery(proto: &Proto, dns: &mut DnsOptions, at: &At<'_>, report: &mut Report) -> Option<Discovery> {
    let kind = match &proto.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind),
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let config = custom.typed_config.as_ref();
            if let Some(config) = config.filter(|c| extension::type_of(c) == url::DNS_CLUSTER) {
                return decode_dns_cluster(config, proto, dns, at, report);
            }
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

fn decode_tls(
    proto: &Proto,
    ours: &ClusterPolicy,
    at: &At<'_>,
    report: &mut Report,
) -> Option<(UpstreamTls, Option<HttpProxy>)> {
    if proto.transport_socket_matcher.is_some() {
        report.problem(&at.field("transport_socket_matcher"), "matcher trees are not supported");
    }
    let (proxy, socket) = tls::unwrap_proxy(proto.transport_socket.as_ref(), &at.field("transport_socket"), report)?;
    let socket = tls::decode_upstream(socket.as_ref(), &at.field("transport_socket"), report)?;
    if let Some(auto) = &ours.auto_tls {
        let peer_ids = matcher::read_strings(&auto.peer_ids, at, "auto_tls.peer_ids", report);
        return Some((UpstreamTls::Auto(MeshTls { peer_ids, sni: auto.sni.clone(), ..MeshTls::default() }), proxy));
    }
    if proto.transport_socket_matches.is_empty() {
        return Some((socket, proxy));
    }
    let tls = read_matches(&proto.transport_socket_matches, &at.field("transport_socket_matches"), report)?;
    Some((tls, proxy))
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
        let text = |name| extension::struct_field(metadata, CSM, name).and_then(extension::as_str).unwrap_or_default();
        let (service_name, service_namespace) = (text("service_name").to_owned(), text("service_namespace").to_owned());
        return ClusterTelemetry { service: String::new(), service_name, service_namespace };
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
