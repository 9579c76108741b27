//! The control runtime: one thread of our own for xDS, certificates and other background work, so that an
//! application that blocks its runtime keeps its identity and its configuration.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread; dropping it stops everything that runs there.
#[derive(Debug)]
pub(crate) struct ControlRuntime {
    handle: Handle,
    // Dropping the sender ends the thread's `block_on`, which drops the runtime and its tasks.
    _stop: oneshot::Sender<()>,
}

impl ControlRuntime {
    /// Starts the thread `mesh-control`.
    ///
    /// # Errors
    /// The operating system gives no thread or no event queue.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("mesh-control".to_owned()).spawn(move || {
            // The sender is only ever dropped, never used.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// Runs a fallible task on the thread and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        self.handle.spawn(task).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
