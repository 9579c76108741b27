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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
                let stream = registry.stream();
                registry.announce(stream, registration(2)).unwrap();
                registry.lose(stream, Instant::now());
                watched.wait_for(|known| *known == [registration(2)]).await;
                assert_eq!(begin.elapsed().as_secs(), 10);
                watched.wait_for(Vec::is_empty).await;
                assert_eq!(begin.elapsed().as_secs(), 14);
            } => {}
        }
    }

    #[tokio::test]
    async fn changes_are_saved_as_they_come() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let registry = Arc::new(Registry::new(Vec::new(), Duration::ZERO, Instant::now()));
        let mut saving = Box::pin(save(registry.clone(), dir.clone()));
        assert_eq!(futures_util::FutureExt::now_or_never(&mut saving), None);
        assert_eq!(store::load(&dir), []);
        registry.announce(registry.stream(), registration(1)).unwrap();
        assert_eq!(futures_util::FutureExt::now_or_never(&mut saving), None);
        assert_eq!(store::load(&dir), [registration(1)]);
    }
}
