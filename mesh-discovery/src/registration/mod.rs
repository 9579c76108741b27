//! Tells the control plane where this process serves (`mesh.registry.v1.RegistryService`), for
//! clusters without Kubernetes.
//!
//! The announcement is repeated on every new connection. A connection that breaks leaves the endpoint
//! in place for the control plane's grace period, so a short break goes unnoticed; an orderly end
//! withdraws it at once, or as soon as the control plane is back if it is away. Refuses to know whether anybody
//! listens at the address.

#[cfg(test)]
mod tests;
mod worker;

pub use self::worker::announce;

use std::sync::Arc;

use mesh_core::source::Watched;
use tokio::sync::oneshot;

use crate::connect::AbortOnDrop;
pub use crate::proto::registry::Announcement;

/// How an announcement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not answered yet, or the connection broke and it is on its way again.
    Pending,
    /// Callers can find us.
    Accepted,
    /// The control plane said no; the text says why. It is asked again, for the reason may go away.
    Refused(Arc<str>),
}

/// A live announcement. Dropping it ends the connection: the control plane withdraws the endpoint
/// after its grace period. [`Registration::withdraw`] does so at once.
pub struct Registration {
    state: Watched<RegistrationState>,
    withdraw: oneshot::Sender<oneshot::Sender<()>>,
    _worker: AbortOnDrop,
}

impl Registration {
    /// How it stands, now and later.
    pub fn state(&self) -> Watched<RegistrationState> {
        self.state.clone()
    }

    /// Withdraws the endpoint and waits until the control plane has confirmed it. While that is away it is tried again and
    /// again, for it keeps what it knew across a restart: whoever has no more time drops the future. Where the control plane
    /// cannot know of the endpoint, there is nothing to take back and it returns at once.
    pub async fn withdraw(self) {
        let (done, confirmed) = oneshot::channel();
        if self.withdraw.send(done).is_ok() {
            // An error means that the task ended: nobody is left who could tell the control plane.
            let _ = confirmed.await;
        }
    }
}
