#![allow(clippy::disallowed_methods, reason = "the tests drive connections in tasks of their own")]

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Behaviour, EchoServer};
use crate::{CertificateSpec, TestCa};

fn request(path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method("POST").uri(format!("http://echo.test{path}"));
    request.header("host", "echo.test").body(Full::new(Bytes::from_static(b"hello"))).unwrap()
}

async fn http1(server: &EchoServer, path: &str) -> hyper::Result<Response<Incoming>> {
    let io = TokioIo::new(TcpStream::connect(server.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    sender.send_request(request(path)).await
}

async fn http2(server: &EchoServer, path: &str) -> hyper::Result<Response<Incoming>> {
    let io = TokioIo::new(TcpStream::connect(server.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    sender.send_request(request(path)).await
}

#[tokio::test]
async fn it_gives_back_what_it_got_over_both_versions() {
    let server = EchoServer::start("one").await;
    for (response, version) in
        [(http1(&server, "/a?b").await.unwrap(), "HTTP/1.1"), (http2(&server, "/a?b").await.unwrap(), "HTTP/2.0")]
    {
        assert_eq!(response.status(), 200);
        for (name, value) in [
            ("x-echo-server", "one"),
            ("x-echo-method", "POST"),
            ("x-echo-path", "/a?b"),
            ("x-echo-authority", "echo.test"),
            ("x-echo-version", version),
            ("x-echo-peer", "-"),
        ] {
            assert_eq!(response.headers()[name], value, "{name}");
        }
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    assert_eq!((server.requests(), server.connections(), server.received().len()), (2, 2, 2));
}

#[tokio::test]
async fn it_misbehaves_by_script_and_then_as_usual() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Status(418));
    server.script([Behaviour::Status(503), Behaviour::CloseConnection, Behaviour::RefuseStream, Behaviour::Grpc(14)]);
    assert_eq!(http2(&server, "/").await.unwrap().status(), 503);
    assert!(http2(&server, "/").await.is_err());
    let refused = http2(&server, "/").await.unwrap_err();
    let refused = std::error::Error::source(&refused).and_then(|e| e.downcast_ref::<h2::Error>()).unwrap();
    assert_eq!(refused.reason(), Some(h2::Reason::REFUSED_STREAM));
    assert_eq!(http2(&server, "/").await.unwrap().headers()["grpc-status"], "14");
    assert_eq!(http1(&server, "/").await.unwrap().status(), 418);
    assert_eq!(server.requests(), 5);
}

#[tokio::test]
async fn a_held_request_waits_for_its_release() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Hold);
    let (response, ()) = tokio::join!(http1(&server, "/"), async {
        server.wait_for_requests(1).await;
        server.release();
    });
    assert_eq!(response.unwrap().status(), 200);
}

#[tokio::test]
async fn with_mtls_it_knows_its_client_and_takes_no_stranger() {
    let ca = TestCa::new();
    let server = EchoServer::start_mtls("secure", &ca.identity("default", "secure")).await;
    assert!(server.endpoint().metadata.mesh_tls);
    let web = ca.certified(&CertificateSpec::of(&ca.id("default", "web")));
    let stranger = ca.certified(&CertificateSpec { uris: vec!["spiffe://elsewhere/x".into()], ..Default::default() });
    for (certificate, accepted) in [(Some(web), true), (Some(stranger), false), (None, false)] {
        let connector = TlsConnector::from(Arc::new(ca.client_showing(certificate, &[b"h2"])));
        let socket = TcpStream::connect(server.address()).await.unwrap();
        let stream = connector.connect("ignored.test".try_into().unwrap(), socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let answer = async {
            let io = TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request("/")).await
        };
        let peer = answer.await.map(|response| response.headers()["x-echo-peer"].clone());
        assert_eq!(peer.is_ok(), accepted, "{peer:?}");
        if let Ok(peer) = peer {
            assert_eq!(peer, "spiffe://cluster.local/ns/default/sa/web");
        }
    }
}
