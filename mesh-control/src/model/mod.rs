//! What operators write: each manifest becomes a *spec* (as written) and then a validated object whose
//! wrong states cannot exist. An object that fails validation keeps its last good version.
//!
//! Refuses to know which object refers to which: that is [`crate::translate`]'s.

mod accrual;
mod authorization_policy;
mod check;
mod destination_rule;
mod gateway;
mod key_set;
mod kinds;
mod kubernetes;
mod linkerd;
mod mesh_config;
mod peer_authentication;
mod reference;
mod request_authentication;
mod selection;
mod service_entry;
mod service_profile;
mod split;
mod template;
mod values;
mod virtual_service;

pub(crate) use self::authorization_policy::AuthorizationPolicy;
pub(crate) use self::destination_rule::{
    ClientTls, ConnectionPool, DestinationRule, Distribution, Locality as LocalitySetting, PortPolicy, REGION,
    SUB_ZONE, Subset, TlsNames, TrafficPolicy, ZONE, covers_locality,
};
pub(crate) use self::gateway::Gateway;
pub(crate) use self::key_set::PublicKeys;
pub(crate) use self::kubernetes::{EndpointSlice, Namespace, Pod, PortTarget, Service, ServiceAccount};
pub use self::linkerd::AccessPolicy;
pub(crate) use self::linkerd::{
    Authentication, DEFAULT_POLICY, GatewayGrpcRoute, GatewayHttpRoute, LinkerdAuthorization, LinkerdRateLimit,
    LinkerdRoute, MeshTlsAuthentication, NetworkAuthentication, RouteKind, Server, ServerAuthorization, ServerPort,
    ServerRef, Target, all_of_principals,
};
pub(crate) use self::mesh_config::MeshConfig;
pub(crate) use self::peer_authentication::{MtlsMode, PeerAuthentication};
pub(crate) use self::request_authentication::{KeySource, RequestAuthentication, TokenKeys, TokenRule};
pub(crate) use self::selection::Selection;
pub(crate) use self::service_entry::{EntryAddress, EntryEndpoint, Resolution, ServiceEntry, WorkloadEntry};
pub(crate) use self::service_profile::{ProfileRoute, ServiceProfile};
pub(crate) use self::split::TrafficSplit;
pub(crate) use self::template::{DaemonSet, Deployment, StatefulSet, Template};
pub(crate) use self::values::{ExportTo, PortProtocol, labels_in_words};
pub(crate) use self::virtual_service::{
    Destination, HttpAction, HttpRoute, Layer4Match, Layer4Route, MatchBlock, RedirectPort, VirtualService,
    WeightedDestination, covers, is_catch_all,
};

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::finding::{Finding, Severity};
use crate::source::{Document, Manifests};

/// A valid object and the document it came from.
#[derive(Debug)]
pub(crate) struct Object<T> {
    pub(crate) document: Arc<Document>,
    pub(crate) spec: T,
    /// Made in place of an object that is not valid: never a last good version.
    stand_in: bool,
    /// The warnings of its reading.
    findings: Vec<Finding>,
}

impl<T> Object<T> {
    pub(crate) fn namespace(&self) -> &str {
        &self.document.namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.document.name
    }

    /// Orders by age, then namespace, then name: who wins where two objects compete. Objects without a
    /// `creationTimestamp` (files) are equally old.
    pub(crate) fn seniority(&self) -> (&str, &str, &str) {
        (&self.document.created, &self.document.namespace, &self.document.name)
    }

    pub(crate) fn finding(&self, severity: Severity, path: &str, message: impl Into<String>) -> Finding {
        self.document.finding(severity, path, message)
    }
}

/// Objects of one kind by `(namespace, name)`.
pub(crate) type Store<T> = BTreeMap<(String, String), Arc<Object<T>>>;

/// Every valid object of the manifests.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub(crate) namespaces: Store<Namespace>,
    pub(crate) service_accounts: Store<ServiceAccount>,
    pub(crate) services: Store<Service>,
    pub(crate) endpoint_slices: Store<EndpointSlice>,
    pub(crate) pods: Store<Pod>,
    pub(crate) deployments: Store<Deployment>,
    pub(crate) stateful_sets: Store<StatefulSet>,
    pub(crate) daemon_sets: Store<DaemonSet>,
    pub(crate) virtual_services: Store<VirtualService>,
    pub(crate) destination_rules: Store<DestinationRule>,
    pub(crate) gateways: Store<Gateway>,
    pub(crate) service_entries: Store<ServiceEntry>,
    pub(crate) workload_entries: Store<WorkloadEntry>,
    pub(crate) service_profiles: Store<ServiceProfile>,
    pub(crate) traffic_splits: Store<TrafficSplit>,
    pub(crate) peer_authentications: Store<PeerAuthentication>,
    pub(crate) authorization_policies: Store<AuthorizationPolicy>,
    pub(crate) request_authentications: Store<RequestAuthentication>,
    pub(crate) mesh_configs: Store<MeshConfig>,
    pub(crate) linkerd_servers: Store<Server>,
    pub(crate) linkerd_server_authorizations: Store<ServerAuthorization>,
    pub(crate) linkerd_authorizations: Store<LinkerdAuthorization>,
    pub(crate) linkerd_mesh_tls: Store<MeshTlsAuthentication>,
    pub(crate) linkerd_networks: Store<NetworkAuthentication>,
    pub(crate) linkerd_routes: Store<LinkerdRoute>,
    pub(crate) gateway_http_routes: Store<GatewayHttpRoute>,
    pub(crate) gateway_grpc_routes: Store<GatewayGrpcRoute>,
    pub(crate) linkerd_rate_limits: Store<LinkerdRateLimit>,
    /// Files that could never be read, and may guard anything.
    pub(crate) unread: Vec<Arc<str>>,
    findings: Vec<Finding>,
    /// By file: what is in force in the place of its objects that are not valid.
    stale: BTreeMap<Arc<str>, Vec<Arc<Document>>>,
}

impl Model {
    /// Validates every document. An object that is not valid keeps the version it has in `previous`,
    /// and is reported either way.
    pub fn build(manifests: &Manifests, previous: Option<&Model>) -> Self {
        let (findings, unread) = (manifests.findings.clone(), manifests.unread.clone());
        let mut model = Self { findings, unread, ..Self::default() };
        for document in &manifests.documents {
            kinds::add(&mut model, document, manifests, previous);
        }
        model
    }

    /// Reads and validates texts: `(file name, content)`.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self::build(&Manifests::from_texts(texts), None)
    }

    /// Whether both are made of the same objects, but for the endpoint slices. Objects whose documents did not
    /// change are shared, so nothing is compared but references.
    pub(crate) fn differs_in_slices_alone(&self, other: &Self) -> bool {
        fn same<T>(a: &Store<T>, b: &Store<T>) -> bool {
            a.len() == b.len() && a.values().zip(b.values()).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        let Self {
            namespaces,
            service_accounts,
            services,
            endpoint_slices: _,
            pods,
            deployments,
            stateful_sets,
            daemon_sets,
            virtual_services,
            destination_rules,
            gateways,
            service_entries,
            workload_entries,
            service_profiles,
            traffic_splits,
            peer_authentications,
            authorization_policies,
            request_authentications,
            mesh_configs,
            linkerd_servers,
            linkerd_server_authorizations,
            linkerd_authorizations,
            linkerd_mesh_tls,
            linkerd_networks,
            linkerd_routes,
            gateway_http_routes,
            gateway_grpc_routes,
            linkerd_rate_limits,
            unread,
            findings: _,
            stale: _,
        } = self;
        same(namespaces, &other.namespaces)
            && same(service_accounts, &other.service_accounts)
            && same(services, &other.services)
            && same(pods, &other.pods)
            && same(deployments, &other.deployments)
            && same(stateful_sets, &other.stateful_sets)
            && same(daemon_sets, &other.daemon_sets)
            && same(virtual_services, &other.virtual_services)
            && same(destination_rules, &other.destination_rules)
            && same(gateways, &other.gateways)
            && same(service_entries, &other.service_entries)
            && same(workload_entries, &other.workload_entries)
            && same(service_profiles, &other.service_profiles)
            && same(traffic_splits, &other.traffic_splits)
            && same(peer_authentications, &other.peer_authentications)
            && same(authorization_policies, &other.authorization_policies)
            && same(request_authentications, &other.request_authentications)
            && same(mesh_configs, &other.mesh_configs)
            && same(linkerd_servers, &other.linkerd_servers)
            && same(linkerd_server_authorizations, &other.linkerd_server_authorizations)
            && same(linkerd_authorizations, &other.linkerd_authorizations)
            && same(linkerd_mesh_tls, &other.linkerd_mesh_tls)
            && same(linkerd_networks, &other.linkerd_networks)
            && same(linkerd_routes, &other.linkerd_routes)
            && same(gateway_http_routes, &other.gateway_http_routes)
            && same(gateway_grpc_routes, &other.gateway_grpc_routes)
            && same(linkerd_rate_limits, &other.linkerd_rate_limits)
            && *unread == other.unread
    }

    /// The templates of pods, with the documents that they are in.
    pub(crate) fn templates(&self) -> impl Iterator<Item = (&Document, &Template)> {
        let deployments = self.deployments.values().map(|object| (&*object.document, &object.spec.0));
        let stateful = self.stateful_sets.values().map(|object| (&*object.document, &object.spec.0));
        let daemons = self.daemon_sets.values().map(|object| (&*object.document, &object.spec.0));
        deployments.chain(stateful).chain(daemons)
    }

    /// Adds to the findings.
    pub(crate) fn report(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    /// By file: the last good versions that are in force in the place of its objects that are not valid. The file no
    /// longer holds them.
    pub(crate) fn stale(&self) -> &BTreeMap<Arc<str>, Vec<Arc<Document>>> {
        &self.stale
    }

    /// What reading and validation had to say, in order of files. Findings that need several objects are
    /// [`World::findings`](crate::translate::World::findings)'.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

#[cfg(test)]
mod tests;
