//! How long to wait before trying a connection again: pure, the draw is an argument.

use std::time::Duration;

/// Exponential back-off with jitter. The first try after a success comes quickly, so that a restarted
/// peer is found at once; the following ones spread over the whole span (full jitter).
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

/// Span of the first retry.
const FIRST: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(250));

impl Backoff {
    /// Spans of `base`, doubled each time, up to `max`.
    pub(crate) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// Notes a success: the next retry is quick again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next try; `draw` is uniform in `0.0..1.0`.
    pub(crate) fn next(&mut self, draw: f64) -> Duration {
        let (low, high) = match self.failures.checked_sub(1) {
            None => FIRST,
            Some(doublings) => {
                let span = self.base.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.max);
                (FIRST.0.min(span), span)
            }
        };
        self.failures = self.failures.saturating_add(1);
        low + (high - low).mul_f64(draw.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_quick_and_the_span_doubles_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let longest: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(longest, [250, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        for _ in 0..100 {
            assert_eq!(backoff.next(0.0), Duration::from_millis(100));
        }
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(250));
    }
}
