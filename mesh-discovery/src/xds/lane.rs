//! The way to one control plane: connecting, talking, waiting, and again.
//!
//! ```text
//! idle ──▶ opening ──▶ open ──(stream ends)──▶ waiting ──▶ opening …
//! ```
//! It moves when polled and tells what happened. Refuses to know what is said.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSender;

use super::message::{Request, Response, StreamError, Variant};
use super::transport::{AdsStream, Transport};
use crate::backoff::Backoff;

/// After so long an attempt that has brought no stream is told of, and goes on: nobody waits for a configuration, or for
/// another control plane, until a network that swallows everything is known to.
const SLOW: Duration = Duration::from_millis(2500);
/// Waits between connections.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One control plane's connection.
pub(super) struct Lane {
    transport: Box<dyn Transport>,
    backoff: Backoff,
    random: fastrand::Rng,
    phase: Phase,
    /// Until when nobody is dialled, for the last attempt failed, and the wait or the attempt after it was given up with the
    /// last wish.
    barred: Option<Instant>,
}

enum Phase {
    /// Nobody wants it.
    Idle,
    Opening {
        opening: BoxFuture<'static, Result<AdsStream, StreamError>>,
        /// None once it has been told of.
        slow: Option<Pin<Box<Sleep>>>,
        /// Whether it waited for something of this process when that was looked at last.
        held_up: bool,
        /// Whether that was told of.
        told: bool,
    },
    Open {
        requests: PollSender<Request>,
        /// False once the stream takes no more; the reading side knows why.
        writable: bool,
        responses: BoxStream<'static, Result<Response, StreamError>>,
    },
    Waiting(Pin<Box<Sleep>>),
}

/// What happened.
pub(super) enum Event {
    Opened,
    /// There is no stream yet, though there should be; it may still come. `held_up`: for want of something of this process.
    Slow {
        held_up: bool,
    },
    /// A request can be written now.
    Writable,
    Response(Response),
    /// The stream ended or could not be opened.
    Closed(Option<StreamError>),
    /// Time to open the next.
    Due,
}

impl Lane {
    pub(super) fn new(transport: Box<dyn Transport>) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self { transport, backoff, random: fastrand::Rng::new(), phase: Phase::Idle, barred: None }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Begins a stream.
    pub(super) fn open(&mut self, variant: Variant) {
        let slow = Some(Box::pin(tokio::time::sleep(SLOW)));
        let opening = self.transport.open(variant);
        self.phase = Phase::Opening { opening, slow, held_up: self.transport.is_held_up(), told: false };
    }

    /// Begins a stream after a while; a short one, if the stream before was `good`.
    pub(super) fn wait(&mut self, good: bool) {
        if good {
            self.backoff.reset();
        }
        let wait = self.backoff.next(self.random.f64());
        self.phase = Phase::Waiting(Box::pin(tokio::time::sleep(wait)));
    }

    /// Gives the connection up. A wait goes on, and an attempt after a failure counts as another one, unless its stream was
    /// `good`: wishes that come and go do not dial who cannot be reached, or takes streams and says nothing.
    pub(super) fn stop(&mut self, good: bool) {
        match &self.phase {
            Phase::Waiting(sleep) => self.barred = Some(sleep.deadline()),
            Phase::Open { .. } if good => self.backoff.reset(),
            Phase::Open { .. } | Phase::Opening { .. } if self.backoff.has_failed() => {
                self.barred = Some(Instant::now() + self.backoff.next(self.random.f64()));
            }
            Phase::Idle | Phase::Opening { .. } | Phase::Open { .. } => {}
        }
        self.phase = Phase::Idle;
    }

    /// Goes on with the wait that it was in when it was given up; false if that is over.
    pub(super) fn waits_on(&mut self) -> bool {
        let Some(end) = self.barred.take().filter(|end| *end > Instant::now()) else { return false };
        self.phase = Phase::Waiting(Box::pin(tokio::time::sleep_until(end)));
        true
    }

    /// Writes a request; only after [`Event::Writable`].
    pub(super) fn send(&mut self, request: Request) {
        if let Phase::Open { requests, writable, .. } = &mut self.phase {
            *writable = requests.send_item(request).is_ok();
        }
    }

    /// The next event. `write` says that there is a request, `read` that a response may be taken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, write: bool, read: bool) -> Poll<Event> {
        match &mut self.phase {
            Phase::Idle => Poll::Pending,
            Phase::Opening { opening, slow, held_up, told } => match opening.as_mut().poll(cx) {
                Poll::Ready(Ok(AdsStream { requests, responses })) => {
                    self.phase = Phase::Open { requests: PollSender::new(requests), writable: true, responses };
                    Poll::Ready(Event::Opened)
                }
                Poll::Ready(Err(error)) => Poll::Ready(Event::Closed(Some(error))),
                Poll::Pending => loop {
                    let Some(sleep) = slow else { return Poll::Pending };
                    ready!(sleep.as_mut().poll(cx));
                    let was = std::mem::replace(held_up, self.transport.is_held_up());
                    if was || *held_up {
                        // What follows has as long.
                        sleep.as_mut().reset(Instant::now() + SLOW);
                        if *held_up && !std::mem::replace(told, true) {
                            return Poll::Ready(Event::Slow { held_up: true });
                        }
                    } else {
                        *slow = None;
                        return Poll::Ready(Event::Slow { held_up: false });
                    }
                },
            },
            Phase::Open { requests, writable, responses } => {
                if write && *writable {
                    match requests.poll_reserve(cx) {
                        Poll::Ready(Ok(())) => return Poll::Ready(Event::Writable),
                        Poll::Ready(Err(_)) => *writable = false,
                        Poll::Pending => {}
                    }
                }
                // Where nothing can be answered any more, nothing piles up either, and only the responses tell of the end.
                if !read && *writable {
                    return Poll::Pending;
                }
                Poll::Ready(match ready!(responses.poll_next_unpin(cx)) {
                    Some(Ok(response)) => Event::Response(response),
                    Some(Err(error)) => Event::Closed(Some(error)),
                    None => Event::Closed(None),
                })
            }
            Phase::Waiting(sleep) => sleep.as_mut().poll(cx).map(|()| Event::Due),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use futures_util::stream;
    use mesh_testkit::clock;
    use tokio::sync::mpsc;

    use super::*;

    /// A network that swallows everything, streams too or what is said on them.
    #[derive(Default)]
    struct Hole {
        dials: Arc<AtomicUsize>,
        opens: bool,
        held_up: Arc<AtomicBool>,
    }

    impl Transport for Hole {
        fn open(&mut self, _: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
            self.dials.fetch_add(1, Ordering::Relaxed);
            if !self.opens {
                return Box::pin(pending());
            }
            let (requests, _) = mpsc::channel(1);
            Box::pin(async { Ok(AdsStream { requests, responses: stream::pending().boxed() }) })
        }

        fn is_held_up(&self) -> bool {
            self.held_up.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_takes_long_is_told_of_with_its_reason_and_has_its_time_after_a_hold() {
        // When, in seconds, the hold ends, and what is told when.
        for (ends, wanted) in [
            (None, vec![(2.5, true)]),
            (Some(0.0), vec![(2.5, false)]),
            (Some(2.4), vec![(5.0, false)]),
            (Some(5.1), vec![(2.5, true), (10.0, false)]),
        ] {
            let hole = Hole { held_up: Arc::new((ends != Some(0.0)).into()), ..Hole::default() };
            let (held_up, begun) = (hole.held_up.clone(), Instant::now());
            let mut lane = Lane::new(Box::new(hole));
            lane.open(Variant::Delta);
            let mut told = Vec::new();
            for step in 1..=300 {
                clock::pass(Duration::from_millis(100)).await;
                if ends.is_some_and(|ends| f64::from(step) >= ends * 10.0) {
                    held_up.store(false, Ordering::Relaxed);
                }
                poll_fn(|cx| {
                    while let Poll::Ready(Event::Slow { held_up }) = lane.poll(cx, false, true) {
                        told.push((begun.elapsed().as_secs_f64(), held_up));
                    }
                    Poll::Ready(())
                })
                .await;
            }
            assert_eq!(told, wanted, "{ends:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wishes_that_come_and_go_while_an_attempt_hangs_do_not_dial_each_time() {
        // The controls: what has not failed is dialled for each wish, and what has been answered since.
        let all = [(true, false, false), (true, true, false), (false, false, false), (true, true, true)];
        for (failed, opens, good) in all {
            let dials = Arc::new(AtomicUsize::new(0));
            let mut lane = Lane::new(Box::new(Hole { dials: dials.clone(), opens, ..Hole::default() }));
            if failed {
                lane.wait(false);
                // Its wait is over.
                lane.phase = Phase::Idle;
            }
            for _ in 0..100 {
                if !lane.waits_on() {
                    lane.open(Variant::Delta);
                }
                poll_fn(|cx| {
                    let opened = matches!(lane.poll(cx, false, true), Poll::Ready(Event::Opened));
                    assert_eq!(opened, opens && !matches!(lane.phase, Phase::Waiting(_)));
                    Poll::Ready(())
                })
                .await;
                lane.stop(good);
                clock::pass(Duration::from_millis(10)).await;
            }
            // In a second; no wait is shorter than a tenth of one.
            let dials = dials.load(Ordering::Relaxed);
            let few = failed && !good;
            assert!(if few { (1..=10).contains(&dials) } else { dials == 100 }, "{failed} {opens} {good}: {dials}");
        }
    }
}
