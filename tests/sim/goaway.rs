//! HTTP/2 servers that send connections away in every manner there is (R21), frame by frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Method;
use mesh_client::{Client, Io};
use mesh_testkit::FixedSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::each_seed;
use crate::fleet::{Fleet, Manner};
use crate::load::{Policy, TARGET, read, request};

/// Frame types.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// How a server ends a connection after so many requests.
#[derive(Clone, Copy, Debug)]
enum Farewell {
    /// GOAWAY names an earlier stream than those that are there: it has not looked at them.
    Below,
    /// GOAWAY names the last stream, and then no stream is allowed.
    ThenNoStreams,
    /// Not a word.
    None,
}

#[derive(Default)]
struct Counted {
    connections: AtomicU64,
    executed: AtomicU64,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

/// Answers `most` requests on one connection, and takes leave at the next one.
async fn serve(mut line: DuplexStream, farewell: Farewell, most: u64, counted: Arc<Counted>) -> std::io::Result<()> {
    counted.connections.fetch_add(1, Relaxed);
    let mut preface = [0; 24];
    line.read_exact(&mut preface).await?;
    line.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let (mut answered, mut last, mut leaving) = (0, 0, false);
    loop {
        let mut head = [0; 9];
        line.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        line.read_exact(&mut payload).await?;
        let (kind, flags, stream) = (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        match kind {
            SETTINGS if flags & ACK == 0 => line.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if flags & ACK == 0 => line.write_all(&frame(PING, ACK, 0, &payload)).await?,
            HEADERS | DATA if flags & END_STREAM != 0 && !leaving => {
                let over = answered == most;
                match farewell {
                    Farewell::Below if over => {
                        line.write_all(&goaway(last)).await?;
                        leaving = true;
                        continue;
                    }
                    // It goes as the request is there, whatever was done of it.
                    Farewell::None if over => return Ok(()),
                    _ => {}
                }
                counted.executed.fetch_add(1, Relaxed);
                // `:status: 200`.
                line.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])).await?;
                (answered, last) = (answered + 1, stream);
                if answered == most
                    && let Farewell::ThenNoStreams = farewell
                {
                    line.write_all(&goaway(last)).await?;
                    line.write_all(&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0])).await?;
                    leaving = true;
                }
            }
            _ => {}
        }
    }
}

const WORKERS: u64 = 20;
const REQUESTS: u64 = 30;

/// Many requests of a method at once, to a server that takes leave after every ten. Gives those that failed, and what
/// the server counted.
async fn exchange(farewell: Farewell, method: Method) -> (u64, Arc<Counted>) {
    let counted = Arc::<Counted>::default();
    let policy = Policy { timeout: Some(Duration::from_secs(5)), ..Policy::http2() };
    let source = FixedSource::of(TARGET, policy.snapshot(Fleet::new(1, 1, &Manner::default()).endpoints()));
    let counting = counted.clone();
    let client = Client::builder(source)
        .connector(move |_| {
            let (ours, theirs) = crate::pipe::distant(Duration::from_millis(1));
            tokio::spawn(serve(theirs, farewell, 10, counting.clone()));
            async move { Ok(Box::new(ours) as Box<dyn Io>) }
        })
        .build();
    let workers = (0..WORKERS).map(|_| {
        let (client, method) = (client.clone(), method.clone());
        tokio::spawn(async move {
            let mut failed = 0;
            for _ in 0..REQUESTS {
                mesh_testkit::clock::pass(Duration::from_micros(fastrand::u64(..5_000))).await;
                let answer = async { read(client.send(request(method.clone(), "/", "once")).await?).await };
                failed += u64::from(answer.await.is_err());
            }
            failed
        })
    });
    let failed = futures_util::future::join_all(workers).await;
    (failed.into_iter().map(Result::unwrap).sum(), counted)
}

#[test]
fn streams_that_a_goaway_does_not_name_go_elsewhere_once_and_unasked_r21() {
    each_seed(10, || async {
        let (failed, counted) = exchange(Farewell::Below, Method::POST).await;
        assert!(counted.connections.load(Relaxed) > 20, "control: there were many farewells");
        // One request may meet two farewells in a row: the second is its answer.
        assert!(failed <= WORKERS * REQUESTS / 20, "{failed} failed");
        assert_eq!(counted.executed.load(Relaxed), WORKERS * REQUESTS - failed, "none twice");
    });
}

#[test]
fn a_goaway_followed_by_no_leave_for_streams_hangs_nobody_r21() {
    each_seed(10, || async {
        let (failed, counted) = exchange(Farewell::ThenNoStreams, Method::POST).await;
        assert!(counted.connections.load(Relaxed) > 20);
        assert!(failed <= WORKERS * REQUESTS / 20, "{failed} failed");
    });
}

#[test]
fn of_connections_that_break_only_what_may_be_repeated_is_repeated_r21() {
    each_seed(10, || async {
        let (failed, _) = exchange(Farewell::None, Method::GET).await;
        assert!(failed <= WORKERS * REQUESTS / 10, "{failed} failed");
        let (posts, counted) = exchange(Farewell::None, Method::POST).await;
        assert!(posts > failed, "control: what must not be repeated fails, {posts} and {failed}");
        assert_eq!(counted.executed.load(Relaxed), WORKERS * REQUESTS - posts, "none twice");
    });
}
