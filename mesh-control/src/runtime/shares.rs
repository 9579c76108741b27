//! [`Shares`]: places of which everybody has so many, by address or by identity.
//!
//! Refuses to know what the places are for.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use mesh_core::limit::host;

/// The places of everybody who has one; of others nothing is remembered.
#[derive(Debug)]
pub(crate) struct Shares<K> {
    each: usize,
    all: All<K>,
}

type All<K> = Arc<Mutex<HashMap<K, Arc<Semaphore>>>>;

/// One place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    /// None = it is not counted.
    whose: Option<K>,
    permit: Option<OwnedSemaphorePermit>,
    all: All<K>,
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// So many places for `each`.
    pub(crate) fn new(each: usize) -> Self {
        Self { each, all: Arc::default() }
    }

    /// A place of `whose`, unless all of theirs are taken; `None` is not counted.
    pub(crate) fn enter(&self, whose: Option<K>) -> Option<Place<K>> {
        let (mut place, places) = self.of(whose);
        if let Some(places) = places {
            place.permit = Some(places.try_acquire_owned().ok()?);
        }
        Some(place)
    }

    /// Waits for a place of `whose`, behind others of the same alone; `None` is not counted.
    pub(crate) async fn wait(&self, whose: Option<K>) -> Place<K> {
        let (mut place, places) = self.of(whose);
        if let Some(places) = places {
            // Nobody closes it.
            place.permit = places.acquire_owned().await.ok();
        }
        place
    }

    fn of(&self, whose: Option<K>) -> (Place<K>, Option<Arc<Semaphore>>) {
        let places = |key: K| self.all.lock().entry(key).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone();
        let places = whose.clone().map(places);
        (Place { whose, permit: None, all: self.all.clone() }, places)
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let Some(whose) = &self.whose else { return };
        let mut all = self.all.lock();
        self.permit = None;
        // Whoever has or awaits a place holds them, too.
        if all.get(whose).is_some_and(|places| Arc::strong_count(places) == 1) {
            all.remove(whose);
        }
    }
}

/// Whose places an address takes. None for this host's own, for all its processes have that.
pub(crate) fn holder(address: IpAddr) -> Option<IpAddr> {
    Some(host(address)).filter(|host| !host.is_loopback())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_address_has_a_share_of_the_places_and_this_host_all_of_them() {
        let shares = Shares::new(2);
        let enter = |address: &str| shares.enter(holder(address.parse().unwrap()));
        let (first, _second) = (enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap());
        assert!(enter("192.0.2.1").is_none());
        let _others = ["192.0.2.2", "2001:db8::1", "2001:db8::2"].map(|address| enter(address).unwrap());
        assert!(enter("2001:db8::3").is_none(), "one network");
        assert!(enter("2001:db8:0:1::1").is_some(), "another one");
        let _here: Vec<_> = (0..10).map(|_| enter("127.0.0.1").unwrap()).collect();
        drop(first);
        assert!(enter("192.0.2.1").is_some(), "the control: there is room again");
    }

    #[test]
    fn who_waits_waits_behind_its_own_and_nothing_is_left_of_who_has_gone() {
        let shares = Shares::new(1);
        let first = shares.enter(Some("a")).unwrap();
        let mut second = Box::pin(shares.wait(Some("a")));
        assert!(second.as_mut().now_or_never().is_none() && shares.wait(Some("b")).now_or_never().is_some());
        // One that gives up waiting.
        assert!(shares.wait(Some("a")).now_or_never().is_none());
        drop(first);
        let second = second.as_mut().now_or_never().unwrap();
        assert_eq!(shares.all.lock().len(), 1);
        drop(second);
        assert_eq!(shares.all.lock().len(), 0);
    }
}
