//! The endpoints of a cluster (`envoy.config.endpoint.v3.ClusterLoadAssignment`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::PerMillion;
use crate::id::{Locality, Workload};

/// All endpoints of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoints {
    /// Resource name.
    pub cluster: String,
    /// Groups by locality and priority.
    pub localities: Vec<LocalityEndpoints>,
    /// Shares to drop, by category, in order.
    pub drops: Vec<DropOverload>,
    /// A priority is full while this percentage of its healthy share reaches 100. None = 140.
    pub overprovisioning_factor: Option<u32>,
}

impl Endpoints {
    /// Plaintext endpoints at these addresses, in one locality and of one weight.
    pub fn at(cluster: &str, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let endpoints = addresses.into_iter().map(|address| Endpoint::new(Address::Socket(address))).collect();
        let group =
            LocalityEndpoints { locality: Locality::default(), priority: 0, weight: NonZeroU32::MIN, endpoints };
        Self { cluster: cluster.to_owned(), localities: vec![group], ..Self::default() }
    }

    /// Every endpoint, whatever its locality and health.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.localities.iter().flat_map(|l| l.endpoints.iter())
    }
}

/// Endpoints of one locality at one priority.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is used first.
    pub priority: u32,
    /// Weight among the localities of one priority.
    pub weight: NonZeroU32,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// Other addresses of the same endpoint, tried beside the first (gRFC A61).
    pub additional_addresses: Box<[Address]>,
    /// Weight among its neighbours. Default 1.
    pub weight: NonZeroU32,
    /// What the control plane says of it.
    pub health: Health,
    /// Facts shared by many endpoints.
    pub metadata: Arc<EndpointMetadata>,
}

impl Endpoint {
    /// A healthy plaintext endpoint of weight 1.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            additional_addresses: Box::default(),
            weight: NonZeroU32::MIN,
            health: Health::Healthy,
            metadata: Arc::default(),
        }
    }
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address.
    Socket(SocketAddr),
    /// A name to resolve.
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
    },
    /// A unix socket path.
    Unix(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(addr) => addr.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Health as the control plane reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Usable.
    #[default]
    Healthy,
    /// Not said; usable.
    Unknown,
    /// Finishing; only pinned sessions.
    Draining,
    /// Not usable.
    Unhealthy,
    /// Usable when nothing better is.
    Degraded,
}

impl Health {
    /// Whether new requests may go there.
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown)
    }
}

/// Facts about an endpoint beyond its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct EndpointMetadata {
    /// It accepts mesh mTLS (`envoy.transport_socket_match` with `tlsMode: istio`).
    pub mesh_tls: bool,
    /// It is a member of the mesh whose policy demands mutual TLS (metadata `mesh` with `plaintext: refused`): it is sent
    /// nothing in plaintext, whatever a cluster says. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub plaintext_refused: bool,
    /// DNS name of the endpoint, for authority rewriting and SNI.
    pub hostname: Option<String>,
    /// Who runs there, for telemetry (metadata `istio.workload`; labels are not sent).
    pub workload: Option<Workload>,
    /// Balancer metadata (`envoy.lb`): `hash_key`, canary marks and the like.
    pub lb: BTreeMap<String, String>,
    /// HTTP CONNECT proxy on the way to it (gRFC A86, metadata
    /// `envoy.http11_proxy_transport_socket.proxy_address`).
    pub proxy: Option<Address>,
    /// How it differs in being checked.
    pub health_check: HealthCheckTarget,
}

/// How one endpoint is checked (Envoy `health_check_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheckTarget {
    /// It is not checked. Default false.
    pub disabled: bool,
    /// Port to check. None = the health check's, else the endpoint's.
    pub port: Option<u16>,
    /// Host header of the check. None = the health check's.
    pub host: Option<String>,
    /// Address to check. None = the endpoint's.
    pub address: Option<Address>,
}

/// A share of requests to drop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DropOverload {
    /// Name, for load reports.
    pub category: String,
    /// Share of requests.
    pub share: PerMillion,
}
