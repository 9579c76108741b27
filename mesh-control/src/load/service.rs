//! The load reporting service over gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::{
    LoadReportingService, LoadReportingServiceServer,
};
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf;
use futures_util::{Stream, stream};
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Request, Response, Status, Streaming};

use super::LoadBook;
use crate::runtime::{Peer, Refusals};
use crate::xds::{Limits, NodeEntry, Nodes, scope_of};

/// How often clients report.
const INTERVAL: Duration = Duration::from_secs(10);
/// Messages of one stream that are taken in at once, and then in each second; others wait.
const MESSAGES: (u32, u32) = (20, 2);

/// Bytes of one message.
const MESSAGE_BYTES: usize = 4 << 20;

/// The load reporting service.
pub(crate) struct LoadService {
    pub(crate) book: Arc<LoadBook>,
    /// The reporting streams; they count apart from those of configuration.
    pub(crate) streams: Arc<Nodes>,
    pub(crate) limits: Limits,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
}

impl LoadService {
    /// A place for a stream, if its caller may report and there is one.
    fn enter(&self, peer: &Peer) -> Result<NodeEntry, Status> {
        scope_of(&peer.caller, None)?;
        self.streams.enter(peer, &self.limits)
    }

    pub(crate) fn into_server(self) -> LoadReportingServiceServer<Self> {
        LoadReportingServiceServer::new(self).max_decoding_message_size(MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadService {
    type StreamLoadStatsStream = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        let entry = self.enter(&peer).inspect_err(|status| self.refusals.stream("load report", &peer, status))?;
        let reporting = Reporting {
            requests: request.into_inner(),
            client: Client { id: self.book.enter(&entry.account), book: self.book.clone() },
            pace: Pace::new(MESSAGES, Instant::now()),
            drain: self.drain.clone(),
            node: None,
            peer,
            entry,
            refusals: self.refusals.clone(),
        };
        Ok(Response::new(Box::pin(stream::unfold(Some(reporting), |reporting| async { reporting?.next().await }))))
    }
}

/// One open stream.
struct Reporting {
    requests: Streaming<LoadStatsRequest>,
    client: Client,
    pace: Pace,
    drain: DrainWatch,
    peer: Peer,
    /// What the client calls itself; none before its first message, which alone has it.
    node: Option<String>,
    entry: NodeEntry,
    refusals: Arc<Refusals>,
}

/// A client's place in the book; dropped with the stream.
struct Client {
    id: u64,
    book: Arc<LoadBook>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.book.leave(self.id);
    }
}

impl Reporting {
    /// Reads reports; the first message alone is answered.
    async fn next(mut self) -> Option<(Result<LoadStatsResponse, Status>, Option<Self>)> {
        loop {
            let next = async {
                sleep_until(self.pace.next()).await;
                self.requests.message().await
            };
            let message = tokio::select! {
                () = self.drain.drained() => return None,
                message = next => match message {
                    Ok(message) => message?,
                    // As the decoder says it. Whoever broke the stream off hears nothing.
                    Err(status) if status.code() == Code::OutOfRange => return Some((Err(self.refuse(&status)), None)),
                    Err(_) => return None,
                },
            };
            self.pace.take(Instant::now());
            let first = self.node.is_none();
            let id = message.node.map(|node| node.id.chars().take(256).collect()).unwrap_or_default();
            let node = self.node.get_or_insert(id);
            for stats in &message.cluster_stats {
                if !self.client.book.report(self.client.id, node, self.peer.caller.identity(), stats) {
                    self.entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            if first {
                if let Some(left_out) = self.entry.opens() {
                    tracing::info!(peer = %self.peer, ?node, left_out, "load reports begin");
                }
                let nanos = i32::try_from(INTERVAL.subsec_nanos()).unwrap_or_default();
                let interval = protobuf::Duration { seconds: INTERVAL.as_secs().cast_signed(), nanos };
                let answer = LoadStatsResponse {
                    send_all_clusters: true,
                    load_reporting_interval: Some(interval),
                    ..LoadStatsResponse::default()
                };
                return Some((Ok(answer), Some(self)));
            }
        }
    }

    fn refuse(&self, status: &Status) -> Status {
        let refusal = Status::resource_exhausted(format!("{}; report fewer clusters in one message", status.message()));
        self.entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
        self.refusals.stream("load report", &self.peer, &refusal);
        refusal
    }
}
