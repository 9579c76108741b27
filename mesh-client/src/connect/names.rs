//! The names of one cluster: what they stood for when they were last looked up, for as long as that may be
//! used, and after a failure until something better is known (last good).
//!
//! ```text
//! use ─▶ holds still? ─▶ records
//!     └▶ look up ─▶ good: holds for its TTL, at least `min_refresh`
//!                └▶ failed or empty: last good, again after a back-off
//! ```
//!
//! Refuses to know endpoints and connections.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_core::policy::Address;
use mesh_core::source::{Resolve, ResolveError, Resolved, Resolving, Service};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::env::Random;

/// How long an answer without a TTL is used.
const WITHOUT_TTL: Duration = Duration::from_secs(30);
/// The longest time for which any answer is used.
const LONGEST: Duration = Duration::from_secs(86_400);
/// First and longest wait after a failure. With the second of negative caching of a resolver, a name that
/// appears is seen within 5 s.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// A look-up without an answer after this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The same where a request waits and there is a last good answer.
const PATIENCE_OF_REQUESTS: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Names {
    resolver: Arc<dyn Resolve>,
    random: Random,
    min_refresh: Duration,
    hosts: Table<IpAddr>,
    services: Table<Service>,
    // When connecting failed last: what was looked up before that may be wrong.
    suspected: Mutex<Option<Instant>>,
    suspicion: Notify,
    // The same endpoint's addresses in another family, found by whoever resolved both.
    alternates: ArcSwap<Alternates>,
}

/// Further addresses by the first one.
pub(crate) type Alternates = HashMap<SocketAddr, Vec<SocketAddr>, foldhash::fast::RandomState>;

type Table<T> = Mutex<HashMap<Arc<str>, Arc<Entry<T>>, foldhash::fast::RandomState>>;

struct Entry<T> {
    answer: Mutex<Answer<T>>,
    // Held during a look-up: one at a time for a name.
    looking: tokio::sync::Mutex<()>,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T> {
    /// The last good records; none if there never were any.
    pub(crate) records: Arc<[T]>,
    /// Why the last look-up failed, if it did.
    pub(crate) failure: Option<ResolveError>,
    /// When it is looked up next.
    pub(crate) until: Instant,
    looked: Instant,
    failures: u32,
}

impl Names {
    /// `min_refresh` is the shortest time between two look-ups of a name that was found.
    pub(crate) fn new(resolver: Arc<dyn Resolve>, random: Random, min_refresh: Duration) -> Self {
        Self {
            resolver,
            random,
            min_refresh,
            hosts: Table::default(),
            services: Table::default(),
            suspected: Mutex::new(None),
            suspicion: Notify::new(),
            alternates: ArcSwap::default(),
        }
    }

    /// The addresses of a host.
    pub(crate) async fn addresses(&self, host: &str, patience: Duration) -> Answer<IpAddr> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = host.parse() {
            return Answer::fixed(ip);
        }
        self.current(&self.hosts, host, patience, |resolver| resolver.addresses(host)).await
    }

    /// The SRV records of a name.
    pub(crate) async fn services(&self, name: &str, patience: Duration) -> Answer<Service> {
        self.current(&self.services, name, patience, |resolver| resolver.services(name)).await
    }

    /// Every socket address of an endpoint's addresses, for a request that needs a connection.
    ///
    /// # Errors
    /// There is none, because a name could not be looked up.
    pub(crate) async fn sockets<'a>(
        &self,
        addresses: impl Iterator<Item = &'a Address>,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let (mut sockets, mut failure) = (Vec::new(), None);
        for address in addresses {
            match address {
                Address::Socket(socket) => {
                    sockets.push(*socket);
                    sockets.extend(self.alternates.load().get(socket).into_iter().flatten());
                }
                Address::Name { host, port } => {
                    let answer = self.addresses(host, PATIENCE_OF_REQUESTS).await;
                    sockets.extend(answer.records.iter().map(|ip| SocketAddr::new(*ip, *port)));
                    failure = failure.or(answer.failure);
                }
                // Has no family to race with.
                Address::Unix(_) => {}
            }
        }
        match failure {
            Some(failure) if sockets.is_empty() => Err(failure),
            _ => Ok(sockets),
        }
    }

    /// Whether an address has others beside it.
    pub(crate) fn has_alternates(&self, address: &SocketAddr) -> bool {
        self.alternates.load().contains_key(address)
    }

    /// Replaces the alternates of all addresses.
    pub(crate) fn set_alternates(&self, alternates: Alternates) {
        self.alternates.store(Arc::new(alternates));
    }

    /// Connecting failed: what was looked up before is looked up again at its next use, once `min_refresh`
    /// has passed since.
    pub(crate) fn suspect(&self) {
        *self.suspected.lock() = Some(Instant::now());
        self.suspicion.notify_one();
    }

    /// Waits until what was looked up at `looked` is suspect and old enough to be looked up again.
    pub(crate) async fn suspected(&self, looked: Instant) {
        self.suspicion.notified().await;
        sleep_until(looked + self.min_refresh).await;
    }

    /// The names whose last look-up failed, and why.
    pub(crate) fn failures(&self) -> Vec<String> {
        fn of<T>(table: &Table<T>) -> Vec<String> {
            let table = table.lock();
            let failed = table.iter().filter_map(|(name, entry)| Some((name, entry.answer.lock().failure.clone()?)));
            failed.map(|(name, failure)| format!("{name}: {failure}")).collect()
        }
        let mut failures = of(&self.hosts);
        failures.extend(of(&self.services));
        failures.sort_unstable();
        failures
    }

    /// Forgets hosts that `wanted` does not want: those of SRV records that are gone.
    pub(crate) fn keep_hosts(&self, wanted: impl Fn(&str) -> bool) {
        self.hosts.lock().retain(|host, _| wanted(host));
    }

    async fn current<'r, T>(
        &'r self,
        table: &Table<T>,
        name: &str,
        patience: Duration,
        look_up: impl FnOnce(&'r dyn Resolve) -> Resolving<'r, T>,
    ) -> Answer<T>
    where
        T: Clone,
    {
        let entry = {
            let mut table = table.lock();
            match table.get(name) {
                Some(entry) => entry.clone(),
                None => table.entry(name.into()).or_default().clone(),
            }
        };
        if let Some(answer) = self.holding(&entry) {
            return answer;
        }
        let _looking = entry.looking.lock().await;
        // Whoever held it has looked for us as well.
        if let Some(answer) = self.holding(&entry) {
            return answer;
        }
        let old = entry.answer.lock().clone();
        let patience = if old.records.is_empty() { PATIENCE } else { patience };
        let result = timeout(patience, look_up(&*self.resolver)).await.unwrap_or(Err(ResolveError::Timeout));
        let answer = self.settle(name, old, result, Instant::now());
        *entry.answer.lock() = answer.clone();
        answer
    }

    fn holding<T: Clone>(&self, entry: &Entry<T>) -> Option<Answer<T>> {
        let (now, suspected) = (Instant::now(), *self.suspected.lock());
        let answer = entry.answer.lock();
        let suspect = suspected.is_some_and(|at| at > answer.looked) && now >= answer.looked + self.min_refresh;
        (now < answer.until && !suspect).then(|| answer.clone())
    }

    fn settle<T>(
        &self,
        name: &str,
        old: Answer<T>,
        result: Result<Resolved<T>, ResolveError>,
        now: Instant,
    ) -> Answer<T> {
        let failure = match result {
            Ok(Resolved { records, ttl }) if !records.is_empty() => {
                if old.failures > 0 {
                    tracing::info!(target: "mesh::dns", name, "the name resolves again");
                }
                let holds = ttl.unwrap_or(WITHOUT_TTL).max(self.min_refresh).min(LONGEST);
                let records = records.into();
                return Answer { records, failure: None, until: now + holds, looked: now, failures: 0 };
            }
            // A name that has nothing behind it any more: most often a mistake or a moment in a restart.
            Ok(_) => ResolveError::NoRecords,
            Err(failure) => failure,
        };
        if old.failure.as_ref() != Some(&failure) {
            let kept = old.records.len();
            tracing::warn!(target: "mesh::dns", name, error = %failure, kept, "DNS look-up failed; the last good answer stays");
        }
        let span = AGAIN.0.saturating_mul(1 << old.failures.min(8)).min(AGAIN.1);
        let wait = span / 2 + Duration::from_millis((self.random)((span.as_millis() / 2) as u64 + 1));
        let failures = old.failures.saturating_add(1);
        Answer { records: old.records, failure: Some(failure), until: now + wait, looked: now, failures }
    }
}

impl<T> Answer<T> {
    fn fixed(record: T) -> Self {
        let now = Instant::now();
        Self { records: Arc::new([record]), failure: None, until: now + LONGEST, looked: now, failures: 0 }
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        let now = Instant::now();
        // Holds for no time at all.
        let answer = Answer { records: Arc::new([]), failure: None, until: now, looked: now, failures: 0 };
        Self { answer: Mutex::new(answer), looking: tokio::sync::Mutex::default() }
    }
}
