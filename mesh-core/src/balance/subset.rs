//! Subsetting: a client of a large cluster uses a part of it, so that not everybody connects to
//! everybody.

use std::sync::Arc;

use twox_hash::XxHash64;

use crate::policy::{Balancer, Endpoints, LocalityEndpoints};

/// Clients whose parts together cover every endpoint equally often.
const LOT: u64 = 64;

/// The part of `endpoints` that `balancer` asks for, in each priority by itself; all of them if it asks
/// for none. `client` tells the clients of a fleet apart: for deterministic subsetting its number,
/// counted from 0 (a StatefulSet's ordinal), for random subsetting any number of its own.
///
/// Random (gRFC A68): the endpoints whose addresses hash lowest with the client's number. Stable, but
/// some endpoints are in many more parts than others.
///
/// Deterministic: every 64 clients form a lot with an order of the endpoints of its own. Each client
/// takes the endpoints on a stretch of the lot's circle of hashes; stretches are as long as asked for on
/// average and begin at even distances, the next client always farthest from those before it. So each
/// lot, and each part of one, covers all endpoints nearly equally often, whatever the number of clients,
/// and an endpoint that goes is missed only by the clients that had it. The price: parts differ in size,
/// but have at least half of it.
pub fn subset(endpoints: &Arc<Endpoints>, balancer: &Balancer, client: u64) -> Arc<Endpoints> {
    let (size, key): (u32, fn(&str, u64) -> u64) = match balancer {
        Balancer::RandomSubsetting { size, .. } => (*size, random),
        Balancer::DeterministicSubsetting { size, .. } => (*size, along_the_circle),
        _ => return endpoints.clone(),
    };
    let size = size.max(1) as usize;
    let mut keys: Vec<(u32, u64)> = Vec::new();
    for group in &endpoints.localities {
        keys.extend(group.endpoints.iter().map(|e| (group.priority, key(&e.address.to_string(), client))));
    }
    let mut priorities: Vec<u32> = endpoints.localities.iter().map(|group| group.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let bound = |priority: u32| {
        let mut own: Vec<u64> = keys.iter().filter(|(p, _)| *p == priority).map(|(_, key)| *key).collect();
        own.sort_unstable();
        let count = match balancer {
            Balancer::DeterministicSubsetting { .. } if size < own.len() => {
                let stretch = (size as f64 / own.len() as f64 * 2_f64.powi(64)) as u64;
                own.partition_point(|key| *key < stretch).max(size.div_ceil(2))
            }
            _ => size,
        };
        // The highest key that is in.
        own.get(count.min(own.len()).wrapping_sub(1)).copied().unwrap_or(0)
    };
    let bounds: Vec<(u32, u64)> = priorities.into_iter().map(|priority| (priority, bound(priority))).collect();
    let mut keys = keys.into_iter();
    let localities = endpoints.localities.iter().map(|group| {
        let bound = bounds.iter().find(|(priority, _)| *priority == group.priority).map_or(0, |(_, bound)| *bound);
        let own = group.endpoints.iter().zip(keys.by_ref());
        let chosen = own.filter(|(_, (_, key))| *key <= bound).map(|(endpoint, _)| endpoint.clone()).collect();
        let LocalityEndpoints { locality, priority, weight, .. } = group;
        LocalityEndpoints { locality: locality.clone(), priority: *priority, weight: *weight, endpoints: chosen }
    });
    let localities = localities.collect();
    Arc::new(Endpoints {
        cluster: endpoints.cluster.clone(),
        localities,
        drops: endpoints.drops.clone(),
        overprovisioning_factor: endpoints.overprovisioning_factor,
    })
}

fn random(address: &str, client: u64) -> u64 {
    XxHash64::oneshot(client, address.as_bytes())
}

/// How far an endpoint is from the beginning of the client's stretch.
fn along_the_circle(address: &str, client: u64) -> u64 {
    // 0, 1/2, 1/4, 3/4, 1/8, ...: van der Corput's sequence, which any beginning of is spread evenly.
    let start = (client % LOT).reverse_bits();
    XxHash64::oneshot(client / LOT, address.as_bytes()).wrapping_sub(start)
}
