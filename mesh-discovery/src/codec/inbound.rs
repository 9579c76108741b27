//! `Listener` with filter chains ⇄ [`InboundListener`]: the server side (gRFC A36).
//!
//! Strict is one chain with TLS, plaintext one chain without, permissive one of each, told apart by
//! `transport_protocol`. A stock gRPC server uses the plaintext chain of a permissive listener, as
//! istiod's permissive listeners are.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions, TrafficDirection,
    http_protocol_options::HeadersWithUnderscoresAction as UnderscoresAction,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, filter::ConfigType as FilterConfig,
};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtAuthentication as JwtProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as RbacProto;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as hcm, HttpConnectionManager, http_connection_manager::PathWithEscapedSlashesAction as EscapedSlashes,
};
use mesh_core::policy::{
    Address, AuthorizationPolicy, Guards, HttpFilter, HttpFilterKind, InboundHost, InboundLimits, InboundListener,
    InboundRoute, InboundRoutes, InboundTls, Instances, JwtAuthentication, Underscores,
};
use prost::Message as _;

use super::composite::{self, Side};
use super::extension::{self, url};
use super::inbound_route::{self, Change, Changes, Host, Read, Table, merge, part};
use super::listener::{self, Proto};
use super::report::{At, Report, consider};
use super::route_extra::{self, Guard};
use super::{authorization, common, concurrency, filter, jwt, parts, rate_limit, tls};
use crate::proto::policy::InboundPolicy;

/// Values of `transport_protocol`.
const TLS: &str = "tls";
const PLAINTEXT: &str = "raw_buffer";

pub(super) fn encode(listener: &InboundListener) -> Proto {
    let all = Everything::of(listener);
    let jwt = all.jwt.iter().map(|jwt| jwt.name.clone());
    let taken = jwt.chain(all.before.iter().chain(&all.filters).map(|filter| filter.name.clone())).collect();
    let policies = authorization::encode(all.authorization.iter().copied(), taken);
    let manager = encode_manager(listener, &all, &policies);
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
        trusted_proxies: listener.trusted_proxies,
        fetched_keys: jwt::encode_fetched(all.jwt.iter().copied()),
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

/// Every guard of a listener and of its routes: each is a filter, off where it does not belong.
struct Everything<'a> {
    before: Vec<&'a HttpFilter>,
    jwt: Vec<&'a JwtAuthentication>,
    authorization: Vec<&'a AuthorizationPolicy>,
    filters: Vec<&'a HttpFilter>,
}

impl<'a> Everything<'a> {
    fn of(listener: &'a InboundListener) -> Self {
        let guards = || listener.routes.iter().filter_map(|route| route.serves.as_deref());
        Self {
            before: merge([&*listener.before].into_iter().chain(guards().map(|g| &*g.before))),
            jwt: merge([&*listener.jwt].into_iter().chain(guards().map(|g| &*g.jwt))),
            authorization: merge([&*listener.authorization].into_iter().chain(guards().map(|g| &*g.authorization))),
            filters: merge([&*listener.filters].into_iter().chain(guards().map(|g| &*g.filters))),
        }
    }

    /// Which of them are in force, in the order of the filters.
    fn part(
        &self,
        before: &[HttpFilter],
        jwt: &[JwtAuthentication],
        authorization: &[AuthorizationPolicy],
        filters: &[HttpFilter],
    ) -> Vec<bool> {
        let mut on = part(&self.before, before);
        on.extend(part(&self.jwt, jwt));
        on.extend(part(&self.authorization, authorization));
        on.extend(part(&self.filters, filters));
        on
    }
}

fn encode_manager(
    listener: &InboundListener,
    all: &Everything<'_>,
    policies: &[authorization::Encoded],
) -> HttpConnectionManager {
    let limits = &listener.limits;
    let jwt = all.jwt.iter().map(|j| Some(filter::encode(&j.name, extension::pack(url::JWT, &jwt::encode(j)), false)));
    let rbac = policies.iter().map(|p| Some(filter::encode(&p.name, extension::pack(url::RBAC, &p.filter), false)));
    let before = all.before.iter().map(|filter| listener::encode_filter(filter));
    let others = all.filters.iter().map(|filter| listener::encode_filter(filter));
    let mut filters: Vec<Option<hcm::HttpFilter>> = before.chain(jwt).chain(rbac).chain(others).collect();
    let here = all.part(&listener.before, &listener.jwt, &listener.authorization, &listener.filters);
    for (filter, here) in filters.iter_mut().zip(&here) {
        filter.iter_mut().for_each(|filter| filter.disabled = !here);
    }
    let guards: Vec<_> = listener.routes.iter().map(|route| route.serves.as_deref()).collect();
    let changes = |at: usize| {
        let Some(guards) = guards[at] else { return HashMap::new() };
        let there = all.part(&guards.before, &guards.jwt, &guards.authorization, &guards.filters);
        let changed = filters.iter().zip(here.iter().zip(there)).filter(|(_, (here, there))| *here != there);
        let names = changed.filter_map(|(filter, (_, on))| Some((filter.as_ref()?.name.clone(), on)));
        names.map(|(name, on)| (name, route_extra::encode_switch(on))).collect()
    };
    let routes = inbound_route::encode(&listener.routes, changes);
    if !all.before.is_empty() && all.jwt.is_empty() && policies.is_empty() {
        // What is before needs something to be before of: a filter without rules.
        let mut names = all.before.iter().chain(&all.filters).map(|filter| filter.name.clone()).collect();
        let name = authorization::unique("none", &mut names);
        let none = filter::encode(&name, extension::pack(url::RBAC, &RbacProto::default()), false);
        filters.insert(all.before.len(), Some(none));
    }
    HttpConnectionManager {
        stat_prefix: "inbound".to_owned(),
        route_specifier: Some(routes),
        http_filters: filters.into_iter().flatten().chain([filter::router()]).collect(),
        common_http_protocol_options: encode_common(limits),
        http2_protocol_options: limits.max_concurrent_streams.map(|streams| Http2ProtocolOptions {
            max_concurrent_streams: common::uint32(streams),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn encode_common(limits: &InboundLimits) -> Option<HttpProtocolOptions> {
    let action = match limits.underscores {
        Underscores::Allow => UnderscoresAction::Allow,
        Underscores::Reject => UnderscoresAction::RejectRequest,
        Underscores::Drop => UnderscoresAction::DropHeader,
    };
    let common = HttpProtocolOptions {
        max_connection_duration: limits.max_connection_age.map(common::duration),
        headers_with_underscores_action: action.into(),
        ..Default::default()
    };
    (common != HttpProtocolOptions::default()).then_some(common)
}

/// Decodes the listener of a server. `named` are the routes that RDS gives, if they are there: they are read as if the
/// listener had them in itself.
pub(super) fn decode(
    proto: &Proto,
    named: Option<&RouteConfiguration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<InboundListener> {
    check_listener(proto, at, report);
    let address = read_socket(proto, at, report);
    let ours: InboundPolicy = extension::take(proto.metadata.as_ref(), "InboundPolicy", at, report);
    let mut chains: Vec<Chain> = Vec::new();
    for (i, chain) in proto.filter_chains.iter().enumerate() {
        chains.extend(decode_chain(chain, &ours, named, &at.item("filter_chains", i), report));
    }
    if let Some(chain) = &proto.default_filter_chain {
        chains.extend(decode_chain(chain, &ours, named, &at.field("default_filter_chain"), report));
    }
    let tls = decode_mode(&chains, at, report);
    // One chain has TLS, or none.
    let instances = chains.iter().find_map(|chain| chain.instances.clone()).unwrap_or_default();
    let first = chains.into_iter().reduce(|first, other| {
        let same = (&first.guards, &first.routes, &first.limits) == (&other.guards, &other.routes, &other.limits);
        if !same {
            report.problem(&at.field("filter_chains"), "chains that differ in more than TLS are not supported");
        }
        first
    });
    let Chain { guards: Guards { before, jwt, authorization, filters }, routes, limits, .. } = first?;
    Some(InboundListener {
        name: proto.name.clone(),
        address: address?,
        tls: tls?,
        instances,
        before,
        jwt,
        authorization,
        filters,
        routes,
        limits: InboundLimits { max_connections: ours.max_connections, ..limits },
        trusted_proxies: ours.trusted_proxies,
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
    guards: Guards,
    routes: InboundRoutes,
    limits: InboundLimits,
}

fn decode_chain(
    proto: &FilterChain,
    ours: &InboundPolicy,
    named: Option<&RouteConfiguration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Chain> {
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
    let table = inbound_route::decode(&manager, named, &at, report)?;
    let filters = filter::decode(&manager, &at, report);
    if matches!(table, Table::Listed(_)) {
        for filter in filters.iter().filter(|filter| filter.type_url == url::JWT) {
            let at = at.item("http_filters", filter.index);
            // One that cannot be read is refused below.
            let read = parts::check(&filter.config.value).map(|()| JwtProto::decode(filter.config.value.as_slice()));
            read.iter().flatten().for_each(|proto| jwt::check_route(proto, &at, report));
        }
    }
    let mut filters = Filters {
        list: filters,
        ours,
        known: HashMap::new(),
        misplaced: HashSet::new(),
        routed: HashMap::new(),
        bytes: 0,
    };
    // Whatever routes change: a filter that is not understood is refused.
    let whole = filters.guards(&Changes::default(), false, &at, report);
    let (guards, routes) = match table {
        Table::All(changes) => (filters.guards(&changes, false, &at, report), InboundRoutes::All),
        Table::Named(name) => (whole, InboundRoutes::Named(name)),
        Table::Listed(hosts) => (whole, filters.routes(hosts, &at, report)),
    };
    Some(Chain {
        transport,
        tls: proto.transport_socket.is_some(),
        instances,
        guards,
        routes,
        limits: decode_limits(&manager, &at, report),
    })
}

/// The filters of a chain, and what has been read of them.
struct Filters<'a> {
    list: Vec<filter::Filter<'a>>,
    ours: &'a InboundPolicy,
    /// By position, and by the place that changes it.
    known: HashMap<(usize, Option<Rc<str>>), Guards>,
    /// Those of which it was told that they stand in the wrong place.
    misplaced: HashSet<usize>,
    /// By the places that change each: many routes have the same.
    routed: HashMap<Vec<Option<Rc<str>>>, Arc<Guards>>,
    /// What those hold, as it was sent: the filters and what changes them.
    bytes: usize,
}

/// As much of filters as the routes of a listener may hold together: each place that changes one of them holds all.
const MOST_OF_ROUTES: usize = 32 << 20;

/// What a filter without a word of configuration counts for.
const LEAST_OF_FILTER: usize = 64;

impl Filters<'_> {
    fn routes(&mut self, hosts: Vec<Host>, at: &At<'_>, report: &mut Report) -> InboundRoutes {
        let mut route = |read: Read| InboundRoute {
            name: read.name,
            matcher: read.matcher,
            serves: read.changes.map(|changes| {
                if self.bytes > MOST_OF_ROUTES {
                    return Arc::default();
                }
                let changed = || self.list.iter().map(|filter| (filter, changes.get(filter.name)));
                let key = changed().map(|(_, change)| change.map(|change| change.place.clone())).collect();
                if let Some(known) = self.routed.get(&key) {
                    return known.clone();
                }
                let bytes = |(filter, change): (&filter::Filter<'_>, Option<&Change>)| {
                    LEAST_OF_FILTER
                        + filter.name.len()
                        + filter.config.value.len()
                        + change.map_or(0, |change| change.bytes)
                };
                self.bytes += changed().map(bytes).sum::<usize>();
                if self.bytes > MOST_OF_ROUTES {
                    return Arc::default();
                }
                let guards = Arc::new(self.guards(&changes, true, at, report));
                self.routed.insert(key, guards.clone());
                guards
            }),
        };
        let host = |host: Host| InboundHost {
            name: host.name,
            domains: host.domains,
            routes: host.routes.into_iter().map(&mut route).collect(),
        };
        let routes = InboundRoutes::Listed(hosts.into_iter().map(host).collect());
        if self.bytes > MOST_OF_ROUTES {
            let reason = format!(
                "the routes change them in so many places that they would be {} bytes or more; at most {MOST_OF_ROUTES} are held: \
                 change them at virtual hosts, or split the listener",
                self.bytes
            );
            report.problem(&at.field("http_filters"), reason);
        }
        routes
    }

    /// What the filters are where these changes hold. Several places that change one make `several` of it.
    fn guards(&mut self, changes: &Changes, several: bool, at: &At<'_>, report: &mut Report) -> Guards {
        let mut guards = Guards::default();
        // As Envoy has it, what stands before the first one that looks at callers here holds before that does.
        let is_off = |filter: &filter::Filter<'_>| match changes.get(filter.name) {
            None => filter.disabled,
            Some(Change { guard: Guard::Idle(kind), .. }) => filter.type_url == *kind,
            Some(change) => matches!(change.guard, Guard::Off),
        };
        let judges = |filter: &filter::Filter<'_>| matches!(filter.type_url.as_str(), url::JWT | url::RBAC);
        let first = self.list.iter().position(|filter| judges(filter) && !is_off(filter));
        let first = first.or_else(|| self.list.iter().position(judges)).unwrap_or_default();
        let tokens = self.list.iter().rposition(|filter| filter.type_url == url::JWT && !is_off(filter));
        for (i, filter) in self.list.iter().enumerate() {
            let change = match changes.get(filter.name) {
                None if filter.disabled => continue,
                Some(Change { guard: Guard::Off, .. }) => continue,
                Some(Change { guard: Guard::Idle(kind), .. }) if filter.type_url == *kind => continue,
                None | Some(Change { guard: Guard::On, .. }) => None,
                change => change,
            };
            let read = self.known.entry((i, change.map(|change| change.place.clone()))).or_insert_with(|| {
                let name = match change {
                    Some(change) if several => format!("{}@{}", filter.name, change.place),
                    _ => filter.name.to_owned(),
                };
                if name != filter.name && self.list.iter().any(|other| other.name == name) {
                    report.problem(
                        &at.item("http_filters", i),
                        format!("where a route changes it, it would be {name:?}, which another is"),
                    );
                }
                let mut read = Guards::default();
                decode_filter(filter, name, change.map(|c| &c.guard), self.ours, &mut read, at, report);
                read
            });
            guards.jwt.extend_from_slice(&read.jwt);
            guards.authorization.extend_from_slice(&read.authorization);
            if filter.type_url == url::WITH_MATCHER
                && (first..tokens.unwrap_or_default()).contains(&i)
                && self.misplaced.insert(i)
            {
                let reason = "a server asks for tokens before this composite looks at headers, which may take them away: list it before \
                              every RBAC and JWT filter, or after the JWT filters";
                report.problem(&at.item("http_filters", i), reason);
            }
            let reads = |filter: &HttpFilter| matches!(&filter.kind, HttpFilterKind::Composite(c) if c.reads_tokens());
            let rbac = |other: &filter::Filter<'_>| other.type_url == url::RBAC && !is_off(other);
            if read.filters.iter().any(reads) && self.list[..i].iter().any(rbac) && self.misplaced.insert(i) {
                let reason = "a server asks RBAC after this composite, which may take tokens away: list it before RBAC";
                report.problem(&at.item("http_filters", i), reason);
            }
            let enforced = |policy: &&AuthorizationPolicy| !policy.dry_run && authorization::reads_tokens(policy);
            if tokens.is_some_and(|tokens| i < tokens)
                && read.authorization.iter().any(|policy| enforced(&policy))
                && self.misplaced.insert(i)
            {
                let reason = "a server asks for tokens before RBAC, which looks at headers or at what was found out of a token here: list \
                              it after the JWT filters";
                report.problem(&at.item("http_filters", i), reason);
            }
            let place = if i < first { &mut guards.before } else { &mut guards.filters };
            place.extend_from_slice(&read.filters);
        }
        guards
    }
}

/// Decodes one filter of a server, as the routes change it.
fn decode_filter(
    proto: &filter::Filter<'_>,
    name: String,
    change: Option<&Guard>,
    ours: &InboundPolicy,
    guards: &mut Guards,
    at: &At<'_>,
    report: &mut Report,
) {
    let at_filter = at.item("http_filters", proto.index);
    match (proto.type_url.as_str(), change) {
        (url::RBAC, None) => {
            let Some(own) = extension::unpack::<RbacProto>(proto.config, &at_filter, report) else { return };
            let extra = ours.policies.iter().find(|extra| extra.filter == proto.name);
            guards.authorization = authorization::decode(&name, &own, extra, &at_filter, report);
        }
        (url::RBAC, Some(Guard::Rbac(other))) => {
            guards.authorization = authorization::decode(&name, other, None, &at_filter, report);
        }
        (url::JWT, None | Some(Guard::Requirement(_))) => {
            let requirement = change.and_then(|change| match change {
                Guard::Requirement(name) => Some(name.as_str()),
                _ => None,
            });
            let Some(config) = extension::unpack(proto.config, &at_filter, report) else { return };
            let Some(mut read) = jwt::decode(&name, &config, requirement, &at_filter, report) else { return };
            jwt::decode_fetched(proto.name, &ours.fetched_keys, &mut read, &at_filter, report);
            guards.jwt.push(read);
        }
        (url::RATE_LIMIT, Some(Guard::RateLimit(limit))) => {
            guards.filters.push(HttpFilter { name, kind: HttpFilterKind::RateLimit((**limit).clone()) });
        }
        (url::WITH_MATCHER, Some(Guard::Composite(own))) => {
            guards.filters.push(HttpFilter { name, kind: HttpFilterKind::Composite((**own).clone()) });
        }
        (_, Some(_)) => report.problem(&at_filter, "the routes change it with a configuration of another filter"),
        (url::RATE_LIMIT, None) => {
            let Some(limit) = extension::unpack(proto.config, &at_filter, report) else { return };
            let kind = rate_limit::decode(&limit, &at_filter, report).map(HttpFilterKind::RateLimit);
            guards.filters.extend(kind.map(|kind| HttpFilter { name, kind }));
        }
        (url::CALLER_RATE_LIMIT, None) => {
            let Some(limit) = extension::unpack(proto.config, &at_filter, report) else { return };
            let kind = rate_limit::decode_callers(&limit, &at_filter, report).map(HttpFilterKind::CallerRateLimit);
            guards.filters.extend(kind.map(|kind| HttpFilter { name, kind }));
        }
        (url::CONCURRENCY, None) => {
            let Some(policy) = extension::unpack(proto.config, &at_filter, report) else { return };
            let kind = concurrency::decode(&policy, &at_filter, report).map(HttpFilterKind::AdaptiveConcurrency);
            guards.filters.extend(kind.map(|kind| HttpFilter { name, kind }));
        }
        (url::WITH_MATCHER, None) => {
            let kind = composite::decode(proto.config, Side::Server, &at_filter, report).map(HttpFilterKind::Composite);
            guards.filters.extend(kind.map(|kind| HttpFilter { name, kind }));
        }
        // What somebody wanted asked is not passed over for being called optional.
        (url::EXT_AUTHZ, None) => report.problem(
            &at_filter,
            "external authorizers are asked for CUSTOM policies of the mesh's own control plane, not for filters: write \
             the AuthorizationPolicy there, or take the filter out",
        ),
        (type_url, None) if filter::skip(proto, at, report) => {
            guards.filters.push(HttpFilter { name, kind: HttpFilterKind::Skipped { type_url: type_url.to_owned() } });
        }
        _ => {}
    }
}

fn note_manager(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    filter::note_server(manager, at, report);
    note_forms(manager, at, report);
    if let Some(http2) = &manager.http2_protocol_options {
        note_http2(http2, &at.field("http2_protocol_options"), report);
    }
    if let Some(common) = &manager.common_http_protocol_options {
        consider!(common, &at.field("common_http_protocol_options"), report, HttpProtocolOptions {
            read: [max_connection_duration, headers_with_underscores_action],
            idle: [max_response_headers_kb],
            idle_timeout => "idle connections have the server's own time limit",
            max_connection_duration_jitter => "the age at which connections are drained varies by a tenth",
            max_headers_count => "the number of a request's headers has the server's own limit",
            max_stream_duration => "streams have the time that the caller gives them",
            max_requests_per_connection => "connections take any number of requests",
        });
    }
}

fn note_http2(proto: &Http2ProtocolOptions, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Http2ProtocolOptions {
        read: [max_concurrent_streams],
        // Habits of a codec that its peers do not notice.
        idle: [
            hpack_table_size, allow_metadata, max_metadata_size, use_oghttp2_codec, enable_huffman_encoding,
            custom_settings_parameters,
        ],
        initial_stream_window_size => "windows are the server's own",
        initial_connection_window_size => "windows are the server's own",
        allow_connect => "upgrades follow the process's own rules",
        connection_keepalive => "peers are pinged as the server's own settings say",
        max_outbound_frames => "floods have the server's own limits",
        max_outbound_control_frames => "floods have the server's own limits",
        max_consecutive_inbound_frames_with_empty_payload => "floods have the server's own limits",
        max_inbound_priority_frames_per_stream => "floods have the server's own limits",
        max_inbound_window_update_frames_per_data_frame_sent => "floods have the server's own limits",
        stream_reset_burst => "floods have the server's own limits",
        stream_reset_rate => "floods have the server's own limits",
        max_header_field_size_kb => "the size of a request's head has the server's own limit",
        stream_error_on_invalid_http_messaging => "what breaks the protocol's rules is met by the server's own",
        override_stream_error_on_invalid_http_message => "what breaks the protocol's rules is met by the server's own",
        disallow_obs_text => "headers are checked by the server's own rules",
    });
}

/// A server brings path and authority to one form before anything looks at them, and never asks whether it should: what says
/// the same is obeyed, and the rest is not.
fn note_forms(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    let kept = manager.normalize_path.is_some_and(|normalize| !normalize.value);
    let effect = "paths are brought to their normal form, for rules as for the application";
    report.unenforced_if(kept, at, "normalize_path", effect);
    let other = manager.path_normalization_options.is_some();
    report.unenforced_if(other, at, "path_normalization_options", effect);
    let refused = [EscapedSlashes::ImplementationSpecificDefault as i32, EscapedSlashes::RejectRequest as i32];
    let other = !refused.contains(&manager.path_with_escaped_slashes_action);
    let effect = "encoded slashes are refused, or passed on as data where the process's own settings say so";
    report.unenforced_if(other, at, "path_with_escaped_slashes_action", effect);
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
    let underscores = manager.common_http_protocol_options.as_ref().map_or(0, |o| o.headers_with_underscores_action);
    let underscores = match UnderscoresAction::try_from(underscores) {
        Ok(UnderscoresAction::Allow) => Underscores::Allow,
        Ok(UnderscoresAction::RejectRequest) => Underscores::Reject,
        Ok(UnderscoresAction::DropHeader) => Underscores::Drop,
        Err(_) => {
            let at = at.field("common_http_protocol_options.headers_with_underscores_action");
            report.problem(&at, format!("{underscores} is not ALLOW, REJECT_REQUEST or DROP_HEADER"));
            Underscores::Reject
        }
    };
    InboundLimits {
        max_connections: None,
        max_concurrent_streams: manager
            .http2_protocol_options
            .as_ref()
            .and_then(|o| o.max_concurrent_streams)
            .map(|s| s.value),
        max_connection_age: common::nonzero_duration(age, at, name, report),
        underscores,
    }
}
