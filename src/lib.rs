#![doc = include_str!("../README.md")]

pub mod config;
pub mod manual;

mod authority;
mod authorizers;
mod builder;
mod error;
mod fleet;
mod listeners;
mod mesh;
mod passthrough;
mod runtime;
mod serve;

#[cfg(feature = "dns")]
pub use mesh_discovery::dns;

pub use mesh_client::{Body, Channel, Client, Error, Explanation, TcpConnection, Warmed};
pub use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, Refusal, Unavailable};
pub use mesh_core::context::{self, caller, claims};
pub use mesh_core::id::{SpiffeId, Target, TrustDomain};
pub use mesh_core::identity::PeerIdentity;
pub use mesh_core::jwt::Claims;
pub use mesh_core::source::Resolve;
pub use mesh_server::{InboundLayer, LoadReporter, RawConnection};

pub use self::builder::MeshBuilder;
pub use self::error::{ServeError, StartError};
pub use self::mesh::Mesh;
pub use self::serve::{Raw, Serve};

/// The parts, for those who compose layers themselves.
pub mod parts {
    pub use {mesh_client, mesh_core, mesh_discovery, mesh_server};
}
