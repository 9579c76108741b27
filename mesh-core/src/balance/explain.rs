//! Why a set picks as it does: for people, not for the request path.

use std::time::Duration;

use serde::Serialize;

use crate::id::Locality;
use crate::policy::PerMillion;

/// Endpoints of one priority, or of one of its localities, among which one picker chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolExplanation {
    /// Their priority.
    pub priority: u32,
    /// Their locality, where one is drawn by weight before an endpoint is picked; `None` = they are all of the priority.
    pub locality: Option<Locality>,
    /// What part of the cluster's requests it gets; nothing = it stands by.
    pub share: PerMillion,
    /// Too few are healthy: endpoints take part whatever their health.
    pub panic: bool,
    /// They are degraded, or not checked yet, and take what the healthy ones cannot.
    pub degraded: bool,
    /// How many they are.
    pub endpoints: usize,
}

/// What a set makes of one endpoint that can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rating {
    /// Its weight among those of its pool, its locality's share in it where localities are weighed and have one pool.
    pub weight: u32,
    /// What part of its weight it gets while it is new (slow start), above 0; 1 = it is not.
    pub ramp: f32,
    /// What the picker compares; `None` for pickers that compare nothing, and where nothing was picked yet.
    pub score: Option<Score>,
}

/// What a picker compares, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Score {
    /// Least request: requests in flight for each unit of weight, failures counted in. Of those drawn the lowest is
    /// picked.
    InFlight(f32),
    /// Peak EWMA, and Prequal without answers: latency times requests in flight and the new one, failures counted in;
    /// nothing for an idle one that never answered. Of those drawn the lowest is picked.
    Cost(Duration),
    /// Weighted round robin: the weight that it goes by, 1 = the heaviest.
    Weight(f32),
    /// Prequal: an answer to a probe that is at hand.
    Probed {
        /// Whether it has more in flight than most: picked only if all do.
        hot: bool,
        /// Requests in flight, for a mean weight.
        in_flight: f32,
        /// Latency. Among those that are not hot the lowest is picked, or one by weight where weights differ.
        latency: Duration,
    },
}

pub(super) fn microseconds(count: f32) -> Duration {
    // No cost is as high as the bound, whatever was reported.
    Duration::from_secs_f64((f64::from(count) / 1e6).clamp(0.0, 1e9))
}
