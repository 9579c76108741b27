//! The tasks that drive connections. Each ends when the handle of its connection is dropped: HTTP says
//! goodbye by itself, and what cannot finish doing so within [`GOODBYE`] is cut off. One whose endpoint is gone has the
//! drain limit for what is under way, as has an HTTP/1.1 connection, which no task drives: whoever reads it asks its
//! [`Line`], and one whose answer is held and not read stays open until it is.

#![allow(clippy::disallowed_methods)] // The one place of this folder that spawns; see above for who owns the tasks.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

/// Time for a connection without a handle to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Held by whoever uses what a task does; dropping it ends the task.
pub(super) struct Alive(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<Infallible>);

/// What ends a connection: its last user, or its endpoint. Whoever moves its bytes asks.
#[derive(Default)]
pub(super) struct Line {
    // When it is over, once somebody has said so; `None` = never.
    until: OnceLock<Option<Instant>>,
    mover: AtomicWaker,
}

impl Line {
    /// It has so long from now on, unless it was told before.
    fn end_within(&self, limit: Duration) {
        if self.until.set(Instant::now().checked_add(limit)).is_ok() {
            self.mover.wake();
        }
    }

    /// Until when it may go on, once somebody has said so.
    pub(super) fn poll_told(&self, cx: &Context<'_>) -> Poll<Option<Instant>> {
        if let Some(until) = self.until.get() {
            return Poll::Ready(*until);
        }
        self.mover.register(cx.waker());
        // What was said before that is seen here.
        self.until.get().map_or(Poll::Pending, |until| Poll::Ready(*until))
    }

    /// Whether somebody has.
    pub(super) fn is_told(&self) -> bool {
        self.until.get().is_some()
    }

    /// Nobody moves its bytes for now.
    pub(super) fn rest(&self) {
        drop(self.mover.take());
    }
}

/// Held by whoever uses a connection that a task drives; dropping it ends the connection.
pub(super) struct Lifeline(Arc<Line>);

impl From<Arc<Line>> for Lifeline {
    fn from(line: Arc<Line>) -> Self {
        Self(line)
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.0.end_within(GOODBYE);
    }
}

/// The connections of one endpoint, which end together when it is gone.
#[derive(Default)]
pub(super) struct Lines(OnceLock<Box<Mutex<Open>>>);

#[derive(Default)]
struct Open {
    lines: Vec<Weak<Line>>,
    // Known once the endpoint is gone.
    limit: Option<Duration>,
}

impl Lines {
    /// That of a new connection.
    pub(super) fn line(&self) -> Arc<Line> {
        let line = Arc::<Line>::default();
        let mut open = self.0.get_or_init(Box::default).lock();
        if let Some(limit) = open.limit {
            line.end_within(limit);
        } else {
            // Those that have ended are forgotten when room is needed.
            if open.lines.len() == open.lines.capacity() {
                open.lines.retain(|line| line.strong_count() > 0);
            }
            open.lines.push(Arc::downgrade(&line));
        }
        line
    }

    /// All of them, and those still to come, have so long.
    pub(super) fn end_within(&self, limit: Duration) {
        let lines = {
            let mut open = self.0.get_or_init(Box::default).lock();
            open.limit = Some(limit);
            std::mem::take(&mut open.lines)
        };
        lines.iter().filter_map(Weak::upgrade).for_each(|line| line.end_within(limit));
    }
}

/// Drives a connection on the caller's runtime: I/O stays where the requests are, without a hop to
/// another thread. `guard` is dropped when the connection is really gone.
pub(super) fn drive<F>(connection: F, line: Arc<Line>, guard: impl Send + 'static)
where
    F: Future + Send + 'static,
{
    Handle::current().spawn(async move {
        let _guard = guard;
        until_ended(connection, &line).await;
    });
}

async fn until_ended<F: Future>(connection: F, line: &Line) {
    tokio::pin!(connection);
    let until = tokio::select! {
        biased;
        _ = &mut connection => return,
        until = poll_fn(|cx| line.poll_told(cx)) => until,
    };
    // Beyond it nothing is waited for: dropping the connection closes it.
    match until {
        Some(until) => drop(timeout_at(until, connection).await),
        None => drop(connection.await),
    }
}

/// A task of ours: stopped when this is dropped.
pub(crate) struct Owned<T>(JoinHandle<T>);

impl<T> Future for Owned<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Owned<T> {
    /// Whether it runs no more: it has come to its end, or its runtime has.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Wakes the task that looks after something, whichever does so now. One whose runtime stands still goes on waiting, and
/// would be the first to be woken: who takes its place is woken in another way.
#[derive(Default)]
pub(crate) struct Wake(ArcSwap<Notify>);

impl Wake {
    pub(crate) fn wake(&self) {
        self.0.load().notify_one();
    }

    /// From now on the caller is woken, and nobody else. What happened before it has to look at by itself.
    pub(crate) fn listen(&self) -> Arc<Notify> {
        let own = Arc::<Notify>::default();
        self.0.store(own.clone());
        own
    }
}

/// Runs `work` on `runtime`, whoever polls the answer.
pub(crate) fn spawn<F>(runtime: &Handle, work: F) -> Owned<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    Owned(runtime.spawn(work))
}

/// Sends the rest of a request body on the caller's runtime, until the handle is dropped.
pub(super) fn send_on(upload: impl Future<Output = ()> + Send + 'static) -> Alive {
    let (alive, ended) = oneshot::channel();
    Handle::current().spawn(async move {
        // Dropped, it resets its stream or closes its connection, whatever of the body waits for the peer to read.
        tokio::select! {
            biased;
            () = upload => {}
            _ = ended => {}
        }
    });
    Alive(alive)
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, poll};

    use super::*;

    #[tokio::test]
    async fn who_takes_the_place_of_one_that_stands_still_is_woken_in_its_stead() {
        let wake = Wake::default();
        let former = wake.listen();
        // Never again looked at, and the first in the queue if there were but one.
        let mut standing = Box::pin(former.notified());
        assert!(poll!(&mut standing).is_pending());
        let now = wake.listen();
        let mut waits = Box::pin(now.notified());
        assert!(poll!(&mut waits).is_pending());
        wake.wake();
        assert!(waits.now_or_never().is_some());
    }
}
