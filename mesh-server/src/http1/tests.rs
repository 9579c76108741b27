use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderValue, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use mesh_testkit::clock;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::sleep_until;

use super::*;
use crate::fuzzing::settle;
use crate::inbound::http1_builder;

type Content = BoxBody<Bytes, BoxError>;

/// What an application answers with.
type Answers = fn(Request<Body>) -> BoxFuture<'static, Response<Content>>;

#[derive(Clone)]
struct Application {
    answers: Answers,
    // Calls that were begun and not dropped.
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service<Request<Body>> for Application {
    type Response = Response<Content>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Content>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.open.fetch_add(1, Ordering::Relaxed);
        let (open, answer) = (Open(self.open.clone()), (self.answers)(request));
        Box::pin(async move {
            let _open = open;
            Ok(answer.await)
        })
    }
}

#[derive(Debug)]
struct Standing;

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(784_111_777)))
    }
}

const DATE: &str = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

type Connection = Pin<Box<Http1Connection<DuplexStream, Application, Content>>>;

/// A connection to an application, what the peer has of it, and how many calls are open.
fn connect(answers: Answers, config: &Config) -> (Connection, DuplexStream, Arc<AtomicUsize>) {
    let (ours, theirs) = duplex(1 << 20);
    let http1 = Http1::new(config, http1_builder(config), Arc::new(Dates::new(Arc::new(Standing))));
    let open = Arc::<AtomicUsize>::default();
    let application = Application { answers, open: open.clone() };
    (Box::pin(http1.serve(theirs, None, application)), ours, open)
}

fn is_handed(connection: &Connection) -> bool {
    matches!(connection.step, Step::Handed { .. })
}

/// What has come so far.
fn come(peer: &mut DuplexStream) -> String {
    let mut all = BytesMut::new();
    while peer.read_buf(&mut all).now_or_never().is_some_and(|read| read.unwrap() > 0) {}
    String::from_utf8(all.into()).unwrap()
}

fn full(text: &'static str) -> Content {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}

fn hello(_: Request<Body>) -> BoxFuture<'static, Response<Content>> {
    Box::pin(ready(Response::new(full("hello"))))
}

/// Says which request it was, and with what body.
fn echo(request: Request<Body>) -> BoxFuture<'static, Response<Content>> {
    Box::pin(async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body));
        Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
    })
}

/// What the peer gets for bytes that come at once, and whether hyper served them.
async fn answer_to(answers: Answers, bytes: &str) -> (String, bool) {
    let (mut connection, mut peer, _) = connect(answers, &Config::default());
    peer.write_all(bytes.as_bytes()).await.unwrap();
    let _ = settle(&mut connection);
    (come(&mut peer), is_handed(&connection))
}

fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}content-length: {}\r\n{DATE}\r\n{body}", body.len())
}

#[tokio::test]
async fn requests_as_nearly_all_are_are_served_here_one_after_the_other() {
    let post = "POST /b?c HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\n\r\nabc";
    let all = format!("GET / HTTP/1.1\r\nhost: a\r\n\r\n\r\n{post}HEAD /h HTTP/1.1\r\nhost: a\r\n\r\n");
    let (got, handed) = answer_to(echo, &all).await;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n{DATE}\r\n");
    assert_eq!(got, [ok("", "GET / "), ok("", "POST /b?c abc"), head].concat());
    assert!(!handed);
}

#[tokio::test]
async fn what_is_anything_else_is_hypers() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(READ));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    for (bytes, status) in [
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "200"),
        ("POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab", "200"),
        ("POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 1\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\ncontent-length: +2\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nab", ""),
        ("POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n", "100"),
        ("GET / HTTP/1.0\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: a\r\n\r\n", "200"),
        ("CONNECT a:1 HTTP/1.1\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\nno header\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost", ""),
        ("GET http:// HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("\0", "400"),
        (&long, "200"),
        (&many, "431"),
    ] {
        let (got, handed) = answer_to(echo, bytes).await;
        assert!(handed, "{bytes:?}");
        assert_eq!(got.get(9..12).unwrap_or_default(), status, "{bytes:?}");
    }
    // After others, too; and those that follow it are hyper's as well.
    let plain = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n";
    let (got, handed) =
        answer_to(echo, &format!("{plain}POST /2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{plain}"))
            .await;
    assert!(handed);
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 3, "{got}");
    assert!(got.contains("GET /1 ") && got.contains("POST /2 "), "{got}");
}

#[tokio::test]
async fn a_request_whose_end_is_there_when_it_is_looked_for_is_served_here() {
    let (mut connection, mut peer, _) = connect(echo, &Config::default());
    assert!(settle(&mut connection).is_none());
    peer.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab").await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert_eq!(come(&mut peer), ok("", "POST / ab"));
    peer.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na").await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert!(is_handed(&connection));
    peer.write_all(b"b").await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert!(come(&mut peer).ends_with("POST / ab"));
}

/// The head and the body of one answer, and whether the connection goes on after it.
async fn sent(answers: Answers, request: &str) -> (String, bool) {
    let (mut connection, mut peer, _) = connect(answers, &Config::default());
    peer.write_all(request.as_bytes()).await.unwrap();
    let goes_on = settle(&mut connection).is_none();
    assert!(!is_handed(&connection));
    (come(&mut peer), goes_on)
}

fn with(change: fn(&mut Response<Content>)) -> BoxFuture<'static, Response<Content>> {
    let mut response = Response::new(full("hello"));
    change(&mut response);
    Box::pin(ready(response))
}

fn say(response: &mut Response<Content>, name: header::HeaderName, value: &'static str) {
    response.headers_mut().append(name, HeaderValue::from_static(value));
}

/// Lets others have their turn.
async fn turn() {
    let mut waits = true;
    std::future::poll_fn(|cx| {
        if std::mem::take(&mut waits) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Each frame is waited for, so that those before it have gone out.
fn in_pieces(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Content {
    let waited = |frame| async {
        turn().await;
        frame
    };
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames).then(waited)))
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn an_answer_says_how_long_it_is_and_no_more_than_is_true() {
    let table: [(Answers, &str, String, bool); 14] = [
        (hello, GET, ok("", "hello"), true),
        (hello, "HEAD / HTTP/1.1\r\n\r\n", format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n{DATE}\r\n"), true),
        (
            hello,
            "GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n",
            ok("", "hello").replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
            false,
        ),
        (|_| with(|r| say(r, header::CONNECTION, "close")), GET, ok("connection: close\r\n", "hello"), false),
        (|_| with(|r| say(r, header::CONTENT_LENGTH, "5")), GET, ok("", "hello"), true),
        (|_| with(|r| say(r, header::DATE, "now")), GET, ok("date: now\r\n", "hello").replace(DATE, ""), true),
        (|_| with(|r| *r.body_mut() = full("")), GET, ok("", ""), true),
        // Of nothing more is said than there is, but in the place of another answer.
        (
            |_| {
                with(|r| {
                    *r.body_mut() = full("");
                    say(r, header::CONTENT_LENGTH, "7");
                })
            },
            GET,
            ok("", ""),
            true,
        ),
        (
            |_| {
                with(|r| {
                    *r.body_mut() = full("");
                    say(r, header::CONTENT_LENGTH, "7");
                })
            },
            "HEAD / HTTP/1.1\r\n\r\n",
            format!("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n{DATE}\r\n"),
            true,
        ),
        (
            |_| {
                with(|r| {
                    *r.status_mut() = StatusCode::NO_CONTENT;
                    say(r, header::CONTENT_LENGTH, "5");
                })
            },
            GET,
            format!("HTTP/1.1 204 No Content\r\n{DATE}\r\n"),
            true,
        ),
        (
            |_| {
                with(|r| {
                    *r.status_mut() = StatusCode::NOT_MODIFIED;
                    say(r, header::CONTENT_LENGTH, "5");
                })
            },
            GET,
            format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n{DATE}\r\n"),
            true,
        ),
        (
            |_| {
                with(|r| {
                    r.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b"Fine"));
                })
            },
            GET,
            ok("", "hello").replace("OK", "Fine"),
            true,
        ),
        (
            |_| with(|r| *r.status_mut() = StatusCode::from_u16(599).unwrap()),
            GET,
            ok("", "hello").replace("200 OK", "599 <none>"),
            true,
        ),
        (|_| with(|r| *r.version_mut() = Version::HTTP_10), GET, ok("", "hello"), true),
    ];
    for (at, (answers, request, want, goes_on)) in table.into_iter().enumerate() {
        assert_eq!(sent(answers, request).await, (want, goes_on), "{at}: {request}");
    }
    // What would be taken for another message is none.
    let fail = format!("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n{DATE}\r\n");
    let wrong: [Answers; 4] = [
        |_| with(|r| say(r, header::CONTENT_LENGTH, "4")),
        |_| with(|r| say(r, header::CONTENT_LENGTH, "x")),
        |_| {
            with(|r| {
                say(r, header::CONTENT_LENGTH, "5");
                say(r, header::CONTENT_LENGTH, "6");
            })
        },
        |_| with(|r| *r.status_mut() = StatusCode::SWITCHING_PROTOCOLS),
    ];
    for answers in wrong {
        assert_eq!(sent(answers, GET).await, (fail.clone(), false));
    }
}

#[tokio::test]
async fn an_answer_of_unknown_length_goes_in_chunks_with_the_trailers_that_it_announces() {
    fn pieces(announced: bool) -> BoxFuture<'static, Response<Content>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        trailers.insert("x-else", HeaderValue::from_static("8"));
        let data = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        let body = in_pieces(vec![data("hello "), data(""), data("you"), Ok(Frame::trailers(trailers))]);
        let mut response = Response::new(body);
        if announced {
            say(&mut response, header::TRAILER, "x-sum");
        }
        Box::pin(ready(response))
    }
    let chunks = "6\r\nhello \r\n3\r\nyou\r\n0\r\n";
    let head = format!("transfer-encoding: chunked\r\n{DATE}\r\n{chunks}");
    let takes = "GET / HTTP/1.1\r\nhost: a\r\nTE: gzip, trailers\r\n\r\n";
    for request in [GET, takes] {
        assert_eq!(sent(|_| pieces(false), request).await, (format!("HTTP/1.1 200 OK\r\n{head}\r\n"), true));
    }
    let announced = format!("HTTP/1.1 200 OK\r\ntrailer: x-sum\r\n{head}");
    assert_eq!(sent(|_| pieces(true), takes).await, (format!("{announced}x-sum: 7\r\n\r\n"), true));
    assert_eq!(sent(|_| pieces(true), GET).await, (format!("{announced}\r\n"), true));
    // What is larger than what is written at once.
    let (got, goes_on) = sent(
        |_| with(|r| *r.body_mut() = Full::new(vec![b'x'; 300_000].into()).map_err(|never| match never {}).boxed()),
        GET,
    )
    .await;
    assert!(got.ends_with(&format!("\r\n\r\n{}", "x".repeat(300_000))) && goes_on);
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_its_connection_without_an_end() {
    let broken: [(Answers, &str); 3] = [
        (
            |_| {
                with(|r| {
                    *r.body_mut() = in_pieces(vec![Ok(Frame::data(Bytes::from_static(b"half"))), Err("torn".into())])
                })
            },
            "torn",
        ),
        (
            |_| {
                with(|r| {
                    *r.body_mut() = in_pieces(vec![Ok(Frame::data(Bytes::from_static(b"half")))]);
                    say(r, header::CONTENT_LENGTH, "5");
                })
            },
            "shorter",
        ),
        // Longer than it says: the rest is no other answer's.
        (
            |_| {
                with(|r| {
                    *r.body_mut() = in_pieces(vec![Ok(Frame::data(Bytes::from_static(b"halfway")))]);
                    say(r, header::CONTENT_LENGTH, "4");
                })
            },
            "",
        ),
    ];
    for (answers, why) in broken {
        let (mut connection, mut peer, _) = connect(answers, &Config::default());
        peer.write_all(GET.as_bytes()).await.unwrap();
        match settle(&mut connection) {
            Some(ended) => assert!(ended.unwrap_err().to_string().contains(why) && !why.is_empty(), "{why}"),
            None => assert_eq!((why, come(&mut peer).split_once("\r\n\r\n").unwrap().1), ("", "half")),
        }
        drop(connection);
        let rest = come(&mut peer);
        assert_eq!(rest.contains("half"), why == "torn", "{rest}");
        assert!(!rest.contains("0\r\n\r\n"), "{rest}");
    }
}

#[tokio::test]
async fn who_goes_away_has_its_request_given_up_however_far_it_was() {
    let waits: [Answers; 2] = [
        |_| Box::pin(pending()),
        |_| with(|r| *r.body_mut() = BodyExt::boxed(StreamBody::new(futures_util::stream::pending()))),
    ];
    for answers in waits {
        let (mut connection, mut peer, open) = connect(answers, &Config::default());
        peer.write_all(GET.as_bytes()).await.unwrap();
        assert!(settle(&mut connection).is_none());
        peer.shutdown().await.unwrap();
        let ended = settle(&mut connection).unwrap();
        assert!(ended.unwrap_err().to_string().contains("gone away"));
        drop(connection);
        assert_eq!(open.load(Ordering::Relaxed), 0);
    }
    // Who is served at once may have closed its half: the answer is there.
    let (mut connection, mut peer, _) = connect(hello, &Config::default());
    peer.write_all(GET.as_bytes()).await.unwrap();
    peer.shutdown().await.unwrap();
    settle(&mut connection).unwrap().unwrap();
    assert_eq!(come(&mut peer), ok("", "hello"));
    // Who has sent the next request is heard of when the answer is sent.
    let (mut connection, mut peer, open) = connect(|_| Box::pin(pending()), &Config::default());
    peer.write_all(format!("{GET}{GET}").as_bytes()).await.unwrap();
    peer.shutdown().await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert_eq!(open.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_that_leaves_ends_with_the_answer_that_is_on_its_way() {
    let answers: Answers = |_| {
        Box::pin(async { Response::new(full("late")) }.then(|r| async {
            turn().await;
            r
        }))
    };
    let (mut connection, mut peer, _) = connect(answers, &Config::default());
    peer.write_all(format!("{GET}{GET}").as_bytes()).await.unwrap();
    assert!((&mut connection).now_or_never().is_none());
    connection.as_mut().leave();
    connection.await.unwrap();
    let want = ok("", "late").replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    assert_eq!(come(&mut peer), want);
    for begun in [false, true] {
        let (mut connection, mut peer, _) = connect(hello, &Config::default());
        if begun {
            peer.write_all(GET.as_bytes()).await.unwrap();
        }
        assert!(settle(&mut connection).is_none());
        connection.as_mut().leave();
        connection.await.unwrap();
        assert_eq!(come(&mut peer).is_empty(), !begun);
    }
    // And where it is hyper's.
    let (mut connection, mut peer, _) = connect(echo, &Config::default());
    peer.write_all(b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n").await.unwrap();
    assert!(settle(&mut connection).is_none() && is_handed(&connection));
    connection.as_mut().leave();
    peer.write_all(b"x").await.unwrap();
    connection.await.unwrap();
    assert!(come(&mut peer).contains("connection: close"));
}

/// Its answer's body comes after 90 seconds.
fn late(_: Request<Body>) -> BoxFuture<'static, Response<Content>> {
    let body = async {
        sleep_until(Instant::now() + Duration::from_secs(90)).await;
        Ok(Frame::data(Bytes::from_static(b"x")))
    };
    Box::pin(ready(Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::once(body))))))
}

/// An answer that takes a minute and a half of its thread.
fn laborious(_: Request<Body>) -> BoxFuture<'static, Response<Content>> {
    let pieces = futures_util::stream::once(async {
        // The clock goes on with its first poll.
        let _ = tokio::time::advance(Duration::from_secs(90)).now_or_never();
        Ok(Frame::data(Bytes::from_static(b"x")))
    });
    Box::pin(ready(Response::new(BodyExt::boxed(StreamBody::new(pieces)))))
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_silent_for_as_long_as_it_may_be_and_empty_lines_say_nothing() {
    let mut config = Config { idle_timeout: Duration::from_secs(60), ..Config::default() };
    let (mut connection, mut peer, _) = connect(hello, &config);
    for _ in 0..3 {
        peer.write_all(GET.as_bytes()).await.unwrap();
        assert!(settle(&mut connection).is_none());
        clock::pass(Duration::from_secs(40)).await;
        assert!(settle(&mut connection).is_none());
        peer.write_all(b"\r\n\n").await.unwrap();
        assert!(settle(&mut connection).is_none());
    }
    clock::pass(Duration::from_secs(19)).await;
    assert!(settle(&mut connection).is_none());
    let end = Instant::now() + Duration::from_secs(1);
    connection.await.unwrap();
    sleep_until(end).now_or_never().expect("it is not earlier");
    // An answer that takes longer than that is none, nor is its time.
    let (mut connection, mut peer, _) = connect(late, &config);
    peer.write_all(GET.as_bytes()).await.unwrap();
    assert!(settle(&mut connection).is_none());
    clock::pass(Duration::from_secs(90)).await;
    assert!(settle(&mut connection).is_none());
    assert!(come(&mut peer).ends_with("0\r\n\r\n"));
    clock::pass(Duration::from_secs(59)).await;
    assert!(settle(&mut connection).is_none());
    clock::pass(Duration::from_secs(1)).await;
    assert!(settle(&mut connection).is_some());
    // Nor where it is at work and waits for nothing.
    let (mut connection, mut peer, _) = connect(laborious, &config);
    peer.write_all(GET.as_bytes()).await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert!(come(&mut peer).ends_with("0\r\n\r\n"));
    clock::pass(Duration::from_secs(59)).await;
    assert!(settle(&mut connection).is_none());
    // Beyond all time there is no end.
    config.idle_timeout = Duration::MAX;
    let (mut connection, mut peer, _) = connect(hello, &config);
    assert!(settle(&mut connection).is_none());
    peer.write_all(b"GET").await.unwrap();
    assert!(settle(&mut connection).is_none() && is_handed(&connection));
    // A request that is served is not silence.
    let (mut connection, mut peer, open) = connect(|_| Box::pin(pending()), &Config::default());
    peer.write_all(GET.as_bytes()).await.unwrap();
    assert!(settle(&mut connection).is_none());
    clock::pass(Duration::from_secs(600)).await;
    assert!(settle(&mut connection).is_none());
    assert_eq!(open.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_in_pieces_has_its_time_from_its_first_byte_on() {
    let table = [("", 9, true), ("", 11, false), (GET, 9, true), (GET, 11, false), ("\r\n", 9, true)];
    for ((before, seconds, served), known) in table.into_iter().flat_map(|row| [(row, false), (row, true)]) {
        let (mut connection, mut peer, _) = connect(hello, &Config::default());
        connection.wire.as_mut().unwrap().begun = known.then(Instant::now);
        peer.write_all(before.as_bytes()).await.unwrap();
        assert!(settle(&mut connection).is_none());
        clock::pass(Duration::from_secs(40)).await;
        peer.write_all(&GET.as_bytes()[..20]).await.unwrap();
        assert!(settle(&mut connection).is_none() && is_handed(&connection));
        come(&mut peer);
        clock::pass(Duration::from_secs(seconds)).await;
        let ended = settle(&mut connection).is_some();
        peer.write_all(&GET.as_bytes()[20..]).await.unwrap();
        assert_eq!((ended, ended || settle(&mut connection).is_none()), (!served, true), "{before:?} {seconds}");
        assert_eq!(come(&mut peer).starts_with("HTTP/1.1 200"), served, "{before:?} {seconds}");
    }
}

/// Is ready when it is told so.
#[derive(Clone)]
struct Slow(Arc<AtomicBool>, Application);

impl Service<Request<Body>> for Slow {
    type Response = Response<Content>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Content>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.0.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.1.call(request)
    }
}

#[tokio::test]
async fn a_service_is_called_when_it_is_ready() {
    let (ours, theirs) = duplex(1 << 16);
    let (mut peer, config) = (ours, Config::default());
    let http1 = Http1::new(&config, http1_builder(&config), Arc::new(Dates::new(Arc::new(Standing))));
    let application = Application { answers: echo, open: Arc::default() };
    let is_ready = Arc::<AtomicBool>::default();
    let slow = Slow(is_ready.clone(), application);
    let mut connection = Box::pin(http1.serve(theirs, None, slow));
    peer.write_all(b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab").await.unwrap();
    assert!((&mut connection).now_or_never().is_none());
    assert_eq!(come(&mut peer), "");
    is_ready.store(true, Ordering::Relaxed);
    assert!(settle(&mut connection).is_none());
    assert_eq!(come(&mut peer), ok("", "POST / ab"));
}

#[tokio::test]
async fn an_answer_that_nobody_reads_waits_and_is_not_gathered() {
    let (ours, theirs) = duplex(1024);
    let (mut peer, config) = (ours, Config::default());
    let http1 = Http1::new(&config, http1_builder(&config), Arc::new(Dates::new(Arc::new(Standing))));
    let taken = Arc::<AtomicUsize>::default();
    let count = taken.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        let count = count.clone();
        let pieces = futures_util::stream::iter(0..1000).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 1000])))
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(pieces))))
    });
    let mut connection = Box::pin(http1.serve(theirs, None, service));
    peer.write_all(GET.as_bytes()).await.unwrap();
    assert!(settle(&mut connection).is_none());
    assert!(taken.load(Ordering::Relaxed) < 30, "{taken:?}");
}

/// Fails once it is cut, for who asks.
struct Cut(DuplexStream, Arc<AtomicBool>);

impl Cut {
    fn check(&self) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_whatever_its_peer_has_sent_meanwhile() {
    for bytes in [GET.to_owned(), format!("{GET}{GET}"), format!("{GET}G")] {
        let (mut peer, theirs) = duplex(1 << 16);
        let (config, cut) = (Config::default(), Arc::<AtomicBool>::default());
        let http1 = Http1::new(&config, http1_builder(&config), Arc::new(Dates::new(Arc::new(Standing))));
        let application = Application { answers: |_| Box::pin(pending()), open: Arc::default() };
        let mut connection = Box::pin(http1.serve(Cut(theirs, cut.clone()), None, application));
        peer.write_all(bytes.as_bytes()).await.unwrap();
        assert!(settle(&mut connection).is_none() && settle(&mut connection).is_none());
        cut.store(true, Ordering::Relaxed);
        assert!(settle(&mut connection).expect("it has ended").is_err(), "{bytes}");
    }
}

/// Gives the same bytes again and again, and takes everything.
struct Endless(&'static [u8], usize);

impl AsyncRead for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.1 += 1;
        buf.put_slice(&self.0[..self.0.len().min(buf.remaining())]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn who_never_stops_sending_lets_others_have_their_turn() {
    let http1 = |config| Http1::new(config, http1_builder(config), Arc::new(Dates::new(Arc::new(Standing))));
    let config = Config::default();
    let application = Application { answers: hello, open: Arc::default() };
    let mut connection = Box::pin(http1(&config).serve(Endless(GET.as_bytes(), 0), None, application.clone()));
    for _ in 0..10 {
        let before = connection.wire.as_ref().unwrap().io.1;
        assert!((&mut connection).now_or_never().is_none());
        assert!(connection.wire.as_ref().unwrap().io.1 - before <= 2 * ROUNDS);
    }
    // Whatever it asks meanwhile, it leaves when it is told to.
    connection.as_mut().leave();
    settle(&mut connection).unwrap().unwrap();
    // And who says nothing at all is not heard for ever.
    let mut connection = Box::pin(http1(&config).serve(Endless(b"\r\n", 0), None, application));
    let polls = (0..100).position(|_| (&mut connection).now_or_never().is_some());
    assert!(polls.is_some_and(|polls| polls > 0), "{polls:?}");
}
