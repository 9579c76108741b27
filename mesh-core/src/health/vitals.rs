//! What is counted of one endpoint's answers. Atomics only: an answer that is well costs a few loads.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::{Evidence, Reason};
use crate::policy::OutlierDetection;
use crate::retry::http_status_of;

/// The counters of one endpoint.
#[derive(Debug, Default)]
pub struct Vitals {
    // In a row.
    server_errors: AtomicU32,
    gateway_failures: AtomicU32,
    local_failures: AtomicU32,
    // Since the last tally.
    answers: Counter,
    connections: Counter,
    // One bit a limit, for the owner to take.
    reached: AtomicU8,
}

#[derive(Debug, Default)]
struct Counter {
    good: AtomicU32,
    bad: AtomicU32,
}

/// Outcomes of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Successes.
    pub good: u32,
    /// Failures.
    pub bad: u32,
}

/// What one endpoint did in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers; a 5xx is a failure. Lost connections count here too, unless they are counted apart.
    pub answers: Counts,
    /// Connections, where they are counted apart (`split_local_origin`).
    pub connections: Counts,
}

/// The reasons with a limit, by their bit.
const LIMITS: [Reason; 3] =
    [Reason::ConsecutiveGatewayFailure, Reason::Consecutive5xx, Reason::ConsecutiveLocalOriginFailure];

impl Vitals {
    /// Counts what a try says. True: a limit has been reached, and the owner should look
    /// ([`take_limits`](Self::take_limits)).
    pub fn record(&self, evidence: Evidence, policy: &OutlierDetection) -> bool {
        let status = match evidence {
            Evidence::Nothing => return false,
            Evidence::Lost | Evidence::Late if policy.split_local_origin => return self.unreached(policy),
            Evidence::Status(status) => status,
            Evidence::Grpc(status) => http_status_of(status).as_u16(),
            // As Envoy maps them.
            Evidence::Lost => 503,
            Evidence::Late => 504,
        };
        if policy.split_local_origin {
            clear(&self.local_failures);
            self.connections.count(true, policy);
        }
        let failed = status >= 500;
        self.answers.count(!failed, policy);
        if !failed {
            clear(&self.server_errors);
            clear(&self.gateway_failures);
            return false;
        }
        let mut reached = false;
        if matches!(status, 502..=504) {
            reached |= self.more(0, &self.gateway_failures, policy.consecutive_gateway);
        } else {
            clear(&self.gateway_failures);
        }
        reached | self.more(1, &self.server_errors, policy.consecutive_5xx)
    }

    fn unreached(&self, policy: &OutlierDetection) -> bool {
        self.connections.count(false, policy);
        self.more(2, &self.local_failures, policy.consecutive_local_origin)
    }

    /// One more in a row. At the limit counting begins anew, so that a row that goes on is noticed again.
    fn more(&self, limit: usize, counter: &AtomicU32, most: Option<u32>) -> bool {
        let Some(most) = most else { return false };
        if counter.fetch_add(1, Ordering::Relaxed) + 1 < most {
            return false;
        }
        counter.store(0, Ordering::Relaxed);
        self.reached.fetch_or(1 << limit, Ordering::Release);
        true
    }

    /// The limits reached since the last time.
    pub fn take_limits(&self) -> impl Iterator<Item = Reason> + use<> {
        let reached = match self.reached.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.reached.swap(0, Ordering::Acquire),
        };
        LIMITS.into_iter().enumerate().filter(move |(limit, _)| reached & (1 << limit) != 0).map(|(_, reason)| reason)
    }

    /// What was counted since the last time.
    pub fn take_tally(&self) -> Tally {
        Tally { answers: self.answers.take(), connections: self.connections.take() }
    }

    /// Forgets failures in a row: the endpoint begins anew.
    pub fn reset(&self) {
        for counter in [&self.server_errors, &self.gateway_failures, &self.local_failures] {
            clear(counter);
        }
        self.reached.store(0, Ordering::Relaxed);
    }
}

impl Counter {
    fn count(&self, good: bool, policy: &OutlierDetection) {
        if policy.success_rate.is_some() || policy.failure_percentage.is_some() {
            let counter = if good { &self.good } else { &self.bad };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(&self) -> Counts {
        Counts { good: self.good.swap(0, Ordering::Relaxed), bad: self.bad.swap(0, Ordering::Relaxed) }
    }
}

/// A load is cheaper than a store that others have to hear of.
fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}
