//! Which of many routes a path may be for, by what the path must begin with.
//!
//! Refuses to decide: the routes that it names are checked one by one, in listed order.

use std::collections::BTreeMap;
use std::ops::Range;

use smallvec::SmallVec;

use super::path::common_beginning;
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
    // Those that a path may be for that leads here and no further, in listed order; without those of `more`.
    routes: Range<u32>,
    // A node above with more of them, which are too many to have them here again.
    more: Option<u32>,
}

/// Up to so many children a look at each is as fast as a search by halves.
const NARROW: usize = 16;
/// Up to so many routes of the nodes above are listed again below.
const REPEATED: usize = 16;

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
        let node = self.node(path.as_bytes());
        let list = &self.routes[within(&node.routes)];
        let Some(mut more) = node.more else {
            return list.iter().map(|route| *route as usize).find(|route| matches(*route));
        };
        let mut lists = SmallVec::<[&[u32]; 8]>::from_slice(&[list]);
        loop {
            let above = &self.nodes[more as usize];
            lists.push(&self.routes[within(&above.routes)]);
            let Some(next) = above.more else { break };
            more = next;
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

    /// Where a path leads.
    fn node(&self, path: &[u8]) -> &Node {
        let (mut rest, mut node) = (path, &self.nodes[0]);
        while let Some(child) = rest.first().and_then(|first| self.child(node, first)) {
            let label = &self.labels[within(&child.label)];
            // The first byte is the child's.
            let Some((head, after)) = rest.split_at_checked(label.len()) else { break };
            if label.len() > 1 && head[1..] != label[1..] {
                break;
            }
            (rest, node) = (after, child);
        }
        node
    }

    /// The child whose label begins with `first`.
    fn child(&self, node: &Node, first: &u8) -> Option<&Node> {
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
        // For each node what begins as it does, how many bytes lead to it, and the node above.
        let mut below = vec![(sorted, 0, 0)];
        self.node(&[]);
        for at in 0.. {
            let Some(&(mut entries, depth, above)) = below.get(at) else { break };
            let mut own: &[u32] = &[];
            if let Some(((text, routes), rest)) = entries.split_first()
                && text.len() == depth
            {
                (own, entries) = (routes, rest);
            }
            self.list(at, own, above);
            let start = self.nodes.len() as u32;
            for group in entries.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]) {
                // What the first and the last have in common, all between them have.
                let (first, last) = (&group[0].0, &group[group.len() - 1].0);
                let end = first.iter().zip(last).take_while(|(a, b)| a == b).count();
                self.node(&first[depth..end]);
                below.push((group, end, at));
            }
            self.nodes[at].children = start..self.nodes.len() as u32;
        }
        let Self { nodes, firsts, labels, routes } = self;
        PathIndex { nodes: nodes.into(), firsts: firsts.into(), labels: labels.into(), routes: routes.into() }
    }

    /// Lists the routes of a node: its own, and those of the node above if they are not too many.
    fn list(&mut self, at: usize, own: &[u32], above: usize) {
        let (inherited, more) = (self.nodes[above].routes.clone(), self.nodes[above].more);
        if own.is_empty() {
            (self.nodes[at].routes, self.nodes[at].more) = (inherited, more);
            return;
        }
        let start = self.routes.len();
        self.routes.extend(own);
        if inherited.len() <= REPEATED {
            self.routes.extend_from_within(within(&inherited));
            self.routes[start..].sort_unstable();
            self.nodes[at].more = more;
        } else {
            self.nodes[at].more = Some(above as u32);
        }
        self.nodes[at].routes = start as u32..self.routes.len() as u32;
    }

    fn node(&mut self, label: &[u8]) {
        let start = self.labels.len() as u32;
        self.labels.extend_from_slice(label);
        // The root has no label, and is nobody's child.
        self.firsts.push(label.first().copied().unwrap_or_default());
        self.nodes.push(Node { label: start..self.labels.len() as u32, children: 0..0, routes: 0..0, more: None });
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
        PathMatch::Regex(pattern) => common_beginning(pattern),
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
        let offered = |routes: &[RouteMatch], path: &str| {
            let mut offered = Vec::new();
            let all = PathIndex::new(routes.iter()).unwrap().first(path, |route| {
                offered.push(route);
                false
            });
            assert_eq!(all, None);
            offered
        };
        assert_eq!(offered(&routes, "/a/b/c/d"), [0, 1, 2, 4, 5]);
        assert_eq!(offered(&routes, "/abc"), [0, 2, 3, 5]);
        assert_eq!(offered(&routes, "/c"), [0]);
        assert_eq!(offered(&routes, ""), Vec::<usize>::new());
        assert_eq!(PathIndex::new(routes.iter()).unwrap().first("/abc", |route| route > 2), Some(3));
        // More above than is listed again below.
        let many = vec![RouteMatch { path: PathMatch::Prefix("/a".into()), ..RouteMatch::any() }; REPEATED + 1];
        let all: Vec<usize> = [0, 1, 2, 4, 5].into_iter().chain(7..24).chain([24, 25, 26, 28, 29]).collect();
        assert_eq!(offered(&[&*routes, &many, &routes].concat(), "/a/b/c/d"), all);
        assert!(PathIndex::new(routes[..FEW].iter()).is_none());
    }
}
