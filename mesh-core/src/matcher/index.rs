//! Which of many routes a path may be for, by what the path must begin with.
//!
//! Refuses to decide: the routes that it names are checked one by one, in listed order.

use std::collections::BTreeMap;
use std::ops::Range;

use regex_syntax::hir::literal::Extractor;
use smallvec::SmallVec;

use crate::policy::{PathMatch, RouteMatch};

/// Up to so many routes a look at each is as fast.
const FEW: usize = 4;

/// Routes by the beginnings of their paths: a tree whose edges are labelled with text, so that a look-up reads the
/// path once and meets a few nodes, however many routes there are.
#[derive(Debug)]
pub(super) struct PathIndex {
    // The root first; the children of a node side by side, in the order of their first bytes.
    nodes: Box<[Node]>,
    // The first byte of each node's label: what a search among children reads.
    firsts: Box<[u8]>,
    labels: Box<[u8]>,
    routes: Box<[u32]>,
}

/// A place in the tree. Ranges are within the fields of [`PathIndex`].
#[derive(Debug)]
struct Node {
    // What a path goes on with to get here.
    label: Range<u32>,
    children: Range<u32>,
    // Those that begin with just what leads here; in listed order.
    routes: Range<u32>,
}

/// Up to so many children a look at each is as fast as a search by halves.
const NARROW: usize = 16;

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
        Some(Builder::default().build(&sorted.into_iter().collect::<Vec<_>>()))
    }

    /// The first route, in listed order, that a path may be for and that `matches`.
    pub(super) fn first(&self, path: &str, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut lists = SmallVec::<[&[u32]; 8]>::new();
        let (mut rest, mut node) = (path.as_bytes(), &self.nodes[0]);
        loop {
            let routes = &self.routes[within(&node.routes)];
            if !routes.is_empty() {
                lists.push(routes);
            }
            let Some(child) = self.child(node, rest) else { break };
            let Some(after) = rest.strip_prefix(&self.labels[within(&child.label)]) else { break };
            (rest, node) = (after, child);
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

    /// The child whose label begins as `rest` does.
    fn child(&self, node: &Node, rest: &[u8]) -> Option<&Node> {
        let first = rest.first()?;
        let firsts = &self.firsts[within(&node.children)];
        let at = if firsts.len() <= NARROW {
            firsts.iter().position(|byte| byte == first)?
        } else {
            firsts.binary_search(first).ok()?
        };
        Some(&self.nodes[within(&node.children)][at])
    }
}

fn within(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// A tree that grows level by level, so that children lie side by side.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    firsts: Vec<u8>,
    labels: Vec<u8>,
    routes: Vec<u32>,
}

/// A beginning and its routes.
type Entry = (Vec<u8>, Vec<u32>);

impl Builder {
    /// `sorted` by the bytes of the beginnings, each of them once.
    fn build(mut self, sorted: &[Entry]) -> PathIndex {
        // For each node what begins as it does, and how many bytes lead to it.
        let mut below = vec![(sorted, 0)];
        self.node(&[]);
        for at in 0.. {
            let Some(&(mut entries, depth)) = below.get(at) else { break };
            if let Some(((text, own), rest)) = entries.split_first()
                && text.len() == depth
            {
                let start = self.routes.len() as u32;
                self.routes.extend(own);
                self.nodes[at].routes = start..self.routes.len() as u32;
                entries = rest;
            }
            let start = self.nodes.len() as u32;
            for group in entries.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]) {
                // What the first and the last have in common, all between them have.
                let (first, last) = (&group[0].0, &group[group.len() - 1].0);
                let end = first.iter().zip(last).take_while(|(a, b)| a == b).count();
                self.node(&first[depth..end]);
                below.push((group, end));
            }
            self.nodes[at].children = start..self.nodes.len() as u32;
        }
        let Self { nodes, firsts, labels, routes } = self;
        PathIndex { nodes: nodes.into(), firsts: firsts.into(), labels: labels.into(), routes: routes.into() }
    }

    fn node(&mut self, label: &[u8]) {
        let start = self.labels.len() as u32;
        self.labels.extend_from_slice(label);
        // The root has no label, and is nobody's child.
        self.firsts.push(label.first().copied().unwrap_or_default());
        self.nodes.push(Node { label: start..self.labels.len() as u32, children: 0..0, routes: 0..0 });
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
    fn a_node_of_many_children_finds_each() {
        let prefixes: Vec<String> = (b'!'..=b'~').map(|byte| format!("/{}", char::from(byte))).collect();
        let routes: Vec<_> = prefixes
            .iter()
            .map(|prefix| RouteMatch { path: PathMatch::Prefix(prefix.clone()), ..RouteMatch::any() })
            .collect();
        let index = PathIndex::new(routes.iter()).unwrap();
        for (at, prefix) in prefixes.iter().enumerate() {
            assert_eq!(index.first(prefix, |_| true), Some(at), "{prefix}");
        }
        assert_eq!(index.first("/\u{e4}", |_| true), None);
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
