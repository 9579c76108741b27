//! The path condition of a route.

use regex_automata::dfa::{Automaton, dense};
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

use super::text::{equal, has_prefix};
use crate::policy::PathMatch;
use crate::target::unescape_path;

/// A condition of a rule in the form in which paths of requests come: with their needless escapes decoded.
pub(crate) fn unescaped(path: &PathMatch) -> PathMatch {
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
    Table(Box<dense::DFA<Vec<u32>>>),
    /// One that is too large for a table.
    Regex(Box<Regex>),
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
            PathMatch::Regex(pattern) => match pattern.table() {
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
            // A table gives up on no byte, so there are no errors.
            Kind::Table(table) => {
                table.try_search_fwd(&Input::new(path).anchored(Anchored::Yes)).is_ok_and(|found| found.is_some())
            }
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
