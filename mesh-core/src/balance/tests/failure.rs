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
fn who_is_late_is_passed_over_for_as_long_as_it_took_and_twice_as_long_each_time_until_it_answers() {
    let ms = Duration::from_millis;
    let (load, took) = (Load::default(), ms(300));
    let mut now = SECOND;
    for time in [300, 600, 1200, 2400, 4800, 5000, 5000] {
        load.late(took, now);
        // Under way at the same time.
        load.late(took, now + ms(299));
        assert!((load.failure_penalty(now + ms(time - 1)) - 16.0).abs() < 0.01, "{time} ms are not over");
        now += ms(time + 1);
        let after = load.failure_penalty(now);
        assert!(after < 2.0, "{time} ms are over: {after}");
    }
    assert!(load.latency(now) > 100_000.0, "it was slow");
    load.late(took, now);
    for _ in 0..4 {
        load.succeeded(ms(50), now + ms(100));
    }
    assert!(
        load.failure_penalty(now + ms(1500)) > 15.9 && load.failure_penalty(now + ms(1600)) < 1.1,
        "a third of 5 s"
    );
    for _ in 0..30 {
        load.succeeded(ms(50), now + ms(100));
    }
    assert_eq!(load.failure_penalty(now + ms(100)), 1.0);
    load.late(took, now + SECOND);
    assert!(load.failure_penalty(now + SECOND + took + ms(1)) < 2.0, "as for the first time");
}

#[test]
fn of_two_that_were_late_neither_is_passed_over_and_one_that_was_counts_for_one_request_more() {
    for balancer in [Balancer::least_request(), Balancer::PeakEwma] {
        let set = candidates(&[1, 1]);
        let picker = picker_for(&balancer, set.clone(), &mut seeded(1));
        let mut draw = seeded(2);
        let mut share = |now: Duration| {
            let picked = |_: &usize| picker.pick(&Pick { now, ..Pick::default() }, &mut draw) == Some(0);
            (0..1000).filter(picked).count()
        };
        set.iter().for_each(|one| one.load_or_new().succeeded(Duration::from_millis(50), SECOND / 4));
        set[0].load_or_new().late(SECOND / 2, SECOND);
        assert_eq!(share(SECOND), 0, "{balancer:?}");
        set[1].load_or_new().late(SECOND / 2, SECOND);
        assert!((450..550).contains(&share(SECOND)), "{balancer:?}");
        set[1].load_or_new().late(SECOND / 2, 2 * SECOND);
        assert_eq!(share(2 * SECOND), 1000, "control, {balancer:?}: one of them still is");
    }
    let set = candidates(&[1, 1]);
    let picker = picker_for(&Balancer::least_request(), set.clone(), &mut seeded(1));
    set[0].load_or_new().late(SECOND / 2, SECOND);
    let now = SECOND + Duration::from_millis(501);
    let picks = |count: usize| {
        let mut draw = seeded(2);
        (0..count).filter(|_| picker.pick(&Pick { now, ..Pick::default() }, &mut draw) == Some(0)).count()
    };
    assert_eq!(picks(100), 0, "both are idle");
    let _busy = set[1].load_or_new().start();
    assert_eq!(picks(100), 100);
}

#[test]
fn who_answers_others_meanwhile_is_not_late() {
    let load = Load::default();
    load.succeeded(Duration::from_millis(50), SECOND / 2);
    load.late(SECOND, SECOND);
    assert_eq!(load.failure_penalty(SECOND), 1.0);
    load.late(SECOND / 4, SECOND);
    assert!(load.failure_penalty(SECOND) > 1.0, "control: nobody was answered since it began");
}

#[test]
fn an_answer_that_ends_for_lack_of_time_is_late_and_has_failed_where_others_were_answered_since_its_head() {
    let us = Duration::from_micros;
    // Of times that are no whole milliseconds: a request of 0.3 ms, its head and its end.
    for (other, late) in [(None, true), (Some(us(9_950)), true), (Some(us(10_950)), false)] {
        let (load, head, end) = (Load::default(), us(10_900), us(11_400));
        other.iter().filter(|at| **at < head).for_each(|at| load.succeeded(us(50), *at));
        load.succeeded(us(10_600), head);
        other.iter().filter(|at| **at > head).for_each(|at| load.succeeded(us(50), *at + us(100)));
        load.ended_late(us(11_100), head, end);
        assert_eq!(load.late_for(end).is_some(), late, "{other:?}");
        assert!(load.failure_penalty(end) > 1.0, "{other:?}: it costs one or the other");
        assert!(load.latency(end) <= 10_600.0, "the head's");
    }
}

#[test]
fn who_was_late_is_passed_over_for_five_seconds_at_most() {
    let load = Load::default();
    load.late(3600 * SECOND, 3600 * SECOND);
    let told = |at: u32| load.late_for(at * SECOND).map(|time| time.as_secs());
    assert_eq!((told(3600), told(3602), told(3606)), (Some(5), Some(3), None));
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
