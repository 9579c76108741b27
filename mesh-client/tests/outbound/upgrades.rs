//! Connections that become something else than HTTP: WebSockets, say, and tunnels.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use mesh_client::Client;
use mesh_core::error::{Code, Fault};
use mesh_core::health::{AccrualState, Standing};
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, Endpoint, FailureAccrual, Forward, OriginatedTls, OutlierDetection,
    UpstreamProtocol, UpstreamTls,
};
use mesh_testkit::{CertificateSpec, EchoServer, FixedSource, TestCa, policy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{TARGET, client_of, cluster, fetch, get, snapshot_with};

/// Reads the head of a request.
async fn head(io: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn websocket() -> Request<Empty<Bytes>> {
    let mut request = get("/chat");
    request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    request
}

fn connect() -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = TARGET.parse().unwrap();
    request
}

const CHANGED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_connection_that_changes_its_protocol_is_the_applications() {
    for (request, first, says) in [
        (websocket as fn() -> Request<Empty<Bytes>>, "GET /chat HTTP/1.1\r\n".to_owned(), CHANGED),
        (connect, format!("CONNECT {TARGET} HTTP/1.1\r\n"), b"HTTP/1.1 200 OK\r\n\r\nhi"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, _) = client_of(policy::snapshot_to(&[listener.local_addr().unwrap()]));
        let serve = async {
            // An idle connection is good enough for it, and no other request uses it then.
            let (mut io, _) = listener.accept().await.unwrap();
            head(&mut io).await;
            io.write_all(OK).await.unwrap();
            let asked = head(&mut io).await;
            assert!(asked.starts_with(&first), "{asked}");
            io.write_all(says).await.unwrap();
            let mut raw = [0; 4];
            io.read_exact(&mut raw).await.unwrap();
            io.write_all(&raw).await.unwrap();
            let (mut other, _) = listener.accept().await.unwrap();
            head(&mut other).await;
            other.write_all(OK).await.unwrap();
        };
        let ask = async {
            fetch(&client, "/").await.unwrap();
            let mut answer = client.send(request()).await.unwrap();
            let mut raw = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
            drop(answer);
            raw.write_all(b"ping").await.unwrap();
            let mut echoed = [0; 6];
            raw.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"hiping");
            fetch(&client, "/").await.unwrap();
        };
        let both = async { tokio::join!(serve, ask) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }
}

/// As Envoy counts it for a request under way.
#[tokio::test]
async fn a_connection_that_changed_its_protocol_is_in_flight_until_it_is_closed() {
    for (request, says) in
        [(websocket as fn() -> Request<Empty<Bytes>>, CHANGED), (connect, b"HTTP/1.1 200 OK\r\n\r\nhi")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let breaker = CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() };
        let endpoint = Endpoint::new(Address::Socket(listener.local_addr().unwrap()));
        let (client, _) = client_of(policy::snapshot_of(Cluster { breaker, ..cluster("test") }, [endpoint]));
        let open = || client.dump().destinations[0].clusters[0].open_connections;
        let serve = async {
            let (mut io, _) = listener.accept().await.unwrap();
            head(&mut io).await;
            io.write_all(says).await.unwrap();
            let (mut other, _) = listener.accept().await.unwrap();
            head(&mut other).await;
            other.write_all(OK).await.unwrap();
            io
        };
        let ask = async {
            let mut answer = client.send(request()).await.unwrap();
            let raw = hyper::upgrade::on(&mut answer).await.unwrap();
            drop(answer);
            let error = fetch(&client, "/").await.unwrap_err();
            assert_eq!((error.code(), open()), (Code::BREAKER_OPEN, 1), "{error}");
            drop(raw);
            assert_eq!(open(), 0);
            fetch(&client, "/").await.unwrap();
        };
        let both = async { tokio::join!(serve, ask) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }
}

#[tokio::test]
async fn who_did_not_ask_for_another_protocol_gets_none_and_who_is_refused_one_gets_the_answer() {
    for (asks, says, expected) in [
        (false, &b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"[..], None),
        (true, b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno", Some(StatusCode::UPGRADE_REQUIRED)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, _) = client_of(policy::snapshot_to(&[listener.local_addr().unwrap()]));
        let serve = async {
            let (mut io, _) = listener.accept().await.unwrap();
            head(&mut io).await;
            io.write_all(says).await.unwrap();
            // Not used again, whatever came of it.
            assert_eq!(io.read(&mut [0]).await.unwrap_or(0), 0);
        };
        let ask = async {
            let mut request = get("/");
            if asks {
                request.headers_mut().insert("connection", "upgrade".parse().unwrap());
                request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
            }
            match super::read(client.send(request).await?).await {
                Ok(answer) => Ok((answer.status(), answer.into_body())),
                Err(error) => Err(error),
            }
        };
        let both = async { tokio::join!(serve, ask) };
        let ((), answer) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        match expected {
            Some(status) => assert_eq!(answer.unwrap(), (status, "no".into())),
            None => assert_eq!(answer.unwrap_err().code(), Code::CONNECTION_LOST),
        }
    }
}

#[tokio::test]
async fn an_offer_of_http2_without_tls_or_one_that_the_connection_does_not_name_costs_no_connection() {
    let h2c = [
        ("connection", "Upgrade, HTTP2-Settings, x-own"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
        ("x-own", "1"),
    ];
    for (headers, named) in
        [(&h2c[..], "x-own: 1\r\nconnection: x-own\r\n"), (&[("upgrade", "websocket")], "upgrade: websocket\r\n")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, _) = client_of(policy::snapshot_to(&[listener.local_addr().unwrap()]));
        let serve = async {
            let (mut io, _) = listener.accept().await.unwrap();
            for _ in 0..2 {
                let asked = head(&mut io).await;
                let lines = asked.split_inclusive("\r\n");
                let about = |line: &&str| {
                    ["connection:", "upgrade:", "http2-settings:", "x-own:"].iter().any(|name| line.starts_with(name))
                };
                assert_eq!(lines.filter(about).collect::<String>(), named);
                io.write_all(OK).await.unwrap();
            }
        };
        let ask = async {
            for _ in 0..2 {
                let mut request = get("/");
                for (name, value) in headers {
                    request.headers_mut().append(*name, value.parse().unwrap());
                }
                super::read(client.send(request).await.unwrap()).await.unwrap();
            }
        };
        let both = async { tokio::join!(serve, ask) };
        tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    }
}

/// A server of ordinary TLS that speaks both, and a cluster for it.
async fn both(protocol: UpstreamProtocol) -> (EchoServer, Cluster, tempfile::NamedTempFile) {
    speaking(&[b"h2", b"http/1.1"], protocol).await
}

/// A server of ordinary TLS that speaks these, and a cluster for it.
async fn speaking(speaks: &[&[u8]], protocol: UpstreamProtocol) -> (EchoServer, Cluster, tempfile::NamedTempFile) {
    let ca = TestCa::new();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let tls = ca.server_showing(ca.certified(&spec), speaks);
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let cluster = trusting(&roots, protocol);
    (EchoServer::start_tls("api", tls).await, cluster, roots)
}

/// A cluster of servers of ordinary TLS.
fn trusting(roots: &tempfile::NamedTempFile, protocol: UpstreamProtocol) -> Cluster {
    let originated = OriginatedTls {
        sni: Some("api.test".into()),
        auto_host_sni: false,
        subject_alt_names: Vec::new(),
        ca_file: Some(roots.path().to_str().unwrap().to_owned()),
        insecure_skip_verify: false,
    };
    let mut cluster = Cluster { tls: UpstreamTls::Simple(originated), ..cluster("test") };
    cluster.connection.protocol = protocol;
    cluster
}

/// HTTP/2 has no words for it: without them it would be a plain request.
#[tokio::test]
async fn what_asks_for_another_protocol_is_sent_over_http1_or_not_at_all() {
    for protocol in [UpstreamProtocol::Alpn, UpstreamProtocol::Http2] {
        let (server, cluster, _roots) = both(protocol).await;
        let snapshot = snapshot_with(Forward::to("test".into()), cluster, &[&server]);
        let client = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(mesh_testkit::crypto()).build();
        if protocol == UpstreamProtocol::Http2 {
            // What cannot be sent takes no connection.
            let error = client.send(websocket()).await.unwrap_err();
            assert_eq!((error.code(), server.connections()), (Code::UNSUPPORTED_ACTION, 0), "{error}");
        }
        // The control: others go over HTTP/2, before it and after it.
        fetch(&client, "/").await.unwrap();
        let answer = client.send(websocket()).await;
        fetch(&client, "/").await.unwrap();
        let seen = server.received();
        let versions: Vec<_> = seen.iter().map(|request| request.version).collect();
        match protocol {
            UpstreamProtocol::Alpn => {
                assert!(answer.is_ok(), "{answer:?}");
                assert_eq!(versions, [Version::HTTP_2, Version::HTTP_11, Version::HTTP_2]);
                assert_eq!(seen[1].headers["upgrade"], "websocket");
            }
            _ => {
                let error = answer.unwrap_err();
                assert_eq!(error.code(), Code::UNSUPPORTED_ACTION, "{error}");
                assert!(error.to_string().contains("the cluster's protocol is HTTP/2"), "{error}");
                assert_eq!(versions, [Version::HTTP_2, Version::HTTP_2]);
                let dump = client.dump();
                let endpoint = &dump.destinations[0].clusters[0].endpoints[0];
                assert_eq!(endpoint.in_flight, 0);
            }
        }
    }
}

/// It was asked for less than it may speak, which says nothing of it.
#[tokio::test]
async fn a_server_that_speaks_http2_only_is_none_the_worse_for_who_asks_for_another_protocol() {
    let (server, cluster, _roots) = speaking(&[b"h2"], UpstreamProtocol::Alpn).await;
    let accrual = FailureAccrual { max_failures: 1, ..FailureAccrual::default() };
    let outlier =
        OutlierDetection { consecutive_gateway: Some(1), consecutive_5xx: Some(1), ..OutlierDetection::default() };
    let cluster = Cluster { accrual: Some(accrual), outlier: Some(outlier), ..cluster };
    let snapshot = snapshot_with(Forward::to("test".into()), cluster, &[&server]);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(mesh_testkit::crypto()).build();
    for _ in 0..3 {
        let error = client.send(websocket()).await.unwrap_err();
        assert_eq!((error.code(), error.attempts()), (Code::UNSUPPORTED_ACTION, 1), "{error}");
        assert!(error.to_string().contains("does not speak HTTP/1.1"), "{error}");
    }
    let dump = client.dump();
    let endpoint = &dump.destinations[0].clusters[0].endpoints[0];
    assert!(endpoint.usable && endpoint.reachable, "{endpoint:?}");
    assert_eq!((endpoint.standing, endpoint.failure_penalty), (Standing::Good, 1.0));
    assert!(endpoint.accrual.is_none_or(|state| state == AccrualState::Closed), "{endpoint:?}");
    // Neither ejected nor left alone for a while.
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
}

/// Of those that do not speak it there may be some among others that do.
#[tokio::test]
async fn who_asks_for_another_protocol_goes_on_from_a_server_that_speaks_http2_only() {
    let ca = TestCa::new();
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), ca.root_pem()).unwrap();
    let spec = CertificateSpec { dns: vec!["api.test".into()], ..CertificateSpec::default() };
    let tls = |speaks: &[&[u8]]| ca.server_showing(ca.certified(&spec), speaks);
    let newer = EchoServer::start_tls("newer", tls(&[b"h2"])).await;
    let other = EchoServer::start_tls("other", tls(&[b"h2", b"http/1.1"])).await;
    let cluster = Cluster { balancer: Balancer::RoundRobin, ..trusting(&roots, UpstreamProtocol::Alpn) };
    let snapshot = snapshot_with(Forward::to("test".into()), cluster, &[&newer, &other]);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(mesh_testkit::crypto()).build();
    for _ in 0..4 {
        assert!(client.send(websocket()).await.is_ok());
    }
    assert_eq!((newer.received().len(), other.received().len()), (0, 4));
}

/// One of each kind there may be whatever the limits: neither can take the other's.
#[tokio::test]
async fn what_changes_its_protocol_and_what_goes_over_http2_do_not_keep_each_other_from_a_connection() {
    let one = Some(1);
    for breaker in [
        CircuitBreakers { max_connections: one, ..CircuitBreakers::default() },
        CircuitBreakers { max_connections_per_host: one, ..CircuitBreakers::default() },
    ] {
        for changes_first in [true, false] {
            let (server, cluster, _roots) = both(UpstreamProtocol::Alpn).await;
            let cluster = Cluster { breaker: breaker.clone(), ..cluster };
            let snapshot = snapshot_with(Forward::to("test".into()), cluster, &[&server]);
            let client = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(mesh_testkit::crypto());
            let client = client.queue_wait(Duration::from_secs(5)).build();
            // Held, and so are their connections.
            let held = if changes_first {
                let changing = client.send(websocket()).await.unwrap();
                [changing, client.send(get("/")).await.unwrap()]
            } else {
                let staying = client.send(get("/")).await.unwrap();
                [client.send(websocket()).await.unwrap(), staying]
            };
            let mut versions: Vec<_> = server.received().iter().map(|request| request.version).collect();
            versions.sort_unstable_by_key(|version| *version == Version::HTTP_2);
            assert_eq!((versions, server.connections()), (vec![Version::HTTP_11, Version::HTTP_2], 2));
            drop(held);
        }
    }
}
