//! What clients say: subscriptions and answers, in either form.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

use super::known::{Answer, Held, Known, Names, Type};
use super::{Form, Kind, Session};
use crate::translate::Dialect;
use crate::xds::encoded::Version;
use crate::xds::nodes::NackStatus;

/// As much of a NACK's text as is kept.
const MAX_NACK: usize = 2048;
/// The name that means everything.
const WILDCARD: &str = "*";

/// Names that are taken in at once.
pub(crate) const PIECE: usize = 256;

/// What a request's arrival did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The client accepted the last response.
    pub(crate) acked: bool,
    /// It refused it, for this reason.
    pub(crate) nacked: Option<String>,
}

/// A client asks for more than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "{} names of {} bytes together, of type {type_url} on one stream; at most {} of {} bytes are served: \
         subscribe to fewer, with `*` to all, or open a stream of another process",
        asked.count, asked.bytes, most.count, most.bytes
    )]
    TooManyNames { asked: Names, most: Names, type_url: &'static str },
    #[error(
        "{kept} bytes are kept for all streams of this identity; at most {most} are: subscribe to fewer names, let processes \
         that are alike have the same labels, or give some of them another service account"
    )]
    TooMuch { kept: usize, most: usize },
    #[error(
        "a request that lists {listed} names of type {type_url}; at most {most} are read: name each once, and subscribe to \
         fewer, or with `*` to all"
    )]
    TooLong { listed: usize, most: usize, type_url: &'static str },
    #[error(
        "the node and the other messages in a request of type {type_url} are {bytes} bytes; at most {limit} are read: give the \
         node less metadata and fewer extensions"
    )]
    TooLarge { bytes: usize, limit: usize, type_url: &'static str },
    #[error("a resource name of {bytes} bytes; at most {limit} are taken: names are as short as those sent")]
    NameTooLong { bytes: usize, limit: usize },
}

impl Session {
    /// Takes a request of a state-of-the-world stream in.
    pub(crate) fn state_request(&mut self, request: DiscoveryRequest) -> Result<Outcome, Refused> {
        let Some(kind) = served(&request.type_url) else { return Ok(Outcome::default()) };
        let mut outcome = Outcome::default();
        let names_clusters = self.may_name_clusters(kind);
        let ty = &mut self.types[kind.index()];
        if ty.nonce.is_empty() {
            // Those of this stream go on after one that the client came with: no answer of it is taken for one of another.
            let came_with = request.response_nonce.parse::<u32>().map_or(0, u64::from);
            self.last_nonce = self.last_nonce.max(came_with);
        } else if request.response_nonce == ty.nonce {
            outcome = ty.take_answer(request.error_detail.as_ref());
        } else if ty.is_stale(&request.response_nonce) {
            // The client had not seen the newest response yet; it will answer that one too.
            return Ok(outcome);
        }
        // Without a nonce it answers nothing: it may have crossed the first response, whose answer still comes.
        let first = !std::mem::replace(&mut ty.asked, true);
        let claims = first && !request.version_info.is_empty();
        if claims {
            self.returns();
            if kind == Kind::Cluster {
                self.came_back = Some(request.version_info);
            }
        }
        let ty = &mut self.types[kind.index()];
        ty.named |= !request.resource_names.is_empty();
        let star = request.resource_names.iter().any(|name| name == WILDCARD);
        let wildcard = star || (kind.is_full_state() && request.resource_names.is_empty() && !ty.named);
        let wanted: BTreeSet<String> = request.resource_names.into_iter().filter(|name| name != WILDCARD).collect();
        self.refuse(kind, Names::of(wanted.iter().map(String::as_str)), wanted.iter())?;

        let ty = &self.types[kind.index()];
        let dropped: Vec<Arc<str>> = ty.names().filter(|name| !wanted.contains(&***name)).cloned().collect();
        let covered = wildcard && !ty.wildcard;
        let mut added = false;
        for name in wanted {
            added |= self.subscribe(kind, &name)?;
            let Type { known, uses, .. } = &mut self.types[kind.index()];
            if claims
                && names_clusters
                && let Some((name, _)) = known.get_key_value(&*name)
            {
                uses.has_already(name);
            }
        }
        if claims && names_clusters && wildcard {
            self.types[kind.index()].uses.come_back();
        }
        for name in dropped {
            self.unsubscribe(kind, &name);
        }
        self.set_wildcard(kind, wildcard)?;
        // Absence from a full-state response is an answer too.
        self.types[kind.index()].owed |= kind.is_full_state() && (first || added || covered);
        Ok(outcome)
    }

    /// Takes a request of a delta stream in.
    pub(crate) fn delta_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Outcome, Refused> {
        let Some(kind) = served(&request.type_url) else { return Ok(Outcome::default()) };
        let subscribed = &request.resource_names_subscribe;
        let named = subscribed.iter().chain(request.initial_resource_versions.keys());
        self.refuse(kind, self.names_after(kind, &request), named)?;
        let mut outcome = Outcome::default();
        let ty = &mut self.types[kind.index()];
        if request.response_nonce.is_empty() {
            // It answers nothing.
        } else if request.response_nonce == ty.nonce {
            outcome = ty.take_answer(request.error_detail.as_ref());
        } else {
            outcome = ty.take_late_answer(&request.response_nonce, request.error_detail.as_ref());
        }
        let first = !std::mem::replace(&mut ty.asked, true);
        let star = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        let whole = star(subscribed) || (first && kind.is_full_state() && subscribed.is_empty());
        if whole {
            // Envoy waits for an answer before it starts, even if there is nothing.
            ty.owed |= !ty.wildcard;
            self.set_wildcard(kind, true)?;
        }
        for name in request.resource_names_subscribe.iter().filter(|name| *name != WILDCARD) {
            self.subscribe(kind, name)?;
            self.send_again(kind, name);
        }
        for name in request.resource_names_unsubscribe.iter().filter(|name| *name != WILDCARD) {
            self.unsubscribe(kind, &name.as_str().into());
            // Still covered, so the client is told that it stays.
            self.send_again(kind, name);
        }
        if star(&request.resource_names_unsubscribe) {
            self.set_wildcard(kind, false)?;
        }
        if first {
            if !request.initial_resource_versions.is_empty() {
                self.returns();
            }
            // An Envoy needs the endpoints of a changed cluster again, and the change may have come before this.
            let anew = kind == Kind::Endpoints && self.scope().dialect == Dialect::Envoy;
            for (name, version) in request.initial_resource_versions {
                let held = if anew { Held::Outdated } else { Held::Version(Version::parse(&version)) };
                self.already_has(kind, name.into(), held)?;
            }
        }
        Ok(outcome)
    }

    /// How many names are subscribed to when a request has been taken in. One that is asked for again is no other.
    fn names_after(&self, kind: Kind, request: &DeltaDiscoveryRequest) -> Names {
        let ty = &self.types[kind.index()];
        let is_known = |name: &str| ty.known.get(name).is_some_and(|known| known.explicit);
        let fresh: BTreeSet<&str> = named(&request.resource_names_subscribe).filter(|name| !is_known(name)).collect();
        let dropped = named(&request.resource_names_unsubscribe);
        let dropped: BTreeSet<&str> = dropped.filter(|name| fresh.contains(name) || is_known(name)).collect();
        let mut after = ty.explicit;
        fresh.into_iter().for_each(|name| after.add(name));
        dropped.into_iter().for_each(|name| after.remove(name));
        after
    }

    fn refuse<'a>(&self, kind: Kind, asked: Names, mut names: impl Iterator<Item = &'a String>) -> Result<(), Refused> {
        let (most, type_url) = (Names { count: self.limits.names, bytes: self.limits.names_bytes }, kind.type_url());
        if asked.count > most.count || asked.bytes > most.bytes {
            return Err(Refused::TooManyNames { asked, most, type_url });
        }
        let limit = self.limits.name_bytes;
        match names.find(|name| name.len() > limit) {
            Some(name) => Err(Refused::NameTooLong { bytes: name.len(), limit }),
            None => Ok(()),
        }
    }

    /// Whether there is room for more.
    fn afford(&self) -> Result<(), Refused> {
        let (kept, most) = (self.seat.kept(), self.limits.bytes_of_one);
        if kept > most { Err(Refused::TooMuch { kept, most }) } else { Ok(()) }
    }

    /// What a request asks for if it is so much that it is better taken in piece by piece: [`begin`](Self::begin) with each
    /// piece of these names, the request, then [`begun`](Self::begun) with each. What is wrong with it is left to the request.
    pub(crate) fn is_large(&self, type_url: &str, nonce: &str, names: &[String]) -> Option<(Kind, Vec<String>)> {
        let kind = Kind::from_type_url(type_url)?;
        let ty = &self.types[kind.index()];
        let counts = !ty.is_stale(nonce) || self.form == Form::Delta;
        let fits = |name: &String| name.len() <= self.limits.name_bytes;
        if !counts || names.len() > self.limits.names || !names.iter().all(fits) {
            return None;
        }
        let is_named = if self.form == Form::State { ty.named } else { ty.asked };
        let is_whole =
            names.iter().any(|name| name == WILDCARD) || kind.is_full_state() && names.is_empty() && !is_named;
        let mut all = if is_whole && !ty.wildcard { self.seat.to_cover(kind) } else { Vec::new() };
        let is_known = |name: &str| ty.known.get(name).is_some_and(|known| known.explicit);
        all.extend(named(names).filter(|name| !is_known(name)).map(str::to_owned));
        all.sort_unstable();
        all.dedup();
        (all.len() > PIECE).then_some((kind, all))
    }

    /// Has made what these names stand for; the request that asks for them is still to come.
    pub(crate) fn begin(&mut self, kind: Kind, names: &[String]) -> Result<(), Refused> {
        for name in names {
            self.afford()?;
            self.seat.begin(kind, name);
        }
        Ok(())
    }

    /// Of what was made, what the request asked for is kept by that.
    pub(crate) fn begun(&mut self, kind: Kind, names: &[String]) {
        names.iter().for_each(|name| self.seat.begun(kind, name));
    }

    /// Subscribes to a name; false if it was already.
    fn subscribe(&mut self, kind: Kind, name: &str) -> Result<bool, Refused> {
        let ty = &self.types[kind.index()];
        if ty.known.get(name).is_some_and(|known| known.explicit) {
            return Ok(false);
        }
        self.afford()?;
        let ty = &mut self.types[kind.index()];
        let name = self.seat.subscribe(kind, name);
        ty.known.entry(name.clone()).or_default().explicit = true;
        ty.explicit.add(&name);
        ty.due.insert(name);
        Ok(true)
    }

    /// What is no longer subscribed to is forgotten, so that asking again sends it again.
    fn unsubscribe(&mut self, kind: Kind, name: &Arc<str>) {
        self.seat.unsubscribe(kind, name);
        let ty = &mut self.types[kind.index()];
        if ty.known.get(name).is_some_and(|known| known.explicit) {
            ty.explicit.remove(name);
        }
        match ty.known.get_mut(name) {
            Some(known) if ty.wildcard => known.explicit = false,
            // What the wildcard covers may not have been looked at yet.
            None if ty.wildcard => {}
            _ => ty.forget(name),
        }
    }

    fn set_wildcard(&mut self, kind: Kind, on: bool) -> Result<(), Refused> {
        match (self.types[kind.index()].wildcard, on) {
            (false, true) => {
                self.afford()?;
                let names = self.seat.cover(kind);
                self.afford()?;
                let ty = &mut self.types[kind.index()];
                for name in names.iter() {
                    ty.known.entry(name.clone()).or_default();
                    ty.due.insert(name.clone());
                }
            }
            (true, false) => {
                self.seat.uncover(kind);
                self.seat.disclaim(kind);
                let ty = &mut self.types[kind.index()];
                ty.renew |= ty.known.values().any(|known| !known.explicit && known.is_in_question());
                ty.known.retain(|_, known| known.explicit);
                let known = &ty.known;
                ty.uses.retain(|name| known.contains_key(name));
                ty.due.retain(|name| known.contains_key(name));
                ty.vanished.retain(|name| known.contains_key(name));
                ty.unsent.retain(|name, _| name.as_ref().is_none_or(|name| known.contains_key(name)));
            }
            _ => {}
        }
        self.types[kind.index()].wildcard = on;
        Ok(())
    }

    /// Whether a resource of this type may name clusters, in whatever version. A proxy's listeners name their routes alone.
    fn may_name_clusters(&self, kind: Kind) -> bool {
        match kind {
            Kind::Cluster | Kind::Endpoints => false,
            Kind::Listener => self.scope().dialect != Dialect::Envoy,
            Kind::Routes => true,
        }
    }

    /// The client says that it has something from an earlier stream. Of what it refused there it need not say anything: many
    /// claim nothing of a type then, or nothing of that name.
    fn returns(&mut self) {
        for kind in Kind::ALL {
            if !self.may_name_clusters(kind) {
                continue;
            }
            let Type { known, uses, .. } = &mut self.types[kind.index()];
            let not_accepted =
                known.iter().filter(|(_, known)| known.held.is_some() && known.answer != Answer::Accepted);
            uses.may_have_more(not_accepted.map(|(name, _)| name));
        }
    }

    /// The client may have forgotten what it asks for again.
    fn send_again(&mut self, kind: Kind, name: &str) {
        let ty = &mut self.types[kind.index()];
        if let Some(known) = ty.known.get_mut(name) {
            // Of what only the wildcard covers it must hear when it is gone; what it asked for again it may still have.
            let may_have = !matches!(known.held, Held::Absent);
            known.held = if may_have && !known.explicit { Held::Outdated } else { Held::Nothing };
            ty.vanished.remove(name);
            ty.due.insert(name.into());
        }
    }

    /// The client has this from an earlier stream. What the wildcard does not cover is kept until it is taken away.
    fn already_has(&mut self, kind: Kind, name: Arc<str>, held: Held) -> Result<(), Refused> {
        let names_clusters = self.may_name_clusters(kind);
        let ty = &mut self.types[kind.index()];
        let is_known = ty.known.contains_key(&name);
        if !is_known && !ty.wildcard {
            return Ok(());
        }
        if !is_known {
            self.seat.claim(kind, &name);
        }
        let known = ty.known.entry(name.clone()).or_default();
        *known = Known { held, answer: Answer::Accepted, ..std::mem::take(known) };
        if names_clusters {
            ty.uses.has_already(&name);
        }
        ty.due.insert(name);
        if is_known { Ok(()) } else { self.afford() }
    }
}

impl Type {
    /// Names subscribed to as such.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.iter().filter(|(_, known)| known.explicit).map(|(name, _)| name)
    }

    fn forget(&mut self, name: &Arc<str>) {
        self.look_again(|unsent| unsent == name);
        self.uses.forget(name);
        self.renew |= self.known.remove(name).is_some_and(|known| known.is_in_question());
        self.due.remove(name);
        self.vanished.remove(name);
    }

    /// Records the answer to the last response. Later requests repeat its nonce; the first one counts.
    fn take_answer(&mut self, error: Option<&Status>) -> Outcome {
        if self.in_flight.is_none() {
            return Outcome::default();
        }
        let Some(error) = error else {
            self.answered(Answer::Accepted);
            self.version_acked = self.version_sent.clone();
            self.nack = None;
            return Outcome { acked: true, nacked: None };
        };
        self.answered(Answer::Refused);
        let reason = printable(&error.message);
        let version = self.version_sent.to_string();
        self.nack = Some(NackStatus { version, nonce: self.nonce.clone(), reason: reason.clone() });
        Outcome { acked: false, nacked: Some(reason) }
    }

    /// Whether a nonce is not that of the newest response. None is before there has been a response on this stream: there are
    /// clients that begin a stream with what they were told last on the one before.
    fn is_stale(&self, nonce: &str) -> bool {
        !nonce.is_empty() && !self.nonce.is_empty() && nonce != self.nonce
    }

    /// Records the answer to a response that another one was sent over. What stands of the newest stays as it is.
    fn take_late_answer(&mut self, nonce: &str, error: Option<&Status>) -> Outcome {
        let answer = if error.is_some() { Answer::Refused } else { Answer::Accepted };
        if !self.answered_late(nonce, answer) {
            return Outcome::default();
        }
        Outcome { acked: error.is_none(), nacked: error.map(|error| printable(&error.message)) }
    }
}

/// The names that are none for everything.
fn named(names: &[String]) -> impl Iterator<Item = &str> {
    names.iter().map(String::as_str).filter(|name| *name != WILDCARD)
}

fn served(type_url: &str) -> Option<Kind> {
    let kind = Kind::from_type_url(type_url);
    if kind.is_none() {
        // A type this server does not have: the client waits, as with any name that does not exist.
        tracing::debug!(?type_url, "a resource type that is not served");
    }
    kind
}

/// A peer's text made fit for logs and pages.
fn printable(text: &str) -> String {
    text.chars().take(MAX_NACK).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
