//! Connecting to endpoints that are away: that failed when it was last tried. While there are others no request finds out whether it
//! still does, for that may take all the time there is.
//!
//! ```text
//! away ─ its time is over, and a request passes it over ─▶ dial ─ a connection stands ─▶ requests are back
//!   ▲                                                       └ none does
//!   └─────────────────────────────────────────────────────────┘ twice the time, half a minute at most
//! ```
//!
//! Where one is away and none is known to be there the rest are dialled as well, so that requests need not find out one by one.
//! Requests begin the dials and never wait for them; nothing else runs. So there is nobody who could sleep through an outage, or
//! whose runtime stands still for others. Refuses to know where requests go.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

use super::{Cluster, Endpoint, Members};
use crate::connect::worker::{Owned, spawn};
use crate::connect::{Needs, Room};
use crate::env::Env;

/// Connections made at once, and where there may be few: one that is silent is not to keep all others waiting.
const AT_ONCE: usize = 32;
const FEW: usize = 4;
/// Least time from one look at who is due to the next, in milliseconds; as much again is drawn, or clients would dial in step.
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
    fn is_time(&self, now: Duration, env: &Env) -> bool {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        let later = || now.saturating_add(PAUSE + env.draw(PAUSE));
        now >= next && self.next.compare_exchange(next, later(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Forgets that to `endpoint`: it has come to its end, and nothing of it is to be held until somebody looks again.
    fn ended(&self, endpoint: &Endpoint) {
        let mut all = self.all.lock();
        all.retain(|dial| !std::ptr::eq(dial.endpoint.as_ptr(), endpoint));
        if all.is_empty() {
            *all = Vec::new();
        }
    }

    /// Forgets them: their runtime has ended, or stands still.
    pub(super) fn stop(&self) {
        self.all.lock().clear();
    }
}

impl Cluster {
    /// Sees to it that endpoints which are away are connected to, on the caller's runtime: the connections are for its requests. Not
    /// `own`, which the caller itself goes to. `members` are those among which they were passed over; one that is `missed` by a session
    /// is looked at by itself, for no pick may ever give it. `needs`: none = raw connections want to know.
    pub(crate) fn look_again(
        self: &Arc<Self>,
        members: &Members,
        needs: Option<Needs>,
        own: Option<&Arc<Endpoint>>,
        missed: Option<usize>,
        env: &Arc<Env>,
    ) {
        let now = env.since_epoch(Instant::now());
        let is_due = |index: &usize| members.ready.load(*index).is_some_and(|load| load.overdue(now).is_some());
        // Not only when it is time: others come by far more often than this session, and would always be before it.
        if let Some(missed) = missed.filter(is_due) {
            self.dial_due(members, &[missed], needs, own, now, env);
        }
        if self.dials.is_time(now, env) {
            self.dial_due(members, &due(members, now, env), needs, own, now, env);
        }
    }

    #[cold]
    fn dial_due(
        self: &Arc<Self>,
        members: &Members,
        due: &[usize],
        needs: Option<Needs>,
        own: Option<&Arc<Endpoint>>,
        now: Duration,
        env: &Arc<Env>,
    ) {
        let most = self.policy.connection.connect_timeout.saturating_add(MISSED);
        // Somebody else looks at the moment.
        let (here, Some(mut dials)) = (Handle::current(), self.dials.all.try_lock()) else { return };
        // One of this runtime goes on with it, however long that was not driven.
        let goes_on = |dial: &Dial| dial.runtime == here.id() || now.saturating_sub(dial.began) < most;
        dials.retain(|dial| !dial.task.is_finished() && goes_on(dial));
        // How long each is left alone is what its load says.
        let room = Room { insists: true, ..self.admission.room(false) };
        // Requests want some of the connections that there may be. The first of each endpoint is let through whatever the limit.
        let at_once = room.of_cluster.map_or(AT_ONCE, |most| AT_ONCE.min(most as usize / 4).max(FEW));
        for index in due {
            if dials.len() >= at_once {
                break;
            }
            let endpoint = self.endpoint(members, *index, env);
            let is_dialled = dials.iter().any(|dial| dial.endpoint.as_ptr() == Arc::as_ptr(&endpoint));
            let is_own = own.is_some_and(|own| Arc::ptr_eq(own, &endpoint));
            if !is_own && !is_dialled && !endpoint.pool().is_closed() {
                let dialled = Arc::downgrade(&endpoint);
                let work = dial(Arc::downgrade(self), endpoint, needs, room, env.clone());
                dials.push(Dial { endpoint: dialled, runtime: here.id(), began: now, task: spawn(&here, work) });
            }
        }
    }
}

/// Those whose time is over, the longest first: none is left out for good, however many there are. Before them, in any order, those of
/// whom nobody knows whether they are there: each is one of them once, and one that is there is enough.
fn due(members: &Members, now: Duration, env: &Env) -> Vec<usize> {
    let ready = &members.ready;
    let are_all = ready.availability().is_none() || ready.is_away();
    let place = |index: usize| match ready.candidates()[index].load() {
        Some(load) if load.is_away() => Some((Reverse(load.overdue(now)?), 0)),
        Some(load) if load.stands() => None,
        _ => are_all.then(|| (Reverse(Duration::MAX), env.draw(u64::MAX))),
    };
    let usable = (0..ready.known()).filter(|index| ready.is_usable(*index));
    let mut due: Vec<_> = usable.filter_map(|index| Some((place(index)?, index))).collect();
    due.sort_unstable();
    due.into_iter().map(|(_, index)| index).collect()
}

async fn dial(cluster: Weak<Cluster>, endpoint: Arc<Endpoint>, needs: Option<Needs>, room: Room, env: Arc<Env>) {
    let (load, was_away) = (endpoint.load(), endpoint.load().is_away());
    // One that was there before says nothing.
    let needs = needs.filter(|needs| !endpoint.pool().has_one(*needs));
    let dialled = endpoint.warm(needs, room, &env).await;
    if dialled.is_err_and(|cause| cause.is_unreached() && !cause.is_ours()) {
        endpoint.not_connected();
    }
    if was_away && load.is_away() {
        // Whatever it was: the next attempt is another one's turn.
        load.unreachable(env.since_epoch(Instant::now()));
    }
    cluster.upgrade().iter().for_each(|cluster| cluster.dials.ended(&endpoint));
}
