//! What a retry budget is for: `cargo run --example retry_budget`.
//!
//! Everything fails, and every request may be tried four times. Without a budget that makes an outage four times
//! as heavy; with Linkerd's (20 % of the requests) the servers see hardly more than what was asked. It fails if
//! that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use mesh::Body;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    Cluster, DestinationState, PerMillionRatio, RetryBudget, RetryOn, RetryPolicy, RouteConfiguration, Snapshot,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REQUESTS: usize = 200;

/// A server in trouble, and how many requests it has seen.
async fn failing() -> Result<(SocketAddr, Arc<AtomicUsize>), Failure> {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let answer = move || async move {
        count.fetch_add(1, Ordering::Relaxed);
        StatusCode::SERVICE_UNAVAILABLE
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(get(answer))).await });
    Ok((address, seen))
}

/// Three retries of every 5xx, as far as `budget` allows.
fn snapshot(address: SocketAddr, budget: Option<RetryBudget>) -> Snapshot {
    let on = RetryOn { server_error: true, ..RetryOn::default() };
    let retry = RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::new(3, on) };
    let mut snapshot = Snapshot::of_one_cluster("reviews:80", Cluster::of_addresses("reviews", [address]), Some(retry));
    let routes = RouteConfiguration { retry_budget: budget, ..RouteConfiguration::clone(&snapshot.routes) };
    snapshot.routes = Arc::new(routes);
    snapshot
}

/// Sends the requests one after the other; how many the server saw.
async fn outage(budget: Option<RetryBudget>) -> Result<usize, Failure> {
    let (address, seen) = failing().await?;
    let snapshot = Arc::new(snapshot(address, budget));
    let client = Client::builder(Arc::new(move |_: &Target| DestinationState::Ready(snapshot.clone()))).build();
    for _ in 0..REQUESTS {
        let answer = client.send(http::Request::get("http://reviews/").body(Body::empty())?).await?;
        if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Err(format!("the server fails, and the client said {}", answer.status()).into());
        }
    }
    Ok(seen.load(Ordering::Relaxed))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let budget =
        RetryBudget { retry_ratio: PerMillionRatio(200_000), min_retries_per_second: 0, ttl: Duration::from_secs(10) };
    let (without, with) = (outage(None).await?, outage(Some(budget)).await?);
    println!("{REQUESTS} requests that all fail: {without} tries without a budget, {with} with one of 20 %");
    if without != 4 * REQUESTS || with > REQUESTS * 5 / 4 || with <= REQUESTS {
        return Err("four times as many were expected without a budget, and a fifth more with it".into());
    }
    Ok(())
}
