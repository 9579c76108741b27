//! A source that a test feeds by hand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use mesh_core::id::Target;
use mesh_core::policy::{DestinationState, InboundListener, InboundState, Snapshot};
use mesh_core::source::{DestinationSource, InboundSource, Publisher, Watched};

/// Destinations and inbound policy as the test sets them; what was not set is pending.
#[derive(Debug, Default)]
pub struct FixedSource {
    destinations: Mutex<HashMap<Target, Destination>>,
    inbound: Mutex<HashMap<SocketAddr, Publisher<InboundState>>>,
}

#[derive(Debug)]
struct Destination {
    publisher: Publisher<DestinationState>,
    asked: bool,
}

impl FixedSource {
    /// A source that knows nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A source that knows one destination.
    pub fn of(target: &str, snapshot: Snapshot) -> Arc<Self> {
        let source = Self::new();
        source.set_snapshot(target, snapshot);
        source
    }

    /// Sets what is known of `target` (`reviews:9080`); who watches it learns at once.
    pub fn set(&self, target: &str, state: DestinationState) {
        self.with(&parse(target), |destination| destination.publisher.publish(state));
    }

    /// Sets a destination's configuration.
    pub fn set_snapshot(&self, target: &str, snapshot: Snapshot) {
        self.set(target, DestinationState::Ready(Arc::new(snapshot)));
    }

    /// Sets what is known of a listening address.
    pub fn set_inbound(&self, address: SocketAddr, state: InboundState) {
        self.with_inbound(address, |publisher| publisher.publish(state));
    }

    /// Sets the policy of the listening address that it names.
    pub fn set_inbound_policy(&self, policy: InboundListener) {
        self.set_inbound(policy.address, InboundState::Ready(Arc::new(policy)));
    }

    /// Whether somebody has asked for `target`.
    pub fn was_asked(&self, target: &str) -> bool {
        self.destinations.lock().get(&parse(target)).is_some_and(|destination| destination.asked)
    }

    /// How many readers watch `target` now.
    pub fn readers(&self, target: &str) -> usize {
        self.destinations.lock().get(&parse(target)).map_or(0, |destination| destination.publisher.readers())
    }

    fn with<T>(&self, target: &Target, act: impl FnOnce(&mut Destination) -> T) -> T {
        let mut destinations = self.destinations.lock();
        act(destinations.entry(target.clone()).or_insert_with(|| {
            let (publisher, _) = Watched::channel(DestinationState::Pending);
            Destination { publisher, asked: false }
        }))
    }

    fn with_inbound<T>(&self, address: SocketAddr, act: impl FnOnce(&Publisher<InboundState>) -> T) -> T {
        let mut inbound = self.inbound.lock();
        act(inbound.entry(address).or_insert_with(|| Watched::channel(InboundState::Pending).0))
    }
}

impl DestinationSource for FixedSource {
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        self.with(target, |destination| {
            destination.asked = true;
            destination.publisher.watch()
        })
    }
}

impl InboundSource for FixedSource {
    fn inbound(&self, address: SocketAddr) -> Watched<InboundState> {
        self.with_inbound(address, Publisher::watch)
    }
}

fn parse(target: &str) -> Target {
    target.parse().unwrap_or_else(|e| panic!("{e}"))
}
