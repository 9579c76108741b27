//! [`Registry`]: the announced endpoints, who holds each, and until when a lost one stays.
//!
//! ```text
//! announce → held ─ withdraw ──────────────────→ gone
//!             ↑  └ stream lost → kept for a while ─ expired → gone
//!             └──────── announce ──────┘
//! ```
//!
//! An endpoint belongs to the identity that announced it until it is gone: only that identity can
//! replace it, and only the stream that holds it can withdraw it. Whoever has a service account in a
//! namespace may serve any service of that namespace, as a pod with the right labels may in Kubernetes;
//! nobody may serve another namespace's. An address at which one identity serves is another's only if that one is
//! connected from there: a process on the same host, or the one whom somebody else was before. What is announced at an
//! address decides nothing about the policy of who else is there.
//!
//! Time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::limit::Pace;
use mesh_core::source::{Publisher, Watched};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Key, Registration, Registrations, table_of};

/// Endpoints of all processes together, and bytes of their texts.
pub(super) const MAX_ENDPOINTS: usize = 100_000;
pub(super) const MAX_BYTES: usize = 256 << 20;

/// Bounds on what may be announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Endpoints of all processes together.
    pub(crate) endpoints: usize,
    /// Endpoints of one identity.
    pub(crate) endpoints_of_one: usize,
    /// Bytes of the texts of all endpoints together.
    pub(crate) bytes: usize,
    /// The same of one identity: 1,000 endpoints may have 32 KiB each, 10,000 a tenth of that.
    pub(crate) bytes_of_one: usize,
    /// Announcing streams of one identity.
    pub(crate) streams_of_one: usize,
    /// Changes that one identity may make at once, and then in each second. Announcing again what is
    /// known already is no change.
    pub(crate) changes: (u32, u32),
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            endpoints: MAX_ENDPOINTS,
            endpoints_of_one: 10_000,
            bytes: MAX_BYTES,
            bytes_of_one: 32 << 20,
            streams_of_one: 10_000,
            changes: (1_000, 100),
        }
    }
}

/// After a restart lost endpoints stay this many times the grace period: their processes come back
/// when their back-off (at most 30 s) lets them, not when a connection breaks.
const RESTART: u32 = 4;
/// The holder of what no process holds; streams count from 1.
const NOBODY: u64 = 0;
/// Identities without endpoints and streams are forgotten when there are this many.
const MAX_IDLE: usize = 10_000;

/// The announced endpoints.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    published: Publisher<Registrations>,
    /// Wakes the worker: an endpoint was lost.
    lost: Notify,
    /// Held while the table is written to disk, so that the newest one is there last.
    pub(super) saving: Mutex<()>,
    /// Counts the saves.
    saves: Mutex<u64>,
    /// The number of the last one that is at its end.
    saved: watch::Sender<u64>,
    grace: Duration,
    bounds: Bounds,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    /// The same by address.
    at: BTreeSet<(SocketAddr, Key)>,
    table: Registrations,
    /// What each open stream announced.
    streams: HashMap<u64, Stream>,
    /// When lost endpoints go.
    lost: BTreeSet<(Instant, Key)>,
    /// Of the texts of all endpoints.
    bytes: usize,
    identities: HashMap<Owner, Identity>,
    last_stream: u64,
}

/// Namespace and service account.
type Owner = (String, String);

#[derive(Debug)]
struct Stream {
    owner: Owner,
    /// From where it is connected.
    from: IpAddr,
    key: Option<Key>,
}

#[derive(Debug)]
struct Identity {
    endpoints: usize,
    bytes: usize,
    streams: usize,
    pace: Pace,
}

#[derive(Debug)]
struct Entry {
    registration: Arc<Registration>,
    holder: Holder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Stream(u64),
    Lost { until: Instant },
}

/// Why an endpoint is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAnnounced {
    /// There is no room for more.
    #[error("{limit} endpoints are announced already; raise the limit or withdraw some")]
    Full { limit: usize },
    /// This identity has too many.
    #[error("{owner} has announced {limit} endpoints already; give some of the processes another service account")]
    TooMany { owner: String, limit: usize },
    /// The table takes too much memory.
    #[error(
        "{limit} bytes of endpoints are announced already; raise the limit, withdraw some, or give them fewer labels"
    )]
    FullOfBytes { limit: usize },
    /// This identity takes too much memory.
    #[error("{owner} has announced {limit} bytes of endpoints already; give them fewer and shorter labels")]
    TooManyBytes { owner: String, limit: usize },
    /// This identity has too many streams.
    #[error("{owner} has {limit} announcing streams already; close some")]
    TooManyStreams { owner: String, limit: usize },
    /// This identity changes too much.
    #[error("{owner} changes its endpoints more than {rate} times a second; announce again in a moment")]
    TooFast { owner: String, rate: u32 },
    /// Another workload serves there.
    #[error(
        "{address} is announced by the {holder}; it is free once that process has withdrawn it or is gone for good"
    )]
    Taken { address: SocketAddr, holder: String },
}

impl Registry {
    /// Begins with the endpoints known before a restart; each has a while to be announced again.
    pub(crate) fn new(known: Vec<Registration>, grace: Duration, now: Instant) -> Self {
        Self::bounded(known, grace, now, Bounds::default())
    }

    pub(crate) fn bounded(known: Vec<Registration>, grace: Duration, now: Instant, bounds: Bounds) -> Self {
        let mut inner = Inner { table: table_of(&known), ..Inner::default() };
        let until = now + RESTART * grace;
        let known: Vec<_> = inner.table.iter().map(|(key, known)| (key.clone(), known.clone())).collect();
        for (key, registration) in known {
            inner.own(&registration, &bounds, now);
            inner.lost.insert((until, key.clone()));
            inner.insert(key, Entry { registration, holder: Holder::Lost { until } });
        }
        let (published, _) = Watched::channel(inner.table.clone());
        let (inner, saving, saves) = (Mutex::new(inner), Mutex::new(()), Mutex::default());
        Self { inner, published, lost: Notify::new(), saving, saves, saved: watch::Sender::new(0), grace, bounds }
    }

    /// Goes on counting saves from there.
    pub(crate) fn after_saves(self, saves: u64) -> Self {
        Self { saves: Mutex::new(saves), ..self }
    }

    /// What a save has to hold, and its number: the higher one holds the newer.
    pub(super) fn to_save(&self) -> (u64, Arc<Registrations>) {
        let mut saves = self.saves.lock();
        *saves = saves.saturating_add(1);
        (*saves, self.published.load_full())
    }

    /// The save of this number is at its end, well or not.
    pub(super) fn save_ended(&self, save: u64) {
        self.saved.send_modify(|last| *last = save.max(*last));
    }

    /// Waits for the end of that save or a later one.
    pub(crate) async fn saved(&self, save: u64) {
        self.saved.subscribe().wait_for(|last| *last >= save).await.expect("the sender is ours");
    }

    /// The endpoints, now and later.
    pub(crate) fn watch(&self) -> Watched<Registrations> {
        self.published.watch()
    }

    /// Opens an announcing stream of a service account that is connected from `from`.
    pub(crate) fn stream(
        &self,
        namespace: &str,
        account: &str,
        from: IpAddr,
        now: Instant,
    ) -> Result<u64, NotAnnounced> {
        let mut inner = self.inner.lock();
        let owner = (namespace.to_owned(), account.to_owned());
        let identity = inner.identity(&owner, &self.bounds, now);
        let limit = self.bounds.streams_of_one;
        if identity.streams >= limit {
            return Err(NotAnnounced::TooManyStreams { owner: spoken(&owner), limit });
        }
        identity.streams += 1;
        inner.last_stream += 1;
        let id = inner.last_stream;
        inner.streams.insert(id, Stream { owner, from: from.to_canonical(), key: None });
        Ok(id)
    }

    /// Takes an endpoint in for `stream`, which then holds this one alone. An endpoint that is known
    /// already, lost or held, passes to the stream without going away in between, if it is the same
    /// service account's.
    pub(crate) fn announce(&self, stream: u64, registration: Registration, now: Instant) -> Result<(), NotAnnounced> {
        let mut inner = self.inner.lock();
        let key = Key::of(&registration);
        let owner = owner(&registration);
        let before = inner.streams.get(&stream).and_then(|stream| stream.key.clone());
        inner.admit_to(stream, &owner, &key)?;
        self.admit(&mut inner, &owner, &key, before.as_ref(), &registration, now)?;
        if let Some(before) = before.filter(|before| *before != key) {
            inner.take_out(&before);
        }
        inner.put_in(stream, key, registration, &self.bounds, now);
        self.publish(&inner);
        Ok(())
    }

    fn admit(
        &self,
        inner: &mut Inner,
        owner: &Owner,
        key: &Key,
        before: Option<&Key>,
        registration: &Registration,
        now: Instant,
    ) -> Result<(), NotAnnounced> {
        let Bounds { endpoints, endpoints_of_one, bytes, bytes_of_one, changes, .. } = self.bounds;
        let known = inner.entries.get(key);
        if known.is_some_and(|known| *known.registration == *registration) {
            return Ok(());
        }
        let more = known.is_none() && before.is_none();
        // What it replaces makes room, and so does what its stream gives up for it.
        let given_up = before.filter(|before| *before != key).and_then(|before| inner.entries.get(before));
        let freed: usize = known.into_iter().chain(given_up).map(|entry| entry.registration.text_len()).sum();
        let added = registration.text_len().saturating_sub(freed);
        if added > 0 && inner.bytes + added > bytes {
            return Err(NotAnnounced::FullOfBytes { limit: bytes });
        }
        if more && inner.entries.len() >= endpoints {
            return Err(NotAnnounced::Full { limit: endpoints });
        }
        let identity = inner.identity(owner, &self.bounds, now);
        if more && identity.endpoints >= endpoints_of_one {
            return Err(NotAnnounced::TooMany { owner: spoken(owner), limit: endpoints_of_one });
        }
        if added > 0 && identity.bytes + added > bytes_of_one {
            return Err(NotAnnounced::TooManyBytes { owner: spoken(owner), limit: bytes_of_one });
        }
        if identity.pace.next() > now {
            return Err(NotAnnounced::TooFast { owner: spoken(owner), rate: changes.1 });
        }
        identity.pace.take(now);
        Ok(())
    }

    /// Takes endpoints in that no process holds: they stay until they are held again with other words or
    /// let go.
    pub(crate) fn hold(&self, registrations: Vec<Registration>, now: Instant) {
        let mut inner = self.inner.lock();
        for registration in registrations {
            inner.put_in(NOBODY, Key::of(&registration), registration, &self.bounds, now);
        }
        self.publish(&inner);
    }

    /// Takes out endpoints that no process holds.
    pub(crate) fn let_go(&self, registrations: &[Registration]) {
        let mut inner = self.inner.lock();
        registrations.iter().for_each(|registration| inner.take_out(&Key::of(registration)));
        self.publish(&inner);
    }

    /// Takes the stream's endpoint out at once. If there was one, gives the number of the save that lacks it for certain.
    pub(crate) fn withdraw(&self, stream: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        let key = inner.streams.get_mut(&stream).and_then(|stream| stream.key.take())?;
        inner.take_out(&key);
        self.publish(&inner);
        // Those that have begun may have looked before.
        Some(self.saves.lock().saturating_add(1))
    }

    /// The stream ended: an endpoint that it has not withdrawn stays for the grace period.
    pub(crate) fn lose(&self, stream: u64, now: Instant) {
        let until = now + self.grace;
        let mut inner = self.inner.lock();
        let Some(Stream { owner, key, .. }) = inner.streams.remove(&stream) else { return };
        if let Some(identity) = inner.identities.get_mut(&owner) {
            identity.streams -= 1;
        }
        let Some(key) = key else { return };
        if let Some(entry) = inner.entries.get_mut(&key) {
            entry.holder = Holder::Lost { until };
            inner.lost.insert((until, key));
            self.lost.notify_one();
        }
    }

    /// Takes out what was lost too long ago; gives when to look again.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let mut some = false;
        while let Some((until, key)) = inner.lost.first().cloned() {
            if until > now {
                break;
            }
            tracing::info!(
                service = ?key.service, namespace = ?key.namespace, address = %key.address,
                "an endpoint's process is gone; it is taken out"
            );
            inner.take_out(&key);
            some = true;
        }
        if some {
            self.publish(&inner);
        }
        inner.lost.first().map(|(until, _)| *until)
    }

    /// Waits until an endpoint was lost since the last wait.
    pub(crate) async fn something_lost(&self) {
        self.lost.notified().await;
    }

    /// Under the lock, so that publications come in the order of changes.
    fn publish(&self, inner: &Inner) {
        let before = self.published.load_full();
        if !inner.table.differing(&before, Arc::ptr_eq).is_empty() {
            self.published.publish(inner.table.clone());
        }
    }
}

impl Inner {
    fn identity(&mut self, owner: &Owner, bounds: &Bounds, now: Instant) -> &mut Identity {
        if self.identities.len() >= MAX_IDLE && !self.identities.contains_key(owner) {
            self.identities.retain(|_, known| known.endpoints + known.streams > 0);
        }
        let new = || Identity { endpoints: 0, bytes: 0, streams: 0, pace: Pace::new(bounds.changes, now) };
        self.identities.entry(owner.clone()).or_insert_with(new)
    }

    /// Whether the address of a new endpoint is free for a stream.
    fn admit_to(&self, stream: u64, of: &Owner, key: &Key) -> Result<(), NotAnnounced> {
        let address = key.address;
        let taken = |by: Owner| Err(NotAnnounced::Taken { address, holder: spoken(&by) });
        if let Some(known) = self.entries.get(key) {
            let by = owner(&known.registration);
            return if by == *of { Ok(()) } else { taken(by) };
        }
        let first = Key { namespace: String::new(), service: String::new(), service_port: 0, address };
        let there = self.at.range((address, first)..).take_while(|(at, _)| *at == address);
        let Some(by) = there.map(|(_, key)| owner(&self.entries[key].registration)).find(|by| by != of) else {
            return Ok(());
        };
        // Whose address it is only the network can say, and behind address translation not even that: who comes from there
        // must not be kept out by somebody who was quicker. Loopback is this host, with many processes at one address.
        let from = self.streams.get(&stream).map(|stream| stream.from);
        if from.is_none_or(|from| from != address.ip() && !from.is_loopback()) {
            return taken(by);
        }
        tracing::warn!(
            %address, by = spoken(of), beside = spoken(&by),
            "an address is announced by two workloads; each has the policies of what it announced itself"
        );
        Ok(())
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.at.insert((key.address, key.clone()));
        self.entries.insert(key, entry);
    }

    fn put_in(&mut self, stream: u64, key: Key, registration: Registration, bounds: &Bounds, now: Instant) {
        let mut registration = Arc::new(registration);
        match self.entries.get(&key).map(|known| (known.holder, known.registration.clone())) {
            Some((holder, known)) => {
                match holder {
                    Holder::Lost { until } => _ = self.lost.remove(&(until, key.clone())),
                    // What is left of the other stream is no longer about this endpoint.
                    Holder::Stream(other) if other != stream => {
                        if let Some(other) = self.streams.get_mut(&other) {
                            other.key = None;
                        }
                    }
                    Holder::Stream(_) => {}
                }
                if known == registration {
                    registration = known;
                } else {
                    // Of other size, and what no process holds may be said to be another account's.
                    self.disown(&known);
                    self.own(&registration, bounds, now);
                }
            }
            None => self.own(&registration, bounds, now),
        }
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.key = Some(key.clone());
        }
        self.table.insert(key.clone(), registration.clone());
        self.insert(key, Entry { registration, holder: Holder::Stream(stream) });
    }

    fn take_out(&mut self, key: &Key) {
        let Some(Entry { registration, holder }) = self.entries.remove(key) else { return };
        self.at.remove(&(key.address, key.clone()));
        if let Holder::Lost { until } = holder {
            self.lost.remove(&(until, key.clone()));
        }
        self.table.remove(key);
        self.disown(&registration);
    }

    /// An endpoint is its identity's.
    fn own(&mut self, registration: &Registration, bounds: &Bounds, now: Instant) {
        let bytes = registration.text_len();
        self.bytes += bytes;
        let identity = self.identity(&owner(registration), bounds, now);
        identity.endpoints += 1;
        identity.bytes += bytes;
    }

    /// It is gone.
    fn disown(&mut self, registration: &Registration) {
        let bytes = registration.text_len();
        self.bytes -= bytes;
        if let Some(identity) = self.identities.get_mut(&owner(registration)) {
            identity.endpoints -= 1;
            identity.bytes -= bytes;
        }
    }
}

fn owner(registration: &Registration) -> Owner {
    (registration.namespace.clone(), registration.service_account.clone())
}

fn spoken((namespace, account): &Owner) -> String {
    format!("service account {account} of namespace {namespace}")
}

#[cfg(test)]
mod tests;
