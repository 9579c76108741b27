//! Ring hash and Maglev: who gets a key, how little moves when somebody comes or goes, and what bounds the load.

use super::*;
use crate::policy::Hashing;

const KEYS: u64 = 20_000;

fn owners(picker: &dyn Picker) -> Vec<usize> {
    let mut keys = seeded(11);
    let pick = |_| Pick { hash: Some(keys(u64::MAX)), ..Pick::default() };
    (0..KEYS).map(pick).map(|pick| picker.pick(&pick, &mut |_| panic!("a hash needs no draw")).unwrap()).collect()
}

fn ring(weights: &[u32]) -> RingHash {
    RingHash::new(&candidates(weights), 1024, 8 << 20)
}

fn table(weights: &[u32]) -> Maglev {
    Maglev::new(&candidates(weights), 65_537)
}

#[test]
fn requests_of_one_key_stay_together() {
    for balancer in [Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }, Balancer::Maglev { table_size: 65_537 }]
    {
        let picker = |seed| picker_for(&balancer, candidates(&[1; 10]), &mut seeded(seed));
        assert_eq!(owners(&*picker(1)), owners(&*picker(2)), "{balancer:?}");
        let without = picker(1);
        let mut draw = seeded(3);
        let mut seen = [0; 10];
        (0..10_000).for_each(|_| seen[without.pick(&Pick::default(), &mut draw).unwrap()] += 1);
        assert!(seen.iter().all(|n| *n > 400), "{balancer:?}: without a hash any will do, {seen:?}");
    }
}

#[test]
fn the_ring_is_the_one_envoy_and_grpc_build() {
    // Entries as by gRFC A42: scale = min(ceil(least * minimum) / least, maximum).
    for (weights, min, max, want) in [
        (&[1, 1][..], 1024, 8 << 20, &[512, 512][..]),
        (&[1, 1, 1], 1024, 8 << 20, &[342, 342, 342]),
        (&[1, 2, 3], 6, 8 << 20, &[1, 2, 3]),
        (&[1, 1, 2], 3, 4, &[1, 1, 2]),
        (&[1, 1, 1, 1], 1, 2, &[1, 1, 1, 1]),
    ] {
        let ring = RingHash::new(&candidates(weights), min, max);
        let entries: Vec<_> = (0..weights.len()).map(|index| ring.entries(index)).collect();
        assert_eq!(entries, want, "{weights:?} {min} {max}");
    }
    // XXH64 of `address_0`, seed 0, is where the first entry lies: the key itself finds it.
    let two = ring(&[1, 1]);
    for (index, port) in [(0, 1), (1, 2)] {
        let hash = twox_hash::XxHash64::oneshot(0, format!("127.0.0.1:{port}_0").as_bytes());
        assert_eq!(two.pick(&Pick { hash: Some(hash), ..Pick::default() }, &mut |_| 0), Some(index));
    }
}

#[test]
fn a_large_ring_stays_within_its_bound() {
    let weights: Vec<u32> = [1].into_iter().chain([1_000_000; 50]).collect();
    // Whether the weights or the policy want more; and where policy wants less.
    for (min, max, least, most) in
        [(1024, 8 << 20, 65_000, 65_600), (8 << 20, 8 << 20, 65_000, 65_600), (1024, 1 << 15, 32_700, 32_820)]
    {
        let ring = RingHash::new(&candidates(&weights), min, max);
        let (all, lightest) = (ring.len(), ring.entries(0));
        assert!((least..=most).contains(&all), "{min} to {max}: {all}");
        assert!(lightest >= 1);
    }
    assert_eq!(
        RingHash::new(&candidates(&[1; 300]), 0, 0).pick(&Pick::default(), &mut |_| 5).map(|i| i < 300),
        Some(true)
    );
}

#[test]
fn metadata_can_say_where_an_endpoint_lies() {
    let mut moved = group(0, 1, &[(1, 1, Health::Healthy), (2, 1, Health::Healthy)]);
    let key = |name: &str| {
        let lb = [("hash_key".to_owned(), name.to_owned())].into();
        Arc::new(policy::EndpointMetadata { lb, ..Default::default() })
    };
    moved.endpoints[0].metadata = key("127.0.0.1:2");
    moved.endpoints[1].metadata = key("127.0.0.1:1");
    let moved = RingHash::new(&Candidates::of(endpoints(vec![moved])), 1024, 8 << 20);
    let swapped: Vec<_> = owners(&ring(&[1, 1])).into_iter().map(|index| 1 - index).collect();
    assert_eq!(owners(&moved), swapped);
}

#[test]
fn only_the_share_of_an_endpoint_that_goes_moves() {
    let before = [1; 20];
    // The last one goes: the indices of the others stay.
    let after = [1; 19];
    let moved = |old: Vec<usize>, new: Vec<usize>| {
        let (mut had, mut others) = (0, 0);
        for (old, new) in old.into_iter().zip(new) {
            match old {
                19 => had += 1,
                _ => others += usize::from(old != new),
            }
        }
        (had, others)
    };
    let (had, others) = moved(owners(&ring(&before)), owners(&ring(&after)));
    assert!(had > 500, "{had} keys were its own");
    // Each of 19 has 54 entries and not 52: that moves some.
    assert!(others < KEYS as usize / 20, "{others} keys of others moved on the ring");
    let small = |weights: &[u32]| RingHash::new(&candidates(weights), 19, 8 << 20);
    let (_, others) = moved(owners(&small(&before)), owners(&small(&after)));
    assert_eq!(others, 0, "with as many entries as before nothing else moves");
    let (had, others) = moved(owners(&table(&before)), owners(&table(&after)));
    assert!((900..1100).contains(&had), "{had} keys were its own");
    assert!(others < KEYS as usize / 20, "{others} keys of others moved in the table");

    let modulo = |len: usize| owners(&table(&[1])).into_iter().enumerate().map(move |(key, _)| key % len).collect();
    let (_, others) = moved(modulo(20), modulo(19));
    assert!(others > KEYS as usize / 2, "control: by remainder nearly everything moves");
}

#[test]
fn a_tried_endpoint_leaves_its_keys_to_the_next_and_takes_no_others() {
    for picker in [&ring(&[1; 8]) as &dyn Picker, &table(&[1; 8])] {
        let mut heirs = [0; 8];
        for key in 0..KEYS {
            let hash = Some(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let owner = picker.pick(&Pick { hash, ..Pick::default() }, &mut |_| 0).unwrap();
            for tried in 0..8 {
                let heir = picker.pick(&Pick { hash, tried: &[tried], ..Pick::default() }, &mut |_| 0).unwrap();
                assert!(heir != tried && (tried == owner || heir == owner), "{key}: {owner}, {heir} without {tried}");
                heirs[heir] += usize::from(tried == owner);
            }
        }
        assert!(heirs.iter().all(|n| *n > 1000), "not all to one neighbour: {heirs:?}");
    }
}

#[test]
fn the_table_is_dealt_out_by_weight_to_within_one_per_cent() {
    let weights = [1, 2, 5, 10, 20, 62];
    let table = table(&weights);
    for (index, weight) in weights.into_iter().enumerate() {
        let want = 65_537.0 * f64::from(weight) / 100.0;
        let off = (table.slots(index) as f64 - want).abs() / want;
        assert!(off < 0.01, "{} slots for weight {weight}", table.slots(index));
    }
    let odd = Maglev::new(&candidates(&[1; 3]), 8);
    assert_eq!((0..3).map(|index| odd.slots(index)).sum::<usize>(), 11, "the next prime");
}

/// Both balancers over candidates of these weights, with a bound or without.
fn bounded(weights: &[u32], factor: Option<u32>) -> [(Candidates, Box<dyn Picker>); 2] {
    [ring_policy(), Balancer::Maglev { table_size: 65_537 }].map(|balancer| {
        let set = candidates(weights).hashing(Hashing { balance_factor: factor, ..Hashing::default() });
        (set.clone(), picker_for(&balancer, set, &mut seeded(1)))
    })
}

fn ring_policy() -> Balancer {
    Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }
}

/// Holds requests of one key in flight; what each candidate has in the end.
fn hot((set, picker): &(Candidates, Box<dyn Picker>), requests: u32, mut each: impl FnMut(u32, &[u32])) -> Vec<u32> {
    let in_flight = || set.iter().map(Candidate::in_flight).collect::<Vec<_>>();
    let mut held = Vec::new();
    for sent in 1..=requests {
        let pick = Pick { hash: Some(0x5eed), ..Pick::default() };
        let index = picker.pick(&pick, &mut |_| panic!("a hash needs no draw")).unwrap();
        held.push(set[index].load_or_new().start());
        each(sent, &in_flight());
    }
    in_flight()
}

#[test]
fn a_hot_key_overflows_where_load_is_bounded() {
    for factor in [100, 125, 200] {
        // So many that a pick does not look at all of them, too.
        for (count, requests) in [(10, 200), (200, 1000)] {
            for set in &bounded(&vec![1; count], Some(factor)) {
                hot(set, requests, |sent, all| {
                    let most = (f64::from(sent * factor) / 100.0 / count as f64).ceil() as u32;
                    assert!(all.iter().all(|n| *n <= most), "{factor} %, {sent} in flight: {all:?}");
                });
            }
        }
    }
    for set in &bounded(&[1; 10], None) {
        let got = hot(set, 200, |_, _| {});
        assert_eq!(got.iter().max(), Some(&200), "control");
    }
}

#[test]
fn a_bound_on_load_goes_by_weight_and_leaves_others_where_they_are() {
    for set in &bounded(&[1, 3], Some(110)) {
        let got = hot(set, 400, |_, _| {});
        assert!(got[0] <= 110 && got[1] <= 330 && got[0] >= 70, "{got:?}");
    }
    let pairs = bounded(&[1; 10], Some(125)).into_iter().zip(bounded(&[1; 10], None));
    for ((set, bounded), (_, unbounded)) in pairs {
        assert_eq!(owners(&*bounded), owners(&*unbounded), "nobody is full");
        // Everybody has as much as all others, but one.
        let _even: Vec<_> = set.iter().flat_map(|c| [c.load_or_new().start(), c.load_or_new().start()]).collect();
        let _more: Vec<_> = (0..5).map(|_| set[3].load_or_new().start()).collect();
        let moved: Vec<(usize, usize)> = owners(&*unbounded).into_iter().zip(owners(&*bounded)).collect();
        assert!(moved.iter().all(|(owner, now)| (*owner == 3) != (owner == now)), "its keys move, no others");
        let heirs: std::collections::BTreeSet<usize> = moved.iter().filter(|(o, _)| *o == 3).map(|(_, n)| *n).collect();
        assert_eq!(heirs.len(), 9, "and not all to one neighbour");
    }
}

#[test]
fn a_bound_on_load_passes_over_what_was_tried() {
    for (set, picker) in bounded(&[1; 4], Some(100)) {
        let _full: Vec<_> = (0..9).map(|_| set[0].load_or_new().start()).collect();
        let mut draw = seeded(5);
        for _ in 0..200 {
            let at = |tried, draw: &mut Draw<'_>| picker.pick(&Pick { tried, ..Pick::default() }, draw).unwrap();
            assert!([2, 3].contains(&at(&[1], &mut draw)), "the first is full, the second was tried");
            assert_eq!(at(&[1, 2, 3], &mut draw), 0, "nothing else is left");
            assert!((1..4).contains(&at(&[0, 1, 2, 3], &mut draw)), "all were tried");
        }
    }
    for (_, picker) in bounded(&[], Some(125)) {
        assert_eq!(picker.pick(&Pick::default(), &mut seeded(1)), None);
    }
}

#[test]
fn a_cluster_bounds_the_load_of_its_endpoints() {
    let in_flight = |factor| {
        let hashing = Hashing { balance_factor: factor, ..Hashing::default() };
        let cluster = policy::Cluster { balancer: ring_policy(), hashing, ..policy::Cluster::new("c".into()) };
        let group = group(0, 1, &[1, 2, 3, 4].map(|port| (port, 1, Health::Healthy)));
        let set =
            ReadySet::build(endpoints(vec![group]), Arc::new(cluster), None, SECOND, &mut seeded(1), |_| ((), None));
        let pick = Pick { now: SECOND, hash: Some(7), ..Pick::default() };
        let sent = (0..40).map(|_| set.pick(&pick, &mut seeded(1)).unwrap().0);
        let _held: Vec<_> = sent.map(|index| set.candidates()[index].load_or_new().start()).collect();
        set.candidates().iter().map(Candidate::in_flight).max()
    };
    assert_eq!((in_flight(Some(150)), in_flight(None)), (Some(15), Some(40)));
}
