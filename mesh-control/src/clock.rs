//! The wall clock as an argument, for dates in certificates and tokens.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Gives the time of day, to TLS too. Tests pass one that they move.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The operating system's clock.
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock enters")]
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// Seconds since the Unix epoch; a clock before it counts as the epoch itself.
    pub fn unix_seconds(&self) -> u64 {
        (self.0)().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        (self.0)().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.unix_seconds())
    }
}
