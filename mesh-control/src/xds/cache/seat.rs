//! [`Seat`]: one stream's place at the [`Cache`]. Dropping it takes all its subscriptions out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Cache, Covered, Due, Key, Mailbox, Mailboxes, ScopeUse, Scoped, Wildcard};
use crate::translate::NodeScope;
use crate::xds::account::{Account, Charge, NAME, SCOPE};
use crate::xds::encoded::Encoded;
use crate::xds::{Kind, federated};

/// The authorities of `xdstp` names on one stream. Every authority is served, and each has resources of its own: what a
/// client makes the control plane keep must not grow with the names that it makes up. A bootstrap has one, or two.
const MAX_AUTHORITIES: usize = 4;

/// One stream's subscriptions.
pub(crate) struct Seat {
    cache: Arc<Cache>,
    scope: Arc<Scoped>,
    scope_id: u64,
    mailbox: Arc<Mailbox>,
    named: HashSet<(Kind, Arc<str>)>,
    /// Made for a request that is still to come. What keeps the names is charged with that.
    begun: HashSet<(Kind, Arc<str>)>,
    /// What these cost until what keeps them is charged.
    begun_cost: usize,
    /// What the wildcards cost.
    covered: HashMap<Kind, usize>,
    /// What it costs that a client says it has what no wildcard covers.
    claimed: HashMap<Kind, usize>,
    /// That were asked for on this stream so far.
    authorities: BTreeSet<String>,
    /// Subscribed to, of an authority too many; the cache does not know of them.
    refused: HashSet<(Kind, Arc<str>)>,
    /// What the client has from an earlier stream and is to keep for a while though it is gone; none = nobody knows it any more.
    former: HashMap<(Kind, Arc<str>), Option<Arc<Encoded>>>,
    /// For all of these names.
    charge: Charge,
}

impl Cache {
    /// Takes a place for a node of `scope`, of the identity that has this account.
    pub(crate) fn seat(self: &Arc<Self>, scope: NodeScope, account: &Arc<Account>) -> Seat {
        let mut inner = self.inner.lock();
        inner.last_seat += 1;
        let mailbox = Mailbox { id: inner.last_seat, due: Default::default(), wake: Default::default() };
        let next = inner.last_scope + 1;
        let node = match inner.scopes.get_key_value(&scope) {
            Some((known, _)) => known.clone(),
            None => Arc::new(scope),
        };
        let used = inner.scopes.entry(node.clone()).or_insert_with(|| ScopeUse {
            id: next,
            streams: 0,
            _charge: Charge::new(account, SCOPE + node.text_len()),
            scoped: Arc::new(Scoped { node, account: account.clone() }),
        });
        used.streams += 1;
        let (scope, scope_id) = (used.scoped.clone(), used.id);
        inner.last_scope = inner.last_scope.max(scope_id);
        drop(inner);
        Seat {
            cache: self.clone(),
            scope,
            scope_id,
            mailbox: Arc::new(mailbox),
            named: HashSet::new(),
            begun: HashSet::new(),
            begun_cost: 0,
            covered: HashMap::new(),
            claimed: HashMap::new(),
            authorities: BTreeSet::new(),
            refused: HashSet::new(),
            former: HashMap::new(),
            charge: Charge::new(account, 0),
        }
    }
}

impl Seat {
    pub(crate) fn scope(&self) -> &NodeScope {
        &self.scope.node
    }

    /// Bytes kept for this stream's identity, over all its streams.
    pub(crate) fn kept(&self) -> usize {
        self.charge.account().bytes()
    }

    /// The revision served.
    pub(crate) fn version(&self) -> Arc<str> {
        self.cache.version()
    }

    /// Where the stream is woken.
    pub(crate) fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// What became different since the last call.
    pub(crate) fn take_due(&self) -> Due {
        std::mem::take(&mut *self.mailbox.due.lock())
    }

    /// Subscribes to a name; gives it back as it is kept. One of an authority too many does not exist.
    pub(crate) fn subscribe(&mut self, kind: Kind, name: &str) -> Arc<str> {
        if !self.admits(kind, name) {
            let name: Arc<str> = name.into();
            if self.refused.insert((kind, name.clone())) {
                self.charge.add(NAME + name.len());
            }
            return name;
        }
        let name = self.made(kind, name);
        if self.named.insert((kind, name.clone())) {
            // What has begun is charged already.
            match self.begun_cost.checked_sub(NAME) {
                Some(rest) if self.begun.contains(&(kind, name.clone())) => self.begun_cost = rest,
                _ => self.charge.add(NAME),
            }
        }
        name
    }

    /// Makes what a name stands for, as long as that has not [`begun`](Self::begun).
    pub(crate) fn begin(&mut self, kind: Kind, name: &str) {
        if self.admits(kind, name) {
            let name = self.made(kind, name);
            if self.begun.insert((kind, name)) {
                self.begun_cost += NAME;
                self.charge.add(NAME);
            }
        }
    }

    /// The request has come, and what it does not keep is let go.
    pub(crate) fn begun(&mut self, kind: Kind, name: &str) {
        let key = (kind, Arc::from(name));
        if self.begun.remove(&key) && !self.named.contains(&key) {
            self.cache.inner.lock().unname(&self.key(kind, key.1), self.mailbox.id);
        }
        if self.begun.is_empty() {
            self.begun = HashSet::new();
            self.give_back_begun();
        }
    }

    /// What has begun is charged to what keeps it, or was let go.
    fn give_back_begun(&mut self) {
        self.charge.remove(std::mem::take(&mut self.begun_cost));
    }

    /// Has a name made, and followed by this place.
    fn made(&self, kind: Kind, name: &str) -> Arc<str> {
        let key = self.key(kind, name.into());
        loop {
            let mut inner = self.cache.inner.lock();
            if let Some((known, _)) = inner.entries.get_key_value(&key) {
                let name = known.name.clone();
                let entry = inner.entries.get_mut(&key).expect("it was found");
                entry.named_by.insert(&self.mailbox);
                return name;
            }
            let worlds = inner.worlds();
            drop(inner);
            let (encoded, fresh) = self.cache.make_both(&worlds, &self.scope, &key);
            let mut inner = self.cache.inner.lock();
            if inner.turn == worlds.turn {
                inner.entry(key.clone(), &self.scope, encoded).named_by.insert(&self.mailbox);
                if let Some(coming) = &mut inner.coming {
                    coming.fresh.extend(fresh);
                }
                return key.name;
            }
        }
    }

    fn admits(&mut self, kind: Kind, name: &str) -> bool {
        let Some(Ok(parsed)) = federated::read(kind, name) else { return true };
        if self.authorities.contains(&parsed.authority) {
            return true;
        }
        if self.authorities.len() < MAX_AUTHORITIES {
            return self.authorities.insert(parsed.authority);
        }
        if self.refused.is_empty() {
            tracing::warn!(
                name,
                limit = MAX_AUTHORITIES,
                "a stream asks as too many authorities; what it asks of another does not exist"
            );
        }
        false
    }

    fn is_refused(&self, kind: Kind, name: &Arc<str>) -> bool {
        !self.refused.is_empty() && self.refused.contains(&(kind, name.clone()))
    }

    pub(crate) fn unsubscribe(&mut self, kind: Kind, name: &Arc<str>) {
        if self.refused.remove(&(kind, name.clone())) {
            self.charge.remove(NAME + name.len());
            return;
        }
        if self.named.remove(&(kind, name.clone())) {
            self.charge.remove(NAME);
            self.cache.inner.lock().unname(&self.key(kind, name.clone()), self.mailbox.id);
        }
    }

    /// Subscribes to everything of a kind; gives the names.
    pub(crate) fn cover(&mut self, kind: Kind) -> Arc<[Arc<str>]> {
        let at = (self.scope_id, kind);
        loop {
            let mut inner = self.cache.inner.lock();
            if let Some(wildcard) = inner.wildcards.get_mut(&at) {
                wildcard.subscribers.insert(&self.mailbox);
                let names = wildcard.names.clone();
                drop(inner);
                self.note_covered(kind, names.len());
                return names;
            }
            let worlds = inner.worlds();
            drop(inner);
            let names = worlds.now.wildcard(&self.scope.node, kind);
            let made: Vec<_> = names
                .into_iter()
                .map(|name| {
                    let key = self.key(kind, name.into());
                    let is_there = self.cache.inner.lock().entries.contains_key(&key);
                    let made = (!is_there).then(|| self.cache.make_both(&worlds, &self.scope, &key));
                    (key, made)
                })
                .collect();
            let names: Arc<[Arc<str>]> = made.iter().map(|(key, _)| key.name.clone()).collect();
            let coming = worlds.coming.as_ref().map(|coming| {
                let mut covered = Covered::new(at, self.scope.clone(), names.clone());
                self.cache.cover_again(&**coming, &mut covered);
                covered
            });
            let mut inner = self.cache.inner.lock();
            let went = |(key, made): &(Key, Option<_>)| made.is_none() && !inner.entries.contains_key(key);
            if inner.turn != worlds.turn || inner.wildcards.contains_key(&at) || made.iter().any(went) {
                continue;
            }
            let mut fresh = Vec::new();
            for (key, made) in made {
                let (encoded, differs) = made.unwrap_or_default();
                fresh.extend(differs);
                inner.entry(key, &self.scope, encoded).covered = true;
            }
            if let Some(now) = &mut inner.coming {
                now.fresh.extend(fresh);
                now.wildcards.extend(coming);
            }
            let mut subscribers = Mailboxes::default();
            subscribers.insert(&self.mailbox);
            inner.wildcards.insert(at, Wildcard { scope: self.scope.clone(), names: names.clone(), subscribers });
            drop(inner);
            self.note_covered(kind, names.len());
            return names;
        }
    }

    /// The names that [`cover`](Self::cover) is about to make; none if they are made.
    pub(crate) fn to_cover(&self, kind: Kind) -> Vec<String> {
        let inner = self.cache.inner.lock();
        if inner.wildcards.contains_key(&(self.scope_id, kind)) {
            return Vec::new();
        }
        let resources = inner.resources.clone();
        drop(inner);
        resources.wildcard(&self.scope.node, kind)
    }

    fn note_covered(&mut self, kind: Kind, names: usize) {
        let cost = names * NAME;
        let before = self.covered.insert(kind, cost);
        self.give_back_begun();
        self.charge.add(cost);
        self.charge.remove(before.unwrap_or_default());
    }

    /// Keeps a name that is neither subscribed to nor covered, until [`disclaim`](Self::disclaim).
    pub(crate) fn claim(&mut self, kind: Kind, name: &str) {
        let cost = NAME + name.len();
        *self.claimed.entry(kind).or_default() += cost;
        self.charge.add(cost);
    }

    /// Keeps no such name of this kind any more.
    pub(crate) fn disclaim(&mut self, kind: Kind) {
        self.charge.remove(self.claimed.remove(&kind).unwrap_or_default());
    }

    pub(crate) fn uncover(&mut self, kind: Kind) {
        let Some(cost) = self.covered.remove(&kind) else { return };
        self.charge.remove(cost);
        let at = (self.scope_id, kind);
        let mut inner = self.cache.inner.lock();
        let Some(wildcard) = inner.wildcards.get_mut(&at) else { return };
        wildcard.subscribers.remove(self.mailbox.id);
        if wildcard.subscribers.0.is_empty()
            && let Some(last) = inner.wildcards.remove(&at)
        {
            for name in last.names.iter() {
                inner.uncover(&Key { scope: self.scope_id, kind, name: name.clone() });
            }
        }
    }

    /// The resource of a name that is subscribed to or covered; `None` if it does not exist.
    pub(crate) fn resource(&self, kind: Kind, name: &Arc<str>) -> Option<Arc<Encoded>> {
        if self.is_refused(kind, name) {
            return None;
        }
        let key = self.key(kind, name.clone());
        let encoded = self.cache.inner.lock().entries.get(&key).and_then(|entry| entry.encoded.clone());
        encoded.or_else(|| self.former.get(&(kind, key.name))?.clone())
    }

    /// Brings back what was there under a name that has vanished; false = nobody knows it any more.
    pub(crate) fn bring_back(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        if self.is_refused(kind, name) {
            return false;
        }
        let at = (kind, name.clone());
        if let Some(known) = self.former.get(&at) {
            return known.is_some();
        }
        let found = self.former(kind, name);
        self.charge.add(NAME + name.len());
        self.former.entry(at).or_insert(found).is_some()
    }

    /// What was there under a name that has vanished; none = nobody knows it any more.
    pub(crate) fn former(&self, kind: Kind, name: &Arc<str>) -> Option<Arc<Encoded>> {
        if self.is_refused(kind, name) {
            return None;
        }
        let (former, key) = (self.cache.inner.lock().former.clone(), self.key(kind, name.clone()));
        former.iter().find_map(|former| self.cache.make(&*former.resources, &self.scope, &key))
    }

    /// Lets what was brought back go for good; whether it does not exist by itself either.
    pub(crate) fn let_go(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        if self.former.remove(&(kind, name.clone())).is_some() {
            self.charge.remove(NAME + name.len());
        }
        self.resource(kind, name).is_none()
    }

    /// The names of a kind that were brought back.
    pub(crate) fn brought_back(&self, kind: Kind) -> Vec<Arc<str>> {
        let found = self.former.iter().filter(|((of, _), found)| *of == kind && found.is_some());
        found.map(|((_, name), _)| name.clone()).collect()
    }

    /// Whether everything that a client had which was told of this version last can be [brought back](Self::bring_back).
    pub(crate) fn remembers(&self, version: &str) -> bool {
        let inner = self.cache.inner.lock();
        let oldest = inner.former.iter().rev().find_map(|former| former.since.as_ref()).unwrap_or(&inner.since);
        // Those of another run do not compare.
        let number = |version: &str| {
            let (run, number) = version.rsplit_once('/').unwrap_or(("", version));
            Some((run.to_owned(), number.parse::<u64>().ok()?))
        };
        let (Some(asked), Some(oldest), Some(now)) = (number(version), number(oldest), number(&inner.version)) else {
            return false;
        };
        asked.0 == now.0 && (oldest.1..=now.1).contains(&asked.1)
    }

    /// Why there is no such resource.
    pub(crate) fn why_missing(&self, kind: Kind, name: &str) -> String {
        if self.is_refused(kind, &Arc::from(name)) {
            return format!(
                "there is no {kind} {name:?} on this stream: names of {MAX_AUTHORITIES} other authorities were asked for \
                 already, and no more are served"
            );
        }
        let resources = self.cache.inner.lock().resources.clone();
        resources.why_missing(&self.scope.node, kind, name)
    }

    fn key(&self, kind: Kind, name: Arc<str>) -> Key {
        Key { scope: self.scope_id, kind, name }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for kind in Kind::ALL {
            self.uncover(kind);
        }
        let mut inner = self.cache.inner.lock();
        for (kind, name) in self.named.drain().chain(self.begun.drain()) {
            inner.unname(&Key { scope: self.scope_id, kind, name }, self.mailbox.id);
        }
        if let Some(used) = inner.scopes.get_mut(&self.scope.node) {
            used.streams -= 1;
            if used.streams == 0 {
                inner.scopes.remove(&self.scope.node);
            }
        }
    }
}

impl Mailbox {
    /// Waits until something is due.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
