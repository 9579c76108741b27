//! Limits that fail fast: breakers across clients, rate limits, throttling, adaptive concurrency.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request};
use mesh_client::{Breakers, Cause, Client, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    AbortStatus, AdaptiveConcurrency, Address, AdmissionControl, CircuitBreakers, Cluster, ClusterChoice,
    DirectResponse, Fault as Injected, FaultAbort, FaultDelay, FilterOverride, Forward, HeaderAction, HeaderWrite,
    HttpFilter, HttpFilterKind, LocalRateLimit, MinRtt, Mirror, PerMillion, Redirect, RouteAction, RouteMatch,
    Snapshot, TokenBucket, WeightedCluster, WeightedClusters,
};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, clock, policy};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::composites;
use super::{TARGET, client_of, cluster, fetch, forward_with, get, post, prefix, read, server_of, snapshot_with};

fn filtered(kind: HttpFilterKind, server: &EchoServer) -> Snapshot {
    let mut snapshot = snapshot_with(forward_with(None), cluster("test"), &[server]);
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "limit".into(), kind }];
    snapshot
}

fn bucket(max_tokens: u32) -> LocalRateLimit {
    // No test takes an hour.
    let fill_interval = Duration::from_secs(3600);
    LocalRateLimit {
        bucket: Some(TokenBucket { max_tokens, tokens_per_fill: 1, fill_interval }),
        enabled: PerMillion::ALL,
        enforced: PerMillion::ALL,
        status: 420,
        resource_exhausted: true,
        response_headers: vec![write("x-limited")],
        request_headers: vec![write("x-over")],
        per_connection: false,
        quota_headers: false,
        retry_after: false,
    }
}

fn write(name: &'static str) -> HeaderWrite {
    let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static("yes"));
    HeaderWrite { name, value, action: HeaderAction::Overwrite }
}

async fn passed(client: &Client, asked: usize) -> usize {
    let mut passed = 0;
    for _ in 0..asked {
        passed += usize::from(fetch(client, "/").await.is_ok());
    }
    passed
}

#[tokio::test]
async fn a_rate_limit_refuses_what_is_beyond_its_bucket_with_its_own_answer() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(filtered(HttpFilterKind::RateLimit(bucket(3)), &server));
    assert_eq!((passed(&client, 5).await, server.requests()), (3, 3));
    let error = fetch(&client, "/").await.unwrap_err();
    assert_eq!((error.code(), error.code().response_flag(), error.attempts()), (Code::RATE_LIMITED, "RL", 0));
    assert_eq!((error.http_status().as_u16(), error.grpc_status()), (420, 8));
    assert_eq!(error.into_response().headers()["x-limited"], "yes");
    // Controls: without a bucket, and for no share of requests, nothing is limited.
    for limit in
        [LocalRateLimit { bucket: None, ..bucket(3) }, LocalRateLimit { enabled: PerMillion::NONE, ..bucket(3) }]
    {
        let (client, _) = client_of(filtered(HttpFilterKind::RateLimit(limit), &server));
        assert_eq!(passed(&client, 5).await, 5);
    }
    // Not enforced: the request goes and says so.
    let limit = LocalRateLimit { enforced: PerMillion::NONE, ..bucket(1) };
    let (client, _) = client_of(filtered(HttpFilterKind::RateLimit(limit), &server));
    let before = server.received().len();
    assert_eq!(passed(&client, 2).await, 2);
    let over: Vec<_> = server.received()[before..].iter().map(|r| r.headers.contains_key("x-over")).collect();
    assert_eq!(over, [false, true]);
}

#[tokio::test]
async fn an_answer_of_the_routes_own_comes_after_faults_and_limits() {
    let redirect =
        Redirect { code: 307, scheme: None, host: Some("b.test".into()), port: None, path: None, strip_query: false };
    let direct = DirectResponse { status: 418, body: b"tea".into() };
    for (action, status) in [(RouteAction::Redirect(redirect), 307), (RouteAction::DirectResponse(direct), 418)] {
        let client = |kind: HttpFilterKind| {
            let routes = policy::routes([policy::route(RouteMatch::any(), action.clone())]);
            let mut snapshot = policy::snapshot(routes, []);
            Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "f".into(), kind }];
            client_of(snapshot).0
        };
        assert_eq!(passed(&client(HttpFilterKind::RateLimit(bucket(2))), 5).await, 2);
        let abort = Some(FaultAbort::with(AbortStatus::Http(555), PerMillion::ALL));
        let fault = Injected { abort, ..Injected::default() };
        // What goes nowhere goes to no cluster.
        let elsewhere = Injected { cluster: Some("elsewhere".into()), ..fault.clone() };
        for (fault, want) in [(fault, 555), (elsewhere, status)] {
            let answer = fetch(&client(HttpFilterKind::Fault(Some(fault))), "/").await.unwrap();
            assert_eq!(answer.status().as_u16(), want);
        }
        // What a limit by latency lets through gives its place back, and says nothing of latency.
        let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
        let one = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..Default::default() };
        assert_eq!(passed(&client(HttpFilterKind::AdaptiveConcurrency(Some(one))), 3).await, 3);
    }
}

#[tokio::test]
async fn a_bucket_outlives_a_change_of_routes_and_not_one_of_its_policy() {
    let server = EchoServer::start("one").await;
    let snapshot = filtered(HttpFilterKind::RateLimit(bucket(3)), &server);
    let (client, source) = client_of(snapshot.clone());
    assert_eq!(passed(&client, 2).await, 2);
    let mut changed = snapshot.clone();
    Arc::make_mut(&mut changed.routes).name = "other".into();
    let held = |snapshot: &Snapshot| mesh_core::policy::DestinationState::Ready(Arc::new(snapshot.clone()));
    source.set(TARGET, held(&changed));
    assert!(passed(&client, 3).await <= 1, "the bucket has one token left, whichever router is in force");
    // Its override on the route is another bucket, and the route's own.
    let forward = policy::forward(RouteMatch::any(), Forward::to("test".into()));
    let mut route = forward.clone();
    Arc::make_mut(&mut route.filters).insert("limit".into(), FilterOverride::RateLimit(bucket(2)).into());
    let mut own = snapshot;
    own.routes = Arc::new(policy::routes([route]));
    let (client, _) = client_of(own);
    assert_eq!(passed(&client, 5).await, 2);
}

/// What a virtual host says is said once, and its bucket is one, however many routes it has, before and after a change of them.
#[tokio::test]
async fn routes_that_share_a_limit_share_its_bucket() {
    let server = EchoServer::start("one").await;
    let own = || Arc::new(FilterOverride::RateLimit(bucket(3)));
    let shared = own();
    for (of_routes, want) in [([shared.clone(), shared], 3), ([own(), own()], 6)] {
        let mut snapshot = filtered(HttpFilterKind::RateLimit(bucket(100)), &server);
        let routes = ["/a", "/"].into_iter().zip(of_routes).map(|(path, own)| {
            let mut route = policy::forward(prefix(path), Forward::to("test".into()));
            Arc::make_mut(&mut route.filters).insert("limit".into(), own);
            route
        });
        snapshot.routes = Arc::new(policy::routes(routes));
        let (client, source) = client_of(snapshot.clone());
        let mut passed = 0;
        for path in ["/a", "/b", "/a", "/b", "/a", "/b", "/a", "/b"] {
            passed += usize::from(fetch(&client, path).await.is_ok());
        }
        assert_eq!(passed, want);
        Arc::make_mut(&mut snapshot.routes).name = "other".into();
        source.set(TARGET, mesh_core::policy::DestinationState::Ready(Arc::new(snapshot)));
        assert!(fetch(&client, "/b").await.is_err(), "the bucket is empty");
    }
}

/// That an entry of a split has a filter on says nothing of how: the route does.
#[tokio::test]
async fn an_entry_that_turns_a_limit_on_has_its_routes() {
    let server = EchoServer::start("one").await;
    let (on, off) = (FilterOverride::Enabled, FilterOverride::Disabled);
    let of = |most| FilterOverride::RateLimit(bucket(most));
    for (of_route, of_entry, want) in [
        (Some(of(2)), Some(on.clone()), 2),
        // The controls: of its own, off, and on where the route has it off or says nothing.
        (Some(of(2)), Some(of(4)), 4),
        (Some(of(2)), Some(off.clone()), 6),
        (Some(off), Some(on.clone()), 3),
        (None, Some(on), 3),
        (Some(of(2)), None, 2),
    ] {
        let parts = ["test", "other"].map(|name| {
            let mut entry = WeightedCluster::new(name.into(), 50);
            entry.filters.extend(of_entry.clone().map(|own| ("limit".to_owned(), Arc::new(own))));
            entry
        });
        // One alone is drawn where each would have a bucket of its own.
        let parts = if want == 4 { vec![parts[0].clone()] } else { parts.to_vec() };
        let split = ClusterChoice::Weighted(WeightedClusters::new(parts).unwrap());
        let mut route = policy::forward(RouteMatch::any(), Forward { to: split, ..Forward::to("test".into()) });
        Arc::make_mut(&mut route.filters).extend(of_route.clone().map(|own| ("limit".to_owned(), own.into())));
        let clusters = ["test", "other"].map(|name| (cluster(name), vec![server.endpoint()]));
        let mut snapshot = policy::snapshot(policy::routes([route]), clusters);
        let kind = HttpFilterKind::RateLimit(bucket(3));
        Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "limit".into(), kind }];
        let (client, _) = client_of(snapshot);
        assert_eq!(passed(&client, 6).await, want, "{of_route:?} {of_entry:?}");
    }
}

#[tokio::test]
async fn throttling_spares_a_failing_destination() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Status(503));
    let strict = AdmissionControl { max_rejection: PerMillion::ALL, ..AdmissionControl::default() };
    for (policy, spared) in [(Some(strict), true), (None, false)] {
        let before = server.requests();
        let (client, _) = client_of(filtered(HttpFilterKind::AdmissionControl(policy), &server));
        for _ in 0..200 {
            if let Err(error) = fetch(&client, "/").await {
                assert_eq!((error.code(), error.attempts()), (Code::THROTTLED, 0), "{error}");
            }
        }
        // With n failures in the window one in n + 1 is sent: about the root of 400, 20.
        let sent = server.requests() - before;
        assert_eq!(sent < 60, spared, "{sent} were sent");
    }
}

#[tokio::test]
async fn throttling_by_the_sre_books_rule_spares_a_failing_destination_and_its_change_of_policy_does_not_end_it() {
    let server = EchoServer::start("one").await;
    for (throttled, spared) in [(true, true), (false, false)] {
        let before = server.requests();
        server.behave(Behaviour::Status(503));
        let source = FixedSource::of(TARGET, policy::snapshot_of(cluster("test"), [server.endpoint()]));
        let builder = Client::builder(source.clone());
        let builder = if throttled { builder.throttling(2.0, Duration::from_secs(120)) } else { builder };
        let client = builder.build();
        let offer = async |count: u64| {
            for _ in 0..count {
                if let Err(error) = fetch(&client, "/").await {
                    assert_eq!((error.code(), error.attempts()), (Code::THROTTLED, 0), "{error}");
                }
            }
        };
        offer(200).await;
        // The n-th request is sent with 1 in n: about the logarithm of 200, 5.
        let sent = server.requests() - before;
        assert_eq!(sent < 30, spared, "{sent} were sent");
        source.set_snapshot(TARGET, policy::snapshot_of(cluster("next"), [server.endpoint()]));
        while client.dump().destinations[0].clusters[0].name.as_str() != "next" {
            tokio::task::yield_now().await;
        }
        let before = server.requests();
        offer(100).await;
        let sent = server.requests() - before;
        assert_eq!(sent < 30, spared, "{sent} were sent by the next router");
    }
}

#[tokio::test]
async fn explain_shows_faults_limits_and_copies_and_takes_nothing_of_them() {
    let server = EchoServer::start("one").await;
    let mirror = Mirror { cluster: "copies".into(), share: PerMillion::new(250_000), shadow_host: false };
    let forward = Forward { mirrors: vec![mirror], ..Forward::to("test".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let clusters = [(cluster("test"), vec![server.endpoint()]), (cluster("copies"), vec![])];
    let mut snapshot = policy::snapshot(routes, clusters);
    let elsewhere = Injected { cluster: Some("elsewhere".into()), ..Injected::default() };
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let adaptive = AdaptiveConcurrency { min_limit: 7, max_limit: 7, min_rtt, ..Default::default() };
    let kinds = [
        HttpFilterKind::Fault(Some(Injected::default())),
        HttpFilterKind::Fault(Some(elsewhere)),
        HttpFilterKind::RateLimit(bucket(3)),
        HttpFilterKind::AdmissionControl(Some(AdmissionControl::default())),
        HttpFilterKind::AdaptiveConcurrency(Some(adaptive)),
    ];
    let named = kinds.into_iter().enumerate().map(|(place, kind)| HttpFilter { name: place.to_string(), kind });
    Arc::make_mut(&mut snapshot.listener).filters = named.collect();
    let source = FixedSource::of(TARGET, snapshot);
    let client = Client::builder(source).throttling(2.0, Duration::from_secs(120)).build();
    let mut held = None;
    for (tokens, in_flight) in [(3, 0), (2, 1)] {
        if in_flight > 0 {
            server.behave(Behaviour::Stall);
            held = Some(client.send(get("/")).await.unwrap());
        }
        let explained = loop {
            let explained = client.explain(&Request::get(format!("http://{TARGET}/")).body(()).unwrap());
            if explained.route.is_some() {
                break explained;
            }
            tokio::task::yield_now().await;
        };
        let told = serde_json::to_value(&explained.filters).unwrap();
        let meant: Vec<_> = (0..2).map(|place| told[place]["fault"]["meant"].as_bool()).collect();
        assert_eq!(meant, [Some(true), Some(false)], "{told}");
        assert_eq!(told[2]["rate_limit"], serde_json::json!({ "tokens": tokens, "most": 3 }));
        assert_eq!(told[4]["concurrency"], serde_json::json!({ "limit": 7, "in_flight": in_flight }));
        let refused: Vec<_> = [3, 5].iter().map(|place| told[*place]["throttling"]["refused"].as_u64()).collect();
        assert!(refused.iter().all(Option::is_some), "{told}");
        assert_eq!(explained.mirrors.len(), 1);
        assert_eq!((explained.mirrors[0].share.get(), explained.mirrors[0].cluster.name.as_str()), (250_000, "copies"));
    }
    drop(held);
}

#[tokio::test]
async fn throttling_by_the_sre_books_rule_leaves_a_healthy_destination_alone() {
    let server = EchoServer::start("one").await;
    let source = FixedSource::of(TARGET, policy::snapshot_of(cluster("test"), [server.endpoint()]));
    let client = Client::builder(source).throttling(2.0, Duration::from_secs(120)).build();
    for _ in 0..100 {
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
    }
    assert_eq!(server.requests(), 100);
}

#[tokio::test]
async fn who_looks_at_the_status_alone_leaves_throttling_as_it_was() {
    let server = EchoServer::start("one").await;
    let control = Some(AdmissionControl::default());
    for (behaviour, grpc, refuses) in [
        (Behaviour::Echo, false, false),
        (Behaviour::Grpc(0), true, false),
        (Behaviour::Grpc(14), true, true),
        (Behaviour::GrpcTrailers(0), true, true),
    ] {
        server.behave(behaviour);
        let limited = || filtered(HttpFilterKind::AdmissionControl(control.clone()), &server);
        let sre = Client::builder(FixedSource::of(TARGET, policy::snapshot_to(&[server.address()])));
        let clients = [client_of(limited()).0, sre.throttling(2.0, Duration::from_secs(120)).build()];
        for client in clients {
            let mut some = false;
            for _ in 0..100 {
                let mut request = post("/", "hello");
                if grpc {
                    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                }
                match client.send(request).await {
                    // Its body is dropped unread; where the status of gRPC would have been in it, nobody knows what came of it.
                    Ok(answer) => assert_eq!(answer.status(), 200),
                    Err(error) => {
                        assert_eq!(error.code(), Code::THROTTLED, "{error}");
                        some = true;
                    }
                }
            }
            assert_eq!(some, refuses, "{behaviour:?}");
        }
    }
}

#[tokio::test]
async fn adaptive_concurrency_refuses_what_is_beyond_its_limit_and_gives_places_back() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Hold);
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let policy = AdaptiveConcurrency { status: 529, min_limit: 1, max_limit: 1, min_rtt, ..Default::default() };
    let (client, _) = client_of(filtered(HttpFilterKind::AdaptiveConcurrency(Some(policy)), &server));
    let mut first = Box::pin(client.send(get("/1")));
    let second = async {
        server.wait_for_requests(1).await;
        client.send(get("/2")).await.unwrap_err()
    };
    let error = tokio::select! {
        biased;
        _ = &mut first => unreachable!("it is held"),
        error = second => error,
    };
    assert_eq!((error.code(), error.http_status().as_u16()), (Code::CONCURRENCY_LIMITED, 529), "{error}");
    assert_eq!(server.requests(), 1);
    // Given up, its place is free.
    drop(first);
    server.behave(Behaviour::Echo);
    let held = client.send(post("/3", "hello")).await.unwrap();
    let error = client.send(get("/4")).await.unwrap_err();
    assert_eq!(error.code(), Code::CONCURRENCY_LIMITED, "an answer counts until it has been read");
    read(held).await.unwrap();
    assert_eq!(passed(&client, 3).await, 3);
}

#[tokio::test]
async fn adaptive_concurrency_is_each_clusters_own() {
    each_clusters_own(false).await;
}

#[tokio::test]
async fn adaptive_concurrency_is_each_clusters_own_in_a_composite() {
    each_clusters_own(true).await;
}

async fn each_clusters_own(composed: bool) {
    let (v1, v2) = (EchoServer::start("v1").await, EchoServer::start("v2").await);
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let policy = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..Default::default() };
    let entry = |name: &str| WeightedCluster::new(name.into(), 50);
    let split = WeightedClusters::new(vec![entry("v1"), entry("v2")]).unwrap();
    let split = Forward { to: ClusterChoice::Weighted(split), ..Forward::to("".into()) };
    let routes = policy::routes([
        policy::forward(prefix("/v1"), Forward::to("v1".into())),
        policy::forward(RouteMatch::any(), split),
    ]);
    let clusters = [(cluster("v1"), vec![v1.endpoint()]), (cluster("v2"), vec![v2.endpoint()])];
    let mut snapshot = policy::snapshot(routes, clusters);
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(policy));
    let kind = if composed { composites::always([kind]) } else { kind };
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "limit".into(), kind }];
    let (client, _) = client_of(snapshot);
    v1.behave(Behaviour::Hold);
    let mut full = pin!(client.send(get("/v1")));
    let others = async {
        v1.wait_for_requests(1).await;
        let mut answers = Vec::new();
        for _ in 0..60 {
            answers.push(fetch(&client, "/").await.map_err(|error| error.code()));
        }
        answers
    };
    let answers = tokio::select! {
        biased;
        _ = &mut full => unreachable!("it is held"),
        answers = others => answers,
    };
    let served = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!((served as u64, v1.requests()), (v2.requests(), 1));
    // The control: what went to the full one was refused.
    let refused = answers.iter().filter(|answer| matches!(answer, Err(Code::CONCURRENCY_LIMITED))).count();
    assert!(served > 0 && refused > 0 && served + refused == 60, "{answers:?}");
}

#[tokio::test]
async fn adaptive_concurrency_is_each_clusters_own_where_a_header_names_it() {
    let (v1, v2) = (EchoServer::start("v1").await, EchoServer::start("v2").await);
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let policy = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..Default::default() };
    let named = Forward { to: ClusterChoice::Header(HeaderName::from_static("x-cluster")), ..Forward::to("".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), named)]);
    let clusters = [(cluster("v1"), vec![v1.endpoint()]), (cluster("v2"), vec![v2.endpoint()])];
    let mut snapshot = policy::snapshot(routes, clusters);
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(policy));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "limit".into(), kind }];
    let (client, _) = client_of(snapshot);
    let to = |name: &'static str| {
        let mut request = get("/");
        request.headers_mut().insert("x-cluster", HeaderValue::from_static(name));
        client.send(request)
    };
    v1.behave(Behaviour::Hold);
    let mut full = pin!(to("v1"));
    let others = async {
        v1.wait_for_requests(1).await;
        let other = read(to("v2").await.unwrap()).await;
        (to("v1").await.map(drop), other)
    };
    let (same, other) = tokio::select! {
        biased;
        _ = &mut full => unreachable!("it is held"),
        answers = others => answers,
    };
    assert_eq!(same.unwrap_err().code(), Code::CONCURRENCY_LIMITED, "the control");
    assert_eq!(server_of(&other.unwrap()), "v2");
}

#[tokio::test]
async fn faults_under_way_are_counted_for_all_who_share_breakers() {
    let server = EchoServer::start("one").await;
    for shared in [true, false] {
        let delay = Some(FaultDelay::of(Duration::from_secs(3600), PerMillion::ALL));
        let abort = Some(FaultAbort::with(AbortStatus::Http(555), PerMillion::ALL));
        let breakers = Breakers::default();
        let client = |fault: Injected| {
            let kind = HttpFilterKind::Fault(Some(Injected { max_active: Some(1), ..fault }));
            let breakers = if shared { breakers.clone() } else { Breakers::default() };
            Client::builder(FixedSource::of(TARGET, filtered(kind, &server))).breakers(breakers).build()
        };
        let (one, other) =
            (client(Injected { delay, ..Injected::default() }), client(Injected { abort, ..Injected::default() }));
        let mut delayed = pin!(one.send(get("/")));
        let status = tokio::select! {
            biased;
            _ = &mut delayed => unreachable!("it waits for an hour"),
            answer = fetch(&other, "/") => answer.unwrap().status().as_u16(),
        };
        assert_eq!(status, if shared { 200 } else { 555 }, "the one fault that there may be is under way: {shared}");
    }
}

fn breaking(most: u32, high: Option<u32>) -> Cluster {
    let limit = |most| CircuitBreakers { max_requests: Some(most), ..CircuitBreakers::default() };
    Cluster { breaker: limit(most), breaker_high: high.map(limit), ..cluster("test") }
}

#[tokio::test]
async fn clients_that_share_breakers_share_the_limit() {
    let server = EchoServer::start("one").await;
    for shared in [true, false] {
        server.behave(Behaviour::Hold);
        let before = server.requests();
        let breakers = Breakers::default();
        let client = || {
            let source = FixedSource::of(TARGET, snapshot_with(forward_with(None), breaking(1, None), &[&server]));
            let breakers = if shared { breakers.clone() } else { Breakers::default() };
            Client::builder(source).breakers(breakers).build()
        };
        let (one, other) = (client(), client());
        let mut first = pin!(one.send(get("/1")));
        let second = async {
            server.wait_for_requests(before + 1).await;
            server.behave(Behaviour::Echo);
            other.send(get("/2")).await
        };
        let second = tokio::select! {
            biased;
            _ = &mut first => unreachable!("it is held"),
            answer = second => answer,
        };
        assert_eq!(second.is_err_and(|error| error.code() == Code::BREAKER_OPEN), shared);
        if shared {
            assert_eq!(breakers.snapshot()[0].default.requests, 1);
        }
        server.release();
        read(first.await.unwrap()).await.unwrap();
        assert!(breakers.snapshot().iter().all(|state| state.default.requests == 0));
    }
}

#[tokio::test]
async fn high_priority_has_limits_of_its_own() {
    let server = EchoServer::start("one").await;
    let high = Forward { high_priority: true, ..Forward::to("test".into()) };
    for (limit, allowed) in [(Some(1), true), (Some(0), false), (None, false)] {
        let snapshot = snapshot_with(high.clone(), breaking(0, limit), &[&server]);
        let (client, _) = client_of(snapshot);
        assert_eq!(fetch(&client, "/").await.is_ok(), allowed, "{limit:?}");
        let (client, _) = client_of(snapshot_with(forward_with(None), breaking(0, limit), &[&server]));
        let error = fetch(&client, "/").await.unwrap_err();
        assert!(matches!(error.cause(), Cause::Breaker { limit: "max_requests", .. }), "{error}");
    }
}

#[tokio::test]
async fn connections_to_one_endpoint_are_limited() {
    let server = EchoServer::start("one").await;
    for (most, connections) in [(Some(1), 1), (None, 3)] {
        let before = server.connections();
        server.behave(Behaviour::Hold);
        let breaker = CircuitBreakers { max_connections_per_host: most, ..CircuitBreakers::default() };
        let (client, _) =
            client_of(snapshot_with(forward_with(None), Cluster { breaker, ..cluster("test") }, &[&server]));
        let reached = server.requests() + u64::from(most.unwrap_or(3));
        let release = async {
            server.wait_for_requests(reached).await;
            server.behave(Behaviour::Echo);
            server.release();
        };
        let (a, b, c, ()) = tokio::join!(fetch(&client, "/"), fetch(&client, "/"), fetch(&client, "/"), release);
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(server.connections() - before, connections);
    }
}

#[tokio::test]
async fn a_request_dropped_at_any_await_leaves_nothing_behind() {
    let server = EchoServer::start("one").await;
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let limit = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..Default::default() };
    let mut snapshot = filtered(HttpFilterKind::AdaptiveConcurrency(Some(limit)), &server);
    let endpoints = policy::snapshot_of(breaking(1, None), [server.endpoint()]);
    snapshot.clusters = endpoints.clusters;
    let breakers = Breakers::default();
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).breakers(breakers.clone()).build();
    for polls in 0..40 {
        let mut request = Box::pin(client.send(Request::get(format!("http://{TARGET}/")).body(String::new()).unwrap()));
        for _ in 0..polls {
            if futures_util::poll!(&mut request).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(request);
        let states = breakers.snapshot();
        assert!(states.iter().all(|state| (state.default.requests, state.default.pending) == (0, 0)), "{polls}");
    }
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200, "the one place is free");
}

/// A connector that may be told not to connect, and how often it was asked.
struct Way {
    open: watch::Sender<bool>,
    asked: AtomicUsize,
}

impl Way {
    async fn connect(self: Arc<Self>, address: Address) -> std::io::Result<Box<dyn Io>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        let Address::Socket(address) = address else { unreachable!("it is a socket") };
        Ok(Box::new(TcpStream::connect(address).await?))
    }
}

#[tokio::test]
async fn when_nobody_gets_a_connection_those_that_follow_fail_at_once_until_one_does() {
    const WAIT: Duration = Duration::from_secs(3);
    for fails_fast in [true, false] {
        let server = EchoServer::start("one").await;
        let way = Arc::new(Way { open: watch::Sender::new(false), asked: AtomicUsize::new(0) });
        let source = FixedSource::of(TARGET, policy::snapshot_to(&[server.address()]));
        let through = way.clone();
        let mut builder = Client::builder(source).connector(move |address| through.clone().connect(address));
        if fails_fast {
            builder = builder.fail_fast(WAIT);
        }
        let client = builder.build();
        tokio::time::pause();
        let ask = async || {
            let begun = Instant::now();
            let code = fetch(&client, "/").await.err().map(|error| error.code());
            // The clock goes by whole milliseconds.
            (code, Duration::from_millis(begun.elapsed().as_millis() as u64 / 10 * 10))
        };
        if !fails_fast {
            // The control: it waits until it may not connect any longer.
            assert_eq!(ask().await, (Some(Code::CONNECT_TIMEOUT), Duration::from_secs(10)));
            continue;
        }
        assert_eq!(ask().await, (Some(Code::BREAKER_OPEN), WAIT));
        for _ in 0..5 {
            assert_eq!(ask().await, (Some(Code::BREAKER_OPEN), Duration::ZERO));
        }
        assert_eq!(way.asked.load(Ordering::Relaxed), 1, "they did not even try");
        clock::pass(WAIT).await;
        // Of those that come then one looks, and the others do not wait for it.
        let (looking, at_once) = tokio::join!(ask(), ask());
        assert_eq!(looking, (Some(Code::BREAKER_OPEN), WAIT));
        assert_eq!(at_once, (Some(Code::BREAKER_OPEN), Duration::ZERO));
        clock::pass(WAIT).await;
        tokio::time::resume();
        way.open.send_replace(true);
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        // The one that looked left its connection under way to those that followed.
        assert_eq!(way.asked.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn what_finds_a_free_connection_passes_while_others_fail_fast() {
    const WAIT: Duration = Duration::from_secs(3);
    let server = EchoServer::start("one").await;
    let mut one = cluster("test");
    one.breaker.max_connections = Some(1);
    let snapshot = policy::snapshot_of(one, [server.endpoint()]);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).fail_fast(WAIT).build();
    server.script([Behaviour::Hold]);
    let others = async {
        server.wait_for_requests(1).await;
        tokio::time::pause();
        for _ in 0..2 {
            // The first waits, and the second is told at once: both for the same reason.
            assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::BREAKER_OPEN);
        }
        tokio::time::resume();
        server.release();
    };
    let (busy, ()) = tokio::join!(fetch(&client, "/"), others);
    assert_eq!(busy.unwrap().status(), 200);
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200, "the connection is free again");
}
