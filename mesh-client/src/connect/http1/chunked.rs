//! Bodies in chunks (RFC 9112, section 7.1), as they are read. Stricter than hyper: each line ends with CR and LF, a trailer's
//! too. Extensions and trailers have their bounds.
//!
//! Refuses to know where the bytes come from.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use mesh_core::http1::Spans;

use super::Error;
use super::head::MAX_HEADERS;

/// Bytes of the extensions of all chunks, and of the trailers: as many as hyper takes.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;

/// How far the reading of a body in chunks is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    at: At,
    /// Bytes of the chunk still to come; its size, while that is read.
    left: u64,
    extensions: usize,
    trailers: Vec<u8>,
    lines: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Size,
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The beginning of a trailer, or of the end.
    Line,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Data(Bytes),
    /// They are the last.
    Trailers(HeaderMap),
    End,
}

impl Chunked {
    /// Takes what comes next out of what was read; `None`: it is not there yet.
    ///
    /// # Errors
    /// These are no chunks.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Next>, Error> {
        loop {
            if self.at == At::Data {
                if read.is_empty() {
                    return Ok(None);
                }
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(read.len());
                self.left -= now as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Some(Next::Data(read.split_to(now).freeze())));
            }
            let Some(byte) = read.first().copied() else { return Ok(None) };
            read.advance(1);
            self.at = self.step(byte)?;
            if self.at == At::End {
                let trailers = std::mem::take(&mut self.trailers);
                return Ok(Some(if trailers.is_empty() {
                    Next::End
                } else {
                    Next::Trailers(parse(&trailers.into())?)
                }));
            }
        }
    }

    /// After the data of a chunk: whether all that follows is the end, which is taken then. That saves who reads a look.
    pub(super) fn ends(&mut self, read: &mut BytesMut) -> bool {
        const LAST: &[u8] = b"\r\n0\r\n\r\n";
        let ends = self.at == At::DataCr && read.starts_with(LAST);
        if ends {
            read.advance(LAST.len());
            self.at = At::End;
        }
        ends
    }

    fn step(&mut self, byte: u8) -> Result<At, Error> {
        let bad = |what| Err(Error::Chunk(what));
        Ok(match (self.at, byte) {
            (At::Start | At::Size, byte) if byte.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(byte).to_digit(16).unwrap_or_default());
                let size = self.left.checked_mul(16).ok_or(Error::Chunk("its size is too large"))?;
                self.left = size | digit;
                At::Size
            }
            (At::Start, _) => return bad("it has no size"),
            (At::Size | At::Space, b' ' | b'\t') => At::Space,
            (At::Size | At::Space, b';') => At::Extension,
            (At::Size | At::Space | At::Extension, b'\r') => At::SizeLf,
            (At::Size | At::Space, _) => return bad("its size is none"),
            (At::Extension, b'\n') => return bad("a line of its size ends without CR"),
            (At::Extension, _) => {
                self.extensions += 1;
                if self.extensions >= MAX_EXTENSIONS {
                    return bad("there is no end of extensions");
                }
                At::Extension
            }
            (At::SizeLf, b'\n') if self.left == 0 => At::Line,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Start,
            (At::Line, b'\r') => At::EndLf,
            (At::Line | At::Trailer, b'\n') => return bad("a line of its trailers ends without CR"),
            (At::Line | At::Trailer, _) => self.trailer(byte)?,
            (At::TrailerLf, b'\n') => {
                self.lines += 1;
                if self.lines > MAX_HEADERS {
                    return bad("there is no end of trailers");
                }
                self.trailer(byte)?;
                At::Line
            }
            (At::EndLf, b'\n') => {
                if !self.trailers.is_empty() {
                    self.trailers.extend_from_slice(b"\r\n");
                }
                At::End
            }
            (At::SizeLf | At::DataCr | At::DataLf | At::TrailerLf | At::EndLf, _) => {
                return bad("a line ends in another way than with CR and LF");
            }
            (At::Data | At::End, _) => return bad("it is over"),
        })
    }

    fn trailer(&mut self, byte: u8) -> Result<At, Error> {
        self.trailers.push(byte);
        if self.trailers.len() >= MAX_TRAILERS {
            return Err(Error::Chunk("there is no end of trailers"));
        }
        Ok(if byte == b'\r' { At::TrailerLf } else { At::Trailer })
    }
}

fn parse(lines: &Bytes) -> Result<HeaderMap, Error> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let parsed = httparse::parse_headers(lines, &mut room)?;
    let httparse::Status::Complete((_, headers)) = parsed else {
        return Err(Error::Chunk("its trailers are none"));
    };
    let mut trailers = HeaderMap::new();
    Spans::of(lines, headers).take(lines, &mut trailers, |_, _| ())?;
    Ok(trailers)
}
