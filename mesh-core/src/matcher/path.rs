//! The path condition of a route.

use regex_automata::meta::Regex;

use super::text::{equal, has_prefix};
use crate::policy::PathMatch;

#[derive(Debug)]
pub(crate) enum PathCondition {
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
    Regex(Box<Regex>),
}

impl PathCondition {
    pub(crate) fn new(policy: &PathMatch, case_sensitive: bool) -> Self {
        let fold = !case_sensitive;
        match policy {
            PathMatch::Exact(path) => Self::Exact { path: path.as_str().into(), fold },
            PathMatch::Prefix(prefix) => Self::Prefix { prefix: prefix.as_str().into(), fold },
            PathMatch::PathSeparatedPrefix(prefix) => {
                Self::Separated { prefix: prefix.strip_suffix('/').unwrap_or(prefix).into(), fold }
            }
            PathMatch::Regex(pattern) => Self::Regex(Box::new(pattern.compiled())),
        }
    }

    pub(crate) fn holds(&self, path: &str) -> bool {
        let bytes = path.as_bytes();
        match self {
            Self::Exact { path: want, fold } => equal(bytes, want.as_bytes(), *fold),
            Self::Prefix { prefix, fold } => has_prefix(bytes, prefix.as_bytes(), *fold),
            Self::Separated { prefix, fold } => {
                has_prefix(bytes, prefix.as_bytes(), *fold) && matches!(bytes.get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}
