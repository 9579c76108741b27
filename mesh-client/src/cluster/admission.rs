//! The limits of one cluster that fail fast (Envoy circuit breakers): requests, retries, and requests
//! that wait for a connection, each priority by itself. Connections are the pool's to count.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::limit::Count;
use mesh_core::policy::{self, CircuitBreakers};
use mesh_core::retry;
use tokio::time::Instant;

use super::Cluster;
use super::breakers::{Counters, InFlight};
use super::fail_fast::FailFast;
use crate::connect::{Connections, Full, Lease, Needs, Pool, Room};
use crate::env::Env;
use crate::error::Cause;

/// Counters against limits.
pub(crate) struct Admission {
    // Of the default priority, and of high priority.
    limits: [CircuitBreakers; 2],
    counters: Arc<Counters>,
    // Longest wait for a connection that is in use.
    patience: Option<Duration>,
    fail_fast: Option<FailFast>,
}

/// Leave to send one try, held until its answer has ended.
pub(crate) struct Permit {
    cluster: Arc<Cluster>,
    high: bool,
    retrying: Option<Retrying>,
}

/// A place among the retries in flight, as in Envoy from when a retry is decided on, so that those that wait for their turn
/// count, to the head of its answer: a stream that goes on for hours is no retry any more.
pub(crate) struct Retrying {
    cluster: Arc<Cluster>,
    high: bool,
}

/// Leave to wait for a connection.
pub(crate) struct Waiting<'c>(&'c Count);

impl Admission {
    pub(super) fn new(policy: &policy::Cluster, env: &Env) -> Self {
        let high = policy.breaker_high.as_ref().unwrap_or(&policy.breaker).clone();
        let (counters, patience) = (env.breakers.of(policy), env.limits.queue_wait);
        let fail_fast = env.limits.fail_fast.map(FailFast::new);
        Self { limits: [policy.breaker.clone(), high], counters, patience, fail_fast }
    }

    /// What is in flight.
    pub(crate) fn in_flight(&self, high: bool) -> InFlight {
        self.counters.in_flight(high)
    }

    /// Retries in flight, and how many there may be now.
    pub(crate) fn retries(&self, high: bool) -> (u32, Option<u32>) {
        let InFlight { requests, retries, .. } = self.in_flight(high);
        (retries, retry::max_concurrent(self.limits(high), requests))
    }

    /// Open connections, of both priorities together.
    pub(super) fn connections(&self) -> Arc<Connections> {
        self.counters.connections.clone()
    }

    /// How many connections there may be for requests. They are the same ones for both priorities.
    pub(crate) fn room(&self, high: bool) -> Room {
        let limits = self.limits(high);
        Room {
            of_cluster: limits.max_connections,
            of_endpoint: limits.max_connections_per_host,
            patience: self.patience,
            insists: false,
            high,
            passes: false,
        }
    }

    /// The limits of one priority.
    pub(crate) fn limits(&self, high: bool) -> &CircuitBreakers {
        &self.limits[usize::from(high)]
    }
}

impl Cluster {
    /// Why it takes no further request now, if so.
    pub(crate) fn refuses(&self, high: bool) -> Option<Cause> {
        let most = self.admission.limits(high).max_requests;
        let is_full = most.is_some_and(|most| self.admission.in_flight(high).requests >= most);
        is_full.then(|| full(self, "max_requests", most))
    }

    /// Leave to wait for a connection, one that is being made or one in use by others (Envoy's pending requests); `served`
    /// of those counted are about to end.
    ///
    /// # Errors
    /// As many requests as allowed are waiting.
    pub(crate) fn wait(&self, high: bool, served: u32) -> Result<Waiting<'_>, Cause> {
        let (pending, most) = (&self.admission.counters.of(high).pending, self.admission.limits(high).max_pending);
        if pending.enter_within(most.map(|most| most.saturating_add(served))) {
            Ok(Waiting(pending))
        } else {
            Err(full(self, "max_pending", most))
        }
    }
}

impl Retrying {
    /// A place for one more retry, if there is one.
    pub(crate) fn within(cluster: &Arc<Cluster>, high: bool) -> Option<Self> {
        let admission = &cluster.admission;
        let (_, most) = admission.retries(high);
        let taken = admission.counters.of(high).retries.enter_within(most);
        taken.then(|| Self { cluster: cluster.clone(), high })
    }

    /// A place for a try that is a retry already and goes out once more.
    pub(crate) fn again(cluster: &Arc<Cluster>, high: bool) -> Self {
        cluster.admission.counters.of(high).retries.enter();
        Self { cluster: cluster.clone(), high }
    }
}

impl Permit {
    /// Leave for one try, of a route of `high` priority or not, with its place among the retries if it is one.
    ///
    /// # Errors
    /// As many requests as allowed are in flight.
    pub(crate) fn request(cluster: &Arc<Cluster>, retrying: Option<Retrying>, high: bool) -> Result<Self, Cause> {
        let admission = &cluster.admission;
        let most = admission.limits(high).max_requests;
        if !admission.counters.of(high).requests.enter_within(most) {
            cluster.load.iter().for_each(|load| load.refused());
            return Err(full(cluster, "max_requests", most));
        }
        Ok(Self { cluster: cluster.clone(), high, retrying })
    }

    /// The answer has come: the place among the retries is free.
    pub(crate) fn answered(&mut self) {
        self.retrying = None;
    }

    /// Whether it is for a retry.
    pub(crate) fn is_retry(&self) -> bool {
        self.retrying.is_some()
    }

    /// Whether others of its priority are in flight.
    pub(crate) fn is_in_company(&self) -> bool {
        self.cluster.admission.counters.of(self.high).requests.get() > 1
    }

    /// One that is there already, see [`Pool::at_hand`]. None where there is fail-fast, which wants to hear of it.
    pub(crate) fn at_hand(&self, pool: &Pool, needs: Needs, fresh: bool, now: Instant) -> Option<Lease> {
        let admission = &self.cluster.admission;
        if admission.fail_fast.is_some() {
            return None;
        }
        pool.at_hand(needs, fresh, now, admission.room(self.high))
    }

    /// A connection of `pool` to send it on, see [`Pool::acquire`].
    pub(crate) async fn connection(
        &self,
        pool: &Pool,
        needs: Needs,
        fresh: bool,
        now: Instant,
        at: &mut Option<Full>,
    ) -> Result<Lease, Cause> {
        let admission = &self.cluster.admission;
        let room = admission.room(self.high);
        let waiting = |served| self.cluster.wait(self.high, served);
        match &admission.fail_fast {
            // Nothing is put aside here: what waits for a connection is held once.
            None => pool.acquire(needs, fresh, now, room, waiting, at).await,
            // Boxed: requests without it are no larger for it.
            Some(fail_fast) => {
                Box::pin(async {
                    let found = pool.acquire(needs, fresh, now, room, waiting, at);
                    fail_fast.bound(&self.cluster.policy.name, || pool.at_hand(needs, fresh, now, room), found).await
                })
                .await
            }
        }
    }
}

/// `most` is what the limit allows; without one nobody is refused.
fn full(cluster: &Cluster, limit: &'static str, most: Option<u32>) -> Cause {
    Cause::Breaker { cluster: cluster.policy.name.clone(), limit, allowed: most.unwrap_or(u32::MAX) }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.admission.counters.of(self.high).requests.leave();
    }
}

impl Drop for Retrying {
    fn drop(&mut self) {
        self.cluster.admission.counters.of(self.high).retries.leave();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
