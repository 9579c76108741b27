//! Istio's MeshConfig: the text under `data.mesh` of the ConfigMap `istio` in the root namespace, as Istio keeps it.
//! Read are the external authorizers among its `extensionProviders`, `trustDomainAliases`, and of `defaultConfig` how many
//! proxies are trusted.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use mesh_core::id::TrustDomain;
use mesh_core::policy::{
    AuthorizerProtocol, AuthorizerService, CheckedBody, HeaderAction, HeaderWrite, HttpCheck, NamePattern,
};
use mesh_core::suggest::nearest;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::check::Check;
use super::kinds::Kind;
use super::values::{Loose, duration, port};
use crate::source::decode::decode;
use crate::source::node::{Node, Value};
use crate::source::{Document, yaml};

/// What is read of a MeshConfig.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshConfig {
    /// External authorizers by name; those that cannot be asked are left out, so that what they should decide about is
    /// denied.
    pub(crate) authorizers: BTreeMap<String, AuthorizerService>,
    /// Further names of the mesh's trust domain.
    pub(crate) trust_domain_aliases: Vec<TrustDomain>,
}

impl MeshConfig {
    /// The name of its ConfigMap.
    pub(crate) const NAME: &'static str = "istio";
}

#[derive(Deserialize)]
pub(crate) struct ConfigMapSpec {
    mesh: Option<String>,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TrafficSpec {
    mode: String,
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

/// Istio's ProxyConfig.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxySpec {
    gateway_topology: TopologySpec,
    #[serde(flatten)]
    other: BTreeMap<String, IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TopologySpec {
    num_trusted_proxies: Option<u32>,
    #[serde(flatten)]
    other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProviderSpec {
    #[serde(default)]
    name: String,
    envoy_ext_authz_grpc: Option<ServiceSpec>,
    envoy_ext_authz_http: Option<HttpSpec>,
    // Telemetry's.
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(default)]
    service: String,
    #[serde(default)]
    port: i64,
    timeout: Option<String>,
    #[serde(default)]
    fail_open: bool,
    status_on_error: Option<Loose>,
    // The route of a request is chosen where it is sent, not here.
    #[allow(dead_code)]
    clear_route_cache: Option<bool>,
    include_request_body_in_check: Option<BodySpec>,
}

// The fields of the one above again and not by `flatten`, which takes a misspelt field without a word.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpSpec {
    #[serde(default)]
    service: String,
    #[serde(default)]
    port: i64,
    timeout: Option<String>,
    #[serde(default)]
    fail_open: bool,
    status_on_error: Option<Loose>,
    clear_route_cache: Option<bool>,
    include_request_body_in_check: Option<BodySpec>,
    #[serde(default)]
    path_prefix: String,
    #[serde(default)]
    include_request_headers_in_check: Vec<String>,
    // What the field above was called.
    #[serde(default)]
    include_headers_in_check: Vec<String>,
    #[serde(default)]
    include_additional_headers_in_check: BTreeMap<String, String>,
    #[serde(default)]
    headers_to_upstream_on_allow: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_allow: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_deny: Vec<String>,
}

impl HttpSpec {
    /// Where the service is, and how it is asked.
    fn split(self) -> (ServiceSpec, CheckSpec) {
        let service = ServiceSpec {
            service: self.service,
            port: self.port,
            timeout: self.timeout,
            fail_open: self.fail_open,
            status_on_error: self.status_on_error,
            clear_route_cache: self.clear_route_cache,
            include_request_body_in_check: self.include_request_body_in_check,
        };
        let old = self.include_request_headers_in_check.is_empty();
        let check = CheckSpec {
            path_prefix: self.path_prefix,
            request_headers: if old { self.include_headers_in_check } else { self.include_request_headers_in_check },
            added_headers: self.include_additional_headers_in_check,
            upstream_on_allow: self.headers_to_upstream_on_allow,
            downstream_on_allow: self.headers_to_downstream_on_allow,
            downstream_on_deny: self.headers_to_downstream_on_deny,
        };
        (service, check)
    }
}

/// How a service is asked over HTTP.
struct CheckSpec {
    path_prefix: String,
    request_headers: Vec<String>,
    added_headers: BTreeMap<String, String>,
    upstream_on_allow: Vec<String>,
    downstream_on_allow: Vec<String>,
    downstream_on_deny: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BodySpec {
    #[serde(default)]
    max_request_bytes: i64,
    #[serde(default)]
    allow_partial_message: bool,
    #[serde(default)]
    pack_as_bytes: bool,
}

impl Kind for MeshConfig {
    const GROUP: &'static str = "";
    const KIND: &'static str = "ConfigMap";
    const VERSIONS: &'static [&'static str] = &["v1"];
    const ROOT: &'static str = "data";
    type Spec = ConfigMapSpec;

    /// Other ConfigMaps are the applications'.
    fn claims(document: &Document) -> bool {
        document.name == Self::NAME
    }

    fn validate(spec: ConfigMapSpec, check: &mut Check<'_>) -> Self {
        const AT: &str = "data.mesh";
        let Some(text) = spec.mesh else { return Self::default() };
        let node = match yaml::parse(&text, 1) {
            Ok(mut documents) => documents.pop(),
            Err(error) => {
                check.error(AT, format!("line {} of the text: {}", error.line, error.message));
                None
            }
        };
        let Some(node) = node else { return Self::default() };
        let Value::Map(fields) = &node.value else {
            check.error(AT, "a mapping of fields is needed");
            return Self::default();
        };
        // Each by itself: what is wrong with one takes nothing from the others.
        let (mut config, mut other) = (Self::default(), Vec::new());
        for (name, node) in fields.iter().filter(|(_, node)| node.value != Value::Null) {
            let at = format!("{AT}.{name}");
            match name.as_str() {
                "extensionProviders" => each(node, &at, check, |provider: ProviderSpec, check, at| {
                    let name = provider.name.clone();
                    config.authorizers.extend(authorizer(provider, check, at).map(|authorizer| (name, authorizer)));
                }),
                "trustDomainAliases" => each(node, &at, check, |name: String, check, at| {
                    let alias = TrustDomain::new(&name).map_err(|error| error.to_string());
                    config.trust_domain_aliases.extend(check.take(at, alias));
                }),
                "defaultConfig" => {
                    let ProxySpec { gateway_topology: topology, other } = part(node, &at, check).unwrap_or_default();
                    if topology.num_trusted_proxies.is_some_and(|count| count > 0) {
                        let message = format!(
                            "no effect on workloads, as in Istio, where it is for gateways: one behind trusted proxies of its \
                             own says so in its annotation {PROXY_CONFIG}"
                        );
                        check.info(&format!("{at}.gatewayTopology.numTrustedProxies"), message);
                    }
                    without_effect(&at, other.keys(), check);
                    without_effect(&format!("{at}.gatewayTopology"), topology.other.keys(), check);
                }
                "outboundTrafficPolicy" => {
                    let TrafficSpec { mode, .. } = part(node, &at, check).unwrap_or_default();
                    if mode == "REGISTRY_ONLY" {
                        let message =
                            "no effect in this version: calls to hosts that nothing defines go out all the same";
                        check.warn(&format!("{at}.mode"), message);
                    }
                }
                name if FIELDS.contains(&name) => other.push(name),
                name => match nearest(name, READ.into_iter().chain(FIELDS.iter().copied())) {
                    Some(meant) => check.warn(&at, format!("ignored: unknown field, did you mean {meant}?")),
                    None => other.push(name),
                },
            }
        }
        without_effect(AT, other.into_iter(), check);
        config
    }

    /// One slip does not take away what else it says.
    fn stand_in(read: Option<Self>, _: &Document) -> Option<(Self, &'static str)> {
        Some((read?, "what else the MeshConfig says is in force"))
    }
}

/// What is read of a MeshConfig.
const READ: [&str; 4] = ["extensionProviders", "trustDomainAliases", "defaultConfig", "outboundTrafficPolicy"];
/// What else it may hold.
const FIELDS: &[&str] = &[
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "ca",
    "caCertificates",
    "certificates",
    "configSources",
    "connectTimeout",
    "defaultDestinationRuleExportTo",
    "defaultHttpRetryPolicy",
    "defaultProviders",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "dnsRefreshRate",
    "enableAutoMtls",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "enableTracing",
    "h2UpgradePolicy",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "localityLbSetting",
    "meshMTLS",
    "outboundClusterStatName",
    "pathNormalization",
    "protocolDetectionTimeout",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "rootNamespace",
    "serviceScopeConfigs",
    "serviceSettings",
    "tcpKeepalive",
    "tlsDefaults",
    "trustDomain",
    "verifyCertificateAtClient",
];

/// The annotation of a workload that says what the mesh's `defaultConfig` does, for it alone.
pub(crate) const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// How many trusted proxies stand before the workload that is so annotated, at `at` of its manifest; `None` = it does not say.
/// An annotation that cannot be read has nobody trusted, and takes nothing else from its manifest.
pub(crate) fn trusted_proxies(annotations: &BTreeMap<String, String>, at: &str, check: &mut Check<'_>) -> Option<u32> {
    let at = format!("{at}.{PROXY_CONFIG}");
    let read = yaml::parse(annotations.get(PROXY_CONFIG)?, 1).map_err(|e| e.message).and_then(|mut documents| {
        let Some(node) = documents.pop() else { return Ok(None) };
        let (spec, _) = decode::<ProxySpec>(&node, "").map_err(|e| format!("{}: {}", e.path, e.message))?;
        Ok(spec.gateway_topology.num_trusted_proxies)
    });
    read.unwrap_or_else(|why| {
        check.warn(&at, format!("{why}; until it is corrected no proxy before the workload is trusted"));
        None
    })
}

/// Reads one field, or reports why it cannot be.
fn part<T: DeserializeOwned>(node: &Node, at: &str, check: &mut Check<'_>) -> Option<T> {
    match decode::<T>(node, at) {
        Ok((read, ignored)) => {
            ignored.iter().for_each(|ignored| check.warn(&ignored.path, format!("ignored: {}", ignored.why)));
            Some(read)
        }
        Err(error) => {
            check.error(&error.path, error.message);
            None
        }
    }
}

/// Reads a list, each of its items by itself.
fn each<'c, T: DeserializeOwned>(
    node: &Node,
    at: &str,
    check: &mut Check<'c>,
    mut take: impl FnMut(T, &mut Check<'c>, &str),
) {
    let Value::List(items) = &node.value else { return check.error(at, "a list is needed") };
    for (i, item) in items.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if let Some(read) = part(item, &at, check) {
            take(read, check, &at);
        }
    }
}

fn without_effect(at: &str, names: impl Iterator<Item = impl AsRef<str>>, check: &mut Check<'_>) {
    let names: Vec<_> = names.map(|name| name.as_ref().to_owned()).collect();
    if !names.is_empty() {
        check.info(at, format!("no effect in this version: {}", names.join(", ")));
    }
}

fn authorizer(provider: ProviderSpec, check: &mut Check<'_>, at: &str) -> Option<AuthorizerService> {
    let ProviderSpec { name, envoy_ext_authz_grpc: grpc, envoy_ext_authz_http: http, .. } = provider;
    if name.is_empty() && (grpc.is_some() || http.is_some()) {
        check.error(at, "a provider has a name, by which policies refer to it");
    }
    match (grpc, http) {
        (None, None) => None,
        (Some(grpc), None) => service(&grpc, check, &format!("{at}.envoyExtAuthzGrpc")),
        (None, Some(http)) => {
            let at = format!("{at}.envoyExtAuthzHttp");
            let (spec, how) = http.split();
            let (service, how) = (service(&spec, check, &at), http_check(how, check, &at));
            Some(AuthorizerService { protocol: AuthorizerProtocol::Http(Box::new(how?)), ..service? })
        }
        (Some(_), Some(_)) => {
            check.error(at, "a provider is of one kind: envoyExtAuthzGrpc and envoyExtAuthzHttp exclude each other");
            None
        }
    }
}

/// A service that is asked over gRPC.
fn service(grpc: &ServiceSpec, check: &mut Check<'_>, at: &str) -> Option<AuthorizerService> {
    let body = match &grpc.include_request_body_in_check {
        None => None,
        Some(spec) => Some(body(spec, check, &format!("{at}.includeRequestBodyInCheck"))?),
    };
    // `<namespace>/<host>` says where the service is defined; the host is its name all the same.
    let host = grpc.service.rsplit_once('/').map_or(grpc.service.as_str(), |(_, host)| host);
    let host = if super::values::is_dns_name(host) { Ok(host) } else { Err(format!("{host:?} is not a host")) };
    let host = check.take(&format!("{at}.service"), host);
    let number = check.take(&format!("{at}.port"), port(grpc.port));
    let time = grpc.timeout.as_deref().map_or(Ok(Duration::from_secs(600)), duration);
    let time = time.and_then(|time| if time.is_zero() { Err("no time at all".to_owned()) } else { Ok(time) });
    let timeout = check.take(&format!("{at}.timeout"), time);
    let status = match &grpc.status_on_error {
        None => Ok(403),
        Some(Loose(text)) => text
            .parse()
            .ok()
            .filter(|code| (200..600).contains(code))
            .ok_or_else(|| format!("{text:?} is not the status of an answer")),
    };
    let status_on_error = check.take(&format!("{at}.statusOnError"), status)?;
    Some(AuthorizerService {
        protocol: AuthorizerProtocol::Grpc,
        target: format!("{}:{}", host?, number?),
        timeout: timeout?,
        fail_open: grpc.fail_open,
        status_on_error,
        body,
    })
}

fn http_check(spec: CheckSpec, check: &mut Check<'_>, at: &str) -> Option<HttpCheck> {
    let mut names = |list: Vec<String>, field: &str| -> Option<Vec<NamePattern>> {
        let mut read = Vec::with_capacity(list.len());
        for (i, text) in list.iter().enumerate() {
            let name = text.parse::<NamePattern>().map_err(|error| error.to_string());
            read.push(check.take(&format!("{at}.{field}[{i}]"), name));
        }
        read.into_iter().collect()
    };
    let request_headers = names(spec.request_headers, "includeRequestHeadersInCheck");
    let upstream_on_allow = names(spec.upstream_on_allow, "headersToUpstreamOnAllow");
    let downstream_on_allow = names(spec.downstream_on_allow, "headersToDownstreamOnAllow");
    let downstream_on_deny = names(spec.downstream_on_deny, "headersToDownstreamOnDeny");
    let mut added_headers = Vec::new();
    for (name, value) in &spec.added_headers {
        let at = format!("{at}.includeAdditionalHeadersInCheck.{name}");
        added_headers.extend(added_header(name, value, check, &at)?);
    }
    let prefix = Some(spec.path_prefix).filter(|prefix| {
        prefix.is_empty() || prefix.starts_with('/') && !prefix.contains('?') && prefix.parse::<PathAndQuery>().is_ok()
    });
    let prefix = prefix.ok_or_else(|| "a path is needed, which begins with a slash".to_owned());
    Some(HttpCheck {
        path_prefix: check.take(&format!("{at}.pathPrefix"), prefix)?,
        request_headers: request_headers?,
        added_headers,
        upstream_on_allow: upstream_on_allow?,
        downstream_on_allow: downstream_on_allow?,
        downstream_on_deny: downstream_on_deny?,
    })
}

/// A header that the authorizer is told; the inner `None` = it is left out.
fn added_header(name: &str, value: &str, check: &mut Check<'_>, at: &str) -> Option<Option<HeaderWrite>> {
    // Envoy puts in what stands between two of them.
    if value.contains('%') {
        check.unenforced(at, "what stands between percent signs is not filled in, so the header is not sent");
        return Some(None);
    }
    let parsed = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
    let (name, value) = check.take(at, parsed.ok_or_else(|| "a header's name and value are needed".to_owned()))?;
    Some(Some(HeaderWrite { name, value, action: HeaderAction::Overwrite }))
}

fn body(spec: &BodySpec, check: &mut Check<'_>, at: &str) -> Option<CheckedBody> {
    let most = u32::try_from(spec.max_request_bytes).ok().filter(|most| *most <= CheckedBody::MOST);
    let most = most.and_then(NonZeroU32::new);
    let most = most.ok_or_else(|| format!("a number of bytes from 1 to {} is needed", CheckedBody::MOST));
    Some(CheckedBody {
        max_bytes: check.take(&format!("{at}.maxRequestBytes"), most)?,
        allow_partial: spec.allow_partial_message,
        as_bytes: spec.pack_as_bytes,
    })
}
