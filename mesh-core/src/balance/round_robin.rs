//! In turn, by weight: the static stride scheduler of gRFC A58. One atomic counter is the whole state.

use super::weights::Excluded;
use super::{Candidate, Draw, Pick, Picker};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Picks in turn; a candidate of weight w gets its turn in w of every max(w) rounds, evenly spread.
#[derive(Debug)]
pub struct RoundRobin(Stride);

impl RoundRobin {
    /// Starts at a random place, so that many clients do not begin with the same endpoint.
    pub fn new(candidates: &[Candidate], draw: &mut Draw<'_>) -> Self {
        let stride = Stride::new(candidates.len(), draw);
        stride.weigh(candidates.iter().map(|candidate| f64::from(candidate.weight.get())));
        Self(stride)
    }
}

impl Picker for RoundRobin {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        self.0.pick(pick.tried, draw)
    }
}

/// The scheduler; its weights may change while it runs.
#[derive(Debug)]
pub(super) struct Stride {
    // Scaled so that the heaviest is FULL.
    weights: Box<[AtomicU32]>,
    turn: AtomicU64,
}

/// Small enough that a weight times the number of rounds stays within 64 bits.
const FULL: u64 = (1 << 24) - 1;

impl Stride {
    pub(super) fn new(len: usize, draw: &mut Draw<'_>) -> Self {
        let weights = (0..len).map(|_| AtomicU32::new(FULL as u32)).collect();
        Self { weights, turn: AtomicU64::new(draw(1 << 32)) }
    }

    /// Sets new weights, all above 0. Picks meanwhile see some of the old and some of the new.
    pub(super) fn weigh(&self, weights: impl Iterator<Item = f64> + Clone) {
        let heaviest = weights.clone().fold(f64::MIN_POSITIVE, f64::max);
        for (cell, weight) in self.weights.iter().zip(weights) {
            let scaled = (weight / heaviest * FULL as f64).round().max(1.0);
            cell.store(scaled as u32, Ordering::Relaxed);
        }
    }

    /// What a candidate weighs, 1 = as much as the heaviest.
    pub(super) fn weight(&self, index: usize) -> Option<f32> {
        Some(self.weights.get(index)?.load(Ordering::Relaxed) as f32 / FULL as f32)
    }

    pub(super) fn pick(&self, tried: &[usize], draw: &mut Draw<'_>) -> Option<usize> {
        let len = self.weights.len();
        if len == 0 {
            return None;
        }
        let excluded = Excluded::new(tried, len);
        let allowed = |index: &usize| !excluded.contains(*index);
        // The heaviest never sits out, so without exclusions one round suffices; concurrent pickers may
        // take our turns, hence a second.
        for _ in 0..2 * len {
            if let Some(index) = self.next().filter(allowed) {
                return Some(index);
            }
        }
        // Only light ones are left: a draw by weight, for their turns are far apart.
        let weights = || (0..len).filter(allowed).map(|index| (index, self.scaled(index)));
        let total = weights().map(|(_, weight)| weight).sum();
        let mut point = if total == 0 { return None } else { draw(total) };
        for (index, weight) in weights() {
            match point.checked_sub(weight) {
                Some(rest) => point = rest,
                None => return Some(index),
            }
        }
        // Weights may have changed in between.
        (0..len).find(allowed)
    }

    fn scaled(&self, index: usize) -> u64 {
        u64::from(self.weights[index].load(Ordering::Relaxed))
    }

    /// Whose turn it is, if it is not one of the rounds that a light candidate sits out.
    fn next(&self) -> Option<usize> {
        let len = self.weights.len() as u64;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (round, index) = (turn / len, turn % len);
        let weight = self.scaled(index as usize);
        // Neighbours sit out different rounds: hence the offset.
        let phase = (weight.wrapping_mul(round) + index * (FULL / 2)) % FULL;
        (phase >= FULL - weight).then_some(index as usize)
    }
}
