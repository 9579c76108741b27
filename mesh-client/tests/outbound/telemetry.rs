//! Trace context, metrics, access log.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use mesh_client::Client;
use mesh_core::context::{RequestContext, TraceContext, scope};
use mesh_core::id::Workload;
use mesh_core::policy::{ClusterTelemetry, EndpointMetadata};
use mesh_core::telemetry::{Metrics, Reporter};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};

use super::{TARGET, client_of, cluster, dead_address, fetch, get, read};

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
    let context = RequestContext::from_headers(&served, || 7);
    scope(context.into(), async { fetch(&client, "/").await }).await.unwrap();

    let received = server.received()[0].headers.clone();
    let trace = TraceContext::parse(received["traceparent"].to_str().unwrap()).unwrap();
    assert_eq!(trace.trace_id(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
    assert_ne!(trace.span_id(), 0x00f0_67aa_0ba9_02b7, "the call is a span of its own");
    assert!(trace.sampled());
    assert_eq!(received["tracestate"], "vendor=1");
    assert_eq!(received["x-request-id"], "r-1");
}

#[tokio::test]
async fn a_request_of_nobody_begins_a_trace_and_the_applications_own_stays() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    fetch(&client, "/").await.unwrap();
    let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut request = get("/");
    request.headers_mut().insert("traceparent", HeaderValue::from_static(own));
    client.send(request).await.unwrap();
    let received = server.received();
    assert!(TraceContext::parse(received[0].headers["traceparent"].to_str().unwrap()).is_ok());
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
