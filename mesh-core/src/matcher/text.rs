//! A compiled [`StringMatcher`], over bytes because header values need not be UTF-8.

use regex_automata::meta::Regex;

use crate::policy::{Pattern, StringMatch, StringMatcher};

/// A [`StringMatcher`] whose regex is compiled; matching allocates nothing.
#[derive(Debug)]
pub struct TextCondition {
    kind: Kind,
    ignore_case: bool,
}

#[derive(Debug)]
enum Kind {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(Box<Regex>),
}

impl TextCondition {
    /// Compiles a matcher.
    pub fn new(policy: &StringMatcher) -> Self {
        Self::compiled(policy, Pattern::compiled)
    }

    /// The same, with what is made of a regex.
    pub(super) fn compiled(policy: &StringMatcher, regex: fn(&Pattern) -> Regex) -> Self {
        let bytes = |text: &String| text.as_bytes().into();
        let kind = match &policy.pattern {
            StringMatch::Exact(text) => Kind::Exact(bytes(text)),
            StringMatch::Prefix(text) => Kind::Prefix(bytes(text)),
            StringMatch::Suffix(text) => Kind::Suffix(bytes(text)),
            StringMatch::Contains(text) => Kind::Contains(bytes(text)),
            StringMatch::Regex(pattern) => Kind::Regex(Box::new(regex(pattern))),
        };
        Self { kind, ignore_case: policy.ignore_case }
    }

    /// Whether it is a pattern, which can say nothing of bytes that are no text.
    pub(crate) fn is_pattern(&self) -> bool {
        matches!(self.kind, Kind::Regex(_))
    }

    /// Whether `text` satisfies it.
    pub fn holds(&self, text: &[u8]) -> bool {
        let fold = self.ignore_case;
        match &self.kind {
            Kind::Exact(want) => equal(text, want, fold),
            Kind::Prefix(want) => has_prefix(text, want, fold),
            Kind::Suffix(want) => text.len().checked_sub(want.len()).is_some_and(|at| equal(&text[at..], want, fold)),
            Kind::Contains(want) => contains(text, want, fold),
            // Case is the pattern's own matter (gRFC A63).
            Kind::Regex(regex) => regex.is_match(text),
        }
    }
}

/// Where a byte is first, looking at eight at a time: what is searched is short.
#[inline]
pub(super) fn find(byte: u8, text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let Some(last) = text.len().checked_sub(8) else { return text.iter().position(|other| *other == byte) };
    let within = |at: usize| {
        let eight = text[at..].first_chunk().map(|eight| u64::from_le_bytes(*eight))? ^ (ONES * u64::from(byte));
        // The lowest byte that is zero is the lowest whose upper bit is set here.
        let zeros = eight.wrapping_sub(ONES) & !eight & (ONES << 7);
        (zeros != 0).then(|| at + zeros.trailing_zeros() as usize / 8)
    };
    (0..last).step_by(8).find_map(within).or_else(|| within(last))
}

pub(super) fn equal(text: &[u8], want: &[u8], fold: bool) -> bool {
    if fold { text.eq_ignore_ascii_case(want) } else { text == want }
}

pub(super) fn has_prefix(text: &[u8], want: &[u8], fold: bool) -> bool {
    text.get(..want.len()).is_some_and(|head| equal(head, want, fold))
}

fn contains(text: &[u8], want: &[u8], fold: bool) -> bool {
    // `windows` takes no 0.
    want.is_empty() || text.windows(want.len()).any(|window| equal(window, want, fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_wherever_it_is() {
        for len in 0..40 {
            let mut text = vec![b'>'; len];
            assert_eq!(find(b'?', &text), None, "{len}");
            for at in (0..len).rev() {
                text[at] = b'?';
                assert_eq!(find(b'?', &text), Some(at), "{len}");
            }
        }
        assert_eq!(find(b'?', "/\u{fe}\u{bf}\u{3f}\u{40}".as_bytes()), Some(5));
    }
}
