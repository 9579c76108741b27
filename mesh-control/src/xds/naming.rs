//! [`Naming`]: which clusters a listener or a route configuration sends something to. Who uses it needs those.
//!
//! Refuses to know who uses what.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::policy::{ClusterChoice, Listener, RouteAction, RouteConfiguration, RouteSource};

use super::Resource;
use super::account::{Account, Charge, ENCODED};

/// The clusters that a resource names.
#[derive(Clone, Debug, Default)]
pub(crate) enum Naming {
    /// None.
    #[default]
    Nothing,
    /// These.
    These(Arc<Named>),
    /// Any may be meant, for a request says which, or nobody knows any more.
    Anything,
}

/// Names of clusters.
#[derive(Debug)]
pub(crate) struct Named {
    /// Sorted.
    names: Box<[ClusterName]>,
    /// What outlasts the resource is paid as long.
    _charge: Charge,
}

impl Naming {
    pub(super) fn of(resource: &Resource, account: &Arc<Account>) -> Self {
        let mut names = BTreeSet::new();
        let all = match resource {
            Resource::Listener(listener) => in_listener(listener, &mut names),
            Resource::Routes(routes) => in_routes(routes, &mut names),
            // A proxy's listeners name their routes, and nothing else.
            Resource::Cluster(_) | Resource::Endpoints(_) | Resource::Inbound(_) | Resource::Proxy(_) => true,
        };
        match all {
            false => Self::Anything,
            true if names.is_empty() => Self::Nothing,
            true => {
                let bytes: usize = names.iter().map(|name| size_of::<ClusterName>() + name.as_str().len()).sum();
                let names = names.into_iter().cloned().collect();
                Self::These(Arc::new(Named { names, _charge: Charge::new(account, ENCODED + bytes) }))
            }
        }
    }

    /// The names, if they are known.
    pub(super) fn names(&self) -> Option<&[ClusterName]> {
        match self {
            Self::Nothing => Some(&[]),
            Self::These(named) => Some(&named.names),
            Self::Anything => None,
        }
    }
}

impl PartialEq for Naming {
    fn eq(&self, other: &Self) -> bool {
        self.names() == other.names()
    }
}

/// Adds what a listener names; false = it may be anything.
fn in_listener<'a>(listener: &'a Listener, names: &mut BTreeSet<&'a ClusterName>) -> bool {
    names.extend(listener.tcp.iter().flat_map(|forward| forward.clusters()).map(|share| &share.name));
    match &listener.routes {
        RouteSource::Named(_) => true,
        RouteSource::Inline(routes) => in_routes(routes, names),
    }
}

/// Adds what routes name; false = it may be anything.
fn in_routes<'a>(routes: &'a RouteConfiguration, names: &mut BTreeSet<&'a ClusterName>) -> bool {
    let mut all = true;
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let RouteAction::Forward(forward) = &route.action else { continue };
        match &forward.to {
            ClusterChoice::Cluster(name) => _ = names.insert(name),
            ClusterChoice::Weighted(split) => names.extend(split.entries().iter().map(|entry| &entry.name)),
            ClusterChoice::Header(_) => all = false,
        }
        names.extend(forward.mirrors.iter().map(|mirror| &mirror.cluster));
    }
    all
}
