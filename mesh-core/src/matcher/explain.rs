//! Why a request goes where it goes.

use serde::Serialize;

use super::{HostHit, Miss, RequestView, RouteTable};
use crate::policy::{
    CookieMatcher, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryMatcher, RouteMatch, StringMatch,
    StringMatcher,
};

/// The walk of one request through a route table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteExplanation {
    /// Name of the route configuration.
    pub route_configuration: String,
    /// The authority looked up.
    pub authority: String,
    /// The virtual host chosen.
    pub virtual_host: Option<VirtualHostChoice>,
    /// Its routes in order, up to the one that decided.
    pub tried: Vec<RouteTried>,
    /// The end of it.
    pub decision: Decision,
}

/// The virtual host of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualHostChoice {
    /// Its name.
    pub name: String,
    /// The domain pattern that the authority matched best.
    pub domain: String,
}

/// A route that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteTried {
    /// Position in the virtual host.
    pub index: usize,
    /// Name; may be empty.
    pub name: String,
    /// The first condition that failed, in words; `None` for the route that matched.
    pub failed: Option<String>,
}

/// The end of the walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// This route decides.
    Route {
        /// Position in the virtual host.
        index: usize,
        /// Name; may be empty.
        name: String,
        /// [`CompiledRoute::id`](super::CompiledRoute::id): the route in the table.
        id: usize,
    },
    /// The virtual host has no route that matches.
    NoRoute,
    /// No virtual host has a domain that matches the authority.
    NoVirtualHost,
}

pub(super) fn explain(table: &RouteTable, request: &RequestView<'_>) -> RouteExplanation {
    let mut explanation = RouteExplanation {
        route_configuration: table.config.name.clone(),
        authority: request.authority.to_owned(),
        virtual_host: None,
        tried: Vec::new(),
        decision: Decision::NoVirtualHost,
    };
    let Some(hit) = table.hosts.find(request.authority) else {
        return explanation;
    };
    let host = &table.config.virtual_hosts[hit.virtual_host];
    let domain = host.domains[hit.domain].as_str().to_owned();
    explanation.virtual_host = Some(VirtualHostChoice { name: host.name.clone(), domain });
    explanation.decision = walk(table, hit, request, &mut explanation.tried);
    explanation
}

fn walk(table: &RouteTable, hit: HostHit, request: &RequestView<'_>, tried: &mut Vec<RouteTried>) -> Decision {
    let routes = &table.config.virtual_hosts[hit.virtual_host].routes;
    let name = |index: usize| routes[index].name.clone();
    let mut left_out = table.virtual_hosts[hit.virtual_host].left_out.iter().peekable();
    for compiled in table.routes_of(hit) {
        while let Some(other) = left_out.next_if(|other| other.index < compiled.index) {
            tried.push(RouteTried { index: other.index, name: name(other.index), failed: Some(other.reason.clone()) });
        }
        let index = compiled.index;
        let miss = compiled.conditions.check(request, request.split()).err();
        let failed = miss.map(|miss| in_words(miss, &routes[index].matcher, request));
        let matched = failed.is_none();
        tried.push(RouteTried { index, name: name(index), failed });
        if matched {
            return Decision::Route { index, name: name(index), id: compiled.id };
        }
    }
    for other in left_out {
        tried.push(RouteTried { index: other.index, name: name(other.index), failed: Some(other.reason.clone()) });
    }
    Decision::NoRoute
}

fn in_words(miss: Miss, policy: &RouteMatch, request: &RequestView<'_>) -> String {
    match miss {
        Miss::Path => {
            let case = if policy.case_sensitive { "" } else { ", whatever its case" };
            format!("path {:?} {}{case}", request.path(), path(&policy.path))
        }
        Miss::Method => format!("method {} is not among {}", request.method, policy.methods.join(", ")),
        Miss::Header(i) => header(&policy.headers[i]),
        Miss::Query(i) => query(&policy.query[i]),
        Miss::Cookie(i) => cookie(&policy.cookies[i]),
        Miss::Fraction { draw } => {
            let share = policy.fraction.map_or(0, |share| share.get());
            format!("the draw {draw} is outside the route's share of {share} in a million requests")
        }
    }
}

fn path(policy: &PathMatch) -> String {
    match policy {
        PathMatch::Exact(want) => format!("is not {want:?}"),
        PathMatch::Prefix(want) => format!("does not begin with {want:?}"),
        PathMatch::PathSeparatedPrefix(want) => format!("is not {want:?} or below it"),
        PathMatch::Regex(want) => format!("does not match {want:?} as a whole"),
    }
}

fn header(policy: &HeaderMatcher) -> String {
    let condition = match &policy.value {
        HeaderMatch::Text(matcher) => text(matcher),
        HeaderMatch::Range { start, end } => format!("an integer from {start} to below {end}"),
        HeaderMatch::Present(true) => "present".to_owned(),
        HeaderMatch::Present(false) => "absent".to_owned(),
    };
    let not = if policy.invert { "not " } else { "" };
    // The value is left out on purpose: it may be a credential.
    format!("header {:?} is not as asked: {not}{condition}", policy.name.as_str())
}

fn query(policy: &QueryMatcher) -> String {
    let condition = match &policy.value {
        QueryMatch::Text(matcher) => text(matcher),
        QueryMatch::Present(true) => "present".to_owned(),
        QueryMatch::Present(false) => "absent".to_owned(),
    };
    format!("query parameter {:?} is not as asked: {condition}", policy.name)
}

fn cookie(policy: &CookieMatcher) -> String {
    let not = if policy.invert { "not " } else { "" };
    format!("cookie {:?} is not as asked: {not}{}", policy.name, text(&policy.value))
}

fn text(matcher: &StringMatcher) -> String {
    let case = if matcher.ignore_case { ", whatever its case" } else { "" };
    match &matcher.pattern {
        StringMatch::Exact(want) => format!("{want:?}{case}"),
        StringMatch::Prefix(want) => format!("beginning with {want:?}{case}"),
        StringMatch::Suffix(want) => format!("ending with {want:?}{case}"),
        StringMatch::Contains(want) => format!("containing {want:?}{case}"),
        StringMatch::Regex(want) => format!("matching {want:?} as a whole"),
    }
}
