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
use mesh_core::policy::{Address, AuthorizationPolicy, InboundLimits, InboundListener, InboundTls};

use super::extension::{self, url};
use super::listener::Proto;
use super::report::{At, Report};
use super::{authorization, common, filter, tls};
use crate::proto::policy::InboundPolicy;

/// Values of `transport_protocol`.
const TLS: &str = "tls";
const PLAINTEXT: &str = "raw_buffer";

pub(super) fn encode(listener: &InboundListener) -> Proto {
    let policies = authorization::encode(&listener.authorization);
    let manager = encode_manager(listener, &policies);
    let chain = |name: &str, transport: &str, with_tls: bool| FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!transport.is_empty())
            .then(|| FilterChainMatch { transport_protocol: transport.to_owned(), ..Default::default() }),
        filters: vec![Filter {
            name: "envoy.filters.network.http_connection_manager".to_owned(),
            config_type: Some(FilterConfig::TypedConfig(extension::pack(url::HCM, &manager))),
        }],
        transport_socket: with_tls.then(tls::encode_downstream),
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
        policies: extras.filter(|e| e.policy.is_some() || e.custom.is_some() || !e.rules.is_empty()).collect(),
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
    let filters = policies.iter().map(|p| filter::encode(&p.name, extension::pack(url::RBAC, &p.filter), false));
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
    let first = chains.into_iter().reduce(|first, other| {
        if first.authorization != other.authorization || first.limits != other.limits {
            report.problem(&at.field("filter_chains"), "chains that differ in more than TLS are not supported");
        }
        first
    });
    let first = first?;
    Some(InboundListener {
        name: proto.name.clone(),
        address: address?,
        tls: tls?,
        authorization: first.authorization,
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
    let set = !proto.additional_addresses.is_empty();
    report.unenforced_if(set, at, "additional_addresses", "only the first address is served by this listener");
    report.unenforced_if(!proto.access_log.is_empty(), at, "access_log", "access logs follow the server's settings");
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
    authorization: Vec<AuthorizationPolicy>,
    limits: InboundLimits,
}

fn decode_chain(proto: &FilterChain, ours: &InboundPolicy, at: &At<'_>, report: &mut Report) -> Option<Chain> {
    let transport = decode_chain_match(proto.filter_chain_match.as_ref(), &at.field("filter_chain_match"), report);
    if let Some(socket) = &proto.transport_socket {
        tls::decode_downstream(socket, &at.field("transport_socket"), report);
    }
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
    check_routes(&manager, &at, report);
    let mut policies = Vec::new();
    for http_filter in filter::decode(&manager, &at, report) {
        if http_filter.type_url != url::RBAC {
            filter::skip(&http_filter, &at, report);
            continue;
        }
        let at = at.item("http_filters", http_filter.index);
        let Some(rbac) = extension::unpack::<RbacProto>(http_filter.config, &at, report) else { continue };
        let extra = ours.policies.iter().find(|extra| extra.filter == http_filter.name);
        policies.extend(authorization::decode(http_filter.name, &rbac, extra, &at, report));
    }
    Some(Chain {
        transport,
        tls: proto.transport_socket.is_some(),
        authorization: policies,
        limits: decode_limits(&manager, &at, report),
    })
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
/// reported; authorization in it is refused, for it would be passed over.
fn check_routes(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    let routes = match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => routes,
        Some(RouteSpecifier::Rds(_)) => {
            report.unenforced(&at.field("rds"), "every request goes to the application, whatever its route");
            return;
        }
        Some(RouteSpecifier::ScopedRoutes(_)) | None => {
            report.problem(at, "rds or route_config is required");
            return;
        }
    };
    let at = at.field("route_config");
    let mut overrides = !routes.typed_per_filter_config.is_empty();
    let mut plain = true;
    for host in &routes.virtual_hosts {
        overrides |= !host.typed_per_filter_config.is_empty();
        for route in &host.routes {
            overrides |= !route.typed_per_filter_config.is_empty();
            plain &= matches!(route.action, Some(route::Action::NonForwardingAction(_)));
        }
    }
    if overrides {
        report.problem(&at.field("typed_per_filter_config"), "filters per route are not supported on the server side");
    }
    let single = routes.virtual_hosts.len() == 1 && routes.virtual_hosts[0].routes.len() == 1;
    if !(plain && single) {
        report.unenforced(&at, "every request goes to the application, whatever its route");
    }
}
