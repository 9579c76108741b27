//! `cargo xtask docs`: the documentation of every crate of the workspace, warnings denied.

use crate::Outcome;
use crate::workspace::{Workspace, run as run_cargo};

/// Builds it and prints where it begins.
pub(crate) fn run(workspace: &Workspace) -> Outcome {
    build(workspace)?;
    println!("{}", workspace.target_directory.join("doc/mesh/index.html").display());
    Ok(())
}

/// Builds it; a broken link is an error.
pub(crate) fn build(workspace: &Workspace) -> Outcome {
    run_cargo(workspace.cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}
