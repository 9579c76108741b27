//! The client over real connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_core::identity::peer_spiffe_id;
use mesh_core::policy::{DestinationState, Listener, RouteConfiguration, RouteSource};
use mesh_core::source::{DestinationSource, Watched};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::{GrpcTransport, Transport, Variant, XdsClient, XdsConfig};
use crate::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::codec;
use crate::connect::Connector;
use crate::test_plane::{Ca, PeerChain, Serving, connector, crypto, serve};

/// Answers the first request with one listener. Like many servers it sends no headers before.
#[derive(Clone, Default)]
struct Plane {
    callers: Arc<Mutex<Vec<Option<String>>>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = BoxStream<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let chain = &request.extensions().get::<PeerChain>().unwrap().0;
        self.callers.lock().push(chain.first().map(|leaf| peer_spiffe_id(leaf).unwrap().to_string()));
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        assert_eq!(first.node.unwrap().id, "me");
        let answers = futures_util::stream::unfold((requests, true), |(mut requests, begin)| async move {
            if begin {
                return Some((Ok(response()), (requests, false)));
            }
            // Stays open for the ACKs until the client goes.
            while let Ok(Some(_)) = requests.message().await {}
            None
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn response() -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: "v1".to_owned(),
        resources: vec![listener()],
        type_url: codec::LISTENER.to_owned(),
        nonce: "n1".to_owned(),
        ..Default::default()
    }
}

fn listener() -> envoy_types::pb::google::protobuf::Any {
    let routes = RouteConfiguration {
        name: "inline".to_owned(),
        virtual_hosts: Vec::new(),
        headers: Default::default(),
        retry_budget: None,
    };
    codec::encode_listener(&Listener::new("a:80", RouteSource::Inline(Arc::new(routes))))
}

fn client(connector: Connector) -> XdsClient {
    let server = XdsServer::new(connector.server().parse().unwrap(), ChannelCredentials::Insecure);
    let bootstrap = Bootstrap::new(server, Node { id: "me".to_owned(), ..Default::default() });
    let transport = move |_: &XdsServer| GrpcTransport::new(connector.clone());
    XdsClient::spawn(XdsConfig::new(bootstrap), transport, &Handle::current())
}

async fn is_configured(client: &XdsClient) {
    let mut state = client.destination(&"a:80".parse().unwrap());
    state.wait_for(|state| matches!(state, DestinationState::Ready(_))).await;
}

#[tokio::test]
async fn plaintext_works_where_the_bootstrap_says_insecure() {
    let plane = Plane::default();
    let serving = serve(AggregatedDiscoveryServiceServer::new(plane.clone()), None, 0).await;
    let client = client(connector(serving.port, None));
    is_configured(&client).await;
    client.ready().await;
    assert_eq!(client.status().server, format!("127.0.0.1:{}", serving.port));
    assert_eq!(*plane.callers.lock(), [None]);
}

#[tokio::test]
async fn over_tls_the_certificate_of_the_moment_is_shown_and_waited_for() {
    let (ca, plane) = (Ca::new(), Plane::default());
    let serving = serve(AggregatedDiscoveryServiceServer::new(plane.clone()), Some(ca.server_config()), 0).await;
    let root = ca.root_file();
    let (publisher, identity) = Watched::channel(None);
    let client = client(connector(serving.port, Some(&root)).with_identity(identity));
    let waiting = client.destination(&"a:80".parse().unwrap());
    tokio::task::yield_now().await;
    assert_eq!(**waiting.load(), DestinationState::Pending);
    assert_eq!(client.status().last_error, None, "waiting for the certificate is no failure");

    publisher.publish(Some(Arc::new(ca.identity("spiffe://cluster.local/ns/default/sa/reviews", 0))));
    is_configured(&client).await;
    assert_eq!(*plane.callers.lock(), [Some("spiffe://cluster.local/ns/default/sa/reviews".to_owned())]);
}

#[tokio::test]
async fn s88_a_control_plane_that_the_root_does_not_know_is_not_talked_to() {
    let (ca, plane) = (Ca::new(), Plane::default());
    let serving = serve(AggregatedDiscoveryServiceServer::new(plane.clone()), Some(ca.server_config()), 0).await;
    let stranger = Ca::new().root_file();
    let mut transport = GrpcTransport::new(connector(serving.port, Some(&stranger)));
    let error = transport.open(Variant::Delta).await.err().unwrap().to_string();
    assert!(error.contains("TLS handshake") && error.contains("127.0.0.1"), "{error}");
    assert!(plane.callers.lock().is_empty());
    let root = ca.root_file();
    let mut transport = GrpcTransport::new(connector(serving.port, Some(&root)));
    assert!(transport.open(Variant::Delta).await.is_ok(), "the control");
}

#[tokio::test]
async fn s88_without_roots_of_its_own_a_client_trusts_nobody_whom_the_system_does_not_know() {
    let (ca, plane) = (Ca::new(), Plane::default());
    let serving = serve(AggregatedDiscoveryServiceServer::new(plane.clone()), Some(ca.server_config()), 0).await;
    let uri = format!("127.0.0.1:{}", serving.port);
    let credentials = |config: &str| {
        let text = format!(
            r#"{{"xds_servers": [{{"server_uri": "{uri}", "channel_creds": [{{"type": "tls", "config": {config}}}]}}], "node": {{"id": "a"}}}}"#
        );
        let bootstrap = Bootstrap::from_json(&text).unwrap();
        GrpcTransport::new(Connector::new(bootstrap.servers[0].clone(), crypto()))
    };
    let error = credentials("{}").open(Variant::Delta).await.err().unwrap().to_string();
    assert!(error.contains("TLS handshake") || error.contains("no trusted roots"), "{error}");
    assert!(plane.callers.lock().is_empty(), "and is told nothing");
    // The control: with the root of that server it is spoken to.
    let root = ca.root_file();
    let named = format!(r#"{{"ca_certificate_file": {:?}}}"#, root.path().to_str().unwrap());
    assert!(credentials(&named).open(Variant::Delta).await.is_ok());
}

/// A control plane whose answer begins a message of `length` bytes, as compressed or not, and goes on until nobody takes it. Counts
/// what was taken.
async fn flooding(compressed: bool, encoding: Option<&'static str>, length: u32) -> (Serving, Arc<AtomicUsize>) {
    let taken = Arc::<AtomicUsize>::default();
    let count = taken.clone();
    let service = tower::service_fn(move |_: http::Request<hyper::body::Incoming>| {
        let head = [&[u8::from(compressed)][..], &length.to_be_bytes()].concat();
        let count = count.clone();
        let zeros = std::iter::repeat_with(move || {
            count.fetch_add(16 << 10, Ordering::Relaxed);
            Bytes::from_static(&[0; 16 << 10])
        });
        let pieces =
            std::iter::once(Bytes::from(head)).chain(zeros).map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
        let mut answer = http::Response::new(tonic::body::Body::new(StreamBody::new(stream::iter(pieces))));
        answer.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        if let Some(encoding) = encoding {
            answer.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
        }
        std::future::ready(Ok(answer))
    });
    (serve(service, None, 0).await, taken)
}

/// A gibibyte is announced and not sent: what is above the bound is refused by its announcement.
#[tokio::test]
async fn s90_a_message_of_a_gibibyte_or_one_that_is_compressed_is_refused_as_it_begins() {
    for (compressed, encoding, length, refused) in [
        (false, None, 1 << 30, true),
        (false, None, u32::MAX, true),
        (true, None, 1 << 10, true),
        (true, Some("gzip"), 1 << 10, true),
        // The control: one within the bound is read to its end, though it is no answer.
        (false, None, 4 << 20, false),
    ] {
        let (serving, taken) = flooding(compressed, encoding, length).await;
        let mut transport = GrpcTransport::new(connector(serving.port, None));
        let mut stream = transport.open(Variant::StateOfTheWorld).await.unwrap();
        let error = stream.responses.next().await.unwrap().unwrap_err().to_string();
        let taken = taken.load(Ordering::Relaxed);
        assert_eq!(taken < 4 << 20, refused, "{taken} bytes were taken: {error}");
        assert_eq!(error.contains("too large"), length >= 1 << 30, "{error}");
    }
}
