//! The debug server over loopback.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::drain;
use mesh_core::identity::LifeLeft;
use mesh_core::policy::InboundTls;
use mesh_core::source::{Identities, Watched};
use mesh_core::telemetry::Reporter;
use mesh_server::Readiness;
use mesh_server::debug::{DebugServer, prometheus};
use mesh_testkit::TestCa;

use crate::kit::{Client, Http, World, eventually, read, within};
use crate::limits::kept;
use crate::raw::{END_STREAM, HEADERS, PING, PREFACE, SETTINGS, block, frame, get, goes_on};

async fn client(debug: &DebugServer) -> Client {
    Client::over(TcpStream::connect(debug.address()).await.unwrap(), Http::One).await.unwrap()
}

async fn ask(debug: &DebugServer, head: &str) -> String {
    let mut tcp = TcpStream::connect(debug.address()).await.unwrap();
    tcp.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(tcp.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn every_path_answers_from_its_closure() {
    let world = World::hello(InboundTls::Permissive).await;
    // Open until it is asked for.
    let mut plain = world.plain(Http::One).await;
    assert_eq!(plain.get("/").await.unwrap().0, 200);
    eventually(|| (!world.metrics_text().is_empty()).then_some(())).await;
    let trigger = world.drain.clone();
    let identity = world.identity.watch();
    let ends = identity.load_full().as_ref().as_ref().unwrap().not_after();
    let listed = TestCa::new().bundles_revoking(&[]);
    let list_ends = listed.lists_end().unwrap();
    let debug = DebugServer::builder()
        .readiness(world.server.readiness().clone())
        .metrics(prometheus::content("1.2.3", world.metrics.clone(), world.server.stats().clone(), move |out| {
            prometheus::config_unenforced(out, [("listener", 0), ("routes", 2)]);
            prometheus::config_resources(out, [("routes", "nacked_but_cached", 3)]);
            prometheus::config_unconfirmed(out, 60);
            let named = [("outer".into(), identity.clone()), ("none".into(), Watched::fixed(None))];
            let identities = Identities::new(identity.clone(), named);
            let roots = [("listed".into(), Watched::fixed(Some(listed.clone())))];
            prometheus::certificate_expiry(out, &identities.with_roots(roots));
        }))
        .config_dump(Arc::new(|| ("application/json", "{\"config\":1}".into())))
        .clusters(Arc::new(|| ("not\na header value", "clusters".into())))
        .on_drain(Arc::new(move || trigger.drain()))
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost");
    assert!(ask(&debug, &get("/")).await.contains("/config_dump"));
    assert!(ask(&debug, &get("/healthz")).await.ends_with("\r\n\r\nok\n"));
    assert!(ask(&debug, &get("/readyz")).await.starts_with("HTTP/1.1 200"));
    let metrics = ask(&debug, &get("/metrics")).await;
    assert!(metrics.contains("istio_build{component=\"mesh\",tag=\"1.2.3\"} 1\n"), "{metrics}");
    assert!(metrics.contains("istio_requests_total{reporter=\"destination\""), "{metrics}");
    assert!(metrics.contains("mesh_inbound_plaintext_connections{peer=\"127.0.0.1\"} 1\n"), "{metrics}");
    drop(plain);
    assert!(metrics.contains("mesh_config_unenforced{kind=\"routes\"} 2\n"), "{metrics}");
    let refused = "mesh_config_resources{kind=\"routes\",state=\"nacked_but_cached\"} 3\n";
    assert!(metrics.contains(refused) && metrics.contains("mesh_config_unconfirmed_seconds 60\n"), "{metrics}");
    let outer = format!("{{of=\"leaf\",instance=\"outer\"}} {ends}\n");
    assert!(metrics.contains(&outer) && !metrics.contains("instance=\"none\""), "{metrics}");
    let ends = format!("mesh_certificate_expiry_timestamp_seconds{{of=\"leaf\"}} {ends}\n");
    assert!(metrics.contains(&ends) && metrics.contains("{of=\"root\"} "), "{metrics}");
    assert!(!metrics.contains("of=\"issuer\""), "a root signed it: {metrics}");
    let list = format!("{{of=\"revocation_list\",instance=\"listed\"}} {list_ends}\n");
    assert!(metrics.contains(&list) && metrics.matches("{of=\"revocation_list\"").count() == 1, "{metrics}");
    let failures = "mesh_certificate_renewal_failures_total ";
    assert!(metrics.contains(&format!("{failures}0\n")) && !metrics.contains("last_failure"), "{metrics}");
    world.metrics.renewals().failed(1_800_000_000);
    let metrics = ask(&debug, &get("/metrics")).await;
    let last = "mesh_certificate_renewal_last_failure_timestamp_seconds 1800000000\n";
    assert!(metrics.contains("mesh_certificate_unrenewed_life_percent 100\n"), "{metrics}");
    let life = world.metrics.renewals().life();
    life.passed(LifeLeft::Quarter);
    let _other = world.metrics.renewals().life();
    let _peer = world.metrics.peers().count(Reporter::Source, "0123456789abcdef");
    let later = ask(&debug, &get("/metrics")).await;
    assert!(later.contains("mesh_certificate_unrenewed_life_percent 25\n"), "the worst of all: {later}");
    let peers = "mesh_tls_peers_by_root{reporter=\"source\",root=\"0123456789abcdef\"} 1\n";
    assert!(later.contains(peers), "{later}");
    assert!(metrics.contains(&format!("{failures}1\n")) && metrics.contains(last), "{metrics}");
    assert!(ask(&debug, &get("/config_dump")).await.ends_with("{\"config\":1}"));
    assert!(ask(&debug, &get("/clusters")).await.ends_with("clusters"));
    assert!(ask(&debug, "HEAD /metrics HTTP/1.1\r\nhost: localhost").await.ends_with("\r\n\r\n"));

    assert!(ask(&debug, &get("/drain")).await.starts_with("HTTP/1.1 405"));
    assert!(ask(&debug, "POST /drain HTTP/1.1\r\nhost: localhost").await.starts_with("HTTP/1.1 202"));
    eventually(|| world.server.readiness().draining().then_some(())).await;
    let unready = ask(&debug, &get("/readyz")).await;
    assert!(unready.starts_with("HTTP/1.1 503") && unready.ends_with("draining\n"), "{unready}");
}

#[tokio::test]
async fn s85_a_foreign_host_name_is_refused_and_an_oversized_head_too() {
    let debug = DebugServer::builder().bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let rebound = ask(&debug, "GET /healthz HTTP/1.1\r\nhost: evil.example").await;
    assert!(rebound.starts_with("HTTP/1.1 421"), "{rebound}");
    let local = format!("GET /healthz HTTP/1.1\r\nhost: {}", debug.address());
    assert!(ask(&debug, &local).await.starts_with("HTTP/1.1 200"));
    let large = format!("{local}\r\nx-large: {}", "x".repeat(16 * 1024));
    let mut tcp = TcpStream::connect(debug.address()).await.unwrap();
    let _ = tcp.write_all(format!("{large}\r\n\r\n").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(tcp.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn s84_nothing_that_comes_over_the_network_ends_the_process() {
    let world = World::hello(InboundTls::Permissive).await;
    let silent = DebugServer::builder().bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    for path in ["/quitquitquit", "/quit", "/shutdown", "/drain", "/drain_listeners", "/healthcheck/fail", "/logging"] {
        for method in ["POST", "GET", "PUT"] {
            let answer = ask(&silent, &format!("{method} {path} HTTP/1.1\r\nhost: localhost")).await;
            assert!(answer.starts_with("HTTP/1.1 40"), "{method} {path}: {answer}");
        }
    }
    // The one word that a server takes, where it was told to: of whoever is on the machine and means to say it.
    let trigger = world.drain.clone();
    let debug = DebugServer::builder()
        .on_drain(Arc::new(move || trigger.drain()))
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    for line in [
        "GET /drain HTTP/1.1\r\nhost: localhost",
        "POST /drain HTTP/1.1\r\nhost: evil.example",
        "POST /quitquitquit HTTP/1.1\r\nhost: localhost",
    ] {
        assert!(ask(&debug, line).await.starts_with("HTTP/1.1 4"), "{line}");
    }
    assert!(!world.server.readiness().draining());
    assert_eq!(world.plain(Http::Two).await.get("/").await.unwrap().0, 200);
    assert!(ask(&debug, "POST /drain HTTP/1.1\r\nhost: localhost").await.starts_with("HTTP/1.1 202"));
    eventually(|| world.server.readiness().draining().then_some(())).await;
}

async fn over_http2(debug: &DebugServer) -> Client {
    Client::over(TcpStream::connect(debug.address()).await.unwrap(), Http::Two).await.unwrap()
}

/// A debug server whose gRPC service answers with the path.
async fn with_grpc() -> DebugServer {
    let service = tower::service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(request.uri().path().to_owned()))))
    });
    DebugServer::builder().grpc(service).bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

fn request(host: &str, path: &str, content_type: &str) -> Request<Empty<Bytes>> {
    let uri = format!("http://{host}{path}");
    Request::post(uri).header("content-type", content_type).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn grpc_and_pages_share_the_port() {
    let debug = with_grpc().await;
    let mut client = over_http2(&debug).await;
    let mut send = async |request| read(within(client.send(request)).await.unwrap()).await.unwrap();
    assert_eq!(
        send(request("localhost", "/a.Service/Call", "application/grpc")).await,
        (200, "/a.Service/Call".into())
    );
    assert_eq!(send(request("127.0.0.1:1", "/b", "application/grpc+proto")).await, (200, "/b".into()));
    let page = Request::get("http://localhost/healthz").body(Empty::new()).unwrap();
    assert_eq!(send(page).await, (200, "ok\n".into()));
    assert_eq!(send(request("evil.example", "/a", "application/grpc")).await.0, 421);
    assert_eq!(send(request("localhost", "/a", "text/plain")).await.0, 405);
    assert!(ask(&debug, "GET /healthz HTTP/1.1\r\nhost: localhost").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn without_a_grpc_service_there_is_no_http2() {
    let debug = DebugServer::builder().bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut client = over_http2(&debug).await;
    assert!(within(client.send(request("localhost", "/a", "application/grpc"))).await.is_err());
}

#[tokio::test]
async fn connections_that_stay_open_leave_room_for_probes() {
    let debug = with_grpc().await;
    let call = || request("localhost", "/a", "application/grpc");
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = over_http2(&debug).await;
        within(client.send(call())).await.unwrap();
        open.push(client);
    }
    let mut ninth = over_http2(&debug).await;
    assert!(within(ninth.send(call())).await.is_err(), "eight is the most");
    assert!(ask(&debug, "GET /healthz HTTP/1.1\r\nhost: localhost").await.starts_with("HTTP/1.1 200"));

    // One that goes makes room.
    drop(open.pop());
    loop {
        let mut client = over_http2(&debug).await;
        if within(client.send(call())).await.is_ok() {
            break;
        }
    }
}

/// R28 at this port. Time stands still but for timers.
#[tokio::test(start_paused = true)]
async fn who_is_slow_is_given_up() {
    let debug = with_grpc().await;
    let head = frame(HEADERS, END_STREAM, 1, &block(&get("/healthz", &[])));
    let http2 = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head].concat();
    for (beginning, drips) in [
        (&b""[..], false),
        (b"PRI * HT", false),
        (b"GET /healthz HTTP/1.1\r\nhost: lo", true),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", false),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET", true),
        (&http2, false),
    ] {
        assert_eq!(kept(debug.address(), beginning, drips).await, 5, "{:?}", String::from_utf8_lossy(beginning));
    }
    // Between requests of HTTP/2 it is a ping without an answer that ends a connection.
    assert_eq!(kept(debug.address(), &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat(), false).await, 40);
}

#[tokio::test]
async fn one_address_does_not_take_every_place() {
    let debug = DebugServer::builder().bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..32 {
        let mut tcp = TcpStream::connect(debug.address()).await.unwrap();
        tcp.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        // It is counted when it is answered.
        within(tcp.read_exact(&mut [0; 12])).await.unwrap();
        held.push(tcp);
    }
    let from = async |address: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let mut tcp = socket.connect(debug.address()).await.unwrap();
        let _ = tcp.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = within(tcp.read_to_end(&mut answer)).await;
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert!(!from([127, 0, 0, 1]).await, "32 are the most");
    assert!(from([127, 0, 0, 2]).await);
    drop(held);
    while !from([127, 0, 0, 1]).await {}
}

#[tokio::test]
async fn a_flood_ends_its_connection_and_a_large_head_is_refused() {
    let debug = with_grpc().await;
    let ping = frame(PING, 0, 0, &[1; 8]);
    assert_eq!(goes_on(debug.address(), &ping.repeat(500)).await, Ok(()), "a few are no flood");
    const ENHANCE_YOUR_CALM: u32 = 11;
    assert_eq!(goes_on(debug.address(), &ping.repeat(10_000)).await, Err(Some(ENHANCE_YOUR_CALM)));
    for version in [Http::One, Http::Two] {
        let ask = async |size: usize| {
            let tcp = TcpStream::connect(debug.address()).await.unwrap();
            let mut call =
                Request::get("http://localhost/healthz").header("host", "localhost").body(Empty::new()).unwrap();
            call.headers_mut().insert("x-large", "x".repeat(size).parse().unwrap());
            let answer = within(Client::over(tcp, version).await.unwrap().send(call)).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        };
        assert!(ask(4 * 1024).await, "{version:?}");
        assert!(!ask(16 * 1024).await, "{version:?}");
    }
}

#[tokio::test]
async fn beyond_loopback_only_when_told() {
    let anywhere = "0.0.0.0:0".parse().unwrap();
    let refused = DebugServer::builder().bind(anywhere).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(DebugServer::builder().beyond_loopback().bind(anywhere).await.is_ok());
}

#[tokio::test]
async fn dropping_it_closes_its_sockets() {
    let (trigger, _watch) = drain::channel();
    let held = Arc::new(trigger);
    let weak = Arc::downgrade(&held);
    let debug = DebugServer::builder()
        .readiness(Readiness::default())
        .on_drain(Arc::new(move || held.drain()))
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let client = client(&debug).await;
    let address = debug.address();
    drop(debug);
    within(client.ended).await.unwrap();
    eventually(|| weak.upgrade().is_none().then_some(())).await;
    assert!(TcpStream::connect(address).await.is_err());
}
