//! Latencies of one period, for a percentile of them: counted without a lock in buckets a sixteenth wide.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Counts of latencies. A percentile is exact to 3 %; what is longer than 18 minutes counts as so long.
#[derive(Debug)]
pub(super) struct Samples {
    count: AtomicU32,
    buckets: Box<[AtomicU32]>,
}

/// Buckets of one power of two, as a power of two.
const SUB_BITS: u32 = 4;
/// The longest latency told apart, in nanoseconds, as a power of two.
const LONGEST_BITS: u32 = 40;
const BUCKETS: usize = ((LONGEST_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

impl Samples {
    pub(super) fn new() -> Self {
        Self { count: AtomicU32::new(0), buckets: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Counts a latency; gives how many there are by now.
    pub(super) fn record(&self, latency: Duration) -> u32 {
        self.buckets[bucket(latency)].fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Forgets all, and gives the latency below which this share of them is, in nanoseconds; `None` if there were
    /// none. What is recorded meanwhile may be lost.
    pub(super) fn take(&self, share: f64) -> Option<f64> {
        self.count.store(0, Ordering::Relaxed);
        let counts: Vec<u32> = self.buckets.iter().map(|bucket| bucket.swap(0, Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(middle)
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).min((1 << LONGEST_BITS) - 1);
    if nanos < 1 << SUB_BITS {
        return nanos as usize;
    }
    let power = nanos.ilog2();
    let sub = (nanos >> (power - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (((power - SUB_BITS + 1) << SUB_BITS) as u64 + sub) as usize
}

/// The middle of a bucket, in nanoseconds; above 0.
fn middle(bucket: usize) -> f64 {
    let (group, sub) = (bucket >> SUB_BITS, (bucket & ((1 << SUB_BITS) - 1)) as f64);
    if group == 0 {
        return sub.max(0.5);
    }
    let width = (1_u64 << (group - 1)) as f64;
    (f64::from(1 << SUB_BITS) + sub + 0.5) * width
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_percentile_and_all_of_one_is_it() {
        let samples = Samples::new();
        assert_eq!((samples.take(0.5), samples.is_empty()), (None, true));
        assert_eq!(samples.record(Duration::from_secs(1)), 1);
        assert!(!samples.is_empty());
        for share in [0.0, 0.5, 1.0] {
            let one = Samples::new();
            one.record(Duration::from_secs(1));
            let found = one.take(share).unwrap();
            assert!((0.96e9..1.04e9).contains(&found), "{found}");
            assert_eq!(one.take(share), None, "it was taken");
        }
        // Nothing is too long or too short.
        for extreme in [Duration::ZERO, Duration::MAX] {
            samples.record(extreme);
            assert!(samples.take(1.0).unwrap() > 0.0);
        }
    }

    proptest! {
        #[test]
        fn a_percentile_is_exact_to_three_percent(
            mut nanos in prop::collection::vec(100..1_000_000_000_000_u64, 1..300), share in 0.0..=1.0_f64,
        ) {
            let samples = Samples::new();
            for n in &nanos {
                samples.record(Duration::from_nanos(*n));
            }
            nanos.sort_unstable();
            let rank = ((nanos.len() as f64 * share).ceil() as usize).max(1);
            let (want, got) = (nanos[rank - 1] as f64, samples.take(share).unwrap());
            prop_assert!((got / want - 1.0).abs() <= 1.0 / 32.0 + 1e-9, "{} for {}", got, want);
        }
    }
}
