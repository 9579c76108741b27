//! The heads of answers as bytes, and how the body after each is framed (RFC 9112): where a rule says nothing, as hyper does.
//!
//! Refuses to know connections.

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, TRAILER, TRANSFER_ENCODING};
use http::{StatusCode, response};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use mesh_core::error::BoxError;
use mesh_core::http1::{Halt, Length, Sending, has, line};

/// What is to be known of the request.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// It asks for a head alone.
    pub(super) head: bool,
    /// It takes trailers.
    pub(super) trailers: bool,
}

/// Why an answer cannot be sent as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("a provisional status (1xx) is no answer")]
    Provisional,
    #[error("its content-length is no number, or there are several")]
    Length,
    #[error("its content-length is {said}, and its body has {exact} bytes")]
    Contradicts { said: u64, exact: u64 },
}

/// Writes the head of an answer; gives how its body follows. `keep_alive` = whether the connection may carry another request,
/// which the answer may end.
///
/// # Errors
/// It is no answer, or who reads it would take a part of it for another. Nothing is written.
pub(super) fn write(
    head: &response::Parts,
    body: &impl Body,
    asked: Asked,
    keep_alive: &mut bool,
    date: Option<&HeaderValue>,
    to: &mut Vec<u8>,
) -> Result<Sending, Wrong> {
    let start = to.len();
    if head.status.is_informational() {
        return Err(Wrong::Provisional);
    }
    to.reserve(128 + 48 * head.headers.len());
    status(head, to);
    let bare = asked.head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let (mut closes, mut coded, mut dated, mut length) = (false, false, false, Length::Unsaid);
    for (name, value) in &head.headers {
        if *name == CONTENT_LENGTH {
            length = length.also(value);
            continue;
        } else if *name == TRANSFER_ENCODING {
            coded = true;
            continue;
        } else if *name == TRAILER && bare {
            continue;
        } else if *name == CONNECTION {
            closes |= has(value, "close");
        } else if *name == DATE {
            dated = true;
        }
        line(name, value, to);
    }
    let sending = match frame(head, body, asked, (coded, length), to) {
        Ok(sending) => sending,
        Err(wrong) => {
            to.truncate(start);
            return Err(wrong);
        }
    };
    if let Some(date) = date.filter(|_| !dated) {
        line(&DATE, date, to);
    }
    *keep_alive &= !closes;
    if !*keep_alive && !closes {
        to.extend_from_slice(b"connection: close\r\n");
    }
    to.extend_from_slice(b"\r\n");
    Ok(sending)
}

fn status(head: &response::Parts, to: &mut Vec<u8>) {
    let reason = head.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    if head.status == StatusCode::OK && reason.is_none() {
        to.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    to.extend_from_slice(b"HTTP/1.1 ");
    to.extend_from_slice(head.status.as_str().as_bytes());
    to.extend_from_slice(b" ");
    to.extend_from_slice(reason.unwrap_or_else(|| head.status.canonical_reason().unwrap_or("<none>").as_bytes()));
    to.extend_from_slice(b"\r\n");
}

/// Writes the lines that frame the body.
fn frame(
    head: &response::Parts,
    body: &impl Body,
    asked: Asked,
    (coded, length): (bool, Length),
    to: &mut Vec<u8>,
) -> Result<Sending, Wrong> {
    let exact = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    // That of an answer which has no body is what another would have had (RFC 9110, section 8.6).
    let said = if let Length::Said(length) = length { Some(length) } else { None };
    if head.status == StatusCode::NO_CONTENT {
        return Ok(Sending::Length(0));
    }
    if asked.head || head.status == StatusCode::NOT_MODIFIED {
        if let Some(length) = said.or(exact.filter(|exact| asked.head && *exact > 0)) {
            Sending::sized(length, to);
        }
        return Ok(Sending::Length(0));
    }
    let chunked = |to: &mut Vec<u8>| match Sending::chunked(&head.headers, to) {
        // Nobody takes them (RFC 9110, section 6.5.1).
        Sending::Chunked(_) if !asked.trailers => Sending::Chunked(Vec::new()),
        sending => sending,
    };
    if coded {
        return Ok(chunked(to));
    }
    match (length, exact) {
        // What is said of nothing is not true, and does no harm.
        (_, Some(0)) => Ok(Sending::sized(0, to)),
        (Length::None, _) => Err(Wrong::Length),
        (Length::Said(said), Some(exact)) if said != exact => Err(Wrong::Contradicts { said, exact }),
        (Length::Said(length), _) | (Length::Unsaid, Some(length)) => Ok(Sending::sized(length, to)),
        (Length::Unsaid, None) => Ok(chunked(to)),
    }
}

/// Writes the answer to a request whose own cannot be sent.
pub(super) fn fail(date: Option<&HeaderValue>, to: &mut Vec<u8>) {
    to.extend_from_slice(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n");
    if let Some(date) = date {
        line(&DATE, date, to);
    }
    to.extend_from_slice(b"\r\n");
}

/// Why an answer breaks off.
pub(super) fn broken<E: Into<BoxError>>(halt: Halt<E>) -> BoxError {
    match halt {
        Halt::Io(error) => error.into(),
        Halt::Body(error) => error.into(),
        Halt::Short => "the answer's body is shorter than its content-length".into(),
    }
}
