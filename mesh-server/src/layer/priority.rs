//! Whose requests give way when not all can be served: classes of requests, each with the share of the limits on requests
//! in flight that it may fill.
//!
//! ```text
//! in flight   0 ───────── 50 % ───────── 80 % ───────── limit
//! batch       served      │ shed
//! the rest    served                                    │ shed
//! ```
//!
//! Refuses to know what the limits are.

use http::{Method, Request};

use mesh_core::matcher::{HeaderCondition, PathCondition, RequestView};
use mesh_core::policy::{HeaderMatcher, PathMatch, PerMillion};

use super::gate::authority;

/// A class of requests that gives way to others: while more than its share of
/// [`Config::max_requests`](crate::Config::max_requests) or of the limit of
/// [`Config::adaptive_concurrency`](crate::Config::adaptive_concurrency) (the listener's filter of that name included) is
/// in flight, its requests are answered as those beyond the limit are. A request of no class may fill the whole.
///
/// ```
/// use mesh_core::policy::{PathMatch, PerMillion};
/// use mesh_server::{Config, Priority};
///
/// let mut config = Config::default();
/// config.max_requests = Some(100);
/// let half = PerMillion::from_percent(50.0).unwrap();
/// config.priorities = vec![Priority::new(half).path(PathMatch::Prefix("/batch/".into()))];
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    share: PerMillion,
    path: Option<PathMatch>,
    headers: Vec<HeaderMatcher>,
}

impl Priority {
    /// All requests, which may fill this share: of a limit of at least one, one request if the share is not nothing.
    pub fn new(share: PerMillion) -> Self {
        Self { share, path: None, headers: Vec::new() }
    }

    /// Of them those with such a path, in normal form.
    #[must_use]
    pub fn path(mut self, path: PathMatch) -> Self {
        self.path = Some(path);
        self
    }

    /// Of them those that have such a header. What callers say of themselves is as good as callers are: a class by header
    /// is for requests that want to give way.
    #[must_use]
    pub fn header(mut self, header: HeaderMatcher) -> Self {
        self.headers.push(header);
        self
    }
}

/// The classes, compiled; the first that a request belongs to counts.
#[derive(Debug)]
pub(crate) struct Priorities(Box<[Class]>);

#[derive(Debug)]
struct Class {
    share: PerMillion,
    path: Option<PathCondition>,
    headers: Box<[HeaderCondition]>,
}

impl Priorities {
    pub(crate) fn new(classes: &[Priority]) -> Self {
        let compiled = classes.iter().map(|class| Class {
            share: class.share,
            path: class.path.as_ref().map(|path| PathCondition::new(path, true)),
            headers: class.headers.iter().map(HeaderCondition::new).collect(),
        });
        Self(compiled.collect())
    }

    /// The share that a request may fill.
    pub(super) fn share<B>(&self, request: &Request<B>) -> PerMillion {
        if self.0.is_empty() {
            return PerMillion::ALL;
        }
        let uri = request.uri();
        let method: &Method = request.method();
        let view = RequestView {
            authority: authority(request),
            method,
            path_and_query: uri.path_and_query().map_or("", |path| path.as_str()),
            scheme: uri.scheme_str().unwrap_or_default(),
            headers: request.headers(),
            draw: &|| 0,
        };
        let of = |class: &&Class| {
            class.path.as_ref().is_none_or(|path| path.holds(view.path()))
                && class.headers.iter().all(|header| header.holds(&view))
        };
        self.0.iter().find(of).map_or(PerMillion::ALL, |class| class.share)
    }
}
