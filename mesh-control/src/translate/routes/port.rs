//! The routes of a whole port for a proxy: one virtual host for each host that has the port. As with
//! istiod, the configuration's name is the port's number.

use std::collections::HashSet;

use mesh_core::policy::{HeaderPolicy, RouteConfiguration, VirtualHost};

use super::{Place, Table, domains, istio, table, virtual_host, with_port};
use crate::translate::catalog::Host;
use crate::translate::{Dialect, NodeScope, World};

/// The port that a name of a proxy's route configuration stands for.
pub(super) fn of_proxy(scope: &NodeScope, name: &str) -> Option<u16> {
    let number = name.parse().ok().filter(|port| *port > 0)?;
    (scope.dialect == Dialect::Envoy).then_some(number)
}

/// The configuration of a port. It exists even if nobody has the port: the proxy's listener answers 404
/// until somebody has.
pub(super) fn configuration(world: &World, scope: &NodeScope, port: u16) -> RouteConfiguration {
    let known = world.catalog.visible(scope);
    let undefined = spoken_of(world, scope);
    let known = known.iter().filter(|host| serves(host, port)).map(|host| (host.name.as_str(), Some(&***host)));
    let all = known.chain(undefined.iter().map(|host| (host.as_str(), None)));
    let tables: Vec<(Place<'_>, Table)> = all
        .filter_map(|(host, known)| {
            let place = Place { world, scope, host, port, known };
            let table = known.map_or_else(|| istio::table(&place), |known| table(&place, known))?;
            Some((place, table))
        })
        .collect();
    // A name that is written out belongs to its host before it can be a short form of another.
    let mut taken: HashSet<String> = tables.iter().flat_map(|(place, _)| with_port(place.host, port)).collect();
    RouteConfiguration {
        name: port.to_string(),
        virtual_hosts: tables.into_iter().map(|(place, table)| build(&place, table, &mut taken)).collect(),
        headers: HeaderPolicy::default(),
        // A budget is one service's, and here are many.
        retry_budget: None,
    }
}

/// Whether a proxy has anything to do with HTTP on that port of the host.
pub(super) fn serves(host: &Host, port: u16) -> bool {
    host.port(port).is_some_and(|port| port.protocol.is_http())
}

/// Hosts that only VirtualServices speak of; they hold on every port.
fn spoken_of(world: &World, scope: &NodeScope) -> Vec<String> {
    let mut hosts: Vec<String> =
        world.virtual_services.hosts().filter(|host| world.catalog.get(scope, host).is_none()).collect();
    hosts.sort_unstable();
    hosts
}

/// The virtual host of one host, with every name of it that is still free: Envoy refuses a configuration that
/// lists a domain twice.
fn build(place: &Place<'_>, table: Table, taken: &mut HashSet<String>) -> VirtualHost {
    let free = domains(place).into_iter().flat_map(|form| {
        let own = form == place.host;
        with_port(&form, place.port).into_iter().map(move |text| (own, text))
    });
    let texts: Vec<String> =
        free.filter(|(own, text)| taken.insert(text.clone()) || *own).map(|(_, text)| text).collect();
    virtual_host(texts.into_iter(), place.port, table).0
}
