use std::io;
use std::path::Path;

use http_body_util::Empty;
use hyper::client::conn::http2 as client;
use mesh_core::id::TrustDomain;
use mesh_core::identity::client_config;
use mesh_core::policy::StringMatcher;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;
use crate::Clock;
use crate::ca::{CertificateAuthority, CertificateLife};
use crate::runtime::{Bounds, Port, Task, certificate, serve, spawn};

const PLANE: &str = "spiffe://cluster.local/ns/mesh-system/sa/control-plane";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// An authority and what it issued for its own port.
fn authority(home: &Path) -> (Arc<CertificateAuthority>, Arc<ServerCertificate>) {
    let domain = TrustDomain::new("cluster.local").unwrap();
    let authority = CertificateAuthority::open(home, domain, CertificateLife::default(), Clock::system()).unwrap();
    let (authority, names) = (Arc::new(authority), vec!["localhost".to_owned()]);
    let (certificate, _) =
        ServerCertificate::new(authority.clone(), PLANE.parse().unwrap(), names, provider()).unwrap();
    (authority, Arc::new(certificate))
}

/// How somebody without a certificate connects.
fn anonymous_config(authority: &CertificateAuthority) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.bundle().roots()[0].clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A port whose clients are wherever they say.
struct Site {
    authority: Arc<CertificateAuthority>,
    certificate: Arc<ServerCertificate>,
    door: Arc<Door>,
    _trigger: drain::DrainTrigger,
    _home: tempfile::TempDir,
}

impl Site {
    fn new(bounds: Bounds, routes: axum::Router) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (authority, certificate) = authority(home.path());
        let (trigger, drain) = drain::channel();
        let (admission, refusals) = (Admission::new(bounds), Arc::default());
        let door = Door { speaks: Speaks::Secured(certificate.clone()), routes, admission, refusals, drain };
        Self { authority, certificate, door: Arc::new(door), _trigger: trigger, _home: home }
    }

    /// A connection from an address; the second ends it.
    fn connect(&self, from: [u8; 4]) -> (DuplexStream, Task) {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (door, certificate) = (self.door.clone(), self.certificate.clone());
        let task = spawn(async move { secured(server, (from, 1).into(), &certificate, &door).await });
        (client, task)
    }

    /// The same of a member; an error if it is not served.
    async fn member(&self, account: &str, from: [u8; 4]) -> io::Result<(ClientStream<DuplexStream>, Task)> {
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
        let bundles = certificate::own_bundles(&self.authority);
        let (identity, _) = certificate::identity(&self.authority, bundles, &id, &[], &provider(), 0).unwrap();
        let config = client_config(&identity, &[StringMatcher::exact(PLANE)], &[b"h2"], &provider()).unwrap();
        let (client, task) = self.connect(from);
        let mut stream = TlsConnector::from(Arc::new(config)).connect(localhost(), client).await?;
        // What an HTTP/2 server says first.
        stream.read_exact(&mut [0; 9]).await?;
        Ok((stream, task))
    }

    /// Connections that say so many bytes of their first message, at most all of it, and nothing more.
    async fn begun(&self, count: usize, from: [u8; 4], bytes: usize) -> Vec<(DuplexStream, Task)> {
        let mut hello = Vec::new();
        ClientConnection::new(anonymous_config(&self.authority), localhost()).unwrap().write_tls(&mut hello).unwrap();
        let mut begun = Vec::new();
        for _ in 0..count {
            let (mut client, task) = self.connect(from);
            client.write_all(&hello[..bytes.min(hello.len())]).await.unwrap();
            begun.push((client, task));
        }
        // Until all that can be done of them is.
        for _ in 0..10 * count {
            tokio::task::yield_now().await;
        }
        begun
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        self.door.refusals.metrics(&mut text);
        text
    }
}

/// A port on a socket that serves nothing, and how a client without a certificate goes there.
async fn port(home: &Path, bounds: Bounds) -> (SocketAddr, Task, TlsConnector) {
    let (authority, certificate) = authority(home);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (speaks, routes, refusals) = (Speaks::Secured(certificate), axum::Router::new(), Arc::default());
    let (trigger, drain) = drain::channel();
    let task = spawn(async move {
        serve(Port { listener, speaks, routes, bounds, refusals, drain }).await;
        drop(trigger);
    });
    (address, task, TlsConnector::from(anonymous_config(&authority)))
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_from_shaking_hands() {
    let home = tempfile::tempdir().unwrap();
    let bounds = Bounds { handshakes: 1, anonymous: 1, ..Bounds::default() };
    let (address, _task, tls) = port(home.path(), bounds).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let connect = async || tls.connect(localhost(), TcpStream::connect(address).await.unwrap()).await;
    let mut first = connect().await.unwrap();
    // What an HTTP/2 server says first.
    let mut settings = [0; 9];
    first.read_exact(&mut settings).await.unwrap();
    let still = silent.try_read(&mut [0]).unwrap_err();
    assert_eq!(still.kind(), io::ErrorKind::WouldBlock, "the silent one is still there");
    // Of those without a certificate there is room for one.
    let mut second = connect().await.unwrap();
    assert!(second.read_exact(&mut settings).await.is_err());
    drop(first);
    loop {
        let mut third = connect().await.unwrap();
        if third.read_exact(&mut settings).await.is_ok() {
            break;
        }
    }
}

/// How long a member waits while a stranger has begun eight handshakes, of each so many bytes.
async fn waits(bounds: Bounds, bytes: usize) -> Duration {
    let site = Site::new(bounds, axum::Router::new());
    let _stranger = site.begun(8, [192, 0, 2, 1], bytes).await;
    let begin = Instant::now();
    site.member("reviews", [192, 0, 2, 2]).await.unwrap();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_does_not_finish_its_handshakes_keeps_no_other_address_out() {
    let bounds = Bounds { handshakes: 4, handshakes_of_address: 3, ..Bounds::default() };
    assert_eq!(waits(bounds, usize::MAX).await, Duration::ZERO);
    // The control: an address that may have all places has them, but not for longer than it answers.
    let all = Bounds { handshakes_of_address: 4, ..bounds };
    let waited = waits(all, usize::MAX).await;
    assert!((STALL..2 * STALL).contains(&waited), "{waited:?}");
    // Who has not said all of its first message takes none.
    assert_eq!([waits(all, 1).await, waits(all, 100).await], [Duration::ZERO; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_is_finished_in_time_or_ends_and_counts() {
    let site = Site::new(Bounds::default(), axum::Router::new());
    for (bytes, count) in [(1, 1), (usize::MAX, 2)] {
        let begin = Instant::now();
        for (mut client, task) in site.begun(1, [192, 0, 2, 1], bytes).await {
            // It may be told first what the control plane has to say.
            while client.read(&mut [0; 4096]).await.unwrap() > 0 {}
            task.finished().await;
        }
        assert!((HANDSHAKE..HANDSHAKE + STALL).contains(&begin.elapsed()), "{:?}", begin.elapsed());
        assert!(site.metrics().contains(&format!("{{reason=\"timeout\"}} {count}\n")), "{}", site.metrics());
    }
    let (mut client, task) = site.connect([192, 0, 2, 1]);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    task.finished().await;
    // Who leaves without a word did nothing wrong.
    let (client, task) = site.connect([192, 0, 2, 1]);
    drop(client);
    task.finished().await;
    assert!(site.metrics().contains("{reason=\"handshake\"} 1\n"), "{}", site.metrics());
}

#[tokio::test(start_paused = true)]
async fn an_identity_and_an_address_have_so_many_connections_and_others_theirs() {
    let bounds = Bounds { of_identity: 2, unproved_of_address: 2, ..Bounds::default() };
    let site = Site::new(bounds, axum::Router::new());
    let node = [192, 0, 2, 1];
    let (first, _second) = (site.member("a", node).await.unwrap(), site.member("a", node).await.unwrap());
    assert!(site.member("a", node).await.is_err());
    // Those that have shown a certificate take no place of their address.
    let _others = (site.member("b", node).await.unwrap(), site.member("c", node).await.unwrap());
    assert!(site.metrics().contains("{reason=\"identity_limit\"} 1\n"), "{}", site.metrics());
    drop(first);
    let _again = site.member("a", node).await.expect("the control: there is room again");
    let begun = site.begun(2, node, 1).await;
    assert!(site.member("d", node).await.is_err());
    assert!(site.metrics().contains("{reason=\"address_limit\"} 1\n"), "{}", site.metrics());
    drop(begun);
    site.member("d", node).await.expect("the control: there is room again");
}

/// Speaks HTTP/2 and answers pings until the server closes.
async fn linger(io: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(io);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    write.write_all(preface).await.unwrap();
    let mut frame = [0; 9];
    while read.read_exact(&mut frame).await.is_ok() {
        let mut payload = vec![0; usize::from(frame[1]) << 8 | usize::from(frame[2])];
        read.read_exact(&mut payload).await.unwrap();
        // A PING that is no answer.
        if frame[3] == 6 && frame[4] == 0 {
            frame[4] = 1;
            // The server may close just now.
            let _ = write.write_all(&[&frame[..], &payload].concat()).await;
        }
    }
}

fn member(address: SocketAddr) -> Peer {
    let caller = Caller::Workload("spiffe://cluster.local/ns/default/sa/a".parse().unwrap());
    Peer { address, caller, joined: false }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_cut_after_a_while_without_a_certificate_and_later_if_it_has_no_stream() {
    let site = Site::new(Bounds::default(), axum::Router::new());
    let address = SocketAddr::from(([192, 0, 2, 1], 1));
    let begin = Instant::now();
    let (client, server) = tokio::io::duplex(4096);
    tokio::join!(linger(client), anonymous(server, address, &site.door));
    assert_eq!(begin.elapsed(), ANONYMOUS);
    let begin = Instant::now();
    let (client, server) = tokio::io::duplex(4096);
    let both = async { tokio::join!(linger(client), http(server, member(address), &site.door, pending())) };
    timeout(2 * IDLE, both).await.expect("it has no stream");
    assert!((IDLE..=IDLE + GRACEFUL).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    // So is one that does not even speak HTTP/2.
    let begin = Instant::now();
    let (_client, server) = tokio::io::duplex(4096);
    timeout(2 * IDLE, http(server, member(address), &site.door, pending())).await.expect("it has no stream");
    assert!((IDLE..=IDLE + GRACEFUL).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_while_a_stream_of_it_is_open() {
    let open = || async { axum::body::Body::from_stream(futures_util::stream::pending::<io::Result<bytes::Bytes>>()) };
    let site = Site::new(Bounds::default(), axum::Router::new().fallback(open));
    let (io, server) = tokio::io::duplex(4096);
    let door = site.door.clone();
    let served = spawn(async move { http(server, member(([192, 0, 2, 1], 1).into()), &door, pending()).await });
    let (mut requests, connection) = client::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let _connection = spawn(async move { drop(connection.await) });
    let request = http::Request::post("http://localhost/").body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = requests.send_request(request).await.unwrap();
    mesh_testkit::clock::pass(3 * IDLE).await;
    assert!(!requests.is_closed());
    let begin = Instant::now();
    drop(answer);
    timeout(2 * IDLE, served.finished()).await.expect("it has no stream any more");
    assert!((IDLE..=IDLE + GRACEFUL).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

/// How long a client of pages stays that says this, and what it is told.
async fn asks(said: &[u8]) -> (Duration, String) {
    let site = Site::new(Bounds::default(), axum::Router::new().fallback(async || "page"));
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let door = site.door.clone();
    let served = spawn(async move { pages(server, &door).await });
    let begin = Instant::now();
    client.write_all(said).await.unwrap();
    timeout(2 * PAGES, served.finished()).await.expect("it is let go");
    let mut told = String::new();
    client.read_to_string(&mut told).await.unwrap();
    (begin.elapsed(), told)
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_a_page_by_halves_or_with_too_much_is_let_go() {
    for said in ["", "GET / HTTP/1.1\r\nhost: local"] {
        let (after, told) = asks(said.as_bytes()).await;
        assert!((PAGE_HEAD..PAGE_HEAD * 2).contains(&after), "{said:?}: {after:?} {told}");
        assert!(!told.contains("200"), "{told}");
    }
    let one = format!("a: {}\r\n", "x".repeat(MAX_HEADERS as usize));
    for more in [one, "a: b\r\n".repeat(101)] {
        let (after, told) = asks(format!("GET / HTTP/1.1\r\nhost: localhost\r\n{more}\r\n").as_bytes()).await;
        assert_eq!((after, told.starts_with("HTTP/1.1 431 ")), (Duration::ZERO, true), "{told}");
    }
    // The control: a whole request is answered, and the connection waits for another as long.
    let (after, told) = asks(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert!((PAGE_HEAD..PAGE_HEAD * 2).contains(&after) && told.ends_with("page"), "{after:?} {told}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_page_is_cut() {
    let endless =
        || async { axum::body::Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, io::Error>("page"))) };
    let site = Site::new(Bounds::default(), axum::Router::new().fallback(endless));
    let (mut client, server) = tokio::io::duplex(4096);
    let begin = Instant::now();
    client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    timeout(2 * PAGES, pages(server, &site.door)).await.expect("it is cut");
    assert_eq!(begin.elapsed(), PAGES);
}

#[tokio::test(start_paused = true)]
async fn a_request_has_so_many_bytes_of_headers_and_who_has_no_certificate_so_many_streams() {
    let open = || async { axum::body::Body::from_stream(futures_util::stream::pending::<io::Result<bytes::Bytes>>()) };
    let site = Site::new(Bounds::default(), axum::Router::new().fallback(open));
    let address = ([192, 0, 2, 1], 1).into();
    let stranger = Peer { address, caller: Caller::Anonymous, joined: false };
    for (peer, streams) in [(stranger, 16), (member(address), 100)] {
        let (io, server) = tokio::io::duplex(4096);
        let door = site.door.clone();
        let _served = spawn(async move { http(server, peer, &door, pending()).await });
        let (mut requests, connection) = client::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        let _connection = spawn(async move { drop(connection.await) });
        let request = |token: usize| {
            let request = http::Request::post("http://localhost/").header("authorization", "x".repeat(token));
            request.body(Empty::<bytes::Bytes>::new()).unwrap()
        };
        let refused = requests.send_request(request(MAX_HEADERS as usize)).await.unwrap();
        assert_eq!(refused.status(), http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let mut answers = Vec::new();
        while answers.len() < streams {
            answers.push(requests.send_request(request(MAX_HEADERS as usize / 2)).await.unwrap());
        }
        // One more waits at the client until one of them is over.
        let mut more = pin!(requests.send_request(request(1)));
        assert!(timeout(Duration::from_secs(1), more.as_mut()).await.is_err());
        answers.pop();
        assert_eq!(more.await.unwrap().status(), http::StatusCode::OK);
    }
}
