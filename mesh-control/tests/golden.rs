//! Golden files: each input under `tests/golden/` (and each mission manifest) with the policy it means,
//! for a small world. `UPDATE_GOLDEN=1 cargo test -p mesh-control --test golden` writes them anew.

// Helpers of tests; clippy's own exception only reaches the test functions.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use mesh_control::model::Model;
use mesh_control::registry::Registration;
use mesh_control::translate::{NodeScope, World};
use mesh_core::id::Locality;
use mesh_core::policy::{ClusterChoice, Discovery, RouteAction, RouteConfiguration, RouteSource};
use serde_json::{Value, json};

const MISSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/mission");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn running(service: &str, version: &str, port: u16, address: &str) -> Registration {
    let labels = BTreeMap::from([("app".to_owned(), service.to_owned()), ("version".to_owned(), version.to_owned())]);
    Registration {
        service: service.into(),
        namespace: "default".into(),
        service_port: port,
        address: address.parse().unwrap(),
        labels,
        locality: Locality::default(),
        mesh_tls: true,
        port_protocol: "http".into(),
        workload: format!("{service}-{version}"),
        service_account: format!("bookinfo-{service}"),
    }
}

/// Everything a client of `default` learns about what it dials, as JSON.
fn cascade(world: &World, dialled: &str) -> Value {
    let scope = NodeScope::namespace("default");
    let Some(listener) = world.listener(&scope, dialled) else {
        return json!({ "missing": world.why_missing(&scope, dialled) });
    };
    let RouteSource::Named(name) = &listener.routes else { panic!("routes are asked for by name") };
    let routes = world.routes(&scope, name).expect("a listener's routes exist");
    let mut clusters = BTreeMap::new();
    let raw = listener.tcp.iter().flat_map(|forward| forward.clusters()).map(|share| share.name.to_string());
    for name in cluster_names(&routes).into_iter().chain(raw).collect::<BTreeSet<_>>() {
        let Some(cluster) = world.cluster(&scope, &name) else {
            clusters.insert(name, Value::Null);
            continue;
        };
        let endpoints = world.endpoints(&scope, &name);
        assert_eq!(endpoints.is_some(), matches!(cluster.discovery, Discovery::Eds { .. }), "{name}");
        clusters.insert(name, json!({ "cluster": cluster, "endpoints": endpoints }));
    }
    json!({ "listener": listener, "routes": routes, "clusters": clusters })
}

fn cluster_names(routes: &RouteConfiguration) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        let RouteAction::Forward(forward) = &route.action else { continue };
        match &forward.to {
            ClusterChoice::Cluster(name) => _ = names.insert(name.to_string()),
            ClusterChoice::Weighted(list) => names.extend(list.entries().iter().map(|entry| entry.name.to_string())),
            ClusterChoice::Header(_) => {}
        }
        names.extend(forward.mirrors.iter().map(|mirror| mirror.cluster.to_string()));
    }
    names
}

fn check(case: &str, inputs: &[PathBuf], registrations: &[Registration], dialled: &[&str]) {
    compare(case, inputs, registrations, |world| {
        let policy: BTreeMap<&str, Value> = dialled.iter().map(|name| (*name, cascade(world, name))).collect();
        json!(policy)
    });
}

/// What the servers of `default` at these addresses are told.
fn check_inbound(case: &str, registrations: &[Registration]) {
    compare(case, &[input(case)], registrations, |world| {
        let scope = NodeScope::namespace("default");
        let told = registrations.iter().map(|registration| {
            let address = registration.address.to_string();
            let listener = world.inbound(&scope, &format!("xds.istio.io/grpc/lds/inbound/{address}"));
            (address, json!(listener))
        });
        json!(told.collect::<BTreeMap<_, _>>())
    });
}

fn compare(case: &str, inputs: &[PathBuf], registrations: &[Registration], policy: impl Fn(&World) -> Value) {
    let texts: Vec<(String, String)> = inputs
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    let model = Model::from_texts(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    let world = World::build(&model, registrations);
    let findings: Vec<String> = world.findings().iter().map(ToString::to_string).collect();
    let policy = policy(&world);
    let mut actual = serde_json::to_string_pretty(&json!({ "findings": findings, "policy": policy })).unwrap();
    actual.push('\n');

    let path = Path::new(GOLDEN).join(format!("{case}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &actual).unwrap();
    }
    // Compared as values: the order of members depends on how serde_json was built.
    let value = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_default() };
    let expected = value(&fs::read_to_string(&path).unwrap_or_default());
    assert!(
        value(&actual) == expected,
        "{case} differs; write it anew with UPDATE_GOLDEN=1 and look at the difference"
    );
}

fn mission(name: &str) -> PathBuf {
    Path::new(MISSION).join(format!("{name}.yaml"))
}

fn input(name: &str) -> PathBuf {
    Path::new(GOLDEN).join(format!("{name}.yaml"))
}

fn reviews() -> Vec<Registration> {
    vec![
        running("reviews", "v1", 9080, "10.0.0.1:9080"),
        running("reviews", "v2", 9080, "10.0.0.2:9080"),
        running("reviews", "v3", 9080, "10.0.0.3:9080"),
    ]
}

fn webapp() -> Vec<Registration> {
    vec![
        running("webapp", "v1", 7000, "10.0.1.1:7000"),
        running("webapp-v1", "v1", 7000, "10.0.1.1:7000"),
        running("webapp-v2", "v2", 7000, "10.0.1.2:7000"),
    ]
}

#[test]
fn mission_virtual_service_without_subsets_names_clusters_that_do_not_exist() {
    check("mission-virtual-service", &[mission("virtual-service")], &reviews(), &["reviews:9080"]);
}

#[test]
fn mission_destination_rule_alone_sets_the_balancer() {
    check("mission-destination-rule", &[mission("destination-rule")], &reviews(), &["reviews:9080"]);
}

#[test]
fn mission_virtual_service_and_destination_rule_together() {
    let inputs = [mission("virtual-service"), mission("destination-rule")];
    check("mission-reviews", &inputs, &reviews(), &["reviews:9080", "reviews.default.svc.cluster.local:9080"]);
}

#[test]
fn mission_gateway_is_accepted_and_said_not_to_be_served() {
    check("mission-gateway", &[mission("gateway")], &[], &["bookinfo.example.com:80"]);
}

#[test]
fn mission_service_entry_is_resolved_and_verified() {
    check("mission-service-entry", &[mission("service-entry")], &[], &["api.example.com:443", "api.example.com:80"]);
}

#[test]
fn mission_service_profile_classifies_and_retries_nothing() {
    check("mission-service-profile", &[mission("service-profile")], &webapp(), &["webapp:7000"]);
}

#[test]
fn mission_traffic_split_gives_nine_to_one() {
    check("mission-traffic-split", &[mission("traffic-split")], &webapp(), &["webapp:7000"]);
}

#[test]
fn mission_profile_and_split_together() {
    let inputs = [mission("service-profile"), mission("traffic-split")];
    check("mission-webapp", &inputs, &webapp(), &["webapp:7000"]);
}

#[test]
fn destination_rule_blocks_merge_by_subset_and_port() {
    check("merge", &[input("merge")], &[], &["shop:80", "shop:81"]);
}

#[test]
fn every_http_route_field() {
    check("http-route", &[input("http-route")], &[], &["shop:80"]);
}

#[test]
fn a_delegate_is_joined_with_its_root() {
    check("delegate", &[input("delegate")], &[], &["shop:80"]);
}

#[test]
fn raw_connections_follow_tcp_and_tls_routes() {
    check("tcp", &[input("tcp")], &[], &["mysql.example.com:3306", "mysql.example.com:443"]);
}

#[test]
fn service_entries_of_every_resolution() {
    let dialled = ["static.example.com:80", "a.wild.example.com:443", "db.example.com:5432", "one.example.com:80"];
    check("service-entry", &[input("service-entry")], &[], &dialled);
}

#[test]
fn who_may_call_by_linkerds_policy() {
    let registrations = [running("web", "v1", 8080, "10.0.0.1:8080"), running("db", "v1", 5432, "10.0.0.2:5432")];
    check_inbound("linkerd-policy", &registrations);
}

#[test]
fn who_may_call_by_istios_policy() {
    let registrations = [running("web", "v1", 8080, "10.0.0.1:8080"), running("db", "v1", 5432, "10.0.0.2:5432")];
    check_inbound("authorization-policy", &registrations);
}

#[test]
fn whose_tokens_are_good_by_istios_policy() {
    let registrations = [running("web", "v1", 8080, "10.0.0.1:8080"), running("db", "v1", 5432, "10.0.0.2:5432")];
    check_inbound("request-authentication", &registrations);
}
