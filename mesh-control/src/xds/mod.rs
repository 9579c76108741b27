//! The xDS server: one aggregated stream per client, state of the world.
//!
//! ```text
//! World (pure) → Published (one revision, encoded once) → Session (one stream's memory) → service (gRPC)
//! ```
//!
//! Clients name what they want, as gRPC's and this library's do. A wildcard subscription (an empty
//! first LDS or CDS request, or `*`) is how a proxy asks for everything at once. Refuses to know manifests.

mod nodes;
mod published;
mod scope;
mod service;
mod session;

pub(crate) use self::nodes::Nodes;
pub use self::nodes::{NackStatus, NodeStatus, TypeStatus};
pub(crate) use self::published::Published;
pub(crate) use self::service::AggregatedService;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Cluster, Endpoints, InboundListener, Listener, RouteConfiguration};
use mesh_discovery::codec;

use crate::translate::{Dialect, NodeScope, ProxyListener, World};

/// The four kinds of resource, in the order in which a change is pushed: what is referred to comes
/// before what refers to it (make before break).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => codec::CLUSTER,
            Self::Endpoints => codec::ENDPOINTS,
            Self::Listener => codec::LISTENER,
            Self::Routes => codec::ROUTES,
        }
    }

    pub(crate) fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a response lists everything the client has, so that absence means "does not exist"
    /// (LDS and CDS; RDS and EDS responses only add and change).
    pub(crate) fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// One resource's policy, as a client is told it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resource {
    Cluster(Box<Cluster>),
    Endpoints(Endpoints),
    Listener(Listener),
    Inbound(InboundListener),
    Proxy(ProxyListener),
    Routes(RouteConfiguration),
}

impl Resource {
    fn encode(&self, dialect: Dialect) -> Any {
        match (self, dialect) {
            (Self::Cluster(cluster), Dialect::Envoy) => codec::envoy::encode_cluster(cluster),
            (Self::Cluster(cluster), Dialect::Proxyless) => codec::encode_cluster(cluster),
            (Self::Routes(routes), Dialect::Envoy) => codec::envoy::encode_routes(routes),
            (Self::Routes(routes), Dialect::Proxyless) => codec::encode_routes(routes),
            (Self::Endpoints(endpoints), _) => codec::encode_endpoints(endpoints),
            (Self::Listener(listener), _) => codec::encode_listener(listener),
            (Self::Inbound(listener), _) => codec::encode_inbound(listener),
            (Self::Proxy(listener), _) => {
                codec::envoy::encode_proxy_listener(&listener.name, listener.address, &listener.routes)
            }
        }
    }
}

/// Where resources come from; the world, or a test's own.
pub(crate) trait Resources: Send + Sync + 'static {
    /// What a node of `scope` is told under `name`; `None` if it does not exist for that node.
    fn resource(&self, scope: &NodeScope, kind: Kind, name: &str) -> Option<Resource>;

    /// The names that a wildcard subscription (`*`, or an empty first LDS or CDS request) of such a node
    /// covers, sorted. Default none: proxyless clients name what they want.
    fn wildcard(&self, _scope: &NodeScope, _kind: Kind) -> Vec<String> {
        Vec::new()
    }
}

/// How server-side listeners are named (the template of the gRPC bootstrap, as istiod fills it).
const INBOUND_PREFIX: &str = "xds.istio.io/grpc/lds/inbound/";

impl Resources for World {
    fn resource(&self, scope: &NodeScope, kind: Kind, name: &str) -> Option<Resource> {
        match kind {
            Kind::Cluster => self.cluster(scope, name).map(|cluster| Resource::Cluster(Box::new(cluster))),
            Kind::Endpoints => self.endpoints(scope, name).map(Resource::Endpoints),
            Kind::Routes => self.routes(scope, name).map(Resource::Routes),
            Kind::Listener if name.starts_with(INBOUND_PREFIX) => self.inbound(scope, name).map(Resource::Inbound),
            Kind::Listener => self
                .proxy_listener(scope, name)
                .map(Resource::Proxy)
                .or_else(|| self.listener(scope, name).map(Resource::Listener)),
        }
    }

    fn wildcard(&self, scope: &NodeScope, kind: Kind) -> Vec<String> {
        match kind {
            Kind::Cluster => self.proxy_clusters(scope),
            Kind::Listener => self.proxy_listeners(scope),
            Kind::Endpoints | Kind::Routes => Vec::new(),
        }
    }
}

/// Bounds on what clients may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Names of one type on one stream.
    pub(crate) names: usize,
    /// Streams of all clients together.
    pub(crate) streams: usize,
    /// Bytes of one request.
    pub(crate) request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: 10_000, streams: 20_000, request_bytes: 4 << 20 }
    }
}

#[cfg(test)]
mod fake;
