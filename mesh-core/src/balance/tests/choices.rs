//! Who a pick is one of, for people who ask.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::ready::{build, cluster};
use super::*;
use crate::policy::{LoadSpill, PerMillion};
use Health::{Draining, Healthy, Unhealthy};

/// Healthy endpoints at these ports, in a zone.
fn zone(name: &str, priority: u32, ports: &[u16]) -> LocalityEndpoints {
    let all: Vec<_> = ports.iter().map(|port| (*port, 1, Healthy)).collect();
    let locality = Locality { zone: name.to_owned(), ..Locality::default() };
    LocalityEndpoints { locality, ..group(priority, 1, &all) }
}

/// Ports of those that could be picked, and of those that are in very many picks.
fn told_and_picked(set: &ReadySet<u16>, pick: &Pick<'_>) -> (BTreeSet<u16>, BTreeSet<u16>) {
    let mut draw = seeded(5);
    let told = set.choices(pick).into_iter().map(|index| set.endpoints()[index]).collect();
    let picked = (0..3_000).filter_map(|_| set.pick(pick, &mut draw)).map(|(_, port)| *port).collect();
    (told, picked)
}

#[test]
fn the_choices_are_those_that_a_pick_gives() {
    let group = |priority, ports: &[(u16, Health)]| {
        group(priority, 1, &ports.iter().map(|(port, health)| (*port, 1, *health)).collect::<Vec<_>>())
    };
    let set = build(
        vec![
            group(0, &[(10, Healthy), (11, Healthy), (12, Unhealthy), (13, Draining), (14, Unhealthy)]),
            group(1, &[(20, Healthy), (21, Healthy)]),
        ],
        cluster(|_| {}),
        &[],
    );
    // By index: 10, 11, the unhealthy, the draining, 20, 21.
    let (ten, eleven) = (set.find(&address(10)).unwrap(), set.find(&address(11)).unwrap());
    let (one, both, none): (&[usize], &[usize], &[usize]) = (&[ten], &[ten, eleven], &[]);
    let check = |tried, away_from, now, want: &[u16]| {
        let pick = Pick { tried, away_from, now, ..Pick::default() };
        let (told, picked) = told_and_picked(&set, &pick);
        assert_eq!((told, picked), (want.iter().copied().collect(), want.iter().copied().collect()), "{pick:?}");
    };
    check(none, none, SECOND, &[10, 11, 20, 21]);
    check(one, none, SECOND, &[11, 20, 21]);
    check(both, none, SECOND, &[10, 11, 20, 21]);
    check(both, one, SECOND, &[20, 21]);
    check(none, one, SECOND, &[20, 21]);
    set.candidates()[ten].load_or_new().unreachable(2 * SECOND);
    check(none, none, 2 * SECOND, &[11, 20, 21]);
    set.candidates()[eleven].load_or_new().unreachable(2 * SECOND);
    check(none, none, 2 * SECOND, &[20, 21]);
}

#[test]
fn in_one_priority_the_choices_are_those_of_another_locality() {
    for weighted in [false, true] {
        let zones = vec![zone("a", 0, &[10, 11]), zone("b", 0, &[20]), zone("c", 0, &[30, 31])];
        let set = build(zones, cluster(|c| c.locality.weighted = weighted), &[]);
        let at = |port| set.find(&address(port)).unwrap();
        let left = [at(10), at(20)];
        let (told, picked) = told_and_picked(&set, &Pick { away_from: &left, ..Pick::default() });
        assert_eq!((told, picked), (BTreeSet::from([30, 31]), BTreeSet::from([30, 31])));
    }
}

#[test]
fn a_retry_in_another_priority_goes_as_the_balancer_says() {
    let far = LocalityEndpoints { locality: Locality::default(), ..group(1, 1, &[(20, 9, Healthy), (21, 1, Healthy)]) };
    let set = build(vec![zone("near", 0, &[10]), far.clone()], cluster(|_| {}), &[]);
    let retry = Pick { away_from: &[0], ..Pick::default() };
    assert_fits(&super::ready::hits(&set, &[20, 21], &retry), &[9.0, 1.0], "by weight");
    let ring = cluster(|c| c.balancer = Balancer::RingHash { min_size: 1024, max_size: 1024 });
    let set = build(vec![zone("near", 0, &[10]), far], ring, &[]);
    let (_, picked) = told_and_picked(&set, &Pick { hash: Some(7), ..retry });
    assert_eq!(picked.len(), 1, "one key, one endpoint");
}

proptest! {
    #[test]
    fn whatever_is_picked_is_among_the_choices(
        groups in proptest::collection::vec(
            (0_u32..3, 0_u8..3, proptest::collection::vec((1_u16..30, 1_u32..9, any::<bool>()), 0..6)), 0..5),
        balancer in proptest::sample::select(each_balancer()),
        weighted: bool,
        panic in 0_u32..=1_000_000,
        tried in proptest::collection::vec(0_usize..20, 0..4),
        unreachable in proptest::collection::vec(0_usize..20, 0..6),
        spills: bool,
        seed: u64,
    ) {
        let groups: Vec<_> = groups.iter().map(|(priority, zone, list)| {
            let health = |healthy: bool| if healthy { Healthy } else { Unhealthy };
            let list: Vec<_> = list.iter().map(|(port, weight, well)| (*port, *weight, health(*well))).collect();
            let locality = Locality { zone: zone.to_string(), ..Locality::default() };
            LocalityEndpoints { locality, ..group(*priority, 1, &list) }
        }).collect();
        let cluster = cluster(|c| {
            c.balancer = balancer;
            c.locality.weighted = weighted;
            c.locality.panic_threshold = Some(PerMillion::new(panic));
            c.locality.spill = spills.then_some(LoadSpill { low: 0, high: 0 });
        });
        let set = build(groups, cluster, &[]);
        let now = 2 * SECOND;
        let known = set.known();
        let unreachable = unreachable.iter().filter(|index| **index < known);
        unreachable.for_each(|index| set.candidates()[*index].load_or_new().unreachable(now));
        let mut draw = seeded(seed);
        let none: &[usize] = &[];
        for (tried, away_from) in [(none, none), (&tried[..], none), (&tried[..], &tried[..]), (none, &tried[..])] {
            let pick = Pick { tried, away_from, now, hash: Some(seed) };
            for _ in 0..20 {
                let picked = set.pick(&pick, &mut draw).map(|(index, _)| index);
                let choices = set.choices(&pick);
                prop_assert!(picked.is_none_or(|index| choices.contains(&index)), "{pick:?}: {picked:?}, {choices:?}");
            }
        }
    }
}
