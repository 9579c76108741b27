//! The control plane of mesh: manifests become a validated model, the model becomes policy, policy is
//! served over xDS.
//!
//! ```text
//! source (YAML, files) → model (specs, validated) → translate (World) → xds
//!                                    registry (running processes) ─┘
//! ```
//!
//! What this crate refuses to know: how a request is sent or received.

pub mod ca;
mod clock;
mod control_plane;
mod debug;
pub mod finding;
pub mod jwks;
pub mod load;
pub mod model;
pub mod registry;
mod runtime;
mod served;
mod shards;
pub mod source;
mod state_dir;
#[cfg(test)]
mod test_log;
pub mod translate;
pub mod xds;

pub use self::clock::Clock;
pub use self::control_plane::{Builder, ControlPlane, StartError};
pub use self::runtime::CertificateError;
pub use self::state_dir::StateError;
