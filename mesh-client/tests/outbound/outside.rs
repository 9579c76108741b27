//! Sessions at endpoints that are outside of the part that a client uses (subsetting): one that began at another client stays where
//! it is, and nothing else goes there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{COOKIE, SET_COOKIE};
use mesh_client::{Client, EndpointDump};
use mesh_core::health::Standing;
use mesh_core::policy::{
    Address, Balancer, Cluster, Endpoint, FailureAccrual, Health, HttpFilter, HttpFilterKind, LoadReport,
    OutlierDetection, PerMillion, SessionSource, Snapshot, StatefulSession, UpstreamProtocol,
};
use mesh_core::telemetry::load::LoadStore;
use mesh_testkit::clock::pass;
use mesh_testkit::{Behaviour, EchoServer, FixedSource};

use super::balancing::{address_in, change_endpoints, cookie_of, pinned, servers, settled, with_sessions};
use super::parts::{At, BESIDE, CONNECT_TIMEOUT, Form, NEAR, PROTOCOLS, SECOND, TENTH, World, at, change, snapshot};
use super::{TARGET, cluster, fetch, forward_with, get, read, server_of, snapshot_with};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// A part of about so many.
fn part(size: u32) -> Balancer {
    Balancer::DeterministicSubsetting { size, of_each: false, child: Box::new(Balancer::RoundRobin) }
}

fn of(servers: &[EchoServer], strict: bool, policy: Cluster) -> Snapshot {
    let policy = Cluster { balancer: part(2), ..policy };
    with_sessions(snapshot_with(forward_with(None), policy, &servers.iter().collect::<Vec<_>>()), strict)
}

/// The client of this number of a fleet.
fn client(number: u64, snapshot: &Snapshot) -> (Client, Arc<FixedSource>) {
    let source = FixedSource::of(TARGET, snapshot.clone());
    (Client::builder(source.clone()).number(number).build(), source)
}

/// Where requests without a session go.
async fn own(client: &Client) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    for _ in 0..16 {
        own.insert(server_of(&fetch(client, "/app").await.unwrap()).to_owned());
    }
    own
}

/// Who answers a request with this cookie, and the cookie that it is given.
async fn sent(client: &Client, cookie: &str) -> (String, Option<String>) {
    let answer = read(client.send(pinned(cookie, "/app")).await.unwrap()).await.unwrap();
    (server_of(&answer).to_owned(), cookie_of(&answer))
}

/// What the client holds of all endpoints.
fn known(client: &Client) -> impl Iterator<Item = EndpointDump> {
    let clusters = client.dump().destinations.into_iter().flat_map(|destination| destination.clusters);
    clusters.flat_map(|cluster| cluster.endpoints)
}

/// The same of the endpoint that a cookie names.
fn held(client: &Client, cookie: &str) -> Option<EndpointDump> {
    known(client).find(|endpoint| endpoint.address.to_string() == address_in(cookie))
}

#[tokio::test]
async fn a_session_that_began_at_another_client_stays_at_an_endpoint_of_that_ones_part() {
    let servers = servers(&NAMES).await;
    for strict in [false, true] {
        let snapshot = of(&servers, strict, cluster("test"));
        let clients = [0, 1].map(|number| client(number, &snapshot).0);
        let (here, there) = (own(&clients[0]).await, own(&clients[1]).await);
        assert!(!here.is_empty() && here.is_disjoint(&there), "control: {here:?} and {there:?}");
        let first = fetch(&clients[0], "/app").await.unwrap();
        let (owner, cookie) = (server_of(&first).to_owned(), cookie_of(&first).unwrap());
        let before = held(&clients[1], &cookie).unwrap();
        assert!(before.outside && !before.usable && before.rating.is_none() && before.open_connections == 0);
        for client in &clients {
            for _ in 0..6 {
                assert_eq!(sent(client, &cookie).await, (owner.clone(), None), "strict: {strict}");
            }
        }
        let (inside, outside) = (held(&clients[0], &cookie).unwrap(), held(&clients[1], &cookie).unwrap());
        assert_eq!((inside.outside, inside.usable), (false, true));
        assert!(outside.outside && !outside.usable && outside.open_connections == 1 && outside.latency.is_some());
        for (client, outside) in clients.iter().zip([false, true]) {
            let told = client.explain(&pinned(&cookie, "/app").map(drop));
            let session = told.session.unwrap();
            assert_eq!((session.holds, session.outside), (true, outside));
            assert_eq!(told.pick.unwrap().address.to_string(), address_in(&cookie));
        }
        assert_eq!(own(&clients[1]).await, there, "without a session each stays in its part");
        assert_eq!(own(&clients[0]).await, here);
    }
}

#[tokio::test]
async fn a_session_outside_goes_by_what_is_said_of_its_endpoint_and_ends_with_it() {
    let servers = servers(&NAMES).await;
    for strict in [false, true] {
        let mut snapshot = of(&servers, strict, cluster("test"));
        let (first, _) = client(0, &snapshot);
        let cookie = cookie_of(&fetch(&first, "/app").await.unwrap()).unwrap();
        let (other, source) = client(1, &snapshot);
        let (owner, _) = sent(&other, &cookie).await;
        let place = servers.iter().position(|s| s.endpoint().address.to_string() == address_in(&cookie)).unwrap();
        let mut now = async |health: Option<Health>| {
            change_endpoints(&mut snapshot, |all| match health {
                Some(health) => all[place].health = health,
                None => drop(all.remove(place)),
            });
            source.set_snapshot(TARGET, snapshot.clone());
            settled(&other, |_| held(&other, &cookie).map(|held| held.health) == health).await;
        };
        let moves = async || match other.send(pinned(&cookie, "/app")).await {
            Ok(answer) => !strict && server_of(&answer) != owner && cookie_of(&answer).is_some(),
            Err(error) => strict && error.http_status() == 503,
        };
        now(Some(Health::Unhealthy)).await;
        assert!(moves().await, "strict: {strict}");
        now(Some(Health::Healthy)).await;
        assert_eq!(sent(&other, &cookie).await.0, owner, "control: it holds again");
        assert!(held(&other, &cookie).unwrap().open_connections > 0);
        now(None).await;
        assert!(moves().await, "strict: {strict}");
        // Of a strict one nobody else has had a request.
        settled(&other, |_| !strict || other.dump().destinations[0].clusters[0].open_connections == 0).await;
    }
}

#[tokio::test]
async fn what_requests_see_of_an_endpoint_outside_takes_it_out_for_its_sessions() {
    let servers = servers(&NAMES).await;
    let accrual = FailureAccrual { max_failures: 1, jitter: PerMillion::NONE, ..FailureAccrual::default() };
    let outlier = OutlierDetection { consecutive_5xx: Some(1), ..OutlierDetection::default() };
    for policy in
        [Cluster { accrual: Some(accrual), ..cluster("test") }, Cluster { outlier: Some(outlier), ..cluster("test") }]
    {
        let snapshot = of(&servers, false, policy);
        let (first, other) = (client(0, &snapshot).0, client(1, &snapshot).0);
        let there = own(&other).await;
        let cookie = cookie_of(&fetch(&first, "/app").await.unwrap()).unwrap();
        let (owner, _) = sent(&other, &cookie).await;
        let server = servers.iter().find(|s| s.endpoint().address.to_string() == address_in(&cookie)).unwrap();
        server.behave(Behaviour::Status(500));
        assert_eq!(sent(&other, &cookie).await, (owner.clone(), None));
        let standing = || held(&other, &cookie).unwrap().standing;
        settled(&other, |_| standing() != Standing::Good).await;
        server.behave(Behaviour::Echo);
        let (moved, renewed) = sent(&other, &cookie).await;
        assert!(there.contains(&moved) && renewed.is_some(), "{moved} of {there:?}");
        assert_eq!(own(&other).await, there);
        tokio::time::pause();
        pass(60 * SECOND).await;
        tokio::time::resume();
        settled(&other, |_| standing() == Standing::Good).await;
        assert_eq!(sent(&other, &cookie).await, (owner, None), "and back it is");
    }
}

/// The endpoints `NEAR` and `BESIDE`, each the part of one client.
fn world_of_two(protocol: UpstreamProtocol, policy: impl FnOnce(&mut Cluster)) -> Snapshot {
    let mut snapshot = snapshot(Form::Alone, forward_with(None), protocol);
    let source = SessionSource::Cookie { name: "sid".into(), path: "/".into(), ttl: Duration::ZERO };
    let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict: false }));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    change(&mut snapshot, "test", |cluster, _| {
        cluster.balancer = part(1);
        policy(cluster);
    });
    snapshot
}

/// The port that answers a request with this cookie, and how long that takes.
async fn asked(client: &Client, cookie: &str) -> (u16, Duration) {
    let mut request = get("/");
    request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
    let begun = tokio::time::Instant::now();
    let answer = read(client.send(request).await.unwrap()).await.unwrap();
    (server_of(&answer).parse().unwrap(), begun.elapsed())
}

/// Begins a session at a client.
async fn begun(client: &Client) -> (String, u16) {
    let first = fetch(client, "/").await.unwrap();
    let cookie = first.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    (cookie, server_of(&first).parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn no_session_waits_for_an_endpoint_outside_that_is_away_and_it_is_found_out_when_that_is_back() {
    for protocol in PROTOCOLS {
        let (world, snapshot) = (World::with(&[]), world_of_two(protocol, |_| {}));
        let client = |number| {
            let source = FixedSource::of(TARGET, snapshot.clone());
            world.builder(source, Some(protocol), &Arc::default()).number(number).build()
        };
        let (cookie, mine) = begun(&client(0)).await;
        let (other, elsewhere) = (client(1), NEAR + BESIDE - mine);
        assert_eq!(
            fetch(&other, "/").await.map(|answer| server_of(&answer).to_owned()).unwrap(),
            elsewhere.to_string()
        );
        world.set(mine, At::Silent);
        assert_eq!(asked(&other, &cookie).await, (elsewhere, CONNECT_TIMEOUT), "control: it is asked");
        for _ in 0..600 {
            assert_eq!(asked(&other, &cookie).await, (elsewhere, Duration::ZERO), "{protocol:?}");
            pass(TENTH).await;
        }
        assert!(world.dials(mine) > 2, "somebody looks");
        world.set(mine, At::There);
        let since = tokio::time::Instant::now();
        loop {
            let (port, took) = asked(&other, &cookie).await;
            assert_eq!(took, Duration::ZERO, "{protocol:?}");
            if port == mine {
                break;
            }
            assert!(since.elapsed() < 45 * SECOND, "{protocol:?}");
            pass(TENTH).await;
        }
        let dials = world.dials(mine);
        for _ in 0..600 {
            assert_eq!(fetch(&other, "/").await.map(|a| server_of(&a).to_owned()).unwrap(), elsewhere.to_string());
            pass(TENTH).await;
        }
        assert_eq!(world.dials(mine), dials, "nobody else's request looks");
    }
}

/// Nobody but their sessions asks for them either.
#[tokio::test(start_paused = true)]
async fn a_session_finds_out_that_an_endpoint_which_drains_is_back() {
    let mut snapshot = world_of_two(UpstreamProtocol::Http2, |cluster| {
        cluster.balancer = Balancer::RoundRobin;
        cluster.override_host = vec![Health::Healthy, Health::Draining];
    });
    let (world, protocol) = (World::with(&[]), Some(UpstreamProtocol::Http2));
    let (cookie, mine) = begun(&world.client(snapshot.clone(), protocol, &Arc::default())).await;
    let place = usize::from(mine != NEAR);
    change(&mut snapshot, "test", |_, all| all.localities[0].endpoints[place].health = Health::Draining);
    let client = world.client(snapshot, protocol, &Arc::default());
    world.set(mine, At::Silent);
    let elsewhere = NEAR + BESIDE - mine;
    assert_eq!(asked(&client, &cookie).await, (elsewhere, CONNECT_TIMEOUT), "control: it is asked");
    world.set(mine, At::There);
    let since = tokio::time::Instant::now();
    while asked(&client, &cookie).await != (mine, Duration::ZERO) {
        assert!(since.elapsed() < 45 * SECOND);
        pass(TENTH).await;
    }
}

/// Others, who come more often, pass over one that is away as well.
#[tokio::test(start_paused = true)]
async fn a_session_finds_out_however_many_others_look() {
    const THIRD: u16 = 9;
    let mut snapshot = world_of_two(UpstreamProtocol::Http2, |cluster| {
        cluster.balancer = Balancer::RoundRobin;
        cluster.override_host = vec![Health::Healthy, Health::Draining];
    });
    let (world, protocol) = (World::with(&[THIRD]), Some(UpstreamProtocol::Http2));
    let (cookie, mine) = begun(&world.client(snapshot.clone(), protocol, &Arc::default())).await;
    let place = usize::from(mine != NEAR);
    change(&mut snapshot, "test", |_, all| {
        all.localities[0].endpoints[place].health = Health::Draining;
        all.localities[0].endpoints.push(at(THIRD));
    });
    let client = world.client(snapshot, protocol, &Arc::default());
    // All that may be met is.
    join_all((0..20).map(|_| fetch(&client, "/"))).await;
    world.set(mine, At::Silent);
    let elsewhere = NEAR + BESIDE - mine;
    assert_eq!(asked(&client, &cookie).await, (elsewhere, CONNECT_TIMEOUT), "control: it is asked");
    world.set(mine, At::There);
    let since = tokio::time::Instant::now();
    loop {
        fetch(&client, "/").await.unwrap();
        if asked(&client, &cookie).await == (mine, Duration::ZERO) {
            break;
        }
        assert!(since.elapsed() < 60 * SECOND);
        pass(SECOND).await;
    }
}

#[tokio::test]
async fn who_is_ejected_is_so_for_sessions_where_its_place_is_another_clients_from_then_on() {
    let servers = servers(&NAMES).await;
    let outlier =
        OutlierDetection { consecutive_5xx: Some(1), max_ejected: PerMillion::ALL, ..OutlierDetection::default() };
    for (ejected, strict) in [(true, false), (true, true), (false, false)] {
        let policy = Cluster { outlier: ejected.then(|| outlier.clone()), ..cluster("test") };
        let mut snapshot = of(&servers, strict, policy);
        let (client, source) = client(0, &snapshot);
        let first = fetch(&client, "/app").await.unwrap();
        let (owner, cookie) = (server_of(&first).to_owned(), cookie_of(&first).unwrap());
        let server =
            servers.iter().find(|server| server.endpoint().address.to_string() == address_in(&cookie)).unwrap();
        server.behave(Behaviour::Status(500));
        assert_eq!(client.send(pinned(&cookie, "/app")).await.unwrap().status(), 500);
        settled(&client, |_| held(&client, &cookie).unwrap().standing.is_admitted() != ejected).await;
        // Of more endpoints other parts are made, until it is in another one. Nobody is there.
        for port in 1.. {
            let more = Endpoint::new(Address::Socket(([127, 0, 0, 2], port).into()));
            change_endpoints(&mut snapshot, |all| all.push(more.clone()));
            source.set_snapshot(TARGET, snapshot.clone());
            settled(&client, |_| known(&client).any(|endpoint| endpoint.address == more.address)).await;
            if held(&client, &cookie).unwrap().outside {
                break;
            }
        }
        server.behave(Behaviour::Echo);
        let answer = client.send(pinned(&cookie, "/app")).await;
        let back = answer.as_ref().is_ok_and(|answer| server_of(answer) == owner);
        assert_eq!(back, !ejected, "the control: who is not is asked");
        assert!(!strict || answer.is_err_and(|error| error.http_status() == 503));
        // And its time goes on.
        tokio::time::pause();
        pass(60 * SECOND).await;
        tokio::time::resume();
        settled(&client, |_| held(&client, &cookie).unwrap().standing.is_admitted()).await;
        assert_eq!(sent(&client, &cookie).await.0, owner);
    }
}

#[tokio::test(start_paused = true)]
async fn connections_outside_are_idle_for_as_long_as_others_and_requests_count_where_they_were_served() {
    let world = World::with(&[]);
    let snapshot = world_of_two(UpstreamProtocol::Http1, |cluster| {
        cluster.connection.idle_timeout = Some(20 * SECOND);
        cluster.load_report = Some(LoadReport { metrics: Vec::new() });
    });
    let store = Arc::<LoadStore>::default();
    let client = |number| {
        let source = FixedSource::of(TARGET, snapshot.clone());
        world.builder(source, Some(UpstreamProtocol::Http1), &Arc::default()).number(number).load(store.clone()).build()
    };
    let (cookie, mine) = begun(&client(0)).await;
    store.take(|_| true, tokio::time::Instant::now());
    let other = client(1);
    assert_eq!(asked(&other, &cookie).await.0, mine);
    let told = store.take(|_| true, tokio::time::Instant::now());
    assert_eq!(told[0].localities[0].issued, 1);
    let open = || held(&other, &cookie).unwrap().open_connections;
    assert_eq!(open(), 1, "control");
    pass(30 * SECOND).await;
    assert_eq!(open(), 0);
    assert_eq!(asked(&other, &cookie).await.0, mine);
}
