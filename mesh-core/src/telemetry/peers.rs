//! Open connections of the mesh's own TLS by the root that vouches for their peer: before a root is taken out nobody may
//! live by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{OTHER, Reporter};

/// Open connections with mutual TLS by the root that vouches for the peer, gauge.
pub const PEERS_BY_ROOT: &str = "mesh_tls_peers_by_root";

/// Roots that are counted on their own; a process trusts a few.
const MOST_ROOTS: usize = 256;

/// How many peers live by each root. A root that was seen stays, with 0, so that it can be seen to be free.
#[derive(Debug, Default)]
pub struct PeersByRoot {
    open: Mutex<BTreeMap<End, Arc<AtomicU64>>>,
}

/// Which end of its connections this process is, and the root.
type End = (Reporter, Box<str>);

/// One open connection; it is counted until it is dropped.
#[derive(Debug)]
pub struct CountedPeer(Arc<AtomicU64>);

impl PeersByRoot {
    /// Counts a connection whose peer this root vouches for ([`root_of`](crate::identity::root_of)). `reporter` = which end
    /// of it this process is.
    pub fn count(&self, reporter: Reporter, root: &str) -> CountedPeer {
        let mut open = self.open.lock();
        let mut key = (reporter, Box::from(root));
        if open.len() >= MOST_ROOTS && !open.contains_key(&key) {
            key.1 = OTHER.into();
        }
        let counter = open.entry(key).or_default().clone();
        counter.fetch_add(1, Ordering::Relaxed);
        CountedPeer(counter)
    }

    /// Every root that was seen, in order, with the connections that are open now.
    pub fn all(&self) -> Vec<(Reporter, Box<str>, u64)> {
        let read =
            |((reporter, root), open): (&End, &Arc<AtomicU64>)| (*reporter, root.clone(), open.load(Ordering::Relaxed));
        self.open.lock().iter().map(read).collect()
    }
}

impl Drop for CountedPeer {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_counts_for_its_root_until_its_connection_ends() {
        let peers = PeersByRoot::default();
        let (one, other) = (peers.count(Reporter::Source, "a"), peers.count(Reporter::Source, "a"));
        let _inbound = peers.count(Reporter::Destination, "b");
        let read = || peers.all().into_iter().map(|(_, root, open)| format!("{root}{open}")).collect::<Vec<_>>();
        assert_eq!(read(), ["a2", "b1"]);
        drop(one);
        assert_eq!(read(), ["a1", "b1"]);
        drop(other);
        assert_eq!(read(), ["a0", "b1"], "it is seen to be free");
    }

    #[test]
    fn roots_without_end_share_a_count() {
        let peers = PeersByRoot::default();
        let all: Vec<_> = (0..2 * MOST_ROOTS).map(|n| peers.count(Reporter::Source, &format!("{n:04}"))).collect();
        assert_eq!(peers.all().len(), MOST_ROOTS + 1);
        assert_eq!(peers.all().iter().map(|(.., open)| *open).sum::<u64>(), all.len() as u64);
    }
}
