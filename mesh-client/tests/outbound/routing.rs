//! Which endpoint a request reaches, and what of it arrives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use mesh_client::{Client, DestinationPhase, FilterExplanation};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::{Code, Fault as _};
use mesh_core::policy::{
    AbortStatus, Address, Cluster, ClusterChoice, DestinationState, DirectResponse, Discovery, Endpoint, Fault,
    FaultAbort, FaultDelay, Forward, HeaderAction, HeaderKey, HeaderMatch, HeaderMatcher, HeaderOps, HeaderPolicy,
    HeaderWrite, Health, PathMatch, PathRewrite, PerMillion, Redirect, Rewrite, Route, RouteAction, RouteMatch,
    StringMatcher, WeightedCluster, WeightedClusters,
};
use mesh_core::retry::RetryThrottling;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};
use parking_lot::Mutex;

use super::{
    TARGET, client_of, dead_address, fetch, forward_with, get, read, server_of, snapshot_of_clusters, snapshot_with,
};

fn to(cluster: &str, matcher: RouteMatch) -> Route {
    policy::forward(matcher, Forward::to(cluster.into()))
}

fn when_header(name: &'static str, value: &str) -> RouteMatch {
    let header = HeaderMatcher {
        name: HeaderKey::Header(HeaderName::from_static(name)),
        value: HeaderMatch::Text(StringMatcher::exact(value)),
        invert: false,
        treat_missing_as_empty: false,
    };
    RouteMatch { headers: vec![header], ..RouteMatch::any() }
}

#[tokio::test]
async fn a_header_decides_the_cluster() {
    let (v1, v2) = (EchoServer::start("v1").await, EchoServer::start("v2").await);
    let routes = policy::routes([to("v2", when_header("end-user", "jason")), to("v1", RouteMatch::any())]);
    let (client, _) = client_of(snapshot_of_clusters(routes, &[("v1", &v1), ("v2", &v2)]));

    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "v1");
    let mut request = get("/");
    request.headers_mut().insert("end-user", HeaderValue::from_static("jason"));
    assert_eq!(server_of(&client.send(request).await.unwrap()), "v2");
}

#[tokio::test]
async fn weights_are_kept_exactly_over_even_draws() {
    let (v1, v2) = (EchoServer::start("v1").await, EchoServer::start("v2").await);
    let entry = |name: &str, weight| WeightedCluster::new(name.into(), weight);
    let weighted = WeightedClusters::new(vec![entry("v1", 90), entry("v2", 10)]).unwrap();
    let forward = Forward { to: ClusterChoice::Weighted(weighted), ..Forward::to("".into()) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let source = FixedSource::of(TARGET, snapshot_of_clusters(routes, &[("v1", &v1), ("v2", &v2)]));
    // Draws of the split go round evenly; all others do not matter here.
    let next = AtomicU64::new(0);
    let random = move |below| if below == 100 { next.fetch_add(1, Ordering::Relaxed) % 100 } else { below / 2 };
    let client = Client::builder(source).random(random).build();
    for _ in 0..200 {
        fetch(&client, "/").await.unwrap();
    }
    assert_eq!((v1.requests(), v2.requests()), (180, 20));
}

#[tokio::test]
async fn the_busy_endpoint_is_avoided() {
    let (busy, free) = (EchoServer::start("busy").await, EchoServer::start("free").await);
    let source = FixedSource::of(TARGET, policy::snapshot_to(&[busy.address(), free.address()]));
    // Of two endpoints the picker compares the one with the other; its draw says which comes first.
    let client = Client::builder(source).random(|_| 0).build();
    busy.behave(Behaviour::Hold);
    let rest = async {
        busy.wait_for_requests(1).await;
        for _ in 0..50 {
            assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "free");
        }
        busy.release();
    };
    // Without a load on either the first drawn is taken.
    let (first, ()) = tokio::join!(fetch(&client, "/held"), rest);
    assert_eq!(server_of(&first.unwrap()), "busy");
}

#[tokio::test]
async fn rewrites_and_header_operations_reach_the_endpoint_and_the_answer() {
    let server = EchoServer::start("v1").await;
    let write = |name: &'static str, value| HeaderWrite {
        name: HeaderName::from_static(name),
        value: HeaderValue::from_static(value),
        action: HeaderAction::Overwrite,
    };
    let rewrite = Rewrite {
        path: Some(PathRewrite::Prefix("/new".into())),
        authority: Some(mesh_core::policy::AuthorityRewrite::Literal("other.test".into())),
        ..Rewrite::default()
    };
    let matcher = RouteMatch { path: PathMatch::Prefix("/old".into()), ..RouteMatch::any() };
    let mut route = policy::forward(matcher, Forward { rewrite, ..Forward::to("test".into()) });
    route.headers = HeaderPolicy {
        request: HeaderOps { write: vec![write("x-added", "yes")], remove: vec![HeaderName::from_static("x-secret")] },
        response: HeaderOps { write: vec![write("x-answer", "seen")], remove: Vec::new() },
    };
    let (client, _) =
        client_of(policy::snapshot(policy::routes([route]), [(super::cluster("test"), vec![server.endpoint()])]));
    let mut request = get("/old/page?q=1");
    request.headers_mut().insert("x-secret", HeaderValue::from_static("gone"));
    let response = client.send(request).await.unwrap();

    assert_eq!(response.headers()["x-echo-path"], "/new/page?q=1");
    assert_eq!(response.headers()["x-echo-authority"], "other.test");
    assert_eq!(response.headers()["x-answer"], "seen");
    let received = &server.received()[0].headers;
    assert_eq!(received["x-added"], "yes");
    assert!(!received.contains_key("x-secret"));
}

#[tokio::test]
async fn a_host_header_chooses_the_virtual_host_and_is_sent() {
    let server = EchoServer::start("v1").await;
    let mut routes = policy::routes([]);
    routes.virtual_hosts = vec![policy::virtual_host(&["bookinfo.test"], [policy::route_to("test".into())])];
    let (client, _) = client_of(policy::snapshot(routes, [(super::cluster("test"), vec![server.endpoint()])]));
    let mut request = get("/");
    request.headers_mut().insert("host", HeaderValue::from_static("bookinfo.test"));
    assert_eq!(client.send(request).await.unwrap().headers()["x-echo-authority"], "bookinfo.test");
    // Control: without it the authority is the target's, for which there is no virtual host.
    assert_eq!(client.send(get("/")).await.unwrap_err().http_status(), 404);
}

#[tokio::test]
async fn an_origin_form_request_is_dialled_by_its_host_header() {
    let server = EchoServer::start("v1").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    for host in ["reviews:9080", "Reviews:9080"] {
        let request = Request::get("/path").header("host", host).body(String::new()).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.headers()["x-echo-authority"], host);
        assert_eq!(response.headers()["x-echo-path"], "/path");
    }
}

#[tokio::test]
async fn redirects_and_direct_responses_are_answered_locally() {
    let redirect = Redirect {
        code: 301,
        scheme: Some("https".into()),
        host: Some("other.test".into()),
        port: None,
        path: Some(PathRewrite::Full("/moved".into())),
        strip_query: true,
    };
    let secure = Redirect { host: None, path: None, ..redirect.clone() };
    let asks = Redirect { path: Some(PathRewrite::Full("/moved?y=2".into())), ..redirect.clone() };
    let asks_too = Redirect { strip_query: false, ..asks.clone() };
    let kept = Redirect { strip_query: false, ..redirect.clone() };
    let at = |path: &str| RouteMatch { path: PathMatch::Exact(path.into()), ..RouteMatch::any() };
    let routes = policy::routes([
        policy::route(at("/old"), RouteAction::Redirect(redirect)),
        policy::route(at("/secure"), RouteAction::Redirect(secure)),
        policy::route(at("/asks"), RouteAction::Redirect(asks)),
        policy::route(at("/asks-too"), RouteAction::Redirect(asks_too)),
        policy::route(at("/kept"), RouteAction::Redirect(kept)),
        policy::route(at("/health"), RouteAction::DirectResponse(DirectResponse { status: 418, body: b"tea".into() })),
    ]);
    let (client, _) = client_of(policy::snapshot(routes, []));
    // gRPC knows neither (row R7 of its rules; gRFC A28).
    for path in ["/old", "/health"] {
        let mut call = get(path);
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let error = client.send(call).await.unwrap_err();
        assert_eq!((error.code(), error.code().grpc_status()), (Code::UNSUPPORTED_ACTION, 14), "{error}");
    }
    let response = fetch(&client, "/old?x=1").await.unwrap();
    assert_eq!(response.status(), 301);
    assert_eq!(response.headers()["location"], "https://other.test/moved");
    // As Envoy: a target's own query stands in place of the request's, and is never dropped.
    for (path, query) in [("/asks", "?y=2"), ("/asks-too", "?y=2"), ("/kept", "?x=1")] {
        let response = fetch(&client, &format!("{path}?x=1")).await.unwrap();
        assert_eq!(response.headers()["location"], format!("https://other.test/moved{query}"), "{path}");
    }
    for (authority, location) in [
        ("a.test", "https://a.test/secure"),
        // As Envoy: the old scheme's own port goes, another one stays.
        ("a.test:80", "https://a.test/secure"),
        ("a.test:8080", "https://a.test:8080/secure"),
        ("[::1]:8080", "https://[::1]:8080/secure"),
    ] {
        let mut request = get("/secure");
        request.headers_mut().insert("host", HeaderValue::from_static(authority));
        assert_eq!(client.send(request).await.unwrap().headers()["location"], location, "{authority}");
    }
    let response = fetch(&client, "/health").await.unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (418, &b"tea"[..]));
    let told = |response: &Response<Bytes>| {
        [CONTENT_TYPE, CONTENT_LENGTH]
            .map(|name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()))
    };
    assert_eq!(told(&response), [Some("text/plain".to_owned()), Some("3".to_owned())]);
    // To HEAD it says the same, without the body; an answer without one says nothing of it.
    let mut head = get("/health");
    *head.method_mut() = Method::HEAD;
    let headed = read(client.send(head).await.unwrap()).await.unwrap();
    assert_eq!((headed.body().len(), told(&headed)), (0, told(&response)));
    assert_eq!(told(&fetch(&client, "/kept").await.unwrap()), [None, None]);
}

#[tokio::test(start_paused = true)]
async fn an_injected_fault_delays_and_answers_instead_of_the_endpoint() {
    let route = policy::route_to("test".into()).with_fault(Fault {
        delay: Some(FaultDelay::of(Duration::from_secs(7), PerMillion::ALL)),
        abort: Some(FaultAbort::with(AbortStatus::Http(555), PerMillion::ALL)),
        ..Fault::default()
    });
    let (client, _) = client_of(policy::snapshot(policy::routes([route]), [(super::cluster("test"), vec![])]));
    let start = tokio::time::Instant::now();
    let response = fetch(&client, "/").await.unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (555, &b"fault filter abort"[..]));
    assert_eq!(start.elapsed(), Duration::from_secs(7));
}

#[tokio::test]
async fn a_share_of_nothing_injects_nothing() {
    let server = EchoServer::start("v1").await;
    let abort = FaultAbort::with(AbortStatus::Http(555), PerMillion::NONE);
    let route = policy::route_to("test".into()).with_fault(Fault { abort: Some(abort), ..Fault::default() });
    let routes = policy::routes([route]);
    let (client, _) = client_of(policy::snapshot(routes, [(super::cluster("test"), vec![server.endpoint()])]));
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
}

#[tokio::test]
async fn explain_tells_where_a_request_would_go_and_what_would_stop_it() {
    let server = EchoServer::start("v1").await;
    let retry = super::retrying(2, Default::default());
    let snapshot = snapshot_with(forward_with(Some(retry)), super::cluster("test"), &[&server]);
    let source = FixedSource::new();
    let client = Client::builder(source.clone()).build();
    let request = Request::get(format!("http://{TARGET}/x")).body(()).unwrap();

    assert_eq!(client.explain(&request).state, DestinationPhase::Pending);
    source.set_snapshot(TARGET, snapshot);
    read(client.send(get("/x")).await.unwrap()).await.unwrap();
    let told = client.explain(&request);
    assert_eq!((told.state, told.error), (DestinationPhase::Ready, None));
    let retry = told.retry.unwrap();
    assert_eq!((retry.attempts, retry.budget), (2, None));
    assert_eq!(retry.waits, [Duration::from_millis(1), Duration::from_millis(2)], "the longest they may be");
    let endpoint = &told.clusters[0].cluster.endpoints[0];
    assert_eq!((endpoint.address.to_string(), endpoint.in_flight), (server.address().to_string(), 0));
    assert_eq!((endpoint.usable, endpoint.open_connections, endpoint.idle_connections), (true, 1, 1));
    assert!(endpoint.reachable && endpoint.latency.is_some() && endpoint.failure_penalty == 1.0, "{endpoint:?}");

    let dump = serde_json::to_value(client.dump()).unwrap();
    assert_eq!(dump["destinations"][0]["target"], TARGET);
    assert_eq!(dump["destinations"][0]["clusters"][0]["endpoints"][0]["health"], "healthy");

    source.set(TARGET, DestinationState::Failed("no such service".into()));
    let mut state = client.explain(&request).state;
    while state == DestinationPhase::Ready {
        tokio::task::yield_now().await;
        state = client.explain(&request).state;
    }
    assert_eq!(state, DestinationPhase::Failed("no such service".into()));
}

#[tokio::test]
async fn explain_and_filters_see_a_request_as_it_came_and_what_its_retries_would_meet() {
    let server = EchoServer::start("v1").await;
    let rewrite = Rewrite { path: Some(PathRewrite::Full("/new".into())), ..Rewrite::default() };
    let retry = Some(super::retrying(2, Default::default()));
    let path = |path: &str| HeaderMatcher {
        name: HeaderKey::Path,
        value: HeaderMatch::Text(StringMatcher::exact(path)),
        invert: false,
        treat_missing_as_empty: false,
    };
    // As Envoy's, which come before the router changes anything.
    for (wanted, meant) in [("/old", true), ("/new", false)] {
        let forward = Forward { rewrite: rewrite.clone(), retry: retry.clone(), ..Forward::to("test".into()) };
        let abort = Some(FaultAbort::with(AbortStatus::Http(555), PerMillion::ALL));
        let fault = Fault { abort, headers: vec![path(wanted)], ..Fault::default() };
        let routes = policy::routes([policy::forward(RouteMatch::any(), forward).with_fault(fault)]);
        let mut cluster = super::cluster("test");
        cluster.breaker.max_retries = Some(3);
        let snapshot = policy::snapshot(routes, [(cluster, vec![server.endpoint()])]);
        let throttling = RetryThrottling::new(4, 1.0).unwrap();
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).retry_throttling(throttling).build();
        assert_eq!(fetch(&client, "/old").await.unwrap().status().as_u16(), if meant { 555 } else { 200 });
        let request = Request::get(format!("http://{TARGET}/old")).body(()).unwrap();
        let told = client.explain(&request);
        let [FilterExplanation::Fault { meant: told_meant, .. }] = told.filters[..] else {
            panic!("{:?}", told.filters)
        };
        assert_eq!(told_meant, meant, "{wanted}");
        let retry = told.retry.unwrap();
        assert_eq!((retry.attempts, retry.chained, retry.tokens), (2, false, Some(true)));
        assert_eq!((retry.in_flight, retry.most), (0, Some(3)));
        let mut context = RequestContext::from_headers(&HeaderMap::new());
        context.retried = true;
        let retry = scope(context.into(), async { client.explain(&request).retry.unwrap() }).await;
        assert_eq!((retry.attempts, retry.chained), (0, true), "retries are not multiplied");
    }
}

#[tokio::test]
async fn an_aggregate_uses_its_first_part_with_a_usable_endpoint() {
    let server = EchoServer::start("second").await;
    let discovery = Discovery::Aggregate(vec!["first".into(), "second".into()]);
    let routes = policy::routes([policy::route_to("all".into())]);
    let (client, _) = client_of(policy::snapshot(
        routes,
        [
            (super::cluster("first"), vec![]),
            (super::cluster("second"), vec![server.endpoint()]),
            (mesh_core::policy::Cluster { discovery, ..super::cluster("all") }, vec![]),
        ],
    ));
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "second");
}

/// A client of an aggregate whose first part has endpoints of this health, and panics below half; the second has another one.
fn two_parts(near: &[(Health, &EchoServer)], far: Endpoint) -> Client {
    let endpoints = near.iter().map(|(health, server)| Endpoint { health: *health, ..server.endpoint() });
    let mut first = super::cluster("near");
    first.locality.panic_threshold = Some(PerMillion::new(500_000));
    let discovery = Discovery::Aggregate(vec!["near".into(), "far".into()]);
    let parts = [
        (Cluster { discovery, ..super::cluster("all") }, vec![]),
        (first, endpoints.collect()),
        (super::cluster("far"), vec![far]),
    ];
    let snapshot = policy::snapshot(policy::routes([policy::route_to("all".into())]), parts);
    let random = Mutex::new(fastrand::Rng::with_seed(7));
    Client::builder(FixedSource::of(TARGET, snapshot)).random(move |below| random.lock().u64(..below)).build()
}

/// How many of so many requests each server gets, in the order of their names.
async fn shares(client: &Client, requests: usize) -> BTreeMap<String, i32> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        *seen.entry(server_of(&fetch(client, "/").await.unwrap()).to_owned()).or_default() += 1;
    }
    seen
}

#[tokio::test]
async fn a_part_of_an_aggregate_that_panics_is_left_for_one_that_does_not() {
    use Health::{Healthy, Unhealthy};
    let (near, far) = (EchoServer::start("near").await, EchoServer::start("far").await);
    let others = [EchoServer::start("near").await, EchoServer::start("near").await];
    let of = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
    let client = two_parts(&[(Unhealthy, &near)], far.endpoint());
    assert_eq!(shares(&client, 20).await, of("far", 20));
    let client = two_parts(&[(Healthy, &near), (Unhealthy, &others[0]), (Unhealthy, &others[1])], far.endpoint());
    assert_eq!(shares(&client, 20).await, of("far", 20), "one of three is less than half");
    // The controls: where no other part is better off it serves, and without panic it has everything.
    let gone = Endpoint { health: Unhealthy, ..far.endpoint() };
    assert_eq!(shares(&two_parts(&[(Unhealthy, &near)], gone), 20).await, of("near", 20));
    assert_eq!(shares(&two_parts(&[(Healthy, &near)], far.endpoint()), 20).await, of("near", 20));
    let client = two_parts(&[(Unhealthy, &near)], Endpoint::new(Address::Socket(dead_address())));
    // Nobody can reach the other.
    assert_eq!(shares(&client, 20).await, of("near", 20));
}

#[tokio::test]
async fn a_part_of_an_aggregate_spills_over_below_71_per_cent() {
    use Health::{Healthy, Unhealthy};
    let (near, far) = (EchoServer::start("near").await, EchoServer::start("far").await);
    let other = EchoServer::start("near").await;
    let client = two_parts(&[(Healthy, &near), (Unhealthy, &other)], far.endpoint());
    let seen = shares(&client, 400).await;
    // Seven in ten; five standard deviations of 400 draws.
    assert!((seen["near"] - 280).abs() <= 46, "{seen:?}");
}

#[tokio::test]
async fn a37_the_tree_of_an_aggregate_is_walked_in_order_and_what_is_missing_is_skipped() {
    let (near, far) = (EchoServer::start("near").await, EchoServer::start("far").await);
    let aggregate = |name: &str, parts: &[&str]| {
        let discovery = Discovery::Aggregate(parts.iter().map(|part| (*part).into()).collect());
        (mesh_core::policy::Cluster { discovery, ..super::cluster(name) }, vec![])
    };
    let leaf = |name: &str, server: &EchoServer| (super::cluster(name), vec![server.endpoint()]);
    let empty = || (super::cluster("empty"), vec![]);
    // What `all` leads to; `far` is always its last part.
    let answer = async |parts: Vec<_>| {
        let routes = policy::routes([policy::route_to("all".into())]);
        let (client, _) = client_of(policy::snapshot(routes, parts));
        let result = fetch(&client, "/").await;
        (result.map(|response| server_of(&response).to_owned()), client)
    };

    let inner = aggregate("inner", &["absent", "empty", "near", "all"]);
    let parts =
        vec![aggregate("all", &["inner", "far", "near"]), inner, empty(), leaf("near", &near), leaf("far", &far)];
    let (server, client) = answer(parts).await;
    assert_eq!(server.unwrap(), "near", "a nested aggregate stands where it is named");
    let dump = serde_json::to_value(client.dump()).unwrap();
    let clusters = dump["destinations"][0]["clusters"].as_array().unwrap();
    let all = clusters.iter().find(|cluster| cluster["name"] == "all").unwrap();
    assert_eq!(
        all["parts"],
        serde_json::json!(["absent", "empty", "near", "far"]),
        "a duplicate keeps its first place"
    );

    // Sixteen levels and no more: `all` is the first, the leaf is the last.
    let chain = |levels: usize| {
        let name = |level: usize| if level == 1 { "all".to_owned() } else { format!("level-{level}") };
        let mut parts = vec![leaf("far", &far), leaf(&name(levels), &near)];
        parts.extend((2..levels).map(|level| aggregate(&name(level), &[&name(level + 1)])));
        parts.push(aggregate("all", &["level-2", "far"]));
        parts
    };
    assert_eq!(answer(chain(16)).await.0.unwrap(), "near");
    assert_eq!(answer(chain(17)).await.0.unwrap(), "far", "what is nested deeper is skipped");

    let circle = vec![aggregate("all", &["inner"]), aggregate("inner", &["all"])];
    assert_eq!(answer(circle).await.0.unwrap_err().code(), Code::NO_CLUSTER);
    let (none, _) = answer(vec![aggregate("all", &["absent", "empty"]), empty()]).await;
    assert_eq!(none.unwrap_err().code(), Code::NO_ENDPOINT, "a missing part does not speak for the others");
}
