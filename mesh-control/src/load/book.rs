//! [`LoadBook`]: the last report of each client for each cluster and locality, and totals by cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use mesh_core::id::{Locality, SpiffeId};
use parking_lot::Mutex;
use serde::Serialize;

use crate::xds::{Account, Charge};

/// Bytes of the reports that are kept of one identity over all its streams; those beyond are counted in the totals alone. A
/// thousand processes of one service account that call eighty clusters each take all of it.
const BYTES_OF_ONE: usize = 64 << 20;
/// The same of all.
const BYTES_OF_ALL: usize = 256 << 20;
/// Clusters with totals of their own; those beyond share [`OTHER`].
const MAX_TOTALS: usize = 10_000;
const OTHER: &str = "other";
/// Characters of a name that are kept, those of a metric's, and named metrics of a report.
const MAX_TEXT: usize = 512;
const MAX_METRIC: usize = 64;
const MAX_METRICS: usize = 32;
/// What a map takes for an entry, beside what is in it.
const ENTRY: usize = 32;

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
    /// How many reports are kept.
    reports: usize,
}

/// Reports of all clients.
#[derive(Debug, Default)]
pub(crate) struct LoadBook(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    clients: BTreeMap<u64, Client>,
    /// Of all of them.
    bytes: usize,
    sums: Sums,
    last: u64,
}

#[derive(Debug)]
struct Client {
    reports: BTreeMap<Place, Kept>,
    charge: Charge,
}

/// Cluster, EDS service, locality.
type Place = (String, String, Locality);

#[derive(Debug)]
struct Kept {
    report: LoadReport,
    /// Whether its cluster had totals of its own when it came.
    is_own: bool,
}

/// Totals by cluster. Those of clusters of which no report is kept give way to newer ones, and count under [`OTHER`] then.
#[derive(Debug, Default)]
struct Sums {
    by_cluster: BTreeMap<String, Totals>,
    idle: BTreeSet<String>,
}

impl LoadBook {
    /// Takes a client in, whose reports are paid for by `account`.
    pub(crate) fn enter(&self, account: &Arc<Account>) -> u64 {
        let mut inner = self.0.lock();
        inner.last += 1;
        let id = inner.last;
        inner.clients.insert(id, Client { reports: BTreeMap::new(), charge: Charge::new(account, 0) });
        id
    }

    /// Forgets a client's reports; the totals stay.
    pub(crate) fn leave(&self, client: u64) {
        let mut inner = self.0.lock();
        let Some(client) = inner.clients.remove(&client) else { return };
        inner.bytes -= client.charge.bytes();
        client.reports.values().for_each(|kept| inner.sums.release(kept));
    }

    /// Takes a report of one cluster in; gives whether there was room for all of it.
    pub(crate) fn report(&self, client: u64, node: &str, identity: Option<&SpiffeId>, stats: &ClusterStats) -> bool {
        let cluster = cut(&stats.cluster_name, MAX_TEXT);
        self.0.lock().sums.drop(&cluster, stats.total_dropped_requests);
        // Others get their turn between two.
        let keep = |locality| {
            let report = read(node, identity, &cluster, stats, locality);
            self.0.lock().keep(client, report)
        };
        let mut all = true;
        for locality in &stats.upstream_locality_stats {
            all &= keep(locality);
        }
        all
    }

    /// The last reports, by client.
    pub(crate) fn reports(&self) -> Vec<LoadReport> {
        // Not under one lock: clients report on while others are written down.
        let clients: Vec<_> = self.0.lock().clients.keys().copied().collect();
        let of = |client| -> Vec<_> {
            let inner = self.0.lock();
            let kept = inner.clients.get(&client).into_iter().flat_map(|client| client.reports.values());
            kept.map(|kept| kept.report.clone()).collect()
        };
        clients.into_iter().flat_map(of).collect()
    }

    /// The totals, by cluster.
    pub(crate) fn totals(&self) -> BTreeMap<String, Totals> {
        self.0.lock().sums.by_cluster.clone()
    }
}

impl Inner {
    /// Counts a report and keeps it, if there is room.
    fn keep(&mut self, client: u64, report: LoadReport) -> bool {
        let Some(Client { reports, charge }) = self.clients.get_mut(&client) else { return true };
        let place = (report.cluster.clone(), report.service.clone(), report.locality.clone());
        if let Some(before) = reports.remove(&place) {
            let price = price(&before.report);
            charge.remove(price);
            self.bytes -= price;
            self.sums.release(&before);
        }
        let (totals, is_own) = self.sums.of(&report.cluster);
        for (total, more) in [
            (&mut totals.issued, report.issued),
            (&mut totals.successful, report.successful),
            (&mut totals.failed, report.failed),
        ] {
            *total = total.saturating_add(more);
        }
        let price = price(&report);
        if self.bytes + price > BYTES_OF_ALL || charge.account().bytes() + price > BYTES_OF_ONE {
            return false;
        }
        charge.add(price);
        self.bytes += price;
        totals.in_progress += report.in_progress;
        totals.reports += 1;
        self.sums.idle.remove(&report.cluster);
        reports.insert(place, Kept { report, is_own });
        true
    }
}

impl Sums {
    /// Where a cluster is counted, and whether that is under its own name.
    fn of(&mut self, cluster: &str) -> (&mut Totals, bool) {
        let is_own = self.by_cluster.contains_key(cluster) || self.make_room();
        if is_own && !self.by_cluster.contains_key(cluster) && cluster != OTHER {
            self.idle.insert(cluster.to_owned());
        }
        let name = if is_own { cluster } else { OTHER };
        (self.by_cluster.entry(name.to_owned()).or_default(), is_own)
    }

    fn drop(&mut self, cluster: &str, requests: u64) {
        let (totals, _) = self.of(cluster);
        totals.dropped = totals.dropped.saturating_add(requests);
    }

    /// Whether there is room for one more.
    fn make_room(&mut self) -> bool {
        if self.by_cluster.len() < MAX_TOTALS {
            return true;
        }
        let Some(past) = self.idle.pop_first().and_then(|idle| self.by_cluster.remove(&idle)) else { return false };
        let other = self.by_cluster.entry(OTHER.to_owned()).or_default();
        for (total, more) in [
            (&mut other.issued, past.issued),
            (&mut other.successful, past.successful),
            (&mut other.failed, past.failed),
            (&mut other.dropped, past.dropped),
        ] {
            *total = total.saturating_add(more);
        }
        true
    }

    /// A report is kept no longer.
    fn release(&mut self, Kept { report, is_own }: &Kept) {
        let name = if *is_own { &report.cluster } else { OTHER };
        let Some(totals) = self.by_cluster.get_mut(name) else { return };
        totals.in_progress -= report.in_progress;
        totals.reports -= 1;
        if totals.reports == 0 && name != OTHER {
            self.idle.insert(name.to_owned());
        }
    }
}

/// What it takes to keep a report: its place has the same texts once more.
fn price(report: &LoadReport) -> usize {
    let Locality { region, zone, sub_zone } = &report.locality;
    let place: usize = [&report.cluster, &report.service, region, zone, sub_zone].into_iter().map(String::len).sum();
    let metrics: usize = report.metrics.keys().map(|name| ENTRY + size_of::<(String, u64, f64)>() + name.len()).sum();
    ENTRY + size_of::<(Place, Kept)>() + 2 * place + report.node.len() + metrics
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
        (cut(&metric.metric_name, MAX_METRIC), (metric.num_requests_finished_with_metric, metric.total_metric_value))
    });
    LoadReport {
        node: node.to_owned(),
        identity: identity.cloned(),
        cluster: cluster.to_owned(),
        service: cut(&stats.cluster_service_name, MAX_TEXT),
        locality: Locality {
            region: cut(&locality.region, MAX_TEXT),
            zone: cut(&locality.zone, MAX_TEXT),
            sub_zone: cut(&locality.sub_zone, MAX_TEXT),
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
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::config::endpoint::v3::EndpointLoadMetricStats;

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
        let (book, account) = (LoadBook::default(), Arc::default());
        let (one, other) = (book.enter(&account), book.enter(&account));
        for (client, node, zone, now) in
            [(one, "one", "z1", 3), (one, "one", "z1", 5), (one, "one", "z2", 1), (other, "other", "z1", 2)]
        {
            assert!(book.report(client, node, None, &stats("a", zone, now)));
        }
        let seen: Vec<_> =
            book.reports().into_iter().map(|r| (r.node, r.locality.zone, r.in_progress, r.successful)).collect();
        let row = |node: &str, zone: &str, now| (node.to_owned(), zone.to_owned(), now, 7);
        assert_eq!(seen, [row("one", "z1", 5), row("one", "z2", 1), row("other", "z1", 2)]);
        let sum = Totals { issued: 40, successful: 28, failed: 4, dropped: 8, in_progress: 8, reports: 3 };
        assert_eq!(book.totals(), BTreeMap::from([("a".to_owned(), sum)]));
        book.leave(one);
        assert_eq!(book.reports().len(), 1);
        let done = Totals { in_progress: 2, reports: 1, ..sum };
        assert_eq!(book.totals()["a"], done, "what was done stays done");
        book.leave(other);
        assert_eq!(book.totals()["a"], Totals { in_progress: 0, reports: 0, ..sum }, "nobody else needs its place");
        assert_eq!((account.bytes(), book.0.lock().bytes), (0, 0));
        assert!(book.report(one, "one", None, &stats("a", "z", 1)) && book.reports().is_empty(), "it has left");
    }

    /// Reports as large as one may be, of the one cluster, until one is refused; gives how many were kept.
    fn fill(book: &LoadBook, client: u64) -> usize {
        let large = |n: usize| format!("{n:08}{}", "\u{1f980}".repeat(MAX_TEXT));
        let report = |n| ClusterStats { cluster_service_name: large(n), ..stats(&large(0), &large(n), 1) };
        (0..).find(|n| !book.report(client, "n", None, &report(*n))).unwrap()
    }

    #[test]
    fn what_one_identity_has_kept_over_all_its_streams_is_bounded_in_bytes_and_takes_nothing_from_others() {
        let (book, account, other) = (LoadBook::default(), Arc::default(), Arc::default());
        let (first, second) = (book.enter(&account), book.enter(&account));
        let kept = fill(&book, first);
        assert!(kept > 1_000 && account.bytes() <= BYTES_OF_ONE, "{kept}");
        assert_eq!(fill(&book, second), 0, "it is full");
        // The control: there is as much room for others.
        assert_eq!(fill(&book, book.enter(&other)), kept);
        assert_eq!(book.reports().len(), 2 * kept);
        let counted = book.totals().values().map(|totals| totals.issued).sum::<u64>();
        assert_eq!(counted, 10 * (2 * kept as u64 + 3), "and nothing is lost from the sums");
        book.leave(first);
        assert!(fill(&book, second) == kept, "there is room again");
    }

    #[test]
    fn what_all_identities_have_kept_is_bounded() {
        let book = LoadBook::default();
        let full = (0..).take_while(|_| fill(&book, book.enter(&Arc::default())) > 0).take(100).count();
        assert!((BYTES_OF_ALL / BYTES_OF_ONE..=1 + BYTES_OF_ALL / BYTES_OF_ONE).contains(&full), "{full}");
    }

    #[test]
    fn invented_clusters_make_no_more_totals_than_there_may_be_and_give_way_once_nobody_reports_them() {
        let (book, account) = (LoadBook::default(), Arc::default());
        let (liar, honest) = (book.enter(&account), book.enter(&account));
        for n in 0..MAX_TOTALS + 100 {
            book.report(liar, "n", None, &stats(&n.to_string(), "z", u64::MAX));
        }
        let is_known = |cluster: &str| book.totals().contains_key(cluster);
        assert_eq!(book.totals().len(), MAX_TOTALS + 1);
        assert_eq!((book.totals()[OTHER].issued, book.totals()["0"].issued), (1_000, 10));
        book.report(honest, "n", None, &stats("a", "z", 1));
        assert!(!is_known("a"), "there is no room");
        book.leave(liar);
        for (cluster, now) in [("a", 4), ("b", 2), (OTHER, 1), ("a", 3)] {
            book.report(honest, "n", None, &stats(cluster, "z", now));
        }
        assert!(is_known("a") && is_known("b"));
        assert_eq!(book.totals().len(), MAX_TOTALS + 1);
        let sum = |of: fn(&Totals) -> u64| book.totals().values().map(of).sum::<u64>();
        let reported = MAX_TOTALS as u64 + 105;
        assert_eq!((sum(|t| t.issued), sum(|t| t.dropped), sum(|t| t.in_progress)), (10 * reported, 2 * reported, 6));
        book.leave(honest);
        assert_eq!(sum(|t| t.in_progress + t.reports as u64), 0);
    }

    #[test]
    fn texts_are_cut() {
        let (book, account) = (LoadBook::default(), Arc::default());
        let mut report = stats(&"x\n".repeat(10_000), "z", 1);
        report.upstream_locality_stats[0].load_metric_stats = (0..100)
            .map(|n| EndpointLoadMetricStats {
                metric_name: format!("{n:02}{}", "m".repeat(1_000)),
                ..EndpointLoadMetricStats::default()
            })
            .collect();
        book.report(book.enter(&account), "n", None, &report);
        let kept = &book.reports()[0];
        assert_eq!((kept.cluster.len(), kept.metrics.len()), (MAX_TEXT, MAX_METRICS));
        assert!(!kept.cluster.contains('\n') && kept.metrics.keys().all(|name| name.len() == MAX_METRIC));
    }
}
