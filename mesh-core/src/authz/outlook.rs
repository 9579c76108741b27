//! What policy says of a caller before anything of a request is known: whether a change of policy may shut something
//! that was open to it.
//!
//! ```text
//! known + now   ─► the rules that one of them has and the other one lacks: once for all callers
//! rule + caller ─► cannot match (left out), surely matches, or what is left to ask of a request
//! ```
//!
//! Refuses to know requests.

use std::collections::HashSet;
use std::sync::Arc;

use http::{HeaderMap, Method};

use super::Attributes;
use super::condition::{Condition, Truth};
use crate::identity::PeerIdentity;
use crate::matcher::RequestView;
use crate::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundListener, JwtAuthentication, Permission,
    Principal,
};

/// A listener's policy that has become another one. What is the same for all callers is compared once, in a time that grows
/// as the policies do. A caller that nothing of the change is about costs that look alone; any other all rules once.
#[derive(Debug)]
pub struct PolicyChange {
    known: Arc<InboundListener>,
    now: Arc<InboundListener>,
    /// `None` = something that is not for a caller to tell: requests would have to be looked at.
    stages: Option<Box<[Changed]>>,
}

/// What has changed of a policy that decides; by position in its list.
#[derive(Debug)]
enum Changed {
    /// It refuses or asks, by rules that none of before had.
    Shuts { policy: usize, fresh: Box<[usize]> },
    /// It lets pass. Of each one of before the rules that it lacks.
    Opens { policy: usize, lacking: Box<[(usize, Box<[usize]>)]> },
}

impl PolicyChange {
    /// What has changed between two policies of a listener. Keys of token issuers and limits are none of it: they come and
    /// go, and say nothing of who may pass.
    pub fn between(known: &Arc<InboundListener>, now: &Arc<InboundListener>) -> Self {
        let as_before = known.trusted_proxies == now.trusted_proxies
            && known.routes.decide_alike(&now.routes)
            && known.chooses_alike(now);
        let stages = if !as_before {
            None
        } else if !now.routes.are_all() {
            // Which of its routes a caller asks for only requests tell: all of them are guarded as they were.
            Some(Box::default())
        } else {
            let demands = JwtAuthentication::demand_alike(&known.jwt, &now.jwt);
            demands.then(|| changed(&known.authorization, &now.authorization))
        };
        Self { known: known.clone(), now: now.clone(), stages }
    }

    /// Whether it is that of these two.
    pub fn is_between(&self, known: &Arc<InboundListener>, now: &Arc<InboundListener>) -> bool {
        Arc::ptr_eq(&self.known, known) && Arc::ptr_eq(&self.now, now)
    }

    /// Whether whatever the policy of before let this caller do is surely allowed now too. Where only a request could tell,
    /// the answer is no. Policies that only observe count for nothing.
    pub fn keeps_open(&self, caller: Caller<'_>) -> bool {
        let Some(stages) = &self.stages else { return false };
        keep_open(stages, &self.known.authorization, &self.now.authorization, caller)
    }
}

/// What all requests of one connection have in common.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The other end. One without a SPIFFE ID is known to have none.
    pub peer: &'a PeerIdentity,
    /// The address that was reached.
    pub destination: std::net::SocketAddr,
    /// The TLS server name that was asked for; empty = none was.
    pub server_name: &'a str,
}

/// The same of two lists, each all policies of a listener.
#[cfg(test)]
pub(super) fn keeps_open(before: &[AuthorizationPolicy], after: &[AuthorizationPolicy], caller: Caller<'_>) -> bool {
    keep_open(&changed(before, after), before, after, caller)
}

fn changed(before: &[AuthorizationPolicy], after: &[AuthorizationPolicy]) -> Box<[Changed]> {
    if before == after {
        return Box::default();
    }
    deciding(after).filter_map(|(at, policy)| Changed::of(at, policy, before)).collect()
}

fn keep_open(
    changed: &[Changed],
    before: &[AuthorizationPolicy],
    after: &[AuthorizationPolicy],
    caller: Caller<'_>,
) -> bool {
    changed.is_empty() || about(caller, |of| changed.iter().all(|changed| changed.keeps_open(before, after, of)))
}

/// What is known of a caller, as if it were known of a request: nobody asks for the rest.
fn about<R>(caller: Caller<'_>, judge: impl FnOnce(&Attributes<'_>) -> R) -> R {
    let headers = HeaderMap::new();
    let request = RequestView {
        authority: "",
        method: &Method::GET,
        path_and_query: "",
        scheme: "",
        headers: &headers,
        draw: &|| 0,
    };
    let Caller { peer, destination, server_name } = caller;
    judge(&Attributes {
        request: Some(request),
        peer: Some(peer),
        destination,
        server_name: Some(server_name),
        tokens: None,
        trusted_proxies: 0,
    })
}

/// The policies that decide, by position.
fn deciding(policies: &[AuthorizationPolicy]) -> impl Iterator<Item = (usize, &AuthorizationPolicy)> {
    let all = policies.iter().enumerate();
    all.filter(|(_, policy)| !policy.dry_run && policy.action != AuthorizationAction::Audit)
}

/// Those of an action.
fn alike<'a>(
    policies: &'a [AuthorizationPolicy],
    action: &AuthorizationAction,
) -> impl Iterator<Item = (usize, &'a AuthorizationPolicy)> {
    deciding(policies).filter(move |(_, policy)| policy.action == *action)
}

/// What of a rule decides: its name does not.
type Key<'a> = (&'a [Permission], &'a [Principal]);

fn key(rule: &AuthorizationRule) -> Key<'_> {
    (&rule.permissions, &rule.principals)
}

/// The rules that are not among those that are known, by position.
fn beside<'a>(rules: &'a [AuthorizationRule], known: &HashSet<Key<'a>>) -> Box<[usize]> {
    (0..rules.len()).filter(|at| !known.contains(&key(&rules[*at]))).collect()
}

impl Changed {
    /// `None` = nothing that could shut something, whoever asks.
    fn of(at: usize, policy: &AuthorizationPolicy, before: &[AuthorizationPolicy]) -> Option<Self> {
        let former = alike(before, &policy.action);
        match policy.action {
            AuthorizationAction::Allow | AuthorizationAction::Route => {
                let here = policy.rules.iter().map(key).collect();
                let lacking: Box<[_]> = former.map(|(at, former)| (at, beside(&former.rules, &here))).collect();
                let has_all = lacking.iter().any(|(_, rules)| rules.is_empty());
                (!has_all).then_some(Self::Opens { policy: at, lacking })
            }
            AuthorizationAction::Deny | AuthorizationAction::Custom(_) | AuthorizationAction::Audit => {
                let known = former.flat_map(|(_, former)| former.rules.iter().map(key)).collect();
                let fresh = beside(&policy.rules, &known);
                (!fresh.is_empty()).then_some(Self::Shuts { policy: at, fresh })
            }
        }
    }

    fn keeps_open(&self, before: &[AuthorizationPolicy], after: &[AuthorizationPolicy], of: &Attributes<'_>) -> bool {
        match self {
            // What none of the former matched, none of this one matches, if its rules were there.
            Self::Shuts { policy, fresh } => {
                let policy = &after[*policy];
                let fresh: Vec<_> = fresh.iter().filter_map(|rule| Left::of(&policy.rules[*rule], of)).collect();
                if fresh.is_empty() {
                    return true;
                }
                let known = alike(before, &policy.action).flat_map(|(_, former)| &former.rules);
                let known: HashSet<_> = known.filter_map(|rule| Left::of(rule, of)).collect();
                fresh.iter().all(|rule| known.contains(rule))
            }
            // What passes one of the former passes this one, if its rules are here.
            Self::Opens { policy, lacking } => {
                let lacking = lacking.iter().map(|(former, rules)| {
                    let rules = rules.iter().map(|rule| &before[*former].rules[*rule]);
                    rules.filter_map(|rule| Left::of(rule, of)).collect::<Vec<_>>()
                });
                let lacking: Vec<_> = lacking.collect();
                if lacking.iter().any(Vec::is_empty) {
                    return true;
                }
                let here = after[*policy].rules.iter();
                let here: HashSet<_> = here.filter_map(|rule| Left::of(rule, of)).collect();
                here.contains(&Left::NOTHING)
                    || lacking.iter().any(|rules| rules.iter().all(|rule| here.contains(rule)))
            }
        }
    }
}

/// What is left to ask of a request before a rule matches.
#[derive(PartialEq, Eq, Hash)]
struct Left<'a> {
    who: Open<'a, Principal>,
    what: Open<'a, Permission>,
}

/// Alternatives of which a request must have one; `None` = it surely has.
type Open<'a, T> = Option<Vec<&'a T>>;

impl<'a> Left<'a> {
    /// Of a rule that surely matches.
    const NOTHING: Self = Self { who: None, what: None };

    /// `None` = it cannot match.
    fn of(rule: &'a AuthorizationRule, of: &Attributes<'_>) -> Option<Self> {
        let who = open(&rule.principals, |principal| judge_principal(principal, of))?;
        let what = open(&rule.permissions, |permission| judge_permission(permission, of))?;
        Some(Self { who, what })
    }
}

fn open<T>(list: &[T], judge: impl Fn(&T) -> Truth) -> Option<Open<'_, T>> {
    let mut left = Vec::new();
    for each in list {
        match judge(each) {
            Truth::Yes => return Some(None),
            Truth::Unknown => left.push(each),
            Truth::No => {}
        }
    }
    (!left.is_empty()).then_some(Some(left))
}

fn judge_principal(principal: &Principal, of: &Attributes<'_>) -> Truth {
    let each = |principal| judge_principal(principal, of);
    match principal {
        Principal::And(all) => all.iter().map(each).min().unwrap_or(Truth::Yes),
        Principal::Or(any) => any.iter().map(each).max().unwrap_or(Truth::No),
        Principal::Not(inner) => judge_principal(inner, of).not(),
        Principal::Any | Principal::Authenticated(_) | Principal::DirectRemoteIp(_) => {
            Condition::principal(principal).judge(of)
        }
        // The original client's address is what a header says.
        _ => Truth::Unknown,
    }
}

fn judge_permission(permission: &Permission, of: &Attributes<'_>) -> Truth {
    let each = |permission| judge_permission(permission, of);
    match permission {
        Permission::And(all) => all.iter().map(each).min().unwrap_or(Truth::Yes),
        Permission::Or(any) => any.iter().map(each).max().unwrap_or(Truth::No),
        Permission::Not(inner) => judge_permission(inner, of).not(),
        Permission::Any
        | Permission::DestinationPort(_)
        | Permission::DestinationPorts(..)
        | Permission::DestinationIp(_)
        | Permission::ServerName(_) => Condition::permission(permission).judge(of),
        _ => Truth::Unknown,
    }
}

/// The plain comparison of each rule with each, from which [`keeps_open`] must not differ.
#[cfg(test)]
pub(super) fn keeps_open_plainly(
    before: &[AuthorizationPolicy],
    after: &[AuthorizationPolicy],
    caller: Caller<'_>,
) -> bool {
    fn left<'a>(policy: &'a AuthorizationPolicy, of: &Attributes<'_>) -> Vec<Left<'a>> {
        policy.rules.iter().filter_map(|rule| Left::of(rule, of)).collect()
    }
    about(caller, |of| {
        deciding(after).all(|(_, policy)| {
            let here = left(policy, of);
            let mut former = alike(before, &policy.action).map(|(_, former)| left(former, of));
            match policy.action {
                AuthorizationAction::Allow | AuthorizationAction::Route => {
                    here.contains(&Left::NOTHING) || former.any(|rules| rules.iter().all(|rule| here.contains(rule)))
                }
                _ => {
                    let known: Vec<_> = former.flatten().collect();
                    here.iter().all(|rule| known.contains(rule))
                }
            }
        })
    })
}
