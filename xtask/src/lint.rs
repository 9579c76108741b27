//! `cargo xtask lint`: formatting, dependency policy, clippy, examples by default features, fuzz targets, rustdoc; cheapest
//! first.

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
    fuzz_targets(workspace)?;
    docs::build(workspace)
}

/// The fuzz targets are outside of the workspace, so that nothing else would notice that they have rotted. They are checked
/// and not built: no nightly compiler and no fuzzer (C++) is needed for that.
fn fuzz_targets(workspace: &Workspace) -> Outcome {
    for folder in workspace.fuzz_folders()? {
        let mut check = workspace.cargo(["check", "--bins", "--manifest-path"]);
        check.arg(folder.join("Cargo.toml")).env("CARGO_TARGET_DIR", workspace.target_directory.join("fuzz"));
        // Where a fuzzer would be linked from, were anything linked.
        run_cargo(check.env("CUSTOM_LIBFUZZER_PATH", "/libfuzzer.a"))?;
    }
    Ok(())
}
