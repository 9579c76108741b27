//! Pickers that go by load.

use super::*;

fn shares(picker: &dyn Picker, len: usize, now: Duration) -> Vec<usize> {
    counts(picker, len, 30_000, &Pick { now, ..Pick::default() }).into_iter().map(|n| (n + 150) / 300).collect()
}

#[test]
fn a_request_in_flight_is_counted_until_its_guard_is_dropped() {
    let load = Arc::<Load>::default();
    let (one, two) = (load.start(), load.start());
    assert_eq!(load.in_flight(), 2);
    drop((one, two));
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn least_request_prefers_the_less_loaded() {
    let set = candidates(&[1, 1]);
    let picker = LeastRequest::new(set.clone(), 2, 1.0);
    let busy: Vec<_> = (0..5).map(|_| set[0].load_or_new().start()).collect();
    assert_eq!(shares(&picker, 2, SECOND), [0, 100]);
    let blind = LeastRequest::new(set.clone(), 2, 0.0);
    assert!(shares(&blind, 2, SECOND)[0].abs_diff(50) <= 1, "a bias of 0 sees no requests");
    drop(busy);
    assert!(shares(&picker, 2, SECOND)[0] >= 49, "control: without load both are alike");
}

#[test]
fn two_choices_among_many_avoid_the_busiest_and_more_choices_look_further() {
    let set = candidates(&[1, 1, 1, 1]);
    let start = |index: usize| set[index].load_or_new().start();
    let _busy = [start(0), start(0), start(1)];
    for (choices, want) in [(2, [0, 17, 42, 42]), (4, [0, 0, 50, 50]), (10, [0, 0, 50, 50])] {
        let picker = LeastRequest::new(set.clone(), choices, 1.0);
        for (got, want) in shares(&picker, 4, SECOND).into_iter().zip(want) {
            assert!(got.abs_diff(want) <= 1, "{choices} choices: {got} % instead of {want} %");
        }
    }
}

#[test]
fn least_request_measures_load_against_weight() {
    let set = candidates(&[1, 4]);
    let picker = LeastRequest::new(set.clone(), 2, 1.0);
    let _light = set[0].load_or_new().start();
    let _heavy: Vec<_> = (0..3).map(|_| set[1].load_or_new().start()).collect();
    // 1 for weight 1 is more than 3 for weight 4.
    assert_eq!(shares(&picker, 2, SECOND), [0, 100]);
    let _more: Vec<_> = (0..2).map(|_| set[1].load_or_new().start()).collect();
    assert_eq!(shares(&picker, 2, SECOND), [100, 0], "5 for weight 4 is more than 1 for 1");
}

#[test]
fn peak_ewma_rises_at_once_and_sinks_by_and_by() {
    let load = Load::default();
    let ms = |n: u64| Duration::from_millis(n);
    let close = |now: Duration, want: f32| {
        let got = load.latency(now) / 1000.0;
        assert!((got - want).abs() < 0.02 * want, "{got} ms instead of {want} ms at {now:?}");
    };
    close(SECOND, 30.0);
    load.succeeded(ms(10), SECOND);
    close(SECOND, 10.0);
    load.succeeded(ms(100), SECOND + ms(5));
    close(SECOND + ms(5), 100.0);
    // One fast answer after 10 s counts for 1 - 1/e.
    load.succeeded(ms(10), 11 * SECOND + ms(5));
    close(11 * SECOND + ms(5), 10.0 + 90.0 / std::f32::consts::E);
    // Unused it fades, so that a slow endpoint is asked again.
    close(21 * SECOND + ms(5), (10.0 + 90.0 / std::f32::consts::E) / std::f32::consts::E);
    // Given up by the caller after longer than expected.
    load.abandoned(ms(500), 21 * SECOND + ms(5));
    close(21 * SECOND + ms(5), 500.0);
    load.abandoned(ms(1), 21 * SECOND + ms(5));
    close(21 * SECOND + ms(5), 500.0);
}

#[test]
fn peak_ewma_weighs_latency_by_requests_in_flight() {
    let set = candidates(&[1, 1]);
    let picker = PeakEwma::new(set.clone());
    set[0].load_or_new().succeeded(Duration::from_millis(10), SECOND);
    set[1].load_or_new().succeeded(Duration::from_millis(25), SECOND);
    assert_eq!(shares(&picker, 2, SECOND), [100, 0]);
    let _first = set[0].load_or_new().start();
    assert_eq!(shares(&picker, 2, SECOND), [100, 0], "20 is less than 25");
    let _second = set[0].load_or_new().start();
    assert_eq!(shares(&picker, 2, SECOND), [0, 100], "30 is more");
}

#[test]
fn peak_ewma_draws_a_third_where_one_of_two_is_no_choice() {
    let set = candidates(&[1; 8]);
    let picker = PeakEwma::new(set.clone());
    for (i, candidate) in set.iter().enumerate() {
        let took = if i == 0 { 100 } else { 10 };
        candidate.load_or_new().succeeded(Duration::from_millis(took), SECOND);
    }
    let busy: Vec<_> = (0..20).map(|_| set[1].load_or_new().start()).collect();
    let got = shares(&picker, 8, SECOND);
    assert_eq!((got[0], got[1]), (0, 0), "neither the slow one because another is busy, nor that: {got:?}");
    drop(busy);
    let _fewer: Vec<_> = (0..5).map(|_| set[1].load_or_new().start()).collect();
    assert_eq!(shares(&picker, 8, SECOND)[1], 0, "nor the busy one because the other is slow");
    // The control: three times as slow is a choice, if not a good one.
    for candidate in set.iter() {
        candidate.load_or_new().abandoned(Duration::from_millis(100), SECOND);
    }
    set[0].load_or_new().abandoned(Duration::from_millis(300), SECOND);
    assert!(shares(&picker, 8, SECOND)[0] > 0, "for it is the cheaper of the two when it meets the busy one");
}

#[test]
fn peak_ewma_asks_an_unknown_endpoint_once_and_waits_for_the_answer() {
    let set = candidates(&[1, 1]);
    let picker = PeakEwma::new(set.clone());
    set[0].load_or_new().succeeded(Duration::from_millis(1), SECOND);
    assert_eq!(shares(&picker, 2, SECOND), [0, 100], "30 ms would keep it waiting for ever");
    let asked = set[1].load_or_new().start();
    assert_eq!(shares(&picker, 2, SECOND), [100, 0], "one request finds out");
    set[1].load_or_new().abandoned(Duration::from_millis(2), SECOND);
    drop(asked);
    assert_eq!(shares(&picker, 2, SECOND), [100, 0], "given up before it answered: it is not asked at once again");

    // One that failed at once is none nothing is known of, though no latency is.
    let set = candidates(&[1, 1]);
    let picker = PeakEwma::new(set.clone());
    set[0].load_or_new().succeeded(Duration::from_millis(1), SECOND);
    set[1].load_or_new().failed(Duration::from_millis(1), SECOND);
    assert_eq!(shares(&picker, 2, SECOND), [100, 0]);

    // Nor is it the choice when it meets one that is busy: a third is drawn.
    let set = candidates(&[1; 8]);
    let picker = PeakEwma::new(set.clone());
    set[0].load_or_new().failed(Duration::from_millis(1), SECOND);
    for candidate in set.iter().skip(1) {
        candidate.load_or_new().succeeded(Duration::from_millis(1), SECOND);
    }
    let busy: Vec<_> = (0..500).map(|_| set[1].load_or_new().start()).collect();
    let got = shares(&picker, 8, SECOND);
    assert_eq!((got[0], got[1]), (0, 0), "{got:?}");
    drop(busy);

    // Of two that are unknown the idle one.
    let set = candidates(&[1, 1]);
    let picker = PeakEwma::new(set.clone());
    let _asked = set[0].load_or_new().start();
    assert_eq!(shares(&picker, 2, SECOND), [0, 100]);
}

#[test]
fn an_unreachable_endpoint_is_avoided_for_longer_each_time_and_forgiven_at_once() {
    let load = Load::default();
    let ms = |n: u64| Duration::from_millis(n);
    let mut now = SECOND;
    assert!(!load.is_unreachable(now));
    for wait in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        load.unreachable(now);
        load.unreachable(now);
        assert!(load.is_unreachable(now + ms(wait - 1)), "{wait} ms are not over");
        assert!(!load.is_unreachable(now + ms(wait)), "{wait} ms are over");
        now += ms(wait);
    }
    load.unreachable(now);
    load.reached();
    assert!(!load.is_unreachable(now));
    load.unreachable(now);
    assert!(!load.is_unreachable(now + ms(500)), "a success begins anew");
}

#[test]
fn who_gives_up_waiting_for_a_connection_says_something_of_who_answers_nobody_else() {
    let load = Load::default();
    load.suspected(SECOND, 3 * SECOND);
    assert!(load.is_away() && !load.is_unreachable(3 * SECOND), "others come first, and another attempt is due");
    assert_eq!(load.overdue(5 * SECOND), Some(2 * SECOND));
    load.reached();
    load.succeeded(SECOND / 10, 5 * SECOND / 2);
    load.suspected(SECOND, 3 * SECOND);
    assert!(!load.is_away(), "it has answered meanwhile");
    load.suspected(SECOND, 4 * SECOND);
    assert!(load.is_away(), "that was before");
    // Who is passed over stays so for as long.
    load.unreachable(4 * SECOND);
    load.suspected(SECOND, 4 * SECOND);
    assert!(load.is_unreachable(4 * SECOND) && load.overdue(4 * SECOND).is_none());
}
