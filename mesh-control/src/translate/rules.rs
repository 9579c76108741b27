//! Which DestinationRule holds for a client and a host, and what its blocks come to for one port and
//! subset.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::instances::includes;
use super::{NodeScope, Options, names};
use crate::model::{DestinationRule, Model, Object, PortPolicy, Subset, TrafficPolicy};

type Rule = Arc<Object<DestinationRule>>;

/// DestinationRules by namespace and host.
#[derive(Debug, Default)]
pub(super) struct Rules {
    by_namespace: HashMap<String, NamespaceRules>,
    root: String,
}

#[derive(Debug, Default)]
struct NamespaceRules {
    /// By full host, oldest first.
    exact: HashMap<String, Vec<Rule>>,
    /// Wildcards by suffix, longest first; oldest first within one.
    wildcards: BTreeMap<std::cmp::Reverse<(usize, String)>, Vec<Rule>>,
}

/// The rules of one host, joined: subsets of all, the policy of the oldest that has one.
#[derive(Clone, Debug, Default)]
pub(super) struct Joined<'a> {
    policy: Option<&'a TrafficPolicy>,
    subsets: Vec<&'a Subset>,
}

impl Rules {
    pub(super) fn build(model: &Model, options: &Options) -> Self {
        let mut rules = Self { root: options.root_namespace.clone(), ..Self::default() };
        let mut all: Vec<&Rule> = model.destination_rules.values().collect();
        all.sort_by_key(|rule| rule.seniority());
        for rule in all {
            let namespace = rules.by_namespace.entry(rule.namespace().to_owned()).or_default();
            let host = names::complete(&rule.spec.host, rule.namespace(), options);
            let list = match host.strip_prefix('*') {
                Some(suffix) => {
                    namespace.wildcards.entry(std::cmp::Reverse((suffix.len(), suffix.to_owned()))).or_default()
                }
                None => namespace.exact.entry(host).or_default(),
            };
            list.push(rule.clone());
        }
        rules
    }

    /// The rules for a client and a host of `owner`'s namespace: the client's namespace, then the
    /// owner's, then the root's; the first with a match wins whole.
    pub(super) fn find(&self, scope: &NodeScope, host: &str, owner: &str) -> Joined<'_> {
        join(&self.listed(scope, host, owner))
    }

    /// The rule among them that defines a subset.
    pub(super) fn defining(&self, scope: &NodeScope, host: &str, owner: &str, subset: &str) -> Option<&Rule> {
        let defines = |rule: &&Rule| rule.spec.subsets.iter().any(|known| known.name == subset);
        self.listed(scope, host, owner).into_iter().find(defines)
    }

    fn listed(&self, scope: &NodeScope, host: &str, owner: &str) -> Vec<&Rule> {
        let client = (scope.namespace != self.root).then_some(scope.namespace.as_str());
        let mut tiers = client.into_iter().chain([owner, self.root.as_str()]);
        let found = tiers.find_map(|tier| {
            let found = self.by_namespace.get(tier)?.find(scope, host);
            (!found.is_empty()).then_some(found)
        });
        let mut found = found.unwrap_or_default();
        // Rules shown to different clients are not joined.
        if let Some(first) = found.first().copied() {
            found.retain(|rule| rule.spec.export_to == first.spec.export_to);
        }
        found
    }
}

impl NamespaceRules {
    /// The rules of the most specific host pattern that has one visible to the client; a rule that
    /// selects the client's workload beats those that select nobody.
    fn find(&self, scope: &NodeScope, host: &str) -> Vec<&Rule> {
        let wildcards = self.wildcards.iter().filter(|(suffix, _)| host.ends_with(&suffix.0.1)).map(|(_, list)| list);
        for list in self.exact.get(host).into_iter().chain(wildcards) {
            let visible: Vec<&Rule> =
                list.iter().filter(|rule| rule.spec.export_to.visible_to(&scope.namespace)).collect();
            let selecting = |rule: &&&Rule| {
                let selector = rule.spec.selector.as_ref();
                rule.namespace() == scope.namespace && selector.is_some_and(|s| includes(&scope.labels, s))
            };
            if let Some(rule) = visible.iter().find(selecting) {
                return vec![rule];
            }
            let open: Vec<&Rule> = visible.into_iter().filter(|rule| rule.spec.selector.is_none()).collect();
            if !open.is_empty() {
                return open;
            }
        }
        Vec::new()
    }
}

/// Some rules of one host, the oldest first.
pub(super) fn join<'a>(rules: &[&'a Rule]) -> Joined<'a> {
    let mut joined = Joined::default();
    for rule in rules {
        joined.policy = joined.policy.or(rule.spec.policy.as_ref());
        for subset in &rule.spec.subsets {
            if !joined.subsets.iter().any(|known| known.name == subset.name) {
                joined.subsets.push(subset);
            }
        }
    }
    joined
}

impl<'a> Joined<'a> {
    /// The policy for all ports and subsets, before theirs.
    pub(super) fn whole(&self) -> Option<&'a TrafficPolicy> {
        self.policy
    }

    /// The subset of that name.
    pub(super) fn subset(&self, name: &str) -> Option<&'a Subset> {
        self.subsets.iter().find(|subset| subset.name == name).copied()
    }

    /// The names of all subsets.
    pub(super) fn subset_names(&self) -> impl Iterator<Item = &'a str> {
        self.subsets.iter().map(|subset| subset.name.as_str())
    }

    /// The blocks for a port and a subset. A port entry replaces everything; a subset's blocks replace
    /// one by one; a subset's port entry replaces everything again.
    pub(super) fn policy(&self, port: u16, subset: Option<&Subset>) -> PortPolicy {
        let mut policy = self.policy.map(|policy| blocks(policy, port).clone()).unwrap_or_default();
        let Some(over) = subset.and_then(|subset| subset.policy.as_ref()) else { return policy };
        if let Some(entry) = over.ports.get(&port) {
            return entry.clone();
        }
        let over = over.blocks.clone();
        policy.load_balancer = over.load_balancer.or(policy.load_balancer);
        policy.pool = over.pool.or(policy.pool);
        policy.outlier = over.outlier.or(policy.outlier);
        policy.tls = over.tls.or(policy.tls);
        policy.retry_budget = over.retry_budget.or(policy.retry_budget);
        policy
    }
}

fn blocks(policy: &TrafficPolicy, port: u16) -> &PortPolicy {
    policy.ports.get(&port).unwrap_or(&policy.blocks)
}
