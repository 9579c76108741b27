//! What a request costs against what it costs others: `cargo xtask bench peers [-o json]`.
//!
//! Two sidecars. Ours: application, mesh, mutual TLS, mesh, application. Theirs: application, plaintext, Envoy, mutual TLS,
//! Envoy, plaintext, application; the stock Envoy is that of the interop tests.
//!
//! tonic-xds. Ours: application, mesh, mesh, application. Theirs: application, tonic-xds, plain tonic server. Plaintext on both.
//!
//! CPU is that of all processes that take part, in paired runs that take turns; rows are ratios of ours to theirs.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

#[path = "../overhead/echo.rs"]
mod echo;
#[path = "../../examples/grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
mod hello;
// CPU alone is compared here.
#[path = "../common/features.rs"]
mod features;
#[allow(dead_code)]
#[path = "../overhead/load.rs"]
mod load;
#[path = "../overhead/meshed.rs"]
mod meshed;
#[path = "../common/rows.rs"]
mod rows;
#[path = "../common/rules.rs"]
mod rules;
#[path = "../overhead/runtime.rs"]
mod runtime;
mod sidecars;
mod tonic_xds;

use std::future::Future;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use mesh_core::policy::InboundTls;
use mesh_testkit::TestCa;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::rows::Row;
use self::sidecars::Sidecars;

/// Ours against others'.
#[derive(Parser)]
struct Args {
    /// How to print: `table` or `json`.
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Pairs of runs; the median of their ratios is printed.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Envoy's binary. Default: the one that the interop tests have installed.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// One short pair: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
    /// This peer alone; it is told to all of them otherwise.
    #[arg(long, value_enum)]
    only: Option<Peer>,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whom we are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Two stock Envoys.
    Sidecars,
    /// tonic-xds at the client's end.
    TonicXds,
}

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// HTTP/1.1 POST of 100 bytes, echoed.
    Http1,
    /// A unary gRPC call of 100 bytes over HTTP/2, echoed.
    Grpc,
}

const IN_FLIGHT: usize = 16;

/// Tasks that end with it.
#[derive(Default)]
struct Running(Vec<AbortHandle>);

impl Running {
    fn spawn<F: Future<Output: Send> + Send + 'static>(&mut self, on: &Handle, task: F) {
        self.0.push(on.spawn(task).abort_handle());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// A listener for the runtime that calls this.
fn listener(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.smoke {
        (args.pairs, args.seconds) = (1, 0.2);
    }
    match run(&args) {
        Ok(rows) => {
            rows::print(&rows, args.output == "json");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Vec<Row>, Error> {
    let ca = TestCa::new();
    let server = runtime::ServerThread::start()?;
    let client = runtime::single()?;
    let measured = |peer| args.only.is_none_or(|only| only == peer);
    let mut rows = Vec::new();
    if measured(Peer::TonicXds) {
        let ratio = client.block_on(to_tonic_xds(&ca, server.handle(), args))?;
        rows.push(Row::new("grpc_c16/cpu_to_tonic_xds", "times", ratio, 0.92));
    }
    if measured(Peer::Sidecars) {
        let envoy = args.envoy.clone().map_or_else(installed, Ok)?;
        for (name, protocol, goal) in
            [("http1_c16", Protocol::Http1, 1.0 / 7.0), ("grpc_c16", Protocol::Grpc, 1.0 / 3.6)]
        {
            let ratio = client.block_on(to_sidecars(&ca, protocol, server.handle(), &envoy, args))?;
            rows.push(Row::new(format!("{name}/cpu_to_two_sidecars"), "times", ratio, goal));
        }
    }
    Ok(rows)
}

/// The Envoy of the interop tests, which they install from PyPI.
fn installed() -> Result<PathBuf, Error> {
    let ours = std::env::current_exe()?;
    let interop = ours.ancestors().nth(2).ok_or("the bench is in no target folder")?.join("interop");
    let find = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    let found = Command::new(interop.join("python/bin/python")).args(["-c", find]).output();
    let path = found.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let path = path.and_then(|path| String::from_utf8(path).ok());
    let path =
        path.ok_or("no Envoy is installed: run `cargo xtask test --tier interop` once, or name one (--envoy)")?;
    Ok(PathBuf::from(path.trim_end()))
}

/// The median of what ours costs to what it does through sidecars.
async fn to_sidecars(
    ca: &TestCa,
    protocol: Protocol,
    server: &Handle,
    envoy: &std::path::Path,
    args: &Args,
) -> Result<f64, Error> {
    let time = Duration::from_secs_f64(args.seconds);
    let (_mesh, mut mesh) = meshed::start(ca, protocol, IN_FLIGHT, server, InboundTls::Strict).await?;
    let (sidecars, mut theirs) = Sidecars::start(ca, protocol, IN_FLIGHT, server, envoy).await?;
    paired(args, async || ours(&mut mesh, time).await, async || cost(&mut theirs, time, &sidecars).await).await
}

/// The median of what ours costs, both ends, to what it does with tonic-xds at one and nothing at the other.
async fn to_tonic_xds(ca: &TestCa, server: &Handle, args: &Args) -> Result<f64, Error> {
    let time = Duration::from_secs_f64(args.seconds);
    let (_mesh, mut mesh) = meshed::start(ca, Protocol::Grpc, IN_FLIGHT, server, InboundTls::Disable).await?;
    let (_peer, mut theirs) = tonic_xds::start(IN_FLIGHT, server).await?;
    paired(args, async || ours(&mut mesh, time).await, async || ours(&mut theirs, time).await).await
}

/// The median of the ratios of what two cost, run in turn.
async fn paired(
    args: &Args,
    mut one: impl AsyncFnMut() -> Result<f64, Error>,
    mut other: impl AsyncFnMut() -> Result<f64, Error>,
) -> Result<f64, Error> {
    // Warm-up.
    one().await?;
    other().await?;
    let mut ratios = Vec::new();
    for pair in 0..args.pairs {
        let (cost, to);
        if pair % 2 == 0 {
            cost = one().await?;
            to = other().await?;
        } else {
            to = other().await?;
            cost = one().await?;
        }
        ratios.push(cost / to);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[ratios.len() / 2])
}

/// CPU of a request of which nothing is in another process.
async fn ours(workers: &mut load::Workers, time: Duration) -> Result<f64, Error> {
    Ok(load::run(workers, time).await?.cpu_per_request)
}

/// CPU of a request through the sidecars, theirs and the applications' together.
async fn cost(workers: &mut load::Workers, time: Duration, sidecars: &Sidecars) -> Result<f64, Error> {
    let (before, begun) = (sidecars.cpu_nanos()?, Instant::now());
    let sample = load::run(workers, time).await?;
    let requests = sample.requests_per_second * begun.elapsed().as_secs_f64();
    Ok(sample.cpu_per_request + (sidecars.cpu_nanos()? - before) as f64 / requests)
}
