//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! No bytes make a decoder panic, and what a decoder accepts is in normal form: it survives another round.

use envoy_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{InboundListener, InboundRoutes};
use prost::Message as _;

use super::{AnyListener, CLUSTER, ENDPOINTS, LISTENER, ROUTES, extension};

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

/// Joins a server's listener, whose length is in the first four bytes, with the routes after it: it says the same as one that
/// has them in itself.
pub fn joined(bytes: &[u8]) {
    let Some((listener, routes)) = split(bytes) else { return };
    // Alone they are judged as ever.
    if !names_routes(listener) || super::decode_routes(&any(ROUTES, routes)).is_err() {
        return;
    }
    let Some(inline) = inlined(listener, routes) else { return };
    let inline = match super::decode_listener(&any(LISTENER, &inline)).map(|decoded| decoded.value) {
        Ok(AnyListener::Inbound(listener)) => Ok::<InboundListener, _>(listener),
        Ok(AnyListener::Outbound(listener)) => panic!("a listener of the other side: {listener:?}"),
        Err(refused) => Err(refused),
    };
    match (super::join(listener, routes).map(|decoded| decoded.value), inline) {
        (Ok(joined), Ok(inline)) => assert_eq!(joined, inline),
        (Err(_), Err(_)) => {}
        (joined, inline) => panic!("one of them is refused:\n{joined:?}\n{inline:?}"),
    }
}

/// What [`joined`] takes.
#[cfg(test)]
pub(super) fn framed(listener: &[u8], routes: &[u8]) -> Vec<u8> {
    [&(listener.len() as u32).to_le_bytes(), listener, routes].concat()
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn names_routes(listener: &[u8]) -> bool {
    let decoded = super::decode_listener(&any(LISTENER, listener)).map(|decoded| decoded.value);
    matches!(decoded, Ok(AnyListener::Inbound(listener)) if matches!(listener.routes, InboundRoutes::Named(_)))
}

/// The listener with the routes in it; none if it is written in a way that this does not know.
fn inlined(listener: &[u8], routes: &[u8]) -> Option<Vec<u8>> {
    let mut listener = Listener::decode(listener).ok()?;
    let routes = RouteConfiguration::decode(routes).ok()?;
    for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
        let Some(ConfigType::TypedConfig(config)) = &mut chain.filters.first_mut()?.config_type else { return None };
        if config.type_url != extension::url::HCM {
            return None;
        }
        let mut manager = HttpConnectionManager::decode(config.value.as_slice()).ok()?;
        manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes.clone()));
        config.value = manager.encode_to_vec();
    }
    Some(listener.encode_to_vec())
}

fn any(type_url: &str, bytes: &[u8]) -> Any {
    let any = Any { type_url: type_url.to_owned(), value: bytes.to_vec() };
    super::resource_name(type_url, &any);
    any
}
