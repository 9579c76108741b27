//! The path condition of a route.

use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, dense};
use regex_automata::meta::Regex;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_syntax::hir::literal::Extractor;

use super::text::{equal, has_prefix};
use crate::policy::{PathMatch, Pattern};
use crate::target::unescape_path;

/// A condition of a rule in the form in which paths of requests come: with their needless escapes decoded.
pub fn unescaped(path: &PathMatch) -> PathMatch {
    let decoded = |text: &str| unescape_path(text).into_owned();
    match path {
        PathMatch::Exact(text) => PathMatch::Exact(decoded(text)),
        PathMatch::Prefix(text) => PathMatch::Prefix(decoded(text)),
        PathMatch::PathSeparatedPrefix(text) => PathMatch::PathSeparatedPrefix(decoded(text)),
        PathMatch::Regex(pattern) => PathMatch::Regex(pattern.clone()),
    }
}

/// A compiled [`PathMatch`].
#[derive(Debug)]
pub struct PathCondition(Kind);

#[derive(Debug)]
enum Kind {
    Exact {
        path: Box<str>,
        fold: bool,
    },
    Prefix {
        prefix: Box<str>,
        fold: bool,
    },
    /// Without a trailing slash, so that the root is the empty prefix.
    Separated {
        prefix: Box<str>,
        fold: bool,
    },
    /// Most patterns.
    Table(Box<Table>),
    /// One that is too large for a table.
    Regex(Box<Regex>),
}

/// A pattern as a table. What all its paths begin with is compared as text, and the way through the table goes on behind
/// it: a step is a look at memory that waits for the one before.
#[derive(Debug)]
struct Table {
    beginning: Box<[u8]>,
    behind: StateID,
    steps: dense::DFA<Vec<u32>>,
}

/// What all paths begin with that a pattern takes; empty if that cannot be said.
pub(super) fn common_beginning(pattern: &Pattern) -> Vec<u8> {
    let parsed = regex_syntax::parse(pattern.as_str()).map(|pattern| Extractor::new().extract(&pattern));
    let literals = parsed.ok();
    literals.and_then(|literals| literals.longest_common_prefix().map(<[u8]>::to_vec)).unwrap_or_default()
}

impl Table {
    fn new(pattern: &Pattern) -> Option<Self> {
        let (steps, beginning) = (pattern.table()?, common_beginning(pattern).into_boxed_slice());
        let first = steps.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        let ends = |state| steps.is_match_state(state) || steps.is_dead_state(state) || steps.is_quit_state(state);
        // One that is at an end already, such as one that takes nothing, is asked from its beginning.
        let behind = beginning.iter().try_fold(first, |state, byte| {
            let next = steps.next_state(state, *byte);
            (!ends(next)).then_some(next)
        });
        Some(match behind {
            Some(behind) => Self { beginning, behind, steps },
            None => Self { beginning: Box::default(), behind: first, steps },
        })
    }

    fn takes(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(&*self.beginning) else { return false };
        let (steps, mut state) = (&self.steps, self.behind);
        for byte in rest {
            state = steps.next_state(state, *byte);
            if steps.is_special_state(state) {
                if steps.is_match_state(state) {
                    return true;
                }
                if steps.is_dead_state(state) || steps.is_quit_state(state) {
                    return false;
                }
            }
        }
        steps.is_match_state(steps.next_eoi_state(state))
    }
}

impl PathCondition {
    /// Compiles a condition; a pattern has its own case rule.
    pub fn new(policy: &PathMatch, case_sensitive: bool) -> Self {
        let fold = !case_sensitive;
        Self(match policy {
            PathMatch::Exact(path) => Kind::Exact { path: path.as_str().into(), fold },
            PathMatch::Prefix(prefix) => Kind::Prefix { prefix: prefix.as_str().into(), fold },
            PathMatch::PathSeparatedPrefix(prefix) => {
                Kind::Separated { prefix: prefix.strip_suffix('/').unwrap_or(prefix).into(), fold }
            }
            PathMatch::Regex(pattern) => match Table::new(pattern) {
                Some(table) => Kind::Table(Box::new(table)),
                None => Kind::Regex(Box::new(pattern.compiled())),
            },
        })
    }

    /// Whether a path, without its query, satisfies it.
    pub fn holds(&self, path: &str) -> bool {
        let bytes = path.as_bytes();
        match &self.0 {
            Kind::Exact { path: want, fold } => equal(bytes, want.as_bytes(), *fold),
            Kind::Prefix { prefix, fold } => has_prefix(bytes, prefix.as_bytes(), *fold),
            Kind::Separated { prefix, fold } => {
                has_prefix(bytes, prefix.as_bytes(), *fold) && matches!(bytes.get(prefix.len()), None | Some(b'/'))
            }
            Kind::Table(table) => table.takes(bytes),
            Kind::Regex(regex) => regex.is_match(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Pattern;

    #[test]
    fn a_table_takes_what_the_pattern_takes() {
        let paths =
            ["", "/", "/a", "/a/b", "/user7/42/cart", "/user7/x/cart", "/\u{e4}\u{f6}", "/a\n", "/A", "/ab", "/b"];
        for (text, fits) in [
            ("/user7/[0-9]+/cart", true),
            (".*", true),
            ("/a|/b", true),
            ("(?i)/a", true),
            ("(?m)/a$", true),
            ("(?s)/a.?", true),
            (r"/\w+", false),
            (r"/a\b", false),
            ("", true),
        ] {
            let Ok(pattern) = Pattern::new(text) else { continue };
            let policy = PathMatch::Regex(pattern.clone());
            let condition = PathCondition::new(&policy, true);
            assert_eq!(matches!(condition.0, Kind::Table(_)), fits, "{text}");
            for path in paths {
                assert_eq!(condition.holds(path), pattern.compiled().is_match(path), "{text} {path:?}");
            }
        }
    }
}
