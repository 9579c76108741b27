//! The tasks that send copies of requests: so many at once, and none outlives the client.
#![allow(clippy::disallowed_methods)] // The one place of this folder that spawns: `Mirrors` owns the tasks.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::task::JoinSet;

/// Owns the tasks; they end when it is dropped.
pub(crate) struct Mirrors {
    // Locked for a moment by requests that are copied; others never come here.
    tasks: Mutex<JoinSet<()>>,
    most: usize,
    dropped: AtomicU64,
}

impl Mirrors {
    pub(crate) fn new(most: usize) -> Self {
        Self { tasks: Mutex::default(), most, dropped: AtomicU64::new(0) }
    }

    /// Runs `copy` on the caller's runtime, or drops it if as many as allowed are under way.
    pub(crate) fn send(&self, copy: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        if tasks.len() < self.most {
            tasks.spawn(copy);
        } else {
            self.miss(1);
        }
    }

    /// Counts copies that are not sent.
    pub(crate) fn miss(&self, copies: usize) {
        self.dropped.fetch_add(copies as u64, Ordering::Relaxed);
    }

    /// Copies under way.
    pub(crate) fn active(&self) -> usize {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.len()
    }

    /// Copies that were not sent, for there were too many or their body was too large.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
