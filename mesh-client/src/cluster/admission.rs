//! The limits of one cluster that fail fast (Envoy circuit breakers): requests, retries, and requests
//! that wait for a connection, each priority by itself. Connections are the pool's to count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_core::policy::{self, CircuitBreakers};
use mesh_core::retry;

use super::Cluster;
use super::breakers::{Breakers, Counters, InFlight};
use crate::connect::Room;
use crate::error::Cause;

/// Counters against limits.
pub(crate) struct Admission {
    // Of the default priority, and of high priority.
    limits: [CircuitBreakers; 2],
    counters: Arc<Counters>,
}

/// Leave to send one try; held until its answer has ended.
pub(crate) struct Permit {
    cluster: Arc<Cluster>,
    is_retry: bool,
    high: bool,
}

/// Leave to wait for a connection.
pub(crate) struct Waiting<'c>(&'c AtomicU32);

impl Admission {
    pub(super) fn new(policy: &policy::Cluster, breakers: &Breakers) -> Self {
        let high = policy.breaker_high.as_ref().unwrap_or(&policy.breaker).clone();
        Self { limits: [policy.breaker.clone(), high], counters: breakers.of(policy) }
    }

    /// What is in flight.
    pub(crate) fn in_flight(&self, high: bool) -> InFlight {
        self.counters.in_flight(high)
    }

    /// Open connections, of both priorities together.
    pub(super) fn connections(&self) -> Arc<AtomicU32> {
        self.counters.connections.clone()
    }

    /// Whether one more retry may be in flight; `own` of those counted are about to end.
    pub(crate) fn allows_retry(&self, own: u32, high: bool) -> bool {
        let InFlight { requests, retries, .. } = self.in_flight(high);
        retry::concurrency_allows(self.limits(high), requests, retries.saturating_sub(own))
    }

    /// How many connections there may be for requests. They are the same ones for both priorities.
    pub(crate) fn room(&self, high: bool) -> Room {
        let limits = self.limits(high);
        Room { of_cluster: limits.max_connections, of_endpoint: limits.max_connections_per_host }
    }

    fn limits(&self, high: bool) -> &CircuitBreakers {
        &self.limits[usize::from(high)]
    }
}

impl Permit {
    /// Leave for one try, of a route of `high` priority or not.
    ///
    /// # Errors
    /// As many requests as allowed are in flight.
    pub(crate) fn request(cluster: &Arc<Cluster>, is_retry: bool, high: bool) -> Result<Self, Cause> {
        let admission = &cluster.admission;
        let counts = admission.counters.of(high);
        let others = counts.requests.fetch_add(1, Ordering::Relaxed);
        if is_retry {
            counts.retries.fetch_add(1, Ordering::Relaxed);
        }
        let permit = Self { cluster: cluster.clone(), is_retry, high };
        match admission.limits(high).max_requests.filter(|most| others >= *most) {
            None => Ok(permit),
            Some(allowed) => {
                cluster.load.iter().for_each(|load| load.refused());
                Err(full(cluster, "max_requests", allowed))
            }
        }
    }

    /// Leave to wait for a connection.
    ///
    /// # Errors
    /// As many requests as allowed are waiting.
    pub(crate) fn wait(&self) -> Result<Waiting<'_>, Cause> {
        let admission = &self.cluster.admission;
        let pending = &admission.counters.of(self.high).pending;
        let others = pending.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(pending);
        match admission.limits(self.high).max_pending.filter(|most| others >= *most) {
            None => Ok(waiting),
            Some(allowed) => Err(full(&self.cluster, "max_pending", allowed)),
        }
    }

    /// How many connections there may be for it.
    pub(crate) fn room(&self) -> Room {
        self.cluster.admission.room(self.high)
    }
}

fn full(cluster: &Cluster, limit: &'static str, allowed: u32) -> Cause {
    Cause::Breaker { cluster: cluster.policy.name.clone(), limit, allowed }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let counts = self.cluster.admission.counters.of(self.high);
        counts.requests.fetch_sub(1, Ordering::Relaxed);
        if self.is_retry {
            counts.retries.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
