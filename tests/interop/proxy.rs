//! The stock Envoy, in both forms of the protocol: as the proxy of clients and as the proxy of a server.

use crate::backend::Backend;
use crate::caller::{Caller, Direct, Load, Member, Report};
use crate::envoy::{Envoy, Form};
use crate::manifests::{STRICT, announced, in_mesh, routes, rule, service};
use crate::member::{self, Server};
use crate::server::free_address;
use crate::world::{World, eventually};

/// Listeners, routes, clusters, endpoints.
const TYPES: usize = 4;
const EDGE: &str = "spiffe://cluster.local/ns/default/sa/edge";

#[tokio::test]
async fn an_envoy_follows_the_manifests_in_state_of_the_world() {
    follows_the_manifests(Form::StateOfTheWorld).await;
}

#[tokio::test]
async fn an_envoy_follows_the_manifests_in_delta() {
    follows_the_manifests(Form::Delta).await;
}

/// Routes, split, endpoints and TLS, from a process that knows nothing of the mesh to ours.
async fn follows_the_manifests(form: Form) {
    let world = World::start(&[
        ("strict.yaml", STRICT.to_owned()),
        ("reviews.yaml", announced("reviews")),
        ("reviews-v1.yaml", announced("reviews-v1")),
        ("reviews-v2.yaml", announced("reviews-v2")),
        ("routes.yaml", routes(20)),
    ])
    .await;
    let application = Backend::start("application").await;
    let v1 = Server::start(&world, "reviews-v1", "version=v1", "v1").await;
    let _v2 = Server::start(&world, "reviews-v2", "version=v2", "v2").await;
    let envoy = Envoy::start(&world, form, application.address, |config| config).await;
    let mut caller = Direct::open(envoy.listener("outbound").await, "reviews:9080").await;
    let as_edge = |name: &str| format!("{name} {EDGE}");

    // Our strict servers see who called. The control: nobody gets in without a certificate.
    caller.becomes(1, &[("x-user", "jason")], &as_edge("v2")).await;
    assert!(Direct::open(v1.address, "reviews:9080").await.call(&[]).await.is_err());
    let report = caller.calls(500, &[]).await;
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(report.from("v1") + report.from("v2"), 500, "{report:?}");
    // Six standard deviations of 500 draws at one in five.
    assert!(report.from("v2").abs_diff(100) <= 54, "{report:?}");
    assert_eq!(caller.calls(20, &[("x-user", "jason")]).await, Report::all(20, &as_edge("v2")));

    let load = Load::begin("through the proxy", Direct::open(envoy.listener("outbound").await, "reviews").await);
    world.apply("routes.yaml", &routes(0));
    caller.becomes(20, &[], &as_edge("v1")).await;
    // A changed cluster keeps its endpoints; the change can be seen in its limits.
    let pool = "trafficPolicy: { connectionPool: { http: { http2MaxRequests: 7777 } } }";
    world.apply("rule.yaml", &rule("reviews-v1", pool));
    eventually("the cluster has changed", async || {
        envoy
            .admin("/clusters")
            .await
            .contains("reviews-v1.default.svc.cluster.local::default_priority::max_requests::7777")
            .then_some(())
    })
    .await;
    load.more(50).await;
    // The new endpoint takes over from the old one.
    let _v1b = Server::start(&world, "reviews-v1", "version=v1", "v1b").await;
    eventually("the new endpoint answers", async || (caller.calls(10, &[]).await.from("v1b ") > 0).then_some(())).await;
    v1.leave().await;
    // A new certificate is taken over in the middle of it.
    let before = envoy.own_certificate().await;
    world.certificate("edge").await;
    eventually("the new certificate is in use", async || (envoy.own_certificate().await != before).then_some(())).await;
    caller.becomes(20, &[], &as_edge("v1b")).await;
    load.all_well().await;

    answers_our_client(&world, &envoy).await;
    envoy.assert_nothing_refused().await;
    world.assert_nothing_refused(&envoy.node, TYPES).await;
}

/// From our process to one that knows nothing of the mesh.
async fn answers_our_client(world: &World, envoy: &Envoy) {
    let inbound = envoy.listener("inbound").await;
    world.apply("application.yaml", &in_mesh("application.example.com", "edge", inbound));
    let mesh = member::join(world, "productpage", "app=productpage").await;
    let mut caller = Member { mesh, origin: "http://application.example.com:9080" };
    caller.becomes(20, &[], "application spiffe://cluster.local/ns/default/sa/productpage").await;
    // The control: an account that is not the expected one, and no certificate at all.
    world.apply("application.yaml", &in_mesh("application.example.com", "somebody", inbound));
    eventually("the wrong account is refused", async || caller.call(&[]).await.is_err().then_some(())).await;
    assert!(Direct::open(inbound, "application.example.com").await.call(&[]).await.is_err());
}

#[tokio::test]
async fn an_envoy_refuses_nothing_of_a_rich_configuration_in_state_of_the_world() {
    refuses_nothing_of_a_rich_configuration(Form::StateOfTheWorld).await;
}

#[tokio::test]
async fn an_envoy_refuses_nothing_of_a_rich_configuration_in_delta() {
    refuses_nothing_of_a_rich_configuration(Form::Delta).await;
}

async fn refuses_nothing_of_a_rich_configuration(form: Form) {
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    let port = |backend: &Backend| backend.address.port().to_string();
    let ratings = include_str!("manifests/ratings.yaml");
    let ratings = ratings.replace("PORT_V1", &port(&v1)).replace("PORT_V2", &port(&v2));
    // Longer than Envoy takes unless it is told so.
    let outside = include_str!("manifests/outside.yaml").replace("LONG", &"x".repeat(5000));
    let world = World::start(&[("ratings.yaml", ratings), ("outside.yaml", outside)]).await;
    let envoy = Envoy::start(&world, form, v1.address, |config| config).await;
    let outbound = envoy.listener("outbound").await;
    let mut caller = Direct::open(outbound, "ratings.example.com:9080").await;

    assert_eq!(caller.calls(20, &[]).await, Report::all(20, "v1"), "{}", world.debug("/findings?format=text").await);
    assert_eq!(caller.calls(20, &[("x-version", "v2")]).await, Report::all(20, "v2"), "a regular expression");
    assert_eq!(caller.calls(20, &[("x-user", "jason")]).await, Report::all(20, "v2"), "an absent header and a prefix");
    assert_eq!(caller.calls(20, &[("x-user", "jason"), ("x-version", "v1")]).await, Report::all(20, "v1"));
    assert_eq!(caller.calls(5, &[("x-fault", "delay")]).await, Report::all(5, "v1"));
    let aborted = caller.calls(5, &[("x-fault", "abort")]).await;
    assert!(
        aborted.answers.is_empty() && aborted.errors.keys().all(|e| e.contains("503") || e.contains("14")),
        "{aborted:?}"
    );
    let unknown = Direct::open(outbound, "nobody.example.com").await.call(&[]).await.unwrap_err();
    assert!(unknown.contains("404") || unknown.contains("12"), "{unknown}");

    let clusters = envoy.admin("/clusters").await;
    for host in ["ratings.example.com", "api.example.com", "legacy.example.com", "db.example.com"] {
        assert!(clusters.contains(&format!("|{host}::")), "{host}: {clusters}");
    }
    envoy.assert_nothing_refused().await;
    world.assert_nothing_refused(&envoy.node, TYPES).await;
}

#[tokio::test]
async fn an_envoy_gets_its_listeners_from_the_control_plane_in_state_of_the_world() {
    gets_its_listeners(Form::StateOfTheWorld).await;
}

#[tokio::test]
async fn an_envoy_gets_its_listeners_from_the_control_plane_in_delta() {
    gets_its_listeners(Form::Delta).await;
}

async fn gets_its_listeners(form: Form) {
    let backend = Backend::start("v1").await;
    let (port, other) = (free_address().port(), free_address().port());
    let at = |text: String, port: u16| text.replace("port: 9080", &format!("port: {port}"));
    let world = World::start(&[("reviews.yaml", at(service("reviews", Some(&backend)), port))]).await;
    let envoy = Envoy::start(&world, form, backend.address, |config| {
        config.replace("metadata: {", "metadata: { OUTBOUND_LISTEN: 127.0.0.1,")
    })
    .await;
    let listener = envoy.listener(&format!("127.0.0.1:{port}")).await;
    Direct::open(listener, "reviews").await.becomes(20, &[], "v1").await;

    world.apply("ratings.yaml", &at(service("ratings", Some(&backend)), other));
    let listener = envoy.listener(&format!("127.0.0.1:{other}")).await;
    Direct::open(listener, "ratings").await.becomes(20, &[], "v1").await;
    envoy.assert_nothing_refused().await;
    world.assert_nothing_refused(&envoy.node, TYPES).await;
}
