//! Localities by weight, around every picker.

use super::ready::{build, cluster, hits};
use super::*;
use crate::health::{Reason, Standing};
use crate::policy::{Cluster, Discovery, LoadSpill, PerMillion, SlowStart, WeightedRoundRobin};
use Health::{Healthy, Unhealthy};

const NEAR: [u16; 3] = [10, 11, 12];
const FAR: [u16; 2] = [20, 21];

fn weighted(balancer: &Balancer, change: impl FnOnce(&mut Cluster)) -> Arc<Cluster> {
    cluster(|c| {
        (c.balancer, c.locality.weighted) = (balancer.clone(), true);
        change(c);
    })
}

/// A locality with healthy endpoints at these ports.
fn zone(name: &str, priority: u32, weight: u32, ports: &[u16]) -> LocalityEndpoints {
    let all: Vec<_> = ports.iter().map(|port| (*port, 1, Healthy)).collect();
    LocalityEndpoints { locality: locality(name), ..group(priority, weight, &all) }
}

fn locality(name: &str) -> Locality {
    Locality { zone: name.to_owned(), ..Locality::default() }
}

/// Four of five for the near zone.
fn near_and_far() -> Vec<LocalityEndpoints> {
    vec![zone("near", 0, 80, &NEAR), zone("far", 0, 20, &FAR)]
}

/// Picks at each of these ports, of 30,000 with different keys.
fn picks(set: &ReadySet<u16>, ports: &[u16], pick: &Pick<'_>) -> Vec<usize> {
    let (mut draw, mut hashes) = (seeded(9), seeded(4));
    let mut hits = vec![0; ports.len()];
    for _ in 0..30_000 {
        let port = *set.pick(&Pick { hash: Some(hashes(u64::MAX)), ..*pick }, &mut draw).unwrap().1;
        hits[ports.iter().position(|other| *other == port).unwrap_or_else(|| panic!("{port} was picked"))] += 1;
    }
    hits
}

/// The share of the picks that is at `FAR`.
fn share_of_far(set: &ReadySet<u16>, pick: &Pick<'_>) -> f64 {
    let all: Vec<u16> = NEAR.iter().chain(&FAR).copied().collect();
    picks(set, &all, pick)[NEAR.len()..].iter().sum::<usize>() as f64 / 30_000.0
}

/// Whatever a picker compares says that the far endpoints are ten times as bad.
fn far_is_slow(set: &ReadySet<u16>) -> Vec<InFlight> {
    let settings = WeightedRoundRobin::default();
    let mut under_way = Vec::new();
    for (index, port) in set.endpoints().iter().enumerate() {
        let times = if FAR.contains(port) { 10 } else { 1 };
        let load = set.candidates()[index].load_or_new();
        load.succeeded(Duration::from_millis(5) * times, 100 * SECOND);
        let report = EndpointReport {
            requests_per_second: 100.0,
            utilization: 0.09 * f64::from(times),
            ..EndpointReport::default()
        };
        load.report(&report, &settings, 80 * SECOND);
        load.report(&report, &settings, 100 * SECOND);
        load.report_load(times, Some(Duration::from_millis(5) * times), 0, 100 * SECOND);
        set.reported(index, 100 * SECOND);
        under_way.extend((0..2 * times).map(|_| load.start()));
    }
    under_way
}

#[test]
fn each_locality_has_its_share_whatever_the_picker() {
    for balancer in each_balancer() {
        let set = build(near_and_far(), weighted(&balancer, |_| {}), &[]);
        let _under_way = far_is_slow(&set);
        let now = Pick { now: 100 * SECOND, ..Pick::default() };
        let far = share_of_far(&set, &now);
        // A ring of 1,024 is not as exact: its entries are where their hashes are.
        let off = if matches!(balancer, Balancer::RingHash { .. }) { 0.05 } else { 0.01 };
        assert!((far - 0.2).abs() < off, "{balancer:?}: {far}");
        // A retry leaves out where it was, and no locality for that.
        let far = share_of_far(&set, &Pick { tried: &[0, 3], ..now });
        if !matches!(
            balancer,
            Balancer::RingHash { .. } | Balancer::Maglev { .. } | Balancer::RoundRobin | Balancer::Random
        ) {
            assert!((far - 0.2).abs() < 0.01, "{balancer:?}: {far} of the retries");
        }
    }
}

#[test]
fn parts_of_the_endpoints_have_localities_too() {
    let child = Box::new(Balancer::least_request());
    let set =
        build(near_and_far(), weighted(&Balancer::RandomSubsetting { size: 9, of_each: false, child }, |_| {}), &[]);
    let _under_way = far_is_slow(&set);
    let far = share_of_far(&set, &Pick::default());
    assert!((far - 0.2).abs() < 0.01, "{far}");
}

/// The balancers before which a locality is drawn.
fn comparing() -> Vec<Balancer> {
    let goes_by_weight = |balancer: &Balancer| {
        matches!(
            balancer,
            Balancer::RoundRobin | Balancer::Random | Balancer::RingHash { .. } | Balancer::Maglev { .. }
        )
    };
    each_balancer().into_iter().filter(|balancer| !goes_by_weight(balancer)).collect()
}

#[test]
fn a_picker_sees_one_locality_where_one_is_drawn() {
    for balancer in each_balancer() {
        let set = build(near_and_far(), weighted(&balancer, |_| {}), &[]);
        let pools: Vec<_> = set.pools().map(|pool| (pool.locality, pool.share.get(), pool.endpoints)).collect();
        if comparing().contains(&balancer) {
            let want = [(Some(locality("near")), 800_000, 3), (Some(locality("far")), 200_000, 2)];
            assert_eq!(pools, want, "{balancer:?}");
            assert_eq!(set.rating(3, SECOND).unwrap().weight, 1, "{balancer:?}");
        } else {
            assert_eq!(pools, [(None, 1_000_000, 5)], "{balancer:?}");
        }
    }
    // The controls: not weighted, one locality, panic.
    let least = Balancer::least_request();
    let pools = |groups, cluster| build(groups, cluster, &[]).pools().collect::<Vec<_>>();
    assert_eq!(pools(near_and_far(), cluster(|c| c.balancer = least.clone())).len(), 1);
    let one = pools(vec![zone("near", 0, 80, &NEAR)], weighted(&least, |_| {}));
    assert_eq!((one.len(), &one[0].locality), (1, &None));
    let ill = || group(0, 20, &[(20, 1, Healthy), (21, 1, Unhealthy), (22, 1, Unhealthy), (23, 1, Unhealthy)]);
    let half = Some(PerMillion::new(500_000));
    let panic = weighted(&least, |c| c.locality.panic_threshold = half);
    let panic = pools(vec![ill(), group(0, 80, &[(10, 1, Unhealthy)])], panic);
    assert_eq!((panic.len(), panic[0].endpoints, panic[0].panic), (1, 5, true));
}

#[test]
fn a_locality_that_lost_endpoints_has_less_from_71_per_cent_down() {
    for balancer in comparing() {
        for (lost, want) in [(0, 0.5), (1, 0.5), (2, 0.84 / 1.84), (4, 0.28 / 1.28)] {
            let all: Vec<u16> = (20..25).collect();
            let ill = |port: u16| port - 20 < lost;
            let far: Vec<_> = all.iter().map(|port| (*port, 1, if ill(*port) { Unhealthy } else { Healthy })).collect();
            let set = build(vec![zone("near", 0, 7, &NEAR), group(0, 7, &far)], weighted(&balancer, |_| {}), &[]);
            let ports: Vec<u16> = NEAR.iter().chain(&all).copied().collect();
            let far = hits(&set, &ports, &Pick::default())[3..].iter().sum::<usize>() as f64 / 30_000.0;
            assert!((far - want).abs() < 0.01, "{balancer:?} without {lost} of 5: {far}");
        }
    }
}

#[test]
fn a_locality_all_of_which_was_tried_comes_last() {
    for balancer in comparing() {
        let groups = || {
            let mut groups = near_and_far();
            groups.push(zone("third", 0, 60, &[30]));
            groups
        };
        let set = build(groups(), weighted(&balancer, |_| {}), &[]);
        let ports: Vec<u16> = set.endpoints().to_vec();
        let of = |tried: &[usize]| {
            let hits = hits(&set, &ports, &Pick { tried, ..Pick::default() });
            [hits[..3].iter().sum::<usize>(), hits[3..5].iter().sum(), hits[5]]
        };
        assert_fits(&of(&[3, 4]), &[80.0, 0.0, 60.0], &format!("{balancer:?}: far was tried"));
        assert_fits(&of(&[0, 1, 2, 5]), &[0.0, 1.0, 0.0], &format!("{balancer:?}: all but far"));
        assert_fits(&of(&[3]), &[80.0, 20.0, 60.0], &format!("{balancer:?}: one of far"));
        assert_fits(&of(&[0, 1, 2, 3, 4, 5]), &[80.0, 20.0, 60.0], &format!("{balancer:?}: everything"));
    }
}

#[test]
fn the_share_of_a_locality_that_cannot_be_reached_goes_to_the_others_by_weight() {
    for balancer in comparing() {
        let mut groups = near_and_far();
        groups.push(zone("third", 0, 60, &[30]));
        groups.push(zone("later", 1, 1, &[40]));
        let set = build(groups, weighted(&balancer, |_| {}), &[]);
        let ports: Vec<u16> = set.endpoints().to_vec();
        let of = || {
            let hits = hits(&set, &ports, &Pick { now: 100 * SECOND, ..Pick::default() });
            [hits[..3].iter().sum::<usize>(), hits[3..5].iter().sum(), hits[5], hits[6]]
        };
        let lose = |index: usize| set.candidates()[index].load_or_new().unreachable(100 * SECOND);
        lose(0);
        assert_fits(&of(), &[80.0, 20.0, 60.0, 0.0], &format!("{balancer:?}: one of near"));
        (1..3).for_each(lose);
        assert_fits(&of(), &[0.0, 20.0, 60.0, 0.0], &format!("{balancer:?}: all of near"));
        (3..6).for_each(lose);
        assert_fits(&of(), &[0.0, 0.0, 0.0, 1.0], &format!("{balancer:?}: all of the priority"));
    }
}

#[test]
fn the_next_priority_is_entered_by_the_weights_of_its_localities() {
    for balancer in comparing() {
        let mut groups = near_and_far();
        groups.iter_mut().for_each(|group| group.priority = 1);
        groups.insert(0, zone("own", 0, 1, &[1, 2]));
        let spill = Some(LoadSpill { low: 0, high: 1 });
        let set = build(groups, weighted(&balancer, |c| c.locality.spill = spill), &[]);
        let ports: Vec<u16> = set.endpoints().to_vec();
        let of = |pick: &Pick<'_>| {
            let hits = hits(&set, &ports, pick);
            [hits[..2].iter().sum::<usize>(), hits[2..5].iter().sum(), hits[5..].iter().sum()]
        };
        let now = Pick { now: 100 * SECOND, ..Pick::default() };
        assert_fits(&of(&now), &[1.0, 0.0, 0.0], &format!("{balancer:?}: they stand by"));
        assert_fits(&of(&Pick { away_from: &[0], ..now }), &[0.0, 80.0, 20.0], &format!("{balancer:?}: a retry"));
        let tried = [5, 6];
        let retry = Pick { away_from: &[0], tried: &tried, ..now };
        assert_fits(&of(&retry), &[0.0, 1.0, 0.0], &format!("{balancer:?}: a second one"));
        let busy: Vec<_> = (0..2).map(|index| set.candidates()[index].load_or_new().start()).collect();
        hits(&set, &ports, &now);
        assert_fits(&of(&now), &[0.0, 80.0, 20.0], &format!("{balancer:?}: by load"));
        drop(busy);
        hits(&set, &ports, &now);
        (0..2).for_each(|index| set.candidates()[index].load_or_new().unreachable(100 * SECOND));
        assert_fits(&of(&now), &[0.0, 80.0, 20.0], &format!("{balancer:?}: as nothing else can be reached"));
    }
}

#[test]
fn a_retry_that_wants_another_locality_gets_one_by_weight() {
    for balancer in comparing() {
        let mut groups = near_and_far();
        groups.push(zone("third", 0, 60, &[30]));
        let set = build(groups, weighted(&balancer, |_| {}), &[]);
        let ports: Vec<u16> = set.endpoints().to_vec();
        let hits = hits(&set, &ports, &Pick { away_from: &[3], ..Pick::default() });
        let each = 80.0 / 3.0;
        assert_fits(&hits, &[each, each, each, 0.0, 0.0, 60.0], &format!("{balancer:?}"));
    }
}

#[test]
fn new_endpoints_have_less_of_their_own_locality_and_it_has_its_share() {
    for balancer in comparing().into_iter().filter(|balancer| !matches!(balancer, Balancer::PickFirst { .. })) {
        let load = Arc::new(Load::default());
        load.ramp_from(100 * SECOND);
        let slow_start = SlowStart { window: 100 * SECOND, aggression: 1_000_000, min_share: PerMillion::new(100_000) };
        let set = build(near_and_far(), weighted(&balancer, |c| c.slow_start = Some(slow_start)), &[(20, load)]);
        let ports: Vec<u16> = set.endpoints().to_vec();
        // Known, or peak EWMA would ask each of them first.
        for candidate in set.candidates().iter() {
            candidate.load_or_new().succeeded(Duration::from_millis(5), 100 * SECOND);
        }
        let hits = hits(&set, &ports, &Pick { now: 101 * SECOND, ..Pick::default() });
        let far = (hits[3] + hits[4]) as f64 / 30_000.0;
        assert!((far - 0.2).abs() < 0.01, "{balancer:?}: {hits:?}");
        let new = hits[3] as f64 / hits[4] as f64;
        assert!((0.07..0.13).contains(&new), "{balancer:?}: {hits:?}");
    }
}

#[test]
fn ejected_endpoints_and_pinned_sessions_are_found_where_localities_are_drawn() {
    let load = Arc::new(Load::default());
    load.set_standing(Standing::Ejected(Reason::Consecutive5xx));
    let set = build(near_and_far(), weighted(&Balancer::PeakEwma, |_| {}), &[(21, load)]);
    assert!(!set.is_usable(set.find(&address(21)).unwrap()));
    assert_eq!(set.pinned(&address(20), &[Healthy]).unwrap().1, &20);
    assert_eq!(set.pinned(&address(21), &[Healthy]), None);
    assert_eq!((set.len(), set.priority(), set.availability()), (4, 0, Some(PerMillion::ALL)));
}

#[test]
fn probes_and_their_answers_are_of_the_locality_that_is_drawn() {
    let set = build(near_and_far(), weighted(&Balancer::Prequal(Default::default()), |_| {}), &[]);
    let mut draw = seeded(3);
    let far = (0..30_000).filter(|_| set.probe_target(&mut draw).unwrap() >= 3).count() as f64 / 30_000.0;
    assert!((far - 0.2).abs() < 0.01, "{far}");
    let _under_way = far_is_slow(&set);
    let probed = |index| matches!(set.rating(index, 100 * SECOND).unwrap().score, Some(Score::Probed { .. }));
    assert!((0..5).all(probed));
}

#[test]
fn a_picker_of_the_callers_own_sees_one_locality() {
    let make: Arc<MakePicker> = Arc::new(|_, candidates, _| {
        // Always the last: whoever compares all of them would never give another.
        Some(Box::new(Bounded::new(Last(candidates.len() - 1), candidates.clone(), u32::MAX)))
    });
    for balancer in [Balancer::RoundRobin, Balancer::PeakEwma] {
        let cluster = weighted(&balancer, |_| {});
        let endpoints = endpoints(near_and_far());
        let set =
            ReadySet::build(endpoints, cluster, Some(make.clone()), SECOND, &mut seeded(1), |e| match &e.address {
                Address::Socket(address) => (address.port(), None),
                other => panic!("{other}"),
            });
        assert_fits(&hits(&set, &[12, 21], &Pick::default()), &[80.0, 20.0], "the last of each");
    }
}

#[derive(Debug)]
struct Last(usize);

impl Picker for Last {
    fn pick(&self, _pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        Some(self.0)
    }
}

/// gRFC A42's example as gRFC A113 has it.
#[test]
fn a_ring_goes_by_the_weights_of_localities_as_grpcs_does() {
    let groups = || {
        vec![
            group(0, 3, &[(10, 2, Healthy), (11, 1, Healthy)]),
            group(0, 2, &[(20, 3, Healthy), (21, 1, Healthy), (22, 9, Unhealthy), (23, 9, Unhealthy)]),
        ]
    };
    let ring = Balancer::RingHash { min_size: 1024, max_size: 8 << 20 };
    let maglev = Balancer::Maglev { table_size: 65_537 };
    let weights = |balancer: &Balancer, weighted| {
        let cluster = cluster(|c| (c.balancer, c.locality.weighted) = (balancer.clone(), weighted));
        let set = build(groups(), cluster, &[]);
        set.candidates().iter().take(4).map(|c| c.weight.get()).collect::<Vec<_>>()
    };
    // 3/5 of 2/3 and 1/3, 2/5 of 3/4 and 1/4, in parts of 2^31 that are rounded down twice. Half of the second
    // locality is ill, and it keeps its weight: it is the others' keys as well that would move.
    let grpc = [858_993_458, 429_496_728, 644_245_094, 214_748_364];
    let plain = [2, 1, 3, 1];
    for (balancer, weighted, want) in [
        (&ring, false, grpc),
        (&ring, true, grpc),
        (&maglev, true, grpc),
        (&Balancer::PickFirst { shuffle: true }, false, grpc),
        // The controls: no gRPC client knows Maglev, and Envoy asks for it.
        (&maglev, false, plain),
        (&Balancer::PickFirst { shuffle: false }, false, plain),
        (&Balancer::Random, false, plain),
    ] {
        assert_eq!(weights(balancer, weighted), want, "{balancer:?}, {weighted}");
    }
    // In panic it is all of them, the ill ones behind the others.
    let panic = cluster(|c| {
        c.balancer = ring.clone();
        c.locality.panic_threshold = Some(PerMillion::new(900_000));
    });
    let part = |of: u64, all: u64| (of << 31) / all;
    let product = |locality, endpoint| ((locality * endpoint) >> 31) as u32;
    let weights: Vec<_> = build(groups(), panic, &[]).candidates().iter().map(|c| c.weight.get()).collect();
    let second = [3, 1, 9, 9].map(|own| product(part(2, 5), part(own, 22)));
    assert_eq!(weights, [&grpc[..2], &second].concat());
    let one = build(groups().split_off(1), cluster(|c| c.balancer = ring.clone()), &[]);
    assert_eq!(one.candidates()[0].weight.get(), 3, "one locality is no choice");
    // Nobody gave weights to the localities of a cluster that has its endpoints written in it.
    let inline = cluster(|c| {
        c.balancer = ring.clone();
        c.discovery = Discovery::Static(Arc::new(Endpoints::at("test", [])));
    });
    let weights: Vec<_> = build(groups(), inline, &[]).candidates().iter().take(4).map(|c| c.weight.get()).collect();
    assert_eq!(weights, plain);
}

/// In gRPC it stays in the ring, and who comes next takes its keys: nobody weighs more for it.
#[test]
fn who_is_ejected_from_a_ring_keeps_its_part_of_its_locality() {
    let groups = || vec![zone("a", 0, 10, &[1, 2, 3, 4]), zone("b", 0, 10, &[5, 6, 7, 8])];
    let ring = || cluster(|c| c.balancer = Balancer::RingHash { min_size: 1024, max_size: 8 << 20 });
    let weights = |ejected: &[u16]| {
        let load = Arc::<Load>::default();
        load.set_standing(Standing::Ejected(Reason::Consecutive5xx));
        let loads: Vec<_> = ejected.iter().map(|port| (*port, load.clone())).collect();
        let set = build(groups(), ring(), &loads);
        let pool = set.pools().next().unwrap();
        set.candidates().iter().take(pool.endpoints).map(|c| c.weight.get()).collect::<Vec<_>>()
    };
    let whole = weights(&[]);
    assert_eq!(whole, [whole[0]; 8]);
    assert_eq!(weights(&[1, 2, 3]), [whole[0]; 5]);
}

#[test]
fn shares_of_localities_add_up_however_far_apart_their_weights_are() {
    for weights in [&[1, 1, 1][..], &[1, u32::MAX - 1], &[u32::MAX - 9, 3, 3, 3], &[7, 11, 13, 17, 19]] {
        let groups = (0_u16..).zip(weights).map(|(n, weight)| zone(&n.to_string(), 0, *weight, &[n + 1]));
        let set = build(groups.collect(), weighted(&Balancer::least_request(), |_| {}), &[]);
        let shares: Vec<u32> = set.pools().map(|pool| pool.share.get()).collect();
        assert_eq!(shares.iter().sum::<u32>(), 1_000_000, "{weights:?}: {shares:?}");
        assert!(shares.iter().all(|share| *share > 0), "{weights:?}: {shares:?}");
        let heaviest = weights.iter().max().unwrap();
        let want = f64::from(*heaviest) / weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        let largest = f64::from(*shares.iter().max().unwrap()) / 1e6;
        assert!((largest - want).abs() < 1e-5, "{weights:?}: {shares:?}");
    }
}
