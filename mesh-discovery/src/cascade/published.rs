//! What is in use of each subscription, resource by resource: the newest of everything, or what was published before while
//! something newer is on its way. For whoever keeps it, that one may not be joined with the other.

use mesh_core::policy::{ClusterState, DestinationState, Discovery, InboundState, RouteSource, Snapshot};

use super::{Cascade, Followed, Root};
use crate::bootstrap::name::normalise;
use crate::xds::{Key, Kind, ServerId, Value};

/// A resource as it is in use.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) key: Key,
    pub(crate) value: Value,
}

/// What is in use of a subscription for which something newer is on its way.
pub(crate) struct Unsettled<'a> {
    followed: &'a Followed,
}

impl Cascade {
    /// Resources that are in use as they are known now.
    pub(crate) fn settled(&self) -> impl Iterator<Item = &Key> {
        self.followed.values().filter(|followed| followed.is_settled).flat_map(|followed| followed.uses.iter())
    }

    /// The others.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = Unsettled<'_>> {
        self.followed.values().filter(|followed| !followed.is_settled).map(|followed| Unsettled { followed })
    }
}

impl Unsettled<'_> {
    /// Everything that is published; nothing if nothing is.
    pub(crate) fn published(&self) -> Vec<Published> {
        match &self.followed.root {
            Root::Destination { listener, publisher, .. } => match &*publisher.load_full() {
                DestinationState::Ready(snapshot) => resources(listener, snapshot),
                _ => Vec::new(),
            },
            // With its routes, by which it needs none.
            Root::Inbound { listener, publisher } => match &*publisher.load_full() {
                InboundState::Ready(inbound) => vec![named(Kind::Listener, listener, Value::Inbound(inbound.clone()))],
                _ => Vec::new(),
            },
        }
    }

    /// Who gave what is published of an authority.
    pub(crate) fn giver(&self, authority: u16) -> Option<ServerId> {
        self.followed.grounds.giver(authority)
    }
}

fn resources(listener: &str, snapshot: &Snapshot) -> Vec<Published> {
    let mut all = vec![named(Kind::Listener, listener, Value::Listener(snapshot.listener.clone()))];
    if let RouteSource::Named(routes) = &snapshot.listener.routes {
        all.push(named(Kind::Routes, routes, Value::Routes(snapshot.routes.clone())));
    }
    for (name, state) in snapshot.clusters.iter() {
        let ClusterState::Ready { cluster, endpoints } = state else { continue };
        all.push(named(Kind::Cluster, name.as_str(), Value::Cluster(cluster.clone())));
        if let Discovery::Eds { service_name } = &cluster.discovery {
            let name = service_name.as_deref().unwrap_or(name.as_str());
            all.push(named(Kind::Endpoints, name, Value::Endpoints(endpoints.clone())));
        }
    }
    all
}

fn named(kind: Kind, name: &str, value: Value) -> Published {
    Published { key: Key::new(kind, &*normalise(name)), value }
}
