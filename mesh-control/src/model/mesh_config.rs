//! Istio's MeshConfig: the text under `data.mesh` of the ConfigMap `istio` in the root namespace, as Istio keeps it.
//! Read are the external authorizers among its `extensionProviders`, and `trustDomainAliases`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::policy::{CheckedBody, GrpcAuthorizer};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::check::Check;
use super::kinds::Kind;
use super::values::{Loose, duration, port};
use crate::source::decode::decode;
use crate::source::{Document, yaml};

/// What is read of a MeshConfig.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshConfig {
    /// External authorizers by name; those that cannot be asked are left out, so that what they should decide about is
    /// denied.
    pub(crate) authorizers: BTreeMap<String, GrpcAuthorizer>,
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
struct MeshSpec {
    extension_providers: Vec<ProviderSpec>,
    trust_domain_aliases: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProviderSpec {
    #[serde(default)]
    name: String,
    envoy_ext_authz_grpc: Option<GrpcSpec>,
    envoy_ext_authz_http: Option<IgnoredAny>,
    // Telemetry's.
    #[serde(flatten)]
    _other: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GrpcSpec {
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
        let (spec, ignored) = match decode::<MeshSpec>(&node, AT) {
            Ok(read) => read,
            Err(error) => {
                check.error(&error.path, error.message);
                return Self::default();
            }
        };
        for ignored in ignored {
            check.warn(&ignored.path, format!("ignored: {}", ignored.why));
        }
        if !spec.other.is_empty() {
            let names: Vec<&str> = spec.other.keys().map(String::as_str).collect();
            check.info(AT, format!("no effect in this version: {}", names.join(", ")));
        }
        let mut config = Self::default();
        for (i, provider) in spec.extension_providers.into_iter().enumerate() {
            let at = format!("{AT}.extensionProviders[{i}]");
            let authorizer = authorizer(&provider, check, &at);
            config.authorizers.extend(authorizer.map(|authorizer| (provider.name, authorizer)));
        }
        for (i, name) in spec.trust_domain_aliases.iter().enumerate() {
            let alias = TrustDomain::new(name).map_err(|error| error.to_string());
            config.trust_domain_aliases.extend(check.take(&format!("{AT}.trustDomainAliases[{i}]"), alias));
        }
        config
    }
}

fn authorizer(provider: &ProviderSpec, check: &mut Check<'_>, at: &str) -> Option<GrpcAuthorizer> {
    const DENIED: &str = "this authorizer is not asked, and what CUSTOM policies would ask it about is denied";
    if provider.envoy_ext_authz_http.is_some() {
        check.unenforced(&format!("{at}.envoyExtAuthzHttp"), &format!("only envoyExtAuthzGrpc is: {DENIED}"));
    }
    let grpc = provider.envoy_ext_authz_grpc.as_ref()?;
    let at = format!("{at}.envoyExtAuthzGrpc");
    if provider.name.is_empty() {
        check.error(&at, "a provider has a name, by which policies refer to it");
    }
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
    Some(GrpcAuthorizer {
        target: format!("{}:{}", host?, number?),
        timeout: timeout?,
        fail_open: grpc.fail_open,
        status_on_error,
        body,
    })
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
