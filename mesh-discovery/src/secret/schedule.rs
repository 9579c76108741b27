//! When to renew: pure, in seconds since the Unix epoch.

use std::time::Duration;

/// Longest wait in one piece. A machine that slept wakes up with its clock ahead of its timers, so the
/// clock is looked at again now and then.
pub(super) const LONGEST_NAP: Duration = Duration::from_secs(60);

/// When to renew a certificate that is new now: after half of what is left of its life, moved by up to a
/// tenth of that, so that processes started together don't renew together; never at once, so that an
/// authority whose clock is wrong is not flooded. `draw` is uniform in `0.0..1.0`.
pub(super) fn renew_at(now: u64, not_after: u64, draw: f64) -> u64 {
    let left = not_after.saturating_sub(now);
    let share = 0.4 + 0.2 * draw.clamp(0.0, 1.0);
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

/// How long to sleep now to wake up at `until` at the latest; `None` when it is time.
pub(super) fn nap(now: u64, until: u64) -> Option<Duration> {
    let left = until.checked_sub(now).filter(|left| *left > 0)?;
    Some(Duration::from_secs(left).min(LONGEST_NAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_around_half_of_the_life_that_is_left() {
        assert_eq!(renew_at(1_000, 2_000, 0.0), 1_400);
        assert_eq!(renew_at(1_000, 2_000, 0.5), 1_500);
        assert_eq!(renew_at(1_000, 2_000, 1.0), 1_600);
        assert_eq!(renew_at(2_000, 1_000, 0.5), 2_001, "ended before it began");
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
        assert_eq!(nap(100, 130), Some(Duration::from_secs(30)));
        assert_eq!(nap(100, 10_000), Some(LONGEST_NAP));
        assert_eq!(nap(100, 100), None);
        assert_eq!(nap(100, 50), None);
    }
}
