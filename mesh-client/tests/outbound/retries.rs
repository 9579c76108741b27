//! Retries: which requests, when, where, and who may not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use mesh_client::{Cause, Client};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::{BoxError, Code, Fault};
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, ConnectionOptions, Endpoint, EndpointMetadata, Forward, HeaderKey, HeaderMatch,
    HeaderMatcher, RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy, RouteMatch, UpstreamProtocol,
};
use mesh_core::retry::RetryThrottling;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};

use super::{
    TARGET, answer, client_of, cluster, fetch, forward_with, get, later, post, prefix, read, retrying, server_of,
    snapshot_with,
};

fn on_503() -> RetryOn {
    RetryOn { retriable_status_codes: true, status_codes: vec![503], ..RetryOn::default() }
}

#[tokio::test]
async fn a_try_without_a_byte_is_made_again() {
    let server = EchoServer::start("silent").await;
    let limit = Some(Duration::from_secs(10));
    for (on, answered) in [(RetryOn { gateway_error: true, ..RetryOn::default() }, true), (RetryOn::default(), false)] {
        let before = server.requests();
        server.script([Behaviour::Hold]);
        let retry = RetryPolicy { per_try_idle_timeout: limit, ..retrying(1, on) };
        let (client, _) = client_of(snapshot_with(forward_with(Some(retry)), cluster("test"), &[&server]));
        let (result, ()) = tokio::join!(fetch(&client, "/"), later(&server, before + 1, Duration::from_secs(10)));
        match result {
            Ok(response) => assert!(answered && response.status() == 200),
            Err(error) => assert!(!answered && matches!(error.cause(), Cause::IdleTimeout(_)), "{error}"),
        }
        assert_eq!(server.requests() - before, 1 + u64::from(answered));
    }
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_cut_off_where_the_route_says_so() {
    let server = EchoServer::start("silent").await;
    server.behave(Behaviour::Stall);
    let period = Duration::from_secs(10);
    for idle_timeout in [Some(period), None] {
        let forward = Forward { idle_timeout, ..Forward::to("test".into()) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
        let mut body = client.send(get("/")).await.unwrap().into_body();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        let passed = async {
            // The body is polled before this.
            tokio::task::yield_now().await;
            tokio::time::pause();
            tokio::time::advance(period).await;
            tokio::time::resume();
            if idle_timeout.is_none() {
                server.release();
            }
        };
        let (end, ()) = tokio::join!(body.frame(), passed);
        match (idle_timeout, end) {
            (Some(_), Some(Err(error))) => {
                assert!(matches!(error.cause(), Cause::IdleTimeout(_)), "{error}");
                assert_eq!((error.code(), error.http_status().as_u16()), (Code::TIMEOUT, 504));
            }
            (None, None) => {}
            (_, end) => panic!("{idle_timeout:?}: {end:?}"),
        }
        let dump = client.dump();
        assert_eq!(dump.destinations[0].clusters[0].default_priority.requests, 0);
    }
}

#[tokio::test]
async fn only_requests_that_the_policy_names_are_retried() {
    let server = EchoServer::start("one").await;
    let name = HeaderKey::parse("x-retry").unwrap();
    let wanted =
        HeaderMatcher { name, value: HeaderMatch::Present(true), invert: false, treat_missing_as_empty: false };
    let retry = RetryPolicy { request_headers: vec![wanted], ..retrying(1, on_503()) };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retry)), cluster("test"), &[&server]));
    for (marked, status) in [(true, 200), (false, 503)] {
        server.script([Behaviour::Status(503)]);
        let mut request = get("/");
        if marked {
            request.headers_mut().insert("x-retry", HeaderValue::from_static("1"));
        }
        assert_eq!(read(client.send(request).await.unwrap()).await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn an_answer_that_asks_for_more_time_than_there_is_stands() {
    let server = EchoServer::start("one").await;
    let header = ResetHeader { name: "retry-after".parse().unwrap(), unix_timestamp: false };
    let obey = RateLimitedBackoff { headers: vec![header], max_interval: Duration::from_secs(300) };
    for (rate_limited, status, tries) in [(Some(obey), 503, 1), (None, 200, 2)] {
        let before = server.requests();
        server.script([Behaviour::Bare(503, &[("retry-after", "60")])]);
        let retry = RetryPolicy { rate_limited, ..retrying(1, on_503()) };
        let forward = Forward { timeout: Some(Duration::from_secs(30)), ..forward_with(Some(retry)) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
        assert_eq!(fetch(&client, "/").await.unwrap().status(), status);
        assert_eq!(server.requests() - before, tries);
    }
}

#[tokio::test]
async fn r12_a_grpc_call_has_five_tries_at_most_and_another_request_what_policy_says_a44() {
    let server = EchoServer::start("one").await;
    static GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("grpc-status", "14")];
    let on = RetryOn { unavailable: true, ..on_503() };
    for (policy, grpc, tries) in [(7, true, 5), (4, true, 5), (2, true, 3), (7, false, 8)] {
        let before = server.requests();
        let answer = if grpc { Behaviour::Bare(200, GRPC) } else { Behaviour::Status(503) };
        server.behave(answer);
        let forward = Forward { timeout: None, ..forward_with(Some(retrying(policy, on.clone()))) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
        let mut request = post("/echo.Echo/Say", "hello");
        if grpc {
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        read(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!(server.requests() - before, tries, "{policy} retries, gRPC: {grpc}");
    }
}

#[tokio::test]
async fn a_grpc_server_pushes_back() {
    let server = EchoServer::start("one").await;
    const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
    const GRPC: (&str, &str) = ("content-type", "application/grpc");
    static STOP: &[(&str, &str)] = &[GRPC, UNAVAILABLE, ("grpc-retry-pushback-ms", "-1")];
    static LATE: &[(&str, &str)] = &[GRPC, UNAVAILABLE, ("grpc-retry-pushback-ms", "60000")];
    static SOON: &[(&str, &str)] = &[GRPC, UNAVAILABLE, ("grpc-retry-pushback-ms", "1")];
    static SILENT: &[(&str, &str)] = &[GRPC, UNAVAILABLE];
    let on = RetryOn { unavailable: true, ..RetryOn::default() };
    let forward = Forward { timeout: Some(Duration::from_secs(30)), ..forward_with(Some(retrying(1, on))) };
    let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
    for (answer, tries) in [(STOP, 1), (LATE, 1), (SOON, 2), (SILENT, 2)] {
        let before = server.requests();
        server.script([Behaviour::Bare(200, answer)]);
        let mut request = post("/echo.Echo/Say", "hello");
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        read(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!(server.requests() - before, tries, "{answer:?}");
        if tries == 2 {
            let headers = server.received().pop().unwrap().headers;
            assert_eq!(
                (&headers["grpc-previous-rpc-attempts"], &headers["mesh-retried"]),
                (&HeaderValue::from_static("1"), &HeaderValue::from_static("1"))
            );
        }
    }
}

#[tokio::test]
async fn a_retry_avoids_endpoints_with_the_metadata_that_policy_names() {
    const REQUESTS: u64 = 60;
    for avoid in [true, false] {
        let servers = [EchoServer::start("a").await, EchoServer::start("b").await, EchoServer::start("c").await];
        let canary = |server: &EchoServer, canary: &str| {
            let mut endpoint = server.endpoint();
            let lb = BTreeMap::from([("canary".to_owned(), canary.to_owned())]);
            endpoint.metadata = Arc::new(EndpointMetadata { lb, ..EndpointMetadata::default() });
            endpoint
        };
        servers.iter().for_each(|server| server.behave(Behaviour::Status(503)));
        let endpoints = vec![canary(&servers[0], "true"), canary(&servers[1], "false"), canary(&servers[2], "true")];
        // One of the two is enough.
        let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let avoided = vec![labels("stage", "dev"), labels("canary", "true")];
        let retry = RetryPolicy { avoid_metadata: if avoid { avoided } else { Vec::new() }, ..retrying(1, on_503()) };
        let routes = policy::routes([policy::forward(mesh_core::policy::RouteMatch::any(), forward_with(Some(retry)))]);
        let (client, _) = client_of(policy::snapshot(routes, [(cluster("test"), endpoints)]));
        for _ in 0..REQUESTS {
            fetch(&client, "/").await.unwrap();
        }
        let all: u64 = servers.iter().map(EchoServer::requests).sum();
        assert_eq!(all, 2 * REQUESTS);
        // Either the first try was there or the second is. By chance alone that is two in three.
        assert_eq!(servers[1].requests() == REQUESTS, avoid, "{}", servers[1].requests());
    }
}

#[tokio::test]
async fn s24_a_try_does_not_have_the_host_of_the_one_before() {
    let (named, plain) = (EchoServer::start("named").await, EchoServer::start("plain").await);
    named.behave(Behaviour::Status(503));
    let mut endpoint = named.endpoint();
    let hostname = Some("named.test".into());
    endpoint.metadata = Arc::new(EndpointMetadata { hostname, ..EndpointMetadata::default() });
    let mut forward = forward_with(Some(retrying(3, on_503())));
    forward.rewrite.authority = Some(mesh_core::policy::AuthorityRewrite::Endpoint);
    let routes = policy::routes([policy::forward(mesh_core::policy::RouteMatch::any(), forward)]);
    let (client, _) = client_of(policy::snapshot(routes, [(cluster("test"), vec![endpoint, plain.endpoint()])]));
    for n in 0..20 {
        let answer = fetch(&client, &format!("/{n}")).await.unwrap();
        if answer.status() == 200 {
            assert_eq!(answer.headers()["x-echo-authority"], TARGET);
        }
    }
    // Each of the tries there had that host, and some requests were at both.
    let at_named = named.received();
    assert!(at_named.iter().all(|request| request.headers["host"] == "named.test"), "{at_named:?}");
    let both =
        |request: &mesh_testkit::Received| plain.received().iter().any(|other| other.uri.path() == request.uri.path());
    assert!(at_named.iter().any(both));
}

#[tokio::test]
async fn who_is_a_retry_is_not_retried_further_down_and_says_so() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on_503()))), cluster("test"), &[&server]));
    for (retried, tries) in [(true, 1), (false, 2)] {
        let before = server.received().len();
        server.script([Behaviour::Status(503)]);
        let mut context = RequestContext::from_headers(&HeaderMap::new());
        context.retried = retried;
        scope(context.into(), async { fetch(&client, "/").await }).await.unwrap();
        let received = server.received().split_off(before);
        assert_eq!(received.len(), tries);
        assert_eq!(received[0].headers.contains_key("mesh-retried"), retried, "all that is made for it is marked");
        assert!(received.last().unwrap().headers.contains_key("mesh-retried"));
    }
}

#[tokio::test]
async fn a_request_that_nobody_has_seen_is_sent_once_more_without_a_policy() {
    let server = EchoServer::start("one").await;
    let connection = ConnectionOptions { protocol: UpstreamProtocol::Http2, ..ConnectionOptions::default() };
    let http2 = mesh_core::policy::Cluster { connection, ..cluster("test") };
    let (client, _) = client_of(snapshot_with(forward_with(None), http2, &[&server]));
    server.script([Behaviour::RefuseStream]);
    assert_eq!(read(client.send(post("/", "hello")).await.unwrap()).await.unwrap().body(), "hello");
    assert!(!server.received().pop().unwrap().headers.contains_key("mesh-retried"), "it is no retry");
    // Control: twice is an answer.
    server.script([Behaviour::RefuseStream, Behaviour::RefuseStream]);
    assert_eq!(client.send(post("/", "hello")).await.unwrap_err().code(), Code::STREAM_REFUSED);
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn the_endpoint_is_told_the_time_of_its_try() {
    let server = EchoServer::start("one").await;
    let try_time = Some(Duration::from_secs(5));
    for (per_try_timeout, digits) in [(try_time, 4), (None, 5)] {
        let retry = RetryPolicy { per_try_timeout, ..retrying(1, on_503()) };
        let forward = Forward { timeout: Some(Duration::from_secs(60)), ..forward_with(Some(retry)) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
        let request = http::Request::get(format!("http://{TARGET}/")).body(Empty::<Bytes>::new()).unwrap();
        client.send(request).await.unwrap();
        let headers = server.received().pop().unwrap().headers;
        assert_eq!(headers["x-envoy-expected-rq-timeout-ms"].len(), digits, "milliseconds below 5 s, or 60 s");
    }
}

#[tokio::test]
async fn the_time_that_an_application_writes_is_its_deadline_and_shrinks_with_each_try() {
    let server = EchoServer::start("slow").await;
    let told = |headers: &http::HeaderMap| {
        Some(headers.get("x-envoy-expected-rq-timeout-ms")?.to_str().unwrap().parse::<u64>().unwrap())
    };
    let retry = RetryPolicy { backoff_base: Duration::from_millis(25), ..retrying(1, on_503()) };
    let source = FixedSource::of(TARGET, snapshot_with(forward_with(Some(retry)), cluster("test"), &[&server]));
    let client = Client::builder(source).random(|below| below - 1).build();
    server.script([Behaviour::Status(503), Behaviour::Hold]);
    let mut request = get("/");
    request.headers_mut().insert("x-envoy-expected-rq-timeout-ms", 10_000.into());
    let (result, ()) = tokio::join!(client.send(request), later(&server, 2, Duration::from_secs(10)));
    assert_eq!(result.unwrap_err().code(), Code::DEADLINE);
    let tries: Vec<_> = server.received().iter().map(|request| told(&request.headers).unwrap()).collect();
    assert!(tries[0] <= 10_000 && tries[1] < tries[0], "{tries:?}");
    // The control: nothing was written, and nothing ends it.
    server.release();
    server.behave(Behaviour::Echo);
    fetch(&client, "/").await.unwrap();
    assert_eq!(told(&server.received().pop().unwrap().headers), None);
}

#[tokio::test]
async fn retries_that_wait_for_their_turn_count_in_the_breaker() {
    const LIMIT: u32 = 2;
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Status(503));
    let wait = Duration::from_secs(3600);
    let retry = RetryPolicy { backoff_base: wait, backoff_max: wait, ..retrying(1, on_503()) };
    let limited = Cluster {
        breaker: CircuitBreakers { max_retries: Some(LIMIT), ..CircuitBreakers::default() },
        ..cluster("test")
    };
    let snapshot = snapshot_with(forward_with(Some(retry)), limited, &[&server]);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).random(|below| below - 1).build();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        requests.spawn(async move { fetch(&client, "/").await.unwrap().status().as_u16() });
    }
    // Those beyond the limit have their answer now; the others wait.
    for _ in LIMIT..5 {
        assert_eq!(requests.join_next().await.unwrap().unwrap(), 503);
    }
    let retries = || client.dump().destinations[0].clusters[0].default_priority.retries;
    assert_eq!((retries(), server.requests()), (LIMIT, 5));
    requests.shutdown().await;
    assert_eq!(retries(), 0, "giving up while waiting frees the place");
}

#[tokio::test]
async fn a_retry_that_is_answered_is_none_any_more_however_long_its_answer() {
    let server = EchoServer::start("one").await;
    server.script([Behaviour::Status(503), Behaviour::Stall, Behaviour::Status(503)]);
    let limited =
        Cluster { breaker: CircuitBreakers { max_retries: Some(1), ..CircuitBreakers::default() }, ..cluster("test") };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on_503()))), limited, &[&server]));
    let in_flight = || client.dump().destinations[0].clusters[0].default_priority;
    let stream = client.send(get("/")).await.unwrap();
    assert_eq!((stream.status().as_u16(), server.requests()), (200, 2));
    assert_eq!((in_flight().requests, in_flight().retries), (1, 0), "it is a request up to its end, and no retry");
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200, "the one place is free");
    drop(stream);
}

#[tokio::test]
async fn a_grpc_call_is_told_its_own_time_and_not_that_of_a_try() {
    let server = EchoServer::start("one").await;
    let retry = RetryPolicy { per_try_timeout: Some(Duration::from_secs(5)), ..retrying(1, on_503()) };
    let forward = Forward { timeout: Some(Duration::from_secs(60)), ..forward_with(Some(retry)) };
    let http2 = ConnectionOptions { protocol: UpstreamProtocol::Http2, ..ConnectionOptions::default() };
    let grpc = Cluster { connection: http2, ..cluster("test") };
    let (client, _) = client_of(snapshot_with(forward, grpc, &[&server]));
    let mut request = post("/a.B/C", "");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    drop(client.send(request).await);
    let headers = server.received().pop().unwrap().headers;
    let told = headers["grpc-timeout"].to_str().unwrap().to_owned();
    let (number, unit) = told.split_at(told.len() - 1);
    let unit = match unit {
        "S" => 1_000_000_u64,
        "m" => 1_000,
        "u" => 1,
        other => panic!("{other}"),
    };
    let micros = number.parse::<u64>().unwrap() * unit;
    assert!((50_000_000..=60_000_000).contains(&micros), "{told}");
}

/// A config selector lives as long as the requests it was asked for.
#[tokio::test]
async fn r16_a_request_keeps_the_route_and_cluster_it_was_given_for_its_retries_too_a31() {
    let (old, new) = (EchoServer::start("old").await, EchoServer::start("new").await);
    let limit = Duration::from_secs(10);
    let retry = RetryPolicy {
        per_try_timeout: Some(limit),
        ..retrying(1, RetryOn { gateway_error: true, ..RetryOn::default() })
    };
    let to = |name: &str, server: &EchoServer| {
        let forward = Forward { retry: Some(retry.clone()), ..Forward::to(name.into()) };
        let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
        policy::snapshot(routes, [(cluster(name), vec![server.endpoint()])])
    };
    old.script([Behaviour::Hold]);
    let (client, source) = client_of(to("old", &old));
    let swap = async {
        old.wait_for_requests(1).await;
        source.set_snapshot(TARGET, to("new", &new));
        // The control: what begins after the change knows nothing of the old cluster.
        while server_of(&fetch(&client, "/").await.unwrap()) != "new" {}
        tokio::time::pause();
        tokio::time::advance(limit).await;
        tokio::time::resume();
    };
    let (held, ()) = tokio::join!(fetch(&client, "/held"), swap);
    assert_eq!(server_of(&held.unwrap()), "old", "its second try stays in its cluster, which nothing names any more");
    let held = |request: &mesh_testkit::Received| request.uri.path() == "/held";
    assert_eq!(old.received().iter().filter(|request| held(request)).count(), 2);
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "new");
}

#[tokio::test]
async fn a6_failures_use_up_the_tokens_of_retries_and_successes_earn_them() {
    for (throttling, tries) in [(Some(RetryThrottling::new(4, 1.0).unwrap()), 2 + 9), (None, 40)] {
        let server = EchoServer::start("one").await;
        let snapshot = snapshot_with(forward_with(Some(retrying(3, on_503()))), cluster("test"), &[&server]);
        let mut builder = Client::builder(FixedSource::of(TARGET, snapshot));
        if let Some(throttling) = throttling.clone() {
            builder = builder.retry_throttling(throttling);
        }
        let client = builder.build();
        server.behave(Behaviour::Status(503));
        for _ in 0..10 {
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 503);
        }
        // Of four tokens the first failure leaves three, the second two: that is half of them.
        assert_eq!(server.requests(), tries, "{throttling:?}");
        server.behave(Behaviour::Echo);
        for _ in 0..4 {
            assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        }
        server.script([Behaviour::Status(503)]);
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200, "there are tokens again");
    }
}

#[tokio::test]
async fn a6_a_call_counts_with_its_status_and_not_with_its_head() {
    let server = EchoServer::start("one").await;
    let on = RetryOn { unavailable: true, ..RetryOn::default() };
    let mut snapshot = snapshot_with(forward_with(Some(retrying(1, on))), cluster("test"), &[&server]);
    let plain = policy::forward(prefix("/plain"), forward_with(None));
    Arc::make_mut(&mut snapshot.routes).virtual_hosts[0].routes.insert(0, plain);
    let throttling = RetryThrottling::new(4, 1.0).unwrap();
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).retry_throttling(throttling).build();
    let call = async |path: &str, behaviour: Behaviour| {
        server.script([behaviour]);
        let before = server.requests();
        let mut request = get(path);
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        read(client.send(request).await.unwrap()).await.unwrap();
        server.requests() - before
    };
    for _ in 0..4 {
        assert_eq!(call("/", Behaviour::GrpcTrailers(5)).await, 1, "control: not found costs nothing");
    }
    assert_eq!(call("/", Behaviour::Grpc(14)).await, 2, "all four tokens are there; the second try earns again");
    for _ in 0..2 {
        assert_eq!(call("/", Behaviour::GrpcTrailers(14)).await, 1, "what has begun is not tried again");
    }
    // Two are left, which is half of them; this costs one more.
    assert_eq!(call("/", Behaviour::Grpc(14)).await, 1);
    for _ in 0..4 {
        call("/plain", Behaviour::Grpc(14)).await;
    }
    for _ in 0..3 {
        assert_eq!(call("/plain", Behaviour::GrpcTrailers(0)).await, 1);
    }
    assert_eq!(call("/", Behaviour::Grpc(14)).await, 2, "calls without a policy earn, and their failures cost nothing");
}

/// What a server says to a call, by its path: in the head of the answer, and at its end.
fn said(path: &str) -> Response<impl http_body::Body<Data = Bytes, Error = BoxError> + Send + use<>> {
    const STOP: (&str, &str) = ("grpc-retry-pushback-ms", "-1");
    let status = |code| ("grpc-status", code);
    let (head, end) = match path {
        "/14-at-once" => (vec![status("14")], vec![]),
        "/14" => (vec![], vec![status("14")]),
        "/stop-then-14" => (vec![STOP], vec![status("14")]),
        "/5" => (vec![], vec![status("5")]),
        "/5-and-stop" => (vec![], vec![status("5"), STOP]),
        other => unreachable!("{other}"),
    };
    let trailers = end.into_iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
    let trailers = Frame::trailers(trailers.collect::<HeaderMap>());
    let mut response = Response::new(StreamBody::new(stream::iter([Ok(trailers)])));
    head.into_iter().for_each(|(name, value)| _ = response.headers_mut().insert(name, HeaderValue::from_static(value)));
    response
}

/// Half of six tokens have to be there; a failure that is tried again leaves that many if one was lost before, and not if two
/// were.
#[tokio::test]
async fn a6_a_call_costs_one_token_at_most_and_by_the_same_rule_in_head_and_trailers() {
    let name = HeaderKey::parse("x-once").unwrap();
    let unmarked =
        HeaderMatcher { name, value: HeaderMatch::Present(true), invert: true, treat_missing_as_empty: false };
    // What comes before, so often, whether it may be retried, and whether there are tokens then.
    let cases = [
        (("/14", 2, true), false),
        // Where there may be no retry nothing costs any.
        (("/14", 2, false), true),
        (("/stop-then-14", 1, true), true),
        (("/stop-then-14", 2, true), false),
        (("/5", 2, true), true),
        (("/5-and-stop", 2, true), false),
        (("/5-and-stop", 2, false), true),
    ];
    for ((path, times, retriable), retried) in cases {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new(Address::Socket(listener.local_addr().unwrap()));
        let on = RetryOn { unavailable: true, ..RetryOn::default() };
        let retry = RetryPolicy { request_headers: vec![unmarked.clone()], ..retrying(1, on) };
        let routes = policy::routes([policy::forward(RouteMatch::any(), forward_with(Some(retry)))]);
        let snapshot = policy::snapshot(routes, [(cluster("test"), vec![endpoint])]);
        let throttling = RetryThrottling::new(6, 1.0).unwrap();
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).retry_throttling(throttling).build();
        let served = AtomicUsize::new(0);
        let serve = async {
            let (io, _) = listener.accept().await.unwrap();
            answer(io, UpstreamProtocol::Http2, |request| {
                served.fetch_add(1, Ordering::Relaxed);
                said(request.uri().path())
            })
            .await;
        };
        let call = async |path: &str, retriable: bool| {
            let before = served.load(Ordering::Relaxed);
            let mut request = get(path);
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            if !retriable {
                request.headers_mut().insert("x-once", HeaderValue::from_static("1"));
            }
            read(client.send(request).await.unwrap()).await.unwrap();
            served.load(Ordering::Relaxed) - before
        };
        let calls = async {
            for _ in 0..times {
                assert_eq!(call(path, retriable).await, 1, "{path}");
            }
            call("/14-at-once", true).await
        };
        let tries = tokio::select! {
            tries = calls => tries,
            () = serve => unreachable!("the connection stays"),
        };
        assert_eq!(tries == 2, retried, "{times} times {path}, which may be retried: {retriable}");
    }
}

/// A body that comes in pieces, so that what of it is kept is the replay buffer's alone.
fn in_pieces(bytes: usize) -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static {
    const PIECE: usize = 1024;
    let whole = std::iter::repeat_n(PIECE, bytes / PIECE).chain(Some(bytes % PIECE).filter(|rest| *rest > 0));
    let pieces = whole.map(|size| Ok(http_body::Frame::data(Bytes::from(vec![b'x'; size]))));
    http_body_util::StreamBody::new(futures_util::stream::iter(pieces))
}

#[tokio::test]
async fn what_is_beyond_the_replay_buffer_is_sent_once_and_its_answer_stands_r31() {
    const LIMIT: usize = 64 << 10;
    let server = EchoServer::start("one").await;
    for (bytes, status, tries) in [(LIMIT, 200, 2), (LIMIT + 1, 503, 1), (16 * LIMIT, 503, 1)] {
        let before = server.requests();
        server.script([Behaviour::Status(503)]);
        let (client, _) =
            client_of(snapshot_with(forward_with(Some(retrying(1, on_503()))), cluster("test"), &[&server]));
        let request = http::Request::post(format!("http://{TARGET}/")).body(in_pieces(bytes)).unwrap();
        let answer = read(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), server.requests() - before), (status, tries), "{bytes} bytes");
    }
}
