//! How often one identity may ask for certificates: a bucket of tokens each. Pure but for the clock of the caller.

use std::collections::BTreeMap;

use mesh_core::id::SpiffeId;
use parking_lot::Mutex;

/// Certificates that an identity gets at once: all replicas of a service account that start together.
const BURST: u64 = 1_000;
/// And afterwards, each second.
const EACH_SECOND: u64 = 10;
/// Identities that are remembered; who is not, has a full bucket.
const IDENTITIES: usize = 10_000;

/// The buckets of all identities.
#[derive(Debug, Default)]
pub(super) struct IssueLimit(Mutex<BTreeMap<SpiffeId, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: u64,
    at: u64,
}

impl Bucket {
    /// What is in it at `now`.
    fn level(&self, now: u64) -> u64 {
        self.left.saturating_add(now.saturating_sub(self.at).saturating_mul(EACH_SECOND)).min(BURST)
    }
}

impl IssueLimit {
    /// Takes one for `id` at `now`, seconds of a clock that only goes forward; false = there is none.
    pub(super) fn take(&self, id: &SpiffeId, now: u64) -> bool {
        let mut buckets = self.0.lock();
        if buckets.len() >= IDENTITIES && !buckets.contains_key(id) {
            buckets.retain(|_, bucket| bucket.level(now) < BURST);
            if buckets.len() >= IDENTITIES {
                // So many at once are not workloads; none of them gets more for being unknown.
                return false;
            }
        }
        let bucket = buckets.entry(id.clone()).or_insert(Bucket { left: BURST, at: now });
        let level = bucket.level(now);
        (bucket.left, bucket.at) = (level.saturating_sub(1), now);
        level > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
    }

    #[test]
    fn an_identity_that_asks_too_often_waits_and_the_others_do_not() {
        let limit = IssueLimit::default();
        for _ in 0..BURST {
            assert!(limit.take(&id("noisy"), 100));
        }
        assert!(!limit.take(&id("noisy"), 100));
        assert!(limit.take(&id("quiet"), 100));
        for _ in 0..EACH_SECOND {
            assert!(limit.take(&id("noisy"), 101));
        }
        assert!(!limit.take(&id("noisy"), 101));
        assert!(limit.take(&id("noisy"), u64::MAX));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limit = IssueLimit::default();
        for n in 0..IDENTITIES {
            assert!(limit.take(&id(&format!("a{n}")), 100));
        }
        assert!(!limit.take(&id("one-more"), 100));
        assert!(limit.take(&id("a0"), 100), "who is known goes on");
        assert!(limit.take(&id("one-more"), 101), "full buckets are forgotten");
        assert_eq!(limit.0.lock().len(), 1);
    }
}
