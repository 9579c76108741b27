//! What the control plane hears of a cluster's load (LRS): the counters of one set of endpoints, resolved
//! when the set is built.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::policy::{self, Discovery, DropOverload, LocalityEndpoints};
use mesh_core::telemetry::load::{ClusterLoad, Issued, LocalityLoad};
use tokio::time::Instant;

use crate::env::Env;

/// Counters by the position of what they count.
pub(super) struct Reported {
    localities: Box<[Arc<LocalityLoad>]>,
    drops: Box<[Arc<AtomicU64>]>,
}

/// The load of a cluster, if the control plane wants to hear of it and somebody tells it.
pub(super) fn load(policy: &policy::Cluster, env: &Env) -> Option<Arc<ClusterLoad>> {
    policy.load_report.as_ref()?;
    let service = match &policy.discovery {
        Discovery::Eds { service_name } => service_name.as_deref().unwrap_or_default(),
        _ => "",
    };
    Some(env.load.as_ref()?.cluster(&policy.name, service, Instant::now()))
}

impl Reported {
    pub(super) fn new(load: &ClusterLoad, localities: &[LocalityEndpoints], drops: &[DropOverload]) -> Self {
        Self {
            localities: localities.iter().map(|group| load.locality(&group.locality)).collect(),
            drops: drops.iter().map(|drop| load.drops(&drop.category)).collect(),
        }
    }

    pub(super) fn issue(&self, locality: usize) -> Issued {
        self.localities[locality].issue()
    }

    pub(super) fn dropped(&self, drop: usize) {
        self.drops[drop].fetch_add(1, Ordering::Relaxed);
    }
}
