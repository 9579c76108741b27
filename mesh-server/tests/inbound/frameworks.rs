//! axum and tonic as applications write them.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::get;
use futures_util::stream::{self, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;
use tower::{Layer, ServiceBuilder};
use tower_service::Service;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundState, InboundTls, PathMatch, Permission,
    Principal,
};
use mesh_core::source::Watched;
use mesh_server::{Config, PeerIdentity, Refusal, Server};
use mesh_testkit::TestCa;

use crate::kit::{Http, World, eventually, identity_trusting, listener, policy, spawn, text, within};
use crate::raw::{PREFACE, SETTINGS, frame};
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

/// An answer that never ends, and says nothing more after some pieces.
fn endless(pieces: usize) -> axum::body::Body {
    let piece = || Ok::<_, Infallible>(bytes::Bytes::from_static(&[b'x'; 1024]));
    let pieces = stream::repeat_with(piece).take(pieces);
    axum::body::Body::from_stream(pieces.chain(stream::pending()))
}

/// A world whose address is that of such a loop.
async fn in_a_loop(tls: InboundTls, config: Config) -> (World, JoinHandle<()>) {
    let whoami = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("plaintext".to_owned(), |id| id.to_string()) };
    let router = Router::new()
        .route("/whoami", get(whoami))
        .route("/admin", get(|| async { "reached" }))
        .route("/endless", get(|| async { endless(usize::MAX) }))
        .route("/silent", get(|| async { endless(1) }));
    let mut world = World::start(policy(tls), config, router.clone()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.address = listener.local_addr().unwrap();
    let serving = spawn(looped(world.server.clone(), listener, router));
    (world, serving)
}

#[tokio::test]
async fn a_loop_of_the_applications_own_takes_connections_and_requests_as_policy_says() {
    let (world, serving) = in_a_loop(InboundTls::Strict, Config::default()).await;
    for version in [Http::One, Http::Two] {
        let mut client = world.mutual(version).await;
        let known = "spiffe://cluster.local/ns/default/sa/productpage";
        assert_eq!(client.get("/whoami").await.unwrap(), (200, known.to_owned()), "{version:?}");
        // The policy of the moment, on a connection that was there before.
        assert_eq!(client.get("/admin").await.unwrap(), (200, "reached".to_owned()));
        world.policy.publish(no_admin(InboundTls::Strict));
        assert_eq!(client.get("/admin").await.unwrap().0, 403);
        // Over HTTP/1.1 that answer was the last: a policy that lets in less ends connections.
        let mut client = world.mutual(version).await;
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
    serving.abort();
}

#[tokio::test]
async fn a_loop_of_the_applications_own_waits_for_no_handshake_that_does_not_come() {
    let mut config = Config::default();
    config.handshake_timeout = std::time::Duration::from_millis(50);
    let (world, serving) = in_a_loop(InboundTls::Strict, config).await;
    assert_eq!(raw(world.address, &[0x16, 3, 1]).await, "");
    assert_eq!(world.server.stats().refused(Refusal::Timeout), 1);
    serving.abort();
}

/// A loop around hyper as this server sets it up, or with this server's `own` connections.
async fn looped_as_set_up(server: Server, listener: TcpListener, own: bool) {
    loop {
        let (tcp, peer) = listener.accept().await.unwrap();
        let server = server.clone();
        spawn(async move {
            let Some(connection) = server.accept(tcp, peer).await else { return };
            let hello = get(|| async { "hello" }).post(|body: bytes::Bytes| async { body });
            let router = Router::new().route("/", hello);
            if own {
                let service = ServiceBuilder::new().layer(connection.layer()).service(router);
                return match connection.is_http2() {
                    true => drop(server.serve_http2(connection, service).await),
                    false => drop(server.serve_http1(connection, service).await),
                };
            }
            let bodies = server.clone();
            let service = ServiceBuilder::new().map_request(move |request| bodies.request(request));
            let service = TowerToHyperService::new(service.layer(connection.layer()).service(router));
            let io = TokioIo::new(connection);
            // The other side may be gone: that is seen there.
            let _ = match io.inner().is_http2() {
                true => server.http2().serve_connection(io, service).await,
                false => server.http1().serve_connection(io, service).await,
            };
        });
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up_in_the_applications_own_loop_too() {
    for own in [false, true] {
        gives_a_body_up_that_stops_coming(own).await;
    }
}

async fn gives_a_body_up_that_stops_coming(own: bool) {
    let mut config = Config::default();
    config.body_idle_timeout = Some(std::time::Duration::from_millis(50));
    let mut world =
        World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("") })).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.address = listener.local_addr().unwrap();
    let serving = spawn(looped_as_set_up(world.server.clone(), listener, own));
    let post = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\na";
    let stopped = raw(world.address, post.as_bytes()).await;
    assert!(stopped.starts_with("HTTP/1.1 408"), "{stopped}");
    // The control: one that comes.
    let whole = raw(world.address, format!("{post}b").as_bytes()).await;
    assert!(whole.ends_with("ab"), "{whole}");
    serving.abort();
}

#[tokio::test]
async fn a_connection_of_the_applications_own_loop_has_the_policys_streams_and_age() {
    for own in [false, true] {
        has_the_policys_streams_and_age(own).await;
    }
}

async fn has_the_policys_streams_and_age(own: bool) {
    let mut config = Config::default();
    config.max_concurrent_streams = 50;
    config.max_connection_age = None;
    let mut world =
        World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("") })).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.address = listener.local_addr().unwrap();
    let serving = spawn(looped_as_set_up(world.server.clone(), listener, own));
    // What the server says at the beginning (RFC 9113, 6.5.2): how many streams at once.
    let streams = async || {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        let mut head = [0; 9];
        within(tcp.read_exact(&mut head)).await.unwrap();
        assert_eq!(head[3], SETTINGS);
        let mut settings = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        within(tcp.read_exact(&mut settings)).await.unwrap();
        let found = settings.chunks(6).find(|setting| setting[..2] == [0, 3]);
        found.map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
    };
    let limited = |change: &dyn Fn(&mut mesh_core::policy::InboundLimits)| {
        let mut listener = crate::kit::listener(InboundTls::Permissive);
        change(&mut listener.limits);
        world.policy.publish(InboundState::Ready(Arc::new(listener)));
    };
    assert_eq!(streams().await, Some(50), "the control");
    limited(&|limits| limits.max_concurrent_streams = Some(7));
    assert_eq!(streams().await, Some(7));
    assert_eq!(within(world.plain(Http::Two).await.get("/")).await.unwrap(), (200, "hello".to_owned()));
    // An old one is told to take no further request; until then it is served.
    limited(&|limits| limits.max_connection_age = Some(std::time::Duration::from_millis(20)));
    let mut client = world.plain(Http::One).await;
    within(async {
        loop {
            let answer = client.send(crate::kit::get("/")).await.unwrap();
            assert_eq!(answer.status(), 200);
            if answer.headers().get("connection").is_some_and(|said| said == "close") {
                return;
            }
            crate::kit::read(answer).await.unwrap();
        }
    })
    .await;
    serving.abort();
}

#[tokio::test]
async fn a_connection_of_the_applications_own_loop_ends_with_what_let_its_peer_in() {
    for version in [Http::One, Http::Two] {
        let (world, serving) = in_a_loop(InboundTls::Permissive, Config::default()).await;
        let counted = || world.metrics.peers().all().iter().map(|(_, _, open)| *open).sum::<u64>();
        let mut plain = world.plain(version).await;
        let mut mutual = world.mutual(version).await;
        assert_eq!(plain.get("/whoami").await.unwrap().1, "plaintext", "{version:?}");
        assert_eq!(mutual.get("/whoami").await.unwrap().0, 200, "{version:?}");
        assert_eq!(counted(), 1, "{version:?}");
        world.policy.publish(policy(InboundTls::Strict));
        let _ = within(plain.ended).await;
        // The control: it is as good as before.
        assert_eq!(mutual.get("/whoami").await.unwrap().0, 200, "{version:?}");
        world.identity.publish(Some(identity_trusting(&world.ca, "reviews", &TestCa::new())));
        let _ = within(mutual.ended).await;
        eventually(|| (counted() == 0).then_some(())).await;
        serving.abort();
    }
}

#[tokio::test]
async fn no_answer_puts_the_end_of_a_connection_off_whatever_its_caller_sends_meanwhile() {
    for path in ["/endless", "/silent"] {
        let (world, serving) = in_a_loop(InboundTls::Permissive, Config::default()).await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        // With the beginning of a next request hyper reads no further until the answer has ended.
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\nG").as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        within(tcp.read_exact(&mut buffer)).await.unwrap();
        // The control: it goes on under a policy that has nothing against its caller.
        world.policy.publish(no_admin(InboundTls::Permissive));
        if path == "/endless" {
            within(tcp.read_exact(&mut vec![0; 1 << 20])).await.unwrap();
        }
        world.policy.publish(policy(InboundTls::Strict));
        let ended = async { while tcp.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {} };
        within(ended).await;
        serving.abort();
    }
}

#[tokio::test]
async fn the_layer_alone_lets_nobody_pass_without_identity_where_policy_is_strict() {
    for (tls, without) in [(InboundTls::Strict, 403), (InboundTls::Permissive, 200)] {
        let inbound = Watched::fixed(policy(tls));
        let layer = Server::builder().inbound(inbound).build().inbound_layer();
        let ask = async |layer: &mesh_server::InboundLayer, extension: Option<PeerIdentity>, kind: &'static str| {
            let hello = tower::service_fn(|_| async { text("hello") });
            let mut request = crate::kit::get("/");
            if let Some(peer) = extension {
                request.extensions_mut().insert(peer);
            }
            request.headers_mut().insert("content-type", kind.parse().unwrap());
            tower::ServiceExt::oneshot(layer.layer(hello), request).await.unwrap()
        };
        let address = ([127, 0, 0, 1], 1).into();
        let known = PeerIdentity { spiffe_id: Some("spiffe://cluster.local/ns/a/sa/b".parse().unwrap()), address };
        let unknown = PeerIdentity { spiffe_id: None, address };
        for (layer, peer) in [(&layer, None), (&layer, Some(unknown.clone())), (&layer.for_peer(unknown), None)] {
            let answer = ask(layer, peer.clone(), "text/plain").await;
            assert_eq!(answer.status(), without, "{tls:?}");
            let said = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
            assert_eq!(String::from_utf8_lossy(&said).contains("MESH-2001"), without == 403, "{said:?}");
            let answer = ask(layer, peer, "application/grpc").await;
            assert_eq!(answer.headers().get("grpc-status").is_some_and(|status| status == "16"), without == 403);
        }
        for (layer, peer) in [(&layer, Some(known.clone())), (&layer.for_peer(known), None)] {
            assert_eq!(ask(layer, peer, "text/plain").await.status(), 200, "{tls:?}");
        }
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
