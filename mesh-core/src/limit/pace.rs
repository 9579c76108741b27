//! [`Pace`]: how often something may happen. Pure: time comes in as an argument.

use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and then so many a second.
#[derive(Debug)]
pub struct Pace {
    burst: Duration,
    each: Duration,
    /// When all that was taken would have come at the rate.
    paid: Instant,
}

impl Pace {
    /// `burst` at once, then `rate` a second.
    pub fn new((burst, rate): (u32, u32), now: Instant) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self { burst: each * burst.max(1), each, paid: now }
    }

    /// Counts one.
    pub fn take(&mut self, now: Instant) {
        self.paid = self.paid.max(now) + self.each;
    }

    /// When the next one may come.
    pub fn next(&self) -> Instant {
        let free = self.paid + self.each;
        free.checked_sub(self.burst).unwrap_or(self.paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_comes_at_once_and_the_rest_at_the_rate() {
        // The clock has run for a while, as it has in a process.
        let begin = Instant::now() + Duration::from_secs(60);
        let mut now = begin;
        let mut pace = Pace::new((10, 2), begin);
        let mut times = Vec::new();
        for _ in 0..14 {
            now = now.max(pace.next());
            pace.take(now);
            times.push((now - begin).as_millis());
        }
        assert_eq!(times[..10], [0; 10]);
        assert_eq!(times[10..], [500, 1_000, 1_500, 2_000]);
        // Rest pays for the next burst.
        assert!(pace.next() > now && pace.next() <= now + Duration::from_secs(60));
    }
}
