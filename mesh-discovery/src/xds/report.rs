//! What the client holds and how it stands with its control planes, for people.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::policy::Unenforced;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::ads::{Ads, Entry, Failure, Session, Standing};
use super::kind::Kind;
use super::message::{Body, Name, Variant};
use super::resource::{PolicyCodec, Resource, Value};
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
    /// The version that was refused, or is not in force.
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
    let pairs = pairs(state);
    for (kind, name, entry) in state.ads.entries() {
        let lines = unenforced_of(entry, pairs.get(&(kind, &**name)));
        counts[kind.index()].1 += lines.iter().map(|line| line.fields).sum::<usize>();
    }
    counts
}

/// A server's listener together with the routes that it names, by the listener.
type Pairs<'s> = HashMap<(Kind, &'s str), Pair<'s>>;

struct Pair<'s> {
    /// What of it is not enforced, but for what is said of the routes by themselves.
    unenforced: Vec<Unenforced>,
    /// Why the two are not in force, though each is good by itself, and since when.
    misfit: Option<(&'s str, Instant)>,
}

fn pairs(state: &State) -> Pairs<'_> {
    state.cascade.joined().map(|joined| ((Kind::Listener, &*joined.listener.name), pair(state, joined))).collect()
}

fn pair<'s>(state: &State, joined: &'s Joined) -> Pair<'s> {
    let good = |key| state.ads.entry(key).and_then(|entry| entry.good.as_deref());
    let routes = good(&joined.routes);
    let of_routes = routes.map(|good| &*good.value.unenforced).unwrap_or_default();
    let of_routes: HashSet<&str> = of_routes.iter().map(|line| &*line.field).collect();
    let is_there =
        |line: &&Unenforced| line.field.split_once(".rds.").is_none_or(|(_, field)| !of_routes.contains(field));
    let mut unenforced: Vec<Unenforced> = joined.unenforced.iter().filter(is_there).cloned().collect();
    // The later of the two met the other.
    let since = good(&joined.listener).into_iter().chain(routes).map(|good| good.since).max();
    let misfit = joined.misfit.as_deref().zip(since);
    unenforced.extend(misfit.map(|_| Unenforced::new(format!("listener {}", joined.listener.name), "rds", MISFIT)));
    Pair { unenforced, misfit }
}

const MISFIT: &str = "it and its routes do not fit together, and are not in force: `error` says why";

fn unenforced_of<'s>(entry: &'s Entry<Resource>, pair: Option<&'s Pair<'_>>) -> &'s [Unenforced] {
    let of_itself = || entry.value().map(|resource| &*resource.unenforced).unwrap_or_default();
    pair.map_or_else(of_itself, |pair| &pair.unenforced)
}

/// How many resources are in each state, by type; states have the names of gRFC A78 and A88.
pub(super) fn standings(ads: &Ads<PolicyCodec>) -> Vec<(&'static str, &'static str, usize)> {
    let mut counts: Vec<_> =
        KINDS.into_iter().flat_map(|kind| STATES.into_iter().map(move |state| (kind, state, 0))).collect();
    for (kind, _, entry) in ads.entries() {
        let cached = usize::from(entry.value().is_some());
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
    let age = |since: Instant| now.saturating_duration_since(since).as_secs();
    let pairs = pairs(state);
    let refused = |failure: &Failure| Complaint {
        reason: failure.reason.clone(),
        version: failure.version.clone(),
        since: epoch.time_of(failure.since),
        age_seconds: age(failure.since),
        last: epoch.time_of(failure.last),
        refused: failure.refused.as_ref().map(|refused| refused.body.clone()),
    };
    let row = |(kind, name, entry): (Kind, &Name, &Entry<Resource>)| {
        let pair = pairs.get(&(kind, &**name));
        let misfit = |(reason, since): (&str, Instant)| Complaint {
            reason: reason.to_owned(),
            version: entry.good.as_ref().map(|good| good.version.clone()).unwrap_or_default(),
            since: epoch.time_of(since),
            age_seconds: age(since),
            last: epoch.time_of(since),
            refused: None,
        };
        Row {
            kind,
            name: name.clone(),
            type_url: kind.type_url(),
            version: entry.good.as_ref().map(|good| good.version.clone()).unwrap_or_default(),
            state: entry.standing,
            last_updated: entry.good.as_ref().map(|good| epoch.time_of(good.since)),
            age_seconds: entry.good.as_ref().map(|good| age(good.since)),
            error: entry.failure.as_deref().map(refused).or_else(|| pair?.misfit.map(misfit)),
            value: entry.value().map(|resource| resource.value.clone()),
            unenforced: unenforced_of(entry, pair).into(),
        }
    };
    let mut rows: Vec<Row> = state.ads.entries().map(row).collect();
    rows.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    rows
}
