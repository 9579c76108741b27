//! Connections that a server gives up in the middle of requests (R21), with a server whose frames are written by hand:
//! a GOAWAY that leaves some of them out, one after which no stream may begin, and none at all. And streams that it takes
//! fewer or more of than it said at first.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::ext::Protocol;
use mesh_client::Client;
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{
    Address, Endpoint, HeaderKey, HeaderMatch, HeaderMatcher, RetryOn, RetryPolicy, StringMatcher,
};
use mesh_testkit::FixedSource;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::fleet::SERVER;
use crate::load::{Policy, TARGET, failures, read, request, run_of};
use crate::{Verdict, each_seed, ensure, fails_for_some_seed, holds_for_each_seed};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const MAX_STREAMS: u8 = 3;
/// Larger than the number of any stream: whatever comes is still looked at.
const ANY: u32 = i32::MAX as u32;
const SECOND: Duration = Duration::from_secs(1);

/// The server's end of a connection.
struct Peer {
    line: DuplexStream,
    read: BytesMut,
}

impl Peer {
    /// Both say hello.
    async fn greet(mut line: DuplexStream) -> Self {
        let mut preface = [0; PREFACE.len()];
        line.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let mut peer = Self { line, read: BytesMut::new() };
        peer.limit(100).await;
        peer
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // Who has gone hears nothing.
        let _ = self.line.write_all(&frame).await;
    }

    /// So many streams at once from now on.
    async fn limit(&mut self, streams: u32) {
        let mut setting = vec![0, MAX_STREAMS];
        setting.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &setting).await;
    }

    /// Streams above `last` are not looked at.
    async fn go_away(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0; 4]);
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    /// Answers with 200 and no body.
    async fn answer(&mut self, stream: u32) {
        // An entry of the static table, and a header as it is.
        let mut block = vec![0x88, 0, SERVER.len() as u8];
        block.extend(SERVER.as_bytes());
        block.extend([1, b'0']);
        // Headers and stream end here.
        self.write(HEADERS, 4 | 1, stream, &block).await;
    }

    /// Answers with 200 and the beginning of a body.
    async fn begin(&mut self, stream: u32, beginning: &[u8]) {
        self.write(HEADERS, 4, stream, &[0x88]).await;
        self.write(DATA, 0, stream, beginning).await;
    }

    /// The next frame that is not about the connection: kind, flags, stream and payload; `None` = the client has gone. What
    /// was read is kept if nobody waits any more.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Bytes)> {
        loop {
            while self.read.len() < 9 || self.read.len() < 9 + length(&self.read) {
                if self.line.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
            let mut frame = self.read.split_to(9 + length(&self.read));
            frame.advance(3);
            let (kind, flags, stream) = (frame.get_u8(), frame.get_u8(), frame.get_u32());
            match kind {
                SETTINGS if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
                PING if flags & ACK == 0 => self.write(PING, ACK, 0, &frame).await,
                SETTINGS | PING => {}
                _ => return Some((kind, flags, stream, frame.freeze())),
            }
        }
    }

    /// The stream of the next request; `None` = the client has gone.
    async fn request(&mut self) -> Option<u32> {
        loop {
            let (kind, _, stream, _) = self.frame().await?;
            if kind == HEADERS {
                return Some(stream);
            }
        }
    }

    /// What comes next on a stream, and whether it is the last.
    async fn data(&mut self, of: u32) -> (Bytes, bool) {
        loop {
            let frame = timeout(SECOND, self.frame()).await.expect("more comes").unwrap();
            if let (DATA, flags, stream, data) = frame
                && stream == of
            {
                return (data, flags & 1 == 1);
            }
        }
    }

    async fn requests(&mut self, count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(timeout(SECOND, self.request()).await.expect("a request comes").unwrap());
        }
        streams
    }
}

/// Of the frame that begins here.
fn length(read: &[u8]) -> usize {
    u32::from_be_bytes([0, read[0], read[1], read[2]]) as usize
}

/// A client without a retry policy, and the connections that it makes.
fn client() -> (Client, UnboundedReceiver<DuplexStream>) {
    client_with(&Policy::http2())
}

fn client_with(policy: &Policy) -> (Client, UnboundedReceiver<DuplexStream>) {
    let (lines, connections) = unbounded_channel();
    let endpoint = Endpoint::new(Address::Socket(([10, 0, 0, 1], 80).into()));
    let client = Client::builder(FixedSource::of(TARGET, policy.snapshot(vec![endpoint])))
        .connector(move |_| {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            lines.send(theirs).unwrap();
            async move { Ok(Box::new(ours) as Box<dyn mesh_client::Io>) }
        })
        .build();
    (client, connections)
}

async fn next(connections: &mut UnboundedReceiver<DuplexStream>) -> Peer {
    Peer::greet(timeout(SECOND, connections.recv()).await.expect("another connection").unwrap()).await
}

fn send(client: &Client, method: &Method) -> JoinHandle<Result<(), Code>> {
    let (client, method) = (client.clone(), method.clone());
    tokio::spawn(async move {
        let body = if method == Method::POST { "once" } else { "" };
        let answer = async { read(client.send(request(method, "/", body)).await?).await };
        answer.await.map(drop).map_err(|error| error.code())
    })
}

async fn outcomes(requests: Vec<JoinHandle<Result<(), Code>>>) -> Vec<Result<(), Code>> {
    let all = futures_util::future::join_all(requests);
    timeout(SECOND, all).await.expect("none hangs").into_iter().map(Result::unwrap).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_goaway_leaves_out_is_sent_over_another_connection_and_the_rest_ends_in_peace_r21() {
    let (client, mut connections) = client();
    let sent = (0..10).map(|_| send(&client, &Method::POST)).collect();
    let mut first = next(&mut connections).await;
    let streams = first.requests(10).await;
    first.go_away(streams[4]).await;
    let mut second = next(&mut connections).await;
    // Five, for those that the first still works on are not sent again.
    let again = second.requests(5).await;
    assert!(timeout(SECOND, second.request()).await.is_err());
    for stream in &streams[..5] {
        first.answer(*stream).await;
    }
    for stream in again {
        second.answer(stream).await;
    }
    assert_eq!(outcomes(sent).await, [Ok(()); 10]);
    let later = vec![send(&client, &Method::POST)];
    let stream = second.requests(1).await[0];
    second.answer(stream).await;
    assert_eq!(outcomes(later).await, [Ok(())], "the second connection is the one in use");
}

#[tokio::test(start_paused = true)]
async fn after_a_goaway_no_stream_need_be_allowed_r21() {
    let (client, mut connections) = client();
    let mut sent: Vec<_> = (0..3).map(|_| send(&client, &Method::POST)).collect();
    let mut first = next(&mut connections).await;
    let streams = first.requests(3).await;
    first.go_away(ANY).await;
    first.limit(0).await;
    sent.extend((0..3).map(|_| send(&client, &Method::POST)));
    let mut second = next(&mut connections).await;
    for stream in second.requests(3).await {
        second.answer(stream).await;
    }
    for stream in streams {
        first.answer(stream).await;
    }
    assert_eq!(outcomes(sent).await, [Ok(()); 6]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_stream_of_a_peer_that_leaves_goes_over_another_connection_r21() {
    let mut one = Policy::http2();
    one.cluster.breaker.max_connections = Some(1);
    let (client, mut connections) = client_with(&one);
    let mut sent = vec![send(&client, &Method::POST)];
    let mut first = next(&mut connections).await;
    let stream = first.requests(1).await[0];
    first.limit(1).await;
    assert!(timeout(SECOND, first.request()).await.is_err(), "nothing but its acknowledgement");
    sent.push(send(&client, &Method::POST));
    assert!(timeout(SECOND, connections.recv()).await.is_err(), "it waits: there may be one connection");
    first.go_away(ANY).await;
    // What is under way there takes as long as it takes.
    let mut second = next(&mut connections).await;
    let next = second.requests(1).await[0];
    second.answer(next).await;
    first.answer(stream).await;
    assert_eq!(outcomes(sent).await, [Ok(()); 2]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_peer_breaks_off_is_not_taken_for_whole() {
    // Of a reset, and of a reset after the end, which is about the rest of the request.
    for (ends, reason) in [(false, 0), (false, 8), (true, 0), (true, 8)] {
        let (client, mut connections) = client();
        let sent = vec![send(&client, &Method::GET)];
        let mut peer = next(&mut connections).await;
        let stream = peer.requests(1).await[0];
        peer.begin(stream, b"half").await;
        if ends {
            peer.write(DATA, 1, stream, b"").await;
        }
        peer.write(RESET, 0, stream, &[0, 0, 0, reason]).await;
        let outcome = outcomes(sent).await.remove(0);
        assert_eq!(outcome, if ends { Ok(()) } else { Err(Code::CONNECTION_LOST) }, "reset for {reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_goes_through_the_bodies_of_its_request_and_its_answer() {
    let (client, mut connections) = client();
    let (into, out) = unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
    let out = futures_util::stream::unfold(out, |mut out| async move { Some((out.recv().await?, out)) });
    let mut request = Request::connect(TARGET).body(StreamBody::new(out)).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    *request.uri_mut() = format!("http://{TARGET}/chat").parse().unwrap();
    let answer = tokio::spawn(async move { client.send(request).await.unwrap() });
    let mut peer = next(&mut connections).await;
    let stream = peer.requests(1).await[0];
    peer.begin(stream, b"hello").await;
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    // What goes in after the answer's head goes out.
    // Without what says nothing.
    for data in ["", "", "and back"] {
        into.send(Ok(Frame::data(Bytes::from_static(data.as_bytes())))).unwrap();
    }
    assert_eq!(peer.data(stream).await, (Bytes::from_static(b"and back"), false));
    drop(into);
    assert_eq!(peer.data(stream).await, (Bytes::new(), true));
    peer.write(DATA, 1, stream, b"bye").await;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "bye");
    assert!(body.frame().await.is_none());
}

/// After a reset, once, and nothing but they.
fn gets_are_sent_again() -> Policy {
    let method = HeaderMatch::Text(StringMatcher::exact("GET"));
    let name = HeaderKey::parse(":method").unwrap();
    let gets = HeaderMatcher { name, value: method, invert: false, treat_missing_as_empty: false };
    let on = RetryOn { reset: true, ..RetryOn::default() };
    let retry = RetryPolicy { request_headers: vec![gets], ..RetryPolicy::new(1, on) };
    Policy { retry: Some(retry), ..Policy::http2() }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_costs_what_must_not_be_sent_twice_and_nothing_else_r21() {
    let (client, mut connections) = client_with(&gets_are_sent_again());
    let before = vec![send(&client, &Method::GET)];
    let mut first = next(&mut connections).await;
    let stream = first.requests(1).await[0];
    first.answer(stream).await;
    assert_eq!(outcomes(before).await, [Ok(())]);
    let gets = (0..5).map(|_| send(&client, &Method::GET)).collect();
    let posts = (0..5).map(|_| send(&client, &Method::POST)).collect();
    first.requests(10).await;
    drop(first);
    let mut second = next(&mut connections).await;
    for stream in second.requests(5).await {
        second.answer(stream).await;
    }
    assert_eq!(outcomes(gets).await, [Ok(()); 5]);
    assert_eq!(outcomes(posts).await, [Err(Code::CONNECTION_LOST); 5]);
    assert!(timeout(SECOND, second.request()).await.is_err(), "no POST was sent again");
    // Where no policy says so nothing is: it may have been worked on.
    let (client, mut connections) = self::client();
    let first = vec![send(&client, &Method::GET)];
    let mut peer = next(&mut connections).await;
    let stream = peer.requests(1).await[0];
    peer.answer(stream).await;
    assert_eq!(outcomes(first).await, [Ok(())]);
    let gets = vec![send(&client, &Method::GET)];
    peer.requests(1).await;
    drop(peer);
    assert_eq!(outcomes(gets).await, [Err(Code::CONNECTION_LOST)]);
    assert!(timeout(SECOND, connections.recv()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_a_limit_that_was_lowered_go_over_another_connection() {
    let (client, mut connections) = client();
    let mut sent: Vec<_> = (0..3).map(|_| send(&client, &Method::POST)).collect();
    let mut first = next(&mut connections).await;
    let mut streams = first.requests(3).await;
    // Control: there is room for a fourth.
    sent.push(send(&client, &Method::POST));
    streams.extend(first.requests(1).await);
    for allowed in [4, 0] {
        first.limit(allowed).await;
        assert!(timeout(SECOND, first.request()).await.is_err(), "nothing but its acknowledgement");
        sent.extend((0..2).map(|_| send(&client, &Method::POST)));
        let mut other = next(&mut connections).await;
        for stream in other.requests(2).await {
            other.answer(stream).await;
        }
        // It leaves, so that the next ones have but the first.
        other.go_away(ANY).await;
        assert_eq!(timeout(SECOND, other.request()).await, Ok(None), "its last stream has ended");
    }
    for stream in streams {
        first.answer(stream).await;
    }
    assert_eq!(outcomes(sent).await, [Ok(()); 8], "those under way when the limit fell are not harmed");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_shuts_each_connection_after_a_request_is_not_connected_to_without_end() {
    let (client, mut connections) = client();
    let mut shut = Vec::new();
    for _ in 0..8 {
        let sent = vec![send(&client, &Method::POST)];
        let mut peer = next(&mut connections).await;
        let stream = peer.requests(1).await[0];
        peer.limit(0).await;
        peer.answer(stream).await;
        assert_eq!(outcomes(sent).await, [Ok(())]);
        shut.push(peer);
    }
    let sent = vec![send(&client, &Method::POST)];
    assert!(timeout(SECOND, connections.recv()).await.is_err(), "no ninth connection");
    // It waits, and has the first stream that there is.
    shut[3].limit(1).await;
    let stream = shut[3].requests(1).await[0];
    shut[3].answer(stream).await;
    assert_eq!(outcomes(sent).await, [Ok(())]);
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_stream_go_on_when_the_peer_takes_more_of_them() {
    let mut one = Policy::http2();
    one.cluster.breaker.max_connections = Some(1);
    let (client, mut connections) = client_with(&one);
    let mut sent = vec![send(&client, &Method::POST)];
    let mut peer = next(&mut connections).await;
    let mut streams = peer.requests(1).await;
    peer.limit(1).await;
    assert!(timeout(SECOND, peer.request()).await.is_err());
    sent.extend((0..3).map(|_| send(&client, &Method::POST)));
    assert!(timeout(SECOND, peer.request()).await.is_err(), "control: there is no room");
    peer.limit(4).await;
    streams.extend(peer.requests(3).await);
    for stream in streams {
        peer.answer(stream).await;
    }
    assert_eq!(outcomes(sent).await, [Ok(()); 4]);
}

/// How a peer leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It says so, looks at this share of what it has in hand, and takes no stream more if so said.
    Away { keeps: f64, shut: bool },
    /// Its connection ends.
    Breaks,
}

/// Answers each request after 50 ms, until it leaves. Counts what is begun, what is answered, and what is left out.
#[derive(Clone, Default)]
struct Counters {
    begun: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    left_out: Arc<AtomicU64>,
}

impl Counters {
    async fn serve(self, line: DuplexStream, after: Duration, how: Leaves) {
        let mut peer = Peer::greet(line).await;
        let mut leave = Some(Instant::now() + after);
        let mut in_hand: VecDeque<(u32, Instant)> = VecDeque::new();
        loop {
            let (due, leaving) = (in_hand.front().copied(), leave);
            tokio::select! {
                biased;
                () = async { sleep_until(leaving.unwrap()).await }, if leaving.is_some() => {
                    let Leaves::Away { keeps, shut } = how else { return };
                    let kept = (in_hand.len() as f64 * keeps) as usize;
                    self.left_out.fetch_add((in_hand.len() - kept) as u64, Relaxed);
                    in_hand.truncate(kept);
                    peer.go_away(in_hand.back().map_or(0, |last| last.0)).await;
                    if shut {
                        peer.limit(0).await;
                    }
                    leave = None;
                }
                () = async { sleep_until(due.unwrap().1).await }, if due.is_some() => {
                    in_hand.pop_front();
                    peer.answer(due.unwrap().0).await;
                    self.answered.fetch_add(1, Relaxed);
                }
                stream = peer.request() => {
                    let Some(stream) = stream else { return };
                    self.begun.fetch_add(1, Relaxed);
                    if leave.is_some() {
                        in_hand.push_back((stream, Instant::now() + SECOND / 20));
                    }
                }
            }
        }
    }

    /// Serves whatever comes, over connections each of which lives as long as it says.
    fn serve_all(
        &self,
        mut lines: UnboundedReceiver<DuplexStream>,
        life: impl Fn() -> Duration + Send + 'static,
        how: Leaves,
    ) {
        let counters = self.clone();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                tokio::spawn(counters.clone().serve(line, life(), how));
            }
        });
    }
}

/// A load of so many in a second, for so long, over connections that live for two seconds and leave half of what they have
/// in hand. Gives how many were left out.
async fn load_of_the_left_out(rate: f64, time: Duration) -> u64 {
    let (client, connections) = client();
    let counters = Counters::default();
    counters.serve_all(connections, || 2 * SECOND, Leaves::Away { keeps: 0.5, shut: false });
    let records = run_of(&client, Method::POST, rate, time).await;
    assert!(failures(&records).is_empty(), "{:?}", failures(&records));
    assert_eq!(counters.answered.load(Relaxed), records.len() as u64, "each was done once");
    counters.left_out.load(Relaxed)
}

#[test]
fn connections_that_leave_requests_out_cost_none_of_a_load_and_do_none_twice_r21() {
    let left_out = Cell::new(0);
    each_seed(1, || async {
        assert!(load_of_the_left_out(200.0, 10 * SECOND).await > 5, "control: requests were left out");
    });
    each_seed(20, || async {
        left_out.set(left_out.get() + load_of_the_left_out(30.0, SECOND * 5 / 2).await);
    });
    assert!(left_out.get() > 0, "control: requests were left out");
}

/// What came of a short load over connections that live for as long as the seed says.
#[derive(Debug)]
struct Lives {
    asked: u64,
    failed: u64,
    /// Requests of which a peer saw the beginning.
    begun: u64,
    answered: u64,
}

impl Lives {
    async fn play(method: Method, how: Leaves) -> Self {
        let (client, connections) = client_with(&gets_are_sent_again());
        let (counters, random) = (Counters::default(), Mutex::new(fastrand::Rng::with_seed(fastrand::u64(..))));
        counters.serve_all(connections, move || Duration::from_millis(random.lock().u64(80..180)), how);
        let records = run_of(&client, method, 60.0, SECOND / 4).await;
        let failed = records.iter().filter(|record| record.outcome.is_err()).count() as u64;
        let [begun, answered] = [&counters.begun, &counters.answered].map(|count| count.load(Relaxed));
        Self { asked: records.len() as u64, failed, begun, answered }
    }

    fn none_is_lost(&self) -> Verdict {
        ensure(self.failed == 0 && self.answered == self.asked, || format!("{self:?}"))
    }

    fn none_is_sent_twice(&self) -> Verdict {
        ensure(self.begun <= self.asked && self.answered + self.failed == self.asked, || format!("{self:?}"))
    }
}

#[test]
fn however_connections_leave_nothing_is_lost_but_what_must_not_be_sent_twice_r21() {
    holds_for_each_seed(|| async {
        let method = if fastrand::bool() { Method::GET } else { Method::POST };
        // Perhaps all of what it has in hand, or nothing.
        let keeps = [0.0, 1.0, fastrand::f64()][fastrand::usize(..3)];
        let away = Leaves::Away { keeps, shut: fastrand::bool() };
        let how = if fastrand::usize(..3) == 0 { Leaves::Breaks } else { away };
        let lives = Lives::play(method.clone(), how).await;
        let verdict = match (how, method) {
            (Leaves::Breaks, Method::POST) => lives.none_is_sent_twice(),
            _ => lives.none_is_lost(),
        };
        verdict.map_err(|what| format!("{what} {how:?}"))
    });
}

/// Control run.
#[test]
fn connections_that_break_lose_what_must_not_be_sent_twice_r21() {
    fails_for_some_seed(|| async { Lives::play(Method::POST, Leaves::Breaks).await.none_is_lost() });
}
