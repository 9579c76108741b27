//! When keys are fetched: at once when a manifest names them, then every so often, sooner after a failure. What was good
//! last holds while nothing newer is, for a time, and through restarts; not once the issuer says that it has no keys.
//!
//! Who waits longest is asked next, and no namespace has all the places: sources that hang stop nobody else's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_core::retry::Backoff;
use mesh_core::source::{Publisher, Watched};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::fetch::Ask;
use super::{FetchError, FetchOptions, Keys, Known};
use crate::clock::Clock;
use crate::model::{KeySource, Model, PublicKeys, TokenKeys};
use crate::state_dir::StateDir;

/// Waits after failures.
const AGAIN: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(5 * 60) };
/// Fetches at once: manifests may name many sources that do not answer.
const MOST_AT_ONCE: usize = 16;
/// Of these, for the manifests of one namespace.
const MOST_OF_ONE: usize = 4;
/// Sources that the manifests of one namespace may name: each may answer with a megabyte, and every new answer is news for all.
const MOST_NAMED: usize = 100;
/// Most bytes of the text of a failure: what an issuer said may be a part of it.
const MOST_OF_FAILURE: usize = 1 << 10;
/// Longest time for a fetch, whatever a rule grants: one that hangs has a place that others wait for.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);
const FILE: &str = "jwks.json";

/// Keeps the keys of the sources that a model names.
pub(crate) struct Refresh {
    model: Watched<Model>,
    ask: Ask,
    options: FetchOptions,
    clock: Clock,
    state: Option<StateDir>,
    sources: BTreeMap<KeySource, Source>,
    /// What is being asked, wanted or not, and for which namespace.
    under_way: BTreeMap<KeySource, String>,
    published: Publisher<Keys>,
}

struct Source {
    known: Known,
    /// When the document was fetched, in seconds since the Unix epoch.
    fetched: u64,
    timeout: Duration,
    /// Whose manifests name it, among the first [`MOST_NAMED`] of each; of none it is not asked.
    namespaces: BTreeSet<String>,
    /// In a row.
    failures: u32,
    /// When it is asked next, unless it is being asked.
    due: Instant,
}

/// A document on disk.
#[derive(Serialize, Deserialize)]
struct Saved {
    source: KeySource,
    document: String,
    fetched: u64,
}

type Fetched = BoxFuture<'static, (KeySource, Result<String, FetchError>)>;

impl Refresh {
    /// Begins with what a control plane before this one fetched.
    pub(crate) fn new(
        model: Watched<Model>,
        ask: Ask,
        options: FetchOptions,
        clock: Clock,
        state: Option<StateDir>,
    ) -> Self {
        let ((published, _), sources) = (Watched::channel(Keys::default()), BTreeMap::new());
        let under_way = BTreeMap::new();
        let mut refresh = Self { model, ask, options, clock, state, sources, under_way, published };
        refresh.follow();
        let now = refresh.clock.unix_seconds();
        let saved = refresh.state.as_ref().map_or_else(Vec::new, load);
        for Saved { source, document, fetched } in saved {
            let Some(wanted) = refresh.sources.get_mut(&source) else { continue };
            // The file is no better judge of keys than an issuer.
            let Ok(keys) = PublicKeys::read(&document) else { continue };
            // What comes from the future (a clock was set back, somebody wrote the file) would never be too old.
            if fetched > now {
                continue;
            }
            wanted.known.max_age = refresh.options.max_age;
            (wanted.known.document, wanted.fetched) = (Some(keys.text.into()), fetched);
        }
        refresh.forget_old();
        refresh.publish();
        refresh
    }

    /// What is known, now and later.
    pub(crate) fn keys(&self) -> Watched<Keys> {
        self.published.watch()
    }

    /// Fetches for ever.
    pub(crate) async fn run(mut self) {
        let mut fetching: FuturesUnordered<Fetched> = FuturesUnordered::new();
        loop {
            self.start_due(&mut fetching);
            // Without a place for anybody, the next one comes when one is free.
            let next = self.soonest().map(|(_, source, _)| source.due);
            tokio::select! {
                () = self.model.changed() => self.follow(),
                Some((source, result)) = fetching.next(), if !fetching.is_empty() => self.take(&source, result),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            self.publish();
        }
    }

    /// Takes in which sources are named now.
    fn follow(&mut self) {
        let model = self.model.load_full();
        let mut wanted: BTreeMap<&KeySource, (Duration, BTreeSet<String>)> = BTreeMap::new();
        let mut named: BTreeMap<&str, BTreeSet<&KeySource>> = BTreeMap::new();
        for object in model.request_authentications.values() {
            for rule in &object.spec.rules {
                let TokenKeys::From(source) = &rule.keys else { continue };
                let (timeout, namespaces) = wanted.entry(source).or_default();
                *timeout = rule.timeout.max(*timeout);
                let named = named.entry(object.namespace()).or_default();
                if named.len() < MOST_NAMED || named.contains(source) {
                    named.insert(source);
                    namespaces.insert(object.namespace().to_owned());
                }
            }
        }
        self.sources.retain(|source, _| wanted.contains_key(source));
        for (source, (timeout, namespaces)) in wanted {
            let source = match self.sources.entry(source.clone()) {
                Entry::Occupied(known) => {
                    let known = known.into_mut();
                    (known.timeout, known.namespaces) = (timeout, namespaces);
                    known
                }
                Entry::Vacant(free) => {
                    let due = Instant::now();
                    free.insert(Source { known: Known::default(), fetched: 0, timeout, namespaces, failures: 0, due })
                }
            };
            if source.namespaces.is_empty() {
                source.known.failure = Some(format!(
                    "its namespace names over {MOST_NAMED} sources of keys, and no more are asked: write the keys down (jwks)"
                ));
            }
        }
    }

    fn start_due(&mut self, fetching: &mut FuturesUnordered<Fetched>) {
        let now = Instant::now();
        while let Some((name, source, namespace)) = self.soonest().filter(|(_, source, _)| source.due <= now) {
            let (name, namespace) = (name.clone(), namespace.to_owned());
            let answer = (self.ask)(name.clone(), source.timeout);
            self.under_way.insert(name.clone(), namespace);
            fetching.push(Box::pin(async move { (name, answer.await) }));
        }
    }

    /// Who is asked next, and for which namespace: of those for whom there is a place the one that waits longest.
    fn soonest(&self) -> Option<(&KeySource, &Source, &str)> {
        if self.under_way.len() >= MOST_AT_ONCE {
            return None;
        }
        let idle = self.sources.iter().filter_map(|(name, source)| {
            if self.under_way.contains_key(name) {
                return None;
            }
            let namespace = source.namespaces.iter().find(|namespace| self.has_place(namespace))?;
            Some((name, source, namespace.as_str()))
        });
        idle.min_by_key(|(_, source, _)| source.due)
    }

    fn has_place(&self, namespace: &str) -> bool {
        self.under_way.values().filter(|other| *other == namespace).count() < MOST_OF_ONE
    }

    /// Takes in how a fetch ended.
    fn take(&mut self, name: &KeySource, result: Result<String, FetchError>) {
        let (now, refresh) = (self.clock.unix_seconds(), self.options.refresh);
        self.under_way.remove(name);
        // Nobody may want it any more.
        let Some(source) = self.sources.get_mut(name) else { return };
        match result {
            Ok(document) => {
                if source.known.failure.take().is_some() {
                    tracing::info!(target: "mesh::jwks", source = name.url(), "keys can be fetched again");
                }
                if source.known.document.as_deref() != Some(&*document) {
                    source.known.document = Some(document.into());
                }
                source.known.max_age = self.options.max_age;
                (source.fetched, source.failures) = (now, 0);
                source.due = Instant::now() + refresh;
                self.save();
            }
            Err(error) => {
                source.due = Instant::now() + AGAIN.bound(source.failures).min(refresh);
                source.failures = source.failures.saturating_add(1);
                let mut why = error.to_string();
                why.truncate(why.floor_char_boundary(MOST_OF_FAILURE));
                source.known.failure = Some(why);
                // Who takes all keys back must not have to wait until they are too old.
                if matches!(error, FetchError::NoKeys(_)) && source.known.document.is_some() {
                    tracing::warn!(target: "mesh::jwks", source = name.url(), "an issuer has taken all its keys back");
                    (source.known.document, source.known.max_age) = (None, Duration::ZERO);
                    self.save();
                }
            }
        }
        self.forget_old();
    }

    /// Gives up documents that could not be fetched anew for too long.
    fn forget_old(&mut self) {
        let (now, most) = (self.clock.unix_seconds(), self.options.max_age.as_secs());
        for source in self.sources.values_mut() {
            if now.saturating_sub(source.fetched) > most {
                (source.known.document, source.known.max_age) = (None, Duration::ZERO);
            }
        }
    }

    /// Tells what is different.
    fn publish(&self) {
        let asked = self.sources.iter().filter(|(_, source)| source.known != Known::default());
        let now: Keys = asked.map(|(name, source)| (name.clone(), source.known.clone())).collect();
        if *self.published.load_full() != now {
            self.published.publish(now);
        }
    }

    fn save(&self) {
        let Some(state) = &self.state else { return };
        let saved: Vec<Saved> = self
            .sources
            .iter()
            .filter_map(|(name, source)| {
                let document = source.known.document.as_ref()?.to_string();
                Some(Saved { source: name.clone(), document, fetched: source.fetched })
            })
            .collect();
        let content = serde_json::to_vec(&saved).expect("texts and numbers are always JSON");
        if let Err(error) = state.write_in_time(FILE, &content) {
            tracing::warn!(%error, file = FILE, "keys of issuers cannot be kept for a restart");
        }
    }
}

/// What was kept. All of it can be lost: then tokens are refused until their keys are fetched.
fn load(state: &StateDir) -> Vec<Saved> {
    let read = || -> Result<Vec<Saved>, Box<dyn std::error::Error>> {
        Ok(state.read(FILE)?.map_or(Ok(Vec::new()), |bytes| serde_json::from_slice(&bytes))?)
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(%error, file = FILE, "keys of issuers that were kept cannot be read, and are fetched anew");
        Vec::new()
    })
}

#[cfg(test)]
mod tests;
