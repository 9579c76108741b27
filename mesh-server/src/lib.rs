//! The inbound half of mesh: accept, mutual TLS, peer identity, drain, debug endpoints.
//!
//! ```text
//! listener → accept (policy, first byte) → TLS (peer identity) → HTTP/1.1 or HTTP/2
//!          → inbound layer (headers, context, metrics, access log) → the application's service
//!                                  └─► or raw bytes: authorization → the application's handler
//! ```
//!
//! [`Server`] does all of it; [`Server::accept`] is what stands before HTTP, for an application that keeps its own loop and
//! HTTP server, and [`InboundLayer`] the last step alone, for one that keeps its own acceptor. Read `inbound/connection.rs` for the life of a connection and `layer/mod.rs` for
//! that of a request.
//!
//! What this crate refuses to know: where policy and certificates come from (they arrive through
//! [`mesh_core::source`]), and anything about outgoing calls.

pub mod debug;
pub mod lifecycle;

mod accepted;
mod body;
mod builder;
mod config;
mod dates;
mod ext_authz;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod http1;
mod http2;
mod inbound;
mod layer;
mod listen;
mod load;
mod raw;
mod server;

pub use mesh_core::context::{caller, claims};
pub use mesh_core::identity::PeerIdentity;
pub use mesh_core::jwt::Claims;

pub use self::accepted::Accepted;
pub use self::body::{Body, BodyError};
pub use self::builder::ServerBuilder;
pub use self::config::Config;
pub use self::ext_authz::{ExtAuthz, InvalidProvider};
pub use self::http1::Http1Connection;
pub use self::http2::Http2Connection;
pub use self::inbound::{InboundStats, Refusal};
pub use self::layer::{InboundBody, InboundLayer, InboundService, Priority, ResponseFuture};
pub use self::lifecycle::Readiness;
pub use self::load::LoadReporter;
pub use self::raw::RawConnection;
pub use self::server::Server;
