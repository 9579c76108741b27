//! Requests that wait for a connection: who comes first, who is told, and who is to blame.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use futures_util::{FutureExt, poll};
use http::HeaderName;
use mesh_client::{Client, EndpointDump, Io};
use mesh_core::error::{Blame, Code, Fault, Retry};
use mesh_core::health::Standing;
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, ConnectionOptions, Forward, HttpFilter, HttpFilterKind, OutlierDetection,
    PerMillion, RetryOn, RetryPolicy, RouteMatch, SessionSource, StatefulSession, UpstreamProtocol,
};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::{TARGET, client_of, cluster, fetch, forward_with, get, post, prefix, read, retrying, snapshot_with};

const SECOND: Duration = Duration::from_secs(1);
const PROTOCOLS: [UpstreamProtocol; 2] = [UpstreamProtocol::Http1, UpstreamProtocol::Http2];

/// One connection, for one request at a time.
fn one_place(protocol: UpstreamProtocol, max_pending: Option<u32>) -> Cluster {
    let breaker = CircuitBreakers { max_connections: Some(1), max_pending, ..CircuitBreakers::default() };
    let connection = ConnectionOptions { protocol, max_concurrent_streams: Some(1), ..ConnectionOptions::default() };
    Cluster { breaker, connection, ..cluster("test") }
}

/// Lets others run until so many requests wait for a connection.
async fn pending(client: &Client, count: u32) {
    while client.dump().destinations[0].clusters[0].default_priority.pending != count {
        yield_now().await;
    }
}

fn endpoint(client: &Client) -> EndpointDump {
    client.dump().destinations[0].clusters[0].endpoints[0].clone()
}

fn paths(server: &EchoServer) -> Vec<String> {
    server.received().iter().map(|request| request.uri.path().to_owned()).collect()
}

/// As Envoy serves its pending requests.
#[tokio::test]
async fn who_waits_for_a_connection_comes_before_who_asks_later() {
    for protocol in PROTOCOLS {
        let server = EchoServer::start("one").await;
        let (client, _) = client_of(snapshot_with(forward_with(None), one_place(protocol, None), &[&server]));
        server.script([Behaviour::Hold]);
        let first = async {
            fetch(&client, "/first").await.unwrap();
            // In the moment in which the connection is free.
            fetch(&client, "/again").await.unwrap();
        };
        let others = async {
            server.wait_for_requests(1).await;
            let mut all: Vec<_> = ["/b", "/gone", "/c", "/d"].map(|path| Box::pin(fetch(&client, path))).into();
            for one in &mut all {
                assert!(futures_util::poll!(one).is_pending());
            }
            pending(&client, 4).await;
            // Its turn goes on to the next.
            drop(all.remove(1));
            server.release();
            assert!(join_all(all).await.iter().all(Result::is_ok));
        };
        tokio::join!(first, others);
        assert_eq!(paths(&server), ["/first", "/b", "/c", "/d", "/again"], "{protocol:?}");
        pending(&client, 0).await;
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn who_gives_up_as_its_turn_comes_passes_it_on() {
    for protocol in PROTOCOLS {
        let server = EchoServer::start("one").await;
        let (client, _) = client_of(snapshot_with(forward_with(None), one_place(protocol, None), &[&server]));
        server.script([Behaviour::Hold]);
        let others = async {
            server.wait_for_requests(1).await;
            let mut head = Box::pin(fetch(&client, "/gone"));
            let mut next = Box::pin(fetch(&client, "/next"));
            assert!(futures_util::poll!(&mut head).is_pending() && futures_util::poll!(&mut next).is_pending());
            (head, next)
        };
        let (first, (head, next)) = tokio::join!(
            async {
                let answer = client.send(get("/first")).await.unwrap();
                read(answer).await.unwrap();
            },
            async {
                let both = others.await;
                server.release();
                both
            }
        );
        let () = first;
        // The connection is free, and the first in line was told; it does not look any more.
        drop(head);
        tokio::time::timeout(20 * SECOND, next).await.expect("it is its turn").unwrap();
        assert_eq!(paths(&server), ["/first", "/next"], "{protocol:?}");
    }
}

/// Whom a connection was left to does not count with those who wait, though it may not have run yet.
#[tokio::test]
async fn two_that_take_turns_never_find_a_place_to_wait_taken() {
    for protocol in PROTOCOLS {
        let server = EchoServer::start("one").await;
        let (client, _) = client_of(snapshot_with(forward_with(None), one_place(protocol, Some(1)), &[&server]));
        fetch(&client, "/").await.unwrap();
        let turns = async || {
            for _ in 0..20 {
                fetch(&client, "/").await.unwrap();
            }
        };
        tokio::join!(turns(), turns());
        assert_eq!((server.requests(), server.connections()), (41, 1), "{protocol:?}");
    }
}

#[tokio::test]
async fn room_that_one_endpoint_gives_back_is_there_for_who_waits_at_another() {
    let [one, other] = [EchoServer::start("one").await, EchoServer::start("other").await];
    let mut limited = cluster("test");
    limited.breaker.max_connections = Some(2);
    // Each ends with its request.
    limited.connection.max_requests_per_connection = Some(1);
    let mut snapshot = snapshot_with(forward_with(None), limited, &[&one, &other]);
    let source = SessionSource::Header(HeaderName::from_static("x-session"));
    let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict: true }));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
    let (client, _) = client_of(snapshot);
    let at = async |server: &EchoServer| {
        let mut request = get("/");
        request.headers_mut().insert("x-session", STANDARD.encode(server.address().to_string()).parse().unwrap());
        read(client.send(request).await.unwrap()).await.unwrap();
    };
    one.behave(Behaviour::Hold);
    other.behave(Behaviour::Hold);
    let both = async { tokio::join!(at(&one), at(&one)) };
    let there = async {
        one.wait_for_requests(2).await;
        // The first one to an endpoint is made whatever the limit.
        tokio::join!(at(&other), at(&other));
    };
    let script = async {
        one.wait_for_requests(2).await;
        other.wait_for_requests(1).await;
        pending(&client, 1).await;
        one.release();
        let wait = other.wait_for_requests(2);
        tokio::time::timeout(20 * SECOND, wait).await.expect("it hears of the room");
        other.release();
    };
    tokio::join!(both, there, script);
    assert_eq!(other.connections(), 2);
}

/// The same for the time of the route, and for that of one try.
fn in_a_second() -> [Forward; 2] {
    let per_try = RetryPolicy { per_try_timeout: Some(SECOND), ..retrying(0, Default::default()) };
    [Forward { timeout: Some(SECOND), ..forward_with(None) }, forward_with(Some(per_try))]
}

#[tokio::test]
async fn who_waits_at_a_limit_of_ours_blames_it_and_not_the_endpoint() {
    for (most, blamed) in [(Some(1), false), (None, true)] {
        for forward in in_a_second() {
            let server = EchoServer::start("one").await;
            let outlier = OutlierDetection {
                consecutive_5xx: Some(5),
                max_ejected: PerMillion::ALL,
                ..OutlierDetection::default()
            };
            let mut limited = Cluster { outlier: Some(outlier), ..cluster("test") };
            limited.breaker.max_connections_per_host = most;
            let long = policy::forward(prefix("/long"), forward_with(None));
            let routes = policy::routes([long, policy::forward(RouteMatch::any(), forward)]);
            let (client, _) = client_of(policy::snapshot(routes, [(limited, vec![server.endpoint()])]));
            server.behave(Behaviour::Hold);
            let waiting = async {
                server.wait_for_requests(1).await;
                let five = join_all((0..5).map(|_| fetch(&client, "/")));
                let late = async {
                    match most {
                        Some(_) => pending(&client, 5).await,
                        None => server.wait_for_requests(6).await,
                    }
                    tokio::time::pause();
                    tokio::time::advance(SECOND + SECOND / 10).await;
                    tokio::time::resume();
                };
                let (five, ()) = tokio::join!(five, late);
                for error in five.into_iter().map(Result::unwrap_err) {
                    let told = "it waited for a connection: all 1 of max_connections_per_host are in use";
                    assert_eq!((error.code(), error.to_string().contains(told)), (Code::TIMEOUT, !blamed), "{error}");
                    assert_eq!(error.blame(), if blamed { Blame::Upstream } else { Blame::Local });
                }
                let EndpointDump { failure_penalty, .. } = endpoint(&client);
                assert_eq!(failure_penalty > 1.0, blamed, "{failure_penalty}");
                // Control: who has sent it and hears nothing blames the endpoint, which is ejected.
                while blamed && endpoint(&client).standing == Standing::Good {
                    yield_now().await;
                }
                server.release();
            };
            let (long, ()) = tokio::join!(fetch(&client, "/long"), waiting);
            long.unwrap();
            if !blamed {
                server.behave(Behaviour::Echo);
                fetch(&client, "/").await.unwrap();
                assert_eq!(endpoint(&client).standing, Standing::Good);
            }
        }
    }
}

/// A hand-made line: what is polled once stands in it, and is not told before it is polled again.
macro_rules! stands_in_line {
    ($($request:ident),+) => { $(assert!(poll!(&mut $request).is_pending());)+ };
}

/// Runs requests, none of which has an answer yet, until something else has happened.
macro_rules! until {
    ($event:expr, $($request:ident),+) => {
        tokio::select! {
            biased;
            $(_ = &mut $request => unreachable!("it is not answered yet"),)+
            done = $event => done,
        }
    };
}

#[tokio::test]
async fn the_first_in_line_takes_what_comes_free_while_it_connects() {
    let server = EchoServer::start("one").await;
    let mut limited = one_place(UpstreamProtocol::Http2, None);
    limited.breaker.max_connections = Some(2);
    limited.connection.max_requests_per_connection = Some(3);
    let source = FixedSource::of(TARGET, snapshot_with(forward_with(None), limited, &[&server]));
    let (asked, dials) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let third = asked.clone();
    let builder = Client::builder(source).connector(move |address: Address| {
        let (third, dial) = (third.clone(), dials.fetch_add(1, Ordering::Relaxed));
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            if dial == 2 {
                third.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
        }
    });
    let client = builder.build();
    fetch(&client, "/").await.unwrap();
    fetch(&client, "/").await.unwrap();
    server.behave(Behaviour::Hold);
    // The last one of the first connection.
    let mut last = Box::pin(fetch(&client, "/last"));
    until!(server.wait_for_requests(3), last);
    let mut held = pin!(fetch(&client, "/held"));
    until!(server.wait_for_requests(4), held);
    server.behave(Behaviour::Echo);
    let (mut first, mut second) = (pin!(fetch(&client, "/first")), pin!(fetch(&client, "/second")));
    stands_in_line!(first, second);
    // In the place of its connection the first in line makes one that does not come about.
    drop(last);
    until!(asked.notified(), first, second);
    server.release();
    let all = async { tokio::join!(held, first, second) };
    let (held, first, second) = tokio::time::timeout(20 * SECOND, all).await.expect("a connection is idle");
    assert!(held.is_ok() && first.is_ok() && second.is_ok());
    assert_eq!((paths(&server)[4..].join(" "), server.connections()), ("/first /second".to_owned(), 2));
}

#[tokio::test]
async fn a_connection_that_breaks_lets_nobody_wait_beyond_the_limit() {
    const STREAMS: u32 = 20;
    let server = EchoServer::start("one").await;
    let mut limited = one_place(UpstreamProtocol::Http2, Some(2));
    limited.connection.max_concurrent_streams = Some(STREAMS);
    let (client, _) = client_of(snapshot_with(forward_with(None), limited, &[&server]));
    fetch(&client, "/").await.unwrap();
    server.behave(Behaviour::Hold);
    let mut held = pin!(join_all((0..STREAMS).map(|_| fetch(&client, "/held"))));
    until!(server.wait_for_requests(1 + u64::from(STREAMS)), held);
    let (mut one, mut other) = (pin!(fetch(&client, "/")), pin!(fetch(&client, "/")));
    stands_in_line!(one, other);
    drop(server);
    assert!(held.await.iter().all(Result::is_err));
    // The two have not run since.
    let refused = fetch(&client, "/").now_or_never().expect("there is no place to wait").unwrap_err();
    assert_eq!(refused.code(), Code::BREAKER_OPEN, "{refused}");
    assert!(one.await.is_err() && other.await.is_err());
}

#[tokio::test]
async fn who_has_room_is_not_held_up_by_who_waits_at_the_limit_of_another_priority() {
    let server = EchoServer::start("one").await;
    let most =
        |connections| CircuitBreakers { max_connections_per_host: Some(connections), ..CircuitBreakers::default() };
    let limited = Cluster { breaker: most(1), breaker_high: Some(most(2)), ..cluster("test") };
    let high = Forward { high_priority: true, ..forward_with(None) };
    let routes = [policy::forward(prefix("/high"), high), policy::forward(RouteMatch::any(), forward_with(None))];
    let (client, _) = client_of(policy::snapshot(policy::routes(routes), [(limited, vec![server.endpoint()])]));
    server.behave(Behaviour::Hold);
    let (mut gone, mut held) = (Box::pin(fetch(&client, "/high/gone")), pin!(fetch(&client, "/high/held")));
    until!(server.wait_for_requests(2), gone, held);
    let (mut default, mut high) = (pin!(fetch(&client, "/default")), pin!(fetch(&client, "/high/next")));
    stands_in_line!(default, high);
    // With its connection.
    drop(gone);
    let reached = tokio::time::timeout(20 * SECOND, server.wait_for_requests(3));
    until!(reached, held, default, high).expect("there may be two connections");
    assert_eq!(paths(&server)[2], "/high/next");
    server.behave(Behaviour::Echo);
    server.release();
    let all = tokio::join!(held, default, high);
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok());
}

/// Whoever goes again because its kept connection was closed may go again once.
#[tokio::test]
async fn who_goes_again_over_a_fresh_connection_gets_one_from_the_line_as_well() {
    let server = EchoServer::start("one").await;
    let mut limited = cluster("test");
    limited.breaker.max_connections_per_host = Some(2);
    let (client, _) = client_of(snapshot_with(forward_with(None), limited, &[&server]));
    server.behave(Behaviour::Hold);
    let (mut one, mut other) = (pin!(fetch(&client, "/")), pin!(fetch(&client, "/")));
    until!(server.wait_for_requests(2), one, other);
    server.release();
    let (one, other) = tokio::join!(one, other);
    assert!(one.is_ok() && other.is_ok());
    let mut held = pin!(fetch(&client, "/held"));
    until!(server.wait_for_requests(3), held);
    server.behave(Behaviour::Echo);
    server.script([Behaviour::CloseConnection]);
    let (mut again, mut first) = (pin!(fetch(&client, "/again")), Box::pin(fetch(&client, "/first")));
    stands_in_line!(again, first);
    until!(pending(&client, 2), again);
    // One that was used is free, and there is room for another one, which the first in line leaves to the next.
    server.release();
    held.await.unwrap();
    drop(first);
    again.await.unwrap();
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn who_waits_with_a_second_try_may_have_been_seen_with_the_first() {
    let server = EchoServer::start("one").await;
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let retry = RetryPolicy { per_try_timeout: Some(SECOND), ..retrying(1, on) };
    let tried = Forward { timeout: Some(10 * SECOND), ..forward_with(Some(retry)) };
    let routes = [policy::forward(prefix("/long"), forward_with(None)), policy::forward(RouteMatch::any(), tried)];
    let limited = one_place(UpstreamProtocol::Http1, None);
    let (client, _) = client_of(policy::snapshot(policy::routes(routes), [(limited, vec![server.endpoint()])]));
    let pass = async |time| {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    };
    server.behave(Behaviour::Hold);
    let mut seen = pin!(client.send(post("/pay", "10")));
    until!(server.wait_for_requests(1), seen);
    let mut long = pin!(fetch(&client, "/long"));
    stands_in_line!(long);
    pass(SECOND + SECOND / 10).await;
    // Its first try is over, and the connection is the other one's.
    until!(server.wait_for_requests(2), seen, long);
    until!(pending(&client, 1), seen, long);
    let mut unseen = pin!(client.send(post("/pay", "20")));
    stands_in_line!(unseen);
    pass(10 * SECOND).await;
    for (request, retry) in [(seen.await, Retry::Unsafe), (unseen.await, Retry::Safe)] {
        let error = request.unwrap_err();
        assert!(error.to_string().contains("it waited for a connection"), "{error}");
        assert_eq!((error.code(), error.blame(), error.retry()), (Code::TIMEOUT, Blame::Local, retry), "{error}");
    }
    assert_eq!(server.requests(), 2);
}
