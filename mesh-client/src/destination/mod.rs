//! The destinations of one client: a table that requests read without a lock, filled on demand.
//!
//! ```text
//! first request ─▶ subscribe, spawn the owner task ─▶ Pending ─▶ Ready(router) ⇄ Failed or Unreachable(why)
//!                                                          └── unused for long: forgotten
//! ```
//!
//! The owner ends or stands still with the runtime that it runs on; the next request from another takes its work over.
//!
//! Refuses to know where snapshots come from.

mod worker;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri, header};
use mesh_core::id::Target;
use mesh_core::policy::DestinationState;
use mesh_core::source::{DestinationSource, Publisher, Watched};
use mesh_core::telemetry::RequestSeries;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout};

use self::worker::Owned;
use crate::env::Env;
use crate::error::Cause;
use crate::outbound::worker::Mirrors;
use crate::router::{Left, Router};

/// All destinations of one client.
pub(crate) struct Destinations {
    env: Arc<Env>,
    source: Arc<dyn DestinationSource>,
    table: Table,
    // How many there are; held while the table changes.
    count: Mutex<usize>,
    // Here, because requests hold this and copies do not: they end with the last who could ask for one.
    mirrors: Mirrors,
}

/// Destinations by name, in parts that are replaced one by one: what a new one costs does not grow with those
/// that are there, and a reader takes no lock.
struct Table {
    parts: [ArcSwap<Part>; PARTS],
    hasher: RandomState,
}

type Part = HashMap<Arc<str>, Arc<Destination>, RandomState>;

const PARTS: usize = 64;

/// How long the owner has for what comes first, before who waits for it takes its place. Hardly noticed, and longer than one
/// that is driven needs.
const GRACE: Duration = Duration::from_millis(100);

/// One dialled destination.
pub(crate) struct Destination {
    target: Target,
    host: HeaderValue,
    phase: Watched<Phase>,
    // Milliseconds of the client's clock.
    last_used: AtomicU64,
    // The same: from when on its owner is missed unless it shows itself before. 0 = it has none.
    missed_from: AtomicU64,
    series: Arc<RequestSeries>,
    states: Watched<DestinationState>,
    publisher: Publisher<Phase>,
    // Held while what was published last is made ready: one at a time, so that nobody goes back to what was before. What is
    // left of clusters that are gone.
    taking: Mutex<Left>,
    // Held while an owner begins.
    owner: Mutex<Option<Owned>>,
    destinations: Weak<Destinations>,
}

/// How far a destination is.
pub(crate) enum Phase {
    /// Asked for.
    Pending,
    /// Takes requests.
    Ready(Arc<Router>),
    /// Known not to exist.
    Failed(Arc<str>),
    /// Nothing known, and nobody could be asked.
    Unreachable(Arc<str>),
}

impl Destinations {
    pub(crate) fn new(env: Arc<Env>, source: Arc<dyn DestinationSource>) -> Self {
        let mirrors = Mirrors::new(env.limits.mirrors);
        Self { env, source, table: Table::new(), count: Mutex::new(0), mirrors }
    }

    /// The destination of a request: the URI's authority, else the `Host` header.
    pub(crate) fn of(self: &Arc<Self>, uri: &Uri, headers: &HeaderMap) -> Result<Arc<Destination>, Cause> {
        let host = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let Some(authority) = uri.authority().map(Authority::as_str).or_else(host) else {
            return Err(Cause::BadTarget("neither the URI nor a Host header names one".to_owned()));
        };
        // Most requests name it just as the table does.
        if let Some(found) = self.table.find(authority) {
            return Ok(found);
        }
        let default_port = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
        self.of_other_form(authority, default_port)
    }

    /// The destination of a target.
    pub(crate) fn to(self: &Arc<Self>, target: &Target) -> Result<Arc<Destination>, Cause> {
        match self.table.find(target.as_str()) {
            Some(found) => Ok(found),
            None => self.subscribe(target),
        }
    }

    /// A destination named in another form than the table's: with capitals, without its port.
    fn of_other_form(self: &Arc<Self>, authority: &str, default_port: u16) -> Result<Arc<Destination>, Cause> {
        // User information is not part of a destination.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
        let (host, port) = split(authority, default_port)?;
        let mut key = SmallVec::<[u8; 128]>::new();
        key.extend(host.bytes().map(|b| b.to_ascii_lowercase()));
        key.push(b':');
        // Five digits at most.
        let mut digits = [0_u8; 5];
        let mut at = digits.len();
        let mut rest = port;
        while rest > 0 || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        key.extend_from_slice(&digits[at..]);
        if let Some(found) = std::str::from_utf8(&key).ok().and_then(|key| self.table.find(key)) {
            return Ok(found);
        }
        self.subscribe(&Target::new(host, port).map_err(|e| Cause::BadTarget(e.to_string()))?)
    }

    /// What all of them share.
    pub(crate) fn env(&self) -> &Arc<Env> {
        &self.env
    }

    /// The copies of requests under way.
    pub(crate) fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    /// The destination of a target, subscribed to if need be.
    pub(crate) fn subscribe(self: &Arc<Self>, target: &Target) -> Result<Arc<Destination>, Cause> {
        let mut count = self.count.lock();
        if let Some(found) = self.table.find(target.as_str()) {
            return Ok(found);
        }
        if *count >= self.env.limits.destinations {
            return Err(Cause::TooManyDestinations(*count));
        }
        let made = worker::start(target.clone(), self);
        self.table.change(target.as_str(), |part| part.insert(target.as_str().into(), made.clone()));
        *count += 1;
        Ok(made)
    }

    /// Every destination held, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Destination>> {
        let mut all = Vec::new();
        for part in &self.table.parts {
            all.extend(part.load().values().cloned());
        }
        all.sort_by(|a, b| a.target.cmp(&b.target));
        all
    }

    /// Forgets a destination unless it was used within `unused`. True if it is gone.
    fn forget(&self, target: &Target, unused: Duration) -> bool {
        let mut count = self.count.lock();
        let Some(destination) = self.table.find(target.as_str()) else { return true };
        // Whoever holds it beside the table and us has a connection or an answer open, which counts against its limits.
        if Arc::strong_count(&destination) > 2 {
            // From its end on it is unused.
            destination.used(self.env.millis(Instant::now()));
            return false;
        }
        if destination.unused_for(&self.env) < unused {
            return false;
        }
        self.table.change(target.as_str(), |part| part.remove(target.as_str()));
        *count -= 1;
        true
    }
}

impl Table {
    fn new() -> Self {
        Self { parts: std::array::from_fn(|_| ArcSwap::default()), hasher: RandomState::default() }
    }

    fn find(&self, name: &str) -> Option<Arc<Destination>> {
        self.part(name).load().get(name).cloned()
    }

    /// Replaces a part by a changed copy; one at a time.
    fn change(&self, name: &str, change: impl FnOnce(&mut Part) -> Option<Arc<Destination>>) {
        let part = self.part(name);
        let mut next = Part::clone(&part.load());
        // Dropped here, after the readers of the part no longer find it.
        let _former = change(&mut next);
        part.store(Arc::new(next));
    }

    fn part(&self, name: &str) -> &ArcSwap<Part> {
        // The upper bits: the lower ones place it within its part. A remainder below the number of parts.
        &self.parts[(self.hasher.hash_one(name) >> 32) as usize % PARTS]
    }
}

impl Destination {
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The target as a `Host` header, made once.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Counts requests that reached no cluster.
    pub(crate) fn series(&self) -> &Arc<RequestSeries> {
        &self.series
    }

    /// How far it is; takes no lock.
    pub(crate) fn phase(&self) -> arc_swap::Guard<Arc<Phase>> {
        self.phase.load()
    }

    /// Notes a use, so that it is not forgotten. Whoever misses the owner takes its place: only then is the configuration
    /// that follows the newest.
    pub(crate) fn touch(self: &Arc<Self>, now: Instant, env: &Env) {
        let now = env.millis(now);
        self.used(now);
        if self.is_missed(now) {
            worker::take_over(self);
        }
    }

    /// `now` by the client's clock.
    fn used(&self, now: u64) {
        self.last_used.store(now, Ordering::Relaxed);
    }

    /// Whether nobody has shown himself as its owner for long.
    fn is_missed(&self, now: u64) -> bool {
        now >= self.missed_from.load(Ordering::Relaxed)
    }

    fn unused_for(&self, env: &Env) -> Duration {
        env.epoch.elapsed().saturating_sub(Duration::from_millis(self.last_used.load(Ordering::Relaxed)))
    }

    /// The router, if there was a snapshot already.
    pub(crate) fn ready(&self) -> Option<Arc<Router>> {
        match &**self.phase.load() {
            Phase::Ready(router) => Some(router.clone()),
            _ => None,
        }
    }

    /// The router; waits up to `wait` for the first snapshot.
    pub(crate) async fn router(self: &Arc<Self>, wait: Duration) -> Result<Arc<Router>, Cause> {
        match self.ready() {
            Some(router) => Ok(router),
            None => self.first_router(wait).await,
        }
    }

    /// The same where there was none yet.
    #[cold]
    pub(crate) async fn first_router(self: &Arc<Self>, wait: Duration) -> Result<Arc<Router>, Cause> {
        let mut phase = self.phase.clone();
        let mut once = true;
        // Boxed: requests that find a router are no larger for it.
        let left = Box::pin(async {
            self.states.clone().wait_for(|state| !matches!(state, DestinationState::Pending)).await;
            let owner = self.missed_from.load(Ordering::Relaxed);
            sleep(GRACE).await;
            worker::insist(self, owner);
        });
        let mut known = pin!(phase.wait_for(|phase| {
            let pending = matches!(phase, Phase::Pending);
            // Its owner says so when it ends.
            if pending && self.is_missed(0) && std::mem::take(&mut once) {
                worker::take_over(self);
            }
            !pending
        }));
        let known = async {
            tokio::select! {
                biased;
                known = &mut known => known,
                () = left => known.await,
            }
        };
        match timeout(wait, known).await.as_deref() {
            Ok(Phase::Ready(router)) => Ok(router.clone()),
            Ok(Phase::Failed(why)) => Err(Cause::NoListener(why.clone())),
            Ok(Phase::Unreachable(why)) => Err(Cause::ControlPlaneUnreachable(why.clone())),
            Ok(Phase::Pending) | Err(_) => Err(Cause::ConfigPending(wait)),
        }
    }
}

fn split(authority: &str, default_port: u16) -> Result<(&str, u16), Cause> {
    match authority.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().map_err(|_| Cause::BadTarget(format!("{authority:?} has no usable port")))?;
            Ok((host, port))
        }
        _ => Ok((authority, default_port)),
    }
}

fn host_header(target: &Target) -> HeaderValue {
    HeaderValue::from_str(target.host_port()).expect("an authority holds only letters, digits and -._[]:%")
}
