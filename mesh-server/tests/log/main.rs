//! What is logged of hostile callers. A binary of its own: tracing remembers of each place in the code whether anybody
//! listens to it, and tests that do not listen would be in the way.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use mesh_core::error::BoxError;
use mesh_core::policy::{InboundState, InboundTls};
use mesh_core::source::Watched;
use mesh_server::{Body, Refusal, Server};
use mesh_testkit::{CertificateSpec, Log, TestCa, crypto, policy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// Whether each line of a log begins with its time, and nothing in it moves a terminal's cursor.
fn is_orderly(log: &str) -> bool {
    let begins = |line: &str| line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T');
    log.lines().all(|line| begins(line) && !line.contains(char::is_control))
}

#[tokio::test]
async fn s91_what_a_caller_sends_makes_no_line_of_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _listens = tracing::subscriber::set_default(subscriber);
    let ca = TestCa::new();
    let listener = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Permissive);
    let server = Server::builder()
        .identity(ca.watched("default", "reviews"))
        .crypto(crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(listener))))
        .build();
    let hello = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, BoxError>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let attack = async {
        let mut answered = 0;
        for (target, more) in [
            (&b"/plain"[..], &b""[..]),
            (b"/a%0aINFO%20fake", b""),
            (b"/a\"\tcode=200", b""),
            (b"/a\"code=200", b"x-request-id: \"fake\r\n"),
            (b"/a\x1b[2Jfake", b""),
            (b"/a\xe2\x80\xa8fake", b""),
            (b"/b", b"user-agent: \x1b[2Jfake\r\n"),
            (b"/b", b"traceparent: 00-fake\"\r\nbaggage: a=\xe2\x80\xa8\r\n"),
        ] {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            let head: &[u8] = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
            tcp.write_all(&[b"GET ", target, head, more, b"\r\n"].concat()).await.unwrap();
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).await.unwrap();
            answered += usize::from(answer.starts_with(b"HTTP/1.1 200"));
        }
        assert!(answered >= 3, "the harmless ones are served");
        // One who names himself so that his name is a line.
        let name = "spiffe://cluster.local/a\n2026-01-01T00:00:00Z  INFO mesh::access: fake\u{1b}[2J";
        let named = CertificateSpec { uris: vec![name.to_owned()], ..CertificateSpec::default() };
        let tls = ca.client_showing(Some(ca.certified(&named)), &[b"http/1.1"]);
        let tcp = TcpStream::connect(address).await.unwrap();
        if let Ok(mut tls) = TlsConnector::from(Arc::new(tls)).connect("mesh".try_into().unwrap(), tcp).await {
            let _ = tls.read_to_end(&mut Vec::new()).await;
        }
        while server.stats().refused(Refusal::Handshake) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = server.serve(socket, hello) => unreachable!("it serves until it is told to stop"),
        done = tokio::time::timeout(Duration::from_secs(60), attack) => done.unwrap(),
    }
    let text = log.text();
    let of = |target: &str| text.lines().filter(|line| line.contains(target)).count();
    assert!(of("mesh::access") >= 3 && of("connection refused") == 1 && of("fake") >= 2, "{text}");
    assert!(is_orderly(&text), "{text}");
    // The control: printed as it came, such a name would be a line.
    tracing::info!("{}", "a\nfake");
    assert!(!is_orderly(&log.text()));
}
