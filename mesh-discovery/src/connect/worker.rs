//! The task that drives a connection, owned by the handle that ends it.
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::future::Future;

use tokio::task::JoinHandle;

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs an HTTP/2 connection on the current runtime until it ends or the handle is dropped.
pub(super) fn drive<F>(connection: F) -> AbortOnDrop
where
    F: Future<Output = Result<(), hyper::Error>> + Send + 'static,
{
    AbortOnDrop(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the control plane ended");
        }
    }))
}
