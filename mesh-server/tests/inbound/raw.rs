//! An HTTP/2 client that does what it is told: frames written by hand, headers as literals without Huffman code.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{World, within};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// The next frame of a connection: kind, flags, stream and payload; `None` if it has ended.
pub(crate) async fn next(tcp: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    tcp.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    tcp.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// What the server makes of what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An error of the connection: GOAWAY, or closed without a word, as RFC 9113, section 5.4.1 allows.
    Connection,
    /// An error of the stream: RST_STREAM.
    Stream,
    /// An answer with status 200.
    Served,
    /// An answer with another status, which is this.
    Refused(u16),
    /// Nothing: the connection goes on.
    Alive,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block.
pub(crate) fn block<V: AsRef<[u8]> + ?Sized>(headers: &[(&str, &V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name.as_bytes(), value.as_ref()] {
            integer(&mut block, text.len());
            block.extend(text);
        }
    }
    block
}

/// The status of an answer, with which its block begins: of HPACK's table, or its name from there and three digits in
/// Huffman code (RFC 7541, appendices A and B).
pub(crate) fn status(block: &[u8]) -> u16 {
    let code = match block {
        [known @ 0x88..=0x8e, ..] => return [200, 204, 206, 304, 400, 404, 500][usize::from(known - 0x88)],
        [0x48 | 0x08, length, code @ ..] if length & 0x80 != 0 => code,
        other => panic!("a block that begins with no status: {other:02x?}"),
    };
    let mut bits = code.iter().flat_map(|byte| (0..8).rev().map(move |at| u16::from(byte >> at & 1)));
    let mut digit = || match (0..5).fold(0, |code, _| code << 1 | bits.next().unwrap()) {
        short @ 0..3 => short,
        long => (long << 1 | bits.next().unwrap()) - 22,
    };
    (0..3).fold(0, |status, _| status * 10 + digit())
}

/// The length of a text without Huffman code: an integer with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(block: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        block.push(u8::try_from(value).unwrap());
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The pseudo-headers of a GET, and what comes after them.
pub(crate) fn get<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut headers = vec![(":method", "GET"), (":scheme", "http"), (":authority", "reviews"), (":path", path)];
    headers.extend(more);
    headers
}

/// A whole request without a body, in as many frames as it takes.
pub(crate) fn request<V: AsRef<[u8]> + ?Sized>(stream: u32, headers: &[(&str, &V)]) -> Vec<u8> {
    let block = block(headers);
    let mut parts = block.chunks(16_000).enumerate().peekable();
    let mut frames = Vec::new();
    while let Some((n, part)) = parts.next() {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        let end = if parts.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if n == 0 { end | END_STREAM } else { end };
        frames.extend(frame(kind, flags, stream, part));
    }
    frames
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Sends bytes after preface and settings, and waits for a verdict.
pub(crate) async fn verdict(world: &World, bytes: &[u8]) -> Verdict {
    let mut all = PREFACE.to_vec();
    all.extend(frame(SETTINGS, 0, 0, &[]));
    all.extend(bytes);
    judged(world, all, false).await
}

/// The same; the answer to a ping says that nothing else came.
pub(crate) async fn verdict_or_alive(world: &World, bytes: &[u8]) -> Verdict {
    let mut all = PREFACE.to_vec();
    all.extend(frame(SETTINGS, 0, 0, &[]));
    all.extend(bytes);
    all.extend(frame(PING, 0, 0, LAST));
    judged(world, all, true).await
}

const LAST: &[u8; 8] = b"the last";

/// Sends exactly these bytes.
pub(crate) async fn judged(world: &World, bytes: Vec<u8>, pinged: bool) -> Verdict {
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (mut read, mut write) = tcp.into_split();
    // Writing ends early if the server closes; reading says what came of it.
    let writing = async {
        let _ = write.write_all(&bytes).await;
        // Kept open: an end of the client would be one more thing to judge.
        std::future::pending::<Verdict>().await
    };
    let reading = async {
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return Verdict::Connection;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if read.read_exact(&mut payload).await.is_err() {
                return Verdict::Connection;
            }
            match head[3] {
                GOAWAY => return Verdict::Connection,
                RST_STREAM => return Verdict::Stream,
                HEADERS => match status(&payload) {
                    200 => return Verdict::Served,
                    other => return Verdict::Refused(other),
                },
                PING if pinged && payload == LAST => return Verdict::Alive,
                _ => {}
            }
        }
    };
    within(async {
        tokio::select! {
            verdict = writing => verdict,
            verdict = reading => verdict,
        }
    })
    .await
}

/// Whether a connection on which this comes goes on, whatever is said of its streams.
///
/// # Errors
/// The code with which it was ended; none if it was ended without a word.
pub(crate) async fn goes_on(address: SocketAddr, bytes: &[u8]) -> Result<(), Option<u32>> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = tcp.into_split();
    let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), bytes, &frame(PING, 0, 0, LAST)].concat();
    let writing = async {
        let _ = write.write_all(&all).await;
        std::future::pending().await
    };
    let reading = async {
        loop {
            let mut head = [0; 9];
            read.read_exact(&mut head).await.map_err(|_| None)?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            read.read_exact(&mut payload).await.map_err(|_| None)?;
            match head[3] {
                GOAWAY => return Err(Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))),
                PING if payload == LAST => return Ok(()),
                _ => {}
            }
        }
    };
    within(async {
        tokio::select! {
            ended = writing => ended,
            ended = reading => ended,
        }
    })
    .await
}
