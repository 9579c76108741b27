//! The health of one cluster's endpoints: requests note what they saw, one task decides and builds the set anew.
//!
//! A cluster whose policy asks for none of it has no task, and its requests count nothing.

mod probe;
mod worker;

use std::sync::Arc;

use mesh_core::health::{Accrual, AccrualState, Evidence, Turn, Vitals};
use mesh_core::policy;

pub(super) use self::worker::{Owned, start};
use crate::connect::worker::Wake;

/// Whether the policy asks for a look at the endpoints' health.
pub(super) fn is_watched(policy: &policy::Cluster) -> bool {
    judges_requests(policy) || !policy.health_checks.is_empty()
}

fn judges_requests(policy: &policy::Cluster) -> bool {
    policy.outlier.is_some() || policy.accrual.is_some()
}

/// Whether an endpoint is checked.
pub(super) fn is_checked(policy: &policy::Cluster, endpoint: &policy::Endpoint) -> bool {
    !policy.health_checks.is_empty() && !endpoint.metadata.health_check.disabled
}

/// What requests to one endpoint have seen.
pub(super) struct Watch {
    policy: Arc<policy::Cluster>,
    vitals: Vitals,
    accrual: Accrual,
    // The owner's.
    wake: Arc<Wake>,
}

/// One request at a watched endpoint; its place on probation is free again when this is dropped.
pub(super) struct Watched {
    watch: Arc<Watch>,
    turn: Option<Turn>,
}

impl Watch {
    /// `None` if nobody wants to hear of it.
    pub(super) fn new(policy: &Arc<policy::Cluster>, wake: Option<&Arc<Wake>>) -> Option<Arc<Self>> {
        let wake = wake.filter(|_| judges_requests(policy))?.clone();
        let (policy, vitals, accrual) = (policy.clone(), Vitals::default(), Accrual::default());
        Some(Arc::new(Self { policy, vitals, accrual, wake }))
    }

    /// Where the breaker is, if policy has one.
    pub(super) fn accrual(&self) -> Option<AccrualState> {
        self.policy.accrual.as_ref().map(|_| self.accrual.state())
    }

    /// Leave for one request; `None` = it must go elsewhere.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Watched> {
        let turn = match self.policy.accrual {
            None => None,
            Some(_) => Some(self.accrual.enter()?),
        };
        Some(Watched { watch: self.clone(), turn })
    }
}

impl Watched {
    /// Notes what the request says of the endpoint.
    pub(super) fn record(&mut self, evidence: Evidence) {
        let Watch { policy, vitals, accrual, wake } = &*self.watch;
        let ejects = policy.outlier.as_ref().is_some_and(|outlier| vitals.record(evidence, outlier));
        let breaks = match (&policy.accrual, &mut self.turn) {
            (Some(policy), Some(turn)) => accrual.record(turn, evidence, policy),
            _ => false,
        };
        if ejects || breaks {
            wake.wake();
        }
    }
}

impl Watched {
    /// Notes the head of an answer that leaves its outcome open.
    pub(super) fn answered(&mut self) {
        let Watch { policy, accrual, .. } = &*self.watch;
        if let (Some(policy), Some(turn)) = (&policy.accrual, &mut self.turn) {
            accrual.answered(turn, policy);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.watch.accrual.leave(turn);
        }
    }
}
