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
fn an_endpoint_costs_its_few_bytes_until_it_is_used() {
    // What was counted last, and 2 %: more is a change for the worse to be looked at, less one to be put down here. What a
    // used one costs the bench alone tells: the futures of connections that are tried are larger in debug builds.
    for (used, counted) in [(Use::Nothing, 64.0), (Use::Routed, 112.0)] {
        let bytes = per_endpoint(50, used).unwrap();
        assert!((bytes - counted).abs() <= counted * 0.02, "{used:?}: {bytes} bytes instead of {counted}");
    }
}
