//! Connections that break within something, and bodies that have no end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{poll, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use mesh_client::{Client, Error, Io};
use mesh_core::error::{Code, Fault, Retry};
use mesh_core::policy::{
    Address, ConnectionOptions, Endpoint, Forward, RetryOn, RetryPolicy, RouteMatch, UpstreamProtocol,
};
use mesh_testkit::{Behaviour, CertificateSpec, EchoServer, FixedSource, TestCa, crypto, policy};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::connections::speaking;
use super::tls::{REVIEWS, builder};
use super::{TARGET, client_of, cluster, fetch, forward_with, post, snapshot_with};

/// A connection that breaks in the middle of a write, once told to.
struct Breaking {
    io: TcpStream,
    breaks: Arc<AtomicBool>,
    broken: bool,
}

impl AsyncRead for Breaking {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if !self.breaks.load(Ordering::Relaxed) {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        }
        let half = Pin::new(&mut self.io).poll_write(cx, &buf[..buf.len() / 2]);
        self.broken = half.is_ready();
        half.map(|_| Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn what_a_write_that_failed_may_have_sent_is_not_taken_for_unsent() {
    let ca = TestCa::new();
    let secure = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    let plain = EchoServer::start("plain").await;
    // TLS of ours, and a stream of the application's own, which may have TLS in it.
    for (mut cluster, server) in [(policy::mtls_cluster("test", &[REVIEWS]), &secure), (cluster("test"), &plain)] {
        cluster.connection.protocol = UpstreamProtocol::Http1;
        let breaks = Arc::<AtomicBool>::default();
        let breaking = breaks.clone();
        let connect = move |address: Address| {
            let breaks = breaking.clone();
            async move {
                let Address::Socket(address) = address else { unreachable!("it is one") };
                let io = TcpStream::connect(address).await?;
                // The next one is whole.
                breaks.store(false, Ordering::Relaxed);
                Ok(Box::new(Breaking { io, breaks, broken: false }) as Box<dyn Io>)
            }
        };
        let client = builder(cluster, server).identity(ca.watched("default", "web")).connector(connect).build();
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        breaks.store(true, Ordering::Relaxed);
        let error = client.send(post("/", "pay")).await.unwrap_err();
        assert_eq!((error.code(), error.retry()), (Code::CONNECTION_LOST, Retry::Unsafe), "{error}");
        assert_eq!((server.requests(), server.connections()), (1, 1));
    }
}

#[tokio::test]
async fn the_end_of_a_connection_is_said_within_tls() {
    let ca = TestCa::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let certificate = ca.certified(&CertificateSpec::of(&ca.id("default", "reviews")));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(ca.server_showing(certificate, &[])));
    let mut secure = policy::mtls_cluster("test", &[REVIEWS]);
    secure.connection.protocol = UpstreamProtocol::Http1;
    let snapshot = policy::snapshot_of(secure, [Endpoint::new(Address::Socket(listener.local_addr().unwrap()))]);
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(crypto());
    let client = builder.identity(ca.watched("default", "web")).build();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = acceptor.accept(tcp).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            tls.read_buf(&mut heard).await.unwrap();
        }
        tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        tls
    };
    let (mut tls, answer) = tokio::join!(serve, fetch(&client, "/"));
    assert_eq!(answer.unwrap().status(), 200);
    drop(client);
    // A stream that only stops might have been cut, and is an error.
    assert_eq!(tls.read(&mut [0; 10]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_counts_until_it_is_closed_whoever_still_has_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, _) = client_of(policy::snapshot_to(&[listener.local_addr().unwrap()]));
    let open = || client.dump().destinations[0].clusters[0].open_connections;
    let upload = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = Request::post(format!("http://{TARGET}/")).body(upload).unwrap();
    let early = async {
        let (mut io, _) = listener.accept().await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na").await.unwrap();
        io
    };
    let (mut io, answer) = tokio::join!(early, client.send(request));
    // A task goes on to send the request, and has the socket.
    drop(answer.unwrap());
    assert_eq!(open(), 1);
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    assert_eq!(open(), 0);
}

#[tokio::test]
async fn a_body_without_end_that_says_nothing_lets_others_have_their_turn() {
    const ALL: usize = 1 << 20;
    let server = EchoServer::start("one").await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (client, _) = client_of(snapshot_with(forward_with(None), speaking(protocol), &[&server]));
        fetch(&client, "/").await.unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let counted = asked.clone();
        let frames = stream::poll_fn(move |_| {
            let more = counted.fetch_add(1, Ordering::Relaxed) < ALL;
            Poll::Ready(more.then(|| Ok::<_, Infallible>(Frame::data(Bytes::new()))))
        });
        let request = Request::post(format!("http://{TARGET}/"));
        let mut sent = Box::pin(client.send(request.body(StreamBody::new(frames)).unwrap()));
        assert!(poll!(&mut sent).is_pending());
        let asked = asked.load(Ordering::Relaxed);
        assert!((1..ALL).contains(&asked), "{protocol:?}: {asked}");
    }
}

/// A connection whose encrypted bytes go out broken from a moment on: the peer answers that with an alert.
struct Spoiled {
    io: TcpStream,
    spoils: Arc<AtomicBool>,
}

impl AsyncRead for Spoiled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Spoiled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut buf = buf.to_vec();
        if self.spoils.load(Ordering::Relaxed) {
            *buf.last_mut().unwrap() ^= 1;
        }
        Pin::new(&mut self.io).poll_write(cx, &buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Control: `a_server_that_refuses_our_certificate_is_told_as_a_tls_failure`, whose alert comes over a fresh connection.
#[tokio::test]
async fn an_alert_over_a_connection_that_served_before_is_a_connection_lost() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("reviews", &ca.identity("default", "reviews")).await;
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let mut secure = policy::mtls_cluster("test", &[REVIEWS]);
        secure.connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
        let spoils = Arc::<AtomicBool>::default();
        let spoiling = spoils.clone();
        let connect = move |address: Address| {
            let spoils = spoiling.clone();
            async move {
                let Address::Socket(address) = address else { unreachable!("it is one") };
                let io = TcpStream::connect(address).await?;
                Ok(Box::new(Spoiled { io, spoils }) as Box<dyn Io>)
            }
        };
        let client = builder(secure, &server).identity(ca.watched("default", "web")).connector(connect).build();
        assert_eq!(fetch(&client, "/").await.unwrap().status(), 200);
        spoils.store(true, Ordering::Relaxed);
        let error = client.send(post("/", "pay")).await.unwrap_err();
        // It may have been seen: nobody may take it for unsent.
        assert_eq!((error.code(), error.retry()), (Code::CONNECTION_LOST, Retry::Unsafe), "{protocol:?}: {error}");
        let mut source = std::error::Error::source(&error);
        let mut told = String::new();
        while let Some(error) = source {
            told += &error.to_string();
            source = error.source();
        }
        assert!(told.contains("alert"), "{protocol:?}: {told}");
    }
}

/// Anybody on the way can bring an alert about, and the request may have been worked on by then.
#[tokio::test]
async fn an_alert_that_refuses_no_certificate_is_no_leave_to_send_a_request_again() {
    let ca = TestCa::new();
    let identity = ca.identity("default", "reviews");
    let servers = [EchoServer::start_mtls("one", &identity).await, EchoServer::start_mtls("other", &identity).await];
    servers.iter().for_each(|server| server.behave(Behaviour::Hold));
    let on_the_way = Arc::<Mutex<Option<std::net::TcpStream>>>::default();
    let sees = on_the_way.clone();
    let connect = move |address: Address| {
        let sees = sees.clone();
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            let io = TcpStream::connect(address).await?.into_std()?;
            *sees.lock() = Some(io.try_clone()?);
            Ok(Box::new(TcpStream::from_std(io)?) as Box<dyn Io>)
        }
    };
    let forward = forward_with(Some(RetryPolicy::istio_default()));
    let snapshot = snapshot_with(forward, super::tls::speaking(UpstreamProtocol::Http1), &servers.each_ref());
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).crypto(crypto());
    let client = client.identity(ca.watched("default", "web")).connector(connect).build();
    let disturb = async {
        while servers.iter().all(|server| server.requests() == 0) {
            tokio::task::yield_now().await;
        }
        // A record that was not made with their key.
        let record = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
        io::Write::write_all(&mut on_the_way.lock().take().unwrap(), &record).unwrap();
    };
    let both = async { tokio::join!(client.send(post("/", "pay")), disturb) };
    let (answer, ()) =
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("it is not sent again, and held");
    let error = answer.unwrap_err();
    assert_eq!((error.code(), error.retry()), (Code::CONNECTION_LOST, Retry::Unsafe), "{error}");
    assert_eq!(servers.iter().map(EchoServer::requests).sum::<u64>(), 1);
}

type Fetching = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Error>>>>;

/// So many requests over HTTP/1.1 that have gone out, and the ends where they have come.
async fn gone_out(forward: Forward, count: usize) -> (Vec<Fetching>, Vec<DuplexStream>) {
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let list = vec![Endpoint::new(Address::Socket(([10, 0, 0, 1], 80).into()))];
    let dialled = Arc::new(Mutex::new(Vec::new()));
    let dials = dialled.clone();
    let client = Client::builder(FixedSource::of(TARGET, policy::snapshot(routes, [(cluster("test"), list)])));
    let client = client.connector(move |_: Address| {
        let (near, far) = tokio::io::duplex(1024);
        dials.lock().push(far);
        async { Ok(Box::new(near) as Box<dyn Io>) }
    });
    let client = client.build();
    let fetching = |client: Client| async move { fetch(&client, "/").await };
    let mut requests: Vec<Fetching> = (0..count).map(|_| Box::pin(fetching(client.clone())) as Fetching).collect();
    let (mut ends, mut heads) = (Vec::new(), vec![BytesMut::new(); count]);
    while !heads.iter().all(|head| head.ends_with(b"\r\n\r\n")) {
        for request in &mut requests {
            assert!(poll!(request).is_pending());
        }
        tokio::task::yield_now().await;
        ends.append(&mut *dialled.lock());
        for (end, head) in ends.iter_mut().zip(&mut heads) {
            let _ = poll!(pin!(end.read_buf(head)));
        }
    }
    (requests, ends)
}

async fn answer(ends: &mut [DuplexStream]) {
    for end in ends {
        end.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
}

#[test]
fn answers_that_come_at_one_time_are_all_there_before_the_first_is_gone_on_with() {
    let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let several = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Who is alone waits for nobody, nor does who has another thread to wake up for it.
    for (runtime, count, at_once) in [(&one, 1, true), (&one, 2, false), (&several, 2, true)] {
        runtime.block_on(async {
            let (mut requests, mut ends) = gone_out(forward_with(None), count).await;
            answer(&mut ends).await;
            for ready in [at_once, true] {
                for request in &mut requests {
                    assert_eq!(poll!(request).is_ready(), ready, "{count} {at_once}");
                }
                if ready {
                    break;
                }
            }
        });
    }
}

/// Who was held up and finds the answer there does not lose it to a limit that is over by then.
#[tokio::test(start_paused = true)]
async fn no_answer_that_is_there_is_lost_by_giving_way() {
    let time = Duration::from_secs(10);
    let per_try = RetryPolicy { per_try_timeout: Some(time), ..RetryPolicy::new(0, RetryOn::default()) };
    let silent = RetryPolicy { per_try_idle_timeout: Some(time), ..RetryPolicy::new(0, RetryOn::default()) };
    let limits = [
        Forward { timeout: Some(time), ..forward_with(None) },
        Forward { idle_timeout: Some(time), ..forward_with(None) },
        forward_with(Some(per_try)),
        forward_with(Some(silent)),
    ];
    for (forward, answered) in limits.iter().flat_map(|limit| [(limit, true), (limit, false)]) {
        let (requests, mut ends) = gone_out(forward.clone(), 2).await;
        if answered {
            answer(&mut ends).await;
        }
        tokio::time::advance(2 * time).await;
        for request in requests {
            // Control: without an answer each of them ends the request.
            let status = request.await.map(|answer| answer.status().as_u16()).ok();
            assert_eq!(status, answered.then_some(200), "{forward:?}");
        }
    }
}
