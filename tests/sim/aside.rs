//! What the client does beside plain requests, dropped at every point at which it can be (R39): changes of protocol, probes
//! of Prequal, streams of load (ORCA out of band), and copies that go where they do. Nothing stays counted, no connection
//! stays open, and no task is left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::rt::TokioIo;
use mesh_client::{Breakers, Client, Io};
use mesh_core::orca::{self, PROBE_PATH, STREAM_PATH};
use mesh_core::policy::{Balancer, CircuitBreakers, Prequal, WeightedRoundRobin};
use mesh_testkit::{FixedSource, clock, drop_after};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, split};
use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::cancel::{TICK, builder, counted, mirrored, snapshot_of};
use crate::each_seed;
use crate::fleet::{Fleet, Handler, Wire};
use crate::load::{Policy, TARGET, read, request};

const SECOND: Duration = Duration::from_secs(1);

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn connections(breakers: &Breakers) -> u32 {
    breakers.snapshot().iter().map(|state| state.connections).sum()
}

/// Speaks HTTP up to the change of protocol, and then gives back what it gets.
async fn changing(mut io: DuplexStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = io.read_u8().await else { return };
        head.push(byte);
    }
    let says: [&[u8]; 2] = if head.starts_with(b"CONNECT ") {
        [b"HTTP/1.1 200 ", b"OK\r\n\r\n"]
    } else {
        [b"HTTP/1.1 101 Switching Protocols\r\n", b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"]
    };
    for part in says {
        clock::pass(TICK).await;
        if io.write_all(part).await.is_err() {
            return;
        }
    }
    let (mut reading, mut writing) = split(io);
    let _ = copy(&mut reading, &mut writing).await;
}

fn websocket() -> Request<Empty<Bytes>> {
    let request = Request::get(format!("http://{TARGET}/")).header("connection", "upgrade");
    request.header("upgrade", "websocket").body(Empty::new()).unwrap()
}

fn tunnel() -> Request<Empty<Bytes>> {
    Request::connect(TARGET).body(Empty::new()).unwrap()
}

/// Talks over it, three times a tick apart. Whether it came that far.
async fn talk(client: Client, request: Request<Empty<Bytes>>) -> bool {
    let Ok(mut answer) = client.send(request).await else { return false };
    let Ok(io) = hyper::upgrade::on(&mut answer).await else { return false };
    let mut io = TokioIo::new(io);
    for _ in 0..3 {
        let mut back = [0; 4];
        io.write_all(b"ping").await.unwrap();
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        clock::pass(TICK).await;
    }
    io.shutdown().await.is_ok()
}

#[test]
fn a_change_of_protocol_dropped_at_any_point_leaves_nothing_behind_r39() {
    each_seed(1, || async {
        for asks in [websocket as fn() -> Request<Empty<Bytes>>, tunnel] {
            let breakers = Breakers::default();
            // Nobody can be left behind unnoticed.
            let mut policy = Policy::default();
            policy.cluster.breaker = CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() };
            let fleet = Fleet::with(1, Wire::Http1, Arc::new(|_| unreachable!("its servers are not asked")));
            let client = || {
                let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints()));
                let connect = |_| async {
                    let (ours, theirs) = tokio::io::duplex(64 * 1024);
                    tokio::spawn(changing(theirs));
                    Ok(Box::new(ours) as Box<dyn Io>)
                };
                Client::builder(source).breakers(breakers.clone()).connector(connect).build()
            };
            let alive = tasks();
            let (mut points, mut seen) = (0, 0);
            for times in 0.. {
                let client = client();
                let done = drop_after(times, talk(client.clone(), asks())).await;
                // What the application dropped is closed by who has it: at the latest when that runs.
                seen += usize::from(connections(&breakers) > 0);
                clock::pass(2 * SECOND).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "a while after {times} polls");
                assert!(talk(client.clone(), asks()).await, "{times} polls: its place is free");
                drop(client);
                clock::pass(2 * SECOND).await;
                assert_eq!((connections(&breakers), tasks()), (0, alive), "{times} polls: nothing is left");
                points += 1;
                if done.is_some() {
                    assert_eq!(done, Some(true));
                    break;
                }
                assert!(times < 1000, "it never ends");
            }
            println!("{}: dropped at {points} points, {seen} times with a connection", asks().method());
            assert!(points > 6 && seen > 0, "{points}, {seen}");
            // Control: what is under way is seen.
            let client = client();
            let mut answer = client.send(asks()).await.unwrap();
            let held = hyper::upgrade::on(&mut answer).await.unwrap();
            drop(answer);
            assert_eq!((counted(&client, &breakers).len(), connections(&breakers)), (2, 1));
            assert!(!talk(client.clone(), asks()).await, "control: there is one place");
            assert!(tasks() > alive);
            drop((held, client));
            clock::pass(2 * SECOND).await;
        }
    });
}

/// Says what its load is, to each who asks in his way and a tick later.
fn loaded() -> Handler {
    Arc::new(|request| {
        async move {
            clock::pass(TICK).await;
            let text = HeaderValue::from_static(
                "TEXT application_utilization=0.5,rps_fractional=10,named_metrics.mesh.in_flight=3,\
                 named_metrics.mesh.latency=0.01",
            );
            let said = HeaderMap::from_iter([(orca::TEXT.clone(), text)]);
            match request.uri().path() {
                STREAM_PATH => {
                    let message = orca::frame(&orca::encode(&orca::read(&said).expect("it is a report")));
                    let messages = stream::unfold(message, |message| async move {
                        clock::pass(TICK).await;
                        Some((Ok(Frame::data(message.clone())), message))
                    });
                    let mut answer = Response::new(StreamBody::new(messages).boxed_unsync());
                    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                    answer
                }
                _ => {
                    let mut answer = Response::new(Empty::new().boxed_unsync());
                    answer.headers_mut().extend(said);
                    answer
                }
            }
        }
        .boxed()
    })
}

/// Requests one after the other, and after each of them many points at which all this can be dropped: while what it began goes
/// on.
async fn work(client: Client) {
    for _ in 0..4 {
        if let Ok(answer) = client.send(request(Method::GET, "/", "")).await {
            let _ = read(answer).await;
        }
        for _ in 0..4 {
            for _ in 0..8 {
                yield_now().await;
            }
            clock::pass(TICK / 4).await;
        }
    }
}

/// What is asked of endpoints on the side is none of the request's: it ends with the client, or with the cluster.
#[test]
fn what_the_client_asks_endpoints_dropped_at_any_point_leaves_nothing_behind_r39() {
    let prequal = Balancer::Prequal(Prequal::default());
    let weighted = WeightedRoundRobin { out_of_band: true, out_of_band_period: TICK, ..WeightedRoundRobin::default() };
    let weighted = Balancer::WeightedRoundRobin(weighted);
    each_seed(1, || async {
        let http2 = (Policy::http2(), Wire::Http2(100));
        for (balancer, path, (mut policy, wire)) in [
            (&prequal, PROBE_PATH, (Policy::default(), Wire::Http1)),
            (&prequal, PROBE_PATH, http2.clone()),
            (&weighted, STREAM_PATH, http2),
        ] {
            policy.cluster.balancer = balancer.clone();
            let (fleet, breakers) = (Fleet::with(2, wire, loaded()), Breakers::default());
            let alive = tasks();
            let (mut points, mut asked) = (0, 0);
            for times in 0.. {
                let what = format!("{path}, {wire:?}, dropped after {times} polls");
                let source = FixedSource::of(TARGET, snapshot_of(&fleet, &policy, mirrored));
                let client = builder(&fleet, source, &breakers).build();
                let before = fleet.seen().iter().sum::<u64>();
                let done = drop_after(times, join(work(client.clone()), work(client.clone()))).await.is_some();
                asked += fleet.seen().iter().sum::<u64>() - before;
                drop(client);
                clock::pass(2 * SECOND).await;
                assert_eq!((connections(&breakers), fleet.open(), tasks()), (0, 0, alive), "{what}");
                assert!(breakers.snapshot().iter().all(|state| state.default == Default::default()), "{what}");
                points += 1;
                if done {
                    break;
                }
                assert!(times < 2000, "{what}: it never ends");
            }
            println!("{path}, {wire:?}: dropped at {points} points, {asked} requests");
            assert!(points > 40, "{path}: {points}");

            // Control: while there is a client they go on, and are seen.
            let source = FixedSource::of(TARGET, snapshot_of(&fleet, &policy, |_| {}));
            let client = builder(&fleet, source, &breakers).build();
            let before = fleet.seen().iter().sum::<u64>();
            work(client.clone()).await;
            clock::pass(2 * SECOND).await;
            let own = fleet.seen().iter().sum::<u64>() - before;
            assert!(own > 4 && fleet.open() > 0 && tasks() > alive, "{path}: {own} requests");
            assert_eq!(counted(&client, &breakers), [""; 0], "{path}: none of them is a request's");
            drop(client);
            clock::pass(2 * SECOND).await;
        }
    });
}
