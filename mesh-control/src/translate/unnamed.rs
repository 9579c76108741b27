//! DestinationRules that demand the mesh's mutual TLS of servers whose account nobody names, so that a whole namespace
//! may answer for them. Refuses to guess the account.

use super::catalog::{Host, HostPort, Lookup};
use super::{NodeScope, World, names, rules};
use crate::finding::{Finding, Severity};
use crate::model::{ClientTls, DestinationRule, Object, covers};

/// Everything to say about them; of each rule the host is named of which least is known.
pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    for rule in world.model.destination_rules.values().filter(|rule| rule.spec.policy.is_some()) {
        let written = names::complete(&rule.spec.host, rule.namespace(), &world.options);
        let hosts = world.catalog.visible(&NodeScope::namespace(rule.namespace()));
        let hosts = hosts.into_iter().filter(|host| covers(&written, &host.name) && host.subject_alt_names.is_empty());
        let joined = rules::join(&[rule]);
        let worst =
            hosts.filter_map(|host| Some((unnamed(host, &joined)?, host))).min_by_key(|(severity, _)| *severity);
        findings.extend(worst.map(|(severity, host)| finding(rule, severity, host)));
    }
}

/// How bad it is that an account is not named at a port where the rule demands it: worse if nobody said either in which
/// namespace it is.
fn unnamed(host: &Host, rule: &rules::Joined<'_>) -> Option<Severity> {
    let demanded = host.ports.iter().filter(|port| {
        let tls = rule.policy(port.number, None).tls;
        matches!(tls, Some(ClientTls::Istio { subject_alt_names, .. }) if subject_alt_names.is_empty())
    });
    let of_port = |port: &HostPort| {
        if host.resolution == Lookup::Dialled {
            return Some(Severity::Error);
        }
        let mut nameless = port.instances.iter().filter(|one| one.account.is_none()).peekable();
        nameless.peek()?;
        Some(if nameless.any(|one| one.namespace.is_empty()) { Severity::Error } else { Severity::Warning })
    };
    demanded.filter_map(of_port).min()
}

fn finding(rule: &Object<DestinationRule>, severity: Severity, host: &Host) -> Finding {
    let message = format!(
        "demands mutual TLS of {}, and nothing names the service account of its servers: whoever has a certificate of \
         namespace {} is taken for them, and nobody else; write subjectAltNames here or in the ServiceEntry",
        host.name, host.namespace
    );
    rule.finding(severity, "spec.trafficPolicy.tls", message)
}
