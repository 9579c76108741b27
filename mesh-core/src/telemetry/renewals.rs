//! Renewals of certificates that failed: the first sign of an authority that is away, long before a certificate ends.

use std::sync::atomic::{AtomicU64, Ordering};

/// Attempts at a certificate (or at reading it, or its roots) that failed, counter.
pub const RENEWAL_FAILURES: &str = "mesh_certificate_renewal_failures_total";
/// When the last one was, seconds since the Unix epoch.
pub const RENEWAL_FAILED_AT: &str = "mesh_certificate_renewal_last_failure_timestamp_seconds";

/// How often there was no new certificate, and when last.
#[derive(Debug, Default)]
pub struct Renewals {
    failures: AtomicU64,
    last: AtomicU64,
}

impl Renewals {
    /// Counts a failure at `now`, seconds since the Unix epoch.
    pub fn failed(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Failures until now.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// When the last one was, seconds since the Unix epoch; `None` if there was none.
    pub fn last_failure(&self) -> Option<u64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|_| self.failures() > 0)
    }
}
