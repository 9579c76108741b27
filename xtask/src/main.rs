//! `cargo xtask`: the commands that people and CI run. Refuses to know what the tests test; it only
//! starts cargo with the right arguments and adds up what cargo reports.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks through both")]

mod advisories;
mod bench;
mod deny;
mod docs;
mod examples;
mod lint;
mod tally;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::test::Tier;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Lint, test, bench and document this workspace.")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formatting, clippy, rustdoc and the dependency policy; the first complaint fails it.
    Lint,
    /// Runs the test tiers in order and ends with `N passed, N failed`.
    Test {
        /// Runs this tier alone.
        #[arg(long)]
        tier: Option<Tier>,
        /// Handed to every test binary, e.g. a filter or `--nocapture`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Runs a bench target of the root package in release (all of them without a name).
    Bench {
        /// The bench target and what it is given, e.g. `overhead -o json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Compares the lock files with RustSec's advisories; a vulnerability fails it, what is unmaintained is said.
    Advisories {
        /// A checkout of <https://github.com/RustSec/advisory-db>.
        database: PathBuf,
    },
    /// Builds the documentation of every crate and prints where it begins.
    Docs,
}

fn main() -> ExitCode {
    let done = Workspace::load().and_then(|workspace| match Args::parse().command {
        Command::Lint => lint::run(&workspace),
        Command::Test { tier, args } => test::run(&workspace, tier, &args),
        Command::Bench { args } => bench::run(&workspace, &args),
        Command::Advisories { database } => advisories::run(&workspace, &database),
        Command::Docs => docs::run(&workspace),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(Failure::Because(reason)) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// What went wrong is on the screen already, and the last line belongs to the command.
    Told,
    /// To be printed.
    Because(String),
}

impl Failure {
    fn because(reason: impl Into<String>) -> Self {
        Self::Because(reason.into())
    }
}

/// What every command gives back.
type Outcome = Result<(), Failure>;
