//! Endpoints that could not be connected to: others come first until a connection stands, which no request waits for. The world is that of
//! [`parts`](super::parts).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use futures_util::future::{join, join_all};
use http::header::{COOKIE, SET_COOKIE};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Balancer, Cluster, Discovery, Endpoint, EndpointMetadata, Endpoints, Forward, Health, HttpFilter, HttpFilterKind,
    PathMatch, RetryOn, RetryPolicy, RouteMatch, SessionSource, Snapshot, StatefulSession, SubsetFallback, Subsets,
    UpstreamProtocol,
};
use mesh_core::telemetry::Metrics;
use mesh_testkit::clock::pass;
use mesh_testkit::{FakeResolver, FixedSource, policy};

use super::parts::{
    At, BESIDE, CONNECT_TIMEOUT, FAR, Form, NEAR, PROTOCOLS, SECOND, TENTH, World, ask, at, change, far, greeted,
    group, one_each, raw, snapshot, until,
};
use super::{TARGET, cluster, fetch, forward_with, get, retrying, server_of};

const NONE: std::time::Duration = std::time::Duration::ZERO;

/// The endpoints of a cluster by priority.
fn priorities(name: &str, priorities: &[&[u16]]) -> Endpoints {
    let endpoints = |ports: &[u16]| ports.iter().map(|port| at(*port)).collect();
    let localities = (0..).zip(priorities).map(|(priority, ports)| group(priority, endpoints(ports)));
    Endpoints { localities: localities.collect(), ..policy::endpoints(&name.into(), vec![]) }
}

fn metrics() -> Arc<Metrics> {
    Arc::default()
}

#[tokio::test(start_paused = true)]
async fn one_of_several_that_takes_no_connection_costs_what_meets_it_first_and_nothing_else() {
    for (protocol, balancer) in PROTOCOLS.into_iter().flat_map(|protocol| {
        [Balancer::RoundRobin, Balancer::least_request(), Balancer::Random].map(|balancer| (protocol, balancer))
    }) {
        let world = World::with(&[BESIDE]);
        let mut snapshot = snapshot(Form::Alone, forward_with(None), protocol);
        change(&mut snapshot, "test", |cluster, _| cluster.balancer = balancer.clone());
        let client = world.client(snapshot, Some(protocol), &metrics());
        let first = join_all((0..20).map(|_| ask(&client))).await;
        assert!(first.iter().flatten().any(|(_, took)| *took == CONNECT_TIMEOUT), "control: some meet it");
        for number in 0..1200 {
            assert_eq!(ask(&client).await.unwrap(), (NEAR.to_string(), NONE), "{number} {protocol:?} {balancer:?}");
            pass(TENTH).await;
        }
        world.set(BESIDE, At::There);
        until(&client, BESIDE, 45 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_there_in_the_next_priority_serves_beside_others_that_are_not() {
    for (protocol, balancer) in PROTOCOLS
        .into_iter()
        .flat_map(|protocol| [Balancer::RoundRobin, Balancer::least_request()].map(|b| (protocol, b)))
    {
        let world = World::with(&[NEAR, BESIDE]);
        let mut snapshot = snapshot(Form::Priorities, forward_with(None), protocol);
        change(&mut snapshot, "test", |cluster, endpoints| {
            cluster.balancer = balancer.clone();
            *endpoints = priorities("test", &[&[NEAR], &[BESIDE, FAR]]);
        });
        let client = world.client(snapshot, Some(protocol), &metrics());
        // Until each was met.
        join_all((0..20).map(|_| ask(&client))).await;
        for number in 0..1200 {
            assert_eq!(ask(&client).await.unwrap(), far(NONE), "{number} {protocol:?} {balancer:?}");
            pass(TENTH).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_there_does_not_say_that_another_can_be_had() {
    let world = World::with(&[]);
    let client = world.client(raw(Form::Parts(1)), Some(UpstreamProtocol::Http1), &metrics());
    assert_eq!(ask(&client).await.unwrap().0, NEAR.to_string());
    world.set(NEAR, At::Refusing);
    // Of bytes of any kind, which leaves the other where it is.
    client.connect(TARGET).await.unwrap();
    let dials = world.dials(NEAR);
    for _ in 0..100 {
        assert_eq!(ask(&client).await.unwrap(), far(NONE));
        pass(TENTH).await;
    }
    assert!(world.dials(NEAR) > dials, "somebody looks");
    world.set(NEAR, At::There);
    until(&client, NEAR, 45 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn who_fails_fast_leaves_a_part_that_is_silent() {
    for protocol in PROTOCOLS {
        let world = World::with(&[NEAR]);
        let source = FixedSource::of(TARGET, snapshot(Form::Parts(1), forward_with(None), protocol));
        let builder = world.builder(source, Some(protocol), &metrics()).resolver(FakeResolver::new());
        let client = builder.fail_fast(SECOND).build();
        assert_eq!(ask(&client).await.unwrap(), far(SECOND), "{protocol:?}");
        for _ in 0..600 {
            assert_eq!(ask(&client).await.unwrap(), far(NONE), "{protocol:?}");
            pass(TENTH).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_is_not_left_for_one_that_is_silent_among_others_that_answer() {
    let protocol = UpstreamProtocol::Http1;
    let all: Vec<u16> = (100..110).collect();
    for answers in [true, false] {
        let silent = if answers { &all[..1] } else { &all[..] };
        let world = World::with(silent);
        let mut snapshot = snapshot(Form::Parts(1), forward_with(None), protocol);
        change(&mut snapshot, "near", |cluster, endpoints| {
            (cluster.balancer, *endpoints) = (Balancer::RoundRobin, priorities("near", &[&all]));
        });
        let client = world.client(snapshot, Some(protocol), &metrics());
        let others = async {
            for _ in 0..110 {
                let _ = tokio::time::timeout(TENTH, ask(&client)).await;
                pass(TENTH).await;
            }
        };
        let (waited, ()) = join(join_all((0..20).map(|_| ask(&client))), others).await;
        let waited: Vec<_> = waited.into_iter().map(Result::unwrap).filter(|(_, took)| !took.is_zero()).collect();
        assert!(
            !waited.is_empty() && waited.iter().all(|(server, _)| (*server == FAR.to_string()) != answers),
            "{waited:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_priority_that_was_away_before_the_next_part_is_asked() {
    for protocol in PROTOCOLS {
        let world = World::with(&[]);
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Refusing));
        let mut snapshot = one_each(Form::Parts(1), protocol);
        change(&mut snapshot, "near", |_, endpoints| *endpoints = priorities("near", &[&[NEAR], &[BESIDE]]));
        let client = world.client(snapshot, Some(protocol), &metrics());
        assert_eq!(ask(&client).await.unwrap(), far(NONE));
        world.set(NEAR, At::There);
        until(&client, NEAR, 45 * SECOND).await;
        for _ in 0..60 {
            assert_eq!(ask(&client).await.unwrap(), (NEAR.to_string(), NONE));
            pass(SECOND).await;
        }
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Silent));
        assert_eq!(ask(&client).await.unwrap(), far(CONNECT_TIMEOUT), "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_silence_leaves_the_part_as_well() {
    let on = RetryOn { gateway_error: true, connect_failure: true, ..RetryOn::default() };
    for protocol in PROTOCOLS {
        let world = World::with(&[NEAR]);
        let retry = RetryPolicy { per_try_idle_timeout: Some(2 * SECOND), ..retrying(2, on.clone()) };
        let form = snapshot(Form::Parts(1), forward_with(Some(retry)), protocol);
        let client = world.client(form, Some(protocol), &metrics());
        let (server, took) = ask(&client).await.unwrap();
        assert_eq!(server, FAR.to_string());
        assert!((2 * SECOND..3 * SECOND).contains(&took), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_large_part_that_is_silent_one_request_is_lost_and_not_one_for_each_endpoint() {
    let all: Vec<u16> = (100..200).collect();
    for protocol in PROTOCOLS {
        let world = World::with(&all);
        let forward = Forward { timeout: Some(3 * SECOND), ..forward_with(None) };
        let mut snapshot = snapshot(Form::Parts(1), forward, protocol);
        change(&mut snapshot, "near", |_, endpoints| *endpoints = priorities("near", &[&all]));
        let client = world.client(snapshot, Some(protocol), &metrics());
        assert_eq!(ask(&client).await.unwrap_err().code(), Code::TIMEOUT);
        let met: Vec<u16> = all.iter().copied().filter(|port| world.dials(*port) > 0).collect();
        assert_eq!(met.len(), 1);
        for _ in 0..300 {
            assert_eq!(ask(&client).await.unwrap(), far(NONE), "{protocol:?}");
            pass(TENTH).await;
        }
        // Any of them is enough, but for the one that is known.
        all.iter().filter(|port| !met.contains(port)).for_each(|port| world.set(*port, At::There));
        let mut answers = 0;
        while ask(&client).await.is_ok_and(|(server, _)| server == FAR.to_string()) {
            answers += 1;
            assert!(answers < 600, "{protocol:?}: nobody looks");
            pass(TENTH).await;
        }
    }
}

/// More than are dialled again before the first of them is due: those that are there come first.
#[tokio::test(start_paused = true)]
async fn of_very_many_that_are_silent_none_keeps_those_that_are_there_from_being_dialled() {
    let all: Vec<u16> = (100..500).collect();
    let protocol = UpstreamProtocol::Http1;
    let world = World::with(&all[..300]);
    let mut snapshot = snapshot(Form::Parts(1), forward_with(None), protocol);
    change(&mut snapshot, "near", |cluster, endpoints| {
        // In this order the first is silent.
        (cluster.balancer, *endpoints) = (Balancer::PickFirst { shuffle: false }, priorities("near", &[&all]));
    });
    let client = world.client(snapshot, Some(protocol), &metrics());
    let first = tokio::time::timeout(3 * SECOND, ask(&client)).await;
    assert!(first.is_err(), "control: it is silent");
    let begun = tokio::time::Instant::now();
    while !all[300..].iter().any(|port| world.dials(*port) > 0) {
        assert!(begun.elapsed() < 60 * SECOND, "nobody asks those that are there");
        let _ = tokio::time::timeout(SECOND, ask(&client)).await;
        pass(TENTH).await;
    }
}

/// Of a part by labels, whoever else of its cluster is there.
#[tokio::test(start_paused = true)]
async fn endpoints_that_a_route_wants_are_dialled_whoever_else_of_their_cluster_is_there() {
    const OTHER: u16 = 3;
    let stage = |stage: &str| BTreeMap::from([("stage".to_owned(), stage.to_owned())]);
    let labelled = |port, of: &str| {
        let metadata = Arc::new(EndpointMetadata { lb: stage(of), ..EndpointMetadata::default() });
        Endpoint { metadata, ..at(port) }
    };
    let forward = |of: &str| Forward { metadata_match: stage(of), ..Forward::to("test".into()) };
    let prod = RouteMatch { path: PathMatch::Exact("/prod".to_owned()), ..RouteMatch::any() };
    let routes =
        policy::routes([policy::forward(prod, forward("prod")), policy::forward(RouteMatch::any(), forward("dev"))]);
    let subsets = Subsets { fallback: SubsetFallback::Fail, selectors: vec![vec!["stage".to_owned()]] };
    let near = Cluster { subsets: Some(subsets), balancer: Balancer::RoundRobin, ..cluster("near") };
    let all = Cluster { discovery: Discovery::Aggregate(vec!["near".into(), "far".into()]), ..cluster("test") };
    // Most likely the first.
    let first = Endpoint { weight: NonZeroU32::new(1000).unwrap(), ..labelled(NEAR, "dev") };
    let endpoints = vec![first, labelled(BESIDE, "dev"), labelled(OTHER, "prod")];
    let parts = [(all, vec![]), (near, endpoints), (cluster("far"), vec![at(FAR)])];
    let world = World::with(&[NEAR]);
    let client = world.client(policy::snapshot(routes, parts), Some(UpstreamProtocol::Http1), &metrics());
    assert_eq!(server_of(&fetch(&client, "/prod").await.unwrap()), OTHER.to_string());
    assert!(tokio::time::timeout(3 * SECOND, ask(&client)).await.is_err(), "the first of the others is silent");
    assert_eq!(ask(&client).await.unwrap(), far(NONE));
    until(&client, BESIDE, 5 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_dials_beside_a_request_that_finds_out_itself() {
    for protocol in PROTOCOLS {
        let world = World::with(&[]);
        world.set(NEAR, At::Refusing);
        let mut snapshot = snapshot(Form::Alone, forward_with(None), protocol);
        change(&mut snapshot, "test", |_, endpoints| *endpoints = priorities("test", &[&[NEAR]]));
        let client = world.client(snapshot, Some(protocol), &metrics());
        ask(&client).await.unwrap_err();
        pass(60 * SECOND).await;
        world.set(NEAR, At::There);
        assert_eq!(ask(&client).await.unwrap(), (NEAR.to_string(), NONE));
        pass(SECOND).await;
        assert_eq!(world.dials(NEAR), 2, "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_elsewhere_while_its_endpoint_is_away() {
    for (protocol, draining) in PROTOCOLS.into_iter().flat_map(|protocol| [(protocol, false), (protocol, true)]) {
        let mut snapshot = snapshot(Form::Alone, forward_with(None), protocol);
        let source = SessionSource::Cookie { name: "sid".into(), path: "/".into(), ttl: NONE };
        let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict: false }));
        Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
        let world = World::with(&[]);
        let client = |snapshot: &Snapshot| world.client(snapshot.clone(), Some(protocol), &metrics());
        let pinned = fetch(&client(&snapshot), "/").await.unwrap();
        let cookie = pinned.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        let mine: u16 = server_of(&pinned).parse().unwrap();
        world.set(mine, At::Silent);
        if draining {
            // No pick gives it, and only sessions want it back.
            change(&mut snapshot, "test", |cluster, endpoints| {
                cluster.override_host.push(Health::Draining);
                let all = &mut endpoints.localities[0].endpoints;
                all.iter_mut().filter(|e| e.address == at(mine).address).for_each(|e| e.health = Health::Draining);
            });
        }
        let client = client(&snapshot);
        let sent = async || {
            let mut request = get("/");
            request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
            let begun = tokio::time::Instant::now();
            let answer = client.send(request).await.unwrap();
            (server_of(&answer).to_owned(), begun.elapsed())
        };
        let other = (NEAR + BESIDE - mine).to_string();
        assert_eq!(sent().await, (other.clone(), CONNECT_TIMEOUT), "control: it is asked");
        for _ in 0..600 {
            assert_eq!(sent().await, (other.clone(), NONE), "{protocol:?}");
            pass(TENTH).await;
        }
        world.set(mine, At::There);
        let begun = tokio::time::Instant::now();
        while sent().await != (mine.to_string(), NONE) {
            assert!(begun.elapsed() < 45 * SECOND, "nobody looks for it: {protocol:?}, draining {draining}");
            pass(TENTH).await;
        }
    }
}

/// What is known of them is old: they have had no connection for a while.
#[tokio::test(start_paused = true)]
async fn a_part_whose_idle_endpoints_fall_silent_keeps_no_request_for_each() {
    let all: Vec<u16> = (100..110).collect();
    for protocol in PROTOCOLS {
        let world = World::with(&[]);
        world.set(all[0], At::Refusing);
        let mut snapshot = one_each(Form::Parts(1), protocol);
        change(&mut snapshot, "near", |cluster, endpoints| {
            (cluster.balancer, *endpoints) = (Balancer::RoundRobin, priorities("near", &[&all]));
        });
        let client = world.client(snapshot, Some(protocol), &metrics());
        join_all((0..20).map(|_| ask(&client))).await;
        assert!(all.iter().all(|port| world.dials(*port) > 0), "control: all were met");
        idle().await;
        all.iter().for_each(|port| world.set(*port, At::Silent));
        for _ in 0..100 {
            assert_eq!(ask(&client).await.unwrap(), far(NONE), "{protocol:?}");
            pass(TENTH).await;
        }
        all.iter().for_each(|port| world.set(*port, At::There));
        let begun = tokio::time::Instant::now();
        while ask(&client).await.unwrap() == far(NONE) {
            assert!(begun.elapsed() < 45 * SECOND, "{protocol:?}: nobody looks");
            pass(TENTH).await;
        }
    }
    // Raw connections, too.
    let world = World::with(&[]);
    world.set(all[0], At::Refusing);
    let mut snapshot = raw(Form::Parts(1));
    change(&mut snapshot, "near", |cluster, endpoints| {
        (cluster.balancer, *endpoints) = (Balancer::RoundRobin, priorities("near", &[&all]));
    });
    let client = world.client(snapshot, None, &metrics());
    for _ in 0..20 {
        assert_ne!(greeted(&client).await.unwrap().0, FAR);
    }
    idle().await;
    all.iter().for_each(|port| world.set(*port, At::Silent));
    for _ in 0..100 {
        assert_eq!(greeted(&client).await.unwrap(), (FAR, NONE));
        pass(TENTH).await;
    }
}

/// So long that nobody knows any more who is there.
async fn idle() {
    for _ in 0..40 {
        pass(10 * SECOND).await;
    }
}

/// Beside one that is away for good: its connections are closed long before the next request comes.
#[tokio::test(start_paused = true)]
async fn who_is_asked_seldom_stays_with_a_part_that_is_there() {
    for protocol in PROTOCOLS {
        let world = World::with(&[]);
        world.set(NEAR, At::Refusing);
        let mut snapshot = one_each(Form::Parts(2), protocol);
        change(&mut snapshot, "near", |cluster, _| cluster.balancer = Balancer::RoundRobin);
        let client = world.client(snapshot, Some(protocol), &metrics());
        for _ in 0..20 {
            assert_eq!(ask(&client).await.unwrap(), (BESIDE.to_string(), NONE), "{protocol:?}");
            pass(120 * SECOND).await;
        }
        // The control.
        idle().await;
        assert_eq!(ask(&client).await.unwrap(), far(NONE), "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_goes_to_who_was_tried_rather_than_to_who_is_away() {
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let nobodys = vec![BTreeMap::from([("stage".to_owned(), "old".to_owned())])];
    for (protocol, avoid_metadata) in PROTOCOLS.into_iter().flat_map(|p| [(p, vec![]), (p, nobodys.clone())]) {
        let world = World::with(&[BESIDE]);
        let forward = forward_with(Some(RetryPolicy { avoid_metadata, ..retrying(2, on.clone()) }));
        let client = world.client(snapshot(Form::Alone, forward, protocol), Some(protocol), &metrics());
        let met = join_all((0..20).map(|_| ask(&client))).await;
        assert!(met.iter().flatten().any(|(_, took)| *took == CONNECT_TIMEOUT), "control: it is silent");
        // Another attempt at it is due.
        pass(60 * SECOND).await;
        let begun = tokio::time::Instant::now();
        let answer = fetch(&client, "/503").await.unwrap();
        assert_eq!((answer.status().as_u16(), server_of(&answer)), (503, &*NEAR.to_string()));
        assert!(begun.elapsed() < SECOND, "{protocol:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn dials_take_few_of_the_connections_that_there_may_be() {
    let all: Vec<u16> = (100..200).collect();
    for (max_connections, most) in [(Some(20), 5), (Some(1), 4), (None, 32)] {
        let world = World::with(&all);
        let mut snapshot = snapshot(Form::Parts(1), forward_with(None), UpstreamProtocol::Http1);
        change(&mut snapshot, "near", |cluster, endpoints| {
            *endpoints = priorities("near", &[&all]);
            cluster.breaker.max_connections = max_connections;
        });
        let client = world.client(snapshot, Some(UpstreamProtocol::Http1), &metrics());
        assert_eq!(ask(&client).await.unwrap(), far(CONNECT_TIMEOUT));
        for _ in 0..20 {
            assert_eq!(ask(&client).await.unwrap(), far(NONE));
            pass(TENTH).await;
        }
        let dials: usize = all.iter().map(|port| world.dials(*port)).sum();
        assert_eq!(dials, 1 + most, "of {max_connections:?}");
    }
}
