//! The responses of both forms of the protocol, with resources as bytes.
//!
//! On the wire an embedded message is a length and its bytes, so a `bytes` field takes the place of one
//! that is encoded already: a resource is encoded once and copied into the send buffer of each stream.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use envoy_types::pb::google::rpc::Status;

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StateResponse {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    /// Encoded `google.protobuf.Any`s.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(crate) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) control_plane: Option<ControlPlane>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) resource_errors: Vec<ResourceError>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaResponse {
    #[prost(string, tag = "1")]
    pub(crate) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed_resources: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub(crate) control_plane: Option<ControlPlane>,
    #[prost(message, repeated, tag = "9")]
    pub(crate) resource_errors: Vec<ResourceError>,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaResource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    /// An encoded `google.protobuf.Any`.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) resource: Bytes,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

/// How this server calls itself.
pub(super) fn control_plane() -> Option<ControlPlane> {
    Some(ControlPlane { identifier: concat!("mesh/", env!("CARGO_PKG_VERSION")).to_owned() })
}

/// That there is no resource of that name, as gRFC A88 and xRFC TP3 have it.
pub(super) fn not_found(name: &str, why: String) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.to_owned(), dynamic_parameter_constraints: None }),
        // google.rpc.Code.NOT_FOUND
        error_detail: Some(Status { code: 5, message: why, details: Vec::new() }),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource};
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message;

    use super::*;

    #[test]
    fn both_responses_are_the_messages_of_the_protocol() {
        let any = Any { type_url: "type.googleapis.com/x".into(), value: vec![1, 2, 3] };
        let bytes = Bytes::from(any.encode_to_vec());
        let state = StateResponse {
            version_info: "7/1".into(),
            resources: vec![bytes.clone(), bytes.clone()],
            type_url: "t".into(),
            nonce: "1".into(),
            control_plane: control_plane(),
            resource_errors: vec![not_found("b", "gone".into())],
        };
        let read = DiscoveryResponse::decode(state.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read.resources, [any.clone(), any.clone()]);
        assert_eq!((read.version_info, read.type_url, read.nonce), ("7/1".into(), "t".into(), "1".into()));
        assert_eq!((read.control_plane, read.resource_errors), (control_plane(), state.resource_errors));

        let delta = DeltaResponse {
            system_version_info: "7/1".into(),
            resources: vec![DeltaResource { version: "v".into(), resource: bytes, name: "a".into() }],
            type_url: "t".into(),
            nonce: "2".into(),
            removed_resources: vec!["c".into()],
            control_plane: control_plane(),
            resource_errors: vec![not_found("b", "gone".into())],
        };
        let read = DeltaDiscoveryResponse::decode(delta.encode_to_vec().as_slice()).unwrap();
        let resource = Resource { name: "a".into(), version: "v".into(), resource: Some(any), ..Resource::default() };
        assert_eq!((read.resources, read.removed_resources), (vec![resource], vec!["c".to_owned()]));
        assert_eq!((read.system_version_info, read.type_url, read.nonce), ("7/1".into(), "t".into(), "2".into()));
        assert_eq!((read.control_plane, read.resource_errors), (control_plane(), delta.resource_errors));
    }
}
