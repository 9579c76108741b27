//! What is in flight in each cluster, counted once for all clients that share it (gRFC A32: one counter for each
//! cluster and EDS service name in the process). The counters outlive a change of the cluster's policy.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use mesh_core::id::ClusterName;
use mesh_core::limit::Count;
use mesh_core::policy::{self, Discovery};
use parking_lot::Mutex;
use serde::Serialize;

use crate::connect::Connections;

/// Counters that circuit breakers compare with their limits. Clients of one process share them by
/// [`ClientBuilder::breakers`](crate::ClientBuilder::breakers); cloning is cheap.
#[derive(Clone, Default)]
pub struct Breakers {
    // Locked when a cluster is built and when somebody looks, never by a request.
    clusters: Arc<Mutex<Clusters>>,
    faults: Arc<Count>,
}

#[derive(Default)]
struct Clusters {
    known: HashMap<Key, Weak<Counters>>,
    // What is no longer used is forgotten when there are so many.
    forget_at: usize,
}

/// Cluster, and EDS service name (empty = the cluster's own).
type Key = (ClusterName, String);

/// What is in flight in one cluster.
#[derive(Default)]
pub(crate) struct Counters {
    /// Of the default priority, and of high priority.
    pub(super) priorities: [Counts; 2],
    pub(super) connections: Arc<Connections>,
}

/// What is in flight with one priority.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) requests: Count,
    pub(super) retries: Count,
    pub(super) pending: Count,
}

/// What is in flight in one cluster with one priority, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InFlight {
    /// Requests sent or waiting for a connection, retries among them.
    pub requests: u32,
    /// Retries.
    pub retries: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
}

/// The counters of one cluster, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerState {
    /// Cluster.
    pub cluster: ClusterName,
    /// Its EDS service name; empty = its own name.
    pub service: String,
    /// In flight with default priority.
    pub default: InFlight,
    /// In flight with high priority.
    pub high: InFlight,
    /// Open connections.
    pub connections: u32,
}

impl Breakers {
    /// The counters of a cluster.
    pub(super) fn of(&self, cluster: &policy::Cluster) -> Arc<Counters> {
        let service = match &cluster.discovery {
            Discovery::Eds { service_name } => service_name.clone().unwrap_or_default(),
            _ => String::new(),
        };
        let mut clusters = self.clusters.lock();
        if clusters.known.len() >= clusters.forget_at {
            clusters.known.retain(|_, counters| counters.strong_count() > 0);
            clusters.forget_at = (clusters.known.len() * 2).max(16);
        }
        let known = clusters.known.entry((cluster.name.clone(), service)).or_default();
        known.upgrade().unwrap_or_else(|| {
            let made = Arc::<Counters>::default();
            *known = Arc::downgrade(&made);
            made
        })
    }

    /// Injected faults under way, of all destinations (gRFC A33: in the process).
    pub(crate) fn faults(&self) -> &Count {
        &self.faults
    }

    /// Every cluster in use, by name.
    pub fn snapshot(&self) -> Vec<BreakerState> {
        let clusters = self.clusters.lock();
        let alive = clusters.known.iter().filter_map(|(key, counters)| Some((key, counters.upgrade()?)));
        let states = alive.map(|((cluster, service), counters)| BreakerState {
            cluster: cluster.clone(),
            service: service.clone(),
            default: counters.in_flight(false),
            high: counters.in_flight(true),
            connections: counters.connections.get(),
        });
        let mut states: Vec<_> = states.collect();
        states.sort_by(|a, b| (&a.cluster, &a.service).cmp(&(&b.cluster, &b.service)));
        states
    }
}

impl Counters {
    pub(super) fn of(&self, high: bool) -> &Counts {
        &self.priorities[usize::from(high)]
    }

    pub(crate) fn in_flight(&self, high: bool) -> InFlight {
        let Counts { requests, retries, pending } = self.of(high);
        InFlight { requests: requests.get(), retries: retries.get(), pending: pending.get() }
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}
