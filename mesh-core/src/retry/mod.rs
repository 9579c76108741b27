//! Whether and when to try again: classification of a try's outcome, back-off, budgets.
//!
//! Everything is pure: the clock and randomness are arguments. Refuses to know how a try is made and
//! whether the request can be sent twice (its body, its method): that is the caller's to check.

mod backoff;
mod budget;
mod classify;
mod throttling;
mod told;

pub use self::backoff::Backoff;
pub use self::budget::Budget;
pub use self::classify::{
    FailureKind, RetryRules, TryOutcome, grpc_status, grpc_status_of, http_status_of, is_failure,
};
pub use self::throttling::{RetryThrottling, RetryTokens};
pub use self::told::{Pushback, pushback, reset};

use crate::policy::CircuitBreakers;

/// Whether one more retry may be in flight: Envoy's retry budget if the cluster has one, else
/// `max_retries`, else any number. `active_requests` are those of the cluster in flight, retries
/// among them.
pub fn concurrency_allows(limits: &CircuitBreakers, active_requests: u32, active_retries: u32) -> bool {
    let most = match (&limits.retry_budget, limits.max_retries) {
        // The budget replaces the fixed limit (Envoy `retry_budget`).
        (Some(budget), _) => {
            let share = u64::from(active_requests) * u64::from(budget.share.get()) / 1_000_000;
            share.max(u64::from(budget.min_concurrency))
        }
        (None, Some(most)) => u64::from(most),
        (None, None) => return true,
    };
    u64::from(active_retries) < most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{PerMillion, RetryConcurrency};

    #[test]
    fn the_share_has_a_floor_and_replaces_the_fixed_limit() {
        let share = RetryConcurrency { share: PerMillion::new(200_000), min_concurrency: 3 };
        let budget = CircuitBreakers { retry_budget: Some(share), max_retries: Some(0), ..Default::default() };
        let fixed = CircuitBreakers { max_retries: Some(2), ..Default::default() };
        let open = CircuitBreakers::default();
        for (limits, requests, retries, allowed) in [
            (&budget, 1, 2, true),
            (&budget, 1, 3, false),
            (&budget, 100, 19, true),
            (&budget, 100, 20, false),
            (&budget, u32::MAX, u32::MAX, false),
            (&fixed, 100, 1, true),
            (&fixed, 100, 2, false),
            (&open, 0, u32::MAX, true),
        ] {
            assert_eq!(concurrency_allows(limits, requests, retries), allowed, "{requests} {retries}");
        }
    }
}
