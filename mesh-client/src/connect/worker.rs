//! The tasks that drive connections. Each ends when the handle of its connection is dropped: HTTP says
//! goodbye by itself, and what cannot finish doing so within [`GOODBYE`] is cut off.

#![allow(clippy::disallowed_methods)] // The one place of this folder that spawns; see above for who owns the tasks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

/// Time for a connection without a handle to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Held by whoever uses a connection; dropping it ends the connection's tasks.
pub(super) struct Alive(#[allow(dead_code, reason = "held for its drop")] oneshot::Sender<()>);

/// The other end of [`Alive`].
pub(super) type Ended = oneshot::Receiver<()>;

/// A handle and what watches it.
pub(super) fn handle() -> (Alive, Ended) {
    let (alive, ended) = oneshot::channel();
    (Alive(alive), ended)
}

/// Drives a connection on the caller's runtime: I/O stays where the requests are, without a hop to
/// another thread. `guard` is dropped when the connection is really gone.
pub(super) fn drive<F>(connection: F, ended: Ended, guard: impl Send + 'static)
where
    F: Future + Send + 'static,
{
    Handle::current().spawn(async move {
        let _guard = guard;
        until_ended(connection, ended).await;
    });
}

async fn until_ended<F: Future>(connection: F, ended: Ended) {
    tokio::pin!(connection);
    tokio::select! {
        biased;
        _ = &mut connection => return,
        _ = ended => {}
    }
    // Only a nicety for the peer; the result changes nothing.
    let _ = tokio::time::timeout(GOODBYE, connection).await;
}

/// A task of ours: stopped when this is dropped.
pub(crate) struct Owned<T>(JoinHandle<T>);

impl<T> Future for Owned<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Owned<T> {
    /// Whether it runs no more: it has come to its end, or its runtime has.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` on `runtime`, whoever polls the answer.
pub(crate) fn spawn<F>(runtime: &Handle, work: F) -> Owned<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    Owned(runtime.spawn(work))
}

/// Runs the futures of one HTTP/2 connection: hyper gives the connection itself first, which is tied to
/// the handle, and then small ones for streams, which end with the connection, or with what they are tied to.
#[derive(Clone)]
pub(super) struct Http2Tasks(Arc<Mutex<Next>>);

/// What the next task is tied to.
struct Next {
    connection: Option<Watch>,
    upload: Option<Ended>,
}

/// What ends a connection, and what is dropped with it.
type Watch = (Ended, Box<dyn Send>);

impl Http2Tasks {
    pub(super) fn new(ended: Ended, guard: impl Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Next { connection: Some((ended, Box::new(guard))), upload: None })))
    }

    /// The next task is stopped at once when `ended` is over. Told by a request body that hyper looks at for the
    /// first time. The next task is then of the same stream, for hyper begins one at a time: what sends the rest of the
    /// body, or, if nothing is left, what waits for the answer's head, which is there before the end.
    pub(super) fn end_next_with(&self, ended: Ended) {
        self.0.lock().upload = Some(ended);
    }
}

impl<F> hyper::rt::Executor<F> for Http2Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        let (connection, upload) = {
            let mut next = self.0.lock();
            (next.connection.take(), next.upload.take())
        };
        match (connection, upload) {
            (Some((ended, guard)), _) => drive(future, ended, guard),
            (None, Some(ended)) => drop(Handle::current().spawn(async move {
                // Dropped, it resets its stream, whatever of the body waits for the peer to read.
                tokio::select! {
                    biased;
                    _ = future => {}
                    _ = ended => {}
                }
            })),
            (None, None) => drop(Handle::current().spawn(future)),
        }
    }
}
