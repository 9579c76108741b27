//! What is held of one resource: the last good value, what the control plane said last, the
//! does-not-exist timer.
//!
//! ```text
//! Requested ──good──▶ Acked ⇄ Nacked (the last good value stays)
//!     │                 ▲ │
//!     └─timer, error──▶ DoesNotExist (after Acked: the last good value stays too)
//! ```

use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use serde::Serialize;
use tokio::time::Instant;

/// What the control plane said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Asked for, no answer yet.
    Requested,
    /// The latest version is in use.
    Acked,
    /// The latest version was refused.
    Nacked,
    /// It does not exist, or it was deleted.
    DoesNotExist,
}

/// What a reader may use of a resource.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known<'a, V> {
    /// Nothing yet.
    Pending,
    /// The last good value.
    Value(&'a V),
    /// There is none, and this is why.
    Missing(&'a str),
}

/// One subscribed resource.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    /// False once nobody wants it; the entry goes when the control plane has been told.
    pub(super) wanted: bool,
    pub(super) standing: Standing,
    /// Version of the response that gave the value.
    pub(super) version: String,
    /// Why it is Nacked or does not exist.
    pub(super) error: Option<String>,
    value: Option<V>,
    /// What the value was decoded from: the same bytes are not decoded again.
    accepted: Option<Any>,
    /// What was refused last, likewise.
    refused: Option<Any>,
    /// When it counts as not existing; runs only while connected and asked for.
    pub(super) deadline: Option<Instant>,
}

impl<V: PartialEq> Entry<V> {
    pub(super) fn new() -> Self {
        Self {
            wanted: true,
            standing: Standing::Requested,
            version: String::new(),
            error: None,
            value: None,
            accepted: None,
            refused: None,
            deadline: None,
        }
    }

    pub(super) fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    pub(super) fn known(&self) -> Known<'_, V> {
        match (&self.value, self.standing) {
            (Some(value), _) => Known::Value(value),
            (None, Standing::Nacked | Standing::DoesNotExist) => Known::Missing(self.error.as_deref().unwrap_or("")),
            (None, _) => Known::Pending,
        }
    }

    /// Takes the resource of a response of `version`; the error is a refusal.
    pub(super) fn offer(
        &mut self,
        version: &str,
        resource: Any,
        decode: impl FnOnce(&Any) -> Result<V, String>,
    ) -> Result<(), String> {
        self.deadline = None;
        if self.accepted.as_ref() != Some(&resource) {
            if self.refused.as_ref() == Some(&resource) {
                self.standing = Standing::Nacked;
                return Err(self.error.clone().unwrap_or_default());
            }
            match decode(&resource) {
                // An equal value in other bytes keeps its place, so that its readers see no change.
                Ok(value) if self.value.as_ref() == Some(&value) => {}
                Ok(value) => self.value = Some(value),
                Err(error) => {
                    self.standing = Standing::Nacked;
                    self.error = Some(error.clone());
                    self.refused = Some(resource);
                    return Err(error);
                }
            }
            self.accepted = Some(resource);
        }
        self.standing = Standing::Acked;
        version.clone_into(&mut self.version);
        self.error = None;
        self.refused = None;
        Ok(())
    }

    /// Notes that the resource is gone or was never there; a last good value stays.
    pub(super) fn missing(&mut self, reason: String) {
        self.deadline = None;
        self.standing = Standing::DoesNotExist;
        self.error = Some(reason);
        self.refused = None;
    }

    /// Starts the does-not-exist timer if nothing is known and it does not run yet.
    pub(super) fn asked(&mut self, now: Instant, after: Duration) {
        if self.standing == Standing::Requested && self.deadline.is_none() {
            self.deadline = Some(now + after);
        }
    }
}
