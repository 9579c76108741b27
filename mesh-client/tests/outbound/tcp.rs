//! Raw connections: where they go, within which limits, to whom, and how they are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use mesh_client::{Client, ClientBuilder, DestinationPhase, Error, Io, TcpConnection};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::{Code, Fault};
use mesh_core::id::Locality;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{
    Address, Balancer, Cluster, ClusterState, ClusterTelemetry, DirectResponse, Discovery, Endpoint, Endpoints,
    Forward, HashPolicy, HashSource, Listener, LocalityEndpoints, MeshTls, OriginatedTls, RetryOn, RouteAction,
    RouteMatch, Snapshot, TcpForward, TcpShare, UpstreamTls,
};
use mesh_core::telemetry::Metrics;
use mesh_testkit::clock::pass;
use mesh_testkit::{
    Behaviour, CertificateSpec, EchoServer, FakeResolver, FixedSource, RawServer, TestCa, crypto, policy,
};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::Instant;

use super::{TARGET, client_of, cluster, dead_address, fetch, forward_with, get, retrying, snapshot_with};

const MYSQL: &str = "spiffe://cluster.local/ns/default/sa/mysql";

fn with_tcp(mut snapshot: Snapshot, tcp: TcpForward) -> Snapshot {
    snapshot.listener = Arc::new(Listener { tcp: Some(tcp), ..Listener::clone(&snapshot.listener) });
    snapshot
}

/// Raw connections to this cluster with these endpoints, of which `attempts` are tried.
fn raw(cluster: Cluster, endpoints: &[Endpoint], attempts: u32) -> Snapshot {
    let mut tcp = TcpForward::to(cluster.name.clone());
    tcp.max_connect_attempts = NonZeroU32::new(attempts).unwrap();
    with_tcp(policy::snapshot_of(cluster, endpoints.iter().cloned()), tcp)
}

fn share(name: &str, weight: u32) -> TcpShare {
    TcpShare::new(name.into(), NonZeroU32::new(weight).unwrap())
}

/// The first line that a server says.
async fn greeting(connection: TcpConnection) -> String {
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).await.unwrap();
    line.trim_end().to_owned()
}

async fn greeted(client: &Client) -> Result<String, Error> {
    Ok(greeting(client.connect(TARGET).await?).await)
}

/// Connections open and requests in flight, of all clusters.
fn gauges(client: &Client) -> (u32, u32) {
    let clusters = client.dump().destinations.into_iter().flat_map(|destination| destination.clusters);
    clusters.fold((0, 0), |(open, busy), one| {
        (open + one.open_connections, busy + one.endpoints.iter().map(|endpoint| endpoint.in_flight).sum::<u32>())
    })
}

/// What was counted: flag, destination workload's service, and opened, closed, sent, received.
fn counted(metrics: &Metrics) -> Vec<(&'static str, String, [u64; 4])> {
    let mut seen = Vec::new();
    metrics.visit_tcp(|labels, flags, series| {
        let counts = [series.opened(), series.closed(), series.sent_bytes(), series.received_bytes()];
        seen.push((flags, labels.destination_service.clone(), counts));
    });
    seen
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted_in_the_servers_words() {
    let server = RawServer::start("one").await;
    let mut named = cluster("test");
    named.telemetry = ClusterTelemetry { service: "mysql.default.svc".into(), ..ClusterTelemetry::default() };
    let metrics = Arc::<Metrics>::default();
    let source = FixedSource::of(TARGET, raw(named, &[server.endpoint()], 1));
    let client = Client::builder(source).metrics(metrics.clone()).build();

    let mut connection = client.connect(TARGET).await.unwrap();
    assert_eq!(*connection.address(), Address::Socket(server.address()));
    assert_eq!((connection.peer_id(), gauges(&client)), (None, (1, 1)));
    connection.write_all(b"hello, ").await.unwrap();
    assert_eq!(connection.write_vectored(&[std::io::IoSlice::new(b"server")]).await.unwrap(), 6);
    connection.shutdown().await.unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "one - -\nhello, server");
    let row = |closed| ("-", "mysql.default.svc".to_owned(), [1, closed, said.len() as u64, 13]);
    assert_eq!(counted(&metrics), [row(0)]);
    drop(connection);
    assert_eq!((counted(&metrics), gauges(&client)), (vec![row(1)], (0, 0)));
}

#[tokio::test]
async fn what_cannot_be_connected_is_opened_and_closed_at_once_with_the_reason() {
    let metrics = Arc::<Metrics>::default();
    let source = FixedSource::of(TARGET, policy::snapshot_to(&[dead_address()]));
    let client = Client::builder(source).metrics(metrics.clone()).build();
    let error = client.connect(TARGET).await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::CONNECT_FAILED, 1), "{error}");
    assert_eq!(counted(&metrics), [("UF", "reviews".to_owned(), [1, 1, 0, 0])]);
    assert_eq!(gauges(&client), (0, 0));
    assert_eq!(client.connect("no-port").await.unwrap_err().code(), Code::BAD_TARGET);
}

#[tokio::test]
async fn connections_are_shared_out_by_weight() {
    let servers = [("one", RawServer::start("one").await), ("two", RawServer::start("two").await)];
    let clusters = servers.iter().map(|(name, server)| (cluster(name), vec![server.endpoint()]));
    let snapshot = policy::snapshot(policy::routes([policy::route_to("one".into())]), clusters);
    let split = TcpForward::split(vec![share("one", 3), share("two", 1)]).unwrap();
    let random = Mutex::new(fastrand::Rng::with_seed(7));
    let source = FixedSource::of(TARGET, with_tcp(snapshot.clone(), split));
    let client = Client::builder(source).random(move |below| random.lock().u64(..below)).build();
    let mut seen = BTreeMap::<String, i32>::new();
    for _ in 0..400 {
        *seen.entry(greeted(&client).await.unwrap()).or_default() += 1;
    }
    // Five standard deviations of 400 draws at 3 in 4.
    assert!((seen["one - -"] - 300).abs() <= 44 && seen.len() == 2, "{seen:?}");

    // The control: without a split all go where requests go.
    let (client, _) = client_of(snapshot);
    for _ in 0..20 {
        assert_eq!(greeted(&client).await.unwrap(), "one - -");
    }
}

#[tokio::test]
async fn connections_of_one_process_stay_at_one_endpoint_where_policy_hashes_their_source() {
    let servers = [RawServer::start("one").await, RawServer::start("two").await, RawServer::start("three").await];
    let endpoints = servers.each_ref().map(RawServer::endpoint);
    let ring = Balancer::RingHash { min_size: 1024, max_size: 8 << 20 };
    for balancer in [ring, Balancer::Maglev { table_size: 65_537 }] {
        let cluster = Cluster { balancer, ..cluster("test") };
        let owner = |by_source| {
            let mut tcp = TcpForward::to(cluster.name.clone());
            tcp.by_source = by_source;
            let snapshot = with_tcp(policy::snapshot_of(cluster.clone(), endpoints.iter().cloned()), tcp);
            async move {
                let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
                client.connect(TARGET).await.unwrap();
                assert_eq!(client.explain_connect(TARGET).unwrap().hash.is_some(), by_source);
                let mut seen = BTreeSet::new();
                for _ in 0..20 {
                    seen.insert(greeted(&client).await.unwrap());
                }
                seen
            }
        };
        let mut owners = BTreeSet::new();
        for _ in 0..10 {
            let seen = owner(true).await;
            assert_eq!(seen.len(), 1, "{seen:?}");
            owners.extend(seen);
        }
        assert!(owners.len() > 1, "processes are spread: {owners:?}");
        assert!(owner(false).await.len() > 1, "control: without it a process has several");
    }
}

#[tokio::test]
async fn connections_made_for_one_caller_go_to_one_endpoint_where_policy_hashes_their_source() {
    let servers = [RawServer::start("one").await, RawServer::start("two").await, RawServer::start("three").await];
    let balancer = Balancer::RingHash { min_size: 1024, max_size: 8 << 20 };
    let hashed = Cluster { balancer, ..cluster("test") };
    let snapshot = policy::snapshot_of(hashed, servers.iter().map(RawServer::endpoint));
    let mut tcp = TcpForward::to("test".into());
    tcp.by_source = true;
    // By a listener's own word on raw connections, and by the route that they take without one.
    let mut routed = snapshot.clone();
    let hash = vec![HashPolicy { source: HashSource::SourceAddress, terminal: false }];
    let route = policy::forward(RouteMatch::any(), Forward { hash, ..Forward::to("test".into()) });
    routed.routes = policy::routes([route]).into();
    for snapshot in [with_tcp(snapshot, tcp), routed] {
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
        let served = |caller: Option<[u8; 4]>, port| {
            let mut context = RequestContext::from_headers(&http::HeaderMap::new());
            let peer = |address| PeerIdentity { spiffe_id: None, address: (address, port).into() };
            context.caller = caller.map(peer).map(Arc::new);
            Arc::new(context)
        };
        client.connect(TARGET).await.unwrap();
        let explained = async || client.explain_connect(TARGET).unwrap().hash;
        let (mut used, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for last in 0..20 {
            let mut owners = BTreeSet::new();
            // Another port is another connection of the same caller.
            for port in 1..4 {
                let context = served(Some([10, 0, 0, last]), port);
                owners.insert(scope(context.clone(), greeted(&client)).await.unwrap());
                hashes.extend(scope(context, explained()).await);
            }
            assert_eq!(owners.len(), 1, "10.0.0.{last}");
            used.extend(owners);
        }
        assert!(used.len() > 1 && hashes.len() == 20, "the callers are spread: {used:?}");
        // Where nobody is served, or nobody knows who, the process is the source.
        let own = greeted(&client).await.unwrap();
        for _ in 0..5 {
            assert_eq!(scope(served(None, 1), greeted(&client)).await.unwrap(), own);
        }
    }
}

/// Whom a client dials, in order, for a raw connection with so many attempts: the first zone has five endpoints and the
/// second one, which answers. Those of the first refuse, or say nothing.
async fn dialled(attempts: u32, refuse: bool, balancer: Balancer, one_priority: bool) -> Vec<u8> {
    let zone = |number: u32, hosts: std::ops::Range<u8>| {
        let at = |host: u8| Endpoint::new(Address::Socket(([10, 0, 0, host], 80).into()));
        LocalityEndpoints {
            locality: Locality { zone: format!("zone-{number}"), ..Locality::default() },
            priority: if one_priority { 0 } else { number },
            weight: NonZeroU32::MIN,
            endpoints: hosts.map(at).collect(),
        }
    };
    let cluster = Cluster { balancer, ..cluster("test") };
    let mut snapshot = raw(cluster.clone(), &[], attempts);
    let localities = vec![zone(0, 1..6), zone(1, 6..7)];
    let endpoints = Arc::new(Endpoints { cluster: "test".into(), localities, ..Endpoints::default() });
    snapshot.clusters.insert("test".into(), ClusterState::Ready { cluster: cluster.into(), endpoints });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let dialled = seen.clone();
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
        let host = address.to_string()["10.0.0.".len()..].split(':').next().unwrap().parse().unwrap();
        dialled.lock().push(host);
        async move {
            match host {
                6 => Ok(Box::new(tokio::io::duplex(64).0) as Box<dyn Io>),
                _ if refuse => Err(std::io::ErrorKind::ConnectionRefused.into()),
                _ => std::future::pending().await,
            }
        }
    });
    let connected = client.build().connect(TARGET).await;
    let seen = std::mem::take(&mut *seen.lock());
    assert_eq!(connected.is_ok(), seen.last() == Some(&6), "{seen:?} {connected:?}");
    seen
}

#[tokio::test(start_paused = true)]
async fn a_zone_of_which_one_does_not_answer_is_left_for_the_next_r40() {
    for balancer in [Balancer::RoundRobin, Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }] {
        let seen = dialled(2, false, balancer.clone(), false).await;
        assert_eq!((seen.len(), seen.last()), (2, Some(&6)), "{balancer:?} {seen:?}");
        // Where it has no priority of its own the first may be the last.
        let seen = dialled(2, false, balancer.clone(), true).await;
        assert_eq!(seen.last(), Some(&6), "{balancer:?} {seen:?}");
        // The controls: one attempt is in vain, and who refuses says nothing of its neighbours.
        assert_ne!(dialled(1, false, balancer.clone(), false).await, [6]);
        let mut seen = dialled(6, true, balancer, false).await;
        assert_eq!(seen.pop(), Some(6));
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4, 5], "each once");
    }
}

#[tokio::test]
async fn without_a_rule_a_connection_goes_where_a_get_of_the_root_goes() {
    let (root, other) = (RawServer::start("root").await, RawServer::start("other").await);
    let path =
        |path: &str| RouteMatch { path: mesh_core::policy::PathMatch::Exact(path.to_owned()), ..RouteMatch::any() };
    let of = |routes| {
        let clusters = [(cluster("other"), vec![other.endpoint()]), (cluster("root"), vec![root.endpoint()])];
        client_of(policy::snapshot(policy::routes(routes), clusters)).0
    };
    let to = |matcher, name: &str| policy::forward(matcher, Forward::to(name.into()));
    let client = of(vec![to(path("/api"), "other"), to(path("/"), "root"), to(RouteMatch::any(), "other")]);
    assert_eq!(greeted(&client).await.unwrap(), "root - -");

    let answers = RouteAction::DirectResponse(DirectResponse { status: 200, body: Vec::new() });
    let error = greeted(&of(vec![policy::route(path("/"), answers)])).await.unwrap_err();
    assert_eq!(error.code(), Code::UNSUPPORTED_ACTION, "{error}");
    assert_eq!(greeted(&of(vec![to(path("/api"), "other")])).await.unwrap_err().code(), Code::NO_ROUTE);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_passed_over_as_often_as_policy_says() {
    let server = RawServer::start("up").await;
    let dead = || Endpoint::new(Address::Socket(dead_address()));
    let endpoints = [dead(), dead(), server.endpoint()];
    for _ in 0..20 {
        let (client, _) = client_of(raw(cluster("test"), &endpoints, 3));
        assert_eq!(greeted(&client).await.unwrap(), "up - -");
        assert_eq!(gauges(&client).1, 0);
    }
    // The control: with one attempt a client that has not learned yet fails sooner or later.
    let once = async || greeted(&client_of(raw(cluster("test"), &endpoints, 1)).0).await;
    let mut failed = None;
    for _ in 0..200 {
        failed = once().await.err();
        if failed.is_some() {
            break;
        }
    }
    assert_eq!(failed.map(|error| (error.code(), error.attempts())), Some((Code::CONNECT_FAILED, 1)));

    // No endpoint is tried twice, however often policy would.
    let (client, _) = client_of(raw(cluster("test"), &endpoints[..2], 9));
    assert_eq!(greeted(&client).await.unwrap_err().attempts(), 2);

    // Without a rule of its own, the retries of the request's route count.
    let forward = Forward {
        retry: Some(retrying(2, RetryOn { connect_failure: true, ..RetryOn::default() })),
        ..Forward::to("test".into())
    };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    for _ in 0..20 {
        let (client, _) = client_of(policy::snapshot(routes.clone(), [(cluster("test"), endpoints.to_vec())]));
        assert_eq!(greeted(&client).await.unwrap(), "up - -");
    }
}

#[tokio::test]
async fn the_connection_limit_is_kept_to_and_its_places_come_back() {
    let server = RawServer::start("one").await;
    let limited = |most| {
        let mut limited = cluster("test");
        limited.breaker.max_connections = most;
        client_of(raw(limited, &[server.endpoint()], 3)).0
    };
    let client = limited(Some(2));
    let first = client.connect(TARGET).await.unwrap();
    let _second = client.connect(TARGET).await.unwrap();
    let error = client.connect(TARGET).await.unwrap_err();
    assert_eq!(error.code(), Code::BREAKER_OPEN, "{error}");
    assert!(error.to_string().contains("max_connections of 2"), "{error}");
    assert_eq!(gauges(&client), (2, 2));
    drop(first);
    let _third = client.connect(TARGET).await.unwrap();
    assert_eq!(client.connect(TARGET).await.unwrap_err().code(), Code::BREAKER_OPEN);

    // The control: without a limit there is room.
    let client = limited(None);
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(client.connect(TARGET).await.unwrap());
    }
    assert_eq!(gauges(&client), (5, 5));
}

/// A client whose connections never come about, and how many were begun.
fn hanging(limited: Cluster) -> (ClientBuilder, Arc<AtomicUsize>) {
    let begun = Arc::<AtomicUsize>::default();
    let count = begun.clone();
    let source =
        FixedSource::of(TARGET, raw(limited, &[Endpoint::new(Address::Socket(([203, 0, 113, 1], 1).into()))], 1));
    let builder = Client::builder(source).connector(move |_: Address| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<std::io::Result<Box<dyn Io>>>()
    });
    (builder, begun)
}

#[tokio::test(start_paused = true)]
async fn connecting_has_its_time_and_so_has_the_request_being_served() {
    let (builder, _) = hanging(cluster("test"));
    let client = builder.build();
    let error = client.connect(TARGET).await.unwrap_err();
    assert_eq!(error.code(), Code::CONNECT_TIMEOUT, "{error}");

    let mut served = RequestContext::from_headers(&http::HeaderMap::new());
    served.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(1));
    let error = scope(served.into(), client.connect(TARGET)).await.unwrap_err();
    assert_eq!((error.code(), gauges(&client)), (Code::DEADLINE, (0, 0)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_connection_are_limited_and_giving_up_frees_all() {
    for (most, code) in [(Some(1), Code::BREAKER_OPEN), (None, Code::CONNECT_TIMEOUT)] {
        let mut limited = cluster("test");
        limited.breaker.max_pending = most;
        let (builder, begun) = hanging(limited);
        let client = builder.build();
        let mut first = Box::pin(client.connect(TARGET));
        while begun.load(Ordering::Relaxed) == 0 {
            tokio::select! {
                biased;
                _ = &mut first => panic!("it hangs"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(gauges(&client), (1, 1));
        // The second one fails at once, or, without the limit, when its time is over.
        assert_eq!(client.connect(TARGET).await.unwrap_err().code(), code);
        drop(first);
        assert_eq!(gauges(&client), (0, 0));
    }
}

#[tokio::test]
async fn over_mutual_tls_both_sides_know_each_other() {
    let ca = TestCa::new();
    let server = RawServer::start_mtls("mysql", &ca.identity("default", "mysql")).await;
    let of = |cluster| {
        let source = FixedSource::of(TARGET, raw(cluster, &[server.endpoint()], 1));
        Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build()
    };
    let auto = Cluster { tls: UpstreamTls::Auto(MeshTls::default()), ..cluster("test") };
    for cluster in [policy::mtls_cluster("test", &[MYSQL]), auto.clone()] {
        let connection = of(cluster).connect(TARGET).await.unwrap();
        assert_eq!(connection.peer_id().map(ToString::to_string).as_deref(), Some(MYSQL));
        assert_eq!(greeting(connection).await, "mysql spiffe://cluster.local/ns/default/sa/web istio");
    }

    // Automatic TLS follows the endpoint: a server outside of the mesh gets plaintext, and is nobody.
    let plain = RawServer::start("plain").await;
    let source = FixedSource::of(TARGET, raw(auto, &[plain.endpoint()], 1));
    let client = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build();
    let connection = client.connect(TARGET).await.unwrap();
    assert_eq!(connection.peer_id(), None);
    assert_eq!(greeting(connection).await, "plain - -");
}

#[tokio::test]
async fn another_identity_than_expected_gets_nothing() {
    let ca = TestCa::new();
    let server = RawServer::start_mtls("impostor", &ca.identity("default", "impostor")).await;
    let of = |peers: &[&str], identity| {
        let source = FixedSource::of(TARGET, raw(policy::mtls_cluster("test", peers), &[server.endpoint()], 3));
        Client::builder(source).crypto(crypto()).identity(identity).build()
    };
    let client = of(&[MYSQL], ca.watched("default", "web"));
    let error = client.connect(TARGET).await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::WRONG_PEER_IDENTITY, 1), "{error}");
    assert_eq!((server.connections(), gauges(&client)), (0, (0, 0)));
    // The control: any peer of the mesh will do where the policy names none.
    let greeting = greeted(&of(&[], ca.watched("default", "web"))).await.unwrap();
    assert!(greeting.starts_with("impostor "), "{greeting}");

    // Without a certificate of our own nothing is sent, not even in plaintext.
    let nobody = of(&[], mesh_core::source::Watched::fixed(None));
    let before = server.connections();
    assert_eq!(nobody.connect(TARGET).await.unwrap_err().code(), Code::NO_IDENTITY);
    assert_eq!(server.connections(), before);
}

#[tokio::test]
async fn ordinary_tls_asks_for_no_protocol_and_makes_nobody_a_peer_of_the_mesh() {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["db.test".into()], uris: vec![MYSQL.into()], ..CertificateSpec::default() };
    let server = RawServer::start_tls("db", ca.server_showing(ca.certified(&spec), &[])).await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    for (sni, want) in [("db.test", Ok("db - -")), ("other.test", Err(Code::WRONG_PEER_IDENTITY))] {
        let tls = OriginatedTls {
            sni: Some(sni.to_owned()),
            auto_host_sni: false,
            subject_alt_names: Vec::new(),
            ca_file: Some(roots.path().to_str().unwrap().to_owned()),
            insecure_skip_verify: false,
        };
        let simple = Cluster { tls: UpstreamTls::Simple(tls), ..cluster("test") };
        let source = FixedSource::of(TARGET, raw(simple, &[server.endpoint()], 1));
        let client = Client::builder(source).crypto(crypto()).build();
        let got = match client.connect(TARGET).await {
            Ok(connection) => {
                assert_eq!(connection.peer_id(), None);
                Ok(greeting(connection).await)
            }
            Err(error) => Err(error.code()),
        };
        assert_eq!(got.as_deref().map_err(|code| *code), want, "{sni}");
    }
}

#[tokio::test]
async fn a_connection_outlives_its_endpoint_and_new_ones_go_elsewhere() {
    let (old, new) = (RawServer::start("old").await, RawServer::start("new").await);
    let (client, source) = client_of(raw(cluster("test"), &[old.endpoint()], 1));
    let mut connection = client.connect(TARGET).await.unwrap();
    source.set_snapshot(TARGET, raw(cluster("test"), &[new.endpoint()], 1));
    while greeted(&client).await.unwrap() != "new - -" {}
    old.wait_for_open(1).await;
    connection.write_all(b"still here").await.unwrap();
    connection.shutdown().await.unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "old - -\nstill here");
    drop(connection);
    old.wait_for_open(0).await;
    assert_eq!(gauges(&client), (0, 0));
}

#[tokio::test]
async fn a_raw_connection_is_no_request_to_circuit_breakers() {
    let server = EchoServer::start("one").await;
    let mut limited = cluster("test");
    limited.breaker.max_requests = Some(1);
    let (client, _) = client_of(raw(limited, &[server.endpoint()], 1));
    let open = [client.connect(TARGET).await.unwrap(), client.connect(TARGET).await.unwrap()];
    assert_eq!(client.dump().destinations[0].clusters[0].default_priority.requests, 0);
    server.script([Behaviour::Stall]);
    let answer = client.send(get("/")).await.unwrap();
    // The control: a request is one until its answer has ended.
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::BREAKER_OPEN);
    drop((answer, open));
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
    assert_eq!(gauges(&client).1, 0);
}

#[tokio::test]
async fn a_raw_connection_at_the_limit_leaves_requests_their_one() {
    let server = EchoServer::start("one").await;
    let mut limited = cluster("test");
    limited.breaker.max_connections = Some(1);
    let (client, _) = client_of(raw(limited, &[server.endpoint()], 1));
    let _open = client.connect(TARGET).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), fetch(&client, "/")).await.expect("it does not wait");
    assert_eq!(answer.unwrap().status(), 200);
    // The control: a second raw one has no such claim.
    assert_eq!(client.connect(TARGET).await.unwrap_err().code(), Code::BREAKER_OPEN);
}

#[tokio::test]
async fn an_endpoint_with_as_many_connections_as_it_may_have_is_passed_over() {
    let (one, two) = (RawServer::start("one").await, RawServer::start("two").await);
    let mut limited = cluster("test");
    limited.breaker.max_connections_per_host = Some(1);
    let (client, _) = client_of(raw(limited, &[one.endpoint(), two.endpoint()], 1));
    let open = [client.connect(TARGET).await.unwrap(), client.connect(TARGET).await.unwrap()];
    let error = client.connect(TARGET).await.unwrap_err();
    assert_eq!(error.code(), Code::BREAKER_OPEN, "{error}");
    assert!(error.to_string().contains("max_connections_per_host"), "{error}");
    one.wait_for_open(1).await;
    two.wait_for_open(1).await;
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn a_destination_with_an_open_connection_is_not_forgotten() {
    let server = RawServer::start("one").await;
    let source = FixedSource::of(TARGET, raw(cluster("test"), &[server.endpoint()], 1));
    let unused = Duration::from_secs(60);
    let client = Client::builder(source.clone()).forget_after(unused).build();
    let connection = client.connect(TARGET).await.unwrap();
    pass(10 * unused).await;
    assert_eq!((client.dump().destinations.len(), gauges(&client)), (1, (1, 1)));
    // The control: without the connection it goes.
    drop(connection);
    pass(unused).await;
    assert_eq!(client.dump().destinations.len(), 0);
}

#[tokio::test]
async fn a_destination_with_an_answer_under_way_is_not_forgotten_and_its_endpoint_drains() {
    let (server, other) = (EchoServer::start("one").await, EchoServer::start("other").await);
    server.behave(Behaviour::Stall);
    let (unused, drain) = (Duration::from_secs(60), Duration::from_secs(5));
    let source = FixedSource::of(TARGET, snapshot_with(forward_with(None), cluster("test"), &[&server]));
    let client = Client::builder(source.clone()).forget_after(unused).drain_limit(drain).build();
    let mut body = client.send(get("/")).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    tokio::time::pause();
    pass(10 * unused).await;
    assert_eq!((client.dump().destinations.len(), source.readers(TARGET) > 0), (1, true));
    // Its endpoint leaves: the answer has the drain limit, and no more.
    source.set_snapshot(TARGET, snapshot_with(forward_with(None), cluster("test"), &[&other]));
    assert!(body.frame().await.unwrap().is_err());
    // Its end is the last use.
    pass(unused / 2).await;
    assert_eq!(client.dump().destinations.len(), 1);
    pass(unused).await;
    assert_eq!((client.dump().destinations.len(), source.readers(TARGET)), (0, 0), "the control: nothing is under way");
}

#[tokio::test]
async fn explain_tells_where_a_connection_would_go_and_what_would_stop_it() {
    let server = RawServer::start("one").await;
    let shares = vec![share("test", 3), share("absent", 1)];
    let snapshot = with_tcp(policy::snapshot_to(&[server.address()]), TcpForward::split(shares).unwrap());
    let source = FixedSource::new();
    let client = Client::builder(source.clone()).build();
    let told = || client.explain_connect(TARGET).unwrap();

    assert_eq!(told().state, DestinationPhase::Pending);
    assert!(client.explain_connect("not a name").is_err());
    source.set_snapshot(TARGET, snapshot);
    // Something holds the configuration as soon as a connection was tried.
    while client.connect(TARGET).await.is_err() {}
    let clusters: Vec<_> = told().clusters.into_iter().map(|of| (of.cluster.name.to_string(), of.weight)).collect();
    assert_eq!(clusters, [("test".to_owned(), 3), ("absent".to_owned(), 1)]);
    // A draw like any other: one in four would go nowhere.
    let errors: BTreeMap<_, usize> = (0..200).fold(BTreeMap::new(), |mut errors, _| {
        *errors.entry(told().error.map(|error| error[..9].to_owned())).or_default() += 1;
        errors
    });
    assert_eq!(errors.keys().cloned().collect::<Vec<_>>(), [None, Some(Code::NO_CLUSTER.to_string())], "{errors:?}");

    // Without routes of their own, raw connections go where a GET goes, and so says the walk.
    let (plain, _) = client_of(policy::snapshot_to(&[server.address()]));
    plain.connect(TARGET).await.unwrap();
    let told = plain.explain_connect(TARGET).unwrap();
    assert_eq!((told.error, told.clusters.len(), told.route.is_some()), (None, 1, true));
}

/// A connection with this idle timeout to a server that echoes lines.
async fn silent_for(idle_timeout: Option<Duration>) -> (RawServer, Client, TcpConnection) {
    let server = RawServer::start("one").await;
    let mut tcp = TcpForward::to("test".into());
    tcp.idle_timeout = idle_timeout;
    let snapshot = with_tcp(policy::snapshot_of(cluster("test"), [server.endpoint()]), tcp);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
    let connection = client.connect(TARGET).await.unwrap();
    (server, client, connection)
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_policys_time_and_one_that_talks_is_not() {
    const MINUTE: Duration = Duration::from_secs(60);
    for limit in [Some(MINUTE), None] {
        let (_server, client, mut connection) = silent_for(limit).await;
        let mut first = [0; 8];
        connection.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"one - -\n");
        tokio::time::pause();
        // Bytes that it sends keep it open.
        for _ in 0..4 {
            pass(MINUTE / 2).await;
            connection.write_all(b"x").await.unwrap();
        }
        let (mut reading, writing) = tokio::io::split(connection);
        let mut bytes = [0; 1024];
        let silence = async {
            loop {
                match reading.read(&mut bytes).await {
                    Ok(0) => panic!("the server closed it"),
                    Ok(_) => {}
                    Err(error) => break error.kind(),
                }
            }
        };
        let ended = tokio::time::timeout(2 * MINUTE, silence).await;
        assert_eq!(ended.ok(), limit.map(|_| std::io::ErrorKind::TimedOut));
        drop((reading, writing));
        tokio::time::resume();
        assert_eq!(gauges(&client), (0, 0));
    }
}

#[tokio::test]
async fn a_connection_that_nobody_waits_on_is_found_closed_by_its_next_use_and_the_server_learns_of_it() {
    let (server, _client, mut connection) = silent_for(Some(Duration::from_secs(60))).await;
    tokio::time::pause();
    pass(Duration::from_secs(59)).await;
    connection.write_all(b"x").await.unwrap();
    pass(Duration::from_secs(60)).await;
    let error = connection.write_all(b"y").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(connection.read_u8().await.is_err() && connection.flush().await.is_err(), "and stays so");
    tokio::time::resume();
    let gone = server.wait_for_open(0);
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("while the connection is held");
    drop(connection);
}

/// A raw connection to a name with these addresses: how long it took, or why there is none. Whoever has an IPv6 one is silent.
async fn connected(discovery: fn(Arc<Endpoints>) -> Discovery, addresses: &[&str]) -> Result<Duration, Code> {
    let resolver = FakeResolver::new();
    resolver.set("mysql.example.com", addresses, None);
    let named = Endpoint::new(Address::Name { host: "mysql.example.com".into(), port: 3306 });
    let names = policy::endpoints(&"test".into(), vec![named]);
    let snapshot = raw(Cluster { discovery: discovery(names.into()), ..cluster("test") }, &[], 1);
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).resolver(resolver);
    let client = builder.connector(|address: Address| async move {
        match address {
            Address::Socket(address) if address.is_ipv4() => Ok(Box::new(tokio::io::duplex(64).0) as Box<dyn Io>),
            _ => std::future::pending().await,
        }
    });
    let begun = Instant::now();
    let connected = client.build().connect(TARGET).await;
    connected.map(|_| begun.elapsed()).map_err(|error| error.code())
}

#[tokio::test(start_paused = true)]
async fn a_family_that_is_silent_costs_a_raw_connection_a_quarter_of_a_second_r32() {
    for discovery in [Discovery::StrictDns, Discovery::LogicalDns] {
        let took = connected(discovery, &["::1", "127.0.0.1"]).await.unwrap();
        assert!((250..=300).contains(&took.as_millis()), "{took:?}");
        // Control: there is no other family to fall back on.
        assert_eq!(connected(discovery, &["::1"]).await, Err(Code::CONNECT_TIMEOUT));
    }
}
