//! AuthorizationPolicies from manifest to decision.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_core::authz::{Attributes, Authorizer};
use mesh_core::identity::PeerIdentity;
use mesh_core::matcher::RequestView;
use mesh_core::policy::{AuthorizationAction, AuthorizerProtocol, InboundListener, NamePattern};

use super::*;

const WEB: &str = "cluster.local/ns/shop/sa/web";

/// Who asks for what.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) peer: &'static str,
    pub(super) method: &'static str,
    pub(super) host: &'static str,
    pub(super) path: &'static str,
    pub(super) headers: &'static [(&'static str, &'static str)],
}

pub(super) const GET: Call = Call { peer: WEB, method: "GET", host: "a.shop", path: "/", headers: &[] };

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

pub(super) fn inbound(world: &World, namespace: &str) -> InboundListener {
    let mut client = scope(namespace);
    client.labels.insert("app".into(), "a".into());
    world.inbound(&client, "xds.istio.io/grpc/lds/inbound/10.0.0.1:8080").unwrap()
}

/// `None` = allowed; else the rule, or `-`.
pub(super) fn denied(listener: &InboundListener, call: Call) -> Option<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in call.headers {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let method: Method = call.method.parse().unwrap();
    let request = RequestView {
        authority: call.host,
        method: &method,
        path_and_query: call.path,
        scheme: "http",
        headers: &headers,
        draw: &|| 0,
    };
    denied_to(listener, call.peer, Some(request))
}

/// The same of a raw connection.
pub(super) fn denied_raw(listener: &InboundListener, peer: &str) -> Option<String> {
    denied_to(listener, peer, None)
}

fn denied_to(listener: &InboundListener, peer: &str, request: Option<RequestView<'_>>) -> Option<String> {
    let spiffe_id = (!peer.is_empty()).then(|| format!("spiffe://{peer}").parse().unwrap());
    let peer = PeerIdentity { spiffe_id, address: "10.9.0.1:4000".parse().unwrap() };
    let attributes = Attributes {
        request,
        peer: Some(&peer),
        destination: listener.address,
        server_name: Some("x.test"),
        tokens: None,
        trusted_proxies: listener.trusted_proxies,
    };
    let authorizer = Authorizer::new(&listener.authorization);
    let verdict = authorizer.decide(&attributes, |_| {});
    verdict.err().map(|denial| denial.rule.unwrap_or("-").to_owned())
}

/// Istio's fields, of which HTTP alone has some.
#[test]
fn a_policy_holds_for_raw_connections_as_istio_has_it_for_ports_that_are_not_http() {
    let (web, other) = ("cluster.local/ns/shop/sa/web", "cluster.local/ns/other/sa/x");
    let from_shop = "from: [{source: {namespaces: [shop]}}]";
    let elsewhere = "from: [{source: {notNamespaces: [shop]}}]";
    for (spec, of_web, of_other) in [
        ("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}", true, false),
        (&format!("{{action: DENY, rules: [{{{elsewhere}}}]}}"), true, false),
        ("{rules: [{from: [{source: {ipBlocks: [10.9.0.0/16]}}]}]}", true, true),
        ("{rules: [{from: [{source: {remoteIpBlocks: [10.8.0.0/16]}}]}]}", false, false),
        ("{rules: [{to: [{operation: {ports: ['8080']}}]}]}", true, true),
        ("{rules: [{to: [{operation: {notPorts: ['8080']}}]}]}", false, false),
        ("{rules: [{when: [{key: connection.sni, values: [x.test]}]}]}", true, true),
        ("{rules: [{when: [{key: destination.ip, values: [10.0.0.2]}]}]}", false, false),
        // HTTP in an ALLOW rule: it never matches. Elsewhere it is passed over.
        (&format!("{{rules: [{{{from_shop}, to: [{{operation: {{methods: [GET]}}}}]}}]}}"), false, false),
        ("{rules: [{to: [{operation: {ports: ['8080']}}, {operation: {paths: [/x]}}]}]}", false, false),
        ("{rules: [{to: [{operation: {paths: ['*']}}]}]}", false, false),
        ("{rules: [{to: [{operation: {methods: ['*']}}]}]}", false, false),
        ("{rules: [{to: [{operation: {hosts: ['*']}}]}]}", false, false),
        (&format!("{{action: DENY, rules: [{{{from_shop}, to: [{{operation: {{paths: [/x]}}}}]}}]}}"), false, true),
        ("{action: DENY, rules: [{to: [{operation: {hosts: [x.test], ports: ['81']}}]}]}", true, true),
        ("{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", false, false),
        ("{action: AUDIT, rules: [{to: [{operation: {paths: [/x]}}]}]}", true, true),
    ] {
        let listener = inbound(&world(&policy("one", "shop", spec)), "shop");
        assert_eq!(denied_raw(&listener, web).is_none(), of_web, "{spec}");
        assert_eq!(denied_raw(&listener, other).is_none(), of_other, "{spec}");
    }
}

/// Whether a request passes a workload with one policy, in process and over the wire.
fn passes(spec: &str, call: Call) -> bool {
    let world = world(&policy("one", "shop", spec));
    assert!(world.findings().iter().all(|f| f.severity != crate::finding::Severity::Error), "{spec}");
    let listener = inbound(&world, "shop");
    let encoded = mesh_discovery::codec::encode_inbound(&listener);
    let mesh_discovery::codec::AnyListener::Inbound(decoded) =
        mesh_discovery::codec::decode_listener(&encoded).unwrap().value
    else {
        panic!("inbound")
    };
    let verdict = denied(&listener, call);
    assert_eq!(denied(&decoded, call).is_some(), verdict.is_some(), "over the wire: {spec}");
    verdict.is_none()
}

#[test]
fn every_field_takes_what_it_names_and_nothing_else() {
    let other = Call { peer: "cluster.local/ns/other/sa/web2", ..GET };
    let plain = Call { peer: "", ..GET };
    let at = |path| Call { path, ..GET };
    let host = |host| Call { host, ..GET };
    let with = |headers| Call { headers, ..GET };
    let source = |field: &str| format!("{{rules: [{{from: [{{source: {{{field}}}}}]}}]}}");
    let operation = |field: &str| format!("{{rules: [{{to: [{{operation: {{{field}}}}}]}}]}}");
    let when = |field: &str| format!("{{rules: [{{when: [{{{field}}}]}}]}}");
    let table: Vec<(String, Vec<Call>, Vec<Call>)> = vec![
        (source("principals: [cluster.local/ns/shop/sa/web]"), vec![GET], vec![other, plain]),
        (source("principals: ['cluster.local/ns/shop/*']"), vec![GET], vec![other, plain]),
        (source("principals: ['*/sa/web']"), vec![GET], vec![other, plain]),
        (source("principals: ['*']"), vec![GET, other], vec![plain]),
        (source("notPrincipals: [cluster.local/ns/shop/sa/web]"), vec![other, plain], vec![GET]),
        (source("namespaces: [shop]"), vec![GET], vec![other, plain]),
        (source("namespaces: ['sh*']"), vec![GET], vec![other, plain]),
        (source("notNamespaces: [other]"), vec![GET, plain], vec![other]),
        (source("serviceAccounts: [web]"), vec![GET], vec![other, plain]),
        (source("serviceAccounts: [other/web2]"), vec![other], vec![GET, plain]),
        (source("trustDomains: [cluster.local]"), vec![GET, other], vec![plain]),
        (source("ipBlocks: [10.9.0.0/16]"), vec![GET, plain], vec![]),
        (source("ipBlocks: [10.9.0.2]"), vec![], vec![GET]),
        (source("notIpBlocks: [10.9.0.1]"), vec![], vec![GET]),
        (source("remoteIpBlocks: [10.9.0.0/16]"), vec![GET], vec![with(&[("x-forwarded-for", "1.2.3.4")])]),
        (source("requestPrincipals: ['*']"), vec![], vec![GET, plain]),
        (
            operation("hosts: [a.shop]"),
            vec![GET, host("A.SHOP:80"), host("a.shop.")],
            vec![host("axshop"), host("b.a.shop")],
        ),
        (operation("hosts: ['*.shop']"), vec![GET, host("b.a.shop:8080")], vec![host("a.shop.test")]),
        (operation("hosts: ['a.*']"), vec![GET, host("a.other")], vec![host("b.shop")]),
        (operation("hosts: ['a.shop:80']"), vec![host("a.shop:80")], vec![GET, host("a.shop:81")]),
        (operation("notHosts: [a.shop]"), vec![host("b.shop")], vec![GET, host("a.shop:1")]),
        (operation("ports: ['8080']"), vec![GET], vec![]),
        (operation("notPorts: ['8080']"), vec![], vec![GET]),
        (
            operation("methods: [GET, 'P*']"),
            vec![GET, Call { method: "PUT", ..GET }],
            vec![Call { method: "HEAD", ..GET }],
        ),
        (
            operation("paths: [/a, '/b/*']"),
            vec![at("/a"), at("/a?x"), at("/b/"), at("/b/c")],
            vec![at("/a/"), at("/b"), at("/")],
        ),
        (operation("paths: ['*.png']"), vec![at("/x.png")], vec![at("/xpng"), at("/x.png/")]),
        (operation("paths: ['*']"), vec![GET, at("/x")], vec![]),
        (operation("notPaths: [/a]"), vec![GET], vec![at("/a")]),
        (
            operation("paths: ['/a/{*}/c', '/v.1/{**}']"),
            vec![at("/a/b/c"), at("/v.1/"), at("/v.1/x/y")],
            vec![at("/a/b/b/c"), at("/a//c"), at("/a/b/cc"), at("/vx1/x"), at("/v.1")],
        ),
        (when("key: 'request.headers[X-Role]', values: [admin]"), vec![with(&[("x-role", "admin")])], vec![GET]),
        (when("key: 'request.headers[x-role]', values: ['*']"), vec![with(&[("x-role", "")])], vec![GET]),
        (when("key: 'request.headers[x-role]', notValues: [admin]"), vec![GET], vec![with(&[("x-role", "admin")])]),
        (when("key: source.ip, values: [10.9.0.1]"), vec![GET], vec![]),
        (when("key: source.namespace, values: [shop]"), vec![GET], vec![other]),
        (when("key: destination.ip, values: [10.0.0.0/24]"), vec![GET], vec![]),
        (when("key: destination.port, notValues: ['8080']"), vec![], vec![GET]),
        (when("key: connection.sni, values: ['*.test']"), vec![GET], vec![]),
        (when("key: connection.sni, values: ['*.Test', 'X.TEST']"), vec![GET], vec![]),
        (when("key: 'request.auth.claims[a]', values: [b]"), vec![], vec![GET]),
    ];
    for (spec, taken, left) in table {
        for (calls, allowed) in [(&taken, true), (&left, false)] {
            for (i, call) in calls.iter().enumerate() {
                assert_eq!(passes(&spec, *call), allowed, "{spec} {allowed} {i}");
            }
        }
        // The same rule denies what it allowed, and what cannot be known.
        let deny = spec.replacen('{', "{action: DENY, ", 1);
        for (i, call) in taken.iter().enumerate() {
            assert!(!passes(&deny, *call), "{deny} {i}");
        }
    }
}

/// Stock servers compare the server name as it is written, and callers send it in small letters.
#[test]
fn names_of_servers_are_told_in_small_letters() {
    let told = |values: &str| {
        let spec = format!("{{rules: [{{when: [{{key: connection.sni, values: [{values}]}}]}}]}}");
        format!("{:?}", inbound(&world(&policy("one", "shop", &spec)), "shop").authorization)
    };
    assert_eq!(told("'*.Test', 'X.TEST', 'A.*'"), told("'*.test', 'x.test', 'a.*'"));
    assert_ne!(told("'*.Test'"), told("'*.toast'"), "the control");
}

#[test]
fn from_and_to_and_all_of_when_must_hold() {
    let spec = "{rules: [{from: [{source: {namespaces: [shop]}}, {source: {namespaces: [ops]}}], \
                to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {paths: [/b]}}], \
                when: [{key: 'request.headers[x]', values: ['1']}, {key: destination.port, values: ['8080']}]}]}";
    let right = Call { path: "/a", headers: &[("x", "1")], ..GET };
    let ops = Call { peer: "cluster.local/ns/ops/sa/x", ..right };
    for (call, allowed) in [
        (right, true),
        (ops, true),
        (Call { path: "/b", method: "POST", ..ops }, true),
        (Call { method: "POST", ..right }, false),
        (Call { headers: &[], ..right }, false),
        (Call { peer: "cluster.local/ns/x/sa/x", ..right }, false),
    ] {
        assert_eq!(passes(spec, call), allowed, "{} {} {}", call.peer, call.method, call.path);
    }
}

#[test]
fn empty_forms_mean_what_istio_says() {
    assert!(!passes("{}", GET), "allow nothing");
    assert!(passes("{rules: [{}]}", GET), "allow everything");
    assert!(!passes("{action: DENY, rules: [{}]}", GET), "deny everything");
    assert!(passes("{action: AUDIT, rules: [{}]}", GET), "an audit decides nothing");
    assert!(!passes("{action: CUSTOM, provider: {name: x}, rules: [{}]}", GET), "nobody to ask");
    assert_eq!(denied(&inbound(&world(""), "shop"), GET), None, "no policy");
}

#[test]
fn s53_policies_hold_for_the_workloads_of_their_scope_and_any_allow_is_enough() {
    let at = |text: &str, namespace: &str| denied(&inbound(&world(text), namespace), GET);
    let nothing = policy("nothing", "shop", "{}");
    assert_eq!(at(&nothing, "shop"), Some("-".into()));
    assert_eq!(at(&nothing, "other"), None);
    let selecting =
        |app: &str, namespace| policy("s", namespace, &format!("{{selector: {{matchLabels: {{app: {app}}}}}}}"));
    assert_eq!(at(&selecting("a", "shop"), "shop"), Some("-".into()));
    assert_eq!(at(&selecting("b", "shop"), "shop"), None);
    // The root namespace's hold everywhere, with a selector too.
    assert_eq!(at(&policy("root", "istio-system", "{}"), "other"), Some("-".into()));
    assert_eq!(at(&selecting("a", "istio-system"), "other"), Some("-".into()));
    assert_eq!(at(&selecting("b", "istio-system"), "other"), None);
    let web = policy("web", "shop", "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}");
    assert_eq!(at(&format!("{nothing}{web}"), "shop"), None);
    let deny = policy("deny", "shop", "{action: DENY, rules: [{}]}");
    assert_eq!(at(&format!("{web}{deny}"), "shop"), Some("ns[shop]-policy[deny]-rule[0]".into()));
}

#[test]
fn s15_a_wildcard_of_a_template_stands_for_one_element() {
    let at = |path| Call { path, ..GET };
    for (template, inside, outside) in [
        (
            "/api/{*}/admin",
            &["/api/v1/admin", "/api/.../admin"][..],
            &["/api/admin", "/api/a/b/admin", "/api//admin"][..],
        ),
        (
            "/files/{*}",
            &["/files/a", "/files/a%2Fb", "/files/a?x=/b"],
            &["/files/", "/files", "/files/a/", "/files/a/b"],
        ),
        ("/files/{**}", &["/files/", "/files/a", "/files/a/b/"], &["/files", "/filesystem", "/x/files/a"]),
        ("/a.b/{*}/c+d", &["/a.b/x/c+d"], &["/axb/x/c+d", "/a.b/x/ccd", "/a.b/x/c+d/", "/a.b/x/c+de"]),
    ] {
        let with = |action: &str| format!("{{{action}rules: [{{to: [{{operation: {{paths: ['{template}']}}}}]}}]}}");
        for (paths, matches) in [(inside, true), (outside, false)] {
            for path in paths {
                assert_eq!(passes(&with(""), at(path)), matches, "ALLOW {template} {path}");
                assert_eq!(passes(&with("action: DENY, "), at(path)), !matches, "DENY {template} {path}");
            }
        }
    }
}

#[test]
fn s39_a_dot_in_a_name_is_a_dot() {
    let source = |field: &str| format!("{{rules: [{{from: [{{source: {{{field}}}}}]}}]}}");
    let to = |field: &str| format!("{{rules: [{{to: [{{operation: {{{field}}}}}]}}]}}");
    let when = |field: &str| format!("{{rules: [{{when: [{{{field}}}]}}]}}");
    let peer = |peer| Call { peer, ..GET };
    let host = |host| Call { host, ..GET };
    let role = |headers| Call { headers, ..GET };
    for (spec, right, wrong) in [
        (
            source("serviceAccounts: [web.v1]"),
            peer("cluster.local/ns/shop/sa/web.v1"),
            peer("cluster.local/ns/shop/sa/webxv1"),
        ),
        (
            source("principals: ['*/sa/web.v1']"),
            peer("cluster.local/ns/shop/sa/web.v1"),
            peer("cluster.local/ns/shop/sa/webxv1"),
        ),
        (source("principals: ['a.test/ns/*']"), peer("a.test/ns/shop/sa/web"), peer("axtest/ns/shop/sa/web")),
        (source("trustDomains: [a.test]"), peer("a.test/ns/shop/sa/web"), peer("axtest/ns/shop/sa/web")),
        (source("namespaces: ['*hop']"), peer(WEB), peer("cluster.local/ns/shop-x/sa/web")),
        (to("hosts: ['*.a.shop']"), host("b.a.shop"), host("b.axshop")),
        (to("hosts: ['b.a.*']"), host("b.a.shop"), host("bxa.shop")),
        (to("paths: ['*.png']"), Call { path: "/x.png", ..GET }, Call { path: "/xapng", ..GET }),
        (
            when("key: 'request.headers[x-role]', values: ['a.b']"),
            role(&[("x-role", "a.b")]),
            role(&[("x-role", "axb")]),
        ),
        (
            when("key: 'request.headers[x-role]', values: ['a.*']"),
            role(&[("x-role", "a.b")]),
            role(&[("x-role", "ab")]),
        ),
        (
            when("key: 'request.headers[x-role]', values: ['*(a|b)']"),
            role(&[("x-role", "x(a|b)")]),
            role(&[("x-role", "xa")]),
        ),
    ] {
        assert!(passes(&spec, right), "{spec}");
        assert!(!passes(&spec, wrong), "{spec}");
    }
}

#[test]
fn a_service_account_is_known_whatever_else_its_id_says() {
    let allow = "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}";
    let deny = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [shop/web]}}]}]}";
    let when = "{rules: [{when: [{key: source.serviceAccount, values: [shop/web]}]}]}";
    for (peer, known) in [
        (WEB, true),
        ("other.test/ns/shop/sa/web", true),
        ("cluster.local/cluster/one/ns/shop/sa/web", true),
        ("cluster.local/ns/shop/pod/a/sa/web", true),
        ("cluster.local/ns/shop/sa/web/pod/a", true),
        ("cluster.local/ns/shop/sa/web2", false),
        ("cluster.local/ns/shop/sa/webx/pod/a", false),
        ("cluster.local/ns/shop/xsa/web", false),
        ("cluster.local/ns/shop2/sa/web", false),
        ("cluster.local/ns/other/shop/sa/web", false),
        ("cluster.local/xns/shop/sa/web", false),
        ("", false),
    ] {
        let call = Call { peer, ..GET };
        assert_eq!((passes(allow, call), passes(when, call), passes(deny, call)), (known, known, !known), "{peer}");
    }
}

#[test]
fn a_dry_run_is_a_policy_of_its_own_that_decides_nothing() {
    let dry = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: dry, namespace: shop, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}\n---\n";
    let listener = inbound(&world(&format!("{dry}{}", policy("all", "shop", "{rules: [{}]}"))), "shop");
    assert_eq!(denied(&listener, GET), None);
    let names: Vec<_> = listener.authorization.iter().map(|p| (p.name.as_str(), p.dry_run)).collect();
    assert_eq!(names, [("istio.deny.dry-run", true), ("istio.allow", false)]);
}

#[test]
fn cluster_local_means_the_meshs_own_trust_domain() {
    let text = policy("one", "shop", "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}");
    let options = Options { trust_domain: TrustDomain::new("prod.test").unwrap(), ..Options::default() };
    let world = World::build_with(&Model::from_texts([("a.yaml", &*text)]), &[], options);
    let listener = inbound(&world, "shop");
    assert_eq!(denied(&listener, Call { peer: "prod.test/ns/shop/sa/web", ..GET }), None);
    assert!(denied(&listener, GET).is_some(), "another mesh may have this name: it is not one of ours");
    assert!(denied(&listener, Call { peer: "evil.test/ns/shop/sa/web", ..GET }).is_some());
    // The control: a mesh whose name it is.
    assert_eq!(denied(&inbound(&self::world(&text), "shop"), GET), None);
}

#[test]
fn an_allow_policy_lets_only_names_of_the_meshs_trust_domain_in() {
    let options = || Options {
        trust_domain: TrustDomain::new("prod.test").unwrap(),
        trust_domain_aliases: vec![TrustDomain::new("older.test").unwrap()],
        ..Options::default()
    };
    for written in ["prod.test", "older.test", "cluster.local"] {
        for pattern in ["/ns/shop/sa/web", "/ns/shop/*", "/*", "*"] {
            let rules = format!("{{rules: [{{from: [{{source: {{principals: ['{written}{pattern}']}}}}]}}]}}");
            let model = Model::from_texts([("a.yaml", &*policy("one", "shop", &rules))]);
            let listener = inbound(&World::build_with(&model, &[], options()), "shop");
            let is_allowed = |peer| denied(&listener, Call { peer, ..GET }).is_none();
            assert!(is_allowed("prod.test/ns/shop/sa/web"), "{written}{pattern}");
            assert!(is_allowed("older.test/ns/shop/sa/web"), "{written}{pattern}");
            assert!(!is_allowed(WEB), "{written}{pattern}: the federated cluster.local of somebody else");
        }
    }
}

#[test]
fn a_principal_of_one_name_of_the_trust_domain_is_one_of_each() {
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomainAliases: [old.test]\n---\n";
    let options = || Options {
        trust_domain: TrustDomain::new("prod.test").unwrap(),
        trust_domain_aliases: vec![TrustDomain::new("older.test").unwrap()],
        ..Options::default()
    };
    let deny = |principal: &str| {
        policy(
            "one",
            "shop",
            &format!("{{action: DENY, rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}"),
        )
    };
    let is_denied = |text: &str, peer| {
        let world = World::build_with(&Model::from_texts([("a.yaml", text)]), &[], options());
        denied(&inbound(&world, "shop"), Call { peer, ..GET }).is_some()
    };
    let domains = ["prod.test/ns/shop/sa/web", "old.test/ns/shop/sa/web", "older.test/ns/shop/sa/web"];
    for written in ["prod.test", "old.test", "older.test", "cluster.local"] {
        for pattern in ["/ns/shop/sa/web", "/ns/shop/*", "/*", "*"] {
            let text = format!("{config}{}", deny(&format!("{written}{pattern}")));
            for peer in domains {
                assert!(is_denied(&text, peer), "{written}{pattern} {peer}");
            }
            assert!(!is_denied(&text, "other.test/ns/shop/sa/web"), "{written}{pattern}");
            assert!(!is_denied(&text, "prod.test.evil/ns/shop/sa/web") || (written, pattern) == ("prod.test", "*"));
        }
    }
    // A name that is written in part; servers know a peer under an alias by the present name.
    for written in ["*old.test/ns/shop/sa/web", "*d.test/ns/shop/sa/web", "old*", "ol*", "*/ns/shop/sa/web", "*/web"] {
        let text = format!("{config}{}", deny(written));
        for peer in domains {
            assert!(is_denied(&text, peer), "{written} {peer}");
        }
        assert!(written.starts_with("*/") || !is_denied(&text, "other.test/ns/shop/sa/web"), "{written}");
    }
    for written in ["old*", "*old.test", "*.test", "*"] {
        let rule = format!("{{action: DENY, rules: [{{from: [{{source: {{trustDomains: ['{written}']}}}}]}}]}}");
        let text = format!("{config}{}", policy("one", "shop", &rule));
        for peer in domains {
            assert!(is_denied(&text, peer), "{written} {peer}");
        }
        assert_eq!(is_denied(&text, "strange.org/ns/shop/sa/web"), written == "*", "{written}");
    }
    assert!(!is_denied(&format!("{config}{}", deny("older*")).replace("[old.test]", "[]"), "prod.tes/ns/shop/sa/web"));
    // The control: without the MeshConfig its alias is another domain.
    assert!(!is_denied(&deny("*old.test/ns/shop/sa/web"), "prod.test/ns/shop/sa/web"));
    assert!(!is_denied(&deny("prod.test/ns/shop/sa/web"), "old.test/ns/shop/sa/web"));
    assert!(is_denied(&deny("prod.test/ns/shop/sa/web"), "older.test/ns/shop/sa/web"));
}

#[test]
fn a_policy_for_a_service_holds_for_its_workloads() {
    let at = |text: &str, registrations: &[Registration]| denied(&inbound(&with(text, registrations), "shop"), GET);
    let nothing = |target: &str| policy("nothing", "shop", &format!("{{targetRefs: [{target}]}}"));
    let by_selector = nothing("{kind: Service, name: a}") + &service("a", "shop", HTTP);
    assert_eq!(at(&by_selector, &[]), Some("-".into()));
    assert_eq!(at(&nothing("{kind: Service, name: b}"), &[]), None);
    assert!(world(&nothing("{kind: Service, name: b}")).findings()[0].message.contains("no Service \"b\""));
    // What announced itself as an endpoint of the service is one of its workloads, whatever its labels.
    let announced = Registration { labels: BTreeMap::new(), ..running("b", "shop", 80, "10.0.0.1:8080") };
    assert_eq!(at(&nothing("{kind: Service, name: b}"), &[announced]), Some("-".into()));
    // Those who have no part here hold nobody to it, and say so.
    let gateway = nothing("{group: gateway.networking.k8s.io, kind: Gateway, name: g}");
    assert_eq!(at(&gateway, &[]), None);
    assert!(world(&gateway).findings()[0].message.contains("holds for nobody"), "{:?}", world(&gateway).findings());
}

/// The listener of `a` in `shop` as that account asks for it.
fn inbound_of(world: &World, account: &str) -> InboundListener {
    let scope = NodeScope { account: Some(account.to_owned()), ..scope("shop") };
    world.inbound(&scope, "xds.istio.io/grpc/lds/inbound/10.0.0.1:8080").unwrap()
}

#[test]
fn what_others_announce_at_an_address_takes_no_policy_away_there() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}\n---\n";
    let text = strict.to_owned() + &policy("nothing", "shop", "{selector: {matchLabels: {app: a}}}");
    let own = running("a", "shop", 80, "10.0.0.1:8080");
    // The names sort after and before the workload's own, in its namespace and in others.
    let evil = |service: &str, namespace: &str, labels: BTreeMap<String, String>| Registration {
        service_account: "evil".into(),
        labels,
        ..running(service, namespace, 80, "10.0.0.1:8080")
    };
    let none = BTreeMap::new;
    for other in [evil("zzz", "shop", none()), evil("Z", "shop", none()), evil("zzz", "zoo", none())] {
        let listener = inbound_of(&with(&text, &[own.clone(), other.clone()]), "a-account");
        assert_eq!((denied(&listener, GET), listener.tls), (Some("-".into()), InboundTls::Strict), "{other:?}");
        // Nor does it give the other one anything, or take anything from it.
        let listener = inbound_of(&with(&text, &[own.clone(), other]), "evil");
        assert_eq!((denied(&listener, GET), listener.tls), (None, InboundTls::Permissive));
    }
    // The control: without an account everything of the namespace counts; so do two services of one account.
    let two =
        Registration { labels: none(), service_account: own.service_account.clone(), ..evil("zzz", "shop", none()) };
    let world = with(&text, &[two, own]);
    for listener in [inbound(&world, "shop"), inbound_of(&world, "a-account")] {
        assert_eq!((denied(&listener, GET), listener.tls), (Some("-".into()), InboundTls::Strict));
    }
}

#[test]
fn the_services_of_one_process_have_the_policies_of_each() {
    let allow = |app: &str, who: &str| {
        let rules = format!("[{{from: [{{source: {{principals: ['cluster.local/ns/shop/sa/{who}']}}}}]}}]");
        policy(app, "shop", &format!("{{selector: {{matchLabels: {{app: {app}}}}}, rules: {rules}}}"))
    };
    let as_service = |service: &str| Registration {
        service_account: "both".into(),
        ..running(service, "shop", 80, "10.0.0.1:8080")
    };
    let text = allow("a", "web") + &allow("b", "batch");
    let at = |registrations: &[Registration], peer| {
        denied(&inbound_of(&with(&text, registrations), "both"), Call { peer, ..GET }).is_none()
    };
    let (batch, other) = ("cluster.local/ns/shop/sa/batch", "cluster.local/ns/shop/sa/other");
    let both = [as_service("a"), as_service("b")];
    assert_eq!([at(&both, WEB), at(&both, batch), at(&both, other)], [true, true, false]);
    assert_eq!([at(&both[..1], WEB), at(&both[..1], batch)], [true, false], "the control");
}

#[test]
fn the_labels_of_a_pod_count_more_than_what_its_process_says() {
    let pod = |account: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p-{account}, namespace: shop, labels: {{{labels}}}}}\nspec: {{serviceAccountName: {account}}}\nstatus: {{podIP: 10.0.0.1}}\n---\n"
        )
    };
    let nothing = policy("nothing", "shop", "{selector: {matchLabels: {guarded: 'yes'}}}");
    let own = running("a", "shop", 80, "10.0.0.1:8080");
    let at = |pods: &str| {
        denied(&inbound_of(&with(&(nothing.clone() + pods), std::slice::from_ref(&own)), "a-account"), GET)
    };
    assert_eq!(at(&pod("a-account", "guarded: 'yes'")), Some("-".into()));
    assert_eq!(at(""), None, "the control: announced are other labels");
    assert_eq!(at(&pod("other", "guarded: 'yes'")), None, "another account's pod is not this one's");
    let two = pod("a-account", "guarded: 'yes'") + &pod("other", "x: 'y'");
    assert_eq!(at(&two), Some("-".into()), "of those on a host's network the account tells");
}

/// As Istio has it: the setting of the mesh is for gateways. Else whoever is in the mesh could claim any address.
#[test]
fn the_annotation_of_a_workload_and_not_the_mesh_config_says_how_many_proxies_are_trusted() {
    let config = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    defaultConfig: {text}\n---\n"
        )
    };
    let rule = policy("one", "shop", "{rules: [{from: [{source: {remoteIpBlocks: [1.2.3.4]}}]}]}");
    let call = Call { headers: &[("x-forwarded-for", "9.9.9.9, 1.2.3.4")], ..GET };
    let one = "{gatewayTopology: {numTrustedProxies: 1}}";
    let annotated = |text: &str| format!("annotations: {{'proxy.istio.io/config': '{text}'}}");
    let pod = |metadata: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, {metadata}}}\nspec: {{serviceAccountName: a-account}}\nstatus: {{podIP: 10.0.0.1}}\n---\n"
        )
    };
    let deployment = |labels: &str, metadata: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: shop}}\nspec: {{template: {{metadata: {{labels: {{{labels}}}, {metadata}}}}}}}\n---\n"
        )
    };
    let own = Registration {
        labels: [("app".to_owned(), "a".to_owned())].into(),
        ..running("a", "shop", 80, "10.0.0.1:8080")
    };
    let at = |text: &str| inbound_of(&with(&format!("{rule}{text}"), std::slice::from_ref(&own)), "a-account");
    for text in [
        String::new(),
        config(one),
        config(one) + &pod(""),
        config(one) + &pod(&annotated("{concurrency: 2}")),
        pod(&annotated("{gatewayTopology: [")),
        pod(&annotated("{gatewayTopology: {numTrustedProxies: -1}}")),
        deployment("app: b", &annotated(one)),
        pod(&format!("labels: {{app: a}}, {}", annotated("{gatewayTopology: {numTrustedProxies: 0}}")))
            + &deployment("app: a", &annotated(one)),
    ] {
        assert_eq!((at(&text).trusted_proxies, denied(&at(&text), call)), (0, Some("-".into())), "{text}");
    }
    // The control: who says so is behind one, and believes it.
    let template = deployment("app: a", &annotated(one));
    for text in [pod(&annotated(one)), template.clone(), pod("labels: {app: a}") + &template] {
        assert_eq!((at(&text).trusted_proxies, denied(&at(&text), call)), (1, None), "{text}");
    }
    let said = |text: &str| world(text).findings().iter().map(ToString::to_string).collect::<String>();
    let wrong = said(&pod(&annotated("{gatewayTopology: {numTrustedProxies: -1}}")));
    assert!(wrong.contains("warning: Pod shop/p metadata.annotations.proxy.istio.io/config"), "{wrong}");
    assert!(
        wrong.contains("numTrustedProxies") && wrong.contains("no proxy before the workload is trusted"),
        "{wrong}"
    );
    assert!(
        said(&deployment("app: a", &annotated("{gatewayTopology: ["))).contains("spec.template.metadata.annotations")
    );
    assert!(!said(&pod(&annotated(one))).contains("proxy.istio.io"), "the control");
    let told = |text: &str| world(&config(text)).findings().iter().map(ToString::to_string).collect::<String>();
    assert!(told("{concurrency: 2, gatewayTopology: {forwardClientCertDetails: SANITIZE}}").contains("concurrency"));
    assert!(told("{gatewayTopology: {numTrustedProxies: -1}}").contains("numTrustedProxies"));
    assert!(told(one).contains("no effect on workloads"), "{}", told(one));
    assert_eq!(told("{gatewayTopology: {numTrustedProxies: 0}}"), "");
}

/// As in Istio's own sample, whose port is in quotes; and one provider that is wrong takes nothing from the others.
#[test]
fn numbers_of_the_mesh_config_may_be_in_quotes_and_each_of_its_parts_stands_alone() {
    let config = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n    {}\n",
            text.replace('\n', "\n    ")
        )
    };
    let sample = config(
        "extensionProviders:\n- name: sample-ext-authz-grpc\n  envoyExtAuthzGrpc: {service: ext-authz.foo.svc.cluster.local, port: \"9000\"}",
    );
    let read = |text: &str| {
        let world = world(text);
        let config = world.model.mesh_configs.values().next().unwrap().spec.clone();
        let told: Vec<String> = world.findings().iter().map(ToString::to_string).collect();
        (config, told)
    };
    let (of_sample, told) = read(&sample);
    assert_eq!(of_sample.authorizers["sample-ext-authz-grpc"].target, "ext-authz.foo.svc.cluster.local:9000");
    assert_eq!(told, Vec::<String>::new());
    let wrong = config(
        "trustDomainAliases: [old.test, 'a b']\nextensionProviders:\n- 5\n- {name: bad, envoyExtAuthzGrpc: {service: a, port: many}}\n- {name: good, envoyExtAuthzGrpc: {service: a, port: 1}}\ndefaultConfig: {gatewayTopology: {numTrustedProxies: '0'}}",
    );
    let (of_wrong, told) = read(&wrong);
    assert_eq!(of_wrong.authorizers.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(of_wrong.trust_domain_aliases.len(), 1);
    let each = ["extensionProviders[0]", "extensionProviders[1].envoyExtAuthzGrpc.port", "trustDomainAliases[1]"];
    assert!(told.len() == 3 && each.iter().all(|at| told.iter().any(|line| line.contains(at))), "{told:#?}");

    let (_, told) =
        read(&config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\ntrustDomianAliases: [a]\nmeshMTLS: {}"));
    let all = told.join("\n");
    assert!(
        all.contains("warning: ConfigMap istio-system/istio data.mesh.outboundTrafficPolicy.mode: no effect"),
        "{all}"
    );
    assert!(all.contains("did you mean trustDomainAliases?"), "{all}");
    assert!(all.contains("no effect in this version: meshMTLS") && told.len() == 3, "{all}");
    assert_eq!(read(&config("outboundTrafficPolicy: {mode: ALLOW_ANY}")).1, Vec::<String>::new(), "the control");
}

#[test]
fn the_mesh_config_says_where_an_authorizer_is_asked() {
    let config = |provider: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    enableTracing: true\n    extensionProviders:\n    - name: opa\n      {provider}\n---\n"
        )
    };
    let custom = policy("one", "shop", "{action: CUSTOM, provider: {name: opa}, rules: [{}]}");
    let grpc = |text: &str| match &inbound(&world(text), "shop").authorization[0].action {
        AuthorizationAction::Custom(provider) => provider.service.clone(),
        other => panic!("{other:?}"),
    };
    let full = "envoyExtAuthzGrpc: {service: auth/opa.auth.svc.cluster.local, port: 9191, timeout: 2s, failOpen: true, statusOnError: '503'}";
    let read = grpc(&format!("{custom}{}", config(full))).unwrap();
    assert_eq!(read.target, "opa.auth.svc.cluster.local:9191");
    assert_eq!((read.timeout.as_secs(), read.fail_open, read.status_on_error), (2, true, 503));
    let plain = grpc(&format!("{custom}{}", config("envoyExtAuthzGrpc: {service: opa.auth, port: 9191}"))).unwrap();
    assert_eq!((plain.timeout.as_secs(), plain.fail_open, plain.status_on_error), (600, false, 403));
    assert_eq!(plain.body, None);
    let full = "envoyExtAuthzGrpc: {service: auth/opa.auth.svc.cluster.local, port: 9191, timeout: 2s, failOpen: true, statusOnError: '503', includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}";
    let told = grpc(&format!("{custom}{}", config(full))).unwrap().body.unwrap();
    assert_eq!((told.max_bytes.get(), told.allow_partial, told.as_bytes), (10, true, false));
    let full = "envoyExtAuthzHttp: {service: opa.auth, port: 80, timeout: 2s, failOpen: true, pathPrefix: /check, includeRequestHeadersInCheck: [Cookie, 'x-auth-*'], includeAdditionalHeadersInCheck: {x-from: mesh, x-filled: 'https://%REQ(Host)%'}, headersToUpstreamOnAllow: [x-user], headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: ['*-cookie']}";
    let text = format!("{custom}{}", config(full));
    let http = grpc(&text).unwrap();
    assert_eq!((http.target.as_str(), http.timeout.as_secs(), http.fail_open), ("opa.auth:80", 2, true));
    let AuthorizerProtocol::Http(how) = http.protocol else { panic!("{:?}", http.protocol) };
    let names = |list: &[NamePattern]| list.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (how.path_prefix.as_str(), names(&how.request_headers)),
        ("/check", vec!["cookie".into(), "x-auth-*".into()])
    );
    assert_eq!(
        (names(&how.upstream_on_allow), names(&how.downstream_on_allow)),
        (vec!["x-user".into()], vec!["set-cookie".into()])
    );
    assert_eq!(names(&how.downstream_on_deny), ["*-cookie"]);
    assert_eq!(how.added_headers.iter().map(|write| write.name.as_str()).collect::<Vec<_>>(), ["x-from"]);
    let left_out =
        world(&text).findings().iter().any(|f| f.field.contains("x-filled") && f.message.contains("percent"));
    assert!(left_out, "{:?}", world(&text).findings());
    // A misspelt field is none, and said: who wrote it believes that it holds.
    for kind in ["Grpc", "Http"] {
        let provider = format!("envoyExtAuthz{kind}: {{service: opa.auth, port: 80, failOpne: true}}");
        let text = format!("{custom}{}", config(&provider));
        assert!(!grpc(&text).unwrap().fail_open);
        assert!(world(&text).findings().iter().any(|f| f.field.ends_with("failOpne")), "{:?}", world(&text).findings());
    }
    // Nobody to ask: no such provider, or one that cannot be asked as it wants to be.
    for provider in [
        "zipkin: {service: zipkin.istio-system, port: 9411}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 80, pathPrefix: check}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 80, pathPrefix: '/check?a='}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 80, headersToUpstreamOnAllow: ['*']}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 80, includeAdditionalHeadersInCheck: {'a b': c}}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 0}",
        "envoyExtAuthzHttp: {service: opa.auth, port: 80}\n      envoyExtAuthzGrpc: {service: opa.auth, port: 80}",
        "envoyExtAuthzGrpc: {service: opa.auth, port: 9191, includeRequestBodyInCheck: {}}",
        "envoyExtAuthzGrpc: {service: opa.auth, port: 9191, includeRequestBodyInCheck: {maxRequestBytes: 1000000000}}",
        "envoyExtAuthzGrpc: {service: 'not a host', port: 9191}",
        "envoyExtAuthzGrpc: {service: opa.auth, port: 0}",
        "envoyExtAuthzGrpc: {service: opa.auth, port: 1, statusOnError: '99'}",
        "envoyExtAuthzGrpc: {service: opa.auth, port: 1, timeout: 0s}",
    ] {
        let text = format!("{custom}{}", config(provider));
        assert_eq!(grpc(&text), None, "{provider}");
        let said =
            world(&text).findings().iter().any(|f| f.field == "spec.provider.name" && f.message.contains("denied"));
        assert!(said, "{provider}: {:?}", world(&text).findings());
        assert!(denied(&inbound(&world(&text), "shop"), GET).is_some(), "{provider}");
    }
    // Another ConfigMap, another namespace.
    for (from, to) in [("name: istio,", "name: other,"), ("istio-system}", "shop}")] {
        assert_eq!(grpc(&format!("{custom}{}", config(full).replace(from, to))), None, "{to}");
    }
    // Over the wire it is the same.
    let listener = inbound(&world(&format!("{custom}{}", config(full))), "shop");
    let encoded = mesh_discovery::codec::encode_inbound(&listener);
    let mesh_discovery::codec::AnyListener::Inbound(decoded) =
        mesh_discovery::codec::decode_listener(&encoded).unwrap().value
    else {
        panic!("inbound")
    };
    assert_eq!(decoded.authorization, listener.authorization);
}
