//! At random, by weight.

use super::weights::{Excluded, Weights};
use super::{Candidate, Draw, Picker};

/// Picks at random in proportion to the weights.
#[derive(Debug)]
pub struct Random {
    weights: Weights,
}

impl Random {
    /// A picker over `candidates`.
    pub fn new(candidates: &[Candidate]) -> Self {
        Self { weights: Weights::new(candidates) }
    }
}

impl Picker for Random {
    fn pick(&self, tried: &[usize], _hash: Option<u64>, draw: &mut Draw<'_>) -> Option<usize> {
        self.weights.draw(&Excluded::new(tried, self.weights.len()), draw)
    }
}
