//! What active health checks have said of an endpoint, and when the next one is due (Envoy `health_checks`).

use std::time::Duration;

use crate::balance::Draw;
use crate::policy::{HealthCheck, HealthCheckPace};

/// The time between checks of a healthy endpoint whose cluster has had no requests, where policy has none (Envoy's
/// `no_traffic_interval`). One that is not well is looked at as often as others: nobody waits a minute for the first that is.
const IDLE: Duration = Duration::from_secs(60);

/// What one check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It is well.
    Passed,
    /// No answer, or one that policy wants to see several times before it believes it.
    Failed,
    /// An answer that says no: it is believed at once.
    Denied,
}

/// One check's view of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    state: State,
    // Outcomes in a row that speak against the state.
    against: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unchecked,
    Healthy,
    Unhealthy,
}

impl Checked {
    /// Whether no check has been made.
    pub fn is_unchecked(&self) -> bool {
        self.state == State::Unchecked
    }

    /// Whether it has failed.
    pub fn is_unhealthy(&self) -> bool {
        self.state == State::Unhealthy
    }

    /// Takes note of an outcome. The first one decides; later ones must come as often in a row as policy says.
    pub fn note(&mut self, outcome: CheckOutcome, policy: &HealthCheck) {
        let (wanted, threshold) = match outcome {
            CheckOutcome::Passed => (State::Healthy, policy.healthy_threshold),
            CheckOutcome::Failed => (State::Unhealthy, policy.unhealthy_threshold),
            CheckOutcome::Denied => (State::Unhealthy, 1),
        };
        if self.state == wanted {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.state == State::Unchecked || self.against >= threshold {
            *self = Self { state: wanted, against: 0 };
        }
    }

    /// How long to wait before the next check; `traffic`: the cluster has had requests.
    pub fn pace(&self, policy: &HealthCheck, traffic: bool, draw: &mut Draw<'_>) -> Duration {
        let HealthCheckPace { no_traffic, no_traffic_healthy, unhealthy, unhealthy_edge, healthy_edge, .. } =
            policy.pace;
        let at_edge = self.against > 0;
        let time = match (self.state, traffic) {
            (State::Healthy, false) if !at_edge => no_traffic_healthy.or(no_traffic).or(Some(IDLE)),
            (_, false) => no_traffic,
            // Well so far, and the last check failed.
            (State::Healthy, true) if at_edge => unhealthy_edge.or(unhealthy),
            (State::Healthy, true) => None,
            // Not well so far, and the last check passed.
            (_, true) if at_edge => healthy_edge,
            (_, true) => unhealthy,
        };
        jittered(time.unwrap_or(policy.interval), &policy.pace, draw)
    }
}

/// How long to wait before an endpoint's first check.
pub fn first_check(policy: &HealthCheck, draw: &mut Draw<'_>) -> Duration {
    below(policy.pace.initial_jitter, draw)
}

fn jittered(time: Duration, pace: &HealthCheckPace, draw: &mut Draw<'_>) -> Duration {
    let share = time.saturating_mul(pace.jitter_percent) / 100;
    time.saturating_add(below(share, draw)).saturating_add(below(pace.jitter, draw))
}

/// A random time below `bound`.
pub(super) fn below(bound: Duration, draw: &mut Draw<'_>) -> Duration {
    match u64::try_from(bound.as_nanos()) {
        Ok(0) => Duration::ZERO,
        nanos => Duration::from_nanos(draw(nanos.unwrap_or(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::CheckOutcome::{Denied, Failed, Passed};
    use super::*;
    use crate::policy::{HealthProbe, HttpProbe};

    fn policy() -> HealthCheck {
        HealthCheck {
            probe: HealthProbe::Http(HttpProbe::get("/")),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            pace: HealthCheckPace::default(),
            port: None,
            reuse_connection: true,
        }
    }

    fn after(outcomes: &[CheckOutcome]) -> Checked {
        let mut checked = Checked::default();
        outcomes.iter().for_each(|outcome| checked.note(*outcome, &policy()));
        checked
    }

    #[test]
    fn the_first_check_decides_and_then_thresholds_count() {
        for (outcomes, unhealthy) in [
            (&[Failed][..], true),
            (&[Passed][..], false),
            (&[Passed, Failed, Failed], false),
            (&[Passed, Failed, Failed, Failed], true),
            (&[Passed, Failed, Failed, Passed, Failed, Failed], false),
            (&[Passed, Denied], true),
            (&[Failed, Passed], true),
            (&[Failed, Passed, Passed], false),
            (&[Failed, Passed, Failed, Passed], true),
            (&[Passed, Failed, Denied], true),
        ] {
            let checked = after(outcomes);
            assert_eq!((checked.is_unhealthy(), checked.is_unchecked()), (unhealthy, false), "{outcomes:?}");
        }
        assert!(Checked::default().is_unchecked());
        // A threshold of 0 is one of 1.
        let mut checked = after(&[Passed]);
        checked.note(Failed, &HealthCheck { unhealthy_threshold: 0, ..policy() });
        assert!(checked.is_unhealthy());
    }

    #[test]
    fn the_pace_follows_the_state() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let pace = HealthCheckPace {
            no_traffic: secs(60),
            no_traffic_healthy: secs(120),
            unhealthy: secs(5),
            unhealthy_edge: secs(1),
            healthy_edge: secs(2),
            ..HealthCheckPace::default()
        };
        let policy = |pace: &HealthCheckPace| HealthCheck { pace: pace.clone(), ..policy() };
        let wait = |outcomes: &[CheckOutcome], pace: &HealthCheckPace, traffic| {
            after(outcomes).pace(&policy(pace), traffic, &mut |_| unreachable!("no jitter")).as_secs()
        };
        for (outcomes, traffic, want) in [
            (&[Passed][..], true, 10),
            (&[Passed, Failed], true, 1),
            (&[Failed], true, 5),
            (&[Failed, Passed], true, 2),
            (&[Passed], false, 120),
            (&[Failed], false, 60),
            (&[Passed, Failed], false, 60),
        ] {
            assert_eq!(wait(outcomes, &pace, traffic), want, "{outcomes:?} {traffic}");
            let unset = if outcomes == [Passed] && !traffic { 60 } else { 10 };
            assert_eq!(
                wait(outcomes, &HealthCheckPace::default(), traffic),
                unset,
                "control: nothing but the interval"
            );
        }
        let unhealthy_only = HealthCheckPace { unhealthy: secs(5), ..HealthCheckPace::default() };
        assert_eq!(wait(&[Passed, Failed], &unhealthy_only, true), 5, "the edge is as the state to come");
    }

    #[test]
    fn jitter_is_added_and_bounded() {
        let mut policy = policy();
        policy.pace = HealthCheckPace {
            initial_jitter: Duration::from_secs(4),
            jitter: Duration::from_secs(1),
            jitter_percent: 20,
            ..HealthCheckPace::default()
        };
        let checked = after(&[Passed]);
        let most = checked.pace(&policy, true, &mut |below| below - 1);
        assert!(most < Duration::from_secs(13) && most > Duration::from_millis(12_999), "{most:?}");
        assert_eq!(checked.pace(&policy, true, &mut |_| 0), Duration::from_secs(10));
        assert!(first_check(&policy, &mut |below| below - 1) < Duration::from_secs(4));
        policy.pace = HealthCheckPace { jitter: Duration::MAX, jitter_percent: u32::MAX, ..HealthCheckPace::default() };
        policy.interval = Duration::MAX;
        assert_eq!(checked.pace(&policy, true, &mut |below| below - 1), Duration::MAX);
    }
}
