//! Taking back a connection whose bytes are the application's, raw or after an upgrade: policy, a limit or the end of the
//! server may end it all the same.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
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
    // Who waits, as `cut` knows it: it is not told again with every request. What was cut stays so, and nobody waits then.
    reader: Option<Waker>,
    writer: Option<Waker>,
    // Closed with the connection.
    _held: oneshot::Sender<Infallible>,
}

#[derive(Default)]
struct Cut {
    why: OnceLock<Why>,
    // The two halves may be in two tasks.
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// Why a connection was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Policy or trust have changed.
    Policy,
    /// It is as old as it may get.
    Age,
    /// No byte has gone over it for too long.
    Silence,
    /// The server has left.
    Drained,
}

impl From<Why> for io::Error {
    fn from(why: Why) -> Self {
        match why {
            Why::Policy => Self::new(io::ErrorKind::ConnectionAborted, "policy ended the connection"),
            Why::Age => Self::new(io::ErrorKind::ConnectionAborted, "the connection is as old as it may get"),
            Why::Silence => Self::new(io::ErrorKind::TimedOut, "no byte has gone over the connection for too long"),
            Why::Drained => {
                Self::new(io::ErrorKind::ConnectionAborted, "the server has left, and the time to finish is over")
            }
        }
    }
}

/// Both ends.
pub(crate) fn leash() -> (Leash, Tether) {
    let (_held, held) = oneshot::channel();
    let cut = Arc::<Cut>::default();
    (Leash { cut: cut.clone(), held }, Tether { cut, reader: None, writer: None, _held })
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
    pub(crate) fn cut(&self, why: Why) {
        // The first reason counts.
        let _ = self.cut.why.set(why);
        self.cut.reader.wake();
        self.cut.writer.wake();
    }
}

impl Tether {
    /// Whether the connection may still be used.
    ///
    /// # Errors
    /// It was cut.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.cut.why.get() {
            Some(why) => Err((*why).into()),
            None => Ok(()),
        }
    }

    /// Who waits for bytes hears of the end.
    pub(crate) fn wait_to_read(&mut self, waker: &Waker) -> io::Result<()> {
        wait(&mut self.reader, &self.cut.reader, waker);
        self.check()
    }

    /// Who waits to write hears of the end.
    pub(crate) fn wait_to_write(&mut self, waker: &Waker) -> io::Result<()> {
        wait(&mut self.writer, &self.cut.writer, waker);
        self.check()
    }
}

fn wait(known: &mut Option<Waker>, at: &AtomicWaker, waker: &Waker) {
    if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
        at.register(waker);
        *known = Some(waker.clone());
    }
}
