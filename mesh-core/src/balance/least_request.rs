//! Power of several choices over requests in flight (gRFC A48, Envoy `LEAST_REQUEST`).

use std::time::Duration;

use super::explain::Score;
use super::stamped::millis;
use super::weights::{Excluded, Weights};
use super::{Candidate, Candidates, Draw, Pick, Picker};

/// Draws a few different candidates in proportion to their weights and picks the one with the fewest requests in
/// flight for its weight. On a tie the first drawn wins, so an idle cluster is shared by weight and no
/// light endpoint starves. An endpoint that failed lately, or was late, counts as if it had more.
#[derive(Debug)]
pub struct LeastRequest {
    candidates: Candidates,
    weights: Weights,
    choices: u8,
    bias: f32,
}

impl LeastRequest {
    /// Compares `choices` candidates a request, at least 2 (Envoy's and gRPC's default) and at most 10
    /// (gRPC's bound). `bias` is the power to which requests in flight count (Envoy
    /// `active_request_bias`): 1 by default, 0 = not at all, so that weights alone decide.
    pub fn new(candidates: Candidates, choices: u8, bias: f32) -> Self {
        let weights = Weights::new(&candidates);
        let bias = if bias.is_finite() { bias.max(0.0) } else { 1.0 };
        Self { candidates, weights, choices: choices.clamp(2, 10), bias }
    }

    fn cost(&self, candidate: &Candidate, now: u32) -> f32 {
        let Some(load) = candidate.load() else { return 0.0 };
        // An idle endpoint costs nothing, an idle one that failed still does.
        let busy = (load.in_flight() as f32 + 1.0) * load.penalty_at(now) - 1.0;
        let busy = if self.bias == 1.0 { busy } else { busy.powf(self.bias) };
        busy / candidate.weight.get() as f32
    }
}

impl Picker for LeastRequest {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let choices = if self.bias == 0.0 { 1 } else { self.choices };
        let now = millis(pick.now);
        lightest(&self.candidates, &self.weights, choices, pick.tried, draw, |index| {
            self.cost(&self.candidates[index], now)
        })
    }

    fn score(&self, index: usize, now: Duration) -> Option<Score> {
        Some(Score::InFlight(self.cost(self.candidates.get(index)?, millis(now))))
    }
}

/// The cheapest of `choices` different candidates drawn by weight; on a tie the first drawn.
#[inline]
pub(super) fn lightest(
    candidates: &[Candidate],
    weights: &Weights,
    choices: u8,
    tried: &[usize],
    draw: &mut Draw<'_>,
    cost: impl Fn(usize) -> f32,
) -> Option<usize> {
    if choices == 2
        && tried.is_empty()
        && let Some((first, second)) = weights.pair(candidates.len(), draw)
    {
        return Some(if cost(second) < cost(first) { second } else { first });
    }
    if candidates.len() == 1 {
        // Nothing to draw, and nothing else to go to if it was tried.
        return Some(0);
    }
    let mut excluded = Excluded::new(tried, candidates.len());
    let mut best = weights.draw(candidates, &excluded, draw)?;
    let mut least = None;
    let mut last = best;
    for _ in 1..choices {
        // Never the same one twice: of two endpoints the busy one would still get a quarter.
        excluded.insert(last);
        let Some(other) = weights.draw(candidates, &excluded, draw) else { break };
        let (own, cheapest) = (cost(other), *least.get_or_insert_with(|| cost(best)));
        if own < cheapest {
            (best, least) = (other, Some(own));
        }
        last = other;
    }
    Some(best)
}
