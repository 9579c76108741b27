//! What a pick costs: every balancer over 10 and 1,000 endpoints that all carry requests, and what an
//! update of a large cluster costs. `cargo xtask bench pick [NAME] [-o json]`.
//!
//! The goals, at most 60 ns for either size of `peak_ewma` and `least_request`, are for a quiet machine.

#![allow(clippy::print_stdout, missing_docs, reason = "a program, not a library")]

#[path = "common/nanos.rs"]
mod nanos;
#[path = "common/rows.rs"]
mod rows;

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::{EndpointReport, InFlight, Load, Pick, ReadySet};
use mesh_core::policy::{
    Address, Balancer, Cluster, Endpoint, Endpoints, LocalityEndpoints, Prequal, WeightedRoundRobin,
};

use self::nanos::Nanos;

const SIZES: [usize; 2] = [10, 1000];
const NOW: Duration = Duration::from_secs(100);

fn endpoints(count: usize, weighted: bool) -> Arc<Endpoints> {
    let endpoint = |index: usize| {
        let ip = Ipv4Addr::from(0x0a00_0000 + index as u32);
        let weight = if weighted { index as u32 % 7 + 1 } else { 1 };
        let weight = NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN);
        Endpoint { weight, ..Endpoint::new(Address::Socket(SocketAddr::from((ip, 80)))) }
    };
    let group = LocalityEndpoints {
        locality: Default::default(),
        priority: 0,
        weight: NonZeroU32::MIN,
        endpoints: (0..count).map(endpoint).collect(),
    };
    Arc::new(Endpoints { cluster: "bench".into(), localities: vec![group], ..Endpoints::default() })
}

fn ready(balancer: Balancer, endpoints: Arc<Endpoints>) -> ReadySet<()> {
    let cluster = Arc::new(Cluster { balancer, ..Cluster::new("bench".into()) });
    ReadySet::build(endpoints, cluster, None, NOW, &mut |below| fastrand::u64(..below), |_| ((), None))
}

/// Gives every endpoint requests in flight, a latency and a report.
fn busy(set: &ReadySet<()>) -> Vec<InFlight> {
    let settings = WeightedRoundRobin::default();
    let mut under_way = Vec::new();
    for (index, candidate) in set.candidates().iter().enumerate() {
        let load = candidate.load_or_new();
        load.succeeded(Duration::from_micros(fastrand::u64(1000..20_000)), NOW);
        let report = EndpointReport {
            requests_per_second: 100.0,
            utilization: fastrand::f64() + 0.1,
            ..EndpointReport::default()
        };
        load.report(&report, &settings, NOW - Duration::from_secs(20));
        load.report(&report, &settings, NOW);
        load.report_load(fastrand::u32(..8), Some(Duration::from_micros(fastrand::u64(1000..20_000))), 0, NOW);
        set.reported(index, NOW);
        under_way.extend((0..fastrand::usize(..5)).map(|_| load.start()));
    }
    under_way
}

fn balancers() -> Vec<(&'static str, Balancer)> {
    vec![
        ("peak_ewma", Balancer::PeakEwma),
        ("least_request", Balancer::least_request()),
        ("round_robin", Balancer::RoundRobin),
        ("weighted_round_robin", Balancer::WeightedRoundRobin(WeightedRoundRobin::default())),
        ("random", Balancer::Random),
        ("ring_hash", Balancer::RingHash { min_size: 1024, max_size: 8 << 20 }),
        ("maglev", Balancer::Maglev { table_size: 65_537 }),
        ("pick_first", Balancer::PickFirst { shuffle: false }),
        ("prequal", Balancer::Prequal(Prequal { max_age: Duration::from_secs(600), ..Prequal::default() })),
    ]
}

fn main() {
    let mut nanos = Nanos::of_args();
    pick(&mut nanos);
    update(&mut nanos);
    nanos.print();
}

fn pick(nanos: &mut Nanos) {
    for (weighted, suffix) in [(false, ""), (true, "_weighted")] {
        for (name, balancer) in balancers() {
            let goal = (!weighted && matches!(name, "peak_ewma" | "least_request")).then_some(60.0);
            for size in SIZES {
                let set = ready(balancer.clone(), endpoints(size, weighted));
                let _under_way = busy(&set);
                let mut rng = fastrand::Rng::with_seed(1);
                nanos.row(&format!("{name}{suffix}/{size}"), goal, || {
                    let pick = Pick { now: NOW, hash: Some(rng.u64(..)), ..Pick::default() };
                    set.pick(black_box(&pick), &mut |below| rng.u64(..below)).map(|(index, _)| index)
                });
            }
        }
    }
}

/// One endpoint of many is replaced; the others keep their load.
fn update(nanos: &mut Nanos) {
    for size in [10, 10_000] {
        let all = endpoints(size, false);
        let cluster = Arc::new(Cluster::new("bench".into()));
        let old = ready(Balancer::least_request(), all.clone());
        let _under_way = busy(&old);
        nanos.row(&format!("update_one_endpoint/{size}"), None, || {
            let mut next = Endpoints::clone(&all);
            next.localities[0].endpoints[size / 2].address = Address::Unix("new".into());
            let load = |endpoint: &Endpoint| -> ((), Option<Arc<Load>>) {
                let index = old.find(&endpoint.address);
                ((), index.and_then(|index| old.candidates()[index].load().cloned()))
            };
            let draw = &mut |below| fastrand::u64(..below);
            ReadySet::build(Arc::new(next), cluster.clone(), None, NOW, draw, load)
        });
    }
}
