//! The ADS protocol as a state machine: resources with their states, one [`Session`] a control plane,
//! one [`Authority`] a list of control planes in order (gRFC A27, A40, A46, A47, A53, A57, A71, A88).
//!
//! No socket, no task, no clock: `now` is an argument and requests are handed out to be sent. It knows
//! bodies, names, versions and nonces; what a resource means is the [`Codec`]'s business.
//!
//! ```text
//! want, release ───────────────┐                   ┌─▶ keys that changed (for the cascade)
//! opened, response, closed ────┼──▶ Ads ───────────┼─▶ take_request(server)
//! expire ──────────────────────┘                   └─▶ wants(server): whom to be connected to
//! ```

mod authority;
mod entry;
mod response;
mod restored;
mod session;
mod ttl;
mod unasked;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::authority::Authority;
pub(crate) use self::entry::{Entry, Failure, Hold, Known, Loss, Origin, SAVED, ServerId, Standing};
use self::response::Round;
use self::session::Entries;
pub(crate) use self::session::Session;
use self::ttl::Ends;
use self::unasked::Unasked;
use super::kind::{Key, Kind};
use super::message::{Body, Name, Request, StreamError, Variant};
use super::saved::{self, Record, Saved};
use crate::bootstrap::{Node, ServerFeatures, name};
use crate::cascade::SubscriptionId;

/// How many resources that nobody wants any more are kept through an outage, in case somebody does again.
const MAX_RETIRED: usize = 1024;

/// Gives names and values to the bytes of resources.
pub(crate) trait Codec {
    /// A decoded resource; cheap to clone.
    type Value: Clone + PartialEq;

    /// The name that the resource gives itself; reads nothing else.
    fn name<'a>(&self, kind: Kind, body: &'a Body) -> Option<Cow<'a, str>>;

    /// The value, as a control plane with these features may give it; the error names the resource and every
    /// field that is wrong.
    fn decode(&self, kind: Kind, name: &str, body: &Body, from: ServerFeatures) -> Result<Self::Value, String>;

    /// Whether the value says that there is nothing, as endpoints that are none: in the place of something it is as
    /// likely an accident as a deletion is, and is treated like one.
    fn is_empty(&self, value: &Self::Value) -> bool;
}

/// Who is to be asked for what.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// Who we are.
    pub(crate) node: Arc<Node>,
    /// Distinct control planes.
    pub(crate) servers: Vec<Server>,
    /// Lists of them in order of preference; the first is for names without an authority.
    pub(crate) authorities: Vec<Servers>,
    /// Index in `authorities` by the authority of an `xdstp:` name.
    pub(crate) by_name: HashMap<String, u16>,
    /// How long a resource may stay away before it counts as not existing (gRFC A57: 15 s).
    pub(crate) resource_timeout: Duration,
    /// The same for control planes with `resource_timer_is_transient_error` (gRFC A88: 30 s).
    pub(crate) transient_timeout: Duration,
}

/// A control plane.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Address, for reports.
    pub(crate) name: String,
    pub(crate) features: ServerFeatures,
    /// The variant of the protocol. None = delta, or the state of the world where there is no delta.
    pub(crate) variant: Option<Variant>,
}

/// The control planes of an authority.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    pub(crate) ordered: Vec<ServerId>,
    /// Falls back as soon as a control plane cannot be reached, whatever is cached (gRFC A95).
    pub(crate) on_reachability_only: bool,
}

/// When to try a connection again that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// With the other variant of the protocol.
    AtOnce,
    /// The stream was good: back-off begins anew.
    Soon,
    /// It was not: back-off goes on.
    Later,
}

/// Everything known and everything said.
pub(crate) struct Ads<C: Codec> {
    codec: C,
    node: Arc<Node>,
    resource_timeout: Duration,
    transient_timeout: Duration,
    entries: [Entries<C::Value>; 4],
    sessions: Vec<Session>,
    authorities: Vec<Authority>,
    by_name: HashMap<String, u16>,
    /// Unwanted resources that are kept until their control plane speaks, each once; the last was let go of last.
    retired: VecDeque<Key>,
    /// Resources whose readers see something new.
    changed: Vec<Key>,
    /// The response that is worked off.
    open: Option<Round<C::Value>>,
    round: u32,
    last_timer: u32,
    /// Of resources that end by themselves.
    ends: Ends,
    /// When the latest event was.
    clock: Instant,
    /// What an earlier run held; each serves until a control plane has spoken of it.
    saved: Option<Saved>,
    /// When the first of that is too old.
    saved_until: Option<Instant>,
    /// Whose that is, by authority.
    saved_givers: HashMap<u16, u64>,
    /// What of it came into use, some of which has been answered for meanwhile.
    restored: BTreeSet<Key>,
    /// Some of it may be of no use any more since it was looked through.
    saved_is_due: bool,
    /// What of it was let go before anybody asked for it.
    unasked: Unasked,
    /// Control planes whose open stream is of no use any more.
    given_up: Vec<ServerId>,
}

impl<C: Codec> Ads<C> {
    /// Nothing subscribed, nothing connected.
    pub(crate) fn new(codec: C, topology: Topology, now: Instant) -> Self {
        let session = |(id, server): (usize, Server)| Session::new(id as ServerId, server, now);
        Self {
            codec,
            node: topology.node,
            resource_timeout: topology.resource_timeout,
            transient_timeout: topology.transient_timeout,
            entries: Default::default(),
            sessions: topology.servers.into_iter().enumerate().map(session).collect(),
            authorities: topology.authorities.into_iter().map(Authority::new).collect(),
            by_name: topology.by_name,
            retired: VecDeque::new(),
            changed: Vec::new(),
            open: None,
            round: 0,
            last_timer: 0,
            ends: Ends::default(),
            clock: now,
            saved: None,
            saved_until: None,
            saved_givers: HashMap::new(),
            restored: BTreeSet::new(),
            saved_is_due: false,
            unasked: Unasked::default(),
            given_up: Vec::new(),
        }
    }

    /// Wants a resource for a subscription. Gives its name as everybody shares it, and what is known of it: it may be
    /// known at once if somebody else wanted it before.
    pub(crate) fn want(&mut self, by: SubscriptionId, kind: Kind, name: &str) -> (Name, Known<'_, C::Value>) {
        let held = self.entries[kind.index()].get_key_value(name);
        let name = match held.map(|(name, entry)| (name.clone(), entry.users.ids().binary_search(&by).is_ok())) {
            Some((name, true)) => name,
            held => {
                let name = held.map_or_else(|| name.into(), |(name, _)| name);
                self.subscribe(by, &Key { kind, name: name.clone() });
                name
            }
        };
        let known = self.known(kind, &name);
        (name, known)
    }

    fn subscribe(&mut self, by: SubscriptionId, key: &Key) {
        let unfit = match name::kind(&key.name) {
            Some(kind) if !key.kind.is_named(&kind) => Some(format!("its name is that of a resource of type {kind}")),
            _ => None,
        };
        let authority = self.authority_of(&key.name).filter(|_| unfit.is_none());
        let active = authority.map(|index| self.authorities[usize::from(index)].active_server());
        let entries = &mut self.entries[key.kind.index()];
        match entries.get_mut(&key.name) {
            Some(entry) => {
                let wanted = entry.is_wanted();
                entry.users.insert(by);
                if wanted {
                    self.tell_late(key);
                    return;
                }
                self.retired.retain(|retired| retired != key);
                if entry.is_from(SAVED) {
                    self.restored.insert(key.clone());
                }
                // Nobody looked after it meanwhile.
                if let Some(active) = active.filter(|active| entry.giver().is_some_and(|giver| giver != *active)) {
                    entry.ask_anew(active);
                }
            }
            None => {
                let mut entry = Entry::new(authority.unwrap_or(u16::MAX));
                entry.users.insert(by);
                if authority.is_none() {
                    let reason = unfit.unwrap_or_else(|| "the bootstrap has no authority of that name".to_owned());
                    entry.missing(SAVED, Standing::DoesNotExist, reason, false, self.clock);
                } else if !active.is_some_and(|active| self.sessions[usize::from(active)].vouches())
                    && let Some(Record { version, body, giver, .. }) =
                        self.saved.as_ref().and_then(|saved| saved.get(key))
                {
                    // As from who gave it: some of it is kept as it came.
                    let servers = authority.map_or(&[][..], |index| self.authorities[usize::from(index)].servers());
                    let mut sessions = servers.iter().map(|server| &self.sessions[usize::from(*server)]);
                    let gave = sessions.find(|session| saved::mark(&session.server) == *giver);
                    let judged = gave.map(|session| session.features).unwrap_or_default();
                    match response::decoded(&self.codec, key.kind, &key.name, body, judged) {
                        Ok(value) => {
                            entry.restore(value, version.clone(), self.clock);
                            self.restored.insert(key.clone());
                        }
                        Err(reason) => {
                            tracing::warn!(kind = %key.kind, name = ?key.name, ?reason, "a resource of the snapshot is not used")
                        }
                    }
                }
                entries.insert(key.name.clone(), entry);
            }
        }
        if active.is_some_and(|active| self.sessions[usize::from(active)].vouches()) {
            self.unasked.remove(key);
        }
        let Some(authority) = authority.map(usize::from) else { return };
        self.authorities[authority].watched += 1;
        for server in self.authorities[authority].in_use() {
            self.sessions[usize::from(*server)].subscribe(key);
        }
        self.advance(authority);
        // A wish renewed before its end was told is not asked for anew, and its timer ended with it.
        let server = self.authorities[authority].active_server();
        if self.sessions[usize::from(server)].talk(key.kind).has_asked(&key.name) {
            self.start_timer(server, key.clone(), self.clock);
        }
        self.tell_late(key);
    }

    /// Who comes late to a resource whose last good value stays in use gets that value, and hears what those who were there
    /// before have heard: why it is not what the control plane says, or that nobody can be asked (gRFC A57, A88). The log is
    /// everybody's: it is told there for the first of them, once for each resource that something is wrong with, and once
    /// for an outage.
    fn tell_late(&mut self, key: &Key) {
        if !matches!(self.known(key.kind, &key.name), Known::Value(..)) {
            return;
        }
        let Some(entry) = self.entries[key.kind.index()].get_mut(&key.name) else { return };
        let reason = match (&mut entry.failure, self.authorities.get(usize::from(entry.authority))) {
            (Some(failure), _) => failure.tell(),
            (None, Some(authority)) => self.sessions[usize::from(authority.active_server())].tell(),
            (None, None) => None,
        };
        if let Some(reason) = reason {
            tracing::warn!(kind = %key.kind, name = ?key.name, ?reason, "a new reader gets the last good one, as others do");
        }
    }

    /// A subscription no longer wants a resource.
    pub(crate) fn release(&mut self, by: SubscriptionId, key: &Key) {
        let entry = self.entries[key.kind.index()].get_mut(&key.name).filter(|entry| entry.is_wanted());
        let Some(entry) = entry else { return };
        entry.users.remove(by);
        if entry.is_wanted() {
            return;
        }
        entry.timer = 0;
        let Some(authority) = self.authorities.get_mut(usize::from(entry.authority)) else {
            self.forget(key);
            return;
        };
        let index = usize::from(entry.authority);
        authority.watched -= 1;
        let mut told = false;
        for server in authority.in_use() {
            told |= self.sessions[usize::from(*server)].unsubscribe(key);
        }
        // Kept until every control plane is told: one that has not heard of the end does not answer a renewed wish, and
        // whose word counts may be another by then.
        if !told {
            self.let_go(key, self.is_spoken_for(key));
        }
        self.rest(index);
    }

    /// The subscriptions that use a resource, sorted.
    pub(crate) fn users(&self, key: &Key) -> &[SubscriptionId] {
        self.entries[key.kind.index()].get(&key.name).map_or(&[], |entry| entry.users.ids())
    }

    /// Everything that a subscription uses. Looks at all there is.
    pub(crate) fn wanted_by(&self, by: SubscriptionId) -> Vec<Key> {
        let its = self.entries().filter(|(.., entry)| entry.users.ids().binary_search(&by).is_ok());
        its.map(|(kind, name, _)| Key::new(kind, name.clone())).collect()
    }

    /// What is known of a resource.
    pub(crate) fn known(&self, kind: Kind, name: &str) -> Known<'_, C::Value> {
        let entry = self.entries[kind.index()].get(name).filter(|entry| entry.is_wanted());
        let Some(entry) = entry else { return Known::Pending };
        let authority = self.authorities.get(usize::from(entry.authority));
        let active = authority.map_or(SAVED, Authority::active_server);
        let origin = |server| Origin { authority: entry.authority, server };
        match (&entry.good, &entry.failure) {
            (Some(good), Some(failure)) if good.server != active => {
                Known::Lost(&failure.reason, Loss::Former(origin(active)))
            }
            (Some(good), _) => Known::Value(&good.value, origin(good.server)),
            (None, Some(failure)) if entry.standing == Standing::TimedOut => {
                Known::Lost(&failure.reason, Loss::Late(origin(active)))
            }
            (None, Some(failure)) => Known::Missing(&failure.reason, origin(active)),
            (None, None) => match authority.and_then(|authority| authority.unreachable.as_deref()) {
                Some(reason) => Known::Lost(reason, Loss::Unreachable(entry.authority)),
                None => Known::Pending,
            },
        }
    }

    /// The whole state of a resource, for reports.
    pub(crate) fn entry(&self, key: &Key) -> Option<&Entry<C::Value>> {
        self.entries[key.kind.index()].get(&key.name).filter(|entry| entry.is_wanted())
    }

    /// Every subscribed resource, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Kind, &Name, &Entry<C::Value>)> {
        Kind::ALL.into_iter().flat_map(|kind| {
            let wanted = self.entries[kind.index()].iter().filter(|(_, entry)| entry.is_wanted());
            wanted.map(move |(name, entry)| (kind, name, entry))
        })
    }

    /// How much is held that nobody wants.
    #[cfg(test)]
    pub(crate) fn unwanted(&self) -> usize {
        self.entries.iter().flat_map(HashMap::values).filter(|entry| !entry.is_wanted()).count()
    }

    /// The control planes, by [`ServerId`].
    pub(crate) fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// The control plane in use for names without an authority.
    pub(crate) fn active(&self) -> &Session {
        &self.sessions[usize::from(self.authorities[0].active_server())]
    }

    /// Whether what is held is as new as now: something is wanted, and every control plane whose word counts for it
    /// has answered on the stream that is open, or is rightly silent.
    pub(crate) fn is_confirmed(&self) -> bool {
        let mut wanted = self.authorities.iter().filter(|authority| authority.watched > 0).peekable();
        wanted.peek().is_some()
            && wanted.all(|authority| self.sessions[usize::from(authority.active_server())].vouches())
    }

    /// Whether some control plane whose word counts for something wanted vouches for it.
    pub(crate) fn is_confirmed_in_part(&self) -> bool {
        let mut wanted = self.authorities.iter().filter(|authority| authority.watched > 0);
        wanted.any(|authority| self.sessions[usize::from(authority.active_server())].vouches())
    }

    /// Until when something holds that came with a resource, and holds `max_age` once the control plane that gave it does
    /// not vouch for it.
    pub(crate) fn hold(&self, key: &Key, max_age: Duration) -> Hold {
        let good = self.entries[key.kind.index()].get(&key.name).and_then(|entry| entry.good.as_ref());
        let since = match good.map(|good| good.server) {
            // What of it was kept was too old.
            Some(SAVED) => self.saved.as_ref().and_then(|saved| saved.get(key)).and_then(|record| record.since),
            Some(giver) => match self.sessions[usize::from(giver)].unconfirmed_since {
                None => return Hold::Confirmed,
                since => since,
            },
            None => None,
        };
        match since.map(|since| since.checked_add(max_age)) {
            Some(Some(end)) if end <= self.clock => Hold::Over,
            Some(Some(end)) => Hold::Until(end),
            // Beyond what the clock can tell is for ever.
            Some(None) => Hold::Confirmed,
            None => Hold::Over,
        }
    }

    /// It is so late now: what nothing has happened to is older, too.
    pub(crate) fn pass(&mut self, now: Instant) {
        self.clock = now;
    }

    /// Resources whose readers see something new since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.changed)
    }

    /// Whether there is to be a connection to a control plane.
    pub(crate) fn wants(&self, server: ServerId) -> bool {
        // The first of all is connected to at once, so that a first request need not wait for it.
        let needed = |(index, authority): (usize, &Authority)| {
            (index == 0 || authority.watched > 0) && authority.in_use().contains(&server)
        };
        self.authorities.iter().enumerate().any(needed)
    }

    /// What the next stream to a control plane is to speak.
    pub(crate) fn variant(&mut self, server: ServerId, now: Instant) -> Variant {
        self.sessions[usize::from(server)].next_variant(now)
    }

    /// A stream is open: everything is asked for anew, with the versions we hold.
    pub(crate) fn opened(&mut self, server: ServerId, now: Instant) {
        self.clock = now;
        let from_scratch = self.authorities.iter().any(|authority| authority.is_waiting_for(server));
        self.sessions[usize::from(server)].opened(now.checked_add(self.resource_timeout), from_scratch);
        if !self.sessions[usize::from(server)].is_mute {
            self.reachable(server);
        }
    }

    /// An attempt to reach a control plane takes long: until it comes to something, the control plane counts as one that cannot
    /// be reached. What is `held_up` by this process itself would be so with another control plane as well.
    pub(crate) fn is_slow(&mut self, server: ServerId, held_up: bool, now: Instant) {
        self.clock = now;
        let session = &mut self.sessions[usize::from(server)];
        if session.failing.is_some() {
            return;
        }
        let why = if held_up { "this process has no certificate yet" } else { "there is no connection to it yet" };
        session.last_error = Some(why.to_owned());
        if held_up {
            self.held_up(server, why);
        } else {
            self.unreachable(server, StreamError::new(why));
        }
    }

    /// A stream is gone or could not be opened; everything known stays. Gives when to try again.
    pub(crate) fn closed(&mut self, server: ServerId, error: Option<StreamError>, now: Instant) -> Retry {
        self.clock = now;
        let was_open = self.sessions[usize::from(server)].connected;
        // What ends in order and owes nothing has been silent rightly, for a shorter time than that takes to be understood. What
        // owed something for so long that it was given up has not.
        let gave_up = self.sessions[usize::from(server)].has_given_up();
        let in_order = error.is_none() && !gave_up && self.owed(server).is_none();
        let good = self.disconnected(server, error.is_some());
        let session = &mut self.sessions[usize::from(server)];
        session.last_error = error.as_ref().map(StreamError::to_string).or_else(|| session.last_error.take());
        if good {
            return Retry::Soon;
        }
        // Before a first response, even an orderly end is a failure (gRFC A57).
        let error = error.unwrap_or_else(|| StreamError::new("the control plane closed the stream without an answer"));
        if session.falls_back_to_world(&error, now) {
            tracing::info!(server = %session.server, "the control plane has no delta xDS; the state of the world is used");
            // It has spoken.
            session.failing = None;
            return Retry::AtOnce;
        }
        session.is_mute |= was_open && !in_order;
        session.last_error = Some(error.to_string());
        self.unreachable(server, error);
        Retry::Later
    }

    /// A control plane speaks again, or its stream is gone: what was concluded from nothing but its silence is open again.
    /// All of it if the connection `broke`, for it may have hung; otherwise what stayed in use against that silence and
    /// would not have against its word, which has to be waited for once more.
    fn doubt_silence(&mut self, server: ServerId, silent: Vec<Key>, broke: bool) {
        let strict = self.sessions[usize::from(server)].features.fail_on_data_errors;
        for key in silent {
            let Some(entry) = self.entries[key.kind.index()].get_mut(&key.name) else { continue };
            let concluded = matches!(entry.standing, Standing::DoesNotExist | Standing::TimedOut);
            let stayed = entry.is_from(SAVED) || strict && entry.good.is_some() && !entry.is_from(server);
            let open = concluded && (broke || stayed) && is_active(&self.authorities, entry, server);
            if open && entry.ask_anew(server) {
                self.changed.push(key.clone());
                if self.sessions[usize::from(server)].talk(key.kind).has_asked(&key.name) {
                    self.start_timer(server, key, self.clock);
                }
            }
        }
    }

    /// Control planes that have been given up since the last call: their streams are to be closed, and opened anew in a
    /// while.
    pub(crate) fn take_given_up(&mut self) -> Vec<ServerId> {
        std::mem::take(&mut self.given_up)
    }

    /// The connection to a control plane that is not wanted any more is given up; gives whether its stream was good: answered,
    /// or rightly without an answer.
    pub(crate) fn released(&mut self, server: ServerId) -> bool {
        let good = self.disconnected(server, false);
        let session = &mut self.sessions[usize::from(server)];
        // Where the last attempt failed and the next one is not yet due, whoever comes meanwhile hears of it; also after a
        // further attempt that nobody waited for.
        session.past_failure = session.failing.take().or(session.past_failure.take());
        session.last_error = None;
        good
    }

    /// A control plane that could not be reached is wanted again before it is to be tried again.
    pub(crate) fn still_away(&mut self, server: ServerId, now: Instant) {
        self.clock = now;
        if let Some(error) = self.sessions[usize::from(server)].past_failure.take() {
            self.sessions[usize::from(server)].last_error = Some(error.to_string());
            self.unreachable(server, error);
        }
    }

    /// Whether there is something to send on the open stream.
    pub(crate) fn has_request(&self, server: ServerId) -> bool {
        self.sessions[usize::from(server)].has_request()
    }

    /// Whether the next response may be read: not while many answers wait for being written.
    pub(crate) fn may_read(&self, server: ServerId) -> bool {
        self.sessions[usize::from(server)].unanswered() < 256
    }

    /// The next request, which is written now: the timers of its new names begin (gRFC A57).
    pub(crate) fn take_request(&mut self, server: ServerId, now: Instant) -> Option<Request> {
        self.clock = now;
        let session = &mut self.sessions[usize::from(server)];
        let next = session.take_request(&self.entries, &self.node)?;
        if next.request.node.is_some() {
            session.is_asked(now, now.checked_add(self.resource_timeout));
        }
        for name in next.asked {
            self.start_timer(server, Key { kind: next.kind, name }, now);
        }
        for name in next.let_go {
            let key = Key { kind: next.kind, name };
            if !self.is_untold(&key) {
                let speaks = self.sessions[usize::from(server)].is_good() || self.is_spoken_for(&key);
                self.let_go(&key, speaks);
            }
        }
        Some(next.request)
    }

    /// Times out resources that stayed away.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.clock = now;
        self.unasked.expire(now);
        if self.saved_until.is_some_and(|end| end <= now) {
            let mut saved = self.saved.take().unwrap_or_default();
            saved.retain(|_, record| record.until.is_none_or(|end| end > now));
            self.keep(saved);
        }
        for server in 0..self.sessions.len() {
            // First, for what is overdue is still owed.
            if self.sessions[server].probation.is_some_and(|end| end <= now) {
                self.probated(server as ServerId);
            }
            while let Some(at) = self.first_timer(server).filter(|at| *at <= now) {
                let Some(key) = self.sessions[server].pop_timer() else { break };
                self.expired(server as ServerId, &key, at, now);
            }
        }
        self.end_due(now);
        self.let_saved_go();
    }

    /// When [`Ads::expire`] has something to do.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        let servers = 0..self.sessions.len();
        let of_servers = servers.flat_map(|server| [self.first_timer(server), self.sessions[server].probation]);
        of_servers.flatten().min().into_iter().chain(self.saved_until).chain(self.ends.first()).min()
    }

    /// A stream has been silent for as long as an answer may take. If none is owed, that is right and proper: a
    /// control plane says nothing to a client that holds everything it asks for in its latest version.
    fn probated(&mut self, server: ServerId) {
        let owed = self.owed(server);
        let session = &mut self.sessions[usize::from(server)];
        // What was asked for meanwhile has its own time.
        session.probation = owed.filter(|due| *due > self.clock);
        if owed.is_none() {
            session.is_quiet = true;
            session.is_well();
            self.come_back_to(server);
            self.saved_is_due = true;
            self.purge(server);
            self.reachable(server);
        } else if session.probation.is_none() {
            self.advance_all(server);
        }
    }

    /// When an answer of a control plane is due, if one is: now to what has yet to be asked, and where it was asked as if
    /// nothing were held, to everything that there may be; to what is waited for, at the end of its time.
    fn owed(&mut self, server: ServerId) -> Option<Instant> {
        let session = &self.sessions[usize::from(server)];
        let may_be = |kind: Kind, name| {
            self.entries[kind.index()].get(name).is_some_and(|entry| entry.standing != Standing::DoesNotExist)
        };
        let all_of = |kind: Kind| session.from_scratch || session.claims_nothing(kind);
        let owes_all = |kind: Kind| all_of(kind) && session.talk(kind).asked().any(|name| may_be(kind, name));
        if self.has_request(server) || Kind::ALL.into_iter().any(owes_all) {
            return Some(self.clock);
        }
        self.first_timer(usize::from(server))
    }

    fn first_timer(&mut self, server: usize) -> Option<Instant> {
        let entries = &self.entries;
        self.sessions[server].first_timer(|key, number| {
            entries[key.kind.index()].get(&key.name).is_some_and(|entry| entry.timer == number)
        })
    }

    fn start_timer(&mut self, server: ServerId, key: Key, now: Instant) {
        let at = now.checked_add(self.patience(server));
        let Some(entry) = self.entries[key.kind.index()].get_mut(&key.name) else { return };
        if !entry.is_wanted() || !entry.is_awaited(server) || !is_active(&self.authorities, entry, server) {
            return;
        }
        // Beyond what the clock can tell is for ever.
        let Some(at) = at else { return };
        let session = &mut self.sessions[usize::from(server)];
        // Of timers so old that their number comes again there are none.
        self.last_timer = self.last_timer.wrapping_add(1).max(1);
        entry.timer = self.last_timer;
        session.start_timer(at, self.last_timer, key);
    }

    /// How long a resource of a control plane may stay away.
    fn patience(&self, server: ServerId) -> Duration {
        match self.sessions[usize::from(server)].features.resource_timer_is_transient_error {
            true => self.transient_timeout,
            false => self.resource_timeout,
        }
    }

    /// A resource that was to be there `at` that time is not.
    fn expired(&mut self, server: ServerId, key: &Key, at: Instant, now: Instant) {
        let Some(entry) = self.entries[key.kind.index()].get(&key.name) else { return };
        let authority = usize::from(entry.authority);
        let spoke = self.sessions[usize::from(server)].is_good();
        if !spoke && self.has_another(authority) && self.needs_another(authority) {
            // A control plane takes streams and says nothing: the next one is tried, beyond gRFC A71.
            return self.unreachable(server, StreamError::new("it took the stream and has not answered"));
        }
        let waited = self.patience(server);
        let session = &mut self.sessions[usize::from(server)];
        let asked = at.checked_sub(waited);
        let silent = session.gives_up(key, asked);
        let transient = session.features.resource_timer_is_transient_error;
        let strict = session.features.fail_on_data_errors;
        let Some(entry) = self.entries[key.kind.index()].get_mut(&key.name) else { return };
        let standing = if transient { Standing::TimedOut } else { Standing::DoesNotExist };
        let reason = format!("the control plane did not send it within {waited:?}");
        tracing::warn!(kind = %key.kind, name = ?key.name, server = %session.server, ?waited, "a resource did not come");
        let listed = session.has_listed(key.kind, asked);
        // What a snapshot on disk says is no longer true, if this control plane speaks at all. What one that stood in for it
        // gave is deleted, and stays in use like what is deleted otherwise; so is what a better one gave, if this one has
        // listed all it has since it was asked (gRFC A71, A88). One that would rather be slow than wrong ends by its lists alone what
        // an earlier run was given.
        let ends = |by| match transient {
            true => by == SAVED && listed,
            false => by == SAVED || strict && (listed || self.authorities[authority].prefers(server, by)),
        };
        let drop_good = !silent && entry.good.as_ref().is_some_and(|good| ends(good.server));
        let seen = match listed {
            true => entry.missing(server, standing, reason, drop_good, now),
            false => entry.missing_unsaid(server, standing, reason, drop_good, now),
        };
        if seen {
            self.changed.push(key.clone());
        }
        if drop_good && let Some(saved) = &mut self.saved {
            saved.remove(key);
        }
    }

    /// Ends the conversation, whose connection may have broken; gives whether it was good: answered, or rightly without an
    /// answer.
    fn disconnected(&mut self, server: ServerId, broke: bool) -> bool {
        let session = &mut self.sessions[usize::from(server)];
        let untold: Vec<Key> = session.stale().collect();
        let good = session.is_good();
        let silent = session.closed(self.clock);
        self.doubt_silence(server, silent, broke);
        for key in untold {
            if !self.is_untold(&key) {
                self.let_go(&key, self.is_spoken_for(&key));
            }
        }
        good
    }

    /// Whether a control plane has yet to be told that a resource is wanted no longer: one that is in use, or whose stream goes
    /// on for another authority.
    fn is_untold(&self, key: &Key) -> bool {
        let authority = self.authority_of(&key.name).map(|index| &self.authorities[usize::from(index)]);
        let servers = authority.map_or(&[][..], Authority::servers);
        servers.iter().any(|server| self.sessions[usize::from(*server)].talk(key.kind).is_untold(&key.name))
    }

    /// Whether there is a control plane whose word counts for a resource, and which speaks: one that takes streams and says
    /// nothing is no better than none.
    fn is_spoken_for(&self, key: &Key) -> bool {
        let authority = self.authority_of(&key.name).map(|index| &self.authorities[usize::from(index)]);
        authority.is_none_or(|authority| self.sessions[usize::from(authority.active_server())].is_good())
    }

    /// Forgets what nobody wants any more, if a control plane `speaks`, of which it can be had again. In an outage somebody may
    /// want it before.
    fn let_go(&mut self, key: &Key, speaks: bool) {
        let entry = self.entries[key.kind.index()].get(&key.name).filter(|entry| !entry.is_wanted());
        let Some(entry) = entry else { return };
        if speaks || entry.good.is_none() {
            self.forget(key);
            return;
        }
        // One that was let go of in an outage is asked of whoever comes next, who may be left before it answers, with its stream
        // going on for another authority.
        if self.retired.contains(key) {
            return;
        }
        self.retired.push_back(key.clone());
        if self.retired.len() > MAX_RETIRED
            && let Some(oldest) = self.retired.pop_front()
        {
            self.forget(&oldest);
        }
    }

    /// Forgets what nobody wants and nobody need be told of, and what an earlier run held of what is asked for: the word of this
    /// control plane counts now.
    fn purge(&mut self, server: ServerId) {
        let Self { authorities, entries, unasked, .. } = self;
        unasked.retain(|key| {
            let entry = entries[key.kind.index()].get(&key.name).filter(|entry| entry.is_wanted());
            !entry.is_some_and(|entry| is_active(authorities, entry, server))
        });
        let mut gone = Vec::new();
        self.retired.retain(|key| {
            let entry = entries[key.kind.index()].get(&key.name).filter(|entry| !entry.is_wanted());
            let Some(entry) = entry else { return false };
            let goes = is_active(authorities, entry, server);
            if goes {
                gone.push(key.clone());
            }
            !goes
        });
        gone.iter().for_each(|key| self.forget(key));
    }

    fn forget(&mut self, key: &Key) {
        let entries = &mut self.entries[key.kind.index()];
        if entries.get(&key.name).is_some_and(|entry| !entry.is_wanted()) {
            entries.remove(&key.name);
            self.ends.forget(key);
            self.sessions.iter_mut().for_each(|session| session.forgets(key));
        }
    }
}

/// Whether `server`'s word counts for a resource.
fn is_active<V>(authorities: &[Authority], entry: &Entry<V>, server: ServerId) -> bool {
    authorities.get(usize::from(entry.authority)).is_some_and(|authority| authority.active_server() == server)
}
