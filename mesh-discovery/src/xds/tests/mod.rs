//! A control plane in memory, and what is sent through it.

mod client;
mod csds;
mod fetched;
mod grpc;
mod joined;
mod machine;
mod outage;
mod protocol;
mod resumption;
mod sequences;
mod silence;
mod told;
mod ttl;
mod versions;
mod worker;

use envoy_types::pb::google::protobuf::Any;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::kind::Kind;
use super::message::{Ask, Body, Name, Request, Resource, Response, StreamError, Variant};
use super::transport::{AdsStream, Transport};

/// The network: every opened stream arrives at the [`Server`].
#[derive(Clone)]
struct MemoryTransport {
    streams: mpsc::UnboundedSender<Stream>,
}

/// The control plane.
pub(crate) struct Server {
    streams: mpsc::UnboundedReceiver<Stream>,
}

/// One stream, seen from the control plane. Dropping it breaks it.
pub(crate) struct Stream {
    requests: mpsc::Receiver<Request>,
    responses: mpsc::UnboundedSender<Result<Response, StreamError>>,
}

fn network() -> (MemoryTransport, Server) {
    let (sender, streams) = mpsc::unbounded_channel();
    (MemoryTransport { streams: sender }, Server { streams })
}

impl Transport for MemoryTransport {
    fn open(&mut self, _: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
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
    pub(crate) async fn request(&mut self) -> Request {
        self.requests.recv().await.expect("the stream is open")
    }

    /// The next request, which must be of this type and ask for these names; or, with delta, be an answer, which names
    /// nothing.
    pub(crate) async fn expect(&mut self, kind: Kind, names: &[&str]) -> Request {
        let request = self.request().await;
        let answers = matches!(request.ask, Ask::Changes { .. }) && !request.nonce.is_empty();
        assert_eq!(
            (request.type_url, asked(&request)),
            (kind.type_url(), if answers { vec![] } else { names.to_vec() })
        );
        request
    }

    pub(crate) fn respond(&self, kind: Kind, version: &str, nonce: &str, resources: Vec<Any>) {
        self.send(response(kind, version, nonce, resources));
    }

    fn send(&self, response: Response) {
        self.responses.send(Ok(response)).expect("the client reads");
    }

    pub(crate) fn fail(self, error: StreamError) {
        self.responses.send(Err(error)).expect("the client reads");
    }
}

fn response(kind: Kind, version: &str, nonce: &str, resources: Vec<Any>) -> Response {
    let resource = |any: Any| Resource { body: Some(Body::new(&any.type_url, any.value)), ..Default::default() };
    Response {
        type_url: kind.type_url().to_owned(),
        version: version.to_owned(),
        nonce: nonce.to_owned(),
        resources: resources.into_iter().map(resource).collect(),
        ..Default::default()
    }
}

/// The names of a request of the state of the world, or those that a delta request adds.
fn asked(request: &Request) -> Vec<&str> {
    match &request.ask {
        Ask::World { names, .. } => strs(names),
        Ask::Changes { subscribe, .. } => strs(subscribe),
    }
}

fn strs(names: &[Name]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

/// The version that a request of the state of the world goes on from.
fn version(request: &Request) -> &str {
    match &request.ask {
        Ask::World { version, .. } => version,
        Ask::Changes { .. } => panic!("a delta request has no version"),
    }
}
