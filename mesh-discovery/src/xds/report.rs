//! What the client holds and how it stands with its control plane, readable from any thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::policy::Unenforced;
use parking_lot::Mutex;
use serde::Serialize;

use super::entry::{Entry, Standing};
use super::kind::{Key, Kind};
use super::resource::{Resource, Value};

/// How the client stands with its control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Address of the control plane.
    pub server: String,
    /// Whether a stream is open.
    pub connected: bool,
    /// The last failure of a connection or stream; none after a response on a later stream.
    pub last_error: Option<String>,
    /// Streams opened so far.
    pub streams_opened: u64,
    /// Responses received so far.
    pub responses: u64,
    /// Responses refused so far.
    pub nacks: u64,
}

/// Written by the worker, a little at a time; read by whoever asks.
#[derive(Debug, Default)]
pub(super) struct Report {
    status: Mutex<Status>,
    rows: Mutex<BTreeMap<Key, Row>>,
}

/// One resource. Values are shared, so that a dump copies pointers under the lock and no policy.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(rename = "type")]
    kind: Kind,
    name: String,
    type_url: &'static str,
    version: String,
    state: Standing,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    unenforced: Arc<[Unenforced]>,
}

impl Report {
    pub(super) fn status(&self) -> Status {
        self.status.lock().clone()
    }

    pub(super) fn change_status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock());
    }

    /// Writes down one resource; `None` strikes it out.
    pub(super) fn record(&self, key: Key, entry: Option<&Entry<Resource>>) {
        let Some(entry) = entry else {
            self.rows.lock().remove(&key);
            return;
        };
        let row = Row {
            kind: key.kind,
            name: key.name.clone(),
            type_url: key.kind.type_url(),
            version: entry.version.clone(),
            state: entry.standing,
            error: entry.error.clone(),
            value: entry.value().map(|resource| resource.value.clone()),
            unenforced: entry.value().map_or_else(|| Arc::from([]), |resource| resource.unenforced.clone()),
        };
        self.rows.lock().insert(key, row);
    }

    /// Everything as JSON.
    pub(super) fn dump(&self) -> serde_json::Value {
        let rows: Vec<Row> = self.rows.lock().values().cloned().collect();
        serde_json::json!({ "status": self.status(), "resources": rows })
    }
}
