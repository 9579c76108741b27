//! What the server tells of its load (gRFC A51).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};

use mesh_core::balance::EndpointReport;
use mesh_core::error::BoxError;
use mesh_core::orca::{self, Frames, PROBE_PATH, STREAM_PATH};
use mesh_core::policy::InboundTls;
use mesh_server::{Body, Config, LoadReporter};
use tokio::sync::watch;

use crate::kit::{Client, Http, World, get, policy, within};

/// Answers at once, or if asked at `/hold` when it is let go.
async fn world(load: Option<LoadReporter>) -> (World, watch::Sender<bool>) {
    let (let_go, held) = watch::channel(false);
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut held = held.clone();
        async move {
            if let Some(load) = request.extensions().get::<LoadReporter>() {
                assert!(load.set("request_cost.rows", 12.0));
                assert!(!load.set("rows", 12.0) && !load.set("request_cost.rows", f64::NAN));
            }
            match request.uri().path() {
                "/hold" => drop(held.wait_for(|go| *go).await),
                "/fail" => return Err(BoxError::from("as ordered")),
                _ => {}
            }
            let body = Full::new(Bytes::from_static(b"hello"));
            let grpc = request.headers().contains_key("content-type");
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let trailers = grpc.then(|| Ok(trailers));
            Ok::<_, BoxError>(Response::new(body.with_trailers(std::future::ready(trailers))))
        }
    });
    let mut config = Config::default();
    config.min_load_report_interval = Duration::from_millis(1);
    (World::start_telling(policy(InboundTls::Permissive), config, load, service).await, let_go)
}

fn grpc(path: &str) -> Request<Empty<Bytes>> {
    let mut request = get(path);
    *request.method_mut() = http::Method::POST;
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request
}

fn rows(report: &EndpointReport) -> Option<f64> {
    report.metric("request_cost.rows")
}

#[tokio::test]
async fn an_answer_tells_the_load_in_headers_and_for_grpc_in_trailers() {
    let load = LoadReporter::new();
    assert!(load.set("application_utilization", 0.5));
    let (world, _) = world(Some(load.clone())).await;
    for version in [Http::One, Http::Two] {
        let mut client = world.plain(version).await;
        let answer = client.send(get("/")).await.unwrap();
        let report = orca::read(answer.headers()).unwrap();
        assert_eq!((report.utilization, rows(&report)), (0.5, Some(12.0)), "the process's word and the request's");
        assert_eq!(report.in_flight, Some(0), "the request itself is as good as over");
        assert!(report.requests_per_second > 0.0 && report.latency.is_some(), "measured: {report:?}");
    }
    load.set("application_utilization", 0.75);
    let answer = world.plain(Http::Two).await.send(grpc("/")).await.unwrap();
    assert_eq!(orca::read(answer.headers()), None, "the head of a gRPC answer comes too early");
    let trailers = answer.into_body().collect().await.unwrap().trailers().unwrap().clone();
    let report = orca::read(&trailers).unwrap();
    assert_eq!((report.utilization, rows(&report)), (0.75, Some(12.0)));
    assert_eq!(trailers["grpc-status"], "0");

    // The mesh's own answer to a failure has no body.
    let failed = world.plain(Http::Two).await.send(grpc("/fail")).await.unwrap();
    let report = orca::read(failed.headers()).unwrap();
    assert!(report.errors_per_second > 0.0, "{report:?}");
}

#[tokio::test]
async fn nobody_is_told_anything_unless_it_was_asked_for() {
    let (world, _) = world(None).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(orca::read(client.send(get("/")).await.unwrap().headers()), None);
    let answer = client.send(get(PROBE_PATH)).await.unwrap();
    assert_eq!((answer.status().as_u16(), orca::read(answer.headers())), (200, None), "the application's to answer");
    let answer = client.send(grpc("/")).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(orca::read(answer.trailers().unwrap()), None);
}

/// Requests in flight, as a probe is told.
async fn told(client: &mut Client) -> Option<u32> {
    let answer = client.send(get(PROBE_PATH)).await.unwrap();
    assert_eq!(answer.status(), 204);
    orca::read(answer.headers()).unwrap().in_flight
}

#[tokio::test]
async fn a_probe_tells_of_the_requests_in_flight_and_is_none_itself() {
    let (world, let_go) = world(Some(LoadReporter::new())).await;
    for version in [Http::One, Http::Two] {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(crate::kit::spawn(world.plain(Http::One).await.send(get("/hold"))));
        }
        let mut client = world.plain(version).await;
        within(async { while told(&mut client).await != Some(3) {} }).await;
        let_go.send_replace(true);
        for held in held {
            held.await.unwrap().unwrap().into_body().collect().await.unwrap();
        }
        within(async { while told(&mut client).await != Some(0) {} }).await;
        let_go.send_replace(false);
    }
    let lines = world.metrics_text();
    let counted: u64 = lines.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    assert_eq!(counted, 6, "probes are not counted: {lines}");
}

#[tokio::test]
async fn a51_reports_are_streamed_until_the_server_drains() {
    let load = LoadReporter::new();
    load.set("cpu_utilization", 0.25);
    let (world, _) = world(Some(load.clone())).await;
    let answer = world.mutual(Http::Two).await.send(grpc(STREAM_PATH)).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let (mut body, mut frames, mut seen) = (answer.into_body(), Frames::default(), Vec::new());
    let mut status = None;
    while let Some(frame) = within(body.frame()).await {
        let frame = frame.unwrap();
        status = frame.trailers_ref().map(|trailers| trailers["grpc-status"].clone());
        frames.push(frame.data_ref().map_or(&[], |data| &data[..]));
        while let Some(message) = frames.next_message().unwrap() {
            seen.push(orca::decode(&message).unwrap().cpu);
        }
        match seen.len() {
            2 => _ = load.set("cpu_utilization", 0.5),
            5 => world.drain.drain(),
            _ => {}
        }
    }
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.25, 0.5));
    assert_eq!(status.unwrap(), "14", "the client asks elsewhere");
}
