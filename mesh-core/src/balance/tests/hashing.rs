//! Ring hash and Maglev: who gets a key, and how little moves when somebody comes or goes.

use super::*;

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
    let ring = RingHash::new(&candidates(&weights), 1024, 8 << 20);
    let all: usize = (0..51).map(|index| ring.entries(index)).sum();
    assert!((60_000..=70_000).contains(&all), "{all}");
    assert!(ring.entries(0) >= 1);
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
