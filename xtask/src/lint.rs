//! `cargo xtask lint`: formatting, dependency policy, clippy, examples by default features, rustdoc; cheapest first.

use crate::workspace::{FEATURES, Workspace, run as run_cargo};
use crate::{Outcome, deny, docs};

/// Runs all; the first complaint ends it.
pub(crate) fn run(workspace: &Workspace) -> Outcome {
    run_cargo(&mut workspace.cargo(["fmt", "--all", "--check"]))?;
    deny::run(workspace)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", FEATURES, "--", "-D", "warnings"];
    run_cargo(&mut workspace.cargo(clippy))?;
    // As a reader of the README builds them: with the default features.
    run_cargo(&mut workspace.cargo(["check", "--workspace", "--examples"]))?;
    docs::build(workspace)
}
