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
        Balancer::DeterministicSubsetting { size: 100, child },
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::RingHash { min_size: 65_536, max_size: 65_536 },
        Balancer::Maglev { table_size: 65_537 },
    ]
}

/// Servers near by with 80 % of the requests, and far away ones.
fn snapshot(fleet: &Fleet, policy: &Policy) -> Snapshot {
    let mut snapshot = policy.snapshot(Vec::new());
    let group = |(zone, weight): (usize, u32)| LocalityEndpoints {
        locality: Locality { zone: format!("zone-{zone}"), ..Locality::default() },
        priority: 0,
        weight: NonZeroU32::new(weight).unwrap(),
        endpoints: (zone * EACH..(zone + 1) * EACH).map(|server| fleet.endpoint(server)).collect(),
    };
    let localities = [(0, 80), (1, 20)].map(group).into();
    let endpoints = Arc::new(Endpoints { cluster: "fleet".into(), localities, ..Endpoints::default() });
    let cluster = Arc::new(policy.cluster.clone());
    snapshot.clusters.insert("fleet".into(), ClusterState::Ready { cluster, endpoints });
    snapshot
}

#[test]
fn a_zone_has_its_share_however_slow_it_is_whatever_the_balancer() {
    each_seed(1, || async {
        let mut off = Vec::new();
        for balancer in balancers() {
            let manner = Manner { time: TIME, utilization: Some(0.08), ..Manner::default() };
            let fleet = Fleet::new(2 * EACH, 100, &manner);
            for server in fleet.iter().skip(EACH) {
                server.change(|manner| (manner.time, manner.utilization) = (10 * TIME, Some(0.8)));
            }
            let mut policy = Policy::default();
            (policy.cluster.balancer, policy.cluster.locality.weighted) = (balancer.clone(), true);
            let client = client_from(&fleet, &FixedSource::of(TARGET, snapshot(&fleet, &policy)));
            let send = || {
                let client = client.clone();
                async move { get(&client).await }
            };
            // Two points off by chance is one of 100,000 such runs.
            let records = run_with(send, 400.0, Duration::from_secs(20)).await;
            assert!(failures(&records).is_empty(), "{balancer:?}: {:?}", failures(&records));
            let far = records.iter().filter(|record| record.outcome.as_ref().is_ok_and(|server| *server >= EACH));
            let share = far.count() as f64 / records.len() as f64;
            println!("{balancer:?}: {:.1} % of {}", share * 100.0, records.len());
            if (share - 0.2).abs() >= 0.02 {
                off.push((balancer, share));
            }
        }
        assert!(off.is_empty(), "{off:?}");
    });
}
