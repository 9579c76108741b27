//! [`Pace`]: how often something may happen. Pure: time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and then so many a second.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: Duration,
    each: Duration,
    /// When all that was taken would have come at the rate.
    paid: Instant,
}

impl Pace {
    /// `burst` at once, then `rate` a second.
    pub(crate) fn new((burst, rate): (u32, u32), now: Instant) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self { burst: each * burst.max(1), each, paid: now }
    }

    /// Counts one.
    pub(crate) fn take(&mut self, now: Instant) {
        self.paid = self.paid.max(now) + self.each;
    }

    /// When the next one may come.
    pub(crate) fn next(&self) -> Instant {
        let free = self.paid + self.each;
        free.checked_sub(self.burst).unwrap_or(self.paid)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep_until;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_comes_at_once_and_the_rest_at_the_rate() {
        // The clock has run for a while, as it has in a process.
        mesh_testkit::clock::pass(Duration::from_secs(60)).await;
        let begin = Instant::now();
        let mut pace = Pace::new((10, 2), begin);
        let mut times = Vec::new();
        for _ in 0..14 {
            sleep_until(pace.next()).await;
            pace.take(Instant::now());
            times.push(begin.elapsed().as_millis());
        }
        assert_eq!(times[..10], [0; 10]);
        assert_eq!(times[10..], [500, 1_000, 1_500, 2_000]);
        // Rest pays for the next burst.
        mesh_testkit::clock::pass(Duration::from_secs(60)).await;
        assert!(pace.next() <= Instant::now());
    }
}
