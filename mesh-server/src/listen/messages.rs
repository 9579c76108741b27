//! Follows the messages of an HTTP/1 connection as their bytes come in, to see two things that hyper does not tell.
//!
//! A head that says twice how long its body is (`Content-Length` and `Transfer-Encoding`), or names another coding than
//! `chunked` alone: whoever stands before this server may have taken the other one, and what is a body to the one is a request
//! to the other (RFC 9112, section 11.2). hyper goes by the chunks and forgets the length, so this is the place to refuse.
//! And a head that has begun and is not whole, whose time is limited; of its own hyper would count the silence before it too.
//!
//! Refuses to know what a request says: no byte is kept but the beginning of a line. What is no message, hyper refuses.

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;

use std::io;
use std::task::Context;
use std::time::Duration;

use memchr::{memchr, memchr2};
use tokio::time::Instant;

use super::head::HeadTime;

/// What has been seen of the requests of one connection.
pub(crate) struct Messages {
    at: At,
    head: Head,
    word: Word,
    time: HeadTime,
}

/// Where in a message the next byte belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// A request's first line, or an empty one before it (RFC 9112, section 2.2).
    First,
    /// The name of a field, or the empty line after them.
    Name,
    /// The value of `Content-Length`.
    Length,
    /// That of `Transfer-Encoding`, of which so many letters have come.
    Coding(usize),
    /// What else there is on a line of the head.
    Rest,
    /// So many bytes of a body are to come.
    Body(u64),
    /// A chunk's size; `None` = no digit has come.
    Size(Option<u64>),
    /// What else there is on its line.
    Extension(u64),
    /// So many bytes of a chunk and of the end of its line are to come.
    Chunk(u64),
    Trailers,
    /// The application's own bytes, or what hyper refuses.
    Opaque,
}

/// What the head that is being read has said so far.
#[derive(Default)]
struct Head {
    // HTTP/1.0, in which nothing is upgraded.
    old: bool,
    // The connection may become the application's.
    opaque: bool,
    length: Option<u64>,
    chunked: bool,
}

/// The beginning of a line, its length without its end, and its last byte.
#[derive(Default)]
struct Word {
    text: [u8; CODING.len()],
    length: usize,
    last: u8,
    // The end of the line is CR LF as far as it has come, and not LF alone.
    returned: bool,
}

const LENGTH: &[u8] = b"content-length";
const CODING: &[u8] = b"transfer-encoding";
const UPGRADE: &[u8] = b"upgrade";
const CHUNKED: &[u8] = b"chunked";

/// The byte may not stand where it stands.
struct Refused;

impl Messages {
    /// Begins with a connection whose first byte came at `since`; a head may take `head_limit`.
    pub(super) fn new(head_limit: Duration, since: Instant) -> Self {
        let time = HeadTime::new(head_limit, Some(since));
        Self { at: At::First, head: Head::default(), word: Word::default(), time }
    }

    /// More bytes are waited for.
    ///
    /// # Errors
    /// A head is not whole, and its time is over.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.time.wait(cx)
    }

    /// Bytes that have come. One that is refused becomes one that no head may have: then hyper says 400 when the requests
    /// before it are answered, and closes.
    pub(super) fn see(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() && self.at != At::Opaque {
            // Nearly all fields have names that are none of those looked for: their lines are passed at once.
            if self.at == At::Name && self.word.is_empty() && is_of_no_note(bytes[0]) {
                match memchr(b'\n', bytes) {
                    Some(end) => bytes = &mut bytes[end + 1..],
                    None => {
                        self.at = At::Rest;
                        break;
                    }
                }
                continue;
            }
            if let Some(length) = self.line(bytes) {
                bytes = &mut bytes[length..];
                continue;
            }
            let length = self.length(bytes);
            let (piece, rest) = bytes.split_at_mut(length);
            match &mut self.at {
                At::Body(left) | At::Chunk(left) => {
                    *left -= piece.len() as u64;
                    self.at = match self.at {
                        At::Body(0) => At::First,
                        At::Chunk(0) => At::Size(None),
                        at => at,
                    };
                }
                _ => {
                    let fine = match self.at {
                        At::First | At::Rest | At::Extension(_) | At::Trailers => self.skip(piece),
                        At::Name => self.name(piece),
                        _ => self.take(piece[0]),
                    };
                    if let (Err(Refused), Some(last)) = (fine, piece.last_mut()) {
                        *last = 0;
                        self.at = At::Opaque;
                    }
                }
            }
            bytes = rest;
        }
        self.time.set(match self.at {
            At::First => self.word.length > 0,
            At::Name | At::Length | At::Coding(_) | At::Rest => true,
            _ => false,
        });
    }

    /// Looks at a line of a head at once, if all of it is here, it ends in CR LF and it is written as lines are: so nearly all are.
    /// Says how long it is. The others are looked at piece by piece.
    fn line(&mut self, bytes: &[u8]) -> Option<usize> {
        if !matches!(self.at, At::First | At::Name) || !self.word.is_empty() {
            return None;
        }
        let end = memchr2(b'\r', b'\n', bytes)?;
        if !bytes[end..].starts_with(b"\r\n") {
            return None;
        }
        let line = &bytes[..end];
        match (self.at, line) {
            (At::First, [.., last]) => {
                self.head.opaque = line.starts_with(b"CONNECT ");
                self.head.old = *last == b'0';
                self.at = At::Name;
            }
            (At::First, []) => return None,
            (_, []) => {
                self.time.end();
                self.at = std::mem::take(&mut self.head).body();
            }
            _ => {
                let (name, value) = line.split_at(memchr(b':', line)?);
                if name.eq_ignore_ascii_case(LENGTH) && !self.head.chunked {
                    self.head.length = Some(number(&value[1..])?);
                } else if [LENGTH, CODING, UPGRADE].iter().any(|noted| name.eq_ignore_ascii_case(noted)) {
                    return None;
                }
            }
        }
        Some(end + 2)
    }

    /// How many of these bytes are looked at together: up to the end of a line, of a name or of a body, or one.
    fn length(&self, bytes: &[u8]) -> usize {
        let through = |end: Option<usize>| end.map_or(bytes.len(), |end| end + 1);
        match self.at {
            At::Body(left) | At::Chunk(left) => usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()),
            At::First | At::Rest | At::Extension(_) | At::Trailers => through(memchr(b'\n', bytes)),
            At::Name => through(memchr2(b':', b'\n', bytes)),
            _ => 1,
        }
    }

    /// A piece of a line of which only the beginning and the end are looked at.
    fn skip(&mut self, piece: &[u8]) -> Result<(), Refused> {
        if matches!(self.at, At::First | At::Trailers) {
            self.word.take(piece);
        }
        if !piece.ends_with(b"\n") {
            return Ok(());
        }
        let line = std::mem::take(&mut self.word);
        self.at = match self.at {
            At::First if line.length == 0 => At::First,
            At::First => {
                self.head.opaque = line.text.starts_with(b"CONNECT ");
                self.head.old = line.last == b'0';
                At::Name
            }
            At::Extension(size) => chunk(size),
            // hyper reads on until a whole line is empty: what this one takes for a request would be a trailer to it.
            At::Trailers if !line.returned => return Err(Refused),
            At::Trailers if line.length == 0 => At::First,
            At::Trailers => At::Trailers,
            _ => At::Name,
        };
        Ok(())
    }

    /// A piece of a field's name, or of the empty line after the fields.
    fn name(&mut self, piece: &[u8]) -> Result<(), Refused> {
        if let Some(name) = piece.strip_suffix(b":") {
            self.word.take(name);
            self.at = self.head.field(&std::mem::take(&mut self.word))?;
            return Ok(());
        }
        self.word.take(piece);
        if piece.ends_with(b"\n") && self.word.length == 0 {
            self.word = Word::default();
            self.time.end();
            self.at = std::mem::take(&mut self.head).body();
        }
        Ok(())
    }

    /// One byte of a length, of a coding, or of a chunk's size.
    fn take(&mut self, byte: u8) -> Result<(), Refused> {
        self.at = match (self.at, byte) {
            (At::Length | At::Coding(_), b'\n') => At::Name,
            (at @ (At::Length | At::Size(_)), b'\r') => at,
            (At::Length, b' ' | b'\t') => At::Length,
            // What is no number hyper refuses.
            (At::Length, _) => {
                let digit = char::from(byte).to_digit(10);
                self.head.length = digit.and_then(|digit| more(self.head.length, 10, digit)).or(Some(0));
                if digit.is_some() { At::Length } else { At::Rest }
            }
            (at @ At::Coding(_), b'\r') | (at @ At::Coding(0 | 7), b' ' | b'\t') => at,
            (At::Coding(seen), _) if CHUNKED.get(seen) == Some(&byte.to_ascii_lowercase()) => At::Coding(seen + 1),
            // One that is cut short hyper refuses.
            (At::Coding(_), _) => return Err(Refused),
            (At::Size(size), _) => match char::from(byte).to_digit(16) {
                Some(digit) => more(size, 16, digit).map_or(At::Opaque, |size| At::Size(Some(size))),
                None => match size {
                    None => At::Opaque,
                    Some(size) if byte == b'\n' => chunk(size),
                    Some(size) => At::Extension(size),
                },
            },
            (at, _) => at,
        };
        Ok(())
    }
}

impl Head {
    /// A field of this name begins. That it may not is told by the name alone.
    fn field(&mut self, name: &Word) -> Result<At, Refused> {
        if name.is(LENGTH) {
            if self.chunked {
                return Err(Refused);
            }
            self.length = Some(0);
            return Ok(At::Length);
        }
        if name.is(CODING) {
            if self.chunked || self.length.is_some() {
                return Err(Refused);
            }
            self.chunked = true;
            return Ok(At::Coding(0));
        }
        self.opaque |= !self.old && name.is(UPGRADE);
        Ok(At::Rest)
    }

    /// What comes after it.
    fn body(self) -> At {
        match self.length {
            _ if self.opaque => At::Opaque,
            _ if self.chunked => At::Size(None),
            Some(length) if length > 0 => At::Body(length),
            _ => At::First,
        }
    }
}

impl Word {
    /// Whether nothing of the line has come.
    fn is_empty(&self) -> bool {
        self.length == 0 && !self.returned
    }

    /// More of the line, LF only as its last byte. A CR is no part of it, wherever it stands.
    fn take(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        while let Some(end) = memchr(b'\r', bytes) {
            self.add(&bytes[..end]);
            self.returned = true;
            bytes = &bytes[end + 1..];
        }
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        let place = self.text.get_mut(self.length..).unwrap_or_default();
        let kept = place.len().min(bytes.len());
        place[..kept].copy_from_slice(&bytes[..kept]);
        self.length = self.length.saturating_add(bytes.len());
        self.last = *last;
        self.returned = false;
    }

    fn is(&self, name: &[u8]) -> bool {
        self.length == name.len() && self.text[..name.len()].eq_ignore_ascii_case(name)
    }
}

/// A number as nearly everybody writes it: digits, behind a space or none.
fn number(value: &[u8]) -> Option<u64> {
    let digits = value.strip_prefix(b" ").unwrap_or(value);
    // More of them might be too many.
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| Some(number * 10 + u64::from(char::from(*digit).to_digit(10)?)))
}

/// Whether no name begins with this that is looked for, nor the line after all fields.
fn is_of_no_note(first: u8) -> bool {
    !matches!(first | 0x20, b'c' | b't' | b'u') && !matches!(first, b':' | b'\r' | b'\n')
}

/// What comes after the line with a chunk's size.
fn chunk(size: u64) -> At {
    if size == 0 { At::Trailers } else { At::Chunk(size.saturating_add(2)) }
}

/// A number with one more digit; `None` = it is too large, and hyper refuses it.
fn more(number: Option<u64>, radix: u64, digit: u32) -> Option<u64> {
    number.unwrap_or(0).checked_mul(radix)?.checked_add(u64::from(digit))
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use mesh_testkit::clock;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Whether all of it is passed on as it came, in pieces of this size.
    fn passes(text: &[u8], piece: usize) -> bool {
        let mut messages = Messages::new(LIMIT, Instant::now());
        let mut bytes = text.to_vec();
        bytes.chunks_mut(piece).for_each(|piece| messages.see(piece));
        bytes == text
    }

    #[tokio::test]
    async fn a_second_length_is_seen_in_every_head_however_its_bytes_come() {
        let both = "POST /b HTTP/1.1\r\nContent-Length: 5\r\nTRANSFER-ENCODING: \tchunked \r\n\r\n0\r\n\r\n";
        let other = "POST /b HTTP/1.1\nhost: a\ntransfer-encoding: chunked\ncontent-length: x\n\n";
        let before = [
            "",
            "\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\nPOST / a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;a=\"b\"\r\na\r\n\r\n\r\n000A \r\n0123456789\r\n0\r\nx: y\r\n\r\n",
            "GET / HTTP/1.0\r\nupgrade: websocket\r\nconnection: keep-alive\r\n\r\n",
        ];
        let trailer = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n";
        for piece in [1, 2, 3, 7, 16, 1000] {
            for (line, fine) in [("\r\n", true), ("x: y\r\n\r\n", true), ("\n", false), ("x: y\n\r\n", false)] {
                let all = format!("{trailer}{line}GET / HTTP/1.1\r\n\r\n");
                assert_eq!(passes(all.as_bytes(), piece), fine, "what hyper reads on from: {all:?}");
            }
            for first in before {
                for second in before {
                    let right = format!("{first}{second}");
                    assert!(passes(right.as_bytes(), piece), "{right:?}");
                    for wrong in [both, other] {
                        let all = format!("{right}{wrong}");
                        assert!(!passes(all.as_bytes(), piece), "{all:?}");
                    }
                }
            }
            // What the application took over is its own.
            for head in ["CONNECT a:1 HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n"] {
                assert!(passes(format!("{head}{both}").as_bytes(), piece), "{head}");
            }
        }
    }

    #[tokio::test]
    async fn a_coding_is_chunked_once_and_alone() {
        let with = |fields: &str| passes(format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes(), 1000);
        let blanks = " ".repeat(100);
        let both = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1";
        for fields in
            ["transfer-encoding: chunked", "x-transfer-encoding: gzip", "content-length: 1\r\ncontent-length: 1"]
        {
            assert!(with(fields), "{fields}");
        }
        for fields in [
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding:\r\ntransfer-encoding: chunked",
            "transfer-encoding: identity",
            "transfer-encoding: chun ked",
            "content-length:\r\ntransfer-encoding: chunked",
            "content-length: x\r\ntransfer-encoding: chunked",
            &format!("content-length:{blanks}1\r\nTransfer-Encoding:{blanks}chunked{blanks}"),
            &format!("transfer-encoding:{blanks}chunked\r\nContent-Length:{blanks}1"),
            // Behind a chunk whose size has many zeros.
            &format!("transfer-encoding: chunked\r\n\r\n{}1\r\na\r\n0\r\n\r\n{both}", "0".repeat(100)),
        ] {
            assert!(!with(fields), "{fields}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_to_its_time_waits() {
        let mut messages = Messages::new(Duration::MAX, Instant::now());
        messages.see(&mut b"GET /".to_vec());
        assert!(std::future::poll_fn(|cx| Poll::Ready(messages.wait(cx))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_and_what_is_whole_waits_as_long_as_it_likes() {
        let whole = "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n";
        for (text, limited) in [
            ("P", true),
            ("POST / HTTP/1.1\r\n", true),
            (&whole[..whole.len() - 2], true),
            (whole, false),
            (&format!("{whole}o"), false),
            (&format!("{whole}ok"), false),
            (&format!("{whole}okG"), true),
        ] {
            let mut messages = Messages::new(LIMIT, Instant::now());
            messages.see(&mut text.as_bytes().to_vec());
            let mut waits = async || std::future::poll_fn(|cx| Poll::Ready(messages.wait(cx))).await.is_ok();
            assert!(waits().await, "{text}");
            clock::pass(LIMIT / 2).await;
            assert!(waits().await, "{text}");
            clock::pass(LIMIT).await;
            assert_eq!(waits().await, !limited, "{text}");
        }
        // Drop by drop is not in time either, and each head has its own.
        let mut messages = Messages::new(LIMIT, Instant::now());
        for _ in 0..3 {
            for piece in whole.as_bytes().chunks(8) {
                messages.see(&mut piece.to_vec());
                clock::pass(LIMIT / 6).await;
                assert!(std::future::poll_fn(|cx| Poll::Ready(messages.wait(cx))).await.is_ok());
            }
            messages.see(&mut b"ok".to_vec());
        }
        for piece in whole.as_bytes().chunks(1).take(10) {
            messages.see(&mut piece.to_vec());
            clock::pass(LIMIT / 10).await;
        }
        assert!(std::future::poll_fn(|cx| Poll::Ready(messages.wait(cx))).await.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_stumble_and_pieces_change_nothing(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..8),
                prop::sample::select(vec![
                    "\r\n", "\n", ":", "0", "5", "f", " ", "GET / HTTP/1.1\r\n", "content-length: ", "transfer-encoding: chunked",
                    "ffffffffffffffff", "18446744073709551615", "upgrade: a",
                ]).prop_map(|text| text.as_bytes().to_vec()),
            ], 0..24),
            piece in 1_usize..40,
        ) {
            let text = parts.concat();
            let seen = |piece: usize| {
                let mut messages = Messages::new(LIMIT, Instant::now());
                let mut bytes = text.clone();
                bytes.chunks_mut(piece).for_each(|piece| messages.see(piece));
                bytes
            };
            prop_assert_eq!(seen(piece), seen(text.len().max(1)));
        }
    }
}
