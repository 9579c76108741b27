//! Versions, edition and lints live in the root manifest and nowhere else.

use toml::{Table, Value};

use crate::assert_tidy;
use crate::tree::read;

const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];

/// The manifests of all workspace crates, the root's first.
pub(crate) fn members() -> Vec<String> {
    let root: Table = read("Cargo.toml").parse().expect("cargo reads it too");
    let members = root["workspace"]["members"].as_array().expect("the workspace has members");
    let paths = members.iter().filter_map(Value::as_str).map(|member| format!("{member}/Cargo.toml"));
    std::iter::once("Cargo.toml".to_owned()).chain(paths).collect()
}

fn findings(path: &str, text: &str) -> Vec<String> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("{path}: {error}")],
    };
    let mut findings = Vec::new();
    for key in INHERITED {
        if !inherits(manifest.get("package").and_then(|package| package.get(key))) {
            findings.push(format!("{path}: package.{key} is not inherited"));
        }
    }
    if !inherits(manifest.get("lints")) {
        findings.push(format!("{path}: lints are not inherited"));
    }
    dependencies(path, &manifest, &mut findings);
    for (platform, table) in manifest.get("target").and_then(Value::as_table).into_iter().flatten() {
        if let Some(table) = table.as_table() {
            dependencies(&format!("{path}: target {platform}"), table, &mut findings);
        }
    }
    findings
}

fn dependencies(place: &str, table: &Table, findings: &mut Vec<String>) {
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, dependency) in table.get(section).and_then(Value::as_table).into_iter().flatten() {
            if !inherits(Some(dependency)) {
                findings.push(format!("{place}: {section}.{name} declares its own version or place"));
            }
        }
    }
}

fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

#[test]
fn every_crate_inherits_from_the_workspace() {
    let found: Vec<_> = members().iter().flat_map(|path| findings(path, &read(path))).collect();
    assert_tidy(&found, "Write `workspace = true` and put the version into the root manifest.");
}

#[test]
fn literals_are_found() {
    let head = "[package]\nversion.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
        license.workspace = true\npublish.workspace = true\n[lints]\nworkspace = true\n";
    let with = |more: &str| findings("Cargo.toml", &format!("{head}{more}"));
    assert!(
        with("[dependencies]\nhttp.workspace = true\ntokio = { workspace = true, features = [\"net\"] }").is_empty()
    );
    assert_eq!(with("[dependencies]\nhttp = \"1\"").len(), 1);
    assert_eq!(with("[dev-dependencies]\nhttp = { version = \"1\", features = [] }").len(), 1);
    assert_eq!(with("[build-dependencies]\nhttp = { path = \"../http\" }").len(), 1);
    assert_eq!(with("[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"").len(), 1);
    assert_eq!(findings("Cargo.toml", "[package]\nversion = \"0.1.0\"").len(), INHERITED.len() + 1);
    assert_eq!(findings("Cargo.toml", "[package").len(), 1);
}

#[test]
fn cargo_run_without_a_name_means_the_binary_that_readme_runs() {
    let root: Table = read("Cargo.toml").parse().expect("cargo reads it too");
    // Among several default members cargo asks for a choice otherwise.
    assert_eq!(root["package"].get("default-run").and_then(Value::as_str), Some("mesh"));
    assert!(read("README.md").contains("cargo run --features cli -- control-plane"));
}
