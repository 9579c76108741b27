//! Shares of localities (Istio's `distribute`): they hold whatever the balancer, and however slow one of the zones is.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::Locality;
use mesh_core::policy::{Balancer, ClusterState, Endpoints, LocalityEndpoints, Prequal, Snapshot, WeightedRoundRobin};
use mesh_testkit::FixedSource;

use crate::each_seed;
use crate::fleet::{Fleet, Manner};
use crate::load::{Policy, TARGET, client_from, failures, get, run_with};

/// Servers of each zone.
const EACH: usize = 3;
const TIME: Duration = Duration::from_millis(5);

fn balancers() -> Vec<Balancer> {
    let weighted = WeightedRoundRobin { blackout_period: Duration::ZERO, ..WeightedRoundRobin::default() };
    let child = Box::new(Balancer::least_request());
    vec![
        Balancer::least_request(),
        Balancer::LeastRequest { choices: 5, bias: 1_000_000 },
        Balancer::PeakEwma,
        Balancer::Prequal(Prequal::default()),
        Balancer::WeightedRoundRobin(weighted),
        Balancer::PickFirst { shuffle: true },
        Balancer::DeterministicSubsetting { size: 100, of_each: false, child },
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::RingHash { min_size: 65_536, max_size: 65_536 },
        Balancer::Maglev { table_size: 65_537 },
    ]
}

/// Servers near by, and far away ones with so much of a hundred requests.
fn snapshot(fleet: &Fleet, policy: &Policy, far: u32) -> Snapshot {
    let mut snapshot = policy.snapshot(Vec::new());
    let group = |(zone, weight): (usize, u32)| LocalityEndpoints {
        locality: Locality { zone: format!("zone-{zone}"), ..Locality::default() },
        priority: 0,
        weight: NonZeroU32::new(weight).unwrap(),
        endpoints: (zone * EACH..(zone + 1) * EACH).map(|server| fleet.endpoint(server)).collect(),
    };
    let localities = [(0, 100 - far), (1, far)].map(group).into();
    let endpoints = Arc::new(Endpoints { cluster: "fleet".into(), localities, ..Endpoints::default() });
    let cluster = Arc::new(policy.cluster.clone());
    snapshot.clusters.insert("fleet".into(), ClusterState::Ready { cluster, endpoints });
    snapshot
}

/// The share of the requests that a zone has whose servers take ten times as long, and say so. It weighs `far` of a hundred.
async fn share_of_far(balancer: &Balancer, weighted: bool, far: u32) -> f64 {
    let manner = Manner { time: TIME, utilization: Some(0.08), ..Manner::default() };
    let fleet = Fleet::new(2 * EACH, 100, &manner);
    for server in fleet.iter().skip(EACH) {
        server.change(|manner| (manner.time, manner.utilization) = (10 * TIME, Some(0.8)));
    }
    let mut policy = Policy::default();
    (policy.cluster.balancer, policy.cluster.locality.weighted) = (balancer.clone(), weighted);
    let client = client_from(&fleet, &FixedSource::of(TARGET, snapshot(&fleet, &policy, far)));
    let send = || {
        let client = client.clone();
        async move { get(&client).await }
    };
    // Two points off by chance is one of 100,000 such runs.
    let records = run_with(send, 400.0, Duration::from_secs(20)).await;
    assert!(failures(&records).is_empty(), "{balancer:?}: {:?}", failures(&records));
    let served = records.iter().filter(|record| record.outcome.as_ref().is_ok_and(|server| *server >= EACH));
    let share = served.count() as f64 / records.len() as f64;
    println!("{balancer:?}, weights {weighted}: {:.1} % of {}", share * 100.0, records.len());
    share
}

fn is_off(share: f64, due: f64) -> bool {
    (share - due).abs() >= 0.02
}

#[test]
fn a_zone_has_its_share_however_slow_it_is_whatever_the_balancer() {
    each_seed(1, || async {
        let mut off = Vec::new();
        for balancer in balancers() {
            let share = share_of_far(&balancer, true, 20).await;
            if is_off(share, 0.2) {
                off.push((balancer, share));
            }
        }
        assert!(off.is_empty(), "{off:?}");
    });
}

/// The control: where nobody asks for weights the balancer decides, and none gives four of five to who is slow. A ring
/// goes by weights all the same (gRFC A42); a client's shuffled list has one at its head (gRFC A113).
#[test]
fn a_zone_without_weights_has_what_the_balancer_gives_it() {
    each_seed(1, || async {
        for balancer in balancers() {
            let anyway = matches!(balancer, Balancer::RingHash { .. });
            let share = share_of_far(&balancer, false, 80).await;
            assert_eq!(is_off(share, 0.8), !anyway, "{balancer:?}: {share}");
        }
    });
}
