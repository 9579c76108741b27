//! Taking back a connection that the application took over: an upgrade makes its bytes the application's, and policy may
//! end it all the same.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

/// The end of a connection in the hands of whoever may end it.
pub(crate) struct Leash {
    cut: Arc<Cut>,
    held: oneshot::Receiver<Infallible>,
}

/// The other end, in the connection.
pub(crate) struct Tether {
    cut: Arc<Cut>,
    // Closed with the connection.
    _held: oneshot::Sender<Infallible>,
}

#[derive(Default)]
struct Cut {
    done: AtomicBool,
    reader: AtomicWaker,
}

/// Both ends.
pub(crate) fn leash() -> (Leash, Tether) {
    let (_held, held) = oneshot::channel();
    let cut = Arc::<Cut>::default();
    (Leash { cut: cut.clone(), held }, Tether { cut, _held })
}

impl Leash {
    /// Whether somebody still has the connection.
    pub(crate) fn is_held(&mut self) -> bool {
        matches!(self.held.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// Waits until nobody has the connection any more.
    pub(crate) async fn gone(&mut self) {
        let _ = (&mut self.held).await;
    }

    /// From now on reading and writing fail.
    pub(crate) fn cut(self) {
        self.cut.done.store(true, Ordering::Release);
        self.cut.reader.wake();
    }
}

impl Tether {
    /// Whether the connection may still be used.
    ///
    /// # Errors
    /// It was cut.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.cut.done.load(Ordering::Acquire) {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "policy ended the connection")),
            false => Ok(()),
        }
    }

    /// Who waits for bytes hears of the end. Who waits to write does not: nothing passes then.
    pub(super) fn wait(&self, waker: &Waker) -> io::Result<()> {
        self.cut.reader.register(waker);
        self.check()
    }
}
