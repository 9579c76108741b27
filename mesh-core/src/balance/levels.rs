//! How requests are shared out among priorities, as Envoy does it: a priority keeps everything while
//! enough of it is healthy, and below that spills over to the next one by and by.

use crate::policy::PerMillion;

/// The endpoints of one priority, or of one locality, counted. Draining ones are on their way out and
/// count nowhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) healthy: u64,
    pub(super) degraded: u64,
    pub(super) total: u64,
}

/// What one priority gets, in millionths of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) healthy: u64,
    pub(super) degraded: u64,
    /// Too few are healthy: all endpoints take part, and `healthy` is the share of all of them.
    pub(super) panic: bool,
}

/// Envoy's and gRPC's default, per cent: a priority is full down to 71 % healthy.
pub(super) const OVERPROVISIONING: u32 = 140;
const ALL: u64 = PerMillion::ALL.get() as u64;

/// `part` of `total`, overprovisioned, in millionths; at most all.
pub(super) fn availability(part: u64, total: u64, factor: u32) -> u64 {
    // In 128 bits: the factor is the control plane's, any 32 bits.
    let wanted = u128::from(part) * u128::from(ALL) * u128::from(factor) / 100;
    wanted.checked_div(u128::from(total)).map_or(0, |share| share.min(u128::from(ALL)) as u64)
}

/// What all priorities together can take that are not in panic, in millionths; at most all.
pub(super) fn available(levels: &[Count], shares: &[Share], factor: u32) -> u64 {
    let calm = levels.iter().zip(shares).filter(|(_, share)| !share.panic);
    let each = calm.flat_map(|(level, _)| [level.healthy, level.degraded].map(|part| (part, level.total)));
    each.map(|(part, total)| availability(part, total, factor)).sum::<u64>().min(ALL)
}

/// Shares by priority; all 0 if nothing is usable. `panic` of 0 switches panic off.
pub(super) fn shares(levels: &[Count], factor: u32, panic: PerMillion) -> Vec<Share> {
    let available = |of: fn(&Count) -> u64| -> Vec<u64> {
        levels.iter().map(|level| availability(of(level), level.total, factor)).collect()
    };
    let (healthy, degraded) = (available(|level| level.healthy), available(|level| level.degraded));
    let whole = healthy.iter().chain(&degraded).sum::<u64>().min(ALL);
    let in_panic = |level: &Count| {
        let usable = (level.healthy + level.degraded) * ALL;
        whole < ALL && level.total > 0 && usable < u64::from(panic.get()) * level.total
    };
    let mut shares: Vec<Share> =
        levels.iter().map(|level| Share { panic: in_panic(level), ..Share::default() }).collect();
    if levels.iter().zip(&shares).all(|(level, share)| share.panic || level.total == 0) {
        share_by_size(levels, &mut shares);
        return shares;
    }
    if whole == 0 {
        return shares;
    }
    // The healthy of every priority first, then the degraded.
    let mut left = ALL;
    for (share, own) in shares.iter_mut().zip(&healthy) {
        share.healthy = (own * ALL / whole).min(left);
        left -= share.healthy;
    }
    for (share, own) in shares.iter_mut().zip(&degraded) {
        share.degraded = (own * ALL / whole).min(left);
        left -= share.degraded;
    }
    // What rounding left over goes to the first that has anything.
    if let Some(first) = shares.iter_mut().find(|share| share.healthy > 0) {
        first.healthy += left;
    } else if let Some(first) = shares.iter_mut().find(|share| share.degraded > 0) {
        first.degraded += left;
    }
    for share in shares.iter_mut().filter(|share| share.panic) {
        share.healthy += std::mem::take(&mut share.degraded);
    }
    shares
}

/// Everything is in panic: by number of endpoints.
fn share_by_size(levels: &[Count], shares: &mut [Share]) {
    let total: u64 = levels.iter().map(|level| level.total).sum();
    let mut left = if total == 0 { 0 } else { ALL };
    for (share, level) in shares.iter_mut().zip(levels) {
        share.healthy = (level.total * ALL).checked_div(total).unwrap_or(0);
        left -= share.healthy;
    }
    if let Some(first) = shares.iter_mut().find(|share| share.healthy > 0) {
        first.healthy += left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(healthy: u64, degraded: u64, total: u64) -> Count {
        Count { healthy, degraded, total }
    }

    /// Percentages as (healthy, degraded, panic).
    fn spread(levels: &[Count], panic: u32) -> Vec<(u64, u64, bool)> {
        let shares = shares(levels, OVERPROVISIONING, PerMillion::new(panic * 10_000));
        shares.into_iter().map(|s| (s.healthy / 10_000, s.degraded / 10_000, s.panic)).collect()
    }

    // The tables of Envoy's documentation (load balancing: priority levels, panic threshold, degraded).
    #[test]
    fn a_priority_spills_over_by_and_by() {
        let two = |healthy: u64, other: u64| spread(&[level(healthy, 0, 100), level(other, 0, 100)], 0);
        for (first, second, want) in [
            (100, 100, (100, 0)),
            (72, 100, (100, 0)),
            (71, 100, (99, 0)),
            (50, 100, (70, 30)),
            (25, 100, (35, 65)),
            (25, 25, (50, 50)),
            (0, 100, (0, 100)),
        ] {
            let got = two(first, second);
            assert_eq!((got[0].0, got[1].0), want, "{first} % and {second} % healthy");
        }
        let three = spread(&[level(20, 0, 100), level(20, 0, 100), level(20, 0, 100)], 0);
        assert_eq!(three, [(33, 0, false), (33, 0, false), (33, 0, false)]);
    }

    #[test]
    fn panic_is_for_when_all_priorities_together_are_not_enough() {
        let two = |first: u64, second: u64| spread(&[level(first, 0, 100), level(second, 0, 100)], 50);
        assert_eq!(two(25, 100), [(35, 0, false), (65, 0, false)]);
        assert_eq!(two(25, 25), [(50, 0, true), (50, 0, true)]);
        assert_eq!(two(5, 65), [(7, 0, true), (92, 0, false)]);
        assert_eq!(two(0, 0), [(50, 0, true), (50, 0, true)]);
        assert_eq!(spread(&[level(0, 0, 3), level(0, 0, 1)], 50), [(75, 0, true), (25, 0, true)]);
        // Control: with panic off nothing is left.
        assert_eq!(spread(&[level(0, 0, 3), level(0, 0, 1)], 0), [(0, 0, false), (0, 0, false)]);
    }

    #[test]
    fn degraded_endpoints_get_what_no_healthy_one_can_take() {
        assert_eq!(spread(&[level(50, 50, 100)], 0), [(70, 30, false)]);
        assert_eq!(spread(&[level(100, 0, 200), level(50, 50, 100)], 0)[1], (30, 0, false));
        assert_eq!(spread(&[level(0, 1, 1)], 0), [(0, 100, false)]);
    }

    #[test]
    fn shares_add_up_whatever_the_counts() {
        for healthy in 0..=7 {
            for other in 0..=3 {
                for panic in [0, 50, 100] {
                    let levels = [level(healthy, 0, 7), level(0, 0, 0), level(other, 1, 4)];
                    let shares = shares(&levels, OVERPROVISIONING, PerMillion::new(panic * 10_000));
                    let sum: u64 = shares.iter().map(|s| s.healthy + s.degraded).sum();
                    assert_eq!(sum, ALL, "{levels:?} {panic}: {shares:?}");
                }
            }
        }
        // As much of everything as there can be.
        let many = [level(4_295, 0, 4_295), level(1 << 32, 1 << 32, 1 << 33)];
        for (factor, want) in [(u32::MAX, ALL), (OVERPROVISIONING, ALL), (1, 10_000)] {
            let shares = shares(&many, factor, PerMillion::NONE);
            assert_eq!(availability(4_295, 4_295, factor), want, "factor {factor}");
            assert_eq!(shares.iter().map(|s| s.healthy + s.degraded).sum::<u64>(), ALL, "factor {factor}: {shares:?}");
        }
        assert_eq!(shares(&[], OVERPROVISIONING, PerMillion::ALL), []);
        assert_eq!(shares(&[Count::default()], OVERPROVISIONING, PerMillion::ALL)[0].healthy, 0);
    }
}
