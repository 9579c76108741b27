//! gRPC's retry throttling (gRFC A6): a bucket that failures empty and successes fill.

use serde::Serialize;

use crate::policy::InvalidPolicy;
use crate::sync::{AtomicU64, Ordering};

/// `retryThrottling` of a gRPC service config. xDS has no place for it: Envoy's retry budget is what comes over xDS.
///
/// ```
/// use mesh_core::retry::RetryThrottling;
///
/// // Ten failures without a success halve the bucket's twenty tokens: no more retries, until there are more than ten.
/// let throttling = RetryThrottling::new(20, 0.1)?;
/// # assert!(RetryThrottling::new(0, 0.1).is_err() && RetryThrottling::new(20, 0.0).is_err());
/// # Ok::<(), mesh_core::policy::InvalidPolicy>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RetryThrottling {
    max_tokens: u32,
    // Thousandths.
    token_ratio: u32,
}

/// Tokens at most (gRFC A6).
const MAX_TOKENS: u32 = 1000;
/// A token.
const TOKEN: u64 = 1000;

impl RetryThrottling {
    /// `maxTokens` (1 to 1000) and `tokenRatio` (above 0, of which three decimal places count).
    ///
    /// # Errors
    /// One of them is out of its bounds.
    pub fn new(max_tokens: u32, token_ratio: f64) -> Result<Self, InvalidPolicy> {
        if !(1..=MAX_TOKENS).contains(&max_tokens) {
            return Err(InvalidPolicy::new("maxTokens", format!("{max_tokens} is not from 1 to {MAX_TOKENS}")));
        }
        let thousandths = (token_ratio * TOKEN as f64).floor();
        if thousandths.is_nan() || thousandths < 1.0 {
            return Err(InvalidPolicy::new("tokenRatio", format!("{token_ratio} is not at least 0.001")));
        }
        // More than all tokens at once makes no difference.
        Ok(Self { max_tokens, token_ratio: thousandths.min(f64::from(MAX_TOKENS) * TOKEN as f64) as u32 })
    }
}

/// The bucket of one destination, shared by all its requests: full at first. Takes no lock.
#[derive(Debug)]
pub struct RetryTokens {
    policy: RetryThrottling,
    // Thousandths.
    tokens: AtomicU64,
}

impl RetryTokens {
    /// A full bucket.
    pub fn new(policy: RetryThrottling) -> Self {
        let tokens = AtomicU64::new(u64::from(policy.max_tokens) * TOKEN);
        Self { policy, tokens }
    }

    /// Counts a try that failed so that policy would try again, or whose answer forbids to: it costs a token.
    pub fn failed(&self) {
        self.change(|tokens| tokens.saturating_sub(TOKEN));
    }

    /// Counts a try that succeeded: it earns its share of a token.
    pub fn succeeded(&self) {
        let (all, ratio) = (self.all(), u64::from(self.policy.token_ratio));
        // Nearly always it is full, and then nothing is written.
        if self.tokens.load(Ordering::Relaxed) < all {
            self.change(|tokens| (tokens + ratio).min(all));
        }
    }

    /// Whether there may be a retry, or a hedged try: more than half of the tokens are left.
    pub fn allows(&self) -> bool {
        self.tokens.load(Ordering::Relaxed) > self.all() / 2
    }

    fn all(&self) -> u64 {
        u64::from(self.policy.max_tokens) * TOKEN
    }

    fn change(&self, to: impl Fn(u64) -> u64) {
        let mut tokens = self.tokens.load(Ordering::Relaxed);
        while let Err(now) = self.tokens.compare_exchange_weak(tokens, to(tokens), Ordering::Relaxed, Ordering::Relaxed)
        {
            tokens = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(max_tokens: u32, token_ratio: f64) -> RetryTokens {
        RetryTokens::new(RetryThrottling::new(max_tokens, token_ratio).unwrap())
    }

    #[test]
    fn a6_half_of_the_tokens_has_to_be_left() {
        let bucket = bucket(10, 0.5);
        for failures in 1..=4 {
            bucket.failed();
            assert!(bucket.allows(), "{failures}");
        }
        bucket.failed();
        assert!(!bucket.allows(), "five of ten are not more than half");
        bucket.succeeded();
        assert!(bucket.allows(), "and five and a half are");
    }

    #[test]
    fn a6_it_is_never_more_than_full_or_less_than_empty() {
        let bucket = bucket(4, 1.0);
        (0..1000).for_each(|_| bucket.failed());
        bucket.succeeded();
        bucket.succeeded();
        assert!(!bucket.allows());
        (0..1000).for_each(|_| bucket.succeeded());
        bucket.failed();
        assert!(bucket.allows());
        bucket.failed();
        assert!(!bucket.allows());
    }

    #[test]
    fn a6_the_ratio_has_three_decimal_places_and_settings_have_bounds() {
        let policy = |max, ratio| RetryThrottling::new(max, ratio).map(|policy| policy.token_ratio);
        assert_eq!(policy(10, 0.5466), Ok(546));
        assert_eq!(policy(1000, f64::INFINITY), Ok(1_000_000));
        for (max, ratio) in [(0, 0.1), (1001, 0.1), (10, 0.000_9), (10, -1.0), (10, f64::NAN)] {
            assert!(policy(max, ratio).is_err(), "{max} {ratio}");
        }
    }
}
