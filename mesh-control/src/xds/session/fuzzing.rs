//! Entry point for the fuzzer and for the replay of its corpus; not a part of the interface.
//!
//! Bytes become requests of a client, in either form of the protocol, revisions of the configuration, and the moments at
//! which responses are taken. A model of the client, written from the protocol's words, knows what it has asked for, been
//! sent and answered, and of what it refused it goes on with some: no cluster is taken from it that this names. In the end it keeps the rules, and must then have what it asks for. As an Envoy it then answers
//! clusters once it has their endpoints, and must not be sent listeners and routes before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, ResourceError};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use mesh_discovery::codec;
use prost::Message;
use tokio::time::Instant;

use super::{Form, Kind, Limits, PATIENCE, Response, Session};
use crate::translate::{Dialect, NodeScope};
use crate::xds::Resources;
use crate::xds::cache::Cache;
use crate::xds::encoded::Version;
use crate::xds::fake::Fake;
use crate::xds::session::request::Refused;

/// What there may be; of the rest nothing ever is.
const REAL: [&str; 4] = ["a", "b", "c", "d"];
const NAMES: [&str; 12] = [
    "a",
    "b",
    "c",
    "d",
    "*",
    "",
    "nobody",
    "xdstp://1/envoy.config.cluster.v3.Cluster/a",
    "xdstp://2/envoy.config.cluster.v3.Cluster/a",
    "xdstp://3/envoy.config.listener.v3.Listener/a",
    "xdstp://4/envoy.config.route.v3.RouteConfiguration/a",
    "xdstp://5/envoy.config.cluster.v3.Cluster/a?x=y",
];
/// No client needs more responses than this to have everything.
const SETTLED: usize = 400;
const LIMITS: Limits = Limits {
    names: 9,
    names_bytes: 512,
    name_bytes: 64,
    versions: 9,
    streams: 1,
    streams_of_one: 1,
    bytes_of_one: 1 << 20,
    request_bytes: 1 << 16,
    requests: (1, 1),
    response_bytes: 1 << 16,
    largest_response: 1 << 20,
};

/// Plays a stream.
///
/// # Panics
/// The session broke a rule of the protocol, or the client does not get what it asks for.
pub fn session(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let setting = bytes.next().unwrap_or_default();
    let mut world = World::new(setting);
    while let Some(event) = bytes.next() {
        if world.event(event, &mut bytes).is_err() {
            // The stream ends with the refusal.
            return world.leave();
        }
        world.check();
    }
    // An Envoy may ask for the endpoints of more clusters than it may name.
    let (mut settled, is_envoy) = (world.settle(), world.is_envoy());
    if setting & 32 != 0 && settled.is_ok() {
        settled = world.refuse_for_good().and_then(|()| world.settle());
    }
    assert!(settled.is_ok() || is_envoy, "{settled:?}");
    world.leave();
}

/// What a client has in use of a listener or routes.
struct Used {
    /// The clusters that it names.
    names: BTreeSet<String>,
    /// It is what the client was sent last, and accepted.
    is_newest: bool,
    /// There is none any more: what is left of it counts while something else is refused, in favour of which it may be used.
    is_gone: bool,
}

/// What the client knows of one type.
#[derive(Default)]
struct Type {
    used: BTreeMap<String, Used>,
    /// Of the response that is not answered yet: what each names, or that it is gone.
    offered: Vec<(String, Option<BTreeSet<String>>)>,
    asked: bool,
    named: bool,
    wildcard: bool,
    explicit: BTreeSet<String>,
    /// What it was sent: a version, or bytes where resources have none of their own.
    held: BTreeMap<String, Vec<u8>>,
    /// What it was told not to exist.
    absent: BTreeSet<String>,
    nonce: String,
    /// Of responses that another one was sent over.
    older: Vec<String>,
    waiting: bool,
    refused: bool,
    /// The names of its last request that counted.
    names: Vec<String>,
}

struct World {
    cache: Arc<Cache>,
    session: Session,
    form: Form,
    explained: bool,
    revision: u32,
    /// The edition of each resource of the next revision.
    editions: BTreeMap<(Kind, &'static str), u32>,
    published: Fake,
    /// What listeners and routes of it name.
    names: BTreeMap<(Kind, &'static str), BTreeSet<String>>,
    /// Everything that was ever published.
    ever: BTreeSet<(Kind, &'static str, Vec<u8>)>,
    /// Whether the client said that it has clusters of an earlier stream, and whether it was sent none since.
    returned: (bool, bool),
    types: [Type; 4],
    last_nonce: u64,
    now: Instant,
    /// Whether time has passed while something may have waited.
    late: bool,
    /// Clusters that an Envoy was sent anew and has no endpoints for.
    warming: BTreeSet<String>,
    /// The client refuses listeners and routes.
    refuses: bool,
}

impl World {
    fn new(setting: u8) -> Self {
        let form = if setting & 1 == 0 { Form::Delta } else { Form::State };
        let explained = setting & 2 != 0;
        let dialect = if setting & 4 != 0 { Dialect::Envoy } else { Dialect::Proxyless };
        let limits = Limits { response_bytes: if setting & 8 != 0 { 1 } else { LIMITS.response_bytes }, ..LIMITS };
        let cache = Fake::default().cache();
        let scope = NodeScope { dialect, ..NodeScope::default() };
        let session = Session::new(cache.seat(scope, &Arc::default()), form, explained, limits);
        let mut world = Self {
            cache,
            session,
            form,
            explained,
            revision: 1,
            editions: BTreeMap::new(),
            published: Fake::default(),
            names: BTreeMap::new(),
            ever: BTreeSet::new(),
            returned: (false, false),
            types: Default::default(),
            last_nonce: 0,
            now: Instant::now(),
            late: false,
            warming: BTreeSet::new(),
            refuses: false,
        };
        if setting & 16 != 0 {
            let all = Kind::ALL.into_iter().flat_map(|kind| REAL.map(|name| ((kind, name), 1)));
            world.editions = all.collect();
            world.publish();
        }
        world
    }

    fn event(&mut self, event: u8, bytes: &mut impl Iterator<Item = u8>) -> Result<(), Refused> {
        let mut more = || bytes.next().unwrap_or_default();
        match event & 0x0f {
            0..=6 => {
                let (kind, how) = (Kind::ALL[usize::from(event >> 4 & 3)], more());
                let asked = names(&mut more);
                let dropped = if how & 1 == 0 { names(&mut more) } else { Vec::new() };
                let error = (how & 6 == 6).then(|| Status { message: "no\n".repeat(how.into()), ..Status::default() });
                let nonce = self.nonce(kind, how >> 3);
                self.request(kind, nonce, asked, dropped, error, how & 0x80 != 0)?;
            }
            7..=10 => {
                for _ in 0..event >> 4 {
                    self.take();
                }
            }
            11 | 12 => {
                let (kind, name) = (Kind::ALL[usize::from(event >> 4 & 3)], REAL[usize::from(more() % 4)]);
                match more() % 4 {
                    0 => _ = self.editions.remove(&(kind, name)),
                    edition => _ = self.editions.insert((kind, name), edition.into()),
                }
                if event & 0x80 != 0 {
                    self.publish();
                }
            }
            13 => {
                if event & 0x80 != 0 {
                    self.wait();
                }
                self.publish();
            }
            14 => {
                let kind = Kind::ALL[usize::from(event >> 4 & 3)];
                if self.types[kind.index()].waiting {
                    self.answer(kind)?;
                }
            }
            _ => {
                let raw: Vec<u8> = bytes.by_ref().take(usize::from(event >> 4) * 4).collect();
                self.raw(&raw)?;
            }
        }
        Ok(())
    }

    /// The nonce that is due, an older one, one that never was, or none.
    fn nonce(&self, kind: Kind, how: u8) -> String {
        match how & 7 {
            0 => String::new(),
            1 => self.last_nonce.to_string(),
            2 => self.last_nonce.saturating_sub(1).to_string(),
            3 => "nonsense".to_owned(),
            _ => self.types[kind.index()].nonce.clone(),
        }
    }

    fn publish(&mut self) {
        self.revision += 1;
        for kind in Kind::ALL {
            for name in REAL {
                let before = std::mem::take(&mut self.published);
                let edition = self.editions.get(&(kind, name)).copied();
                self.published = match edition {
                    Some(edition) if names_clusters(kind) => {
                        let named = REAL[edition as usize % REAL.len()];
                        self.names.insert((kind, name), [named.to_owned()].into());
                        before.naming(kind, name, edition, &[named])
                    }
                    Some(edition) => before.with(kind, name, edition),
                    None => before.without(kind, name),
                };
            }
        }
        self.published.publish(&self.cache, &self.revision.to_string());
        let all = Kind::ALL.into_iter().flat_map(|kind| REAL.map(|name| (kind, name)));
        let found = all.filter_map(|(kind, name)| Some((kind, name, self.now(kind, name)?)));
        self.ever.extend(found.collect::<Vec<_>>());
    }

    /// Bytes of any sort in the place of a request.
    fn raw(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        match self.form {
            Form::State => {
                let Ok(read) = DiscoveryRequest::decode(bytes) else { return Ok(()) };
                let Some(kind) = Kind::from_type_url(&read.type_url) else {
                    return self.session.state_request(read).map(drop);
                };
                self.request(kind, read.response_nonce, read.resource_names, Vec::new(), read.error_detail, false)
            }
            Form::Delta => {
                let Ok(read) = DeltaDiscoveryRequest::decode(bytes) else { return Ok(()) };
                self.session.delta_request(DeltaDiscoveryRequest { type_url: String::new(), ..read }).map(drop)
            }
        }
    }

    /// Says something; the model takes it as the protocol does.
    fn request(
        &mut self,
        kind: Kind,
        nonce: String,
        asked: Vec<String>,
        dropped: Vec<String>,
        error: Option<Status>,
        has: bool,
    ) -> Result<(), Refused> {
        let refusal = error.is_some();
        if has && self.form == Form::State && kind == Kind::Cluster && !self.types[kind.index()].asked {
            self.returned = (true, true);
        }
        let (response_nonce, error_detail, type_url) = (nonce.clone(), error, kind.type_url().to_owned());
        let mut has_already = BTreeMap::new();
        let outcome = match self.form {
            Form::State => self.session.state_request(DiscoveryRequest {
                type_url,
                response_nonce,
                error_detail,
                resource_names: asked.clone(),
                version_info: if has { "7".to_owned() } else { String::new() },
                ..DiscoveryRequest::default()
            }),
            Form::Delta => {
                if has && !self.types[kind.index()].asked {
                    has_already = asked.iter().map(|name| (name.clone(), self.said_version(kind, name))).collect();
                }
                self.session.delta_request(DeltaDiscoveryRequest {
                    type_url,
                    response_nonce,
                    error_detail,
                    resource_names_subscribe: asked.clone(),
                    resource_names_unsubscribe: dropped.clone(),
                    initial_resource_versions: has_already.clone().into_iter().collect(),
                    ..DeltaDiscoveryRequest::default()
                })
            }
        };
        let outcome = outcome?;
        let ty = &mut self.types[kind.index()];
        let answers = ty.waiting && nonce == ty.nonce;
        let (acked, nacked) = (outcome.acked, outcome.nacked.is_some());
        assert_eq!((acked && refusal, nacked && !refusal), (false, false), "{kind}");
        assert!(!answers || acked || nacked, "{kind}: an answer that nobody heard");
        let answers_older = self.form == Form::Delta && ty.older.contains(&nonce);
        assert!(answers || answers_older || !acked && !nacked, "{kind}: no answer");
        assert!(!outcome.nacked.is_some_and(|why| why.contains('\n')), "a line end in a log");
        if answers {
            (ty.waiting, ty.refused) = (false, refusal);
            ty.older.clear();
            ty.take(refusal);
        }
        // One that answers something older counts for nothing, with a state of the world.
        let newest = &self.types[kind.index()].nonce;
        let is_heard = nonce.is_empty() || newest.is_empty() || nonce == *newest;
        let counts = self.form == Form::Delta || is_heard;
        self.comes_with(kind, &asked, &has_already, has && counts);
        let ty = &mut self.types[kind.index()];
        match self.form {
            Form::State if is_heard => ty.state(kind, asked),
            Form::State => {}
            Form::Delta => ty.delta(kind, &asked, &dropped, has_already),
        }
        Ok(())
    }

    /// Whatever the client has from an earlier stream: unless it says that it is what there is, it may name anything.
    fn comes_with(&mut self, kind: Kind, asked: &[String], already: &BTreeMap<String, String>, has: bool) {
        let is_first = !self.types[kind.index()].asked;
        let concerns = kind == Kind::Routes || kind == Kind::Listener && !self.is_envoy();
        if !concerns || !is_first || !has {
            return;
        }
        for name in asked.iter().filter(|name| *name != "*") {
            let now = self.now(kind, name);
            let is_newest = self.form == Form::Delta && now.as_deref() == already.get(name).map(String::as_bytes);
            let named = self.names.iter().find(|((of, known), _)| *of == kind && known == name).map(|(_, names)| names);
            let names = match named.filter(|_| is_newest) {
                Some(names) => names.clone(),
                None => REAL.map(str::to_owned).into(),
            };
            let is_gone = now.is_none();
            self.types[kind.index()].used.insert(name.clone(), Used { names, is_newest, is_gone });
        }
    }

    /// A cluster is taken from the client that is no more: nothing names it that is in use in the place of something newer.
    fn is_needless(&self, cluster: &str) {
        let refuses = self.session.status(false).iter().any(|status| !status.refused.is_empty());
        for kind in [Kind::Listener, Kind::Routes] {
            for (name, used) in &self.types[kind.index()].used {
                let needs = !used.is_newest && used.names.contains(cluster) && (refuses || !used.is_gone);
                assert!(!needs, "{cluster} is taken away, and {kind} {name:?} in use names it");
            }
        }
    }

    /// What a client that was connected before would say to have of it: what there is, or something else.
    fn said_version(&self, kind: Kind, name: &str) -> String {
        match self.now(kind, name) {
            Some(version) if self.revision.is_multiple_of(2) => String::from_utf8_lossy(&version).into_owned(),
            _ => "nonsense".to_owned(),
        }
    }

    /// Answers the last response of a type, with the subscription that stands.
    fn answer(&mut self, kind: Kind) -> Result<(), Refused> {
        let ty = &self.types[kind.index()];
        let names = if self.form == Form::State { ty.names.clone() } else { Vec::new() };
        let refuses = self.refuses && names_clusters(kind);
        let error = refuses.then(|| Status { message: "no".to_owned(), ..Status::default() });
        self.request(kind, ty.nonce.clone(), names, Vec::new(), error, false)
    }

    /// Listeners and routes change and the client refuses them all, while one cluster after the other vanishes.
    fn refuse_for_good(&mut self) -> Result<(), Refused> {
        self.refuses = true;
        for gone in REAL {
            let referrers = self.editions.iter_mut().filter(|((kind, _), _)| names_clusters(*kind));
            referrers.for_each(|(_, edition)| *edition += 1);
            self.editions.remove(&(Kind::Cluster, gone));
            self.publish();
            for _ in 0..SETTLED {
                self.answer_all()?;
                if !self.take() {
                    break;
                }
            }
        }
        self.refuses = false;
        Ok(())
    }

    /// What the control plane would send under a name now: a version, or bytes.
    fn now(&self, kind: Kind, name: &str) -> Option<Vec<u8>> {
        let scope = self.session.scope();
        let resource = self.published.resource(scope, kind, name)?;
        Some(match self.form {
            Form::Delta => Version::of(&resource, scope).to_string().into_bytes(),
            Form::State => resource.encode(scope).encode_to_vec(),
        })
    }

    /// Takes the next response, if one may be sent.
    fn take(&mut self) -> bool {
        let response = self.session.next(self.now);
        assert!(self.late || !self.session.is_late(), "late, and no time has passed");
        // It has caught up: the order holds again.
        self.late &= self.session.is_late();
        let Some(response) = response else { return false };
        let (type_url, nonce, errors) = match &response {
            Response::State(r) => (&r.type_url, &r.nonce, &r.resource_errors),
            Response::Delta(r) => (&r.type_url, &r.nonce, &r.resource_errors),
        };
        let kind = Kind::from_type_url(type_url).expect("a type that was asked for");
        let number: u64 = nonce.parse().expect("a number");
        assert!(number > self.last_nonce, "a nonce of before");
        self.last_nonce = number;
        let ty = &self.types[kind.index()];
        assert!(ty.asked, "nobody asked for a {kind}");
        assert!(!ty.waiting || self.late && kind == Kind::Cluster, "a second {kind} before the first is answered");
        if self.is_envoy() && !self.late && matches!(kind, Kind::Listener | Kind::Routes) {
            assert!(!self.types[Kind::Cluster.index()].waiting, "{kind} before the clusters are in use");
        }
        assert!(self.explained || errors.is_empty(), "errors for a client that reads none");
        let missing: Vec<String> = errors.iter().map(name_of).collect();
        for name in &missing {
            assert!(ty.explicit.contains(name), "{name} is missing, and nobody asked for it by name");
        }
        self.read(kind, &response, missing);
        let ty = &mut self.types[kind.index()];
        let before = std::mem::replace(&mut ty.nonce, nonce.clone());
        ty.older.extend(Some(before).filter(|_| ty.waiting));
        (ty.waiting, ty.refused) = (true, false);
        true
    }

    fn read(&mut self, kind: Kind, response: &Response, missing: Vec<String>) {
        let sent: Vec<(String, Vec<u8>)> = match response {
            Response::State(r) => {
                let named = |any: &bytes::Bytes| {
                    let read = Any::decode(any.clone()).expect("an Any");
                    (codec::resource_name(&r.type_url, &read).expect("it has a name"), read.encode_to_vec())
                };
                r.resources.iter().map(named).collect()
            }
            Response::Delta(r) => {
                r.resources.iter().map(|r| (r.name.clone(), r.version.clone().into_bytes())).collect()
            }
        };
        let whole = self.form == Form::State && kind.is_full_state();
        for (name, held) in &sent {
            let ty = &self.types[kind.index()];
            assert!(ty.covers(name), "{kind} {name}: sent and not subscribed to");
            let before = ty.held.get(name);
            let now = self.now(kind, name);
            let kept = whole && now.is_none() && before == Some(held);
            // Who was away is told of what vanished, once, and of its endpoints.
            let may_know = if kind == Kind::Cluster { self.returned.1 } else { self.returned.0 && !whole };
            let was = |(of, known, bytes): &(Kind, &str, Vec<u8>)| *of == kind && known == name && bytes == held;
            // An Envoy has the endpoints that its clusters wait for as they were.
            let awaited = kind == Kind::Endpoints && self.is_envoy() && self.types[Kind::Cluster.index()].waiting;
            let brought_back = (may_know || awaited) && now.is_none() && self.ever.iter().any(was);
            assert!(kept || brought_back || now.as_ref() == Some(held), "{kind} {name}: not what there is");
        }
        let is_first_list = self.returned.1 && kind == Kind::Cluster;
        self.returned.1 &= kind != Kind::Cluster;
        let names: BTreeSet<&String> = sent.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), sent.len(), "a name twice in one response");
        let ty = &mut self.types[kind.index()];
        let before: Vec<String> = ty.held.keys().cloned().collect();
        if let Response::Delta(r) = response {
            for name in &r.removed_resources {
                assert!(
                    ty.covers(name) || ty.held.contains_key(name),
                    "{kind} {name}: removed and never subscribed to"
                );
                assert!(!names.contains(name), "{name} is sent and removed");
                ty.lose(name);
            }
        }
        if whole {
            let gone: Vec<String> = ty.held.keys().filter(|name| !names.contains(name)).cloned().collect();
            gone.iter().for_each(|name| ty.lose(name));
        }
        for name in &missing {
            assert!(!names.contains(name), "{name} is sent and missing");
            ty.lose(name);
        }
        let lost: Vec<String> = before.into_iter().filter(|name| !ty.held.contains_key(name)).collect();
        let gone = lost.iter().map(|name| (name.clone(), None));
        let named = |name: &str| self.names.iter().find(|((of, known), _)| *of == kind && *known == name);
        let offered = sent.iter().map(|(name, _)| (name.clone(), named(name).map(|(_, names)| names.clone())));
        ty.offered = if names_clusters(kind) { gone.chain(offered).collect() } else { Vec::new() };
        for (name, held) in sent {
            ty.absent.remove(&name);
            let before = ty.held.insert(name.clone(), held);
            match kind {
                Kind::Cluster if ty.held.get(&name) != before.as_ref() => _ = self.warming.insert(name),
                Kind::Endpoints => _ = self.warming.remove(&name),
                Kind::Cluster | Kind::Listener | Kind::Routes => {}
            }
        }
        let vanished =
            lost.iter().filter(|name| kind == Kind::Cluster && !is_first_list && self.now(kind, name).is_none());
        vanished.for_each(|name| self.is_needless(name));
        let [clusters, endpoints, ..] = &self.types;
        self.warming.retain(|name| clusters.held.contains_key(name) && !endpoints.absent.contains(name));
    }

    fn is_envoy(&self) -> bool {
        self.session.scope().dialect == Dialect::Envoy
    }

    /// Waits for as long as anything is held back.
    fn wait(&mut self) {
        self.now += PATIENCE;
        self.late = true;
    }

    /// What operators see of the stream is what the client did.
    fn check(&self) {
        let status = self.session.status(true);
        assert_eq!(status.len(), self.types.iter().filter(|ty| ty.asked).count());
        for status in status {
            let ty = &self.types[Kind::from_type_url(status.type_url).expect("a type").index()];
            assert_eq!((status.wildcard, status.subscribed), (ty.wildcard, ty.explicit.len()), "{}", status.type_url);
            assert_eq!((status.waiting, status.nack.is_some()), (ty.waiting, ty.refused), "{}", status.type_url);
        }
    }

    /// The client keeps the rules from now on.
    fn settle(&mut self) -> Result<(), Refused> {
        // What the client refused keeps what its older self may refer to; somebody mends it.
        let referrers = self.editions.iter_mut().filter(|((kind, _), _)| matches!(kind, Kind::Listener | Kind::Routes));
        referrers.for_each(|(_, edition)| *edition += 10);
        self.publish();
        let (mut responses, mut waited) = (0, false);
        loop {
            self.answer_all()?;
            if self.take() {
                responses += 1;
                assert!(responses < SETTLED, "responses without end");
            } else if waited {
                break;
            } else {
                // That there are none cannot be said in every form.
                let there_are = |name: &String| self.now(Kind::Endpoints, name).is_some();
                let waits = self.types[Kind::Cluster.index()].waiting;
                assert!(
                    !waits || self.form == Form::State && !self.warming.iter().all(there_are),
                    "{:?} wait for endpoints that there are, or it can be told that there are none",
                    self.warming
                );
                self.wait();
                waited = true;
            }
        }
        self.check();
        for kind in Kind::ALL {
            self.has_what_it_asks_for(kind);
        }
        Ok(())
    }

    /// Answers what came; clusters, as an Envoy, when there are endpoints for all, which it asks for.
    fn answer_all(&mut self) -> Result<(), Refused> {
        for kind in [Kind::Endpoints, Kind::Listener, Kind::Routes, Kind::Cluster] {
            let warms = kind == Kind::Cluster && self.is_envoy() && !self.warming.is_empty();
            if self.types[kind.index()].waiting && !warms {
                self.answer(kind)?;
            }
        }
        let endpoints = &self.types[Kind::Endpoints.index()];
        let wanted: Vec<String> = self.warming.difference(&endpoints.explicit).cloned().collect();
        if !self.is_envoy() || wanted.is_empty() {
            return Ok(());
        }
        let nonce = endpoints.nonce.clone();
        let names = match self.form {
            Form::State => endpoints.names.iter().cloned().chain(wanted).collect(),
            Form::Delta => wanted,
        };
        self.request(Kind::Endpoints, nonce, names, Vec::new(), None, false)
    }

    fn has_what_it_asks_for(&self, kind: Kind) {
        let ty = &self.types[kind.index()];
        let told = self.explained || self.form == Form::Delta || kind.is_full_state();
        for name in REAL.iter().filter(|name| ty.covers(name)) {
            match self.now(kind, name) {
                Some(now) => assert_eq!(ty.held.get(*name), Some(&now), "{kind} {name}: not the newest"),
                // Endpoints and routes of the world have no way to go, and what only a star covers is not explained.
                None if told && (self.form == Form::Delta || kind.is_full_state() || ty.explicit.contains(*name)) => {
                    assert!(!ty.held.contains_key(*name), "{kind} {name}: it is gone and the client has it");
                }
                None => {}
            }
        }
        if ty.asked && (self.form == Form::Delta || self.explained && !kind.is_full_state()) {
            for name in ty.explicit.iter().filter(|name| self.now(kind, name).is_none()) {
                assert!(ty.absent.contains(name), "{kind} {name}: nobody said that it does not exist");
            }
        }
    }

    fn leave(self) {
        drop(self.session);
        assert_eq!(self.cache.size().0, 0, "something is left behind");
    }
}

impl Type {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.explicit.contains(name)
    }

    /// The client has answered: it uses all of it, or, of what it refused, every second one if there are several.
    fn take(&mut self, refused: bool) {
        let offered = std::mem::take(&mut self.offered);
        let alone = offered.len() == 1;
        for (place, (name, names)) in offered.into_iter().enumerate() {
            let takes = !refused || !alone && place % 2 == 0;
            match (names, takes) {
                (Some(names), true) => _ = self.used.insert(name, Used { names, is_newest: !refused, is_gone: false }),
                (None, true) if !refused => _ = self.used.remove(&name),
                (names, _) => {
                    if let Some(used) = self.used.get_mut(&name) {
                        (used.is_newest, used.is_gone) = (false, names.is_none());
                    }
                }
            }
        }
    }

    fn lose(&mut self, name: &str) {
        self.held.remove(name);
        self.absent.insert(name.to_owned());
    }

    /// What the client no longer asks for it forgets.
    fn forget(&mut self) {
        let Self { wildcard, explicit, held, absent, used, .. } = self;
        used.retain(|name, _| *wildcard || explicit.contains(name));
        held.retain(|name, _| *wildcard || explicit.contains(name));
        absent.retain(|name| explicit.contains(name));
    }

    /// A list of names replaces the last one.
    fn state(&mut self, kind: Kind, names: Vec<String>) {
        self.asked = true;
        self.named |= !names.is_empty();
        self.wildcard = names.iter().any(|name| name == "*") || kind.is_full_state() && names.is_empty() && !self.named;
        self.explicit = names.iter().filter(|name| *name != "*").cloned().collect();
        self.names = names;
        self.forget();
    }

    /// Names are added to the subscription, then others taken away.
    fn delta(&mut self, kind: Kind, asked: &[String], dropped: &[String], has: BTreeMap<String, String>) {
        let first = !std::mem::replace(&mut self.asked, true);
        let star = |names: &[String]| names.iter().any(|name| name == "*");
        self.wildcard |= star(asked) || first && kind.is_full_state() && asked.is_empty();
        self.explicit.extend(asked.iter().filter(|name| *name != "*").cloned());
        for name in dropped {
            self.explicit.remove(name);
        }
        self.wildcard &= !star(dropped);
        for (name, version) in has {
            self.held.insert(name, version.into_bytes());
        }
        self.forget();
    }
}

fn names_clusters(kind: Kind) -> bool {
    matches!(kind, Kind::Listener | Kind::Routes)
}

fn name_of(error: &ResourceError) -> String {
    error.resource_name.as_ref().map(|name| name.name.clone()).unwrap_or_default()
}

/// Up to three names.
fn names(more: &mut impl FnMut() -> u8) -> Vec<String> {
    let count = more() % 4;
    let mut name = || match more() {
        byte @ 0..=250 => NAMES[usize::from(byte) % NAMES.len()].to_owned(),
        byte => "x".repeat(usize::from(byte - 250) * 15),
    };
    (0..count).map(|_| name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus of the fuzzer. `UPDATE_CORPUS=1` writes its seeds anew; what a fuzzer finds is added by hand and stays.
    #[test]
    fn the_corpus_is_replayed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/session");
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(folder).unwrap();
            for i in 0..16 {
                std::fs::write(format!("{folder}/random-{i}"), drawn(i)).unwrap();
            }
        }
        let files = std::fs::read_dir(folder).unwrap();
        let played = files.map(|file| session(&std::fs::read(file.unwrap().path()).unwrap())).count();
        assert!(played >= 16, "{played} files");
    }

    /// A seed that fails is printed; its bytes belong into `corpus/session`.
    #[test]
    fn no_sequence_of_requests_breaks_the_protocol() {
        for seed in 0..3_000 {
            let data = drawn(seed);
            let played = std::panic::catch_unwind(|| session(&data));
            assert!(played.is_ok(), "seed {seed}: {data:?}");
        }
    }

    fn drawn(seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let length = random.usize(20..200);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }
}
