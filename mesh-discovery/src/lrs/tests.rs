//! The reporter against a control plane over loopback. Its time is real: gRPC's shortest interval is a second.

use std::time::Duration;

use envoy_types::pb::envoy::config::endpoint::v3::ClusterStats;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf;
use mesh_core::balance::EndpointReport;
use mesh_core::id::Locality;
use mesh_core::policy::LoadReport;
use mesh_core::telemetry::load::ClusterLoad;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::wire::Order;
use super::*;
use crate::test_plane::{Serving, connector, serve};

/// A control plane; every stream arrives at the test.
#[derive(Clone)]
struct Plane(mpsc::UnboundedSender<Stream>);

/// One stream, seen from the control plane. Dropping it ends it.
struct Stream {
    requests: Streaming<LoadStatsRequest>,
    answers: mpsc::UnboundedSender<Result<LoadStatsResponse, Status>>,
}

#[tonic::async_trait]
impl LoadReportingService for Plane {
    type StreamLoadStatsStream = UnboundedReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (answers, outgoing) = mpsc::unbounded_channel();
        self.0.send(Stream { requests: request.into_inner(), answers }).unwrap();
        Ok(Response::new(UnboundedReceiverStream::new(outgoing)))
    }
}

impl Stream {
    /// Takes the node and orders reports of these clusters (none = all) every second.
    async fn order(&mut self, clusters: &[&str]) -> LoadStatsRequest {
        let first = self.requests.message().await.unwrap().unwrap();
        let answer = LoadStatsResponse {
            clusters: clusters.iter().map(|&name| name.to_owned()).collect(),
            send_all_clusters: clusters.is_empty(),
            load_reporting_interval: Some(protobuf::Duration { seconds: 1, nanos: 0 }),
            ..LoadStatsResponse::default()
        };
        self.answers.send(Ok(answer)).unwrap();
        first
    }

    /// The next report that says something.
    async fn report(&mut self) -> Vec<ClusterStats> {
        loop {
            let report = self.requests.message().await.unwrap().expect("the stream is open");
            assert_eq!(report.node, None, "who reports is said once");
            if !report.cluster_stats.is_empty() {
                return report.cluster_stats;
            }
        }
    }
}

/// A control plane, a reporter to it, and what is reported.
struct World {
    store: Arc<LoadStore>,
    streams: mpsc::UnboundedReceiver<Stream>,
    _serving: Serving,
    _reporter: AbortOnDrop,
}

async fn world(givers: Givers) -> World {
    let (sender, streams) = mpsc::unbounded_channel();
    let serving = serve(LoadReportingServiceServer::new(Plane(sender)), None, 0).await;
    let store = Arc::<LoadStore>::default();
    let node = wire::reporting(node_to_wire(&crate::bootstrap::Node { id: "me".to_owned(), ..Default::default() }));
    let ours = Ours::new(0, givers);
    let worker = Worker::new(store.clone(), connector(serving.port, None), node, ours);
    let reporter = worker::spawn(worker, &Handle::current());
    World { store, streams, _serving: serving, _reporter: reporter }
}

fn all_ours() -> Givers {
    Arc::new(|names| vec![Some(0); names.len()])
}

impl World {
    fn cluster(&self, name: &str) -> Arc<ClusterLoad> {
        self.store.cluster(&name.into(), "", Instant::now())
    }
}

fn zone(zone: &str) -> Locality {
    Locality { zone: zone.to_owned(), ..Locality::default() }
}

fn names(stats: &[ClusterStats]) -> Vec<&str> {
    stats.iter().map(|stats| stats.cluster_name.as_str()).collect()
}

/// gRFC A27: the node first, then reports as ordered.
#[tokio::test]
async fn reports_come_as_the_control_plane_orders_and_say_what_happened() {
    let mut world = world(all_ours()).await;
    let cluster = world.store.cluster(&"a".into(), "eds", Instant::now());
    let here = cluster.locality(&zone("here"));
    let mut stream = world.streams.recv().await.unwrap();
    let first = stream.order(&[]).await;
    let node = first.node.unwrap();
    assert_eq!((node.id.as_str(), first.cluster_stats.len()), ("me", 0));
    assert!(node.client_features.iter().any(|feature| feature == "envoy.lrs.supports_send_all_clusters"));

    let (mut good, bad, _open) = (here.issue(), here.issue(), here.issue());
    good.judge(true);
    drop((good, bad));
    cluster.drops("lb").fetch_add(3, std::sync::atomic::Ordering::Relaxed);
    cluster.refused();
    let stats = &stream.report().await[0];
    assert_eq!((stats.cluster_name.as_str(), stats.cluster_service_name.as_str()), ("a", "eds"));
    assert_eq!(stats.total_dropped_requests, 4);
    assert_eq!((stats.dropped_requests[0].category.as_str(), stats.dropped_requests[0].dropped_count), ("lb", 3));
    assert!(stats.load_report_interval.unwrap().seconds >= 1, "measured: {stats:?}");
    let [locality] = &stats.upstream_locality_stats[..] else { panic!("{stats:?}") };
    assert_eq!(locality.locality.as_ref().unwrap().zone, "here");
    let numbers = (
        locality.total_issued_requests,
        locality.total_successful_requests,
        locality.total_error_requests,
        locality.total_requests_in_progress,
    );
    assert_eq!(numbers, (3, 1, 1, 1));
}

#[tokio::test]
async fn only_the_clusters_that_are_named_are_reported() {
    let mut world = world(all_ours()).await;
    let (a, b) = (world.cluster("a"), world.cluster("b"));
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&["b"]).await;
    let count = || drop((a.locality(&zone("z")).issue(), b.locality(&zone("z")).issue()));
    count();
    assert_eq!(names(&stream.report().await), ["b"]);
    // The control: with another order it is reported, and nothing has been lost.
    let all = LoadStatsResponse { send_all_clusters: true, ..LoadStatsResponse::default() };
    stream.answers.send(Ok(all)).unwrap();
    let stats = stream.report().await;
    assert_eq!((names(&stats)[0], stats[0].upstream_locality_stats[0].total_issued_requests), ("a", 1));
}

#[tokio::test]
async fn there_is_a_stream_only_while_a_cluster_wants_one() {
    let mut world = world(all_ours()).await;
    let cluster = world.cluster("a");
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    drop(cluster.locality(&zone("z")).issue());
    drop(cluster);
    assert_eq!(names(&stream.report().await), ["a"], "the rest is told");
    while stream.requests.message().await.unwrap().is_some() {}
    assert!(world.streams.try_recv().is_err(), "nothing is left to report");

    let _again = world.cluster("b");
    assert!(world.streams.recv().await.is_some());
}

#[tokio::test]
async fn what_happens_while_no_stream_is_open_is_part_of_the_next_report() {
    let mut world = world(all_ours()).await;
    let cluster = world.cluster("a");
    let here = cluster.locality(&zone("z"));
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    drop(here.issue());
    stream.report().await;
    stream.answers.send(Err(Status::unavailable("restarting"))).unwrap();
    drop(stream);
    drop(here.issue());
    let mut stream = world.streams.recv().await.unwrap();
    assert_eq!(stream.order(&[]).await.node.unwrap().id, "me", "a new stream begins with the node");
    drop(here.issue());
    let stats = stream.report().await;
    assert_eq!(stats[0].upstream_locality_stats[0].total_issued_requests, 2);
}

#[tokio::test]
async fn a_stream_that_breaks_between_the_messages_of_a_report_costs_what_was_on_its_way_and_no_more() {
    const CLUSTERS: usize = 10_000;
    let mut world = world(all_ours()).await;
    // With names as long as it takes for a report to be more than the window of a stream, which is 1 MiB.
    let clusters: Vec<_> = (0..CLUSTERS).map(|number| world.cluster(&format!("{number:0300}"))).collect();
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    clusters.iter().for_each(|cluster| drop(cluster.locality(&zone("z")).issue()));
    let first = stream.report().await.len();
    assert!(first < CLUSTERS, "it takes several messages");
    drop(stream);
    // Some are lost in buffers; what was not taken from the store is told now.
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    let mut told = first;
    while told < CLUSTERS / 2 {
        told += stream.report().await.len();
    }
}

const MANY_CLUSTERS: usize = 1_000;
const LOCALITIES: usize = 10;

/// Many clusters, each with a request in each of its localities, whose endpoint had so many metrics to tell.
fn busy(world: &World, metrics: usize) -> Vec<Arc<ClusterLoad>> {
    let metrics = (0..metrics).map(|n| (format!("named_metrics.{n:060}"), 0.5)).collect();
    let report = EndpointReport { metrics, ..EndpointReport::default() };
    let policy = LoadReport { metrics: vec!["named_metrics.*".to_owned()] };
    let clusters: Vec<_> = (0..MANY_CLUSTERS).map(|number| world.cluster(&number.to_string())).collect();
    for (cluster, number) in clusters.iter().flat_map(|cluster| (0..LOCALITIES).map(move |number| (cluster, number))) {
        cluster.locality(&zone(&number.to_string())).issue().report(&report, &policy);
    }
    clusters
}

/// Localities in a report, and metrics of theirs.
fn size(report: &[ClusterStats]) -> (usize, usize) {
    let localities = || report.iter().flat_map(|stats| &stats.upstream_locality_stats);
    (localities().count(), localities().map(|locality| locality.load_metric_stats.len()).sum())
}

/// gRPC servers take 4 MiB by default.
#[tokio::test]
async fn a_report_is_cut_into_messages_that_any_server_takes() {
    const METRICS: usize = 8;
    let mut world = world(all_ours()).await;
    let _clusters = busy(&world, METRICS);
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    let mut told = (0, 0);
    while told.0 < MANY_CLUSTERS * LOCALITIES {
        let (localities, metrics) = size(&stream.report().await);
        told = (told.0 + localities, told.1 + metrics);
    }
    assert_eq!(told, (MANY_CLUSTERS * LOCALITIES, MANY_CLUSTERS * LOCALITIES * METRICS));
}

#[tokio::test]
async fn what_is_taken_from_the_store_and_not_given_to_a_stream_that_breaks_is_told_on_the_next_one() {
    let mut world = world(all_ours()).await;
    // Eight messages: one is read, and no more than three are on their way.
    let _clusters = busy(&world, 28);
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    let (first, _) = size(&stream.report().await);
    drop(stream);
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    // What is still in the store comes last.
    drop(world.cluster("last").locality(&zone("z")).issue());
    let mut told = first;
    loop {
        let report = stream.report().await;
        told += size(&report).0;
        if names(&report).contains(&"last") {
            break;
        }
    }
    assert!((4 * first..=MANY_CLUSTERS * LOCALITIES).contains(&(told - 1)), "{told} of {first} at first");
}

#[tokio::test]
async fn a_control_plane_hears_of_its_own_clusters_only() {
    let mut world =
        world(Arc::new(|names| names.iter().map(|name| Some(u16::from(name.as_str() != "ours"))).collect())).await;
    let (theirs, ours) = (world.cluster("theirs"), world.cluster("ours"));
    let mut stream = world.streams.recv().await.unwrap();
    stream.order(&[]).await;
    drop((theirs.locality(&zone("z")).issue(), ours.locality(&zone("z")).issue()));
    assert_eq!(names(&stream.report().await), ["ours"]);
}

#[test]
fn a_cluster_that_nobody_gives_any_more_stays_with_who_gave_it() {
    let given = Arc::new(Mutex::new(Some(1)));
    let givers: Givers = Arc::new({
        let given = given.clone();
        move |names| vec![*given.lock(); names.len()]
    });
    let name = [ClusterName::new("xdstp://other/c")];
    let (mut first, mut second) = (Ours::new(0, givers.clone()), Ours::new(1, givers));
    let mut hear = || (first.among(&name).len(), second.among(&name).len());
    assert_eq!(hear(), (0, 1));
    *given.lock() = None;
    assert_eq!(hear(), (0, 1));
    *given.lock() = Some(0);
    assert_eq!(hear(), (1, 0), "another one gave it since");
}

#[test]
fn an_interval_from_the_wire_is_kept_in_bounds() {
    let order = |interval| {
        Order::of(LoadStatsResponse { load_reporting_interval: interval, ..LoadStatsResponse::default() }).interval
    };
    let of = |seconds, nanos| order(Some(protobuf::Duration { seconds, nanos }));
    for (interval, want) in [
        (order(None), Duration::from_secs(1)),
        (of(-5, 0), Duration::from_secs(1)),
        (of(0, 1), Duration::from_secs(1)),
        (of(2, 500_000_000), Duration::from_millis(2500)),
        (of(2, -1), Duration::from_secs(2)),
        (of(i64::MAX, i32::MAX), Duration::from_secs(3600)),
    ] {
        assert_eq!(interval, want);
    }
}
