//! What the server makes of frames and header blocks that no client library writes: the cases of RFC 9113 and
//! RFC 7541 that a server can be asked, in the manner of h2spec. Each result is what the RFC demands, or an error of the
//! connection in the place of one of the stream, as it allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::policy::InboundTls;
use mesh_server::Config;

use crate::kit::{World, policy, text, within};
use crate::raw::Verdict::{self, Alive, Connection, Refused, Served, Stream};
use crate::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY, block, frame, get, judged, request, verdict, verdict_or_alive,
};

type Case = (&'static str, Vec<u8>, Verdict);

/// Runs every case and names all that differ.
async fn hold(world: &World, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (name, bytes, want) in cases {
        let got = if want == Alive { verdict_or_alive(world, &bytes).await } else { verdict(world, &bytes).await };
        if got != want {
            wrong.push(format!("{name}: {got:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

/// A head whose stream stays open.
fn open(stream: u32) -> Vec<u8> {
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    frame(HEADERS, END_HEADERS, stream, &block(&headers))
}

#[tokio::test]
async fn frames_are_judged_as_rfc_9113_says() {
    let world = World::hello(InboundTls::Permissive).await;
    let plain = block(&get("/", &[]));
    hold(
        &world,
        vec![
            ("control: a plain request", request(1, &get("/", &[])), Served),
            ("3.4 settings twice", frame(SETTINGS, 0, 0, &[]), Alive),
            ("4.1 an unknown type is ignored", frame(0x77, 0, 0, b"what"), Alive),
            ("4.1 unknown flags are ignored", frame(PING, 0xf0, 0, b"12345678"), Alive),
            ("4.1 the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"), Alive),
            ("4.2 a frame above the size allowed", all(&[open(1), frame(DATA, 0, 1, &[0; 16_385])]), Connection),
            ("4.3 a block that is no HPACK", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 9]), Connection),
            (
                "4.3 a PRIORITY inside a block",
                all(&[frame(HEADERS, END_STREAM, 1, &plain), frame(PRIORITY, 0, 1, &[0; 5])]),
                Connection,
            ),
            (
                "4.3 another stream inside a block",
                all(&[frame(HEADERS, END_STREAM, 1, &plain), frame(CONTINUATION, END_HEADERS, 3, &[])]),
                Connection,
            ),
            ("5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), Connection),
            ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), Connection),
            ("5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), Connection),
            ("5.1 CONTINUATION without a head", frame(CONTINUATION, END_HEADERS, 1, &plain), Connection),
            ("5.1.1 an even stream", request(2, &get("/", &[])), Connection),
            ("5.3 a stream that depends on itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16]), Stream),
        ],
    )
    .await;
    // 3.4: no preface, no HTTP/2.
    let broken = [&PREFACE[..18], b"XX\r\n\r\n"].concat();
    assert_eq!(judged(&world, broken, false).await, Connection);
}

#[tokio::test]
async fn every_type_of_frame_has_its_stream_its_size_and_its_range() {
    let world = World::hello(InboundTls::Permissive).await;
    let plain = block(&get("/", &[]));
    let padded = [&[200][..], &plain].concat();
    let on_itself = [&[0, 0, 0, 1, 16][..], &plain].concat();
    hold(
        &world,
        vec![
            ("control: a plain request", request(1, &get("/", &[])), Served),
            ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), Connection),
            ("6.1 more padding than payload", all(&[open(1), frame(DATA, PADDED, 1, &[9, 0])]), Connection),
            ("6.2 HEADERS on stream 0", request(0, &get("/", &[])), Connection),
            ("6.2 more padding than block", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &padded), Connection),
            ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), Connection),
            ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), Connection),
            ("6.4 RST_STREAM of 3 bytes", all(&[open(1), frame(RST_STREAM, 0, 1, &[0; 3])]), Connection),
            ("6.5 an ACK with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), Connection),
            ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection),
            ("6.5 SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), Connection),
            ("6.5.2 ENABLE_PUSH of 2", setting(2, 2), Connection),
            ("6.5.2 a window above 2^31-1", setting(4, 1 << 31), Connection),
            ("6.5.2 a frame size below 2^14", setting(5, 16_383), Connection),
            ("6.5.2 a frame size above 2^24-1", setting(5, 1 << 24), Connection),
            ("6.5.2 an unknown setting is ignored", setting(0xff, 1), Alive),
            ("6.6 a client that promises", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), Connection),
            ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection),
            ("6.7 PING of 6 bytes", frame(PING, 0, 0, &[0; 6]), Connection),
            ("6.7 an unasked ACK", frame(PING, ACK, 0, &[7; 8]), Alive),
            ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection),
            ("6.9 WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection),
            ("6.9 WINDOW_UPDATE of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Connection),
            ("6.9.1 a window above 2^31-1", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Connection),
            (
                "6.10 CONTINUATION on stream 0",
                all(&[frame(HEADERS, END_STREAM, 1, &plain), frame(CONTINUATION, END_HEADERS, 0, &[])]),
                Connection,
            ),
            (
                "6.10 a block in two frames",
                all(&[frame(HEADERS, END_STREAM, 1, &plain[..7]), frame(CONTINUATION, END_HEADERS, 1, &plain[7..])]),
                Served,
            ),
            (
                "5.3.1 HEADERS that depend on themselves",
                frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, &on_itself),
                Stream,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn header_blocks_are_judged_as_rfc_7541_and_rfc_9113_say() {
    let world = World::hello(InboundTls::Permissive).await;
    let raw = |bytes: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&block(&get("/", &[]))[..], bytes].concat());
    let with = |more: &[(&'static str, &'static str)]| request(1, &get("/", more));
    let without = |name: &str| {
        let headers: Vec<_> = get("/", &[]).into_iter().filter(|(known, _)| *known != name).collect();
        request(1, &headers)
    };
    let late = {
        let mut headers = get("/", &[("x-first", "1")]);
        headers.rotate_right(1);
        request(1, &headers)
    };
    hold(
        &world,
        vec![
            ("control: a further header", with(&[("x-role", "user")]), Served),
            ("2.3.3 an index beyond the table", raw(&[0xff, 0xff, 0x7f]), Connection),
            ("6.1 index 0", raw(&[0x80]), Connection),
            ("5.2 a text longer than the block", raw(&[0, 5, b'a']), Connection),
            ("5.2 a code that is padded by zeroes", raw(&[0, 0x81, 0, 1, b'x']), Connection),
            ("6.3 a table size above what is allowed", raw(&[0x3f, 0xe1, 0xff, 0x7f]), Connection),
            (
                "8.1 a second head without an end",
                all(&[open(1), frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")]))]),
                Stream,
            ),
            ("8.2 an upper-case name", with(&[("X-Role", "admin")]), Connection),
            ("8.2.2 Connection", with(&[("connection", "keep-alive")]), Stream),
            ("8.2.2 Transfer-Encoding", with(&[("transfer-encoding", "chunked")]), Stream),
            ("8.2.2 TE other than trailers", with(&[("te", "gzip")]), Stream),
            ("8.2.2 TE: trailers", with(&[("te", "trailers")]), Served),
            ("8.3 an unknown pseudo-header", with(&[(":what", "x")]), Connection),
            ("8.3 a pseudo-header of answers", with(&[(":status", "200")]), Stream),
            ("8.3 a pseudo-header after a header", late, Stream),
            ("8.3.1 no :method", without(":method"), Stream),
            ("8.3.1 no :scheme", without(":scheme"), Stream),
            ("8.3.1 no :path", without(":path"), Stream),
            ("8.3.1 an empty :path", request(1, &get("", &[])), Stream),
            ("8.3.1 two :method", with(&[(":method", "GET")]), Stream),
            ("8.3.1 two :path", with(&[(":path", "/admin")]), Stream),
            (
                "8.1.1 more body than announced",
                all(&[
                    frame(HEADERS, END_HEADERS, 1, &block(&get("/", &[("content-length", "1")]))),
                    frame(DATA, END_STREAM, 1, b"more"),
                ]),
                Stream,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn s12_a_path_without_a_leading_slash_reaches_nobody() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let service = tower::service_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { text("hello") }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    // A refusal of gRPC is a 200, too: what counts is who was asked.
    let grpc: &[(&str, &str)] = &[("content-type", "application/grpc")];
    for more in [grpc, &[]] {
        assert_eq!(verdict(&world, &request(1, &get("/pkg.Svc/Method", more))).await, Served);
        assert_eq!(served.swap(0, Ordering::Relaxed), 1);
        for path in ["pkg.Svc/Method", "pkg.Svc"] {
            let got = verdict(&world, &request(1, &get(path, more))).await;
            assert_ne!(got, Connection, "{path}");
            assert_eq!(served.load(Ordering::Relaxed), 0, "{path}: {got:?}");
        }
    }
}

#[tokio::test]
async fn s14_no_path_is_so_long_that_its_end_is_lost() {
    let mut config = Config::default();
    config.max_header_bytes = 1 << 24;
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        assert_eq!(request.uri().query(), Some("end"), "the end of the path is lost");
        text("hello")
    });
    let world = World::start(policy(InboundTls::Permissive), config, service).await;
    for (length, fits) in [(50_000, true), (65_534, false), (65_536, false), (70_000, false)] {
        let path = format!("/{}?end", "a".repeat(length));
        let got = verdict(&world, &request(1, &get(&path, &[]))).await;
        assert_eq!(got == Served, fits, "HTTP/2, {length}: {got:?}");
        let got = http1(&world, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(got == "200", fits, "HTTP/1.1, {length}: {got:?}");
    }
}

#[tokio::test]
async fn s20_two_authorities_are_refused_and_the_first_of_uri_and_host_counts() {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("reviews"));
        assert!(!request.headers().contains_key("host"), "the application must not see the other authority");
        text("hello")
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let with = |more: &[(&'static str, &'static str)]| request(1, &get("/", more));
    hold(
        &world,
        vec![
            ("one", with(&[]), Served),
            ("a Host that says something else", with(&[("host", "secret.test")]), Served),
            ("two :authority", with(&[(":authority", "secret.test")]), Stream),
            ("two Host", with(&[("host", "reviews"), ("host", "secret.test")]), Refused),
        ],
    )
    .await;
    let world = World::hello(InboundTls::Permissive).await;
    let one = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(http1(&world, one).await, "200");
    assert_eq!(http1(&world, &one.replace("host: a", "host: a\r\nhost: b")).await, "400");
}

#[tokio::test]
async fn s73_no_message_has_two_lengths() {
    let world = World::hello(InboundTls::Permissive).await;
    let post = |framing: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}\r\n\r\n{body}")
    };
    assert_eq!(http1(&world, &post("content-length: 1", "x")).await, "200");
    assert_eq!(http1(&world, &post("transfer-encoding: chunked", "1\r\nx\r\n0\r\n\r\n")).await, "200");
    for framing in [
        "content-length: 1\r\ncontent-length: 2",
        "content-length: 1, 2",
        "content-length: +1",
        "content-length: 0x1",
        "content-length: -1",
        "content-length : 1",
        "content-length:\r\n 1",
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \x0bchunked",
    ] {
        assert_eq!(http1(&world, &post(framing, "x")).await, "400", "{framing:?}");
    }
}

/// The status of what an HTTP/1.1 server answers to these bytes; empty if it says nothing.
async fn http1(world: &World, bytes: &str) -> String {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let _ = tcp.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(tcp.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned()
}
