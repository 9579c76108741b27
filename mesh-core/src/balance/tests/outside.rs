//! Endpoints outside a client's subset: found by a session, and seen by nothing else.

use proptest::prelude::*;

use super::ready::{build, cluster};
use super::*;
use crate::health::Standing;
use crate::policy::{EndpointMetadata, LoadSpill, LocalityBalancing, PerMillion, SlowStart};
use Health::{Degraded, Draining, Healthy, Unhealthy, Unknown};

/// The set of the endpoints at these ports, of all of these localities; the others are outside.
fn part_of(
    all: &[LocalityEndpoints],
    ports: &dyn Fn(u16) -> bool,
    cluster: Arc<policy::Cluster>,
    loads: &[(u16, Arc<Load>)],
) -> (ReadySet<u16>, Arc<Outside<u16>>) {
    let is_in = |endpoint: &Endpoint| matches!(endpoint.address, Address::Socket(at) if ports(at.port()));
    let own = all.iter().map(|group| LocalityEndpoints {
        endpoints: group.endpoints.iter().filter(|endpoint| is_in(endpoint)).cloned().collect(),
        ..group.clone()
    });
    (build(own.collect(), cluster, loads), Arc::new(Outside::new(endpoints(all.to_vec()), || 0)))
}

/// In zones of their own.
fn zoned(groups: Vec<LocalityEndpoints>) -> Vec<LocalityEndpoints> {
    let zone = |(n, group): (usize, LocalityEndpoints)| {
        let locality = Locality { zone: n.to_string(), ..Locality::default() };
        LocalityEndpoints { locality, ..group }
    };
    groups.into_iter().enumerate().map(zone).collect()
}

fn fleet() -> Vec<LocalityEndpoints> {
    zoned(vec![
        group(0, 3, &[(1, 1, Healthy), (2, 1, Healthy), (3, 1, Draining), (4, 1, Unhealthy)]),
        group(0, 1, &[(11, 1, Unknown), (12, 1, Degraded)]),
        group(1, 1, &[(21, 1, Healthy), (22, 1, Healthy)]),
    ])
}

#[test]
fn a_session_finds_what_is_outside_and_by_the_rules_of_what_is_not() {
    let allowed = [Healthy, Unknown, Draining];
    let (set, outside) = part_of(&fleet(), &|port| port % 2 == 1, cluster(|_| {}), &[]);
    let set = set.with_outside(Some(outside.clone()), Left::All);
    assert_eq!((set.known(), set.len(), outside.slots_made()), (4, 3, false));
    for (port, found) in [(2, true), (22, true), (4, false), (12, false), (99, false), (1, true), (3, true)] {
        assert_eq!(set.pinned(&address(port), &allowed).is_some(), found, "{port}");
    }
    assert!(set.pinned(&address(4), &[Unhealthy]).is_some(), "where policy lets sessions stay there");
    assert_eq!(outside.kept().count(), 3, "2, 22 and 4: nothing is made of those that may not be used");
    let (second, last) = (set.find_anywhere(&address(2)).unwrap(), set.find_anywhere(&address(22)).unwrap());
    assert!(set.is_outside(second) && set.is_outside(last) && !set.is_usable(second));
    assert_eq!((set.find(&address(2)), set.rating(second, SECOND)), (None, None));
    assert_eq!(
        [second, last].map(|index| (set.locality(index), &*set.policy(index).0.locality.zone)),
        [(0, "0"), (2, "2")]
    );
    // What is known of it counts.
    let load = set.candidate(second).load_or_new();
    load.set_standing(Standing::Penalty);
    assert!(set.pinned(&address(2), &allowed).is_none());
    load.set_standing(Standing::Good);
    assert!(set.pinned(&address(2), &allowed).is_some());
    // The control: a set of which nothing is outside.
    let (set, _) = part_of(&fleet(), &|port| port % 2 == 1, cluster(|_| {}), &[]);
    assert!(set.pinned(&address(2), &allowed).is_none() && set.pinned(&address(1), &allowed).is_some());
}

#[test]
fn nothing_is_made_of_ten_thousand_endpoints_outside_before_a_session_names_one() {
    let list: Vec<_> = (1..=10_000).map(|port| (port, 1, Healthy)).collect();
    let (set, outside) = part_of(&[group(0, 1, &list)], &|port| port <= 10, cluster(|_| {}), &[]);
    let set = set.with_outside(Some(outside.clone()), Left::All);
    let mut draw = seeded(3);
    for port in 1..=10 {
        assert!(set.pick(&Pick::default(), &mut draw).is_some());
        assert!(set.pinned(&address(port), &[Healthy]).is_some());
    }
    assert!(set.find_kept(&address(500)).is_none() && !set.is_known(10));
    assert!(!outside.slots_made());
    assert!(set.pinned(&address(500), &[Healthy]).is_some());
    assert_eq!((outside.kept().count(), set.find_kept(&address(501))), (1, None));
    assert_eq!(set.find_kept(&address(500)), set.find_anywhere(&address(500)), "control");
}

#[test]
fn a_part_by_metadata_has_those_outside_that_its_route_wants() {
    let mut all = group(0, 1, &[(1, 1, Healthy), (2, 1, Healthy), (3, 1, Healthy), (4, 1, Healthy)]);
    let labels = std::collections::BTreeMap::from([("stage".to_owned(), "prod".to_owned())]);
    for endpoint in &mut all.endpoints[..3] {
        endpoint.metadata = Arc::new(EndpointMetadata { lb: labels.clone(), ..EndpointMetadata::default() });
    }
    let (set, outside) = part_of(&[all], &|port| port == 1, cluster(|_| {}), &[]);
    let subsets =
        policy::Subsets { fallback: policy::SubsetFallback::Fail, selectors: vec![["stage".to_owned()].into()] };
    let left = Left::of(outside.source(), &subsets, &labels);
    let set = set.with_outside(Some(outside), left);
    let found = [1, 2, 3, 4].map(|port| set.pinned(&address(port), &[Healthy]).is_some());
    assert_eq!(found, [true, true, true, false]);
}

#[test]
fn what_is_kept_goes_on_with_those_that_stay() {
    let all = [group(0, 1, &[(1, 1, Healthy), (2, 1, Healthy), (3, 1, Healthy)])];
    let (_, before) = part_of(&all, &|_| false, cluster(|_| {}), &[]);
    let next = Outside::new(endpoints(vec![group(0, 1, &[(9, 1, Healthy), (2, 5, Healthy)])]), || 0);
    let load = Arc::<Load>::default();
    assert!(!next.keep(&address(1), Some(&load), 1, |_| true), "it is gone");
    assert!(!next.keep(&address(2), Some(&load), 2, |_| false), "it is another one");
    assert!(next.keep(&address(2), Some(&load), 2, |endpoint| endpoint.weight.get() == 5));
    let kept: Vec<_> = next.kept().map(|(policy, load, own)| (policy.address.clone(), load.cloned(), *own)).collect();
    assert!(matches!(&kept[..], [(at, Some(own), 2)] if *at == address(2) && Arc::ptr_eq(own, &load)));
    assert_eq!(before.kept().count(), 0);
}

/// What is asked of a set, in this order.
#[derive(Clone, Debug)]
enum Asked {
    Pick { tried: Vec<usize>, away_from: Vec<usize>, hash: Option<u64> },
    Away(usize),
    Busy(usize),
}

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let few = || proptest::collection::vec(0_usize..9, 0..3);
    let one = prop_oneof![
        6 => (few(), few(), proptest::option::of(any::<u64>()))
            .prop_map(|(tried, away_from, hash)| Asked::Pick { tried, away_from, hash }),
        1 => (0_usize..9).prop_map(Asked::Away),
        1 => (0_usize..9).prop_map(Asked::Busy),
    ];
    proptest::collection::vec(one, 1..40)
}

fn policies() -> impl Strategy<Value = Arc<policy::Cluster>> {
    let balancer = proptest::sample::select(each_balancer());
    (balancer, any::<bool>(), any::<bool>(), any::<bool>(), 0_u32..100).prop_map(
        |(balancer, weighted, ramp, spill, panic)| {
            cluster(|cluster| {
                cluster.balancer = balancer;
                cluster.locality = LocalityBalancing {
                    weighted,
                    panic_threshold: Some(PerMillion::new(panic * 10_000)),
                    spill: spill.then_some(LoadSpill { low: 1, high: 2 }),
                    ..LocalityBalancing::default()
                };
                let window = 100 * SECOND;
                cluster.slow_start =
                    ramp.then_some(SlowStart { window, aggression: 1_000_000, min_share: PerMillion::new(100_000) });
            })
        },
    )
}

fn places() -> impl Strategy<Value = Vec<LocalityEndpoints>> {
    let health = proptest::sample::select(vec![Healthy, Healthy, Healthy, Unknown, Degraded, Unhealthy, Draining]);
    let groups =
        proptest::collection::vec((0_u32..2, 1_u32..4, proptest::collection::vec((1_u32..4, health), 1..6)), 1..4);
    groups.prop_map(|groups| {
        let mut port = 0;
        let groups = groups.into_iter().map(|(priority, weight, members)| {
            let members = members.into_iter().map(|(weight, health)| {
                port += 1;
                (port, weight, health)
            });
            group(priority, weight, &members.collect::<Vec<_>>())
        });
        zoned(groups.collect())
    })
}

/// What a set says to whoever asks it all this with the same draws. Those `outside` have been tried as well.
fn answers(set: &ReadySet<u16>, asked: &[Asked], outside: &[usize]) -> Vec<String> {
    let (mut draw, mut said, mut now) = (seeded(11), Vec::new(), SECOND);
    let mut flying = Vec::new();
    for one in asked {
        now += SECOND / 10;
        match one {
            Asked::Pick { tried, away_from, hash } => {
                let own = |all: &[usize]| all.iter().copied().filter(|index| *index < set.known()).collect::<Vec<_>>();
                let (tried, away_from) = ([own(tried), outside.to_vec()].concat(), own(away_from));
                let pick = Pick { now, tried: &tried, hash: *hash, away_from: &away_from };
                said.push(format!("{:?} of {:?}", set.pick(&pick, &mut draw), set.choices(&pick)));
                said.push(format!("{:?}", (set.has_elsewhere(&pick, SECOND), set.probe_target(&mut draw))));
            }
            Asked::Away(index) if *index < set.known() => set.candidates()[*index].load_or_new().unreachable(now),
            Asked::Busy(index) if *index < set.known() => flying.push(set.candidates()[*index].load_or_new().start()),
            Asked::Away(_) | Asked::Busy(_) => {}
        }
        let pools: Vec<_> = set.pools().collect();
        let ratings: Vec<_> = (0..set.known()).map(|index| set.rating(index, now)).collect();
        let whole = (set.len(), set.known(), set.priority(), set.availability(), set.is_away(), set.is_reachable(now));
        said.push(format!("{pools:?} {ratings:?} {whole:?} {}", set.passes_over()));
    }
    said
}

proptest! {
    #[test]
    fn a_set_picks_as_if_nothing_were_outside(
        all in places(), subset in any::<u32>(), policy in policies(), asked in asked(),
    ) {
        let is_in = |port: u16| subset >> (port % 32) & 1 == 1;
        let loads = || (1..20).filter(|port| port % 3 == 0).map(|port| {
            let load = Arc::<Load>::default();
            load.ramp_from(SECOND);
            (port, load)
        }).collect::<Vec<_>>();
        let (plain, _) = part_of(&all, &is_in, policy.clone(), &loads());
        let (set, outside) = part_of(&all, &is_in, policy, &loads());
        let set = set.with_outside(Some(outside), Left::All);
        // Sessions are at all of them, one is away, and each has requests in flight.
        let mut flying = Vec::new();
        let others = all.iter().flat_map(|group| &group.endpoints).filter(|e| set.find(&e.address).is_none());
        let beyond: Vec<usize> = others.map(|endpoint| {
            let every = [Healthy, Unknown, Degraded, Unhealthy, Draining];
            let (index, _) = set.pinned(&endpoint.address, &every).expect("it is outside");
            flying.push(set.candidate(index).load_or_new().start());
            index
        }).collect();
        beyond.iter().take(1).for_each(|index| set.candidate(*index).load_or_new().unreachable(SECOND));
        prop_assert_eq!(answers(&set, &asked, &beyond), answers(&plain, &asked, &[]));
    }
}
