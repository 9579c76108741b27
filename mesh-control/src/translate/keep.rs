//! An edit whose references lead nowhere does not take effect: what is in force stays until they do.
//!
//! Refuses to know how a world came about; it compares two.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::references::{self, Dangling, Missing};
use super::{NodeScope, World, names};
use crate::finding::{Finding, Severity};
use crate::model::{DestinationRule, Model, Object, Store, VirtualService};
use crate::source::Document;

/// What to serve in place of `now`, which follows `before`; `None` = `now` itself.
///
/// - An object that names a host, port, subset or delegate that is not there, and whose version in
///   `before` does not, stays as it is in `before`. Each change of the world asks anew, so the newer
///   version takes effect by itself once what it names exists.
/// - A DestinationRule that was changed or removed while a VirtualService uses a subset that only the
///   version in `before` defines stays too, so the order in which the two are edited does not matter.
///
/// An object without a version in `before` is taken as it is: there is nothing better.
pub(crate) fn settle(before: &World, now: &World) -> Option<Model> {
    let (old, new) = (&before.model, &now.model);
    let mut findings = Vec::new();
    let services = worse(&old.virtual_services, &new.virtual_services, &mut findings, |service| {
        references::of_virtual_service(now, service)
    });
    let splits =
        worse(&old.traffic_splits, &new.traffic_splits, &mut findings, |split| references::of_split(now, split));
    let profiles = worse(&old.service_profiles, &new.service_profiles, &mut findings, |profile| {
        references::of_profile(now, profile)
    });
    let mut in_force = new.virtual_services.clone();
    in_force.extend(services);
    let rules = used_rules(before, now, &in_force, &mut findings);
    if findings.is_empty() {
        return None;
    }
    let mut model = Model::clone(new);
    model.virtual_services = in_force;
    model.traffic_splits.extend(splits);
    model.service_profiles.extend(profiles);
    model.destination_rules.extend(rules);
    model.report(findings);
    Some(model)
}

/// What of a world is not as it was read, because [`settle`] kept it.
pub(crate) fn kept(world: &World, read: &Model) -> Vec<Arc<Document>> {
    fn other<T>(in_force: &Store<T>, read: &Store<T>, found: &mut Vec<Arc<Document>>) {
        let kept = |(key, object): &(_, &Arc<Object<T>>)| !read.get(*key).is_some_and(|read| Arc::ptr_eq(read, object));
        found.extend(in_force.iter().filter(kept).map(|(_, object)| object.document.clone()));
    }
    let (in_force, mut found) = (&world.model, Vec::new());
    other(&in_force.virtual_services, &read.virtual_services, &mut found);
    other(&in_force.destination_rules, &read.destination_rules, &mut found);
    other(&in_force.service_profiles, &read.service_profiles, &mut found);
    other(&in_force.traffic_splits, &read.traffic_splits, &mut found);
    found
}

/// `read` with the versions that an earlier world [kept](kept()): what `read` is to be compared with.
pub(crate) fn with_kept(read: &Model, kept: Model) -> Model {
    let mut before = Model::clone(read);
    before.virtual_services.extend(kept.virtual_services);
    before.destination_rules.extend(kept.destination_rules);
    before.service_profiles.extend(kept.service_profiles);
    before.traffic_splits.extend(kept.traffic_splits);
    before
}

/// Versions of `old` that stay in force because their successors name something missing that they do
/// not name.
fn worse<T>(
    old: &Store<T>,
    new: &Store<T>,
    findings: &mut Vec<Finding>,
    dangling: impl Fn(&Object<T>) -> Vec<Dangling>,
) -> Store<T> {
    let mut kept = Store::new();
    for (key, object) in new {
        let Some(last) = old.get(key).filter(|last| !Arc::ptr_eq(&last.document, &object.document)) else {
            continue;
        };
        let mut fresh = dangling(object);
        if !fresh.is_empty() {
            let had = dangling(last);
            fresh.retain(|one| !had.iter().any(|other| other.missing == one.missing));
        }
        for Dangling { path, missing } in &fresh {
            let message = format!("{missing}; the last good version of this object stays in force until there is");
            findings.push(object.finding(Severity::Error, path, message).with_code("IST0101"));
        }
        if !fresh.is_empty() {
            kept.insert(key.clone(), last.clone());
        }
    }
    kept
}

/// DestinationRules of `before` that define subsets in use which `now` does not define.
fn used_rules(
    before: &World,
    now: &World,
    services: &Store<VirtualService>,
    findings: &mut Vec<Finding>,
) -> Store<DestinationRule> {
    let mut kept = Store::new();
    let mut said = BTreeMap::new();
    for service in services.values() {
        let scope = NodeScope::namespace(service.namespace());
        for dangling in references::of_virtual_service(now, service) {
            let Missing::Subset { host, subset } = dangling.missing else { continue };
            let Some(known) = before.catalog.get(&scope, &names::complete(&host, &scope.namespace, &before.options))
            else {
                continue;
            };
            let Some(rule) = before.rules.defining(&scope, &known.name, &known.namespace, &subset) else { continue };
            let key = (rule.namespace().to_owned(), rule.name().to_owned());
            let user = format!("VirtualService {}/{}", service.namespace(), service.name());
            said.entry((key.clone(), subset)).or_insert(user);
            kept.insert(key, rule.clone());
        }
    }
    for ((key, subset), user) in said {
        let finding = match now.model.destination_rules.get(&key) {
            Some(rule) => {
                let message = format!(
                    "subset {subset:?} is no longer defined, but {user} uses it; the last good version of this \
                     object stays in force until nothing does"
                );
                rule.finding(Severity::Error, "spec.subsets", message)
            }
            None => {
                let message =
                    format!("removed, but {user} uses its subset {subset:?}; it stays in force until nothing does");
                kept[&key].finding(Severity::Error, "", message)
            }
        };
        findings.push(finding.with_code("IST0101"));
    }
    kept
}
