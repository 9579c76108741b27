//! Writes the snapshot: soon after a first answer, for a job may not run for long, then some time after a change, once an hour
//! so that it does not grow old while nothing changes, and when it is asked to before the end; only while some control plane
//! vouches for what it gave. What another one gave, which is away, keeps its age meanwhile, and what an earlier run knew of it
//! stays: an outage takes nothing out and makes nothing younger.
//!
//! What an earlier run knew and this one did not ask for stays too, till it is too old: a job that asks for little takes nothing
//! from the next. Else what is kept is what is in use: where something newer is on its way, or another control plane's, what was
//! published before it, which is whole. Encoding and writing are off the worker, on the runtime's threads for blocking work.
#![allow(clippy::disallowed_methods, reason = "blocking work of a worker, and the system's clock")]

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use bytes::Bytes;
use mesh_core::policy::InboundRoutes;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use super::{Account, Record, encode, mark, replace};
use crate::bootstrap::name::normalise;
use crate::cascade::{Cascade, Published, Unsettled};
use crate::xds::ads::{Ads, Entry, SAVED, ServerId};
use crate::xds::kind::{Key, Kind};
use crate::xds::message::Name;
use crate::xds::resource::{self, PolicyCodec, Resource, Value};

/// How often an unchanged snapshot is written again.
const REFRESH: Duration = Duration::from_secs(3600);

/// The longest wait for the first write.
const FIRST: Duration = Duration::from_secs(1);

/// Decides when to write, and writes.
pub(in crate::xds) struct Saver {
    owner: u128,
    delay: Duration,
    timer: Pin<Box<Sleep>>,
    /// Something changed since the last write.
    dirty: bool,
    /// Some control plane vouches for what it gave, as of the last look.
    confirmed: bool,
    writing: Option<JoinHandle<std::io::Result<()>>>,
    /// Nothing has been written yet.
    is_first: bool,
    /// How often it could not be written since it last was.
    failures: u32,
    /// Who waits until what has changed is written.
    asked: Vec<oneshot::Sender<String>>,
}

impl Saver {
    pub(in crate::xds) fn new(owner: u128, delay: Duration) -> Self {
        Self {
            owner,
            delay,
            timer: Box::pin(tokio::time::sleep(REFRESH)),
            dirty: false,
            confirmed: false,
            writing: None,
            is_first: true,
            failures: 0,
            asked: Vec::new(),
        }
    }

    /// A control plane changed something.
    pub(in crate::xds) fn changed(&mut self) {
        if !std::mem::replace(&mut self.dirty, true) {
            self.wait(if self.is_first { self.delay.min(FIRST) } else { self.delay });
        }
    }

    /// Beyond what the clock can tell there is only the writing once an hour.
    fn wait(&mut self, delay: Duration) {
        if let Some(at) = Instant::now().checked_add(delay) {
            self.timer.as_mut().reset(at);
        }
    }

    /// Writes at once what has changed; `done` is dropped when that is over, and hears why it could not be done.
    pub(in crate::xds) fn ask(&mut self, done: oneshot::Sender<String>) {
        self.asked.push(done);
    }

    /// Tells whoever asked; who has gone meanwhile needs no answer.
    fn fail(&mut self, error: &str) {
        self.asked.drain(..).for_each(|asked| drop(asked.send(error.to_owned())));
    }

    /// Moves on; gives whether it did something.
    pub(in crate::xds) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ads: &Ads<PolicyCodec>,
        cascade: &Cascade,
        account: &mut Account,
    ) -> bool {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(done) = Pin::new(writing).poll(cx) else { return false };
            self.writing = None;
            match done.map_err(std::io::Error::other).flatten() {
                Ok(()) => {
                    account.writes += 1;
                    account.error = None;
                    self.failures = 0;
                }
                Err(error) => {
                    tracing::warn!(path = %account.config.path.display(), %error, "the snapshot of the last good configuration cannot be written");
                    let error = format!("cannot be written: {error}");
                    account.error = Some(error.clone());
                    self.dirty = true;
                    // It is tried again, ever more seldom while it fails.
                    let times = 1 << self.failures.min(12);
                    self.failures += 1;
                    self.wait(self.delay.max(FIRST).saturating_mul(times).min(REFRESH));
                    self.fail(&error);
                }
            }
            return true;
        }
        let before = std::mem::replace(&mut self.confirmed, ads.is_confirmed_in_part());
        if !self.confirmed {
            self.asked.clear();
            return false;
        }
        if !before {
            // It has just begun to speak, and what it said during an outage of ours is on its way. One that comes and goes
            // puts nothing off that is to be written soon.
            if self.dirty && self.timer.deadline() <= Instant::now() {
                self.wait(self.delay.min(FIRST));
            }
            self.changed();
        }
        let Some(key) = account.key.clone() else {
            self.fail(account.error.as_deref().unwrap_or_default());
            return false;
        };
        if !self.dirty {
            self.asked.clear();
        }
        if self.timer.as_mut().poll(cx).is_pending() && self.asked.is_empty() {
            return false;
        }
        self.timer.as_mut().reset(Instant::now() + REFRESH);
        self.dirty = false;
        self.is_first = false;
        let (now, seconds) = (Instant::now(), wall_clock());
        let held = Look { ads, cascade, read_age: account.read_age(now), now, seconds }.held();
        let (owner, path) = (self.owner, account.config.path.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || replace(&path, &file(&held, &key, owner, seconds))));
        true
    }
}

/// A resource that is to be kept.
#[derive(Clone)]
struct Held {
    key: Key,
    giver: u64,
    version: Name,
    confirmed: u64,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Value(Value),
    Bytes(Bytes),
}

/// What there is to be kept, seen at one moment.
struct Look<'a> {
    ads: &'a Ads<PolicyCodec>,
    cascade: &'a Cascade,
    /// How old the oldest of the file was that this run began with.
    read_age: Duration,
    now: Instant,
    /// The same in seconds since the Unix epoch.
    seconds: u64,
}

impl Look<'_> {
    /// What is in use, by pointer, and what an earlier run knew and no control plane has spoken of since. What has yet to
    /// end by itself is not kept: on disk it would not.
    fn held(&self) -> Vec<Held> {
        let entries = self.ads.entries();
        let newest = |key: &Key, entry: &Entry<Resource>| self.newest(key, entry);
        let mut unsettled: Vec<Unsettled<'_>> = self.cascade.unsettled().collect();
        let given: Vec<Held> = if unsettled.is_empty() {
            entries.filter_map(|(kind, name, entry)| newest(&Key::new(kind, name.clone()), entry)).collect()
        } else {
            let settled: HashSet<&Key> = self.cascade.settled().collect();
            let of = |key: &&Key| self.ads.entry(key).and_then(|entry| newest(key, entry));
            let mut given: HashMap<Key, Held> =
                settled.iter().filter_map(|key| Some(((*key).clone(), of(key)?))).collect();
            unsettled.drain(..).for_each(|unsettled| self.add(&mut given, &unsettled));
            given.into_values().collect()
        };
        let unanswered = |(key, _): &(&Key, &Record)| self.ads.entry(key).is_none_or(|entry| entry.giver().is_none());
        let of_before = self.ads.saved().filter(unanswered).map(|(key, record)| Held {
            key: key.clone(),
            giver: record.giver,
            version: record.version.clone(),
            confirmed: record.confirmed,
            content: Content::Bytes(record.body.bytes.clone()),
        });
        given.into_iter().chain(of_before).collect()
    }

    /// A resource as it was given last. What the control plane has taken back or replaced by something bad has been vouched
    /// for till then.
    fn newest(&self, key: &Key, entry: &Entry<Resource>) -> Option<Held> {
        let (good, giver) = (entry.good.as_ref()?, entry.giver()?);
        let doubted = entry.failure.as_ref().map(|failure| failure.doubted);
        self.is_kept(key).then(|| Held {
            key: key.clone(),
            giver: self.mark(giver),
            version: good.version.clone(),
            confirmed: self.confirmed(giver, doubted),
            content: Content::Value(good.value.value.clone()),
        })
    }

    /// What is published of one subscription while it is not settled: all of it, or nothing where something else is kept
    /// under one of the names, for one would be joined with the other.
    fn add(&self, given: &mut HashMap<Key, Held>, unsettled: &Unsettled<'_>) {
        let published = unsettled.published();
        let fits = |published: &Published| match given.get(&published.key).map(|held| &held.content) {
            Some(Content::Value(value)) => is_same(value, &published.value),
            _ => true,
        };
        if published.iter().all(fits) {
            for Published { key, value } in published {
                if let Some(held) = self.published(&key, value, unsettled).filter(|_| self.is_kept(&key)) {
                    given.entry(key).or_insert(held);
                }
            }
        }
    }

    /// A resource as it was published.
    fn published(&self, key: &Key, value: Value, unsettled: &Unsettled<'_>) -> Option<Held> {
        let entry = self.ads.entry(key);
        let newest = entry.and_then(|entry| entry.good.as_ref()).filter(|good| is_same(&good.value.value, &value));
        let authority = self.ads.authority_of(&key.name)?;
        let origin = unsettled.giver(authority)?;
        let giver = if origin == SAVED { self.ads.saved_giver(authority)? } else { self.mark(origin) };
        if newest.is_some() {
            // What an earlier run held is kept as it was. Where two gave the same, it is of the one who gave what it stands with.
            return Some(Held { giver, ..self.newest(key, entry?)? });
        }
        if matches!(&value, Value::Routes(routes) if resource::serves(routes)) {
            // Of a server's routes whoever dials by them does not know all.
            return None;
        }
        // Since when something else has been there; of what a listener is published with, too.
        let good = |key: &Key| self.ads.entry(key)?.good.as_deref();
        let routes = good(key).and_then(|good| named_routes(&good.value.value));
        let came = good(key).into_iter().chain(routes.as_ref().and_then(good)).map(|good| good.since);
        let replaced = came.max().unwrap_or(self.now);
        let confirmed = self.confirmed(origin, Some(replaced));
        Some(Held { key: key.clone(), giver, version: Name::default(), confirmed, content: Content::Value(value) })
    }

    fn mark(&self, giver: ServerId) -> u64 {
        mark(&self.ads.sessions()[usize::from(giver)].server)
    }

    /// When it was last vouched for what a control plane gave, if it has been in doubt since.
    fn confirmed(&self, giver: ServerId, doubted: Option<Instant>) -> u64 {
        let of_giver = match giver {
            SAVED => self.read_age,
            giver => self.ads.sessions()[usize::from(giver)].unconfirmed_for(self.now),
        };
        let of_doubt = doubted.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since));
        self.seconds.saturating_sub(of_giver.max(of_doubt).as_secs())
    }

    fn is_kept(&self, key: &Key) -> bool {
        !self.ads.ends(key)
    }
}

/// The routes that a server's listener names.
fn named_routes(listener: &Value) -> Option<Key> {
    match listener {
        Value::Listening(sent) => match &sent.policy.routes {
            InboundRoutes::Named(name) => Some(Key::new(Kind::Routes, &*normalise(name))),
            _ => None,
        },
        _ => None,
    }
}

/// Whether what is published is what is held.
fn is_same(held: &Value, published: &Value) -> bool {
    match (held, published) {
        (Value::Serving(sent), Value::Routes(routes)) => sent.policy == *routes,
        (Value::Listening(sent), Value::Inbound(listener)) => sent.policy == *listener,
        _ => held == published,
    }
}

/// The bytes of the file, written at `seconds`.
fn file(held: &[Held], key: &hmac::Key, owner: u128, seconds: u64) -> Vec<u8> {
    let body = |held: &Held| match &held.content {
        Content::Value(value) => resource::encode(value).value.into(),
        Content::Bytes(bytes) => bytes.clone(),
    };
    let bodies: Vec<Bytes> = held.iter().map(body).collect();
    let records = held
        .iter()
        .zip(&bodies)
        .map(|(held, body)| (held.key.kind, held.giver, held.confirmed, &*held.key.name, &*held.version, &body[..]));
    encode(records, key, owner, seconds)
}

/// Seconds since the Unix epoch.
pub(in crate::xds) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use mesh_core::policy::{Cluster, Discovery};

    use super::super::{Saved, SnapshotConfig, decode};
    use super::*;
    use crate::bootstrap::Node;
    use crate::cascade::SubscriptionId;
    use crate::codec;
    use crate::xds::ads::{Known, Server, Servers, Topology};
    use crate::xds::kind::Kind;
    use crate::xds::message::{Body, Resource, Response, Variant};

    const HOUR: Duration = Duration::from_secs(3600);
    const US: SubscriptionId = 1;
    /// One cluster of each authority, which have a control plane each.
    const CLUSTERS: [&str; 2] = ["x", "xdstp://other/envoy.config.cluster.v3.Cluster/y"];

    fn protocol(now: Instant) -> Ads<PolicyCodec> {
        let server = |name: &str| Server { name: name.to_owned(), features: Default::default(), variant: None };
        let servers = |id| Servers { ordered: vec![id], on_reachability_only: false };
        let topology = Topology {
            node: Arc::new(Node::default()),
            servers: vec![server("s0"), server("s1")],
            authorities: vec![servers(0), servers(1)],
            by_name: HashMap::from([("other".to_owned(), 1)]),
            resource_timeout: Duration::from_secs(15),
            transient_timeout: Duration::from_secs(30),
        };
        Ads::new(PolicyCodec::default(), topology, now)
    }

    /// The control plane is there and gives its cluster.
    fn give(ads: &mut Ads<PolicyCodec>, server: u16, now: Instant) {
        assert_eq!(ads.variant(server, now), Variant::Delta);
        ads.opened(server, now);
        while ads.take_request(server, now).is_some() {}
        let name = CLUSTERS[usize::from(server)];
        let cluster = Cluster { discovery: Discovery::OriginalDestination, ..Cluster::new(name.into()) };
        let any = codec::encode_cluster(&cluster);
        let body = Some(Body::new(&any.type_url, any.value));
        let resources = vec![Resource { name: name.to_owned(), version: "v1".to_owned(), ttl: None, body }];
        let type_url = Kind::Cluster.type_url().to_owned();
        ads.response(server, Response { type_url, resources, ..Default::default() }, now);
        ads.conclude();
        assert_eq!(ads.entry(&Key::new(Kind::Cluster, name)).unwrap().giver(), Some(server));
    }

    /// What a process that starts at `seconds` reads of a file written at `written`.
    fn read(ads: &Ads<PolicyCodec>, now: Instant, written: u64, seconds: u64) -> Saved {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let look = Look { ads, cascade: &Cascade::default(), read_age: Duration::ZERO, now, seconds: written };
        let bytes = file(&look.held(), &key, 7, written);
        decode(&bytes, &key, 7, (now, seconds), 24 * HOUR).unwrap().1
    }

    fn confirmed(saved: &Saved) -> [Option<u64>; 2] {
        CLUSTERS.map(|name| saved.get(&Key::new(Kind::Cluster, name)).map(|record| record.confirmed))
    }

    #[test]
    fn a_control_plane_that_stays_away_makes_what_others_gave_no_older() {
        let (mut now, hour) = (Instant::now(), HOUR.as_secs());
        let mut ads = protocol(now);
        for name in CLUSTERS {
            let _ = ads.want(US, Kind::Cluster, name);
        }
        give(&mut ads, 0, now);
        give(&mut ads, 1, now);
        assert!(ads.is_confirmed());

        // One goes away for most of a day. It is written all the same.
        ads.closed(1, None, now);
        now += 20 * HOUR;
        assert!(ads.is_confirmed_in_part() && !ads.is_confirmed());
        let day = 1_000_000;
        let both = read(&ads, now, day, day + 2 * hour);
        assert_eq!(confirmed(&both), [Some(day), Some(day - 20 * hour)]);
        assert_eq!(confirmed(&read(&ads, now, day, day + 5 * hour)), [Some(day), None], "each by its own age");

        // The next process: what is of the one that is still away serves, and gets no younger by being written again,
        // wanted or not.
        for wanted in [false, true] {
            let mut ads = protocol(now);
            ads.restore(both.clone());
            let _ = ads.want(US, Kind::Cluster, CLUSTERS[0]);
            give(&mut ads, 0, now);
            if wanted {
                assert!(matches!(ads.want(US, Kind::Cluster, CLUSTERS[1]).1, Known::Value(..)));
            }
            let later = day + 2 * hour;
            assert_eq!(confirmed(&read(&ads, now, later, later)), [Some(later), Some(day - 20 * hour)]);
            // Nobody who comes when it is too old is served.
            if !wanted {
                ads.expire(now + 2 * HOUR);
                assert!(matches!(ads.want(US, Kind::Cluster, CLUSTERS[1]).1, Known::Pending));
            }
        }

        // The control run: with all of them away, nothing is.
        ads.closed(0, None, now);
        assert!(!ads.is_confirmed_in_part());
    }

    #[test]
    fn what_a_short_run_asks_nothing_of_stays_for_the_next_one_till_it_is_too_old_or_asked_for() {
        let (now, day, hour) = (Instant::now(), 1_000_000, HOUR.as_secs());
        let (mut ads, [asked, other]) = (protocol(now), [CLUSTERS[0], "z"].map(|name| Key::new(Kind::Cluster, name)));
        let _ = ads.want(US, Kind::Cluster, &asked.name);
        give(&mut ads, 0, now);
        let mut of_before = read(&ads, now, day, day + hour);
        of_before.insert(other.clone(), of_before[&asked].clone());
        let confirmed = |ads: &Ads<PolicyCodec>, now, at| {
            let saved = read(ads, now, at, at);
            [&asked, &other].map(|key| saved.get(key).map(|record| record.confirmed))
        };

        let run = || {
            let mut ads = protocol(now);
            ads.restore(of_before.clone());
            let _ = ads.want(US, Kind::Cluster, &asked.name);
            give(&mut ads, 0, now);
            assert!(!ads.is_restored(), "it serves nobody");
            ads
        };
        let (mut ads, at) = (run(), day + 2 * hour);
        assert_eq!(confirmed(&ads, now, at), [Some(at), Some(day)]);
        ads.expire(now + 24 * HOUR);
        assert_eq!(confirmed(&ads, now, at), [Some(at), None], "too old");
        let mut ads = run();
        assert!(matches!(ads.want(US, Kind::Cluster, &other.name).1, Known::Pending));
        assert_eq!(confirmed(&ads, now, at), [Some(at), None], "the control plane's word counts from now on");
    }

    /// Moves on until nothing is being written.
    async fn write(saver: &mut Saver, ads: &Ads<PolicyCodec>, account: &mut Account) {
        std::future::poll_fn(|cx| {
            while saver.poll(cx, ads, &Cascade::default(), account) {}
            if saver.writing.is_some() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// A client with one control plane that has spoken, and where it is to keep that.
    fn begun(folder: &tempfile::TempDir, delay: Duration) -> (Ads<PolicyCodec>, Account, Saver) {
        let now = Instant::now();
        let mut ads = protocol(now);
        let _ = ads.want(US, Kind::Cluster, CLUSTERS[0]);
        give(&mut ads, 0, now);
        let config = SnapshotConfig { delay, ..SnapshotConfig::new(folder.path().join("folder").join("snapshot")) };
        let key = Some(hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]));
        (ads, Account { config, key, read: None, writes: 0, error: None }, Saver::new(7, delay))
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_told_to_whoever_asked_and_tried_again_ever_more_seldom() {
        let folder = tempfile::tempdir().unwrap();
        let (ads, mut account, mut saver) = begun(&folder, Duration::from_secs(10));
        let (done, mut over) = oneshot::channel();
        saver.changed();
        saver.ask(done);
        write(&mut saver, &ads, &mut account).await;
        assert!(over.try_recv().unwrap().contains("cannot be written"));
        // Changes do not make it be tried sooner.
        for (seconds, error) in [(9, false), (1, true), (19, false), (1, true), (39, false), (1, true)] {
            account.error = None;
            saver.changed();
            mesh_testkit::clock::pass(Duration::from_secs(seconds)).await;
            write(&mut saver, &ads, &mut account).await;
            assert_eq!(account.error.is_some(), error, "after {seconds} s more");
        }
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        mesh_testkit::clock::pass(Duration::from_secs(80)).await;
        write(&mut saver, &ads, &mut account).await;
        assert_eq!((account.writes, &account.error), (1, &None), "nothing had to change for that");

        // The control: what can be written is, and whoever asked hears of no error.
        let (done, mut over) = oneshot::channel();
        saver.changed();
        saver.ask(done);
        write(&mut saver, &ads, &mut account).await;
        assert_eq!((account.writes, over.try_recv()), (2, Err(oneshot::error::TryRecvError::Closed)));
        account.key = None;
        let (done, mut over) = oneshot::channel();
        (account.error, saver.asked) = (Some("its key is lost".to_owned()), vec![done]);
        write(&mut saver, &ads, &mut account).await;
        assert_eq!(over.try_recv().as_deref(), Ok("its key is lost"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_comes_and_goes_puts_off_no_write() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        let (mut ads, mut account, mut saver) = begun(&folder, Duration::from_secs(10));
        (saver.is_first, saver.confirmed) = (false, true);
        saver.changed();
        let mut writes = Vec::new();
        for step in 0..6 {
            match step {
                0 => {}
                step if step % 2 == 0 => give(&mut ads, 0, Instant::now()),
                _ => drop(ads.closed(0, None, Instant::now())),
            }
            write(&mut saver, &ads, &mut account).await;
            mesh_testkit::clock::pass(Duration::from_secs(3)).await;
            write(&mut saver, &ads, &mut account).await;
            writes.push(account.writes);
        }
        // It was away when the time came, after 10 s, and is there again after 12.
        assert_eq!(writes, [0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn what_was_taken_back_or_refused_since_grows_old() {
        let (begun, day) = (Instant::now(), 1_000_000);
        let refused = Some(Body::new(Kind::Cluster.type_url(), vec![0x0a, 0x01, b'x', 0x12, 0x02, 0xff, 0xff]));
        let bad = Resource { name: CLUSTERS[0].to_owned(), version: "v2".to_owned(), ttl: None, body: refused };
        let says = |resources: Vec<Resource>, removed: &[&str]| Response {
            type_url: Kind::Cluster.type_url().to_owned(),
            resources,
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let gone = says(vec![], &CLUSTERS[..1]);
        let bad = says(vec![bad], &[]);
        // The control: nothing was said of it.
        for said in [vec![], vec![gone.clone()], vec![bad.clone()], vec![gone.clone(), bad.clone()], vec![bad, gone]] {
            let mut ads = protocol(begun);
            let _ = ads.want(US, Kind::Cluster, CLUSTERS[0]);
            give(&mut ads, 0, begun);
            let mut now = begun;
            for response in &said {
                now += HOUR;
                ads.response(0, response.clone(), now);
                ads.conclude();
            }
            now += 20 * HOUR;
            let entry = ads.entry(&Key::new(Kind::Cluster, CLUSTERS[0])).unwrap();
            assert!(entry.giver().is_some() && entry.failure.is_some() != said.is_empty());
            // Since the first that was said against it.
            let age = if said.is_empty() { 0 } else { 19 + said.len() as u64 } * HOUR.as_secs();
            assert_eq!(confirmed(&read(&ads, now, day, day))[0], Some(day - age), "{said:?}");
        }
    }
}
