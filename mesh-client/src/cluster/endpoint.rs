//! One endpoint at run time: its connections, its requests in flight, its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::balance::Load;
use mesh_core::policy::{self, Address, EndpointMetadata, StringMatch, UpstreamTls};
use mesh_core::telemetry::{PeerLabels, RequestSeries};
use tokio::time::Instant;

use super::Cluster;
use crate::connect::{Peer, Pool};
use crate::env::Env;

/// One endpoint of a cluster.
pub(crate) struct Endpoint {
    metadata: Arc<EndpointMetadata>,
    pool: Pool,
    load: Arc<Load>,
    series: Arc<RequestSeries>,
    reach: Reach,
}

/// First and longest time for which an endpoint that could not be connected to is passed over.
const COOL_DOWN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Whether connecting works. gRPC does not pick an endpoint in TRANSIENT_FAILURE; here it is passed over
/// while there are others, for a time that doubles with every further failure.
struct Reach {
    since: Instant,
    // Milliseconds after `since`; 0 = reachable.
    avoid_until: AtomicU64,
    failures: AtomicU32,
}

impl Reach {
    fn new() -> Self {
        Self { since: Instant::now(), avoid_until: AtomicU64::new(0), failures: AtomicU32::new(0) }
    }

    fn is_avoided(&self) -> bool {
        let until = self.avoid_until.load(Ordering::Relaxed);
        until != 0 && (self.since.elapsed().as_millis() as u64) < until
    }

    fn failed(&self) {
        // Many requests may meet the same outage at once: it counts once.
        if self.is_avoided() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let wait = COOL_DOWN.0.saturating_mul(1 << failures).min(COOL_DOWN.1);
        let until = (self.since.elapsed() + wait).as_millis() as u64;
        self.avoid_until.store(until, Ordering::Relaxed);
    }

    fn worked(&self) {
        if self.avoid_until.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.avoid_until.store(0, Ordering::Relaxed);
        }
    }
}

impl Endpoint {
    pub(super) fn new(policy: &policy::Endpoint, cluster: &Cluster, env: &Env) -> Self {
        let metadata = policy.metadata.clone();
        let mut labels = cluster.labels.clone();
        if let Some(workload) = &metadata.workload {
            labels.destination = PeerLabels::of(workload, None);
        }
        labels.destination.principal = expected_principal(&cluster.policy.tls, metadata.mesh_tls);
        let peer = Peer {
            address: policy.address.clone(),
            additional: policy.additional_addresses.clone(),
            mesh_tls: metadata.mesh_tls,
            hostname: metadata.hostname.clone(),
        };
        let pool = Pool::new(cluster.dialer.clone(), peer, cluster.policy.breaker.max_connections);
        let series = env.metrics.series(&labels);
        Self { metadata, pool, load: Arc::default(), series, reach: Reach::new() }
    }

    /// Whether an update says the same of the address.
    pub(super) fn is_still(&self, policy: &policy::Endpoint) -> bool {
        self.metadata == policy.metadata && self.pool.peer().additional == policy.additional_addresses
    }

    pub(crate) fn address(&self) -> &Address {
        &self.pool.peer().address
    }

    pub(crate) fn hostname(&self) -> Option<&str> {
        self.pool.peer().hostname.as_deref()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// Whether connecting failed a short while ago: others come first.
    pub(crate) fn is_avoided(&self) -> bool {
        self.reach.is_avoided()
    }

    /// Notes whether a connection could be had.
    pub(crate) fn connected(&self, worked: bool) {
        if worked { self.reach.worked() } else { self.reach.failed() }
    }

    /// Counts the requests that went here.
    pub(crate) fn series(&self) -> &Arc<RequestSeries> {
        &self.series
    }
}

/// The one identity that policy lets this endpoint have; empty if it leaves a choice.
fn expected_principal(tls: &UpstreamTls, mesh_tls: bool) -> String {
    let ids = match tls {
        UpstreamTls::Mesh(mesh) => &mesh.peer_ids,
        UpstreamTls::Auto(mesh) if mesh_tls => &mesh.peer_ids,
        _ => return String::new(),
    };
    match &ids[..] {
        [one] => match &one.pattern {
            StringMatch::Exact(id) => id.clone(),
            _ => String::new(),
        },
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_endpoint_is_avoided_for_longer_each_time_and_forgiven_at_once() {
        let reach = Reach::new();
        assert!(!reach.is_avoided());
        for wait in [500, 1000, 2000] {
            reach.failed();
            reach.failed();
            tokio::time::advance(Duration::from_millis(wait - 1)).await;
            assert!(reach.is_avoided(), "{wait} ms are not over");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!reach.is_avoided(), "{wait} ms are over");
        }
        reach.failed();
        reach.worked();
        assert!(!reach.is_avoided());
        reach.failed();
        tokio::time::advance(COOL_DOWN.0).await;
        assert!(!reach.is_avoided(), "a success begins anew");
    }
}
