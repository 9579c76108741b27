//! In turn, by weight: the static stride scheduler of gRFC A58. One atomic counter is the whole state.

use std::sync::atomic::{AtomicU64, Ordering};

use super::weights::Excluded;
use super::{Candidate, Draw, Picker};

/// Picks in turn; a candidate of weight w gets its turn in w of every max(w) rounds, evenly spread.
#[derive(Debug)]
pub struct RoundRobin {
    // Scaled so that the heaviest is FULL.
    weights: Box<[u64]>,
    turn: AtomicU64,
}

const FULL: u64 = u16::MAX as u64;

impl RoundRobin {
    /// Starts at a random place, so that many clients do not begin with the same endpoint.
    pub fn new(candidates: &[Candidate], draw: &mut Draw<'_>) -> Self {
        let heaviest = candidates.iter().map(|c| u64::from(c.weight.get())).max().unwrap_or(1);
        let scale = |candidate: &Candidate| (u64::from(candidate.weight.get()) * FULL / heaviest).max(1);
        Self { weights: candidates.iter().map(scale).collect(), turn: AtomicU64::new(draw(1 << 32)) }
    }

    /// Whose turn it is, if it is not one of the rounds that a light candidate sits out.
    fn next(&self) -> Option<usize> {
        let len = self.weights.len() as u64;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (round, index) = (turn / len, turn % len);
        let weight = self.weights[index as usize];
        // Neighbours sit out different rounds: hence the offset.
        let phase = (weight.wrapping_mul(round) + index * (FULL / 2)) % FULL;
        (phase >= FULL - weight).then_some(index as usize)
    }
}

impl Picker for RoundRobin {
    fn pick(&self, tried: &[usize], _hash: Option<u64>, _draw: &mut Draw<'_>) -> Option<usize> {
        let len = self.weights.len();
        if len == 0 {
            return None;
        }
        let excluded = Excluded::new(tried, len);
        let allowed = |index: &usize| !excluded.contains(*index);
        // The heaviest never sits out, so without exclusions one round suffices; concurrent pickers may
        // take our turns, hence a second. Then the first that may be taken.
        for _ in 0..2 * len {
            if let Some(index) = self.next().filter(allowed) {
                return Some(index);
            }
        }
        (0..len).find(allowed)
    }
}
