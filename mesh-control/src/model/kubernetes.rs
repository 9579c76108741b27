//! Kubernetes' own kinds, as far as the mesh reads them: Service, EndpointSlice, Pod, Namespace,
//! ServiceAccount. They were admitted by an API server or written by hand, so only what is used is
//! checked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh_core::policy::{FailureAccrual, Health};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::accrual;
use super::check::Check;
use super::kinds::Kind;
use super::linkerd::AccessPolicy;
use super::mesh_config::trusted_proxies;
use super::values::{ExportTo, Loose, PortProtocol, labels_in_words, port};
use crate::finding::Severity;

/// A namespace.
#[derive(Clone, Debug)]
pub(crate) struct Namespace;

/// A service account.
#[derive(Clone, Debug)]
pub(crate) struct ServiceAccount;

/// Kinds of which only the name is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
pub(crate) struct NameOnly {
    spec: Option<IgnoredAny>,
    secrets: Option<IgnoredAny>,
    image_pull_secrets: Option<IgnoredAny>,
    automount_service_account_token: Option<IgnoredAny>,
}

impl Kind for Namespace {
    const GROUP: &'static str = "";
    const KIND: &'static str = "Namespace";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const ROOT: &'static str = "";
    type Spec = NameOnly;

    fn validate(_: NameOnly, check: &mut Check<'_>) -> Self {
        AccessPolicy::check_annotation(check);
        Self
    }
}

impl Kind for ServiceAccount {
    const GROUP: &'static str = "";
    const KIND: &'static str = "ServiceAccount";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const ROOT: &'static str = "";
    type Spec = NameOnly;

    fn validate(_: NameOnly, _: &mut Check<'_>) -> Self {
        Self
    }
}

/// A Service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) headless: bool,
    /// Alias of an external name (`type: ExternalName`).
    pub(crate) external_name: Option<String>,
    pub(crate) publish_not_ready: bool,
    pub(crate) export_to: ExportTo,
    pub(crate) accrual: Option<FailureAccrual>,
}

/// One port of a Service.
#[derive(Clone, Debug)]
pub(crate) struct ServicePort {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: PortProtocol,
    pub(crate) target: PortTarget,
}

/// The port of a workload behind a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortTarget {
    /// That number.
    Number(u16),
    /// The container port of that name.
    Name(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceSpec {
    #[serde(default)]
    ports: Vec<ServicePortSpec>,
    #[serde(default)]
    selector: BTreeMap<String, String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    r#type: Option<String>,
    external_name: Option<String>,
    #[serde(default)]
    publish_not_ready_addresses: bool,
    session_affinity: Option<String>,
    traffic_distribution: Option<String>,
    internal_traffic_policy: Option<String>,
    // What the rest of Kubernetes reads; named so that a misspelt field is noticed.
    #[allow(dead_code)]
    session_affinity_config: Option<IgnoredAny>,
    #[allow(dead_code)]
    external_traffic_policy: Option<IgnoredAny>,
    #[allow(dead_code)]
    health_check_node_port: Option<IgnoredAny>,
    #[allow(dead_code)]
    ip_families: Option<IgnoredAny>,
    #[allow(dead_code)]
    ip_family_policy: Option<IgnoredAny>,
    #[allow(dead_code)]
    load_balancer_class: Option<IgnoredAny>,
    #[allow(dead_code)]
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<IgnoredAny>,
    #[allow(dead_code)]
    load_balancer_source_ranges: Option<IgnoredAny>,
    #[allow(dead_code)]
    allocate_load_balancer_node_ports: Option<IgnoredAny>,
    #[allow(dead_code)]
    #[serde(rename = "externalIPs")]
    external_ips: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePortSpec {
    port: i64,
    #[serde(default)]
    name: String,
    target_port: Option<Loose>,
    app_protocol: Option<String>,
    protocol: Option<String>,
    #[allow(dead_code)]
    node_port: Option<IgnoredAny>,
}

impl Kind for Service {
    const GROUP: &'static str = "";
    const KIND: &'static str = "Service";
    const VERSIONS: &'static [&'static str] = &["v1"];
    type Spec = ServiceSpec;

    fn validate(spec: ServiceSpec, check: &mut Check<'_>) -> Self {
        not_performed(&spec, check);
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let external_name = match spec.r#type.as_deref() {
            Some("ExternalName") => spec.external_name,
            _ => None,
        };
        let annotation = check.document().annotations.get("networking.istio.io/exportTo").cloned();
        let exported: Vec<String> =
            annotation.iter().flat_map(|list| list.split(',')).map(|entry| entry.trim().to_owned()).collect();
        let export_to = ExportTo::read(&exported, check, "metadata.annotations");
        let ports = service_ports(spec.ports, check);
        let ips = spec.cluster_ips.iter().chain(&spec.cluster_ip);
        let mut cluster_ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.dedup();
        Self {
            ports,
            selector: spec.selector,
            cluster_ips,
            headless,
            external_name,
            publish_not_ready: spec.publish_not_ready_addresses,
            export_to,
            accrual: accrual::of_service(check),
        }
    }
}

impl Service {
    /// Whether the selector, if there is one, matches these labels.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// What is to be said of a process that serves as this one and is not matched.
    pub(crate) fn mismatch(&self, name: &str, labels: &BTreeMap<String, String>) -> String {
        format!(
            "a process announced itself as Service {name} with the labels {}, which its selector {} does not match: it \
             gets the requests, and no policy that selects these labels holds for it (set MESH_LABELS)",
            labels_in_words(labels),
            labels_in_words(&self.selector)
        )
    }
}

/// Settings of a Service that would change where requests go, and do not here.
fn not_performed(spec: &ServiceSpec, check: &mut Check<'_>) {
    if spec.session_affinity.as_deref().is_some_and(|word| word != "None") {
        check.unenforced("spec.sessionAffinity", "a caller is not bound to one endpoint");
    }
    if spec.traffic_distribution.is_some() {
        check.unenforced("spec.trafficDistribution", "endpoints nearby are not preferred");
    }
    if spec.internal_traffic_policy.as_deref().is_some_and(|word| word != "Cluster") {
        check.unenforced("spec.internalTrafficPolicy", "endpoints of other nodes get requests too");
    }
    const OF_LINKERD: [&str; 3] = ["balancer.linkerd.io/", "retry.linkerd.io/", "timeout.linkerd.io/"];
    let document = check.document();
    let others = document.annotations.keys().filter(|key| !accrual::KEYS.contains(&key.as_str()));
    for key in others.filter(|key| OF_LINKERD.iter().any(|prefix| key.starts_with(prefix))) {
        check.unenforced(&format!("metadata.annotations.{key}"), "use a VirtualService or a ServiceProfile instead");
    }
}

fn service_ports(specs: Vec<ServicePortSpec>, check: &mut Check<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    // Those of another transport than TCP.
    let mut others = Vec::new();
    for (i, spec) in specs.into_iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let Some(number) = check.take(&format!("{path}.port"), port(spec.port)) else { continue };
        let transport = spec.protocol.as_deref().unwrap_or("TCP");
        let known = ports.iter().position(|other| other.number == number);
        // TCP and UDP may share a number, and the mesh carries TCP alone: that counts, whichever is listed first.
        if known.is_some() && (transport != "TCP" || !others.contains(&number)) {
            continue;
        }
        let protocol = PortProtocol::of_port(spec.app_protocol.as_deref(), &spec.name, number, transport);
        if protocol == PortProtocol::Unspecified {
            let message = "neither appProtocol nor the port's name says the protocol; HTTP is assumed for HTTP clients";
            check.coded(Severity::Info, &path, "IST0118", message);
        }
        let target = match spec.target_port {
            None => PortTarget::Number(number),
            Some(Loose(text)) => match text.parse::<i64>() {
                Ok(value) => {
                    let Some(value) = check.take(&format!("{path}.targetPort"), port(value)) else { continue };
                    PortTarget::Number(value)
                }
                Err(_) => PortTarget::Name(text),
            },
        };
        let port = ServicePort { number, name: spec.name, protocol, target };
        match known {
            Some(place) => ports[place] = port,
            None => ports.push(port),
        }
        match transport {
            "TCP" => others.retain(|other| *other != number),
            _ => others.push(number),
        }
    }
    ports
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug)]
pub(crate) struct EndpointSlice {
    pub(crate) service: String,
    /// `(port name, number)`.
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub(crate) struct SliceEndpoint {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) health: Health,
    /// Not ready, and not because it is finishing.
    pub(crate) unready: bool,
    pub(crate) zone: String,
    pub(crate) hostname: Option<String>,
    /// Namespace and name of the pod.
    pub(crate) pod: Option<(String, String)>,
}

/// A pod: what an endpoint of a slice is, beyond its address. Its labels are the document's.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// `None` = not said.
    pub(crate) service_account: Option<String>,
    pub(crate) ips: Vec<IpAddr>,
    /// Named container ports.
    pub(crate) ports: Vec<(String, u16)>,
    /// Port and path of its HTTP probes.
    pub(crate) probes: Vec<(u16, String)>,
    /// How many trusted proxies its annotation says are before it.
    pub(crate) trusted_proxies: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerSpec {
    ports: Vec<ContainerPortSpec>,
    liveness_probe: Option<ProbeSpec>,
    readiness_probe: Option<ProbeSpec>,
    startup_probe: Option<ProbeSpec>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPortSpec {
    #[serde(default)]
    name: String,
    #[serde(default)]
    container_port: i64,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProbeSpec {
    http_get: Option<HttpGetSpec>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct HttpGetSpec {
    path: Option<String>,
    port: Option<Loose>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    service_account_name: Option<String>,
    #[serde(default)]
    containers: Vec<ContainerSpec>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

impl Kind for Pod {
    const GROUP: &'static str = "";
    const KIND: &'static str = "Pod";
    const VERSIONS: &'static [&'static str] = &["v1"];
    type Spec = PodSpec;

    fn validate(spec: PodSpec, check: &mut Check<'_>) -> Self {
        let status = check.document().node.get("status");
        let first = status.and_then(|status| status.get("podIP")).into_iter();
        let list = status.and_then(|status| status.get("podIPs")).map(|list| list.items()).unwrap_or_default();
        let all = first.chain(list.iter().filter_map(|entry| entry.get("ip")));
        let mut ips = Vec::new();
        for text in all.filter_map(|ip| ip.text()) {
            let read = text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"));
            ips.extend(check.take("status.podIP", read).filter(|ip| !ips.contains(ip)));
        }
        AccessPolicy::check_annotation(check);
        let service_account = spec.service_account_name.filter(|account| !account.is_empty());
        let named = spec.containers.iter().flat_map(|container| &container.ports);
        let ports: Vec<(String, u16)> =
            named.filter_map(|spec| Some((spec.name.clone(), port(spec.container_port).ok()?))).collect();
        let probes = spec.containers.iter().flat_map(|container| probes(container, &ports)).collect();
        let trusted_proxies = trusted_proxies(&check.document().annotations, "metadata.annotations", check);
        Self { service_account, ips, ports, probes, trusted_proxies }
    }
}

/// The HTTP probes of a container.
fn probes(spec: &ContainerSpec, ports: &[(String, u16)]) -> Vec<(u16, String)> {
    let all = [&spec.liveness_probe, &spec.readiness_probe, &spec.startup_probe];
    let gets = all.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref());
    let read = gets.filter_map(|get| {
        let Loose(text) = get.port.as_ref()?;
        let named = || ports.iter().find(|(name, _)| name == text).map(|(_, number)| *number);
        let path = get.path.as_deref().unwrap_or("/");
        let path = path.split('?').next().unwrap_or_default();
        Some((text.parse().ok().or_else(named)?, path.to_owned()))
    });
    read.collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SliceSpec {
    #[allow(dead_code)]
    address_type: Option<String>,
    #[serde(default)]
    endpoints: Vec<SliceEndpointSpec>,
    #[serde(default)]
    ports: Vec<SlicePortSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpointSpec {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    #[serde(default)]
    zone: String,
    hostname: Option<String>,
    target_ref: Option<TargetRef>,
    #[allow(dead_code)]
    node_name: Option<String>,
    #[allow(dead_code)]
    hints: Option<IgnoredAny>,
    #[allow(dead_code)]
    deprecated_topology: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    #[serde(default)]
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    kind: String,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlicePortSpec {
    #[serde(default)]
    name: String,
    port: Option<i64>,
    #[allow(dead_code)]
    protocol: Option<String>,
    #[allow(dead_code)]
    app_protocol: Option<String>,
}

impl Kind for EndpointSlice {
    const GROUP: &'static str = "discovery.k8s.io";
    const KIND: &'static str = "EndpointSlice";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1"];
    const ROOT: &'static str = "";
    type Spec = SliceSpec;

    fn validate(spec: SliceSpec, check: &mut Check<'_>) -> Self {
        let service = check.document().labels.get("kubernetes.io/service-name").cloned().unwrap_or_default();
        if service.is_empty() {
            check.warn("metadata.labels", "no label kubernetes.io/service-name: the slice belongs to no service");
        }
        let mut ports = Vec::new();
        for (i, entry) in spec.ports.into_iter().enumerate() {
            // Null means "all ports", which no service uses.
            let Some(number) = entry.port else { continue };
            if let Some(number) = check.take(&format!("ports[{i}].port"), port(number)) {
                ports.push((entry.name, number));
            }
        }
        let mut endpoints = Vec::new();
        for (i, entry) in spec.endpoints.into_iter().enumerate() {
            endpoints.push(slice_endpoint(entry, check, &format!("endpoints[{i}]")));
        }
        Self { service, ports, endpoints }
    }
}

fn slice_endpoint(spec: SliceEndpointSpec, check: &mut Check<'_>, path: &str) -> SliceEndpoint {
    let mut addresses = Vec::new();
    for (i, text) in spec.addresses.iter().enumerate() {
        let read = text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"));
        addresses.extend(check.take(&format!("{path}.addresses[{i}]"), read));
    }
    let terminating = spec.conditions.terminating.unwrap_or(false);
    // An unset `ready` means ready (EndpointSlice API).
    let ready = spec.conditions.ready.unwrap_or(true);
    let serving = spec.conditions.serving.unwrap_or(ready);
    let health = match (ready, terminating && serving) {
        (true, _) => Health::Healthy,
        (false, true) => Health::Draining,
        (false, false) => Health::Unhealthy,
    };
    let own = || check.document().namespace.clone();
    let pod = spec.target_ref.filter(|target| target.kind == "Pod");
    SliceEndpoint {
        addresses,
        health,
        unready: !ready && !terminating,
        zone: spec.zone,
        hostname: spec.hostname,
        pod: pod.map(|target| (target.namespace.unwrap_or_else(own), target.name)),
    }
}

impl SliceEndpoint {
    /// Its socket addresses on `port`.
    pub(crate) fn sockets(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().map(move |ip| SocketAddr::new(*ip, port))
    }
}
