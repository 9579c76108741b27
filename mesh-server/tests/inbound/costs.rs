//! What hostile peers cost a server in memory: bytes at the allocator of its thread, the same on every machine. Peers are
//! bare sockets, or on other threads, so that nothing of theirs is counted.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use allocation_counter::measure;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;
use tower_layer::Layer;

use mesh_core::policy::InboundTls;
use mesh_server::{Body, Config};
use mesh_testkit::clock;

use crate::floods::{PROVOCATIONS, counted, provoked_resets, rapid_reset};
use crate::kit::{Http, World, client_tls, policy, text, within};
use crate::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, SETTINGS, WINDOW_UPDATE,
    block, frame, get, request,
};

/// A server that reads bodies and keeps nothing of them, alone on this thread. Its clock stands still until it is told to
/// pass.
struct Served {
    runtime: Runtime,
    world: World,
}

/// As many slow connections as R28 says.
const MANY: usize = 1000;
/// What R28 lets each of them cost.
const EACH: i64 = 50 << 10;
/// The largest head.
const HEAD: i64 = 60 << 10;

impl Served {
    fn new(config: Config) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
            }
            text("hello")
        });
        let world = runtime.block_on(World::start(policy(InboundTls::Permissive), config, service));
        let served = Self { runtime, world };
        served.serve(3);
        served
    }

    /// Serves others, so many of each kind, without any time passing.
    fn serve(&self, times: usize) {
        self.runtime.block_on(async {
            let _still = Still::begin();
            for _ in 0..times {
                let clients = [self.world.plain(Http::One).await, self.world.plain(Http::Two).await];
                for mut client in clients.into_iter().chain([self.world.mutual(Http::Two).await]) {
                    assert_eq!(within(client.get("/")).await.unwrap().0, 200);
                }
            }
        });
    }

    /// What has ended gives back what it held.
    fn settle(&self) {
        self.runtime.block_on(async {
            let _still = Still::begin();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Makes slow connections, others being served meanwhile.
    fn hold(&self, begins: &[u8], many: usize) -> Held {
        let mut peers = Vec::with_capacity(many);
        let cost = measure(|| {
            while peers.len() < many {
                for _ in 0..100 {
                    let mut peer = TcpStream::connect(self.world.address).unwrap();
                    peer.write_all(begins).unwrap();
                    peer.set_nonblocking(true).unwrap();
                    peers.push(peer);
                }
                self.serve(1);
            }
            self.settle();
        });
        Held { peers, bytes: cost.bytes_current }
    }

    /// So many seconds, in each of which each peer sends one byte more of these.
    fn pass(&self, held: &mut Held, drips: &[u8], seconds: u64) {
        let cost = measure(|| {
            for second in 0..seconds {
                let drop = drips.get(second as usize % drips.len().max(1));
                for (peer, drop) in held.peers.iter_mut().flat_map(|peer| drop.map(|drop| (peer, *drop))) {
                    // Some are closed already.
                    let _ = peer.write(&[drop]);
                }
                self.runtime.block_on(clock::pass(Duration::from_secs(1)));
            }
            self.settle();
        });
        held.bytes += cost.bytes_current;
    }
}

/// While it is there no virtual time passes, however idle the runtime is.
struct Still(#[allow(dead_code, reason = "held for its drop")] std::sync::mpsc::Sender<()>);

impl Still {
    fn begin() -> Self {
        let (held, end) = std::sync::mpsc::channel::<()>();
        // Tokio's paused clock waits for blocking tasks.
        tokio::task::spawn_blocking(move || end.recv());
        Self(held)
    }
}

/// Slow connections, and the bytes that the server holds for them.
struct Held {
    peers: Vec<TcpStream>,
    bytes: i64,
}

impl Held {
    fn each(&self) -> i64 {
        self.bytes / i64::try_from(self.peers.len()).unwrap()
    }

    /// How many the server has given up: closed, or told so.
    fn given_up(&mut self) -> usize {
        const TOLD: &[u8] = b"the request's body stopped coming";
        let mut answer = [0; 4096];
        let given_up = |peer: &mut TcpStream| loop {
            match peer.read(&mut answer) {
                Ok(0) => return true,
                Ok(length) if answer[..length].windows(TOLD.len()).any(|part| part == TOLD) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // A reset is as good as an end.
                Err(_) => return true,
            }
        };
        self.peers.iter_mut().map(given_up).filter(|given_up| *given_up).count()
    }
}

/// A peer that begins and does not go on, or goes on in drops.
struct Slow {
    what: &'static str,
    begins: Vec<u8>,
    /// A byte each second, over and over.
    drips: Vec<u8>,
    /// When it is given up, seconds.
    limit: u64,
    /// What it may cost, bytes.
    cost: i64,
}

fn slow_peers(world: &World) -> Vec<Slow> {
    let http2 = |frames: &[&[u8]]| [&[PREFACE, &frame(SETTINGS, 0, 0, &[])], frames].concat().concat();
    let hello = hello(world);
    let slow = |what, begins: &[u8], drips: &[u8], limit| {
        // What is sent of a head is kept, and the room for it grows by doubling.
        let cost = if begins.len() > 40_000 { EACH + 2 * HEAD } else { EACH };
        Slow { what, begins: begins.to_vec(), drips: drips.to_vec(), limit, cost }
    };
    let large = "x".repeat(16_000);
    let part = |kind| frame(kind, 0, 1, &block(&[("x-large", &large)]));
    let head = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    let more = frame(CONTINUATION, 0, 1, &block(&[("a", "b")]));
    let large_head = [head.clone(), part(CONTINUATION), part(CONTINUATION), part(CONTINUATION)].concat();
    vec![
        slow("no byte", b"", b"", 10),
        slow("HTTP/1.1 head", b"GET / HTTP/1.1\r\nhost: re", b"x", 10),
        slow("HTTP/2 head", &http2(&[&head]), &more, 10),
        slow("large HTTP/1.1 head", format!("GET / HTTP/1.1\r\nhost: {large}{large}{large}").as_bytes(), b"x", 10),
        slow("large HTTP/2 head", &http2(&[&large_head]), &more, 10),
        slow("half a handshake's first flight", &hello[..hello.len() / 2], &hello[hello.len() / 2..], 5),
        slow("the first flight of a handshake", &hello, b"", 5),
        slow("HTTP/1.1 body", &upload(Http::One), b"", 30),
        slow("HTTP/2 body", &upload(Http::Two), b"", 30),
    ]
}

/// The beginning of a request with a body.
fn upload(version: Http) -> Vec<u8> {
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
    match version {
        Http::One => b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 999\r\n\r\nbegun".to_vec(),
        Http::Two => [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head, &frame(DATA, 0, 1, b"begun")].concat(),
    }
}

/// The first flight of a handshake as one of the mesh.
fn hello(world: &World) -> Vec<u8> {
    let tls = client_tls(&world.ca.identity("default", "productpage"), Http::Two);
    let mut client = ClientConnection::new(tls, ServerName::try_from("mesh").unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn a_thousand_slow_peers_cost_little_keep_nobody_waiting_and_are_given_up_r28() {
    room();
    let served = Served::new(Config::default());
    for Slow { what, begins, drips, limit, cost } in slow_peers(&served.world) {
        let mut held = served.hold(&begins, MANY);
        served.pass(&mut held, &drips, limit - 1);
        let each = held.each();
        assert!((1 << 10..cost).contains(&each), "{what}: {each} bytes each");
        assert_eq!(held.given_up(), 0, "{what}: too early");
        served.pass(&mut held, &[], 2);
        assert_eq!(held.given_up(), MANY, "{what}");
        // Where it was told so over HTTP/2 the connection goes on, until it does not answer pings.
        served.pass(&mut held, &[], if what == "HTTP/2 body" { 80 } else { 0 });
        let each = held.each();
        assert!(each < 100, "{what}: {each} bytes each are left");
    }
}

#[test]
fn without_the_limits_slow_peers_are_kept_and_what_they_cost_with_them_r28() {
    let for_ever = Duration::from_secs(1 << 20);
    let mut config = Config::default();
    (config.detect_timeout, config.handshake_timeout) = (for_ever, for_ever);
    (config.header_read_timeout, config.idle_timeout, config.keep_alive_interval) = (for_ever, for_ever, for_ever);
    config.body_idle_timeout = None;
    let served = Served::new(config);
    for Slow { what, begins, drips, .. } in slow_peers(&served.world) {
        let mut held = served.hold(&begins, 100);
        let each = held.each();
        served.pass(&mut held, &drips, 20);
        served.pass(&mut held, &[], 180);
        assert_eq!(held.given_up(), 0, "{what}");
        // Buffers may be moved meanwhile.
        assert!(held.each() > each / 2, "{what}: {} of {each}", held.each());
        drop(held);
        served.settle();
    }
}

#[test]
fn a_thousand_bodies_that_trickle_cost_no_more_with_time_and_end_with_their_connections_age_r28() {
    room();
    for (age, kept) in [(Some(Duration::from_secs(15)), 0), (None, MANY)] {
        let mut config = Config::default();
        (config.max_connection_age, config.drain_limit) = (age, Duration::from_secs(5));
        // A frame of ten bytes, one a second, is not to be on the edge of the time that its beginning may take.
        config.header_read_timeout = Duration::from_secs(20);
        let served = Served::new(config);
        for (version, drips) in [(Http::One, b"x".to_vec()), (Http::Two, frame(DATA, 0, 1, b"x"))] {
            let mut held = served.hold(&upload(version), MANY);
            served.pass(&mut held, &drips, 10);
            let each = held.each();
            assert!(each < EACH, "{version:?}: {each} bytes each");
            assert_eq!(held.given_up(), 0, "{version:?}");
            // The age varies by a tenth. Without one, the control, they are kept.
            served.pass(&mut held, &drips, 20);
            assert_eq!(held.given_up(), MANY - kept, "{version:?}");
            let left = if kept > 0 { each + 100 } else { 100 };
            assert!(held.each() < left, "{version:?}: {} bytes each, and {each} before", held.each());
            drop(held);
            served.settle();
        }
    }
}

/// Makes room for the sockets of a thousand connections, both ends of which are here.
fn room() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused, what there is may do.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Requests whose heads are, or become, much larger than a server allows, and what each may take.
fn bombs() -> Vec<(&'static str, Vec<u8>, u64)> {
    let one = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let many = "a: b\r\n".repeat(10_000);
    let large = "x".repeat(1 << 20);
    // A header that stands in the table of the compression, and is named with one byte each time.
    let crumb = block(&[("cookie", &"x".repeat(4000))]);
    let mut named = block(&get("/", &[]));
    named.push(0x40);
    named.extend(&crumb[1..]);
    named.extend([0x80 | 62; 10_000]);
    let mut frames = frame(HEADERS, END_STREAM, 1, &[]);
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &named));
    let http2 = |frames: Vec<u8>| [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames].concat();
    vec![
        ("HTTP/1.1, 1 MiB", format!("{one}x-large: {large}\r\n\r\n").into_bytes(), BOMB),
        ("HTTP/1.1, 10,000 headers", format!("{one}{many}\r\n").into_bytes(), BOMB),
        ("HTTP/2, 1 MiB", http2(request(1, &get("/", &[("x-large", &large)]))), BOMB),
        ("HTTP/2, 10,000 headers", http2(request(1, &get("/", &[("a", "b"); 10_000]))), BOMB),
        ("HTTP/2, 40 MB in 14 KB", http2(frames), DECODED),
    ]
}

/// Sends bytes and waits until the server has closed the connection, or has read all of them and answers a ping.
fn sent(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    const LAST: &[u8] = b"the last";
    let mut tcp = TcpStream::connect(address).unwrap();
    if bytes.starts_with(PREFACE) {
        let _ = tcp.write_all(&[bytes, &frame(PING, 0, 0, LAST)].concat());
    } else {
        let _ = tcp.write_all(bytes);
    }
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = tcp.read(&mut part) {
        answer.extend(&part[..length]);
        if answer.windows(LAST.len()).any(|part| part == LAST) {
            break;
        }
    }
    answer
}

/// What may be decoded of a bomb, as R29 has it, on a connection: the one that comes in a single frame shows it.
const DECODED: u64 = (EACH + 2 * HEAD) as u64;
/// And room for what others are read into before they are decoded, which grows by doubling as far as the largest head.
const BOMB: u64 = DECODED + (2 * HEAD) as u64;
/// 431 in HPACK's code.
const TOO_LARGE: &[u8] = &[0x69, 0x90, 0xff];

/// The same from another thread, while a runtime of this one runs.
fn sent_to(runtime: &Runtime, address: SocketAddr, bytes: Vec<u8>) -> Vec<u8> {
    runtime.block_on(async { tokio::task::spawn_blocking(move || sent(address, &bytes)).await }).unwrap()
}

#[test]
fn a_header_bomb_takes_little_and_what_it_takes_comes_back_r29() {
    let served = Served::new(Config::default());
    let bare = Bare::new();
    for (what, bomb, most) in bombs() {
        served.settle();
        let copy = bomb.clone();
        let mut answer = Vec::new();
        let cost = measure(|| {
            let answered = sent_to(&served.runtime, served.world.address, copy);
            answer.clear();
            answer.extend(answered);
            served.settle();
        });
        let refused = match what.starts_with("HTTP/2") {
            true => ended(&answer) == Some(Some(ENHANCE_YOUR_CALM)) || answer.windows(3).any(|part| part == TOO_LARGE),
            false => answer.starts_with(b"HTTP/1.1 431"),
        };
        assert!(refused, "{what}: {answer:?}");
        let control = measure(|| drop(sent_to(&bare.runtime, bare.address, bomb)));
        println!("{what}: {cost:?}");
        assert!(cost.bytes_max < most, "{what}: {cost:?}");
        assert!(control.bytes_max > 5 * BOMB, "{what}: {control:?}");
        // Of the connection and what it waited for some hundreds may be left to be cleared away.
        assert!(cost.bytes_current < 4 << 10, "{what}: it comes back: {cost:?}");
        served.serve(1);
    }
}

/// Plain hyper without limits on heads, the control of header bombs.
struct Bare {
    runtime: Runtime,
    address: SocketAddr,
}

impl Bare {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let served = async move {
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder.http1().max_buf_size(16 << 20).max_headers(20_000);
            builder.http2().max_header_list_size(1 << 30);
            loop {
                let io = TokioIo::new(listener.accept().await.unwrap().0);
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, Infallible>(http::Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
                });
                let _ = builder.serve_connection(io, service).await;
            }
        };
        let _serving = runtime.spawn(served);
        Self { runtime, address }
    }
}

/// Frames that cost their sender nothing.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    let post = frame(HEADERS, END_HEADERS, 1, &block(&headers));
    let begun = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    let opens = (0..1500).flat_map(|n| request(2 * n + 1, &get("/", &[]))).collect();
    let mut floods = vec![
        ("rapid reset", rapid_reset(1500)),
        ("CONTINUATION", [begun, frame(CONTINUATION, 0, 1, &block(&[("a", "b")])).repeat(1500)].concat()),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[]).repeat(1500)),
        ("PING", frame(PING, 0, 0, &[1; 8]).repeat(1500)),
        ("PRIORITY", frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 16]).repeat(1500)),
        ("empty DATA", [&post[..], &frame(DATA, 0, 1, &[]).repeat(1500)].concat()),
        ("DATA of one byte", [post, frame(DATA, 0, 1, b"x").repeat(5000)].concat()),
        ("WINDOW_UPDATE by one byte", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(1500)),
        ("requests before SETTINGS are acknowledged", opens),
    ];
    floods.extend(PROVOCATIONS.map(|how| (how, provoked_resets(how, 1200))));
    floods
}

/// How a flooded connection ended.
fn ended(answer: &[u8]) -> End {
    let mut rest = answer;
    let mut code = None;
    while let Some((head, more)) = rest.split_at_checked(9) {
        let Some((payload, more)) = more.split_at_checked(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize)
        else {
            break;
        };
        match head[3] {
            GOAWAY => code = Some(payload[7]),
            PING if payload == b"the last" => return None,
            _ => {}
        }
        rest = more;
    }
    Some(code)
}

/// Ten connections that flood, again and again, until they were shut out often enough and others served as often.
#[test]
fn ten_floods_of_frames_take_little_and_keep_nobody_from_being_served_r30() {
    for (what, flood) in floods() {
        let served = Silent::new(Config::default());
        let (shut_out, flooding) = flood_it(served.world.address, &flood);
        let cost = measure(|| {
            let ends = served.runtime.block_on(async {
                let mut other = served.world.plain(Http::Two).await;
                let mut times = 0;
                while times < TIMES || shut_out.load(Ordering::Relaxed) < TIMES {
                    assert_eq!(within(other.get("/served")).await.unwrap().0, 200, "{what}");
                    times += 1;
                }
                tokio::task::spawn_blocking(move || flooding.stop()).await.unwrap()
            });
            assert!(ends.iter().all(|end| *end == Some(Some(ENHANCE_YOUR_CALM))), "{what}: {ends:?}");
            served.runtime.block_on(async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            });
        });
        assert!(cost.bytes_max < FLOODED, "{what}: {cost:?}");
        assert!(cost.bytes_current < 4 << 10, "{what}: it comes back: {cost:?}");
        let most = served.most.load(Ordering::Relaxed);
        assert!(most <= TEN * 256 + 1, "{what}: {most} requests were in the hands of the application at once");
    }
}

/// The control: the one limit that keeps requests from taking memory for as long as they like, that on streams, is off.
#[test]
fn without_a_limit_on_streams_one_connection_takes_more_than_ten_floods_r30() {
    let mut config = Config::default();
    config.max_concurrent_streams = 1 << 20;
    let served = Silent::new(config);
    let opens = (0..3000).flat_map(|n| request(2 * n + 1, &get("/", &[]))).collect::<Vec<_>>();
    let cost = measure(|| {
        let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &opens].concat();
        assert_eq!(ended(&sent_to(&served.runtime, served.world.address, all)), None, "it goes on");
    });
    assert!(cost.bytes_max > FLOODED, "{cost:?}");
}

/// The control of DATA of one byte: what it may cost follows the connection's window, and is more than comes here.
#[test]
fn with_a_larger_window_as_many_frames_of_one_byte_are_no_flood_r30() {
    let mut config = Config::default();
    config.connection_window = 1 << 28;
    let served = Silent::new(config);
    let (_, flood) = floods().into_iter().find(|(what, _)| *what == "DATA of one byte").unwrap();
    let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &flood].concat();
    assert_eq!(ended(&sent_to(&served.runtime, served.world.address, all)), None, "it goes on");
}

/// Connections that flood at once.
const TEN: usize = 10;
/// How often others are to be served, and how many floods to be shut out.
const TIMES: usize = 8;
/// What ten floods may take together, bytes: a sixteenth of what R30 allows.
const FLOODED: u64 = 4 << 20;
const ENHANCE_YOUR_CALM: u8 = 11;

/// Ten threads that flood a server until they are stopped.
struct Flooding {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<End>>>,
}

/// The code of a GOAWAY, if there was one; none = the connection goes on.
type End = Option<Option<u8>>;

/// And how many floods have ended so far.
fn flood_it(address: SocketAddr, flood: &[u8]) -> (Arc<AtomicUsize>, Flooding) {
    let (stop, shut_out) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let all: Arc<[u8]> = [PREFACE, &frame(SETTINGS, 0, 0, &[]), flood].concat().into();
    let flooding = || {
        let (stop, shut_out, all) = (stop.clone(), shut_out.clone(), all.clone());
        thread::spawn(move || {
            let mut ends = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                ends.push(ended(&sent(address, &all)));
                shut_out.fetch_add(1, Ordering::Relaxed);
            }
            ends
        })
    };
    let threads = (0..TEN).map(|_| flooding()).collect();
    (shut_out.clone(), Flooding { stop: stop.clone(), threads })
}

impl Flooding {
    /// How they ended, all of them.
    fn stop(self) -> Vec<End> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// A server on this thread whose application answers at one path only, and how many requests it had at once.
struct Silent {
    runtime: Runtime,
    world: World,
    most: Arc<AtomicUsize>,
}

impl Silent {
    fn new(config: Config) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (world, most) = runtime.block_on(counted(config));
        Self { runtime, world, most }
    }
}

/// What a request says, of its path, host, headers and query, is in no label, and nothing of it is kept.
#[test]
fn a_hundred_thousand_names_in_requests_make_one_series_and_hold_nothing_r38() {
    let served = Served::new(Config::default());
    let hello = tower::service_fn(|_: http::Request<String>| async { text("hello") });
    let service = served.world.server.inbound_layer().layer(hello);
    let ask = |n: usize| {
        let request = http::Request::get(format!("http://{n}.example/{n}?user={n}"))
            .header("host", format!("{n}.example"))
            .header("x-request-id", n.to_string())
            .header(format!("x-{n}"), "1")
            .body(String::new());
        let answer = served.runtime.block_on(service.clone().oneshot(request.unwrap())).unwrap();
        assert_eq!(answer.status(), 200);
        served.runtime.block_on(answer.into_body().collect()).unwrap();
    };
    let series = || {
        let (mut all, mut requests) = (0, 0);
        served.world.metrics.visit(|_, _, counters| (all, requests) = (all + 1, requests + counters.requests()));
        (all, requests)
    };
    ask(0);
    let (before, counted) = series();
    let held = measure(|| (1..=100_000).for_each(ask));
    // The control: that they were counted at all.
    assert_eq!(series(), (before, counted + 100_000));
    assert!(held.bytes_current < 4 << 10, "{held:?}");
}
