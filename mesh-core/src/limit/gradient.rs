//! A limit on requests in flight that follows their latency (Envoy `adaptive_concurrency`, gradient controller).

use std::time::Duration;

use tokio::time::Instant;

use super::samples::Samples;
use crate::policy::{AdaptiveConcurrency, MinRtt, PerMillion};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The limit and what it is made from. Every period
///
/// ```text
/// gradient = least latency × (1 + buffer) ÷ latency of the period, between 0.5 and 2
/// limit    = limit × gradient + √(limit × gradient), between the least and the greatest allowed
/// ```
///
/// and every minute or so, with jitter, the least latency is measured anew: the limit is pinned to a low one until
/// enough requests have ended that began under it. A limit at its floor for five periods is a sign that the least
/// latency is no longer right: then it is measured at once.
///
/// There are no timers: requests turn the periods. Without requests there is nothing to turn.
#[derive(Debug)]
pub struct Gradient {
    policy: AdaptiveConcurrency,
    start: Instant,
    in_flight: AtomicU32,
    limit: AtomicU32,
    // While the least latency is measured, the limit to go back to; otherwise 0.
    deferred: AtomicU32,
    // Nanoseconds; 0 until it is known.
    min_rtt: AtomicU64,
    // Nanoseconds from the start: requests that began before do not count, and when periods end.
    epoch: AtomicU64,
    sample_due: AtomicU64,
    measure_due: AtomicU64,
    // Periods in a row with the limit at its floor.
    at_floor: AtomicU32,
    samples: Samples,
    // Held by who turns a period; nobody waits for it.
    turning: AtomicBool,
}

const NEVER: u64 = u64::MAX;
/// Periods at the floor that are taken for a wrong least latency.
const FLOOR_PERIODS: u32 = 5;

/// The right to turn a period.
struct Turn<'g>(&'g AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Gradient {
    /// A limit that begins by measuring the least latency, unless policy knows it.
    pub fn new(policy: AdaptiveConcurrency, now: Instant) -> Self {
        let (first, deferred, min_rtt) = match policy.min_rtt {
            MinRtt::Fixed(min_rtt) => (policy.min_limit.max(1), 0, nanos(min_rtt)),
            MinRtt::Measured { concurrency, .. } => (concurrency.max(1), concurrency.max(1), 0),
        };
        let sample_due = if deferred > 0 { NEVER } else { nanos(policy.interval) };
        Self {
            policy,
            start: now,
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(first),
            deferred: AtomicU32::new(deferred),
            min_rtt: AtomicU64::new(min_rtt),
            epoch: AtomicU64::new(0),
            sample_due: AtomicU64::new(sample_due),
            measure_due: AtomicU64::new(NEVER),
            at_floor: AtomicU32::new(0),
            samples: Samples::new(),
            turning: AtomicBool::new(false),
        }
    }

    /// Counts a request in, unless as many as allowed are in flight. Whoever is told `true` calls either
    /// [`finish`](Self::finish) or [`cancel`](Self::cancel), once.
    #[must_use]
    pub fn try_begin(&self, now: Instant) -> bool {
        self.try_begin_within(PerMillion::ALL, now)
    }

    /// The same for a request that may fill a share of the limit: one at least, unless the share is nothing.
    #[must_use]
    pub fn try_begin_within(&self, share: PerMillion, now: Instant) -> bool {
        self.turn(self.since(now));
        let limit = share.of(self.limit());
        let one_more = |now: u32| (now < limit).then(|| now + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// A request that began at `began` has ended with an answer. `draw` gives a uniform number below its argument,
    /// which is never 0.
    pub fn finish(&self, began: Instant, now: Instant, draw: impl FnOnce(u64) -> u64) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let since = self.since(now);
        if self.since(began) >= self.epoch.load(Ordering::Relaxed) {
            let count = self.samples.record(now.saturating_duration_since(began));
            if self.is_measuring()
                && let MinRtt::Measured { requests, interval, jitter, .. } = self.policy.min_rtt
                && count >= requests
            {
                self.measured(since, interval, jitter, draw);
                return;
            }
        }
        self.turn(since);
    }

    /// A request has ended in a way that says nothing of latency.
    pub fn cancel(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that may be in flight.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The least latency; zero until it is known.
    pub fn min_rtt(&self) -> Duration {
        Duration::from_nanos(self.min_rtt.load(Ordering::Relaxed))
    }

    /// Whether the limit is pinned to measure the least latency.
    pub fn is_measuring(&self) -> bool {
        self.deferred.load(Ordering::Relaxed) > 0
    }

    /// Ends periods whose time has come.
    fn turn(&self, now: u64) {
        let due = || (self.sample_due.load(Ordering::Relaxed), self.measure_due.load(Ordering::Relaxed));
        let (sample, measure) = due();
        if now < sample.min(measure) {
            return;
        }
        let Some(_turn) = self.try_turn() else { return };
        // Another thread may have been faster.
        if now >= due().0 {
            self.calculate();
            self.sample_due.store(now.saturating_add(nanos(self.policy.interval)), Ordering::Relaxed);
        }
        if now >= due().1 {
            self.measure(now);
        }
    }

    fn try_turn(&self) -> Option<Turn<'_>> {
        let taken = self.turning.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then(|| Turn(&self.turning))
    }

    /// A new limit from the latencies of the period; none without latencies.
    fn calculate(&self) {
        let percentile = f64::from(self.policy.percentile.get()) / 1e6;
        let Some(sampled) = self.samples.take(percentile) else { return };
        let least = self.min_rtt.load(Ordering::Relaxed) as f64 * (1.0 + f64::from(self.policy.buffer.get()) / 1e6);
        let target = f64::from(self.limit()) * (least / sampled).clamp(0.5, 2.0);
        let floor = self.policy.min_limit.max(1);
        let limit = ((target + target.sqrt()) as u32).min(self.policy.max_limit).max(floor);
        let before = self.limit.swap(limit, Ordering::Relaxed);
        if before != floor || limit != floor {
            self.at_floor.store(0, Ordering::Relaxed);
        } else if self.at_floor.fetch_add(1, Ordering::Relaxed) + 1 >= FLOOR_PERIODS
            && matches!(self.policy.min_rtt, MinRtt::Measured { .. })
        {
            self.measure_due.store(0, Ordering::Relaxed);
        }
    }

    /// Pins the limit and begins to measure.
    fn measure(&self, now: u64) {
        self.measure_due.store(NEVER, Ordering::Relaxed);
        let MinRtt::Measured { concurrency, .. } = self.policy.min_rtt else { return };
        self.sample_due.store(NEVER, Ordering::Relaxed);
        self.at_floor.store(0, Ordering::Relaxed);
        self.deferred.store(self.limit.swap(concurrency.max(1), Ordering::Relaxed), Ordering::Relaxed);
        // What came before was not under little load.
        self.epoch.store(now, Ordering::Relaxed);
        self.samples.take(1.0);
    }

    /// Takes what was measured, and the limit of before.
    fn measured(&self, now: u64, interval: Duration, jitter: PerMillion, draw: impl FnOnce(u64) -> u64) {
        let Some(_turn) = self.try_turn() else { return };
        let deferred = self.deferred.load(Ordering::Relaxed);
        if deferred == 0 || self.samples.is_empty() {
            // Another thread was faster.
            return;
        }
        if let Some(least) = self.samples.take(f64::from(self.policy.percentile.get()) / 1e6) {
            self.min_rtt.store((least as u64).max(1), Ordering::Relaxed);
        }
        self.limit.store(deferred, Ordering::Relaxed);
        let range = (nanos(interval) as f64 * f64::from(jitter.get()) / 1e6) as u64;
        let extra = if range == 0 { 0 } else { draw(range) };
        self.sample_due.store(now.saturating_add(nanos(self.policy.interval)), Ordering::Relaxed);
        // Never is for measurements under way.
        let next = now.saturating_add(nanos(interval)).saturating_add(extra).min(NEVER - 1);
        self.measure_due.store(next, Ordering::Relaxed);
        self.deferred.store(0, Ordering::Relaxed);
    }

    fn since(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
