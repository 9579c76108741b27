//! When to renew: pure, in seconds since the Unix epoch.

use std::time::Duration;

use mesh_core::identity::Identity;

/// Longest wait in one piece. A machine that slept wakes up with its clock ahead of its timers, so the
/// clock is looked at again now and then.
const LONGEST_NAP: Duration = Duration::from_secs(60);

/// When to renew a certificate: at half of its life, moved by up to a tenth of it, so that processes
/// started together don't renew together. `draw` is uniform in `0.0..1.0`.
pub(super) fn renew_at(identity: &Identity, draw: f64) -> u64 {
    renewal(identity.not_before(), identity.not_after(), draw)
}

fn renewal(not_before: u64, not_after: u64, draw: f64) -> u64 {
    let life = not_after.saturating_sub(not_before);
    let share = 0.4 + 0.2 * draw.clamp(0.0, 1.0);
    not_before.saturating_add((life as f64 * share) as u64)
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
    fn renewal_is_due_around_half_of_the_life() {
        assert_eq!(renewal(1_000, 2_000, 0.0), 1_400);
        assert_eq!(renewal(1_000, 2_000, 0.5), 1_500);
        assert_eq!(renewal(1_000, 2_000, 1.0), 1_600);
        assert_eq!(renewal(2_000, 1_000, 0.5), 2_000, "a life that ended before it began");
    }

    #[test]
    fn naps_are_short_and_end_in_time() {
        assert_eq!(nap(100, 130), Some(Duration::from_secs(30)));
        assert_eq!(nap(100, 10_000), Some(LONGEST_NAP));
        assert_eq!(nap(100, 100), None);
        assert_eq!(nap(100, 50), None);
    }
}
