//! The limits of one cluster that fail fast (Envoy circuit breakers): requests, retries, and requests
//! that wait for a connection. Connections are the pool's to count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_core::policy::CircuitBreakers;
use mesh_core::retry;

use super::Cluster;
use crate::error::Cause;

/// Counters against limits.
pub(crate) struct Admission {
    limits: CircuitBreakers,
    requests: AtomicU32,
    retries: AtomicU32,
    pending: AtomicU32,
}

/// Leave to send one try; held until its answer has ended.
pub(crate) struct Permit {
    cluster: Arc<Cluster>,
    is_retry: bool,
}

/// Leave to wait for a connection.
pub(crate) struct Waiting<'c>(&'c AtomicU32);

impl Admission {
    pub(super) fn new(limits: CircuitBreakers) -> Self {
        Self { limits, requests: AtomicU32::new(0), retries: AtomicU32::new(0), pending: AtomicU32::new(0) }
    }

    /// Requests in flight.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Retries in flight.
    pub(crate) fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Whether one more retry may be in flight; `own` of those counted are about to end.
    pub(crate) fn allows_retry(&self, own: u32) -> bool {
        retry::concurrency_allows(&self.limits, self.requests(), self.retries().saturating_sub(own))
    }
}

impl Permit {
    /// Leave for one try.
    ///
    /// # Errors
    /// As many requests as allowed are in flight.
    pub(crate) fn request(cluster: &Arc<Cluster>, is_retry: bool) -> Result<Self, Cause> {
        let admission = &cluster.admission;
        let others = admission.requests.fetch_add(1, Ordering::Relaxed);
        if is_retry {
            admission.retries.fetch_add(1, Ordering::Relaxed);
        }
        let permit = Self { cluster: cluster.clone(), is_retry };
        match admission.limits.max_requests.filter(|most| others >= *most) {
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
        let others = admission.pending.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&admission.pending);
        match admission.limits.max_pending.filter(|most| others >= *most) {
            None => Ok(waiting),
            Some(allowed) => Err(full(&self.cluster, "max_pending", allowed)),
        }
    }
}

fn full(cluster: &Cluster, limit: &'static str, allowed: u32) -> Cause {
    Cause::Breaker { cluster: cluster.policy.name.clone(), limit, allowed }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.admission.requests.fetch_sub(1, Ordering::Relaxed);
        if self.is_retry {
            self.cluster.admission.retries.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
