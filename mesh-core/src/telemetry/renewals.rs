//! Renewals of certificates that failed: the first sign of an authority that is away, long before a certificate ends.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::identity::LifeLeft;

/// Attempts at a certificate (or at reading it, or its roots) that failed, counter.
pub const RENEWAL_FAILURES: &str = "mesh_certificate_renewal_failures_total";
/// When the last one was, seconds since the Unix epoch.
pub const RENEWAL_FAILED_AT: &str = "mesh_certificate_renewal_last_failure_timestamp_seconds";

/// The mark (50, 25, 10, 0 percent) that the life of a certificate has passed without being renewed, gauge; 100 = none.
pub const LIFE_LEFT: &str = "mesh_certificate_unrenewed_life_percent";

/// How often there was no new certificate, and when last.
#[derive(Debug, Default)]
pub struct Renewals {
    failures: AtomicU64,
    last: AtomicU64,
    root_gone: AtomicBool,
    lives: Mutex<Vec<Weak<AtomicU8>>>,
}

/// The life of one certificate and those that follow it, as long as somebody renews them.
#[derive(Clone, Debug, Default)]
pub struct Life(Arc<AtomicU8>);

impl Life {
    /// The mark that the certificate of the moment has passed without being renewed.
    pub fn passed(&self, mark: LifeLeft) {
        self.0.store(mark as u8, Ordering::Relaxed);
    }
}

impl Renewals {
    /// Counts a failure at `now`, seconds since the Unix epoch.
    pub fn failed(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether the root of the certificate is trusted no more; what was noted before.
    pub fn root_gone(&self, gone: bool) -> bool {
        self.root_gone.swap(gone, Ordering::Relaxed)
    }

    /// Whether the root of the certificate is trusted no more, so that peers refuse it.
    pub fn is_root_gone(&self) -> bool {
        self.root_gone.load(Ordering::Relaxed)
    }

    /// A further certificate that is to be renewed.
    pub fn life(&self) -> Life {
        let life = Life::default();
        let mut lives = self.lives.lock();
        lives.retain(|life| life.strong_count() > 0);
        lives.push(Arc::downgrade(&life.0));
        life
    }

    /// The worst mark that one of the certificates has passed without being renewed.
    pub fn life_left(&self) -> LifeLeft {
        let marks = self.lives.lock().iter().filter_map(Weak::upgrade).map(|mark| mark.load(Ordering::Relaxed)).max();
        LifeLeft::ALL[usize::from(marks.unwrap_or_default())]
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
