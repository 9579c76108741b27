//! An endpoint that fails fast looks idle; it must not attract what it will fail.

use super::*;

/// Eight endpoints, requests in flight as a busy cluster has them, one of them failing at once. Gives
/// how many of the requests it got after the first second, and a minute later, healed, its share of the
/// last ten seconds.
fn one_fails(balancer: &Balancer, told: bool) -> (usize, f64) {
    let set = candidates(&[1; 8]);
    let picker = picker_for(balancer, set.clone(), &mut seeded(1));
    let mut draw = seeded(2);
    let mut under_way: Vec<(Duration, usize, InFlight)> = Vec::new();
    let (mut failed, mut back) = (0, 0);
    let every = Duration::from_micros(500);
    let heals = 20 * SECOND;
    let mut now = SECOND;
    while now < 35 * SECOND {
        under_way.retain(|(done, index, _)| {
            if *done <= now {
                set[*index].load_or_new().succeeded(Duration::from_millis(8), now);
            }
            *done > now
        });
        let index = picker.pick(&Pick { now, ..Pick::default() }, &mut draw).unwrap();
        let load = set[index].load_or_new();
        if index == 3 && now < heals {
            failed += usize::from(now >= 2 * SECOND);
            if told {
                load.failed(Duration::from_micros(200), now);
            } else {
                load.succeeded(Duration::from_micros(200), now);
            }
        } else {
            back += usize::from(index == 3 && now >= 30 * SECOND);
            let took = Duration::from_millis(4 + draw(8));
            under_way.push((now + took, index, load.start()));
        }
        now += every;
    }
    (failed, back as f64 / (5.0 / 0.0005 / 8.0))
}

#[test]
fn an_endpoint_that_fails_at_once_attracts_nothing_and_is_back_within_ten_seconds() {
    for balancer in [Balancer::least_request(), Balancer::PeakEwma] {
        let requests = 18 * 2000;
        let (failed, back) = one_fails(&balancer, true);
        assert!(failed * 500 < requests, "{balancer:?}: {failed} of {requests} failed, more than 0.2 %");
        assert!(back > 0.8, "{balancer:?}: back at {back:.2} of its share");
        let (failed, _) = one_fails(&balancer, false);
        assert!(failed * 6 > requests, "control, {balancer:?}: without the penalty it attracts {failed} of {requests}");
    }
}

#[test]
fn failures_are_forgotten_by_time_and_by_success() {
    let load = Load::default();
    assert_eq!(load.failure_penalty(SECOND), 1.0);
    load.failed(Duration::from_millis(1), SECOND);
    assert!((load.failure_penalty(SECOND) - 4.0).abs() < 0.01);
    for _ in 0..100 {
        load.failed(Duration::from_millis(1), SECOND);
    }
    assert!((load.failure_penalty(SECOND) - 16.0).abs() < 0.01, "more make it no worse");
    assert!(load.failure_penalty(11 * SECOND) < 2.0);
    assert_eq!(load.failure_penalty(30 * SECOND), 1.0);
    for _ in 0..8 {
        load.succeeded(Duration::from_millis(1), 2 * SECOND);
    }
    assert_eq!(load.failure_penalty(2 * SECOND), 1.0);
}

#[test]
fn a_bad_end_of_a_long_answer_is_no_latency() {
    let load = Load::default();
    load.succeeded(Duration::from_millis(2), SECOND);
    load.failed_late(3600 * SECOND);
    assert!(load.latency(3600 * SECOND) <= 2_000.0, "{}", load.latency(3600 * SECOND));
    assert!(load.failure_penalty(3600 * SECOND) > 3.9, "but a failure it is");
    load.failed(3600 * SECOND, 3600 * SECOND);
    assert!(load.latency(3600 * SECOND) > 3e9, "control: as if the head had taken that long");
}

#[test]
fn a_fast_failure_is_no_low_latency() {
    let load = Load::default();
    load.failed(Duration::from_micros(100), SECOND);
    assert!((load.latency(SECOND) - 30_000.0).abs() < 100.0);
    load.failed(Duration::from_millis(70), SECOND);
    assert!((load.latency(SECOND) - 70_000.0).abs() < 100.0, "a slow one is high latency");
}
