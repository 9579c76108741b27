//! DestinationRule, validated: what a client does towards one host.

mod balancer;
mod locality;
mod pool;
mod spec;
mod tls;

pub(crate) use self::locality::{REGION, SUB_ZONE, ZONE, covers_locality};
pub(crate) use self::spec::SelectorSpec;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_core::policy::{
    Balancer, HashPolicy, Keepalive, OutlierDetection, PerMillion, RetryConcurrency, SlowStart, TcpKeepalive,
};

use self::spec::{DestinationRuleSpec, PortPolicySpec, SubsetSpec, TrafficPolicySpec};
use super::check::Check;
use super::kinds::Kind;
use super::values::{ExportTo, is_host, is_label, port};

/// A DestinationRule.
#[derive(Clone, Debug)]
pub(crate) struct DestinationRule {
    /// Host as written, lower case; may be a wildcard.
    pub(crate) host: String,
    pub(crate) policy: Option<TrafficPolicy>,
    pub(crate) subsets: Vec<Subset>,
    pub(crate) export_to: ExportTo,
    /// Only workloads with these labels, of the rule's own namespace.
    pub(crate) selector: Option<BTreeMap<String, String>>,
}

/// A named part of a host's endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Subset {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: Option<TrafficPolicy>,
}

/// A traffic policy: its blocks, and the ports that replace all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrafficPolicy {
    pub(crate) blocks: PortPolicy,
    pub(crate) ports: BTreeMap<u16, PortPolicy>,
}

/// The blocks of a traffic policy; `None` = not written.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortPolicy {
    pub(crate) load_balancer: Option<LoadBalancer>,
    pub(crate) pool: Option<ConnectionPool>,
    pub(crate) outlier: Option<(OutlierDetection, PerMillion)>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) retry_budget: Option<RetryConcurrency>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadBalancer {
    /// `None` = the default.
    pub(crate) balancer: Option<Balancer>,
    pub(crate) hash: Option<HashPolicy>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) locality: Locality,
}

/// Which localities come first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locality {
    /// `enabled: false`.
    pub(crate) disabled: bool,
    /// `failover`: from region to region.
    pub(crate) failover: BTreeMap<String, String>,
    /// `failoverPriority`: labels, most important first, each with the client's value if one is written.
    pub(crate) failover_priority: Vec<(String, Option<String>)>,
    /// `distribute`, in listed order.
    pub(crate) distribute: Vec<Distribution>,
}

/// Shares of localities for clients of a locality.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    /// Pattern of the client's locality.
    pub(crate) from: String,
    /// Patterns of the endpoints' localities and their percentages, which sum to 100.
    pub(crate) to: BTreeMap<String, u32>,
}

/// Limits and options of connections; `None` = not written.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionPool {
    pub(crate) max_connections: Option<u32>,
    pub(crate) max_pending: Option<u32>,
    pub(crate) max_requests: Option<u32>,
    pub(crate) max_retries: Option<u32>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    /// Of raw connections; 0 = none.
    pub(crate) tcp_idle_timeout: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) max_requests_per_connection: Option<u32>,
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) tcp_keepalive: Option<TcpKeepalive>,
    pub(crate) http2_keepalive: Option<Keepalive>,
    /// `h2UpgradePolicy: UPGRADE`.
    pub(crate) http2: bool,
}

/// Transport security as written.
#[derive(Clone, Debug)]
pub(crate) enum ClientTls {
    Disable,
    Simple(TlsNames),
    Mutual(TlsNames, mesh_core::policy::ClientCertificate),
    /// The mesh's own identity.
    Istio {
        sni: Option<String>,
        subject_alt_names: Vec<String>,
    },
}

/// How a server that is not a mesh peer is checked.
#[derive(Clone, Debug)]
pub(crate) struct TlsNames {
    pub(crate) sni: Option<String>,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) ca_file: Option<String>,
    pub(crate) insecure_skip_verify: bool,
}

impl Kind for DestinationRule {
    const GROUP: &'static str = "networking.istio.io";
    const KIND: &'static str = "DestinationRule";
    const VERSIONS: &'static [&'static str] = &["v1", "v1beta1", "v1alpha3"];
    type Spec = DestinationRuleSpec;

    fn validate(spec: DestinationRuleSpec, check: &mut Check<'_>) -> Self {
        if spec.host.is_empty() {
            check.error("spec.host", "a host is needed");
        } else if !is_host(&spec.host) && spec.host.parse::<std::net::IpAddr>().is_err() {
            check.error("spec.host", format!("{:?} is not a host name", spec.host));
        }
        let policy = spec.traffic_policy.as_ref().map(|policy| traffic_policy(policy, check, "spec.trafficPolicy"));
        let subsets = subsets(&spec.subsets, check);
        let export_to = ExportTo::read(&spec.export_to, check, "spec.exportTo");
        let selector = spec
            .workload_selector
            .map(|selector| if selector.match_labels.is_empty() { selector.labels } else { selector.match_labels });
        if selector.is_some() && !spec.export_to.is_empty() {
            let own = BTreeSet::from([check.document().namespace.clone()]);
            if export_to != ExportTo::Namespaces(own) {
                let message =
                    "a rule with a workloadSelector only serves its own namespace: write '.', or leave it out";
                check.error("spec.exportTo", message);
            }
        }
        inert_failover(policy.as_ref(), &subsets, check);
        Self { host: spec.host.to_ascii_lowercase(), policy, subsets, export_to, selector }
    }
}

/// Failover moves requests away from endpoints that were ejected, and nothing else ejects them.
fn inert_failover(policy: Option<&TrafficPolicy>, subsets: &[Subset], check: &mut Check<'_>) {
    let fails_over = |blocks: &PortPolicy| {
        let locality = blocks.load_balancer.as_ref().map(|lb| &lb.locality).filter(|setting| !setting.disabled);
        locality.is_some_and(|setting| !setting.failover.is_empty() || !setting.failover_priority.is_empty())
    };
    let message = "failover is inert without outlierDetection: nothing else tells which endpoints have failed";
    let field = "loadBalancer.localityLbSetting";
    let outlier = policy.is_some_and(|policy| policy.blocks.outlier.is_some());
    if policy.is_some_and(|policy| fails_over(&policy.blocks)) && !outlier {
        check.warn(&format!("spec.trafficPolicy.{field}"), message);
    }
    let alone = |policy: &TrafficPolicy| {
        policy.ports.iter().find(|(_, blocks)| fails_over(blocks) && blocks.outlier.is_none()).map(|(port, _)| *port)
    };
    if let Some(port) = policy.and_then(alone) {
        check.warn("spec.trafficPolicy.portLevelSettings", format!("port {port}: {message}"));
    }
    for (i, subset) in subsets.iter().enumerate() {
        let Some(own) = &subset.policy else { continue };
        if fails_over(&own.blocks) && own.blocks.outlier.is_none() && !outlier {
            check.warn(&format!("spec.subsets[{i}].trafficPolicy.{field}"), message);
        }
    }
}

fn subsets(specs: &[SubsetSpec], check: &mut Check<'_>) -> Vec<Subset> {
    let mut seen = BTreeSet::new();
    let mut subsets = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("spec.subsets[{i}]");
        if !is_label(&spec.name.to_ascii_lowercase()) {
            check.error(&format!("{path}.name"), format!("{:?} is not a subset name", spec.name));
        } else if !seen.insert(spec.name.as_str()) {
            check.error(&format!("{path}.name"), format!("{:?} is defined twice", spec.name));
        }
        labels(&spec.labels, check, &format!("{path}.labels"));
        let path = format!("{path}.trafficPolicy");
        let policy = spec.traffic_policy.as_ref().map(|policy| traffic_policy(policy, check, &path));
        subsets.push(Subset { name: spec.name.clone(), labels: spec.labels.clone(), policy });
    }
    subsets
}

/// Checks Kubernetes labels, coarsely: lengths and characters.
pub(crate) fn labels(labels: &BTreeMap<String, String>, check: &mut Check<'_>, path: &str) {
    let plain = |text: &str| text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    for (key, value) in labels {
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
        if name.is_empty() || !plain(name) || prefix.len() > 253 || !plain(value) {
            check.error(&format!("{path}.{key}"), format!("{key}={value} is not a Kubernetes label"));
        }
    }
}

fn traffic_policy(spec: &TrafficPolicySpec, check: &mut Check<'_>, path: &str) -> TrafficPolicy {
    let empty = spec.load_balancer.is_none()
        && spec.connection_pool.is_none()
        && spec.outlier_detection.is_none()
        && spec.tls.is_none()
        && spec.port_level_settings.is_empty()
        && spec.retry_budget.is_none()
        && spec.tunnel.is_none()
        && spec.proxy_protocol.is_none();
    if empty {
        check.error(path, "an empty traffic policy says nothing; remove it");
    }
    if spec.tunnel.is_some() && spec.proxy_protocol.is_some() {
        check.error(&format!("{path}.tunnel"), "only one of tunnel and proxyProtocol may be given");
    }
    if let Some(tunnel) = &spec.tunnel {
        if tunnel.target_host.as_deref().unwrap_or("").is_empty() || tunnel.target_port.unwrap_or(0) == 0 {
            check.error(&format!("{path}.tunnel"), "a tunnel needs targetHost and targetPort");
        }
        check.unenforced(&format!("{path}.tunnel"), "requests go directly to the destination");
    }
    if spec.proxy_protocol.is_some() {
        check.unenforced(&format!("{path}.proxyProtocol"), "no PROXY header is sent");
    }
    let mut policy = TrafficPolicy::default();
    if let Some(lb) = &spec.load_balancer {
        policy.blocks.load_balancer = Some(balancer::load_balancer(lb, check, &format!("{path}.loadBalancer")));
    }
    if let Some(pool) = &spec.connection_pool {
        policy.blocks.pool = Some(pool::connection_pool(pool, check, &format!("{path}.connectionPool")));
    }
    if let Some(outlier) = &spec.outlier_detection {
        policy.blocks.outlier = Some(pool::outlier(outlier, check, &format!("{path}.outlierDetection")));
    }
    if let Some(tls) = &spec.tls {
        policy.blocks.tls = tls::client_tls(tls, check, &format!("{path}.tls"));
    }
    if let Some(budget) = &spec.retry_budget {
        policy.blocks.retry_budget = Some(pool::retry_budget(budget, check, &format!("{path}.retryBudget")));
    }
    let path = format!("{path}.portLevelSettings");
    if spec.port_level_settings.len() > 4096 {
        check.error(&path, "more than 4096 ports");
    }
    for (i, entry) in spec.port_level_settings.iter().enumerate().take(4096) {
        port_level(entry, check, &format!("{path}[{i}]"), &mut policy.ports);
    }
    policy
}

fn port_level(spec: &PortPolicySpec, check: &mut Check<'_>, path: &str, ports: &mut BTreeMap<u16, PortPolicy>) {
    let Some(selector) = &spec.port else {
        check.error(&format!("{path}.port"), "a port is needed");
        return;
    };
    let Some(number) = check.take(&format!("{path}.port.number"), port(selector.number)) else { return };
    let mut policy = PortPolicy::default();
    if let Some(lb) = &spec.load_balancer {
        policy.load_balancer = Some(balancer::load_balancer(lb, check, &format!("{path}.loadBalancer")));
    }
    if let Some(pool) = &spec.connection_pool {
        policy.pool = Some(pool::connection_pool(pool, check, &format!("{path}.connectionPool")));
    }
    if let Some(outlier) = &spec.outlier_detection {
        policy.outlier = Some(pool::outlier(outlier, check, &format!("{path}.outlierDetection")));
    }
    if let Some(tls) = &spec.tls {
        policy.tls = tls::client_tls(tls, check, &format!("{path}.tls"));
    }
    if ports.insert(number, policy).is_some() {
        check.error(&format!("{path}.port.number"), format!("port {number} is set twice"));
    }
}
