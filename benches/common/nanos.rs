//! What a step of nanoseconds costs, and the arguments of a bench of such steps.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::rows::{self, Row};

/// Steps of some nanoseconds each.
#[derive(Parser)]
pub(crate) struct Args {
    /// Rows whose name has this alone.
    #[arg(default_value = "")]
    name: String,
    /// How to print: `table` or `json`.
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Few rounds: shows that it works.
    #[arg(long)]
    smoke: bool,
    /// Passed by cargo to every bench target.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Measures row by row.
pub(crate) struct Nanos {
    args: Args,
    rows: Vec<Row>,
}

impl Nanos {
    /// For the arguments that the program was given.
    pub(crate) fn of_args() -> Self {
        Self { args: Args::parse(), rows: Vec::new() }
    }

    /// One row: the median of [`ROUNDS`], each as many steps as take [`ROUND`]; none if it was not asked for.
    pub(crate) fn row<T>(
        &mut self,
        name: &str,
        goal: impl Into<Option<f64>>,
        mut step: impl FnMut() -> T,
    ) -> Option<f64> {
        if !name.contains(&self.args.name) {
            return None;
        }
        let mut round = |steps: u32| {
            let begun = Instant::now();
            for _ in 0..steps {
                black_box(step());
            }
            begun.elapsed()
        };
        let (rounds, long) = if self.args.smoke { (3, ROUND / 100) } else { (ROUNDS, ROUND) };
        let mut steps = 1;
        while round(steps) < long && steps < u32::MAX / 2 {
            steps *= 2;
        }
        let mut all: Vec<_> = (0..rounds).map(|_| round(steps)).collect();
        all.sort_unstable();
        let value = all[rounds / 2].as_secs_f64() * 1e9 / f64::from(steps);
        self.rows.push(Row::new(name, "ns", value, goal));
        Some(value)
    }

    /// Prints them.
    pub(crate) fn print(self) {
        rows::print(&self.rows, self.args.output == "json");
    }
}

const ROUNDS: usize = 61;
const ROUND: Duration = Duration::from_millis(10);
