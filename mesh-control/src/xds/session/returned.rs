//! A client that comes back with clusters from an earlier stream of states of the world, of which some vanished meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::known::Type;
use super::{Kind, Session, federated};

/// Of so many clusters that vanished it is looked whether they are known still. With more, the first list waits.
const LOOKED_FOR: usize = 1024;

impl Session {
    /// The clusters that the client has, as far as it says, and that are no more. Who names clusters names those; an Envoy, next,
    /// the endpoints of those it has.
    fn vanished(&self) -> impl Iterator<Item = &Arc<str>> {
        let [clusters, endpoints, ..] = &self.types;
        let all = clusters.known.keys().filter(|_| clusters.wildcard);
        let there_are: BTreeSet<_> = all.map(|name| federated::endpoints_of(name)).collect();
        let named = clusters.names().filter(|name| self.seat.resource(Kind::Cluster, name).is_none());
        let covered = endpoints.names().filter(move |name| clusters.wildcard && !there_are.contains(&***name));
        named.chain(covered)
    }

    /// Brings back what the first list of clusters would take away, as far as it is known still: it goes in the end, as what
    /// vanishes while a client is there, so that new clusters need not wait for the routes without the old ones.
    pub(super) fn bring_back(&mut self) {
        if self.came_back.is_none() || !self.types[Kind::Cluster.index()].is_due() {
            return;
        }
        let vanished: Vec<_> = self.vanished().take(LOOKED_FOR + 1).cloned().collect();
        if vanished.len() > LOOKED_FOR {
            return;
        }
        for name in vanished {
            if self.seat.bring_back(Kind::Cluster, &name) {
                let endpoints: Arc<str> = federated::endpoints_of(&name).into();
                self.seat.bring_back(Kind::Endpoints, &endpoints);
                let clusters = &mut self.types[Kind::Cluster.index()];
                clusters.known.entry(name.clone()).or_default();
                clusters.due.insert(name);
            }
        }
    }

    /// Whether the first list of clusters would take from a client that came back what its listeners and routes may name.
    pub(super) fn takes_away_too_soon(&self) -> bool {
        let [clusters, endpoints, listeners, routes] = &self.types;
        let Some(version) = self.came_back.as_ref().filter(|_| clusters.is_due()) else { return false };
        let is_accepted = |ty: &Type| !ty.is_due() && ty.in_flight.is_none() && !ty.refuses();
        if (listeners.asked || routes.asked) && is_accepted(listeners) && is_accepted(routes) {
            return false;
        }
        // What is not known though everything is never was.
        self.vanished().next().is_some() && !self.seat.remembers(version) || clusters.wildcard && !endpoints.asked
    }

    /// What was brought back for a client that is sent its first list of clusters.
    pub(super) fn brought_back(&mut self) -> Vec<Arc<str>> {
        self.came_back.take().map_or_else(Vec::new, |_| self.seat.brought_back(Kind::Cluster))
    }

    /// Lets endpoints of clusters that were taken away go, too.
    pub(super) fn let_endpoints_go(&mut self, clusters: &[Arc<str>]) {
        for cluster in clusters {
            let name: Arc<str> = federated::endpoints_of(cluster).into();
            self.seat.let_go(Kind::Endpoints, &name);
            let endpoints = &mut self.types[Kind::Endpoints.index()];
            if endpoints.known.contains_key(&name) {
                endpoints.due.insert(name);
            }
        }
    }
}
