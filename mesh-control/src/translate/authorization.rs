//! Which AuthorizationPolicies hold for a workload, and what they make together: one policy of the listener for each
//! action, because any of several ALLOW policies is enough while every policy of a listener must let a request pass.

use std::collections::BTreeMap;

use mesh_core::policy::{AuthorizationAction, AuthorizationPolicy, Principal, StringMatch, StringMatcher};

use super::Options;
use super::instances::includes;
use crate::model::Model;

/// The trust domain that a manifest means by this is the mesh's own, whatever its name.
const LOCAL: &str = "spiffe://cluster.local/";

/// The policies of a workload: those of its namespace and those of the root namespace, which select workloads of
/// every namespace.
pub(super) fn policies(
    model: &Model,
    options: &Options,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Vec<AuthorizationPolicy> {
    let scopes = match namespace == options.root_namespace {
        true => vec![namespace],
        false => vec![&*options.root_namespace, namespace],
    };
    let own = format!("spiffe://{}/", options.trust_domain);
    let mut joined: BTreeMap<(u8, String), AuthorizationPolicy> = BTreeMap::new();
    for scope in scopes {
        let objects = model.authorization_policies.range((scope.to_owned(), String::new())..);
        for (_, object) in objects.take_while(|(key, _)| key.0 == scope) {
            let spec = &object.spec;
            if spec.selector.as_ref().is_some_and(|wanted| !includes(labels, wanted)) {
                continue;
            }
            let (rank, mut name) = named(&spec.action);
            if spec.dry_run {
                name.push_str(".dry-run");
            }
            let policy = joined.entry((rank, name.clone())).or_insert_with(|| AuthorizationPolicy {
                dry_run: spec.dry_run,
                ..AuthorizationPolicy::new(name, spec.action.clone())
            });
            let mut rules = spec.rules.clone();
            if own != LOCAL {
                rules.iter_mut().flat_map(|rule| &mut rule.principals).for_each(|who| also_own(who, &own));
            }
            policy.rules.append(&mut rules);
        }
    }
    joined.into_values().collect()
}

/// Place in the order and name of what is made of an action's policies.
fn named(action: &AuthorizationAction) -> (u8, String) {
    match action {
        AuthorizationAction::Custom(provider) => (0, format!("istio.custom.{provider}")),
        AuthorizationAction::Deny => (1, "istio.deny".to_owned()),
        AuthorizationAction::Allow => (2, "istio.allow".to_owned()),
        AuthorizationAction::Audit => (3, "istio.audit".to_owned()),
    }
}

/// Takes a principal of `cluster.local` for one of the mesh's own trust domain, too.
fn also_own(principal: &mut Principal, own: &str) {
    match principal {
        Principal::And(list) | Principal::Or(list) => list.iter_mut().for_each(|who| also_own(who, own)),
        Principal::Not(inner) => also_own(inner, own),
        Principal::Authenticated(Some(name)) => {
            let alias = |text: &str| text.strip_prefix(LOCAL).map(|rest| format!("{own}{rest}"));
            let other = match &name.pattern {
                StringMatch::Exact(text) => alias(text).map(StringMatch::Exact),
                StringMatch::Prefix(text) => alias(text).map(StringMatch::Prefix),
                _ => None,
            };
            if let Some(pattern) = other {
                let other = Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: name.ignore_case }));
                *principal = Principal::Or(vec![principal.clone(), other]);
            }
        }
        _ => {}
    }
}
