//! What can go wrong when a process joins the mesh or serves in it.

use std::io;
use std::net::SocketAddr;

use mesh_core::error::BoxError;
use mesh_core::id::InvalidTarget;

use crate::config::InvalidConfig;

/// A process could not join the mesh.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is missing or wrong.
    #[error("the mesh cannot start: {0}")]
    Config(#[from] InvalidConfig),
    /// No thread or event queue for the control tasks.
    #[error("the mesh cannot start its control thread: {0}")]
    Runtime(#[source] io::Error),
    /// The control plane's address or credentials cannot be used.
    #[error("the mesh cannot reach its control plane: {0}")]
    ControlPlane(#[source] BoxError),
    /// The debug endpoints cannot listen.
    #[error("MESH_DEBUG_ADDR: cannot listen at {address}: {source}")]
    Debug {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// A listener could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The listener's address cannot be read, or the listener broke.
    #[error("cannot serve: {0}")]
    Listener(#[from] io::Error),
    /// The name under which the service should be announced is not one.
    #[error("cannot announce: {0}")]
    Service(#[from] InvalidTarget),
    /// The listener is bound to every interface, and nothing says which address others should use.
    #[error("cannot announce {0}: others cannot connect to it; set POD_IP, or name an address with `advertise`")]
    NoAddress(SocketAddr),
}
