use std::convert::Infallible;
use std::future::poll_fn;

use futures_util::{FutureExt, poll, stream};
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::super::custom::Io;
use super::super::worker::{Drain, Lines};
use super::*;
use crate::body::Payload;

/// A connection, and its other end.
fn wire() -> (Box<Wire>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    let io: Box<dyn Io> = Box::new(ours);
    (Wire::new(io.into(), Lines::default().line(), None), theirs)
}

/// A limit for all that is under way.
fn drain(limit: std::time::Duration) -> Drain {
    Drain { requests: limit, handed: limit }
}

fn request(method: &str, headers: &[(&'static str, &str)], body: Outgoing) -> Request<Outgoing> {
    let mut request = Request::builder().method(method).uri("/a?b").header(HOST, "x.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

fn get() -> Request<Outgoing> {
    request("GET", &[], Outgoing::Empty)
}

fn full(text: &'static str) -> Outgoing {
    Outgoing::Full(Some(Bytes::from_static(text.as_bytes())), None)
}

/// A body whose length nobody knows before.
fn streamed(frames: Vec<Frame<Bytes>>) -> Outgoing {
    Payload::new(StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, Infallible>))), 1024).body()
}

fn text(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn trailers(all: &[(&'static str, &'static str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn begin(wire: Box<Wire>, request: Request<Outgoing>) -> Result<Flight, Unanswered> {
    let (head, body) = request.into_parts();
    super::begin(wire, false, &RequestHead::of(&head), body)
}

/// What the peer sees of a request.
async fn sent(request: Request<Outgoing>) -> Result<String, Broken> {
    let (wire, mut theirs) = wire();
    let mut flight = begin(wire, request).map_err(|unanswered| unanswered.error)?;
    if let Poll::Ready(Err(error)) = poll!(poll_fn(|cx| flight.poll_head(cx))) {
        return Err(error);
    }
    drop(flight);
    let mut seen = String::new();
    theirs.read_to_string(&mut seen).await.unwrap();
    Ok(seen)
}

#[tokio::test]
async fn a_request_is_written_as_its_body_wants_it() {
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let large: &'static str = Box::leak("x".repeat(COPIED_AND_MORE).into_boxed_str());
    let of_trailers =
        || vec![text("ab"), Frame::trailers(trailers(&[("x-sum", "1"), ("x-other", "2"), ("host", "h")]))];
    for (method, headers, body, head, rest) in [
        ("GET", &[][..], Outgoing::Empty, "", "\r\n".to_owned()),
        ("DELETE", &[], Outgoing::Empty, "", "\r\n".to_owned()),
        ("POST", &[], Outgoing::Empty, "", "content-length: 0\r\n\r\n".to_owned()),
        ("GET", &[("content-length", "0")], Outgoing::Empty, "", "content-length: 0\r\n\r\n".to_owned()),
        ("GET", &[("transfer-encoding", "chunked")], Outgoing::Empty, "", "\r\n".to_owned()),
        ("POST", &[("x-a", "1")], full("hello"), "x-a: 1\r\n", "content-length: 5\r\n\r\nhello".to_owned()),
        ("GET", &[], full("hello"), "", "content-length: 5\r\n\r\nhello".to_owned()),
        ("POST", &[], full(large), "", format!("content-length: {COPIED_AND_MORE}\r\n\r\n{large}")),
        // Of its own: right, twice right, none.
        ("POST", &[("content-length", "5")], full("hello"), "", "content-length: 5\r\n\r\nhello".to_owned()),
        ("POST", &[("content-length", "5, 5")], full("hello"), "", "content-length: 5\r\n\r\nhello".to_owned()),
        ("POST", &[("content-length", "+5")], full("hello"), "", "content-length: 5\r\n\r\nhello".to_owned()),
        (
            "POST",
            &[],
            streamed(vec![text("ab"), text(""), text("c")]),
            "",
            format!("{chunked}2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        ),
        ("POST", &[], streamed(vec![text(large)]), "", format!("{chunked}1389\r\n{large}\r\n0\r\n\r\n")),
        (
            "POST",
            &[("content-length", "3")],
            streamed(vec![text("ab"), text("c")]),
            "",
            "content-length: 3\r\n\r\nabc".to_owned(),
        ),
        // Never more than was said.
        (
            "POST",
            &[("content-length", "1")],
            streamed(vec![text("ab"), text("c")]),
            "",
            "content-length: 1\r\n\r\na".to_owned(),
        ),
        (
            "POST",
            &[("transfer-encoding", "chunked"), ("content-length", "9")],
            full("ab"),
            "",
            format!("{chunked}2\r\nab\r\n0\r\n\r\n"),
        ),
        (
            "POST",
            &[("transfer-encoding", "gzip")],
            full("ab"),
            "",
            format!("transfer-encoding: gzip\r\n{chunked}2\r\nab\r\n0\r\n\r\n"),
        ),
        (
            "POST",
            &[("transfer-encoding", "gzip, Chunked")],
            full("ab"),
            "",
            "transfer-encoding: gzip, Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n".to_owned(),
        ),
        ("GET", &[], streamed(vec![text("ab")]), "", "\r\n".to_owned()),
        // Trailers: those announced that may be some.
        ("POST", &[], streamed(of_trailers()), "", format!("{chunked}2\r\nab\r\n0\r\n\r\n")),
        (
            "POST",
            &[("trailer", "X-Sum, host")],
            streamed(of_trailers()),
            "trailer: X-Sum, host\r\n",
            format!("{chunked}2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n"),
        ),
    ] {
        let expected = format!("{method} /a?b HTTP/1.1\r\nhost: x.test\r\n{head}{rest}");
        assert_eq!(sent(request(method, headers, body)).await.unwrap(), expected, "{method} {headers:?}");
    }
    let mut two = request("OPTIONS", &[("host", "other.test")], Outgoing::Empty);
    *two.uri_mut() = "*".parse().unwrap();
    assert_eq!(sent(two).await.unwrap(), "OPTIONS * HTTP/1.1\r\nhost: x.test\r\n\r\n", "one host, and no path");
    let mut query = get();
    *query.uri_mut() = "http://other.test?c".parse().unwrap();
    assert_eq!(sent(query).await.unwrap(), "GET /?c HTTP/1.1\r\nhost: x.test\r\n\r\n");
}

const COPIED_AND_MORE: usize = 5001;

#[tokio::test]
async fn a_chunk_ends_before_the_next_one_begins_wherever_the_peer_takes_no_more() {
    let large: &'static str = Box::leak("x".repeat(COPIED_AND_MORE).into_boxed_str());
    let all = sent(request("POST", &[], streamed(vec![text(large)]))).await.unwrap();
    let whole = all.len() - "\r\n0\r\n\r\n".len();
    for room in [1, 2, 3, 1000].into_iter().chain(whole - 3..whole + 4) {
        for more in ["", "abc"] {
            let (ours, mut theirs) = duplex(room);
            let io: Box<dyn Io> = Box::new(ours);
            let frames = vec![text(large), text(more)];
            let wire = Wire::new(io.into(), Lines::default().line(), None);
            let mut flight = begin(wire, request("POST", &[], streamed(frames))).ok().unwrap();
            let (mut seen, mut piece) = (Vec::new(), vec![0; 1 << 16]);
            while let Some(Ok(length)) = theirs.read(&mut piece).now_or_never() {
                seen.extend_from_slice(&piece[..length]);
                assert!(poll!(poll_fn(|cx| flight.poll_head(cx))).is_pending());
                // With a new budget.
                tokio::task::yield_now().await;
            }
            let next = if more.is_empty() { "" } else { "3\r\nabc\r\n" };
            let wanted = format!("{}\r\n{next}0\r\n\r\n", &all[..whole]);
            assert!(seen == wanted.as_bytes(), "room of {room} bytes, and then {more:?}");
        }
    }
}

#[tokio::test]
async fn a_length_that_is_not_that_of_the_body_is_never_sent_whole() {
    for (length, body) in [
        ("1", Outgoing::Empty),
        ("4", full("hello")),
        ("6", full("hello")),
        ("4", streamed(vec![text("ab"), text("c")])),
    ] {
        let error = sent(request("POST", &[("content-length", length)], body)).await.unwrap_err();
        assert!(matches!(error, Broken::Http1(Error::Length)), "{length}: {error}");
    }
}

/// Reads an answer from these bytes, given piece by piece; the peer closes then, or not.
async fn answered(
    request: Request<Outgoing>,
    bytes: &[u8],
    piece: usize,
    closes: bool,
) -> Result<(Response<Bytes>, Option<HeaderMap>, bool), Broken> {
    let (wire, mut theirs) = wire();
    let mut flight = begin(wire, request).map_err(|unanswered| unanswered.error)?;
    let mut pieces = bytes.chunks(piece);
    let mut feed = async |theirs: &mut DuplexStream| {
        // It may have waited for nothing but its turn.
        if !tokio::task::coop::has_budget_remaining() {
            return tokio::task::yield_now().await;
        }
        match pieces.next() {
            Some(piece) => theirs.write_all(piece).await.unwrap(),
            None if closes => theirs.shutdown().await.unwrap(),
            None => panic!("it waits for more than it was given"),
        }
    };
    let head = loop {
        match poll!(poll_fn(|cx| flight.poll_head(cx))) {
            Poll::Ready(head) => break head?,
            Poll::Pending => feed(&mut theirs).await,
        }
    };
    let (head, Incoming::Http1(mut body)) = head.into_parts() else { panic!("it is HTTP/1.1") };
    let (mut read, mut trailers) = (BytesMut::new(), None);
    while !body.is_end_stream() {
        match poll!(body.frame()) {
            Poll::Ready(Some(frame)) => match frame?.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Poll::Ready(None) => break,
            Poll::Pending => feed(&mut theirs).await,
        }
    }
    // What was not given yet came with it.
    for piece in pieces {
        theirs.write_all(piece).await.unwrap();
    }
    let again = body.into_wire().is_some_and(|mut wire| wire.is_quiet());
    Ok((Response::from_parts(head, read.freeze()), trailers, again))
}

#[tokio::test]
async fn an_answer_is_read_as_its_head_says_however_its_bytes_are_cut() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let head = || request("HEAD", &[], Outgoing::Empty);
    // What is asked and answered; body, and whether the connection is used again.
    for (ask, answer, body, again) in [
        (get as fn() -> _, format!("{ok}content-length: 2\r\n\r\nab"), "ab", true),
        (get, format!("{ok}content-length: 2, 2\r\ncontent-length: 2\r\n\r\nab"), "ab", true),
        (get, format!("{ok}content-length: 0\r\n\r\n"), "", true),
        (get, format!("{ok}Content-Length:2\r\nConnection: close\r\n\r\nab"), "ab", false),
        (
            get,
            format!("{ok}content-length: 2\r\nconnection: x, Close\r\nconnection: keep-alive\r\n\r\nab"),
            "ab",
            false,
        ),
        (get, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab".to_owned(), "ab", false),
        (get, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab".to_owned(), "ab", false),
        (get, "HTTP/1.1 204 No Content\r\n\r\n".to_owned(), "", true),
        (get, "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n".to_owned(), "", true),
        (get, "HTTP/1.1 204 \r\ntransfer-encoding: chunked\r\n\r\n".to_owned(), "", false),
        (get, "HTTP/1.1 204 \r\ncontent-length: 2\r\n\r\n".to_owned(), "", false),
        (get, "HTTP/1.1 204 \r\ncontent-length: 0\r\n\r\n".to_owned(), "", true),
        (head, format!("{ok}content-length: 9\r\n\r\n"), "", true),
        (head, format!("{ok}transfer-encoding: chunked\r\n\r\n"), "", true),
        (
            get,
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n{ok}content-length: 1\r\n\r\na"
            ),
            "a",
            true,
        ),
        (get, format!("{ok}transfer-encoding: chunked\r\n\r\n1\r\na\r\n2 ;x=\"y\"\r\nbc\r\n0\r\n\r\n"), "abc", true),
        (get, format!("{ok}transfer-encoding: chunked\r\n\r\n0\r\n\r\n"), "", true),
        (
            get,
            format!("{ok}transfer-encoding: gzip, chunked\r\n\r\n00a\r\n0123456789\r\n000\r\n\r\n"),
            "0123456789",
            true,
        ),
        (
            get,
            format!("{ok}transfer-encoding: gzip\r\ntransfer-encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
            "a",
            true,
        ),
        // Who else has read the length has read another answer.
        (get, format!("{ok}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), "a", false),
        // What comes after an answer is not the next one.
        (get, format!("{ok}content-length: 2\r\n\r\nab\r\n"), "ab", false),
        (get, format!("{ok}content-length: 2\r\n\r\nab{ok}content-length: 0\r\n\r\n"), "ab", false),
        (get, format!("HTTP/1.1 204 \r\n\r\n{ok}"), "", false),
        (head, format!("{ok}content-length: 2\r\n\r\nab"), "", false),
    ] {
        for piece in 1..=answer.len() {
            let (read, trailers, kept) = answered(ask(), answer.as_bytes(), piece, false).await.unwrap();
            assert_eq!(
                (&read.body()[..], trailers, kept),
                (body.as_bytes(), None, again),
                "in pieces of {piece}: {answer}"
            );
        }
    }
    // What ends with the connection.
    for answer in
        [format!("{ok}\r\nab"), format!("{ok}transfer-encoding: gzip\r\n\r\nab"), "HTTP/1.0 200\r\n\r\nab".into()]
    {
        let (read, _, kept) = answered(get(), answer.as_bytes(), 3, true).await.unwrap();
        assert_eq!((&read.body()[..], kept), (&b"ab"[..], false), "{answer}");
    }
}

#[tokio::test]
async fn the_head_of_an_answer_is_given_as_it_came() {
    let answer = b"HTTP/1.0 299 So so\r\nX-A: 1\r\nx-a:  b\xe9 \r\nDate: now\r\n\r\n";
    let (read, ..) = answered(get(), answer, 7, true).await.unwrap();
    assert_eq!((read.status().as_u16(), read.version()), (299, Version::HTTP_10));
    let values: Vec<_> = read.headers().get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!((values, &read.headers()["date"]), (vec![&b"1"[..], b"b\xe9"], &HeaderValue::from_static("now")));
    assert_eq!(read.extensions().get::<hyper::ext::ReasonPhrase>().unwrap().as_bytes(), b"So so");
    let (read, ..) = answered(get(), b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 99, false).await.unwrap();
    assert_eq!((read.status(), read.headers().len()), (StatusCode::NOT_FOUND, 1), "nothing of the request's is left");
    assert!(read.extensions().is_empty());
}

#[tokio::test]
async fn trailers_are_given_at_the_end() {
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: 1\r\nx-b: 2\r\n\r\n";
    for piece in 1..answer.len() {
        let (read, given, again) = answered(get(), answer, piece, false).await.unwrap();
        let expected = trailers(&[("x-a", "1"), ("x-b", "2")]);
        assert_eq!((&read.body()[..], given, again), (&b"a"[..], Some(expected), true), "in pieces of {piece}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let chunked = |rest: &str| format!("{ok}transfer-encoding: chunked\r\n\r\n{rest}");
    let many = |text: &str, times| text.repeat(times);
    for answer in [
        "".to_owned(),
        ok.to_owned(),
        "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
        "HTTP/2.0 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 99 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_owned(),
        format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        format!("{ok}content-length: 1, 2\r\n\r\nab"),
        format!("{ok}content-length: -1\r\n\r\n"),
        format!("{ok}content-length: +1\r\n\r\na"),
        format!("{ok}content-length: \r\n\r\n"),
        format!("{ok}content-length: 18446744073709551616\r\n\r\n"),
        format!("{ok}content-length: 3\r\n\r\nab"),
        format!("{ok}x: a\0b\r\n\r\n"),
        format!("{ok}x : a\r\n\r\n"),
        format!("{ok}x: a\r\n b\r\n\r\n"),
        format!("{ok}transfer-encoding: xchunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked, identity\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding:\r\n\r\n"),
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        chunked("1\r\na\r\n"),
        chunked("\r\n"),
        chunked("z\r\n"),
        chunked("-1\r\n"),
        chunked("1 1\r\na"),
        chunked("1\na\r\n0\r\n\r\n"),
        chunked("1\r\nab\r\n0\r\n\r\n"),
        chunked("1\r\na\n0\r\n\r\n"),
        chunked("1;a\nb\r\na\r\n0\r\n\r\n"),
        chunked("10000000000000000\r\na"),
        chunked("0\r\n\n"),
        chunked("0\r\nx: y\n\r\n"),
        chunked("0\r\nx: y\nz: a\r\n\r\n"),
        chunked("0\r\n\nx: y\r\n\r\n"),
        chunked("0\r\nx\r\n\r\n"),
        chunked("0\r\nx: a\r\n b\r\n\r\n"),
        chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", many("x", 16 * 1024))),
        chunked(&format!("0\r\nx: {}\r\n\r\n", many("y", 16 * 1024))),
        chunked(&format!("0\r\n{}\r\n", many("x: y\r\n", 101))),
        format!("{ok}{}\r\n", many("x: y\r\n", 101)),
        format!("{ok}x: {}", many("y", 420_000)),
        many("\r\n", 101) + ok + "content-length: 0\r\n\r\n",
        many("\n", 101) + ok + "content-length: 0\r\n\r\n",
        many("HTTP/1.1 100 Continue\r\n\r\n", 1001) + ok + "content-length: 0\r\n\r\n",
    ] {
        let what: String = answer.chars().take(120).collect();
        for piece in [1.max(answer.len() / 50), answer.len().max(1)] {
            assert!(answered(get(), answer.as_bytes(), piece, true).await.is_err(), "{what}");
        }
    }
    // The controls: as much as is allowed.
    for answer in [
        chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", many("x", 16 * 1024 - 1))),
        chunked(&format!("0\r\n{}\r\n", many("x: y\r\n", 100))),
        format!("{ok}content-length: 0\r\n{}\r\n", many("x: y\r\n", 99)),
        format!("{ok}content-length: 0\r\nx: {}\r\n\r\n", many("y", 400_000)),
        many("HTTP/1.1 100 Continue\r\n\r\n", 1000) + ok + "content-length: 0\r\n\r\n",
        many("\r\n", 100) + ok + "content-length: 0\r\n\r\n",
    ] {
        for piece in [1.max(answer.len() / 500), answer.len()] {
            answered(get(), answer.as_bytes(), piece, false).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_to_be_closed_is_not_used_again() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (header, again) in
        [(("connection", "close"), false), (("connection", "keep-alive"), true), (("x-a", "close"), true)]
    {
        let (_, _, kept) = answered(request("GET", &[header], Outgoing::Empty), answer, 99, false).await.unwrap();
        assert_eq!(kept, again, "{header:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_quiet_until_something_comes_or_it_ends() {
    let (mut idle, theirs) = wire();
    assert!(idle.is_quiet() && idle.is_quiet());
    drop(theirs);
    assert!(!idle.is_quiet());
    let (mut idle, mut theirs) = wire();
    theirs.write_all(b"x").await.unwrap();
    assert!(!idle.is_quiet());
}

/// A connection that its other end resets when it goes.
async fn to_be_reset() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    (ours, theirs)
}

#[tokio::test]
async fn nothing_went_out_over_a_connection_that_is_closed_and_the_request_is_as_it_was() {
    let (ours, theirs) = to_be_reset().await;
    drop(theirs);
    ours.readable().await.unwrap();
    let idle = Wire::new(IoStream::Tcp(ours), Lines::default().line(), None);
    let unanswered = begin(idle, request("POST", &[("x-a", "1")], full("pay"))).err().unwrap();
    assert!(matches!(unanswered.error, Broken::Io(_)) && !unanswered.sent);
    // What is in a stream of the application's own nobody knows: it may be TLS, of which a part went out. But for one that has
    // ended before.
    let (idle, theirs) = wire();
    drop(theirs);
    assert!(!begin(idle, request("POST", &[], full("pay"))).err().unwrap().sent);
    let ((read, theirs), (write, _)) = (duplex(1), duplex(1));
    let io: Box<dyn Io> = Box::new(tokio::io::join(read, write));
    let wire = Wire::new(io.into(), Lines::default().line(), None);
    let mut flight = begin(wire, request("POST", &[], full("pay"))).ok().unwrap();
    drop(theirs);
    assert!(matches!(poll_fn(|cx| flight.poll_head(cx)).await, Err(Broken::Io(_))));
}

#[tokio::test]
async fn room_that_a_request_leaves_has_nothing_of_it_and_too_much_of_it_is_not_kept() {
    let (mut wire, mut theirs) = wire();
    for (headers, is_kept) in [(1, true), (MAX_ROOM + 1, false)] {
        let mut flight = begin(wire, get()).ok().unwrap();
        theirs.write_all(b"HTTP/1.1 204 No Content\r\nx-b: 1\r\n\r\n").await.unwrap();
        let answer = poll_fn(|cx| flight.poll_head(cx)).await.ok().unwrap();
        assert_eq!((answer.headers().len(), &answer.headers()["x-b"]), (1, &HeaderValue::from_static("1")));
        let Incoming::Http1(mut body) = answer.into_body() else { panic!("it is HTTP/1.1") };
        let names = (0..headers).map(|number| HeaderName::try_from(format!("x-{number}")).unwrap());
        body.leave_room(names.map(|name| (name, HeaderValue::from_static("of the request"))).collect());
        wire = body.into_wire().unwrap();
        assert_eq!((wire.headers.len(), wire.headers.capacity() > 0), (0, is_kept), "{headers}");
    }
    wire.shrink();
    assert_eq!(wire.headers.capacity(), 0);
}

#[test]
fn what_a_try_says_stands_in_place_of_the_requests_own_and_a_host_where_there_is_none() {
    let (a, host) = (HeaderName::from_static("x-a"), HeaderValue::from_static("given.test"));
    let beside = [(&a, HeaderValue::from_static("2"))];
    let written = |headers: &[(&'static str, &'static str)], beside| {
        let head = RequestHead {
            method: &Method::GET,
            uri: &"http://uri.test/a?b".parse().unwrap(),
            headers: &trailers(headers),
            host: Some(&host),
            beside,
        };
        let mut bytes = Vec::new();
        head.write(&Outgoing::Empty, &mut bytes).ok().unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let of = |host: &str, rest: &str| format!("GET /a?b HTTP/1.1\r\nhost: {host}\r\n{rest}\r\n");
    assert_eq!(written(&[], &[]), of("given.test", ""));
    assert_eq!(written(&[("host", "own.test")], &[]), of("own.test", ""));
    assert_eq!(written(&[("x-a", "1"), ("x-b", "1")], &[]), of("given.test", "x-a: 1\r\nx-b: 1\r\n"));
    assert_eq!(written(&[("x-a", "1"), ("x-b", "1")], &beside), of("given.test", "x-b: 1\r\nx-a: 2\r\n"));
    assert_eq!(written(&[], &beside), of("given.test", "x-a: 2\r\n"));
}

#[tokio::test]
async fn a_connection_that_ends_within_an_answer_is_another_thing_than_one_that_ends_before_it() {
    for came in ["", "HTTP/1.1 500 Inter", "HTTP/1.1 100 Continue\r\n\r\n", "H", "\r\n"] {
        let (wire, mut theirs) = wire();
        let mut flight = begin(wire, get()).ok().unwrap();
        theirs.write_all(came.as_bytes()).await.unwrap();
        drop(theirs);
        match poll_fn(|cx| flight.poll_head(cx)).await {
            Err(Broken::Http1(Error::Incomplete)) => assert_eq!(came, ""),
            Err(Broken::Http1(Error::Cut(_))) => assert_ne!(came, ""),
            _ => panic!("{came:?}"),
        }
    }
    for came in ["", "HTTP/1.1 500 Inter"] {
        let (ours, mut theirs) = to_be_reset().await;
        let mut flight = begin(Wire::new(IoStream::Tcp(ours), Lines::default().line(), None), get()).ok().unwrap();
        theirs.write_all(came.as_bytes()).await.unwrap();
        drop(theirs);
        match poll_fn(|cx| flight.poll_head(cx)).await {
            Err(Broken::Io(_)) => assert_eq!(came, ""),
            Err(Broken::Http1(Error::Cut(_))) => assert_ne!(came, ""),
            _ => panic!("{came:?} and a reset"),
        }
    }
}

#[tokio::test]
async fn a_body_without_end_lets_others_have_their_turn() {
    // Each is far more than one turn takes, and fails if it is read to the end.
    for (size, most) in [(0, 1 << 20), (20_000, 5000)] {
        // It takes all, and whoever writes is not asked to leave.
        let (read, mut theirs) = duplex(1024);
        let io: Box<dyn Io> = Box::new(tokio::io::join(read, tokio::io::sink()));
        let (piece, mut left) = (Bytes::from(vec![b'x'; size]), most);
        let frames = stream::poll_fn(move |_| {
            left -= 1;
            Poll::Ready(if left > 0 { Some(Ok(Frame::data(piece.clone()))) } else { Some(Err("it is not asked for")) })
        });
        let request = request("POST", &[], Payload::new(StreamBody::new(frames), 0).body());
        let wire = Wire::new(io.into(), Lines::default().line(), None);
        let answer = unconstrained(async {
            let mut flight = begin(wire, request).ok().unwrap();
            theirs.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            poll_fn(|cx| flight.poll_head(cx)).now_or_never().expect("it is heard meanwhile")
        });
        assert_eq!(answer.await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE, "pieces of {size} bytes");
    }
}

#[test]
fn an_answer_is_read_where_there_are_no_timers_and_ends_with_its_time() {
    let runtime = |timers| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let builder = if timers { builder.enable_time().start_paused(true) } else { &mut builder };
        builder.build().unwrap()
    };
    for ends in [false, true] {
        let (made_on, elsewhere) = (runtime(true), runtime(false));
        let (lines, (ours, mut theirs)) = (Lines::default(), duplex(1024));
        let io: Box<dyn Io> = Box::new(ours);
        let mut body = made_on.block_on(async {
            let mut flight = begin(Wire::new(io.into(), lines.line(), None), get()).ok().unwrap();
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na").await.unwrap();
            let answer = poll_fn(|cx| flight.poll_head(cx)).await.unwrap();
            lines.end_within(drain(std::time::Duration::from_secs(10)), || "it".into());
            let Incoming::Http1(body) = answer.into_body() else { panic!("it is HTTP/1.1") };
            body
        });
        elsewhere.block_on(async {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
            assert!(body.frame().now_or_never().is_none());
        });
        if ends {
            // Its timers with it: nobody is told then, and nothing panics.
            drop(made_on);
            assert!(elsewhere.block_on(async { body.frame().now_or_never() }).is_none());
            continue;
        }
        made_on.block_on(async {
            tokio::time::advance(std::time::Duration::from_secs(11)).await;
            // The task that has the timer is of that runtime as well.
            tokio::task::yield_now().await;
        });
        assert!(elsewhere.block_on(async { body.frame().now_or_never() }).unwrap().unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_never_waited_for_is_cut_off_all_the_same() {
    for limit in [Some(std::time::Duration::from_millis(9500)), None] {
        let (lines, (ours, mut theirs)) = (Lines::default(), duplex(1 << 20));
        let io: Box<dyn Io> = Box::new(ours);
        let mut flight = begin(Wire::new(io.into(), lines.line(), None), get()).ok().unwrap();
        theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let answer = poll_fn(|cx| flight.poll_head(cx)).await.unwrap();
        let Incoming::Http1(mut body) = answer.into_body() else { panic!("it is HTTP/1.1") };
        limit.iter().for_each(|limit| lines.end_within(drain(*limit), || "it".into()));
        for second in 0..20 {
            // More than is read at once.
            theirs.write_all(&[b'x'; 2 * READ]).await.unwrap();
            let read = body.frame().await.unwrap();
            assert_eq!(read.is_err(), limit.is_some() && second >= 10, "{limit:?} after {second} s");
            if read.is_err() {
                break;
            }
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
    }
}

/// A body that goes on for as long as its other end is there.
fn channel() -> (tokio::sync::mpsc::Sender<Bytes>, Outgoing) {
    let (give, mut take) = tokio::sync::mpsc::channel(1);
    let frames = stream::poll_fn(move |cx| {
        take.poll_recv(cx).map(|data| data.map(|data| Ok::<_, Infallible>(Frame::data(data))))
    });
    (give, Payload::new(StreamBody::new(frames), 0).body())
}

#[tokio::test]
async fn what_is_left_of_a_request_goes_out_though_nobody_looks_at_its_answer() {
    let (wire, mut theirs) = wire();
    let (give, body) = channel();
    let mut flight = begin(wire, request("POST", &[], body)).ok().unwrap();
    theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na").await.unwrap();
    let answer = poll_fn(|cx| flight.poll_head(cx)).await.unwrap();
    // The answer is held, and not read.
    let rest = Bytes::from_static(&[b'x'; 1000]);
    for _ in 0..20 {
        give.send(rest.clone()).await.unwrap();
    }
    drop(give);
    let mut seen = Vec::new();
    while !seen.ends_with(b"0\r\n\r\n") {
        theirs.read_buf(&mut seen).await.unwrap();
    }
    assert_eq!(seen.iter().filter(|byte| **byte == b'x').count(), 20_000 + "x.test".matches('x').count());
    theirs.write_all(b"bc").await.unwrap();
    let Incoming::Http1(mut body) = answer.into_body() else { panic!("it is HTTP/1.1") };
    assert_eq!(body.size_hint().exact(), Some(3));
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        read.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert_eq!((&read[..], body.is_end_stream()), (&b"abc"[..], true));
    assert!(body.into_wire().is_some(), "both are through");
}

#[tokio::test]
async fn an_answer_that_ends_before_its_request_ends_both() {
    for (rest, held) in [("0", ""), ("2", "ab")] {
        let (wire, mut theirs) = wire();
        let (give, body) = channel();
        let mut flight = begin(wire, request("POST", &[], body)).ok().unwrap();
        let answer = format!("HTTP/1.1 413 Content Too Large\r\ncontent-length: {rest}\r\n\r\n{held}");
        theirs.write_all(answer.as_bytes()).await.unwrap();
        let answer = poll_fn(|cx| flight.poll_head(cx)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let Incoming::Http1(mut body) = answer.into_body() else { panic!("it is HTTP/1.1") };
        while let Some(frame) = body.frame().await {
            assert_eq!(frame.unwrap().into_data().unwrap(), held);
        }
        assert!(body.into_wire().is_none(), "{rest}");
        // Nobody takes the rest.
        give.closed().await;
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).await.unwrap();
        assert!(!seen.ends_with(b"0\r\n\r\n"));
    }
}

#[tokio::test]
async fn a_peer_that_reads_no_further_is_heard_all_the_same() {
    for answers in [true, false] {
        let (ours, mut theirs) = duplex(64 * 1024);
        let io: Box<dyn Io> = Box::new(ours);
        let wire = Wire::new(io.into(), Lines::default().line(), None);
        let (give, body) = channel();
        let mut flight = begin(wire, request("POST", &[], body)).ok().unwrap();
        if answers {
            theirs.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        }
        drop(theirs);
        give.send(Bytes::from_static(b"more")).await.unwrap();
        let answer = poll_fn(|cx| flight.poll_head(cx)).await;
        if !answers {
            assert!(matches!(answer, Err(Broken::Io(_))), "what went wrong first");
            continue;
        }
        let Incoming::Http1(body) = answer.unwrap().into_body() else { panic!("it is HTTP/1.1") };
        assert_eq!(body.collect().await.unwrap().to_bytes(), "no");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_ends_with_its_endpoint_and_its_time() {
    let second = std::time::Duration::from_secs(1);
    for limit in [Some(10 * second), Some(std::time::Duration::MAX), None] {
        let lines = Lines::default();
        let (ours, mut theirs) = duplex(1024);
        let io: Box<dyn Io> = Box::new(ours);
        let mut flight = begin(Wire::new(io.into(), lines.line(), None), get()).ok().unwrap();
        let mut head = std::pin::pin!(poll_fn(|cx| flight.poll_head(cx)));
        assert!(poll!(&mut head).is_pending());
        limit.iter().for_each(|limit| lines.end_within(drain(*limit), || "it".into()));
        assert!(poll!(&mut head).is_pending());
        theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        let Incoming::Http1(mut body) = head.await.unwrap().into_body() else { panic!("it is HTTP/1.1") };
        tokio::time::advance(9 * second).await;
        assert!(body.frame().now_or_never().is_none());
        tokio::time::advance(2 * second).await;
        let ended = body.frame().now_or_never();
        assert_eq!(ended.is_some(), limit == Some(10 * second), "{limit:?}");
        assert!(ended.is_none_or(|frame| frame.unwrap().is_err()));
    }
}

#[tokio::test]
async fn a_large_answer_leaves_no_large_buffer_behind() {
    let (wire, mut theirs) = wire();
    let mut flight = begin(wire, request("POST", &[], full("x"))).ok().unwrap();
    let body = vec![b'x'; 1 << 19];
    theirs.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    theirs.write_all(&body).await.unwrap();
    let answer = poll_fn(|cx| flight.poll_head(cx)).await.unwrap();
    let Incoming::Http1(mut read) = answer.into_body() else { panic!("it is HTTP/1.1") };
    let mut largest = 0;
    while !read.is_end_stream() {
        largest = largest.max(read.frame().await.unwrap().unwrap().into_data().unwrap().len());
    }
    assert!(largest > READ, "it is read in larger and larger pieces: {largest}");
    let mut wire = read.into_wire().unwrap();
    assert!(wire.read.capacity() <= READ && wire.written.capacity() <= MAX_KEPT);
    wire.shrink();
    assert_eq!((wire.read.capacity(), wire.written.capacity()), (0, 0));
}

#[tokio::test]
async fn a_large_head_that_comes_bit_by_bit_leaves_no_large_buffer_behind() {
    for (length, kept) in [(100_000, false), (100, true)] {
        let (wire, mut theirs) = wire();
        let mut flight = begin(wire, get()).ok().unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nx-a: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(length));
        let mut answered = Poll::Pending;
        for piece in answer.as_bytes().chunks(1000) {
            theirs.write_all(piece).await.unwrap();
            answered = poll!(poll_fn(|cx| flight.poll_head(cx)));
            tokio::task::yield_now().await;
        }
        let Poll::Ready(answer) = answered else { panic!("it is complete") };
        let Incoming::Http1(read) = answer.unwrap().into_body() else { panic!("it is HTTP/1.1") };
        // Whatever is left of it would hold all of it.
        assert_eq!(read.into_wire().unwrap().read.capacity() > 0, kept, "a head of {length} bytes");
    }
}
