//! Processes that join through gRPC's bootstrap, as a proxyless node of istiod does: identity and roots out
//! of files that somebody else renews, destinations of other authorities.

use std::path::Path;

use axum::Router;
use axum::routing::get;
use mesh::parts::mesh_core::error::{Code, Fault};
use mesh::{Mesh, PeerIdentity};
use mesh_testkit::{EchoServer, TestCa};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{FREE, Plane, Running, becomes, call, eventually, plain_get};

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default }
spec: { mtls: { mode: STRICT } }
";

/// The bootstrap of a node of `plane` with further members.
fn bootstrap(plane: &Plane, members: &Value) -> String {
    let mut bootstrap = json!({
        "xds_servers": [{
            "server_uri": plane.address(),
            "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": plane.root_cert_path()}}],
            "server_features": ["xds_v3"],
        }],
    });
    bootstrap.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    bootstrap.to_string()
}

/// What an agent keeps in a directory, and the certificate provider that reads it.
fn provider(directory: &Path, roots: &Path) -> Value {
    json!({"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
        "certificate_file": directory.join("chain.pem"),
        "private_key_file": directory.join("key.pem"),
        "ca_certificate_file": roots,
        "refresh_interval": "0.05s",
    }}}})
}

/// The authority of `plane`, in the hands of an agent that serves its processes with files.
fn authority(plane: &Plane) -> TestCa {
    TestCa::of_pem("cluster.local", &plane.state("root-cert.pem"), &plane.state("ca-key.pem"))
}

/// Writes a certificate for `account`, as that agent would.
fn renew(authority: &TestCa, directory: &Path, account: &str) {
    let (chain, key) = authority.pem("default", account);
    std::fs::write(directory.join("chain.pem"), chain).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
}

/// Answers with the name of the caller.
fn whoami() -> Router {
    let name = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("nobody".to_owned(), |id| id.to_string()) };
    Router::new().fallback(get(name))
}

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

#[tokio::test]
async fn s12_a_process_has_the_identity_that_its_files_say_and_follows_their_renewal() {
    // No manifest: one that is read later makes another cluster, with connections of its own.
    let plane = Plane::start().await;
    let _reviews = plane.serve("reviews", "", whoami()).await;
    let _details = plane.serve("details", "", whoami()).await;
    let files = tempfile::tempdir().unwrap();
    renew(&authority(&plane), files.path(), "productpage");
    let providers = provider(files.path(), plane.root_cert_path());
    let caller = Mesh::builder().bootstrap(bootstrap(&plane, &providers)).build().await.unwrap();
    caller.ready().await;
    becomes(&caller, "http://reviews:9080/", &[], &id("productpage")).await;

    renew(&authority(&plane), files.path(), "frontend");
    eventually("the new certificate is taken up", || async {
        format!("{caller:?}").contains(&id("frontend")).then_some(())
    })
    .await;
    becomes(&caller, "http://details:9080/", &[], &id("frontend")).await;
    assert_eq!(call(&caller, "http://reviews:9080/", &[]).await.unwrap().1, id("productpage"), "open connections stay");

    // The control: the same bootstrap without the files.
    let nobody = Mesh::builder().bootstrap(bootstrap(&plane, &json!({}))).build().await.unwrap();
    call(&nobody, "http://reviews:9080/", &[]).await.unwrap_err();
}

#[tokio::test]
async fn s12_a_server_with_an_identity_from_files_is_registered_and_verified() {
    let plane = Plane::start().await;
    plane.write("mode.yaml", STRICT);
    let files = tempfile::tempdir().unwrap();
    renew(&authority(&plane), files.path(), "ratings");
    let providers = provider(files.path(), plane.root_cert_path());
    let builder = Mesh::builder().bootstrap(bootstrap(&plane, &providers)).service_account("ratings");
    let server = Running::serve(builder.labels("app=ratings").build().await.unwrap(), "ratings", whoami()).await;
    plane.registered(server.address).await;
    let caller = plane.caller("reviews").await;
    becomes(&caller, "http://ratings:9080/", &[], &id("reviews")).await;
}

#[tokio::test]
async fn a_process_with_a_snapshot_starts_while_the_control_plane_is_away() {
    let mut plane = Plane::start().await;
    let _reviews = plane.serve("reviews", "", whoami()).await;
    let files = tempfile::tempdir().unwrap();
    renew(&authority(&plane), files.path(), "productpage");
    let bootstrap = bootstrap(&plane, &provider(files.path(), plane.root_cert_path()));
    let start = async |kept: &str| {
        let builder = Mesh::builder().bootstrap(&bootstrap).snapshot(files.path().join(kept));
        builder.debug_address(FREE).build().await.unwrap()
    };
    let first = start("kept").await;
    becomes(&first, "http://reviews:9080/", &[], &id("productpage")).await;
    eventually("the snapshot is written", || async {
        let (_, dump) = plain_get(first.debug_address().unwrap(), "/config_dump").await.ok()?;
        let dump: Value = serde_json::from_str(&dump).unwrap();
        (dump["status"]["snapshot"]["writes"].as_u64() > Some(0)).then_some(())
    })
    .await;
    drop(first);
    plane.stop().await;

    let second = start("kept").await;
    becomes(&second, "http://reviews:9080/", &[], &id("productpage")).await;
    // The control: the same process without what the first one kept.
    let error = call(&start("nothing").await, "http://reviews:9080/", &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::CONTROL_PLANE_UNREACHABLE, "{error}");
}

/// A process of the port without TLS, whose identity is of `authority` and that trusts these domains.
async fn member(plane: &Plane, directory: &Path, authority: &TestCa, trusted: &[(&str, &TestCa)]) -> Mesh {
    renew(authority, directory, "member");
    let body = |pem: &str| pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let domain = |(name, ca): &(&str, &TestCa)| {
        let key = json!({"use": "x509-svid", "kty": "EC", "x5c": [body(ca.root_pem())]});
        ((*name).to_owned(), json!({"keys": [key]}))
    };
    let domains: serde_json::Map<_, _> = trusted.iter().map(domain).collect();
    std::fs::write(directory.join("map.json"), json!({"trust_domains": domains}).to_string()).unwrap();
    let mut members = provider(directory, &directory.join("of no interest"));
    members["certificate_providers"]["default"]["config"]["spiffe_trust_bundle_map_file"] =
        json!(directory.join("map.json"));
    members["xds_servers"] =
        json!([{"server_uri": plane.insecure_address().unwrap(), "channel_creds": [{"type": "insecure"}]}]);
    let mesh = Mesh::builder().bootstrap(bootstrap(plane, &members)).build().await.unwrap();
    mesh.ready().await;
    mesh
}

#[tokio::test]
async fn s6_processes_of_two_trust_domains_meet_by_their_bundle_maps() {
    let plane = Plane::with(|builder| builder.insecure_xds(Some(FREE))).await;
    plane.write("mode.yaml", STRICT);
    let (home, partner) = (authority(&plane), TestCa::in_domain("partner.test"));
    let both = [("cluster.local", &home), ("partner.test", &partner)];
    let files = [(); 3].map(|()| tempfile::tempdir().unwrap());

    let server = member(&plane, files[0].path(), &partner, &both).await;
    let listener = TcpListener::bind(FREE).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = server.serve(listener, whoami()).without_signals();
    let serving = tokio::spawn(serving.into_future());
    let entry = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: partner }}
spec:
  hosts: [partner.example]
  ports: [{{ number: 9080, name: http, protocol: HTTP }}]
  resolution: STATIC
  endpoints: [{{ address: 127.0.0.1, ports: {{ http: {port} }} }}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: partner }}
spec:
  host: partner.example
  trafficPolicy:
    tls: {{ mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://partner.test/ns/default/sa/member] }}
"
    );
    plane.write("partner.yaml", entry);
    let caller = member(&plane, files[1].path(), &home, &both).await;
    becomes(&caller, "http://partner.example:9080/", &[], &id("member")).await;

    // The control: the same process without the partner's roots.
    let alone = member(&plane, files[2].path(), &home, &both[..1]).await;
    let error = call(&alone, "http://partner.example:9080/", &[]).await.unwrap_err();
    let (error, peer) = (error.to_string(), "spiffe://partner.test/ns/default/sa/member");
    assert!(error.contains(peer) && error.contains("has no bundle"), "{error}");
    serving.abort();
}

#[tokio::test]
async fn b7_a_dialled_authority_is_asked_for_under_its_name_and_an_unknown_one_is_an_error() {
    let plane = Plane::with(|builder| builder.insecure_xds(Some(FREE))).await;
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane.insecure_address().unwrap(), "channel_creds": [{"type": "insecure"}]}],
        "authorities": {"east": {}, "west": {}},
    });
    let mesh = Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE).build().await.unwrap();
    assert_eq!(mesh.channel("xds:///reviews:9080").unwrap().target(), "reviews:9080");
    let error = mesh.channel("xds://north/reviews:9080").unwrap_err().to_string();
    assert!(error.contains("xds://north/reviews:9080") && error.contains("east, west"), "{error}");

    let channel = mesh.channel("xds://east/reviews:9080").unwrap();
    let request = tokio::spawn(async move {
        let mut channel = channel;
        let request = http::Request::post("/service/method").body(tonic::body::Body::empty()).unwrap();
        tower::Service::call(&mut channel, request).await
    });
    let debug = mesh.debug_address().unwrap();
    for (page, text) in [
        ("/config_dump", "xdstp://east/envoy.config.listener.v3.Listener/reviews:9080"),
        ("/clusters", "xds://east/reviews:9080"),
    ] {
        eventually(text, || async { plain_get(debug, page).await.unwrap().1.contains(text).then_some(()) }).await;
    }
    request.abort();
    let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
    assert!(!dump.contains("\"reviews:9080\""), "asked of nobody else: {dump}");

    // Without a control plane there are no authorities to tell apart.
    assert_eq!(Mesh::disabled().unwrap().channel("xds://any/reviews:9080").unwrap().target(), "reviews:9080");
}

#[tokio::test]
async fn a47_a_destination_of_an_authority_comes_whole_from_the_control_plane_of_that_authority() {
    let server = EchoServer::start("east").await;
    let port = server.address().port();
    let (here, east) =
        (Plane::with(|b| b.insecure_xds(Some(FREE))).await, Plane::with(|b| b.insecure_xds(Some(FREE))).await);
    let entry = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: reviews }}
spec:
  hosts: [reviews.example]
  ports: [{{ number: 9080, name: grpc, protocol: GRPC }}]
  resolution: STATIC
  endpoints: [{{ address: 127.0.0.1, ports: {{ grpc: {port} }} }}]
"
    );
    east.write("reviews.yaml", entry);
    let at = |plane: &Plane| json!([{"server_uri": plane.insecure_address().unwrap(), "channel_creds": [{"type": "insecure"}]}]);
    let template = "xdstp://east/envoy.config.listener.v3.Listener/%s";
    let bootstrap = json!({
        "xds_servers": at(&here),
        "authorities": {"east": {"xds_servers": at(&east), "client_listener_resource_name_template": template}},
    });
    let mesh = Mesh::builder().bootstrap(bootstrap.to_string()).build().await.unwrap();
    // A failure of the mesh's own is a gRPC status; the server here knows none.
    let served = async |target: &str| {
        let mut channel = mesh.channel(target).unwrap();
        let request = http::Request::post("/service/method").body(tonic::body::Body::empty()).unwrap();
        let response = tower::Service::call(&mut channel, request).await.unwrap();
        response.status() == 200 && !response.headers().contains_key("grpc-status")
    };
    eventually("the authority's control plane has read the manifest", || async {
        served("xds://east/reviews.example:9080").await.then_some(())
    })
    .await;
    assert_eq!(server.connections(), 1);
    // The control: under its plain name it is asked of the other one, which does not know it.
    assert!(!served("xds:///reviews.example:9080").await);
}
