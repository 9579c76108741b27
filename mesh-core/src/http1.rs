//! What both ends write and read of HTTP/1.1 messages (RFC 9112): header lines, what they say of a body's length, and a body
//! on its way out. The client and the server of this mesh have their heads in common no further than this.
//!
//! Refuses to know which end it is, and what bytes go over.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http_body::{Body, Frame};
use httparse::Header;
use smallvec::SmallVec;
use tokio::io::AsyncWrite;

/// Bytes of a body that are copied behind what goes out with them; what is larger goes out from where it is.
const COPIED: usize = 4 * 1024;
/// Bytes gathered before they are written.
const GATHERED: usize = 16 * 1024;
/// Writes in a row, before others have their turn, and pieces of a body for one of them: it may have no end of empty ones.
const ROUNDS: usize = 32;
const PIECES: usize = 1024;

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

/// Where in the bytes of a head its headers stand: they can be taken as slices of it once nothing borrows it.
pub struct Spans(SmallVec<[Span; 24]>);

struct Span {
    name: (usize, usize),
    value: (usize, usize),
}

impl Spans {
    /// Of headers that were found in `head`.
    pub fn of(head: &[u8], headers: &[Header<'_>]) -> Self {
        let begin = head.as_ptr() as usize;
        let span = |text: &[u8]| (text.as_ptr() as usize - begin, text.as_ptr() as usize - begin + text.len());
        // Filled where they are: a list that is collected is copied once more.
        let mut spans = SmallVec::new();
        for header in headers {
            spans.push(Span { name: span(header.name.as_bytes()), value: span(header.value) });
        }
        Self(spans)
    }

    /// Adds them to `headers`, as slices of `head`; each is shown to `look` before.
    ///
    /// # Errors
    /// One is none.
    pub fn take(
        &self,
        head: &Bytes,
        headers: &mut HeaderMap,
        mut look: impl FnMut(&HeaderName, &HeaderValue),
    ) -> Result<(), httparse::Error> {
        headers.reserve(self.0.len());
        for Span { name, value } in &self.0 {
            let name = HeaderName::from_bytes(&head[name.0..name.1]).map_err(|_| httparse::Error::HeaderName)?;
            // A slice of the head: nothing is copied.
            let value = HeaderValue::from_maybe_shared(head.slice(value.0..value.1));
            let value = value.map_err(|_| httparse::Error::HeaderValue)?;
            look(&name, &value);
            headers.append(name, value);
        }
        Ok(())
    }
}

/// What the lines of `Content-Length` say together, found on the walk that all headers are looked at on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    /// There is none.
    #[default]
    Unsaid,
    /// All of them this one.
    Said(u64),
    /// No number, or several.
    None,
}

impl Length {
    /// With one more line, which may be a list.
    #[must_use]
    pub fn also(self, value: &HeaderValue) -> Self {
        value.as_bytes().split(|byte| *byte == b',').fold(self, |before, said| {
            match (before, number(said.trim_ascii())) {
                (Self::Unsaid, Some(said)) => Self::Said(said),
                (Self::Said(before), Some(said)) if before == said => Self::Said(said),
                _ => Self::None,
            }
        })
    }
}

/// A number of nothing but digits: `parse` would take a sign.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Whether a list has this token.
pub fn has(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

/// Writes a header.
pub fn line(name: &HeaderName, value: &HeaderValue, to: &mut Vec<u8>) {
    to.extend_from_slice(name.as_str().as_bytes());
    to.extend_from_slice(b": ");
    to.extend_from_slice(value.as_bytes());
    to.extend_from_slice(b"\r\n");
}

/// A number in digits, without a formatter.
fn written(mut number: u64, base: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(number % base) as usize];
        number /= base;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// How the body of a message is framed that is written.
#[derive(Debug, PartialEq, Eq)]
pub enum Sending {
    /// This is left of it; 0 = nothing.
    Length(u64),
    /// In chunks, with those trailers that were announced.
    Chunked(Vec<HeaderName>),
}

impl Sending {
    /// Writes the line that says how long it is.
    pub fn sized(length: u64, to: &mut Vec<u8>) -> Self {
        to.extend_from_slice(b"content-length: ");
        to.extend_from_slice(written(length, 10, &mut [0; 20]));
        to.extend_from_slice(b"\r\n");
        Self::Length(length)
    }

    /// Writes the lines that say that it is in chunks, with the codings that the message has itself.
    pub fn chunked(headers: &HeaderMap, to: &mut Vec<u8>) -> Self {
        let codings = headers.get_all(TRANSFER_ENCODING);
        for value in &codings {
            line(&TRANSFER_ENCODING, value, to);
        }
        let last = codings.iter().next_back().and_then(|value| value.to_str().ok()?.rsplit(',').next());
        if !last.is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked")) {
            to.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        let lines = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
        let names = lines.flat_map(|line| line.split(','));
        Self::Chunked(names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect())
    }
}

/// Why a message goes out no further.
#[derive(Debug, thiserror::Error)]
pub enum Halt<E> {
    /// The connection takes no more of it.
    #[error(transparent)]
    Io(io::Error),
    /// Its body is not to be had.
    #[error("{0}")]
    Body(E),
    /// Its body is shorter than its head says.
    #[error("the body is shorter than its content-length")]
    Short,
}

/// What is left to send of a message: of its head, which is gathered, and its body, as far and as fast as the connection takes
/// them.
#[derive(Debug)]
pub struct Transfer {
    sending: Sending,
    /// Written of the gathered bytes.
    at: usize,
    /// What goes out after them: bytes of the body where they are, and the end of their chunk.
    large: Bytes,
    tail: &'static [u8],
    /// All of it was given to the connection, or waits in it.
    over: bool,
    begun: bool,
}

impl Transfer {
    /// Its head is gathered already.
    pub fn new(sending: Sending) -> Self {
        let over = sending == Sending::Length(0);
        Self { sending, at: 0, large: Bytes::new(), tail: &[], over, begun: false }
    }

    /// Whether the connection has taken any of it.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Sends on. The body is let go once all of it was taken. Ready when all is with the peer, as far as one can tell here.
    ///
    /// # Errors
    /// It goes out no further: what has gone out is not whole.
    pub fn poll_send<B, W>(
        &mut self,
        mut body: Pin<&mut Option<B>>,
        io: &mut W,
        gathered: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Halt<B::Error>>>
    where
        B: Body<Data = Bytes>,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            let waits = match body.as_mut().as_pin_mut() {
                Some(body) if !self.over => self.poll_gather(body, gathered, cx)?.is_pending(),
                _ => false,
            };
            if self.over {
                body.set(None);
            }
            while self.at < gathered.len() || !self.large.is_empty() || !self.tail.is_empty() {
                let written = ready!(self.poll_write(io, gathered, cx)).map_err(Halt::Io)?;
                self.begun = true;
                self.advance(written, gathered.len());
            }
            gathered.clear();
            self.at = 0;
            if waits || self.over {
                ready!(Pin::new(io).poll_flush(cx)).map_err(Halt::Io)?;
                return if self.over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
        // Others have work to do, and a stream may never have to wait.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes as much of the body as is written at once.
    fn poll_gather<B: Body<Data = Bytes>>(
        &mut self,
        mut body: Pin<&mut B>,
        gathered: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Halt<B::Error>>> {
        for _ in 0..PIECES {
            if self.over || !self.large.is_empty() || !self.tail.is_empty() || gathered.len() >= GATHERED {
                break;
            }
            match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => self.gather(frame, body.is_end_stream(), gathered)?,
                Some(Err(error)) => return Poll::Ready(Err(Halt::Body(error))),
                None => self.end(gathered)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &self,
        io: &mut W,
        gathered: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
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

    /// Takes the next piece of the body; `last`: nothing comes after it.
    fn gather<E>(&mut self, frame: Frame<Bytes>, last: bool, gathered: &mut Vec<u8>) -> Result<(), Halt<E>> {
        match frame.into_data() {
            Ok(data) => self.data(data, last, gathered),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.trailers(&trailers, gathered),
                Err(_) => Ok(()),
            },
        }
    }

    fn data<E>(&mut self, mut data: Bytes, last: bool, gathered: &mut Vec<u8>) -> Result<(), Halt<E>> {
        if data.is_empty() {
            return if last { self.end(gathered) } else { Ok(()) };
        }
        match &mut self.sending {
            Sending::Length(left) => {
                // Never more than was said: the peer would take it for another message.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.over = *left == 0;
                if last && !self.over {
                    return Err(Halt::Short);
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
    fn trailers<E>(&mut self, trailers: &HeaderMap, gathered: &mut Vec<u8>) -> Result<(), Halt<E>> {
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

    fn end<E>(&mut self, gathered: &mut Vec<u8>) -> Result<(), Halt<E>> {
        match &self.sending {
            Sending::Length(0) => {}
            Sending::Length(_) => return Err(Halt::Short),
            Sending::Chunked(_) => gathered.extend_from_slice(b"0\r\n\r\n"),
        }
        self.over = true;
        Ok(())
    }
}
