//! Instructions of one request through the whole mesh, both ends, and through plain hyper and tonic: a number that is the same
//! on a quiet machine and a busy one, so CI holds it. Plaintext over a pipe in memory, one request at a time, one thread:
//! neither kernel nor ciphers are in it.
//!
//! `cargo xtask bench instructions` runs itself under callgrind and fails where a request needs more than [`GATES`] say.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

#[path = "overhead/echo.rs"]
mod echo;
#[path = "common/features.rs"]
mod features;
#[path = "../examples/grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
mod hello;
#[path = "common/rows.rs"]
mod rows;
#[path = "common/rules.rs"]
mod rules;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use futures_util::future::{BoxFuture, LocalBoxFuture};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh::Client;
use mesh_client::Io;
use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{
    Address, Cluster, Endpoint, InboundListener, InboundState, InboundTls, Snapshot, UpstreamProtocol,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{FixedSource, policy};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use tokio::io::{DuplexStream, duplex};
use tokio::runtime::{Handle, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn};

use self::features::Traces;
use self::hello::HelloRequest;
use self::hello::greeter_client::GreeterClient;
use self::rows::Row;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a request through the mesh may need, both ends together: what was counted last and 2 % more. Who makes it dearer
/// says why with the new number; who makes it cheaper writes that down. Until outlier detection, a retry budget, a timeout and ten
/// rules were in it, 45,730 and 124,580.
const GATES: [(Protocol, f64); 2] = [(Protocol::Http1, 35_220.0), (Protocol::Grpc, 107_680.0)];
const TOLERANCE: f64 = 1.02;
const COUNTED: &str = "--toggle-collect=*instructions::steady";
/// Requests counted; what happens once in a while is spread over them.
const REQUESTS: u32 = 2_000;

/// Instructions of one request.
#[derive(Parser)]
struct Args {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Makes the requests of one row, uncounted: what callgrind is given.
    #[arg(long, requires = "protocol")]
    side: Option<Side>,
    /// With `--side`.
    #[arg(long)]
    protocol: Option<Protocol>,
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Bare,
    Mesh,
}

/// What travels.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// HTTP/1.1 POST of 100 bytes, echoed.
    Http1,
    /// A unary gRPC call of 100 bytes, echoed.
    Grpc,
}

fn name(of: impl ValueEnum) -> String {
    of.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match (args.side, args.protocol) {
        (Some(side), Some(protocol)) => requests(side, protocol).map(|()| true),
        _ => count_all(args.output == Output::Json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints all rows; whether every gate holds.
fn count_all(json: bool) -> Result<bool, Error> {
    let (mut rows, mut held) = (Vec::new(), true);
    for (protocol, gate) in GATES {
        let (bare, mesh) = (count(Side::Bare, protocol)?, count(Side::Mesh, protocol)?);
        let at_most = gate * TOLERANCE;
        held &= mesh <= at_most;
        let row = |what: &str, value, goal| Row::new(format!("{}_{what}", name(protocol)), "", value, goal);
        rows.extend([
            row("bare", bare, None),
            row("mesh", mesh, Some(at_most)),
            row("mesh_to_bare", mesh / bare, None),
        ]);
    }
    rows::print(&rows, json);
    Ok(held)
}

/// Instructions of one request, as callgrind counts them.
fn count(side: Side, protocol: Protocol) -> Result<f64, Error> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", COUNTED]).arg(std::env::current_exe()?).args([
        "--side",
        &name(side),
        "--protocol",
        &name(protocol),
    ]);
    let output = command.output().map_err(|error| format!("valgrind (Debian: package valgrind): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {text}", output.status).into());
    }
    let counted = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<f64>().ok());
    Ok(counted.ok_or_else(|| format!("callgrind counted nothing: {text}"))? / f64::from(REQUESTS))
}

fn requests(side: Side, protocol: Protocol) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut worker = runtime.block_on(worker(side, protocol))?;
    // Connected, and whatever a first request makes is made.
    runtime.block_on(worker.exchange())?;
    steady(&runtime, worker)
}

/// What is counted ([`COUNTED`]), with all that it calls. No closure in it: one would have its name, and end the count.
#[inline(never)]
fn steady(runtime: &Runtime, worker: Box<dyn Worker>) -> Result<(), Error> {
    runtime.block_on(exchanges(worker))
}

async fn exchanges(mut worker: Box<dyn Worker>) -> Result<(), Error> {
    let mut traces = Traces::default();
    for _ in 0..REQUESTS {
        traces.request(worker.exchange()).await?;
    }
    Ok(())
}

/// Sends one request and reads the whole answer.
trait Worker {
    fn exchange(&mut self) -> LocalBoxFuture<'_, Result<(), Error>>;
}

async fn worker(side: Side, protocol: Protocol) -> Result<Box<dyn Worker>, Error> {
    Ok(match (side, protocol) {
        (Side::Bare, Protocol::Http1) => {
            let (sender, connection) = http1::handshake(TokioIo::new(bare_server(protocol))).await?;
            spawn(connection);
            Box::new(Http(Http1(sender)))
        }
        (Side::Bare, Protocol::Grpc) => {
            let io = TokioIo::new(bare_server(protocol));
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            spawn(connection);
            let channel = service_fn(move |request| sender.send_request(request));
            Box::new(Grpc(GreeterClient::with_origin(channel, "http://echo:8080".try_into()?)))
        }
        (Side::Mesh, Protocol::Http1) => Box::new(Http(client(protocol))),
        (Side::Mesh, Protocol::Grpc) => Box::new(Grpc(GreeterClient::new(client(protocol).channel(TARGET)?))),
    })
}

fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) {
    Handle::current().spawn(task);
}

const TARGET: &str = "echo:8080";
const CALLER: &str = "spiffe://cluster.local/ns/default/sa/client";
/// What a pipe holds of each direction.
const PIPE: usize = 64 * 1024;

fn bare_server(protocol: Protocol) -> DuplexStream {
    let (ours, theirs) = duplex(PIPE);
    spawn(async move {
        let (io, server) = (TokioIo::new(theirs), http_server());
        match protocol {
            Protocol::Http1 => server.serve_connection(io, hyper::service::service_fn(echo::http)).await,
            Protocol::Grpc => server.serve_connection(io, TowerToHyperService::new(echo::grpc())).await,
        }
    });
    ours
}

fn http_server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    // See [`Standing`].
    server.http2().auto_date_header(false);
    server
}

/// A clock of the mesh's answers that stands: a new date goes into HPACK's table, where each later one is compared with all
/// before it, so what takes more seconds on a busy machine would need more instructions too.
#[derive(Debug)]
struct Standing;

impl TimeProvider for Standing {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(784_111_777)))
    }
}

/// A client with every feature that `overhead` has, whose only endpoint is a server with the same.
fn client(protocol: Protocol) -> Client {
    let address = ([127, 0, 0, 1], 8080).into();
    let authorization = vec![rules::ten("/", Some(&CALLER.parse().expect("a SPIFFE ID")))];
    let inbound = InboundListener { authorization, ..policy::inbound(address, InboundTls::Permissive) };
    let server = Server::builder()
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(inbound))))
        .metrics(Arc::<Metrics>::default())
        .clock(Arc::new(Standing))
        .build();
    let layer = server.inbound_layer();
    let connect = move |_| {
        let (ours, theirs) = duplex(PIPE);
        let spiffe_id = CALLER.parse().ok();
        let layer = layer.for_peer(PeerIdentity { spiffe_id, address: ([127, 0, 0, 1], 4000).into() });
        match protocol {
            Protocol::Http1 => spawn(server.serve_http1(theirs, layer.layer(service_fn(echo::http)))),
            Protocol::Grpc => spawn(server.serve_http2(theirs, layer.layer(echo::grpc()))),
        }
        std::future::ready(Ok(Box::new(ours) as Box<dyn Io>))
    };
    Client::builder(FixedSource::of(TARGET, snapshot(protocol, address)))
        .connector(connect)
        .metrics(Arc::<Metrics>::default())
        .build()
}

fn snapshot(protocol: Protocol, address: std::net::SocketAddr) -> Snapshot {
    let mut cluster = Cluster::new("echo".into());
    if protocol == Protocol::Grpc {
        cluster.connection.protocol = UpstreamProtocol::Http2;
    }
    features::snapshot(cluster, Endpoint::new(Address::Socket(address)))
}

/// hyper's HTTP/1.1 sender as a service.
struct Http1(http1::SendRequest<Full<Bytes>>);

impl Service<Request<Full<Bytes>>> for Http1 {
    type Response = Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

struct Http<S>(S);

impl<S, B> Worker for Http<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<Error>>,
    B: http_body::Body<Data = Bytes, Error: Into<Error>>,
{
    fn exchange(&mut self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let body = Full::new(Bytes::from_static(&[b'x'; 100]));
            let request = Request::post("http://echo:8080/").header("host", TARGET).body(body)?;
            let response = self.0.ready().await.map_err(Into::into)?.call(request).await.map_err(Into::into)?;
            response.into_body().collect().await.map_err(Into::into)?;
            Ok(())
        })
    }
}

struct Grpc<T>(GreeterClient<T>);

impl<T, B> Worker for Grpc<T>
where
    T: Service<Request<tonic::body::Body>, Response = Response<B>, Error: Into<Error>>,
    B: http_body::Body<Data = Bytes, Error: Into<Error> + Send> + Send + 'static,
{
    fn exchange(&mut self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.0.say_hello(HelloRequest { name: "x".repeat(100) }).await?;
            Ok(())
        })
    }
}
