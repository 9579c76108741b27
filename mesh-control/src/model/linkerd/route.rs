//! HTTPRoute of Linkerd's own group, as what can be asked for at a Server.

use std::collections::BTreeMap;

use mesh_core::matcher::{OF_NO_PATH, is_of_no_path};
use mesh_core::policy::{HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Permission, StringMatch, StringMatcher};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::authorization_policy::matchers::normal;
use super::super::authorization_policy::when::header_name;
use super::super::check::Check;
use super::super::kinds::{Kind, LOST_CONDITION};
use crate::source::decode::Ignored;

/// An HTTPRoute of `policy.linkerd.io`.
#[derive(Clone, Debug)]
pub(crate) struct LinkerdRoute {
    /// Servers of its namespace to which it is attached; `None` = not readable, which is all of them.
    pub(crate) servers: Option<Vec<String>>,
    pub(crate) conditions: Vec<RouteCondition>,
    /// Made in place of one that cannot be read: its Servers let nobody in.
    pub(crate) closed: bool,
}

/// One `matches` entry.
#[derive(Clone, Debug)]
pub(crate) struct RouteCondition {
    pub(crate) permission: Permission,
    /// The greater goes before (Gateway API): kind of path, its length, whether there is a method, headers.
    pub(crate) rank: (u8, usize, bool, usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteSpec {
    #[serde(default)]
    parent_refs: Vec<ParentSpec>,
    rules: Option<Vec<RuleSpec>>,
    hostnames: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ParentSpec {
    #[serde(default)]
    group: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    namespace: Option<String>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleSpec {
    matches: Option<Vec<MatchSpec>>,
    filters: Option<Vec<IgnoredAny>>,
    #[allow(dead_code)]
    backend_refs: Option<IgnoredAny>,
    #[allow(dead_code)]
    timeouts: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MatchSpec {
    path: Option<PathSpec>,
    headers: Vec<HeaderSpec>,
    query_params: Option<Vec<IgnoredAny>>,
    method: Option<String>,
}

#[derive(Deserialize)]
struct PathSpec {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
struct HeaderSpec {
    r#type: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: String,
}

impl Kind for LinkerdRoute {
    const GROUP: &'static str = "policy.linkerd.io";
    const KIND: &'static str = "HTTPRoute";
    const VERSIONS: &'static [&'static str] = &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"];
    type Spec = RouteSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST_CONDITION)
    }

    fn validate(spec: RouteSpec, check: &mut Check<'_>) -> Self {
        let own = check.document().namespace.clone();
        let mut servers = Vec::new();
        for (i, parent) in spec.parent_refs.iter().enumerate() {
            let at = format!("spec.parentRefs[{i}]");
            if (parent.group.as_str(), parent.kind.as_str()) != (Self::GROUP, "Server") {
                check.unenforced(&at, "routes of this group are understood for Servers only");
            } else if parent.namespace.as_ref().is_some_and(|namespace| *namespace != own) {
                check.error(&format!("{at}.namespace"), "a route is for Servers of its own namespace");
            } else {
                servers.push(parent.name.clone());
            }
        }
        if servers.is_empty() {
            // Outbound: its rules decide nothing here.
            return Self { servers: Some(servers), conditions: Vec::new(), closed: false };
        }
        if spec.hostnames.as_ref().is_some_and(|names| !names.is_empty()) {
            check.error("spec.hostnames", "not supported at a Server; leave it out to mean every host");
        }
        let mut conditions = Vec::new();
        for (i, rule) in spec.rules.iter().flatten().enumerate() {
            let at = format!("spec.rules[{i}]");
            if rule.filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
                check.unenforced(&format!("{at}.filters"), "requests reach the application as they came");
            }
            match rule.matches.as_deref() {
                None | Some([]) => conditions.push(condition(&MatchSpec::default(), check, &at)),
                Some(list) => conditions.extend(
                    list.iter().enumerate().map(|(j, one)| condition(one, check, &format!("{at}.matches[{j}]"))),
                ),
            }
        }
        Self { servers: Some(servers), conditions, closed: false }
    }

    /// A route takes requests away from those that are less specific, and so from who may call these. While it is not
    /// known which, its Servers are closed.
    fn stand_in(read: Option<Self>) -> Option<(Self, &'static str)> {
        let servers = read.and_then(|read| read.servers);
        if servers.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let closed = Self { servers, conditions: Vec::new(), closed: true };
        Some((closed, "until it is corrected every request is denied at the Servers to which it is attached"))
    }
}

fn condition(spec: &MatchSpec, check: &mut Check<'_>, at: &str) -> RouteCondition {
    let mut all = Vec::new();
    let (mut kind, mut length) = (0, 1);
    if let Some(path) = &spec.path {
        let value = path.value.as_deref().unwrap_or("/");
        let at = format!("{at}.path");
        let read = match path.r#type.as_deref().unwrap_or("PathPrefix") {
            "Exact" => normal(value).map(|path| (2, PathMatch::Exact(path))),
            "PathPrefix" => normal(value).map(|path| (0, PathMatch::PathSeparatedPrefix(path))),
            // How specific a pattern is nobody can say: it goes before prefixes.
            "RegularExpression" => {
                let read = check.patterns.read(value).map(PathMatch::Regex).map_err(|error| error.reason);
                read.and_then(
                    |path| if is_of_no_path(&path, true) { Err(OF_NO_PATH.to_owned()) } else { Ok((1, path)) },
                )
            }
            other => Err(format!("{other:?} is not one of Exact, PathPrefix, RegularExpression")),
        };
        if let Some((rank, path)) = check.take(&format!("{at}.value"), read) {
            (kind, length) = (rank, value.trim_end_matches('/').len());
            let everything = matches!(&path, PathMatch::PathSeparatedPrefix(prefix) if prefix == "/");
            all.extend((!everything).then_some(Permission::Path(path)));
        }
    }
    if let Some(method) = &spec.method {
        let text = StringMatcher::exact(method.clone());
        all.push(header(HeaderKey::Method, text));
    }
    for (i, one) in spec.headers.iter().enumerate() {
        let at = format!("{at}.headers[{i}]");
        let pattern = match one.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => Ok(StringMatch::Exact(one.value.clone())),
            "RegularExpression" => {
                check.patterns.read(&one.value).map(StringMatch::Regex).map_err(|error| error.reason)
            }
            other => Err(format!("{other:?} is not one of Exact, RegularExpression")),
        };
        let name = check.take(&format!("{at}.name"), header_name(&one.name));
        let pattern = check.take(&format!("{at}.value"), pattern);
        if let Some((name, pattern)) = name.zip(pattern) {
            all.push(header(name, StringMatcher { pattern, ignore_case: false }));
        }
    }
    if spec.query_params.as_ref().is_some_and(|params| !params.is_empty()) {
        check.error(&format!("{at}.queryParams"), "not supported: authorization does not look at the query");
    }
    let permission = match all.len() {
        0 => Permission::Any,
        1 => all.remove(0),
        _ => Permission::And(all),
    };
    RouteCondition { permission, rank: (kind, length, spec.method.is_some(), spec.headers.len()) }
}

fn header(name: HeaderKey, text: StringMatcher) -> Permission {
    let value = HeaderMatch::Text(text);
    Permission::Header(HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false })
}
