//! The session of one request: where it is pinned to, and what the client is told of it (gRFC A55, A60).

use http::HeaderMap;
use mesh_core::balance::session::{self, Pinned};
use mesh_core::id::ClusterName;
use mesh_core::policy::{Address, StatefulSession};

use super::head::Head;
use crate::cluster::Endpoint;

/// The session of one request; none if its route, or the entry of a split that it goes to, has no affinity.
pub(super) struct Session<'r> {
    policy: Option<&'r StatefulSession>,
    // Whether the request's path has sessions, asked before it is rewritten.
    applies: bool,
    pinned: Option<Pinned>,
}

impl<'r> Session<'r> {
    /// With what the request says of it, as the application made it.
    pub(super) fn new(policy: Option<&'r StatefulSession>, pinned: Option<Pinned>, head: &Head) -> Self {
        let applies = policy.is_some_and(|policy| session::applies(policy, head.uri().path()));
        Self { policy, applies, pinned }
    }

    /// The endpoint it is pinned to.
    pub(super) fn address(&self) -> Option<&Address> {
        self.pinned.as_ref().map(|pinned| &pinned.address)
    }

    /// Whether it fails rather than go to another endpoint.
    pub(super) fn is_strict(&self) -> bool {
        self.policy.is_some_and(|policy| policy.strict)
    }

    /// Tells the client where its session is, if that is not what it said. `cluster` is that of a split.
    pub(super) fn write(&self, endpoint: &Endpoint, cluster: Option<&ClusterName>, headers: &mut HeaderMap) {
        let Some(policy) = self.policy.filter(|_| self.applies) else { return };
        let now = Pinned { address: endpoint.address().clone(), cluster: cluster.cloned() };
        if self.pinned.as_ref() != Some(&now) {
            session::write(policy, &now, headers);
        }
    }
}
