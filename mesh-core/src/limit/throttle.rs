//! Client-side throttling by success rate (Envoy `admission_control`; "Handling Overload" of the SRE book).

use std::time::Duration;

use tokio::time::Instant;

use super::window::{Counts, Window};
use crate::policy::AdmissionControl;

/// Refuses a share of requests that grows as the success rate falls; see [`AdmissionControl`] for the formula. One
/// formula serves both of its sources:
///
/// | | threshold | a request counts | window |
/// |---|---|---|---|
/// | [Envoy](Self::new) | a success rate, 95 % by default | with the head of its answer, or the status of gRPC; refused ones do not | 30 s by default |
/// | [SRE book](Self::sre) | 1 / K | when it is asked for, refused or not | 2 minutes by default |
///
/// The window slides in tenths. Of requests asked for in the same instant by several threads all see the same counts.
#[derive(Debug)]
pub struct Throttle {
    // First requests, then successes.
    window: Window,
    threshold: f64,
    aggression: f64,
    min_rps: f64,
    most: f64,
    counts_asked: bool,
}

impl Throttle {
    /// Throttling as in Envoy.
    pub fn new(policy: &AdmissionControl, now: Instant) -> Self {
        let share = |share: crate::policy::PerMillion| f64::from(share.get()) / 1e6;
        Self {
            window: Window::new(policy.window.max(Duration::from_secs(1)), now),
            threshold: share(policy.threshold).max(0.01),
            aggression: (f64::from(policy.aggression) / 1e6).max(1.0),
            min_rps: f64::from(policy.min_rps),
            most: share(policy.max_rejection),
            counts_asked: false,
        }
    }

    /// Throttling as in the SRE book: requests are refused once there are `k` times as many of them as are
    /// accepted. `k` is 2 there; it is taken as at least 1.
    pub fn sre(k: f64, window: Duration, now: Instant) -> Self {
        Self {
            window: Window::new(window, now),
            threshold: 1.0 / k.max(1.0),
            aggression: 1.0,
            min_rps: 0.0,
            most: 1.0,
            counts_asked: true,
        }
    }

    /// Whether the next request is refused; `draw` is uniform below a million.
    pub fn refuses(&self, now: Instant, draw: u32) -> bool {
        let share = self.share(now);
        if self.counts_asked {
            self.window.add(now, Counts { first: 1, second: 0 });
        }
        f64::from(draw) < share * 1e6
    }

    /// Counts what came of a request that was not refused.
    pub fn record(&self, now: Instant, successful: bool) {
        let counts = Counts { first: u64::from(!self.counts_asked), second: u64::from(successful) };
        if counts != Counts::default() {
            self.window.add(now, counts);
        }
    }

    /// The share of requests that is refused now, 0 to 1.
    pub fn share(&self, now: Instant) -> f64 {
        let (Counts { first: requests, second: successes }, age) = self.window.sum(now);
        let (requests, successes) = (requests as f64, successes as f64);
        let excess = (requests - successes / self.threshold) / (requests + 1.0);
        // First what is nearly always so.
        if excess <= 0.0 || requests / age.as_secs_f64().max(1.0) < self.min_rps {
            return 0.0;
        }
        let share = if self.aggression > 1.0 { excess.powf(1.0 / self.aggression) } else { excess };
        share.min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::PerMillion;

    fn after(throttle: &Throttle, now: Instant, successes: u32, failures: u32) -> f64 {
        (0..successes).for_each(|_| throttle.record(now, true));
        (0..failures).for_each(|_| throttle.record(now, false));
        throttle.share(now)
    }

    fn near(share: f64, want: f64) -> bool {
        (share - want).abs() < 1e-9
    }

    #[test]
    fn the_share_is_envoys_formula() {
        let now = Instant::now();
        let policy = AdmissionControl { threshold: PerMillion::new(500_000), ..AdmissionControl::default() };
        let of = |change: fn(&mut AdmissionControl), successes, failures| {
            let mut policy = policy.clone();
            change(&mut policy);
            after(&Throttle::new(&policy, now), now, successes, failures)
        };
        assert!(near(of(|_| {}, 0, 0), 0.0));
        assert!(near(of(|_| {}, 50, 50), 0.0), "at the threshold");
        assert!(near(of(|_| {}, 30, 70), 40.0 / 101.0));
        assert!(near(of(|p| p.aggression = 2_000_000, 30, 70), (40.0_f64 / 101.0).sqrt()));
        assert!(near(of(|p| p.aggression = 0, 30, 70), 40.0 / 101.0), "less than linear is linear");
        assert!(near(of(|_| {}, 0, 1000), 0.8), "the ceiling");
        assert!(near(of(|p| p.max_rejection = PerMillion::ALL, 0, 99), 0.99));
        let own = AdmissionControl::default();
        assert!(near(after(&Throttle::new(&own, now), now, 95, 5), 0.0));
        assert!(after(&Throttle::new(&own, now), now, 94, 6) > 0.0);
    }

    #[test]
    fn few_requests_are_never_refused_if_policy_says_so() {
        let now = Instant::now();
        let throttle = Throttle::new(&AdmissionControl { min_rps: 10, ..AdmissionControl::default() }, now);
        assert!(near(after(&throttle, now, 0, 9), 0.0), "9 in the first second");
        assert!(after(&throttle, now, 0, 1) > 0.0, "10");
        let later = now + Duration::from_millis(2500);
        assert!(near(after(&throttle, later, 0, 10), 0.0), "20 in two and a half");
        assert!(after(&throttle, later, 0, 5) > 0.0, "25");
    }

    #[test]
    fn what_happened_is_forgotten_after_the_window() {
        let start = Instant::now();
        let throttle = Throttle::new(&AdmissionControl::default(), start);
        assert!(after(&throttle, start, 0, 100) > 0.7);
        assert!(throttle.share(start + Duration::from_millis(29_999)) > 0.7);
        assert!(near(throttle.share(start + Duration::from_secs(30)), 0.0));
    }

    /// Offers 10,000 requests to a backend of which this share succeeds; gives how many were sent.
    fn sent(throttle: &Throttle, start: Instant, success: f64) -> u32 {
        let mut random = fastrand::Rng::with_seed(7);
        let mut sent = 0;
        for i in 0..10_000 {
            let now = start + Duration::from_millis(i * 10);
            if !throttle.refuses(now, random.u32(..1_000_000)) {
                sent += 1;
                throttle.record(now, random.f64() < success);
            }
        }
        sent
    }

    #[test]
    fn a_failing_backend_is_spared_and_a_healthy_one_is_not() {
        let now = Instant::now();
        let envoy = || Throttle::new(&AdmissionControl::default(), now);
        let sre = || Throttle::sre(2.0, Duration::from_secs(120), now);
        // Refused are 80 % of the requests: 2000 are sent, and the standard deviation is 40.
        let few = sent(&envoy(), now, 0.0);
        assert!((1800..2200).contains(&few), "{few}");
        // One request in n is sent with n in the window, so the sum of 1 / n.
        let few = sent(&sre(), now, 0.0);
        assert!((1..60).contains(&few), "{few}");
        // Controls: a backend that works gets all, and one above the threshold too.
        assert_eq!((sent(&envoy(), now, 1.0), sent(&sre(), now, 1.0)), (10_000, 10_000));
        // Half are accepted, and K is 2: hardly any is refused, unlike by Envoy's rule.
        assert!(sent(&sre(), now, 0.6) > 9900);
        assert!(sent(&envoy(), now, 0.6) < 8000);
    }

    #[test]
    fn the_sre_rule_counts_what_is_asked_for() {
        let now = Instant::now();
        let throttle = Throttle::sre(2.0, Duration::from_secs(120), now);
        for _ in 0..10 {
            throttle.refuses(now, 999_999);
        }
        assert!(near(throttle.share(now), 10.0 / 11.0), "before any of them has ended");
        (0..5).for_each(|_| throttle.record(now, true));
        assert!(near(throttle.share(now), 0.0), "twice as many as are accepted");
    }

    proptest! {
        #[test]
        fn a_share_is_a_share_and_falls_with_every_success(
            successes in 0..200_u32, failures in 0..200_u32, threshold in 0..=1_000_000_u32,
            aggression in any::<u32>(), most in 0..=1_000_000_u32,
        ) {
            let now = Instant::now();
            let policy = AdmissionControl {
                threshold: PerMillion::new(threshold), aggression, max_rejection: PerMillion::new(most),
                ..AdmissionControl::default()
            };
            let throttle = Throttle::new(&policy, now);
            let share = after(&throttle, now, successes, failures);
            prop_assert!((0.0..=f64::from(most) / 1e6).contains(&share), "{}", share);
            prop_assert!(after(&throttle, now, 1, 0) <= share);
        }
    }
}
