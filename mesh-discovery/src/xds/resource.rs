//! The meeting point of protocol and policy: what the bytes of a resource decode to.

use std::borrow::Cow;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Cluster, Discovery, Endpoints, InboundListener, Listener, RouteConfiguration, Unenforced};
use serde::Serialize;

use super::ads::Codec;
use super::kind::Kind;
use super::message::Body;
use super::name;
use crate::codec::{self, AnyListener};

/// A decoded resource. Its value is behind an `Arc`, so that snapshots share what did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Value {
    /// A dialled destination.
    Listener(Arc<Listener>),
    /// A listening address.
    Inbound(Arc<InboundListener>),
    /// Routes.
    Routes(Arc<RouteConfiguration>),
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A cluster's endpoints.
    Endpoints(Arc<Endpoints>),
}

/// A value and what of it this version does not enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) value: Value,
    pub(crate) unenforced: Arc<[Unenforced]>,
}

/// The codec of Envoy's v3 resources.
#[derive(Debug, Default)]
pub(crate) struct PolicyCodec;

impl Codec for PolicyCodec {
    type Value = Resource;

    fn name<'a>(&self, _: Kind, body: &'a Body) -> Option<Cow<'a, str>> {
        name::peek(&body.bytes)
    }

    fn decode(&self, kind: Kind, name: &str, body: &Body) -> Result<Resource, String> {
        // The decoder wants the message as it was packed; the bytes are copied only when they are new.
        let any = &Any { type_url: body.type_url.clone(), value: body.bytes.clone() };
        match kind {
            Kind::Listener => {
                let decoded = codec::decode_listener(any).map_err(|e| e.to_string())?;
                let value = match decoded.value {
                    AnyListener::Outbound(listener) => Value::Listener(Arc::new(listener)),
                    AnyListener::Inbound(listener) => Value::Inbound(Arc::new(enforceable(listener)?)),
                };
                Ok(Resource { value, unenforced: decoded.unenforced.into() })
            }
            Kind::Routes => resource(codec::decode_routes(any), Value::Routes),
            Kind::Cluster => {
                let decoded = codec::decode_cluster(any).map_err(|e| e.to_string())?;
                names_its_endpoints(name, &decoded.value)?;
                resource(Ok(decoded), Value::Cluster)
            }
            Kind::Endpoints => resource(codec::decode_endpoints(any), Value::Endpoints),
        }
    }
}

/// The name of a cluster is not the name of its endpoints where names say their type (gRFC A47).
fn names_its_endpoints(name: &str, cluster: &Cluster) -> Result<(), String> {
    match &cluster.discovery {
        Discovery::Eds { service_name: None } if name.starts_with("xdstp:") => Err(format!(
            "cluster {name} is refused: eds_cluster_config.service_name: it must be set where the cluster has an xdstp: name"
        )),
        _ => Ok(()),
    }
}

/// The resource that a value decodes from.
pub(super) fn encode(value: &Value) -> Any {
    match value {
        Value::Listener(listener) => codec::encode_listener(listener),
        Value::Inbound(listener) => codec::encode_inbound(listener),
        Value::Routes(routes) => codec::encode_routes(routes),
        Value::Cluster(cluster) => codec::encode_cluster(cluster),
        Value::Endpoints(endpoints) => codec::encode_endpoints(endpoints),
    }
}

fn resource<T>(
    decoded: Result<codec::Decoded<T>, codec::DecodeError>,
    value: impl FnOnce(Arc<T>) -> Value,
) -> Result<Resource, String> {
    let decoded = decoded.map_err(|e| e.to_string())?;
    Ok(Resource { value: value(Arc::new(decoded.value)), unenforced: decoded.unenforced.into() })
}

/// Authorization rules and demands on tokens are not enforced by this version: to accept a listener that
/// carries some would open what its owner closed.
fn enforceable(listener: InboundListener) -> Result<InboundListener, String> {
    let (field, what, n) = match (listener.authorization.len(), listener.jwt.len()) {
        (0, 0) => return Ok(listener),
        (0, n) => ("jwt", "demands on tokens", n),
        (n, _) => ("authorization", "authorization rules", n),
    };
    Err(format!(
        "inbound listener {:?}: {field}: this version of mesh does not enforce {what} and refuses the listener's {n} \
         rather than ignore them",
        listener.name
    ))
}
