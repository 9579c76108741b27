//! `Listener` with filter chains ⇄ [`InboundListener`]: the server side (gRFC A36).
//!
//! Strict is one chain with TLS, plaintext one chain without, permissive one of each, told apart by
//! `transport_protocol`. A stock gRPC server uses the plaintext chain of a permissive listener, as
//! istiod's permissive listeners are.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, HttpProtocolOptions, TrafficDirection};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, filter::ConfigType as FilterConfig,
};
use envoy_types::pb::envoy::config::route::v3::{
    self as routes, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as RbacProto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use mesh_core::policy::{
    Address, AuthorizationPolicy, FilterOverride, HttpFilter, HttpFilterKind, InboundLimits, InboundListener,
    InboundTls, Instances, JwtAuthentication,
};

use super::extension::{self, url};
use super::listener::{self, Proto};
use super::report::{At, Report, consider};
use super::route_extra::{self, Guard, Overrides};
use super::{authorization, common, concurrency, filter, jwt, rate_limit, tls};
use crate::proto::policy::InboundPolicy;

/// Values of `transport_protocol`.
const TLS: &str = "tls";
const PLAINTEXT: &str = "raw_buffer";

pub(super) fn encode(listener: &InboundListener) -> Proto {
    let jwt = listener.jwt.iter().map(|jwt| jwt.name.clone());
    let taken = jwt.chain(listener.filters.iter().map(|filter| filter.name.clone())).collect();
    let policies = authorization::encode(&listener.authorization, taken);
    let manager = encode_manager(listener, &policies);
    let chain = |name: &str, transport: &str, with_tls: bool| FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!transport.is_empty())
            .then(|| FilterChainMatch { transport_protocol: transport.to_owned(), ..Default::default() }),
        filters: vec![Filter {
            name: "envoy.filters.network.http_connection_manager".to_owned(),
            config_type: Some(FilterConfig::TypedConfig(extension::pack(url::HCM, &manager))),
        }],
        transport_socket: with_tls.then(|| tls::encode_downstream(&listener.instances)),
        ..Default::default()
    };
    let chains = match listener.tls {
        InboundTls::Strict => vec![chain("inbound-mtls", "", true)],
        InboundTls::Disable => vec![chain("inbound-plaintext", "", false)],
        InboundTls::Permissive => {
            vec![chain("inbound-mtls", TLS, true), chain("inbound-plaintext", PLAINTEXT, false)]
        }
    };
    let extras = policies.into_iter().map(|p| p.extra);
    let ours = InboundPolicy {
        max_connections: listener.limits.max_connections,
        policies: extras
            .filter(|e| e.policy.is_some() || e.custom.is_some() || e.route || !e.rules.is_empty())
            .collect(),
    };
    let mut metadata = None;
    extension::put(&mut metadata, "InboundPolicy", &ours);
    Proto {
        name: listener.name.clone(),
        address: Some(common::address(&Address::Socket(listener.address))),
        filter_chains: chains,
        traffic_direction: TrafficDirection::Inbound.into(),
        metadata,
        ..Default::default()
    }
}

fn encode_manager(listener: &InboundListener, policies: &[authorization::Encoded]) -> HttpConnectionManager {
    let limits = &listener.limits;
    let jwt = listener.jwt.iter().map(|j| filter::encode(&j.name, extension::pack(url::JWT, &jwt::encode(j)), false));
    let rbac = policies.iter().map(|p| filter::encode(&p.name, extension::pack(url::RBAC, &p.filter), false));
    let filters = jwt.chain(rbac).chain(listener.filters.iter().filter_map(listener::encode_filter));
    HttpConnectionManager {
        stat_prefix: "inbound".to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(hand_over())),
        http_filters: filters.chain([filter::router()]).collect(),
        common_http_protocol_options: limits.max_connection_age.map(|age| HttpProtocolOptions {
            max_connection_duration: Some(common::duration(age)),
            ..Default::default()
        }),
        http2_protocol_options: limits.max_concurrent_streams.map(|streams| Http2ProtocolOptions {
            max_concurrent_streams: common::uint32(streams),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The only route of a server: everything goes to the application.
fn hand_over() -> RouteConfiguration {
    let everything = RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    RouteConfiguration {
        name: "inbound".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "inbound".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(everything),
                action: Some(route::Action::NonForwardingAction(routes::NonForwardingAction {})),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<InboundListener> {
    check_listener(proto, at, report);
    let address = read_socket(proto, at, report);
    let ours: InboundPolicy = extension::take(proto.metadata.as_ref(), "InboundPolicy", at, report);
    let mut chains: Vec<Chain> = Vec::new();
    for (i, chain) in proto.filter_chains.iter().enumerate() {
        chains.extend(decode_chain(chain, &ours, &at.item("filter_chains", i), report));
    }
    if let Some(chain) = &proto.default_filter_chain {
        chains.extend(decode_chain(chain, &ours, &at.field("default_filter_chain"), report));
    }
    let tls = decode_mode(&chains, at, report);
    // One chain has TLS, or none.
    let instances = chains.iter().find_map(|chain| chain.instances.clone()).unwrap_or_default();
    let first = chains.into_iter().reduce(|first, other| {
        let same = (&first.jwt, &first.authorization, &first.filters, &first.limits)
            == (&other.jwt, &other.authorization, &other.filters, &other.limits);
        if !same {
            report.problem(&at.field("filter_chains"), "chains that differ in more than TLS are not supported");
        }
        first
    });
    let first = first?;
    Some(InboundListener {
        name: proto.name.clone(),
        address: address?,
        tls: tls?,
        instances,
        jwt: first.jwt,
        authorization: first.authorization,
        filters: first.filters,
        limits: InboundLimits { max_connections: ours.max_connections, ..first.limits },
    })
}

/// gRFC A36: what a server's listener may not have.
fn check_listener(proto: &Proto, at: &At<'_>, report: &mut Report) {
    if !proto.listener_filters.is_empty() {
        report.problem(&at.field("listener_filters"), "none is supported (gRFC A36)");
    }
    if common::is_true(proto.use_original_dst.as_ref()) {
        report.problem(&at.field("use_original_dst"), "it must be false (gRFC A36)");
    }
    if proto.filter_chain_matcher.is_some() {
        report.problem(&at.field("filter_chain_matcher"), "matcher trees are not supported");
    }
    if proto.filter_chains.is_empty() && proto.default_filter_chain.is_none() {
        report.problem(&at.field("filter_chains"), "an api_listener or at least one filter chain is required");
    }
    consider!(proto, at, report, Proto {
        read: [
            name, address, filter_chains, filter_chain_matcher, use_original_dst, default_filter_chain, metadata,
            listener_filters, api_listener,
        ],
        // Statistics and buffers; sockets, which the application opened; and the direction, which is ours.
        idle: [
            stat_prefix, stats_matcher, per_connection_buffer_limit_bytes,
            per_connection_buffer_high_watermark_timeout, deprecated_v1, listener_filters_timeout,
            continue_on_listener_filters_timeout, transparent, freebind, socket_options, tcp_fast_open_queue_length,
            traffic_direction, connection_balance_config, reuse_port, enable_reuse_port, tcp_backlog_size,
            max_connections_to_accept_per_socket_event, bind_to_port, enable_mptcp, ignore_global_conn_limit,
            bypass_overload_manager, tcp_keepalive,
        ],
        additional_addresses => "only the first address is served by this listener",
        fcds_config => "filter chains are not discovered on their own",
        drain_type => "connections are drained when the server is",
        udp_listener_config => "UDP is not served",
        access_log => "access logs follow the server's settings",
        listener_specifier => "it is an ordinary listener",
    });
}

fn read_socket(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<SocketAddr> {
    let at = at.field("address");
    match common::read_address(proto.address.as_ref(), &at, report)? {
        Address::Socket(address) => Some(address),
        Address::Name { .. } | Address::Unix(_) => {
            report.problem(&at, "an IP address and a port are required (gRFC A36)");
            None
        }
    }
}

/// One filter chain.
struct Chain {
    transport: String,
    tls: bool,
    instances: Option<Instances>,
    jwt: Vec<JwtAuthentication>,
    authorization: Vec<AuthorizationPolicy>,
    filters: Vec<HttpFilter>,
    limits: InboundLimits,
}

fn decode_chain(proto: &FilterChain, ours: &InboundPolicy, at: &At<'_>, report: &mut Report) -> Option<Chain> {
    consider!(proto, at, report, FilterChain {
        read: [filter_chain_match, filters, transport_socket],
        // A name for logs, and notes that nothing reads.
        idle: [name, metadata],
        use_proxy_proto => "PROXY headers are not read",
        transport_socket_connect_timeout => "handshakes have the server's own time limit",
    });
    let transport = decode_chain_match(proto.filter_chain_match.as_ref(), &at.field("filter_chain_match"), report);
    let instances = proto
        .transport_socket
        .as_ref()
        .and_then(|socket| tls::decode_downstream(socket, &at.field("transport_socket"), report));
    let config = match proto.filters.as_slice() {
        [Filter { config_type: Some(FilterConfig::TypedConfig(config)), .. }]
            if extension::type_of(config) == url::HCM =>
        {
            config
        }
        _ => {
            report.problem(
                &at.field("filters"),
                "exactly one filter is supported, an HTTP connection manager (gRFC A36)",
            );
            return None;
        }
    };
    let at = at.item("filters", 0);
    let manager: HttpConnectionManager = extension::unpack(config, &at, report)?;
    filter::check_addresses(&manager, &at, report);
    note_manager(&manager, &at, report);
    let overrides = check_routes(&manager, &at, report);
    let filters = filter::decode(&manager, &at, report);
    if matches!(manager.route_specifier, Some(RouteSpecifier::Rds(_)))
        && filters.iter().any(|f| [url::RBAC, url::JWT].contains(&f.type_url.as_str()))
    {
        let reason = "beside authorization the routes must be in the listener: those of RDS might change its rules";
        report.problem(&at.field("rds"), reason);
    }
    let mut chain = Chain {
        transport,
        tls: proto.transport_socket.is_some(),
        instances,
        jwt: Vec::new(),
        authorization: Vec::new(),
        filters: Vec::new(),
        limits: decode_limits(&manager, &at, report),
    };
    for http_filter in &filters {
        decode_filter(http_filter, &overrides, ours, &mut chain, &at, report);
    }
    Some(chain)
}

/// Decodes one filter of a server, as the routes change it.
fn decode_filter(
    proto: &filter::Filter<'_>,
    overrides: &Overrides,
    ours: &InboundPolicy,
    chain: &mut Chain,
    at: &At<'_>,
    report: &mut Report,
) {
    let at_filter = at.item("http_filters", proto.index);
    let guard = overrides.guards.get(proto.name);
    let mismatch = |report: &mut Report| {
        report.problem(&at_filter, "the routes change it with a configuration of another filter");
    };
    match proto.type_url.as_str() {
        url::RBAC => {
            let Some(own) = extension::unpack::<RbacProto>(proto.config, &at_filter, report) else { return };
            let extra = ours.policies.iter().find(|extra| extra.filter == proto.name);
            let (rbac, extra) = match guard {
                None => (&own, extra),
                Some(Guard::Off) => return,
                Some(Guard::Rbac(other)) => (other.as_ref(), None),
                Some(Guard::Requirement(_)) => return mismatch(report),
            };
            chain.authorization.extend(authorization::decode(proto.name, rbac, extra, &at_filter, report));
        }
        url::JWT => {
            let requirement = match guard {
                None => None,
                Some(Guard::Off) => return,
                Some(Guard::Requirement(name)) => Some(name.as_str()),
                Some(Guard::Rbac(_)) => return mismatch(report),
            };
            let Some(config) = extension::unpack(proto.config, &at_filter, report) else { return };
            chain.jwt.extend(jwt::decode(proto.name, &config, requirement, &at_filter, report));
        }
        url::RATE_LIMIT => {
            let limit = match overrides.filters.get(proto.name) {
                Some(FilterOverride::RateLimit(limit)) => Some(limit.clone()),
                Some(FilterOverride::Disabled) => return,
                _ => listener::read_rate_limit(proto, at, report),
            };
            let kind = limit.map(HttpFilterKind::RateLimit);
            chain.filters.extend(kind.map(|kind| HttpFilter { name: proto.name.to_owned(), kind }));
        }
        url::CALLER_RATE_LIMIT => {
            let Some(limit) = extension::unpack(proto.config, &at_filter, report) else { return };
            let kind = rate_limit::decode_callers(&limit, &at_filter, report).map(HttpFilterKind::CallerRateLimit);
            chain.filters.extend(kind.map(|kind| HttpFilter { name: proto.name.to_owned(), kind }));
        }
        url::CONCURRENCY => {
            let Some(policy) = extension::unpack(proto.config, &at_filter, report) else { return };
            let kind = concurrency::decode(&policy, &at_filter, report).map(HttpFilterKind::AdaptiveConcurrency);
            chain.filters.extend(kind.map(|kind| HttpFilter { name: proto.name.to_owned(), kind }));
        }
        // What somebody wanted asked is not passed over for being called optional.
        url::EXT_AUTHZ => report.problem(
            &at_filter,
            "external authorizers are asked for CUSTOM policies of the mesh's own control plane, not for filters: write \
             the AuthorizationPolicy there, or take the filter out",
        ),
        _ if filter::skip(proto, at, report) => chain.filters.push(HttpFilter {
            name: proto.name.to_owned(),
            kind: HttpFilterKind::Skipped { type_url: proto.type_url.clone() },
        }),
        _ => {}
    }
}

fn note_manager(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    filter::note_manager(manager, at, report);
    if let Some(common) = &manager.common_http_protocol_options {
        consider!(common, &at.field("common_http_protocol_options"), report, HttpProtocolOptions {
            read: [max_connection_duration],
            idle: [max_response_headers_kb],
            idle_timeout => "idle connections have the server's own time limit",
            max_connection_duration_jitter => "connections are drained at their age, without jitter",
            max_headers_count => "the number of a request's headers has the HTTP library's limit",
            max_stream_duration => "streams have the time that the caller gives them",
            headers_with_underscores_action => "headers with underscores are passed on",
            max_requests_per_connection => "connections take any number of requests",
        });
    }
}

/// Reads the transport protocol a chain is for; any other condition is refused.
fn decode_chain_match(proto: Option<&FilterChainMatch>, at: &At<'_>, report: &mut Report) -> String {
    let Some(proto) = proto else { return String::new() };
    let transport = proto.transport_protocol.clone();
    if !["", TLS, PLAINTEXT].contains(&transport.as_str()) {
        report.problem(&at.field("transport_protocol"), format!("{transport:?} is not tls or raw_buffer"));
    }
    let rest = FilterChainMatch { transport_protocol: String::new(), ..proto.clone() };
    if rest != FilterChainMatch::default() {
        report.problem(at, "only transport_protocol is supported as a condition");
    }
    transport
}

fn decode_mode(chains: &[Chain], at: &At<'_>, report: &mut Report) -> Option<InboundTls> {
    let shapes: Vec<(&str, bool)> = chains.iter().map(|c| (c.transport.as_str(), c.tls)).collect();
    match shapes.as_slice() {
        [("" | TLS, true)] => Some(InboundTls::Strict),
        [("" | PLAINTEXT, false)] => Some(InboundTls::Disable),
        // The one without a condition takes what the other leaves.
        [(TLS, true), (PLAINTEXT | "", false)]
        | [(PLAINTEXT | "", false), (TLS, true)]
        | [("", true), (PLAINTEXT, false)]
        | [(PLAINTEXT, false), ("", true)] => Some(InboundTls::Permissive),
        [] => None,
        _ => {
            let reason = "one chain, or one with TLS and one without told apart by transport_protocol, is supported";
            report.problem(&at.field("filter_chains"), reason);
            None
        }
    }
}

fn decode_limits(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) -> InboundLimits {
    let age = manager.common_http_protocol_options.as_ref().and_then(|o| o.max_connection_duration.as_ref());
    let name = "common_http_protocol_options.max_connection_duration";
    InboundLimits {
        max_connections: None,
        max_concurrent_streams: manager
            .http2_protocol_options
            .as_ref()
            .and_then(|o| o.max_concurrent_streams)
            .map(|s| s.value),
        max_connection_age: common::nonzero_duration(age, at, name, report),
    }
}

/// A server hands every request to the application. What a route table would do beyond that is
/// reported. Filters that differ from route to route are refused, for all requests are treated alike; if
/// they differ in the same way everywhere, that is what holds.
fn check_routes(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) -> Overrides {
    let none = Overrides::default();
    let routes = match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => routes,
        Some(RouteSpecifier::Rds(_)) => {
            report.unenforced(&at.field("rds"), "every request goes to the application, whatever its route");
            return none;
        }
        Some(RouteSpecifier::ScopedRoutes(_)) | None => {
            report.problem(at, "rds or route_config is required");
            return none;
        }
    };
    let at = at.field("route_config");
    let outermost = route_extra::decode_overrides(&routes.typed_per_filter_config, &at, report);
    let mut found: Option<Overrides> = None;
    let mut plain = true;
    for (i, host) in routes.virtual_hosts.iter().enumerate() {
        let at = at.item("virtual_hosts", i);
        let outer = route_extra::decode_overrides(&host.typed_per_filter_config, &at, report).inside(&outermost);
        for (j, route) in host.routes.iter().enumerate() {
            let at = at.item("routes", j);
            let own = route_extra::decode_overrides(&route.typed_per_filter_config, &at, report).inside(&outer);
            if found.as_ref().is_some_and(|others| *others != own) {
                let reason = "filters that differ from route to route are not supported on the server side";
                report.problem(&at.field("typed_per_filter_config"), reason);
            }
            found.get_or_insert(own);
            plain &= matches!(route.action, Some(route::Action::NonForwardingAction(_)));
        }
    }
    let single = routes.virtual_hosts.len() == 1 && routes.virtual_hosts[0].routes.len() == 1;
    if !(plain && single) {
        report.unenforced(&at, "every request goes to the application, whatever its route");
    }
    found.unwrap_or(none)
}
