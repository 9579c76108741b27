//! W3C Trace Context, level 1: the `traceparent` header.

use http::HeaderValue;

/// A position in a trace: `00-<trace id>-<span id>-<flags>`.
///
/// ```
/// use mesh_core::context::TraceContext;
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace = TraceContext::parse(text)?;
/// assert!(trace.sampled());
/// assert_eq!(trace.to_header(), text);
/// # Ok::<(), mesh_core::context::InvalidTraceparent>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// A `traceparent` that the specification refuses; the request has no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent header (W3C Trace Context, section 3.2)")]
pub struct InvalidTraceparent;

impl TraceContext {
    /// Parses a `traceparent`. A later version is read by the rules of version 00, as specified.
    ///
    /// # Errors
    /// The text has another shape, upper-case hex, version `ff`, or an all-zero id.
    pub fn parse(text: &str) -> Result<Self, InvalidTraceparent> {
        Self::read(text.as_bytes())
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, InvalidTraceparent> {
        let text: &[u8; LENGTH] = bytes.first_chunk().ok_or(InvalidTraceparent)?;
        let dashes = text[2] == b'-' && text[35] == b'-' && text[52] == b'-';
        let mut wrong = 0;
        let mut eight = |text: &[u8]| {
            let (number, others) = eight_digits(text);
            wrong |= others;
            u64::from(number)
        };
        let mut sixteen = |at: usize| eight(&text[at..at + 8]) << 32 | eight(&text[at + 8..at + 16]);
        let (trace_id, span_id) = (u128::from(sixteen(3)) << 64 | u128::from(sixteen(19)), sixteen(36));
        let [.., version, flags] = eight(&[b'0', b'0', b'0', b'0', text[0], text[1], text[53], text[54]]).to_be_bytes();
        let read = Self { trace_id, span_id, flags };
        let ends = bytes.len() == LENGTH || (version > 0 && bytes[LENGTH] == b'-');
        if wrong != 0 || !dashes || !ends || version == 0xff || trace_id == 0 || span_id == 0 {
            return Err(InvalidTraceparent);
        }
        Ok(read)
    }

    /// The same position, not recorded.
    #[must_use]
    pub fn unsampled(self) -> Self {
        Self { flags: self.flags & !1, ..self }
    }

    /// Trace id.
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// Span id.
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// Whether the trace is recorded.
    pub fn sampled(self) -> bool {
        self.flags & 1 == 1
    }

    /// The header value, version 00.
    pub fn to_header(self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text()).expect("hex digits and dashes are a header value")
    }

    fn text(self) -> [u8; LENGTH] {
        let mut text = [b'-'; LENGTH];
        text[0..2].copy_from_slice(b"00");
        for (at, shift) in [(3, 96), (11, 64), (19, 32), (27, 0)] {
            text[at..at + 8].copy_from_slice(&digits((self.trace_id >> shift) as u32));
        }
        text[36..44].copy_from_slice(&digits((self.span_id >> 32) as u32));
        text[44..52].copy_from_slice(&digits(self.span_id as u32));
        text[53..55].copy_from_slice(&digits(u32::from(self.flags))[6..]);
        text
    }
}

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;

// Eight digits at once, one in each byte of a word, for every request is read and written: `from_str_radix` takes
// ten times as long, and digit by digit takes three times.

/// One in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// A number in lower-case hex.
fn digits(number: u32) -> [u8; 8] {
    let mut word = u64::from(number);
    word = (word << 16 | word) & 0x0000_ffff_0000_ffff;
    word = (word << 8 | word) & 0x00ff_00ff_00ff_00ff;
    word = (word << 4 | word) & (15 * ONES);
    // A letter is a digit of ten or more.
    let letters = (word + 6 * ONES) >> 4 & ONES;
    (word + u64::from(b'0') * ONES + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// The number of eight lower-case digits, and what is 0 if they are such.
fn eight_digits(text: &[u8]) -> (u32, u64) {
    let text: &[u8; 8] = text.first_chunk().expect("eight digits");
    let word = u64::from_be_bytes(*text);
    // Without what lies between `9` and `a` all sixteen are 0x30 to 0x3f.
    let letters = word >> 6 & ONES;
    let packed = word - letters * u64::from(b'a' - b'9' - 1);
    let mut word = packed & (15 * ONES);
    // A letter is a digit of ten or more, and no other is.
    let ten = (word + 6 * ONES) >> 4 & ONES;
    let wrong = (packed ^ word ^ (0x30 * ONES)) | (letters ^ ten);
    word = (word >> 4 | word) & 0x00ff_00ff_00ff_00ff;
    word = (word >> 8 | word) & 0x0000_ffff_0000_ffff;
    ((word >> 16 | word) as u32, wrong)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::context::RequestContext;

    #[test]
    fn refuses_what_the_specification_refuses() {
        for bad in [
            "",
            "00-0-0-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-0",
        ] {
            assert_eq!(TraceContext::parse(bad), Err(InvalidTraceparent), "{bad}");
        }
    }

    #[test]
    fn every_byte_but_a_lower_case_digit_is_refused_wherever_it_stands() {
        let good = *b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (at, b) in (0..LENGTH).flat_map(|at| (0..=u8::MAX).map(move |b| (at, b))) {
            let mut bytes = good;
            bytes[at] = b;
            let fits = match at {
                2 | 35 | 52 => b == b'-',
                _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
            };
            let read = TraceContext::read(&bytes);
            assert_eq!(read.is_ok(), fits, "{b:#x} at {at}");
            // What is sent has our version.
            assert!(read.is_err() || read.unwrap().text()[2..] == bytes[2..], "{b:#x} at {at}");
        }
    }

    #[test]
    fn a_later_version_is_read_and_two_headers_are_none() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future";
        assert!(TraceContext::parse(later).is_ok());

        let value = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::new();
        headers.append("traceparent", value.clone());
        assert_eq!(RequestContext::from_headers(&headers).trace.unwrap().to_header(), value);
        headers.append("traceparent", value);
        assert_eq!(RequestContext::from_headers(&headers).trace, None);
    }
}
