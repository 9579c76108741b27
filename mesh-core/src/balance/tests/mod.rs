//! Pickers against their definitions, and what stands around them: helpers of the tests beside this file.

mod choices;
mod failure;
mod hashing;
mod load;
mod localities;
mod outside;
mod queues;
mod ready;
mod reports;
mod spread;
mod subsets;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::id::Locality;
use crate::policy::{self, Address, Balancer, Endpoint, Endpoints, Health, LocalityEndpoints};

const SECOND: Duration = Duration::from_secs(1);

fn address(port: u16) -> Address {
    Address::Socket(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn group(priority: u32, weight: u32, endpoints: &[(u16, u32, Health)]) -> LocalityEndpoints {
    let endpoint = |(port, weight, health): &(u16, u32, Health)| Endpoint {
        weight: NonZeroU32::new(*weight).unwrap(),
        health: *health,
        ..Endpoint::new(address(*port))
    };
    LocalityEndpoints {
        locality: Locality::default(),
        priority,
        weight: NonZeroU32::new(weight).unwrap(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn endpoints(localities: Vec<LocalityEndpoints>) -> Arc<Endpoints> {
    Arc::new(Endpoints { cluster: "c".into(), localities, ..Endpoints::default() })
}

/// Candidates on ports 1, 2, 3, ...
fn candidates(weights: &[u32]) -> Candidates {
    let list: Vec<_> = (1..).zip(weights).map(|(port, weight)| (port, *weight, Health::Healthy)).collect();
    Candidates::of(endpoints(vec![group(0, 1, &list)]))
}

fn seeded(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    move |below| rng.u64(..below)
}

/// How often each is picked.
fn counts(picker: &dyn Picker, len: usize, picks: usize, pick: &Pick<'_>) -> Vec<usize> {
    let mut draw = seeded(7);
    let mut counts = vec![0; len];
    for _ in 0..picks {
        counts[picker.pick(pick, &mut draw).unwrap()] += 1;
    }
    counts
}

/// Whether counts fit expected shares: chi-square below a bound that one in some thousand samples of a
/// right distribution passes.
fn assert_fits(counts: &[usize], shares: &[f64], what: &str) {
    let (picks, sum) = (counts.iter().sum::<usize>() as f64, shares.iter().sum::<f64>());
    let mut chi_square = 0.0;
    for (count, share) in counts.iter().zip(shares) {
        let want = picks * share / sum;
        if want == 0.0 {
            assert_eq!(*count, 0, "{what}: {counts:?}");
        } else {
            chi_square += (*count as f64 - want).powi(2) / want;
        }
    }
    let freedom = (shares.iter().filter(|share| **share > 0.0).count().max(2) - 1) as f64;
    let bound = freedom + 3.5 * (2.0 * freedom).sqrt() + 4.0;
    assert!(chi_square < bound, "{what}: chi-square {chi_square:.1} above {bound:.1}: {counts:?}");
}

/// The same sample with one candidate preferred must not fit, or the bound proves nothing.
#[test]
fn a_wrong_distribution_does_not_fit() {
    let skewed = |picks: usize| vec![picks / 4 + picks / 60, picks / 4, picks / 4, picks / 4 - picks / 60];
    assert!(std::panic::catch_unwind(|| assert_fits(&skewed(30_000), &[1.0; 4], "skewed")).is_err());
}

fn each_balancer() -> Vec<Balancer> {
    vec![
        Balancer::RoundRobin,
        Balancer::WeightedRoundRobin(policy::WeightedRoundRobin::default()),
        Balancer::least_request(),
        Balancer::LeastRequest { choices: 10, bias: 500_000 },
        Balancer::LeastRequest { choices: 2, bias: 0 },
        Balancer::PeakEwma,
        Balancer::Random,
        Balancer::Prequal(policy::Prequal::default()),
        Balancer::RingHash { min_size: 1024, max_size: 8 << 20 },
        Balancer::Maglev { table_size: 65_537 },
        Balancer::PickFirst { shuffle: true },
        Balancer::Custom { name: "nobody's".into(), config: "{}".into() },
    ]
}
