//! The responses of both variants of the protocol, with the bytes of each resource as the part of the response that they
//! are: what is held already is told by its bytes, and is neither copied nor looked into.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use envoy_types::pb::google::protobuf::Duration;

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WorldResponse {
    #[prost(string, tag = "1")]
    pub(super) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Packed>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(message, repeated, tag = "7")]
    pub(super) resource_errors: Vec<ResourceError>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaResponse {
    #[prost(string, tag = "1")]
    pub(super) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) removed_resources: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    pub(super) removed_resource_names: Vec<ResourceName>,
    #[prost(message, repeated, tag = "9")]
    pub(super) resource_errors: Vec<ResourceError>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaResource {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Packed>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(message, optional, tag = "6")]
    pub(super) ttl: Option<Duration>,
    #[prost(message, optional, tag = "8")]
    pub(super) resource_name: Option<ResourceName>,
}

/// `google.protobuf.Any`. Its type is bytes as well, so that no text is made of what is compared.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packed {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) type_url: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3 as xds;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message;

    use super::*;

    #[test]
    fn both_responses_are_the_messages_of_the_protocol_and_their_resources_are_parts_of_the_bytes() {
        let any = Any { type_url: "t".into(), value: vec![1, 2, 3] };
        let name = ResourceName { name: "n".into(), ..ResourceName::default() };
        let error = ResourceError { resource_name: Some(name.clone()), error_detail: None };
        let world = xds::DiscoveryResponse {
            version_info: "v".into(),
            resources: vec![any.clone()],
            type_url: "u".into(),
            nonce: "1".into(),
            resource_errors: vec![error.clone()],
            ..Default::default()
        };
        let bytes = Bytes::from(world.encode_to_vec());
        let read = WorldResponse::decode(bytes.clone()).unwrap();
        assert_eq!((read.version_info, read.type_url, read.nonce), ("v".into(), "u".into(), "1".into()));
        assert_eq!(read.resource_errors, std::slice::from_ref(&error));
        let Packed { type_url, value } = &read.resources[0];
        assert_eq!((&type_url[..], &value[..]), (&b"t"[..], &any.value[..]));
        assert!(bytes.as_ptr_range().contains(&value.as_ptr()), "not copied");

        let delta = xds::DeltaDiscoveryResponse {
            system_version_info: "v".into(),
            resources: vec![xds::Resource {
                name: "a".into(),
                version: "7".into(),
                resource: Some(any),
                ttl: Some(Duration { seconds: 5, nanos: 1 }),
                resource_name: Some(name.clone()),
                ..Default::default()
            }],
            type_url: "u".into(),
            nonce: "2".into(),
            removed_resources: vec!["r".into()],
            removed_resource_names: vec![name.clone()],
            resource_errors: vec![error.clone()],
            ..Default::default()
        };
        let read = DeltaResponse::decode(delta.encode_to_vec().as_slice()).unwrap();
        assert_eq!((read.system_version_info, read.type_url, read.nonce), ("v".into(), "u".into(), "2".into()));
        assert_eq!((read.removed_resources, read.removed_resource_names), (vec!["r".into()], vec![name.clone()]));
        assert_eq!(read.resource_errors, [error]);
        let DeltaResource { version, resource, name: plain, ttl, resource_name } = read.resources[0].clone();
        assert_eq!((version, plain, resource_name), ("7".into(), "a".into(), Some(name)));
        assert_eq!(ttl, Some(Duration { seconds: 5, nanos: 1 }));
        assert_eq!(resource.map(|packed| packed.value), Some(Bytes::from_static(&[1, 2, 3])));
    }
}
