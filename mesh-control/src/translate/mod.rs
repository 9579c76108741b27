//! Pure translation: a validated model and the running processes become policy, one resource at a time,
//! for one node's point of view.
//!
//! A [`World`] is built once per change; it only indexes. Each per-name method then looks up what its
//! name says and builds that one resource. Refuses to know xDS messages and connections.
//!
//! ```text
//! listener("reviews:9080")  → routes   "outbound|9080||reviews.default.svc.cluster.local"
//!                           → clusters "outbound|9080|v1|reviews.default.svc.cluster.local" → endpoints of that name
//! inbound  "xds.istio.io/grpc/lds/inbound/10.0.0.7:9080"
//! ```

mod analyze;
mod catalog;
mod cluster;
mod endpoints;
mod inbound;
mod instances;
mod keep;
mod names;
mod references;
mod routes;
mod rules;
mod virtual_services;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_core::id::{Locality, TrustDomain};
use mesh_core::policy::{Cluster, Endpoints, InboundListener, Listener, RouteConfiguration};

use self::catalog::Catalog;
pub(crate) use self::keep::settle;
use self::rules::Rules;
use self::virtual_services::VirtualServices;
use crate::finding::Finding;
use crate::model::{Model, Object, TrafficSplit};
use crate::registry::Registration;

/// Mesh-wide settings (Istio's MeshConfig), with Istio's defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Trust domain of the mesh's SPIFFE IDs. Default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// DNS domain of Kubernetes services. Default `cluster.local`.
    pub domain: String,
    /// Namespace whose DestinationRules and PeerAuthentications hold for all. Default `istio-system`.
    pub root_namespace: String,
    /// Mesh mTLS to endpoints that accept it when no rule says otherwise. Default true.
    pub auto_mtls: bool,
    /// Let calls to hosts that nothing defines through (Istio `ALLOW_ANY`). Default true.
    pub allow_any: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::new("cluster.local").expect("a trust domain"),
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            auto_mtls: true,
            allow_any: true,
        }
    }
}

/// From whose point of view a resource is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeScope {
    /// Namespace: completes short names, decides visibility.
    pub namespace: String,
    /// Labels of the workload: source selectors, workload selectors.
    pub labels: BTreeMap<String, String>,
    /// Where it runs: locality failover.
    pub locality: Locality,
}

impl NodeScope {
    /// A process without labels in a namespace.
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..Self::default() }
    }
}

/// Everything known at one revision, ready to answer.
#[derive(Debug)]
pub struct World {
    options: Options,
    model: Model,
    catalog: Catalog,
    rules: Rules,
    virtual_services: VirtualServices,
    /// The oldest TrafficSplit of each `(namespace, root service)`.
    splits: HashMap<(String, String), Arc<Object<TrafficSplit>>>,
    findings: Vec<Finding>,
}

impl World {
    /// Indexes a model and the running processes, with Istio's default settings.
    pub fn build(model: &Model, registrations: &[Registration]) -> Self {
        Self::build_with(model, registrations, Options::default())
    }

    /// Indexes a model and the running processes.
    pub fn build_with(model: &Model, registrations: &[Registration], options: Options) -> Self {
        let catalog = Catalog::build(model, registrations, &options);
        let rules = Rules::build(model, &options);
        let virtual_services = VirtualServices::build(model, &options);
        let splits = oldest_splits(model);
        let (model, findings) = (model.clone(), Vec::new());
        let mut world = Self { options, model, catalog, rules, virtual_services, splits, findings };
        world.findings = world.model.findings().to_vec();
        world.findings.extend(analyze::findings(&world));
        world
    }

    /// What reading, validation and cross-object analysis had to say.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The listener of a destination as dialled, `reviews:9080`; `None` = no such destination for this
    /// scope.
    pub fn listener(&self, scope: &NodeScope, name: &str) -> Option<Listener> {
        routes::listener(self, scope, name)
    }

    /// Why [`listener`](Self::listener) knows nothing of a destination, and what to do; for the answer
    /// to a client that asked for it.
    pub fn why_missing(&self, scope: &NodeScope, name: &str) -> String {
        routes::why_missing(self, scope, name)
    }

    /// A route configuration, `outbound|9080||reviews.default.svc.cluster.local`.
    pub fn routes(&self, scope: &NodeScope, name: &str) -> Option<RouteConfiguration> {
        routes::configuration(self, scope, name)
    }

    /// A cluster, `outbound|9080|v1|reviews.default.svc.cluster.local`; `None` for a host, port or subset
    /// that does not exist, so that requests routed there fail instead of going elsewhere.
    pub fn cluster(&self, scope: &NodeScope, name: &str) -> Option<Cluster> {
        cluster::cluster(self, scope, name)
    }

    /// The endpoints of an EDS cluster, under the cluster's name.
    pub fn endpoints(&self, scope: &NodeScope, name: &str) -> Option<Endpoints> {
        endpoints::assignment(self, scope, name)
    }

    /// The policy of a listening address, `xds.istio.io/grpc/lds/inbound/10.0.0.7:9080`.
    pub fn inbound(&self, scope: &NodeScope, name: &str) -> Option<InboundListener> {
        inbound::listener(self, scope, name)
    }
}

fn oldest_splits(model: &Model) -> HashMap<(String, String), Arc<Object<TrafficSplit>>> {
    let mut splits: Vec<_> = model.traffic_splits.values().collect();
    splits.sort_by_key(|split| split.seniority());
    let mut oldest = HashMap::new();
    for split in splits {
        let key = (split.namespace().to_owned(), split.spec.root.clone());
        oldest.entry(key).or_insert_with(|| split.clone());
    }
    oldest
}

#[cfg(test)]
mod tests;
