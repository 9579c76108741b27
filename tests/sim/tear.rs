//! Configuration that changes in any order (R05): no request sees the routes of one moment and the clusters or
//! endpoints of another, and none fails because of the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use mesh_core::policy::{
    Address, ClusterChoice, ClusterState, DestinationState, RouteAction, RouteConfiguration, Snapshot,
};
use mesh_core::source::{DestinationSource, Watched};
use mesh_discovery::codec;
use mesh_discovery::xds::{AdsStream, Response, StreamError, Transport, Variant};
use mesh_testkit::clock;
use parking_lot::Mutex;

use crate::plane::{
    BOTH, Mood, Named, Plane, Wire, client, client_over, cluster_named, endpoints_of, goes_to, route_to,
};
use crate::seeded;

/// Changes from one version to the next, of each variant; each comes in an order, with repetitions and with pauses of its
/// own. The state machine alone is put through ten thousand more sequences by the tests of `mesh-discovery`.
const CHANGES: u16 = 1_500;

/// The cluster of a version; names come back, as they do where two are swapped.
fn cluster_of(version: u16) -> String {
    format!("c{}", version % 3)
}

/// Where the one request of a route configuration goes.
fn routed(routes: &RouteConfiguration) -> String {
    match &routes.virtual_hosts[0].routes[0].action {
        RouteAction::Forward(forward) => match &forward.to {
            ClusterChoice::Cluster(name) => name.to_string(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// The port that a request is sent to by this snapshot, or why it fails.
fn request(snapshot: &Snapshot) -> Result<u16, String> {
    let cluster = routed(&snapshot.routes);
    match snapshot.clusters.get(&cluster.as_str().into()) {
        None => Err(format!("{cluster} is routed to and not there")),
        Some(ClusterState::Failed(why)) => Err(why.to_string()),
        Some(ClusterState::Ready { endpoints, .. }) => match endpoints.iter().next().map(|one| &one.address) {
            Some(Address::Socket(address)) => Ok(address.port()),
            other => Err(format!("{cluster}: {other:?}")),
        },
    }
}

/// What requests saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(usize, Vec<String>)>>);

impl Seen {
    fn note(&self, answer: Result<u16, String>, versions: impl IntoIterator<Item = u16>) {
        let mut seen = self.0.lock();
        seen.0 += 1;
        let versions: Vec<u16> = versions.into_iter().collect();
        match answer {
            Ok(port) if versions.contains(&port) => {}
            other => seen.1.push(format!("{other:?} while {versions:?} may be in use")),
        }
    }
}

/// The parts of a change, some of them twice, in any order.
fn shuffled(random: &mut fastrand::Rng, parts: Vec<Named>) -> Vec<Named> {
    let mut all: Vec<Named> = parts.iter().flat_map(|part| vec![part.clone(); random.usize(1..=2)]).collect();
    random.shuffle(&mut all);
    all
}

/// Plays changes of routes, cluster and endpoints from version to version; `look` is called after every part.
async fn changes(random: &mut fastrand::Rng, plane: &Plane, count: u16, mut look: impl AsyncFnMut(u16)) {
    for version in 2..2 + count {
        let cluster = cluster_of(version);
        let parts = vec![route_to("r", &cluster), cluster_named(&cluster), endpoints_of(&cluster, version)];
        for part in shuffled(random, parts) {
            plane.put(part);
            if random.bool() {
                clock::pass(Duration::from_millis(random.u64(1..2_000))).await;
            } else {
                // What was put is on its way when the next part is.
                tokio::task::yield_now().await;
            }
            look(version).await;
        }
        clock::pass(Duration::from_millis(1)).await;
        // What was used before is withdrawn.
        for type_url in [codec::CLUSTER, codec::ENDPOINTS] {
            plane.delete(type_url, &cluster_of(version - 1));
        }
        look(version).await;
    }
}

fn first() -> Plane {
    Plane::with(&cluster_of(1), 1)
}

#[tokio::test(start_paused = true)]
async fn no_order_of_parts_shows_a_request_a_mixture_r05() {
    for variant in BOTH {
        let mut random = fastrand::Rng::with_seed(seeded());
        let plane = first();
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        let seen = Seen::default();
        changes(&mut random, &plane, CHANGES, async |version| match &**state.load() {
            DestinationState::Ready(snapshot) => seen.note(request(snapshot), [version - 1, version]),
            other => seen.note(Err(format!("{other:?}")), []),
        })
        .await;
        goes_to(&mut state, 1 + CHANGES).await;
        let seen = seen.0.lock();
        println!("{variant:?}: {} requests during {CHANGES} changes", seen.0);
        assert!(seen.0 > 4 * usize::from(CHANGES));
        assert!(seen.1.is_empty(), "{} of {} requests: {:?}", seen.1.len(), seen.0, &seen.1[..3.min(seen.1.len())]);
    }
}

/// A client that uses every resource as it comes, as one without a cascade would.
#[derive(Clone, Default)]
struct Naive(Arc<Mutex<Parts>>);

#[derive(Default)]
struct Parts {
    cluster: Option<String>,
    ports: BTreeMap<String, u16>,
    known: BTreeSet<String>,
}

impl Naive {
    fn take(&self, response: &Response) {
        let mut parts = self.0.lock();
        for resource in &response.resources {
            let Some(body) = &resource.body else { continue };
            match &*body.type_url {
                codec::ROUTES => parts.cluster = Some(routed(&codec::decode_routes(body).unwrap().value)),
                codec::CLUSTER => {
                    let name = codec::decode_cluster(body).unwrap().value.name.to_string();
                    parts.known.insert(name);
                }
                codec::ENDPOINTS => {
                    let endpoints = codec::decode_endpoints(body).unwrap().value;
                    let port = endpoints.iter().find_map(|endpoint| match &endpoint.address {
                        Address::Socket(address) => Some(address.port()),
                        _ => None,
                    });
                    parts.ports.extend(port.map(|port| (endpoints.cluster.clone(), port)));
                }
                _ => {}
            }
        }
        response.removed.iter().for_each(|name| {
            parts.known.remove(name);
            parts.ports.remove(name);
        });
    }

    fn request(&self) -> Result<u16, String> {
        let parts = self.0.lock();
        let cluster = parts.cluster.clone().ok_or("no routes")?;
        parts.known.get(&cluster).ok_or_else(|| format!("{cluster} is routed to and not there"))?;
        parts.ports.get(&cluster).copied().ok_or_else(|| format!("{cluster} has no endpoints"))
    }
}

/// The wire with somebody who reads along.
#[derive(Clone)]
struct Tapped {
    plane: Plane,
    reader: Naive,
}

impl Transport for Tapped {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let (opening, reader) = (Wire(self.plane.clone()).open(variant), self.reader.clone());
        Box::pin(async move {
            let AdsStream { requests, responses } = opening.await?;
            let responses = responses.inspect(move |response| {
                if let Ok(response) = response {
                    reader.take(response);
                }
            });
            Ok(AdsStream { requests, responses: responses.boxed() })
        })
    }
}

/// Control run: the same changes, seen by a client that uses every resource as it comes.
#[tokio::test(start_paused = true)]
async fn a_client_that_uses_parts_as_they_come_sees_mixtures_r05() {
    for variant in BOTH {
        let mut random = fastrand::Rng::with_seed(seeded());
        let (plane, naive, seen) = (first(), Naive::default(), Seen::default());
        let client = client_over(Tapped { plane: plane.clone(), reader: naive.clone() }, variant);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        changes(&mut random, &plane, 200, async |version| seen.note(naive.request(), [version - 1, version])).await;
        let seen = seen.0.lock();
        assert!(!seen.1.is_empty(), "{variant:?}: {} requests saw nothing", seen.0);
    }
}

/// Both control planes speak of the same routes, and name clusters of their own.
#[tokio::test(start_paused = true)]
async fn falling_back_and_returning_in_the_middle_of_changes_shows_no_mixture_r05() {
    for variant in BOTH {
        let mut random = fastrand::Rng::with_seed(seeded());
        let (one, two) = (Plane::with("one", 10_001), Plane::with("two", 20_001));
        let client = client(variant, &[&one, &two]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 10_001).await;
        let seen = Seen::default();
        let mut reasons = Vec::new();
        let mut served: Watched<DestinationState> = state.clone();
        for version in 2..300 {
            if random.u8(0..3) == 0 {
                one.is(if random.bool() { Mood::Down } else { Mood::Up });
                // What is not known yet is a reason to ask the next one.
                reasons.push(client.destination(&format!("missing{version}:80").parse().unwrap()));
            }
            for (plane, cluster, port) in [(&one, "one", 10_000 + version), (&two, "two", 20_000 + version)] {
                let (cluster, other) = (format!("{cluster}{}", version % 2), format!("{cluster}{}", (version + 1) % 2));
                let parts = vec![route_to("r", &cluster), cluster_named(&cluster), endpoints_of(&cluster, port)];
                for part in shuffled(&mut random, parts) {
                    plane.put(part);
                    clock::pass(Duration::from_millis(random.u64(0..500))).await;
                    match &**served.load() {
                        DestinationState::Ready(snapshot) => {
                            let answer = request(snapshot);
                            let names: Vec<_> =
                                snapshot.clusters.keys().map(|name| name.as_str()[..3].to_owned()).collect();
                            let whole = names.iter().all(|name| *name == names[0]);
                            let port = answer.clone().unwrap_or_default();
                            let home = if names[0] == "one" { 10_000 } else { 20_000 };
                            let fits = whole && (home..home + 10_000).contains(&port);
                            seen.note(answer, fits.then_some(port));
                        }
                        other => seen.note(Err(format!("{other:?}")), []),
                    }
                }
                plane.delete(codec::CLUSTER, &other);
            }
        }
        one.is(Mood::Up);
        goes_to(&mut served, 10_299).await;
        let seen = seen.0.lock();
        assert!(seen.1.is_empty(), "{} of {} requests: {:?}", seen.1.len(), seen.0, &seen.1[..3.min(seen.1.len())]);
        assert!(two.opened() > 5, "it was fallen back to again and again: {}", two.opened());
    }
}
