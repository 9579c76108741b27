//! Slow start: an endpoint that is new gets a share that grows (Envoy `slow_start_config`).
//!
//! A pick of an endpoint in its ramp stands with the probability of its share and is drawn again
//! otherwise. So it works above any picker, and every endpoint ramps by its own beginning: one more new
//! endpoint changes nothing for those before.

use std::collections::BTreeMap;
use std::time::Duration;

use super::load::whole_millis;
use super::{Candidate, Draw};
use crate::policy::SlowStart;

/// The ramp of one pool. Made with the pool: whoever begins a slow start builds the set anew.
#[derive(Debug)]
pub(super) struct Ramp {
    // Milliseconds.
    window: u64,
    exponent: f32,
    least: f32,
    // The oldest first; those that are not new come before all others.
    groups: Box<[Group]>,
}

/// Candidates that began together, and so have the same share at any time.
#[derive(Debug)]
struct Group {
    // Milliseconds of the caller's clock; `None` = not new.
    from: Option<u64>,
    // Running sum of the weights, and the candidate.
    members: Box<[(u64, u32)]>,
}

const ALL: u64 = 1_000_000;

impl Ramp {
    /// The ramp, if any of the candidates is in it.
    pub(super) fn new(policy: &SlowStart, candidates: &[Candidate], now: Duration) -> Option<Self> {
        let window = u64::try_from(policy.window.as_millis()).unwrap_or(u64::MAX);
        let mut groups: BTreeMap<Option<u64>, Vec<(u64, u32)>> = BTreeMap::new();
        for (index, candidate) in candidates.iter().enumerate() {
            let from = began(candidate).filter(|from| age(*from, now) < window);
            let members = groups.entry(from).or_default();
            let before = members.last().map_or(0, |(until, _)| *until);
            members.push((before + u64::from(candidate.weight.get()), index as u32));
        }
        let exponent = 1e6 / policy.aggression.max(1) as f32;
        // Above 0, or some would never be picked.
        let least = policy.min_share.get().max(1) as f32 / 1e6;
        let any = groups.keys().any(Option::is_some);
        let groups = groups.into_iter().map(|(from, members)| Group { from, members: members.into() }).collect();
        any.then_some(Self { window, exponent, least, groups })
    }

    /// Whether a pick of this candidate stands.
    pub(super) fn accepts(&self, candidate: &Candidate, now: Duration, draw: &mut Draw<'_>) -> bool {
        let share = self.share(candidate, now);
        if share >= 1.0 {
            return true;
        }
        // When all are new, what counts is how they compare.
        let oldest = self.groups.first().map_or(1.0, |group| self.of(group.from, now));
        draw(ALL) < (share / oldest * ALL as f32) as u64
    }

    /// One of the candidates by weight and share, whatever the picker thinks of them.
    pub(super) fn draw(&self, now: Duration, draw: &mut Draw<'_>) -> Option<usize> {
        const STEPS: u64 = 1 << 53;
        let worth = |group: &Group| group.weight() as f64 * f64::from(self.of(group.from, now));
        let mut point = draw(STEPS) as f64 / STEPS as f64 * self.groups.iter().map(worth).sum::<f64>();
        // Rounding leaves the last one what is left.
        let (last, others) = self.groups.split_last()?;
        for group in others {
            let own = worth(group);
            if point < own {
                return group.draw(draw);
            }
            point -= own;
        }
        last.draw(draw)
    }

    /// What part of its weight a candidate gets, above 0 and at most 1.
    pub(super) fn share(&self, candidate: &Candidate, now: Duration) -> f32 {
        self.of(began(candidate), now)
    }

    fn of(&self, from: Option<u64>, now: Duration) -> f32 {
        match from.map(|from| age(from, now)).filter(|age| *age < self.window) {
            None => 1.0,
            // From the first second on, as in Envoy.
            Some(age) => (age.max(1000) as f32 / self.window as f32).powf(self.exponent).clamp(self.least, 1.0),
        }
    }
}

impl Group {
    fn weight(&self) -> u64 {
        self.members.last().map_or(0, |(until, _)| *until)
    }

    /// One of its members by weight.
    fn draw(&self, draw: &mut Draw<'_>) -> Option<usize> {
        let point = draw(self.weight().max(1));
        let place = self.members.partition_point(|(until, _)| *until <= point);
        self.members.get(place).map(|(_, index)| *index as usize)
    }
}

/// When a candidate's slow start began.
fn began(candidate: &Candidate) -> Option<u64> {
    candidate.load().and_then(|load| load.ramps_since())
}

fn age(from: u64, now: Duration) -> u64 {
    whole_millis(now).saturating_sub(from)
}
