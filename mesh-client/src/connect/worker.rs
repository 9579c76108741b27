//! The tasks that drive connections. Each ends when the handle of its connection is dropped: HTTP says
//! goodbye by itself, and what cannot finish doing so within [`GOODBYE`] is cut off. One whose endpoint is gone has the
//! drain limit for what is under way, unless it comes back within it. So has an HTTP/1.1 connection, which no task drives:
//! whoever reads it asks its [`Line`], and one whose answer is held and not read stays open until it is. One that is the
//! application's has a [limit of its own](Drain), and a task that takes it back then.

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

/// How long what is under way has once its endpoint is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// Requests.
    pub(crate) requests: Duration,
    /// Connections that are the application's.
    pub(crate) handed: Duration,
}

impl Drain {
    /// Until when, from now on; `None` = any time.
    fn end(&self, line: &Line) -> Option<Instant> {
        Instant::now().checked_add(if line.handed { self.handed } else { self.requests })
    }
}

/// What ends a connection: its last user, or its endpoint. Whoever moves its bytes asks.
#[derive(Default)]
pub(super) struct Line {
    // It is the application's.
    handed: bool,
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

    /// Whether it is over.
    fn is_over(&self) -> bool {
        self.ends.lock().first().is_some_and(|end| Instant::now() >= end)
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
    gone: Option<(Drain, Arc<str>)>,
}

impl Lines {
    /// That of a new connection.
    pub(super) fn line(&self) -> Arc<Line> {
        self.add(Line::default())
    }

    /// That of one that is the application's.
    pub(super) fn handed(&self) -> Arc<Line> {
        self.add(Line { handed: true, ..Line::default() })
    }

    fn add(&self, line: Line) -> Arc<Line> {
        let line = Arc::new(line);
        let mut open = self.0.get_or_init(Box::default).lock();
        if let Some((limit, _)) = &open.gone {
            line.end_at(limit.end(&line));
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
    pub(super) fn end_within(&self, limit: Drain, who: impl FnOnce() -> Arc<str>) {
        let mut open = self.0.get_or_init(Box::default).lock();
        if open.gone.is_none() {
            open.gone = Some((limit, who()));
            open.tell(|line| limit.end(line));
        }
    }

    /// Their endpoint is there, or there again.
    pub(super) fn stay(&self) {
        let Some(open) = self.0.get() else { return };
        let mut open = open.lock();
        if open.gone.take().is_some() {
            open.tell(|_| None);
        }
    }

    /// Who is gone, if that is why this line of them is over. With the lock: who has come back since the line's time was over, or
    /// come back and gone again, takes nothing with it.
    pub(super) fn ended(&self, line: &Line) -> Option<Arc<str>> {
        let open = self.0.get()?.lock();
        open.gone.as_ref().filter(|_| line.is_over()).map(|(_, who)| who.clone())
    }
}

impl Open {
    /// With the lock: who says otherwise in this moment comes before all of them or after.
    fn tell(&self, until: impl Fn(&Line) -> Option<Instant>) {
        self.lines.iter().filter_map(Weak::upgrade).for_each(|line| line.end_at(until(&line)));
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

/// Has `end` done on the caller's runtime when a connection that no task drives is over; until it says that it is done, for
/// the endpoint may have come back in that moment.
pub(super) fn when_over(line: Arc<Line>, mut end: impl FnMut(&Line) -> bool + Send + 'static) -> Owned<()> {
    spawn(&Handle::current(), async move {
        loop {
            line.over().await;
            if end(&line) {
                return;
            }
        }
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
    use tokio::time::advance;

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

    const SECOND: Duration = Duration::from_secs(1);
    const LIMITS: Drain = Drain { requests: SECOND, handed: Duration::from_secs(3) };

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_connection_has_its_own_limit() {
        let lines = Lines::default();
        let [requests, handed] = [lines.line(), lines.handed()];
        lines.end_within(LIMITS, || "it".into());
        let late = lines.handed();
        for (passed, over) in [(0, [false; 3]), (1, [true, false, false]), (2, [true; 3])] {
            advance(passed * SECOND).await;
            assert_eq!([&requests, &handed, &late].map(|line| line.is_over()), over);
        }
        let unlimited = Lines::default();
        let line = unlimited.handed();
        unlimited.end_within(Drain { handed: Duration::MAX, ..LIMITS }, || "it".into());
        assert!(!line.is_told());
    }

    /// Its time was over when it came back, and who takes the connection back hears of it only then.
    #[tokio::test(start_paused = true)]
    async fn one_that_comes_back_as_its_time_is_over_stays_and_is_taken_back_the_next_time() {
        let lines = Arc::new(Lines::default());
        let line = lines.handed();
        let gone = |who: &'static str| lines.end_within(LIMITS, || who.into());
        gone("the first");
        advance(4 * SECOND).await;
        assert_eq!(lines.ended(&line).as_deref(), Some("the first"), "control");
        // It comes back, leaves again, comes back, each before anybody has looked.
        lines.stay();
        assert_eq!(lines.ended(&line), None);
        gone("the second");
        assert_eq!(lines.ended(&line), None, "it has all of its time again");
        lines.stay();

        let (asked, mut told) = tokio::sync::mpsc::unbounded_channel();
        gone("the third");
        let other = lines.clone();
        let _owner = when_over(line, move |line| {
            // In the moment between it comes back, and leaves anew.
            let asks = other.ended(line);
            if asks.as_deref() == Some("the third") {
                other.stay();
                other.end_within(LIMITS, || "the fourth".into());
            }
            let done = other.ended(line).is_some();
            let _ = asked.send((asks, done));
            done
        });
        let third = told.recv().await.unwrap();
        assert_eq!((third.0.as_deref(), third.1), (Some("the third"), false));
        let fourth = told.recv().await.unwrap();
        assert_eq!((fourth.0.as_deref(), fourth.1), (Some("the fourth"), true));
    }
}
