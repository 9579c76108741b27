//! The control plane is killed again and again while every peer calls and is called, processes join and endpoints come and
//! go: no request is lost, nobody refuses anything, and what is written meanwhile holds once it is back.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::caller::{Caller, Direct, Load, Member};
use crate::client::StockClient;
use crate::envoy::{Envoy, Form};
use crate::grpc_mtls::{MUTUAL, bootstrap};
use crate::manifests::{STRICT, announced, in_mesh, routes, rule};
use crate::member::{self, Server};
use crate::server::{StockServer, free_address};
use crate::world::World;

/// How often the control plane dies.
const DEATHS: usize = 5;

#[tokio::test]
async fn killing_the_control_plane_at_any_moment_loses_no_request() {
    // Other moments with every run; a run that failed is played again with the seed that it printed.
    let seed = std::env::var("MESH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("MESH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let stock = free_address();
    let mut world = World::start(&[
        ("strict.yaml", STRICT.to_owned()),
        ("reviews.yaml", announced("reviews")),
        ("reviews-v1.yaml", announced("reviews-v1") + "---\n" + &rule("reviews-v1", MUTUAL)),
        ("reviews-v2.yaml", announced("reviews-v2") + "---\n" + &rule("reviews-v2", MUTUAL)),
        ("routes.yaml", routes(50)),
        ("stock.yaml", in_mesh("stock.example.com", "stock", stock)),
    ])
    .await;
    let application = Backend::start("application").await;
    let _v1 = Server::start(&world, "reviews-v1", "version=v1", "v1").await;
    let _v2 = Server::start(&world, "reviews-v2", "version=v2", "v2").await;
    let _stock = StockServer::start("stock", stock, &bootstrap(&world, "stock").await).await;
    let delta = Envoy::start(&world, Form::Delta, application.address, |config| config).await;
    let state = Envoy::start(&world, Form::StateOfTheWorld, application.address, |config| config).await;
    for (form, envoy) in [("delta", &delta), ("state", &state)] {
        let inbound = in_mesh(&format!("{form}.example.com"), "edge", envoy.listener("inbound").await);
        world.apply(&format!("{form}.yaml"), &inbound);
    }
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    let ours = |origin| Member { mesh: mesh.clone(), origin };

    let envoys = [&delta, &state];
    let delta = started("delta Envoy to us", Direct::open(delta.listener("outbound").await, "reviews").await).await;
    let state = started("SotW Envoy to us", Direct::open(state.listener("outbound").await, "reviews").await).await;
    let client = StockClient::secure("xds:///reviews.default:9080", &bootstrap(&world, "edge").await);
    let client = started("stock client to us", client).await;
    let own = started("us to us", ours("http://reviews:9080")).await;
    let to_delta = started("us to the delta Envoy", ours("http://delta.example.com:9080")).await;
    let to_state = started("us to the SotW Envoy", ours("http://state.example.com:9080")).await;
    let to_stock = started("us to a stock server", ours("http://stock.example.com:9080")).await;

    let (_left, refused) = die_again_and_again(&mut world, &mut random, &own).await;
    assert_eq!(refused, 0, "responses were refused");
    // Nobody was lost: what is written last reaches all.
    world.apply("routes.yaml", &routes(100));
    // All of them are told: where one lost something, the others say where it was lost.
    let mut reports = BTreeMap::new();
    let (mut delta, mut state) = (delta.told(&mut reports).await, state.told(&mut reports).await);
    let (mut client, mut own) = (client.told(&mut reports).await, own.told(&mut reports).await);
    for load in [to_delta, to_state, to_stock] {
        load.told(&mut reports).await;
    }
    assert!(reports.values().all(|report| report.errors.is_empty()), "{reports:#?}");
    delta.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    state.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    client.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    own.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/productpage").await;
    for (node, types) in [("envoy-Delta", 4), ("envoy-StateOfTheWorld", 4), ("edge", 4), ("stock", 1)] {
        world.assert_nothing_refused(node, types).await;
    }
    for envoy in envoys {
        envoy.assert_nothing_refused().await;
    }
}

/// Kills the control plane at moments that are drawn, with something under way; gives the endpoints that came and went,
/// which serve on, and how many responses were refused.
async fn die_again_and_again<C: Caller>(
    world: &mut World,
    random: &mut fastrand::Rng,
    own: &Load<C>,
) -> (Vec<Server>, u64) {
    let (mut refused, mut gone, mut here) = (0, Vec::new(), None::<Server>);
    for _ in 0..DEATHS {
        if random.bool() {
            // It dies at some point of the push.
            change(world, random);
        }
        let before = random.usize(0..60);
        own.more(random.usize(0..=before)).await;
        // A process joins and announces an endpoint, or one withdraws its own and serves on for those who have not heard of it:
        // all of that may be under way, or have to wait.
        match here.take() {
            Some(server) => {
                server.withdraw();
                gone.push(server);
            }
            None => here = Some(Server::begin(world, "reviews-v1", "version=v1", "v1").await),
        }
        own.more(random.usize(0..60 - before.min(59))).await;
        // Counters end with their process.
        refused += world.refused().await;
        world.kill().await;
        own.more(random.usize(5..80)).await;
        if random.bool() {
            change(world, random);
        }
        world.resume().await;
        if let Some(server) = &here {
            server.registered(world).await;
        }
    }
    gone.extend(here);
    (gone, refused)
}

/// Something that costs no request by itself: another split, or another limit of a cluster.
fn change(world: &World, random: &mut fastrand::Rng) {
    if random.bool() {
        return world.apply("routes.yaml", &routes(random.u32(0..=100)));
    }
    let limit = random.u32(1000..2000);
    let pool = format!("connectionPool: {{ http: {{ http2MaxRequests: {limit} }} }}");
    let policy = MUTUAL.replace("tls:", &format!("{pool}, tls:"));
    world.apply("reviews-v1.yaml", &(announced("reviews-v1") + "---\n" + &rule("reviews-v1", &policy)));
}

/// A load of a caller that has been answered once.
async fn started<C: Caller>(name: &'static str, mut caller: C) -> Load<C> {
    crate::world::eventually(name, async || caller.call(&[]).await.ok().map(drop)).await;
    Load::begin(name, caller)
}

#[tokio::test]
async fn a_load_notices_the_death_of_what_it_calls() {
    let backend = Backend::start("v1").await;
    let load = Load::begin("to a backend", Direct::open(backend.address, "reviews").await);
    load.more(5).await;
    drop(backend);
    load.more(20).await;
    let (_, report) = load.end().await;
    assert!(report.from("v1") >= 5 && !report.errors.is_empty(), "{report:?}");
}
