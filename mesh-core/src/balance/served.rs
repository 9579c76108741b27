//! What a server measures of its own load, for those who ask: the other end of [`Load`](super::Load).
//!
//! Atomics only. Refuses to know how it is told.

use std::array::from_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::EndpointReport;
use super::stamped::{decay, millis, since};
use crate::limit::window::{Counts, Window};

/// Requests in flight, how long requests take at which of their numbers, and how many come and fail.
#[derive(Debug)]
pub struct ServedLoad {
    start: Instant,
    in_flight: AtomicU32,
    levels: [Level; LEVELS],
    rates: Window,
}

/// Latencies of requests that met about as many others when they came (Prequal, section 4 of the paper).
#[derive(Debug, Default)]
struct Level {
    // Microseconds, the newest `SAMPLES` of them.
    samples: [AtomicU32; SAMPLES],
    count: AtomicU32,
    // Milliseconds since the start.
    latest: AtomicU32,
}

/// One request being served, until it is dropped.
#[derive(Debug)]
pub struct Serving {
    load: Arc<ServedLoad>,
    came: Instant,
    level: usize,
    failed: bool,
}

/// 0, 1, 2 to 3, 4 to 7, and so on.
const LEVELS: usize = 16;
const SAMPLES: usize = 16;
/// Time over which the latency of a level is forgotten that no request meets. Who was slow once must be asked again, and
/// quickly: balancers that take the lowest latency keep away until nearly nothing is left of it.
const MEMORY: Duration = Duration::from_secs(1);
/// What rates are measured over, and the least they are divided by.
const WINDOW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));

impl ServedLoad {
    /// Nothing served yet.
    pub fn new(now: Instant) -> Self {
        let (in_flight, levels) = (AtomicU32::new(0), from_fn(|_| Level::default()));
        Self { start: now, in_flight, levels, rates: Window::new(WINDOW.0, now) }
    }

    /// Counts a request until the answer is dropped.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Serving {
        let others = self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.rates.add(now, Counts { first: 1, second: 0 });
        Serving { load: self.clone(), came: now, level: level(others), failed: false }
    }

    /// Requests in flight but for `own` of the asker's; the median latency of the last requests at about that number,
    /// if any was answered well; requests and failures a second over the last ten seconds.
    pub fn report(&self, own: u32, now: Instant) -> EndpointReport {
        let in_flight = self.in_flight.load(Ordering::Relaxed).saturating_sub(own);
        let (counts, age) = self.rates.sum(now);
        let seconds = age.max(WINDOW.1).as_secs_f64();
        EndpointReport {
            requests_per_second: counts.first as f64 / seconds,
            errors_per_second: counts.second as f64 / seconds,
            in_flight: Some(in_flight),
            latency: self.latency(level(in_flight), self.millis(now)),
            ..EndpointReport::default()
        }
    }

    /// Of this level or a lower one, whichever takes longest: no request is faster for what it meets, and a level that is seldom
    /// met forgets, which must not make a busy server look faster than an idle one. If none is known, of the nearest above.
    fn latency(&self, level: usize, now: u32) -> Option<Duration> {
        let known = |level: usize| self.levels[level].latency(now);
        (0..=level).filter_map(known).max().or_else(|| (level + 1..LEVELS).find_map(known))
    }

    fn millis(&self, now: Instant) -> u32 {
        millis(now.saturating_duration_since(self.start))
    }
}

impl Level {
    fn add(&self, took: Duration, now: u32) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.samples[count as usize % SAMPLES].store(took, Ordering::Relaxed);
        self.latest.store(now, Ordering::Relaxed);
    }

    /// The median; unused, it fades.
    fn latency(&self, now: u32) -> Option<Duration> {
        let count = (self.count.load(Ordering::Relaxed) as usize).min(SAMPLES);
        let mut samples: [u32; SAMPLES] = from_fn(|index| self.samples[index].load(Ordering::Relaxed));
        if count == 0 {
            return None;
        }
        let (_, median, _) = samples[..count].select_nth_unstable(count / 2);
        let age = since(now, self.latest.load(Ordering::Relaxed));
        Some(Duration::from_micros((*median as f32 * decay(age, MEMORY)) as u64))
    }
}

/// Of a number of requests in flight.
fn level(in_flight: u32) -> usize {
    ((u32::BITS - in_flight.leading_zeros()) as usize).min(LEVELS - 1)
}

impl Serving {
    /// The load it is part of.
    pub fn load(&self) -> &ServedLoad {
        &self.load
    }

    /// The head of an answer that is no failure: how long it took is measured.
    pub fn answered(&self, now: Instant) {
        let took = now.saturating_duration_since(self.came);
        self.load.levels[self.level].add(took, self.load.millis(now));
    }

    /// The request failed, and it is our fault. How quickly is no word for us, so it is not measured.
    pub fn failed(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.failed, true) {
            self.load.rates.add(now, Counts { first: 0, second: 1 });
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn latency_is_the_median_of_requests_that_met_about_as_many_others() {
        let now = Instant::now();
        let load = Arc::new(ServedLoad::new(now));
        assert_eq!((load.report(0, now).in_flight, load.report(0, now).latency), (Some(0), None), "nothing is known");
        for took in [20, 10, 90] {
            load.begin(now).answered(now + MS(took));
        }
        let alone = load.report(0, now + MS(90));
        assert_eq!(alone.latency, Some(MS(20)));
        let open: Vec<_> = (0..4).map(|_| load.begin(now)).collect();
        load.begin(now).answered(now + MS(300));
        let busy = load.report(0, now + MS(300));
        assert_eq!((busy.in_flight, busy.latency), (Some(4), Some(MS(300))));
        assert_eq!(load.report(3, now + MS(90)).latency, Some(MS(20)), "one is nearer to none than to four");
        drop(open);
        let later = load.report(0, now + MS(90) + MEMORY).latency.unwrap();
        assert!(MS(7) < later && later < MS(8), "{later:?} is 20 ms over e");
    }

    #[test]
    fn who_is_busy_tells_no_less_than_it_takes_when_idle() {
        let now = Instant::now();
        let load = Arc::new(ServedLoad::new(now));
        let open = load.begin(now);
        load.begin(now).answered(now + MS(250));
        drop(open);
        let later = now + 3 * MEMORY;
        load.begin(later - MS(100)).answered(later);
        let busy = load.begin(later);
        let seen = load.report(0, later);
        assert_eq!((seen.in_flight, seen.latency), (Some(1), Some(MS(100))));
        drop(busy);
        assert_eq!(load.report(0, later).latency, Some(MS(100)));
    }

    #[test]
    fn a_failure_counts_once_and_measures_nothing() {
        let now = Instant::now();
        let load = Arc::new(ServedLoad::new(now));
        for n in 0..20 {
            let mut serving = load.begin(now);
            if n % 4 == 0 {
                serving.failed(now);
                serving.failed(now);
            }
        }
        let report = load.report(0, now + Duration::from_secs(4));
        assert_eq!((report.requests_per_second, report.errors_per_second), (20.0 / 4.0, 5.0 / 4.0));
        assert_eq!((report.in_flight, report.latency), (Some(0), None));
        assert_eq!(load.report(0, now + WINDOW.0).requests_per_second, 0.0, "that was long ago");
    }

    #[test]
    fn levels_are_powers_of_two() {
        for (in_flight, want) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1000, 10), (u32::MAX, LEVELS - 1)] {
            assert_eq!(level(in_flight), want, "{in_flight}");
        }
    }
}
