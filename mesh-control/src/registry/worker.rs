//! The registry's two chores: taking out what was lost too long ago, and saving what is known.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

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

/// Between two saves; the table is written whole.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);

/// Saves changes: the first at once, those that follow together. Runs for ever.
pub(crate) async fn save(registry: Arc<Registry>, dir: StateDir) {
    let mut registrations = registry.watch();
    loop {
        registrations.changed().await;
        let (registry, dir) = (registry.clone(), dir.clone());
        // A large table takes a while, and the disk as well.
        if let Err(error) = spawn_blocking(move || save_now(&registry, &dir)).await {
            tracing::error!(%error, "saving registrations panicked");
        }
        sleep(BETWEEN_SAVES).await;
    }
}

/// Saves what is known now.
pub(crate) fn save_now(registry: &Registry, dir: &StateDir) {
    let _saving = registry.saving.lock();
    if let Err(error) = store::save(dir, &registry.watch().load()) {
        tracing::warn!(%error, "registrations cannot be saved; a restart would begin without them");
    }
}

#[cfg(test)]
mod tests {
    use super::super::sorted;
    use super::super::tests::registration;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_is_taken_out_when_its_time_has_come() {
        let grace = Duration::from_secs(10);
        let registry = Arc::new(Registry::new(vec![registration(1)], grace, Instant::now()));
        let mut watched = registry.watch();
        let begin = Instant::now();
        tokio::select! {
            () = expire(registry.clone()) => unreachable!("it runs for ever"),
            () = async {
                mesh_testkit::clock::pass(Duration::from_secs(4)).await;
                let stream = registry.stream("default", "reviews", [127, 0, 0, 1].into(), Instant::now()).unwrap();
                registry.announce(stream, registration(2), Instant::now()).unwrap();
                registry.lose(stream, Instant::now());
                watched.wait_for(|known| sorted(known) == [&registration(1)]).await;
                assert_eq!(begin.elapsed().as_secs(), 14);
                // That of before the restart had longer.
                watched.wait_for(|known| known.len() == 0).await;
                assert_eq!(begin.elapsed().as_secs(), 40);
            } => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_is_saved_at_once_and_those_that_follow_together() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let registry = Arc::new(Registry::new(Vec::new(), Duration::ZERO, Instant::now()));
        let mut saving = Box::pin(save(registry.clone(), dir.clone()));
        let saved = || store::load(&dir).len();
        assert_eq!(futures_util::FutureExt::now_or_never(&mut saving), None);
        assert_eq!(saved(), 0);
        let announce = |port| {
            let stream = registry.stream("default", "reviews", [127, 0, 0, 1].into(), Instant::now()).unwrap();
            registry.announce(stream, registration(port), Instant::now()).unwrap();
        };
        tokio::select! {
            () = &mut saving => unreachable!("it runs for ever"),
            () = async {
                announce(1);
                until(|| saved() == 1).await;
                announce(2);
                announce(3);
                mesh_testkit::clock::pass(BETWEEN_SAVES / 2).await;
                assert_eq!(saved(), 1, "not yet");
                mesh_testkit::clock::pass(BETWEEN_SAVES).await;
                until(|| saved() == 3).await;
            } => {}
        }
    }

    /// While another thread writes, no time passes here.
    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::task::yield_now().await;
        }
    }
}
