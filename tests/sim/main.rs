//! Simulations: many clients, long outages and storms on a clock that jumps, with control planes and servers in memory.
//! A test's name ends with the scenario it plays (R03 and so on); what is drawn comes from one seed, which is
//! printed and which `MESH_SEED` sets. Scenarios of the request path are played with many seeds, one after the other;
//! `MESH_SEEDS` sets how many.
//!
//! Refuses to know sockets, and how the client is built inside.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "the seed, and what was measured")]
#![allow(clippy::disallowed_methods, reason = "control planes of a test run beside it, and end with it")]

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
    each_seed_by_itself(seeds, || {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(scenario());
    });
}

/// The same for a scenario that has a runtime of its own.
fn each_seed_by_itself(seeds: u64, scenario: impl Fn()) {
    let seeds = std::env::var("MESH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(seeds);
    let first = seeded();
    for seed in first..first + seeds {
        println!("MESH_SEED={seed}");
        fastrand::seed(seed);
        scenario();
    }
}
