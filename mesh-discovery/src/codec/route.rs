//! `RouteConfiguration` ⇄ [`RouteConfiguration`]: virtual hosts, routes and their matches. The actions
//! are next door in `route_action`.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3::{
    self as xds, Route as RouteProto, RouteMatch as MatchProto, VirtualHost as HostProto, header_matcher,
    route_action::RequestMirrorPolicy, route_match::PathSpecifier,
};
use mesh_core::matcher::{path_is_met, target_is_met, unescaped};
use mesh_core::policy::{
    Domain, HeaderKey, HeaderMatch, HeaderMatcher, HedgePolicy, Mirror, PathMatch, Pattern, PerMillionRatio,
    RetryBudget, Route, RouteAction, RouteConfiguration, RouteMatch, StringMatch, StringMatcher, VirtualHost,
};

use super::composite::Side;
use super::header::{self, read_policy};
use super::report::{At, Report, consider};
use super::route_extra::{self, Overrides};
use super::{common, extension, inbound_route, matcher, retry, route_action};
use crate::proto::policy::{self as extra, RouteConfigurationPolicy, RoutePolicy, VirtualHostPolicy};

pub(super) use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as Proto;

pub(super) fn encode(routes: &RouteConfiguration) -> Proto {
    let lists = header::encode(&routes.headers);
    let budget = routes.retry_budget.as_ref().map(|b| extra::RetryBudget {
        ratio_per_million: b.retry_ratio.0,
        min_retries_per_second: b.min_retries_per_second,
        ttl: Some(common::duration(b.ttl)),
    });
    let mut metadata = None;
    extension::put(&mut metadata, "RouteConfigurationPolicy", &RouteConfigurationPolicy { retry_budget: budget });
    Proto {
        name: routes.name.clone(),
        virtual_hosts: routes.virtual_hosts.iter().map(encode_virtual_host).collect(),
        request_headers_to_add: lists.request_add,
        request_headers_to_remove: lists.request_remove,
        response_headers_to_add: lists.response_add,
        response_headers_to_remove: lists.response_remove,
        metadata,
        ..Default::default()
    }
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<RouteConfiguration> {
    if !inbound_route::check(proto, at, report) {
        return decode_outbound(proto, at, report);
    }
    // Whoever dials by the same routes is told by the answer what does not serve there.
    report.problems_of(|report| decode_outbound(proto, at, report))
}

/// Those of a client.
pub(super) fn decode_outbound(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<RouteConfiguration> {
    note_unenforced(proto, at, report);
    check_plugins(proto, at, report);
    let outer = Outer {
        filters: route_extra::decode_overrides(&proto.typed_per_filter_config, Side::Either, at, report),
        mirrors: decode_mirrors(&proto.request_mirror_policies, at, report),
        hedge: None,
        plugins: proto
            .cluster_specifier_plugins
            .iter()
            .filter_map(|p| Some(p.extension.as_ref()?.name.clone()))
            .collect(),
    };
    let mut domains = HashSet::new();
    let hosts = proto.virtual_hosts.iter().enumerate();
    let virtual_hosts = hosts
        .map(|(i, h)| decode_virtual_host(h, &outer, &mut domains, &at.item("virtual_hosts", i), report))
        .collect();
    let ours: RouteConfigurationPolicy =
        extension::take(proto.metadata.as_ref(), "RouteConfigurationPolicy", at, report);
    Some(RouteConfiguration {
        name: proto.name.clone(),
        virtual_hosts,
        headers: read_policy!(proto, at, report),
        retry_budget: ours.retry_budget.map(|b| RetryBudget {
            retry_ratio: PerMillionRatio(b.ratio_per_million),
            min_retries_per_second: b.min_retries_per_second,
            ttl: common::opt_duration(b.ttl.as_ref(), at, "retry_budget.ttl", report).unwrap_or_default(),
        }),
    })
}

/// None is known: those that are not optional refuse the resource.
pub(super) fn check_plugins(proto: &Proto, at: &At<'_>, report: &mut Report) {
    for (i, plugin) in proto.cluster_specifier_plugins.iter().enumerate() {
        if !plugin.is_optional {
            report.problem(&at.item("cluster_specifier_plugins", i), "no such plugin is known and it is not optional");
        }
    }
}

/// What routes get from the levels around them where they have none of their own.
#[derive(Default)]
pub(super) struct Outer {
    pub(super) filters: Overrides,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) hedge: Option<HedgePolicy>,
    /// Names of the plugins that routes may refer to.
    pub(super) plugins: Arc<[String]>,
}

fn decode_mirrors(protos: &[RequestMirrorPolicy], at: &At<'_>, report: &mut Report) -> Vec<Mirror> {
    let mirrors = protos.iter().enumerate();
    mirrors
        .filter_map(|(i, m)| route_action::decode_mirror(m, &at.item("request_mirror_policies", i), report))
        .collect()
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Proto {
        read: [
            name, virtual_hosts, response_headers_to_add, response_headers_to_remove, request_headers_to_add,
            request_headers_to_remove, cluster_specifier_plugins, request_mirror_policies, typed_per_filter_config,
            metadata,
        ],
        // A route may always name a cluster that is not known yet; bodies of answers have our bound.
        idle: [validate_clusters, max_direct_response_body_size_bytes],
        vhds => "virtual hosts are not discovered on their own",
        internal_only_headers => "headers of outside callers are not removed",
        most_specific_header_mutations_wins => "the outermost level acts last",
        ignore_port_in_host_matching => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
        ignore_path_parameters_in_path_matching => "path parameters take part in matching",
        vhost_header => "virtual hosts are chosen by the authority",
        route_specifiers => "route extensions are not known",
    });
}

fn encode_virtual_host(host: &VirtualHost) -> xds::VirtualHost {
    let lists = header::encode(&host.headers);
    let retry = host.retry.as_ref().map(retry::encode);
    let mut metadata = None;
    if let Some((_, extra)) = &retry {
        let retry = (*extra != extra::RetryExtra::default()).then(|| extra.clone());
        extension::put(&mut metadata, "VirtualHostPolicy", &VirtualHostPolicy { retry });
    }
    xds::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.iter().map(|d| d.as_str().to_owned()).collect(),
        routes: host.routes.iter().map(encode_route).collect(),
        request_headers_to_add: lists.request_add,
        request_headers_to_remove: lists.request_remove,
        response_headers_to_add: lists.response_add,
        response_headers_to_remove: lists.response_remove,
        retry_policy: retry.map(|(policy, _)| policy),
        metadata,
        ..Default::default()
    }
}

fn decode_virtual_host(
    proto: &HostProto,
    outer: &Outer,
    taken: &mut HashSet<Domain>,
    at: &At<'_>,
    report: &mut Report,
) -> VirtualHost {
    let domains = read_domains(proto, taken, at, report);
    note_unenforced_of_host(proto, at, report);
    let overrides = route_extra::decode_overrides(&proto.typed_per_filter_config, Side::Either, at, report);
    let mut overrides = overrides.inside(&outer.filters);
    if let (None, Some(field)) = (&overrides.cors, &proto.cors) {
        overrides.cors_field = super::cors::decode_field(field, &at.field("cors"), report).map(Arc::new);
    }
    let ours: VirtualHostPolicy = extension::take(proto.metadata.as_ref(), "VirtualHostPolicy", at, report);
    let own_mirrors = decode_mirrors(&proto.request_mirror_policies, at, report);
    let hedge = proto.hedge_policy.as_ref();
    let inner = Outer {
        filters: overrides,
        mirrors: if own_mirrors.is_empty() { outer.mirrors.clone() } else { own_mirrors },
        hedge: hedge.map(|h| retry::decode_hedge(h, &at.field("hedge_policy"), report)),
        plugins: outer.plugins.clone(),
    };
    let retry = proto.retry_policy.as_ref();
    let retry =
        retry.and_then(|r| retry::decode(r, &ours.retry.unwrap_or_default(), &at.field("retry_policy"), report));
    // Routes are large: no room for some that do not come.
    let mut routes = Vec::with_capacity(proto.routes.len());
    for (i, route) in proto.routes.iter().enumerate() {
        routes.extend(decode_route(route, &inner, &at.item("routes", i), report));
    }
    VirtualHost { name: proto.name.clone(), domains, routes, headers: read_policy!(proto, at, report), retry }
}

/// The domains of a virtual host; `taken` are those of the ones before.
pub(super) fn read_domains(
    proto: &HostProto,
    taken: &mut HashSet<Domain>,
    at: &At<'_>,
    report: &mut Report,
) -> Vec<Domain> {
    if proto.domains.is_empty() {
        report.problem(&at.field("domains"), "at least one domain is required");
    }
    let mut domains = Vec::with_capacity(proto.domains.len());
    for (i, text) in proto.domains.iter().enumerate() {
        let at = at.item("domains", i);
        let Some(domain) = report.checked(&at, Domain::new(text)) else { continue };
        if !taken.insert(domain.clone()) {
            report.problem(&at, format!("{text:?} is served by another virtual host or listed twice"));
        }
        domains.push(domain);
    }
    if proto.matcher.is_some() {
        report.problem(&at.field("matcher"), "matcher trees are not supported");
    }
    domains
}

fn note_unenforced_of_host(proto: &HostProto, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, HostProto {
        read: [
            name, domains, routes, matcher, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, cors, typed_per_filter_config, retry_policy,
            hedge_policy, request_mirror_policies, metadata,
        ],
        // Statistics.
        idle: [virtual_clusters],
        require_tls => "plaintext callers are not redirected",
        rate_limits => "requests are not rate limited",
        include_request_attempt_count => "x-envoy-attempt-count is not sent",
        include_attempt_count_in_response => "x-envoy-attempt-count is not sent",
        retry_policy_typed_config => "retry extensions are not known",
        include_is_timeout_retry_header => "x-envoy-is-timeout-retry is not sent",
        per_request_buffer_limit_bytes => "the client's own limit on buffered bodies holds",
        request_body_buffer_limit => "the client's own limit on buffered bodies holds",
        route_specifiers => "route extensions are not known",
    });
}

fn encode_route(route: &Route) -> xds::Route {
    let lists = header::encode(&route.headers);
    let mut ours = RoutePolicy {
        response_classes: route.response_classes.iter().map(route_extra::encode_class).collect(),
        ..policy_of(&route.matcher)
    };
    let cors = match &route.action {
        RouteAction::Forward(forward) => forward.cors.as_deref(),
        _ => None,
    };
    let action = route_action::encode(&route.action, &mut ours);
    xds::Route {
        name: route.name.clone(),
        r#match: Some(encode_match(&route.matcher)),
        action: Some(action),
        metadata: encode_policy(&ours),
        typed_per_filter_config: route_extra::encode_overrides(&route.filters, cors),
        request_headers_to_add: lists.request_add,
        request_headers_to_remove: lists.request_remove,
        response_headers_to_add: lists.response_add,
        response_headers_to_remove: lists.response_remove,
        stat_prefix: route.stat_prefix.clone(),
        ..Default::default()
    }
}

/// Of our part of a route the conditions that xDS has no field for.
pub(super) fn policy_of(matcher: &RouteMatch) -> RoutePolicy {
    RoutePolicy {
        methods: matcher.methods.clone(),
        port: matcher.port.map(u32::from),
        source_labels: matcher.source_labels.clone(),
        source_namespace: matcher.source_namespace.clone(),
        ..Default::default()
    }
}

pub(super) fn encode_policy(ours: &RoutePolicy) -> Option<Metadata> {
    let mut metadata = None;
    extension::put(&mut metadata, "RoutePolicy", ours);
    metadata
}

/// Decodes a route; `None` without a problem is a route to be skipped (gRFC A28).
fn decode_route(proto: &RouteProto, outer: &Outer, at: &At<'_>, report: &mut Report) -> Option<Route> {
    consider!(proto, at, report, RouteProto {
        read: [
            name, r#match, metadata, typed_per_filter_config, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, action, stat_prefix,
        ],
        idle: [],
        decorator => "spans are named after the destination",
        tracing => "sampling and tags are the tracer's own",
        per_request_buffer_limit_bytes => "the client's own limit on buffered bodies holds",
        request_body_buffer_limit => "the client's own limit on buffered bodies holds",
        route_specifiers => "route extensions are not known",
    });
    let ours: RoutePolicy = extension::take(proto.metadata.as_ref(), "RoutePolicy", at, report);
    let overrides = route_extra::decode_overrides(&proto.typed_per_filter_config, Side::Either, at, report);
    let overrides = overrides.inside(&outer.filters);
    let headers = read_policy!(proto, at, report);
    let matcher = match &proto.r#match {
        Some(matcher) => decode_match(matcher, &ours, &at.field("match"), report),
        None => {
            report.problem(&at.field("match"), "a match is required");
            None
        }
    };
    let action = route_action::decode(proto.action.as_ref(), &ours, &overrides, outer, at, report);
    let classes = ours.response_classes.iter().enumerate();
    let response_classes =
        classes.filter_map(|(i, c)| route_extra::decode_class(c, &at.item("response_classes", i), report)).collect();
    Some(Route {
        name: proto.name.clone(),
        matcher: matcher?,
        action: action?,
        headers,
        filters: overrides.filters,
        response_classes,
        stat_prefix: proto.stat_prefix.clone(),
    })
}

pub(super) fn encode_match(m: &RouteMatch) -> xds::RouteMatch {
    let path = match &m.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(prefix) => PathSpecifier::Prefix(prefix.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(matcher::regex(pattern)),
        // Envoy refuses a slash at the end, which means the same without.
        PathMatch::PathSeparatedPrefix(prefix) => match prefix.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".to_owned()),
            prefix => PathSpecifier::PathSeparatedPrefix(prefix.to_owned()),
        },
    };
    let methods = encode_methods(&m.methods);
    xds::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: (!m.case_sensitive).then(|| common::boolean(false)).flatten(),
        headers: methods.into_iter().chain(m.headers.iter().map(matcher::header)).collect(),
        query_parameters: m.query.iter().map(matcher::query).collect(),
        cookies: m.cookies.iter().map(matcher::cookie).collect(),
        runtime_fraction: m.fraction.map(common::runtime_fraction),
        ..Default::default()
    }
}

/// The header condition that stands for `methods` with clients that don't read our metadata.
fn encode_methods(methods: &[String]) -> Option<xds::HeaderMatcher> {
    let pattern = match methods {
        [] => return None,
        [method] => matcher::exact(method),
        several => {
            let escaped: Vec<String> = several.iter().map(|m| Pattern::escape(m)).collect();
            matcher::safe_regex(escaped.join("|"))
        }
    };
    Some(xds::HeaderMatcher {
        name: HeaderKey::Method.as_str().to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(pattern)),
        ..Default::default()
    })
}

/// Of what a server is asked, whose paths are in normal form: a condition that none of them meets would lead what it is for
/// past the filters that stand before it.
pub(super) fn decode_inbound_match(
    proto: &MatchProto,
    ours: &RoutePolicy,
    at: &At<'_>,
    report: &mut Report,
) -> Option<RouteMatch> {
    let matcher = decode_match(proto, ours, at, report)?;
    let path = unescaped(&matcher.path);
    let is_met = report.is_met(at, |effort| path_is_met(&path, matcher.case_sensitive, effort))
        && matcher.headers.iter().all(|header| report.is_met(at, |effort| target_is_met(header, effort)));
    is_met.then_some(matcher)
}

fn decode_match(proto: &MatchProto, ours: &RoutePolicy, at: &At<'_>, report: &mut Report) -> Option<RouteMatch> {
    let MatchProto {
        path_specifier: _,
        case_sensitive: _,
        runtime_fraction: _,
        headers: _,
        query_parameters: _,
        cookies: _,
        grpc: _,
        tls_context: _,
        dynamic_metadata: _,
        filter_state: _,
    } = proto;
    let path = decode_path(proto.path_specifier.as_ref(), at, report);
    refuse_unsupported(proto, at, report);
    let mut conditions = proto.headers.as_slice();
    if !ours.methods.is_empty() {
        match conditions.split_first() {
            Some((first, rest)) if first.name == HeaderKey::Method.as_str() => conditions = rest,
            _ => {
                report.problem(&at.field("headers"), "the metadata names methods and no condition on :method is first")
            }
        }
    }
    let mut headers = matcher::read_headers(conditions, at, "headers", report);
    if proto.grpc.is_some() {
        headers.push(grpc_only());
    }
    let query = proto.query_parameters.iter().enumerate();
    let query = query.filter_map(|(i, q)| matcher::read_query(q, &at.item("query_parameters", i), report)).collect();
    let cookies = proto.cookies.iter().enumerate();
    let cookies = cookies.filter_map(|(i, c)| matcher::read_cookie(c, &at.item("cookies", i), report)).collect();
    let port = ours.port.and_then(|port| common::read_port(port, &at.field("port"), report));
    Some(RouteMatch {
        path: path?,
        case_sensitive: proto.case_sensitive.is_none_or(|b| b.value),
        methods: ours.methods.clone(),
        headers,
        query,
        cookies,
        fraction: common::read_runtime_fraction(proto.runtime_fraction.as_ref(), at, "runtime_fraction", report),
        port,
        source_labels: ours.source_labels.clone(),
        source_namespace: ours.source_namespace.clone(),
    })
}

/// The condition that `grpc: {}` stands for: what has another sign after it is another protocol, such as gRPC-Web.
fn grpc_only() -> HeaderMatcher {
    static TYPES: LazyLock<Pattern> =
        LazyLock::new(|| Pattern::new(r"application/grpc(\+.*)?").expect("a pattern that is always the same"));
    let pattern = StringMatch::Regex(TYPES.clone());
    HeaderMatcher {
        name: HeaderKey::Header(http::header::CONTENT_TYPE),
        value: HeaderMatch::Text(StringMatcher { pattern, ignore_case: false }),
        invert: false,
        treat_missing_as_empty: false,
    }
}

fn decode_path(proto: Option<&PathSpecifier>, at: &At<'_>, report: &mut Report) -> Option<PathMatch> {
    match proto {
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path.clone())),
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix.clone())),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) if prefix.ends_with('/') || prefix.is_empty() => {
            report.problem(&at.field("path_separated_prefix"), "it must not be empty or end with '/'");
            None
        }
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Some(PathMatch::PathSeparatedPrefix(prefix.clone())),
        Some(PathSpecifier::SafeRegex(regex)) => {
            matcher::read_regex(regex, &at.field("safe_regex"), report).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            report.problem(&at.field("connect_matcher"), "CONNECT is not supported");
            None
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            report.problem(&at.field("path_match_policy"), "path match extensions are not supported");
            None
        }
        None => {
            report.problem(at, "prefix, path, safe_regex or path_separated_prefix is required");
            None
        }
    }
}

/// A condition that is passed over would make the route take requests that are not for it.
fn refuse_unsupported(proto: &MatchProto, at: &At<'_>, report: &mut Report) {
    let conditions = [
        ("tls_context", proto.tls_context.is_some()),
        ("dynamic_metadata", !proto.dynamic_metadata.is_empty()),
        ("filter_state", !proto.filter_state.is_empty()),
    ];
    for (name, set) in conditions {
        if set {
            report.problem(&at.field(name), "conditions of this kind are not supported");
        }
    }
}
