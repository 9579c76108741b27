//! The node of the bootstrap as it goes onto the wire (gRFC A27).

use envoy_types::pb::envoy::config::core::v3::{self as core, node::UserAgentVersionType};
use envoy_types::pb::google::protobuf::{self as pb, value::Kind};
use serde_json::Value;

use crate::bootstrap::Node;

/// What we can do beyond the first version of xDS; names are gRPC's.
const FEATURES: [&str; 3] =
    ["envoy.lb.does_not_support_overprovisioning", "xds.config.resource-in-sotw", "xds.config.supports-resource-ttl"];

pub(crate) fn to_wire(node: &Node) -> core::Node {
    let locality = &node.locality;
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| to_struct(&node.metadata)),
        locality: (*locality != Default::default()).then(|| core::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        user_agent_name: "mesh".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned())),
        client_features: FEATURES.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

fn to_struct(map: &serde_json::Map<String, Value>) -> pb::Struct {
    pb::Struct { fields: map.iter().map(|(name, value)| (name.clone(), to_value(value))).collect() }
}

fn to_value(value: &Value) -> pb::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(items) => Kind::ListValue(pb::ListValue { values: items.iter().map(to_value).collect() }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    pb::Value { kind: Some(kind) }
}
