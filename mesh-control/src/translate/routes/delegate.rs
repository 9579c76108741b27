//! Joining a delegating route's match with a match of its delegate (Istio's rules, config-surface
//! 1.1.10).

use mesh_core::policy::{PathMatch, RouteMatch};

/// Both conditions as one; `None` if the delegate's is not a part of the root's.
pub(super) fn join(root: &RouteMatch, delegate: &RouteMatch) -> Option<RouteMatch> {
    let mut both = delegate.clone();
    let any = RouteMatch::any();
    if is_any(&delegate.path) {
        both.path = root.path.clone();
        both.case_sensitive = root.case_sensitive;
    } else if !is_any(&root.path) && (root.case_sensitive != delegate.case_sensitive || !within(root, delegate)) {
        return None;
    }
    if delegate.methods.is_empty() {
        both.methods = root.methods.clone();
    } else if !root.methods.is_empty() && root.methods != delegate.methods {
        return None;
    }
    for condition in &root.headers {
        let same_name =
            delegate.headers.iter().find(|other| other.name == condition.name && other.invert == condition.invert);
        match same_name {
            Some(other) if other != condition => return None,
            Some(_) => {}
            None => both.headers.push(condition.clone()),
        }
    }
    for condition in &root.query {
        match delegate.query.iter().find(|other| other.name == condition.name) {
            Some(other) if other != condition => return None,
            Some(_) => {}
            None => both.query.push(condition.clone()),
        }
    }
    both.port = agree(root.port, delegate.port)?;
    both.source_namespace = agree(root.source_namespace.clone(), delegate.source_namespace.clone())?;
    for (key, value) in &root.source_labels {
        if both.source_labels.get(key).is_some_and(|other| other != value) {
            return None;
        }
        both.source_labels.insert(key.clone(), value.clone());
    }
    both.fraction = any.fraction;
    Some(both)
}

/// The one that is said, if the two do not differ.
fn agree<T: PartialEq>(root: Option<T>, delegate: Option<T>) -> Option<Option<T>> {
    match (root, delegate) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => Some(b.or(a)),
    }
}

fn is_any(path: &PathMatch) -> bool {
    matches!(path, PathMatch::Prefix(prefix) if prefix == "/" || prefix.is_empty())
}

/// Whether the delegate's path lies within the root's: prefix or exact under a prefix, or equal.
fn within(root: &RouteMatch, delegate: &RouteMatch) -> bool {
    match (&root.path, &delegate.path) {
        (PathMatch::Prefix(outer), PathMatch::Prefix(inner) | PathMatch::Exact(inner)) => inner.starts_with(outer),
        (PathMatch::Exact(outer), PathMatch::Exact(inner)) => outer == inner,
        // With a regex on one side nothing may stand on the other.
        _ => false,
    }
}
