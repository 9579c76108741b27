//! `cargo xtask lint`: formatting, clippy, rustdoc, dependency policy; cheapest first.

use crate::workspace::{Workspace, run as run_cargo};
use crate::{Outcome, deny, docs};

/// Runs all; the first complaint ends it.
pub(crate) fn run(workspace: &Workspace) -> Outcome {
    run_cargo(&mut workspace.cargo(["fmt", "--all", "--check"]))?;
    deny::run(workspace)?;
    run_cargo(&mut workspace.cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run_cargo(
        workspace
            .cargo(["clippy", "--package", "mesh", "--all-targets", "--features", "cli"])
            .args(["--", "-D", "warnings"]),
    )?;
    docs::build(workspace)
}
