//! The time that a request has left, as its headers say it from hop to hop: gRPC's header, and Envoy's for other
//! requests.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// gRPC's header of the time that is left.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Envoy's, for requests that are not gRPC: milliseconds.
pub static EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Whether a content type is gRPC's, as gRPC over HTTP/2 defines it. That of gRPC-Web is not, whose status is inside
/// the body.
pub fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The time in a [`GRPC_TIMEOUT`]: one to eight digits and a unit (gRPC over HTTP/2). `None` if it is none.
pub fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let next = |sum: u64, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'));
    let amount = digits.iter().try_fold(0, next)?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The time in an [`EXPECTED_TIMEOUT`]; zero is none, as in Envoy.
pub fn expected_timeout(value: &HeaderValue) -> Option<Duration> {
    // By hand: nearly every request has one, and reading it as text first costs three times as much.
    let text = value.as_bytes();
    let digits = text.strip_prefix(b"+").unwrap_or(text);
    let next = |sum: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    };
    let millis = if digits.is_empty() { None } else { digits.iter().try_fold(0, next) }?;
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// How much time is left, as the header of a request says it.
///
/// ```
/// use std::time::Duration;
/// use mesh_core::context::{EXPECTED_TIMEOUT, GRPC_TIMEOUT, TimeoutHeader};
/// let mut headers = http::HeaderMap::new();
/// TimeoutHeader::of_grpc(Duration::from_secs(2)).write(&mut headers);
/// TimeoutHeader::of_http(Duration::from_secs(2)).write(&mut headers);
/// assert_eq!(headers[&GRPC_TIMEOUT], "2000000u");
/// assert_eq!(headers[&EXPECTED_TIMEOUT], "2000");
/// ```
#[derive(Clone, Debug)]
pub struct TimeoutHeader {
    name: &'static HeaderName,
    value: HeaderValue,
}

impl TimeoutHeader {
    /// Of a gRPC call: [`GRPC_TIMEOUT`]. Never zero: that would be no limit.
    pub fn of_grpc(left: Duration) -> Self {
        Self { name: &GRPC_TIMEOUT, value: grpc_timeout_value(left) }
    }

    /// Of another request: [`EXPECTED_TIMEOUT`]. Never zero either.
    pub fn of_http(left: Duration) -> Self {
        let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { name: &EXPECTED_TIMEOUT, value: HeaderValue::from(millis) }
    }

    /// One that is said once: HPACK is not to remember it (RFC 7541, section 7.1.3).
    #[must_use]
    pub fn once(mut self) -> Self {
        self.value.set_sensitive(true);
        self
    }

    /// Its name and its value.
    pub fn into_parts(self) -> (&'static HeaderName, HeaderValue) {
        (self.name, self.value)
    }

    /// Writes it, in place of what is there.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(self.name, self.value);
    }
}

fn grpc_timeout_value(left: Duration) -> HeaderValue {
    let micros = left.as_micros().max(1);
    // Eight digits at most: 99 s in microseconds, 27 h in milliseconds.
    let text = match micros {
        0..100_000_000 => format!("{micros}u"),
        100_000_000..100_000_000_000 => format!("{}m", micros / 1000),
        _ => format!("{}S", (micros / 1_000_000).min(99_999_999)),
    };
    HeaderValue::from_str(&text).expect("digits and a letter are a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_nonsense_is_ignored() {
        let read = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100u", Some(Duration::from_micros(100))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("123456789S", None),
            ("1", None),
            ("1x", None),
        ] {
            assert_eq!(read(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_left_is_read_as_it_was_written_and_the_last_of_it_is_a_limit_still() {
        for (left, grpc, plain) in [
            (Duration::ZERO, Duration::from_micros(1), Duration::from_millis(1)),
            (Duration::from_micros(300), Duration::from_micros(300), Duration::from_millis(1)),
            (Duration::from_millis(1500), Duration::from_millis(1500), Duration::from_millis(1500)),
            (Duration::from_secs(100), Duration::from_secs(100), Duration::from_secs(100)),
            (Duration::from_secs(1 << 40), Duration::from_secs(99_999_999), Duration::from_secs(1 << 40)),
        ] {
            let mut headers = HeaderMap::new();
            TimeoutHeader::of_grpc(left).write(&mut headers);
            TimeoutHeader::of_http(left).write(&mut headers);
            assert_eq!(grpc_timeout(&headers[&GRPC_TIMEOUT]), Some(grpc), "{left:?}");
            assert_eq!(expected_timeout(&headers[&EXPECTED_TIMEOUT]), Some(plain), "{left:?}");
        }
        assert_eq!(expected_timeout(&HeaderValue::from_static("0")), None);
    }

    #[test]
    fn milliseconds_are_read_as_any_number_is() {
        let texts = [
            "2000",
            "+5",
            "+",
            "",
            "-1",
            "1.5",
            "5 ",
            " 5",
            "0",
            "007",
            "1e3",
            "99999999999999999999",
            "18446744073709551615",
        ];
        for text in texts {
            let read = text.parse().ok().filter(|millis| *millis > 0).map(Duration::from_millis);
            assert_eq!(expected_timeout(&HeaderValue::from_static(text)), read, "{text}");
        }
        assert_eq!(expected_timeout(&HeaderValue::from_bytes(b"5\xff").unwrap()), None);
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (text, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;v=1", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&HeaderValue::from_static(text)), grpc, "{text}");
        }
    }
}
