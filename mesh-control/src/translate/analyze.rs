//! Findings that need several objects: what `istioctl analyze` reports, with its codes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::references::{self, Dangling, full_name};
use super::{NodeScope, World, guards, in_vain, names, plaintext, selected, unannounced, unnamed};
use crate::finding::{Finding, Severity};
use crate::model::{Object, PortProtocol, VirtualService, covers};

/// Everything to say about how the objects fit together.
pub(super) fn findings(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in world.model.virtual_services.values() {
        virtual_service(world, service, &mut findings);
    }
    contested(world, &mut findings);
    destination_rules(world, &mut findings);
    subsets_of_two(world, &mut findings);
    plaintext::findings(world, &mut findings);
    unnamed::findings(world, &mut findings);
    linkerd(world, &mut findings);
    guards::findings(world, &mut findings);
    in_vain::findings(world, &mut findings);
    selected::findings(world, &mut findings);
    announcements(world, &mut findings);
    unannounced::findings(world, &mut findings);
    findings.sort_by(|a, b| (&a.file, a.line, &a.field).cmp(&(&b.file, b.line, &b.field)));
    findings
}

fn virtual_service(world: &World, service: &Object<VirtualService>, findings: &mut Vec<Finding>) {
    let scope = NodeScope::namespace(service.namespace());
    for (i, host) in service.spec.hosts.iter().enumerate() {
        if let Some(full) = full_name(world, host) {
            let message = format!("{host:?} is taken literally and does not name the service; write {full:?}");
            findings.push(service.finding(Severity::Warning, &format!("spec.hosts[{i}]"), message));
            continue;
        }
        let full = names::complete(host, service.namespace(), &world.options);
        if service.spec.mesh && !full.starts_with('*') && world.catalog.get(&scope, &full).is_none() {
            let message = format!("no Service or ServiceEntry {full:?}: the routes hold for nothing");
            findings.push(service.finding(Severity::Warning, &format!("spec.hosts[{i}]"), message));
        }
    }
    not_of_its_ports(world, &scope, service, findings);
    gateways(world, service, findings);
    dangling(service, references::of_virtual_service(world, service), findings);
}

fn dangling<T>(object: &Object<T>, references: Vec<Dangling>, findings: &mut Vec<Finding>) {
    for dangling in references {
        let message = format!("{}: {}", dangling.missing, dangling.effect());
        findings.push(object.finding(Severity::Error, &dangling.path, message).with_code("IST0101"));
    }
}

/// Routes of a host on whose ports the mesh sees nothing that they are for.
fn not_of_its_ports(world: &World, scope: &NodeScope, service: &Object<VirtualService>, findings: &mut Vec<Finding>) {
    type Takes = fn(PortProtocol) -> bool;
    let spec = &service.spec;
    let lists: [(bool, &str, &str, Takes); 3] = [
        (spec.http.is_empty(), "http", "HTTP", PortProtocol::is_http),
        (spec.tls.is_empty(), "tls", "HTTPS or TLS", |p| matches!(p, PortProtocol::Https | PortProtocol::Tls)),
        (spec.tcp.is_empty(), "tcp", "TCP", |p| matches!(p, PortProtocol::Tcp | PortProtocol::Unspecified)),
    ];
    for (i, host) in spec.hosts.iter().enumerate().filter(|_| spec.mesh) {
        let full = names::complete(host, service.namespace(), &world.options);
        let Some(known) = world.catalog.get(scope, &full).filter(|known| !known.ports.is_empty()) else { continue };
        for (_, list, words, takes) in lists.iter().filter(|(empty, ..)| !empty) {
            if !known.ports.iter().any(|port| takes(port.protocol)) {
                let message = format!("no port of {full} is declared as {words}: the {list} routes do not apply to it");
                findings.push(service.finding(Severity::Warning, &format!("spec.hosts[{i}]"), message));
            }
        }
    }
}

/// Gateways that do not exist or do not cover the hosts.
fn gateways(world: &World, service: &Object<VirtualService>, findings: &mut Vec<Finding>) {
    for written in &service.spec.gateways {
        let (namespace, name) = written.split_once('/').unwrap_or((service.namespace(), written));
        let Some(gateway) = world.model.gateways.get(&(namespace.to_owned(), name.to_owned())) else {
            let message = format!("no Gateway {namespace}/{name}");
            findings.push(service.finding(Severity::Warning, "spec.gateways", message).with_code("IST0101"));
            continue;
        };
        for (i, host) in service.spec.hosts.iter().enumerate() {
            if !gateway.spec.hosts.iter().any(|served| covers(served, host) || covers(host, served)) {
                let message = format!("Gateway {namespace}/{name} does not serve host {host:?}");
                let path = format!("spec.hosts[{i}]");
                findings.push(service.finding(Severity::Warning, &path, message).with_code("IST0132"));
            }
        }
    }
}

fn contested(world: &World, findings: &mut Vec<Finding>) {
    for (host, list) in world.virtual_services.contested() {
        for later in &list[1..] {
            // Objects that no namespace sees together do not compete.
            let rival = list.iter().take_while(|other| !std::sync::Arc::ptr_eq(other, later)).find(|other| {
                other.spec.export_to.visible_to(later.namespace()) || later.spec.export_to.visible_to(other.namespace())
            });
            if let Some(first) = rival {
                let message = format!(
                    "host {host} also belongs to VirtualService {}/{} ({}:{}), which wins; the two are not merged",
                    first.namespace(),
                    first.name(),
                    first.document.file,
                    first.document.line
                );
                findings.push(later.finding(Severity::Error, "spec.hosts", message).with_code("IST0109"));
            }
        }
    }
}

fn destination_rules(world: &World, findings: &mut Vec<Finding>) {
    for rule in world.model.destination_rules.values() {
        let host = names::complete(&rule.spec.host, rule.namespace(), &world.options);
        if host.starts_with('*') {
            continue;
        }
        let scope = NodeScope::namespace(rule.namespace());
        let Some(known) = world.catalog.get(&scope, &host) else {
            let hint = full_name(world, &host).map(|full| format!("; did you mean {full}?")).unwrap_or_default();
            let message = format!("no Service or ServiceEntry {host:?}{hint}");
            findings.push(rule.finding(Severity::Warning, "spec.host", message).with_code("IST0174"));
            continue;
        };
        // Without any endpoint there is nothing to say about labels.
        if known.ports.iter().all(|port| port.instances.is_empty()) {
            continue;
        }
        for (i, subset) in rule.spec.subsets.iter().enumerate() {
            let somebody = known.ports.iter().flat_map(|port| &port.instances).any(|one| one.has(&subset.labels));
            if !somebody {
                let message = format!("no endpoint of {host} has the labels of subset {:?}: it gets 503", subset.name);
                let path = format!("spec.subsets[{i}]");
                findings.push(rule.finding(Severity::Error, &path, message).with_code("IST0173"));
            }
        }
    }
}

/// Subsets that two rules of one host define: rules are joined, and of what both have the older one's counts.
fn subsets_of_two(world: &World, findings: &mut Vec<Finding>) {
    let mut all: Vec<_> = world.model.destination_rules.values().filter(|rule| rule.spec.selector.is_none()).collect();
    all.sort_by_key(|rule| rule.seniority());
    let mut known = BTreeMap::new();
    for rule in all {
        let host = names::complete(&rule.spec.host, rule.namespace(), &world.options);
        for (i, subset) in rule.spec.subsets.iter().enumerate() {
            match known.entry((rule.namespace(), host.clone(), subset.name.as_str())) {
                Entry::Vacant(place) => _ = place.insert(rule),
                // Rules shown to different clients are not joined.
                Entry::Occupied(first) if first.get().spec.export_to == rule.spec.export_to => {
                    let first = &first.get().document;
                    let message = format!(
                        "subset {:?} of {host} is also defined by DestinationRule {}/{} ({}:{}), which wins: this one \
                         has no effect; rename one of the two",
                        subset.name, first.namespace, first.name, first.file, first.line
                    );
                    findings.push(rule.finding(Severity::Warning, &format!("spec.subsets[{i}].name"), message));
                }
                Entry::Occupied(_) => {}
            }
        }
    }
}

/// Linkerd's and SMI's kinds: what beats them, and what they name that is not there.
fn linkerd(world: &World, findings: &mut Vec<Finding>) {
    for profile in world.model.service_profiles.values() {
        let scope = NodeScope::namespace(profile.namespace());
        if let Some(rival) = world.virtual_services.find(&scope, profile.name()) {
            let message = format!(
                "VirtualService {}/{} holds for this host: its routes decide, and this profile's retries, timeouts and \
                 classes are ignored; remove one of the two",
                rival.namespace(),
                rival.name()
            );
            findings.push(profile.finding(Severity::Error, "", message));
        }
        if !world.catalog.exists(profile.name()) {
            let message = format!("no Service {:?}: the profile holds for nothing", profile.name());
            findings.push(profile.finding(Severity::Warning, "metadata.name", message));
        }
        dangling(profile, references::of_profile(world, profile), findings);
    }
    let mut roots = BTreeSet::new();
    let mut splits: Vec<_> = world.model.traffic_splits.values().collect();
    splits.sort_by_key(|split| split.seniority());
    for split in splits {
        let host = names::fqdn(&split.spec.root, split.namespace(), &world.options);
        if !roots.insert(host.clone()) {
            let message = format!("an older TrafficSplit holds for {host}; this one is ignored");
            findings.push(split.finding(Severity::Error, "spec.service", message));
        }
        let scope = NodeScope::namespace(split.namespace());
        if let Some(rival) = world.virtual_services.find(&scope, &host) {
            let (namespace, name) = (rival.namespace(), rival.name());
            let message = format!("VirtualService {namespace}/{name} holds for {host}; this split is ignored");
            findings.push(split.finding(Severity::Warning, "spec.service", message));
        }
        if !world.catalog.exists(&host) {
            let message = format!("no Service {host:?}: the split holds for nothing");
            findings.push(split.finding(Severity::Warning, "spec.service", message));
        }
        dangling(split, references::of_split(world, split), findings);
    }
}

/// Announcements that no Service takes up; of each such port the first is named.
fn announcements(world: &World, findings: &mut Vec<Finding>) {
    for ((namespace, name), service) in &world.model.services {
        let known = |port| service.spec.ports.iter().any(|own| own.number == port);
        let mut last = None;
        for announced in world.catalog.workloads.announced.of_service(namespace, name) {
            let (address, port) = (announced.registration.address, announced.registration.service_port);
            // They are in order of port.
            if last.replace(port) != Some(port) && !known(port) {
                let message = format!(
                    "a process at {address} announced port {port}, which this Service does not have: it gets no \
                     requests there"
                );
                findings.push(service.finding(Severity::Warning, "spec.ports", message));
            }
        }
    }
}
