//! Conditions that no path in normal form meets. Requests are brought to that form before anything decides on them, so a
//! rule with such a condition never matches, and what it should refuse is let in.
//!
//! What can be proved is found: of the bytes that a condition takes, step by step, none are a path in normal form, and
//! some are one as callers may write it. Refuses to know what a condition is for.

use std::collections::HashSet;
use std::hash::Hash;

use regex_automata::Anchored;
use regex_automata::dfa::Automaton;
use regex_automata::util::start;

use crate::policy::{HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Pattern, StringMatch};
use crate::target::needs_no_escape;

/// Why a condition is refused of which [`is_of_no_path`] or [`is_of_no_target`] holds.
pub const OF_NO_PATH: &str = "no request ever meets it, because the path of each is brought to its normal form first: write \
     it without empty elements, dot segments, backslashes and needless escapes (%3A is written :), and with the other \
     escapes in upper case";

/// Whether requests meet the condition as callers may write their paths, and none does once these are in normal form.
pub fn is_of_no_path(path: &PathMatch, case_sensitive: bool) -> bool {
    let hides = |text: &str, open: bool| Kind::Path.hides(&Text { text, open, ignore_case: !case_sensitive });
    match path {
        PathMatch::Exact(text) => hides(text, false),
        PathMatch::Prefix(text) => hides(text, true),
        PathMatch::PathSeparatedPrefix(text) => {
            let text = text.trim_end_matches('/');
            hides(&format!("{text}/"), true) && (text.is_empty() || hides(text, false))
        }
        PathMatch::Regex(pattern) => Kind::Path.hides_pattern(pattern),
    }
}

/// The same of a condition on `:path`, which is the path with its query.
pub fn is_of_no_target(header: &HeaderMatcher) -> bool {
    let (HeaderKey::Path, HeaderMatch::Text(text)) = (&header.name, &header.value) else { return false };
    let ignore_case = text.ignore_case;
    match &text.pattern {
        StringMatch::Exact(text) => Kind::Target.hides(&Text { text, open: false, ignore_case }),
        StringMatch::Prefix(text) => Kind::Target.hides(&Text { text, open: true, ignore_case }),
        StringMatch::Regex(pattern) => Kind::Target.hides_pattern(pattern),
        // A query may have it.
        StringMatch::Suffix(_) | StringMatch::Contains(_) => false,
    }
}

/// What a condition is about.
#[derive(Clone, Copy)]
enum Kind {
    Path,
    /// With its query, which has no normal form.
    Target,
}

impl Kind {
    fn hides(self, steps: &impl Steps) -> bool {
        !self.meets(steps, Form::Normal) && self.meets(steps, Form::Sent)
    }

    fn hides_pattern(self, pattern: &Pattern) -> bool {
        // Of one that is large nothing is proved.
        let Some(table) = pattern.ascii_table() else { return false };
        table.start_state(&start::Config::new().anchored(Anchored::Yes)).is_ok_and(|first| self.hides(&(table, first)))
    }

    /// Whether there is a path in this form that satisfies the condition.
    fn meets<S: Steps>(self, steps: &S, form: Form) -> bool {
        let first = (steps.first(), At::Beginning);
        let (mut seen, mut open) = (HashSet::from([first]), vec![first]);
        while let Some((state, at)) = open.pop() {
            if at.may_end() && steps.is_end(state) {
                return true;
            }
            for byte in b'!'..=b'~' {
                let next = at.next(byte, self, form).and_then(|at| Some((steps.next(state, byte)?, at)));
                open.extend(next.filter(|next| seen.insert(*next)));
            }
        }
        false
    }
}

/// A condition, byte by byte.
trait Steps {
    type State: Copy + Eq + Hash;
    fn first(&self) -> Self::State;
    /// `None` = nothing satisfies it any more.
    fn next(&self, state: Self::State, byte: u8) -> Option<Self::State>;
    fn is_end(&self, state: Self::State) -> bool;
}

struct Text<'a> {
    text: &'a str,
    /// Something may follow.
    open: bool,
    ignore_case: bool,
}

impl Steps for Text<'_> {
    type State = usize;

    fn first(&self) -> usize {
        0
    }

    fn next(&self, at: usize, byte: u8) -> Option<usize> {
        match self.text.as_bytes().get(at) {
            Some(want) => (*want == byte || self.ignore_case && want.eq_ignore_ascii_case(&byte)).then_some(at + 1),
            None => self.open.then_some(at),
        }
    }

    fn is_end(&self, at: usize) -> bool {
        at == self.text.len()
    }
}

impl<A: Automaton> Steps for (A, regex_automata::util::primitives::StateID) {
    type State = regex_automata::util::primitives::StateID;

    fn first(&self) -> Self::State {
        self.1
    }

    fn next(&self, state: Self::State, byte: u8) -> Option<Self::State> {
        let next = self.0.next_state(state, byte);
        (!self.0.is_dead_state(next) && !self.0.is_quit_state(next)).then_some(next)
    }

    fn is_end(&self, state: Self::State) -> bool {
        self.0.is_match_state(self.0.next_eoi_state(state))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As [`normalize_path`](crate::target::normalize_path) takes it.
    Sent,
    /// As it leaves it.
    Normal,
}

/// Where in a path one is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Beginning,
    Slash,
    /// As many dots after a slash, one or two.
    Dots(u8),
    Name,
    Percent,
    /// The first digit behind it.
    Digit(u8),
    Query,
}

impl At {
    fn may_end(self) -> bool {
        matches!(self, Self::Slash | Self::Name | Self::Query)
    }

    fn next(self, byte: u8, kind: Kind, form: Form) -> Option<Self> {
        let is_sent = form == Form::Sent;
        let digit = || char::from(byte).to_digit(16).filter(|_| is_sent || !byte.is_ascii_lowercase());
        let digit = || digit().and_then(|digit| u8::try_from(digit).ok());
        match (self, byte) {
            (Self::Query, _) => Some(self),
            (Self::Beginning, b'/') => Some(Self::Slash),
            (Self::Beginning, _) => None,
            (Self::Percent, _) => digit().map(Self::Digit),
            (Self::Digit(high), _) => {
                let value = high << 4 | digit()?;
                let is_refused = value.is_ascii_control();
                (!is_refused && (is_sent || !needs_no_escape(value))).then_some(Self::Name)
            }
            (_, b'%') => Some(Self::Percent),
            (_, b'?') => (matches!(kind, Kind::Target) && self.may_end()).then_some(Self::Query),
            _ if is_sent => Some(Self::Name),
            (Self::Name, b'/') => Some(Self::Slash),
            (_, b'/' | b'\\') | (Self::Dots(_), b';') => None,
            (Self::Slash, b'.') => Some(Self::Dots(1)),
            (Self::Dots(1), b'.') => Some(Self::Dots(2)),
            _ => Some(Self::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::unescaped;
    use crate::policy::StringMatcher;
    use crate::target::{EncodedSlash, normalize_path};

    #[test]
    fn a_pattern_that_only_paths_out_of_normal_form_meet_is_found() {
        for (text, hides) in [
            ("/files/%3A.*", true),
            ("(?i)/files/%3a.*", true),
            ("/files/%(3A|61).*", true),
            ("/x%5by", true),
            (".*%5b.*", true),
            ("/x%5By", false),
            ("/x%2[fF]y", false),
            ("/x%2Fy", false),
            ("/a//b", true),
            (r"/a/\./b", true),
            ("/a/(b/)?\\.\\./c", true),
            (r"/a/\.\.;x/c", true),
            (r"/a\\b", true),
            (r"/a/\.", true),
            // Classes of more than ASCII.
            (r"/files/%3A\w+", true),
            (r"/admin//\w+\b.*", true),
            // Of a large one nothing is proved.
            (r"/a//\p{L}", false),
            (r"/\w+/\d+", false),
            (r"/a/\..*", false),
            ("/.well-known/.*", false),
            ("/files/(%3A|:).*", false),
            ("/files/[^/]+", false),
            (".*", false),
            // Requests with such paths are refused, or there are none.
            ("admin", false),
            ("/a b", false),
            ("/%00", false),
            ("/%zz", false),
            ("/\u{e4}", false),
            ("/a?x", false),
        ] {
            let pattern = Pattern::new(text).unwrap();
            assert_eq!(is_of_no_path(&PathMatch::Regex(pattern), true), hides, "{text}");
        }
    }

    #[test]
    fn a_text_is_found_where_its_normal_form_is_another() {
        for text in
            ["/", "/a", "/a/", "/a//b", "/a/./b", "/a/..", "/a/.b", "/a%3Ab", "/a%5b", "/a%5B", "/a%2Fb", "/..;x/"]
        {
            let is_normal = normalize_path(text, EncodedSlash::Keep).unwrap() == text;
            assert_eq!(is_of_no_path(&PathMatch::Exact(text.to_owned()), true), !is_normal, "{text}");
        }
        let found = |path: PathMatch| is_of_no_path(&path, true);
        assert!(found(PathMatch::Prefix("/a//b".into())) && found(PathMatch::Prefix("/a%3A".into())));
        assert!(!found(PathMatch::Prefix("/a/".into())) && !found(PathMatch::Prefix("/a/..".into())));
        assert!(found(PathMatch::PathSeparatedPrefix("/a/..".into())));
        assert!(!found(PathMatch::PathSeparatedPrefix("/".into())));
        // In the words of the requests it is a good one.
        assert!(!is_of_no_path(&PathMatch::Exact("/x%5by".into()), false), "it is met as %5B");
        assert!(!found(unescaped(&PathMatch::Exact("/a%3Ab%5b".into()))));
    }

    #[test]
    fn a_target_has_a_query_in_which_all_stays_as_it_is() {
        let is_found = |pattern: StringMatch, ignore_case: bool| {
            let value = HeaderMatch::Text(StringMatcher { pattern, ignore_case });
            is_of_no_target(&HeaderMatcher {
                name: HeaderKey::Path,
                value,
                invert: false,
                treat_missing_as_empty: false,
            })
        };
        let regex = |text: &str| is_found(StringMatch::Regex(Pattern::new(text).unwrap()), false);
        assert!(regex("/files/%3A.*") && regex("/a//b(\\?.*)?"));
        assert!(!regex(".*%3A.*") && !regex("/a\\?b=%3A//") && !regex("/.*//.*"));
        for ignore_case in [false, true] {
            assert!(is_found(StringMatch::Prefix("/files/a%3A".into()), ignore_case));
            assert!(is_found(StringMatch::Exact("/a//b?x=1".into()), ignore_case));
            assert!(!is_found(StringMatch::Exact("/a?x=//%3a".into()), ignore_case));
            assert!(!is_found(StringMatch::Contains("//".into()), ignore_case));
        }
        assert!(is_found(StringMatch::Exact("/x%5by".into()), false));
        assert!(!is_found(StringMatch::Exact("/x%5by".into()), true), "it is met as %5B");
    }
}
