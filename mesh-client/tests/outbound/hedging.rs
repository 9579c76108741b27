//! Tries side by side.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use mesh_client::{Cause, Client, InFlight};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    CircuitBreakers, Forward, HedgePolicy, PerMillion, PerMillionRatio, RetryBudget, RetryOn, RetryPolicy,
};
use mesh_testkit::{Behaviour, EchoServer};

use super::{TARGET, client_of, cluster, fetch, forward_with, read, retrying, server_of, snapshot_with};

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
                assert_eq!(held(&client), (2, 1, 2));
            }
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
        let mut context = RequestContext::from_headers(&HeaderMap::new(), || 7);
        context.retried = marked;
        let request = Request::post(format!("http://{TARGET}/")).body(Full::new(Bytes::from_static(b"x"))).unwrap();
        let answer = scope(context.into(), async { client.send(request).await });
        let others = async {
            let (first, other) = first_of(&servers).await;
            if tries == 2 {
                other.wait_for_requests(1).await;
            }
            first.release();
        };
        let (answer, ()) = tokio::join!(answer, others);
        read(answer.unwrap()).await.unwrap();
        assert_eq!(servers.iter().map(EchoServer::requests).sum::<u64>(), tries);
        assert_eq!(held(&client), (0, 0, 0));
    }
}
