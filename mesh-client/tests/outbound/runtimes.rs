//! One client used from several runtimes: what looks after a destination runs on one of them, which may end, or stand still
//! while requests come from another, and each drives the connections that it made.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::poll;
use http_body::Body as _;
use http_body_util::BodyExt;
use mesh_client::{Client, Io};
use mesh_core::health::Standing;
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, Discovery, Endpoint, Forward, HealthCheck, HealthCheckPace,
    HealthProbe, HttpProbe, OutlierDetection, PerMillion, RouteMatch, Snapshot, UpstreamProtocol,
};
use mesh_testkit::{Behaviour, EchoServer, FakeResolver, FixedSource, policy};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

use super::{TARGET, fetch, forward_with, get, server_of, snapshot_with};

const HOST: &str = "reviews.example.com";

/// What becomes of the runtime of the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Ends,
    StandsStill,
}

/// A client that is used from two runtimes in turn.
struct World {
    // Of the servers.
    home: Runtime,
    first: Option<Runtime>,
    second: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        let home = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { home, first: Some(runtime()), second: runtime() }
    }

    fn server(&self, name: &str) -> EchoServer {
        self.home.block_on(EchoServer::start(name))
    }

    fn on_first<T>(&self, work: impl Future<Output = T>) -> T {
        self.first.as_ref().unwrap().block_on(work)
    }

    fn on_second<T>(&self, work: impl Future<Output = T>) -> T {
        self.second.block_on(work)
    }

    /// From now on nobody drives the first.
    fn leave_first(&mut self, first: First) {
        match first {
            First::Ends => drop(self.first.take()),
            // Longer than anybody who works is not seen.
            First::StandsStill => self.pass(Duration::from_secs(11)),
        }
    }

    /// Nothing runs meanwhile: what `advance` waits for is that others do.
    fn pass(&self, time: Duration) {
        self.on_second(passed(time));
    }

    /// Who answers on the second runtime.
    fn answers(&self, client: &Client) -> String {
        let asking = client.clone();
        // Beside the tasks that are there.
        let answer = self.second.spawn(async move { fetch(&asking, "/").await });
        server_of(&self.on_second(answer).unwrap().unwrap()).to_owned()
    }
}

async fn passed(time: Duration) {
    tokio::time::pause();
    let _ = poll!(pin!(tokio::time::advance(time)));
    tokio::time::resume();
}

/// Nothing here is about connections: there is another one for each request.
fn cluster(name: &str) -> Cluster {
    let mut cluster = super::cluster(name);
    cluster.connection.max_requests_per_connection = Some(1);
    cluster
}

fn to(server: &EchoServer) -> Snapshot {
    snapshot_with(forward_with(None), cluster("test"), &[server])
}

#[test]
fn a_connection_goes_to_requests_of_the_runtime_that_drives_it() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let world = World::new();
        let server = world.server("v1");
        let mut policy = super::cluster("test");
        policy.connection.protocol = protocol;
        let client = Client::builder(FixedSource::of(TARGET, snapshot_with(forward_with(None), policy, &[&server])));
        let client = client.build();
        world.on_first(fetch(&client, "/")).unwrap();
        for _ in 0..3 {
            let in_time = async { tokio::time::timeout(Duration::from_secs(20), fetch(&client, "/")).await };
            world.on_second(in_time).unwrap_or_else(|_| panic!("{protocol:?}: nobody drives its connection")).unwrap();
            world.on_first(fetch(&client, "/")).unwrap();
        }
        assert_eq!(server.connections(), 2, "{protocol:?}: each has its own");
    }
}

#[test]
fn an_answer_that_has_to_end_in_time_is_read_by_who_is_on_no_runtime() {
    let world = World::new();
    let server = world.server("v1");
    server.behave(Behaviour::Stall);
    let forward = Forward { timeout: Some(Duration::from_secs(3600)), ..forward_with(None) };
    let client = Client::builder(FixedSource::of(TARGET, snapshot_with(forward, super::cluster("test"), &[&server])));
    let mut answer = pin!(world.on_first(client.build().send(get("/"))).unwrap().into_body());
    // The beginning of it may be there, and then somebody has to wait.
    let mut nobody = Context::from_waker(Waker::noop());
    while let Poll::Ready(frame) = answer.as_mut().poll_frame(&mut nobody) {
        frame.unwrap().unwrap();
    }
    server.release();
    world.on_first(answer.collect()).unwrap();
}

#[test]
fn where_there_may_be_no_further_connection_it_is_shared_by_runtimes() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let world = World::new();
        let server = world.server("v1");
        let limits = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
        let mut policy = Cluster { breaker: limits, ..super::cluster("test") };
        policy.connection.protocol = protocol;
        let client = Client::builder(FixedSource::of(TARGET, snapshot_with(forward_with(None), policy, &[&server])));
        let client = client.build();
        // Driven by a thread of its own.
        world.home.block_on(fetch(&client, "/")).unwrap();
        let in_time = async { tokio::time::timeout(Duration::from_secs(20), fetch(&client, "/")).await };
        world.on_second(in_time).unwrap_or_else(|_| panic!("{protocol:?}: it waits for a place")).unwrap();
        world.home.block_on(fetch(&client, "/")).unwrap();
        assert_eq!(server.connections(), 1, "{protocol:?}");
    }
}

/// A cluster with so many connections, each for one request at a time.
fn with_places(protocol: UpstreamProtocol, connections: u32) -> Cluster {
    let limits = CircuitBreakers { max_connections: Some(connections), ..CircuitBreakers::default() };
    let mut policy = Cluster { breaker: limits, ..super::cluster("test") };
    (policy.connection.protocol, policy.connection.max_concurrent_streams) = (protocol, Some(1));
    policy
}

/// Lets a runtime run until a request waits for a connection.
async fn pending(client: &Client) {
    while client.dump().destinations[0].clusters[0].default_priority.pending != 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_nobody_goes_on_connecting_is_not_waited_for() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let world = World::new();
        let server = world.server("v1");
        let snapshot = snapshot_with(forward_with(None), with_places(protocol, 2), &[&server]);
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
        let fetched = || {
            let asking = client.clone();
            world.second.spawn(async move { fetch(&asking, "/").await })
        };
        server.behave(Behaviour::Hold);
        let held = fetched();
        world.on_second(server.wait_for_requests(1));
        // Begins to connect, and gives up; its runtime stands still.
        world.on_first(async { assert!(poll!(Box::pin(client.send(get("/")))).is_pending()) });
        let waits = fetched();
        world.on_second(pending(&client));
        server.behave(Behaviour::Echo);
        server.release();
        let both = async { tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(held, waits) }).await };
        let (held, waits) =
            world.on_second(both).unwrap_or_else(|_| panic!("{protocol:?}: its own connection is free"));
        assert!(held.unwrap().is_ok() && waits.unwrap().is_ok(), "{protocol:?}");
        assert_eq!(server.connections(), 1, "{protocol:?}");
    }
}

#[test]
fn what_another_runtime_has_connected_goes_to_who_waits() {
    let cases = [UpstreamProtocol::Http1, UpstreamProtocol::Http2].into_iter();
    // Whether the first, which stands still then, has begun to connect before. What looks after the destination, and would find
    // by and by what is through, stands still with it.
    for (protocol, still) in cases.flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        let world = World::new();
        let server = world.server("v1");
        let places = with_places(protocol, 1 + u32::from(still));
        let snapshot = snapshot_with(forward_with(None), places, &[&server]);
        let (asked, open) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (gate, first) = ((asked.clone(), open.clone()), world.first.as_ref().unwrap().handle().id());
        let builder = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
            let (asked, open) = gate.clone();
            async move {
                let Address::Socket(address) = address else { unreachable!("it is one") };
                if Handle::current().id() == first {
                    std::future::pending::<()>().await;
                }
                asked.notify_one();
                open.notified().await;
                Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
            }
        });
        let client = builder.build();
        let dials = || client.dump().destinations[0].clusters.first().map_or(0, |cluster| cluster.open_connections);
        if still {
            world.on_first(async {
                let mut gives_up = Box::pin(client.send(get("/given-up")));
                while poll!(&mut gives_up).is_pending() && dials() == 0 {
                    tokio::task::yield_now().await;
                }
            });
        }
        // By a thread of its own.
        world.home.block_on(async {
            tokio::select! {
                _ = fetch(&client, "/given-up") => unreachable!("there is no connection"),
                () = asked.notified() => {}
            }
        });
        let asking = client.clone();
        let waits = world.second.spawn(async move { fetch(&asking, "/").await });
        world.on_second(pending(&client));
        assert_eq!(dials(), 1 + u32::from(still), "{protocol:?}, {still}: there is no place for its own");
        open.notify_one();
        let in_time = async { tokio::time::timeout(Duration::from_secs(20), waits).await };
        let answer = world.on_second(in_time).unwrap_or_else(|_| panic!("{protocol:?}, {still}: it is through"));
        assert_eq!((server_of(&answer.unwrap().unwrap()), server.connections()), ("v1", 1), "{protocol:?}");
    }
}

#[test]
fn what_another_runtime_has_connected_goes_to_who_waits_for_one_of_its_own() {
    let world = World::new();
    let server = world.server("v1");
    let mut places = with_places(UpstreamProtocol::Http2, 2);
    places.connection.max_requests_per_connection = Some(1);
    let (asked, open, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gate, own) = ((asked.clone(), open.clone(), begun.clone()), Arc::new(AtomicUsize::new(0)));
    let second = world.second.handle().id();
    let snapshot = snapshot_with(forward_with(None), places, &[&server]);
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
        let ((asked, open, begun), own) = (gate.clone(), own.clone());
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            if Handle::current().id() != second {
                asked.notify_one();
                open.notified().await;
            } else if own.fetch_add(1, Ordering::Relaxed) > 0 {
                begun.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
        }
    });
    let client = builder.build();
    let fetched = || {
        let asking = client.clone();
        world.second.spawn(async move { fetch(&asking, "/").await })
    };
    server.behave(Behaviour::Hold);
    let held = fetched();
    world.on_second(server.wait_for_requests(1));
    world.home.block_on(async {
        tokio::select! {
            _ = fetch(&client, "/given-up") => unreachable!("there is no connection"),
            () = asked.notified() => {}
        }
    });
    let waits = fetched();
    world.on_second(pending(&client));
    server.behave(Behaviour::Echo);
    server.release();
    // With the only request of its connection a place is free, and one of its own is begun, which comes to nothing.
    world.on_second(async {
        held.await.unwrap().unwrap();
        begun.notified().await;
    });
    open.notify_one();
    // Before the sweep of 5 s, which would find it as well.
    let in_time = async { tokio::time::timeout(Duration::from_secs(4), waits).await };
    let answer = world.on_second(in_time).expect("another one is through").unwrap().expect("that one takes it");
    assert_eq!((server_of(&answer), server.connections()), ("v1", 2));
}

/// The first part of an aggregate is connected to, for requests pass it over, by a runtime that stands still then. What looks after
/// the destination runs on.
#[test]
fn who_is_away_is_looked_at_by_others_if_the_runtime_that_does_stands_still() {
    let world = World::new();
    let [near, far] = ["near", "far"].map(|name| world.server(name));
    let is_back = Arc::new(AtomicBool::new(false));
    let (flag, first, first_part) = (is_back.clone(), world.first.as_ref().unwrap().handle().id(), near.endpoint());
    let all = Cluster { discovery: Discovery::Aggregate(vec!["near".into(), "far".into()]), ..cluster("test") };
    let parts = [(all, vec![]), (cluster("near"), vec![near.endpoint()]), (cluster("far"), vec![far.endpoint()])];
    let snapshot = policy::snapshot(policy::routes([policy::forward(RouteMatch::any(), forward_with(None))]), parts);
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
        let (flag, is_near) = (flag.clone(), address == first_part.address);
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            if is_near && !flag.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            if is_near && Handle::current().id() == first {
                std::future::pending::<()>().await;
            }
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
        }
    });
    let client = builder.runtime(world.home.handle().clone()).build();
    let by_first = || server_of(&world.on_first(fetch(&client, "/")).unwrap()).to_owned();
    assert_eq!(by_first(), "far");
    is_back.store(true, Ordering::Relaxed);
    // It is due, and begun.
    world.on_first(passed(Duration::from_secs(1)));
    assert_eq!(by_first(), "far");
    world.pass(Duration::from_secs(2));
    assert_eq!(world.answers(&client), "far", "control: it may be under way");
    world.pass(Duration::from_secs(13));
    let is_near = || {
        world.pass(Duration::from_secs(1));
        world.answers(&client) == "near"
    };
    assert!((0..20).any(|_| is_near()), "nobody looks");
}

/// Whether policy is heard by the very next request, though the runtime that heard it first hears nothing any more.
#[test]
fn policy_is_heard_whatever_becomes_of_the_runtime_of_the_first_request() {
    for (case, named) in [(First::Ends, false), (First::Ends, true), (First::StandsStill, false)] {
        let mut world = World::new();
        let [former, newer, newest] = ["former", "newer", "newest"].map(|name| world.server(name));
        let source = FixedSource::of(TARGET, to(&former));
        let mut builder = Client::builder(source.clone());
        if named {
            builder = builder.runtime(world.first.as_ref().unwrap().handle().clone());
        }
        let client = builder.build();
        world.on_first(fetch(&client, "/")).unwrap();
        assert_eq!(world.answers(&client), "former", "{case:?}");
        world.leave_first(case);
        source.set_snapshot(TARGET, to(&newer));
        assert_eq!(world.answers(&client), "newer", "{case:?}, named: {named}");
        // And so on, by who has taken its place.
        source.set_snapshot(TARGET, to(&newest));
        world.on_second(tokio::task::yield_now());
        assert_eq!(world.answers(&client), "newest", "{case:?}, named: {named}");
        drop(world.first.take());
        assert_eq!(source.readers(TARGET), 2, "{case:?}: nobody subscribes anew, nor twice");
    }
}

/// A program that calls now and then, and runs nothing in between.
#[test]
fn policy_is_heard_by_the_first_request_after_a_while_in_which_nothing_ran() {
    let world = World::new();
    let [former, newer] = ["former", "newer"].map(|name| world.server(name));
    let source = FixedSource::of(TARGET, to(&former));
    let client = Client::builder(source.clone()).build();
    assert_eq!(world.answers(&client), "former");
    world.pass(Duration::from_secs(60));
    source.set_snapshot(TARGET, to(&newer));
    let answer = world.on_second(fetch(&client, "/")).unwrap();
    assert_eq!(server_of(&answer), "newer");
}

#[test]
fn who_waits_for_the_first_configuration_gets_it_though_the_runtime_that_asked_first_ends() {
    let mut world = World::new();
    let server = world.server("v1");
    let source = FixedSource::new();
    let client = Client::builder(source.clone()).build();
    // Never again looked at.
    let mut asked = client.send(get("/"));
    world.on_first(async { assert!(poll!(&mut asked).is_pending()) });
    let first = world.first.take().unwrap();
    let answer = world.on_second(async {
        let mut waits = client.send(get("/"));
        assert!(poll!(&mut waits).is_pending());
        first.shutdown_background();
        source.set_snapshot(TARGET, to(&server));
        waits.await
    });
    assert_eq!(server_of(&answer.unwrap()), "v1");
}

#[test]
fn who_waits_for_the_first_configuration_takes_it_though_the_runtime_that_asked_first_stands_still() {
    let world = World::new();
    let server = world.server("v1");
    let source = FixedSource::new();
    let client = Client::builder(source.clone()).build();
    // Never again looked at.
    let mut asked = client.send(get("/"));
    world.on_first(async { assert!(poll!(&mut asked).is_pending()) });
    // Who waits already, and who comes later.
    let mut waits = client.send(get("/"));
    world.on_second(async { assert!(poll!(&mut waits).is_pending()) });
    source.set_snapshot(TARGET, to(&server));
    assert_eq!(server_of(&world.on_second(waits).unwrap()), "v1");
    assert_eq!(world.answers(&client), "v1");
}

fn named(resolver: &Arc<FakeResolver>, port: u16) -> Client {
    let name = Endpoint::new(Address::Name { host: HOST.into(), port });
    let discovery = Discovery::StrictDns(policy::endpoints(&"test".into(), vec![name]).into());
    let snapshot = snapshot_with(forward_with(None), Cluster { discovery, ..cluster("test") }, &[]);
    Client::builder(FixedSource::of(TARGET, snapshot)).resolver(resolver.clone()).build()
}

fn addresses(client: &Client) -> Vec<String> {
    let dump = client.dump().destinations[0].clusters[0].clone();
    dump.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn names_are_looked_up_whatever_becomes_of_the_runtime_of_the_first_request() {
    for case in [First::Ends, First::StandsStill] {
        let mut world = World::new();
        let server = world.server("v1");
        let port = server.address().port();
        let resolver = FakeResolver::new();
        resolver.set(HOST, &["127.0.0.1"], Some(Duration::from_secs(30)));
        let client = named(&resolver, port);
        world.on_first(fetch(&client, "/")).unwrap();
        world.leave_first(case);
        resolver.set(HOST, &["127.0.0.1", "127.0.0.2"], Some(Duration::from_secs(30)));
        world.pass(Duration::from_secs(31));
        // Before the new look: what is known is used.
        world.answers(&client);
        world.on_second(async {
            let looked = async {
                while addresses(&client).len() < 2 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), looked).await.unwrap_or_else(|_| panic!("{case:?}"));
        });
        let want = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}")];
        assert_eq!(addresses(&client), want, "{case:?}");
    }
}

#[test]
fn who_waits_for_a_name_is_not_left_waiting_when_the_runtime_that_looks_it_up_ends() {
    let mut world = World::new();
    let server = world.server("v1");
    let resolver = FakeResolver::new();
    resolver.hang(HOST);
    let client = named(&resolver, server.address().port());
    let (asking, asked) = (client.clone(), resolver.clone());
    let first = world.first.take().unwrap();
    let _asks = first.spawn(async move { fetch(&asking, "/").await });
    first.block_on(asked.wait_for_asked(1));
    world.on_second(async {
        let mut waits = client.send(get("/"));
        assert!(poll!(&mut waits).is_pending());
        first.shutdown_background();
        assert!(waits.await.is_err(), "there is no endpoint");
    });
    resolver.set(HOST, &["127.0.0.1"], None);
    assert_eq!(world.answers(&client), "v1", "the next one waits for another look");
}

/// A client whose first runtime stands still with a look-up under way.
fn with_a_look_that_nobody_drives(world: &mut World, resolver: &Arc<FakeResolver>, server: &EchoServer) -> Client {
    resolver.hang(HOST);
    let client = named(resolver, server.address().port());
    let asking = client.clone();
    let _asks = world.first.as_ref().unwrap().spawn(async move { fetch(&asking, "/").await });
    world.on_first(resolver.wait_for_asked(1));
    world.leave_first(First::StandsStill);
    client
}

#[test]
fn a_look_up_that_nobody_drives_is_not_waited_for() {
    let (mut world, resolver) = (World::new(), FakeResolver::new());
    let server = world.server("v1");
    let client = with_a_look_that_nobody_drives(&mut world, &resolver, &server);
    resolver.set(HOST, &["127.0.0.1"], None);
    assert_eq!(world.answers(&client), "v1");
}

#[test]
fn the_late_end_of_a_look_that_nobody_drove_breaks_no_other_off() {
    let (mut world, resolver) = (World::new(), FakeResolver::new());
    let server = world.server("v1");
    let client = with_a_look_that_nobody_drives(&mut world, &resolver, &server);
    let mut waits = client.send(get("/"));
    world.on_second(async {
        tokio::select! {
            biased;
            answer = &mut waits => panic!("nothing is known: {answer:?}"),
            () = resolver.wait_for_asked(2) => {}
        }
    });
    drop(world.first.take());
    world.on_second(async {
        tokio::task::yield_now().await;
        assert!(poll!(&mut waits).is_pending(), "another one is under way");
    });
}

#[test]
fn endpoints_that_come_once_another_runtime_looks_after_them_are_checked() {
    let mut world = World::new();
    let [one, other] = ["v1", "v2"].map(|name| world.server(name));
    let check = HealthCheck {
        probe: HealthProbe::Http(HttpProbe::get("/healthz")),
        interval: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        pace: HealthCheckPace::default(),
        port: None,
        reuse_connection: true,
    };
    let policy = Cluster { health_checks: vec![check], ..cluster("test") };
    let of = |servers: &[&EchoServer]| snapshot_with(forward_with(None), policy.clone(), servers);
    let source = FixedSource::of(TARGET, of(&[&one]));
    let client = Client::builder(source.clone()).build();
    let good = async |count: usize| {
        let all = || client.dump().destinations.into_iter().flat_map(|one| one.clusters).flat_map(|one| one.endpoints);
        let reached = async {
            while all().filter(|endpoint| endpoint.standing == Standing::Good).count() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("it is checked");
    };
    world.on_first(async {
        let _ = fetch(&client, "/").await;
        good(1).await;
    });
    world.leave_first(First::StandsStill);
    world.answers(&client);
    // Who looks after it now has looked, and waits to be woken.
    world.on_second(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    source.set_snapshot(TARGET, of(&[&one, &other]));
    world.on_second(good(2));
}

#[test]
fn health_is_looked_after_whatever_becomes_of_the_runtime_of_the_first_request() {
    for case in [First::Ends, First::StandsStill] {
        let mut world = World::new();
        let servers = ["v1", "v2", "v3"].map(|name| world.server(name));
        let outlier =
            OutlierDetection { consecutive_5xx: Some(2), max_ejected: PerMillion::ALL, ..OutlierDetection::default() };
        let policy = Cluster { outlier: Some(outlier), balancer: Balancer::RoundRobin, ..cluster("test") };
        let all: Vec<_> = servers.iter().collect();
        let client = Client::builder(FixedSource::of(TARGET, snapshot_with(forward_with(None), policy, &all))).build();
        let ejected = || {
            let clusters = client.dump().destinations.into_iter().flat_map(|destination| destination.clusters);
            clusters.flat_map(|cluster| cluster.endpoints).filter(|endpoint| !endpoint.standing.is_admitted()).count()
        };
        let send_until = |want: usize| {
            let (client, ejected) = (&client, &ejected);
            async move {
                for _ in 0..50 {
                    if ejected() == want {
                        break;
                    }
                    fetch(client, "/").await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        };
        servers[0].behave(Behaviour::Status(503));
        world.on_first(send_until(1));
        assert_eq!(ejected(), 1, "{case:?}");
        world.leave_first(case);
        world.answers(&client);
        world.on_second(tokio::task::yield_now());
        assert_eq!(ejected(), 1, "{case:?}: what was known is known");
        servers[1].behave(Behaviour::Status(503));
        world.on_second(send_until(2));
        assert_eq!(ejected(), 2, "{case:?}");
    }
}
