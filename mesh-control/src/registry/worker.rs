//! The registry's two chores: taking out what was lost too long ago, and saving what is known.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::store;
use super::table::Registry;
use crate::state_dir::StateDir;

/// Takes lost endpoints out when their time has come. Runs for ever.
pub(crate) async fn expire(registry: Arc<Registry>) {
    loop {
        match registry.expire(Instant::now()) {
            Some(next) => tokio::select! {
                () = sleep_until(next) => {}
                () = registry.something_lost() => {}
            },
            None => registry.something_lost().await,
        }
    }
}

/// Saves every change. Runs for ever.
pub(crate) async fn save(registry: Arc<Registry>, dir: StateDir) {
    let mut registrations = registry.watch();
    loop {
        registrations.changed().await;
        save_now(&registry, &dir);
    }
}

/// Saves what is known now.
pub(crate) fn save_now(registry: &Registry, dir: &StateDir) {
    if let Err(error) = store::save(dir, &registry.watch().load()) {
        tracing::warn!(%error, "registrations cannot be saved; a restart would begin without them");
    }
}
