//! Edits whose references lead nowhere: what was in force stays, and nothing else does.

use super::*;

/// A world that follows `before`, from manifests and running processes.
fn then(before: &World, text: &str, registrations: &[Registration]) -> World {
    let world = with(text, registrations);
    settle(before, &world).map_or(world, |kept| World::build(&kept, registrations))
}

fn route_to(destination: &str) -> String {
    let spec = format!("{{hosts: [a], http: [{{route: [{{destination: {destination}}}]}}]}}");
    istio("VirtualService", "a", "default", &spec)
}

fn subsets(names: &[&str]) -> String {
    let list: Vec<String> = names.iter().map(|name| format!("{{name: {name}, labels: {{version: {name}}}}}")).collect();
    istio("DestinationRule", "a", "default", &format!("{{host: a, subsets: [{}]}}", list.join(", ")))
}

fn shop(rest: &[String]) -> String {
    service("a", "default", HTTP) + &rest.concat()
}

/// The cluster that requests to `a:80` go to, and whether it exists.
fn served(world: &World) -> (String, bool) {
    let client = scope("default");
    let routes = routes_of(world, &client, "a:80").unwrap();
    let name = match &forwards(&routes)[0].to {
        ClusterChoice::Cluster(name) => name.to_string(),
        ClusterChoice::Weighted(list) => list.entries()[0].name.to_string(),
        other => panic!("{other:?}"),
    };
    let exists = world.cluster(&client, &name).is_some();
    (name.replace(".default.svc.cluster.local", ""), exists)
}

fn broken(world: &World) -> Vec<String> {
    let broken = world.findings().iter().filter(|finding| finding.code == Some("IST0101"));
    broken.map(|finding| format!("{} {}: {}", finding.name, finding.field, finding.message)).collect()
}

#[test]
fn an_edit_to_a_missing_subset_host_or_port_leaves_the_last_good_version_in_force() {
    let good = world(&shop(&[route_to("{host: a, subset: v1}"), subsets(&["v1"])]));
    for (destination, field, says) in [
        ("{host: a, subset: v9}", "subset", "no DestinationRule defines subset \"v9\""),
        ("{host: gone}", "host", "no Service or ServiceEntry \"gone.default.svc.cluster.local\""),
        ("{host: a, subset: v1, port: {number: 9}}", "port.number", "a.default.svc.cluster.local has no port 9"),
    ] {
        let text = shop(&[route_to(destination), subsets(&["v1"])]);
        let now = then(&good, &text, &[]);
        assert_eq!(served(&now), ("outbound|80|v1|a".into(), true), "{destination}");
        let said = broken(&now);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("a spec.http[0].route[0].destination.{field}: {says}")), "{said:?}");
        assert!(said[0].ends_with("the last good version of this object stays in force until there is"), "{said:?}");
        // The control: without what was in force the edit is all there is, and leads nowhere.
        assert!(!served(&world(&text)).1, "{destination}");
    }
}

#[test]
fn a_held_edit_takes_effect_when_what_it_names_exists() {
    let good = world(&shop(&[route_to("{host: a, subset: v1}"), subsets(&["v1"])]));
    let edited = shop(&[route_to("{host: a, subset: v9}"), subsets(&["v1"])]);
    let held = then(&good, &edited, &[]);
    let held = then(&held, &edited, &[]);
    assert_eq!(served(&held).0, "outbound|80|v1|a", "asked again, the answer is the same");
    let now = then(&held, &shop(&[route_to("{host: a, subset: v9}"), subsets(&["v1", "v9"])]), &[]);
    assert_eq!((served(&now), broken(&now)), (("outbound|80|v9|a".into(), true), Vec::new()));

    // What it names may also be a process that starts.
    let to_b = shop(&[route_to("{host: b, port: {number: 81}}")]);
    let good = world(&shop(&[route_to("{host: a}")]));
    let held = then(&good, &to_b, &[]);
    assert_eq!(served(&held).0, "outbound|80||a");
    let now = then(&held, &to_b, &[running("b", "default", 81, "10.0.0.1:1")]);
    assert_eq!((served(&now), broken(&now)), (("outbound|81||b".into(), true), Vec::new()));
    // And when it is gone again the edit stays: it has been in force.
    let now = then(&now, &to_b, &[]);
    assert_eq!(served(&now), ("outbound|81||b".into(), false));
}

#[test]
fn an_object_that_was_never_good_works_as_far_as_it_can() {
    let spec = "{hosts: [a], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: a, subset: v9}}]}, {route: [{destination: {host: a, subset: v1}}]}]}";
    let half = |spec: &str| shop(&[istio("VirtualService", "a", "default", spec), subsets(&["v1"])]);
    let before = world(&shop(&[subsets(&["v1"])]));
    let now = then(&before, &half(spec), &[]);
    let client = scope("default");
    let routes = routes_of(&now, &client, "a:80").unwrap();
    let exist: Vec<bool> = forwards(&routes)
        .iter()
        .map(|forward| match &forward.to {
            ClusterChoice::Cluster(name) => now.cluster(&client, name.as_str()).is_some(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(exist, [false, true]);
    assert!(broken(&now)[0].ends_with("requests sent there get 503"));
    // A later edit that breaks nothing more is taken.
    let now = then(&now, &half(&spec.replace("/x", "/y")), &[]);
    let routes = routes_of(&now, &client, "a:80").unwrap();
    let first = &routes.virtual_hosts[0].routes[0].matcher.path;
    assert_eq!(*first, mesh_core::policy::PathMatch::Prefix("/y".into()));
}

#[test]
fn a_rule_whose_subset_is_in_use_stays_until_it_is_not() {
    let routed = route_to("{host: a, subset: v1}");
    let good = world(&shop(&[routed.clone(), subsets(&["v1"])]));
    for (rules, says) in [
        (subsets(&["v2"]), "a spec.subsets: subset \"v1\" is no longer defined, but VirtualService default/a uses it"),
        (String::new(), "a : removed, but VirtualService default/a uses its subset \"v1\""),
    ] {
        let text = shop(&[routed.clone(), rules.clone()]);
        let now = then(&good, &text, &[]);
        assert_eq!(served(&now), ("outbound|80|v1|a".into(), true), "{rules}");
        let said = broken(&now);
        assert!(said.len() == 1 && said[0].starts_with(says), "{said:?}");
        // The control.
        assert!(!served(&world(&text)).1);
        // Nobody uses it any more.
        let now = then(&now, &shop(&[route_to("{host: a}"), rules]), &[]);
        assert_eq!(broken(&now), [""; 0]);
        assert!(now.cluster(&scope("default"), "outbound|80|v1|a.default.svc.cluster.local").is_none());
    }
    // Subset and route renamed one after the other: no gap, and no trace.
    let now = then(&good, &shop(&[routed, subsets(&["v2"])]), &[]);
    let now = then(&now, &shop(&[route_to("{host: a, subset: v2}"), subsets(&["v2"])]), &[]);
    assert_eq!((served(&now), broken(&now)), (("outbound|80|v2|a".into(), true), Vec::new()));
    // Both broken at once: both stay.
    let now = then(&now, &shop(&[route_to("{host: a, subset: v9}"), subsets(&["v3"])]), &[]);
    assert_eq!((served(&now), broken(&now).len()), (("outbound|80|v2|a".into(), true), 2));
    // Another rule may define it instead.
    let other = subsets(&["v2"]).replace("name: a,", "name: b,");
    let now = then(&now, &shop(&[route_to("{host: a, subset: v2}"), other]), &[]);
    assert_eq!((served(&now), broken(&now)), (("outbound|80|v2|a".into(), true), Vec::new()));
}

#[test]
fn splits_and_overrides_to_unknown_backends_are_held_too() {
    let split = |backend: &str| {
        format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: s}}\nspec: {{service: a, backends: [{{service: {backend}, weight: 1}}]}}\n---\n"
        )
    };
    let profile = |host: &str| {
        format!(
            "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {{name: a.default.svc.cluster.local}}\nspec: {{dstOverrides: [{{authority: '{host}.default.svc.cluster.local:80', weight: 1}}]}}\n---\n"
        )
    };
    let b = service("b", "default", HTTP);
    for (good, bad) in [(split("b"), split("c")), (profile("b"), profile("c"))] {
        let text = shop(&[b.clone(), bad.clone()]);
        let now = then(&world(&shop(&[b.clone(), good])), &text, &[]);
        assert_eq!(served(&now), ("outbound|80||b".into(), true), "{bad}");
        assert!(broken(&now).len() == 1 && broken(&now)[0].contains("stays in force"), "{:?}", broken(&now));
        // The control.
        assert_eq!(served(&world(&text)), ("outbound|80||c".into(), false), "{bad}");
        assert_eq!(broken(&world(&text)).len(), 1);
    }
}

#[test]
fn what_was_removed_is_gone_and_a_route_that_lost_its_service_is_told() {
    let good = world(&shop(&[route_to("{host: b}"), service("b", "default", HTTP)]));
    let now = then(&good, &shop(&[]), &[]);
    assert_eq!(served(&now), ("outbound|80||a".into(), true));
    let now = then(&good, &shop(&[route_to("{host: b}")]), &[]);
    assert_eq!(served(&now), ("outbound|80||b".into(), false));
    assert!(broken(&now)[0].ends_with("requests sent there get 503"));
}
