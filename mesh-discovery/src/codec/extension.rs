//! `google.protobuf.Any`, extension configs and metadata: how the typed parts inside a resource are
//! packed and found.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{Metadata, TypedExtensionConfig};
use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value::Kind};
use prost::Message;

use super::report::{At, Report};
use crate::proto::policy::METADATA_KEY;

/// Type URLs of the extensions that the codec reads and writes.
pub(super) mod url {
    pub(crate) const HCM: &str =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
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
    pub(crate) const AGGREGATE: &str = "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig";
    pub(crate) const PREVIOUS_HOSTS: &str =
        "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    pub(crate) const PREVIOUS_PRIORITIES: &str =
        "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";

    /// Prefix of every type URL made here.
    pub(crate) const PREFIX: &str = "type.googleapis.com/";
}

/// Wrappers whose own `type_url` names the real type of a configuration given as a struct.
const TYPED_STRUCTS: [&str; 2] =
    ["type.googleapis.com/xds.type.v3.TypedStruct", "type.googleapis.com/udpa.type.v1.TypedStruct"];

/// `xds.type.v3.TypedStruct`, of which only the name of the wrapped type is used.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
}

/// Packs a message.
pub(super) fn pack(type_url: &str, message: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// An extension config with a packed message.
pub(super) fn typed(name: &str, type_url: &str, message: &impl Message) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack(type_url, message)) }
}

/// The type an `Any` stands for: the wrapped one if it is a `TypedStruct`.
pub(super) fn type_of(any: &Any) -> String {
    if TYPED_STRUCTS.contains(&any.type_url.as_str())
        && let Ok(wrapped) = TypedStruct::decode(any.value.as_slice())
    {
        return wrapped.type_url;
    }
    any.type_url.clone()
}

/// Decodes the bytes of an `Any` whose type has been looked at.
pub(super) fn unpack<M: Message + Default>(any: &Any, at: &At<'_>, report: &mut Report) -> Option<M> {
    if TYPED_STRUCTS.contains(&any.type_url.as_str()) {
        report.problem(at, format!("{} given as a TypedStruct is not supported", type_of(any)));
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
pub(super) fn take<M: Message + Default>(
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
