//! The task that drives a connection, owned by the handle that ends it.
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::probing::Probing;

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends the driving of a connection when dropped.
#[derive(Debug)]
pub(super) struct Driver {
    _owned: oneshot::Sender<()>,
}

/// Runs an HTTP/2 connection on the current runtime until it ends or the handle is dropped.
pub(super) fn drive<F>(connection: F, probing: Arc<Probing>) -> Driver
where
    F: Future<Output = Result<(), hyper::Error>> + Send + 'static,
{
    let (owned, disowned) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            // A connection that breaks is often dropped at the same moment: why it broke is heard all the same.
            biased;
            ended = &mut connection => ended,
            _ = disowned => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "the connection to the control plane ended");
            probing.ended(&error);
        }
    });
    Driver { _owned: owned }
}
