//! What is in force in the place of edits that lead nowhere, on disk: a restart of the control plane must not make them
//! take effect. All of it can be lost; then they do.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::source::{Document, Manifests};
use crate::state_dir::StateDir;

const FILE: &str = "in-force.json";

/// Where it is kept; nowhere without a directory.
pub(crate) struct Held {
    state: Option<StateDir>,
    last: Vec<Version>,
}

/// One object as it is in force.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// The file it was read from.
    file: String,
    /// The object, as JSON.
    object: String,
}

impl Held {
    /// What a control plane before this one left.
    pub(crate) fn load(state: Option<StateDir>) -> Self {
        let read = |state: &StateDir| -> Result<Vec<Version>, Box<dyn std::error::Error>> {
            Ok(state.read(FILE)?.map_or(Ok(Vec::new()), |bytes| serde_json::from_slice(&bytes))?)
        };
        let last = state.as_ref().map_or_else(Vec::new, |state| {
            read(state).unwrap_or_else(|error| {
                tracing::warn!(%error, file = FILE, "what was in force before the restart cannot be read, and counts as nothing");
                Vec::new()
            })
        });
        Self { state, last }
    }

    /// The objects.
    pub(super) fn model(&self) -> Model {
        let texts = self.last.iter().map(|version| (version.file.as_str(), version.object.as_str()));
        Model::build(&Manifests::from_texts(texts), None)
    }

    /// Keeps these instead.
    pub(super) fn store(&mut self, documents: &[Arc<Document>]) {
        let version = |document: &Arc<Document>| {
            let object = serde_json::to_string(&document.node).ok()?;
            Some(Version { file: document.file.to_string(), object })
        };
        let now: Vec<_> = documents.iter().filter_map(version).collect();
        if now == self.last {
            return;
        }
        if let Some(state) = &self.state {
            let json = serde_json::to_vec(&now).expect("text is always JSON");
            if let Err(error) = state.write_in_time(FILE, &json) {
                tracing::warn!(%error, file = FILE, "what is in force cannot be kept for a restart");
            }
        }
        self.last = now;
    }
}
