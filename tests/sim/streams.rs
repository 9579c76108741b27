//! Connections: who does not read (R19), limits of streams (R20), GOAWAY (R21), HTTP/1.1 connections that close as a
//! request comes (R22), and a network that loses everything (R23).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use mesh_client::{Client, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{Address, Balancer, Keepalive, OutlierDetection, PerMillion, RetryOn, RetryPolicy};
use mesh_testkit::{FixedSource, clock};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::brief::one_of;
use crate::fleet::{Fleet, Handler, Manner, Wire};
use crate::load::{Policy, TARGET, client, either, failures, get, read, request, run, run_of, server_of};
use crate::pipe::{AGAIN, lossy};
use crate::{Verdict, each_seed, ensure, fails_for_some_seed, holds_for_each_seed};

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
    // Nothing is drawn.
    each_seed(1, || async {
        for stalled in [1, 2, 3, 8, 64] {
            assert!(neighbours_are_served(stalled, None).await, "{stalled}");
        }
        // Control: with no more room for all together than for one, one holds up all, and three where it is that of two.
        assert!(!neighbours_are_served(1, Some(65_535)).await);
        assert!(neighbours_are_served(2, Some(5 << 20)).await);
        assert!(!neighbours_are_served(3, Some(5 << 20)).await);
    });
}

fn lossy_client(fleet: &Fleet, policy: &Policy, one_in: u32, lost: &Arc<AtomicU32>) -> Client {
    let (way, lost) = (fleet.clone(), lost.clone());
    Client::builder(FixedSource::of(TARGET, policy.snapshot(fleet.endpoints())))
        .connector(move |address| {
            let (line, lost) = (way.connect(&address), lost.clone());
            async move { Ok(Box::new(lossy(line.await?, one_in, &lost)) as Box<dyn Io>) }
        })
        .build()
}

/// How long the slowest of 500 little requests took on a connection that loses a hundredth of what goes over it, so that
/// some ten of them wait for it, beside `stalled` large answers that nobody reads; `None` if one of them was not answered.
async fn over_a_lossy_connection(stalled: usize, connection_window: Option<u32>) -> Option<Duration> {
    let fleet = Fleet::with(1, Wire::Http2(100), large());
    let mut policy = Policy { timeout: Some(5 * SECOND), ..Policy::http2() };
    policy.cluster.connection.initial_connection_window = connection_window;
    let client = lossy_client(&fleet, &policy, 100, &Arc::default());
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
    took.into_iter().max()
}

#[test]
fn who_does_not_read_holds_up_nobody_where_packets_are_lost_r19() {
    each_seed(8, || async {
        let alone = over_a_lossy_connection(0, None).await.unwrap();
        assert!(alone >= SECOND / 5, "control: {alone:?}, some wait for what was lost");
        let beside = over_a_lossy_connection(2, None).await.unwrap();
        assert!(beside <= 3 * alone, "{beside:?} beside two who do not read, {alone:?} alone");
        // Control: with no more room for all together than for one, one holds up all.
        assert_eq!(over_a_lossy_connection(1, Some(65_535)).await, None);
    });
}

/// Four large answers of which up to three frames are read: they are let go of, but for two at most that are kept and not
/// read on. Requests between them wait for nothing but what the network has lost, if it loses anything. There is room
/// for four in a connection, or for one.
async fn little_ones_get_through(room: bool) -> Verdict {
    let fleet = Fleet::with(1, Wire::Http2(100), large());
    let mut policy = Policy { timeout: Some(20 * SECOND), ..Policy::http2() };
    let window = 65_535 * fastrand::u32(1..=2);
    policy.cluster.connection.initial_stream_window = Some(window);
    policy.cluster.connection.initial_connection_window = Some(if room { window * 4 } else { 65_535 });
    let (lost, one_in) = (Arc::<AtomicU32>::default(), [10, 30, u32::MAX][fastrand::usize(..3)]);
    let client = lossy_client(&fleet, &policy, one_in, &lost);
    let mut kept = Vec::new();
    for round in 0..4 {
        let large = client.send(request(Method::GET, "/large", "")).await.map_err(|error| error.to_string())?;
        let mut body = large.into_body();
        for _ in 0..fastrand::usize(..=3) {
            let frame = tokio::time::timeout(20 * SECOND, body.frame()).await;
            ensure(frame.is_ok_and(|frame| frame.is_some_and(|f| f.is_ok())), || format!("no room in round {round}"))?;
        }
        clock::pass(Duration::from_millis(fastrand::u64(..50))).await;
        if kept.len() < 2 && fastrand::bool() {
            kept.push(body);
        }
        let (begun, before) = (Instant::now(), lost.load(Relaxed));
        let answer = async { read(client.send(request(Method::GET, "/", "")).await?).await };
        let little = answer.await.is_ok_and(|answer| answer.body() == "little");
        let (took, lost) = (begun.elapsed(), lost.load(Relaxed) - before);
        let what = || format!("little: {little}, {took:?}, {lost} lost, {} not read, window {window}", kept.len());
        ensure(little && took <= AGAIN * lost, what)?;
    }
    ensure(fleet.server(0).connects() == 1, || "they share a connection".to_owned())
}

#[test]
fn whoever_does_not_read_and_whatever_is_lost_others_wait_for_none_of_them_r19() {
    holds_for_each_seed(|| little_ones_get_through(true));
}

/// Control run: no more room for all together than for one.
#[test]
fn without_room_whoever_does_not_read_holds_up_others_r19() {
    fails_for_some_seed(|| little_ones_get_through(false));
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
    // Nothing is drawn.
    each_seed(1, || async {
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

/// Up to fourteen requests that take long, to a server that takes so many streams: connections are made for them up to
/// the limit that `policy` may have; then some end, as many others begin, and the rest are told in their time.
async fn streams_begin_up_to_the_limit(limited: bool) -> Verdict {
    let (allowed, count) = (fastrand::usize(1..=4), fastrand::usize(1..=14));
    let most = [usize::MAX, fastrand::usize(1..=3)][fastrand::usize(..2)];
    let gate = Arc::new(Semaphore::new(0));
    let fleet = Fleet::with(1, Wire::Http2(allowed as u32), held(&gate));
    let mut policy = Policy { timeout: Some(10 * SECOND), ..Policy::http2() };
    policy.cluster.breaker.max_connections = u32::try_from(most).ok().filter(|_| limited);
    let (client, _source) = client(&fleet, &policy);
    let server = fleet.server(0);
    let mut requests = Vec::new();
    for _ in 0..count {
        requests.push(tokio::spawn(long(client.clone())));
        clock::pass(Duration::from_millis(fastrand::u64(..3))).await;
    }
    clock::pass(SECOND / 20).await;
    let connections = count.div_ceil(allowed).min(most);
    let served = count.min(connections * allowed);
    let what = format!("{count} requests, {allowed} streams each of at most {most} connections");
    let is = |served: usize| {
        let found = (server.seen() as usize, fleet.open());
        ensure(found == (served, connections), || format!("{found:?}, not {:?}: {what}", (served, connections)))
    };
    is(served)?;
    let ended = fastrand::usize(..=served);
    gate.add_permits(ended);
    clock::pass(SECOND / 20).await;
    is(count.min(served + ended))?;
    clock::pass(10 * SECOND).await;
    let outcomes = futures_util::future::join_all(requests).await;
    let of = |want| outcomes.iter().filter(|outcome| *outcome.as_ref().unwrap() == want).count();
    let found = (of(Ok(0)), of(Err(Code::TIMEOUT)));
    ensure(found == (ended, count - ended), || format!("{found:?}, {ended} ended: {what}"))
}

#[test]
fn whatever_the_limits_streams_begin_up_to_them_and_others_wait_r20() {
    holds_for_each_seed(|| streams_begin_up_to_the_limit(true));
}

/// Control run.
#[test]
fn without_a_limit_there_are_as_many_connections_as_it_takes_r20() {
    fails_for_some_seed(|| streams_begin_up_to_the_limit(false));
}

#[test]
fn who_waits_for_a_stream_fails_when_the_wait_is_over_and_says_why_r20() {
    // Nothing is drawn.
    each_seed(1, || async {
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

/// So many rounds of two seconds, in which so many requests come in a second, and then both servers replace their
/// connections. One stream is held open all the time.
async fn replaced(rounds: u64, rate: f64) -> Vec<u64> {
    let gate = Arc::new(Semaphore::new(0));
    let fleet = Fleet::with(2, Wire::Http2(100), held(&gate));
    let (client, _source) = client(&fleet, &Policy::http2());
    let stream = tokio::spawn(long(client.clone()));
    let recycling = async {
        for _ in 0..rounds {
            clock::pass(2 * SECOND).await;
            fleet.iter().for_each(|server| server.recycle());
        }
    };
    let (records, ()) = tokio::join!(run(&client, rate, SECOND * 2 * rounds as u32), recycling);
    assert!(failures(&records).is_empty(), "{:?}", failures(&records));
    gate.add_permits(1);
    assert!(stream.await.unwrap().is_ok(), "who was there before the first GOAWAY ends in peace");
    fleet.iter().map(|server| server.connects()).collect()
}

#[test]
fn connections_that_are_replaced_cost_no_request_and_no_stream_r21() {
    each_seed(1, || async {
        let connects = replaced(10, 1000.0).await;
        assert!(connects.iter().all(|connects| *connects >= 10), "they were replaced: {connects:?}");
    });
    each_seed(10, || async {
        let connects = replaced(3, 15.0).await;
        // Not each time: between two replacements all requests may go to the other server.
        assert!(connects.iter().sum::<u64>() >= 3, "they were replaced: {connects:?}");
    });
}

/// One to three servers replace their connections, or cut them, three times, while requests come that take 20 ms, and one
/// stream is held open all the time.
async fn some_are_replaced(graceful: bool) -> Verdict {
    let (policy, wire) = either(fastrand::bool());
    // Over HTTP/1.1 a connection may close as a request comes, and what must not be sent twice is lost then (R22).
    let post = matches!(wire, Wire::Http2(_)) && fastrand::bool();
    let gate = Arc::new(Semaphore::new(0));
    let fleet = Fleet::with(fastrand::usize(1..=3), wire, held_or_slow(&gate));
    let (client, _source) = client(&fleet, &policy);
    let stream = tokio::spawn(long(client.clone()));
    let recycling = async {
        for _ in 0..3 {
            clock::pass(Duration::from_millis(fastrand::u64(50..120))).await;
            let which = fastrand::usize(..fleet.len() * 2);
            for (_, server) in fleet.iter().enumerate().filter(|(index, _)| which == *index || which >= fleet.len()) {
                if graceful { server.recycle() } else { server.cut() }
            }
        }
    };
    let method = if post { Method::POST } else { Method::GET };
    let (records, ()) = tokio::join!(run_of(&client, method.clone(), 40.0, SECOND * 3 / 10), recycling);
    ensure(failures(&records).is_empty(), || format!("{method} over {wire:?}: {:?}", failures(&records)))?;
    gate.add_permits(1);
    let stream = stream.await.unwrap();
    ensure(stream.is_ok(), || format!("the stream that was there before, over {wire:?}: {stream:?}"))
}

/// The same as [`held`], but what is not `/long` takes a while.
fn held_or_slow(gate: &Arc<Semaphore>) -> Handler {
    let held = held(gate);
    Arc::new(move |request| {
        let long = request.uri().path() == "/long";
        let answer = held(request);
        async move {
            if !long {
                clock::pass(SECOND / 50).await;
            }
            answer.await
        }
        .boxed()
    })
}

#[test]
fn whoever_replaces_its_connections_it_costs_no_request_and_no_stream_r21() {
    holds_for_each_seed(|| some_are_replaced(true));
}

/// Control run.
#[test]
fn whoever_cuts_its_connections_costs_requests_r21() {
    fails_for_some_seed(|| some_are_replaced(false));
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

/// Sends a method so many times, each within a millisecond of the moment at which the server's idle limit runs out, over a
/// network that takes a millisecond. Gives failures and executions.
async fn at_the_last_moment(method: &Method, trials: u64) -> (u64, u64) {
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
    for _ in 0..trials {
        let body = if *method == Method::POST { "once" } else { "" };
        let answer = async { read(client.send(request(method.clone(), "/", body)).await?).await };
        failed += u64::from(answer.await.is_err());
        // From the answer on; the server counts from the request, a millisecond before, to the next one's arrival.
        clock::pass(Duration::from_micros(4_997_000 + fastrand::u64(..2_000))).await;
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
    const TRIALS: u64 = 6;
    let met = Cell::new(0);
    each_seed(1000, || async {
        let (failed, _) = at_the_last_moment(&Method::GET, TRIALS).await;
        assert_eq!(failed, 0, "they may be sent again");
        let (failed, executions) = at_the_last_moment(&Method::POST, TRIALS).await;
        assert_eq!(executions + failed, TRIALS, "none twice, and what failed was not done");
        met.set(met.get() + failed);
    });
    println!("{} POSTs met the moment", met.get());
    assert!(met.get() > 0, "control: the moment was met");
}

/// What became of requests while a server was silent.
struct Silence {
    /// Failures of those that began before anybody could know, within the second that the first of them waited.
    unknowing: usize,
    /// Failures of those that began later, until the first ejection was over, and after that.
    later: [usize; 2],
    /// When the client had given up its connection to it, from the beginning of the silence.
    noticed: Option<Duration>,
}

/// Requests take a second at most; and pings and ejection find out who is silent.
fn attentive(guarded: bool) -> Policy {
    let mut policy = Policy { timeout: Some(SECOND), ..Policy::http2() };
    policy.cluster.connection.connect_timeout = SECOND / 4;
    policy.cluster.balancer = Balancer::RoundRobin;
    if guarded {
        policy.retry = Some(RetryPolicy::new(1, RetryOn { connect_failure: true, ..RetryOn::default() }));
        policy.cluster.connection.http2_keepalive = Some(Keepalive { interval: 10 * SECOND, timeout: 5 * SECOND });
        policy.cluster.outlier = Some(OutlierDetection {
            consecutive_5xx: Some(1),
            interval: SECOND,
            max_ejected: PerMillion::new(500_000),
            ..OutlierDetection::default()
        });
    }
    policy
}

/// A server falls silent in the middle of a load of so many in a second at two.
async fn silence(keepalive: bool, rate: f64) -> Silence {
    let fleet = Fleet::of(2, 8, &Manner::default(), Wire::Http2(100), None);
    let (client, _source) = client(&fleet, &attentive(keepalive));
    let cut = async {
        clock::pass(5 * SECOND).await;
        fleet.server(0).fall_silent();
        let begun = Instant::now();
        while fleet.server(0).open() > 0 && begun.elapsed() < 30 * SECOND {
            clock::pass(SECOND / 10).await;
        }
        (fleet.server(0).open() == 0).then(|| begun.elapsed())
    };
    let (records, noticed) = tokio::join!(run(&client, rate, 45 * SECOND), cut);
    let failed = |from: Duration, to: Duration| {
        records.iter().filter(|record| (from..to).contains(&record.at) && record.outcome.is_err()).count()
    };
    // The first that waits in vain began at the next turn of the silent one.
    let known = 6 * SECOND + SECOND.mul_f64(6.0 / rate) + SECOND / 20;
    let later = [failed(known, 35 * SECOND), failed(35 * SECOND, 45 * SECOND)];
    Silence { unknowing: failed(4 * SECOND, known), later, noticed }
}

#[test]
fn a_silent_network_costs_what_was_under_way_and_little_more_r23() {
    let play = |rate: f64| async move {
        let Silence { unknowing, later, noticed } = silence(true, rate).await;
        // Half of what comes in the second that the first one waits.
        assert!(unknowing as f64 <= rate, "{unknowing}");
        assert!(unknowing > 0, "control: it was silent");
        assert_eq!(
            later, [0; 2],
            "new ones avoid it after the first missed deadline, and it is tried with none to lose"
        );
        assert!(noticed.is_some_and(|time| time <= 15 * SECOND + SECOND / 5), "{noticed:?}");
    };
    each_seed(2, || play(50.0));
    each_seed(5, || play(8.0));
    // Control: with neither pings nor ejection it goes on.
    each_seed(1, || async {
        let Silence { later, noticed, .. } = silence(false, 50.0).await;
        assert!(later.iter().sum::<usize>() > 20 && noticed.is_none(), "{later:?}, {noticed:?}");
    });
}

/// One of two or three servers, all of which are in use, falls silent at some moment of a load of two requests in three
/// seconds. Whatever fails began before the first deadline was missed, and the connection is given up in time.
async fn one_falls_silent(guarded: bool) -> Verdict {
    let fleet = Fleet::of(fastrand::usize(2..=3), 8, &Manner::default(), Wire::Http2(100), None);
    let (client, _source) = client(&fleet, &attentive(guarded));
    for _ in 0..fleet.len() {
        get(&client).await.map_err(|error| error.to_string())?;
    }
    let silent = fleet.server(fastrand::usize(..fleet.len()));
    let cut = async {
        clock::pass(Duration::from_millis(fastrand::u64(..2_000))).await;
        silent.fall_silent();
        let begun = Instant::now();
        while silent.open() > 0 && begun.elapsed() < 16 * SECOND {
            clock::pass(SECOND / 5).await;
        }
        begun.elapsed()
    };
    let (records, noticed) = tokio::join!(run(&client, 0.7, 16 * SECOND), cut);
    let mut failed = records.iter().filter(|record| record.outcome.is_err()).map(|record| record.at);
    let known = failed.next().map(|first| first + SECOND + SECOND / 100);
    let later = failed.filter(|at| known.is_some_and(|known| *at > known)).count();
    ensure(later == 0, || format!("{later} failed later: {:?}", failures(&records)))?;
    ensure(noticed <= 15 * SECOND + SECOND / 2, || format!("noticed after {noticed:?}"))
}

#[test]
fn whenever_one_falls_silent_it_costs_what_was_under_way_r23() {
    holds_for_each_seed(|| one_falls_silent(true));
}

/// Control run.
#[test]
fn whenever_one_falls_silent_without_pings_and_ejection_it_goes_on_r23() {
    fails_for_some_seed(|| one_falls_silent(false));
}

/// One of two to four servers takes requests and answers none, or that it is too late, and a try has so much time. Of the
/// fifteen requests a second of the next ten seconds few go there.
async fn one_answers_nothing(balancer: Balancer) -> Verdict {
    let (mut policy, wire) = either(fastrand::bool());
    policy.cluster.balancer = balancer;
    let per_try = Duration::from_millis(fastrand::u64(50..1_000));
    let policy = policy.retrying(1, Some(per_try));
    let fleet = Fleet::of(fastrand::usize(2..=4), 8, &Manner::default(), wire, None);
    let (client, _source) = client(&fleet, &policy);
    let silent = fleet.server(fastrand::usize(..fleet.len()));
    let patience = fastrand::bool().then(|| per_try.mul_f64(0.5 + fastrand::f64() / 3.0));
    silent.change(|manner| (manner.time, manner.even, manner.patience) = (3600 * SECOND, true, patience));
    let took = patience.unwrap_or(per_try);
    let records = run(&client, 15.0, 10 * SECOND).await;
    ensure(records.iter().all(|record| record.outcome.is_ok()), || format!("{:?}", failures(&records)))?;
    // It is left alone twice as long each time, up to five seconds, and asked by one or a few when that is over.
    let times = (10.0 / took.as_secs_f64()).log2() + 2.0;
    let (seen, all) = (silent.seen(), records.len());
    let what = || format!("{seen} of {all} in vain for {took:?} each, {} servers, {wire:?}", fleet.len());
    ensure(seen as f64 <= 1.5 * times, what)
}

#[test]
fn whoever_answers_nothing_is_asked_less_and_less_r23() {
    holds_for_each_seed(|| one_answers_nothing(one_of(&[Balancer::least_request(), Balancer::PeakEwma])));
}

#[test]
fn it_is_told_for_how_long_who_was_late_is_passed_over() {
    each_seed(1, || async {
        let (half, fleet) = (SECOND / 2, Fleet::new(1, 1, &Manner::default()));
        let (client, _source) = client(&fleet, &Policy::default().retrying(0, Some(half)));
        let told = || {
            let endpoint = &client.dump().destinations[0].clusters[0].endpoints[0];
            (endpoint.late.map(|time| time.as_millis()), endpoint.failure_penalty)
        };
        get(&client).await.unwrap();
        assert_eq!(told(), (None, 1.0));
        fleet.server(0).change(|manner| (manner.time, manner.even) = (3600 * SECOND, true));
        assert!(get(&client).await.is_err());
        assert_eq!(told(), (Some(500), 16.0));
        clock::pass(half / 5).await;
        assert_eq!(told(), (Some(400), 16.0));
        clock::pass(half).await;
        let (late, penalty) = told();
        assert!(late.is_none() && penalty < 2.0, "{late:?}, {penalty}");
    });
}

/// Control run: by turns.
#[test]
fn whoever_answers_nothing_is_asked_like_others_by_turns_r23() {
    fails_for_some_seed(|| one_answers_nothing(Balancer::RoundRobin));
}

/// Connections that nobody uses are lost without a word, as a firewall forgets them, and new ones would be fine. Gives what
/// becomes of the first two requests to each of so many servers after that.
async fn after_idle_silence(keepalive: bool, servers: usize, idle: Duration) -> Vec<bool> {
    let fleet = Fleet::of(servers, 8, &Manner::default(), Wire::Http2(100), None);
    let mut policy = Policy { timeout: Some(SECOND), ..Policy::http2() };
    policy.cluster.balancer = Balancer::RoundRobin;
    if keepalive {
        policy.cluster.connection.http2_keepalive = Some(Keepalive { interval: 10 * SECOND, timeout: 5 * SECOND });
    }
    let (client, _source) = client(&fleet, &policy);
    for _ in 0..servers {
        assert!(get(&client).await.is_ok());
        clock::pass(Duration::from_millis(fastrand::u64(..500))).await;
    }
    let lost = 1 + fastrand::usize(..servers);
    fleet.iter().take(lost).for_each(|server| server.lose());
    clock::pass(idle).await;
    let mut answered = Vec::new();
    for _ in 0..servers * 2 {
        answered.push(get(&client).await.is_ok());
    }
    answered
}

async fn idle_silence_is_found_out(keepalive: bool) -> Verdict {
    // Ten seconds until the next ping, and five for its answer.
    let idle = Duration::from_millis(fastrand::u64(15_010..90_000));
    let answered = after_idle_silence(keepalive, fastrand::usize(1..=4), idle).await;
    ensure(!answered.contains(&false), || format!("{answered:?} after {idle:?}"))
}

#[test]
fn whichever_idle_connections_fell_silent_they_are_found_out_before_they_are_used_r23() {
    holds_for_each_seed(|| idle_silence_is_found_out(true));
}

/// Control run.
#[test]
fn whichever_idle_connections_fell_silent_without_pings_they_are_used_r23() {
    fails_for_some_seed(|| idle_silence_is_found_out(false));
}

#[test]
fn an_idle_connection_that_fell_silent_is_found_out_before_it_is_used_r23() {
    // Nothing is drawn.
    each_seed(1, || async {
        assert_eq!(after_idle_silence(true, 1, 30 * SECOND).await, [true; 2]);
        // Control: without pings requests are sent into the dark.
        assert_eq!(after_idle_silence(false, 1, 30 * SECOND).await, [false; 2]);
    });
}

/// The first request to a list of servers to which connecting takes so many milliseconds: how long it took, and which server
/// answered. The next requests are answered by the same one at once.
async fn first_of_list(list: &[u64], balancer: Balancer, http2: bool) -> (u128, Option<usize>) {
    let (policy, wire) = if http2 { (Policy::http2(), Wire::Http2(100)) } else { (Policy::default(), Wire::Http1) };
    let manner = Manner { time: Duration::ZERO, ..Manner::default() };
    let (fleet, mut policy) = (Fleet::of(list.len(), 8, &manner, wire, None), policy);
    policy.cluster.balancer = balancer;
    policy.cluster.connection.connect_timeout = 5 * SECOND;
    let (way, list) = (fleet.clone(), list.to_vec());
    let client = Client::builder(FixedSource::of(TARGET, policy.snapshot(fleet.endpoints())))
        .connector(move |address| {
            let index = (0..way.len()).find(|index| address == Address::Socket(way.address(*index, 0))).unwrap();
            let (line, after) = (way.connect(&address), Duration::from_millis(list[index]));
            async move {
                clock::pass(after).await;
                line.await
            }
        })
        .build();
    let begun = Instant::now();
    let answer = get(&client).await;
    let took = begun.elapsed().as_millis();
    let who = answer.ok().map(|answer| server_of(&answer));
    for _ in 0..5 {
        let begun = Instant::now();
        if let (Some(who), Ok(answer)) = (who, get(&client).await) {
            assert_eq!((server_of(&answer), begun.elapsed()), (who, Duration::ZERO));
        }
    }
    (took, who)
}

#[test]
fn pick_first_begins_the_next_of_its_list_a_quarter_of_a_second_after_the_one_before_a61() {
    const NEVER: u64 = 3_600_000;
    let first = || Balancer::PickFirst { shuffle: false };
    // Nothing is drawn.
    each_seed(1, || async {
        for http2 in [false, true] {
            let list = async |list: &[u64]| first_of_list(list, first(), http2).await;
            assert_eq!(list(&[NEVER, NEVER, 20, 0]).await, (520, Some(2)), "the third was begun after half a second");
            assert_eq!(list(&[400, 300, 0]).await, (400, Some(0)), "a slow first one may still win");
            assert_eq!(list(&[600, 300, 300]).await, (550, Some(1)));
            assert_eq!(list(&[240, 0]).await, (240, Some(0)), "within its head start");
            // Control: there is nobody else.
            assert_eq!(list(&[NEVER]).await, (5000, None));
        }
        // Whatever part of the endpoints the list is of.
        let random = Balancer::RandomSubsetting { size: 9, of_each: false, child: Box::new(first()) };
        for part in
            [random.clone(), Balancer::DeterministicSubsetting { size: 9, of_each: false, child: Box::new(random) }]
        {
            assert_eq!(first_of_list(&[NEVER, NEVER, 20], part, true).await, (520, Some(2)));
        }
        let (took, who) = first_of_list(&[NEVER, NEVER], Balancer::RoundRobin, true).await;
        assert!(who.is_none() && took >= 5000, "control: other balancers wait for the one that they chose, {took}");
    });
}
