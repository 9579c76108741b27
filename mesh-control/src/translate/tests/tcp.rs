//! Where raw connections go.

use super::*;

const PORTS: &str = "{name: mysql, port: 3306}, {name: tls, port: 443}, {name: http, port: 80}, {name: grpc, port: 81}, \
                     {name: https, port: 8443}, {port: 9000}";

fn shop(rules: &[String]) -> World {
    let subsets = "{host: a, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}";
    let subsets = istio("DestinationRule", "a", "default", subsets);
    world(
        &(service("a", "default", PORTS)
            + &service("b", "default", "{name: tcp, port: 5000}")
            + &subsets
            + &rules.concat()),
    )
}

fn rules(spec: &str) -> String {
    istio("VirtualService", "a", "default", &format!("{{hosts: [a], {spec}}}"))
}

/// The clusters that raw connections go to, each with its weight, in short.
fn raw(world: &World, scope: &NodeScope, dialled: &str) -> Option<String> {
    let forward = world.listener(scope, dialled)?.tcp?;
    assert_eq!(forward.max_connect_attempts.get(), 3);
    let clusters = forward.clusters().iter().map(|share| format!("{} {}", share.name, share.weight));
    let clusters: Vec<String> = clusters.collect();
    Some(clusters.join(", ").replace(".default.svc.cluster.local", "").replace("outbound|", ""))
}

/// What there is to say but that a port has no protocol, which is wanted here.
fn said(world: &World) -> Vec<String> {
    let others = world.findings().iter().filter(|finding| finding.code != Some("IST0118"));
    others.map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
}

#[test]
fn a_port_that_is_not_declared_http_leads_to_its_host() {
    let world = shop(&[]);
    let of = |port: u16| raw(&world, &scope("default"), &format!("a:{port}"));
    assert_eq!(of(3306).as_deref(), Some("3306||a 1"));
    assert_eq!(of(443).as_deref(), Some("443||a 1"));
    assert_eq!(of(8443).as_deref(), Some("8443||a 1"));
    // A request's way is good enough for the others.
    assert_eq!([of(80), of(81), of(9000)], [None, None, None]);
    assert!(world.listener(&scope("default"), "a:80").is_some());
    // A host that nothing defines passes through, as requests do.
    assert_eq!(raw(&world, &scope("default"), "elsewhere.example.com:3306"), None);
}

#[test]
fn tcp_routes_hold_on_ports_without_tls_and_the_first_that_matches_decides() {
    let world = shop(&[rules(
        "tcp: [{match: [{port: 3306}], route: [{destination: {host: a, subset: v1}, weight: 3}, {destination: {host: a, \
         subset: v2}, weight: 1}, {destination: {host: b}}]}, {route: [{destination: {host: b}}]}]",
    )]);
    let of = |port: u16| raw(&world, &scope("default"), &format!("a:{port}"));
    assert_eq!(of(3306).as_deref(), Some("3306|v1|a 3, 3306|v2|a 1"), "a weight of 0 gets nothing");
    assert_eq!(of(9000).as_deref(), Some("5000||b 1"), "its only port");
    assert_eq!(of(443).as_deref(), Some("443||a 1"));
    assert_eq!(of(80), None, "declared HTTP");
    assert!(world.cluster(&scope("default"), "outbound|3306|v1|a.default.svc.cluster.local").is_some());
    assert_eq!(said(&world), [""; 0]);
    // Another family of rules does not notice.
    let routes = routes_of(&world, &scope("default"), "a:3306").unwrap();
    assert_eq!(first_cluster(&routes), "outbound|3306||a.default.svc.cluster.local");
}

#[test]
fn tls_routes_go_by_the_host_that_is_dialled() {
    // A name has no case.
    let tls = "{hosts: ['*.example.com'], tls: [{match: [{sniHosts: [One.Example.com], port: 443}], route: \
               [{destination: {host: b}}]}, {match: [{sniHosts: ['*.SUB.example.com']}], route: [{destination: {host: a, \
               port: {number: 443}}}]}]}";
    let entry = "{hosts: ['*.example.com'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}";
    let text = istio("VirtualService", "x", "default", tls) + &istio("ServiceEntry", "x", "default", entry);
    let world = shop(&[text, rules("tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: b}}]}]")]);
    let of = |name: &str| raw(&world, &scope("default"), name);
    assert_eq!(of("one.example.com:443").as_deref(), Some("5000||b 1"));
    assert_eq!(of("x.sub.example.com:443").as_deref(), Some("443||a 1"));
    assert_eq!(of("two.example.com:443").as_deref(), Some("443||*.example.com 1"));
    for form in ["a:443", "a.default:443", "a.default.svc.cluster.local:443", "a:8443"] {
        assert_eq!(of(form).as_deref(), Some("5000||b 1"), "{form}");
    }
    assert_eq!(of("a:3306").as_deref(), Some("3306||a 1"), "no TLS there");
}

#[test]
fn conditions_on_the_caller_are_answered_for_each_caller() {
    let to = "route: [{destination: {host: b}}]";
    for (block, labels, namespace, holds) in [
        ("{}", "", "default", true),
        ("{sourceLabels: {app: web}}", "web", "default", true),
        ("{sourceLabels: {app: web}}", "other", "default", false),
        ("{sourceNamespace: other}", "", "other", true),
        ("{sourceNamespace: other}", "", "default", false),
        ("{gateways: [edge]}", "", "default", false),
        ("{gateways: [edge, mesh]}", "", "default", true),
        ("{port: 443}", "", "default", false),
        ("{destinationSubnets: [10.0.0.0/8]}", "", "default", false),
        ("{sourceSubnet: 10.0.0.0/8}", "", "default", false),
    ] {
        let world = shop(&[rules(&format!("tcp: [{{match: [{block}], {to}}}]"))]);
        let labels = BTreeMap::from([("app".to_owned(), labels.to_owned())]);
        let caller = NodeScope { labels, ..scope(namespace) };
        let want = if holds { "5000||b 1" } else { "3306||a 1" };
        assert_eq!(raw(&world, &caller, "a.default:3306").as_deref(), Some(want), "{block}");
        let said = world.findings().iter().any(|finding| finding.message.contains("never holds"));
        assert_eq!(said, block.contains("ubnet"), "{block}: {:?}", world.findings());
    }
}

#[test]
fn a_host_that_only_raw_rules_speak_of_can_be_connected_to() {
    let alone = "{hosts: [db.example.com], tcp: [{route: [{destination: {host: b}}]}]}";
    let world = shop(&[istio("VirtualService", "x", "default", alone)]);
    assert_eq!(raw(&world, &scope("default"), "db.example.com:7").as_deref(), Some("5000||b 1"));
    let routes = routes_of(&world, &scope("default"), "db.example.com:7").unwrap();
    assert_eq!((routes.virtual_hosts.len(), forwards(&routes).len()), (1, 0), "a request has no route");
}

#[test]
fn a_raw_rule_for_a_host_without_such_a_port_is_told() {
    let world = shop(&[istio(
        "VirtualService",
        "b",
        "default",
        "{hosts: [b], tls: [{match: [{sniHosts: [b]}], route: [{destination: {host: b}}]}]}",
    )]);
    let want = "spec.hosts[0]: no port of b.default.svc.cluster.local is declared as HTTPS or TLS: the tls routes do not apply to it";
    assert_eq!(said(&world), [want]);
}

#[test]
fn what_a_raw_rule_names_must_exist() {
    for (destination, field) in [("{host: gone}", "host"), ("{host: a, subset: v9}", "subset")] {
        let world = shop(&[rules(&format!("tcp: [{{route: [{{destination: {destination}}}]}}]"))]);
        let said = said(&world);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("spec.tcp[0].route[0].destination.{field}: no ")), "{said:?}");
        assert!(said[0].ends_with(": connections sent there fail"), "{said:?}");
    }
}

#[test]
fn an_edit_of_a_raw_rule_that_leads_nowhere_leaves_the_last_good_one_in_force() {
    let of = |subset: &str| rules(&format!("tcp: [{{route: [{{destination: {{host: a, subset: {subset}}}}}]}}]"));
    let good = shop(&[of("v1")]);
    let now = shop(&[of("v9")]);
    let served = |world: &World| raw(world, &scope("default"), "a:3306");
    let kept = World::build(&settle(&good, &now).expect("something is kept"), &[]);
    assert_eq!(served(&kept).as_deref(), Some("3306|v1|a 1"));
    assert!(kept.findings().iter().any(|f| f.message.contains("the last good version of this object stays in force")));
    // The control: without what was in force the edit is all there is.
    assert_eq!(served(&now).as_deref(), Some("3306|v9|a 1"));
    assert_eq!(now.cluster(&scope("default"), "outbound|3306|v9|a.default.svc.cluster.local"), None);
}

#[test]
fn a_silent_connection_has_the_time_of_its_destinations_rule_or_envoys_hour() {
    let of = |tcp: &str| {
        let rule = format!("{{host: b, trafficPolicy: {{connectionPool: {{tcp: {{{tcp}}}}}}}}}");
        let world = shop(&[
            istio("DestinationRule", "b", "default", &rule),
            rules("tcp: [{match: [{port: 3306}], route: [{destination: {host: b}}]}]"),
        ]);
        assert_eq!(said(&world), Vec::<String>::new());
        let time = |dialled| world.listener(&scope("default"), dialled).unwrap().tcp.unwrap().idle_timeout;
        ["a:3306", "b:5000", "a:443"].map(time).map(|time| time.map(|time| time.as_secs()))
    };
    assert_eq!(of("idleTimeout: 90s"), [Some(90), Some(90), Some(3600)]);
    assert_eq!(of("idleTimeout: 0s"), [None, None, Some(3600)]);
    assert_eq!(of("maxConnections: 5"), [Some(3600); 3]);
}

#[test]
fn connections_are_kept_together_by_their_source_where_the_first_destinations_rule_says_so() {
    let of = |balancer: &str| {
        let rule = format!("{{host: b, trafficPolicy: {{loadBalancer: {balancer}}}}}");
        let world = shop(&[
            istio("DestinationRule", "b", "default", &rule),
            rules("tcp: [{match: [{port: 3306}], route: [{destination: {host: b}}]}]"),
        ]);
        ["a:3306", "b:5000", "a:443"].map(|to| world.listener(&scope("default"), to).unwrap().tcp.unwrap().by_source)
    };
    assert_eq!(of("{consistentHash: {useSourceIp: true}}"), [true, true, false]);
    assert_eq!(of("{consistentHash: {httpHeaderName: x-user}}"), [false; 3]);
    assert_eq!(of("{simple: RANDOM}"), [false; 3]);
}
