//! The task behind a cluster whose endpoints are DNS names: looks them up again and again and makes endpoints
//! of the answers. Owned by its cluster. That the last good answer stays is [`Names`]'s doing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use mesh_core::policy::{Address, Discovery, Endpoint, Endpoints, LocalityEndpoints};
use mesh_core::source::Service;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Cluster, Look};
use crate::connect::names::{Alternates, Names, PATIENCE};
use crate::connect::worker::{Owned, spawn};
use crate::env::Env;

/// How long the answers for some names wait for those of the others; what comes later is taken together as well.
const MOMENT: Duration = Duration::from_secs(1);

/// Keeps the names of a cluster up to date, if it has any, on the caller's runtime. Who of the cluster `before` is gone is said
/// after the first look.
pub(super) fn start(cluster: &Arc<Cluster>, env: &Arc<Env>, before: Option<Arc<Cluster>>) -> Option<Owned<()>> {
    match &cluster.policy.discovery {
        Discovery::StrictDns(names) => Some(resolve(names.clone(), cluster, env.clone(), before)),
        Discovery::LogicalDns(names) => Some(remember(names.clone(), cluster)),
        _ => None,
    }
}

/// Says that the first look is broken off, unless it is over, or another one was begun.
struct First {
    cluster: Weak<Cluster>,
    // That which its task begins with, if it is one.
    number: Option<u32>,
}

impl First {
    fn of(cluster: &Arc<Cluster>) -> Self {
        let look = cluster.look.as_ref().map(|look| *look.borrow());
        let number = look.and_then(|look| if let Look::UnderWay(number) = look { Some(number) } else { None });
        Self { cluster: Arc::downgrade(cluster), number }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let Some((cluster, own)) = self.cluster.upgrade().zip(self.number) else { return };
        cluster.turn_look(|look| (look == Look::UnderWay(own)).then_some(Look::BrokenOff(own)));
    }
}

/// Resolves `names` for `cluster`.
fn resolve(
    names: Arc<Endpoints>,
    cluster: &Arc<Cluster>,
    env: Arc<Env>,
    mut before: Option<Arc<Cluster>>,
) -> Owned<()> {
    let (dialer, first) = (cluster.dialer.clone(), First::of(cluster));
    let suspicion = dialer.names().listen();
    spawn(&Handle::current(), async move {
        loop {
            let mut take = |Found { endpoints, alternates }| {
                // Gone: the task is about to be stopped.
                let Some(cluster) = first.cluster.upgrade() else { return };
                // Before the endpoints: a connection to one of them may need both. They change where no endpoint does: as many IPv4
                // addresses as there are IPv6 ones are in no endpoint.
                dialer.names().set_alternates(alternates);
                if *cluster.members().source != endpoints {
                    cluster.apply(Arc::new(endpoints), &env);
                }
                cluster.look.iter().for_each(|look| _ = look.send_replace(Look::Over));
                before.take().iter().for_each(|before| before.give_way(&cluster, env.limits.drain));
            };
            let (found, until) = look_up(&names, dialer.names(), &mut take).await;
            // After the answers: what is suspected in the meantime waits until even the last is old enough.
            let looked = Instant::now();
            take(found);
            due(dialer.names(), &suspicion, looked, until).await;
        }
    })
}

/// Looks `names` up whenever it is time to: they are resolved where connections are made, and no connection shall wait
/// for that, or go to where a name led hours ago because nobody asked since and the resolver is away now.
fn remember(names: Arc<Endpoints>, cluster: &Arc<Cluster>) -> Owned<()> {
    let dialer = cluster.dialer.clone();
    let suspicion = dialer.names().listen();
    spawn(&Handle::current(), async move {
        loop {
            let found = join_all(names.iter().map(|endpoint| find(endpoint, dialer.names()))).await;
            let until = found.iter().filter_map(|(_, until)| *until).min();
            due(dialer.names(), &suspicion, Instant::now(), until).await;
        }
    })
}

/// Waits until what was looked up at `looked` is to be looked up again.
async fn due(names: &Names, suspicion: &Notify, looked: Instant, until: Option<Instant>) {
    let again = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = again => {}
        () = names.suspected(suspicion, looked) => {}
    }
}

/// What all names stand for at one moment.
struct Found {
    endpoints: Endpoints,
    alternates: Alternates,
}

/// What one name stands for: SRV names have several parts, other names one.
#[derive(Clone)]
struct Part {
    host: Arc<str>,
    priority: u16,
    weight: Option<NonZeroU32>,
    ips: Vec<IpAddr>,
    port: u16,
}

/// Looks all names up; gives what they stand for, and when to look again (`None` if there is no name). While some are not
/// answered `early` is given what the others stand for, beside the last good of these: a server that is silent takes nothing from
/// those that are not.
async fn look_up(names: &Endpoints, known: &Names, mut early: impl FnMut(Found)) -> (Found, Option<Instant>) {
    let one = |(i, endpoint)| async move { (i, find(endpoint, known).await) };
    let mut looks: FuturesUnordered<_> = names.iter().enumerate().map(one).collect();
    let mut found = vec![None; looks.len()];
    let (mut until, mut is_new, mut told) = (None::<Instant>, false, Instant::now() + MOMENT);
    loop {
        tokio::select! {
            biased;
            next = looks.next() => {
                let Some((i, (parts, again))) = next else { break };
                until = until.into_iter().chain(again).min();
                (found[i], is_new) = (Some(parts), true);
            }
            () = sleep_until(told) => {
                told += MOMENT;
                if std::mem::take(&mut is_new) {
                    let parts = names.iter().zip(&found);
                    let parts = parts.map(|(name, found)| found.clone().unwrap_or_else(|| last_good(name, known)));
                    let found = assemble(names, parts, known);
                    // Nothing is no answer yet: whoever waits for the first one goes on waiting.
                    if found.endpoints.iter().next().is_some() {
                        early(found);
                    }
                }
            }
        }
    }
    let found: Vec<_> = found.into_iter().flatten().collect();
    let used: BTreeSet<&str> = found.iter().flatten().flatten().map(|part| &*part.host).collect();
    known.keep_hosts(|host| used.contains(host));
    (assemble(names, found.into_iter(), known), until)
}

/// The endpoints that are the parts of all names, in order.
fn assemble(names: &Endpoints, mut found: impl Iterator<Item = Option<Vec<Part>>>, known: &Names) -> Found {
    let mut alternates = Alternates::default();
    let mut localities = Vec::with_capacity(names.localities.len());
    for group in &names.localities {
        // By SRV priority; what has none is of the first.
        let mut ranks: BTreeMap<u16, Vec<Endpoint>> = BTreeMap::new();
        for (endpoint, parts) in group.endpoints.iter().zip(found.by_ref()) {
            match parts {
                None => ranks.entry(0).or_default().push(endpoint.clone()),
                Some(parts) => {
                    for part in parts {
                        let rank = ranks.entry(part.priority).or_default();
                        rank.extend(endpoints_of(endpoint, &part, known.families_are_apart(), &mut alternates));
                    }
                }
            }
        }
        // A group without addresses stays: it is what the policy says.
        if ranks.is_empty() {
            ranks.entry(0).or_default();
        }
        // Numbers of one name mean nothing beside those of another.
        for (rank, endpoints) in (0..).zip(ranks.into_values()) {
            localities.push((rank, LocalityEndpoints { endpoints, ..group.clone() }));
        }
    }
    // What a record says of its order is within the group: whatever is of a later one comes after all of it. Priorities
    // have no gaps.
    let places: BTreeSet<(u32, u32)> = localities.iter().map(|(rank, group)| (group.priority, *rank)).collect();
    let places: BTreeMap<_, _> = places.into_iter().zip(0..).collect();
    let localities = localities.into_iter().map(|(rank, group)| {
        let priority = places[&(group.priority, rank)];
        LocalityEndpoints { priority, ..group }
    });
    let localities = localities.collect();
    Found { endpoints: Endpoints { localities, ..names.clone() }, alternates }
}

/// What an endpoint's address stood for when it was last answered (`None` = itself).
fn last_good(endpoint: &Endpoint, known: &Names) -> Option<Vec<Part>> {
    let Address::Name { host, port } = &endpoint.address else { return None };
    if !is_service(host, *port) {
        return Some(vec![part_of_host(host, *port, &known.last_good_addresses(host))]);
    }
    let services = known.last_good_services(host);
    Some(services.iter().map(|service| part_of_service(service, &known.last_good_addresses(&service.host))).collect())
}

/// Whether a name is one of SRV records.
fn is_service(host: &str, port: u16) -> bool {
    port == 0 && host.starts_with('_')
}

fn part_of_host(host: &Arc<str>, port: u16, ips: &[IpAddr]) -> Part {
    Part { host: host.clone(), priority: 0, weight: None, ips: ips.to_vec(), port }
}

fn part_of_service(service: &Service, ips: &[IpAddr]) -> Part {
    let weight = NonZeroU32::new(service.weight.into()).or(Some(NonZeroU32::MIN));
    let (host, ips) = (service.host.clone(), ips.to_vec());
    Part { host, priority: service.priority, weight, ips, port: service.port }
}

/// What an endpoint's address stands for (`None` = itself) and when that is looked up next.
async fn find(endpoint: &Endpoint, known: &Names) -> (Option<Vec<Part>>, Option<Instant>) {
    let Address::Name { host, port } = &endpoint.address else { return (None, None) };
    if !is_service(host, *port) {
        let answer = known.addresses(host, PATIENCE).await;
        return (Some(vec![part_of_host(host, *port, &answer.records)]), Some(answer.until));
    }
    let services = known.services(host, PATIENCE).await;
    let looks = services.records.iter().map(|service| async move {
        let answer = known.addresses(&service.host, PATIENCE).await;
        (part_of_service(service, &answer.records), answer.until)
    });
    let found = join_all(looks).await;
    let until = found.iter().map(|(_, until)| *until).chain([services.until]).min();
    (Some(found.into_iter().map(|(part, _)| part).collect()), until)
}

/// One endpoint for each address. Where a name has both families, IPv6 and IPv4 addresses are taken to be two
/// ways to the same servers, as in Envoy's `dns_lookup_family: AUTO`: an IPv6 address is an endpoint with an
/// IPv4 one to fall back on, and the IPv4 addresses that are left over are endpoints of their own. With families
/// `apart` every address is (`ALL`).
fn endpoints_of(named: &Endpoint, part: &Part, apart: bool, alternates: &mut Alternates) -> Vec<Endpoint> {
    // Servers turn the order round; a mere change of order is no change.
    let sorted: BTreeSet<IpAddr> = part.ips.iter().copied().collect();
    let (v6, v4): (Vec<_>, Vec<_>) =
        sorted.into_iter().map(|ip| SocketAddr::new(ip, part.port)).partition(|address| apart || address.is_ipv6());
    let pair = |one: &SocketAddr, i: usize, others: &[SocketAddr]| {
        let other = others.get(i % others.len().max(1)).copied();
        (*one, other)
    };
    let firsts = v6.iter().enumerate().map(|(i, one)| pair(one, i, &v4));
    let rest = v4.iter().enumerate().skip(v6.len()).map(|(i, one)| pair(one, i, &v6));
    let pairs = firsts.chain(rest).map(|(address, other)| {
        if let Some(other) = other {
            alternates.insert(address, vec![other]);
        }
        let weight = part.weight.unwrap_or(named.weight);
        Endpoint { address: Address::Socket(address), weight, ..named.clone() }
    });
    pairs.collect()
}
