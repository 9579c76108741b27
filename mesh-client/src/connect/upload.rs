//! The request body of an HTTP/2 stream: sent as long as the stream is held, and no longer.
//!
//! hyper stops sending when nobody waits for the answer's head any more. After the head it goes on, whoever still
//! wants the answer: a caller that gives up would leave a stream open for ever, at both ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::worker::{self, Alive, Ended, Http2Tasks};
use crate::body::{Outgoing, RequestBodyError};

/// What goes out on one stream.
pub(crate) struct Upload {
    body: Outgoing,
    tie: Option<Tie>,
}

/// What ends the task that sends a body.
struct Tie {
    ended: Ended,
    tasks: Http2Tasks,
}

impl Upload {
    /// A body that ends with the returned handle. None is needed for one that is on its way at once.
    pub(super) fn new(body: Outgoing, tasks: &Http2Tasks) -> (Self, Option<Alive>) {
        if !body.takes_time() {
            return (Self { body, tie: None }, None);
        }
        let (alive, ended) = worker::handle();
        (Self { body, tie: Some(Tie { ended, tasks: tasks.clone() }) }, Some(alive))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(Tie { ended, tasks }) = self.tie.take() {
            // hyper asks for the first time before it gives what is left to a task.
            tasks.end_next_with(ended);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
