//! What is counted of one cluster's health: ejections by reason, penalties, health checks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::health::{Change, Reason};

/// Ejections (Envoy `ejections_enforced`, gRFC A91).
pub const EJECTIONS: &str = "mesh_outlier_ejections_total";
/// Outliers that were not ejected, by the reason of that.
pub const EJECTIONS_UNENFORCED: &str = "mesh_outlier_ejections_unenforced_total";
/// Endpoints ejected now.
pub const EJECTIONS_ACTIVE: &str = "mesh_outlier_ejections_active";
/// Endpoints taken out after failures in a row (Linkerd failure accrual).
pub const PENALTIES: &str = "mesh_endpoint_penalties_total";
/// Health checks made.
pub const HEALTH_CHECKS: &str = "mesh_health_checks_total";

/// The counters of one cluster.
#[derive(Debug, Default)]
pub struct HealthSeries {
    ejections: Reasons,
    not_enforced: Reasons,
    overflow: Reasons,
    active: AtomicU64,
    penalties: AtomicU64,
    passed: AtomicU64,
    failed: AtomicU64,
}

type Reasons = [AtomicU64; Reason::ALL.len()];

impl HealthSeries {
    /// Counts what happened to an endpoint.
    pub fn changed(&self, change: Change) {
        let counter = match change {
            Change::Ejected(reason, _) => &self.ejections[reason as usize],
            Change::NotEnforced(reason) => &self.not_enforced[reason as usize],
            Change::Overflow(reason) => &self.overflow[reason as usize],
            Change::Penalized(_) => &self.penalties,
            Change::Returned | Change::CheckFailed | Change::CheckPassed | Change::Recovered => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a health check.
    pub fn checked(&self, passed: bool) {
        let counter = if passed { &self.passed } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// So many are ejected now of those that one owner knows, of whom so many were before. Several owners may share a
    /// series.
    pub fn ejected(&self, before: usize, now: usize) {
        if before != now {
            self.active.fetch_add((now as u64).wrapping_sub(before as u64), Ordering::Relaxed);
        }
    }

    /// Ejections for a reason.
    pub fn ejections(&self, reason: Reason) -> u64 {
        self.ejections[reason as usize].load(Ordering::Relaxed)
    }

    /// Outliers for a reason that were not ejected: outside of the enforced share, and beyond the largest share of
    /// ejected endpoints.
    pub fn unenforced(&self, reason: Reason) -> (u64, u64) {
        let read = |counters: &Reasons| counters[reason as usize].load(Ordering::Relaxed);
        (read(&self.not_enforced), read(&self.overflow))
    }

    /// Endpoints ejected now.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Penalties.
    pub fn penalties(&self) -> u64 {
        self.penalties.load(Ordering::Relaxed)
    }

    /// Health checks passed and failed.
    pub fn checks(&self) -> (u64, u64) {
        (self.passed.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}
