//! The token bucket of local rate limits (Envoy `local_ratelimit`).

use std::time::Duration;

use tokio::time::Instant;

use crate::policy;
use crate::sync::{AtomicU64, Ordering};

/// Tokens that come steadily, `tokens_per_fill` in each `fill_interval`, up to `max_tokens`, with which it begins. As
/// in Envoy since 1.31 they come one by one and not in one go at the end of an interval.
///
/// One atomic: the moment at which the bucket was, or would have been, empty.
#[derive(Debug)]
pub struct TokenBucket {
    start: Instant,
    // Nanoseconds in which a token comes, and in which an empty bucket is full.
    token: f64,
    full: f64,
    // Nanoseconds from the start, as the bits of an f64; before the start if it is full then.
    empty_at: AtomicU64,
}

/// What rounding may take from a token that is due, in nanoseconds.
const ROUNDING: f64 = 0.5;

impl TokenBucket {
    /// A full bucket.
    pub fn new(policy: &policy::TokenBucket, now: Instant) -> Self {
        let token = policy.fill_interval.as_nanos() as f64 / f64::from(policy.tokens_per_fill.max(1));
        let full = token * f64::from(policy.max_tokens);
        Self { start: now, token, full, empty_at: AtomicU64::new((-full).to_bits()) }
    }

    /// Takes a token, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let now = self.since(now);
        let taken = self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let next = self.empty_at(bits, now) + self.token;
            (next <= now + ROUNDING).then_some(next.to_bits())
        });
        taken.is_ok()
    }

    /// Whole tokens in it.
    pub fn tokens(&self, now: Instant) -> u32 {
        let now = self.since(now);
        let filling = now - self.empty_at(self.empty_at.load(Ordering::Relaxed), now);
        ((filling + ROUNDING) / self.token) as u32
    }

    /// Time until there is a token; zero if there is one.
    pub fn wait(&self, now: Instant) -> Duration {
        let now = self.since(now);
        let next = self.empty_at(self.empty_at.load(Ordering::Relaxed), now) + self.token;
        Duration::from_nanos((next - ROUNDING - now).max(0.0).ceil() as u64)
    }

    fn empty_at(&self, bits: u64, now: f64) -> f64 {
        f64::from_bits(bits).max(now - self.full)
    }

    fn since(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.start).as_nanos() as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(max_tokens: u32, tokens_per_fill: u32, millis: u64) -> policy::TokenBucket {
        policy::TokenBucket { max_tokens, tokens_per_fill, fill_interval: Duration::from_millis(millis) }
    }

    fn taken(bucket: &TokenBucket, now: Instant, asked: u32) -> u32 {
        (0..asked).map(|_| u32::from(bucket.take(now))).sum()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let bucket = TokenBucket::new(&policy(5, 2, 1000), start);
        assert_eq!((bucket.tokens(start), taken(&bucket, start, 100)), (5, 5));
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(bucket.wait(at(100)), Duration::from_millis(400));
        assert!(!bucket.take(at(499)));
        assert_eq!((taken(&bucket, at(500), 9), taken(&bucket, at(999), 9)), (1, 0), "tokens come one by one");
        assert_eq!(bucket.wait(at(999)), Duration::from_millis(1));
        assert_eq!(taken(&bucket, at(2500), 9), 4);
        // However long nobody asks, it does not hold more.
        assert_eq!((bucket.tokens(at(86_400_000)), taken(&bucket, at(86_400_000), 100)), (5, 5));
    }

    #[test]
    fn a_time_before_the_start_is_the_start() {
        let now = Instant::now();
        let bucket = TokenBucket::new(&policy(1, 1, 1000), now + Duration::from_secs(9));
        assert_eq!((taken(&bucket, now, 5), bucket.wait(now)), (1, Duration::from_secs(1)));
    }

    #[test]
    fn threads_together_get_no_more_than_there_is() {
        let start = Instant::now();
        let bucket = TokenBucket::new(&policy(10_000, 1, 3_600_000), start);
        let got: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| taken(&bucket, start, 5000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(got, 10_000);
    }

    proptest! {
        // Whoever asks all the time gets the burst and the rate, to the token; whoever asks seldom gets no more.
        #[test]
        fn never_more_than_burst_and_rate_and_not_less_for_who_asks(
            max in 1..200_u32, fill in 1..500_u32, interval in 50..5000_u64, waits in prop::collection::vec(0..400_u64, 1..200),
            greedy in any::<bool>(),
        ) {
            let start = Instant::now();
            let bucket = TokenBucket::new(&policy(max, fill, interval), start);
            let (mut now, mut got) = (start, 0_u64);
            let mut lost = false;
            for wait in waits {
                let asked = if greedy { u32::MAX } else { 3 };
                for _ in 0..asked {
                    if !bucket.take(now) { break; }
                    got += 1;
                }
                now += Duration::from_millis(wait);
                // A full bucket loses what comes.
                lost |= bucket.tokens(now) >= max;
            }
            got += u64::from(taken(&bucket, now, max));
            let came = (now - start).as_millis() as f64 * f64::from(fill) / interval as f64;
            let most = f64::from(max) + came;
            prop_assert!(got as f64 <= most + 1e-6, "{} of {}", got, most);
            if greedy && !lost {
                prop_assert!(got as f64 > most - 1.0 - 1e-6, "{} of {}", got, most);
            }
        }
    }
}
