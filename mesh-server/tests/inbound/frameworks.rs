//! axum and tonic as applications write them.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;
use tower::Layer;
use tower_service::Service;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundState, InboundTls, PathMatch, Permission,
    Principal,
};
use mesh_server::{Config, PeerIdentity, Refusal, Server};

use crate::kit::{Http, World, listener, policy, spawn, within};
use crate::transport::raw;

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

/// A loop of the application's own around hyper.
async fn looped(server: Server, listener: TcpListener, router: Router) {
    loop {
        let (tcp, peer) = listener.accept().await.unwrap();
        let (server, router) = (server.clone(), router.clone());
        spawn(async move {
            let Some(connection) = server.accept(tcp, peer).await else { return };
            let service = TowerToHyperService::new(connection.layer().layer(router));
            let io = TokioIo::new(connection);
            // The other side may be gone: that is seen there.
            let _ = if io.inner().is_http2() {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            };
        });
    }
}

#[tokio::test]
async fn a_loop_of_the_applications_own_takes_connections_and_requests_as_policy_says() {
    let whoami = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("plaintext".to_owned(), |id| id.to_string()) };
    let router = Router::new().route("/whoami", get(whoami)).route("/admin", get(|| async { "reached" }));
    let mut world = World::start(policy(InboundTls::Strict), Config::default(), router.clone()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.address = listener.local_addr().unwrap();
    let serving = spawn(looped(world.server.clone(), listener, router));
    for version in [Http::One, Http::Two] {
        let mut client = world.mutual(version).await;
        let known = "spiffe://cluster.local/ns/default/sa/productpage";
        assert_eq!(client.get("/whoami").await.unwrap(), (200, known.to_owned()), "{version:?}");
        // The policy of the moment, on a connection that was there before.
        assert_eq!(client.get("/admin").await.unwrap(), (200, "reached".to_owned()));
        world.policy.publish(no_admin(InboundTls::Strict));
        assert_eq!(client.get("/admin").await.unwrap().0, 403);
        assert_eq!(client.get("/whoami").await.unwrap().0, 200);
        world.policy.publish(policy(InboundTls::Strict));
    }
    let request = b"GET /whoami HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(raw(world.address, request).await.starts_with("HTTP/1.1 403"));
    assert!(within(world.offering(&[], Http::Two)).await.is_err());
    let refused = |why| world.server.stats().refused(why);
    assert_eq!((refused(Refusal::Plaintext), refused(Refusal::Alpn)), (1, 1));
    // The control: where policy lets plaintext in, it is served.
    world.policy.publish(policy(InboundTls::Permissive));
    assert!(raw(world.address, request).await.ends_with("plaintext"));
    let head =
        format!("{}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", "POST /whoami HTTP/1.1\r\nhost: a\r\n");
    assert!(raw(world.address, head.as_bytes()).await.starts_with("HTTP/1.1 400"), "it has two lengths");

    // A plaintext connection that was there when the port turned strict ends, idle as it is; one of the mesh goes on.
    for version in [Http::One, Http::Two] {
        world.policy.publish(policy(InboundTls::Permissive));
        let (mut plain, mut mutual) = (world.plain(version).await, world.mutual(version).await);
        assert_eq!(plain.get("/whoami").await.unwrap(), (200, "plaintext".to_owned()));
        assert_eq!(mutual.get("/whoami").await.unwrap().0, 200);
        world.policy.publish(policy(InboundTls::Strict));
        within(&mut plain.ended).await.unwrap();
        assert_eq!(mutual.get("/whoami").await.unwrap().0, 200, "the control, {version:?}");
    }
    serving.abort();
}

#[tokio::test]
async fn a_layer_behind_another_acceptor_lets_nobody_in_without_an_identity_where_policy_demands_one() {
    for (tls, known, status) in [
        (InboundTls::Strict, false, 403),
        // The controls.
        (InboundTls::Strict, true, 200),
        (InboundTls::Permissive, false, 200),
    ] {
        let world = World::start(policy(tls), Config::default(), Router::new()).await;
        let router = Router::new().route("/", get(|| async { "hello" })).layer(world.server.inbound_layer());
        let mut request = http::Request::get("/").header("host", "a").body(axum::body::Body::empty()).unwrap();
        let spiffe_id = known.then(|| "spiffe://cluster.local/ns/default/sa/web".parse().unwrap());
        request.extensions_mut().insert(PeerIdentity { spiffe_id, address: ([127, 0, 0, 1], 4000).into() });
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        assert_eq!(response.status(), status, "{tls:?} {known}");
    }
}

/// Nobody may go to `/admin`.
fn no_admin(tls: InboundTls) -> InboundState {
    let mut listener = listener(tls);
    let rule = AuthorizationRule {
        name: "r".into(),
        permissions: vec![Permission::Path(PathMatch::Prefix("/admin".into()))],
        principals: vec![Principal::Any],
    };
    let deny = AuthorizationPolicy::new("p", AuthorizationAction::Deny);
    listener.authorization = vec![AuthorizationPolicy { rules: vec![rule], ..deny }];
    InboundState::Ready(Arc::new(listener))
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
