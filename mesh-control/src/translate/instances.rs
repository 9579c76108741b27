//! Who serves a port: endpoint slices, workload entries, service entry endpoints, announcements.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use mesh_core::id::{Locality, Workload};
use mesh_core::policy::{Address, EndpointMetadata, Health, InboundTls};

use super::announced::{Announced, Announcements};
use super::catalog::HostPort;
use super::{Options, inbound};
use crate::model::{
    EndpointSlice, EntryAddress, EntryEndpoint, Model, Object, Pod, PortTarget, Resolution, Service, ServiceEntry,
};
use crate::registry::{Registration, Registrations};
use crate::shards::Shards;

/// One endpoint of a port.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) address: Address,
    /// Further addresses at which it is, of another family.
    pub(super) others: Vec<Address>,
    pub(super) labels: Arc<BTreeMap<String, String>>,
    pub(super) locality: Locality,
    pub(super) weight: NonZeroU32,
    pub(super) health: Health,
    pub(super) namespace: String,
    /// Service account; `None` = not known.
    pub(super) account: Option<String>,
    pub(super) metadata: Arc<EndpointMetadata>,
}

impl Instance {
    /// A name to resolve, about which nothing else is known.
    pub(super) fn named(host: &str, port: u16) -> Self {
        Self {
            address: Address::Name { host: host.into(), port },
            others: Vec::new(),
            labels: Arc::default(),
            locality: Locality::default(),
            weight: NonZeroU32::MIN,
            health: Health::Healthy,
            namespace: String::new(),
            account: None,
            metadata: Arc::default(),
        }
    }

    /// Whether its labels include all of `wanted`.
    pub(super) fn has(&self, wanted: &BTreeMap<String, String>) -> bool {
        includes(&self.labels, wanted)
    }
}

/// Whether `labels` include all of `wanted`.
pub(super) fn includes(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What decides whether an endpoint is called with mesh mTLS.
#[derive(Clone, Copy)]
pub(super) struct Policies<'a> {
    pub(super) model: &'a Model,
    pub(super) options: &'a Options,
}

impl Policies<'_> {
    /// How a workload's port is called, if it or its labels say `said` of whether with mesh mTLS. The policy of the port
    /// counts first: a server that refuses TLS gets plaintext, and one that demands it is never sent anything else. What a
    /// process says of itself must not lay the requests of its callers open. To a `member` of the mesh that holds whatever
    /// a `DestinationRule` says; of what else a policy selects nobody knows that it is one.
    fn transport(
        self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
        said: bool,
        member: bool,
    ) -> EndpointMetadata {
        let mode = inbound::mode(self.model, self.options, namespace, labels, port);
        let mesh_tls = match mode {
            InboundTls::Strict => true,
            InboundTls::Permissive => said,
            InboundTls::Disable => false,
        };
        let plaintext_refused = member && mode == InboundTls::Strict;
        EndpointMetadata { mesh_tls, plaintext_refused, ..EndpointMetadata::default() }
    }
}

/// Workloads that selectors may pick, by namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Workloads {
    pub(super) announced: Announcements,
    entries_in: Arc<HashMap<String, Vec<(String, EntryEndpoint)>>>,
    /// By namespace and service.
    slices: Shards<(String, String), Slices>,
    pods: Arc<Pods>,
}

/// Pods, which say of an endpoint what its slice does not.
#[derive(Debug, Default)]
struct Pods {
    /// By namespace and name.
    named: HashMap<(String, String), Arc<Object<Pod>>>,
    /// Those on the network of their host share its address.
    at: HashMap<IpAddr, Vec<Arc<Object<Pod>>>>,
}

impl Pods {
    fn build(model: &Model) -> Self {
        let mut pods = Self::default();
        for (key, pod) in &model.pods {
            pods.named.insert(key.clone(), pod.clone());
            pod.spec.ips.iter().for_each(|ip| pods.at.entry(*ip).or_default().push(pod.clone()));
        }
        pods
    }

    /// The pod that a slice names, else the one at the address in the slice's namespace.
    fn behind(&self, named: Option<&(String, String)>, ip: IpAddr, namespace: &str) -> Option<&Object<Pod>> {
        let named = named.and_then(|key| self.named.get(key));
        named.map(|pod| &**pod).or_else(|| self.only(ip, |pod| pod.namespace() == namespace))
    }

    /// The pod of that kind at an address; of several there is no telling.
    fn only(&self, ip: IpAddr, wanted: impl Fn(&Object<Pod>) -> bool) -> Option<&Object<Pod>> {
        let mut all = self.at.get(&ip)?.iter().map(|pod| &**pod).filter(|pod| wanted(pod));
        all.next().filter(|_| all.next().is_none())
    }
}

/// Of one service, by name.
type Slices = Arc<[Slice]>;
pub(super) type Slice = Arc<Object<EndpointSlice>>;

impl Workloads {
    pub(super) fn build(model: &Model, registrations: &Registrations, options: &Options) -> Self {
        let mut entries_in: HashMap<_, Vec<_>> = HashMap::new();
        for entry in model.workload_entries.values() {
            let list = entries_in.entry(entry.namespace().to_owned()).or_default();
            list.push((entry.name().to_owned(), entry.spec.endpoint.clone()));
        }
        let mut of_service: HashMap<_, Vec<Slice>> = HashMap::new();
        for slice in model.endpoint_slices.values() {
            of_service.entry(sliced(slice)).or_default().push(slice.clone());
        }
        let mut slices = Shards::default();
        of_service.into_iter().for_each(|(service, list)| _ = slices.insert(service, list.into()));
        let announced = Announcements::default();
        let (entries_in, pods) = (Arc::new(entries_in), Arc::new(Pods::build(model)));
        let mut workloads = Self { announced, entries_in, slices, pods };
        for registration in registrations.values() {
            workloads.announce(registration, model, options);
        }
        workloads
    }

    /// The pod at an address, if it is of that namespace and, where that is known, runs as that service account.
    pub(super) fn pod_at(&self, ip: IpAddr, namespace: &str, account: Option<&str>) -> Option<&Object<Pod>> {
        let same = |of: &str| account.is_none_or(|account| account == of);
        self.pods.only(ip, |pod| pod.namespace() == namespace && pod.spec.service_account.as_deref().is_none_or(same))
    }

    /// Whether several pods have an address, as those on the network of their host.
    pub(super) fn is_shared(&self, ip: IpAddr) -> bool {
        self.pods.at.get(&ip).is_some_and(|pods| pods.len() > 1)
    }

    /// What a process at an address announced, if it is of the service and, where that of the pod there is known, runs as
    /// that account. By that it is a member of the mesh, whatever else is said of the pod.
    fn announced_behind(
        &self,
        service: &Object<Service>,
        address: SocketAddr,
        account: Option<&String>,
    ) -> Option<&Registration> {
        let selector = &service.spec.selector;
        self.announced.at(address).find(|announced| {
            let selected = !selector.is_empty() && includes(&announced.labels, selector);
            announced.namespace == service.namespace()
                && (announced.service == service.name() || selected)
                && !announced.service_account.is_empty()
                && announced.mesh_tls
                && account.is_none_or(|account| *account == announced.service_account)
        })
    }

    /// Takes a registration in, or in place of the one of the same key.
    pub(super) fn announce(&mut self, registration: &Arc<Registration>, model: &Model, options: &Options) {
        let instance = announced(registration, model, options);
        self.announced.insert(Announced::new(registration.clone(), instance));
    }

    /// Takes a slice in.
    pub(super) fn slice(&mut self, slice: &Slice) {
        self.change(slice, |list| list.push(slice.clone()));
    }

    /// Takes a slice out.
    pub(super) fn unslice(&mut self, slice: &Slice) {
        self.change(slice, |list| list.retain(|known| known.name() != slice.name()));
    }

    fn change(&mut self, slice: &Slice, change: impl FnOnce(&mut Vec<Slice>)) {
        let service = sliced(slice);
        let mut list = self.slices.remove(&service).map_or_else(Vec::new, |list| list.to_vec());
        change(&mut list);
        list.sort_by(|a, b| a.name().cmp(b.name()));
        if !list.is_empty() {
            self.slices.insert(service, list.into());
        }
    }

    fn entries_in(&self, namespace: &str) -> impl Iterator<Item = &(String, EntryEndpoint)> {
        self.entries_in.get(namespace).into_iter().flatten()
    }
}

/// Namespace and name of the service that a slice is of.
pub(super) fn sliced(slice: &Slice) -> (String, String) {
    (slice.namespace().to_owned(), slice.spec.service.clone())
}

fn announced(registration: &Registration, model: &Model, options: &Options) -> Instance {
    let (namespace, labels) = (&registration.namespace, &registration.labels);
    let policies = Policies { model, options };
    let fallback = if registration.workload.is_empty() { &registration.service } else { &registration.workload };
    let metadata = EndpointMetadata {
        workload: Some(workload(fallback, namespace, labels)),
        ..policies.transport(namespace, labels, registration.address.port(), registration.mesh_tls, true)
    };
    Instance {
        address: Address::Socket(registration.address),
        others: Vec::new(),
        labels: Arc::new(labels.clone()),
        locality: registration.locality.clone(),
        weight: NonZeroU32::MIN,
        health: Health::Healthy,
        namespace: namespace.clone(),
        account: Some(registration.service_account.clone()).filter(|account| !account.is_empty()),
        metadata: Arc::new(metadata),
    }
}

/// Telemetry's view of a workload (canonical names as in Istio). Labels stay here.
pub(super) fn workload(name: &str, namespace: &str, labels: &BTreeMap<String, String>) -> Workload {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).cloned();
    let canonical = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let name = labels.get("service.istio.io/workload-name").map_or(name, String::as_str);
    Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        canonical_name: canonical.unwrap_or_else(|| name.to_owned()),
        canonical_revision: revision.unwrap_or_else(|| "latest".to_owned()),
        cluster: labels.get("topology.istio.io/cluster").cloned().unwrap_or_else(|| "Kubernetes".to_owned()),
        labels: BTreeMap::new(),
    }
}

/// Fills in who serves a port of a Service.
pub(super) fn of_service(
    service: &Object<Service>,
    port: &mut HostPort,
    workloads: &Workloads,
    policies: Policies<'_>,
) {
    let (namespace, spec) = (service.namespace(), &service.spec);
    let key = (namespace.to_owned(), service.name().to_owned());
    let slices = workloads.slices.get(&key).map_or(&[][..], |slices| slices);
    let mut families = Families::of(slices, service);
    for slice in slices {
        from_slice(slice, service, (port, &mut families), workloads, policies);
    }
    let by_name = workloads.announced.of_service(namespace, service.name());
    let by_name = by_name.iter().filter(|announced| announced.registration.service_port == port.number);
    port.instances.extend(by_name.map(|announced| announced.instance.clone()));
    if !spec.selector.is_empty() {
        for announced in workloads.announced.selected(namespace, &spec.selector) {
            let registration = &announced.registration;
            let same_port = registration.service_port == port.number;
            let by_name = registration.service == service.name() && same_port;
            // Those of that name are there already.
            if !by_name && (same_port || port.target == PortTarget::Number(registration.address.port())) {
                port.instances.push(announced.instance.clone());
            }
        }
    }
    if !spec.selector.is_empty() {
        for (name, entry) in workloads.entries_in(namespace).filter(|(_, e)| includes(&e.labels, &spec.selector)) {
            port.instances.extend(from_endpoint(entry, Some(name), namespace, port, Some(policies)));
        }
    }
}

/// Fills in who serves a port of a ServiceEntry.
pub(super) fn of_entry(
    entry: &Object<ServiceEntry>,
    host: &str,
    port: &mut HostPort,
    workloads: &Workloads,
    policies: Policies<'_>,
) {
    let (namespace, spec) = (entry.namespace(), &entry.spec);
    // No policy of the mesh is about what is outside of it.
    let policies = Some(policies).filter(|_| !spec.external);
    if spec.resolution == Resolution::None {
        return;
    }
    for endpoint in &spec.endpoints {
        port.instances.extend(from_endpoint(endpoint, None, namespace, port, policies));
    }
    if let Some(selector) = &spec.selector {
        for (name, endpoint) in workloads.entries_in(namespace).filter(|(_, e)| includes(&e.labels, selector)) {
            port.instances.extend(from_endpoint(endpoint, Some(name), namespace, port, policies));
        }
        let of_port = workloads.announced.selected(namespace, selector).into_iter();
        let of_port = of_port.filter(|announced| announced.registration.service_port == port.number);
        port.instances.extend(of_port.map(|announced| announced.instance.clone()));
    } else if spec.endpoints.is_empty() && spec.resolution != Resolution::Static {
        port.instances.push(Instance::named(host, target_number(port)));
    }
}

fn target_number(port: &HostPort) -> u16 {
    match port.target {
        PortTarget::Number(number) => number,
        PortTarget::Name(_) => port.number,
    }
}

/// The pods of a Service of both families, which has slices of each: a pod in two of them is one endpoint with two addresses
/// (gRFC A61).
struct Families<'s> {
    /// Where each is among the instances, and how good its first address is; `None` = there is one family.
    pods: Option<HashMap<&'s PodName, (usize, Rank)>>,
    v6_first: bool,
}

/// Namespace and name.
type PodName = (String, String);

/// Whether something was announced at an address, and whether it is of the Service's first family.
type Rank = (bool, bool);

impl<'s> Families<'s> {
    fn of(slices: &'s [Slice], service: &Object<Service>) -> Self {
        let family = |slice: &Slice| Some(slice.spec.endpoints.first()?.addresses.first()?.is_ipv6());
        let mut all = slices.iter().filter_map(family);
        let both = all.next().is_some_and(|first| all.any(|other| other != first));
        let v6_first = service.spec.cluster_ips.first().is_some_and(IpAddr::is_ipv6);
        Self { pods: both.then(HashMap::new), v6_first }
    }

    /// Takes an endpoint in: a pod's address of another family than one that is there already belongs to that one.
    fn take(
        &mut self,
        all: &mut Vec<Instance>,
        instance: Instance,
        pod: Option<&'s (String, String)>,
        announced: bool,
    ) {
        let family = |instance: &Instance| matches!(&instance.address, Address::Socket(at) if at.is_ipv6());
        if let (Some(pods), Some(pod)) = (&mut self.pods, pod) {
            let rank = (announced, family(&instance) == self.v6_first);
            match pods.entry(pod) {
                Entry::Vacant(entry) => _ = entry.insert((all.len(), rank)),
                Entry::Occupied(mut entry) => {
                    let (at, best) = entry.get_mut();
                    let known = &mut all[*at];
                    if family(known) != family(&instance) {
                        let mut others = std::mem::take(&mut known.others);
                        let other = if rank > *best {
                            *best = rank;
                            std::mem::replace(known, instance)
                        } else {
                            instance
                        };
                        others.push(other.address);
                        others.dedup();
                        known.others = others;
                        return;
                    }
                }
            }
        }
        all.push(instance);
    }
}

fn from_slice<'s>(
    slice: &'s Object<EndpointSlice>,
    service: &Object<Service>,
    (port, families): (&mut HostPort, &mut Families<'s>),
    workloads: &Workloads,
    policies: Policies<'_>,
) {
    let (ports, publish_not_ready) = (&slice.spec.ports, service.spec.publish_not_ready);
    let number = ports.iter().find(|(name, _)| *name == port.name).or(match ports.as_slice() {
        [only] if port.name.is_empty() => Some(only),
        _ => None,
    });
    let Some((_, number)) = number else { return };
    let namespace = slice.namespace();
    for endpoint in &slice.spec.endpoints {
        let health = if endpoint.unready && publish_not_ready { Health::Healthy } else { endpoint.health };
        if endpoint.unready && !publish_not_ready {
            continue;
        }
        for address in endpoint.sockets(*number) {
            let pod = workloads.pods.behind(endpoint.pod.as_ref(), address.ip(), namespace);
            let account = pod.and_then(|pod| pod.spec.service_account.as_ref());
            let announced = workloads.announced_behind(service, address, account);
            let labels = pod.map(|pod| pod.document.labels.clone()).unwrap_or_default();
            let name = pod.map(|pod| pod.name()).or(endpoint.pod.as_ref().map(|(_, name)| name.as_str()));
            // What is no pod, such as the API server, is no workload that a policy could be about.
            let policies = name.map(|_| policies);
            let metadata = EndpointMetadata {
                hostname: endpoint.hostname.clone(),
                workload: name.map(|name| workload(name, namespace, &labels)),
                ..match (policies, announced) {
                    (Some(policies), Some(_)) => policies.transport(namespace, &labels, address.port(), true, true),
                    _ => marked_transport(policies, namespace, &labels, address.port()),
                }
            };
            let instance = Instance {
                address: Address::Socket(address),
                others: Vec::new(),
                labels: Arc::new(labels),
                locality: locality(&endpoint.zone, announced),
                weight: NonZeroU32::MIN,
                health,
                namespace: namespace.to_owned(),
                account: account.or(announced.map(|announced| &announced.service_account)).cloned(),
                metadata: Arc::new(metadata),
            };
            families.take(&mut port.instances, instance, endpoint.pod.as_ref(), announced.is_some());
        }
    }
}

/// Where an endpoint of a slice is. A slice knows its zone at most; what the process there announced of itself may say the
/// region and more, and counts where it does not say another zone.
fn locality(zone: &str, announced: Option<&Registration>) -> Locality {
    let said = announced.map(|announced| &announced.locality).filter(|said| zone.is_empty() || said.zone == zone);
    said.cloned().unwrap_or_else(|| Locality { zone: zone.to_owned(), ..Locality::default() })
}

/// How an endpoint is called that Istio's mark says is a member of the mesh, or is not; without `policies` by that alone.
fn marked_transport(
    policies: Option<Policies<'_>>,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    port: u16,
) -> EndpointMetadata {
    let marked = labels.get("security.istio.io/tlsMode").is_some_and(|mode| mode == "istio");
    let alone = || EndpointMetadata { mesh_tls: marked, ..EndpointMetadata::default() };
    policies.map_or_else(alone, |policies| policies.transport(namespace, labels, port, marked, marked))
}

/// `policies` = those that may be about it; none if it is outside of the mesh.
fn from_endpoint(
    entry: &EntryEndpoint,
    name: Option<&str>,
    namespace: &str,
    port: &HostPort,
    policies: Option<Policies<'_>>,
) -> Option<Instance> {
    let number = match (entry.ports.get(&port.name), &port.target) {
        (Some(number), _) => *number,
        (None, PortTarget::Number(number)) => *number,
        // A named target port is looked up among the entry's own port names.
        (None, PortTarget::Name(target)) => *entry.ports.get(target)?,
    };
    let address = match &entry.address {
        EntryAddress::Ip(ip) => Address::Socket((*ip, number).into()),
        EntryAddress::Name(host) => Address::Name { host: host.as_str().into(), port: number },
        EntryAddress::Unix(path) => Address::Unix(path.as_str().into()),
    };
    let facts = name.or(entry.labels.get("app").map(String::as_str));
    let metadata = EndpointMetadata {
        workload: facts.map(|name| workload(name, namespace, &entry.labels)),
        ..marked_transport(policies, namespace, &entry.labels, number)
    };
    Some(Instance {
        address,
        others: Vec::new(),
        labels: Arc::new(entry.labels.clone()),
        locality: entry.locality.clone(),
        weight: NonZeroU32::new(entry.weight).unwrap_or(NonZeroU32::MIN),
        health: entry.health,
        namespace: namespace.to_owned(),
        account: entry.service_account.clone(),
        metadata: Arc::new(metadata),
    })
}
