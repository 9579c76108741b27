//! The control plane of mesh: manifests become a validated model, the model becomes policy, policy is
//! served over xDS.
//!
//! ```text
//! source (YAML, files) → model (specs, validated) → translate (World) → xds
//!                                    registry (running processes) ─┘
//! ```
//!
//! What this crate refuses to know: how a request is sent or received.

pub mod finding;
pub mod model;
pub mod registry;
pub mod source;
pub mod translate;
