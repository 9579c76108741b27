//! The clock of this crate's edge; everything inside takes the time as an argument.
#![allow(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

pub(crate) fn system() -> Clock {
    Arc::new(|| since_epoch().as_secs())
}

/// Time since the Unix epoch.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
