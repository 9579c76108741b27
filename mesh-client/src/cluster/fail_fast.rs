//! Fail-fast (Linkerd): when a request could not be sent within a time, and no other one could, those that follow are
//! told so at once instead of each waiting for itself, until there is a connection again.
//!
//! ```text
//! ready ──a wait for a connection is over, and nobody had one meanwhile──▶ failing
//!   ▲                                                                        │ what needs no wait passes;
//!   └──────────────────────── somebody has a connection ◀────────────────────┘ one request a period may wait
//! ```

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::id::ClusterName;
use tokio::time::{Instant, timeout};

use crate::connect::Lease;
use crate::error::Cause;

/// The fail-fast of one cluster. Times are milliseconds since it was made.
pub(super) struct FailFast {
    // Longest wait, and the period of those that look whether there is a connection again.
    patience: Duration,
    epoch: Instant,
    // When somebody got a connection last.
    found: AtomicU64,
    // While it fails: when one request may wait again; otherwise 0.
    failing: AtomicU64,
}

impl FailFast {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, epoch: Instant::now(), found: AtomicU64::new(0), failing: AtomicU64::new(0) }
    }

    /// Waits for a connection as long as one may. `at_hand` gives one that is there already.
    pub(super) async fn bound(
        &self,
        cluster: &ClusterName,
        at_hand: impl Future<Output = Option<Lease>>,
        found: impl Future<Output = Result<Lease, Cause>>,
    ) -> Result<Lease, Cause> {
        let late = || Cause::FailFast { cluster: cluster.clone(), after: self.patience };
        if !self.may_wait() {
            let lease = at_hand.await.ok_or_else(late)?;
            self.found();
            return Ok(lease);
        }
        match timeout(self.patience, pin!(found)).await {
            Ok(lease) => {
                if lease.is_ok() {
                    self.found();
                }
                lease
            }
            Err(_) => {
                self.missed();
                Err(late())
            }
        }
    }

    /// Whether a request may wait: any, or while it fails one now and then.
    fn may_wait(&self) -> bool {
        let failing = self.failing.load(Ordering::Relaxed);
        if failing == 0 {
            return true;
        }
        let now = self.now();
        let next = now + self.patience_ms();
        now >= failing && self.failing.compare_exchange(failing, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn found(&self) {
        let now = self.now();
        // Nearly every request gets one: what is known already is not written again.
        if self.found.load(Ordering::Relaxed) != now {
            self.found.store(now, Ordering::Relaxed);
        }
        if self.failing.load(Ordering::Relaxed) != 0 {
            self.failing.store(0, Ordering::Relaxed);
        }
    }

    fn missed(&self) {
        let now = self.now();
        if self.found.load(Ordering::Relaxed) + self.patience_ms() <= now {
            self.failing.store(now + self.patience_ms(), Ordering::Relaxed);
        }
    }

    /// Never 0: the clock begins with 1.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / 4) + 1
    }

    fn patience_ms(&self) -> u64 {
        u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX / 4).max(1)
    }
}
