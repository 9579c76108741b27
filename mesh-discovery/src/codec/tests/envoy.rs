//! The form in which an Envoy takes clusters and routes.

use std::sync::Arc;

use envoy_types::pb::envoy::config::{
    cluster::v3 as cds,
    core::v3::{config_source::ConfigSourceSpecifier, transport_socket::ConfigType},
    route::v3 as rds,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    UpstreamTlsContext, common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
};
use mesh_core::policy::*;
use prost::Message;

use crate::codec::envoy;

fn cluster(change: impl FnOnce(&mut Cluster)) -> cds::Cluster {
    let mut cluster = Cluster::new("outbound|9080||reviews.default.svc.cluster.local".into());
    change(&mut cluster);
    cds::Cluster::decode(envoy::encode_cluster(&cluster, None).value.as_slice()).unwrap()
}

fn mesh() -> MeshTls {
    let peer_ids = vec![StringMatcher::exact("spiffe://cluster.local/ns/default/sa/reviews")];
    MeshTls { peer_ids, sni: Some("outbound_.9080_._.reviews".into()), ..MeshTls::default() }
}

fn context(socket: Option<&envoy_types::pb::envoy::config::core::v3::TransportSocket>) -> UpstreamTlsContext {
    let Some(ConfigType::TypedConfig(any)) = &socket.unwrap().config_type else { panic!("no configuration") };
    UpstreamTlsContext::decode(any.value.as_slice()).unwrap()
}

/// Names of the secrets: the own certificate's and the roots'.
fn secrets(context: &UpstreamTlsContext) -> (Vec<&str>, Option<&str>) {
    let common = context.common_tls_context.as_ref().unwrap();
    assert!(common.tls_certificate_provider_instance.is_none(), "gRPC's providers mean nothing to an Envoy");
    let roots = match &common.validation_context_type {
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            combined.validation_context_sds_secret_config.as_ref().map(|secret| secret.name.as_str())
        }
        _ => None,
    };
    (common.tls_certificate_sds_secret_configs.iter().map(|secret| secret.name.as_str()).collect(), roots)
}

#[test]
fn mutual_tls_is_by_secrets_and_checks_the_peers_identity() {
    let proto = cluster(|cluster| cluster.tls = UpstreamTls::Mesh(mesh()));
    let context = context(proto.transport_socket.as_ref());
    assert_eq!(secrets(&context), (vec!["default"], Some("ROOTCA")));
    let common = context.common_tls_context.unwrap();
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type else {
        panic!("roots alone")
    };
    let names = combined.default_validation_context.unwrap().match_typed_subject_alt_names;
    assert_eq!((names.len(), names[0].san_type), (1, SanType::Uri.into()));
}

#[test]
fn secrets_are_in_the_bootstrap_or_in_files_where_the_proxy_has_them() {
    let source = |directory| {
        let mut cluster = Cluster::new("c".into());
        cluster.tls = UpstreamTls::Mesh(mesh());
        let bytes = envoy::encode_cluster(&cluster, directory).value;
        let context = context(cds::Cluster::decode(bytes.as_slice()).unwrap().transport_socket.as_ref());
        let own = context.common_tls_context.unwrap().tls_certificate_sds_secret_configs.remove(0);
        match own.sds_config.and_then(|source| source.config_source_specifier) {
            Some(ConfigSourceSpecifier::PathConfigSource(file)) => Some(file.path),
            _ => None,
        }
    };
    assert_eq!(source(None), None);
    assert_eq!(source(Some("/etc/mesh/certs/")).as_deref(), Some("/etc/mesh/certs/default.yaml"));
}

#[test]
fn automatic_mutual_tls_is_by_the_endpoints_own_word() {
    let proto = cluster(|cluster| cluster.tls = UpstreamTls::Auto(mesh()));
    assert!(proto.transport_socket.is_none() && proto.metadata.is_none());
    let [first, second] = proto.transport_socket_matches.as_slice() else { panic!("a pair") };
    assert_eq!(secrets(&context(first.transport_socket.as_ref())), (vec!["default"], Some("ROOTCA")));
    assert!(first.r#match.as_ref().unwrap().fields.contains_key("tlsMode"));
    assert!(second.r#match.as_ref().unwrap().fields.is_empty());
    assert_eq!(second.transport_socket.as_ref().unwrap().name, "envoy.transport_sockets.raw_buffer");
}

#[test]
fn tls_to_the_outside_is_never_without_roots() {
    let outside = |insecure_skip_verify| {
        let (sni, auto_host_sni, subject_alt_names, ca_file) = (None, false, Vec::new(), None);
        let tls = OriginatedTls { sni, auto_host_sni, subject_alt_names, ca_file, insecure_skip_verify };
        context(cluster(|cluster| cluster.tls = UpstreamTls::Simple(tls)).transport_socket.as_ref())
    };
    assert_eq!(secrets(&outside(false)), (vec![], Some("file-root:system")));
    assert_eq!(secrets(&outside(true)), (vec![], None), "asked for");
}

#[test]
fn names_to_the_outside_are_looked_for_among_those_of_their_kind() {
    for (name, kind) in [
        ("a.test", SanType::Dns),
        ("*.a.test", SanType::Dns),
        ("spiffe://a.test/ns/b/sa/c", SanType::Uri),
        ("10.0.0.1", SanType::IpAddress),
        ("fd00::1", SanType::IpAddress),
    ] {
        let (sni, auto_host_sni, ca_file, insecure_skip_verify) = (None, false, None, false);
        let subject_alt_names = vec![StringMatcher::exact(name)];
        let tls = OriginatedTls { sni, auto_host_sni, subject_alt_names, ca_file, insecure_skip_verify };
        let context = context(cluster(|cluster| cluster.tls = UpstreamTls::Simple(tls)).transport_socket.as_ref());
        let Some(ValidationContextType::CombinedValidationContext(combined)) =
            context.common_tls_context.unwrap().validation_context_type
        else {
            panic!("combined")
        };
        let names = combined.default_validation_context.unwrap().match_typed_subject_alt_names;
        assert_eq!(names.iter().map(|name| name.san_type()).collect::<Vec<_>>(), [kind], "{name}");
    }
}

#[test]
fn what_only_this_library_knows_stays_out() {
    let proto = cluster(|cluster| {
        cluster.balancer = Balancer::PeakEwma;
        cluster.tls = UpstreamTls::Auto(mesh());
        cluster.discovery = Discovery::StrictDns(Arc::default());
        cluster.locality.weighted = true;
    });
    assert!(proto.metadata.is_none());
    let policies: Vec<String> = proto
        .load_balancing_policy
        .unwrap()
        .policies
        .into_iter()
        .map(|policy| policy.typed_extension_config.unwrap().name)
        .collect();
    assert_eq!(policies, ["least_request", "round_robin"].map(|name| format!("envoy.load_balancing_policies.{name}")));
}

#[test]
fn a_changed_cluster_waits_for_its_endpoints_however_long_they_take() {
    let proto = cluster(|_| {});
    let config = proto.eds_cluster_config.unwrap().eds_config.unwrap();
    assert_eq!(config.initial_fetch_timeout, Some(Default::default()));
}

#[test]
fn a_long_direct_answer_is_announced() {
    let answer = |length: usize| {
        let action = RouteAction::DirectResponse(DirectResponse { status: 200, body: vec![b'x'; length] });
        let route = Route::new(RouteMatch::any(), action);
        let host = VirtualHost {
            name: "answers".into(),
            domains: vec![Domain::new("*").unwrap()],
            routes: vec![route],
            headers: HeaderPolicy::default(),
            retry: Some(RetryPolicy::istio_default()),
        };
        let routes = RouteConfiguration {
            name: "9080".into(),
            virtual_hosts: vec![host],
            headers: HeaderPolicy::default(),
            retry_budget: None,
        };
        let proto = rds::RouteConfiguration::decode(envoy::encode_routes(&routes).value.as_slice()).unwrap();
        proto.max_direct_response_body_size_bytes.map(|size| size.value)
    };
    assert_eq!([answer(10), answer(5000)], [None, Some(5000)]);
}
