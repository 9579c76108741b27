//! Processes of several identities: which one a connection shows, and whom it trusts, policy says by the name of a
//! certificate provider instance of the bootstrap (gRFC A29).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use mesh::{Mesh, PeerIdentity};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Address, Cluster, Endpoint, Endpoints, InboundListener, InboundTls, Instances, LocalityEndpoints, MeshTls,
    RootsTls, StringMatcher, UpstreamTls,
};
use mesh_discovery::codec;
use mesh_testkit::TestCa;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::puppet::{Puppet, Said};
use crate::reports::said;
use crate::support::{FREE, becomes, call, eventually, plain_get};

const URI: &str = "http://reviews:9080/";

/// A certificate of `account`, its key and the roots, as files, and the provider that reads them.
struct Identity(TempDir);

impl Identity {
    fn new(authority: &TestCa, account: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (chain, key) = authority.pem("default", account);
        for (name, pem) in [("chain.pem", chain.as_str()), ("key.pem", &key), ("roots.pem", authority.root_pem())] {
            std::fs::write(files.path().join(name), pem).unwrap();
        }
        Self(files)
    }

    /// Without one or the other part, if only one is wanted.
    fn provider(&self, part: Option<Part>) -> Value {
        let file = |name: &str| self.0.path().join(name);
        let mut config = json!({
            "certificate_file": file("chain.pem"),
            "private_key_file": file("key.pem"),
            "ca_certificate_file": file("roots.pem"),
        });
        let files = config.as_object_mut().unwrap();
        files.retain(|name, _| part.is_none_or(|part| (part == Part::Roots) == name.starts_with("ca_")));
        json!({"plugin_name": "file_watcher", "config": config})
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Certificate,
    Roots,
}

/// A process with these identities.
async fn process(plane: SocketAddr, identities: &[(&str, &Identity)]) -> Mesh {
    let whole: Vec<_> = identities.iter().map(|&(name, of)| (name, of, None)).collect();
    process_of(plane, &whole).await
}

/// The same with parts of identities.
async fn process_of(plane: SocketAddr, parts: &[(&str, &Identity, Option<Part>)]) -> Mesh {
    let providers: Map<_, _> = parts.iter().map(|(name, of, part)| ((*name).to_owned(), of.provider(*part))).collect();
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane, "channel_creds": [{"type": "insecure"}]}],
        "certificate_providers": providers,
        "node": {"id": "me"},
    });
    Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE).build().await.unwrap()
}

/// Everything about [`URI`], served at `port`: callers are `calling`, expect the server `peer`, and it is `serving`.
fn instances(version: &'static str, port: u16, calling: Option<&str>, peer: &str, serving: Option<&str>) -> Said {
    let [calling, serving] = [calling, serving].map(|name| Instances::one(name.map(Arc::from)));
    let tls = MeshTls { peer_ids: vec![StringMatcher::exact(peer)], instances: calling, sni: None };
    served(version, port, UpstreamTls::Mesh(tls), serving)
}

/// The same with any TLS of callers.
fn served(version: &'static str, port: u16, tls: UpstreamTls, instances: Instances) -> Said {
    let cluster = Cluster { tls, ..Cluster::new("c".into()) };
    let mut said = said(version, codec::encode_cluster(&cluster));
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![Endpoint::new(Address::Socket(address))],
    };
    let endpoints = Endpoints { cluster: "c".to_owned(), localities: vec![group], ..Endpoints::default() };
    said.resources.insert(codec::ENDPOINTS, vec![codec::encode_endpoints(&endpoints)]);
    let name = format!("xds.istio.io/grpc/lds/inbound/{address}");
    let inbound = InboundListener { instances, ..InboundListener::new(name, address, InboundTls::Strict) };
    said.resources.get_mut(codec::LISTENER).unwrap().push(codec::encode_inbound(&inbound));
    said
}

fn whoami() -> Router {
    let name = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("nobody".to_owned(), |id| id.to_string()) };
    Router::new().fallback(get(name))
}

#[tokio::test]
async fn b10_policy_chooses_by_its_instance_who_caller_and_server_are_a29() {
    let (home, partner) = (TestCa::new(), TestCa::in_domain("partner.test"));
    let at_home = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    let outside = |account: &str| format!("spiffe://partner.test/ns/default/sa/{account}");
    let [caller_home, caller_outside] = [&home, &partner].map(|authority| Identity::new(authority, "caller"));
    let [server_home, server_outside] = [&home, &partner].map(|authority| Identity::new(authority, "server"));

    let listener = TcpListener::bind(FREE).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (outer, its_server) = (Some("outer"), outside("server"));
    let (address, plane) = Puppet::start(instances("1", port, outer, &its_server, outer)).await;
    let server = process(address, &[("default", &server_home), ("outer", &server_outside)]).await;
    let serving = tokio::spawn(server.serve(listener, whoami()).without_signals().into_future());
    let caller = process(address, &[("default", &caller_home), ("outer", &caller_outside)]).await;
    caller.ready().await;
    becomes(&caller, URI, &[], &outside("caller")).await;

    // The control: two instances that do not trust each other do not meet, on whichever side they are.
    for (version, calling, peer, serving) in
        [("2", outer, at_home("server"), None), ("3", None, its_server.clone(), outer)]
    {
        plane.send_replace(instances(version, port, calling, &peer, serving));
        eventually("strangers are refused", || async {
            let error = call(&caller, URI, &[]).await.err()?.to_string();
            error.contains("has no bundle").then_some(())
        })
        .await;
    }

    plane.send_replace(instances("4", port, None, &at_home("server"), None));
    becomes(&caller, URI, &[], &at_home("caller")).await;

    // An instance that there is not is refused by name, and what was good stays.
    plane.send_replace(instances("5", port, Some("nobody's"), &at_home("server"), None));
    let debug = caller.debug_address().unwrap();
    eventually("the refusal is told", || async {
        let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
        (dump.contains("nobody's") && dump.contains("declares default, outer")).then_some(())
    })
    .await;
    assert_eq!(call(&caller, URI, &[]).await.unwrap().1, at_home("caller"));
    serving.abort();
}

#[tokio::test]
async fn b10_certificate_and_roots_come_from_two_instances_or_roots_from_one_alone_a29() {
    let (home, partner) = (TestCa::new(), TestCa::in_domain("partner.test"));
    let [ours, theirs] = [&home, &partner].map(|authority| Identity::new(authority, "caller"));
    let server = Identity::new(&partner, "server");
    // As their domain's own, for a CA file without a domain vouches for the server's names only.
    let guests = Identity::new(&partner, "server");
    // The DER of the root in base64, as its PEM has it.
    let anchor: String = home.root_pem().lines().filter(|line| !line.starts_with("-----")).collect();
    let map = json!({"trust_domains": {"cluster.local": {"spiffe_sequence": 1, "keys": [
        {"kty": "EC", "use": "x509-svid", "x5c": [anchor]}
    ]}}});
    std::fs::write(guests.0.path().join("map.json"), map.to_string()).unwrap();

    let listener = TcpListener::bind(FREE).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let two =
        |certificate: &str, roots: &str| Instances { certificate: Some(certificate.into()), roots: Some(roots.into()) };
    let meshed = |instances| {
        let peer_ids = vec![StringMatcher::exact("spiffe://partner.test/ns/default/sa/server")];
        UpstreamTls::Mesh(MeshTls { peer_ids, instances, sni: None })
    };
    let serving = || Instances { certificate: None, roots: Some("guests".into()) };
    let (address, plane) = Puppet::start(served("1", port, meshed(two("shown", "ca")), serving())).await;
    let bootstrap = json!({
        "xds_servers": [{"server_uri": address, "channel_creds": [{"type": "insecure"}]}],
        "certificate_providers": {
            "default": server.provider(None),
            "guests": {"plugin_name": "file_watcher", "config": {
                "spiffe_trust_bundle_map_file": guests.0.path().join("map.json"),
            }},
        },
        "node": {"id": "server"},
    });
    let server = Mesh::builder().bootstrap(bootstrap.to_string()).build().await.unwrap();
    let serving_task = tokio::spawn(server.serve(listener, whoami()).without_signals().into_future());
    let parts = [("shown", &ours, Some(Part::Certificate)), ("ca", &theirs, Some(Part::Roots))];
    let caller = process_of(address, &parts).await;
    caller.ready().await;
    becomes(&caller, URI, &[], "spiffe://cluster.local/ns/default/sa/caller").await;

    // The control: whose roots do not vouch for the caller, the server does not let it in.
    plane.send_replace(served("2", port, meshed(two("shown", "ca")), Instances::default()));
    eventually("a stranger is refused", || async { call(&caller, URI, &[]).await.err() }).await;

    // By roots alone nothing is shown, so a server that demands a certificate takes nobody.
    let tls = RootsTls { instance: Some("ca".into()), ..RootsTls::default() };
    plane.send_replace(served("3", port, UpstreamTls::Roots(tls), serving()));
    eventually("nobody is refused", || async {
        let error = call(&caller, URI, &[]).await.err()?.to_string();
        error.to_lowercase().contains("certificate").then_some(())
    })
    .await;
    plane.send_replace(served("4", port, meshed(two("shown", "ca")), serving()));
    becomes(&caller, URI, &[], "spiffe://cluster.local/ns/default/sa/caller").await;

    // What an instance has not, it is not asked for, and what was good stays.
    plane.send_replace(served("5", port, meshed(two("ca", "shown")), serving()));
    let debug = caller.debug_address().unwrap();
    eventually("the refusal is told", || async {
        let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
        dump.contains("has no certificate").then_some(())
    })
    .await;
    assert_eq!(call(&caller, URI, &[]).await.unwrap().1, "spiffe://cluster.local/ns/default/sa/caller");
    serving_task.abort();
}

#[tokio::test]
async fn an_instance_whose_files_are_bad_holds_up_nobody_and_lends_no_other_identity() {
    let home = TestCa::new();
    let (good, bad) = (Identity::new(&home, "caller"), Identity::new(&home, "caller"));
    std::fs::remove_file(bad.0.path().join("key.pem")).unwrap();
    let server = Identity::new(&home, "server");
    let listener = TcpListener::bind(FREE).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let its_id = "spiffe://cluster.local/ns/default/sa/server";
    let (address, plane) = Puppet::start(instances("1", port, Some("outer"), its_id, None)).await;
    let server = process(address, &[("default", &server)]).await;
    let serving = tokio::spawn(server.serve(listener, whoami()).without_signals().into_future());
    let caller = process(address, &[("default", &good), ("outer", &bad)]).await;
    caller.ready().await;
    let error = call(&caller, URI, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::NO_IDENTITY, "{error}");

    // The control: the same call as the process itself.
    plane.send_replace(instances("2", port, None, its_id, None));
    becomes(&caller, URI, &[], "spiffe://cluster.local/ns/default/sa/caller").await;
    serving.abort();
}
