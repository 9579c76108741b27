//! What the client holds and how it stands with its control planes, for people.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::policy::Unenforced;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::ads::{Ads, Entry, Failure, Good, InForce, Session, Standing};
use super::kind::Kind;
use super::message::{Body, Name, Variant};
use super::resource::{self, PolicyCodec, Resource, Value};
use super::saved::SnapshotStatus;
use super::worker::State;
use crate::cascade::Joined;
use crate::clock;

/// How the client stands with its control planes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Address of the control plane in use.
    pub server: String,
    /// Whether a stream to it is open.
    pub connected: bool,
    /// Since when there has been no stream to it that vouches for what is in use, in seconds; none while there is one.
    /// A stream vouches for it once a response has come on it, or when 15 s have passed without one being owed: where nothing
    /// was asked on it till then, until something is, and once more 15 s after that.
    pub unconfirmed_seconds: Option<u64>,
    /// The last failure of a connection or stream to it; none once a later stream vouches for what is in use.
    pub last_error: Option<String>,
    /// Streams opened so far, to all control planes.
    pub streams_opened: u64,
    /// Responses received so far, of all control planes.
    pub responses: u64,
    /// Responses refused so far, of all control planes.
    pub nacks: u64,
    /// Every control plane of the bootstrap.
    pub servers: Vec<ServerStatus>,
    /// The last good configuration on disk; none if it is not kept.
    pub snapshot: Option<SnapshotStatus>,
}

/// How the client stands with one control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Address.
    pub server: String,
    /// Whether a stream is open.
    pub connected: bool,
    /// Variant of the protocol on the current or next stream.
    pub variant: Variant,
    /// The last failure of a connection or stream; none once a later stream vouches for what is in use.
    pub last_error: Option<String>,
    /// Streams opened so far.
    pub streams_opened: u64,
    /// Responses received so far.
    pub responses: u64,
    /// Responses refused so far.
    pub nacks: u64,
}

pub(super) fn status(state: &State, now: Instant) -> Status {
    let ads = &state.ads;
    let (active, sessions) = (ads.active(), ads.sessions());
    let sum = |count: fn(&Session) -> u64| sessions.iter().map(count).sum();
    Status {
        server: active.server.clone(),
        connected: active.connected,
        unconfirmed_seconds: active.unconfirmed_since.map(|since| now.saturating_duration_since(since).as_secs()),
        last_error: active.last_error.clone(),
        streams_opened: sum(|session| session.streams_opened),
        responses: sum(|session| session.responses),
        nacks: sum(|session| session.nacks),
        servers: sessions.iter().map(server).collect(),
        snapshot: state.snapshot.as_ref().map(|account| account.status(ads.saved_in_use(), now)),
    }
}

fn server(session: &Session) -> ServerStatus {
    ServerStatus {
        server: session.server.clone(),
        connected: session.connected,
        variant: session.variant,
        last_error: session.last_error.clone(),
        streams_opened: session.streams_opened,
        responses: session.responses,
        nacks: session.nacks,
    }
}

/// Time since the Unix epoch; in JSON as seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_secs().serialize(serializer)
    }
}

/// Gives moments their place in the time of the world: the same moment always the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    moment: Instant,
    time: Duration,
}

impl Epoch {
    pub(super) fn new(now: Instant) -> Self {
        Self { moment: now, time: clock::since_epoch() }
    }

    fn time_of(self, moment: Instant) -> Time {
        let later = self.time + moment.saturating_duration_since(self.moment);
        Time(later.saturating_sub(self.moment.saturating_duration_since(moment)))
    }
}

/// One resource. Values are shared: taking a row copies pointers and no policy.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) type_url: &'static str,
    pub(super) version: Name,
    pub(super) state: Standing,
    /// When the value came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_updated: Option<Time>,
    /// Seconds since the value came.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Complaint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<Value>,
    unenforced: Arc<[Unenforced]>,
}

/// What is wrong with a resource.
#[derive(Debug, Serialize)]
pub(super) struct Complaint {
    pub(super) reason: String,
    /// The version that was refused.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) version: Name,
    /// When it was first said.
    since: Time,
    age_seconds: u64,
    /// When it was last said.
    #[serde(skip)]
    pub(super) last: Time,
    /// What was refused.
    #[serde(skip)]
    pub(super) refused: Option<Body>,
}

/// Accepted fields that are not enforced, by type.
pub(super) fn unenforced(state: &State) -> [(&'static str, usize); 4] {
    let mut counts = KINDS.map(|kind| (kind, 0));
    let joined = joined(state);
    for (kind, name, entry) in state.ads.entries() {
        let lines = unenforced_of(kind, name, entry, &joined);
        counts[kind.index()].1 += lines.iter().map(|line| line.fields).sum::<usize>();
    }
    counts
}

/// What is used of a resource: nothing of one that does not fit what it is to be joined with.
fn in_use(entry: &Entry<Resource>) -> Option<&Good<Resource>> {
    entry.good.as_deref().filter(|_| entry.misfit().is_none())
}

/// What of listeners in force is not enforced, together with the routes that they name: what is said of these by themselves
/// is with them.
fn joined(state: &State) -> HashMap<&str, Arc<[Unenforced]>> {
    let lines = |joined: &Joined| {
        let routes = state.ads.entry(&joined.routes).and_then(in_use);
        let of_routes = routes.map(|good| &*good.value.unenforced).unwrap_or_default();
        let is_there = |line: &&Unenforced| {
            let field = line.field.split_once(".rds.").map(|(_, field)| field);
            field.is_none_or(|field| of_routes.iter().all(|of_routes| of_routes.field != field))
        };
        joined.unenforced.iter().filter(is_there).cloned().collect()
    };
    state.cascade.joined().map(|joined| (&*joined.listener.name, lines(joined))).collect()
}

fn unenforced_of(
    kind: Kind,
    name: &str,
    entry: &Entry<Resource>,
    joined: &HashMap<&str, Arc<[Unenforced]>>,
) -> Arc<[Unenforced]> {
    let joined = joined.get(name).filter(|_| kind == Kind::Listener);
    let of_itself = || in_use(entry).map(|good| good.value.unenforced.clone());
    joined.cloned().or_else(of_itself).unwrap_or_default()
}

/// How many resources are in each state, by type; states have the names of gRFC A78 and A88.
pub(super) fn standings(ads: &Ads<PolicyCodec>) -> Vec<(&'static str, &'static str, usize)> {
    let mut counts: Vec<_> =
        KINDS.into_iter().flat_map(|kind| STATES.into_iter().map(move |state| (kind, state, 0))).collect();
    for (kind, _, entry) in ads.entries() {
        let is_cached = entry.misfit().map_or(entry.value().is_some(), |in_force| in_force == InForce::Before);
        let cached = usize::from(is_cached);
        let state = match entry.standing {
            Standing::Requested => 0,
            Standing::Acked => 1,
            Standing::Nacked => 2 + cached,
            Standing::DoesNotExist => 4 + cached,
            Standing::ReceivedError => 6 + cached,
            Standing::TimedOut => 8,
        };
        counts[kind.index() * STATES.len() + state].2 += 1;
    }
    counts
}

/// By [`Kind::index`].
const KINDS: [&str; 4] = ["listener", "routes", "cluster", "endpoints"];
const STATES: [&str; 9] = [
    "requested",
    "acked",
    "nacked",
    "nacked_but_cached",
    "does_not_exist",
    "does_not_exist_but_cached",
    "received_error",
    "received_error_but_cached",
    "timeout",
];

/// Every resource, by type and name.
pub(super) fn rows(state: &State, now: Instant, epoch: Epoch) -> Vec<Row> {
    let joined = joined(state);
    let row = |(kind, name, entry): (Kind, &Name, &Entry<Resource>)| {
        let good = in_use(entry);
        Row {
            kind,
            name: name.clone(),
            type_url: kind.type_url(),
            version: good.map(|good| good.version.clone()).unwrap_or_default(),
            state: entry.standing,
            last_updated: good.map(|good| epoch.time_of(good.since)),
            age_seconds: good.map(|good| age(good.since, now)),
            error: entry.failure.as_ref().map(|failure| complaint(entry, failure, now, epoch)),
            value: good.map(|good| good.value.value.clone()),
            unenforced: unenforced_of(kind, name, entry, &joined),
        }
    };
    let mut rows: Vec<Row> = state.ads.entries().map(row).collect();
    rows.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    rows
}

fn complaint(entry: &Entry<Resource>, failure: &Failure, now: Instant, epoch: Epoch) -> Complaint {
    // It is held, and not used.
    let misfit = entry.value().filter(|_| failure.misfit.is_some()).map(|resource| {
        let any = resource::encode(&resource.value);
        Body::new(&any.type_url, any.value)
    });
    Complaint {
        reason: failure.reason.clone(),
        version: failure.version.clone(),
        since: epoch.time_of(failure.since),
        age_seconds: age(failure.since, now),
        last: epoch.time_of(failure.last),
        refused: misfit.or_else(|| failure.refused.as_ref().map(|refused| refused.body.clone())),
    }
}

fn age(since: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(since).as_secs()
}
