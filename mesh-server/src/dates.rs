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
    // The same after 1970.
    seconds: u64,
    // From when on it is another one.
    until: Instant,
}

/// The dates of one HTTP/2 connection. Each that is new goes into HPACK's table, and h2 compares the next ones with all that are
/// there, which is a tenth of what a small answer costs once they are sixty. So only those of the first seconds go there.
pub(crate) struct Kept {
    dates: Arc<Dates>,
    // Seconds after 1970.
    until: u64,
}

/// How long one is taken for that of the moment: the clock tells whole seconds, and not how much of one is over.
const FRESH: Duration = Duration::from_millis(100);
/// For how many seconds dates of a connection are kept.
const KEPT: u64 = 8;
/// What a date has no room for, in seconds after 1970.
const YEAR_9999: u64 = 253_370_764_800;

impl Dates {
    pub(crate) fn new(clock: Arc<dyn TimeProvider>) -> Self {
        Self { clock, last: ArcSwapOption::empty() }
    }

    /// That of `now`. `None` = nobody knows it.
    pub(crate) fn at(&self, now: Instant) -> Option<HeaderValue> {
        self.read(now).map(|(text, _)| text)
    }

    /// With the seconds after 1970.
    fn read(&self, now: Instant) -> Option<(HeaderValue, u64)> {
        if let Some(last) = &*self.last.load()
            && now < last.until
        {
            return Some((last.text.clone(), last.seconds));
        }
        // Several may do this at once; all get the same.
        let seconds = Some(self.clock.current_time()?.as_secs()).filter(|seconds| *seconds < YEAR_9999)?;
        let date = httpdate::fmt_http_date(UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?);
        let text = HeaderValue::try_from(date).ok()?;
        self.last.store(Some(Arc::new(Date { text: text.clone(), seconds, until: now + FRESH })));
        Some((text, seconds))
    }
}

impl Kept {
    /// Of a connection that begins now.
    pub(crate) fn new(dates: Arc<Dates>) -> Self {
        let until = dates.read(Instant::now()).map_or(0, |(_, seconds)| seconds + KEPT);
        Self { dates, until }
    }

    /// As [`Dates::at`].
    pub(crate) fn now(&self) -> Option<HeaderValue> {
        let (mut text, seconds) = self.dates.read(Instant::now())?;
        text.set_sensitive(seconds >= self.until);
        Some(text)
    }
}

impl fmt::Debug for Dates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dates").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use mesh_testkit::clock;
    use rustls::pki_types::UnixTime;

    use super::*;

    #[derive(Debug, Default)]
    struct Seconds(AtomicU64);

    impl TimeProvider for Seconds {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dates_of_a_connections_first_seconds_are_kept_and_no_later_ones() {
        let clock = Arc::<Seconds>::default();
        let dates = Arc::new(Dates::new(clock.clone()));
        let kept = Kept::new(dates.clone());
        for seconds in 0..2 * KEPT {
            clock.0.store(seconds, Ordering::Relaxed);
            clock::pass(FRESH).await;
            let (date, plain) = (kept.now().unwrap(), dates.at(Instant::now()).unwrap());
            assert_eq!((&date, plain.is_sensitive()), (&plain, false));
            assert_eq!(date.is_sensitive(), seconds >= KEPT, "{seconds}");
        }
    }
}
