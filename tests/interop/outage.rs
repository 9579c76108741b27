//! The control plane is killed again and again while every peer calls and is called, processes join and endpoints come and
//! go: no request is lost, nobody refuses anything, and what is written meanwhile holds once it is back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::caller::{Caller, Direct, Load, Member};
use crate::client::StockClient;
use crate::envoy::{Envoy, Form};
use crate::grpc_mtls::{MUTUAL, bootstrap};
use crate::manifests::{STRICT, announced, in_mesh, routes, rule};
use crate::member::{self, Server};
use crate::server::{StockServer, free_address};
use crate::world::{World, eventually};

/// How often the control plane dies.
const DEATHS: usize = 5;

#[tokio::test]
async fn killing_the_control_plane_at_any_moment_loses_no_request() {
    let mut random = random();
    let stock = free_address();
    let mut written = Written { weight: 50, limit: 1000, subsets: 1, is_strict: true, news: false };
    let mut world = begin(&written, stock).await;
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
    world.apply("peers.yaml", &(announced("peers") + "---\n" + PEERS));
    let mesh = member::join(&world, "productpage", "app=productpage").await;
    let ours = |origin| Member { mesh: mesh.clone(), origin };

    let envoys = [&delta, &state];
    let delta = started("delta Envoy to us", Direct::open(delta.listener("outbound").await, "reviews").await).await;
    let state = started("SotW Envoy to us", Direct::open(state.listener("outbound").await, "reviews").await).await;
    let client = StockClient::secure("xds:///reviews.default:9080", &bootstrap(&world, "edge").await);
    let excuse = Arc::<Excuse>::default();
    let client = started("stock client to us", Excused { caller: client, excuse: excuse.clone() }).await;
    let own = started("us to us", ours("http://reviews:9080")).await;
    let to_delta = started("us to the delta Envoy", ours("http://delta.example.com:9080")).await;
    let to_state = started("us to the SotW Envoy", ours("http://state.example.com:9080")).await;
    let to_stock = started("us to a stock server", ours("http://stock.example.com:9080")).await;
    let to_all = started("us to all three by weight", ours("http://peers:9080")).await;

    let dead = die_again_and_again(&mut world, &mut written, &mut random, &own, application.address, &excuse).await;
    let late_client = dead.late_client.await.unwrap();
    world.has("late-client", 4).await;
    let late_client = Load::begin("a stock client that started meanwhile to us", late_client);
    assert_eq!(dead.refused, 0, "responses were refused");
    // Who started while it died has everything, too.
    dead.late.ready().await;
    let late = Direct::open(dead.late.listener("outbound").await, "reviews").await;
    let late = started("an Envoy that started meanwhile to us", late).await;
    for envoy in envoys {
        world.has(&envoy.node, 4).await;
    }
    // Nobody was lost: what is written last reaches all. Clusters go with the last route to them.
    (written.weight, written.subsets) = (100, 0);
    world.apply("routes.yaml", &written.text());
    for envoy in envoys {
        let gone = async || (!envoy.admin("/clusters").await.contains("|s1|")).then_some(());
        eventually("the clusters are gone", gone).await;
    }
    own.more(20).await;
    // All of them are told: where one lost something, the others say where it was lost.
    let mut reports = BTreeMap::new();
    let (mut delta, mut state) = (delta.told(&mut reports).await, state.told(&mut reports).await);
    let (mut client, mut own) = (client.told(&mut reports).await, own.told(&mut reports).await);
    let (mut late, mut late_client) = (late.told(&mut reports).await, late_client.told(&mut reports).await);
    for load in [to_delta, to_state, to_stock, to_all] {
        load.told(&mut reports).await;
    }
    assert!(reports.values().all(|report| report.errors.is_empty()), "{reports:#?}");
    let shares = &reports["us to all three by weight"];
    assert!(shares.from("application") > shares.from("stock") && shares.from("stock") > 0, "{shares:?}");
    delta.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    state.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    late.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    client.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    late_client.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/edge").await;
    own.becomes(20, &[], "v2 spiffe://cluster.local/ns/default/sa/productpage").await;
    for (node, types) in
        [("envoy-Delta", 4), ("envoy-StateOfTheWorld", 4), ("edge", 4), ("late-client", 4), ("stock", 1)]
    {
        world.assert_nothing_refused(node, types).await;
    }
    for envoy in [envoys[0], envoys[1], &dead.late] {
        envoy.assert_nothing_refused().await;
    }
}

/// A stock client that may say what it can do nothing against, while there is an excuse for that.
struct Excused<C> {
    caller: C,
    excuse: Arc<Excuse>,
}

#[derive(Default)]
struct Excuse {
    /// The control plane was killed while a cluster was new to the client, and the client has not caught up since.
    holds: AtomicBool,
    /// How many calls were excused.
    taken: AtomicUsize,
}

impl Excuse {
    fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl<C: Caller> Caller for Excused<C> {
    async fn call(&mut self, metadata: &[(&str, &str)]) -> Result<String, String> {
        let was_excused = self.excuse.holds();
        match self.caller.call(metadata).await {
            Err(error) if (was_excused || self.excuse.holds()) && was_asked_in_vain(&error) => {
                self.excuse.taken.fetch_add(1, Ordering::Relaxed);
                Ok("asked in vain".to_owned())
            }
            other => other,
        }
    }
}

/// What a stock client says of a new cluster whose endpoints it was about to ask for when the control plane died: it takes the
/// cluster into use without any, and nothing that it was sent before could keep it from that.
fn was_asked_in_vain(error: &str) -> bool {
    error.starts_with("UNAVAILABLE: empty address list (")
        && error.rsplit("; EDS resource ").next().and_then(|of| of.split_once(": xDS channel for server ")).is_some_and(
            |(name, _)| name.contains("reviews-v1"), // No other host's clusters change.
        )
}

/// Other moments with every run; a run that failed is played again with the seed that it printed.
#[allow(clippy::print_stdout, reason = "a test that fails is played again with its seed")]
pub(crate) fn random() -> fastrand::Rng {
    let seed = std::env::var("MESH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("MESH_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// The control plane with everything but the Envoys.
async fn begin(written: &Written, stock: SocketAddr) -> World {
    World::start(&[
        ("strict.yaml", STRICT.to_owned()),
        ("reviews.yaml", announced("reviews")),
        ("reviews-v1.yaml", announced("reviews-v1")),
        ("reviews-v2.yaml", announced("reviews-v2") + "---\n" + &rule("reviews-v2", MUTUAL)),
        ("routes.yaml", written.text()),
        ("stock.yaml", in_mesh("stock.example.com", "stock", stock)),
    ])
    .await
}

/// One host whose requests go to peers that nobody here wrote: two Envoys before one application, and a stock server.
const PEERS: &str = "apiVersion: networking.istio.io/v1\n\
     kind: VirtualService\n\
     metadata: { name: peers, namespace: default }\n\
     spec:\n\
     \x20 hosts: [peers]\n\
     \x20 http:\n\
     \x20   - route:\n\
     \x20       - { destination: { host: delta.example.com }, weight: 40 }\n\
     \x20       - { destination: { host: state.example.com }, weight: 40 }\n\
     \x20       - { destination: { host: stock.example.com }, weight: 20 }\n";

/// What is left of the deaths.
struct Dead {
    /// Started while the control plane died for the last time.
    late: Envoy,
    late_client: JoinHandle<StockClient>,
    /// Endpoints that came and went, which serve on.
    _left: Vec<Server>,
    /// How many responses were refused.
    refused: u64,
}

/// Kills the control plane at moments that are drawn, with something under way.
#[allow(clippy::print_stdout, reason = "how much was excused is to be seen")]
async fn die_again_and_again<C: Caller>(
    world: &mut World,
    written: &mut Written,
    random: &mut fastrand::Rng,
    own: &Load<C>,
    application: SocketAddr,
    excuse: &Excuse,
) -> Dead {
    let (mut refused, mut gone, mut here, mut late) = (0, Vec::new(), None::<Server>, None);
    // Long enough to see the control plane back, and short enough to end while the test goes on.
    let leaver = Server::open(world, "reviews-v1", "version=v1", "v1", Duration::from_secs(20)).await;
    leaver.registered(world).await;
    let (mut leaver, mut left) = (Some(leaver), None);
    for death in 1..=DEATHS {
        if random.bool() {
            // It dies at some point of the push.
            written.change(world, random);
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
        if death == DEATHS {
            let form = if random.bool() { Form::Delta } else { Form::StateOfTheWorld };
            let envoy = Envoy::begin(world, "late", form, application, |config| config).await;
            let client = StockClient::secure("xds:///reviews.default:9080", &named(world, "late-client").await);
            late = Some((envoy, tokio::spawn(client.answered())));
        }
        own.more(random.usize(0..60 - before.min(59))).await;
        // Counters end with their process.
        refused += world.refused().await;
        excuse.holds.store(written.news, Ordering::Relaxed);
        let (excused, done) = (excuse.taken(), own.done());
        world.kill().await;
        // It leaves while nobody can be told, and is gone for good soon.
        leaver.iter().for_each(Server::withdraw);
        own.more(random.usize(5..80)).await;
        if random.bool() {
            written.change(world, random);
        }
        world.resume().await;
        if excuse.holds() {
            world.has("edge", 4).await;
            // What it has been sent is in use a moment after it has said so. From then on nothing is excused: one more such
            // call is an error.
            own.more(40).await;
            excuse.holds.store(false, Ordering::Relaxed);
            written.news = false;
            let (excused, meanwhile) = (excuse.taken() - excused, own.done() - done);
            println!("death {death}: {excused} calls of the stock client were in vain, while we made {meanwhile}");
            // Both have one pace, of 5 ms, and calls that fail at once keep it best.
            assert!(excused <= 3 * meanwhile, "in vain for longer than the control plane was away");
        }
        if let Some(leaver) = leaver.take() {
            leaver.unregistered(world).await;
            left = Some(tokio::spawn(leaver.leave()));
        }
        if let Some(server) = &here {
            server.registered(world).await;
        }
    }
    gone.extend(here);
    left.expect("it left at the first death").await.unwrap();
    let (late, late_client) = late.expect("begun with the last death");
    Dead { late, late_client, _left: gone, refused }
}

/// What an operator has written of `reviews`. One file, so that a cluster and the first route to it come in one revision.
struct Written {
    weight: u32,
    limit: u32,
    /// Subsets of v1, alike but for their names; routes name the last one.
    subsets: u32,
    /// Whether v1 refuses plaintext, which nobody speaks.
    is_strict: bool,
    /// Whether a change has brought in a cluster that routes did not name before, and the stock client may not have it yet.
    news: bool,
}

impl Written {
    /// Changes something that costs no request by itself: the split, the limit of clusters, the mode of v1, or the clusters
    /// that routes name: to a new one, or to none of them, which are gone with that.
    fn change(&mut self, world: &World, random: &mut fastrand::Rng) {
        let (weight, subsets) = (self.weight, self.subsets);
        match random.u32(0..5) {
            0 => self.weight = random.u32(0..=100),
            1 => self.limit = random.u32(1000..2000),
            2 => self.is_strict = !self.is_strict,
            3 => self.subsets = 0,
            _ => self.subsets += 1,
        }
        self.news |= weight == 100 && self.weight < 100 || subsets != self.subsets;
        world.apply("routes.yaml", &self.text());
        // Of our own servers: a stock one takes one or the other.
        let mode = if self.is_strict { "STRICT" } else { "PERMISSIVE" };
        let of_v1 = STRICT.replace("STRICT", mode).replace("name: default", "name: v1");
        world.apply("v1.yaml", &of_v1.replace("spec: {", "spec: { selector: { matchLabels: { version: v1 } },"));
    }

    fn text(&self) -> String {
        let pool = format!("connectionPool: {{ http: {{ http2MaxRequests: {} }} }}", self.limit);
        let policy = MUTUAL.replace("tls:", &format!("{pool}, tls:"));
        let subsets: Vec<_> =
            (1..=self.subsets).map(|n| format!("{{ name: s{n}, labels: {{ version: v1 }} }}")).collect();
        let rule = rule("reviews-v1", &format!("{policy}, subsets: [{}]", subsets.join(", ")));
        let routes = match self.subsets {
            0 => routes(self.weight),
            last => {
                routes(self.weight).replace("{ host: reviews-v1 }", &format!("{{ host: reviews-v1, subset: s{last} }}"))
            }
        };
        format!("{routes}---\n{rule}")
    }
}

/// The manual's bootstrap of the account `edge` under a node name of its own.
async fn named(world: &World, node: &str) -> Value {
    let mut bootstrap = bootstrap(world, "edge").await;
    bootstrap["node"]["id"] = node.into();
    bootstrap
}

/// How many call at once: one of them is about to whenever a cluster is missing for a moment.
const CROWD: usize = 20;

/// A state of the world does not say what its client has: the first one after an outage takes away what vanished meanwhile.
#[tokio::test]
async fn what_vanished_while_the_control_plane_was_away_costs_no_request() {
    let mut written = Written { weight: 0, limit: 1000, subsets: 1, is_strict: true, news: false };
    let mut world = begin(&written, free_address()).await;
    let application = Backend::start("application").await;
    let _v1 = Server::start(&world, "reviews-v1", "version=v1", "v1").await;
    let envoy = Envoy::start(&world, Form::StateOfTheWorld, application.address, |config| config).await;
    let outbound = envoy.listener("outbound").await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(started("Envoy to us", Direct::open(outbound, "reviews").await).await);
    }
    let client = StockClient::secure("xds:///reviews.default:9080", &bootstrap(&world, "edge").await);
    let client = started("stock client to us", client).await;
    assert!(envoy.admin("/clusters").await.contains("|s1|"), "the control: routes name what is about to vanish");

    world.kill().await;
    // Of the clusters that stay one has changed, and is made anew.
    (written.subsets, written.limit) = (0, 2000);
    world.apply("routes.yaml", &written.text());
    client.more(5).await;
    world.resume().await;
    let gone = async || (!envoy.admin("/clusters").await.contains("|s1|")).then_some(());
    eventually("the cluster is gone", gone).await;
    world.has("edge", 4).await;
    client.more(20).await;
    client.all_well().await;
    for load in crowd {
        load.all_well().await;
    }
    envoy.assert_nothing_refused().await;
}

/// A cluster that came while another one vanished is in use before the routes that name it.
#[tokio::test]
async fn what_came_in_the_place_of_what_vanished_while_the_control_plane_was_away_costs_no_request() {
    let written = Written { weight: 0, limit: 1000, subsets: 1, is_strict: true, news: false };
    let mut world = begin(&written, free_address()).await;
    let application = Backend::start("application").await;
    let _v1 = Server::start(&world, "reviews-v1", "version=v1", "v1").await;
    let envoy = Envoy::start(&world, Form::StateOfTheWorld, application.address, |config| config).await;
    let outbound = envoy.listener("outbound").await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(started("Envoy to us", Direct::open(outbound, "reviews").await).await);
    }
    let first = started("Envoy to us", Direct::open(outbound, "reviews").await).await;
    for (before, now) in [("s1", "other"), ("other", "s1")] {
        world.kill().await;
        world.apply("routes.yaml", &written.text().replace("s1", now));
        first.more(5).await;
        world.resume().await;
        let changed = async || {
            let clusters = envoy.admin("/clusters").await;
            (clusters.contains(&format!("|{now}|")) && !clusters.contains(&format!("|{before}|"))).then_some(())
        };
        eventually("one cluster is there and the other is gone", changed).await;
        first.more(20).await;
    }
    for load in crowd.into_iter().chain([first]) {
        load.all_well().await;
    }
    envoy.assert_nothing_refused().await;
}

/// A load of a caller that has been answered once.
pub(crate) async fn started<C: Caller>(name: &'static str, mut caller: C) -> Load<C> {
    eventually(name, async || caller.call(&[]).await.ok().map(drop)).await;
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
