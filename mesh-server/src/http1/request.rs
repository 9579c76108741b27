//! Requests of HTTP/1.1 that are plain to read, found in what was read of a connection: whole, and with one length, or none, of
//! nothing but digits.
//!
//! Refuses to know what they ask for, and to take apart what is any other message: its bytes stay.

use std::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, Method, Request, Uri, Version};
use httparse::{Header, ParserConfig, Status};

use mesh_core::http1::Spans;

use super::Http1;
use crate::Body;

/// Headers of a request that is looked at. hyper has room for as many without an allocation.
const MAX_HEADERS: usize = 100;
/// The longest target: what [`Uri`] has room for, and hyper takes.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// What the bytes of a connection begin with.
pub(super) enum Found {
    /// A request with all of its body.
    Whole(Said),
    /// A part of what may be a request.
    Part,
    /// What is not for here.
    Other,
}

/// What a request says of the connection and of its answer.
pub(super) struct Said {
    /// The connection may carry another.
    pub(super) keep_alive: bool,
    /// Who asks takes trailers.
    pub(super) trailers: bool,
}

/// Drops empty lines; says how many.
pub(super) fn skip_empty(read: &mut BytesMut) -> usize {
    for lines in 0.. {
        match **read {
            [b'\n', ..] => read.advance(1),
            [b'\r', b'\n', ..] => read.advance(2),
            _ => return lines,
        }
    }
    0
}

/// Takes a request out of what was `read`, into `taken`: it is large, and stays there until it is served. Its headers are put
/// into `room`, which is empty.
pub(super) fn find(read: &mut BytesMut, how: &Http1, room: &mut HeaderMap, taken: &mut Option<Request<Body>>) -> Found {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let end = match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, read, &mut headers) {
        Ok(Status::Complete(end)) => end,
        Ok(Status::Partial) => return Found::Part,
        Err(_) => return Found::Other,
    };
    let (Some(method), Some(target), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Found::Other;
    };
    let Some((length, said)) = plain(parsed.headers) else { return Found::Other };
    if end > how.max_head || parsed.headers.len() > how.max_headers || target.len() > MAX_TARGET {
        return Found::Other;
    }
    if read.len() - end < length {
        return Found::Part;
    }
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Found::Other };
    if method == Method::CONNECT {
        return Found::Other;
    }
    let spans = Spans::of(read, parsed.headers);
    let from = target.as_ptr() as usize - read.as_ptr() as usize;
    let target = from..from + target.len();

    let head = read.split_to(end).freeze();
    let uri = Uri::from_maybe_shared(head.slice(target));
    let filled = spans.take(&head, room, |_, _| ());
    let (Ok(uri), Ok(())) = (uri, filled) else {
        // As it was.
        room.clear();
        let rest = std::mem::replace(read, BytesMut::from(&head[..]));
        read.extend_from_slice(&rest);
        return Found::Other;
    };
    let body = Body::whole(read.split_to(length).freeze(), how.body_idle);
    let request = taken.insert(Request::new(body));
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, Version::HTTP_11);
    *request.headers_mut() = std::mem::take(room);
    Found::Whole(said)
}

/// What headers say of the message, and how long its body is. `None`: more than can be said in one way, or what is not for here.
fn plain(headers: &[Header<'_>]) -> Option<(usize, Said)> {
    let (mut length, mut lengths, mut said) = (0, 0, Said { keep_alive: true, trailers: false });
    for Header { name, value } in headers {
        // Nearly all names are as long as none of these.
        match name.len() {
            6 if name.eq_ignore_ascii_case("expect") => return None,
            7 if name.eq_ignore_ascii_case("upgrade") => return None,
            17 if name.eq_ignore_ascii_case("transfer-encoding") => return None,
            14 if name.eq_ignore_ascii_case("content-length") => (length, lengths) = (number(value)?, lengths + 1),
            10 if name.eq_ignore_ascii_case("connection") => said.keep_alive &= !lists(value, b"close"),
            2 if name.eq_ignore_ascii_case("te") => said.trailers |= lists(value, b"trailers"),
            _ => {}
        }
    }
    (lengths <= 1).then_some((length, said))
}

/// A number of nothing but a few digits.
fn number(value: &[u8]) -> Option<usize> {
    if !(1..=9).contains(&value.len()) {
        return None;
    }
    value.iter().try_fold(0, |number, digit| Some(number * 10 + char::from(*digit).to_digit(10)? as usize))
}

/// Whether a list has this token.
fn lists(value: &[u8], token: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(token))
}
