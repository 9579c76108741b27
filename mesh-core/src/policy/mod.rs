//! Validated policy: what a listener, a route, a cluster, an endpoint and the inbound side are told to
//! do. Immutable, `Eq + Hash` (values are cache keys), xDS vocabulary.
//!
//! Two doors lead in: xDS decoding in `mesh-discovery` and manifest translation in `mesh-control`.
//! Nothing behind the doors sees protobuf or YAML. What cannot be checked by a plain field's type is a
//! newtype with a private field ([`Pattern`], [`PerMillion`], [`WeightedClusters`], [`Domain`]), so a
//! wrong state cannot be written down.

mod authorizer;
mod cluster;
mod common;
mod composite;
mod endpoint;
mod filter;
mod inbound;
mod jwt;
mod listener;
mod route;
mod snapshot;
mod tls;
mod unenforced;

pub use self::authorizer::*;
pub use self::cluster::*;
pub use self::common::*;
pub use self::composite::*;
pub use self::endpoint::*;
pub use self::filter::*;
pub use self::inbound::*;
pub use self::jwt::*;
pub use self::listener::*;
pub use self::route::*;
pub use self::snapshot::*;
pub use self::tls::*;
pub use self::unenforced::{Report, unenforced};
