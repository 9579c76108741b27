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
use std::time::Duration;

use mesh_core::id::ClusterName;
use mesh_core::limit;
use tokio::time::{Instant, timeout};

use crate::connect::Lease;
use crate::error::Cause;

/// The fail-fast of one cluster.
pub(super) struct FailFast {
    // Longest wait, and the period of those that look whether there is a connection again.
    patience: Duration,
    epoch: Instant,
    state: limit::FailFast,
}

impl FailFast {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, epoch: Instant::now(), state: limit::FailFast::new(patience) }
    }

    /// Waits for a connection as long as one may. `at_hand` gives one that is there already.
    pub(super) async fn bound(
        &self,
        cluster: &ClusterName,
        at_hand: impl FnOnce() -> Option<Lease>,
        found: impl Future<Output = Result<Lease, Cause>>,
    ) -> Result<Lease, Cause> {
        let late = || Cause::FailFast { cluster: cluster.clone(), after: self.patience };
        if !self.state.may_wait(self.now()) {
            let lease = at_hand().ok_or_else(late)?;
            self.state.found(self.now());
            return Ok(lease);
        }
        match timeout(self.patience, pin!(found)).await {
            Ok(lease) => {
                if lease.is_ok() {
                    self.state.found(self.now());
                }
                lease
            }
            Err(_) => {
                self.state.missed(self.now());
                Err(late())
            }
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}
