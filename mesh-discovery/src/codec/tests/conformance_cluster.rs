//! gRPC's rules for clusters and endpoints, case by case (C: clusters, P: balancing, S: security). See
//! `conformance.rs`.

use envoy_types::pb::envoy::config::cluster::v3::{
    self as cds, Cluster as Proto, LoadBalancingPolicy,
    circuit_breakers::Thresholds,
    cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType, LbPolicy, RefreshRate},
    load_balancing_policy::Policy,
};
use envoy_types::pb::envoy::config::core::v3::{
    self as core, config_source::ConfigSourceSpecifier, transport_socket::ConfigType,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    self as eds, ClusterLoadAssignment, cluster_load_assignment, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin, least_request::v3::LeastRequest,
    maglev::v3::Maglev, pick_first::v3::PickFirst, random_subsetting::v3::RandomSubsetting, ring_hash::v3::RingHash,
    round_robin::v3::RoundRobin, wrr_locality::v3::WrrLocality,
};
use envoy_types::pb::envoy::extensions::transport_sockets::http_11_proxy::v3::Http11ProxyUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher,
    UpstreamTlsContext, certificate_validation_context::SystemRootCerts, common_tls_context::ValidationContextType,
    subject_alt_name_matcher::SanType,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher as StringProto, string_matcher::MatchPattern};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, FloatValue, UInt64Value};
use mesh_core::policy::*;
use prost::{Message, Name};

use super::conformance::{Says, says};
use super::refusals::number;
use super::refusals_cluster::{with_cluster, with_endpoints};
use crate::codec::{self, extension, extension::url};

fn cluster(case: &str, change: impl FnOnce(&mut Proto), want: &Says<'_>) {
    says(case, codec::decode_cluster(&with_cluster(change)), want);
}

fn endpoints(case: &str, change: impl FnOnce(&mut ClusterLoadAssignment), want: &Says<'_>) {
    says(case, codec::decode_endpoints(&with_endpoints(change)), want);
}

fn decoded(change: impl FnOnce(&mut Proto)) -> Cluster {
    codec::decode_cluster(&with_cluster(change)).unwrap().value
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn kind(kind: DiscoveryType) -> Option<ClusterDiscoveryType> {
    Some(ClusterDiscoveryType::Type(kind.into()))
}

fn source(specifier: ConfigSourceSpecifier) -> Option<core::ConfigSource> {
    Some(core::ConfigSource { config_source_specifier: Some(specifier), ..Default::default() })
}

fn address(host: &str, port: u32) -> Option<core::Address> {
    let socket = core::SocketAddress {
        address: host.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) })
}

fn assignment(hosts: &[&str]) -> Option<ClusterLoadAssignment> {
    let endpoint = |host: &&str| eds::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(eds::Endpoint {
            address: address(host, 80),
            ..Default::default()
        })),
        ..Default::default()
    };
    let group = eds::LocalityLbEndpoints { lb_endpoints: hosts.iter().map(endpoint).collect(), ..Default::default() };
    Some(ClusterLoadAssignment { cluster_name: "c".into(), endpoints: vec![group], ..Default::default() })
}

#[test]
fn c1_an_eds_cluster_is_asked_for_over_ads_a27() {
    let from = |source| move |c: &mut Proto| c.eds_cluster_config.as_mut().unwrap().eds_config = source;
    use ConfigSourceSpecifier::{Ads, Path, Self_};
    cluster("ads", from(source(Ads(Default::default()))), &Says::Taken);
    cluster("self", from(source(Self_(Default::default()))), &Says::Taken);
    let at = "eds_cluster_config.eds_config";
    cluster("a file", from(source(Path("f".into()))), &Says::Refused(&[at]));
    cluster("none", |c| c.eds_cluster_config = None, &Says::Refused(&[at]));
    let named = decoded(|c| c.eds_cluster_config.as_mut().unwrap().service_name = "s".into());
    assert_eq!(named.discovery, Discovery::Eds { service_name: Some("s".into()) });
}

#[test]
fn c2_logical_dns_is_one_name_a37() {
    let hosts = |hosts: &[&str]| {
        let load = assignment(hosts);
        move |c: &mut Proto| {
            c.cluster_discovery_type = kind(DiscoveryType::LogicalDns);
            c.load_assignment = load;
        }
    };
    cluster("one name", hosts(&["a.test"]), &Says::Taken);
    cluster("two", hosts(&["a.test", "b.test"]), &Says::Refused(&["load_assignment.endpoints"]));
    cluster("none", hosts(&[]), &Says::Refused(&["load_assignment.endpoints"]));
    let bare = |c: &mut Proto| c.cluster_discovery_type = kind(DiscoveryType::LogicalDns);
    cluster("nothing", bare, &Says::Refused(&["load_assignment"]));
}

#[test]
fn c3_static_strict_dns_and_original_destinations_are_ours() {
    for discovery in [DiscoveryType::Static, DiscoveryType::StrictDns] {
        let both = |c: &mut Proto| {
            c.cluster_discovery_type = kind(discovery);
            c.load_assignment = assignment(&["10.0.0.1", "10.0.0.2"]);
        };
        cluster("given", both, &Says::Taken);
        let bare = |c: &mut Proto| c.cluster_discovery_type = kind(discovery);
        cluster("nothing", bare, &Says::Refused(&["load_assignment"]));
    }
    cluster("original", |c| c.cluster_discovery_type = kind(DiscoveryType::OriginalDst), &Says::Taken);
    cluster("unknown", |c| c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(77)), &Says::Refused(&["type"]));
}

#[test]
fn c4_aggregates_a37() {
    let custom = |config: Any| {
        move |c: &mut Proto| {
            c.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "x".into(),
                typed_config: Some(config),
            }));
        }
    };
    let of = |names: &[&str]| pack(&ClusterConfig { clusters: names.iter().map(|n| (*n).to_owned()).collect() });
    cluster("two", custom(of(&["a", "b"])), &Says::Taken);
    cluster("none", custom(of(&[])), &Says::Refused(&["cluster_type.clusters"]));
    let other = Any { type_url: "type.googleapis.com/some.Cluster".into(), value: Vec::new() };
    cluster("another kind", custom(other), &Says::Refused(&["cluster_type"]));
}

#[test]
fn c5_c6_breakers_of_both_priorities_and_of_hosts_a32_a105() {
    let with = |thresholds: Vec<Thresholds>, per_host: Vec<Thresholds>| {
        move |c: &mut Proto| {
            c.circuit_breakers = Some(cds::CircuitBreakers { thresholds, per_host_thresholds: per_host });
        }
    };
    let limit = |priority, max_requests| Thresholds { priority, max_requests, ..Default::default() };
    assert_eq!(decoded(|c| c.circuit_breakers = None).breaker.max_requests, Some(1024), "always on");
    let first = decoded(with(vec![limit(1, number(9)), limit(0, number(7)), limit(0, number(8))], vec![]));
    assert_eq!(first.breaker.max_requests, Some(7), "the first of a priority counts");
    assert_eq!(first.breaker_high.unwrap().max_requests, Some(9));
    let connections = |n| vec![Thresholds { max_connections: number(n), ..Default::default() }];
    assert_eq!(decoded(with(vec![], connections(4))).breaker.max_connections_per_host, Some(4));
    let at = "circuit_breakers.per_host_thresholds[0].max_connections";
    cluster("0 per host", with(vec![], connections(0)), &Says::Refused(&[at]));
}

#[test]
fn c7_c8_c9_endpoints_drops_and_overprovisioning_a27() {
    let first = |e: &mut ClusterLoadAssignment, change: fn(&mut eds::LbEndpoint)| {
        change(&mut e.endpoints[0].lb_endpoints[0]);
    };
    let at = "endpoints[0].lb_endpoints[0]";
    endpoints(
        "weight 0",
        |e| first(e, |x| x.load_balancing_weight = number(0)),
        &Says::Refused(&[&format!("{at}.load_balancing_weight")]),
    );
    endpoints("no address", |e| first(e, |x| x.host_identifier = None), &Says::Refused(&[&format!("{at}.endpoint")]));
    let unweighed = "endpoints[1].load_balancing_weight";
    endpoints(
        "a locality without weight",
        |e| e.endpoints[1].load_balancing_weight = None,
        &Says::Reported(&[unweighed]),
    );
    // Nothing in it counts: neither what is wrong, nor an address that another locality has as well.
    let passed_over = |weight: u32| {
        move |e: &mut ClusterLoadAssignment| {
            e.endpoints[1].lb_endpoints = e.endpoints[0].lb_endpoints.clone();
            e.endpoints[1].lb_endpoints.push(Default::default());
            e.endpoints[1].load_balancing_weight = number(weight);
        }
    };
    endpoints("a locality of weight 0", passed_over(0), &Says::Reported(&[unweighed]));
    let at = |field| format!("endpoints[1].lb_endpoints{field}");
    let wrong = [at("[0].endpoint.address"), at("[1].endpoint")];
    endpoints("control: of weight 1", passed_over(1), &Says::Refused(&[&wrong[0], &wrong[1]]));
    let list = Some(eds::locality_lb_endpoints::LbConfig::LedsClusterLocalityConfig(Default::default()));
    let leds = "endpoints[0].leds_cluster_locality_config";
    endpoints("x15: a list collection", |e| e.endpoints[0].lb_config = list, &Says::Refused(&[leds]));
    let drop = |category: &str| cluster_load_assignment::policy::DropOverload {
        category: category.into(),
        drop_percentage: Some(FractionalPercent { numerator: 5, denominator: 0 }),
    };
    let policy = |drop, factor| cluster_load_assignment::Policy {
        drop_overloads: vec![drop],
        overprovisioning_factor: factor,
        ..Default::default()
    };
    endpoints("drops", |e| e.policy = Some(policy(drop("lb"), None)), &Says::Taken);
    let nameless = policy(drop(""), None);
    endpoints("no category", |e| e.policy = Some(nameless), &Says::Refused(&["policy.drop_overloads[0].category"]));
    let zero = policy(drop("lb"), number(0));
    endpoints("c9: factor 0", |e| e.policy = Some(zero), &Says::Refused(&["policy.overprovisioning_factor"]));
}

#[test]
fn c10_an_endpoint_has_many_addresses_and_no_two_share_one_a61() {
    let host = |e: &mut ClusterLoadAssignment| {
        let Some(HostIdentifier::Endpoint(host)) = &mut e.endpoints[0].lb_endpoints[0].host_identifier else {
            panic!("an endpoint")
        };
        host.additional_addresses.push(eds::endpoint::AdditionalAddress { address: address("10.0.0.9", 80) });
        host.clone()
    };
    endpoints("two", |e| _ = host(e), &Says::Taken);
    let twice = |e: &mut ClusterLoadAssignment| {
        let host = host(e);
        e.endpoints[1].lb_endpoints[0].host_identifier = Some(HostIdentifier::Endpoint(host));
    };
    let at = "endpoints[1].lb_endpoints[0].endpoint.address";
    endpoints("twice", twice, &Says::Refused(&[at, at]));
    let proxied = codec::decode_endpoints(&with_endpoints(|e| {
        let any = Any { type_url: url::ADDRESS.into(), value: address("10.0.0.7", 3128).unwrap().encode_to_vec() };
        let key = "envoy.http11_proxy_transport_socket.proxy_address".to_owned();
        e.endpoints[0].metadata.get_or_insert_default().typed_filter_metadata.insert(key, any);
    }));
    let proxies: Vec<bool> = proxied.unwrap().value.iter().map(|e| e.metadata.proxy.is_some()).collect();
    assert_eq!(proxies, [true, false], "of a locality, for its endpoints (gRFC A86)");
}

#[test]
fn c11_telemetry_labels_name_the_service_a89() {
    let labels = [("service_name", "reviews"), ("service_namespace", "books")];
    let fields = labels.iter().map(|(k, v)| ((*k).to_owned(), extension::string(*v))).collect();
    let cluster = decoded(|c| extension::put_struct(&mut c.metadata, "com.google.csm.telemetry_labels", fields));
    let telemetry = cluster.telemetry;
    assert_eq!((&*telemetry.service_name, &*telemetry.service_namespace), ("reviews", "books"));
}

#[test]
fn typed_metadata_that_nobody_reads_is_told() {
    let audience = |c: &mut Proto| {
        let typed = &mut c.metadata.get_or_insert_default().typed_filter_metadata;
        typed.insert("com.google.audience".into(), Any::default());
        typed.insert("another".into(), Any::default());
    };
    let told = ["another", "com.google.audience"].map(|key| format!("metadata.typed_filter_metadata[{key:?}]"));
    cluster("typed metadata", audience, &Says::Reported(&[&told[0], &told[1]]));
}

fn policies(list: Vec<Any>) -> impl FnOnce(&mut Proto) {
    let entry = |any| Policy {
        typed_extension_config: Some(core::TypedExtensionConfig { name: "x".into(), typed_config: Some(any) }),
    };
    let list = LoadBalancingPolicy { policies: list.into_iter().map(entry).collect() };
    move |c| c.load_balancing_policy = Some(list)
}

fn listed(any: Any) -> Option<LoadBalancingPolicy> {
    let config = core::TypedExtensionConfig { name: "x".into(), typed_config: Some(any) };
    Some(LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(config) }] })
}

#[test]
fn c12_the_first_policy_that_is_known_a52() {
    let unknown = || Any { type_url: "type.googleapis.com/some.Policy".into(), value: Vec::new() };
    let found = decoded(policies(vec![unknown(), pack(&RoundRobin::default()), pack(&PickFirst::default())]));
    assert_eq!(found.balancer, Balancer::RoundRobin);
    cluster("none known", policies(vec![unknown()]), &Says::Refused(&["load_balancing_policy"]));
    cluster("none", policies(vec![]), &Says::Refused(&["load_balancing_policy"]));
    let wrapper = WrrLocality { endpoint_picking_policy: listed(pack(&RoundRobin::default())) };
    assert!(decoded(policies(vec![pack(&wrapper)])).locality.weighted);
    let nothing = pack(&WrrLocality::default());
    let at = "load_balancing_policy.policies[0].endpoint_picking_policy";
    cluster("a wrapper around nothing", policies(vec![nothing]), &Says::Refused(&[at]));
    for (policy, known) in [(LbPolicy::RoundRobin, true), (LbPolicy::LeastRequest, true), (LbPolicy::Random, true)] {
        let enumerated = codec::decode_cluster(&with_cluster(|c| {
            c.load_balancing_policy = None;
            c.lb_policy = policy.into();
        }));
        assert_eq!(enumerated.is_ok(), known, "{policy:?}");
    }
    let bad = |c: &mut Proto| {
        c.load_balancing_policy = None;
        c.lb_policy = 99;
    };
    cluster("an unknown number", bad, &Says::Refused(&["lb_policy"]));
}

/// Of a ring for each locality, which `wrr_locality` asks gRPC for, a key would have one endpoint in each.
#[test]
fn p6_one_ring_or_table_goes_over_all_localities_a42() {
    let first = |balancer| {
        let mut policy = Cluster { balancer, ..Cluster::new("c".into()) };
        policy.locality.weighted = true;
        let proto = Proto::decode(&codec::encode_cluster(&policy).value[..]).unwrap();
        let list = proto.load_balancing_policy.unwrap().policies;
        let any = list[0].typed_extension_config.as_ref().unwrap().typed_config.clone().unwrap();
        any.type_url.rsplit('/').next().unwrap().rsplit('.').next().unwrap().to_owned()
    };
    let ring = || Balancer::RingHash { min_size: 1024, max_size: 4096 };
    assert_eq!(first(ring()), "RingHash");
    assert_eq!(
        first(Balancer::RandomSubsetting { size: 9, of_each: false, child: Box::new(ring()) }),
        "RandomSubsetting"
    );
    assert_eq!(first(Balancer::Maglev { table_size: 65_537 }), "Maglev");
    // The control: of any other each locality has one, unless there is nothing to choose.
    assert_eq!(first(Balancer::least_request()), "WrrLocality");
    assert_eq!(first(Balancer::Passthrough), "ClusterProvided");
}

/// gRPC takes a part of each locality where that is below the drawing of one, and of all together where it is above.
#[test]
fn p9_parts_are_of_each_locality_or_of_all_by_who_is_below_a68() {
    let below = |any: Any| pack(&WrrLocality { endpoint_picking_policy: listed(any) });
    let part = |any: Any| pack(&RandomSubsetting { subset_size: number(4), child_policy: listed(any) });
    let leaf = || pack(&RoundRobin::default());
    let ring = || pack(&RingHash::default());
    for (any, wanted) in [
        (below(part(leaf())), &[true][..]),
        (part(below(leaf())), &[false]),
        (below(part(below(leaf()))), &[true]),
        (below(part(part(leaf()))), &[true, true]),
        (part(below(part(leaf()))), &[false, true]),
        (below(part(ring())), &[true]),
        (below(leaf()), &[]),
    ] {
        let found = decoded(policies(vec![any]));
        assert_eq!((found.locality.weighted, &parts(&found.balancer)[..]), (true, wanted), "{:?}", found.balancer);
        let again = codec::decode_cluster(&codec::encode_cluster(&found)).unwrap().value;
        assert_eq!((again.balancer.clone(), again.locality.clone()), (found.balancer, found.locality));
    }
}

/// What the order of policies can say of parts it says, to clients that read nothing of ours.
#[test]
fn p9_foreign_clients_take_parts_of_each_locality_where_they_can_a68() {
    let part = |of_each, child| Balancer::RandomSubsetting { size: 4, of_each, child: Box::new(child) };
    let leaf = Balancer::least_request;
    for (weighted, balancer, foreign) in [
        (true, part(true, leaf()), &[true][..]),
        (true, part(false, part(true, leaf())), &[false, true]),
        (true, part(true, part(false, leaf())), &[false, false]),
        (false, part(true, leaf()), &[false]),
        (true, part(true, Balancer::RingHash { min_size: 1024, max_size: 4096 }), &[false]),
        (true, part(true, Balancer::Maglev { table_size: 65_537 }), &[false]),
        (true, part(true, Balancer::Passthrough), &[false]),
    ] {
        let mut policy = Cluster { balancer, ..Cluster::new("c".into()) };
        policy.locality.weighted = weighted;
        let mut proto = Proto::decode(&codec::encode_cluster(&policy).value[..]).unwrap();
        proto.metadata = None;
        assert_eq!(parts(&decoded(|cluster| *cluster = proto).balancer), foreign, "{:?}", policy.balancer);
    }
}

/// Of each part, from the outermost, whether it is one of each locality.
fn parts(mut balancer: &Balancer) -> Vec<bool> {
    let mut parts = Vec::new();
    while let Balancer::RandomSubsetting { of_each, child, .. } = balancer {
        parts.push(*of_each);
        balancer = child;
    }
    parts
}

#[test]
fn p4_to_p9_balancers_a48_a42_a58_a68() {
    let at = |name: &str| format!("load_balancing_policy.policies[0].{name}");
    let one = |any: Any| policies(vec![any]);
    let size = |value| Some(UInt64Value { value });
    let choices = |n| pack(&LeastRequest { choice_count: number(n), ..Default::default() });
    cluster("1 choice", one(choices(1)), &Says::Refused(&[&at("choice_count")]));
    assert_eq!(decoded(one(choices(99))).balancer, Balancer::LeastRequest { choices: 10, bias: 1_000_000 });
    let bias = core::RuntimeDouble { default_value: -1.0, ..Default::default() };
    let biased = pack(&LeastRequest { active_request_bias: Some(bias), ..Default::default() });
    cluster("a negative bias", one(biased), &Says::Refused(&[&at("active_request_bias")]));
    let ring =
        |min, max| pack(&RingHash { minimum_ring_size: size(min), maximum_ring_size: size(max), ..Default::default() });
    cluster("a ring too large", one(ring(1, (8 << 20) + 1)), &Says::Refused(&[&at("maximum_ring_size")]));
    cluster("min above max", one(ring(9, 8)), &Says::Refused(&[&at("minimum_ring_size")]));
    let murmur = pack(&RingHash { hash_function: 2, ..Default::default() });
    cluster("murmur", one(murmur), &Says::Refused(&[&at("hash_function")]));
    let maglev = pack(&Maglev { table_size: size(10), ..Default::default() });
    cluster("a table that is no prime", one(maglev), &Says::Refused(&[&at("table_size")]));
    let penalty = Some(FloatValue { value: f32::NAN });
    let weighted = pack(&ClientSideWeightedRoundRobin { error_utilization_penalty: penalty, ..Default::default() });
    cluster("no penalty", one(weighted), &Says::Refused(&[&at("error_utilization_penalty")]));
    assert_eq!(
        decoded(one(pack(&PickFirst { shuffle_address_list: true }))).balancer,
        Balancer::PickFirst { shuffle: true }
    );
    let subset = |n, child| pack(&RandomSubsetting { subset_size: number(n), child_policy: child });
    let child = || listed(pack(&RoundRobin::default()));
    let want = Balancer::RandomSubsetting { size: 4, of_each: false, child: Box::new(Balancer::RoundRobin) };
    assert_eq!(decoded(one(subset(4, child()))).balancer, want);
    cluster("a subset of nothing", one(subset(0, child())), &Says::Refused(&[&at("subset_size")]));
    cluster("a subset without a child", one(subset(4, None)), &Says::Refused(&[&at("child_policy")]));
}

#[test]
fn p10_outlier_detection_a50() {
    let with = |change: fn(&mut cds::OutlierDetection)| {
        move |c: &mut Proto| change(c.outlier_detection.get_or_insert_default())
    };
    let at = |name: &str| format!("outlier_detection.{name}");
    for (name, change) in [
        ("max_ejection_percent", (|o| o.max_ejection_percent = number(101)) as fn(&mut cds::OutlierDetection)),
        ("enforcing_success_rate", |o| o.enforcing_success_rate = number(101)),
        ("enforcing_consecutive_5xx", |o| o.enforcing_consecutive_5xx = number(101)),
        ("failure_percentage_threshold", |o| o.failure_percentage_threshold = number(101)),
        ("interval", |o| o.interval = Some(Duration { seconds: -1, nanos: 0 })),
        ("base_ejection_time", |o| o.base_ejection_time = Some(Duration { seconds: 0, nanos: -5 })),
    ] {
        cluster(name, with(change), &Says::Refused(&[&at(name)]));
    }
    let defaults = decoded(with(|_| {})).outlier.unwrap();
    let times = [defaults.interval, defaults.base_ejection, defaults.max_ejection].map(|time| time.as_secs());
    assert_eq!((times, defaults.max_ejected.get()), ([10, 30, 300], 100_000));
    let rate = defaults.success_rate.unwrap();
    assert_eq!((rate.stdev_factor, rate.minimum_hosts, rate.request_volume), (1900, 5, 100));
    assert_eq!(defaults.failure_percentage, None);
    let split = decoded(with(|o| {
        o.split_external_local_origin_errors = true;
        o.consecutive_local_origin_failure = number(3);
        o.enforcing_consecutive_local_origin_failure = number(50);
        o.enforcing_failure_percentage_local_origin = number(10);
    }));
    let split = split.outlier.unwrap();
    assert_eq!((split.consecutive_local_origin, split.enforcing.local_origin.get()), (Some(3), 500_000));
    assert_eq!(split.failure_percentage.unwrap().enforcing_local_origin.get(), 100_000);
    let one = |always| move |c: &mut Proto| c.outlier_detection.get_or_insert_default().always_eject_one_host = always;
    for always in [None, Some(BoolValue { value: true })] {
        cluster("one may be ejected", one(always), &Says::Taken);
    }
    cluster("none may", one(Some(BoolValue { value: false })), &Says::Reported(&[&at("always_eject_one_host")]));
    let of_none = |always: Option<bool>| {
        move |c: &mut Proto| {
            let outlier = c.outlier_detection.get_or_insert_default();
            outlier.always_eject_one_host = always.map(|value| BoolValue { value });
            outlier.max_ejection_percent = number(0);
        }
    };
    for always in [None, Some(false)] {
        cluster("none is ejected of a share of 0", of_none(always), &Says::Taken);
    }
    let ours = codec::encode_cluster(&decoded(of_none(None)));
    assert!(codec::decode_cluster(&ours).unwrap().unenforced.is_empty());
    cluster("one of a share of 0", of_none(Some(true)), &Says::Reported(&[&at("always_eject_one_host")]));
}

#[test]
fn p12_the_health_that_keeps_a_pinned_session_a55() {
    let status = |list: &[i32]| {
        let statuses = list.to_vec();
        decoded(|c| {
            c.common_lb_config.get_or_insert_default().override_host_status = Some(core::HealthStatusSet { statuses });
        })
    };
    assert_eq!(decoded(|_| {}).override_host, [Health::Healthy, Health::Unknown]);
    // Draining, unhealthy, healthy, degraded, and one of a later version.
    assert_eq!(status(&[3, 2, 1, 5, 77]).override_host, [Health::Healthy, Health::Draining]);
    assert_eq!(status(&[]).override_host, []);
}

#[test]
fn c17_load_goes_to_the_server_that_the_cluster_came_from_a27() {
    let to = |specifier| move |c: &mut Proto| c.lrs_server = source(specifier);
    cluster("self", to(ConfigSourceSpecifier::Self_(Default::default())), &Says::Taken);
    cluster("ads", to(ConfigSourceSpecifier::Ads(Default::default())), &Says::Refused(&["lrs_server"]));
}

#[test]
fn percentages_and_times_of_clusters_are_checked() {
    let panic = |value| {
        move |c: &mut Proto| {
            c.common_lb_config.get_or_insert_default().healthy_panic_threshold = Some(Percent { value });
        }
    };
    cluster("nan", panic(f64::NAN), &Says::Refused(&["common_lb_config.healthy_panic_threshold"]));
    let at = "dns_refresh_rate";
    let rate = Some(Duration { seconds: -1, nanos: 0 });
    cluster("negative", |c| c.dns_refresh_rate = rate, &Says::Refused(&[at]));
    let failure = |base, max| {
        let seconds = |seconds| Duration { seconds, nanos: 0 };
        let rate = RefreshRate { base_interval: Option::map(base, seconds), max_interval: Option::map(max, seconds) };
        move |c: &mut Proto| c.dns_failure_refresh_rate = Some(rate)
    };
    cluster("max below base", failure(Some(3), Some(2)), &Says::Refused(&["dns_failure_refresh_rate.max_interval"]));
    cluster("no base", failure(None, Some(2)), &Says::Refused(&["dns_failure_refresh_rate.base_interval"]));
    cluster("no max", failure(Some(3), None), &Says::Taken);
}

fn originated() -> UpstreamTlsContext {
    let validation = CertificateValidationContext { system_root_certs: Some(SystemRootCerts {}), ..Default::default() };
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn socket(config: Any) -> Option<core::TransportSocket> {
    Some(core::TransportSocket { name: "tls".into(), config_type: Some(ConfigType::TypedConfig(config)) })
}

#[test]
fn c13_s13_the_transport_socket_a29_a86() {
    let with = |config: Any| move |c: &mut Proto| c.transport_socket = socket(config);
    cluster("tls", with(pack(&originated())), &Says::Taken);
    let other = Any { type_url: "type.googleapis.com/some.Socket".into(), value: Vec::new() };
    cluster("another", with(other), &Says::Refused(&["transport_socket.typed_config"]));
    let matches = |c: &mut Proto| c.transport_socket_matches.push(Default::default());
    cluster("matches", matches, &Says::Refused(&["transport_socket_matches"]));
    let wrapped = |inner| {
        pack(&Http11ProxyUpstreamTransport {
            transport_socket: inner,
            default_proxy_address: address("10.0.0.1", 3128),
        })
    };
    let proxied = decoded(with(wrapped(socket(pack(&originated())))));
    assert!(proxied.proxy.is_some() && matches!(proxied.tls, UpstreamTls::Simple(_)));
}

#[test]
fn b10_provider_instances_give_certificate_and_roots_or_roots_alone_a29() {
    let with = |certificate: Option<&str>, roots: &str| {
        let instance =
            |name: &str| CertificateProviderPluginInstance { instance_name: name.into(), ..Default::default() };
        let validation = CertificateValidationContext {
            ca_certificate_provider_instance: Some(instance(roots)),
            ..Default::default()
        };
        let common = CommonTlsContext {
            tls_certificate_provider_instance: certificate.map(instance),
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        };
        let context = UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
        move |c: &mut Proto| c.transport_socket = socket(pack(&context))
    };
    for (named, instance) in [("", None), ("default", None), ("outer", Some("outer"))] {
        let UpstreamTls::Mesh(tls) = decoded(with(Some(named), named)).tls else { panic!("mesh TLS") };
        assert_eq!(tls.instances, Instances::one(instance.map(Into::into)));
        let UpstreamTls::Roots(tls) = decoded(with(None, named)).tls else { panic!("nothing to show") };
        assert_eq!(tls, RootsTls { instance: instance.map(Into::into), ..RootsTls::default() });
    }
    let UpstreamTls::Mesh(tls) = decoded(with(Some("outer"), "default")).tls else { panic!("mesh TLS") };
    assert_eq!(tls.instances, Instances { certificate: Some("outer".into()), roots: None });
}

fn validation(context: &mut UpstreamTlsContext) -> &mut CertificateValidationContext {
    match &mut context.common_tls_context.as_mut().unwrap().validation_context_type {
        Some(ValidationContextType::ValidationContext(validation)) => validation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s1_names_that_a_server_must_have_a29() {
    const INSIDE: &str = "transport_socket.common_tls_context.validation_context";
    let named = |kind: SanType, name: StringProto| {
        let names = vec![SubjectAltNameMatcher { san_type: kind.into(), matcher: Some(name), ..Default::default() }];
        let mut context = originated();
        validation(&mut context).match_typed_subject_alt_names = names;
        move |c: &mut Proto| c.transport_socket = socket(pack(&context))
    };
    let names = format!("{INSIDE}.match_typed_subject_alt_names[0]");
    for text in ["a.test", "*.a.test", "spiffe://cluster.local/ns/a/sa/b"] {
        for kind in [SanType::Dns, SanType::Uri] {
            cluster(text, named(kind, codec::matcher::exact(text)), &Says::Taken);
        }
    }
    cluster("an address", named(SanType::IpAddress, codec::matcher::exact("10.0.0.1")), &Says::Taken);
    let half = StringProto { match_pattern: Some(MatchPattern::Prefix("10.".into())), ..Default::default() };
    for name in [half, codec::matcher::exact("a.test")] {
        cluster("no address", named(SanType::IpAddress, name), &Says::Refused(&[&format!("{names}.matcher")]));
    }
    for kind in [SanType::Email, SanType::OtherName] {
        cluster(
            "of a person",
            named(kind, codec::matcher::exact("a")),
            &Says::Refused(&[&format!("{names}.san_type")]),
        );
    }
}

#[test]
fn s1_s4_s5_tls_towards_endpoints_a29_a101_a82() {
    let with = |change: fn(&mut UpstreamTlsContext)| {
        let mut context = originated();
        change(&mut context);
        move |c: &mut Proto| c.transport_socket = socket(pack(&context))
    };
    let at = "transport_socket.common_tls_context";
    let inside = "transport_socket.common_tls_context.validation_context";
    for (name, change) in [
        (
            "verify_certificate_spki",
            (|c| validation(c).verify_certificate_spki.push("x".into())) as fn(&mut UpstreamTlsContext),
        ),
        ("verify_certificate_hash", |c| validation(c).verify_certificate_hash.push("x".into())),
        ("crl", |c| validation(c).crl = Some(Default::default())),
        ("custom_validator_config", |c| validation(c).custom_validator_config = Some(Default::default())),
    ] {
        cluster(name, with(change), &Says::Refused(&[&format!("{inside}.{name}")]));
    }
    for (name, change) in [
        (
            "tls_params",
            (|c| c.common_tls_context.as_mut().unwrap().tls_params = Some(Default::default()))
                as fn(&mut UpstreamTlsContext),
        ),
        ("custom_handshaker", |c| c.common_tls_context.as_mut().unwrap().custom_handshaker = Some(Default::default())),
        ("tls_certificate_sds_secret_configs", |c| {
            c.common_tls_context.as_mut().unwrap().tls_certificate_sds_secret_configs.push(Default::default());
        }),
    ] {
        cluster(name, with(change), &Says::Refused(&[&format!("{at}.{name}")]));
    }
    cluster("no CA", with(|c| validation(c).system_root_certs = None), &Says::Refused(&[inside]));
    cluster("a long SNI", with(|c| c.sni = "s".repeat(256)), &Says::Refused(&["transport_socket.sni"]));
    let UpstreamTls::Simple(tls) = decoded(with(|c| {
        c.sni = "a.test".into();
        c.auto_host_sni = true;
        c.auto_sni_san_validation = true;
        validation(c).match_subject_alt_names.push(codec::matcher::exact("b.test"));
    }))
    .tls
    else {
        panic!("TLS of the policy's own")
    };
    assert!(tls.auto_host_sni && tls.subject_alt_names.is_empty(), "the SNI replaces the names: {tls:?}");
    let mesh = with(|c| {
        let instance = CertificateProviderPluginInstance { instance_name: "default".into(), ..Default::default() };
        validation(c).ca_certificate_provider_instance = Some(instance);
        c.auto_sni_san_validation = true;
    });
    cluster("DNS names of mesh peers", mesh, &Says::Refused(&[&format!("{at}.auto_sni_san_validation")]));
}
