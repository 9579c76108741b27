//! Plain hyper and tonic: the cheapest way to send the same requests with the same TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_core::identity::{client_config, server_config};
use mesh_testkit::TestCa;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Worker, Workers};
use crate::{Error, Protocol, Running, echo};

/// Starts a server on `server` and as many workers.
pub(crate) async fn start(
    ca: &TestCa,
    protocol: Protocol,
    workers: usize,
    server: &Handle,
) -> Result<(Running, Workers), Error> {
    let crypto = mesh_testkit::crypto();
    let alpn: &[&[u8]] = if protocol == Protocol::Http1 { &[b"http/1.1"] } else { &[b"h2"] };
    let server_tls = server_config(&ca.identity("default", "server"), true, &[b"h2", b"http/1.1"], &crypto)?;
    let client_tls = client_config(&ca.identity("default", "client"), &[], alpn, &crypto)?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(server_tls));
    let mut running = Running::default();
    running.spawn(server, async move { accept(crate::listener(listener)?, acceptor, protocol).await });

    let connector = TlsConnector::from(Arc::new(client_tls));
    let mut all: Workers = Vec::with_capacity(workers);
    match protocol {
        Protocol::Http1 => {
            for _ in 0..workers {
                let io = TokioIo::new(connect(address, &connector).await?);
                let (sender, connection) = http1::handshake(io).await?;
                running.spawn(&Handle::current(), connection);
                all.push(Box::new(Http1(sender)));
            }
        }
        // One connection for all workers, as the mesh has; so below.
        Protocol::Http2 => {
            let io = TokioIo::new(connect(address, &connector).await?);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            running.spawn(&Handle::current(), connection);
            for _ in 0..workers {
                all.push(Box::new(Http2(sender.clone())));
            }
        }
        Protocol::Grpc => {
            let io = TokioIo::new(connect(address, &connector).await?);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            running.spawn(&Handle::current(), connection);
            let origin = Uri::try_from("http://echo:8080")?;
            for _ in 0..workers {
                all.push(Box::new(Grpc(GreeterClient::with_origin(Channel(sender.clone()), origin.clone()))));
            }
        }
    }
    Ok((running, all))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, protocol: Protocol) -> Result<(), Error> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            stream.set_nodelay(true)?;
            let io = TokioIo::new(acceptor.accept(stream).await?);
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new());
            match protocol {
                Protocol::Http1 | Protocol::Http2 => server.serve_connection(io, service_fn(echo::http)).await,
                Protocol::Grpc => server.serve_connection(io, TowerToHyperService::new(echo::grpc())).await,
            }
        });
    }
}

async fn connect(address: SocketAddr, connector: &TlsConnector) -> Result<TlsStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(connector.connect(ServerName::IpAddress(address.ip().into()), stream).await?)
}

struct Http1(http1::SendRequest<Full<Bytes>>);

impl Worker for Http1 {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let request = Request::post("/").header("host", "echo:8080").body(Full::new(body))?;
            self.0.ready().await?;
            let response = self.0.send_request(request).await?;
            response.into_body().collect().await?;
            Ok(())
        })
    }
}

struct Http2(http2::SendRequest<Full<Bytes>>);

impl Worker for Http2 {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let request = Request::post("http://echo:8080/").body(Full::new(body))?;
            let response = self.0.send_request(request).await?;
            response.into_body().collect().await?;
            Ok(())
        })
    }
}

/// hyper's HTTP/2 sender as the Tower service that a generated client wants.
#[derive(Clone)]
struct Channel(http2::SendRequest<tonic::body::Body>);

impl tower::Service<Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

struct Grpc(GreeterClient<Channel>);

impl Worker for Grpc {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let name = String::from_utf8(body.into())?;
            self.0.say_hello(HelloRequest { name }).await?;
            Ok(())
        })
    }
}
