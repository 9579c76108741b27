//! The names of one cluster: what they stood for when they were last looked up, for as long as that may be
//! used, and after a failure until something better is known (last good).
//!
//! ```text
//! use ─▶ holds still? ─▶ records
//!     └▶ look up ─▶ good: holds for its TTL, at least `min_refresh`, or for what policy says
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
use mesh_core::policy::{Address, DnsBackoff, DnsFamily, DnsOptions};
use mesh_core::source::{Family, Resolve, ResolveError, Resolved, Resolving, Service};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::worker::Wake;
use crate::env::Random;

/// How long an answer without a TTL is used.
const WITHOUT_TTL: Duration = Duration::from_secs(30);
/// The longest for which one is used that lacks a family.
const WITHOUT_A_FAMILY: Duration = Duration::from_secs(30);
/// The shortest time between two look-ups that policy may ask for (Envoy takes no less): it would be one without a pause.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time for which any answer is used.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Waits after a failure unless policy has others. With the second of negative caching of a resolver, a name that
/// appears is seen within 5 s.
const AGAIN: DnsBackoff = DnsBackoff { base: Duration::from_millis(500), max: Duration::from_secs(3) };
/// A look-up without an answer after this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The same where a request waits and there is a last good answer.
const PATIENCE_OF_REQUESTS: Duration = Duration::from_secs(1);
/// How late the end of a look-up may be told where it is driven: whoever waits may be woken before whoever looks, and a
/// runtime may be busy.
const LATE: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Names {
    resolver: Arc<dyn Resolve>,
    random: Random,
    min_refresh: Duration,
    options: DnsOptions,
    hosts: Table<IpAddr>,
    services: Table<Service>,
    // When connecting failed last: what was looked up before that may be wrong.
    suspected: Mutex<Option<Instant>>,
    suspicion: Wake,
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
    // When the end of that look-up is told at the latest. Held still, it is where nobody drives it.
    over: Mutex<Instant>,
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(crate) struct Answer<T> {
    /// The last good records; none if there never were any.
    pub(crate) records: Arc<[T]>,
    /// Why the last look-up failed, if it did.
    pub(crate) failure: Option<ResolveError>,
    /// The family for which it was not answered: what there is of it is the last good.
    lacks: Option<(Family, ResolveError)>,
    /// When it is looked up next.
    pub(crate) until: Instant,
    looked: Instant,
    failures: u32,
}

impl Names {
    /// `min_refresh` is the shortest TTL believed, and the shortest time between a look-up and another one because
    /// connecting failed.
    pub(crate) fn new(resolver: Arc<dyn Resolve>, random: Random, min_refresh: Duration, options: DnsOptions) -> Self {
        Self {
            resolver,
            random,
            min_refresh,
            options,
            hosts: Table::default(),
            services: Table::default(),
            suspected: Mutex::new(None),
            suspicion: Wake::default(),
            alternates: ArcSwap::default(),
        }
    }

    /// What `before`, of the same cluster, was told is known here, too.
    pub(crate) fn knowing(self, before: Option<&Self>) -> Self {
        // By the family the records are chosen.
        let Some(before) = before.filter(|before| before.options.family == self.options.family) else { return self };
        let (hosts, services) = (before.hosts.lock().clone(), before.services.lock().clone());
        let alternates = ArcSwap::new(before.alternates.load_full());
        Self { hosts: hosts.into(), services: services.into(), alternates, ..self }
    }

    /// The addresses of a host, of the families that policy wants.
    pub(crate) async fn addresses(&self, host: &str, patience: Duration) -> Answer<IpAddr> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = host.parse() {
            return Answer::fixed(ip);
        }
        let family = self.options.family;
        self.current(&self.hosts, host, patience, |resolver, last_good| {
            let last_good = last_good.clone();
            Box::pin(async move {
                let look_up = match family {
                    DnsFamily::V4Only => resolver.addresses_of(host, Family::V4),
                    DnsFamily::V6Only => resolver.addresses_of(host, Family::V6),
                    DnsFamily::Auto | DnsFamily::V4Preferred | DnsFamily::All => resolver.addresses(host),
                };
                let mut found = look_up.await?;
                if let Some((lacking, _)) = found.lacks {
                    found.records.extend(last_good.iter().filter(|ip| Family::of(ip) == lacking));
                }
                choose(&mut found.records, family);
                match found.lacks {
                    // What was wanted may be what is lacking.
                    Some((_, failure)) if found.records.is_empty() => Err(failure),
                    _ => Ok(found),
                }
            })
        })
        .await
    }

    /// The SRV records of a name.
    pub(crate) async fn services(&self, name: &str, patience: Duration) -> Answer<Service> {
        self.current(&self.services, name, patience, |resolver, _| resolver.services(name)).await
    }

    /// The last good addresses of a host, whatever their age; none if there are none.
    pub(crate) fn last_good_addresses(&self, host: &str) -> Arc<[IpAddr]> {
        Self::last_good(&self.hosts, host)
    }

    /// The last good SRV records of a name.
    pub(crate) fn last_good_services(&self, name: &str) -> Arc<[Service]> {
        Self::last_good(&self.services, name)
    }

    fn last_good<T>(table: &Table<T>, name: &str) -> Arc<[T]> {
        table.lock().get(name).map(|entry| entry.answer.lock().records.clone()).unwrap_or_default()
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

    /// Whether IPv6 and IPv4 addresses of a name are servers of their own, rather than two ways to the same.
    pub(crate) fn families_are_apart(&self) -> bool {
        self.options.family == DnsFamily::All
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
        self.suspicion.wake();
    }

    /// From now on the caller is told of suspicions.
    pub(crate) fn listen(&self) -> Arc<Notify> {
        self.suspicion.listen()
    }

    /// Waits until what was looked up at `looked` is suspect and old enough to be looked up again.
    pub(crate) async fn suspected(&self, suspicion: &Notify, looked: Instant) {
        suspicion.notified().await;
        sleep_until(looked + self.min_refresh).await;
    }

    /// The names whose last look-up failed, or that of one family, and why.
    pub(crate) fn failures(&self) -> Vec<String> {
        fn of<T>(table: &Table<T>) -> Vec<String> {
            let table = table.lock();
            let told = |(name, entry): (&Arc<str>, &Arc<Entry<T>>)| {
                let answer = entry.answer.lock();
                let lacking = || answer.lacks.as_ref().map(|(family, why)| format!("{name}: {family}: {why}"));
                answer.failure.as_ref().map(|failure| format!("{name}: {failure}")).or_else(lacking)
            };
            table.iter().filter_map(told).collect()
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
        look_up: impl Fn(&'r dyn Resolve, &Arc<[T]>) -> Resolving<'r, T>,
    ) -> Answer<T>
    where
        T: Clone,
    {
        let began = Instant::now();
        loop {
            let entry = {
                let mut table = table.lock();
                match table.get(name) {
                    Some(entry) => entry.clone(),
                    None => table.entry(name.into()).or_default().clone(),
                }
            };
            if let Some(answer) = self.look(&entry, name, began, patience, &look_up).await {
                return answer;
            }
            // It goes on with another entry; whoever looks is left to itself.
            if let Some(now) = table.lock().get_mut(name)
                && Arc::ptr_eq(now, &entry)
            {
                *now = Arc::new(Entry::new(entry.answer.lock().clone()));
            }
        }
    }

    /// The answer that holds, or that of a look-up. `None`: another one is under way, on a runtime that stands still.
    async fn look<'r, T: Clone>(
        &'r self,
        entry: &Entry<T>,
        name: &str,
        began: Instant,
        patience: Duration,
        look_up: impl Fn(&'r dyn Resolve, &Arc<[T]>) -> Resolving<'r, T>,
    ) -> Option<Answer<T>> {
        if let Some(answer) = self.holding(entry) {
            return Some(answer);
        }
        let known = entry.answer.lock().clone();
        let patience = if known.records.is_empty() { PATIENCE } else { patience };
        let until = began + patience;
        let _looking = loop {
            if let Ok(looking) = entry.looking.try_lock() {
                break looking;
            }
            let over = *entry.over.lock();
            match timeout_at(until.min(over), entry.looking.lock()).await {
                Ok(looking) => break looking,
                // Another one looks by now.
                Err(_) if *entry.over.lock() > over => {}
                Err(_) if over < until => return None,
                // Whoever looks may have more patience than a request.
                Err(_) => return Some(Answer { failure: known.failure.or(Some(ResolveError::Timeout)), ..known }),
            }
        };
        *entry.over.lock() = until + LATE;
        // Whoever held it has looked for us as well.
        if let Some(answer) = self.holding(entry) {
            return Some(answer);
        }
        let old = entry.answer.lock().clone();
        if self.is_suspect(&old) || self.is_asked_each_time() {
            // The resolver may keep an answer for as long as we do, or for longer.
            self.resolver.forget(name);
        }
        let result =
            timeout_at(until, look_up(&*self.resolver, &old.records)).await.unwrap_or(Err(ResolveError::Timeout));
        let answer = self.settle(name, old, result, Instant::now());
        *entry.answer.lock() = answer.clone();
        Some(answer)
    }

    fn holding<T: Clone>(&self, entry: &Entry<T>) -> Option<Answer<T>> {
        let now = Instant::now();
        let answer = entry.answer.lock();
        let suspect = self.is_suspect(&answer) && now >= answer.looked + self.min_refresh;
        (now < answer.until && !suspect).then(|| answer.clone())
    }

    /// Whether connecting failed since.
    fn is_suspect<T>(&self, answer: &Answer<T>) -> bool {
        self.suspected.lock().is_some_and(|at| at > answer.looked)
    }

    /// Whether policy has names looked up at a pace of its own, whatever their TTL.
    fn is_asked_each_time(&self) -> bool {
        self.options.refresh.is_some() && !self.options.respect_ttl
    }

    fn settle<T>(
        &self,
        name: &str,
        old: Answer<T>,
        result: Result<Resolved<T>, ResolveError>,
        now: Instant,
    ) -> Answer<T> {
        let failure = match result {
            Ok(Resolved { records, ttl, lacks }) if !records.is_empty() => {
                if old.failures > 0 {
                    tracing::info!(target: "mesh::dns", name, "the name resolves again");
                }
                let mut holds = self.holds_for(ttl);
                if let Some((family, error)) = &lacks {
                    holds = holds.min(WITHOUT_A_FAMILY);
                    if old.lacks != lacks {
                        tracing::warn!(target: "mesh::dns", name, %family, %error, "no answer for one family; its last good one stays");
                    }
                }
                let until = now + holds;
                return Answer { records: records.into(), failure: None, lacks, until, looked: now, failures: 0 };
            }
            // A name that has nothing behind it any more: most often a mistake or a moment in a restart.
            Ok(_) => ResolveError::NoRecords,
            Err(failure) => failure,
        };
        if old.failure.as_ref() != Some(&failure) {
            let kept = old.records.len();
            tracing::warn!(target: "mesh::dns", name, error = %failure, kept, "DNS look-up failed; the last good answer stays");
        }
        let again = self.options.failure_refresh.unwrap_or(AGAIN);
        let span = again.base.saturating_mul(1 << old.failures.min(16)).min(again.max).min(LONGEST);
        let wait = (span / 2 + self.up_to(span / 2)).max(SHORTEST);
        let failures = old.failures.saturating_add(1);
        Answer { failure: Some(failure), until: now + wait, looked: now, failures, ..old }
    }

    /// How long a good answer is used.
    fn holds_for(&self, ttl: Option<Duration>) -> Duration {
        let ttl = ttl.map(|ttl| ttl.max(self.min_refresh));
        let holds = match self.options.refresh {
            Some(refresh) if self.options.respect_ttl => ttl.unwrap_or(refresh),
            Some(refresh) => refresh,
            None => ttl.unwrap_or(WITHOUT_TTL.max(self.min_refresh)),
        };
        holds.clamp(SHORTEST, LONGEST) + self.up_to(self.options.jitter.min(LONGEST))
    }

    /// A random time, at most `most`, in whole milliseconds.
    fn up_to(&self, most: Duration) -> Duration {
        if most.is_zero() {
            return most;
        }
        Duration::from_millis((self.random)(most.as_millis() as u64 + 1))
    }
}

/// Leaves the addresses of the families that are wanted.
fn choose(addresses: &mut Vec<IpAddr>, family: DnsFamily) {
    match family {
        DnsFamily::Auto | DnsFamily::All => {}
        DnsFamily::V4Only => addresses.retain(IpAddr::is_ipv4),
        DnsFamily::V6Only => addresses.retain(IpAddr::is_ipv6),
        DnsFamily::V4Preferred => {
            if addresses.iter().any(IpAddr::is_ipv4) {
                addresses.retain(IpAddr::is_ipv4);
            }
        }
    }
}

impl<T> Answer<T> {
    fn fixed(record: T) -> Self {
        let now = Instant::now();
        let records = Arc::new([record]);
        Self { records, failure: None, lacks: None, until: now + LONGEST, looked: now, failures: 0 }
    }
}

impl<T> Entry<T> {
    fn new(answer: Answer<T>) -> Self {
        // Whoever is the first to look says how long that may take.
        let over = Mutex::new(Instant::now() + PATIENCE);
        Self { answer: Mutex::new(answer), looking: tokio::sync::Mutex::default(), over }
    }
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        let now = Instant::now();
        // Holds for no time at all.
        Self::new(Answer { records: Arc::new([]), failure: None, lacks: None, until: now, looked: now, failures: 0 })
    }
}
