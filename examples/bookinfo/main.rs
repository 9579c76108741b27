//! The bookinfo application on a mesh: a control plane and five small applications in eleven processes, mutual
//! TLS between all of them, and a walk through what the mesh does while requests flow.
//!
//! ```text
//! cargo run --example bookinfo                    the walk; exit code 0 only if every step was seen to be true
//! cargo run --example bookinfo -- --smoke -o json the short walk, for machines
//! cargo run --example bookinfo -- --serve         stay up; open the page in a browser, edit the manifests
//! ```
//!
//! The applications in `apps/` are what a user writes. Everything else starts, watches and stops them. Ctrl-C,
//! SIGTERM and SIGHUP end all processes and remove the working directory; after a SIGKILL the processes end as well,
//! and the directory, `bookinfo-*` among the temporary files, stays.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

mod apps;
mod fleet;
mod http_get;
mod interrupt;
mod report;
mod role;
mod walk;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "bookinfo", about = "bookinfo on a mesh without proxies")]
struct Args {
    /// A short walk.
    #[arg(long)]
    smoke: bool,
    /// Stay up and print the URLs instead of walking.
    #[arg(long, conflicts_with = "smoke")]
    serve: bool,
    /// Use the manifests of this directory instead of those in examples/bookinfo/mesh. With --serve it is watched;
    /// the walk, which edits manifests, works on a copy of it.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Where productpage listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How to report.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What a child process is; the parent starts itself again with one of these.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    ControlPlane {
        #[arg(long)]
        manifests: PathBuf,
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        debug: SocketAddr,
    },
    #[command(hide = true)]
    App {
        name: String,
        #[arg(long)]
        version: String,
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.role {
        Some(role) => role::run(role).await.map(|()| true),
        None if args.serve => walk::serve(args.manifests, args.listen).await.map(|()| true),
        None => walk::run(args.smoke, args.manifests.as_deref(), args.listen, args.output == Output::Json).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bookinfo: {error}");
            ExitCode::from(2)
        }
    }
}
