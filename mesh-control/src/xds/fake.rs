//! Resources written down by a test.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Cluster, DropOverload, Endpoints, Forward, HeaderPolicy, Listener, PerMillion, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteSource, TcpForward, TcpShare, VirtualHost,
};

use super::{Cache, Kind, Resource, Resources, Touched};
use crate::translate::NodeScope;

/// The same resources for every scope.
#[derive(Clone, Default)]
pub(super) struct Fake(BTreeMap<(Kind, String), Resource>);

impl Fake {
    /// Adds or replaces a resource; `edition` makes two of one name differ.
    pub(super) fn with(mut self, kind: Kind, name: &str, edition: u32) -> Self {
        let resource = match kind {
            Kind::Cluster => {
                let mut cluster = Cluster::new(name.into());
                cluster.breaker.max_requests = Some(edition);
                Resource::Cluster(Box::new(cluster))
            }
            Kind::Endpoints => {
                let share = PerMillion::new(edition);
                let drops = vec![DropOverload { category: "test".into(), share }];
                Resource::Endpoints(Endpoints { cluster: name.into(), drops, ..Endpoints::default() })
            }
            Kind::Listener => Resource::Listener(listener(name, edition)),
            Kind::Routes => Resource::Routes(routes(name, edition)),
        };
        self.0.insert((kind, name.to_owned()), resource);
        self
    }

    /// The same of a listener or routes that send something to these clusters.
    pub(super) fn naming(self, kind: Kind, name: &str, edition: u32, clusters: &[&str]) -> Self {
        let mut fake = self.with(kind, name, edition);
        let clusters = clusters.iter().map(|cluster| ClusterName::new(*cluster));
        match fake.0.get_mut(&(kind, name.to_owned())) {
            Some(Resource::Listener(listener)) => {
                let shares: Vec<_> = clusters.map(|name| TcpShare::new(name, NonZeroU32::MIN)).collect();
                listener.tcp = (!shares.is_empty()).then(|| TcpForward::split(shares).expect("a few shares"));
            }
            Some(Resource::Routes(routes)) => {
                let route = |name| Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(Forward::to(name))));
                routes.virtual_hosts[0].routes = clusters.map(route).collect();
            }
            other => panic!("{other:?} names nothing"),
        }
        fake
    }

    pub(super) fn without(mut self, kind: Kind, name: &str) -> Self {
        self.0.remove(&(kind, name.to_owned()));
        self
    }

    /// A cache with these resources as its first revision.
    pub(super) fn cache(&self) -> Arc<Cache> {
        Cache::new("1".to_owned(), Arc::new(self.clone()))
    }

    /// These resources as the next revision.
    pub(super) fn publish(&self, cache: &Cache, version: &str) {
        let resources: Arc<dyn Resources> = Arc::new(self.clone());
        cache.publish(version.to_owned(), &resources, &Touched::All);
    }
}

impl Resources for Fake {
    fn resource(&self, _: &NodeScope, kind: Kind, name: &str) -> Option<Resource> {
        self.0.get(&(kind, name.to_owned())).cloned()
    }

    fn wildcard(&self, _: &NodeScope, kind: Kind) -> Vec<String> {
        self.0.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
    }
}

fn listener(name: &str, edition: u32) -> Listener {
    let max_stream_duration = Some(Duration::from_secs(edition.into()));
    Listener { max_stream_duration, ..Listener::new(name, RouteSource::Named(name.into())) }
}

fn routes(name: &str, edition: u32) -> RouteConfiguration {
    let host = VirtualHost {
        name: edition.to_string(),
        domains: vec![mesh_core::policy::Domain::new("*").expect("a domain")],
        routes: Vec::new(),
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let headers = HeaderPolicy::default();
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host], headers, retry_budget: None }
}
