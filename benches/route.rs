//! What finding a route costs: tables of 10 and 1,000 routes, a third of them exact paths, a third prefixes, a third
//! regular expressions, each request decided by another one of them. `cargo xtask bench route`.
//!
//! The goals, at most 60 ns and 300 ns, are for a quiet machine; compare rows of one run.

#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use mesh_core::id::{ClusterName, Workload};
use mesh_core::matcher::{RequestView, RouteTable};
use mesh_core::policy::{
    Cluster, Forward, PathMatch, Pattern, Route, RouteAction, RouteConfiguration, RouteMatch, Snapshot,
};

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
    let snapshot = Snapshot::of_one_cluster("bench:80", Cluster::new("bench".into()), None);
    let mut config = RouteConfiguration::clone(&snapshot.routes);
    config.virtual_hosts[0].routes = routes;
    (RouteTable::compile(&Arc::new(config), 80, &Workload::default()), asked)
}

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for size in [10, 1000] {
        let (table, asked) = table(size);
        let kinds = [("exact", 0), ("prefix", 1), ("regex", 2)];
        let mixed = asked.iter().collect::<Vec<_>>();
        let of_kind = |kind: usize| asked.iter().skip(kind).step_by(3).collect::<Vec<_>>();
        let kinds = kinds.into_iter().map(|(name, kind)| (name, of_kind(kind)));
        for (name, paths) in std::iter::once(("mixed", mixed)).chain(kinds) {
            let headers = HeaderMap::new();
            let mut next = paths.iter().cycle();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
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
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(700))
        .sample_size(30);
    targets = find
}
criterion_main!(benches);
