//! The envelopes of the protocol, as far as the bench fills them in: what comes in is bytes, so that reading
//! them counts.

use bytes::Bytes;
use mesh_discovery::xds::{Body, RawResource, Response, Variant};
use prost::Message;

/// `google.protobuf.Any`, as the client's own transport reads it: a part of the response.
#[derive(Clone, Message)]
pub(crate) struct Any {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) type_url: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Message)]
struct World {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Any>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Message)]
struct Delta {
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Named>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Message)]
struct Named {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, optional, tag = "2")]
    resource: Option<Any>,
    #[prost(string, tag = "3")]
    name: String,
}

/// A resource before it is put into a response.
pub(crate) struct Resource {
    pub(crate) name: String,
    pub(crate) any: Any,
}

/// A response of these resources, which are of one type.
pub(crate) fn encode(variant: Variant, revision: u64, resources: Vec<Resource>) -> Vec<u8> {
    let type_url = resources
        .first()
        .map(|resource| String::from_utf8_lossy(&resource.any.type_url).into_owned())
        .unwrap_or_default();
    let (version, nonce) = (revision.to_string(), format!("n{revision}"));
    match variant {
        Variant::StateOfTheWorld => {
            let resources = resources.into_iter().map(|resource| resource.any).collect();
            World { version_info: version, resources, type_url, nonce }.encode_to_vec()
        }
        Variant::Delta => {
            let named = |Resource { name, any }| Named { version: version.clone(), resource: Some(any), name };
            let resources = resources.into_iter().map(named).collect();
            Delta { resources, type_url, nonce }.encode_to_vec()
        }
    }
}

/// What the network's side of the client does with it.
pub(crate) fn decode(variant: Variant, bytes: Bytes) -> Result<Response, prost::DecodeError> {
    let body = |any: Any| Body::new(std::str::from_utf8(&any.type_url).unwrap_or_default(), any.value);
    Ok(match variant {
        Variant::StateOfTheWorld => {
            let World { version_info, resources, type_url, nonce } = World::decode(bytes)?;
            let resource = |any| RawResource { body: Some(body(any)), ..RawResource::default() };
            let resources = resources.into_iter().map(resource).collect();
            Response { type_url, version: version_info, nonce, resources, ..Response::default() }
        }
        Variant::Delta => {
            let Delta { resources, type_url, nonce } = Delta::decode(bytes)?;
            let resource =
                |Named { version, resource, name }| RawResource { name, version, ttl: None, body: resource.map(body) };
            let resources = resources.into_iter().map(resource).collect();
            Response { type_url, nonce, resources, ..Response::default() }
        }
    })
}
