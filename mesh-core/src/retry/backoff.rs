//! Exponential back-off with full jitter (Envoy `retry_back_off`).

use std::time::Duration;

use crate::balance::Draw;
use crate::policy::RetryPolicy;

/// How long to wait before a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first wait.
    pub base: Duration,
    /// Bound of every wait.
    pub max: Duration,
}

impl Backoff {
    /// The back-off of a retry policy.
    pub fn of(policy: &RetryPolicy) -> Self {
        Self { base: policy.backoff_base, max: policy.backoff_max }
    }

    /// Bound of the wait before the `retry`th retry, counted from 0: doubled each time, up to `max`.
    pub fn bound(&self, retry: u32) -> Duration {
        let factor = 1_u32.checked_shl(retry).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }

    /// The wait before the `retry`th retry, counted from 0: anything up to its [`bound`](Self::bound).
    pub fn delay(&self, retry: u32, draw: &mut Draw<'_>) -> Duration {
        let nanos = u64::try_from(self.bound(retry).as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(draw(nanos + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let backoff = Backoff { base: MS(25), max: MS(250) };
        let bounds: Vec<_> = (0..6).map(|retry| backoff.bound(retry)).collect();
        assert_eq!(bounds, [MS(25), MS(50), MS(100), MS(200), MS(250), MS(250)]);
        assert_eq!(backoff.bound(31), MS(250));
        assert_eq!(backoff.bound(u32::MAX), MS(250));
        let endless = Backoff { base: Duration::MAX, max: Duration::MAX };
        assert_eq!(endless.bound(40), Duration::MAX);
        assert_eq!(Backoff { base: Duration::ZERO, max: MS(1) }.bound(9), Duration::ZERO);
    }

    #[test]
    fn the_wait_is_drawn_from_nothing_to_the_bound() {
        let backoff = Backoff { base: MS(25), max: MS(250) };
        assert_eq!(backoff.delay(1, &mut |_| 0), Duration::ZERO);
        assert_eq!(backoff.delay(1, &mut |below| below - 1), MS(50));
        let endless = Backoff { base: Duration::MAX, max: Duration::MAX };
        assert_eq!(endless.delay(0, &mut |_| 7), Duration::from_nanos(7));
    }
}
