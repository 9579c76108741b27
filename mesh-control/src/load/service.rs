//! The load reporting service over gRPC. By hand rather than generated: what comes is counted before it is a message.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_server::SERVICE_NAME;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use envoy_types::pb::google::protobuf;
use futures_util::{Stream, stream};
use http::Extensions;
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tower_service::Service;

use super::LoadBook;
use super::decode::ReportCodec;
use crate::runtime::{Peer, Refusals};
use crate::xds::{Limits, NodeEntry, Nodes, Unread, scope_of};

const METHOD: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";
/// How often clients report.
const INTERVAL: Duration = Duration::from_secs(10);
/// Messages of one stream that are taken in at once, and then in each second; others wait.
const MESSAGES: (u32, u32) = (20, 2);

/// The load reporting service.
#[derive(Clone)]
pub(crate) struct LoadService {
    pub(crate) book: Arc<LoadBook>,
    /// The reporting streams; they count apart from those of configuration.
    pub(crate) streams: Arc<Nodes>,
    pub(crate) limits: Limits,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
}

impl NamedService for LoadService {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for LoadService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        match request.uri().path() {
            METHOD => Box::pin(service.serve(request)),
            _ => Box::pin(async { Ok(Status::unimplemented("the service has no such method").into_http()) }),
        }
    }
}

impl LoadService {
    /// Bytes of one message, and of those of one identity that have come over all its streams and are not taken in yet: of each
    /// stream the most there were at once, for its buffer stays as large. Beyond that a stream may have 64 KiB.
    pub(crate) fn limits() -> Limits {
        Limits { request_bytes: 4 << 20, bytes_of_one: 256 << 20, ..Limits::default() }
    }

    async fn serve<B>(self, request: http::Request<B>) -> Result<http::Response<Body>, Infallible>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        // Refused before a byte of the stream is read.
        let entered = match self.enter(request.extensions()) {
            Ok(entered) => entered,
            Err(status) => return Ok(status.into_http()),
        };
        let request = request.map(|body| entered.unread.body(body));
        let codec = ReportCodec::default();
        let limit = entered.service.limits.request_bytes;
        let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(limit), None);
        Ok(grpc.streaming(Open(Some(entered)), request).await)
    }

    /// Lets a caller in, if it may report and there is a place.
    fn enter(self, extensions: &Extensions) -> Result<Entered, Status> {
        let peer = Peer::of(extensions)?;
        let entry = scope_of(&peer.caller, None).and_then(|_| self.streams.enter(&peer, &self.limits));
        let entry = entry.inspect_err(|status| self.refusals.stream("load report", &peer, status))?;
        let unread = Unread::new(&entry.coming, self.limits.bytes_of_one);
        Ok(Entered { service: self, peer, entry, unread })
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<LoadStatsResponse, Status>> + Send>>;

/// Whoever was let in.
struct Entered {
    service: LoadService,
    peer: Peer,
    entry: NodeEntry,
    unread: Unread,
}

impl Entered {
    fn open(self, requests: Streaming<LoadStatsRequest>) -> Answers {
        let LoadService { book, refusals, drain, streams: _, limits: _ } = self.service;
        let (peer, entry, unread) = (self.peer, self.entry, self.unread);
        let client = Client { id: book.enter(&entry.account), book };
        let pace = Pace::new(MESSAGES, Instant::now());
        let reporting = Reporting { requests, unread, client, pace, drain, peer, node: None, entry, refusals };
        Box::pin(stream::unfold(Some(reporting), |reporting| async { reporting?.next().await }))
    }
}

/// One call of the method, which opens its stream; none once it did.
struct Open(Option<Entered>);

impl StreamingService<LoadStatsRequest> for Open {
    type Response = LoadStatsResponse;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, requests: Request<Streaming<LoadStatsRequest>>) -> Self::Future {
        let opened = self.0.take().map(|entered| Response::new(entered.open(requests.into_inner())));
        ready(opened.ok_or_else(|| Status::internal("the stream is open already")))
    }
}

/// One open stream.
struct Reporting {
    requests: Streaming<LoadStatsRequest>,
    unread: Unread,
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
                    Err(status) => return self.refuse(&status).map(|refusal| (Err(refusal), None)),
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
            self.unread.taken();
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

    /// What to say to a client whose report could not be read, if it hears it: whoever broke the stream off does not.
    fn refuse(&self, status: &Status) -> Option<Status> {
        let why = match self.unread.refused() {
            Some(_) => "as many bytes of reports as there may be have come over the streams of this identity and are not taken in \
                        yet: report fewer clusters in one message, or give some of its processes another service account"
                .to_owned(),
            // As the decoder says it.
            None if status.code() == Code::OutOfRange => {
                format!("{}; report fewer clusters in one message", status.message())
            }
            None => return None,
        };
        let refusal = Status::resource_exhausted(why);
        self.entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
        self.refusals.stream("load report", &self.peer, &refusal);
        Some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, Bytes, BytesMut};
    use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
    use futures_util::{FutureExt as _, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::Frame;
    use mesh_core::drain;
    use prost::Message as _;
    use tokio::time::timeout;

    use super::*;
    use crate::runtime::Caller;

    /// A report of so many bytes as it comes, with what stands before it.
    fn wire(bytes: usize) -> Bytes {
        let upstream_locality_stats = vec![UpstreamLocalityStats::default()];
        let stats =
            ClusterStats { cluster_name: "a".repeat(bytes), upstream_locality_stats, ..ClusterStats::default() };
        let report = LoadStatsRequest { node: None, cluster_stats: vec![stats] };
        let mut wire = BytesMut::new();
        wire.put_u8(0);
        wire.put_u32(u32::try_from(report.encoded_len()).unwrap());
        report.encode(&mut wire).unwrap();
        wire.freeze()
    }

    fn peer(account: &str) -> Peer {
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
        Peer { address: ([127, 0, 0, 1], 1).into(), caller: Caller::Workload(id), joined: false }
    }

    /// What a stream of this account is answered, on which this comes and nothing else.
    async fn stream(service: &LoadService, account: &str, said: Bytes) -> Body {
        let said = stream::iter([Ok::<_, Infallible>(Frame::data(said))]).chain(stream::pending());
        let mut request = http::Request::post(METHOD).body(StreamBody::new(said)).unwrap();
        request.extensions_mut().insert(peer(account));
        service.clone().call(request).await.unwrap().into_body()
    }

    /// The status with which a stream ends; none = it goes on.
    async fn end(answer: &mut Body) -> Option<String> {
        let frame = timeout(Duration::from_secs(1), answer.frame()).await.ok()?.unwrap().unwrap();
        let trailers = frame.into_trailers().ok()?;
        Some(format!("{} {}", trailers["grpc-status"].to_str().unwrap(), trailers["grpc-message"].to_str().unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_identity_begins_to_report_on_all_of_its_streams_is_bounded() {
        const KIB: usize = 1 << 10;
        let limits = Limits { bytes_of_one: 300 * KIB, ..LoadService::limits() };
        let (book, streams, refusals, (_trigger, drain)) =
            (Arc::default(), Arc::<Nodes>::default(), Arc::default(), drain::channel());
        let service = LoadService { book, streams, limits, refusals, drain };
        let half = || wire(400 * KIB).slice(..100 * KIB);
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut answer = stream(&service, "one", half()).await;
            assert_eq!(end(&mut answer).await, None);
            held.push(answer);
        }
        let refused = end(&mut stream(&service, "one", half()).await).await.unwrap();
        assert!(refused.starts_with("8 ") && refused.contains("fewer%20clusters"), "{refused}");
        assert_eq!(service.streams.refused.load(Ordering::Relaxed), 1);
        // The controls: another identity, what is small, and what is whole.
        assert_eq!(end(&mut stream(&service, "other", half()).await).await, None);
        let mut small = stream(&service, "one", wire(10 * KIB)).await;
        assert!(small.frame().now_or_never().is_some_and(|frame| frame.unwrap().unwrap().is_data()), "it is answered");
        // What is kept of it is paid for by its identity, and apart from what comes.
        let entry = service.streams.enter(&peer("one"), &service.limits).unwrap();
        assert!((1..10 * KIB).contains(&entry.account.bytes()), "{}", entry.account.bytes());
        drop((small, entry));
        assert_eq!(service.streams.enter(&peer("one"), &service.limits).unwrap().account.bytes(), 0);
        drop(held);
        assert_eq!(end(&mut stream(&service, "one", half()).await).await, None);
        assert_eq!(service.streams.refused.load(Ordering::Relaxed), 1);
    }
}
