//! What a disabled mesh routes by: every destination is dialled as named, in plaintext for `http` and with
//! ordinary TLS on port 443. No control plane, no identity, same types.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::id::{ClusterName, Target};
use mesh_core::policy::{
    Balancer, Cluster, DestinationState, Discovery, InboundListener, InboundState, InboundTls, OriginatedTls, Snapshot,
    UpstreamTls,
};
use mesh_core::source::{DestinationSource, InboundSource, Watched};

/// Passes everything through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passthrough;

impl DestinationSource for Passthrough {
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        Watched::fixed(DestinationState::Ready(Arc::new(snapshot(target))))
    }
}

impl InboundSource for Passthrough {
    fn inbound(&self, address: SocketAddr) -> Watched<InboundState> {
        let listener = InboundListener::new("passthrough", address, InboundTls::Disable);
        Watched::fixed(InboundState::Ready(Arc::new(listener)))
    }
}

fn snapshot(target: &Target) -> Snapshot {
    let mut cluster = Cluster::new(ClusterName::new("PassthroughCluster"));
    cluster.discovery = Discovery::OriginalDestination;
    cluster.balancer = Balancer::Passthrough;
    if target.port() == 443 {
        cluster.tls = UpstreamTls::Simple(OriginatedTls {
            sni: None,
            auto_host_sni: false,
            subject_alt_names: Vec::new(),
            ca_file: None,
            insecure_skip_verify: false,
        });
    }
    Snapshot::of_one_cluster("passthrough", cluster, None)
}
