//! Prequal: probing to reduce queuing and latency (Wydrowski et al., NSDI 2024).
//!
//! Refuses to know how probes are sent: their answers arrive as [`Load`](super::Load) reports.

use std::time::Duration;

use smallvec::SmallVec;

use super::explain::{Score, microseconds};
use super::load::DEFAULT_LATENCY;
use super::stamped::millis;
use super::weights::Excluded;
use super::{Candidates, Draw, PeakEwma, Pick, Picker};
use crate::policy;
use crate::sync::{AtomicU32, Ordering};

/// Keeps a pool of the latest probe answers. A candidate with more requests in flight than most lately
/// reported is *hot*: among those of the pool that are not, the one with the lowest latency is picked;
/// if all are hot, the one with the fewest requests in flight. With fewer than two answers at hand it
/// is [`PeakEwma`].
///
/// The paper gives an answer up when it has been used a few times, as it grows wrong by our own requests. Here each of
/// them counts against the answer as long as it is in flight, so that an answer is good until it is old: in simulation
/// that does better for few servers and for many, near by and far away (`tests/queues.rs`).
///
/// A weight scales what is reported: twice the weight is expected to carry twice the requests. Where weights differ, one
/// of those that are not hot is drawn by weight, half as often where it is twice as slow: who is loaded beyond its weight is
/// slower, and by how much is in the measure of latency already.
#[derive(Debug)]
pub struct Prequal {
    candidates: Candidates,
    own: PeakEwma,
    mean: f32,
    // Below it answers are the rarer for the weight, as probes are drawn by weight.
    rare: f32,
    equal: bool,
    settings: policy::Prequal,
    // Index + 1 of who answered; 0 = free.
    pool: [AtomicU32; POOL],
    // Requests in flight that were reported last, and the bound of "hot" among them.
    seen: [AtomicU32; SEEN],
    reports: AtomicU32,
    hot: AtomicU32,
    picks: AtomicU32,
}

/// Answers kept; the paper finds no gain beyond.
const POOL: usize = 16;
const SEEN: usize = 64;
/// Reports between two looks at what is hot.
const LOOK: u32 = 8;

/// One usable answer.
#[derive(Clone, Copy)]
struct Answer {
    slot: usize,
    index: usize,
    in_flight: f32,
    latency: f32,
    age: u32,
    penalty: f32,
}

impl Prequal {
    /// A picker over `candidates`.
    pub fn new(candidates: Candidates, settings: policy::Prequal) -> Self {
        let sum: f64 = candidates.iter().map(|c| f64::from(c.weight.get())).sum();
        Self {
            equal: candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight),
            mean: (sum / candidates.len().max(1) as f64) as f32,
            rare: sum as f32 / POOL as f32,
            own: PeakEwma::new(candidates.clone()),
            candidates,
            settings,
            pool: Default::default(),
            seen: std::array::from_fn(|_| AtomicU32::new(0)),
            reports: AtomicU32::new(0),
            hot: AtomicU32::new(u32::MAX),
            picks: AtomicU32::new(0),
        }
    }

    fn answers(&self, tried: &Excluded<'_>, now: u32) -> SmallVec<[Answer; POOL]> {
        let oldest = self.settings.max_age.as_millis();
        let answer = |(slot, place): (usize, &AtomicU32)| {
            let index = place.load(Ordering::Relaxed).checked_sub(1)? as usize;
            let load = self.candidates[index].load()?;
            let (in_flight, latency, age) = load.reported_load(now)?;
            let usable = u128::from(age) <= oldest && !tried.contains(index);
            let in_flight = in_flight as f32 * self.mean / self.candidates[index].weight.get() as f32;
            let penalty = load.penalty_at(now);
            usable.then_some(Answer { slot, index, in_flight: in_flight * penalty, latency, age, penalty })
        };
        let mut answers: SmallVec<[Answer; POOL]> = self.pool.iter().enumerate().filter_map(answer).collect();
        // Who fails is fast, or was never measured: a factor alone would leave it so.
        let usual = answers.iter().map(|answer| answer.latency).sum::<f32>() / answers.len().max(1) as f32;
        let usual = usual.max(DEFAULT_LATENCY);
        for answer in &mut answers {
            answer.latency += (answer.latency + usual) * (answer.penalty - 1.0);
        }
        answers
    }

    /// One of the answers by weight and latency; `least` if rounding leaves none.
    fn by_weight<'a>(
        &self,
        answers: impl Iterator<Item = &'a Answer> + Clone,
        least: &Answer,
        draw: &mut Draw<'_>,
    ) -> Answer {
        const STEPS: u64 = 1 << 24;
        let worth = |answer: &Answer| {
            // An answer of who is probed seldom is seldom here, and its weight has had its effect.
            let weight = (self.candidates[answer.index].weight.get() as f32).max(self.rare);
            // One microsecond more, for it may be none.
            weight / (answer.latency + 1.0)
        };
        let mut point = draw(STEPS) as f32 / STEPS as f32 * answers.clone().map(worth).sum::<f32>();
        for answer in answers {
            point -= worth(answer);
            if point < 0.0 {
                return *answer;
            }
        }
        *least
    }

    /// Gives up an answer in exchange for those to come: the oldest and the worst in turn, so that the pool does not
    /// fill with what nobody wants to pick.
    fn make_room(&self, answers: &[Answer], used: &Answer, hot: f32) {
        if answers.len() <= POOL / 2 {
            return;
        }
        let others = || answers.iter().filter(|answer| answer.slot != used.slot);
        let given_up = if self.picks.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            others().max_by_key(|answer| answer.age)
        } else {
            let hottest = others().filter(|a| a.in_flight > hot).max_by(|a, b| a.in_flight.total_cmp(&b.in_flight));
            hottest.or_else(|| others().max_by(|a, b| a.latency.total_cmp(&b.latency)))
        };
        if let Some(answer) = given_up {
            self.pool[answer.slot].store(0, Ordering::Relaxed);
        }
    }

    /// Who has more in flight is hot.
    fn bound(&self) -> f32 {
        match self.hot.load(Ordering::Relaxed) {
            u32::MAX => f32::INFINITY,
            bits => f32::from_bits(bits),
        }
    }

    /// Notes what was reported, and now and then finds the bound above which a candidate is hot.
    fn look(&self, in_flight: f32) {
        let count = self.reports.fetch_add(1, Ordering::Relaxed);
        self.seen[count as usize % SEEN].store(in_flight.to_bits(), Ordering::Relaxed);
        if !count.is_multiple_of(LOOK) {
            return;
        }
        let known = (count as usize + 1).min(SEEN);
        let mut seen: SmallVec<[f32; SEEN]> =
            self.seen[..known].iter().map(|bits| f32::from_bits(bits.load(Ordering::Relaxed))).collect();
        let rank = (known as f64 * f64::from(self.settings.hot_quantile.get()) / 1e6) as usize;
        let (_, bound, _) = seen.select_nth_unstable_by(rank.min(known - 1), f32::total_cmp);
        self.hot.store(bound.to_bits(), Ordering::Relaxed);
    }
}

impl Picker for Prequal {
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let now = millis(pick.now);
        let answers = self.answers(&Excluded::new(pick.tried, self.candidates.len()), now);
        if answers.len() < 2 {
            return self.own.pick(pick, draw);
        }
        let hot = self.bound();
        let cold = || answers.iter().filter(|answer| answer.in_flight <= hot);
        let least = cold().min_by(|a, b| a.latency.total_cmp(&b.latency));
        let best = match least {
            Some(least) if self.equal => *least,
            Some(least) => self.by_weight(cold(), least, draw),
            None => *answers.iter().min_by(|a, b| a.in_flight.total_cmp(&b.in_flight))?,
        };
        self.make_room(&answers, &best, hot);
        Some(best.index)
    }

    fn score(&self, index: usize, now: Duration) -> Option<Score> {
        let answers = self.answers(&Excluded::new(&[], 0), millis(now));
        let Some(answer) = answers.iter().find(|answer| answer.index == index).filter(|_| answers.len() > 1) else {
            return self.own.score(index, now);
        };
        let (hot, in_flight) = (answer.in_flight > self.bound(), answer.in_flight);
        Some(Score::Probed { hot, in_flight, latency: microseconds(answer.latency) })
    }

    fn reported(&self, index: usize, now: Duration) {
        let now = millis(now);
        let Some(candidate) = self.candidates.get(index) else { return };
        let Some((in_flight, _, _)) = candidate.load().and_then(|load| load.reported_load(now)) else { return };
        self.look(in_flight as f32 * self.mean / candidate.weight.get() as f32);
        let own = index as u32 + 1;
        let age = |place: u32| {
            let index = place.checked_sub(1)? as usize;
            self.candidates.get(index)?.load()?.reported_load(now).map(|(_, _, age)| age)
        };
        // Its own place, else a free one, else that of the oldest.
        let rank = |(_, place): &(usize, &AtomicU32)| match place.load(Ordering::Relaxed) {
            other if other == own => u64::MAX,
            0 => u64::MAX - 1,
            other => age(other).map_or(u64::MAX - 2, u64::from),
        };
        if let Some((_, place)) = self.pool.iter().enumerate().max_by_key(rank) {
            place.store(own, Ordering::Relaxed);
        }
    }
}
