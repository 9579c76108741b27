//! Simulations: many clients, long outages and storms on a clock that jumps, with control planes and servers in memory.
//! A test's name ends with the scenario it plays (R03 and so on); what is drawn comes from one seed, which is
//! printed and which `MESH_SEED` sets. Scenarios of the request path are played with many seeds, one after the other;
//! `MESH_SEEDS` sets how many.
//!
//! Refuses to know sockets, and how the client is built inside.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "the seed, and what was measured")]
#![allow(clippy::disallowed_methods, reason = "control planes of a test run beside it, and end with it")]

mod aside;
mod breaker;
mod brief;
mod cancel;
mod churn;
mod failures;
mod fleet;
mod goaway;
mod health;
mod herd;
mod load;
mod outage;
mod overload;
mod pipe;
#[path = "../conformance/plane.rs"]
mod plane;
mod skew;
mod storm;
mod streams;
mod tear;
mod zones;

use std::future::Future;

use tokio::runtime::Builder;

/// Seeds everything that is drawn on this thread; `MESH_SEED` sets another seed.
fn seeded() -> u64 {
    let seed = std::env::var("MESH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("MESH_SEED={seed}");
    fastrand::seed(seed);
    seed
}

/// Plays a scenario once for each of `seeds` seeds, or of as many as `MESH_SEEDS` says. The seed printed last is the
/// one that failed.
fn each_seed<F: Future<Output = ()>>(seeds: u64, scenario: impl Fn() -> F) {
    each_seed_by_itself(seeds, || on_a_paused_clock(scenario()));
}

/// The same for a scenario that has a runtime of its own.
fn each_seed_by_itself(seeds: u64, scenario: impl Fn()) {
    let seeds = std::env::var("MESH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(seeds);
    each_of(seeds, scenario);
}

fn each_of(seeds: u64, mut scenario: impl FnMut()) {
    let first = seeded();
    for seed in first..first + seeds {
        println!("MESH_SEED={seed}");
        fastrand::seed(seed);
        scenario();
    }
}

fn on_a_paused_clock<F: Future>(scenario: F) -> F::Output {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(scenario)
}

/// What a scenario finds: all as it must be, or what is not.
type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// The short form of a scenario, which costs a few milliseconds, holds for each of a thousand seeds.
fn holds_for_each_seed<F: Future<Output = Verdict>>(scenario: impl Fn() -> F) {
    each_seed(1000, || async { scenario().await.unwrap_or_else(|what| panic!("{what}")) });
}

/// Control run: the same scenario with its protection off does not hold for some of twenty seeds, whatever `MESH_SEEDS` says.
fn fails_for_some_seed<F: Future<Output = Verdict>>(scenario: impl Fn() -> F) {
    let mut failed = Vec::new();
    each_of(20, || failed.extend(on_a_paused_clock(scenario()).err()));
    println!("{} failed: {:?}", failed.len(), failed.first());
    assert!(!failed.is_empty(), "it holds without its protection");
}
