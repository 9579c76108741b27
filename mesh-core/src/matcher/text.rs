//! A compiled [`StringMatcher`], over bytes because header values need not be UTF-8.

use regex_automata::meta::Regex;

use crate::policy::{StringMatch, StringMatcher};

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
        let bytes = |text: &String| text.as_bytes().into();
        let kind = match &policy.pattern {
            StringMatch::Exact(text) => Kind::Exact(bytes(text)),
            StringMatch::Prefix(text) => Kind::Prefix(bytes(text)),
            StringMatch::Suffix(text) => Kind::Suffix(bytes(text)),
            StringMatch::Contains(text) => Kind::Contains(bytes(text)),
            StringMatch::Regex(pattern) => Kind::Regex(Box::new(pattern.compiled())),
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
