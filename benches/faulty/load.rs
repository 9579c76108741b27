//! An open load: requests come when they come, however slow the answers are.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use http::{HeaderName, Request};
use http_body_util::BodyExt;
use mesh::Body;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    Address, Balancer, Cluster, DestinationState, Forward, HashPolicy, HashSource, HedgePolicy, OutlierDetection,
    RetryBudget, RetryPolicy, RouteAction, RouteConfiguration, Snapshot,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::{Service, ServiceExt};

use crate::Error;
use crate::backends::Fleet;

/// What came of the requests of a run.
pub(crate) struct Outcome {
    latency: Histogram<u64>,
    answered: u64,
    failed: u64,
    /// Requests that reached the servers, for each that was asked.
    pub(crate) amplification: f64,
}

impl Outcome {
    /// Latency below which so many of a hundred answers stay, milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        self.latency.value_at_quantile(percent / 100.0) as f64
    }

    /// The share of requests that failed.
    pub(crate) fn errors(&self) -> f64 {
        self.failed as f64 / (self.answered + self.failed) as f64
    }
}

/// How much is asked and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Requests in a second.
    pub(crate) rate: f64,
    pub(crate) time: Duration,
    /// What comes before it is not counted: balancers have to learn.
    pub(crate) warm_up: Duration,
}

/// Sends the load with `ask`, which is given the number of the request and tells whether it was answered well.
async fn run<A, F>(load: Load, fleet: &Fleet, ask: A) -> Result<Outcome, Error>
where
    A: Fn(u64) -> F,
    F: Future<Output = bool> + Send + 'static,
{
    let mut random = fastrand::Rng::with_seed(7);
    let begin = Instant::now();
    let mut requests = JoinSet::new();
    let (mut at, mut asked) = (0.0, 0_u64);
    while at < load.time.as_secs_f64() {
        sleep_until(begin + Duration::from_secs_f64(at)).await;
        let (asking, counts) = (ask(asked), at >= load.warm_up.as_secs_f64());
        let started = Instant::now();
        requests.spawn(async move { counts.then_some((asking.await, started.elapsed())) });
        asked += 1;
        // Poisson: the time to the next is exponential.
        at += -(1.0 - random.f64()).ln() / load.rate;
    }
    let mut latency = Histogram::new_with_bounds(1, 600_000, 3)?;
    let (mut answered, mut failed) = (0, 0);
    while let Some(request) = requests.join_next().await {
        match request? {
            Some((true, took)) => {
                latency.record((took.as_millis() as u64).max(1))?;
                answered += 1;
            }
            Some((false, _)) => failed += 1,
            None => {}
        }
    }
    Ok(Outcome { latency, answered, failed, amplification: fleet.seen().iter().sum::<u64>() as f64 / asked as f64 })
}

/// How a client treats the fleet.
#[derive(Clone, Default)]
pub(crate) struct Policy {
    /// None = the library's default.
    pub(crate) balancer: Option<Balancer>,
    pub(crate) outlier: Option<OutlierDetection>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) budget: Option<RetryBudget>,
    pub(crate) hedge: Option<HedgePolicy>,
}

impl Policy {
    fn snapshot(&self, fleet: &Fleet) -> Snapshot {
        let mut cluster = Cluster::of_addresses("fleet", fleet.addresses());
        if let Some(balancer) = &self.balancer {
            cluster.balancer = balancer.clone();
        }
        cluster.outlier = self.outlier.clone();
        // Only those that hash look at it.
        let source = HashSource::Header { name: NUMBER, rewrite: None };
        let hash = vec![HashPolicy { source, terminal: false }];
        let forward = Forward { hedge: self.hedge.clone(), hash, ..Forward::to(cluster.name.clone()) };
        let mut snapshot = Snapshot::of_one_cluster("fleet:80", cluster, self.retry.clone());
        let mut routes = RouteConfiguration::clone(&snapshot.routes);
        routes.retry_budget = self.budget.clone();
        for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            route.action = RouteAction::Forward(Box::new(forward.clone()));
        }
        snapshot.routes = Arc::new(routes);
        snapshot
    }

    /// A client of the fleet.
    pub(crate) fn client(&self, fleet: &Fleet) -> Client {
        let snapshot = Arc::new(self.snapshot(fleet));
        let (random, fleet) = (Mutex::new(fastrand::Rng::with_seed(fastrand::u64(..))), fleet.clone());
        Client::builder(Arc::new(move |_: &Target| DestinationState::Ready(snapshot.clone())))
            .random(move |below| random.lock().u64(..below))
            .connector(move |address: Address| {
                let connection = match address {
                    Address::Socket(address) => fleet.connect(address),
                    other => Err(io::Error::other(format!("{other} is not a server of this fleet"))),
                };
                async move { connection }
            })
            .build()
    }
}

/// Sends the load with a mesh client of this policy.
pub(crate) async fn by_mesh(load: Load, fleet: &Fleet, policy: &Policy) -> Result<Outcome, Error> {
    by_client(load, fleet, &policy.client(fleet)).await
}

/// Sends the load with this client.
pub(crate) async fn by_client(load: Load, fleet: &Fleet, client: &Client) -> Result<Outcome, Error> {
    run(load, fleet, |number| ask(client.clone(), number)).await
}

/// The same load from many clients together, each of which knows only of its own requests.
pub(crate) async fn by_many(load: Load, fleet: &Fleet, policy: &Policy, clients: usize) -> Result<Outcome, Error> {
    let clients: Vec<Client> = (0..clients).map(|_| policy.client(fleet)).collect();
    let random = Mutex::new(fastrand::Rng::with_seed(13));
    run(load, fleet, |number| ask(clients[random.lock().usize(..clients.len())].clone(), number)).await
}

/// The header by which consistent hashing spreads the requests: each has its own.
const NUMBER: HeaderName = HeaderName::from_static("x-number");

async fn ask(client: Client, number: u64) -> bool {
    let request =
        Request::get("http://fleet/").header(NUMBER, number).body(Body::empty()).expect("the request is valid");
    match client.send(request).await {
        Ok(answer) => answer.status().is_success() && answer.into_body().collect().await.is_ok(),
        Err(_) => false,
    }
}

/// Tower's own balancer, straight at the servers: the reference from outside.
pub(crate) async fn by_tower(load: Load, fleet: &Fleet) -> Result<Outcome, Error> {
    let services = (0..fleet.len()).map(|index| {
        let fleet = fleet.clone();
        let work = move |()| {
            let fleet = fleet.clone();
            async move { Ok::<_, Error>(fleet.backend(index).work().await) }
        };
        PendingRequests::new(tower::service_fn(move |()| Box::pin(work(()))), CompleteOnResponse::default())
    });
    let balance = Balance::new(ServiceList::new::<()>(services.collect::<Vec<_>>()));
    let balance = Arc::new(tokio::sync::Mutex::new(balance));
    run(load, fleet, |_| {
        let balance = balance.clone();
        async move {
            // The lock is for choosing only.
            let answer = {
                let mut balance = balance.lock().await;
                match balance.ready().await {
                    Ok(ready) => ready.call(()),
                    Err(_) => return false,
                }
            };
            answer.await.unwrap_or(false)
        }
    })
    .await
}
