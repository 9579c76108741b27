//! The rules of one policy, found by what they demand: a rule that only some callers, namespaces or paths can
//! satisfy is looked at for those only.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Attributes;
use super::condition::{Condition, Truth, namespace_of, one_of};
use crate::matcher::RequestView;
use crate::policy::{AuthorizationRule, PathMatch, Permission, Principal, StringMatch};
use crate::target::unescape_path;

#[derive(Debug)]
pub(super) struct Rules {
    rules: Box<[Rule]>,
    by_path: Index,
    by_peer: Index,
    by_namespace: Index,
    by_path_prefix: Prefixes,
    by_peer_prefix: Prefixes,
    // Rules without such a demand.
    others: Box<[u32]>,
}

/// Places of rules by what a text begins with: one look-up for each length that there is.
#[derive(Debug)]
struct Prefixes {
    index: Index,
    lengths: Vec<usize>,
}

/// Places of rules, in order.
type Index = HashMap<Box<str>, Vec<u32>, foldhash::fast::FixedState>;

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    permissions: Box<[Condition]>,
    principals: Box<[Condition]>,
    /// Any of it is about something that only requests have.
    of_requests: bool,
}

impl Rules {
    pub(super) fn new(policy: &[AuthorizationRule]) -> Self {
        let demands: Vec<_> = policy.iter().map(demands).collect();
        // Rules that share a text are all looked at where a request has it.
        let mut shared = HashMap::<(usize, &str), u32>::new();
        for (kind, key) in demands.iter().flatten().flat_map(|(kind, keys)| keys.iter().map(|key| (*kind, &**key))) {
            *shared.entry((kind, key)).or_default() += 1;
        }
        let most = |kind: usize, keys: &Keys<'_>| keys.iter().map(|key| shared[&(kind, &**key)]).max();
        let mut indexes: [Index; KINDS] = Default::default();
        let mut others = Vec::new();
        for (place, demands) in (0..).zip(&demands) {
            // By what fewest share; of equals by the first.
            match demands.iter().min_by_key(|(kind, keys)| most(*kind, keys)) {
                None => others.push(place),
                Some((kind, keys)) => {
                    for key in keys {
                        let places: &mut Vec<u32> = indexes[*kind].entry(key.as_ref().into()).or_default();
                        if places.last() != Some(&place) {
                            places.push(place);
                        }
                    }
                }
            }
        }
        let [by_peer, by_path, by_namespace, by_path_prefix, by_peer_prefix] = indexes;
        let (by_path_prefix, by_peer_prefix) = (Prefixes::new(by_path_prefix), Prefixes::new(by_peer_prefix));
        let (rules, others) = (policy.iter().map(Rule::new).collect(), others.into());
        Self { rules, by_path, by_peer, by_namespace, by_path_prefix, by_peer_prefix, others }
    }

    /// The name of the rule at a place.
    pub(super) fn name(&self, place: usize) -> &str {
        &self.rules[place].name
    }

    /// The place of the first rule that matches; `unknown` = what is not known counts as a match.
    pub(super) fn first(&self, of: &Attributes<'_>, unknown: bool) -> Option<usize> {
        if self.rules.is_empty() {
            return None;
        }
        let least = if unknown { Truth::Unknown } else { Truth::Yes };
        let matches = |place: &u32| self.rules[*place as usize].judge(of) >= least;
        let path = of.request.as_ref().map(RequestView::path).filter(|path| path.starts_with('/'));
        let (Some(path), Some(peer)) = (path, of.peer) else {
            // What rules are found by is not known: each is asked.
            return self.rules.iter().position(|rule| rule.judge(of) >= least);
        };
        let mut found = u32::MAX;
        let mut look = |places: &[u32]| {
            if let Some(place) = places.iter().take_while(|place| **place < found).find(|place| matches(place)) {
                found = *place;
            }
        };
        look(&self.others);
        look_up(&self.by_path, path, &mut look);
        self.by_path_prefix.look_up(path, &mut look);
        if let Some(id) = &peer.spiffe_id {
            self.by_peer_prefix.look_up(id.as_str(), &mut look);
            look_up(&self.by_peer, id.as_str(), &mut look);
            if !self.by_namespace.is_empty() {
                for namespace in namespaces(id.as_str()) {
                    look_up(&self.by_namespace, namespace, &mut look);
                }
            }
        }
        (found != u32::MAX).then_some(found as usize)
    }
}

impl Rule {
    fn new(rule: &AuthorizationRule) -> Self {
        let permissions: Box<[_]> = rule.permissions.iter().map(Condition::permission).collect();
        let principals: Box<[_]> = rule.principals.iter().map(Condition::principal).collect();
        let of_requests = permissions.iter().chain(&principals).any(Condition::is_of_requests);
        Self { name: rule.name.as_str().into(), permissions, principals, of_requests }
    }

    fn judge(&self, of: &Attributes<'_>) -> Truth {
        let known = match one_of(&self.principals, of) {
            Truth::No => Truth::No,
            known => known.min(one_of(&self.permissions, of)),
        };
        match &of.request {
            // Istio leaves such a rule out of what is allowed, although another of its alternatives may hold.
            None if self.of_requests => known.min(Truth::Unknown),
            _ => known,
        }
    }
}

impl Prefixes {
    fn new(index: Index) -> Self {
        let mut lengths: Vec<_> = index.keys().map(|prefix| prefix.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { index, lengths }
    }

    fn look_up(&self, text: &str, look: &mut impl FnMut(&[u32])) {
        for length in &self.lengths {
            match text.get(..*length) {
                Some(prefix) => look_up(&self.index, prefix, look),
                None if *length > text.len() => break,
                None => {}
            }
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

/// Texts.
type Keys<'a> = Vec<Cow<'a, str>>;

/// Ways to find a rule.
const KINDS: usize = 5;

/// What of each kind a request must have one of to satisfy a rule, the quickest to look up first.
fn demands(rule: &AuthorizationRule) -> Vec<(usize, Keys<'_>)> {
    let principals = |exact| exact_of(&rule.principals, exact);
    let kinds: [_; KINDS] = [
        principals(exact_peer),
        exact_of(&rule.permissions, exact_path),
        principals(exact_namespace),
        exact_of(&rule.permissions, path_prefix),
        principals(peer_prefix),
    ];
    kinds.into_iter().enumerate().filter_map(|(kind, keys)| Some((kind, keys?))).collect()
}

/// The texts of which a request must have one to satisfy a list of alternatives; `None` = it need not.
fn exact_of<'a, T>(list: &'a [T], exact: fn(&'a T) -> Option<Keys<'a>>) -> Option<Keys<'a>> {
    let each: Option<Vec<_>> = list.iter().map(exact).collect();
    Some(each?.concat())
}

fn exact_path(permission: &Permission) -> Option<Keys<'_>> {
    match permission {
        Permission::Path(PathMatch::Exact(path)) => Some(vec![unescape_path(path)]),
        Permission::And(all) => all.iter().find_map(exact_path),
        Permission::Or(any) => exact_of(any, exact_path),
        _ => None,
    }
}

/// What a path must begin with; one that is demanded whole begins with itself.
fn path_prefix(permission: &Permission) -> Option<Keys<'_>> {
    match permission {
        Permission::Path(PathMatch::Exact(path) | PathMatch::Prefix(path)) => Some(vec![unescape_path(path)]),
        Permission::Path(PathMatch::PathSeparatedPrefix(path)) => match unescape_path(path) {
            Cow::Borrowed(path) => Some(vec![path.trim_end_matches('/').into()]),
            Cow::Owned(path) => Some(vec![path.trim_end_matches('/').to_owned().into()]),
        },
        Permission::And(all) => all.iter().find_map(path_prefix),
        Permission::Or(any) => exact_of(any, path_prefix),
        _ => None,
    }
}

/// The same of a caller's SPIFFE ID.
fn peer_prefix(principal: &Principal) -> Option<Keys<'_>> {
    match principal {
        Principal::Authenticated(Some(name)) if !name.ignore_case => match &name.pattern {
            StringMatch::Exact(id) | StringMatch::Prefix(id) => Some(vec![id.into()]),
            _ => None,
        },
        Principal::And(all) => all.iter().find_map(peer_prefix),
        Principal::Or(any) => exact_of(any, peer_prefix),
        _ => None,
    }
}

fn exact_peer(principal: &Principal) -> Option<Keys<'_>> {
    match principal {
        Principal::Authenticated(Some(name)) if !name.ignore_case => match &name.pattern {
            StringMatch::Exact(id) => Some(vec![id.into()]),
            _ => None,
        },
        Principal::And(all) => all.iter().find_map(exact_peer),
        Principal::Or(any) => exact_of(any, exact_peer),
        _ => None,
    }
}

fn exact_namespace(principal: &Principal) -> Option<Keys<'_>> {
    match principal {
        Principal::Authenticated(Some(name)) => namespace_of(name).map(|namespace| vec![namespace.into()]),
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
