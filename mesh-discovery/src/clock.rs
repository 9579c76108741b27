//! The clock of this crate's edge; everything inside takes the time as an argument.
#![allow(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Seconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The same as TLS asks it.
pub(crate) struct OfTls(pub(crate) Clock);

impl TimeProvider for OfTls {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs((self.0)())))
    }
}

impl fmt::Debug for OfTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OfTls({})", (self.0)())
    }
}

pub(crate) fn system() -> Clock {
    Arc::new(|| since_epoch().as_secs())
}

/// Time since the Unix epoch.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
