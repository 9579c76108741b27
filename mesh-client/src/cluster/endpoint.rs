//! One endpoint at run time: its connections, its requests in flight, its metrics.

use std::sync::Arc;

use mesh_core::balance::Load;
use mesh_core::policy::{self, Address, EndpointMetadata, StringMatch, UpstreamTls};
use mesh_core::telemetry::{PeerLabels, RequestSeries};

use super::Cluster;
use crate::connect::{Peer, Pool};
use crate::env::Env;

/// One endpoint of a cluster.
pub(crate) struct Endpoint {
    metadata: Arc<EndpointMetadata>,
    pool: Pool,
    load: Arc<Load>,
    series: Arc<RequestSeries>,
}

impl Endpoint {
    pub(super) fn new(policy: &policy::Endpoint, cluster: &Cluster, env: &Env) -> Self {
        let metadata = policy.metadata.clone();
        let mut labels = cluster.labels.clone();
        if let Some(workload) = &metadata.workload {
            labels.destination = PeerLabels::of(workload, None);
        }
        labels.destination.principal = expected_principal(&cluster.policy.tls, metadata.mesh_tls);
        let peer =
            Peer { address: policy.address.clone(), mesh_tls: metadata.mesh_tls, hostname: metadata.hostname.clone() };
        let pool = Pool::new(cluster.dialer.clone(), peer, cluster.policy.breaker.max_connections);
        Self { metadata, pool, load: Arc::default(), series: env.metrics.series(&labels) }
    }

    /// Whether an update says the same of the address.
    pub(super) fn is_still(&self, policy: &policy::Endpoint) -> bool {
        self.metadata == policy.metadata
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
