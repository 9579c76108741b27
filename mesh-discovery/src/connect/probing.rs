//! How often an idle connection is asked for a sign of life.
//!
//! A control plane that hangs or is cut off says nothing, like one that has nothing to say; only a PING tells them
//! apart, within 30 s. Servers of gRPC may limit how often they are asked and then close the connection with
//! `ENHANCE_YOUR_CALM`; the next ones are probed half as often (gRFC A8).

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Between two PINGs of an idle connection.
const INTERVAL: Duration = Duration::from_secs(20);
/// For the answer; then the connection is dead.
pub(super) const TIMEOUT: Duration = Duration::from_secs(8);
/// 20 s doubled so often are more than the five minutes that servers of gRPC allow if nobody tells them otherwise.
const MAX_DOUBLINGS: u32 = 4;

/// The pace at which connections to one control plane are probed.
#[derive(Debug, Default)]
pub(super) struct Probing {
    doublings: AtomicU32,
}

impl Probing {
    pub(super) fn interval(&self) -> Duration {
        INTERVAL * (1 << self.doublings.load(Relaxed))
    }

    /// Notes why a connection ended.
    pub(super) fn ended(&self, error: &(dyn Error + 'static)) {
        if is_too_many_pings(error) {
            let slower = |doublings| (doublings < MAX_DOUBLINGS).then_some(doublings + 1);
            // Beyond the limit the reason is another one.
            let _ = self.doublings.fetch_update(Relaxed, Relaxed, slower);
            tracing::info!(interval = ?self.interval(), "the control plane wants to be probed less often");
        }
    }
}

/// Whether the peer closed the connection because it was asked for a sign of life too often.
fn is_too_many_pings(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<h2::Error>() {
        return error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
    }
    error.source().is_some_and(is_too_many_pings)
}
