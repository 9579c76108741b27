//! The ports through which the crates meet: where destinations, inbound policy, identity and the
//! addresses of names come from.
//!
//! A source hands out a [`Watched`] value: readers load the current one without waiting; one task may
//! wait for the next. Refuses to know whether xDS, a directory or a test stands behind it.

mod identities;
mod resolve;
mod watched;

pub use self::identities::{Identities, Paired, Trusted};
pub use self::resolve::{Family, Resolve, ResolveError, Resolved, Resolving, Service};
pub use self::watched::{Publisher, Watched};

use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::Target;
use crate::identity::{Identity, TrustBundles};
use crate::policy::{DestinationState, InboundState};

/// Gives what is known of a dialled destination; the first call for a target subscribes to it.
pub trait DestinationSource: Send + Sync + 'static {
    /// The destination's state, now and later. Dropping every clone of the answer ends the
    /// subscription.
    fn destination(&self, target: &Target) -> Watched<DestinationState>;
}

/// A closure is a source whose answers stay as they were first given: what a program needs that has no control
/// plane and no change.
///
/// ```
/// use std::sync::Arc;
/// use mesh_core::id::Target;
/// use mesh_core::policy::{Cluster, DestinationState, Snapshot};
/// use mesh_core::source::DestinationSource;
///
/// let source = |target: &Target| match target.as_str() {
///     "reviews:9080" => {
///         let cluster = Cluster::of_addresses("reviews", ["127.0.0.1:9080".parse().unwrap()]);
///         DestinationState::Ready(Arc::new(Snapshot::of_one_cluster("reviews:9080", cluster, None)))
///     }
///     other => DestinationState::Failed(format!("{other} is not reviews:9080").into()),
/// };
/// let state = source.destination(&"reviews:9080".parse()?).load_full();
/// assert!(matches!(*state, DestinationState::Ready(_)));
/// # Ok::<(), mesh_core::id::InvalidTarget>(())
/// ```
impl<F> DestinationSource for F
where
    F: Fn(&Target) -> DestinationState + Send + Sync + 'static,
{
    fn destination(&self, target: &Target) -> Watched<DestinationState> {
        Watched::fixed(self(target))
    }
}

/// Gives the policy of a listening address.
pub trait InboundSource: Send + Sync + 'static {
    /// The address's state, now and later.
    fn inbound(&self, address: SocketAddr) -> Watched<InboundState>;
}

/// Who this process is: `None` until the first certificate has come.
pub type WatchedIdentity = Watched<Option<Arc<Identity>>>;

/// Whom to trust where there is no identity beside it: `None` until the first roots have come.
pub type WatchedRoots = Watched<Option<TrustBundles>>;
