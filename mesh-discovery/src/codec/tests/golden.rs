//! Resources as istiod's generator for gRPC sends them, field by field.

use std::time::Duration;

use envoy_types::pb::envoy::config::{
    cluster::v3::{self as cds, circuit_breakers::Thresholds, cluster as cds_cluster, cluster::ClusterDiscoveryType},
    core::v3::{
        self as core, AggregatedConfigSource, ConfigSource, Metadata, SocketAddress, address::Address as AddressKind,
        config_source::ConfigSourceSpecifier, socket_address::PortSpecifier, transport_socket::ConfigType,
    },
    endpoint::v3 as eds,
    listener::v3 as lds,
    rbac::v3 as rbac,
    route::v3 as rds,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as RbacFilter;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as hcm, http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    self as tls,
    common_tls_context::{CertificateProviderInstance, CombinedCertificateValidationContext, ValidationContextType},
};
use envoy_types::pb::google::protobuf::{self as google, Any, Struct, UInt32Value};
use mesh_core::id::Workload;
use mesh_core::policy::*;
use prost::{Message, Name};

use crate::codec::{self, AnyListener};

const CLUSTER: &str = "outbound|9080||reviews.default.svc.cluster.local";

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn ads() -> Option<ConfigSource> {
    let specifier = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    Some(ConfigSource { config_source_specifier: Some(specifier), resource_api_version: 2, ..Default::default() })
}

fn address(ip: &str, port: u32) -> Option<core::Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port));
    let socket = SocketAddress { address: ip.into(), port_specifier, ..Default::default() };
    Some(core::Address { address: Some(AddressKind::SocketAddress(socket)) })
}

fn http_filter<M: Message + Name>(name: &str, config: &M) -> hcm::HttpFilter {
    let config_type = Some(http_filter::ConfigType::TypedConfig(pack(config)));
    hcm::HttpFilter { name: name.into(), config_type, ..Default::default() }
}

/// Both the deprecated provider fields, as istiod fills them; `sans` are older matchers, too.
fn common_tls(sans: &[&str]) -> Option<tls::CommonTlsContext> {
    let provider = |name: &str| {
        Some(CertificateProviderInstance { instance_name: "default".into(), certificate_name: name.into() })
    };
    let exact = |text: &&str| envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
        match_pattern: Some(envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
            (*text).into(),
        )),
        ..Default::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_subject_alt_names: sans.iter().map(exact).collect(),
            ..Default::default()
        }),
        validation_context_certificate_provider_instance: provider("ROOTCA"),
        ..Default::default()
    };
    Some(tls::CommonTlsContext {
        tls_certificate_certificate_provider_instance: provider("default"),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    })
}

fn socket<M: Message + Name>(context: &M) -> Option<core::TransportSocket> {
    let config_type = Some(ConfigType::TypedConfig(pack(context)));
    Some(core::TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type })
}

#[test]
fn istiods_client_listener_is_read() {
    let manager = hcm::HttpConnectionManager {
        http_filters: vec![
            http_filter("envoy.filters.http.fault", &HttpFault::default()),
            http_filter("envoy.filters.http.router", &Router::default()),
        ],
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            config_source: ads(),
            route_config_name: CLUSTER.into(),
        })),
        ..Default::default()
    };
    let listener = lds::Listener {
        name: "reviews:9080".into(),
        address: address("10.96.0.7", 9080),
        api_listener: Some(lds::ApiListener { api_listener: Some(pack(&manager)) }),
        ..Default::default()
    };
    let decoded = codec::decode_listener(&pack(&listener)).expect("accepted");
    assert_eq!(decoded.unenforced, []);
    let expected = Listener {
        filters: vec![HttpFilter { name: FAULT_FILTER.into(), kind: HttpFilterKind::Fault(None) }],
        ..Listener::new("reviews:9080", RouteSource::Named(CLUSTER.into()))
    };
    assert_eq!(decoded.value, AnyListener::Outbound(expected));
}

#[test]
fn istiods_routes_are_read() {
    let second = |seconds| Some(google::Duration { seconds, nanos: 0 });
    let weight = |name: &str, value| rds::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value }),
        ..Default::default()
    };
    let action = rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::WeightedClusters(rds::WeightedCluster {
            clusters: vec![weight("v1", 80), weight("v2", 20)],
            ..Default::default()
        })),
        timeout: second(3),
        max_stream_duration: Some(rds::route_action::MaxStreamDuration {
            max_stream_duration: second(3),
            ..Default::default()
        }),
        retry_policy: Some(rds::RetryPolicy {
            retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes".into(),
            num_retries: Some(UInt32Value { value: 2 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = rds::Route {
        r#match: Some(rds::RouteMatch {
            path_specifier: Some(rds::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        decorator: Some(rds::Decorator { operation: "reviews:9080/*".into(), ..Default::default() }),
        action: Some(rds::route::Action::Route(action)),
        ..Default::default()
    };
    let routes = rds::RouteConfiguration {
        name: CLUSTER.into(),
        virtual_hosts: vec![rds::VirtualHost {
            name: "reviews.default.svc.cluster.local:9080".into(),
            domains: vec!["reviews.default.svc.cluster.local".into(), "reviews:9080".into()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    let decoded = codec::decode_routes(&pack(&routes)).expect("accepted");
    let fields: Vec<&str> = decoded.unenforced.iter().map(|u| u.field.as_str()).collect();
    assert_eq!(fields, ["virtual_hosts[0].routes[0].decorator"]);
    let RouteAction::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else {
        panic!("a forwarding route");
    };
    assert_eq!(forward.timeout, Some(Duration::from_secs(3)));
    assert_eq!((forward.max_stream_duration, forward.grpc_timeout_max), (Some(Duration::from_secs(3)), None));
    let expected = RetryPolicy { avoid_previous_hosts: false, ..RetryPolicy::istio_default() };
    assert_eq!(forward.retry, Some(expected));
    let ClusterChoice::Weighted(split) = &forward.to else { panic!("a split") };
    assert_eq!(split.total(), 100);
}

#[test]
fn istiods_cluster_is_read() {
    let spiffe = "spiffe://cluster.local/ns/default/sa/reviews";
    let cluster = cds::Cluster {
        name: CLUSTER.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(cds_cluster::DiscoveryType::Eds.into())),
        eds_cluster_config: Some(cds_cluster::EdsClusterConfig { eds_config: ads(), service_name: CLUSTER.into() }),
        circuit_breakers: Some(cds::CircuitBreakers {
            thresholds: vec![Thresholds { max_requests: Some(UInt32Value { value: 7 }), ..Default::default() }],
            ..Default::default()
        }),
        transport_socket: socket(&tls::UpstreamTlsContext {
            common_tls_context: common_tls(&[spiffe]),
            sni: "outbound_.9080_._.reviews.default.svc.cluster.local".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let decoded = codec::decode_cluster(&pack(&cluster)).expect("accepted");
    assert_eq!(decoded.unenforced, []);
    let mut expected = Cluster::new(CLUSTER.into());
    expected.discovery = Discovery::Eds { service_name: Some(CLUSTER.into()) };
    expected.balancer = Balancer::RoundRobin;
    expected.locality.weighted = true;
    expected.breaker.max_requests = Some(7);
    expected.tls = UpstreamTls::Mesh(MeshTls {
        peer_ids: vec![StringMatcher::exact(spiffe)],
        sni: Some("outbound_.9080_._.reviews.default.svc.cluster.local".into()),
        ..MeshTls::default()
    });
    assert_eq!(decoded.value, expected);
}

#[test]
fn istiods_endpoints_are_read() {
    let entry = |key: &str, text: &str| {
        let kind = Some(google::value::Kind::StringValue(text.into()));
        (key.to_owned(), google::Value { kind })
    };
    let metadata = Metadata {
        filter_metadata: [
            (
                "istio".to_owned(),
                Struct { fields: [entry("workload", "reviews-v1;default;reviews;v1;Kubernetes")].into() },
            ),
            ("envoy.transport_socket_match".to_owned(), Struct { fields: [entry("tlsMode", "istio")].into() }),
        ]
        .into(),
        ..Default::default()
    };
    let assignment = eds::ClusterLoadAssignment {
        cluster_name: CLUSTER.into(),
        endpoints: vec![eds::LocalityLbEndpoints {
            locality: Some(core::Locality { region: "eu".into(), zone: "eu-a".into(), sub_zone: String::new() }),
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            lb_endpoints: vec![eds::LbEndpoint {
                metadata: Some(metadata),
                load_balancing_weight: Some(UInt32Value { value: 1 }),
                host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
                    address: address("10.1.2.3", 9080),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let decoded = codec::decode_endpoints(&pack(&assignment)).expect("accepted");
    assert_eq!(decoded.unenforced, []);
    let endpoint = decoded.value.iter().next().expect("one endpoint");
    assert_eq!(endpoint.address.to_string(), "10.1.2.3:9080");
    assert_eq!(endpoint.health, Health::Unknown);
    assert!(endpoint.metadata.mesh_tls);
    let expected = Workload {
        name: "reviews-v1".into(),
        namespace: "default".into(),
        canonical_name: "reviews".into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        ..Default::default()
    };
    assert_eq!(endpoint.metadata.workload.as_ref(), Some(&expected));
}

#[test]
fn istiods_strict_server_listener_is_read() {
    let allow = rbac::Rbac {
        action: rbac::rbac::Action::Allow.into(),
        policies: [(
            "ns[default]-policy[reviews]-rule[0]".to_owned(),
            rbac::Policy {
                permissions: vec![rbac::Permission { rule: Some(rbac::permission::Rule::Any(true)) }],
                principals: vec![rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }],
                ..Default::default()
            },
        )]
        .into(),
        ..Default::default()
    };
    let route = rds::Route {
        r#match: Some(rds::RouteMatch {
            path_specifier: Some(rds::route_match::PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(rds::route::Action::NonForwardingAction(rds::NonForwardingAction {})),
        ..Default::default()
    };
    let host = rds::VirtualHost { domains: vec!["*".into()], routes: vec![route], ..Default::default() };
    let table = rds::RouteConfiguration { name: "inbound".into(), virtual_hosts: vec![host], ..Default::default() };
    let manager = hcm::HttpConnectionManager {
        http_filters: vec![
            http_filter("envoy.filters.http.rbac", &RbacFilter { rules: Some(allow), ..Default::default() }),
            http_filter("envoy.filters.http.router", &Router::default()),
        ],
        route_specifier: Some(RouteSpecifier::RouteConfig(table)),
        ..Default::default()
    };
    let listener = lds::Listener {
        name: "xds.istio.io/grpc/lds/inbound/0.0.0.0:9080".into(),
        address: address("0.0.0.0", 9080),
        filter_chains: vec![lds::FilterChain {
            name: "inbound-mtls".into(),
            filters: vec![lds::Filter {
                name: "inbound-hcmmtls".into(),
                config_type: Some(lds::filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            transport_socket: socket(&tls::DownstreamTlsContext {
                common_tls_context: common_tls(&[]),
                require_client_certificate: Some(google::BoolValue { value: true }),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let decoded = codec::decode_listener(&pack(&listener)).expect("accepted");
    let fields: Vec<&str> = decoded.unenforced.iter().map(|u| u.field.as_str()).collect();
    assert!(fields.is_empty(), "{fields:?}");
    let AnyListener::Inbound(inbound) = decoded.value else { panic!("a server's listener") };
    assert_eq!(inbound.tls, InboundTls::Strict);
    assert_eq!(inbound.address.to_string(), "0.0.0.0:9080");
    let expected = AuthorizationPolicy {
        rules: vec![AuthorizationRule {
            name: "ns[default]-policy[reviews]-rule[0]".into(),
            permissions: vec![Permission::Any],
            principals: vec![Principal::Any],
        }],
        ..AuthorizationPolicy::new("envoy.filters.http.rbac", AuthorizationAction::Allow)
    };
    assert_eq!(inbound.authorization, [expected]);
}
