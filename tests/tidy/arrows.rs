//! Dependency arrows point down only, as the crate map of the manual draws them.

use std::process::Command;

use serde_json::{Value, json};

use crate::tree::root;
use crate::{assert_tidy, manifests};

/// Which workspace crates a crate may name. Dev-dependencies may add the test kit.
const ARROWS: &[(&str, &[&str])] = &[
    ("mesh-core", &[]),
    ("mesh-client", &["mesh-core"]),
    ("mesh-server", &["mesh-core"]),
    ("mesh-discovery", &["mesh-core"]),
    ("mesh-control", &["mesh-core", "mesh-discovery"]),
    ("mesh", &["mesh-core", "mesh-client", "mesh-server", "mesh-discovery", "mesh-control"]),
    ("mesh-testkit", &["mesh-core"]),
    ("mesh-peers", &["mesh", "mesh-control", "mesh-core", "mesh-server", "mesh-testkit"]),
    ("xtask", &[]),
];

/// What would bring sockets, files or wire formats into the pure crate.
const NOT_IN_CORE: &[&str] =
    &["axum", "envoy-types", "hyper", "hyper-util", "notify", "prost", "serde-saphyr", "tokio-rustls", "tonic"];

fn findings(metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(format!("{name} has no place in the crate map"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            findings.extend(arrow(name, allowed, dependency));
        }
    }
    findings
}

fn arrow(from: &str, allowed: &[&str], dependency: &Value) -> Option<String> {
    let to = dependency["name"].as_str()?;
    let for_tests = dependency["kind"] == "dev";
    if from == "mesh-core" && !for_tests && NOT_IN_CORE.contains(&to) {
        return Some(format!("mesh-core → {to}: the pure crate does no I/O"));
    }
    if from == "mesh" && to == "mesh-control" && !for_tests && dependency["optional"] != true {
        return Some("mesh → mesh-control is not optional: who only embeds the library compiles it".to_owned());
    }
    let in_workspace = ARROWS.iter().any(|(known, _)| *known == to);
    let fine = !in_workspace || allowed.contains(&to) || (for_tests && to == "mesh-testkit");
    (!fine).then(|| format!("{from} → {to} points up or sideways"))
}

#[test]
fn arrows_point_down() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    assert_eq!(metadata["packages"].as_array().map(Vec::len), Some(manifests::members().len()), "all crates seen");
    assert_tidy(&findings(&metadata), "Meet at a port in mesh-core::source instead, or change the crate map.");
}

#[test]
fn wrong_arrows_are_found() {
    let depends = |from: &str, to: &str, kind: Value, optional: bool| {
        let dependency = json!({ "name": to, "kind": kind, "optional": optional });
        findings(&json!({ "packages": [{ "name": from, "dependencies": [dependency] }] }))
    };
    for (from, to) in [
        ("mesh-core", "mesh-client"),
        ("mesh-client", "mesh-server"),
        ("mesh-discovery", "mesh-control"),
        ("mesh-control", "mesh"),
        ("mesh-server", "mesh-testkit"),
        ("mesh-core", "hyper"),
        ("mesh", "mesh-control"),
        ("mesh-new", "serde"),
    ] {
        assert_eq!(depends(from, to, Value::Null, false).len(), 1, "{from} → {to}");
    }
    for (from, to) in [("mesh-client", "mesh-core"), ("mesh-control", "mesh-discovery"), ("mesh-core", "http")] {
        assert!(depends(from, to, Value::Null, false).is_empty(), "{from} → {to}");
    }
    assert!(depends("mesh", "mesh-control", Value::Null, true).is_empty());
    assert!(depends("mesh-client", "mesh-testkit", json!("dev"), false).is_empty());
    assert_eq!(depends("mesh-client", "mesh-server", json!("dev"), false).len(), 1);
}
