//! Heads of HTTP/1.1 messages as bytes: a request's is written, an answer's is read, and with each how the body after it is
//! framed (RFC 9112). Where a rule says nothing, as hyper does; where two ways of reading differ, an error.
//!
//! Refuses to know connections.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Uri, Version, request};
use http_body::Body as _;
use httparse::ParserConfig;
use hyper::ext::ReasonPhrase;
use mesh_core::http1::{Length, Sending, Spans, has, line};
use mesh_core::target::host;

use super::Error;
use crate::body::Outgoing;

/// Bytes of an answer's head, and its header lines: as many as hyper takes.
pub(super) const MAX_HEAD: usize = 8 * 1024 + 400 * 1024;
pub(super) const MAX_HEADERS: usize = 100;
/// Empty lines before answers to one request. There is no reason for any; who sends some is understood (RFC 9112, section 2.2,
/// has a server skip at least one).
const MAX_EMPTY: u32 = 100;
/// Provisional answers (1xx) to one request. Who works for hours and says so now and then is far below.
const MAX_PROVISIONAL: u32 = 1000;

/// How an answer's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Empty,
    Length(u64),
    Chunked,
    /// It ends with the connection.
    ToEnd,
}

/// The head of an answer, but for its headers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) version: Version,
    /// Unless it is the usual one.
    pub(super) reason: Option<ReasonPhrase>,
    pub(super) framing: Framing,
    /// Whether the connection may carry another request, as far as this answer says.
    pub(super) keep_alive: bool,
}

/// What is looked at while an answer's head comes in.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes in which no end of a head was found.
    seen: usize,
    empty: u32,
    provisional: u32,
}

impl Progress {
    /// Takes the head of an answer out of what was read, and its headers into `headers`, which are empty. `None`: it is not
    /// complete. `to_head`: the request was HEAD.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn head(
        &mut self,
        read: &mut BytesMut,
        to_head: bool,
        headers: &mut HeaderMap,
    ) -> Result<Option<Head>, Error> {
        loop {
            self.skip_empty(read)?;
            if read.is_empty() || (self.seen > 0 && !ends(read, self.seen)) {
                self.seen = read.len();
                return if self.seen >= MAX_HEAD { Err(Error::TooLarge) } else { Ok(None) };
            }
            let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
            let mut answer = httparse::Response::new(&mut []);
            let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut answer, read, &mut room);
            let httparse::Status::Complete(length) = parsed.map_err(Error::Head)? else {
                self.seen = read.len();
                return if self.seen >= MAX_HEAD { Err(Error::TooLarge) } else { Ok(None) };
            };
            self.seen = 0;
            let status = StatusCode::from_u16(answer.code.unwrap_or_default());
            let status = status.map_err(|_| Error::Head(httparse::Error::Status))?;
            if status.is_informational() {
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(Error::Framing("it changes to a protocol that nobody asked for"));
                }
                self.provisional += 1;
                if self.provisional > MAX_PROVISIONAL {
                    return Err(Error::Framing("there is no end of provisional answers"));
                }
                let _ = read.split_to(length);
                continue;
            }
            let version = if answer.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
            let reason = answer.reason.filter(|reason| status.canonical_reason() != Some(reason));
            let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
            let spans = Spans::of(read, answer.headers);
            let bytes = read.split_to(length).freeze();
            let told = Told::take(&bytes, &spans, headers)?;
            let keep_alive = told.keeps(version);
            let bare = to_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let framing = if bare { Framing::Empty } else { told.framing(version, headers)? };
            // Two framings: who else has read this may have read another one. And a 204 that has one after all.
            let both = told.coded && told.length != Length::Unsaid;
            let framed = told.coded || !matches!(told.length, Length::Unsaid | Length::Said(0));
            let doubtful = both || (status == StatusCode::NO_CONTENT && framed);
            let keep_alive = keep_alive && framing != Framing::ToEnd && !doubtful;
            return Ok(Some(Head { status, version, reason, framing, keep_alive }));
        }
    }

    /// Whether anything has come: a part of a head, a provisional answer, or an empty line.
    pub(super) fn is_begun(&self) -> bool {
        self.seen > 0 || self.provisional > 0 || self.empty > 0
    }

    /// Drops the empty lines before a head, which nobody then looks at again with each further piece.
    fn skip_empty(&mut self, read: &mut BytesMut) -> Result<(), Error> {
        loop {
            let length = match **read {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                _ => return Ok(()),
            };
            read.advance(length);
            (self.seen, self.empty) = (0, self.empty + 1);
            if self.empty > MAX_EMPTY {
                return Err(Error::Framing("there is no end of empty lines"));
            }
        }
    }
}

/// Whether a head may end after the bytes that were `seen` before.
fn ends(read: &[u8], seen: usize) -> bool {
    let late = &read[seen.saturating_sub(3).min(read.len())..];
    let mut lines = late.split_inclusive(|byte| *byte == b'\n').skip(1);
    lines.any(|line| line == b"\n" || line == b"\r\n")
}

/// What the headers of an answer say of its connection and its body.
#[derive(Default)]
struct Told {
    close: bool,
    coded: bool,
    length: Length,
}

impl Told {
    /// Takes the headers.
    fn take(bytes: &Bytes, spans: &Spans, headers: &mut HeaderMap) -> Result<Self, Error> {
        let mut told = Self::default();
        spans.take(bytes, headers, |name, value| {
            if *name == CONNECTION {
                told.close |= has(value, "close");
            } else if *name == TRANSFER_ENCODING {
                told.coded = true;
            } else if *name == CONTENT_LENGTH {
                told.length = told.length.also(value);
            }
        })?;
        Ok(told)
    }

    /// RFC 9112, section 9.3. Not to a peer of HTTP/1.0, whatever it says: it would take the chunks of a further request
    /// for a request of its own.
    fn keeps(&self, version: Version) -> bool {
        !self.close && version == Version::HTTP_11
    }

    /// RFC 9112, section 6.3.
    fn framing(&self, version: Version, headers: &HeaderMap) -> Result<Framing, Error> {
        if self.coded {
            if version == Version::HTTP_10 {
                return Err(Error::Framing("HTTP/1.0 has no transfer codings"));
            }
            return coded(headers);
        }
        match self.length {
            Length::Unsaid => Ok(Framing::ToEnd),
            Length::Said(0) => Ok(Framing::Empty),
            Length::Said(length) => Ok(Framing::Length(length)),
            Length::None => Err(Error::Framing("its content-length is none, or there are several")),
        }
    }
}

/// Framing by transfer codings: `chunked` once and last, or none that frames.
fn coded(headers: &HeaderMap) -> Result<Framing, Error> {
    const COMPRESSED: [&str; 6] = ["gzip", "x-gzip", "deflate", "compress", "x-compress", "identity"];
    let unknown = Error::Framing("its transfer-encoding is unknown, or chunked is not the last");
    let mut chunked = false;
    for value in headers.get_all(TRANSFER_ENCODING) {
        let Ok(value) = value.to_str() else { return Err(unknown) };
        for coding in value.split(',').map(str::trim) {
            if chunked {
                return Err(unknown);
            }
            chunked = coding.eq_ignore_ascii_case("chunked");
            if !chunked && !COMPRESSED.iter().any(|known| coding.eq_ignore_ascii_case(known)) {
                return Err(unknown);
            }
        }
    }
    Ok(if chunked { Framing::Chunked } else { Framing::ToEnd })
}

/// The head of a request, from where it is: nothing of it is copied but what is written.
pub(crate) struct RequestHead<'h> {
    pub(crate) method: &'h Method,
    pub(crate) uri: &'h Uri,
    pub(crate) headers: &'h HeaderMap,
    /// What `Host` is, where they have none.
    pub(crate) host: Option<&'h HeaderValue>,
    /// What is said in place of those of the same name, or beside them; none about the body or the host.
    pub(crate) beside: &'h [(&'h HeaderName, HeaderValue)],
}

impl<'h> RequestHead<'h> {
    /// That of a request with all its headers.
    pub(crate) fn of(parts: &'h request::Parts) -> Self {
        let request::Parts { method, uri, headers, .. } = parts;
        Self { method, uri, headers, host: None, beside: &[] }
    }

    /// Writes it; gives how its body follows, and whether its connection may carry another request.
    ///
    /// # Errors
    /// Its content-length is not that of its body: who reads it would take a part of one for another request.
    pub(super) fn write(&self, body: &Outgoing, to: &mut Vec<u8>) -> Result<(Sending, bool), Error> {
        let (path, beside) = (target(self.uri), self.beside);
        to.reserve(64 + path.len() + 48 * (self.headers.len() + beside.len() + 1));
        to.extend_from_slice(self.method.as_str().as_bytes());
        to.extend_from_slice(if path.starts_with(['/', '*']) { b" " } else { b" /" });
        to.extend_from_slice(path.as_bytes());
        to.extend_from_slice(b" HTTP/1.1\r\n");
        // The first line, and only one (RFC 9112, section 3.2).
        if let Some(host) = host(self.headers).or(self.host) {
            line(&HOST, host, to);
        }
        let (mut keep_alive, mut coded, mut length) = (true, false, Length::Unsaid);
        for (name, value) in self.headers {
            if *name == HOST || beside.iter().any(|(said, _)| *said == name) {
                continue;
            } else if *name == CONTENT_LENGTH {
                length = length.also(value);
                continue;
            } else if *name == TRANSFER_ENCODING {
                coded = true;
                continue;
            } else if *name == CONNECTION {
                keep_alive &= !has(value, "close");
            }
            line(name, value, to);
        }
        beside.iter().for_each(|(name, value)| line(name, value, to));
        let sending = self.frame(body, Own { coded, length }, to)?;
        to.extend_from_slice(b"\r\n");
        Ok((sending, keep_alive))
    }

    /// Writes the lines that frame the body.
    fn frame(&self, body: &Outgoing, own: Own, to: &mut Vec<u8>) -> Result<Sending, Error> {
        let (method, headers) = (self.method, self.headers);
        // What is none is as good as not there.
        let said = if let Length::Said(length) = own.length { Some(length) } else { None };
        let exact = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        if body.is_end_stream() {
            return match said {
                Some(said) if said > 0 => Err(Error::Length),
                // What has none usually says so, where it could have one (RFC 9110, section 8.6).
                said if said.is_some() || matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
                    Ok(Sending::sized(0, to))
                }
                _ => Ok(Sending::Length(0)),
            };
        }
        if !own.coded {
            return match (said, exact) {
                (Some(said), Some(exact)) if said != exact => Err(Error::Length),
                (Some(length), _) | (None, Some(length)) => Ok(Sending::sized(length, to)),
                // Hardly ever is there one, and who reads it may not expect it.
                (None, None) if matches!(*method, Method::GET | Method::HEAD | Method::CONNECT) => {
                    Ok(Sending::Length(0))
                }
                (None, None) => Ok(Sending::chunked(headers, to)),
            };
        }
        Ok(Sending::chunked(headers, to))
    }
}

/// Which headers about its body a request has of its own.
struct Own {
    coded: bool,
    length: Length,
}

/// The target of a request, in origin form.
fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |path| path.as_str())
}

impl From<httparse::Error> for Error {
    fn from(error: httparse::Error) -> Self {
        Self::Head(error)
    }
}
