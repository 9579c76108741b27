//! Small policy: the least that is needed, to be changed field by field.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use mesh_core::id::{ClusterName, Locality};
use mesh_core::policy::{
    Address, Cluster, ClusterState, Domain, Endpoint, Endpoints, FAULT_FILTER, Forward, HeaderPolicy, HttpFilter,
    HttpFilterKind, InboundListener, InboundTls, Listener, LocalityEndpoints, MeshTls, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteSource, Snapshot, StringMatcher, UpstreamTls, VirtualHost,
};

/// Name of the cluster in [`snapshot_to`].
pub const CLUSTER: &str = "test";

/// A destination whose every request goes to one plaintext cluster, [`CLUSTER`], of these endpoints.
pub fn snapshot_to(addresses: &[SocketAddr]) -> Snapshot {
    let endpoints = addresses.iter().map(|a| Endpoint::new(Address::Socket(*a)));
    snapshot_of(Cluster::new(CLUSTER.into()), endpoints)
}

/// A destination whose every request goes to this cluster.
pub fn snapshot_of(cluster: Cluster, endpoints: impl IntoIterator<Item = Endpoint>) -> Snapshot {
    let routes = routes([route_to(cluster.name.clone())]);
    snapshot(routes, [(cluster, endpoints.into_iter().collect())])
}

/// A destination with these routes and clusters.
pub fn snapshot(routes: RouteConfiguration, clusters: impl IntoIterator<Item = (Cluster, Vec<Endpoint>)>) -> Snapshot {
    let known = clusters.into_iter().map(|(cluster, list)| {
        let endpoints = Arc::new(endpoints(&cluster.name, list));
        (cluster.name.clone(), ClusterState::Ready { cluster: Arc::new(cluster), endpoints })
    });
    let clusters = known.collect();
    let routes = Arc::new(routes);
    let listener = Listener {
        filters: vec![HttpFilter { name: FAULT_FILTER.to_owned(), kind: HttpFilterKind::Fault(None) }],
        ..Listener::new("test:80", RouteSource::Inline(routes.clone()))
    };
    Snapshot { listener: Arc::new(listener), routes, clusters }
}

/// A cluster with mesh mTLS to every endpoint, which must have one of these SPIFFE IDs.
pub fn mtls_cluster(name: &str, peer_ids: &[&str]) -> Cluster {
    let peer_ids = peer_ids.iter().map(|id| StringMatcher::exact(*id)).collect();
    Cluster { tls: UpstreamTls::Mesh(MeshTls { peer_ids, ..MeshTls::default() }), ..Cluster::new(name.into()) }
}

/// Endpoints of priority 0 in one locality.
pub fn endpoints(cluster: &ClusterName, endpoints: Vec<Endpoint>) -> Endpoints {
    let locality = Locality::default();
    let group = LocalityEndpoints { locality, priority: 0, weight: NonZeroU32::MIN, endpoints };
    Endpoints { cluster: cluster.to_string(), localities: vec![group], ..Endpoints::default() }
}

/// One virtual host for every authority with these routes.
pub fn routes(routes: impl IntoIterator<Item = Route>) -> RouteConfiguration {
    RouteConfiguration {
        name: "test".to_owned(),
        virtual_hosts: vec![virtual_host(&["*"], routes)],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    }
}

/// A virtual host for these domains.
pub fn virtual_host(domains: &[&str], routes: impl IntoIterator<Item = Route>) -> VirtualHost {
    VirtualHost {
        name: domains.first().copied().unwrap_or_default().to_owned(),
        domains: domains.iter().map(|d| Domain::new(d).unwrap_or_else(|e| panic!("{e}"))).collect(),
        routes: routes.into_iter().collect(),
        headers: HeaderPolicy::default(),
        retry: None,
    }
}

/// A route that sends every request to `cluster`.
pub fn route_to(cluster: ClusterName) -> Route {
    forward(RouteMatch::any(), Forward::to(cluster))
}

/// A route that forwards what `matcher` takes.
pub fn forward(matcher: RouteMatch, forward: Forward) -> Route {
    route(matcher, RouteAction::Forward(Box::new(forward)))
}

/// A route without a name and without extras.
pub fn route(matcher: RouteMatch, action: RouteAction) -> Route {
    Route::new(matcher, action)
}

/// Inbound policy of one address: this transport security, no authorization, no limits.
pub fn inbound(address: SocketAddr, tls: InboundTls) -> InboundListener {
    InboundListener::new(format!("xds.istio.io/grpc/lds/inbound/{address}"), address, tls)
}
