//! A connection in memory that can lose everything without a word, as a network does that drops packets.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use mesh_client::Io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

/// The client's end.
pub(crate) struct Pipe {
    line: DuplexStream,
    // What is written is lost, and nothing is read.
    silent: Arc<AtomicBool>,
}

impl Pipe {
    pub(crate) fn new(line: DuplexStream, silent: Arc<AtomicBool>) -> Self {
        Self { line, silent }
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Relaxed)
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_silent() {
            return Poll::Pending;
        }
        Pin::new(&mut self.line).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_silent() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.line).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_shutdown(cx)
    }
}

/// Two ends between which bytes, and the end of them, take `delay`.
pub(crate) fn distant(delay: std::time::Duration) -> (DuplexStream, DuplexStream) {
    let ((ours, near), (far, theirs)) = (tokio::io::duplex(64 * 1024), tokio::io::duplex(64 * 1024));
    let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near), tokio::io::split(far));
    tokio::spawn(carry(near_read, far_write, delay));
    tokio::spawn(carry(far_read, near_write, delay));
    (ours, theirs)
}

/// How long TCP waits before it sends again what was lost.
pub(crate) const AGAIN: std::time::Duration = std::time::Duration::from_millis(200);

/// The same end of a connection behind a network that loses one in so many of the segments that go either way: TCP sends it
/// again, and all that was sent later waits for it. Those that have come in the end are counted.
pub(crate) fn lossy(far: Box<dyn Io>, one_in: u32, lost: &Arc<AtomicU32>) -> DuplexStream {
    let (ours, near) = tokio::io::duplex(64 * 1024);
    let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(near), tokio::io::split(far));
    tokio::spawn(carry_lossy(near_read, far_write, one_in, lost.clone()).boxed());
    tokio::spawn(carry_lossy(far_read, near_write, one_in, lost.clone()).boxed());
    ours
}

async fn carry_lossy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    one_in: u32,
    lost: Arc<AtomicU32>,
) {
    // A segment.
    let mut bytes = [0; 1448];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if fastrand::u32(..one_in) == 0 {
            mesh_testkit::clock::pass(AGAIN).await;
            lost.fetch_add(1, Relaxed);
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    delay: std::time::Duration,
) {
    let mut bytes = [0; 4096];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        mesh_testkit::clock::pass(delay).await;
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
