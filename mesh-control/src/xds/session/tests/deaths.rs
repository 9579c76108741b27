//! A control plane that dies at any moment and begins again, and an Envoy with delta xDS that was there before: in the end it
//! has what there is, and nothing else.
//!
//! The Envoy is a model of `NewGrpcMuxImpl` and of what its cluster and listener managers do with it.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::xds::Resources;
use crate::xds::encoded::Version;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// How many courses are played.
const SEEDS: u64 = 300;

/// What an Envoy has, has asked for and is about to say.
#[derive(Default)]
struct Envoy {
    /// Names and versions, by type.
    has: [BTreeMap<String, String>; 4],
    /// Asked for by name: endpoints of its clusters, routes of its listeners.
    wants: [BTreeSet<String>; 4],
    added: [BTreeSet<String>; 4],
    removed: [BTreeSet<String>; 4],
    /// Of the types with a subscription, whether it was told on this stream.
    told: [Option<bool>; 4],
    acks: VecDeque<(Kind, String)>,
    /// What came though it was no longer asked for: it says that it has that.
    strays: [BTreeMap<String, String>; 4],
    warming: BTreeSet<String>,
}

impl Envoy {
    fn new() -> Self {
        let mut envoy = Self::default();
        envoy.told[Kind::Cluster.index()] = Some(false);
        envoy
    }

    /// A stream is open: nothing that was about to be said on the one before holds.
    fn connected(&mut self) {
        self.acks.clear();
        self.told.iter_mut().flatten().for_each(|told| *told = false);
    }

    /// It says nothing of clusters while one of them waits for its endpoints.
    fn is_paused(&self, kind: Kind) -> bool {
        kind == Kind::Cluster && !self.warming.is_empty()
    }

    /// What it says next: answers first, then what it asks for, in the order in which it began to.
    fn says(&mut self) -> Option<DeltaDiscoveryRequest> {
        if let Some(at) = self.acks.iter().position(|(kind, _)| !self.is_paused(*kind)) {
            let (kind, nonce) = self.acks.remove(at).unwrap();
            return Some(self.request(kind, nonce));
        }
        let is_due = |kind: &Kind| {
            let at = kind.index();
            let has_more = !self.added[at].is_empty() || !self.removed[at].is_empty();
            self.told[at].is_some_and(|told| !told || has_more) && !self.is_paused(*kind)
        };
        let kind = Kind::ALL.into_iter().find(is_due)?;
        Some(self.request(kind, String::new()))
    }

    fn request(&mut self, kind: Kind, response_nonce: String) -> DeltaDiscoveryRequest {
        let at = kind.index();
        let (mut added, mut removed) = (std::mem::take(&mut self.added[at]), std::mem::take(&mut self.removed[at]));
        let mut has = BTreeMap::new();
        if self.told[at].replace(true) == Some(false) {
            // Everything of a type for which it names nothing.
            (added, removed) = (self.wants[at].clone(), BTreeSet::new());
            has.clone_from(&self.has[at]);
            has.extend(self.strays[at].clone());
        }
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            response_nonce,
            resource_names_subscribe: added.into_iter().collect(),
            resource_names_unsubscribe: removed.into_iter().collect(),
            initial_resource_versions: has.into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn reads(&mut self, response: DeltaResponse) {
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        for name in &response.removed_resources {
            self.has[kind.index()].remove(name);
            self.strays[kind.index()].remove(name);
            match kind {
                Kind::Cluster => {
                    self.warming.remove(name);
                    self.want(Kind::Endpoints, name, false);
                }
                Kind::Endpoints => _ = self.warming.remove(name),
                Kind::Listener => self.want(Kind::Routes, name, false),
                Kind::Routes => {}
            }
        }
        for DeltaResource { name, version, .. } in response.resources {
            if matches!(kind, Kind::Endpoints | Kind::Routes) && !self.wants[kind.index()].contains(&name) {
                self.strays[kind.index()].insert(name, version);
                continue;
            }
            let before = self.has[kind.index()].insert(name.clone(), version.clone());
            match kind {
                Kind::Cluster => {
                    if before != Some(version) {
                        self.warming.insert(name.clone());
                    }
                    self.want(Kind::Endpoints, &name, true);
                }
                Kind::Endpoints => _ = self.warming.remove(&name),
                Kind::Listener => self.want(Kind::Routes, &name, true),
                Kind::Routes => {}
            }
        }
        self.acks.push_back((kind, response.nonce));
        // It asks for listeners once it has its first clusters.
        let listeners = &mut self.told[Kind::Listener.index()];
        if self.warming.is_empty() && listeners.is_none() {
            *listeners = Some(false);
        }
    }

    fn want(&mut self, kind: Kind, name: &str, wanted: bool) {
        let at = kind.index();
        self.told[at].get_or_insert(false);
        self.strays[at].remove(name);
        if wanted {
            if self.wants[at].insert(name.to_owned()) {
                self.removed[at].remove(name);
                self.added[at].insert(name.to_owned());
            }
        } else if self.wants[at].remove(name) {
            self.has[at].remove(name);
            self.added[at].remove(name);
            self.removed[at].insert(name.to_owned());
        }
    }
}

/// One open stream.
struct Stream {
    session: Session,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    to_client: VecDeque<DeltaResponse>,
}

struct Deaths {
    random: fastrand::Rng,
    /// Of each host the edition of its cluster and that of its routes.
    hosts: BTreeMap<&'static str, (u32, u32)>,
    revision: u32,
    /// The control plane, while it lives, and the stream that is open to it.
    cache: Option<Arc<Cache>>,
    stream: Option<Stream>,
    envoy: Envoy,
    /// It stands still: nothing has to wait for [`PATIENCE`].
    now: Instant,
}

impl Deaths {
    fn new(seed: u64) -> Self {
        let hosts = HOSTS[..2].iter().map(|host| (*host, (1, 1))).collect();
        let (random, envoy, now) = (fastrand::Rng::with_seed(seed), Envoy::new(), Instant::now());
        Self { random, hosts, revision: 1, cache: None, stream: None, envoy, now }
    }

    fn world(&self) -> Fake {
        self.hosts.iter().fold(Fake::default(), |fake, (host, (cluster, routes))| {
            let fake = fake.with(Kind::Cluster, host, *cluster).with(Kind::Endpoints, host, 1);
            fake.with(Kind::Listener, host, 1).with(Kind::Routes, host, *routes)
        })
    }

    fn scope() -> NodeScope {
        NodeScope { dialect: Dialect::Envoy, ..NodeScope::default() }
    }

    fn event(&mut self) {
        match self.random.u8(..100) {
            0..8 => self.change(),
            8..11 => self.dies(),
            11..25 => self.comes(),
            25..50 => _ = self.says(),
            50..60 => _ = self.hears(),
            60..75 => _ = self.sends(),
            _ => _ = self.reads(),
        }
    }

    fn change(&mut self) {
        let (host, what) = (HOSTS[self.random.usize(..HOSTS.len())], self.random.u8(..4));
        let edition = self.random.u32(1..4);
        match what {
            0 | 1 if self.hosts.remove(host).is_some() => {}
            2 => self.hosts.entry(host).or_insert((1, 1)).0 = edition,
            _ => self.hosts.entry(host).or_insert((1, 1)).1 = edition,
        }
        self.revision += 1;
        if let Some(cache) = &self.cache {
            self.world().publish(cache, &self.revision.to_string());
        }
    }

    /// Some of what was on its way arrives; nothing else does.
    fn dies(&mut self) {
        while self.random.bool() && self.reads() {}
        (self.cache, self.stream) = (None, None);
    }

    /// The control plane begins, or the Envoy finds it.
    fn comes(&mut self) {
        match (&self.cache, &self.stream) {
            (None, _) => self.cache = Some(self.world().cache()),
            (Some(cache), None) => {
                let seat = cache.seat(Self::scope(), &Arc::default());
                let session = Session::new(seat, Form::Delta, false, Limits::default());
                self.stream = Some(Stream { session, to_server: VecDeque::new(), to_client: VecDeque::new() });
                self.envoy.connected();
            }
            (Some(_), Some(_)) => {}
        }
    }

    fn says(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let Some(request) = self.envoy.says() else { return false };
        stream.to_server.push_back(request);
        true
    }

    fn hears(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let Some(request) = stream.to_server.pop_front() else { return false };
        stream.session.delta_request(request).unwrap();
        true
    }

    fn sends(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let Some(Response::Delta(response)) = stream.session.next(self.now) else { return false };
        stream.to_client.push_back(response);
        true
    }

    fn reads(&mut self) -> bool {
        let Some(response) = self.stream.as_mut().and_then(|stream| stream.to_client.pop_front()) else { return false };
        self.envoy.reads(response);
        true
    }

    /// Nothing happens any more but what has to.
    fn settle(&mut self) {
        self.comes();
        self.comes();
        while self.says() || self.hears() || self.sends() || self.reads() {}
    }

    fn there_is(&self, kind: Kind) -> BTreeMap<String, String> {
        let (world, scope) = (self.world(), Self::scope());
        let version = |host: &&str| Version::of(&world.resource(&scope, kind, host).unwrap(), &scope).to_string();
        self.hosts.keys().map(|host| ((*host).to_owned(), version(host))).collect()
    }
}

fn play(seed: u64) {
    let mut deaths = Deaths::new(seed);
    for _ in 0..300 {
        deaths.event();
    }
    deaths.settle();
    for kind in Kind::ALL {
        assert_eq!(deaths.envoy.has[kind.index()], deaths.there_is(kind), "{kind}");
    }
}

#[test]
fn an_envoy_has_what_there_is_whenever_the_control_plane_died() {
    for seed in 0..SEEDS {
        let played = std::panic::catch_unwind(|| play(seed));
        assert!(played.is_ok(), "seed {seed}");
    }
}
