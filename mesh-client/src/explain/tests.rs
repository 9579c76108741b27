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
