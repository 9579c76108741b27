//! The task that reports to one control plane.
//!
//! ```text
//! idle ──a cluster of ours──▶ connecting ──▶ node sent ──answer──▶ reporting ──no cluster of ours──▶ idle
//!   any state ──stream fails──▶ waiting (exponential, full jitter) ──▶ idle
//! ```
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use mesh_core::id::ClusterName;
use mesh_core::telemetry::load::LoadStore;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Ours;
use super::untold::Untold;
use super::wire::{self, Order};
use crate::backoff::Backoff;
use crate::connect::{AbortOnDrop, Connection, Connector, status_text};

/// Waits between streams.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// How often to look whether a cluster is ours by now, and whether one still is, where nothing else tells.
const LOOK: Duration = Duration::from_secs(10);
/// Longest wait for a control plane to read the last report.
const FAREWELL: Duration = Duration::from_secs(2);
/// Clusters that are taken from the store at once: what of them no message has room for is kept meanwhile.
const CLUSTERS: usize = 1000;

/// Reports to one control plane.
pub(super) struct Worker {
    store: Arc<LoadStore>,
    connector: Connector,
    node: Node,
    ours: Ours,
    /// Taken from the store, and not told yet.
    untold: Untold,
    /// The last failure since an answer, so that it is logged once.
    complaint: Option<String>,
}

/// Spawns the worker on `runtime`.
pub(super) fn spawn(worker: Worker, runtime: &Handle) -> AbortOnDrop {
    AbortOnDrop(runtime.spawn(worker.run()))
}

/// An open stream; a connection of its own closes with it.
struct Open {
    requests: mpsc::Sender<LoadStatsRequest>,
    answers: Streaming<LoadStatsResponse>,
    _connection: Connection,
}

impl Worker {
    pub(super) fn new(store: Arc<LoadStore>, connector: Connector, node: Node, ours: Ours) -> Self {
        Self { store, connector, node, ours, untold: Untold::default(), complaint: None }
    }

    async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut random = fastrand::Rng::new();
        loop {
            self.wanted().await;
            let Err(why) = self.report(&mut backoff).await else { continue };
            if self.complaint.as_ref() != Some(&why) {
                tracing::warn!(server = %self.connector.server(), error = %why, "load is not reported to the control plane for now");
                self.complaint = Some(why);
            }
            sleep(backoff.next(random.f64())).await;
        }
    }

    /// Waits for a cluster that this control plane wants to hear of.
    async fn wanted(&mut self) {
        // What the last stream was not given is told, whatever comes.
        if !self.untold.is_empty() {
            return;
        }
        let mut added = self.store.added();
        loop {
            let names = self.store.names();
            if !self.ours.among(&names).is_empty() {
                return;
            }
            // Whose a cluster is may become known later than the cluster.
            let look = async { if names.is_empty() { std::future::pending().await } else { sleep(LOOK).await } };
            tokio::select! {
                // The store is ours too: the sender is there.
                _ = added.changed() => {}
                () = look => {}
            }
        }
    }

    /// Reports until no cluster is this control plane's any more, or the stream fails.
    async fn report(&mut self, backoff: &mut Backoff) -> Result<(), String> {
        let connection = self.connector.shared().await.map_err(|e| e.to_string())?;
        let mut stream = Open::begin(connection, self.node.clone()).await?;
        let mut order: Option<Order> = None;
        let mut due = Instant::now() + LOOK;
        let mut told_nothing = false;
        loop {
            // Nothing is taken from the store before it can be sent.
            let tick = async {
                sleep_until(due).await;
                stream.requests.reserve().await.map(drop)
            };
            tokio::select! {
                answer = stream.answers.message() => {
                    let next = Order::of(answer.map_err(|status| status_text(&status))?.ok_or(CLOSED)?);
                    backoff.reset();
                    self.complaint = None;
                    if order.as_ref().is_none_or(|order| order.interval != next.interval) {
                        due = Instant::now() + next.interval;
                    }
                    order = Some(next);
                    continue;
                }
                writable = tick => writable.map_err(|_| CLOSED)?,
            }
            due = Instant::now() + order.as_ref().map_or(LOOK, |order| order.interval);
            if let Some(order) = &order {
                let told = self.tell(order, &stream, !told_nothing).await?;
                told_nothing = !told;
            }
            if self.untold.is_empty() && self.ours.among(&self.store.names()).is_empty() {
                stream.end().await;
                return Ok(());
            }
        }
    }

    /// Sends what happened, taken from the store when there is room for a message: what a stream that breaks in between was
    /// not given is told on the next one. Gives whether something happened; if nothing did, an empty message
    /// says so where it is wanted.
    async fn tell(&mut self, order: &Order, stream: &Open, says_nothing: bool) -> Result<bool, String> {
        let ours = self.ours.among(&self.store.names());
        let mut wanted: Vec<ClusterName> = ours.iter().filter(|name| order.wants(name)).cloned().collect();
        wanted.sort_unstable();
        let mut parts = wanted.chunks(CLUSTERS);
        // Of an earlier stream's.
        self.untold.retain(|cluster| order.wants(&ClusterName::from(cluster)));
        let mut told = false;
        loop {
            let room = stream.requests.reserve().await.map_err(|_| CLOSED)?;
            while self.untold.is_empty()
                && let Some(part) = parts.next()
            {
                let reports = self.store.take(|cluster| part.binary_search(cluster).is_ok(), Instant::now());
                reports.into_iter().map(wire::stats).for_each(|stats| self.untold.add(stats));
            }
            let cluster_stats = self.untold.message();
            if cluster_stats.is_empty() {
                break;
            }
            room.send(LoadStatsRequest { node: None, cluster_stats });
            told = true;
        }
        if !told && says_nothing {
            stream.requests.send(LoadStatsRequest::default()).await.map_err(|_| CLOSED)?;
        }
        Ok(told)
    }
}

impl Open {
    async fn begin(connection: Connection, node: Node) -> Result<Self, String> {
        let mut client = LoadReportingServiceClient::with_origin(connection.clone(), connection.origin());
        let (requests, outgoing) = mpsc::channel(1);
        let first = LoadStatsRequest { node: Some(node), cluster_stats: Vec::new() };
        requests.try_send(first).expect("the channel is new and empty");
        let answers = client.stream_load_stats(ReceiverStream::new(outgoing)).await;
        let answers = answers.map_err(|status| status_text(&status))?.into_inner();
        Ok(Self { requests, answers, _connection: connection })
    }

    /// Lets the control plane read to the end.
    async fn end(self) {
        let Self { requests, mut answers, _connection } = self;
        drop(requests);
        let read = async { while let Ok(Some(_)) = answers.message().await {} };
        // One that does not close its half has had its time.
        let _ = timeout(FAREWELL, read).await;
    }
}

const CLOSED: &str = "the control plane closed the stream";
