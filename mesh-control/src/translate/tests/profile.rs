//! Conditions of a ServiceProfile: the routes made of one match what it says.

use std::sync::Arc;

use http::{HeaderMap, Method};
use mesh_core::id::Workload;
use mesh_core::matcher::{RequestView, RouteTable};
use proptest::prelude::*;

use super::*;

/// A condition as it is written and as it is meant.
#[derive(Clone, Debug)]
enum Condition {
    Method(&'static str),
    /// The expression, and the paths out of [`PATHS`] that it takes.
    Path(&'static str, &'static [&'static str]),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
}

const PATHS: [&str; 5] = ["/", "/a", "/a/edit", "/a/1/edit", "/b"];
const EXPRESSIONS: [(&str, &[&str]); 6] = [
    ("/a", &["/a"]),
    ("/a(/.*)?", &["/a", "/a/edit", "/a/1/edit"]),
    ("/[^/]*", &["/", "/a", "/b"]),
    ("/.*/edit", &["/a/edit", "/a/1/edit"]),
    ("^/\\w+$", &["/a", "/b"]),
    ("/b\\?x", &[]),
];
/// What of a query could be taken for a path.
const QUERIES: [&str; 4] = ["", "?", "?x", "?next=/edit"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];

impl Condition {
    fn yaml(&self) -> String {
        let list = |parts: &[Self]| parts.iter().map(Self::yaml).collect::<Vec<_>>().join(", ");
        match self {
            Self::Method(method) => format!("{{method: {method}}}"),
            Self::Path(regex, _) => format!("{{pathRegex: '{regex}'}}"),
            Self::All(parts) => format!("{{all: [{}]}}", list(parts)),
            Self::Any(parts) => format!("{{any: [{}]}}", list(parts)),
            Self::Not(inner) => format!("{{not: {}}}", inner.yaml()),
        }
    }

    fn holds(&self, method: &str, path: &str) -> bool {
        match self {
            Self::Method(wanted) => *wanted == method,
            Self::Path(_, paths) => paths.contains(&path),
            Self::All(parts) => parts.iter().all(|part| part.holds(method, path)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(method, path)),
            Self::Not(inner) => !inner.holds(method, path),
        }
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let path = prop::sample::select(EXPRESSIONS.to_vec());
    let leaf = prop_oneof![
        prop::sample::select(METHODS.to_vec()).prop_map(Condition::Method),
        path.prop_map(|(regex, paths)| Condition::Path(regex, paths)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let list = || prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            list().prop_map(Condition::All),
            list().prop_map(Condition::Any),
            inner.clone().prop_map(|inner| Condition::Not(Box::new(inner))),
        ]
    })
}

fn profile_of(spec: &str) -> World {
    world(&format!(
        "{}apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {{name: a.default.svc.cluster.local}}\nspec: {spec}\n",
        service("a", "default", HTTP)
    ))
}

fn chosen(table: &RouteTable, method: &str, path_and_query: &str) -> String {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = RequestView {
        authority: "a",
        method: &method,
        path_and_query,
        scheme: "http",
        headers: &HeaderMap::new(),
        draw: &|| 0,
    };
    table.route(&request).unwrap().route().name.clone()
}

proptest! {
    #[test]
    fn a_profiles_condition_means_what_it_says(condition in condition()) {
        let world = profile_of(&format!("{{routes: [{{name: r, condition: {}}}]}}", condition.yaml()));
        let errors: Vec<_> = world.findings().iter().map(|finding| finding.message.clone()).collect();
        let requests = || METHODS.into_iter().flat_map(|method| PATHS.map(|path| (method, path)));
        if errors.iter().any(|message| message.contains("nothing ever matches")) {
            prop_assert!(requests().all(|(method, path)| !condition.holds(method, path)));
            return Ok(());
        }
        if errors.iter().any(|message| message.contains("at most 64")) {
            return Ok(());
        }
        prop_assert_eq!(errors, Vec::<String>::new());
        let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
        let table = RouteTable::compile(&Arc::new(routes), 80, &Workload::default());
        for (method, path) in requests() {
            for query in QUERIES {
                let wanted = if condition.holds(method, path) { "r" } else { "[DEFAULT]" };
                let target = format!("{path}{query}");
                prop_assert_eq!(chosen(&table, method, &target), wanted, "{} {}: {}", method, target, condition.yaml());
            }
        }
    }
}

#[test]
fn an_override_goes_to_the_port_it_names_else_to_the_one_dialled() {
    let ports = "{name: http, port: 80}, {name: other, port: 8080}";
    let clusters = |overrides: &str| {
        let world = world(&format!(
            "{}{}apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {{name: a.default.svc.cluster.local}}\nspec: {{dstOverrides: [{overrides}]}}\n",
            service("a", "default", HTTP),
            service("b", "default", ports)
        ));
        let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
        let ClusterChoice::Weighted(list) = &forwards(&routes)[0].to else { panic!("weighted") };
        list.entries().iter().map(|entry| entry.name.to_string()).collect::<Vec<_>>()
    };
    let b = "b.default.svc.cluster.local";
    let both = format!("{{authority: '{b}:8080', weight: 1}}, {{authority: {b}, weight: 1}}");
    assert_eq!(clusters(&both), [format!("outbound|8080||{b}"), format!("outbound|80||{b}")]);
}
