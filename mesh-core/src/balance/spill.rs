//! Spill-over by load: the first priority (the own zone) serves alone while its endpoints have few
//! requests in flight; above a high mark a growing share goes on to the next priority, below a low mark
//! it comes back by and by.

use super::Draw;
use crate::policy::LoadSpill;
use crate::sync::{AtomicU32, Ordering};

#[derive(Debug)]
pub(super) struct Spill {
    low: u32,
    high: u32,
    // Millionths that go on.
    share: AtomicU32,
}

const ALL: u32 = 1_000_000;
/// How much one request that finds its endpoint too busy, or idle enough, moves the share.
const STEP: u32 = ALL / 200;

impl Spill {
    pub(super) fn new(policy: &LoadSpill) -> Self {
        Self { low: policy.low.min(policy.high), high: policy.high.max(1), share: AtomicU32::new(0) }
    }

    /// Goes on from what the share is in `before`.
    pub(super) fn follow(&self, before: &Self) {
        self.share.store(before.share.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether a request goes on to the next priority; `in_flight` is what the endpoint picked in this
    /// one has.
    pub(super) fn goes_on(&self, in_flight: u32, draw: &mut Draw<'_>) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        let next = if in_flight >= self.high {
            (share + STEP).min(ALL)
        } else if in_flight <= self.low {
            share.saturating_sub(STEP)
        } else {
            share
        };
        if next != share {
            // Two at once count as one: the next request goes on from there.
            self.share.store(next, Ordering::Relaxed);
        }
        next > 0 && draw(u64::from(ALL)) < u64::from(next)
    }

    /// Whether one may do so where no endpoint has more in flight.
    pub(super) fn may_go_on(&self, in_flight: u32) -> bool {
        in_flight >= self.high || self.share.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_above_the_high_mark_and_comes_back_below_the_low_one() {
        let spill = Spill::new(&LoadSpill { low: 2, high: 8 });
        let mut rng = fastrand::Rng::with_seed(3);
        let mut gone = |in_flight| (0..1000).filter(|_| spill.goes_on(in_flight, &mut |n| rng.u64(..n))).count();
        assert_eq!(gone(2), 0);
        assert_eq!(gone(7), 0, "between the marks nothing changes");
        let rising = gone(8);
        assert!((800..1000).contains(&rising), "{rising}");
        assert_eq!(gone(5), 1000, "between the marks nothing changes");
        let falling = gone(1);
        assert!((50..200).contains(&falling), "{falling}");
        assert_eq!(gone(1), 0);
    }
}
