//! The task that owns one destination: rebuilds its router when the snapshot changes, closes idle
//! connections, and forgets the destination when nobody uses it any more.
//!
//! It runs on the client's runtime for that, or on that of the first request, which may be one of several and end, or be
//! driven by nobody while requests come from another. So it shows itself at each sweep, and says when it ends; a request
//! that misses it begins another on its own runtime, with all that looks after the clusters there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use mesh_core::id::Target;
use mesh_core::limit::Pace;
use mesh_core::policy::DestinationState;
use mesh_core::source::Watched;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Destination, Destinations, Phase, host_header};
use crate::connect::worker::{self, spawn};
use crate::env::Env;
use crate::router::Router;

/// How often idle connections are looked for; an idle timeout is kept to within this.
const SWEEP: Duration = Duration::from_secs(5);
/// Whoever was not seen for so many milliseconds, two sweeps, is on a runtime that stands still.
const MISSED: u64 = 2 * SWEEP.as_millis() as u64;

/// Nor is one on the runtime that the application names, before that has ended.
const STEADY: u64 = u64::MAX;

/// A task that owns a destination, and where it runs.
pub(super) struct Owned {
    runtime: Id,
    _task: worker::Owned<()>,
}

/// Subscribes to `target` and starts its owner.
pub(super) fn start(target: Target, destinations: &Arc<Destinations>) -> Arc<Destination> {
    let env = &destinations.env;
    let (publisher, phase) = Watched::channel(Phase::Pending);
    let labels = env.labels(target.host().to_owned(), String::new(), String::new());
    let destination = Arc::new(Destination {
        host: host_header(&target),
        states: destinations.source.destination(&target),
        target,
        phase,
        last_used: env.millis(Instant::now()).into(),
        missed_from: 0.into(),
        series: env.metrics.series(&labels),
        publisher,
        taking: Mutex::default(),
        owner: Mutex::default(),
        destinations: Arc::downgrade(destinations),
    });
    // Is it over, the first request takes its place.
    let owned = own(&destination, env, &env.runtime(), env.runtime.is_some());
    *destination.owner.lock() = Some(owned);
    destination
}

/// Sees to it that a destination whose owner is missed has one on the caller's runtime, and takes what came meanwhile.
#[cold]
pub(super) fn take_over(destination: &Arc<Destination>) {
    let Some(destinations) = destination.destinations.upgrade() else { return };
    let (env, here) = (&destinations.env, Handle::current());
    let former = {
        let mut owner = destination.owner.lock();
        let now = env.millis(Instant::now());
        if !destination.is_missed(now) {
            // Another request was faster.
            return;
        }
        if !destination.is_missed(0) && owner.as_ref().is_some_and(|owner| owner.runtime == here.id()) {
            // It stood still until this request, and goes on beside it.
            destination.missed_from.store(now + MISSED, Ordering::Relaxed);
            None
        } else {
            owner.replace(own(destination, env, &here, false))
        }
    };
    if let Some(former) = former {
        drop(former);
        let target = &destination.target;
        tracing::debug!(%target, "the runtime that looked after a destination has ended or stands still: another does");
        destination.ready().iter().for_each(|router| router.resume(env));
    }
    destination.take(env);
}

/// The same where the owner of `before` has not taken what has come first: its runtime stands still.
pub(super) fn insist(destination: &Arc<Destination>, before: u64) {
    // Unless it was there since, or another request was faster.
    let leaves = || destination.missed_from.compare_exchange(before, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if before != STEADY && leaves() {
        take_over(destination);
    }
}

/// Begins an owner. `steady` = its runtime is missed only when it has ended.
fn own(destination: &Arc<Destination>, env: &Arc<Env>, runtime: &Handle, steady: bool) -> Owned {
    let mut owner = Owner { destination: Arc::downgrade(destination), env: env.clone(), steady, until: 0 };
    let now = Instant::now();
    // Here, for it may take a while to begin.
    owner.show(destination, now);
    let pace = Pace::new(env.limits.builds, now);
    Owned { runtime: runtime.id(), _task: spawn(runtime, owner.run(destination.states.clone(), pace)) }
}

struct Owner {
    destination: Weak<Destination>,
    env: Arc<Env>,
    steady: bool,
    // What it has put down last.
    until: u64,
}

impl Owner {
    async fn run(mut self, mut states: Watched<DestinationState>, mut pace: Pace) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.take();
        loop {
            tokio::select! {
                () = states.changed() => {
                    if Instant::now() < pace.next() {
                        sleep_until(pace.next()).await;
                        // What came meanwhile is taken with it.
                        let _ = states.changed().now_or_never();
                    }
                    pace.take(Instant::now());
                    self.take();
                }
                // The time now, and not that for which it was meant: in between nobody may have driven it.
                _ = sweep.tick() => {
                    if self.sweep(Instant::now()) {
                        return;
                    }
                }
            }
        }
    }

    fn take(&self) {
        self.destination.upgrade().iter().for_each(|destination| destination.take(&self.env));
    }

    /// Closes idle connections. True: the destination is forgotten.
    fn sweep(&mut self, now: Instant) -> bool {
        let Some(destination) = self.destination.upgrade() else { return true };
        self.show(&destination, now);
        destination.ready().iter().for_each(|router| router.reap(now, &self.env));
        let Some(destinations) = destination.destinations.upgrade() else { return true };
        let target = destination.target.clone();
        // Whoever holds it uses it.
        drop(destination);
        destinations.forget(&target, self.env.limits.forget_after)
    }

    /// The destination has an owner for some time to come.
    fn show(&mut self, destination: &Destination, now: Instant) {
        self.until = if self.steady { STEADY } else { self.env.millis(now) + MISSED };
        destination.missed_from.store(self.until, Ordering::Relaxed);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(destination) = self.destination.upgrade() else { return };
        let last = destination.missed_from.compare_exchange(self.until, 0, Ordering::Relaxed, Ordering::Relaxed);
        if last.is_ok() {
            // Nobody has its place yet. Who waits for a router looks again.
            let _taking = destination.taking.lock();
            destination.publisher.publish_arc(destination.publisher.load_full());
        }
    }
}

impl Destination {
    /// Takes over the newest state. The last good router stays until there is a better one, or word that the
    /// destination is gone.
    fn take(&self, env: &Arc<Env>) {
        let mut left = self.taking.lock();
        let (current, state) = (self.publisher.load_full(), self.states.load_full());
        match &*state {
            DestinationState::Pending => {}
            DestinationState::Failed(why) => {
                self.publisher.publish(Phase::Failed(why.clone()));
                if let Phase::Ready(router) = &*current {
                    router.retire(None, env.limits.drain, &mut left);
                }
            }
            DestinationState::Unreachable(why) => self.publisher.publish(Phase::Unreachable(why.clone())),
            DestinationState::Ready(snapshot) => {
                let previous = match &*current {
                    Phase::Ready(router) if Arc::ptr_eq(router.snapshot(), snapshot) => return,
                    Phase::Ready(router) => Some(&**router),
                    Phase::Pending | Phase::Failed(_) | Phase::Unreachable(_) => None,
                };
                let router = Arc::new(Router::build(&self.target, snapshot.clone(), previous, env));
                self.publisher.publish(Phase::Ready(router.clone()));
                // After it is in force, so that no new request finds a closed pool.
                previous.iter().for_each(|previous| previous.retire(Some(&router), env.limits.drain, &mut left));
                router.return_to(&mut left, env.limits.drain);
            }
        }
    }
}

#[cfg(test)]
mod tests;
