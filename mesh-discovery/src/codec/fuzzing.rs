//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! No bytes make a decoder panic, and what a decoder accepts is in normal form: it survives another round.

use envoy_types::pb::google::protobuf::Any;

use super::{AnyListener, CLUSTER, ENDPOINTS, LISTENER, ROUTES};

/// Decodes a listener.
pub fn listener(bytes: &[u8]) {
    let Ok(decoded) = super::decode_listener(&any(LISTENER, bytes)) else { return };
    let again = match &decoded.value {
        AnyListener::Outbound(listener) => super::encode_listener(listener),
        AnyListener::Inbound(listener) => super::encode_inbound(listener),
    };
    assert_eq!(super::decode_listener(&again).map(|d| d.value), Ok(decoded.value));
}

/// Decodes a route configuration.
pub fn routes(bytes: &[u8]) {
    let Ok(decoded) = super::decode_routes(&any(ROUTES, bytes)) else { return };
    let again = super::encode_routes(&decoded.value);
    assert_eq!(super::decode_routes(&again).map(|d| d.value), Ok(decoded.value));
}

/// Decodes a cluster.
pub fn cluster(bytes: &[u8]) {
    let Ok(decoded) = super::decode_cluster(&any(CLUSTER, bytes)) else { return };
    let again = super::encode_cluster(&decoded.value);
    assert_eq!(super::decode_cluster(&again).map(|d| d.value), Ok(decoded.value));
}

/// Decodes a load assignment.
pub fn endpoints(bytes: &[u8]) {
    let Ok(decoded) = super::decode_endpoints(&any(ENDPOINTS, bytes)) else { return };
    let again = super::encode_endpoints(&decoded.value);
    assert_eq!(super::decode_endpoints(&again).map(|d| d.value), Ok(decoded.value));
}

fn any(type_url: &str, bytes: &[u8]) -> Any {
    let any = Any { type_url: type_url.to_owned(), value: bytes.to_vec() };
    super::resource_name(type_url, &any);
    any
}
