//! The state-of-the-world ADS protocol as a state machine: subscriptions, versions, nonces, ACK and
//! NACK, the does-not-exist timer (gRFC A27, A30, A40, A46, A53, A57).
//!
//! No socket, no task, no clock: `now` is an argument and requests are handed out to be sent. It knows
//! `Any`, type URL, name, version and nonce; what a resource means is the [`Codec`]'s business.
//!
//! ```text
//! subscribe/unsubscribe ─┐                     ┌─▶ keys that changed (for the cascade)
//!  opened/closed ────────┼──▶ Ads ─────────────┤
//!  response, expire ─────┘                     └─▶ take_request() … written()
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, ResourceError};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use tokio::time::Instant;

use super::entry::{Entry, Known, Standing};
use super::kind::{Key, Kind};

/// Longest error text of a NACK, in bytes.
const MAX_ERROR: usize = 8 << 10;

/// Gives names and values to the bytes of resources.
pub(crate) trait Codec {
    /// A decoded resource; cheap to clone.
    type Value: Clone + PartialEq;

    /// The resource's name and the resource without its wrapper.
    fn open(&self, kind: Kind, resource: Any) -> Result<(String, Any), String>;

    /// The value; the error names the resource and every field that is wrong.
    fn decode(&self, kind: Kind, resource: &Any) -> Result<Self::Value, String>;
}

/// One control plane as seen by the protocol.
pub(crate) struct Ads<C: Codec> {
    codec: C,
    node: Node,
    nonexistence: Duration,
    types: BTreeMap<Kind, TypeState<C::Value>>,
    /// Whether the node has been sent on this stream.
    introduced: bool,
    connected: bool,
    /// Resources whose state changed since the last look: what the report has to be told.
    touched: BTreeSet<Key>,
}

/// The state of one resource type.
struct TypeState<V> {
    entries: BTreeMap<String, Entry<V>>,
    /// Of the last response that was accepted as a whole; survives streams.
    version: String,
    /// Of the newest response on this stream.
    nonce: String,
    /// The newest response still has to be answered: `Some(Err)` refuses it.
    answer: Option<Result<(), String>>,
    /// Names of the last request on this stream.
    sent: Option<Vec<String>>,
}

impl<V> Default for TypeState<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), version: String::new(), nonce: String::new(), answer: None, sent: None }
    }
}

impl<C: Codec> Ads<C> {
    /// Nothing subscribed, not connected. `nonexistence` is how long a resource may stay away before
    /// it counts as not existing (gRFC A57: 15 s).
    pub(crate) fn new(codec: C, node: Node, nonexistence: Duration) -> Self {
        let types = Kind::ALL.into_iter().map(|kind| (kind, TypeState::default())).collect();
        Self { codec, node, nonexistence, types, introduced: false, connected: false, touched: BTreeSet::new() }
    }

    /// Wants a resource. Its state may be known at once if somebody else wanted it before.
    pub(crate) fn subscribe(&mut self, key: &Key) {
        let entries = &mut self.state(key.kind).entries;
        match entries.get_mut(&key.name) {
            Some(entry) => entry.wanted = true,
            None => {
                entries.insert(key.name.clone(), Entry::new());
                self.touched.insert(key.clone());
            }
        }
    }

    /// No longer wants a resource.
    pub(crate) fn unsubscribe(&mut self, key: &Key) {
        if let Some(entry) = self.state(key.kind).entries.get_mut(&key.name) {
            // Kept until the control plane is told: it answers a renewed wish only if it heard of the end.
            entry.wanted = false;
            entry.deadline = None;
        }
    }

    /// What is known of a resource.
    pub(crate) fn known(&self, key: &Key) -> Known<'_, C::Value> {
        self.entry(key).map_or(Known::Pending, Entry::known)
    }

    /// The whole state of a resource, for reports.
    pub(crate) fn entry(&self, key: &Key) -> Option<&Entry<C::Value>> {
        self.types.get(&key.kind)?.entries.get(&key.name).filter(|entry| entry.wanted)
    }

    /// Resources whose state changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.touched)
    }

    /// A new stream is open: everything is asked for anew, with the versions we hold.
    pub(crate) fn opened(&mut self) {
        self.connected = true;
        self.introduced = false;
        for (kind, state) in &mut self.types {
            state.nonce.clear();
            state.answer = None;
            state.sent = None;
            Self::forget_unwanted(*kind, state, &mut self.touched);
        }
    }

    /// The stream is gone: no timer runs, everything known stays.
    pub(crate) fn closed(&mut self) {
        self.connected = false;
        for state in self.types.values_mut() {
            state.answer = None;
            state.entries.values_mut().for_each(|entry| entry.deadline = None);
        }
    }

    /// Whether there is something to send on the open stream.
    pub(crate) fn has_request(&self) -> bool {
        self.connected && self.types.values().any(TypeState::has_request)
    }

    /// The next request to send. Plain subscriptions come before answers, so that a response is
    /// acknowledged after what it refers to has been asked for.
    pub(crate) fn take_request(&mut self) -> Option<(Kind, DiscoveryRequest)> {
        if !self.connected {
            return None;
        }
        let due = |state: &TypeState<_>, answers: bool| state.has_request() && state.answer.is_some() == answers;
        let kind = [false, true]
            .into_iter()
            .find_map(|answers| Kind::ALL.into_iter().find(|kind| due(&self.types[kind], answers)))?;
        let node = (!std::mem::replace(&mut self.introduced, true)).then(|| self.node.clone());
        let state = self.types.get_mut(&kind).expect("every kind has its state");
        Self::forget_unwanted(kind, state, &mut self.touched);
        let names: Vec<String> = state.entries.keys().cloned().collect();
        state.sent = Some(names.clone());
        let error_detail = match state.answer.take() {
            Some(Err(message)) => {
                Some(rpc::Status { code: tonic::Code::InvalidArgument as i32, message, details: Vec::new() })
            }
            _ => None,
        };
        let request = DiscoveryRequest {
            version_info: state.version.clone(),
            node,
            resource_names: names,
            type_url: kind.type_url().to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        Some((kind, request))
    }

    /// The last request of this type has been written: its timers begin.
    pub(crate) fn written(&mut self, kind: Kind, now: Instant) {
        let after = self.nonexistence;
        self.state(kind).entries.values_mut().for_each(|entry| entry.asked(now, after));
    }

    /// Takes a response.
    pub(crate) fn response(&mut self, response: DiscoveryResponse) -> Taken {
        let Some(kind) = Kind::of_type_url(&response.type_url) else {
            tracing::warn!(type_url = %response.type_url, "ignored an xDS response of a type that was never asked for");
            return Taken::default();
        };
        let mut round = Round::new(kind, response.version_info);
        for (index, resource) in response.resources.into_iter().enumerate() {
            self.resource(&mut round, index, resource);
        }
        for error in response.resource_errors {
            self.resource_error(&mut round, error);
        }
        if kind.is_full_state() {
            self.deletions(&mut round);
        }
        let state = self.state(kind);
        state.nonce = response.nonce;
        let refused = !round.problems.is_empty();
        state.answer = Some(if !refused {
            state.version = round.version;
            Ok(())
        } else {
            let text = bounded(round.problems.join("; "));
            tracing::warn!(%kind, version = %round.version, error = %text, "refused an xDS response; the last good stays");
            Err(text)
        });
        self.touched.extend(round.changed.iter().cloned());
        Taken { changed: round.changed, refused }
    }

    /// Times out resources that stayed away; gives them.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Key> {
        let mut expired = Vec::new();
        for (kind, state) in &mut self.types {
            for (name, entry) in &mut state.entries {
                if entry.deadline.is_some_and(|at| at <= now) {
                    entry.missing(format!("the control plane did not send it within {:?}", self.nonexistence));
                    expired.push(Key::new(*kind, name.clone()));
                }
            }
        }
        self.touched.extend(expired.iter().cloned());
        expired
    }

    /// When [`Ads::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.types.values().flat_map(|state| state.entries.values()).filter_map(|entry| entry.deadline).min()
    }

    fn state(&mut self, kind: Kind) -> &mut TypeState<C::Value> {
        self.types.get_mut(&kind).expect("every kind has its state")
    }

    fn resource(&mut self, round: &mut Round, index: usize, resource: Any) {
        let opened = contained(|| self.codec.open(round.kind, resource));
        let (name, inner) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                round.problems.push(format!("resource {index}: {reason}"));
                return;
            }
        };
        round.present.insert(name.clone());
        let codec = &self.codec;
        let entries = &mut self.types.get_mut(&round.kind).expect("every kind has its state").entries;
        // A control plane may send more than was asked for; nobody reads it, so nobody judges it.
        let Some(entry) = entries.get_mut(&name).filter(|entry| entry.wanted) else { return };
        if entry.standing == Standing::DoesNotExist && entry.value().is_some() {
            tracing::info!(kind = %round.kind, %name, "a deleted resource came back");
        }
        let decode = |resource: &Any| contained(|| codec.decode(round.kind, resource));
        let outcome = entry.offer(&round.version, inner, decode);
        if let Err(reason) = outcome {
            round.problems.push(reason);
        }
        round.changed.push(Key::new(round.kind, name));
    }

    /// A resource that the control plane cannot give (xRFC TP3): known at once instead of by timer.
    fn resource_error(&mut self, round: &mut Round, error: ResourceError) {
        let Some(name) = error.resource_name.map(|name| name.name) else { return };
        let reason = error.error_detail.map(|status| status.message).filter(|message| !message.is_empty());
        round.present.insert(name.clone());
        let Some(entry) = self.state(round.kind).entries.get_mut(&name).filter(|entry| entry.wanted) else { return };
        entry.missing(reason.unwrap_or_else(|| "the control plane says that it does not exist".to_owned()));
        round.changed.push(Key::new(round.kind, name));
    }

    /// Resources that a full-state response left out. One that was never there may just be on its way:
    /// its timer decides.
    fn deletions(&mut self, round: &mut Round) {
        let kind = round.kind;
        for (name, entry) in &mut self.state(kind).entries {
            let gone = entry.wanted && entry.value().is_some() && !round.present.contains(name);
            if gone && entry.standing != Standing::DoesNotExist {
                tracing::warn!(%kind, %name, "the control plane deleted a resource in use; the last good stays");
                entry.missing("the control plane deleted it; the last good one stays in use".to_owned());
                round.changed.push(Key::new(kind, name.clone()));
            }
        }
    }

    fn forget_unwanted(kind: Kind, state: &mut TypeState<C::Value>, touched: &mut BTreeSet<Key>) {
        state.entries.retain(|name, entry| {
            if !entry.wanted {
                touched.insert(Key::new(kind, name.clone()));
            }
            entry.wanted
        });
    }
}

impl<V> TypeState<V> {
    fn has_request(&self) -> bool {
        let wanted = || self.entries.iter().filter(|(_, entry)| entry.wanted).map(|(name, _)| name);
        match &self.sent {
            // An empty list as the first word on a stream would mean "everything".
            None => wanted().next().is_some(),
            Some(sent) => self.answer.is_some() || !wanted().eq(sent.iter()),
        }
    }
}

/// What came of a response.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Resources whose state changed.
    pub(crate) changed: Vec<Key>,
    /// Whether it will be answered with a NACK.
    pub(crate) refused: bool,
}

/// The handling of one response.
struct Round {
    kind: Kind,
    version: String,
    present: BTreeSet<String>,
    changed: Vec<Key>,
    problems: Vec<String>,
}

impl Round {
    fn new(kind: Kind, version: String) -> Self {
        Self { kind, version, present: BTreeSet::new(), changed: Vec::new(), problems: Vec::new() }
    }
}

/// Runs a codec so that a bug in it costs one resource and not the process.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the decoder panicked on it, which is a bug in mesh; please report it".to_owned()))
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
