//! Every host that exists, from Services, ServiceEntries and announcements, found by any of its names.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::instances::{self, Instance, Workloads};
use super::{NodeScope, Options, names};
use crate::model::{ExportTo, Model, Object, PortProtocol, PortTarget, Resolution, Service, ServiceEntry};
use crate::registry::Registration;

/// The hosts of a mesh.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// By name; a name may be defined in several namespaces, the first that is visible counts.
    hosts: HashMap<String, Vec<Arc<Host>>>,
    /// Wildcard hosts, longest suffix first.
    wildcards: Vec<Arc<Host>>,
    by_ip: HashMap<IpAddr, String>,
    pub(super) workloads: Workloads,
}

/// One host.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Full name, or a wildcard.
    pub(super) name: String,
    /// Name in metrics: the short name of a Kubernetes service.
    pub(super) short: String,
    pub(super) namespace: String,
    /// A Service, or made by an announcement: dialled by short names too.
    pub(super) kubernetes: bool,
    /// There is no Service, only announcements.
    pub(super) implicit: bool,
    pub(super) headless: bool,
    /// MESH_EXTERNAL: no mesh mTLS.
    pub(super) external: bool,
    pub(super) resolution: Lookup,
    pub(super) export_to: ExportTo,
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Names that a certificate must carry, from a ServiceEntry.
    pub(super) subject_alt_names: Vec<String>,
    pub(super) ports: Vec<HostPort>,
}

/// How a host's addresses are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The control plane knows them.
    Known,
    /// All addresses of the names.
    Dns,
    /// One address at connection time.
    DnsRoundRobin,
    /// What the caller dialled.
    Dialled,
}

/// A port of a host with who serves it.
#[derive(Clone, Debug)]
pub(super) struct HostPort {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) protocol: PortProtocol,
    pub(super) target: PortTarget,
    pub(super) instances: Vec<Instance>,
}

impl Host {
    pub(super) fn port(&self, number: u16) -> Option<&HostPort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

impl Catalog {
    pub(super) fn build(model: &Model, registrations: &[Registration], options: &Options) -> Self {
        let workloads = Workloads::build(model, registrations, options);
        let mut hosts: BTreeMap<(String, String), Host> = BTreeMap::new();
        for service in model.services.values() {
            let host = kubernetes(service, &workloads, options);
            hosts.insert((host.name.clone(), host.namespace.clone()), host);
        }
        implicit(&mut hosts, &workloads, options);
        let mut catalog = Self::default();
        let mut entries: Vec<_> = model.service_entries.values().collect();
        entries.sort_by_key(|entry| entry.seniority());
        let mut external = Vec::new();
        for entry in entries {
            for name in &entry.spec.hosts {
                let host = from_entry(entry, name, &workloads);
                match hosts.get_mut(&(name.clone(), host.namespace.clone())) {
                    Some(known) => decorate(known, host),
                    None => external.push(host),
                }
            }
        }
        for host in hosts.into_values().chain(external) {
            catalog.insert(host);
        }
        catalog.wildcards.sort_by_key(|host| std::cmp::Reverse(host.name.len()));
        catalog.workloads = workloads;
        catalog
    }

    fn insert(&mut self, host: Host) {
        for ip in &host.cluster_ips {
            self.by_ip.entry(*ip).or_insert_with(|| host.name.clone());
        }
        let host = Arc::new(host);
        if host.name.starts_with('*') {
            self.wildcards.push(host);
        } else {
            self.hosts.entry(host.name.clone()).or_default().push(host);
        }
    }

    /// The host of that full name (or under a wildcard), if the scope may see it.
    pub(super) fn get(&self, scope: &NodeScope, name: &str) -> Option<&Arc<Host>> {
        let visible = |host: &&Arc<Host>| host.export_to.visible_to(&scope.namespace);
        let exact = self.hosts.get(name).and_then(|hosts| hosts.iter().find(visible));
        exact.or_else(|| {
            let mut wildcards = self.wildcards.iter().filter(visible);
            wildcards.find(|host| host.name == name || name.ends_with(&host.name[1..]))
        })
    }

    /// The full name of what a process of `scope` dials as `host`.
    pub(super) fn resolve(&self, scope: &NodeScope, host: &str, options: &Options) -> Option<(String, &Arc<Host>)> {
        if !host.contains('.') {
            let full = names::fqdn(host, &scope.namespace, options);
            if let Some(found) = self.get(scope, &full) {
                return Some((full, found));
            }
        }
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let name = self.by_ip.get(&ip)?;
            return self.get(scope, name).map(|found| (name.clone(), found));
        }
        // A longer Kubernetes form; below a headless service also the name of one pod.
        if let Some((name, namespace)) = names::kubernetes_form(host, options) {
            let full = names::fqdn(name, namespace, options);
            if let Some(found) = self.get(scope, &full).filter(|found| found.kubernetes) {
                return Some((full, found));
            }
            if let Some((_, service)) = name.split_once('.') {
                let full = names::fqdn(service, namespace, options);
                if let Some(found) = self.get(scope, &full).filter(|found| found.headless) {
                    return Some((full, found));
                }
            }
        }
        self.get(scope, host).map(|found| (host.to_owned(), found))
    }

    /// Every host that the scope may see, wildcards too, by name.
    pub(super) fn visible(&self, scope: &NodeScope) -> Vec<&Arc<Host>> {
        let seen = |host: &&Arc<Host>| host.export_to.visible_to(&scope.namespace);
        let exact = self.hosts.values().filter_map(|hosts| hosts.iter().find(seen));
        let mut all: Vec<_> = exact.chain(self.wildcards.iter().filter(seen)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        // Of two wildcards of one name the first counts, as in `get`.
        all.dedup_by(|a, b| a.name == b.name);
        all
    }

    /// Whether a host of that name exists for anybody.
    pub(super) fn exists(&self, name: &str) -> bool {
        self.hosts.contains_key(name)
            || self.wildcards.iter().any(|host| host.name == name || name.ends_with(&host.name[1..]))
    }
}

fn kubernetes(service: &Object<Service>, workloads: &Workloads, options: &Options) -> Host {
    let spec = &service.spec;
    let (name, namespace) = (service.name(), service.namespace());
    let ports = spec.ports.iter().map(|port| {
        let mut port = HostPort {
            number: port.number,
            name: port.name.clone(),
            protocol: port.protocol,
            target: port.target.clone(),
            instances: Vec::new(),
        };
        match &spec.external_name {
            Some(target) => port.instances.push(Instance::named(target, port.number)),
            None => instances::of_service(service, &mut port, workloads),
        }
        port
    });
    Host {
        name: names::fqdn(name, namespace, options),
        short: name.to_owned(),
        namespace: namespace.to_owned(),
        kubernetes: true,
        implicit: false,
        headless: spec.headless,
        external: spec.external_name.is_some(),
        resolution: if spec.external_name.is_some() { Lookup::Dns } else { Lookup::Known },
        export_to: spec.export_to.clone(),
        cluster_ips: spec.cluster_ips.clone(),
        subject_alt_names: Vec::new(),
        ports: ports.collect(),
    }
}

/// Services that only announcements speak of.
fn implicit(hosts: &mut BTreeMap<(String, String), Host>, workloads: &Workloads, options: &Options) {
    for announced in workloads.announced() {
        let registration = &announced.registration;
        let (service, namespace) = (&registration.service, &registration.namespace);
        let name = names::fqdn(service, namespace, options);
        let key = (name.clone(), namespace.clone());
        if hosts.get(&key).is_some_and(|host| !host.implicit) {
            continue;
        }
        let host = hosts.entry(key).or_insert_with(|| Host {
            name,
            short: service.clone(),
            namespace: namespace.clone(),
            kubernetes: true,
            implicit: true,
            headless: false,
            external: false,
            resolution: Lookup::Known,
            export_to: ExportTo::All,
            cluster_ips: Vec::new(),
            subject_alt_names: Vec::new(),
            ports: Vec::new(),
        });
        let number = registration.service_port;
        let at = host.ports.iter().position(|port| port.number == number).unwrap_or_else(|| {
            let protocol = PortProtocol::word(&registration.port_protocol).unwrap_or(PortProtocol::Unspecified);
            let target = PortTarget::Number(number);
            let name = registration.port_protocol.clone();
            host.ports.push(HostPort { number, name, protocol, target, instances: Vec::new() });
            host.ports.len() - 1
        });
        host.ports[at].instances.push(announced.instance.clone());
    }
}

fn from_entry(entry: &Object<ServiceEntry>, name: &str, workloads: &Workloads) -> Host {
    let spec = &entry.spec;
    let ports = spec.ports.iter().map(|port| {
        let mut port = HostPort {
            number: port.number,
            name: port.name.clone(),
            protocol: port.protocol,
            target: PortTarget::Number(port.target),
            instances: Vec::new(),
        };
        instances::of_entry(entry, name, &mut port, workloads);
        port
    });
    Host {
        name: name.to_owned(),
        short: name.to_owned(),
        namespace: entry.namespace().to_owned(),
        kubernetes: false,
        implicit: false,
        headless: false,
        external: spec.external,
        resolution: match spec.resolution {
            Resolution::Static => Lookup::Known,
            Resolution::Dns => Lookup::Dns,
            Resolution::DnsRoundRobin => Lookup::DnsRoundRobin,
            Resolution::None => Lookup::Dialled,
        },
        export_to: spec.export_to.clone(),
        cluster_ips: Vec::new(),
        subject_alt_names: spec.subject_alt_names.clone(),
        ports: ports.collect(),
    }
}

/// An entry for a host that Kubernetes defines adds its names and endpoints to it.
fn decorate(known: &mut Host, entry: Host) {
    known.subject_alt_names.extend(entry.subject_alt_names);
    for port in entry.ports {
        match known.ports.iter_mut().find(|other| other.number == port.number) {
            Some(other) if entry.resolution == Lookup::Known => other.instances.extend(port.instances),
            _ => {}
        }
    }
}
