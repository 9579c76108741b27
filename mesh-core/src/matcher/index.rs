//! Which of many routes a path may be for, by what the path must begin with.
//!
//! Refuses to decide: the routes that it names are checked one by one, in listed order.

use std::collections::BTreeMap;

use regex_syntax::hir::literal::Extractor;
use smallvec::SmallVec;

use crate::policy::{PathMatch, RouteMatch};

/// Up to so many routes a look at each is as fast.
const FEW: usize = 4;

/// Routes by the beginnings of their paths.
#[derive(Debug)]
pub(super) struct PathIndex {
    // In the order of their bytes, the empty one first if there is one.
    beginnings: Box<[Beginning]>,
}

#[derive(Debug)]
struct Beginning {
    text: Box<[u8]>,
    // The longest of the others that this one begins with.
    shorter: Option<u32>,
    // In listed order.
    routes: Box<[u32]>,
}

impl PathIndex {
    /// An index of `routes`; `None` if they are few.
    pub(super) fn new<'r>(routes: impl ExactSizeIterator<Item = &'r RouteMatch>) -> Option<Self> {
        if routes.len() <= FEW {
            return None;
        }
        let mut sorted = BTreeMap::<Vec<u8>, Vec<u32>>::new();
        for (route, position) in routes.zip(0..) {
            sorted.entry(beginning(route)).or_default().push(position);
        }
        let mut beginnings = Vec::<Beginning>::with_capacity(sorted.len());
        for (text, routes) in sorted {
            // What it begins with is its neighbour, or what that begins with, and so on.
            let mut shorter = beginnings.len().checked_sub(1);
            while let Some(at) = shorter.filter(|at| !text.starts_with(&beginnings[*at].text)) {
                shorter = beginnings[at].shorter.map(|at| at as usize);
            }
            let shorter = shorter.map(|at| at as u32);
            beginnings.push(Beginning { text: text.into(), shorter, routes: routes.into() });
        }
        Some(Self { beginnings: beginnings.into() })
    }

    /// The first route, in listed order, that a path may be for and that `matches`.
    pub(super) fn first(&self, path: &str, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let path = path.as_bytes();
        // Everything that the path begins with stands before it, and the last of these begins with the longest.
        let mut at = self.beginnings.partition_point(|of| *of.text <= *path).checked_sub(1);
        let mut lists = SmallVec::<[&[u32]; 8]>::new();
        while let Some(of) = at.map(|at| &self.beginnings[at]) {
            if path.starts_with(&of.text) {
                lists.push(&of.routes);
            }
            at = of.shorter.map(|at| at as usize);
        }
        if let [list] = lists[..] {
            return list.iter().map(|route| *route as usize).find(|route| matches(*route));
        }
        loop {
            let next = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
            let (route, rest) = next.split_first()?;
            *next = rest;
            if matches(*route as usize) {
                return Some(*route as usize);
            }
        }
    }
}

/// What every path that the route takes begins with; empty if that cannot be said.
fn beginning(route: &RouteMatch) -> Vec<u8> {
    match &route.path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) if route.case_sensitive => text.clone().into_bytes(),
        PathMatch::PathSeparatedPrefix(text) if route.case_sensitive => {
            text.strip_suffix('/').unwrap_or(text).as_bytes().to_vec()
        }
        PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::PathSeparatedPrefix(_) => Vec::new(),
        PathMatch::Regex(pattern) => {
            let parsed = regex_syntax::parse(pattern.as_str()).map(|pattern| Extractor::new().extract(&pattern));
            let literals = parsed.ok();
            literals.and_then(|literals| literals.longest_common_prefix().map(<[u8]>::to_vec)).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Pattern;

    fn begins(path: PathMatch, case_sensitive: bool) -> String {
        String::from_utf8(beginning(&RouteMatch { path, case_sensitive, ..RouteMatch::any() })).unwrap()
    }

    #[test]
    fn a_beginning_is_what_every_matching_path_has() {
        let regex = |text: &str| begins(PathMatch::Regex(Pattern::new(text).unwrap()), true);
        for (pattern, want) in [
            ("/user7/[0-9]+/cart", "/user7/"),
            ("^/a/b$", "/a/b"),
            ("/v1/(get|give)", "/v1/g"),
            ("/a|/b", "/"),
            ("/a?b", "/"),
            ("(?i)/shop", "/"),
            ("(/x)?/y", "/"),
            (".*", ""),
        ] {
            assert_eq!(regex(pattern), want, "{pattern}");
        }
        assert_eq!(begins(PathMatch::PathSeparatedPrefix("/a/".into()), true), "/a");
        assert_eq!(begins(PathMatch::Exact("/a".into()), false), "");
    }

    #[test]
    fn routes_are_offered_in_listed_order_whatever_they_begin_with() {
        let prefixes = ["/", "/a/b", "/a", "/ab", "/a/b/c", "/a", "/b"];
        let routes: Vec<_> = prefixes
            .iter()
            .map(|prefix| RouteMatch { path: PathMatch::Prefix((*prefix).into()), ..RouteMatch::any() })
            .collect();
        let index = PathIndex::new(routes.iter()).unwrap();
        let offered = |path: &str| {
            let mut offered = Vec::new();
            assert_eq!(
                index.first(path, |route| {
                    offered.push(route);
                    false
                }),
                None
            );
            offered
        };
        assert_eq!(offered("/a/b/c/d"), [0, 1, 2, 4, 5]);
        assert_eq!(offered("/abc"), [0, 2, 3, 5]);
        assert_eq!(offered("/c"), [0]);
        assert_eq!(offered(""), Vec::<usize>::new());
        assert_eq!(index.first("/abc", |route| route > 2), Some(3));
        assert!(PathIndex::new(routes[..FEW].iter()).is_none());
    }
}
