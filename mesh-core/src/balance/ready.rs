//! The endpoints of a cluster made ready to be picked from: pools by priority and health, a picker over
//! each.
//!
//! ```text
//! priority 0: healthy | degraded | unhealthy | draining      priority 1: healthy | ...
//!             └ pool ─┘ └ pool ─┘                            └ pool ─┘
//!             └──────── pool in panic ─────┘
//! ```
//!
//! Where a locality is drawn by weight, each of a pool's localities is a pool by itself. Beside all this, in no priority, are
//! those that the client's subset leaves to others ([`Outside`]).

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::levels::{Count, OVERPROVISIONING, Share, available, shares};
use super::localities::{Localities, Weighing};
use super::slow_start::Ramp;
use super::spill::Spill;
use super::weights::{Excluded, Weights};
use super::{Candidates, Draw, EndpointReport, Load, Pick, Picker, PoolExplanation, Rating, picker_for};
use crate::health::Standing;
use crate::policy::{Address, Cluster, Endpoint, Endpoints, Health, LocalityEndpoints, PerMillion};
use crate::sync::{AtomicBool, Ordering};

mod choices;
mod outside;

use self::outside::Others;
pub use self::outside::Outside;

/// Makes a picker of the caller's own for a pool of a cluster; `None` = as policy says. Where policy weighs localities and
/// does not hash, each of them has a pool.
pub type MakePicker = dyn Fn(&Cluster, &Candidates, &mut Draw<'_>) -> Option<Box<dyn Picker>> + Send + Sync;

/// Makes a picker for a pool of a cluster whose balancer is one of the caller's own ([`Balancer::Custom`]), by its configuration, a
/// JSON object; `None` = in turn, by weight.
///
/// [`Balancer::Custom`]: crate::policy::Balancer::Custom
pub type MakeNamed = dyn Fn(&str, &Candidates, &mut Draw<'_>) -> Option<Box<dyn Picker>> + Send + Sync;

/// The endpoints that may get requests and the pickers over them. `E` is what the caller keeps for an
/// endpoint (its connections, say).
///
/// Usable are endpoints the control plane calls healthy or says nothing of (gRFC A27) and that health
/// admits; degraded ones, and those whose first health check is not over, take what the healthy cannot.
/// How much goes to which priority, when all endpoints are used whatever their health, and what a locality weighs that
/// lost some of its endpoints is Envoy's way. Where localities are weighted, each has its share whatever the picker: before
/// one that compares endpoints a locality is drawn, as in Envoy and gRPC (gRFC A27); those that go by weight alone take the
/// locality's into account.
pub struct ReadySet<E> {
    cluster: Arc<Cluster>,
    custom: Option<Arc<MakePicker>>,
    endpoints: Box<[E]>,
    candidates: Candidates,
    pools: Box<[Pool]>,
    usable: usize,
    available: u64,
    spill: Option<Spill>,
    passes: AtomicBool,
    // Made by the first who asks.
    places: OnceLock<HashMap<Address, u32, RandomState>>,
    // If the set is a part of what there is.
    others: Option<Others<E>>,
}

/// Endpoints side by side among which one picker chooses.
struct Pool {
    priority: u32,
    range: Range<usize>,
    // Running sum of the shares, in millionths.
    until: u64,
    panic: bool,
    degraded: bool,
    // Of the localities one of which is drawn: which of the pools are theirs, and what this one weighs among them.
    beside: Range<usize>,
    weight: u32,
    // If any of them is new.
    ramp: Option<Ramp>,
    // A standby makes its picker when it is needed.
    picker: OnceLock<Box<dyn Picker>>,
    // For probes; made with the first.
    weights: OnceLock<Weights>,
}

/// In which order a priority's endpoints lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Healthy,
    Degraded,
    Unhealthy,
    /// Only for pinned sessions, not even in panic.
    Draining,
}

struct Entry<E> {
    priority: u32,
    class: Class,
    place: (u32, u32),
    own: E,
    load: Option<Arc<Load>>,
}

/// Endpoints that are away or ramping, passed over in one pick before it is settled without the picker. At a tenth of the
/// share three picks in a hundred get there if all but one of very many are new, and few otherwise.
const MAX_PASSES: usize = 32;
/// Draws that settle it.
const MAX_DRAWS: usize = 8;

impl<E> ReadySet<E> {
    /// Sorts the endpoints into pools and builds their pickers. `attach` gives what the caller keeps for
    /// an endpoint and its load if there is one yet; of several endpoints with one address the first
    /// counts.
    pub fn build(
        endpoints: Arc<Endpoints>,
        cluster: Arc<Cluster>,
        custom: Option<Arc<MakePicker>>,
        now: Duration,
        draw: &mut Draw<'_>,
        attach: impl FnMut(&Endpoint) -> (E, Option<Arc<Load>>),
    ) -> Self {
        let mut entries = entries(&endpoints, attach);
        entries.sort_by_key(|entry| (entry.priority, entry.class));
        let factor = endpoints.overprovisioning_factor.unwrap_or(OVERPROVISIONING);
        let locality = &cluster.locality;
        let levels: Vec<Level> = Level::all(&entries);
        let counts: Vec<Count> = levels.iter().map(|level| level.count).collect();
        let panic = locality.panic_threshold.unwrap_or(PerMillion::NONE);
        let shares = shares(&counts, factor, panic);
        let fails = locality.zone_aware.as_ref().is_some_and(|zones| zones.fail_on_panic);
        let mut weights: Vec<NonZeroU32> =
            entries.iter().map(|entry| policy(&endpoints, entry.place).1.weight).collect();
        let weighing = Weighing::of(&cluster, custom.is_some());
        let pools = weigh(pools(&levels, &shares, fails), weighing, &endpoints, &entries, factor, &mut weights);
        let usable = pools.iter().map(|pool| pool.range.len()).sum();
        let available = available(&counts, &shares, factor);
        let (mut kept, mut candidates) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
        for (entry, weight) in entries.into_iter().zip(weights) {
            kept.push(entry.own);
            candidates.push(Candidates::candidate(weight, entry.load, entry.place));
        }
        let candidates = Candidates::new(candidates, endpoints).hashing(cluster.hashing);
        let spill = cluster.locality.spill.as_ref().map(Spill::new);
        let mut sum = 0;
        let pools = pools.into_iter().map(|pool| {
            sum += pool.share;
            let Planned { priority, range, panic, degraded, beside, weight, .. } = pool;
            let ramp =
                cluster.slow_start.as_ref().and_then(|policy| Ramp::new(policy, &candidates[range.clone()], now));
            let (picker, weights) = (OnceLock::new(), OnceLock::new());
            Pool { priority, range, until: sum, panic, degraded, beside, weight, ramp, picker, weights }
        });
        let pools = pools.collect();
        let endpoints = kept.into();
        let (passes, places) = (AtomicBool::new(false), OnceLock::new());
        let set = Self {
            cluster,
            custom,
            endpoints,
            candidates,
            pools,
            usable,
            available,
            spill,
            passes,
            places,
            others: None,
        };
        let mut before = 0;
        for pool in set.pools.iter() {
            if pool.until > std::mem::replace(&mut before, pool.until) && !pool.range.is_empty() {
                set.picker(pool, draw);
            }
        }
        set
    }

    /// This set in the place of `before`, another one of the same cluster: what spills over because of load goes on doing so.
    #[must_use]
    pub fn following(self, before: &Self) -> Self {
        if let (Some(spill), Some(before)) = (&self.spill, &before.spill) {
            spill.follow(before);
        }
        self
    }

    /// Picks an endpoint for a request: its index (to be put into `tried` for the next try) and what is
    /// kept for it. `None` only if none is usable. Endpoints in `tried` come last. One that is away ([`Load::unreachable`]) comes after all
    /// others, those of other priorities among them: no request finds out whether it is back (gRFC A56); of several those come
    /// first of which another attempt is due. Where [another priority](Pick::away_from) is wanted and there is none, it is another
    /// locality's if there is one.
    pub fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<(usize, &E)> {
        let pool = self.pool(pick, draw)?;
        let mut index = self.pick_in(pool, pick, draw)?;
        if !pick.away_from.is_empty() && self.is_left(pool.priority, pick) {
            index = self.other_locality(pool, pick, draw).unwrap_or(index);
        }
        if let Some(spill) = &self.spill
            && spill.may_go_on(self.candidates[index].in_flight())
            && let Some(next) = self.next_priority(pool, pick)
            && spill.goes_on(self.candidates[index].in_flight(), draw)
        {
            index = self.further(next, pick, draw).unwrap_or(index);
        }
        if self.is_away_at(index) {
            index = self.instead_of(index, pool, pick, draw);
        }
        Some((index, &self.endpoints[index]))
    }

    /// The index of the endpoint at `address`, if it is one of the set.
    pub fn find(&self, address: &Address) -> Option<usize> {
        let places = self.places.get_or_init(|| {
            let all = 0..self.candidates.len();
            all.map(|index| (self.candidates.policy(index).1.address.clone(), index as u32)).collect()
        });
        places.get(address).map(|index| *index as usize)
    }

    /// The endpoint at `address`, for a session that is pinned to it (gRFC A55), one [outside](Outside) as well: `None` if it is
    /// gone or its health is none of `allowed`, or if health does not admit it.
    pub fn pinned(&self, address: &Address, allowed: &[Health]) -> Option<(usize, &E)> {
        self.would_pin(address, allowed).map(|index| (index, self.endpoint(index)))
    }

    /// The index that [`pinned`](Self::pinned) gives, for who only asks.
    pub fn would_pin(&self, address: &Address, allowed: &[Health]) -> Option<usize> {
        let index = self.find_anywhere(address)?;
        let health = self.policy(index).1.health;
        let admitted = self.load(index).is_none_or(|load| load.standing().is_admitted());
        (admitted && allowed.contains(&health)).then_some(index)
    }

    /// Takes note of a fresh load report of an endpoint; see [`Picker::reported`].
    pub fn reported(&self, index: usize, now: Duration) {
        if let Some((picker, place)) = self.picker_of(index) {
            picker.reported(place, now);
        }
    }

    /// Passes on a load report that came with an answer of an endpoint; see [`Picker::hear`].
    pub fn hear(&self, index: usize, report: &EndpointReport, now: Duration) {
        if let Some((picker, place)) = self.picker_of(index) {
            picker.hear(place, report, now);
        }
    }

    /// The picker that may give an endpoint, if there was a pick, and which of its candidates that is.
    fn picker_of(&self, index: usize) -> Option<(&dyn Picker, usize)> {
        let pool = self.pools.iter().find(|pool| pool.range.contains(&index))?;
        Some((&**pool.picker.get()?, index - pool.range.start))
    }

    /// An endpoint to ask for its load, of those a pick could give now: by weight, as those that are to serve more must be
    /// among the answers more often. `None` if there is no choice that its answer could help with.
    pub fn probe_target(&self, draw: &mut Draw<'_>) -> Option<usize> {
        let pool = self.pool(&Pick::default(), draw)?;
        let candidates = Some(&self.candidates[pool.range.clone()]).filter(|candidates| candidates.len() > 1)?;
        let weights = pool.weights.get_or_init(|| Weights::new(candidates));
        weights.draw(candidates, &Excluded::new(&[], candidates.len()), draw).map(|index| index + pool.range.start)
    }

    /// How requests are shared out, for people who ask.
    pub fn pools(&self) -> impl Iterator<Item = PoolExplanation> + '_ {
        let mut before = 0;
        self.pools.iter().map(move |pool| {
            // Millionths, all of them together a million.
            let share = PerMillion::new((pool.until - std::mem::replace(&mut before, pool.until)) as u32);
            let (priority, panic, degraded, endpoints) = (pool.priority, pool.panic, pool.degraded, pool.range.len());
            let locality = || self.candidates.policy(pool.range.start).0.locality.clone();
            let locality = (pool.beside.len() > 1).then(locality);
            PoolExplanation { priority, locality, share, panic, degraded, endpoints }
        })
    }

    /// What is made of one endpoint, for people who ask; `None` if a pick cannot give it.
    pub fn rating(&self, index: usize, now: Duration) -> Option<Rating> {
        let pool = self.pools.iter().find(|pool| pool.range.contains(&index))?;
        let candidate = &self.candidates[index];
        let score = pool.picker.get().and_then(|picker| picker.score(index - pool.range.start, now));
        let ramp = self.ramp(pool).map_or(1.0, |ramp| ramp.share(candidate, now));
        Some(Rating { weight: candidate.weight.get(), ramp, score })
    }

    /// What is kept for the endpoints, by index: all of them, usable or not.
    pub fn endpoints(&self) -> &[E] {
        &self.endpoints
    }

    /// Weights, loads and policies, by index.
    pub fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    /// Whether a pick can give this index.
    pub fn is_usable(&self, index: usize) -> bool {
        self.pools.iter().any(|pool| pool.range.contains(&index))
    }

    /// Whether one of those that are usable can be tried now: it is not away, or another attempt at it is due.
    pub fn is_reachable(&self, now: Duration) -> bool {
        self.usable().any(|index| !self.candidates[index].load().is_some_and(|load| load.is_unreachable(now)))
    }

    /// Whether those that are usable are for others: see [`availability`](Self::availability).
    pub fn is_away(&self) -> bool {
        self.none_stands(self.usable())
    }

    /// How much of the requests it can take: all of them down to 71 % healthy (Envoy's overprovisioning), and from
    /// there on less and less. Priorities in panic count for nothing. `None` = as much as that, but one of the others is away and
    /// none of them is known to be there: requests are not to find out, one by one, who else is away, for each would wait as long
    /// as connecting may take. As in gRPC (gRFC A56) they are for others until a connection stands.
    pub fn availability(&self) -> Option<PerMillion> {
        let calm = self.pools.iter().filter(|pool| !pool.panic).flat_map(|pool| pool.range.clone());
        let is_there = self.available == 0 || !self.none_stands(calm);
        is_there.then(|| PerMillion::new(self.available as u32))
    }

    /// Whether one of these is away, and none of them is known to be there.
    fn none_stands(&self, all: impl Iterator<Item = usize>) -> bool {
        let mut is_one_away = false;
        for load in all.filter_map(|index| self.candidates[index].load()) {
            if load.is_away() {
                is_one_away = true;
            } else if load.stands() {
                return false;
            }
        }
        is_one_away
    }

    fn usable(&self) -> impl Iterator<Item = usize> {
        self.pools.iter().flat_map(|pool| pool.range.clone())
    }

    /// Whether picks have passed over one that is away since this was asked last: attempts that are due are nobody else's to make.
    #[inline]
    pub fn passes_over(&self) -> bool {
        self.passes.load(Ordering::Relaxed) && self.passes.swap(false, Ordering::Relaxed)
    }

    /// Whether there is a place to go for who has `waited` so long in vain for those that were tried: anything that is not away of
    /// another priority than those that are to be [left](Pick::away_from), or somebody who has answered meanwhile.
    pub fn has_elsewhere(&self, pick: &Pick<'_>, waited: Duration) -> bool {
        let answers =
            |index: usize| self.candidates[index].load().is_some_and(|l| l.has_answered_within(waited, pick.now));
        self.pools.iter().any(|pool| {
            let is_left = self.is_left(pool.priority, pick);
            pool.range.clone().any(|index| self.is_good(index, pick) && (!is_left || answers(index)))
        })
    }

    /// How many are usable.
    pub fn len(&self) -> usize {
        self.usable
    }

    /// Whether none is usable.
    pub fn is_empty(&self) -> bool {
        self.usable == 0
    }

    /// The first priority in use; 0 if none is.
    pub fn priority(&self) -> u32 {
        self.pools.iter().find(|pool| pool.until > 0).map_or(0, |pool| pool.priority)
    }

    /// How many endpoints the set has, usable or not.
    pub fn known(&self) -> usize {
        self.endpoints.len()
    }

    fn pool(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<&Pool> {
        let last = self.pools.last()?;
        if !pick.away_from.is_empty()
            && let Some(other) = self.other_priority(pick)
        {
            return self.drawn(other, |pool| has_other(pool, pick), draw);
        }
        let first = &self.pools[0];
        if first.until == last.until {
            return Some(first);
        }
        let point = draw(last.until);
        let pool = self.pools.iter().find(|pool| point < pool.until)?;
        if pick.tried.is_empty() || has_other(pool, pick) {
            return Some(pool);
        }
        self.drawn(pool, |pool| has_other(pool, pick), draw).or(Some(pool))
    }

    /// The first pool of a priority that is not to be left. One that is to fail in panic has nobody to send to, nor has one of
    /// which all are to come last.
    #[cold]
    fn other_priority(&self, pick: &Pick<'_>) -> Option<&Pool> {
        self.pools.iter().find(|pool| has_other(pool, pick) && !self.is_left(pool.priority, pick))
    }

    /// Whether a priority is to be left if there is another one.
    #[cold]
    fn is_left(&self, priority: u32, pick: &Pick<'_>) -> bool {
        let of = self.pools.iter().filter(|pool| pool.priority == priority);
        of.flat_map(|pool| pool.range.clone()).any(|index| pick.away_from.contains(&index))
    }

    /// One of the pools of localities that `pool` is beside, by weight, of those that `may_be`; where none is drawn it is
    /// `pool` or nothing.
    #[cold]
    fn drawn(&self, pool: &Pool, may_be: impl Fn(&Pool) -> bool, draw: &mut Draw<'_>) -> Option<&Pool> {
        let all = || self.pools[pool.beside.clone()].iter().filter(|pool| may_be(pool));
        if pool.beside.len() == 1 {
            return all().next();
        }
        let total = all().map(|pool| u64::from(pool.weight)).sum();
        let mut point = if total == 0 { return None } else { draw(total) };
        all().find(|pool| match point.checked_sub(pool.weight.into()) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        })
    }

    /// In a pool of a priority that was to be left, one of another locality, whichever is not away: what keeps one from
    /// being reached keeps its neighbours as well.
    #[cold]
    fn other_locality(&self, pool: &Pool, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let may_be = |index: &usize| self.is_elsewhere(*index, pick);
        let pool = self.drawn(pool, |pool| pool.range.clone().any(|index| may_be(&index)), draw)?;
        let mut others = pool.range.clone().filter(may_be);
        let count = others.clone().count() as u64;
        if count == 0 { None } else { others.nth(draw(count) as usize) }
    }

    /// Whether it is of another locality than those that are to be left, and not away.
    fn is_elsewhere(&self, index: usize, pick: &Pick<'_>) -> bool {
        let locality = |index: usize| &self.policy(index).0.locality;
        let mut left = pick.away_from.iter().filter(|left| self.is_known(**left));
        let is_admitted = self.candidates[index].load().is_none_or(|load| load.standing().is_admitted());
        is_admitted && self.is_good(index, pick) && !left.any(|left| locality(*left) == locality(index))
    }

    /// Whether it is not to come last, nor away.
    fn is_good(&self, index: usize, pick: &Pick<'_>) -> bool {
        !pick.tried.contains(&index) && !self.is_away_at(index)
    }

    /// Whether it is not to come last and, away, to be tried now.
    fn is_due(&self, index: usize, pick: &Pick<'_>) -> bool {
        let is_unreachable = || self.candidates[index].load().is_some_and(|load| load.is_unreachable(pick.now));
        !pick.tried.contains(&index) && !is_unreachable()
    }

    /// Where a request of a busy pool goes on to: the next priority of which anything is not away.
    fn next_priority(&self, pool: &Pool, pick: &Pick<'_>) -> Option<&Pool> {
        self.pools.iter().find(|other| other.priority > pool.priority && self.has_good(other, pick))
    }

    /// One of the localities of `next`, none of those of which all are away.
    fn further(&self, next: &Pool, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        let next = self.drawn(next, |other| self.has_good(other, pick), draw)?;
        self.pick_in(next, pick, draw).filter(|index| self.is_good(*index, pick))
    }

    fn has_good(&self, pool: &Pool, pick: &Pick<'_>) -> bool {
        pool.range.clone().any(|index| self.is_good(index, pick))
    }

    /// What is picked in the place of one that is away.
    #[cold]
    fn instead_of(&self, index: usize, pool: &Pool, pick: &Pick<'_>, draw: &mut Draw<'_>) -> usize {
        let good = self.elsewhere(pool, pick, |index| self.is_good(index, pick), draw);
        good.unwrap_or_else(|| {
            let due = |index| self.is_due(index, pick);
            if due(index) { index } else { self.elsewhere(pool, pick, due, draw).unwrap_or(index) }
        })
    }

    /// One that `may_be`: of the localities beside `pool` first.
    fn elsewhere(
        &self,
        pool: &Pool,
        pick: &Pick<'_>,
        may_be: impl Fn(usize) -> bool,
        draw: &mut Draw<'_>,
    ) -> Option<usize> {
        let has_one = |other: &Pool| other.range.clone().any(&may_be);
        let each = self.pools.iter().enumerate().filter(|(place, other)| *place == other.beside.start);
        let mut firsts = std::iter::once(pool).chain(each.map(|(_, other)| other));
        let other = firsts.find_map(|first| self.drawn(first, has_one, draw))?;
        let picked = self.pick_in(other, pick, draw).filter(|index| may_be(*index));
        // A picker may lose patience with those that are away.
        picked.or_else(|| {
            let mut all = other.range.clone().filter(|index| may_be(*index));
            let count = all.clone().count() as u64;
            if count == 0 { None } else { all.nth(draw(count) as usize) }
        })
    }

    fn picker<'p>(&self, pool: &'p Pool, draw: &mut Draw<'_>) -> &'p dyn Picker {
        &**pool.picker.get_or_init(|| {
            let candidates = self.candidates.slice(pool.range.clone());
            let own = self.custom.as_ref().and_then(|make| make(&self.cluster, &candidates, draw));
            own.unwrap_or_else(|| picker_for(&self.cluster.balancer, candidates, draw))
        })
    }

    fn pick_in(&self, pool: &Pool, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize> {
        // Policy would rather fail than use it.
        if pool.range.is_empty() {
            return None;
        }
        let picker = self.picker(pool, draw);
        let offset = pool.range.start;
        let mut tried = SmallVec::new();
        if !pick.tried.is_empty() {
            tried.extend(pick.tried.iter().filter(|index| pool.range.contains(index)).map(|index| index - offset));
        }
        let first = picker.pick(&Pick { tried: &tried, ..*pick }, draw)? + offset;
        if self.is_welcome(pool, first, pick, draw) {
            return Some(first);
        }
        self.pick_another(pool, first, tried, pick, draw)
    }

    /// Looks on after a pick that was not welcome.
    #[cold]
    fn pick_another(
        &self,
        pool: &Pool,
        first: usize,
        mut tried: SmallVec<[usize; 8]>,
        pick: &Pick<'_>,
        draw: &mut Draw<'_>,
    ) -> Option<usize> {
        let (picker, offset) = (self.picker(pool, draw), pool.range.start);
        if self.is_away_at(first) && !self.passes.load(Ordering::Relaxed) {
            self.passes.store(true, Ordering::Relaxed);
        }
        let mut index = first;
        for _ in 0..MAX_PASSES {
            if self.is_away_at(index) {
                tried.push(index - offset);
            }
            index = picker.pick(&Pick { tried: &tried, ..*pick }, draw)? + offset;
            if tried.contains(&(index - offset)) {
                // Nothing better is left.
                return Some(first);
            }
            if self.is_welcome(pool, index, pick, draw) {
                return Some(index);
            }
        }
        // What stands when patience is over must be as rare as what stood before, or new endpoints get too much.
        if let Some(ramp) = self.ramp(pool) {
            for _ in 0..MAX_DRAWS {
                let Some(index) = ramp.draw(pick.now, draw) else { break };
                if !tried.contains(&index) && !self.is_away_at(index + offset) {
                    return Some(index + offset);
                }
            }
        }
        Some(if self.is_away_at(index) { first } else { index })
    }

    /// Whether a pick stands: it is not away, and not held back for being new.
    fn is_welcome(&self, pool: &Pool, index: usize, pick: &Pick<'_>, draw: &mut Draw<'_>) -> bool {
        !self.is_away_at(index)
            && self.ramp(pool).is_none_or(|ramp| ramp.accepts(&self.candidates[index], pick.now, draw))
    }

    /// The ramp of a pool whose picker lets it be.
    fn ramp<'p>(&self, pool: &'p Pool) -> Option<&'p Ramp> {
        pool.ramp.as_ref().filter(|_| pool.picker.get().is_some_and(|picker| picker.may_ramp()))
    }

    fn is_away_at(&self, index: usize) -> bool {
        self.candidates[index].load().is_some_and(|load| load.is_away())
    }
}

impl<E> std::fmt::Debug for ReadySet<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadySet").field("known", &self.known()).field("usable", &self.usable).finish_non_exhaustive()
    }
}

/// Whether it has an endpoint that is not to come last.
fn has_other(pool: &Pool, pick: &Pick<'_>) -> bool {
    pool.range.clone().any(|index| !pick.tried.contains(&index))
}

fn policy(endpoints: &Endpoints, place: (u32, u32)) -> (&LocalityEndpoints, &Endpoint) {
    let group = &endpoints.localities[place.0 as usize];
    (group, &group.endpoints[place.1 as usize])
}

fn entries<E>(endpoints: &Endpoints, mut attach: impl FnMut(&Endpoint) -> (E, Option<Arc<Load>>)) -> Vec<Entry<E>> {
    let known = endpoints.iter().count();
    let mut addresses: HashSet<&Address, RandomState> =
        HashSet::with_capacity_and_hasher(known, RandomState::default());
    let mut entries = Vec::with_capacity(known);
    for (l, group) in endpoints.localities.iter().enumerate() {
        for (p, endpoint) in group.endpoints.iter().enumerate() {
            if !addresses.insert(&endpoint.address) {
                continue;
            }
            let (own, load) = attach(endpoint);
            let standing = load.as_ref().map_or(Standing::Good, |load| load.standing());
            let class = match endpoint.health {
                Health::Draining => Class::Draining,
                Health::Unhealthy => Class::Unhealthy,
                _ if !standing.is_admitted() => Class::Unhealthy,
                // Nobody knows yet: used if those that are known to be well are too few.
                _ if standing == Standing::Unchecked => Class::Degraded,
                Health::Healthy | Health::Unknown => Class::Healthy,
                Health::Degraded => Class::Degraded,
            };
            entries.push(Entry { priority: group.priority, class, place: (l as u32, p as u32), own, load });
        }
    }
    entries
}

/// The endpoints of one priority within the sorted entries.
struct Level {
    priority: u32,
    start: usize,
    count: Count,
}

impl Level {
    fn all<E>(sorted: &[Entry<E>]) -> Vec<Self> {
        let mut start = 0;
        let levels = sorted.chunk_by(|a, b| a.priority == b.priority).map(|entries| {
            let level = Self { priority: entries[0].priority, start, count: count(entries.iter().map(|e| e.class)) };
            start += entries.len();
            level
        });
        levels.collect()
    }
}

fn count(classes: impl Iterator<Item = Class>) -> Count {
    let mut count = Count::default();
    for class in classes.filter(|class| *class != Class::Draining) {
        count.healthy += u64::from(class == Class::Healthy);
        count.degraded += u64::from(class == Class::Degraded);
        count.total += 1;
    }
    count
}

/// A pool as it is planned.
struct Planned {
    priority: u32,
    range: Range<usize>,
    share: u64,
    panic: bool,
    degraded: bool,
    beside: Range<usize>,
    weight: u32,
}

/// The pools of every priority, standbys included, without empty ones. In panic all endpoints are one pool, or none if
/// that `fails`: an empty one with their share.
fn pools(levels: &[Level], shares: &[Share], fails: bool) -> Vec<Planned> {
    let mut pools = Vec::new();
    for (level, share) in levels.iter().zip(shares) {
        let (start, priority, panic) = (level.start, level.priority, share.panic);
        let Count { healthy, degraded, total } = level.count;
        let (healthy, degraded, total) = (healthy as usize, degraded as usize, total as usize);
        let all = if fails { start } else { start + total };
        let whole = [(start..all, share.healthy), (start..start, 0)];
        let split = start + healthy;
        let parts = [(start..split, share.healthy), (split..split + degraded, share.degraded)];
        let ranges = if panic { whole } else { parts };
        for (degraded, (range, share)) in [false, true].into_iter().zip(ranges) {
            if !range.is_empty() || panic && fails && share > 0 {
                let beside = pools.len()..pools.len() + 1;
                pools.push(Planned { priority, range, share, panic, degraded, beside, weight: 1 });
            }
        }
    }
    pools
}

/// Lets the weights of localities take part: in the endpoints' weights, or as pools of their own.
fn weigh<E>(
    pools: Vec<Planned>,
    weighing: Weighing,
    endpoints: &Endpoints,
    entries: &[Entry<E>],
    factor: u32,
    weights: &mut [NonZeroU32],
) -> Vec<Planned> {
    if weighing == Weighing::Not {
        return pools;
    }
    let places: Vec<_> = entries.iter().map(|entry| entry.place).collect();
    let alive = entries.iter().filter(|entry| entry.class != Class::Draining).map(|entry| entry.place);
    let localities = Localities::new(endpoints, factor, alive);
    let mut weighed = Vec::with_capacity(pools.len());
    for pool in pools {
        let (places, own) = (&places[pool.range.clone()], &mut weights[pool.range.clone()]);
        let parts = match weighing {
            Weighing::Hashed if pool.panic || pool.degraded => localities.place(places, places, own),
            Weighing::Hashed => {
                let well = |entry: &&Entry<E>| {
                    let health = policy(endpoints, entry.place).1.health;
                    entry.priority == pool.priority && matches!(health, Health::Healthy | Health::Unknown)
                };
                let whole: Vec<_> = entries.iter().filter(well).map(|entry| entry.place).collect();
                localities.place(places, &whole, own)
            }
            // All endpoints alike, as in Envoy.
            _ if pool.panic => Vec::new(),
            Weighing::Drawn => localities.parts(places, pool.share),
            _ => localities.spread(places, own),
        };
        let start = weighed.len();
        if parts.len() < 2 {
            weighed.push(Planned { beside: start..start + 1, ..pool });
            continue;
        }
        let beside = start..start + parts.len();
        weighed.extend(parts.into_iter().map(|part| {
            let range = pool.range.start + part.range.start..pool.range.start + part.range.end;
            Planned { range, share: part.share, beside: beside.clone(), weight: part.weight, ..pool }
        }));
    }
    weighed
}
