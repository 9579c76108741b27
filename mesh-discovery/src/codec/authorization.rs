//! RBAC filters ⇄ authorization policies (gRFC A41). A rule that is not understood refuses the
//! listener: it is never passed over.

use std::collections::{BTreeMap, HashSet};

use envoy_types::pb::envoy::config::rbac::v3::{
    self as xds, Permission as PermissionProto, Policy, Principal as PrincipalProto, permission, principal,
    rbac::Action,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher as HeaderProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as FilterProto;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher as TextProto, path_matcher};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use mesh_core::matcher::{path_is_met, target_is_met, unescaped};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, HeaderKey, HeaderMatch,
    HeaderMatcher, PathMatch, Pattern, Permission, Principal, StringMatch, StringMatcher, is_of_peer,
};
use mesh_core::target::unescape_path;

use super::closed::{Closed, meant};
use super::filter::ROUTER_FILTER;
use super::report::{At, Report, consider};
use super::{audit, authorizer, common, matcher};
use crate::proto::policy::{AuthorizationExtra, RuleName};

/// One policy as a filter: instance name, configuration, what travels beside.
pub(super) struct Encoded {
    pub(super) name: String,
    pub(super) filter: FilterProto,
    pub(super) extra: AuthorizationExtra,
}

/// Whether a policy decides by what a token filter changes: headers and query, which it takes tokens out of, or what it found
/// out.
pub(super) fn reads_tokens(policy: &AuthorizationPolicy) -> bool {
    fn permission(of: &Permission) -> bool {
        match of {
            Permission::And(all) | Permission::Or(all) => all.iter().any(permission),
            Permission::Not(inner) => permission(inner),
            Permission::Header(header) => matches!(header.name, HeaderKey::Header(_) | HeaderKey::Path),
            Permission::Metadata(_) => true,
            _ => false,
        }
    }
    fn principal(of: &Principal) -> bool {
        match of {
            Principal::And(all) | Principal::Or(all) => all.iter().any(principal),
            Principal::Not(inner) => principal(inner),
            Principal::Header(header) => matches!(header.name, HeaderKey::Header(_) | HeaderKey::Path),
            Principal::Metadata(_) => true,
            _ => false,
        }
    }
    !matches!(policy.action, AuthorizationAction::Audit)
        && policy
            .rules
            .iter()
            .any(|rule| rule.permissions.iter().any(permission) || rule.principals.iter().any(principal))
}

/// Encodes policies, one filter each; `taken` are instance names of other filters.
pub(super) fn encode<'a>(
    policies: impl IntoIterator<Item = &'a AuthorizationPolicy>,
    taken: HashSet<String>,
) -> Vec<Encoded> {
    // Instance names are unique and not the router's.
    let mut names = taken;
    names.insert(ROUTER_FILTER.to_owned());
    policies.into_iter().map(|policy| encode_policy(policy, &mut names)).collect()
}

fn encode_policy(policy: &AuthorizationPolicy, names: &mut HashSet<String>) -> Encoded {
    let name = unique(&policy.name, names);
    let mut keys = HashSet::new();
    let keyed: Vec<(String, &AuthorizationRule)> =
        policy.rules.iter().map(|rule| (unique(&rule.name, &mut keys), rule)).collect();
    let (action, provider) = match &policy.action {
        AuthorizationAction::Allow | AuthorizationAction::Route => (Action::Allow, None),
        AuthorizationAction::Deny => (Action::Deny, None),
        AuthorizationAction::Audit => (Action::Log, None),
        // A server that cannot ask the authorizer refuses what it should have asked about.
        AuthorizationAction::Custom(provider) => (Action::Deny, Some(provider)),
    };
    let closed = Closed::of(action);
    let rules = xds::Rbac {
        action: action.into(),
        policies: keyed.iter().map(|(key, rule)| (key.clone(), encode_rule(rule, closed))).collect(),
        audit_logging_options: audit::encode(policy.audit),
    };
    let in_order = keyed.windows(2).all(|pair| pair[0].0 < pair[1].0) && keyed.iter().all(|(k, r)| *k == r.name);
    let listed = keyed.iter().map(|(key, rule)| RuleName { key: key.clone(), name: rule.name.clone() });
    let extra = AuthorizationExtra {
        filter: name.clone(),
        policy: (name != policy.name).then(|| policy.name.clone()),
        custom: provider.map(|provider| provider.name.clone()),
        grpc: provider.and_then(|provider| authorizer::encode_grpc(provider)),
        http: provider.and_then(|provider| authorizer::encode_http(provider)),
        route: policy.action == AuthorizationAction::Route,
        rules: if in_order { Vec::new() } else { listed.collect() },
    };
    let filter = match policy.dry_run {
        true => FilterProto { shadow_rules: Some(rules), ..Default::default() },
        false => FilterProto { rules: Some(rules), ..Default::default() },
    };
    Encoded { name, filter, extra }
}

/// `wanted`, or the first `wanted#<n>` that is free; never empty.
pub(super) fn unique(wanted: &str, taken: &mut HashSet<String>) -> String {
    let mut name = wanted.to_owned();
    let mut n = taken.len();
    while name.is_empty() || !taken.insert(name.clone()) {
        name = format!("{wanted}#{n}");
        n += 1;
    }
    name
}

/// Decodes the filter `name`. A filter with enforced and with shadow rules is two policies; one with
/// neither is none.
pub(super) fn decode(
    name: &str,
    proto: &FilterProto,
    extra: Option<&AuthorizationExtra>,
    at: &At<'_>,
    report: &mut Report,
) -> Vec<AuthorizationPolicy> {
    consider!(
        proto,
        at,
        report,
        FilterProto {
            read: [rules, matcher, shadow_rules, shadow_matcher],
            idle: [rules_stat_prefix, shadow_rules_stat_prefix, track_per_rule_stats],
        }
    );
    if proto.matcher.is_some() || proto.shadow_matcher.is_some() {
        report.problem(&at.field("matcher"), "matcher trees are not supported; rules are");
    }
    let mut policies = Vec::new();
    for (field, rules, dry_run) in [("rules", &proto.rules, false), ("shadow_rules", &proto.shadow_rules, true)] {
        if let Some(rules) = rules {
            policies.extend(decode_rules(name, rules, dry_run, extra, &at.field(field), report));
        }
    }
    policies
}

fn decode_rules(
    name: &str,
    proto: &xds::Rbac,
    dry_run: bool,
    extra: Option<&AuthorizationExtra>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<AuthorizationPolicy> {
    let action = decode_action(proto.action, extra, &at.field("action"), report)?;
    let audit = proto.audit_logging_options.as_ref();
    let audit = audit.map(|a| audit::decode(a, &at.field("audit_logging_options"), report)).unwrap_or_default();
    let listed = extra.map(|e| e.rules.as_slice()).unwrap_or_default();
    let in_order: Vec<(&str, &str)> = if listed.is_empty() {
        proto.policies.keys().map(|k| (k.as_str(), k.as_str())).collect::<BTreeMap<_, _>>().into_iter().collect()
    } else {
        listed.iter().map(|rule| (rule.key.as_str(), rule.name.as_str())).collect()
    };
    if in_order.len() != proto.policies.len() {
        report.problem(&at.field("policies"), "the metadata lists other rules than the filter has");
    }
    // A part of an ALLOW rule that nothing meets lets nobody in, and what only observes keeps nobody out.
    let opens = dry_run
        || matches!(action, AuthorizationAction::Allow | AuthorizationAction::Route | AuthorizationAction::Audit);
    let mut rules = Vec::with_capacity(in_order.len());
    for (key, rule) in in_order {
        let at = at.key("policies", key);
        match proto.policies.get(key) {
            Some(policy) => {
                rules.extend(report.where_never_is(opens, |report| decode_rule(rule, policy, &at, report)));
            }
            None => report.problem(&at, "the metadata lists a rule that the filter has not"),
        }
    }
    let name = extra.and_then(|e| e.policy.as_deref()).unwrap_or(name);
    Some(AuthorizationPolicy { name: name.to_owned(), action, dry_run, rules, audit })
}

/// What a filter does. Our metadata says more of it and never something else: a filter that allows stays one.
fn decode_action(
    proto: i32,
    extra: Option<&AuthorizationExtra>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<AuthorizationAction> {
    let custom = extra.and_then(|extra| extra.custom.clone());
    let route = extra.is_some_and(|extra| extra.route);
    let action = match (custom, route, Action::try_from(proto)) {
        (Some(name), false, Ok(Action::Deny)) => {
            let service = match extra {
                Some(extra) => authorizer::decode(extra, at, report)?,
                None => None,
            };
            AuthorizationAction::Custom(Box::new(AuthorizerProvider { name, service }))
        }
        (None, true, Ok(Action::Allow)) => AuthorizationAction::Route,
        (None, false, Ok(Action::Allow)) => AuthorizationAction::Allow,
        (None, false, Ok(Action::Deny)) => AuthorizationAction::Deny,
        (None, false, Ok(Action::Log)) => AuthorizationAction::Audit,
        (None, false, Err(_)) => {
            report.problem(at, format!("{proto} is not known"));
            return None;
        }
        _ => {
            report.problem(at, "the metadata makes another action of it: CUSTOM is DENY, and routes are ALLOW");
            return None;
        }
    };
    Some(action)
}

fn encode_rule(rule: &AuthorizationRule, closed: Closed) -> Policy {
    // An empty list matches nothing, and xDS has no empty list.
    let or_never = |list: Vec<PermissionProto>| match list.is_empty() {
        true => vec![encode_permission(&Permission::Not(Box::new(Permission::Any)))],
        false => list,
    };
    let or_nobody = |list: Vec<PrincipalProto>| match list.is_empty() {
        true => vec![encode_principal(&Principal::Not(Box::new(Principal::Any)))],
        false => list,
    };
    Policy {
        permissions: or_never(rule.permissions.iter().map(|p| closed.permission(p)).collect()),
        principals: or_nobody(rule.principals.iter().map(|p| closed.principal(p)).collect()),
        ..Default::default()
    }
}

fn decode_rule(name: &str, proto: &Policy, at: &At<'_>, report: &mut Report) -> Option<AuthorizationRule> {
    if proto.condition.is_some() || proto.checked_condition.is_some() {
        report.problem(&at.field("condition"), "CEL conditions are not supported (gRFC A41)");
    }
    let permissions = decode_all(&proto.permissions, "permissions", at, report, decode_permission);
    let principals = decode_all(&proto.principals, "principals", at, report, decode_principal);
    Some(AuthorizationRule { name: name.to_owned(), permissions: permissions?, principals: principals? })
}

/// Decodes a set, which may not be empty; a member that fails fails the set.
fn decode_all<P, T>(
    protos: &[P],
    name: &str,
    at: &At<'_>,
    report: &mut Report,
    decode: fn(&P, &At<'_>, &mut Report) -> Option<T>,
) -> Option<Vec<T>> {
    if protos.is_empty() {
        report.problem(&at.field(name), "at least one is required");
        return None;
    }
    let decoded: Vec<Option<T>> =
        protos.iter().enumerate().map(|(i, p)| decode(p, &at.item(name, i), report)).collect();
    decoded.into_iter().collect()
}

/// Encodes a permission. Conditions are apart, so that deep nesting costs little stack.
pub(super) fn encode_permission(permission: &Permission) -> PermissionProto {
    use permission::{Rule, Set};
    let set = |list: &[Permission]| Set { rules: list.iter().map(encode_permission).collect() };
    let rule = match permission {
        Permission::And(list) if !list.is_empty() => Rule::AndRules(set(list)),
        Permission::Or(list) if !list.is_empty() => Rule::OrRules(set(list)),
        Permission::Not(inner) => Rule::NotRule(Box::new(encode_permission(inner))),
        condition => return encode_condition(condition),
    };
    PermissionProto { rule: Some(rule) }
}

#[inline(never)]
fn encode_condition(permission: &Permission) -> PermissionProto {
    use permission::{Rule, Set};
    let never = || Rule::NotRule(Box::new(PermissionProto { rule: Some(Rule::Any(true)) }));
    let rule = match permission {
        Permission::Any | Permission::And(_) => Rule::Any(true),
        Permission::Or(_) | Permission::Not(_) => never(),
        Permission::Header(header) => Rule::Header(matcher::header(header)),
        Permission::Path(PathMatch::PathSeparatedPrefix(prefix)) => match prefix.trim_end_matches('/') {
            "" => return path(StringMatch::Prefix("/".to_owned())),
            prefix => {
                let [whole, below] = separated_prefix(prefix);
                Rule::OrRules(Set { rules: vec![path(whole), path(below)] })
            }
        },
        Permission::Path(PathMatch::Exact(text)) => return path(StringMatch::Exact(text.clone())),
        Permission::Path(PathMatch::Prefix(text)) => return path(StringMatch::Prefix(text.clone())),
        Permission::Path(PathMatch::Regex(pattern)) => return path(StringMatch::Regex(pattern.clone())),
        Permission::DestinationPort(port) => Rule::DestinationPort((*port).into()),
        Permission::DestinationPorts(first, last) => {
            Rule::DestinationPortRange(Int32Range { start: (*first).into(), end: i32::from(*last) + 1 })
        }
        Permission::Metadata(metadata) => Rule::Metadata(audit::encode_metadata(metadata)),
        Permission::DestinationIp(net) => Rule::DestinationIp(common::cidr(*net)),
        Permission::ServerName(name) => Rule::RequestedServerName(matcher::string(name)),
    };
    PermissionProto { rule: Some(rule) }
}

fn path(pattern: StringMatch) -> PermissionProto {
    let text = StringMatcher { pattern, ignore_case: false };
    let rule = path_matcher::Rule::Path(matcher::string(&text));
    PermissionProto { rule: Some(permission::Rule::UrlPath(PathMatcher { rule: Some(rule) })) }
}

/// A prefix of whole path elements in terms that every RBAC engine knows: the path itself or below it.
fn separated_prefix(prefix: &str) -> [StringMatch; 2] {
    [StringMatch::Exact(prefix.to_owned()), StringMatch::Prefix(format!("{prefix}/"))]
}

fn decode_permission(proto: &PermissionProto, at: &At<'_>, report: &mut Report) -> Option<Permission> {
    use permission::Rule;
    let unsupported = |name: &str, report: &mut Report| {
        report.problem(&at.field(name), "permissions of this kind are not supported");
        None
    };
    match proto.rule.as_ref() {
        Some(Rule::Any(true)) => Some(Permission::Any),
        Some(Rule::AndRules(set)) => {
            let list = decode_all(&set.rules, "and_rules.rules", at, report, decode_permission)?;
            Some(meant(&list).unwrap_or(Permission::And(list)))
        }
        Some(Rule::OrRules(set)) => {
            let list = decode_all(&set.rules, "or_rules.rules", at, report, decode_permission)?;
            Some(as_separated_prefix(&list).or_else(|| meant(&list)).unwrap_or(Permission::Or(list)))
        }
        Some(Rule::NotRule(inner)) => {
            // What no request meets all do then.
            let at = at.field("not_rule");
            let inner = report.where_never_is(false, |report| decode_permission(inner, &at, report))?;
            Some(Permission::Not(Box::new(inner)))
        }
        Some(Rule::Header(header)) => read_header(header, &at.field("header"), report).map(Permission::Header),
        Some(Rule::UrlPath(path)) => read_path(path, &at.field("url_path"), report).map(Permission::Path),
        Some(Rule::DestinationIp(net)) => {
            common::read_cidr(net, &at.field("destination_ip"), report).map(Permission::DestinationIp)
        }
        Some(Rule::DestinationPort(port)) => {
            common::read_port(*port, &at.field("destination_port"), report).map(Permission::DestinationPort)
        }
        Some(Rule::RequestedServerName(name)) => {
            read_text(name, &at.field("requested_server_name"), report).map(Permission::ServerName)
        }
        Some(Rule::Any(false)) => unsupported("any", report),
        Some(Rule::DestinationPortRange(range)) => {
            let first = u16::try_from(range.start).ok();
            let last = range.end.checked_sub(1).and_then(|last| u16::try_from(last).ok());
            match first.zip(last) {
                Some((first, last)) if first <= last => Some(Permission::DestinationPorts(first, last)),
                _ => {
                    let reason = format!("[{}, {}) is not a range of ports", range.start, range.end);
                    report.problem(&at.field("destination_port_range"), reason);
                    None
                }
            }
        }
        Some(Rule::Metadata(metadata)) => {
            audit::read_metadata(metadata, &at.field("metadata"), report).map(Permission::Metadata)
        }
        Some(Rule::SourcedMetadata(_)) => unsupported("sourced_metadata", report),
        Some(Rule::Matcher(_)) => unsupported("matcher", report),
        Some(Rule::UriTemplate(_)) => unsupported("uri_template", report),
        None => unsupported("rule", report),
    }
}

/// The two conditions of [`separated_prefix`] as principals.
fn separated_ids(matcher: &PathMatch) -> Vec<PrincipalProto> {
    let PathMatch::PathSeparatedPrefix(prefix) = matcher else { return Vec::new() };
    let conditions = separated_prefix(prefix.trim_end_matches('/'));
    conditions
        .into_iter()
        .filter_map(|condition| match path(condition).rule {
            Some(permission::Rule::UrlPath(path)) => {
                Some(PrincipalProto { identifier: Some(principal::Identifier::UrlPath(path)) })
            }
            _ => None,
        })
        .collect()
}

/// Recognises what [`separated_prefix`] writes.
fn as_separated_prefix(list: &[Permission]) -> Option<Permission> {
    match list {
        [Permission::Path(PathMatch::Exact(whole)), Permission::Path(PathMatch::Prefix(below))]
            if below.strip_suffix('/') == Some(whole) =>
        {
            Some(Permission::Path(PathMatch::PathSeparatedPrefix(whole.clone())))
        }
        _ => None,
    }
}

/// Reads a path condition; forms that the model has no word for become the pattern that says the same.
fn read_path(proto: &PathMatcher, at: &At<'_>, report: &mut Report) -> Option<PathMatch> {
    let path = path_of(proto, at, report)?;
    report.is_met(at, |effort| path_is_met(&unescaped(&path), true, effort)).then_some(path)
}

fn path_of(proto: &PathMatcher, at: &At<'_>, report: &mut Report) -> Option<PathMatch> {
    let Some(path_matcher::Rule::Path(text)) = &proto.rule else {
        report.problem(at, "a path is required");
        return None;
    };
    let text = read_text(text, &at.field("path"), report)?;
    let around = |before: &str, literal: &str, after: &str| {
        let case = if text.ignore_case { "(?i)" } else { "" };
        // In the words of the requests that it is compared with, as the texts that stay texts; what somebody wrote as a
        // pattern says what it says.
        let literal = Pattern::escape(&unescape_path(literal));
        format!("{case}{before}{literal}{after}")
    };
    let pattern = match (&text.pattern, text.ignore_case) {
        (StringMatch::Exact(want), false) => return Some(PathMatch::Exact(want.clone())),
        (StringMatch::Prefix(want), false) => return Some(PathMatch::Prefix(want.clone())),
        // A regex has its own case rule (gRFC A63).
        (StringMatch::Regex(pattern), _) => return Some(PathMatch::Regex(pattern.clone())),
        (StringMatch::Exact(want), true) => around("", want, ""),
        (StringMatch::Prefix(want), true) => around("", want, ".*"),
        (StringMatch::Suffix(want), _) => around(".*", want, ""),
        (StringMatch::Contains(want), _) => around(".*", want, ".*"),
    };
    report.pattern(&at.field("path"), &pattern).map(PathMatch::Regex)
}

/// Reads a text condition. One that every text meets is a slip, which would open or shut all there is: Envoy does not take
/// it either.
fn read_text(proto: &TextProto, at: &At<'_>, report: &mut Report) -> Option<StringMatcher> {
    let text = matcher::read_string(proto, at, report)?;
    if is_met_by_all(&text) {
        report.problem(at, "a beginning, an end or a part of a text may not be empty");
        return None;
    }
    Some(text)
}

fn is_met_by_all(text: &StringMatcher) -> bool {
    match &text.pattern {
        StringMatch::Prefix(part) | StringMatch::Suffix(part) | StringMatch::Contains(part) => part.is_empty(),
        StringMatch::Exact(_) | StringMatch::Regex(_) => false,
    }
}

/// gRFC A41: conditions on `:scheme` and on gRPC's own headers are refused, wherever they stand.
fn read_header(proto: &HeaderProto, at: &At<'_>, report: &mut Report) -> Option<HeaderMatcher> {
    let header = matcher::read_header(proto, at, report)?;
    let own = matches!(&header.name, HeaderKey::Header(name) if name.as_str().starts_with("grpc-"));
    if own || header.name == HeaderKey::Scheme {
        report.problem(&at.field("name"), format!("{:?} may not be asked for (gRFC A41)", header.name.as_str()));
        return None;
    }
    if matches!(&header.value, HeaderMatch::Text(text) if is_met_by_all(text)) {
        report.problem(at, "a beginning, an end or a part of a text may not be empty");
        return None;
    }
    // Turned round it is met by all.
    let look = |report: &mut Report| report.is_met(at, |effort| target_is_met(&header, effort));
    if !(if header.invert { report.where_never_is(false, look) } else { look(report) }) {
        return None;
    }
    if matches!(&header.name, HeaderKey::Header(name) if is_of_peer(name)) {
        // No reason to refuse the listener: whoever made the rule knows that a request may have none.
        report.unenforced(&at.field("name"), "a server takes the header away, and a rule sees none");
    }
    // As in gRPC; Envoy looks at them.
    if matches!(&header.name, HeaderKey::Header(name) if *name == http::header::TE || name.as_str().ends_with("-bin")) {
        report.unenforced(&at.field("name"), "the header counts as absent (gRFC A41), whatever a request has there");
    }
    Some(header)
}

/// Encodes a principal, in the same way.
pub(super) fn encode_principal(principal: &Principal) -> PrincipalProto {
    use principal::{Identifier, Set};
    let set = |list: &[Principal]| Set { ids: list.iter().map(encode_principal).collect() };
    let identifier = match principal {
        Principal::And(list) if !list.is_empty() => Identifier::AndIds(set(list)),
        Principal::Or(list) if !list.is_empty() => Identifier::OrIds(set(list)),
        Principal::Not(inner) => Identifier::NotId(Box::new(encode_principal(inner))),
        condition => return encode_identity(condition),
    };
    PrincipalProto { identifier: Some(identifier) }
}

#[inline(never)]
fn encode_identity(principal: &Principal) -> PrincipalProto {
    use principal::{Authenticated, Identifier, Set};
    let nobody = || Identifier::NotId(Box::new(PrincipalProto { identifier: Some(Identifier::Any(true)) }));
    let identifier = match principal {
        Principal::Any | Principal::And(_) => Identifier::Any(true),
        Principal::Or(_) | Principal::Not(_) => nobody(),
        Principal::Authenticated(name) => {
            Identifier::Authenticated(Authenticated { principal_name: name.as_ref().map(matcher::string) })
        }
        Principal::DirectRemoteIp(net) => Identifier::DirectRemoteIp(common::cidr(*net)),
        Principal::RemoteIp(net) => Identifier::RemoteIp(common::cidr(*net)),
        Principal::Header(header) => Identifier::Header(matcher::header(header)),
        Principal::Path(matcher) => match encode_permission(&Permission::Path(matcher.clone())).rule {
            Some(permission::Rule::UrlPath(path)) => Identifier::UrlPath(path),
            // A prefix of whole elements is two conditions.
            _ => Identifier::OrIds(Set { ids: separated_ids(matcher) }),
        },
        Principal::Metadata(metadata) => Identifier::Metadata(audit::encode_metadata(metadata)),
    };
    PrincipalProto { identifier: Some(identifier) }
}

fn decode_principal(proto: &PrincipalProto, at: &At<'_>, report: &mut Report) -> Option<Principal> {
    use principal::Identifier;
    let unsupported = |name: &str, report: &mut Report| {
        report.problem(&at.field(name), "principals of this kind are not supported");
        None
    };
    match proto.identifier.as_ref() {
        Some(Identifier::Any(true)) => Some(Principal::Any),
        Some(Identifier::AndIds(set)) => {
            let list = decode_all(&set.ids, "and_ids.ids", at, report, decode_principal)?;
            Some(meant(&list).unwrap_or(Principal::And(list)))
        }
        Some(Identifier::OrIds(set)) => {
            let list = decode_all(&set.ids, "or_ids.ids", at, report, decode_principal)?;
            Some(match list.as_slice() {
                [Principal::Path(PathMatch::Exact(whole)), Principal::Path(PathMatch::Prefix(below))]
                    if below.strip_suffix('/') == Some(whole) =>
                {
                    Principal::Path(PathMatch::PathSeparatedPrefix(whole.clone()))
                }
                _ => meant(&list).unwrap_or(Principal::Or(list)),
            })
        }
        Some(Identifier::NotId(inner)) => {
            let at = at.field("not_id");
            let inner = report.where_never_is(false, |report| decode_principal(inner, &at, report))?;
            Some(Principal::Not(Box::new(inner)))
        }
        Some(Identifier::Authenticated(peer)) => match &peer.principal_name {
            Some(name) => {
                let name = read_text(name, &at.field("authenticated.principal_name"), report)?;
                Some(Principal::Authenticated(Some(name)))
            }
            None => Some(Principal::Authenticated(None)),
        },
        // Without a proxy in between, the connection's address is the peer's (gRFC A41).
        Some(Identifier::SourceIp(net) | Identifier::DirectRemoteIp(net)) => {
            common::read_cidr(net, &at.field("direct_remote_ip"), report).map(Principal::DirectRemoteIp)
        }
        Some(Identifier::RemoteIp(net)) => {
            common::read_cidr(net, &at.field("remote_ip"), report).map(Principal::RemoteIp)
        }
        Some(Identifier::Header(header)) => read_header(header, &at.field("header"), report).map(Principal::Header),
        Some(Identifier::Any(false)) => unsupported("any", report),
        Some(Identifier::UrlPath(path)) => read_path(path, &at.field("url_path"), report).map(Principal::Path),
        Some(Identifier::Metadata(metadata)) => {
            audit::read_metadata(metadata, &at.field("metadata"), report).map(Principal::Metadata)
        }
        Some(Identifier::SourcedMetadata(_)) => unsupported("sourced_metadata", report),
        Some(Identifier::FilterState(_)) => unsupported("filter_state", report),
        Some(Identifier::Custom(_)) => unsupported("custom", report),
        None => unsupported("identifier", report),
    }
}
