//! [`Session`]: what one stream has asked for, been sent and accepted, in either form of the protocol.
//! No I/O: requests go in, what is due comes from the stream's seat, responses come out.
//!
//! ```text
//! request ─ stale nonce ──→ state of the world: nothing · delta: its subscriptions alone
//!         ├ ACK / NACK ───→ recorded; the next response of the type may go
//!         └ names ────────→ due, or no longer subscribed to
//! due → CDS (vanished ones kept) → EDS → LDS → RDS → accepted → vanished clusters → vanished endpoints
//! ```
//!
//! One response of a type at a time: what becomes due before it is answered is gathered by name, so a
//! client that is slow, or never answers, costs what it subscribes to and no more, and gets the newest
//! state when it does. A type also waits for those before it in the order, so that nothing is referred
//! to that was not sent. Endpoints refer to nothing and wait for no cluster: an Envoy answers clusters
//! when they are in use, for which it needs their endpoints. For that answer its listeners and routes
//! wait, or they would name what it does not use yet; but not longer than [`PATIENCE`].
//!
//! With a state of the world a client that comes back says what it names, and not what it has: its first list of clusters takes
//! away what vanished meanwhile, unless that is known still. What of it is not has the list wait for the listeners and routes, as
//! long.

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(feature = "fuzzing"), expect(unreachable_pub, reason = "only the fuzzer reaches it from outside"))]
pub mod fuzzing;
mod known;
mod request;
mod returned;
mod status;
mod uses;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::ResourceError;
use prost::Message;
use tokio::time::Instant;

use self::known::{Held, Type};
use self::uses::Needed;
use super::cache::{Mailbox, Seat};
use super::encoded::Encoded;
use super::message::{self, DeltaResource, DeltaResponse, StateResponse};
use super::{Kind, Limits, federated};
use crate::translate::{Dialect, NodeScope};

pub(crate) use self::request::{Outcome, PIECE, Refused};

/// For so long listeners and routes wait until an Envoy has its clusters in use, or clusters until a client that came back has
/// its listeners and routes. An Envoy waits for endpoints and certificates for as long as it takes, for `initial_fetch_timeout`
/// of its clusters is 0: one that never comes makes it late for good.
const PATIENCE: Duration = Duration::from_secs(15);

/// One stream's memory.
pub(crate) struct Session {
    seat: Seat,
    form: Form,
    /// Whether the client reads `resource_errors` (gRFC A88).
    explained: bool,
    limits: Limits,
    types: [Type; 4],
    last_nonce: u64,
    /// Since when an Envoy has not had in use all clusters that it was sent and the listeners and routes that waited for them,
    /// or clusters have waited for the routes of a client that came back.
    behind: Option<Instant>,
    /// Whether that has lasted for [`PATIENCE`].
    late: bool,
    /// The version of the clusters that the client has from an earlier stream of states of the world, if it was sent none on
    /// this one.
    came_back: Option<String>,
}

/// The two forms of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// State of the world.
    State,
    /// Incremental.
    Delta,
}

/// A response in the form of the stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Response {
    State(StateResponse),
    Delta(DeltaResponse),
}

/// What is due of one type.
#[derive(Default)]
struct Plan {
    /// New or changed.
    make: Vec<Arc<Encoded>>,
    /// The client has it, and it does not exist any more.
    gone: Vec<Arc<str>>,
    /// The client asked for it, and it does not exist.
    missing: Vec<Arc<str>>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.make.is_empty() && self.gone.is_empty() && self.missing.is_empty()
    }
}

impl Session {
    /// `explained` = the client reads `resource_errors`.
    pub(crate) fn new(seat: Seat, form: Form, explained: bool, limits: Limits) -> Self {
        Self {
            seat,
            form,
            explained,
            limits,
            types: Default::default(),
            last_nonce: 0,
            behind: None,
            late: false,
            came_back: None,
        }
    }

    pub(crate) fn scope(&self) -> &NodeScope {
        self.seat.scope()
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Where the stream is woken when something is due.
    pub(crate) fn mailbox(&self) -> Arc<Mailbox> {
        self.seat.mailbox()
    }

    /// The next response that may be sent now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Response> {
        // Before what has become due since, for which nothing has waited yet.
        self.catch_up();
        for (ty, due) in self.types.iter_mut().zip(self.seat.take_due()) {
            ty.due.extend(due);
        }
        self.bring_back();
        if self.takes_away_too_soon() {
            self.behind.get_or_insert(now);
        }
        self.late = self.behind.is_some_and(|since| now >= since + PATIENCE);
        for kind in Kind::ALL {
            if !self.types[kind.index()].is_due() {
                continue;
            }
            if self.waits(kind) {
                match kind {
                    Kind::Cluster => continue,
                    Kind::Endpoints | Kind::Listener | Kind::Routes => return None,
                }
            }
            let plan = self.plan(kind);
            let owed = self.types[kind.index()].owed;
            if (owed || !plan.is_empty())
                && let Some(response) = self.send(kind, plan, now)
            {
                return Some(response);
            }
        }
        // Of clusters that could not be looked at yet some may have vanished: their endpoints go after them.
        if self.types[Kind::Cluster.index()].is_due() { None } else { self.take_away(now) }
    }

    /// When to ask for the next response again even if nothing has become due and nothing was answered.
    pub(crate) fn late_at(&self, now: Instant) -> Option<Instant> {
        self.behind.map(|since| since + PATIENCE).filter(|late| *late > now)
    }

    /// Whether a client has been behind for so long that nothing waits for it any more.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_late(&self) -> bool {
        self.late
    }

    /// Whether that is an Envoy which has not taken its clusters into use.
    pub(crate) fn lacks_clusters(&self) -> bool {
        let withholds = self.types[Kind::Cluster.index()].in_flight.is_some();
        self.late && withholds && self.scope().dialect == Dialect::Envoy
    }

    /// An Envoy that has its clusters in use, and nothing that waited for them, is not behind; nor is a client that came back
    /// and has its listeners and routes.
    fn catch_up(&mut self) {
        let [clusters, _, listeners, routes] = &self.types;
        let nothing_waits = clusters.in_flight.is_none() && !listeners.is_due() && !routes.is_due();
        if nothing_waits && !self.takes_away_too_soon() {
            (self.behind, self.late) = (None, false);
        }
    }

    /// Whether what is due of a type must wait for an answer.
    fn waits(&self, kind: Kind) -> bool {
        let clusters = &self.types[Kind::Cluster.index()];
        let clusters_wait = clusters.in_flight.is_some() && !self.late;
        match kind {
            Kind::Cluster => clusters_wait || !self.late && self.takes_away_too_soon(),
            Kind::Endpoints => self.types[kind.index()].in_flight.is_some(),
            Kind::Listener | Kind::Routes => {
                let needs_clusters = self.scope().dialect == Dialect::Envoy || clusters.is_due();
                self.types[kind.index()].in_flight.is_some() || clusters_wait && needs_clusters
            }
        }
    }

    /// Takes away what vanished, once the client has answered all listeners and routes that it was sent. What older ones may name
    /// with which it goes on stays.
    fn take_away(&mut self, now: Instant) -> Option<Response> {
        let waits = |kind: &Kind| self.types[kind.index()].in_flight.is_some();
        let is_due = |kind: &Kind| !self.types[kind.index()].vanished.is_empty() && !self.waits(*kind);
        if [Kind::Listener, Kind::Routes].iter().any(waits) || ![Kind::Cluster, Kind::Endpoints].iter().any(is_due) {
            return None;
        }
        let needed = self.needed_by_older()?;
        for kind in [Kind::Cluster, Kind::Endpoints] {
            if self.waits(kind) {
                return None;
            }
            let vanished = &mut self.types[kind.index()].vanished;
            let gone: Vec<_> = vanished.extract_if(.., |name| !needed.contains(kind, name)).collect();
            if gone.is_empty() {
                continue;
            }
            if kind == Kind::Cluster && self.form == Form::State {
                self.let_endpoints_go(&gone);
            }
            return self.send(kind, Plan { gone, ..Plan::default() }, now);
        }
        None
    }

    /// The clusters that a client may use which goes on with older listeners or routes than it was sent; `None` = it may be any.
    fn needed_by_older(&self) -> Option<Needed> {
        let mut needed = Needed::default();
        let referrers = [Kind::Listener, Kind::Routes].map(|kind| &self.types[kind.index()]);
        let lags = referrers.iter().any(|ty| ty.lags());
        (!lags || referrers.iter().all(|ty| ty.add_needed(&mut needed))).then_some(needed)
    }

    /// Looks at what is due of a type; forgets what needs no response. Clusters and endpoints that
    /// vanished are set aside until nothing refers to them any more.
    fn plan(&mut self, kind: Kind) -> Plan {
        let awaited = self.awaited(kind);
        let ty = &mut self.types[kind.index()];
        ty.renew_refused(|name| self.seat.resource(kind, name).is_none());
        let mut plan = Plan::default();
        let mut kept = BTreeSet::new();
        for name in std::mem::take(&mut ty.due) {
            ty.vanished.remove(&name);
            // It is looked at anew whether it can be sent.
            ty.unsent.remove(&Some(name.clone()));
            if ty.wildcard {
                ty.known.entry(name.clone()).or_default();
            }
            let Some(known) = ty.known.get_mut(&name) else { continue };
            let is_awaited = awaited.contains(&*name) && matches!(known.held, Held::Nothing | Held::Outdated);
            let mut now = self.seat.resource(kind, &name);
            // Who reads errors can be told in either form.
            if now.is_none() && is_awaited && !self.explained {
                now = self.seat.former(kind, &name);
                if now.is_some() && self.form == Form::Delta {
                    ty.vanished.insert(name.clone());
                }
            }
            match (now, known.held.version()) {
                (Some(now), Some(held)) if now.version == held => {
                    // What it refused it was sent, and has not.
                    if !known.is_in_question() {
                        ty.uses.is_that(&name, &now.naming);
                    }
                    continue;
                }
                (Some(now), _) => plan.make.push(now),
                (None, _) if known.held.is_some() && (self.form == Form::Delta || kind.is_full_state()) => {
                    if matches!(kind, Kind::Cluster | Kind::Endpoints) && !is_awaited {
                        ty.vanished.insert(name);
                        continue;
                    }
                    plan.gone.push(name.clone());
                }
                (None, held) => {
                    // Of state of the world, RDS and EDS have no way to say this but an error.
                    let say = self.explained || self.form == Form::Delta;
                    let told = matches!(known.held, Held::Absent) && held.is_none();
                    if !known.explicit {
                        ty.known.remove(&name);
                        continue;
                    }
                    if told || !say {
                        known.held = Held::Absent;
                        continue;
                    }
                    plan.missing.push(name.clone());
                }
            }
            kept.insert(name);
        }
        ty.due = kept;
        if plan.is_empty() && ty.unsent.contains_key(&None) && ty.is_newest(|name| self.seat.resource(kind, name)) {
            ty.unsent.remove(&None);
        }
        plan
    }

    /// The endpoints without which an Envoy does not take clusters into use that it was sent. Those that vanish before they are
    /// sent go as they were, or it is told that there are none: with neither it would wait for good, and its listeners and
    /// routes for it.
    fn awaited(&self, kind: Kind) -> HashSet<String> {
        let [clusters, endpoints, ..] = &self.types;
        let overtaken = clusters.overtaken.iter().map(|(_, names)| names);
        let names = clusters.in_flight.iter().chain(overtaken).flatten();
        let is_gone = |name: &Arc<str>| self.seat.resource(kind, name).is_none();
        // Mostly none is, and with state of the world all clusters are in flight at once.
        let concerns = kind == Kind::Endpoints && self.scope().dialect == Dialect::Envoy;
        if !concerns || clusters.in_flight.is_none() || !endpoints.due.iter().any(is_gone) {
            return HashSet::new();
        }
        names.map(|name| federated::endpoints_of(name).into()).collect()
    }

    /// Makes the response and records it. `None` = what there is to say is more than any client takes: what the client has
    /// stays good.
    fn send(&mut self, kind: Kind, mut plan: Plan, now: Instant) -> Option<Response> {
        let clusters_of_envoy = kind == Kind::Cluster && self.scope().dialect == Dialect::Envoy;
        let mut brought_back = if kind == Kind::Cluster { self.brought_back() } else { Vec::new() };
        let explained = self.explained;
        let Self { types, seat, last_nonce, limits, .. } = self;
        let ty = &mut types[kind.index()];
        let owed = std::mem::take(&mut ty.owed);
        let everything = self.form == Form::State && kind.is_full_state();
        let mut room = Room { bytes: limits.response_bytes, is_empty: true };
        let (resources, gone);
        if everything {
            ty.unsent.clear();
            (resources, gone) = (ty.everything(|name| seat.resource(kind, name)), std::mem::take(&mut plan.gone));
            gone.iter().for_each(|name| ty.gone(name));
            brought_back.retain(|name| seat.let_go(kind, name));
            let bytes = resources.iter().map(|encoded| encoded.any.len()).sum();
            if bytes > limits.largest_response {
                ty.due.clear();
                ty.too_large(kind, None, bytes, limits.largest_response);
                return None;
            }
            // Each part repeats everything, and has some room for reasons.
            room.bytes /= 4;
        } else {
            ty.look_again(|name| plan.gone.contains(name) || plan.make.iter().any(|made| made.name == *name));
            for encoded in plan.make.extract_if(.., |encoded| encoded.any.len() > limits.largest_response) {
                ty.due.remove(&encoded.name);
                ty.too_large(kind, Some(encoded.name.clone()), encoded.any.len(), limits.largest_response);
            }
            if plan.is_empty() && !owed {
                return None;
            }
            resources = room.take(&mut plan.make, |encoded| encoded.any.len());
            gone = room.take(&mut plan.gone, |name| REPEATED + name.len());
            gone.iter().for_each(|name| ty.gone(name));
        }
        let mut errors = Vec::new();
        let missing = room.take(&mut plan.missing, |name| {
            if !explained {
                return REPEATED + name.len();
            }
            errors.push(message::not_found(name, seat.why_missing(kind, name)));
            errors.last().map_or(0, |error| REPEATED + error.encoded_len())
        });
        errors.truncate(missing.len());
        if matches!(kind, Kind::Cluster | Kind::Endpoints) {
            ty.vanished.extend(plan.gone);
        }
        missing.iter().for_each(|name| ty.sent(name, Held::Absent));
        for name in &gone {
            ty.due.remove(name);
        }
        *last_nonce += 1;
        let before = std::mem::replace(&mut ty.nonce, last_nonce.to_string());
        ty.version_sent = seat.version();
        for encoded in &resources {
            let held = if everything { Held::Bytes(encoded.clone()) } else { Held::Version(encoded.version) };
            ty.sent(&encoded.name, held);
            ty.uses.sent(&encoded.name, &encoded.naming);
        }
        ty.vanished.extend(brought_back);
        ty.awaits(self.form, before, resources.iter().map(|encoded| encoded.name.clone()).collect());
        if ty.vanished.is_empty() && ty.due.is_empty() {
            seat.disclaim(kind);
        }
        if clusters_of_envoy {
            self.renew_endpoints(if everything { &plan.make } else { &resources });
            self.behind.get_or_insert(now);
        }
        self.catch_up();
        let removed = if explained { gone } else { [gone, missing].concat() };
        Some(self.respond(kind, &resources, &removed, errors))
    }

    /// An Envoy makes a changed cluster anew, waits for its endpoints before it takes it into use, and does not
    /// ask for those it has already: they are sent again.
    fn renew_endpoints(&mut self, clusters: &[Arc<Encoded>]) {
        let ty = &mut self.types[Kind::Endpoints.index()];
        for cluster in clusters {
            let name = federated::endpoints_of(&cluster.name);
            if let Some(known) = ty.known.get_mut(&*name) {
                if known.held.is_some() {
                    known.held = Held::Outdated;
                }
                ty.due.insert(Arc::from(&*name));
            }
        }
    }

    fn respond(
        &self,
        kind: Kind,
        resources: &[Arc<Encoded>],
        removed: &[Arc<str>],
        resource_errors: Vec<ResourceError>,
    ) -> Response {
        let ty = &self.types[kind.index()];
        match self.form {
            Form::State => Response::State(StateResponse {
                version_info: ty.version_sent.to_string(),
                resources: resources.iter().map(|encoded| encoded.any.clone()).collect(),
                type_url: kind.type_url().to_owned(),
                nonce: ty.nonce.clone(),
                control_plane: message::control_plane(),
                resource_errors,
            }),
            Form::Delta => Response::Delta(DeltaResponse {
                system_version_info: ty.version_sent.to_string(),
                resources: resources.iter().map(|encoded| delta_resource(encoded)).collect(),
                type_url: kind.type_url().to_owned(),
                nonce: ty.nonce.clone(),
                removed_resources: removed.iter().map(|name| name.to_string()).collect(),
                control_plane: message::control_plane(),
                resource_errors,
            }),
        }
    }
}

fn delta_resource(encoded: &Encoded) -> DeltaResource {
    let (name, version) = (encoded.name.to_string(), encoded.version.to_string());
    DeltaResource { version, resource: encoded.any.clone(), name }
}

/// Bytes around each item of a list.
const REPEATED: usize = 8;

/// What a response has room for where it may be sent in parts: one thing at least.
struct Room {
    bytes: usize,
    is_empty: bool,
}

impl Room {
    /// As many as fit; the others are left, and stay due.
    fn take<T>(&mut self, from: &mut Vec<T>, mut bytes: impl FnMut(&T) -> usize) -> Vec<T> {
        let fits = |item: &&T| {
            let bytes = bytes(item);
            let fits = std::mem::take(&mut self.is_empty) || bytes <= self.bytes;
            self.bytes = self.bytes.saturating_sub(bytes);
            fits
        };
        let count = from.iter().take_while(fits).count();
        from.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests;
