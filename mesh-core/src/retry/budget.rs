//! Linkerd's retry budget: retries may add a share of the original requests, with a minimum rate.

use std::time::Duration;

use tokio::time::Instant;

use crate::limit::window::{Counts, Window};
use crate::policy::RetryBudget;

/// The budget of one destination, shared by all its routes (Linkerd ServiceProfile `retryBudget`).
///
/// Within the last `ttl` at most `retry_ratio × requests + min_retries_per_second × ttl` retries are
/// allowed. The window slides in tenths of `ttl`. Recording takes no lock; of retries asked for in the
/// same instant by several threads a few more than allowed may pass.
#[derive(Debug)]
pub struct Budget {
    policy: RetryBudget,
    // First requests, then retries.
    window: Window,
}

impl Budget {
    /// A budget that nothing has been drawn from. Outside Linkerd's bounds (ratio 0 to 1000, ttl 1 s to
    /// 60 s) it allows no retries, as Linkerd's proxy does.
    pub fn new(policy: RetryBudget, now: Instant) -> Self {
        Self { window: Window::new(policy.ttl, now), policy }
    }

    /// Counts an original request, which earns its share of a retry.
    pub fn record_request(&self, now: Instant) {
        self.window.add(now, Counts { first: 1, second: 0 });
    }

    /// Whether it has a retry left. Nothing is taken: see [`record_retry`](Self::record_retry).
    pub fn allows(&self, now: Instant) -> bool {
        if !self.is_valid() {
            return false;
        }
        let (Counts { first: requests, second: retries }, _) = self.window.sum(now);
        let earned = u128::from(requests) * u128::from(self.policy.retry_ratio.0) / 1_000_000;
        let floor = u128::from(self.policy.min_retries_per_second) * self.policy.ttl.as_millis() / 1000;
        u128::from(retries) < earned + floor
    }

    /// Takes one retry out, which will be made.
    pub fn record_retry(&self, now: Instant) {
        self.window.add(now, Counts { first: 0, second: 1 });
    }

    fn is_valid(&self) -> bool {
        let bounds = Duration::from_secs(1)..=Duration::from_secs(60);
        self.policy.retry_ratio.0 <= 1_000_000_000 && bounds.contains(&self.policy.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PerMillionRatio;

    fn policy(ratio: u64, min_retries_per_second: u32, ttl: Duration) -> RetryBudget {
        RetryBudget { retry_ratio: PerMillionRatio(ratio), min_retries_per_second, ttl }
    }

    fn try_retry(budget: &Budget, now: Instant) -> bool {
        let allowed = budget.allows(now);
        if allowed {
            budget.record_retry(now);
        }
        allowed
    }

    fn retries(budget: &Budget, now: Instant) -> usize {
        (0..10_000).take_while(|_| try_retry(budget, now)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_requests_above_the_minimum_rate() {
        let start = Instant::now();
        let budget = Budget::new(policy(200_000, 10, Duration::from_secs(10)), start);
        for _ in 0..50 {
            budget.record_request(start);
        }
        assert_eq!(retries(&budget, start), 10 + 100, "0.2 × 50 requests and 10 a second for 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn asking_takes_nothing() {
        let start = Instant::now();
        let budget = Budget::new(policy(0, 1, Duration::from_secs(1)), start);
        assert!(budget.allows(start) && budget.allows(start));
        budget.record_retry(start);
        assert!(!budget.allows(start), "control: what is made is taken");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_retries_are_forgotten_after_the_ttl() {
        let start = Instant::now();
        let budget = Budget::new(policy(500_000, 0, Duration::from_secs(10)), start);
        for _ in 0..4 {
            budget.record_request(start);
        }
        assert!(try_retry(&budget, start));
        let late = start + Duration::from_millis(9_999);
        assert_eq!(retries(&budget, late), 1, "one of two is left within the ttl");
        let over = start + Duration::from_secs(10);
        assert!(!try_retry(&budget, over), "the requests no longer earn");
        budget.record_request(over);
        budget.record_request(over);
        assert_eq!(retries(&budget, over), 0, "the retry of 9.999 s still counts");
        assert_eq!(retries(&budget, over + Duration::from_millis(9_000)), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn out_of_bounds_settings_allow_nothing() {
        let start = Instant::now();
        let ten = Duration::from_secs(10);
        for bad in [
            policy(1_000_000_001, 10, ten),
            policy(1, 10, Duration::from_millis(999)),
            policy(1, 10, Duration::from_secs(61)),
            policy(1, 10, Duration::ZERO),
        ] {
            let budget = Budget::new(bad.clone(), start);
            budget.record_request(start);
            assert_eq!(retries(&budget, start), 0, "{bad:?}");
        }
        assert_eq!(retries(&Budget::new(policy(0, 1, ten), start), start), 10, "control");
    }

    #[tokio::test(start_paused = true)]
    async fn days_later_it_still_counts() {
        let start = Instant::now();
        let budget = Budget::new(policy(1_000_000, 0, Duration::from_secs(1)), start);
        for day in [1_u64, 13, 4000] {
            let now = start + Duration::from_secs(day * 86_400);
            budget.record_request(now);
            assert_eq!(retries(&budget, now), 1, "day {day}");
        }
    }
}
