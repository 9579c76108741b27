//! Rules about the repository itself: which crate may know which, how large things may grow, what may not
//! be written where, which pages must be complete. Every rule has a test on a bad sample, so that it is
//! known to be able to fail.
//!
//! Refuses to know behaviour: nothing of the product runs here but the error catalogue.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod arrows;
mod budgets;
mod copies;
mod forbidden;
mod manifests;
mod named;
mod not_enforced;
mod pages;
mod purity;
mod rust;
mod tree;

/// Fails with every finding on a line of its own and with what to do about them.
#[track_caller]
fn assert_tidy(findings: &[String], remedy: &str) {
    assert!(findings.is_empty(), "\n  {}\n{remedy}\n", findings.join("\n  "));
}
