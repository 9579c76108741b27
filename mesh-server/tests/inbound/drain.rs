//! The end of a server: drained or dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use mesh_core::error::BoxError;
use mesh_core::policy::InboundTls;
use mesh_server::Config;
use mesh_testkit::clock;

use crate::kit::{Client, Http, World, eventually, get, policy, read, spawn, text, within};
use crate::raw as http2;

type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// A server whose handler says that it began, waits for the gate, and says by dropping the sender's
/// clone that it is gone.
async fn gated(config: Config) -> (World, mpsc::Receiver<()>, watch::Sender<bool>) {
    let (began, begins) = mpsc::channel(8);
    let (open, gate) = watch::channel(false);
    let service = tower::service_fn(move |_| {
        let (began, mut gate) = (began.clone(), gate.clone());
        async move {
            began.send(()).await?;
            gate.wait_for(|open| *open).await?;
            let answer: Answer = text("done");
            answer
        }
    });
    (World::start(policy(InboundTls::Permissive), config, service).await, begins, open)
}

fn lame_duck(time: Duration) -> Config {
    let mut config = Config::default();
    config.lame_duck = time;
    config
}

#[tokio::test]
async fn a_lame_duck_serves_those_who_do_not_know_yet_and_tells_them() {
    let service = tower::service_fn(|_| async { text("served") });
    let lame = Duration::from_secs(50);
    let mut world = World::start(policy(InboundTls::Permissive), lame_duck(lame), service).await;
    let (mut idle, mut shared) = (world.plain(Http::One).await, world.plain(Http::Two).await);
    for client in [&mut idle, &mut shared] {
        assert_eq!(client.get("/").await.unwrap().0, 200);
    }
    world.drain.drain();
    eventually(|| world.server.readiness().draining().then_some(())).await;
    let response = within(idle.send(get("/"))).await.unwrap();
    assert_eq!(response.headers().get("connection").unwrap(), "close");
    assert_eq!(within(read(response)).await.unwrap(), (200, "served".to_owned()));
    within(idle.ended).await.unwrap();
    // Callers come all the same for a while, or stay.
    let mut late = world.plain(Http::Two).await;
    for client in [&mut shared, &mut late] {
        assert_eq!(client.get("/").await.unwrap().0, 200);
    }
    assert!(!world.serving.is_finished());
    tokio::time::pause();
    clock::pass(lame).await;
    tokio::time::resume();
    for client in [shared, late] {
        within(client.ended).await.unwrap();
    }
    within(&mut world.serving).await.unwrap().unwrap();
}

/// Requests that fail for a caller without retries who spreads them over two servers, and looks only after a while at
/// the readiness of the one that leaves. In the end that one has left, with requests in flight to the last moment.
async fn lost(version: Http, time: Duration) -> usize {
    let (began, mut begins) = mpsc::channel(8);
    let (open, gate) = watch::channel(false);
    let slow = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let (began, mut gate) = (began.clone(), gate.clone());
        async move {
            if request.uri().path() == "/slow" {
                began.send(()).await?;
                gate.wait_for(|open| *open).await?;
            }
            let answer: Answer = text("done");
            answer
        }
    });
    let mut leaving = World::start(policy(InboundTls::Permissive), lame_duck(time), slow).await;
    let staying = World::hello(InboundTls::Permissive).await;
    let mut in_flight = vec![begin(&leaving, version, &mut begins).await];
    let addresses = [leaving.address, staying.address];
    let mut pool = [None, None];
    let (mut lost, mut gone) = (0, false);
    for n in 0..80 {
        if n == 20 {
            leaving.drain.drain();
            eventually(|| leaving.server.readiness().draining().then_some(())).await;
            if !time.is_zero() {
                in_flight.push(begin(&leaving, version, &mut begins).await);
            }
        }
        if n == 40 {
            gone = !leaving.server.readiness().is_ready();
        }
        if n == 60 {
            // The lame duck's time is over; what has begun goes on.
            tokio::time::pause();
            clock::pass(time).await;
            tokio::time::resume();
            eventually(|| std::net::TcpStream::connect(leaving.address).is_err().then_some(())).await;
        }
        let place = if gone { 1 } else { n % 2 };
        lost += usize::from(ask(&mut pool[place], addresses[place], version).await.is_none());
    }
    assert!(gone, "who looks at readiness sees it");
    assert!(!leaving.serving.is_finished(), "{version:?}: requests are in flight");
    open.send_replace(true);
    for (client, answer) in in_flight {
        let answer = within(answer).await.unwrap().unwrap();
        let told = answer.headers().get("connection").is_some_and(|value| value == "close");
        assert_eq!(told, version == Http::One, "HTTP/2 has its GOAWAY");
        assert_eq!(within(read(answer)).await.unwrap(), (200, "done".to_owned()), "{version:?}");
        within(client.ended).await.unwrap();
    }
    within(&mut leaving.serving).await.unwrap().unwrap();
    lost
}

/// A request that has come to the handler and waits there, with its connection.
async fn begin(
    world: &World,
    version: Http,
    begins: &mut mpsc::Receiver<()>,
) -> (Client, JoinHandle<hyper::Result<Response<Incoming>>>) {
    let mut client = world.plain(version).await;
    let answer = spawn(client.send(get("/slow")));
    within(begins.recv()).await.unwrap();
    (client, answer)
}

/// One request over a connection that is kept, or a new one in the place of one that has ended. `None` = lost.
async fn ask(kept: &mut Option<Client>, server: SocketAddr, version: Http) -> Option<()> {
    loop {
        let client = match kept {
            Some(client) if !client.ended.is_finished() => client,
            _ => kept.insert(Client::over(TcpStream::connect(server).await.ok()?, version).await.ok()?),
        };
        match within(client.get("/")).await {
            Ok((status, _)) => return (status == 200).then_some(()),
            // It never left: the connection had been told to take no more.
            Err(error) if error.is_canceled() => *kept = None,
            Err(_) => return None,
        }
    }
}

#[tokio::test]
async fn a_drain_loses_no_request_though_nobody_retries() {
    for version in [Http::One, Http::Two] {
        assert_eq!(lost(version, Duration::from_secs(50)).await, 0, "{version:?}");
        // Control: whoever has not looked yet finds the door closed.
        assert!(lost(version, Duration::ZERO).await >= 5, "{version:?}");
    }
}

/// How an answer that never ends does end when its server has waited for it as long as it may.
async fn outlived(content_type: &str) -> Result<HeaderMap, hyper::Error> {
    let endless = tower::service_fn(|_| async {
        let first = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"first")))]);
        let body = StreamBody::new(first.chain(stream::pending()));
        Ok::<_, BoxError>(Response::builder().header("content-type", "application/grpc").body(body)?)
    });
    let mut config = lame_duck(Duration::from_secs(1));
    config.drain_limit = Duration::from_secs(10);
    let mut world = World::start(policy(InboundTls::Permissive), config, endless).await;
    let mut client = world.plain(Http::Two).await;
    let mut request = get("/a.Streams/Watch");
    *request.method_mut() = http::Method::POST;
    request.headers_mut().insert("content-type", content_type.parse().unwrap());
    let mut answer = within(client.send(request)).await.unwrap().into_body();
    assert_eq!(within(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    world.drain.drain();
    eventually(|| world.server.readiness().draining().then_some(())).await;
    tokio::time::pause();
    // Until then it goes on.
    clock::pass(Duration::from_secs(8)).await;
    assert!(answer.frame().now_or_never().is_none());
    clock::pass(Duration::from_secs(3)).await;
    tokio::time::resume();
    let last = within(answer.frame()).await.unwrap();
    within(&mut world.serving).await.unwrap().unwrap();
    Ok(last?.into_trailers().unwrap())
}

#[tokio::test]
async fn grpc_streams_that_outlive_a_drain_are_told_unavailable_r34() {
    let trailers = outlived("application/grpc").await.unwrap();
    assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
    // The control: of what is no gRPC call there is nothing to be told.
    assert!(outlived("text/plain").await.is_err());
}

/// What a request gets that is in the handler for longer than its server may wait, or until shortly before.
async fn waited_for(
    version: Http,
    content_type: &'static str,
    in_time: bool,
) -> hyper::Result<(HeaderMap, u16, String)> {
    let mut config = lame_duck(Duration::from_secs(1));
    config.drain_limit = Duration::from_secs(10);
    let (mut world, mut begins, open) = gated(config).await;
    let mut client = world.plain(version).await;
    let mut request = get("/a.Service/Call");
    request.headers_mut().insert("content-type", content_type.parse().unwrap());
    let mut answer = spawn(client.send(request));
    within(begins.recv()).await.unwrap();
    world.drain.drain();
    eventually(|| world.server.readiness().draining().then_some(())).await;
    tokio::time::pause();
    clock::pass(Duration::from_secs(8)).await;
    assert!((&mut answer).now_or_never().is_none(), "until then it is waited for");
    if in_time {
        open.send_replace(true);
    }
    clock::pass(Duration::from_secs(3)).await;
    tokio::time::resume();
    let answer = within(answer).await.unwrap();
    within(&mut world.serving).await.unwrap().unwrap();
    let answer = answer?;
    let headers = answer.headers().clone();
    let (status, text) = within(read(answer)).await?;
    Ok((headers, status, text))
}

#[tokio::test]
async fn requests_without_an_answer_that_outlive_a_drain_are_told_so_r34() {
    for version in [Http::One, Http::Two] {
        let (headers, status, _) = waited_for(version, "application/grpc", false).await.unwrap();
        assert_eq!(
            (status, headers.get("grpc-status").map(|told| told.as_bytes())),
            (200, Some(&b"14"[..])),
            "{headers:?}"
        );
        assert!(headers["grpc-message"].to_str().unwrap().starts_with("MESH-1501"), "{headers:?}");
        let (_, status, text) = waited_for(version, "text/plain", false).await.unwrap();
        assert!(status == 503 && text.starts_with("MESH-1501"), "{version:?}: {status} {text}");
        // The control: who is in time gets its answer.
        for content_type in ["application/grpc", "text/plain"] {
            let (_, status, text) = waited_for(version, content_type, true).await.unwrap();
            assert_eq!((status, &*text), (200, "done"), "{version:?} {content_type}");
        }
    }
}

/// The next GOAWAY of a connection: its last stream; and which streams were answered before. `None` = it has ended.
async fn goodbye(tcp: &mut TcpStream, answered: &mut Vec<u32>, pings: &mut Vec<Vec<u8>>) -> Option<u32> {
    loop {
        let (kind, flags, stream, payload) = within(http2::next(tcp)).await?;
        match kind {
            http2::GOAWAY => {
                assert_eq!(payload[4..8], [0; 4], "no error");
                return Some(u32::from_be_bytes(payload[..4].try_into().unwrap()));
            }
            // 200 has a place in HPACK's table.
            http2::HEADERS if payload[0] == 0x88 => answered.push(stream),
            http2::PING if flags & http2::ACK == 0 => pings.push(payload),
            _ => {}
        }
    }
}

#[tokio::test]
async fn http2_is_told_twice_and_what_came_between_is_served() {
    for came_late in [false, true] {
        let lame = Duration::from_secs(50);
        let (mut world, mut begins, open) = gated(lame_duck(lame)).await;
        if came_late {
            world.drain.drain();
            eventually(|| world.server.readiness().draining().then_some(())).await;
        }
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let ask = |stream| http2::request(stream, &http2::get("/", &[]));
        let hello = [http2::PREFACE, &http2::frame(http2::SETTINGS, 0, 0, &[]), &ask(1)].concat();
        tcp.write_all(&hello).await.unwrap();
        within(begins.recv()).await.unwrap();
        if !came_late {
            world.drain.drain();
            eventually(|| world.server.readiness().draining().then_some(())).await;
        }
        // It is not sent away while the duck is lame.
        tcp.write_all(&http2::frame(http2::PING, 0, 0, b"any word")).await.unwrap();
        loop {
            let (kind, flags, _, _) = within(http2::next(&mut tcp)).await.unwrap();
            assert_ne!(kind, http2::GOAWAY, "{came_late}");
            if kind == http2::PING && flags & http2::ACK != 0 {
                break;
            }
        }
        tokio::time::pause();
        clock::pass(lame).await;
        tokio::time::resume();
        // The first word names no stream: what is on its way is welcome.
        let (mut answered, mut pings) = (Vec::new(), Vec::new());
        assert_eq!(goodbye(&mut tcp, &mut answered, &mut pings).await, Some(0x7fff_ffff));
        tcp.write_all(&ask(3)).await.unwrap();
        within(begins.recv()).await.unwrap();
        // The second comes once it is known that the first has, and names the last one.
        while pings.is_empty() {
            let (kind, _, _, payload) = within(http2::next(&mut tcp)).await.unwrap();
            assert_ne!(kind, http2::GOAWAY);
            pings.extend((kind == http2::PING).then_some(payload));
        }
        tcp.write_all(&http2::frame(http2::PING, http2::ACK, 0, &pings[0])).await.unwrap();
        assert_eq!(goodbye(&mut tcp, &mut answered, &mut pings).await, Some(3));
        assert_eq!(answered, [0; 0]);
        // The control: after the second a request is lost, and the caller knows it by the number.
        tcp.write_all(&ask(5)).await.unwrap();
        open.send_replace(true);
        let last = goodbye(&mut tcp, &mut answered, &mut pings).await;
        answered.sort_unstable();
        assert_eq!((last, answered), (None, vec![1, 3]));
        assert!(begins.try_recv().is_err(), "it came to nobody");
        within(&mut world.serving).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn without_a_lame_duck_idle_connections_are_closed_at_once() {
    let service = tower::service_fn(|_| async { text("served") });
    let mut world = World::start(policy(InboundTls::Permissive), lame_duck(Duration::ZERO), service).await;
    let mut idle = world.plain(Http::One).await;
    assert_eq!(idle.get("/").await.unwrap().0, 200);
    world.drain.drain();
    within(idle.ended).await.unwrap();
    within(&mut world.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_comes_when_nobody_is_connected_is_served_while_the_duck_is_lame() {
    for (time, served) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let service = tower::service_fn(|_| async { text("served") });
        let mut world = World::start(policy(InboundTls::Permissive), lame_duck(time), service).await;
        world.drain.drain();
        eventually(|| world.server.readiness().draining().then_some(())).await;
        assert!(!world.server.readiness().is_ready());
        if served {
            assert_eq!(world.plain(Http::Two).await.get("/").await.unwrap().0, 200);
            assert!(!world.serving.is_finished());
        } else {
            // The control: the door is closed at once.
            within(&mut world.serving).await.unwrap().unwrap();
            assert!(TcpStream::connect(world.address).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_drain_finishes_requests_in_flight_and_refuses_new_connections() {
    for version in [Http::One, Http::Two] {
        let (mut world, mut begins, open) = gated(lame_duck(Duration::ZERO)).await;
        let mut client = world.mutual(version).await;
        let idle = world.plain(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();

        world.drain.drain();
        within(idle.ended).await.unwrap();
        eventually(|| world.server.readiness().draining().then_some(())).await;
        assert!(!world.server.readiness().is_ready());
        // The listener is closed.
        eventually(|| std::net::TcpStream::connect(world.address).is_err().then_some(())).await;
        assert!(!world.serving.is_finished(), "{version:?}: a request is in flight");

        open.send_replace(true);
        let response = within(in_flight).await.unwrap().unwrap();
        assert_eq!(within(read(response)).await.unwrap(), (200, "done".to_owned()), "{version:?}");
        within(&mut world.serving).await.unwrap().unwrap();
        within(world.drain.finished()).await;
        within(client.ended).await.unwrap();
    }
}

#[tokio::test]
async fn the_drain_limit_ends_what_does_not_finish() {
    for version in [Http::One, Http::Two] {
        let mut config = lame_duck(Duration::ZERO);
        config.drain_limit = Duration::from_millis(50);
        let (mut world, mut begins, _open) = gated(config).await;
        let mut client = world.plain(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();
        world.drain.drain();
        within(&mut world.serving).await.unwrap().unwrap();
        // It is told, or cut off where the time was too short for that.
        let status = within(in_flight).await.unwrap().map_or(503, |answer| answer.status().as_u16());
        assert_eq!(status, 503, "{version:?}");
    }
}

/// Who always has something to be served is not served for ever.
#[tokio::test]
async fn the_drain_limit_ends_who_never_stops_asking() {
    for bytes in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n"] {
        let mut config = lame_duck(Duration::ZERO);
        config.drain_limit = Duration::from_millis(50);
        let mut world =
            World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await;
        let (mut reads, mut writes) = TcpStream::connect(world.address).await.unwrap().into_split();
        writes.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(within(reads.read(&mut [0; 1024])).await.unwrap() > 0);
        let many = bytes.repeat(1000);
        let asking = spawn(async move { while writes.write_all(many.as_bytes()).await.is_ok() {} });
        let reading = spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while reads.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        });
        world.drain.drain();
        within(&mut world.serving).await.unwrap().unwrap();
        within(asking).await.unwrap();
        within(reading).await.unwrap();
    }
}

/// R34: what has sent nothing, or not enough to be anything, has nothing to finish. A server that waited for it would not end
/// here: no limit is over within the test.
#[tokio::test]
async fn connections_that_have_asked_nothing_do_not_hold_a_drain_up_r34() {
    let long = Duration::from_secs(3600);
    let mut config = lame_duck(Duration::ZERO);
    (config.detect_timeout, config.handshake_timeout) = (long, long);
    config.drain_limit = long;
    for begun in [&b""[..], b"P", b"PRI * HT", &[0x16, 3, 1]] {
        let service = tower::service_fn(|_| async { text("served") });
        let mut world = World::start(policy(InboundTls::Permissive), config.clone(), service).await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(begun).await.unwrap();
        // It is taken in before this.
        assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, 200);
        world.drain.drain();
        within(&mut world.serving).await.unwrap().unwrap();
        // An end, or a reset.
        let _ = within(tcp.read_to_end(&mut Vec::new())).await;
    }
    // The control: a request does, which has something to finish.
    let (world, mut begins, _open) = gated(config).await;
    let mut client = world.plain(Http::Two).await;
    let in_flight = spawn(client.send(get("/")));
    within(begins.recv()).await.unwrap();
    world.drain.drain();
    eventually(|| std::net::TcpStream::connect(world.address).is_err().then_some(())).await;
    assert!(!world.serving.is_finished() && !in_flight.is_finished());
}

#[tokio::test]
async fn dropping_the_server_closes_sockets_and_ends_handlers() {
    for version in [Http::One, Http::Two] {
        let (held, alive) = watch::channel(());
        let held = Arc::new(held);
        let (began, mut begins) = mpsc::channel(1);
        let service = tower::service_fn(move |_| {
            let (held, began) = (held.clone(), began.clone());
            async move {
                began.send(()).await?;
                std::future::pending::<()>().await;
                drop(held);
                let answer: Answer = text("never");
                answer
            }
        });
        let mut world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
        let mut client = world.mutual(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();

        world.serving.abort();
        assert!(within(&mut world.serving).await.unwrap_err().is_cancelled());
        assert!(within(in_flight).await.unwrap().is_err(), "{version:?}");
        within(client.ended).await.unwrap();
        // Every clone of the service and every handler future is gone.
        let mut alive = alive;
        while within(alive.changed()).await.is_ok() {}
        assert_eq!(world.server.readiness().serving(), 0);
    }
}
