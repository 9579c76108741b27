use std::collections::BTreeSet;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use mesh_core::balance::Score;
use mesh_core::policy::{
    Balancer, ClusterState, DirectResponse, Discovery, Endpoint, Endpoints, Forward, HashPolicy, HashSource,
    HttpFilter, HttpFilterKind, MeshTls, RootsTls, Route, RouteMatch, SessionSource, Snapshot, StatefulSession,
    UpstreamTls,
};
use mesh_testkit::{FixedSource, policy};

use super::*;
use crate::Client;

const TARGET: &str = "reviews:9080";

fn at(host: u8) -> Address {
    Address::Socket(([10, 0, 0, host], 80).into())
}

/// Endpoints 1 and 2, of which the second weighs three times as much, and 3, which drains; a route that hashes by
/// `x-user`.
fn snapshot(balancer: Balancer) -> Snapshot {
    let endpoint =
        |host, weight, health| Endpoint { weight: NonZeroU32::new(weight).unwrap(), health, ..Endpoint::new(at(host)) };
    let endpoints =
        vec![endpoint(1, 1, Health::Healthy), endpoint(2, 3, Health::Healthy), endpoint(3, 1, Health::Draining)];
    let source = HashSource::Header { name: HeaderName::from_static("x-user"), rewrite: None };
    let forward = Forward { hash: vec![HashPolicy { source, terminal: false }], ..Forward::to("test".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let cluster = mesh_core::policy::Cluster { balancer, ..mesh_core::policy::Cluster::new("test".into()) };
    policy::snapshot(routes, [(cluster, endpoints)])
}

fn with_sessions(mut snapshot: Snapshot, strict: bool) -> Snapshot {
    let source = SessionSource::Header(HeaderName::from_static("x-session"));
    let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict }));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    snapshot
}

async fn client(snapshot: Snapshot) -> Client {
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
    while client.explain(&request(&[])).state != DestinationPhase::Ready {
        tokio::task::yield_now().await;
    }
    client
}

fn request(headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::get(format!("http://{TARGET}/")).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Where a hundred requests like this would go.
fn picks(client: &Client, headers: &[(&'static str, &str)]) -> BTreeSet<String> {
    let pick = |_| client.explain(&request(headers)).pick.unwrap().address.to_string();
    (0..100).map(pick).collect()
}

#[tokio::test]
async fn it_shows_shares_weights_and_scores_and_who_would_be_picked() {
    let client = client(snapshot(Balancer::least_request())).await;
    let explained = client.explain(&request(&[]));
    let cluster = &explained.clusters[0].cluster;
    let [pool] = &cluster.pools[..] else { panic!("{cluster:?}") };
    assert_eq!((pool.priority, pool.share, pool.panic, pool.endpoints), (0, PerMillion::ALL, false, 2));
    let rating = |index: usize| cluster.endpoints[index].rating.map(|r| (r.weight, r.ramp, r.score));
    assert_eq!(rating(0), Some((1, 1.0, Some(Score::InFlight(0.0)))));
    assert_eq!(rating(1), Some((3, 1.0, Some(Score::InFlight(0.0)))));
    assert_eq!(rating(2), None, "nobody may pick it");
    assert_eq!(picks(&client, &[]), BTreeSet::from(["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()]));
    assert_eq!(explained.error, None);
    let raw = client.explain_connect(TARGET).unwrap();
    assert_eq!(raw.pick.unwrap().cluster, "test".into());
}

#[tokio::test]
async fn it_shows_what_keeps_a_request_from_being_sent_and_whats_beside_its_tries() {
    let hedge = HedgePolicy { initial_requests: 2, additional_request: PerMillion::NONE, on_per_try_timeout: false };
    let timeout = Some(Duration::from_secs(3));
    let forward = Forward { hedge: Some(hedge.clone()), timeout, ..Forward::to("test".into()) };
    let drops = |share| vec![DropOverload { category: "shed".into(), share }];
    let of = |max_requests, share| {
        let routes = policy::routes([policy::forward(RouteMatch::any(), forward.clone())]);
        let mut cluster = mesh_core::policy::Cluster::new("test".into());
        cluster.breaker.max_requests = max_requests;
        let mut snapshot = policy::snapshot(routes, [(cluster.clone(), Vec::new())]);
        let endpoints = policy::endpoints(&"test".into(), vec![Endpoint::new(at(1))]);
        let endpoints = Arc::new(Endpoints { drops: drops(share), ..endpoints });
        let state = ClusterState::Ready { cluster: Arc::new(cluster), endpoints };
        snapshot.clusters.insert("test".into(), state);
        snapshot
    };
    for (max_requests, share, https, code) in [
        (Some(0), PerMillion::ALL, true, Some(Code::DROPPED)),
        (Some(0), PerMillion::new(1), true, Some(Code::BREAKER_OPEN)),
        (Some(1), PerMillion::new(1), true, Some(Code::HTTPS_TO_PLAINTEXT)),
        (Some(1), PerMillion::new(1), false, None),
    ] {
        let client = client(of(max_requests, share)).await;
        let scheme = if https { "https" } else { "http" };
        let told = client.explain(&Request::get(format!("{scheme}://{TARGET}/")).body(()).unwrap());
        let start = told.error.as_deref().and_then(|error| error.split(' ').next());
        assert_eq!(start.map(str::to_owned), code.map(|code| code.to_string()), "{told:?}");
        assert_eq!((told.hedge.as_ref(), told.timeout), (Some(&hedge), timeout));
        let cluster = &told.clusters[0].cluster;
        assert_eq!((&cluster.drops, cluster.default_limits.max_requests), (&drops(share), max_requests));
    }
    // Routes that give no answer, or none to gRPC.
    let (served, direct) = (RouteAction::NonForwarding, DirectResponse { status: 200, body: Vec::new() });
    for (action, kind, fails) in [
        (served, "text/plain", true),
        (RouteAction::DirectResponse(direct.clone()), "application/grpc", true),
        (RouteAction::DirectResponse(direct), "text/plain", false),
    ] {
        let route = Route { action, ..policy::route_to("test".into()) };
        let client = client(policy::snapshot(policy::routes([route]), [])).await;
        assert_eq!(client.explain(&request(&[("content-type", kind)])).error.is_some(), fails);
    }
}

#[tokio::test]
async fn it_shows_that_there_is_nothing_to_make_connections_with() {
    let roots = RootsTls { names: Vec::new(), sni: None, instance: None };
    for (tls, strict, code) in [
        (UpstreamTls::Mesh(MeshTls::default()), true, Some(Code::NO_IDENTITY)),
        (UpstreamTls::Roots(roots), true, Some(Code::TLS_HANDSHAKE)),
        (UpstreamTls::Auto(MeshTls::default()), true, Some(Code::PLAINTEXT_TO_STRICT)),
        (UpstreamTls::Auto(MeshTls::default()), false, None),
        (UpstreamTls::Disable, true, Some(Code::PLAINTEXT_TO_STRICT)),
        (UpstreamTls::Disable, false, None),
    ] {
        let cluster = mesh_core::policy::Cluster { tls, ..mesh_core::policy::Cluster::new("test".into()) };
        let mut endpoint = Endpoint::new(at(1));
        Arc::make_mut(&mut endpoint.metadata).plaintext_refused = strict;
        let routes = policy::routes([policy::route_to("test".into())]);
        let client = client(policy::snapshot(routes, [(cluster, vec![endpoint])])).await;
        let told = client.explain(&request(&[]));
        let start = told.error.as_deref().and_then(|error| error.split(' ').next());
        assert_eq!(start.map(str::to_owned), code.map(|code| code.to_string()), "{told:?}");
    }
}

#[tokio::test]
async fn it_shows_the_endpoints_of_an_aggregate() {
    let part = |name: &str, host| {
        (mesh_core::policy::Cluster::new(name.into()), if host > 0 { vec![Endpoint::new(at(host))] } else { vec![] })
    };
    let discovery = Discovery::Aggregate(vec!["near".into(), "far".into()]);
    let all = mesh_core::policy::Cluster { discovery, ..mesh_core::policy::Cluster::new("all".into()) };
    let routes = policy::routes([policy::route_to("all".into())]);
    let client = client(policy::snapshot(routes, [part("near", 0), part("far", 2), (all, vec![])])).await;
    let told = client.explain(&request(&[]));
    let parts = &told.clusters[0].parts;
    assert_eq!(parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["near", "far"]);
    assert_eq!((parts[0].endpoints.len(), parts[1].endpoints[0].usable), (0, true));
    assert!(parts[1].endpoints[0].rating.is_some());
    assert_eq!(told.pick.unwrap().cluster, "far".into());
}

#[tokio::test]
async fn it_shows_where_a_hash_leads() {
    let client = client(snapshot(Balancer::RingHash { min_size: 1024, max_size: 1024 })).await;
    let of = |user: &str| client.explain(&request(&[("x-user", user)])).hash;
    assert!(of("a").is_some() && of("a") == of("a") && of("a") != of("b"));
    assert_eq!(picks(&client, &[("x-user", "a")]).len(), 1);
    assert_eq!((client.explain(&request(&[])).hash, picks(&client, &[]).len()), (None, 2), "control: any will do");
}

#[tokio::test]
async fn it_shows_where_a_session_is_pinned_and_whether_that_holds() {
    let client_of = |strict| client(with_sessions(snapshot(Balancer::Random), strict));
    let (loose, strict) = (client_of(false).await, client_of(true).await);
    let pinned = |host| STANDARD.encode(at(host).to_string());
    let (first, draining) = (pinned(1), pinned(3));
    for client in [&loose, &strict] {
        let session = client.explain(&request(&[("x-session", &first)])).session.unwrap();
        assert_eq!((session.address, session.holds), (at(1), true));
        assert_eq!(picks(client, &[("x-session", &first)]), BTreeSet::from(["10.0.0.1:80".to_owned()]));
        assert_eq!(picks(client, &[]).len(), 2, "control: without a session any will do");
    }
    let moved = loose.explain(&request(&[("x-session", &draining)]));
    assert!(!moved.session.unwrap().holds && moved.pick.is_some() && moved.error.is_none());
    let refused = strict.explain(&request(&[("x-session", &draining)]));
    assert!(!refused.session.unwrap().holds && refused.pick.is_none());
    assert!(refused.error.unwrap().starts_with("MESH-"), "a strict session fails rather than move");
}

/// A route with this retry policy, and endpoints 1 and 2 of the first priority and 3 of the next, 2 with the metadata
/// `canary=yes`.
fn snapshot_with(retry: RetryPolicy, timeout: Option<Duration>) -> Snapshot {
    let forward = Forward { retry: Some(retry), timeout, ..Forward::to("test".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let cluster =
        mesh_core::policy::Cluster { balancer: Balancer::Random, ..mesh_core::policy::Cluster::new("test".into()) };
    let mut canary = Endpoint::new(at(2));
    Arc::make_mut(&mut canary.metadata).lb.insert("canary".into(), "yes".into());
    let mut snapshot = policy::snapshot(routes, [(cluster.clone(), vec![Endpoint::new(at(1)), canary])]);
    let mut endpoints = policy::endpoints(&"test".into(), vec![Endpoint::new(at(1))]);
    let first = Arc::clone(match &snapshot.clusters[&ClusterName::new("test")] {
        ClusterState::Ready { endpoints, .. } => endpoints,
        ClusterState::Failed(why) => panic!("{why}"),
    });
    endpoints.localities = first.localities.clone();
    let next = policy::endpoints(&"test".into(), vec![Endpoint::new(at(3))]);
    endpoints.localities.extend(next.localities.into_iter().map(|mut group| {
        group.priority = 1;
        group.locality.zone = "far".into();
        group
    }));
    let state = ClusterState::Ready { cluster: Arc::new(cluster), endpoints: Arc::new(endpoints) };
    snapshot.clusters.insert("test".into(), state);
    snapshot
}

/// Of each retry: where it would go, among how many, and whether it was there before.
fn places(explained: &Explanation) -> Vec<(&Address, usize, bool)> {
    let retry = explained.retry.as_ref().unwrap();
    retry.places.iter().map(|place| (&place.address, place.candidates, place.repeated)).collect()
}

#[tokio::test]
async fn it_shows_where_retries_would_go() {
    let retry = |change: fn(&mut RetryPolicy)| {
        let mut retry = RetryPolicy::new(3, Default::default());
        change(&mut retry);
        retry
    };
    let explain = async |change, headers: &[(&'static str, &str)]| {
        client(snapshot_with(retry(change), None)).await.explain(&request(headers))
    };
    // Away from who was tried, as long as anybody else of the priority is left; and from the third on nobody is.
    let told = explain(|_| {}, &[]).await;
    let (first, other) = match &told.pick.as_ref().unwrap().address {
        address if *address == at(1) => (at(1), at(2)),
        _ => (at(2), at(1)),
    };
    let [second, rest @ ..] = &places(&told)[..] else { panic!("{told:?}") };
    assert_eq!(*second, (&other, 1, false));
    assert!(rest.len() == 2 && rest.iter().all(|place| place.1 == 2 && place.2), "{rest:?}");
    let place = &told.retry.as_ref().unwrap().places[0];
    assert_eq!((place.priority, &place.among), (0, &vec![other]), "and not {first}");
    // Another priority, as long as there is one that was not tried.
    let told = explain(|retry| retry.next_locality = true, &[]).await;
    let place = &told.retry.as_ref().unwrap().places[0];
    assert_eq!((&place.address, place.priority, place.locality.zone.as_str()), (&at(3), 1, "far"));
    assert_eq!((place.repeated, &place.among), (false, &vec![at(3)]));
    // Anywhere.
    let told = explain(|retry| retry.avoid_previous_hosts = false, &[]).await;
    assert!(places(&told).iter().all(|place| place.1 == 2), "{told:?}");
    // Not to a canary.
    let canary = |retry: &mut RetryPolicy| {
        retry.avoid_metadata = vec![[("canary".to_owned(), "yes".to_owned())].into()];
        retry.avoid_previous_hosts = false;
    };
    let told = explain(canary, &[]).await;
    assert!(places(&told).iter().all(|place| (place.0, place.1) == (&at(1), 1)), "{told:?}");
}

#[tokio::test]
async fn it_shows_that_retries_of_a_strict_session_stay_and_how_long_a_try_has() {
    let mut retry = RetryPolicy::new(2, Default::default());
    retry.per_try_timeout = Some(Duration::from_secs(5));
    retry.per_try_idle_timeout = Some(Duration::from_secs(1));
    for (route, time) in [(None, 5), (Some(Duration::from_secs(2)), 2), (Some(Duration::ZERO), 5)] {
        let client = client(with_sessions(snapshot_with(retry.clone(), route), true)).await;
        let told = client.explain(&request(&[("x-session", &STANDARD.encode(at(1).to_string()))]));
        assert_eq!(places(&told), [(&at(1), 1, true), (&at(1), 1, true)]);
        let told = told.retry.unwrap();
        assert_eq!(told.per_try_timeout, Some(Duration::from_secs(time)));
        assert_eq!(told.per_try_idle_timeout, Some(Duration::from_secs(1)));
    }
}
