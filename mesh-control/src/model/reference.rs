//! How one object names another.

use serde::Deserialize;

/// A reference as Kubernetes writes it. Without a group it is one of Kubernetes' own kinds.
#[derive(Deserialize)]
pub(super) struct RefSpec {
    #[serde(default)]
    pub(super) group: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: String,
    /// `None` = that of the object which names it.
    pub(super) namespace: Option<String>,
}

impl RefSpec {
    /// Group and kind, with `core` for Kubernetes' own group.
    pub(super) fn of(&self) -> (&str, &str) {
        (if self.group.is_empty() { "core" } else { &self.group }, &self.kind)
    }
}
