//! What the services share: who is at the other end of a connection and how tasks are owned.
//!
//! Refuses to know what is served.

mod admission;
mod certificate;
mod connection;
mod refusals;
mod shares;
mod standing;
mod vital;
mod worker;

pub(crate) use self::admission::Bounds;
pub use self::certificate::CertificateError;
pub(crate) use self::certificate::ServerCertificate;
pub(crate) use self::connection::Speaks;
pub(crate) use self::refusals::{EVERY, Refusal, Refusals};
pub(crate) use self::shares::{Place, Shares, holder};
pub(crate) use self::vital::Vital;
pub(crate) use self::worker::{Port, Task, follow, identity, renew, serve, spawn};

use std::fmt;
use std::net::SocketAddr;

use http::Extensions;
use mesh_core::id::SpiffeId;
use tonic::Status;

/// The other end of a connection, put into every request's extensions by the acceptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) caller: Caller,
    /// Whether its certificate began with a join token.
    pub(crate) joined: bool,
}

/// Who a peer proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A certificate of this mesh, verified in the handshake.
    Workload(SpiffeId),
    /// TLS without a client certificate.
    Anonymous,
    /// The plaintext listener, which only loopback reaches.
    Insecure,
}

impl Caller {
    pub(crate) fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Workload(id) => Some(id),
            Self::Anonymous | Self::Insecure => None,
        }
    }
}

impl Peer {
    /// The peer of a request.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, Status> {
        // Fails closed: a request that came around the acceptor is nobody's.
        extensions.get().cloned().ok_or_else(|| Status::unauthenticated("the connection's peer is not known"))
    }

    /// The certificate's namespace and service account, or why there is none.
    pub(crate) fn workload(&self) -> Result<(&SpiffeId, &str, &str), Status> {
        let Some(id) = self.caller.identity() else {
            return Err(Status::unauthenticated("this needs a certificate of this mesh; get one with a join token"));
        };
        let (namespace, account) = id
            .kubernetes()
            .ok_or_else(|| Status::permission_denied(format!("{id} names no namespace and service account")))?;
        Ok((id, namespace, account))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.caller {
            Caller::Workload(id) => write!(f, "{id} at {}", self.address),
            Caller::Anonymous => write!(f, "anonymous at {}", self.address),
            Caller::Insecure => write!(f, "plaintext at {}", self.address),
        }
    }
}
