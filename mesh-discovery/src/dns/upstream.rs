//! Name servers, where names are searched with them, and what they answered.
//!
//! Refuses to know which family is waited for, and for how long.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::{Name, RecordType};
use mesh_core::source::{Family, ResolveError};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::Cache;
use super::servers::Servers;

/// What look-ups go by.
pub(super) struct Upstream {
    pub(super) servers: Servers,
    pub(super) cache: Cache,
    pub(super) search: Search,
}

/// Where names that are not complete are looked for.
pub(super) struct Search {
    pub(super) domains: Vec<Name>,
    pub(super) ndots: usize,
}

/// A place among the look-ups under way, for one complete name. What is kept needs none: whoever waits for one does so behind
/// names that nobody answers for.
pub(super) struct Place {
    places: Arc<Semaphore>,
    taking: tokio::sync::Mutex<()>,
    held: Mutex<Held>,
}

enum Held {
    NotYet,
    Taken(#[allow(dead_code, reason = "it is held")] OwnedSemaphorePermit),
    /// Whoever asks still does without.
    GivenBack,
}

/// The addresses of one family, at least one, and until when they hold.
pub(super) type Addresses = Result<(Vec<IpAddr>, Instant), ResolveError>;

impl Upstream {
    /// What the name servers say of one complete name, with the aliases on the way, or have said and still holds.
    pub(super) async fn ask(&self, name: Name, kind: RecordType, place: &Place) -> Result<Lookup, ResolveError> {
        if let Some(answer) = self.cache.holding(&name, kind) {
            return answer;
        }
        place.take().await;
        // Somebody else's, who had one before.
        if let Some(answer) = self.cache.holding(&name, kind) {
            return answer;
        }
        let asked = Instant::now();
        let answer = self.servers.ask(&name, kind).await;
        self.cache.keep(name, kind, &answer, asked);
        answer
    }

    /// The addresses of one family.
    pub(super) async fn of_family(self: Arc<Self>, name: Name, family: Family, place: Arc<Place>) -> Addresses {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let found = self.ask(name, kind, &place).await?;
        let of_kind = found.answers().iter().filter(|record| record.record_type() == kind);
        let addresses: Vec<_> = of_kind.filter_map(|record| record.data.ip_addr()).collect();
        if addresses.is_empty() { Err(ResolveError::NoRecords) } else { Ok((addresses, found.valid_until())) }
    }
}

impl Search {
    /// The names that `name` may stand for, in the order in which they are tried: the first one that has addresses is it.
    pub(super) fn names(&self, mut name: Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name];
        }
        let is_first = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        // One that is too long together is none.
        let mut names: Vec<_> =
            self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        name.set_fqdn(true);
        names.insert(if is_first { 0 } else { names.len() }, name);
        names
    }
}

impl Place {
    /// One of these.
    pub(super) fn among(places: &Arc<Semaphore>) -> Arc<Self> {
        let (taking, held) = (tokio::sync::Mutex::default(), Mutex::new(Held::NotYet));
        Arc::new(Self { places: places.clone(), taking, held })
    }

    /// Waits for it, within the asker's patience.
    async fn take(&self) {
        let _taking = self.taking.lock().await;
        if !matches!(*self.held.lock(), Held::NotYet) {
            return;
        }
        let permit = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let mut held = self.held.lock();
        if let Held::NotYet = *held {
            *held = Held::Taken(permit);
        }
    }

    /// Leaves it to others, though something is asked still or waits to be.
    pub(super) fn give_back(&self) {
        *self.held.lock() = Held::GivenBack;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_place_that_was_given_back_is_taken_no_more() {
        let places = Arc::new(Semaphore::new(1));
        let (first, place) = (Place::among(&places), Place::among(&places));
        first.take().await;
        let late = place.take();
        tokio::pin!(late);
        assert!((&mut late).now_or_never().is_none());
        place.give_back();
        drop(first);
        late.await;
        place.take().await;
        assert_eq!(places.available_permits(), 1);
        // The control.
        let another = Place::among(&places);
        another.take().await;
        assert_eq!(places.available_permits(), 0);
    }
}
