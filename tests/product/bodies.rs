//! Bodies of any size through both ends of the mesh, over mutual TLS: streamed in constant memory, with their trailers;
//! answers that come early leave nothing counted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use mesh::{Body, Client};
use mesh_client::{Breakers, Cause};
use mesh_core::policy::{Address, Endpoint, Forward, InboundState, InboundTls, RouteMatch, UpstreamProtocol};
use mesh_core::source::Watched;
use mesh_server::{Config, Server};
use mesh_testkit::{FixedSource, TestCa, policy};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::support::{FREE, eventually};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const PROTOCOLS: [UpstreamProtocol; 2] = [UpstreamProtocol::Http1, UpstreamProtocol::Http2];
const CHUNK: usize = 64 * 1024;
const MIB: usize = 1024 * 1024;
/// What goes through and comes back.
const LARGE: usize = 1024 * MIB;
/// What is in use of memory meanwhile, at most.
const CONSTANT: u64 = 8 * MIB as u64;

/// Both ends, on one thread.
struct Ends {
    client: Client,
    breakers: Breakers,
    /// Requests that the application works on, answers that are still being sent among them.
    serving: Arc<AtomicUsize>,
}

/// One more while it lives.
struct Serving(Arc<AtomicUsize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Ends {
    async fn start(protocol: UpstreamProtocol) -> Self {
        Self::with(protocol, Config::default(), |_| {}).await
    }

    async fn with(protocol: UpstreamProtocol, config: Config, change: impl FnOnce(&mut Forward)) -> Self {
        let (ca, serving) = (TestCa::new(), Arc::<AtomicUsize>::default());
        let listener = TcpListener::bind(FREE).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .identity(ca.watched("default", "server"))
            .crypto(mesh_testkit::crypto())
            .inbound(Watched::fixed(InboundState::Ready(Arc::new(policy::inbound(address, InboundTls::Strict)))))
            .config(config)
            .build();
        let counted = serving.clone();
        let app = tower::service_fn(move |request| answer(request, counted.clone()));
        tokio::spawn(async move { server.serve(listener, app).await });
        let breakers = Breakers::default();
        let client = Client::builder(FixedSource::of("echo:80", snapshot(&ca, protocol, address, change)))
            .identity(ca.watched("default", "client"))
            .crypto(mesh_testkit::crypto())
            .breakers(breakers.clone())
            .build();
        Self { client, breakers, serving }
    }

    async fn send(
        &self,
        path: &str,
        body: impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static,
    ) -> Response<Body> {
        let request = Request::post(format!("http://echo{path}")).header("te", "trailers").header("trailer", "x-sum");
        self.client.send(request.body(body).unwrap()).await.unwrap()
    }

    /// Nothing is under way any more.
    async fn idle(&self) {
        eventually("nothing is counted at either end", || async {
            let states = self.breakers.snapshot();
            let counted = states.iter().any(|state| state.default.requests + state.default.pending > 0);
            let dump = self.client.dump();
            let in_flight = dump.destinations[0].clusters[0].endpoints.iter().any(|endpoint| endpoint.in_flight > 0);
            (!counted && !in_flight && self.serving.load(Relaxed) == 0).then_some(())
        })
        .await;
    }
}

fn snapshot(
    ca: &TestCa,
    protocol: UpstreamProtocol,
    address: SocketAddr,
    change: impl FnOnce(&mut Forward),
) -> mesh_core::policy::Snapshot {
    let mut cluster = policy::mtls_cluster("echo", &[ca.id("default", "server").as_str()]);
    cluster.connection.protocol = protocol;
    let mut forward = Forward::to(cluster.name.clone());
    change(&mut forward);
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    policy::snapshot(routes, [(cluster, vec![Endpoint::new(Address::Socket(address))])])
}

/// `/echo` gives back what comes as it comes; `/early` answers before anything has come, and `/first` all of it, while it reads
/// on, as do `/broken`, whose answer breaks off, and `/silent`, whose answer does not go on. `/unread` neither reads nor answers.
async fn answer<B>(
    request: Request<B>,
    serving: Arc<AtomicUsize>,
) -> Result<Response<UnsyncBoxBody<Bytes, BoxError>>, Infallible>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    serving.fetch_add(1, Relaxed);
    let serving = Serving(serving);
    if request.uri().path() == "/early" {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return Ok(response);
    }
    if request.uri().path() == "/first" {
        tokio::spawn(async move {
            let _serving = serving;
            let _ = request.into_body().collect().await;
        });
        return Ok(Response::new(body_of(CHUNK).boxed_unsync()));
    }
    if let "/broken" | "/silent" = request.uri().path() {
        let breaks = request.uri().path() == "/broken";
        let (hear, heard) = tokio::sync::oneshot::channel();
        let chunk = stream::once(async { Ok(Frame::data(Bytes::from_static(BEGUN))) });
        // Not before its beginning was read.
        let rest = stream::once(async move {
            let _ = heard.await;
            if breaks { Err("broken".into()) } else { std::future::pending().await }
        });
        tokio::spawn(async move {
            let (_serving, mut body) = (serving, Box::pin(request.into_body()));
            let _ = body.frame().await;
            let _ = hear.send(());
            let _ = body.collect().await;
        });
        return Ok(Response::new(StreamBody::new(Box::pin(chunk.chain(rest))).boxed_unsync()));
    }
    if request.uri().path() == "/unread" {
        let _held = (serving, request);
        return std::future::pending().await;
    }
    let body = request.into_body().map_err(move |error| {
        let _ = &serving;
        error.into()
    });
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
    Ok(response)
}

/// So many bytes, and a trailer.
fn body_of(bytes: usize) -> impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static {
    let chunk = Bytes::from(vec![7; CHUNK]);
    let data = stream::repeat_with(move || Ok(Frame::data(chunk.clone()))).take(bytes / CHUNK);
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from(bytes as u64))]);
    StreamBody::new(data.chain(stream::once(async { Ok(Frame::trailers(trailers)) })))
}

/// Sends so many bytes to and fro; gives the most heap that was in use meanwhile.
fn to_and_fro(protocol: UpstreamProtocol, bytes: usize, keep: bool) -> u64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let ends = runtime.block_on(Ends::start(protocol));
    let exchange = async {
        let mut body = ends.send("/echo", body_of(bytes)).await.into_body();
        let (mut read, mut sum, mut kept) = (0, None, Vec::new());
        while let Some(frame) = body.frame().await {
            match frame.unwrap().into_data() {
                Ok(data) => {
                    read += data.len();
                    assert!(data.iter().step_by(4096).all(|byte| *byte == 7));
                    kept.extend(Some(data).filter(|_| keep));
                }
                Err(trailers) => sum = trailers.into_trailers().ok(),
            }
        }
        assert_eq!(read, bytes, "nothing is lost");
        let sum = sum.expect("the trailers came through both ends, there and back");
        assert_eq!(sum["x-sum"], bytes.to_string());
    };
    let memory = allocation_counter::measure(|| runtime.block_on(exchange));
    runtime.block_on(ends.idle());
    memory.bytes_max
}

#[test]
fn a_large_body_goes_to_and_fro_in_constant_memory() {
    for protocol in PROTOCOLS {
        let most = to_and_fro(protocol, LARGE, false);
        println!("{protocol:?}: {most} bytes at most");
        assert!(most < CONSTANT, "{protocol:?}: {most} bytes");
    }
}

/// The head of a gRPC message of 4 GiB, and as much of it as anybody wants.
fn bomb() -> impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static {
    let head = stream::once(async { Ok(Frame::data(Bytes::from_static(b"\0\xff\xff\xff\xff"))) });
    let chunk = Bytes::from(vec![7; CHUNK]);
    StreamBody::new(Box::pin(head.chain(stream::repeat_with(move || Ok(Frame::data(chunk.clone()))))))
}

/// R31: the mesh makes no room for what a message says of its length, and holds nothing of a body without an end.
#[test]
fn a_grpc_message_that_claims_4_gib_and_does_not_end_is_passed_on_and_not_held_r31() {
    for protocol in PROTOCOLS {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let ends = runtime.block_on(Ends::start(protocol));
        let exchange = async {
            let request = Request::post("http://echo/echo").header("content-type", "application/grpc");
            let answer = ends.client.send(request.body(bomb()).unwrap()).await.unwrap();
            let (mut body, mut read) = (answer.into_body(), 0);
            while read < LARGE {
                read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
        };
        let memory = allocation_counter::measure(|| runtime.block_on(exchange));
        println!("{protocol:?}: {} bytes at most", memory.bytes_max);
        assert!(memory.bytes_max < CONSTANT, "{protocol:?}: {} bytes", memory.bytes_max);
        runtime.block_on(ends.idle());
    }
}

/// Control run: what is kept of a body is seen.
#[test]
fn a_body_that_is_kept_is_seen_in_memory() {
    for protocol in PROTOCOLS {
        let most = to_and_fro(protocol, 32 * MIB, true);
        assert!(most > 32 * MIB as u64, "{protocol:?}: {most} bytes");
    }
}

/// A body that goes on for ever.
fn endless() -> impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static {
    let chunk = Bytes::from(vec![7; CHUNK]);
    StreamBody::new(stream::repeat_with(move || Ok(Frame::data(chunk.clone()))))
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_the_answer_and_ends_both() {
    for protocol in PROTOCOLS {
        let ends = Ends::start(protocol).await;
        for _ in 0..5 {
            let answer = ends.send("/early", endless()).await;
            assert_eq!(answer.status(), 413, "{protocol:?}");
            answer.into_body().collect().await.unwrap();
            ends.idle().await;
        }
        let answer = ends.send("/echo", body_of(CHUNK)).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), CHUNK);
    }
}

/// How the answer ends that its own request reads, and what it is told of that.
type Ending = (&'static str, fn(&mut Forward), fn(Option<&Cause>) -> bool);

/// What comes of an answer that is not whole.
const BEGUN: &[u8] = b"begun";
const SOON: Duration = Duration::from_millis(200);

const ENDINGS: [Ending; 4] = [
    ("/first", |_| {}, |cause| cause.is_none()),
    ("/broken", |_| {}, |cause| matches!(cause, Some(Cause::ConnectionLost { .. }))),
    ("/silent", |forward| forward.timeout = Some(SOON), |cause| matches!(cause, Some(Cause::Timeout(_)))),
    ("/silent", |forward| forward.idle_timeout = Some(SOON), |cause| matches!(cause, Some(Cause::IdleTimeout(_)))),
];

/// What is locked while the application is asked for more of its request must not be asked for by the end of the answer: who
/// is asked may be who reads that.
async fn reads_its_own_answer(protocol: UpstreamProtocol, (path, policy, is_told): Ending) {
    let ends = Ends::with(protocol, Config::default(), policy).await;
    let (give, answer) = tokio::sync::oneshot::channel::<Body>();
    let (pass, passed) = tokio::sync::oneshot::channel::<Body>();
    let (tell, told) = tokio::sync::oneshot::channel();
    let read = Arc::<AtomicUsize>::default();
    let count = |read: &AtomicUsize, frame: &Frame<Bytes>| {
        read.fetch_add(frame.data_ref().map_or(0, Bytes::len), Relaxed);
    };
    let counted = read.clone();
    let begins = async move {
        let mut body = answer.await?;
        count(&counted, &body.frame().await.unwrap()?);
        pass.send(body).unwrap();
        Ok(Frame::data(Bytes::from_static(b"begun")))
    };
    let counted = read.clone();
    let reads = async move {
        let mut body = passed.await?;
        let end = loop {
            match body.frame().await {
                Some(Ok(frame)) => count(&counted, &frame),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
        };
        tell.send(end).unwrap();
        Ok(Frame::data(Bytes::from_static(b"read")))
    };
    let body = StreamBody::new(Box::pin(stream::once(begins).chain(stream::once(reads))));
    let answer = ends.send(path, body).await;
    give.send(answer.into_body()).unwrap();
    match (told.await, protocol) {
        (Ok(end), _) => assert!(is_told(end.as_ref().err().map(|error| error.cause())), "{protocol:?} {path}: {end:?}"),
        // There the request is over with its answer, and so is what is in it: it was not asked any more.
        (Err(_), UpstreamProtocol::Http1) if path != "/silent" => {}
        (Err(_), _) => panic!("{protocol:?} {path}: it is told"),
    }
    assert_eq!(read.load(Relaxed), if path == "/first" { CHUNK } else { BEGUN.len() }, "{protocol:?} {path}");
    ends.idle().await;
}

#[test]
fn a_request_may_read_its_own_answer_to_whichever_end() {
    let begin = |protocol, ending| {
        let (done, over) = std::sync::mpsc::channel();
        // Who waits for himself is left behind.
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(reads_its_own_answer(protocol, ending));
            done.send(()).unwrap();
        });
        over
    };
    let cases = PROTOCOLS.into_iter().flat_map(|protocol| (0..ENDINGS.len()).map(move |ending| (protocol, ending)));
    let begun: Vec<_> =
        cases.map(|(protocol, ending)| ((protocol, ending), begin(protocol, ENDINGS[ending]))).collect();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let left =
        |over: &std::sync::mpsc::Receiver<()>| over.recv_timeout(end - std::time::Instant::now().min(end)).is_err();
    let waiting: Vec<_> = begun.iter().filter(|(_, over)| left(over)).map(|(case, _)| case).collect();
    assert!(waiting.is_empty(), "nobody waits for himself, nor fails: {waiting:?}");
}

/// Whether a body goes to and fro beside so many that no handler reads.
async fn passes_beside(stalled: usize, config: Config) -> bool {
    let ends = Ends::with(UpstreamProtocol::Http2, config, |_| {}).await;
    let mut unread = FuturesUnordered::new();
    for _ in 0..stalled {
        unread.push(ends.send("/unread", endless()));
    }
    let settle = async {
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
    };
    let neighbour = async {
        settle.await;
        assert_eq!(ends.serving.load(Relaxed), stalled, "control: all are under way");
        let answer = ends.send("/echo", body_of(4 * MIB)).await;
        let read = answer.into_body().collect().await.unwrap().to_bytes().len();
        assert_eq!(ends.client.dump().destinations[0].clusters[0].open_connections, 1, "they share a connection");
        read == 4 * MIB
    };
    // Of those nobody answers.
    let all = async { while unread.next().await.is_some() {} };
    tokio::select! {
        biased;
        passed = neighbour => passed,
        () = async { all.await; std::future::pending().await } => unreachable!("they go on"),
    }
}

#[tokio::test]
async fn uploads_that_no_handler_reads_hold_up_no_other_on_the_same_connection() {
    for stalled in [1, 3, 8] {
        assert!(passes_beside(stalled, Config::default()).await);
    }
    // Control: with no more room for all together than for one, one holds up all.
    let mut config = Config::default();
    config.connection_window = config.stream_window;
    let held_up = passes_beside(1, config);
    tokio::select! {
        biased;
        _ = held_up => panic!("it is held up"),
        () = async { for _ in 0..5000 { tokio::task::yield_now().await; } } => {}
    }
}

/// One chunk, and then nothing for ever.
fn stalled() -> impl HttpBody<Data = Bytes, Error = BoxError> + Send + 'static {
    let chunk = stream::once(async { Ok(Frame::data(Bytes::from(vec![7; CHUNK]))) });
    StreamBody::new(Box::pin(chunk.chain(stream::pending())))
}

/// The caller gives up in the middle of the answer, whether its upload waits for itself or for the server, which waits
/// for somebody to read its answer.
#[tokio::test]
async fn an_answer_given_up_ends_the_upload_at_both_ends() {
    for protocol in PROTOCOLS {
        let ends = Ends::start(protocol).await;
        for _ in 0..3 {
            for body in [endless().boxed_unsync(), stalled().boxed_unsync()] {
                let mut answer = ends.send("/echo", body).await.into_body();
                answer.frame().await.unwrap().unwrap();
                assert_eq!(ends.serving.load(Relaxed), 1, "{protocol:?}: control: what is under way is counted");
                // Until neither end can send any more.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                drop(answer);
                ends.idle().await;
            }
        }
        // Nothing of a connection is spent: it takes further requests.
        let answer = ends.send("/echo", body_of(CHUNK)).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), CHUNK);
    }
}

/// An upload is tied to its answer when the HTTP library looks at its body for the first time. That must not wait until
/// the connection's window has room: what the library begins next would be tied instead.
#[tokio::test]
async fn an_upload_without_window_to_begin_with_ends_with_its_own_answer_and_no_other() {
    const OTHERS: usize = 8;
    let mut config = Config::default();
    config.connection_window = config.stream_window;
    let ends = Ends::with(UpstreamProtocol::Http2, config, |_| {}).await;
    let settle = || async {
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
    };
    // Nobody reads their answers: they take all of the connection's window.
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        others.push(ends.send("/echo", endless()).await);
        settle().await;
    }
    let given_up = ends.send("/echo", stalled()).await;
    settle().await;
    let last = ends.send("/echo", endless()).await;
    settle().await;
    assert_eq!(ends.serving.load(Relaxed), OTHERS + 2, "control: all are under way");
    drop(given_up);
    let left = |left: usize| {
        let serving = ends.serving.clone();
        eventually("the upload ends", move || {
            let now = serving.load(Relaxed);
            async move { (now == left).then_some(()) }
        })
    };
    left(OTHERS + 1).await;
    settle().await;
    assert_eq!(ends.serving.load(Relaxed), OTHERS + 1, "and no other");
    drop(last);
    left(OTHERS).await;
    drop(others);
    ends.idle().await;
}
