//! The state machine of the client under arbitrary sequences of events: two control planes of one authority, and in half
//! of the plays one of another, that come and go, answer, lie, speak out of turn and repeat themselves, readers that come
//! and go, time. In half of the plays it is drawn what the control planes' features are, whether they give what they give
//! for a time only, whether an earlier run has left something, whether somebody is served before anything happens, whether an
//! address listens, whose listener and routes come one after the other and fit within one generation, and whether the first
//! authority's worse control plane is the other one's better. For the fuzzer and for seeded tests; not a part of the interface.
//!
//! What must hold after every event: a published snapshot rests on one control plane of its authority or on the earlier run,
//! names no cluster that it lacks, and is never taken back unless data errors cost it or its time is over; so does an address,
//! whose listener and routes are in force where they fit; requests follow the protocol and ask nobody for
//! another authority's. And at the end, when everybody behaves: the state is that of the preferred control plane, which
//! knows exactly what is wanted.

mod book;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::policy::{
    Address, ClusterChoice, ClusterState, DestinationState, InboundListener, InboundState, RouteAction, Snapshot,
};
use mesh_core::source::Watched;
use tokio::time::Instant;

pub(super) use self::book::Book;
use super::ads::{Ads, Server, ServerId, Servers, Standing, Topology};
use super::kind::{Key, Kind};
use super::message::{Ask, Body, Cause, Name, Request, Resource, ResourceError, Response, StreamError, Variant};
use super::resource::{PolicyCodec, Value};
use super::worker::State;
use crate::bootstrap::{Node, ServerFeatures};
use crate::cascade::{Cascade, Root};

/// The last one is of the other authority.
const TARGETS: [&str; 3] = ["a:80", "b:80", "a:80"];
const CLUSTERS: [&str; 2] = ["x", "y"];
/// Resource names of a listening address and of its routes.
const ADDRESS: &str = "in";
const SERVED: &str = "s";
/// The control plane of the other authority alone.
const OTHER: ServerId = 2;
/// Who gave what an earlier run has left: nobody of today.
const EARLIER: ServerId = 3;
/// For so long what it left may serve.
const SAVED_FOR: Duration = Duration::from_secs(60);
/// What the other authority calls things: the same, but for this.
const NAMES: [&str; 4] = [
    "xdstp://n/envoy.config.listener.v3.Listener/",
    "xdstp://n/envoy.config.route.v3.RouteConfiguration/",
    "xdstp://n/envoy.config.cluster.v3.Cluster/",
    "xdstp://n/envoy.config.endpoint.v3.ClusterLoadAssignment/",
];
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
    let setting = bytes.next().unwrap_or_default();
    // So what was recorded before there were any means what it did.
    let features = if setting & 0x40 == 0 { 0 } else { bytes.next().unwrap_or_default() };
    let mut world = World::new(book, setting, features);
    if features & 0x10 != 0 {
        // Few plays come so far by themselves.
        world.watch(0);
        world.listen();
        world.settle();
        world.play_well(World::answer_due);
    }
    while let Some(event) = bytes.next() {
        world.event(event, &mut bytes);
        world.settle();
        world.check();
    }
    world.converge();
}

/// The name that an authority has for something.
fn named(of_other: bool, kind: Kind, name: &str) -> String {
    if of_other { format!("{}{name}", NAMES[kind.index()]) } else { name.to_owned() }
}

fn is_of_other(name: &str) -> bool {
    name.starts_with("xdstp:")
}

/// One control plane, and its side of the stream.
#[derive(Default)]
struct Plane {
    generation: u16,
    open: bool,
    introduced: bool,
    /// By type: what the client has asked for on this stream.
    asked: [Option<BTreeSet<String>>; 4],
    /// By type: the generation of what the client was told last on this stream, or says that it holds; none if that was nothing,
    /// or no good.
    told: [Told; 4],
    nonces: BTreeSet<String>,
    /// By type and version: all that was told when a response of that version had been sent, on any stream. Who comes back with
    /// that version is believed to hold it.
    versions: [BTreeMap<String, Told>; 4],
    /// By type: what ends by itself, as it was given last. Whoever holds it need but be told that it goes on.
    timed: [BTreeSet<String>; 4],
}

/// Generations by name.
type Told = BTreeMap<String, u16>;

struct World<'a> {
    book: &'a Book,
    state: State,
    /// By [`ServerId`]; there are as many as there are control planes.
    planes: Vec<Plane>,
    readers: BTreeMap<usize, (u64, Watched<DestinationState>)>,
    /// None in most plays.
    address: Option<(u64, Watched<InboundState>)>,
    has_address: bool,
    /// Whether a control plane has made it serve since it listens.
    address_served: bool,
    /// Who has been served by a control plane: that is never taken back.
    served: BTreeSet<usize>,
    /// But what data errors cost or is given for a time may be.
    may_end: bool,
    /// Some of what is given is given for a time.
    has_ttl: bool,
    /// By authority: who speaks for it, in order of preference.
    authorities: Vec<Vec<ServerId>>,
    now: Instant,
    last_id: u64,
    last_nonce: u64,
}

impl<'a> World<'a> {
    fn new(book: &'a Book, setting: u8, features: u8) -> Self {
        let variant = [None, Some(Variant::Delta), Some(Variant::StateOfTheWorld)][usize::from(setting % 3)];
        let [strict, slow, has_ttl, is_restored, is_shared, has_address] =
            [1, 2, 4, 8, 0x20, 0x80].map(|bit| features & bit != 0);
        let features = ServerFeatures {
            fail_on_data_errors: strict,
            resource_timer_is_transient_error: slow,
            ..ServerFeatures::default()
        };
        let server = |name: &str| Server { name: name.to_owned(), features, variant };
        let mut servers = vec![server("better"), server("worse")];
        let mut authorities = vec![Servers { ordered: vec![0, 1], on_reachability_only: setting & 0x80 != 0 }];
        let mut by_name = HashMap::new();
        if setting & 0x20 != 0 {
            servers.push(server("other"));
            let ordered = if is_shared { vec![1, OTHER] } else { vec![OTHER] };
            authorities.push(Servers { ordered, on_reachability_only: false });
            by_name.insert("n".to_owned(), 1);
        }
        let of_each = authorities.iter().map(|authority| authority.ordered.clone()).collect();
        let planes = servers.iter().map(|_| Plane::default()).collect();
        let topology = Topology {
            node: Arc::new(Node::default()),
            servers,
            authorities,
            by_name,
            resource_timeout: Duration::from_secs(15),
            transient_timeout: Duration::from_secs(30),
        };
        let now = Instant::now();
        let mut ads = Ads::new(PolicyCodec::default(), topology, now);
        if is_restored {
            ads.restore(book.saved(now));
        }
        Self {
            book,
            state: State { ads, cascade: Cascade::default(), snapshot: None },
            planes,
            readers: BTreeMap::new(),
            address: None,
            has_address,
            address_served: false,
            served: BTreeSet::new(),
            may_end: strict || has_ttl,
            has_ttl,
            authorities: of_each,
            now,
            last_id: 0,
            last_nonce: 0,
        }
    }

    fn event(&mut self, event: u8, bytes: &mut impl Iterator<Item = u8>) {
        let has_other = self.planes.len() > usize::from(OTHER);
        let server = if has_other && event & 0x40 != 0 { OTHER } else { ServerId::from(event >> 7) };
        let targets = if has_other { 3 } else { 2 };
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
            13 if self.has_address && event & 0x20 != 0 => self.listen(),
            14 if self.has_address && event & 0x20 != 0 => self.shut(),
            13 => self.watch(usize::from(more() % targets)),
            14 => self.leave(usize::from(more() % targets)),
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
        let listener = named(is_for_other(target), Kind::Listener, name);
        let root = Root::Destination { target: parsed, listener, publisher };
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

    fn listen(&mut self) {
        if !self.has_address || self.address.is_some() {
            return;
        }
        self.last_id += 1;
        let (publisher, state) = Watched::channel(InboundState::Pending);
        let root = Root::Inbound { listener: ADDRESS.to_owned(), publisher };
        let State { ads, cascade, .. } = &mut self.state;
        cascade.add(self.last_id, root, ads);
        self.address = Some((self.last_id, state));
    }

    fn shut(&mut self) {
        if let Some((id, _)) = self.address.take() {
            let State { ads, cascade, .. } = &mut self.state;
            cascade.remove(id, ads);
            self.address_served = false;
        }
    }

    fn settle(&mut self) {
        self.state.settle();
        for server in self.state.ads.take_given_up() {
            let plane = &mut self.planes[usize::from(server)];
            assert!(plane.open, "only an open stream is given up");
            plane.forget_stream();
        }
    }

    /// What the worker would do: connections that nobody wants end.
    fn release(&mut self) {
        for server in 0..self.planes.len() as ServerId {
            let plane = &mut self.planes[usize::from(server)];
            if plane.open && !self.state.ads.wants(server) {
                plane.forget_stream();
                self.state.ads.released(server);
            }
        }
    }

    fn open(&mut self, server: ServerId) {
        self.release();
        let plane = &mut self.planes[usize::from(server)];
        if self.state.ads.wants(server) && !plane.open {
            plane.forget_stream();
            plane.open = true;
            let _ = self.state.ads.variant(server, self.now);
            self.state.ads.opened(server, self.now);
        }
    }

    fn close(&mut self, server: ServerId, error: Option<StreamError>) {
        self.release();
        let plane = &mut self.planes[usize::from(server)];
        if self.state.ads.wants(server) {
            plane.forget_stream();
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
            let speaks_for = self.speaks_for(server);
            self.planes[usize::from(server)].hear(&request, &speaks_for);
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
        for (index, name) in asked.into_iter().enumerate() {
            let chosen = how >> (index % 2) & 1 == 0;
            let page = self.book.0.get(&(server, generation, kind, name.clone()));
            match page {
                Some(body) if chosen => {
                    let mut body = body.clone();
                    if how & 0x4 != 0 && index == 0 {
                        body.bytes = [&body.bytes[..], &[0xff; 3]].concat().into();
                    }
                    let is_short = self.has_ttl && how & 0x80 != 0;
                    response.resources.push(Resource {
                        name,
                        version: format!("{generation}"),
                        ttl: is_short.then(|| Duration::from_secs(u64::from(how % 16))),
                        body: Some(body),
                    });
                }
                _ if how & 0x8 != 0 && variant == Variant::Delta => response.removed.push(name),
                _ if how & 0x10 != 0 => {
                    response.errors.push(ResourceError { name, cause: Cause::NotFound, message: String::new() });
                }
                _ => {}
            }
        }
        if how & 0x40 != 0
            && self.planes.len() > usize::from(OTHER)
            && let [of_other] = self.speaks_for(server)[..]
        {
            // It speaks of what is another authority's, too: in its own words, or to say that there is none.
            let foreign = named(!of_other, kind, ["a:80", "r", "x", "x"][kind.index()]);
            let own = named(of_other, kind, ["a:80", "r", "x", "x"][kind.index()]);
            let body = self.book.0.get(&(server, generation, kind, own)).cloned();
            response.resources.push(Resource { name: foreign.clone(), version: String::new(), ttl: None, body });
            if variant == Variant::Delta && how & 0x80 != 0 {
                response.removed.push(foreign);
            }
        }
        self.send(server, kind, response);
    }

    /// Answers as a good control plane does: with what the client has not been told on this stream, and with nothing if it
    /// was told everything.
    fn answer_due(&mut self, server: ServerId, kind: Kind) {
        self.release();
        let plane = &self.planes[usize::from(server)];
        let Some(asked) = plane.asked[kind.index()].clone().filter(|_| plane.open) else { return };
        let (generation, told) = (plane.generation, plane.told[kind.index()].clone());
        let is_due = |name: &String| told.get(name) != Some(&generation);
        let timed = std::mem::take(&mut self.planes[usize::from(server)].timed[kind.index()]);
        let lives = |name: String| Resource { name, ..Resource::default() };
        let alive: Vec<Resource> = timed.into_iter().filter(|name| told.contains_key(name)).map(lives).collect();
        if !alive.is_empty() {
            let response = self.response(server, kind);
            self.state.ads.response(server, Response { resources: alive, ..response }, self.now);
        }
        if !asked.iter().any(is_due) {
            return;
        }
        let whole = self.says_everything(server, kind);
        let mut response = self.response(server, kind);
        for name in asked.into_iter().filter(|name| whole || is_due(name)) {
            let body = self.book.0.get(&(server, generation, kind, name.clone())).cloned();
            response.resources.push(Resource { name, version: format!("{generation}"), ttl: None, body });
        }
        self.send(server, kind, response);
    }

    /// Whether what a response leaves out does not exist.
    fn says_everything(&self, server: ServerId, kind: Kind) -> bool {
        self.state.ads.sessions()[usize::from(server)].variant == Variant::StateOfTheWorld && kind.is_full_state()
    }

    /// Sends a response, and notes what the client knows by it.
    fn send(&mut self, server: ServerId, kind: Kind, response: Response) {
        let whole = self.says_everything(server, kind);
        let Plane { asked, told, versions, timed, .. } = &mut self.planes[usize::from(server)];
        let (told, timed) = (&mut told[kind.index()], &mut timed[kind.index()]);
        if whole {
            told.retain(|name, _| response.resources.iter().any(|resource| resource.name == *name));
        }
        for Resource { name, body, ttl, .. } in &response.resources {
            if ttl.is_some() {
                timed.insert(name.clone())
            } else {
                timed.remove(name)
            };
            let is = |generation: &u16| {
                body.is_some() && self.book.0.get(&(server, *generation, kind, name.clone())) == body.as_ref()
            };
            match (0..GENERATIONS).find(is) {
                // What ends by itself is to be given again.
                Some(generation)
                    if ttl.is_none() && asked[kind.index()].as_ref().is_some_and(|asked| asked.contains(name)) =>
                {
                    told.insert(name.clone(), generation);
                }
                _ => _ = told.remove(name),
            }
        }
        for name in response.removed.iter().chain(response.errors.iter().map(|error| &error.name)) {
            told.remove(name);
        }
        versions[kind.index()].insert(response.version.clone(), told.clone());
        self.state.ads.response(server, response, self.now);
    }

    /// An empty one, with a version of its own.
    fn response(&mut self, server: ServerId, kind: Kind) -> Response {
        self.last_nonce += 1;
        let (nonce, version) = (format!("n{}", self.last_nonce), format!("v{}", self.last_nonce));
        self.planes[usize::from(server)].nonces.insert(nonce.clone());
        Response { type_url: kind.type_url().to_owned(), nonce, version, ..Default::default() }
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
        response.resources.push(Resource { name: String::new(), version: text.clone(), ttl: None, body: Some(body) });
        response.resources.push(Resource { name: text.clone(), version: String::new(), ttl: None, body: None });
        response.removed.push(text);
        // Whatever that says.
        self.planes[usize::from(server)].told[kind.index()].clear();
        self.state.ads.response(server, response, self.now);
    }

    fn check(&mut self) {
        for (target, (_, state)) in &self.readers {
            match &**state.load() {
                DestinationState::Ready(snapshot) => {
                    let from = whole(snapshot);
                    let own = &self.authorities[usize::from(is_for_other(*target))];
                    let is_own = |from| own.contains(&from) || from == EARLIER && !is_for_other(*target);
                    assert!(from.is_none_or(is_own), "another authority's: {snapshot:?}");
                    if from != Some(EARLIER) {
                        self.served.insert(*target);
                    }
                }
                other => assert!(self.may_end || !self.served.contains(target), "taken back: {other:?}"),
            }
        }
        self.check_address();
    }

    fn check_address(&mut self) {
        let Some((_, state)) = &self.address else { return };
        let state = state.load_full();
        let in_force = match &*state {
            InboundState::Ready(listener) => marks(listener),
            other => {
                assert!(self.may_end || !self.address_served, "taken back: {other:?}");
                Vec::new()
            }
        };
        let from: BTreeSet<ServerId> = in_force.iter().map(|mark| mark / STRIDE).collect();
        assert!(from.len() <= 1, "what two control planes say was joined: {state:?}");
        self.address_served |= from.first().is_some_and(|from| *from != EARLIER);
        // What fits is in force as soon as both are there.
        let accepted = |kind, name| {
            let entry = self.state.ads.entry(&Key::new(kind, name))?;
            let mark = match &entry.value()?.value {
                Value::Listening(sent) => marks(&sent.policy)[0],
                Value::Serving(sent) => sent.policy.virtual_hosts[0].routes[0].name.parse().unwrap_or_default(),
                other => panic!("{other:?}"),
            };
            (entry.standing == Standing::Acked).then_some((entry.giver()?, mark))
        };
        if let (Some((of_listener, listener)), Some((of_routes, routes))) =
            (accepted(Kind::Listener, ADDRESS), accepted(Kind::Routes, SERVED))
        {
            let misfits = self.state.cascade.joined().any(|joined| joined.misfit.is_some());
            if of_listener == of_routes {
                assert_eq!(misfits, !book::fit(listener, routes), "{listener} {routes}");
                assert!(misfits || in_force == [listener, routes], "{listener} {routes}: {state:?}");
            }
        }
    }

    /// Everybody behaves from now on.
    fn converge(&mut self) {
        self.watch(0);
        self.listen();
        self.settle();
        // No update may have been lost that only a new stream would bring.
        self.play_well(Self::answer_due);
        // And a restart changes nothing, whether what is held according to the client is believed or everything is said.
        for says_all in [false, true] {
            for server in 0..self.planes.len() as ServerId {
                self.close(server, Some(StreamError::new("restart")));
            }
            self.play_well(|world, server, kind| match says_all {
                false => world.answer_due(server, kind),
                true => world.answer(server, kind, 0),
            });
        }
    }

    /// Three rounds of answers, and what is then to be so.
    fn play_well(&mut self, answer: impl Fn(&mut Self, ServerId, Kind)) {
        for _ in 0..3 {
            self.now += Duration::from_secs(1);
            self.state.ads.expire(self.now);
            self.settle();
            for server in 0..self.planes.len() as ServerId {
                self.open(server);
                self.read_requests(server, 64);
                for kind in Kind::ALL {
                    answer(self, server, kind);
                    self.settle();
                    self.read_requests(server, 64);
                }
                self.check();
            }
        }
        self.release();
        for (target, (_, state)) in &self.readers {
            let DestinationState::Ready(snapshot) = &**state.load() else { panic!("{}: {state:?}", TARGETS[*target]) };
            let mark = whole(snapshot);
            let server = self.authorities[usize::from(is_for_other(*target))][0];
            assert_eq!(mark, Some(server), "the better control plane's word counts");
            let generation = self.planes[usize::from(server)].generation;
            let routed = named(is_for_other(*target), Kind::Cluster, CLUSTERS[usize::from(generation % 2)]);
            assert!(matches!(snapshot.clusters[&routed.as_str().into()], ClusterState::Ready { .. }), "{snapshot:?}");
        }
        if let Some((_, state)) = &self.address {
            let InboundState::Ready(listener) = &**state.load() else { panic!("{state:?}") };
            let mark = self.authorities[0][0] * STRIDE + self.planes[0].generation + 1;
            assert_eq!(marks(listener), [mark; 2], "the better control plane's word counts, all of it");
            for (kind, name) in [(Kind::Listener, ADDRESS), (Kind::Routes, SERVED)] {
                let entry = self.state.ads.entry(&Key::new(kind, name));
                assert_eq!(
                    entry.map(|entry| entry.standing),
                    Some(Standing::Acked),
                    "nothing is complained of any more"
                );
            }
        }
        // The better one of each authority is asked for all of it, and the worse one for nothing.
        for (kind, server) in
            Kind::ALL.into_iter().flat_map(|kind| (0..).zip(&self.planes).map(move |(n, _)| (kind, n)))
        {
            let is_first = |of_other: bool| {
                self.authorities.get(usize::from(of_other)).is_some_and(|ordered| ordered[0] == server)
            };
            let wanted: BTreeSet<String> = (self.state.ads.entries())
                .filter(|(k, name, _)| *k == kind && is_first(is_of_other(name)))
                .map(|(_, name, _)| name.to_string())
                .collect();
            let asked = self.planes[usize::from(server)].asked[kind.index()].clone().unwrap_or_default();
            assert_eq!(asked, wanted, "{kind} {server}");
        }
        for (server, plane) in (0..).zip(&self.planes) {
            let is_of_use = self.authorities.iter().any(|ordered| ordered[0] == server);
            assert!(is_of_use || !plane.open, "the worse control plane is let go");
        }
    }

    /// For which authorities a control plane speaks: the first, the other, or both.
    fn speaks_for(&self, server: ServerId) -> Vec<bool> {
        let of = (0..).zip(&self.authorities).filter(|(_, ordered)| ordered.contains(&server));
        of.map(|(authority, _): (usize, _)| authority == 1).collect()
    }
}

/// Whether a target is the other authority's.
fn is_for_other(target: usize) -> bool {
    target == 2
}

impl Plane {
    fn forget_stream(&mut self) {
        let Self { generation, versions, timed, .. } = std::mem::take(self);
        *self = Self { generation, versions, timed, ..Self::default() };
    }

    /// A request as a strict server reads it, and one that believes what it is told.
    fn hear(&mut self, request: &Request, speaks_for: &[bool]) {
        assert_eq!(request.node.is_some(), !self.introduced, "the node goes with the first request, and only with it");
        self.introduced = true;
        assert!(request.nonce.is_empty() || self.nonces.contains(&request.nonce), "a nonce of another stream");
        assert!(request.error.is_none() || !request.nonce.is_empty(), "a refusal of nothing");
        let names = match &request.ask {
            Ask::World { names, .. } => &names[..],
            Ask::Changes { subscribe, .. } => subscribe,
        };
        let is_own = |name: &Name| speaks_for.contains(&is_of_other(name));
        assert!(names.iter().all(is_own), "another authority's: {names:?}");
        let kind = Kind::of_type_url(request.type_url).expect("a type of ours");
        let first = self.asked[kind.index()].is_none();
        let (asked, told) = (self.asked[kind.index()].get_or_insert_default(), &mut self.told[kind.index()]);
        match &request.ask {
            Ask::World { names, version } => {
                assert!(!(first && names.is_empty()), "an empty list as the first word means everything");
                *asked = names.iter().map(|name| name.to_string()).collect();
                if first && !version.is_empty() {
                    told.clone_from(&self.versions[kind.index()][&**version]);
                }
                told.retain(|name, _| asked.contains(name));
            }
            Ask::Changes { subscribe, unsubscribe, initial_versions } => {
                assert!(!(first && subscribe.is_empty()), "an empty list as the first word means everything");
                assert!(first || initial_versions.is_empty(), "versions go with the first request of a type");
                for name in unsubscribe {
                    told.remove(&**name);
                    assert!(asked.remove(&**name), "{name} was not subscribed");
                }
                for name in subscribe {
                    assert!(asked.insert(name.to_string()), "{name} is subscribed already");
                }
                assert!(initial_versions.iter().all(|(name, _)| asked.contains(&**name)));
                let held =
                    |(name, version): &(Name, Name)| (name.to_string(), version.parse().expect("a version of ours"));
                told.extend(initial_versions.iter().map(held));
            }
        }
    }
}

/// Of a listening address: that of its listener, then that of each route.
fn marks(listener: &InboundListener) -> Vec<u16> {
    let of_listener = listener.limits.max_connections.unwrap_or_default() as u16;
    let of_routes = listener.routes.iter().map(|route| route.name.parse().unwrap_or_default());
    [of_listener].into_iter().chain(of_routes).collect()
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
