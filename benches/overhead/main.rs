//! What the mesh adds: the same requests through plain hyper and through the mesh stack, in one process,
//! alternating (A B, B A, …), the same TLS on both sides of every ratio.
//!
//! Prints ratios only: absolute times of a shared machine mean nothing. CPU is that of all threads of the
//! process, client and server together, so it says what a request costs and not who waited. Allocations
//! are counted one by one and do not depend on the machine.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

mod allocations;
mod bare;
mod cpus;
mod echo;
#[path = "../common/features.rs"]
mod features;
#[path = "../../examples/grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
mod hello;
mod load;
mod meshed;
mod report;
#[path = "../common/rules.rs"]
mod rules;
mod runtime;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use mesh_core::policy::InboundTls;
use mesh_testkit::TestCa;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::load::Workers;
use crate::report::Row;

/// Paired run of the mesh's overhead.
#[derive(Parser)]
struct Args {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Pairs of runs; the median ratio of the calmer half of them is printed.
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Only the row of this name, or else rows whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// One short pair: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
    /// Only some thousand requests of one side, all on one thread: for a profiler (callgrind). Uses `--only`.
    #[arg(long)]
    profile: Option<Side>,
    /// With `--profile`: the server on a thread of its own, as when it is measured.
    #[arg(long, requires = "profile")]
    apart: bool,
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is compared: protocol and requests in flight.
const ROWS: [(&str, Protocol, usize); 7] = [
    ("http1_c1", Protocol::Http1, 1),
    ("http1_c16", Protocol::Http1, 16),
    ("http1_c64", Protocol::Http1, 64),
    ("http2_c64", Protocol::Http2, 64),
    ("grpc_c1", Protocol::Grpc, 1),
    ("grpc_c16", Protocol::Grpc, 16),
    ("grpc_c64", Protocol::Grpc, 64),
];

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// HTTP/1.1 POST of 100 bytes, echoed.
    Http1,
    /// The same over one HTTP/2 connection.
    Http2,
    /// A unary gRPC call of 100 bytes over HTTP/2, echoed.
    Grpc,
}

/// A side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    Bare,
    Mesh,
}

impl Side {
    async fn start(
        self,
        ca: &TestCa,
        protocol: Protocol,
        workers: usize,
        server: &Handle,
    ) -> Result<(Running, Workers), Error> {
        match self {
            Self::Bare => bare::start(ca, protocol, workers, server).await,
            Self::Mesh => meshed::start(ca, protocol, workers, server, InboundTls::Strict).await,
        }
    }
}

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
            report::print(&rows, args.output == Output::Json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overhead: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Vec<Row>, Error> {
    let ca = TestCa::new();
    let named = ROWS.iter().any(|(name, ..)| *name == args.only);
    let chosen =
        || ROWS.into_iter().filter(|(name, ..)| if named { *name == args.only } else { name.contains(&args.only) });
    if let Some(side) = args.profile {
        for (_, protocol, in_flight) in chosen() {
            allocations::profile(side, &ca, protocol, in_flight, args.apart)?;
        }
        return Ok(Vec::new());
    }
    let server = runtime::ServerThread::start()?;
    let client = runtime::single()?;
    let cpus = cpus::Cpus::of_process()?;
    cpus.pin(server.handle())?;
    let added = |protocol| {
        let (bare, mesh) = (allocations::of(Side::Bare, &ca, protocol)?, allocations::of(Side::Mesh, &ca, protocol)?);
        Ok::<_, Error>([mesh.client - bare.client, mesh.server - bare.server])
    };
    let mut rows = Vec::new();
    for (name, protocol, in_flight) in chosen() {
        let _awake = (in_flight == 1).then(|| cpus::Spinners::start(cpus)).transpose()?;
        let pairs = client.block_on(pairs(&ca, protocol, in_flight, server.handle(), args))?;
        let goals = report::Goals::of(protocol, in_flight);
        rows.push(Row { name, goals, pairs, allocations_added: added(protocol)? });
    }
    Ok(rows)
}

async fn pairs(
    ca: &TestCa,
    protocol: Protocol,
    in_flight: usize,
    server: &Handle,
    args: &Args,
) -> Result<Vec<report::Pair>, Error> {
    let time = Duration::from_secs_f64(args.seconds);
    let (_bare, mut bare) = Side::Bare.start(ca, protocol, in_flight, server).await?;
    let (_mesh, mut mesh) = Side::Mesh.start(ca, protocol, in_flight, server).await?;
    // Warm-up: connections, the provider's random numbers, allocator, branch predictors.
    load::run(&mut bare, time).await?;
    load::run(&mut mesh, time).await?;
    let mut pairs = Vec::new();
    for i in 0..args.pairs {
        // Whoever comes second finds a warmer or a more throttled machine: take turns.
        pairs.push(if i % 2 == 0 {
            let bare = load::run(&mut bare, time).await?;
            report::Pair { bare, mesh: load::run(&mut mesh, time).await? }
        } else {
            let mesh = load::run(&mut mesh, time).await?;
            report::Pair { bare: load::run(&mut bare, time).await?, mesh }
        });
    }
    Ok(pairs)
}
