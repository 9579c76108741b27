//! What clients report of the load they put on clusters (LRS; gRFC A27, A64, A85): counted here, read by who
//! reports it.
//!
//! A [`ClusterLoad`] is resolved when a cluster is built, a [`LocalityLoad`] when its endpoints are: a request then
//! counts two numbers, one as it begins and one as it ends. Refuses to know what a report looks like on the wire,
//! and whom it goes to.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::balance::EndpointReport;
use crate::id::{ClusterName, Locality};
use crate::policy::LoadReport;

/// The load of every cluster whose control plane wants to hear of it. Passed in, never global.
#[derive(Debug)]
pub struct LoadStore {
    clusters: Mutex<BTreeMap<(ClusterName, String), Arc<ClusterLoad>>>,
    added: watch::Sender<()>,
}

/// Names of metrics kept of a locality: they are the endpoints', and while nobody hears of them they add up.
const MOST_METRICS: usize = 256;

/// The load of one cluster under one EDS service name.
#[derive(Debug)]
pub struct ClusterLoad {
    cluster: ClusterName,
    service: String,
    /// Dropped without a category: by a circuit breaker (gRFC A32).
    refused: AtomicU64,
    parts: Mutex<Parts>,
}

/// What is counted apart, each with what has been reported of it.
#[derive(Debug)]
struct Parts {
    localities: BTreeMap<Locality, (Arc<LocalityLoad>, Counts)>,
    drops: BTreeMap<String, (Arc<AtomicU64>, u64)>,
    refused: u64,
    /// When the last report was taken.
    since: Instant,
}

/// The load of one locality of a cluster.
#[derive(Debug, Default)]
pub struct LocalityLoad {
    issued: AtomicU64,
    successful: AtomicU64,
    failed: AtomicU64,
    metrics: Mutex<BTreeMap<String, Metric>>,
}

/// Totals since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    issued: u64,
    successful: u64,
    failed: u64,
}

/// A request that began. Its end is counted when this is dropped: as a failure, unless the last word was success.
#[derive(Debug)]
pub struct Issued {
    load: Arc<LocalityLoad>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Successful,
    Failed,
    Withdrawn,
}

/// What happened to one cluster since its last report.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterReport {
    /// Cluster.
    pub cluster: ClusterName,
    /// EDS service name; empty = the cluster's own name.
    pub service: String,
    /// Time since the last report, or since the cluster is there.
    pub interval: Duration,
    /// Localities with something to say.
    pub localities: Vec<LocalityReport>,
    /// Requests that were dropped, by category of the control plane (EDS `drop_overloads`).
    pub drops: Vec<(String, u64)>,
    /// Every request that was dropped before a locality was chosen, with and without a category.
    pub dropped: u64,
}

/// What happened in one locality since its last report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityReport {
    /// Where.
    pub locality: Locality,
    /// Requests that began.
    pub issued: u64,
    /// Requests that ended well.
    pub successful: u64,
    /// Requests that ended otherwise.
    pub failed: u64,
    /// Requests that have not ended, now.
    pub in_progress: u64,
    /// What endpoints said of themselves, by the name of gRFC A85.
    pub metrics: BTreeMap<String, Metric>,
}

/// The values of one metric since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metric {
    /// Answers that had one.
    pub requests: u64,
    /// Their sum.
    pub sum: f64,
}

/// For so long after its last report, or its first use, is kept what was counted of a cluster that is in use no longer.
const UNTOLD: Duration = Duration::from_secs(3600);

impl Default for LoadStore {
    fn default() -> Self {
        Self { clusters: Mutex::default(), added: watch::Sender::new(()) }
    }
}

impl LoadStore {
    /// The load of a cluster under an EDS service name (empty = its own name), made on first use. Not for the request
    /// path: keep the answer as long as the cluster is in use.
    pub fn cluster(&self, cluster: &ClusterName, service: &str, now: Instant) -> Arc<ClusterLoad> {
        let made = || {
            let parts = Parts { localities: BTreeMap::new(), drops: BTreeMap::new(), refused: 0, since: now };
            let refused = AtomicU64::new(0);
            let (cluster, service) = (cluster.clone(), service.to_owned());
            Arc::new(ClusterLoad { cluster, service, refused, parts: Mutex::new(parts) })
        };
        let key = (cluster.clone(), service.to_owned());
        let mut clusters = self.clusters.lock();
        if clusters.len().is_power_of_two() && !clusters.contains_key(&key) {
            // There may be nobody who wants to hear of them: those that are in use no longer do not add up.
            let is_told = |load: &ClusterLoad| now.saturating_duration_since(load.parts.lock().since) < UNTOLD;
            clusters.retain(|_, load| Arc::strong_count(load) > 1 || is_told(load));
        }
        let found = clusters.entry(key).or_insert_with(made).clone();
        drop(clusters);
        self.added.send_replace(());
        found
    }

    /// Tells of clusters that come into use.
    pub fn added(&self) -> watch::Receiver<()> {
        self.added.subscribe()
    }

    /// The names of all clusters with something to report now or later.
    pub fn names(&self) -> Vec<ClusterName> {
        let mut names: Vec<_> = self.clusters.lock().keys().map(|(cluster, _)| cluster.clone()).collect();
        // In order: the same name with several services is next to itself.
        names.dedup();
        names
    }

    /// Takes what happened since the last time to the clusters that are `wanted`; those with nothing to say are
    /// left out. What is no longer in use and has been told in full is forgotten.
    pub fn take(&self, wanted: impl Fn(&ClusterName) -> bool, now: Instant) -> Vec<ClusterReport> {
        let mut clusters = self.clusters.lock();
        let mut reports = Vec::new();
        clusters.retain(|(name, _), load| {
            if !wanted(name) {
                return true;
            }
            // Looked at first: what is counted by the last holder is then seen below.
            let in_use = Arc::strong_count(load) > 1;
            let report = load.take(now);
            let busy = load.parts.lock().localities.values().any(|(_, reported)| reported.in_progress() > 0);
            reports.extend(report);
            in_use || busy
        });
        reports
    }
}

impl ClusterLoad {
    /// The load of a locality. Not for the request path: keep the answer.
    pub fn locality(&self, locality: &Locality) -> Arc<LocalityLoad> {
        let mut parts = self.parts.lock();
        match parts.localities.get(locality) {
            Some((load, _)) => load.clone(),
            None => {
                let made = Arc::<LocalityLoad>::default();
                parts.localities.insert(locality.clone(), (made.clone(), Counts::default()));
                made
            }
        }
    }

    /// Counts the requests dropped for a category. Not for the request path: keep the answer.
    pub fn drops(&self, category: &str) -> Arc<AtomicU64> {
        let mut parts = self.parts.lock();
        parts.drops.entry(category.to_owned()).or_default().0.clone()
    }

    /// Counts a request that was dropped for no category.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self, now: Instant) -> Option<ClusterReport> {
        let mut parts = self.parts.lock();
        let mut localities = Vec::new();
        parts.localities.retain(|locality, (load, reported)| {
            let in_use = Arc::strong_count(load) > 1;
            let report = load.take(locality, reported);
            let busy = report.in_progress > 0;
            if busy || report.issued > 0 || report.successful + report.failed > 0 || !report.metrics.is_empty() {
                localities.push(report);
            }
            in_use || busy
        });
        let mut drops = Vec::new();
        parts.drops.retain(|category, (counter, reported)| {
            let in_use = Arc::strong_count(counter) > 1;
            let count = counter.load(Ordering::Relaxed);
            let new = count - std::mem::replace(reported, count);
            if new > 0 {
                drops.push((category.clone(), new));
            }
            in_use
        });
        let refused = self.refused.load(Ordering::Relaxed);
        let new = refused - std::mem::replace(&mut parts.refused, refused);
        let interval = now.saturating_duration_since(std::mem::replace(&mut parts.since, now));
        let dropped = drops.iter().map(|(_, count)| count).sum::<u64>() + new;
        let (cluster, service) = (self.cluster.clone(), self.service.clone());
        (!localities.is_empty() || dropped > 0).then_some(ClusterReport {
            cluster,
            service,
            interval,
            localities,
            drops,
            dropped,
        })
    }
}

impl LocalityLoad {
    /// Counts a request that begins.
    pub fn issue(self: &Arc<Self>) -> Issued {
        self.issued.fetch_add(1, Ordering::Relaxed);
        Issued { load: self.clone(), end: End::Failed }
    }

    /// Takes over what an endpoint said of itself, as far as policy wants it passed on (gRFC A85):
    /// `cpu_utilization`, `mem_utilization`, `application_utilization`, and what the report calls by name, such as
    /// `named_metrics.queue`, singly or as `named_metrics.*`, at most 256 names until they are reported. Takes a lock: only
    /// for answers with a report.
    pub fn report(&self, report: &EndpointReport, policy: &LoadReport) {
        let wants = |name: &str| {
            let named = name.starts_with("named_metrics.") && policy.metrics.iter().any(|m| m == "named_metrics.*");
            named || policy.metrics.iter().any(|metric| metric == name)
        };
        let own = ["cpu_utilization", "mem_utilization", "application_utilization"];
        let own = own.into_iter().filter_map(|name| Some((name, report.metric(name).filter(|value| *value > 0.0)?)));
        let named = report.metrics.iter().map(|(name, value)| (name.as_str(), *value));
        let mut metrics = self.metrics.lock();
        for (name, value) in own.chain(named).filter(|(name, value)| value.is_finite() && wants(name)) {
            if metrics.len() >= MOST_METRICS && !metrics.contains_key(name) {
                continue;
            }
            let metric = metrics.entry(name.to_owned()).or_default();
            metric.requests += 1;
            metric.sum += value;
        }
    }

    fn take(&self, locality: &Locality, reported: &mut Counts) -> LocalityReport {
        // Ends before beginnings: whoever is seen to have ended is seen to have begun.
        let successful = self.successful.load(Ordering::Acquire);
        let failed = self.failed.load(Ordering::Acquire);
        let now = Counts { issued: self.issued.load(Ordering::Relaxed), successful, failed };
        let before = *reported;
        // One may have been told and then withdrawn: it stays told, and the next that begins takes its place.
        *reported = Counts { issued: now.issued.max(before.issued), ..now };
        LocalityReport {
            locality: locality.clone(),
            issued: now.issued.saturating_sub(before.issued),
            successful: now.successful - before.successful,
            failed: now.failed - before.failed,
            in_progress: now.in_progress(),
            metrics: std::mem::take(&mut self.metrics.lock()),
        }
    }
}

impl Counts {
    fn in_progress(self) -> u64 {
        self.issued.saturating_sub(self.successful + self.failed)
    }
}

impl Issued {
    /// Says whether it went well, as far as is known. The last word counts.
    pub fn judge(&mut self, successful: bool) {
        self.end = if successful { End::Successful } else { End::Failed };
    }

    /// It was not sent to anybody after all, for a limit of our own: as if it had not begun.
    pub fn withdraw(mut self) {
        self.end = End::Withdrawn;
    }

    /// Takes over what the endpoint said of itself, for its locality: see [`LocalityLoad::report`].
    pub fn report(&self, report: &EndpointReport, policy: &LoadReport) {
        self.load.report(report, policy);
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        match self.end {
            End::Successful => self.load.successful.fetch_add(1, Ordering::Release),
            End::Failed => self.load.failed.fetch_add(1, Ordering::Release),
            End::Withdrawn => self.load.issued.fetch_sub(1, Ordering::Release),
        };
    }
}
