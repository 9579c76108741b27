//! A balancer of your own: `cargo run --example custom_picker`.
//!
//! Three servers, no control plane. The picker sends every request to the endpoint with the fewest requests
//! in flight of *all* (policy's least request compares two at random), so while one request hangs, its server
//! gets no other. What stands around a picker stays: priorities, endpoints that cannot be reached, retries.
//! It fails if that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::balance::{Candidates, Draw, Pick, Picker};
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{Cluster, DestinationState, Snapshot};
use mesh::{Body, Error};
use tokio::sync::Semaphore;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The least loaded of all; on a tie the first after those already tried.
#[derive(Debug)]
struct LeastOfAll(Candidates);

impl Picker for LeastOfAll {
    fn pick(&self, pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        let all = 0..self.0.len();
        all.min_by_key(|index| (pick.tried.contains(index), self.0[*index].in_flight()))
    }
}

/// One destination, `greeter:80`, at these addresses.
fn destination(target: &Target, addresses: &[SocketAddr]) -> DestinationState {
    match target.as_str() {
        "greeter:80" => {
            let cluster = Cluster::of_addresses("greeter", addresses.iter().copied());
            DestinationState::Ready(Arc::new(Snapshot::of_one_cluster("greeter:80", cluster, None)))
        }
        other => DestinationState::Failed(format!("{other} is not greeter:80").into()),
    }
}

/// A server that says its name; `/slow` waits for leave.
async fn serve(name: &'static str, leave: Arc<Semaphore>) -> Result<SocketAddr, Failure> {
    let slow = move || async move { leave.acquire().await.map_or("closed", |_| name) };
    let app = Router::new().route("/", get(move || async move { name })).route("/slow", get(slow));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

async fn ask(client: &Client, path: &str) -> Result<String, Failure> {
    use http_body_util::BodyExt as _;
    let request = http::Request::get(format!("http://greeter{path}")).body(Body::empty())?;
    let answer = client.send(request).await.map_err(|error: Error| error.to_string())?;
    Ok(String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let leave = Arc::new(Semaphore::new(0));
    let mut addresses = Vec::new();
    for name in ["anna", "ben", "clara"] {
        addresses.push(serve(name, leave.clone()).await?);
    }
    let client = Client::builder(Arc::new(move |target: &Target| destination(target, &addresses)))
        .picker(|cluster, candidates, _draw| {
            // For this cluster; the others keep the balancer that policy names.
            let ours = cluster.name.as_str() == "greeter";
            ours.then(|| Box::new(LeastOfAll(candidates.clone())) as Box<dyn Picker>)
        })
        .build();

    let slow = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "/slow").await }
    });
    let question = http::Request::get("http://greeter/").body(())?;
    let in_flight = || -> u32 {
        let clusters = client.explain(&question).clusters;
        clusters.iter().flat_map(|option| &option.cluster.endpoints).map(|endpoint| endpoint.in_flight).sum()
    };
    while in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    let mut answers = BTreeMap::new();
    for _ in 0..30 {
        *answers.entry(ask(&client, "/").await?).or_insert(0) += 1;
    }
    leave.add_permits(1);
    let busy = slow.await??;
    println!("{busy} was busy with a slow request; meanwhile answered: {answers:?}");
    if answers.contains_key(&busy) {
        return Err(format!("{busy} was picked although it was the busiest").into());
    }
    Ok(())
}
