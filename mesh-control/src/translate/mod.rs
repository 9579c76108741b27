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
//! proxy    listener "127.0.0.1:9080" → routes "9080" → all clusters of its namespace
//! ```

mod analyze;
mod announced;
mod authorization;
mod catalog;
mod cluster;
mod endpoints;
mod guards;
mod in_vain;
mod inbound;
mod instances;
mod keep;
mod linkerd;
mod names;
mod plaintext;
mod proxy;
mod references;
mod routes;
mod rules;
mod selected;
mod tokens;
mod unannounced;
mod unnamed;
mod view;
mod virtual_services;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use mesh_core::id::{Locality, TrustDomain};
use mesh_core::policy::{Cluster, Endpoints, InboundListener, Listener, RouteConfiguration};

pub(crate) use self::authorization::own_names;
use self::catalog::Catalog;
pub(crate) use self::catalog::Changed;
pub(crate) use self::keep::{kept, settle, with_kept};
pub use self::proxy::ProxyListener;
use self::rules::Rules;
pub(crate) use self::view::View;
use self::virtual_services::VirtualServices;
use crate::finding::Finding;
use crate::jwks::Keys;
use crate::model::{AccessPolicy, Model, Object, Store, TrafficSplit};
use crate::registry::{self, Registration, Registrations};

/// Mesh-wide settings (Istio's MeshConfig), with Istio's defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Trust domain of the mesh's SPIFFE IDs. Default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// DNS domain of Kubernetes services. Default `cluster.local`.
    pub domain: String,
    /// Namespace whose DestinationRules and policies of `security.istio.io` hold for all. Default `istio-system`.
    pub root_namespace: String,
    /// Further names of the trust domain, in addition to those of the MeshConfig: a principal of one of them is one of
    /// each. Default none.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Who may call a port that no Linkerd Server guards, where neither the workload nor its namespace has the
    /// annotation `config.linkerd.io/default-inbound-policy`. It is read anew with every change, while Linkerd keeps what
    /// it was when a pod began. Default [`AccessPolicy::AllUnauthenticated`], which is Linkerd's.
    pub default_inbound_policy: AccessPolicy,
    /// The networks of the cluster, for Linkerd's `cluster-*` policies. Default Linkerd's: 10.0.0.0/8, 100.64.0.0/10,
    /// 172.16.0.0/12, 192.168.0.0/16 and fd00::/8.
    pub cluster_networks: Vec<IpNet>,
    /// Mesh mTLS to endpoints that accept it when no rule says otherwise. Default true.
    pub auto_mtls: bool,
    /// Let calls to hosts that nothing defines through (Istio `ALLOW_ANY`). Default true.
    pub allow_any: bool,
    /// Ask clients to report the load they put on each cluster (LRS). Every client then keeps a second
    /// stream open. Default false.
    pub load_reports: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::new("cluster.local").expect("a trust domain"),
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            trust_domain_aliases: Vec::new(),
            default_inbound_policy: AccessPolicy::default(),
            cluster_networks: CLUSTER_NETWORKS.map(|net| net.parse().expect("a network")).into(),
            auto_mtls: true,
            allow_any: true,
            load_reports: false,
        }
    }
}

const CLUSTER_NETWORKS: [&str; 5] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

/// From whose point of view a resource is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeScope {
    /// Namespace: completes short names, decides visibility.
    pub namespace: String,
    /// Service account, where it is proved: what it announced counts for its inbound policy, and not what others did.
    /// Default `None`: not known, whatever its namespace announced counts.
    pub account: Option<String>,
    /// Labels of the workload: source selectors, workload selectors.
    pub labels: BTreeMap<String, String>,
    /// Where it runs: locality failover.
    pub locality: Locality,
    /// In which form it wants its configuration. Default [`Dialect::Proxyless`].
    pub dialect: Dialect,
    /// On which address a proxy wants an HTTP listener for each port of the mesh. Default none: its
    /// listeners are in its bootstrap.
    pub outbound_listen: Option<IpAddr>,
    /// Directory of the files in which a proxy finds its secrets, as `mesh cert issue` writes them. Default none:
    /// they are in its bootstrap, under the same names.
    pub secrets: Option<Arc<str>>,
}

impl NodeScope {
    /// Bytes of what the node says of itself.
    pub(crate) fn text_len(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(key, value)| 64 + key.len() + value.len()).sum();
        let Locality { region, zone, sub_zone } = &self.locality;
        labels
            + self.namespace.len()
            + self.account.as_ref().map_or(0, String::len)
            + [region, zone, sub_zone].iter().map(|text| text.len()).sum::<usize>()
            + self.secrets.as_ref().map_or(0, |path| path.len())
    }
}

/// What kind of data plane a node is; each takes the same policy in a form of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// gRPC's xDS clients and this library: they name each destination they call.
    #[default]
    Proxyless,
    /// An Envoy proxy: it asks for everything at once (`*`).
    Envoy,
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
    pub(crate) model: Arc<Model>,
    /// Of issuers whose keys are fetched.
    keys: Arc<Keys>,
    registrations: Registrations,
    catalog: Catalog,
    rules: Arc<Rules>,
    virtual_services: Arc<VirtualServices>,
    /// The oldest TrafficSplit of each `(namespace, root service)`.
    splits: Arc<Splits>,
    /// Found when somebody asks: a change can be served before it is analysed.
    findings: OnceLock<Vec<Finding>>,
}

type Splits = HashMap<(String, String), Arc<Object<TrafficSplit>>>;

impl World {
    /// Indexes a model and the running processes, with Istio's default settings.
    pub fn build(model: &Model, registrations: &[Registration]) -> Self {
        Self::build_with(model, registrations, Options::default())
    }

    /// Indexes a model and the running processes.
    pub fn build_with(model: &Model, registrations: &[Registration], options: Options) -> Self {
        Self::of(Arc::new(model.clone()), registry::table_of(registrations), options)
    }

    /// Indexes without copying.
    pub(crate) fn of(model: Arc<Model>, registrations: Registrations, options: Options) -> Self {
        let catalog = Catalog::build(&model, &registrations, &options);
        let rules = Arc::new(Rules::build(&model, &options));
        let virtual_services = Arc::new(VirtualServices::build(&model, &options));
        let splits = Arc::new(oldest_splits(&model));
        let (keys, findings) = (Arc::default(), OnceLock::new());
        Self { options, model, keys, registrations, catalog, rules, virtual_services, splits, findings }
    }

    /// The same with these keys of issuers.
    pub(crate) fn with_keys(self, keys: Arc<Keys>) -> Self {
        Self { keys, findings: OnceLock::new(), ..self }
    }

    /// Whether these are its keys of issuers.
    pub(crate) fn has_keys(&self, keys: &Arc<Keys>) -> bool {
        Arc::ptr_eq(&self.keys, keys)
    }

    /// The world after registrations and endpoint slices changed, which shares what did not, and what did (`None`
    /// for that = anything). `None` if other manifests changed.
    pub(crate) fn follow(&self, model: &Arc<Model>, now: Registrations) -> Option<(Self, Option<Changed>)> {
        let slices = match Arc::ptr_eq(model, &self.model) {
            true => Vec::new(),
            false if model.differs_in_slices_alone(&self.model) => {
                differing(&self.model.endpoint_slices, &model.endpoint_slices)
            }
            false => return None,
        };
        let keys = now.differing(&self.registrations, |a, b| Arc::ptr_eq(a, b) || a == b);
        let changes: Vec<_> = keys.into_iter().map(|key| (self.registrations.get(key), now.get(key))).collect();
        let Some((catalog, changed)) = self.catalog.update(&changes, &slices, model, &self.options) else {
            let anew = Self::of(model.clone(), now, self.options.clone());
            return Some((anew.with_keys(self.keys.clone()), None));
        };
        let world = Self {
            options: self.options.clone(),
            model: model.clone(),
            keys: self.keys.clone(),
            registrations: now,
            catalog,
            rules: self.rules.clone(),
            virtual_services: self.virtual_services.clone(),
            splits: self.splits.clone(),
            findings: OnceLock::new(),
        };
        Some((world, Some(changed)))
    }

    /// What reading, validation and cross-object analysis had to say.
    pub fn findings(&self) -> &[Finding] {
        self.findings.get_or_init(|| {
            let mut findings = self.model.findings().to_vec();
            findings.extend(analyze::findings(self));
            findings
        })
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

    /// A route configuration, `outbound|9080||reviews.default.svc.cluster.local`; for a proxy also that of
    /// all hosts of a port, `9080`.
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

    /// What it is made of.
    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The manifest files that could never be read. While there are any, there is no inbound listener.
    pub(crate) fn unread(&self) -> &[Arc<str>] {
        &self.model.unread
    }
}

/// What only proxies ask for.
impl World {
    /// The names of every cluster a proxy may see; none for a proxyless client.
    pub fn proxy_clusters(&self, scope: &NodeScope) -> Vec<String> {
        proxy::clusters(self, scope)
    }

    /// The names of the listeners that a proxy asked for with [`NodeScope::outbound_listen`].
    pub fn proxy_listeners(&self, scope: &NodeScope) -> Vec<String> {
        proxy::listeners(self, scope)
    }

    /// One of those listeners, `127.0.0.1:9080`.
    pub fn proxy_listener(&self, scope: &NodeScope, name: &str) -> Option<ProxyListener> {
        proxy::listener(self, scope, name)
    }
}

/// An object before and after a change.
type Pair<'a, T> = (Option<&'a Arc<Object<T>>>, Option<&'a Arc<Object<T>>>);

/// The objects of two stores that are not the same.
fn differing<'a, T>(before: &'a Store<T>, now: &'a Store<T>) -> Vec<Pair<'a, T>> {
    let gone = before.iter().filter(|(key, _)| !now.contains_key(*key)).map(|(_, object)| (Some(object), None));
    let came = now.iter().map(|(key, object)| (before.get(key), Some(object)));
    let other = came.filter(|(before, now)| !before.zip(*now).is_some_and(|(before, now)| Arc::ptr_eq(before, now)));
    gone.chain(other).collect()
}

fn oldest_splits(model: &Model) -> Splits {
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
