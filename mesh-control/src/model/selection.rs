//! Whom a security policy is for: workloads by their labels, or those of Services that `targetRefs` name.

use std::collections::BTreeMap;

use super::check::Check;
use super::destination_rule::SelectorSpec;
use super::reference::RefSpec;

/// Some workloads of the policy's scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Labels of the workloads meant; `None` = the whole scope.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Services of the policy's namespace whose workloads are meant; `None` = the labels say whose.
    pub(crate) services: Option<Vec<String>>,
}

impl Selection {
    /// Reads `selector`, `targetRef` and `targetRefs`.
    pub(super) fn read(
        selector: Option<SelectorSpec>,
        one: Option<&RefSpec>,
        list: &[RefSpec],
        check: &mut Check<'_>,
    ) -> Self {
        let services = services(one, list, check);
        if services.is_some() && selector.is_some() {
            check.error("spec.selector", "it excludes targets: a policy has one of them");
        }
        let labels = selector.map(|s| if s.match_labels.is_empty() { s.labels } else { s.match_labels });
        Self { labels: labels.filter(|labels| !labels.is_empty()), services }
    }
}

/// The services among the targets. The other targets have no part in this mesh, and nobody is held to the policy
/// by them.
fn services(one: Option<&RefSpec>, list: &[RefSpec], check: &mut Check<'_>) -> Option<Vec<String>> {
    if one.is_none() && list.is_empty() {
        return None;
    }
    let own = check.document().namespace.clone();
    let listed = list.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    let all = one.map(|target| ("spec.targetRef".to_owned(), target)).into_iter().chain(listed);
    let mut services = Vec::new();
    for (at, target) in all {
        if target.namespace.as_ref().is_some_and(|namespace| *namespace != own) {
            check.error(&format!("{at}.namespace"), "a policy is for targets of its own namespace");
        }
        match target.of() {
            ("core", "Service") if !target.name.is_empty() => services.push(target.name.clone()),
            ("gateway.networking.k8s.io", "Gateway" | "GatewayClass") | ("networking.istio.io", "ServiceEntry") => {
                let effect = "gateways and waypoints have no part in this mesh: the policy holds for nobody by this";
                check.unenforced(&at, effect);
            }
            _ => check.error(
                &at,
                "a target is a Service, by its name; of another group a Gateway, GatewayClass or ServiceEntry",
            ),
        }
    }
    Some(services)
}
