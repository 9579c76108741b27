//! Conditions that no path in normal form meets. Requests are brought to that form before anything decides on them, so a
//! rule with such a condition never matches, and what it should refuse is let in.
//!
//! What can be proved is found: of the bytes that a condition takes, step by step, none are a path in normal form, and
//! some are one as callers may write it. The steps are counted, for what many patterns may cost. Refuses to know what a
//! condition is for.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::ops::RangeInclusive;

use regex_automata::Anchored;
use regex_automata::dfa::Automaton;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;

use crate::policy::{HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Pattern, StringMatch};
use crate::target::{EncodedSlash, needs_no_escape, normalize_path};

/// Why a condition is refused that is [`Met::Never`].
pub const OF_NO_PATH: &str = "no request ever meets it, because the path of each is brought to its normal form first: write \
     it without empty elements, dot segments, backslashes and needless escapes (%3A is written :), and with the other \
     escapes in upper case";

/// What of a condition is met by requests, whose paths are in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// All of it, as far as can be proved.
    Whole,
    /// Not one of the alternatives of its pattern: a caller may ask for `sent`, which is judged as `judged`, and that meets
    /// no other alternative either.
    InPart {
        /// A target as callers may write it.
        sent: String,
        /// Its normal form.
        judged: String,
    },
    /// Nothing, and something would be if paths were left as callers write them.
    Never,
    /// Nobody has looked: the conditions before it took all the [`Effort`].
    Unchecked,
}

/// The work that looking at the conditions of one resource may cost, in steps and not in time: what is found is the same on
/// every machine, however busy it is. Default: all of it.
#[derive(Clone, Debug)]
pub struct Effort(usize);

/// Of steps in the search, and of entries of the tables that patterns are made: a tenth of a second.
const MAX_EFFORT: usize = 10_000_000;
/// Entries of a table that becomes too large: what is made until this is known.
const MAX_ENTRIES: usize = 16 << 10;
/// Alternatives of a pattern that are looked at.
const MAX_ALTERNATIVES: usize = 64;

impl Default for Effort {
    fn default() -> Self {
        Self(MAX_EFFORT)
    }
}

impl Effort {
    fn take(&mut self, steps: usize) -> Result<(), Spent> {
        let left = self.0.checked_sub(steps);
        // Nothing is looked at any more, cheap as it may be: what is checked must not depend on the order of trifles.
        self.0 = left.unwrap_or(0);
        left.map(drop).ok_or(Spent)
    }
}

/// There is no [`Effort`] left.
struct Spent;

/// What is met of a condition on the path.
pub fn path_is_met(path: &PathMatch, case_sensitive: bool, effort: &mut Effort) -> Met {
    let mut hides =
        |text: &str, open: bool| Kind::Path.hides(&Text { text, open, ignore_case: !case_sensitive }, effort);
    let hidden = match path {
        PathMatch::Exact(text) => hides(text, false),
        PathMatch::Prefix(text) => hides(text, true),
        PathMatch::PathSeparatedPrefix(text) => {
            let text = text.trim_end_matches('/');
            match hides(&format!("{text}/"), true) {
                Ok(true) if !text.is_empty() => hides(text, false),
                below => below,
            }
        }
        PathMatch::Regex(pattern) => return Kind::Path.pattern_is_met(pattern, effort),
    };
    met(hidden)
}

/// The same of a condition on `:path`, which is the path with its query; of one on another header that it is met.
pub fn target_is_met(header: &HeaderMatcher, effort: &mut Effort) -> Met {
    let (HeaderKey::Path, HeaderMatch::Text(text)) = (&header.name, &header.value) else { return Met::Whole };
    let ignore_case = text.ignore_case;
    match &text.pattern {
        StringMatch::Exact(text) => met(Kind::Target.hides(&Text { text, open: false, ignore_case }, effort)),
        StringMatch::Prefix(text) => met(Kind::Target.hides(&Text { text, open: true, ignore_case }, effort)),
        StringMatch::Regex(pattern) => Kind::Target.pattern_is_met(pattern, effort),
        // A query may have it.
        StringMatch::Suffix(_) | StringMatch::Contains(_) => Met::Whole,
    }
}

fn met(hidden: Result<bool, Spent>) -> Met {
    match hidden {
        Ok(false) => Met::Whole,
        Ok(true) => Met::Never,
        Err(Spent) => Met::Unchecked,
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
    fn hides(self, steps: &impl Steps, effort: &mut Effort) -> Result<bool, Spent> {
        Ok(self.example(steps, Form::Normal, effort)?.is_none() && self.example(steps, Form::Sent, effort)?.is_some())
    }

    fn pattern_is_met(self, pattern: &Pattern, effort: &mut Effort) -> Met {
        self.find_in(pattern, effort).unwrap_or(Met::Unchecked)
    }

    fn find_in(self, pattern: &Pattern, effort: &mut Effort) -> Result<Met, Spent> {
        // Where nothing is left no table is made.
        effort.take(1)?;
        // Of one that is large nothing is proved.
        let Some(whole) = table(pattern.ascii_table(), effort)? else { return Ok(Met::Whole) };
        if self.hides(&whole, effort)? {
            return Ok(Met::Never);
        }
        for alternative in pattern.ascii_alternatives(MAX_ALTERNATIVES) {
            let Some(one) = table(alternative, effort)? else { continue };
            if self.example(&one, Form::Normal, effort)?.is_some() {
                continue;
            }
            let Some(sent) = self.example(&one, Form::Sent, effort)? else { continue };
            let (path, query) = sent.split_at(sent.find('?').unwrap_or(sent.len()));
            let Ok(judged) = normalize_path(path, EncodedSlash::Keep).map(|path| format!("{path}{query}")) else {
                continue;
            };
            if !whole.takes(&judged) {
                return Ok(Met::InPart { sent, judged });
            }
        }
        Ok(Met::Whole)
    }

    /// A path in this form that satisfies the condition.
    fn example<S: Steps>(self, steps: &S, form: Form, effort: &mut Effort) -> Result<Option<String>, Spent> {
        let first = (steps.first(), At::Beginning);
        // From where each was reached, and by which byte.
        let (mut seen, mut open) = (HashMap::from([(first, None)]), VecDeque::from([first]));
        while let Some(here) = open.pop_front() {
            let (state, at) = here;
            if at.may_end() && steps.is_end(state) {
                let before = |of: &_| seen.get(of).copied().flatten();
                let way = std::iter::successors(before(&here), |(from, _)| before(from));
                let mut bytes: Vec<u8> = way.map(|(_, byte)| byte).collect();
                bytes.reverse();
                return Ok(String::from_utf8(bytes).ok());
            }
            let bytes = steps.bytes(state);
            effort.take(bytes.len())?;
            for byte in bytes {
                let next = at.next(byte, self, form).and_then(|at| Some((steps.next(state, byte)?, at)));
                if let Some(next) = next.filter(|next| !seen.contains_key(next)) {
                    seen.insert(next, Some((here, byte)));
                    open.push_back(next);
                }
            }
        }
        Ok(None)
    }
}

/// A pattern as a table, byte by byte; `None` = there is none.
fn table(made: Option<Dfa>, effort: &mut Effort) -> Result<Option<Table>, Spent> {
    let entries = made.as_ref().map_or(MAX_ENTRIES, |table| table.memory_usage() / size_of::<u32>());
    effort.take(entries)?;
    let with_start = |table: Dfa| {
        let first = table.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        Some(Table { table, first })
    };
    Ok(made.and_then(with_start))
}

type Dfa = regex_automata::dfa::dense::DFA<Vec<u32>>;

struct Table {
    table: Dfa,
    first: StateID,
}

impl Table {
    fn takes(&self, text: &str) -> bool {
        let end = text.bytes().try_fold(self.first, |state, byte| self.next(state, byte));
        end.is_some_and(|state| self.is_end(state))
    }
}

/// A condition, byte by byte.
trait Steps {
    type State: Copy + Eq + Hash;
    fn first(&self) -> Self::State;
    /// `None` = nothing satisfies it any more.
    fn next(&self, state: Self::State, byte: u8) -> Option<Self::State>;
    fn is_end(&self, state: Self::State) -> bool;
    /// The bytes that may lead on.
    fn bytes(&self, _: Self::State) -> RangeInclusive<u8> {
        b'!'..=b'~'
    }
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

    fn bytes(&self, at: usize) -> RangeInclusive<u8> {
        match self.text.as_bytes().get(at) {
            Some(byte) if !self.ignore_case || !byte.is_ascii_alphabetic() => *byte..=*byte,
            _ => b'!'..=b'~',
        }
    }
}

impl Steps for Table {
    type State = StateID;

    fn first(&self) -> Self::State {
        self.first
    }

    fn next(&self, state: Self::State, byte: u8) -> Option<Self::State> {
        let next = self.table.next_state(state, byte);
        (!self.table.is_dead_state(next) && !self.table.is_quit_state(next)).then_some(next)
    }

    fn is_end(&self, state: Self::State) -> bool {
        self.table.is_match_state(self.table.next_eoi_state(state))
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

    fn is_of_no_path(path: &PathMatch, case_sensitive: bool) -> bool {
        path_is_met(path, case_sensitive, &mut Effort::default()) == Met::Never
    }

    fn is_of_no_target(header: &HeaderMatcher) -> bool {
        target_is_met(header, &mut Effort::default()) == Met::Never
    }

    #[test]
    fn an_alternative_that_no_request_meets_is_found_with_an_example() {
        let met =
            |text: &str| path_is_met(&PathMatch::Regex(Pattern::new(text).unwrap()), true, &mut Effort::default());
        for (text, sent, judged) in [
            ("/(a|%3A)", "/%3A", "/:"),
            ("/a|/%3A", "/%3A", "/:"),
            ("/x/(a|b//c|d)", "/x/b//c", "/x/b/c"),
            ("/x/(y(a|b%2ec))?z", "/x/yb%2ecz", "/x/yb.cz"),
            (r"/a/(b|\.\./c)", "/a/../c", "/c"),
            ("(/a|/b%41)[0-9]", "/b%410", "/bA0"),
        ] {
            assert_eq!(met(text), Met::InPart { sent: sent.into(), judged: judged.into() }, "{text}");
        }
        // What it means is said by another alternative, or each is met.
        for text in [
            "/files/(%3A|:).*",
            "/(a|b|cd)/(e|fg)",
            "/x%2[fF]y",
            "/(%2F|%2f)x",
            "/(a|%2F)",
            "/(a|b c)",
            ".*(//|%3A)?.*",
        ] {
            assert_eq!(met(text), Met::Whole, "{text}");
        }
        let value = HeaderMatch::Text(StringMatcher {
            pattern: StringMatch::Regex(Pattern::new("/(a|b//c)[?]x=//").unwrap()),
            ignore_case: false,
        });
        let target = HeaderMatcher { name: HeaderKey::Path, value, invert: false, treat_missing_as_empty: false };
        let expected = Met::InPart { sent: "/b//c?x=//".into(), judged: "/b/c?x=//".into() };
        assert_eq!(target_is_met(&target, &mut Effort::default()), expected);
    }

    #[test]
    fn what_looking_costs_is_bounded_for_all_conditions_of_a_resource() {
        let dear = |n: usize| PathMatch::Regex(Pattern::new(&format!("/([^/]+/[a-z]{{20}}[0-9]+|x{n}%3A).*")).unwrap());
        let trick = PathMatch::Exact("/a//b".into());
        let mut effort = Effort::default();
        let mut looked_at = 0;
        while path_is_met(&dear(looked_at), true, &mut effort) != Met::Unchecked {
            looked_at += 1;
            assert!(looked_at < 5_000, "it is bounded by nothing");
        }
        assert!(looked_at > 10, "{looked_at}");
        assert_eq!(path_is_met(&trick, true, &mut effort), Met::Unchecked, "what comes later is not looked at");
        // The control: with all of it to spend this one is found; and five thousand texts cost less than that.
        let mut effort = Effort::default();
        for n in 0..5_000 {
            let text = PathMatch::Prefix(format!("/customers/{n}/orders"));
            assert_eq!(path_is_met(&text, true, &mut effort), Met::Whole);
        }
        assert_eq!(path_is_met(&trick, true, &mut effort), Met::Never);
    }

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
