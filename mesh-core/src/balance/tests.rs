use std::net::{Ipv4Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::id::Locality;
use crate::policy::{Address, Balancer, Endpoint, Endpoints, Health, LocalityBalancing, LocalityEndpoints};

const PICKS: usize = 30_000;

fn candidates(weights: &[u32]) -> Arc<[Candidate]> {
    weights.iter().map(|w| Candidate { weight: NonZeroU32::new(*w).unwrap(), load: Arc::default() }).collect()
}

fn seeded(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    move |below| rng.u64(..below)
}

/// Shares of the picks in per cent, rounded.
fn shares(picker: &dyn Picker, len: usize, tried: &[usize]) -> Vec<usize> {
    let mut draw = seeded(7);
    let mut counts = vec![0; len];
    for _ in 0..PICKS {
        counts[picker.pick(tried, None, &mut draw).unwrap()] += 1;
    }
    counts.into_iter().map(|n| (n * 100 + PICKS / 2) / PICKS).collect()
}

fn each_balancer() -> [Balancer; 3] {
    [Balancer::RoundRobin, Balancer::least_request(), Balancer::Random]
}

#[test]
fn an_idle_cluster_is_shared_by_weight() {
    for balancer in each_balancer() {
        for (weights, want) in [
            (&[1, 1, 1, 1][..], [25, 25, 25, 25]),
            (&[10, 20, 30, 40], [10, 20, 30, 40]),
            (&[7, 1, 1, 1], [70, 10, 10, 10]),
        ] {
            let picker = picker_for(&balancer, candidates(weights), &mut seeded(1));
            for (got, want) in shares(&*picker, 4, &[]).into_iter().zip(want) {
                assert!(got.abs_diff(want) <= 1, "{balancer:?} {weights:?}: {got} % instead of {want} %");
            }
        }
    }
}

#[test]
fn tried_endpoints_come_last() {
    for balancer in each_balancer() {
        let picker = picker_for(&balancer, candidates(&[10, 20, 30, 40]), &mut seeded(1));
        for (got, want) in shares(&*picker, 4, &[3, 1, 1]).into_iter().zip([25, 0, 75, 0]) {
            assert!(got.abs_diff(want) <= 1, "{balancer:?}: {got} % instead of {want} %");
        }
        assert_eq!(shares(&*picker, 4, &[0, 1, 2]), [0, 0, 0, 100], "{balancer:?}");
        assert!(picker.pick(&[3, 2, 1, 0], None, &mut seeded(1)).is_some(), "{balancer:?}: all were tried");
        assert!(picker.pick(&[17], None, &mut seeded(1)).is_some(), "{balancer:?}: an index of another set");
    }
}

#[test]
fn nothing_to_pick_from_is_no_panic() {
    for balancer in each_balancer() {
        let picker = picker_for(&balancer, candidates(&[]), &mut seeded(1));
        assert_eq!(picker.pick(&[], None, &mut seeded(1)), None, "{balancer:?}");
        assert_eq!(picker.pick(&[0], None, &mut seeded(1)), None, "{balancer:?}");
    }
}

#[test]
fn round_robin_goes_round_from_a_random_start() {
    let picker = RoundRobin::new(&candidates(&[1, 1, 1]), &mut |_| 2);
    let picks: Vec<_> = (0..6).map(|_| picker.pick(&[], None, &mut |_| 0).unwrap()).collect();
    assert_eq!(picks, [2, 0, 1, 2, 0, 1]);
}

#[test]
fn round_robin_spreads_a_heavy_endpoint_evenly() {
    let picker = RoundRobin::new(&candidates(&[3, 1]), &mut |_| 0);
    let picks: Vec<_> = (0..400).map(|_| picker.pick(&[], None, &mut |_| 0).unwrap()).collect();
    let longest = picks.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap();
    assert!(longest <= 4, "{longest} picks in a row");
    assert!(picks.iter().filter(|i| **i == 1).count().abs_diff(100) <= 1);
}

#[test]
fn least_request_prefers_the_less_loaded() {
    let set = candidates(&[1, 1]);
    let picker = LeastRequest::new(set.clone(), 2);
    let _busy: Vec<_> = (0..5).map(|_| set[0].load.start()).collect();
    assert_eq!(shares(&picker, 2, &[]), [0, 100]);
    drop(_busy);
    assert!(shares(&picker, 2, &[])[0] >= 49, "control: without load both are alike");
}

#[test]
fn two_choices_among_many_avoid_the_busiest_and_more_choices_look_further() {
    let set = candidates(&[1, 1, 1, 1]);
    let _busy = [set[0].load.start(), set[0].load.start(), set[1].load.start()];
    for (choices, want) in [(2, [0, 17, 42, 42]), (4, [0, 0, 50, 50]), (10, [0, 0, 50, 50])] {
        let picker = LeastRequest::new(set.clone(), choices);
        for (got, want) in shares(&picker, 4, &[]).into_iter().zip(want) {
            assert!(got.abs_diff(want) <= 1, "{choices} choices: {got} % instead of {want} %");
        }
    }
}

#[test]
fn least_request_measures_load_against_weight() {
    let set = candidates(&[1, 4]);
    let picker = LeastRequest::new(set.clone(), 2);
    let _light = set[0].load.start();
    let _heavy: Vec<_> = (0..3).map(|_| set[1].load.start()).collect();
    // 1 for weight 1 is more than 3 for weight 4.
    assert_eq!(picker.pick(&[], None, &mut scripted(&[0, 3])), Some(1));
    assert_eq!(picker.pick(&[], None, &mut scripted(&[3, 0])), Some(1));
    let _more: Vec<_> = (0..2).map(|_| set[1].load.start()).collect();
    assert_eq!(picker.pick(&[], None, &mut scripted(&[3, 0])), Some(0), "5 for weight 4 is more than 1 for 1");
}

fn scripted(draws: &[u64]) -> impl FnMut(u64) -> u64 + '_ {
    let mut draws = draws.iter().copied();
    move |_| draws.next().unwrap()
}

#[test]
fn a_request_in_flight_is_counted_until_its_guard_is_dropped() {
    let load = Arc::<Load>::default();
    let (one, two) = (load.start(), load.start());
    assert_eq!(load.in_flight(), 2);
    drop((one, two));
    assert_eq!(load.in_flight(), 0);
}

proptest! {
    #[test]
    fn a_pick_is_always_one_of_the_untried(
        weights in proptest::collection::vec(1_u32..=u32::MAX, 1..20),
        tried in proptest::collection::vec(0_usize..25, 0..12),
        seed: u64,
    ) {
        let mut draw = seeded(seed);
        for balancer in each_balancer() {
            let picker = picker_for(&balancer, candidates(&weights), &mut draw);
            for _ in 0..50 {
                let picked = picker.pick(&tried, None, &mut draw).unwrap();
                let all_tried = (0..weights.len()).all(|i| tried.contains(&i));
                prop_assert!(picked < weights.len());
                prop_assert!(all_tried || !tried.contains(&picked), "{balancer:?} picked {picked}");
            }
        }
    }
}

fn group(priority: u32, weight: u32, endpoints: &[(u16, u32, Health)]) -> LocalityEndpoints {
    let endpoint = |(port, weight, health): &(u16, u32, Health)| Endpoint {
        weight: NonZeroU32::new(*weight).unwrap(),
        health: *health,
        ..Endpoint::new(Address::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))))
    };
    LocalityEndpoints {
        locality: Locality::default(),
        priority,
        weight: NonZeroU32::new(weight).unwrap(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn ready(localities: Vec<LocalityEndpoints>, weighted: bool) -> ReadySet<u16> {
    let endpoints = Endpoints { cluster: "c".into(), localities, ..Endpoints::default() };
    let locality = LocalityBalancing { weighted, ..LocalityBalancing::default() };
    ReadySet::build(&endpoints, &Balancer::Random, &locality, &mut seeded(1), |_, endpoint| match &endpoint.address {
        Address::Socket(address) => (address.port(), Arc::default()),
        other => panic!("{other}"),
    })
}

#[test]
fn the_first_priority_with_a_usable_endpoint_is_used_whole() {
    use Health::{Degraded, Draining, Healthy, Unhealthy, Unknown};
    let set = ready(
        vec![
            group(2, 1, &[(30, 1, Healthy)]),
            group(0, 1, &[(10, 1, Unhealthy), (11, 1, Draining), (12, 1, Degraded)]),
            group(1, 1, &[(20, 1, Healthy), (21, 1, Unhealthy)]),
            group(1, 1, &[(22, 1, Unknown)]),
        ],
        false,
    );
    assert_eq!((set.endpoints(), set.priority(), set.known()), (&[20, 22][..], 1, 7));

    let none = ready(vec![group(0, 1, &[(10, 1, Unhealthy)])], false);
    assert!(none.is_empty());
    assert_eq!(none.pick(&[], None, &mut seeded(1)), None);
    assert_eq!(none.known(), 1);
}

#[test]
fn locality_weights_count_only_when_asked_for() {
    let groups = || {
        vec![
            group(0, 3, &[(10, 1, Health::Healthy)]),
            group(0, 1, &[(20, 3, Health::Healthy), (21, 1, Health::Healthy), (22, 9, Health::Unhealthy)]),
        ]
    };
    let weights = |set: &ReadySet<u16>| -> Vec<u32> { set.candidates().iter().map(|c| c.weight.get()).collect() };
    assert_eq!(weights(&ready(groups(), false)), [1, 3, 1]);
    assert_eq!(weights(&ready(groups(), true)), [1_000_000, 250_000, 83_333]);
}
