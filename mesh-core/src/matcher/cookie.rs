//! The cookie condition of a route.

use http::HeaderMap;
use http::header::COOKIE;

use super::TextCondition;
use crate::policy::CookieMatcher;

#[derive(Debug)]
pub(super) struct CookieCondition {
    name: Box<str>,
    value: TextCondition,
    invert: bool,
}

impl CookieCondition {
    pub(super) fn new(policy: &CookieMatcher) -> Self {
        Self { name: policy.name.as_str().into(), value: TextCondition::new(&policy.value), invert: policy.invert }
    }

    pub(super) fn holds(&self, headers: &HeaderMap) -> bool {
        values(headers, &self.name).any(|value| self.value.holds(value)) != self.invert
    }

    /// Whether it holds for every value of the cookie, for all together as [`holds`](Self::holds) says, and for some.
    pub(super) fn readings(&self, headers: &HeaderMap) -> (bool, bool, bool) {
        let mut held = values(headers, &self.name).map(|value| self.value.holds(value) != self.invert);
        let first = held.next().unwrap_or(self.invert);
        let (every, some) = held.fold((first, first), |(every, some), holds| (every && holds, some || holds));
        (every, if self.invert { every } else { some }, some)
    }
}

/// The values of a cookie, over all `Cookie` headers: HTTP/2 splits them (RFC 9113, 8.2.3).
pub(crate) fn values<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    let pairs = headers.get_all(COOKIE).into_iter().flat_map(|header| header.as_bytes().split(|b| *b == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        let value = (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())?;
        // Quotes are not part of the value (RFC 6265, 4.1.1).
        Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::policy::{StringMatch, StringMatcher};

    fn holds(cookies: &[&'static str], invert: bool) -> bool {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        let pattern = StringMatch::Prefix("v2".into());
        let value = StringMatcher { pattern, ignore_case: false };
        CookieCondition::new(&CookieMatcher { name: "edition".into(), value, invert }).holds(&headers)
    }

    #[test]
    fn a_cookie_is_found_among_others_in_any_header() {
        for (cookies, want) in [
            (&["edition=v2"][..], true),
            (&["a=b; edition=v2.1; c"], true),
            (&["a=b", "x=y;edition=\"v2\""], true),
            (&["edition=v1; edition=v2"], true),
            (&["edition=v1"], false),
            (&["myedition=v2"], false),
            (&["edition"], false),
            (&[], false),
        ] {
            assert_eq!(holds(cookies, false), want, "{cookies:?}");
            assert_eq!(holds(cookies, true), !want, "inverted, {cookies:?}");
        }
    }
}
