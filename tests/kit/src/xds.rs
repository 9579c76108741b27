//! Resources of xDS as a test wants them.

use envoy_types::pb::envoy::config::core::v3::{ConfigSource, config_source::ConfigSourceSpecifier};
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use prost::Message;

/// Takes the routes out of a server's listener: what is left asks for routes of this name, which they are. None = it has
/// none in it.
pub fn apart(listener: &[u8], name: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut listener = Listener::decode(listener).ok()?;
    let mut routes = None;
    for chain in &mut listener.filter_chains {
        let Some(ConfigType::TypedConfig(config)) = &mut chain.filters.first_mut()?.config_type else { return None };
        let mut manager = HttpConnectionManager::decode(config.value.as_slice()).ok()?;
        let config_source_specifier = Some(ConfigSourceSpecifier::Ads(Default::default()));
        let source = ConfigSource { config_source_specifier, ..Default::default() };
        let rds = Rds { config_source: Some(source), route_config_name: name.to_owned() };
        let Some(RouteSpecifier::RouteConfig(table)) = manager.route_specifier.replace(RouteSpecifier::Rds(rds)) else {
            return None;
        };
        routes = Some(RouteConfiguration { name: name.to_owned(), ..table });
        config.value = manager.encode_to_vec();
    }
    Some((listener.encode_to_vec(), routes?.encode_to_vec()))
}
