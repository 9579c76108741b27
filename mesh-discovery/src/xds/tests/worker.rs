//! The worker among its control planes: nobody starves, and no bug that a resource brings to light ends it.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use mesh_core::id::Target;
use mesh_core::policy::{CircuitBreakers, Cluster, DestinationState, Listener, RouteConfiguration, RouteSource};
use mesh_core::source::{DestinationSource, Watched};
use mesh_testkit::policy;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::ads::{Ads, Hold, Known, Server, Servers, Standing, Topology};
use super::super::kind::{Key, Kind};
use super::super::message::Name;
use super::super::resource::{PolicyCodec, Resource, Value};
use super::super::worker::State;
use super::super::{AdsStream, Request, SnapshotConfig, StreamError, Transport, Variant, XdsClient, XdsConfig};
use super::{network, response};
use crate::bootstrap::{Authority, Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::cascade::{Cascade, Resources, Root, SubscriptionId};
use crate::codec;

/// A control plane that always has something to say.
struct Busy {
    is: bool,
    requests: Option<mpsc::Receiver<Request>>,
}

impl Transport for Busy {
    fn open(&mut self, _: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let (requests, received) = mpsc::channel(1);
        self.requests = Some(received);
        let said = stream::repeat_with(|| Ok(response(Kind::Listener, "v", "n", Vec::new())));
        let responses = if self.is { said.boxed() } else { stream::pending().boxed() };
        Box::pin(async move { Ok(AdsStream { requests, responses }) })
    }
}

const TEMPLATE: &str = "xdstp://other/envoy.config.listener.v3.Listener/%s";

fn of_the_other(name: &str) -> Target {
    name.parse::<Target>().unwrap().with_authority("other").unwrap()
}

/// Whether it comes about while everybody has many turns.
async fn comes_about(mut is: impl FnMut() -> bool) -> bool {
    for _ in 0..5_000 {
        if is() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    is()
}

#[tokio::test(start_paused = true)]
async fn x14_a_busy_control_plane_starves_neither_the_others_nor_timers_nor_the_snapshot() {
    // The control run is a quiet one.
    for busy in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (memory, mut server) = network();
        let at = |name: &str| XdsServer::new(name.parse().unwrap(), ChannelCredentials::Insecure);
        let mut config =
            XdsConfig::new(Bootstrap::new(at("busy:1"), Node { id: "me".to_owned(), ..Default::default() }));
        let servers = vec![at("memory:1")];
        let authority =
            Authority { client_listener_template: TEMPLATE.to_owned(), servers, fallback_on_reachability_only: false };
        config.bootstrap.authorities.insert("other".to_owned(), authority);
        config.variant = Some(Variant::StateOfTheWorld);
        let mut snapshot = SnapshotConfig::new(folder.path().join("snapshot"));
        snapshot.delay = Duration::ZERO;
        config.snapshot = Some(snapshot);
        let transport = move |server: &XdsServer| -> Either {
            if server.uri.to_string() == "busy:1" {
                Either::Busy(Busy { is: busy, requests: None })
            } else {
                Either::Memory(memory.clone())
            }
        };
        let client = XdsClient::spawn(config, transport, &Handle::current());
        let _asked = client.destination(&"a:80".parse().unwrap());
        let [there, away] = ["b:80", "c:80"].map(|name| client.destination(&of_the_other(name)));

        let mut opened = None;
        let accepted = || {
            opened = server.accept().now_or_never();
            opened.is_some()
        };
        assert!(comes_about(accepted).await, "its stream: {busy}");
        let mut stream = opened.unwrap();
        while super::asked(&stream.request().await).len() < 2 {}
        let name = TEMPLATE.replace("%s", "b:80");
        let inline = RouteConfiguration {
            name: "inline".to_owned(),
            virtual_hosts: Vec::new(),
            headers: Default::default(),
            retry_budget: None,
        };
        let listener = Listener::new(&name, RouteSource::Inline(inline.into()));
        stream.respond(Kind::Listener, "v1", "n1", vec![codec::encode_listener(&listener)]);
        assert!(comes_about(|| matches!(&**there.load(), DestinationState::Ready(_))).await, "its lane: {busy}");
        // Not idle, the clock does not move by itself.
        tokio::time::advance(Duration::from_secs(16)).await;
        assert!(comes_about(|| matches!(&**away.load(), DestinationState::Failed(_))).await, "its timer: {busy}");
        if busy {
            // Only what is confirmed is written.
            while client.status().snapshot.unwrap().writes == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

enum Either {
    Busy(Busy),
    Memory(super::MemoryTransport),
}

impl Transport for Either {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        match self {
            Self::Busy(busy) => busy.open(variant),
            Self::Memory(memory) => memory.open(variant),
        }
    }
}

fn cluster(name: &str, mark: u32) -> Any {
    let breaker = CircuitBreakers { max_requests: Some(mark), ..Default::default() };
    codec::encode_cluster(&Cluster { breaker, ..Cluster::new(name.into()) })
}

/// One control plane whose clusters `x` and `y` somebody wants, of edition 1.
fn state() -> (State, Instant) {
    let server = Server { name: "s".to_owned(), features: Default::default(), variant: Some(Variant::Delta) };
    let topology = Topology {
        node: Arc::new(Node::default()),
        servers: vec![server],
        authorities: vec![Servers { ordered: vec![0], on_reachability_only: false }],
        by_name: Default::default(),
        resource_timeout: Duration::from_secs(15),
        transient_timeout: Duration::from_secs(30),
    };
    let now = Instant::now();
    let ads = Ads::new(PolicyCodec::default(), topology, now);
    let mut state = State { ads, cascade: Cascade::default(), snapshot: None };
    for name in ["x", "y"] {
        let _ = state.ads.want(1, Kind::Cluster, name);
    }
    state.ads.opened(0, now);
    while state.ads.take_request(0, now).is_some() {}
    state.ads.response(0, response(Kind::Cluster, "v1", "n1", vec![cluster("x", 1), cluster("y", 1)]), now);
    state.settle();
    assert_eq!(state.ads.take_request(0, now).unwrap().error, None);
    (state, now)
}

fn edition(ads: &Ads<PolicyCodec>, name: &str) -> Option<u32> {
    match ads.known(Kind::Cluster, name) {
        Known::Value(Resource { value: Value::Cluster(cluster), .. }, _) => cluster.breaker.max_requests,
        _ => None,
    }
}

#[test]
fn x4_a_panic_in_what_follows_a_resource_costs_that_resource() {
    let (mut state, now) = state();
    let mut told = Vec::new();
    let mut tell = |_: &mut Cascade, keys: &[Key], ads: &mut Ads<PolicyCodec>| {
        told.extend(keys.iter().map(|key| key.name.to_string()));
        assert!(edition(ads, "x") != Some(13) || keys.iter().all(|key| &*key.name != "x"), "on purpose");
    };
    for nonce in ["n2", "n3"] {
        state.ads.response(0, response(Kind::Cluster, "v2", nonce, vec![cluster("x", 13), cluster("y", 2)]), now);
        assert!(state.settle_by(&mut tell) == (nonce == "n2"), "the same bytes make nobody panic again");
        let answer = state.ads.take_request(0, now).unwrap();
        let error = answer.error.unwrap();
        assert_eq!(answer.nonce, nonce);
        assert!(
            error.contains("cluster x is refused") && error.contains("panicked") && !error.contains("cluster y"),
            "{error}"
        );
        assert_eq!((edition(&state.ads, "x"), edition(&state.ads, "y")), (Some(1), Some(2)));
        assert_eq!(state.ads.entry(&Key::new(Kind::Cluster, "x")).unwrap().standing, Standing::Nacked);
    }
    // Together, one by one, and then what is in use again.
    assert_eq!(told, ["x", "y", "x", "y", "x"]);

    // What nobody had before is not there at all, and the worker goes on.
    let (mut state, now) = self::state();
    let _ = state.ads.want(1, Kind::Cluster, "z");
    while state.ads.take_request(0, now).is_some() {}
    state.ads.response(0, response(Kind::Cluster, "v2", "n2", vec![cluster("z", 1)]), now);
    state.settle_by(|_, keys, ads| {
        assert!(edition(ads, "z").is_none() || keys.iter().all(|key| &*key.name != "z"), "on purpose");
    });
    assert!(state.ads.take_request(0, now).unwrap().error.unwrap().contains("cluster z is refused"));
    assert!(matches!(state.ads.known(Kind::Cluster, "z"), Known::Missing(reason, _) if reason.contains("panicked")));
    state.ads.response(0, response(Kind::Cluster, "v3", "n3", vec![cluster("z", 3)]), now);
    state.settle();
    assert_eq!(state.ads.take_request(0, now).unwrap().error, None);
    assert_eq!(edition(&state.ads, "z"), Some(3));
}

/// The protocol, which panics when the cluster `b` is wanted.
struct Brittle<'a>(&'a mut Ads<PolicyCodec>);

impl Resources for Brittle<'_> {
    fn want(&mut self, by: SubscriptionId, kind: Kind, name: &str) -> (Name, Known<'_, Resource>) {
        assert_ne!((kind, name), (Kind::Cluster, "b"), "on purpose");
        self.0.want(by, kind, name)
    }

    fn release(&mut self, by: SubscriptionId, key: &Key) {
        self.0.release(by, key);
    }

    fn users(&self, key: &Key) -> &[SubscriptionId] {
        self.0.users(key)
    }

    fn wanted_by(&self, by: SubscriptionId) -> Vec<Key> {
        self.0.wanted_by(by)
    }

    fn known(&self, kind: Kind, name: &str) -> Known<'_, Resource> {
        self.0.known(kind, name)
    }

    fn hold(&self, key: &Key, max_age: Duration) -> Hold {
        self.0.hold(key, max_age)
    }
}

#[test]
fn x4_what_a_walk_that_panicked_wanted_is_let_go_of() {
    let (mut state, now) = state();
    let (publisher, watched) = Watched::channel(DestinationState::Pending);
    let root = Root::Destination { target: "l:80".parse().unwrap(), listener: "l:80".to_owned(), publisher };
    state.cascade.add(2, root, &mut state.ads);
    let tell = |cascade: &mut Cascade, keys: &[Key], ads: &mut Ads<PolicyCodec>| {
        cascade.changed(keys, &mut Brittle(ads));
    };
    let wanted = |ads: &Ads<PolicyCodec>| {
        let mut wanted = ads.wanted_by(2);
        wanted.sort_unstable();
        wanted.into_iter().map(|key| key.name.to_string()).collect::<Vec<_>>()
    };
    let routes = |clusters: &[&str]| {
        let routes = clusters.iter().map(|name| policy::route_to((*name).into()));
        let mut routes = policy::routes(routes.collect::<Vec<_>>());
        routes.name = "r".to_owned();
        codec::encode_routes(&routes)
    };
    let listener = Listener::new("l:80", RouteSource::Named("r".to_owned()));
    let say = |state: &mut State, kind, said: Any| {
        while state.ads.take_request(0, now).is_some() {}
        state.ads.response(0, response(kind, "v2", "n2", vec![said]), now);
        state.settle_by(tell);
        std::iter::from_fn(|| state.ads.take_request(0, now)).find_map(|request| request.error)
    };
    assert_eq!(say(&mut state, Kind::Listener, codec::encode_listener(&listener)), None);
    // It wants `a` before it panics on `b`.
    let refused = say(&mut state, Kind::Routes, routes(&["a", "b"])).unwrap();
    assert!(refused.contains("panicked"), "{refused}");
    // Other routes: what only the refused ones named is wanted no longer.
    assert_eq!(say(&mut state, Kind::Routes, routes(&["c"])), None);
    assert_eq!(wanted(&state.ads), ["l:80", "r", "c"]);
    // Its readers gone, nothing is wanted for it.
    assert!(say(&mut state, Kind::Routes, routes(&["a", "b"])).is_some());
    drop(watched);
    state.cascade.remove(2, &mut state.ads);
    assert!(wanted(&state.ads).is_empty());
}

#[test]
fn x4_a_cascade_that_panics_on_whatever_it_is_told_does_not_go_round_for_ever() {
    let (mut state, now) = state();
    state.ads.response(0, response(Kind::Cluster, "v2", "n2", vec![cluster("x", 2), cluster("y", 2)]), now);
    assert!(state.settle_by(|_, _, _| panic!("on purpose")));
    let error = state.ads.take_request(0, now).unwrap().error.unwrap();
    assert!(error.contains("cluster x") && error.contains("cluster y"), "{error}");
    assert_eq!((edition(&state.ads, "x"), edition(&state.ads, "y")), (Some(1), Some(1)));
}
