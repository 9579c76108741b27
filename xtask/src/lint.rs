//! `cargo xtask lint`: formatting, dependency policy, clippy, examples by default features, fuzz targets, rustdoc; cheapest
//! first.

use crate::workspace::{FEATURES, Workspace, run as run_cargo};
use crate::{Failure, Outcome, deny, docs};

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
    let failed = |e: std::io::Error| Failure::because(format!("the folders of the crates cannot be read: {e}"));
    for folder in std::fs::read_dir(&workspace.root).map_err(failed)? {
        let manifest = folder.map_err(failed)?.path().join("fuzz/Cargo.toml");
        if manifest.exists() {
            let mut check = workspace.cargo(["check", "--bins", "--manifest-path"]);
            check.arg(manifest).env("CARGO_TARGET_DIR", workspace.target_directory.join("fuzz"));
            // Where a fuzzer would be linked from, were anything linked.
            run_cargo(check.env("CUSTOM_LIBFUZZER_PATH", "/libfuzzer.a"))?;
        }
    }
    Ok(())
}
