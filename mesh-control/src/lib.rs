//! The control plane of mesh.
pub mod ca;
mod clock;
mod state_dir;

pub use self::clock::Clock;
pub use self::state_dir::StateError;
