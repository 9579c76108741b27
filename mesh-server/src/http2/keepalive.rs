//! Whether the peer of a connection is still there: after a silence it is asked, and has to answer in time.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong, server};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::has_budget_remaining;
use tokio::time::{Instant, Sleep, sleep_until};

use super::ear::Heard;

/// Asks after silence. Polled with its connection.
pub(super) struct KeepAlive {
    heard: Arc<Heard>,
    interval: Duration,
    timeout: Duration,
    asking: Option<Asking>,
}

struct Asking {
    pings: PingPong,
    // When it is asked next, or when an answer is too late.
    alarm: Pin<Box<Sleep>>,
    // Whom it wakes.
    woken: Option<Waker>,
    quiet_since: Instant,
    asked: bool,
}

/// The peer does not answer.
#[derive(Debug)]
pub(super) struct Silent;

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer does not answer pings")
    }
}

impl std::error::Error for Silent {}

impl KeepAlive {
    pub(super) fn new(heard: Arc<Heard>, interval: Duration, timeout: Duration) -> Self {
        Self { heard, interval, timeout, asking: None }
    }

    /// The connection speaks HTTP/2 from now on.
    pub(super) fn begin<T: AsyncRead + AsyncWrite + Unpin>(&mut self, connection: &mut server::Connection<T, Bytes>) {
        let now = Instant::now();
        let alarm = Box::pin(sleep_until(after(now, self.interval)));
        self.asking =
            connection.ping_pong().map(|pings| Asking { pings, alarm, woken: None, quiet_since: now, asked: false });
    }

    /// The task of the connection has its turn: it may be read from.
    pub(super) fn turn(&self) {
        self.heard.begin();
    }

    /// Notes whether something has come. To be asked whenever the connection was read from: silence is counted from then.
    pub(super) fn hear(&mut self) {
        if self.heard.take()
            && let Some(asking) = &mut self.asking
        {
            asking.quiet_since = Instant::now();
        }
    }

    /// Whether it was not answered in time.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(asking) = &mut self.asking else { return false };
        if asking.is_set(cx) {
            return false;
        }
        // An answer that is there counts, however late this task has its turn.
        asking.take_answer(cx, self.interval);
        while asking.alarm.as_mut().poll(cx).is_ready() {
            if asking.asked {
                return true;
            }
            let (now, next) = (Instant::now(), after(asking.quiet_since, self.interval));
            if next > now {
                asking.alarm.as_mut().reset(next);
            } else if asking.pings.send_ping(Ping::opaque()).is_ok() {
                asking.asked = true;
                asking.alarm.as_mut().reset(after(now, self.timeout));
            } else {
                // The connection ends by itself.
                self.asking = None;
                return false;
            }
        }
        // It wakes this task.
        asking.take_answer(cx, self.interval);
        // A task that has had its turn was not noted, and comes again.
        asking.woken = has_budget_remaining().then(|| cx.waker().clone());
        false
    }
}

impl Asking {
    fn take_answer(&mut self, cx: &mut Context<'_>, interval: Duration) {
        // Of a connection that fails its own future tells.
        if self.asked && matches!(self.pings.poll_pong(cx), Poll::Ready(Ok(_))) {
            self.asked = false;
            self.alarm.as_mut().reset(after(Instant::now(), interval));
            let _ = self.alarm.as_mut().poll(cx);
        }
    }

    /// Whether nothing has happened that has to be looked at, and this task is woken when it does. A connection is polled
    /// several times for a request.
    fn is_set(&self, cx: &Context<'_>) -> bool {
        !self.asked && !self.alarm.is_elapsed() && self.woken.as_ref().is_some_and(|woken| woken.will_wake(cx.waker()))
    }
}

/// The end of this time; of more than there is, a year.
fn after(begin: Instant, time: Duration) -> Instant {
    begin.checked_add(time).unwrap_or(begin + Duration::from_secs(365 * 86_400))
}
