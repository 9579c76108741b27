//! Each picker's spread against its definition.

use proptest::prelude::*;

use super::*;

const PICKS: usize = 20_000;

/// Those that share an idle cluster by weight.
fn by_weight() -> Vec<Balancer> {
    let all = each_balancer().into_iter();
    all.filter(|b| !matches!(b, Balancer::RingHash { .. } | Balancer::PickFirst { .. })).collect()
}

#[test]
fn an_idle_cluster_is_shared_by_weight() {
    for balancer in by_weight() {
        for weights in [&[1, 1, 1, 1][..], &[10, 20, 30, 40], &[7, 1, 1, 1], &[1, 1000], &[3; 17]] {
            let picker = picker_for(&balancer, candidates(weights), &mut seeded(1));
            let shares: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
            let counts = counts(&*picker, weights.len(), PICKS, &Pick::default());
            assert_fits(&counts, &shares, &format!("{balancer:?} {weights:?}"));
        }
    }
}

#[test]
fn weights_are_honoured_within_one_per_cent() {
    let weights = [10, 20, 70];
    for balancer in by_weight() {
        let picker = picker_for(&balancer, candidates(&weights), &mut seeded(1));
        let picks = 400_000;
        for (count, weight) in counts(&*picker, weights.len(), picks, &Pick::default()).into_iter().zip(weights) {
            let want = picks as f64 * f64::from(weight) / 100.0;
            let off = (count as f64 - want).abs() / want;
            assert!(off < 0.01, "{balancer:?}: {count} picks for weight {weight}, {:.2} % off", off * 100.0);
        }
    }
}

#[test]
fn the_draw_is_by_weight_among_many_and_in_one_step() {
    let weights: Vec<u32> = (1..=1000).collect();
    let set = candidates(&weights);
    let picker = Random::new(set);
    let mut draws = 0;
    let mut rng = seeded(5);
    let mut counts = vec![0; 1000];
    for _ in 0..200_000 {
        let picked = picker.pick(&Pick::default(), &mut |below| {
            draws += 1;
            rng(below)
        });
        counts[picked.unwrap()] += 1;
    }
    assert_eq!(draws, 200_000);
    let shares: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
    assert_fits(&counts, &shares, "random among a thousand");
}

#[test]
fn tried_endpoints_come_last() {
    for balancer in each_balancer() {
        let picker = picker_for(&balancer, candidates(&[10, 20, 30, 40]), &mut seeded(1));
        let tried = |tried: &'static [usize]| Pick { tried, ..Pick::default() };
        let got = counts(&*picker, 4, PICKS, &tried(&[3, 1, 1]));
        match balancer {
            // Their turns go to the next one round, clockwise, in the list.
            Balancer::RingHash { .. } | Balancer::Maglev { .. } | Balancer::PickFirst { .. } => {
                assert_eq!((got[1], got[3]), (0, 0), "{balancer:?}");
            }
            _ => assert_fits(&got, &[1.0, 0.0, 3.0, 0.0], &format!("{balancer:?}")),
        }
        assert_eq!(counts(&*picker, 4, 100, &tried(&[0, 1, 2])), [0, 0, 0, 100], "{balancer:?}");
        assert!(picker.pick(&tried(&[3, 2, 1, 0]), &mut seeded(1)).is_some(), "{balancer:?}: all were tried");
        assert!(picker.pick(&tried(&[17]), &mut seeded(1)).is_some(), "{balancer:?}: an index of another set");
    }
}

#[test]
fn nothing_to_pick_from_is_no_panic() {
    for balancer in each_balancer() {
        let picker = picker_for(&balancer, candidates(&[]), &mut seeded(1));
        for hash in [None, Some(7)] {
            assert_eq!(picker.pick(&Pick { hash, ..Pick::default() }, &mut seeded(1)), None, "{balancer:?}");
            assert_eq!(picker.pick(&Pick { hash, tried: &[0], ..Pick::default() }, &mut seeded(1)), None);
        }
        picker.reported(0, SECOND);
    }
}

#[test]
fn round_robin_goes_round_from_a_random_start() {
    let picker = RoundRobin::new(&candidates(&[1, 1, 1]), &mut |_| 2);
    let picks: Vec<_> = (0..6).map(|_| picker.pick(&Pick::default(), &mut |_| 0).unwrap()).collect();
    assert_eq!(picks, [2, 0, 1, 2, 0, 1]);
}

#[test]
fn round_robin_spreads_a_heavy_endpoint_evenly() {
    let picker = RoundRobin::new(&candidates(&[3, 1]), &mut |_| 0);
    let picks: Vec<_> = (0..400).map(|_| picker.pick(&Pick::default(), &mut |_| 0).unwrap()).collect();
    let longest = picks.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap();
    assert!(longest <= 4, "{longest} picks in a row");
    assert!(picks.iter().filter(|i| **i == 1).count().abs_diff(100) <= 1);
}

#[test]
fn round_robin_spreads_what_the_heaviest_cannot_take_by_the_weight_of_the_others() {
    let set = candidates(&[1000, 1, 1, 3, 1]);
    let pickers: [Box<dyn Picker>; 2] = [
        Box::new(RoundRobin::new(&set, &mut |_| 0)),
        Box::new(WeightedRoundRobin::new(set.clone(), policy::WeightedRoundRobin::default(), &mut |_| 0)),
    ];
    for picker in pickers {
        let others = counts(&*picker, 5, PICKS, &Pick { tried: &[0], now: SECOND, ..Pick::default() });
        assert_fits(&others, &[0.0, 1.0, 1.0, 3.0, 1.0], "the heaviest was tried");
        let all = [0, 1, 2, 3, 4];
        assert!(picker.pick(&Pick { tried: &all, now: SECOND, ..Pick::default() }, &mut |_| 0).is_some());
    }
}

/// The definition: an endpoint has the keys on the arcs that end at its entries (`address_n`, gRFC A42).
#[test]
fn a_ring_gives_each_endpoint_the_keys_on_its_arcs() {
    let weights = [1, 2, 3, 4];
    let ring = RingHash::new(&candidates(&weights), 1000, 8 << 20);
    let mut entries: Vec<(u64, usize)> = Vec::new();
    for (index, count) in [100, 200, 300, 400].into_iter().enumerate() {
        assert_eq!(ring.entries(index), count);
        let place = |n| twox_hash::XxHash64::oneshot(0, format!("127.0.0.1:{}_{n}", index + 1).as_bytes());
        entries.extend((0..count).map(|n| (place(n), index)));
    }
    entries.sort_unstable();
    let mut arcs = [0.0; 4];
    let mut before = entries.last().unwrap().0;
    for (place, index) in entries {
        arcs[index] += place.wrapping_sub(before) as f64;
        before = place;
    }
    for seed in 1..=5 {
        let mut keys = seeded(seed);
        let mut counts = [0; 4];
        for _ in 0..PICKS {
            let pick = Pick { hash: Some(keys(u64::MAX)), ..Pick::default() };
            counts[ring.pick(&pick, &mut |_| panic!("a hash needs no draw")).unwrap()] += 1;
        }
        assert_fits(&counts, &arcs, &format!("ring hash, seed {seed}"));
    }
}

/// In which order a picker goes through its candidates.
fn order_of(picker: &PickFirst, len: usize) -> Vec<usize> {
    let mut order = Vec::new();
    while order.len() < len {
        let next = picker.pick(&Pick { tried: &order, ..Pick::default() }, &mut |_| 0).unwrap();
        order.push(next);
    }
    order
}

#[test]
fn pick_first_shuffles_into_each_order_alike_and_by_weight_a113() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    // The chance of an order: each place is drawn by weight of those that are left.
    let chance = |weights: &[u32], order: [usize; 3]| {
        let weight = |index: usize| f64::from(weights[index]);
        let (first, second, third) = (weight(order[0]), weight(order[1]), weight(order[2]));
        first / (first + second + third) * second / (second + third)
    };
    for weights in [[1, 1, 1], [1, 2, 5]] {
        let mut draw = seeded(7);
        let mut counts = [0; 6];
        for _ in 0..PICKS {
            let order = order_of(&PickFirst::new(candidates(&weights), true, &mut draw), 3);
            counts[orders.iter().position(|other| order == other).unwrap()] += 1;
        }
        assert_fits(&counts, &orders.map(|order| chance(&weights, order)), &format!("pick first {weights:?}"));
        // Control: unshuffled there is but one.
        assert_eq!(order_of(&PickFirst::new(candidates(&weights), false, &mut draw), 3), [0, 1, 2]);
    }
}

#[test]
fn pick_first_takes_families_in_turn_a61() {
    let set = |addresses: &[&str]| {
        let endpoint = |text: &&str| Endpoint::new(Address::Socket(text.parse().unwrap()));
        let endpoints_of = addresses.iter().map(endpoint).collect();
        Candidates::of(endpoints(vec![LocalityEndpoints { endpoints: endpoints_of, ..group(0, 1, &[]) }]))
    };
    let order = |addresses: &[&str]| order_of(&PickFirst::new(set(addresses), false, &mut seeded(1)), addresses.len());
    assert_eq!(order(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"]), [0, 3, 1, 4, 2]);
    assert_eq!(order(&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"]), [0, 2, 1]);
    assert_eq!(order(&["1.1.1.1:1", "1.1.1.2:1"]), [0, 1], "control: of one family as listed");
}

#[test]
fn pick_first_stays_with_one_that_can_be_reached() {
    let set = candidates(&[1, 1, 1]);
    let picker = PickFirst::new(set.clone(), false, &mut seeded(1));
    let at = |now| picker.pick(&Pick { now, ..Pick::default() }, &mut |_| 0).unwrap();
    assert_eq!(at(SECOND), 0);
    set[0].load_or_new().unreachable(SECOND);
    assert_eq!(at(SECOND), 1);
    // The first can be tried again by now, but the second works.
    assert_eq!(at(60 * SECOND), 1);
    assert_eq!(picker.pick(&Pick { now: 60 * SECOND, tried: &[1], ..Pick::default() }, &mut |_| 0), Some(0));
    assert_eq!(at(60 * SECOND), 1, "a retry elsewhere moves nobody else");
    set[1].load_or_new().unreachable(60 * SECOND);
    assert_eq!(at(60 * SECOND), 0);
}

#[test]
fn pick_first_stays_where_it_is_when_the_list_changes() {
    let set = candidates(&[1; 5]);
    for candidate in set.iter() {
        candidate.load_or_new();
    }
    let pick = |picker: &PickFirst, now| picker.pick(&Pick { now, ..Pick::default() }, &mut seeded(9)).unwrap();
    let first = PickFirst::new(set.clone(), true, &mut seeded(1));
    let chosen = pick(&first, SECOND);
    for seed in 2..30 {
        let next = PickFirst::new(set.clone(), true, &mut seeded(seed));
        assert_eq!(pick(&next, SECOND), chosen, "seed {seed}");
    }
    // It moves on when it must, and stays there as well.
    set[chosen].load_or_new().unreachable(SECOND);
    let moved = pick(&first, SECOND);
    assert_ne!(moved, chosen);
    assert_eq!(pick(&first, 40 * SECOND), moved);
    for seed in 2..30 {
        let next = PickFirst::new(set.clone(), true, &mut seeded(seed));
        assert_eq!(pick(&next, 40 * SECOND), moved, "seed {seed}");
    }
    // Control: to who knows nothing of it each order has its own first.
    let fresh = |seed| pick(&PickFirst::new(candidates(&[1; 5]), true, &mut seeded(seed)), SECOND);
    assert!((2..30).any(|seed| fresh(seed) != fresh(1)));
}

#[test]
fn pick_first_shuffles_by_weight() {
    let mut firsts = [0; 3];
    let mut draw = seeded(2);
    for _ in 0..30_000 {
        let picker = PickFirst::new(candidates(&[1, 2, 3]), true, &mut draw);
        firsts[picker.pick(&Pick::default(), &mut |_| 0).unwrap()] += 1;
    }
    assert_fits(&firsts, &[1.0, 2.0, 3.0], "first of the list");
}

proptest! {
    #[test]
    fn a_pick_is_always_one_of_the_untried(
        weights in proptest::collection::vec(1_u32..=u32::MAX, 1..20),
        tried in proptest::collection::vec(0_usize..25, 0..12),
        hash: Option<u64>,
        seed: u64,
    ) {
        let mut draw = seeded(seed);
        for balancer in each_balancer() {
            let balancer = match balancer {
                // A large table takes long to fill and shows nothing more.
                Balancer::Maglev { .. } => Balancer::Maglev { table_size: 251 },
                other => other,
            };
            let picker = picker_for(&balancer, candidates(&weights), &mut draw);
            for _ in 0..20 {
                let picked = picker.pick(&Pick { hash, tried: &tried, ..Pick::default() }, &mut draw).unwrap();
                let all_tried = (0..weights.len()).all(|i| tried.contains(&i));
                prop_assert!(picked < weights.len());
                prop_assert!(all_tried || !tried.contains(&picked), "{balancer:?} picked {picked}");
            }
        }
    }
}
