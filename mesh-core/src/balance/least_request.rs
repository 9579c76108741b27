//! Power of several choices over requests in flight (gRFC A48, Envoy `LEAST_REQUEST`).

use std::sync::Arc;

use super::weights::Weights;
use super::{Candidate, Draw, Picker};

/// Draws a few candidates in proportion to their weights and picks the one with the fewest requests in
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
        let mut best = self.weights.draw(tried, draw)?;
        for _ in 1..self.choices {
            // With replacement, as gRPC has it: the same candidate twice is merely one choice less.
            let other = self.weights.draw(tried, draw)?;
            if self.lighter(other, best) {
                best = other;
            }
        }
        Some(best)
    }
}
