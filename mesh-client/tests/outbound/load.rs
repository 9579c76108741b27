//! Balancing by what endpoints say of their load: ORCA with answers and on streams (gRFC A51, A58, A85), Prequal's
//! probes.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::poll;
use futures_util::stream::FuturesUnordered;
use http::HeaderName;
use mesh_client::{Client, ClientBuilder};
use mesh_core::balance::{Candidates, Draw, EndpointReport, Pick, Picker};
use mesh_core::orca::{PROBE_PATH, STREAM_PATH};
use mesh_core::policy::{
    Balancer, Cluster, ConnectionOptions, HttpFilter, HttpFilterKind, LoadReport, Prequal, SessionSource,
    StatefulSession, UpstreamProtocol, WeightedRoundRobin,
};
use mesh_core::telemetry::load::LoadStore;
use mesh_testkit::{Behaviour, EchoServer, FixedSource};

use super::{TARGET, client_of, cluster, fetch, forward_with, get, read, snapshot_with};

/// Three times as busy as [`IDLE`] with as many requests.
const BUSY: Behaviour = Behaviour::Reporting("rps_fractional=100,application_utilization=0.75");
const IDLE: Behaviour = Behaviour::Reporting("rps_fractional=100,application_utilization=0.25");

fn weighted(out_of_band: bool) -> Balancer {
    Balancer::WeightedRoundRobin(WeightedRoundRobin {
        out_of_band,
        blackout_period: Duration::ZERO,
        ..WeightedRoundRobin::default()
    })
}

async fn two(behaviours: [Behaviour; 2]) -> [EchoServer; 2] {
    let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
    for (server, behaviour) in servers.iter().zip(behaviours) {
        server.behave(behaviour);
    }
    servers
}

fn client(cluster: Cluster, servers: &[EchoServer; 2]) -> Client {
    client_of(snapshot_with(forward_with(None), cluster, &[&servers[0], &servers[1]])).0
}

/// Requests of the application that the server got.
fn served(server: &EchoServer) -> usize {
    of_path(server, "/")
}

fn of_path(server: &EchoServer, path: &str) -> usize {
    server.received().iter().filter(|request| request.uri.path() == path).count()
}

/// How many of so many requests each server gets.
async fn shares(client: &Client, servers: &[EchoServer; 2], requests: usize) -> [usize; 2] {
    let before = servers.each_ref().map(served);
    for _ in 0..requests {
        fetch(client, "/").await.unwrap();
    }
    [0, 1].map(|index| served(&servers[index]) - before[index])
}

/// Time for weights to be taken over.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

const UPDATE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a58_weights_follow_the_reports_in_answers() {
    for (behaviours, balancer, want) in [
        ([BUSY, IDLE], weighted(false), [100, 300]),
        // Controls.
        ([Behaviour::Echo, Behaviour::Echo], weighted(false), [200, 200]),
        ([BUSY, IDLE], Balancer::RoundRobin, [200, 200]),
    ] {
        let servers = two(behaviours).await;
        let client = client(Cluster { balancer: balancer.clone(), ..cluster("test") }, &servers);
        assert_eq!(shares(&client, &servers, 20).await, [10, 10], "nothing is known yet");
        pass(UPDATE).await;
        let [a, b] = shares(&client, &servers, 400).await;
        assert!(a.abs_diff(want[0]) <= 2 && b.abs_diff(want[1]) <= 2, "{balancer:?}: {a} and {b}");
    }
}

#[tokio::test]
async fn a58_weights_are_not_used_in_the_blackout() {
    let servers = two([BUSY, IDLE]).await;
    let balancer = Balancer::WeightedRoundRobin(WeightedRoundRobin::default());
    let client = client(Cluster { balancer, ..cluster("test") }, &servers);
    shares(&client, &servers, 20).await;
    pass(UPDATE).await;
    assert_eq!(shares(&client, &servers, 40).await, [20, 20], "ten seconds have not passed");
    pass(Duration::from_secs(10)).await;
    let [a, b] = shares(&client, &servers, 400).await;
    assert!(a.abs_diff(100) <= 2 && b.abs_diff(300) <= 2, "{a} and {b}");
}

/// How 400 requests are shared out, to within a few.
fn expect_shares([a, b]: [usize; 2], want: [usize; 2], what: &str) {
    assert!(a.abs_diff(want[0]) <= 3 && b.abs_diff(want[1]) <= 3, "{what}: {a} and {b}");
}

#[tokio::test]
async fn a58_the_blackout_begins_anew_with_a_connection_after_the_last_one_is_gone() {
    for (protocol, ends) in [
        (UpstreamProtocol::Http1, Behaviour::CloseConnection),
        (UpstreamProtocol::Http1, Behaviour::Leave),
        (UpstreamProtocol::Http2, Behaviour::CloseConnection),
        // With an answer under way over it, so that it stays for that.
        (UpstreamProtocol::Http2, Behaviour::Leave),
    ] {
        let servers = two([BUSY, IDLE]).await;
        let balancer = Balancer::WeightedRoundRobin(WeightedRoundRobin::default());
        let mut policy = Cluster { balancer, ..cluster("test") };
        policy.connection.protocol = protocol;
        let client = client(policy, &servers);
        shares(&client, &servers, 20).await;
        pass(Duration::from_secs(12)).await;
        expect_shares(shares(&client, &servers, 400).await, [100, 300], "control");

        servers[0].script([Behaviour::Stall, ends]);
        let asked = servers[0].requests();
        let mut under_way = Vec::new();
        while servers[0].requests() < asked + 2 {
            // One is cut off by the end of its connection.
            under_way.extend(client.send(get("/")).await);
        }
        let what = format!("{protocol:?}, {ends:?}");
        if (protocol, ends) != (UpstreamProtocol::Http2, Behaviour::Leave) {
            // Over HTTP/1.1 it was another connection, which stands.
            under_way.clear();
        }
        pass(UPDATE).await;
        shares(&client, &servers, 20).await;
        pass(UPDATE).await;
        expect_shares(shares(&client, &servers, 400).await, [200, 200], &what);
        pass(Duration::from_secs(10)).await;
        expect_shares(shares(&client, &servers, 400).await, [100, 300], &what);
    }
}

#[tokio::test]
async fn a58_a_further_connection_begins_no_blackout() {
    let servers = two([BUSY, IDLE]).await;
    let balancer = Balancer::WeightedRoundRobin(WeightedRoundRobin::default());
    let client = client(Cluster { balancer, ..cluster("test") }, &servers);
    shares(&client, &servers, 20).await;
    pass(Duration::from_secs(12)).await;
    expect_shares(shares(&client, &servers, 400).await, [100, 300], "control");
    let connections = servers[0].connections();
    servers[0].script([Behaviour::Stall]);
    let (asked, mut under_way) = (servers[0].requests(), Vec::new());
    while servers[0].requests() == asked {
        under_way.extend(client.send(get("/")).await);
    }
    pass(UPDATE).await;
    expect_shares(shares(&client, &servers, 400).await, [100, 300], "one of two is new");
    assert_eq!(servers[0].connections(), connections + 1);
    servers[0].script([Behaviour::CloseConnection]);
    // Over a connection that was there, the request goes once more over another one.
    while servers[0].connections() < connections + 2 {
        fetch(&client, "/").await.unwrap();
    }
    pass(UPDATE).await;
    expect_shares(shares(&client, &servers, 400).await, [100, 300], "one of two has another in its place");
}

#[tokio::test]
async fn a51_reports_come_in_the_trailers_of_grpc() {
    let servers = two([BUSY, IDLE]).await;
    let client = client(Cluster { balancer: weighted(false), ..cluster("test") }, &servers);
    let call = || async {
        let mut request = get("/");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        read(client.send(request).await.unwrap()).await.unwrap();
    };
    for _ in 0..4 {
        call().await;
    }
    pass(UPDATE).await;
    for _ in 0..400 {
        call().await;
    }
    let [a, b] = servers.each_ref().map(served);
    assert!(a.abs_diff(102) <= 2 && b.abs_diff(302) <= 2, "{a} and {b}");
}

#[tokio::test]
async fn a58_out_of_band_reports_come_on_a_stream_of_each_endpoint() {
    for protocol in [UpstreamProtocol::Http2, UpstreamProtocol::Http1] {
        let servers = two([BUSY, IDLE]).await;
        let mut cluster = Cluster { balancer: weighted(true), ..cluster("test") };
        cluster.connection.protocol = protocol;
        // Which the stream must not use up.
        cluster.breaker.max_connections = Some(1);
        let client = client(cluster, &servers);
        shares(&client, &servers, 2).await;
        for server in &servers {
            server.wait_for_requests(2).await;
        }
        let asked = servers[0].received().into_iter().find(|request| request.uri.path() == STREAM_PATH).unwrap();
        let period = mesh_core::orca::decode_request(&asked.body[5..]);
        assert_eq!(period, Some(Duration::from_secs(10)), "the default period");
        let balanced = async {
            loop {
                pass(UPDATE).await;
                let [a, b] = shares(&client, &servers, 400).await;
                if a.abs_diff(100) <= 2 && b.abs_diff(300) <= 2 {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), balanced).await.expect("weights as reported");
        assert_eq!(servers.each_ref().map(|server| of_path(server, STREAM_PATH)), [1, 1], "{protocol:?}: one each");
    }
}

#[tokio::test]
async fn a58_out_of_band_looks_at_no_answers_and_asks_again_in_half_a_minute_where_it_is_unimplemented() {
    let servers = two([BUSY, IDLE]).await;
    for server in &servers {
        // For a request and for the stream, whichever comes first.
        server.script([Behaviour::Grpc(12), Behaviour::Grpc(12)]);
    }
    let client = client(Cluster { balancer: weighted(true), ..cluster("test") }, &servers);
    shares(&client, &servers, 2).await;
    for server in &servers {
        server.wait_for_requests(2).await;
    }
    let asked = || servers.each_ref().map(|server| of_path(server, STREAM_PATH));
    for _ in 0..14 {
        pass(UPDATE).await;
        assert_eq!(shares(&client, &servers, 20).await, [10, 10], "answers have reports, which do not count");
    }
    assert_eq!(asked(), [1, 1], "not asked again for 30 s");
    pass(UPDATE).await;
    let heard = async {
        while asked() != [2, 2] || shares(&client, &servers, 400).await == [200, 200] {
            pass(UPDATE).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), heard).await.expect("they have it now");
    expect_shares(shares(&client, &servers, 400).await, [100, 300], "as they say");
}

/// A stream that stayed would keep its connection, and with it a server that waits for what is open before it goes.
#[tokio::test]
async fn a_stream_leaves_a_connection_that_is_to_end_and_is_begun_again_over_another_one() {
    let max_age = Duration::from_secs(60);
    for (leaves, protocol) in [
        (true, UpstreamProtocol::Http2),
        (false, UpstreamProtocol::Http2),
        // Whose streams have connections of their own.
        (false, UpstreamProtocol::Http1),
    ] {
        let servers = two([IDLE, IDLE]).await;
        let mut policy = Cluster { balancer: weighted(true), ..cluster("test") };
        policy.connection.protocol = protocol;
        policy.connection.max_age = (!leaves).then_some(max_age);
        let client = client(policy, &servers);
        let streams = || servers.each_ref().map(|server| of_path(server, STREAM_PATH));
        let wait = async |what: &str, step: Duration, there: &dyn Fn() -> bool| {
            let wait = async {
                while !there() {
                    pass(step).await;
                    fetch(&client, "/").await.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(600), wait).await.unwrap_or_else(|_| panic!("{what}"));
        };
        wait("the first streams", Duration::ZERO, &|| streams() == [1, 1]).await;
        if leaves {
            servers.iter().for_each(|server| server.script([Behaviour::Leave]));
        }
        wait("the next streams", Duration::from_millis(200), &|| streams() == [2, 2]).await;
        if protocol == UpstreamProtocol::Http2 {
            let open = || client.dump().destinations[0].clusters[0].open_connections;
            wait("the former connections are closed", Duration::from_millis(200), &|| open() == 2).await;
        }
        assert!(servers.iter().all(|server| server.connections() >= 2));
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_begun_again_after_a_wait() {
    let servers = two([IDLE, IDLE]).await;
    servers[0].script([Behaviour::Echo, Behaviour::CloseConnection]);
    let client = client(Cluster { balancer: weighted(true), ..cluster("test") }, &servers);
    // The request finds its connection; the stream makes one, so it comes second.
    client.warm(TARGET).await.unwrap();
    shares(&client, &servers, 2).await;
    servers[0].wait_for_requests(2).await;
    let again = async {
        while of_path(&servers[0], STREAM_PATH) < 2 {
            pass(Duration::from_millis(200)).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3600), again).await.expect("it is asked again");
}

#[tokio::test]
async fn streams_end_with_the_client() {
    let servers = two([IDLE, IDLE]).await;
    let client = client(Cluster { balancer: weighted(true), ..cluster("test") }, &servers);
    shares(&client, &servers, 2).await;
    servers[0].wait_for_requests(2).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    drop(client);
    // What is left are the servers' tasks; those of the client would keep their connections open.
    servers[0].release();
    while metrics.num_alive_tasks() > 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a85_metrics_that_policy_names_go_to_the_control_plane() {
    let report =
        Behaviour::Reporting("cpu_utilization=0.5,mem_utilization=0.25,named_metrics.queue=3,named_metrics.x=1");
    let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (metrics, want) in [
        (wanted(&[]), vec![]),
        (
            wanted(&["named_metrics.queue", "mem_utilization"]),
            vec![("mem_utilization", 1.0), ("named_metrics.queue", 12.0)],
        ),
        (wanted(&["named_metrics.*"]), vec![("named_metrics.queue", 12.0), ("named_metrics.x", 4.0)]),
    ] {
        let servers = two([report, report]).await;
        let cluster = Cluster { load_report: Some(LoadReport { metrics }), ..cluster("test") };
        let snapshot = snapshot_with(forward_with(None), cluster, &[&servers[0], &servers[1]]);
        let store = Arc::<LoadStore>::default();
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).load(store.clone()).build();
        for _ in 0..4 {
            fetch(&client, "/").await.unwrap();
        }
        let told = store.take(|_| true, tokio::time::Instant::now());
        let metrics = &told[0].localities[0].metrics;
        let sums: Vec<_> = metrics.iter().map(|(name, metric)| (name.as_str(), metric.sum)).collect();
        assert_eq!(sums, want);
        assert!(metrics.values().all(|metric| metric.requests == 4));
    }
}

/// One that goes by what it hears: to whom says the least of the processor, and to who has said nothing first.
#[derive(Debug)]
struct Hearing(Vec<AtomicU64>);

impl Hearing {
    fn over(candidates: &Candidates) -> Option<Box<dyn Picker>> {
        Some(Box::new(Self(candidates.iter().map(|_| AtomicU64::new(0)).collect())))
    }
}

impl Picker for Hearing {
    fn pick(&self, _pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        (0..self.0.len()).min_by_key(|index| self.0[*index].load(Ordering::Relaxed))
    }

    fn hear(&self, index: usize, report: &EndpointReport, _now: Duration) {
        self.0[index].store((report.cpu * 1e6) as u64, Ordering::Relaxed);
    }
}

type Adjust = fn(ClientBuilder) -> ClientBuilder;

#[tokio::test]
async fn pickers_of_the_applications_own_hear_what_answers_say_of_load() {
    let named = Balancer::Custom { name: "mine".into(), config: "{}".into() };
    let plain = |client: ClientBuilder| client;
    let by_name = |client: ClientBuilder| client.balancer("mine", |_, candidates, _| Hearing::over(candidates));
    let for_all = |client: ClientBuilder| client.picker(|_, candidates, _| Hearing::over(candidates));
    let (busy, idle) = (Behaviour::Reporting("cpu_utilization=0.9"), Behaviour::Reporting("cpu_utilization=0.2"));
    let rows: [(Balancer, Adjust, [usize; 2]); 5] = [
        (named.clone(), by_name, [1, 21]),
        (Balancer::RoundRobin, for_all, [1, 21]),
        (weighted(true), for_all, [1, 21]),
        // Controls.
        (Balancer::RoundRobin, by_name, [11, 11]),
        (named, plain, [11, 11]),
    ];
    for grpc in [false, true] {
        for (balancer, adjust, want) in rows.clone() {
            let servers = two([busy, idle]).await;
            let policy = Cluster { balancer: balancer.clone(), ..cluster("test") };
            let snapshot = snapshot_with(forward_with(None), policy, &[&servers[0], &servers[1]]);
            let client = adjust(Client::builder(FixedSource::of(TARGET, snapshot))).build();
            for _ in 0..22 {
                let mut request = get("/");
                if grpc {
                    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                }
                read(client.send(request).await.unwrap()).await.unwrap();
            }
            assert_eq!(servers.each_ref().map(served), want, "{balancer:?}, gRPC {grpc}");
        }
    }
}

/// Full, and slow with it; others put that load on it.
const LOADED: Behaviour = Behaviour::Reporting("named_metrics.mesh.in_flight=40,named_metrics.mesh.latency=0.5");
const FREE: Behaviour = Behaviour::Reporting("named_metrics.mesh.in_flight=1,named_metrics.mesh.latency=0.01");

fn prequal() -> Balancer {
    Balancer::Prequal(Prequal::default())
}

/// Sends batches until one of them keeps away from the first server; false if none of them does.
async fn is_avoided(client: &Client, servers: &[EchoServer; 2]) -> bool {
    for _ in 0..20 {
        if shares(client, servers, 50).await == [0, 50] {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn prequal_keeps_away_from_an_endpoint_that_others_load() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let servers = two([LOADED, FREE]).await;
        let mut policy = Cluster { balancer: prequal(), ..cluster("test") };
        policy.connection.protocol = protocol;
        assert!(is_avoided(&client(policy, &servers), &servers).await, "{protocol:?}");
        assert!(of_path(&servers[0], PROBE_PATH) > 0, "it was asked");
    }
    // Control: going by its own requests in flight only, this client sees no difference.
    let servers = two([LOADED, FREE]).await;
    let client = client(Cluster { balancer: Balancer::least_request(), ..cluster("test") }, &servers);
    assert!(!is_avoided(&client, &servers).await);
    assert_eq!(of_path(&servers[0], PROBE_PATH), 0, "and asks nobody");
}

#[tokio::test]
async fn prequal_asks_endpoints_that_know_no_probes_once_in_half_a_minute() {
    let servers = two([Behaviour::Echo, Behaviour::Echo]).await;
    let client = client(Cluster { balancer: prequal(), ..cluster("test") }, &servers);
    while servers.iter().any(|server| of_path(server, PROBE_PATH) == 0) {
        fetch(&client, "/").await.unwrap();
    }
    shares(&client, &servers, 200).await;
    assert_eq!(servers.each_ref().map(|server| of_path(server, PROBE_PATH)), [1, 1]);
    pass(Duration::from_secs(31)).await;
    while servers.iter().any(|server| of_path(server, PROBE_PATH) < 2) {
        fetch(&client, "/").await.unwrap();
    }
}

#[tokio::test]
async fn a_probe_takes_no_connection_from_requests_that_wait_for_one() {
    let servers = two([FREE, FREE]).await;
    let mut policy = Cluster { balancer: prequal(), ..cluster("test") };
    policy.breaker.max_connections_per_host = Some(1);
    let mut snapshot = snapshot_with(forward_with(None), policy, &[&servers[0], &servers[1]]);
    let source = SessionSource::Header(HeaderName::from_static("x-session"));
    let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict: true }));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    let (client, _) = client_of(snapshot);
    // All of them to the first.
    let pinned = STANDARD.encode(servers[0].address().to_string());
    let fetch = async |path: &str| {
        let mut request = get(path);
        request.headers_mut().insert("x-session", pinned.parse().unwrap());
        read(client.send(request).await?).await
    };
    servers[0].script([Behaviour::Hold]);
    let mut first = pin!(fetch("/first"));
    tokio::select! {
        biased;
        _ = &mut first => unreachable!("it is held"),
        () = servers[0].wait_for_requests(1) => {}
    }
    let mut next = pin!(fetch("/next"));
    assert!(poll!(&mut next).is_pending());
    servers[0].release();
    first.await.unwrap();
    // The connection is free; the next one was told and has not run. These stand behind, and have probes sent to both: as many
    // as it takes, for an endpoint that has not answered an earlier probe is sent none.
    let mut last = FuturesUnordered::new();
    let asked = servers[1].requests();
    while servers[1].requests() == asked {
        last.push(fetch("/last"));
        assert!(poll!(last.next()).is_pending());
        tokio::task::yield_now().await;
    }
    let (next, last) = tokio::join!(next, last.collect::<Vec<_>>());
    assert!(next.is_ok() && last.iter().all(Result::is_ok));
    let paths: Vec<_> = servers[0].received().iter().map(|request| request.uri.path().to_owned()).collect();
    assert_eq!(paths[..2], ["/first", "/next"]);
}

/// A runtime that ends takes the tasks on it along; the client is still there.
#[test]
fn asking_for_load_goes_on_where_another_runtime_uses_the_client() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let home = runtime();
    for (balancer, path) in [(prequal(), PROBE_PATH), (weighted(true), STREAM_PATH)] {
        let servers = home.block_on(two([IDLE, IDLE]));
        let http2 = Cluster { balancer, ..cluster("test") };
        let connection = ConnectionOptions { protocol: UpstreamProtocol::Http2, ..ConnectionOptions::default() };
        let client = client(Cluster { connection, ..http2 }, &servers);
        for round in 1..=2 {
            // The control is the first round; in the second, what the first began has ended with its runtime.
            let before = of_path(&servers[0], path) + of_path(&servers[1], path);
            let visit = runtime();
            visit.block_on(async {
                let asked = async {
                    while of_path(&servers[0], path) + of_path(&servers[1], path) == before {
                        fetch(&client, "/").await.unwrap();
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap_or_else(|_| panic!("{path} {round}"));
            });
            drop(visit);
        }
    }
}
