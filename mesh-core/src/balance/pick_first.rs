//! The first that can be reached (gRFC A62), of addresses whose families take turns (A61).

use super::weights::Excluded;
use super::{Candidates, Draw, Pick, Picker};
use crate::policy::Address;
use crate::race::in_turn;
use crate::sync::{AtomicUsize, Ordering};

/// Sends everything to the first candidate of the list; when that cannot be reached, to the next one,
/// and stays there until that one cannot be reached either, also if the list changes meanwhile.
#[derive(Debug)]
pub struct PickFirst {
    candidates: Candidates,
    order: Box<[u32]>,
    current: AtomicUsize,
}

impl PickFirst {
    /// In listed order, or shuffled so that a heavier candidate comes earlier more often (gRFC A113); then IPv6 and IPv4 in
    /// turn, beginning with that of the first.
    pub fn new(candidates: Candidates, shuffle: bool, draw: &mut Draw<'_>) -> Self {
        let mut order: Vec<u32> = (0..candidates.len() as u32).collect();
        if shuffle {
            const STEPS: u64 = 1 << 53;
            // The weighted shuffle of Efraimidis and Spirakis: sort by u^(1/w).
            let mut key = |index: &u32| {
                let uniform = (draw(STEPS) + 1) as f64 / STEPS as f64;
                uniform.ln() / f64::from(candidates[*index as usize].weight.get())
            };
            let mut keyed: Vec<(f64, u32)> = order.iter().map(|index| (key(index), *index)).collect();
            keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
            order = keyed.into_iter().map(|(_, index)| index).collect();
        }
        let is_ipv4 = |index: &u32| match &candidates.policy(*index as usize).1.address {
            Address::Socket(address) => address.is_ipv4(),
            Address::Name { .. } | Address::Unix(_) => true,
        };
        let order = in_turn(order, is_ipv4);
        let chosen = |index: &u32| candidates[*index as usize].load().is_some_and(|load| load.is_chosen());
        let current = order.iter().position(chosen).unwrap_or(0);
        Self { candidates, order: order.into(), current: AtomicUsize::new(current) }
    }
}

impl Picker for PickFirst {
    fn pick(&self, pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        let excluded = Excluded::new(pick.tried, self.candidates.len());
        let at = |place: usize| self.order[place] as usize;
        let unreachable = |index: usize| self.candidates[index].load().is_some_and(|l| l.is_unreachable(pick.now));
        let current = self.current.load(Ordering::Relaxed);
        let first = *self.order.get(current)? as usize;
        let lost = unreachable(first);
        if let Some(load) = self.candidates[first].load() {
            load.choose(!lost);
        }
        if !lost && !excluded.contains(first) {
            return Some(first);
        }
        let allowed = || (0..self.order.len()).filter(|place| !excluded.contains(at(*place)));
        let next = allowed().find(|place| !unreachable(at(*place)));
        if let Some(place) = next.filter(|_| lost) {
            self.current.store(place, Ordering::Relaxed);
        }
        next.or_else(|| allowed().next()).map(at)
    }

    fn may_ramp(&self) -> bool {
        false
    }
}
