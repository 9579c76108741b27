//! The same policy in the form in which an Envoy takes it.
//!
//! What differs from the form for gRPC clients and this library:
//!
//! - Certificates are SDS secrets by name, not gRPC certificate providers. The names are those of istiod
//!   and of SPIRE's agent: [`IDENTITY`], [`ROOTS`], and [`SYSTEM_ROOTS`] for TLS that only the policy asks for.
//! - Automatic mTLS is a pair of `transport_socket_matches`, as istiod's sidecars get it.
//! - Our typed metadata and our balancer stay out: Envoy cannot print a resource that holds a type it does not
//!   know, so one of them would cost the operator the whole `/config_dump`.
//! - What Envoy would refuse or do worse by default is said: the waiting time for endpoints, the size of
//!   direct answers, the newest TLS version, the address family of names.
//!
//! Encoding only: an Envoy's form is never read back.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::extension::{self, url};
use super::{CLUSTER, LISTENER, ROUTES, cluster, common, filter, matcher, route as routes, tls};
use crate::proto::policy::METADATA_KEY;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{DnsLookupFamily, TransportSocketMatch};
use envoy_types::pb::envoy::config::cluster::v3::{self as xds, cluster::ClusterDiscoveryType};
use envoy_types::pb::envoy::config::core::v3::{
    ApiVersion, ConfigSource, Metadata, PathConfigSource, TrafficDirection, TransportSocket,
    config_source::ConfigSourceSpecifier, data_source::Specifier, transport_socket::ConfigType,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, filter::ConfigType as FilterConfig};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration as RoutesProto, route};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as hcm, HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, Value};
use mesh_core::policy::{
    Address, ClientCertificate, Cluster, FAULT_FILTER, MeshTls, OriginatedTls, RouteConfiguration, StringMatcher,
    UpstreamProtocol, UpstreamTls,
};

/// Name of the secret that holds the proxy's own certificate and key.
pub const IDENTITY: &str = "default";
/// Name of the secret that holds the roots of the mesh.
pub const ROOTS: &str = "ROOTCA";
/// Name of the secret that holds the roots of the operating system, for TLS to hosts outside of the mesh.
pub const SYSTEM_ROOTS: &str = "file-root:system";

/// Usual name of the CORS filter, under which routes carry their settings.
const CORS_FILTER: &str = "envoy.filters.http.cors";
/// Beginning of the types of Envoy's own balancers.
const BALANCERS: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.";
/// Largest direct answer that Envoy takes unless it is told otherwise.
const DIRECT_ANSWER: usize = 4096;

/// Encodes a cluster. `secrets` is the directory in which the proxy has the files `default.yaml` and `ROOTCA.yaml`;
/// without one the secrets are in its bootstrap.
pub fn encode_cluster(policy: &Cluster, secrets: Option<&str>) -> Any {
    let mut policy = policy.clone();
    // Negotiation needs TLS; Envoy refuses it over plaintext.
    if policy.connection.protocol == UpstreamProtocol::Alpn
        && !matches!(policy.tls, UpstreamTls::Simple(_) | UpstreamTls::Mutual(..))
    {
        policy.connection.protocol = UpstreamProtocol::Http1;
    }
    let mut proto = cluster::encode(&policy);
    forget_ours(&mut proto.metadata);
    keep_known_policies(&mut proto);
    if let Some(config) = proto.eds_cluster_config.as_mut().and_then(|eds| eds.eds_config.as_mut()) {
        // No limit: after it Envoy would take a changed cluster without any endpoint into use.
        config.initial_fetch_timeout = Some(Duration::default());
    }
    proto.dns_lookup_family = DnsLookupFamily::V4Preferred.into();
    proto.respect_dns_ttl = matches!(proto.cluster_discovery_type, Some(ClusterDiscoveryType::Type(_)));
    encode_tls(&policy.tls, secrets, &mut proto);
    extension::pack(CLUSTER, &proto)
}

/// Encodes a route configuration.
pub fn encode_routes(policy: &RouteConfiguration) -> Any {
    let mut proto = routes::encode(policy);
    forget_ours(&mut proto.metadata);
    for host in &mut proto.virtual_hosts {
        forget_ours(&mut host.metadata);
        host.routes.iter_mut().for_each(|route| forget_ours(&mut route.metadata));
    }
    let longest = longest_answer(&proto);
    if longest > DIRECT_ANSWER {
        proto.max_direct_response_body_size_bytes = common::uint32(u32::try_from(longest).unwrap_or(u32::MAX));
    }
    extension::pack(ROUTES, &proto)
}

/// Encodes a listener of the proxy's own side: HTTP in plaintext at `address`, routed by the configuration
/// `routes` over ADS.
pub fn encode_proxy_listener(name: &str, address: SocketAddr, routes: &str) -> Any {
    let filters = [
        // Both do nothing by themselves; routes turn them on.
        filter::encode(CORS_FILTER, extension::pack(url::CORS, &Cors::default()), false),
        filter::encode(FAULT_FILTER, extension::pack(url::FAULT, &HttpFault::default()), false),
        filter::router(),
    ];
    let rds = hcm::Rds { config_source: Some(common::ads()), route_config_name: routes.to_owned() };
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: filters.into(),
        ..Default::default()
    };
    let chain = FilterChain {
        filters: vec![Filter {
            name: "envoy.filters.network.http_connection_manager".to_owned(),
            config_type: Some(FilterConfig::TypedConfig(extension::pack(url::HCM, &manager))),
        }],
        ..Default::default()
    };
    let proto = super::listener::Proto {
        name: name.to_owned(),
        address: Some(common::address(&Address::Socket(address))),
        filter_chains: vec![chain],
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Default::default()
    };
    extension::pack(LISTENER, &proto)
}

fn forget_ours(metadata: &mut Option<Metadata>) {
    let Some(known) = metadata else { return };
    known.typed_filter_metadata.remove(METADATA_KEY);
    if *known == Metadata::default() {
        *metadata = None;
    }
}

/// Leaves the policies that Envoy has. Its locality wrapper takes one child only, and each policy says for
/// itself how localities count.
fn keep_known_policies(proto: &mut xds::Cluster) {
    let Some(list) = &mut proto.load_balancing_policy else { return };
    list.policies.retain(|policy| {
        let config = policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref());
        config.is_some_and(|any| {
            any.type_url.starts_with(BALANCERS) && !any.type_url.ends_with(".wrr_locality.v3.WrrLocality")
        })
    });
}

fn longest_answer(proto: &RoutesProto) -> usize {
    let routes = proto.virtual_hosts.iter().flat_map(|host| &host.routes);
    let bodies = routes.filter_map(|route| match &route.action {
        Some(route::Action::DirectResponse(answer)) => answer.body.as_ref()?.specifier.as_ref(),
        _ => None,
    });
    let length = |body: &Specifier| match body {
        Specifier::InlineBytes(bytes) => bytes.len(),
        Specifier::InlineString(text) => text.len(),
        _ => 0,
    };
    bodies.map(length).max().unwrap_or_default()
}

fn encode_tls(policy: &UpstreamTls, secrets: Option<&str>, proto: &mut xds::Cluster) {
    match policy {
        UpstreamTls::Disable => {}
        UpstreamTls::Mesh(mesh) => proto.transport_socket = Some(socket(&mesh_context(mesh, secrets))),
        UpstreamTls::Roots(tls) => {
            proto.transport_socket = Some(socket(&roots_context(&tls.names, tls.sni.clone(), secrets)));
        }
        UpstreamTls::Auto(mesh) => {
            let istio = HashMap::from([("tlsMode".to_owned(), extension::string("istio"))]);
            proto.transport_socket_matches = vec![
                socket_match("tlsMode-istio", istio, socket(&mesh_context(mesh, secrets))),
                socket_match("tlsMode-disabled", HashMap::new(), plaintext()),
            ];
        }
        UpstreamTls::Simple(tls) => proto.transport_socket = Some(socket(&originated_context(tls, None))),
        UpstreamTls::Mutual(tls, certificate) => {
            proto.transport_socket = Some(socket(&originated_context(tls, Some(certificate))));
        }
    }
}

fn socket_match(name: &str, fields: HashMap<String, Value>, socket: TransportSocket) -> TransportSocketMatch {
    TransportSocketMatch { name: name.to_owned(), r#match: Some(Struct { fields }), transport_socket: Some(socket) }
}

fn plaintext() -> TransportSocket {
    let config = extension::pack(url::RAW_BUFFER, &RawBuffer {});
    TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

fn socket(context: &UpstreamTlsContext) -> TransportSocket {
    tls::socket(extension::pack(url::UPSTREAM_TLS, context))
}

/// A secret: in a file of its name, which Envoy watches, or else in the bootstrap.
fn secret(name: &str, directory: Option<&str>) -> SdsSecretConfig {
    let sds_config = directory.map(|directory| {
        let path = format!("{}/{name}.yaml", directory.trim_end_matches('/'));
        ConfigSource {
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::PathConfigSource(PathConfigSource {
                path,
                ..Default::default()
            })),
            ..Default::default()
        }
    });
    SdsSecretConfig { name: name.to_owned(), sds_config }
}

/// Validation by the roots of a secret and by what `context` says beside.
fn combined(context: CertificateValidationContext, roots: SdsSecretConfig) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(roots),
        ..Default::default()
    })
}

fn mesh_context(mesh: &MeshTls, secrets: Option<&str>) -> UpstreamTlsContext {
    let mut context = roots_context(&mesh.peer_ids, mesh.sni.clone(), secrets);
    if let Some(common) = &mut context.common_tls_context {
        common.tls_certificate_sds_secret_configs = vec![secret(IDENTITY, secrets)];
    }
    context
}

/// Peers with these names, by the mesh's roots.
fn roots_context(names: &[StringMatcher], sni: Option<String>, secrets: Option<&str>) -> UpstreamTlsContext {
    let peers = names.iter().map(|id| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(matcher::string(id)),
        ..Default::default()
    });
    let validation =
        CertificateValidationContext { match_typed_subject_alt_names: peers.collect(), ..Default::default() };
    UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: newest(),
            validation_context_type: Some(combined(validation, secret(ROOTS, secrets))),
            ..Default::default()
        }),
        sni: sni.unwrap_or_default(),
        ..Default::default()
    }
}

fn originated_context(tls: &OriginatedTls, certificate: Option<&ClientCertificate>) -> UpstreamTlsContext {
    let mut context = tls::originated_context(tls, certificate);
    let Some(common) = &mut context.common_tls_context else { return context };
    common.tls_params = newest();
    // A context without roots verifies nobody in Envoy, whatever else it says.
    if tls.ca_file.is_none()
        && !tls.insecure_skip_verify
        && let Some(ValidationContextType::ValidationContext(mut validation)) = common.validation_context_type.take()
    {
        validation.system_root_certs = None;
        common.validation_context_type = Some(combined(validation, secret(SYSTEM_ROOTS, None)));
    }
    context
}

/// TLS 1.2 or newer; Envoy's own clients stop at 1.2.
fn newest() -> Option<TlsParameters> {
    Some(TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..Default::default()
    })
}
