//! How long the head of a request may take, from its first byte to its last. Refuses to know how heads are written.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The head that a connection is in the middle of, if it is.
pub(super) struct HeadTime {
    limit: Duration,
    // Since when a head is not whole.
    begun: Option<Instant>,
    // Made when a head is waited for; it stays for the next one.
    late: Option<Pin<Box<Sleep>>>,
}

impl HeadTime {
    /// `begun` = since when a head is being read already.
    pub(super) fn new(limit: Duration, begun: Option<Instant>) -> Self {
        Self { limit, begun, late: None }
    }

    /// All that came was looked at: it ended in a head, or not.
    pub(super) fn set(&mut self, in_head: bool) {
        match (in_head, self.begun) {
            (true, None) => self.begun = Some(Instant::now()),
            (false, Some(_)) => self.begun = None,
            _ => {}
        }
    }

    /// A head is whole. What begins after it has a time of its own.
    pub(super) fn end(&mut self) {
        self.begun = None;
    }

    /// More bytes are waited for.
    ///
    /// # Errors
    /// A head is not whole, and its time is over.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(begun) = self.begun else { return Ok(()) };
        // One beyond all time is none.
        let Some(until) = begun.checked_add(self.limit) else { return Ok(()) };
        let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if late.deadline() != until {
            late.as_mut().reset(until);
        }
        match late.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "a head took too long")),
            Poll::Pending => Ok(()),
        }
    }
}
