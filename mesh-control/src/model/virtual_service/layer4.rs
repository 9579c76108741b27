//! `tls` and `tcp` routes: where raw connections go.
//!
//! A caller of this mesh dials a name, so what a match asks of addresses cannot be answered: such a block never
//! holds, and that is reported.

use std::collections::BTreeMap;

use super::spec::{RouteDestinationSpec, TcpRouteSpec, TlsRouteSpec};
use super::{WeightedDestination, action, check_gateway_name, covers, names_mesh};
use crate::model::check::Check;
use crate::model::values::{is_host, port};

/// What a block that asks of addresses comes to.
const ADDRESSES: &str = "callers dial names, not addresses: this match never holds";

/// One `tls` or `tcp` route.
#[derive(Clone, Debug)]
pub(crate) struct Layer4Route {
    /// Any of; empty = every connection.
    pub(crate) blocks: Vec<Layer4Match>,
    /// At least one; a sum of weights above 0 if there are several.
    pub(crate) destinations: Vec<WeightedDestination>,
}

/// One match block.
#[derive(Clone, Debug)]
pub(crate) struct Layer4Match {
    /// Hosts, lower case, of which one is dialled; of a `tcp` route none, which is any.
    pub(crate) sni_hosts: Vec<String>,
    pub(crate) port: Option<u16>,
    pub(crate) source_labels: BTreeMap<String, String>,
    pub(crate) source_namespace: Option<String>,
    gateways: Vec<String>,
    /// Asks something of addresses.
    addresses: bool,
}

impl Layer4Match {
    /// Whether the block can hold for a connection between services.
    pub(crate) fn mesh(&self) -> bool {
        names_mesh(&self.gateways) && !self.addresses
    }
}

/// Checks the `tls` list of an object with these hosts.
pub(super) fn tls(specs: &[TlsRouteSpec], hosts: &[String], check: &mut Check<'_>) -> Vec<Layer4Route> {
    let mut routes = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("spec.tls[{i}]");
        if spec.r#match.is_empty() {
            check.error(&format!("{path}.match"), "a TLS route needs a match with sniHosts");
        }
        let mut blocks = Vec::new();
        for (j, block) in spec.r#match.iter().enumerate() {
            let path = format!("{path}.match[{j}]");
            check_sni(&block.sni_hosts, hosts, check, &format!("{path}.sniHosts"));
            blocks.push(Layer4Match {
                sni_hosts: block.sni_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
                port: read_port(block.port, check, &path),
                source_labels: block.source_labels.clone(),
                source_namespace: some_text(block.source_namespace.as_ref()),
                gateways: read_gateways(&block.gateways, check, &path),
                addresses: subnets(&block.destination_subnets, check, &format!("{path}.destinationSubnets")),
            });
        }
        routes.extend(route(blocks, &spec.route, check, &path));
    }
    routes
}

/// Checks the `tcp` list.
pub(super) fn tcp(specs: &[TcpRouteSpec], check: &mut Check<'_>) -> Vec<Layer4Route> {
    let mut routes = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("spec.tcp[{i}]");
        let mut blocks = Vec::new();
        for (j, block) in spec.r#match.iter().enumerate() {
            let path = format!("{path}.match[{j}]");
            let to = subnets(&block.destination_subnets, check, &format!("{path}.destinationSubnets"));
            let from = some_text(block.source_subnet.as_ref());
            if let Some(subnet) = &from {
                let path = format!("{path}.sourceSubnet");
                check_subnet(subnet, check, &path);
                check.unenforced(&path, ADDRESSES);
            }
            blocks.push(Layer4Match {
                sni_hosts: Vec::new(),
                port: read_port(block.port, check, &path),
                source_labels: block.source_labels.clone(),
                source_namespace: some_text(block.source_namespace.as_ref()),
                gateways: read_gateways(&block.gateways, check, &path),
                addresses: to || from.is_some(),
            });
        }
        routes.extend(route(blocks, &spec.route, check, &path));
    }
    routes
}

fn route(
    blocks: Vec<Layer4Match>,
    destinations: &[RouteDestinationSpec],
    check: &mut Check<'_>,
    path: &str,
) -> Option<Layer4Route> {
    let path = format!("{path}.route");
    if destinations.is_empty() {
        check.error(&path, "a destination is needed");
        return None;
    }
    let destinations = action::destinations(destinations, check, &path)?;
    Some(Layer4Route { blocks, destinations })
}

fn check_sni(sni_hosts: &[String], hosts: &[String], check: &mut Check<'_>, path: &str) {
    if sni_hosts.is_empty() {
        check.error(path, "at least one SNI host is needed");
    }
    for (i, sni) in sni_hosts.iter().enumerate() {
        let covered = hosts.iter().any(|host| covers(host, sni));
        if !is_host(sni) || !covered {
            check.error(&format!("{path}[{i}]"), format!("{sni:?} is not within the hosts of this object"));
        }
    }
}

/// 0 is protobuf's way to say nothing.
fn read_port(number: Option<i64>, check: &mut Check<'_>, path: &str) -> Option<u16> {
    let number = number.filter(|number| *number != 0)?;
    check.take(&format!("{path}.port"), port(number))
}

fn read_gateways(gateways: &[String], check: &mut Check<'_>, path: &str) -> Vec<String> {
    for (i, gateway) in gateways.iter().enumerate() {
        check_gateway_name(gateway, check, &format!("{path}.gateways[{i}]"));
    }
    gateways.to_vec()
}

/// Checks a list of subnets; whether there is one.
fn subnets(texts: &[String], check: &mut Check<'_>, path: &str) -> bool {
    for (i, text) in texts.iter().enumerate() {
        check_subnet(text, check, &format!("{path}[{i}]"));
    }
    if !texts.is_empty() {
        check.unenforced(path, ADDRESSES);
    }
    !texts.is_empty()
}

fn check_subnet(text: &str, check: &mut Check<'_>, path: &str) {
    if text.parse::<ipnet::IpNet>().is_err() && text.parse::<std::net::IpAddr>().is_err() {
        check.error(path, format!("{text:?} is neither an IP address nor a CIDR block"));
    }
}

fn some_text(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}
