//! Power of several choices over requests in flight (gRFC A48, Envoy `LEAST_REQUEST`).

use std::sync::Arc;

use super::weights::{Excluded, Weights};
use super::{Candidate, Draw, Picker};

/// Draws a few different candidates in proportion to their weights and picks the one with the fewest requests in
/// flight for its weight. On a tie the first drawn wins, so an idle cluster is shared by weight and no
/// light endpoint starves.
#[derive(Debug)]
pub struct LeastRequest {
    candidates: Arc<[Candidate]>,
    weights: Weights,
    choices: u8,
}

impl LeastRequest {
    /// Compares `choices` candidates a request, at least 2 (Envoy's and gRPC's default) and at most 10
    /// (gRPC's bound).
    pub fn new(candidates: Arc<[Candidate]>, choices: u8) -> Self {
        let weights = Weights::new(&candidates);
        Self { candidates, weights, choices: choices.clamp(2, 10) }
    }

    /// Whether `a` carries less for its weight than `b`.
    fn lighter(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.candidates[a], &self.candidates[b]);
        let scaled =
            |one: &Candidate, other: &Candidate| u64::from(one.load.in_flight()) * u64::from(other.weight.get());
        scaled(a, b) < scaled(b, a)
    }
}

impl Picker for LeastRequest {
    fn pick(&self, tried: &[usize], _hash: Option<u64>, draw: &mut Draw<'_>) -> Option<usize> {
        let mut excluded = Excluded::new(tried, self.candidates.len());
        let mut best = self.weights.draw(&excluded, draw)?;
        let mut last = best;
        for _ in 1..self.choices {
            // Never the same one twice: of two endpoints the busy one would still get a quarter.
            excluded.insert(last);
            let Some(other) = self.weights.draw(&excluded, draw) else { break };
            if self.lighter(other, best) {
                best = other;
            }
            last = other;
        }
        Some(best)
    }
}
