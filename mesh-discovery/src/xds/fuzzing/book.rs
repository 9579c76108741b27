//! What the control planes of the plays say: every generation of each resource, with a mark by which it is known again.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AdaptiveConcurrency, Address, CircuitBreakers, Cluster, Composite, Discovery, Domain, Endpoint, Endpoints,
    FilterOverride, Forward, HeaderPolicy, HttpFilter, HttpFilterKind, InboundListener, InboundRoutes, InboundTls,
    Listener, LocalityEndpoints, MatcherRule, MatcherTree, OnMatch, PathMatch, Route, RouteAction, RouteConfiguration,
    RouteMatch, RouteSource, VirtualHost,
};
use tokio::time::Instant;

use super::{ADDRESS, CLUSTERS, EARLIER, GENERATIONS, SAVED_FOR, SERVED, STRIDE, TARGETS, is_of_other, named};
use crate::codec;
use crate::xds::ads::ServerId;
use crate::xds::kind::{Key, Kind};
use crate::xds::message::Body;
use crate::xds::saved::{Record, Saved};

/// Every resource of every generation of the control planes and of the earlier run, in both authorities, encoded.
pub(in crate::xds) struct Book(pub(super) BTreeMap<(ServerId, u16, Kind, String), Body>);

impl Book {
    pub(in crate::xds) fn new() -> Self {
        let mut book = BTreeMap::new();
        for server in 0..=EARLIER {
            for (generation, of_other) in (0..GENERATIONS).flat_map(|n| [(n, false), (n, true)]) {
                let mark = server * STRIDE + generation + 1;
                let mut write = |kind, name: &str, encode: &dyn Fn(&str) -> Any| {
                    let name = named(of_other, kind, name);
                    let any = encode(&name);
                    book.insert((server, generation, kind, name), Body::new(&any.type_url, any.value));
                };
                let of = |kind, name| named(of_other, kind, name);
                let routed = of(Kind::Cluster, CLUSTERS[usize::from(generation % 2)]);
                for target in TARGETS {
                    write(Kind::Listener, target, &|name| listener(name, &of(Kind::Routes, "r"), mark));
                }
                write(Kind::Routes, "r", &|name| routes(name, &routed, mark));
                write(Kind::Listener, ADDRESS, &|name| inbound(name, &of(Kind::Routes, SERVED), mark));
                write(Kind::Routes, SERVED, &|name| served(name, mark));
                for cluster_name in CLUSTERS {
                    let service = of(Kind::Endpoints, cluster_name);
                    write(Kind::Cluster, cluster_name, &|name| cluster(name, &service, mark));
                    write(Kind::Endpoints, cluster_name, &|name| endpoints(name, mark));
                }
            }
        }
        Self(book)
    }

    /// What the earlier run has left.
    pub(super) fn saved(&self, now: Instant) -> Saved {
        let is_left = |key: &(ServerId, u16, Kind, String)| (key.0, key.1) == (EARLIER, 0) && !is_of_other(&key.3);
        let all = self.0.iter().filter(|(key, _)| is_left(key));
        let record = |((.., kind, name), body): (&(_, _, Kind, String), &Body)| {
            let until = now.checked_add(SAVED_FOR);
            let record = Record { giver: 0, version: "0".into(), body: body.clone(), confirmed: 0, since: None, until };
            (Key::new(*kind, name.as_str()), record)
        };
        all.map(record).collect()
    }
}

fn listener(name: &str, routes: &str, mark: u16) -> Any {
    codec::encode_listener(&Listener {
        max_stream_duration: Some(Duration::from_secs(mark.into())),
        ..Listener::new(name, RouteSource::Named(routes.to_owned()))
    })
}

fn routes(name: &str, cluster: &str, mark: u16) -> Any {
    let action = RouteAction::Forward(Box::new(Forward::to(cluster.into())));
    table(name, Route { name: mark.to_string(), ..Route::new(RouteMatch::any(), action) })
}

/// A listening address. With every second mark it has a filter that the routes of the others would make another one.
fn inbound(name: &str, routes: &str, mark: u16) -> Any {
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(AdaptiveConcurrency::default()));
    let filters = mark.is_multiple_of(2).then(|| HttpFilter { name: "f".to_owned(), kind }).into_iter().collect();
    let routes = InboundRoutes::Named(routes.to_owned());
    let address = ([127, 0, 0, 1], 80).into();
    let mut listener = InboundListener { filters, routes, ..InboundListener::new(name, address, InboundTls::Strict) };
    listener.limits.max_connections = Some(mark.into());
    codec::encode_inbound(&listener)
}

/// Whether the listener of one mark and the routes of another can be joined.
pub(super) fn fit(listener: u16, routes: u16) -> bool {
    !listener.is_multiple_of(2) || routes.is_multiple_of(2)
}

/// The routes of one.
fn served(name: &str, mark: u16) -> Any {
    let matcher = RouteMatch { path: PathMatch::Exact("/a".to_owned()), ..RouteMatch::any() };
    let mut route = Route { name: mark.to_string(), ..Route::new(matcher, RouteAction::NonForwarding) };
    if !mark.is_multiple_of(2) {
        let tree = MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) };
        let change = FilterOverride::Composite(Composite::of(tree));
        route.filters = Arc::new([("f".to_owned(), change.into())].into());
    }
    table(name, route)
}

fn table(name: &str, route: Route) -> Any {
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: Domain::new("*").into_iter().collect(),
        routes: vec![route],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    codec::encode_routes(&RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    })
}

fn cluster(name: &str, service: &str, mark: u16) -> Any {
    let breaker = CircuitBreakers { max_requests: Some(mark.into()), ..Default::default() };
    let discovery = Discovery::Eds { service_name: (service != name).then(|| service.to_owned()) };
    codec::encode_cluster(&Cluster { breaker, discovery, ..Cluster::new(name.into()) })
}

fn endpoints(name: &str, mark: u16) -> Any {
    let endpoint = Endpoint::new(Address::Socket(([127, 0, 0, 1], mark).into()));
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: NonZeroU32::MIN,
        endpoints: vec![endpoint],
    };
    codec::encode_endpoints(&Endpoints { cluster: name.to_owned(), localities: vec![group], ..Default::default() })
}
