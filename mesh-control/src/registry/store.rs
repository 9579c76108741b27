//! Registrations on disk, so that a restarted control plane does not take everybody's endpoints away
//! before the processes have come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_core::id::Locality;
use serde::{Deserialize, Serialize};

use super::{Registration, Registrations, sorted};
use crate::state_dir::{StateDir, StateError};

/// Written soon after each change, and brought to disk by the system in its own time: it outlives the process.
const FILE: &str = "registrations.json";
/// Written more seldom, and on disk when it is there: it outlives the machine, after whose end the other may be torn.
const THROUGH: &str = "registrations.synced.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    registrations: Vec<SavedRegistration>,
}

/// [`Registration`] in the words of the file, whose form must outlive changes of the type.
#[derive(Serialize, Deserialize)]
struct SavedRegistration {
    service: String,
    namespace: String,
    service_port: u16,
    address: SocketAddr,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// `[region, zone, sub-zone]`.
    #[serde(default)]
    locality: [String; 3],
    #[serde(default)]
    mesh_tls: bool,
    #[serde(default)]
    port_protocol: String,
    #[serde(default)]
    workload: String,
    service_account: String,
}

/// The registrations saved last. A file that cannot be read is reported; where none can be there are none: every process
/// announces itself again anyway.
pub(crate) fn load(dir: &StateDir) -> Vec<Registration> {
    [FILE, THROUGH].iter().find_map(|file| read(dir, file)).unwrap_or_default()
}

fn read(dir: &StateDir, file: &str) -> Option<Vec<Registration>> {
    let saved = match dir.read(file) {
        Ok(content) => serde_json::from_slice::<Saved>(&content?).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match saved {
        Ok(saved) => Some(saved.registrations.into_iter().map(Registration::from).collect()),
        Err(error) => {
            tracing::warn!(%error, file, "saved registrations cannot be read; waiting for new ones");
            None
        }
    }
}

/// Saves the registrations: the process may end now.
pub(crate) fn save(dir: &StateDir, registrations: &Registrations) -> Result<(), StateError> {
    dir.write_in_time(FILE, &json(registrations))
}

/// The same, and the machine may end.
pub(crate) fn save_through(dir: &StateDir, registrations: &Registrations) -> Result<(), StateError> {
    dir.write(THROUGH, &json(registrations))
}

fn json(registrations: &Registrations) -> Vec<u8> {
    let saved = Saved { registrations: sorted(registrations).into_iter().map(SavedRegistration::from).collect() };
    serde_json::to_vec_pretty(&saved).expect("strings and numbers are always JSON")
}

impl From<&Registration> for SavedRegistration {
    fn from(r: &Registration) -> Self {
        Self {
            service: r.service.clone(),
            namespace: r.namespace.clone(),
            service_port: r.service_port,
            address: r.address,
            labels: r.labels.clone(),
            locality: [r.locality.region.clone(), r.locality.zone.clone(), r.locality.sub_zone.clone()],
            mesh_tls: r.mesh_tls,
            port_protocol: r.port_protocol.clone(),
            workload: r.workload.clone(),
            service_account: r.service_account.clone(),
        }
    }
}

impl From<SavedRegistration> for Registration {
    fn from(saved: SavedRegistration) -> Self {
        let [region, zone, sub_zone] = saved.locality;
        Self {
            service: saved.service,
            namespace: saved.namespace,
            service_port: saved.service_port,
            address: saved.address,
            labels: saved.labels,
            locality: Locality { region, zone, sub_zone },
            mesh_tls: saved.mesh_tls,
            port_protocol: saved.port_protocol,
            workload: saved.workload,
            service_account: saved.service_account,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::registration;
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_rubbish_is_nothing() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        assert_eq!(load(&dir), []);
        save(&dir, &super::super::table_of(&[registration(2), registration(1)])).unwrap();
        assert_eq!(load(&dir), [registration(1), registration(2)]);
        let rubbish = b"{\"registrations\": [{\"service\": 1}]}";
        for torn in [rubbish.as_slice(), b""] {
            dir.write(FILE, torn).unwrap();
            assert_eq!(load(&dir), []);
        }
        // What outlives the machine is there where the newer is torn, and is not asked where it is not.
        save_through(&dir, &super::super::table_of(&[registration(3)])).unwrap();
        assert_eq!(load(&dir), [registration(3)]);
        save(&dir, &super::super::table_of(&[])).unwrap();
        assert_eq!(load(&dir), []);
    }
}
