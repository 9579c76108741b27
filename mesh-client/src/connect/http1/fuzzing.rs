//! Entry point for the fuzzer, for the replay of its corpus and for a property; not a part of the interface.
//!
//! hyper's own client reads the same answers. What it makes of one is what is made of it here, or an error here where a
//! framing can be read in two ways.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::super::custom::Io;
use super::super::worker::Line;
use super::{RequestHead, Wire, begin};
use crate::body::{Incoming, Outgoing};

/// Of an answer all that there is to see.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    version: Version,
    reason: Option<Bytes>,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// Reads an answer, cut into pieces as long as its first byte says; to HEAD, if that is odd, or to GET. Then the connection
/// is closed.
///
/// # Panics
/// hyper reads another answer, or none, or one where there is no reason to refuse it; or another one comes out of other pieces.
pub(crate) fn answer(bytes: &[u8]) {
    let [piece, raw @ ..] = bytes else { return };
    // More than that is read and written in the same way.
    let raw = &raw[..raw.len().min(1 << 16)];
    let method = if piece % 2 == 1 { Method::HEAD } else { Method::GET };
    let piece = usize::from(*piece).max(1);
    let (own, whole, other) =
        (ours(&method, raw, piece), ours(&method, raw, raw.len().max(1)), hypers(&method, raw, piece));
    let shown = || String::from_utf8_lossy(raw);
    assert_eq!(own, whole, "in pieces of {piece}: {:?}", shown());
    match (own, other) {
        (None, Some(other)) => assert!(is_doubtful(&other, raw), "refused is {other:?} of {:?}", shown()),
        (own, other) => assert_eq!(own, other, "{:?}", shown()),
    }
}

/// Whether there is a reason to refuse what hyper reads: a protocol that nobody asked for, codings of which the last alone
/// does not say how the body is framed, a line among chunks that ends without CR, or very many lines.
fn is_doubtful(answer: &Answer, raw: &[u8]) -> bool {
    let lines = answer.headers.get_all(TRANSFER_ENCODING).iter();
    let codings: Vec<_> = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).collect();
    let codings: Vec<_> = codings.iter().map(|coding| coding.trim_ascii().to_ascii_lowercase()).collect();
    let known: [&[u8]; 6] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"];
    let plain = codings.strip_suffix(&[b"chunked".to_vec()]).unwrap_or(&codings);
    let bare = raw.split_inclusive(|byte| *byte == b'\n').any(|line| line.ends_with(b"\n") && !line.ends_with(b"\r\n"));
    let bare = bare && answer.trailers.is_some();
    let many = raw.iter().filter(|byte| **byte == b'\n').count() > 100;
    answer.status == StatusCode::SWITCHING_PROTOCOLS
        || bare
        || many
        || plain.iter().any(|coding| !known.contains(&&coding[..]))
}

fn ours(method: &Method, raw: &[u8], piece: usize) -> Option<Answer> {
    let (near, far) = duplex(1 << 17);
    let io: Box<dyn Io> = Box::new(near);
    let wire = Wire::new(io.into(), Arc::<Line>::default(), None);
    let (head, ()) = Request::builder().method(method).uri("/").body(()).ok()?.into_parts();
    let mut flight = begin(wire, false, &RequestHead::of(&head), Outgoing::Empty).ok()?;
    fed(raw, piece, far, async {
        let answer = std::future::poll_fn(|cx| flight.poll_head(cx)).await.ok()?;
        let Incoming::Http1(body) = answer.body() else { return None };
        let said = body.size_hint().exact();
        let answer = collect(answer).await?;
        assert!(said.is_none_or(|said| said == answer.body.len() as u64), "{said:?} were announced");
        Some(answer)
    })
}

fn hypers(method: &Method, raw: &[u8], piece: usize) -> Option<Answer> {
    let (near, far) = duplex(1 << 17);
    fed(raw, piece, far, async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.ok()?;
        let request = Request::builder().method(method).uri("/").body(Empty::<Bytes>::new()).ok()?;
        let answer = async { collect(sender.send_request(request).await.ok()?).await };
        // It ends with the connection, which fails where the answer does.
        let mut answer = pin!(answer);
        let connection = pin!(async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        });
        match futures_util::future::select(&mut answer, connection).await {
            futures_util::future::Either::Left((answer, _)) => answer,
            futures_util::future::Either::Right(_) => None,
        }
    })
}

async fn collect<B: HttpBody<Data = Bytes> + Unpin>(answer: Response<B>) -> Option<Answer> {
    let (head, mut body) = answer.into_parts();
    let (mut read, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let reason = head.extensions.get::<ReasonPhrase>().map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
    let (status, version, headers) = (head.status, head.version, head.headers);
    Some(Answer { status, version, reason, headers, body: read.freeze(), trailers })
}

/// Runs who reads, and gives him a further piece whenever he waits, and the end after the last.
fn fed<T>(raw: &[u8], piece: usize, mut far: DuplexStream, reader: impl Future<Output = Option<T>>) -> Option<T> {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut reader, mut pieces) = (pin!(reader), raw.chunks(piece));
    let mut closed = 0;
    loop {
        if let Poll::Ready(read) = reader.as_mut().poll(&mut cx) {
            return read;
        }
        let next = pieces.next();
        let given = async {
            match next {
                Some(piece) => drop(far.write_all(piece).await),
                None => drop(far.shutdown().await),
            }
        };
        // There is room for all of it.
        let _ = pin!(given).poll(&mut cx);
        closed += u32::from(next.is_none());
        assert!(closed < 100, "it waits for what cannot come");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::replay;

    const SEEDS: [&[u8]; 18] = [
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab",
        b"\x04HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n00a \r\n0123456789\r\n0\r\nx: y\r\n\r\nrest",
        b"\x06HTTP/1.0 299 So so\r\nConnection: keep-alive\r\n\r\nto the end",
        b"\x03HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        b"\x08HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\x02HTTP/1.1 304 Not Modified\r\ncontent-length: x\r\n\r\n",
        b"\x0cHTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\nraw",
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\ncontent-length: 1, 1\r\n\r\na",
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"\x02HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"\x02HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"\x02HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: xchunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"\x02HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
        b"\x02HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;\nx\r\na\r\n0\r\nx: y\n\r\n",
        b"\x02\r\n\r\nHTTP/1.1 200\ncontent-length: 1\nx-a:\t b\xe9 \r\n\na",
        b"\x02HTTP/1.1 200 OK\r\na: b\r\n folded: c\r\n\r\n",
        b"\x02HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x02HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\r\nc\r\n\r\n",
    ];
    const PIECES: [&str; 26] = [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 \r\n",
        "HTTP/1.1 100 \r\n\r\n",
        "HTTP/1.1 204 x\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\n\n",
        " ",
        "\t",
        ",",
        ":",
        ";",
        "0",
        "1\r\na\r\n",
        "0\r\n\r\n",
        "a: b\r\n",
        "content-length: 1\r\n",
        "content-length: 2\r\n",
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "chunked",
        "identity",
        "connection: close\r\n",
        "\u{e9}",
        "\0",
    ];

    #[test]
    fn the_corpus_is_replayed() {
        replay("answer", &SEEDS, answer);
    }

    #[test]
    fn hyper_reads_the_same_answers() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            let mut bytes = SEEDS[random.usize(..SEEDS.len())].to_vec();
            for _ in 0..random.usize(..4) {
                let at = random.usize(1..=bytes.len());
                let end = (at + [0, 0, 1, 4][random.usize(..4)]).min(bytes.len());
                let piece = PIECES[random.usize(..PIECES.len())].bytes();
                bytes.splice(at..end, piece);
            }
            bytes[0] = random.u8(1..40);
            answer(&bytes);
        }
    }
}
