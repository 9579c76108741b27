//! How long a connection that is hyper's may be silent, counted for it with one timer of the runtime. hyper asks for a new timer with
//! every head, and the runtime takes a lock to begin it and another to end it. Here a timer that is begun stays: when it is due
//! for a head that has come long since, it goes on to the one that is waited for.
//!
//! Refuses to know what is waited for.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant as StdInstant};

use hyper::rt;
use parking_lot::Mutex;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};

/// The timer of one connection, of which hyper waits for one deadline at a time.
#[derive(Default)]
pub(super) struct Silence(Arc<Mutex<Alarm>>);

#[derive(Default)]
struct Alarm {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    // Who is woken when it is due.
    waker: Option<Waker>,
}

struct Sleep {
    until: Instant,
    alarm: Arc<Mutex<Alarm>>,
}

impl rt::Timer for Silence {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: StdInstant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Sleep { until: deadline.into(), alarm: self.0.clone() })
    }

    fn now(&self) -> StdInstant {
        Instant::now().into()
    }
}

impl rt::Sleep for Sleep {}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.lock().poll(self.until, cx)
    }
}

impl Alarm {
    fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            if sleep.deadline() > until {
                sleep.as_mut().reset(until);
                self.waker = None;
            }
            let is_told = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if is_told && !sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.waker = Some(cx.waker().clone());
            // Whoever has used up his time here is to be told all the same, for he does not ask again.
            ready!(pin!(unconstrained(sleep.as_mut())).poll(cx));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
            self.waker = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream::{FuturesUnordered, StreamExt};
    use hyper::rt::Timer;
    use tokio::time::advance;

    use super::*;

    /// What hyper waits for.
    fn waits(timer: &Silence, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        timer.sleep_until(timer.now() + duration)
    }

    fn polled(sleep: &mut Pin<Box<dyn rt::Sleep>>) -> bool {
        sleep.now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_met_however_many_were_before_it() {
        let (timer, second) = (Silence::default(), Duration::from_secs(1));
        for _ in 0..50 {
            // Longer than the one before had left when it was dropped.
            let mut sleep = waits(&timer, 10 * second);
            assert!(!polled(&mut sleep));
            advance(3 * second).await;
            assert!(!polled(&mut sleep));
        }
        // A shorter one.
        let mut sleep = waits(&timer, second);
        let begun = Instant::now();
        assert!(!polled(&mut sleep));
        sleep.await;
        assert!((second..2 * second).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        // After it was due, and when it has been for long.
        let begun = Instant::now();
        waits(&timer, 2 * second).await;
        assert!((2 * second..3 * second).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        advance(100 * second).await;
        let mut sleep = waits(&timer, 2 * second);
        assert!(!polled(&mut sleep));
        advance(3 * second).await;
        assert!(polled(&mut sleep));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_now_is_woken_and_not_who_did_before() {
        let timer = Silence::default();
        let mut sleep = waits(&timer, Duration::from_secs(5));
        assert!(!polled(&mut sleep));
        // Another task, whose waker the timer has not seen, and which is polled once that has woken it.
        let mut task = [sleep].into_iter().collect::<FuturesUnordered<_>>();
        assert!(task.next().now_or_never().is_none());
        assert_eq!(task.next().await, Some(()));
    }
}
