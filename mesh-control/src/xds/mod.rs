//! The xDS server: one aggregated stream per client, state of the world or incremental (delta).
//!
//! ```text
//! World (pure) → Cache (one revision, encoded once) → Session (one stream's memory) → stream → service (gRPC)
//! ```
//!
//! Proxyless clients name what they want; a proxy subscribes to everything its node may see (`*`).
//! Refuses to know manifests.

mod account;
mod cache;
mod decode;
mod encoded;
mod federated;
mod message;
mod naming;
mod nodes;
mod scope;
mod service;
mod session;
mod stream;
mod unread;

pub(crate) use self::account::{Account, Charge};
pub(crate) use self::cache::{Cache, Touched};
pub use self::nodes::{NackStatus, NodeStatus, ResourceStatus, TypeStatus};
pub(crate) use self::nodes::{NodeEntry, Nodes};
pub(crate) use self::scope::scope_of;
pub(crate) use self::service::AggregatedService;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use self::session::fuzzing;
pub(crate) use self::unread::Unread;

use std::borrow::Cow;
use std::net::SocketAddr;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Cluster, Endpoints, InboundListener, Listener, RouteConfiguration};
use mesh_discovery::codec;

use crate::translate::{Dialect, NodeScope, ProxyListener, View, World};

/// The four kinds of resource, in the order in which a change is pushed: what is referred to comes
/// before what refers to it (make before break).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "load assignment",
            Self::Listener => "listener",
            Self::Routes => "route configuration",
        })
    }
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
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum Resource {
    Cluster(Box<Cluster>),
    Endpoints(Endpoints),
    Listener(Listener),
    Inbound(InboundListener),
    Proxy(ProxyListener),
    Routes(RouteConfiguration),
}

impl Resource {
    /// The form in which nodes of this scope take it.
    fn encode(&self, scope: &NodeScope) -> Any {
        match (self, scope.dialect) {
            (Self::Cluster(cluster), Dialect::Envoy) => codec::envoy::encode_cluster(cluster, scope.secrets.as_deref()),
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

    /// On what of its scope it depends what such a node is told under `name`. Default: on all of it.
    fn view(&self, _scope: &NodeScope, _kind: Kind, _name: &str) -> Option<View> {
        None
    }

    /// Why such a node is not told anything under `name`, and what to do.
    fn why_missing(&self, _scope: &NodeScope, kind: Kind, name: &str) -> String {
        format!("there is no {kind} {name:?}")
    }
}

/// What a resource is made from, so that a revision which changed little need not look at the others:
/// the host of a cluster and its endpoints, the address of an inbound listener, and [`HOSTS`] for the
/// rest, which depends on what hosts there are and not on who serves them.
pub(crate) fn subject(kind: Kind, name: &str) -> Cow<'_, str> {
    match federated::plain(kind, name) {
        Cow::Borrowed(name) => Cow::Borrowed(subject_of_plain(kind, name)),
        Cow::Owned(name) => Cow::Owned(subject_of_plain(kind, &name).to_owned()),
    }
}

fn subject_of_plain(kind: Kind, name: &str) -> &str {
    match kind {
        Kind::Cluster | Kind::Endpoints => name.rsplit_once('|').map_or(name, |(_, host)| host),
        Kind::Routes => HOSTS,
        Kind::Listener => match name.strip_prefix(INBOUND_PREFIX) {
            // Written in another way than addresses are, it would not be found again.
            Some(text) if text.parse::<SocketAddr>().is_ok_and(|address| address.to_string() == text) => text,
            Some(_) => cache::ALWAYS,
            None => HOSTS,
        },
    }
}

/// The subject of what depends on which hosts and ports there are.
pub(crate) const HOSTS: &str = "";

/// How server-side listeners are named (the template of the gRPC bootstrap, as istiod fills it).
const INBOUND_PREFIX: &str = "xds.istio.io/grpc/lds/inbound/";

impl Resources for World {
    fn resource(&self, scope: &NodeScope, kind: Kind, name: &str) -> Option<Resource> {
        if let Some(parsed) = federated::read(kind, name) {
            let parsed = parsed.ok()?;
            // An id that is such a name itself would lead here for as often as somebody likes.
            let resource = (!codec::name::is_xdstp(&parsed.id)).then(|| self.resource(scope, kind, &parsed.id))??;
            return Some(federated::renamed(resource, name, &parsed));
        }
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

    fn view(&self, scope: &NodeScope, kind: Kind, name: &str) -> Option<View> {
        match kind {
            Kind::Cluster | Kind::Endpoints => World::view(self, scope, &federated::plain(kind, name)),
            Kind::Listener | Kind::Routes => None,
        }
    }

    fn why_missing(&self, scope: &NodeScope, kind: Kind, name: &str) -> String {
        if let Some(Err(reason)) = federated::read(kind, name) {
            return format!("there is no {kind} {name:?}: {reason}");
        }
        let name = &*federated::plain(kind, name);
        match kind {
            Kind::Listener if !name.starts_with(INBOUND_PREFIX) => World::why_missing(self, scope, name),
            Kind::Listener if !self.unread().is_empty() => format!(
                "there is no inbound policy yet: {} could not be read since the control plane started, and may guard it; \
                 correct or remove it",
                self.unread().join(", ")
            ),
            _ => format!("there is no {kind} {name:?} for namespace {}", scope.namespace),
        }
    }
}

/// Bounds on what clients may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Different names of one type on one stream; what the wildcard covers is not counted. A proxy of a mesh of 10,000
    /// services with some subsets each names the endpoints of all.
    pub(crate) names: usize,
    /// Bytes of these names together.
    pub(crate) names_bytes: usize,
    /// Bytes of one name.
    pub(crate) name_bytes: usize,
    /// Resources that a client has from an earlier stream and says so. What the wildcard covers is not bound by `names`.
    pub(crate) versions: usize,
    /// Streams of all clients together.
    pub(crate) streams: usize,
    /// Streams of one identity; those on the plaintext listener count as one.
    pub(crate) streams_of_one: usize,
    /// Bytes kept for one identity over all its streams: names, resources that nobody else has, scopes,
    /// and the largest request of each stream, for its buffer stays as large. A thousand processes of one service account
    /// that name 2,000 resources each take half of it, and more than all of it if the labels of every one are its own.
    pub(crate) bytes_of_one: usize,
    /// Bytes of one request. A client that comes back says every name twice, with the version that it has of it: 23 MiB.
    pub(crate) request_bytes: usize,
    /// Requests of one stream that are taken in at once, and then in each second. Those beyond wait.
    pub(crate) requests: (u32, u32),
    /// Bytes of one response, where the protocol lets it be sent in parts. gRPC clients take 4 MiB.
    pub(crate) response_bytes: usize,
    /// Bytes of the resources of one response that no client takes: it is not sent. Clients of this library take 64 MiB.
    pub(crate) largest_response: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 100_000,
            names_bytes: 10 << 20,
            name_bytes: 4_096,
            versions: 500_000,
            streams: 20_000,
            streams_of_one: 5_000,
            bytes_of_one: 1 << 30,
            request_bytes: 24 << 20,
            requests: (5_000, 500),
            response_bytes: 2 << 20,
            // A little is for what stands around the resources.
            largest_response: 63 << 20,
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
mod fake;
