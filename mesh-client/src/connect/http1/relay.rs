//! An answer that came before its request was all sent: a task sends the rest and reads on, for whoever asked may look at
//! neither before he has done something else.
//!
//! Refuses to know heads.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::super::worker::{self, Alive};
use super::upload::Upload;
use super::{Error, Wire};
use crate::body::Broken;

/// The body of such an answer.
pub(super) struct Relay {
    frames: mpsc::Receiver<Relayed>,
    left: Option<u64>,
    over: bool,
    wire: Option<Box<Wire>>,
    _task: Alive,
}

enum Relayed {
    Frame(Result<Frame<Bytes>, Broken>),
    /// All is read. With the connection, if all is sent.
    End(Option<Box<Wire>>),
}

impl Relay {
    pub(super) fn begin(wire: Box<Wire>, upload: Upload) -> Self {
        let left = wire.size_hint().exact();
        // One frame ahead of who reads: the peer is to wait where he does.
        let (give, frames) = mpsc::channel(1);
        Self { frames, left, over: false, wire: None, _task: worker::send_on(relay(wire, upload, give)) }
    }

    pub(super) fn into_wire(self) -> Option<Box<Wire>> {
        self.wire
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.frames.poll_recv(cx)) {
            Some(Relayed::Frame(frame)) => Some(frame),
            Some(Relayed::End(wire)) => {
                (self.over, self.wire) = (true, wire);
                None
            }
            // Its runtime has ended.
            None => Some(Err(Error::Incomplete.into())),
        };
        if let Some(Ok(frame)) = &frame {
            let given = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.left = self.left.map(|left| left.saturating_sub(given));
        }
        Poll::Ready(frame)
    }
}

async fn relay(mut wire: Box<Wire>, upload: Upload, give: mpsc::Sender<Relayed>) {
    let mut upload = Some(upload);
    loop {
        let mut room = pin!(give.reserve());
        // What is to be sent does not wait until somebody takes what was read.
        let room = poll_fn(|cx| {
            if let Err(error) = send(&mut wire, &mut upload, cx) {
                return Poll::Ready(Err(error));
            }
            if let Poll::Ready(over) = wire.poll_over(cx) {
                return Poll::Ready(Err(Broken::Io(over)));
            }
            room.as_mut().poll(cx).map(Ok)
        });
        let room = match room.await {
            Ok(Ok(room)) => room,
            // Nobody reads any more.
            Ok(Err(_)) => return,
            Err(error) => {
                drop((wire, upload));
                // Whoever reads hears of it when he does.
                let _ = give.send(Relayed::Frame(Err(error))).await;
                return;
            }
        };
        let frame = poll_fn(|cx| match send(&mut wire, &mut upload, cx) {
            Ok(()) => wire.poll_body(cx),
            Err(error) => Poll::Ready(Some(Err(error))),
        });
        let Some(frame) = frame.await else {
            room.send(Relayed::End(Some(wire).filter(|_| upload.is_none())));
            return;
        };
        let broken = frame.is_err();
        room.send(Relayed::Frame(frame));
        if broken {
            return;
        }
    }
}

/// Sends on what is left of the request.
///
/// # Errors
/// Its body is not to be had.
fn send(wire: &mut Wire, upload: &mut Option<Upload>, cx: &mut Context<'_>) -> Result<(), Broken> {
    let Some(left) = upload else { return Ok(()) };
    match left.poll_send(&mut wire.io, &mut wire.written, cx) {
        Poll::Pending => {}
        Poll::Ready(Ok(())) => *upload = None,
        // The peer takes no more of it, and may go on to answer.
        Poll::Ready(Err(Broken::Io(_))) => {
            *upload = None;
            wire.keep_alive = false;
        }
        Poll::Ready(Err(error)) => return Err(error),
    }
    Ok(())
}
