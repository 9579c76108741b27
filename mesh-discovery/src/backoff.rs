//! How long to wait before trying a connection again: pure, the draw is an argument.

use std::time::Duration;

/// Exponential back-off with full jitter: the wait is drawn from a span that begins with the base and doubles with
/// every failure. Peers that lost the same server at the same moment come back spread over the span, the first time
/// too: a server that restarts is met by a herd otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

/// The shortest wait: what fails at once is not tried again at once.
const SHORTEST: Duration = Duration::from_millis(100);

impl Backoff {
    /// Spans of `base`, doubled each time, up to `max`.
    pub(crate) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// Notes a success: the next span is the base again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether nothing has succeeded since a failure.
    pub(crate) fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// The wait before the next try; `draw` is uniform in `0.0..1.0`.
    pub(crate) fn next(&mut self, draw: f64) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let span = self.base.saturating_mul(factor).min(self.max);
        self.failures = self.failures.saturating_add(1);
        let shortest = SHORTEST.min(span);
        shortest + (span - shortest).mul_f64(draw.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_begins_with_the_base_and_doubles_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let longest: Vec<_> = (0..8).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 16, 30, 30, 30]);
        for _ in 0..100 {
            assert_eq!(backoff.next(0.0), Duration::from_millis(100));
        }
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_secs(1));
    }

    /// R03: no tenth of a second gets more than its share of the span.
    #[test]
    fn the_whole_span_is_used_evenly_from_the_first_retry_on() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut bins = [0u32; 9];
        for _ in 0..90_000 {
            let wait = Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).next(random.f64());
            bins[(wait.as_millis() as usize - 100) / 100] += 1;
        }
        // 10,000 each; a standard deviation is below 95.
        assert!(bins.iter().all(|bin| (9_500..=10_500).contains(bin)), "{bins:?}");
    }
}
