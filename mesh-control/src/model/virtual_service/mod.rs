//! VirtualService, validated: hosts, and routes in policy's own words with destinations not yet looked
//! up.

mod action;
mod headers;
mod layer4;
mod matching;
mod resilience;
mod spec;

use std::sync::Arc;
use std::time::Duration;

use mesh_core::policy::{Cors, Fault, HeaderPolicy, PerMillion, Redirect, RetryPolicy, Rewrite, RouteMatch};

pub(crate) use self::layer4::{Layer4Match, Layer4Route};
use self::spec::{HttpRouteSpec, VirtualServiceSpec};
use super::check::Check;
use super::kinds::{Kind, LOST_CONDITION};
use super::values::{ExportTo, duration, is_host};
use crate::source::decode::{Ignored, Why};

/// The gateway that stands for traffic between services.
const MESH: &str = "mesh";

/// A VirtualService.
#[derive(Clone, Debug)]
pub(crate) struct VirtualService {
    /// Hosts as written, lower case; empty = this object is a delegate.
    pub(crate) hosts: Vec<String>,
    /// Whether it applies between services.
    pub(crate) mesh: bool,
    /// Gateways besides `mesh`, as written.
    pub(crate) gateways: Vec<String>,
    pub(crate) http: Vec<HttpRoute>,
    /// For raw connections to ports on which the caller begins TLS.
    pub(crate) tls: Vec<Layer4Route>,
    /// For raw connections to other ports.
    pub(crate) tcp: Vec<Layer4Route>,
    pub(crate) export_to: ExportTo,
}

/// One HTTP route.
#[derive(Clone, Debug)]
pub(crate) struct HttpRoute {
    pub(crate) name: String,
    /// Any of; empty = every request.
    pub(crate) blocks: Vec<MatchBlock>,
    pub(crate) action: HttpAction,
    pub(crate) headers: HeaderPolicy,
    pub(crate) rewrite: Rewrite,
    pub(crate) timeout: Option<Duration>,
    /// `None` = nothing said.
    pub(crate) retries: Option<RetryPolicy>,
    /// Whether `retryIgnorePreviousHosts` was written.
    pub(crate) previous_hosts_said: bool,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirrors: Vec<Mirrored>,
    pub(crate) cors: Option<Arc<Cors>>,
}

/// One match block.
#[derive(Clone, Debug)]
pub(crate) struct MatchBlock {
    pub(crate) name: String,
    pub(crate) matcher: RouteMatch,
    /// Gateways of this block; empty = the VirtualService's.
    pub(crate) gateways: Vec<String>,
    /// What its requests are counted under; may be empty.
    pub(crate) stat_prefix: String,
}

impl MatchBlock {
    /// Whether the block is about traffic between services.
    pub(crate) fn mesh(&self) -> bool {
        names_mesh(&self.gateways)
    }
}

/// Whether a list of gateways is about traffic between services.
fn names_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH)
}

/// What a route does.
#[derive(Clone, Debug)]
pub(crate) enum HttpAction {
    /// Send on; at least one destination, and a sum of weights above 0 if there are several.
    Forward(Vec<WeightedDestination>),
    Redirect(Redirect, RedirectPort),
    Direct(mesh_core::policy::DirectResponse),
    /// The `http` list of another VirtualService.
    Delegate {
        name: String,
        namespace: String,
    },
}

/// Where a redirect's port comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedirectPort {
    /// What the redirect says, if anything.
    Said,
    /// `derivePort: FROM_REQUEST_PORT`.
    Request,
}

/// A destination with its share.
#[derive(Clone, Debug)]
pub(crate) struct WeightedDestination {
    pub(crate) destination: Destination,
    pub(crate) weight: u32,
    pub(crate) headers: HeaderPolicy,
    /// Authority set by the destination's header operations.
    pub(crate) authority: Option<String>,
}

/// Where copies go.
#[derive(Clone, Debug)]
pub(crate) struct Mirrored {
    pub(crate) destination: Destination,
    /// Above 0.
    pub(crate) share: PerMillion,
    /// The destination's path within the route: `mirror` or `mirrors[1].destination`.
    pub(crate) field: String,
}

/// A destination as written, lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) subset: String,
    pub(crate) port: Option<u16>,
}

impl Kind for VirtualService {
    const GROUP: &'static str = "networking.istio.io";
    const KIND: &'static str = "VirtualService";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    type Spec = VirtualServiceSpec;

    /// A condition that is lost makes the route take requests it should not, and any field of a route may be one that
    /// is misspelt: who can tell what `mtach` was?
    fn strict(ignored: &Ignored) -> Option<&'static str> {
        let mut steps = ignored.path.split('.').skip(1);
        let (list, field, inside) = (steps.next()?, steps.next()?, steps.next());
        if !["http[", "tls[", "tcp["].iter().any(|name| list.starts_with(name)) {
            return None;
        }
        if field.starts_with("match[") {
            return Some(LOST_CONDITION);
        }
        let is_field = inside.is_none() && matches!(ignored.why, Why::Unknown(_));
        is_field.then_some("a route has no such field, and would do something else without it; correct or remove it")
    }

    fn validate(spec: VirtualServiceSpec, check: &mut Check<'_>) -> Self {
        let mesh = names_mesh(&spec.gateways);
        check_hosts(&spec.hosts, mesh, check);
        check_gateways(&spec, check);
        if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
            check.error("spec", "at least one route is needed under http, tls or tcp");
        }
        if spec.hosts.is_empty() {
            for (field, given) in
                [("gateways", !spec.gateways.is_empty()), ("tls", !spec.tls.is_empty()), ("tcp", !spec.tcp.is_empty())]
            {
                if given {
                    check.error(&format!("spec.{field}"), "not allowed on a delegate (an object without hosts)");
                }
            }
        }
        let delegate = spec.hosts.is_empty();
        let hosts = spec.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let tls = layer4::tls(&spec.tls, &spec.hosts, check);
        let tcp = layer4::tcp(&spec.tcp, check);
        let mut http = Vec::new();
        for (i, route) in spec.http.into_iter().enumerate() {
            http.extend(http_route(route, check, &format!("spec.http[{i}]"), mesh, delegate));
        }
        // What is missing after an error would be taken for "every request".
        if check.errors() == 0 {
            check_unreachable(&http, check);
        }
        let export_to = ExportTo::read(&spec.export_to, check, "spec.exportTo");
        let gateways = spec.gateways.into_iter().filter(|gateway| gateway != MESH).collect();
        Self { hosts, mesh, gateways, http, tls, tcp, export_to }
    }
}

fn check_hosts(hosts: &[String], mesh: bool, check: &mut Check<'_>) {
    for (i, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        let is_ip = host.parse::<std::net::IpAddr>().is_ok();
        if host == "*" && mesh {
            check.error(&path, "a bare \"*\" is not allowed on the gateway \"mesh\"; name the hosts");
        } else if is_ip && mesh {
            check.error(&path, format!("{host:?}: an IP address is only allowed on a gateway; name the host"));
        } else if !is_host(host) && !is_ip {
            check.error(&path, format!("{host:?} is not a host name"));
        }
        for other in &hosts[..i] {
            if other.eq_ignore_ascii_case(host) {
                check.error(&path, format!("{host:?} is listed twice"));
            } else if covers(other, host) || covers(host, other) {
                check.error(&path, format!("{host:?} and {other:?} overlap; keep one of them"));
            }
        }
    }
}

fn check_gateways(spec: &VirtualServiceSpec, check: &mut Check<'_>) {
    for (i, gateway) in spec.gateways.iter().enumerate() {
        let path = format!("spec.gateways[{i}]");
        check_gateway_name(gateway, check, &path);
    }
    if !spec.gateways.is_empty() && !spec.gateways.iter().any(|gateway| gateway == MESH) {
        check.info("spec.gateways", "without \"mesh\" in the list these rules do not apply to calls between services");
    }
}

fn check_gateway_name(gateway: &str, check: &mut Check<'_>, path: &str) {
    let parts: Vec<&str> = gateway.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
        check.error(path, format!("{gateway:?} is not a gateway; write name or namespace/name"));
    } else if parts.len() == 1 && gateway.contains('.') {
        check.warn(path, format!("{gateway:?} looks like a host name; write namespace/name"));
    }
}

/// Whether `pattern`, perhaps a wildcard, covers `host`, perhaps a wildcard.
pub(crate) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() >= suffix.len() && host.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase()),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

fn http_route(spec: HttpRouteSpec, check: &mut Check<'_>, path: &str, mesh: bool, delegate: bool) -> Option<HttpRoute> {
    let mut blocks = Vec::new();
    for (i, block) in spec.r#match.iter().enumerate() {
        blocks.extend(matching::block(block, check, &format!("{path}.match[{i}]"), mesh));
    }
    let timeout = spec.timeout.as_deref().and_then(|text| positive(text, check, &format!("{path}.timeout")));
    let (mut rewrite, fault, mirrors) = (
        action::rewrite(spec.rewrite.as_ref(), check, &format!("{path}.rewrite")),
        spec.fault.as_ref().and_then(|fault| resilience::fault(fault, check, &format!("{path}.fault"))),
        action::mirrors(&spec, check, path),
    );
    let (headers, authority) = headers::policy(spec.headers.as_ref(), check, &format!("{path}.headers"));
    if let Some(authority) = authority {
        // `rewrite.authority` beats the header form (config-surface 1.1.5).
        rewrite.authority.get_or_insert(mesh_core::policy::AuthorityRewrite::Literal(authority));
    }
    let retries = spec.retries.as_ref().and_then(|r| resilience::retries(r, check, &format!("{path}.retries")));
    let cors = spec.cors_policy.as_ref();
    let cors = cors.map(|cors| Arc::new(resilience::cors(cors, check, &format!("{path}.corsPolicy"))));
    let action = action::action(&spec, check, path, delegate)?;
    if cors.is_some() && matches!(action, HttpAction::Redirect(..) | HttpAction::Direct(_)) {
        check.warn(&format!("{path}.corsPolicy"), "no effect: answers that no endpoint gives get no CORS headers");
    }
    let previous_hosts_said = spec.retries.as_ref().is_some_and(|r| r.retry_ignore_previous_hosts.is_some());
    Some(HttpRoute {
        name: spec.name,
        blocks,
        action,
        headers,
        rewrite,
        timeout: timeout.filter(|t| !t.is_zero()),
        retries,
        previous_hosts_said,
        fault,
        mirrors,
        cors,
    })
}

/// Reads a duration of at least 1 ms; 0 is let through and means "none".
fn positive(text: &str, check: &mut Check<'_>, path: &str) -> Option<Duration> {
    let value = check.take(path, duration(text))?;
    if !value.is_zero() && value < Duration::from_millis(1) {
        check.error(path, format!("{text:?} is too short; the least is 1ms"));
        return None;
    }
    Some(value)
}

/// Warns of routes that an earlier one hides, and of repeated matches.
fn check_unreachable(routes: &[HttpRoute], check: &mut Check<'_>) {
    use crate::finding::Severity;

    let catch_all = routes.iter().position(|route| {
        route.blocks.is_empty() || route.blocks.iter().any(|block| block.mesh() && is_catch_all(&block.matcher))
    });
    if let Some(first) = catch_all {
        for later in first + 1..routes.len() {
            let message = format!("never reached: spec.http[{first}] takes every request; move it to the end");
            check.coded(Severity::Warning, &format!("spec.http[{later}]"), "IST0130", message);
        }
    }
    let mut seen: Vec<(&MatchBlock, String)> = Vec::new();
    for (i, route) in routes.iter().enumerate().take(catch_all.unwrap_or(routes.len())) {
        for (j, block) in route.blocks.iter().enumerate() {
            let path = format!("spec.http[{i}].match[{j}]");
            // Quadratic: bounded by the file size, and most objects have few blocks.
            let same =
                |other: &&(&MatchBlock, String)| other.0.matcher == block.matcher && other.0.gateways == block.gateways;
            match seen.iter().take(500).find(same) {
                Some((_, first)) => {
                    check.coded(
                        Severity::Info,
                        &path,
                        "IST0131",
                        format!("the same match as {first}, which comes first"),
                    );
                }
                None => seen.push((block, path)),
            }
        }
    }
}

/// Whether nothing can fall through: prefix `/` or regex `.*` and no other condition.
pub(crate) fn is_catch_all(matcher: &RouteMatch) -> bool {
    use mesh_core::policy::PathMatch;

    let any_path = match &matcher.path {
        PathMatch::Prefix(prefix) => prefix == "/" || prefix.is_empty(),
        PathMatch::Regex(pattern) => pattern.as_str() == ".*" || pattern.as_str() == "*",
        _ => false,
    };
    any_path
        && RouteMatch { path: RouteMatch::any().path, case_sensitive: true, ..matcher.clone() } == RouteMatch::any()
}
