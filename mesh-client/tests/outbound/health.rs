//! Who is ejected, who is checked, and what requests notice of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_client::{Client, EndpointDump};
use mesh_core::error::{Code, Fault};
use mesh_core::health::{Reason, Standing};
use mesh_core::policy::{
    Balancer, Cluster, ClusterState, Endpoint, FailureAccrual, Forward, HeaderAction, HeaderWrite, HealthCheck,
    HealthCheckPace, HealthCheckTarget, HealthProbe, HttpProbe, LocalityBalancing, LocalityEndpoints, OutlierDetection,
    PerMillion, RetryOn, RetryPolicy, SlowStart, Snapshot, TcpProbe,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, TestCa, crypto, policy};
use tokio::time::{Instant, interval, timeout};

use super::{
    TARGET, client_of, cluster, dead_address, fetch, forward_with, get, post, read, retrying, server_of, snapshot_with,
};

const SECOND: Duration = Duration::from_secs(1);
const EJECTED: Standing = Standing::Ejected(Reason::Consecutive5xx);

async fn servers<const N: usize>(names: [&str; N]) -> [EchoServer; N] {
    let servers = join_all(names.map(EchoServer::start)).await;
    servers.try_into().unwrap_or_else(|_| unreachable!("as many as names"))
}

fn outlier() -> OutlierDetection {
    OutlierDetection { consecutive_5xx: Some(3), interval: SECOND, ..OutlierDetection::default() }
}

fn ejecting(outlier: OutlierDetection) -> Cluster {
    Cluster { outlier: Some(outlier), balancer: Balancer::RoundRobin, ..cluster("test") }
}

fn check(probe: HealthProbe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: 10 * SECOND,
        timeout: 5 * SECOND,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        pace: HealthCheckPace::default(),
        port: None,
        reuse_connection: true,
    }
}

fn checked(check: HealthCheck) -> Cluster {
    Cluster { health_checks: vec![check], balancer: Balancer::RoundRobin, ..cluster("test") }
}

fn accruing() -> Cluster {
    let accrual = FailureAccrual { max_failures: 3, jitter: PerMillion::NONE, ..FailureAccrual::default() };
    Cluster { accrual: Some(accrual), balancer: Balancer::RoundRobin, ..cluster("test") }
}

fn counting(snapshot: Snapshot) -> (Client, Arc<Metrics>) {
    let metrics = Arc::<Metrics>::default();
    (Client::builder(FixedSource::of(TARGET, snapshot)).metrics(metrics.clone()).build(), metrics)
}

fn endpoints(client: &Client) -> Vec<EndpointDump> {
    client
        .dump()
        .destinations
        .first()
        .map_or_else(Vec::new, |one| one.clusters.first().map_or_else(Vec::new, |cluster| cluster.endpoints.clone()))
}

fn standings(client: &Client) -> Vec<Standing> {
    endpoints(client).iter().map(|endpoint| endpoint.standing).collect()
}

/// Waits until the endpoints stand so.
async fn stand(client: &Client, want: &[Standing]) {
    let mut pace = interval(Duration::from_millis(2));
    let reached = async {
        while standings(client) != want {
            pace.tick().await;
        }
    };
    let reached = timeout(20 * SECOND, reached).await;
    assert!(reached.is_ok(), "{:?} is not {want:?}", standings(client));
}

/// Lets time pass at once. Nothing may be under way that has a timeout.
async fn jump(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The statuses of so many requests, one after the other; 0 = no answer.
async fn statuses(client: &Client, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(fetch(client, "/").await.map_or(0, |response| response.status().as_u16()));
    }
    statuses
}

async fn grpc(client: &Client) {
    let mut request = post("/echo.Echo/Say", "x");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let _ = read(client.send(request).await.unwrap()).await;
}

#[tokio::test]
async fn an_endpoint_that_answers_503_is_ejected_and_returns() {
    let [bad, good] = servers(["bad", "good"]).await;
    bad.behave(Behaviour::Status(503));
    let (client, metrics) = counting(snapshot_with(forward_with(None), ejecting(outlier()), &[&bad, &good]));
    let mut failed = 0;
    while failed < 3 {
        failed += statuses(&client, 1).await.iter().filter(|status| **status == 503).count();
    }
    stand(&client, &[EJECTED, Standing::Good]).await;
    assert_eq!(statuses(&client, 20).await, [200; 20]);
    assert!(!endpoints(&client)[0].usable && endpoints(&client)[0].idle_connections > 0, "its connections stay");
    let series = metrics.health(&"test".into());
    assert_eq!((series.ejections(Reason::Consecutive5xx), series.active()), (1, 1));

    bad.behave(Behaviour::Echo);
    // Half of it, with requests in which the owner has its turns.
    jump(15 * SECOND).await;
    assert_eq!(statuses(&client, 20).await, [200; 20]);
    assert_eq!(standings(&client), [EJECTED, Standing::Good], "30 seconds are not over");
    jump(16 * SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    let before = bad.requests();
    assert_eq!(statuses(&client, 20).await, [200; 20]);
    assert_eq!((bad.requests() - before, series.active()), (10, 0));
}

#[tokio::test]
async fn without_outlier_detection_a_failing_endpoint_stays() {
    let [bad, good] = servers(["bad", "good"]).await;
    bad.behave(Behaviour::Status(503));
    let plain = Cluster { outlier: None, ..ejecting(outlier()) };
    let (client, metrics) = counting(snapshot_with(forward_with(None), plain, &[&bad, &good]));
    let failed = statuses(&client, 40).await.iter().filter(|status| **status == 503).count();
    assert_eq!((failed, standings(&client)), (20, vec![Standing::Good; 2]));
    assert!(metrics.all_health().is_empty(), "nobody looks, and nobody counts");
}

#[tokio::test]
async fn what_an_endpoint_has_not_got_is_not_its_fault() {
    let [one, other] = servers(["one", "other"]).await;
    let many = OutlierDetection { max_ejected: PerMillion::ALL, ..outlier() };
    let (client, _) = client_of(snapshot_with(forward_with(None), ejecting(many), &[&one, &other]));
    one.behave(Behaviour::Status(404));
    statuses(&client, 20).await;
    one.behave(Behaviour::Grpc(5));
    for _ in 0..20 {
        grpc(&client).await;
    }
    // Control, and the proof that the owner had time to look: the other one says UNAVAILABLE.
    other.behave(Behaviour::Grpc(14));
    for _ in 0..6 {
        grpc(&client).await;
    }
    stand(&client, &[Standing::Good, EJECTED]).await;
}

#[tokio::test]
async fn no_more_than_the_share_are_ejected_and_traffic_goes_on() {
    let servers = servers(["a", "b", "c", "d"]).await;
    servers.iter().for_each(|server| server.behave(Behaviour::Status(500)));
    let all: Vec<_> = servers.iter().collect();
    let (client, metrics) = counting(snapshot_with(forward_with(None), ejecting(outlier()), &all));
    let series = metrics.health(&"test".into());
    let mut pace = interval(Duration::from_millis(2));
    while series.unenforced(Reason::Consecutive5xx).1 == 0 {
        assert_eq!(statuses(&client, 4).await, [500; 4], "those who are left answer");
        pace.tick().await;
    }
    assert_eq!(standings(&client).iter().filter(|standing| **standing == EJECTED).count(), 1);
    assert_eq!(series.active(), 1);
}

#[tokio::test]
async fn a_grpc_answer_that_ends_without_a_status_counts_as_the_error_that_its_caller_sees() {
    const HEAD: [(&str, &str); 1] = [("content-type", "application/grpc")];
    for (behaviour, status, standing) in
        [(Behaviour::Bare(200, &HEAD), 2, EJECTED), (Behaviour::GrpcTrailers(0), 0, Standing::Good)]
    {
        let [only] = servers(["only"]).await;
        only.behave(behaviour);
        let strict = OutlierDetection { consecutive_5xx: Some(1), max_ejected: PerMillion::ALL, ..outlier() };
        let (client, metrics) = counting(snapshot_with(forward_with(None), ejecting(strict), &[&only]));
        grpc(&client).await;
        stand(&client, &[standing]).await;
        let mut statuses = Vec::new();
        metrics.visit(|_, outcome, counters| statuses.extend((counters.requests() > 0).then_some(outcome.grpc_status)));
        assert_eq!(statuses, [Some(status)]);
    }
}

#[tokio::test]
async fn when_all_are_ejected_all_are_used_if_policy_says_so() {
    for (panic, want) in [(500_000, 500), (0, 0)] {
        let [one, other] = servers(["one", "other"]).await;
        one.behave(Behaviour::Status(500));
        other.behave(Behaviour::Status(500));
        let all = OutlierDetection { max_ejected: PerMillion::ALL, ..outlier() };
        let locality = LocalityBalancing { panic_threshold: Some(PerMillion::new(panic)), ..Default::default() };
        let cluster = Cluster { locality, ..ejecting(all) };
        let (client, _) = client_of(snapshot_with(forward_with(None), cluster, &[&one, &other]));
        statuses(&client, 6).await;
        stand(&client, &[EJECTED; 2]).await;
        assert_eq!(statuses(&client, 4).await, [want; 4], "threshold {panic}");
        if panic == 0 {
            assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::NO_ENDPOINT);
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_lets_the_time_run_out_is_ejected_and_the_callers_hurry_is_not_held_against_it() {
    let hurry = |forward: Forward, caller: Option<Duration>, paused: bool| async move {
        let [slow, good] = servers(["slow", "good"]).await;
        slow.behave(Behaviour::Hold);
        let strict = OutlierDetection { consecutive_5xx: Some(1), ..outlier() };
        let first = Cluster { balancer: Balancer::PickFirst { shuffle: false }, ..ejecting(strict) };
        let (client, metrics) = counting(snapshot_with(forward, first, &[&slow, &good]));
        let mut context = mesh_core::context::RequestContext::from_headers(&Default::default());
        context.deadline = caller.map(|time| Instant::now() + time);
        let (half, asked) = tokio::sync::watch::channel(false);
        let pause = stream::poll_fn(move |_| match half.send_replace(true) {
            false => Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"half"))))),
            true => Poll::Pending,
        });
        let upload = Request::post(format!("http://{TARGET}/")).body(StreamBody::new(pause)).unwrap();
        let send =
            async { if paused { client.send(upload).await.map(drop) } else { fetch(&client, "/").await.map(drop) } };
        let call = mesh_core::context::scope(context.into(), send);
        let later = async {
            if paused {
                asked.clone().wait_for(|asked| *asked).await.unwrap();
            } else {
                slow.wait_for_requests(1).await;
            }
            jump(10 * SECOND).await;
        };
        let (_, ()) = tokio::join!(call, later);
        (client, metrics, slow, good)
    };
    let route = || Forward { timeout: Some(10 * SECOND), ..forward_with(None) };
    let retry = RetryPolicy { per_try_timeout: Some(10 * SECOND), ..RetryPolicy::new(1, RetryOn::default()) };
    let silent = RetryPolicy { per_try_idle_timeout: Some(10 * SECOND), ..RetryPolicy::new(1, RetryOn::default()) };
    let all = [route(), forward_with(Some(retry)), forward_with(Some(silent))];
    for forward in all.clone() {
        // Nor is the silence of a caller who has not given all of its request.
        let (client, _metrics, slow, _good) = hurry(forward, None, true).await;
        everybody_had_a_turn().await;
        assert_eq!((standings(&client), slow.connections()), (vec![Standing::Good; 2], 1));
    }
    for forward in all {
        let (client, _metrics, _slow, good) = hurry(forward, None, false).await;
        stand(&client, &[EJECTED, Standing::Good]).await;
        assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "good");
        assert_eq!(good.requests(), 1);
    }
    // Control: the same wait under the caller's own deadline, and then a failure that counts.
    let (client, metrics, slow, _good) = hurry(forward_with(None), Some(10 * SECOND), false).await;
    assert_eq!(standings(&client), [Standing::Good; 2]);
    slow.behave(Behaviour::Status(500));
    fetch(&client, "/").await.unwrap();
    stand(&client, &[EJECTED, Standing::Good]).await;
    assert_eq!(metrics.health(&"test".into()).ejections(Reason::Consecutive5xx), 1);
}

/// Whoever ejects endpoints is a task like others.
async fn everybody_had_a_turn() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Control: `an_endpoint_that_lets_the_time_run_out_…`, whose endpoint owes the head of an answer.
#[tokio::test]
async fn a_stream_that_has_nothing_to_say_is_not_held_against_its_endpoint() {
    let [only] = servers(["only"]).await;
    only.behave(Behaviour::Stall);
    let strict = OutlierDetection { consecutive_5xx: Some(1), max_ejected: PerMillion::ALL, ..outlier() };
    let forward = Forward { idle_timeout: Some(10 * SECOND), ..forward_with(None) };
    let (client, _) = client_of(snapshot_with(forward, ejecting(strict), &[&only]));
    let mut body = client.send(get("/")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "begun");
    let (end, ()) = tokio::join!(body.frame(), jump(10 * SECOND));
    assert_eq!(end.unwrap().unwrap_err().code(), Code::TIMEOUT);
    everybody_had_a_turn().await;
    assert_eq!(standings(&client), [Standing::Good]);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_counted_apart_if_policy_says_so() {
    let local = Standing::Ejected(Reason::ConsecutiveLocalOriginFailure);
    for (split, want) in [(true, local), (false, EJECTED)] {
        let [good] = servers(["good"]).await;
        let dead = Endpoint::new(mesh_core::policy::Address::Socket(dead_address()));
        let strict = OutlierDetection {
            consecutive_5xx: Some(1),
            split_local_origin: split,
            consecutive_local_origin: split.then_some(1),
            ..outlier()
        };
        let (client, _) = client_of(policy::snapshot_of(ejecting(strict), [dead, good.endpoint()]));
        // No request is lost to it, for it goes to the other one; that a connection failed is known all the same.
        assert_eq!(statuses(&client, 2).await, [200; 2]);
        stand(&client, &[want, Standing::Good]).await;
    }
}

#[tokio::test]
async fn a_refused_stream_is_no_evidence_and_a_broken_one_is() {
    let [one, other] = servers(["one", "other"]).await;
    let strict = OutlierDetection { consecutive_5xx: Some(1), max_ejected: PerMillion::ALL, ..outlier() };
    let connection = mesh_core::policy::ConnectionOptions {
        protocol: mesh_core::policy::UpstreamProtocol::Http2,
        ..Default::default()
    };
    let http2 = Cluster { connection, ..ejecting(strict) };
    let (client, _) = client_of(snapshot_with(forward_with(None), http2, &[&one, &other]));
    one.script([Behaviour::RefuseStream; 4]);
    other.script([Behaviour::CloseConnection]);
    let mut rounds = 0;
    while one.requests() < 3 || other.requests() < 1 {
        let _ = client.send(post("/", "x")).await;
        rounds += 1;
        assert!(rounds < 50);
    }
    stand(&client, &[Standing::Good, EJECTED]).await;
}

#[tokio::test]
async fn success_rates_are_compared_at_each_interval() {
    use mesh_core::policy::SuccessRateEjection;
    let servers = servers(["a", "b", "c", "d", "bad"]).await;
    let all: Vec<_> = servers.iter().collect();
    let by_rate = OutlierDetection {
        consecutive_5xx: None,
        success_rate: Some(SuccessRateEjection {
            stdev_factor: 1900,
            enforcing: PerMillion::ALL,
            enforcing_local_origin: PerMillion::NONE,
            minimum_hosts: 5,
            request_volume: 4,
        }),
        interval: 10 * SECOND,
        ..OutlierDetection::default()
    };
    let (client, _) = client_of(snapshot_with(forward_with(None), ejecting(by_rate), &all));
    // Every other answer of the last one: never two failures in a row.
    servers[4].script([Behaviour::Status(500), Behaviour::Echo, Behaviour::Status(500), Behaviour::Echo]);
    statuses(&client, 20).await;
    assert_eq!(standings(&client), [Standing::Good; 5], "the interval is not over");
    jump(10 * SECOND).await;
    let good = Standing::Good;
    stand(&client, &[good, good, good, good, Standing::Ejected(Reason::SuccessRate)]).await;
}

#[tokio::test]
async fn who_returns_begins_slowly() {
    let [bad, good] = servers(["bad", "good"]).await;
    bad.behave(Behaviour::Status(503));
    let slow_start = SlowStart { window: 1000 * SECOND, aggression: 1_000_000, min_share: PerMillion::new(10_000) };
    let ramped = Cluster { slow_start: Some(slow_start), ..ejecting(outlier()) };
    let (client, _) = client_of(snapshot_with(forward_with(None), ramped, &[&bad, &good]));
    statuses(&client, 6).await;
    stand(&client, &[EJECTED, Standing::Good]).await;
    bad.behave(Behaviour::Echo);
    jump(31 * SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    let before = bad.requests();
    statuses(&client, 40).await;
    // One in a hundred of its share, where 20 would be the whole.
    assert!(bad.requests() - before <= 5, "{}", bad.requests() - before);
}

#[tokio::test]
async fn a_check_takes_an_endpoint_out_and_brings_it_back_without_any_request() {
    let [sick, well] = servers(["sick", "well"]).await;
    sick.behave(Behaviour::Status(503));
    let http = check(HealthProbe::Http(HttpProbe::get("/healthz")));
    let (client, metrics) = counting(snapshot_with(forward_with(None), checked(http), &[&sick, &well]));
    // Subscribes, and sends nothing.
    client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
    stand(&client, &[Standing::FailedCheck, Standing::Good]).await;
    assert_eq!((sick.requests(), sick.received()[0].uri.path()), (1, "/healthz"));
    assert_eq!(statuses(&client, 10).await, [200; 10]);
    assert_eq!(sick.requests(), 1);

    sick.behave(Behaviour::Echo);
    jump(10 * SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    assert_eq!(sick.connections(), 1, "checks keep their connection");
    statuses(&client, 10).await;
    assert_eq!(sick.requests(), 2 + 5);
    let (passed, failed) = metrics.health(&"test".into()).checks();
    assert!(passed >= 2 && failed == 1, "{passed} {failed}");

    // A server that is gone gives no answer at all.
    drop(sick);
    jump(10 * SECOND).await;
    stand(&client, &[Standing::FailedCheck, Standing::Good]).await;
    assert_eq!(statuses(&client, 10).await, [200; 10]);
}

#[tokio::test]
async fn a_passed_check_ends_an_ejection() {
    for health_check_unejects in [true, false] {
        let [bad, good] = servers(["bad", "good"]).await;
        let http = check(HealthProbe::Http(HttpProbe { expected: vec![(100, 599)], ..HttpProbe::get("/") }));
        let outlier = OutlierDetection { health_check_unejects, interval: 1000 * SECOND, ..outlier() };
        let both = Cluster { outlier: Some(outlier), ..checked(http) };
        let (client, metrics) = counting(snapshot_with(forward_with(None), both, &[&bad, &good]));
        statuses(&client, 2).await;
        stand(&client, &[Standing::Good; 2]).await;
        bad.behave(Behaviour::Status(503));
        statuses(&client, 6).await;
        stand(&client, &[EJECTED, Standing::Good]).await;
        let series = metrics.health(&"test".into());
        let before = series.checks().0;
        jump(10 * SECOND).await;
        let mut pace = interval(Duration::from_millis(2));
        while series.checks().0 < before + 2 {
            pace.tick().await;
        }
        let want = if health_check_unejects { Standing::Good } else { EJECTED };
        assert_eq!(standings(&client), [want, Standing::Good]);
    }
}

#[tokio::test]
async fn endpoints_not_checked_yet_serve_while_nobody_knows_better() {
    let [held, other] = servers(["held", "other"]).await;
    held.behave(Behaviour::Hold);
    let http = check(HealthProbe::Http(HttpProbe::get("/healthz")));
    let (client, source) = client_of(snapshot_with(forward_with(None), checked(http.clone()), &[&held]));
    client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
    held.wait_for_requests(1).await;
    assert_eq!((standings(&client), endpoints(&client)[0].usable), (vec![Standing::Unchecked], true));
    // One that has passed goes before.
    source.set_snapshot(TARGET, snapshot_with(forward_with(None), checked(http), &[&held, &other]));
    stand(&client, &[Standing::Unchecked, Standing::Good]).await;
    held.release();
    stand(&client, &[Standing::Good; 2]).await;
}

#[tokio::test]
async fn a_check_asks_as_policy_says() {
    let [one, checks] = servers(["one", "checks"]).await;
    let write = HeaderWrite {
        name: http::HeaderName::from_static("x-probe"),
        value: HeaderValue::from_static("yes"),
        action: HeaderAction::Overwrite,
    };
    let probe = HttpProbe {
        host: "healthy.example".into(),
        method: "HEAD".into(),
        headers: vec![write],
        ..HttpProbe::get("/ready?deep=1")
    };
    let on_port = HealthCheck { port: Some(checks.address().port()), ..check(HealthProbe::Http(probe.clone())) };
    let (client, _) = client_of(snapshot_with(forward_with(None), checked(on_port), &[&one]));
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "one");
    stand(&client, &[Standing::Good]).await;
    let seen = &checks.received()[0];
    assert_eq!((seen.method.as_str(), seen.uri.to_string().as_str()), ("HEAD", "/ready?deep=1"));
    assert_eq!(
        (&seen.headers[HOST], &seen.headers["x-probe"]),
        (&"healthy.example".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(one.requests(), 1, "the endpoint's own port is left alone");

    // What the endpoint says of itself goes before; over HTTP/2 the host is the authority.
    let target =
        HealthCheckTarget { port: Some(checks.address().port()), host: Some("own".into()), ..Default::default() };
    let own = |target: HealthCheckTarget| {
        let endpoint = one.endpoint();
        let metadata = mesh_core::policy::EndpointMetadata { health_check: target, ..(*endpoint.metadata).clone() };
        Endpoint { metadata: Arc::new(metadata), ..endpoint }
    };
    let http2 = check(HealthProbe::Http(HttpProbe { http2: true, ..probe.clone() }));
    let (client, _) = client_of(policy::snapshot_of(checked(http2), [own(target)]));
    fetch(&client, "/").await.unwrap();
    stand(&client, &[Standing::Good]).await;
    assert_eq!(checks.received()[1].uri, "http://own/ready?deep=1");

    // One that is not to be checked is not, and serves.
    let disabled = HealthCheckTarget { disabled: true, ..Default::default() };
    let dead = HealthCheck { port: Some(dead_address().port()), ..check(HealthProbe::Http(probe)) };
    let (client, _) = client_of(policy::snapshot_of(checked(dead), [own(disabled)]));
    fetch(&client, "/").await.unwrap();
    assert_eq!(standings(&client), [Standing::Good]);
}

#[tokio::test]
async fn a_grpc_service_says_whether_it_serves() {
    let [one, other] = servers(["one", "other"]).await;
    one.behave(Behaviour::Serving(true));
    other.behave(Behaviour::Serving(false));
    let grpc = check(HealthProbe::Grpc { service: "echo.Echo".into(), authority: "health.example".into() });
    let (client, _) = client_of(snapshot_with(forward_with(None), checked(grpc), &[&one, &other]));
    client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
    stand(&client, &[Standing::Good, Standing::FailedCheck]).await;
    let asked = &one.received()[0];
    assert_eq!(asked.uri, "http://health.example/grpc.health.v1.Health/Check");
    assert_eq!(asked.body[..], [&[0, 0, 0, 0, 11, 0x0a, 9][..], b"echo.Echo"].concat());
    // UNIMPLEMENTED: it has no health service.
    one.behave(Behaviour::Grpc(12));
    other.behave(Behaviour::Serving(true));
    // Where there is no traffic the one that is well is looked at once in a minute.
    jump(60 * SECOND).await;
    stand(&client, &[Standing::FailedCheck, Standing::Good]).await;
}

#[tokio::test]
async fn a_connection_or_some_bytes_over_it_are_a_check_too() {
    let [server] = servers(["one"]).await;
    let dead = Endpoint::new(mesh_core::policy::Address::Socket(dead_address()));
    let with = |receive: &[&str]| TcpProbe {
        send: b"GET /tcp HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        receive: receive.iter().map(|block| block.as_bytes().to_vec()).collect(),
    };
    for (probe, want) in [
        (TcpProbe::default(), Standing::Good),
        (with(&["200 OK", "x-echo-server: one"]), Standing::Good),
        (with(&["x-echo-server: other"]), Standing::FailedCheck),
    ] {
        let check = HealthCheck { timeout: Duration::from_millis(500), ..check(HealthProbe::Tcp(probe)) };
        let (client, _) = client_of(policy::snapshot_of(checked(check), [server.endpoint(), dead.clone()]));
        client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
        stand(&client, &[want, Standing::FailedCheck]).await;
    }
}

#[tokio::test]
async fn checks_use_the_clusters_mutual_tls() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    for (id, want) in [("reviews", Standing::Good), ("somebody", Standing::FailedCheck)] {
        let id = format!("spiffe://cluster.local/ns/default/sa/{id}");
        let secure = Cluster {
            health_checks: vec![check(HealthProbe::Http(HttpProbe::get("/healthz")))],
            ..policy::mtls_cluster("test", &[&id])
        };
        let source = FixedSource::of(TARGET, policy::snapshot_of(secure, [server.endpoint()]));
        let client = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build();
        client.explain(&http::Request::get(format!("http://{TARGET}/")).body(()).unwrap());
        stand(&client, &[want]).await;
    }
    assert_eq!(server.received().len(), 1);
    assert_eq!(server.received()[0].peer.as_ref().unwrap().as_str(), "spiffe://cluster.local/ns/default/sa/web");
}

/// That says nothing of who is to be checked.
#[tokio::test]
async fn a_check_that_cannot_be_made_for_want_of_a_certificate_takes_nobody_out() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    let (give, identity) = Watched::channel(None);
    let secure = Cluster {
        health_checks: vec![check(HealthProbe::Http(HttpProbe::get("/healthz")))],
        ..policy::mtls_cluster("test", &[])
    };
    let source = FixedSource::of(TARGET, policy::snapshot_of(secure, [server.endpoint()]));
    let client = Client::builder(source).crypto(crypto()).identity(identity).build();
    client.explain(&Request::get(format!("http://{TARGET}/")).body(()).unwrap());
    for _ in 0..3 {
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        assert_eq!(standings(&client), [Standing::Unchecked]);
        jump(10 * SECOND).await;
    }
    // The control: they are made.
    give.publish(Some(ca.identity("default", "web")));
    jump(10 * SECOND).await;
    stand(&client, &[Standing::Good]).await;
}

#[tokio::test]
async fn a_connection_that_ended_while_nobody_used_it_is_no_failure() {
    let [only] = servers(["only"]).await;
    let mut touchy = accruing();
    touchy.accrual.as_mut().unwrap().max_failures = 1;
    let (client, _) = client_of(snapshot_with(forward_with(None), touchy, &[&only]));
    only.script([Behaviour::Echo, Behaviour::CloseConnection]);
    assert_eq!(statuses(&client, 3).await, [200; 3]);
    // The control: a fresh one that breaks is one.
    only.script([Behaviour::CloseConnection, Behaviour::CloseConnection]);
    assert_eq!(statuses(&client, 1).await, [0]);
    stand(&client, &[Standing::Penalty]).await;
}

#[tokio::test]
async fn on_probation_one_request_at_a_time_goes_through() {
    let [bad, good] = servers(["bad", "good"]).await;
    bad.behave(Behaviour::Status(500));
    let (client, metrics) = counting(snapshot_with(forward_with(None), accruing(), &[&bad, &good]));
    statuses(&client, 6).await;
    stand(&client, &[Standing::Penalty, Standing::Good]).await;
    assert_eq!(statuses(&client, 10).await, [200; 10]);
    // A probe that fails: twice as long.
    jump(SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    let before = bad.requests();
    while bad.requests() == before {
        statuses(&client, 1).await;
    }
    stand(&client, &[Standing::Penalty, Standing::Good]).await;
    jump(SECOND).await;
    assert_eq!(statuses(&client, 10).await, [200; 10], "it is not over");
    assert_eq!((bad.requests(), metrics.health(&"test".into()).penalties()), (before + 1, 2));
    // A probe under way: nobody else.
    bad.behave(Behaviour::Hold);
    jump(SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    let probing = async { while server_of(&fetch(&client, "/").await.unwrap()) != "bad" {} };
    let others = async {
        bad.wait_for_requests(before + 2).await;
        assert_eq!(statuses(&client, 20).await, [200; 20]);
        assert_eq!(bad.requests(), before + 2);
        bad.behave(Behaviour::Echo);
        bad.release();
    };
    tokio::join!(probing, others);
    let before = bad.requests();
    statuses(&client, 20).await;
    assert_eq!(bad.requests() - before, 10, "it is back");
}

#[tokio::test]
async fn a_retry_goes_back_to_a_host_that_failed_rather_than_nowhere() {
    let [bad, good] = servers(["bad", "good"]).await;
    bad.behave(Behaviour::Status(500));
    let on = RetryOn { retriable_status_codes: true, status_codes: vec![503], ..RetryOn::default() };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on))), accruing(), &[&bad, &good]));
    statuses(&client, 6).await;
    stand(&client, &[Standing::Penalty, Standing::Good]).await;
    let before = bad.requests();
    bad.behave(Behaviour::Hold);
    jump(SECOND).await;
    stand(&client, &[Standing::Good; 2]).await;
    let probing = async { while server_of(&fetch(&client, "/").await.unwrap()) != "bad" {} };
    let others = async {
        bad.wait_for_requests(before + 1).await;
        for _ in 0..20 {
            good.script([Behaviour::Status(503)]);
            assert_eq!(statuses(&client, 1).await, [200], "the one that is busy is no place to go");
        }
        bad.release();
    };
    tokio::join!(probing, others);
}

#[tokio::test]
async fn beside_a_probe_first_tries_stay_in_their_priority_though_retries_leave_it() {
    let [bad, good] = servers(["bad", "good"]).await;
    let far = EchoServer::start("far").await;
    bad.behave(Behaviour::Status(500));
    let on = RetryOn { retriable_status_codes: true, status_codes: vec![503], ..RetryOn::default() };
    let policy = RetryPolicy { next_locality: true, ..retrying(1, on) };
    let mut snapshot = snapshot_with(forward_with(Some(policy)), accruing(), &[&bad, &good, &far]);
    if let Some(ClusterState::Ready { endpoints, .. }) = snapshot.clusters.get_mut(&"test".into()) {
        let all = Arc::make_mut(endpoints);
        let mut next = LocalityEndpoints { priority: 1, ..all.localities[0].clone() };
        next.endpoints.drain(..2);
        all.localities[0].endpoints.truncate(2);
        all.localities.push(next);
    }
    let (client, _) = client_of(snapshot);
    statuses(&client, 6).await;
    stand(&client, &[Standing::Penalty, Standing::Good, Standing::Good]).await;
    bad.behave(Behaviour::Hold);
    let before = bad.requests();
    jump(SECOND).await;
    stand(&client, &[Standing::Good; 3]).await;
    let elsewhere = far.requests();
    let probing = async { while server_of(&fetch(&client, "/").await.unwrap()) != "bad" {} };
    let others = async {
        bad.wait_for_requests(before + 1).await;
        assert_eq!((statuses(&client, 20).await, far.requests()), (vec![200; 20], elsewhere));
        // Control: a retry leaves it.
        good.script([Behaviour::Status(503)]);
        assert_eq!((statuses(&client, 1).await, far.requests()), (vec![200], elsewhere + 1));
        bad.release();
    };
    tokio::join!(probing, others);
}

#[tokio::test]
async fn a_probe_that_is_given_up_lets_the_next_one_through_and_without_others_requests_fail_at_once() {
    let [only] = servers(["only"]).await;
    only.behave(Behaviour::Status(500));
    let (client, _) = client_of(snapshot_with(forward_with(None), accruing(), &[&only]));
    statuses(&client, 3).await;
    stand(&client, &[Standing::Penalty]).await;
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::NO_ENDPOINT);
    only.behave(Behaviour::Hold);
    jump(SECOND).await;
    stand(&client, &[Standing::Good]).await;
    tokio::select! {
        biased;
        _ = client.send(get("/")) => unreachable!("it is held"),
        error = async {
            only.wait_for_requests(4).await;
            client.send(get("/")).await.unwrap_err()
        } => assert_eq!(error.code(), Code::NO_ENDPOINT, "one at a time"),
    }
    // The probe was dropped with its future.
    only.behave(Behaviour::Echo);
    assert_eq!(statuses(&client, 3).await, [200; 3]);
}
