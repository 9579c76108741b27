//! Does nothing: cargo wants a build script beside `links`, by which a program has one version of the mesh only.
#![allow(clippy::print_stdout, reason = "it is how cargo is told")]

fn main() {
    // There is nothing to look at: it runs once.
    println!("cargo::rerun-if-changed=build.rs");
}
