//! DestinationRules that say plaintext of endpoints whose own policy demands mutual TLS. Refuses to say which of the two
//! is meant: clients of this mesh send such an endpoint nothing, and it refuses what others send.

use std::collections::BTreeSet;

use mesh_core::policy::Address;

use super::catalog::HostPort;
use super::{NodeScope, World, inbound, names, rules};
use crate::finding::{Finding, Severity};
use crate::model::{ClientTls, DestinationRule, Object, PeerAuthentication, PortPolicy, Subset, covers};

/// Everything to say about them; of each policy that is in a rule's way the first endpoint is named.
pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    for rule in world.model.destination_rules.values().filter(|rule| is_about_plaintext(&rule.spec)) {
        let joined = rules::join(&[rule]);
        let written = names::complete(&rule.spec.host, rule.namespace(), &world.options);
        let hosts = world.catalog.visible(&NodeScope::namespace(rule.namespace()));
        let mut told = BTreeSet::new();
        for host in hosts.into_iter().filter(|host| covers(&written, &host.name)) {
            for port in &host.ports {
                let subsets = std::iter::once(None).chain(rule.spec.subsets.iter().map(Some));
                for subset in subsets.filter(|subset| is_plaintext(&joined.policy(port.number, *subset))) {
                    for (address, policy) in strict(world, port, subset) {
                        if told.insert((policy.namespace(), policy.name())) {
                            findings.push(finding(rule, &host.name, address, policy));
                        }
                    }
                }
            }
        }
    }
}

fn is_about_plaintext(rule: &DestinationRule) -> bool {
    let mut policies = rule.policy.iter().chain(rule.subsets.iter().filter_map(|subset| subset.policy.as_ref()));
    policies.any(|policy| is_plaintext(&policy.blocks) || policy.ports.values().any(is_plaintext))
}

fn is_plaintext(policy: &PortPolicy) -> bool {
    matches!(policy.tls, Some(ClientTls::Disable))
}

/// The endpoints that are sent nothing in plaintext, each with the policy that says so.
fn strict<'w>(
    world: &'w World,
    port: &'w HostPort,
    subset: Option<&'w Subset>,
) -> impl Iterator<Item = (&'w Address, &'w Object<PeerAuthentication>)> {
    let meant = move |labels| subset.is_none_or(|subset| super::instances::includes(labels, &subset.labels));
    let strict = port.instances.iter().filter(move |one| one.metadata.plaintext_refused && meant(&one.labels));
    strict.filter_map(|one| {
        let Address::Socket(address) = &one.address else { return None };
        let (model, options) = (&world.model, &world.options);
        let (_, policy) = inbound::decided(model, options, &one.namespace, &one.labels, address.port())?;
        Some((&one.address, policy))
    })
}

fn finding(
    rule: &Object<DestinationRule>,
    host: &str,
    address: &Address,
    policy: &Object<PeerAuthentication>,
) -> Finding {
    let message = format!(
        "says DISABLE, and PeerAuthentication {}/{} ({}:{}) demands mutual TLS of {address} of {host}: clients send it \
         nothing (MESH-1110); take DISABLE out of this rule, or set that policy to PERMISSIVE",
        policy.namespace(),
        policy.name(),
        policy.document.file,
        policy.document.line
    );
    rule.finding(Severity::Error, "spec.trafficPolicy.tls.mode", message).with_code("IST0113")
}
