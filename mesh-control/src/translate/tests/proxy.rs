//! What an Envoy is told: everything it may see, and the routes of a whole port.

use super::*;

fn envoy(namespace: &str) -> NodeScope {
    NodeScope { dialect: Dialect::Envoy, ..scope(namespace) }
}

fn domains(routes: &RouteConfiguration) -> Vec<Vec<&str>> {
    routes.virtual_hosts.iter().map(|host| host.domains.iter().map(|domain| domain.as_str()).collect()).collect()
}

const TWO_PORTS: &str = "{name: http, port: 80}, {name: grpc, port: 9080}, {name: dns, port: 53, protocol: UDP}";

#[test]
fn a_proxy_sees_every_cluster_of_its_namespace_and_a_proxyless_client_names_its_own() {
    let hidden = "apiVersion: v1\nkind: Service\nmetadata: {name: secret, namespace: other, annotations: \
                  {networking.istio.io/exportTo: \".\"}}\nspec: {ports: [{name: http, port: 80}]}\n---\n";
    let subsets = "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}";
    let text =
        service("reviews", "default", TWO_PORTS) + hidden + &istio("DestinationRule", "reviews", "default", subsets);
    let world = world(&text);
    let reviews = "reviews.default.svc.cluster.local";
    let own: Vec<String> = ["80|v1", "80|", "9080|v1", "9080|"].map(|part| format!("outbound|{part}|{reviews}")).into();
    assert_eq!(world.proxy_clusters(&envoy("default")), own);
    assert!(own.iter().all(|name| world.cluster(&envoy("default"), name).is_some()));
    assert!(world.proxy_clusters(&scope("default")).is_empty());
    let other = world.proxy_clusters(&envoy("other"));
    assert!(other.contains(&"outbound|80||secret.other.svc.cluster.local".to_owned()), "{other:?}");
}

#[test]
fn the_routes_of_a_port_are_those_of_every_host_that_has_it() {
    let split = "{hosts: [reviews], http: [{route: [{destination: {host: reviews-v1}, weight: 80}, {destination: \
                 {host: reviews-v2}, weight: 20}]}]}";
    let text = ["reviews", "reviews-v1", "reviews-v2"].map(|name| service(name, "default", TWO_PORTS)).concat()
        + &service("tcp", "default", "{name: tcp, port: 9080}")
        + &istio("VirtualService", "reviews", "default", split);
    let world = world(&text);
    let routes = world.routes(&envoy("default"), "9080").unwrap();
    let names: Vec<&str> = routes.virtual_hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["reviews-v1", "reviews-v2", "reviews"].map(|n| format!("{n}.default.svc.cluster.local:9080")));
    let forms = &domains(&routes)[2];
    for form in ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"] {
        assert!(forms.contains(&form) && forms.contains(&format!("{form}:9080").as_str()), "{form}: {forms:?}");
    }
    // The same rules as for a proxyless client of the one host.
    let single = "outbound|9080||reviews.default.svc.cluster.local";
    let single = world.routes(&scope("default"), single).unwrap();
    assert_eq!(routes.virtual_hosts[2].routes, single.virtual_hosts[0].routes);
    assert!(matches!(&routes.virtual_hosts[2].routes[0].action,
        RouteAction::Forward(forward) if matches!(&forward.to, ClusterChoice::Weighted(_))));

    // Only a proxy asks for a port, and a port nobody has is an empty table.
    assert!(world.routes(&scope("default"), "9080").is_none());
    assert_eq!(world.routes(&envoy("default"), "1").unwrap().virtual_hosts, []);
    assert!(world.routes(&envoy("default"), "0").is_none() && world.routes(&envoy("default"), "x").is_none());
}

#[test]
fn a_domain_is_listed_once_and_belongs_to_the_host_that_is_named_so() {
    let entry = "{hosts: [reviews.default], ports: [{number: 9080, name: http, protocol: HTTP}], resolution: DNS}";
    let alone = "{hosts: [virtual.example.com], http: [{route: [{destination: {host: reviews}}]}]}";
    let text = service("reviews", "default", TWO_PORTS)
        + &istio("ServiceEntry", "taken", "default", entry)
        + &istio("VirtualService", "virtual", "default", alone);
    let world = world(&text);
    let routes = world.routes(&envoy("default"), "9080").unwrap();
    let all: Vec<&str> = domains(&routes).concat();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "{all:?}");
    let of = |name: &str| routes.virtual_hosts.iter().find(|host| host.domains.iter().any(|d| d.as_str() == name));
    assert_eq!(of("reviews.default").unwrap().name, "reviews.default:9080");
    assert_eq!(of("reviews").unwrap().name, "reviews.default.svc.cluster.local:9080");
    assert!(of("virtual.example.com").is_some(), "a host that only a VirtualService speaks of");
}

#[test]
fn listeners_are_opened_where_the_proxy_wants_them_and_only_there() {
    let world = world(&service("reviews", "default", TWO_PORTS));
    let node = NodeScope { outbound_listen: "127.0.0.1".parse().ok(), ..envoy("default") };
    assert_eq!(world.proxy_listeners(&node), ["127.0.0.1:80", "127.0.0.1:9080"]);
    let listener = world.proxy_listener(&node, "127.0.0.1:9080").unwrap();
    assert_eq!((listener.address.port(), listener.routes.as_str()), (9080, "9080"));
    assert_eq!(world.proxy_listener(&node, "127.0.0.1:53"), None);
    assert_eq!(world.proxy_listener(&node, "0.0.0.0:9080"), None);
    assert!(world.proxy_listeners(&envoy("default")).is_empty());
}
