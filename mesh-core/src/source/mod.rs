//! The ports through which the crates meet: where destinations, inbound policy, identity and the
//! addresses of names come from.
//!
//! A source hands out a [`Watched`] value: readers load the current one without waiting; one task may
//! wait for the next. Refuses to know whether xDS, a directory or a test stands behind it.

mod resolve;
mod watched;

pub use self::resolve::{Resolve, ResolveError, Resolved, Resolving, Service};
pub use self::watched::{Publisher, Watched};

use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::Target;
use crate::identity::Identity;
use crate::policy::{DestinationState, InboundState};

/// Gives what is known of a dialled destination; the first call for a target subscribes to it.
pub trait DestinationSource: Send + Sync + 'static {
    /// The destination's state, now and later. Dropping every clone of the answer ends the
    /// subscription.
    fn destination(&self, target: &Target) -> Watched<DestinationState>;
}

/// Gives the policy of a listening address.
pub trait InboundSource: Send + Sync + 'static {
    /// The address's state, now and later.
    fn inbound(&self, address: SocketAddr) -> Watched<InboundState>;
}

/// Who this process is: `None` until the first certificate has come.
pub type WatchedIdentity = Watched<Option<Arc<Identity>>>;
