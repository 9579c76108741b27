//! Istio's AuthorizationPolicy: who may do what at a workload. Its rules become those of Envoy's RBAC here, in the
//! form in which Istio writes them, so that a stock server decides the same.

use mesh_core::policy::{AuthorizationAction, AuthorizationRule, AuthorizerProvider, Permission, Principal};
use serde::Deserialize;

use super::check::Check;
use super::destination_rule::SelectorSpec;
use super::kinds::Kind;
use super::reference::RefSpec;
use super::selection::Selection;
use crate::source::Document;
use crate::source::decode::Ignored;

pub(super) mod matchers;
pub(super) mod when;

use self::matchers::{all_of, both};
use self::when::{WhenSpec, when};

/// An AuthorizationPolicy.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizationPolicy {
    pub(crate) selection: Selection,
    pub(crate) action: AuthorizationAction,
    /// Evaluated and not enforced.
    pub(crate) dry_run: bool,
    pub(crate) rules: Vec<AuthorizationRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthorizationPolicySpec {
    selector: Option<SelectorSpec>,
    target_ref: Option<RefSpec>,
    #[serde(default)]
    target_refs: Vec<RefSpec>,
    action: Option<String>,
    provider: Option<ProviderSpec>,
    rules: Option<Vec<RuleSpec>>,
}

#[derive(Deserialize)]
struct ProviderSpec {
    name: Option<String>,
}

#[derive(Deserialize)]
struct RuleSpec {
    from: Option<Vec<FromSpec>>,
    to: Option<Vec<ToSpec>>,
    when: Option<Vec<WhenSpec>>,
}

#[derive(Deserialize)]
struct FromSpec {
    source: Option<SourceSpec>,
}

#[derive(Deserialize)]
struct ToSpec {
    operation: Option<OperationSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SourceSpec {
    principals: Vec<String>,
    not_principals: Vec<String>,
    request_principals: Vec<String>,
    not_request_principals: Vec<String>,
    namespaces: Vec<String>,
    not_namespaces: Vec<String>,
    service_accounts: Vec<String>,
    not_service_accounts: Vec<String>,
    trust_domains: Vec<String>,
    not_trust_domains: Vec<String>,
    ip_blocks: Vec<String>,
    not_ip_blocks: Vec<String>,
    remote_ip_blocks: Vec<String>,
    not_remote_ip_blocks: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OperationSpec {
    hosts: Vec<String>,
    not_hosts: Vec<String>,
    ports: Vec<String>,
    not_ports: Vec<String>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
}

/// Evaluate only: `istio.io/dry-run: "true"`.
const DRY_RUN: &str = "istio.io/dry-run";

impl Kind for AuthorizationPolicy {
    const GROUP: &'static str = "security.istio.io";
    const KIND: &'static str = "AuthorizationPolicy";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    type Spec = AuthorizationPolicySpec;

    /// A condition that is passed over makes an ALLOW rule take more.
    fn strict(_ignored: &Ignored) -> Option<&'static str> {
        Some(super::kinds::LOST_CONDITION)
    }

    fn validate(spec: AuthorizationPolicySpec, check: &mut Check<'_>) -> Self {
        let selection = Selection::read(spec.selector, spec.target_ref.as_ref(), &spec.target_refs, check);
        let action = action(spec.action.as_deref(), spec.provider, check);
        if spec.rules.as_ref().is_none_or(Vec::is_empty) && action != AuthorizationAction::Allow {
            check.error("spec.rules", "only ALLOW may do without rules; `rules: [{}]` matches every request");
        }
        let dry_run = dry_run(&action, check);
        let (namespace, name) = (check.document().namespace.clone(), check.document().name.clone());
        let mut rules = Vec::new();
        for (i, spec) in spec.rules.unwrap_or_default().into_iter().enumerate() {
            let (permissions, principals) = rule(&spec, check, &format!("spec.rules[{i}]"));
            // Istio's names, which its users know from access logs.
            let name = format!("ns[{namespace}]-policy[{name}]-rule[{i}]");
            let rule = AuthorizationRule { name, permissions, principals };
            if action == AuthorizationAction::Deny && denies_every_connection(&rule) {
                let message = "all that it asks for only HTTP requests have: at ports that are not HTTP nothing of it is \
                               left, and it denies every connection; name its ports in `to.operation.ports`";
                check.warn(&format!("spec.rules[{i}]"), message);
            }
            rules.push(rule);
        }
        if matches!(action, AuthorizationAction::Custom(_))
            && rules.iter().any(|rule| rule.principals.iter().any(names))
        {
            let message = "Istio asks authorizers before it knows who calls, and refuses conditions on that in CUSTOM";
            check.info("spec.rules", message);
        }
        Self { selection, action, dry_run, rules }
    }

    /// An edit may have been meant to end a dry run.
    fn as_last_good(&self) -> Option<&'static str> {
        let observes = self.dry_run || self.action == AuthorizationAction::Audit;
        observes.then_some(
            "the last good version of this object stays in force, which only observes: NOTHING IS DENIED by it until \
             this is corrected",
        )
    }

    /// What a policy was written to stop must not pass for a slip of the pen: until it is corrected nothing does,
    /// for the workloads selected, or for the whole scope if they cannot be read.
    fn stand_in(read: Option<Self>, _: &Document) -> Option<(Self, &'static str)> {
        let observes = |read: &Self| read.dry_run || read.action == AuthorizationAction::Audit;
        if read.as_ref().is_some_and(observes) {
            return None;
        }
        let everything = AuthorizationRule {
            name: "an AuthorizationPolicy that is not valid".to_owned(),
            permissions: vec![Permission::Any],
            principals: vec![Principal::Any],
        };
        let selection = read.map_or_else(Selection::default, |read| read.selection);
        let deny = Self { selection, action: AuthorizationAction::Deny, dry_run: false, rules: vec![everything] };
        Some((deny, "until it is corrected every request is denied where this object holds"))
    }
}

/// Whether nothing is left of a DENY rule where there are no requests, though it was written for some.
fn denies_every_connection(rule: &AuthorizationRule) -> bool {
    let AuthorizationRule { permissions, principals, .. } = rule;
    let says = *permissions != [Permission::Any] || *principals != [Principal::Any];
    says && !permissions.iter().all(has_of_connections) && !principals.iter().all(is_of_connections)
}

/// Whether a condition is on what connections have.
fn has_of_connections(permission: &Permission) -> bool {
    match permission {
        Permission::And(list) | Permission::Or(list) => list.iter().any(has_of_connections),
        Permission::Not(inner) => has_of_connections(inner),
        Permission::DestinationPort(_)
        | Permission::DestinationPorts(..)
        | Permission::DestinationIp(_)
        | Permission::ServerName(_) => true,
        Permission::Any | Permission::Header(_) | Permission::Path(_) | Permission::Metadata(_) => false,
    }
}

/// The same of who made them.
fn is_of_connections(principal: &Principal) -> bool {
    match principal {
        Principal::And(list) | Principal::Or(list) => list.iter().any(is_of_connections),
        Principal::Not(inner) => is_of_connections(inner),
        Principal::Authenticated(_) | Principal::DirectRemoteIp(_) | Principal::RemoteIp(_) => true,
        Principal::Any | Principal::Header(_) | Principal::Path(_) | Principal::Metadata(_) => false,
    }
}

/// Whether a condition is on who calls.
fn names(principal: &Principal) -> bool {
    match principal {
        Principal::And(list) | Principal::Or(list) => list.iter().any(names),
        Principal::Not(inner) => names(inner),
        Principal::Authenticated(_) | Principal::Metadata(_) => true,
        _ => false,
    }
}

fn action(text: Option<&str>, provider: Option<ProviderSpec>, check: &mut Check<'_>) -> AuthorizationAction {
    let name = provider.as_ref().and_then(|provider| provider.name.clone()).filter(|name| !name.is_empty());
    if provider.is_some() && text != Some("CUSTOM") {
        check.error("spec.provider", "only CUSTOM has a provider");
    }
    match text.unwrap_or("ALLOW") {
        "ALLOW" => AuthorizationAction::Allow,
        "DENY" => AuthorizationAction::Deny,
        "AUDIT" => AuthorizationAction::Audit,
        "CUSTOM" => {
            if name.is_none() {
                check.error("spec.provider.name", "CUSTOM needs the name of a provider");
            }
            AuthorizationAction::Custom(AuthorizerProvider::named(name.unwrap_or_default()))
        }
        other => {
            check.error("spec.action", format!("{other:?} is not one of ALLOW, DENY, AUDIT, CUSTOM"));
            AuthorizationAction::Deny
        }
    }
}

fn dry_run(action: &AuthorizationAction, check: &mut Check<'_>) -> bool {
    let path = format!("metadata.annotations.{DRY_RUN}");
    let dry_run = match check.document().annotations.get(DRY_RUN).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let message = format!("{other:?} is neither \"true\" nor \"false\"");
            check.error(&path, message);
            false
        }
    };
    let can = matches!(action, AuthorizationAction::Allow | AuthorizationAction::Deny);
    if dry_run && !can {
        check.error(&path, "only ALLOW and DENY can be tried without being enforced");
    }
    dry_run && can
}

/// Any of `from`, any of `to`, all of `when`.
fn rule(spec: &RuleSpec, check: &mut Check<'_>, at: &str) -> (Vec<Permission>, Vec<Principal>) {
    let (mut also, mut by) = (Vec::new(), Vec::new());
    for (i, condition) in spec.when.iter().flatten().enumerate() {
        when(condition, check, &format!("{at}.when[{i}]"), &mut also, &mut by);
    }
    let mut permissions = Vec::new();
    if spec.to.as_ref().is_some_and(Vec::is_empty) {
        check.error(&format!("{at}.to"), "an empty list; leave it out to mean every operation");
    }
    for (i, to) in spec.to.iter().flatten().enumerate() {
        let at = format!("{at}.to[{i}].operation");
        let mut all = operation(to.operation.as_ref().unwrap_or(&OperationSpec::default()), check, &at);
        all.extend(also.iter().cloned());
        permissions.push(all_of(all));
    }
    let mut principals = Vec::new();
    if spec.from.as_ref().is_some_and(Vec::is_empty) {
        check.error(&format!("{at}.from"), "an empty list; leave it out to mean everybody");
    }
    for (i, from) in spec.from.iter().flatten().enumerate() {
        let at = format!("{at}.from[{i}].source");
        let mut all = source(from.source.as_ref().unwrap_or(&SourceSpec::default()), check, &at);
        all.extend(by.iter().cloned());
        principals.push(all_of(all));
    }
    if spec.to.is_none() {
        permissions.push(all_of(also));
    }
    if spec.from.is_none() {
        principals.push(all_of(by));
    }
    (permissions, principals)
}

fn operation(spec: &OperationSpec, check: &mut Check<'_>, at: &str) -> Vec<Permission> {
    let (mut all, before) = (Vec::new(), check.errors());
    both(at, "hosts", &spec.hosts, "notHosts", &spec.not_hosts, check, &mut all, matchers::host);
    both(at, "ports", &spec.ports, "notPorts", &spec.not_ports, check, &mut all, matchers::port);
    both(at, "methods", &spec.methods, "notMethods", &spec.not_methods, check, &mut all, matchers::method);
    both(at, "paths", &spec.paths, "notPaths", &spec.not_paths, check, &mut all, matchers::path);
    // Not where what was written is wrong: who leaves it out opens the policy.
    if all.is_empty() && check.errors() == before {
        check.error(at, "at least one of its fields is needed; leave `to` out to mean every operation");
    }
    all
}

fn source(spec: &SourceSpec, check: &mut Check<'_>, at: &str) -> Vec<Principal> {
    let own = check.document().namespace.clone();
    let (mut all, before) = (Vec::new(), check.errors());
    let s = spec;
    both(at, "principals", &s.principals, "notPrincipals", &s.not_principals, check, &mut all, matchers::principal);
    both(at, "namespaces", &s.namespaces, "notNamespaces", &s.not_namespaces, check, &mut all, matchers::namespace);
    let account = |text: &str| matchers::service_account(text, &own);
    let (accounts, not_accounts) = (&s.service_accounts, &s.not_service_accounts);
    both(at, "serviceAccounts", accounts, "notServiceAccounts", not_accounts, check, &mut all, account);
    let domain = matchers::trust_domain;
    both(at, "trustDomains", &s.trust_domains, "notTrustDomains", &s.not_trust_domains, check, &mut all, domain);
    both(at, "ipBlocks", &s.ip_blocks, "notIpBlocks", &s.not_ip_blocks, check, &mut all, matchers::peer_ip);
    let (remote, not_remote) = (&s.remote_ip_blocks, &s.not_remote_ip_blocks);
    both(at, "remoteIpBlocks", remote, "notRemoteIpBlocks", not_remote, check, &mut all, matchers::remote_ip);
    let (tokens, not_tokens) = (&s.request_principals, &s.not_request_principals);
    let token = matchers::request_principal;
    both(at, "requestPrincipals", tokens, "notRequestPrincipals", not_tokens, check, &mut all, token);
    for (name, list) in [("serviceAccounts", accounts), ("notServiceAccounts", not_accounts)] {
        if list.len() > 16 {
            check.error(&format!("{at}.{name}"), "at most 16 may be named");
        }
    }
    let others = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
    if !(accounts.is_empty() && not_accounts.is_empty()) && others.iter().any(|list| !list.is_empty()) {
        check.error(&format!("{at}.serviceAccounts"), "they stand beside neither principals nor namespaces");
    }
    // Not where what was written is wrong: who leaves it out opens the policy.
    if all.is_empty() && check.errors() == before {
        check.error(at, "at least one of its fields is needed; leave `from` out to mean everybody");
    }
    all
}
