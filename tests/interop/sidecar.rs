//! The stock Envoy with the TLS contexts that Istio gives its sidecars: names, protocols, ciphers and the check of
//! SPIFFE IDs are Istio's, certificates come from our authority.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::caller::{Caller, Direct, Member, Report};
use crate::envoy::{Envoy, Form};
use crate::manifests::{STRICT, announced, in_mesh};
use crate::member::{self, Server};
use crate::server::free_address;
use crate::world::{World, page};

/// What the filter `istio.alpn` offers for requests over HTTP/2, over HTTP/1.1, and what a cluster offers without it.
const ISTIO_H2: &[&str] = &["istio-h2", "istio", "h2"];
const ISTIO_HTTP1: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];
const ISTIO_PEER: &[&str] = &["istio-peer-exchange", "istio"];
/// What an application offers that speaks TLS by itself.
const FOREIGN: &[&str] = &["h2"];

#[tokio::test]
async fn mutual_tls_holds_both_ways_with_an_envoy_configured_like_an_istio_sidecar() {
    let world = World::start(&[("strict.yaml", STRICT.to_owned()), ("reviews.yaml", announced("reviews"))]).await;
    let reviews = Server::start(&world, "reviews", "version=v1", "v1").await;
    let application = Backend::start("application").await;
    let certificates = world.certificate("edge").await;
    let sidecar = free_address();
    let config = configuration(&certificates, reviews.address, sidecar, application.address);
    let envoy = Envoy::start(&world, Form::Delta, application.address, |_| config.to_string()).await;

    // Its clients to our strict server, which sees who called.
    let expected = "v1 spiffe://cluster.local/ns/default/sa/edge";
    for way in ["reviews-h2", "reviews-peer"] {
        let mut caller = Direct::open(envoy.listener(way).await, "reviews:9080").await;
        assert_eq!(caller.calls(20, &[]).await, Report::all(20, expected), "{way}");
    }
    assert!(page(envoy.listener("reviews-http1").await, "/").await.contains(expected));
    // The control: another name than ours is not let pass.
    let mut impostor = Direct::open(envoy.listener("reviews-other-name").await, "reviews:9080").await;
    assert!(impostor.call(&[]).await.is_err());

    // Our client to its permissive inbound side, which knows the mesh by the protocols offered.
    world.apply("application.yaml", &in_mesh("application.example.com", "edge", sidecar));
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    let mut caller = Member { mesh, origin: "http://application.example.com:9080" };
    caller.becomes(20, &[], "application spiffe://cluster.local/ns/default/sa/productpage").await;
    // The controls: the same from a sidecar; and TLS that does not say it is the mesh's goes to the application as bytes.
    let mut other = Direct::open(envoy.listener("sidecar-h2").await, "application").await;
    assert_eq!(other.calls(5, &[]).await, Report::all(5, "application spiffe://cluster.local/ns/default/sa/edge"));
    let mut foreign = Direct::open(envoy.listener("sidecar-foreign").await, "application").await;
    assert!(foreign.call(&[]).await.is_err());
}

fn configuration(certificates: &Path, reviews: SocketAddr, sidecar: SocketAddr, application: SocketAddr) -> Value {
    let certificates = certificates.display().to_string();
    let reviews_by = |name, alpn, version, account| outbound(name, reviews, alpn, version, account, &certificates);
    let sidecar_by = |name, alpn| outbound(name, sidecar, alpn, "http2_protocol_options", "edge", &certificates);
    let (h2, http1) = ("http2_protocol_options", "http_protocol_options");
    let ways = [
        reviews_by("reviews-h2", ISTIO_H2, h2, "reviews"),
        reviews_by("reviews-http1", ISTIO_HTTP1, http1, "reviews"),
        reviews_by("reviews-peer", ISTIO_PEER, h2, "reviews"),
        reviews_by("reviews-other-name", ISTIO_H2, h2, "ratings"),
        sidecar_by("sidecar-h2", ISTIO_H2),
        sidecar_by("sidecar-foreign", FOREIGN),
    ];
    let (mut listeners, mut clusters): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    listeners.push(inbound(sidecar, &certificates));
    clusters.push(cluster("application", application, json!({ "http2_protocol_options": {} })));
    json!({
        "node": { "id": "sidecar", "cluster": "edge" },
        "admin": { "address": socket(([127, 0, 0, 1], 0).into()) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

/// A plaintext listener and the cluster behind it, with mutual TLS as Istio's `ISTIO_MUTUAL` has it.
fn outbound(
    name: &str,
    to: SocketAddr,
    alpn: &[&str],
    version: &str,
    account: &str,
    certificates: &str,
) -> (Value, Value) {
    let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": format!("outbound_.9080_._.{account}.default.svc.cluster.local"),
        "common_tls_context": common(alpn, certificates, &json!({ "exact": id }), &json!({
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
        })),
    });
    let mut cluster = cluster(name, to, json!({ version: {} }));
    // Istio chooses the way by what the endpoint says of itself.
    cluster["transport_socket_matches"] = json!([
        { "name": "tlsMode-istio", "match": { "tlsMode": "istio" }, "transport_socket": tls(&context) },
        { "name": "tlsMode-disabled", "match": {}, "transport_socket": {
            "name": "envoy.transport_sockets.raw_buffer",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" },
        } },
    ]);
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["metadata"] =
        json!({ "filter_metadata": { "envoy.transport_socket_match": { "tlsMode": "istio" } } });
    let listener = json!({
        "name": name,
        "address": socket(([127, 0, 0, 1], 0).into()),
        "filter_chains": [{ "filters": [http(name)] }],
    });
    (listener, cluster)
}

/// The inbound side of a workload in mode `PERMISSIVE`: mutual TLS for the protocols that only proxies of the mesh offer,
/// everything else as it comes.
fn inbound(address: SocketAddr, certificates: &str) -> Value {
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": common(&["h2", "http/1.1"], certificates, &json!({ "prefix": "spiffe://cluster.local/" }), &json!({
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
            "cipher_suites": [
                "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256",
                "ECDHE-RSA-AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-GCM-SHA256",
            ],
        })),
    });
    json!({
        "name": "virtualInbound",
        "address": socket(address),
        "listener_filters": [{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" },
        }],
        "filter_chains": [
            {
                "filter_chain_match": {
                    "transport_protocol": "tls",
                    "application_protocols": ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"],
                },
                "transport_socket": tls(&context),
                "filters": [http("application")],
            },
            { "filter_chain_match": { "transport_protocol": "tls" }, "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "passthrough",
                    "cluster": "application",
                },
            }] },
            { "filter_chain_match": { "transport_protocol": "raw_buffer" }, "filters": [http("application")] },
        ],
    })
}

fn common(alpn: &[&str], certificates: &str, name: &Value, parameters: &Value) -> Value {
    let secret = |name: &str| json!({ "name": name, "sds_config": { "path_config_source": { "path": format!("{certificates}/{name}.yaml") } } });
    json!({
        "alpn_protocols": alpn,
        "tls_params": parameters,
        "tls_certificate_sds_secret_configs": [secret("default")],
        "combined_validation_context": {
            "default_validation_context": { "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": name }] },
            "validation_context_sds_secret_config": secret("ROOTCA"),
        },
    })
}

fn tls(context: &Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn cluster(name: &str, to: SocketAddr, version: Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": version,
        } },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(to) } }] }],
        },
    })
}

fn http(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster,
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": { "uri": true },
            "route_config": { "virtual_hosts": [{
                "name": cluster,
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } }],
            }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
