//! The responses of both variants of the protocol, with the bytes of each resource as the part of the response that they
//! are: what is held already is told by its bytes, and is neither copied nor looked into.

//!
//! A part of a response takes a hundred times the bytes that it may have on the wire: a response with more parts than any
//! mesh has resources is refused before it is read. Lists inside of what is read here there are none.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use envoy_types::pb::google::protobuf::Duration;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

use super::name;

/// Fields of a response, each resource and name one.
const MAX_PARTS: usize = 1 << 20;

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
    pub(super) resource_errors: Vec<Failure>,
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
    pub(super) resource_errors: Vec<Failure>,
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

/// `envoy.service.discovery.v3.ResourceName`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ResourceName {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// `envoy.service.discovery.v3.ResourceError`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Failure {
    #[prost(message, optional, tag = "1")]
    pub(super) resource_name: Option<ResourceName>,
    #[prost(message, optional, tag = "2")]
    pub(super) error_detail: Option<Detail>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Detail {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// Prost's messages, where answers are read only within [`MAX_PARTS`].
pub(super) struct Bounded<Q, A>(PhantomData<(Q, A)>);

impl<Q, A> Default for Bounded<Q, A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + Send + 'static, A: Message + Default + Send + 'static> Codec for Bounded<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = <ProstCodec<Q, A> as Codec>::Encoder;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Q, A>::new().encoder()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<Q, A: Message + Default> Decoder for Bounded<Q, A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        let bytes = source.copy_to_bytes(source.remaining());
        read(bytes).map(Some).map_err(Status::internal)
    }
}

fn read<A: Message + Default>(bytes: Bytes) -> Result<A, String> {
    if !name::has_at_most(MAX_PARTS, &bytes) {
        return Err(format!(
            "a response has more than {MAX_PARTS} resources and names: have the control plane send less at a time"
        ));
    }
    A::decode(bytes).map_err(|error| format!("a response cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3 as xds;
    use envoy_types::pb::google::protobuf::Any;
    use envoy_types::pb::google::rpc;

    use super::*;

    #[test]
    fn both_responses_are_the_messages_of_the_protocol_and_their_resources_are_parts_of_the_bytes() {
        let any = Any { type_url: "t".into(), value: vec![1, 2, 3] };
        let name = xds::ResourceName { name: "n".into(), ..Default::default() };
        let status = rpc::Status { code: 5, message: "m".into(), details: vec![any.clone()] };
        let error = xds::ResourceError { resource_name: Some(name.clone()), error_detail: Some(status) };
        let own_name = ResourceName { name: "n".into() };
        let detail = Some(Detail { code: 5, message: "m".into() });
        let own_error = Failure { resource_name: Some(own_name.clone()), error_detail: detail };
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
        assert_eq!(read.resource_errors, std::slice::from_ref(&own_error));
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
        assert_eq!((read.removed_resources, read.removed_resource_names), (vec!["r".into()], vec![own_name.clone()]));
        assert_eq!(read.resource_errors, [own_error]);
        let DeltaResource { version, resource, name: plain, ttl, resource_name } = read.resources[0].clone();
        assert_eq!((version, plain, resource_name), ("7".into(), "a".into(), Some(own_name)));
        assert_eq!(ttl, Some(Duration { seconds: 5, nanos: 1 }));
        assert_eq!(resource.map(|packed| packed.value), Some(Bytes::from_static(&[1, 2, 3])));
    }

    #[test]
    fn a_response_of_more_parts_than_any_mesh_has_is_refused_before_it_is_read() {
        // Resources that are empty: two bytes each.
        let empty = |parts: usize| Bytes::from([0x12, 0].repeat(parts));
        let refused = read::<WorldResponse>(empty(MAX_PARTS + 1)).unwrap_err();
        assert!(refused.contains("more than 1048576"), "{refused}");
        assert!(read::<DeltaResponse>(Bytes::from([0x32, 0].repeat(MAX_PARTS + 1))).is_err());
        // An unknown group, which prost passes over, hides nothing of what comes after it.
        let grouped = |parts: usize| Bytes::from([&[0x7b, 0x7c][..], &empty(parts)[..]].concat());
        assert!(read::<WorldResponse>(grouped(MAX_PARTS)).is_err());
        assert_eq!(read::<WorldResponse>(grouped(2)).unwrap().resources.len(), 2, "it is read");
        // The control run: as many as that are read.
        assert_eq!(read::<WorldResponse>(empty(MAX_PARTS)).unwrap().resources.len(), MAX_PARTS);
    }
}
