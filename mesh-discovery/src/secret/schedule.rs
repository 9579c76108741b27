//! When to renew: pure, in seconds since the Unix epoch.

use std::time::Duration;

/// Longest wait in one piece. A machine that slept wakes up with its clock ahead of its timers, and clocks are set: this
/// is how soon it is noticed.
pub(super) const LONGEST_NAP: Duration = Duration::from_secs(5);

/// When to renew a certificate that is new now: after half of what is left of its life, and up to a tenth of that life
/// earlier, so that processes started together don't renew together; never later, so that an outage of half a life costs
/// nothing whenever it begins; and never at once, so that an authority whose clock is wrong is not flooded. `draw` is uniform
/// in `0.0..1.0`.
pub(super) fn renew_at(now: u64, not_after: u64, draw: f64) -> u64 {
    let left = not_after.saturating_sub(now);
    let share = 0.4 + 0.1 * draw.clamp(0.0, 1.0);
    now.saturating_add(((left as f64 * share) as u64).max(1))
}

/// The wait after a failure, for who holds a certificate that ends at `not_after`: a sixteenth of the life that is left
/// at most, so that an authority which returns shortly before the end is still asked in time. What has ended is past
/// hurry.
pub(super) fn wait_in_time(wait: Duration, now: u64, not_after: Option<u64>) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(100);
    match not_after.and_then(|end| end.checked_sub(now)).filter(|left| *left > 0) {
        Some(left) => wait.min((Duration::from_secs(left) / 16).max(SHORTEST)),
        None => wait,
    }
}

/// How much of a certificate's life is left, in percent.
pub(super) fn percent_left(now: u64, not_before: u64, not_after: u64) -> u64 {
    let life = not_after.saturating_sub(not_before).max(1);
    u64::try_from(u128::from(not_after.saturating_sub(now)) * 100 / u128::from(life)).unwrap_or(100).min(100)
}

/// How long to sleep now to wake up at `until` at the latest. `None` when it is time: then, or where the clock was set back
/// before the certificate `begins`, for who goes by the same clock does not take it any more.
pub(super) fn nap(now: u64, begins: u64, until: u64) -> Option<Duration> {
    let left = until.checked_sub(now).filter(|left| *left > 0 && now >= begins)?;
    Some(Duration::from_secs(left).min(LONGEST_NAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_of_the_life_that_is_left() {
        assert_eq!(renew_at(1_000, 2_000, 0.0), 1_400);
        assert_eq!(renew_at(1_000, 2_000, 0.5), 1_450);
        assert_eq!(renew_at(1_000, 2_000, 1.0), 1_500);
        assert_eq!(renew_at(2_000, 1_000, 0.5), 2_001, "ended before it began");
    }

    /// R25 at the defaults: a day's certificate bridges an outage of 11 h 45 min, whenever it begins.
    #[test]
    fn a_certificate_of_a_day_has_half_a_day_left_when_it_is_to_be_renewed_r25() {
        const DAY: u64 = 86_400;
        for draw in 0..=100 {
            let left = DAY - renew_at(0, DAY, f64::from(draw) / 100.0);
            assert!(left >= 11 * 3600 + 45 * 60, "{left} s left");
        }
    }

    #[test]
    fn retries_come_faster_towards_the_end_of_a_certificate() {
        let wait = Duration::from_secs(30);
        assert_eq!(wait_in_time(wait, 0, Some(86_400)), wait, "there is time");
        assert_eq!(wait_in_time(wait, 0, Some(160)), Duration::from_secs(10));
        assert_eq!(wait_in_time(wait, 0, Some(1)), Duration::from_millis(100), "never in a loop");
        for ended in [None, Some(0), Some(5)] {
            assert_eq!(wait_in_time(wait, 5, ended), wait, "nothing to save");
        }
    }

    #[test]
    fn what_is_left_of_a_life_is_told_in_percent() {
        assert_eq!(percent_left(0, 0, 100), 100);
        assert_eq!(percent_left(75, 0, 100), 25);
        assert_eq!(percent_left(u64::MAX, 0, 100), 0);
        assert_eq!(percent_left(5, 10, 10), 100);
        assert_eq!(percent_left(0, 0, u64::MAX), 100);
    }

    #[test]
    fn naps_are_short_and_end_in_time() {
        assert_eq!(nap(100, 0, 103), Some(Duration::from_secs(3)));
        assert_eq!(nap(100, 100, 10_000), Some(LONGEST_NAP));
        assert_eq!(nap(100, 0, 100), None);
        assert_eq!(nap(100, 0, 50), None);
        assert_eq!(nap(99, 100, 10_000), None, "it has not begun");
    }
}
