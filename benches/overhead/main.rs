//! What the mesh adds: the same requests through plain hyper and through the mesh stack, in one process,
//! alternating (A B A B), the same TLS on both sides of every ratio.
//!
//! Prints ratios only: absolute times of a shared machine mean nothing. CPU is that of all threads of the
//! process, client and server together, so it says what a request costs and not who waited.

mod bare;
mod echo;
#[path = "../../examples/grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod hello;
mod load;
mod meshed;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use load::{Sample, Side};

/// Paired run of the mesh's overhead.
#[derive(Parser)]
struct Args {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Pairs of runs; the median of their ratios is printed.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
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

/// What is compared: protocol and requests in flight. The goals are those of the data path's design.
const ROWS: [(&str, Protocol, usize); 4] = [
    ("http1_c16", Protocol::Http1, 16),
    ("http1_c64", Protocol::Http1, 64),
    ("grpc_c16", Protocol::Grpc, 16),
    ("grpc_c64", Protocol::Grpc, 64),
];
const GOAL_CPU: f64 = 1.12;
const GOAL_THROUGHPUT: f64 = 0.88;
const GOAL_P99: f64 = 1.15;

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 POST of 100 bytes, echoed.
    Http1,
    /// A unary gRPC call of 100 bytes over HTTP/2, echoed.
    Grpc,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(run(&args)));
    match result {
        Ok(rows) => {
            print(&rows, args.output);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("overhead: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: &Args) -> Result<Vec<Value>, Error> {
    let ca = mesh_testkit::TestCa::new();
    let mut rows = Vec::new();
    for (name, protocol, in_flight) in ROWS {
        let bare = bare::start(&ca, protocol).await?;
        let meshed = meshed::start(&ca, protocol).await?;
        let sides: [&dyn Side; 2] = [&bare, &meshed];
        for side in sides {
            // Warm-up: connections, allocator, branch predictors.
            load::run(side, in_flight, Duration::from_secs_f64(args.seconds / 2.0)).await?;
        }
        let mut pairs = Vec::new();
        for _ in 0..args.pairs {
            let a = load::run(sides[0], in_flight, Duration::from_secs_f64(args.seconds)).await?;
            let b = load::run(sides[1], in_flight, Duration::from_secs_f64(args.seconds)).await?;
            pairs.push((a, b));
        }
        rows.push(row(name, &pairs));
    }
    Ok(rows)
}

fn row(name: &str, pairs: &[(Sample, Sample)]) -> Value {
    let ratio = |of: fn(&Sample) -> f64| {
        let mut ratios: Vec<f64> = pairs.iter().map(|(bare, meshed)| of(meshed) / of(bare)).collect();
        ratios.sort_by(f64::total_cmp);
        (ratios[ratios.len() / 2] * 1000.0).round() / 1000.0
    };
    json!({
        "name": name,
        "throughput_ratio": ratio(|s| s.requests_per_second),
        "cpu_ratio": ratio(|s| s.cpu_per_request),
        "p50_ratio": ratio(|s| s.p50),
        "p99_ratio": ratio(|s| s.p99),
        "goal": {"cpu_ratio": GOAL_CPU, "throughput_ratio": GOAL_THROUGHPUT, "p99_ratio": GOAL_P99},
    })
}

fn print(rows: &[Value], output: Output) {
    if output == Output::Json {
        println!("{}", json!({"rows": rows}));
        return;
    }
    println!(
        "{:<12} {:>10} {:>8} {:>8} {:>8}   mesh / bare, goal: cpu ≤ {GOAL_CPU}",
        "row", "throughput", "cpu", "p50", "p99"
    );
    for row in rows {
        let of = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:<12} {:>10.3} {:>8.3} {:>8.3} {:>8.3}",
            row["name"].as_str().unwrap_or_default(),
            of("throughput_ratio"),
            of("cpu_ratio"),
            of("p50_ratio"),
            of("p99_ratio")
        );
    }
}
