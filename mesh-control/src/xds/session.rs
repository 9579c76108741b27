//! [`Session`]: what one stream has asked for, been sent and accepted. Pure: requests and revisions go
//! in, responses come out.
//!
//! ```text
//! request ─ stale nonce ──────────────→ nothing
//!         ├ ACK / NACK ───────────────→ recorded; nothing is sent again
//!         └ new names ────────────────→ LDS, CDS: the whole set · RDS, EDS: the new names that exist
//! revision → CDS (vanished ones kept) → EDS → LDS → RDS → CDS (vanished ones gone), changes only
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::nodes::{NackStatus, TypeStatus};
use super::published::{Encoded, Published};
use super::{Kind, Limits};
use crate::translate::NodeScope;

/// As much of a NACK's text as is kept.
const MAX_NACK: usize = 2048;

/// One stream's memory.
pub(crate) struct Session {
    scope: Arc<NodeScope>,
    limits: Limits,
    published: Arc<Published>,
    subscriptions: [Subscription; 4],
    last_nonce: u64,
}

/// One type of one stream.
#[derive(Default)]
struct Subscription {
    /// Whether a request of this type has come.
    asked: bool,
    names: BTreeSet<String>,
    /// What the client was last sent under each name; for LDS and CDS all it has.
    sent: BTreeMap<String, Arc<Encoded>>,
    /// Nonce of the last response; empty = none was sent.
    nonce: String,
    version_sent: String,
    version_acked: String,
    nack: Option<NackStatus>,
}

/// What a request's arrival did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What to answer, if anything.
    pub(crate) response: Option<DiscoveryResponse>,
    /// The client refused the last response, for this reason.
    pub(crate) nacked: Option<String>,
}

/// A client asks for more than it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} names of type {type_url} on one stream; at most {limit} are served")]
pub(crate) struct TooManyNames {
    asked: usize,
    limit: usize,
    type_url: &'static str,
}

impl Session {
    pub(crate) fn new(scope: NodeScope, limits: Limits, published: Arc<Published>) -> Self {
        Self { scope: Arc::new(scope), limits, published, subscriptions: Default::default(), last_nonce: 0 }
    }

    /// Takes one request in.
    pub(crate) fn request(&mut self, request: DiscoveryRequest) -> Result<Outcome, TooManyNames> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            // A type this server does not have: the client waits, as with any name that does not exist.
            tracing::debug!(type_url = ?request.type_url, "a resource type that is not served");
            return Ok(Outcome::default());
        };
        if request.resource_names.len() > self.limits.names {
            let (asked, limit) = (request.resource_names.len(), self.limits.names);
            return Err(TooManyNames { asked, limit, type_url: kind.type_url() });
        }
        let subscription = &mut self.subscriptions[kind.index()];
        let mut outcome = Outcome::default();
        if !request.response_nonce.is_empty() {
            if request.response_nonce != subscription.nonce {
                // The client had not seen the newest response yet; it will answer that one too.
                return Ok(outcome);
            }
            outcome.nacked = subscription.acknowledge(&request);
        }
        let added = subscription.subscribe(request.resource_names);
        if let Some(added) = added {
            outcome.response = self.answer(kind, &added);
        }
        Ok(outcome)
    }

    /// The response to a changed subscription.
    fn answer(&mut self, kind: Kind, added: &[String]) -> Option<DiscoveryResponse> {
        let view = self.published.view(&self.scope);
        let subscription = &self.subscriptions[kind.index()];
        let resources: BTreeMap<String, Arc<Encoded>> = if kind.is_full_state() {
            found(subscription.names.iter(), |name| view.get(kind, name))
        } else {
            found(added.iter(), |name| view.get(kind, name))
        };
        // Absence from a full-state response is an answer too; elsewhere there is nothing to say.
        (kind.is_full_state() || !resources.is_empty()).then(|| self.respond(kind, resources))
    }

    /// Takes a new revision in: what changed for this stream, in the order to send.
    pub(crate) fn publish(&mut self, published: Arc<Published>) -> Vec<DiscoveryResponse> {
        self.published = published;
        let mut responses = Vec::new();
        let mut vanished = false;
        for kind in Kind::ALL {
            let now = self.current(kind);
            let subscription = &mut self.subscriptions[kind.index()];
            let mut changed = BTreeMap::new();
            for (name, encoded) in &now {
                match subscription.sent.get_mut(name) {
                    // Keeps the newer copy, so that the older revision can be let go.
                    Some(sent) if sent.same(encoded) => *sent = encoded.clone(),
                    _ => drop(changed.insert(name.clone(), encoded.clone())),
                }
            }
            let gone = subscription.sent.keys().any(|name| !now.contains_key(name));
            match kind {
                Kind::Cluster => {
                    vanished = gone;
                    if !changed.is_empty() {
                        // Routes still name the vanished ones; they go once the routes have changed.
                        let mut kept = subscription.sent.clone();
                        kept.extend(now);
                        responses.push(self.respond(kind, kept));
                    }
                }
                Kind::Listener if gone || !changed.is_empty() => responses.push(self.respond(kind, now)),
                Kind::Listener => {}
                Kind::Endpoints | Kind::Routes => {
                    subscription.sent.retain(|name, _| now.contains_key(name));
                    if !changed.is_empty() {
                        responses.push(self.respond(kind, changed));
                    }
                }
            }
        }
        if vanished {
            let now = self.current(Kind::Cluster);
            responses.push(self.respond(Kind::Cluster, now));
        }
        responses
    }

    /// What exists of the names subscribed to.
    fn current(&self, kind: Kind) -> BTreeMap<String, Arc<Encoded>> {
        let subscription = &self.subscriptions[kind.index()];
        if subscription.names.is_empty() {
            return BTreeMap::new();
        }
        let view = self.published.view(&self.scope);
        found(subscription.names.iter(), |name| view.get(kind, name))
    }

    fn respond(&mut self, kind: Kind, resources: BTreeMap<String, Arc<Encoded>>) -> DiscoveryResponse {
        self.last_nonce += 1;
        let subscription = &mut self.subscriptions[kind.index()];
        subscription.nonce = self.last_nonce.to_string();
        subscription.version_sent = self.published.version().to_owned();
        let response = DiscoveryResponse {
            version_info: subscription.version_sent.clone(),
            resources: resources.values().map(|encoded| encoded.any().clone()).collect(),
            type_url: kind.type_url().to_owned(),
            nonce: subscription.nonce.clone(),
            control_plane: Some(ControlPlane { identifier: "mesh".to_owned() }),
            ..DiscoveryResponse::default()
        };
        if kind.is_full_state() {
            subscription.sent = resources;
        } else {
            subscription.sent.extend(resources);
        }
        response
    }

    /// What the stream holds, for operators.
    pub(crate) fn status(&self) -> Vec<TypeStatus> {
        let asked = Kind::ALL.into_iter().filter(|kind| self.subscriptions[kind.index()].asked);
        asked.map(|kind| self.subscriptions[kind.index()].status(kind)).collect()
    }

    pub(crate) fn scope(&self) -> &NodeScope {
        &self.scope
    }
}

impl Subscription {
    /// Records the answer to the last response; gives the reason of a NACK.
    fn acknowledge(&mut self, request: &DiscoveryRequest) -> Option<String> {
        let Some(error) = &request.error_detail else {
            self.version_acked.clone_from(&self.version_sent);
            self.nack = None;
            return None;
        };
        let reason = printable(&error.message);
        // The same NACK may be said again with a changed subscription; it is one event.
        let repeated = self.nack.as_ref().is_some_and(|nack| nack.nonce == self.nonce);
        self.nack =
            Some(NackStatus { version: self.version_sent.clone(), nonce: self.nonce.clone(), reason: reason.clone() });
        (!repeated).then_some(reason)
    }

    /// Takes a subscription in; `None` if it asks for nothing new. What is no longer subscribed to is
    /// forgotten, so that asking again sends it again.
    fn subscribe(&mut self, names: Vec<String>) -> Option<Vec<String>> {
        let names: BTreeSet<String> = names.into_iter().filter(|name| name != "*").collect();
        let first = !std::mem::replace(&mut self.asked, true);
        let added: Vec<String> = names.difference(&self.names).cloned().collect();
        self.sent.retain(|name, _| names.contains(name));
        self.names = names;
        (first || !added.is_empty()).then_some(added)
    }

    fn status(&self, kind: Kind) -> TypeStatus {
        TypeStatus {
            type_url: kind.type_url(),
            subscribed: self.names.len(),
            sent: self.sent.len(),
            missing: self.names.iter().filter(|name| !self.sent.contains_key(*name)).take(20).cloned().collect(),
            version_sent: self.version_sent.clone(),
            version_acked: self.version_acked.clone(),
            nack: self.nack.clone(),
        }
    }
}

fn found<'a>(
    names: impl Iterator<Item = &'a String>,
    get: impl Fn(&str) -> Option<Arc<Encoded>>,
) -> BTreeMap<String, Arc<Encoded>> {
    names.filter_map(|name| Some((name.clone(), get(name)?))).collect()
}

/// A peer's text made fit for logs and pages.
fn printable(text: &str) -> String {
    text.chars().take(MAX_NACK).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
