//! One program has one copy of the mesh (R44): two of them would have two identities, two streams to the control plane, and
//! retry budgets that add up. Cargo sees to it before anything is compiled.

use std::fs;
use std::path::Path;
use std::process::Command;

use toml::Table;

use crate::tree::read;

/// What cargo says of a program that needs two versions of our core, made by two libraries in its tree.
fn resolved(links: Option<&str>) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("there is room");
    let package = |name: &str, version: &str, at: &str, more: &str| {
        let at = dir.path().join(at);
        fs::create_dir_all(at.join("src")).expect("the directory is ours");
        let head = format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n");
        fs::write(at.join("Cargo.toml"), head + more).expect("the directory is ours");
        fs::write(at.join("src/lib.rs"), "").expect("the directory is ours");
        fs::write(at.join("build.rs"), "fn main() {}").expect("the directory is ours");
    };
    let links = links.map(|links| format!("links = \"{links}\"\n")).unwrap_or_default();
    for (version, library) in [("0.1.0", "cart"), ("0.2.0", "till")] {
        package("mesh-core", version, version, &links);
        package(library, "1.0.0", library, &format!("[dependencies]\nmesh-core.path = \"../{version}\"\n"));
    }
    package("app", "1.0.0", "app", "[dependencies]\ncart.path = \"../cart\"\ntill.path = \"../till\"\n");
    metadata(&dir.path().join("app"))
}

fn metadata(at: &Path) -> Result<String, String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(at)
        .args(["metadata", "--offline", "--format-version", "1"])
        .output()
        .expect("cargo runs this test");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn two_versions_of_the_mesh_in_one_program_are_refused_by_cargo_r44() {
    let manifest: Table = read("mesh-core/Cargo.toml").parse().expect("cargo reads it too");
    let links = manifest["package"].get("links").and_then(toml::Value::as_str);
    let refused = resolved(links).expect_err("every crate of the mesh has the core, so it says that there is one");
    for part in ["links to", "mesh", "0.1.0", "0.2.0", "cart", "till"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    // The control: without `links` cargo takes both.
    let both = resolved(None).unwrap();
    assert!(both.contains("mesh-core@0.1.0") && both.contains("mesh-core@0.2.0"), "{both}");
}
