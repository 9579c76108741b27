//! Connections before there are requests for them: one to each usable endpoint of a destination.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use mesh_core::id::Target;
use tokio::time::Instant;

use crate::cluster::{Cluster, Endpoint};
use crate::connect::Needs;
use crate::destination::Destinations;
use crate::env::Env;
use crate::error::{Cause, Error};
use crate::router::Slot;

/// Connections made at once.
const AT_ONCE: usize = 32;

/// What came of [`Client::warm`](crate::Client::warm).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Warmed {
    /// Endpoints that have a connection now, whether it was made or there before.
    pub connected: usize,
    /// What happened where none came about; each names its endpoint.
    pub failed: Vec<Error>,
}

/// Connects to every usable endpoint of every cluster of `target`.
pub(crate) async fn warm(destinations: &Arc<Destinations>, target: &Target, grpc: bool) -> Result<Warmed, Error> {
    let env = destinations.env();
    let failed = |cause: Cause| Error::new(target.as_str(), cause, 0);
    let destination = destinations.to(target).map_err(failed)?;
    destination.touch(Instant::now(), env);
    let router = destination.router(env.limits.config_wait).await.map_err(failed)?;
    let mut endpoints = Vec::new();
    for slot in router.clusters().values() {
        // Those of an aggregate stand for themselves.
        if let Slot::Ready(cluster) = slot {
            cluster.resolved().await;
            let members = cluster.members();
            let usable = (0..members.ready.known()).filter(|index| members.ready.is_usable(*index));
            endpoints.extend(usable.map(|index| (Arc::clone(cluster), cluster.endpoint(&members, index, env))));
        }
    }
    let dials = endpoints.into_iter().map(|(cluster, endpoint)| one(cluster, endpoint, Needs::of(grpc), env.clone()));
    let mut dials = stream::iter(dials).buffer_unordered(AT_ONCE);
    let mut warmed = Warmed::default();
    while let Some(dialled) = dials.next().await {
        match dialled {
            // Where there is no room others are in use.
            Ok(_) => warmed.connected += 1,
            Err(cause) => warmed.failed.push(failed(cause)),
        }
    }
    Ok(warmed)
}

/// Connects to one.
pub(super) async fn one(
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    needs: Needs,
    env: Arc<Env>,
) -> Result<bool, Cause> {
    endpoint.warm(Some(needs), cluster.admission().room(false), &env).await
}
