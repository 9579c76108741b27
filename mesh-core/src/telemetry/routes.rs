//! Requests by route, with the names and labels that Linkerd gives the routes of a ServiceProfile.
//!
//! One request counts once, however many tries it took. Refuses to know which answers are failures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Histogram;

/// Requests that have ended, by how they did (Linkerd proxy metric).
pub const ROUTE_RESPONSES: &str = "route_response_total";
/// Their durations, milliseconds (Linkerd proxy metric); up to the end of the answer, where Linkerd's end with its first
/// byte.
pub const ROUTE_LATENCY: &str = "route_response_latency_ms";

/// The labels of a route. Both come from configuration and the application, never from a request's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteLabels {
    /// `dst`: the destination, with its port.
    pub dst: String,
    /// `rt_route`: the route's name.
    pub route: String,
}

/// The counters of one route of one destination.
#[derive(Debug, Default)]
pub struct RouteSeries {
    successes: AtomicU64,
    failures: AtomicU64,
    latency: Histogram,
}

impl RouteSeries {
    /// Counts a request that has ended.
    pub fn record(&self, success: bool, duration: Duration) {
        let counter = if success { &self.successes } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
        self.latency.record(duration);
    }

    /// Requests with `classification="success"`.
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// Requests with `classification="failure"`.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The durations of both.
    pub fn latency(&self) -> &Histogram {
        &self.latency
    }
}
