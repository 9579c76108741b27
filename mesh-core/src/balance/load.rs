//! Requests in flight to one endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts the requests in flight to one endpoint. It outlives the sets the endpoint is in, so that an
/// update does not forget what is under way.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
}

impl Load {
    /// Counts a request until the answer is dropped.
    pub fn start(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One request in flight; keep it until the response body has ended.
#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
