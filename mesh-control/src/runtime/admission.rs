//! Who may have a connection to the control plane: how many in total, how many of one identity, and of those that have
//! proved nothing yet how many of one address.
//!
//! Refuses to know TLS.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::id::SpiffeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shares::{Place, Shares, holder};

/// Bounds of one port. Those of an address are of an IPv4 address or of a /64 of IPv6; processes of this host have one
/// address and are not counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at once. Default 30,000.
    pub(crate) connections: usize,
    /// Connections of one identity. Default 10,000: twice its streams of configuration, as many as its announcing ones.
    pub(crate) of_identity: usize,
    /// Handshakes under way at once: when many come back together, those that have begun are finished in time while the
    /// others wait. Default 2,000.
    pub(crate) handshakes: usize,
    /// Those of one address, which wait for each other before they wait for the rest. Default 250.
    pub(crate) handshakes_of_address: usize,
    /// Connections without a certificate at once: each asks for its first one and leaves. Default 3,000.
    pub(crate) anonymous: usize,
    /// Connections of one address that have not shown a certificate. Default 1,000: many may come through one address
    /// translator.
    pub(crate) unproved_of_address: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 30_000,
            of_identity: 10_000,
            handshakes: 2_000,
            handshakes_of_address: 250,
            anonymous: 3_000,
            unproved_of_address: 1_000,
        }
    }
}

impl Bounds {
    /// Those of a port for pages: 64 connections.
    pub(crate) fn of_pages() -> Self {
        Self { connections: 64, ..Self::default() }
    }
}

/// The places of one port.
pub(super) struct Admission {
    pub(super) connections: Arc<Semaphore>,
    identities: Shares<SpiffeId>,
    handshakes: Arc<Semaphore>,
    handshakes_of_address: Shares<IpAddr>,
    anonymous: Arc<Semaphore>,
    unproved: Shares<IpAddr>,
}

/// A place for a handshake.
pub(super) struct Handshake {
    _all: Option<OwnedSemaphorePermit>,
    _own: Place<IpAddr>,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            connections: places(bounds.connections),
            identities: Shares::new(bounds.of_identity),
            handshakes: places(bounds.handshakes),
            handshakes_of_address: Shares::new(bounds.handshakes_of_address),
            anonymous: places(bounds.anonymous),
            unproved: Shares::new(bounds.unproved_of_address),
        }
    }

    /// A place for a new connection that has proved nothing yet, unless its address has too many.
    pub(super) fn unproved(&self, address: IpAddr) -> Option<Place<IpAddr>> {
        self.unproved.enter(holder(address))
    }

    /// Waits for a place to shake hands.
    pub(super) async fn handshake(&self, address: IpAddr) -> Handshake {
        let _own = self.handshakes_of_address.wait(holder(address)).await;
        // Nobody closes it.
        let _all = self.handshakes.clone().acquire_owned().await.ok();
        Handshake { _all, _own }
    }

    /// A place for a connection of a verified identity, unless it has too many.
    pub(super) fn identity(&self, id: &SpiffeId) -> Option<Place<SpiffeId>> {
        self.identities.enter(Some(id.clone()))
    }

    /// A place for a connection without a certificate, unless there are too many.
    pub(super) fn anonymous(&self) -> Option<OwnedSemaphorePermit> {
        self.anonymous.clone().try_acquire_owned().ok()
    }
}
