//! Connections that carry requests: one at a time over HTTP/1.1, many over HTTP/2.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper_util::rt::TokioIo;
use mesh_core::policy::ConnectionOptions;
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep_until};

use super::handed::{Handed, Held};
use super::http1::{self, RequestHead, Wire, has};
use super::pool::{Counts, OpenGuard};
use super::settings::{Observed, Said};
use super::trust::Vouched;
use super::worker::{self, Lifeline};
use super::{IoStream, http2};
use crate::body::{Broken, Incoming, Outgoing, Unanswered};

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
    // None while it is a request's.
    wire: Option<Box<Wire>>,
    pub(super) life: Life,
    pub(crate) idle_since: Instant,
    /// Requests carried so far.
    pub(crate) served: u32,
    /// It was there before the request that it carries.
    pub(super) reused: bool,
    /// Whose reactor tells of its bytes.
    pub(super) runtime: Id,
    vouched: Option<Arc<Vouched>>,
    // Of the task that has it, where it may become something else than HTTP.
    task: Option<(Lifeline, Held)>,
}

impl SoleConnection {
    /// Whether its peer is still one to send requests to.
    pub(super) fn is_trusted(&self) -> bool {
        self.vouched.as_ref().is_none_or(|vouched| vouched.is_trusted())
    }

    /// Whether nothing has happened to it since it was idle.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.wire.as_mut().is_some_and(|wire| wire.is_quiet())
    }

    /// Where to leave what is to be held until it is closed, if its request may have changed its protocol.
    pub(crate) fn held(&self) -> Option<Held> {
        self.task.as_ref().map(|(_, held)| held.clone())
    }

    /// Keeps no more of it than is needed.
    pub(super) fn shrink(&mut self) {
        self.wire.iter_mut().for_each(|wire| wire.shrink());
    }

    /// Takes back what its answer held. False: it cannot be used again.
    pub(super) fn take_back(&mut self, answer: Incoming) -> bool {
        if let Incoming::Http1(body) = answer {
            self.wire = body.into_wire();
        }
        self.wire.is_some()
    }

    /// Sends a request that does not [change the protocol](changes_protocol), as much of it as goes out at once. The connection
    /// is with the answer's body then.
    ///
    /// # Errors
    /// There will be no answer.
    pub(crate) fn begin(&mut self, head: &RequestHead<'_>, body: Outgoing) -> Result<http1::Flight, Unanswered> {
        let Some(wire) = self.wire.take() else { return Err(Unanswered::unsent(http1::Error::Incomplete)) };
        // Who takes one that was there has looked a moment ago whether it is.
        http1::begin(wire, self.reused, head, body)
    }

    /// Sends any request, and waits for the head of its answer.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Unanswered> {
        let (mut head, body) = request.into_parts();
        if !changes_protocol(&head.method, &mut head.headers) {
            let mut flight = self.begin(&RequestHead::of(&head), body)?;
            return poll_fn(|cx| flight.poll_head(cx)).await.map_err(Unanswered::sent);
        }
        let request = Request::from_parts(head, body);
        match self.wire.take() {
            Some(wire) => self.hand_over(wire, request).await,
            None => Err(Unanswered::with(http1::Error::Incomplete.into(), Some(request))),
        }
    }

    /// Has hyper send a request whose answer may take the connection over: what the application asks for it then is hyper's.
    fn hand_over(
        &mut self,
        wire: Box<Wire>,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, Unanswered>> + Send + use<> {
        let (io, line, open) = wire.into_parts();
        let held = Held::default();
        self.task = Some((line.clone().into(), held.clone()));
        let io = Handed::new(io, open, held);
        async move {
            let made = hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(io)).await;
            let (mut sender, connection) = match made {
                Ok(made) => made,
                Err(error) => return Err(Unanswered::with(error.into(), Some(request))),
            };
            worker::drive(connection.with_upgrades(), line, ());
            let sent = sender.try_send_request(request).await;
            sent.map(|answer| answer.map(Incoming::Hyper)).map_err(|mut error| {
                let back = error.take_message();
                Unanswered::with(error.into_error().into(), back)
            })
        }
    }
}

/// Whether the connection may be something else than HTTP/1.1 after this request. Not for `Upgrade: h2c`, which some clients
/// send with everything: the offer is left out (it is gone since RFC 9113, and Envoy leaves it out), and the connection kept.
pub(crate) fn changes_protocol(method: &Method, headers: &mut HeaderMap) -> bool {
    if *method == Method::CONNECT {
        return true;
    }
    // What the connection does not name is no offer (RFC 9110, section 7.8). A walk, for a request has few headers.
    let has_one = headers.keys().any(|name| *name == UPGRADE);
    let offers = has_one && headers.get_all(CONNECTION).iter().any(|value| has(value, "upgrade"));
    if offers && headers.get_all(UPGRADE).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        keep_to_http1(headers);
        return false;
    }
    offers
}

#[cold]
fn keep_to_http1(headers: &mut HeaderMap) {
    headers.remove(UPGRADE);
    headers.remove(&HTTP2_SETTINGS);
    let listed: Vec<_> = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()).collect();
    let tokens = listed.iter().flat_map(|value| value.split(',').map(str::trim));
    let left: Vec<_> = tokens.filter(|token| !OF_H2C.iter().any(|of| token.eq_ignore_ascii_case(of))).collect();
    let left = HeaderValue::try_from(left.join(", ")).ok().filter(|left| !left.is_empty());
    headers.remove(CONNECTION);
    if let Some(left) = left {
        headers.insert(CONNECTION, left);
    }
}

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What the connection names for such an offer.
const OF_H2C: [&str; 2] = ["upgrade", "http2-settings"];

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

    /// Waits until no further request goes over it, because its peer is leaving or gone, or it is too old: says which. For one at a
    /// time.
    pub(crate) async fn retires(&self) -> &'static str {
        let worn = async {
            match self.life.worn_at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.said.ends() => "its connection is closed, or about to be",
            () = worn => "its connection is too old",
        }
    }

    /// Whether it ended before it took one.
    pub(super) fn ended_in_vain(&self) -> bool {
        self.is_closed() && self.served.load(Ordering::Relaxed) == 0
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

pub(super) fn http1(io: IoStream, life: Life, mut open: OpenGuard) -> Connection {
    open.stands();
    let vouched = io.vouched();
    let line = open.counts().lines.line();
    Connection::Sole(SoleConnection {
        wire: Some(Wire::new(io, line, Some(open))),
        life,
        idle_since: Instant::now(),
        served: 0,
        reused: false,
        runtime: Handle::current().id(),
        vouched,
        task: None,
    })
}

/// Speaks HTTP/2, as soon as the peer has: it has sent its SETTINGS. One that speaks something else, TLS say, closes the
/// connection, and so does one that refuses our certificate, which in TLS 1.3 comes after the handshake and whatever ALPN has agreed on;
/// what was sent before would be lost. As gRPC does, and at the price of one way there and back.
///
/// # Errors
/// The peer speaks something else, or nothing before the end: that of the bytes below HTTP, if it is one.
pub(super) async fn http2(
    io: IoStream,
    options: &ConnectionOptions,
    life: Life,
    open: OpenGuard,
) -> Result<Connection, Broken> {
    let vouched = io.vouched();
    let waiters = open.counts().clone();
    let (io, said) = Observed::new(io, waiters.clone(), options.http2_keepalive.is_some());
    let line = waiters.lines.line();
    let (sender, driver) = http2::handshake(io, said.clone(), options).await?;
    worker::drive(driver.run(), line.clone(), open);
    let alive = Lifeline::from(line);
    said.has_spoken().await.map_err(Broken::Io)?;
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
