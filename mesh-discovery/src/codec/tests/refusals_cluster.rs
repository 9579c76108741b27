//! What is refused of clusters, endpoints and server listeners.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use envoy_types::pb::google::protobuf::{Any, Duration};
use mesh_core::id::Locality;
use mesh_core::policy::*;

use super::refusals::{changed, fields, number};
use crate::codec;

pub(super) fn with_cluster(change: impl FnOnce(&mut ClusterProto)) -> Any {
    changed(codec::encode_cluster(&Cluster::new("c".into())), change)
}

fn endpoints() -> Endpoints {
    let group = |zone: &str, priority, port| LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Default::default() },
        priority,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![Endpoint::new(Address::Socket(([10, 0, 0, 1], port).into()))],
    };
    Endpoints { cluster: "c".into(), localities: vec![group("a", 0, 80), group("b", 1, 81)], ..Endpoints::default() }
}

pub(super) fn with_endpoints(change: impl FnOnce(&mut ClusterLoadAssignment)) -> Any {
    changed(codec::encode_endpoints(&endpoints()), change)
}

pub(super) fn inbound() -> InboundListener {
    InboundListener::new("in", ([0, 0, 0, 0], 9080).into(), InboundTls::Strict)
}

#[test]
fn unknown_load_balancing_policies_are_passed_over() {
    use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, load_balancing_policy::Policy};
    let unknown = || Policy {
        typed_extension_config: Some(core::TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(Any { type_url: "type.googleapis.com/some.Policy".into(), value: Vec::new() }),
        }),
    };
    let first = with_cluster(|c| c.load_balancing_policy.as_mut().expect("set").policies.insert(0, unknown()));
    let decoded = codec::decode_cluster(&first).expect("accepted");
    assert_eq!(decoded.value.balancer, Balancer::least_request());
    let only = with_cluster(|c| c.load_balancing_policy = Some(LoadBalancingPolicy { policies: vec![unknown()] }));
    assert_eq!(fields(codec::decode_cluster(&only)), ["load_balancing_policy"]);
}

#[test]
fn bytes_of_a_tcp_check_are_read_as_envoy_reads_them() {
    use core::health_check::{HealthChecker, Payload, TcpHealthCheck, payload::Payload as Bytes};
    let check = HealthCheck {
        probe: HealthProbe::Tcp(TcpProbe::default()),
        interval: std::time::Duration::from_secs(1),
        timeout: std::time::Duration::from_secs(1),
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        pace: HealthCheckPace::default(),
        port: None,
        reuse_connection: true,
    };
    let cluster = Cluster { health_checks: vec![check], ..Cluster::new("c".into()) };
    let decoded = |send: Bytes, receive: Option<Bytes>| {
        let any = changed(codec::encode_cluster(&cluster), |c: &mut ClusterProto| {
            c.health_checks[0].health_checker = Some(HealthChecker::TcpHealthCheck(TcpHealthCheck {
                send: Some(Payload { payload: Some(send) }),
                receive: vec![Payload { payload: receive }],
                ..Default::default()
            }));
        });
        codec::decode_cluster(&any)
    };
    let text = |text: &str| Bytes::Text(text.to_owned());
    let good = decoded(text("50696E67"), Some(Bytes::Binary(b"pong".to_vec()))).expect("accepted");
    let probe = TcpProbe { send: b"Ping".to_vec(), receive: vec![b"pong".to_vec()] };
    assert_eq!(good.value.health_checks[0].probe, HealthProbe::Tcp(probe));
    for bad in ["5", "xy", "\u{e9}0", "+1"] {
        let refused = decoded(text(bad), None);
        let path = "health_checks[0].tcp_health_check";
        assert_eq!(fields(refused), [format!("{path}.send"), format!("{path}.receive[0]")], "{bad}");
    }
}

#[test]
fn a_connection_without_streams_is_refused() {
    let mut cluster = Cluster::new("c".into());
    cluster.connection.protocol = UpstreamProtocol::Http2;
    let fields_with = |cluster: &Cluster| match codec::decode_cluster(&codec::encode_cluster(cluster)) {
        Ok(_) => Vec::new(),
        refused => fields(refused),
    };
    cluster.connection.max_concurrent_streams = Some(1);
    assert_eq!(fields_with(&cluster), Vec::<String>::new(), "control");
    cluster.connection.max_concurrent_streams = Some(0);
    let refused = fields_with(&cluster);
    assert!(refused[0].ends_with("max_concurrent_streams"), "{refused:?}");
}

#[test]
fn tcp_keepalive_that_the_system_refuses_is_refused_and_0_is_its_own_setting() {
    use std::time::Duration;
    let with = |probes: u32, time: u64, interval: u64| {
        let (time, interval) = (Some(Duration::from_secs(time)), Some(Duration::from_secs(interval)));
        let mut cluster = Cluster::new("c".into());
        cluster.connection.tcp_keepalive = Some(TcpKeepalive { probes: Some(probes), time, interval });
        codec::decode_cluster(&codec::encode_cluster(&cluster))
    };
    let read = |probes, time, interval| with(probes, time, interval).unwrap().value.connection.tcp_keepalive;
    let most = Some(Duration::from_secs(32_767));
    assert_eq!(read(127, 32_767, 32_767), Some(TcpKeepalive { probes: Some(127), time: most, interval: most }));
    assert_eq!(read(0, 0, 0), Some(TcpKeepalive { probes: None, time: None, interval: None }));
    let path = "upstream_connection_options.tcp_keepalive";
    for (refused, field) in [
        (with(128, 1, 1), "keepalive_probes"),
        (with(1, 32_768, 1), "keepalive_time"),
        (with(1, 1, 32_768), "keepalive_interval"),
    ] {
        assert_eq!(fields(refused), [format!("{path}.{field}")]);
    }
}

#[test]
fn accrual_without_a_failure_is_refused() {
    let accrual = FailureAccrual { max_failures: 0, ..FailureAccrual::default() };
    let cluster = Cluster { accrual: Some(accrual), ..Cluster::new("c".into()) };
    assert_eq!(fields(codec::decode_cluster(&codec::encode_cluster(&cluster))), ["accrual.max_failures"]);
}

#[test]
fn a_grpc_client_finds_a_policy_it_knows_behind_ours() {
    for balancer in [Balancer::Random, Balancer::PeakEwma, Balancer::Maglev { table_size: 65_537 }] {
        let mut cluster = Cluster::new("c".into());
        cluster.balancer = balancer;
        changed::<ClusterProto>(codec::encode_cluster(&cluster), |proto| {
            let policies = &proto.load_balancing_policy.as_ref().expect("set").policies;
            let last = policies.last().and_then(|p| p.typed_extension_config.as_ref()).expect("an entry");
            assert_eq!(last.name, "envoy.load_balancing_policies.round_robin");
        });
    }
}

#[test]
fn clusters_are_checked() {
    let at = "eds_cluster_config.eds_config";
    assert_eq!(fields(codec::decode_cluster(&with_cluster(|c| c.eds_cluster_config = None))), [at]);
    let resource = with_cluster(|c| {
        c.outlier_detection = Some(envoy_types::pb::envoy::config::cluster::v3::OutlierDetection {
            max_ejection_percent: number(101),
            interval: Some(Duration { seconds: -1, nanos: 0 }),
            ..Default::default()
        });
        c.transport_socket_matches.push(Default::default());
    });
    let expected = ["outlier_detection.max_ejection_percent", "outlier_detection.interval", "transport_socket_matches"];
    assert_eq!(fields(codec::decode_cluster(&resource)), expected);
}

#[test]
fn a_cluster_without_limits_still_has_a32s() {
    let decoded = codec::decode_cluster(&with_cluster(|c| c.circuit_breakers = None)).expect("accepted");
    let expected = CircuitBreakers { max_requests: Some(1024), ..Default::default() };
    assert_eq!(decoded.value.breaker, expected);
}

#[test]
fn tls_that_cannot_be_obeyed_is_refused() {
    let with_context = |change: fn(&mut UpstreamTlsContext)| {
        let mut cluster = Cluster::new("c".into());
        cluster.tls = UpstreamTls::Mesh(MeshTls::default());
        let resource = changed::<ClusterProto>(codec::encode_cluster(&cluster), |proto| {
            let socket = proto.transport_socket.as_mut().expect("mesh TLS");
            let Some(core::transport_socket::ConfigType::TypedConfig(any)) = socket.config_type.take() else {
                panic!("a typed config");
            };
            socket.config_type = Some(core::transport_socket::ConfigType::TypedConfig(changed(any, change)));
        });
        fields(codec::decode_cluster(&resource))
    };
    let at = |name: &str| format!("transport_socket.common_tls_context{name}");
    assert_eq!(with_context(|_| ()), [] as [String; 0]);
    assert_eq!(with_context(|c| c.common_tls_context = None), [at("")]);
    assert_eq!(with_context(|c| c.sni = "s".repeat(256)), ["transport_socket.sni"]);
    assert_eq!(
        with_context(|c| {
            let common = c.common_tls_context.as_mut().expect("set");
            common.validation_context_type = None;
            common.tls_params = Some(Default::default());
        }),
        [at(".tls_params"), at(".validation_context")]
    );
    assert_eq!(
        with_context(|c| c.common_tls_context.as_mut().expect("set").tls_certificates.push(Default::default())),
        [at(".tls_certificates")]
    );
}

#[test]
fn endpoints_follow_a27() {
    let at = "endpoints";
    let gap = with_endpoints(|e| e.endpoints[1].priority = 2);
    assert_eq!(fields(codec::decode_endpoints(&gap)), [at]);
    let twice = with_endpoints(|e| {
        let first = e.endpoints[0].clone();
        e.endpoints.push(first);
    });
    assert_eq!(fields(codec::decode_endpoints(&twice)), ["endpoints[2].lb_endpoints[0].endpoint.address", at]);
    let too_heavy = with_endpoints(|e| {
        e.endpoints[1].priority = 0;
        e.endpoints[0].load_balancing_weight = number(u32::MAX);
    });
    assert_eq!(fields(codec::decode_endpoints(&too_heavy)), [at]);
    let no_locality = with_endpoints(|e| e.endpoints[0].locality = None);
    assert_eq!(fields(codec::decode_endpoints(&no_locality)), ["endpoints[0].locality"]);
    let weightless = with_endpoints(|e| e.endpoints[0].lb_endpoints[0].load_balancing_weight = number(0));
    assert_eq!(fields(codec::decode_endpoints(&weightless)), ["endpoints[0].lb_endpoints[0].load_balancing_weight"]);
    let skipped = with_endpoints(|e| e.endpoints[1].load_balancing_weight = None);
    let decoded = codec::decode_endpoints(&skipped).expect("accepted");
    assert_eq!(decoded.value.localities.len(), 1);
    assert_eq!(decoded.unenforced[0].field, "endpoints[1].load_balancing_weight");
}

#[test]
fn endpoints_with_the_same_facts_share_them() {
    let mut policy = endpoints();
    let facts = Arc::new(EndpointMetadata { mesh_tls: true, ..Default::default() });
    for endpoint in policy.localities.iter_mut().flat_map(|l| &mut l.endpoints) {
        endpoint.metadata = facts.clone();
    }
    let decoded = codec::decode_endpoints(&codec::encode_endpoints(&policy)).expect("accepted").value;
    let found: Vec<&Endpoint> = decoded.iter().collect();
    assert!(Arc::ptr_eq(&found[0].metadata, &found[1].metadata));
}

#[test]
fn a_servers_listener_is_never_laxer_than_its_resource() {
    let refused = |change: fn(&mut ListenerProto)| {
        let resource = changed(codec::encode_inbound(&inbound()), change);
        fields(codec::decode_listener(&resource))
    };
    assert_eq!(refused(|l| l.filter_chains.clear()), ["filter_chains"]);
    assert_eq!(refused(|l| l.listener_filters.push(Default::default())), ["listener_filters"]);
    assert_eq!(refused(|l| l.address = None), ["address"]);
    assert_eq!(refused(|l| l.filter_chains[0].filters.clear()), ["filter_chains[0].filters"]);
    assert_eq!(
        refused(|l| {
            let mut second = l.filter_chains[0].clone();
            second.transport_socket = None;
            l.filter_chains.push(second);
        }),
        ["filter_chains"],
        "two chains that nothing tells apart"
    );
    assert_eq!(
        refused(|l| {
            let socket = l.filter_chains[0].transport_socket.as_mut().expect("strict");
            socket.config_type = None;
        }),
        ["filter_chains[0].transport_socket.typed_config"]
    );
}

#[test]
fn a_custom_policy_denies_where_nobody_can_be_asked() {
    use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
    let policy = AuthorizationPolicy::new("default/ask", AuthorizationAction::Custom(AuthorizerProvider::named("opa")));
    let encoded = codec::authorization::encode(&[policy], Default::default());
    let rules = encoded[0].filter.rules.as_ref().expect("enforced");
    assert_eq!(rules.action, i32::from(Action::Deny));
}

#[test]
fn our_metadata_makes_no_other_action_of_a_filter() {
    use crate::proto::policy::AuthorizationExtra;
    let fields = |action, custom: Option<&str>, route| {
        let policy = AuthorizationPolicy::new("p", action);
        let encoded = codec::authorization::encode(&[policy], Default::default()).remove(0);
        let extra = AuthorizationExtra { custom: custom.map(str::to_owned), route, ..encoded.extra };
        let mut report = codec::report::Report::new("listener", "l");
        let at = codec::report::At::ROOT;
        let value = codec::authorization::decode("p", &encoded.filter, Some(&extra), &at, &mut report);
        fields(report.finish(Some(value)))
    };
    let none = [""; 0];
    assert_eq!(fields(AuthorizationAction::Deny, Some("opa"), false), none, "the control");
    assert_eq!(fields(AuthorizationAction::Allow, None, true), none, "the control");
    assert_eq!(fields(AuthorizationAction::Allow, Some("opa"), false), ["rules.action"]);
    assert_eq!(fields(AuthorizationAction::Audit, Some("opa"), false), ["rules.action"]);
    assert_eq!(fields(AuthorizationAction::Deny, None, true), ["rules.action"]);
    assert_eq!(fields(AuthorizationAction::Deny, Some("opa"), true), ["rules.action"]);
}

#[test]
fn authorization_rules_that_are_not_understood_refuse_the_listener() {
    use envoy_types::pb::envoy::config::rbac::v3::{Permission as Proto, permission::Rule};
    let refused = |rule: Rule| {
        let mut report = codec::report::Report::new("listener", "l");
        let proto = envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac {
            rules: Some(envoy_types::pb::envoy::config::rbac::v3::Rbac {
                policies: [(
                    "r".to_owned(),
                    envoy_types::pb::envoy::config::rbac::v3::Policy {
                        permissions: vec![Proto { rule: Some(rule) }],
                        principals: vec![codec::authorization::encode_principal(&Principal::Any)],
                        ..Default::default()
                    },
                )]
                .into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let value = codec::authorization::decode("f", &proto, None, &codec::report::At::ROOT, &mut report);
        fields(report.finish(Some(value)))
    };
    let header = |name: &str| rds::HeaderMatcher { name: name.into(), ..Default::default() };
    let at = |name: &str| format!("rules.policies[\"r\"].permissions[0].{name}");
    assert_eq!(refused(Rule::Header(header("x-user"))), [] as [String; 0]);
    assert_eq!(refused(Rule::Header(header(":scheme"))), [at("header.name")]);
    assert_eq!(refused(Rule::Header(header("GRPC-timeout"))), [at("header.name")]);
    assert_eq!(refused(Rule::Metadata(Default::default())), [at("metadata"), at("metadata.value")]);
    assert_eq!(refused(Rule::DestinationPortRange(Default::default())), [at("destination_port_range")], "empty");
    assert_eq!(refused(Rule::UriTemplate(Default::default())), [at("uri_template")]);
    let nested = Proto { rule: Some(Rule::Header(header("grpc-encoding"))) };
    assert_eq!(refused(Rule::NotRule(Box::new(nested))), [at("not_rule.header.name")]);
}
