//! Slow start: an endpoint that is new gets a share that grows (Envoy `slow_start_config`).
//!
//! A pick of an endpoint in its ramp stands with the probability of its share and is drawn again
//! otherwise. So it works above any picker, and every endpoint ramps by its own beginning: one more new
//! endpoint changes nothing for those before.

use std::time::Duration;

use super::{Candidates, Draw};
use crate::policy::SlowStart;

#[derive(Debug)]
pub(super) struct Ramp {
    // Milliseconds.
    window: u64,
    exponent: f32,
    least: f32,
}

const ALL: u64 = 1_000_000;

impl Ramp {
    /// The ramp, if any of the candidates is in it.
    pub(super) fn new(policy: &SlowStart, candidates: &Candidates, now: Duration) -> Option<Self> {
        let window = u64::try_from(policy.window.as_millis()).unwrap_or(u64::MAX);
        let aggression = policy.aggression.max(1) as f32 / 1e6;
        let least = policy.min_share.get() as f32 / 1e6;
        let ramp = Self { window, exponent: 1.0 / aggression, least };
        candidates.iter().any(|c| c.load().is_some_and(|load| load.ramped_for(now).is_some())).then_some(ramp)
    }

    /// Whether a pick of this candidate stands.
    pub(super) fn accepts(&self, candidates: &Candidates, index: usize, now: Duration, draw: &mut Draw<'_>) -> bool {
        let share = self.share(candidates, index, now);
        if share >= 1.0 {
            return true;
        }
        // When all are new, what counts is how they compare.
        let oldest = candidates.iter().map(|c| self.of(c.load().and_then(|l| l.ramped_for(now)))).fold(0.0, f32::max);
        draw(ALL) < (share / oldest * ALL as f32) as u64
    }

    fn share(&self, candidates: &Candidates, index: usize, now: Duration) -> f32 {
        self.of(candidates[index].load().and_then(|load| load.ramped_for(now)))
    }

    fn of(&self, ramped_for: Option<u64>) -> f32 {
        match ramped_for.filter(|age| *age < self.window) {
            None => 1.0,
            // From the first second on, as in Envoy.
            Some(age) => (age.max(1000) as f32 / self.window as f32).powf(self.exponent).clamp(self.least, 1.0),
        }
    }
}
