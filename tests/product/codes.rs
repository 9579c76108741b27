//! Whose status an application sees (gRFC A54, A88): its peer's own, and UNAVAILABLE for whatever a control plane says
//! or does.

use std::net::SocketAddr;
use std::pin::Pin;

use axum::Router;
use axum::routing::post;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, StreamExt, stream};
use mesh::Mesh;
use mesh_core::policy::{Address, Cluster, Endpoint, Endpoints, LocalityEndpoints};
use mesh_discovery::codec;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::ServiceExt;

use crate::puppet::Puppet;
use crate::reports::{bad_cluster, said};
use crate::support::{FREE, Plane};

const UNAVAILABLE: &str = "14";

/// A control plane whose every stream ends with one status.
struct Refuser(Code);

type Answer<T> = Result<Response<Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>>, Status>;

impl Refuser {
    async fn start(code: Code) -> SocketAddr {
        let listener = TcpListener::bind(FREE).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(AggregatedDiscoveryServiceServer::new(Self(code)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        address
    }

    #[allow(clippy::result_large_err, reason = "a status is what tonic wants")]
    fn answer<T: Send + 'static>(&self) -> Answer<T> {
        match self.0 {
            Code::Ok => Ok(Response::new(stream::empty().boxed())),
            code => Err(Status::new(code, "the control plane's own reason")),
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Refuser {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(&self, _: Request<Streaming<DiscoveryRequest>>) -> Answer<DiscoveryResponse> {
        self.answer()
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Answer<DeltaDiscoveryResponse> {
        self.answer()
    }
}

async fn process(plane: SocketAddr) -> Mesh {
    let bootstrap = json!({
        "xds_servers": [{"server_uri": plane, "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "node-7"},
    });
    Mesh::builder().bootstrap(bootstrap.to_string()).build().await.unwrap()
}

/// Status and message of one RPC.
async fn rpc(mesh: &Mesh, target: &str) -> (String, String) {
    let channel = mesh.channel(target).unwrap();
    let request = http::Request::post("/service/method").header("content-type", "application/grpc");
    let response = channel.oneshot(request.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
    let text = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (text("grpc-status"), text("grpc-message"))
}

#[tokio::test]
async fn x11_whatever_a_control_plane_ends_its_streams_with_an_rpc_is_unavailable_a54() {
    let told = |code: i32| async move {
        let mesh = process(Refuser::start(Code::from(code)).await).await;
        (code, rpc(&mesh, "xds:///reviews:9080").await)
    };
    for (code, (status, message)) in futures_util::future::join_all((0..=16).map(told)).await {
        assert_eq!(status, UNAVAILABLE, "{code}: {message}");
        for part in ["reviews:9080", "node-7"] {
            assert!(message.contains(part), "{code}: {message}");
        }
        assert!(code == 0 || message.contains("the control plane's own reason"), "{code}: {message}");
    }
}

#[tokio::test]
async fn x11_a_resource_that_is_refused_or_is_not_there_is_unavailable_a88() {
    let (address, _plane) = Puppet::start(said("1", bad_cluster())).await;
    let (status, message) = rpc(&process(address).await, "xds:///reviews:9080").await;
    assert_eq!(status, UNAVAILABLE, "{message}");
    assert!(message.contains("lrs_server") && message.contains("node-7"), "resource, reason and node: {message}");

    // Ours says of a name that it does not have NOT_FOUND.
    let plane = Plane::with(|builder| builder.insecure_xds(Some(FREE))).await;
    let (status, message) = rpc(&process(plane.insecure_address().unwrap()).await, "xds:///nobody:80").await;
    assert_eq!(status, UNAVAILABLE, "{message}");
    assert!(message.contains("nobody:80") && message.contains("node-7"), "{message}");
}

/// The control: every status of the application's own peer is seen as it is.
#[tokio::test]
async fn x11_the_status_of_a_peer_is_its_own() {
    let listener = TcpListener::bind(FREE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let not_found = || async { [("content-type", "application/grpc"), ("grpc-status", "5")] };
    tokio::spawn(axum::serve(listener, Router::new().route("/service/method", post(not_found))).into_future());
    let mut said = said("1", codec::encode_cluster(&Cluster::new("c".into())));
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: std::num::NonZeroU32::MIN,
        endpoints: vec![Endpoint::new(Address::Socket(address))],
    };
    let endpoints = Endpoints { cluster: "c".to_owned(), localities: vec![group], ..Endpoints::default() };
    said.resources.insert(codec::ENDPOINTS, vec![codec::encode_endpoints(&endpoints)]);
    let (address, _plane) = Puppet::start(said).await;
    assert_eq!(rpc(&process(address).await, "xds:///reviews:9080").await.0, "5");
}
