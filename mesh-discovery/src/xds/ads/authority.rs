//! Which control plane's word counts: fallback and return (gRFC A71), by authority (gRFC A47).
//!
//! ```text
//! servers   0 ── 1 ── 2        in use: 0..=active; the last of them counts, the better ones are retried
//! active ───▶ moves right      when it cannot be reached and something wanted is not cached
//!        ◀─── moves left       with the first response of a better one; the worse are let go
//! ```
//! Each resource is its giver's until the one whose word counts has spoken of it. A better one, asked as if nothing were
//! held, that does not give it in time has deleted what a worse one gave: the last good stays, unless data errors cost it
//! (`fail_on_data_errors`). What a better one gave outlives the silence of a worse one in any case; that it does not exist,
//! said or left out of a list of everything, is a worse one's word, too, and costs the last good where data errors do.

use tokio::time::Instant;

use super::entry::ServerId;
use super::{Ads, Codec, Servers, Standing};
use crate::bootstrap::name;
use crate::xds::kind::Key;
use crate::xds::message::{Name, StreamError};

/// An ordered list of control planes.
pub(super) struct Authority {
    servers: Vec<ServerId>,
    /// Index of the one whose word counts.
    active: usize,
    on_reachability_only: bool,
    /// Resources wanted.
    pub(super) watched: usize,
    /// Whether any of them has ever answered.
    answered: bool,
    /// Why none of them can be reached.
    pub(super) unreachable: Option<Name>,
}

impl Authority {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers: servers.ordered,
            active: 0,
            on_reachability_only: servers.on_reachability_only,
            watched: 0,
            answered: false,
            unreachable: None,
        }
    }

    pub(super) fn active_server(&self) -> ServerId {
        self.servers[self.active]
    }

    /// Whether `server` comes before `other`.
    pub(super) fn prefers(&self, server: ServerId, other: ServerId) -> bool {
        let place = |of| self.servers.iter().position(|known| *known == of);
        place(server) < place(other)
    }

    /// Whether a control plane is tried in vain so far while a worse one's word counts.
    pub(super) fn is_waiting_for(&self, server: ServerId) -> bool {
        self.servers[..self.active].contains(&server)
    }

    /// All of them, the best first.
    pub(super) fn servers(&self) -> &[ServerId] {
        &self.servers
    }

    /// The one whose word counts, after the better ones that are tried meanwhile.
    pub(super) fn in_use(&self) -> &[ServerId] {
        &self.servers[..=self.active]
    }
}

impl<C: Codec> Ads<C> {
    /// Index of the authority that a name belongs to.
    pub(crate) fn authority_of(&self, name: &str) -> Option<u16> {
        match name::authority(name) {
            None => Some(0),
            Some(authority) => self.by_name.get(&*authority).copied(),
        }
    }

    /// A control plane cannot be reached.
    pub(super) fn unreachable(&mut self, server: ServerId, error: StreamError) {
        let session = &mut self.sessions[usize::from(server)];
        tracing::warn!(server = %session.server, %error, "no configuration from the control plane; what is known stays in use");
        session.failing = Some(error);
        self.advance_all(server);
    }

    /// Moves on from a control plane that cannot be reached, where its word counts; where it is waited for, readers may hear of
    /// it.
    pub(super) fn advance_all(&mut self, server: ServerId) {
        for authority in 0..self.authorities.len() {
            if self.authorities[authority].in_use().contains(&server) {
                self.advance(authority);
            }
        }
    }

    /// Nobody can be asked for now, for a reason that is ours: readers hear of it, and nobody falls back.
    pub(super) fn held_up(&mut self, server: ServerId, why: &str) {
        let text = format!("the control plane at {} cannot be asked: {why}", self.sessions[usize::from(server)].server);
        tracing::warn!(reason = %text, "no configuration yet");
        for index in 0..self.authorities.len() {
            if self.authorities[index].active_server() == server && self.needs_another(index) {
                self.tell(index, text.clone());
            }
        }
    }

    /// Tells readers that nobody can be asked.
    fn tell(&mut self, index: usize, text: String) {
        if self.authorities[index].unreachable.replace(text.into()).is_none() {
            self.uncached_changed(index);
        }
    }

    /// Whether there is a control plane to fall back to.
    pub(super) fn has_another(&self, index: usize) -> bool {
        let authority = &self.authorities[index];
        authority.active + 1 < authority.servers.len()
    }

    /// Moves an authority on as long as its control plane cannot be reached and that matters.
    pub(super) fn advance(&mut self, index: usize) {
        loop {
            let given_up = self.authorities[index].active_server();
            let session = &self.sessions[usize::from(given_up)];
            let Some(error) = session.unreachable() else { return };
            let text = format!("the control plane at {} cannot be reached: {error}", session.server);
            if !self.needs_another(index) {
                return;
            }
            if !self.has_another(index) {
                let is_open = |server: &ServerId| {
                    let session = &self.sessions[usize::from(*server)];
                    session.connected && session.unreachable().is_none()
                };
                // A better one is back, and asked.
                if self.authorities[index].in_use().iter().any(is_open) {
                    return;
                }
                // Only now do readers hear of it (gRFC A71).
                self.tell(index, text);
                return;
            }
            let authority = &mut self.authorities[index];
            authority.active += 1;
            let next = authority.active_server();
            tracing::warn!(server = %self.sessions[usize::from(next)].server, reason = %text, "falling back to the next control plane");
            let keys = self.keys_of(index);
            for key in &keys {
                self.sessions[usize::from(next)].subscribe(key);
            }
            self.ask_anew(index);
            self.wait_for_asked(next, keys);
            if self.sessions[usize::from(next)].is_good() {
                self.purge(next);
            }
            // What it was told we hold may soon be another's: it is to send everything when it is back.
            if self.sessions[usize::from(given_up)].connected {
                self.disconnected(given_up, false);
                self.given_up.push(given_up);
            }
        }
    }

    /// The first response of a stream: who was worse is let go.
    pub(super) fn heard(&mut self, server: ServerId, now: Instant) {
        let session = &mut self.sessions[usize::from(server)];
        session.is_well();
        let silent = session.hears(now);
        let answered = std::mem::replace(&mut session.answered, true);
        session.probation = None;
        self.doubt_silence(server, silent, false);
        if answered {
            return;
        }
        for authority in &mut self.authorities {
            authority.answered |= authority.in_use().contains(&server);
        }
        self.come_back_to(server);
        self.saved_is_due = true;
        self.purge(server);
        self.reachable(server);
    }

    /// A control plane has shown that it can be reached; where it is asked, what it has not sent is on its way.
    pub(super) fn reachable(&mut self, server: ServerId) {
        for index in 0..self.authorities.len() {
            let authority = &mut self.authorities[index];
            if authority.in_use().contains(&server) && authority.unreachable.take().is_some() {
                self.uncached_changed(index);
            }
        }
    }

    /// A control plane is there: its word counts again where a worse one's does.
    pub(super) fn come_back_to(&mut self, server: ServerId) {
        for index in 0..self.authorities.len() {
            let place = self.authorities[index].in_use().iter().position(|used| *used == server);
            if let Some(place) = place.filter(|place| *place < self.authorities[index].active) {
                self.come_back(index, place);
            }
        }
    }

    fn come_back(&mut self, index: usize, place: usize) {
        let authority = &mut self.authorities[index];
        let left: Vec<ServerId> = authority.in_use()[place + 1..].to_vec();
        authority.active = place;
        let server = authority.active_server();
        tracing::info!(server = %self.sessions[usize::from(server)].server, "back to a better control plane");
        let keys = self.keys_of(index);
        for worse in left {
            for key in &keys {
                self.sessions[usize::from(worse)].unsubscribe(key);
            }
        }
        self.ask_anew(index);
        self.wait_for_asked(server, keys);
    }

    /// Its word counts from now on: of what it has been asked for before, no request begins the timer.
    fn wait_for_asked(&mut self, server: ServerId, keys: Vec<Key>) {
        for key in keys {
            if self.sessions[usize::from(server)].talk(key.kind).has_asked(&key.name) {
                self.start_timer(server, key, self.clock);
            }
        }
    }

    /// Nothing of an authority is wanted any more: the next wish begins with its first control plane.
    pub(super) fn rest(&mut self, index: usize) {
        let authority = &mut self.authorities[index];
        // What is wanted of the others may be vouched for now.
        self.saved_is_due |= authority.watched == 0;
        if index > 0 && authority.watched == 0 {
            authority.active = 0;
            authority.unreachable = None;
        }
    }

    /// Whether something is wanted that only another control plane could give.
    pub(super) fn needs_another(&self, index: usize) -> bool {
        let authority = &self.authorities[index];
        // Before anything is wanted, a process that starts wants to be ready.
        if authority.on_reachability_only || (index == 0 && authority.watched == 0 && !authority.answered) {
            return true;
        }
        // A value that did not validate and word that there is none are answers, and what was answered is cached: another
        // control plane's answer is no better. So do gRPC's libraries, which look for what was asked for and not answered.
        let uncached = |entry: &super::Entry<_>| {
            !entry.is_cached() && matches!(entry.standing, Standing::Requested | Standing::TimedOut)
        };
        self.entries().any(|(_, _, entry)| usize::from(entry.authority) == index && uncached(entry))
    }

    fn keys_of(&self, index: usize) -> Vec<Key> {
        let ours = self.entries().filter(|(_, _, entry)| usize::from(entry.authority) == index);
        ours.map(|(kind, name, _)| Key::new(kind, name.clone())).collect()
    }

    /// Another control plane's word counts from now on: complaints of the former are void.
    fn ask_anew(&mut self, index: usize) {
        let server = self.authorities[index].active_server();
        for key in self.keys_of(index) {
            let entry = self.entries[key.kind.index()].get_mut(&key.name);
            if entry.is_some_and(|entry| entry.ask_anew(server)) {
                self.changed.push(key);
            }
        }
    }

    fn uncached_changed(&mut self, index: usize) {
        for key in self.keys_of(index) {
            if self.entries[key.kind.index()].get(&key.name).is_some_and(|entry| entry.good.is_none()) {
                self.changed.push(key);
            }
        }
    }
}
