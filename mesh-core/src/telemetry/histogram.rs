//! A histogram of atomics over Envoy's bucket bounds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in milliseconds: Envoy's, so that quantiles over sidecars and this library add up.
pub const BUCKETS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The bounds in nanoseconds.
const BOUNDS: [u64; BUCKETS_MS.len()] = {
    let mut bounds = [0; BUCKETS_MS.len()];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = (BUCKETS_MS[at] * 1e6) as u64;
        at += 1;
    }
    bounds
};

/// Counts of durations by bucket, and their sum.
#[derive(Debug, Default)]
pub struct Histogram {
    // One more than the bounds: what is above the last.
    counts: [AtomicU64; BUCKETS_MS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(nanos / 1000, Ordering::Relaxed);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }

    /// Their sum, milliseconds.
    pub fn sum_ms(&self) -> f64 {
        self.sum_micros.load(Ordering::Relaxed) as f64 / 1000.0
    }

    /// Counts by bucket (not cumulative); the last is for durations above every bound.
    pub fn counts(&self) -> [u64; BUCKETS_MS.len() + 1] {
        std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_nothing_is_lost() {
        let histogram = Histogram::default();
        for ms in [0, 1, 5, 6, 4_000_000] {
            histogram.record(Duration::from_millis(ms));
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[2], counts[3], counts[19]), (1, 1, 1, 1, 1));
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.sum_ms(), 4_000_012.0);
    }
}
