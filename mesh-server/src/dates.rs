//! The `date` of answers (RFC 9110, section 6.6.1): one text for all of a moment.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use rustls::time_provider::TimeProvider;
use tokio::time::Instant;

/// The date of the moment.
pub(crate) struct Dates {
    clock: Arc<dyn TimeProvider>,
    last: ArcSwapOption<Date>,
}

struct Date {
    text: HeaderValue,
    // From when on it is another one.
    until: Instant,
}

/// How long one is taken for that of the moment: the clock tells whole seconds, and not how much of one is over.
const FRESH: Duration = Duration::from_millis(100);
/// What a date has no room for, in seconds after 1970.
const YEAR_9999: u64 = 253_370_764_800;

impl Dates {
    pub(crate) fn new(clock: Arc<dyn TimeProvider>) -> Self {
        Self { clock, last: ArcSwapOption::empty() }
    }

    /// `None` = nobody knows it.
    pub(crate) fn now(&self) -> Option<HeaderValue> {
        let now = Instant::now();
        if let Some(last) = &*self.last.load()
            && now < last.until
        {
            return Some(last.text.clone());
        }
        // Several may do this at once; all get the same.
        let seconds = Some(self.clock.current_time()?.as_secs()).filter(|seconds| *seconds < YEAR_9999)?;
        let date = httpdate::fmt_http_date(UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?);
        let text = HeaderValue::try_from(date).ok()?;
        self.last.store(Some(Arc::new(Date { text: text.clone(), until: now + FRESH })));
        Some(text)
    }
}

impl fmt::Debug for Dates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dates").finish_non_exhaustive()
    }
}
