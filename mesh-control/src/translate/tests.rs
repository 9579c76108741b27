//! The rules of translation that golden files show badly: who sees what, who wins, what fails.

mod analysis;
mod authorization;
mod endpoints;
mod keep;
mod linkerd;
mod profile;
mod proxy;
mod selected;
mod tcp;
mod tokens;
mod unannounced;

use std::collections::BTreeMap;

use mesh_core::policy::{
    Balancer, ClusterChoice, Discovery, Forward, InboundTls, RouteAction, RouteConfiguration, StringMatch, UpstreamTls,
};

use super::*;

fn world(text: &str) -> World {
    with(text, &[])
}

fn with(text: &str, registrations: &[Registration]) -> World {
    World::build(&Model::from_texts([("a.yaml", text)]), registrations)
}

fn scope(namespace: &str) -> NodeScope {
    NodeScope::namespace(namespace)
}

fn service(name: &str, namespace: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{app: {name}}}, ports: [{port}]}}\n---\n"
    )
}

fn istio(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn running(service: &str, namespace: &str, port: u16, address: &str) -> Registration {
    Registration {
        service: service.into(),
        namespace: namespace.into(),
        service_port: port,
        address: address.parse().unwrap(),
        labels: BTreeMap::from([("app".into(), service.into())]),
        locality: Locality::default(),
        mesh_tls: true,
        port_protocol: "http".into(),
        workload: String::new(),
        service_account: format!("{service}-account"),
    }
}

const HTTP: &str = "{name: http, port: 80}";

fn routes_of(world: &World, scope: &NodeScope, dialled: &str) -> Option<RouteConfiguration> {
    let listener = world.listener(scope, dialled)?;
    let mesh_core::policy::RouteSource::Named(name) = listener.routes else { panic!("by name") };
    Some(world.routes(scope, &name).expect("a listener's routes exist"))
}

fn forwards(routes: &RouteConfiguration) -> Vec<&Forward> {
    let all = routes.virtual_hosts.iter().flat_map(|host| &host.routes);
    all.filter_map(|route| match &route.action {
        RouteAction::Forward(forward) => Some(&**forward),
        _ => None,
    })
    .collect()
}

fn first_cluster(routes: &RouteConfiguration) -> String {
    match &forwards(routes)[0].to {
        ClusterChoice::Cluster(name) => name.to_string(),
        other => panic!("{other:?}"),
    }
}

fn codes(world: &World) -> Vec<(&str, Option<&str>)> {
    world.findings().iter().map(|finding| (finding.field.as_str(), finding.code)).collect()
}

#[test]
fn every_dialled_form_leads_to_one_route_table() {
    let world = world(&service("reviews", "shop", HTTP));
    let name = "outbound|80||reviews.shop.svc.cluster.local";
    for form in
        ["reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local", "reviews.shop.svc.cluster.local."]
    {
        let listener = world.listener(&scope("other"), &format!("{form}:80")).expect(form);
        assert_eq!(listener.routes, mesh_core::policy::RouteSource::Named(name.into()), "{form}");
    }
    assert!(world.listener(&scope("shop"), "reviews:80").is_some());
    assert!(world.listener(&scope("other"), "reviews:80").is_none());
    assert!(world.listener(&scope("shop"), "reviews:81").is_none());
    let domains = |namespace| -> Vec<String> {
        let routes = world.routes(&scope(namespace), name).unwrap();
        routes.virtual_hosts[0].domains.iter().map(|domain| domain.as_str().to_owned()).collect()
    };
    assert!(domains("shop").contains(&"reviews".to_owned()) && domains("shop").contains(&"reviews:80".to_owned()));
    assert!(!domains("other").contains(&"reviews".to_owned()));
    assert!(domains("other").contains(&"reviews.shop:80".to_owned()));
}

#[test]
fn cluster_addresses_and_pods_of_headless_services_resolve() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, ports: [{name: http, port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.9, ports: [{name: http, port: 80}]}\n";
    let world = world(text);
    let routes = routes_of(&world, &scope("default"), "db-0.db.default.svc.cluster.local:80").unwrap();
    assert_eq!(first_cluster(&routes), "outbound|80||db.default.svc.cluster.local");
    let domains: Vec<&str> = routes.virtual_hosts[0].domains.iter().map(|domain| domain.as_str()).collect();
    assert!(domains.contains(&"*.db.default.svc.cluster.local"), "{domains:?}");
    let routes = routes_of(&world, &scope("default"), "10.0.0.9:80").unwrap();
    assert_eq!(first_cluster(&routes), "outbound|80||web.default.svc.cluster.local");
}

#[test]
fn unknown_hosts_pass_through_unless_they_can_only_be_inside() {
    let world = world(&service("reviews", "shop", HTTP));
    let client = scope("shop");
    let routes = routes_of(&world, &client, "www.example.com:443").unwrap();
    let cluster = world.cluster(&client, &first_cluster(&routes)).unwrap();
    assert!(matches!(cluster.discovery, Discovery::StrictDns(_)) && matches!(cluster.tls, UpstreamTls::Simple(_)));
    assert_eq!(cluster.telemetry.service_name, "PassthroughCluster");
    for unknown in ["nowhere:80", "nowhere.shop:80", "nowhere.shop.svc:80", "x.y.svc.cluster.local:80", "bad", "a|b:1"]
    {
        assert!(world.listener(&client, unknown).is_none(), "{unknown}");
        assert!(!world.why_missing(&client, unknown).is_empty());
    }
    let closed = Options { allow_any: false, ..Options::default() };
    let world = World::build_with(&Model::default(), &[], closed);
    assert!(world.listener(&client, "www.example.com:443").is_none());
}

#[test]
fn a_virtual_service_for_an_undefined_host_still_applies() {
    let vs = istio("VirtualService", "g", "a", "{hosts: [google.com], http: [{directResponse: {status: 418}}]}");
    let world = world(&vs);
    let routes = routes_of(&world, &scope("a"), "google.com:80").unwrap();
    assert!(matches!(&routes.virtual_hosts[0].routes[0].action, RouteAction::DirectResponse(r) if r.status == 418));
}

#[test]
fn s89_export_to_hides_services_rules_and_routes() {
    let hidden = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: own, annotations: {networking.istio.io/exportTo: \".\"}}\nspec: {ports: [{name: http, port: 80}]}\n---\n";
    let open = service("b", "own", HTTP);
    let vs = istio(
        "VirtualService",
        "b",
        "own",
        "{hosts: [b], exportTo: [friend], http: [{directResponse: {status: 418}}]}",
    );
    let world = world(&format!("{hidden}{open}{vs}"));
    assert!(world.listener(&scope("own"), "a:80").is_some());
    assert!(world.listener(&scope("other"), "a.own:80").is_none());
    assert!(world.why_missing(&scope("other"), "a.own.svc.cluster.local:80").contains("not exported"));
    let answers = |namespace| {
        let routes = routes_of(&world, &scope(namespace), "b.own:80").unwrap();
        matches!(routes.virtual_hosts[0].routes[0].action, RouteAction::DirectResponse(_))
    };
    assert!(answers("friend") && !answers("stranger"));
}

/// A tenant's DestinationRule for somebody else's host holds for that tenant's own clients, however it is exported.
#[test]
fn s89_a_rule_of_a_tenant_for_anothers_host_holds_for_its_own_clients_alone() {
    let host = "reviews.owner.svc.cluster.local";
    let base = service("reviews", "owner", HTTP);
    for export_to in ["", "exportTo: ['*'], "] {
        let spec = format!("{{host: {host}, {export_to}trafficPolicy: {{tls: {{mode: DISABLE}}}}}}");
        let world = world(&format!("{base}{}", istio("DestinationRule", "r", "tenant", &spec)));
        let tls = |namespace| world.cluster(&scope(namespace), &format!("outbound|80||{host}")).unwrap().tls;
        for other in ["owner", "client"] {
            assert!(matches!(tls(other), UpstreamTls::Auto(_)), "{other} {export_to:?}");
        }
        assert_eq!(tls("tenant"), UpstreamTls::Disable, "the control");
    }
}

/// A tenant's VirtualService for somebody else's host holds where the tenant's exports say, as in Istio, and not where the
/// owner or the client has one of narrower visibility. A short name is one of the tenant's own namespace.
#[test]
fn s89_a_route_of_a_tenant_for_anothers_host_holds_where_it_is_exported_to() {
    let base = format!("{}{}", service("reviews", "owner", HTTP), service("reviews", "tenant", HTTP));
    let route = |namespace: &str, host: &str, export_to: &str, status: u16| {
        let spec =
            format!("{{hosts: [{host}], exportTo: [{export_to}], http: [{{directResponse: {{status: {status}}}}}]}}");
        istio("VirtualService", "r", namespace, &spec)
    };
    let answers = |text: &str, namespace: &str| {
        let world = world(&format!("{base}{text}"));
        let routes = routes_of(&world, &scope(namespace), "reviews.owner:80").unwrap();
        match &routes.virtual_hosts[0].routes[0].action {
            RouteAction::DirectResponse(answer) => Some(answer.status),
            _ => None,
        }
    };
    let full = "reviews.owner.svc.cluster.local";
    let short = route("tenant", "reviews", "'*'", 418);
    assert_eq!(["owner", "client", "tenant"].map(|of| answers(&short, of)), [None; 3]);
    let own = route("tenant", full, ".", 418);
    assert_eq!(["owner", "client", "tenant"].map(|of| answers(&own, of)), [None, None, Some(418)]);
    let all = route("tenant", full, "'*'", 418);
    assert_eq!(["owner", "client", "tenant"].map(|of| answers(&all, of)), [Some(418); 3], "as in Istio");
    let kept = format!("{all}{}", route("owner", full, "., client", 404));
    assert_eq!(["owner", "client", "other"].map(|of| answers(&kept, of)), [Some(404), Some(404), Some(418)]);
}

#[test]
fn the_clients_rule_replaces_the_owners_and_both_replace_the_roots() {
    let rule = |namespace: &str, balancer: &str| {
        let host = "reviews.owner.svc.cluster.local";
        let spec = format!("{{host: {host}, trafficPolicy: {{loadBalancer: {{simple: {balancer}}}}}}}");
        istio("DestinationRule", "r", namespace, &spec)
    };
    let base = service("reviews", "owner", HTTP);
    let of = |text: &str, namespace: &str| {
        let cluster = "outbound|80||reviews.owner.svc.cluster.local";
        world(text).cluster(&scope(namespace), cluster).unwrap().balancer
    };
    let root = format!("{base}{}", rule("istio-system", "PASSTHROUGH"));
    let owner = format!("{root}{}", rule("owner", "ROUND_ROBIN"));
    let client = format!("{owner}{}", rule("client", "RANDOM"));
    assert_eq!(of(&base, "client"), Balancer::least_request());
    assert_eq!(of(&root, "client"), Balancer::Passthrough);
    assert_eq!(of(&owner, "client"), Balancer::RoundRobin);
    assert_eq!(of(&client, "client"), Balancer::Random);
    assert_eq!(of(&client, "owner"), Balancer::RoundRobin);
    // A client in the root namespace has no tier of its own before the owner's.
    assert_eq!(of(&owner, "istio-system"), Balancer::RoundRobin);
}

#[test]
fn a_specific_rule_is_not_merged_with_a_wildcard_and_rules_of_one_host_are() {
    let wild = istio(
        "DestinationRule",
        "wild",
        "default",
        "{host: '*.default.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 9}}}}",
    );
    let one = istio("DestinationRule", "one", "default", "{host: a, subsets: [{name: v1, labels: {v: '1'}}]}");
    let two = istio(
        "DestinationRule",
        "two",
        "default",
        "{host: a.default.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v1}, {name: v2}]}",
    );
    let world = world(&format!("{}{}{wild}{one}{two}", service("a", "default", HTTP), service("b", "default", HTTP)));
    let client = scope("default");
    let b = world.cluster(&client, "outbound|80||b.default.svc.cluster.local").unwrap();
    assert_eq!((b.balancer, b.breaker.max_connections), (Balancer::Random, Some(9)));
    for subset in ["v1", "v2"] {
        let a = world.cluster(&client, &format!("outbound|80|{subset}|a.default.svc.cluster.local")).unwrap();
        assert_eq!((a.balancer, a.breaker.max_connections), (Balancer::RoundRobin, None), "{subset}");
    }
    assert!(world.cluster(&client, "outbound|80|v3|a.default.svc.cluster.local").is_none());
}

#[test]
fn a_rule_with_a_workload_selector_only_holds_for_those_workloads() {
    let rule = istio(
        "DestinationRule",
        "r",
        "default",
        "{host: a, workloadSelector: {matchLabels: {app: client}}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
    );
    let world = world(&format!("{}{rule}", service("a", "default", HTTP)));
    let mut client = scope("default");
    let balancer =
        |scope: &NodeScope| world.cluster(scope, "outbound|80||a.default.svc.cluster.local").unwrap().balancer;
    assert_eq!(balancer(&client), Balancer::least_request());
    client.labels.insert("app".into(), "client".into());
    assert_eq!(balancer(&client), Balancer::Random);
}

#[test]
fn the_older_virtual_service_wins_whole_and_the_other_is_reported() {
    let vs = |name: &str, status: u16, extra: &str| {
        let text = istio(
            "VirtualService",
            name,
            "default",
            &format!("{{hosts: [a], http: [{{directResponse: {{status: {status}}}}}]{extra}}}"),
        );
        text.replace("metadata: {", "metadata: {labels: {}, ")
    };
    let young = vs("first", 201, "").replace("labels: {},", "creationTimestamp: \"2024-01-02T00:00:00Z\",");
    let old = vs("second", 202, "").replace("labels: {},", "creationTimestamp: \"2023-01-02T00:00:00Z\",");
    let world = world(&format!("{}{young}{old}", service("a", "default", HTTP)));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    assert!(matches!(&routes.virtual_hosts[0].routes[0].action, RouteAction::DirectResponse(r) if r.status == 202));
    let finding = world.findings().iter().find(|finding| finding.code == Some("IST0109")).unwrap();
    assert_eq!(finding.name, "first");
}

#[test]
fn routes_for_other_callers_leave_the_table_and_the_rest_is_404() {
    let vs = istio(
        "VirtualService",
        "a",
        "default",
        "{hosts: [a], http: [{match: [{sourceLabels: {app: x}}], directResponse: {status: 201}}, {match: [{uri: {exact: /only}}], directResponse: {status: 202}}]}",
    );
    let world = world(&format!("{}{vs}", service("a", "default", HTTP)));
    let mut client = scope("default");
    assert_eq!(routes_of(&world, &client, "a:80").unwrap().virtual_hosts[0].routes.len(), 1);
    client.labels.insert("app".into(), "x".into());
    // The first route now takes everything this client can send: nothing falls through it.
    let routes = routes_of(&world, &client, "a:80").unwrap();
    assert_eq!(routes.virtual_hosts[0].routes[0].matcher.source_labels["app"], "x");
}

#[test]
fn a_virtual_service_about_others_only_leaves_plain_forwarding() {
    let vs = istio(
        "VirtualService",
        "a",
        "default",
        "{hosts: [a], http: [{match: [{sourceNamespace: other}], directResponse: {status: 201}}]}",
    );
    let gateway_only = vs.replace("hosts: [a]", "hosts: [a], gateways: [edge]");
    for text in [vs, gateway_only] {
        let world = world(&format!("{}{text}", service("a", "default", HTTP)));
        let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
        assert_eq!(first_cluster(&routes), "outbound|80||a.default.svc.cluster.local");
    }
}

#[test]
fn mirrors_and_cors_of_a_route_are_carried_over_and_a_root_gives_what_its_delegate_lacks() {
    let cors = "corsPolicy: {allowOrigins: [{exact: 'https://a.test'}], allowMethods: [GET], allowHeaders: [x-one], exposeHeaders: [x-two], maxAge: 10m, allowCredentials: true, unmatchedPreflights: IGNORE}";
    let mirror = "mirrors: [{destination: {host: b}, percentage: {value: 5}}, {destination: {host: c}}]";
    let plain = format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], {cors}, {mirror}}}]}}");
    let root = format!("{{hosts: [a], http: [{{delegate: {{name: inner}}, {cors}, {mirror}}}]}}");
    let inner = istio("VirtualService", "inner", "default", "{http: [{route: [{destination: {host: a}}]}]}");
    for (spec, more) in [(plain, String::new()), (root, inner)] {
        let services = ["a", "b", "c"].map(|name| service(name, "default", HTTP)).concat();
        let world = world(&format!("{services}{}{more}", istio("VirtualService", "a", "default", &spec)));
        let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
        let forward = forwards(&routes)[0];
        let cluster = |name: &str| format!("outbound|80||{name}.default.svc.cluster.local");
        let mirrors: Vec<_> =
            forward.mirrors.iter().map(|m| (m.cluster.to_string(), m.share.get(), m.shadow_host)).collect();
        assert_eq!(mirrors, [(cluster("b"), 50_000, false), (cluster("c"), 1_000_000, false)], "{spec}");
        let cors = forward.cors.as_ref().unwrap();
        assert_eq!((cors.allow_origins.len(), cors.max_age), (1, Some(std::time::Duration::from_secs(600))), "{spec}");
        assert_eq!((&*cors.allow_headers, &*cors.expose_headers), (&["x-one".into()][..], &["x-two".into()][..]));
        assert!(cors.allow_credentials && !cors.forward_unmatched, "{spec}");
        assert!(!world.findings().iter().any(|finding| finding.message.contains("not enforced")), "{spec}");
    }
}

#[test]
fn http_routes_do_not_apply_to_tcp_and_tls_ports() {
    let vs = istio("VirtualService", "a", "default", "{hosts: [a], http: [{directResponse: {status: 201}}]}");
    let world = world(&format!("{}{vs}", service("a", "default", "{name: tcp, port: 80}")));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    assert_eq!(first_cluster(&routes), "outbound|80||a.default.svc.cluster.local");
    assert!(world.findings().iter().any(|f| f.message.contains("the http routes do not apply")));
}

fn profile(extra: &str) -> String {
    format!(
        "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {{name: a.default.svc.cluster.local}}\nspec: {{routes: [{{name: r, condition: {{any: [{{pathRegex: /x}}, {{method: POST}}]}}, timeout: 2s{extra}}}]}}\n---\n"
    )
}

#[test]
fn a_service_s_failure_accrual_reaches_its_clusters_unless_it_has_a_profile() {
    let annotated = service("a", "default", HTTP)
        .replace("{name: a,", "{name: a, annotations: {balancer.linkerd.io/failure-accrual: consecutive},");
    for (text, want) in [(annotated.clone(), true), (format!("{annotated}{}", profile("")), false)] {
        let world = world(&text);
        let cluster = cluster::cluster(&world, &scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap();
        assert_eq!(cluster.accrual.is_some(), want, "{text}");
    }
}

#[test]
fn a_profile_means_no_implicit_retries_and_a_default_route() {
    let world = world(&format!("{}{}", service("a", "default", HTTP), profile("")));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    let host = &routes.virtual_hosts[0];
    assert_eq!(host.retry, None);
    let names: Vec<&str> = host.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["r", "r", "[DEFAULT]"]);
    assert!(host.routes.iter().all(|route| route.stat_prefix == route.name), "each is counted on its own");
    // That is said: a client that is told nothing sends some requests once more.
    assert!(forwards(&routes).iter().all(|forward| forward.retry.as_ref().is_some_and(|retry| retry.attempts == 0)));
    assert_eq!(routes.retry_budget, None);
}

#[test]
fn a_match_with_a_stat_prefix_is_counted_on_its_own() {
    let outer = "{match: [{uri: {prefix: /a}, statPrefix: outer}], delegate: {name: inner, namespace: default}}";
    let own = "{match: [{uri: {prefix: /b}, statPrefix: own}, {uri: {prefix: /c}}], route: [{destination: {host: a}}]}";
    let inner = "{http: [{match: [{uri: {prefix: /a/x}, statPrefix: inner}, {uri: {prefix: /a/y}}], route: [{destination: {host: a}}]}]}";
    let text = service("a", "default", HTTP)
        + &istio("VirtualService", "inner", "default", inner)
        + &istio("VirtualService", "a", "default", &format!("{{hosts: [a], http: [{outer}, {own}]}}"));
    let routes = routes_of(&world(&text), &scope("default"), "a:80").unwrap();
    let counted: Vec<&str> = routes.virtual_hosts[0].routes.iter().map(|route| route.stat_prefix.as_str()).collect();
    assert_eq!(counted, ["inner", "outer", "own", ""]);
}

#[test]
fn a_retryable_route_retries_classified_failures_within_a_budget() {
    let world = world(&format!("{}{}", service("a", "default", HTTP), profile(", isRetryable: true")));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    let retry = forwards(&routes)[0].retry.clone().unwrap();
    assert!(retry.on.classified_failure && !retry.on.connect_failure && retry.attempts > 0);
    assert_eq!(forwards(&routes)[2].retry.as_ref().map(|retry| retry.attempts), Some(0), "the default route");
    assert_eq!(routes.retry_budget.unwrap().min_retries_per_second, 10);
}

#[test]
fn a_virtual_service_beats_a_profile_and_a_split_with_findings() {
    let vs = istio("VirtualService", "a", "default", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}");
    let split = "apiVersion: split.smi-spec.io/v1alpha1\nkind: TrafficSplit\nmetadata: {name: s}\nspec: {service: a, backends: [{service: a, weight: 1}]}\n---\n";
    let world = world(&format!("{}{}{vs}{split}", service("a", "default", HTTP), profile("")));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    assert_eq!(routes.virtual_hosts[0].retry, Some(mesh_core::policy::RetryPolicy::istio_default()));
    let kinds: Vec<&str> = world
        .findings()
        .iter()
        .filter(|finding| finding.message.contains("VirtualService default/a holds"))
        .map(|finding| finding.kind.as_str())
        .collect();
    assert_eq!(kinds, ["ServiceProfile", "TrafficSplit"]);
}

#[test]
fn a_split_leaves_out_backends_without_the_port_and_keeps_missing_ones() {
    let split = "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {name: s}\nspec: {service: a, backends: [{service: a, weight: 1}, {service: b, weight: 1}, {service: gone, weight: 2}, {service: c, weight: 0}]}\n---\n";
    let text = format!("{}{}{split}", service("a", "default", HTTP), service("b", "default", "{name: http, port: 81}"));
    let world = world(&text);
    let client = scope("default");
    let routes = routes_of(&world, &client, "a:80").unwrap();
    let ClusterChoice::Weighted(list) = &forwards(&routes)[0].to else { panic!("weighted") };
    let list: Vec<(String, u32)> = list.entries().iter().map(|entry| (entry.name.to_string(), entry.weight)).collect();
    let name = |service: &str| format!("outbound|80||{service}.default.svc.cluster.local");
    assert_eq!(list, [(name("a"), 10_000), (name("gone"), 20_000)]);
    assert!(world.cluster(&client, &name("gone")).is_none());
    assert!(codes(&world).contains(&("spec.backends[2].service", Some("IST0101"))));
}

#[test]
fn missing_references_are_findings_with_codes() {
    let vs = istio(
        "VirtualService",
        "a",
        "default",
        "{hosts: [a.default], http: [{route: [{destination: {host: a, subset: v9}, weight: 1}, {destination: {host: gone}, weight: 1}, {destination: {host: a, port: {number: 9}}, weight: 1}]}]}",
    );
    let rules = istio("DestinationRule", "gone", "default", "{host: gone}")
        + &istio("DestinationRule", "a", "default", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}");
    let text = format!("{}{vs}{rules}", service("a", "default", HTTP));
    let world = with(&text, &[running("a", "default", 80, "10.0.0.1:1")]);
    let codes = codes(&world);
    for expected in [
        ("spec.http[0].route[0].destination.subset", Some("IST0101")),
        ("spec.http[0].route[1].destination.host", Some("IST0101")),
        ("spec.http[0].route[2].destination.port.number", Some("IST0101")),
        ("spec.host", Some("IST0174")),
        ("spec.subsets[0]", Some("IST0173")),
    ] {
        assert!(codes.contains(&expected), "{expected:?} not in {codes:?}");
    }
    assert!(
        world
            .findings()
            .iter()
            .any(|f| f.field == "spec.hosts[0]" && f.message.contains("a.default.svc.cluster.local"))
    );
}

#[test]
fn consistent_hashing_puts_its_source_on_the_route_and_keeps_the_endpoint_on_retry() {
    let rule = istio(
        "DestinationRule",
        "a",
        "default",
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}",
    );
    let vs = istio("VirtualService", "a", "default", "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}");
    let world = world(&format!("{}{rule}{vs}", service("a", "default", HTTP)));
    let routes = routes_of(&world, &scope("default"), "a:80").unwrap();
    let forward = forwards(&routes)[0];
    assert_eq!(forward.hash.len(), 1);
    assert!(!forward.retry.as_ref().unwrap().avoid_previous_hosts);
}

/// As gRPC and this library do by themselves, and an Envoy only if it is asked.
#[test]
fn a_ring_goes_by_the_weights_of_localities() {
    let weighted = |balancer: &str| {
        let rule = format!("{{host: a, trafficPolicy: {{loadBalancer: {balancer}}}}}");
        let world = world(&(service("a", "default", HTTP) + &istio("DestinationRule", "a", "default", &rule)));
        world.cluster(&scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap().locality.weighted
    };
    assert!(weighted("{consistentHash: {httpHeaderName: x-user}}"));
    assert!(!weighted("{consistentHash: {httpHeaderName: x-user, maglev: {}}}"));
    assert!(!weighted("{simple: LEAST_REQUEST}"));
}

#[test]
fn consistent_hashing_holds_under_a_profile_and_a_split_too() {
    let rule = |host: &str| {
        let policy = "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}";
        istio("DestinationRule", host, "default", &format!("{{host: {host}, trafficPolicy: {policy}}}"))
    };
    let services = service("a", "default", HTTP) + &service("b", "default", HTTP);
    let split = "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {name: a}\nspec: {service: a, backends: [{service: b, weight: 1}]}\n---\n".to_owned();
    for (rules, ruled) in [
        (profile(", isRetryable: true"), "a"),
        (split.clone(), "b"),
        (profile(", isRetryable: true") + &split, "b"),
        (String::new(), "a"),
    ] {
        let routes =
            |rule: &str| routes_of(&world(&(services.clone() + rule + &rules)), &scope("default"), "a:80").unwrap();
        let with = routes(&rule(ruled));
        for forward in forwards(&with) {
            assert_eq!(forward.hash.len(), 1, "{rules}");
            let retries = forward.retry.as_ref().filter(|retry| retry.attempts > 0);
            assert!(retries.is_none_or(|retry| !retry.avoid_previous_hosts), "{rules}");
        }
        // The control: without the rule of whoever answers there is nothing to hash.
        let other = if ruled == "a" { "b" } else { "a" };
        assert!(forwards(&routes(&rule(other))).iter().all(|forward| forward.hash.is_empty()), "{rules}");
    }
}

#[test]
fn a_mirror_that_leads_nowhere_is_told_where_it_is_written() {
    for (written, field) in [
        ("mirror: {host: gone}", "spec.http[0].mirror.host"),
        (
            "mirrors: [{destination: {host: a}, percentage: {value: 0}}, {destination: {host: gone}}]",
            "spec.http[0].mirrors[1].destination.host",
        ),
    ] {
        let spec = format!("{{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], {written}}}]}}");
        let world = world(&(service("a", "default", HTTP) + &istio("VirtualService", "a", "default", &spec)));
        let missing: Vec<_> = world.findings().iter().filter(|finding| finding.code == Some("IST0101")).collect();
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert_eq!(missing[0].field, field);
    }
}

#[test]
fn a_rule_for_a_host_that_nobody_has_is_told() {
    let vs = |host: &str| {
        istio(
            "VirtualService",
            "r",
            "default",
            &format!("{{hosts: [{host}], http: [{{route: [{{destination: {{host: a}}}}]}}]}}"),
        )
    };
    let split = |root: &str| {
        format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: s}}\nspec: {{service: {root}, backends: [{{service: a, weight: 1}}]}}\n---\n"
        )
    };
    for (rule, field, told) in [
        (vs("gone"), "spec.hosts[0]", true),
        (vs("a"), "spec.hosts[0]", false),
        (vs("'*.example.com'"), "spec.hosts[0]", false),
        (split("gone"), "spec.service", true),
        (split("a"), "spec.service", false),
    ] {
        let world = world(&format!("{}{rule}", service("a", "default", HTTP)));
        let found = world.findings().iter().filter(|found| found.field == field);
        let found: Vec<_> = found.filter(|found| found.message.contains("for nothing")).collect();
        assert_eq!(found.len(), usize::from(told), "{rule}: {:?}", world.findings());
    }
}
