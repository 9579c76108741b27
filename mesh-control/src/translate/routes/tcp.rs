//! Where raw connections go: a VirtualService's `tcp` and `tls` routes, else the host itself.
//!
//! A port that is declared HTTP has no rules for raw connections of its own: they go where a `GET /` would, so that
//! its clients need not follow a cluster that no request uses.

use std::num::NonZeroU32;

use mesh_core::id::ClusterName;
use mesh_core::policy::{HashSource, TcpForward, TcpShare};

use super::{Place, istio};
use crate::model::{Layer4Match, Layer4Route, Object, PortPolicy, PortProtocol, VirtualService, covers};
use crate::translate::instances::includes;
use crate::translate::names;

/// As often as a request without a retry policy of its own is tried on connection failures: nothing has been sent, so
/// another endpoint is as good.
const ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).expect("3 is not 0");

/// Where connections to a place go that was dialled as `dialled`; `None` = where a `GET /` goes.
pub(super) fn forward(place: &Place<'_>, dialled: &str) -> Option<TcpForward> {
    let service = place.world.virtual_services.find(place.scope, place.host);
    let ruled = |tls: bool| {
        let service = service?;
        let routes = if tls { &service.spec.tls } else { &service.spec.tcp };
        let route = routes.iter().find(|route| applies(place, service, route, dialled))?;
        split(place, service, route)
    };
    let protocol = place.known.map(|known| known.port(place.port).map(|port| port.protocol));
    let found = match protocol {
        // Only the VirtualService speaks of the host, and nobody says what the port is.
        None => ruled(true).or_else(|| ruled(false)),
        Some(Some(PortProtocol::Https | PortProtocol::Tls)) => ruled(true).or_else(|| itself(place)),
        Some(Some(PortProtocol::Tcp)) => ruled(false).or_else(|| itself(place)),
        Some(Some(PortProtocol::Unspecified)) => ruled(false),
        Some(Some(PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::Udp) | None) => None,
    };
    found.map(|mut forward| {
        forward.max_connect_attempts = ATTEMPTS;
        if let Some(policy) = policy(place, &forward) {
            if let Some(time) = policy.pool.and_then(|pool| pool.tcp_idle_timeout) {
                forward.idle_timeout = Some(time).filter(|time| !time.is_zero());
            }
            let hash = policy.load_balancer.and_then(|balancer| balancer.hash);
            forward.by_source = hash.is_some_and(|hash| hash.source == HashSource::SourceAddress);
        }
        forward
    })
}

/// What the DestinationRule of the first destination says; a proxy has one for all, too.
fn policy(place: &Place<'_>, forward: &TcpForward) -> Option<PortPolicy> {
    let parts = names::parse(forward.clusters().first()?.name.as_str())?;
    let host = place.world.catalog.get(place.scope, parts.host)?;
    let rules = place.world.rules.find(place.scope, &host.name, &host.namespace);
    let subset = rules.subset(parts.subset);
    Some(rules.policy(parts.port, subset))
}

fn itself(place: &Place<'_>) -> Option<TcpForward> {
    place.known.map(|known| TcpForward::to(ClusterName::outbound(place.port, "", &known.name)))
}

fn applies(place: &Place<'_>, service: &Object<VirtualService>, route: &Layer4Route, dialled: &str) -> bool {
    route.blocks.is_empty() || route.blocks.iter().any(|block| holds(place, service, block, dialled))
}

/// Whether a block holds for connections of this client to this host and port.
fn holds(place: &Place<'_>, service: &Object<VirtualService>, block: &Layer4Match, dialled: &str) -> bool {
    // Whoever begins TLS names the host that it dialled.
    let named = |sni: &String| {
        covers(sni, dialled)
            || covers(sni, place.host)
            || names::complete(sni, service.namespace(), &place.world.options) == place.host
    };
    block.mesh()
        && (block.sni_hosts.is_empty() || block.sni_hosts.iter().any(named))
        && block.port.is_none_or(|port| port == place.port)
        && block.source_namespace.as_ref().is_none_or(|namespace| *namespace == place.scope.namespace)
        && includes(&place.scope.labels, &block.source_labels)
}

fn split(place: &Place<'_>, service: &Object<VirtualService>, route: &Layer4Route) -> Option<TcpForward> {
    let name = |entry: &crate::model::WeightedDestination| {
        let (host, port, subset) = istio::target(place, service.namespace(), &entry.destination);
        ClusterName::outbound(port, subset, &host)
    };
    match route.destinations.as_slice() {
        // Its weight does not matter.
        [only] => Some(TcpForward::to(name(only))),
        several => {
            let share = |entry| Some(TcpShare::new(name(entry), NonZeroU32::new(entry.weight)?));
            let shares = several.iter().filter_map(share).collect();
            Some(TcpForward::split(shares).expect("the sum of the weights was checked when the object was read"))
        }
    }
}
