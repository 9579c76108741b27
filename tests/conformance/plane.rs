//! A control plane in memory that speaks both variants, and clients of it. In every case it looks at what each request
//! says besides what is asked for, and the case fails with a request against the rules.
#![allow(dead_code, reason = "the conformance tests and the simulations each use a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use mesh_core::policy::{Address, ClusterState, DestinationState, Endpoint, Listener, RouteSource, Snapshot};
use mesh_core::source::Watched;
use mesh_discovery::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use mesh_discovery::codec;
use mesh_discovery::xds::{
    AdsStream, Ask, Body, Cause, RawResource, Request, ResourceError, Response, StreamError, Transport, Variant,
    XdsClient, XdsConfig,
};
use mesh_testkit::policy;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::rules::Rules;

#[path = "rules.rs"]
mod rules;

pub(crate) const BOTH: [Variant; 2] = [Variant::Delta, Variant::StateOfTheWorld];

/// How a control plane behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mood {
    /// As it should.
    Up,
    /// Nobody gets a stream, and the open ones break.
    Down,
    /// It takes streams and never says anything.
    Mute,
    /// What is sent to it is lost, connections first.
    Hole,
    /// As it should, but nobody can ask it: they wait for their own certificates.
    Unasked,
}

/// A control plane. Clones are the same.
#[derive(Clone)]
pub(crate) struct Plane {
    book: Arc<Mutex<Book>>,
    revision: watch::Sender<u64>,
    heard: watch::Sender<u64>,
}

struct Book {
    mood: Mood,
    has_delta: bool,
    /// Says of names that it does not have that they do not exist: in delta they are removed, in the state of the world
    /// there is an error for each.
    tells_absence: bool,
    /// By type and name: revision and bytes.
    resources: BTreeMap<String, BTreeMap<String, (u64, Vec<u8>)>>,
    /// When there was last a change of a type: who says that it holds that or later is believed (state of the world).
    changed: BTreeMap<String, u64>,
    streams: usize,
    /// When streams were taken.
    opened: Vec<Instant>,
    /// Tries to open one, refused ones among them.
    tries: usize,
    /// Resources sent, of all types and to everybody.
    sent: usize,
    /// What is asked for on the newest stream, by type.
    asked: BTreeMap<&'static str, BTreeSet<String>>,
    nacks: Vec<String>,
    /// What was against the rules first.
    fault: Option<String>,
}

impl Drop for Plane {
    /// In the test, which holds one: there a panic is heard.
    fn drop(&mut self) {
        let fault = self.book.try_lock().and_then(|book| book.fault.clone());
        if let Some(fault) = fault
            && !std::thread::panicking()
        {
            panic!("a request is against the rules: {fault}");
        }
    }
}

impl Plane {
    pub(crate) fn new() -> Self {
        let book = Book {
            mood: Mood::Up,
            has_delta: true,
            tells_absence: false,
            resources: BTreeMap::new(),
            changed: BTreeMap::new(),
            streams: 0,
            opened: Vec::new(),
            tries: 0,
            sent: 0,
            asked: BTreeMap::new(),
            nacks: Vec::new(),
            fault: None,
        };
        Self { book: Arc::new(Mutex::new(book)), revision: watch::channel(0).0, heard: watch::channel(0).0 }
    }

    /// One that sends `a:80` to `cluster`, whose one endpoint has this port.
    pub(crate) fn with(cluster: &str, port: u16) -> Self {
        let plane = Self::new();
        plane.put(destination("a:80", "r"));
        plane.put(route_to("r", cluster));
        plane.put(cluster_named(cluster));
        plane.put(endpoints_of(cluster, port));
        plane
    }

    pub(crate) fn put(&self, resource: Named) {
        self.put_all([resource]);
    }

    /// Puts several in one push.
    pub(crate) fn put_all(&self, resources: impl IntoIterator<Item = Named>) {
        self.change(|book, revision| {
            for ((type_url, name), bytes) in resources {
                book.changed.insert(type_url.clone(), revision);
                book.resources.entry(type_url).or_default().insert(name, (revision, bytes));
            }
        });
    }

    pub(crate) fn delete(&self, type_url: &str, name: &str) {
        self.change(|book, revision| {
            book.changed.insert(type_url.to_owned(), revision);
            if let Some(resources) = book.resources.get_mut(type_url) {
                resources.remove(name);
            }
        });
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.change(|book, _| book.mood = mood);
    }

    pub(crate) fn has_no_delta(&self) {
        self.book.lock().has_delta = false;
    }

    pub(crate) fn tells_absence(&self) {
        self.book.lock().tells_absence = true;
    }

    pub(crate) fn opened(&self) -> usize {
        self.book.lock().opened.len()
    }

    /// When streams were taken from `since` on.
    pub(crate) fn opened_since(&self, since: Instant) -> Vec<Instant> {
        self.book.lock().opened.iter().copied().filter(|at| *at >= since).collect()
    }

    /// How often it has changed.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    pub(crate) fn tries(&self) -> usize {
        self.book.lock().tries
    }

    pub(crate) fn sent(&self) -> usize {
        self.book.lock().sent
    }

    pub(crate) fn streams(&self) -> usize {
        self.book.lock().streams
    }

    pub(crate) fn nacks(&self) -> Vec<String> {
        self.book.lock().nacks.clone()
    }

    pub(crate) fn asked(&self, type_url: &str) -> Vec<String> {
        self.book.lock().asked.get(type_url).into_iter().flatten().cloned().collect()
    }

    /// Waits until something that the clients did makes `fits` true.
    pub(crate) async fn sees(&self, what: &str, fits: impl Fn(&Self) -> bool) {
        let mut heard = self.heard.subscribe();
        let seen = async {
            while !fits(self) {
                heard.changed().await.unwrap();
            }
        };
        within(what, seen).await;
    }

    fn change(&self, change: impl FnOnce(&mut Book, u64)) {
        self.revision.send_modify(|revision| {
            *revision += 1;
            change(&mut self.book.lock(), *revision);
        });
    }

    fn serve(&self, variant: Variant) -> AdsStream {
        let (requests, received) = mpsc::channel(1);
        let (responses, outgoing) = mpsc::channel(1);
        let plane = self.clone();
        tokio::spawn(async move {
            plane.note(|book| {
                book.opened.push(Instant::now());
                book.streams += 1;
                book.asked.clear();
            });
            plane.talk(variant, received, responses).await;
            plane.note(|book| book.streams -= 1);
        });
        let responses = stream::unfold(outgoing, |mut outgoing| async { Some((outgoing.recv().await?, outgoing)) });
        AdsStream { requests, responses: responses.boxed() }
    }

    fn note(&self, note: impl FnOnce(&mut Book)) {
        note(&mut self.book.lock());
        self.heard.send_modify(|n| *n += 1);
    }

    async fn talk(
        &self,
        variant: Variant,
        mut requests: mpsc::Receiver<Request>,
        responses: mpsc::Sender<Result<Response, StreamError>>,
    ) {
        let mut revision = self.revision.subscribe();
        let mut asked: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        let mut told: BTreeMap<&'static str, BTreeMap<String, u64>> = BTreeMap::new();
        let (mut nonce, mut rules) = (0, Rules::default());
        loop {
            let due: Vec<&'static str> = tokio::select! {
                biased;
                request = requests.recv() => match request {
                    None => return,
                    Some(request) => {
                        if let Err(fault) = rules.hears(&request) {
                            self.note(|book| _ = book.fault.get_or_insert(format!("{fault}: {request:?}")));
                        }
                        vec![self.hear(request, &mut asked, &mut told)]
                    }
                },
                _ = revision.changed() => asked.keys().copied().collect(),
            };
            if self.book.lock().mood == Mood::Down {
                let _ = responses.send(Err(StreamError::new("it went away"))).await;
                return;
            }
            for type_url in due {
                nonce += 1;
                let (asked, told) = (&asked[type_url], told.entry(type_url).or_default());
                if let Some(response) = self.answer(type_url, variant, asked, told, nonce) {
                    rules.sends(type_url, &response);
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn hear(
        &self,
        request: Request,
        asked: &mut BTreeMap<&'static str, BTreeSet<String>>,
        told: &mut BTreeMap<&'static str, BTreeMap<String, u64>>,
    ) -> &'static str {
        let asked = asked.entry(request.type_url).or_default();
        match request.ask {
            Ask::World { names, version } => {
                *asked = names.iter().map(|name| name.to_string()).collect();
                let book = self.book.lock();
                let version: Option<u64> = version.parse().ok().filter(|_| request.nonce.is_empty());
                if version >= book.changed.get(request.type_url).copied() && version.is_some() {
                    let revision = |name: &String| Some(book.resources.get(request.type_url)?.get(name)?.0);
                    let held = |name: &String| revision(name).or(book.tells_absence.then_some(0));
                    let held = asked.iter().filter_map(|name| Some((name.clone(), held(name)?)));
                    told.entry(request.type_url).or_default().extend(held);
                }
            }
            Ask::Changes { subscribe, unsubscribe, initial_versions } => {
                asked.retain(|name| !unsubscribe.iter().any(|gone| **gone == **name));
                asked.extend(subscribe.iter().map(|name| name.to_string()));
                // What is held need not be sent again.
                let held = initial_versions
                    .iter()
                    .filter_map(|(name, version)| Some((name.to_string(), version.parse().ok()?)));
                told.entry(request.type_url).or_default().extend(held);
            }
        }
        self.note(|book| {
            book.nacks.extend(request.error);
            book.asked.insert(request.type_url, asked.clone());
        });
        request.type_url
    }

    /// What is new for a stream that was told `told`. 0 stands for "does not exist".
    fn answer(
        &self,
        type_url: &str,
        variant: Variant,
        asked: &BTreeSet<String>,
        told: &mut BTreeMap<String, u64>,
        nonce: u64,
    ) -> Option<Response> {
        let mut book = self.book.lock();
        if book.mood == Mood::Mute {
            return None;
        }
        let resources = book.resources.get(type_url);
        let find = |name: &String| resources?.get(name);
        let tells_absence = |name: &String| told.contains_key(name) || book.tells_absence;
        let now: BTreeMap<String, u64> = asked
            .iter()
            .filter_map(|name| match find(name) {
                Some((revision, _)) => Some((name.clone(), *revision)),
                None => tells_absence(name).then(|| (name.clone(), 0)),
            })
            .collect();
        if now == *told {
            return None;
        }
        let full = variant == Variant::StateOfTheWorld && [codec::LISTENER, codec::CLUSTER].contains(&type_url);
        let news = now.iter().filter(|(name, revision)| full || told.get(*name) != Some(revision));
        let mut response = Response { type_url: type_url.to_owned(), nonce: format!("n{nonce}"), ..Default::default() };
        response.version = self.revision.borrow().to_string();
        for (name, revision) in news {
            match find(name) {
                Some((_, bytes)) => response.resources.push(RawResource {
                    name: if variant == Variant::Delta { name.clone() } else { String::new() },
                    version: revision.to_string(),
                    ttl: None,
                    body: Some(Body::new(type_url, bytes.clone())),
                }),
                None if variant == Variant::Delta => response.removed.push(name.clone()),
                None if book.tells_absence => response.errors.push(ResourceError {
                    name: name.clone(),
                    cause: Cause::NotFound,
                    message: "it is not here".to_owned(),
                }),
                None => {}
            }
        }
        let sent = response.resources.len();
        book.sent += sent;
        drop(book);
        *told = now;
        Some(response)
    }
}

/// The way to a control plane.
pub(crate) struct Wire(pub(crate) Plane);

impl Transport for Wire {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let plane = self.0.clone();
        Box::pin(async move {
            let (mood, has_delta) = {
                let mut book = plane.book.lock();
                book.tries += 1;
                (book.mood, book.has_delta)
            };
            let mut changes = plane.revision.subscribe();
            while plane.book.lock().mood == Mood::Unasked {
                changes.changed().await.map_err(|_| StreamError::new("nobody is there"))?;
            }
            if mood == Mood::Down {
                return Err(StreamError::new("connection refused"));
            }
            if mood == Mood::Hole {
                // What connections have for that.
                tokio::time::sleep_until(Instant::now() + Duration::from_secs(10)).await;
                return Err(StreamError::new("no connection within 10s"));
            }
            if variant == Variant::Delta && !has_delta {
                let (requests, _) = mpsc::channel(1);
                let refused: BoxStream<'static, _> =
                    stream::iter([Err(StreamError::unsupported("unknown method"))]).boxed();
                return Ok(AdsStream { requests, responses: refused });
            }
            Ok(plane.serve(variant))
        })
    }

    fn is_held_up(&self) -> bool {
        self.0.book.lock().mood == Mood::Unasked
    }
}

/// The address of the control plane with this number.
pub(crate) fn server(number: usize) -> XdsServer {
    XdsServer::new(format!("plane{number}:1").parse().unwrap(), ChannelCredentials::Insecure)
}

/// A client of these control planes, in their order of preference.
pub(crate) fn client(variant: impl Into<Option<Variant>>, planes: &[&Plane]) -> XdsClient {
    client_with(variant, planes, |_| {})
}

/// The same with changes to its bootstrap.
pub(crate) fn client_with(
    variant: impl Into<Option<Variant>>,
    planes: &[&Plane],
    change: impl FnOnce(&mut Bootstrap),
) -> XdsClient {
    client_of(variant, planes, |config| change(&mut config.bootstrap))
}

/// The same with changes to all that there is to say.
pub(crate) fn client_of(
    variant: impl Into<Option<Variant>>,
    planes: &[&Plane],
    change: impl FnOnce(&mut XdsConfig),
) -> XdsClient {
    let mut bootstrap = Bootstrap::new(server(0), Node { id: "me".to_owned(), ..Default::default() });
    bootstrap.servers = (0..planes.len()).map(server).collect();
    let mut config = XdsConfig::new(bootstrap);
    config.variant = variant.into();
    change(&mut config);
    let planes: Vec<Plane> = planes.iter().map(|plane| (*plane).clone()).collect();
    let wire = move |wanted: &XdsServer| {
        let number = (0..planes.len()).find(|number| server(*number).uri == wanted.uri).unwrap();
        Wire(planes[number].clone())
    };
    XdsClient::spawn(config, wire, &Handle::current())
}

/// A client of one control plane over a transport of its own.
pub(crate) fn client_over<T: Transport + Clone>(transport: T, variant: Variant) -> XdsClient {
    let bootstrap = Bootstrap::new(server(0), Node { id: "me".to_owned(), ..Default::default() });
    let mut config = XdsConfig::new(bootstrap);
    config.variant = Some(variant);
    XdsClient::spawn(config, move |_| transport.clone(), &Handle::current())
}

/// Type and name, and the bytes.
pub(crate) type Named = ((String, String), Vec<u8>);

fn named(name: &str, resource: (String, Vec<u8>)) -> Named {
    ((resource.0, name.to_owned()), resource.1)
}

macro_rules! packed {
    ($any:expr) => {{
        let any = $any;
        (any.type_url, any.value)
    }};
}

pub(crate) fn destination(name: &str, routes: &str) -> Named {
    let listener = Listener::new(name, RouteSource::Named(routes.to_owned()));
    named(name, packed!(codec::encode_listener(&listener)))
}

pub(crate) fn route_to(name: &str, cluster: &str) -> Named {
    let mut routes = policy::routes([policy::route_to(cluster.into())]);
    routes.name = name.to_owned();
    named(name, packed!(codec::encode_routes(&routes)))
}

pub(crate) fn cluster_named(name: &str) -> Named {
    cluster_of(&mesh_core::policy::Cluster::new(name.into()))
}

pub(crate) fn cluster_of(cluster: &mesh_core::policy::Cluster) -> Named {
    named(cluster.name.as_str(), packed!(codec::encode_cluster(cluster)))
}

/// Endpoints that are none.
pub(crate) fn no_endpoints_of(cluster: &str) -> Named {
    named(cluster, packed!(codec::encode_endpoints(&policy::endpoints(&cluster.into(), Vec::new()))))
}

pub(crate) fn endpoints_of(cluster: &str, port: u16) -> Named {
    endpoints_at(cluster, vec![Endpoint::new(Address::Socket(([127, 0, 0, 1], port).into()))])
}

pub(crate) fn endpoints_at(cluster: &str, endpoints: Vec<Endpoint>) -> Named {
    named(cluster, packed!(codec::encode_endpoints(&policy::endpoints(&cluster.into(), endpoints))))
}

/// A resource of this type and name that no decoder takes.
pub(crate) fn broken(type_url: &str, name: &str) -> Named {
    let mut bytes = vec![0x0a, name.len() as u8];
    bytes.extend(name.as_bytes());
    // A field that a listener, a cluster and their like have as a message, with nonsense in it.
    bytes.extend([0x12, 0x02, 0xff, 0xff, 0x1a, 0x02, 0xff, 0xff]);
    ((type_url.to_owned(), name.to_owned()), bytes)
}

/// Waits for the state that `fits`.
pub(crate) async fn becomes(
    state: &mut Watched<DestinationState>,
    what: &str,
    fits: impl Fn(&DestinationState) -> bool,
) -> Arc<DestinationState> {
    within(what, state.wait_for(fits)).await
}

/// Waits until requests go to this port and nowhere else.
pub(crate) async fn goes_to(state: &mut Watched<DestinationState>, port: u16) -> Arc<DestinationState> {
    becomes(state, &format!("port {port}"), |state| match state {
        DestinationState::Ready(snapshot) => ports(snapshot) == [port],
        _ => false,
    })
    .await
}

/// The ports of all endpoints; a cluster that failed gives 0.
pub(crate) fn ports(snapshot: &Snapshot) -> Vec<u16> {
    let port = |endpoint: &Endpoint| match &endpoint.address {
        Address::Socket(address) => address.port(),
        _ => 0,
    };
    snapshot
        .clusters
        .values()
        .flat_map(|state| match state {
            ClusterState::Ready { endpoints, .. } => endpoints.iter().map(port).collect(),
            ClusterState::Failed(_) => vec![0],
        })
        .collect()
}

/// Waits, but not for ever: the clock jumps when nothing moves.
async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(900), work).await.unwrap_or_else(|_| panic!("never: {what}"))
}
