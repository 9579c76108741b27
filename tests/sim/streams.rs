//! Connections: who does not read (R19), limits of streams (R20), GOAWAY (R21), HTTP/1.1 connections that close as a
//! request comes (R22), and a network that loses everything (R23).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use mesh_client::{Client, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{Balancer, Keepalive, OutlierDetection, PerMillion, RetryOn, RetryPolicy};
use mesh_testkit::{FixedSource, clock};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::each_seed;
use crate::fleet::{Fleet, Handler, Manner, Wire};
use crate::load::{Policy, TARGET, client, failures, read, request, run, run_of, server_of};
use crate::pipe::lossy;

const SECOND: Duration = Duration::from_secs(1);
const CHUNK: usize = 16 * 1024;

/// `/large` is answered with 100 MB, everything else with little.
fn large() -> Handler {
    let chunk = Bytes::from(vec![7; CHUNK]);
    Arc::new(move |request| {
        let chunk = chunk.clone();
        async move {
            if request.uri().path() != "/large" {
                return Response::new(Full::new(Bytes::from_static(b"little")).boxed_unsync());
            }
            let frames = stream::repeat_with(move || Ok(Frame::data(chunk.clone()))).take(100_000_000 / CHUNK);
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        .boxed()
    })
}

/// Whether others are served over the same connection while so many do not read their answers.
async fn neighbours_are_served(stalled: usize, connection_window: Option<u32>) -> bool {
    let fleet = Fleet::with(1, Wire::Http2(100), large());
    let mut policy = Policy { timeout: Some(SECOND), ..Policy::http2() };
    policy.cluster.connection.initial_connection_window = connection_window;
    let (client, _source) = client(&fleet, &policy);
    let mut unread = Vec::new();
    for _ in 0..stalled {
        let answer = client.send(request(Method::GET, "/large", "")).await.unwrap();
        let mut body = answer.into_body();
        body.frame().await.unwrap().unwrap();
        unread.push(body);
    }
    clock::pass(SECOND / 10).await;
    let mut served = true;
    for _ in 0..50 {
        let answer = async { read(client.send(request(Method::GET, "/", "")).await?).await };
        served &= answer.await.is_ok_and(|answer| answer.body() == "little");
    }
    assert_eq!(fleet.server(0).connects(), 1, "they share a connection");
    served
}

#[test]
fn who_does_not_read_holds_up_nobody_on_the_same_connection_r19() {
    each_seed(2, || async {
        assert!(neighbours_are_served(1, None).await);
        assert!(neighbours_are_served(2, None).await);
        // Control: with no more room for all together than for one, one holds up all.
        assert!(!neighbours_are_served(1, Some(65_535)).await);
    });
}

/// How long the slowest but one in a hundred of 500 little requests took on a connection that loses a hundredth of what goes
/// over it, beside `stalled` large answers that nobody reads; `None` if one of them was not answered.
async fn over_a_lossy_connection(stalled: usize, connection_window: Option<u32>) -> Option<Duration> {
    let fleet = Fleet::with(1, Wire::Http2(100), large());
    let mut policy = Policy { timeout: Some(5 * SECOND), ..Policy::http2() };
    policy.cluster.connection.initial_connection_window = connection_window;
    let way = fleet.clone();
    let client = Client::builder(FixedSource::of(TARGET, policy.snapshot(fleet.endpoints())))
        .connector(move |address| {
            let line = way.connect(&address);
            async move { Ok(Box::new(lossy(line.await?)) as Box<dyn Io>) }
        })
        .build();
    let mut unread = Vec::new();
    for _ in 0..stalled {
        let mut body = client.send(request(Method::GET, "/large", "")).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        unread.push(body);
    }
    // Until all has come that there is room for.
    clock::pass(30 * SECOND).await;
    let mut took = Vec::new();
    for _ in 0..500 {
        let begun = Instant::now();
        let answer = async { read(client.send(request(Method::GET, "/", "")).await?).await };
        if answer.await.is_err() {
            return None;
        }
        took.push(begun.elapsed());
    }
    assert_eq!(fleet.server(0).connects(), 1, "they share a connection");
    took.sort_unstable();
    Some(took[took.len() * 99 / 100])
}

#[test]
fn who_does_not_read_holds_up_nobody_where_packets_are_lost_r19() {
    each_seed(2, || async {
        let alone = over_a_lossy_connection(0, None).await.unwrap();
        assert!(alone >= SECOND / 5, "control: {alone:?}, some wait for what was lost");
        let beside = over_a_lossy_connection(2, None).await.unwrap();
        assert!(beside <= 2 * alone, "{beside:?} beside two who do not read, {alone:?} alone");
        // Control: with no more room for all together than for one, one holds up all.
        assert_eq!(over_a_lossy_connection(1, Some(65_535)).await, None);
    });
}

#[test]
fn what_is_not_read_any_more_gives_its_room_back_r19() {
    each_seed(1, || async {
        let fleet = Fleet::with(1, Wire::Http2(100), large());
        let (client, _source) = client(&fleet, &Policy::http2());
        // Many times what the connection takes ahead.
        for round in 0..20 {
            let answer = client.send(request(Method::GET, "/large", "")).await.unwrap();
            let mut body = answer.into_body();
            for _ in 0..round % 4 {
                body.frame().await.unwrap().unwrap();
            }
            clock::pass(SECOND / 100).await;
            drop(body);
            let little = read(client.send(request(Method::GET, "/", "")).await.unwrap()).await.unwrap();
            assert_eq!(little.body(), "little");
        }
        assert_eq!(fleet.server(0).connects(), 1);
    });
}

/// Answers when it is let go; at once what is not `/long`.
fn held(gate: &Arc<Semaphore>) -> Handler {
    let gate = gate.clone();
    Arc::new(move |request| {
        let gate = gate.clone();
        async move {
            if request.uri().path() == "/long" {
                gate.acquire().await.unwrap().forget();
            }
            Response::new(Empty::new().boxed_unsync())
        }
        .boxed()
    })
}

async fn long(client: Client) -> Result<usize, Code> {
    match client.send(request(Method::GET, "/long", "")).await {
        Ok(answer) => Ok(server_of(&read(answer).await.unwrap())),
        Err(error) => Err(error.code()),
    }
}

#[test]
fn beyond_the_streams_of_one_connection_there_are_others_up_to_the_limit_r20() {
    each_seed(5, || async {
        for (limit, connections, served) in [(None, 5, 500), (Some(3), 3, 300)] {
            let gate = Arc::new(Semaphore::new(0));
            let fleet = Fleet::with(1, Wire::Http2(100), held(&gate));
            let mut policy = Policy { timeout: Some(10 * SECOND), ..Policy::http2() };
            policy.cluster.breaker.max_connections = limit;
            let (client, _source) = client(&fleet, &policy);
            let requests: Vec<_> = (0..500).map(|_| tokio::spawn(long(client.clone()))).collect();
            clock::pass(SECOND / 20).await;
            assert_eq!((fleet.server(0).seen(), fleet.open()), (served, connections), "within 50 ms");
            clock::pass(11 * SECOND).await;
            gate.add_permits(500);
            let outcomes = futures_util::future::join_all(requests).await;
            let late = outcomes.iter().filter(|outcome| *outcome.as_ref().unwrap() == Err(Code::TIMEOUT)).count();
            assert_eq!(late, 500, "each waits until its own deadline");
        }
    });
}

#[test]
fn who_waits_for_a_stream_fails_when_the_wait_is_over_and_says_why_r20() {
    each_seed(5, || async {
        for (wire, policy) in [(Wire::Http2(100), Policy::http2()), (Wire::Http1, Policy::default())] {
            let gate = Arc::new(Semaphore::new(0));
            let fleet = Fleet::with(1, wire, held(&gate));
            let mut policy = Policy { timeout: Some(10 * SECOND), ..policy };
            policy.cluster.breaker.max_connections = Some(1);
            policy.cluster.connection.max_concurrent_streams = Some(1);
            let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints()));
            let way = fleet.clone();
            let client =
                Client::builder(source).queue_wait(SECOND).connector(move |address| way.connect(&address)).build();
            let first = tokio::spawn(long(client.clone()));
            clock::pass(SECOND / 10).await;
            let begun = Instant::now();
            let error = client.send(request(Method::GET, "/long", "")).await.unwrap_err();
            assert_eq!((error.code(), begun.elapsed()), (Code::BREAKER_OPEN, SECOND), "{error}");
            assert!(error.to_string().contains("as many connections as allowed are in use"), "{error}");
            // Control: whose turn comes before that is served.
            let second = tokio::spawn(long(client.clone()));
            clock::pass(SECOND / 2).await;
            gate.add_permits(2);
            assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(0), Ok(0)));
        }
    });
}

#[test]
fn connections_that_are_replaced_cost_no_request_and_no_stream_r21() {
    each_seed(2, || async {
        let gate = Arc::new(Semaphore::new(0));
        let fleet = Fleet::with(2, Wire::Http2(100), held(&gate));
        let (client, _source) = client(&fleet, &Policy::http2());
        let stream = tokio::spawn(long(client.clone()));
        let recycling = async {
            for _ in 0..10 {
                clock::pass(2 * SECOND).await;
                fleet.iter().for_each(|server| server.recycle());
            }
        };
        let (records, ()) = tokio::join!(run(&client, 100.0, 20 * SECOND), recycling);
        assert!(failures(&records).is_empty(), "{:?}", failures(&records));
        gate.add_permits(1);
        assert!(stream.await.unwrap().is_ok(), "who was there before the first GOAWAY ends in peace");
        let connects: Vec<_> = fleet.iter().map(|server| server.connects()).collect();
        // Not each time: between two replacements all requests may go to the other server.
        assert!(connects.iter().all(|connects| *connects >= 5), "they were replaced: {connects:?}");
    });
}

/// Control run: connections that break without a word do cost requests that must not be sent twice.
#[test]
fn connections_that_break_cost_requests_r21() {
    each_seed(1, || async {
        let fleet = Fleet::of(2, 8, &Manner::default(), Wire::Http2(100), None);
        let (client, _source) = client(&fleet, &Policy::http2());
        let cutting = async {
            for _ in 0..10 {
                clock::pass(SECOND / 2).await;
                fleet.iter().for_each(|server| server.cut());
            }
        };
        let (records, ()) = tokio::join!(run_of(&client, Method::POST, 400.0, 5 * SECOND), cutting);
        assert!(!failures(&records).is_empty());
    });
}

const TRIALS: u64 = 150;

/// Sends each method again and again as the server's idle limit runs out, over a network that takes a millisecond.
/// Gives failures and executions of each.
async fn at_the_last_moment(method: &Method) -> (usize, u64) {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let executions = Arc::<AtomicU64>::default();
    let source =
        FixedSource::of(TARGET, Policy::default().snapshot(vec![Fleet::new(1, 1, &Manner::default()).endpoint(0)]));
    let counted = executions.clone();
    let client = Client::builder(source)
        .connector(move |_| {
            let (ours, theirs) = crate::pipe::distant(Duration::from_millis(1));
            tokio::spawn(closes_after_five_seconds(theirs, counted.clone()));
            async move { Ok(Box::new(ours) as Box<dyn mesh_client::Io>) }
        })
        .build();
    let mut failed = 0;
    for _ in 0..TRIALS {
        let body = if *method == Method::POST { "once" } else { "" };
        let answer = async { read(client.send(request(method.clone(), "/", body)).await?).await };
        failed += usize::from(answer.await.is_err());
        clock::pass(Duration::from_micros(4_995_000 + fastrand::u64(..6_000))).await;
    }
    (failed, executions.load(Relaxed))
}

/// Answers requests on one connection and closes it when none came for five seconds.
async fn closes_after_five_seconds(mut line: tokio::io::DuplexStream, executions: Arc<std::sync::atomic::AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = [0; 4096];
    while let Ok(Ok(read)) = tokio::time::timeout(5 * SECOND, line.read(&mut bytes)).await {
        if read == 0 {
            return;
        }
        executions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    }
}

#[test]
fn a_connection_that_closes_as_a_request_comes_costs_no_get_and_repeats_no_post_r22() {
    each_seed(5, || async {
        let (failed, _) = at_the_last_moment(&Method::GET).await;
        assert_eq!(failed, 0, "they may be sent again");
        let (failed, executions) = at_the_last_moment(&Method::POST).await;
        assert!(failed > 0, "control: the moment was met");
        assert_eq!(executions + failed as u64, TRIALS, "none twice, and what failed was not done");
    });
}

/// A server falls silent in the middle of a load of 50 a second at two. Gives the failures of what began within the
/// first two seconds (a request may take one), before its connection was found dead, and after that.
async fn silence(keepalive: bool) -> [usize; 3] {
    let fleet = Fleet::of(2, 8, &Manner::default(), Wire::Http2(100), None);
    let mut policy = Policy { timeout: Some(SECOND), ..Policy::http2() };
    policy.cluster.connection.connect_timeout = SECOND / 4;
    policy.cluster.balancer = Balancer::RoundRobin;
    if keepalive {
        policy.retry = Some(RetryPolicy::new(1, RetryOn { connect_failure: true, ..RetryOn::default() }));
        policy.cluster.connection.http2_keepalive = Some(Keepalive { interval: 10 * SECOND, timeout: 5 * SECOND });
        policy.cluster.outlier = Some(OutlierDetection {
            interval: SECOND,
            max_ejected: PerMillion::new(500_000),
            ..OutlierDetection::default()
        });
    }
    let (client, _source) = client(&fleet, &policy);
    let cut = async {
        clock::pass(5 * SECOND).await;
        fleet.server(0).fall_silent();
    };
    let (records, ()) = tokio::join!(run(&client, 50.0, 40 * SECOND), cut);
    let failed = |from: u32, to: u32| {
        let within = from * SECOND..to * SECOND;
        records.iter().filter(|record| within.contains(&record.at) && record.outcome.is_err()).count()
    };
    [failed(4, 7), failed(7, 20), failed(20, 40)]
}

#[test]
fn a_silent_network_costs_what_was_under_way_and_little_more_r23() {
    each_seed(2, || async {
        // When its ejection is over, the silent connection has long been found dead.
        let [at_first, later, again] = silence(true).await;
        println!("{at_first} lost in the first two seconds, {later} while it is out, {again} as it is tried again");
        assert!(at_first <= 40, "{at_first}");
        assert!(later <= 5, "{later}");
        assert!(again <= 5, "{again}");
        // Control: with neither pings nor ejection it goes on.
        let [_, later, without] = silence(false).await;
        assert!(later + without > 20, "{later} and {without}");
    });
}
