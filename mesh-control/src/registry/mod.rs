//! Running processes that announced themselves.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_core::id::Locality;
use serde::Serialize;

/// One announced endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// Short name of the service served, such as `reviews`.
    pub service: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// The port clients dial.
    pub service_port: u16,
    /// Where the process listens.
    pub address: SocketAddr,
    /// Labels of the workload: subsets and selectors match these.
    pub labels: BTreeMap<String, String>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it accepts mesh mTLS.
    pub mesh_tls: bool,
    /// `http`, `http2`, `grpc` or `tcp`; used when no Service object names the protocol.
    pub port_protocol: String,
    /// Workload name, for telemetry.
    pub workload: String,
    /// Service account: the last part of its SPIFFE ID.
    pub service_account: String,
}
