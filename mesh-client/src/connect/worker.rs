//! The tasks that drive connections. Each ends when the handle of its connection is dropped: HTTP says
//! goodbye by itself, and what cannot finish doing so within [`GOODBYE`] is cut off. One whose endpoint is gone has the
//! drain limit for what is under way, unless it comes back within it. So has an HTTP/1.1 connection, which no task drives:
//! whoever reads it asks its [`Line`], and one whose answer is held and not read stays open until it is. One that is the
//! application's has a task that takes it back then.

#![allow(clippy::disallowed_methods)] // The one place of this folder that spawns; see above for who owns the tasks.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// Time for a connection without a handle to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Held by whoever uses what a task does; dropping it ends the task.
pub(super) struct Alive(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<Infallible>);

/// What ends a connection: its last user, or its endpoint. Whoever moves its bytes asks.
#[derive(Default)]
pub(super) struct Line {
    // Whether it has an end: all that is asked as long as nobody has spoken of one.
    told: AtomicBool,
    ends: Mutex<Ends>,
    mover: AtomicWaker,
}

/// When a connection is over.
#[derive(Default)]
struct Ends {
    // Nobody uses it any more.
    unused: Option<Instant>,
    // Its endpoint is gone, unless it comes back.
    gone: Option<Instant>,
}

impl Line {
    /// Its last user is gone: it has so long from now on.
    fn end_within(&self, limit: Duration) {
        self.tell(|ends| ends.unused = Instant::now().checked_add(limit));
    }

    /// Its endpoint ends it then; `None` = not.
    fn end_at(&self, gone: Option<Instant>) {
        self.tell(|ends| ends.gone = gone);
    }

    fn tell(&self, what: impl FnOnce(&mut Ends)) {
        let mut ends = self.ends.lock();
        what(&mut ends);
        self.told.store(ends.first().is_some(), Ordering::Release);
        drop(ends);
        self.mover.wake();
    }

    /// Until when it may go on, once somebody has said so; who asks is woken when that changes.
    pub(super) fn poll_told(&self, cx: &Context<'_>) -> Poll<Instant> {
        // First: what is said from now on wakes.
        self.mover.register(cx.waker());
        if !self.is_told() {
            return Poll::Pending;
        }
        self.ends.lock().first().map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether somebody has.
    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Nobody moves its bytes for now.
    pub(super) fn rest(&self) {
        drop(self.mover.take());
    }

    /// Waits until it is over.
    async fn over(&self) {
        loop {
            let until = poll_fn(|cx| self.poll_told(cx)).await;
            if Instant::now() >= until {
                return;
            }
            let told_otherwise = poll_fn(|cx| match self.poll_told(cx) {
                Poll::Ready(told) if told == until => Poll::Pending,
                _ => Poll::Ready(()),
            });
            tokio::select! {
                biased;
                () = told_otherwise => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

impl Ends {
    fn first(&self) -> Option<Instant> {
        self.unused.into_iter().chain(self.gone).min()
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
    // While the endpoint is gone: how long they have, those still to come as well, and who is gone.
    gone: Option<(Duration, Arc<str>)>,
}

impl Lines {
    /// That of a new connection.
    pub(super) fn line(&self) -> Arc<Line> {
        let line = Arc::<Line>::default();
        let mut open = self.0.get_or_init(Box::default).lock();
        if let Some((limit, _)) = &open.gone {
            line.end_at(Instant::now().checked_add(*limit));
        }
        // Those that have ended are forgotten when room is needed.
        if open.lines.len() == open.lines.capacity() {
            open.lines.retain(|line| line.strong_count() > 0);
        }
        open.lines.push(Arc::downgrade(&line));
        line
    }

    /// All of them, and those still to come, have so long, unless they are told to [stay](Self::stay): `who` is gone. That
    /// this is said again puts nothing off.
    pub(super) fn end_within(&self, limit: Duration, who: impl FnOnce() -> Arc<str>) {
        let mut open = self.0.get_or_init(Box::default).lock();
        if open.gone.is_none() {
            open.gone = Some((limit, who()));
            open.tell(Instant::now().checked_add(limit));
        }
    }

    /// Their endpoint is there, or there again.
    pub(super) fn stay(&self) {
        let Some(open) = self.0.get() else { return };
        let mut open = open.lock();
        if open.gone.take().is_some() {
            open.tell(None);
        }
    }

    /// Who is gone.
    pub(super) fn gone(&self) -> Option<Arc<str>> {
        self.0.get()?.lock().gone.as_ref().map(|(_, who)| who.clone())
    }
}

impl Open {
    /// With the lock: who says otherwise in this moment comes before all of them or after.
    fn tell(&self, until: Option<Instant>) {
        self.lines.iter().filter_map(Weak::upgrade).for_each(|line| line.end_at(until));
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
        // Beyond its end nothing is waited for: dropping the connection closes it.
        tokio::select! {
            biased;
            _ = connection => {}
            () = line.over() => {}
        }
    });
}

/// Has `end` done on the caller's runtime when a connection that no task drives is over.
pub(super) fn when_over(line: Arc<Line>, end: impl FnOnce() + Send + 'static) -> Owned<()> {
    spawn(&Handle::current(), async move {
        line.over().await;
        end();
    })
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
