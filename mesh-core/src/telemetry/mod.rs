//! Request metrics with Istio's names and labels, counted with atomics.
//!
//! A [`RequestSeries`] is resolved when a snapshot is built; recording a request then touches a few
//! atomics and takes no lock. Refuses to know any exporter: outlets read [`Metrics::visit`].

mod decisions;
pub mod health;
mod histogram;
pub mod load;
mod peers;
mod renewals;
mod routes;
mod tcp;

pub use self::decisions::{DECISIONS, DecisionLabels, Decisions};
pub use self::health::HealthSeries;
pub use self::histogram::{BUCKETS_MS, Histogram};
pub use self::peers::{CountedPeer, PEERS_BY_ROOT, PeersByRoot};
pub use self::renewals::{LIFE_LEFT, Life, RENEWAL_FAILED_AT, RENEWAL_FAILURES, Renewals};
pub use self::routes::{ROUTE_LATENCY, ROUTE_RESPONSES, RouteLabels, RouteSeries};
pub use self::tcp::{TCP_CLOSED, TCP_OPENED, TCP_RECEIVED_BYTES, TCP_SENT_BYTES, TcpSeries};

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::id::ClusterName;

/// Requests completed (Istio standard metric).
pub const REQUESTS_TOTAL: &str = "istio_requests_total";
/// Time from request start to response end (Istio standard metric), milliseconds.
pub const REQUEST_DURATION: &str = "istio_request_duration_milliseconds";
/// Fields of the configuration in use that are accepted and not enforced.
pub const CONFIG_UNENFORCED: &str = "mesh_config_unenforced";
/// Requests in flight, waiting ones among them; what a circuit breaker compares with `max_requests` (gRFC A32).
pub const REQUESTS_ACTIVE: &str = "mesh_cluster_requests_active";
/// Retries in flight.
pub const RETRIES_ACTIVE: &str = "mesh_cluster_retries_active";
/// Requests that wait for a connection.
pub const REQUESTS_PENDING: &str = "mesh_cluster_requests_pending";
/// Open connections.
pub const CONNECTIONS_ACTIVE: &str = "mesh_cluster_connections_active";
/// Resources of the configuration by the state they are in.
pub const CONFIG_RESOURCES: &str = "mesh_config_resources";
/// Time for which no control plane has vouched for the configuration in use, seconds.
pub const CONFIG_UNCONFIRMED: &str = "mesh_config_unconfirmed_seconds";
/// When this process's certificate ends, what signed it, and the first of the roots it trusts; seconds since the Unix epoch.
pub const CERTIFICATE_EXPIRY: &str = "mesh_certificate_expiry_timestamp_seconds";

/// Most sets of labels that have a series of their own.
const MOST_SERIES: usize = 16_384;
/// The destination service of those that have none.
const OTHER: &str = "other";

/// Which side reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The client.
    Source,
    /// The server.
    Destination,
}

/// The labels of a series that do not depend on the answer, in Istio's meaning. Empty = `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestLabels {
    /// `reporter`.
    pub reporter: Reporter,
    /// `source_*` labels.
    pub source: PeerLabels,
    /// `destination_*` labels of the workload.
    pub destination: PeerLabels,
    /// `destination_service`.
    pub destination_service: String,
    /// `destination_service_name`.
    pub destination_service_name: String,
    /// `destination_service_namespace`.
    pub destination_service_namespace: String,
    /// `connection_security_policy`: whether the server saw mutual TLS; `None` on the source side.
    pub mutual_tls: Option<bool>,
}

impl Reporter {
    /// As it is called in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl RequestLabels {
    /// Where those are counted for whom there is no series.
    fn of_other(&self) -> Self {
        Self {
            reporter: self.reporter,
            source: PeerLabels::default(),
            destination: PeerLabels::default(),
            destination_service: OTHER.to_owned(),
            destination_service_name: OTHER.to_owned(),
            destination_service_namespace: String::new(),
            mutual_tls: self.mutual_tls,
        }
    }
}

/// One side's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerLabels {
    /// `*_workload`.
    pub workload: String,
    /// `*_workload_namespace`.
    pub namespace: String,
    /// `*_principal`.
    pub principal: String,
    /// `*_app`.
    pub app: String,
    /// `*_version`.
    pub version: String,
    /// `*_canonical_service`.
    pub canonical_service: String,
    /// `*_canonical_revision`.
    pub canonical_revision: String,
    /// `*_cluster`.
    pub cluster: String,
}

impl PeerLabels {
    /// Labels of a known workload; the principal is added by who verified it.
    pub fn of(workload: &crate::id::Workload, principal: Option<&crate::id::SpiffeId>) -> Self {
        let label = |key: &str| workload.labels.get(key).cloned();
        Self {
            workload: workload.name.clone(),
            namespace: workload.namespace.clone(),
            principal: principal.map(ToString::to_string).unwrap_or_default(),
            app: label("app").unwrap_or_else(|| workload.canonical_name.clone()),
            version: label("version").unwrap_or_else(|| workload.canonical_revision.clone()),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
        }
    }
}

/// The labels that the answer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outcome {
    /// `response_code`; 0 = no answer.
    pub code: u16,
    /// `grpc_response_status`; `None` for plain HTTP.
    pub grpc_status: Option<i32>,
    /// `response_flags`; `-` if none.
    pub flags: &'static str,
    /// `request_protocol` is `grpc` instead of `http`.
    pub grpc: bool,
}

impl Outcome {
    /// Equality for every request: flags are nearly always the same text, not only the same words.
    fn is(&self, other: &Self) -> bool {
        self.code == other.code
            && self.grpc_status == other.grpc_status
            && self.grpc == other.grpc
            && (std::ptr::eq(self.flags, other.flags) || self.flags == other.flags)
    }
}

/// All series of one mesh. Passed in, never global.
#[derive(Debug, Default)]
pub struct Metrics {
    series: Mutex<HashMap<RequestLabels, Arc<RequestSeries>, foldhash::fast::FixedState>>,
    tcp: Mutex<HashMap<(RequestLabels, &'static str), Arc<TcpSeries>, foldhash::fast::FixedState>>,
    routes: Mutex<BTreeMap<RouteLabels, Arc<RouteSeries>>>,
    health: Mutex<BTreeMap<ClusterName, Arc<HealthSeries>>>,
    decisions: Decisions,
    renewals: Arc<Renewals>,
    peers: Arc<PeersByRoot>,
}

/// The counters of one set of labels.
#[derive(Debug, Default)]
pub struct RequestSeries {
    // A handful of outcomes in practice: a walk along a chain that only grows beats a map, and readers write nothing.
    first: OnceLock<Box<Counted>>,
}

/// One outcome of a series, and the one that was first seen after it.
#[derive(Debug)]
struct Counted {
    outcome: Outcome,
    counters: OutcomeCounters,
    next: OnceLock<Box<Counted>>,
}

/// Counters of one outcome.
#[derive(Debug, Default)]
pub struct OutcomeCounters {
    requests: AtomicU64,
    duration: Histogram,
}

impl OutcomeCounters {
    /// Requests counted.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Their durations.
    pub fn duration(&self) -> &Histogram {
        &self.duration
    }
}

impl Metrics {
    /// The series of `labels`, made on first use. Not for the request path: keep the answer. Beyond 16,384 of them,
    /// what is new is counted under the destination service `other`: names may come from outside without end.
    pub fn series(&self, labels: &RequestLabels) -> Arc<RequestSeries> {
        let mut series = self.series.lock();
        if let Some(found) = series.get(labels) {
            return found.clone();
        }
        let labels = if series.len() < MOST_SERIES { labels.clone() } else { labels.of_other() };
        series.entry(labels).or_default().clone()
    }

    /// The series of raw connections with `labels` and a response flag (`-`: none), made on first use. Keep the
    /// answer. Their number has the same bound.
    pub fn tcp(&self, labels: &RequestLabels, flags: &'static str) -> Arc<TcpSeries> {
        let mut series = self.tcp.lock();
        let mut key = (labels.clone(), flags);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            key.0 = labels.of_other();
        }
        series.entry(key).or_default().clone()
    }

    /// Shows every series of raw connections with its response flag, in order of labels, to an outlet.
    pub fn visit_tcp(&self, mut see: impl FnMut(&RequestLabels, &'static str, &TcpSeries)) {
        let mut all: Vec<_> = self.tcp.lock().iter().map(|(key, series)| (key.clone(), series.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for ((labels, flags), series) in all {
            see(&labels, flags, &series);
        }
    }

    /// The series of a route of `dst`, made on first use; beyond 16,384 of them what is new shares one. Not for the request
    /// path: keep the answer.
    pub fn route(&self, dst: &str, route: &str) -> Arc<RouteSeries> {
        let mut routes = self.routes.lock();
        let labels = RouteLabels { dst: dst.to_owned(), route: route.to_owned() };
        if routes.len() < MOST_SERIES || routes.contains_key(&labels) {
            return routes.entry(labels).or_default().clone();
        }
        routes.entry(RouteLabels { dst: OTHER.to_owned(), route: OTHER.to_owned() }).or_default().clone()
    }

    /// Every route that is counted on its own, in order.
    pub fn all_routes(&self) -> Vec<(RouteLabels, Arc<RouteSeries>)> {
        self.routes.lock().iter().map(|(labels, series)| (labels.clone(), series.clone())).collect()
    }

    /// Certificates that were not renewed.
    pub fn renewals(&self) -> &Arc<Renewals> {
        &self.renewals
    }

    /// Open connections by the root that vouches for the peer.
    pub fn peers(&self) -> &Arc<PeersByRoot> {
        &self.peers
    }

    /// What authorization decided.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// The health of a cluster's endpoints, made on first use. Not for the request path: keep the answer.
    pub fn health(&self, cluster: &ClusterName) -> Arc<HealthSeries> {
        self.health.lock().entry(cluster.clone()).or_default().clone()
    }

    /// The health of every cluster that is watched, in order.
    pub fn all_health(&self) -> Vec<(ClusterName, Arc<HealthSeries>)> {
        self.health.lock().iter().map(|(cluster, series)| (cluster.clone(), series.clone())).collect()
    }

    /// Shows every series, in order of labels, to an outlet.
    pub fn visit(&self, mut see: impl FnMut(&RequestLabels, Outcome, &OutcomeCounters)) {
        let mut all: Vec<_> = self.series.lock().iter().map(|(l, s)| (l.clone(), s.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for (labels, series) in all {
            let mut next = series.first.get();
            while let Some(counted) = next {
                see(&labels, counted.outcome, &counted.counters);
                next = counted.next.get();
            }
        }
    }
}

impl RequestSeries {
    /// Counts one completed request.
    #[inline]
    pub fn record(&self, outcome: Outcome, duration: Duration) {
        let mut place = &self.first;
        loop {
            // Another one may be put there meanwhile: then it is the next.
            let counted = place.get().unwrap_or_else(|| place.get_or_init(|| Counted::new(outcome)));
            if counted.outcome.is(&outcome) {
                return counted.counters.record(duration);
            }
            place = &counted.next;
        }
    }
}

impl Counted {
    #[cold]
    fn new(outcome: Outcome) -> Box<Self> {
        Box::new(Self { outcome, counters: OutcomeCounters::default(), next: OnceLock::new() })
    }
}

impl OutcomeCounters {
    fn record(&self, duration: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.duration.record(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome { code: 200, grpc_status: None, flags: "-", grpc: false };

    fn labels(service: String) -> RequestLabels {
        RequestLabels {
            reporter: Reporter::Source,
            source: PeerLabels::default(),
            destination: PeerLabels::default(),
            destination_service: service,
            destination_service_name: "reviews".into(),
            destination_service_namespace: "default".into(),
            mutual_tls: None,
        }
    }

    #[test]
    fn beyond_the_bound_destinations_share_a_series_r38() {
        let metrics = Metrics::default();
        let first = metrics.series(&labels("0".to_owned()));
        for number in 1..MOST_SERIES + 3 {
            metrics.series(&labels(number.to_string())).record(OK, Duration::ZERO);
        }
        first.record(OK, Duration::ZERO);
        let (mut all, mut other) = (0, 0);
        metrics.visit(|labels, _, counters| {
            all += 1;
            if labels.destination_service == OTHER {
                other = counters.requests();
            }
        });
        assert_eq!((all, other), (MOST_SERIES + 1, 3));

        for number in 0..MOST_SERIES + 3 {
            metrics.route("reviews:80", &number.to_string()).record(true, Duration::ZERO);
        }
        metrics.route("reviews:80", "0").record(false, Duration::ZERO);
        let routes = metrics.all_routes();
        let count = |dst: &str| -> u64 {
            routes.iter().filter(|(labels, _)| labels.dst == dst).map(|(_, series)| series.successes()).sum()
        };
        assert_eq!((routes.len(), count(OTHER), count("reviews:80")), (MOST_SERIES + 1, 3, MOST_SERIES as u64));
        assert_eq!(routes.iter().map(|(_, series)| series.failures()).sum::<u64>(), 1);
    }

    #[test]
    fn one_series_a_label_set_and_one_counter_an_outcome() {
        let metrics = Metrics::default();
        let labels = labels("reviews.default.svc.cluster.local".to_owned());
        let ok = OK;
        metrics.series(&labels).record(ok, Duration::from_millis(3));
        metrics.series(&labels).record(ok, Duration::from_millis(30));
        metrics.series(&labels).record(Outcome { code: 503, flags: "UH", ..ok }, Duration::ZERO);

        let mut seen = Vec::new();
        metrics.visit(|_, outcome, counters| {
            seen.push((outcome.code, counters.requests(), counters.duration().count()));
        });
        assert_eq!(seen, [(200, 2, 2), (503, 1, 1)]);
    }
}
