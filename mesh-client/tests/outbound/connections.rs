//! The life of connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use mesh_client::{Breakers, Client, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, ClusterState, ConnectionOptions, DestinationState, Discovery,
    Endpoint, EndpointMetadata, Forward, HttpProxy, RetryOn, Snapshot, UpstreamProtocol, UpstreamTls,
};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, TestCa, crypto, policy};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::{TARGET, client_of, cluster, fetch, forward_with, get, post, read, retrying, server_of, snapshot_with};

pub(super) fn speaking(protocol: UpstreamProtocol) -> Cluster {
    Cluster { connection: ConnectionOptions { protocol, ..ConnectionOptions::default() }, ..cluster("test") }
}

/// The same with the mesh's TLS, to `reviews`.
fn secured(protocol: UpstreamProtocol) -> Cluster {
    let id = "spiffe://cluster.local/ns/default/sa/reviews";
    Cluster { connection: speaking(protocol).connection, ..policy::mtls_cluster("test", &[id]) }
}

#[tokio::test]
async fn one_connection_carries_request_after_request() {
    let server = EchoServer::start("one").await;
    for (protocol, version, connections) in
        [(UpstreamProtocol::Http1, "HTTP/1.1", 1), (UpstreamProtocol::Http2, "HTTP/2.0", 2)]
    {
        let (client, _) = client_of(snapshot_with(forward_with(None), speaking(protocol), &[&server]));
        for _ in 0..5 {
            let response = read(client.send(post("/", "hello")).await.unwrap()).await.unwrap();
            assert_eq!(
                (response.headers()["x-echo-version"].to_str().unwrap(), &response.body()[..]),
                (version, &b"hello"[..])
            );
            assert_eq!(response.headers()["x-echo-authority"], TARGET);
        }
        assert_eq!(server.connections(), connections);
    }
}

#[tokio::test]
async fn many_requests_at_once_share_one_http2_connection() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(snapshot_with(forward_with(None), speaking(UpstreamProtocol::Http2), &[&server]));
    let all = futures_util::future::join_all((0..20).map(|_| fetch(&client, "/"))).await;
    assert!(all.into_iter().all(|one| one.unwrap().status() == StatusCode::OK));
    assert_eq!(server.connections(), 1);
}

/// Has `count` requests held by `server` at once, then answered.
async fn hold(client: &Client, server: &EchoServer, count: usize) {
    server.behave(Behaviour::Hold);
    let before = server.requests();
    let all = futures_util::future::join_all((0..count).map(|_| fetch(client, "/")));
    let release = async {
        server.wait_for_requests(before + count as u64).await;
        server.release();
    };
    let (all, ()) = tokio::join!(all, release);
    assert!(all.into_iter().all(|one| one.unwrap().status() == StatusCode::OK));
    server.behave(Behaviour::Echo);
}

#[tokio::test]
async fn a_full_http2_connection_gets_another_one_beside_it() {
    let most = |streams, connections| {
        let mut limited = speaking(UpstreamProtocol::Http2);
        limited.connection.max_concurrent_streams = streams;
        limited.breaker.max_connections = connections;
        limited
    };
    let mut spent = most(None, None);
    spent.connection.max_requests_per_connection = Some(2);
    // Five at once, of which a connection takes two.
    for (policy, connections) in [(most(Some(2), None), 3), (most(None, Some(1)), 1), (most(None, None), 1)] {
        let server = EchoServer::start("one").await;
        let (client, _) = client_of(snapshot_with(forward_with(None), policy, &[&server]));
        hold(&client, &server, 5).await;
        assert_eq!(server.connections(), connections);
        // What is there is used again.
        hold(&client, &server, 5).await;
        assert_eq!(server.connections(), connections);
    }
    // Two in all: the same number, and none of them is used again.
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(snapshot_with(forward_with(None), spent, &[&server]));
    hold(&client, &server, 5).await;
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn an_http2_connection_that_is_spent_ends_with_its_last_request() {
    // By its first request, which put it in place, or by one that found it there.
    for most in [1, 2] {
        let mut spent = speaking(UpstreamProtocol::Http2);
        spent.connection.max_requests_per_connection = Some(most);
        let server = EchoServer::start("one").await;
        let (client, _) = client_of(snapshot_with(forward_with(None), spent, &[&server]));
        let open = || client.dump().destinations[0].clusters[0].open_connections;
        for served in 1..=most {
            fetch(&client, "/").await.unwrap();
            // The control: while it may carry more it stays.
            assert!(served == most || open() == 1, "{served} of {most}");
        }
        let gone = async {
            while open() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap_or_else(|_| panic!("{most}: it stays open"));
    }
}

/// Whether a request waits for a connection.
fn waits(client: &Client) -> bool {
    client.dump().destinations[0].clusters[0].default_priority.pending == 1
}

#[tokio::test]
async fn what_has_neither_room_nor_leave_for_a_connection_waits_for_a_stream_to_end() {
    let ca = TestCa::new();
    // By prior knowledge, and where HTTP/2 only turned out with the connection.
    let plain = EchoServer::start("one").await;
    let secure = EchoServer::start_mtls("one", &ca.identity("default", "reviews")).await;
    for (mut limited, server) in [(speaking(UpstreamProtocol::Http2), plain), (secured(UpstreamProtocol::Alpn), secure)]
    {
        limited.connection.max_concurrent_streams = Some(2);
        limited.breaker = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
        let source = FixedSource::of(TARGET, policy::snapshot_of(limited, [server.endpoint()]));
        let client = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build();
        fetch(&client, "/").await.unwrap();
        server.behave(Behaviour::Hold);
        let all = futures_util::future::join_all((0..3).map(|_| fetch(&client, "/")));
        let release = async {
            server.wait_for_requests(3).await;
            while !waits(&client) {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.requests(), 3, "two of the three");
            server.behave(Behaviour::Echo);
            server.release();
        };
        let both = async { tokio::join!(all, release) };
        let (all, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the third is let in");
        assert!(all.into_iter().all(|one| one.unwrap().status() == StatusCode::OK));
        assert_eq!((server.connections(), server.requests()), (1, 4));
    }
}

#[tokio::test]
async fn a_failure_to_connect_that_nobody_waited_for_is_nobodys() {
    let server = EchoServer::start("one").await;
    let source = FixedSource::of(TARGET, {
        let endpoint = server.endpoint();
        policy::snapshot_of(speaking(UpstreamProtocol::Http2), [endpoint])
    });
    let (asked, fail) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (first, calls) = (Arc::new(AtomicBool::new(true)), (asked.clone(), fail.clone()));
    let failing = first.clone();
    let builder = Client::builder(source).connector(move |address: Address| {
        let (asked, fail) = calls.clone();
        let fails = failing.swap(false, Ordering::Relaxed);
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            if fails {
                asked.notify_one();
                fail.notified().await;
                return Err(std::io::Error::other("long ago"));
            }
            Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
        }
    });
    let client = builder.build();
    tokio::select! {
        _ = fetch(&client, "/given-up") => panic!("it cannot be answered"),
        () = asked.notified() => {}
    }
    fail.notify_one();
    // The task of the connection ends with its next turn.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "one");
}

#[tokio::test]
async fn the_limit_that_a_peer_announces_counts_too() {
    for (server, connections) in
        [(EchoServer::start_with_streams("one", 3).await, 2), (EchoServer::start("one").await, 1)]
    {
        let (client, _) = client_of(snapshot_with(forward_with(None), speaking(UpstreamProtocol::Http2), &[&server]));
        // The first answer comes after the announcement.
        fetch(&client, "/").await.unwrap();
        hold(&client, &server, 6).await;
        assert_eq!(server.connections(), connections);
    }
}

/// A proxy that answers CONNECT with `line`, and goes on as it says; gives what it was asked.
async fn proxy(line: &'static str) -> (SocketAddr, impl Future<Output = String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let run = async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        client.write_all(format!("HTTP/1.1 {line}\r\nVia: test\r\n\r\n").as_bytes()).await.unwrap();
        let to: SocketAddr = head.split(' ').nth(1).unwrap().parse().unwrap();
        if line.starts_with("200") {
            let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
            // Ends with either side.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        head
    };
    (address, run)
}

#[tokio::test]
async fn a86_connections_go_through_the_proxy_that_policy_names() {
    let server = EchoServer::start("one").await;
    let through = |proxy: SocketAddr| {
        let proxy = HttpProxy { default: Some(Address::Socket(proxy)) };
        client_of(snapshot_with(forward_with(None), Cluster { proxy: Some(proxy), ..cluster("test") }, &[&server])).0
    };
    let (address, proxied) = proxy("200 Connection established").await;
    let use_it = async {
        let client = through(address);
        assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "one");
    };
    // The proxy ends with the client's connection.
    let (asked, ()) = tokio::join!(proxied, use_it);
    assert_eq!(asked, format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", server.address()));

    let (address, refused) = proxy("407 Proxy Authentication Required").await;
    let client = through(address);
    let (_, answer) = tokio::join!(refused, fetch(&client, "/"));
    let error = answer.unwrap_err();
    assert_eq!(error.code(), Code::CONNECT_FAILED, "{error}");
    assert!(error.to_string().contains("407 Proxy Authentication Required"), "{error}");
}

#[tokio::test]
async fn a_connector_of_the_application_stands_in_for_tcp() {
    let server = EchoServer::start("one").await;
    let source = FixedSource::of(TARGET, policy::snapshot_to(&["203.0.113.7:80".parse().unwrap()]));
    let (asked, elsewhere) = (Arc::new(Mutex::new(Vec::new())), server.address());
    let seen = asked.clone();
    let builder = Client::builder(source).connector(move |address: Address| {
        seen.lock().push(address.to_string());
        async move { Ok(Box::new(tokio::net::TcpStream::connect(elsewhere).await?) as Box<dyn Io>) }
    });
    assert_eq!(server_of(&fetch(&builder.build(), "/").await.unwrap()), "one");
    assert_eq!(*asked.lock(), ["203.0.113.7:80"]);
}

#[tokio::test]
async fn a_connection_is_closed_after_its_last_request() {
    let server = EchoServer::start("one").await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let before = server.connections();
        let mut limited = speaking(protocol);
        limited.connection.max_requests_per_connection = Some(2);
        let (client, _) = client_of(snapshot_with(forward_with(None), limited, &[&server]));
        for _ in 0..6 {
            fetch(&client, "/").await.unwrap();
        }
        assert_eq!(server.connections() - before, 3, "{protocol:?}");
        // The same by age: one that is too old at once serves once.
        let mut aged = speaking(protocol);
        aged.connection.max_age = Some(Duration::ZERO);
        let (client, _) = client_of(snapshot_with(forward_with(None), aged, &[&server]));
        for _ in 0..3 {
            fetch(&client, "/").await.unwrap();
        }
        assert_eq!(server.connections() - before, 6, "{protocol:?}");
    }
}

#[tokio::test]
async fn over_http1_a_connection_that_died_in_keep_alive_is_not_noticed() {
    let server = EchoServer::start("one").await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (client, _) = client_of(snapshot_with(forward_with(None), speaking(protocol), &[&server]));
        server.script([Behaviour::Echo, Behaviour::CloseConnection]);
        fetch(&client, "/1").await.unwrap();
        match fetch(&client, "/2").await {
            Ok(answer) => assert!(answer.status() == 200 && protocol == UpstreamProtocol::Http1),
            // Whoever leaves in peace says over HTTP/2 what it has not looked at.
            Err(error) => assert!(error.code() == Code::CONNECTION_LOST && protocol == UpstreamProtocol::Http2),
        }
        // Control: what may not be sent twice is not, unless the policy says so.
        server.script([Behaviour::CloseConnection]);
        let error = client.send(post("/3", "pay")).await.unwrap_err();
        assert_eq!(error.code(), Code::CONNECTION_LOST, "{protocol:?} {error}");
    }
}

#[tokio::test]
async fn a_fresh_connection_that_dies_is_not_retried_without_a_policy() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    server.script([Behaviour::CloseConnection]);
    assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::CONNECTION_LOST);
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_new_snapshot_keeps_the_connections_of_equal_clusters() {
    let server = EchoServer::start("one").await;
    let (client, source) = client_of(snapshot_with(forward_with(None), cluster("test"), &[&server]));
    fetch(&client, "/").await.unwrap();

    // Another route, the same cluster: the new snapshot is in force as soon as the new answer comes.
    let mut forward = Forward::to("test".into());
    forward.rewrite.path = Some(mesh_core::policy::PathRewrite::Full("/new".into()));
    source.set_snapshot(TARGET, snapshot_with(forward.clone(), cluster("test"), &[&server]));
    while fetch(&client, "/").await.unwrap().headers()["x-echo-path"] != "/new" {}
    assert_eq!(server.connections(), 1);

    // Control: another cluster policy, other connections.
    let breaker = CircuitBreakers { max_requests: Some(9), ..CircuitBreakers::default() };
    forward.rewrite.path = Some(mesh_core::policy::PathRewrite::Full("/newer".into()));
    source.set_snapshot(TARGET, snapshot_with(forward, Cluster { breaker, ..cluster("test") }, &[&server]));
    while fetch(&client, "/").await.unwrap().headers()["x-echo-path"] != "/newer" {}
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_request_under_way_does_not_keep_the_idle_connections_of_a_former_policy() {
    let server = EchoServer::start("one").await;
    let source = FixedSource::of(TARGET, snapshot_with(forward_with(None), cluster("test"), &[&server]));
    let breakers = Breakers::default();
    let client = Client::builder(source.clone()).breakers(breakers.clone()).build();
    hold(&client, &server, 3).await;
    server.behave(Behaviour::Hold);
    let before = server.requests();
    let change = async {
        server.wait_for_requests(before + 1).await;
        let open = || breakers.snapshot()[0].connections;
        assert_eq!(open(), 3, "one of them in use");
        let breaker = CircuitBreakers { max_requests: Some(9), ..CircuitBreakers::default() };
        source.set_snapshot(
            TARGET,
            snapshot_with(forward_with(None), Cluster { breaker, ..cluster("test") }, &[&server]),
        );
        while open() > 1 {
            tokio::task::yield_now().await;
        }
        server.release();
    };
    let both = async { tokio::join!(fetch(&client, "/"), change) };
    let (held, ()) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("the idle ones are closed");
    assert_eq!(server_of(&held.unwrap()), "one");
}

#[tokio::test]
async fn a_removed_endpoint_finishes_what_it_has() {
    let (old, new) = (EchoServer::start("old").await, EchoServer::start("new").await);
    old.behave(Behaviour::Hold);
    let (client, source) = client_of(policy::snapshot_to(&[old.address()]));
    let swap = async {
        old.wait_for_requests(1).await;
        source.set_snapshot(TARGET, policy::snapshot_to(&[new.address()]));
        let address = || client.dump().destinations[0].clusters[0].endpoints[0].address.to_string();
        while address() != new.address().to_string() {
            tokio::task::yield_now().await;
        }
        assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "new");
        old.release();
    };
    let (held, ()) = tokio::join!(fetch(&client, "/held"), swap);
    assert_eq!(server_of(&held.unwrap()), "old");
}

/// What becomes of the place that a cluster had.
#[derive(Clone, Copy, Debug)]
enum After {
    /// Requests go to another cluster.
    Unnamed,
    /// Routes name it still, and there is no such cluster any more.
    Gone,
    /// It has another policy and the same endpoint.
    Same,
    /// It has another policy and another endpoint.
    Moved,
    /// There is no such destination any more.
    Nothing,
}

#[tokio::test]
async fn what_a_cluster_that_is_gone_has_not_finished_within_its_limit_is_cut_off() {
    let second = Duration::from_secs(1);
    for (after, limit, remains) in [
        (After::Gone, 5 * second, false),
        (After::Moved, 5 * second, false),
        (After::Nothing, 5 * second, false),
        // Nobody says that it is gone, or its endpoint.
        (After::Unnamed, 5 * second, true),
        (After::Same, 5 * second, true),
        // Control: no limit.
        (After::Gone, Duration::MAX, true),
    ] {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let (old, new) = (EchoServer::start("old").await, EchoServer::start("new").await);
            let source = FixedSource::of(TARGET, policy::snapshot_of(speaking(protocol), [old.endpoint()]));
            let breakers = Breakers::default();
            let client = Client::builder(source.clone()).drain_limit(limit).breakers(breakers.clone()).build();
            old.behave(Behaviour::Stall);
            let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
            let breaker = CircuitBreakers { max_requests: Some(9), ..CircuitBreakers::default() };
            let other = |name: &str, servers: &[&EchoServer]| {
                let policy = Cluster { breaker: breaker.clone(), name: name.into(), ..speaking(protocol) };
                let endpoints = servers.iter().map(|server| server.endpoint());
                DestinationState::Ready(policy::snapshot_of(policy, endpoints).into())
            };
            let gone = [("test".into(), ClusterState::Failed("deleted".into()))];
            let gone = Snapshot { clusters: gone.into_iter().collect(), ..policy::snapshot_of(speaking(protocol), []) };
            let (next, sign) = match after {
                After::Unnamed => (other("next", &[&new]), new.address().to_string()),
                After::Gone => (DestinationState::Ready(gone.into()), "deleted".to_owned()),
                After::Same => (other("test", &[&old, &new]), new.address().to_string()),
                After::Moved => (other("test", &[&new]), new.address().to_string()),
                After::Nothing => (DestinationState::Failed(Arc::from("deleted")), "deleted".to_owned()),
            };
            source.set(TARGET, next);
            while !serde_json::to_string(&client.dump()).unwrap().contains(&sign) {
                assert!(futures_util::poll!(&mut answer).is_pending());
                tokio::task::yield_now().await;
            }
            tokio::time::pause();
            mesh_testkit::clock::pass(limit.min(1000 * second) - second).await;
            assert!(futures_util::poll!(&mut answer).is_pending(), "{protocol:?} {after:?}: it is not over");
            mesh_testkit::clock::pass(2 * second).await;
            let pending = futures_util::poll!(&mut answer).is_pending();
            assert_eq!(pending, remains, "{protocol:?} {after:?} {limit:?}");
            tokio::time::resume();
            if remains {
                old.release();
                assert_eq!(answer.await.unwrap().status(), 200, "to its end");
            }
            // Nothing is left of it.
            while breakers.snapshot().iter().any(|cluster| cluster.connections > 0) {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[tokio::test]
async fn what_a_replaced_cluster_has_not_finished_ends_with_its_endpoint() {
    let second = Duration::from_secs(1);
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        for removed in [true, false] {
            let old = EchoServer::start("old").await;
            let source = FixedSource::of(TARGET, policy::snapshot_of(speaking(protocol), [old.endpoint()]));
            let client = Client::builder(source.clone()).drain_limit(5 * second).build();
            old.behave(Behaviour::Stall);
            let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
            // With one by which it is seen that this is in force.
            let mut take = async |endpoints: &[Endpoint], sign: [u8; 4]| {
                let breaker = CircuitBreakers { max_requests: Some(9), ..CircuitBreakers::default() };
                let seen = Endpoint::new(Address::Socket((sign, 9).into()));
                let endpoints = endpoints.iter().cloned().chain([seen.clone()]);
                let policy = Cluster { breaker, ..speaking(protocol) };
                source.set_snapshot(TARGET, policy::snapshot_of(policy, endpoints));
                while !serde_json::to_string(&client.dump()).unwrap().contains(&seen.address.to_string()) {
                    assert!(futures_util::poll!(&mut answer).is_pending());
                    tokio::task::yield_now().await;
                }
            };
            // Other policy for the endpoint, then other facts of it, then it is gone.
            let mut retold = old.endpoint();
            retold.metadata = Arc::new(EndpointMetadata { hostname: Some("retold".into()), ..Default::default() });
            take(&[old.endpoint()], [127, 9, 9, 1]).await;
            take(&[retold.clone()], [127, 9, 9, 2]).await;
            take(if removed { &[] } else { std::slice::from_ref(&retold) }, [127, 9, 9, 3]).await;
            tokio::time::pause();
            mesh_testkit::clock::pass(4 * second).await;
            assert!(futures_util::poll!(&mut answer).is_pending(), "{protocol:?}: it is not over");
            mesh_testkit::clock::pass(2 * second).await;
            assert_eq!(futures_util::poll!(&mut answer).is_pending(), !removed, "{protocol:?}");
            tokio::time::resume();
        }
    }
}

#[tokio::test]
async fn what_a_removed_endpoint_has_not_finished_within_its_limit_is_cut_off() {
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        for (limit, remains) in [(None, false), (Some(Duration::MAX), true), (Some(2 * second), false)] {
            let (old, new) = (EchoServer::start("old").await, EchoServer::start("new").await);
            let to = |server: &EchoServer| policy::snapshot_of(speaking(protocol), [server.endpoint()]);
            let source = FixedSource::of(TARGET, to(&old));
            let builder = Client::builder(source.clone());
            let builder = if let Some(limit) = limit { builder.drain_limit(limit) } else { builder };
            let client = builder.build();
            old.behave(Behaviour::Stall);
            let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
            source.set_snapshot(TARGET, to(&new));
            let address = || client.dump().destinations[0].clusters[0].endpoints[0].address.to_string();
            while address() != new.address().to_string() {
                assert!(futures_util::poll!(&mut answer).is_pending());
                tokio::task::yield_now().await;
            }
            tokio::time::pause();
            let limit = limit.unwrap_or(30 * second);
            mesh_testkit::clock::pass(limit.min(day) - second).await;
            assert!(futures_util::poll!(&mut answer).is_pending(), "{protocol:?}: it is not over");
            mesh_testkit::clock::pass(2 * second).await;
            assert_eq!(futures_util::poll!(&mut answer).is_pending(), remains, "{protocol:?} {limit:?}");
            tokio::time::resume();
        }
    }
}

/// Answers every request on one connection and tells when the client closed it.
async fn serve_until_closed(listener: tokio::net::TcpListener) {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 4096];
    loop {
        let read = socket.read(&mut buffer).await.unwrap();
        if read == 0 {
            return;
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    }
}

#[tokio::test]
async fn dropping_the_client_closes_its_connections() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, source) = client_of(policy::snapshot_to(&[listener.local_addr().unwrap()]));
    let use_it = async {
        fetch(&client, "/").await.unwrap();
        drop(client);
    };
    tokio::join!(serve_until_closed(listener), use_it);
    while source.readers(TARGET) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn idle_connections_and_unused_destinations_go() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut short = cluster("test");
    short.connection.idle_timeout = Some(Duration::from_secs(20));
    let endpoint = mesh_core::policy::Endpoint::new(mesh_core::policy::Address::Socket(listener.local_addr().unwrap()));
    let source = FixedSource::of(TARGET, policy::snapshot_of(short, [endpoint]));
    let client = Client::builder(source.clone()).forget_after(Duration::from_secs(60)).build();
    let wait = async {
        fetch(&client, "/").await.unwrap();
        tokio::time::pause();
        mesh_testkit::clock::pass(Duration::from_secs(30)).await;
    };
    tokio::join!(serve_until_closed(listener), wait);
    assert_eq!(client.dump().destinations.len(), 1);
    mesh_testkit::clock::pass(Duration::from_secs(60)).await;
    assert_eq!(client.dump().destinations.len(), 0);
    assert_eq!(source.readers(TARGET), 0);
}

#[tokio::test]
async fn idle_connections_that_were_made_together_do_not_end_together() {
    let server = EchoServer::start("one").await;
    // The control draws nothing but zero: then they do.
    for drawn in [true, false] {
        let mut short = speaking(UpstreamProtocol::Http1);
        short.connection.idle_timeout = Some(Duration::from_secs(200));
        let source = FixedSource::of(TARGET, snapshot_with(forward_with(None), short, &[&server]));
        let random = parking_lot::Mutex::new(fastrand::Rng::with_seed(7));
        let draw = move |below| if drawn { random.lock().u64(..below) } else { 0 };
        let client = Client::builder(source).random(draw).build();
        hold(&client, &server, 10).await;
        let idle = || client.dump().destinations[0].clusters[0].endpoints[0].idle_connections;
        assert_eq!(idle(), 10);
        tokio::time::pause();
        mesh_testkit::clock::pass(Duration::from_secs(175)).await;
        assert_eq!(idle(), 10, "a tenth earlier at most");
        let mut left = Vec::new();
        for _ in 0..6 {
            mesh_testkit::clock::pass(Duration::from_secs(5)).await;
            left.push(idle());
        }
        tokio::time::resume();
        assert_eq!(left[5], 0, "{left:?}: and none later");
        assert_eq!(left.iter().any(|left| (1..10).contains(left)), drawn, "{left:?}");
    }
}

#[tokio::test]
async fn names_are_resolved_and_passthrough_dials_what_was_dialled() {
    let server = EchoServer::start("one").await;
    let port = server.address().port();
    let name = mesh_core::policy::Address::Name { host: "localhost".into(), port };
    let named = policy::endpoints(&"test".into(), vec![mesh_core::policy::Endpoint::new(name)]);
    let dialled = format!("localhost:{port}");
    for (target, discovery) in [
        (TARGET, Discovery::StrictDns(named.clone().into())),
        (TARGET, Discovery::LogicalDns(named.into())),
        (&dialled, Discovery::OriginalDestination),
    ] {
        let dns = Cluster { discovery, tls: UpstreamTls::Disable, ..cluster("test") };
        // `localhost` may have an IPv6 address as well, at which nobody listens.
        let on = RetryOn { connect_failure: true, ..RetryOn::default() };
        let source = FixedSource::of(target, snapshot_with(forward_with(Some(retrying(1, on))), dns.clone(), &[]));
        let client = Client::builder(source).build();
        let request = http::Request::get(format!("http://{target}/")).body(String::new()).unwrap();
        assert_eq!(client.send(request).await.unwrap().status(), 200, "{:?}", dns.discovery);
    }
}

/// A connector that waits to be let through; how often it was asked.
#[derive(Clone, Default)]
struct Gate {
    asked: Arc<Notify>,
    open: Arc<Notify>,
    dials: Arc<AtomicUsize>,
}

impl Gate {
    async fn connect(self, address: Address) -> std::io::Result<Box<dyn Io>> {
        let Address::Socket(address) = address else { unreachable!("it is one") };
        self.dials.fetch_add(1, Ordering::Relaxed);
        self.asked.notify_one();
        self.open.notified().await;
        Ok(Box::new(tokio::net::TcpStream::connect(address).await?))
    }
}

#[tokio::test]
async fn a_connection_whose_request_gave_up_is_the_next_ones() {
    let ca = TestCa::new();
    let plain = EchoServer::start("one").await;
    let secure = EchoServer::start_mtls("one", &ca.identity("default", "reviews")).await;
    for (mut policy, server) in
        [(speaking(UpstreamProtocol::Http1), &plain), (secured(UpstreamProtocol::Alpn), &secure)]
    {
        // One at a time: who waits for it takes it over as well.
        policy.breaker = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
        for through in [true, false] {
            let (before, gate) = (server.connections(), Gate::default());
            let source = FixedSource::of(TARGET, policy::snapshot_of(policy.clone(), [server.endpoint()]));
            let builder = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web"));
            let gated = gate.clone();
            let client = builder.connector(move |address| gated.clone().connect(address)).build();
            tokio::select! {
                _ = fetch(&client, "/given-up") => panic!("it cannot be answered"),
                () = gate.asked.notified() => {}
            }
            let fetched = if through {
                gate.open.notify_one();
                while server.connections() == before {
                    tokio::task::yield_now().await;
                }
                fetch(&client, "/").await
            } else {
                let open = async {
                    tokio::task::yield_now().await;
                    gate.open.notify_one();
                };
                tokio::join!(biased; fetch(&client, "/"), open).0
            };
            assert_eq!(server_of(&fetched.unwrap()), "one");
            assert_eq!(gate.dials.load(Ordering::Relaxed), 1, "{:?} {through}", policy.connection.protocol);
            assert_eq!(client.dump().destinations[0].clusters[0].endpoints[0].open_connections, 1);
        }
    }
}

#[tokio::test]
async fn the_connection_that_came_back_last_is_used_first_and_a_burst_leaves_nothing_in_use() {
    let server = EchoServer::start("one").await;
    let mut short = speaking(UpstreamProtocol::Http1);
    short.connection.idle_timeout = Some(Duration::from_secs(20));
    let (client, _) = client_of(snapshot_with(forward_with(None), short, &[&server]));
    hold(&client, &server, 10).await;
    let idle = || client.dump().destinations[0].clusters[0].endpoints[0].idle_connections;
    assert_eq!((server.connections(), idle()), (10, 10));
    // A trickle of requests, one each second: one connection is enough for it.
    for _ in 0..30 {
        fetch(&client, "/").await.unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::resume();
    }
    tokio::time::pause();
    mesh_testkit::clock::pass(Duration::from_secs(10)).await;
    tokio::time::resume();
    assert_eq!(idle(), 1);
    fetch(&client, "/").await.unwrap();
    assert_eq!(server.connections(), 10, "nor was one made");
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_not_dialled_for_each_request() {
    let server = EchoServer::start("one").await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (away, dials) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (gone, counted) = (away.clone(), dials.clone());
        let source = FixedSource::of(TARGET, policy::snapshot_of(speaking(protocol), [server.endpoint()]));
        let builder = Client::builder(source).random(|below| below / 2).connector(move |address: Address| {
            let gone = gone.load(Ordering::Relaxed);
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let Address::Socket(address) = address else { unreachable!("it is one") };
                if gone {
                    return Err(std::io::Error::other("away"));
                }
                Ok(Box::new(tokio::net::TcpStream::connect(address).await?) as Box<dyn Io>)
            }
        });
        let client = builder.build();
        for _ in 0..20 {
            let error = fetch(&client, "/").await.unwrap_err();
            assert!(error.code() == Code::CONNECT_FAILED && error.to_string().contains("away"), "{error}");
        }
        assert_eq!(dials.load(Ordering::Relaxed), 1, "{protocol:?}");
        // It is back; that is noticed when its time is over.
        away.store(false, Ordering::Relaxed);
        let error = fetch(&client, "/").await.unwrap_err();
        assert!(error.to_string().contains("the next attempt is due in"), "{error}");
        tokio::time::pause();
        tokio::time::advance(Duration::from_millis(500)).await;
        tokio::time::resume();
        assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "one");
        assert_eq!(dials.load(Ordering::Relaxed), 2, "{protocol:?}");
    }
}

#[tokio::test]
async fn what_is_warm_has_its_connections_before_the_first_request() {
    let ca = TestCa::new();
    let identity = ca.identity("default", "reviews");
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2, UpstreamProtocol::Alpn] {
        let servers =
            [EchoServer::start_mtls("one", &identity).await, EchoServer::start_mtls("other", &identity).await];
        let mut policy = secured(protocol);
        policy.balancer = Balancer::RoundRobin;
        let dead = Endpoint { metadata: servers[0].endpoint().metadata, ..dead_endpoint() };
        let endpoints = [servers[0].endpoint(), servers[1].endpoint(), dead];
        let source = FixedSource::of(TARGET, policy::snapshot_of(policy, endpoints));
        let client = Client::builder(source).crypto(crypto()).identity(ca.watched("default", "web")).build();
        for _ in 0..2 {
            let warmed = client.warm(TARGET).await.unwrap();
            assert_eq!((warmed.connected, warmed.failed.len()), (2, 1), "{protocol:?}");
            assert_eq!(warmed.failed[0].code(), Code::CONNECT_FAILED);
        }
        for _ in 0..4 {
            // Neither the dead one, nor another connection.
            fetch(&client, "/").await.unwrap();
        }
        assert_eq!(servers.each_ref().map(EchoServer::connections), [1, 1], "{protocol:?}");
        assert_eq!(servers.iter().map(EchoServer::requests).sum::<u64>(), 4);
    }
}

/// At its address nobody listens.
fn dead_endpoint() -> Endpoint {
    Endpoint::new(Address::Socket(super::dead_address()))
}
