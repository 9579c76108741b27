//! What a request costs against what it costs through two sidecars: `cargo xtask bench peers [-- -o json]`.
//!
//! Ours: application, mesh, mutual TLS, mesh, application. Theirs: application, plaintext, Envoy, mutual TLS, Envoy,
//! plaintext, application; the stock Envoy is that of the interop tests. CPU is that of all processes that take part,
//! in paired runs that take turns; rows are ratios of ours to theirs.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

#[path = "../overhead/echo.rs"]
mod echo;
#[path = "../../examples/grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
mod hello;
// CPU alone is compared here.
#[allow(dead_code)]
#[path = "../overhead/load.rs"]
mod load;
#[path = "../overhead/meshed.rs"]
mod meshed;
#[path = "../common/rows.rs"]
mod rows;
#[path = "../overhead/runtime.rs"]
mod runtime;
mod sidecars;

use std::future::Future;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use mesh_testkit::TestCa;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::rows::Row;
use self::sidecars::Sidecars;

/// Ours against two sidecars.
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
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

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
    let (ca, envoy) = (TestCa::new(), args.envoy.clone().map_or_else(installed, Ok)?);
    let server = runtime::ServerThread::start()?;
    let client = runtime::single()?;
    let mut rows = Vec::new();
    for (name, protocol, goal) in [("http1_c16", Protocol::Http1, 1.0 / 7.0), ("grpc_c16", Protocol::Grpc, 1.0 / 3.6)] {
        let ratios = client.block_on(ratios(&ca, protocol, server.handle(), &envoy, args))?;
        rows.push(Row::new(format!("{name}/cpu_to_two_sidecars"), "times", ratios, goal));
    }
    Ok(rows)
}

/// The Envoy of the interop tests, which they install from PyPI.
fn installed() -> Result<PathBuf, Error> {
    let interop = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
    let find = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    let found = Command::new(interop.join("python/bin/python")).args(["-c", find]).output();
    let path = found.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    let path = path.and_then(|path| String::from_utf8(path).ok());
    let path =
        path.ok_or("no Envoy is installed: run `cargo xtask test --tier interop` once, or name one (--envoy)")?;
    Ok(PathBuf::from(path.trim_end()))
}

/// The median of what ours costs to what theirs does.
async fn ratios(
    ca: &TestCa,
    protocol: Protocol,
    server: &Handle,
    envoy: &std::path::Path,
    args: &Args,
) -> Result<f64, Error> {
    let time = Duration::from_secs_f64(args.seconds);
    let (_mesh, mut mesh) = meshed::start(ca, protocol, IN_FLIGHT, server).await?;
    let (sidecars, mut theirs) = Sidecars::start(ca, protocol, IN_FLIGHT, server, envoy).await?;
    // Warm-up.
    load::run(&mut mesh, time).await?;
    load::run(&mut theirs, time).await?;
    let mut ratios = Vec::new();
    for pair in 0..args.pairs {
        let (ours, through);
        if pair % 2 == 0 {
            ours = load::run(&mut mesh, time).await?.cpu_per_request;
            through = cost(&mut theirs, time, &sidecars).await?;
        } else {
            through = cost(&mut theirs, time, &sidecars).await?;
            ours = load::run(&mut mesh, time).await?.cpu_per_request;
        }
        ratios.push(ours / through);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[ratios.len() / 2])
}

/// CPU of a request through the sidecars, theirs and the applications' together.
async fn cost(workers: &mut load::Workers, time: Duration, sidecars: &Sidecars) -> Result<f64, Error> {
    let (before, begun) = (sidecars.cpu_nanos()?, Instant::now());
    let sample = load::run(workers, time).await?;
    let requests = sample.requests_per_second * begun.elapsed().as_secs_f64();
    Ok(sample.cpu_per_request + (sidecars.cpu_nanos()? - before) as f64 / requests)
}
