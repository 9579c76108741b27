//! What the server makes of frames and header blocks: the generic, HTTP/2 and HPACK cases of h2spec, by the sections of
//! RFC 9113 and RFC 7541. Each row has the exact result. Where the RFC lets a server choose, its choice is noted.

use std::future::pending;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::policy::InboundTls;
use mesh_server::{Body, Config};

use self::Outcome::{Alive, Answered, Closed, Goaway, Reset};
use crate::kit::{World, policy, text, within};
use crate::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY, block, frame, get, request,
};

/// What comes of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// An error of the connection.
    Goaway(&'static str),
    /// An error of the stream.
    Reset(&'static str),
    /// The connection is closed without a word.
    Closed,
    /// An answer with status 200.
    Answered,
    /// Nothing: the connection goes on, as two pings show.
    Alive,
    /// An answer with another status.
    Refused,
}

/// Error codes by number (RFC 9113, section 7).
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

const PROTOCOL: Outcome = Goaway("PROTOCOL_ERROR");
const FLOW: Outcome = Goaway("FLOW_CONTROL_ERROR");
const STREAM: Outcome = Reset("PROTOCOL_ERROR");

// Where the RFC names a code, and h2 ends the connection, as it demands, with the general one.
/// FRAME_SIZE_ERROR.
const SIZE: Outcome = PROTOCOL;
/// COMPRESSION_ERROR.
const COMPRESSION: Outcome = PROTOCOL;
/// STREAM_CLOSED; of the stream alone, or of the connection.
const ENDED: Outcome = PROTOCOL;
/// FLOW_CONTROL_ERROR.
const RANGE: Outcome = PROTOCOL;

type Case = (&'static str, Vec<u8>, Outcome);

/// Runs every case and names all that differ.
async fn hold(world: &World, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (name, bytes, want) in cases {
        let got = within(outcome(world, &hello(&bytes), want)).await;
        if got != want {
            wrong.push(format!("{name}: {got:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A server that answers, but for `/hold`, which is never answered.
async fn server(config: Config) -> World {
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        if request.uri().path() == "/hold" {
            pending::<()>().await;
        }
        text("hello")
    });
    World::start(policy(InboundTls::Permissive), config, service).await
}

/// Preface, settings, and what comes then.
fn hello(bytes: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), bytes].concat()
}

/// One connection: a reader of frames, and its other end.
struct Peer {
    tcp: TcpStream,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Peer {
    async fn of(world: &World, bytes: &[u8]) -> Self {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        // The server may have closed in the middle of it; reading says what came of it.
        let _ = tcp.write_all(bytes).await;
        Self { tcp }
    }

    async fn send(&mut self, bytes: &[u8]) {
        let _ = self.tcp.write_all(bytes).await;
    }

    /// The next frame; none at the end.
    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.tcp.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.tcp.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    async fn read_until(&mut self, fits: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = within(self.read()).await.expect("the connection goes on");
            if fits(&frame) {
                return frame;
            }
        }
    }

    /// What the last of the streams that are answered comes to, or the connection.
    async fn outcome(&mut self, want: Outcome) -> Outcome {
        let code = |payload: &[u8], at: usize| {
            let bytes = payload.get(at..at + 4).expect("a code");
            CODES[u32::from_be_bytes(bytes.try_into().unwrap()) as usize]
        };
        // An answer may come after that to a ping. An error does not come after two: the second is sent when what
        // was due at the first is written.
        let mut pings = if matches!(want, Answered | Outcome::Refused) { 0 } else { 2 };
        if pings > 0 {
            self.send(&frame(PING, 0, 0, b"pingping")).await;
        }
        loop {
            let Some(frame) = self.read().await else { return Closed };
            match frame.kind {
                GOAWAY => return Goaway(code(&frame.payload, 4)),
                RST_STREAM => return Reset(code(&frame.payload, 0)),
                HEADERS if frame.stream == LAST => {
                    // 200 has a place in HPACK's table.
                    return if frame.payload[0] == 0x88 { Answered } else { Outcome::Refused };
                }
                PING if frame.flags == ACK && frame.payload == b"pingping" => {
                    pings -= 1;
                    if pings == 0 {
                        return Alive;
                    }
                    self.send(&self::frame(PING, 0, 0, b"pingping")).await;
                }
                _ => {}
            }
        }
    }
}

/// The stream whose answer counts.
const LAST: u32 = 5;

/// Sends exactly these bytes.
async fn outcome(world: &World, bytes: &[u8], want: Outcome) -> Outcome {
    Peer::of(world, bytes).await.outcome(want).await
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
    frame(HEADERS, END_HEADERS, stream, &post(&[]))
}

fn post(more: &[(&'static str, &'static str)]) -> Vec<u8> {
    let mut headers = get("/", more);
    headers[0].1 = "POST";
    block(&headers)
}

/// A whole request whose stream is half closed for as long as the connection is there.
fn held(stream: u32) -> Vec<u8> {
    request(stream, &get("/hold", &[]))
}

fn plain() -> Vec<u8> {
    block(&get("/", &[]))
}

/// A whole request with this block.
fn with_block(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, LAST, block)
}

#[tokio::test]
async fn what_is_right_is_served() {
    let world = server(Config::default()).await;
    let half = plain().len() / 2;
    let depends = |priority: [u8; 5]| {
        let flags = END_HEADERS | END_STREAM | WITH_PRIORITY;
        frame(HEADERS, flags, LAST, &[&priority[..], &plain()].concat())
    };
    let padded = [&[3][..], &plain(), &[0; 3]].concat();
    let then = |frames: &[Vec<u8>]| all(&[all(frames), request(LAST, &get("/", &[]))]);
    hold(
        &world,
        vec![
            ("1 preface, settings and a request", request(LAST, &get("/", &[])), Answered),
            ("2 PRIORITY on an idle stream", then(&[frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 15])]), Answered),
            ("2 WINDOW_UPDATE on a half-closed one", then(&[held(1), window(1, 100)]), Answered),
            ("2 PRIORITY on a half-closed one", then(&[held(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255])]), Answered),
            ("2 RST_STREAM on a half-closed one", then(&[held(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])]), Answered),
            (
                "2 PRIORITY on a closed one",
                then(&[request(1, &get("/", &[])), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255])]),
                Answered,
            ),
            ("3.1 DATA", all(&[open(LAST), frame(DATA, END_STREAM, LAST, b"test")]), Answered),
            (
                "3.1 several DATA",
                all(&[open(LAST), frame(DATA, 0, LAST, b"te"), frame(DATA, END_STREAM, LAST, b"st")]),
                Answered,
            ),
            (
                "3.1 padded DATA",
                all(&[open(LAST), frame(DATA, END_STREAM | PADDED, LAST, b"\x04test\0\0\0\0")]),
                Answered,
            ),
            ("3.2 padded HEADERS", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, LAST, &padded), Answered),
            ("3.2 HEADERS with a priority", depends([0, 0, 0, 0, 255]), Answered),
            ("3.3 HEADERS that depend on another", depends([0, 0, 0, 1, 255]), Answered),
            ("3.3 an exclusive dependency", depends([0x80, 0, 0, 1, 0]), Answered),
            ("3.5 SETTINGS", then(&[setting(3, 100)]), Answered),
            ("3.7 PING", then(&[frame(PING, 0, 0, b"whatever")]), Answered),
            (
                "3.8 GOAWAY of a client, which goes on with what it asks",
                then(&[frame(GOAWAY, 0, 0, &[0; 8])]),
                Answered,
            ),
            ("7 GOAWAY with an unknown code", then(&[frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff])]), Answered),
            ("3.9 WINDOW_UPDATE of the connection", then(&[window(0, 1)]), Answered),
            (
                "3.10 CONTINUATION",
                all(&[
                    frame(HEADERS, END_STREAM, LAST, &plain()[..half]),
                    frame(CONTINUATION, END_HEADERS, LAST, &plain()[half..]),
                ]),
                Answered,
            ),
            (
                "3.10 several CONTINUATION",
                all(&[
                    frame(HEADERS, END_STREAM, LAST, &plain()[..3]),
                    frame(CONTINUATION, 0, LAST, &plain()[3..half]),
                    frame(CONTINUATION, 0, LAST, &[]),
                    frame(CONTINUATION, END_HEADERS, LAST, &plain()[half..]),
                ]),
                Answered,
            ),
            ("4 HEAD", with_block(&block(&[&[(":method", "HEAD")][..], &get("/", &[])[1..]].concat())), Answered),
            (
                "4 POST with trailers",
                all(&[
                    open(LAST),
                    frame(DATA, 0, LAST, b"test"),
                    frame(HEADERS, END_HEADERS | END_STREAM, LAST, &block(&[("x-test", "ok")])),
                ]),
                Answered,
            ),
        ],
    )
    .await;
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

#[tokio::test]
async fn frames_are_judged_as_rfc_9113_says() {
    let world = server(Config::default()).await;
    let begun = || frame(HEADERS, END_STREAM, 1, &plain());
    let closed_by_us = |then: Vec<u8>| all(&[held(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), then]);
    let large = block(&get("/", &[("x-large", &"a".repeat(16_500))]));
    hold(
        &world,
        vec![
            ("3.4 settings twice", frame(SETTINGS, 0, 0, &[]), Alive),
            ("4.1 an unknown type is ignored", frame(0x77, 0, 0, b"what"), Alive),
            ("4.1 unknown flags are ignored", frame(PING, 0xf0, 0, b"12345678"), Alive),
            ("4.1 the reserved bit is ignored", frame(PING, 0, 1 << 31, b"12345678"), Alive),
            ("4.2 DATA of the size allowed", all(&[open(LAST), frame(DATA, END_STREAM, LAST, &[0; 16_384])]), Answered),
            (
                "4.2 DATA above the size allowed",
                all(&[open(1), frame(DATA, 0, 1, &[0; 16_385])]),
                Goaway("FRAME_SIZE_ERROR"),
            ),
            (
                "4.2 HEADERS above the size allowed",
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &large),
                Goaway("FRAME_SIZE_ERROR"),
            ),
            ("4.3 a block that is no HPACK", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 9]), COMPRESSION),
            ("4.3 a PRIORITY inside a block", all(&[begun(), frame(PRIORITY, 0, 1, &[0; 5])]), PROTOCOL),
            ("4.3 another head inside a block", all(&[begun(), request(3, &get("/", &[]))]), PROTOCOL),
            ("5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), PROTOCOL),
            ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), PROTOCOL),
            ("5.1 WINDOW_UPDATE on an idle stream", window(1, 1), PROTOCOL),
            ("5.1 CONTINUATION without a head", frame(CONTINUATION, END_HEADERS, 1, &plain()), PROTOCOL),
            ("5.1 DATA after the end of a request", all(&[held(1), frame(DATA, 0, 1, b"x")]), ENDED),
            ("5.1 HEADERS after the end of a request", all(&[held(1), request(1, &get("/", &[]))]), ENDED),
            (
                "5.1 CONTINUATION after the end",
                all(&[held(1), frame(CONTINUATION, END_HEADERS, 1, &plain())]),
                PROTOCOL,
            ),
            ("5.1 DATA after RST_STREAM", closed_by_us(frame(DATA, 0, 1, b"x")), Reset("STREAM_CLOSED")),
            ("5.1 HEADERS after RST_STREAM", closed_by_us(request(1, &get("/", &[]))), ENDED),
            (
                "5.1 CONTINUATION after RST_STREAM",
                closed_by_us(frame(CONTINUATION, END_HEADERS, 1, &plain())),
                PROTOCOL,
            ),
            ("5.1 WINDOW_UPDATE after RST_STREAM", closed_by_us(window(1, 1)), Alive),
            ("5.1.1 an even stream", request(2, &get("/", &[])), PROTOCOL),
            ("5.1.1 a stream below the last one", all(&[held(7), request(3, &get("/", &[]))]), PROTOCOL),
            ("5.3.1 a stream that depends on itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16]), STREAM),
            (
                "5.3.1 HEADERS that depend on themselves",
                frame(
                    HEADERS,
                    END_HEADERS | END_STREAM | WITH_PRIORITY,
                    1,
                    &[&[0, 0, 0, 1, 16][..], &plain()].concat(),
                ),
                STREAM,
            ),
            ("5.5 an unknown frame inside a block", all(&[begun(), frame(0x77, 0, 1, b"what")]), PROTOCOL),
        ],
    )
    .await;
    // 3.4: no preface, no HTTP/2.
    let broken = [&PREFACE[..18], b"XX\r\n\r\n"].concat();
    assert_eq!(within(outcome(&world, &broken, Closed)).await, Closed);
}

#[tokio::test]
async fn every_type_of_frame_has_its_stream_its_size_and_its_range() {
    let world = server(Config::default()).await;
    let begun = || frame(HEADERS, END_STREAM, 1, &plain());
    let padded = [&[200][..], &plain()].concat();
    hold(
        &world,
        vec![
            ("6.1 DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL),
            ("6.1 more padding than payload", all(&[open(1), frame(DATA, PADDED, 1, &[9, 0])]), PROTOCOL),
            ("6.2 HEADERS on stream 0", request(0, &get("/", &[])), PROTOCOL),
            ("6.2 more padding than block", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &padded), PROTOCOL),
            ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), PROTOCOL),
            ("6.3 PRIORITY of 4 bytes", all(&[open(1), frame(PRIORITY, 0, 1, &[0; 4])]), SIZE),
            ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), PROTOCOL),
            ("6.4 RST_STREAM of 3 bytes", all(&[open(1), frame(RST_STREAM, 0, 1, &[0; 3])]), SIZE),
            ("6.5 an ACK with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), SIZE),
            ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL),
            ("6.5 SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), SIZE),
            ("6.5.2 ENABLE_PUSH of 2", setting(2, 2), PROTOCOL),
            ("6.5.2 a window above 2^31-1", setting(4, 1 << 31), RANGE),
            ("6.5.2 a frame size below 2^14", setting(5, 16_383), PROTOCOL),
            ("6.5.2 a frame size above 2^24-1", setting(5, 1 << 24), PROTOCOL),
            ("6.5.2 an unknown setting is ignored", setting(0xff, 1), Alive),
            ("6.6 a client that promises", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), PROTOCOL),
            ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL),
            ("6.7 PING of 6 bytes", frame(PING, 0, 0, &[0; 6]), SIZE),
            ("6.7 an unasked ACK", frame(PING, ACK, 0, &[7; 8]), Alive),
            ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL),
            ("6.9 WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), SIZE),
            ("6.9 WINDOW_UPDATE of nothing", window(0, 0), PROTOCOL),
            ("6.9 WINDOW_UPDATE of nothing on a stream", all(&[held(1), window(1, 0)]), PROTOCOL),
            ("6.9.1 a window of the connection above 2^31-1", window(0, 0x7fff_ffff), FLOW),
            (
                "6.9.1 a window of a stream above 2^31-1",
                all(&[held(1), window(1, 0x7fff_ffff)]),
                Reset("FLOW_CONTROL_ERROR"),
            ),
            (
                "6.9.2 windows above 2^31-1 by a setting",
                all(&[held(1), window(1, 0x7fff_0000), setting(4, 0x7fff_ffff)]),
                FLOW,
            ),
            (
                "6.10 another frame after CONTINUATION",
                all(&[begun(), frame(CONTINUATION, 0, 1, &[]), frame(DATA, 0, 1, b"x")]),
                PROTOCOL,
            ),
            ("6.10 CONTINUATION on stream 0", all(&[begun(), frame(CONTINUATION, END_HEADERS, 0, &[])]), PROTOCOL),
            (
                "6.10 CONTINUATION of another stream",
                all(&[begun(), frame(CONTINUATION, END_HEADERS, 3, &[])]),
                PROTOCOL,
            ),
            (
                "6.10 CONTINUATION after a whole head",
                all(&[held(1), frame(CONTINUATION, END_HEADERS, 1, &[])]),
                PROTOCOL,
            ),
            (
                "6.10 CONTINUATION after the last one",
                all(&[begun(), frame(CONTINUATION, END_HEADERS, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &[])]),
                PROTOCOL,
            ),
            (
                "6.10 CONTINUATION after DATA",
                all(&[open(1), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])]),
                PROTOCOL,
            ),
            ("7 RST_STREAM with an unknown code", all(&[held(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 0xff])]), Alive),
        ],
    )
    .await;
}

#[tokio::test]
async fn messages_are_judged_as_rfc_9113_says() {
    let world = server(Config::default()).await;
    let with = |more: &[(&'static str, &'static str)]| request(LAST, &get("/", more));
    let without = |name: &str| {
        let headers: Vec<_> = get("/", &[]).into_iter().filter(|(known, _)| *known != name).collect();
        request(LAST, &headers)
    };
    let late = {
        let mut headers = get("/", &[("x-first", "1")]);
        headers.rotate_right(1);
        request(LAST, &headers)
    };
    let announced =
        |frames: &[Vec<u8>]| all(&[frame(HEADERS, END_HEADERS, LAST, &post(&[("content-length", "1")])), all(frames)]);
    let trailer = |name| frame(HEADERS, END_HEADERS | END_STREAM, LAST, &block(&[(name, "x")]));
    hold(
        &world,
        vec![
            ("control: a further header", with(&[("x-role", "user")]), Answered),
            (
                "8.1 a second head without an end",
                all(&[open(LAST), frame(HEADERS, END_HEADERS, LAST, &block(&[("x", "y")]))]),
                STREAM,
            ),
            // h2 takes the fields and leaves the pseudo-header out: nobody behind it sees one.
            ("8.1 a pseudo-header in trailers", all(&[open(LAST), trailer(":method")]), Answered),
            ("8.2 an upper-case name", with(&[("X-Role", "admin")]), PROTOCOL),
            ("8.2.2 Connection", with(&[("connection", "keep-alive")]), STREAM),
            ("8.2.2 Keep-Alive", with(&[("keep-alive", "timeout=5")]), STREAM),
            ("8.2.2 Proxy-Connection", with(&[("proxy-connection", "keep-alive")]), STREAM),
            ("8.2.2 Upgrade", with(&[("upgrade", "websocket")]), STREAM),
            ("8.2.2 Transfer-Encoding", with(&[("transfer-encoding", "chunked")]), STREAM),
            ("8.2.2 TE other than trailers", with(&[("te", "gzip")]), STREAM),
            ("8.2.2 TE: trailers", with(&[("te", "trailers")]), Answered),
            ("8.3 an unknown pseudo-header", with(&[(":what", "x")]), PROTOCOL),
            ("8.3 a pseudo-header of answers", with(&[(":status", "200")]), STREAM),
            ("8.3 a pseudo-header after a header", late, STREAM),
            ("8.3.1 no :method", without(":method"), STREAM),
            ("8.3.1 no :scheme", without(":scheme"), STREAM),
            ("8.3.1 no :path", without(":path"), STREAM),
            ("8.3.1 an empty :path", request(LAST, &get("", &[])), STREAM),
            ("8.3.1 two :method", with(&[(":method", "GET")]), STREAM),
            ("8.3.1 two :scheme", with(&[(":scheme", "http")]), STREAM),
            ("8.3.1 two :path", with(&[(":path", "/admin")]), STREAM),
            ("8.1.1 the body announced", announced(&[frame(DATA, END_STREAM, LAST, b"m")]), Answered),
            (
                "8.1.1 no body where one is announced",
                frame(HEADERS, END_HEADERS | END_STREAM, LAST, &post(&[("content-length", "1")])),
                STREAM,
            ),
            ("8.1.1 more body than announced", announced(&[frame(DATA, END_STREAM, LAST, b"more")]), STREAM),
            (
                "8.1.1 more body than announced, in parts",
                announced(&[frame(DATA, 0, LAST, b"m"), frame(DATA, END_STREAM, LAST, b"ore")]),
                STREAM,
            ),
            (
                "8.4 a client that promises",
                all(&[open(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])]),
                PROTOCOL,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn header_blocks_are_judged_as_rfc_7541_says() {
    let world = server(Config::default()).await;
    let more = |bytes: &[u8]| with_block(&[&plain()[..], bytes].concat());
    // The examples of RFC 7541, C.4: with Huffman code, the second by what the first left in the table.
    let first: &[u8] = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    let second: &[u8] = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
    // `x-test` and a value, both with Huffman code.
    let coded = |value: &[u8]| more(&[b"\x00\x85\xf2\xb2\x4a\x84\xff", value].concat());
    let bare = |block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, block);
    hold(
        &world,
        vec![
            ("5 an indexed field and one added to the table", with_block(first), Answered),
            ("5 a field of the dynamic table", all(&[bare(first), with_block(second)]), Answered),
            ("5 a literal that is never indexed", more(b"\x10\x06x-test\x02ok"), Answered),
            ("5 a new name added to the table", more(b"\x40\x06x-test\x02ok"), Answered),
            ("5 a known name added to the table", more(b"\x7a\x01x"), Answered),
            ("5 the same with Huffman code", more(b"\x7a\x83\x49\x50\x9f"), Answered),
            ("5 a new name with Huffman code", more(b"\x40\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x9f"), Answered),
            ("5 a known name that is not added", more(b"\x0f\x2b\x01x"), Answered),
            ("5 the same with Huffman code, not added", more(b"\x0f\x2b\x83\x49\x50\x9f"), Answered),
            ("5 a known name that is never added", more(b"\x1f\x2b\x01x"), Answered),
            (
                "5 a new name with Huffman code, never added",
                more(b"\x10\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x9f"),
                Answered,
            ),
            (
                "5 a smaller table, and the former one again",
                with_block(&[b"\x20\x3f\xe1\x1f", first].concat()),
                Answered,
            ),
            ("5 a smaller table", with_block(&[b"\x20", first].concat()), Answered),
            ("2.3.3 an index beyond the table", more(&[0xff, 0xff, 0x7f]), COMPRESSION),
            ("2.3.3 a name beyond the table", more(&[0x7f, 0xff, 0x7f, 2, b'o', b'k']), COMPRESSION),
            (
                "2.3.3 a field that a smaller table lost",
                all(&[bare(first), with_block(&[b"\x20", second].concat())]),
                COMPRESSION,
            ),
            ("4.2 a table size at the end of a block", more(&[0x20]), COMPRESSION),
            ("5.1 an integer without an end", more(&[0xff; 12]), COMPRESSION),
            ("5.2 a text longer than the block", more(&[0, 5, b'a']), COMPRESSION),
            ("5.2 control: a text with Huffman code", coded(b"\x83\x49\x50\x9f"), Answered),
            ("5.2 a code that is padded by more than 7 bits", coded(b"\x84\x49\x50\x9f\xff"), COMPRESSION),
            ("5.2 a code that is padded by zeroes", coded(b"\x83\x49\x50\x90"), COMPRESSION),
            ("5.2 a code with the end of a text in it", coded(b"\x87\xff\xff\xff\xff\x49\x50\x9f"), COMPRESSION),
            ("6.1 index 0", more(&[0x80]), COMPRESSION),
            ("6.3 a table size above what is allowed", with_block(&[b"\x3f\xe1\xff\x7f", first].concat()), COMPRESSION),
        ],
    )
    .await;
}

#[tokio::test]
async fn streams_beyond_the_number_allowed_are_refused() {
    let mut config = Config::default();
    config.max_concurrent_streams = 2;
    let world = server(config).await;
    let streams = |number: u32| all(&(0..number).map(|i| held(2 * i + 1)).collect::<Vec<_>>());
    hold(
        &world,
        vec![
            ("control: as many as allowed", streams(2), Alive),
            ("5.1.2 one more", streams(3), Reset("REFUSED_STREAM")),
        ],
    )
    .await;
}

#[tokio::test]
async fn settings_are_acknowledged_and_a_ping_comes_back_as_it_was() {
    let world = server(Config::default()).await;
    let mut peer = Peer::of(&world, &hello(&all(&[setting(3, 7), frame(PING, 0, 0, b"a b c  d")]))).await;
    let acknowledged = |frame: &Frame| frame.kind == SETTINGS && frame.flags == ACK;
    for _ in 0..2 {
        let ack = peer.read_until(acknowledged).await;
        assert_eq!((ack.stream, ack.payload.len()), (0, 0), "6.5.3");
    }
    let mut peer = Peer::of(&world, &hello(&frame(PING, 0, 0, b"a b c  d"))).await;
    let pong = peer.read_until(|frame| frame.kind == PING).await;
    assert_eq!((pong.flags, pong.stream, &pong.payload[..]), (ACK, 0, &b"a b c  d"[..]), "6.7");
}

/// 5.4.1: what is an error of the connection is said with the last stream that was taken, and then the connection ends.
#[tokio::test]
async fn an_error_of_the_connection_names_the_last_stream_and_ends_it() {
    let world = server(Config::default()).await;
    let mut peer = Peer::of(&world, &hello(&all(&[held(1), held(3), frame(DATA, 0, 0, b"x")]))).await;
    let goaway = peer.read_until(|frame| frame.kind == GOAWAY).await;
    assert_eq!((goaway.stream, &goaway.payload[..4]), (0, &[0, 0, 0, 3][..]));
    while within(peer.read()).await.is_some() {}
}

/// 6.9.1, 6.9.2: an answer's body keeps to the windows of stream and connection, as they are changed.
#[tokio::test]
async fn an_answers_body_keeps_to_the_windows() {
    let world = server(Config::default()).await;
    let data = |frame: &Frame| frame.kind == DATA;
    // A window of one byte, which a setting makes one of three in the middle of the answer.
    let mut peer = Peer::of(&world, &hello(&all(&[setting(4, 1), request(1, &get("/", &[]))]))).await;
    assert_eq!(peer.read_until(data).await.payload, b"h");
    peer.send(&setting(4, 3)).await;
    assert_eq!(peer.read_until(data).await.payload, b"el");
    // One below nothing is made up for first.
    peer.send(&all(&[setting(4, 1), window(1, 3)])).await;
    assert_eq!(peer.read_until(data).await.payload, b"l");
    peer.send(&window(1, 100)).await;
    let last = peer.read_until(data).await;
    assert_eq!(last.payload, b"o");
    // 6.5.3: of two values in one frame the later counts.
    let both = [&[0, 4][..], &100_u32.to_be_bytes(), &[0, 4], &1_u32.to_be_bytes()].concat();
    let bytes = all(&[frame(SETTINGS, 0, 0, &both), request(1, &get("/", &[]))]);
    assert_eq!(Peer::of(&world, &hello(&bytes)).await.read_until(data).await.payload, b"h");
}

/// 5.1: an error of the stream, or of the connection where the stream is not forgotten yet.
#[tokio::test]
async fn frames_on_a_stream_that_has_ended_are_errors() {
    let world = server(Config::default()).await;
    for (name, bytes, of_stream) in [
        ("DATA", frame(DATA, 0, 1, b"x"), true),
        ("HEADERS", request(1, &get("/", &[])), false),
        ("CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, &plain()), false),
    ] {
        let mut peer = Peer::of(&world, &hello(&request(1, &get("/", &[])))).await;
        peer.read_until(|frame| frame.stream == 1 && frame.flags & END_STREAM != 0).await;
        peer.send(&bytes).await;
        let got = within(peer.outcome(PROTOCOL)).await;
        assert!(got == PROTOCOL || of_stream && got == Reset("STREAM_CLOSED"), "{name}: {got:?}");
    }
}
