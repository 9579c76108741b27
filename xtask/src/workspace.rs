//! The workspace as `cargo metadata` describes it, and cargo as a child process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Failure, Outcome};

/// The feature set everything is linted, documented, tested and run with: one set, so that nothing is compiled
/// twice. The default features are on besides.
pub(crate) const FEATURES: &str = "mesh/cli,mesh/dns";

/// What xtask needs to know of the workspace.
pub(crate) struct Workspace {
    /// Where the root manifest is.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds; `CARGO_TARGET_DIR` is heeded by cargo itself.
    pub(crate) target_directory: PathBuf,
    targets: Vec<Target>,
}

struct Target {
    name: String,
    kind: String,
    in_root_package: bool,
    needs_feature: bool,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self, Failure> {
        let output = Command::new(cargo_path())
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Failure::because(format!("cannot start cargo: {error}")))?;
        let metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::because(format!("cargo metadata gave no JSON: {error}")))?;
        Self::from_metadata(&metadata).ok_or_else(|| Failure::because("cargo metadata lacks an expected field"))
    }

    fn from_metadata(metadata: &Value) -> Option<Self> {
        let root = PathBuf::from(metadata["workspace_root"].as_str()?);
        let root_manifest = root.join("Cargo.toml");
        let mut targets = Vec::new();
        for package in metadata["packages"].as_array()? {
            let in_root_package = root_manifest.as_os_str() == package["manifest_path"].as_str()?;
            for target in package["targets"].as_array()? {
                let name = target["name"].as_str()?.to_owned();
                let kind = target["kind"][0].as_str()?.to_owned();
                let needs_feature = target["required-features"].as_array().is_some_and(|needed| !needed.is_empty());
                targets.push(Target { name, kind, in_root_package, needs_feature });
            }
        }
        let target_directory = PathBuf::from(metadata["target_directory"].as_str()?);
        Some(Self { root, target_directory, targets })
    }

    /// Names of the root package's targets of `kind`: `test`, `bench`, `example`.
    pub(crate) fn root_targets(&self, kind: &str) -> Vec<&str> {
        self.targets.iter().filter(|t| t.in_root_package && t.kind == kind).map(|t| t.name.as_str()).collect()
    }

    /// Names of the integration tests in the member crates' own `tests/` folders, but for those that need a feature:
    /// the features of all tests are none of a member's.
    pub(crate) fn member_tests(&self) -> Vec<&str> {
        let tests = self.targets.iter().filter(|t| !t.in_root_package && t.kind == "test" && !t.needs_feature);
        tests.map(|t| t.name.as_str()).collect()
    }

    /// That of the workspace, and those of the fuzz targets, which are outside of it.
    pub(crate) fn lock_files(&self) -> Result<Vec<PathBuf>, Failure> {
        let fuzz = self.fuzz_folders()?.into_iter().map(|folder| folder.join("Cargo.lock"));
        Ok([self.root.join("Cargo.lock")].into_iter().chain(fuzz.filter(|lock| lock.exists())).collect())
    }

    /// The folders of fuzz targets of all crates.
    pub(crate) fn fuzz_folders(&self) -> Result<Vec<PathBuf>, Failure> {
        let failed = |e: std::io::Error| Failure::because(format!("the folders of the crates cannot be read: {e}"));
        let mut found = Vec::new();
        for folder in std::fs::read_dir(&self.root).map_err(failed)? {
            let folder = folder.map_err(failed)?.path().join("fuzz");
            if folder.join("Cargo.toml").exists() {
                found.push(folder);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Cargo, to be run at the workspace root.
    pub(crate) fn cargo<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(cargo_path());
        command.current_dir(&self.root).args(args);
        command
    }
}

/// Runs a command to its end with its output on our own, after saying what it is.
pub(crate) fn run(command: &mut Command) -> Outcome {
    announce(command);
    let status = command.status().map_err(|error| Failure::because(format!("cannot start {command:?}: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failure::because(format!("{} failed: {status}", line(command)))) }
}

/// Says on stderr which command comes next.
pub(crate) fn announce(command: &Command) {
    eprintln!("xtask: {}", line(command));
}

fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_stem().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

// Cargo tells its children where it is; `cargo` on the path is for xtask started by hand.
fn cargo_path() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tells_the_root_packages_targets_from_the_members() {
        let target = |name: &str, kind: &str| json!({ "name": name, "kind": [kind] });
        let metadata = json!({
            "workspace_root": "/w",
            "target_directory": "/t",
            "packages": [
                { "manifest_path": "/w/Cargo.toml", "targets": [target("mesh", "lib"), target("tidy", "test")] },
                { "manifest_path": "/w/a/Cargo.toml", "targets": [target("a", "lib"), target("laws", "test")] },
            ],
        });
        let mut metadata = metadata;
        let needy = json!({ "name": "needy", "kind": ["test"], "required-features": ["_x"] });
        metadata["packages"][1]["targets"].as_array_mut().unwrap().push(needy);
        let workspace = Workspace::from_metadata(&metadata).unwrap();
        assert_eq!(workspace.root_targets("test"), ["tidy"]);
        assert_eq!(workspace.member_tests(), ["laws"]);
        assert!(workspace.root_targets("bench").is_empty());
    }

    #[test]
    fn metadata_of_another_shape_is_refused() {
        assert!(Workspace::from_metadata(&json!({ "packages": [] })).is_none());
    }
}
