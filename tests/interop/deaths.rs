//! The control plane dies while something changes that peers have to take over without it, or as soon as it is back: the mode
//! of a stock server, an Envoy's certificate, the listeners that an Envoy is sent. No request is lost.

use crate::backend::Backend;
use crate::caller::{Caller, Direct, Member};
use crate::envoy::{Envoy, Form};
use crate::grpc_mtls::bootstrap;
use crate::manifests::{STRICT, announced, in_mesh};
use crate::member::{self, Server};
use crate::outage::{random, started};
use crate::server::{StockServer, free_address};
use crate::world::{World, eventually};

/// How often the control plane dies.
const DEATHS: usize = 4;

/// A stock server takes mutual TLS or plaintext, and never both: while its mode changes, its callers and it may think
/// differently. What they then cannot send it goes to the other endpoint.
#[tokio::test]
async fn a_stock_server_whose_mode_changes_while_the_control_plane_dies_costs_no_request() {
    let (mut random, stock) = (random(), free_address());
    let mut world = World::start(&[("mode.yaml", mode("STRICT")), ("ours.yaml", announced("ours"))]).await;
    let ours = Server::start(&world, "ours", "app=ours", "ours").await;
    let mut told = bootstrap(&world, "stock").await;
    told["node"]["metadata"]["LABELS"] = serde_json::json!({ "app": "stock" });
    let server = StockServer::start("stock", stock, &told).await;
    let both = in_mesh("both.example.com", "stock", stock).replace("labels: {", "labels: { app: stock,");
    let (ip, port) = (ours.address.ip(), ours.address.port());
    let other = format!(
        "\x20   - address: {ip}\n\
         \x20     ports: {{ grpc: {port} }}\n\
         \x20     labels: {{ security.istio.io/tlsMode: istio }}\n\
         \x20     serviceAccount: ours\n"
    );
    world.apply("both.yaml", &(both + &other));
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    let member = || Member { mesh: mesh.clone(), origin: "http://both.example.com:9080" };
    let (ours, mut caller) = (started("us to both", member()).await, member());
    let by_name = "stock spiffe://cluster.local/ns/default/sa/productpage";

    for death in 1..=DEATHS {
        let (name, answer) = if death % 2 == 0 { ("STRICT", by_name) } else { ("DISABLE", "stock") };
        // It dies at some point of the push, or hears of it when it is back.
        let before = random.bool();
        if before {
            world.apply("mode.yaml", &mode(name));
            ours.more(random.usize(0..40)).await;
        }
        world.kill().await;
        ours.more(random.usize(5..40)).await;
        if !before {
            world.apply("mode.yaml", &mode(name));
        }
        world.resume().await;
        eventually("the server is called in its new mode", async || {
            let report = caller.calls(10, &[]).await;
            assert!(report.errors.is_empty(), "{report:#?}");
            report.answers.contains_key(answer).then_some(())
        })
        .await;
    }
    // The control: the last mode holds, and lets nobody in without a certificate.
    assert!(Direct::open(server.address, "both.example.com").await.call(&[]).await.is_err());
    ours.all_well().await;
}

fn mode(mode: &str) -> String {
    STRICT
        .replace("STRICT", mode)
        .replace("name: default", "name: stock")
        .replace("spec: {", "spec: { selector: { matchLabels: { app: stock } },")
}

#[tokio::test]
async fn a_certificate_renewed_while_the_control_plane_is_dead_costs_no_request_of_an_envoy() {
    let mut random = random();
    let mut world = World::start(&[("strict.yaml", STRICT.to_owned()), ("reviews.yaml", announced("reviews"))]).await;
    let mut server = Server::begin(&world, "reviews", "version=v1", "v1").await;
    let mut gone = Vec::new();
    let application = Backend::start("application").await;
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    for form in [Form::StateOfTheWorld, Form::Delta] {
        let envoy = Envoy::start(&world, form, application.address, |config| config).await;
        world.apply("application.yaml", &in_mesh("application.example.com", "edge", envoy.listener("inbound").await));
        let out = started("Envoy to us", Direct::open(envoy.listener("outbound").await, "reviews").await).await;
        let caller = Member { mesh: mesh.clone(), origin: "http://application.example.com:9080" };
        let into = started("us to Envoy", caller).await;
        for _ in 0..2 {
            world.kill().await;
            out.more(random.usize(0..40)).await;
            let before = envoy.own_certificate().await;
            world.certificate("edge").await;
            let renewed = async || (envoy.own_certificate().await != before).then_some(());
            eventually("the new certificate is in use", renewed).await;
            out.more(random.usize(5..40)).await;
            into.more(5).await;
            world.resume().await;
            // Who comes and goes has the Envoy open connections, with the new one.
            let next = Server::begin(&world, "reviews", "version=v1", "v1").await;
            let known = async || envoy.admin("/clusters").await.contains(&next.address.to_string()).then_some(());
            eventually("the new endpoint is known", known).await;
            // It may have to wait until it is connected again to say so, and serves on.
            server.withdraw();
            server.unregistered(&world).await;
            gone.push(std::mem::replace(&mut server, next));
            out.more(20).await;
            into.more(20).await;
        }
        let mut caller = out.all_well().await;
        caller.becomes(5, &[], "v1 spiffe://cluster.local/ns/default/sa/edge").await;
        into.all_well().await;
        envoy.assert_nothing_refused().await;
    }
}

#[tokio::test]
async fn a_caller_of_listeners_that_an_envoy_is_sent_loses_no_request_when_the_control_plane_dies() {
    for form in [Form::StateOfTheWorld, Form::Delta] {
        let mut random = random();
        let mut world =
            World::start(&[("strict.yaml", STRICT.to_owned()), ("reviews.yaml", announced("reviews"))]).await;
        let server = Server::start(&world, "reviews", "version=v1", "v1").await;
        let (port, other) = (free_address().port(), free_address().port());
        let at = |host: &str, port: u16| {
            in_mesh(host, "reviews", server.address).replace("number: 9080", &format!("number: {port}"))
        };
        world.apply("one.yaml", &at("one.example.com", port));
        let application = Backend::start("application").await;
        let envoy = Envoy::start(&world, form, application.address, |config| {
            config.replace("metadata: {", "metadata: { OUTBOUND_LISTEN: 127.0.0.1,")
        })
        .await;
        let listener = envoy.listener(&format!("127.0.0.1:{port}")).await;
        let load = started("through a listener that was sent", Direct::open(listener, "one.example.com").await).await;
        for death in 1..=DEATHS {
            // Another listener comes, or goes, before it dies or while it is dead.
            let is_there = death % 2 == 1;
            let text = if is_there { at("other.example.com", other) } else { "# nothing\n".to_owned() };
            let before = random.bool();
            if before {
                world.apply("other.yaml", &text);
                load.more(random.usize(0..40)).await;
            }
            world.kill().await;
            load.more(random.usize(5..40)).await;
            if !before {
                world.apply("other.yaml", &text);
            }
            world.resume().await;
            let name = format!("127.0.0.1:{other}");
            if is_there {
                let caller = Direct::open(envoy.listener(&name).await, "other.example.com").await;
                started("through the other listener", caller).await.all_well().await;
            }
            load.more(20).await;
        }
        let mut caller = load.all_well().await;
        caller.becomes(5, &[], "v1 spiffe://cluster.local/ns/default/sa/edge").await;
        envoy.assert_nothing_refused().await;
    }
}
