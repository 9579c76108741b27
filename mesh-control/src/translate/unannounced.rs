//! Ports that a Service declares and a process of the mesh that serves it did not announce: unless it serves them through the
//! mesh all the same, they are ports without policy. Refuses to guess about processes that announced nothing, and about
//! addresses that several pods share.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mesh_core::policy::Address;

use super::catalog::{Host, HostPort};
use super::instances::Instance;
use super::{NodeScope, World, names};
use crate::finding::{Finding, Severity};
use crate::model::{PortProtocol, PortTarget};
use crate::registry::Registration;

/// What was announced, by host.
type Announced<'w> = HashMap<IpAddr, Vec<&'w Registration>>;

/// Everything to say about them; of each port the first address is named.
pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    let mut announced: Announced<'_> = HashMap::new();
    for one in world.catalog.workloads.announced.iter() {
        announced.entry(one.registration.address.ip()).or_default().push(&one.registration);
    }
    for service in world.model.services.values().filter(|service| service.spec.external_name.is_none()) {
        let name = names::fqdn(service.name(), service.namespace(), &world.options);
        let Some(host) = world.catalog.get(&NodeScope::namespace(service.namespace()), &name) else { continue };
        for port in host.ports.iter().filter(|port| port.protocol != PortProtocol::Udp) {
            let what = match port.instances.is_empty() {
                false => unannounced(world, host, port, &announced),
                true => unserved(host, port, &announced),
            };
            findings.extend(what.map(|what| {
                let message = format!(
                    "port {}{what}: unless that process serves it through the mesh all the same, no policy stands before \
                     what listens there; serve it with the mesh and announce it, or take the port out",
                    port.number
                );
                service.finding(Severity::Warning, "spec.ports", message)
            }));
        }
    }
}

/// The first endpoint of a port that nobody announced, though a process of the same host and account announced something.
fn unannounced(world: &World, host: &Host, port: &HostPort, announced: &Announced<'_>) -> Option<String> {
    let bare = port.instances.iter().filter_map(|instance| {
        let at = socket(instance).filter(|at| !world.catalog.workloads.is_shared(at.ip()))?;
        let mut beside = None;
        for one in of_namespace(announced, host, at.ip()) {
            if one.address == at {
                return None;
            }
            if instance.account.as_ref().is_none_or(|account| *account == one.service_account) {
                beside = beside.into_iter().chain([one.address]).min();
            }
        }
        Some((at, beside?))
    });
    let (at, beside) = bare.min()?;
    Some(format!(" leads to {at}, which was not announced, while the process there announced {beside}"))
}

/// A process that serves another port of this Service, where nobody serves this one.
fn unserved(host: &Host, port: &HostPort, announced: &Announced<'_>) -> Option<String> {
    let others = host.ports.iter().flat_map(|other| &other.instances).filter_map(socket);
    let beside = others.filter(|at| {
        let mut here = of_namespace(announced, host, at.ip()).map(|one| one.address);
        // Announced as another Service's it has policy.
        let is_target = |one: SocketAddr| port.target == PortTarget::Number(one.port());
        here.any(|one| one == *at) && !of_namespace(announced, host, at.ip()).any(|one| is_target(one.address))
    });
    let beside = beside.min()?;
    Some(format!(" was announced by nobody, while a process of this Service announced {beside}"))
}

/// What a host's namespace announced at an address.
fn of_namespace<'a>(
    announced: &'a Announced<'_>,
    host: &'a Host,
    ip: IpAddr,
) -> impl Iterator<Item = &'a Registration> {
    announced.get(&ip).into_iter().flatten().copied().filter(|one| one.namespace == host.namespace)
}

fn socket(instance: &Instance) -> Option<SocketAddr> {
    match instance.address {
        Address::Socket(at) => Some(at),
        _ => None,
    }
}
