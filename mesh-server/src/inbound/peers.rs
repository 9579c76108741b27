//! How many connections each host has open, so that one peer cannot take all there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use tokio::task::Id;

use mesh_core::limit::host;

/// Owned by the accept loop. A host is forgotten with its last connection.
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

    /// The limit, if the host of an address has reached it.
    pub(crate) fn full(&self, peer: IpAddr) -> Option<usize> {
        let open = self.open.get(&host(peer)).copied().unwrap_or(0);
        (open >= self.limit).then_some(self.limit)
    }

    pub(crate) fn enter(&mut self, peer: IpAddr, task: Id) {
        let peer = host(peer);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_of_one_ipv6_network_count_as_one_host() {
        let (mut peers, mut tasks) = (Peers::new(2), tokio::task::JoinSet::new());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut enter = |peers: &mut Peers, text: &str| {
            let task = tasks.spawn(std::future::ready(())).id();
            peers.enter(address(text), task);
            task
        };
        let first = enter(&mut peers, "2001:db8::1");
        enter(&mut peers, "2001:db8::2");
        assert_eq!(peers.full(address("2001:db8::3")), Some(2));
        // The controls: another network, IPv4, and a place that is free again.
        enter(&mut peers, "192.0.2.1");
        enter(&mut peers, "192.0.2.2");
        for free in ["2001:db8:0:1::1", "::ffff:192.0.2.1", "192.0.2.2"] {
            assert_eq!(peers.full(address(free)), None, "{free}");
        }
        peers.leave(first);
        assert_eq!(peers.full(address("2001:db8::3")), None);
    }
}
