//! What circuit breakers are for: `cargo run --example circuit_breaker`.
//!
//! First a server that does not answer any more: without a limit a hundred requests wait for it, with one of eight
//! the others are told at once that the circuit is open (gRFC A32, Istio `http2MaxRequests`). Then a server that
//! fails beside two that do not: after five failures outlier detection takes it out (Istio `outlierDetection`). It
//! fails if that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use tokio::time::{sleep, timeout};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REQUESTS: usize = 100;
const LIMIT: u32 = 8;
/// In a row, after which outlier detection takes a server out by default.
const FAILURES: usize = 5;
/// Far longer than that takes.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Waits until one of the servers gets no request any more: who judges them is told of an answer, and no request waits for him.
async fn one_is_out(client: &Client) -> Result<(), Failure> {
    let all_in = || {
        let dump = client.dump();
        let clusters = dump.destinations.iter().flat_map(|destination| &destination.clusters);
        clusters.flat_map(|cluster| &cluster.endpoints).all(|endpoint| endpoint.usable)
    };
    let out = async {
        while all_in() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, out).await.map_err(|_| "five failures in a row should have taken the server out".into())
}

/// Sends all requests, one after the other, to three servers of which one fails and has done so five times; how many fail.
async fn failures(outlier: Option<OutlierDetection>) -> Result<usize, Failure> {
    let mut addresses = Vec::new();
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        addresses.push(serve(Router::new().fallback(get(move || async move { status }))).await?);
    }
    // In turn: the default balancer avoids a failing server by itself.
    let (balancer, watched) = (Balancer::RoundRobin, outlier.is_some());
    let client = client(Cluster { outlier, balancer, ..Cluster::of_addresses("reviews", addresses) });
    let mut seen = 0;
    while seen < FAILURES {
        seen += usize::from(client.send(request()?).await?.status() != StatusCode::OK);
    }
    if watched {
        one_is_out(&client).await?;
    }
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
    // One of three may be taken out, and stays so for as long as this runs.
    let (max_ejected, base_ejection) = (PerMillion::new(400_000), Duration::from_secs(3600));
    let outlier = OutlierDetection { max_ejected, base_ejection, ..OutlierDetection::default() };
    let (without, with) = (failures(None).await?, failures(Some(outlier)).await?);
    println!(
        "{REQUESTS} requests after {FAILURES} failures of one of three servers: {without} fail, {with} with outlier detection"
    );
    if with > 0 || without == 0 {
        return Err("the server should get no request any more, and only with outlier detection".into());
    }
    Ok(())
}
