//! What a slow, silent or greedy client may not do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::policy::{InboundState, InboundTls};
use mesh_server::{Config, Refusal};

use crate::kit::{Http, World, eventually, listener, policy, text, within};
use crate::raw::{DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, block, frame, get};

fn quick() -> Config {
    let mut config = Config::default();
    config.detect_timeout = Duration::from_millis(50);
    config.handshake_timeout = Duration::from_millis(50);
    config.header_read_timeout = Duration::from_millis(50);
    config
}

async fn world(config: Config) -> World {
    World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await
}

/// Sends a beginning and waits for the server to give up.
async fn given_up(world: &World, beginning: &[u8]) {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(beginning).await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = within(tcp.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "it was served");
}

#[tokio::test]
async fn slow_clients_are_given_up() {
    let world = world(quick()).await;
    let refused = |n| (world.server.stats().refused(Refusal::Timeout), n);
    given_up(&world, b"").await;
    let (got, want) = refused(1);
    assert_eq!(got, want, "silence");
    given_up(&world, b"PRI * HT").await;
    let (got, want) = refused(2);
    assert_eq!(got, want, "half a preface");
    given_up(&world, &[0x16, 3, 1]).await;
    let (got, want) = refused(3);
    assert_eq!(got, want, "half a handshake");
    given_up(&world, b"GET / HTTP/1.1\r\nhost: re").await;
    // Over HTTP/2: a block without its end, and half of one; between heads a connection may be silent.
    let mut silent = world.plain(Http::Two).await;
    assert_eq!(silent.get("/").await.unwrap().0, 200);
    let head = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    for part in [&head[..], &head[..20], &head[..4]] {
        given_up(&world, &[PREFACE, &frame(SETTINGS, 0, 0, &[]), part].concat()).await;
    }
    assert_eq!(silent.get("/").await.unwrap().0, 200);
}

/// R28, with the limits as they come. Time stands still but for timers.
#[tokio::test(start_paused = true)]
async fn by_default_a_head_has_ten_seconds_a_handshake_five_and_a_body_thirty_of_silence() {
    let head = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    let http2 = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head].concat();
    let upload = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbegun";
    for (beginning, drips, limit) in [
        (&b""[..], false, 10),
        (b"PRI * HT", false, 10),
        (&[0x16, 3, 1][..], false, 5),
        (b"GET / HTTP/1.1\r\nhost: re", false, 10),
        (b"GET / HTTP/1.1\r\nhost: re", true, 10),
        (&http2, false, 10),
        (upload, false, 30),
        // Between requests: one was answered.
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", false, 60),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT", true, 10),
        // The first one comes in several pieces.
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n0\r\n\r\n", false, 60),
    ] {
        let (world, _begins) = reader(Config::default()).await;
        assert_eq!(kept(world.address, beginning, drips).await, limit, "{:?}", String::from_utf8_lossy(beginning));
    }
    // The control.
    let mut config = Config::default();
    (config.header_read_timeout, config.idle_timeout) = (Duration::from_secs(3600), Duration::from_secs(3600));
    let (world, _begins) = reader(config).await;
    assert_eq!(kept(world.address, b"GET / HTTP/1.1\r\nhost: re", true).await, 100);
}

#[tokio::test(start_paused = true)]
async fn a_minute_without_a_request_ends_a_connection_and_one_that_is_served_for_longer_does_not() {
    let go = Arc::new(tokio::sync::Notify::new());
    let waits = go.clone();
    let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let waits = waits.clone();
        async move {
            if request.uri().path() == "/late" {
                waits.notified().await;
            }
            text("hello")
        }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let mut answer = [0; 1024];
    let pass = |seconds| mesh_testkit::clock::pass(Duration::from_secs(seconds));
    tcp.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    pass(90).await;
    go.notify_one();
    // What is served at once is seen by no timer.
    for _ in 0..4 {
        let length = tcp.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer[..length]));
        pass(40).await;
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    }
    assert!(tcp.read(&mut answer).await.unwrap() > 0);
    // Empty lines before a request are none.
    assert_eq!(kept_dripping(tcp, Some(b"\r\n")).await, 60);
    // Of one that was served for longer nobody looks at the connection again.
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    pass(90).await;
    go.notify_one();
    assert!(tcp.read(&mut answer).await.unwrap() > 0);
    assert_eq!(kept_dripping(tcp, None).await, 60);
}

/// For how many seconds a server keeps a connection on which no more comes after this, or a byte each second. 100 = for ever.
pub(crate) async fn kept(address: SocketAddr, beginning: &[u8], drips: bool) -> u64 {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(beginning).await.unwrap();
    kept_dripping(tcp, drips.then_some(b"x")).await
}

async fn kept_dripping(mut tcp: TcpStream, drop: Option<&[u8]>) -> u64 {
    let (mut read, mut write) = tcp.split();
    let began = tokio::time::Instant::now();
    let ended = async {
        let mut answer = [0; 1024];
        while matches!(read.read(&mut answer).await, Ok(1..)) {}
    };
    let dripping = async {
        for _ in 0..100 {
            mesh_testkit::clock::pass(Duration::from_secs(1)).await;
            if let Some(drop) = drop {
                let _ = write.write_all(drop).await;
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = dripping => {}
    }
    began.elapsed().as_secs()
}

#[tokio::test]
async fn a_slow_client_within_the_limits_is_served() {
    let world = world(Config::default()).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    for part in [&b"G"[..], b"ET / HTTP/1.1\r\nhost: re", b"views\r\nconnection: close\r\n\r\n"] {
        tcp.write_all(part).await.unwrap();
        tcp.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    within(tcp.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn too_many_connections_are_closed_and_a_free_place_is_taken() {
    let world = world(Config::default()).await;
    let mut limited = listener(InboundTls::Permissive);
    limited.limits.max_connections = Some(1);
    world.policy.publish(InboundState::Ready(Arc::new(limited)));
    let mut first = world.plain(Http::One).await;
    assert_eq!(first.get("/").await.unwrap().0, 200);
    given_up(&world, b"").await;
    assert_eq!(world.server.stats().refused(Refusal::ConnectionLimit), 1);
    drop(first);
    within(async {
        loop {
            let tcp = TcpStream::connect(world.address).await.unwrap();
            let mut client = crate::kit::Client::over(tcp, Http::One).await.unwrap();
            if client.get("/").await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn one_address_takes_no_more_connections_than_it_may() {
    for (limit, closed) in [(Some(2), 1), (None, 0)] {
        let mut config = Config::default();
        config.max_connections_per_peer = limit;
        let world = world(config).await;
        let (mut first, mut second) = (world.plain(Http::One).await, world.plain(Http::Two).await);
        for client in [&mut first, &mut second] {
            assert_eq!(client.get("/").await.unwrap().0, 200);
        }
        let third = || async {
            let tcp = TcpStream::connect(world.address).await.unwrap();
            crate::kit::Client::over(tcp, Http::One).await.unwrap().get("/").await.is_ok()
        };
        assert_eq!(within(third()).await, closed == 0, "{limit:?}");
        assert_eq!(world.server.stats().refused(Refusal::PeerLimit), closed);
        // Another address has its own places (all of 127/8 is this machine).
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let other = socket.connect(world.address).await.unwrap();
        let mut other = crate::kit::Client::over(other, Http::One).await.unwrap();
        assert_eq!(other.get("/").await.unwrap().0, 200, "{limit:?}");
        // A place that is given up can be taken.
        drop(first);
        within(async { while !third().await {} }).await;
    }
}

#[tokio::test]
async fn an_oversized_head_is_refused() {
    let world = world(Config::default()).await;
    for version in [Http::One, Http::Two] {
        let mut client = world.plain(version).await;
        let mut request = crate::kit::get("/");
        request.headers_mut().insert("x-large", "x".repeat(80 * 1024).parse().unwrap());
        let status = client.send(request).await.map(|response| response.status().as_u16());
        assert!(matches!(status, Ok(431) | Err(_)), "{version:?}: {status:?}");
    }
}

#[tokio::test]
async fn an_old_connection_is_drained() {
    let mut config = Config::default();
    config.max_connection_age = Some(Duration::from_millis(20));
    let world = world(config).await;
    for version in [Http::One, Http::Two] {
        let mut client = world.plain(version).await;
        // It may be over before the first request: then it is, but never with an error for one begun.
        let _ = client.get("/").await;
        within(client.ended).await.unwrap();
    }
    assert_eq!(eventually(|| Some(world.server.readiness().serving())).await, 1);
}

/// A server whose application reads the whole body and says when it begins to.
async fn reader(config: Config) -> (World, tokio::sync::mpsc::Receiver<()>) {
    let (began, begins) = tokio::sync::mpsc::channel(1);
    let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let began = began.clone();
        async move {
            began.send(()).await?;
            let body = http_body_util::BodyExt::collect(request.into_body()).await?;
            text(body.to_bytes())
        }
    });
    (World::start(policy(InboundTls::Permissive), config, service).await, begins)
}

/// A client that begins with a body of nine bytes and stops.
pub(crate) async fn begun(world: &World, version: Http, head: &[(&'static str, &'static str)]) -> TcpStream {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let bytes = match version {
        Http::One => {
            let lines: String = head.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let framing = "connection: close\r\ncontent-length: 9\r\n";
            format!("POST /checked HTTP/1.1\r\nhost: a\r\n{framing}{lines}\r\nbegun").into_bytes()
        }
        Http::Two => {
            let mut headers = get("/checked", head);
            headers[0].1 = "POST";
            let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head, &frame(DATA, 0, 1, b"begun")].concat()
        }
    };
    tcp.write_all(&bytes).await.unwrap();
    tcp
}

/// The rest of that body.
pub(crate) async fn end(tcp: &mut TcpStream, version: Http) {
    let rest = match version {
        Http::One => b" end".to_vec(),
        Http::Two => frame(DATA, END_STREAM, 1, b" end"),
    };
    tcp.write_all(&rest).await.unwrap();
}

/// Head and body of the answer, as far as they are no compressed bytes.
pub(crate) async fn answered(tcp: &mut TcpStream, version: Http) -> String {
    let mut answer = Vec::new();
    if version == Http::One {
        within(tcp.read_to_end(&mut answer)).await.unwrap();
        return String::from_utf8_lossy(&answer).into_owned();
    }
    within(async {
        loop {
            let mut head = [0; 9];
            tcp.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            tcp.read_exact(&mut payload).await.unwrap();
            if matches!(head[3], HEADERS | DATA) {
                answer.extend(payload);
                if head[4] & END_STREAM != 0 {
                    return String::from_utf8_lossy(&answer).into_owned();
                }
            }
        }
    })
    .await
}

/// The words of a server that waited too long.
const STOPPED: &str = "the request's body stopped coming";

fn impatient(idle: Duration) -> Config {
    let mut config = Config::default();
    config.body_idle_timeout = Some(idle);
    config
}

/// Whether a body that stops is given up. It takes as long as the limit.
pub(crate) async fn is_given_up(idle: Duration, version: Http, head: &[(&'static str, &'static str)]) -> bool {
    let (world, mut begins) = reader(impatient(idle)).await;
    let mut tcp = begun(&world, version, head).await;
    within(begins.recv()).await.unwrap();
    answered(&mut tcp, version).await.contains(STOPPED)
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    for version in [Http::One, Http::Two] {
        assert!(is_given_up(Duration::from_millis(50), version, &[]).await, "{version:?}");
    }
    // Over HTTP/1.1 there is no gRPC: the word for it is no way around the limit.
    assert!(is_given_up(Duration::from_millis(50), Http::One, &[GRPC]).await);
}

#[tokio::test]
async fn a_body_that_comes_slowly_and_a_call_that_may_be_silent_are_waited_for() {
    // The controls: what comes in time is whole; a gRPC call, and a server without the limit, wait on. That they do is seen
    // by the rest of the body, which is sent when a body with a limit would have been given up.
    let mut unlimited = Config::default();
    unlimited.body_idle_timeout = None;
    let limited = impatient(Duration::from_millis(50));
    for (config, version, head) in [(limited, Http::Two, &[GRPC][..]), (unlimited, Http::One, &[])] {
        let (world, mut begins) = reader(config).await;
        let mut tcp = begun(&world, version, head).await;
        within(begins.recv()).await.unwrap();
        assert!(is_given_up(Duration::from_millis(200), Http::One, &[]).await);
        end(&mut tcp, version).await;
        let answer = answered(&mut tcp, version).await;
        assert!(answer.ends_with("begun end"), "{version:?}: {answer}");
    }
}

/// A place that the application keeps for who is refused is given back with the refusal, and not with the connection.
#[tokio::test]
async fn who_is_refused_takes_no_place_in_the_applications_own_limit() {
    for version in [Http::One, Http::Two] {
        let service = tower::ServiceBuilder::new()
            .concurrency_limit(1)
            .service(tower::service_fn(|_: http::Request<mesh_server::Body>| async { text("hello") }));
        let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
        let mut refused = world.plain(version).await;
        assert_eq!(within(refused.get("/a%2Fb")).await.unwrap().0, 400, "{version:?}");
        // The first one stays.
        let mut other = world.plain(version).await;
        assert_eq!(within(other.get("/")).await.unwrap().0, 200, "{version:?}");
        assert_eq!(within(refused.get("/")).await.unwrap().0, 200, "{version:?}");
    }
}
