//! What configuration costs: changes, repetitions and whole tables, from bytes to what requests find.
//!
//! CPU is that of the threads at work, as the scheduler counts it; memory is that of the heap, counted byte
//! by byte. Where another size is the yardstick, both run in turn in one process.
//!
//! One change of an endpoint is measured twice. `change` and its ratios have a channel in memory for a connection: they show the
//! protocol, the codec and the cascade alone, and a change costs so little there that the lines of memory which 10,000 clusters
//! have and ten have not are two thirds of their ratio. A process gets its changes off a socket: it is woken, reads, answers and
//! goes to sleep again. `change_from_socket` and its ratio are what that costs it, and so the goals are theirs.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a program, not a library")]

mod client;
mod control;
mod cpu;
#[path = "../overhead/cpus.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod cpus;
#[path = "../overhead/load.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod load;
mod memory;
mod plane;
#[path = "../common/rows.rs"]
mod rows;
#[path = "../overhead/runtime.rs"]
#[allow(dead_code, reason = "shared with the other bench")]
mod runtime;
mod socket;
mod traffic;
mod wire;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::rows::Row;

/// What configuration costs.
#[derive(Parser)]
struct Args {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// Everything small and short: shows that it works, measures nothing.
    #[arg(long)]
    smoke: bool,
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
enum Part {
    /// The client over a control plane in memory.
    Client,
    /// The control plane over loopback, with many clients.
    Control,
    /// Requests while configuration changes.
    Traffic,
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Scale {
    clusters: usize,
    /// Changes in one measurement.
    changes: usize,
    /// Measurements of which the median is told.
    pairs: usize,
    /// Seconds of each load.
    seconds: f64,
    /// Clients of one control plane.
    clients: usize,
    /// Changes of which traffic is to feel the effect.
    pushes: usize,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(rows) => {
            rows::print(&rows, args.output == Output::Json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("discovery: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<Vec<Row>, Error> {
    let scale = if args.smoke {
        Scale { clusters: 100, changes: 50, pairs: 1, seconds: 0.2, clients: 10, pushes: 4 }
    } else {
        Scale { clusters: 10_000, changes: 2_000, pairs: 11, seconds: 0.5, clients: 500, pushes: 100 }
    };
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let runtime = runtime::single()?;
    let mut rows = Vec::new();
    if wanted(Part::Client) {
        rows.extend(client::rows(&runtime, &scale)?);
        rows.extend(socket::rows(&runtime, &scale)?);
    }
    if wanted(Part::Control) {
        rows.extend(control::rows(&runtime, &scale)?);
    }
    if wanted(Part::Traffic) {
        rows.push(traffic::latency(&runtime, &scale)?);
        rows.extend(traffic::effect(&runtime, &scale)?);
    }
    Ok(rows)
}

/// The median; NaN of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
