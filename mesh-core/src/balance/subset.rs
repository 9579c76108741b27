//! Subsetting: a client of a large cluster uses a part of it, so that not everybody connects to
//! everybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use twox_hash::XxHash64;

use crate::policy::{Balancer, Cluster, Endpoints, Health, LocalityEndpoints};

/// The part of `endpoints` that a cluster's balancer asks for, in each priority by itself, or in each
/// [locality](Balancer::RandomSubsetting::of_each); all of them if it asks for none. `client` tells the clients of a
/// fleet apart: for deterministic subsetting its number, counted from 0 (a StatefulSet's ordinal), for random subsetting any
/// number of its own. Of a part another one may be taken.
///
/// They are chosen among those that are [usable](Health::is_usable), as in gRPC, which takes no others from the control plane (gRFC A27);
/// where these are too few, the rest of the places is for others. Beside them each part has all that are draining, for the sessions
/// pinned to them: nothing else goes there. A session that begins at another client may be pinned to an endpoint that is not in this
/// one's part: it stays there, for a set knows of what is [outside](super::Outside) of it (gRFC A55, A68).
///
/// Random (gRFC A68): the endpoints whose addresses hash lowest with the client's number. Stable, but
/// some endpoints are in many more parts than others.
///
/// Deterministic: clients of successive numbers form lots that share all endpoints out among themselves,
/// as in Google's SRE book, so that of however many clients the first ones have each endpoint equally
/// often, or once more. There a lot's shares are slices of a shuffled list, all of which change with its length; here a
/// lot is a power of two, and divides by halves: an endpoint's hash says in which half it stays, unless
/// one of them would have less than its due. So an endpoint that goes is missed by the clients that had
/// it, and by hardly any other. The price: parts differ in size. They are as large as asked for on average, those of a
/// lot between half and twice as large, and each a third smaller or half as large again at most.
pub fn subset(endpoints: &Arc<Endpoints>, cluster: &Cluster, client: u64) -> Arc<Endpoints> {
    cut(endpoints, &cluster.balancer, client)
}

fn cut(endpoints: &Arc<Endpoints>, balancer: &Balancer, client: u64) -> Arc<Endpoints> {
    let (size, of_each, child, choose): (u32, _, _, Choose) = match balancer {
        Balancer::RandomSubsetting { size, of_each, child } => (*size, *of_each, child, random),
        Balancer::DeterministicSubsetting { size, of_each, child } => (*size, *of_each, child, share),
        _ => return endpoints.clone(),
    };
    let size = size.max(1) as usize;
    let mut chosen: Vec<Vec<bool>> =
        endpoints.localities.iter().map(|group| vec![false; group.endpoints.len()]).collect();
    // What is cut down by itself.
    let mut wholes = BTreeMap::<usize, Vec<(usize, usize)>>::new();
    for (place, group) in endpoints.localities.iter().enumerate() {
        let whole = wholes.entry(if of_each { place } else { group.priority as usize }).or_default();
        whole.extend((0..group.endpoints.len()).map(|index| (place, index)));
    }
    let endpoint = |(place, index): (usize, usize)| &endpoints.localities[place].endpoints[index];
    for whole in wholes.into_values() {
        let (draining, own): (Vec<_>, Vec<_>) =
            whole.into_iter().partition(|at| endpoint(*at).health == Health::Draining);
        let (usable, others): (Vec<_>, Vec<_>) = own.into_iter().partition(|at| endpoint(*at).health.is_usable());
        let left = size.saturating_sub(usable.len());
        let mut keep = |(place, index): (usize, usize)| chosen[place][index] = true;
        draining.into_iter().for_each(&mut keep);
        for (own, size) in [(usable, size), (others, left)].into_iter().filter(|(_, size)| *size > 0) {
            let addresses: Vec<String> = own.iter().map(|at| endpoint(*at).address.to_string()).collect();
            choose(&addresses, size, client).into_iter().for_each(|kept| keep(own[kept]));
        }
    }
    let localities = endpoints.localities.iter().zip(chosen).map(|(group, chosen)| {
        let kept = group.endpoints.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        let LocalityEndpoints { locality, priority, weight, .. } = group;
        let endpoints = kept.map(|(endpoint, _)| endpoint.clone()).collect();
        LocalityEndpoints { locality: locality.clone(), priority: *priority, weight: *weight, endpoints }
    });
    let localities = localities.collect();
    let part = Arc::new(Endpoints {
        cluster: endpoints.cluster.clone(),
        localities,
        drops: endpoints.drops.clone(),
        overprovisioning_factor: endpoints.overprovisioning_factor,
    });
    cut(&part, child, client)
}

/// Which of these addresses a client has, about so many.
type Choose = fn(&[String], usize, u64) -> Vec<usize>;

fn random(addresses: &[String], size: usize, client: u64) -> Vec<usize> {
    let keyed = addresses.iter().enumerate().map(|(place, address)| (hash(address, client), place));
    let mut all: Vec<(u64, usize)> = keyed.collect();
    all.sort_unstable();
    all.into_iter().take(size).map(|(_, place)| place).collect()
}

/// The share of a client in what its lot divides.
fn share(addresses: &[String], size: usize, client: u64) -> Vec<usize> {
    if addresses.len() <= size {
        return (0..addresses.len()).collect();
    }
    let halvings = halvings(addresses.len(), size, client);
    // What each client of the lot has at least and at most. Somebody who has nothing reaches nobody.
    let mean = addresses.len() as f64 / f64::from(1_u32 << halvings);
    let (least, most) = (((mean * 0.65) as usize).max(1), (mean * 1.5).ceil() as usize);
    let mut own: Vec<usize> = (0..addresses.len()).collect();
    for left in (0..halvings).rev() {
        // Each place where a lot divides has an order of its own, which the lots of half the size have as well.
        let node = ((client >> left >> 1) << 6) | u64::from(left);
        let mut keyed: Vec<(u64, usize)> = own.iter().map(|place| (hash(&addresses[*place], node), *place)).collect();
        let by_hash = keyed.iter().filter(|(key, _)| *key < 1 << 63).count();
        let each = 1_usize << left;
        let first = by_hash.clamp(
            (each * least).max(keyed.len().saturating_sub(each * most)),
            (each * most).min(keyed.len() - each * least),
        );
        keyed.select_nth_unstable(first - 1);
        let rest = keyed.split_off(first);
        let kept = if (client >> left) & 1 == 0 { keyed } else { rest };
        own = kept.into_iter().map(|(_, place)| place).collect();
    }
    own
}

/// How often the lot of a client divides. One divides once more or less than another, so that parts are on average as large
/// as asked for: a further endpoint changes that for few lots and not for all at once. A fleet that is one lot, or less, has
/// all its parts halved or doubled with one endpoint, at one number of them.
fn halvings(endpoints: usize, size: usize, client: u64) -> u32 {
    let clients = endpoints as f64 / size as f64;
    let largest = clients.log2().ceil().clamp(1.0, 31.0) as u32;
    let times = f64::from(1_u32 << largest) / clients;
    // 1/2, 0, 3/4, 1/4, 7/8, ...: spread evenly, whichever number of lots there are.
    let drawn = ((client >> largest).reverse_bits() >> 11) as f64 / 2_f64.powi(53);
    let drawn = (drawn + 0.5).fract();
    let halvings = if times + drawn >= 2.0 { largest - 1 } else { largest };
    // Not more clients than endpoints.
    halvings.min(endpoints.ilog2())
}

fn hash(address: &str, seed: u64) -> u64 {
    XxHash64::oneshot(seed, address.as_bytes())
}
