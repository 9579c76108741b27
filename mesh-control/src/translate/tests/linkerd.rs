//! Linkerd's inbound policy from manifest to decision.

use mesh_core::policy::AuthorizationAction;

use super::authorization::{Call, GET, denied, denied_raw, inbound};
use super::*;

fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Server" | "HTTPRoute" => "v1beta1",
        "ServerAuthorization" => "v1beta1",
        _ => "v1alpha1",
    };
    format!(
        "apiVersion: policy.linkerd.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop, labels: {{tier: web}}}}\nspec: {spec}\n---\n"
    )
}

fn server(spec: &str) -> String {
    object("Server", "http", &format!("{{podSelector: {{matchLabels: {{app: a}}}}, port: 8080{spec}}}"))
}

/// Lets `who` call the target.
fn authorize(name: &str, target: &str, who: &str) -> String {
    object("AuthorizationPolicy", name, &format!("{{targetRef: {target}, requiredAuthenticationRefs: [{who}]}}"))
}

const SERVER: &str = "{group: policy.linkerd.io, kind: Server, name: http}";
const IDENTITIES: &str = "{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: web}";
const NETWORKS: &str = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: near}";
const PLAIN: Call = Call { peer: "", ..GET };
const OTHER: Call = Call { peer: "cluster.local/ns/other/sa/x", ..GET };

fn web() -> String {
    object("MeshTLSAuthentication", "web", "{identities: [web.shop.serviceaccount.identity.linkerd.cluster.local]}")
}

/// Whether each call passes: from the account `web` of `shop`, from another namespace, without an identity.
fn passes(text: &str) -> (bool, bool, bool) {
    let world = world(text);
    let listener = inbound(&world, "shop");
    let passes = |call| denied(&listener, call).is_none();
    (passes(GET), passes(OTHER), passes(PLAIN))
}

#[test]
fn a_server_closes_its_port_to_those_whom_nobody_authorizes() {
    assert_eq!(passes(""), (true, true, true), "no Server");
    assert_eq!(passes(&server("")), (false, false, false));
    // Another port, other pods.
    assert_eq!(passes(&server("").replace("8080", "8081")), (true, true, true));
    assert_eq!(passes(&server("").replace("app: a", "app: b")), (true, true, true));
    let selector = |expression: &str| {
        object("Server", "http", &format!("{{podSelector: {{matchExpressions: [{expression}]}}, port: 8080}}"))
    };
    assert_eq!(passes(&selector("{key: app, operator: In, values: [a, b]}")), (false, false, false));
    assert_eq!(passes(&selector("{key: app, operator: NotIn, values: [a]}")), (true, true, true));
    assert_eq!(passes(&selector("{key: app, operator: Exists}")), (false, false, false));
    assert_eq!(passes(&selector("{key: app, operator: DoesNotExist}")), (true, true, true));
}

#[test]
fn access_policies_say_who_may_call_where_no_authorization_does() {
    for (policy, passing) in [
        ("deny", (false, false, false)),
        ("all-unauthenticated", (true, true, true)),
        ("all-authenticated", (true, true, false)),
        ("cluster-unauthenticated", (true, true, true)),
        ("cluster-authenticated", (true, true, false)),
        ("audit", (true, true, true)),
    ] {
        assert_eq!(passes(&server(&format!(", accessPolicy: {policy}"))), passing, "{policy}");
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{config.linkerd.io/default-inbound-policy: {policy}}}}}\n---\n"
        );
        assert_eq!(passes(&namespace), passing, "by the namespace: {policy}");
        // The pod's word goes before its namespace's.
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: shop, annotations: {config.linkerd.io/default-inbound-policy: all-unauthenticated}}\nstatus: {podIP: 10.0.0.1}\n---\n";
        assert_eq!(passes(&format!("{namespace}{pod}")), (true, true, true), "by the pod: {policy}");
    }
    // Where the pod says nothing its template does; that is where Linkerd's users write it.
    for kind in ["Deployment", "StatefulSet", "DaemonSet"] {
        let template = |labels: &str, policy: &str| {
            format!(
                "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {{replicas: 1, template: {{metadata: {{labels: {{{labels}}}, annotations: {{config.linkerd.io/default-inbound-policy: {policy}}}}}, spec: {{containers: []}}}}}}\n---\n"
            )
        };
        assert_eq!(passes(&template("app: a", "deny")), (false, false, false), "{kind}");
        assert_eq!(passes(&template("app: b", "deny")), (true, true, true), "the control: another one's pods");
        assert_eq!(passes(&template("app: a", "deny").replace("shop", "other")), (true, true, true), "{kind}");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: shop, annotations: {config.linkerd.io/default-inbound-policy: all-unauthenticated}, labels: {app: a}}\nstatus: {podIP: 10.0.0.1}\n---\n";
        assert_eq!(passes(&format!("{}{pod}", template("app: a", "deny"))), (true, true, true), "{kind}");
        let slip = template("app: a", "dney");
        assert_eq!(passes(&slip), (false, false, false), "{kind}");
        assert!(world(&slip).findings()[0].field.starts_with("spec.template.metadata.annotations"), "{kind}");
    }
    let misspelt = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {config.linkerd.io/default-inbound-policy: al-unauthenticated}}\n---\n";
    assert_eq!(passes(misspelt), (false, false, false));
    assert!(world(misspelt).findings()[0].message.contains("not one of deny"), "{:?}", world(misspelt).findings());
    // Outside of the cluster's networks.
    let options = Options { cluster_networks: vec!["192.0.2.0/24".parse().unwrap()], ..Options::default() };
    let text = server(", accessPolicy: cluster-authenticated");
    let world = World::build_with(&Model::from_texts([("a.yaml", &*text)]), &[], options);
    assert!(denied(&inbound(&world, "shop"), GET).is_some());
}

#[test]
fn an_audit_records_what_it_would_have_denied() {
    let listener = inbound(&world(&server(", accessPolicy: audit")), "shop");
    let all: Vec<_> = listener.authorization.iter().map(|p| (p.name.as_str(), p.dry_run, p.rules.len())).collect();
    assert_eq!(all, [("linkerd.server.shop.http.audit", true, 0)]);
}

#[test]
fn authorizations_of_a_server_and_of_its_namespace_let_in_whom_they_name() {
    let near = |cidr: &str| object("NetworkAuthentication", "near", &format!("{{networks: [{cidr}]}}"));
    let namespace = "{kind: Namespace, name: shop}";
    let table = [
        (web() + &authorize("p", SERVER, IDENTITIES), (true, false, false)),
        (web() + &authorize("p", namespace, IDENTITIES), (true, false, false)),
        (authorize("p", SERVER, ""), (true, true, true)),
        (authorize("p", SERVER, "{kind: ServiceAccount, name: web}"), (true, false, false)),
        (authorize("p", SERVER, "{kind: ServiceAccount, name: x, namespace: other}"), (false, true, false)),
        (near("{cidr: 10.9.0.0/16}") + &authorize("p", SERVER, NETWORKS), (true, true, true)),
        (near("{cidr: 10.8.0.0/16}") + &authorize("p", SERVER, NETWORKS), (false, false, false)),
        (near("{cidr: 10.0.0.0/8, except: [10.9.0.0/24]}") + &authorize("p", SERVER, NETWORKS), (false, false, false)),
        (
            near("{cidr: 10.9.0.0/16}") + &web() + &authorize("p", SERVER, &format!("{IDENTITIES}, {NETWORKS}")),
            (true, false, false),
        ),
        (
            near("{cidr: 10.8.0.0/16}") + &web() + &authorize("p", SERVER, &format!("{IDENTITIES}, {NETWORKS}")),
            (false, false, false),
        ),
        // What is demanded is not there.
        (authorize("p", SERVER, IDENTITIES), (false, false, false)),
        (authorize("p", &SERVER.replace("http", "other"), ""), (false, false, false)),
        (
            object("MeshTLSAuthentication", "web", "{identityRefs: [{kind: Namespace, name: other}]}")
                + &authorize("p", SERVER, IDENTITIES),
            (false, true, false),
        ),
        (
            object("MeshTLSAuthentication", "web", "{identities: ['*']}") + &authorize("p", SERVER, IDENTITIES),
            (true, true, false),
        ),
    ];
    for (text, passing) in table {
        assert_eq!(passes(&format!("{}{text}", server(""))), passing, "{text}");
        // Nothing of it closes anything by itself.
        assert_eq!(passes(&text), (true, true, true), "{text}");
    }
    let dangling = world(&(server("") + &authorize("p", SERVER, IDENTITIES)));
    assert!(dangling.findings().iter().any(|f| f.message.contains("no MeshTLSAuthentication shop/web")));
}

#[test]
fn the_older_server_authorization_means_the_same() {
    let older = |spec: &str| server("") + &object("ServerAuthorization", "old", spec);
    let name = "server: {name: http}";
    for (spec, passing) in [
        (format!("{{{name}, client: {{unauthenticated: true}}}}"), (true, true, true)),
        (format!("{{{name}, client: {{meshTLS: {{serviceAccounts: [{{name: web}}]}}}}}}"), (true, false, false)),
        (
            format!(
                "{{{name}, client: {{meshTLS: {{identities: ['*.other.serviceaccount.identity.linkerd.cluster.local']}}}}}}"
            ),
            (false, true, false),
        ),
        (
            format!("{{{name}, client: {{unauthenticated: true, networks: [{{cidr: 10.8.0.0/16}}]}}}}"),
            (false, false, false),
        ),
        (
            "{server: {selector: {matchLabels: {tier: web}}}, client: {unauthenticated: true}}".to_owned(),
            (true, true, true),
        ),
        (
            "{server: {selector: {matchLabels: {tier: db}}}, client: {unauthenticated: true}}".to_owned(),
            (false, false, false),
        ),
        ("{server: {name: other}, client: {unauthenticated: true}}".to_owned(), (false, false, false)),
    ] {
        assert_eq!(passes(&older(&spec)), passing, "{spec}");
    }
}

fn route(name: &str, matches: &str) -> String {
    object("HTTPRoute", name, &format!("{{parentRefs: [{SERVER}], rules: [{{matches: [{matches}]}}]}}"))
}

#[test]
fn a_request_is_for_the_most_specific_route_and_those_authorized_for_it() {
    let at = |path| Call { path, ..GET };
    let target = |name: &str| format!("{{group: policy.linkerd.io, kind: HTTPRoute, name: {name}}}");
    let text = [
        server(""),
        web(),
        // Everybody may ask for everything but the administration, which is for `web` alone.
        route("all", "{path: {value: /}}"),
        route("admin", "{path: {value: /admin}}, {path: {type: Exact, value: /all/secrets}}"),
        authorize("all", &target("all"), ""),
        authorize("admin", &target("admin"), IDENTITIES),
    ]
    .concat();
    let listener = inbound(&world(&text), "shop");
    for (path, to_all) in [
        ("/", true),
        ("/a", true),
        ("/administration", true),
        ("/admin", false),
        ("/admin/x", false),
        ("/all/secrets", false),
    ] {
        assert_eq!(denied(&listener, at(path)), None, "{path}");
        assert_eq!(denied(&listener, Call { path, ..OTHER }).is_none(), to_all, "{path}");
    }
    // Who is authorized for the Server is so for each of its routes.
    let more = format!("{text}{}", authorize("server", SERVER, "{kind: ServiceAccount, name: x, namespace: other}"));
    assert_eq!(denied(&inbound(&world(&more), "shop"), Call { path: "/admin", ..OTHER }), None);
    assert_eq!(denied(&inbound(&world(&more), "shop"), Call { path: "relative", ..OTHER }), Some("-".into()));
}

#[test]
fn a_raw_connection_is_for_those_authorized_for_the_server_whatever_its_routes() {
    let text = [
        server(", proxyProtocol: opaque"),
        web(),
        authorize("server", SERVER, IDENTITIES),
        route("all", "{path: {value: /}}"),
        authorize("all", "{group: policy.linkerd.io, kind: HTTPRoute, name: all}", ""),
    ]
    .concat();
    let world = world(&text);
    assert!(world.findings().is_empty(), "{:?}", world.findings());
    let listener = inbound(&world, "shop");
    assert_eq!(denied_raw(&listener, GET.peer), None);
    assert_eq!(denied_raw(&listener, OTHER.peer), Some("-".into()));
    assert_eq!(denied_raw(&listener, ""), Some("-".into()));
    // The control: a request has a route, which is for everybody.
    assert_eq!(denied(&listener, OTHER), None);
}

#[test]
fn what_no_route_takes_is_not_found() {
    let text = server(", accessPolicy: all-unauthenticated")
        + &route("get", "{method: GET, path: {type: Exact, value: /a}}, {headers: [{name: x-b, value: '1'}]}");
    let listener = inbound(&world(&text), "shop");
    let at = |path, method, headers| denied(&listener, Call { path, method, headers, ..GET });
    assert_eq!(at("/a", "GET", &[]), None);
    assert_eq!(at("/b", "POST", &[("x-b", "1")]), None);
    for (path, method) in [("/a", "POST"), ("/b", "GET"), ("/a/", "GET")] {
        assert_eq!(at(path, method, &[]), Some("-".into()), "{method} {path}");
    }
    assert_eq!(listener.authorization[0].action, AuthorizationAction::Route);
}

/// A route of the Gateway API in the namespace `shop`.
fn gateway(kind: &str, name: &str, spec: &str) -> String {
    object(kind, name, spec).replace("policy.linkerd.io/v1beta1", API).replace("policy.linkerd.io/v1alpha1", API)
}

const API: &str = "gateway.networking.k8s.io/v1";

#[test]
fn routes_of_the_gateway_api_at_a_server_hold_as_linkerds_own() {
    let target = |kind: &str, name: &str| format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}");
    let grpc = "{parentRefs: [PARENT], rules: [{matches: [{method: {service: shop.Cart, method: Add}}, \
                {method: {service: shop.Stock}}, {method: {method: Watch}}, \
                {method: {type: RegularExpression, service: 'shop[.](Tax|Fee)', method: 'Get.*'}}]}]}";
    let grpc = |parent: &str| gateway("GRPCRoute", "calls", &grpc.replace("PARENT", parent));
    let http = |parent: &str| {
        let rule = "{name: a, matches: [{path: {value: /files}, method: GET}], backendRefs: [{name: x, port: 1}]}";
        gateway("HTTPRoute", "files", &format!("{{parentRefs: [{parent}], rules: [{rule}]}}"))
    };
    let text = |parent: &str| {
        [
            server(""),
            web(),
            http(parent),
            grpc(parent),
            authorize("files", &target("HTTPRoute", "files"), IDENTITIES),
            authorize("calls", &target("GRPCRoute", "calls"), ""),
        ]
        .concat()
    };
    let world_at = |parent: &str| world(&text(parent));
    let at_server = world_at(SERVER);
    assert!(at_server.findings().is_empty(), "{:?}", at_server.findings());
    let listener = inbound(&at_server, "shop");
    let ask = |path, of: Call| denied(&listener, Call { path, ..of }).is_none();
    for (path, to_web, to_others) in [
        ("/files", true, false),
        ("/files/a", true, false),
        ("/filesystem", false, false),
        ("/shop.Cart/Add", true, true),
        ("/shop.Cart/Remove", false, false),
        ("/shopxCart/Add", false, false),
        ("/shop.Stock/Any", true, true),
        ("/shop.Stock/Any/more", false, false),
        ("/other.Any/Watch", true, true),
        ("/Watch", false, false),
        ("/shop.Tax/GetAll", true, true),
        ("/shop.Tax/SetAll", false, false),
        ("/", false, false),
    ] {
        assert_eq!((ask(path, GET), ask(path, OTHER)), (to_web, to_others), "{path}");
    }
    assert_eq!(listener.authorization[0].action, AuthorizationAction::Route);
    // The control: for a Gateway they are no routes of the Server, which nobody is authorized for.
    let elsewhere = inbound(&world_at("{kind: Gateway, name: http}"), "shop");
    assert!(elsewhere.authorization.iter().all(|policy| policy.action != AuthorizationAction::Route));
    assert!(denied(&elsewhere, Call { path: "/files", ..GET }).is_some());
    // A name is one of its kind and its group: who is authorized for another route of that name is so for no more.
    for other in [target("GRPCRoute", "files"), "{group: policy.linkerd.io, kind: HTTPRoute, name: files}".into()] {
        let text = [server(""), web(), http(SERVER), authorize("files", &other, IDENTITIES)].concat();
        let listener = inbound(&world(&text), "shop");
        assert!(denied(&listener, Call { path: "/files", ..GET }).is_some(), "{other}");
        assert!(world(&text).findings().iter().any(|f| f.message.contains("\"files\" in the namespace")), "{other}");
    }
}

#[test]
fn a_route_of_the_gateway_api_that_cannot_be_read_closes_its_server() {
    let rules = |matches: &str| format!("rules: [{{matches: [{matches}]}}]");
    let parent = format!("parentRefs: [{SERVER}]");
    for (kind, spec, field) in [
        (
            "HTTPRoute",
            format!("{{{parent}, {}}}", rules("{path: {value: /a//b}}")),
            "spec.rules[0].matches[0].path.value",
        ),
        ("HTTPRoute", format!("{{{parent}, {}}}", rules("{paht: {value: /a}}")), "spec.rules[0].matches[0].paht"),
        ("HTTPRoute", format!("{{{parent}, hostnames: [a.test]}}"), "spec.hostnames"),
        ("HTTPRoute", "{parentRefs: [{kind: Server, name: http}]}".to_owned(), "spec.parentRefs[0].group"),
        ("GRPCRoute", format!("{{{parent}, {}}}", rules("{method: {}}")), "spec.rules[0].matches[0].method"),
        (
            "GRPCRoute",
            format!("{{{parent}, {}}}", rules("{method: {service: a/b}}")),
            "spec.rules[0].matches[0].method",
        ),
        (
            "HTTPRoute",
            format!("{{{parent}, {}}}", rules("{path: {type: RegularExpression, value: /%3A.*}}")),
            "spec.rules[0].matches[0].path.value",
        ),
        (
            "GRPCRoute",
            format!("{{{parent}, {}}}", rules("{method: {type: RegularExpression, service: 'a)|(?:b'}}")),
            "spec.rules[0].matches[0].method",
        ),
    ] {
        let open = server(", accessPolicy: all-unauthenticated");
        let world = world(&(open.clone() + &gateway(kind, "a", &spec)));
        let errors = world.findings().iter().filter(|f| f.severity == crate::finding::Severity::Error);
        let fields: Vec<_> = errors.map(|f| f.field.as_str()).collect();
        assert_eq!(fields, [field], "{spec}: {:?}", world.findings());
        assert!(denied(&inbound(&world, "shop"), GET).is_some(), "{spec}");
        assert_eq!(passes(&open), (true, true, true), "the control");
    }
    // An alternative that no request meets is told of, with an example, and the others hold.
    let spec = format!("{{{parent}, {}}}", rules("{path: {type: RegularExpression, value: '/(a|%3A)'}}"));
    let world = world(&(server(", accessPolicy: all-unauthenticated") + &gateway("HTTPRoute", "a", &spec)));
    let [finding] = world.findings() else { panic!("{:?}", world.findings()) };
    assert!(finding.severity == crate::finding::Severity::Warning, "{finding}");
    assert!(finding.message.contains("\"/%3A\" becomes \"/:\""), "{finding}");
    assert_eq!(denied(&inbound(&world, "shop"), Call { path: "/a", ..GET }), None);
}

/// A slip in one part of a route closes the Servers that it names, and all of its namespace only if these cannot be read either.
#[test]
fn a_route_of_which_nothing_but_its_parents_can_be_read_closes_no_other_server() {
    let open = server(", accessPolicy: all-unauthenticated");
    let at = |parent: &str, rules: &str| format!("{{parentRefs: [{parent}], rules: {rules}}}");
    let of = |name: &str| SERVER.replace("name: http", &format!("name: {name}"));
    let elsewhere = of("http").replace("kind", "namespace: other, kind");
    let gateway_route = |spec: &str| gateway("HTTPRoute", "a", spec);
    let linkerd_route = |spec: &str| object("HTTPRoute", "a", spec);
    for route in [&gateway_route as &dyn Fn(&str) -> String, &linkerd_route] {
        let closed = |spec: &str| {
            let text = open.clone() + &route(spec);
            assert!(world(&text).findings().iter().any(|f| f.severity == crate::finding::Severity::Error), "{spec}");
            !passes(&text).0
        };
        // Rules are a list: of these not even the form is understood.
        for (parents, closes) in [
            (of("http"), true),
            (of("other"), false),
            (format!("{}, {}", of("other"), of("http")), true),
            (format!("{}, {{kind: Gateway, name: http}}", of("other")), false),
            (format!("{}, {elsewhere}", of("other")), false),
            // What they are for cannot be told.
            (format!("{}, {}", of("other"), of("[http]")), true),
            (format!("{}, {{kind: [Server], name: http}}", of("other")), true),
            (format!("{}, http", of("other")), true),
        ] {
            assert_eq!(closed(&at(&parents, "{}")), closes, "{parents}");
        }
    }
    assert_eq!(
        passes(&(open + &gateway_route("{parentRefs: {kind: Gateway}, rules: {}}"))),
        (true, true, true),
        "no Server's"
    );
}

#[test]
fn probes_of_the_pod_are_let_in_while_no_route_is_attached() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: shop, labels: {app: a}}\nspec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}], livenessProbe: {httpGet: {path: /live, port: web}}}]}\nstatus: {podIP: 10.0.0.1}\n---\n";
    let probe = Call { path: "/live", ..PLAIN };
    let at = |text: &str, call| denied(&inbound(&world(text), "shop"), call).is_none();
    let guarded = format!("{}{pod}", server(""));
    assert!(at(&guarded, probe) && !at(&guarded, PLAIN) && !at(&guarded, Call { method: "POST", ..probe }));
    assert!(!at(&server(""), probe), "the control: no pod says that it is probed");
    assert!(!at(&format!("{guarded}{}", route("a", "{path: {value: /a}}")), probe));
    // The name of a port is the pod's.
    let named = server("").replace("8080", "web");
    assert!(!at(&format!("{named}{pod}"), PLAIN));
    assert!(at(&format!("{named}{}", pod.replace("name: web", "name: other")), PLAIN), "another port");
}

#[test]
fn a_named_port_that_no_pod_explains_closes_every_port_and_opens_none() {
    let deny = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {config.linkerd.io/default-inbound-policy: deny}}\n---\n";
    let named = server("").replace("8080", "web") + &web() + &authorize("p", SERVER, IDENTITIES);
    assert_eq!(passes(&named), (true, false, false), "the port may be the one that it guards");
    assert_eq!(passes(&format!("{deny}{named}")), (false, false, false), "and it may be another one");
    // Nor does it open what a Server by number closes.
    let closed = object("Server", "other", "{podSelector: {matchLabels: {app: a}}, port: 8080}");
    assert_eq!(passes(&format!("{named}{closed}")), (false, false, false));
    let said = |text: &str| world(text).findings().iter().any(|finding| finding.message.contains("container port"));
    assert!(said(&named));
    // The controls: a number, and a name that the pod explains.
    assert_eq!(passes(&format!("{deny}{}", named.replace("port: web", "port: 8080"))), (true, false, false));
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-1, namespace: shop, labels: {app: a}}\nspec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\nstatus: {podIP: 10.0.0.1}\n---\n";
    assert_eq!(passes(&format!("{deny}{named}{pod}")), (true, false, false));
    assert!(!said(&format!("{named}{pod}")));
}

#[test]
fn what_cannot_be_read_closes_what_it_was_to_guard() {
    let open = web() + &authorize("p", SERVER, "");
    // A Server: its pods, or all of the namespace's.
    assert_eq!(passes(&(server(", accessPolicy: denny") + &open)), (false, false, false));
    assert_eq!(passes(&(object("Server", "http", "{podselector: {}, port: 8080}") + &open)), (false, false, false));
    assert_eq!(passes(&(server(", accessPolicy: denny").replace("app: a", "app: b") + &open)), (true, true, true));
    // A route: its Server.
    let broken = route("r", "{queryParams: [{name: a, value: b}]}");
    assert_eq!(passes(&(server("") + &open + &broken)), (false, false, false));
    assert_eq!(passes(&(server("") + &open)), (true, true, true), "the control");
    // An authorization: it lets nobody in, and closes nothing.
    assert_eq!(passes(&(server("") + &authorize("p", SERVER, "{kind: Pod, name: x}"))), (false, false, false));
    assert_eq!(passes(&authorize("p", SERVER, "{kind: Pod, name: x}")), (true, true, true));
}

#[test]
fn identities_follow_the_trust_domain() {
    let text = server("") + &web() + &authorize("p", SERVER, IDENTITIES);
    let options = Options { trust_domain: TrustDomain::new("prod.test").unwrap(), ..Options::default() };
    let world = World::build_with(&Model::from_texts([("a.yaml", &*text)]), &[], options);
    let listener = inbound(&world, "shop");
    assert_eq!(denied(&listener, Call { peer: "prod.test/ns/shop/sa/web", ..GET }), None);
    assert!(denied(&listener, Call { peer: "evil.test/ns/shop/sa/web", ..GET }).is_some());
}

#[test]
fn a_rate_limit_policy_limits_its_server_and_each_caller_of_it() {
    use mesh_core::policy::{CallerGroup, HttpFilterKind, TokenBucket};
    let limit = |name: &str, spec: &str| object("HTTPLocalRateLimitPolicy", name, spec);
    let target = "targetRef: {group: policy.linkerd.io, kind: Server, name: http}";
    let text = limit(
        "rates",
        &format!(
            "{{{target}, total: {{requestsPerSecond: 100}}, identity: {{requestsPerSecond: 10}}, overrides: \
             [{{requestsPerSecond: 50, clientRefs: [{{kind: ServiceAccount, name: web}}, \
             {{kind: ServiceAccount, namespace: other, name: x}}]}}]}}"
        ),
    );
    let listener = inbound(&world(&(server("") + &text)), "shop");
    let [total, callers] = &listener.filters[..] else { panic!("{:?}", listener.filters) };
    let rate = |n| std::num::NonZeroU32::new(n).unwrap();
    let HttpFilterKind::RateLimit(total) = &total.kind else { panic!("{total:?}") };
    assert_eq!((total.bucket, total.status), (Some(TokenBucket::per_second(rate(100))), 429));
    let HttpFilterKind::CallerRateLimit(callers) = &callers.kind else { panic!("{callers:?}") };
    assert_eq!(callers.each, Some(rate(10)));
    let ids = ["spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/other/sa/x"].map(str::to_owned);
    assert_eq!(callers.groups, [CallerGroup { callers: ids.to_vec(), per_second: rate(50) }]);
    // The same over the wire.
    let encoded = mesh_discovery::codec::encode_inbound(&listener);
    match mesh_discovery::codec::decode_listener(&encoded).unwrap().value {
        mesh_discovery::codec::AnyListener::Inbound(decoded) => assert_eq!(decoded.filters, listener.filters),
        other => panic!("{other:?}"),
    }
    // Where tokens are verified each caller's limit holds before that, and the one for all after authorization.
    let tokens = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
                  metadata: {name: jwt, namespace: shop}\nspec: {jwtRules: [{issuer: i, jwks: '{\"keys\":[]}'}]}\n---\n";
    let verifying = inbound(&world(&(server("") + &text + tokens)), "shop");
    assert_eq!([&*verifying.before, &*verifying.filters].map(<[_]>::len), [1, 1], "{verifying:?}");
    assert_eq!([&verifying.filters[0], &verifying.before[0]], [&listener.filters[0], &listener.filters[1]]);
    // Without its Server it limits nothing and says so; of two the older one counts.
    let alone = world(&text);
    assert!(inbound(&alone, "shop").filters.is_empty());
    assert!(alone.findings().iter().any(|f| f.message.contains("no Server \"http\"")), "{:?}", alone.findings());
    let second = limit("second", &format!("{{{target}, total: {{requestsPerSecond: 1}}}}"));
    let both = world(&(server("") + &text + &second));
    assert_eq!(inbound(&both, "shop").filters.len(), 2);
    let says = |f: &&crate::finding::Finding| f.message.contains("limits the Server already");
    assert_eq!(both.findings().iter().filter(says).count(), 1, "{:?}", both.findings());
    // What cannot be read limits nothing, and says why.
    for (spec, field) in [
        (format!("{{{target}}}"), "spec"),
        ("{total: {requestsPerSecond: 1}}".to_owned(), "spec.targetRef"),
        ("{targetRef: {kind: Service, name: http}, total: {requestsPerSecond: 1}}".to_owned(), "spec.targetRef"),
        (format!("{{{target}, total: {{requestsPerSecond: 0}}}}"), "spec.total.requestsPerSecond"),
        (format!("{{{target}, total: {{}}}}"), "spec.total.requestsPerSecond"),
        (format!("{{{target}, total: {{requestsPerSecond: 4294967296}}}}"), "spec.total.requestsPerSecond"),
        (
            format!("{{{target}, total: {{requestsPerSecond: 1}}, identity: {{requestsPerSecond: 2}}}}"),
            "spec.identity.requestsPerSecond",
        ),
        (format!("{{{target}, overrides: [{{requestsPerSecond: 1}}]}}"), "spec.overrides[0].clientRefs"),
        (
            format!("{{{target}, overrides: [{{requestsPerSecond: 1, clientRefs: [{{kind: Pod, name: a}}]}}]}}"),
            "spec.overrides[0].clientRefs[0]",
        ),
        (format!("{{{target}, totl: {{requestsPerSecond: 1}}}}"), "spec.totl"),
    ] {
        let world = world(&(server("") + &limit("broken", &spec)));
        let errors = world.findings().iter().filter(|f| f.severity == crate::finding::Severity::Error);
        let fields: Vec<_> = errors.map(|f| f.field.as_str()).collect();
        assert!(fields.contains(&field), "{spec}: {fields:?}");
        assert!(inbound(&world, "shop").filters.is_empty(), "{spec}");
    }
}
