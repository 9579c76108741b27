//! Which endpoint gets the next request: pure pickers over an immutable set of candidates, and around
//! them priorities, localities, panic, slow start and spill-over.
//!
//! ```text
//! Endpoints ─▶ subset ─▶ labelled ─▶ ReadySet: priority and health make pools ─▶ Picker of a pool ─▶ index
//!    └ the others, for sessions ───────┘
//! ```
//!
//! A [`ReadySet`] is built when endpoints or their health change; picking then reads atomics only and
//! takes no lock. Randomness and time are arguments: every `now` is the time since an epoch of the
//! caller's choice, the same for all calls. Refuses to know connections: what the caller keeps for an
//! endpoint rides along as `E`.

mod bounded;
mod candidate;
mod explain;
pub mod hash;
mod labelled;
mod least_request;
mod levels;
mod load;
mod localities;
mod maglev;
mod peak_ewma;
mod pick_first;
mod prequal;
mod random;
mod ready;
mod report;
mod ring_hash;
mod round_robin;
mod served;
pub mod session;
mod slow_start;
mod spill;
mod stamped;
mod subset;
mod weighted_round_robin;
mod weights;

#[cfg(test)]
mod tests;

pub use self::bounded::Bounded;
pub use self::candidate::{Candidate, Candidates};
pub use self::explain::{PoolExplanation, Rating, Score};
pub use self::labelled::{Left, labelled, merged};
pub use self::least_request::LeastRequest;
pub use self::load::{InFlight, Load};
pub use self::maglev::Maglev;
pub use self::peak_ewma::PeakEwma;
pub use self::pick_first::PickFirst;
pub use self::prequal::Prequal;
pub use self::random::Random;
pub use self::ready::{MakeNamed, MakePicker, Outside, ReadySet};
pub use self::report::EndpointReport;
pub use self::ring_hash::RingHash;
pub use self::round_robin::RoundRobin;
pub use self::served::{ServedLoad, Serving};
pub use self::subset::subset;
pub use self::weighted_round_robin::WeightedRoundRobin;

use std::fmt;
use std::time::Duration;

use crate::policy::Balancer;

/// Randomness: gives a uniform number below its argument, which is never 0.
/// `fastrand::Rng::u64(..n)` will do.
pub type Draw<'a> = dyn FnMut(u64) -> u64 + 'a;

/// One request as a picker sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick<'a> {
    /// Time since the owner's epoch.
    pub now: Duration,
    /// Indices not to be chosen while there are others: a retry names those it was at.
    pub tried: &'a [usize],
    /// The request's hash, for balancers that hash; `None` = any will do.
    pub hash: Option<u64>,
    /// Indices whose priorities are to be left if there is another one (Envoy `previous_priorities`); if there is none,
    /// their localities. Nothing = any will do. They may be chosen again unless `tried` names them too. For a
    /// [`ReadySet`]; pickers see one priority only.
    pub away_from: &'a [usize],
}

/// Chooses one of the candidates it was built for.
pub trait Picker: fmt::Debug + Send + Sync {
    /// Index of the chosen candidate; `None` only if there are none. Candidates in `tried` are chosen
    /// only when nothing else is left.
    fn pick(&self, pick: &Pick<'_>, draw: &mut Draw<'_>) -> Option<usize>;

    /// Takes note that the candidate's [`Load`] got a fresh [`EndpointReport`], from a probe or with an
    /// answer. Most pickers read the load when they pick and need no word.
    fn reported(&self, _index: usize, _now: Duration) {}

    /// A report of its load came with an answer of the candidate (ORCA, gRFC A51), in its headers or its trailers: of a request
    /// that this picker gave it, or another one of the same set. What it makes of that is its own; a picker lasts until the
    /// endpoints or their health change, so what is to last longer is kept by address with whoever makes pickers. Called
    /// for pickers of the caller's own; those of this crate read the load.
    fn hear(&self, _index: usize, _report: &EndpointReport, _now: Duration) {}

    /// What it compares of this candidate, for people who ask why; `None` if it compares nothing.
    fn score(&self, _index: usize, _now: Duration) -> Option<Score> {
        None
    }

    /// Whether a share of the requests may be moved away from a candidate without harm. False for
    /// those that tie a request to one endpoint: they have no slow start, as in Envoy.
    fn may_ramp(&self) -> bool {
        true
    }
}

/// The picker that `balancer` asks for, over `candidates`. Passthrough has one candidate and no choice.
pub fn picker_for(balancer: &Balancer, candidates: Candidates, draw: &mut Draw<'_>) -> Box<dyn Picker> {
    match balancer {
        Balancer::LeastRequest { choices, bias } => {
            Box::new(LeastRequest::new(candidates, *choices, *bias as f32 / 1e6))
        }
        Balancer::RoundRobin | Balancer::Custom { .. } => Box::new(RoundRobin::new(&candidates, draw)),
        Balancer::WeightedRoundRobin(settings) => Box::new(WeightedRoundRobin::new(candidates, settings.clone(), draw)),
        Balancer::Random | Balancer::Passthrough => Box::new(Random::new(candidates)),
        Balancer::PeakEwma => Box::new(PeakEwma::new(candidates)),
        Balancer::Prequal(settings) => Box::new(Prequal::new(candidates, settings.clone())),
        // The endpoints have been cut down by `subset` before.
        Balancer::RandomSubsetting { child, .. } | Balancer::DeterministicSubsetting { child, .. } => {
            picker_for(child, candidates, draw)
        }
        Balancer::RingHash { min_size, max_size } => {
            bounded(RingHash::new(&candidates, *min_size, *max_size), candidates)
        }
        Balancer::Maglev { table_size } => bounded(Maglev::new(&candidates, *table_size), candidates),
        Balancer::PickFirst { shuffle } => Box::new(PickFirst::new(candidates, *shuffle, draw)),
    }
}

/// `picker` with the bound on load that policy has for those that hash, if it has one.
fn bounded(picker: impl Picker + 'static, candidates: Candidates) -> Box<dyn Picker> {
    match candidates.balance_factor() {
        Some(factor) => Box::new(Bounded::new(picker, candidates, factor)),
        None => Box::new(picker),
    }
}
