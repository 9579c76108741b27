//! The query condition of a route: the first value of a parameter, percent-decoded.

use std::borrow::Cow;

use super::TextCondition;
use crate::policy::{QueryMatch, QueryMatcher};

#[derive(Debug)]
pub(super) struct QueryCondition {
    name: Box<[u8]>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Text(TextCondition),
    Present(bool),
}

impl QueryCondition {
    pub(super) fn new(policy: &QueryMatcher) -> Self {
        let value = match &policy.value {
            QueryMatch::Text(text) => Value::Text(TextCondition::new(text)),
            QueryMatch::Present(present) => Value::Present(*present),
        };
        Self { name: policy.name.as_bytes().into(), value }
    }

    pub(super) fn holds(&self, query: &str) -> bool {
        first_value(query, &self.name).map_or_else(|| self.takes_none(), |value| self.tests(value))
    }

    /// Whether it holds for every value of the parameter, for the first, and for some.
    pub(super) fn readings(&self, query: &str) -> (bool, bool, bool) {
        let mut held = values(query, &self.name).map(|value| self.tests(value));
        let first = held.next().unwrap_or_else(|| self.takes_none());
        held.fold((first, first, first), |(every, first, some), holds| (every && holds, first, some || holds))
    }

    fn tests(&self, value: &str) -> bool {
        match &self.value {
            Value::Text(condition) => condition.holds(&decode(value)),
            Value::Present(present) => *present,
        }
    }

    /// Whether it holds for a query without the parameter.
    fn takes_none(&self) -> bool {
        matches!(self.value, Value::Present(false))
    }
}

/// The first value of a parameter as written; empty for a parameter without `=`.
pub(crate) fn first_value<'q>(query: &'q str, name: &[u8]) -> Option<&'q str> {
    values(query, name).next()
}

fn values<'q>(query: &'q str, name: &[u8]) -> impl Iterator<Item = &'q str> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(key, _)| *decode(key) == *name).map(|(_, value)| value)
}

/// Undoes percent-encoding. What is not an escape stays as it is; `+` is no space, as in Envoy.
pub(crate) fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    Cow::Owned(out)
}

/// The value of a hex digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_escapes_stay_as_they_are() {
        for (text, decoded) in
            [("a%20b", "a b"), ("%", "%"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%%41", "%A"), ("a+b", "a+b")]
        {
            assert_eq!(*decode(text), *decoded.as_bytes(), "{text}");
        }
    }

    #[test]
    fn the_first_value_counts() {
        assert_eq!(first_value("a=1&b=2&a=3", b"a"), Some("1"));
        assert_eq!(first_value("flag&a", b"flag"), Some(""));
        assert_eq!(first_value("", b""), None);
        assert_eq!(first_value("%61=x", b"a"), Some("x"));
    }
}
