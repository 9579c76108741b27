//! What a disabled mesh routes by: every destination is dialled as named, in plaintext for `http` and with
//! ordinary TLS on port 443. No control plane, no identity, same types.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::id::{ClusterName, Target};
use mesh_core::policy::{
    Balancer, Cluster, ClusterState, DestinationState, Discovery, Domain, Endpoints, Forward, HeaderPolicy,
    InboundListener, InboundState, InboundTls, Listener, OriginatedTls, Route, RouteAction, RouteConfiguration,
    RouteMatch, RouteSource, Snapshot, UpstreamTls, VirtualHost,
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
    let name = ClusterName::new("PassthroughCluster");
    let action = RouteAction::Forward(Box::new(Forward::to(name.clone())));
    let route = Route { name: "passthrough".to_owned(), ..Route::new(RouteMatch::any(), action) };
    let routes = Arc::new(RouteConfiguration {
        name: "passthrough".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "passthrough".to_owned(),
            domains: vec![Domain::new("*").expect("a lone star is a domain")],
            routes: vec![route],
            headers: HeaderPolicy::default(),
            retry: None,
        }],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    });
    let mut cluster = Cluster::new(name.clone());
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
    let listener = Listener {
        name: target.to_string(),
        routes: RouteSource::Inline(routes.clone()),
        filters: Vec::new(),
        max_stream_duration: None,
    };
    let state = ClusterState::Ready { cluster: Arc::new(cluster), endpoints: Arc::new(Endpoints::default()) };
    Snapshot { listener: Arc::new(listener), routes, clusters: [(name, state)].into() }
}
