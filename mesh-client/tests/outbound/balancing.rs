//! Which endpoint gets a request.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, Request, Response};
use mesh_client::{Client, Io};
use mesh_core::balance::{Draw, Pick, Picker};
use mesh_core::context::{RequestContext, scope};
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, ClusterChoice, ClusterState, Discovery, Endpoint, Endpoints,
    FailureAccrual, FilterOverride, Forward, HashPolicy, HashSource, Health, HttpFilter, HttpFilterKind,
    LocalityEndpoints, PerMillion, RetryOn, RetryPolicy, RouteMatch, SessionSource, Snapshot, StatefulSession,
    WeightedCluster, WeightedClusters,
};
use mesh_testkit::clock::pass;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};
use parking_lot::Mutex;

use super::{
    TARGET, client_of, cluster, dead_address, fetch, forward_with, get, read, retrying, server_of, snapshot_with,
};

pub(super) async fn servers(names: &[&str]) -> Vec<EchoServer> {
    let mut servers = Vec::new();
    for name in names {
        servers.push(EchoServer::start(name).await);
    }
    servers
}

fn with(balancer: Balancer, forward: Forward, servers: &[EchoServer]) -> Snapshot {
    let servers: Vec<_> = servers.iter().collect();
    snapshot_with(forward, Cluster { balancer, ..cluster("test") }, &servers)
}

fn ring() -> Balancer {
    Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }
}

fn hashing(source: HashSource) -> Forward {
    Forward { hash: vec![HashPolicy { source, terminal: false }], ..forward_with(None) }
}

async fn spread(client: &Client, requests: usize) -> HashMap<String, usize> {
    let mut spread = HashMap::new();
    for _ in 0..requests {
        *spread.entry(server_of(&fetch(client, "/").await.unwrap()).to_owned()).or_default() += 1;
    }
    spread
}

#[tokio::test]
async fn requests_of_one_key_go_to_one_endpoint() {
    let servers = servers(&["a", "b", "c", "d"]).await;
    let by_user = HashSource::Header { name: HeaderName::from_static("x-user"), rewrite: None };
    for balancer in [ring(), Balancer::Maglev { table_size: 65_537 }] {
        let (client, _) = client_of(with(balancer, hashing(by_user.clone()), &servers));
        let mut owners = HashMap::new();
        for round in 0..3 {
            for user in 0..20 {
                let mut request = get("/");
                request.headers_mut().insert("x-user", user.into());
                let owner = server_of(&read(client.send(request).await.unwrap()).await.unwrap()).to_owned();
                let before = owners.entry(user).or_insert_with(|| owner.clone());
                assert_eq!(*before, owner, "user {user} in round {round}");
            }
        }
        let used: std::collections::HashSet<_> = owners.values().collect();
        assert!(used.len() > 1, "control: the users are spread");
    }
}

#[tokio::test]
async fn requests_made_for_one_caller_go_to_one_endpoint_where_policy_hashes_their_source() {
    let servers = servers(&["a", "b", "c", "d"]).await;
    for balancer in [ring(), Balancer::Maglev { table_size: 65_537 }] {
        let (client, _) = client_of(with(balancer, hashing(HashSource::SourceAddress), &servers));
        let served = |caller: Option<[u8; 4]>, port| {
            let mut context = RequestContext::from_headers(&HeaderMap::new());
            let peer = |address| PeerIdentity { spiffe_id: None, address: (address, port).into() };
            context.caller = caller.map(peer).map(Arc::new);
            Arc::new(context)
        };
        let (mut used, asked) = (HashSet::new(), http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
        for last in 0..20 {
            let caller = Some([10, 0, 0, last]);
            let mut owners = HashSet::new();
            // Another port is another connection of the same caller.
            for port in 1..4 {
                owners.extend(scope(served(caller, port), spread(&client, 2)).await.into_keys());
                assert!(scope(served(caller, port), async { client.explain(&asked).hash }).await.is_some());
            }
            assert_eq!(owners.len(), 1, "{caller:?}");
            used.extend(owners);
        }
        assert!(used.len() > 1, "control: the callers are spread");
        // Where nobody is served, or nobody knows who, the process is the source.
        let own = spread(&client, 20).await;
        assert!(own.len() == 1 && client.explain(&asked).hash.is_some());
        assert_eq!(scope(served(None, 1), spread(&client, 20)).await, own);
    }
}

#[tokio::test]
async fn a_cookie_is_made_and_brings_the_client_back() {
    let servers = servers(&["a", "b", "c", "d"]).await;
    let cookie = HashSource::Cookie { name: "sid".into(), path: "/".into(), ttl: Some(std::time::Duration::ZERO) };
    let (client, _) = client_of(with(ring(), hashing(cookie), &servers));
    let mut used = std::collections::HashSet::new();
    for _ in 0..20 {
        let response = fetch(&client, "/").await.unwrap();
        let first = server_of(&response).to_owned();
        let line = response.headers()[SET_COOKIE].to_str().unwrap();
        let pair = line.split(';').next().unwrap().to_owned();
        for _ in 0..3 {
            let mut request = get("/");
            request.headers_mut().insert(COOKIE, pair.parse().unwrap());
            let response = client.send(request).await.unwrap();
            assert_eq!(server_of(&response), first);
            assert!(!response.headers().contains_key(SET_COOKIE), "it has one");
        }
        used.insert(first);
    }
    assert!(used.len() > 1, "control: clients without a cookie are spread");
}

#[tokio::test]
async fn an_endpoint_that_fails_at_once_gets_next_to_nothing() {
    let servers = servers(&["bad", "b", "c", "d"]).await;
    servers[0].behave(Behaviour::Status(503));
    for (balancer, most, least) in
        [(Balancer::least_request(), 2, 0), (Balancer::PeakEwma, 2, 0), (Balancer::RoundRobin, 50, 50)]
    {
        let (client, _) = client_of(with(balancer.clone(), forward_with(None), &servers));
        let failed = spread(&client, 200).await.get("bad").copied().unwrap_or(0);
        assert!((least..=most).contains(&failed), "{balancer:?}: {failed} of 200 failed");
    }
}

#[tokio::test]
async fn pick_first_stays_with_the_first_and_others_share() {
    let servers = servers(&["a", "b"]).await;
    let (client, _) = client_of(with(Balancer::PickFirst { shuffle: false }, forward_with(None), &servers));
    assert_eq!(spread(&client, 20).await, HashMap::from([("a".to_owned(), 20)]));
    let (client, _) = client_of(with(Balancer::RoundRobin, forward_with(None), &servers));
    assert_eq!(spread(&client, 20).await, HashMap::from([("a".to_owned(), 10), ("b".to_owned(), 10)]), "control");
}

/// Which endpoints of a list are dialled for a request of high priority with such limits; none of them answers.
async fn dialled(limits: CircuitBreakers) -> HashSet<Address> {
    let list = [80, 81].map(|port| Address::Socket(([127, 0, 0, 1], port).into()));
    let mut first = Cluster { balancer: Balancer::PickFirst { shuffle: false }, ..cluster("test") };
    first.breaker_high = Some(limits);
    let high = Forward { high_priority: true, ..forward_with(None) };
    let endpoints = policy::endpoints(&"test".into(), list.map(Endpoint::new).into());
    let mut snapshot = snapshot_with(high, first.clone(), &[]);
    snapshot.clusters.insert("test".into(), ClusterState::Ready { cluster: first.into(), endpoints: endpoints.into() });
    let dialled = Arc::new(Mutex::new(HashSet::new()));
    let asked = dialled.clone();
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
        asked.lock().insert(address);
        std::future::pending::<std::io::Result<Box<dyn Io>>>()
    });
    let client = builder.build();
    tokio::select! {
        _ = client.send(get("/")) => panic!("there is no connection"),
        () = pass(Duration::from_secs(1)) => {}
    }
    std::mem::take(&mut *dialled.lock())
}

#[tokio::test(start_paused = true)]
async fn where_connections_for_its_priority_are_limited_a_request_has_no_other_of_its_list_dialled() {
    let limited = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
    assert_eq!(dialled(limited).await.len(), 1);
    let limited = CircuitBreakers { max_connections_per_host: Some(1), ..CircuitBreakers::default() };
    assert_eq!(dialled(limited).await.len(), 1);
    assert_eq!(dialled(CircuitBreakers::default()).await.len(), 2, "control: without a limit the next is begun");
}

#[tokio::test]
async fn a_retry_can_leave_its_priority() {
    let servers = servers(&["near", "far"]).await;
    servers[0].behave(Behaviour::Status(503));
    let retry = |next_locality, avoid_previous_hosts| RetryPolicy {
        next_locality,
        avoid_previous_hosts,
        ..retrying(1, RetryOn { gateway_error: true, ..RetryOn::default() })
    };
    let cases = [(true, "far"), (false, "near")].into_iter().flat_map(|case| [(true, case), (false, case)]);
    for (avoid, (next_locality, want)) in cases {
        for balancer in [Balancer::RoundRobin, ring()] {
            let forward = Forward { retry: Some(retry(next_locality, avoid)), ..hashing(HashSource::ChannelId) };
            let mut snapshot = with(balancer.clone(), forward, &servers);
            let group = |priority: u32| LocalityEndpoints {
                locality: Default::default(),
                priority,
                weight: NonZeroU32::MIN,
                endpoints: vec![servers[priority as usize].endpoint()],
            };
            if let Some(ClusterState::Ready { endpoints, .. }) = snapshot.clusters.get_mut(&"test".into()) {
                *endpoints =
                    Arc::new(Endpoints { localities: vec![group(0), group(1)], ..Endpoints::clone(endpoints) });
            }
            let (client, _) = client_of(snapshot);
            let server = server_of(&fetch(&client, "/").await.unwrap()).to_owned();
            assert_eq!(server, want, "next locality: {next_locality}, avoid: {avoid}, {balancer:?}");
        }
    }
}

#[tokio::test]
async fn where_a_priority_or_a_part_of_an_aggregate_cannot_be_reached_the_next_one_serves() {
    let far = EchoServer::start("far").await;
    let dead = || Endpoint::new(Address::Socket(dead_address()));
    let group = |priority: u32, endpoint| LocalityEndpoints {
        locality: Default::default(),
        priority,
        weight: NonZeroU32::MIN,
        endpoints: vec![endpoint],
    };
    let mut priorities = with(Balancer::RoundRobin, forward_with(None), std::slice::from_ref(&far));
    if let Some(ClusterState::Ready { endpoints, .. }) = priorities.clusters.get_mut(&"test".into()) {
        let localities = vec![group(0, dead()), group(1, far.endpoint())];
        *endpoints = Arc::new(Endpoints { localities, ..Endpoints::clone(endpoints) });
    }
    let discovery = Discovery::Aggregate(vec!["near".into(), "far".into()]);
    let parts = [
        (Cluster { discovery, ..super::cluster("all") }, vec![]),
        (super::cluster("near"), vec![dead()]),
        (super::cluster("far"), vec![far.endpoint()]),
    ];
    let aggregate = policy::snapshot(policy::routes([policy::route_to("all".into())]), parts);
    for snapshot in [priorities, aggregate] {
        let (client, _) = client_of(snapshot);
        assert_eq!(spread(&client, 40).await, HashMap::from([("far".to_owned(), 40)]));
    }
}

#[derive(Debug)]
struct Last(usize);

impl Picker for Last {
    fn pick(&self, _pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        self.0.checked_sub(1)
    }
}

#[tokio::test]
async fn an_application_can_bring_its_own_picker() {
    let servers = servers(&["a", "b", "c"]).await;
    let source = FixedSource::of(TARGET, with(Balancer::RoundRobin, forward_with(None), &servers));
    let client = Client::builder(source)
        .picker(|cluster, candidates, _draw| {
            (cluster.name.as_str() == "test").then(|| Box::new(Last(candidates.len())) as Box<dyn Picker>)
        })
        .build();
    assert_eq!(spread(&client, 9).await, HashMap::from([("c".to_owned(), 9)]));
    let request = Request::get(format!("http://{TARGET}/")).body(()).unwrap();
    let explained = client.explain(&request);
    let connections: Vec<_> = explained.clusters[0].cluster.endpoints.iter().map(|e| e.open_connections).collect();
    assert_eq!(connections, [0, 0, 1], "an endpoint without a request has no connection");
}

#[tokio::test]
async fn a_balancer_of_the_applications_own_serves_clusters_that_name_it_a52() {
    let servers = servers(&["a", "b", "c"]).await;
    let named = |name: &str, config: &str| {
        let balancer = Balancer::Custom { name: name.into(), config: config.into() };
        with(balancer, forward_with(None), &servers)
    };
    let build = |snapshot| {
        Client::builder(FixedSource::of(TARGET, snapshot)).balancer("ours", |config, candidates, _| match config {
            r#"{"first":true}"# => Some(Box::new(Last(1)) as Box<dyn Picker>),
            r#"{"first":false}"# => Some(Box::new(Last(candidates.len()))),
            r#"{"none":true}"# => None,
            other => panic!("{other}"),
        })
    };
    let all = HashMap::from(["a", "b", "c"].map(|name| (name.to_owned(), 3)));
    let only = |name: &str| HashMap::from([(name.to_owned(), 9)]);
    for (config, want) in [
        (r#"{"first":true}"#, only("a")),
        (r#"{"first":false}"#, only("c")),
        (r#"{"none":true}"#, all.clone()),
        ("it panics", all.clone()),
    ] {
        assert_eq!(spread(&build(named("ours", config)).build(), 9).await, want, "{config}");
    }
    // A picker of the application's own goes before.
    let own = build(named("ours", r#"{"first":true}"#)).picker(|_, _, _| Some(Box::new(Last(2)) as Box<dyn Picker>));
    assert_eq!(spread(&own.build(), 9).await, only("b"));
    // Control: clusters that name another one.
    assert_eq!(spread(&build(named("another", r#"{"first":true}"#)).build(), 9).await, all);
}

/// The snapshot with session affinity by cookie.
pub(super) fn with_sessions(mut snapshot: Snapshot, strict: bool) -> Snapshot {
    let source = SessionSource::Cookie { name: "sid".into(), path: "/app".into(), ttl: std::time::Duration::ZERO };
    let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict }));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    snapshot
}

pub(super) fn change_endpoints(snapshot: &mut Snapshot, change: impl FnOnce(&mut Vec<Endpoint>)) {
    if let Some(ClusterState::Ready { endpoints, .. }) = snapshot.clusters.get_mut(&"test".into()) {
        change(&mut Arc::make_mut(endpoints).localities[0].endpoints);
    }
}

pub(super) fn cookie_of<B>(response: &Response<B>) -> Option<String> {
    let line = response.headers().get(SET_COOKIE)?.to_str().unwrap();
    Some(line.split(';').next().unwrap().to_owned())
}

pub(super) fn pinned(cookie: &str, path: &str) -> Request<http_body_util::Empty<bytes::Bytes>> {
    let mut request = get(path);
    request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
    request
}

#[tokio::test]
async fn a_session_stays_at_its_endpoint_even_while_that_drains() {
    let servers = servers(&["a", "b", "c"]).await;
    let mut snapshot = with_sessions(with(Balancer::RoundRobin, forward_with(None), &servers), false);
    let policy = Cluster {
        override_host: vec![Health::Healthy, Health::Draining],
        balancer: Balancer::RoundRobin,
        ..cluster("test")
    };
    if let Some(ClusterState::Ready { cluster, .. }) = snapshot.clusters.get_mut(&"test".into()) {
        *cluster = Arc::new(policy);
    }
    let (client, source) = client_of(snapshot.clone());
    let first = fetch(&client, "/app").await.unwrap();
    let (owner, cookie) = (server_of(&first).to_owned(), cookie_of(&first).unwrap());
    for _ in 0..6 {
        let response = client.send(pinned(&cookie, "/app/x")).await.unwrap();
        assert_eq!((server_of(&response), cookie_of(&response)), (&*owner, None));
    }
    let elsewhere = spread_of(&client, &cookie, "/other").await;
    assert_eq!(elsewhere, 3, "control: outside of the cookie's path all take turns");

    let place = servers.iter().position(|server| server.endpoint().address.to_string() == address_in(&cookie)).unwrap();
    change_endpoints(&mut snapshot, |all| all[place].health = Health::Draining);
    source.set_snapshot(TARGET, snapshot.clone());
    settled(&client, |dump| dump.contains("draining")).await;
    assert_eq!(server_of(&client.send(pinned(&cookie, "/app")).await.unwrap()), owner);
    assert_eq!(spread_of(&client, "sid=none", "/app").await, 2, "nobody new goes there");

    change_endpoints(&mut snapshot, |all| drop(all.remove(place)));
    source.set_snapshot(TARGET, snapshot.clone());
    settled(&client, |dump| !dump.contains("draining")).await;
    let moved = client.send(pinned(&cookie, "/app")).await.unwrap();
    assert!(server_of(&moved) != owner && cookie_of(&moved).is_some_and(|new| new != cookie), "a new home");

    let (strict, _) = client_of(with_sessions(snapshot, true));
    let error = strict.send(pinned(&cookie, "/app")).await.unwrap_err();
    assert_eq!(error.http_status(), 503, "a strict session fails rather than move");
}

#[tokio::test]
async fn a_session_does_not_move_while_its_endpoint_is_on_probation_and_busy_with_another_request() {
    let servers = servers(&["a", "b"]).await;
    let mut snapshot = with_sessions(with(Balancer::RoundRobin, forward_with(None), &servers), false);
    let accrual = FailureAccrual { max_failures: 1, jitter: PerMillion::NONE, ..FailureAccrual::default() };
    if let Some(ClusterState::Ready { cluster: policy, .. }) = snapshot.clusters.get_mut(&"test".into()) {
        *policy = Arc::new(Cluster { accrual: Some(accrual), ..cluster("test") });
    }
    let (client, _) = client_of(snapshot);
    let first = fetch(&client, "/app").await.unwrap();
    let cookie = cookie_of(&first).unwrap();
    let owner = servers.iter().find(|server| server.endpoint().address.to_string() == address_in(&cookie)).unwrap();
    owner.behave(Behaviour::Status(500));
    read(client.send(pinned(&cookie, "/app")).await.unwrap()).await.unwrap();
    settled(&client, |dump| dump.contains("\"penalty\"")).await;
    let moved = client.send(pinned(&cookie, "/app")).await.unwrap();
    assert!(cookie_of(&moved).is_some(), "control: while it is out its sessions move");
    owner.behave(Behaviour::Hold);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    settled(&client, |dump| !dump.contains("\"penalty\"")).await;
    let before = owner.requests();
    let others = async {
        owner.wait_for_requests(before + 1).await;
        let other = client.send(pinned(&cookie, "/app")).await.unwrap();
        assert_eq!((server_of(&other) == server_of(&first), cookie_of(&other)), (false, None));
        owner.release();
    };
    let (probe, ()) = tokio::join!(client.send(pinned(&cookie, "/app")), others);
    assert_eq!(server_of(&probe.unwrap()), server_of(&first));
}

pub(super) fn address_in(cookie: &str) -> String {
    use base64::Engine as _;
    let value = cookie.strip_prefix("sid=").unwrap();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(value).unwrap()).unwrap()
}

/// How many servers answer twelve requests with this cookie.
async fn spread_of(client: &Client, cookie: &str, path: &str) -> usize {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..12 {
        let response = read(client.send(pinned(cookie, path)).await.unwrap()).await.unwrap();
        seen.insert(server_of(&response).to_owned());
    }
    seen.len()
}

/// Waits until what the client holds is as wanted.
pub(super) async fn settled(client: &Client, wanted: impl Fn(&str) -> bool) {
    while !wanted(&serde_json::to_string(&client.dump()).unwrap()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_session_stays_in_its_share_of_a_split() {
    let servers = servers(&["v1", "v2"]).await;
    let shares = ["v1", "v2"].map(|name| WeightedCluster::new(name.into(), 50));
    let split = ClusterChoice::Weighted(WeightedClusters::new(shares.to_vec()).unwrap());
    let routes = policy::routes([policy::forward(RouteMatch::any(), Forward { to: split, ..forward_with(None) })]);
    let clusters = [("v1", &servers[0]), ("v2", &servers[1])];
    let (client, _) = client_of(with_sessions(super::snapshot_of_clusters(routes, &clusters), false));
    let first = fetch(&client, "/app").await.unwrap();
    let cookie = cookie_of(&first).unwrap();
    assert!(address_in(&cookie).ends_with(&format!(";cluster:{}", server_of(&first))), "{}", address_in(&cookie));
    for _ in 0..20 {
        assert_eq!(server_of(&client.send(pinned(&cookie, "/app")).await.unwrap()), server_of(&first));
    }
    assert_eq!(spread_of(&client, "sid=none", "/app").await, 2, "control");
}

/// Entries have cookies of their own names, and the route either one of a third name or no sessions.
#[tokio::test]
async fn a_session_of_an_entrys_own_kind_stays_in_it_a55() {
    let servers = servers(&["v1", "v2"]).await;
    let by_cookie = |name: &str| {
        let source = SessionSource::Cookie { name: name.into(), path: "/app".into(), ttl: std::time::Duration::ZERO };
        StatefulSession { source, strict: false }
    };
    for of_route in [None, Some(by_cookie("sid"))] {
        let shares = ["v1", "v2"].map(|name| {
            let mut entry = WeightedCluster::new(name.into(), 50);
            entry.filters.insert("session".into(), Arc::new(FilterOverride::Session(by_cookie(name))));
            entry
        });
        let split = ClusterChoice::Weighted(WeightedClusters::new(shares.to_vec()).unwrap());
        let routes = policy::routes([policy::forward(RouteMatch::any(), Forward { to: split, ..forward_with(None) })]);
        let mut snapshot = super::snapshot_of_clusters(routes, &[("v1", &servers[0]), ("v2", &servers[1])]);
        let kind = HttpFilterKind::Session(of_route);
        Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
        let (client, _) = client_of(snapshot);
        for server in ["v1", "v2"] {
            let cookie = loop {
                let first = fetch(&client, "/app").await.unwrap();
                if server_of(&first) == server {
                    break cookie_of(&first).unwrap();
                }
            };
            assert!(cookie.starts_with(&format!("{server}=")), "{cookie}");
            for _ in 0..20 {
                let answer = client.send(pinned(&cookie, "/app")).await.unwrap();
                assert_eq!((server_of(&answer), cookie_of(&answer)), (server, None));
            }
            let explained = client.explain(&pinned(&cookie, "/app").map(drop));
            assert!(explained.session.is_some_and(|session| session.holds && session.cluster == Some(server.into())));
            // Control: the same said in a cookie that no entry reads.
            let (_, value) = cookie.split_once('=').unwrap();
            assert_eq!(spread_of(&client, &format!("sid={value}"), "/app").await, 2);
        }
    }
}
