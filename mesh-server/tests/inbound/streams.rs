//! What the server makes of an HTTP/2 stream: heads, bodies and trailers of both directions, how streams end, tunnels, and
//! whether the peer is there.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{poll, stream};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use mesh_core::context::{self, RequestContext};
use mesh_core::error::BoxError;
use mesh_core::policy::InboundTls;
use mesh_server::{Body, Config};
use mesh_testkit::clock;

use crate::kit::{Http, World, eventually, policy, spawn, text, within};
use crate::raw::{self, ACK, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame, next};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// A client of one connection that sees streams as they are.
async fn client(world: &World) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let (requests, connection) = h2::client::handshake(tcp).await.unwrap();
    spawn(connection);
    requests.ready().await.unwrap()
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://reviews{path}")).body(()).unwrap()
}

/// The answer to a request without a body.
async fn ask(requests: &mut SendRequest<Bytes>, method: Method, path: &str) -> Response<RecvStream> {
    within(requests.send_request(request(method, path), true).unwrap().0).await.unwrap()
}

/// All bytes that are still to come of a stream, and how it ends.
async fn rest(stream: &mut RecvStream) -> (Vec<u8>, Result<Option<HeaderMap>, h2::Error>) {
    let mut all = Vec::new();
    while let Some(data) = within(stream.data()).await {
        match data {
            Ok(data) => {
                stream.flow_control().release_capacity(data.len()).unwrap();
                all.extend_from_slice(&data);
            }
            Err(error) => return (all, Err(error)),
        }
    }
    (all, within(stream.trailers()).await)
}

fn answer(body: impl http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static) -> Answer {
    Response::new(body.map_err(Into::into).boxed_unsync())
}

/// A body of these frames.
fn frames(
    frames: impl IntoIterator<Item = Result<Frame<Bytes>, BoxError>, IntoIter: Send + 'static>,
) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static {
    StreamBody::new(stream::iter(frames))
}

fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

#[tokio::test]
async fn an_answer_has_what_http2_has_of_its_head_and_its_length() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let mut answer = answer(Full::new(Bytes::from_static(b"hello")));
        let headers = answer.headers_mut();
        match request.uri().path() {
            "/hops" => {
                for (name, value) in [
                    ("connection", "x-first, X-Second"),
                    ("x-first", "1"),
                    ("x-second", "1"),
                    ("keep-alive", "timeout=5"),
                    ("proxy-connection", "close"),
                    ("transfer-encoding", "chunked"),
                    ("upgrade", "websocket"),
                    ("te", "trailers"),
                    ("x-third", "1"),
                ] {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            "/dated" => drop(headers.insert("date", HeaderValue::from_static("yesterday"))),
            "/none" => *answer.status_mut() = StatusCode::NO_CONTENT,
            _ => {}
        }
        Ok::<_, BoxError>(answer)
    });
    let clock = |server: mesh_server::ServerBuilder| server.clock(Arc::new(At(784_111_777)));
    let world = World::start_with(policy(InboundTls::Permissive), Config::default(), clock, service).await;
    let mut requests = client(&world).await;
    for (method, path, body) in [
        (Method::GET, "/", "hello"),
        (Method::GET, "/hops", "hello"),
        (Method::GET, "/dated", "hello"),
        (Method::HEAD, "/", ""),
        (Method::GET, "/none", ""),
    ] {
        let answer = ask(&mut requests, method.clone(), path).await;
        let mut names: Vec<_> = answer.headers().keys().map(|name| name.as_str().to_owned()).collect();
        names.sort_unstable();
        let date = if path == "/dated" { "yesterday" } else { "Sun, 06 Nov 1994 08:49:37 GMT" };
        assert_eq!(answer.headers()["date"], date, "{path}");
        let want: &[&str] = match path {
            "/hops" => &["content-length", "date", "x-third"],
            "/none" => &["date"],
            _ => &["content-length", "date"],
        };
        assert_eq!(names, want, "{method} {path}");
        let mut stream = answer.into_body();
        // A client that waits for a body of a HEAD's answer takes any for an error.
        assert_eq!(stream.is_end_stream(), body.is_empty(), "{method} {path}");
        let (got, end) = rest(&mut stream).await;
        assert_eq!((got, end.unwrap()), (body.into(), None), "{method} {path}");
    }
}

#[tokio::test]
async fn of_many_requests_the_first_are_answered_before_the_last_is_begun() {
    const ALL: usize = 64;
    let world =
        World::start(policy(InboundTls::Permissive), Config::default(), tower::service_fn(|_| async { text("") }))
            .await;
    let begun = Arc::<AtomicUsize>::default();
    let counted = begun.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, BoxError>(answer(Full::default())) }
    });
    // In memory, for then who reads has a turn as soon as there is something.
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    spawn(world.server.serve_http2(theirs, service));
    let (mut requests, mut connection) = h2::client::handshake(ours).await.unwrap();
    let (mut pings, mut more) = (connection.ping_pong().unwrap(), requests.clone());
    spawn(connection);
    let mut send = || requests.send_request(request(Method::GET, "/"), true).unwrap().0;
    // Counted by a task, which has its turn among the others; the test's own may have to wait for sixty.
    let when_it_comes = |answer: ResponseFuture| {
        let begun = begun.clone();
        spawn(async move { answer.await.map(|_| begun.load(Ordering::Relaxed)).unwrap() })
    };
    let mut answers: Vec<_> = (0..ALL).map(|_| send()).collect();
    let early = within(when_it_comes(answers.remove(0))).await.unwrap();
    assert!(early < ALL / 2, "{early}");
    for answer in answers {
        within(answer).await.unwrap();
    }
    assert_eq!(begun.load(Ordering::Relaxed), ALL);
    // Whoever gives all the others up once one has failed is no flood.
    let mut answers: Vec<_> = (0..ALL).map(|_| send()).collect();
    let early = within(when_it_comes(answers.remove(0))).await.unwrap() - ALL;
    assert!(early < ALL / 2, "{early}");
    drop(answers);
    within(send()).await.unwrap();
    // Nor is who has sent others meanwhile, of which none is begun then.
    let before = begun.load(Ordering::Relaxed);
    let mut answers: Vec<_> = (0..3 * ALL - 10).map(|_| send()).collect();
    // By a task, again.
    let noted = begun.clone();
    let meanwhile = spawn(async move {
        answers.remove(0).await.unwrap();
        let others: Vec<_> = (0..ALL).map(|_| more.send_request(request(Method::GET, "/"), true).unwrap().0).collect();
        // Behind it everything has been read.
        pings.ping(h2::Ping::opaque()).await.unwrap();
        let meanwhile = noted.load(Ordering::Relaxed) - before;
        drop(others);
        (meanwhile, answers)
    });
    let (meanwhile, answers) = within(meanwhile).await.unwrap();
    assert!(meanwhile < answers.len(), "the control: none of these is: {meanwhile}");
    let asked = answers.len() + 1;
    for answer in answers {
        within(answer).await.unwrap();
    }
    within(send()).await.unwrap();
    assert_eq!(begun.load(Ordering::Relaxed) - before, asked + 1);
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("as ordered");
    }
}

/// Polls a connection over memory once, within a request's context, after it was `sent` two requests: whether each was served in a task,
/// how the connection stands, and what came.
async fn polled_once(sent: &[u8], panics: bool) -> (Vec<bool>, Poll<bool>, Vec<u8>) {
    let world =
        World::start(policy(InboundTls::Permissive), Config::default(), tower::service_fn(|_| async { text("") }))
            .await;
    let calls = Arc::<Mutex<Vec<bool>>>::default();
    let noted = calls.clone();
    let service = tower::service_fn(move |_: Request<Body>| {
        noted.lock().push(tokio::task::try_id().is_some());
        async move {
            assert!(!context::is_open(), "they are other requests");
            if panics {
                std::panic::panic_any(Bomb);
            }
            Ok::<_, BoxError>(answer(Full::default()))
        }
    });
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    let mut connection = Box::pin(world.server.serve_http2(theirs, service));
    ours.write_all(sent).await.unwrap();
    let outer = Arc::new(RequestContext::from_headers(&HeaderMap::new()));
    let polled = poll!(context::scope(outer, connection.as_mut())).map(|ended| ended.is_ok());
    let mut came = Vec::with_capacity(4096);
    let _ = poll!(pin!(ours.read_buf(&mut came)));
    eventually(|| (calls.lock().len() == 2).then_some(())).await;
    (calls.lock().clone(), polled, came)
}

/// Kinds and streams of the frames in some bytes.
fn kinds(mut bytes: &[u8]) -> Vec<(u8, u8)> {
    let mut all = Vec::new();
    while let [_, high, low, kind, _, _, _, _, stream, rest @ ..] = bytes {
        all.push((*kind, *stream));
        bytes = &rest[usize::from(*high) << 8 | usize::from(*low)..];
    }
    all
}

#[test]
fn where_one_thread_does_all_a_request_is_served_as_far_as_it_comes_before_there_is_a_task_for_it() {
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut sent = PREFACE.to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    [1, 3].iter().for_each(|stream| sent.extend(raw::request(*stream, &raw::get("/", &[]))));

    let (calls, polled, came) = one().block_on(polled_once(&sent, false));
    assert_eq!((calls, polled), (vec![false, false], Poll::Pending));
    let answers = kinds(&came).into_iter().filter(|(kind, _)| *kind == HEADERS).map(|(_, stream)| stream);
    assert_eq!(answers.collect::<Vec<_>>(), [1, 3], "they went out in the same turn");
    // The control: where there are several threads, each has a task.
    let (calls, _, _) = many.block_on(polled_once(&sent, false));
    assert!(calls.iter().all(|task| *task), "{calls:?}");
    // A panic is its request's, and the next one is served.
    let (calls, polled, came) = one().block_on(polled_once(&sent, true));
    assert_eq!((calls, polled), (vec![false, false], Poll::Pending));
    let resets = kinds(&came).into_iter().filter(|(kind, _)| *kind == RST_STREAM).map(|(_, stream)| stream);
    assert_eq!(resets.collect::<Vec<_>>(), [1, 3]);
}

/// A clock that stands.
#[derive(Debug)]
struct At(u64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

#[tokio::test]
async fn without_a_date_that_can_be_written_there_is_none() {
    for seconds in [253_370_764_799, 253_370_764_800, u64::MAX] {
        let clock = |server: mesh_server::ServerBuilder| server.clock(Arc::new(At(seconds)));
        let hello = tower::service_fn(|_: Request<Body>| async { text("hello") });
        let world = World::start_with(policy(InboundTls::Permissive), Config::default(), clock, hello).await;
        let mut requests = client(&world).await;
        let answer = ask(&mut requests, Method::GET, "/").await;
        let date = answer.headers().get("date").map(|date| date.to_str().unwrap());
        assert_eq!(date, (seconds < 253_370_764_800).then_some("Thu, 31 Dec 9998 23:59:59 GMT"));
    }
}

#[tokio::test]
async fn an_answer_is_sent_as_its_pieces_come_to_its_trailers() {
    let service = tower::service_fn(|_: Request<Body>| async {
        let big = Bytes::from(vec![b'x'; 3 << 20]);
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-end"), HeaderValue::from_static("1"))]);
        let pieces = [data(b"one"), data(b""), Ok(Frame::data(big)), data(b"last"), Ok(Frame::trailers(trailers))];
        Ok::<_, BoxError>(answer(frames(pieces)))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut requests = client(&world).await;
    let answer = ask(&mut requests, Method::GET, "/").await;
    assert!(!answer.headers().contains_key("content-length"));
    let (got, end) = rest(&mut answer.into_body()).await;
    let want = [&b"one"[..], &vec![b'x'; 3 << 20], b"last"].concat();
    assert!(got == want, "{} bytes", got.len());
    assert_eq!(end.unwrap().unwrap()["x-end"], "1");
}

/// An error of the application's own.
#[derive(Debug, thiserror::Error)]
#[error("what the answer was made of failed")]
struct Caused(#[source] h2::Error);

#[tokio::test]
async fn an_answer_that_fails_resets_its_stream_and_says_why() {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let why: BoxError = match request.uri().path() {
            "/other" => "disk full".into(),
            "/stream" => h2::Error::from(Reason::ENHANCE_YOUR_CALM).into(),
            "/enough" => h2::Error::from(Reason::NO_ERROR).into(),
            "/unseen" => h2::Error::from(Reason::REFUSED_STREAM).into(),
            _ => Caused(Reason::CANCEL.into()).into(),
        };
        Ok::<_, BoxError>(answer(frames([data(b"begun"), Err(why)])))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut requests = client(&world).await;
    for (path, reason) in [
        ("/other", Reason::INTERNAL_ERROR),
        ("/stream", Reason::ENHANCE_YOUR_CALM),
        ("/enough", Reason::INTERNAL_ERROR),
        ("/unseen", Reason::INTERNAL_ERROR),
        ("/caused", Reason::CANCEL),
    ] {
        // What was not written yet is taken back with it.
        let end = match within(requests.send_request(request(Method::GET, path), true).unwrap().0).await {
            Ok(answer) => rest(&mut answer.into_body()).await.1.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(end.reason(), Some(reason), "{path}");
    }
}

#[tokio::test]
async fn who_takes_an_answer_back_ends_it_whatever_it_waits_for() {
    /// Tells of its end.
    struct Held(#[allow(dead_code, reason = "held for its drop")] mpsc::Sender<()>);
    let (held, mut ended) = mpsc::channel(1);
    let held = Arc::new(parking_lot::Mutex::new(Some(held)));
    let service = {
        let held = held.clone();
        tower::service_fn(move |request: Request<Body>| {
            let held = Held(held.lock().take().unwrap());
            async move {
                let wait = async move { std::future::pending::<()>().await };
                match request.uri().path() {
                    "/head" => {
                        wait.await;
                        drop(held);
                        unreachable!("it waits for ever")
                    }
                    "/more" => {
                        let begun = stream::once(async { data(b"begun") });
                        let more = stream::once(async move {
                            wait.await;
                            drop(held);
                            data(b"never")
                        });
                        Ok::<_, BoxError>(answer(StreamBody::new(stream::StreamExt::chain(begun, more))))
                    }
                    _ => {
                        let big = (0..).map(move |_| {
                            let _held = &held;
                            Ok(Frame::data(Bytes::from_static(&[b'x'; 60_000])))
                        });
                        Ok(answer(frames(big)))
                    }
                }
            }
        })
    };
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let mut requests = client(&world).await;
    for path in ["/head", "/more", "/room"] {
        let (sent, mut taken_back) = requests.send_request(request(Method::GET, path), true).unwrap();
        let begun = match path {
            "/head" => None,
            _ => Some(within(sent).await.unwrap()),
        };
        let mut begun = begun;
        if let Some(begun) = &mut begun {
            // Its room is not given back: soon there is none.
            within(begun.body_mut().data()).await.unwrap().unwrap();
        }
        taken_back.send_reset(Reason::CANCEL);
        assert!(within(ended.recv()).await.is_none(), "{path}");
        let (next, ends) = mpsc::channel(1);
        ended = ends;
        *held.lock() = Some(next);
    }
    // The control: the connection goes on.
    let (sent, _stream) = requests.send_request(request(Method::GET, "/more"), true).unwrap();
    assert_eq!(within(sent).await.unwrap().status(), 200);
}

/// However little it is.
#[tokio::test]
async fn an_answer_that_its_peer_has_no_room_for_is_in_flight() {
    let mut config = Config::default();
    config.max_requests = Some(1);
    let hello = tower::service_fn(|_: Request<Body>| async { text("hello") });
    let world = World::start(policy(InboundTls::Permissive), config, hello).await;
    let tcp = TcpStream::connect(world.address).await.unwrap();
    let mut narrow = h2::client::Builder::new();
    let (mut requests, mut connection) = narrow.initial_window_size(0).handshake::<_, Bytes>(tcp).await.unwrap();
    let (widen, mut wide) = mpsc::channel(1);
    spawn(async move {
        tokio::select! {
            _ = &mut connection => {}
            Some(()) = wide.recv() => {
                connection.set_initial_window_size(1000).unwrap();
                drop(connection.await);
            }
        }
    });
    // The control: with the head alone there is nothing to wait for.
    let answer = ask(&mut requests, Method::HEAD, "/").await;
    assert!(answer.status() == 200 && answer.body().is_end_stream());
    let answer = ask(&mut requests, Method::GET, "/").await;
    let mut others = world.plain(Http::Two).await;
    assert_eq!(within(others.get("/")).await.unwrap().0, 503);
    widen.send(()).await.unwrap();
    assert_eq!(rest(&mut answer.into_body()).await.0, b"hello");
    within(async { while others.get("/").await.unwrap().0 != 200 {} }).await;
}

/// What a server says of a request's body.
#[derive(Debug, PartialEq)]
enum Told {
    Bytes(usize),
    /// It has ended: with an error, for this reason.
    Ended(Option<Option<Reason>>),
}

/// A server that tells of bodies as they come, and answers before it has read them if the path says so.
async fn reading(config: Config) -> (World, mpsc::Receiver<Told>) {
    let (tell, told) = mpsc::channel(1);
    let service = tower::service_fn(move |request: Request<Body>| {
        let tell = tell.clone();
        async move {
            if request.uri().path() == "/early" {
                return text("enough");
            }
            let mut body = request.into_body();
            let why = loop {
                match body.frame().await.transpose() {
                    Ok(Some(frame)) => tell.send(Told::Bytes(frame.data_ref().map_or(0, Bytes::len))).await?,
                    Ok(None) => break None,
                    Err(error) => {
                        break Some(error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()?.reason()));
                    }
                }
            };
            tell.send(Told::Ended(why)).await?;
            text("read")
        }
    });
    (World::start(policy(InboundTls::Permissive), config, service).await, told)
}

#[tokio::test]
async fn a_body_that_is_taken_back_ends_with_why() {
    let (world, mut told) = reading(Config::default()).await;
    let mut requests = client(&world).await;
    for (reset, want) in [
        (None, None),
        (Some(Reason::NO_ERROR), Some(Some(Reason::NO_ERROR))),
        (Some(Reason::CANCEL), Some(Some(Reason::CANCEL))),
        (Some(Reason::PROTOCOL_ERROR), Some(Some(Reason::PROTOCOL_ERROR))),
    ] {
        let (_answer, mut stream) = requests.send_request(request(Method::POST, "/"), false).unwrap();
        stream.send_data(Bytes::from_static(b"begun"), reset.is_none()).unwrap();
        assert_eq!(within(told.recv()).await, Some(Told::Bytes(5)));
        if let Some(reset) = reset {
            stream.send_reset(reset);
        }
        assert_eq!(within(told.recv()).await, Some(Told::Ended(want)), "{reset:?}");
    }
}

#[tokio::test]
async fn who_is_answered_early_need_not_send_the_rest() {
    let (world, _told) = reading(Config::default()).await;
    let mut requests = client(&world).await;
    let (sent, mut stream) = requests.send_request(request(Method::POST, "/early"), false).unwrap();
    let (got, end) = rest(&mut within(sent).await.unwrap().into_body()).await;
    assert_eq!((&got[..], end.unwrap()), (&b"enough"[..], None));
    let reset = within(std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);
}

/// A server whose application has what a CONNECT asks for, and tells it; other paths than `/` are refused.
async fn tunnels() -> (World, mpsc::Receiver<hyper::Result<TokioIo<hyper::upgrade::Upgraded>>>) {
    let (taken, took) = mpsc::channel(1);
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let taken = taken.clone();
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            spawn(async move { taken.send(upgrade.await.map(TokioIo::new)).await });
            let refused = request.uri().path() == "/refused";
            let (status, body) = if refused { (403, "refused") } else { (200, "") };
            let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok::<_, BoxError>(answer)
        }
    });
    (World::start(policy(InboundTls::Permissive), Config::default(), service).await, took)
}

/// A request for a tunnel: a WebSocket's (RFC 8441), or the plain one.
fn connect(websocket: bool, path: &str) -> Request<()> {
    let mut request = request(Method::CONNECT, path);
    if websocket {
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    } else {
        *request.uri_mut() = "reviews:80".parse().unwrap();
    }
    request
}

/// A connection of a server that lets WebSockets be asked for.
async fn tunnelling(world: &World) -> SendRequest<Bytes> {
    let mut requests = client(world).await;
    // The server's settings have come by then.
    let refused = ask(&mut requests, Method::GET, "/refused").await;
    assert_eq!(refused.status(), 403);
    assert!(requests.is_extended_connect_protocol_enabled());
    requests
}

#[tokio::test]
async fn a_tunnel_belongs_to_the_application_in_both_directions_to_its_end() {
    let (world, mut took) = tunnels().await;
    let mut requests = tunnelling(&world).await;
    assert!(within(took.recv()).await.unwrap().is_err(), "no tunnel was asked for");
    for websocket in [true, false] {
        let (sent, mut outgoing) = requests.send_request(connect(websocket, "/"), false).unwrap();
        let answer = within(sent).await.unwrap();
        assert_eq!(answer.status(), 200);
        let names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["date"]);
        let mut incoming = answer.into_body();
        let mut io = within(took.recv()).await.unwrap().unwrap();

        outgoing.send_data(Bytes::from_static(b"ping"), false).unwrap();
        let mut word = [0; 4];
        within(io.read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"ping");
        io.write_all(b"pong\r\n\r\n").await.unwrap();
        assert_eq!(&within(incoming.data()).await.unwrap().unwrap()[..], b"pong\r\n\r\n");
        incoming.flow_control().release_capacity(8).unwrap();

        // More than there is room for at once, each way.
        let big = vec![b'x'; 3 << 20];
        let (written, (got, end)) = tokio::join!(
            within(async {
                io.write_all(&big).await?;
                io.shutdown().await
            }),
            rest(&mut incoming),
        );
        written.unwrap();
        assert!(got == big && end.unwrap().is_none(), "{} bytes", got.len());
        outgoing.send_data(big.clone().into(), true).unwrap();
        let mut read = Vec::new();
        within(io.read_to_end(&mut read)).await.unwrap();
        assert!(read == big, "{} bytes", read.len());
        assert_eq!(io.write(b"late").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn a_tunnel_ends_with_either_end() {
    let (world, mut took) = tunnels().await;
    let mut requests = tunnelling(&world).await;
    assert!(within(took.recv()).await.unwrap().is_err());
    let mut open = async |requests: &mut SendRequest<Bytes>| {
        let (sent, outgoing) = requests.send_request(connect(true, "/"), false).unwrap();
        let incoming = within(sent).await.unwrap().into_body();
        (incoming, outgoing, within(took.recv()).await.unwrap().unwrap())
    };
    // Dropped by the application.
    let (mut incoming, _outgoing, io) = open(&mut requests).await;
    drop(io);
    let (got, end) = rest(&mut incoming).await;
    assert_eq!((got.len(), end.unwrap()), (0, None));
    // Taken back by the peer, while the one waits for bytes and while it waits for room.
    for reset in [Reason::NO_ERROR, Reason::CANCEL, Reason::PROTOCOL_ERROR] {
        let (_incoming, mut outgoing, mut io) = open(&mut requests).await;
        outgoing.send_reset(reset);
        let mut read = Vec::new();
        assert!(within(io.read_to_end(&mut read)).await.is_err(), "{reset:?}");
        within(async { while io.write_all(&[b'x'; 60_000]).await.is_ok() {} }).await;
    }
    let (_incoming, mut outgoing, mut io) = open(&mut requests).await;
    let filled = spawn(async move { while io.write_all(&[b'x'; 60_000]).await.is_ok() {} });
    outgoing.send_reset(Reason::CANCEL);
    within(filled).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_that_is_refused_has_an_answer_as_any_request_and_one_with_a_length_none() {
    let (world, mut took) = tunnels().await;
    let mut requests = tunnelling(&world).await;
    assert!(within(took.recv()).await.unwrap().is_err());
    let (sent, _outgoing) = requests.send_request(connect(true, "/refused"), false).unwrap();
    let answer = within(sent).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-length"]), (403, &HeaderValue::from(7)));
    let (got, end) = rest(&mut answer.into_body()).await;
    assert_eq!((&got[..], end.unwrap()), (&b"refused"[..], None));
    assert!(within(took.recv()).await.unwrap().is_err(), "it was not given");

    let mut with_length = connect(true, "/");
    with_length.headers_mut().insert("content-length", HeaderValue::from_static("5"));
    let (sent, _outgoing) = requests.send_request(with_length, false).unwrap();
    assert_eq!(within(sent).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    // The control: nothing else comes of it.
    assert_eq!(ask(&mut requests, Method::GET, "/").await.status(), 200);
}

/// What comes of a peer that asks once, late, and answers so many pings: when each came, and when it was cut off.
async fn pinged(asks_at: u64, answers: usize) -> (Vec<u64>, u64) {
    let hello = tower::service_fn(|_: Request<Body>| async { text("hello") });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), hello).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat()).await.unwrap();
    let began = Instant::now();
    let mut pings = Vec::new();
    let (mut reader, mut writer) = tcp.into_split();
    let ask = async {
        clock::pass(Duration::from_secs(asks_at)).await;
        writer.write_all(&raw::request(1, &raw::get("/", &[]))).await.unwrap();
        writer
    };
    let mut ask = Some(Box::pin(ask));
    let mut writer = None;
    loop {
        let came = tokio::select! {
            came = next(&mut reader) => came,
            asked = async { ask.as_mut().unwrap().await }, if ask.is_some() => {
                (ask, writer) = (None, Some(asked));
                continue;
            }
        };
        let Some((kind, flags, _, payload)) = came else { break };
        if kind == PING && flags & ACK == 0 {
            pings.push(began.elapsed().as_secs());
            if pings.len() <= answers
                && let Some(writer) = &mut writer
            {
                writer.write_all(&frame(PING, ACK, 0, &payload)).await.unwrap();
            }
        }
    }
    (pings, began.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_asked_after_a_minute_and_has_twenty_seconds() {
    assert_eq!(pinged(0, 0).await, (vec![60], 80));
    assert_eq!(pinged(45, 0).await, (vec![105], 125));
    assert_eq!(pinged(45, 2).await, (vec![105, 165, 225], 245));
}

/// What came of a body before its peer fell silent is not all of it.
#[tokio::test(start_paused = true)]
async fn the_body_of_a_peer_that_is_gone_ends_with_an_error() {
    let mut config = Config::default();
    config.body_idle_timeout = None;
    let (world, mut told) = reading(config).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let head = frame(HEADERS, END_HEADERS, 1, &raw::block(&raw::get("/", &[])));
    let begun = frame(DATA, 0, 1, b"begun");
    tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &head, &begun].concat()).await.unwrap();
    assert_eq!(told.recv().await, Some(Told::Bytes(5)));
    assert_eq!(told.recv().await, Some(Told::Ended(Some(Some(Reason::INTERNAL_ERROR)))));
}
