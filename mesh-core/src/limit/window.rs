//! Two counts over a sliding window, taken without a lock.

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::{AtomicU64, Ordering};

/// Two counts of what happened in the last so much time; the window slides in tenths.
#[derive(Debug)]
pub(crate) struct Window {
    start: Instant,
    // Nanoseconds; above 0.
    slot: u64,
    slots: [Slot; SLOTS as usize],
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

const SLOTS: u64 = 10;

/// Counts of one slot: tag (20 bits), first (22), second (22), so that one atomic holds all.
#[derive(Debug, Default)]
struct Slot(AtomicU64);

const COUNT_BITS: u32 = 22;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const TAG_MAX: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

impl Window {
    pub(crate) fn new(length: Duration, now: Instant) -> Self {
        let slot = (nanos(length) / SLOTS).max(1);
        Self { start: now, slot, slots: std::array::from_fn(|_| Slot::default()) }
    }

    /// Counts what happens now. More than 4 million in one slot count as so many.
    pub(crate) fn add(&self, now: Instant, more: Counts) {
        let index = self.index(now);
        self.slots[(index % SLOTS) as usize].add(tag(index), more);
    }

    /// What happened within the window, and how long ago it began to; that is exact to a tenth of the window.
    pub(crate) fn sum(&self, now: Instant) -> (Counts, Duration) {
        let index = self.index(now);
        let (mut sum, mut oldest) = (Counts::default(), None);
        for past in index.saturating_sub(SLOTS - 1)..=index {
            let counts = self.slots[(past % SLOTS) as usize].counts(tag(past));
            sum.first += counts.first;
            sum.second += counts.second;
            if counts != Counts::default() {
                oldest = oldest.or(Some(past));
            }
        }
        let age = oldest.map(|oldest| self.since(now).saturating_sub(oldest * self.slot));
        (sum, Duration::from_nanos(age.unwrap_or(0)))
    }

    /// Number of the slot that `now` is in.
    fn index(&self, now: Instant) -> u64 {
        self.since(now) / self.slot
    }

    fn since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

/// At most 584 years: a wider number is divided by a function, and that for every request.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells times apart that share a slot. It comes round after 12 days in a window of a second; a slot unused for
/// exactly so long would count what is old once.
fn tag(index: u64) -> u64 {
    (index / SLOTS) & TAG_MAX
}

impl Slot {
    fn counts(&self, tag: u64) -> Counts {
        unpack(self.0.load(Ordering::Relaxed), tag)
    }

    fn add(&self, tag: u64, more: Counts) {
        // Always Some, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let counts = unpack(packed, tag);
            let first = (counts.first + more.first).min(COUNT_MAX);
            let second = (counts.second + more.second).min(COUNT_MAX);
            Some(tag << (2 * COUNT_BITS) | first << COUNT_BITS | second)
        });
    }
}

/// The counts, or none if they are of an older time.
fn unpack(packed: u64, tag: u64) -> Counts {
    if packed >> (2 * COUNT_BITS) != tag {
        return Counts::default();
    }
    Counts { first: packed >> COUNT_BITS & COUNT_MAX, second: packed & COUNT_MAX }
}
