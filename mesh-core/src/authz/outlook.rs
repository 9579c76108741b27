//! What policy says of a caller before anything of a request is known: whether a change of policy may shut something
//! that was open to it.
//!
//! ```text
//! rule + caller ─► cannot match (left out), surely matches, or what is left to ask of a request
//! ```
//!
//! Refuses to know requests.

use http::{HeaderMap, Method};

use super::Attributes;
use super::condition::{Condition, Truth};
use crate::identity::PeerIdentity;
use crate::matcher::RequestView;
use crate::policy::{AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Permission, Principal};

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

/// Whether whatever `before` let this caller do is surely allowed by `after` too. Where only a request could tell, the
/// answer is no. Each list is all policies of a listener; those that only observe count for nothing.
pub fn keeps_open(before: &[AuthorizationPolicy], after: &[AuthorizationPolicy], caller: Caller<'_>) -> bool {
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
    let request = Some(request);
    let of = Attributes {
        request,
        peer: Some(peer),
        destination,
        server_name: Some(server_name),
        tokens: None,
        trusted_proxies: 0,
    };
    let before: Vec<Stage<'_>> = stages(before, &of).collect();
    stages(after, &of).all(|stage| stage.opens_what_was_open(&before))
}

/// A policy that decides, as far as it concerns the caller.
struct Stage<'a> {
    action: &'a AuthorizationAction,
    rules: Vec<Left<'a>>,
}

/// What is left to ask of a request before a rule matches.
#[derive(PartialEq, Eq)]
struct Left<'a> {
    who: Open<'a, Principal>,
    what: Open<'a, Permission>,
}

/// Alternatives of which a request must have one; `None` = it surely has.
type Open<'a, T> = Option<Vec<&'a T>>;

fn stages<'a>(policies: &'a [AuthorizationPolicy], of: &Attributes<'_>) -> impl Iterator<Item = Stage<'a>> {
    let deciding = policies.iter().filter(|policy| !policy.dry_run && policy.action != AuthorizationAction::Audit);
    deciding.map(move |policy| Stage {
        action: &policy.action,
        rules: policy.rules.iter().filter_map(|rule| Left::of(rule, of)).collect(),
    })
}

impl Stage<'_> {
    fn opens_what_was_open(&self, before: &[Stage<'_>]) -> bool {
        let mut alike = before.iter().filter(|stage| stage.action == self.action);
        match self.action {
            // What passes one of the former passes this one, if its rules are here.
            AuthorizationAction::Allow | AuthorizationAction::Route => {
                self.rules.iter().any(Left::is_nothing)
                    || alike.any(|stage| stage.rules.iter().all(|rule| self.rules.contains(rule)))
            }
            // What none of the former matched, none of this one matches, if its rules were there.
            AuthorizationAction::Deny | AuthorizationAction::Custom(_) | AuthorizationAction::Audit => {
                let known: Vec<&Left<'_>> = alike.flat_map(|stage| &stage.rules).collect();
                self.rules.iter().all(|rule| known.contains(&rule))
            }
        }
    }
}

impl<'a> Left<'a> {
    /// `None` = it cannot match.
    fn of(rule: &'a AuthorizationRule, of: &Attributes<'_>) -> Option<Self> {
        let who = open(&rule.principals, |principal| judge_principal(principal, of))?;
        let what = open(&rule.permissions, |permission| judge_permission(permission, of))?;
        Some(Self { who, what })
    }

    fn is_nothing(&self) -> bool {
        self.who.is_none() && self.what.is_none()
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
