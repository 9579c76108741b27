//! In turn, by the load that endpoints report (gRFC A58).

use std::time::Duration;

use super::explain::Score;
use super::round_robin::Stride;
use super::stamped::{millis, since};
use super::{Candidates, Draw, Pick, Picker};
use crate::policy;
use crate::sync::{AtomicU32, Ordering};

/// Round robin whose weights come from [`EndpointReport`](super::EndpointReport)s and are taken over once an
/// update period, by the request that finds the period over. While fewer than two endpoints have a
/// usable weight, the endpoints' own weights count; one without a usable weight then gets the mean.
#[derive(Debug)]
pub struct WeightedRoundRobin {
    candidates: Candidates,
    settings: policy::WeightedRoundRobin,
    stride: Stride,
    // Milliseconds of the caller's clock; 0 = never.
    updated: AtomicU32,
}

/// Shortest update period (gRFC A58), milliseconds.
const SHORTEST: u128 = 100;

impl WeightedRoundRobin {
    /// A picker over `candidates`.
    pub fn new(candidates: Candidates, settings: policy::WeightedRoundRobin, draw: &mut Draw<'_>) -> Self {
        let stride = Stride::new(candidates.len(), draw);
        stride.weigh(candidates.iter().map(|candidate| f64::from(candidate.weight.get())));
        Self { candidates, settings, stride, updated: AtomicU32::new(0) }
    }

    fn update(&self, at: Duration) {
        let now = millis(at);
        let updated = self.updated.load(Ordering::Relaxed);
        let period = self.settings.weight_update.as_millis().max(SHORTEST);
        let due = updated == 0 || u128::from(since(now, updated)) >= period;
        // One request does it; the others go on with the old weights.
        if !due || self.updated.compare_exchange(updated, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let reported = |index: usize| self.candidates[index].load()?.reported_weight(&self.settings, at);
        let usable = || (0..self.candidates.len()).filter_map(reported);
        let (count, sum) = usable().fold((0_u32, 0.0), |(count, sum), weight| (count + 1, sum + f64::from(weight)));
        if count < 2 {
            self.stride.weigh(self.candidates.iter().map(|candidate| f64::from(candidate.weight.get())));
            return;
        }
        let mean = sum / f64::from(count);
        self.stride.weigh((0..self.candidates.len()).map(|index| reported(index).map_or(mean, f64::from)));
    }
}

impl Picker for WeightedRoundRobin {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        self.update(pick.now);
        self.stride.pick(pick.tried, draw)
    }

    fn score(&self, index: usize, _now: Duration) -> Option<Score> {
        self.stride.weight(index).map(Score::Weight)
    }
}
