//! Who among several endpoints fails too much (Envoy outlier detection, gRFC A50): by standard deviations below the
//! mean, or beyond a fixed share.

use super::Counts;
use crate::policy::{FailurePercentageEjection, PerMillion, SuccessRateEjection};

/// Places of those whose success rate is an outlier, worst first.
pub(super) fn below_the_mean(counts: &[Counts], policy: &SuccessRateEjection) -> Vec<usize> {
    let rates = rates(counts, policy.request_volume);
    if rates.is_empty() || rates.len() < policy.minimum_hosts as usize {
        return Vec::new();
    }
    let number = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / number;
    let variance = rates.iter().map(|(_, rate)| (rate - mean) * (rate - mean)).sum::<f64>() / number;
    let threshold = mean - variance.sqrt() * f64::from(policy.stdev_factor) / 1000.0;
    worst_first(rates, |_, rate| rate < threshold)
}

/// Places of those of whose requests too large a share failed, worst first.
pub(super) fn beyond_the_share(counts: &[Counts], policy: &FailurePercentageEjection) -> Vec<usize> {
    let rates = rates(counts, policy.request_volume);
    if rates.is_empty() || rates.len() < policy.minimum_hosts as usize {
        return Vec::new();
    }
    // In whole numbers: the nearest fraction of 20 % lies above it, and twenty failures of a hundred would not reach it.
    let beyond = |Counts { good, bad }: Counts| {
        let total = u64::from(good) + u64::from(bad);
        u128::from(bad) * u128::from(PerMillion::ALL.get()) >= u128::from(total) * u128::from(policy.threshold.get())
    };
    worst_first(rates, |place, _| beyond(counts[place]))
}

/// Success rates of those with enough requests to judge by.
fn rates(counts: &[Counts], volume: u32) -> Vec<(usize, f64)> {
    let rate = |(place, counts): (usize, &Counts)| {
        let total = u64::from(counts.good) + u64::from(counts.bad);
        (total > 0 && total >= u64::from(volume)).then(|| (place, f64::from(counts.good) / total as f64))
    };
    counts.iter().enumerate().filter_map(rate).collect()
}

fn worst_first(mut rates: Vec<(usize, f64)>, is_outlier: impl Fn(usize, f64) -> bool) -> Vec<usize> {
    rates.retain(|(place, rate)| is_outlier(*place, *rate));
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    rates.into_iter().map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(u32, u32)]) -> Vec<Counts> {
        list.iter().map(|(good, bad)| Counts { good: *good, bad: *bad }).collect()
    }

    fn success_rate() -> SuccessRateEjection {
        SuccessRateEjection {
            stdev_factor: 1900,
            enforcing: PerMillion::ALL,
            enforcing_local_origin: PerMillion::ALL,
            minimum_hosts: 5,
            request_volume: 100,
        }
    }

    fn failure_percentage() -> FailurePercentageEjection {
        FailurePercentageEjection {
            threshold: PerMillion::new(850_000),
            enforcing: PerMillion::ALL,
            enforcing_local_origin: PerMillion::ALL,
            minimum_hosts: 5,
            request_volume: 50,
        }
    }

    #[test]
    fn one_of_five_that_fails_is_far_below_the_mean() {
        // Mean 0.8, deviation 0.4: the threshold is 0.04 (factor 1.9).
        let four = [(100, 0); 4];
        let with = |last: (u32, u32)| counts(&[&four[..], &[last]].concat());
        assert_eq!(below_the_mean(&with((0, 100)), &success_rate()), [4]);
        assert_eq!(
            below_the_mean(&with((50, 50)), &success_rate()),
            [4],
            "the others are alike: any difference is enough"
        );
        assert_eq!(below_the_mean(&with((100, 0)), &success_rate()), [0; 0], "all alike");
        let lenient = SuccessRateEjection { stdev_factor: 2100, ..success_rate() };
        assert_eq!(below_the_mean(&with((0, 100)), &lenient), [0; 0], "control: the factor counts");
    }

    #[test]
    fn background_errors_are_no_outliers_among_twenty() {
        let mut all = vec![(999, 1); 19];
        all.push((500, 500));
        assert_eq!(below_the_mean(&counts(&all), &success_rate()), [19]);
        let spread: Vec<_> = (0..20).map(|i| (1000 - i % 4, i % 4)).collect();
        assert_eq!(below_the_mean(&counts(&spread), &success_rate()), [0; 0]);
    }

    #[test]
    fn few_requests_or_few_hosts_say_nothing() {
        let all = |bad: u32| counts(&[(100, 0), (100, 0), (100, 0), (100, 0), (0, bad)]);
        assert_eq!(below_the_mean(&all(99), &success_rate()), [0; 0], "below the volume, and then four hosts are left");
        assert_eq!(below_the_mean(&all(100)[1..], &success_rate()), [0; 0]);
        assert_eq!(beyond_the_share(&all(49), &failure_percentage()), [0; 0]);
        assert_eq!(beyond_the_share(&all(50), &failure_percentage()), [4], "control");
        let none = SuccessRateEjection { minimum_hosts: 0, request_volume: 0, ..success_rate() };
        assert_eq!(below_the_mean(&counts(&[(0, 0)]), &none), [0; 0]);
        assert_eq!(below_the_mean(&[], &none), [0; 0]);
    }

    #[test]
    fn the_share_of_failures_is_reached_at_its_threshold_and_the_worst_comes_first() {
        let all = counts(&[(15, 85), (16, 84), (100, 0), (0, 100), (100, 0)]);
        assert_eq!(beyond_the_share(&all, &failure_percentage()), [3, 0]);
        for percent in 1..=100 {
            let policy =
                FailurePercentageEjection { threshold: PerMillion::new(percent * 10_000), ..failure_percentage() };
            let one =
                |bad| beyond_the_share(&counts(&[(0, 100), (100 - bad, bad), (100, 0), (100, 0), (100, 0)]), &policy);
            assert_eq!(one(percent), [0, 1], "{percent} % reached");
            assert_eq!(one(percent - 1), [0], "below {percent} %");
        }
    }
}
