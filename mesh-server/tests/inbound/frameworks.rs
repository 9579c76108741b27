//! axum and tonic as applications write them.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::get;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;
use tower_service::Service;

use mesh_core::policy::InboundTls;
use mesh_server::{Config, PeerIdentity};

use crate::kit::{Http, World, policy, within};

#[tokio::test]
async fn an_axum_router_is_served_and_extracts_the_peer() {
    let whoami = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("plaintext".to_owned(), |id| id.to_string()) };
    let router = Router::new().route("/whoami", get(whoami));
    let world = World::start(policy(InboundTls::Permissive), Config::default(), router).await;
    for version in [Http::One, Http::Two] {
        assert_eq!(world.plain(version).await.get("/whoami").await.unwrap(), (200, "plaintext".to_owned()));
        let mutual = world.mutual(version).await.get("/whoami").await.unwrap();
        assert_eq!(mutual, (200, "spiffe://cluster.local/ns/default/sa/productpage".to_owned()));
    }
}

#[tokio::test]
async fn an_axum_router_takes_the_layer_alone() {
    let layer = mesh_server::Server::builder().build().inbound_layer();
    let opened = || async { mesh_core::context::current().is_some().to_string() };
    let router: Router = Router::new().route("/", get(opened)).layer(layer);
    let request = http::Request::get("/").body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "true");
}

#[tokio::test]
async fn a_layer_without_policy_leaves_alone_what_a_server_is_serving() {
    let metrics = std::sync::Arc::<mesh_core::telemetry::Metrics>::default();
    let layer = mesh_server::Server::builder().metrics(metrics.clone()).build().inbound_layer();
    let router: Router = Router::new().route("/", get(|| async { "hello" })).layer(layer);
    let counted = || {
        let text = mesh_server::debug::prometheus::encode("0", &metrics, None);
        text.lines().filter(|line| line.starts_with("istio_requests_total")).count()
    };
    let world = World::start(policy(InboundTls::Permissive), Config::default(), router.clone()).await;
    assert_eq!(world.plain(Http::One).await.get("/").await.unwrap(), (200, "hello".to_owned()));
    assert_eq!(counted(), 0);
    // The control: by itself it counts.
    let request = http::Request::get("/").body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "hello");
    assert_eq!(counted(), 1);
}

/// A gRPC server as tonic generates them: one unary method that greets, or fails without a name.
#[derive(Clone)]
struct Greeter;

struct Hello;

impl tonic::server::UnaryService<String> for Hello {
    type Response = String;
    type Future = BoxFuture<tonic::Response<String>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<String>) -> Self::Future {
        let peer = mesh_server::caller();
        Box::pin(async move {
            if request.get_ref().is_empty() {
                return Err(tonic::Status::invalid_argument("a name is needed"));
            }
            let peer = peer.and_then(|peer| peer.spiffe_id.clone()).map_or("nobody".to_owned(), |id| id.to_string());
            Ok(tonic::Response::new(format!("hello {} from {peer}", request.get_ref())))
        })
    }
}

impl<B> Service<http::Request<B>> for Greeter
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.unary(Hello, request).await)
        })
    }
}

impl NamedService for Greeter {
    const NAME: &'static str = "test.Greeter";
}

async fn greet(world: &World, name: &str) -> Result<String, tonic::Status> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", world.address)).unwrap();
    let mut client = tonic::client::Grpc::new(within(endpoint.connect()).await.unwrap());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/test.Greeter/Hello");
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    Ok(client.unary(tonic::Request::new(name.to_owned()), path, codec).await?.into_inner())
}

#[tokio::test]
async fn tonic_servers_and_routes_are_served_and_counted_as_grpc() {
    let permissive = || policy(InboundTls::Permissive);
    let generated = World::start(permissive(), Config::default(), Greeter).await;
    let routes = tonic::service::Routes::new(Greeter);
    let routes = World::start(permissive(), Config::default(), routes).await;
    for world in [generated, routes] {
        assert_eq!(within(greet(&world, "mesh")).await.unwrap(), "hello mesh from nobody");
        assert_eq!(within(greet(&world, "")).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        for status in ["0", "3"] {
            let wanted = format!("request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"{status}\"");
            crate::kit::eventually(|| world.metrics_text().contains(&wanted).then_some(())).await;
        }
    }
}
