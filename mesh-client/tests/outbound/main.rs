//! The outbound path over loopback: only the endpoints are stand-ins.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod away;
mod balancing;
mod composites;
mod connections;
mod deadlines;
mod dns;
mod grpc;
mod health;
mod hedging;
mod hostile;
mod leaving;
mod limits;
mod load;
mod mirrors;
mod outside;
mod panics;
mod parts;
mod refusals;
mod reqwest_adapter;
mod resilience;
mod retries;
mod routing;
mod runtimes;
mod subsets;
mod tcp;
mod telemetry;
mod tls;
mod tls_setup;
mod unix;
mod upgrades;
mod waiting;
mod wire;

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_client::{Body, Client, Error, Io};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    Cluster, Forward, PathMatch, RetryOn, RetryPolicy, RouteConfiguration, RouteMatch, Snapshot, UpstreamProtocol,
};
use mesh_testkit::{EchoServer, FixedSource, policy};

const TARGET: &str = "reviews:9080";

fn client_of(snapshot: Snapshot) -> (Client, Arc<FixedSource>) {
    let source = FixedSource::of(TARGET, snapshot);
    (Client::builder(source.clone()).build(), source)
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{TARGET}{path}")).body(Empty::new()).unwrap()
}

fn post(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::post(format!("http://{TARGET}{path}")).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

/// Sends a GET and reads the answer to its end, so that its connection is free again.
async fn fetch(client: &Client, path: &str) -> Result<Response<Bytes>, Error> {
    read(client.send(get(path)).await?).await
}

/// So many requests, one after another.
async fn answers(client: &Client, count: usize) {
    for _ in 0..count {
        assert_eq!(fetch(client, "/").await.unwrap().status(), 200);
    }
}

async fn read(response: Response<Body>) -> Result<Response<Bytes>, Error> {
    let (parts, body) = response.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}

/// The name of the server that answered.
fn server_of<B>(response: &Response<B>) -> &str {
    response.headers()["x-echo-server"].to_str().unwrap()
}

/// A destination with one cluster, forwarded to under these rules.
fn snapshot_with(forward: Forward, cluster: Cluster, servers: &[&EchoServer]) -> Snapshot {
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let endpoints = servers.iter().map(|server| server.endpoint()).collect();
    policy::snapshot(routes, [(cluster, endpoints)])
}

fn cluster(name: &str) -> Cluster {
    Cluster::new(name.into())
}

fn retrying(attempts: u32, on: RetryOn) -> RetryPolicy {
    RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::new(attempts, on) }
}

fn forward_with(retry: Option<RetryPolicy>) -> Forward {
    Forward { retry, ..Forward::to("test".into()) }
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::any() }
}

/// Lets the clock run to `later` once the server has the request, so that nothing else can be late.
async fn later(server: &EchoServer, requests: u64, later: Duration) {
    server.wait_for_requests(requests).await;
    tokio::time::pause();
    tokio::time::advance(later).await;
    tokio::time::resume();
}

/// An address at which nobody listens, nor will: it stays taken, or the next server of another test might get it.
fn dead_address() -> std::net::SocketAddr {
    static TAKEN: parking_lot::Mutex<Vec<tokio::net::TcpSocket>> = parking_lot::Mutex::new(Vec::new());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    TAKEN.lock().push(socket);
    address
}

/// A destination of several clusters.
fn snapshot_of_clusters(routes: RouteConfiguration, servers: &[(&str, &EchoServer)]) -> Snapshot {
    policy::snapshot(routes, servers.iter().map(|(name, server)| (cluster(name), vec![server.endpoint()])))
}

/// Answers the requests of one connection until it ends, in whichever way.
async fn answer<B>(io: impl Io, protocol: UpstreamProtocol, answer: impl Fn(Request<Incoming>) -> Response<B>)
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let service = service_fn(|request| ready(Ok::<_, Infallible>(answer(request))));
    let io = TokioIo::new(io);
    let _ = match protocol {
        UpstreamProtocol::Http2 => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        }
        _ => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
    };
}
