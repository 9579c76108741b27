//! The state machine of the client under arbitrary sequences of events: two control planes that come and
//! go, answer, lie and repeat themselves, readers that come and go, time. For the fuzzer and for seeded
//! tests; not a part of the interface.
//!
//! What must hold after every event: a published snapshot rests on one control plane, names no cluster that it
//! lacks, and is never taken back; requests follow the protocol. And at the end, when everybody behaves:
//! the state is that of the preferred control plane, which knows exactly what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, ClusterChoice, ClusterState, DestinationState, Domain, Endpoint, Endpoints,
    Forward, HeaderPolicy, Listener, LocalityEndpoints, Route, RouteAction, RouteConfiguration, RouteMatch,
    RouteSource, Snapshot, VirtualHost,
};
use mesh_core::source::Watched;
use tokio::time::Instant;

use super::ads::{Ads, Server, ServerId, Servers, Topology};
use super::kind::Kind;
use super::message::{Ask, Body, Cause, Request, Resource, ResourceError, Response, StreamError, Variant};
use super::resource::PolicyCodec;
use super::worker::State;
use crate::bootstrap::{Node, ServerFeatures};
use crate::cascade::{Cascade, Root};
use crate::codec;

const TARGETS: [&str; 2] = ["a:80", "b:80"];
const CLUSTERS: [&str; 2] = ["x", "y"];
/// Generations of a control plane's configuration: even ones route to `x`, odd ones to `y`.
const GENERATIONS: u16 = 4;
/// Distance between the numbers that two control planes put into what they say.
const STRIDE: u16 = 1000;

/// Plays `data` as events.
///
/// # Panics
/// Something that must hold does not.
pub fn state_machine(data: &[u8]) {
    play(&Book::new(), data);
}

/// The same with a book that is written once.
#[cfg(test)]
pub(super) fn play_from(book: &Book, data: &[u8]) {
    play(book, data);
}

fn play(book: &Book, data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut world = World::new(book, bytes.next().unwrap_or_default());
    while let Some(event) = bytes.next() {
        world.event(event, &mut bytes);
        world.state.settle();
        world.check();
    }
    world.converge();
}

/// Every resource of every generation of both control planes, encoded.
pub(super) struct Book(BTreeMap<(ServerId, u16, Kind, &'static str), Body>);

impl Book {
    pub(super) fn new() -> Self {
        let mut book = BTreeMap::new();
        for server in 0..2 {
            for generation in 0..GENERATIONS {
                let mut write = |kind, name, any: Any| {
                    book.insert((server, generation, kind, name), Body::new(&any.type_url, any.value));
                };
                let mark = server * STRIDE + generation + 1;
                TARGETS.into_iter().for_each(|name| write(Kind::Listener, name, listener(name, mark)));
                write(Kind::Routes, "r", routes(CLUSTERS[usize::from(generation % 2)], mark));
                for name in CLUSTERS {
                    write(Kind::Cluster, name, cluster(name, mark));
                    write(Kind::Endpoints, name, endpoints(name, mark));
                }
            }
        }
        Self(book)
    }
}

fn listener(name: &str, mark: u16) -> Any {
    codec::encode_listener(&Listener {
        max_stream_duration: Some(Duration::from_secs(mark.into())),
        ..Listener::new(name, RouteSource::Named("r".to_owned()))
    })
}

fn routes(cluster: &str, mark: u16) -> Any {
    let action = RouteAction::Forward(Box::new(Forward::to(cluster.into())));
    let route = Route { name: mark.to_string(), ..Route::new(RouteMatch::any(), action) };
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: Domain::new("*").into_iter().collect(),
        routes: vec![route],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    codec::encode_routes(&RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    })
}

fn cluster(name: &str, mark: u16) -> Any {
    let breaker = CircuitBreakers { max_requests: Some(mark.into()), ..Default::default() };
    codec::encode_cluster(&Cluster { breaker, ..Cluster::new(name.into()) })
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

/// One control plane, and its side of the stream.
#[derive(Default)]
struct Plane {
    generation: u16,
    open: bool,
    introduced: bool,
    /// By type: what the client has asked for on this stream.
    asked: [Option<BTreeSet<String>>; 4],
    nonces: BTreeSet<String>,
}

struct World<'a> {
    book: &'a Book,
    state: State,
    planes: [Plane; 2],
    readers: BTreeMap<usize, (u64, Watched<DestinationState>)>,
    /// Who has been served: that is never taken back.
    served: BTreeSet<usize>,
    now: Instant,
    last_id: u64,
    last_nonce: u64,
}

impl<'a> World<'a> {
    fn new(book: &'a Book, setting: u8) -> Self {
        let variant = [None, Some(Variant::Delta), Some(Variant::StateOfTheWorld)][usize::from(setting % 3)];
        let server = |name: &str| Server { name: name.to_owned(), features: ServerFeatures::default(), variant };
        let topology = Topology {
            node: Arc::new(Node::default()),
            servers: vec![server("better"), server("worse")],
            authorities: vec![Servers { ordered: vec![0, 1], on_reachability_only: setting & 0x80 != 0 }],
            by_name: Default::default(),
            resource_timeout: Duration::from_secs(15),
            transient_timeout: Duration::from_secs(30),
        };
        let now = Instant::now();
        Self {
            book,
            state: State {
                ads: Ads::new(PolicyCodec::default(), topology, now),
                cascade: Cascade::default(),
                snapshot: None,
            },
            planes: Default::default(),
            readers: BTreeMap::new(),
            served: BTreeSet::new(),
            now,
            last_id: 0,
            last_nonce: 0,
        }
    }

    fn event(&mut self, event: u8, bytes: &mut impl Iterator<Item = u8>) {
        let server = ServerId::from(event >> 7);
        let mut more = || bytes.next().unwrap_or_default();
        match event & 0x0f {
            0 | 1 => self.open(server),
            2 => self.close(server, None),
            3 => self.close(server, Some(StreamError::new("broken"))),
            4 => self.close(server, Some(StreamError::unsupported("unknown method"))),
            5..=7 => self.read_requests(server, usize::from(more() % 8) + 1),
            8..=10 => {
                let (kind, how) = (Kind::ALL[usize::from(more() % 4)], more());
                self.answer(server, kind, how);
            }
            11 => self.planes[usize::from(server)].generation = u16::from(more()) % GENERATIONS,
            12 => {
                self.now += Duration::from_secs(u64::from(more() % 20));
                self.state.ads.next_deadline();
                self.state.ads.expire(self.now);
            }
            13 => self.watch(usize::from(more() % 2)),
            14 => self.leave(usize::from(more() % 2)),
            _ => self.nonsense(server, bytes),
        }
    }

    fn watch(&mut self, target: usize) {
        if self.readers.contains_key(&target) {
            return;
        }
        self.last_id += 1;
        let (publisher, state) = Watched::channel(DestinationState::Pending);
        let name = TARGETS[target];
        let Ok(parsed) = name.parse() else { return };
        let root = Root::Destination { target: parsed, listener: name.to_owned(), publisher };
        let State { ads, cascade, .. } = &mut self.state;
        cascade.add(self.last_id, root, ads);
        self.readers.insert(target, (self.last_id, state));
    }

    fn leave(&mut self, target: usize) {
        if let Some((id, _)) = self.readers.remove(&target) {
            let State { ads, cascade, .. } = &mut self.state;
            cascade.remove(id, ads);
            self.served.remove(&target);
        }
    }

    /// What the worker would do: connections that nobody wants end.
    fn release(&mut self) {
        for server in 0..2 {
            let plane = &mut self.planes[usize::from(server)];
            if plane.open && !self.state.ads.wants(server) {
                *plane = Plane { generation: plane.generation, ..Default::default() };
                self.state.ads.released(server);
            }
        }
    }

    fn open(&mut self, server: ServerId) {
        self.release();
        let plane = &mut self.planes[usize::from(server)];
        if self.state.ads.wants(server) && !plane.open {
            *plane = Plane { generation: plane.generation, open: true, ..Default::default() };
            self.state.ads.opened(server, self.now);
        }
    }

    fn close(&mut self, server: ServerId, error: Option<StreamError>) {
        self.release();
        let plane = &mut self.planes[usize::from(server)];
        if self.state.ads.wants(server) {
            *plane = Plane { generation: plane.generation, ..Default::default() };
            let _ = self.state.ads.closed(server, error, self.now);
        }
    }

    fn read_requests(&mut self, server: ServerId, most: usize) {
        self.release();
        for _ in 0..most {
            if !self.state.ads.has_request(server) {
                return;
            }
            let request = self.state.ads.take_request(server, self.now).expect("it has one");
            self.planes[usize::from(server)].hear(&request);
        }
    }

    /// Answers with what is asked for, as `how` says: in part, with broken or older resources, with errors.
    fn answer(&mut self, server: ServerId, kind: Kind, how: u8) {
        self.release();
        let plane = &self.planes[usize::from(server)];
        let Some(asked) = plane.asked[kind.index()].clone().filter(|_| plane.open) else { return };
        let generation = if how & 0x20 != 0 { u16::from(how) % GENERATIONS } else { plane.generation };
        let variant = self.state.ads.sessions()[usize::from(server)].variant;
        let mut response = self.response(server, kind);
        response.version = format!("{generation}");
        for (index, name) in asked.into_iter().enumerate() {
            let chosen = how >> (index % 2) & 1 == 0;
            let page =
                self.book.0.iter().find(|((s, g, k, n), _)| (*s, *g, *k, *n) == (server, generation, kind, &*name));
            match page {
                Some((_, body)) if chosen => {
                    let mut body = body.clone();
                    if how & 0x4 != 0 && index == 0 {
                        body.bytes = [&body.bytes[..], &[0xff; 3]].concat().into();
                    }
                    response.resources.push(Resource { name, version: format!("{generation}"), body: Some(body) });
                }
                _ if how & 0x8 != 0 && variant == Variant::Delta => response.removed.push(name),
                _ if how & 0x10 != 0 => {
                    response.errors.push(ResourceError { name, cause: Cause::NotFound, message: String::new() });
                }
                _ => {}
            }
        }
        self.state.ads.response(server, response, self.now);
    }

    fn response(&mut self, server: ServerId, kind: Kind) -> Response {
        self.last_nonce += 1;
        let nonce = format!("n{}", self.last_nonce);
        self.planes[usize::from(server)].nonces.insert(nonce.clone());
        Response { type_url: kind.type_url().to_owned(), nonce, ..Default::default() }
    }

    /// Bytes of any sort in the place of a resource, names of any sort.
    fn nonsense(&mut self, server: ServerId, bytes: &mut impl Iterator<Item = u8>) {
        self.release();
        if !self.planes[usize::from(server)].open {
            return;
        }
        let kind = Kind::ALL[usize::from(bytes.next().unwrap_or_default() % 4)];
        let some: Vec<u8> = bytes.by_ref().take(12).collect();
        let text = String::from_utf8_lossy(&some).into_owned();
        let mut response = self.response(server, kind);
        let body = Body::new(kind.type_url(), some);
        response.resources.push(Resource { name: String::new(), version: text.clone(), body: Some(body) });
        response.resources.push(Resource { name: text.clone(), version: String::new(), body: None });
        response.removed.push(text);
        self.state.ads.response(server, response, self.now);
    }

    fn check(&mut self) {
        for (target, (_, state)) in &self.readers {
            match &**state.load() {
                DestinationState::Ready(snapshot) => {
                    whole(snapshot);
                    self.served.insert(*target);
                }
                other => assert!(!self.served.contains(target), "taken back: {other:?}"),
            }
        }
    }

    /// Everybody behaves from now on.
    fn converge(&mut self) {
        self.watch(0);
        for round in 0..3 {
            self.now += Duration::from_secs(1);
            // Whoever still has a stream from before may have been lied to on it: a restart clears that up.
            if round == 0 {
                (0..2).for_each(|server| self.close(server, Some(StreamError::new("restart"))));
            }
            for server in 0..2 {
                self.open(server);
                self.read_requests(server, 64);
                for kind in Kind::ALL {
                    self.answer(server, kind, 0);
                    self.state.settle();
                    self.read_requests(server, 64);
                }
                self.check();
            }
        }
        self.release();
        let plane = &self.planes[0];
        for (target, (_, state)) in &self.readers {
            let DestinationState::Ready(snapshot) = &**state.load() else { panic!("{}: {state:?}", TARGETS[*target]) };
            let mark = whole(snapshot);
            assert_eq!(mark, Some(0), "the better control plane's word counts");
            let routed = CLUSTERS[usize::from(plane.generation % 2)];
            assert!(matches!(snapshot.clusters[&routed.into()], ClusterState::Ready { .. }), "{snapshot:?}");
        }
        for kind in Kind::ALL {
            let wanted: BTreeSet<String> =
                self.state.ads.entries().filter(|(k, ..)| *k == kind).map(|(_, name, _)| name.to_string()).collect();
            assert_eq!(plane.asked[kind.index()].clone().unwrap_or_default(), wanted, "{kind}");
        }
        assert!(!self.planes[1].open, "the worse control plane is let go");
    }
}

impl Plane {
    /// A request as a strict server reads it.
    fn hear(&mut self, request: &Request) {
        assert_eq!(request.node.is_some(), !self.introduced, "the node goes with the first request, and only with it");
        self.introduced = true;
        assert!(request.nonce.is_empty() || self.nonces.contains(&request.nonce), "a nonce of another stream");
        assert!(request.error.is_none() || !request.nonce.is_empty(), "a refusal of nothing");
        let kind = Kind::of_type_url(request.type_url).expect("a type of ours");
        let first = self.asked[kind.index()].is_none();
        let asked = self.asked[kind.index()].get_or_insert_default();
        match &request.ask {
            Ask::World { names, .. } => {
                assert!(!(first && names.is_empty()), "an empty list as the first word means everything");
                *asked = names.iter().map(|name| name.to_string()).collect();
            }
            Ask::Changes { subscribe, unsubscribe, initial_versions } => {
                assert!(!(first && subscribe.is_empty()), "an empty list as the first word means everything");
                assert!(first || initial_versions.is_empty(), "versions go with the first request of a type");
                for name in unsubscribe {
                    assert!(asked.remove(&**name), "{name} was not subscribed");
                }
                for name in subscribe {
                    assert!(asked.insert(name.to_string()), "{name} is subscribed already");
                }
                assert!(initial_versions.iter().all(|(name, _)| asked.contains(&**name)));
            }
        }
    }
}

/// Checks a snapshot; gives the control plane that all of it comes from.
fn whole(snapshot: &Snapshot) -> Option<u16> {
    let mut from = BTreeSet::new();
    from.extend(snapshot.listener.max_stream_duration.map(|mark| mark.as_secs() as u16 / STRIDE));
    for route in snapshot.routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        from.insert(route.name.parse::<u16>().unwrap_or_default() / STRIDE);
        if let RouteAction::Forward(forward) = &route.action
            && let ClusterChoice::Cluster(name) = &forward.to
        {
            assert!(snapshot.clusters.contains_key(name), "{name} is routed to and not there");
        }
    }
    for state in snapshot.clusters.values() {
        if let ClusterState::Ready { cluster, endpoints } = state {
            from.insert(cluster.breaker.max_requests.unwrap_or_default() as u16 / STRIDE);
            for endpoint in endpoints.iter() {
                if let Address::Socket(address) = &endpoint.address {
                    from.insert(address.port() / STRIDE);
                }
            }
        }
    }
    assert!(from.len() <= 1, "what two control planes say was joined: {snapshot:?}");
    from.into_iter().next()
}
