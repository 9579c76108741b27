//! Endpoints that answer with what no server should: each costs its own request and nobody else's.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use mesh_client::{Client, Io};
use mesh_core::error::{Code, Fault, Retry};
use mesh_core::policy::{Cluster, Forward, UpstreamProtocol};
use mesh_testkit::{EchoServer, FixedSource, policy};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{TARGET, client_of, cluster, fetch, post, snapshot_with};

/// A server whose first connection says these bytes, one text each time it has read something, and then closes or stays
/// open; later ones are those of a good server.
struct Hostile {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    good: EchoServer,
    task: JoinHandle<()>,
}

impl Hostile {
    async fn start(says: Vec<u8>, closes: bool) -> Self {
        Self::saying(vec![says], closes).await
    }

    // The test owns the task.
    #[allow(clippy::disallowed_methods)]
    async fn saying(texts: Vec<Vec<u8>>, closes: bool) -> Self {
        let good = EchoServer::start("good").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, behind) = (connections.clone(), good.address());
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let first = count.fetch_add(1, Ordering::Relaxed) == 0;
                let texts = texts.clone();
                all.spawn(async move {
                    if !first {
                        let mut good = TcpStream::connect(behind).await.unwrap();
                        let _ = copy_bidirectional(&mut tcp, &mut good).await;
                        return;
                    }
                    let mut heard = [0; 4096];
                    for says in texts {
                        let _ = tcp.read(&mut heard).await;
                        let _ = tcp.write_all(&says).await;
                    }
                    while !closes && tcp.read(&mut heard).await.is_ok_and(|read| read > 0) {}
                });
            }
        });
        Self { address, connections, good, task }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn cluster(&self, protocol: UpstreamProtocol) -> Cluster {
        let mut cluster = cluster("test");
        cluster.connection.protocol = protocol;
        cluster
    }

    fn client(&self, protocol: UpstreamProtocol) -> mesh_client::Client {
        let mut endpoint = self.good.endpoint();
        endpoint.address = mesh_core::policy::Address::Socket(self.address);
        let forward = Forward { timeout: Some(Duration::from_secs(20)), ..Forward::to("test".into()) };
        let routes = policy::routes([policy::forward(mesh_core::policy::RouteMatch::any(), forward)]);
        client_of(policy::snapshot(routes, [(self.cluster(protocol), vec![endpoint])])).0
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it must come")
}

#[tokio::test]
async fn s77_a_hostile_http1_endpoint_costs_its_own_request_only() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let many = |line: &str, times| line.repeat(times);
    for (name, says, closes) in [
        ("nothing", String::new(), true),
        ("another protocol", "SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(), false),
        ("no status", "HTTP/1.1 abc OK\r\n\r\n".to_owned(), false),
        ("two lengths", format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\nab"), true),
        ("a length that is none", format!("{ok}content-length: -1\r\n\r\n"), true),
        ("less than announced", format!("{ok}content-length: 5\r\n\r\nab"), true),
        ("a chunk that is none", format!("{ok}transfer-encoding: chunked\r\n\r\nzz\r\n"), false),
        ("no last chunk", format!("{ok}transfer-encoding: chunked\r\n\r\n2\r\nab\r\n"), true),
        ("an endless size of a chunk", format!("{ok}transfer-encoding: chunked\r\n\r\n{}", many("f", 100)), false),
        ("a NUL in a header", format!("{ok}x-a: b\0c\r\n\r\n"), false),
        ("an endless header", format!("{ok}x-a: {}", many("b", 4 << 20)), false),
        ("headers without end", format!("{ok}{}", many("x-a: b\r\n", 200_000)), false),
        ("provisional answers and no other", many("HTTP/1.1 100 Continue\r\n\r\n", 10_000), true),
    ] {
        let hostile = Hostile::start(says.into_bytes(), closes).await;
        let client = hostile.client(UpstreamProtocol::Http1);
        let answer = within(fetch(&client, "/first")).await;
        assert!(answer.is_err(), "{name}: {answer:?}");
        assert_eq!(hostile.good.requests(), 0, "{name}");
        // The next one has a connection of its own.
        assert_eq!(within(fetch(&client, "/next")).await.unwrap().headers()["x-echo-path"], "/next", "{name}");
    }
}

#[tokio::test]
async fn what_was_answered_with_nonsense_over_a_connection_used_again_is_not_sent_again() {
    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec();
    for (says, closes, again) in [
        ("SSH-2.0-OpenSSH_9.9\r\n\r\n", false, false),
        ("HTTP/1.1 abc OK\r\n\r\n", true, false),
        // Who has begun to answer has looked at it.
        ("HTTP/1.1 500 Inter", true, false),
        ("HTTP/1.1 100 Continue\r\n\r\n", true, false),
        // Control: closed without a word it was on its way out, and has most likely not looked at the request.
        ("", true, true),
    ] {
        let hostile = Hostile::saying(vec![ok.clone(), says.into()], closes).await;
        let client = hostile.client(UpstreamProtocol::Http1);
        assert_eq!(&within(fetch(&client, "/first")).await.unwrap().body()[..], b"ok");
        assert_eq!(within(fetch(&client, "/second")).await.is_ok(), again, "{says:?}");
        assert_eq!(hostile.good.requests(), u64::from(again), "{says:?}");
        assert_eq!(within(fetch(&client, "/next")).await.unwrap().headers()["x-echo-path"], "/next");
    }
}

#[tokio::test]
async fn s77_an_answer_that_nobody_asked_for_is_nobodys() {
    let answer = |text: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
    for (own, forged) in [
        (answer("own"), answer("forged")),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), answer("forged")),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\n".to_owned(), format!("forged{}", answer("forged"))),
    ] {
        let hostile = Hostile::start(format!("{own}{forged}").into_bytes(), false).await;
        let client = hostile.client(UpstreamProtocol::Http1);
        let first = within(fetch(&client, "/first")).await.unwrap();
        assert!(!String::from_utf8_lossy(first.body()).contains("forged"), "{own}");
        let next = within(fetch(&client, "/next")).await.unwrap();
        assert_eq!(next.headers()["x-echo-path"], "/next", "{own}");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;

#[tokio::test]
async fn s77_a_hostile_http2_endpoint_costs_its_own_request_only() {
    let settings = frame(SETTINGS, 0, 0, &[]);
    // A header that goes into the table, and references to it.
    let large = [&[0x40, 1, b'x', 127, 0xa1, 0x1e][..], &[b'a'; 4000], &[0x80 | 62; 16_000][..12_000]].concat();
    let bomb = [&[0x88][..], &large].concat();
    for (name, says) in [
        ("a frame that is too large", [&settings[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("a body without a head", [&settings[..], &frame(DATA, 1, 1, b"x")].concat()),
        ("a head without a status", [&settings[..], &frame(HEADERS, END_HEADERS | 1, 1, &[])].concat()),
        ("a head that is no HPACK", [&settings[..], &frame(HEADERS, END_HEADERS | 1, 1, &[0xff; 9])].concat()),
        ("a promise", [&settings[..], &frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x88])].concat()),
        ("a window that overflows", [&settings[..], &frame(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255])].concat()),
        ("headers that grow", [&settings[..], &frame(HEADERS, END_HEADERS | 1, 1, &bomb)].concat()),
    ] {
        let hostile = Hostile::start(says, false).await;
        let client = hostile.client(UpstreamProtocol::Http2);
        let answer = within(fetch(&client, "/first")).await;
        // Lost before anybody had seen it, it is sent once more.
        let again = answer.as_ref().is_ok_and(|answer| answer.headers()["x-echo-server"] == "good");
        assert!(answer.is_err() || again, "{name}: {answer:?}");
        assert_eq!(within(fetch(&client, "/next")).await.unwrap().headers()["x-echo-path"], "/next", "{name}");
    }
}

/// Control: `a_fresh_connection_that_dies_is_not_retried_without_a_policy`, whose peer has spoken.
#[tokio::test]
async fn a_peer_that_has_not_spoken_http2_is_sent_no_request() {
    let alert = [21, 3, 3, 0, 2, 2, 70];
    for (name, says) in [("TLS", &alert[..]), ("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\n\r\n"), ("nothing", b"")] {
        let hostile = Hostile::start(says.to_vec(), true).await;
        let client = hostile.client(UpstreamProtocol::Http2);
        let error = within(client.send(post("/", "pay"))).await.unwrap_err();
        assert_eq!((error.code(), error.retry()), (Code::CONNECT_FAILED, Retry::Safe), "{name}: {error}");
        assert_eq!(hostile.connections(), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn s78_an_endpoint_whose_connections_end_as_they_begin_is_not_dialled_without_a_pause() {
    let none_allowed = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
    let says = [frame(SETTINGS, 0, 0, &[]), none_allowed, frame(GOAWAY, 0, 0, &[0; 8])].concat();
    let dialled = Arc::<Mutex<Vec<DuplexStream>>>::default();
    let others = dialled.clone();
    let mut speaking = cluster("test");
    speaking.connection.protocol = UpstreamProtocol::Http2;
    let address = mesh_core::policy::Address::Socket(([127, 0, 0, 1], 1).into());
    let endpoint = mesh_core::policy::Endpoint::new(address);
    let source = FixedSource::of(TARGET, policy::snapshot_of(speaking, [endpoint]));
    let builder = Client::builder(source).random(|below| below / 2).connector(move |_| {
        // It has spoken before it is asked: whether the connection is gone when its first request comes is no chance.
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let (says, others) = (says.clone(), others.clone());
        async move {
            // The request that is stuck without a pause ends here.
            if others.lock().len() == 1000 {
                return Err(std::io::Error::other("once too often"));
            }
            theirs.write_all(&says).await?;
            others.lock().push(theirs);
            Ok(Box::new(ours) as Box<dyn Io>)
        }
    });
    let client = builder.build();
    for answer in join_all((0..20).map(|_| fetch(&client, "/"))).await {
        let error = answer.unwrap_err();
        assert_eq!(error.code(), Code::CONNECT_FAILED, "{error}");
    }
    // Once more at once, for who leaves may have a successor; and then after longer and longer times.
    assert_eq!(dialled.lock().len(), 2);
    for _ in 0..600 {
        mesh_testkit::clock::pass(Duration::from_millis(100)).await;
        let error = fetch(&client, "/").await.unwrap_err();
        assert_eq!(error.code(), Code::CONNECT_FAILED, "{error}");
    }
    let dialled = dialled.lock().len();
    assert!((10..25).contains(&dialled), "{dialled} in a minute");
}

#[tokio::test]
async fn s78_an_endpoint_that_leaves_and_allows_no_streams_is_left() {
    let none_allowed = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
    let leaves = frame(GOAWAY, 0, 0, &[0; 8]);
    for says in [[&none_allowed[..], &leaves].concat(), [&leaves[..], &none_allowed].concat()] {
        let says = [frame(SETTINGS, 0, 0, &[]), says].concat();
        let hostile = Hostile::start(says, false).await;
        let client = hostile.client(UpstreamProtocol::Http2);
        let mut said = Vec::new();
        for n in 0..5 {
            said.push(within(fetch(&client, &format!("/{n}"))).await.map_err(|error| error.code()).map(|_| ()));
        }
        // GOAWAY says that the first one was not looked at, so it goes to the next connection, as do the others.
        assert_eq!(said, [Ok(()); 5]);
        assert!(hostile.connections() >= 2);
    }
    // The control: one that does neither is stayed with.
    let server = EchoServer::start("good").await;
    let mut speaking = cluster("test");
    speaking.connection.protocol = UpstreamProtocol::Http2;
    let (client, _) = client_of(snapshot_with(Forward::to("test".into()), speaking, &[&server]));
    for _ in 0..5 {
        fetch(&client, "/").await.unwrap();
    }
    assert_eq!(server.connections(), 1);
}
