//! The receiving side: which PeerAuthentication holds for a workload and a port, and which of the policies that add up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::policy::{HttpFilter, HttpFilterKind, InboundListener, InboundTls};

use super::instances::includes;
use super::{NodeScope, Options, World, authorization, linkerd, names, tokens};
use crate::model::{Model, MtlsMode, Object, PeerAuthentication, Pod, Selection, Store, Template};
use crate::registry::Registration;

/// A workload and a port of it, of which it is asked who may call.
pub(super) struct Workload<'a> {
    pub(super) namespace: &'a str,
    /// One that serves as several services there has labels as each of them: what selects one of these selects it.
    pub(super) labels: Vec<&'a BTreeMap<String, String>>,
    /// The services that it announced itself as.
    pub(super) services: Vec<&'a str>,
    pub(super) port: u16,
    pub(super) pod: Option<&'a Object<Pod>>,
}

impl Workload<'_> {
    /// The policies of a kind that are for the workload: those of the root namespace, which select workloads of every
    /// namespace, and those of its own.
    pub(super) fn meant_by<'m, T>(
        &self,
        model: &Model,
        options: &Options,
        store: &'m Store<T>,
        selection: impl Fn(&T) -> &Selection,
    ) -> Vec<&'m Arc<Object<T>>> {
        let root = Some(&*options.root_namespace).filter(|root| *root != self.namespace);
        let scopes = root.into_iter().chain([self.namespace]);
        let of_scope = |scope: &str| {
            let first = (scope.to_owned(), String::new());
            let scope = scope.to_owned();
            store.range(first..).map_while(move |(key, object)| (key.0 == scope).then_some(object))
        };
        let all = scopes.flat_map(of_scope);
        all.filter(|object| self.is_meant(model, object.namespace(), selection(&object.spec))).collect()
    }

    /// Whether a policy of `scope` is for it.
    fn is_meant(&self, model: &Model, scope: &str, selection: &Selection) -> bool {
        let Some(services) = &selection.services else {
            return selection.labels.as_ref().is_none_or(|wanted| self.has(wanted));
        };
        scope == self.namespace
            && services.iter().any(|name| {
                let service = model.services.get(&(scope.to_owned(), name.clone()));
                let selector = service.map(|service| &service.spec.selector).filter(|selector| !selector.is_empty());
                self.services.contains(&name.as_str()) || selector.is_some_and(|selector| self.has(selector))
            })
    }

    /// The template of whose pods it seems to be one: of those whose labels it has, the one with most.
    pub(super) fn template<'m>(&self, model: &'m Model) -> Option<&'m Template> {
        let all = model.templates().filter(|(document, template)| {
            document.namespace == self.namespace && !template.labels.is_empty() && self.has(&template.labels)
        });
        all.map(|(_, template)| template).max_by_key(|template| template.labels.len())
    }

    fn has(&self, wanted: &BTreeMap<String, String>) -> bool {
        self.labels.iter().any(|labels| includes(labels, wanted))
    }
}

/// The inbound listener of that name. The workload is what the asking service account announced at the address, else
/// the asking process itself, which asks before it announces; its pod knows its labels better than either. What others
/// announce there is nothing to it: they could take its policies away.
pub(super) fn listener(world: &World, scope: &NodeScope, name: &str) -> Option<InboundListener> {
    // What guards are missing nobody knows. Who has a listener keeps it.
    if !world.model.unread.is_empty() {
        return None;
    }
    let address: SocketAddr = name.strip_prefix(names::INBOUND)?.parse().ok()?;
    let workloads = &world.catalog.workloads;
    let account = scope.account.as_deref();
    let own = |registration: &&Registration| {
        let proved = account.is_none_or(|account| registration.service_account == account);
        registration.namespace == scope.namespace && proved
    };
    let own: Vec<_> = workloads.announced.at(address).filter(own).collect();
    let pod = workloads.pod_at(address.ip(), &scope.namespace, account);
    let labels = match pod {
        Some(pod) => vec![&pod.document.labels],
        None if own.is_empty() => vec![&scope.labels],
        None => own.iter().map(|registration| &registration.labels).collect(),
    };
    let workload = Workload {
        namespace: &scope.namespace,
        labels,
        services: own.iter().map(|registration| registration.service.as_str()).collect(),
        port: address.port(),
        pod,
    };
    let tls = strictest(world, &workload);
    let mut authorization = authorization::policies(&world.model, &world.options, &workload);
    authorization.extend(linkerd::policies(&world.model, &world.options, &workload));
    let jwt: Vec<_> = tokens::authentication(world, &workload).into_iter().collect();
    let limits = linkerd::limits(&world.model, &world.options, &workload);
    // A flood of bad tokens is stopped before each of them costs a verification. Not by the limit for all: who has no right
    // to call could use that up, and as Linkerd has it is asked after authorization.
    let of_each = |filter: &HttpFilter| !jwt.is_empty() && matches!(filter.kind, HttpFilterKind::CallerRateLimit(_));
    let (before, filters) = limits.into_iter().partition(of_each);
    // Not the mesh's `defaultConfig`: those proxies are before its gateways, and whoever calls from inside stands behind none.
    let of_pod = pod.and_then(|pod| pod.spec.trusted_proxies);
    let of_template = || workload.template(&world.model)?.trusted_proxies;
    let trusted_proxies = of_pod.or_else(of_template).unwrap_or_default();
    let listener = InboundListener::new(name, address, tls);
    Some(InboundListener { before, jwt, authorization, filters, trusted_proxies, ..listener })
}

/// The mode of a workload's port; the one that lets least in, where its labels have several.
fn strictest(world: &World, of: &Workload<'_>) -> InboundTls {
    let modes = of.labels.iter().map(|labels| mode(&world.model, &world.options, of.namespace, labels, of.port));
    let strictness = |mode: &InboundTls| match mode {
        InboundTls::Strict => 2,
        InboundTls::Permissive => 1,
        InboundTls::Disable => 0,
    };
    modes.max_by_key(strictness).unwrap_or(InboundTls::Strict)
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
    decided(model, options, namespace, labels, port).map_or(InboundTls::Permissive, |(mode, _)| mode)
}

/// The same, with the policy that says it; `None` if nobody does.
pub(super) fn decided<'m>(
    model: &'m Model,
    options: &Options,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    port: u16,
) -> Option<(InboundTls, &'m Object<PeerAuthentication>)> {
    let own = of_namespace(model, namespace);
    let root =
        if namespace == options.root_namespace { Vec::new() } else { of_namespace(model, &options.root_namespace) };
    let selecting = oldest(&own, |policy| policy.selector.as_ref().is_some_and(|wanted| includes(labels, wanted)));
    let at_port = |policy: &PeerAuthentication| policy.ports.get(&port).copied().flatten();
    let whole = |policies: &[&'m Policy]| says(oldest(policies, |policy| policy.selector.is_none()), |p| p.mode);
    says(selecting, at_port)
        .or_else(|| says(selecting, |policy| policy.mode))
        .or_else(|| whole(&own))
        .or_else(|| whole(&root))
}

fn says(
    policy: Option<&Policy>,
    mode: impl Fn(&PeerAuthentication) -> MtlsMode,
) -> Option<(InboundTls, &Object<PeerAuthentication>)> {
    policy.and_then(|policy| Some((mode(&policy.spec)?, &**policy)))
}

type Policy = Arc<Object<PeerAuthentication>>;

fn of_namespace<'a>(model: &'a Model, namespace: &str) -> Vec<&'a Policy> {
    let first = (namespace.to_owned(), String::new());
    let policies = model.peer_authentications.range(first..);
    policies.take_while(|(key, _)| key.0 == namespace).map(|(_, policy)| policy).collect()
}

fn oldest<'a>(policies: &[&'a Policy], wanted: impl Fn(&PeerAuthentication) -> bool) -> Option<&'a Policy> {
    policies.iter().filter(|policy| wanted(&policy.spec)).min_by_key(|policy| policy.seniority()).copied()
}
