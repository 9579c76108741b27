//! The rules of one policy, found by what they demand: a rule that only some callers, namespaces or paths can
//! satisfy is looked at for those only.

use std::collections::HashMap;

use super::Attributes;
use super::condition::{Condition, Truth, namespace_of, one_of};
use crate::policy::{AuthorizationRule, PathMatch, Permission, Principal, StringMatch};

#[derive(Debug)]
pub(super) struct Rules {
    rules: Box<[Rule]>,
    by_path: Index,
    by_peer: Index,
    by_namespace: Index,
    // Rules without such a demand.
    others: Box<[u32]>,
}

/// Places of rules, in order.
type Index = HashMap<Box<str>, Vec<u32>, foldhash::fast::FixedState>;

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    permissions: Box<[Condition]>,
    principals: Box<[Condition]>,
}

impl Rules {
    pub(super) fn new(policy: &[AuthorizationRule]) -> Self {
        let (mut by_path, mut by_peer, mut by_namespace) = (Index::default(), Index::default(), Index::default());
        let mut others = Vec::new();
        for (place, rule) in (0..).zip(policy) {
            let principals = |exact| exact_of(&rule.principals, exact);
            let keys = [
                (&mut by_peer, principals(exact_peer)),
                (&mut by_path, exact_of(&rule.permissions, exact_path)),
                (&mut by_namespace, principals(exact_namespace)),
            ];
            match keys.into_iter().find_map(|(index, keys)| Some((index, keys?))) {
                None => others.push(place),
                Some((index, keys)) => {
                    for key in keys {
                        let places: &mut Vec<u32> = index.entry(key.into()).or_default();
                        if places.last() != Some(&place) {
                            places.push(place);
                        }
                    }
                }
            }
        }
        let rules = policy.iter().map(|rule| Rule {
            name: rule.name.as_str().into(),
            permissions: rule.permissions.iter().map(Condition::permission).collect(),
            principals: rule.principals.iter().map(Condition::principal).collect(),
        });
        Self { rules: rules.collect(), by_path, by_peer, by_namespace, others: others.into() }
    }

    /// The name of the first rule that matches; `unknown` = what is not known counts as a match.
    pub(super) fn first(&self, of: &Attributes<'_>, unknown: bool) -> Option<&str> {
        if self.rules.is_empty() {
            return None;
        }
        let least = if unknown { Truth::Unknown } else { Truth::Yes };
        let matches = |place: &u32| self.rules[*place as usize].judge(of) >= least;
        let path = of.request.path();
        let Some(peer) = of.peer.filter(|_| path.starts_with('/')) else {
            // What rules are found by is not known: each is asked.
            return self.rules.iter().find(|rule| rule.judge(of) >= least).map(|rule| &*rule.name);
        };
        let mut found = u32::MAX;
        let mut look = |places: &[u32]| {
            if let Some(place) = places.iter().take_while(|place| **place < found).find(|place| matches(place)) {
                found = *place;
            }
        };
        look(&self.others);
        look_up(&self.by_path, path, &mut look);
        if let Some(id) = &peer.spiffe_id {
            look_up(&self.by_peer, id.as_str(), &mut look);
            if !self.by_namespace.is_empty() {
                for namespace in namespaces(id.as_str()) {
                    look_up(&self.by_namespace, namespace, &mut look);
                }
            }
        }
        self.rules.get(found as usize).map(|rule| &*rule.name)
    }
}

impl Rule {
    fn judge(&self, of: &Attributes<'_>) -> Truth {
        match one_of(&self.principals, of) {
            Truth::No => Truth::No,
            known => known.min(one_of(&self.permissions, of)),
        }
    }
}

fn look_up(index: &Index, key: &str, look: &mut impl FnMut(&[u32])) {
    // Most policies have no rule of a kind: no need to hash then.
    if !index.is_empty()
        && let Some(places) = index.get(key)
    {
        look(places);
    }
}

/// Every `<namespace>` of `/ns/<namespace>/` in a SPIFFE ID. Kubernetes' have one.
fn namespaces(id: &str) -> impl Iterator<Item = &str> {
    // One may begin with the slash that ends another: `/ns/ns/sa/` has two.
    id.match_indices('/').filter_map(|(at, _)| Some(id[at..].strip_prefix("/ns/")?.split_once('/')?.0))
}

/// The texts of which a request must have one to satisfy a list of alternatives; `None` = it need not.
fn exact_of<T>(list: &[T], exact: fn(&T) -> Option<Vec<&str>>) -> Option<Vec<&str>> {
    let each: Option<Vec<_>> = list.iter().map(exact).collect();
    Some(each?.concat())
}

fn exact_path(permission: &Permission) -> Option<Vec<&str>> {
    match permission {
        Permission::Path(PathMatch::Exact(path)) => Some(vec![path]),
        Permission::And(all) => all.iter().find_map(exact_path),
        Permission::Or(any) => exact_of(any, exact_path),
        _ => None,
    }
}

fn exact_peer(principal: &Principal) -> Option<Vec<&str>> {
    match principal {
        Principal::Authenticated(Some(name)) if !name.ignore_case => match &name.pattern {
            StringMatch::Exact(id) => Some(vec![id]),
            _ => None,
        },
        Principal::And(all) => all.iter().find_map(exact_peer),
        Principal::Or(any) => exact_of(any, exact_peer),
        _ => None,
    }
}

fn exact_namespace(principal: &Principal) -> Option<Vec<&str>> {
    match principal {
        Principal::Authenticated(Some(name)) => namespace_of(name).map(|namespace| vec![namespace]),
        Principal::And(all) => all.iter().find_map(exact_namespace),
        Principal::Or(any) => exact_of(any, exact_namespace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_that_a_pattern_would_find_is_found() {
        for id in [
            "spiffe://t/ns/a/sa/b",
            "spiffe://t/ns/ns/sa/b",
            "spiffe://t/x/ns/a/ns/b/c",
            "spiffe://t/ns/a",
            "spiffe://t/ns//x",
        ] {
            let found: Vec<_> = namespaces(id).collect();
            for namespace in ["a", "b", "ns", "sa", "c", "x"] {
                assert_eq!(found.contains(&namespace), id.contains(&format!("/ns/{namespace}/")), "{id} {namespace}");
            }
        }
    }
}
