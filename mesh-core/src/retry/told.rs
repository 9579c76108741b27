//! When to come back, as an answer tells it: gRPC's pushback (gRFC A6) and the headers that a retry policy
//! names (Envoy `rate_limited_retry_back_off`).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::balance::Draw;
use crate::policy::{RateLimitedBackoff, ResetHeader};

static PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What a gRPC server asks of a client that would try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Try again after exactly this time; the back-off then begins anew.
    After(Duration),
    /// Do not try again: a negative number, one that cannot be read, or a time that is no time for a request.
    Stop,
}

/// Longest pushback that is obeyed, of which gRFC A6 says nothing: a number has room for 24 days, and a call without a
/// deadline would hold its place among the retries so long. That of Envoy's `rate_limited_retry_back_off`.
const MOST_PUSHBACK: Duration = Duration::from_secs(300);

/// The pushback in the headers of an answer; `None` = it has none.
pub fn pushback(headers: &HeaderMap) -> Option<Pushback> {
    let text = headers.get(&PUSHBACK)?.to_str().unwrap_or_default();
    Some(match text.parse::<i32>().map(u64::try_from) {
        Ok(Ok(millis)) if Duration::from_millis(millis) <= MOST_PUSHBACK => {
            Pushback::After(Duration::from_millis(millis))
        }
        _ => Pushback::Stop,
    })
}

/// How long an answer asks to stay away: the first of the policy's headers that is there, can be read and
/// asks for no more than the policy obeys. Up to half of it is added, so that not everybody comes back at
/// once. `unix` is the time since 1970. `None` = the ordinary back-off.
pub fn reset(
    policy: &RateLimitedBackoff,
    headers: &HeaderMap,
    unix: Duration,
    draw: &mut Draw<'_>,
) -> Option<Duration> {
    let asked = policy.headers.iter().filter_map(|header| interval(header, headers.get(&header.name)?, unix));
    let asked = asked.into_iter().find(|asked| *asked <= policy.max_interval)?;
    let half = u64::try_from(asked.as_nanos() / 2).unwrap_or(u64::MAX - 1);
    (!asked.is_zero()).then(|| asked.saturating_add(Duration::from_nanos(draw(half + 1))))
}

fn interval(header: &ResetHeader, value: &HeaderValue, unix: Duration) -> Option<Duration> {
    let seconds = Duration::from_secs(value.to_str().ok()?.trim().parse().ok()?);
    if header.unix_timestamp { seconds.checked_sub(unix) } else { Some(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn pushback_is_a_time_or_a_stop() {
        for (text, want) in [
            ("0", Pushback::After(Duration::ZERO)),
            ("250", Pushback::After(Duration::from_millis(250))),
            ("-1", Pushback::Stop),
            ("soon", Pushback::Stop),
            ("", Pushback::Stop),
            ("99999999999", Pushback::Stop),
            ("300000", Pushback::After(Duration::from_secs(300))),
            ("300001", Pushback::Stop),
            ("2147483647", Pushback::Stop),
        ] {
            assert_eq!(pushback(&headers(&[("grpc-retry-pushback-ms", text)])), Some(want), "{text}");
        }
        assert_eq!(pushback(&headers(&[])), None);
    }

    #[test]
    fn the_first_header_that_can_be_obeyed_counts() {
        let header = |name: &str, unix_timestamp| ResetHeader { name: name.parse().unwrap(), unix_timestamp };
        let policy = RateLimitedBackoff {
            headers: vec![header("retry-after", false), header("x-ratelimit-reset", true)],
            max_interval: Duration::from_secs(300),
        };
        let unix = Duration::from_secs(1_000_000);
        for (pairs, want) in [
            (&[("retry-after", "7")][..], Some(7)),
            (&[("x-ratelimit-reset", "1000020")], Some(20)),
            (&[("retry-after", "7"), ("x-ratelimit-reset", "1000020")], Some(7)),
            // Too long, or no number: the next one counts.
            (&[("retry-after", "301"), ("x-ratelimit-reset", "1000020")], Some(20)),
            (&[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"), ("x-ratelimit-reset", "1000020")], Some(20)),
            (&[("retry-after", "-7")], None),
            (&[("retry-after", "0")], None),
            // In the past.
            (&[("x-ratelimit-reset", "999999")], None),
            (&[], None),
        ] {
            let headers = headers(pairs);
            let want = want.map(Duration::from_secs);
            assert_eq!(reset(&policy, &headers, unix, &mut |_| 0), want, "{pairs:?}");
            let most = reset(&policy, &headers, unix, &mut |below| below - 1);
            assert_eq!(most, want.map(|asked| asked + asked / 2), "{pairs:?}");
        }
        let endless = RateLimitedBackoff { max_interval: Duration::MAX, ..policy };
        let forever = headers(&[("retry-after", "18446744073709551615")]);
        assert!(reset(&endless, &forever, unix, &mut |below| below - 1).is_some(), "no overflow");
    }
}
