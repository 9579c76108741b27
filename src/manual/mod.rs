//! The manual: how the mesh is built, what always holds, why it is so, and what to look up.
//!
//! - [`architecture`]: crates, arrows, the way of a request and of a config change
//! - [`invariants`]: what always holds, and what is deliberately absent
//! - [`bootstrap`]: where configuration and identity come from; gRPC's bootstrap file
//! - [`decisions`]: numbered, with cost and when to look again
//! - [`not_enforced`]: what is accepted and not done by this version
//! - [`errors`]: every code and what to do about it
//! - [`metrics`]: names and labels
//! - [`peers`]: stock gRPC and Envoy on this control plane
//! - [`security`]: what is defended, where, and against whom
//! - [`testing`]: the tiers and their rules
//!
//! These modules hold text and no items.

pub mod architecture {
    #![doc = include_str!("architecture.md")]
}
pub mod invariants {
    #![doc = include_str!("invariants.md")]
}
pub mod bootstrap {
    #![doc = include_str!("bootstrap.md")]
}
pub mod decisions {
    #![doc = include_str!("decisions.md")]
}
pub mod not_enforced {
    #![doc = include_str!("not_enforced.md")]
}
pub mod errors {
    #![doc = include_str!("errors.md")]
}
pub mod metrics {
    #![doc = include_str!("metrics.md")]
}
pub mod peers {
    #![doc = include_str!("peers.md")]
}
pub mod security {
    #![doc = include_str!("security.md")]
}
pub mod testing {
    #![doc = include_str!("testing.md")]
}
