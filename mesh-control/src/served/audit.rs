//! The record of what changed of the policies that guard something: each object of them that was added, changed or removed, and
//! what other objects say of the policy that holds where there is none.

use std::sync::Arc;

use crate::model::{DEFAULT_POLICY, Model, Object, Store};
use crate::source::Document;

/// How an object is another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Added,
    Changed,
    Removed,
}

/// Records what is different in `now`.
pub(super) fn record(before: &Arc<Model>, now: &Arc<Model>) {
    if Arc::ptr_eq(before, now) {
        return;
    }
    stores(&before.peer_authentications, &now.peer_authentications);
    stores(&before.authorization_policies, &now.authorization_policies);
    stores(&before.request_authentications, &now.request_authentications);
    stores(&before.linkerd_servers, &now.linkerd_servers);
    stores(&before.linkerd_server_authorizations, &now.linkerd_server_authorizations);
    stores(&before.linkerd_authorizations, &now.linkerd_authorizations);
    stores(&before.linkerd_mesh_tls, &now.linkerd_mesh_tls);
    stores(&before.linkerd_networks, &now.linkerd_networks);
    stores(&before.linkerd_routes, &now.linkerd_routes);
    stores(&before.gateway_http_routes, &now.gateway_http_routes);
    stores(&before.gateway_grpc_routes, &now.gateway_grpc_routes);
    stores(&before.linkerd_rate_limits, &now.linkerd_rate_limits);
    stores(&before.mesh_configs, &now.mesh_configs);
    annotations(&before.namespaces, &now.namespaces, |object| object.document.annotations.get(DEFAULT_POLICY));
    annotations(&before.pods, &now.pods, |object| object.document.annotations.get(DEFAULT_POLICY));
    annotations(&before.deployments, &now.deployments, |object| object.spec.0.annotations.get(DEFAULT_POLICY));
    annotations(&before.stateful_sets, &now.stateful_sets, |object| object.spec.0.annotations.get(DEFAULT_POLICY));
    annotations(&before.daemon_sets, &now.daemon_sets, |object| object.spec.0.annotations.get(DEFAULT_POLICY));
}

/// Of objects that are no policies one annotation alone is one.
fn annotations<T>(before: &Store<T>, now: &Store<T>, said: impl Fn(&Object<T>) -> Option<&String>) {
    let tell = |object: &Object<T>, was: Option<&String>, is: Option<&String>| {
        let change = match (was, is) {
            _ if was == is => return,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            _ => Change::Changed,
        };
        let Document { kind, namespace, name, file, .. } = &*object.document;
        let annotation = DEFAULT_POLICY;
        tracing::info!(
            target: "mesh::audit", ?kind, ?namespace, ?name, annotation, ?was, ?is, ?change, ?file, "policy changed"
        );
    };
    for (key, object) in now {
        let known = before.get(key);
        // Most are the same, and of some kinds there are very many.
        if known.is_none_or(|known| !Arc::ptr_eq(known, object)) {
            tell(object, known.and_then(|known| said(known)), said(object));
        }
    }
    before.iter().filter(|(key, _)| !now.contains_key(*key)).for_each(|(_, object)| tell(object, said(object), None));
}

fn stores<T>(before: &Store<T>, now: &Store<T>) {
    for (key, object) in now {
        match before.get(key) {
            None => tell(object, Change::Added),
            // What did not change is shared, but for what stands in a file that was written anew.
            Some(known) if Arc::ptr_eq(known, object) || text(known) == text(object) => {}
            Some(_) => tell(object, Change::Changed),
        }
    }
    before.iter().filter(|(key, _)| !now.contains_key(*key)).for_each(|(_, object)| tell(object, Change::Removed));
}

/// What an object says, wherever in its file.
fn text<T>(object: &Object<T>) -> Option<String> {
    serde_json::to_string(&object.document.node).ok()
}

fn tell<T>(object: &Object<T>, change: Change) {
    let Document { kind, namespace, name, file, .. } = &*object.document;
    // Quoted: what a manifest or its file is called must not look like a line of this log.
    tracing::info!(target: "mesh::audit", ?kind, ?namespace, ?name, ?change, ?file, "policy changed");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_log::Listening;

    #[test]
    fn what_an_object_says_of_the_default_policy_is_recorded_and_nothing_else_of_it() {
        let annotations = |policy: &str| match policy {
            "" => "annotations: {other: a}".to_owned(),
            policy => format!("annotations: {{{DEFAULT_POLICY}: {policy}}}"),
        };
        let object = |kind: &str, policy: &str| match kind {
            "Namespace" | "Pod" => {
                let meta = format!("metadata: {{name: shop, {}}}", annotations(policy));
                format!("apiVersion: v1\nkind: {kind}\n{meta}\nstatus: {{podIP: 10.0.0.1}}\n")
            }
            _ => {
                let template = format!("{{metadata: {{labels: {{app: a}}, {}}}, spec: {{}}}}", annotations(policy));
                format!("apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: shop}}\nspec: {{template: {template}}}\n")
            }
        };
        for kind in ["Namespace", "Pod", "Deployment", "StatefulSet", "DaemonSet"] {
            let log = Listening::begin();
            let mut before = Arc::new(Model::default());
            let mut lines = 0;
            for (text, recorded) in [
                // Nothing is said of it.
                (object(kind, ""), None),
                (object(kind, "deny"), Some("was=None is=Some(\"deny\") change=Added")),
                (object(kind, "deny") + "# written anew\n", None),
                (object(kind, "audit"), Some("was=Some(\"deny\") is=Some(\"audit\") change=Changed")),
                (object(kind, ""), Some("was=Some(\"audit\") is=None change=Removed")),
                (object(kind, "deny"), Some("was=None is=Some(\"deny\") change=Added")),
                (String::new(), Some("was=Some(\"deny\") is=None change=Removed")),
            ] {
                let now = Arc::new(Model::from_texts([("a.yaml", &*text)]));
                record(&before, &now);
                before = now;
                lines += usize::from(recorded.is_some());
                let said = log.text();
                assert_eq!(
                    log.lines(&["mesh::audit", "policy changed", &format!("kind={kind:?}")]),
                    lines,
                    "{text}{said}"
                );
                assert!(said.lines().last().unwrap_or_default().contains(recorded.unwrap_or_default()), "{text}{said}");
            }
        }
    }
}
