//! The connections to one endpoint: idle HTTP/1.1 ones in a queue without a lock, and the HTTP/2 connections
//! that everybody shares: one, and further ones while it has no room for another stream.
//!
//! ```text
//! acquire ─▶ idle, or room on a shared one? ─▶ Lease ─▶ (answer ends) ─▶ idle again
//!         └▶ below the limit? ─▶ dial ─▶ Lease
//!         └▶ wait for one of the two; for HTTP/2, inside the least busy connection
//! ```
//!
//! Refuses to know what is sent over a connection.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use crossbeam_queue::ArrayQueue;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use mesh_core::id::SpiffeId;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Connection, Dialer, IoStream, Peer, SharedConnection, SoleConnection, Want, worker};
use crate::error::Cause;

/// Idle HTTP/1.1 connections kept for one endpoint.
const MAX_IDLE: usize = 256;

/// The connections to one endpoint.
pub(crate) struct Pool {
    dialer: Arc<Dialer>,
    peer: Peer,
    max_connections: Option<u32>,
    // Made with the first connection that is put back: most endpoints of a large cluster never see one.
    // Boxed for the same reason: by itself a queue takes cache lines of its own.
    idle: OnceLock<Box<ArrayQueue<SoleConnection>>>,
    shared: ArcSwapOption<SharedConnections>,
    // The one HTTP/2 connection being made, for all who need it. Asked only when no other has room.
    connecting: Mutex<Option<Connecting>>,
    counts: Arc<Counts>,
    closed: AtomicBool,
}

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
}

impl Lease {
    /// Whether an earlier request went over the connection.
    pub(crate) fn is_reused(&self) -> bool {
        match self {
            Self::Sole(sole) => sole.served > 1,
            Self::Shared(stream) => stream.reused,
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.connection.leave();
    }
}

type Connecting = Shared<BoxFuture<'static, Result<Arc<SharedConnection>, Cause>>>;

#[derive(Default)]
struct Counts {
    open: AtomicU32,
    changed: Notify,
}

/// One open connection, counted until its task has ended.
pub(crate) struct OpenGuard {
    of_cluster: Arc<AtomicU32>,
    of_endpoint: Arc<Counts>,
}

impl OpenGuard {
    /// Whatever the limit.
    fn new(dialer: &Dialer, counts: &Arc<Counts>) -> Self {
        dialer.open.fetch_add(1, Ordering::Relaxed);
        counts.open.fetch_add(1, Ordering::Relaxed);
        Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone() }
    }

    /// Room for one more within the cluster's limit. As in Envoy every endpoint may have one connection
    /// whatever the limit.
    fn within(most: Option<u32>, dialer: &Dialer, counts: &Arc<Counts>) -> Option<Self> {
        // Counted first and looked at then, so that two at once cannot both take the last place.
        let others = dialer.open.fetch_add(1, Ordering::Relaxed);
        let others_here = counts.open.fetch_add(1, Ordering::Relaxed);
        if most.is_some_and(|most| others >= most) && others_here > 0 {
            dialer.open.fetch_sub(1, Ordering::Relaxed);
            counts.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { of_cluster: dialer.open.clone(), of_endpoint: counts.clone() })
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.of_cluster.fetch_sub(1, Ordering::Relaxed);
        self.of_endpoint.open.fetch_sub(1, Ordering::Relaxed);
        self.of_endpoint.changed.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(dialer: Arc<Dialer>, peer: Peer, max_connections: Option<u32>) -> Self {
        Self {
            dialer,
            peer,
            max_connections,
            idle: OnceLock::new(),
            shared: ArcSwapOption::empty(),
            connecting: Mutex::default(),
            counts: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether it keeps no connections any more.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Connections open to the endpoint.
    pub(crate) fn open(&self) -> u32 {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Of them, HTTP/1.1 connections that wait for a request.
    pub(crate) fn idle(&self) -> usize {
        self.idle.get().map_or(0, |idle| idle.len())
    }

    /// Room for a connection that is not the pool's to keep. Nobody waits for one, so none goes over the limit, as with
    /// Envoy's `tcp_proxy`.
    ///
    /// # Errors
    /// The limit, which is reached.
    pub(crate) fn room(&self) -> Result<OpenGuard, u32> {
        // Counted first and looked at then, so that two at once cannot both take the last place.
        let open = OpenGuard::new(&self.dialer, &self.counts);
        match self.max_connections {
            Some(most) if self.dialer.open() > most => Err(most),
            _ => Ok(open),
        }
    }

    /// Connects for bytes of any kind, within a [`room`](Self::room); tells who the peer is, if it is of the mesh.
    pub(crate) async fn dial_raw(&self) -> Result<(IoStream, Option<SpiffeId>), Cause> {
        self.dialer.dial_raw(&self.peer).await
    }

    /// A connection to send one request on. `fresh` passes over connections that carried one before.
    /// `waiting` is asked for leave before waiting for a connection, and its answer held meanwhile.
    pub(crate) async fn acquire<G>(
        &self,
        grpc: bool,
        fresh: bool,
        waiting: impl Fn() -> Result<G, Cause>,
    ) -> Result<Lease, Cause> {
        let want = self.dialer.want(grpc, &self.peer);
        // An HTTP/2 connection that is gone has been discarded, so the newest is fresh.
        if (!fresh || want == Want::Http2)
            && let Some(lease) = self.reuse(want, fresh).await
        {
            return Ok(lease);
        }
        match want {
            Want::Http2 => Ok(Lease::Shared(self.connect_shared().await?)),
            Want::Http1 | Want::Either => self.connect_sole(want, waiting).await,
        }
    }

    /// Puts an HTTP/1.1 connection back whose answer has ended.
    pub(crate) fn release(&self, mut connection: SoleConnection, now: Instant) {
        if self.closed.load(Ordering::Acquire) || connection.sender.is_closed() || self.is_worn(&connection) {
            return;
        }
        connection.idle_since = now;
        // Over the bound it is dropped, which closes it.
        let _ = self.idle.get_or_init(|| Box::new(ArrayQueue::new(MAX_IDLE))).push(connection);
        self.counts.changed.notify_one();
        if self.closed.load(Ordering::Acquire) {
            // Closed in between: nobody else would look into the queue again.
            self.drop_idle();
        }
    }

    /// Forgets an HTTP/2 connection that is gone.
    pub(crate) fn discard(&self, gone: &Arc<SharedConnection>) {
        self.keep_shared(|connection| !Arc::ptr_eq(connection, gone));
    }

    /// Closes what has been idle or alive for too long.
    pub(crate) fn reap(&self, now: Instant) {
        let idle = self.idle.get();
        for _ in 0..self.idle() {
            let Some((idle, connection)) = idle.and_then(|idle| Some((idle, idle.pop()?))) else { break };
            if !connection.sender.is_closed() && !self.is_stale(&connection) {
                let _ = idle.push(connection);
            }
        }
        self.keep_shared(|shared| !shared.is_closed() && !self.is_done(shared, now));
    }

    /// Closes idle connections now and the others when their requests have ended.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.drop_idle();
        self.shared.store(None);
    }

    fn drop_idle(&self) {
        while self.idle.get().and_then(|idle| idle.pop()).is_some() {}
    }

    /// A live connection that is there already.
    async fn reuse(&self, want: Want, newest: bool) -> Option<Lease> {
        if want != Want::Http1
            && let Some(stream) = self.reuse_shared(newest)
        {
            return Some(Lease::Shared(stream));
        }
        if want == Want::Http2 {
            return None;
        }
        let idle = self.idle.get()?;
        loop {
            let mut connection = idle.pop()?;
            if connection.sender.is_closed() || self.is_stale(&connection) {
                continue;
            }
            // Both the request and the answer are through, so its task is about to say one of two
            // things: ready, or closed by the peer. That needs no timer.
            if connection.sender.ready().await.is_ok() {
                connection.served += 1;
                return Some(Lease::Sole(connection));
            }
        }
    }

    /// A stream on the first HTTP/2 connection that has room for it.
    fn reuse_shared(&self, newest: bool) -> Option<SharedStream> {
        let all = self.shared.load();
        let all = all.as_deref()?;
        let first = if newest { all.len() - 1 } else { 0 };
        let found = all[first..].iter().find(|c| !c.is_closed() && !is_past(c.worn_at) && c.enter(false))?;
        Some(self.stream(found))
    }

    /// A stream on the least busy HTTP/2 connection, where it waits for room.
    fn crowd(&self) -> Option<SharedStream> {
        let all = self.shared.load();
        let live = all.as_deref()?.iter().filter(|c| !c.is_closed() && !is_past(c.worn_at));
        let found = live.min_by_key(|c| c.streams())?;
        found.enter(true);
        Some(self.stream(found))
    }

    /// Counts a request on a connection that has a place for it, and retires the connection with its last one.
    fn stream(&self, connection: &Arc<SharedConnection>) -> SharedStream {
        let served = connection.served.fetch_add(1, Ordering::Relaxed) + 1;
        if self.dialer.options().max_requests_per_connection.is_some_and(|most| served >= most) {
            // Requests on their way over it end in peace; the next one does not find it.
            self.discard(connection);
        }
        SharedStream { connection: connection.clone(), reused: served > 1 }
    }

    async fn connect_sole<G>(&self, want: Want, waiting: impl Fn() -> Result<G, Cause>) -> Result<Lease, Cause> {
        let open = loop {
            let changed = self.counts.changed.notified();
            if let Some(open) = OpenGuard::within(self.max_connections, &self.dialer, &self.counts) {
                break open;
            }
            let _leave = waiting()?;
            // A connection was put back or closed.
            changed.await;
            if let Some(lease) = self.reuse(want, false).await {
                if self.idle() > 0 {
                    // Two put back at once may have left one notification.
                    self.counts.changed.notify_one();
                }
                return Ok(lease);
            }
        };
        match self.dialer.dial(&self.peer, want, open).await? {
            Connection::Sole(mut sole) => {
                sole.served += 1;
                Ok(Lease::Sole(sole))
            }
            Connection::Shared(shared) => {
                shared.enter(true);
                self.share(&shared);
                Ok(Lease::Shared(self.stream(&shared)))
            }
        }
    }

    fn share(&self, connection: &Arc<SharedConnection>) {
        self.shared.rcu(|all| {
            let mut all = all.as_deref().cloned().unwrap_or_default();
            all.retain(|other| !other.is_closed());
            all.push(connection.clone());
            Some(Arc::new(all))
        });
        if self.closed.load(Ordering::Acquire) {
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

    /// A stream on the connection being made, or on one begun for it. Connecting goes on even if all who wait give
    /// up: the next request will want it.
    async fn connect_shared(&self) -> Result<SharedStream, Cause> {
        loop {
            let connecting = {
                let mut slot = self.connecting.lock();
                // One that came while we waited for the lock.
                if let Some(stream) = self.reuse_shared(false) {
                    return Ok(stream);
                }
                match &*slot {
                    Some(connecting) if connecting.peek().is_none() => connecting.clone(),
                    _ => match self.begin_shared() {
                        Some(begun) => slot.insert(begun).clone(),
                        None => match self.crowd() {
                            Some(stream) => return Ok(stream),
                            // As in Envoy every endpoint may have one connection whatever the limit.
                            None => slot.insert(self.connect(OpenGuard::new(&self.dialer, &self.counts))).clone(),
                        },
                    },
                }
            };
            let result = connecting.clone().await;
            {
                let mut slot = self.connecting.lock();
                // The first of those who waited puts it in place.
                if slot.as_ref().is_some_and(|other| other.ptr_eq(&connecting)) {
                    *slot = None;
                    if let Ok(shared) = &result {
                        self.share(shared);
                    }
                }
            }
            let shared = result?;
            // It may have been made for more than it has room for.
            if shared.enter(false) {
                return Ok(self.stream(&shared));
            }
        }
    }

    /// Begins an HTTP/2 connection, if the limit has room for it.
    fn begin_shared(&self) -> Option<Connecting> {
        OpenGuard::within(self.max_connections, &self.dialer, &self.counts).map(|open| self.connect(open))
    }

    fn connect(&self, open: OpenGuard) -> Connecting {
        let (dialer, peer) = (self.dialer.clone(), self.peer.clone());
        let result = worker::spawn(&Handle::current(), async move {
            match dialer.dial(&peer, Want::Http2, open).await? {
                Connection::Shared(shared) => Ok(shared),
                Connection::Sole(_) => Err(Cause::ConnectFailed {
                    address: peer.address,
                    source: Arc::new(std::io::Error::other("the peer does not speak HTTP/2")),
                }),
            }
        });
        let address = self.peer.address.clone();
        let result = result.map(move |done| match done {
            Ok(result) => result,
            Err(e) => Err(Cause::ConnectFailed { address, source: Arc::new(std::io::Error::other(e)) }),
        });
        result.boxed().shared()
    }

    fn is_worn(&self, connection: &SoleConnection) -> bool {
        self.dialer.options().max_requests_per_connection.is_some_and(|most| connection.served >= most)
    }

    fn is_stale(&self, connection: &SoleConnection) -> bool {
        let idle_timeout = self.dialer.options().idle_timeout;
        idle_timeout.is_some_and(|most| connection.idle_since.elapsed() >= most) || is_past(connection.worn_at)
    }

    fn is_done(&self, shared: &SharedConnection, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(shared.quiet_since(now));
        self.dialer.options().idle_timeout.is_some_and(|most| quiet >= most) || is_past(shared.worn_at)
    }
}

/// Asks the clock only if there is a time.
fn is_past(time: Option<Instant>) -> bool {
    time.is_some_and(|time| Instant::now() >= time)
}
