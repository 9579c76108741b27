//! Every host that exists, from Services, ServiceEntries and announcements, found by any of its names.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::policy::FailureAccrual;

use super::announced::Announced;
use super::instances::{self, Instance, Policies, Slice, Workloads};
use super::{NodeScope, Options, names};
use crate::model::{ExportTo, Model, Object, PortProtocol, PortTarget, Resolution, Service, ServiceEntry};
use crate::registry::{Registration, Registrations};
use crate::shards::Shards;

/// The hosts of a mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalog {
    /// By name; a name may be defined in several namespaces, the first that is visible counts.
    hosts: Shards<String, Arc<[Arc<Host>]>>,
    /// Wildcard hosts, longest suffix first.
    wildcards: Arc<[Arc<Host>]>,
    by_ip: Arc<HashMap<IpAddr, String>>,
    defined: Arc<Defined>,
    pub(super) workloads: Workloads,
}

/// Which hosts the manifests define, and of whom they are made.
#[derive(Debug, Default)]
struct Defined {
    /// ServiceEntries by host, oldest first.
    entries: HashMap<String, Vec<Arc<Object<ServiceEntry>>>>,
    /// Hosts whose selectors have this label, by namespace, label and value.
    selecting: HashMap<(String, String, String), Vec<String>>,
    /// Hosts whose selectors are empty and pick all, by namespace.
    selecting_all: HashMap<String, Vec<String>>,
}

/// A registration before and after.
pub(super) type Change<'a> = (Option<&'a Arc<Registration>>, Option<&'a Arc<Registration>>);

/// An endpoint slice before and after.
pub(super) type SliceChange<'a> = (Option<&'a Slice>, Option<&'a Slice>);

/// What a change of registrations and endpoint slices changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Hosts that may have other endpoints.
    pub(crate) hosts: HashSet<String>,
    /// Addresses at which somebody else may be.
    pub(crate) addresses: HashSet<SocketAddr>,
    /// Whether there are other hosts or ports than before.
    pub(crate) names: bool,
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
    /// From the Service's annotations.
    pub(super) accrual: Option<FailureAccrual>,
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

    /// Whether it is the same but for who serves it. What manifests say of a host does not change with
    /// registrations; its ports and whether there is a Service may.
    fn same_ports(&self, other: &Self) -> bool {
        let port = |port: &HostPort| (port.number, port.protocol, port.name.clone());
        let same = self.ports.iter().map(port).eq(other.ports.iter().map(port));
        same && (self.implicit, self.kubernetes, &self.namespace)
            == (other.implicit, other.kubernetes, &other.namespace)
    }
}

impl Defined {
    fn build(model: &Model, options: &Options) -> Self {
        let mut defined = Self::default();
        for service in model.services.values() {
            let hosts = [full_name(service, options)];
            if !service.spec.selector.is_empty() {
                defined.select(service.namespace(), &service.spec.selector, &hosts);
            }
        }
        let mut entries: Vec<_> = model.service_entries.values().collect();
        entries.sort_by_key(|entry| entry.seniority());
        for entry in entries {
            let hosts = &entry.spec.hosts;
            hosts.iter().for_each(|host| defined.entries.entry(host.clone()).or_default().push(entry.clone()));
            if let Some(selector) = &entry.spec.selector {
                defined.select(entry.namespace(), selector, hosts);
            }
        }
        defined
    }

    /// Notes a selector under its first label: who has all labels has that one.
    fn select(&mut self, namespace: &str, selector: &BTreeMap<String, String>, hosts: &[String]) {
        let list = match selector.iter().next() {
            Some((key, value)) => self.selecting.entry((namespace.to_owned(), key.clone(), value.clone())).or_default(),
            None => self.selecting_all.entry(namespace.to_owned()).or_default(),
        };
        list.extend(hosts.iter().cloned());
    }

    /// Adds the hosts that a registration may serve.
    fn served_by(&self, registration: &Registration, options: &Options, hosts: &mut HashSet<String>) {
        let namespace = &registration.namespace;
        hosts.insert(names::fqdn(&registration.service, namespace, options));
        hosts.extend(self.selecting_all.get(namespace).into_iter().flatten().cloned());
        for (key, value) in &registration.labels {
            let selecting = self.selecting.get(&(namespace.clone(), key.clone(), value.clone()));
            hosts.extend(selecting.into_iter().flatten().cloned());
        }
    }
}

fn full_name(service: &Object<Service>, options: &Options) -> String {
    names::fqdn(service.name(), service.namespace(), options)
}

impl Catalog {
    pub(super) fn build(model: &Model, registrations: &Registrations, options: &Options) -> Self {
        let workloads = Workloads::build(model, registrations, options);
        let mut catalog = Self { defined: Arc::new(Defined::build(model, options)), workloads, ..Self::default() };
        let mut services: Vec<_> =
            model.services.values().map(|service| (full_name(service, options), service)).collect();
        services.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut by_ip = HashMap::new();
        for (name, service) in &services {
            for ip in &service.spec.cluster_ips {
                by_ip.entry(*ip).or_insert_with(|| name.clone());
            }
        }
        catalog.by_ip = Arc::new(by_ip);
        let announced = registrations.values().map(|r| names::fqdn(&r.service, &r.namespace, options));
        let services = services.into_iter().map(|(name, _)| name);
        let all: BTreeSet<String> = services.chain(announced).chain(catalog.defined.entries.keys().cloned()).collect();
        let mut wildcards = Vec::new();
        for name in all {
            let hosts = catalog.assemble(&name, model, options);
            if name.starts_with('*') {
                wildcards.extend(hosts);
            } else {
                catalog.hosts.insert(name, hosts.into());
            }
        }
        wildcards.sort_by_key(|host| std::cmp::Reverse(host.name.len()));
        catalog.wildcards = wildcards.into();
        catalog
    }

    /// The catalog after registrations and endpoint slices changed, sharing what did not, and what did; `None` if
    /// so much may have changed that it must be built anew.
    pub(super) fn update(
        &self,
        changes: &[Change<'_>],
        slices: &[SliceChange<'_>],
        model: &Model,
        options: &Options,
    ) -> Option<(Self, Changed)> {
        let mut catalog = self.clone();
        let mut changed = Changed::default();
        for (before, after) in changes {
            if let Some(before) = before {
                catalog.workloads.announced.remove(before);
            }
            if let Some(after) = after {
                catalog.workloads.announce(after, model, options);
            }
            for registration in before.iter().chain(after) {
                changed.addresses.insert(registration.address);
                self.defined.served_by(registration, options, &mut changed.hosts);
            }
        }
        for (before, after) in slices {
            before.iter().for_each(|slice| catalog.workloads.unslice(slice));
            after.iter().for_each(|slice| catalog.workloads.slice(slice));
            for (namespace, service) in before.iter().chain(after).map(|slice| instances::sliced(slice)) {
                changed.hosts.insert(names::fqdn(&service, &namespace, options));
            }
        }
        for name in &changed.hosts {
            if name.starts_with('*') {
                return None;
            }
            let hosts: Arc<[Arc<Host>]> = catalog.assemble(name, model, options).into();
            let before = self.hosts.get(name).map_or(&[][..], |hosts| hosts);
            changed.names |= before.len() != hosts.len() || before.iter().zip(&*hosts).any(|(a, b)| !a.same_ports(b));
            if hosts.is_empty() {
                catalog.hosts.remove(name);
            } else {
                catalog.hosts.insert(name.clone(), hosts);
            }
        }
        Some((catalog, changed))
    }

    /// The hosts of that name, made from everything that speaks of it.
    fn assemble(&self, name: &str, model: &Model, options: &Options) -> Vec<Arc<Host>> {
        let workloads = &self.workloads;
        let policies = Policies { model, options };
        let own = names::kubernetes_form(name, options);
        let own = own.filter(|(service, namespace)| names::fqdn(service, namespace, options) == name);
        let mut own = own.and_then(|(service, namespace)| {
            match model.services.get(&(namespace.to_owned(), service.to_owned())) {
                Some(defined) => Some(kubernetes(defined, workloads, policies)),
                None => implicit(name, workloads.announced.of_service(namespace, service)),
            }
        });
        let mut external = Vec::new();
        for entry in self.defined.entries.get(name).into_iter().flatten() {
            let host = from_entry(entry, name, workloads, policies);
            match &mut own {
                Some(known) if known.namespace == host.namespace => decorate(known, host),
                _ => external.push(host),
            }
        }
        own.into_iter().chain(external).map(Arc::new).collect()
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
        self.hosts.get(name).is_some()
            || self.wildcards.iter().any(|host| host.name == name || name.ends_with(&host.name[1..]))
    }
}

fn kubernetes(service: &Object<Service>, workloads: &Workloads, policies: Policies<'_>) -> Host {
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
            None => instances::of_service(service, &mut port, workloads, policies),
        }
        port
    });
    Host {
        name: names::fqdn(name, namespace, policies.options),
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
        accrual: spec.accrual.clone(),
        ports: ports.collect(),
    }
}

/// A service that only announcements speak of.
fn implicit(name: &str, announced: &[Arc<Announced>]) -> Option<Host> {
    let first = &announced.first()?.registration;
    let mut host = Host {
        name: name.to_owned(),
        short: first.service.clone(),
        namespace: first.namespace.clone(),
        kubernetes: true,
        implicit: true,
        headless: false,
        external: false,
        resolution: Lookup::Known,
        export_to: ExportTo::All,
        cluster_ips: Vec::new(),
        subject_alt_names: Vec::new(),
        accrual: None,
        ports: Vec::new(),
    };
    for announced in announced {
        let registration = &announced.registration;
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
    Some(host)
}

fn from_entry(entry: &Object<ServiceEntry>, name: &str, workloads: &Workloads, policies: Policies<'_>) -> Host {
    let spec = &entry.spec;
    let ports = spec.ports.iter().map(|port| {
        let mut port = HostPort {
            number: port.number,
            name: port.name.clone(),
            protocol: port.protocol,
            target: PortTarget::Number(port.target),
            instances: Vec::new(),
        };
        instances::of_entry(entry, name, &mut port, workloads, policies);
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
        accrual: None,
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
