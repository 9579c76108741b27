//! The pure crate stays pure: no sockets, files, environment, spawned tasks or wall clock in mesh-core.

use crate::assert_tidy;
use crate::tree::{File, repository};

/// Paths that may be neither imported nor spelt out.
const PATHS: &[&[&str]] =
    &[&["std", "fs"], &["std", "env"], &["std", "process"], &["tokio", "spawn"], &["tokio", "net"], &["tokio", "fs"]];
/// Names that mean a socket or the wall clock wherever they come from.
const NAMES: &[&[&str]] = &[
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["UnixStream"],
    &["UnixListener"],
    &["SystemTime", "now"],
    &["task", "spawn"],
    &["thread", "spawn"],
];

fn findings(file: &File) -> Vec<String> {
    let Some(rust) = &file.rust else { return Vec::new() };
    if !file.path.starts_with("mesh-core/src/") || file.name() == "tests.rs" {
        return Vec::new();
    }
    let mut found = Vec::new();
    for path in PATHS.iter().chain(NAMES) {
        let tokens = path.join(" : : ");
        let tokens: Vec<&str> = tokens.split(' ').collect();
        found.extend(rust.lines_with(&tokens).into_iter().map(|line| (line, path.join("::"))));
    }
    for (import, line) in &rust.imports {
        let steps: Vec<&str> = import.split("::").collect();
        found.extend(PATHS.iter().filter(|path| steps.starts_with(path)).map(|path| (*line, path.join("::"))));
    }
    found.retain(|(line, _)| !rust.is_test_line(*line));
    found.sort();
    found.dedup();
    found.into_iter().map(|(line, what)| format!("{}:{line}: {what}", file.path)).collect()
}

#[test]
fn the_core_does_no_io() {
    let found: Vec<_> = repository().iter().flat_map(findings).collect();
    assert_tidy(&found, "Take it as an argument, or do it in the crate that owns the I/O.");
}

#[test]
fn impurity_is_found() {
    let count = |text: &str| findings(&File::new("mesh-core/src/id/mod.rs", text)).len();
    for bad in [
        "use std::fs;",
        "use std::{collections::BTreeMap, env};",
        "use std::net::{IpAddr, TcpStream};",
        "use tokio::net::TcpListener as L;\n",
        "fn f() { std::fs::read(\"a\"); }",
        "fn f() { tokio::spawn(a); }",
        "fn f() { let now = SystemTime::now(); }",
    ] {
        assert!(count(bad) > 0, "{bad}");
    }
    for good in [
        "use std::net::{IpAddr, SocketAddr};",
        "use std::time::SystemTime;",
        "/// Not `std::fs`.\nfn f() { environment(\"std::env\"); }",
        "#[cfg(test)]\nmod tests { use std::fs; }",
    ] {
        assert_eq!(count(good), 0, "{good}");
    }
    assert!(findings(&File::new("mesh-client/src/lib.rs", "use std::fs;")).is_empty(), "only the core is pure");
}
