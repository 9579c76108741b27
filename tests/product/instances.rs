//! Processes of several identities: which one a connection shows, and whom it trusts, policy says by the name of a
//! certificate provider instance of the bootstrap (gRFC A29).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use mesh::{Mesh, PeerIdentity};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Address, Cluster, Endpoint, Endpoints, InboundListener, InboundTls, LocalityEndpoints, MeshTls, StringMatcher,
    UpstreamTls,
};
use mesh_discovery::codec;
use mesh_testkit::TestCa;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::reports::{Puppet, Said, said};
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

    fn provider(&self) -> Value {
        let file = |name: &str| self.0.path().join(name);
        json!({"plugin_name": "file_watcher", "config": {
            "certificate_file": file("chain.pem"),
            "private_key_file": file("key.pem"),
            "ca_certificate_file": file("roots.pem"),
        }})
    }
}

/// A process with these identities.
async fn process(plane: SocketAddr, identities: &[(&str, &Identity)]) -> Mesh {
    let providers: Map<_, _> = identities.iter().map(|(name, of)| ((*name).to_owned(), of.provider())).collect();
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane, "channel_creds": [{"type": "insecure"}]}],
        "certificate_providers": providers,
        "node": {"id": "me"},
    });
    Mesh::builder().bootstrap(bootstrap.to_string()).debug_address(FREE).build().await.unwrap()
}

/// Everything about [`URI`], served at `port`: callers are `calling`, expect the server `peer`, and it is `serving`.
fn instances(version: &'static str, port: u16, calling: Option<&str>, peer: &str, serving: Option<&str>) -> Said {
    let tls = MeshTls { peer_ids: vec![StringMatcher::exact(peer)], sni: None, instance: calling.map(Arc::from) };
    let cluster = Cluster { tls: UpstreamTls::Mesh(tls), ..Cluster::new("c".into()) };
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
    let inbound =
        InboundListener { instance: serving.map(Arc::from), ..InboundListener::new(name, address, InboundTls::Strict) };
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
