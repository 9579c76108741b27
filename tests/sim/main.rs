//! Simulations: many clients, long outages and storms on a clock that jumps, with control planes in memory.
//! A test's name ends with the scenario it plays (R03 and so on); what is drawn comes from one seed, which is
//! printed and which `MESH_SEED` sets.
//!
//! Refuses to know sockets, and how the client is built inside.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "the seed, and what was measured")]
#![allow(clippy::disallowed_methods, reason = "control planes of a test run beside it, and end with it")]

mod failures;
mod herd;
#[path = "../conformance/plane.rs"]
mod plane;
mod skew;
mod storm;
mod tear;

/// Seeds everything that is drawn on this thread; `MESH_SEED` sets another seed.
fn seeded() -> u64 {
    let seed = std::env::var("MESH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("MESH_SEED={seed}");
    fastrand::seed(seed);
    seed
}
