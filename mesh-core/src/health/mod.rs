//! Which endpoints are well: what their answers say, what health checks say, and what follows.
//!
//! ```text
//! request path  Evidence ─▶ Vitals (atomics) ─▶ limit reached? ─┐ wakes
//!               Turn ◀─▶ Accrual (atomics) ─▶ tripped?  ────────┤
//!                                                               ▼
//! owner         interval, answers of checks ─────────────▶ Roster ─▶ Standing ─▶ who may be picked
//! ```
//!
//! Requests only count; one owner for each cluster decides. Time is the time since an epoch of the owner's
//! choice, randomness an argument. Refuses to know connections and how a check is made.

mod accrual;
mod check;
mod evidence;
mod rates;
mod roster;
mod vitals;

#[cfg(test)]
mod tests;

pub use self::accrual::{Accrual, AccrualState, Turn};
pub use self::check::{CheckOutcome, Checked, first_check};
pub use self::evidence::Evidence;
pub use self::roster::{Change, Member, Roster};
pub use self::vitals::{Counts, Tally, Vitals};

use serde::{Serialize, Serializer};

/// What health says of an endpoint, passive and active together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Nothing is known against it.
    #[default]
    Good,
    /// Its first health check is not over: used if those known to be well are too few.
    Unchecked,
    /// A health check failed.
    FailedCheck,
    /// Ejected: it is an outlier.
    Ejected(Reason),
    /// Out for a while after too many failures in a row (Linkerd).
    Penalty,
}

/// Why an endpoint is an outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// 5xx answers in a row.
    Consecutive5xx,
    /// 502, 503 or 504 in a row.
    ConsecutiveGatewayFailure,
    /// No connection, or it broke, several times in a row.
    ConsecutiveLocalOriginFailure,
    /// Its success rate is far below the mean.
    SuccessRate,
    /// Too large a share of its answers are failures.
    FailurePercentage,
    /// The success rate of its connections is far below the mean.
    LocalOriginSuccessRate,
    /// Too large a share of its connections fail.
    LocalOriginFailurePercentage,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::FailurePercentage,
        Self::LocalOriginSuccessRate,
        Self::LocalOriginFailurePercentage,
    ];

    /// Its name in metrics and logs, as Envoy's statistics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::LocalOriginSuccessRate => "local_origin_success_rate",
            Self::LocalOriginFailurePercentage => "local_origin_failure_percentage",
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Standing {
    /// Whether requests may go there.
    pub fn is_admitted(self) -> bool {
        matches!(self, Self::Good | Self::Unchecked)
    }

    /// As a number, to be kept in an atomic.
    pub(crate) fn index(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Unchecked => 1,
            Self::FailedCheck => 2,
            Self::Penalty => 3,
            Self::Ejected(reason) => FIRST_REASON + reason as u8,
        }
    }

    pub(crate) fn from_index(index: u8) -> Self {
        match index {
            1 => Self::Unchecked,
            2 => Self::FailedCheck,
            3 => Self::Penalty,
            other => {
                let reason = other.checked_sub(FIRST_REASON).and_then(|place| Reason::ALL.get(usize::from(place)));
                reason.map_or(Self::Good, |reason| Self::Ejected(*reason))
            }
        }
    }
}

/// Reasons follow the plain standings.
const FIRST_REASON: u8 = 4;
