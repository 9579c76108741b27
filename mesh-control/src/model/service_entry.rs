//! ServiceEntry and WorkloadEntry: services and endpoints that Kubernetes does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::id::Locality;
use mesh_core::policy::Health;
use serde::Deserialize;

use super::check::Check;
use super::destination_rule::SelectorSpec;
use super::kinds::Kind;
use super::values::{ExportTo, PortProtocol, is_dns_name, is_host, port};
use crate::finding::Severity;
use crate::source::Document;
use crate::source::node::Node;

/// Istio's mark of a WorkloadEntry whose workload is probed.
const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";

/// A ServiceEntry.
#[derive(Clone, Debug)]
pub(crate) struct ServiceEntry {
    /// Hosts, lower case; may begin with `*.`.
    pub(crate) hosts: Vec<String>,
    pub(crate) ports: Vec<EntryPort>,
    /// MESH_EXTERNAL, the default.
    pub(crate) external: bool,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: Vec<EntryEndpoint>,
    /// Labels of workloads in the same namespace that serve it.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) export_to: ExportTo,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug)]
pub(crate) struct EntryPort {
    pub(crate) number: u16,
    pub(crate) name: String,
    pub(crate) protocol: PortProtocol,
    pub(crate) target: u16,
}

/// How addresses are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Connect to what the caller dialled.
    None,
    /// The endpoints are addresses.
    Static,
    /// Resolve; all answers are endpoints.
    Dns,
    /// Resolve at connection time; the first answer counts.
    DnsRoundRobin,
}

/// An endpoint of a ServiceEntry, and the spec of a WorkloadEntry.
#[derive(Clone, Debug)]
pub(crate) struct EntryEndpoint {
    pub(crate) address: EntryAddress,
    /// Port names and the numbers behind them; beats the service's target port.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) locality: Locality,
    /// At least 1.
    pub(crate) weight: u32,
    pub(crate) service_account: Option<String>,
    /// Whether its object says that it is well.
    pub(crate) health: Health,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryAddress {
    Ip(IpAddr),
    Name(String),
    Unix(String),
}

/// A WorkloadEntry: one endpoint that selectors may pick.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadEntry {
    pub(crate) endpoint: EntryEndpoint,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceEntrySpec {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    ports: Vec<PortSpec>,
    location: Option<String>,
    resolution: Option<String>,
    #[serde(default)]
    endpoints: Vec<EndpointSpec>,
    workload_selector: Option<SelectorSpec>,
    #[serde(default)]
    export_to: Vec<String>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortSpec {
    #[serde(default)]
    number: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    name: String,
    target_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSpec {
    #[serde(default)]
    address: String,
    #[serde(default)]
    ports: BTreeMap<String, i64>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    network: Option<String>,
    #[serde(default)]
    locality: String,
    #[serde(default)]
    weight: i64,
    service_account: Option<String>,
}

impl Kind for ServiceEntry {
    const GROUP: &'static str = "networking.istio.io";
    const KIND: &'static str = "ServiceEntry";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    type Spec = ServiceEntrySpec;

    fn validate(spec: ServiceEntrySpec, check: &mut Check<'_>) -> Self {
        check_hosts(&spec.hosts, check);
        let external = match spec.location.as_deref().unwrap_or("MESH_EXTERNAL") {
            "MESH_EXTERNAL" => true,
            "MESH_INTERNAL" => false,
            other => {
                check.error("spec.location", format!("{other:?} is neither MESH_EXTERNAL nor MESH_INTERNAL"));
                true
            }
        };
        let resolution = resolution(spec.resolution.as_deref(), check);
        check_addresses(&spec.addresses, resolution, check);
        let ports = ports(&spec.ports, check);
        let mut endpoints = Vec::new();
        for (i, entry) in spec.endpoints.iter().enumerate().take(4096) {
            endpoints.extend(endpoint(entry, check, &format!("spec.endpoints[{i}]")));
        }
        let selector = spec.workload_selector.map(|s| if s.labels.is_empty() { s.match_labels } else { s.labels });
        let entry = Self {
            hosts: spec.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            ports,
            external,
            resolution,
            endpoints,
            selector,
            subject_alt_names: spec.subject_alt_names,
            export_to: ExportTo::read(&spec.export_to, check, "spec.exportTo"),
        };
        if spec.endpoints.len() > 4096 {
            check.error("spec.endpoints", "more than 4096 endpoints");
        }
        check_endpoints(&entry, check);
        check_ports(&entry, !spec.addresses.is_empty(), check);
        entry
    }
}

fn check_hosts(hosts: &[String], check: &mut Check<'_>) {
    if hosts.is_empty() || hosts.len() > 256 {
        check.error("spec.hosts", "1 to 256 hosts are needed");
    }
    for (i, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        if host == "*" {
            check.error(&path, "a bare \"*\" would stand for every host; name the hosts");
        } else if !is_host(host) {
            check.error(&path, format!("{host:?} is not a host name"));
        } else if host.starts_with("*-") {
            check.warn(&path, "a partial wildcard matches by suffix");
        }
    }
}

fn resolution(word: Option<&str>, check: &mut Check<'_>) -> Resolution {
    match word.unwrap_or("NONE") {
        "NONE" => Resolution::None,
        "STATIC" => Resolution::Static,
        "DNS" => Resolution::Dns,
        "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
        other => {
            let known = "NONE, STATIC, DNS, DNS_ROUND_ROBIN";
            check.error("spec.resolution", format!("{other:?} is not supported; use one of {known}"));
            Resolution::None
        }
    }
}

fn check_addresses(addresses: &[String], resolution: Resolution, check: &mut Check<'_>) {
    for (i, text) in addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}]");
        if text.parse::<IpAddr>().is_ok() {
            continue;
        }
        match text.parse::<IpNet>() {
            Err(_) => check.error(&path, format!("{text:?} is neither an IP address nor a CIDR block")),
            Ok(_) if !matches!(resolution, Resolution::None | Resolution::Static) => {
                check.error(&path, "a CIDR block needs resolution NONE or STATIC");
            }
            Ok(_) => {}
        }
    }
    if !addresses.is_empty() {
        check.unenforced("spec.addresses", "requests are matched by host; dial the host, not an address");
    }
}

fn ports(specs: &[PortSpec], check: &mut Check<'_>) -> Vec<EntryPort> {
    let mut ports = Vec::new();
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let Some(number) = check.take(&format!("{path}.number"), port(spec.number)) else { continue };
        if !numbers.insert(number) {
            check.error(&format!("{path}.number"), format!("port {number} is defined twice"));
        }
        if spec.name.is_empty() {
            check.error(&format!("{path}.name"), "a name is needed");
        } else if !names.insert(&spec.name) {
            check.error(&format!("{path}.name"), format!("{:?} is used twice", spec.name));
        }
        let protocol = match PortProtocol::word(&spec.protocol) {
            Some(protocol) => protocol,
            // Istio takes the name's word when the field is empty.
            None if spec.protocol.is_empty() => PortProtocol::of_port(None, &spec.name, number, "TCP"),
            None => {
                check.error(&format!("{path}.protocol"), format!("{:?} is not a known protocol", spec.protocol));
                PortProtocol::Unspecified
            }
        };
        let target = match spec.target_port.filter(|target| *target != 0) {
            None => Some(number),
            Some(target) => check.take(&format!("{path}.targetPort"), port(target)),
        };
        ports.extend(target.map(|target| EntryPort { number, name: spec.name.clone(), protocol, target }));
    }
    ports
}

fn endpoint(spec: &EndpointSpec, check: &mut Check<'_>, path: &str) -> Option<EntryEndpoint> {
    let field = format!("{path}.address");
    let address = if let Some(unix) = spec.address.strip_prefix("unix://") {
        if !spec.ports.is_empty() {
            check.error(&format!("{path}.ports"), "a unix socket has no ports");
        }
        EntryAddress::Unix(unix.to_owned())
    } else if let Ok(ip) = spec.address.parse() {
        EntryAddress::Ip(ip)
    } else if is_dns_name(&spec.address) {
        EntryAddress::Name(spec.address.to_ascii_lowercase())
    } else {
        let network = spec.network.is_some() && spec.address.is_empty();
        let message = if network {
            "an endpoint of another network needs a gateway address in this version".to_owned()
        } else {
            format!("{:?} is not an IP address, a host name or unix:///path", spec.address)
        };
        check.error(&field, message);
        return None;
    };
    if spec.network.as_deref().is_some_and(|network| !network.is_empty()) {
        check.unenforced(&format!("{path}.network"), "the address is dialled directly, from any network");
    }
    let mut ports = BTreeMap::new();
    for (name, number) in &spec.ports {
        ports.extend(check.take(&format!("{path}.ports.{name}"), port(*number)).map(|number| (name.clone(), number)));
    }
    let weight = u32::try_from(spec.weight).map_err(|_| format!("{} is not a weight", spec.weight));
    let weight = check.take(&format!("{path}.weight"), weight)?.max(1);
    Some(EntryEndpoint {
        address,
        ports,
        labels: spec.labels.clone(),
        locality: Locality::parse(&spec.locality),
        weight,
        service_account: spec.service_account.clone().filter(|account| !account.is_empty()),
        health: Health::Healthy,
    })
}

fn check_endpoints(entry: &ServiceEntry, check: &mut Check<'_>) {
    let at = |i: usize| format!("spec.endpoints[{i}]");
    let total: u64 = entry.endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if total > u64::from(u32::MAX) {
        let most = u32::MAX;
        check
            .warn("spec.endpoints", format!("the weights sum to {total}, more than {most}: each counts for its share"));
    }
    if entry.selector.is_some() && !entry.endpoints.is_empty() {
        check.error("spec.workloadSelector", "only one of endpoints and workloadSelector may be given");
    }
    if entry.selector.as_ref().is_some_and(BTreeMap::is_empty) {
        check.warn("spec.workloadSelector", "an empty selector picks every workload of the namespace");
    }
    match entry.resolution {
        Resolution::None => {
            if !entry.endpoints.is_empty() {
                check.error("spec.endpoints", "resolution NONE connects to what is dialled; it takes no endpoints");
            }
            if entry.selector.is_some() {
                check.warn("spec.workloadSelector", "without effect under resolution NONE");
            }
        }
        Resolution::Static => {
            for (i, endpoint) in entry.endpoints.iter().enumerate() {
                if matches!(endpoint.address, EntryAddress::Name(_)) {
                    check.error(&format!("{}.address", at(i)), "resolution STATIC needs an IP address or unix:///path");
                }
            }
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            for (i, endpoint) in entry.endpoints.iter().enumerate() {
                if matches!(endpoint.address, EntryAddress::Unix(_)) {
                    check.error(&format!("{}.address", at(i)), "a unix socket needs resolution STATIC");
                }
            }
            let wildcard = entry.hosts.iter().position(|host| host.contains('*'));
            if let (Some(i), true) = (wildcard, entry.endpoints.is_empty()) {
                check.error(&format!("spec.hosts[{i}]"), "a wildcard host cannot be resolved; give endpoints");
            }
            if entry.resolution == Resolution::DnsRoundRobin && entry.endpoints.len() > 1 {
                check.error("spec.endpoints", "DNS_ROUND_ROBIN takes one endpoint at most");
            }
        }
    }
    for (i, endpoint) in entry.endpoints.iter().enumerate() {
        if matches!(endpoint.address, EntryAddress::Unix(_)) && entry.ports.len() != 1 {
            check.error(&format!("{}.address", at(i)), "a unix socket needs exactly one service port");
        }
        for name in endpoint.ports.keys().filter(|name| !entry.ports.iter().any(|port| port.name == **name)) {
            check.error(&format!("{}.ports.{name}", at(i)), format!("the service has no port named {name:?}"));
        }
    }
}

fn check_ports(entry: &ServiceEntry, has_addresses: bool, check: &mut Check<'_>) {
    for (i, port) in entry.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let raw = matches!(port.protocol, PortProtocol::Tcp | PortProtocol::Udp);
        if raw && entry.hosts.len() > 1 && entry.resolution != Resolution::None {
            check.error(&path, "several hosts share a port that is neither HTTP nor TLS; use one entry a host");
        } else if raw && !has_addresses {
            let message = "a TCP port without addresses is told apart by its port alone";
            check.coded(Severity::Warning, &path, "IST0134", message);
        }
    }
}

impl Kind for WorkloadEntry {
    const GROUP: &'static str = "networking.istio.io";
    const KIND: &'static str = "WorkloadEntry";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    type Spec = EndpointSpec;

    fn validate(spec: EndpointSpec, check: &mut Check<'_>) -> Self {
        let read = endpoint(&spec, check, "spec");
        // Not used after an error; the value only has to exist.
        let mut endpoint = read.unwrap_or_else(|| EntryEndpoint {
            address: EntryAddress::Ip(IpAddr::from([0, 0, 0, 0])),
            ports: BTreeMap::new(),
            labels: BTreeMap::new(),
            locality: Locality::default(),
            weight: 1,
            service_account: None,
            health: Health::Healthy,
        });
        endpoint.health = health(check.document());
        Self { endpoint }
    }
}

/// What the condition `Healthy` says. Where the object asks for health checks it counts as ill until the first has
/// passed, as with istiod.
fn health(document: &Document) -> Health {
    let conditions = document.node.get("status").and_then(|status| status.get("conditions"));
    let is = |node: &Node, field: &str, wanted: &str| {
        node.get(field).and_then(Node::text).is_some_and(|text| text.eq_ignore_ascii_case(wanted))
    };
    let healthy = conditions.into_iter().flat_map(Node::items).find(|condition| is(condition, "type", "Healthy"));
    let checked = document.annotations.get(HEALTH_CHECKED).is_some_and(|value| value == "true");
    match healthy {
        Some(condition) if is(condition, "status", "True") => Health::Healthy,
        Some(condition) if checked || is(condition, "status", "False") => Health::Unhealthy,
        None if checked => Health::Unhealthy,
        _ => Health::Healthy,
    }
}
