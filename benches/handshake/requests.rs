//! What a caller's identity and ten rules cost a request on the way that it takes through a server, and a whole request over
//! mutual TLS against plain rustls and hyper.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{InboundListener, InboundState, InboundTls};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{TestCa, crypto, policy};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower::{Layer, Service, service_fn};

use crate::{median, of_mesh, of_rustls, rules};

/// Requests of one kind before the other one has its turn.
const TURN: u32 = 2_000;
const ROUNDS: usize = 101;
/// The same of requests over a connection.
const TURN_OF_CONNECTION: u32 = 200;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the last of ten rules, which asks for a caller by name, adds to a request that goes through a server's layer, in
/// nanoseconds; the other one is of a caller without a name and asked for none.
pub(crate) fn identity_and_policy(ca: &TestCa) -> f64 {
    let address = ([127, 0, 0, 1], 9080).into();
    let open = policy::inbound(address, InboundTls::Permissive);
    let guarded =
        InboundListener { authorization: vec![rules::ten("/v1/9", Some(&ca.id("default", "web")))], ..open.clone() };
    let layer = |inbound: InboundListener, account: Option<&str>| {
        let spiffe_id = account.map(|account| ca.id("default", account));
        let peer = PeerIdentity { spiffe_id, address: ([127, 0, 0, 1], 4000).into() };
        server(ca, inbound).inbound_layer().for_peer(peer).layer(service_fn(answer))
    };
    let (mut open, mut guarded) = (layer(open, None), layer(guarded, Some("web")));
    let added = in_turn(|of_mesh| if of_mesh { requests(&mut guarded) } else { requests(&mut open) });
    let added = added.into_iter().map(|(guarded, open)| guarded - open).collect();
    median(added) * 1e9 / f64::from(TURN)
}

/// Time of a request and its answer over one connection with mutual TLS, both ends in one thread, by how much more with the
/// mesh as the server, the client's name and ten rules, than with rustls and hyper.
pub(crate) fn against_plain(ca: &TestCa) -> f64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, plain) = (of_mesh(ca, b"http/1.1"), of_rustls(ca, b"http/1.1"));
    let mut mesh = runtime.block_on(connection(&ours.0, async |listener| {
        let inbound = policy::inbound(listener.local_addr()?, InboundTls::Strict);
        let inbound =
            InboundListener { authorization: vec![rules::ten("/v1/9", Some(&ca.id("default", "web")))], ..inbound };
        spawn(server(ca, inbound).serve(listener, service_fn(answer)));
        Ok(())
    }));
    let mut bare = runtime.block_on(connection(&plain.0, async |listener| {
        spawn(serve_plainly(listener, TlsAcceptor::from(plain.1.clone())));
        Ok(())
    }));
    let ratios = in_turn(|of_mesh| exchanges(&runtime, if of_mesh { &mut mesh } else { &mut bare }));
    median(ratios.into_iter().map(|(mesh, bare)| mesh / bare).collect())
}

/// Seconds of each pair of turns; who begins changes.
fn in_turn(mut turn: impl FnMut(bool) -> Duration) -> Vec<(f64, f64)> {
    let mut pairs = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + 5 {
        let first = turn(round % 2 == 0).as_secs_f64();
        let second = turn(round % 2 != 0).as_secs_f64();
        let pair = if round % 2 == 0 { (first, second) } else { (second, first) };
        // The first ones warm up.
        if round >= 5 {
            pairs.push(pair);
        }
    }
    pairs
}

fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) {
    Handle::current().spawn(task);
}

fn server(ca: &TestCa, inbound: InboundListener) -> Server {
    Server::builder()
        .identity(ca.watched("default", "reviews"))
        .crypto(crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(inbound))))
        .metrics(Arc::<Metrics>::default())
        .build()
}

fn answer<B>(_: Request<B>) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
    ready(Ok(Response::new(Full::from("ok"))))
}

fn requests<S, B>(service: &mut S) -> Duration
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug> + Unpin,
{
    let begun = Instant::now();
    for _ in 0..TURN {
        let request = Request::get("/v1/9/x").header("host", "reviews:9080").body(Empty::new()).unwrap();
        let response = service.call(request).now_or_never().unwrap().unwrap();
        assert!(response.status().is_success());
        response.into_body().collect().now_or_never().unwrap().unwrap();
    }
    begun.elapsed()
}

/// A connection to a server that is started with the listener.
async fn connection<F>(client: &Arc<ClientConfig>, serve: F) -> SendRequest<Empty<Bytes>>
where
    F: AsyncFnOnce(TcpListener) -> Result<(), Error>,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    serve(listener).await.unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(client.clone()).connect(name, stream).await.unwrap();
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    spawn(driver);
    sender
}

async fn serve_plainly(listener: TcpListener, acceptor: TlsAcceptor) -> Result<(), Error> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(acceptor.accept(stream).await?);
    auto::Builder::new(TokioExecutor::new()).serve_connection(io, hyper::service::service_fn(answer)).await
}

fn exchanges(runtime: &Runtime, sender: &mut SendRequest<Empty<Bytes>>) -> Duration {
    runtime.block_on(async {
        let begun = Instant::now();
        for _ in 0..TURN_OF_CONNECTION {
            let request = Request::get("/v1/9/x").header("host", "reviews:9080").body(Empty::new()).unwrap();
            sender.ready().await.unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert!(response.status().is_success());
            response.into_body().collect().await.unwrap();
        }
        begun.elapsed()
    })
}
