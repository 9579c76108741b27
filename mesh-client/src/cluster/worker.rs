//! The task behind a cluster whose endpoints are DNS names: resolves them again and again and keeps the
//! last good answer. Owned by its cluster.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::policy::{Address, Endpoint, Endpoints, LocalityEndpoints};
use tokio::sync::watch;

use super::Cluster;
use crate::connect::worker::{Owned, spawn};
use crate::env::Env;

/// Time between two looks; the system's resolver does not tell the TTL.
const REFRESH: Duration = Duration::from_secs(60);
/// Time until the next look after a failure.
const AGAIN: Duration = Duration::from_secs(5);

/// Resolves `names` for `cluster`. The answer tells when the first look is over, whatever came of it.
pub(super) fn resolve(
    names: Arc<Endpoints>,
    cluster: Weak<Cluster>,
    env: Arc<Env>,
) -> (watch::Receiver<bool>, Owned<()>) {
    let (done, resolved) = watch::channel(false);
    let runtime = env.runtime();
    let task = spawn(&runtime, async move {
        let mut last = None;
        loop {
            let (endpoints, complete) = look_up(&names, last.as_deref()).await;
            // Gone: the task is about to be stopped.
            let Some(cluster) = cluster.upgrade() else { return };
            if last.as_deref() != Some(&endpoints) {
                let endpoints = Arc::new(endpoints);
                cluster.apply(endpoints.clone(), &env);
                last = Some(endpoints);
            }
            drop(cluster);
            done.send_replace(true);
            tokio::time::sleep(if complete { REFRESH } else { AGAIN }).await;
        }
    });
    (resolved, task)
}

/// Every address of every name. A name that fails keeps what it had in `last`; the flag says whether all
/// went well.
async fn look_up(names: &Endpoints, last: Option<&Endpoints>) -> (Endpoints, bool) {
    let mut complete = true;
    let mut localities = Vec::with_capacity(names.localities.len());
    for (i, group) in names.localities.iter().enumerate() {
        let mut endpoints = Vec::new();
        let mut failed = false;
        for endpoint in &group.endpoints {
            match addresses(endpoint).await {
                Ok(found) => endpoints.extend(found),
                Err(error) => {
                    tracing::warn!(cluster = names.cluster, address = %endpoint.address, %error, "DNS lookup failed");
                    failed = true;
                }
            }
        }
        if failed && let Some(before) = last.and_then(|last| last.localities.get(i)) {
            let missing = before.endpoints.iter().filter(|old| !endpoints.iter().any(|new| new.address == old.address));
            endpoints.extend(missing.cloned().collect::<Vec<_>>());
        }
        complete &= !failed;
        localities.push(LocalityEndpoints { endpoints, ..group.clone() });
    }
    (Endpoints { localities, ..names.clone() }, complete)
}

async fn addresses(endpoint: &Endpoint) -> std::io::Result<Vec<Endpoint>> {
    let Address::Name { host, port } = &endpoint.address else {
        return Ok(vec![endpoint.clone()]);
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut found: Vec<_> = tokio::net::lookup_host((host, *port)).await?.collect();
    // Resolvers turn the order round; a mere change of order is no change.
    found.sort_unstable();
    found.dedup();
    Ok(found.into_iter().map(|address| Endpoint { address: Address::Socket(address), ..endpoint.clone() }).collect())
}
