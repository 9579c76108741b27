//! [`Registry`]: the announced endpoints, who holds each, and until when a lost one stays.
//!
//! ```text
//! announce → held ─ withdraw ──────────────────→ gone
//!             ↑  └ stream lost → kept for a while ─ expired → gone
//!             └──────── announce ──────┘
//! ```
//!
//! Time comes in as an argument.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::source::{Publisher, Watched};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Registration;

/// Endpoints of all processes together.
const MAX_ENDPOINTS: usize = 100_000;

/// The announced endpoints.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    published: Publisher<Vec<Registration>>,
    /// Wakes the worker: an endpoint was lost.
    lost: Notify,
    grace: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    last_stream: u64,
}

/// What tells endpoints apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    service: String,
    service_port: u16,
    address: SocketAddr,
}

#[derive(Debug)]
struct Entry {
    registration: Registration,
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
    #[error("{MAX_ENDPOINTS} endpoints are announced already")]
    Full,
    /// Another workload serves there.
    #[error("{address} is announced by the service account {holder}, whose process is still connected")]
    Taken { address: SocketAddr, holder: String },
}

impl Registry {
    /// Begins with the endpoints known before a restart; each has until the grace period is over to be
    /// announced again.
    pub(crate) fn new(known: Vec<Registration>, grace: Duration, now: Instant) -> Self {
        let lost = |registration: Registration| {
            (Key::of(&registration), Entry { registration, holder: Holder::Lost { until: now + grace } })
        };
        let inner = Inner { entries: known.into_iter().map(lost).collect(), last_stream: 0 };
        let (published, _) = Watched::channel(inner.registrations());
        Self { inner: Mutex::new(inner), published, lost: Notify::new(), grace }
    }

    /// The endpoints, now and later.
    pub(crate) fn watch(&self) -> Watched<Vec<Registration>> {
        self.published.watch()
    }

    /// Opens an announcing stream.
    pub(crate) fn stream(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.last_stream += 1;
        inner.last_stream
    }

    /// Takes an endpoint in for `stream`, which then holds this one alone. An endpoint that is known
    /// already, lost or held, passes to the stream without going away in between.
    /// Only a process of the same service account can take over an endpoint that is held.
    pub(crate) fn announce(&self, stream: u64, registration: Registration) -> Result<(), NotAnnounced> {
        self.change(|inner| {
            let key = Key::of(&registration);
            match inner.entries.get(&key) {
                Some(Entry { registration: known, holder: Holder::Stream(_) })
                    if known.service_account != registration.service_account =>
                {
                    let (address, holder) = (known.address, known.service_account.clone());
                    return Err(NotAnnounced::Taken { address, holder });
                }
                None if inner.entries.len() >= MAX_ENDPOINTS => return Err(NotAnnounced::Full),
                _ => {}
            }
            inner.entries.retain(|other, entry| *other == key || entry.holder != Holder::Stream(stream));
            inner.entries.insert(key, Entry { registration, holder: Holder::Stream(stream) });
            Ok(())
        })
    }

    /// Takes the stream's endpoint out at once.
    pub(crate) fn withdraw(&self, stream: u64) {
        self.change(|inner| inner.entries.retain(|_, entry| entry.holder != Holder::Stream(stream)));
    }

    /// The stream ended without a withdrawal: its endpoint stays for the grace period.
    pub(crate) fn lose(&self, stream: u64, now: Instant) {
        let until = now + self.grace;
        let mut inner = self.inner.lock();
        for entry in inner.entries.values_mut().filter(|entry| entry.holder == Holder::Stream(stream)) {
            entry.holder = Holder::Lost { until };
            self.lost.notify_one();
        }
    }

    /// Takes out what was lost too long ago; gives when to look again.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        self.change(|inner| {
            inner.entries.retain(|key, entry| {
                let keep = !matches!(entry.holder, Holder::Lost { until } if until <= now);
                if !keep {
                    tracing::info!(
                        service = %key.service, namespace = %key.namespace, address = %key.address,
                        "an endpoint's process is gone; it is taken out"
                    );
                }
                keep
            });
            let lost_until = |entry: &Entry| match entry.holder {
                Holder::Lost { until } => Some(until),
                Holder::Stream(_) => None,
            };
            inner.entries.values().filter_map(lost_until).min()
        })
    }

    /// Waits until an endpoint was lost since the last wait.
    pub(crate) async fn something_lost(&self) {
        self.lost.notified().await;
    }

    /// Makes a change and publishes it if there was one.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let result = change(&mut inner);
        let registrations = inner.registrations();
        // Under the lock, so that publications come in the order of changes.
        if *self.published.load_full() != registrations {
            self.published.publish(registrations);
        }
        result
    }
}

impl Inner {
    fn registrations(&self) -> Vec<Registration> {
        self.entries.values().map(|entry| entry.registration.clone()).collect()
    }
}

impl Key {
    fn of(registration: &Registration) -> Self {
        Self {
            namespace: registration.namespace.clone(),
            service: registration.service.clone(),
            service_port: registration.service_port,
            address: registration.address,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::tests::registration;
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn registry() -> (Registry, Watched<Vec<Registration>>, Instant) {
        let now = Instant::now();
        let registry = Registry::new(Vec::new(), GRACE, now);
        let watched = registry.watch();
        (registry, watched, now)
    }

    fn addresses(watched: &Watched<Vec<Registration>>) -> Vec<u16> {
        watched.load().iter().map(|r| r.address.port()).collect()
    }

    #[test]
    fn an_endpoint_is_there_until_it_is_withdrawn() {
        let (registry, watched, now) = registry();
        let (first, second) = (registry.stream(), registry.stream());
        registry.announce(first, registration(1)).unwrap();
        registry.announce(second, registration(2)).unwrap();
        assert_eq!(addresses(&watched), [1, 2]);
        registry.withdraw(first);
        assert_eq!(addresses(&watched), [2]);
        assert_eq!(registry.expire(now + 100 * GRACE), None);
        assert_eq!(addresses(&watched), [2]);
    }

    #[test]
    fn a_lost_stream_keeps_its_endpoint_for_the_grace_period() {
        let (registry, watched, now) = registry();
        let stream = registry.stream();
        registry.announce(stream, registration(1)).unwrap();
        registry.lose(stream, now);
        assert_eq!(registry.expire(now + GRACE - Duration::from_millis(1)), Some(now + GRACE));
        assert_eq!(addresses(&watched), [1]);
        assert_eq!(registry.expire(now + GRACE), None);
        assert_eq!(addresses(&watched), [0_u16; 0]);
    }

    #[tokio::test]
    async fn announcing_again_within_grace_changes_nothing_for_anybody() {
        let (registry, mut watched, now) = registry();
        let (before, after) = (registry.stream(), registry.stream());
        registry.announce(before, registration(1)).unwrap();
        watched.changed().await;
        registry.lose(before, now);
        registry.announce(after, registration(1)).unwrap();
        // A late end of the old stream, and its withdrawal, are no longer about this endpoint.
        registry.lose(before, now);
        registry.withdraw(before);
        assert_eq!(registry.expire(now + 100 * GRACE), None);
        assert_eq!(addresses(&watched), [1]);
        assert_eq!(watched.changed().now_or_never(), None, "nothing was published");
        registry.withdraw(after);
        assert_eq!(watched.changed().now_or_never(), Some(()), "the control");
    }

    #[test]
    fn a_stream_holds_the_endpoint_it_announced_last() {
        let (registry, watched, _) = registry();
        let stream = registry.stream();
        registry.announce(stream, registration(1)).unwrap();
        registry.announce(stream, registration(2)).unwrap();
        assert_eq!(addresses(&watched), [2]);
    }

    #[test]
    fn a_held_endpoint_cannot_be_taken_over_by_another_service_account() {
        let (registry, watched, now) = registry();
        let (owner, thief) = (registry.stream(), registry.stream());
        registry.announce(owner, registration(1)).unwrap();
        let stolen = Registration { service_account: "thief".into(), ..registration(1) };
        assert!(matches!(registry.announce(thief, stolen.clone()), Err(NotAnnounced::Taken { .. })));
        registry.withdraw(thief);
        assert_eq!(addresses(&watched), [1]);
        registry.lose(owner, now);
        assert_eq!(registry.announce(thief, stolen), Ok(()), "the control: nobody holds it any more");
    }

    #[test]
    fn what_was_known_before_a_restart_waits_to_be_announced_again() {
        let now = Instant::now();
        let registry = Registry::new(vec![registration(1), registration(2)], GRACE, now);
        let watched = registry.watch();
        assert_eq!(addresses(&watched), [1, 2]);
        registry.announce(registry.stream(), registration(1)).unwrap();
        assert_eq!(registry.expire(now + GRACE), None);
        assert_eq!(addresses(&watched), [1]);
    }
}
