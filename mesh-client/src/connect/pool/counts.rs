//! How many connections there are to an endpoint and in its cluster, against limits, and who waits for one.
//!
//! Who finds none that is free stands in line, and so do those who come after: what becomes free goes to the first in
//! line, who alone looks, and not to who happens to ask in that moment. A request that gives up leaves its place to the
//! next.
//!
//! ```text
//! nobody waits ─▶ look ─▶ nothing? ─▶ line ─▶ the first in it: look, wait for a change, look again
//! somebody waits ─────────────────────┘
//! ```
//!
//! Refuses to know what connections are made of, and where they are kept.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_core::balance::Load;
use mesh_core::limit::{Count, Waiters};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::super::{Dialer, Want, worker};
use super::MAX_SHUT;

/// How many connections there may be. None = any number.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// To all endpoints of the cluster; each may have one of each kind whatever this is, as in Envoy.
    pub(crate) of_cluster: Option<u32>,
    /// To one endpoint.
    pub(crate) of_endpoint: Option<u32>,
    /// Longest wait for one that is in use. None = until the request's own end.
    pub(crate) patience: Option<Duration>,
    /// Connects also where that failed a moment ago.
    pub(crate) insists: bool,
    /// High priority, whose limits are others: it stands in a line of its own.
    pub(crate) high: bool,
    /// Does not stand in line while there is something for it.
    pub(crate) passes: bool,
}

impl Room {
    /// Any number, and at any time.
    pub(crate) const ANY: Self =
        Self { of_cluster: None, of_endpoint: None, patience: None, insists: true, high: false, passes: true };
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// Its name.
    pub(crate) limit: &'static str,
    /// Its value.
    pub(crate) allowed: u32,
}

/// Name of the limit of one endpoint.
pub(crate) const PER_HOST: &str = "max_connections_per_host";

/// The open connections of a cluster.
#[derive(Default)]
pub(crate) struct Connections {
    count: Count,
    // For the first in line at every endpoint. Nobody but they waits here.
    closed: Notify,
}

impl Connections {
    /// How many there are.
    pub(crate) fn get(&self) -> u32 {
        self.count.get()
    }
}

/// What the connections to one endpoint tell those who wait for one, and its load.
#[cfg_attr(test, derive(Default))]
pub(in crate::connect) struct Counts {
    open: Count,
    // Of them, those that the pool made, of each kind: a raw connection is nobody else's to use.
    pooled: [Count; KINDS],
    // Of these, those that stand: one more than there are, and 0 before the first. No larger, for there are as many as endpoints.
    standing: AtomicU16,
    // When it was first seen that there is none, in seconds of the load's clock and one more; 0 = there is.
    left_since: AtomicU32,
    // In each line.
    waiting: [Waiters; LINES],
    // The endpoint is gone.
    pub(super) closed: AtomicBool,
    // Made by the first who waits: at most endpoints nobody ever does.
    waiters: OnceLock<Box<[Line; LINES]>>,
    // Of the same ones that `open` counts, to end them with the endpoint.
    pub(in crate::connect) lines: worker::Lines,
    pub(super) load: Arc<Load>,
}

/// Those who wait for a connection of one kind under the same limits.
struct Line {
    // Who has it is the first. Fair, and passed on by who gives up.
    turn: Semaphore,
    // For the first.
    changed: Notify,
}

impl Default for Line {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), changed: Notify::new() }
    }
}

const KINDS: usize = 2;
const LINES: usize = 2 * KINDS;

/// Over HTTP/1.1 and over HTTP/2 nobody takes what the other waits for. What ALPN settles on is nearly always HTTP/2.
fn kind_of(want: Want) -> usize {
    usize::from(want != Want::Http1)
}

/// Which line: one for each kind, and where one priority has no room the other may have some.
fn line_of(want: Want, room: Room) -> usize {
    KINDS * usize::from(room.high) + kind_of(want)
}

impl Counts {
    /// Those of an endpoint with this load.
    pub(super) fn new(load: Arc<Load>) -> Arc<Self> {
        let (open, pooled, standing, left_since, waiting) = Default::default();
        let (closed, waiters, lines) = Default::default();
        Arc::new(Self { open, pooled, standing, left_since, waiting, closed, waiters, lines, load })
    }

    /// Connections open to the endpoint.
    pub(super) fn open(&self) -> u32 {
        self.open.get()
    }

    /// For how long none has stood at each look, to whole seconds; the time is the load's.
    pub(super) fn left_for(&self, now: Duration) -> Duration {
        // Raw ones are open and nothing else.
        if self.open.get() > 0 && self.standing.load(Ordering::Relaxed) != 1 {
            self.left_since.store(0, Ordering::Relaxed);
            return Duration::ZERO;
        }
        let now = (now.as_secs() as u32).wrapping_add(1).max(1);
        let since = self.left_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).err();
        Duration::from_secs(since.map_or(0, |since| now.wrapping_sub(since)).into())
    }

    /// Whether who wants a connection has to stand in line for it. All that a request pays that finds one.
    pub(super) fn is_awaited(&self, want: Want, room: Room) -> bool {
        !room.passes && self.waiting(want, room) > 0
    }

    /// Those who stand in that line.
    pub(super) fn waiting(&self, want: Want, room: Room) -> u32 {
        self.waiting[line_of(want, room)].get()
    }

    /// Something is free, or there is room to make it: who waits is told.
    pub(in crate::connect) fn made_room(&self) {
        if !self.waiting.iter().any(Waiters::any) {
            return;
        }
        self.waiters.get().iter().flat_map(|lines| lines.iter()).for_each(|line| line.changed.notify_one());
    }

    /// Stands in line until its turn comes. The first in line has to look once more before it [waits](Turn::changed).
    pub(super) async fn turn<'c>(&'c self, want: Want, room: Room, of_cluster: &'c Connections) -> Turn<'c> {
        let which = line_of(want, room);
        let line = &self.waiters.get_or_init(Box::default)[which];
        let waiting = Waiting::in_line(&self.waiting[which]);
        let first = line.turn.acquire().await.expect("it is never closed");
        // Hears of what is closed from now on, not only once it waits.
        Turn { line, of_cluster, closed: Box::pin(of_cluster.closed.notified()), _place: (first, waiting) }
    }
}

/// One who waits, counted.
struct Waiting<'c>(&'c Waiters);

impl<'c> Waiting<'c> {
    fn in_line(waiting: &'c Waiters) -> Self {
        waiting.enter();
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The first in line, until this is dropped: then it is the next one's turn, who looks whether there is something for him.
pub(super) struct Turn<'c> {
    line: &'c Line,
    of_cluster: &'c Connections,
    // Made before the last look.
    closed: Pin<Box<Notified<'c>>>,
    _place: (SemaphorePermit<'c>, Waiting<'c>),
}

impl Turn<'_> {
    /// Waits until something has changed since the last look: at the endpoint, or in the room that the cluster has.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            () = self.line.changed.notified() => {}
            () = self.closed.as_mut() => self.closed.set(self.of_cluster.closed.notified()),
        }
    }
}

/// A connection of the pool that stands: over HTTP/1.1 until it is closed, over HTTP/2 from the peer's first word until it says that
/// it is leaving. What is leaving is no reason to believe that the next connection leads to the same server.
pub(in crate::connect) struct Stands(Arc<Counts>);

impl Stands {
    pub(in crate::connect) fn new(counts: Arc<Counts>) -> Self {
        let one_more = |standing: u16| Some(standing.max(1).saturating_add(1));
        if counts.standing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) == Ok(1) {
            counts.load.renewed();
        }
        counts.left_since.store(0, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for Stands {
    fn drop(&mut self) {
        let one_less = |standing: u16| Some(standing.saturating_sub(1).max(1));
        let _ = self.0.standing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }
}

/// One open connection, counted until its task has ended.
pub(crate) struct OpenGuard {
    of_cluster: Arc<Connections>,
    of_endpoint: Arc<Counts>,
    // Of which kind.
    pooled: Option<usize>,
    // Of HTTP/1.1.
    stands: Option<Stands>,
}

impl OpenGuard {
    /// A connection of the pool, whatever the limits.
    pub(super) fn pooled(want: Want, dialer: &Dialer, counts: &Arc<Counts>) -> Self {
        counts.pooled[kind_of(want)].enter();
        Self::counted(dialer, counts, Some(kind_of(want)))
    }

    fn counted(dialer: &Dialer, counts: &Arc<Counts>, pooled: Option<usize>) -> Self {
        dialer.open.count.enter();
        counts.open.enter();
        Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone(), pooled, stands: None }
    }

    /// One more within the limits: a connection of the pool for what a request wants, or a raw one. Of each kind the pool may
    /// have one whatever they are, as in Envoy: one that a WebSocket has taken serves nobody who speaks HTTP/2. The kind is what
    /// was asked for. Who is refused at the endpoint never counts with the cluster: others would take that for full, and nobody
    /// tells them.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn within(room: Room, dialer: &Dialer, counts: &Arc<Counts>, want: Option<Want>) -> Result<Self, Full> {
        let pooled = want.map(kind_of);
        if pooled.is_some_and(|kind| counts.pooled[kind].enter_below(1)) {
            return Ok(Self::counted(dialer, counts, pooled));
        }
        let full = Err(Full { limit: "max_connections", allowed: room.of_cluster.unwrap_or(u32::MAX) });
        // Looked at first: those of the endpoint are told only of a place that went in this very moment.
        if room.of_cluster.is_some_and(|most| dialer.open.get() >= most) {
            return full;
        }
        if !counts.open.enter_within(room.of_endpoint) {
            return Err(Full { limit: PER_HOST, allowed: room.of_endpoint.unwrap_or(u32::MAX) });
        }
        if !dialer.open.count.enter_within(room.of_cluster) {
            counts.open.leave();
            counts.made_room();
            return full;
        }
        if let Some(kind) = pooled {
            counts.pooled[kind].enter();
        }
        Ok(Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone(), pooled, stands: None })
    }

    /// The limit that keeps who finds no room from making a connection.
    pub(super) fn full(room: Room, dialer: &Dialer) -> Full {
        match (room.of_cluster, room.of_endpoint) {
            (Some(allowed), _) if dialer.open.get() >= allowed => Full { limit: "max_connections", allowed },
            (_, Some(allowed)) => Full { limit: PER_HOST, allowed },
            (Some(allowed), None) => Full { limit: "max_connections", allowed },
            // Of connections there may be more, but not one of these takes a stream.
            (None, None) => Full { limit: "the connections to a peer that takes no stream", allowed: MAX_SHUT as u32 },
        }
    }

    /// It [stands](Stands), until it is closed.
    pub(in crate::connect) fn stands(&mut self) {
        self.stands = Some(Stands::new(self.of_endpoint.clone()));
    }

    /// Those who wait for a connection to the same endpoint.
    pub(in crate::connect) fn counts(&self) -> &Arc<Counts> {
        &self.of_endpoint
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.stands = None;
        self.of_cluster.count.leave();
        self.of_endpoint.open.leave();
        if let Some(kind) = self.pooled {
            self.of_endpoint.pooled[kind].leave();
        }
        Waiters::given_back();
        self.of_endpoint.made_room();
        self.of_cluster.closed.notify_waiters();
    }
}
