//! Copies of requests for other clusters, and answers to browsers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_client::{Client, ClientBuilder};
use mesh_core::context::{RequestContext, TRACEPARENT, scope};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    ClusterState, ClusterTelemetry, Cors, DropOverload, Endpoints, Forward, Mirror, PerMillion, RouteMatch, Snapshot,
    StringMatch, StringMatcher,
};
use mesh_core::telemetry::Metrics;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};

use super::{TARGET, client_of, cluster, fetch, get, post, read, server_of, snapshot_with};

fn mirror(share: PerMillion, shadow_host: bool) -> Mirror {
    Mirror { cluster: "copy".into(), share, shadow_host }
}

/// Requests go to one server, their copies to the other.
fn mirrored(mirrors: Vec<Mirror>, server: &EchoServer, copy: &EchoServer) -> Snapshot {
    let forward = Forward { mirrors, ..Forward::to("test".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let telemetry = ClusterTelemetry { service: "copy.test".into(), ..ClusterTelemetry::default() };
    let of_copies = mesh_core::policy::Cluster { telemetry, ..cluster("copy") };
    policy::snapshot(routes, [(cluster("test"), vec![server.endpoint()]), (of_copies, vec![copy.endpoint()])])
}

fn builder(snapshot: Snapshot) -> ClientBuilder {
    Client::builder(FixedSource::of(TARGET, snapshot))
}

/// Requests to the cluster of copies with these flags.
fn copies(metrics: &Metrics, flags: &str) -> u64 {
    let mut sum = 0;
    metrics.visit(|labels, outcome, counters| {
        if labels.destination_service == "copy.test" && outcome.flags == flags {
            sum += counters.requests();
        }
    });
    sum
}

#[tokio::test]
async fn a_copy_is_sent_beside_the_request_and_never_waited_for() {
    for (shadow_host, authority) in [(true, "reviews-shadow:9080"), (false, "reviews:9080")] {
        let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
        copy.behave(Behaviour::Hold);
        let metrics = Arc::<Metrics>::default();
        let client = builder(mirrored(vec![mirror(PerMillion::ALL, shadow_host)], &server, &copy));
        let client = client.metrics(metrics.clone()).build();
        let parent = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let context = RequestContext::from_headers(&HeaderMap::from_iter([(TRACEPARENT.clone(), parent)]));
        let answer = scope(context.into(), async { client.send(post("/path", "hello")).await });
        let answer = read(answer.await.unwrap()).await.unwrap();
        assert_eq!((server_of(&answer), &answer.body()[..]), ("one", &b"hello"[..]));
        copy.wait_for_requests(1).await;
        let received = copy.received().remove(0);
        assert_eq!((received.headers["host"].to_str().unwrap(), &received.body[..]), (authority, &b"hello"[..]));
        let sampled = |headers: &HeaderMap| headers["traceparent"].to_str().unwrap().ends_with("-01");
        assert!(!sampled(&received.headers), "a copy is not recorded");
        assert!(sampled(&server.received()[0].headers));
        assert_eq!(server.received()[0].headers["host"], TARGET);
        assert_eq!((client.dump().mirrors, copies(&metrics, "-")), (1, 0));
        copy.release();
        until(|| copies(&metrics, "-") == 1 && client.dump().mirrors == 0).await;
    }
}

/// Waits until something holds that another task brings about.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_the_share_is_copied_and_several_mirrors_each_get_theirs() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    let all = || mirror(PerMillion::ALL, false);
    let (client, _) = client_of(mirrored(vec![all(), mirror(PerMillion::NONE, false), all()], &server, &copy));
    for _ in 0..10 {
        fetch(&client, "/").await.unwrap();
    }
    copy.wait_for_requests(20).await;
    until(|| client.dump().mirrors == 0).await;
    assert_eq!((server.requests(), copy.requests()), (10, 20));
}

#[tokio::test]
async fn a_failing_copy_is_nobodys_business() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    copy.behave(Behaviour::CloseConnection);
    let metrics = Arc::<Metrics>::default();
    let client = builder(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy));
    let client = client.metrics(metrics.clone()).build();
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
    until(|| copies(&metrics, "UC") == 1).await;
    assert_eq!(client.dump().mirrors, 0);
}

#[tokio::test]
async fn no_more_copies_than_allowed_are_under_way() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    copy.behave(Behaviour::Hold);
    for (most, active) in [(1, 1), (10, 3)] {
        let before = copy.requests();
        let client = builder(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy)).max_mirrors(most).build();
        for _ in 0..3 {
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        }
        copy.wait_for_requests(before + active).await;
        let dump = client.dump();
        assert_eq!((dump.mirrors as u64, dump.mirrors_dropped), (active, 3 - active), "{most}");
    }
}

#[tokio::test]
async fn copies_end_with_the_client() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    copy.behave(Behaviour::Hold);
    let metrics = Arc::<Metrics>::default();
    let client = builder(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy));
    let client = client.metrics(metrics.clone()).build();
    fetch(&client, "/").await.unwrap();
    copy.wait_for_requests(1).await;
    drop(client);
    until(|| copies(&metrics, "DC") == 1).await;
}

#[tokio::test]
async fn a_streamed_body_is_copied_up_to_the_limit() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    for (chunks, copied) in [(64, true), (80, false)] {
        let (client, _) = client_of(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy));
        let frames =
            (0..chunks).map(|i| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![b'a' + (i % 26) as u8; 1024]))));
        let body = StreamBody::new(stream::iter(frames));
        let request = Request::put(format!("http://{TARGET}/")).body(body).unwrap();
        let answer = read(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!(answer.body().len(), chunks * 1024, "nothing of the request is lost");
        if copied {
            copy.wait_for_requests(1).await;
            assert_eq!(copy.received()[0].body, *answer.body());
        }
        assert_eq!(client.dump().mirrors_dropped, u64::from(!copied));
    }
    assert_eq!(copy.requests(), 1);
}

#[tokio::test]
async fn a_copy_is_counted_as_dropped_if_its_request_is_given_up_before_the_body_has_come() {
    let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
    let (client, _) = client_of(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy));
    let begun = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"begun")))]);
    let request = Request::post(format!("http://{TARGET}/")).body(StreamBody::new(begun.chain(stream::pending())));
    let under_way = || {
        let dump = client.dump();
        let clusters = dump.destinations.iter().flat_map(|destination| &destination.clusters);
        clusters.map(|cluster| cluster.default_priority.requests).sum::<u32>() == 1
    };
    tokio::select! {
        biased;
        _ = client.send(request.unwrap()) => unreachable!("the request has no end"),
        () = until(under_way) => {}
    }
    let dump = client.dump();
    assert_eq!((dump.mirrors, dump.mirrors_dropped), (0, 1));
}

#[tokio::test]
async fn preflights_are_answered_here_and_answers_are_made_readable() {
    let server = EchoServer::start("one").await;
    let exact = |text: &str| StringMatcher { pattern: StringMatch::Exact(text.into()), ignore_case: false };
    let cors = Cors {
        allow_origins: vec![exact("https://a.test")],
        allow_methods: vec!["PUT".into()],
        max_age: Some(Duration::from_secs(60)),
        forward_unmatched: true,
        ..Cors::default()
    };
    let forward = Forward { cors: Some(cors.into()), ..Forward::to("test".into()) };
    let (with, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
    let (without, _) = client_of(snapshot_with(Forward::to("test".into()), cluster("test"), &[&server]));
    let asking = |method: Method, origin: &'static str| {
        let mut request = get("/");
        *request.method_mut() = method;
        request.headers_mut().insert("origin", HeaderValue::from_static(origin));
        request.headers_mut().insert("access-control-request-method", HeaderValue::from_static("PUT"));
        request
    };
    let answer = read(with.send(asking(Method::OPTIONS, "https://a.test")).await.unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), server.requests()), (200, 0));
    assert_eq!(answer.headers()["access-control-allow-methods"], "PUT");
    assert_eq!(answer.headers()["access-control-max-age"], "60");

    let allowed = "access-control-allow-origin";
    let answer = read(with.send(asking(Method::PUT, "https://a.test")).await.unwrap()).await.unwrap();
    assert_eq!((server_of(&answer), &answer.headers()[allowed]), ("one", &HeaderValue::from_static("https://a.test")));
    // Controls: a stranger, and a route without the policy, for which a preflight is a request like any other.
    let answer = read(with.send(asking(Method::PUT, "https://b.test")).await.unwrap()).await.unwrap();
    assert!(!answer.headers().contains_key(allowed));
    let answer = read(without.send(asking(Method::OPTIONS, "https://a.test")).await.unwrap()).await.unwrap();
    assert!(!answer.headers().contains_key(allowed));
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn what_the_control_plane_wants_dropped_is_not_copied() {
    for (share, sent) in [(PerMillion::ALL, 0), (PerMillion::NONE, 1)] {
        let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
        copy.behave(Behaviour::Hold);
        let mut snapshot = mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy);
        let drops = vec![DropOverload { category: "shed".into(), share }];
        let endpoints = Endpoints { drops, ..policy::endpoints(&"test".into(), vec![server.endpoint()]) };
        let state = ClusterState::Ready { cluster: Arc::new(cluster("test")), endpoints: Arc::new(endpoints) };
        snapshot.clusters.insert("test".into(), state);
        let client = builder(snapshot).build();
        assert_eq!(fetch(&client, "/").await.is_ok(), sent == 1);
        assert_eq!(client.dump().mirrors, sent);
    }
}

#[tokio::test]
async fn a_body_in_memory_is_copied_up_to_the_limit() {
    for (size, sent) in [(64 << 10, 1), ((64 << 10) + 1, 0)] {
        let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
        copy.behave(Behaviour::Hold);
        let client = builder(mirrored(vec![mirror(PerMillion::ALL, false)], &server, &copy)).build();
        let body = http_body_util::Full::new(Bytes::from(vec![b'x'; size]));
        let request = Request::post(format!("http://{TARGET}/")).body(body).unwrap();
        read(client.send(request).await.unwrap()).await.unwrap();
        let dump = client.dump();
        assert_eq!((dump.mirrors, dump.mirrors_dropped), (sent, 1 - sent as u64));
    }
}
