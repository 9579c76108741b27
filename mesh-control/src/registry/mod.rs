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
use std::sync::Arc;

use mesh_core::id::Locality;
use serde::Serialize;

use crate::shards::Shards;

/// The announced endpoints at one moment; cheap to copy.
pub(crate) type Registrations = Shards<Key, Arc<Registration>>;

/// What tells endpoints apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    namespace: String,
    service: String,
    service_port: u16,
    address: SocketAddr,
}

impl Key {
    pub(crate) fn of(registration: &Registration) -> Self {
        Self {
            namespace: registration.namespace.clone(),
            service: registration.service.clone(),
            service_port: registration.service_port,
            address: registration.address,
        }
    }
}

/// The table of these; of two that are one endpoint the later counts.
pub(crate) fn table_of(registrations: &[Registration]) -> Registrations {
    let mut table = Registrations::default();
    for registration in registrations {
        table.insert(Key::of(registration), Arc::new(registration.clone()));
    }
    table
}

/// Each of them, in order.
pub(crate) fn sorted(registrations: &Registrations) -> Vec<&Registration> {
    let mut all: Vec<_> = registrations.iter().collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    all.into_iter().map(|(_, registration)| &**registration).collect()
}

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

impl Registration {
    /// Bytes of its texts, with something for each label.
    pub(crate) fn text_len(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(key, value)| 64 + key.len() + value.len()).sum();
        let Locality { region, zone, sub_zone } = &self.locality;
        let texts = [
            &self.service,
            &self.namespace,
            &self.port_protocol,
            &self.workload,
            &self.service_account,
            region,
            zone,
            sub_zone,
        ];
        labels + texts.iter().map(|text| text.len()).sum::<usize>()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An endpoint of `reviews` that listens on `port`.
    pub(crate) fn registration(port: u16) -> Registration {
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
