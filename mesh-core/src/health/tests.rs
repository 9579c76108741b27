//! Outliers: every rule of ejection and return, with a control for each.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::policy::{
    Cluster, ConsecutiveShares, FailureAccrual, FailurePercentageEjection, HealthCheck, HealthCheckPace, HealthProbe,
    OutlierDetection, PerMillion, SuccessRateEjection, TcpProbe,
};

const SECOND: Duration = Duration::from_secs(1);
const WHY: Reason = Reason::Consecutive5xx;

fn outlier() -> OutlierDetection {
    OutlierDetection { max_ejected: PerMillion::ALL, ..OutlierDetection::default() }
}

fn roster(outlier: OutlierDetection, members: u32) -> Roster<u32> {
    let policy = Cluster { outlier: Some(outlier), ..Cluster::new("c".into()) };
    of_policy(policy, members)
}

fn of_policy(policy: Cluster, members: u32) -> Roster<u32> {
    let mut roster = Roster::new(Arc::new(policy));
    let member = Member { usable: true, checked: true, outside: false };
    let all: Vec<u32> = (0..members).collect();
    assert_eq!(roster.sync(all.iter().map(|key| (*key, member))), all);
    roster
}

fn eject(roster: &mut Roster<u32>, key: u32, at: u64) -> Option<Change> {
    roster.limit_reached(&key, WHY, SECOND * at as u32, &mut |_| 0)
}

fn sweep(roster: &mut Roster<u32>, at: u64) -> Vec<(u32, Change)> {
    roster.sweep(&[], SECOND * at as u32, &mut |_| 0)
}

fn record(vitals: &Vitals, policy: &OutlierDetection, evidence: &[Evidence]) -> Vec<Reason> {
    let woken = evidence.iter().filter(|evidence| vitals.record(**evidence, policy)).count();
    let reached: Vec<_> = vitals.take_limits().collect();
    assert_eq!(woken > 0, !reached.is_empty());
    reached
}

#[test]
fn failures_in_a_row_reach_the_limit_and_a_success_ends_the_row() {
    let bad = Evidence::Status(500);
    for (evidence, want) in [
        (vec![bad; 5], vec![WHY]),
        (vec![bad; 4], vec![]),
        (vec![bad, bad, bad, bad, Evidence::Status(200), bad, bad], vec![]),
        (vec![bad, bad, bad, bad, Evidence::Grpc(5), bad, bad], vec![]),
        // Nothing is neither good nor bad.
        (vec![bad, bad, bad, bad, Evidence::Nothing, bad], vec![WHY]),
        (vec![Evidence::Grpc(14); 5], vec![WHY]),
        (vec![Evidence::Grpc(5); 50], vec![]),
        (vec![Evidence::Status(404); 50], vec![]),
        (vec![Evidence::Nothing; 50], vec![]),
        // Not counted apart: as 503 and 504.
        (vec![Evidence::Lost, Evidence::Late, Evidence::Lost, Evidence::Lost, Evidence::Late], vec![WHY]),
    ] {
        assert_eq!(record(&Vitals::default(), &outlier(), &evidence), want, "{evidence:?}");
        let off = OutlierDetection { consecutive_5xx: None, ..outlier() };
        assert_eq!(record(&Vitals::default(), &off, &evidence), [], "control: {evidence:?}");
    }
}

#[test]
fn a_row_that_goes_on_is_noticed_again_and_a_reset_begins_anew() {
    let (vitals, policy) = (Vitals::default(), outlier());
    assert_eq!(record(&vitals, &policy, &[Evidence::Status(500); 5]), [WHY]);
    assert_eq!(record(&vitals, &policy, &[Evidence::Status(500); 4]), []);
    assert_eq!(record(&vitals, &policy, &[Evidence::Status(500)]), [WHY]);
    assert_eq!(record(&vitals, &policy, &[Evidence::Status(500); 4]), []);
    vitals.reset();
    assert_eq!(record(&vitals, &policy, &[Evidence::Status(500); 4]), []);
}

#[test]
fn gateway_failures_are_502_503_and_504_only() {
    let policy = OutlierDetection { consecutive_gateway: Some(2), consecutive_5xx: None, ..outlier() };
    let gateway = Reason::ConsecutiveGatewayFailure;
    for (evidence, want) in [
        ([Evidence::Status(502), Evidence::Status(504)], vec![gateway]),
        ([Evidence::Grpc(14), Evidence::Lost], vec![gateway]),
        ([Evidence::Status(500), Evidence::Status(500)], vec![]),
    ] {
        assert_eq!(record(&Vitals::default(), &policy, &evidence), want, "{evidence:?}");
    }
    let broken = [Evidence::Status(503), Evidence::Status(500), Evidence::Status(503)];
    assert_eq!(record(&Vitals::default(), &policy, &broken), []);
    let both = OutlierDetection { consecutive_5xx: Some(2), ..policy };
    assert_eq!(record(&Vitals::default(), &both, &[Evidence::Status(503); 2]), [gateway, WHY]);
}

#[test]
fn lost_connections_are_counted_apart_if_asked_for() {
    let policy = OutlierDetection {
        split_local_origin: true,
        consecutive_local_origin: Some(3),
        consecutive_5xx: Some(3),
        ..outlier()
    };
    let (lost, bad) = (Evidence::Lost, Evidence::Status(500));
    let local = Reason::ConsecutiveLocalOriginFailure;
    assert_eq!(record(&Vitals::default(), &policy, &[lost, Evidence::Late, lost]), [local]);
    assert_eq!(record(&Vitals::default(), &policy, &[lost, lost, bad, lost, bad]), [], "an answer is a connection");
    assert_eq!(record(&Vitals::default(), &policy, &[bad, lost, bad, lost, bad]), [WHY], "and not the other way");
    let whole = OutlierDetection { split_local_origin: false, ..policy };
    assert_eq!(record(&Vitals::default(), &whole, &[lost, bad, lost]), [WHY], "control");
}

#[test]
fn outcomes_are_tallied_only_where_a_rate_is_asked_for() {
    let rated = OutlierDetection {
        split_local_origin: true,
        success_rate: Some(SuccessRateEjection {
            stdev_factor: 1900,
            enforcing: PerMillion::ALL,
            enforcing_local_origin: PerMillion::ALL,
            minimum_hosts: 5,
            request_volume: 100,
        }),
        ..outlier()
    };
    let vitals = Vitals::default();
    record(&vitals, &rated, &[Evidence::Status(200), Evidence::Grpc(13), Evidence::Lost, Evidence::Nothing]);
    let answers = Counts { good: 1, bad: 1 };
    assert_eq!(vitals.take_tally(), Tally { answers, connections: Counts { good: 2, bad: 1 } });
    assert_eq!(vitals.take_tally(), Tally::default());
    record(&vitals, &OutlierDetection { split_local_origin: false, ..rated }, &[Evidence::Lost]);
    assert_eq!(vitals.take_tally().answers, Counts { good: 0, bad: 1 });
    record(&vitals, &outlier(), &[Evidence::Status(200), Evidence::Status(500)]);
    assert_eq!(vitals.take_tally(), Tally::default(), "control");
}

#[test]
fn each_ejection_is_longer_than_the_last_and_good_intervals_shorten_them_again() {
    let mut roster = roster(outlier(), 4);
    let (mut at, mut times) = (0, Vec::new());
    for _ in 0..12 {
        let Some(Change::Ejected(WHY, time)) = eject(&mut roster, 1, at) else { panic!("it is in") };
        times.push(time.as_secs());
        assert_eq!(sweep(&mut roster, at + time.as_secs() - 1), [], "not a second too early");
        assert_eq!(eject(&mut roster, 1, at), None, "it is out already");
        at += time.as_secs();
        assert_eq!(sweep(&mut roster, at), [(1, Change::Returned)]);
    }
    assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    for _ in 0..8 {
        at += 10;
        assert_eq!(sweep(&mut roster, at), []);
    }
    assert_eq!(eject(&mut roster, 1, at), Some(Change::Ejected(WHY, 90 * SECOND)), "ten less eight, and this one");
}

#[test]
fn the_first_ejection_is_never_cut_short_a50() {
    let policy = OutlierDetection { base_ejection: 30 * SECOND, max_ejection: 10 * SECOND, ..outlier() };
    let mut roster = roster(policy, 2);
    for at in [0, 30, 60] {
        assert_eq!(eject(&mut roster, 1, at), Some(Change::Ejected(WHY, 30 * SECOND)));
        sweep(&mut roster, at + 30);
    }
}

#[test]
fn the_jitter_comes_on_top() {
    let policy = OutlierDetection { max_ejection: 30 * SECOND, max_ejection_jitter: 5 * SECOND, ..outlier() };
    for (draw, want) in [(0, 30), (5_000_000_000, 35)] {
        let mut roster = roster(policy.clone(), 2);
        // The first draw is whether it is enforced.
        let mut draws = [0, draw].into_iter();
        let change = roster.limit_reached(&1, WHY, SECOND, &mut |_| draws.next().unwrap());
        assert_eq!(change, Some(Change::Ejected(WHY, want * SECOND)));
    }
}

#[test]
fn no_more_than_the_share_are_ejected_and_one_of_any_but_none() {
    for (members, percent, want) in
        [(10, 10, 1), (19, 10, 1), (20, 10, 2), (3, 10, 1), (2, 0, 0), (10, 50, 5), (3, 100, 3)]
    {
        let policy = OutlierDetection { max_ejected: PerMillion::new(percent * 10_000), ..outlier() };
        let mut roster = roster(policy, members);
        let changes: Vec<_> = (0..members).map(|key| eject(&mut roster, key, 0).unwrap()).collect();
        let ejected = changes.iter().filter(|change| matches!(change, Change::Ejected(..))).count();
        assert_eq!((ejected, roster.ejected()), (want, want), "{percent} % of {members}");
        assert!(changes[want..].iter().all(|change| *change == Change::Overflow(WHY)));
        if want == 0 {
            continue;
        }
        assert_eq!(roster.standing(&0), Standing::Ejected(WHY));
        // Room again after the return.
        sweep(&mut roster, 30);
        assert_eq!((roster.ejected(), roster.standing(&0)), (0, Standing::Good));
        assert!(matches!(eject(&mut roster, members - 1, 30), Some(Change::Ejected(..))));
    }
}

#[test]
fn the_last_one_in_use_stays_unless_policy_lets_all_go() {
    for (percent, ejected) in [(10, false), (99, false), (100, true)] {
        let policy = OutlierDetection { max_ejected: PerMillion::new(percent * 10_000), ..outlier() };
        let mut one = roster(policy, 1);
        assert_eq!(matches!(eject(&mut one, 0, 0), Some(Change::Ejected(..))), ejected, "{percent} %");
    }
    // Others that may not be used are no others.
    let mut roster = roster(OutlierDetection::default(), 1);
    let member = |usable| Member { usable, checked: true, outside: false };
    roster.sync([(0, member(true)), (1, member(false))]);
    assert_eq!(eject(&mut roster, 0, 0), Some(Change::Overflow(WHY)));
    roster.sync([(0, member(true)), (1, member(true))]);
    assert!(matches!(eject(&mut roster, 0, 0), Some(Change::Ejected(..))), "control");
}

#[test]
fn only_the_enforced_share_is_ejected() {
    let enforcing = ConsecutiveShares { server_error: PerMillion::new(300_000), ..ConsecutiveShares::default() };
    let policy = OutlierDetection { enforcing, ..outlier() };
    for (draw, ejected) in [(299_999, true), (300_000, false)] {
        let mut roster = roster(policy.clone(), 2);
        let mut draws = [draw, 0].into_iter();
        let change = roster.limit_reached(&0, WHY, SECOND, &mut |_| draws.next().unwrap());
        let want = if ejected { Change::Ejected(WHY, 30 * SECOND) } else { Change::NotEnforced(WHY) };
        assert_eq!((change, roster.ejected()), (Some(want), usize::from(ejected)));
    }
    let mut roster = roster(policy, 2);
    let gateway = roster.limit_reached(&0, Reason::ConsecutiveGatewayFailure, SECOND, &mut |below| below - 1);
    assert!(matches!(gateway, Some(Change::Ejected(..))), "control: each reason has a share of its own");
}

fn rated(enforcing: PerMillion, local: PerMillion) -> OutlierDetection {
    OutlierDetection {
        split_local_origin: true,
        success_rate: Some(SuccessRateEjection {
            stdev_factor: 1900,
            enforcing,
            enforcing_local_origin: local,
            minimum_hosts: 5,
            request_volume: 100,
        }),
        failure_percentage: Some(FailurePercentageEjection {
            threshold: PerMillion::new(850_000),
            enforcing,
            enforcing_local_origin: local,
            minimum_hosts: 5,
            request_volume: 50,
        }),
        ..outlier()
    }
}

/// Five endpoints, of which the last one failed so often of 100 times.
fn tallies(answers: u32, connections: u32) -> Vec<(u32, Tally)> {
    let counts = |bad: u32| Counts { good: 100 - bad, bad };
    let tally = |key: u32| match key {
        4 => Tally { answers: counts(answers), connections: counts(connections) },
        _ => Tally { answers: counts(0), connections: counts(0) },
    };
    (0..5).map(|key| (key, tally(key))).collect()
}

#[test]
fn the_interval_ejects_who_fails_too_much() {
    let (all, none) = (PerMillion::ALL, PerMillion::NONE);
    for (policy, tallies, want) in [
        (rated(all, none), tallies(30, 0), Change::Ejected(Reason::SuccessRate, 30 * SECOND)),
        (rated(none, all), tallies(0, 30), Change::Ejected(Reason::LocalOriginSuccessRate, 30 * SECOND)),
        (
            OutlierDetection { success_rate: None, ..rated(all, none) },
            tallies(85, 0),
            Change::Ejected(Reason::FailurePercentage, 30 * SECOND),
        ),
        (
            OutlierDetection { success_rate: None, ..rated(none, all) },
            tallies(0, 85),
            Change::Ejected(Reason::LocalOriginFailurePercentage, 30 * SECOND),
        ),
    ] {
        let mut roster = roster(policy, 5);
        assert_eq!(roster.sweep(&tallies, SECOND, &mut |_| 0), [(4, want)]);
        // Whoever is out is not judged, and the others are too few to judge each other.
        assert_eq!(roster.sweep(&tallies, 2 * SECOND, &mut |_| 0), []);
    }
    let mut roster = roster(OutlierDetection { success_rate: None, ..rated(all, all) }, 5);
    assert_eq!(roster.sweep(&tallies(84, 84), SECOND, &mut |_| 0), [], "control");
    let mut quiet = self::roster(rated(none, none), 5);
    let changes = quiet.sweep(&tallies(100, 0), SECOND, &mut |_| 0);
    let seen = [Change::NotEnforced(Reason::SuccessRate), Change::NotEnforced(Reason::FailurePercentage)];
    assert_eq!(changes, seen.map(|change| (4, change)));
}

#[test]
fn who_leaves_is_forgotten_and_who_stays_is_not() {
    let mut roster = roster(outlier(), 3);
    eject(&mut roster, 0, 0);
    eject(&mut roster, 1, 0);
    let member = Member { usable: true, checked: true, outside: false };
    assert_eq!(roster.sync([(0, member), (7, member)]), [7]);
    assert_eq!((roster.ejected(), roster.standing(&0), roster.contains(&1)), (1, Standing::Ejected(WHY), false));
    roster.sync([(1, member)]);
    assert_eq!((roster.ejected(), roster.standing(&1)), (0, Standing::Good));
    assert_eq!(eject(&mut roster, 9, 0), None, "nobody knows it");
}

fn checked(outlier: Option<OutlierDetection>) -> Cluster {
    let check = HealthCheck {
        probe: HealthProbe::Tcp(TcpProbe::default()),
        interval: 10 * SECOND,
        timeout: SECOND,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        pace: HealthCheckPace::default(),
        port: None,
        reuse_connection: true,
    };
    Cluster { health_checks: vec![check.clone(), check], outlier, ..Cluster::new("c".into()) }
}

#[test]
fn an_endpoint_must_pass_all_its_checks() {
    use CheckOutcome::{Failed, Passed};
    let mut roster = of_policy(checked(None), 2);
    assert_eq!(roster.standing(&0), Standing::Unchecked);
    assert_eq!(roster.checked(&0, 0, Passed)[..], []);
    assert_eq!(roster.standing(&0), Standing::Unchecked, "the other one is not over");
    assert_eq!(roster.checked(&0, 1, Passed)[..], [Change::CheckPassed]);
    assert_eq!(roster.standing(&0), Standing::Good);
    assert_eq!(roster.checked(&0, 1, Failed)[..], []);
    assert_eq!(roster.checked(&0, 1, Failed)[..], [Change::CheckFailed]);
    assert_eq!(roster.standing(&0), Standing::FailedCheck);
    assert_eq!(roster.checked(&0, 0, Passed)[..], []);
    assert_eq!(roster.checked(&0, 1, Passed)[..], []);
    assert_eq!(roster.checked(&0, 1, Passed)[..], [Change::CheckPassed]);
    assert_eq!((roster.standing(&0), roster.standing(&1)), (Standing::Good, Standing::Unchecked));
    assert_eq!(roster.checked(&0, 2, Failed)[..], [], "there is no third check");
    let unchecked = Member { usable: true, checked: false, outside: false };
    roster.sync([(1, unchecked)]);
    assert_eq!((roster.standing(&1), roster.pace(&1, 0, true, &mut |_| 0)), (Standing::Good, None));
}

#[test]
fn a_passed_check_ends_an_ejection_if_policy_says_so() {
    for health_check_unejects in [true, false] {
        let policy = OutlierDetection { health_check_unejects, ..outlier() };
        let mut roster = of_policy(checked(Some(policy)), 2);
        for check in [0, 1] {
            roster.checked(&0, check, CheckOutcome::Passed);
        }
        eject(&mut roster, 0, 0);
        let changes = roster.checked(&0, 0, CheckOutcome::Passed);
        assert_eq!(changes.contains(&Change::Returned), health_check_unejects);
        assert_eq!(roster.standing(&0).is_admitted(), health_check_unejects);
        assert_eq!(roster.ejected(), usize::from(!health_check_unejects));
        // A check that failed meanwhile is worse than an ejection that ended.
        eject(&mut roster, 0, 0);
        roster.checked(&0, 0, CheckOutcome::Denied);
        sweep(&mut roster, 1000);
        assert_eq!(roster.standing(&0), Standing::FailedCheck);
    }
}

#[test]
fn penalties_double_until_a_probe_succeeds() {
    let accrual = Some(FailureAccrual::default());
    let mut roster = of_policy(Cluster { accrual, ..Cluster::new("c".into()) }, 2);
    let at = |roster: &mut Roster<u32>, state, at| roster.accrued(&0, state, SECOND * at, &mut |_| 0);
    assert_eq!(at(&mut roster, AccrualState::Closed, 0), None);
    assert_eq!(at(&mut roster, AccrualState::Open, 0), Some(Change::Penalized(SECOND)));
    assert_eq!(at(&mut roster, AccrualState::Open, 0), None, "known");
    assert_eq!((roster.standing(&0), roster.next_probation()), (Standing::Penalty, Some(SECOND)));
    assert_eq!(roster.begin_probations(SECOND / 2), [0; 0]);
    assert_eq!(roster.begin_probations(SECOND), [0]);
    assert_eq!((roster.standing(&0), roster.next_probation()), (Standing::Good, None));
    assert_eq!(at(&mut roster, AccrualState::Probing, 2), None);
    assert_eq!(at(&mut roster, AccrualState::Open, 2), Some(Change::Penalized(2 * SECOND)));
    assert_eq!(roster.begin_probations(4 * SECOND), [0]);
    assert_eq!(at(&mut roster, AccrualState::Closed, 4), Some(Change::Recovered));
    assert_eq!(at(&mut roster, AccrualState::Open, 5), Some(Change::Penalized(SECOND)), "from the beginning");
}

#[test]
fn penalties_double_for_streams_as_well_whose_failure_comes_after_their_head() {
    let policy = FailureAccrual { max_failures: 1, ..FailureAccrual::default() };
    let mut roster = of_policy(Cluster { accrual: Some(policy.clone()), ..Cluster::new("c".into()) }, 1);
    let accrual = Accrual::default();
    let mut turn = accrual.enter().unwrap();
    for (round, times) in [1, 2, 4].into_iter().enumerate() {
        assert!(accrual.record(&mut turn, Evidence::Grpc(14), &policy), "{round}");
        accrual.leave(turn);
        let look = |roster: &mut Roster<u32>| roster.accrued(&0, accrual.state(), SECOND * 100, &mut |_| 0);
        assert_eq!(look(&mut roster), Some(Change::Penalized(SECOND * times)));
        assert_eq!(roster.begin_probations(SECOND * 200), [0]);
        accrual.begin_probation();
        turn = accrual.enter().unwrap();
        accrual.answered(&mut turn, &policy);
        assert_eq!(look(&mut roster), None, "a head is no recovery");
        assert!(accrual.enter().is_some(), "but others pass");
    }
    // The control: one that ends well is one.
    assert!(accrual.record(&mut turn, Evidence::Grpc(0), &policy));
    accrual.leave(turn);
    assert_eq!(roster.accrued(&0, accrual.state(), SECOND * 300, &mut |_| 0), Some(Change::Recovered));
}

#[test]
fn a_standing_survives_as_a_number() {
    let plain = [Standing::Good, Standing::Unchecked, Standing::FailedCheck, Standing::Penalty];
    for standing in plain.into_iter().chain(Reason::ALL.map(Standing::Ejected)) {
        assert_eq!(Standing::from_index(standing.index()), standing);
        assert_eq!(standing.is_admitted(), matches!(standing, Standing::Good | Standing::Unchecked));
    }
    let json = serde_json::to_string(&Standing::Ejected(Reason::ConsecutiveGatewayFailure)).unwrap();
    assert_eq!(json, r#"{"ejected":"consecutive_gateway_failure"}"#);
    assert_eq!(Standing::from_index(255), Standing::Good);
    assert_eq!(Reason::ALL.map(|reason| reason as usize), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn one_outside_is_judged_for_itself_and_counts_for_nothing() {
    let policy = Cluster {
        outlier: Some(OutlierDetection {
            max_ejected: PerMillion::new(500_000),
            ..rated(PerMillion::ALL, PerMillion::ALL)
        }),
        accrual: Some(FailureAccrual { jitter: PerMillion::NONE, ..FailureAccrual::default() }),
        ..Cluster::new("c".into())
    };
    let (inside, outside) = (
        Member { usable: true, checked: false, outside: false },
        Member { usable: false, checked: false, outside: true },
    );
    let with = |outsiders: u32| {
        let mut roster = Roster::new(Arc::new(policy.clone()));
        roster.sync((0..4).map(|key| (key, inside)));
        (100..100 + outsiders).for_each(|key| roster.join(&key, outside));
        roster
    };
    // Half of four may be out, however many there are outside, and however many of those are.
    let mut roster = with(20);
    for key in 100..120 {
        assert!(matches!(eject(&mut roster, key, 0), Some(Change::Ejected(..))), "{key}");
        assert!(!roster.standing(&key).is_admitted());
    }
    let changes = [0, 1, 2].map(|key| matches!(eject(&mut roster, key, 0), Some(Change::Ejected(..))));
    assert_eq!((changes, roster.ejected()), ([true, true, false], 2));
    let returned = sweep(&mut roster, 31).into_iter().filter(|(_, change)| *change == Change::Returned).count();
    assert_eq!((returned, roster.ejected()), (22, 0));
    // Of those compared there are four, one too few for a rate; with one more inside the same is an outlier.
    let failing = |key: u32| {
        let counts = |bad: u32| Counts { good: 100 - bad, bad };
        (key, Tally { answers: counts(if key == 3 { 95 } else { 0 }), connections: counts(0) })
    };
    let tallies: Vec<_> = (0..4).chain(100..120).map(failing).collect();
    assert_eq!(roster.sweep(&tallies, 60 * SECOND, &mut |_| 0), []);
    roster.join(&4, inside);
    let tallies: Vec<_> = (0..5).chain(100..120).map(failing).collect();
    assert!(!roster.sweep(&tallies, 90 * SECOND, &mut |_| 0).is_empty(), "control");
    // A breaker is one endpoint's own.
    let mut roster = with(1);
    let penalty = roster.accrued(&100, AccrualState::Open, SECOND, &mut |_| 0);
    assert!(matches!(penalty, Some(Change::Penalized(_))));
    assert_eq!(roster.begin_probations(10 * SECOND), [100]);
    roster.join(&100, inside);
    assert_eq!(
        eject(&mut roster, 100, 0).zip(Some(roster.ejected())).map(|(_, ejected)| ejected),
        Some(0),
        "it was there"
    );
}
