//! What a stream holds, for operators.

use super::known::{Answer, Held, Known, Type};
use super::{Kind, Session};
use crate::xds::nodes::{ResourceStatus, TypeStatus};

/// As many missing names as are listed, and as many that are refused.
const LISTED: usize = 20;

impl Session {
    /// Every type that was asked for; with `resources` also each name.
    pub(crate) fn status(&self, resources: bool) -> Vec<TypeStatus> {
        let asked = Kind::ALL.into_iter().filter(|kind| self.types[kind.index()].asked);
        asked.map(|kind| self.types[kind.index()].status(kind, resources)).collect()
    }
}

impl Type {
    fn status(&self, kind: Kind, resources: bool) -> TypeStatus {
        let has = |known: &Known| known.held.version().is_some();
        let refused = self.known.iter().filter(|(_, known)| known.is_refused());
        let missing = self.known.iter().filter(|(_, known)| known.explicit && !has(known));
        TypeStatus {
            type_url: kind.type_url(),
            wildcard: self.wildcard,
            subscribed: self.explicit.count,
            sent: self.known.values().filter(|known| has(known)).count(),
            missing: missing.take(LISTED).map(|(name, _)| name.to_string()).collect(),
            version_sent: self.version_sent.to_string(),
            version_acked: self.version_acked.to_string(),
            waiting: self.in_flight.is_some(),
            due: self.due.len() + self.vanished.len(),
            nack: self.nack.clone(),
            refused: refused.take(LISTED).map(|(name, _)| name.to_string()).collect(),
            unsent: self.unsent.values().cloned().reduce(|all, why| format!("{all}; {why}")),
            resources: resources.then(|| self.known.iter().map(|(name, known)| resource(name, known)).collect()),
        }
    }
}

fn resource(name: &str, known: &Known) -> ResourceStatus {
    let state = match (&known.held, known.answer) {
        (Held::Nothing | Held::Outdated, _) => "requested",
        (Held::Absent, _) => "missing",
        (_, Answer::None | Answer::Again) => "sent",
        (_, Answer::Accepted) => "accepted",
        (_, Answer::Refused) => "refused",
    };
    let version = known.held.version().map(|version| version.to_string());
    ResourceStatus { name: name.to_owned(), version: version.unwrap_or_default(), state }
}
