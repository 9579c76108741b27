//! How the weights of localities take part in picks (Envoy `locality_weighted_lb_config`, gRPC's `wrr_locality`).
//!
//! Pure, and asked when a set is built, never for a request. Refuses to know pools and pickers.

use std::num::NonZeroU32;
use std::ops::Range;

use super::levels::availability;
use crate::policy::{Balancer, Cluster, Discovery, Endpoints, PerMillion};

/// In which way they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weighing {
    Not,
    /// A locality is drawn, and a picker over its endpoints chooses (gRFC A27). For pickers that compare endpoints: over
    /// several localities they would send elsewhere what is the share of a slow one.
    Drawn,
    /// In the weight of each endpoint. For pickers that go by weight alone, which so are as exact and more even.
    Spread,
    /// In the weight of each endpoint, whatever their health: where a key belongs must not depend on what else is healthy.
    Hashed,
}

/// A locality's endpoints in a pool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where in the pool they are.
    pub(super) range: Range<usize>,
    /// What it gets of the pool's share.
    pub(super) share: u64,
    /// What it weighs among the pool's localities; a million = as much as the heaviest.
    pub(super) weight: u32,
}

/// Locality and position of an endpoint in the policy.
type Place = (u32, u32);

/// The localities of a set.
pub(super) struct Localities<'a> {
    endpoints: &'a Endpoints,
    factor: u32,
    // By locality: endpoints that are not draining.
    total: Vec<u64>,
}

/// Finer than any weight a person writes, and a sum of such stays far from overflow.
const STEPS: f64 = 1e6;
/// One in gRPC's fixed point (gRFC A113).
const ONE: u64 = 1 << 31;

impl Weighing {
    /// How they do in a cluster; with pickers of the caller's `own` nobody knows what these compare.
    pub(super) fn of(cluster: &Cluster, own: bool) -> Self {
        match cluster.balancer.leaf() {
            // gRPC always does; an Envoy asks for it, and from a control plane that serves both both must hear the same. Elsewhere
            // than over EDS localities have weights only where somebody means them.
            Balancer::RingHash { .. } if cluster.locality.weighted || by_eds(cluster) => Self::Hashed,
            Balancer::PickFirst { shuffle: true } if !cluster.locality.weighted && by_eds(cluster) => Self::Hashed,
            _ if !cluster.locality.weighted => Self::Not,
            Balancer::Maglev { .. } => Self::Hashed,
            Balancer::RoundRobin | Balancer::Random | Balancer::Passthrough if !own => Self::Spread,
            _ => Self::Drawn,
        }
    }
}

fn by_eds(cluster: &Cluster) -> bool {
    matches!(cluster.discovery, Discovery::Eds { .. })
}

impl<'a> Localities<'a> {
    /// The localities of `endpoints`, of which those at `alive` are not draining. `factor` is Envoy's overprovisioning.
    pub(super) fn new(endpoints: &'a Endpoints, factor: u32, alive: impl Iterator<Item = Place>) -> Self {
        let mut total = vec![0; endpoints.localities.len()];
        alive.for_each(|(locality, _)| total[locality as usize] += 1);
        Self { endpoints, factor, total }
    }

    /// The localities of the pool at `places`, which are side by side, and what each gets of its `share`.
    pub(super) fn parts(&self, places: &[Place], share: u64) -> Vec<Part> {
        let parts = by_locality(places);
        let kept: Vec<f64> = parts.iter().map(|range| self.kept(&places[range.clone()])).collect();
        let (sum, largest) = (kept.iter().sum::<f64>(), largest(&kept));
        let part = |(range, kept): (Range<usize>, &f64)| {
            // However little it weighs, it is something.
            let own = ((share as f64 * kept / sum) as u64).max(u64::from(share > 0));
            Part { range, share: own, weight: scaled(*kept, largest).get() }
        };
        let mut parts: Vec<Part> = parts.into_iter().zip(&kept).map(part).collect();
        // The heaviest has what rounding left.
        let others = |parts: &[Part], heaviest: usize| {
            let others = parts.iter().enumerate().filter(|(place, _)| *place != heaviest);
            others.map(|(_, part)| part.share).sum::<u64>()
        };
        if let Some(heaviest) = (0..parts.len()).max_by_key(|place| parts[*place].weight) {
            parts[heaviest].share = share.saturating_sub(others(&parts, heaviest));
        }
        parts
    }

    /// Shares each locality's weight out among its endpoints of the pool, by their own weights in `weights`.
    pub(super) fn spread(&self, places: &[Place], weights: &mut [NonZeroU32]) -> Vec<Part> {
        let mut shares = Vec::with_capacity(places.len());
        for range in by_locality(places) {
            let own = &weights[range.clone()];
            let sum: f64 = own.iter().map(|weight| f64::from(weight.get())).sum();
            let kept = self.kept(&places[range]);
            shares.extend(own.iter().map(|weight| kept * f64::from(weight.get()) / sum));
        }
        let largest = largest(&shares);
        weights.iter_mut().zip(shares).for_each(|(weight, share)| *weight = scaled(share, largest));
        Vec::new()
    }

    /// The same in gRPC's fixed point, with the whole weight of each locality, wherever in the pool its endpoints are. Those of
    /// `whole` that are not in the pool, for they are ejected or fail their checks, keep their part: as in gRPC, whose ring
    /// they stay in, the others of their locality weigh no more for that.
    pub(super) fn place(&self, places: &[Place], whole: &[Place], weights: &mut [NonZeroU32]) -> Vec<Part> {
        let mut here: Vec<u32> = places.iter().map(|(locality, _)| *locality).collect();
        here.sort_unstable();
        here.dedup();
        let all: u64 = here.iter().map(|locality| u64::from(self.weight((*locality, 0)))).sum();
        if here.len() < 2 {
            return Vec::new();
        }
        let mut sums = vec![0_u64; self.total.len()];
        for (locality, at) in whole {
            let own = &self.endpoints.localities[*locality as usize].endpoints[*at as usize];
            sums[*locality as usize] += u64::from(own.weight.get());
        }
        for (place, weight) in places.iter().zip(weights) {
            let locality = u64::from(self.weight(*place)) * ONE / all;
            let endpoint = u64::from(weight.get()) * ONE / sums[place.0 as usize].max(1);
            *weight = NonZeroU32::new((locality * endpoint / ONE) as u32).unwrap_or(NonZeroU32::MIN);
        }
        Vec::new()
    }

    /// What a locality weighs of which these are in the pool: all of its weight down to 71 % of its endpoints, and from there
    /// on less and less, as in Envoy.
    fn kept(&self, members: &[Place]) -> f64 {
        let total = self.total[members[0].0 as usize];
        let share = availability(members.len() as u64, total, self.factor) as f64;
        share * f64::from(self.weight(members[0])) / f64::from(PerMillion::ALL.get())
    }

    fn weight(&self, (locality, _): Place) -> u32 {
        self.endpoints.localities[locality as usize].weight.get()
    }
}

fn by_locality(places: &[Place]) -> Vec<Range<usize>> {
    let mut start = 0;
    let parts = places.chunk_by(|a, b| a.0 == b.0).map(|part| {
        start += part.len();
        start - part.len()..start
    });
    parts.collect()
}

fn largest(shares: &[f64]) -> f64 {
    shares.iter().copied().fold(f64::MIN_POSITIVE, f64::max)
}

fn scaled(share: f64, largest: f64) -> NonZeroU32 {
    NonZeroU32::new((share / largest * STEPS).round() as u32).unwrap_or(NonZeroU32::MIN)
}
