//! Connections that carry requests: one at a time over HTTP/1.1, many over HTTP/2.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::policy::ConnectionOptions;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::IoStream;
use super::pool::OpenGuard;
use super::worker::{self, Alive};
use crate::body::Outgoing;

/// A connection for one request.
pub(crate) enum Connection {
    /// HTTP/1.1: ours alone until the answer's end.
    Sole(SoleConnection),
    /// HTTP/2: shared.
    Shared(Arc<SharedConnection>),
}

/// An HTTP/1.1 connection.
pub(crate) struct SoleConnection {
    pub(crate) sender: http1::SendRequest<Outgoing>,
    pub(crate) made: Instant,
    pub(crate) idle_since: Instant,
    /// Requests carried so far.
    pub(crate) served: u32,
    _alive: Alive,
}

/// An HTTP/2 connection.
pub(crate) struct SharedConnection {
    sender: http2::SendRequest<Outgoing>,
    pub(crate) made: Instant,
    /// Requests carried so far.
    pub(crate) served: AtomicU32,
    /// Of them, those whose answer has not ended.
    pub(crate) streams: AtomicU32,
    /// What the last look for idle connections saw: requests carried, and since when that number stands.
    quiet: Mutex<(u32, Instant)>,
    // Of the connection and of what moves requests onto it. Both live until the last stream has ended:
    // after a GOAWAY the second is done long before the first.
    _alive: [Alive; 2],
}

impl SharedConnection {
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
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

    /// A sender for one request; hyper's is a pointer and a counter.
    pub(crate) fn sender(&self) -> http2::SendRequest<Outgoing> {
        self.sender.clone()
    }
}

pub(super) async fn http1(io: IoStream, open: OpenGuard) -> hyper::Result<Connection> {
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
    let (alive, ended) = worker::handle();
    worker::drive(connection.with_upgrades(), ended, open);
    let now = Instant::now();
    Ok(Connection::Sole(SoleConnection { sender, made: now, idle_since: now, served: 0, _alive: alive }))
}

pub(super) async fn http2(io: IoStream, options: &ConnectionOptions, open: OpenGuard) -> hyper::Result<Connection> {
    let (alive, ended) = worker::handle();
    let (alive_requests, ended_requests) = worker::handle();
    let mut builder = http2::Builder::new(worker::Http2Tasks::new(ended, open));
    builder.timer(TokioTimer::new());
    if let Some(keepalive) = &options.http2_keepalive {
        builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
    }
    let (sender, requests) = builder.handshake(TokioIo::new(io)).await?;
    // What moves requests onto the connection; the connection itself is driven by `Http2Tasks`.
    worker::drive(requests, ended_requests, ());
    let now = Instant::now();
    Ok(Connection::Shared(Arc::new(SharedConnection {
        sender,
        made: now,
        served: AtomicU32::new(0),
        streams: AtomicU32::new(0),
        quiet: Mutex::new((0, now)),
        _alive: [alive, alive_requests],
    })))
}
