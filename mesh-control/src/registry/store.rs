//! Registrations on disk, so that a restarted control plane does not take everybody's endpoints away
//! before the processes have come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_core::id::Locality;
use serde::{Deserialize, Serialize};

use super::table::{MAX_BYTES, MAX_ENDPOINTS};
use super::{Registration, Registrations, sorted};
use crate::state_dir::{StateDir, StateError};

/// Written soon after each change, and brought to disk by the system in its own time: it outlives the process.
const FILE: &str = "registrations.json";
/// Written more seldom, and on disk when it is there: it outlives the machine, after whose end the other may be torn.
const THROUGH: &str = "registrations.synced.json";

/// No larger than that: each byte of a text may take six (`\u001f`), and what is around the texts of an endpoint less than these.
const MAX_FILE: u64 = 6 * MAX_BYTES as u64 + 1024 * MAX_ENDPOINTS as u64;

#[derive(Serialize, Deserialize)]
struct Saved {
    /// Counts the saves to both files: after the end of the machine either may be the older one. Before it was there: 0.
    #[serde(default)]
    save: u64,
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

/// The registrations saved last, and the number of that save. A file that cannot be read is reported; where none can be there
/// are none: every process announces itself again anyway.
pub(crate) fn load(dir: &StateDir) -> (Vec<Registration>, u64) {
    // Of two with the same number the last is taken.
    let saved = [THROUGH, FILE].iter().filter_map(|file| read(dir, file)).max_by_key(|saved| saved.save);
    let Some(Saved { save, registrations }) = saved else { return Default::default() };
    (registrations.into_iter().map(Registration::from).collect(), save)
}

fn read(dir: &StateDir, file: &str) -> Option<Saved> {
    let saved = match dir.read_within(file, MAX_FILE) {
        Ok(content) => serde_json::from_slice::<Saved>(&content?).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match saved {
        Ok(saved) => Some(saved),
        Err(error) => {
            tracing::warn!(%error, file, "saved registrations cannot be read; waiting for new ones");
            None
        }
    }
}

/// Saves the registrations, as the save of that number: the process may end now.
pub(crate) fn save(dir: &StateDir, (save, registrations): (u64, &Registrations)) -> Result<(), StateError> {
    dir.write_in_time(FILE, &json(save, registrations))
}

/// The same, and the machine may end.
pub(crate) fn save_through(dir: &StateDir, (save, registrations): (u64, &Registrations)) -> Result<(), StateError> {
    dir.write(THROUGH, &json(save, registrations))
}

fn json(save: u64, registrations: &Registrations) -> Vec<u8> {
    let registrations = sorted(registrations).into_iter().map(SavedRegistration::from).collect();
    let saved = Saved { save, registrations };
    serde_json::to_vec(&saved).expect("strings and numbers are always JSON")
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
    use super::super::table_of;
    use super::super::tests::registration;
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_rubbish_is_nothing() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let load = |dir: &StateDir| load(dir).0;
        assert_eq!(load(&dir), []);
        save(&dir, (1, &table_of(&[registration(2), registration(1)]))).unwrap();
        assert_eq!(load(&dir), [registration(1), registration(2)]);
        let rubbish = b"{\"registrations\": [{\"service\": 1}]}";
        for torn in [rubbish.as_slice(), b""] {
            dir.write(FILE, torn).unwrap();
            assert_eq!(load(&dir), []);
        }
        // What outlives the machine is there where the newer is torn, and is not asked where it is not.
        save_through(&dir, (2, &table_of(&[registration(3)]))).unwrap();
        assert_eq!(load(&dir), [registration(3)]);
        save(&dir, (3, &table_of(&[]))).unwrap();
        assert_eq!(load(&dir), []);
    }

    /// As much as one account may announce, in bytes that JSON doubles: a restart must not take everybody's endpoints away for that.
    #[test]
    fn what_may_be_announced_is_loaded() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let labelled = |number: u16| {
            let labels = (0..50).map(|label| (format!("label-{label}"), "\\".repeat(300))).collect();
            Registration { labels, ..registration(number) }
        };
        let all: Vec<_> = (1..1_300).map(labelled).collect();
        save(&dir, (1, &table_of(&all))).unwrap();
        assert!(std::fs::metadata(dir.path(FILE)).unwrap().len() > 32 << 20);
        assert_eq!(load(&dir).0.len(), all.len());
    }

    #[test]
    fn of_two_files_that_are_whole_the_newer_counts() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        save(&dir, (7, &table_of(&[registration(1)]))).unwrap();
        save_through(&dir, (8, &table_of(&[registration(2)]))).unwrap();
        assert_eq!(load(&dir), (vec![registration(2)], 8), "the system had not brought the other to disk");
        save(&dir, (9, &table_of(&[registration(3)]))).unwrap();
        assert_eq!(load(&dir), (vec![registration(3)], 9), "the control: usually it is the newer");
        // Files of before have no number.
        for file in [FILE, THROUGH] {
            let text = String::from_utf8(dir.read(file).unwrap().unwrap()).unwrap();
            let (number, rest) = text.split_once(',').unwrap();
            assert!(number.starts_with("{\"save\":"), "{number}");
            let old = format!("{{{rest}");
            dir.write(file, old.as_bytes()).unwrap();
        }
        assert_eq!(load(&dir), (vec![registration(3)], 0));
    }
}
