//! The connections to one endpoint: idle HTTP/1.1 ones on a stack, and the HTTP/2 connections that everybody shares
//! (`pool/shared.rs`), as many as there may be (`pool/counts.rs`).
//!
//! ```text
//! acquire ─▶ idle, or room on a shared one? ─▶ Lease ─▶ (answer ends) ─▶ idle again
//!         └▶ below the limit? ─▶ dial ─▶ Lease
//!         │                        └▶ (request gives up) ─▶ the next one's
//!         └▶ wait in line for one of the two
//! ```
//!
//! A connection belongs to the runtime that made it, whose tasks or whose reactor move it, and goes to requests of that one:
//! another may stand still, and what is sent over its connections with it. Only where there may be no further one do requests take what others have.
//!
//! Refuses to know what is sent over a connection.

mod counts;
mod shared;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use mesh_core::balance::Load;
use mesh_core::error::BoxError;
use mesh_core::id::SpiffeId;
use mesh_core::limit::Waiters;
use mesh_core::policy::Address;
use once_cell::race::OnceBox;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot::{self, error::RecvError};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, timeout_at};

use self::counts::Turn;
pub(crate) use self::counts::{Connections, Full, OpenGuard, PER_HOST, Room};
pub(super) use self::counts::{Counts, Stands};
pub(crate) use self::shared::SharedStream;
use self::shared::{MAX_SHUT, Next, SharedConnections, Slots, is_done, is_live};
use super::back_off::BackOff;
use super::{Connection, Dialer, IoStream, Needs, Peer, SharedConnection, SoleConnection, Want, worker};
use crate::body::Incoming;
use crate::error::Cause;

/// Idle HTTP/1.1 connections kept for one endpoint.
const MAX_IDLE: usize = 256;
/// Who had a connection within that is there as far as anybody knows. Many servers close what is idle after seconds, and callers of
/// few requests are to find them there all the same; longer than that nobody has looked.
const LATELY: Duration = Duration::from_secs(300);

/// The connections to one endpoint.
pub(crate) struct Pool {
    pub(super) dialer: Arc<Dialer>,
    pub(super) peer: Peer,
    // Made when there is something to be kept: most endpoints of a large cluster never see a connection. A pointer and no
    // more, for there are as many as endpoints.
    kept: OnceBox<Kept>,
    // Asked and told by those who dial.
    back_off: Mutex<BackOff>,
    shared: ArcSwapOption<SharedConnections>,
    pub(super) counts: Arc<Counts>,
}

/// What a pool keeps once there is a connection.
#[derive(Default)]
struct Kept {
    // The last one put back goes out first, being least likely to be closed by the peer at that moment: what a burst has
    // left over is found by nobody and ends.
    idle: Mutex<Vec<SoleConnection>>,
    // The one HTTP/2 connection being made on each runtime, for all there who need it. Asked only when no other has room.
    connecting: Mutex<Slots>,
    // Those whose requests have given up: the next one takes them over.
    orphans: Mutex<Vec<Dial>>,
}

/// A connection lent for one request.
pub(crate) enum Lease {
    /// HTTP/1.1: ours alone; to be [released](Pool::release) when the answer has ended.
    Sole(SoleConnection),
    /// HTTP/2: one stream.
    Shared(SharedStream),
}

impl Lease {
    /// Whether the connection was there before, so that it may have been closed meanwhile.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::Sole(sole) => sole.reused,
            Self::Shared(stream) => stream.reused,
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

/// Who waits in line, and since when.
type Queued<'p> = (Turn<'p>, Instant);

/// A connection being made, whoever waits for it.
struct Dial {
    runtime: Id,
    want: Want,
    task: Made,
}

/// What comes of one. Stopped when this is dropped.
struct Made {
    told: oneshot::Receiver<Result<Connection, Cause>>,
    _task: worker::Owned<()>,
}

impl Future for Made {
    type Output = Result<Result<Connection, Cause>, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.told.poll_unpin(cx)
    }
}

/// One that a request waits for. If the request gives up it goes to the next: a handshake that takes longer than one
/// try has time for would otherwise be begun again and again, and never be through.
struct Dialling<'p> {
    pool: &'p Pool,
    dial: Option<Dial>,
}

impl Dialling<'_> {
    async fn finish(mut self) -> Result<Connection, Cause> {
        let done = (&mut self.dial.as_mut().expect("it is taken here only").task).await;
        self.dial = None;
        dialled(done, &self.pool.peer.address)
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if let Some(dial) = self.dial.take() {
            self.pool.leave_behind(dial);
        }
    }
}

impl Pool {
    /// `load` is told when a connection stands after a time without one.
    pub(crate) fn new(dialer: Arc<Dialer>, peer: Peer, load: Arc<Load>) -> Self {
        Self {
            dialer,
            peer,
            kept: OnceBox::new(),
            back_off: Mutex::default(),
            shared: ArcSwapOption::empty(),
            counts: Counts::new(load),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What is known of the endpoint's load.
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.counts.load
    }

    /// Whether what needs this is sent over HTTP/2 whatever the peer speaks.
    pub(crate) fn insists_on_http2(&self, needs: Needs) -> bool {
        self.dialer.want(needs, &self.peer) == Want::Http2
    }

    /// Whether it keeps no connections any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.counts.closed.load(Ordering::Acquire)
    }

    fn kept(&self) -> &Kept {
        self.kept.get_or_init(Box::default)
    }

    /// Connections open to the endpoint.
    pub(crate) fn open(&self) -> u32 {
        self.counts.open()
    }

    /// Of them, HTTP/1.1 connections that wait for a request.
    pub(crate) fn idle(&self) -> usize {
        self.kept.get().map_or(0, |kept| kept.idle.lock().len())
    }

    /// Room for a connection that is not the pool's to keep. Nobody waits for one, so none goes over the limit, as with
    /// Envoy's `tcp_proxy`.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn room(&self, room: Room) -> Result<OpenGuard, Full> {
        OpenGuard::within(room, &self.dialer, &self.counts, None)
    }

    /// Connects for bytes of any kind, within a [`room`](Self::room); tells who the peer is, if it is of the mesh.
    pub(crate) async fn dial_raw(&self) -> Result<(IoStream, Option<SpiffeId>), Cause> {
        self.dialer.dial_raw(&self.peer).await
    }

    /// A connection that is there already and that nobody waits for, with the same words as [`acquire`](Self::acquire).
    pub(crate) fn at_hand(&self, needs: Needs, fresh: bool, now: Instant, room: Room) -> Option<Lease> {
        let want = self.dialer.want(needs, &self.peer);
        // An HTTP/2 connection that is gone has been discarded, so the newest is fresh.
        if (fresh && want != Want::Http2) || self.counts.is_awaited(want, room) {
            return None;
        }
        self.reuse(want, fresh, here(), now)
    }

    /// A connection to send one request on, at the time `now`. `fresh` passes over connections that carried one before.
    /// `waiting` is asked for leave by who finds none that is free, and its answer held until there is one; it is told how
    /// many of those who wait are as good as served. `at` is the
    /// limit that keeps the request waiting, while one does: who gives up can tell.
    pub(crate) async fn acquire<G>(
        &self,
        needs: Needs,
        fresh: bool,
        now: Instant,
        room: Room,
        waiting: impl FnOnce(u32) -> Result<G, Cause>,
        at: &mut Option<Full>,
    ) -> Result<Lease, Cause> {
        if let Some(lease) = self.at_hand(needs, fresh, now, room) {
            return Ok(lease);
        }
        // Boxed: what waits or dials is far larger than a request that finds a connection, and rare.
        Box::pin(async {
            let want = self.dialer.want(needs, &self.peer);
            let behind = self.counts.is_awaited(want, room);
            // Until it has a connection, whether that is being made or in use by others: as Envoy counts.
            let _pending = waiting(if behind { self.served(want, room) } else { 0 })?;
            let turn = if behind { Some(self.turn(want, room, at).await?) } else { None };
            match want {
                Want::Http2 => Ok(Lease::Shared(self.connect_shared(room, turn, at).await?)),
                Want::Http1 | Want::Either => self.connect_sole(want, fresh, room, turn, at).await,
            }
        })
        .await
    }

    /// Whether it has a connection here as far as can be seen: one in use for HTTP/2, or an idle one for HTTP/1.1.
    pub(crate) fn has_one(&self, needs: Needs) -> bool {
        let (want, here) = (self.dialer.want(needs, &self.peer), here());
        let has_idle =
            || self.kept.get().is_some_and(|kept| kept.idle.lock().iter().any(|sole| is_of(here, sole.runtime)));
        (want != Want::Http1 && self.has_live(here)) || (want != Want::Http2 && has_idle())
    }

    /// Has a connection before there is a request for it; one is enough. False: neither is there one, as far as can be seen here,
    /// nor room for it, for those that are in use or being made.
    ///
    /// # Errors
    /// There is none, and none can be made.
    pub(crate) async fn warm(&self, needs: Needs, room: Room) -> Result<bool, Cause> {
        if self.has_one(needs) || self.take_in() {
            return Ok(true);
        }
        let (want, here) = (self.dialer.want(needs, &self.peer), here());
        if want == Want::Http2 {
            let connecting = match self.next_shared(room)? {
                Next::Join(connecting) | Next::Begun(connecting) => connecting,
                Next::Stream(_) => return Ok(true),
                Next::Full => return Ok(false),
            };
            let result = connecting.await;
            result.as_ref().err().iter().for_each(|cause| self.tell(Some(cause)));
            // Unless a request has done so.
            self.tidy(&mut self.kept().connecting.lock());
            return result.map(|_| true);
        }
        let Ok(open) = OpenGuard::within(room, &self.dialer, &self.counts, Some(want)) else { return Ok(false) };
        self.leave(room)?;
        match self.made(self.dial(want, open)).await? {
            Connection::Sole(sole) => self.keep(sole, Instant::now()),
            Connection::Shared(_) if self.has_live(here) => {}
            Connection::Shared(shared) => self.share(&shared),
        }
        Ok(true)
    }

    /// Puts an HTTP/1.1 connection back whose answer has ended.
    pub(crate) fn release(&self, mut connection: SoleConnection, answer: Incoming, now: Instant) {
        if connection.take_back(answer) {
            self.keep(connection, now);
        }
    }

    /// Puts an HTTP/1.1 connection where requests look for it.
    fn keep(&self, mut connection: SoleConnection, now: Instant) {
        if self.is_closed() || self.is_worn(&connection) {
            return;
        }
        connection.idle_since = now;
        let excess = {
            let mut idle = self.kept().idle.lock();
            // Over the bound it is dropped, which closes it.
            if idle.len() < MAX_IDLE {
                idle.push(connection);
                None
            } else {
                Some(connection)
            }
        };
        drop(excess);
        self.counts.made_room();
        if self.is_closed() {
            // Closed in between: nobody else would look there again.
            self.drop_idle();
        }
    }

    /// Closes what has been idle or alive for too long. The time `now`, also by the load's clock.
    pub(crate) fn reap(&self, now: Instant, by_load: Duration) {
        if let Some(kept) = self.kept.get() {
            let is_over = |idle: &mut SoleConnection| {
                let over = is_stale(idle, now) || !idle.is_quiet();
                // What the next request makes anew is small, and there may be many.
                idle.shrink();
                over
            };
            let _dropped_without_the_lock: Vec<_> = kept.idle.lock().extract_if(.., is_over).collect();
            self.tidy(&mut kept.connecting.lock());
            self.take_in();
        }
        self.keep_shared(|shared| !shared.is_closed() && !is_done(shared, now));
        if self.counts.left_for(by_load) >= LATELY {
            self.load().unconnected();
        }
    }

    /// Closes idle connections now and the others when their requests have ended.
    pub(crate) fn close(&self) {
        self.counts.closed.store(true, Ordering::Release);
        self.drop_idle();
        self.shared.store(None);
        if let Some(kept) = self.kept.get() {
            self.tidy(&mut kept.connecting.lock());
            let orphans = std::mem::take(&mut *kept.orphans.lock());
            drop(orphans);
        }
    }

    /// How many of those who wait have something left to them, and have merely not run since.
    fn served(&self, want: Want, room: Room) -> u32 {
        let idle = if want == Want::Http2 { 0 } else { u32::try_from(self.idle()).unwrap_or(u32::MAX) };
        let streams = if want == Want::Http1 { 0 } else { self.free_streams() };
        idle.saturating_add(streams).min(self.counts.waiting(want, room))
    }

    fn drop_idle(&self) {
        let idle = self.kept.get().map(|kept| std::mem::take(&mut *kept.idle.lock()));
        drop(idle);
    }

    /// A live connection that is there already; `None` = whoever drives it.
    fn reuse(&self, want: Want, newest: bool, runtime: Option<Id>, now: Instant) -> Option<Lease> {
        if want != Want::Http1
            && let Some(stream) = self.reuse_shared(newest, runtime)
        {
            return Some(Lease::Shared(stream));
        }
        if want == Want::Http2 {
            return None;
        }
        loop {
            let mut connection = {
                let mut idle = self.kept.get()?.idle.lock();
                let last = idle.iter().rposition(|sole| is_of(runtime, sole.runtime))?;
                idle.remove(last)
            };
            // What was closed meanwhile is no connection any more, nor one on which something was said that nobody asked for.
            if !is_stale(&connection, now) && connection.is_quiet() {
                connection.served += 1;
                connection.reused = true;
                return Some(Lease::Sole(connection));
            }
        }
    }

    async fn connect_sole<'p>(
        &'p self,
        want: Want,
        fresh: bool,
        room: Room,
        mut turn: Option<Queued<'p>>,
        at: &mut Option<Full>,
    ) -> Result<Lease, Cause> {
        let here = here();
        let dial = loop {
            // Who comes from the way of those who wait for nothing has looked for the others. One that is to be fresh is
            // made, unless there may be none.
            if (self.take_in() || turn.is_some())
                && !fresh
                && let Some(lease) = self.reuse(want, false, here, Instant::now())
            {
                return Ok(lease);
            }
            if let Some(dial) = self.orphan(want, here) {
                break dial;
            }
            if let Some(open) = self.further(want, room) {
                self.leave(room)?;
                break self.dial(want, open);
            }
            // There may be no further one: whoever drives it.
            if turn.is_some()
                && let Some(lease) = self.reuse(want, false, None, Instant::now())
            {
                return Ok(lease);
            }
            // First counted among those who wait, then a look, then the wait: nothing that happens is missed.
            match &mut turn {
                None => turn = Some(self.turn(want, room, at).await?),
                Some(turn) => self.wait(room, turn).await?,
            }
        };
        // What comes now is the endpoint's time, and the next one's turn.
        *at = None;
        drop(turn);
        match self.made(dial).await? {
            Connection::Sole(mut sole) => {
                sole.served += 1;
                Ok(Lease::Sole(sole))
            }
            Connection::Shared(shared) => {
                // Before the peer's protocol was known several were begun: one is enough.
                if let Some(stream) = self.reuse_shared(false, here) {
                    return Ok(Lease::Shared(stream));
                }
                // Before others see it.
                let stream = self.enter(&shared);
                self.share(&shared);
                stream.map(Lease::Shared).ok_or_else(|| {
                    let failure = self.takes_no_stream();
                    self.tell(Some(&failure));
                    failure
                })
            }
        }
    }

    /// A dial whose request has given up.
    fn leave_behind(&self, dial: Dial) {
        if self.is_closed() {
            return;
        }
        self.kept().orphans.lock().push(dial);
        self.counts.made_room();
        if self.is_closed() {
            drop(std::mem::take(&mut *self.kept().orphans.lock()));
        }
    }

    /// The one of them that was begun first, of those that serve and that this runtime drives.
    fn orphan(&self, want: Want, runtime: Option<Id>) -> Option<Dial> {
        let mut orphans = self.kept.get()?.orphans.lock();
        let first = orphans.iter().position(|dial| dial.want == want && is_of(runtime, dial.runtime))?;
        Some(orphans.remove(first))
    }

    /// What a dial gives to who waits for it.
    async fn made(&self, dial: Dial) -> Result<Connection, Cause> {
        let dialled = Dialling { pool: self, dial: Some(dial) }.finish().await;
        self.tell(dialled.as_ref().err());
        dialled
    }

    /// Leave to connect.
    ///
    /// # Errors
    /// That failed a moment ago.
    fn leave(&self, room: Room) -> Result<(), Cause> {
        if room.insists {
            Ok(())
        } else {
            self.back_off.lock().leave(&self.peer.address, Instant::now(), &self.dialer.random)
        }
    }

    /// The peer has refused a connection that had come about.
    pub(crate) fn refused(&self, cause: &Cause) {
        self.tell(Some(cause));
    }

    /// Remembers what came of a dial that somebody waited for.
    fn tell(&self, failure: Option<&Cause>) {
        match failure {
            // Who speaks another protocol than was asked for is there.
            None | Some(Cause::UnsupportedAction(_)) => self.back_off.lock().worked(),
            Some(cause) => self.back_off.lock().failed(cause, Instant::now(), &self.dialer.random),
        }
    }

    /// Puts those that are through where requests look for them, and forgets those that failed: that is nobody's
    /// failure. Whether there was one to put.
    fn take_in(&self) -> bool {
        let Some(kept) = self.kept.get() else { return false };
        let mut done = Vec::new();
        kept.orphans.lock().retain_mut(|dial| match unconstrained(&mut dial.task).now_or_never() {
            Some(made) => {
                done.push(made);
                false
            }
            None => true,
        });
        let mut any = false;
        for connection in done.into_iter().filter_map(|made| made.ok()?.ok()) {
            any = true;
            self.tell(None);
            match connection {
                Connection::Sole(sole) => self.keep(sole, Instant::now()),
                Connection::Shared(shared) => self.share(&shared),
            }
        }
        any
    }

    /// Stands in line until its turn comes; tells `at` which limit that is for.
    ///
    /// # Errors
    /// That takes longer than one may wait.
    async fn turn(&self, want: Want, room: Room, at: &mut Option<Full>) -> Result<Queued<'_>, Cause> {
        *at = Some(OpenGuard::full(room, &self.dialer));
        let since = Instant::now();
        Ok((self.in_time(room, since, self.counts.turn(want, room, &self.dialer.open)).await?, since))
    }

    /// Waits for anything to change. What another runtime is connecting is a change once it is through.
    ///
    /// # Errors
    /// That takes longer than one may wait.
    async fn wait(&self, room: Room, (turn, since): &mut Queued<'_>) -> Result<(), Cause> {
        self.in_time(room, *since, turn.changed()).await
    }

    async fn in_time<T>(&self, room: Room, since: Instant, wait: impl Future<Output = T>) -> Result<T, Cause> {
        let Some((after, until)) = room.patience.and_then(|after| Some((after, since.checked_add(after)?))) else {
            return Ok(wait.await);
        };
        let late = || Cause::QueueTimeout { address: self.peer.address.clone(), after };
        if after.is_zero() {
            // Timers are not that exact: who may not wait would be the first in line for a moment.
            return Err(late());
        }
        timeout_at(until, wait).await.map_err(|_| late())
    }

    /// Room for one more connection.
    fn further(&self, want: Want, room: Room) -> Option<OpenGuard> {
        let shut = |connection: &&Arc<SharedConnection>| is_live(connection) && connection.is_shut();
        let shut = self.shared.load().as_deref().map_or(0, |all| all.iter().filter(shut).count());
        if shut < MAX_SHUT { OpenGuard::within(room, &self.dialer, &self.counts, Some(want)).ok() } else { None }
    }

    /// Begins to connect, by a task of its own: who waits for it may give up. That it is through is told to those who stand
    /// in line as well: it may be theirs by then.
    fn dial(&self, want: Want, open: OpenGuard) -> Dial {
        let (dialer, peer, here) = (self.dialer.clone(), self.peer.clone(), Handle::current());
        let (counts, (tell, told)) = (self.counts.clone(), oneshot::channel());
        let task = worker::spawn(&here, async move {
            // Nobody hears it: the endpoint is gone.
            let _ = tell.send(dialer.dial(&peer, want, open).await);
            Waiters::given_back();
            counts.made_room();
        });
        Dial { runtime: here.id(), want, task: Made { told, _task: task } }
    }

    fn is_worn(&self, connection: &SoleConnection) -> bool {
        let most = self.dialer.options().max_requests_per_connection;
        most.is_some_and(|most| connection.served >= most) || !connection.is_trusted()
    }
}

/// The runtime of the request.
fn here() -> Option<Id> {
    Handle::try_current().ok().map(|here| here.id())
}

/// Whether what a runtime drives is for those of `runtime`; `None` = of whichever.
fn is_of(runtime: Option<Id>, driver: Id) -> bool {
    runtime.is_none_or(|runtime| runtime == driver)
}

/// What came of a dial.
fn dialled(done: <Made as Future>::Output, address: &Address) -> Result<Connection, Cause> {
    done.unwrap_or_else(|stopped| Err(failed(address, stopped)))
}

fn failed(address: &Address, why: impl Into<BoxError>) -> Cause {
    Cause::ConnectFailed { address: address.clone(), source: Arc::new(std::io::Error::other(why)) }
}

/// Whether it was idle or alive for too long.
fn is_stale(connection: &SoleConnection, now: Instant) -> bool {
    connection.life.is_over(connection.idle_since, now) || !connection.is_trusted()
}
