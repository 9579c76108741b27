//! A further try beside a slow one (Envoy `hedge_policy`, gRFC A6): `cargo run --example hedging`.
//!
//! One of two servers has stopped answering. Without hedging every second request runs into its timeout; with it a
//! try that has had no answer for 50 ms goes on, and another one begins at the other server: the first answer wins
//! and the other try is cancelled. It fails if that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use mesh::Body;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::error::{Code, Fault};
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    Balancer, Cluster, DestinationState, Forward, HedgePolicy, PerMillion, RetryOn, RetryPolicy, Route, RouteAction,
    RouteConfiguration, RouteMatch, Snapshot,
};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REQUESTS: usize = 10;

async fn serve(app: Router) -> Result<SocketAddr, Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// A route with this timeout, to both servers in turn.
fn snapshot(servers: [SocketAddr; 2], timeout: Duration, hedge: Option<HedgePolicy>) -> Snapshot {
    let cluster = Cluster { balancer: Balancer::RoundRobin, ..Cluster::of_addresses("reviews", servers) };
    let retry =
        RetryPolicy { per_try_timeout: Some(Duration::from_millis(50)), ..RetryPolicy::new(1, RetryOn::default()) };
    let retry = hedge.is_some().then_some(retry);
    let forward = Forward { timeout: Some(timeout), hedge, retry, ..Forward::to(cluster.name.clone()) };
    let mut snapshot = Snapshot::of_one_cluster("reviews:80", cluster, None);
    let mut routes = RouteConfiguration::clone(&snapshot.routes);
    routes.virtual_hosts[0].routes = vec![Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(forward)))];
    snapshot.routes = Arc::new(routes);
    snapshot
}

/// Sends all requests at once; how many ran into their timeout.
async fn late(servers: [SocketAddr; 2], timeout: Duration, hedge: Option<HedgePolicy>) -> Result<usize, Failure> {
    let snapshot = Arc::new(snapshot(servers, timeout, hedge));
    let client = Client::builder(Arc::new(move |_: &Target| DestinationState::Ready(snapshot.clone()))).build();
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let (client, request) = (client.clone(), http::Request::get("http://reviews/").body(Body::empty())?);
        requests.spawn(async move { client.send(request).await });
    }
    let mut late = 0;
    while let Some(outcome) = requests.join_next().await {
        match outcome? {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => return Err(format!("unexpected answer: {}", answer.status()).into()),
            Err(error) if error.code() == Code::TIMEOUT => late += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(late)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let well = serve(Router::new().fallback(get(|| async { "here" }))).await?;
    let stuck = serve(Router::new().fallback(get(std::future::pending::<&str>))).await?;
    let servers = [well, stuck];
    let hedge = HedgePolicy { initial_requests: 1, additional_request: PerMillion::NONE, on_per_try_timeout: true };
    let without = late(servers, Duration::from_secs(1), None).await?;
    let with = late(servers, Duration::from_secs(30), Some(hedge)).await?;
    println!("{REQUESTS} requests, one of two servers stuck: {without} late without hedging, {with} with it");
    if (without, with) != (REQUESTS / 2, 0) {
        return Err("half of the requests should have been late, and none with hedging".into());
    }
    Ok(())
}
