//! Places for requests in flight: as many as may be, and a share of them for each priority.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use mesh_core::policy::PerMillion;

/// Places for requests in flight.
#[derive(Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    all: u32,
}

impl Places {
    pub(crate) fn new(all: usize) -> Self {
        let all = u32::try_from(all.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// One of a share of them.
    pub(super) fn take(&self, share: PerMillion) -> Option<OwnedSemaphorePermit> {
        // Of two at once one may go a little beyond its share, and nobody beyond all.
        let taken = (self.all as usize).saturating_sub(self.free.available_permits());
        if taken >= share.of(self.all) as usize {
            return None;
        }
        self.free.clone().try_acquire_owned().ok()
    }
}
