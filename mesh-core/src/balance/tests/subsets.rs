//! Subsetting: evenness and churn.

use std::collections::HashSet;

use super::*;

const CLIENTS: u64 = 1000;

fn fleet(backends: &[u16]) -> Arc<Endpoints> {
    let list: Vec<_> = backends.iter().map(|port| (*port, 1, Health::Healthy)).collect();
    endpoints(vec![group(0, 1, &list)])
}

fn cut(all: &Arc<Endpoints>, balancer: &Balancer, client: u64) -> Arc<Endpoints> {
    subset(all, &policy::Cluster { balancer: balancer.clone(), ..policy::Cluster::new("c".into()) }, client)
}

fn part(all: &Arc<Endpoints>, balancer: &Balancer, client: u64) -> HashSet<Address> {
    cut(all, balancer, client).iter().map(|endpoint| endpoint.address.clone()).collect()
}

fn deterministic(size: u32) -> Balancer {
    Balancer::DeterministicSubsetting { size, of_each: false, child: Box::new(Balancer::RoundRobin) }
}

fn random(size: u32) -> Balancer {
    Balancer::RandomSubsetting { size, of_each: false, child: Box::new(Balancer::RoundRobin) }
}

/// The same part of each locality.
fn of_each(mut part: Balancer) -> Balancer {
    if let Balancer::RandomSubsetting { of_each, .. } | Balancer::DeterministicSubsetting { of_each, .. } = &mut part {
        *of_each = true;
    }
    part
}

/// Connections of the busiest endpoint over the mean.
fn unevenness(all: &Arc<Endpoints>, balancer: &Balancer, clients: impl Iterator<Item = u64>) -> f64 {
    let mut connections = std::collections::HashMap::<Address, usize>::new();
    let mut sum = 0;
    for client in clients {
        for address in part(all, balancer, client) {
            *connections.entry(address).or_default() += 1;
            sum += 1;
        }
    }
    let mean = sum as f64 / all.iter().count() as f64;
    *connections.values().max().unwrap() as f64 / mean
}

/// Endpoints and the size of a part.
const CASES: [(u16, u32); 10] =
    [(300, 20), (100, 5), (50, 10), (300, 60), (7, 2), (33, 32), (17, 1), (2, 1), (400, 3), (64, 8)];

/// By how much the numbers of clients differ that endpoints have, for each number of clients of the fleet.
fn differences(endpoints: u16, balancer: &Balancer) -> Vec<usize> {
    let all = fleet(&(1..=endpoints).collect::<Vec<_>>());
    let mut clients: std::collections::HashMap<_, usize> = all.iter().map(|e| (e.address.clone(), 0)).collect();
    let counted = (0..300).map(|client| {
        for address in part(&all, balancer, client) {
            *clients.get_mut(&address).unwrap() += 1;
        }
        clients.values().max().unwrap() - clients.values().min().unwrap()
    });
    counted.collect()
}

/// A lot of clients shares all endpoints out among itself (Google's SRE book): whole lots make no difference at all, and
/// one that is not complete makes one of one.
#[test]
fn whatever_the_number_of_clients_endpoints_have_equally_many_or_one_more() {
    for (endpoints, size) in CASES {
        let differences = differences(endpoints, &deterministic(size));
        assert!(differences.iter().all(|by| *by <= 1), "{size} of {endpoints}: {differences:?}");
        assert!(
            size * 2 > u32::from(endpoints) || differences.contains(&0),
            "{size} of {endpoints}: some lots are whole"
        );
    }
    let control = differences(300, &random(20));
    assert!(control.iter().any(|by| *by > 1), "control: at random they differ by more");
}

#[test]
fn the_busiest_endpoint_has_hardly_more_clients_than_the_mean() {
    let all = fleet(&(1..=300).collect::<Vec<_>>());
    for (size, clients) in [(20, 70), (20, 500), (20, CLIENTS), (60, 300)] {
        let uneven = unevenness(&all, &deterministic(size), 0..clients);
        assert!(uneven <= 1.15, "{clients} clients with {size} of 300: busiest is {uneven:.2} of the mean");
    }
    let uneven = unevenness(&all, &random(20), (0..CLIENTS).map(|n| n * 0x9e37_79b9));
    assert!(uneven > 1.2, "control: at random the busiest is {uneven:.2} of the mean");
}

#[test]
fn a_part_is_about_as_large_as_asked_for() {
    for (endpoints, size) in CASES {
        let all = fleet(&(1..=endpoints).collect::<Vec<_>>());
        let sizes: Vec<usize> = (0..512).map(|client| part(&all, &deterministic(size), client).len()).collect();
        let (mean, size) = (sizes.iter().sum::<usize>() as f64 / 512.0, f64::from(size));
        // Where there are several lots of them.
        let lots = 512.0 * size / f64::from(endpoints);
        assert!(size == 1.0 || lots < 8.0 || (mean / size - 1.0).abs() < 0.1, "{size} of {endpoints}: {mean}");
        let most = (2.0 * 1.5 * size).ceil() as usize;
        let least = ((0.5 * 0.65 * size) as usize).max(1);
        assert!(sizes.iter().all(|size| (least..=most).contains(size)), "{size} of {endpoints}: {sizes:?}");
    }
    let all = fleet(&(1..=300).collect::<Vec<_>>());
    assert!((0..100).all(|client| part(&all, &random(20), client).len() == 20));
    assert_eq!(part(&all, &random(500), 1).len(), 300);
    assert_eq!(part(&all, &deterministic(500), 1).len(), 300);
    assert!(Arc::ptr_eq(&cut(&all, &Balancer::RoundRobin, 1), &all));
    assert_eq!(part(&fleet(&[]), &deterministic(1), 1).len(), 0);
}

#[test]
fn endpoints_that_go_one_after_the_other_move_little_more_than_their_own_connections() {
    for (endpoints, size) in [(300, 20), (100, 5), (50, 10), (64, 8)] {
        let (mut lost, mut moved) = (0, 0);
        // Through all that a lot may divide into.
        let step = if endpoints > 100 { 5 } else { 1 };
        for gone in (0..endpoints / 2).step_by(step) {
            let (before, after) =
                ((gone + 1..=endpoints).collect::<Vec<_>>(), (gone + 2..=endpoints).collect::<Vec<_>>());
            let (before, after) = (fleet(&before), fleet(&after));
            for client in 0..64 {
                let (old, new) =
                    (part(&before, &deterministic(size), client), part(&after, &deterministic(size), client));
                lost += usize::from(old.contains(&address(gone + 1)));
                moved += old.symmetric_difference(&new).count();
            }
        }
        // The least: who had it closes one and opens another.
        assert!(moved <= 2 * (2 * lost), "{size} of {endpoints}: {moved} closed and opened for {lost} lost");
    }
}

#[test]
fn one_endpoint_less_moves_little_more_than_its_own_connections() {
    let backends: Vec<u16> = (1..=300).collect();
    let (before, after) = (fleet(&backends), fleet(&backends[1..]));
    for balancer in [deterministic(20), random(20)] {
        let (mut lost, mut closed, mut opened) = (0, 0, 0);
        for client in 0..CLIENTS {
            let (old, new) = (part(&before, &balancer, client), part(&after, &balancer, client));
            lost += usize::from(old.contains(&address(1)));
            closed += old.difference(&new).count();
            opened += new.difference(&old).count();
        }
        assert!(lost > 30, "{lost}");
        // The least: who had it closes one and opens another.
        assert!(closed + opened <= 2 * (2 * lost), "{balancer:?}: {closed} closed, {opened} opened for {lost} lost");
    }
}

#[test]
fn each_priority_is_cut_down_by_itself() {
    let list = |from: u16| (from..from + 40).map(|port| (port, 1, Health::Healthy)).collect::<Vec<_>>();
    let all = endpoints(vec![group(0, 1, &list(1)), group(1, 1, &list(100)), group(0, 1, &list(200))]);
    let cut = cut(&all, &random(10), 5);
    let of = |priority: u32| cut.localities.iter().filter(move |g| g.priority == priority).map(|g| g.endpoints.len());
    assert_eq!((of(0).sum::<usize>(), of(1).sum::<usize>(), cut.localities.len()), (10, 10, 3));
}

/// What the smaller of two localities, which weighs a tenth and has a tenth of the endpoints, has of the requests of a fleet
/// of which each client sends as much: to each locality by its weight among those that it has any of.
fn share_of_the_small(balancer: Balancer) -> f64 {
    let list = |from: u16, count: u16| (from..from + count).map(|port| (port, 1, Health::Healthy)).collect::<Vec<_>>();
    let all = endpoints(vec![group(0, 10, &list(1, 10)), group(0, 90, &list(100, 90))]);
    let cluster = policy::Cluster { balancer, ..policy::Cluster::new("c".into()) };
    let share = |client| {
        let part = subset(&all, &cluster, client);
        match [0, 1].map(|place| part.localities[place].endpoints.is_empty()) {
            [true, _] => 0.0,
            [false, true] => 1.0,
            [false, false] => 0.1,
        }
    };
    (0..CLIENTS).map(share).sum::<f64>() / CLIENTS as f64
}

#[test]
fn parts_of_each_locality_keep_their_shares() {
    for (each, all) in [(deterministic(5), deterministic(10)), (random(5), random(10))] {
        let kept = share_of_the_small(of_each(each));
        assert!((kept - 0.1).abs() < 1e-9, "{kept}");
        let lost = share_of_the_small(all);
        assert!(lost < 0.08, "control: of all together many clients have none of it: {lost}");
    }
}

#[test]
fn each_locality_is_cut_down_by_itself_if_so_asked() {
    let list = |from: u16| (from..from + 40).map(|port| (port, 1, Health::Healthy)).collect::<Vec<_>>();
    let all = endpoints(vec![group(0, 1, &list(1)), group(1, 1, &list(100)), group(0, 1, &list(200))]);
    let sizes = |part: &Balancer| -> Vec<usize> {
        cut(&all, part, 5).localities.iter().map(|group| group.endpoints.len()).collect()
    };
    assert_eq!(sizes(&of_each(random(10))), [10; 3]);
    // A part of a part, each by itself.
    let two = |of_each, child| Balancer::RandomSubsetting { size: 20, of_each, child: Box::new(child) };
    assert_eq!(sizes(&two(true, of_each(random(4)))), [4; 3]);
    let mixed = sizes(&two(false, of_each(random(4))));
    assert!(mixed[1] == 4 && mixed.iter().all(|size| (1..=4).contains(size)), "{mixed:?}");
    let mixed = sizes(&two(true, random(4)));
    assert_eq!((mixed[0] + mixed[2], mixed[1]), (4, 4));
}

/// Twenty of a hundred serve: whoever has ten of them is not to have ten of the others.
#[test]
fn a_part_is_of_endpoints_that_serve_while_there_are_so_many_a27() {
    let state = |port| match port {
        0..20 => Health::Healthy,
        20..22 => Health::Draining,
        22..30 => Health::Degraded,
        _ => Health::Unhealthy,
    };
    let list: Vec<_> = (0..100).map(|port| (port, 1, state(port))).collect();
    let all = endpoints(vec![group(0, 1, &list)]);
    let count = |part: &Endpoints, is: fn(Health) -> bool| part.iter().filter(|endpoint| is(endpoint.health)).count();
    for client in 0..100 {
        for balancer in [random(10), deterministic(10)] {
            let part = cut(&all, &balancer, client);
            let usable = count(&part, Health::is_usable);
            assert!(
                usable == 10 || balancer != random(10) && (5..=15).contains(&usable),
                "{client} {balancer:?}: {usable}"
            );
            assert_eq!(count(&part, |health| health == Health::Draining), 2, "for their sessions");
            assert_eq!(part.iter().count(), usable + 2, "{client} {balancer:?}");
        }
        // Where too few serve the others have the rest of the places.
        let part = cut(&all, &random(30), client);
        assert_eq!((count(&part, Health::is_usable), part.iter().count()), (20, 32));
    }
    // Who serves again changes no more of a part than that one's place.
    let mut list = list;
    list[50].2 = Health::Healthy;
    let again = endpoints(vec![group(0, 1, &list)]);
    for client in 0..100 {
        let (before, now) = (part(&all, &random(10), client), part(&again, &random(10), client));
        assert!(before.difference(&now).count() <= 1, "{client}");
    }
}
