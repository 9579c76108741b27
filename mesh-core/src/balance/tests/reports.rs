//! Pickers that go by what endpoints report: weighted round robin and Prequal.

use super::*;

fn orca(requests_per_second: f64, utilization: f64) -> EndpointReport {
    EndpointReport { requests_per_second, utilization, ..EndpointReport::default() }
}

fn settings() -> policy::WeightedRoundRobin {
    policy::WeightedRoundRobin::default()
}

fn picks(picker: &dyn Picker, len: usize, now: Duration) -> Vec<usize> {
    counts(picker, len, 10_000, &Pick { now, ..Pick::default() }).into_iter().map(|n| (n + 50) / 100).collect()
}

#[test]
fn weights_follow_reports_after_the_blackout_and_until_they_expire() {
    let set = candidates(&[1, 1, 1]);
    let picker = WeightedRoundRobin::new(set.clone(), settings(), &mut |_| 0);
    assert_eq!(picks(&picker, 3, SECOND), [33, 33, 33]);
    let report = |now| {
        set[0].load_or_new().report(&orca(100.0, 0.5), &settings(), now);
        set[1].load_or_new().report(&orca(100.0, 0.25), &settings(), now);
    };
    report(2 * SECOND);
    assert_eq!(picks(&picker, 3, 11 * SECOND), [33, 33, 33], "the blackout lasts for 10 s");
    report(11 * SECOND);
    // 200 and 400, and the mean for the one that says nothing.
    assert_eq!(picks(&picker, 3, 13 * SECOND), [22, 44, 33]);
    assert_eq!(picks(&picker, 3, 190 * SECOND), [22, 44, 33], "179 s old");
    assert_eq!(picks(&picker, 3, 192 * SECOND), [33, 33, 33], "expired after 180 s");
    report(193 * SECOND);
    assert_eq!(picks(&picker, 3, 195 * SECOND), [33, 33, 33], "and the blackout begins again");
}

#[test]
fn a58_a_new_connection_after_a_time_without_begins_the_blackout_anew() {
    let set = candidates(&[1, 1]);
    let picker = WeightedRoundRobin::new(set.clone(), settings(), &mut |_| 0);
    let report = |now| {
        set[0].load_or_new().report(&orca(100.0, 0.5), &settings(), now);
        set[1].load_or_new().report(&orca(100.0, 0.125), &settings(), now);
    };
    report(SECOND);
    report(20 * SECOND);
    assert_eq!(picks(&picker, 2, 20 * SECOND), [20, 80], "control");
    set[0].load_or_new().renewed();
    assert_eq!(picks(&picker, 2, 22 * SECOND), [50, 50], "what it said before counts no more");
    report(25 * SECOND);
    assert_eq!(picks(&picker, 2, 34 * SECOND), [50, 50], "nor what it says, for ten seconds");
    assert_eq!(picks(&picker, 2, 35 * SECOND), [20, 80]);
}

#[test]
fn weights_that_are_known_for_months_stay_known() {
    let set = candidates(&[1, 1]);
    let picker = WeightedRoundRobin::new(set.clone(), settings(), &mut |_| 0);
    let report = |now| {
        set[0].load_or_new().report(&orca(100.0, 0.5), &settings(), now);
        set[1].load_or_new().report(&orca(100.0, 0.125), &settings(), now);
    };
    // 2^32 ms are 49.7 days.
    let around = Duration::from_millis(u64::from(u32::MAX));
    let mut now = SECOND;
    while now < around + 2 * SECOND {
        report(now);
        now += Duration::from_secs(100);
    }
    report(around + 2 * SECOND);
    assert_eq!(picks(&picker, 2, around + 3 * SECOND), [20, 80]);
    let late = Duration::from_secs(200) + around;
    assert_eq!(picks(&picker, 2, late), [50, 50], "control: without a report they expire");
    report(late);
    assert_eq!(picks(&picker, 2, late + SECOND), [50, 50], "control: and there is a blackout");
}

#[test]
fn one_usable_weight_is_not_enough() {
    let set = candidates(&[1, 3]);
    let picker = WeightedRoundRobin::new(set.clone(), settings(), &mut |_| 0);
    set[0].load_or_new().report(&orca(900.0, 0.1), &settings(), SECOND);
    set[0].load_or_new().report(&orca(900.0, 0.1), &settings(), 20 * SECOND);
    assert_eq!(picks(&picker, 2, 20 * SECOND), [25, 75], "their own weights count");
}

#[test]
fn weights_are_taken_over_once_a_period() {
    let set = candidates(&[1, 1]);
    let own = policy::WeightedRoundRobin { blackout_period: Duration::ZERO, ..settings() };
    let picker = WeightedRoundRobin::new(set.clone(), own.clone(), &mut |_| 0);
    assert_eq!(picks(&picker, 2, SECOND), [50, 50]);
    for (index, utilization) in [(0, 0.5), (1, 0.125)] {
        set[index].load_or_new().report(&orca(100.0, utilization), &own, SECOND);
    }
    assert_eq!(picks(&picker, 2, SECOND + Duration::from_millis(999)), [50, 50]);
    assert_eq!(picks(&picker, 2, 2 * SECOND), [20, 80]);
}

fn probed(set: &Candidates, picker: &Prequal, index: usize, in_flight: u32, latency_ms: u64, now: Duration) {
    let latency = Some(Duration::from_millis(latency_ms));
    set[index].load_or_new().report_load(in_flight, latency, 0, now);
    picker.reported(index, now);
}

fn first(picker: &Prequal, now: Duration) -> usize {
    picker.pick(&Pick { now, ..Pick::default() }, &mut seeded(1)).unwrap()
}

#[test]
fn the_fastest_of_the_cold_is_picked() {
    let set = candidates(&[1; 4]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    // Learn what is usual: mostly 2 in flight.
    for _ in 0..64 {
        probed(&set, &picker, 0, 2, 10, SECOND);
    }
    probed(&set, &picker, 1, 50, 1, SECOND);
    probed(&set, &picker, 2, 1, 5, SECOND);
    probed(&set, &picker, 3, 2, 7, SECOND);
    assert_eq!(first(&picker, SECOND), 2, "the one with 50 in flight is hot, however fast it was");
}

#[test]
fn if_all_are_hot_the_one_with_the_fewest_in_flight_is_picked() {
    let set = candidates(&[1; 4]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    for _ in 0..64 {
        probed(&set, &picker, 0, 1, 1, SECOND);
    }
    let later = 3 * SECOND;
    probed(&set, &picker, 1, 30, 1, later);
    probed(&set, &picker, 2, 20, 9, later);
    probed(&set, &picker, 3, 40, 1, later);
    assert_eq!(first(&picker, later), 2);
}

#[test]
fn an_answer_counts_our_own_requests_while_they_last_and_grows_old() {
    let set = candidates(&[1; 40]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    let before = set[7].load_or_new().start();
    for _ in 0..64 {
        probed(&set, &picker, 7, 2, 1, SECOND);
    }
    probed(&set, &picker, 8, 1, 3, SECOND);
    assert_eq!(first(&picker, SECOND), 7);
    let load = set[7].load().unwrap();
    let request = load.start();
    assert_eq!(load.reported_load(1000).unwrap().0, 3, "our request is on its way to it");
    assert_eq!(first(&picker, SECOND), 8);
    drop(request);
    assert_eq!(first(&picker, SECOND), 7, "it is answered");
    drop(before);
    assert_eq!(load.reported_load(1000).unwrap().0, 1, "so is the one that was there before the answer");
    let ending = load.start();
    load.report_load(2, None, 1, SECOND);
    drop(ending);
    assert_eq!(load.reported_load(1000).unwrap().0, 2, "what comes with an answer does not count its request");

    let late = Pick { now: SECOND + Duration::from_millis(1001), ..Pick::default() };
    let seen = counts(&picker, 40, 4000, &late);
    assert_fits(&seen, &[1.0; 40], "after a second the answers say nothing");
}

#[test]
fn a_pool_that_is_full_makes_room() {
    let set = candidates(&[1; 64]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    let mut draw = seeded(4);
    let mut now = SECOND;
    let mut seen = vec![0; 64];
    for _ in 0..20_000 {
        now += Duration::from_micros(100);
        for _ in 0..3 {
            let index = draw(64) as usize;
            // One in eight is ten times as slow.
            let latency = if index.is_multiple_of(8) { 100 } else { 10 };
            probed(&set, &picker, index, draw(4) as u32, latency, now);
        }
        seen[picker.pick(&Pick { now, ..Pick::default() }, &mut draw).unwrap()] += 1;
    }
    let slow: usize = seen.iter().step_by(8).sum();
    assert!(slow < 200, "{slow} of 20,000 went to the slow eighth");
    let fair = 20_000 / 56;
    for (index, count) in seen.iter().enumerate().filter(|(index, _)| index % 8 != 0) {
        assert!((fair / 2..fair * 2).contains(count), "{index} got {count}, {fair} would be fair");
    }
}

/// Servers that are as fast as each other, but for one that took three seconds once: it is not shunned for ever.
#[test]
fn a_server_that_was_slow_once_is_asked_again() {
    let epoch = tokio::time::Instant::now();
    let servers: Vec<_> = (0..4).map(|_| Arc::new(ServedLoad::new(epoch))).collect();
    let set = candidates(&[1; 4]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    servers[0].begin(epoch).answered(epoch + 3 * SECOND);
    let (mut draw, mut now, mut share) = (seeded(5), 3 * SECOND, 0);
    for _ in 0..20_000 {
        now += Duration::from_millis(1);
        for _ in 0..3 {
            let index = draw(4) as usize;
            let said = servers[index].report(0, epoch + now);
            set[index].load_or_new().report_load(said.in_flight.unwrap(), said.latency, 0, now);
            picker.reported(index, now);
        }
        let index = picker.pick(&Pick { now, ..Pick::default() }, &mut draw).unwrap();
        servers[index].begin(epoch + now).answered(epoch + now + Duration::from_micros(300));
        share += usize::from(index == 0 && now >= 21 * SECOND);
    }
    assert!(share > 250, "it got {share} of the last 2,000 requests, 500 would be fair");
}

#[test]
fn a_server_that_nobody_has_measured_is_tried_and_one_that_fails_at_once_is_not_tried_for_long() {
    let set = candidates(&[1; 4]);
    let picker = Prequal::new(set.clone(), policy::Prequal::default());
    let (mut draw, mut now, mut seen) = (seeded(6), SECOND, [0; 4]);
    for _ in 0..1000 {
        now += Duration::from_millis(1);
        for _ in 0..3 {
            let index = draw(4) as usize;
            // The first two have answered nothing well: one of them never will.
            let latency = (index > 1 || seen[1] > 0 && index == 1).then_some(Duration::from_millis(100));
            set[index].load_or_new().report_load(0, latency, 0, now);
            picker.reported(index, now);
        }
        let index = picker.pick(&Pick { now, ..Pick::default() }, &mut draw).unwrap();
        seen[index] += 1;
        if index == 0 {
            set[0].load_or_new().failed(Duration::ZERO, now);
        }
    }
    assert!(seen[0] < 10 && seen[1] > 200, "{seen:?}");
}
