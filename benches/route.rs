//! What finding a route costs: tables of 10 and 1,000 routes, a third of them exact paths, a third prefixes, a third
//! regular expressions, each request decided by another one of them. `cargo xtask bench route [NAME] [-o json]`.
//!
//! `choices` is what a server's look-up costs, which asks what else the route might be, by ten routes with a condition on a
//! header, on a query parameter and on a cookie each.
//!
//! The goals, at most 60 ns and 300 ns, are for a quiet machine.

#![allow(clippy::print_stdout, missing_docs, reason = "a program, not a library")]

#[path = "common/nanos.rs"]
mod nanos;
#[path = "common/rows.rs"]
mod rows;

use std::hint::black_box;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_core::id::{ClusterName, Workload};
use mesh_core::matcher::{RequestView, RouteTable};
use mesh_core::policy::{
    Cluster, CookieMatcher, Forward, HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Pattern, QueryMatch,
    QueryMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, Snapshot, StringMatch, StringMatcher,
};

use self::nanos::Nanos;

/// The route of that number, and a path that only it takes.
fn route(index: usize) -> (Route, String) {
    let (path, asked) = match index % 3 {
        0 => (PathMatch::Exact(format!("/shop/item{index}")), format!("/shop/item{index}")),
        1 => (PathMatch::Prefix(format!("/api/v{index}/")), format!("/api/v{index}/orders/17")),
        _ => {
            let pattern = Pattern::new(&format!("/user{index}/[0-9]+/cart")).expect("the pattern is valid");
            (PathMatch::Regex(pattern), format!("/user{index}/42/cart"))
        }
    };
    let forward = RouteAction::Forward(Box::new(Forward::to(ClusterName::new("bench"))));
    (Route::new(RouteMatch { path, ..RouteMatch::any() }, forward), asked)
}

fn table(size: usize) -> (RouteTable, Vec<String>) {
    let (mut routes, asked): (Vec<_>, Vec<_>) = (0..size).map(route).unzip();
    routes.push(Route::new(RouteMatch::any(), routes[0].action.clone()));
    (compile(routes), asked)
}

/// Ten routes with conditions on more than the path; the request below takes the last.
fn conditions() -> RouteTable {
    let text = |text: &str| {
        let pattern = Pattern::new(text).expect("the pattern is valid");
        StringMatcher { pattern: StringMatch::Regex(pattern), ignore_case: false }
    };
    let route = |index: usize| {
        let (mut route, _) = route(0);
        let name = HeaderKey::parse("x-user").expect("a header's name");
        let value = HeaderMatch::Text(text(&format!("[a-z]+{index}")));
        let header = HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false };
        route.matcher = RouteMatch {
            headers: vec![header],
            query: vec![QueryMatcher { name: "page".to_owned(), value: QueryMatch::Text(text("[0-9]+")) }],
            cookies: vec![CookieMatcher { name: "edition".to_owned(), value: text("v[0-9]"), invert: false }],
            ..RouteMatch::any()
        };
        route
    };
    compile((0..10).map(route).collect())
}

fn compile(routes: Vec<Route>) -> RouteTable {
    let snapshot = Snapshot::of_one_cluster("bench:80", Cluster::new("bench".into()), None);
    let mut config = RouteConfiguration::clone(&snapshot.routes);
    config.virtual_hosts[0].routes = routes;
    RouteTable::compile(&Arc::new(config), 80, &Workload::default())
}

fn main() {
    let mut nanos = Nanos::of_args();
    for (size, goal) in [(10, 60.0), (1000, 300.0)] {
        let (table, asked) = table(size);
        let kinds = [("exact", 0), ("prefix", 1), ("regex", 2)];
        let mixed = asked.iter().collect::<Vec<_>>();
        let of_kind = |kind: usize| asked.iter().skip(kind).step_by(3).collect::<Vec<_>>();
        let kinds = kinds.into_iter().map(|(name, kind)| (name, of_kind(kind)));
        for (name, paths) in std::iter::once(("mixed", mixed)).chain(kinds) {
            let headers = HeaderMap::new();
            let mut next = paths.iter().cycle();
            nanos.row(&format!("{name}/{size}"), goal, || {
                let path = next.next().expect("it never ends");
                let request = RequestView {
                    authority: "bench:80",
                    method: &Method::GET,
                    path_and_query: black_box(path),
                    scheme: "http",
                    headers: &headers,
                    draw: &|| 0,
                };
                table.route(&request).map(|route| route.id())
            });
        }
    }
    let (table, headers) = (conditions(), [("x-user", "ann9"), ("cookie", "edition=v2")]);
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let headers = HeaderMap::from_iter(headers);
    let request = RequestView {
        authority: "bench:80",
        method: &Method::GET,
        path_and_query: "/shop?page=17",
        scheme: "http",
        headers: &headers,
        draw: &|| 0,
    };
    nanos.row("choices/10", None, || table.choices(black_box(&request)).route.map(|route| route.id()));
    nanos.print();
}
