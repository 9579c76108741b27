//! Running processes that announced themselves: checked, held while their stream lasts and a little
//! longer, saved across restarts.
//!
//! Refuses to know what is made of them.

mod announcement;
mod service;
mod store;
mod table;
mod worker;

pub(crate) use self::service::AnnounceService;
pub(crate) use self::store::load;
pub(crate) use self::table::Registry;
pub(crate) use self::worker::{expire, save, save_now};

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

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint of `reviews` that listens on `port`.
    pub(super) fn registration(port: u16) -> Registration {
        Registration {
            service: "reviews".into(),
            namespace: "default".into(),
            service_port: 9080,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            labels: BTreeMap::from([("app".into(), "reviews".into())]),
            locality: Locality { region: "r".into(), ..Locality::default() },
            mesh_tls: true,
            port_protocol: "http".into(),
            workload: "reviews-v1".into(),
            service_account: "reviews".into(),
        }
    }
}
