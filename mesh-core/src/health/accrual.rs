//! Consecutive failures that take an endpoint out, and one request at a time on probation (Linkerd failure accrual).
//!
//! ```text
//! closed ──failures──▶ open ──penalty over──▶ probation ──▶ probing ──success──▶ closed
//!                       ▲ ▲                       ▲          │ │ │ given up       ▲
//!                       │ └────────failure────────┼──────────┘ │ │                │
//!                       │                         └────────────┼─┘                │
//!                       └──────────────failure── trial ◀──head─┘ ────success──────┘
//! ```
//!
//! Requests move it with atomics; how long a penalty lasts is the owner's to say.

use std::time::Duration;

use serde::Serialize;

use super::Evidence;
use super::check::below;
use crate::balance::Draw;
use crate::policy::{FailureAccrual, PerMillion};
use crate::sync::{AtomicU8, AtomicU32, Ordering};

/// The breaker of one endpoint.
#[derive(Debug, Default)]
pub struct Accrual {
    failures: AtomicU32,
    state: AtomicU8,
}

/// Where a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccrualState {
    /// Requests pass.
    Closed,
    /// None does.
    Open,
    /// The next one does, as a probe.
    Probation,
    /// The probe is under way.
    Probing,
    /// Requests pass, for the probe's answer has begun; no request has ended well yet.
    Trial,
}

const CLOSED: u8 = AccrualState::Closed as u8;
const OPEN: u8 = AccrualState::Open as u8;
const PROBATION: u8 = AccrualState::Probation as u8;
const PROBING: u8 = AccrualState::Probing as u8;
const TRIAL: u8 = AccrualState::Trial as u8;

/// Leave for one request; to be given back by [`Accrual::leave`], whatever comes of it.
#[derive(Debug)]
#[must_use]
pub struct Turn {
    // An undecided probe.
    probe: bool,
}

impl Accrual {
    /// Leave for one request; `None` = it must go elsewhere.
    pub fn enter(&self) -> Option<Turn> {
        match self.state.load(Ordering::Relaxed) {
            CLOSED | TRIAL => Some(Turn { probe: false }),
            PROBATION => self.shift(PROBATION, PROBING).then_some(Turn { probe: true }),
            _ => None,
        }
    }

    /// Takes note of what a request says of the endpoint. True: the breaker opened or closed, and the owner
    /// should look.
    pub fn record(&self, turn: &mut Turn, evidence: Evidence, policy: &FailureAccrual) -> bool {
        let Some(failed) = evidence.is_failure() else { return false };
        if std::mem::take(&mut turn.probe) {
            self.failures.store(0, Ordering::Relaxed);
            return self.shift(PROBING, if failed { OPEN } else { CLOSED });
        }
        if !failed {
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            // Looked at first: it is so for a moment in a lifetime.
            return self.state.load(Ordering::Relaxed) == TRIAL && self.shift(TRIAL, CLOSED);
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        // Requests that began before it opened change nothing.
        failures >= policy.max_failures && (self.shift(CLOSED, OPEN) || self.shift(TRIAL, OPEN))
    }

    /// The head of an answer has come that leaves its outcome open, as that of a gRPC stream may for hours. A probe has
    /// shown enough then: requests pass, and one failure more takes them away again, for longer than the last time. For the
    /// owner nothing has changed before one of them succeeds.
    pub fn answered(&self, turn: &mut Turn, policy: &FailureAccrual) {
        if std::mem::take(&mut turn.probe) {
            self.failures.store(policy.max_failures.saturating_sub(1), Ordering::Relaxed);
            self.shift(PROBING, TRIAL);
        }
    }

    /// Ends a request. A probe that said nothing, because it was given up, leaves its place to the next one.
    pub fn leave(&self, turn: Turn) {
        if turn.probe {
            self.shift(PROBING, PROBATION);
        }
    }

    /// The owner lets one request through: the penalty is over.
    pub fn begin_probation(&self) {
        self.shift(OPEN, PROBATION);
    }

    /// Where it is.
    pub fn state(&self) -> AccrualState {
        match self.state.load(Ordering::Acquire) {
            OPEN => AccrualState::Open,
            PROBATION => AccrualState::Probation,
            PROBING => AccrualState::Probing,
            TRIAL => AccrualState::Trial,
            _ => AccrualState::Closed,
        }
    }

    fn shift(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// How long the penalty after `times` earlier ones in a row is: doubled each time, with jitter, within the longest
/// (Linkerd's exponential back-off).
pub(super) fn penalty(policy: &FailureAccrual, times: u32, draw: &mut Draw<'_>) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    let time = policy.min_penalty.saturating_mul(factor).min(policy.max_penalty);
    let share = f64::from(policy.jitter.get()) / f64::from(PerMillion::ALL.get());
    let jitter = Duration::try_from_secs_f64(time.as_secs_f64() * share).unwrap_or(Duration::MAX);
    time.saturating_add(below(jitter, draw)).min(policy.max_penalty)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const FAILURE: Evidence = Evidence::Status(503);
    const SUCCESS: Evidence = Evidence::Grpc(5);

    fn policy() -> FailureAccrual {
        FailureAccrual { max_failures: 3, ..FailureAccrual::default() }
    }

    fn request(accrual: &Accrual, evidence: Evidence) -> bool {
        let mut turn = accrual.enter().expect("requests pass");
        let woke = accrual.record(&mut turn, evidence, &policy());
        accrual.leave(turn);
        woke
    }

    fn opened() -> Accrual {
        let accrual = Accrual::default();
        assert_eq!([FAILURE; 3].map(|evidence| request(&accrual, evidence)), [false, false, true]);
        accrual
    }

    #[test]
    fn failures_in_a_row_open_it_and_others_do_not() {
        assert_eq!(opened().state(), AccrualState::Open);
        assert!(opened().enter().is_none());
        let accrual = Accrual::default();
        for evidence in [FAILURE, FAILURE, SUCCESS, FAILURE, Evidence::Nothing, FAILURE] {
            assert!(!request(&accrual, evidence));
        }
        assert_eq!(accrual.state(), AccrualState::Closed);
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        for (evidence, after) in [(SUCCESS, AccrualState::Closed), (FAILURE, AccrualState::Open)] {
            let accrual = opened();
            accrual.begin_probation();
            let mut probe = accrual.enter().expect("the first one passes");
            assert_eq!(accrual.state(), AccrualState::Probing);
            assert!(accrual.enter().is_none(), "and no other");
            assert!(accrual.record(&mut probe, evidence, &policy()));
            // What it says later, of the end of its answer, decides nothing.
            assert!(!accrual.record(&mut probe, FAILURE, &policy()));
            accrual.leave(probe);
            assert_eq!(accrual.state(), after);
        }
    }

    #[test]
    fn a_probe_whose_answer_begins_has_shown_enough_and_one_failure_more_takes_the_endpoint_out_again() {
        for (evidence, after) in [(SUCCESS, AccrualState::Closed), (FAILURE, AccrualState::Open)] {
            let accrual = opened();
            accrual.begin_probation();
            let mut probe = accrual.enter().expect("the first one passes");
            accrual.answered(&mut probe, &policy());
            assert_eq!(accrual.state(), AccrualState::Trial, "a stream may go on for hours");
            let other = accrual.enter().expect("and others pass meanwhile");
            assert!(accrual.record(&mut probe, evidence, &policy()), "only now the owner has something to see");
            accrual.leave(other);
            accrual.leave(probe);
            assert_eq!(accrual.state(), after);
        }
        // Requests that are no probes decide nothing by their heads.
        let accrual = Accrual::default();
        let mut turn = accrual.enter().expect("requests pass");
        accrual.answered(&mut turn, &policy());
        assert_eq!(accrual.state(), AccrualState::Closed);
        accrual.leave(turn);
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_its_place_to_the_next() {
        let accrual = opened();
        accrual.begin_probation();
        let mut probe = accrual.enter().expect("the first one passes");
        assert!(!accrual.record(&mut probe, Evidence::Nothing, &policy()));
        accrual.leave(probe);
        assert_eq!(accrual.state(), AccrualState::Probation);
        assert!(request(&accrual, SUCCESS));
        assert_eq!(accrual.state(), AccrualState::Closed);
    }

    #[test]
    fn requests_from_before_change_nothing_afterwards() {
        let accrual = Accrual::default();
        let mut early = accrual.enter().expect("requests pass");
        assert_eq!([FAILURE; 3].map(|evidence| request(&accrual, evidence)), [false, false, true]);
        assert!(!accrual.record(&mut early, SUCCESS, &policy()));
        assert!(!accrual.record(&mut early, FAILURE, &policy()));
        accrual.begin_probation();
        accrual.leave(early);
        assert_eq!(accrual.state(), AccrualState::Probation);
    }

    #[test]
    fn of_many_threads_one_at_a_time_is_the_probe() {
        let (accrual, probes, most) = (opened(), AtomicUsize::new(0), AtomicUsize::new(0));
        accrual.begin_probation();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let Some(turn) = accrual.enter() else { continue };
                        most.fetch_max(probes.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        probes.fetch_sub(1, Ordering::SeqCst);
                        accrual.leave(turn);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), accrual.state()), (1, AccrualState::Probation));
    }

    #[test]
    fn penalties_double_up_to_the_longest() {
        let policy = FailureAccrual::default();
        let without = |times| penalty(&policy, times, &mut |_| 0).as_secs();
        assert_eq!([0, 1, 2, 5, 6, 40].map(without), [1, 2, 4, 32, 60, 60]);
        let most = |times| penalty(&policy, times, &mut |below| below - 1).as_secs_f64();
        assert!((1.499..1.5).contains(&most(0)) && (47.9..48.0).contains(&most(5)));
        assert_eq!(most(6), 60.0);
        let endless = FailureAccrual { min_penalty: Duration::MAX, max_penalty: Duration::MAX, ..policy };
        assert_eq!(penalty(&endless, 3, &mut |below| below - 1), Duration::MAX);
    }
}
