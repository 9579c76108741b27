//! Power of two choices over latency and requests in flight (Linkerd, Finagle).

use std::cell::Cell;
use std::time::Duration;

use super::explain::{Score, microseconds};
use super::least_request::lightest;
use super::load::DEFAULT_LATENCY;
use super::stamped::millis;
use super::weights::{Excluded, Weights};
use super::{Candidate, Candidates, Draw, Pick, Picker};

/// Draws two candidates by weight and picks the one with the lower cost: peak-sensitive moving average
/// of its latency, times its requests in flight and the new one, times its failure penalty. Latency
/// decays over 10 s (Linkerd's constant).
///
/// An endpoint that never answered costs nothing while nothing is under way to it: it is asked at once, and once. Until its
/// answer is there, and after a failure, it counts with 30 ms (Linkerd's constant).
///
/// If one of the two is over four times as slow as the other, there was no choice: a third is drawn and compared. So an
/// endpoint that lags behind neither makes the draw of its neighbours a blind one nor is taken whenever the other is busy.
#[derive(Debug)]
pub struct PeakEwma {
    candidates: Candidates,
    weights: Weights,
    mean: f32,
}

impl PeakEwma {
    /// A picker over `candidates`.
    pub fn new(candidates: Candidates) -> Self {
        let sum: f64 = candidates.iter().map(|c| f64::from(c.weight.get())).sum();
        let mean = (sum / candidates.len().max(1) as f64) as f32;
        Self { weights: Weights::new(&candidates), candidates, mean }
    }

    /// Latency in microseconds and cost; no latency if it is to be found out now.
    fn judge(&self, candidate: &Candidate, now: u32) -> (Option<f32>, f32) {
        let Some(load) = candidate.load() else { return (None, 0.0) };
        let (measured, in_flight, penalty) = (load.measured(now), load.in_flight(), load.penalty_at(now));
        if measured.is_none() && in_flight == 0 && penalty <= 1.0 {
            return (None, 0.0);
        }
        // Only what is in flight is measured against the weight: the draw has done so for the new one.
        let share = if self.weights.are_equal() { 1.0 } else { self.mean / candidate.weight.get() as f32 };
        let latency = measured.unwrap_or(DEFAULT_LATENCY);
        (Some(latency), latency * (in_flight as f32 * share + 1.0) * penalty)
    }
}

/// How much slower an endpoint is that is no choice. Equal ones whose times are drawn anew for each request differ by less,
/// mostly.
const LAGS: f32 = 4.0;

impl Picker for PeakEwma {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let now = millis(pick.now);
        // The two that were drawn, each with its latency.
        let drawn = Cell::new([None; 2]);
        let cost = |index: usize| {
            let (latency, cost) = self.judge(&self.candidates[index], now);
            drawn.set([Some((index, latency)), drawn.get()[0]]);
            cost
        };
        let best = lightest(&self.candidates, &self.weights, 2, pick.tried, draw, cost)?;
        // One that is to be found out does not lag, as far as anybody knows.
        let [Some((one, Some(fast))), Some((other, Some(slow)))] = drawn.get() else { return Some(best) };
        if fast.max(slow) <= fast.min(slow) * LAGS {
            return Some(best);
        }
        let mut excluded = Excluded::new(pick.tried, self.candidates.len());
        excluded.insert(one);
        excluded.insert(other);
        let Some(third) = self.weights.draw(&self.candidates, &excluded, draw) else { return Some(best) };
        let cost = |index: usize| self.judge(&self.candidates[index], now).1;
        Some(if cost(third) < cost(best) { third } else { best })
    }

    fn score(&self, index: usize, now: Duration) -> Option<Score> {
        Some(Score::Cost(microseconds(self.judge(self.candidates.get(index)?, millis(now)).1)))
    }
}
