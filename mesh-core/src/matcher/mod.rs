//! From a request to its route: [`RouteTable`] is a [`RouteConfiguration`] compiled for one caller and
//! one dialled port.
//!
//! ```text
//! authority ─▶ host (virtual host) ─▶ routes in order ─▶ path, method, headers, query, cookies, fraction ─▶ route
//! ```
//!
//! Finding a route and explaining why are the same walk, so the two cannot disagree. An ordinary match
//! allocates nothing; patterns are compiled once, with the table. Refuses to know what a route does:
//! [`CompiledRoute`] leads back to the policy.

mod authority;
mod cookie;
mod cors;
mod explain;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod host;
mod index;
mod normal;
mod path;
mod query;
mod rewrite;
mod text;
mod tree;

#[cfg(any(test, feature = "fuzzing"))]
mod reference;
#[cfg(test)]
mod tests;

pub use self::cors::{CorsRules, CorsVerdict};
pub use self::explain::{Decision, RouteExplanation, RouteTried, VirtualHostChoice};
pub use self::header::{HeaderCondition, are_twins};
pub(crate) use self::header::{remove_header, separator};
pub use self::normal::{Effort, Met, OF_NO_PATH, path_is_met, target_is_met};
pub use self::path::{PathCondition, unescaped};
pub use self::text::TextCondition;
pub use self::tree::{MatchTree, TwoReadings, each_chain, place_within};

pub(crate) use self::cookie::values as cookies;
pub(crate) use self::query::{decode, first_value};
pub(crate) use self::rewrite::replace_all;

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, Method};
use smallvec::SmallVec;

use self::cookie::CookieCondition;
use self::host::{HostHit, HostIndex};
use self::index::PathIndex;
use self::query::QueryCondition;
use self::rewrite::{AuthorityRewriter, PathRewriter};
use crate::id::Workload;
use crate::policy::{PerMillion, RetryPolicy, Route, RouteConfiguration, RouteMatch, VirtualHost};

/// What of a request decides its route.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// Host as the application named it, with or without a port, any case.
    pub authority: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Path with query, beginning with `/`.
    pub path_and_query: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Gives a uniform draw from `0..1_000_000`; asked once for every `fraction` that is reached.
    pub draw: &'a dyn Fn() -> u32,
}

impl<'a> RequestView<'a> {
    /// The path without its query.
    pub fn path(&self) -> &'a str {
        self.split().0
    }

    /// The query without its `?`; empty if there is none.
    pub fn query(&self) -> &'a str {
        self.split().1
    }

    fn split(&self) -> (&'a str, &'a str) {
        let whole = self.path_and_query;
        text::find(b'?', whole.as_bytes()).map_or((whole, ""), |at| (&whole[..at], &whole[at + 1..]))
    }
}

/// A route configuration compiled for one caller and one dialled port.
#[derive(Debug)]
pub struct RouteTable {
    config: Arc<RouteConfiguration>,
    hosts: HostIndex,
    // One for each virtual host of the configuration.
    virtual_hosts: Box<[HostRoutes]>,
    routes: Box<[CompiledRoute]>,
}

/// The routes of one virtual host.
#[derive(Debug)]
struct HostRoutes {
    // Within `RouteTable::routes`, in listed order.
    routes: Range<usize>,
    // Where the routes are many.
    index: Option<PathIndex>,
    left_out: Box<[LeftOut]>,
}

/// A route that is not for this caller or port, and the condition that says so.
#[derive(Debug)]
struct LeftOut {
    index: usize,
    reason: String,
}

/// One route of a [`RouteTable`].
#[derive(Debug)]
pub struct CompiledRoute {
    config: Arc<RouteConfiguration>,
    id: usize,
    virtual_host: usize,
    index: usize,
    conditions: Conditions,
    rewriter: Option<PathRewriter>,
    authority: Option<AuthorityRewriter>,
}

/// The conditions of a route that a request decides.
#[derive(Debug)]
pub(crate) struct Conditions {
    path: PathCondition,
    methods: Box<[Box<str>]>,
    headers: Box<[HeaderCondition]>,
    query: Box<[QueryCondition]>,
    cookies: Box<[CookieCondition]>,
    fraction: Option<PerMillion>,
    // Whether there is any but that of the path.
    more: bool,
}

/// A condition about what a request may have more than once.
#[derive(Clone, Copy)]
enum Part<'c> {
    Header(&'c HeaderCondition),
    Query(&'c QueryCondition),
    Cookie(&'c CookieCondition),
}

/// The route of a request, and those that it might have as well.
#[derive(Debug)]
#[non_exhaustive]
pub struct Choices<'t> {
    /// The first that matches: of several values of a header all joined with commas count, of a query parameter the first.
    pub route: Option<&'t CompiledRoute>,
    /// In listed order those that match in some reading of what the request has more than once, `route` among them, up to
    /// the first that does in every one: a single one, but for a request that somebody wants to be read in two ways.
    pub possible: SmallVec<[&'t CompiledRoute; 2]>,
}

/// The first condition of a route that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    Path,
    Method,
    Header(usize),
    Query(usize),
    Cookie(usize),
    Fraction { draw: u32 },
}

impl RouteTable {
    /// Compiles `config` for requests that `caller` dials to `port`. Routes whose port, source labels
    /// or source namespace exclude them are left out; [`explain`](Self::explain) still names them.
    pub fn compile(config: &Arc<RouteConfiguration>, port: u16, caller: &Workload) -> Self {
        let mut routes = Vec::new();
        let mut virtual_hosts = Vec::with_capacity(config.virtual_hosts.len());
        for (virtual_host, host) in config.virtual_hosts.iter().enumerate() {
            let first = routes.len();
            let mut left_out = Vec::new();
            for (index, route) in host.routes.iter().enumerate() {
                match excluded(&route.matcher, port, caller) {
                    Some(reason) => left_out.push(LeftOut { index, reason }),
                    None => routes.push(CompiledRoute {
                        config: config.clone(),
                        id: routes.len(),
                        virtual_host,
                        index,
                        conditions: Conditions::new(&route.matcher),
                        rewriter: PathRewriter::of(route),
                        authority: AuthorityRewriter::of(route),
                    }),
                }
            }
            let index = PathIndex::new(routes[first..].iter().map(|route| &host.routes[route.index].matcher));
            virtual_hosts.push(HostRoutes { routes: first..routes.len(), index, left_out: left_out.into() });
        }
        Self {
            config: config.clone(),
            hosts: HostIndex::new(&config.virtual_hosts),
            virtual_hosts: virtual_hosts.into(),
            routes: routes.into(),
        }
    }

    /// The route of a request: the first that matches in the virtual host of its authority.
    pub fn route(&self, request: &RequestView<'_>) -> Option<&CompiledRoute> {
        let hit = self.hosts.find(request.authority)?;
        let (routes, index) = (self.routes_of(hit), &self.virtual_hosts[hit.virtual_host].index);
        let split = request.split();
        let takes = |route: &CompiledRoute| route.conditions.check(request, split).is_ok();
        match index {
            Some(index) => index.first(split.0, |at| takes(&routes[at])).map(|at| &routes[at]),
            None => routes.iter().find(|route| takes(route)),
        }
    }

    /// The same, with what else its route might be to who reads headers, query or cookies in another way.
    pub fn choices<'s>(&'s self, request: &RequestView<'_>) -> Choices<'s> {
        let mut choices = Choices { route: None, possible: SmallVec::new() };
        let Some(hit) = self.hosts.find(request.authority) else { return choices };
        let (routes, index) = (self.routes_of(hit), &self.virtual_hosts[hit.virtual_host].index);
        let split = request.split();
        let mut ends = |route: &'s CompiledRoute| {
            let CompiledRoute { conditions, .. } = route;
            let (every, chosen, some) = conditions.choices(request, split);
            if some {
                choices.possible.push(route);
            }
            if chosen && choices.route.is_none() {
                choices.route = Some(route);
            }
            every
        };
        match index {
            Some(index) => drop(index.first(split.0, |at| ends(&routes[at]))),
            None => drop(routes.iter().find(|route| ends(route))),
        }
        choices
    }

    /// Why a request goes where it goes: every virtual host and route looked at and what became of it.
    pub fn explain(&self, request: &RequestView<'_>) -> RouteExplanation {
        explain::explain(self, request)
    }

    /// All routes that are for this caller; [`CompiledRoute::id`] is the position here.
    pub fn routes(&self) -> &[CompiledRoute] {
        &self.routes
    }

    /// The policy behind the table.
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.config
    }

    fn routes_of(&self, hit: HostHit) -> &[CompiledRoute] {
        &self.routes[self.virtual_hosts[hit.virtual_host].routes.clone()]
    }
}

impl CompiledRoute {
    /// Position in [`RouteTable::routes`]: the key of what a user keeps beside each route.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Position in the virtual host, as the policy lists it.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The policy of the route.
    pub fn route(&self) -> &Route {
        &self.virtual_host().routes[self.index]
    }

    /// The virtual host it belongs to.
    pub fn virtual_host(&self) -> &VirtualHost {
        &self.config.virtual_hosts[self.virtual_host]
    }

    /// The configuration it belongs to.
    pub fn config(&self) -> &Arc<RouteConfiguration> {
        &self.config
    }

    /// The retry policy in force: the route's own, else the virtual host's.
    pub fn retry(&self) -> Option<&RetryPolicy> {
        let own = match &self.route().action {
            crate::policy::RouteAction::Forward(forward) => forward.retry.as_ref(),
            _ => None,
        };
        own.or(self.virtual_host().retry.as_ref())
    }

    /// Path and query after the path rewrite of the route's forwarding or redirect; `None` if it has
    /// none. The query is kept as it is, unless a redirect has its own. `path_and_query` is that of a request this route matched.
    pub fn rewrite_path(&self, path_and_query: &str) -> Option<String> {
        self.rewriter.as_ref().map(|rewriter| rewriter.rewrite(path_and_query))
    }

    /// The authority that the route makes of a path, query excluded
    /// ([`AuthorityRewrite::Path`](crate::policy::AuthorityRewrite::Path)); `None` if it makes none.
    pub fn rewrite_authority(&self, path: &str) -> Option<String> {
        self.authority.as_ref().map(|rewriter| rewriter.rewrite(path))
    }
}

impl Conditions {
    pub(crate) fn new(policy: &RouteMatch) -> Self {
        let RouteMatch { methods, headers, query, cookies, fraction, .. } = policy;
        let path_alone = methods.is_empty() && headers.is_empty() && query.is_empty() && cookies.is_empty();
        Self {
            path: PathCondition::new(&policy.path, policy.case_sensitive),
            methods: methods.iter().map(|m| m.as_str().into()).collect(),
            headers: headers.iter().map(HeaderCondition::new).collect(),
            query: query.iter().map(QueryCondition::new).collect(),
            cookies: cookies.iter().map(CookieCondition::new).collect(),
            fraction: *fraction,
            more: !path_alone || fraction.is_some(),
        }
    }

    /// Whether a request holds all of it however its headers, query and cookies are read, and whether it does in any reading of
    /// them: a rule that guards something is not stepped round with what two read in two ways.
    pub(crate) fn readings(&self, request: &RequestView<'_>) -> (bool, bool) {
        let split = request.split();
        let mut every = true;
        let some = self.check_with(request, split, |part| {
            let (all, any) = part.readings(request, split.1);
            every &= all;
            any
        });
        (every && some.is_ok(), some.is_ok())
    }

    /// The same of what the request has more than once, and in the middle whether it holds it as routes are chosen, which is
    /// one of the readings.
    fn choices(&self, request: &RequestView<'_>, split: (&str, &str)) -> (bool, bool, bool) {
        let (mut every, mut chosen) = (true, true);
        let some = self.check_with(request, split, |part| {
            let (all, holds, any) = part.choices(request, split.1);
            (every, chosen) = (every && all, chosen && holds);
            any
        });
        (every && some.is_ok(), chosen && some.is_ok(), some.is_ok())
    }

    /// Path and query are those of the request, split once for all routes.
    fn check(&self, request: &RequestView<'_>, split: (&str, &str)) -> Result<(), Miss> {
        self.check_with(request, split, |part| part.holds(request, split.1))
    }

    #[inline]
    fn check_with(
        &self,
        request: &RequestView<'_>,
        (path, _): (&str, &str),
        mut holds: impl FnMut(Part<'_>) -> bool,
    ) -> Result<(), Miss> {
        if !self.path.holds(path) {
            return Err(Miss::Path);
        }
        if !self.more {
            return Ok(());
        }
        if !self.methods.is_empty() && !self.methods.iter().any(|m| **m == *request.method.as_str()) {
            return Err(Miss::Method);
        }
        if let Some(i) = self.headers.iter().position(|header| !holds(Part::Header(header))) {
            return Err(Miss::Header(i));
        }
        if let Some(i) = self.query.iter().position(|parameter| !holds(Part::Query(parameter))) {
            return Err(Miss::Query(i));
        }
        if let Some(i) = self.cookies.iter().position(|cookie| !holds(Part::Cookie(cookie))) {
            return Err(Miss::Cookie(i));
        }
        // Last, so that the share is one of the requests that match otherwise.
        if let Some(share) = self.fraction {
            let draw = (request.draw)();
            if !share.hit(draw) {
                return Err(Miss::Fraction { draw });
            }
        }
        Ok(())
    }
}

impl Part<'_> {
    /// Whether it holds as routes are chosen.
    #[inline]
    fn holds(self, request: &RequestView<'_>, query: &str) -> bool {
        match self {
            Self::Header(header) => header.holds(request),
            Self::Query(parameter) => parameter.holds(query),
            Self::Cookie(cookie) => cookie.holds(request.headers),
        }
    }

    /// Whether it holds in every reading, and whether in some.
    fn readings(self, request: &RequestView<'_>, query: &str) -> (bool, bool) {
        let (every, _, some) = match self {
            Self::Header(header) => return header.readings(request),
            Self::Query(parameter) => parameter.readings(query),
            Self::Cookie(cookie) => cookie.readings(request.headers),
        };
        (every, some)
    }

    /// The same of what is there more than once, and in the middle whether it holds as routes are chosen, which is one of the
    /// readings: a list in one value is that value to who chooses a route.
    fn choices(self, request: &RequestView<'_>, query: &str) -> (bool, bool, bool) {
        match self {
            Self::Header(header) => {
                let chosen = header.holds(request);
                let alone = (chosen, chosen);
                let (every, some) = if header.has_readings(request) { header.readings(request) } else { alone };
                (every, chosen, some)
            }
            Self::Query(parameter) => parameter.readings(query),
            Self::Cookie(cookie) => cookie.readings(request.headers),
        }
    }
}

/// Why a route is not for this caller and port, if it is not.
fn excluded(policy: &RouteMatch, port: u16, caller: &Workload) -> Option<String> {
    if let Some(want) = policy.port.filter(|want| *want != port) {
        return Some(format!("it is for port {want}; the request is dialled to port {port}"));
    }
    if let Some(want) = policy.source_namespace.as_ref().filter(|want| **want != caller.namespace) {
        return Some(format!("it is for callers in namespace {want:?}; this one is in {:?}", caller.namespace));
    }
    let (key, want) = policy.source_labels.iter().find(|(key, want)| caller.labels.get(*key) != Some(want))?;
    Some(match caller.labels.get(key) {
        Some(got) => format!("it is for callers with label {key}={want}; this one has {key}={got}"),
        None => format!("it is for callers with label {key}={want}; this one has no such label"),
    })
}
