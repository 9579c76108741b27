//! Which AuthorizationPolicies hold for a workload, and what they make together: one policy of the listener for each
//! action, because any of several ALLOW policies is enough while every policy of a listener must let a request pass.

use std::collections::BTreeMap;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, AuthorizerService, Principal,
    StringMatch, StringMatcher,
};

use super::Options;
use super::inbound::Workload;
use crate::model::{MeshConfig, Model};

/// What a manifest means by this is the mesh's own trust domain, whatever its name: a pointer, and no further name of it.
/// Somebody else's `cluster.local`, which many meshes are called, is a stranger.
const LOCAL: &str = "cluster.local";

/// The policies of a workload: those of its namespace and those of the root namespace, which select workloads of
/// every namespace.
pub(super) fn policies(model: &Model, options: &Options, of: &Workload<'_>) -> Vec<AuthorizationPolicy> {
    let domains = Domains::of(model, options);
    let mut joined: BTreeMap<(u8, String), AuthorizationPolicy> = BTreeMap::new();
    for object in of.meant_by(model, options, &model.authorization_policies, |spec| &spec.selection) {
        let spec = &object.spec;
        let action = with_provider(model, options, &spec.action);
        let (rank, mut name) = named(&action);
        if spec.dry_run {
            name.push_str(".dry-run");
        }
        let policy = joined
            .entry((rank, name.clone()))
            .or_insert_with(|| AuthorizationPolicy { dry_run: spec.dry_run, ..AuthorizationPolicy::new(name, action) });
        let mut rules = spec.rules.clone();
        domains.spread(&mut rules);
        policy.rules.append(&mut rules);
    }
    joined.into_values().collect()
}

/// The mesh-wide settings, if there are any.
pub(super) fn mesh_config<'a>(model: &'a Model, options: &Options) -> Option<&'a MeshConfig> {
    let key = (options.root_namespace.clone(), MeshConfig::NAME.to_owned());
    model.mesh_configs.get(&key).map(|config| &config.spec)
}

/// Where the authorizer of that name is asked.
pub(super) fn provider(model: &Model, options: &Options, name: &str) -> Option<AuthorizerService> {
    mesh_config(model, options)?.authorizers.get(name).cloned()
}

fn with_provider(model: &Model, options: &Options, action: &AuthorizationAction) -> AuthorizationAction {
    match action {
        AuthorizationAction::Custom(named) => AuthorizationAction::Custom(Box::new(AuthorizerProvider {
            name: named.name.clone(),
            service: provider(model, options, &named.name),
        })),
        other => other.clone(),
    }
}

/// Place in the order and name of what is made of an action's policies.
fn named(action: &AuthorizationAction) -> (u8, String) {
    match action {
        AuthorizationAction::Custom(provider) => (0, format!("istio.custom.{}", provider.name)),
        AuthorizationAction::Deny => (1, "istio.deny".to_owned()),
        AuthorizationAction::Allow | AuthorizationAction::Route => (2, "istio.allow".to_owned()),
        AuthorizationAction::Audit => (3, "istio.audit".to_owned()),
    }
}

/// The names of the mesh's trust domain: its own and its aliases.
pub(crate) fn own_names(model: &Model, options: &Options) -> Vec<String> {
    Domains::of(model, options).0
}

/// The names of the mesh's trust domain. A principal that is written with one of them is one of each.
pub(super) struct Domains(Vec<String>);

impl Domains {
    pub(super) fn of(model: &Model, options: &Options) -> Self {
        let also = mesh_config(model, options).map(|config| config.trust_domain_aliases.as_slice());
        let aliases = options.trust_domain_aliases.iter().chain(also.unwrap_or_default());
        let mut names = vec![options.trust_domain.to_string()];
        for name in aliases.map(ToString::to_string) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Self(names)
    }

    /// The names, the mesh's own first.
    pub(super) fn names(&self) -> &[String] {
        &self.0
    }

    /// Takes principals of one of the names, or of `cluster.local`, for those of all names.
    pub(super) fn spread(&self, rules: &mut [AuthorizationRule]) {
        rules.iter_mut().flat_map(|rule| &mut rule.principals).for_each(|who| self.spread_one(who));
    }

    fn spread_one(&self, principal: &mut Principal) {
        match principal {
            Principal::And(list) | Principal::Or(list) => list.iter_mut().for_each(|who| self.spread_one(who)),
            Principal::Not(inner) => self.spread_one(inner),
            Principal::Authenticated(Some(name)) => {
                let ignore_case = name.ignore_case;
                let one = |pattern| Principal::Authenticated(Some(StringMatcher { pattern, ignore_case }));
                let mut all: Vec<_> = self.each(&name.pattern).into_iter().map(one).collect();
                match all.len() {
                    0 => {}
                    1 => *principal = all.swap_remove(0),
                    _ => *principal = Principal::Or(all),
                }
            }
            _ => {}
        }
    }

    /// The same pattern with each of the names; none if it is of another domain, or of every one.
    fn each(&self, pattern: &StringMatch) -> Vec<StringMatch> {
        type Of = fn(String) -> StringMatch;
        let (text, of, open): (_, Of, _) = match pattern {
            StringMatch::Exact(text) => (text, StringMatch::Exact, false),
            StringMatch::Prefix(text) => (text, StringMatch::Prefix, true),
            _ => return self.open(pattern),
        };
        let Some(uri) = text.strip_prefix("spiffe://") else { return self.open(pattern) };
        let known = self.0.iter().map(String::as_str).chain([LOCAL]).find_map(|name| {
            let rest = uri.strip_prefix(name)?;
            // `cluster.local*` means the domain, and not only what begins like it.
            let rest = if rest.is_empty() && open { "/" } else { rest };
            rest.starts_with('/').then_some((name, rest))
        });
        let Some((written, rest)) = known else { return self.open(pattern) };
        let each = self.0.iter().map(|name| match name == written {
            true => pattern.clone(),
            false => of(format!("spiffe://{name}{rest}")),
        });
        each.collect()
    }

    /// The same for a pattern that says a part of a domain's name, and may mean others than ours too: itself, and each of the
    /// names. A peer under an alias is known by the present name where its requests are judged.
    fn open(&self, pattern: &StringMatch) -> Vec<StringMatch> {
        let is_any = |means: &dyn Fn(&str) -> bool| self.0.len() > 1 && self.0.iter().any(|name| means(name));
        let (is_ours, path) = match pattern {
            // `old*`.
            StringMatch::Prefix(text) => match text.strip_prefix("spiffe://") {
                Some(start) if !start.contains('/') => (is_any(&|name| name.starts_with(start)), None),
                _ => return Vec::new(),
            },
            // `*.test/ns/shop/sa/web`; without a domain before the path it is of every one.
            StringMatch::Suffix(text) => match text.find('/').map(|at| text.split_at(at)) {
                Some((end, path)) if !end.is_empty() => (is_any(&|name| name.ends_with(end)), Some(path)),
                _ => return Vec::new(),
            },
            // Of a domain alone, as `trustDomains` has them.
            StringMatch::Regex(regex) if regex.as_str().starts_with("spiffe://[^/]*") => {
                let regex = regex.compiled();
                (is_any(&|name| regex.is_match(format!("spiffe://{name}/").as_bytes())), None)
            }
            _ => return Vec::new(),
        };
        if !is_ours {
            return Vec::new();
        }
        let each = self.0.iter().map(|name| match path {
            Some(path) => StringMatch::Exact(format!("spiffe://{name}{path}")),
            None => StringMatch::Prefix(format!("spiffe://{name}/")),
        });
        std::iter::once(pattern.clone()).chain(each).collect()
    }
}
