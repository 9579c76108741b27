//! Power of two choices over latency and requests in flight (Linkerd, Finagle).

use super::least_request::lightest;
use super::stamped::millis;
use super::weights::Weights;
use super::{Candidate, Candidates, Draw, Pick, Picker};

/// Draws two candidates by weight and picks the one with the lower cost: peak-sensitive moving average
/// of its latency, times its requests in flight and the new one, times its failure penalty. Latency
/// decays over 10 s, an endpoint nothing is known of counts with 30 ms (Linkerd's constants).
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

    fn cost(&self, candidate: &Candidate, now: u32) -> f32 {
        // Only what is in flight is measured against the weight: the draw has done so for the new one.
        let share = || if self.weights.are_equal() { 1.0 } else { self.mean / candidate.weight.get() as f32 };
        let own = |in_flight: u32| in_flight as f32 * share() + 1.0;
        match candidate.load() {
            Some(load) => load.latency_at(now) * own(load.in_flight()) * load.penalty_at(now),
            None => super::load::DEFAULT_LATENCY,
        }
    }
}

impl Picker for PeakEwma {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let now = millis(pick.now);
        lightest(&self.candidates, &self.weights, 2, pick.tried, draw, |candidate| self.cost(candidate, now))
    }
}
