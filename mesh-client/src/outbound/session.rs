//! The session of one request: where it is pinned to, and what the client is told of it (gRFC A55, A60).

use http::HeaderMap;
use mesh_core::balance::session::{self, Pinned};
use mesh_core::health::AccrualState;
use mesh_core::id::ClusterName;
use mesh_core::policy::{Address, StatefulSession};

use super::head::Head;
use crate::cluster::{Backend, Endpoint};

/// The session of one request; none if its route, or the entry of a split that it goes to, has no affinity.
pub(crate) struct Session<'r> {
    policy: Option<&'r StatefulSession>,
    // Whether the request's path has sessions, asked before it is rewritten.
    applies: bool,
    pinned: Option<Pinned>,
}

impl<'r> Session<'r> {
    /// With what the request says of it, as the application made it.
    pub(crate) fn new(policy: Option<&'r StatefulSession>, pinned: Option<Pinned>, head: &Head) -> Self {
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

    /// Tells the client where its session is, if that is not what it said. `share` is the entry of a split.
    pub(super) fn write(
        &self,
        endpoint: &Endpoint,
        cluster: &Backend,
        share: Option<&ClusterName>,
        headers: &mut HeaderMap,
    ) {
        let Some(policy) = self.policy.filter(|_| self.applies) else { return };
        let now = Pinned { address: endpoint.address().clone(), cluster: share.cloned() };
        if self.pinned.as_ref() != Some(&now) && !self.is_being_probed(cluster) {
            session::write(policy, &now, headers);
        }
    }

    /// Whether its endpoint only has its hands full: on probation it takes one request at a time, and others go elsewhere
    /// meanwhile. The session does not move for that.
    fn is_being_probed(&self, cluster: &Backend) -> bool {
        let Some(address) = self.address() else { return false };
        let members = cluster.members();
        let pinned = members.ready.pinned(address, &cluster.policy().override_host);
        pinned.and_then(|(_, endpoint)| endpoint.get()?.accrual()) == Some(AccrualState::Probing)
    }
}
