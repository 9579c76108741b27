//! What the mesh adds to one request in heap allocations, each end by itself: the same number on a quiet machine and
//! a busy one, so a change for the worse fails here and not in a bench.
//!
//! The same exchange is counted through plain hyper and through the mesh; the mesh's share is the difference. The
//! counter is that of the calling thread, so an end that is not to be counted runs on another one.

use std::convert::Infallible;
use std::error::Error;
use std::future::ready;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Either, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh::Client;
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, Endpoint, InboundState, InboundTls, RetryPolicy, Snapshot, UpstreamProtocol,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{FixedSource, policy};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Requests counted. What happens once in so many is no cost of one.
const REQUESTS: u64 = 300;

#[test]
fn a_request_over_http1_costs_each_end_its_few_allocations() {
    let added = Added::of(Protocol::Http1);
    // The future, and what is held until the answer's end; of those that hyper's client makes to hand a request to the task of its
    // connection there are none here: six.
    assert_eq!(added.client, -4, "{added:?}");
    // The context; of those that hyper's server makes there are none here: four.
    assert_eq!(added.server, -3, "{added:?}");
    added.assert_small();
}

#[test]
fn a_grpc_call_costs_each_end_its_few_allocations() {
    let added = Added::of(Protocol::Grpc);
    // Of those that hyper's client makes to hand a request to its connection there are none here: five.
    assert_eq!(added.client, -3, "{added:?}");
    assert_eq!(added.server, 1, "{added:?}");
    added.assert_small();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    /// A call without a timeout, over HTTP/2.
    Grpc,
}

/// What the mesh adds to a request.
#[derive(Debug)]
struct Added {
    client: i64,
    server: i64,
    client_bytes: i64,
}

impl Added {
    /// The future is copied into its box with every request: it must not grow unseen.
    fn assert_small(&self) {
        assert!(self.client_bytes < 4096, "{self:?}");
    }

    fn of(protocol: Protocol) -> Self {
        let (bare, mesh) = (Counted::of(protocol, false), Counted::of(protocol, true));
        // Per request, to the next whole number.
        let added = |mesh: u64, bare: u64| (mesh as f64 - bare as f64) / REQUESTS as f64;
        let whole = |added: f64| added.round() as i64;
        Self {
            client: whole(added(mesh.client.0, bare.client.0)),
            server: whole(added(mesh.both.0 - mesh.client.0, bare.both.0 - bare.client.0)),
            client_bytes: whole(added(mesh.client.1, bare.client.1)),
        }
    }
}

/// Allocations and their bytes for all requests.
struct Counted {
    client: (u64, u64),
    both: (u64, u64),
}

impl Counted {
    fn of(protocol: Protocol, mesh: bool) -> Self {
        let elsewhere = Elsewhere::start();
        let client = count(protocol, mesh, Some(&elsewhere.handle));
        Self { client, both: count(protocol, mesh, None) }
    }
}

/// A thread for the end that is not counted.
struct Elsewhere {
    handle: Handle,
    // Dropping it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Elsewhere {
    fn start() -> Self {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || runtime.block_on(stopped));
        Self { handle, _stop: stop }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Allocations on this thread for all requests, and their bytes.
fn count(protocol: Protocol, mesh: bool, server: Option<&Handle>) -> (u64, u64) {
    let runtime = runtime();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = server.unwrap_or(runtime.handle());
    server.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        if mesh { serve(listener, address).await } else { serve_bare(listener).await }
    });
    let mut sender = runtime.block_on(Sender::connect(protocol, mesh, address));
    runtime.block_on(sender.exchanges());
    let counted = allocation_counter::measure(|| runtime.block_on(sender.exchanges()));
    (counted.count_total, counted.bytes_total)
}

async fn serve(listener: tokio::net::TcpListener, address: SocketAddr) {
    let inbound = policy::inbound(address, InboundTls::Disable);
    let server = Server::builder()
        .crypto(mesh_testkit::crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(inbound))))
        .metrics(Arc::<Metrics>::default())
        .build();
    server.serve(listener, tower::service_fn(answer)).await.unwrap();
}

async fn serve_bare(listener: tokio::net::TcpListener) {
    let (stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    // It ends with the client.
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

type Answer = Either<Full<Bytes>, WithTrailers<Full<Bytes>, std::future::Ready<Option<Result<HeaderMap, Infallible>>>>>;

/// The application: its answer to a gRPC call has its status at the end.
async fn answer<B>(request: Request<B>) -> Result<Response<Answer>, Box<dyn Error + Send + Sync>>
where
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let grpc = request.headers().contains_key(CONTENT_TYPE);
    let body = Full::new(request.into_body().collect().await.map_err(Into::into)?.to_bytes());
    if !grpc {
        return Ok(Response::new(Either::Left(body)));
    }
    let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
    let trailers = HeaderMap::from_iter([status]);
    let mut response = Response::new(Either::Right(body.with_trailers(ready(Some(Ok(trailers))))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// The client's end.
enum Sender {
    Mesh(Client, Uri, Protocol),
    Http1(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>, Uri),
}

const TARGET: &str = "echo:8080";

impl Sender {
    async fn connect(protocol: Protocol, mesh: bool, address: SocketAddr) -> Self {
        let uri = Uri::from_static("http://echo:8080/echo");
        if mesh {
            let source = FixedSource::of(TARGET, snapshot(protocol, address));
            let client = Client::builder(source).metrics(Arc::<Metrics>::default()).build();
            return Self::Mesh(client, uri, protocol);
        }
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Grpc(sender, uri)
            }
        }
    }

    async fn exchanges(&mut self) {
        for _ in 0..REQUESTS {
            match self {
                Self::Mesh(client, uri, protocol) => {
                    let response = client.send(request(uri, *protocol)).await.unwrap();
                    assert!(response.status().is_success());
                    response.into_body().collect().await.unwrap();
                }
                Self::Http1(sender) => {
                    let mut request = request(&Uri::from_static("/echo"), Protocol::Http1);
                    request.headers_mut().insert(HOST, HeaderValue::from_static(TARGET));
                    sender.ready().await.unwrap();
                    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
                }
                Self::Grpc(sender, uri) => {
                    let response = sender.send_request(request(uri, Protocol::Grpc)).await.unwrap();
                    response.into_body().collect().await.unwrap();
                }
            }
        }
    }
}

fn request(uri: &Uri, protocol: Protocol) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from_static(&[b'x'; 100])));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = uri.clone();
    if protocol == Protocol::Grpc {
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    }
    request
}

/// One endpoint with the breaker and the retry policy that Istio's defaults amount to.
fn snapshot(protocol: Protocol, address: SocketAddr) -> Snapshot {
    let mut cluster = Cluster::new("echo".into());
    cluster.breaker = CircuitBreakers { max_requests: Some(1024), max_retries: Some(64), ..CircuitBreakers::default() };
    if protocol == Protocol::Grpc {
        cluster.connection.protocol = UpstreamProtocol::Http2;
    }
    let mut snapshot = policy::snapshot_of(cluster, [Endpoint::new(Address::Socket(address))]);
    let mut routes = (*snapshot.routes).clone();
    routes.virtual_hosts[0].retry = Some(RetryPolicy::istio_default());
    snapshot.routes = Arc::new(routes);
    snapshot
}
