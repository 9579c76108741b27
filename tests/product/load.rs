//! Servers tell their load, clients go by it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http_body_util::BodyExt;
use mesh::{Body, Client, LoadReporter, Mesh};
use mesh_core::policy::{Address, Balancer, Cluster, Endpoint, Prequal, WeightedRoundRobin};
use mesh_testkit::{FixedSource, policy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{FREE, eventually};

/// A server whose `/hold` never answers, and whose every other path answers its name.
struct Member {
    address: SocketAddr,
    // Each request that waits has a receiver.
    held: watch::Sender<()>,
    _mesh: Mesh,
    task: JoinHandle<()>,
}

impl Member {
    async fn start(name: &'static str, load: LoadReporter) -> Self {
        let (sender, held) = watch::channel(());
        let hold = move || {
            let mut held = held.clone();
            async move {
                // Until the server is gone.
                drop(held.changed().await);
                name
            }
        };
        let app = Router::new().route("/hold", get(hold)).fallback(move || async move { name });
        let mesh = Mesh::disabled().unwrap();
        let listener = TcpListener::bind(FREE).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = mesh.serve(listener, app).without_signals().load_reports(load);
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { address, held: sender, _mesh: mesh, task }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn client(balancer: Balancer, members: &[&Member]) -> Client {
    let endpoints = members.iter().map(|member| Endpoint::new(Address::Socket(member.address)));
    let cluster = Cluster { balancer, ..Cluster::new("test".into()) };
    Client::builder(FixedSource::of("reviews:9080", policy::snapshot_of(cluster, endpoints))).build()
}

async fn ask(client: &Client, path: &str) -> String {
    let request = http::Request::get(format!("http://reviews:9080{path}")).body(Body::empty()).unwrap();
    let body = client.send(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn shares(client: &Client, requests: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(ask(client, "/").await).or_default() += 1;
    }
    shares
}

/// Enough for each of ten to be drawn, if nothing speaks against it: all but 2 in 10^14 times.
const MANY: usize = 300;

/// Whether a client that sends one request after the other comes to keep away from `busy`.
async fn keeps_away(client: &Client) -> bool {
    for _ in 0..5 {
        if !shares(client, MANY).await.contains_key("busy") {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn prequal_sees_the_requests_that_others_have_at_a_server() {
    // Control: by its own requests in flight a client sees no difference.
    for (balancer, want) in [(Balancer::Prequal(Prequal::default()), true), (Balancer::least_request(), false)] {
        // One of ten: a load that half of them had would be the usual one, and nobody's to be kept away from.
        let mut members = vec![Member::start("busy", LoadReporter::new()).await];
        for _ in 0..9 {
            members.push(Member::start("free", LoadReporter::new()).await);
        }
        let members: Vec<_> = members.iter().collect();
        let busy = members[0];
        let other = client(Balancer::RoundRobin, &[busy]);
        let held: Vec<_> = (0..20)
            .map(|_| {
                let other = other.clone();
                tokio::spawn(async move { ask(&other, "/hold").await })
            })
            .collect();
        eventually("the requests are there", || async { (busy.held.receiver_count() > 20).then_some(()) }).await;
        let client = client(balancer.clone(), &members);
        assert_eq!(keeps_away(&client).await, want, "{balancer:?}");
        // Given up, they are no word on how fast the server is.
        held.iter().for_each(JoinHandle::abort);
        let back = || async { shares(&client, MANY).await.contains_key("busy").then_some(()) };
        eventually("it is asked again once it is free", back).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weighted_round_robin_gives_each_server_its_share_of_what_they_say() {
    let settings = |out_of_band| WeightedRoundRobin {
        out_of_band,
        blackout_period: Duration::ZERO,
        weight_update: Duration::from_millis(100),
        error_penalty: 0,
        ..WeightedRoundRobin::default()
    };
    for out_of_band in [false, true] {
        let say = |utilization| {
            let load = LoadReporter::new();
            assert!(load.set("application_utilization", utilization) && load.set("rps_fractional", 100.0));
            load
        };
        let (busy, idle) = (Member::start("busy", say(0.9)).await, Member::start("idle", say(0.1)).await);
        let client = client(Balancer::WeightedRoundRobin(settings(out_of_band)), &[&busy, &idle]);
        eventually("one in ten goes to the busy one", || async {
            let busy = shares(&client, 100).await.get("busy").copied();
            (busy.is_some_and(|busy| (8..=12).contains(&busy))).then_some(())
        })
        .await;
    }
}
