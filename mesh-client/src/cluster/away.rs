//! The task that connects to endpoints that are away: connecting to them failed when that was last tried. While requests have
//! another place to go none of them finds out whether it still does, for that may take all the time there is.
//!
//! ```text
//! away ─ its time is over ─▶ dial ─ a connection stands ─▶ requests are back
//!   ▲                         └ none does
//!   └───────────────────────────┘ twice the time, half a minute at most
//! ```
//!
//! Begun by a request that goes elsewhere for it, and ends when nobody is away any more. Refuses to know where requests go.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::{Cluster, Endpoint};
use crate::connect::worker::{Owned, spawn};
use crate::connect::{Needs, Room};
use crate::env::Env;

/// Connections made at once.
const AT_ONCE: usize = 32;
/// Least time between two attempts at one endpoint, whatever came of the first.
const PAUSE: Duration = Duration::from_millis(250);

impl Cluster {
    /// Sees to it that endpoints which are away are connected to, on the caller's runtime: the connections are for its requests.
    /// Once more when that runtime has ended, for the task ended with it. `needs`: none = raw connections want to know.
    pub(crate) fn look_again(self: &Arc<Self>, needs: Option<Needs>, env: &Arc<Env>) {
        let is_over = |task: Option<&Arc<Owned<()>>>| task.is_none_or(|task| task.is_finished());
        if is_over(self.looking.load().as_ref()) {
            let _changing = self.changing.lock();
            if is_over(self.looking.load().as_ref()) {
                let work = look(Arc::downgrade(self), needs, env.clone());
                self.looking.store(Some(Arc::new(spawn(&Handle::current(), work))));
            }
        }
    }

    /// Those who are away, and are still asked.
    fn away(&self) -> Vec<Arc<Endpoint>> {
        let members = self.members();
        let away = |endpoint: &&Arc<Endpoint>| endpoint.load().is_away() && !endpoint.pool().is_closed();
        members.in_use().filter(away).cloned().collect()
    }
}

async fn look(cluster: Weak<Cluster>, needs: Option<Needs>, env: Arc<Env>) {
    let (mut dials, mut dialled) = (FuturesUnordered::new(), Vec::<Arc<Endpoint>>::new());
    loop {
        // Held for no longer than that: the task is the cluster's.
        let known = cluster.upgrade().map(|cluster| (cluster.away(), cluster.admission().room(false)));
        let Some((mut away, room)) = known else { return };
        let now = env.since_epoch(Instant::now());
        away.retain(|endpoint| !dialled.iter().any(|other| Arc::ptr_eq(endpoint, other)));
        let mut wait = None::<Duration>;
        for endpoint in away {
            match endpoint.load().due_in(now) {
                Some(Duration::ZERO) if dialled.len() < AT_ONCE => {
                    dialled.push(endpoint.clone());
                    dials.push(dial(endpoint, needs, room, &env));
                }
                // One of those under way gives it its place.
                Some(Duration::ZERO) | None => {}
                Some(left) => wait = Some(wait.map_or(left, |wait| wait.min(left))),
            }
        }
        let due = async {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(done) = dials.next() => dialled.retain(|other| !Arc::ptr_eq(other, &done)),
            () = due, if wait.is_some() => {}
            else => return,
        }
    }
}

async fn dial(endpoint: Arc<Endpoint>, needs: Option<Needs>, room: Room, env: &Env) -> Arc<Endpoint> {
    if endpoint.warm(needs, room, env).await.is_err() {
        sleep(PAUSE).await;
    }
    endpoint
}
