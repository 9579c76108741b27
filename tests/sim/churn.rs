//! Endpoints that come and go: flapping (R12), thousands replaced (R13), and streams on one that is removed (R14).

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Method, Response};
use http_body_util::{BodyExt, Empty};
use mesh_client::Client;
use mesh_core::policy::{Address, Balancer, Endpoint, EndpointMetadata};
use mesh_core::telemetry::Metrics;
use mesh_testkit::{FixedSource, clock};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

use crate::fleet::{Door, Fleet, Handler, Manner, Wire};
use crate::load::{Policy, Record, TARGET, client, client_from, either, failures, get, read, request, run, server_of};
use crate::{Verdict, each_seed, each_seed_by_itself, ensure, fails_for_some_seed, holds_for_each_seed};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

const FLAPS: u64 = 60;

/// Endpoints that come and go while others stay.
struct Flapping {
    fleet: Fleet,
    records: Vec<Record>,
    /// Tasks alive at the end of each quarter.
    tasks: [usize; 4],
}

/// A fifth of so many servers comes and goes every half second, `flaps` times, while `rate` requests are made in a
/// second; those that go die with their connections if `they_die`.
async fn flapping(servers: usize, flaps: u64, rate: f64, they_die: bool) -> Flapping {
    let fifth = servers / 5;
    let fleet = Fleet::new(servers, 8, &Manner { time: Duration::from_millis(50), ..Manner::default() });
    let policy = Policy::default();
    let (client, source) = client(&fleet, &policy);
    let mut alive = [0; 4];
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
            alive[(flap * 4 / flaps) as usize] = tasks();
        }
    };
    let (records, ()) = tokio::join!(run(&client, rate, Duration::from_secs(flaps / 2)), flap);
    drop((client, source));
    clock::pass(Duration::from_secs(1)).await;
    Flapping { fleet, records, tasks: alive }
}

/// No request is lost, each return costs a connection at most (and `more` where several requests are under way at once),
/// and nothing is left.
async fn flap_in_peace(servers: usize, flaps: u64, rate: f64, more: u64) -> [usize; 4] {
    let before = tasks();
    let Flapping { fleet, records, tasks: alive } = flapping(servers, flaps, rate, false).await;
    assert!(failures(&records).is_empty(), "{:?}", failures(&records));
    for (index, server) in fleet.iter().enumerate() {
        let most = if index < servers / 5 { (flaps / 2).min(server.seen()) + more } else { 3 + more };
        assert!(server.connects() <= most, "{} connections to {index}, {} requests", server.connects(), server.seen());
    }
    assert_eq!((fleet.open(), tasks()), (0, before));
    alive
}

#[test]
fn endpoints_that_flap_cost_no_request_and_leave_nothing_behind_r12() {
    each_seed(1, || async {
        flap_in_peace(20, FLAPS, 100.0, FLAPS / 4).await;
    });
    each_seed(20, || async {
        flap_in_peace(5, 8, 20.0, 3).await;
    });
}

/// Twenty of a hundred, for ten minutes.
#[test]
fn endpoints_that_flap_for_long_cost_no_request_and_leave_nothing_behind_r12() {
    each_seed(1, || async {
        let tasks = flap_in_peace(100, 1200, 20.0, 20).await;
        // Two for each connection, and those of requests under way; all endpoints have theirs soon.
        assert!(tasks[3] <= tasks[0] + 20, "they grow: {tasks:?}");
    });
}

/// Endpoints that nobody says are gone: two of ten take no connection for half a second, and then do for as long.
#[test]
fn endpoints_that_flap_unannounced_are_dialled_seldom_and_cost_no_request_r12() {
    each_seed(10, || async {
        let fleet = Fleet::new(10, 8, &Manner::default());
        let mut policy = Policy::default();
        policy.cluster.balancer = Balancer::RoundRobin;
        let (client, _source) = client(&fleet, &policy);
        let flap = async {
            let mut in_vain = [0; 2];
            for away in [true, false].repeat(4) {
                let before = [0, 1].map(|index| fleet.server(index).connects());
                for server in fleet.iter().take(2) {
                    server.change(|manner| manner.door = if away { Door::Shut } else { Door::Open });
                    server.recycle();
                }
                clock::pass(Duration::from_millis(500)).await;
                for index in if away { 0..2 } else { 0..0 } {
                    in_vain[index] += fleet.server(index).connects() - before[index];
                }
            }
            in_vain
        };
        let (records, in_vain) = tokio::join!(run(&client, 100.0, Duration::from_secs(4)), flap);
        assert!(failures(&records).is_empty(), "{:?}", failures(&records));
        // Of five requests each time that would go there.
        assert!(in_vain.iter().all(|tries| *tries <= 2 * 4), "{in_vain:?}");
    });
}

/// Control run: endpoints that die with what they are doing do cost requests.
#[test]
fn endpoints_that_die_without_a_word_cost_requests_r12() {
    each_seed(1, || async {
        let Flapping { records, .. } = flapping(20, FLAPS, 100.0, true).await;
        assert!(!failures(&records).is_empty());
    });
}

/// Some of two to five servers come and go three times, each time for as long as the seed says. Discovery says so, or they
/// just take no connection; those that go `die` with what they have in hand, or finish it.
async fn some_flap(die: bool) -> Verdict {
    let (policy, wire) = either(fastrand::bool());
    let fleet = Fleet::of(fastrand::usize(2..=5), 8, &Manner { even: true, ..busy() }, wire, None);
    let (announced, flapping) = (fastrand::bool(), fastrand::usize(1..fleet.len()));
    let before = tasks();
    let (client, source) = client(&fleet, &policy);
    let flap = async {
        for away in [true, false].repeat(3) {
            clock::pass(Duration::from_millis(fastrand::u64(40..160))).await;
            if announced {
                source.set_snapshot(
                    TARGET,
                    policy.snapshot(fleet.endpoints().split_off(if away { flapping } else { 0 })),
                );
            }
            for server in fleet.iter().take(flapping) {
                server.change(|manner| manner.door = if away && !announced { Door::Shut } else { Door::Open });
                if die { server.cut() } else { server.recycle() }
            }
        }
    };
    let (records, ()) = tokio::join!(run(&client, 20.0, Duration::from_millis(600)), flap);
    let what = format!("{flapping} of {}, {wire:?}, announced: {announced}", fleet.len());
    ensure(failures(&records).is_empty(), || format!("{:?} with {what}", failures(&records)))?;
    for (index, server) in fleet.iter().enumerate() {
        // A connection for each return, two tries at most for each time away, and those that are wanted at once.
        let most = if index >= flapping { 4 } else { 3 + 3 * 2 + 4 };
        ensure(server.connects() <= most, || format!("{} connections to {index} with {what}", server.connects()))?;
    }
    drop((client, source));
    clock::pass(Duration::from_secs(1)).await;
    ensure((fleet.open(), tasks()) == (0, before), || format!("{} open, {} tasks: {what}", fleet.open(), tasks()))
}

fn busy() -> Manner {
    Manner { time: Duration::from_millis(20), ..Manner::default() }
}

#[test]
fn whoever_flaps_and_however_it_costs_no_request_and_leaves_nothing_behind_r12() {
    holds_for_each_seed(|| some_flap(false));
}

/// Control run.
#[test]
fn whoever_dies_as_it_flaps_costs_requests_r12() {
    fails_for_some_seed(|| some_flap(true));
}

const FLEET: usize = 5000;
const LOAD: Duration = Duration::from_millis(50);

/// What there is besides bytes.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    connections: usize,
    tasks: usize,
    series: usize,
}

/// Endpoints that are replaced under load.
struct Churn {
    policy: Policy,
    wire: Wire,
    servers: usize,
    /// Endpoints there are at a time.
    listed: usize,
    /// Of these so many are replaced each second,
    replaced: usize,
    /// and so many requests come.
    requests: usize,
    /// So many seconds, before anything is measured and after it.
    seconds: [usize; 2],
}

impl Churn {
    /// Two minutes, a tenth of five thousand endpoints each second.
    fn whole() -> Self {
        let policy = Policy::default();
        let (wire, replaced) = (Wire::Http1, FLEET / 10);
        Self { policy, wire, servers: 50, listed: FLEET, replaced, requests: 20, seconds: [20, 120] }
    }

    /// A few seconds, as many of a few endpoints as the seed says.
    fn short() -> Self {
        let (policy, wire) = either(fastrand::bool());
        let (servers, listed) = (fastrand::usize(1..=4), fastrand::usize(4..=12));
        let replaced = fastrand::usize(1..=listed);
        Self { policy, wire, servers, listed, replaced, requests: 2, seconds: [3, 3] }
    }

    /// Plays it, and after it all are replaced and nothing comes for ten minutes; gives the bytes that are held more at its
    /// end, and what there is before, under load, and after. Answers that are not read hold what they came from: those
    /// are given to `keep`.
    fn play(mut self, mut keep: impl FnMut(Response<mesh_client::Body>)) -> (i64, [Held; 3]) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let manner = Manner { time: Duration::from_millis(1), ..Manner::default() };
        let fleet = Fleet::of(self.servers, 8, &manner, self.wire, None);
        self.policy.cluster.connection.idle_timeout = Some(Duration::from_secs(5));
        let (metrics, way) = (Arc::<Metrics>::default(), fleet.clone());
        let source = FixedSource::of(TARGET, self.policy.snapshot(self.endpoints(&fleet, 0)));
        let client = Client::builder(source.clone()).metrics(metrics.clone());
        let client = client.connector(move |address| way.connect(&address)).build();
        let mut replaced = 0;
        let mut change = |by: usize| {
            replaced += by;
            source.set_snapshot(TARGET, self.policy.snapshot(self.endpoints(&fleet, replaced)));
        };
        let mut seconds = |seconds: usize, keep: &mut dyn FnMut(Response<mesh_client::Body>)| {
            runtime.block_on(async {
                for _ in 0..seconds {
                    change(self.replaced);
                    for number in 0..self.requests {
                        match number {
                            0 => keep(client.send(request(Method::GET, "/", "")).await.unwrap()),
                            _ => assert_eq!(get(&client).await.unwrap().status(), 200),
                        }
                        clock::pass(LOAD).await;
                    }
                }
            });
            let under_load = held(&fleet, &metrics, &runtime);
            // Those that are there then have seen no request, and idle connections are closed.
            runtime.block_on(async {
                change(self.listed);
                clock::pass(Duration::from_secs(600)).await;
            });
            under_load
        };
        // Buffers grow to their size, and metrics get their series.
        seconds(self.seconds[0], &mut keep);
        let before = held(&fleet, &metrics, &runtime);
        let mut under_load = None;
        let memory = allocation_counter::measure(|| under_load = Some(seconds(self.seconds[1], &mut keep)));
        assert_eq!(client.dump().destinations[0].clusters[0].endpoints.len(), self.listed);
        (memory.bytes_current, [before, under_load.unwrap(), held(&fleet, &metrics, &runtime)])
    }

    /// After so many were replaced. Each generation of a place has an address of its own.
    fn endpoints(&self, fleet: &Fleet, replaced: usize) -> Vec<Endpoint> {
        let generations = self.listed.div_ceil(self.servers);
        let address = |place: usize| {
            let generation = (replaced + self.listed - 1 - place) / self.listed;
            fleet.address(place % self.servers, place / self.servers + generation * generations)
        };
        (0..self.listed).map(|place| Endpoint::new(Address::Socket(address(place)))).collect()
    }
}

fn held(fleet: &Fleet, metrics: &Metrics, runtime: &Runtime) -> Held {
    let mut series = 0;
    metrics.visit(|_, _, _| series += 1);
    Held { connections: fleet.open(), tasks: runtime.metrics().num_alive_tasks(), series }
}

#[test]
fn endpoints_that_are_replaced_leave_no_memory_behind_r13() {
    each_seed_by_itself(1, || {
        let (bytes, [before, under_load, after]) = Churn::whole().play(drop);
        println!("{bytes} bytes more after 60,000 endpoints came and went; {after:?}");
        assert!(bytes < 64 * 1024, "{bytes} bytes more");
        assert_eq!((before.connections, before.series), (0, 1), "one service");
        assert_eq!(after, before);
        assert!(under_load.connections > 10 && under_load.tasks > before.tasks + 10, "control: {under_load:?}");
    });
    let most = Cell::new(0);
    each_seed_by_itself(1000, || {
        let (bytes, [before, under_load, after]) = Churn::short().play(drop);
        most.set(most.get().max(bytes));
        assert!(bytes < LITTLE, "{bytes} bytes more");
        assert_eq!((before.connections, before.series, &before), (0, 1, &after));
        assert!(under_load.connections > 0 && under_load.tasks > before.tasks, "control: {under_load:?}");
    });
    println!("{} bytes more at most after a few came and went", most.get());
}

/// Bytes that are held more or less from one moment to another, whatever came between.
const LITTLE: i64 = 2048;

/// Control run: what is held of endpoints that are gone is seen.
#[test]
fn answers_that_are_kept_keep_their_endpoints_r13() {
    let kept = |churn: Churn| {
        let mut kept = Vec::new();
        let (bytes, _) = churn.play(|answer| kept.push(answer));
        println!("{bytes} bytes more with {} answers", kept.len());
        bytes
    };
    each_seed_by_itself(1, || assert!(kept(Churn::whole()) > 64 * 1024));
    let most = Cell::new(0);
    each_seed_by_itself(20, || most.set(most.get().max(kept(Churn::short()))));
    assert!(most.get() > LITTLE, "{} bytes", most.get());
}

/// Answers once it is let go.
fn gated(gate: &Arc<Semaphore>) -> Handler {
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
    each_seed(1000, || async {
        let (policy, wire) = either(fastrand::bool());
        let gate = Arc::new(Semaphore::new(0));
        let fleet = Fleet::with(2, wire, gated(&gate));
        let before = tasks();
        let source = FixedSource::of(TARGET, policy.snapshot(vec![fleet.endpoint(0)]));
        let client = client_from(&fleet, &source);
        let streams: Vec<_> = (0..50).map(|_| tokio::spawn(whole(client.clone()))).collect();
        until(|| fleet.server(0).seen() == 50).await;

        source.set_snapshot(TARGET, policy.snapshot(vec![fleet.endpoint(1)]));
        clock::pass(Duration::from_millis(fastrand::u64(1..100))).await;
        let new: Vec<_> = (0..5).map(|_| tokio::spawn(whole(client.clone()))).collect();
        until(|| fleet.server(1).seen() == 5).await;
        assert_eq!(fleet.server(0).seen(), 50, "nothing new goes to who is leaving");
        assert!(fleet.server(0).open() > 0);
        gate.add_permits(55);
        for stream in streams {
            assert_eq!(stream.await.unwrap(), 0, "it ends in peace");
        }
        for stream in new {
            assert_eq!(stream.await.unwrap(), 1);
        }
        until(|| fleet.server(0).open() == 0).await;
        assert!(fleet.server(1).open() > 0, "control: who stays keeps its connections");
        drop((client, source));
        until(|| fleet.open() == 0).await;
        clock::pass(Duration::from_secs(1)).await;
        assert_eq!(tasks(), before);
    });
}

#[test]
fn streams_of_a_removed_endpoint_that_do_not_end_are_cut_off_at_the_limit_r14() {
    const LIMIT: Duration = Duration::from_secs(30);
    each_seed(2, || async {
        for (policy, wire) in [either(true), either(false)] {
            let fleet = Fleet::with(2, wire, gated(&Arc::new(Semaphore::new(0))));
            let before = tasks();
            let source = FixedSource::of(TARGET, policy.snapshot(vec![fleet.endpoint(0)]));
            let client = client_from(&fleet, &source);
            let lost = |client: Client| async move { client.send(request(Method::GET, "/", "")).await.is_err() };
            let streams: Vec<_> = (0..50).map(|_| tokio::spawn(lost(client.clone()))).collect();
            until(|| fleet.server(0).seen() == 50).await;
            source.set_snapshot(TARGET, policy.snapshot(vec![fleet.endpoint(1)]));
            clock::pass(LIMIT - Duration::from_secs(1)).await;
            assert!(fleet.server(0).open() > 0, "control: they have had their time");
            clock::pass(Duration::from_secs(2)).await;
            assert_eq!(fleet.server(0).open(), 0);
            for stream in streams {
                assert!(stream.await.unwrap());
            }
            drop((client, source));
            clock::pass(Duration::from_secs(1)).await;
            assert_eq!((fleet.open(), tasks()), (0, before));
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
