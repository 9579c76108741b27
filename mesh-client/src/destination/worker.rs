//! The task that owns one destination: rebuilds its router when the snapshot changes, closes idle
//! connections, and forgets the destination when nobody uses it any more.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use mesh_core::id::Target;
use mesh_core::limit::Pace;
use mesh_core::policy::DestinationState;
use mesh_core::source::{Publisher, Watched};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Destination, Destinations, Phase, host_header};
use crate::connect::worker::spawn;
use crate::env::Env;
use crate::router::Router;

/// How often idle connections are looked for; an idle timeout is kept to within this.
const SWEEP: Duration = Duration::from_secs(5);

/// Subscribes to `target` and starts its owner.
pub(super) fn start(target: Target, destinations: &Arc<Destinations>) -> Destination {
    let env = destinations.env.clone();
    let states = destinations.source.destination(&target);
    let (publisher, phase) = Watched::channel(Phase::Pending);
    let labels = env.labels(target.host().to_owned(), String::new(), String::new());
    let series = env.metrics.series(&labels);
    let owner = Owner { target: target.clone(), env, publisher, destinations: Arc::downgrade(destinations) };
    let pace = Pace::new(destinations.env.limits.builds, Instant::now());
    let runtime = destinations.env.runtime();
    let destination = Destination {
        host: host_header(&target),
        target,
        phase,
        last_used: 0.into(),
        series,
        _owner: spawn(&runtime, owner.run(states, pace)),
    };
    destination.touch(Instant::now(), &destinations.env);
    destination
}

struct Owner {
    target: Target,
    env: Arc<Env>,
    publisher: Publisher<Phase>,
    destinations: Weak<Destinations>,
}

impl Owner {
    async fn run(self, mut states: Watched<DestinationState>, mut pace: Pace) {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.take(&states.load_full());
        loop {
            tokio::select! {
                () = states.changed() => {
                    if Instant::now() < pace.next() {
                        sleep_until(pace.next()).await;
                        // What came meanwhile is taken with it.
                        let _ = states.changed().now_or_never();
                    }
                    pace.take(Instant::now());
                    self.take(&states.load_full());
                }
                now = sweep.tick() => {
                    self.sweep(now);
                    if self.is_forgotten() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes over a new state. The last good router stays until there is a better one, or word that the
    /// destination is gone.
    fn take(&self, state: &DestinationState) {
        match state {
            DestinationState::Pending => {}
            DestinationState::Failed(why) => {
                let current = self.publisher.load_full();
                self.publisher.publish(Phase::Failed(why.clone()));
                if let Phase::Ready(router) = &*current {
                    router.retire(None, self.env.limits.drain);
                }
            }
            DestinationState::Unreachable(why) => self.publisher.publish(Phase::Unreachable(why.clone())),
            DestinationState::Ready(snapshot) => {
                let current = self.publisher.load_full();
                let previous = match &*current {
                    Phase::Ready(router) if Arc::ptr_eq(router.snapshot(), snapshot) => return,
                    Phase::Ready(router) => Some(&**router),
                    Phase::Pending | Phase::Failed(_) | Phase::Unreachable(_) => None,
                };
                let router = Arc::new(Router::build(&self.target, snapshot.clone(), previous, &self.env));
                self.publisher.publish(Phase::Ready(router.clone()));
                // After it is in force, so that no new request finds a closed pool.
                previous.iter().for_each(|previous| previous.retire(Some(&router), self.env.limits.drain));
            }
        }
    }

    fn sweep(&self, now: Instant) {
        if let Phase::Ready(router) = &*self.publisher.load_full() {
            router.reap(now);
        }
    }

    fn is_forgotten(&self) -> bool {
        let unused = self.env.limits.forget_after;
        self.destinations.upgrade().is_none_or(|destinations| destinations.forget(&self.target, unused))
    }
}

#[cfg(test)]
mod tests;
