//! How often authorization decided what, by policy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Decisions of authorization.
pub const DECISIONS: &str = "mesh_authorization_decisions_total";

/// The labels of one counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionLabels {
    /// The policy whose rule matched, as `ns[NAMESPACE]-policy[NAME]`; where none did, what the policies of an action
    /// make together.
    pub policy: String,
    /// The policy's action: `allow`, `deny`, `audit`, `custom`, `route`; of a JWT filter `jwt`.
    pub action: &'static str,
    /// What came of it: `allowed`, `denied`, `audited`, `asked`, `not_found`.
    pub decision: &'static str,
    /// Whether it was not enforced.
    pub dry_run: bool,
}

/// The counters of a process. Reading them stops nobody who counts.
#[derive(Debug, Default)]
pub struct Decisions {
    counters: Mutex<BTreeMap<DecisionLabels, Arc<AtomicU64>>>,
}

/// Policies beyond this many share one counter for each action: their names come from outside.
const MAX_COUNTERS: usize = 256;

impl Decisions {
    /// The counter of `labels`, made on first use; beyond 256 of them that of the policy `others`. Not for the request
    /// path: keep the answer.
    pub fn counter(&self, labels: DecisionLabels) -> Arc<AtomicU64> {
        let mut counters = self.counters.lock();
        let full = counters.len() >= MAX_COUNTERS && !counters.contains_key(&labels);
        let labels = if full { DecisionLabels { policy: "others".to_owned(), ..labels } } else { labels };
        counters.entry(labels).or_default().clone()
    }

    /// Every counter that has counted, in order of labels.
    pub fn all(&self) -> Vec<(DecisionLabels, u64)> {
        let counters = self.counters.lock();
        let read = counters.iter().map(|(labels, counter)| (labels.clone(), counter.load(Ordering::Relaxed)));
        read.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_beyond_the_bound_are_counted_together() {
        let decisions = Decisions::default();
        let labels = |policy: usize| DecisionLabels {
            policy: format!("ns[a]-policy[{policy}]"),
            action: "deny",
            decision: "denied",
            dry_run: false,
        };
        for policy in 0..2 * MAX_COUNTERS {
            decisions.counter(labels(policy)).fetch_add(1, Ordering::Relaxed);
        }
        decisions.counter(labels(0)).fetch_add(1, Ordering::Relaxed);
        let all = decisions.all();
        assert_eq!(all.len(), MAX_COUNTERS + 1);
        let count = |policy: &str| all.iter().find(|(labels, _)| labels.policy == policy).map(|(_, count)| *count);
        assert_eq!(count("ns[a]-policy[0]"), Some(2));
        assert_eq!(count("others"), Some(MAX_COUNTERS as u64));
    }
}
