//! Routes at a Server, as what can be asked for there: HTTPRoutes of Linkerd's own group, HTTPRoutes and GRPCRoutes of the
//! Gateway API. One of the Gateway API that is for no Server has no effect, and is no kind of the mesh's.

use std::collections::BTreeMap;

use mesh_core::matcher::path_is_met;
use mesh_core::policy::{HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Permission, StringMatch, StringMatcher};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::authorization_policy::matchers::normal;
use super::super::authorization_policy::when::header_name;
use super::super::check::Check;
use super::super::kinds::{Kind, LOST_CONDITION};
use super::grpc_route::{self, GrpcMatchSpec};
use crate::source::Document;
use crate::source::decode::Ignored;
use crate::source::node::{Node, Value};

/// A route at Servers; by itself an HTTPRoute of `policy.linkerd.io`.
#[derive(Clone, Debug)]
pub(crate) struct LinkerdRoute {
    /// Servers of its namespace to which it is attached; `None` = not readable, which is all of them.
    pub(crate) servers: Option<Vec<String>>,
    pub(crate) conditions: Vec<RouteCondition>,
    /// Made in place of one that cannot be read: its Servers let nobody in.
    pub(crate) closed: bool,
}

/// An HTTPRoute of `gateway.networking.k8s.io`.
#[derive(Clone, Debug)]
pub(crate) struct GatewayHttpRoute(pub(crate) LinkerdRoute);

/// A GRPCRoute of `gateway.networking.k8s.io`.
#[derive(Clone, Debug)]
pub(crate) struct GatewayGrpcRoute(pub(crate) LinkerdRoute);

const GATEWAY: &str = "gateway.networking.k8s.io";

/// One `matches` entry.
#[derive(Clone, Debug)]
pub(crate) struct RouteCondition {
    pub(crate) permission: Permission,
    /// The greater goes before (Gateway API): kind of path, its length, whether there is a method, headers.
    pub(crate) rank: (u8, usize, bool, usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteSpec<M> {
    #[serde(default = "Vec::new")]
    parent_refs: Vec<ParentSpec>,
    rules: Option<Vec<RuleSpec<M>>>,
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
struct RuleSpec<M> {
    #[allow(dead_code)]
    name: Option<IgnoredAny>,
    matches: Option<Vec<M>>,
    filters: Option<Vec<IgnoredAny>>,
    #[allow(dead_code)]
    backend_refs: Option<IgnoredAny>,
    // What clients do with it.
    #[allow(dead_code)]
    timeouts: Option<IgnoredAny>,
    #[allow(dead_code)]
    retry: Option<IgnoredAny>,
    #[allow(dead_code)]
    session_persistence: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct MatchSpec {
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
pub(crate) struct HeaderSpec {
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
    type Spec = RouteSpec<MatchSpec>;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some(LOST_CONDITION)
    }

    fn validate(spec: RouteSpec<MatchSpec>, check: &mut Check<'_>) -> Self {
        Self::read(&spec, check, condition)
    }

    /// A route takes requests away from those that are less specific, and so from who may call these. While it is not
    /// known which, its Servers are closed.
    fn stand_in(read: Option<Self>, document: &Document) -> Option<(Self, &'static str)> {
        let servers = read.and_then(|read| read.servers).or_else(|| servers_of(document));
        if servers.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let closed = Self { servers, conditions: Vec::new(), closed: true };
        Some((closed, "until it is corrected every request is denied at the Servers to which it is attached"))
    }
}

impl LinkerdRoute {
    /// `condition` reads an entry of `matches`.
    fn read<M: Default>(
        spec: &RouteSpec<M>,
        check: &mut Check<'_>,
        condition: impl Fn(&M, &mut Check<'_>, &str) -> RouteCondition,
    ) -> Self {
        let own = check.document().namespace.clone();
        let mut servers = Vec::new();
        for (i, parent) in spec.parent_refs.iter().enumerate() {
            let at = format!("spec.parentRefs[{i}]");
            if parent.kind != "Server" {
                check.unenforced(&at, "these routes are understood for Servers only");
                continue;
            }
            if parent.group != Self::GROUP {
                check.error(&format!("{at}.group"), format!("a Server is of the group {:?}: write that", Self::GROUP));
            } else if parent.namespace.as_ref().is_some_and(|namespace| *namespace != own) {
                check.error(&format!("{at}.namespace"), "a route is for Servers of its own namespace");
                // One of the same name here is another.
                continue;
            }
            servers.push(parent.name.clone());
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
                None | Some([]) => conditions.push(condition(&M::default(), check, &at)),
                Some(list) => conditions.extend(
                    list.iter().enumerate().map(|(j, one)| condition(one, check, &format!("{at}.matches[{j}]"))),
                ),
            }
        }
        Self { servers: Some(servers), conditions, closed: false }
    }
}

/// The Servers that a route names whose other parts cannot be read; `None` if these cannot either.
fn servers_of(document: &Document) -> Option<Vec<String>> {
    let parents = document.node.get("spec")?.get("parentRefs")?;
    let Value::List(parents) = &parents.value else { return None };
    let mut servers = Vec::new();
    for parent in parents {
        let Value::Map(_) = &parent.value else { return None };
        let is_server = match parent.get("kind") {
            Some(kind) => kind.text()? == "Server",
            None => false,
        };
        let is_here = match parent.get("namespace") {
            Some(namespace) => namespace.text()? == document.namespace,
            None => true,
        };
        if is_server && is_here {
            servers.push(parent.get("name")?.text()?.to_owned());
        }
    }
    Some(servers)
}

/// Whether a route of the Gateway API is for a Server.
fn is_at_a_server(document: &Document) -> bool {
    let parents = document.node.get("spec").and_then(|spec| spec.get("parentRefs")).map(Node::items);
    let mut kinds = parents.unwrap_or_default().iter().filter_map(|parent| parent.get("kind")?.text());
    kinds.any(|kind| kind == "Server")
}

macro_rules! gateway_route {
    ($route:ident, $kind:literal, $versions:expr, $matches:ty, $condition:expr) => {
        impl Kind for $route {
            const GROUP: &'static str = GATEWAY;
            const KIND: &'static str = $kind;
            const VERSIONS: &'static [&'static str] = $versions;
            type Spec = RouteSpec<$matches>;

            fn claims(document: &Document) -> bool {
                is_at_a_server(document)
            }

            fn strict(ignored: &Ignored) -> Option<&'static str> {
                LinkerdRoute::strict(ignored)
            }

            fn validate(spec: Self::Spec, check: &mut Check<'_>) -> Self {
                Self(LinkerdRoute::read(&spec, check, $condition))
            }

            fn stand_in(read: Option<Self>, document: &Document) -> Option<(Self, &'static str)> {
                let (route, effect) = LinkerdRoute::stand_in(read.map(|read| read.0), document)?;
                Some((Self(route), effect))
            }
        }
    };
}

gateway_route!(GatewayHttpRoute, "HTTPRoute", &["v1", "v1beta1"], MatchSpec, condition);
gateway_route!(GatewayGrpcRoute, "GRPCRoute", &["v1", "v1alpha2"], GrpcMatchSpec, grpc_route::condition);

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
            "RegularExpression" => pattern(value, check, &format!("{at}.value")).map(|path| (1, path)),
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
    if spec.query_params.as_ref().is_some_and(|params| !params.is_empty()) {
        check.error(&format!("{at}.queryParams"), "not supported: authorization does not look at the query");
    }
    condition_of(all, &spec.headers, (kind, length, spec.method.is_some()), check, at)
}

/// A regular expression that some path in normal form meets.
pub(super) fn pattern(text: &str, check: &mut Check<'_>, at: &str) -> Result<PathMatch, String> {
    let path = check.patterns.read(text).map(PathMatch::Regex).map_err(|error| error.reason)?;
    let met = path_is_met(&path, true, &mut check.effort);
    check.met(at, met).map(|()| path)
}

/// All of these and of the conditions on headers.
pub(super) fn condition_of(
    mut all: Vec<Permission>,
    headers: &[HeaderSpec],
    (kind, length, has_method): (u8, usize, bool),
    check: &mut Check<'_>,
    at: &str,
) -> RouteCondition {
    for (i, one) in headers.iter().enumerate() {
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
    let permission = match all.len() {
        0 => Permission::Any,
        1 => all.remove(0),
        _ => Permission::And(all),
    };
    RouteCondition { permission, rank: (kind, length, has_method, headers.len()) }
}

fn header(name: HeaderKey, text: StringMatcher) -> Permission {
    let value = HeaderMatch::Text(text);
    Permission::Header(HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false })
}
