//! Subsetting: evenness and churn.

use std::collections::HashSet;

use super::*;

const CLIENTS: u64 = 1000;

fn fleet(backends: &[u16]) -> Arc<Endpoints> {
    let list: Vec<_> = backends.iter().map(|port| (*port, 1, Health::Healthy)).collect();
    endpoints(vec![group(0, 1, &list)])
}

fn part(all: &Arc<Endpoints>, balancer: &Balancer, client: u64) -> HashSet<Address> {
    subset(all, balancer, client).iter().map(|endpoint| endpoint.address.clone()).collect()
}

fn deterministic(size: u32) -> Balancer {
    Balancer::DeterministicSubsetting { size, child: Box::new(Balancer::RoundRobin) }
}

fn random(size: u32) -> Balancer {
    Balancer::RandomSubsetting { size, child: Box::new(Balancer::RoundRobin) }
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

#[test]
fn every_endpoint_has_about_as_many_clients_as_the_others() {
    let backends: Vec<u16> = (1..=300).collect();
    let all = fleet(&backends);
    for (size, clients) in [(20, 500), (20, CLIENTS), (60, 300)] {
        let uneven = unevenness(&all, &deterministic(size), 0..clients);
        assert!(uneven <= 1.15, "{clients} clients with {size} of 300: busiest is {uneven:.2} of the mean");
    }
    let uneven = unevenness(&all, &random(20), (0..CLIENTS).map(|n| n * 0x9e37_79b9));
    assert!(uneven > 1.2, "control: at random the busiest is {uneven:.2} of the mean");
}

#[test]
fn a_part_is_about_as_large_as_asked_for() {
    let backends: Vec<u16> = (1..=300).collect();
    let all = fleet(&backends);
    let sizes: Vec<usize> = (0..CLIENTS).map(|client| part(&all, &deterministic(20), client).len()).collect();
    let mean = sizes.iter().sum::<usize>() as f64 / CLIENTS as f64;
    assert!((mean - 20.0).abs() < 1.0, "{mean}");
    assert!(sizes.iter().all(|size| (10..=40).contains(size)), "{sizes:?}");
    assert!((0..100).all(|client| part(&all, &random(20), client).len() == 20));
    assert_eq!(part(&all, &random(500), 1).len(), 300);
    assert_eq!(part(&all, &deterministic(500), 1).len(), 300);
    assert!(Arc::ptr_eq(&subset(&all, &Balancer::RoundRobin, 1), &all));
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
    let cut = subset(&all, &random(10), 5);
    let of = |priority: u32| cut.localities.iter().filter(move |g| g.priority == priority).map(|g| g.endpoints.len());
    assert_eq!((of(0).sum::<usize>(), of(1).sum::<usize>(), cut.localities.len()), (10, 10, 3));
}
