//! Endpoints that come and go: flapping (R12), thousands replaced (R13), and streams on one that is removed (R14).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Method, Response};
use http_body_util::{BodyExt, Empty};
use mesh_client::Client;
use mesh_core::policy::{Address, Balancer, Endpoint, EndpointMetadata};
use mesh_testkit::{FixedSource, clock};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;

use crate::fleet::{Door, Fleet, Handler, Manner, Wire};
use crate::load::{Policy, TARGET, client, client_from, failures, get, read, request, run, server_of};
use crate::{each_seed, each_seed_by_itself};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

const FLAPS: u64 = 60;

/// A fifth of so many servers comes and goes every half second, `flaps` times, while `rate` requests are made in a
/// second; those that go die with their connections if `they_die`.
async fn flapping(servers: usize, flaps: u64, rate: f64, they_die: bool) -> (Fleet, Vec<crate::load::Record>) {
    let fifth = servers / 5;
    let fleet = Fleet::new(servers, 8, &Manner { time: Duration::from_millis(50), ..Manner::default() });
    let policy = Policy::default();
    let (client, source) = client(&fleet, &policy);
    let flap = async {
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        for flap in 0..flaps {
            pace.tick().await;
            let away = flap % 2 == 0;
            source.set_snapshot(TARGET, policy.snapshot(fleet.endpoints().split_off(if away { fifth } else { 0 })));
            for gone in fleet.iter().take(fifth).filter(|_| they_die) {
                gone.change(|manner| manner.door = if away { Door::Shut } else { Door::Open });
                gone.cut();
            }
        }
    };
    let (records, ()) = tokio::join!(run(&client, rate, Duration::from_secs(flaps / 2)), flap);
    drop((client, source));
    clock::pass(Duration::from_secs(1)).await;
    (fleet, records)
}

#[test]
fn endpoints_that_flap_cost_no_request_and_leave_nothing_behind_r12() {
    each_seed(2, || async {
        let before = tasks();
        let (fleet, records) = flapping(20, FLAPS, 100.0, false).await;
        assert!(failures(&records).is_empty(), "{:?}", failures(&records));
        for (index, server) in fleet.iter().enumerate() {
            // Anew after each return, and a few more while several requests are under way.
            let most = if index < 4 { FLAPS / 2 * 3 } else { 10 };
            assert!(server.connects() <= most, "{} connections to {index}", server.connects());
            assert!(server.seen() > 0, "{index}");
        }
        assert_eq!((fleet.open(), tasks()), (0, before));
    });
}

/// Twenty of a hundred, for ten minutes.
#[test]
fn endpoints_that_flap_for_long_cost_no_request_and_leave_nothing_behind_r12() {
    const LONG: u64 = 1200;
    each_seed(1, || async {
        let before = tasks();
        let (fleet, records) = flapping(100, LONG, 20.0, false).await;
        assert!(failures(&records).is_empty(), "{:?}", failures(&records));
        for (index, server) in fleet.iter().enumerate() {
            let most = if index < 20 { LONG / 2 * 3 } else { 10 };
            assert!(server.connects() <= most, "{} connections to {index}", server.connects());
            assert!(server.seen() > 0, "{index}");
        }
        assert_eq!((fleet.open(), tasks()), (0, before));
    });
}

/// Control run: endpoints that die with what they are doing do cost requests.
#[test]
fn endpoints_that_die_without_a_word_cost_requests_r12() {
    each_seed(1, || async {
        let (_, records) = flapping(20, FLAPS, 100.0, true).await;
        assert!(!failures(&records).is_empty());
    });
}

const FLEET: usize = 500;
const LOAD: Duration = Duration::from_millis(20);

/// Replaces a tenth of five hundred endpoints each second for a minute, under load; gives the bytes that are held more
/// at its end. Answers that are not read hold what they came from: those are given to `keep`.
fn bytes_after_churn(mut keep: impl FnMut(Response<mesh_client::Body>)) -> i64 {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let fleet = Fleet::of(50, 8, &Manner { time: Duration::from_millis(1), ..Manner::default() }, Wire::Http1, None);
    let mut policy = Policy::default();
    policy.cluster.connection.idle_timeout = Some(Duration::from_secs(5));
    // Each generation of a place has an address of its own.
    let endpoints = |replaced: usize| -> Vec<Endpoint> {
        let address = |place: usize| {
            let generation = (replaced + FLEET - 1 - place) / FLEET;
            fleet.address(place % 50, place / 50 + generation * FLEET / 50)
        };
        (0..FLEET).map(|place| Endpoint::new(Address::Socket(address(place)))).collect()
    };
    let source = FixedSource::of(TARGET, policy.snapshot(endpoints(0)));
    let client = client_from(&fleet, &source);
    let mut replaced = 0;
    let mut seconds = |seconds: usize, step: usize, keep: &mut dyn FnMut(Response<mesh_client::Body>)| {
        runtime.block_on(async {
            for _ in 0..seconds {
                replaced += step;
                source.set_snapshot(TARGET, policy.snapshot(endpoints(replaced)));
                for number in 0..if step == FLEET { 0 } else { 20 } {
                    match number {
                        0 => keep(client.send(request(Method::GET, "/", "")).await.unwrap()),
                        _ => assert_eq!(get(&client).await.unwrap().status(), 200),
                    }
                    clock::pass(LOAD).await;
                }
            }
            // Those that are there have seen no request, and idle connections are closed.
            clock::pass(Duration::from_secs(if step == FLEET { 120 } else { 0 })).await;
        });
    };
    // Buffers grow to their size, and metrics get their series.
    seconds(20, FLEET / 10, &mut keep);
    seconds(1, FLEET, &mut keep);
    let memory = allocation_counter::measure(|| {
        seconds(60, FLEET / 10, &mut keep);
        seconds(1, FLEET, &mut keep);
    });
    assert_eq!(client.dump().destinations[0].clusters[0].endpoints.len(), FLEET);
    println!("{} connections open", fleet.open());
    memory.bytes_current
}

#[test]
fn endpoints_that_are_replaced_leave_no_memory_behind_r13() {
    each_seed_by_itself(1, || {
        let bytes = bytes_after_churn(drop);
        println!("{bytes} bytes more after 3000 endpoints came and went");
        assert!(bytes < 64 * 1024, "{bytes} bytes more");
    });
}

/// Control run: what is held of endpoints that are gone is seen.
#[test]
fn answers_that_are_kept_keep_their_endpoints_r13() {
    each_seed_by_itself(1, || {
        let mut kept = Vec::new();
        let bytes = bytes_after_churn(|answer| kept.push(answer));
        assert!(bytes > 64 * 1024, "{bytes} bytes more with {} answers", kept.len());
    });
}

/// Answers once it is let go.
fn held(gate: &Arc<Semaphore>) -> Handler {
    let gate = gate.clone();
    Arc::new(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Response::new(Empty::new().boxed_unsync())
        }
        .boxed()
    })
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        clock::pass(Duration::from_millis(1)).await;
    }
}

#[test]
fn streams_of_a_removed_endpoint_end_in_peace_and_its_connection_with_them_r14() {
    each_seed(20, || async {
        for policy in [Policy::http2(), Policy::default()] {
            let gate = Arc::new(Semaphore::new(0));
            let wire = if policy.cluster.connection.protocol == Policy::http2().cluster.connection.protocol {
                Wire::Http2(100)
            } else {
                Wire::Http1
            };
            let fleet = Fleet::with(2, wire, held(&gate));
            let before = tasks();
            let source = FixedSource::of(TARGET, policy.snapshot(vec![fleet.endpoint(0)]));
            let client = client_from(&fleet, &source);
            let streams: Vec<_> = (0..50).map(|_| tokio::spawn(whole(client.clone()))).collect();
            until(|| fleet.server(0).seen() == 50).await;

            source.set_snapshot(TARGET, policy.snapshot(vec![fleet.endpoint(1)]));
            clock::pass(Duration::from_millis(fastrand::u64(1..100))).await;
            let new = tokio::spawn(whole(client.clone()));
            until(|| fleet.server(1).seen() == 1).await;
            assert_eq!(fleet.server(0).seen(), 50, "nothing new goes to who is leaving");
            assert!(fleet.server(0).open() > 0);
            gate.add_permits(51);
            for stream in streams {
                assert_eq!(stream.await.unwrap(), 0, "it ends in peace");
            }
            assert_eq!(new.await.unwrap(), 1);
            until(|| fleet.server(0).open() == 0).await;
            assert_eq!(fleet.server(1).open(), 1, "control: who stays keeps its connection");
            drop((client, source));
            until(|| fleet.open() == 0).await;
            clock::pass(Duration::from_secs(1)).await;
            assert_eq!(tasks(), before);
        }
    });
}

/// The server that answered a request whose answer was read.
async fn whole(client: Client) -> usize {
    server_of(&read(client.send(request(Method::GET, "/", "")).await.unwrap()).await.unwrap())
}

/// One of ten thousand endpoints is replaced, again and again; gives how many connections each of a hundred servers,
/// all of which have a hundred of the addresses, has lost, and those that are newly made.
async fn replaced_one_by_one(everybody_changes: bool) -> (Vec<usize>, u64) {
    const LISTED: usize = 10_000;
    const CHANGES: usize = 10;
    let fleet = Fleet::of(100, 8, &Manner { time: Duration::from_millis(1), ..Manner::default() }, Wire::Http1, None);
    let mut policy = Policy::default();
    policy.cluster.balancer = Balancer::RoundRobin;
    let listed = |change: usize| -> Vec<Endpoint> {
        let lb = [("change".to_owned(), if everybody_changes { change.to_string() } else { String::new() })].into();
        let metadata = Arc::new(EndpointMetadata { lb, ..EndpointMetadata::default() });
        let address = |place: usize| Address::Socket(fleet.address(place % 100, place / 100));
        let endpoint = |place| Endpoint { metadata: metadata.clone(), ..Endpoint::new(address(place)) };
        (change..change + LISTED).map(endpoint).collect()
    };
    let source = FixedSource::of(TARGET, policy.snapshot(listed(0)));
    let client = client_from(&fleet, &source);
    for _ in 0..1000 {
        assert_eq!(get(&client).await.unwrap().status(), 200);
    }
    let before: Vec<usize> = fleet.iter().map(|server| server.open()).collect();
    let connects = || fleet.iter().map(|server| server.connects()).sum::<u64>();
    let connected = connects();
    assert_eq!(before.iter().sum::<usize>(), 1000, "each of them has one of another endpoint");
    for change in 1..=CHANGES {
        source.set_snapshot(TARGET, policy.snapshot(listed(change)));
        clock::pass(Duration::from_secs(1)).await;
    }
    assert_eq!(client.dump().destinations[0].clusters[0].endpoints.len(), LISTED);
    let lost = fleet.iter().zip(before).map(|(server, before)| before - server.open()).collect();
    (lost, connects() - connected)
}

#[test]
fn one_change_among_ten_thousand_endpoints_costs_no_connection_of_another() {
    each_seed(1, || async {
        let (lost, made) = replaced_one_by_one(false).await;
        // Those that went were one endpoint of each of the first ten.
        assert!(lost[..10].iter().all(|lost| *lost <= 1), "{lost:?}");
        assert!(lost[10..].iter().all(|lost| *lost == 0), "{lost:?}");
        assert_eq!(made, 0);
    });
}

/// Control run: endpoints of which something else is said each time are others each time.
#[test]
fn where_all_ten_thousand_endpoints_change_their_connections_are_lost() {
    each_seed(1, || async {
        let (lost, _) = replaced_one_by_one(true).await;
        assert_eq!(lost.iter().sum::<usize>(), 1000);
    });
}
