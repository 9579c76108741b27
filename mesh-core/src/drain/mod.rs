//! Telling everyone to finish, and waiting until they have.
//!
//! ```text
//! serving ──drain()──▶ draining ──last guard dropped──▶ finished
//! ```
//!
//! Refuses to know what is being finished and how long that may take: deadlines are the caller's.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// A trigger and what it triggers. Dropping the trigger triggers nothing.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let (trigger, watch) = mesh_core::drain::channel();
/// let guard = watch.guard();
/// trigger.drain();
/// watch.drained().await; // a server stops accepting here
/// drop(guard); // … and this connection is done
/// trigger.finished().await;
/// # });
/// ```
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (draining, guards) = (watch::Sender::new(false), watch::Sender::new(()));
    let shared = Arc::new(Shared { draining, begun: AtomicBool::new(false), guards });
    (DrainTrigger { shared: shared.clone() }, DrainWatch { shared })
}

struct Shared {
    draining: watch::Sender<bool>,
    // The same for those who only look, without the channel's lock.
    begun: AtomicBool,
    // A guard is a receiver; the channel is closed when there is none.
    guards: watch::Sender<()>,
}

/// Begins the drain and waits for its end. Clones are the same trigger.
#[derive(Clone)]
pub struct DrainTrigger {
    shared: Arc<Shared>,
}

/// Learns of the drain. Clones are cheap; a watch alone does not hold up the end, a [`DrainGuard`] does.
#[derive(Clone)]
pub struct DrainWatch {
    shared: Arc<Shared>,
}

/// Holds up the end of the drain until it is dropped: one for each connection or task that must finish.
pub struct DrainGuard {
    _counted: watch::Receiver<()>,
}

impl DrainTrigger {
    /// Begins the drain. Further calls change nothing.
    pub fn drain(&self) {
        self.shared.begun.store(true, Ordering::Relaxed);
        self.shared.draining.send_replace(true);
    }

    /// Waits until no guard is left. Does not begin the drain.
    pub async fn finished(&self) {
        self.shared.guards.closed().await;
    }

    /// How many guards are left.
    pub fn guards(&self) -> usize {
        self.shared.guards.receiver_count()
    }

    /// A further watch.
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { shared: self.shared.clone() }
    }
}

impl DrainWatch {
    /// Waits until the drain begins; at once if it has.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let shared = self.shared.clone();
        async move {
            // The sender is ours as well, so it cannot be gone.
            let _ = shared.draining.subscribe().wait_for(|draining| *draining).await;
        }
    }

    /// Whether the drain has begun; takes no lock.
    pub fn is_draining(&self) -> bool {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Something that must finish before the drain is over.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { _counted: self.shared.guards.subscribe() }
    }
}

impl std::fmt::Debug for DrainTrigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DrainTrigger").field("guards", &self.guards()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for DrainWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DrainWatch").field("draining", &self.is_draining()).finish()
    }
}

impl std::fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DrainGuard")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_every_guard_and_not_for_watches() {
        let (trigger, watch) = channel();
        let (one, two) = (watch.guard(), watch.clone().guard());
        let mut finished = polled(trigger.finished());
        trigger.drain();
        watch.drained().await;
        assert!(!finished.ready(), "two guards are left");
        drop(one);
        assert!(!finished.ready(), "one guard is left");
        drop(two);
        assert!(finished.ready());
        assert_eq!(trigger.guards(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_begins_before_the_trigger_and_late_watches_learn_of_it() {
        let (trigger, watch) = channel();
        let mut drained = polled(watch.drained());
        assert!(!drained.ready() && !watch.is_draining());
        trigger.drain();
        trigger.drain();
        assert!(drained.ready());
        assert!(polled(trigger.watch().drained()).ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_trigger_triggers_nothing() {
        let (trigger, watch) = channel();
        drop(trigger);
        assert!(!polled(watch.drained()).ready());
    }

    struct Polled<F>(std::pin::Pin<Box<F>>);

    fn polled<F: Future<Output = ()>>(future: F) -> Polled<F> {
        Polled(Box::pin(future))
    }

    impl<F: Future<Output = ()>> Polled<F> {
        fn ready(&mut self) -> bool {
            let waker = std::task::Waker::noop();
            self.0.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready()
        }
    }
}
