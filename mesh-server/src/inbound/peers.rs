//! How many connections each address has open, so that one peer cannot take all there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use tokio::task::Id;

/// Owned by the accept loop. An address is forgotten with its last connection.
pub(crate) struct Peers {
    limit: usize,
    open: HashMap<IpAddr, usize>,
    // By task: one that panics says no more than its id.
    of: HashMap<Id, IpAddr>,
}

impl Peers {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, open: HashMap::new(), of: HashMap::new() }
    }

    /// The limit, if an address has reached it.
    pub(crate) fn full(&self, peer: IpAddr) -> Option<usize> {
        let open = self.open.get(&peer.to_canonical()).copied().unwrap_or(0);
        (open >= self.limit).then_some(self.limit)
    }

    pub(crate) fn enter(&mut self, peer: IpAddr, task: Id) {
        let peer = peer.to_canonical();
        *self.open.entry(peer).or_default() += 1;
        self.of.insert(task, peer);
    }

    pub(crate) fn leave(&mut self, task: Id) {
        let Some(peer) = self.of.remove(&task) else { return };
        if let Entry::Occupied(mut open) = self.open.entry(peer) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}
