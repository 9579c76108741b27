//! The connections to one endpoint: idle HTTP/1.1 ones on a stack, and the HTTP/2 connections that everybody shares: one,
//! and further ones while it has no room for another stream.
//!
//! ```text
//! acquire ─▶ idle, or room on a shared one? ─▶ Lease ─▶ (answer ends) ─▶ idle again
//!         └▶ below the limit? ─▶ dial ─▶ Lease
//!         │                        └▶ (request gives up) ─▶ the next one's
//!         └▶ wait for one of the two
//! ```
//!
//! Refuses to know what is sent over a connection.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use mesh_core::error::BoxError;
use mesh_core::id::SpiffeId;
use mesh_core::limit::Count;
use mesh_core::policy::Address;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinError;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, timeout_at};

use super::back_off::BackOff;
use super::upload::Upload;
use super::{Connection, Dialer, IoStream, Peer, SharedConnection, SoleConnection, Want, worker};
use crate::body::Outgoing;
use crate::error::Cause;

/// Idle HTTP/1.1 connections kept for one endpoint.
const MAX_IDLE: usize = 256;
/// HTTP/2 connections to one endpoint that take no request any more; with so many of them no further one is made.
const MAX_SHUT: usize = 8;

/// The connections to one endpoint.
pub(crate) struct Pool {
    pub(super) dialer: Arc<Dialer>,
    pub(super) peer: Peer,
    // Made when there is something to be kept: most endpoints of a large cluster never see a connection.
    kept: OnceLock<Box<Kept>>,
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
    // The one HTTP/2 connection being made, for all who need it. Asked only when no other has room.
    connecting: Mutex<Option<Connecting>>,
    // Those whose requests have given up: the next one takes them over.
    orphans: Mutex<Vec<Dial>>,
}

/// How many connections there may be. None = any number.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// To all endpoints of the cluster; each may have one whatever this is, as in Envoy.
    pub(crate) of_cluster: Option<u32>,
    /// To one endpoint.
    pub(crate) of_endpoint: Option<u32>,
    /// Longest wait for one that is in use. None = until the request's own end.
    pub(crate) patience: Option<Duration>,
    /// Connects also where that failed a moment ago.
    pub(crate) insists: bool,
}

impl Room {
    /// Any number, and at any time.
    pub(crate) const ANY: Self = Self { of_cluster: None, of_endpoint: None, patience: None, insists: true };
}

/// Name of the limit of one endpoint.
pub(crate) const PER_HOST: &str = "max_connections_per_host";

/// The HTTP/2 connections to an endpoint, the newest last.
type SharedConnections = SmallVec<[Arc<SharedConnection>; 2]>;

/// A connection lent for one request.
pub(crate) enum Lease {
    /// HTTP/1.1: ours alone; to be [released](Pool::release) when the answer has ended.
    Sole(SoleConnection),
    /// HTTP/2: one stream.
    Shared(SharedStream),
}

/// One stream of an HTTP/2 connection, held until the answer's end: the connection stays for it.
pub(crate) struct SharedStream {
    pub(crate) connection: Arc<SharedConnection>,
    reused: bool,
    // Of what sends the request body, where that takes time.
    upload: Option<worker::Alive>,
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

impl SharedStream {
    /// Sends the one request of this stream. Its body goes out while the stream is held.
    pub(crate) fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>> + use<> {
        let request = request.map(|body| {
            let (body, alive) = Upload::new(body, &self.connection.tasks);
            self.upload = alive;
            body
        });
        self.connection.sender().try_send_request(request)
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.connection.leave();
    }
}

type Connecting = Shared<BoxFuture<'static, Result<Arc<SharedConnection>, Cause>>>;

/// A connection being made, whoever waits for it.
type Dial = worker::Owned<Result<Connection, Cause>>;

/// One that a request waits for. If the request gives up it goes to the next: a handshake that takes longer than one
/// try has time for would otherwise be begun again and again, and never be through.
struct Dialling<'p> {
    pool: &'p Pool,
    dial: Option<Dial>,
}

impl Dialling<'_> {
    async fn finish(mut self) -> Result<Connection, Cause> {
        let done = self.dial.as_mut().expect("it is taken here only").await;
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

/// What the connections to one endpoint tell those who wait for one.
#[derive(Default)]
pub(super) struct Counts {
    open: Count,
    // Of them, those that the pool made: a raw connection is nobody else's to use.
    pooled: Count,
    waiting: AtomicU32,
    // The endpoint is gone.
    closed: AtomicBool,
    changed: Notify,
    // Of the same ones that `open` counts, to end them with the endpoint.
    pub(super) lines: worker::Lines,
}

impl Counts {
    /// A stream has ended, or the peer takes more of them. Asked before told: most of the time nobody waits. Whoever
    /// waits is counted before it looks a last time, so one of the two sees the other.
    pub(super) fn made_room(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_one();
        }
    }

    fn wait(&self) -> WaitingHere<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        WaitingHere(self)
    }
}

/// One who waits. Whoever was woken wakes the next, who finds out for himself whether there is something for him:
/// two changes at once leave one notification.
struct WaitingHere<'c>(&'c Counts);

impl Drop for WaitingHere<'_> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::SeqCst) > 1 {
            self.0.changed.notify_one();
        }
    }
}

/// One open connection, counted until its task has ended.
pub(crate) struct OpenGuard {
    of_cluster: Arc<Count>,
    of_endpoint: Arc<Counts>,
    pooled: bool,
}

impl OpenGuard {
    /// A connection of the pool, whatever the limits.
    fn pooled(dialer: &Dialer, counts: &Arc<Counts>) -> Self {
        counts.pooled.enter();
        Self::counted(dialer, counts, true)
    }

    fn counted(dialer: &Dialer, counts: &Arc<Counts>, pooled: bool) -> Self {
        dialer.open.enter();
        counts.open.enter();
        Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone(), pooled }
    }

    /// One more within the limits: a connection of the pool, which may have one whatever they are, as in Envoy, or a raw one.
    /// Who is refused at the endpoint never counts with the cluster: others would take that for full, and nobody tells them.
    ///
    /// # Errors
    /// The limit that is reached, and its name.
    fn within(room: Room, dialer: &Dialer, counts: &Arc<Counts>, pooled: bool) -> Result<Self, (&'static str, u32)> {
        if pooled && counts.pooled.enter_below(1) {
            return Ok(Self::counted(dialer, counts, true));
        }
        let full = Err(("max_connections", room.of_cluster.unwrap_or(u32::MAX)));
        // Looked at first: those of the endpoint are told only of a place that went in this very moment.
        if room.of_cluster.is_some_and(|most| dialer.open.get() >= most) {
            return full;
        }
        if !counts.open.enter_within(room.of_endpoint) {
            return Err((PER_HOST, room.of_endpoint.unwrap_or(u32::MAX)));
        }
        if !dialer.open.enter_within(room.of_cluster) {
            counts.open.leave();
            counts.changed.notify_one();
            return full;
        }
        if pooled {
            counts.pooled.enter();
        }
        Ok(Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone(), pooled })
    }

    /// Those who wait for a connection to the same endpoint.
    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.of_endpoint
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.of_cluster.leave();
        self.of_endpoint.open.leave();
        if self.pooled {
            self.of_endpoint.pooled.leave();
        }
        self.of_endpoint.changed.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(dialer: Arc<Dialer>, peer: Peer) -> Self {
        Self {
            dialer,
            peer,
            kept: OnceLock::new(),
            back_off: Mutex::default(),
            shared: ArcSwapOption::empty(),
            counts: Arc::default(),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
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
        self.counts.open.get()
    }

    /// Of them, HTTP/1.1 connections that wait for a request.
    pub(crate) fn idle(&self) -> usize {
        self.kept.get().map_or(0, |kept| kept.idle.lock().len())
    }

    /// Room for a connection that is not the pool's to keep. Nobody waits for one, so none goes over the limit, as with
    /// Envoy's `tcp_proxy`.
    ///
    /// # Errors
    /// The limit that is reached, and its name.
    pub(crate) fn room(&self, room: Room) -> Result<OpenGuard, (&'static str, u32)> {
        OpenGuard::within(room, &self.dialer, &self.counts, false)
    }

    /// Connects for bytes of any kind, within a [`room`](Self::room); tells who the peer is, if it is of the mesh.
    pub(crate) async fn dial_raw(&self) -> Result<(IoStream, Option<SpiffeId>), Cause> {
        self.dialer.dial_raw(&self.peer).await
    }

    /// A connection that is there already, with the same words as [`acquire`](Self::acquire).
    pub(crate) async fn at_hand(&self, grpc: bool, fresh: bool, now: Instant) -> Option<Lease> {
        let want = self.dialer.want(grpc, &self.peer);
        // An HTTP/2 connection that is gone has been discarded, so the newest is fresh.
        if fresh && want != Want::Http2 {
            return None;
        }
        self.reuse(want, fresh, now).await
    }

    /// A connection to send one request on, at the time `now`. `fresh` passes over connections that carried one before.
    /// `waiting` is asked for leave by who finds none that is free, and its answer held until there is one.
    pub(crate) async fn acquire<G>(
        &self,
        grpc: bool,
        fresh: bool,
        now: Instant,
        room: Room,
        waiting: impl Fn() -> Result<G, Cause>,
    ) -> Result<Lease, Cause> {
        if let Some(lease) = self.at_hand(grpc, fresh, now).await {
            return Ok(lease);
        }
        let want = self.dialer.want(grpc, &self.peer);
        // Boxed: what waits or dials is far larger than a request that finds a connection, and rare.
        match want {
            Want::Http2 => Ok(Lease::Shared(Box::pin(self.connect_shared(room, waiting)).await?)),
            Want::Http1 | Want::Either => Box::pin(self.connect_sole(want, room, waiting)).await,
        }
    }

    /// Has a connection before there is a request for it; one is enough.
    ///
    /// # Errors
    /// There is none, and none can be made.
    pub(crate) async fn warm(&self, grpc: bool, room: Room) -> Result<(), Cause> {
        let want = self.dialer.want(grpc, &self.peer);
        let there = (want != Want::Http1 && self.has_live()) || (want != Want::Http2 && self.idle() > 0);
        if there || self.take_in() {
            return Ok(());
        }
        if want == Want::Http2 {
            if let Next::Join(connecting) | Next::Begun(connecting) = self.next_shared(room)? {
                let result = connecting.await;
                result.as_ref().err().iter().for_each(|cause| self.tell(Some(cause)));
                // Unless a request has done so.
                self.tidy(&mut self.kept().connecting.lock());
                return result.map(drop);
            }
            return Ok(());
        }
        // Full: others are in use.
        let Ok(open) = OpenGuard::within(room, &self.dialer, &self.counts, true) else { return Ok(()) };
        self.leave(room)?;
        match self.made(self.dial(want, open)).await? {
            Connection::Sole(sole) => self.release(sole, Instant::now()),
            Connection::Shared(_) if self.has_live() => {}
            Connection::Shared(shared) => self.share(&shared),
        }
        Ok(())
    }

    /// Puts an HTTP/1.1 connection back whose answer has ended.
    pub(crate) fn release(&self, mut connection: SoleConnection, now: Instant) {
        if self.is_closed() || connection.sender.is_closed() || self.is_worn(&connection) {
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
        self.counts.changed.notify_one();
        if self.is_closed() {
            // Closed in between: nobody else would look there again.
            self.drop_idle();
        }
    }

    /// Forgets an HTTP/2 connection that is gone.
    pub(crate) fn discard(&self, gone: &Arc<SharedConnection>) {
        self.keep_shared(|connection| !Arc::ptr_eq(connection, gone));
    }

    /// Closes what has been idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant) {
        if let Some(kept) = self.kept.get() {
            let is_over = |idle: &mut SoleConnection| idle.sender.is_closed() || is_stale(idle, now);
            let _dropped_without_the_lock: Vec<_> = kept.idle.lock().extract_if(.., is_over).collect();
            self.tidy(&mut kept.connecting.lock());
            self.take_in();
        }
        self.keep_shared(|shared| !shared.is_closed() && !is_done(shared, now));
    }

    /// Closes idle connections now and the others when their requests have ended, or after `limit` if there is one:
    /// the endpoint is gone.
    pub(crate) fn close(&self, limit: Option<Duration>) {
        self.counts.closed.store(true, Ordering::Release);
        if let Some(limit) = limit {
            self.counts.lines.end_within(limit);
        }
        self.drop_idle();
        self.shared.store(None);
        if let Some(kept) = self.kept.get() {
            self.tidy(&mut kept.connecting.lock());
            let orphans = std::mem::take(&mut *kept.orphans.lock());
            drop(orphans);
        }
    }

    fn drop_idle(&self) {
        let idle = self.kept.get().map(|kept| std::mem::take(&mut *kept.idle.lock()));
        drop(idle);
    }

    /// A live connection that is there already.
    async fn reuse(&self, want: Want, newest: bool, now: Instant) -> Option<Lease> {
        if want != Want::Http1
            && let Some(stream) = self.reuse_shared(newest)
        {
            return Some(Lease::Shared(stream));
        }
        if want == Want::Http2 {
            return None;
        }
        loop {
            let popped = self.kept.get()?.idle.lock().pop();
            let mut connection = popped?;
            if connection.sender.is_closed() || is_stale(&connection, now) {
                continue;
            }
            // Both the request and the answer are through, so its task is about to say one of two
            // things: ready, or closed by the peer. That needs no timer.
            if connection.sender.ready().await.is_ok() {
                connection.served += 1;
                connection.reused = true;
                return Some(Lease::Sole(connection));
            }
        }
    }

    /// A stream on the first HTTP/2 connection that has room for it.
    fn reuse_shared(&self, newest: bool) -> Option<SharedStream> {
        let all = self.shared.load();
        let all = all.as_deref()?;
        let first = if newest { all.len() - 1 } else { 0 };
        all[first..].iter().find_map(|connection| if is_live(connection) { self.enter(connection) } else { None })
    }

    /// A stream on this connection, which is retired with its last request.
    fn enter(&self, connection: &Arc<SharedConnection>) -> Option<SharedStream> {
        let served = connection.enter()?;
        if connection.is_spent() {
            // Requests on their way over it end in peace; the next one does not find it.
            self.discard(connection);
        }
        Some(SharedStream { connection: connection.clone(), reused: served > 1, upload: None })
    }

    async fn connect_sole<G>(
        &self,
        want: Want,
        room: Room,
        waiting: impl Fn() -> Result<G, Cause>,
    ) -> Result<Lease, Cause> {
        // Until it has a connection, whether that is being made or in use by others: as Envoy counts.
        let _pending = waiting()?;
        let mut queued: Option<(WaitingHere<'_>, Instant)> = None;
        let dial = loop {
            if self.take_in()
                && let Some(lease) = self.reuse(want, false, Instant::now()).await
            {
                return Ok(lease);
            }
            if let Some(dial) = self.orphan() {
                break dial;
            }
            if let Some(open) = self.further(room) {
                self.leave(room)?;
                break self.dial(want, open);
            }
            // First counted among those who wait, then a look, then the wait: nothing that happens is missed.
            match &queued {
                None => queued = Some((self.counts.wait(), Instant::now())),
                Some((_, since)) => self.wait(room, *since).await?,
            }
            if let Some(lease) = self.reuse(want, false, Instant::now()).await {
                return Ok(lease);
            }
        };
        drop(queued);
        match self.made(dial).await? {
            Connection::Sole(mut sole) => {
                sole.served += 1;
                Ok(Lease::Sole(sole))
            }
            Connection::Shared(shared) => {
                // Before the peer's protocol was known several were begun: one is enough.
                if let Some(stream) = self.reuse_shared(false) {
                    return Ok(Lease::Shared(stream));
                }
                // Before others see it.
                let stream = self.enter(&shared);
                self.share(&shared);
                stream.map(Lease::Shared).ok_or_else(|| self.takes_no_stream())
            }
        }
    }

    /// A dial whose request has given up.
    fn leave_behind(&self, dial: Dial) {
        if self.is_closed() {
            return;
        }
        self.kept().orphans.lock().push(dial);
        self.counts.changed.notify_one();
        if self.is_closed() {
            drop(std::mem::take(&mut *self.kept().orphans.lock()));
        }
    }

    /// The one of them that was begun first.
    fn orphan(&self) -> Option<Dial> {
        let mut orphans = self.kept.get()?.orphans.lock();
        (!orphans.is_empty()).then(|| orphans.remove(0))
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

    /// Remembers what came of a dial that somebody waited for.
    fn tell(&self, failure: Option<&Cause>) {
        match failure {
            None => self.back_off.lock().worked(),
            Some(cause) => self.back_off.lock().failed(cause, Instant::now(), &self.dialer.random),
        }
    }

    /// Puts those that are through where requests look for them, and forgets those that failed: that is nobody's
    /// failure. Whether there was one to put.
    fn take_in(&self) -> bool {
        let Some(kept) = self.kept.get() else { return false };
        let done: Vec<_> = kept.orphans.lock().extract_if(.., |dial| dial.is_finished()).collect();
        let mut any = false;
        for connection in done.into_iter().filter_map(|dial| unconstrained(dial).now_or_never()?.ok()?.ok()) {
            any = true;
            self.tell(None);
            match connection {
                Connection::Sole(sole) => self.release(sole, Instant::now()),
                Connection::Shared(shared) => self.share(&shared),
            }
        }
        any
    }

    /// Waits for anything to change at the endpoint, having waited `since` then.
    ///
    /// # Errors
    /// That takes longer than one may wait.
    async fn wait(&self, room: Room, since: Instant) -> Result<(), Cause> {
        let changed = self.counts.changed.notified();
        let Some((after, until)) = room.patience.and_then(|after| Some((after, since.checked_add(after)?))) else {
            changed.await;
            return Ok(());
        };
        let late = |_| Cause::QueueTimeout { address: self.peer.address.clone(), after };
        timeout_at(until, changed).await.map_err(late)
    }

    fn share(&self, connection: &Arc<SharedConnection>) {
        self.shared.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            all.retain(|other| !other.is_closed());
            all.push(connection.clone());
            Some(Arc::new(all))
        });
        if self.is_closed() {
            self.shared.store(None);
        }
    }

    /// Forgets the HTTP/2 connections that are not to be kept.
    fn keep_shared(&self, keep: impl Fn(&Arc<SharedConnection>) -> bool) {
        if self.shared.load().as_deref().is_none_or(|all| all.iter().all(&keep)) {
            return;
        }
        self.shared.rcu(|all| {
            let mut kept = all.as_deref().cloned().unwrap_or_default();
            kept.retain(|connection| keep(connection));
            (!kept.is_empty()).then(|| Arc::new(kept))
        });
    }

    /// A stream on an HTTP/2 connection that has room, is being made, or is begun for it. Connecting goes on even if
    /// all who wait give up: the next request will want it.
    async fn connect_shared<G>(
        &self,
        room: Room,
        waiting: impl Fn() -> Result<G, Cause>,
    ) -> Result<SharedStream, Cause> {
        // As over HTTP/1.1.
        let _pending = waiting()?;
        let mut queued: Option<(WaitingHere<'_>, Instant)> = None;
        let mut in_vain = 0;
        loop {
            let connecting = match self.next_shared(room)? {
                Next::Stream(stream) => return Ok(stream),
                Next::Join(connecting) | Next::Begun(connecting) => connecting,
                Next::Full => {
                    match &queued {
                        // Counted among those who wait; then another look, so that nothing that happens is missed.
                        None => queued = Some((self.counts.wait(), Instant::now())),
                        Some((_, since)) => self.wait(room, *since).await?,
                    }
                    continue;
                }
            };
            let result = connecting.clone().await;
            let mut slot = self.kept().connecting.lock();
            let first = slot.take_if(|other| other.ptr_eq(&connecting)).is_some();
            // The first of those who waited puts it in place, having taken a place on it: whatever its room is, it
            // serves one.
            let stream = result.as_ref().ok().and_then(|shared| self.enter(shared));
            let failure = match &result {
                Err(cause) => Some(cause.clone()),
                // Shut before it took one. Other connections may do better; these end as they begin.
                Ok(shared) if first && stream.is_none() => {
                    in_vain += 1;
                    (shared.is_closed() || in_vain > MAX_SHUT).then(|| self.takes_no_stream())
                }
                Ok(_) => None,
            };
            if first {
                self.tell(failure.as_ref());
                result.iter().for_each(|shared| self.share(shared));
            }
            drop(slot);
            match (stream, failure) {
                (Some(stream), _) => return Ok(stream),
                (None, Some(failure)) => return Err(failure),
                (None, None) => {}
            }
        }
    }

    /// What there is for a request that wants HTTP/2.
    ///
    /// # Errors
    /// Nothing, and connecting failed a moment ago.
    fn next_shared(&self, room: Room) -> Result<Next, Cause> {
        let mut slot = self.kept().connecting.lock();
        self.tidy(&mut slot);
        // One that came while we waited for the lock.
        if let Some(stream) = self.reuse_shared(false) {
            return Ok(Next::Stream(stream));
        }
        if let Some(connecting) = &*slot {
            return Ok(Next::Join(connecting.clone()));
        }
        let open = self.further(room);
        // Connections that are on their way out are no reason to wait for them.
        let open = open.or_else(|| (!self.has_live()).then(|| OpenGuard::pooled(&self.dialer, &self.counts)));
        let Some(open) = open else { return Ok(Next::Full) };
        self.leave(room)?;
        Ok(Next::Begun(slot.insert(self.connect(open)).clone()))
    }

    /// Room for one more connection.
    fn further(&self, room: Room) -> Option<OpenGuard> {
        let shut = |connection: &&Arc<SharedConnection>| is_live(connection) && connection.is_shut();
        let shut = self.shared.load().as_deref().map_or(0, |all| all.iter().filter(shut).count());
        if shut < MAX_SHUT { OpenGuard::within(room, &self.dialer, &self.counts, true).ok() } else { None }
    }

    fn has_live(&self) -> bool {
        self.shared.load().as_deref().is_some_and(|all| all.iter().any(is_live))
    }

    /// Looks after a connection that nobody waited for to its end: it is put in place, or forgotten with its failure,
    /// which the next request would take for its own.
    fn tidy(&self, slot: &mut Option<Connecting>) {
        if let Some(result) = slot.as_ref().and_then(|connecting| connecting.clone().now_or_never()) {
            *slot = None;
            if let Ok(shared) = result {
                self.tell(None);
                self.share(&shared);
            }
        }
    }

    fn takes_no_stream(&self) -> Cause {
        failed(&self.peer.address, "the new HTTP/2 connection takes no stream")
    }

    /// Begins to connect, by a task of its own: who waits for it may give up.
    fn dial(&self, want: Want, open: OpenGuard) -> Dial {
        let (dialer, peer) = (self.dialer.clone(), self.peer.clone());
        worker::spawn(&Handle::current(), async move { dialer.dial(&peer, want, open).await })
    }

    fn connect(&self, open: OpenGuard) -> Connecting {
        let address = self.peer.address.clone();
        let result = self.dial(Want::Http2, open).map(move |done| match dialled(done, &address)? {
            Connection::Shared(shared) => Ok(shared),
            Connection::Sole(_) => Err(failed(&address, "the peer does not speak HTTP/2")),
        });
        result.boxed().shared()
    }

    fn is_worn(&self, connection: &SoleConnection) -> bool {
        let most = self.dialer.options().max_requests_per_connection;
        most.is_some_and(|most| connection.served >= most) || !connection.is_trusted()
    }
}

/// What there is for a request that wants HTTP/2.
enum Next {
    /// Room on a connection.
    Stream(SharedStream),
    /// A connection that is being made for others.
    Join(Connecting),
    /// One that was begun for it.
    Begun(Connecting),
    /// Neither room nor leave for a further connection.
    Full,
}

/// What came of a dial.
fn dialled(done: Result<Result<Connection, Cause>, JoinError>, address: &Address) -> Result<Connection, Cause> {
    done.unwrap_or_else(|stopped| Err(failed(address, stopped)))
}

fn failed(address: &Address, why: impl Into<BoxError>) -> Cause {
    Cause::ConnectFailed { address: address.clone(), source: Arc::new(std::io::Error::other(why)) }
}

/// Whether requests may go over a connection.
fn is_live(connection: &Arc<SharedConnection>) -> bool {
    !connection.is_closed() && !connection.is_spent() && connection.is_trusted() && !connection.life.is_worn()
}

/// Whether it was idle or alive for too long.
fn is_stale(connection: &SoleConnection, now: Instant) -> bool {
    connection.life.is_over(connection.idle_since, now) || !connection.is_trusted()
}

fn is_done(shared: &SharedConnection, now: Instant) -> bool {
    shared.life.is_over(shared.quiet_since(now), now) || !shared.is_trusted()
}
