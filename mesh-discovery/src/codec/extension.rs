//! `google.protobuf.Any`, extension configs and metadata: how the typed parts inside a resource are
//! packed and found.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::{Metadata, TypedExtensionConfig};
use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value::Kind};
use prost::Message;

use super::parts;
use super::report::{At, Report};
use super::typed_struct::TypedStruct;
use crate::proto::policy::METADATA_KEY;

/// Type URLs of the extensions that the codec reads and writes.
pub(super) mod url {
    pub(crate) const HCM: &str =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    pub(crate) const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    pub(crate) const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    pub(crate) const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
    pub(crate) const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    pub(crate) const RBAC_PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    pub(crate) const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
    pub(crate) const CORS_POLICY: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy";
    pub(crate) const FILTER_CONFIG: &str = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    pub(crate) const UPSTREAM_TLS: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    pub(crate) const DOWNSTREAM_TLS: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    pub(crate) const RAW_BUFFER: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    pub(crate) const HTTP_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    pub(crate) const RATE_LIMIT: &str =
        "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    pub(crate) const CALLER_RATE_LIMIT: &str = "type.googleapis.com/mesh.policy.v1.CallerRateLimit";
    pub(crate) const ADMISSION: &str =
        "type.googleapis.com/envoy.extensions.filters.http.admission_control.v3.AdmissionControl";
    pub(crate) const CONCURRENCY: &str =
        "type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency";
    pub(crate) const SESSION: &str =
        "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
    pub(crate) const SESSION_PER_ROUTE: &str =
        "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
    pub(crate) const SESSION_COOKIE: &str =
        "type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
    pub(crate) const SESSION_HEADER: &str =
        "type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";
    pub(crate) const WITH_MATCHER: &str =
        "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher";
    pub(crate) const WITH_MATCHER_PER_ROUTE: &str =
        "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcherPerRoute";
    pub(crate) const COMPOSITE: &str = "type.googleapis.com/envoy.extensions.filters.http.composite.v3.Composite";
    pub(crate) const EXECUTE_FILTERS: &str =
        "type.googleapis.com/envoy.extensions.filters.http.composite.v3.ExecuteFilterAction";
    pub(crate) const SKIP_FILTER: &str =
        "type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter";
    pub(crate) const HEADER_INPUT: &str = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput";
    pub(crate) const EXT_AUTHZ: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    pub(crate) const JWT: &str = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
    pub(crate) const JWT_PER_ROUTE: &str =
        "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";
    pub(crate) const STDOUT_AUDIT: &str =
        "type.googleapis.com/envoy.extensions.rbac.audit_loggers.stream.v3.StdoutAuditLog";
    pub(crate) const HTTP_PROXY: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport";
    pub(crate) const DNS_CLUSTER: &str = "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster";
    pub(crate) const ADDRESS: &str = "type.googleapis.com/envoy.config.core.v3.Address";
    pub(crate) const OMIT_CANARY: &str =
        "type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate";
    pub(crate) const OMIT_METADATA: &str =
        "type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig";
    pub(crate) const AGGREGATE: &str = "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig";
    pub(crate) const PREVIOUS_HOSTS: &str =
        "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    pub(crate) const PREVIOUS_PRIORITIES: &str =
        "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";

    /// Prefix of every type URL made here.
    pub(crate) const PREFIX: &str = "type.googleapis.com/";
}

/// Packs a message.
pub(super) fn pack(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// An extension config with a packed message.
pub(super) fn typed(name: &str, type_url: &str, message: &impl Message) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack(type_url, message)) }
}

/// The type an `Any` stands for: the wrapped one if it is a `TypedStruct` that says nothing, or whose JSON can be read here. Any
/// other is of a type of its own, which nobody here knows.
pub(super) fn type_of(any: &Any) -> String {
    match TypedStruct::within(any).flatten() {
        Some(wrapped) if wrapped.says_nothing() || wrapped.is_read() => wrapped.url(),
        _ => any.type_url.clone(),
    }
}

/// The type as a refusal names it; of a `TypedStruct` the type within.
pub(super) fn name_of(any: &Any) -> String {
    match TypedStruct::within(any).flatten() {
        Some(wrapped) => format!("{:?} as JSON", wrapped.name()),
        None => format!("{:?}", behind_slash(&any.type_url)),
    }
}

/// What stands behind the last `/`, or all.
pub(super) fn behind_slash(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Decodes the bytes of an `Any` whose type has been looked at.
pub(super) fn unpack<M: Message + Default + 'static>(any: &Any, at: &At<'_>, report: &mut Report) -> Option<M> {
    if let Some(wrapped) = TypedStruct::within(any) {
        // Where no type was asked for, what it says must not be lost.
        return match wrapped {
            Some(wrapped) if wrapped.says_nothing() => Some(M::default()),
            Some(wrapped) => wrapped.read(at, report),
            None => {
                report.problem(at, format!("not a {}", any.type_url));
                None
            }
        };
    }
    if let Err(reason) = parts::check(&any.value) {
        report.problem(at, reason);
        return None;
    }
    match M::decode(any.value.as_slice()) {
        Ok(message) => Some(message),
        Err(e) => {
            report.problem(at, format!("not a {}: {e}", any.type_url));
            None
        }
    }
}

/// Puts one of our messages into `metadata`; none if the message says nothing.
pub(super) fn put<M: Message + Default + PartialEq>(metadata: &mut Option<Metadata>, name: &str, message: &M) {
    if *message != M::default() {
        let any = pack(&format!("{}{METADATA_KEY}.{name}", url::PREFIX), message);
        metadata.get_or_insert_default().typed_filter_metadata.insert(METADATA_KEY.to_owned(), any);
    }
}

/// Our message in `metadata`, or its default.
pub(super) fn take<M: Message + Default + 'static>(
    metadata: Option<&Metadata>,
    name: &str,
    at: &At<'_>,
    report: &mut Report,
) -> M {
    let Some(any) = metadata.and_then(|m| m.typed_filter_metadata.get(METADATA_KEY)) else {
        return M::default();
    };
    let at = at.field("metadata");
    let at = at.key("typed_filter_metadata", METADATA_KEY);
    if any.type_url != format!("{}{METADATA_KEY}.{name}", url::PREFIX) {
        report.problem(&at, format!("{:?} is not {METADATA_KEY}.{name}", any.type_url));
        return M::default();
    }
    unpack(any, &at, report).unwrap_or_default()
}

/// Puts a struct into `metadata.filter_metadata`.
pub(super) fn put_struct(metadata: &mut Option<Metadata>, key: &str, fields: HashMap<String, Value>) {
    metadata.get_or_insert_default().filter_metadata.insert(key.to_owned(), Struct { fields });
}

/// The field `name` of the struct `key` in `metadata.filter_metadata`.
pub(super) fn struct_field<'a>(metadata: Option<&'a Metadata>, key: &str, name: &str) -> Option<&'a Kind> {
    metadata?.filter_metadata.get(key)?.fields.get(name)?.kind.as_ref()
}

/// A string value.
pub(super) fn string(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

/// A list value.
pub(super) fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

/// The string in a value, if it is one.
pub(super) fn as_str(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Metadata key of facts about endpoints that balancers choose by.
pub(super) const LB: &str = "envoy.lb";

/// Facts as a struct of texts.
pub(super) fn labels(facts: &BTreeMap<String, String>) -> HashMap<String, Value> {
    facts.iter().map(|(key, value)| (key.clone(), string(value))).collect()
}

/// Facts under `envoy.lb`, if there are any.
pub(super) fn lb_metadata(facts: &BTreeMap<String, String>) -> Option<Metadata> {
    let mut metadata = None;
    if !facts.is_empty() {
        put_struct(&mut metadata, LB, labels(facts));
    }
    metadata
}

/// The facts in a struct. Envoy's may be truth values and numbers; here they are text.
pub(super) fn read_labels(proto: &Struct) -> BTreeMap<String, String> {
    let text = |kind: &Kind| match kind {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(value) => Some(value.to_string()),
        Kind::NumberValue(value) => Some(value.to_string()),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    };
    proto.fields.iter().filter_map(|(key, value)| Some((key.clone(), text(value.kind.as_ref()?)?))).collect()
}

/// The facts under `envoy.lb`.
pub(super) fn read_lb_metadata(metadata: Option<&Metadata>) -> BTreeMap<String, String> {
    metadata.and_then(|m| m.filter_metadata.get(LB)).map(read_labels).unwrap_or_default()
}
