//! A server that goes away: what it has begun it finishes, and nobody notices.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::Method;
use mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{FREE, Load, Plane, becomes, call, eventually, held, plain_get};

const REVIEWS: &str = "http://reviews:9080/";
const SLOW: &str = "http://reviews:9080/slow";

#[tokio::test]
async fn s84_a_request_to_the_debug_address_drains_nothing_unless_that_was_asked_for() {
    for (opted, answer, ready) in [(false, "HTTP/1.1 404", 200), (true, "HTTP/1.1 202", 503)] {
        let builder = Mesh::builder().standalone().debug_address(FREE);
        let mesh = if opted { builder.debug_drain() } else { builder }.build().await.unwrap();
        let debug = mesh.debug_address().unwrap();
        // As an application sends it that was made to call an address of the caller's: without `Origin`.
        let mut tcp = TcpStream::connect(debug).await.unwrap();
        let post = "POST /drain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        tcp.write_all(post.as_bytes()).await.unwrap();
        let mut said = String::new();
        tcp.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with(answer), "{said}");
        assert_eq!(plain_get(debug, "/readyz").await.unwrap().0, ready);
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let plane = Plane::start().await;
    let (entered, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let app = Router::new().route("/slow", held(&entered, &proceed)).fallback(get(|| async { "leaving" }));
    let mut leaving = plane.serve("reviews", "", app).await;
    let caller = plane.caller("productpage").await;
    let in_flight = tokio::spawn({
        let caller = caller.clone();
        async move { call(&caller, SLOW, &[]).await }
    });
    entered.notified().await;
    let staying = plane.answering("reviews", "", "staying").await;
    becomes(&caller, REVIEWS, &[], "staying").await;

    let debug = leaving.mesh.debug_address().unwrap();
    assert_eq!(plain_get(debug, "/readyz").await.unwrap().0, 200);
    leaving.mesh.begin_shutdown();
    let (status, reasons) = plain_get(debug, "/readyz").await.unwrap();
    assert_eq!((status, reasons.as_str()), (503, "draining\n"));
    eventually("new connections are refused", || async {
        TcpStream::connect(leaving.address).await.is_err().then_some(())
    })
    .await;
    eventually("it is withdrawn", || async { (!plane.has_registered(leaving.address).await).then_some(()) }).await;
    assert!(plane.has_registered(staying.address).await);
    for _ in 0..20 {
        assert_eq!(call(&caller, REVIEWS, &[]).await.unwrap().1, "staying");
    }
    assert!(!in_flight.is_finished());
    proceed.notify_one();
    assert_eq!(in_flight.await.unwrap().unwrap().1, "finished");
    leaving.finished().await;
}

#[tokio::test]
async fn an_idle_server_that_drains_is_withdrawn_at_once() {
    let plane = Plane::start().await;
    let mut server = plane.answering("reviews", "", "hello").await;
    server.mesh.begin_shutdown();
    server.finished().await;
    assert!(!plane.has_registered(server.address).await);
}

/// Nobody sends anything again, and connections are of HTTP/2, or of HTTP/1.1.
fn no_retries(http2: bool) -> String {
    let upgrade = if http2 { "UPGRADE" } else { "DO_NOT_UPGRADE" };
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: reviews }}
spec:
  hosts: [reviews]
  http: [{{ route: [{{ destination: {{ host: reviews }} }}], retries: {{ attempts: 0 }} }}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: reviews }}
spec: {{ host: reviews, trafficPolicy: {{ connectionPool: {{ http: {{ h2UpgradePolicy: {upgrade} }} }} }} }}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_drain_costs_a_request_though_nobody_retries() {
    for http2 in [false, true] {
        let plane = Plane::start().await;
        plane.write("reviews.yaml", no_retries(http2));
        let answer = |name: &'static str| {
            move |request: axum::extract::Request| async move { format!("{name} {:?}", request.version()) }
        };
        let app = |name| Router::new().fallback(axum::routing::any(answer(name)));
        let version = if http2 { "HTTP/2.0" } else { "HTTP/1.1" };
        let (stays, leaves) = (format!("staying {version}"), format!("leaving {version}"));
        let _staying = plane.serve("reviews", "", app("staying")).await;
        let caller = plane.caller("productpage").await;
        becomes(&caller, REVIEWS, &[], &stays).await;
        plane.no_findings().await;
        let load = Load::of(&caller, Method::POST, REVIEWS, 8, Duration::from_millis(1));
        for _ in 0..2 {
            let mut leaving = plane.serve("reviews", "", app("leaving")).await;
            becomes(&caller, REVIEWS, &[], &leaves).await;
            load.more(200).await;
            leaving.mesh.begin_shutdown();
            leaving.finished().await;
        }
        load.more(100).await;
        let tally = load.all_well().await;
        assert!(tally.answers.keys().eq([&leaves, &stays]), "{tally:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_drain_costs_a_request_of_any_method() {
    let plane = Plane::start().await;
    let _staying = plane.answering("reviews", "", "staying").await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "staying").await;
    for method in [Method::GET, Method::POST] {
        // Nothing but an unsent request is tried again for a POST: a lost one would show.
        let load = Load::of(&caller, method.clone(), REVIEWS, 8, Duration::from_millis(1));
        for _ in 0..4 {
            let mut leaving = plane.answering("reviews", "", "leaving").await;
            becomes(&caller, REVIEWS, &[], "leaving").await;
            load.more(200).await;
            leaving.mesh.begin_shutdown();
            leaving.finished().await;
        }
        load.more(100).await;
        let tally = load.all_well().await;
        assert!(tally.answers.values().all(|count| *count > 100) && tally.answers.len() == 2, "{method}: {tally:?}");
    }
}
