//! What a proxy asks for and proxyless clients do not: everything at once. Its routes are next door in
//! `routes::port`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Dialect, NodeScope, World, names};
use crate::model::PortProtocol;

/// An HTTP listener that a proxy opens for the processes beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ProxyListener {
    /// Resource name: the address.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The route configuration it asks for.
    pub routes: String,
}

/// The names of all clusters that the scope may see: every port of every host and every subset of it,
/// sorted; none for a proxyless client.
pub(super) fn clusters(world: &World, scope: &NodeScope) -> Vec<String> {
    let mut all = Vec::new();
    if scope.dialect != Dialect::Envoy {
        return all;
    }
    for host in world.catalog.visible(scope) {
        let rules = world.rules.find(scope, &host.name, &host.namespace);
        for port in host.ports.iter().filter(|port| port.protocol != PortProtocol::Udp) {
            let subsets = std::iter::once("").chain(rules.subset_names());
            all.extend(subsets.map(|subset| names::outbound(port.number, subset, &host.name)));
        }
    }
    all.sort_unstable();
    all
}

/// The names of the listeners that a proxy asked for (`OUTBOUND_LISTEN` of its metadata): one for each HTTP
/// port of the hosts it may see.
pub(super) fn listeners(world: &World, scope: &NodeScope) -> Vec<String> {
    let Some(ip) = scope.outbound_listen else { return Vec::new() };
    let hosts = world.catalog.visible(scope);
    let ports = hosts.iter().flat_map(|host| &host.ports).filter(|port| port.protocol.is_http());
    let ports: BTreeSet<u16> = ports.map(|port| port.number).collect();
    ports.into_iter().map(|port| SocketAddr::new(ip, port).to_string()).collect()
}

/// The listener of that name, `127.0.0.1:9080`.
pub(super) fn listener(world: &World, scope: &NodeScope, name: &str) -> Option<ProxyListener> {
    let ip = scope.outbound_listen?;
    let address: SocketAddr = name.parse().ok().filter(|address: &SocketAddr| address.ip() == ip)?;
    let serves = world
        .catalog
        .visible(scope)
        .iter()
        .any(|host| host.port(address.port()).is_some_and(|port| port.protocol.is_http()));
    serves.then(|| ProxyListener { name: name.to_owned(), address, routes: address.port().to_string() })
}
