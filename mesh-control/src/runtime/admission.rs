//! Who may have a connection to the control plane: how many in total, and how many of those that have proved nothing yet,
//! of which one address has a share. Whoever has a certificate of the mesh is bounded by its streams.
//!
//! Refuses to know TLS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at once. Default 30,000.
    pub(crate) connections: usize,
    /// Handshakes under way at once: when many come back together, those that have begun are finished in time while the
    /// others wait. Default 2,000.
    pub(crate) handshakes: usize,
    /// Connections without a certificate at once: each asks for its first one and leaves. Default 3,000.
    pub(crate) anonymous: usize,
    /// Connections of one address (of IPv6, one /64) that have not shown a certificate. Processes of this host have
    /// one address and are not counted. Default 1,000: many may come through one address translator.
    pub(crate) unproved_of_one: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 30_000, handshakes: 2_000, anonymous: 3_000, unproved_of_one: 1_000 }
    }
}

/// The places of one port.
pub(super) struct Admission {
    pub(super) connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    unproved: Arc<Mutex<HashMap<IpAddr, usize>>>,
    unproved_of_one: usize,
}

/// The place of one that has not shown a certificate; given back when it is dropped.
pub(super) struct Unproved {
    /// None = not counted.
    whose: Option<IpAddr>,
    all: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            connections: places(bounds.connections),
            handshakes: places(bounds.handshakes),
            anonymous: places(bounds.anonymous),
            unproved: Arc::default(),
            unproved_of_one: bounds.unproved_of_one,
        }
    }

    /// A place for a new connection, unless its address has too many.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Unproved> {
        let whose = share(address.to_canonical());
        if let Some(whose) = whose {
            let mut all = self.unproved.lock();
            let count = all.entry(whose).or_default();
            if *count >= self.unproved_of_one {
                return None;
            }
            *count += 1;
        }
        Some(Unproved { whose, all: self.unproved.clone() })
    }

    /// Waits for a place to shake hands; `None` never comes, for nobody closes it.
    pub(super) async fn handshake(&self) -> Option<OwnedSemaphorePermit> {
        self.handshakes.clone().acquire_owned().await.ok()
    }

    /// A place for a connection without a certificate, unless there are too many.
    pub(super) fn anonymous(&self) -> Option<OwnedSemaphorePermit> {
        self.anonymous.clone().try_acquire_owned().ok()
    }
}

impl Drop for Unproved {
    fn drop(&mut self) {
        let Some(whose) = self.whose else { return };
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&whose) {
            *count -= 1;
            if *count == 0 {
                all.remove(&whose);
            }
        }
    }
}

/// Whose share of the places an address takes from; none for this host's own.
fn share(address: IpAddr) -> Option<IpAddr> {
    match address {
        address if address.is_loopback() => None,
        IpAddr::V4(_) => Some(address),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_share_of_the_places_and_this_host_all_of_them() {
        let admission = Admission::new(Bounds { unproved_of_one: 2, anonymous: 1, ..Bounds::default() });
        let enter = |address: &str| admission.enter(address.parse().unwrap());
        let (first, _second) = (enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap());
        assert!(enter("192.0.2.1").is_none());
        let _others = ["192.0.2.2", "2001:db8::1", "2001:db8::2"].map(|address| enter(address).unwrap());
        assert!(enter("2001:db8::3").is_none(), "one network");
        assert!(enter("2001:db8:0:1::1").is_some(), "another one");
        let _here: Vec<_> = (0..10).map(|_| enter("127.0.0.1").unwrap()).collect();
        drop(first);
        assert!(enter("192.0.2.1").is_some(), "the control: there is room again");
        let only = admission.anonymous().unwrap();
        assert!(admission.anonymous().is_none());
        drop(only);
        assert!(admission.anonymous().is_some());
    }
}
