//! The end of the time that what is in flight has, and who waits for it: each request that has no answer yet, and each
//! gRPC call whose answer goes on. Over HTTP/2 who waits is a task of its own, so it has to be woken.
//!
//! No request takes a lock for it: one that has to wait takes one of its connection's seats, which are there already.
//! Refuses to know what is said to those whose time is over.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// What those are told whose time is over.
pub(super) const WORD: &str = "the connection ends, and the call has had its time";

/// Seats that are made at once.
const SEATS: usize = u32::BITS as usize;

/// Whether the time is over for what is in flight on a connection.
#[derive(Default)]
pub(super) struct Over {
    over: AtomicBool,
    rows: Row,
}

/// A first row, if anybody had to wait, and those after it, if they did not suffice.
#[derive(Default)]
struct Row(OnceLock<Box<Seats>>);

#[derive(Default)]
struct Seats {
    taken: AtomicU32,
    wakers: [AtomicWaker; SEATS],
    next: Row,
}

/// A request's word with [`Over`]. It gives its seat back when it is dropped.
pub(super) struct Wait {
    over: Arc<Over>,
    /// Over HTTP/1.1 a request is asked again with its connection, without being woken.
    alone: bool,
    seat: Option<usize>,
}

impl Over {
    /// The time is over. To be said once, by whoever drives the connection.
    pub(super) fn give_up(&self) {
        self.over.store(true, Ordering::SeqCst);
        // Whoever sits in a row that is not seen here sees what was just said.
        fence(Ordering::SeqCst);
        let mut row = &self.rows;
        while let Some(seats) = row.0.get() {
            seats.wakers.iter().for_each(AtomicWaker::wake);
            row = &seats.next;
        }
    }

    /// Takes the first free seat.
    fn sit(&self) -> usize {
        let (mut row, mut before) = (&self.rows, 0);
        loop {
            let seats = row.0.get_or_init(Box::default);
            let mut taken = seats.taken.load(Ordering::Relaxed);
            while taken != u32::MAX {
                let free = taken.trailing_ones();
                match seats.taken.compare_exchange_weak(taken, taken | 1 << free, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => return before + free as usize,
                    Err(now) => taken = now,
                }
            }
            (row, before) = (&seats.next, before + SEATS);
        }
    }

    /// The row of a seat that was taken, and its place there.
    fn find(&self, seat: usize) -> Option<(&Seats, usize)> {
        let mut seats = self.rows.0.get()?;
        for _ in 0..seat / SEATS {
            seats = seats.next.0.get()?;
        }
        Some((seats, seat % SEATS))
    }
}

impl Wait {
    pub(super) fn new(over: &Arc<Over>, alone: bool) -> Self {
        Self { over: over.clone(), alone, seat: None }
    }

    /// Whether the time is over; if not, the task is woken when it is.
    pub(super) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        if self.alone && !self.over.over.load(Ordering::Relaxed) {
            let seat = match self.seat {
                Some(seat) => seat,
                None => {
                    let seat = *self.seat.insert(self.over.sit());
                    fence(Ordering::SeqCst);
                    seat
                }
            };
            if let Some((seats, at)) = self.over.find(seat) {
                seats.wakers[at].register(cx.waker());
            }
        }
        self.over.over.load(Ordering::SeqCst)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some((seats, at)) = self.seat.and_then(|seat| self.over.find(seat)) {
            drop(seats.wakers[at].take());
            seats.taken.fetch_and(!(1 << at), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn task() -> (Arc<Woken>, Waker) {
        let woken = Arc::<Woken>::default();
        (woken.clone(), woken.into())
    }

    #[test]
    fn each_that_waits_is_woken_once_and_who_has_left_is_not() {
        let over = Arc::<Over>::default();
        let (woken, waker) = task();
        let cx = Context::from_waker(&waker);
        let mut waiting: Vec<_> = (0..100).map(|_| Wait::new(&over, true)).collect();
        for _ in 0..2 {
            assert!(waiting.iter_mut().all(|wait| !wait.is_over(&cx)));
        }
        let seats: Vec<_> = waiting.iter().map(|wait| wait.seat.unwrap()).collect();
        assert_eq!(seats, (0..100).collect::<Vec<_>>());
        waiting.drain(20..50);
        let mut late = Wait::new(&over, true);
        assert!(!late.is_over(&cx));
        assert_eq!(late.seat, Some(20), "the first that was given back");
        let mut beside = Wait::new(&over, false);
        assert!(!beside.is_over(&cx) && beside.seat.is_none());

        over.give_up();
        assert_eq!(woken.0.load(Ordering::SeqCst), 71);
        waiting.extend([late, beside, Wait::new(&over, true)]);
        assert!(waiting.iter_mut().all(|wait| wait.is_over(&cx)));
        drop(waiting);
        let (mut row, mut taken) = (&over.rows, Vec::new());
        while let Some(seats) = row.0.get() {
            taken.push(seats.taken.load(Ordering::SeqCst));
            row = &seats.next;
        }
        assert_eq!(taken, [0; 4]);
        assert_eq!(Arc::strong_count(&woken), 2, "no waker is left behind");
    }

    /// However the threads come, each request either is woken or has heard of it by itself.
    #[test]
    fn nobody_who_sits_down_meanwhile_is_forgotten() {
        for _ in 0..200 {
            let over = Arc::<Over>::default();
            let start = std::sync::Barrier::new(5);
            std::thread::scope(|scope| {
                let requests: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            let waits = (0..20).map(|_| {
                                let ((woken, waker), mut wait) = (task(), Wait::new(&over, true));
                                let heard = wait.is_over(&Context::from_waker(&waker));
                                (heard, woken, wait)
                            });
                            waits.collect::<Vec<_>>()
                        })
                    })
                    .collect();
                start.wait();
                over.give_up();
                for (heard, woken, _wait) in requests.into_iter().flat_map(|request| request.join().unwrap()) {
                    assert!(heard || woken.0.load(Ordering::SeqCst) == 1);
                }
            });
        }
    }
}
