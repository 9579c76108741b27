//! A request on its way out: its head and its body, as far and as fast as the connection takes them.
//!
//! Refuses to know answers.

use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_core::http1::{Halt, Sending, Transfer};

use super::super::IoStream;
use super::Error;
use crate::body::{Broken, Outgoing};

/// What is left to send of a request.
pub(super) struct Upload {
    body: Option<Outgoing>,
    transfer: Transfer,
    /// Any of it may have gone out.
    pub(super) begun: bool,
}

impl Upload {
    /// Its head is gathered already.
    pub(super) fn new(body: Outgoing, sending: Sending) -> Self {
        Self { body: Some(body), transfer: Transfer::new(sending), begun: false }
    }

    /// Sends on. Ready once all is with the peer, as far as one can tell here.
    ///
    /// # Errors
    /// The connection takes no more of it, or the body is not to be had.
    pub(super) fn poll_send(
        &mut self,
        io: &mut IoStream,
        gathered: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let sent = self.transfer.poll_send(Pin::new(&mut self.body), io, gathered, cx);
        sent.map_err(|halt| match halt {
            Halt::Io(error) => {
                // Of what failed over TLS a part may have gone out.
                self.begun |= self.transfer.is_begun() || io.may_have_sent();
                Broken::Io(error)
            }
            Halt::Body(error) => Broken::RequestBody(error),
            Halt::Short => Error::Length.into(),
        })
    }
}
