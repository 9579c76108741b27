//! The route table of a server ⇄ [`InboundRoutes`] (gRFC A36), and what its places change of the filters (gRFC A39).
//!
//! ```text
//! read:  every route: which requests, whether it serves, what it changes of which filter, and where that is written
//! write: the filters of all routes one after another, each off where it does not belong
//! ```
//!
//! Refuses to know filters: what is changed is applied next door, in `inbound`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter;
use std::rc::Rc;

use envoy_types::pb::envoy::config::route::v3::{
    self as routes, Route as RouteProto, RouteConfiguration, RouteMatch as MatchProto, VirtualHost, route,
    route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Domain, FilterOverride, InboundHost, InboundRoutes, RouteMatch};

use super::composite::Side;
use super::report::{At, Report, consider};
use super::route_extra::{self, Guard};
use super::{authorization, common, extension, route as route_codec};
use crate::proto::policy::RoutePolicy;

/// What one place changes of the filters, and those around it: the innermost that changes a filter counts. Many routes
/// are in one place, so that nothing of it is copied for each of them.
#[derive(Default)]
pub(super) struct Changes {
    /// By instance name.
    own: BTreeMap<String, Change>,
    outer: Option<Rc<Changes>>,
}

impl Changes {
    pub(super) fn get(&self, filter: &str) -> Option<&Change> {
        let outer = || self.outer.as_ref()?.get(filter);
        match self.own.get(filter) {
            // That it is on says nothing of how: what is configured further out holds (Envoy).
            Some(own) if matches!(own.guard, Guard::On) => self.configured(filter).or(Some(own)),
            own => own.or_else(outer),
        }
    }

    /// The innermost that says how it is, whether it is on or not.
    fn configured(&self, filter: &str) -> Option<&Change> {
        let own = self.own.get(filter).filter(|own| !matches!(own.guard, Guard::On | Guard::Off));
        own.or_else(|| self.outer.as_ref()?.configured(filter))
    }

    /// What holds one level further in, where `own` is changed.
    fn inside(self: &Rc<Self>, own: BTreeMap<String, Change>) -> Rc<Self> {
        if own.is_empty() { self.clone() } else { Rc::new(Self { own, outer: Some(self.clone()) }) }
    }
}

/// What is changed of a filter, and where that is written: the place is part of the filter's new name, so that each has
/// its own state, as in Envoy.
pub(super) struct Change {
    pub(super) place: Rc<str>,
    pub(super) guard: Guard,
    /// How much was sent.
    pub(super) bytes: usize,
}

/// The routes of a server, read.
pub(super) enum Table {
    /// Every request is served alike, with these changes.
    All(Rc<Changes>),
    Named(String),
    Listed(Vec<Host>),
}

/// A virtual host, read.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) domains: Vec<Domain>,
    pub(super) routes: Vec<Read>,
}

/// A route, read.
pub(super) struct Read {
    pub(super) name: String,
    pub(super) matcher: RouteMatch,
    /// None = it does not serve.
    pub(super) changes: Option<Rc<Changes>>,
}

/// Reads the routes of a server; `None` with a problem. `named` are those that RDS gives, if they are there.
pub(super) fn decode(
    manager: &HttpConnectionManager,
    named: Option<&RouteConfiguration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Table> {
    match (&manager.route_specifier, named) {
        (Some(RouteSpecifier::RouteConfig(routes)), _) => Some(read_table(routes, &at.field("route_config"), report)),
        (Some(RouteSpecifier::Rds(_)), Some(routes)) => Some(read_table(routes, &at.field("rds"), report)),
        (Some(RouteSpecifier::Rds(rds)), None) => {
            let at = at.field("rds");
            common::check_source(rds.config_source.as_ref(), &at.field("config_source"), report);
            common::check_name(&rds.route_config_name, &at.field("route_config_name"), report);
            Some(Table::Named(rds.route_config_name.clone()))
        }
        (Some(RouteSpecifier::ScopedRoutes(_)), _) => {
            report.problem(&at.field("scoped_routes"), "scoped routes are not supported (gRFC A27)");
            None
        }
        (None, _) => {
            report.problem(at, "rds or route_config is required");
            None
        }
    }
}

/// Reads routes that come on their own, if one of them serves: of what filters they change a listener decides.
pub(super) fn check(proto: &RouteConfiguration, at: &At<'_>, report: &mut Report) -> bool {
    let serves = |route: &RouteProto| matches!(route.action, Some(route::Action::NonForwardingAction(_)));
    let is_of_server = proto.virtual_hosts.iter().flat_map(|host| &host.routes).any(serves);
    if is_of_server {
        let table = read_table(proto, at, report);
        check_rules(&table, at, report);
    }
    is_of_server
}

/// Rules need no listener to be read.
fn check_rules(table: &Table, at: &At<'_>, report: &mut Report) {
    let every: Vec<&Changes> = match table {
        Table::All(changes) => vec![changes],
        Table::Named(_) => Vec::new(),
        Table::Listed(hosts) => hosts.iter().flat_map(|h| &h.routes).filter_map(|r| r.changes.as_deref()).collect(),
    };
    let mut looked_at = HashSet::new();
    let levels = every.into_iter().flat_map(|inner| iter::successors(Some(inner), |level| level.outer.as_deref()));
    for (name, change) in levels.flat_map(|level| &level.own) {
        let Guard::Rbac(rules) = &change.guard else { continue };
        if looked_at.insert((&*change.place, name)) {
            let place = at.field(&change.place);
            let at = if &*change.place == TABLE { at } else { &place };
            authorization::decode(name, rules, None, &at.key("typed_per_filter_config", name), report);
        }
    }
}

/// The place of what a table changes as a whole.
const TABLE: &str = "route_config";

fn read_table(proto: &RouteConfiguration, at: &At<'_>, report: &mut Report) -> Table {
    consider!(proto, at, report, RouteConfiguration {
        read: [name, virtual_hosts, cluster_specifier_plugins, typed_per_filter_config],
        // A server forwards nothing and mirrors nothing.
        idle: [
            validate_clusters, max_direct_response_body_size_bytes, metadata, request_mirror_policies,
            internal_only_headers,
        ],
        response_headers_to_add => "a server changes no headers",
        response_headers_to_remove => "a server changes no headers",
        request_headers_to_add => "a server changes no headers",
        request_headers_to_remove => "a server changes no headers",
        most_specific_header_mutations_wins => "a server changes no headers",
        vhds => "virtual hosts are not discovered on their own",
        ignore_port_in_host_matching => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
        ignore_path_parameters_in_path_matching => "path parameters take part in matching",
        vhost_header => "virtual hosts are chosen by the authority",
        route_specifiers => "route extensions are not known",
    });
    route_codec::check_plugins(proto, at, report);
    let outermost = Rc::<Changes>::default().inside(read_changes(&proto.typed_per_filter_config, TABLE, at, report));
    let mut taken = HashSet::new();
    let mut hosts = Vec::with_capacity(proto.virtual_hosts.len());
    for (i, host) in proto.virtual_hosts.iter().enumerate() {
        let place = format!("virtual_hosts[{i}]");
        hosts.push(read_host(host, (&outermost, &place), &mut taken, &at.item("virtual_hosts", i), report));
    }
    match hosts.as_slice() {
        [Host { domains, routes, .. }] if domains.iter().any(|domain| domain.as_str() == "*") => match &routes[..] {
            [Read { matcher, changes: Some(changes), .. }, ..] if *matcher == RouteMatch::any() => {
                Table::All(changes.clone())
            }
            _ => Table::Listed(hosts),
        },
        _ => Table::Listed(hosts),
    }
}

fn read_host(
    proto: &VirtualHost,
    (outer, place): (&Rc<Changes>, &str),
    taken: &mut HashSet<Domain>,
    at: &At<'_>,
    report: &mut Report,
) -> Host {
    consider!(proto, at, report, VirtualHost {
        read: [name, domains, routes, matcher, require_tls, typed_per_filter_config],
        // A server does not forward.
        idle: [
            virtual_clusters, cors, retry_policy, retry_policy_typed_config, hedge_policy, request_mirror_policies,
            metadata, include_request_attempt_count, include_attempt_count_in_response,
            include_is_timeout_retry_header, per_request_buffer_limit_bytes, request_body_buffer_limit,
        ],
        rate_limits => "requests are rate limited by filters alone",
        request_headers_to_add => "a server changes no headers",
        request_headers_to_remove => "a server changes no headers",
        response_headers_to_add => "a server changes no headers",
        response_headers_to_remove => "a server changes no headers",
        route_specifiers => "route extensions are not known",
    });
    if proto.require_tls != 0 {
        let reason = "a server sends no plaintext caller elsewhere: demand TLS of all callers with one filter chain that has \
                      a transport socket and no condition, and leave this field out";
        report.problem(&at.field("require_tls"), reason);
    }
    let domains = route_codec::read_domains(proto, taken, at, report);
    let here = outer.inside(read_changes(&proto.typed_per_filter_config, place, at, report));
    let routes = proto.routes.iter().enumerate().filter_map(|(i, route)| {
        let place = format!("{place}.routes[{i}]");
        read_route(route, (&here, &place), &at.item("routes", i), report)
    });
    Host { name: proto.name.clone(), domains, routes: routes.collect() }
}

fn read_route(
    proto: &RouteProto,
    (outer, place): (&Rc<Changes>, &str),
    at: &At<'_>,
    report: &mut Report,
) -> Option<Read> {
    consider!(proto, at, report, RouteProto {
        read: [name, r#match, typed_per_filter_config, action, metadata],
        idle: [decorator, stat_prefix, per_request_buffer_limit_bytes, request_body_buffer_limit],
        tracing => "sampling and tags are the tracer's own",
        request_headers_to_add => "a server changes no headers",
        request_headers_to_remove => "a server changes no headers",
        response_headers_to_add => "a server changes no headers",
        response_headers_to_remove => "a server changes no headers",
        route_specifiers => "route extensions are not known",
    });
    let Some(matcher) = &proto.r#match else {
        report.problem(&at.field("match"), "a match is required");
        return None;
    };
    let ours: RoutePolicy = extension::take(proto.metadata.as_ref(), "RoutePolicy", at, report);
    let matcher = route_codec::decode_inbound_match(matcher, &ours, &at.field("match"), report);
    let changes = outer.inside(read_changes(&proto.typed_per_filter_config, place, at, report));
    let serves = matches!(proto.action, Some(route::Action::NonForwardingAction(_)));
    Some(Read { name: proto.name.clone(), matcher: matcher?, changes: serves.then_some(changes) })
}

fn read_changes(
    configs: &HashMap<String, Any>,
    place: &str,
    at: &At<'_>,
    report: &mut Report,
) -> BTreeMap<String, Change> {
    let place: Rc<str> = place.into();
    let overrides = route_extra::decode_overrides(configs, Side::Server, at, report);
    let limits = overrides.filters.iter().filter_map(|(name, filter)| match &**filter {
        FilterOverride::RateLimit(limit) => Some((name.clone(), Guard::RateLimit(Box::new(limit.clone())))),
        FilterOverride::Composite(composite) => Some((name.clone(), Guard::Composite(Box::new(composite.clone())))),
        // A server has no such filters; and one that is off is among the others.
        _ => None,
    });
    let all = overrides.guards.into_iter().chain(limits);
    let change = |(name, guard)| {
        let bytes = configs.get(&name).map_or(0, |config| config.value.len());
        (name, Change { place: place.clone(), guard, bytes })
    };
    all.map(change).collect()
}

/// The routes as they are sent; `changes` gives what differs for a route, by its position.
pub(super) fn encode(routes: &InboundRoutes, mut changes: impl FnMut(usize) -> HashMap<String, Any>) -> RouteSpecifier {
    let hosts = match routes {
        InboundRoutes::All => return RouteSpecifier::RouteConfig(hand_over()),
        InboundRoutes::Named(name) => {
            let route_config_name = name.clone();
            return RouteSpecifier::Rds(Rds { config_source: Some(common::ads()), route_config_name });
        }
        InboundRoutes::Listed(hosts) => hosts,
    };
    let mut position = 0..;
    let mut host = |host: &InboundHost| VirtualHost {
        name: host.name.clone(),
        domains: host.domains.iter().map(|domain| domain.as_str().to_owned()).collect(),
        routes: host
            .routes
            .iter()
            .zip(&mut position)
            .map(|(route, at)| RouteProto {
                name: route.name.clone(),
                r#match: Some(route_codec::encode_match(&route.matcher)),
                metadata: route_codec::encode_policy(&route_codec::policy_of(&route.matcher)),
                action: Some(match &route.serves {
                    Some(_) => route::Action::NonForwardingAction(routes::NonForwardingAction {}),
                    None => route::Action::DirectResponse(routes::DirectResponseAction {
                        status: 503,
                        ..Default::default()
                    }),
                }),
                typed_per_filter_config: changes(at),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    RouteSpecifier::RouteConfig(RouteConfiguration {
        name: "inbound".to_owned(),
        virtual_hosts: hosts.iter().map(&mut host).collect(),
        ..Default::default()
    })
}

/// The only route of a server that serves all: everything goes to the application.
fn hand_over() -> RouteConfiguration {
    let everything = MatchProto { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    RouteConfiguration {
        name: "inbound".to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: "inbound".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![RouteProto {
                r#match: Some(everything),
                action: Some(route::Action::NonForwardingAction(routes::NonForwardingAction {})),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// One list that has each of several as a part, in its order.
pub(super) fn merge<'a, T: PartialEq>(lists: impl Iterator<Item = &'a [T]>) -> Vec<&'a T> {
    let mut merged: Vec<&T> = Vec::new();
    for list in lists {
        let mut next = 0;
        for item in list {
            next = match merged[next..].iter().position(|known| *known == item) {
                Some(further) => next + further + 1,
                None => {
                    merged.insert(next, item);
                    next + 1
                }
            };
        }
    }
    merged
}

/// Which of `merged` are in one of the lists.
pub(super) fn part<T: PartialEq>(merged: &[&T], list: &[T]) -> Vec<bool> {
    let mut left = list.iter().peekable();
    merged.iter().map(|item| left.next_if(|wanted| wanted == item).is_some()).collect()
}
