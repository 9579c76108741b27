//! The counters of one policy's decisions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::policy::{AuthorizationAction, AuthorizationPolicy};
use crate::telemetry::{DecisionLabels, Decisions};

type Counter = Arc<AtomicU64>;

#[derive(Debug)]
pub(super) struct Counts {
    /// By place of the rule that matched; empty = matches are not counted.
    matched: Box<[Counter]>,
    /// Where none did.
    unmatched: Option<Counter>,
}

impl Counts {
    pub(super) fn new(policy: &AuthorizationPolicy, decisions: &Decisions) -> Self {
        let (action, matched, unmatched) = match &policy.action {
            AuthorizationAction::Allow => ("allow", Some("allowed"), Some("denied")),
            AuthorizationAction::Deny => ("deny", Some("denied"), None),
            AuthorizationAction::Audit => ("audit", Some("audited"), None),
            AuthorizationAction::Custom(_) => ("custom", Some("asked"), None),
            AuthorizationAction::Route => ("route", None, Some("not_found")),
        };
        let counter = |name: &str, decision| {
            let labels = DecisionLabels { policy: name.to_owned(), action, decision, dry_run: policy.dry_run };
            decisions.counter(labels)
        };
        let of_rules = |decision| policy.rules.iter().map(|rule| counter(policy_of(&rule.name), decision)).collect();
        Self {
            matched: matched.map_or_else(Box::default, of_rules),
            unmatched: unmatched.map(|decision| counter(&policy.name, decision)),
        }
    }

    pub(super) fn count(&self, rule: Option<usize>) {
        let counter = match rule {
            Some(place) => self.matched.get(place),
            None => self.unmatched.as_ref(),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The policy of a rule that is named as Istio names them.
fn policy_of(rule: &str) -> &str {
    rule.rsplit_once("-rule[").map_or(rule, |(policy, _)| policy)
}
