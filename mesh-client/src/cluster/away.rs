//! Connecting to endpoints that are away: that failed when it was last tried. While requests have another place to go none of them
//! finds out whether it still does, for that may take all the time there is.
//!
//! ```text
//! away ─ its time is over, and a request passes it over ─▶ dial ─ a connection stands ─▶ requests are back
//!   ▲                                                       └ none does
//!   └─────────────────────────────────────────────────────────┘ twice the time, half a minute at most
//! ```
//!
//! Requests begin the dials and never wait for them; nothing else runs. So there is nobody who could sleep through an outage, or
//! whose runtime stands still for others. Refuses to know where requests go.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

use super::{Cluster, Endpoint};
use crate::connect::worker::{Owned, spawn};
use crate::connect::{Needs, Room};
use crate::env::Env;

/// Connections made at once.
const AT_ONCE: usize = 32;
/// Least time from one look at who is due to the next, in milliseconds.
const PAUSE: u64 = 250;
/// A dial that takes so much longer than connecting may take is on a runtime that nobody drives.
const MISSED: Duration = Duration::from_secs(1);

/// The dials to endpoints that are away.
#[derive(Default)]
pub(super) struct Dials {
    // When somebody may look next who is due, in milliseconds of the client's clock.
    next: AtomicU64,
    // Held by who does.
    all: Mutex<Vec<Dial>>,
}

struct Dial {
    // The task has it: this may be looked at long after.
    endpoint: Weak<Endpoint>,
    runtime: Id,
    began: Duration,
    // Stopped with this.
    task: Owned<()>,
}

impl Dials {
    /// Whether the caller is to look who is due: one at a time, and not too often.
    fn is_time(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(PAUSE);
        now >= next && self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Forgets them: their runtime has ended, or stands still.
    pub(super) fn stop(&self) {
        self.all.lock().clear();
    }
}

impl Cluster {
    /// Sees to it that endpoints which are away are connected to, on the caller's runtime: the connections are for its requests.
    /// `needs`: none = raw connections want to know.
    pub(crate) fn look_again(&self, needs: Option<Needs>, env: &Arc<Env>) {
        let now = env.since_epoch(Instant::now());
        if self.dials.is_time(now) {
            self.dial_due(needs, now, env);
        }
    }

    #[cold]
    fn dial_due(&self, needs: Option<Needs>, now: Duration, env: &Arc<Env>) {
        let most = self.policy.connection.connect_timeout.saturating_add(MISSED);
        let (here, mut dials) = (Handle::current(), self.dials.all.lock());
        // One of this runtime goes on with it, however long that was not driven.
        let goes_on = |dial: &Dial| dial.runtime == here.id() || now.saturating_sub(dial.began) < most;
        dials.retain(|dial| !dial.task.is_finished() && goes_on(dial));
        // How long each is left alone is what its load says.
        let room = Room { insists: true, ..self.admission.room(false) };
        let due = self.due(now, |endpoint| dials.iter().any(|dial| dial.endpoint.as_ptr() == Arc::as_ptr(endpoint)));
        let free = AT_ONCE.saturating_sub(dials.len());
        dials.extend(due.into_iter().take(free).map(|endpoint| {
            let (dialled, work) = (Arc::downgrade(&endpoint), dial(endpoint, needs, room, env.clone()));
            Dial { endpoint: dialled, runtime: here.id(), began: now, task: spawn(&here, work) }
        }));
    }

    /// Those whose time is over, the longest first: none is left out for good, however many there are.
    fn due(&self, now: Duration, is_dialled: impl Fn(&Arc<Endpoint>) -> bool) -> Vec<Arc<Endpoint>> {
        let members = self.members();
        let open = members.in_use().filter(|endpoint| !endpoint.pool().is_closed() && !is_dialled(endpoint));
        let mut due: Vec<_> =
            open.filter_map(|endpoint| Some((endpoint.load().overdue(now)?, endpoint.clone()))).collect();
        due.sort_by_key(|(overdue, _)| Reverse(*overdue));
        due.into_iter().map(|(_, endpoint)| endpoint).collect()
    }
}

async fn dial(endpoint: Arc<Endpoint>, needs: Option<Needs>, room: Room, env: Arc<Env>) {
    // What came of it is told there.
    let _ = endpoint.warm(needs, room, &env).await;
    let load = endpoint.load();
    if load.is_away() {
        // Whatever it was: the next attempt is another one's turn.
        load.unreachable(env.since_epoch(Instant::now()));
    }
}
