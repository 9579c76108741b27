//! Connections that are the application's, raw or after a change of protocol, when their endpoint is gone; and what becomes
//! of all that is under way to one that comes back.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::{Method, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use mesh_client::{Breakers, Client, ClientBuilder};
use mesh_core::policy::{Address, ClusterState, DestinationState, Endpoint, Snapshot, UpstreamProtocol};
use mesh_core::telemetry::Metrics;
use mesh_testkit::clock::pass;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;

use super::{TARGET, cluster, get, read};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(5);
const NOBODY: [u8; 4] = [127, 9, 9, 1];
const KINDS: [Kind; 3] = [Kind::Raw, Kind::WebSocket, Kind::Tunnel];

/// How the application came by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Raw,
    WebSocket,
    Tunnel,
}

/// What is gone.
#[derive(Clone, Copy, Debug)]
enum Gone {
    Endpoint,
    Cluster,
    Destination,
}

const GONE: [Gone; 3] = [Gone::Endpoint, Gone::Cluster, Gone::Destination];

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

type Io = Pin<Box<dyn Stream>>;

/// A client, and a connection to its only endpoint that is the application's.
struct World {
    client: Client,
    source: Arc<FixedSource>,
    breakers: Breakers,
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    ours: Io,
    theirs: TcpStream,
}

fn upgrading(kind: Kind) -> Request<Empty<Bytes>> {
    let mut request = get("/chat");
    if kind == Kind::WebSocket {
        request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    } else {
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = TARGET.parse().unwrap();
    }
    request
}

async fn take_over(client: &Client, kind: Kind) -> Io {
    if kind == Kind::Raw {
        return Box::pin(client.connect(TARGET).await.unwrap());
    }
    let mut answer = client.send(upgrading(kind)).await.unwrap();
    Box::pin(TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap()))
}

async fn accept(listener: &TcpListener, kind: Kind) -> TcpStream {
    let (mut io, _) = listener.accept().await.unwrap();
    if kind == Kind::Raw {
        return io;
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let says: &[u8] = match kind {
        Kind::WebSocket => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        Kind::Raw | Kind::Tunnel => b"HTTP/1.1 200 OK\r\n\r\n",
    };
    io.write_all(says).await.unwrap();
    io
}

impl World {
    /// Of which what the application has so long, and requests nearly no time.
    async fn of(kind: Kind, limit: Duration) -> Self {
        Self::with(kind, |client| client.drain_limit(SECOND / 10).raw_drain_limit(limit)).await
    }

    async fn with(kind: Kind, limits: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new(Address::Socket(listener.local_addr().unwrap()));
        let source = FixedSource::of(TARGET, policy::snapshot_of(cluster("test"), [endpoint.clone()]));
        let (breakers, metrics) = (Breakers::default(), Arc::<Metrics>::default());
        let builder = limits(Client::builder(source.clone()));
        let client = builder.breakers(breakers.clone()).metrics(metrics.clone()).build();
        let (ours, theirs) = tokio::join!(take_over(&client, kind), accept(&listener, kind));
        let world = Self { client, source, breakers, metrics, endpoint, ours, theirs };
        // The other cause of zeros.
        assert_eq!(world.held(), (1, u32::from(kind != Kind::Raw)), "{kind:?}");
        world
    }

    /// Connections open and requests in flight of the cluster.
    fn held(&self) -> (u32, u32) {
        let all = self.breakers.snapshot();
        all.iter().fold((0, 0), |(open, busy), one| (open + one.connections, busy + one.default.requests))
    }

    /// Raw connections opened and not closed.
    fn unclosed(&self) -> u64 {
        let mut unclosed = 0;
        self.metrics.visit_tcp(|_, _, series| unclosed += series.opened() - series.closed());
        unclosed
    }

    /// Puts this in force; `sign` tells that it is.
    async fn take(&self, state: DestinationState, sign: &str) {
        self.source.set(TARGET, state);
        while !serde_json::to_string(&self.client.dump()).unwrap().contains(sign) {
            yield_now().await;
        }
    }

    /// The endpoint is gone, alone or with more.
    async fn lose(&self, gone: Gone, sign: [u8; 4]) {
        match gone {
            Gone::Endpoint => self.have(&[], sign).await,
            Gone::Cluster => {
                let clusters = [("test".into(), ClusterState::Failed("deleted".into()))].into_iter().collect();
                let gone = Snapshot { clusters, ..policy::snapshot_of(cluster("test"), []) };
                self.take(DestinationState::Ready(gone.into()), "deleted").await;
            }
            Gone::Destination => self.take(DestinationState::Failed("deleted".into()), "deleted").await,
        }
    }

    /// The cluster has these endpoints, and one of its own by which it is seen that they are in force.
    async fn have(&self, endpoints: &[Endpoint], sign: [u8; 4]) {
        let seen = Endpoint::new(Address::Socket((sign, 9).into()));
        let all = endpoints.iter().cloned().chain([seen.clone()]);
        let state = DestinationState::Ready(policy::snapshot_of(cluster("test"), all).into());
        self.take(state, &seen.address.to_string()).await;
    }
}

/// The cause of a failure, however hyper wraps it.
fn expect_gone(error: &std::io::Error, endpoint: &Endpoint, what: &str) {
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{what}: {error}");
    let said = error.to_string();
    for word in ["cluster test", &endpoint.address.to_string(), "is gone"] {
        assert!(said.contains(word), "{what}: {said} lacks {word}");
    }
}

/// Writes until the other side takes no more.
async fn fill(writing: &mut WriteHalf<Io>) {
    while writing.write(&[b'x'; 1 << 16]).now_or_never().is_some_and(|written| written.unwrap() > 0) {
        yield_now().await;
    }
}

fn halves(world: &mut World) -> (ReadHalf<Io>, WriteHalf<Io>) {
    let nothing: Io = Box::pin(tokio::io::empty());
    split(std::mem::replace(&mut world.ours, nothing))
}

#[tokio::test]
async fn what_the_application_has_of_a_removed_endpoint_is_taken_back_when_its_time_is_over() {
    for kind in KINDS {
        for limit in [LIMIT, Duration::MAX] {
            let what = format!("{kind:?} {limit:?}");
            let mut world = World::of(kind, limit).await;
            let (mut reading, mut writing) = halves(&mut world);
            fill(&mut writing).await;
            let (mut bytes, more) = ([0; 1], [b'x'; 1 << 16]);
            let mut read = std::pin::pin!(reading.read(&mut bytes));
            // As by another task: polled only when it is woken itself.
            let mut write =
                FuturesUnordered::from_iter([Box::pin(async move { (writing.write(&more).await, writing) })]);
            assert!(futures_util::poll!(&mut read).is_pending() && write.next().now_or_never().is_none());
            world.have(&[], NOBODY).await;
            tokio::time::pause();
            pass(LIMIT - SECOND).await;
            assert!(futures_util::poll!(&mut read).is_pending(), "{what}: it is not over");
            assert!(write.next().now_or_never().is_none(), "{what}: it is not over");
            assert_eq!(world.held().0, 1, "{what}");
            pass(2 * SECOND).await;
            let ends = limit == LIMIT;
            assert_eq!(world.held(), if ends { (0, 0) } else { (1, u32::from(kind != Kind::Raw)) }, "{what}");
            assert_eq!(world.unclosed(), u64::from(!ends && kind == Kind::Raw), "{what}");
            tokio::time::resume();
            if !ends {
                assert!(futures_util::poll!(&mut read).is_pending(), "{what}");
                assert!(write.next().now_or_never().is_none(), "{what}");
                continue;
            }
            expect_gone(&read.await.unwrap_err(), &world.endpoint, &what);
            let (written, mut writing) = write.next().now_or_never().flatten().expect("who writes is woken as well");
            expect_gone(&written.unwrap_err(), &world.endpoint, &what);
            // And so on.
            expect_gone(&reading.read(&mut [0]).await.unwrap_err(), &world.endpoint, &what);
            expect_gone(&writing.flush().await.unwrap_err(), &world.endpoint, &what);
        }
    }
}

/// As in Envoy and Linkerd: a database's connection, say, is not cut in the middle of a transaction.
#[tokio::test]
async fn by_default_what_the_application_has_outlives_the_requests_of_its_endpoint() {
    for (kind, gone) in KINDS.into_iter().flat_map(|kind| GONE.map(|gone| (kind, gone))) {
        for requests in [Some(LIMIT), None] {
            let limit = |client: ClientBuilder| requests.into_iter().fold(client, ClientBuilder::drain_limit);
            let mut world = World::with(kind, limit).await;
            world.lose(gone, NOBODY).await;
            tokio::time::pause();
            pass(120 * SECOND).await;
            tokio::time::resume();
            world.theirs.write_all(b"still").await.unwrap();
            let mut bytes = [0; 5];
            world.ours.read_exact(&mut bytes).await.unwrap();
            assert_eq!((&bytes, world.held().0), (b"still", 1), "{kind:?} {gone:?}");
            // When it ends nothing of it is left.
            drop(world.theirs);
            assert_eq!(world.ours.read(&mut bytes).await.unwrap(), 0);
            drop(world.ours);
            let all = world.breakers.snapshot();
            assert!(all.iter().all(|one| (one.connections, one.default.requests) == (0, 0)), "{kind:?} {gone:?}");
        }
    }
}

/// A pool of the application's own, say, looks at none of its connections for minutes.
#[tokio::test]
async fn one_that_nobody_looks_at_is_closed_all_the_same() {
    for kind in KINDS {
        for gone in GONE {
            let mut world = World::of(kind, LIMIT).await;
            world.lose(gone, NOBODY).await;
            tokio::time::pause();
            pass(LIMIT + SECOND).await;
            tokio::time::resume();
            assert_eq!((world.held(), world.unclosed()), ((0, 0), 0), "{kind:?}");
            // The other side has seen it.
            assert_eq!(world.theirs.read(&mut [0]).await.unwrap_or(0), 0);
            let (mut ours, mut bytes) = (world.ours, [0; 1]);
            expect_gone(&ours.read(&mut bytes).await.unwrap_err(), &world.endpoint, &format!("{kind:?} {gone:?}"));
        }
    }
}

#[tokio::test]
async fn what_the_application_has_stays_if_its_endpoint_comes_back_in_time() {
    for (kind, gone) in KINDS.into_iter().flat_map(|kind| GONE.map(|gone| (kind, gone))) {
        let what = format!("{kind:?} {gone:?}");
        let mut world = World::of(kind, LIMIT).await;
        world.lose(gone, NOBODY).await;
        tokio::time::pause();
        pass(LIMIT - SECOND).await;
        tokio::time::resume();
        world.have(std::slice::from_ref(&world.endpoint), [127, 9, 9, 2]).await;
        tokio::time::pause();
        pass(3 * LIMIT).await;
        tokio::time::resume();
        world.theirs.write_all(b"still").await.unwrap();
        let mut bytes = [0; 5];
        world.ours.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes, world.held().0), (b"still", 1), "{what}");

        // The next time it has all of its time again, and no more.
        world.lose(gone, [127, 9, 9, 3]).await;
        tokio::time::pause();
        pass(LIMIT - SECOND).await;
        assert_eq!(world.held().0, 1, "{what}: it is not over");
        pass(2 * SECOND).await;
        tokio::time::resume();
        assert_eq!(world.held(), (0, 0), "{what}");
        expect_gone(&world.ours.write(b"x").await.unwrap_err(), &world.endpoint, &what);
    }
}

#[tokio::test]
async fn an_answer_goes_on_if_its_endpoint_comes_back_in_time() {
    for (protocol, back) in [UpstreamProtocol::Http1, UpstreamProtocol::Http2].map(|p| [(p, true), (p, false)]).concat()
    {
        let server = EchoServer::start("v1").await;
        let mut speaking = cluster("test");
        speaking.connection.protocol = protocol;
        let source = FixedSource::of(TARGET, policy::snapshot_of(speaking.clone(), [server.endpoint()]));
        let client = Client::builder(source.clone()).drain_limit(LIMIT).build();
        server.behave(Behaviour::Stall);
        let mut answer = std::pin::pin!(read(client.send(get("/")).await.unwrap()));
        let take = async |endpoints: &[Endpoint], sign: [u8; 4]| {
            let seen = Endpoint::new(Address::Socket((sign, 9).into()));
            let all = endpoints.iter().cloned().chain([seen.clone()]);
            source.set_snapshot(TARGET, policy::snapshot_of(speaking.clone(), all));
            while !serde_json::to_string(&client.dump()).unwrap().contains(&seen.address.to_string()) {
                yield_now().await;
            }
        };
        take(&[], NOBODY).await;
        tokio::time::pause();
        assert!(futures_util::poll!(&mut answer).is_pending());
        pass(LIMIT - SECOND).await;
        if back {
            take(&[server.endpoint()], [127, 9, 9, 2]).await;
        }
        pass(3 * LIMIT).await;
        // The control: it is over.
        assert_eq!(futures_util::poll!(&mut answer).is_pending(), back, "{protocol:?}");
        if back {
            take(&[], [127, 9, 9, 3]).await;
            pass(LIMIT - SECOND).await;
            assert!(futures_util::poll!(&mut answer).is_pending(), "{protocol:?}: it is not over");
            pass(2 * SECOND).await;
            assert!(futures_util::poll!(&mut answer).is_ready(), "{protocol:?}");
        }
        tokio::time::resume();
    }
}

/// Another set of endpoints before its time is over gives it no more of it.
#[tokio::test]
async fn further_changes_do_not_put_the_end_off() {
    let world = World::of(Kind::Raw, LIMIT).await;
    world.have(&[], NOBODY).await;
    tokio::time::pause();
    for (second, sign) in (2..).zip([[127, 9, 9, 2], [127, 9, 9, 3], [127, 9, 9, 4], [127, 9, 9, 5]]) {
        pass(SECOND).await;
        world.have(&[], sign).await;
        assert_eq!(world.held().0, 1, "second {second}");
    }
    pass(2 * SECOND).await;
    assert_eq!(world.held().0, 0);
}

/// What is dropped before leaves nothing behind that waits for the end.
#[tokio::test]
async fn one_that_is_dropped_before_its_time_is_over_is_gone_at_once() {
    for kind in KINDS {
        let mut world = World::of(kind, LIMIT).await;
        world.have(&[], NOBODY).await;
        drop(std::mem::replace(&mut world.ours, Box::pin(tokio::io::empty())));
        assert_eq!((world.held(), world.unclosed()), ((0, 0), 0), "{kind:?}");
        let tasks = tokio::runtime::Handle::current().metrics();
        for _ in 0..1000 {
            yield_now().await;
        }
        assert_eq!(tasks.num_alive_tasks(), 1, "{kind:?}: that of the destination's owner is left");
    }
}
