//! Consistent hashing with bounded loads (Mirrokni et al., 2018; Envoy `hash_balance_factor`): an endpoint that has its
//! share and a little more leaves further requests to others, so that no key is too hot.

use std::time::Duration;

use twox_hash::XxHash64;

use super::weights::Excluded;
use super::{Candidates, Draw, Pick, Picker, Score};
use crate::sync::{AtomicU32, AtomicUsize, Ordering};

/// A picker that hashes, and a bound on the requests in flight of each candidate: `factor` per cent of the mean, by
/// weight, rounded up, the new request included. Where the owner of a key is full, the key is hashed once more, and so
/// on until one has room (Chen et al., 2019: the next one on the ring would soon be full as well): the same key overflows
/// to the same candidates. When that takes too long, the one with the fewest in flight for its weight is picked.
///
/// The sum of what is in flight is exact up to 32 candidates. Of more, each pick looks at a stretch, so that a
/// pick costs the same for any number of them.
#[derive(Debug)]
pub struct Bounded<P> {
    inner: P,
    candidates: Candidates,
    // Per cent of the mean.
    factor: u128,
    // Of all candidates.
    weight: u128,
    // What was in flight when it was looked at last, and the sum of that.
    seen: Box<[AtomicU32]>,
    sum: AtomicU32,
    next: AtomicUsize,
}

/// Candidates that one pick looks at.
const STRETCH: usize = 32;
/// Hashes after the first that are tried.
const JUMPS: usize = 16;

impl<P: Picker> Bounded<P> {
    /// Bounds what `inner` picks among the same `candidates`. A `factor` below 100 is 100: less than the mean is no
    /// place for all.
    pub fn new(inner: P, candidates: Candidates, factor: u32) -> Self {
        let weight = candidates.iter().map(|c| u128::from(c.weight.get())).sum();
        let seen = candidates.iter().map(|_| AtomicU32::new(0)).collect();
        let factor = u128::from(factor.max(100));
        Self { inner, candidates, factor, weight, seen, sum: AtomicU32::new(0), next: AtomicUsize::new(0) }
    }

    /// Looks at some candidates; gives what all have in flight.
    fn look(&self) -> u32 {
        let len = self.candidates.len();
        let start = if len <= STRETCH { 0 } else { self.next.fetch_add(STRETCH, Ordering::Relaxed) % len };
        for index in (start..start + len.min(STRETCH)).map(|index| index % len) {
            let now = self.candidates[index].in_flight();
            if self.seen[index].load(Ordering::Relaxed) != now {
                // Whoever swaps accounts for the difference: so the sum stays that of what was seen.
                let before = self.seen[index].swap(now, Ordering::Relaxed);
                self.sum.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
        }
        self.sum.load(Ordering::Relaxed)
    }

    /// Whether a candidate may have one more while `all` are in flight.
    fn has_room(&self, index: usize, all: u32) -> bool {
        let candidate = &self.candidates[index];
        let share = (u128::from(all) + 1) * self.factor * u128::from(candidate.weight.get());
        u128::from(candidate.in_flight()) < share.div_ceil(100 * self.weight)
    }

    /// Looks on after a pick that is full.
    #[cold]
    fn overflow(&self, first: usize, hash: u64, all: u32, pick: &Pick<'_>, draw: &mut Draw<'_>) -> usize {
        let mut hash = hash;
        for _ in 0..JUMPS {
            hash = XxHash64::oneshot(hash, b"next");
            match self.inner.pick(&Pick { hash: Some(hash), ..*pick }, draw) {
                Some(other) if self.has_room(other, all) => return other,
                _ => {}
            }
        }
        let excluded = Excluded::new(pick.tried, self.candidates.len());
        let allowed = (0..self.candidates.len()).filter(|index| !excluded.contains(*index));
        let load = |index: &usize| {
            let candidate = &self.candidates[*index];
            f64::from(candidate.in_flight()) / f64::from(candidate.weight.get())
        };
        allowed.min_by(|a, b| load(a).total_cmp(&load(b))).unwrap_or(first)
    }
}

impl<P: Picker> Picker for Bounded<P> {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let hash = pick.hash.unwrap_or_else(|| draw(u64::MAX));
        let first = self.inner.pick(&Pick { hash: Some(hash), ..*pick }, draw)?;
        if self.candidates[first].in_flight() == 0 {
            return Some(first);
        }
        let all = self.look();
        Some(if self.has_room(first, all) { first } else { self.overflow(first, hash, all, pick, draw) })
    }

    fn score(&self, index: usize, now: Duration) -> Option<Score> {
        self.inner.score(index, now)
    }

    fn may_ramp(&self) -> bool {
        self.inner.may_ramp()
    }
}
