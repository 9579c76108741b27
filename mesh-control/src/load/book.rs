//! [`LoadBook`]: the last report of each client for each cluster and locality, and totals by cluster.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use mesh_core::id::{Locality, SpiffeId};
use parking_lot::Mutex;
use serde::Serialize;

/// Reports of one client that are kept; those beyond are counted in the totals alone.
const MAX_REPORTS: usize = 10_000;
/// Reports of all clients that are kept.
const MAX_ALL_REPORTS: usize = 200_000;
/// Clusters with totals of their own; those beyond share [`OTHER`].
const MAX_TOTALS: usize = 10_000;
const OTHER: &str = "other";
/// Characters of a name and named metrics of a report that are kept.
const MAX_TEXT: usize = 512;
const MAX_METRICS: usize = 32;

/// What a client last said of one cluster and locality.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// What the client calls itself (`node.id`): a hint.
    pub node: String,
    /// Who it proved to be.
    pub identity: Option<SpiffeId>,
    /// Cluster.
    pub cluster: String,
    /// EDS service name, if the cluster has another one.
    pub service: String,
    /// Where the requests went.
    pub locality: Locality,
    /// The time it covers, in milliseconds.
    pub interval_ms: u64,
    /// Requests that began.
    pub issued: u64,
    /// Requests not finished at its end.
    pub in_progress: u64,
    /// Requests that succeeded.
    pub successful: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that the client dropped before it chose a locality; of the whole cluster.
    pub dropped: u64,
    /// Named metrics (ORCA): requests that carried one, and the sum of its values.
    pub metrics: BTreeMap<String, (u64, f64)>,
}

/// Sums over all clients since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) issued: u64,
    pub(crate) successful: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// Now, by the last reports of clients that are connected.
    pub(crate) in_progress: u64,
}

/// Reports of all clients.
#[derive(Debug, Default)]
pub(crate) struct LoadBook(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    clients: BTreeMap<u64, BTreeMap<Place, LoadReport>>,
    kept: usize,
    totals: BTreeMap<String, Totals>,
    last: u64,
}

/// Cluster, EDS service, locality.
type Place = (String, String, Locality);

impl LoadBook {
    /// Takes a client in.
    pub(crate) fn enter(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.last += 1;
        let id = inner.last;
        inner.clients.insert(id, BTreeMap::new());
        id
    }

    /// Forgets a client's reports; the totals stay.
    pub(crate) fn leave(&self, client: u64) {
        let mut inner = self.0.lock();
        let reports = inner.clients.remove(&client).unwrap_or_default();
        inner.kept -= reports.len();
        for report in reports.into_values() {
            inner.totals_of(&report.cluster).in_progress -= report.in_progress;
        }
    }

    /// Takes a report of one cluster in.
    pub(crate) fn report(&self, client: u64, node: &str, identity: Option<&SpiffeId>, stats: ClusterStats) {
        let mut inner = self.0.lock();
        let cluster = cut(&stats.cluster_name);
        let totals = inner.totals_of(&cluster);
        totals.dropped = totals.dropped.saturating_add(stats.total_dropped_requests);
        for locality in &stats.upstream_locality_stats {
            let report = read(node, identity, &cluster, &stats, locality);
            inner.keep(client, report);
        }
    }

    /// The last reports, by client.
    pub(crate) fn reports(&self) -> Vec<LoadReport> {
        self.0.lock().clients.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The totals, by cluster.
    pub(crate) fn totals(&self) -> BTreeMap<String, Totals> {
        self.0.lock().totals.clone()
    }
}

impl Inner {
    fn totals_of(&mut self, cluster: &str) -> &mut Totals {
        let known = self.totals.len() < MAX_TOTALS || self.totals.contains_key(cluster);
        self.totals.entry(if known { cluster } else { OTHER }.to_owned()).or_default()
    }

    fn keep(&mut self, client: u64, report: LoadReport) {
        let full = self.kept >= MAX_ALL_REPORTS;
        let Some(reports) = self.clients.get_mut(&client) else { return };
        let place = (report.cluster.clone(), report.service.clone(), report.locality.clone());
        let before = reports.get(&place).map(|before| before.in_progress);
        let keep = before.is_some() || (reports.len() < MAX_REPORTS && !full);
        if keep {
            self.kept += usize::from(before.is_none());
            reports.insert(place, report.clone());
        }
        let totals = self.totals_of(&report.cluster);
        for (total, more) in [
            (&mut totals.issued, report.issued),
            (&mut totals.successful, report.successful),
            (&mut totals.failed, report.failed),
        ] {
            *total = total.saturating_add(more);
        }
        if keep {
            totals.in_progress = totals.in_progress - before.unwrap_or_default() + report.in_progress;
        }
    }
}

fn read(
    node: &str,
    identity: Option<&SpiffeId>,
    cluster: &str,
    stats: &ClusterStats,
    of: &UpstreamLocalityStats,
) -> LoadReport {
    let locality = of.locality.clone().unwrap_or_default();
    let interval = stats.load_report_interval.as_ref();
    let millis = interval.map_or(0, |i| i.seconds.saturating_mul(1000).saturating_add(i64::from(i.nanos) / 1_000_000));
    let metrics = of.load_metric_stats.iter().take(MAX_METRICS).map(|metric| {
        (cut(&metric.metric_name), (metric.num_requests_finished_with_metric, metric.total_metric_value))
    });
    LoadReport {
        node: node.to_owned(),
        identity: identity.cloned(),
        cluster: cluster.to_owned(),
        service: cut(&stats.cluster_service_name),
        locality: Locality {
            region: cut(&locality.region),
            zone: cut(&locality.zone),
            sub_zone: cut(&locality.sub_zone),
        },
        interval_ms: u64::try_from(millis).unwrap_or_default(),
        issued: of.total_issued_requests,
        // A client may say anything; sums over all of them must not overflow.
        in_progress: of.total_requests_in_progress.min(u64::from(u32::MAX)),
        successful: of.total_successful_requests,
        failed: of.total_error_requests,
        dropped: stats.total_dropped_requests,
        metrics: metrics.collect(),
    }
}

/// A client's text made fit for pages and labels.
fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as core;

    use super::*;

    fn stats(cluster: &str, zone: &str, in_progress: u64) -> ClusterStats {
        let locality = core::Locality { zone: zone.into(), ..core::Locality::default() };
        let upstream = UpstreamLocalityStats {
            locality: Some(locality),
            total_issued_requests: 10,
            total_successful_requests: 7,
            total_error_requests: 1,
            total_requests_in_progress: in_progress,
            ..UpstreamLocalityStats::default()
        };
        ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![upstream],
            total_dropped_requests: 2,
            ..ClusterStats::default()
        }
    }

    #[test]
    fn the_last_report_of_each_place_is_kept_and_totals_are_summed() {
        let book = LoadBook::default();
        let (one, other) = (book.enter(), book.enter());
        book.report(one, "one", None, stats("a", "z1", 3));
        book.report(one, "one", None, stats("a", "z1", 5));
        book.report(one, "one", None, stats("a", "z2", 1));
        book.report(other, "other", None, stats("a", "z1", 2));
        let seen: Vec<_> =
            book.reports().into_iter().map(|r| (r.node, r.locality.zone, r.in_progress, r.successful)).collect();
        let row = |node: &str, zone: &str, now| (node.to_owned(), zone.to_owned(), now, 7);
        assert_eq!(seen, [row("one", "z1", 5), row("one", "z2", 1), row("other", "z1", 2)]);
        let sum = Totals { issued: 40, successful: 28, failed: 4, dropped: 8, in_progress: 8 };
        assert_eq!(book.totals(), BTreeMap::from([("a".to_owned(), sum)]));
        book.leave(one);
        assert_eq!(book.reports().len(), 1);
        assert_eq!(book.totals()["a"], Totals { in_progress: 2, ..sum }, "what was done stays done");
    }

    #[test]
    fn hostile_reports_are_bounded() {
        let book = LoadBook::default();
        let client = book.enter();
        for n in 0..MAX_TOTALS + 100 {
            book.report(client, "n", None, stats(&n.to_string(), "z", u64::MAX));
        }
        assert_eq!(book.reports().len(), MAX_REPORTS);
        let totals = book.totals();
        assert_eq!(totals.len(), MAX_TOTALS + 1);
        assert_eq!((totals[OTHER].issued, totals["0"].issued), (1_000, 10), "nothing is lost from the sums");
        book.report(client, "n", None, stats(&"x\n".repeat(10_000), "z", 1));
        book.leave(client);
        assert!(book.totals().values().all(|totals| totals.in_progress == 0));
        book.report(client, "n", None, stats("a", "z", 1));
        assert!(book.reports().is_empty(), "it has left");
    }
}
