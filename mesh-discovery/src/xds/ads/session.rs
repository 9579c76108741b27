//! What has been said to one control plane and what is still to be said: subscriptions, nonces,
//! versions, answers. Nothing here costs more for many names than for few, except where the protocol
//! itself lists them all.
//!
//! ```text
//!            first request of a type: all names
//! names ─┬─▶ fresh ──┐
//!        └─▶ stale ──┼─▶ next request ─▶ written
//! response ─▶ answer ┘
//! ```

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::Server;
use super::entry::{Entry, ServerId};
use crate::bootstrap::{Node, ServerFeatures};
use crate::xds::kind::{Key, Kind};
use crate::xds::message::{Ask, Name, Request, StreamError, Variant};

/// How long a control plane's word that it has no delta counts. Where versions are mixed, behind one name or during an
/// upgrade, the next connection may meet one that has it; to ask costs a round trip, which connections that break every
/// few seconds are spared.
const DELTA_AGAIN: Duration = Duration::from_secs(600);

/// The entries of one type.
pub(super) type Entries<V> = HashMap<Name, Entry<V>, RandomState>;

/// One control plane.
pub(crate) struct Session {
    id: ServerId,
    /// Address, for reports.
    pub(crate) server: String,
    pub(super) features: ServerFeatures,
    /// What the next stream speaks.
    pub(crate) variant: Variant,
    /// The variant was chosen by hand.
    fixed: bool,
    /// When it last said that it has no delta.
    without_delta: Option<Instant>,
    pub(crate) connected: bool,
    /// Whether the node has been sent on this stream.
    introduced: bool,
    /// Nothing of what is held is told on this stream: the control plane sends everything.
    pub(super) from_scratch: bool,
    /// What the last stream spoke that was answered: versions of one variant mean nothing in the other.
    spoke: Option<Variant>,
    /// Whether a response has come on this stream.
    pub(super) answered: bool,
    /// When silence on this stream is understood; none once it is, or once there was an answer.
    pub(super) probation: Option<Instant>,
    /// The silence on this stream is right: nothing was owed when its probation ended. The stream is good then, yet
    /// what is asked later has to be answered all the same. If nothing had been asked by then, it holds until something is.
    pub(super) is_quiet: bool,
    /// When the last response of this stream came.
    heard: Option<Instant>,
    /// Resources that count as missing for nothing but its silence since they were asked for.
    in_silence: BTreeSet<Key>,
    /// When it was last told of that it says what it was not asked for.
    pub(super) strange: Option<Instant>,
    /// Why the last attempts came to nothing; cleared by the first response of a stream, or its right silence.
    pub(crate) failing: Option<StreamError>,
    /// The last stream ended before an answer that it owed, or not in order.
    pub(super) is_mute: bool,
    /// Why it counted as unreachable when it was last let go; cleared as the above is.
    pub(super) past_failure: Option<StreamError>,
    /// Who came late has been told that it is unreachable; cleared as the above is.
    is_told: bool,
    /// Since when there has been no stream that vouches for what is held; none while there is one.
    pub(crate) unconfirmed_since: Option<Instant>,
    /// Of the last failure, for reports.
    pub(crate) last_error: Option<String>,
    pub(crate) streams_opened: u64,
    pub(crate) responses: u64,
    pub(crate) nacks: u64,
    types: [Talk; 4],
    /// Does-not-exist timers in the order in which they end; void ones are skipped.
    timers: VecDeque<(Instant, u32, Key)>,
}

/// The conversation about one type.
#[derive(Default)]
pub(super) struct Talk {
    /// Everything subscribed.
    names: HashSet<Name, RandomState>,
    /// Subscribed since the last request.
    fresh: BTreeSet<Name>,
    /// Unsubscribed since the last request.
    stale: BTreeSet<Name>,
    /// Whether a request of this type has been sent on this stream.
    pub(super) started: bool,
    /// Of the last response that was accepted as a whole; survives streams (state of the world).
    version: Name,
    /// What came since is not all that a version says.
    is_torn: bool,
    /// Of the newest response on this stream (state of the world).
    nonce: String,
    /// When it was last listed on this stream what there is of this type (state of the world).
    listed: Option<Instant>,
    /// Responses to be answered: nonce and complaint. State of the world answers the newest only.
    answers: VecDeque<(String, Option<String>)>,
    /// All names as they were listed last.
    list: Option<Arc<[Name]>>,
    /// Tells apart what was wrong last with resources that have no entry, so that it is logged once.
    pub(super) nameless: u64,
}

/// A request and what its writing brings about.
pub(crate) struct Next {
    pub(crate) request: Request,
    pub(super) kind: Kind,
    /// Names asked for by it and not before it on this stream.
    pub(super) asked: Vec<Name>,
    /// Names that the control plane knows now to be unwanted.
    pub(super) let_go: Vec<Name>,
}

impl Session {
    pub(super) fn new(id: ServerId, server: Server, now: Instant) -> Self {
        Self {
            id,
            server: server.name,
            features: server.features,
            variant: server.variant.unwrap_or(Variant::Delta),
            fixed: server.variant.is_some(),
            without_delta: None,
            unconfirmed_since: Some(now),
            connected: false,
            introduced: false,
            from_scratch: false,
            spoke: None,
            answered: false,
            probation: None,
            is_quiet: false,
            heard: None,
            in_silence: BTreeSet::new(),
            strange: None,
            failing: None,
            is_mute: false,
            past_failure: None,
            is_told: false,
            last_error: None,
            streams_opened: 0,
            responses: 0,
            nacks: 0,
            types: Default::default(),
            timers: VecDeque::new(),
        }
    }

    pub(super) fn talk(&self, kind: Kind) -> &Talk {
        &self.types[kind.index()]
    }

    pub(super) fn talk_mut(&mut self, kind: Kind) -> &mut Talk {
        &mut self.types[kind.index()]
    }

    pub(super) fn subscribe(&mut self, key: &Key) {
        let talk = self.talk_mut(key.kind);
        if talk.names.insert(key.name.clone()) {
            talk.list = None;
            if talk.started && !talk.stale.remove(&key.name) {
                talk.fresh.insert(key.name.clone());
            }
        }
    }

    /// Gives whether the control plane has to be told before the resource can be forgotten.
    pub(super) fn unsubscribe(&mut self, key: &Key) -> bool {
        let talk = self.talk_mut(key.kind);
        if !talk.names.remove(&key.name) {
            return false;
        }
        talk.list = None;
        let told = talk.started && !talk.fresh.remove(&key.name);
        if told {
            talk.stale.insert(key.name.clone());
        }
        told
    }

    /// A stream is open: everything is asked for anew, and `from_scratch` as if nothing were held. Its probation ends at
    /// `probation`.
    pub(super) fn opened(&mut self, probation: Option<Instant>, from_scratch: bool) {
        self.connected = true;
        let translated = self.spoke.is_some_and(|spoke| spoke != self.variant);
        self.from_scratch = from_scratch || translated;
        // Delta has none of these; they are of use again if it turns out that the control plane has no delta.
        if self.from_scratch && self.variant == Variant::StateOfTheWorld {
            self.types.iter_mut().for_each(|talk| talk.version = Name::default());
        }
        self.probation = probation;
        self.streams_opened += 1;
        self.types.iter_mut().for_each(Talk::stop);
    }

    /// Whether the control plane was told on this stream that nothing of a type is held (state of the world).
    pub(super) fn claims_nothing(&self, kind: Kind) -> bool {
        let talk = self.talk(kind);
        self.variant == Variant::StateOfTheWorld && talk.started && talk.version.is_empty()
    }

    /// Whether the stream was answered on, or is rightly silent.
    pub(super) fn is_good(&self) -> bool {
        self.answered || self.is_quiet
    }

    /// Whether an open stream vouches for what is held: the silence of one that nothing has been asked on does not.
    pub(super) fn vouches(&self) -> bool {
        self.connected && self.unconfirmed_since.is_none() && (self.answered || self.introduced)
    }

    /// The first request of a stream is written. Where it was silent till then and rightly so, it is on probation now.
    pub(super) fn is_asked(&mut self, now: Instant, probation: Option<Instant>) {
        if std::mem::take(&mut self.is_quiet) && !self.answered {
            self.probation = probation;
            self.unconfirmed_since = Some(now);
        }
    }

    /// For how long nobody has vouched for what it gave.
    pub(crate) fn unconfirmed_for(&self, now: Instant) -> Duration {
        self.unconfirmed_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// A response came: it lives, and what it was silent about it was silent about alive. Gives that.
    pub(super) fn hears(&mut self, now: Instant) -> Vec<Key> {
        self.heard = Some(now);
        self.spoke = Some(self.variant);
        self.take_in_silence()
    }

    /// A resource that was asked for then counts as missing; gives whether it has said nothing at all since.
    pub(super) fn gives_up(&mut self, key: &Key, asked: Option<Instant>) -> bool {
        let silent = self.heard.is_none_or(|heard| asked.is_none_or(|asked| heard < asked));
        if silent {
            self.in_silence.insert(key.clone());
        }
        silent
    }

    /// Whether something that it was silent about counts as missing.
    pub(super) fn has_given_up(&self) -> bool {
        !self.in_silence.is_empty()
    }

    /// It lists everything of a type (state of the world).
    pub(super) fn lists(&mut self, kind: Kind, now: Instant) {
        self.talk_mut(kind).listed = Some(now);
    }

    /// Whether it has listed everything of a type on this stream since it was `asked` for something: what it left out does
    /// not exist. A list of before says nothing of that.
    pub(super) fn has_listed(&self, kind: Kind, asked: Option<Instant>) -> bool {
        self.talk(kind).listed.zip(asked).is_some_and(|(listed, asked)| listed >= asked)
    }

    pub(super) fn take_in_silence(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.in_silence).into_iter().collect()
    }

    /// It has answered, or is rightly silent.
    pub(super) fn is_well(&mut self) {
        self.failing = None;
        self.is_mute = false;
        self.past_failure = None;
        self.is_told = false;
        self.last_error = None;
        self.unconfirmed_since = None;
    }

    /// Why it counts as unreachable now. One that has taken a new stream has the time of its probation to answer, unless the
    /// last one ended before an answer: what takes streams may be no more than what stands before it.
    pub(super) fn unreachable(&self) -> Option<&StreamError> {
        self.failing.as_ref().filter(|_| self.probation.is_none() || self.is_mute)
    }

    /// Why it counts as unreachable, once for as long as it does.
    pub(super) fn tell(&mut self) -> Option<String> {
        let reason = self.unreachable()?.to_string();
        (!std::mem::replace(&mut self.is_told, true)).then_some(reason)
    }

    /// Nobody wants a resource any more.
    pub(super) fn forgets(&mut self, key: &Key) {
        self.in_silence.remove(key);
    }

    /// Of how many resources its silence is all that is known.
    #[cfg(test)]
    pub(crate) fn silences(&self) -> usize {
        self.in_silence.len()
    }

    /// The stream is gone: no timer runs, what is subscribed stays. Gives what it was silent about.
    pub(super) fn closed(&mut self, now: Instant) -> Vec<Key> {
        self.unconfirmed_since.get_or_insert(now);
        self.connected = false;
        self.introduced = false;
        self.answered = false;
        self.probation = None;
        self.is_quiet = false;
        self.heard = None;
        self.timers = VecDeque::new();
        self.types.iter_mut().for_each(Talk::stop);
        self.take_in_silence()
    }

    /// Unwanted names that the control plane has not been told of.
    pub(super) fn stale(&self) -> impl Iterator<Item = Key> {
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.talk(kind).stale.iter().map(move |name| Key::new(kind, name.clone())))
    }

    /// The control plane does not speak delta: the next stream is of the other variant. Gives whether
    /// that is to be tried.
    pub(super) fn falls_back_to_world(&mut self, error: &StreamError, now: Instant) -> bool {
        let other = error.is_unsupported() && self.variant == Variant::Delta && !self.fixed;
        if other {
            self.variant = Variant::StateOfTheWorld;
            self.without_delta = Some(now);
        }
        other
    }

    /// The variant of the stream that is opened now.
    pub(super) fn next_variant(&mut self, now: Instant) -> Variant {
        if self.without_delta.is_some_and(|since| now >= since + DELTA_AGAIN) {
            self.without_delta = None;
            self.variant = Variant::Delta;
        }
        self.variant
    }

    /// Notes the response to be answered.
    pub(super) fn answer(&mut self, kind: Kind, version: Name, nonce: String, complaint: Option<String>) {
        let world = self.variant == Variant::StateOfTheWorld;
        let talk = self.talk_mut(kind);
        if world {
            talk.answers.clear();
            talk.nonce.clone_from(&nonce);
            if complaint.is_none() {
                talk.version = version;
            }
        }
        talk.answers.push_back((nonce, complaint));
    }

    /// Whether there is something to send on the open stream.
    pub(super) fn has_request(&self) -> bool {
        self.connected && self.types.iter().any(Talk::is_due)
    }

    /// Answers that could not be written yet.
    pub(super) fn unanswered(&self) -> usize {
        self.types.iter().map(|talk| talk.answers.len()).sum()
    }

    /// The next request to send. Subscriptions come before answers, so that a response is acknowledged
    /// after what it refers to has been asked for.
    pub(super) fn take_request<V>(&mut self, entries: &[Entries<V>; 4], node: &Arc<Node>) -> Option<Next> {
        if !self.connected {
            return None;
        }
        let find = |due: fn(&Talk) -> bool| Kind::ALL.into_iter().find(|kind| due(&self.types[kind.index()]));
        let kind = find(Talk::is_asking).or_else(|| find(Talk::is_due))?;
        let node = (!std::mem::replace(&mut self.introduced, true)).then(|| node.clone());
        let (id, variant) = (self.id, self.variant);
        // On the first stream nothing is held that it gave.
        let held = (self.streams_opened > 1 && !self.from_scratch).then(|| &entries[kind.index()]);
        let talk = self.talk_mut(kind);
        Some(match variant {
            Variant::StateOfTheWorld => talk.world(kind, node, id, held),
            Variant::Delta => talk.changes(kind, node, id, held),
        })
    }

    pub(super) fn start_timer(&mut self, at: Instant, number: u32, key: Key) {
        self.timers.push_back((at, number, key));
    }

    /// The first timer that `is_live`; dead ones before it are dropped.
    pub(super) fn first_timer(&mut self, is_live: impl Fn(&Key, u32) -> bool) -> Option<Instant> {
        while let Some((at, number, key)) = self.timers.front() {
            if is_live(key, *number) {
                return Some(*at);
            }
            self.timers.pop_front();
        }
        self.timers.shrink_to(64);
        None
    }

    pub(super) fn pop_timer(&mut self) -> Option<Key> {
        self.timers.pop_front().map(|(.., key)| key)
    }
}

impl Talk {
    /// Whether what was used of a response is other than what versions say; a list that is used as a whole mends that.
    pub(super) fn tears(&mut self, torn: bool, is_list: bool) {
        self.is_torn = torn || self.is_torn && !is_list;
    }

    fn stop(&mut self) {
        self.started = false;
        self.nonce.clear();
        self.listed = None;
        self.answers.clear();
        self.fresh.clear();
        self.stale.clear();
    }

    /// Everything subscribed, as requests list it.
    fn sorted(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.names.iter().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Whether the control plane has been asked for a name on this stream, and not been told that it is wanted no longer.
    pub(super) fn has_asked(&self, name: &Name) -> bool {
        self.started && (self.names.contains(name) && !self.fresh.contains(name) || self.stale.contains(name))
    }

    /// The names that the control plane has been asked for on this stream.
    pub(super) fn asked(&self) -> impl Iterator<Item = &Name> {
        self.names.iter().filter(|name| self.has_asked(name))
    }

    /// Whether the control plane has yet to be told that a name is wanted no longer.
    pub(super) fn is_untold(&self, name: &Name) -> bool {
        self.stale.contains(name)
    }

    /// Whether the subscription is to be told. An empty list as the first word would mean "everything".
    fn is_asking(&self) -> bool {
        if self.started { !(self.fresh.is_empty() && self.stale.is_empty()) } else { !self.names.is_empty() }
    }

    fn is_due(&self) -> bool {
        self.is_asking() || !self.answers.is_empty()
    }

    /// Every request of the state of the world is a subscription and an answer in one.
    fn world<V>(&mut self, kind: Kind, node: Option<Arc<Node>>, id: ServerId, entries: Option<&Entries<V>>) -> Next {
        let asked = if std::mem::replace(&mut self.started, true) {
            std::mem::take(&mut self.fresh).into_iter().collect()
        } else {
            let names = self.sorted();
            // One version stands for all: of what is held otherwise than it says, nothing would be heard.
            let doubtful =
                |name| entries.and_then(|e| e.get(name)).is_some_and(|entry: &Entry<V>| entry.is_doubtful(id));
            if std::mem::take(&mut self.is_torn) || names.iter().any(doubtful) {
                self.version = Name::default();
            }
            names
        };
        let let_go = std::mem::take(&mut self.stale).into_iter().collect();
        let error = self.answers.pop_front().and_then(|(_, complaint)| complaint);
        let names = match &self.list {
            Some(list) => list.clone(),
            None => self.list.insert(self.sorted().into()).clone(),
        };
        let ask = Ask::World { version: self.version.clone(), names };
        Next {
            request: Request { type_url: kind.type_url(), node, nonce: self.nonce.clone(), error, ask },
            kind,
            asked,
            let_go,
        }
    }

    /// A change of the subscription goes by itself, without a nonce: servers ignore what else a refusal
    /// says.
    fn changes<V>(&mut self, kind: Kind, node: Option<Arc<Node>>, id: ServerId, entries: Option<&Entries<V>>) -> Next {
        let (mut subscribe, mut unsubscribe, mut initial_versions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut nonce, mut error) = (String::new(), None);
        if !self.started {
            self.started = true;
            subscribe = self.sorted();
            let held = |name: &Name| Some((name.clone(), entries?.get(name)?.undoubted(id)?.clone()));
            initial_versions.extend(subscribe.iter().filter_map(held));
        } else if self.is_asking() {
            subscribe.extend(std::mem::take(&mut self.fresh));
            unsubscribe.extend(std::mem::take(&mut self.stale));
        } else if let Some((answered, complaint)) = self.answers.pop_front() {
            (nonce, error) = (answered, complaint);
        }
        let (asked, let_go) = (subscribe.clone(), unsubscribe.clone());
        let ask = Ask::Changes { subscribe, unsubscribe, initial_versions };
        Next { request: Request { type_url: kind.type_url(), node, nonce, error, ask }, kind, asked, let_go }
    }
}
