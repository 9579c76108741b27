//! [`Cache`]: what all streams share. It holds the revision that is served and, of every resource that
//! somebody subscribes to, the bytes; a new revision looks again at those alone that it touches, and
//! tells the streams that subscribe to what became different.
//!
//! ```text
//! publish ─ touched subjects → entries → evaluated again ─ equal version → nothing
//!                                                        └ another ────→ due at its subscribers
//! ```
//!
//! Refuses to know the protocol: a stream has a [`Seat`] and finds there what is due.

mod seat;
mod views;

pub(crate) use self::seat::Seat;
use self::views::{Seen, Views};

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::account::{Account, Charge, ENTRY};
use super::encoded::{Encoded, Version};
use super::naming::Naming;
use super::{HOSTS, Kind, Resource, Resources, subject};
use crate::translate::NodeScope;

/// Which resources a revision may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Any of them.
    All,
    /// Those of these [`subject`]s.
    Subjects(HashSet<String>),
}

/// Of so many changes of what there is the state before is known still.
const FORMER: usize = 2;

/// The subject of what is looked at with every revision.
pub(super) const ALWAYS: &str = "*";

/// The revision served, and the bytes of what is subscribed to.
pub(crate) struct Cache {
    inner: Mutex<Inner>,
    /// Bytes by content: nodes of different scopes that see the same resource share them.
    contents: Mutex<Contents>,
    views: Views,
    evaluated: AtomicU64,
}

struct Inner {
    /// Counts the beginnings and ends of publications.
    turn: u64,
    version: Arc<str>,
    resources: Arc<dyn Resources>,
    /// What is published and not in place yet.
    coming: Option<Coming>,
    /// The first version with the names that there are now.
    since: Arc<str>,
    /// What was served before the last changes of what there is, newest first: who was away meanwhile has it still.
    former: VecDeque<Former>,
    scopes: HashMap<Arc<NodeScope>, ScopeUse>,
    entries: HashMap<Key, Entry>,
    subjects: HashMap<Box<str>, HashSet<Key>>,
    wildcards: HashMap<(u64, Kind), Wildcard>,
    last_scope: u64,
    last_seat: u64,
}

/// What was served with certain names, and the first version that had these; none of this run, if another one served it.
#[derive(Clone)]
struct Former {
    since: Option<Arc<str>>,
    resources: Arc<dyn Resources>,
}

/// A scope that streams have.
struct ScopeUse {
    id: u64,
    streams: usize,
    scoped: Arc<Scoped>,
    _charge: Charge,
}

/// A scope and who pays for what is kept for it: a scope is one identity's, for its account is a part of it.
struct Scoped {
    node: Arc<NodeScope>,
    account: Arc<Account>,
}

/// A resource as one scope sees it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    scope: u64,
    kind: Kind,
    name: Arc<str>,
}

struct Entry {
    scope: Arc<Scoped>,
    _charge: Charge,
    /// `None` = it does not exist.
    encoded: Option<Arc<Encoded>>,
    /// Streams that name it.
    named_by: Mailboxes,
    /// Whether the wildcard subscriptions of its scope cover it.
    covered: bool,
}

/// The wildcard subscriptions of one type in one scope.
struct Wildcard {
    scope: Arc<Scoped>,
    /// Sorted.
    names: Arc<[Arc<str>]>,
    subscribers: Mailboxes,
}

/// Some streams, sorted: many may come and go at once.
#[derive(Clone, Default)]
struct Mailboxes(Vec<Arc<Mailbox>>);

/// Where a stream finds what is due. Bounded by what it subscribes to: what is due twice is there once.
pub(crate) struct Mailbox {
    id: u64,
    due: Mutex<Due>,
    wake: Notify,
}

/// A name to look at.
type Letter = (Kind, Arc<str>);

/// Names to look at, by kind.
pub(crate) type Due = [BTreeSet<Arc<str>>; 4];

#[derive(Default)]
struct Contents {
    by_version: HashMap<(Kind, Version), Weak<Encoded>>,
    sweep_at: usize,
}

/// An entry that a revision touches.
struct Stale {
    key: Key,
    scope: Arc<Scoped>,
    before: Option<Version>,
}

/// A revision whose resources are being made. Until they all are, who asks for something new is given what it was before, or
/// a stream could be sent routes without the clusters that came with them. What it is then is made at once as well.
struct Coming {
    version: Arc<str>,
    resources: Arc<dyn Resources>,
    /// Whether there may be other names.
    hosts: bool,
    fresh: Vec<Fresh>,
    wildcards: Vec<Covered>,
}

/// What something new is made from, as long as the turn is this one.
struct Worlds {
    turn: u64,
    now: Arc<dyn Resources>,
    coming: Option<Arc<dyn Resources>>,
}

/// What a name stands for in one scope.
enum Made {
    /// Somebody had it made already.
    Known(Arc<Encoded>),
    New(Version, Box<Resource>),
}

/// What became of an entry.
type Fresh = (Option<Arc<Encoded>>, Key);

/// The names of a wildcard after a revision.
struct Covered {
    at: (u64, Kind),
    scope: Arc<Scoped>,
    before: Arc<[Arc<str>]>,
    after: Arc<[Arc<str>]>,
    added: Vec<(Arc<str>, Option<Arc<Encoded>>)>,
}

impl Cache {
    /// `version` names the first revision to clients and operators.
    pub(crate) fn new(version: String, resources: Arc<dyn Resources>) -> Arc<Self> {
        let version: Arc<str> = version.into();
        let inner = Inner {
            turn: 0,
            coming: None,
            since: version.clone(),
            version,
            resources,
            former: VecDeque::new(),
            scopes: HashMap::new(),
            entries: HashMap::new(),
            subjects: HashMap::new(),
            wildcards: HashMap::new(),
            last_scope: 0,
            last_seat: 0,
        };
        let (contents, views, evaluated) = (Mutex::default(), Views::default(), AtomicU64::new(0));
        Arc::new(Self { inner: Mutex::new(inner), contents, views, evaluated })
    }

    /// Remembers what an earlier run served.
    pub(crate) fn remember(&self, resources: Arc<dyn Resources>) {
        let mut inner = self.inner.lock();
        self.views.clear();
        inner.former.push_back(Former { since: None, resources });
    }

    /// The revision served.
    pub(crate) fn version(&self) -> Arc<str> {
        self.inner.lock().version.clone()
    }

    /// How many distinct resources are subscribed to, and how many bytes they have.
    pub(crate) fn size(&self) -> (usize, usize) {
        let entries = self.inner.lock().entries.len();
        let contents = self.contents.lock();
        (entries, contents.by_version.values().filter_map(Weak::upgrade).map(|encoded| encoded.any.len()).sum())
    }

    /// How often a resource was made from what the revision knows.
    pub(crate) fn evaluated(&self) -> u64 {
        self.evaluated.load(Ordering::Relaxed)
    }

    /// Takes the next revision in. One publisher at a time.
    ///
    /// The resources are made outside the lock: streams go on meanwhile with the old revision.
    pub(crate) fn publish(&self, version: String, resources: &Arc<dyn Resources>, touched: &Touched) {
        let (stale, wildcards) = self.begin(version, resources, touched);
        self.finish(&**resources, stale, wildcards);
    }

    fn begin(&self, version: String, resources: &Arc<dyn Resources>, touched: &Touched) -> (Vec<Stale>, Vec<Covered>) {
        let mut inner = self.inner.lock();
        let hosts = match touched {
            Touched::All => true,
            Touched::Subjects(subjects) => subjects.contains(HOSTS),
        };
        let (version, resources) = (version.into(), resources.clone());
        self.views.clear();
        inner.turn += 1;
        inner.coming = Some(Coming { version, resources, hosts, fresh: Vec::new(), wildcards: Vec::new() });
        let stale = |key: &Key| {
            let entry = &inner.entries[key];
            let before = entry.encoded.as_ref().map(|encoded| encoded.version);
            Stale { key: key.clone(), scope: entry.scope.clone(), before }
        };
        let stale = match touched {
            Touched::All => inner.entries.keys().map(stale).collect(),
            Touched::Subjects(subjects) if subjects.is_empty() => return (Vec::new(), Vec::new()),
            Touched::Subjects(subjects) => {
                let subjects = subjects.iter().map(String::as_str).chain([ALWAYS]).collect::<HashSet<_>>();
                subjects.into_iter().filter_map(|subject| inner.subjects.get(subject)).flatten().map(stale).collect()
            }
        };
        let wildcards = inner.wildcards.iter().filter(|_| hosts);
        let covered = wildcards.map(|(at, known)| Covered::new(*at, known.scope.clone(), known.names.clone()));
        (stale, covered.collect())
    }

    fn finish(&self, resources: &dyn Resources, stale: Vec<Stale>, mut wildcards: Vec<Covered>) {
        let fresh: Vec<_> = stale
            .into_iter()
            .filter_map(|stale| {
                let Stale { key, scope, before } = stale;
                let made = self.evaluate(resources, &scope.node, &key);
                (made.as_ref().map(Made::version) != before)
                    .then(|| (made.map(|made| self.share(&key, &scope, made)), key))
            })
            .collect();
        for wildcard in &mut wildcards {
            self.cover_again(resources, wildcard);
        }
        self.settle(fresh, wildcards);
        self.contents.lock().sweep();
    }

    fn cover_again(&self, resources: &dyn Resources, covered: &mut Covered) {
        let (scope, kind) = (&covered.scope, covered.at.1);
        let names = resources.wildcard(&scope.node, kind);
        if names.iter().map(String::as_str).eq(covered.before.iter().map(|name| &**name)) {
            return;
        }
        let before: HashMap<&str, &Arc<str>> = covered.before.iter().map(|name| (&**name, name)).collect();
        let mut after = Vec::with_capacity(names.len());
        for name in names {
            match before.get(name.as_str()) {
                Some(known) => after.push(Arc::clone(known)),
                None => {
                    let key = Key { scope: covered.at.0, kind, name: name.into() };
                    covered.added.push((key.name.clone(), self.make(resources, scope, &key)));
                    after.push(key.name);
                }
            }
        }
        covered.after = after.into();
    }

    /// Puts the new values in place and tells each stream once what is due.
    fn settle(&self, fresh: Vec<Fresh>, wildcards: Vec<Covered>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let (also_fresh, also_covered) = inner.take_coming();
        let mut letters: HashMap<u64, (Arc<Mailbox>, Vec<Letter>)> = HashMap::new();
        let mut tell = |mailbox: &Arc<Mailbox>, kind: Kind, name: &Arc<str>| {
            let (_, due) = letters.entry(mailbox.id).or_insert_with(|| (mailbox.clone(), Vec::new()));
            due.push((kind, name.clone()));
        };
        for (encoded, key) in fresh.into_iter().chain(also_fresh) {
            // Gone, if nobody subscribes to it any more.
            let Some(entry) = inner.entries.get_mut(&key) else { continue };
            entry.encoded = encoded;
            entry.named_by.0.iter().for_each(|mailbox| tell(mailbox, key.kind, &key.name));
            if let Some(wildcard) = inner.wildcards.get(&(key.scope, key.kind)).filter(|_| entry.covered) {
                wildcard.subscribers.0.iter().for_each(|mailbox| tell(mailbox, key.kind, &key.name));
            }
        }
        for Covered { at: (scope, kind), before, after, added, .. } in wildcards.into_iter().chain(also_covered) {
            let Some(wildcard) = inner.wildcards.get_mut(&(scope, kind)) else { continue };
            if Arc::ptr_eq(&before, &after) {
                continue;
            }
            wildcard.names = after.clone();
            let (node, subscribers) = (wildcard.scope.clone(), wildcard.subscribers.clone());
            let kept: HashSet<&str> = after.iter().map(|name| &**name).collect();
            for name in before.iter().filter(|name| !kept.contains(&***name)) {
                inner.uncover(&Key { scope, kind, name: name.clone() });
                subscribers.0.iter().for_each(|mailbox| tell(mailbox, kind, name));
            }
            for (name, encoded) in added {
                inner.entry(Key { scope, kind, name: name.clone() }, &node, encoded).covered = true;
                subscribers.0.iter().for_each(|mailbox| tell(mailbox, kind, &name));
            }
        }
        for (mailbox, due) in letters.into_values() {
            mailbox.deliver(due);
        }
    }

    /// What a node of `scope` is told under a name; `None` = it does not exist.
    fn evaluate(&self, resources: &dyn Resources, scope: &NodeScope, key: &Key) -> Option<Made> {
        let seen = Seen::by(resources, scope, key);
        let version = seen.as_ref().and_then(|seen| self.views.get(seen));
        if let Some(known) = version.and_then(|version| self.contents.lock().get(key, version)) {
            return Some(Made::Known(known));
        }
        self.evaluated.fetch_add(1, Ordering::Relaxed);
        let resource = resources.resource(scope, key.kind, &key.name)?;
        let version = Version::of(&resource, scope);
        if let Some(seen) = &seen {
            self.views.insert(seen, version);
        }
        Some(Made::New(version, Box::new(resource)))
    }

    /// What a name stands for, and what it will if that is something else.
    fn make_both(&self, worlds: &Worlds, scope: &Scoped, key: &Key) -> (Option<Arc<Encoded>>, Option<Fresh>) {
        let now = self.make(&*worlds.now, scope, key);
        let coming = worlds.coming.as_ref().map(|coming| self.make(&**coming, scope, key));
        let version = |made: &Option<Arc<Encoded>>| made.as_ref().map(|encoded| encoded.version);
        let differs = coming.filter(|coming| version(coming) != version(&now));
        (now, differs.map(|coming| (coming, key.clone())))
    }

    fn make(&self, resources: &dyn Resources, scope: &Scoped, key: &Key) -> Option<Arc<Encoded>> {
        let made = self.evaluate(resources, &scope.node, key)?;
        Some(self.share(key, scope, made))
    }

    /// The bytes of that content: those that exist, or new ones.
    fn share(&self, key: &Key, scope: &Scoped, made: Made) -> Arc<Encoded> {
        let (version, resource) = match made {
            Made::Known(known) => return known,
            Made::New(version, resource) => (version, resource),
        };
        if let Some(known) = self.contents.lock().get(key, version) {
            return known;
        }
        // Outside the lock, for it may be large. Whoever comes second throws its copy away.
        let any = resource.encode(&scope.node);
        let naming = Naming::of(&resource, &scope.account);
        let encoded = Arc::new(Encoded::new(key.name.clone(), version, &any, naming, &scope.account));
        let mut contents = self.contents.lock();
        match contents.get(key, version) {
            Some(known) => known,
            None => {
                contents.by_version.insert((key.kind, version), Arc::downgrade(&encoded));
                encoded
            }
        }
    }
}

impl Made {
    fn version(&self) -> Version {
        match self {
            Self::Known(known) => known.version,
            Self::New(version, _) => *version,
        }
    }
}

impl Inner {
    /// The revision that was coming is the one served; gives what was asked for meanwhile.
    fn take_coming(&mut self) -> (Vec<Fresh>, Vec<Covered>) {
        let Some(coming) = self.coming.take() else { return Default::default() };
        self.turn += 1;
        self.version = coming.version;
        let before = std::mem::replace(&mut self.resources, coming.resources);
        if coming.hosts {
            let since = std::mem::replace(&mut self.since, self.version.clone());
            self.former.push_front(Former { since: Some(since), resources: before });
            self.former.truncate(FORMER);
        }
        (coming.fresh, coming.wildcards)
    }

    /// What is served, and what is about to be.
    fn worlds(&self) -> Worlds {
        let coming = self.coming.as_ref().map(|coming| coming.resources.clone());
        Worlds { turn: self.turn, now: self.resources.clone(), coming }
    }

    /// The entry of that key, made if it is new.
    fn entry(&mut self, key: Key, scope: &Arc<Scoped>, encoded: Option<Arc<Encoded>>) -> &mut Entry {
        if !self.entries.contains_key(&key) {
            let subject = subject(key.kind, &key.name);
            match self.subjects.get_mut(&*subject) {
                Some(keys) => _ = keys.insert(key.clone()),
                None => _ = self.subjects.insert(subject.into(), HashSet::from([key.clone()])),
            }
        }
        let bytes = ENTRY + key.name.len();
        self.entries.entry(key).or_insert_with(|| Entry {
            scope: scope.clone(),
            _charge: Charge::new(&scope.account, bytes),
            encoded,
            named_by: Mailboxes::default(),
            covered: false,
        })
    }

    fn uncover(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.covered = false;
            self.drop_unused(key);
        }
    }

    fn unname(&mut self, key: &Key, seat: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.named_by.remove(seat);
            self.drop_unused(key);
        }
    }

    fn drop_unused(&mut self, key: &Key) {
        let unused = |entry: &Entry| !entry.covered && entry.named_by.0.is_empty();
        if !self.entries.get(key).is_some_and(unused) {
            return;
        }
        self.entries.remove(key);
        let subject = subject(key.kind, &key.name);
        if let Some(keys) = self.subjects.get_mut(&*subject) {
            keys.remove(key);
            if keys.is_empty() {
                self.subjects.remove(&*subject);
            }
        }
    }
}

impl Covered {
    /// With the names that there were.
    fn new(at: (u64, Kind), scope: Arc<Scoped>, names: Arc<[Arc<str>]>) -> Self {
        Self { at, scope, before: names.clone(), after: names, added: Vec::new() }
    }
}

impl Mailboxes {
    fn insert(&mut self, mailbox: &Arc<Mailbox>) {
        if let Err(at) = self.0.binary_search_by_key(&mailbox.id, |known| known.id) {
            self.0.insert(at, mailbox.clone());
        }
    }

    fn remove(&mut self, id: u64) {
        if let Ok(at) = self.0.binary_search_by_key(&id, |known| known.id) {
            self.0.remove(at);
        }
    }
}

impl Mailbox {
    fn deliver(&self, letters: Vec<Letter>) {
        let mut due = self.due.lock();
        for (kind, name) in letters {
            due[kind.index()].insert(name);
        }
        drop(due);
        self.wake.notify_one();
    }
}

impl Contents {
    /// The bytes of that content, under that name.
    fn get(&self, key: &Key, version: Version) -> Option<Arc<Encoded>> {
        let known = self.by_version.get(&(key.kind, version)).and_then(Weak::upgrade);
        known.filter(|known| known.name == key.name)
    }

    /// Forgets what nobody holds any more, once that may be half of it.
    fn sweep(&mut self) {
        if self.by_version.len() > self.sweep_at {
            self.by_version.retain(|_, encoded| encoded.strong_count() > 0);
            self.sweep_at = 2 * self.by_version.len() + 1024;
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("version", &self.version()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
