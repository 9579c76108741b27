//! [`Type`]: one type of one stream, and what the client has under each name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::xds::encoded::{Encoded, Version};
use crate::xds::nodes::NackStatus;

/// One type of one stream.
#[derive(Default)]
pub(super) struct Type {
    /// Whether a request of this type has come.
    pub(super) asked: bool,
    /// Whether one has named something, after which an empty list is no wildcard any more.
    pub(super) named: bool,
    pub(super) wildcard: bool,
    /// What is subscribed to by name or covered by the wildcard.
    pub(super) known: BTreeMap<Arc<str>, Known>,
    /// What to look at before the next response.
    pub(super) due: BTreeSet<Arc<str>>,
    /// What the client has and does not exist any more, to be taken away in the end.
    pub(super) vanished: BTreeSet<Arc<str>>,
    /// A response is owed even if there is nothing to say.
    pub(super) owed: bool,
    /// Names in the response that is not answered yet.
    pub(super) in_flight: Option<Vec<Arc<str>>>,
    /// Nonce of the last response; empty = none was sent.
    pub(super) nonce: String,
    pub(super) version_sent: Arc<str>,
    pub(super) version_acked: Arc<str>,
    pub(super) nack: Option<NackStatus>,
}

/// One name.
#[derive(Default)]
pub(super) struct Known {
    /// Subscribed to by name.
    pub(super) explicit: bool,
    pub(super) held: Held,
    pub(super) answer: Answer,
}

/// What the client was last told.
#[derive(Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// That it does not exist.
    Absent,
    /// Something that is to be sent again, whatever it was.
    Outdated,
    Version(Version),
    /// Kept where a response repeats what has vanished since.
    Bytes(Arc<Encoded>),
}

/// What the client said to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answer {
    #[default]
    None,
    Accepted,
    /// It was in a response that was refused.
    Refused,
}

impl Held {
    /// Whether the client has something.
    pub(super) fn is_some(&self) -> bool {
        !matches!(self, Self::Nothing | Self::Absent)
    }

    /// The version that the client has.
    pub(super) fn version(&self) -> Option<Version> {
        match self {
            Self::Nothing | Self::Absent | Self::Outdated => None,
            Self::Version(version) => Some(*version),
            Self::Bytes(encoded) => Some(encoded.version),
        }
    }
}

impl Type {
    /// Everything that exists, and what has vanished and is not taken away yet.
    pub(super) fn everything(&self, resource: impl Fn(&Arc<str>) -> Option<Arc<Encoded>>) -> Vec<Arc<Encoded>> {
        let kept = |name: &Arc<str>, known: &Known| match &known.held {
            Held::Bytes(encoded) if self.vanished.contains(name) => Some(encoded.clone()),
            _ => None,
        };
        self.known.iter().filter_map(|(name, known)| resource(name).or_else(|| kept(name, known))).collect()
    }

    /// Records what goes out.
    pub(super) fn sent(&mut self, name: &Arc<str>, held: Held) {
        self.due.remove(name);
        if let Some(known) = self.known.get_mut(name) {
            if known.held.version() != held.version() {
                known.answer = Answer::None;
            }
            known.held = held;
        }
    }

    /// Records that a name is told to be gone.
    pub(super) fn gone(&mut self, name: &Arc<str>) {
        match self.known.get_mut(name) {
            Some(known) if known.explicit => {
                *known = Known { explicit: true, held: Held::Absent, answer: Answer::None }
            }
            _ => _ = self.known.remove(name),
        }
    }

    /// The client's answer to the last response.
    pub(super) fn answered(&mut self, answer: Answer) {
        for name in self.in_flight.take().into_iter().flatten() {
            if let Some(known) = self.known.get_mut(&name) {
                known.answer = answer;
            }
        }
    }
}
