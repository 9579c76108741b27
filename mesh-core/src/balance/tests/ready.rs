//! Priorities, health, localities, panic, slow start and spill-over around a picker.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::health::Standing;
use crate::policy::{Cluster, LoadSpill, LocalityBalancing, PerMillion, SlowStart, ZoneAware};
use Health::{Degraded, Draining, Healthy, Unhealthy, Unknown};

pub(super) fn cluster(change: impl FnOnce(&mut Cluster)) -> Arc<Cluster> {
    let mut cluster = Cluster { balancer: Balancer::Random, ..Cluster::new("c".into()) };
    change(&mut cluster);
    Arc::new(cluster)
}

/// Keeps the port for each endpoint; `loads` are those there are already.
pub(super) fn build(
    localities: Vec<LocalityEndpoints>,
    cluster: Arc<Cluster>,
    loads: &[(u16, Arc<Load>)],
) -> ReadySet<u16> {
    ReadySet::build(endpoints(localities), cluster, None, SECOND, &mut seeded(1), |endpoint| match &endpoint.address {
        Address::Socket(address) => {
            let load = loads.iter().find(|(port, _)| *port == address.port());
            (address.port(), load.map(|(_, load)| load.clone()))
        }
        other => panic!("{other}"),
    })
}

fn ready(localities: Vec<LocalityEndpoints>) -> ReadySet<u16> {
    build(localities, cluster(|_| {}), &[])
}

pub(super) fn hits(set: &ReadySet<u16>, ports: &[u16], pick: &Pick<'_>) -> Vec<usize> {
    let mut draw = seeded(9);
    let mut hits = vec![0; ports.len()];
    for _ in 0..30_000 {
        let port = *set.pick(pick, &mut draw).unwrap().1;
        hits[ports.iter().position(|other| *other == port).unwrap_or_else(|| panic!("{port} was picked"))] += 1;
    }
    hits
}

#[test]
fn only_what_is_usable_is_picked_while_there_is_enough_of_it() {
    let groups = || {
        vec![
            group(1, 1, &[(20, 1, Healthy)]),
            group(0, 1, &[(10, 1, Healthy), (11, 1, Unknown), (12, 1, Healthy), (13, 1, Draining)]),
        ]
    };
    let set = ready(groups());
    assert_eq!((set.priority(), set.known(), set.len()), (0, 5, 4));
    assert_fits(&hits(&set, &[10, 11, 12], &Pick::default()), &[1.0; 3], "priority 0");
    let usable: Vec<bool> = (0..5).map(|index| set.is_usable(index)).collect();
    assert_eq!((set.endpoints(), &usable[..]), (&[10, 11, 12, 13, 20][..], &[true, true, true, false, true][..]));
}

#[test]
fn a_priority_that_loses_endpoints_spills_over_and_comes_back() {
    let with = |unhealthy: u16| {
        let state = |n: u16| if n < unhealthy { Unhealthy } else { Healthy };
        let first: Vec<_> = (0..10).map(|n| (n, 1, state(n))).collect();
        let set = ready(vec![group(0, 1, &first), group(1, 1, &[(20, 1, Healthy)])]);
        let mut draw = seeded(9);
        (0..10_000).filter(|_| *set.pick(&Pick::default(), &mut draw).unwrap().1 == 20).count()
    };
    for (unhealthy, want) in [(0, 0), (2, 0), (3, 200), (5, 3000), (8, 7200), (10, 10_000), (4, 1600), (1, 0)] {
        let got = with(unhealthy);
        assert!(got.abs_diff(want) <= 200, "{unhealthy} of 10 unhealthy: {got} of 10,000 go on, not {want}");
    }
}

#[test]
fn nothing_usable_is_nothing_to_pick_unless_in_panic() {
    let groups = || vec![group(0, 1, &[(10, 1, Unhealthy), (11, 1, Unhealthy), (12, 1, Draining)])];
    let set = ready(groups());
    assert_eq!((set.is_empty(), set.known(), set.priority()), (true, 3, 0));
    assert_eq!(set.pick(&Pick::default(), &mut seeded(1)), None);
    let panics = |share| cluster(|c| c.locality.panic_threshold = Some(PerMillion::new(share)));
    let set = build(groups(), panics(500_000), &[]);
    assert_fits(&hits(&set, &[10, 11], &Pick::default()), &[1.0; 2], "all but what is about to go");
    assert!(build(groups(), panics(0), &[]).is_empty(), "0 switches it off");
    assert!(build(vec![group(0, 1, &[(12, 1, Draining)])], panics(500_000), &[]).is_empty());
    // Envoy's `fail_traffic_on_panic`: what is left does not bear it all.
    let some = || vec![group(0, 1, &[(1, 1, Healthy), (2, 1, Unhealthy), (3, 1, Unhealthy), (4, 1, Unhealthy)])];
    for balancer in [Balancer::Random, Balancer::RoundRobin, Balancer::Maglev { table_size: 7 }] {
        let fails = |fail_on_panic| {
            let zone_aware = Some(ZoneAware { fail_on_panic, ..ZoneAware::default() });
            let panic_threshold = Some(PerMillion::new(500_000));
            let locality = LocalityBalancing { panic_threshold, zone_aware, ..LocalityBalancing::default() };
            build(some(), cluster(|c| (c.locality, c.balancer) = (locality, balancer.clone())), &[])
        };
        assert!(fails(true).pick(&Pick::default(), &mut seeded(1)).is_none() && fails(true).is_empty());
        assert!(fails(false).pick(&Pick::default(), &mut seeded(1)).is_some(), "control");
    }
}

#[test]
fn an_endpoint_that_health_does_not_admit_is_not_picked() {
    let ejected = Arc::<Load>::default();
    ejected.set_standing(Standing::FailedCheck);
    let groups = || vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy), (12, 1, Degraded)])];
    let set = build(groups(), cluster(|_| {}), &[(10, ejected.clone())]);
    let mut got = hits(&set, &[10, 11, 12], &Pick::default());
    assert_eq!(got[0], 0);
    assert!(got[2] > 10_000, "a third healthy is half of what is needed: {got:?}");
    assert_eq!(set.pinned(&address(10), &[Healthy]), None);
    ejected.set_standing(Standing::Good);
    got = hits(&build(groups(), cluster(|_| {}), &[(10, ejected)]), &[10, 11, 12], &Pick::default());
    assert!(got[0] > 13_000, "{got:?}");
}

#[test]
fn an_endpoint_not_yet_checked_is_used_only_if_the_others_are_too_few() {
    let set = |unchecked: &[u16]| {
        let load = |standing| {
            let load = Arc::<Load>::default();
            load.set_standing(standing);
            load
        };
        let loads: Vec<_> = unchecked.iter().map(|port| (*port, load(Standing::Unchecked))).collect();
        build(vec![group(0, 1, &[10, 11, 12, 13].map(|port| (port, 1, Healthy)))], cluster(|_| {}), &loads)
    };
    let got = hits(&set(&[10]), &[10, 11, 12, 13], &Pick::default());
    assert_eq!(got[0], 0, "three of four are enough");
    let got = hits(&set(&[10, 11, 12, 13]), &[10, 11, 12, 13], &Pick::default());
    assert_fits(&got, &[1.0; 4], "nobody knows better");
}

#[test]
fn a_pinned_session_reaches_what_its_cluster_allows() {
    let set = ready(vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Draining), (12, 1, Unhealthy)])]);
    let at = |port, allowed: &[Health]| set.pinned(&address(port), allowed).map(|(_, port)| *port);
    assert_eq!(at(10, &[Healthy, Unknown]), Some(10));
    assert_eq!(at(11, &[Healthy, Unknown]), None);
    assert_eq!(at(11, &[Healthy, Draining]), Some(11));
    assert_eq!(at(12, &[Healthy, Draining]), None);
    assert_eq!(at(13, &[Healthy]), None);
}

#[test]
fn locality_weights_count_only_when_asked_for() {
    let groups = || {
        vec![group(0, 3, &[(10, 1, Healthy)]), group(0, 1, &[(20, 3, Healthy), (21, 1, Healthy), (22, 9, Unhealthy)])]
    };
    let weights = |weighted| {
        let set = build(groups(), cluster(|c| c.locality = LocalityBalancing { weighted, ..c.locality.clone() }), &[]);
        set.candidates().iter().take(3).map(|c| c.weight.get()).collect::<Vec<_>>()
    };
    assert_eq!(weights(false), [1, 3, 1]);
    // Two of three are healthy: 93 % of the weight of 1 is left.
    assert_eq!(weights(true), [1_000_000, 233_333, 77_778]);
    let weighted = cluster(|c| c.locality.weighted = true);
    let picks = hits(&build(groups(), weighted, &[]), &[10, 20, 21], &Pick::default());
    assert_fits(&picks, &[3.0, 0.7, 0.7 / 3.0], "locality weights");
}

#[test]
fn a_retry_can_go_to_another_priority() {
    for balancer in each_balancer() {
        let groups = vec![
            group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)]),
            group(1, 1, &[(20, 1, Healthy), (21, 1, Healthy)]),
            group(2, 1, &[(30, 1, Healthy)]),
        ];
        let set = build(groups, cluster(|c| c.balancer = balancer.clone()), &[]);
        // The ports of so many picks by indices to be chosen last, and by those whose priorities are to be left.
        let picked = |tried, away_from| -> BTreeSet<u16> {
            let (mut draw, mut hashes) = (seeded(3), seeded(4));
            let mut pick = || {
                let pick = Pick { tried, away_from, hash: Some(hashes(u64::MAX)), ..Pick::default() };
                *set.pick(&pick, &mut draw).unwrap().1
            };
            (0..500).map(|_| pick()).collect()
        };
        let is = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<_>>();
        assert!(picked(&[0], &[0]).is_subset(&is(&[20, 21])), "{balancer:?}");
        assert!(picked(&[], &[0]).is_subset(&is(&[20, 21])), "{balancer:?}: none is to be avoided");
        assert_eq!(picked(&[2], &[0]), is(&[21]), "{balancer:?}: one of the next takes nothing");
        assert_eq!(picked(&[2, 3], &[0]), is(&[30]), "{balancer:?}: nor does another");
        assert_eq!(picked(&[], &[0, 2]), is(&[30]), "{balancer:?}: two were tried");
        // The controls: all were, as usual; and who is only to come last leaves its neighbours alone.
        assert!(picked(&[], &[0, 2, 4]).iter().all(|port| *port < 20), "{balancer:?}");
        assert_eq!(picked(&[0], &[]), is(&[11]), "{balancer:?}");
    }
}

#[test]
fn where_there_is_no_other_priority_a_retry_can_go_to_another_locality() {
    let zone = |name: &str, endpoints: &[(u16, u32, Health)]| {
        let locality = crate::id::Locality { zone: name.to_owned(), ..crate::id::Locality::default() };
        LocalityEndpoints { locality, ..group(0, endpoints.len() as u32, endpoints) }
    };
    let near: Vec<_> = (10..18).map(|port| (port, 1, Healthy)).collect();
    for balancer in each_balancer() {
        let groups = vec![zone("a", &near), zone("b", &[(20, 1, Healthy)])];
        let set = build(groups, cluster(|c| c.balancer = balancer.clone()), &[]);
        let mut draw = seeded(3);
        let mut picked =
            |tried, away_from| *set.pick(&Pick { tried, away_from, ..Pick::default() }, &mut draw).unwrap().1;
        assert!((0..100).all(|_| picked(&[0], &[0]) == 20), "{balancer:?}");
        assert!((0..100).all(|_| picked(&[], &[0]) == 20), "{balancer:?}: none is to be avoided");
        assert!((0..100).all(|_| picked(&[8], &[8]) < 20), "{balancer:?}");
        assert!((0..100).all(|_| ![10, 20].contains(&picked(&[0, 8], &[0, 8]))), "{balancer:?}: both were tried");
        assert!((0..100).all(|_| picked(&[8], &[0]) < 20), "{balancer:?}: the other takes nothing");
        // Control: a retry that does not mind goes to a neighbour as well.
        assert!((0..100).any(|_| picked(&[0], &[]) < 20), "{balancer:?}");
    }
}

#[test]
fn a_retry_goes_past_a_priority_that_is_to_fail_in_panic() {
    // One healthy of so many, on the ports from `first`.
    let one_of = |priority, count: u16, first: u16| {
        let state = |port| if port == first { Healthy } else { Unhealthy };
        let all: Vec<_> = (first..first + count).map(|port| (port, 1, state(port))).collect();
        group(priority, 1, &all)
    };
    let set = |fail_on_panic| {
        let zone_aware = Some(ZoneAware { fail_on_panic, ..ZoneAware::default() });
        let panic_threshold = Some(PerMillion::new(200_000));
        let locality = LocalityBalancing { panic_threshold, zone_aware, ..LocalityBalancing::default() };
        build(vec![one_of(0, 6, 10), one_of(1, 4, 20), one_of(2, 4, 30)], cluster(|c| c.locality = locality), &[])
    };
    let first = set(true).find(&address(20)).unwrap();
    let retry = Pick { tried: &[first], away_from: &[first], ..Pick::default() };
    assert_eq!(hits(&set(true), &[20, 30], &retry), [0, 30_000]);
    // Control: where panic is no failure, the first priority is the one that has not been tried.
    assert!(set(false).pick(&retry, &mut seeded(1)).is_some_and(|(_, port)| *port < 20));
}

#[test]
fn unreachable_endpoints_come_after_others() {
    let dead = Arc::<Load>::default();
    dead.unreachable(SECOND);
    for balancer in each_balancer() {
        let groups = vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy), (12, 1, Healthy)])];
        let set = build(groups, cluster(|c| c.balancer = balancer.clone()), &[(11, dead.clone())]);
        let at = |now| Pick { now, ..Pick::default() };
        let mut draw = seeded(3);
        assert!((0..500).all(|_| *set.pick(&at(SECOND), &mut draw).unwrap().1 != 11), "{balancer:?}");
        let only = Pick { tried: &[0, 2], ..at(SECOND) };
        assert_eq!(set.pick(&only, &mut draw).map(|(_, port)| *port), Some(11), "{balancer:?}: nothing else is left");
    }
}

#[test]
fn where_nothing_of_a_priority_can_be_reached_the_next_one_serves_until_it_can() {
    let dead = [10, 11].map(|port| (port, Arc::<Load>::default()));
    for balancer in each_balancer() {
        let groups = vec![
            group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)]),
            group(1, 1, &[(20, 1, Healthy)]),
            group(2, 1, &[(30, 1, Healthy)]),
        ];
        let set = build(groups, cluster(|c| c.balancer = balancer.clone()), &dead);
        let ports = |now, tried: &[usize]| -> Vec<u16> {
            let mut draw = seeded(3);
            let mut ports: Vec<u16> =
                (0..200).map(|_| *set.pick(&Pick { now, tried, ..Pick::default() }, &mut draw).unwrap().1).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        };
        assert!(ports(SECOND, &[]).iter().all(|port| *port < 20), "{balancer:?}: control, all can be reached");
        dead[0].1.unreachable(SECOND);
        assert_eq!(ports(SECOND, &[]), [11], "{balancer:?}: one is left");
        dead[1].1.unreachable(SECOND);
        assert_eq!(ports(SECOND, &[]), [20], "{balancer:?}: none is left");
        assert_eq!(ports(SECOND, &[2]), [30], "{balancer:?}: and the retry goes further");
        assert!(set.is_reachable(SECOND));
        assert_eq!(ports(40 * SECOND, &[]), [20], "{balancer:?}: no request finds out whether they are back");
        assert!(set.passes_over() && !set.passes_over(), "{balancer:?}: somebody else is to");
        dead[1].1.reached();
        assert_eq!(
            ports(40 * SECOND, &[]),
            [11],
            "{balancer:?}: one of them is enough, and nobody finds out of the other"
        );
        dead[0].1.reached();
        set.passes_over();
        assert!(ports(40 * SECOND, &[]).iter().all(|port| *port < 20) && !set.passes_over(), "{balancer:?}");
    }
}

#[test]
fn a_priority_of_which_another_attempt_is_due_is_no_better_than_one_that_is_there() {
    let dead = [10, 20].map(|port| (port, Arc::<Load>::default()));
    let groups = || (0..3).map(|priority| group(priority, 1, &[(10 + 10 * priority as u16, 1, Healthy)]));
    for balancer in each_balancer() {
        let set = build(groups().collect(), cluster(|c| c.balancer = balancer.clone()), &dead);
        let picked = |now| *set.pick(&Pick { now, ..Pick::default() }, &mut seeded(3)).unwrap().1;
        dead[1].1.unreachable(SECOND);
        dead[0].1.unreachable(40 * SECOND);
        let choices = |now| set.choices(&Pick { now, ..Pick::default() });
        assert_eq!((picked(40 * SECOND), choices(40 * SECOND)), (30, vec![2]), "{balancer:?}: nobody finds out");
        // Where nobody is there one that is due is better than one that is not, and somebody is to look at both.
        let two = build(groups().take(2).collect(), cluster(|c| c.balancer = balancer.clone()), &dead);
        assert_eq!(*two.pick(&Pick { now: 40 * SECOND, ..Pick::default() }, &mut seeded(3)).unwrap().1, 20);
        assert!(two.passes_over(), "{balancer:?}");
        assert_eq!(*two.pick(&Pick { now: 90 * SECOND, ..Pick::default() }, &mut seeded(3)).unwrap().1, 10);
        assert!(two.passes_over(), "{balancer:?}: their time is over, and nobody is there");
        // Control: of one that is all there is requests find out.
        let one = build(groups().take(1).collect(), cluster(|c| c.balancer = balancer.clone()), &dead);
        assert_eq!(*one.pick(&Pick { now: 90 * SECOND, ..Pick::default() }, &mut seeded(3)).unwrap().1, 10);
        dead.iter().for_each(|(_, load)| load.reached());
    }
}

/// However many are away: a picker is not asked for ever.
#[test]
fn the_one_of_very_many_that_is_there_is_found() {
    let dead: Vec<_> = (10..209).map(|port| (port, Arc::<Load>::default())).collect();
    dead.iter().for_each(|(_, load)| load.unreachable(SECOND));
    let all: Vec<_> = (10..210).map(|port| (port, 1, Healthy)).collect();
    for balancer in each_balancer() {
        for groups in [vec![group(0, 1, &all)], vec![group(0, 1, &all[..100]), group(1, 1, &all[100..])]] {
            let set = build(groups, cluster(|c| c.balancer = balancer.clone()), &dead);
            let mut draw = seeded(3);
            for now in [SECOND, 40 * SECOND] {
                let pick = Pick { now, ..Pick::default() };
                assert!((0..100).all(|_| *set.pick(&pick, &mut draw).unwrap().1 == 209), "{balancer:?}");
                assert_eq!(set.choices(&pick), [199], "{balancer:?}");
            }
        }
    }
}

#[test]
fn a_set_of_which_nothing_can_be_reached_says_so() {
    let dead = Arc::<Load>::default();
    let set = build(vec![group(0, 1, &[(10, 1, Healthy)])], cluster(|_| {}), &[(10, dead.clone())]);
    assert!(set.is_reachable(SECOND) && !set.is_away());
    assert_eq!(set.availability(), Some(PerMillion::ALL));
    dead.unreachable(SECOND);
    assert!(!set.is_reachable(SECOND));
    assert_eq!((dead.overdue(SECOND), dead.overdue(40 * SECOND)), (None, Some(39 * SECOND - SECOND / 2)));
    // Another attempt is due after a time; that it can be reached is known with the next connection.
    assert!(set.is_reachable(40 * SECOND) && set.is_away());
    assert_eq!(set.availability(), None);
    dead.reached();
    assert_eq!((set.availability(), dead.overdue(40 * SECOND)), (Some(PerMillion::ALL), None));
    // One of two is enough, if it is known to be there; and those that could take nothing anyway are not waited for.
    let both = vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)])];
    dead.unreachable(SECOND);
    let other = Arc::<Load>::default();
    let both = build(both, cluster(|_| {}), &[(10, dead.clone()), (11, other.clone())]);
    assert_eq!(both.availability(), None);
    other.reached();
    assert_eq!(both.availability(), Some(PerMillion::ALL));
    let sick = build(vec![group(0, 1, &[(10, 1, Unhealthy)])], cluster(|_| {}), &[(10, dead)]);
    assert_eq!(sick.availability(), Some(PerMillion::NONE));
}

#[test]
fn a_set_says_whether_anything_of_another_priority_can_be_reached() {
    let loads = [11, 20].map(|port| (port, Arc::<Load>::default()));
    let groups = vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)]), group(1, 1, &[(20, 1, Healthy)])];
    let set = build(groups, cluster(|_| {}), &loads);
    let elsewhere =
        |now, tried: &[usize]| set.has_elsewhere(&Pick { now, tried, away_from: tried, ..Pick::default() }, 2 * SECOND);
    assert!(elsewhere(SECOND, &[0]) && !elsewhere(SECOND, &[0, 2]));
    loads[1].1.unreachable(SECOND);
    assert!(!elsewhere(SECOND, &[0]) && !elsewhere(90 * SECOND, &[0]), "it is away however long ago that was");
    // Beside those that were tried: who has answered meanwhile.
    loads[0].1.succeeded(SECOND, 3 * SECOND);
    assert!(elsewhere(4 * SECOND, &[0]) && !elsewhere(4 * SECOND, &[0, 1]) && !elsewhere(6 * SECOND, &[0]));
}

#[test]
fn a_set_says_how_much_it_can_take_without_those_in_panic() {
    // So many of ten are well in each priority.
    let priority = |number: usize, well: u16| {
        let state = |index| if index < well { Healthy } else { Unhealthy };
        let all: Vec<_> = (0..10).map(|index| (10 + 10 * number as u16 + index, 1, state(index))).collect();
        group(number as u32, 1, &all)
    };
    let available = |wells: &[u16], panic| {
        let groups = wells.iter().enumerate().map(|(number, well)| priority(number, *well)).collect();
        let panics = |c: &mut Cluster| c.locality.panic_threshold = Some(PerMillion::new(panic));
        build(groups, cluster(panics), &[]).availability().unwrap().get() / 10_000
    };
    let cases: [(&[u16], u32, u32); 8] = [
        (&[10], 100, 100),
        (&[7], 98, 98),
        (&[5], 70, 70),
        (&[1], 14, 0),
        (&[0], 0, 0),
        (&[1, 5], 84, 70),
        (&[1, 8], 100, 100),
        (&[], 0, 0),
    ];
    for (wells, calm, panics) in cases {
        assert_eq!((available(wells, 0), available(wells, 500_000)), (calm, panics), "{wells:?}");
    }
}

#[test]
fn months_change_nothing_of_what_was_over() {
    let day = 24 * 3600;
    let ports: Vec<u16> = (10..20).collect();
    let dead = Arc::<Load>::default();
    dead.unreachable(SECOND);
    // Half of the way round of a clock of milliseconds in 32 bits, and beyond the whole of it.
    for days in [1, 24, 25, 30, 49, 50, 60, 75, 100] {
        let now = Duration::from_secs(days * day);
        let set = warming(&Balancer::Random, &[(10, 1)]);
        let got = hits(&set, &ports, &Pick { now, ..Pick::default() });
        assert_fits(&got, &[1.0; 10], "long after a slow start");
        assert!(!dead.is_unreachable(now), "after {days} days");
    }
}

/// Ten endpoints on ports from 10, some of which began lately and start at a tenth of their share.
fn warming(balancer: &Balancer, began: &[(u16, u64)]) -> ReadySet<u16> {
    warming_among(10, 100_000, balancer, began)
}

fn warming_among(count: u16, min_share: u32, balancer: &Balancer, began: &[(u16, u64)]) -> ReadySet<u16> {
    let slow_start =
        SlowStart { window: Duration::from_secs(100), aggression: 1_000_000, min_share: PerMillion::new(min_share) };
    let cluster = cluster(|c| (c.balancer, c.slow_start) = (balancer.clone(), Some(slow_start)));
    let loads: Vec<_> = began
        .iter()
        .map(|(port, at)| {
            let load = Arc::<Load>::default();
            load.ramp_from(Duration::from_secs(*at));
            (*port, load)
        })
        .collect();
    let ports = (10..10 + count).map(|port| (port, 1, Healthy));
    build(vec![group(0, 1, &ports.collect::<Vec<_>>())], cluster, &loads)
}

#[test]
fn a_new_endpoint_ramps_up_and_a_second_one_does_not_disturb_it() {
    let ports: Vec<u16> = (10..20).collect();
    for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::least_request()] {
        // The first began at 0 s, the second at 50 s.
        let set = warming(&balancer, &[(10, 0), (11, 50)]);
        for (now, first, second) in [(60, 0.6, 0.1), (80, 0.8, 0.3), (110, 1.0, 0.6), (200, 1.0, 1.0)] {
            let got = hits(&set, &ports, &Pick { now: Duration::from_secs(now), ..Pick::default() });
            let full = got[2..].iter().sum::<usize>() as f64 / 8.0;
            for (got, want) in [(got[0], first), (got[1], second)] {
                let share = got as f64 / full;
                assert!((share - want).abs() <= 0.1 * want, "{balancer:?} at {now} s: {share:.2} instead of {want}");
            }
        }
        let control = hits(&warming(&balancer, &[]), &ports, &Pick { now: Duration::from_secs(1), ..Pick::default() });
        assert!(control[0] > 2700, "control: without a ramp it gets its share at once");
    }
}

#[test]
fn a_new_endpoint_has_its_share_whatever_is_drawn_r33() {
    let set = warming(&Balancer::RoundRobin, &[(10, 0), (11, 50)]);
    for seed in 0..1000 {
        let mut draw = seeded(seed);
        // Of a share: at 75 s one has ramped up to 0.75, the other to 0.25.
        let mut picked = [0; 10];
        for _ in 0..450 {
            let pick = Pick { now: Duration::from_secs(75), ..Pick::default() };
            picked[usize::from(*set.pick(&pick, &mut draw).unwrap().1 - 10)] += 1;
        }
        for (got, want) in [(picked[0], 37.5), (picked[1], 12.5)] {
            assert!((f64::from(got) - want).abs() <= 20.0, "{got} of {want} with seed {seed}");
        }
        let most = picked[2..].iter().max().unwrap() - picked[2..].iter().min().unwrap();
        assert!(most <= 1, "the others take turns, with seed {seed}: {picked:?}");
    }
}

/// Picks of the first of so many endpoints, of 30,000.
fn picks_of_the_first(set: &ReadySet<u16>, now: Duration) -> f64 {
    let mut draw = seeded(9);
    let pick = Pick { now, ..Pick::default() };
    (0..30_000).filter(|_| *set.pick(&pick, &mut draw).unwrap().1 == 10).count() as f64
}

/// Five standard deviations of a share of 30,000 picks.
fn five_deviations(share: f64) -> f64 {
    5.0 * (30_000.0 * share * (1.0 - share)).sqrt()
}

#[test]
fn new_endpoints_get_no_more_than_their_share_however_many_they_are() {
    let new = |count: u16| (11..10 + count).map(|port| (port, 1)).collect::<Vec<_>>();
    // An old one among very many: most picks are settled without the picker.
    for (count, least) in [(21, 100_000), (21, 20_000), (401, 20_000)] {
        for balancer in [Balancer::RoundRobin, Balancer::Random, Balancer::least_request(), Balancer::PeakEwma] {
            let share = 1.0 / (1.0 + f64::from(count - 1) * f64::from(least) / 1e6);
            let got = picks_of_the_first(&warming_among(count, least, &balancer, &new(count)), 2 * SECOND);
            let off = (got - 30_000.0 * share).abs();
            assert!(off < five_deviations(share), "{balancer:?}: {got} of 30,000, not {share:.3}, for 1 of {count}");
            let even = 1.0 / f64::from(count);
            let got = picks_of_the_first(&warming_among(count, least, &balancer, &[]), 2 * SECOND);
            let off = (got - 30_000.0 * even).abs();
            assert!(off < five_deviations(even), "{balancer:?}: control, without a ramp: {got} for 1 of {count}");
        }
    }
}

#[test]
fn what_is_settled_without_the_picker_avoids_what_was_tried_or_cannot_be_reached() {
    let new: Vec<_> = (11..411).map(|port| (port, 1)).collect();
    let dead = Arc::<Load>::default();
    dead.unreachable(2 * SECOND);
    let set = warming_among(401, 20_000, &Balancer::Random, &new);
    set.candidates()[0].share_load(&dead);
    let mut draw = seeded(3);
    for tried in 1..200 {
        let pick = Pick { now: 2 * SECOND, tried: &[tried], ..Pick::default() };
        let (index, _) = set.pick(&pick, &mut draw).unwrap();
        assert!(index != 0 && index != tried, "{index}");
    }
}

#[test]
fn a_ramp_goes_by_those_of_its_own_priority() {
    let slow_start = SlowStart { window: 100 * SECOND, aggression: 1_000_000, min_share: PerMillion::new(10_000) };
    let cluster = cluster(|c| (c.balancer, c.slow_start) = (Balancer::Random, Some(slow_start)));
    let loads = [10, 11].map(|port| {
        let load = Arc::<Load>::default();
        load.ramp_from(SECOND);
        (port, load)
    });
    let set = build(
        vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)]), group(1, 1, &[(20, 1, Healthy)])],
        cluster,
        &loads,
    );
    let mut draws = 0;
    let mut draw = seeded(1);
    for _ in 0..1000 {
        set.pick(&Pick { now: 2 * SECOND, ..Pick::default() }, &mut |below| {
            draws += 1;
            draw(below)
        });
    }
    assert_eq!(draws, 2000, "who is new among new ones is picked at once, whatever a standby is");
}

#[test]
fn when_all_are_new_they_share_as_ever_and_hashing_knows_no_ramp() {
    let all: Vec<(u16, u64)> = (10..20).map(|port| (port, 1)).collect();
    let ports: Vec<u16> = (10..20).collect();
    let set = warming(&Balancer::Random, &all);
    let got = hits(&set, &ports, &Pick { now: 2 * SECOND, ..Pick::default() });
    assert_fits(&got, &[1.0; 10], "all new");
    let ring = Balancer::RingHash { min_size: 1024, max_size: 1024 };
    let (old, new) = (warming(&ring, &[]), warming(&ring, &[(10, 1)]));
    for key in 0..1000_u64 {
        let pick = Pick { now: 2 * SECOND, hash: Some(key.wrapping_mul(0x9e37_79b9_7f4a_7c15)), ..Pick::default() };
        assert_eq!(old.pick(&pick, &mut seeded(1)), new.pick(&pick, &mut seeded(1)));
    }
}

#[test]
fn a_busy_zone_spills_over_and_an_idle_one_serves_alone() {
    let with = |spill| {
        let groups = vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy)]), group(1, 1, &[(20, 1, Healthy)])];
        build(groups, cluster(|c| c.locality.spill = spill), &[])
    };
    let policy = || LoadSpill { low: 2, high: 10 };
    let (spilling, control) = (with(Some(policy())), with(None));
    let none = |set: &ReadySet<u16>| hits(set, &[10, 11, 20], &Pick::default())[2];
    assert_eq!(none(&spilling), 0);
    let busy = |set: &ReadySet<u16>| -> Vec<InFlight> {
        let loads = set.candidates().iter().take(2).map(|c| c.load_or_new().clone());
        loads.flat_map(|load| std::iter::repeat_with(move || load.start()).take(12)).collect()
    };
    let (requests, _others) = (busy(&spilling), busy(&control));
    assert!(none(&spilling) > 29_000, "all of it in the end");
    assert_eq!(none(&control), 0, "control");
    // Endpoints change in the middle of it: that is no reason to begin anew.
    let first = |set: &ReadySet<u16>| *set.pick(&Pick::default(), &mut seeded(4)).unwrap().1;
    assert_eq!(first(&with(Some(policy())).following(&spilling)), 20);
    assert_ne!(first(&with(Some(policy()))), 20, "control");
    drop(requests);
    let back = none(&spilling);
    assert!((1..1000).contains(&back), "it comes back by and by: {back}");
    assert_eq!(none(&spilling), 0);
}

#[test]
fn a_busy_zone_spills_over_to_nobody_who_cannot_be_reached() {
    let zone = |priority, name: &str, port: u16| LocalityEndpoints {
        locality: Locality { zone: name.to_owned(), ..Locality::default() },
        ..group(priority, 1, &[(port, 1, Healthy)])
    };
    let groups = vec![zone(0, "own", 10), zone(1, "near", 20), zone(1, "gone", 21), zone(2, "far", 30)];
    for weighted in [false, true] {
        let locality =
            LocalityBalancing { weighted, spill: Some(LoadSpill { low: 0, high: 1 }), ..LocalityBalancing::default() };
        let set = build(groups.clone(), cluster(|c| c.locality = locality), &[]);
        let load = |port| set.candidates()[set.find(&address(port)).unwrap()].load_or_new().clone();
        let _busy = load(10).start();
        let now = 100 * SECOND;
        let of = || hits(&set, &[10, 20, 21, 30], &Pick { now, ..Pick::default() });
        of();
        assert_fits(&of(), &[0.0, 1.0, 1.0, 0.0], "all of it in the end");
        // For each that is gone as well, where the others' requests go.
        for (gone, shares) in [(21, [0.0, 1.0, 0.0, 0.0]), (20, [0.0, 0.0, 0.0, 1.0]), (30, [1.0, 0.0, 0.0, 0.0])] {
            load(gone).unreachable(now);
            assert_fits(&of(), &shares, &format!("without {gone}, by weight {weighted}"));
        }
    }
}

#[test]
fn pools_say_who_gets_how_much_and_why() {
    let state = |n: u16| if n < 5 { Unhealthy } else { Healthy };
    let half = || group(0, 1, &(0..10).map(|n| (n, 1, state(n))).collect::<Vec<_>>());
    let pool = |priority, share, endpoints| PoolExplanation {
        priority,
        locality: None,
        share: PerMillion::new(share),
        panic: false,
        degraded: false,
        endpoints,
    };
    let pools = |groups, panic| {
        let panic = Some(PerMillion::new(panic));
        let set = build(groups, cluster(|c| c.locality.panic_threshold = panic), &[]);
        set.pools().collect::<Vec<_>>()
    };
    let standby = || group(1, 1, &[(20, 1, Healthy), (21, 1, Healthy)]);
    assert_eq!(pools(vec![half(), standby()], 0), [pool(0, 700_000, 5), pool(1, 300_000, 2)]);
    assert_eq!(
        pools(vec![half(), group(0, 1, &[(30, 1, Degraded)])], 0),
        [pool(0, 833_334, 5), PoolExplanation { degraded: true, ..pool(0, 166_666, 1) }],
    );
    assert_eq!(pools(vec![half()], 600_000), [PoolExplanation { panic: true, ..pool(0, 1_000_000, 10) }]);
    assert_eq!(pools(vec![group(0, 1, &[(20, 1, Healthy)]), standby()], 0)[1].share, PerMillion::NONE);
}

#[test]
fn a_rating_says_what_the_picker_goes_by() {
    let groups = || vec![group(0, 1, &[(10, 1, Healthy), (11, 3, Healthy), (12, 1, Healthy), (13, 1, Draining)])];
    let with = |balancer| build(groups(), cluster(|c| c.balancer = balancer), &[]);
    let score = |set: &ReadySet<u16>, index| set.rating(index, SECOND).unwrap().score;

    let set = with(Balancer::least_request());
    let _held: Vec<_> = (0..6).map(|_| set.candidates()[1].load_or_new().start()).collect();
    assert_eq!((score(&set, 0), score(&set, 1)), (Some(Score::InFlight(0.0)), Some(Score::InFlight(2.0))));
    assert_eq!(set.rating(1, SECOND).unwrap().weight, 3);
    assert_eq!(set.rating(3, SECOND), None, "it cannot be picked");

    let set = with(Balancer::PeakEwma);
    set.candidates()[0].load_or_new().succeeded(Duration::from_millis(8), SECOND);
    let Some(Score::Cost(cost)) = score(&set, 0) else { panic!("{set:?}") };
    assert!(cost.abs_diff(Duration::from_millis(8)) < Duration::from_micros(10), "{cost:?}");
    assert_eq!(score(&set, 1), Some(Score::Cost(Duration::ZERO)), "nothing is known of it");

    let settings = policy::WeightedRoundRobin { blackout_period: Duration::ZERO, ..Default::default() };
    let set = with(Balancer::WeightedRoundRobin(settings.clone()));
    for (index, utilization) in [(0, 0.5), (1, 0.125)] {
        let report = EndpointReport { requests_per_second: 100.0, utilization, ..EndpointReport::default() };
        set.candidates()[index].load_or_new().report(&report, &settings, SECOND);
    }
    set.pick(&Pick { now: SECOND, ..Pick::default() }, &mut seeded(1));
    let Some(Score::Weight(weight)) = score(&set, 0) else { panic!("{set:?}") };
    assert!((weight - 0.25).abs() < 1e-3 && score(&set, 1) == Some(Score::Weight(1.0)), "{weight}");

    let set = with(Balancer::Prequal(policy::Prequal::default()));
    for (index, in_flight) in [(0, 1), (0, 1), (2, 50)] {
        set.candidates()[index].load_or_new().report_load(in_flight, Some(Duration::from_millis(5)), 0, SECOND);
        (0..8).for_each(|_| set.reported(index, SECOND));
    }
    let hot = |index| match score(&set, index) {
        Some(Score::Probed { hot, latency, .. }) => Some((hot, latency.as_millis())),
        _ => None,
    };
    assert_eq!((hot(0), hot(1), hot(2)), (Some((false, 5)), None, Some((true, 5))));

    assert_eq!(score(&with(Balancer::Random), 0), None);
    let rating = warming(&Balancer::Random, &[(10, 0)]).rating(0, 30 * SECOND).unwrap();
    assert!((rating.ramp - 0.3).abs() < 1e-3, "{rating:?}");
}

#[test]
fn probes_go_by_weight() {
    let probes = |weights: [u32; 3]| {
        let list: Vec<_> = (10..).zip(weights).map(|(port, weight)| (port, weight, Healthy)).collect();
        let set = ready(vec![group(0, 1, &[(1, 1, Unhealthy)]), group(0, 1, &list)]);
        let (mut draw, mut hits) = (seeded(4), vec![0; 3]);
        for _ in 0..30_000 {
            let index = set.probe_target(&mut draw).unwrap();
            hits[usize::from(set.endpoints()[index] - 10)] += 1;
        }
        hits
    };
    assert_fits(&probes([1, 2, 7]), &[1.0, 2.0, 7.0], "by weight");
    assert_fits(&probes([5; 3]), &[1.0; 3], "control: equal weights");
    assert_eq!(ready(vec![group(0, 1, &[(10, 1, Healthy)])]).probe_target(&mut seeded(1)), None, "no choice");
}

#[derive(Debug)]
struct Last(usize);

impl Picker for Last {
    fn pick(&self, _pick: &Pick<'_>, _draw: &mut Draw<'_>) -> Option<usize> {
        self.0.checked_sub(1)
    }
}

#[test]
fn a_picker_of_the_callers_own_takes_the_place_of_policys() {
    let make: Arc<MakePicker> = Arc::new(|cluster, candidates, _| {
        (cluster.name.as_str() == "c").then(|| Box::new(Last(candidates.len())) as Box<dyn Picker>)
    });
    let groups = vec![group(0, 1, &[(10, 1, Healthy), (11, 1, Healthy), (12, 1, Unhealthy)])];
    let set = ReadySet::build(endpoints(groups), cluster(|_| {}), Some(make), SECOND, &mut seeded(1), |_| ((), None));
    assert!((0..100).all(|_| set.pick(&Pick::default(), &mut seeded(1)).unwrap().0 == 1));
}

fn health() -> impl Strategy<Value = Health> {
    proptest::sample::select(vec![Healthy, Unknown, Degraded, Unhealthy, Draining])
}

proptest! {
    #[test]
    fn whatever_the_endpoints_a_pick_is_usable_and_never_draining(
        groups in proptest::collection::vec(
            (0_u32..3, 1_u32..5, proptest::collection::vec((1_u16..30, 1_u32..9, health()), 0..6)), 0..5),
        balancer in proptest::sample::select(each_balancer()),
        weighted: bool,
        panic in 0_u32..=1_000_000,
        tried in proptest::collection::vec(0_usize..20, 0..4),
        seed: u64,
    ) {
        let groups: Vec<_> = groups.iter().map(|(p, w, list)| group(*p, *w, list)).collect();
        let cluster = cluster(|c| {
            c.balancer = balancer;
            c.locality.weighted = weighted;
            c.locality.panic_threshold = Some(PerMillion::new(panic));
        });
        let set = build(groups, cluster, &[]);
        let mut draw = seeded(seed);
        let none: &[usize] = &[];
        for (tried, away_from) in [(&tried[..], none), (&tried[..], &tried[..]), (none, &tried[..])] {
            let pick = Pick { tried, away_from, ..Pick::default() };
            match set.pick(&pick, &mut draw) {
                None => prop_assert!(set.is_empty()),
                Some((index, _)) => {
                    prop_assert!(set.is_usable(index));
                    prop_assert_ne!(set.candidates().policy(index).1.health, Draining);
                }
            }
        }
    }
}
