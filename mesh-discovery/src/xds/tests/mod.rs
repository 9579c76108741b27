//! An ADS server in memory, and what is sent through it.

mod client;
mod grpc;
mod protocol;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::kind::Kind;
use super::transport::{AdsStream, StreamError, Transport};

/// The network: every opened stream arrives at the [`Server`].
struct MemoryTransport {
    streams: mpsc::UnboundedSender<Stream>,
}

/// The control plane.
pub(crate) struct Server {
    streams: mpsc::UnboundedReceiver<Stream>,
}

/// One stream, seen from the control plane. Dropping it breaks it.
pub(crate) struct Stream {
    requests: mpsc::Receiver<DiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<DiscoveryResponse, StreamError>>,
}

pub(crate) fn network() -> (impl Transport, Server) {
    let (sender, streams) = mpsc::unbounded_channel();
    (MemoryTransport { streams: sender }, Server { streams })
}

impl Transport for MemoryTransport {
    fn server(&self) -> String {
        "memory".to_owned()
    }

    fn open(&mut self) -> BoxFuture<'_, Result<AdsStream, StreamError>> {
        let (requests, received) = mpsc::channel(1);
        let (responses, incoming) = mpsc::unbounded_channel();
        let sent = self.streams.send(Stream { requests: received, responses });
        Box::pin(async move {
            sent.map_err(|_| StreamError::new("nobody listens"))?;
            Ok(AdsStream { requests, responses: UnboundedReceiverStream::new(incoming).boxed() })
        })
    }
}

impl Server {
    pub(crate) async fn accept(&mut self) -> Stream {
        self.streams.recv().await.expect("the client lives")
    }
}

impl Stream {
    pub(crate) async fn request(&mut self) -> DiscoveryRequest {
        self.requests.recv().await.expect("the stream is open")
    }

    /// The next request, which must be of this type and ask for these names.
    pub(crate) async fn expect(&mut self, kind: Kind, names: &[&str]) -> DiscoveryRequest {
        let request = self.request().await;
        assert_eq!((request.type_url.as_str(), as_strs(&request.resource_names)), (kind.type_url(), names.to_vec()));
        request
    }

    pub(crate) fn respond(&self, kind: Kind, version: &str, nonce: &str, resources: Vec<Any>) {
        self.responses.send(Ok(response(kind, version, nonce, resources))).expect("the client reads");
    }

    pub(crate) fn fail(self, reason: &str) {
        self.responses.send(Err(StreamError::new(reason))).expect("the client reads");
    }
}

pub(crate) fn response(kind: Kind, version: &str, nonce: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: version.to_owned(),
        resources,
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn as_strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
