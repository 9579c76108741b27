//! Which endpoint gets the next request: pure pickers over an immutable set of usable endpoints.
//!
//! A [`ReadySet`] is built when endpoints change; picking then reads atomics only and takes no lock.
//! Randomness is an argument. Refuses to know connections and health: what the caller keeps for an
//! endpoint rides along as `E`.

mod least_request;
mod load;
mod random;
mod ready;
mod round_robin;
mod weights;

#[cfg(test)]
mod tests;

pub use self::least_request::LeastRequest;
pub use self::load::{InFlight, Load};
pub use self::random::Random;
pub use self::ready::ReadySet;
pub use self::round_robin::RoundRobin;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::policy::Balancer;

/// Randomness: gives a uniform number below its argument, which is never 0.
/// `fastrand::Rng::u64(..n)` will do.
pub type Draw<'a> = dyn FnMut(u64) -> u64 + 'a;

/// What a picker sees of an endpoint.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Share relative to the other candidates.
    pub weight: NonZeroU32,
    /// Its requests in flight.
    pub load: Arc<Load>,
}

/// Chooses one of the candidates it was built for.
pub trait Picker: fmt::Debug + Send + Sync {
    /// Index of the chosen candidate; `None` only if there are none. Candidates in `tried` are chosen
    /// only when nothing else is left. `hash` is the request's, for balancers that hash.
    fn pick(&self, tried: &[usize], hash: Option<u64>, draw: &mut Draw<'_>) -> Option<usize>;
}

/// The picker that `balancer` asks for, over `candidates`.
///
/// Weighted round robin without load reports is round robin (gRFC A58). Ring hash, Maglev, peak EWMA
/// and pick first are not there yet: they get least request, and
/// [`unenforced`](crate::policy::unenforced) says so.
pub fn picker_for(balancer: &Balancer, candidates: Arc<[Candidate]>, draw: &mut Draw<'_>) -> Box<dyn Picker> {
    match balancer {
        Balancer::LeastRequest { choices, .. } => Box::new(LeastRequest::new(candidates, *choices)),
        Balancer::RoundRobin | Balancer::WeightedRoundRobin(_) => Box::new(RoundRobin::new(&candidates, draw)),
        Balancer::Random => Box::new(Random::new(&candidates)),
        Balancer::PeakEwma
        | Balancer::RingHash { .. }
        | Balancer::Maglev { .. }
        | Balancer::PickFirst { .. }
        | Balancer::RandomSubsetting { .. }
        | Balancer::Passthrough => Box::new(LeastRequest::new(candidates, 2)),
    }
}
