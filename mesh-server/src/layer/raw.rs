//! What of the layer holds for a connection that carries no requests: authorization and metrics. The rest of it is about
//! requests.

use std::sync::Arc;

use mesh_core::identity::PeerIdentity;
use mesh_core::policy::InboundListener;
use mesh_core::telemetry::TcpSeries;

use super::InboundLayer;

impl InboundLayer {
    /// Decides about a raw connection.
    ///
    /// # Errors
    /// It is denied, and why in Envoy's words. `mesh::audit` has been told.
    pub(crate) fn judge_raw(
        &self,
        listener: &Arc<InboundListener>,
        peer: &PeerIdentity,
        server_name: &str,
    ) -> Result<(), Box<str>> {
        let judged = self.connection.shared.gate.judge_raw(listener, peer, server_name);
        judged.map_err(|closed| closed.details)
    }

    /// Where the raw connections of a peer are counted. One that is denied has no flag of its own, as with Envoy: the
    /// metric of decisions tells.
    pub(crate) fn tcp_series(&self, peer: &PeerIdentity) -> Arc<TcpSeries> {
        let shared = &self.connection.shared;
        shared.metrics.tcp(&shared.labels(Some(peer)), "-")
    }
}
