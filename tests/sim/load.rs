//! An open load on a fleet: requests come when they come, however slow the answers are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use mesh_client::{Body, Client, Error};
use mesh_core::policy::{
    Cluster, Forward, HashPolicy, HedgePolicy, Mirror, RetryBudget, RetryOn, RetryPolicy, RouteMatch, Snapshot,
    UpstreamProtocol,
};
use mesh_testkit::{FixedSource, policy};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::fleet::{Fleet, SERVER, Wire};

/// What every client here calls.
pub(crate) const TARGET: &str = "fleet:80";

/// How one client treats a fleet.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) cluster: Cluster,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) budget: Option<RetryBudget>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) hedge: Option<HedgePolicy>,
    pub(crate) hash: Vec<HashPolicy>,
    pub(crate) mirrors: Vec<Mirror>,
}

impl Default for Policy {
    fn default() -> Self {
        let (cluster, hash, mirrors) = (Cluster::new("fleet".into()), Vec::new(), Vec::new());
        Self { cluster, retry: None, budget: None, timeout: None, hedge: None, hash, mirrors }
    }
}

impl Policy {
    /// With HTTP/2 connections.
    pub(crate) fn http2() -> Self {
        let mut policy = Self::default();
        policy.cluster.connection.protocol = UpstreamProtocol::Http2;
        policy
    }

    /// Up to `attempts` further tries after 5xx answers, resets and tries that took too long.
    pub(crate) fn retrying(mut self, attempts: u32, per_try: Option<Duration>) -> Self {
        let on = RetryOn { server_error: true, ..RetryOn::default() };
        let backoff_base = Duration::from_millis(1);
        self.retry = Some(RetryPolicy { backoff_base, per_try_timeout: per_try, ..RetryPolicy::new(attempts, on) });
        self
    }

    pub(crate) fn snapshot(&self, endpoints: Vec<mesh_core::policy::Endpoint>) -> Snapshot {
        let Self { retry, timeout, hedge, hash, mirrors, .. } = self.clone();
        let forward = Forward { retry, timeout, hedge, hash, mirrors, ..Forward::to("fleet".into()) };
        let mut routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
        routes.retry_budget = self.budget.clone();
        policy::snapshot(routes, [(self.cluster.clone(), endpoints)])
    }
}

/// HTTP/2 or HTTP/1.1.
pub(crate) fn either(http2: bool) -> (Policy, Wire) {
    if http2 { (Policy::http2(), Wire::Http2(100)) } else { (Policy::default(), Wire::Http1) }
}

/// A client of all servers of a fleet, and the source that it follows.
pub(crate) fn client(fleet: &Fleet, policy: &Policy) -> (Client, Arc<FixedSource>) {
    let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints()));
    (client_from(fleet, &source), source)
}

pub(crate) fn client_from(fleet: &Fleet, source: &Arc<FixedSource>) -> Client {
    let (random, fleet) = (Mutex::new(fastrand::Rng::with_seed(fastrand::u64(..))), fleet.clone());
    Client::builder(source.clone())
        .random(move |below| random.lock().u64(..below))
        .connector(move |address| fleet.connect(&address))
        .build()
}

pub(crate) fn request(method: Method, path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let uri = format!("http://{TARGET}{path}");
    Request::builder().method(method).uri(uri).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

/// One GET, and its answer to the end.
pub(crate) async fn get(client: &Client) -> Result<Response<Bytes>, Error> {
    read(client.send(request(Method::GET, "/", "")).await?).await
}

pub(crate) async fn read(response: Response<Body>) -> Result<Response<Bytes>, Error> {
    let (parts, body) = response.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}

/// The server that answered.
pub(crate) fn server_of<B>(response: &Response<B>) -> usize {
    response.headers()[SERVER].to_str().unwrap().parse().unwrap()
}

/// One request of a load.
#[derive(Debug)]
pub(crate) struct Record {
    /// When it began, from the load's beginning.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    /// Which server answered well; else what was the matter.
    pub(crate) outcome: Result<usize, String>,
}

/// Sends `rate` GETs in a second for a while (Poisson); gives what came of them, in their order.
pub(crate) async fn run(client: &Client, rate: f64, time: Duration) -> Vec<Record> {
    run_of(client, Method::GET, rate, time).await
}

/// The same with requests of this method.
pub(crate) async fn run_of(client: &Client, method: Method, rate: f64, time: Duration) -> Vec<Record> {
    let send = || {
        let (client, request) = (client.clone(), request(method.clone(), "/", ""));
        async move { read(client.send(request).await?).await }
    };
    run_with(send, rate, time).await
}

/// The same with whatever is sent each time.
pub(crate) async fn run_with<F>(mut send: impl FnMut() -> F, rate: f64, time: Duration) -> Vec<Record>
where
    F: Future<Output = Result<Response<Bytes>, Error>> + Send + 'static,
{
    let mut random = fastrand::Rng::with_seed(fastrand::u64(..));
    let begin = Instant::now();
    let mut requests = JoinSet::new();
    let mut at = 0.0;
    while at < time.as_secs_f64() {
        sleep_until(begin + Duration::from_secs_f64(at)).await;
        let (answer, started) = (send(), Instant::now());
        requests.spawn(async move {
            let outcome = match answer.await {
                Ok(answer) if answer.status().is_success() => Ok(server_of(&answer)),
                Ok(answer) => Err(answer.status().to_string()),
                Err(error) => Err(error.to_string()),
            };
            Record { at: started - begin, took: started.elapsed(), outcome }
        });
        at += -(1.0 - random.f64()).ln() / rate;
    }
    let mut records = requests.join_all().await;
    records.sort_by_key(|record| record.at);
    records
}

/// The share of a load that was answered well, of what began in this time.
pub(crate) fn goodput(records: &[Record], from: Duration, to: Duration) -> f64 {
    let of: Vec<_> = records.iter().filter(|record| (from..to).contains(&record.at)).collect();
    assert!(of.len() > 10, "{} requests say nothing", of.len());
    of.iter().filter(|record| record.outcome.is_ok()).count() as f64 / of.len() as f64
}

/// The time within which this share of a load was over.
pub(crate) fn quantile(records: &[Record], share: f64) -> Duration {
    let mut took: Vec<_> = records.iter().map(|record| record.took).collect();
    took.sort_unstable();
    took[((took.len() - 1) as f64 * share) as usize]
}

/// What went wrong, each once.
pub(crate) fn failures(records: &[Record]) -> std::collections::BTreeSet<&str> {
    records.iter().filter_map(|record| record.outcome.as_ref().err()).map(String::as_str).collect()
}
