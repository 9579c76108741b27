//! At random, by weight.

use super::weights::{Excluded, Weights};
use super::{Candidates, Draw, Pick, Picker};

/// Picks at random in proportion to the weights.
#[derive(Debug)]
pub struct Random {
    candidates: Candidates,
    weights: Weights,
}

impl Random {
    /// A picker over `candidates`.
    pub fn new(candidates: Candidates) -> Self {
        Self { weights: Weights::new(&candidates), candidates }
    }
}

impl Picker for Random {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        self.weights.draw(&self.candidates, &Excluded::new(pick.tried, self.candidates.len()), draw)
    }
}
