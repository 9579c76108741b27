//! The receiving side: which PeerAuthentication holds for a workload and a port, and which AuthorizationPolicies.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::policy::{InboundListener, InboundTls};

use super::instances::includes;
use super::{NodeScope, Options, World, authorization, linkerd, names};
use crate::model::{Model, MtlsMode, Object, PeerAuthentication, Pod};

/// A workload and a port of it, of which it is asked who may call.
#[derive(Clone, Copy)]
pub(super) struct Workload<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    /// The service that it announced itself as.
    pub(super) service: Option<&'a str>,
    pub(super) port: u16,
    pub(super) pod: Option<&'a Object<Pod>>,
}

/// The inbound listener of that name. The workload is the one announced at the address by the asking
/// namespace, else the asking process itself, which asks before it announces.
pub(super) fn listener(world: &World, scope: &NodeScope, name: &str) -> Option<InboundListener> {
    let address: SocketAddr = name.strip_prefix(names::INBOUND)?.parse().ok()?;
    let announced = world.catalog.workloads.announced.at(address).map(|announced| &announced.registration);
    let announced = announced.filter(|registration| registration.namespace == scope.namespace);
    let labels = announced.map_or(&scope.labels, |registration| &registration.labels);
    let workload = Workload {
        namespace: &scope.namespace,
        labels,
        service: announced.map(|registration| registration.service.as_str()),
        port: address.port(),
        pod: world.catalog.workloads.pod_at(address.ip(), &scope.namespace),
    };
    let tls = mode(&world.model, &world.options, &scope.namespace, labels, address.port());
    let mut authorization = authorization::policies(&world.model, &world.options, &workload);
    authorization.extend(linkerd::policies(&world.model, &world.options, &workload));
    Some(InboundListener { authorization, ..InboundListener::new(name, address, tls) })
}

/// The mode of a workload's port: policies that select the workload, then its namespace's, then the
/// root namespace's; UNSET asks the next. Permissive if nobody says.
pub(super) fn mode(
    model: &Model,
    options: &Options,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    port: u16,
) -> InboundTls {
    let own = of_namespace(model, namespace);
    let root =
        if namespace == options.root_namespace { Vec::new() } else { of_namespace(model, &options.root_namespace) };
    let selecting = oldest(&own, |policy| policy.selector.as_ref().is_some_and(|wanted| includes(labels, wanted)));
    let at_port = selecting.and_then(|policy| policy.spec.ports.get(&port).copied()).flatten();
    at_port
        .or_else(|| selecting.and_then(|policy| policy.spec.mode))
        .or_else(|| scope_wide(&own))
        .or_else(|| scope_wide(&root))
        .unwrap_or(InboundTls::Permissive)
}

type Policy = Arc<Object<PeerAuthentication>>;

fn of_namespace<'a>(model: &'a Model, namespace: &str) -> Vec<&'a Policy> {
    let first = (namespace.to_owned(), String::new());
    let policies = model.peer_authentications.range(first..);
    policies.take_while(|(key, _)| key.0 == namespace).map(|(_, policy)| policy).collect()
}

fn scope_wide(policies: &[&Policy]) -> MtlsMode {
    oldest(policies, |policy| policy.selector.is_none()).and_then(|policy| policy.spec.mode)
}

fn oldest<'a>(policies: &[&'a Policy], wanted: impl Fn(&PeerAuthentication) -> bool) -> Option<&'a Policy> {
    policies.iter().filter(|policy| wanted(&policy.spec)).min_by_key(|policy| policy.seniority()).copied()
}
