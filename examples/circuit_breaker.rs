//! What circuit breakers are for: `cargo run --example circuit_breaker`.
//!
//! First a server that does not answer any more: without a limit a hundred requests wait for it, with one of eight
//! the others are told at once that the circuit is open (gRFC A32, Istio `http2MaxRequests`). Then a server that
//! fails beside two that do not: outlier detection takes it out after five failures (Istio `outlierDetection`). It
//! fails if that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use mesh::Body;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::error::{Code, Fault};
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    Balancer, CircuitBreakers, Cluster, DestinationState, OutlierDetection, PerMillion, Snapshot,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REQUESTS: usize = 100;
const LIMIT: u32 = 8;

async fn serve(app: Router) -> Result<SocketAddr, Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

fn client(cluster: Cluster) -> Client {
    let snapshot = Arc::new(Snapshot::of_one_cluster("reviews:80", cluster, None));
    Client::builder(Arc::new(move |_: &Target| DestinationState::Ready(snapshot.clone()))).build()
}

fn request() -> Result<http::Request<Body>, http::Error> {
    http::Request::get("http://reviews/").body(Body::empty())
}

/// Sends all requests to a server that holds them until none is on its way to it; how many it refused to send.
async fn overload(limit: Option<u32>) -> Result<usize, Failure> {
    let (arrived, mut arrivals) = watch::channel(0);
    let (release, released) = watch::channel(false);
    let arrived = Arc::new(arrived);
    let hold = move || {
        arrived.send_modify(|count| *count += 1);
        let mut released = released.clone();
        async move { drop(released.wait_for(|released| *released).await) }
    };
    let mut cluster = Cluster::of_addresses("reviews", [serve(Router::new().fallback(get(hold))).await?]);
    cluster.breaker = CircuitBreakers { max_requests: limit, ..CircuitBreakers::default() };
    let client = client(cluster);
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let (client, request) = (client.clone(), request()?);
        requests.spawn(async move { client.send(request).await });
    }
    let expected = limit.map_or(REQUESTS, |limit| limit as usize);
    arrivals.wait_for(|count| *count == expected).await?;
    release.send(true)?;
    let mut refused = 0;
    while let Some(outcome) = requests.join_next().await {
        match outcome? {
            Ok(answer) if answer.status() == StatusCode::OK => {}
            Ok(answer) => return Err(format!("unexpected answer: {}", answer.status()).into()),
            Err(error) if error.code() == Code::BREAKER_OPEN => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(refused)
}

/// Sends all requests, one after the other, to three servers of which one fails; how many failed.
async fn failures(outlier: Option<OutlierDetection>) -> Result<usize, Failure> {
    let mut addresses = Vec::new();
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        addresses.push(serve(Router::new().fallback(get(move || async move { status }))).await?);
    }
    // In turn: the default balancer avoids a failing server by itself.
    let balancer = Balancer::RoundRobin;
    let client = client(Cluster { outlier, balancer, ..Cluster::of_addresses("reviews", addresses) });
    let mut failed = 0;
    for _ in 0..REQUESTS {
        failed += usize::from(client.send(request()?).await?.status() != StatusCode::OK);
    }
    Ok(failed)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (without, with) = (overload(None).await?, overload(Some(LIMIT)).await?);
    println!(
        "{REQUESTS} requests for a server that hangs: {without} fail fast without a limit, {with} with one of {LIMIT}"
    );
    if (without, with) != (0, REQUESTS - LIMIT as usize) {
        return Err("all but those within the limit should have failed fast, and only with a limit".into());
    }
    // One of three may be taken out.
    let outlier = OutlierDetection { max_ejected: PerMillion::new(400_000), ..OutlierDetection::default() };
    let (without, with) = (failures(None).await?, failures(Some(outlier)).await?);
    println!("{REQUESTS} requests, one of three servers fails: {without} failures, {with} with outlier detection");
    if with != 5 || without <= 5 {
        return Err("five failures in a row should have taken the server out".into());
    }
    Ok(())
}
