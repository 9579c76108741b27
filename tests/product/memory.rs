//! What an endpoint costs a client in memory: counted, and so the same on every machine. The rows of the `discovery` bench,
//! at a size that debug builds make soon.

#[path = "../../benches/discovery/memory.rs"]
#[allow(dead_code, reason = "shared with the bench")]
mod held;
#[path = "../../benches/discovery/plane.rs"]
#[allow(dead_code, reason = "shared with the bench")]
mod plane;
#[path = "../../benches/discovery/wire.rs"]
#[allow(dead_code, reason = "shared with the bench")]
mod wire;

use self::held::{Use, per_endpoint};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[test]
fn an_endpoint_costs_its_few_bytes() {
    // What was counted last, and 2 %: more is a change for the worse to be looked at, less one to be put down here. The goals
    // of the bench are 128 bytes, and 512 for an endpoint that is used.
    for (used, counted) in [(Use::Nothing, 64.0), (Use::Routed, 112.0), (Use::Requested, 504.0)] {
        let clusters = if used == Use::Requested { 1 } else { 50 };
        let bytes = per_endpoint(clusters, used).unwrap();
        assert!((bytes - counted).abs() <= counted * 0.02, "{used:?}: {bytes} bytes instead of {counted}");
    }
}
