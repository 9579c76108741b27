//! The path rewrite of a route, compiled (Envoy `prefix_rewrite`, `path_rewrite`, `regex_rewrite`), and the
//! authority that is made of a path (`host_rewrite_path_regex`).

use regex_automata::meta::Regex;

use crate::policy::{AuthorityRewrite, PathMatch, PathRewrite, Route, RouteAction};

#[derive(Debug)]
pub(super) enum PathRewriter {
    /// Replace the first `matched` bytes.
    Prefix {
        matched: usize,
        replacement: Box<str>,
        /// Keep exactly one slash where the parts meet (Gateway API `ReplacePrefixMatch`).
        join: bool,
    },
    Full(Box<str>),
    /// The query goes as well.
    WithQuery(Box<str>),
    Regex {
        pattern: Box<Regex>,
        substitution: Box<str>,
    },
}

impl PathRewriter {
    pub(super) fn of(route: &Route) -> Option<Self> {
        let policy = match &route.action {
            RouteAction::Forward(forward) => forward.rewrite.path.as_ref(),
            RouteAction::Redirect(redirect) => redirect.path.as_ref(),
            RouteAction::DirectResponse(_) | RouteAction::NonForwarding => None,
        }?;
        if let RouteAction::Redirect(redirect) = &route.action
            && redirect.has_own_query()
            && let PathRewrite::Full(new) = policy
        {
            return Some(Self::WithQuery(new.as_str().into()));
        }
        Some(match (policy, &route.matcher.path) {
            (PathRewrite::Prefix(new), PathMatch::Prefix(old)) => {
                Self::Prefix { matched: old.len(), replacement: new.as_str().into(), join: false }
            }
            (PathRewrite::Prefix(new), PathMatch::PathSeparatedPrefix(old)) => Self::Prefix {
                matched: old.strip_suffix('/').unwrap_or(old).len(),
                replacement: new.as_str().into(),
                join: true,
            },
            (PathRewrite::Prefix(new) | PathRewrite::Full(new), _) => Self::Full(new.as_str().into()),
            (PathRewrite::Regex { pattern, substitution }, _) => {
                Self::Regex { pattern: Box::new(pattern.searcher()), substitution: substitution.as_str().into() }
            }
        })
    }

    pub(super) fn rewrite(&self, path_and_query: &str) -> String {
        let at = path_and_query.find('?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(at);
        let mut out = String::with_capacity(path_and_query.len() + 16);
        match self {
            Self::Prefix { matched, replacement, join } => {
                // Empty only for a request that this route did not match.
                let mut rest = path.get(*matched..).unwrap_or_default();
                if *join && replacement.ends_with('/') {
                    rest = rest.strip_prefix('/').unwrap_or(rest);
                }
                out.push_str(replacement);
                out.push_str(rest);
            }
            Self::Full(replacement) | Self::WithQuery(replacement) => out.push_str(replacement),
            Self::Regex { pattern, substitution } => replace_all(pattern, substitution, path, &mut out),
        }
        // A request path is never empty.
        if !out.starts_with('/') {
            out.insert(0, '/');
        }
        if !matches!(self, Self::WithQuery(_)) {
            out.push_str(query);
        }
        out
    }
}

/// An authority made of the request's path.
#[derive(Debug)]
pub(super) struct AuthorityRewriter {
    pattern: Box<Regex>,
    substitution: Box<str>,
}

impl AuthorityRewriter {
    pub(super) fn of(route: &Route) -> Option<Self> {
        let RouteAction::Forward(forward) = &route.action else { return None };
        match &forward.rewrite.authority {
            Some(AuthorityRewrite::Path { pattern, substitution }) => {
                Some(Self { pattern: Box::new(pattern.searcher()), substitution: substitution.as_str().into() })
            }
            _ => None,
        }
    }

    pub(super) fn rewrite(&self, path: &str) -> String {
        let mut out = String::with_capacity(path.len());
        replace_all(&self.pattern, &self.substitution, path, &mut out);
        out
    }
}

/// Replaces every match; `\1` stands for a group, `\0` for the match, `\\` for a backslash (RE2).
pub(crate) fn replace_all(pattern: &Regex, substitution: &str, path: &str, out: &mut String) {
    let mut done = 0;
    for captures in pattern.captures_iter(path) {
        let Some(whole) = captures.get_match() else { continue };
        out.push_str(&path[done..whole.start()]);
        let mut chars = substitution.chars();
        while let Some(c) = chars.next() {
            match (c, if c == '\\' { chars.next() } else { None }) {
                ('\\', Some(digit)) if digit.is_ascii_digit() => {
                    let group = digit as usize - '0' as usize;
                    out.push_str(captures.get_group(group).map_or("", |span| &path[span.range()]));
                }
                ('\\', Some(other)) => out.push(other),
                (other, _) => out.push(other),
            }
        }
        done = whole.end();
    }
    out.push_str(&path[done..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Pattern;

    fn prefix(matched: &str, replacement: &str, join: bool) -> PathRewriter {
        PathRewriter::Prefix { matched: matched.len(), replacement: replacement.into(), join }
    }

    #[test]
    fn a_plain_prefix_is_replaced_as_text_and_the_query_stays() {
        for (matched, replacement, path, want) in [
            ("/api", "/v1", "/api/reviews?x=/api", "/v1/reviews?x=/api"),
            ("/api", "/v1", "/apify", "/v1fy"),
            // Envoy's and Istio's documented double slash.
            ("/api", "/", "/api/reviews", "//reviews"),
            ("/api/", "/", "/api/reviews", "/reviews"),
            ("/", "/v1/", "/reviews", "/v1/reviews"),
        ] {
            assert_eq!(prefix(matched, replacement, false).rewrite(path), want, "{matched} {replacement} {path}");
        }
    }

    #[test]
    fn a_prefix_of_elements_leaves_one_slash_at_the_joint() {
        for (replacement, path, want) in [
            ("/", "/foo/bar", "/bar"),
            ("/", "/foo", "/"),
            ("", "/foo", "/"),
            ("/xyz", "/foo/bar?q", "/xyz/bar?q"),
            ("/xyz/", "/foo/bar", "/xyz/bar"),
        ] {
            assert_eq!(prefix("/foo", replacement, true).rewrite(path), want, "{replacement} {path}");
        }
    }

    #[test]
    fn a_regex_replaces_every_match_and_refers_to_groups() -> Result<(), Box<dyn std::error::Error>> {
        for (pattern, substitution, path, want) in [
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api?q=1", "/v1/api/instance/foo?q=1"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("a", r"\\\0\9", "/a", r"/\a"),
            ("nothing", "x", "/kept?y", "/kept?y"),
            ("^/all", "", "/all", "/"),
        ] {
            let pattern = Box::new(Pattern::new(pattern)?.searcher());
            let rewriter = PathRewriter::Regex { pattern, substitution: substitution.into() };
            assert_eq!(rewriter.rewrite(path), want, "{path}");
        }
        Ok(())
    }
}
