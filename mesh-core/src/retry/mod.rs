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
    FailureKind, RetryRules, TryOutcome, grpc_status, grpc_status_of, grpc_status_text, http_status_of, is_failure,
};
pub use self::throttling::{RetryThrottling, RetryTokens};
pub use self::told::{Pushback, pushback, reset};

use crate::policy::CircuitBreakers;

/// How many retries may be in flight: Envoy's retry budget if the cluster has one, else `max_retries`; `None` = any
/// number. `active_requests` are those of the cluster in flight, retries among them.
pub fn max_concurrent(limits: &CircuitBreakers, active_requests: u32) -> Option<u32> {
    // The budget replaces the fixed limit (Envoy `retry_budget`).
    let Some(budget) = &limits.retry_budget else { return limits.max_retries };
    let share = u64::from(active_requests) * u64::from(budget.share.get()) / 1_000_000;
    // A share of a number is no more than it.
    Some((share as u32).max(budget.min_concurrency))
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
        for (limits, requests, most) in [
            (&budget, 1, Some(3)),
            (&budget, 100, Some(20)),
            (&budget, u32::MAX, Some(u32::MAX / 5)),
            (&fixed, 100, Some(2)),
            (&open, 0, None),
        ] {
            assert_eq!(max_concurrent(limits, requests), most, "{requests}");
        }
    }
}
