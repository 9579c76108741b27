//! DestinationRule as written (`networking.istio.io`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::values::Loose;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DestinationRuleSpec {
    #[serde(default)]
    pub(super) host: String,
    pub(super) traffic_policy: Option<TrafficPolicySpec>,
    #[serde(default)]
    pub(super) subsets: Vec<SubsetSpec>,
    #[serde(default)]
    pub(super) export_to: Vec<String>,
    pub(super) workload_selector: Option<SelectorSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SelectorSpec {
    #[serde(default)]
    pub(crate) match_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubsetSpec {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) traffic_policy: Option<TrafficPolicySpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TrafficPolicySpec {
    pub(super) load_balancer: Option<LoadBalancerSpec>,
    pub(super) connection_pool: Option<ConnectionPoolSpec>,
    pub(super) outlier_detection: Option<OutlierSpec>,
    pub(super) tls: Option<TlsSpec>,
    #[serde(default)]
    pub(super) port_level_settings: Vec<PortPolicySpec>,
    pub(super) retry_budget: Option<RetryBudgetSpec>,
    pub(super) tunnel: Option<TunnelSpec>,
    pub(super) proxy_protocol: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortPolicySpec {
    pub(super) port: Option<PortSelectorSpec>,
    pub(super) load_balancer: Option<LoadBalancerSpec>,
    pub(super) connection_pool: Option<ConnectionPoolSpec>,
    pub(super) outlier_detection: Option<OutlierSpec>,
    pub(super) tls: Option<TlsSpec>,
}

#[derive(Deserialize)]
pub(super) struct PortSelectorSpec {
    #[serde(default)]
    pub(super) number: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LoadBalancerSpec {
    pub(super) simple: Option<String>,
    pub(super) consistent_hash: Option<ConsistentHashSpec>,
    pub(super) locality_lb_setting: Option<LocalitySpec>,
    pub(super) zone_aware_lb_setting: Option<IgnoredAny>,
    pub(super) warmup: Option<WarmupSpec>,
    pub(super) warmup_duration_secs: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConsistentHashSpec {
    pub(super) http_header_name: Option<String>,
    pub(super) http_cookie: Option<CookieSpec>,
    pub(super) use_source_ip: Option<bool>,
    pub(super) http_query_parameter_name: Option<String>,
    pub(super) minimum_ring_size: Option<u64>,
    pub(super) ring_hash: Option<RingHashSpec>,
    pub(super) maglev: Option<MaglevSpec>,
}

#[derive(Deserialize)]
pub(super) struct CookieSpec {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) path: String,
    pub(super) ttl: Option<String>,
    #[serde(default)]
    pub(super) attributes: Vec<CookieAttributeSpec>,
}

#[derive(Deserialize)]
pub(super) struct CookieAttributeSpec {
    #[serde(default)]
    pub(super) name: String,
    #[allow(dead_code)]
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RingHashSpec {
    pub(super) minimum_ring_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MaglevSpec {
    pub(super) table_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WarmupSpec {
    pub(super) duration: Option<String>,
    pub(super) minimum_percent: Option<DoubleSpec>,
    pub(super) aggression: Option<DoubleSpec>,
}

/// A wrapped number, written bare in YAML.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct DoubleSpec(pub(super) f64);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LocalitySpec {
    #[serde(default)]
    pub(super) distribute: Vec<DistributeSpec>,
    #[serde(default)]
    pub(super) failover: Vec<FailoverSpec>,
    #[serde(default)]
    pub(super) failover_priority: Vec<String>,
    pub(super) enabled: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct DistributeSpec {
    #[serde(default)]
    pub(super) from: String,
    #[serde(default)]
    pub(super) to: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
pub(super) struct FailoverSpec {
    #[serde(default)]
    pub(super) from: String,
    #[serde(default)]
    pub(super) to: String,
}

#[derive(Deserialize)]
pub(super) struct ConnectionPoolSpec {
    pub(super) tcp: Option<TcpPoolSpec>,
    pub(super) http: Option<HttpPoolSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcpPoolSpec {
    pub(super) max_connections: Option<i64>,
    pub(super) connect_timeout: Option<String>,
    pub(super) tcp_keepalive: Option<KeepaliveSpec>,
    pub(super) max_connection_duration: Option<String>,
    pub(super) idle_timeout: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct KeepaliveSpec {
    pub(super) probes: Option<u32>,
    pub(super) time: Option<String>,
    pub(super) interval: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HttpPoolSpec {
    pub(super) http1_max_pending_requests: Option<i64>,
    pub(super) http2_max_requests: Option<i64>,
    pub(super) max_requests_per_connection: Option<i64>,
    pub(super) max_retries: Option<i64>,
    pub(super) idle_timeout: Option<String>,
    pub(super) h2_upgrade_policy: Option<String>,
    pub(super) use_client_protocol: Option<bool>,
    pub(super) max_concurrent_streams: Option<i64>,
    #[serde(alias = "http2Keepalive")]
    pub(super) http2_keep_alive: Option<Http2KeepaliveSpec>,
}

#[derive(Deserialize)]
pub(super) struct Http2KeepaliveSpec {
    pub(super) interval: Option<String>,
    pub(super) timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutlierSpec {
    pub(super) consecutive_errors: Option<i64>,
    #[serde(rename = "consecutive5xxErrors")]
    pub(super) consecutive_5xx_errors: Option<i64>,
    pub(super) consecutive_gateway_errors: Option<i64>,
    pub(super) consecutive_local_origin_failures: Option<i64>,
    #[serde(default)]
    pub(super) split_external_local_origin_errors: bool,
    pub(super) interval: Option<String>,
    pub(super) base_ejection_time: Option<String>,
    pub(super) max_ejection_percent: Option<i64>,
    pub(super) min_health_percent: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TlsSpec {
    pub(super) mode: Option<String>,
    pub(super) client_certificate: Option<String>,
    pub(super) private_key: Option<String>,
    pub(super) ca_certificates: Option<String>,
    pub(super) ca_crl: Option<String>,
    pub(super) credential_name: Option<String>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    pub(super) sni: Option<String>,
    pub(super) insecure_skip_verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RetryBudgetSpec {
    pub(super) percent: Option<DoubleSpec>,
    pub(super) min_retry_concurrency: Option<i64>,
    pub(super) budget_interval: Option<Loose>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TunnelSpec {
    #[allow(dead_code)]
    protocol: Option<String>,
    pub(super) target_host: Option<String>,
    pub(super) target_port: Option<i64>,
}
