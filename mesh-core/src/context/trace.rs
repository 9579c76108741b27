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

/// A `traceparent` that the specification refuses; the request starts a new trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent header (W3C Trace Context, section 3.2)")]
pub struct InvalidTraceparent;

impl TraceContext {
    /// A new trace; `ids` gives random bits. Unsampled: sampling is the tracer's decision.
    pub fn new(mut ids: impl FnMut() -> u64) -> Self {
        let trace_id = (u128::from(ids()) << 64 | u128::from(ids())).max(1);
        Self { trace_id, span_id: ids().max(1), flags: 0 }
    }

    /// Parses a `traceparent`. A later version is read by the rules of version 00, as specified.
    ///
    /// # Errors
    /// The text has another shape, upper-case hex, version `ff`, or an all-zero id.
    pub fn parse(text: &str) -> Result<Self, InvalidTraceparent> {
        Self::read(text.as_bytes())
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, InvalidTraceparent> {
        if bytes.len() < 55 || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
            return Err(InvalidTraceparent);
        }
        let version = hex(&bytes[0..2])? as u8;
        if version == 0xff || (version == 0 && bytes.len() != 55) || (bytes.len() > 55 && bytes[55] != b'-') {
            return Err(InvalidTraceparent);
        }
        let trace_id = u128::from(hex(&bytes[3..19])?) << 64 | u128::from(hex(&bytes[19..35])?);
        let span_id = hex(&bytes[36..52])?;
        let flags = hex(&bytes[53..55])? as u8;
        if trace_id == 0 || span_id == 0 {
            return Err(InvalidTraceparent);
        }
        Ok(Self { trace_id, span_id, flags })
    }

    /// The same trace with another span as the parent of what follows.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self { span_id: span_id.max(1), ..self }
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
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace_id.to_be_bytes(), &mut out[3..35]);
        write_hex(&self.span_id.to_be_bytes(), &mut out[36..52]);
        write_hex(&[self.flags], &mut out[53..55]);
        HeaderValue::from_bytes(&out).expect("hex digits and dashes are a header value")
    }
}

/// Reads at most 16 lower-case digits. By hand, for every request passes here: `from_str_radix` takes ten
/// times as long and takes capitals.
fn hex(text: &[u8]) -> Result<u64, InvalidTraceparent> {
    text.iter().try_fold(0, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return Err(InvalidTraceparent),
        };
        Ok(value << 4 | u64::from(digit))
    })
}

fn write_hex(bytes: &[u8], out: &mut [u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (byte, out) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        out[0] = HEX[usize::from(byte >> 4)];
        out[1] = HEX[usize::from(byte & 15)];
    }
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
    fn a_later_version_is_read_and_two_headers_start_anew() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future";
        assert!(TraceContext::parse(later).is_ok());

        let value = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::new();
        headers.append("traceparent", value.clone());
        assert_eq!(RequestContext::from_headers(&headers, || 7).trace.to_header(), value);
        headers.append("traceparent", value);
        assert_eq!(RequestContext::from_headers(&headers, || 7).trace.span_id(), 7);
    }
}
