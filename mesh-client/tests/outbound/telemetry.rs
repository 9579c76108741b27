//! Trace context, metrics, access log.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use mesh_client::Client;
use mesh_core::context::{RequestContext, scope};
use mesh_core::id::Workload;
use mesh_core::policy::{ClusterTelemetry, EndpointMetadata, ResponseClass, ResponseMatch, RetryOn, Route};
use mesh_core::telemetry::{Metrics, Reporter};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};

use super::{TARGET, client_of, cluster, dead_address, fetch, forward_with, get, prefix, read, retrying};

#[tokio::test]
async fn the_context_of_the_served_request_travels_by_itself() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    let mut served = HeaderMap::new();
    for (name, value) in [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=1"),
        ("x-request-id", "r-1"),
    ] {
        served.insert(name, HeaderValue::from_static(value));
    }
    let context = RequestContext::from_headers(&served);
    scope(context.into(), async { fetch(&client, "/").await }).await.unwrap();

    let received = server.received()[0].headers.clone();
    assert_eq!(received["traceparent"], "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(received["tracestate"], "vendor=1");
    assert_eq!(received["x-request-id"], "r-1");
}

#[tokio::test]
async fn a_request_of_nobody_has_no_trace_and_the_applications_own_stays() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    fetch(&client, "/").await.unwrap();
    let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut request = get("/");
    request.headers_mut().insert("traceparent", HeaderValue::from_static(own));
    client.send(request).await.unwrap();
    let received = server.received();
    // One that says "not recorded" would keep whoever samples by the parent from recording anything behind it.
    assert_eq!(received[0].headers.get("traceparent"), None);
    assert_eq!(received[1].headers["traceparent"], own);
}

/// What was counted: code, flags, source and destination workload, service, how often.
fn counted(metrics: &Metrics) -> Vec<(u16, &'static str, String, String, String, u64)> {
    let mut seen = Vec::new();
    metrics.visit(|labels, outcome, counters| {
        assert_eq!(labels.reporter, Reporter::Source);
        seen.push((
            outcome.code,
            outcome.flags,
            labels.source.workload.clone(),
            labels.destination.workload.clone(),
            labels.destination_service.clone(),
            counters.requests(),
        ));
    });
    seen
}

#[tokio::test]
async fn requests_are_counted_under_istios_labels_when_their_answer_ends() {
    let server = EchoServer::start("one").await;
    let mut measured = cluster("test");
    measured.telemetry = ClusterTelemetry {
        service: "reviews.default.svc.cluster.local".into(),
        service_name: "reviews".into(),
        service_namespace: "default".into(),
    };
    let mut endpoint = server.endpoint();
    let workload = Workload { name: "reviews-v2".into(), ..Workload::default() };
    endpoint.metadata = EndpointMetadata { workload: Some(workload), ..EndpointMetadata::default() }.into();
    let metrics = Arc::<Metrics>::default();
    let us = Workload { name: "productpage-v1".into(), ..Workload::default() };
    let source = FixedSource::of(TARGET, policy::snapshot_of(measured.clone(), [endpoint]));
    let client = Client::builder(source.clone()).metrics(metrics.clone()).workload(us.into()).build();

    server.script([Behaviour::Echo, Behaviour::Status(500)]);
    let open = client.send(super::post("/", "some bytes")).await.unwrap();
    assert_eq!(counted(&metrics), [], "the answer has not ended");
    read(open).await.unwrap();
    fetch(&client, "/").await.unwrap();
    let row = |code, flags, workload: &str, count| {
        let service = "reviews.default.svc.cluster.local".to_owned();
        (code, flags, "productpage-v1".to_owned(), workload.to_owned(), service, count)
    };
    assert_eq!(counted(&metrics), [row(200, "-", "reviews-v2", 1), row(500, "-", "reviews-v2", 1)]);

    // A dropped request counts too, and so does one that no endpoint answered.
    server.script([Behaviour::Echo]);
    drop(client.send(super::post("/", "some bytes")).await.unwrap());
    let dead = mesh_core::policy::Endpoint::new(mesh_core::policy::Address::Socket(dead_address()));
    source.set_snapshot(TARGET, policy::snapshot_of(measured, [dead]));
    while fetch(&client, "/").await.is_ok() {}
    let seen = counted(&metrics);
    assert!(seen.contains(&row(200, "DC", "reviews-v2", 1)), "{seen:?}");
    assert!(seen.contains(&row(503, "UF", "", 1)), "{seen:?}");
}

/// What was counted by route: its name, successes, failures, durations.
fn by_route(metrics: &Metrics) -> Vec<(String, u64, u64, u64)> {
    let all = metrics.all_routes().into_iter();
    all.map(|(labels, series)| {
        assert_eq!(labels.dst, TARGET);
        (labels.route, series.successes(), series.failures(), series.latency().count())
    })
    .collect()
}

#[tokio::test]
async fn a_route_with_a_name_for_it_is_counted_by_its_own_classes_once_for_all_its_tries() {
    let server = EchoServer::start("one").await;
    let metrics = Arc::<Metrics>::default();
    let status = |min, max, is_failure| ResponseClass { matcher: ResponseMatch::Status { min, max }, is_failure };
    let on = RetryOn { retriable_4xx: true, ..RetryOn::default() };
    let list = Route {
        stat_prefix: "GET /list".to_owned(),
        response_classes: vec![status(404, 404, true), status(500, 500, false)],
        ..policy::forward(prefix("/list"), forward_with(Some(retrying(1, on))))
    };
    let plain = Route { stat_prefix: "[DEFAULT]".to_owned(), ..policy::forward(prefix("/plain"), forward_with(None)) };
    let uncounted = Route { name: "rest".to_owned(), ..policy::route_to("test".into()) };
    let snapshot =
        |endpoints| policy::snapshot(policy::routes([list, plain, uncounted]), [(cluster("test"), endpoints)]);
    let source = FixedSource::of(TARGET, snapshot(vec![server.endpoint()]));
    let client = Client::builder(source.clone()).metrics(metrics.clone()).build();

    for (path, code) in [("/list", 404), ("/list", 500), ("/list", 409), ("/plain", 404), ("/plain", 500), ("/", 500)] {
        server.script([Behaviour::Status(code)]);
        fetch(&client, path).await.unwrap();
    }
    let row = |route: &str, successes, failures| (route.to_owned(), successes, failures, successes + failures);
    assert_eq!(by_route(&metrics), [row("GET /list", 2, 1), row("[DEFAULT]", 1, 1)], "a retried 409 is one success");

    // An answer that breaks off is a failure; before there is one the application may change its mind.
    server.script([Behaviour::Stall]);
    let mut cut = client.send(get("/plain")).await.unwrap();
    cut.body_mut().frame().await.unwrap().unwrap();
    drop(cut);
    server.script([Behaviour::Hold]);
    tokio::select! {
        biased;
        _ = client.send(get("/plain")) => unreachable!("it is held"),
        () = server.wait_for_requests(9) => {}
    }
    server.script([Behaviour::CloseConnection]);
    client.send(super::post("/list", "pay")).await.unwrap_err();
    assert_eq!(by_route(&metrics), [row("GET /list", 2, 2), row("[DEFAULT]", 1, 2)]);
}
