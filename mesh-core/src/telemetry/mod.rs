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
/// Time for which the application's runtime has run no task, seconds; 0 below a second.
pub const RUNTIME_STALLED: &str = "mesh_runtime_stalled_seconds";
/// How often that was a second or longer.
pub const RUNTIME_STALLS: &str = "mesh_runtime_stalls_total";
/// Sockets of this process that listen beside the mesh's.
pub const OTHER_LISTENERS: &str = "mesh_other_listeners";
/// When this process's certificate ends, what signed it, and the first of the roots it trusts; seconds since the Unix epoch.
pub const CERTIFICATE_EXPIRY: &str = "mesh_certificate_expiry_timestamp_seconds";

/// Most sets of labels that have a series of their own.
const MOST_SERIES: usize = 16_384;
/// Outcomes of a series that have counters of their own, and a few more: those of their class.
const MOST_OUTCOMES: usize = 64;
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
    /// What it counts as: of gRPC's statuses only those that there are. The others are *unknown* (2), as with gRPC itself.
    fn known(self) -> Self {
        let status = self.grpc_status.map(|status| if (0..=16).contains(&status) { status } else { 2 });
        Self { grpc_status: status, ..self }
    }

    /// The outcome of those that have none of their own: the first code of the class, no gRPC status, no flag.
    fn of_class(self) -> Self {
        Self { code: self.code / 100 * 100, grpc_status: None, flags: "-", grpc: self.grpc }
    }

    /// Equality for every request: flags are nearly always the same text, not only the same words.
    fn is(&self, other: &Self) -> bool {
        self.code == other.code
            && self.grpc_status == other.grpc_status
            && self.grpc == other.grpc
            && (std::ptr::eq(self.flags, other.flags) || self.flags == other.flags)
    }
}

/// Series by what they are of. Labels are large, and a table has free places: these are not to be as large.
type Table<K, S> = HashMap<K, Arc<S>, foldhash::fast::FixedState>;

/// All series of one mesh. Passed in, never global.
#[derive(Debug, Default)]
pub struct Metrics {
    series: Mutex<Table<Box<RequestLabels>, RequestSeries>>,
    tcp: Mutex<Table<(Box<RequestLabels>, &'static str), TcpSeries>>,
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
        series.entry(Box::new(labels)).or_default().clone()
    }

    /// The series of raw connections with `labels` and a response flag (`-`: none), made on first use. Keep the
    /// answer. Their number has the same bound.
    pub fn tcp(&self, labels: &RequestLabels, flags: &'static str) -> Arc<TcpSeries> {
        let mut series = self.tcp.lock();
        let mut key = (Box::new(labels.clone()), flags);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            *key.0 = labels.of_other();
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

    /// The health of a cluster's endpoints, made on first use; beyond 16,384 clusters those that are new share the name
    /// `other`. Not for the request path: keep the answer.
    pub fn health(&self, cluster: &ClusterName) -> Arc<HealthSeries> {
        let mut health = self.health.lock();
        let full = health.len() >= MOST_SERIES && !health.contains_key(cluster);
        let cluster = if full { OTHER.into() } else { cluster.clone() };
        health.entry(cluster).or_default().clone()
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
    /// Counts one completed request. Codes and statuses are the peer's: of 64 outcomes on, a new one counts as the first
    /// code of its class (200, 400), without gRPC status and flag.
    #[inline]
    pub fn record(&self, outcome: Outcome, duration: Duration) {
        let outcome = outcome.known();
        if !self.count(outcome, duration, MOST_OUTCOMES) {
            // From the first on: that of its class may be there already.
            self.count(outcome.of_class(), duration, usize::MAX);
        }
    }

    /// Counts it among the first `most` outcomes, if it is one of them or there is room.
    #[inline]
    fn count(&self, outcome: Outcome, duration: Duration, most: usize) -> bool {
        let mut place = &self.first;
        for _ in 0..most {
            // Another one may be put there meanwhile: then it is the next.
            let counted = place.get().unwrap_or_else(|| place.get_or_init(|| Counted::new(outcome)));
            if counted.outcome.is(&outcome) {
                counted.counters.record(duration);
                return true;
            }
            place = &counted.next;
        }
        false
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

    /// The bytes that 100,000 names make a process hold, and its series.
    fn held(mut name: impl FnMut(&Metrics, u32)) -> (i64, usize) {
        let metrics = Metrics::default();
        let cost = allocation_counter::measure(|| (0..100_000).for_each(|number| name(&metrics, number)));
        let mut series = metrics.all_routes().len() + metrics.all_health().len() + metrics.decisions().all().len();
        metrics.visit(|_, _, _| series += 1);
        metrics.visit_tcp(|_, _, _| series += 1);
        (cost.bytes_current, series)
    }

    #[test]
    fn a_hundred_thousand_names_hold_no_more_than_their_bound_r38() {
        let host = |number: u32| labels(format!("{number}.default.svc.cluster.local"));
        let claimed = |number: u32| RequestLabels {
            source: PeerLabels {
                principal: format!("spiffe://cluster.local/ns/a/sa/{number}"),
                ..PeerLabels::default()
            },
            ..labels("reviews".to_owned())
        };
        let decision = |number: u32| DecisionLabels {
            policy: format!("ns[a]-policy[{number}]"),
            action: "deny",
            decision: "denied",
            dry_run: false,
        };
        let code = |number: u32| Outcome { code: 100 + (number % 900) as u16, ..OK };
        let status = |number: u32| Outcome { grpc_status: Some(number as i32), grpc: true, ..OK };
        type Name<'a> = &'a dyn Fn(&Metrics, u32);
        let names: [(&str, Name<'_>, usize); 8] = [
            ("hosts", &|metrics, n| metrics.series(&host(n)).record(OK, Duration::ZERO), MOST_SERIES + 1),
            ("principals", &|metrics, n| metrics.series(&claimed(n)).record(OK, Duration::ZERO), MOST_SERIES + 1),
            ("raw connections", &|metrics, n| metrics.tcp(&host(n), "-").open(), MOST_SERIES + 1),
            (
                "routes",
                &|metrics, n| metrics.route("a:80", &n.to_string()).record(true, Duration::ZERO),
                MOST_SERIES + 1,
            ),
            ("clusters", &|metrics, n| metrics.health(&n.to_string().as_str().into()).checked(true), MOST_SERIES + 1),
            (
                "policies",
                &|metrics, n| {
                    metrics.decisions().counter(decision(n)).fetch_add(1, Ordering::Relaxed);
                },
                257,
            ),
            // And one for each class but the first, which is there: no two lines of a page may be of one series.
            ("codes", &|metrics, n| metrics.series(&host(0)).record(code(n), Duration::ZERO), MOST_OUTCOMES + 8),
            ("statuses", &|metrics, n| metrics.series(&host(0)).record(status(n), Duration::ZERO), 17),
        ];
        for (what, name, most) in names {
            let (bytes, series) = held(name);
            assert_eq!(series, most, "{what}");
            // R38's bound is for all there is of one kind.
            assert!(bytes < 16 << 20, "{what}: {bytes} bytes");
        }
        // The control: as many series without a bound.
        let mut unbounded = HashMap::new();
        let cost = allocation_counter::measure(|| {
            for number in 0..100_000 {
                let series: &mut Arc<RequestSeries> = unbounded.entry(host(number)).or_default();
                series.record(OK, Duration::ZERO);
            }
        });
        assert!(cost.bytes_current > 48 << 20, "{cost:?}");
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
