//! How long the head of a request may take, from its first byte to its last, and how long an HTTP/1 connection may go without
//! one. Refuses to know how heads are written.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The head that a connection is in the middle of, if it is.
pub(super) struct HeadTime {
    limit: Duration,
    // Since when a head is not whole.
    begun: Option<Instant>,
    idle: Option<Idle>,
    // Made when there is something to wait for; it stays for the next time.
    late: Option<Pin<Box<Sleep>>>,
    // Whom it wakes.
    waker: Option<Waker>,
}

/// The requests of a connection whose answers have not ended.
#[derive(Default)]
pub(crate) struct Serving(AtomicU32);

impl Serving {
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The silence of a connection between two requests.
struct Idle {
    limit: Duration,
    serving: Arc<Serving>,
    since: Instant,
    // There was a request after that.
    moved: bool,
}

impl Idle {
    /// When the silence of this moment will have been too long.
    fn until(&mut self) -> Option<Instant> {
        if self.serving.0.load(Ordering::Relaxed) > 0 {
            self.moved = true;
            return None;
        }
        if std::mem::take(&mut self.moved) {
            self.since = Instant::now();
        }
        self.since.checked_add(self.limit)
    }
}

impl HeadTime {
    /// `begun` = since when a head is being read already.
    pub(super) fn new(limit: Duration, begun: Option<Instant>) -> Self {
        Self { limit, begun, idle: None, late: None, waker: None }
    }

    /// From now on there is a limit as well on the time from the end of an answer to the end of the next head.
    pub(super) fn limit_idle(&mut self, limit: Duration, serving: Arc<Serving>) {
        self.idle = Some(Idle { limit, serving, since: Instant::now(), moved: false });
    }

    /// All that came was looked at: it ended in a head, or not.
    pub(super) fn set(&mut self, in_head: bool) {
        match (in_head, self.begun) {
            (true, None) => self.begun = Some(Instant::now()),
            (false, Some(_)) => self.begun = None,
            _ => {}
        }
    }

    /// A head is whole. What begins after it has a time of its own.
    pub(super) fn end(&mut self) {
        self.begun = None;
        self.idle.iter_mut().for_each(|idle| idle.moved = true);
    }

    /// More bytes are waited for.
    ///
    /// # Errors
    /// A head is not whole, or there is none, and its time is over.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // One beyond all time is none.
        let whole = self.begun.and_then(|begun| begun.checked_add(self.limit));
        let next = self.idle.as_mut().and_then(Idle::until);
        let Some(until) = whole.into_iter().chain(next).min() else { return Ok(()) };
        let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            let (set, is_over) = (late.deadline(), late.is_elapsed());
            if set > until || (is_over && set < until) {
                late.as_mut().reset(until);
            } else if !is_over && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                // One that is early is set again when it wakes: with every request that would cost more than all else here.
                return Ok(());
            }
            match late.as_mut().poll(cx) {
                Poll::Ready(()) if late.deadline() < until => {}
                Poll::Ready(()) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no whole request came in time"));
                }
                Poll::Pending => {
                    self.waker = Some(cx.waker().clone());
                    return Ok(());
                }
            }
        }
    }
}
