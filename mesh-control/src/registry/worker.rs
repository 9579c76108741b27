//! The registry's two chores: taking out what was lost too long ago, and saving what is known.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::store;
use super::table::Registry;
use crate::state_dir::{StateDir, StateError};

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

/// Between two saves to disk; the table is written whole.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);
/// Between two saves in the system's own time. They take a twentieth of the time at most, or come after the longest wait.
const SOON: (Duration, Duration) = (Duration::from_millis(10), BETWEEN_SAVES);

/// Saves changes from now on: the first at once, those that follow together. Runs for ever.
///
/// What was announced just before the process dies must be there when it begins anew, and bringing it to disk may take
/// seconds where others write: so it is given to the system soon, and to the disk more seldom, each to a file of its own.
pub(crate) fn save(registry: Arc<Registry>, dir: StateDir) -> impl Future<Output = ()> + Send {
    let (soon, through) = (registry.clone(), dir.clone());
    let soon = keep(&registry, SOON, move || save_now(&soon, &dir));
    let of = registry.clone();
    let through = keep(&registry, (BETWEEN_SAVES, BETWEEN_SAVES), move || {
        let (save, registrations) = of.to_save();
        warn_of(store::save_through(&through, (save, &registrations)));
    });
    async {
        tokio::join!(soon, through);
    }
}

/// Writes after each change from now on, on a thread that may block, as `between` allows. Runs for ever.
fn keep<W: Fn() + Send + Sync + 'static>(
    registry: &Registry,
    between: (Duration, Duration),
    write: W,
) -> impl Future<Output = ()> + Send + use<W> {
    let (mut registrations, write) = (registry.watch(), Arc::new(write));
    async move {
        loop {
            registrations.changed().await;
            let (begun, write) = (Instant::now(), write.clone());
            // A large table takes a while, and the disk as well.
            if let Err(error) = spawn_blocking(move || write()).await {
                tracing::error!(%error, "saving registrations panicked");
            }
            sleep((19 * begun.elapsed()).clamp(between.0, between.1)).await;
        }
    }
}

/// Saves what is known now.
pub(crate) fn save_now(registry: &Registry, dir: &StateDir) {
    let _saving = registry.saving.lock();
    let (save, registrations) = registry.to_save();
    warn_of(store::save(dir, (save, &registrations)));
    // One that cannot be written holds nobody up.
    registry.save_ended(save);
}

fn warn_of(saved: Result<(), StateError>) {
    if let Err(error) = saved {
        tracing::warn!(%error, "registrations cannot be saved; a restart would begin without them");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use parking_lot::Mutex;

    use super::super::tests::registration;
    use super::super::{sorted, table_of};
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
        let saving = save(registry.clone(), dir.clone());
        let saved = || store::load(&dir).0.len();
        // Whatever comes before its first turn is a change.
        announce(&registry, 1);
        assert_eq!(saved(), 0);
        tokio::select! {
            () = saving => unreachable!("it runs for ever"),
            () = async {
                until(|| saved() == 1).await;
                announce(&registry, 2);
                announce(&registry, 3);
                mesh_testkit::clock::pass(SOON.0 / 2).await;
                assert_eq!(saved(), 1, "not yet");
                mesh_testkit::clock::pass(SOON.0).await;
                until(|| saved() == 3).await;
            } => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_is_saved_while_the_disk_keeps_others_waiting() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let registry = Arc::new(Registry::new(Vec::new(), Duration::ZERO, Instant::now()));
        let (disk, waits) = std::sync::mpsc::channel::<()>();
        let waits = Mutex::new(waits);
        let (of, to) = (registry.clone(), dir.clone());
        let soon = keep(&registry, SOON, move || save_now(&of, &to));
        let (of, to) = (registry.clone(), dir.clone());
        let through = keep(&registry, (BETWEEN_SAVES, BETWEEN_SAVES), move || {
            let _ = waits.lock().recv();
            let (save, registrations) = of.to_save();
            store::save_through(&to, (save, &registrations)).unwrap();
        });
        tokio::select! {
            _ = async { tokio::join!(soon, through) } => unreachable!("they run for ever"),
            () = async {
                for port in 1..4 {
                    announce(&registry, port);
                    while store::load(&dir).0.len() < usize::from(port) {
                        // By itself it does not go on beside a thread that waits.
                        tokio::time::advance(SOON.0).await;
                    }
                }
                // The machine's end would lose it: nothing is on disk until the disk has time.
                std::fs::remove_file(dir.path("registrations.json")).unwrap();
                assert_eq!(store::load(&dir), (Vec::new(), 0));
                drop(disk);
                until(|| store::load(&dir).0.len() == 3).await;
            } => {}
        }
    }

    #[tokio::test]
    async fn a_withdrawal_is_saved_by_the_next_save_that_begins_and_one_that_fails_holds_nobody_up() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let registry = Registry::new(Vec::new(), Duration::ZERO, Instant::now());
        let [one, other] = [1, 2].map(|port| announce(&registry, port));
        let begun = registry.to_save();
        let save = registry.withdraw(one).unwrap();
        assert_eq!(registry.withdraw(one), None, "there is nothing left");
        registry.save_ended(begun.0);
        assert_eq!(registry.saved(save).now_or_never(), None, "it may hold what was withdrawn");
        save_now(&registry, &dir);
        registry.saved(save).await;
        assert_eq!(store::load(&dir).0, [registration(2)]);
        drop(home);
        let save = registry.withdraw(other).unwrap();
        save_now(&registry, &dir);
        registry.saved(save).await;
        assert!(store::save(&dir, (save, &table_of(&[]))).is_err(), "the control: there is no such folder");
    }

    fn announce(registry: &Registry, port: u16) -> u64 {
        let stream = registry.stream("default", "reviews", [127, 0, 0, 1].into(), Instant::now()).unwrap();
        registry.announce(stream, registration(port), Instant::now()).unwrap();
        stream
    }

    /// While another thread writes, no time passes here.
    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::task::yield_now().await;
        }
    }
}
