//! Load-balancing policies of the application's own, which a control plane names by a `TypedStruct` (gRFC A52).
//!
//! Refuses to know what their configurations mean: they are passed on as JSON.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::google::protobuf::{Any, ListValue, Struct, Value, value::Kind};
use mesh_core::policy::Balancer;
use prost::Message;
use serde_json::{Map, Number, Value as Json};

use super::extension::{self, url};
use super::report::{At, Report};
use super::typed_struct::{TypedStruct, WRAPPERS};

pub(super) fn encode(name: &str, config: &str) -> TypedExtensionConfig {
    // What decoding makes is an object.
    let fields = match serde_json::from_str(config) {
        Ok(Json::Object(fields)) => as_struct(fields),
        _ => Struct::default(),
    };
    let value = if fields.fields.is_empty() { Vec::new() } else { vec![fields.encode_to_vec()] };
    let wrapped = TypedStruct { type_url: format!("{}{name}", url::PREFIX), value };
    extension::typed(name, WRAPPERS[0], &wrapped)
}

/// `None` = it is none that the application has; `Some(None)` = it is refused.
#[allow(clippy::option_option)]
pub(super) fn decode(config: &Any, at: &At<'_>, report: &mut Report) -> Option<Option<Balancer>> {
    let wrapped = TypedStruct::within(config)??;
    let name = Some(wrapped.name()).filter(|name| report.has_balancer(name))?;
    let config = wrapped.content(at, report);
    Some(
        config.map(|config| Balancer::Custom {
            name: name.into(),
            config: Json::Object(as_map(config)).to_string().into(),
        }),
    )
}

fn as_struct(fields: Map<String, Json>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, json)| (key, as_value(json))).collect() }
}

fn as_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(is) => Kind::BoolValue(is),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(as_value).collect() }),
        Json::Object(fields) => Kind::StructValue(as_struct(fields)),
    };
    Value { kind: Some(kind) }
}

/// In the order of the keys, so that equal configurations are equal texts.
fn as_map(proto: Struct) -> Map<String, Json> {
    // The map keeps the order of what is put in if any crate of the application wants `serde_json/preserve_order`.
    let sorted: BTreeMap<_, _> = proto.fields.into_iter().collect();
    sorted.into_iter().map(|(key, value)| (key, as_json(value))).collect()
}

fn as_json(value: Value) -> Json {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(is)) => Json::Bool(is),
        Some(Kind::NumberValue(number)) => as_number(number),
        Some(Kind::StringValue(text)) => Json::String(text),
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(as_json).collect()),
        Some(Kind::StructValue(fields)) => Json::Object(as_map(fields)),
    }
}

/// Whole ones are written as such: a reader who wants a count takes no `2.0`.
fn as_number(number: f64) -> Json {
    let whole = number.fract() == 0.0 && number.abs() <= super::typed_struct::MAX_WHOLE;
    if whole { Json::from(number as i64) } else { Number::from_f64(number).map_or(Json::Null, Json::Number) }
}
