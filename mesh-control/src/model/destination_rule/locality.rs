//! `loadBalancer.localityLbSetting`, with the refusals of Istio's validator.

use super::spec::LocalitySpec;
use super::{Distribution, Locality};
use crate::model::check::Check;

/// Labels that stand for an endpoint's locality; in `failoverPriority` they rank as `failover` does.
pub(crate) const REGION: &str = "topology.kubernetes.io/region";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
pub(crate) const SUB_ZONE: &str = "topology.istio.io/subzone";

/// Checks a `localityLbSetting` block.
pub(super) fn locality(spec: &LocalitySpec, check: &mut Check<'_>, path: &str) -> Locality {
    if !spec.distribute.is_empty() && !spec.failover.is_empty() {
        check.error(path, "only one of distribute and failover may be given");
    }
    let mut setting = Locality { disabled: spec.enabled == Some(false), ..Locality::default() };
    distribute(spec, check, &format!("{path}.distribute"), &mut setting);
    for (i, entry) in spec.failover.iter().enumerate() {
        let path = format!("{path}.failover[{i}]");
        let odd = |text: &String| text.is_empty() || text.contains('/') || text.contains('*');
        if entry.from == entry.to || odd(&entry.from) || odd(&entry.to) {
            check.error(&path, "from and to are two different regions, without '/' and '*'");
        }
        setting.failover.entry(entry.from.clone()).or_insert_with(|| entry.to.clone());
    }
    for (i, text) in spec.failover_priority.iter().enumerate() {
        let path = format!("{path}.failoverPriority[{i}]");
        let (label, value) = match text.split_once('=') {
            Some((label, value)) => (label, Some(value.to_owned())),
            None => (text.as_str(), None),
        };
        if label.is_empty() {
            check.error(&path, format!("{text:?} is no label; write key or key=value"));
        } else if !setting.failover.is_empty() && [REGION, ZONE, SUB_ZONE].contains(&label) {
            check.error(&path, format!("{label} ranks localities, and so does failover; keep one of the two"));
        } else if setting.failover_priority.iter().any(|(known, _)| known == label) {
            check.error(&path, format!("{label:?} is listed twice"));
        }
        setting.failover_priority.push((label.to_owned(), value));
    }
    setting
}

fn distribute(spec: &LocalitySpec, check: &mut Check<'_>, path: &str, setting: &mut Locality) {
    let mut sources = Vec::new();
    for (i, entry) in spec.distribute.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let total: u64 = entry.to.values().map(|weight| u64::from(*weight)).sum();
        if total != 100 {
            check.error(&format!("{path}.to"), format!("the weights sum to {total}; the sum must be 100"));
        }
        if entry.to.values().any(|weight| !(1..=100).contains(weight)) {
            check.error(&format!("{path}.to"), "each weight must be 1 to 100");
        }
        for pattern in entry.to.keys().chain([&entry.from]) {
            if pattern.trim_end_matches('*').contains('*') || pattern.ends_with("**") || pattern.is_empty() {
                let message = format!("{pattern:?}: write region/zone/subzone with at most one '*', at the end");
                check.error(&path, message);
            }
        }
        overlap(&entry.from, &sources, check, &format!("{path}.from"));
        sources.push(&entry.from);
        let mut targets = Vec::new();
        for target in entry.to.keys() {
            overlap(target, &targets, check, &format!("{path}.to"));
            targets.push(target);
        }
        setting.distribute.push(Distribution { from: entry.from.clone(), to: entry.to.clone() });
    }
}

/// Refuses a pattern that an earlier one overlaps. A last `*` for all the others is allowed.
fn overlap(pattern: &str, earlier: &[&String], check: &mut Check<'_>, path: &str) {
    let hides = |one: &&&String| one.as_str() == "*" || (pattern != "*" && overlaps(one, pattern));
    if let Some(other) = earlier.iter().find(hides) {
        check.error(path, format!("{pattern:?} overlaps {other:?}, which comes first"));
    }
}

/// Whether some locality is matched by both patterns.
fn overlaps(a: &str, b: &str) -> bool {
    let level = |pattern: &str, at: usize| pattern.split('/').nth(at).unwrap_or("*").to_owned();
    (0..3).all(|at| {
        let (a, b) = (level(a, at), level(b, at));
        a == b || a == "*" || b == "*"
    })
}

/// Whether a locality is matched by `region/zone/subzone`; `*`, and a level that is not written, take any.
pub(crate) fn covers_locality(pattern: &str, locality: &mesh_core::id::Locality) -> bool {
    let own = [&locality.region, &locality.zone, &locality.sub_zone];
    pattern.split('/').zip(own).all(|(wanted, own)| wanted == "*" || wanted == own)
}
