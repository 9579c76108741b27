//! Requests that get nowhere, and what is said of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use mesh_client::{Client, ClientBuilder};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{ClusterState, DestinationState, RouteAction, RouteMatch};
use mesh_core::telemetry::Metrics;
use mesh_testkit::{FixedSource, policy};
use tokio::runtime::Builder;

use super::{TARGET, client_of, cluster, fetch};

#[tokio::test(start_paused = true)]
async fn configuration_that_does_not_come_is_not_waited_for_forever() {
    let source = FixedSource::new();
    let client = Client::builder(source.clone()).build();
    let start = tokio::time::Instant::now();
    let error = fetch(&client, "/").await.unwrap_err();
    assert_eq!((error.code(), start.elapsed()), (Code::CONFIG_PENDING, Duration::from_secs(5)));
    assert!(source.was_asked(TARGET));
}

#[tokio::test]
async fn an_unknown_destination_says_why() {
    let source = FixedSource::new();
    source.set(TARGET, DestinationState::Failed("no service named reviews in namespace default".into()));
    let error = fetch(&Client::builder(source).build(), "/").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "MESH-1002 unknown destination for reviews:9080 (no service named reviews in namespace default). Check the \
         name and the namespace it is dialled from, and that a Service or ServiceEntry exists."
    );
}

#[tokio::test]
async fn each_gap_in_the_configuration_has_its_code() {
    let nowhere = policy::snapshot(policy::routes([]), []);
    let unnamed = policy::snapshot(policy::routes([policy::route_to("gone".into())]), []);
    let mut refused = policy::snapshot_of(cluster("test"), []);
    refused.clusters.insert("test".into(), ClusterState::Failed("no such subset".into()));
    let server_side = policy::routes([policy::route(RouteMatch::any(), RouteAction::NonForwarding)]);
    for (snapshot, code) in [
        (nowhere, Code::NO_ROUTE),
        (unnamed, Code::NO_CLUSTER),
        (refused, Code::NO_CLUSTER),
        (policy::snapshot(server_side, []), Code::UNSUPPORTED_ACTION),
        (policy::snapshot_of(cluster("test"), []), Code::NO_ENDPOINT),
    ] {
        let (client, _) = client_of(snapshot);
        let error = fetch(&client, "/").await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let response = error.into_response();
        assert_eq!(response.status(), code.http_status());
    }
}

#[tokio::test]
async fn targets_that_cannot_be_dialled_are_the_callers_fault() {
    let client = Client::builder(FixedSource::new()).build();
    for request in [
        Request::get("/relative"),
        Request::get("/").header("host", "reviews:0"),
        Request::get("/").header("host", "reviews:99999"),
        Request::get("/").header("host", "re views:80"),
        Request::get("/").header("host", ":80"),
    ] {
        let error = client.send(request.body(String::new()).unwrap()).await.unwrap_err();
        assert_eq!(error.code(), Code::BAD_TARGET, "{error}");
    }
}

#[tokio::test]
async fn the_number_of_destinations_is_bounded() {
    let client = Client::builder(FixedSource::new()).max_destinations(1).config_wait(Duration::ZERO).build();
    let code = async |host: &str| {
        let request = Request::get(format!("http://{host}/")).body(String::new()).unwrap();
        client.send(request).await.unwrap_err().code()
    };
    assert_eq!(code("one:80").await, Code::CONFIG_PENDING);
    assert_eq!(code("two:80").await, Code::BREAKER_OPEN);
    assert_eq!(code("one").await, Code::CONFIG_PENDING, "the same destination under its short form");
}

/// Requests to so many hosts that nobody knows: what was said, series of metrics, and bytes that are held, by the series and
/// by all.
fn names(client: ClientBuilder, hosts: usize) -> (BTreeMap<Code, usize>, usize, [i64; 2]) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (metrics, mut said, mut kept) = (Arc::<Metrics>::default(), BTreeMap::new(), None);
    let client = client.metrics(metrics.clone()).config_wait(Duration::ZERO);
    let held = allocation_counter::measure(|| {
        runtime.block_on(async {
            let client = client.build();
            for host in 0..hosts {
                let request = Request::get(format!("http://host-{host}.example:80/")).body(String::new()).unwrap();
                let code = client.send(request).await.unwrap_err().code();
                *said.entry(code).or_default() += 1;
            }
            kept = Some(client);
        });
    });
    let given_back = allocation_counter::measure(|| drop(kept));
    let mut series = 0;
    metrics.visit(|_, _, _| series += 1);
    (said, series, [held.bytes_current + given_back.bytes_current, held.bytes_current])
}

#[test]
fn a_hundred_thousand_hosts_are_no_more_destinations_and_series_than_their_bound_r38() {
    // The series of names without end, of which R38 speaks; and the destinations as well, of which a client keeps 4,096
    // whoever asks for them, with all that one needs before its first answer.
    const BOUNDS: [i64; 2] = [16 << 20, 32 << 20];
    let (said, series, bytes) = names(Client::builder(FixedSource::new()), 100_000);
    println!("{said:?} {series} {bytes:?}");
    assert_eq!(said, BTreeMap::from([(Code::CONFIG_PENDING, 4096), (Code::BREAKER_OPEN, 100_000 - 4096)]));
    assert_eq!(series, 4096);
    assert!(bytes[0] < BOUNDS[0] && bytes[1] < BOUNDS[1], "{bytes:?}");
    // The control: without the bound on destinations; series keep to theirs.
    let (said, series, bytes) = names(Client::builder(FixedSource::new()).max_destinations(usize::MAX), 20_000);
    println!("{said:?} {series} {bytes:?}");
    assert_eq!((said[&Code::CONFIG_PENDING], series), (20_000, 16_385));
    assert!(bytes[1] > BOUNDS[1], "{bytes:?}");
}

/// What an application says to a client is in nothing that the client prints, least of all in its errors, which are logged.
#[tokio::test]
async fn s92_no_secret_of_a_request_is_in_what_a_client_says_of_it() {
    let nobody = policy::snapshot_of(cluster("test"), []);
    let (unknown, known) = (FixedSource::new(), FixedSource::of(TARGET, nobody));
    let clients = [unknown, known].map(|source| Client::builder(source).config_wait(Duration::ZERO).build());
    for (client, code) in clients.iter().zip([Code::CONFIG_PENDING, Code::NO_ENDPOINT]) {
        let request = Request::post(format!("http://{TARGET}/a?token=sesame-1"))
            .header("authorization", "Bearer sesame-2")
            .header("cookie", "session=sesame-3")
            .header("baggage", "token=sesame-4")
            .body("sesame-5".to_owned())
            .unwrap();
        let shown = format!("{:?} {:?}", mesh_client::Body::from("sesame-6"), client);
        let error = client.send(request).await.unwrap_err();
        assert_eq!(error.code(), code);
        let shown = format!("{shown} {error} {error:?}");
        let shown = format!("{shown} {:?}", error.into_response());
        assert!(!shown.contains("sesame"), "{shown}");
        // The control: it is printed, and names the target.
        assert!(shown.contains(TARGET), "{shown}");
    }
}
