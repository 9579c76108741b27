//! Entry point for the fuzzer, for the replay of its corpus and for a property; not a part of the interface.
//!
//! hyper's own server reads what the watcher lets through. What hyper makes of the whole is what it makes, one by one, of the
//! messages into which the watcher cuts it: so each request that is served began where the watcher looks at a head. And the
//! own server of HTTP/1.1 gives the application what those two together do.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::time_provider::DefaultTimeProvider;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tower_service::Service;

use super::{At, Messages};
use crate::dates::Dates;
use crate::fuzzing::settle;
use crate::http1::Http1;
use crate::{Body, Config};

/// Reads a connection, cut into pieces as its first byte says.
///
/// # Panics
/// hyper and the watcher do not see the same messages; or one is served that says twice how long it is, or refused that
/// does not; or the own server serves others, or writes other answers.
pub(crate) fn messages(bytes: &[u8]) {
    let [how, raw @ ..] = bytes else { return };
    let (piece, how) = (usize::from(how / 2).max(1), How::of(*how));
    let Watched { text, starts, heads, refused } = watch(raw);
    let mut again = raw.to_vec();
    let mut watcher = Messages::new(Duration::MAX, Instant::now());
    again.chunks_mut(piece).for_each(|piece| watcher.see(piece));
    assert_eq!(again, text, "pieces of {piece} bytes are seen in another way");

    let (own, hypers) = (serve_own(raw, how), serve_with(&text, how));
    assert_eq!(own, hypers, "the own server of {:?}, {how:?}", String::from_utf8_lossy(raw));
    let served = serve(&text, piece);
    let shown = || String::from_utf8_lossy(raw);
    assert!(served.len() <= heads, "{heads} heads are seen, and served were {served:#?} of {:?}", shown());
    for (at, request) in served.iter().enumerate() {
        let end = starts.get(at + 1).copied().unwrap_or(text.len());
        let message = &text[starts[at]..end];
        assert_eq!(serve(message, piece), std::slice::from_ref(request), "the message {at} of {:?}", shown());
        assert!(says_one_length(message), "served is the message {at} of {:?}", shown());
    }
    // In trailers a line that ends unlike hyper's is refused whatever it says.
    if let Some((at, At::Name | At::Coding(_))) = refused {
        let good = says_one_length(&raw[at..]) && !serve(&raw[at..], piece).is_empty();
        assert!(!good, "refused is the message at {at} of {:?}", shown());
    }
}

/// Whether the head of a message says at most once how long its body is, to a plain reader of lines. hyper itself forgets
/// one of two.
fn says_one_length(message: &[u8]) -> bool {
    let lines = message.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).skip_while(|line| line.is_empty());
    let (mut length, mut codings) = (false, Vec::new());
    for line in lines.skip(1).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        length |= name.eq_ignore_ascii_case(super::LENGTH);
        if name.eq_ignore_ascii_case(super::CODING) {
            codings.push(value.get(1..).unwrap_or_default().trim_ascii().to_ascii_lowercase());
        }
    }
    codings.is_empty() || codings == [super::CHUNKED] && !length
}

/// What the watcher makes of a connection.
struct Watched {
    /// What it lets through.
    text: Vec<u8>,
    /// Where messages begin.
    starts: Vec<usize>,
    /// How many heads are whole.
    heads: usize,
    /// The beginning of the message that is refused, and where in it.
    refused: Option<(usize, At)>,
}

fn watch(raw: &[u8]) -> Watched {
    let mut watcher = Messages::new(Duration::MAX, Instant::now());
    let mut seen = Watched { text: raw.to_vec(), starts: vec![0], heads: 0, refused: None };
    for (at, byte) in seen.text.iter_mut().enumerate() {
        let before = watcher.at;
        watcher.see(std::slice::from_mut(byte));
        let now = watcher.at;
        if *byte != raw[at] {
            seen.refused = Some((seen.starts[seen.starts.len() - 1], before));
        }
        if before == At::Name && *byte == b'\n' && now != At::Name {
            seen.heads += 1;
        }
        if before != At::First && now == At::First {
            seen.starts.push(at + 1);
        }
    }
    seen
}

/// A request as an application gets it.
#[derive(Debug)]
struct Served {
    head: request::Parts,
    /// `None` = it is not whole.
    body: Option<Result<(Bytes, Option<HeaderMap>), String>>,
}

impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        let key = |request: &Self| {
            let head = &request.head;
            (head.method.clone(), head.uri.clone(), head.version, head.headers.clone(), request.body.clone())
        };
        key(self) == key(other)
    }
}

/// How the bytes of a connection come and go.
#[derive(Clone, Copy, Debug)]
struct How {
    piece: usize,
    /// Nothing is there between two pieces, and no more is taken than one. (Of a write that waits hyper gives up the 400.)
    halting: bool,
}

impl How {
    fn of(byte: u8) -> Self {
        Self { piece: usize::from(byte / 2).max(1), halting: byte % 2 == 1 }
    }

    fn line(self, bytes: &[u8], written: &Written) -> Line {
        Line { bytes: Bytes::copy_from_slice(bytes), how: self, rests: false, written: written.clone() }
    }
}

const LAST: [&str; 3] = ["HTTP/1.1 400 Bad Request", "connection: close", "content-length: 0"];

type Written = Arc<Mutex<Vec<u8>>>;

/// What hyper gives to an application.
fn serve(bytes: &[u8], piece: usize) -> Vec<Served> {
    serve_with(bytes, How { piece, halting: false }).0
}

/// The same, and what it answers.
fn serve_with(bytes: &[u8], how: How) -> (Vec<Served>, Vec<Vec<String>>) {
    let (served, written) = (Arc::<Mutex<Vec<Served>>>::default(), Written::default());
    let note = served.clone();
    let service = service_fn(move |request: Request<Incoming>| answer(Body::of(request, None), note.clone()));
    let line = TokioIo::new(how.line(bytes, &written));
    settle(&mut Box::pin(http1::Builder::new().half_close(false).serve_connection(line, service).with_upgrades()));
    (std::mem::take(&mut *served.lock()), lines(&written.lock()))
}

/// What the own server gives to it, and answers.
fn serve_own(bytes: &[u8], how: How) -> (Vec<Served>, Vec<Vec<String>>) {
    let (served, written) = (Arc::<Mutex<Vec<Served>>>::default(), Written::default());
    let mut hyper = http1::Builder::new();
    // There is no runtime, and no timer.
    hyper.half_close(false).header_read_timeout(None);
    let mut config = Config::default();
    (config.idle_timeout, config.header_read_timeout, config.body_idle_timeout) = (Duration::MAX, Duration::MAX, None);
    let http1 = Http1::new(&config, hyper, Arc::new(Dates::new(Arc::new(DefaultTimeProvider))));
    settle(&mut Box::pin(http1.serve(how.line(bytes, &written), None, Application(served.clone()))));
    (std::mem::take(&mut *served.lock()), lines(&written.lock()))
}

/// The parts of what was written that an empty line divides, each with its lines in order: which header comes first says
/// nothing, and the date is another one. Without the last word to what is no head: one that is not whole is looked at by hyper as often
/// as it comes in pieces, or not before it is whole.
fn lines(written: &[u8]) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(written);
    let part = |part: &str| {
        let mut lines: Vec<_> =
            part.split("\r\n").filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    text.split("\r\n\r\n").map(part).filter(|part| !part.iter().eq(LAST)).collect()
}

#[derive(Clone)]
struct Application(Arc<Mutex<Vec<Served>>>);

impl Service<Request<Body>> for Application {
    type Response = Response<Content>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(answer(request, self.0.clone()))
    }
}

type Content = BoxBody<Bytes, Infallible>;

/// An application that reads each body and switches no protocol, as the inbound layer has it end then. What it answers depends on
/// what it is asked.
async fn answer<B>(request: Request<B>, served: Arc<Mutex<Vec<Served>>>) -> Result<Response<Content>, Infallible>
where
    B: http_body::Body<Data = Bytes, Error: Display>,
{
    let switches = request.extensions().get::<OnUpgrade>().is_some();
    let (head, body) = request.into_parts();
    let mut response = Response::new(match head.uri.path().len() {
        2 => Full::new(Bytes::from_static(b"hello\r\n\r\n")).boxed(),
        3 => {
            let trailers = HeaderMap::from_iter([(SUM, HeaderValue::from_static("7"))]);
            let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers)].map(Ok);
            BodyExt::boxed(StreamBody::new(stream::iter(frames)))
        }
        _ => Empty::new().boxed(),
    });
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    let at = {
        let mut served = served.lock();
        served.push(Served { head, body: None });
        served.len() - 1
    };
    let body = body.collect().await.map(|body| (body.trailers().cloned(), body.to_bytes()));
    let broken = body.is_err();
    served.lock()[at].body = Some(body.map(|(trailers, all)| (all, trailers)).map_err(|e| e.to_string()));
    if switches || broken {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

const SUM: HeaderName = HeaderName::from_static("x-sum");

/// Gives its bytes piece by piece, then none; notes what is written.
struct Line {
    bytes: Bytes,
    how: How,
    rests: bool,
    written: Written,
}

impl Line {
    /// Whether it is to be asked again, this time.
    fn rests(&mut self, cx: &mut Context<'_>) -> bool {
        self.rests = self.how.halting && !self.rests;
        if self.rests {
            cx.waker().wake_by_ref();
        }
        self.rests
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.how.piece.min(self.bytes.len()).min(into.remaining());
        if length == 0 || self.rests(cx) {
            return Poll::Pending;
        }
        into.put_slice(&self.bytes.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let length = if self.how.halting { self.how.piece.min(bytes.len()) } else { bytes.len() };
        self.written.lock().extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::replay;

    const SEEDS: [&[u8]; 17] = [
        b"\x01GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x03POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\nGET /a HTTP/GET /2 HTTP/1.1\r\n\r\n",
        b"\x07POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;a=\"b\"\r\na\r\n\r\n\r\n000A \r\n0123456789\r\n0\r\nx: y\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\x01POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\nCONNECT a:1 HTTP/1.1\r\n\r\nPOST /two HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x10POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\x02POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"\x01CONNECT a:1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\xffGET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\x05GET / HTTP/1.0\r\nupgrade: websocket\r\nconnection: keep-alive\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\x01\r\n\r\nGET / HTTP/1.1\n\nGET /2 HTTP/1.1\nhost: a\r\n\nGET /3 HTTP/1.1\r\n\r\n",
        b"\x04POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nxGET /2 HTTP/1.1\r\n\r\n",
        b"\x01POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
        b"\x09POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nokGET /2 HTTP/1.1\r\n\r\n",
        b"\x01GET / HTTP/1.1\r\na: b\r\n folded: c\r\ncontent-length : 3\r\n\r\nabc",
        b"\x01POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0;\nx\r\n\r\n1\r\n\r\n0\r\n\r\n",
        b"\x06HEAD / HTTP/1.1\r\nconnection: close\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\x01POST / HTTP/1.1\r\ntransfer-encoding:\t chunked \t\r\nhost: a\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
    ];
    const LINES: [&str; 7] = [
        "GET / HTTP/1.1\r\n",
        "POST /p HTTP/1.1\r\n",
        "GET /bc HTTP/1.1\r\n",
        "HEAD /h HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "GET /old HTTP/1.0\r\n",
        "\r\nPUT /n HTTP/1.1\n",
    ];
    const FIELDS: [&str; 13] = [
        "host: a\r\n",
        "content-length: 3\r\n",
        "Content-Length:5\r\n",
        "content-length: \t 0 \r\n",
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding:\tChunked \t\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "upgrade: a\r\n",
        "connection: keep-alive\n",
        "connection: close\r\n",
        "te: trailers\r\n",
        "expect: 100-continue\r\n",
        "x-transfer-encoding: gzip\r\n",
    ];
    const BODIES: [&str; 8] = [
        "",
        "abc",
        "GET /",
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx: y\r\n\r\n",
        "00A;x=\"y\" \r\n0123456789\r\n0 ;z\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "ffffffffffffffff\r\n",
    ];
    const REST: [&str; 8] = ["\r\n", "\n", "\r", " ", ":", ";", "18446744073709551616", "0\r\n"];

    fn one_of<const N: usize>(texts: [&'static str; N]) -> impl Strategy<Value = Vec<u8>> {
        prop::sample::select(texts.to_vec()).prop_map(|text| text.as_bytes().to_vec())
    }

    /// A message, good or not.
    fn message() -> impl Strategy<Value = Vec<u8>> {
        let fields = prop::collection::vec(one_of(FIELDS), 0..4);
        (one_of(LINES), fields, one_of(["\r\n", "\n"]), one_of(BODIES))
            .prop_map(|(line, fields, end, body)| [line, fields.concat(), end, body].concat())
    }

    /// What may stand between them, or in them.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            one_of(LINES),
            one_of(FIELDS),
            one_of(BODIES),
            one_of(REST),
            prop::collection::vec(any::<u8>(), 0..4)
        ]
    }

    #[test]
    fn the_corpus_of_connections_is_replayed() {
        replay("messages", &SEEDS, messages);
    }

    #[test]
    fn the_seeds_are_read_as_far_as_they_are_meant_to() {
        let count = |seed: &[u8]| serve(&watch(&seed[1..]).text, 1).len();
        assert_eq!(SEEDS.map(count), [2, 2, 2, 1, 0, 0, 1, 1, 2, 3, 2, 1, 2, 0, 1, 1, 2]);
    }

    /// The control: what hyper serves of the same bytes when nobody watches.
    #[test]
    fn without_a_watcher_messages_of_two_readings_are_served() {
        for (seed, served) in [(SEEDS[3], 2), (SEEDS[4], 1), (SEEDS[5], 1)] {
            assert_eq!(serve(&seed[1..], 1).len(), served);
        }
        assert!(
            !says_one_length(&SEEDS[4][1..]) && !says_one_length(&SEEDS[5][1..]) && says_one_length(&SEEDS[0][1..])
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn hyper_serves_what_the_watcher_looks_at(
            parts in prop::collection::vec(prop_oneof![
                4 => message(),
                1 => piece(),
                1 => prop::sample::select(SEEDS.to_vec()).prop_map(|seed| seed[1..].to_vec()),
            ], 1..6),
            changes in prop::collection::vec((any::<prop::sample::Index>(), piece(), 0..3_usize), 0..3),
            split in any::<u8>(),
        ) {
            let mut bytes = [vec![split], parts.concat()].concat();
            for (at, piece, cut) in changes {
                let at = 1 + at.index(bytes.len());
                let (at, end) = (at.min(bytes.len()), (at + cut).min(bytes.len()));
                bytes.splice(at..end, piece);
            }
            messages(&bytes);
        }
    }
}
