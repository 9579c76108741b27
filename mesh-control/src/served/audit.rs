//! The record of what changed of the policies that guard something: each object of them that was added, changed or removed.

use std::sync::Arc;

use crate::model::{Model, Object, Store};
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
    stores(&before.linkerd_rate_limits, &now.linkerd_rate_limits);
    stores(&before.mesh_configs, &now.mesh_configs);
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
    tracing::info!(target: "mesh::audit", %kind, %namespace, %name, ?change, %file, "policy changed");
}
