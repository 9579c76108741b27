//! [`Type`]: one type of one stream, and what the client has under each name.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::Form;
use super::uses::{Needed, Uses};
use crate::xds::Kind;
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
    /// How many of them are subscribed to by name, and the bytes of those names.
    pub(super) explicit: Names,
    /// What to look at before the next response.
    pub(super) due: BTreeSet<Arc<str>>,
    /// What the client has and does not exist any more, to be taken away in the end.
    pub(super) vanished: BTreeSet<Arc<str>>,
    /// Of listeners and routes: what the client may use of them.
    pub(super) uses: Uses,
    /// Something of a refused response was accepted since or is gone: what is left of it goes again.
    pub(super) renew: bool,
    /// A response is owed even if there is nothing to say.
    pub(super) owed: bool,
    /// Names in the response that is not answered yet.
    pub(super) in_flight: Option<Vec<Arc<str>>>,
    /// Delta: nonces of older responses that are not answered yet, with the names that no newer one holds.
    pub(super) overtaken: Vec<(String, Vec<Arc<str>>)>,
    /// Nonce of the last response; empty = none was sent.
    pub(super) nonce: String,
    pub(super) version_sent: Arc<str>,
    pub(super) version_acked: Arc<str>,
    pub(super) nack: Option<NackStatus>,
    /// What of the newest state was not sent, and why; everything has no name.
    pub(super) unsent: BTreeMap<Option<Arc<str>>, String>,
}

/// Names, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Names {
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        names.into_iter().for_each(|name| all.add(name));
        all
    }

    pub(super) fn add(&mut self, name: &str) {
        self.count += 1;
        self.bytes += name.len();
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(name.len());
    }
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
    /// What it was before was refused, and to what it is now nothing was said yet.
    Again,
}

impl Known {
    /// Whether the client refused it as it was sent last.
    pub(super) fn is_refused(&self) -> bool {
        self.answer == Answer::Refused && self.held.is_some()
    }

    /// Whether the client refused it and has not accepted it since.
    pub(super) fn is_in_question(&self) -> bool {
        matches!(self.answer, Answer::Refused | Answer::Again)
    }
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

    /// Records what cannot go out: one resource, or, without a name, everything there is.
    pub(super) fn too_large(&mut self, kind: Kind, name: Option<Arc<str>>, bytes: usize, limit: usize) {
        let what = name.as_ref().map_or("everything".to_owned(), |name| format!("{name:?}"));
        let why = format!(
            "{what} of type {} would be {bytes} bytes; no client takes a message of more than {limit}, so what it has stays: \
             split what is that large, or have the client use delta xDS, which takes resources one by one",
            kind.type_url()
        );
        tracing::error!(kind = %kind, bytes, limit, "{why}");
        self.unsent.insert(name, why);
    }

    /// Whether the client has been sent everything as it is, after some of it was not sent.
    pub(super) fn is_newest(&self, resource: impl Fn(&Arc<str>) -> Option<Arc<Encoded>>) -> bool {
        self.known.iter().all(|(name, known)| match (resource(name), known.held.version()) {
            (Some(now), Some(held)) => now.version == held,
            (None, None) => true,
            (None, Some(_)) => self.vanished.contains(name),
            (Some(_), None) => false,
        })
    }

    /// Looks anew at whether a name can be sent.
    pub(super) fn look_again(&mut self, is_looked_at: impl Fn(&Arc<str>) -> bool) {
        self.unsent.retain(|name, _| name.as_ref().is_none_or(|name| !is_looked_at(name)));
    }

    /// Records what goes out.
    pub(super) fn sent(&mut self, name: &Arc<str>, held: Held) {
        self.due.remove(name);
        if let Some(known) = self.known.get_mut(name) {
            if known.held.version() != held.version() {
                known.answer = if known.is_in_question() { Answer::Again } else { Answer::None };
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

    /// Whether the client refuses what it was sent last under some name, and goes on with something older.
    pub(super) fn refuses(&self) -> bool {
        self.known.values().any(Known::is_refused)
    }

    /// Whether the client goes on with something older than there is: it refused that, or no client takes it.
    pub(super) fn lags(&self) -> bool {
        self.refuses() || !self.unsent.is_empty()
    }

    /// Adds the clusters that are named by what the client goes on with in the place of what there is, or of what was taken away;
    /// false = it may be any.
    pub(super) fn add_needed(&self, needed: &mut Needed) -> bool {
        let whole = self.unsent.contains_key(&None);
        let has = |name: &Arc<str>| {
            let has = self.known.get(name).is_some_and(|known| known.held.version().is_some() && !known.is_refused());
            has && !whole && !self.unsent.contains_key(&Some(name.clone()))
        };
        !self.uses.are_unknown(self.known.keys()) && self.uses.add_to(needed, |name| !has(name))
    }

    /// Once something of a refused response is accepted or gone, all that is left of it goes again: the client may have taken
    /// none of it, and says only of the whole what it thinks. What is merely other goes alone until it is accepted, or a
    /// resource that changes and stays bad would cost the whole each time. A list of everything is owed as it is.
    pub(super) fn renew_refused(&mut self, is_gone: impl Fn(&Arc<str>) -> bool) {
        let Self { known, due, renew, owed, .. } = self;
        for name in due.iter() {
            // Once: it may be due for longer.
            if let Some(gone) = known.get_mut(name).filter(|known| known.is_in_question() && is_gone(name)) {
                gone.answer = Answer::None;
                *renew = true;
            }
        }
        if !std::mem::take(renew) {
            return;
        }
        for (name, known) in known.iter_mut().filter(|(_, known)| known.is_refused()) {
            match known.held {
                Held::Version(_) => {
                    // As if it was never refused: what goes again because of another says of no third that it is better.
                    (known.held, known.answer) = (Held::Outdated, Answer::None);
                    due.insert(name.clone());
                }
                Held::Bytes(_) => *owed = true,
                Held::Nothing | Held::Absent | Held::Outdated => {}
            }
        }
    }

    /// Whether there is something to say of it.
    pub(super) fn is_due(&self) -> bool {
        self.owed || self.renew || !self.due.is_empty()
    }

    /// Records the names that a response holds, and the nonce of the one before, which was not waited for. Of state of the
    /// world that can be clusters only, of which each response holds all.
    pub(super) fn awaits(&mut self, form: Form, before: String, names: Vec<Arc<str>>) {
        if let Some(older) = self.in_flight.take().filter(|_| form == Form::Delta) {
            self.overtaken.push((before, older));
            let newer: HashSet<&Arc<str>> = names.iter().collect();
            self.overtaken.iter_mut().for_each(|(_, older)| {
                older.retain(|name| !newer.contains(name) && self.known.contains_key(name));
            });
            self.overtaken.retain(|(_, older)| !older.is_empty());
        }
        self.in_flight = Some(names);
        // Of a response that was overtaken; the answer to this one is still to come.
        self.nack = None;
    }

    /// The client's answer to an older response, if that was overtaken. False = it was not.
    pub(super) fn answered_late(&mut self, nonce: &str, answer: Answer) -> bool {
        let Some(at) = self.overtaken.iter().position(|(of, _)| of == nonce) else { return false };
        let (_, names) = self.overtaken.remove(at);
        self.mark(names, answer);
        true
    }

    /// The client's answer to the last response, and to those before it that it has not answered.
    pub(super) fn answered(&mut self, answer: Answer) {
        let skipped = std::mem::take(&mut self.overtaken).into_iter().flat_map(|(_, names)| names);
        let names: Vec<_> = self.in_flight.take().into_iter().flatten().chain(skipped).collect();
        if answer == Answer::Accepted {
            // With it what it takes away, and what was taken away before.
            self.uses.retain(|name| self.known.contains_key(name));
        }
        self.mark(names, answer);
    }

    fn mark(&mut self, names: Vec<Arc<str>>, answer: Answer) {
        let alone = names.len() == 1;
        for name in names {
            match answer {
                Answer::Accepted => self.uses.accepted(&name),
                Answer::Refused => self.uses.refused(&name, alone),
                Answer::None | Answer::Again => {}
            }
            if let Some(known) = self.known.get_mut(&name) {
                self.renew |= known.answer == Answer::Again && answer == Answer::Accepted;
                known.answer = answer;
            }
        }
    }
}
