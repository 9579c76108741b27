//! `cargo xtask docs`: the documentation of every crate of the workspace with every feature, warnings denied.

use crate::Outcome;
use crate::workspace::{FEATURES, Workspace, run as run_cargo};

/// Builds it and prints where it begins.
pub(crate) fn run(workspace: &Workspace) -> Outcome {
    build(workspace)?;
    println!("{}", workspace.target_directory.join("doc/mesh/index.html").display());
    Ok(())
}

/// Builds it; a broken link is an error.
pub(crate) fn build(workspace: &Workspace) -> Outcome {
    let doc = ["doc", "--workspace", "--no-deps", "--features", FEATURES];
    run_cargo(workspace.cargo(doc).env("RUSTDOCFLAGS", "-D warnings"))
}
