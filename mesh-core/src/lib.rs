//! The pure half of mesh: names, validated policy, matchers, pickers, identity rules and the ports
//! through which the other crates meet.
//!
//! What this crate refuses to know: sockets, files, environment variables, task spawning, the wall
//! clock, YAML, and protobuf but for the one message of [`orca`]. Time and randomness come in as arguments; configuration comes in through
//! [`source`].
//!
//! ```text
//! id ← error ← policy ← matcher, balance, limit, retry, identity ← jwt ← authz ← source ← (mesh-client, mesh-server, mesh-discovery, mesh-control)
//! ```

pub mod authz;
pub mod balance;
pub mod context;
pub mod drain;
pub mod error;
pub mod health;
pub mod http1;
pub mod id;
pub mod identity;
pub mod jwt;
pub mod limit;
pub mod matcher;
pub mod orca;
pub mod policy;
pub mod protobuf;
pub mod race;
pub mod retry;
pub mod source;
pub mod suggest;
mod sync;
pub mod target;
pub mod telemetry;
