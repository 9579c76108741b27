//! Findings about who is selected: policies that select nobody who is known, rules about a port on which nobody of those
//! selected listens, and processes that serve as a Service whose selector does not match them.

use std::collections::BTreeMap;

use mesh_core::policy::Permission;

use super::World;
use super::instances::includes;
use crate::finding::{Finding, Severity};
use crate::model::{Object, PortTarget, Selection, ServerPort, labels_in_words};
use crate::registry::Registration;

pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    let model = &world.model;
    for policy in model.authorization_policies.values() {
        nobody(world, policy, policy.spec.selection.labels.as_ref(), findings);
        let mut named = Vec::new();
        for (i, rule) in policy.spec.rules.iter().enumerate() {
            rule.permissions.iter().for_each(|one| ports_of(one, &format!("spec.rules[{i}]"), &mut named));
        }
        named.dedup();
        if !named.is_empty() {
            off_port(world, policy, &named, &of_selection(world, policy.namespace(), &policy.spec.selection), findings);
        }
    }
    for policy in model.request_authentications.values() {
        nobody(world, policy, policy.spec.selection.labels.as_ref(), findings);
    }
    for policy in model.peer_authentications.values() {
        nobody(world, policy, policy.spec.selector.as_ref(), findings);
        if let Some(labels) = policy.spec.selector.as_ref().filter(|_| !policy.spec.ports.is_empty()) {
            let named = policy.spec.ports.keys().map(|port| (format!("spec.portLevelMtls.{port}"), *port));
            let named: Vec<_> = named.collect();
            off_port(world, policy, &named, &with_labels(world, policy.namespace(), labels), findings);
        }
    }
    for server in model.linkerd_servers.values() {
        if let ServerPort::Number(port) = server.spec.port {
            let all = world.catalog.workloads.announced.iter().map(|announced| &*announced.registration);
            let own = all.filter(|one| one.namespace == server.namespace());
            let meant: Vec<_> = own.filter(|one| server.spec.pods.picks(&one.labels)).collect();
            off_port(world, server, &[("spec.port".to_owned(), port)], &meant, findings);
        }
    }
    rivals(world, findings);
    strangers(world, findings);
}

/// PeerAuthentications for the same workloads: of each scope the oldest alone counts, with all that it says.
fn rivals(world: &World, findings: &mut Vec<Finding>) {
    let mut scopes = BTreeMap::<_, Vec<_>>::new();
    for policy in world.model.peer_authentications.values() {
        scopes.entry((policy.namespace(), policy.spec.selector.is_some())).or_default().push(policy);
    }
    for ((namespace, selects), mut policies) in scopes.into_iter().filter(|(_, policies)| policies.len() > 1) {
        policies.sort_by_key(|policy| policy.seniority());
        // By the later one, which one wins. Those that select the same are rivals though nobody is known yet.
        let (mut lost, mut known) = (BTreeMap::new(), BTreeMap::new());
        for (i, policy) in policies.iter().enumerate() {
            let first = *known.entry(&policy.spec.selector).or_insert(i);
            lost.extend((first != i).then_some((i, first)));
        }
        for labels in labels_in(world, namespace).filter(|_| selects) {
            let is_meant = |i: &usize| policies[*i].spec.selector.as_ref().is_some_and(|of| includes(labels, of));
            let mut meant = (0..policies.len()).filter(is_meant);
            if let Some(first) = meant.next() {
                meant.for_each(|later| _ = lost.entry(later).or_insert(first));
            }
        }
        for (later, first) in lost {
            let (later, first) = (policies[later], policies[first]);
            let same = later.spec.selector == first.spec.selector;
            let message = format!(
                "PeerAuthentication {} ({}:{}) is older, or first by name, and for {}: this one counts for nothing there; \
                 make one of the two",
                first.name(),
                first.document.file,
                first.document.line,
                if same { "the same workloads" } else { "some of the same workloads" },
            );
            let field = if selects { "spec.selector" } else { "spec" };
            findings.push(later.finding(Severity::Warning, field, message));
        }
    }
}

/// The labels of all workloads that are known in a namespace.
fn labels_in<'w>(world: &'w World, namespace: &'w str) -> impl Iterator<Item = &'w BTreeMap<String, String>> {
    let model = &world.model;
    let announced = world.catalog.workloads.announced.iter().map(|announced| &*announced.registration);
    let announced = announced.filter(move |one| one.namespace == namespace).map(|one| &one.labels);
    let pods = model.pods.values().filter(move |pod| pod.namespace() == namespace).map(|pod| &pod.document.labels);
    let templates = model.templates().filter(move |(document, _)| document.namespace == namespace);
    announced.chain(pods).chain(templates.map(|(_, template)| &template.labels))
}

/// A selector that matches nobody yet; what is not announced and in no manifest is not known here.
fn nobody<T>(
    world: &World,
    policy: &Object<T>,
    labels: Option<&BTreeMap<String, String>>,
    findings: &mut Vec<Finding>,
) {
    let Some(labels) = labels else { return };
    let (model, scope) = (&world.model, scope(world, policy.namespace()));
    let within = |namespace: &str| scope.is_none_or(|scope| scope == namespace);
    let known = !with_labels(world, policy.namespace(), labels).is_empty()
        || model.pods.values().any(|pod| within(pod.namespace()) && includes(&pod.document.labels, labels))
        || model
            .templates()
            .any(|(document, template)| within(&document.namespace) && includes(&template.labels, labels))
        || model
            .workload_entries
            .values()
            .any(|entry| within(entry.namespace()) && includes(&entry.spec.endpoint.labels, labels));
    if !known {
        let message =
            format!("no workload that is known has the labels {}: nobody is held to it yet", labels_in_words(labels));
        findings.push(policy.finding(Severity::Info, "spec.selector", message).with_code("IST0127"));
    }
}

/// The namespace that a policy is about; `None` = every one.
fn scope<'a>(world: &World, namespace: &'a str) -> Option<&'a str> {
    Some(namespace).filter(|namespace| *namespace != world.options.root_namespace)
}

/// The processes with these labels of which a policy in `namespace` may be.
fn with_labels<'w>(world: &'w World, namespace: &str, labels: &'w BTreeMap<String, String>) -> Vec<&'w Registration> {
    let announced = &world.catalog.workloads.announced;
    match scope(world, namespace) {
        Some(namespace) => {
            announced.selected(namespace, labels).into_iter().map(|announced| &*announced.registration).collect()
        }
        None => {
            announced.iter().map(|announced| &*announced.registration).filter(|r| includes(&r.labels, labels)).collect()
        }
    }
}

fn of_selection<'w>(world: &'w World, namespace: &str, selection: &'w Selection) -> Vec<&'w Registration> {
    let announced = &world.catalog.workloads.announced;
    match (&selection.services, &selection.labels) {
        (Some(services), _) => {
            let of_service = services.iter().flat_map(|service| announced.of_service(namespace, service));
            of_service.map(|announced| &*announced.registration).collect()
        }
        (None, Some(labels)) => with_labels(world, namespace, labels),
        (None, None) => {
            let all = announced.iter().map(|announced| &*announced.registration);
            all.filter(|one| scope(world, namespace).is_none_or(|scope| scope == one.namespace)).collect()
        }
    }
}

fn ports_of(permission: &Permission, at: &str, named: &mut Vec<(String, u16)>) {
    match permission {
        Permission::And(list) | Permission::Or(list) => list.iter().for_each(|one| ports_of(one, at, named)),
        Permission::Not(one) => ports_of(one, at, named),
        Permission::DestinationPort(port) => named.push((at.to_owned(), *port)),
        _ => {}
    }
}

/// Ports of a rule at which nobody of those meant listens, though one of them serves a Service that has such a port: rules
/// are about the port that a process listens on, and not about the one that callers dial.
fn off_port<T>(
    world: &World,
    policy: &Object<T>,
    named: &[(String, u16)],
    meant: &[&Registration],
    findings: &mut Vec<Finding>,
) {
    for (path, port) in named {
        if meant.iter().any(|one| one.address.port() == *port) {
            continue;
        }
        let serving = meant.iter().filter(|one| stands_for(world, one, *port));
        let Some(one) = serving.min_by_key(|one| (&one.service, one.address)) else { continue };
        let (service, address) = (&one.service, one.address);
        let message = format!(
            "port {port} is one of Service {service}, whose process at {address} listens on port {}; rules are about the \
             port that a process listens on, and nobody who is selected listens on {port}: name the port of the process, \
             or listen on {port}",
            address.port()
        );
        findings.push(policy.finding(Severity::Warning, path, message));
    }
}

fn stands_for(world: &World, one: &Registration, port: u16) -> bool {
    let service = world.model.services.get(&(one.namespace.clone(), one.service.clone()));
    let mut ports = service.iter().flat_map(|service| &service.spec.ports);
    one.service_port == port || ports.any(|own| own.number == port || own.target == PortTarget::Number(port))
}

/// Processes that announced themselves as a Service whose selector they do not match; on Kubernetes they would be none of
/// its endpoints.
fn strangers(world: &World, findings: &mut Vec<Finding>) {
    for ((namespace, name), service) in &world.model.services {
        let announced = world.catalog.workloads.announced.of_service(namespace, name);
        let mut strangers =
            announced.iter().map(|one| &one.registration).filter(|one| !service.spec.matches(&one.labels));
        if let Some(first) = strangers.next() {
            let others = match strangers.count() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let message = format!("{} at {}{others}", service.spec.mismatch(name, &first.labels), first.address);
            findings.push(service.finding(Severity::Warning, "spec.selector", message));
        }
    }
}
