//! The stock gRPC as a member of the mesh: mutual TLS from its client to our server and from our client to its
//! server. Its bootstrap is the one in the manual.

use std::path::Path;

use serde_json::Value;

use crate::caller::{Caller, Direct, Member};
use crate::client::StockClient;
use crate::envoy::of_manual;
use crate::manifests::{STRICT, announced, in_mesh, rule};
use crate::member::{self, Server};
use crate::server::{StockServer, free_address};
use crate::world::{World, eventually};

/// The manual's bootstrap for a service account.
pub(crate) async fn bootstrap(world: &World, account: &str) -> Value {
    let certificates = world.certificate(account).await;
    in_place(world, account, &certificates)
}

fn in_place(world: &World, node: &str, certificates: &Path) -> Value {
    let text = of_manual("json")
        .replace("127.0.0.1:15012", &world.address().to_string())
        .replace("/etc/mesh/certs", &certificates.display().to_string())
        .replace("edge-1", node);
    serde_json::from_str(&text).unwrap()
}

/// Mutual TLS for clients that do not find out by themselves.
pub(crate) const MUTUAL: &str = "trafficPolicy: { tls: { mode: ISTIO_MUTUAL } }";

#[tokio::test]
async fn a_stock_client_speaks_mutual_tls_to_our_strict_server() {
    let world = World::start(&[("strict.yaml", STRICT.to_owned()), ("reviews.yaml", announced("reviews"))]).await;
    let _server = Server::start(&world, "reviews", "app=reviews", "ours").await;
    let bootstrap = bootstrap(&world, "edge").await;
    let mut client = StockClient::secure("xds:///reviews.default:9080", &bootstrap);
    client.becomes(20, &[], "ours spiffe://cluster.local/ns/default/sa/edge").await;

    // The control: the same client without the security that xDS gives it.
    let mut plaintext = StockClient::start("xds:///reviews.default:9080", &bootstrap);
    let refused = Caller::call(&mut plaintext, &[]).await.unwrap_err();
    assert!(refused.starts_with("UNAVAILABLE") || refused.starts_with("PERMISSION_DENIED"), "{refused}");

    // Where a server takes both it has to be told, and then it does the same.
    world.apply("strict.yaml", &STRICT.replace("STRICT", "PERMISSIVE"));
    client.becomes(5, &[], "ours").await;
    world.apply("rule.yaml", &rule("reviews", MUTUAL));
    client.becomes(5, &[], "ours spiffe://cluster.local/ns/default/sa/edge").await;
    world.assert_nothing_refused("edge", 4).await;
}

#[tokio::test]
async fn our_client_speaks_mutual_tls_to_a_stock_server_whose_mode_is_the_manifests() {
    let address = free_address();
    let world = World::start(&[
        ("mode.yaml", STRICT.to_owned()),
        ("stock.yaml", in_mesh("stock.example.com", "stock", address)),
    ])
    .await;
    let server = StockServer::start("stock", address, &bootstrap(&world, "stock").await).await;
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    let mut caller = Member { mesh, origin: "http://stock.example.com:9080" };
    caller.becomes(20, &[], "stock spiffe://cluster.local/ns/default/sa/productpage").await;
    // The control: without a certificate nobody gets in.
    assert!(Direct::open(server.address, "stock.example.com").await.call(&[]).await.is_err());

    world.apply("mode.yaml", &STRICT.replace("STRICT", "DISABLE"));
    eventually("plaintext is served", async || {
        let answer = Direct::open(server.address, "stock.example.com").await.call(&[]).await;
        (answer.as_deref() == Ok("stock")).then_some(())
    })
    .await;
    world.assert_nothing_refused("stock", 1).await;
}
