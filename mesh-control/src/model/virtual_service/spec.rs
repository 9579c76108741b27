//! VirtualService as written (`networking.istio.io`, the same schema in v1, v1beta1 and v1alpha3).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::values::{PercentSpec, StringMatchSpec};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VirtualServiceSpec {
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    #[serde(default)]
    pub(super) gateways: Vec<String>,
    #[serde(default)]
    pub(super) http: Vec<HttpRouteSpec>,
    #[serde(default)]
    pub(super) tls: Vec<TlsRouteSpec>,
    #[serde(default)]
    pub(super) tcp: Vec<TcpRouteSpec>,
    #[serde(default)]
    pub(super) export_to: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HttpRouteSpec {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) r#match: Vec<MatchSpec>,
    #[serde(default)]
    pub(super) route: Vec<RouteDestinationSpec>,
    pub(super) redirect: Option<RedirectSpec>,
    pub(super) direct_response: Option<DirectResponseSpec>,
    pub(super) delegate: Option<DelegateSpec>,
    pub(super) rewrite: Option<RewriteSpec>,
    pub(super) timeout: Option<String>,
    pub(super) retries: Option<RetriesSpec>,
    pub(super) fault: Option<FaultSpec>,
    pub(super) mirror: Option<DestinationSpec>,
    pub(super) mirror_percentage: Option<PercentSpec>,
    pub(super) mirror_percent: Option<f64>,
    #[serde(default)]
    pub(super) mirrors: Vec<MirrorSpec>,
    pub(super) cors_policy: Option<CorsSpec>,
    pub(super) headers: Option<HeadersSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MatchSpec {
    #[serde(default)]
    pub(super) name: String,
    pub(super) uri: Option<StringMatchSpec>,
    #[serde(default)]
    pub(super) ignore_uri_case: bool,
    pub(super) scheme: Option<StringMatchSpec>,
    pub(super) method: Option<StringMatchSpec>,
    pub(super) authority: Option<StringMatchSpec>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, StringMatchSpec>,
    #[serde(default)]
    pub(super) without_headers: BTreeMap<String, StringMatchSpec>,
    #[serde(default)]
    pub(super) query_params: BTreeMap<String, StringMatchSpec>,
    pub(super) port: Option<i64>,
    #[serde(default)]
    pub(super) source_labels: BTreeMap<String, String>,
    pub(super) source_namespace: Option<String>,
    #[serde(default)]
    pub(super) gateways: Vec<String>,
    pub(super) stat_prefix: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct RouteDestinationSpec {
    pub(super) destination: Option<DestinationSpec>,
    #[serde(default)]
    pub(super) weight: i64,
    pub(super) headers: Option<HeadersSpec>,
}

#[derive(Deserialize)]
pub(super) struct DestinationSpec {
    #[serde(default)]
    pub(super) host: String,
    #[serde(default)]
    pub(super) subset: String,
    pub(super) port: Option<PortSelectorSpec>,
}

#[derive(Deserialize)]
pub(super) struct PortSelectorSpec {
    #[serde(default)]
    pub(super) number: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RedirectSpec {
    pub(super) uri: Option<String>,
    pub(super) authority: Option<String>,
    pub(super) scheme: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) derive_port: Option<String>,
    pub(super) redirect_code: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct DirectResponseSpec {
    #[serde(default)]
    pub(super) status: i64,
    pub(super) body: Option<BodySpec>,
}

#[derive(Deserialize)]
pub(super) struct BodySpec {
    pub(super) string: Option<String>,
    pub(super) bytes: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct DelegateSpec {
    #[serde(default)]
    pub(super) name: String,
    pub(super) namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RewriteSpec {
    pub(super) uri: Option<String>,
    pub(super) authority: Option<String>,
    pub(super) uri_regex_rewrite: Option<RegexRewriteSpec>,
}

#[derive(Deserialize)]
pub(super) struct RegexRewriteSpec {
    #[serde(default)]
    pub(super) r#match: String,
    #[serde(default)]
    pub(super) rewrite: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RetriesSpec {
    #[serde(default)]
    pub(super) attempts: i64,
    pub(super) per_try_timeout: Option<String>,
    #[serde(default)]
    pub(super) retry_on: String,
    pub(super) retry_remote_localities: Option<bool>,
    pub(super) retry_ignore_previous_hosts: Option<bool>,
    pub(super) backoff: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct FaultSpec {
    pub(super) delay: Option<DelaySpec>,
    pub(super) abort: Option<AbortSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DelaySpec {
    pub(super) fixed_delay: Option<String>,
    pub(super) exponential_delay: Option<IgnoredAny>,
    pub(super) percentage: Option<PercentSpec>,
    pub(super) percent: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AbortSpec {
    pub(super) http_status: Option<i64>,
    pub(super) grpc_status: Option<String>,
    pub(super) http2_error: Option<IgnoredAny>,
    pub(super) percentage: Option<PercentSpec>,
}

#[derive(Deserialize)]
pub(super) struct MirrorSpec {
    pub(super) destination: Option<DestinationSpec>,
    pub(super) percentage: Option<PercentSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CorsSpec {
    #[serde(default)]
    pub(super) allow_origins: Vec<StringMatchSpec>,
    #[serde(default)]
    pub(super) allow_origin: Vec<String>,
    #[serde(default)]
    pub(super) allow_methods: Vec<String>,
    #[serde(default)]
    #[allow(dead_code)]
    pub(super) allow_headers: Vec<String>,
    #[serde(default)]
    #[allow(dead_code)]
    pub(super) expose_headers: Vec<String>,
    pub(super) max_age: Option<String>,
    #[allow(dead_code)]
    pub(super) allow_credentials: Option<bool>,
    #[allow(dead_code)]
    pub(super) unmatched_preflights: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct HeadersSpec {
    pub(super) request: Option<HeaderOpsSpec>,
    pub(super) response: Option<HeaderOpsSpec>,
}

#[derive(Default, Deserialize)]
pub(super) struct HeaderOpsSpec {
    #[serde(default)]
    pub(super) set: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) add: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) remove: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct TlsRouteSpec {
    #[serde(default)]
    pub(super) r#match: Vec<TlsMatchSpec>,
    #[serde(default)]
    pub(super) route: Vec<RouteDestinationSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TlsMatchSpec {
    #[serde(default)]
    pub(super) sni_hosts: Vec<String>,
    #[serde(default)]
    pub(super) destination_subnets: Vec<String>,
    pub(super) port: Option<i64>,
    #[serde(default)]
    pub(super) source_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) gateways: Vec<String>,
    pub(super) source_namespace: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct TcpRouteSpec {
    #[serde(default)]
    pub(super) r#match: Vec<TcpMatchSpec>,
    #[serde(default)]
    pub(super) route: Vec<RouteDestinationSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcpMatchSpec {
    #[serde(default)]
    pub(super) destination_subnets: Vec<String>,
    pub(super) port: Option<i64>,
    #[serde(default)]
    pub(super) source_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) gateways: Vec<String>,
    pub(super) source_namespace: Option<String>,
    pub(super) source_subnet: Option<String>,
}
