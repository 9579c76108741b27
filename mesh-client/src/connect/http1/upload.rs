//! A request on its way out: its head and its body, as far and as fast as the connection takes them.
//!
//! Refuses to know answers.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, HeaderName,
    MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http_body::Body as HttpBody;
use tokio::io::AsyncWrite;

use super::super::IoStream;
use super::Error;
use super::head::{Sending, line, written};
use crate::body::{Broken, Outgoing};

/// Bytes of a body that are copied behind what goes out with them; what is larger goes out from where it is.
const COPIED: usize = 4 * 1024;
/// Bytes gathered before they are written.
const GATHERED: usize = 16 * 1024;
/// Writes in a row, before others have their turn, and pieces of a body for one of them: it may have no end of empty ones.
const ROUNDS: usize = 32;
const PIECES: usize = 1024;

/// What is left to send of a request.
pub(super) struct Upload {
    body: Outgoing,
    sending: Sending,
    /// Written of the gathered bytes.
    at: usize,
    /// What goes out after them: bytes of the body where they are, and the end of their chunk.
    large: Bytes,
    tail: &'static [u8],
    /// All of it was given to the connection, or waits in it.
    over: bool,
    /// Any of it was.
    pub(super) begun: bool,
}

/// Trailers that may not be any (RFC 9110, section 6.5.1).
const NO_TRAILERS: [HeaderName; 12] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HOST,
    MAX_FORWARDS,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

impl Upload {
    /// Its head is gathered already.
    pub(super) fn new(body: Outgoing, sending: Sending) -> Self {
        let over = sending == Sending::Length(0);
        Self { body, sending, at: 0, large: Bytes::new(), tail: &[], over, begun: false }
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
        for _ in 0..ROUNDS {
            let mut waits = false;
            for _ in 0..PIECES {
                if self.over || !self.large.is_empty() || !self.tail.is_empty() || gathered.len() >= GATHERED {
                    break;
                }
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(frame) => self.gather(frame.transpose().map_err(Broken::RequestBody)?, gathered)?,
                    Poll::Pending => {
                        waits = true;
                        break;
                    }
                }
            }
            while self.at < gathered.len() || !self.large.is_empty() || !self.tail.is_empty() {
                let polled = self.poll_write(io, gathered, cx);
                // Of what failed over TLS a part may have gone out.
                self.begun |= matches!(&polled, Poll::Ready(Ok(_))) || (polled.is_ready() && io.may_have_sent());
                let written = ready!(polled).map_err(Broken::Io)?;
                self.advance(written, gathered.len());
            }
            gathered.clear();
            self.at = 0;
            if waits || self.over {
                ready!(Pin::new(io).poll_flush(cx)).map_err(Broken::Io)?;
                return if self.over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
        // Others have work to do, the answer may be there, and a custom stream may never have to wait.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write(&self, io: &mut IoStream, gathered: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let first = &gathered[self.at..];
        let written = if self.large.is_empty() && self.tail.is_empty() {
            ready!(Pin::new(io).poll_write(cx, first))?
        } else {
            let all = [first, &self.large, self.tail].map(IoSlice::new);
            // A stream that takes one slice at a time takes the first.
            let full = all.iter().position(|slice| !slice.is_empty()).unwrap_or_default();
            ready!(Pin::new(io).poll_write_vectored(cx, &all[full..]))?
        };
        if written == 0 { Poll::Ready(Err(io::ErrorKind::WriteZero.into())) } else { Poll::Ready(Ok(written)) }
    }

    fn advance(&mut self, written: usize, gathered: usize) {
        let first = written.min(gathered - self.at);
        self.at += first;
        let large = (written - first).min(self.large.len());
        self.large.advance(large);
        self.tail = &self.tail[(written - first - large).min(self.tail.len())..];
    }

    /// Takes the next piece of the body; `None` = its end.
    fn gather(&mut self, frame: Option<http_body::Frame<Bytes>>, gathered: &mut Vec<u8>) -> Result<(), Broken> {
        let Some(frame) = frame else { return self.end(gathered) };
        match frame.into_data() {
            Ok(data) => self.data(data, gathered),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.trailers(trailers, gathered),
                Err(_) => Ok(()),
            },
        }
    }

    fn data(&mut self, mut data: Bytes, gathered: &mut Vec<u8>) -> Result<(), Broken> {
        let last = self.body.is_end_stream();
        if data.is_empty() {
            return if last { self.end(gathered) } else { Ok(()) };
        }
        match &mut self.sending {
            Sending::Length(left) => {
                // Never more than was said: the peer would take it for another request.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.over = *left == 0;
                if last && !self.over {
                    return Err(Error::Length.into());
                }
            }
            Sending::Chunked(_) => {
                gathered.extend_from_slice(written(data.len() as u64, 16, &mut [0; 20]));
                gathered.extend_from_slice(b"\r\n");
                self.tail = if last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                self.over = last;
            }
        }
        if data.len() <= COPIED {
            gathered.extend_from_slice(&data);
            gathered.extend_from_slice(std::mem::take(&mut self.tail));
        } else {
            self.large = data;
        }
        Ok(())
    }

    /// Only what was announced, as hyper does: nobody else looks at them.
    fn trailers(&mut self, trailers: HeaderMap, gathered: &mut Vec<u8>) -> Result<(), Broken> {
        if let Sending::Chunked(announced) = &self.sending {
            gathered.extend_from_slice(b"0\r\n");
            let sent = |name: &HeaderName| announced.contains(name) && !NO_TRAILERS.contains(name);
            trailers.iter().filter(|(name, _)| sent(name)).for_each(|(name, value)| line(name, value, gathered));
            gathered.extend_from_slice(b"\r\n");
            self.over = true;
            return Ok(());
        }
        self.end(gathered)
    }

    fn end(&mut self, gathered: &mut Vec<u8>) -> Result<(), Broken> {
        match &self.sending {
            Sending::Length(0) => {}
            Sending::Length(_) => return Err(Error::Length.into()),
            Sending::Chunked(_) => gathered.extend_from_slice(b"0\r\n\r\n"),
        }
        self.over = true;
        Ok(())
    }
}
