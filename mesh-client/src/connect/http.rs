//! Connections that carry requests: one at a time over HTTP/1.1, many over HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::policy::ConnectionOptions;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

use super::pool::{Counts, OpenGuard};
use super::settings::{Observed, Said};
use super::trust::Vouched;
use super::worker::{self, Lifeline};
use super::{IoStream, http2};
use crate::body::{Broken, Outgoing};

/// A connection for one request.
pub(crate) enum Connection {
    /// HTTP/1.1: ours alone until the answer's end.
    Sole(SoleConnection),
    /// HTTP/2: shared.
    Shared(Arc<SharedConnection>),
}

/// How long a connection may live.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    /// When it is too old.
    pub(super) worn_at: Option<Instant>,
    /// How long it may be without a request.
    pub(super) idle: Option<Duration>,
}

impl Life {
    /// Whether it is too old, or was without a request `since` then for too long.
    pub(super) fn is_over(&self, since: Instant, now: Instant) -> bool {
        self.idle.is_some_and(|most| now.saturating_duration_since(since) >= most)
            || self.worn_at.is_some_and(|at| now >= at)
    }

    /// Whether it is too old. Asks the clock only if there is a limit.
    pub(super) fn is_worn(&self) -> bool {
        self.worn_at.is_some_and(|at| Instant::now() >= at)
    }
}

/// An HTTP/1.1 connection.
pub(crate) struct SoleConnection {
    pub(crate) sender: http1::SendRequest<Outgoing>,
    pub(super) life: Life,
    pub(crate) idle_since: Instant,
    /// Requests carried so far.
    pub(crate) served: u32,
    /// It was there before the request that it carries.
    pub(super) reused: bool,
    /// Who drives it.
    pub(super) runtime: Id,
    vouched: Option<Arc<Vouched>>,
    _alive: Lifeline,
}

impl SoleConnection {
    /// Whether its peer is still one to send requests to.
    pub(super) fn is_trusted(&self) -> bool {
        self.vouched.as_ref().is_none_or(|vouched| vouched.is_trusted())
    }
}

/// An HTTP/2 connection.
pub(crate) struct SharedConnection {
    pub(super) sender: http2::Sender,
    pub(super) life: Life,
    /// Who drives it.
    pub(super) runtime: Id,
    /// Requests carried so far.
    pub(crate) served: AtomicU32,
    /// Of them, those whose answer has not ended.
    streams: AtomicU32,
    /// Streams at once: what the peer says, and what policy does.
    said: Arc<Said>,
    allowed: u32,
    // Requests in its life.
    most_requests: u32,
    // Those who would like to have a stream.
    waiters: Arc<Counts>,
    /// What the last look for idle connections saw: requests carried, and since when that number stands.
    quiet: Mutex<(u32, Instant)>,
    vouched: Option<Arc<Vouched>>,
    // Last, so that the sender is gone when the connection hears of it. It lives until the last stream has ended.
    _alive: Lifeline,
}

impl SharedConnection {
    pub(crate) fn is_closed(&self) -> bool {
        self.said.is_over()
    }

    /// Takes a place for a request, to be given back by [`leave`](Self::leave), and gives the number of the request
    /// on this connection. `None`: there is no room.
    pub(super) fn enter(&self) -> Option<u32> {
        let most = self.said.streams().min(self.allowed);
        // Looked at first: a full connection is passed without a write that others would have to wait for.
        if self.streams.load(Ordering::SeqCst) >= most {
            return None;
        }
        if self.streams.fetch_add(1, Ordering::SeqCst) < most {
            let one_more = |served: u32| (served < self.most_requests).then(|| served + 1);
            if let Ok(before) = self.served.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
                return Some(before + 1);
            }
        }
        self.leave();
        None
    }

    /// Requests that it has room for.
    pub(super) fn free(&self) -> u32 {
        let streams = self.said.streams().min(self.allowed).saturating_sub(self.streams.load(Ordering::Relaxed));
        streams.min(self.most_requests.saturating_sub(self.served.load(Ordering::Relaxed)))
    }

    /// A stream has ended.
    pub(super) fn leave(&self) {
        self.streams.fetch_sub(1, Ordering::SeqCst);
        self.waiters.made_room();
    }

    /// Whether its peer takes no further request for now.
    pub(super) fn is_shut(&self) -> bool {
        self.said.streams() == 0
    }

    /// Whether it has carried all the requests that it may.
    pub(super) fn is_spent(&self) -> bool {
        self.served.load(Ordering::Relaxed) >= self.most_requests
    }

    /// Whether its peer is still one to send requests to.
    pub(super) fn is_trusted(&self) -> bool {
        self.vouched.as_ref().is_none_or(|vouched| vouched.is_trusted())
    }

    /// Since when nothing has gone over it, as far as earlier calls could tell.
    pub(crate) fn quiet_since(&self, now: Instant) -> Instant {
        let served = self.served.load(Ordering::Relaxed);
        let mut quiet = self.quiet.lock();
        if self.streams.load(Ordering::Relaxed) > 0 || quiet.0 != served {
            *quiet = (served, now);
        }
        quiet.1
    }
}

pub(super) async fn http1(io: IoStream, life: Life, open: OpenGuard) -> Result<Connection, Broken> {
    let vouched = io.vouched();
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
    let (alive, ended) = open.counts().lines.handle();
    worker::drive(connection.with_upgrades(), ended, open);
    Ok(Connection::Sole(SoleConnection {
        sender,
        life,
        idle_since: Instant::now(),
        served: 0,
        reused: false,
        runtime: Handle::current().id(),
        vouched,
        _alive: alive,
    }))
}

pub(super) async fn http2(
    io: IoStream,
    options: &ConnectionOptions,
    life: Life,
    open: OpenGuard,
) -> Result<Connection, Broken> {
    let vouched = io.vouched();
    let waiters = open.counts().clone();
    let (io, said) = Observed::new(io, waiters.clone(), options.http2_keepalive.is_some());
    let (alive, ended) = waiters.lines.handle();
    let (sender, driver) = http2::handshake(io, said.clone(), options).await?;
    worker::drive(driver.run(), ended, open);
    let now = Instant::now();
    Ok(Connection::Shared(Arc::new(SharedConnection {
        sender,
        life,
        runtime: Handle::current().id(),
        served: AtomicU32::new(0),
        streams: AtomicU32::new(0),
        said,
        // A connection that takes nothing would be made again and again.
        allowed: options.max_concurrent_streams.unwrap_or(u32::MAX).max(1),
        most_requests: options.max_requests_per_connection.unwrap_or(u32::MAX).max(1),
        waiters,
        quiet: Mutex::new((0, now)),
        vouched,
        _alive: alive,
    })))
}
