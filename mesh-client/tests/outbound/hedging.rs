//! Tries side by side.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use mesh_client::{Cause, Client, InFlight};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::{Blame, BoxError, Code, Fault};
use mesh_core::policy::{
    CircuitBreakers, Forward, HedgePolicy, PerMillion, PerMillionRatio, RetryBudget, RetryOn, RetryPolicy, RouteMatch,
};
use mesh_testkit::{Behaviour, EchoServer, FixedSource};

use super::{TARGET, client_of, cluster, fetch, forward_with, prefix, read, retrying, server_of, snapshot_with};

const PATIENCE: Duration = Duration::from_secs(10);

fn hedge(initial_requests: u32, on_per_try_timeout: bool) -> Option<HedgePolicy> {
    Some(HedgePolicy { initial_requests, additional_request: PerMillion::NONE, on_per_try_timeout })
}

/// Two servers that keep what they get.
async fn holding() -> [EchoServer; 2] {
    let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
    servers.iter().for_each(|server| server.behave(Behaviour::Hold));
    servers
}

/// Which of the two has a request, and the other one.
async fn first_of(servers: &[EchoServer; 2]) -> (&EchoServer, &EchoServer) {
    let [a, b] = servers;
    tokio::select! {
        () = a.wait_for_requests(1) => (a, b),
        () = b.wait_for_requests(1) => (b, a),
    }
}

/// Requests, retries and requests at endpoints that still count.
fn held(client: &Client) -> (u32, u32, u32) {
    let dump = client.dump();
    let cluster = &dump.destinations[0].clusters[0];
    let InFlight { requests, retries, .. } = cluster.default_priority;
    (requests, retries, cluster.endpoints.iter().map(|endpoint| endpoint.in_flight).sum())
}

async fn advance(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_try_that_takes_too_long_gets_company_and_the_first_answer_wins() {
    for slow_wins in [false, true] {
        let servers = holding().await;
        let retry = RetryPolicy { per_try_timeout: Some(PATIENCE), ..retrying(1, RetryOn::default()) };
        let forward = Forward { hedge: hedge(1, true), ..forward_with(Some(retry)) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
        let others = async {
            let (slow, other) = first_of(&servers).await;
            advance(PATIENCE).await;
            other.wait_for_requests(1).await;
            let winner = if slow_wins { slow } else { other };
            winner.release();
            (winner, other)
        };
        let (answer, (winner, other)) = tokio::join!(fetch(&client, "/"), others);
        let answer = answer.unwrap();
        assert_eq!(server_of(&answer), if winner.address() == servers[0].address() { "a" } else { "b" });
        assert_eq!(held(&client), (0, 0, 0), "the loser holds nothing");
        assert!(other.received()[0].headers.contains_key("mesh-retried"));
    }
    // Control: without the policy the try ends with its time.
    let servers = holding().await;
    let retry = RetryPolicy { per_try_timeout: Some(PATIENCE), ..retrying(1, RetryOn::default()) };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retry)), cluster("test"), &[&servers[0], &servers[1]]));
    let late = async {
        first_of(&servers).await;
        advance(PATIENCE).await;
    };
    let (answer, ()) = tokio::join!(fetch(&client, "/"), late);
    assert!(matches!(answer.unwrap_err().cause(), Cause::PerTryTimeout(_)));
}

#[tokio::test]
async fn several_begin_at_once_at_different_endpoints() {
    for (policy, both) in [(hedge(2, false), true), (hedge(1, false), false), (None, false)] {
        let servers = holding().await;
        let forward = Forward { hedge: policy, ..Forward::to("test".into()) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
        let others = async {
            let (first, other) = first_of(&servers).await;
            if both {
                other.wait_for_requests(1).await;
            }
            assert_eq!(held(&client), if both { (2, 1, 2) } else { (1, 0, 1) });
            first.release();
            other
        };
        let (answer, other) = tokio::join!(fetch(&client, "/"), others);
        assert_eq!(answer.unwrap().status(), 200);
        assert_eq!(other.requests(), u64::from(both));
        assert_eq!(held(&client), (0, 0, 0));
    }
}

#[tokio::test]
async fn a_failure_gives_way_to_a_better_answer_and_the_last_one_stands() {
    let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
    let forward = Forward { hedge: hedge(2, false), ..Forward::to("test".into()) };
    let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
    servers[0].behave(Behaviour::Status(503));
    for _ in 0..20 {
        let answer = fetch(&client, "/").await.unwrap();
        assert_eq!((answer.status().as_u16(), server_of(&answer)), (200, "b"));
    }
    // Control: if all are bad, one of them is the answer.
    servers[1].behave(Behaviour::Status(500));
    assert!(fetch(&client, "/").await.unwrap().status().is_server_error());
    assert_eq!(held(&client), (0, 0, 0));
}

fn streamed(chunks: usize) -> Request<impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static> {
    let frames = (0..chunks).map(|i| Ok(Frame::data(Bytes::from(vec![b'a' + (i % 26) as u8; 1024]))));
    Request::post(format!("http://{TARGET}/")).body(StreamBody::new(stream::iter(frames))).unwrap()
}

#[tokio::test]
async fn each_try_sends_the_whole_body_and_what_is_too_large_is_sent_once() {
    for (chunks, tries) in [(8, 2), (80, 1)] {
        let servers = holding().await;
        let forward = Forward { hedge: hedge(2, false), ..Forward::to("test".into()) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
        let others = async {
            let (first, other) = first_of(&servers).await;
            if tries == 2 {
                other.wait_for_requests(1).await;
            }
            first.release();
        };
        let answer = async { read(client.send(streamed(chunks)).await.unwrap()).await.unwrap() };
        let (answer, ()) = tokio::join!(answer, others);
        assert_eq!(answer.body().len(), chunks * 1024);
        let received: Vec<_> = servers.iter().flat_map(EchoServer::received).collect();
        assert_eq!(received.len(), tries);
        assert!(received.iter().all(|one| one.body == *answer.body()), "{chunks} KiB");
    }
}

#[tokio::test]
async fn breaker_budget_and_the_mark_of_a_retry_keep_requests_single() {
    let none = RetryBudget { retry_ratio: PerMillionRatio(0), min_retries_per_second: 0, ttl: Duration::from_secs(10) };
    for (breaker, budget, marked, tries) in
        [(None, None, false, 2), (Some(0), None, false, 1), (None, Some(none), false, 1), (None, None, true, 1)]
    {
        let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
        let breaker = CircuitBreakers { max_retries: breaker, ..CircuitBreakers::default() };
        let cluster = mesh_core::policy::Cluster { breaker, ..cluster("test") };
        let forward = Forward { hedge: hedge(2, false), ..Forward::to("test".into()) };
        let mut snapshot = snapshot_with(forward, cluster, &[&servers[0], &servers[1]]);
        let mut routes = (*snapshot.routes).clone();
        routes.retry_budget = budget;
        snapshot.routes = routes.into();
        let (client, _) = client_of(snapshot);
        servers.iter().for_each(|server| server.behave(Behaviour::Hold));
        let mut context = RequestContext::from_headers(&HeaderMap::new());
        context.retried = marked;
        let request = Request::post(format!("http://{TARGET}/")).body(Full::new(Bytes::from_static(b"x"))).unwrap();
        let answer = scope(context.into(), async { client.send(request).await });
        let others = async {
            let (first, other) = first_of(&servers).await;
            if tries == 2 {
                other.wait_for_requests(1).await;
            }
            assert_eq!(held(&client).0, tries as u32);
            first.release();
        };
        let (answer, ()) = tokio::join!(answer, others);
        read(answer.unwrap()).await.unwrap();
        assert_eq!(servers.iter().map(EchoServer::requests).sum::<u64>(), tries);
        assert_eq!(held(&client), (0, 0, 0));
    }
}

/// Waits until this much still counts.
async fn holds(client: &Client, want: (u32, u32, u32)) {
    while held(client) != want {
        tokio::task::yield_now().await;
    }
}

/// A retry of 503 that waits this long, whatever is drawn.
fn patient(attempts: u32, wait: Duration) -> RetryPolicy {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    RetryPolicy { backoff_base: wait, backoff_max: wait, ..retrying(attempts, on) }
}

fn drawing_high(snapshot: mesh_core::policy::Snapshot) -> Client {
    Client::builder(FixedSource::of(TARGET, snapshot)).random(|below| below - 1).build()
}

#[tokio::test]
async fn a_try_that_waits_after_a_failure_is_the_next_one_whoever_else_is_late() {
    const WAIT: Duration = Duration::from_secs(100);
    let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
    servers.iter().for_each(|server| server.behave(Behaviour::Status(503)));
    let requests = || servers.iter().map(EchoServer::requests).sum::<u64>();
    let retry = RetryPolicy { per_try_timeout: Some(PATIENCE), ..patient(1, WAIT) };
    let forward = Forward { hedge: hedge(1, true), ..forward_with(Some(retry)) };
    let client = drawing_high(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
    let others = async {
        while client.dump().destinations.first().is_none_or(|one| one.clusters.is_empty()) {
            tokio::task::yield_now().await;
        }
        holds(&client, (0, 1, 0)).await;
        // Nobody is late, so nobody gets company.
        advance(PATIENCE).await;
        holds(&client, (0, 1, 0)).await;
        assert_eq!(requests(), 1);
        advance(WAIT).await;
    };
    let (answer, ()) = tokio::join!(fetch(&client, "/"), others);
    assert_eq!((answer.unwrap().status().as_u16(), requests()), (503, 2), "one retry, as the policy says");
    assert_eq!(held(&client), (0, 0, 0));
}

#[tokio::test]
async fn failures_that_fall_into_one_wait_are_answered_by_one_retry() {
    const WAIT: Duration = Duration::from_secs(100);
    let servers = [EchoServer::start("a").await, EchoServer::start("b").await];
    servers.iter().for_each(|server| server.behave(Behaviour::Status(503)));
    let forward = Forward { hedge: hedge(2, false), ..forward_with(Some(patient(5, WAIT))) };
    let client = drawing_high(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
    let others = async {
        servers[0].wait_for_requests(1).await;
        servers[1].wait_for_requests(1).await;
        holds(&client, (0, 1, 0)).await;
        servers.iter().for_each(|server| server.behave(Behaviour::Echo));
        advance(WAIT).await;
    };
    let (answer, ()) = tokio::join!(fetch(&client, "/"), others);
    assert_eq!(answer.unwrap().status(), 200);
    assert_eq!(servers.iter().map(EchoServer::requests).sum::<u64>(), 3);
}

#[tokio::test]
async fn where_there_is_no_hedging_its_limit_ends_no_try() {
    let servers = holding().await;
    let retry = RetryPolicy { per_try_timeout: Some(PATIENCE), ..retrying(1, RetryOn::default()) };
    let forward = Forward { hedge: hedge(1, true), ..forward_with(Some(retry)) };
    let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&servers[0], &servers[1]]));
    // Who is a retry itself gets no second try.
    let mut context = RequestContext::from_headers(&HeaderMap::new());
    context.retried = true;
    let answer = scope(context.into(), async { fetch(&client, "/").await });
    let others = async {
        let (slow, other) = first_of(&servers).await;
        advance(PATIENCE * 3).await;
        slow.release();
        other
    };
    let (answer, other) = tokio::join!(answer, others);
    assert_eq!((answer.unwrap().status().as_u16(), other.requests()), (200, 0));
}

#[tokio::test]
async fn where_all_tries_wait_at_a_limit_of_ours_it_is_to_blame_and_else_the_endpoint() {
    for free in [false, true] {
        let servers = holding().await;
        let mut policy = cluster("test");
        policy.breaker.max_connections_per_host = Some(1);
        let hedged = Forward { timeout: Some(PATIENCE), hedge: hedge(2, false), ..forward_with(None) };
        let long = mesh_testkit::policy::forward(prefix("/long"), forward_with(None));
        let routes = [long, mesh_testkit::policy::forward(RouteMatch::any(), hedged)];
        let endpoints = servers.iter().map(EchoServer::endpoint).collect();
        let (client, _) =
            client_of(mesh_testkit::policy::snapshot(mesh_testkit::policy::routes(routes), [(policy, endpoints)]));
        let (mut one, mut other) = (Box::pin(fetch(&client, "/long")), Box::pin(fetch(&client, "/long")));
        let full = async { tokio::join!(servers[0].wait_for_requests(1), servers[1].wait_for_requests(1)) };
        tokio::select! {
            _ = &mut one => unreachable!("it is held"),
            _ = &mut other => unreachable!("it is held"),
            _ = full => {}
        }
        if free {
            drop(other);
        }
        let mut hedged = pin!(fetch(&client, "/"));
        let begun = async {
            if free {
                tokio::select! {
                    () = servers[0].wait_for_requests(2) => {}
                    () = servers[1].wait_for_requests(2) => {}
                }
            } else {
                while client.dump().destinations[0].clusters[0].default_priority.pending != 2 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! {
            biased;
            _ = &mut hedged => unreachable!("there is no answer"),
            () = begun => {}
        }
        advance(PATIENCE).await;
        let error = hedged.await.unwrap_err();
        let blame = if free { Blame::Upstream } else { Blame::Local };
        assert_eq!((error.code(), error.blame()), (Code::TIMEOUT, blame), "{error}");
        assert_eq!(error.to_string().contains("it waited for a connection"), !free, "{error}");
    }
}
