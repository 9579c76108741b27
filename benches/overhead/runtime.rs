//! Two threads, one runtime each: the client's is the caller's, the server's is here. More threads would
//! let the kernel put both sides on one core or on two as it likes, which changes throughput by half.

use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::Error;

/// A runtime on a thread of its own; ends when dropped.
pub(crate) struct ServerThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ServerThread {
    pub(crate) fn start() -> Result<Self, Error> {
        Self::named("server")
    }

    /// The same with a thread of this name, by which its CPU can be told from that of others.
    pub(crate) fn named(name: &str) -> Result<Self, Error> {
        let runtime = single()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // An error says that the other end is gone, which means the same.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// A runtime for the calling thread.
pub(crate) fn single() -> Result<Runtime, Error> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
