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

#[cfg(test)]
mod tests {
    use mesh_core::policy::{InboundRoutes, InboundTls};

    use super::*;
    use crate::Server;

    #[test]
    fn where_policy_is_strict_nobody_gets_in_without_an_identity_that_came_before_it_was() {
        let layer = Server::builder().build().inbound_layer();
        let address = ([127, 0, 0, 1], 80).into();
        let judged = |tls, id: Option<&str>| {
            let peer = PeerIdentity { spiffe_id: id.map(|id| id.parse().unwrap()), address };
            layer.judge_raw(&Arc::new(InboundListener::new("in", address, tls)), &peer, "")
        };
        assert_eq!(judged(InboundTls::Strict, None), Err("plaintext".into()));
        assert_eq!(judged(InboundTls::Strict, Some("spiffe://cluster.local/ns/a/sa/b")), Ok(()));
        assert_eq!(judged(InboundTls::Permissive, None), Ok(()));
    }

    #[test]
    fn what_serves_by_routes_takes_no_raw_connection() {
        let layer = Server::builder().build().inbound_layer();
        let address = ([127, 0, 0, 1], 80).into();
        let peer = PeerIdentity { spiffe_id: None, address };
        let judged = |routes| {
            let listener = InboundListener { routes, ..InboundListener::new("in", address, InboundTls::Permissive) };
            layer.judge_raw(&Arc::new(listener), &peer, "")
        };
        assert_eq!(judged(InboundRoutes::All), Ok(()));
        for routes in [InboundRoutes::Named("r".to_owned()), InboundRoutes::Listed(Arc::default())] {
            assert_eq!(judged(routes), Err("route_not_found".into()));
        }
    }
}
