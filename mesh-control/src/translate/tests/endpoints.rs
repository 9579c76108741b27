//! Endpoints and the transport to them: who serves, who is believed, in which order of localities.

use mesh_core::policy::StringMatcher;
use mesh_discovery::codec;

use super::*;
use crate::finding::Severity;

#[test]
fn registrations_serve_by_name_and_by_selector_and_make_services() {
    let mut by_label = running("cart-canary", "default", 80, "10.0.0.2:9000");
    by_label.labels.insert("app".into(), "cart".into());
    let registrations = [
        running("cart", "default", 80, "10.0.0.1:9000"),
        by_label,
        running("cart", "other", 80, "10.0.0.3:9000"),
        running("solo", "default", 70, "10.0.0.4:9000"),
    ];
    let world = with(&service("cart", "default", HTTP), &registrations);
    let client = scope("default");
    let addresses = |name: &str| -> Vec<String> {
        world.endpoints(&client, name).unwrap().iter().map(|endpoint| endpoint.address.to_string()).collect()
    };
    assert_eq!(addresses("outbound|80||cart.default.svc.cluster.local"), ["10.0.0.1:9000", "10.0.0.2:9000"]);
    assert_eq!(addresses("outbound|80||cart.other.svc.cluster.local"), ["10.0.0.3:9000"]);
    assert_eq!(addresses("outbound|70||solo.default.svc.cluster.local"), ["10.0.0.4:9000"]);
    assert!(world.listener(&client, "solo:70").is_some());
    assert!(world.listener(&client, "cart-canary:80").is_some());
}

#[test]
fn two_services_share_a_name_in_two_namespaces() {
    let registrations = [running("a", "x", 80, "10.0.0.1:1"), running("a", "y", 80, "10.0.0.2:1")];
    let world = with("", &registrations);
    for (namespace, address) in [("x", "10.0.0.1:1"), ("y", "10.0.0.2:1")] {
        let routes = routes_of(&world, &scope(namespace), "a:80").unwrap();
        let endpoints = world.endpoints(&scope(namespace), &first_cluster(&routes)).unwrap();
        assert_eq!(endpoints.iter().next().unwrap().address.to_string(), address);
    }
}

/// Clients refuse an assignment whose weights do not fit into 32 bits together.
#[test]
fn weights_that_are_too_large_together_count_for_their_shares() {
    let entry = |weights: [u32; 3]| {
        let [a, b, c] = weights;
        let endpoints = format!(
            "[{{address: 10.0.0.1, weight: {a}, locality: r}}, {{address: 10.0.0.2, weight: {b}, locality: r}}, \
             {{address: 10.0.0.3, weight: {c}, locality: s}}]"
        );
        let spec = format!(
            "{{hosts: [a.test], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: {endpoints}}}"
        );
        let text = istio("ServiceEntry", "a", "default", &spec);
        let world = world(&text);
        let endpoints = world.endpoints(&scope("default"), "outbound|80||a.test").unwrap();
        let weights: Vec<_> = endpoints.iter().map(|endpoint| endpoint.weight.get()).collect();
        let found = world.findings().iter().any(|finding| finding.field == "spec.endpoints");
        assert!(codec::decode_endpoints(&codec::encode_endpoints(&endpoints)).is_ok(), "{weights:?}");
        (weights, found)
    };
    let (weights, found) = entry([3_000_000_000, 1_000_000_000, 2_000_000_000]);
    assert!(found && weights.iter().map(|weight| u64::from(*weight)).sum::<u64>() <= u64::from(u32::MAX));
    let of = |share: f64| (share * f64::from(u32::MAX)) as u32;
    assert!(
        weights.iter().zip([of(0.5), of(1.0 / 6.0), of(1.0 / 3.0)]).all(|(got, want)| got.abs_diff(want) < 10),
        "{weights:?}"
    );
    let (weights, found) = entry([u32::MAX, 1, 1]);
    assert!(found && weights[1..] == [1, 1], "none is left out: {weights:?}");
    // Control: what fits is as it was written.
    assert_eq!(entry([3_000_000_000, 1_000_000_000, 1]), (vec![3_000_000_000, 1_000_000_000, 1], false));
}

#[test]
fn mesh_tls_accepts_only_the_accounts_behind_the_port() {
    let world = with("", &[running("a", "x", 80, "10.0.0.1:1")]);
    let cluster = world.cluster(&scope("x"), "outbound|80||a.x.svc.cluster.local").unwrap();
    let UpstreamTls::Auto(tls) = cluster.tls else { panic!("automatic") };
    assert_eq!(tls.sni.as_deref(), Some("outbound_.80_._.a.x.svc.cluster.local"));
    assert_eq!(tls.peer_ids.len(), 1);
    assert!(tls.peer_ids[0].matches("spiffe://cluster.local/ns/x/sa/a-account"));
    // An account that is not known narrows to the namespace, never to "any peer".
    let mut nameless = running("a", "x", 80, "10.0.0.1:1");
    nameless.service_account = String::new();
    let world = with("", &[nameless]);
    let cluster = world.cluster(&scope("x"), "outbound|80||a.x.svc.cluster.local").unwrap();
    let UpstreamTls::Auto(tls) = cluster.tls else { panic!("automatic") };
    assert_eq!(tls.peer_ids[0].pattern, StringMatch::Prefix("spiffe://cluster.local/ns/x/sa/".into()));
}

/// An empty list of names lets in whoever the roots vouch for (gRFC A29): this control plane writes none, whatever it knows of
/// who serves.
#[test]
fn s61_mutual_tls_of_this_control_plane_always_names_whom_it_expects() {
    let name = "outbound|80||a.shop.svc.cluster.local";
    let base = service("a", "shop", HTTP);
    let rule =
        |tls: &str| istio("DestinationRule", "r", "shop", &format!("{{host: a, trafficPolicy: {{tls: {tls}}}}}"));
    let known = running("a", "shop", 80, "10.0.0.1:80");
    let nameless = Registration { service_account: String::new(), ..known.clone() };
    let odd = Registration { service_account: "no/account".into(), ..known.clone() };
    let strict = peer("ns", "shop", "{mtls: {mode: STRICT}}");
    for registrations in [vec![], vec![known], vec![nameless], vec![odd]] {
        for more in [
            String::new(),
            strict.clone(),
            rule("{mode: ISTIO_MUTUAL}"),
            rule("{mode: ISTIO_MUTUAL, subjectAltNames: []}"),
            rule("{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/b']}"),
        ] {
            let tls = with(&(base.clone() + &more), &registrations).cluster(&scope("shop"), name).unwrap().tls;
            let (UpstreamTls::Auto(tls) | UpstreamTls::Mesh(tls)) = tls else { panic!("{tls:?}") };
            assert!(!tls.peer_ids.is_empty(), "{more} {registrations:?}");
            assert!(!tls.peer_ids.iter().any(|id| id.matches("spiffe://cluster.local/ns/other/sa/a")), "{more}");
        }
    }
}

#[test]
fn explicit_tls_modes_switch_automatic_mode_off() {
    let rule =
        |mode: &str| istio("DestinationRule", "r", "default", &format!("{{host: a, trafficPolicy: {{tls: {mode}}}}}"));
    let of = |mode: &str| {
        let world = world(&format!("{}{}", service("a", "default", HTTP), rule(mode)));
        world.cluster(&scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap().tls
    };
    assert_eq!(of("{mode: DISABLE}"), UpstreamTls::Disable);
    assert!(
        matches!(of("{mode: ISTIO_MUTUAL, sni: other}"), UpstreamTls::Mesh(tls) if tls.sni.as_deref() == Some("other"))
    );
    let UpstreamTls::Mutual(tls, certificate) =
        of("{mode: MUTUAL, clientCertificate: /c, privateKey: /k, subjectAltNames: [x]}")
    else {
        panic!("mutual")
    };
    assert_eq!((certificate.certificate_file.as_str(), certificate.private_key_file.as_str()), ("/c", "/k"));
    assert!(tls.subject_alt_names[0].matches("x") && !tls.insecure_skip_verify);
}

#[test]
fn of_a_server_elsewhere_its_entry_says_the_identity_unless_a_rule_does() {
    let spec = "{hosts: [b.test], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 10.0.0.9}], \
                ports: [{number: 80, name: http, protocol: HTTP}]";
    let entry = |names: &str| istio("ServiceEntry", "b", "default", &format!("{spec}{names}}}"));
    let rule = |names: &str| {
        let tls = format!("{{host: b.test, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL{names}}}}}}}");
        istio("DestinationRule", "r", "default", &tls)
    };
    let of = |text: String| match world(&text).cluster(&scope("default"), "outbound|80||b.test").unwrap().tls {
        UpstreamTls::Mesh(tls) => tls.peer_ids,
        other => panic!("{other:?}"),
    };
    let (entrys, rules) = (", subjectAltNames: ['spiffe://b.test/x']", ", subjectAltNames: ['spiffe://b.test/y']");
    let exact = |name: &str| vec![StringMatcher::exact(name)];
    assert_eq!(of(entry(entrys) + &rule("")), exact("spiffe://b.test/x"));
    assert_eq!(of(entry(entrys) + &rule(rules)), exact("spiffe://b.test/y"));
    // The control: without a word of either it is one of ours.
    assert_eq!(of(entry("") + &rule("")), prefix("spiffe://cluster.local/ns/default/sa/"));
}

fn prefix(of: &str) -> Vec<StringMatcher> {
    vec![StringMatcher { pattern: StringMatch::Prefix(of.into()), ignore_case: false }]
}

#[test]
fn a_server_of_which_only_a_name_is_known_is_one_of_its_entrys_namespace_and_the_operator_is_told() {
    let entry = |more: &str| {
        let spec = format!("{{hosts: [b.test], resolution: DNS, ports: [{{number: 80, name: http}}]{more}}}");
        istio("ServiceEntry", "b", "shop", &spec)
    };
    let external = "apiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop}\nspec: {type: ExternalName, \
                    externalName: b.test, ports: [{name: http, port: 80}]}\n---\n"
        .to_owned();
    let of = |hosts: String, host: &str, names: &str| {
        let spec = format!("{{host: {host}, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL{names}}}}}}}");
        let world = world(&(hosts + &istio("DestinationRule", "r", "shop", &spec)));
        let cluster = world.cluster(&scope("shop"), &format!("outbound|80||{host}")).unwrap();
        let UpstreamTls::Mesh(tls) = cluster.tls else { panic!("{:?}", cluster.tls) };
        let told = world.findings().iter().filter(|finding| finding.field == "spec.trafficPolicy.tls");
        (tls.peer_ids, told.map(|finding| (finding.severity, finding.message.clone())).collect::<Vec<_>>())
    };
    let kubernetes = "b.shop.svc.cluster.local";
    for (hosts, host) in [(entry(""), "b.test"), (external.clone(), kubernetes)] {
        let (peers, told) = of(hosts, host, "");
        assert_eq!(peers, prefix("spiffe://cluster.local/ns/shop/sa/"), "{host}: never anybody of the mesh");
        let [(Severity::Error, message)] = &told[..] else { panic!("{host}: {told:?}") };
        assert!(message.contains(host) && message.contains("subjectAltNames"), "{message}");
    }
    // An account that is not known narrows to the namespace as well, of which less has to be said.
    let (peers, told) = of(entry(", endpoints: [{address: 10.0.0.9}]"), "b.test", "");
    assert_eq!(peers, prefix("spiffe://cluster.local/ns/shop/sa/"));
    assert!(matches!(&told[..], [(Severity::Warning, _)]), "{told:?}");
    // The control: with a name there is nothing to say.
    let (name, exact) = (", subjectAltNames: ['spiffe://cluster.local/ns/x/sa/y']", "spiffe://cluster.local/ns/x/sa/y");
    for (hosts, host, names) in [(entry(name), "b.test", ""), (entry(""), "b.test", name), (external, kubernetes, name)]
    {
        assert_eq!(of(hosts, host, names), (vec![StringMatcher::exact(exact)], Vec::new()));
    }
    let account = ", endpoints: [{address: 10.0.0.9, serviceAccount: b}]";
    assert_eq!(of(entry(account), "b.test", "").1, Vec::new());
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

#[test]
fn where_nobody_takes_plaintext_every_client_speaks_mutual_tls() {
    let running = |labels: &str, at: &str| {
        let mut one = running("a", "shop", 80, at);
        one.labels.insert("app".into(), labels.into());
        one
    };
    let both = [running("a", "10.0.0.1:1"), running("b", "10.0.0.2:1")];
    let tls = |text: &str, registrations: &[Registration]| {
        let world = with(text, registrations);
        world.cluster(&scope("shop"), "outbound|80||a.shop.svc.cluster.local").unwrap().tls
    };
    let strict = peer("ns", "shop", "{mtls: {mode: STRICT}}");
    assert!(matches!(tls(&strict, &both), UpstreamTls::Mesh(tls) if tls.peer_ids.len() == 1));
    assert!(matches!(tls("", &both), UpstreamTls::Auto(_)), "the control: both take either");
    let but_one = strict.clone() + &peer("b", "shop", "{selector: {matchLabels: {app: b}}, mtls: {mode: PERMISSIVE}}");
    assert!(matches!(tls(&but_one, &both), UpstreamTls::Auto(_)), "one takes either");
    let service = strict + &service("a", "shop", HTTP);
    assert!(matches!(tls(&service, &[]), UpstreamTls::Auto(_)), "nobody is there");
}

#[test]
fn the_narrowest_peer_authentication_decides() {
    let mode = |text: &str, port: u16| {
        let mut client = scope("shop");
        client.labels.insert("app".into(), "a".into());
        let name = format!("xds.istio.io/grpc/lds/inbound/10.0.0.1:{port}");
        world(text).inbound(&client, &name).unwrap().tls
    };
    assert_eq!(mode("", 80), InboundTls::Permissive);
    let root = peer("root", "istio-system", "{mtls: {mode: STRICT}}");
    assert_eq!(mode(&root, 80), InboundTls::Strict);
    let namespace = format!("{root}{}", peer("ns", "shop", "{mtls: {mode: DISABLE}}"));
    assert_eq!(mode(&namespace, 80), InboundTls::Disable);
    let unset = format!("{root}{}", peer("ns", "shop", "{mtls: {mode: UNSET}}"));
    assert_eq!(mode(&unset, 80), InboundTls::Strict);
    let workload = format!(
        "{namespace}{}",
        peer(
            "w",
            "shop",
            "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {81: {mode: PERMISSIVE}}}"
        )
    );
    assert_eq!((mode(&workload, 80), mode(&workload, 81)), (InboundTls::Strict, InboundTls::Permissive));
    let others = format!("{root}{}", peer("w", "shop", "{selector: {matchLabels: {app: b}}, mtls: {mode: DISABLE}}"));
    assert_eq!(mode(&others, 80), InboundTls::Strict);
    // A selector in the root namespace is about workloads there.
    let elsewhere = peer("w", "istio-system", "{selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}");
    assert_eq!(mode(&elsewhere, 80), InboundTls::Permissive);
}

#[test]
fn of_two_peer_authentications_the_older_holds_and_of_two_of_one_age_the_first_by_name() {
    const LEVELS: [(&str, &str); 3] =
        [("istio-system", ""), ("shop", ""), ("shop", "selector: {matchLabels: {app: a}}, ")];
    for (namespace, selector) in LEVELS {
        let one = |name: &str, created: &str, mode: &str| {
            let spec = format!("{{{selector}mtls: {{mode: {mode}}}}}");
            peer(&format!("{name}{created}"), namespace, &spec)
        };
        let mode = |first: String, second: String| {
            let mut client = scope("shop");
            client.labels.insert("app".into(), "a".into());
            let tls =
                |text: String| world(&text).inbound(&client, "xds.istio.io/grpc/lds/inbound/10.0.0.1:80").unwrap().tls;
            let (one, other) = (tls(format!("{first}{second}")), tls(format!("{second}{first}")));
            assert_eq!(one, other, "whichever is written first");
            one
        };
        let (old, young) =
            (", creationTimestamp: '2024-01-01T00:00:00Z'", ", creationTimestamp: '2024-01-01T00:00:01Z'");
        let at = format!("{namespace} {selector}");
        // The younger would be the first by name.
        assert_eq!(mode(one("b", old, "STRICT"), one("a", young, "DISABLE")), InboundTls::Strict, "{at}");
        assert_eq!(mode(one("b", old, "DISABLE"), one("a", young, "STRICT")), InboundTls::Disable, "{at}");
        for age in ["", old] {
            assert_eq!(mode(one("a", age, "STRICT"), one("b", age, "DISABLE")), InboundTls::Strict, "{at}{age}");
            assert_eq!(mode(one("a", age, "DISABLE"), one("b", age, "STRICT")), InboundTls::Disable, "{at}{age}");
        }
    }
}

#[test]
fn a_server_that_refuses_tls_is_called_in_plaintext() {
    let registrations = [running("a", "shop", 80, "10.0.0.1:8080")];
    let world = with(&peer("ns", "shop", "{mtls: {mode: DISABLE}}"), &registrations);
    let endpoints = world.endpoints(&scope("shop"), "outbound|80||a.shop.svc.cluster.local").unwrap();
    assert!(!endpoints.iter().next().unwrap().metadata.mesh_tls);
}

#[test]
fn s70_whatever_a_process_says_of_itself_a_strict_peer_is_called_with_mutual_tls() {
    let takes_tls = |text: &str, registrations: &[Registration], name: &str| -> Vec<bool> {
        let world = with(text, registrations);
        let endpoints = world.endpoints(&scope("shop"), name).unwrap();
        endpoints.iter().map(|endpoint| endpoint.metadata.mesh_tls).collect()
    };
    let (a, strict) = ("outbound|80||a.shop.svc.cluster.local", peer("ns", "shop", "{mtls: {mode: STRICT}}"));
    let plain = [Registration { mesh_tls: false, ..running("a", "shop", 80, "10.0.0.1:8080") }];
    assert_eq!(takes_tls(&strict, &plain, a), [true]);
    assert_eq!(takes_tls("", &plain, a), [false], "the control");
    let cluster = with(&strict, &plain).cluster(&scope("shop"), a).unwrap();
    assert!(matches!(cluster.tls, UpstreamTls::Mesh(_)), "nobody there takes plaintext");

    // Pods without Istio's mark, known or not; an address that is no pod's is no workload.
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a-x}}\n- {addresses: [10.0.0.2]}\n- {addresses: [10.0.0.3]}\n---\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a-y, namespace: shop}\nspec: {containers: [{name: a, image: a}]}\nstatus: {podIP: 10.0.0.2}\n---\n";
    let sliced = service("a", "shop", HTTP) + slice + pod;
    assert_eq!(takes_tls(&(strict.clone() + &sliced), &[], a), [true, true, false]);
    assert_eq!(takes_tls(&sliced, &[], a), [false; 3], "the control");

    // What is written down as an endpoint, unless it is outside of the mesh.
    let entry = |location: &str| {
        let spec = format!(
            "{{hosts: [b.test], ports: [{{number: 80, name: http}}], resolution: STATIC, location: {location}, endpoints: [{{address: 192.0.2.1}}]}}"
        );
        strict.clone() + &istio("ServiceEntry", "b", "shop", &spec)
    };
    assert_eq!(takes_tls(&entry("MESH_INTERNAL"), &[], "outbound|80||b.test"), [true]);
    assert_eq!(takes_tls(&entry("MESH_EXTERNAL"), &[], "outbound|80||b.test"), [false]);
}

/// A client of a peer that has shown who it is sends it plaintext if policy of the peer or a rule says so, and for nothing
/// that an endpoint says.
#[test]
fn s70_a_pod_that_announced_itself_is_called_with_mutual_tls_until_policy_says_otherwise() {
    let name = "outbound|80||a.shop.svc.cluster.local";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.1], zone: z, targetRef: {kind: Pod, name: a-x}}]\n---\n";
    let pod = |account: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a-x, namespace: shop}}\nspec: {{serviceAccountName: {account}, containers: [{{name: a, image: a}}]}}\nstatus: {{podIP: 10.0.0.1}}\n---\n"
        )
    };
    let sliced = |account: &str| service("a", "shop", HTTP) + slice + &pod(account);
    let announced = [running("a", "shop", 80, "10.0.0.1:8080")];
    let called = |text: &str, registrations: &[Registration]| -> Vec<(String, bool)> {
        let world = with(text, registrations);
        let endpoints = world.endpoints(&scope("shop"), name).unwrap();
        endpoints.iter().map(|one| (one.address.to_string(), one.metadata.mesh_tls)).collect()
    };
    let tls = |text: &str, registrations: &[Registration]| {
        let called = called(text, registrations);
        assert!(
            !called.is_empty() && called.iter().all(|(address, tls)| address == "10.0.0.1:8080" && *tls == called[0].1)
        );
        called[0].1
    };
    let own = sliced("a-account");
    assert!(tls(&own, &announced));
    assert!(!tls(&own, &[]), "the control: of a pod without Istio's mark nobody knows that it is one of the mesh");
    // Whom its announcement made known it is to be.
    let world = with(&own, &announced);
    let UpstreamTls::Auto(of) = world.cluster(&scope("shop"), name).unwrap().tls else { panic!("automatic") };
    assert!(of.peer_ids.len() == 1 && of.peer_ids[0].matches("spiffe://cluster.local/ns/shop/sa/a-account"));
    // Another account's word says nothing of the pod, nor does that of a process of another service.
    assert!(called(&sliced("other"), &announced).iter().any(|(_, tls)| !tls));
    let of_b = Registration { service_account: "a-account".into(), ..running("b", "shop", 80, "10.0.0.1:8080") };
    assert!(!tls(&own, &[of_b]));
    // What turns it off: policy of the peer, and an operator's rule.
    let disabled = peer("ns", "shop", "{mtls: {mode: DISABLE}}");
    assert!(!tls(&(own.clone() + &disabled), &announced));
    let rule = istio("DestinationRule", "r", "shop", "{host: a, trafficPolicy: {tls: {mode: DISABLE}}}");
    let world = with(&(own.clone() + &rule), &announced);
    assert!(matches!(world.cluster(&scope("shop"), name).unwrap().tls, UpstreamTls::Disable));
    let strict = peer("ns", "shop", "{mtls: {mode: STRICT}}");
    let world = with(&(own + &strict), &announced);
    let endpoints = world.endpoints(&scope("shop"), name).unwrap();
    assert!(endpoints.iter().all(|one| one.metadata.plaintext_refused));
}

#[test]
fn s70_a_rule_that_says_plaintext_of_a_strict_peer_is_told_and_its_clients_send_nothing() {
    let (name, strict) = ("outbound|80||a.shop.svc.cluster.local", peer("ns", "shop", "{mtls: {mode: STRICT}}"));
    let disable = "trafficPolicy: {tls: {mode: DISABLE}}";
    let rule = |host: &str, spec: &str| istio("DestinationRule", "r", "shop", &format!("{{host: {host:?}, {spec}}}"));
    let registrations = [running("a", "shop", 80, "10.0.0.1:8080")];
    let told = |text: &str| {
        let world = with(text, &registrations);
        let endpoints = world.endpoints(&scope("shop"), name).unwrap();
        let found: Vec<_> = world.findings().iter().filter(|f| f.code == Some("IST0113")).cloned().collect();
        (endpoints.iter().next().unwrap().metadata.plaintext_refused, found)
    };
    let of_port = "trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}";
    let subset = "subsets: [{name: s, labels: {app: a}, trafficPolicy: {tls: {mode: DISABLE}}}]";
    for written in [rule("a", disable), rule("*.cluster.local", disable), rule("a", of_port), rule("a", subset)] {
        let (refused, found) = told(&(strict.clone() + &written));
        assert!(refused && found.len() == 1, "{found:?}");
        let text = found[0].to_string();
        for word in ["DestinationRule", "PeerAuthentication shop/ns", "10.0.0.1:8080", "MESH-1110"] {
            assert!(text.contains(word), "{text}");
        }
    }
    // The controls: another port, another subset, another mode on either side.
    let other_port = of_port.replace("80", "81");
    let other_subset = subset.replace("app: a", "app: b");
    for written in
        [rule("a", &other_port), rule("a", &other_subset), rule("a", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}")]
    {
        assert_eq!(told(&(strict.clone() + &written)), (true, Vec::new()), "{written}");
    }
    let permissive = peer("ns", "shop", "{mtls: {mode: PERMISSIVE}}");
    assert_eq!(told(&(permissive + &rule("a", disable))), (false, Vec::new()));

    // Of a pod that nobody says is a member of the mesh the rule is believed.
    let pod = |labels: &str| {
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: b-1, namespace: shop, labels: {kubernetes.io/service-name: b}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.2]}]\n---\n";
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: b-x, namespace: shop, labels: {{{labels}}}}}\nspec: {{containers: [{{name: a, image: a}}]}}\nstatus: {{podIP: 10.0.0.2}}\n---\n"
        );
        let world = world(&(strict.clone() + &service("b", "shop", HTTP) + slice + &pod));
        let endpoints = world.endpoints(&scope("shop"), "outbound|80||b.shop.svc.cluster.local").unwrap();
        endpoints.iter().next().unwrap().metadata.plaintext_refused
    };
    assert!(pod("security.istio.io/tlsMode: istio") && !pod("app: b"));
}

#[test]
fn inbound_names_that_are_no_addresses_are_unknown() {
    let world = world("");
    assert!(world.inbound(&scope("a"), "xds.istio.io/grpc/lds/inbound/[::1]:80").is_some());
    for name in ["xds.istio.io/grpc/lds/inbound/nowhere", "reviews:80", ""] {
        assert!(world.inbound(&scope("a"), name).is_none(), "{name}");
    }
}

#[test]
fn localities_become_tiers_only_with_outlier_detection() {
    let at = |address: &str, locality: &str| {
        let mut one = running("a", "default", 80, address);
        one.locality = Locality::parse(locality);
        one
    };
    let registrations = [
        at("10.0.0.1:1", "eu/a/1"),
        at("10.0.0.2:1", "eu/a/2"),
        at("10.0.0.3:1", "us/x/1"),
        at("10.0.0.4:1", "ap/x/1"),
    ];
    let mut client = scope("default");
    client.locality = Locality::parse("eu/a/1");
    let tiers = |spec: &str| {
        let world = with(&istio("DestinationRule", "r", "default", spec), &registrations);
        let endpoints = world.endpoints(&client, "outbound|80||a.default.svc.cluster.local").unwrap();
        let mut tiers: Vec<(String, u32)> = endpoints
            .localities
            .iter()
            .flat_map(|group| group.endpoints.iter().map(|one| (one.address.to_string(), group.priority)))
            .collect();
        tiers.sort();
        tiers.into_iter().map(|(_, tier)| tier).collect::<Vec<_>>()
    };
    assert_eq!(tiers("{host: a}"), [0, 0, 0, 0]);
    assert_eq!(tiers("{host: a, trafficPolicy: {outlierDetection: {}}}"), [0, 1, 2, 2]);
    let failover = "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: ap}]}}}}";
    assert_eq!(tiers(failover), [0, 1, 3, 2]);
    let off = "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}}}";
    assert_eq!(tiers(off), [0, 0, 0, 0]);
}

#[test]
fn endpoint_slices_give_endpoints_health_and_zone() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], zone: z1, conditions: {ready: true}, targetRef: {kind: Pod, name: a-x}}\n- {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}\n- {addresses: [10.0.0.3], conditions: {ready: false}}\n";
    let world = world(&format!("{}{slice}", service("a", "default", HTTP)));
    let endpoints = world.endpoints(&scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap();
    let found: Vec<(String, mesh_core::policy::Health)> =
        endpoints.iter().map(|one| (one.address.to_string(), one.health)).collect();
    use mesh_core::policy::Health::{Draining, Healthy};
    assert_eq!(found, [("10.0.0.2:8080".into(), Draining), ("10.0.0.1:8080".into(), Healthy)]);
    assert_eq!(endpoints.localities[1].locality.zone, "z1");
}

#[test]
fn a_pod_of_a_service_of_both_families_is_one_endpoint() {
    let slice = |name: &str, family: &str, addresses: [&str; 2], kind: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: a}}}}\naddressType: {family}\nports: [{{name: http, port: 80}}]\nendpoints:\n- {{addresses: ['{}'], targetRef: {{kind: {kind}, name: a-x}}}}\n- {{addresses: ['{}'], targetRef: {{kind: {kind}, name: a-y}}}}\n---\n",
            addresses[0], addresses[1]
        )
    };
    let sliced = |kind: &str| {
        service("a", "default", HTTP)
            + &slice("a-1", "IPv6", ["fd00::1", "fd00::2"], kind)
            + &slice("a-2", "IPv4", ["10.0.0.1", "10.0.0.2"], kind)
    };
    let found = |text: &str, registrations: &[Registration]| -> Vec<String> {
        let world = with(text, registrations);
        let endpoints = world.endpoints(&scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap();
        let all = endpoints.iter().map(|one| {
            let addresses = [&one.address].into_iter().chain(&one.additional_addresses);
            addresses.map(ToString::to_string).collect::<Vec<_>>().join(" ")
        });
        all.collect()
    };
    assert_eq!(found(&sliced("Pod"), &[]), ["10.0.0.1:80 [fd00::1]:80", "10.0.0.2:80 [fd00::2]:80"]);
    // The Service's first family comes first, and before that the address that a process announced; it does not count twice.
    let v6 = sliced("Pod").replacen("spec: {", "spec: {clusterIPs: ['fd00:1::1', 10.1.0.1], ", 1);
    assert_eq!(found(&v6, &[]), ["[fd00::1]:80 10.0.0.1:80", "[fd00::2]:80 10.0.0.2:80"]);
    let announced = |addresses: &[&str]| -> Vec<Registration> {
        addresses.iter().map(|address| running("a", "default", 80, address)).collect()
    };
    let here = announced(&["[fd00::1]:80"]);
    assert_eq!(found(&sliced("Pod"), &here), ["10.0.0.2:80 [fd00::2]:80", "[fd00::1]:80 10.0.0.1:80"]);
    let both = announced(&["[fd00::1]:80", "10.0.0.1:80"]);
    assert_eq!(found(&sliced("Pod"), &both), ["10.0.0.1:80 [fd00::1]:80", "10.0.0.2:80 [fd00::2]:80"]);
    // The control: of addresses that are no pod's nobody knows whose they are.
    assert_eq!(found(&sliced("Node"), &[]).len(), 4);
}

#[test]
fn a_pod_in_a_slice_that_announces_itself_with_another_locality_is_one_endpoint() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], zone: z1, targetRef: {kind: Pod, name: a-x}}\n- {addresses: [10.0.0.2], zone: z1, targetRef: {kind: Pod, name: a-y}}\n";
    let sliced = format!("{}{slice}", service("a", "default", HTTP));
    // Each endpoint with its locality and the weight of that.
    let seen = |text: &str, address: &str, locality: &str| -> Vec<(String, String, u32)> {
        let announced = Registration { locality: Locality::parse(locality), ..running("a", "default", 80, address) };
        let world = with(text, &[announced]);
        let endpoints = world.endpoints(&scope("default"), "outbound|80||a.default.svc.cluster.local").unwrap();
        let groups = endpoints.localities.iter();
        groups
            .flat_map(|group| {
                let Locality { region, zone, sub_zone } = &group.locality;
                let at = format!("{region}/{zone}/{sub_zone}");
                group.endpoints.iter().map(move |one| (one.address.to_string(), at.clone(), group.weight.get()))
            })
            .collect()
    };
    let row = |host: u8, at: &str, weight: u32| (format!("10.0.0.{host}:8080"), at.to_owned(), weight);
    // In the slice's zone, in which it knows its region, and in another one, in which the slice counts.
    assert_eq!(seen(&sliced, "10.0.0.1:8080", "eu/z1/s"), [row(2, "/z1/", 1), row(1, "eu/z1/s", 1)]);
    assert_eq!(seen(&sliced, "10.0.0.1:8080", "eu/z2"), [row(1, "/z1/", 2), row(2, "/z1/", 2)]);
    let without_zone = sliced.replace("zone: z1, ", "");
    assert_eq!(seen(&without_zone, "10.0.0.1:8080", "eu/z2"), [row(2, "//", 1), row(1, "eu/z2/", 1)]);
    // The control: another address is another endpoint.
    let three = [row(1, "/z1/", 2), row(2, "/z1/", 2), row(3, "eu/z2/", 1)];
    assert_eq!(seen(&sliced, "10.0.0.3:8080", "eu/z2"), three);
}

/// Endpoints of the service `a` in four localities, the last of version v2.
fn four() -> [Registration; 4] {
    let at = |address: &str, locality: &str, version: &str| {
        let mut one = running("a", "default", 80, address);
        one.locality = Locality::parse(locality);
        one.labels.insert("version".into(), version.into());
        one
    };
    [
        at("10.0.0.1:1", "eu/a/1", "v1"),
        at("10.0.0.2:1", "eu/a/2", "v2"),
        at("10.0.0.3:1", "us/x/1", "v1"),
        at("10.0.0.4:1", "ap/x/1", "v2"),
    ]
}

/// What a client in `locality` is told of them: address, priority, locality weight; and whether it weighs.
fn seen_from(locality: &str, setting: &str) -> (Vec<(String, u32, u32)>, bool) {
    let spec = format!("{{host: a, trafficPolicy: {{{setting}}}}}");
    let world = with(&istio("DestinationRule", "r", "default", &spec), &four());
    let mut client = scope("default");
    client.locality = Locality::parse(locality);
    client.labels.insert("version".into(), "v1".into());
    let name = "outbound|80||a.default.svc.cluster.local";
    let endpoints = world.endpoints(&client, name).unwrap();
    let groups = endpoints.localities.iter().flat_map(|group| {
        group.endpoints.iter().map(|one| (one.address.to_string(), group.priority, group.weight.get()))
    });
    let mut groups: Vec<_> = groups.collect();
    groups.sort();
    (groups, world.cluster(&client, name).unwrap().locality.weighted)
}

fn tiers(seen: &(Vec<(String, u32, u32)>, bool)) -> Vec<u32> {
    seen.0.iter().map(|(_, tier, _)| *tier).collect()
}

#[test]
fn distribute_gives_localities_their_shares_and_leaves_the_others_out() {
    let setting = |extra: &str| {
        format!(
            "loadBalancer: {{localityLbSetting: {{distribute: [{{from: eu/a/*, to: {{eu/*: 80, us/x/1: 20}}}}, {{from: us, to: {{us: 100}}}}]{extra}}}}}"
        )
    };
    let seen = seen_from("eu/a/1", &setting(""));
    let weights: Vec<(&str, u32, u32)> = seen.0.iter().map(|(a, tier, weight)| (a.as_str(), *tier, *weight)).collect();
    // 80 % is parted between the two that one pattern matches; nobody matches the fourth.
    assert_eq!(weights, [("10.0.0.1:1", 0, 400_000), ("10.0.0.2:1", 0, 400_000), ("10.0.0.3:1", 0, 200_000)]);
    assert!(seen.1);
    let seen = seen_from("us/x/9", &setting(""));
    assert_eq!(seen.0, [("10.0.0.3:1".to_owned(), 0, 1_000_000)]);
    // The controls: a client that no entry is about, and the setting switched off.
    for seen in [seen_from("ap/x/1", &setting("")), seen_from("eu/a/1", &setting(", enabled: false"))] {
        assert_eq!((seen.0.len(), seen.1, tiers(&seen)), (4, false, vec![0; 4]));
    }
    // Shares beat tiers.
    let seen = seen_from("eu/a/1", &format!("outlierDetection: {{}}, {}", setting("")));
    assert_eq!(tiers(&seen), [0, 0, 0]);
}

#[test]
fn failover_priority_ranks_by_labels_and_then_by_region() {
    let setting = |setting: &str| format!("outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{{setting}}}}}");
    let tiers = |locality: &str, text: &str| tiers(&seen_from(locality, text));
    assert_eq!(tiers("", &setting("failoverPriority: [version]")), [0, 1, 0, 1]);
    assert_eq!(tiers("", &setting("failoverPriority: [version=v2]")), [1, 0, 1, 0]);
    // The first label that differs decides: the second of them does not make up for it.
    let zoned = setting("failoverPriority: [topology.kubernetes.io/region, version]");
    assert_eq!(tiers("eu/a/1", &zoned), [0, 1, 2, 2]);
    let both = setting("failoverPriority: [version], failover: [{from: eu, to: ap}]");
    assert_eq!(tiers("eu/a/1", &both), [0, 2, 1, 3]);
    // The controls: no outlier detection, or switched off.
    assert_eq!(tiers("", "loadBalancer: {localityLbSetting: {failoverPriority: [version]}}"), [0; 4]);
    assert_eq!(tiers("", &setting("failoverPriority: [version], enabled: false")), [0; 4]);
}

#[test]
fn a_pod_gives_its_endpoint_labels_account_and_mesh_tls() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a-x}}\n- {addresses: [10.0.0.2]}\n- {addresses: [10.0.0.3], targetRef: {kind: Pod, name: other, namespace: elsewhere}}\n---\n";
    let pod = |name: &str, namespace: &str, version: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: a, version: {version}, security.istio.io/tlsMode: istio}}}}\nspec: {{serviceAccountName: {name}-account, containers: [{{name: a, image: a}}]}}\nstatus: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}, {{ip: '::1'}}]}}\n---\n"
        )
    };
    let rule = istio(
        "DestinationRule",
        "a",
        "default",
        "{host: a, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}",
    );
    let base = format!("{}{slice}{rule}", service("a", "default", HTTP));
    // By the name the slice says, by the address it has; a pod of another namespace at that address is not it.
    let pods = [
        pod("a-x", "default", "v1", "10.9.9.9"),
        pod("a-y", "default", "v2", "10.0.0.2"),
        pod("stranger", "elsewhere", "v2", "10.0.0.3"),
    ];
    let full = world(&(base.clone() + &pods.concat()));
    assert_eq!(full.findings(), [], "nothing of a Pod is strange");
    let addresses = |world: &World, subset: &str| -> Vec<String> {
        let name = format!("outbound|80|{subset}|a.default.svc.cluster.local");
        let endpoints = world.endpoints(&scope("default"), &name).unwrap();
        endpoints.iter().map(|one| one.address.to_string()).collect()
    };
    assert_eq!(addresses(&full, "v1"), ["10.0.0.1:8080"]);
    assert_eq!(addresses(&full, "v2"), ["10.0.0.2:8080"]);
    assert_eq!(addresses(&full, "").len(), 3);
    let name = "outbound|80|v1|a.default.svc.cluster.local";
    let UpstreamTls::Auto(tls) = full.cluster(&scope("default"), name).unwrap().tls else { panic!("automatic") };
    assert!(tls.peer_ids.iter().any(|id| id.matches("spiffe://cluster.local/ns/default/sa/a-x-account")));
    let endpoints = full.endpoints(&scope("default"), name).unwrap();
    let metadata = &endpoints.iter().next().unwrap().metadata;
    let workload = metadata.workload.as_ref().unwrap();
    assert!(metadata.mesh_tls && workload.canonical_revision == "v1" && workload.name == "a-x");
    // The control: without pods an endpoint has no labels, and no subset has endpoints.
    let bare = world(&base);
    assert_eq!((addresses(&bare, "v1").len(), addresses(&bare, "").len()), (0, 3));
    assert!(codes(&bare).contains(&("spec.subsets[0]", Some("IST0173"))));
}

#[test]
fn a_workload_entry_that_is_not_well_gets_no_requests() {
    use mesh_core::policy::Health;

    let entry = |annotations: &str, status: &str| {
        istio("WorkloadEntry", "w", "default", "{address: 10.0.0.1, labels: {app: a}}")
            .replace("{name: w,", &format!("{{name: w, annotations: {{{annotations}}},"))
            .replace("---", &format!("status: {status}\n---"))
    };
    let service = istio(
        "ServiceEntry",
        "a",
        "default",
        "{hosts: [a.b], ports: [{number: 80, name: http}], resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: a}}}",
    );
    let probed = "proxy.istio.io/health-checks-enabled: 'true'";
    for (annotations, status, health) in [
        ("", "{}", Health::Healthy),
        ("", "{conditions: [{type: Healthy, status: 'False'}]}", Health::Unhealthy),
        ("", "{conditions: [{type: Ready, status: 'False'}, {type: Healthy, status: 'True'}]}", Health::Healthy),
        (probed, "{}", Health::Unhealthy),
        (probed, "{conditions: [{type: Healthy, status: 'True'}]}", Health::Healthy),
    ] {
        let text = entry(annotations, status);
        let world = world(&format!("{service}{text}"));
        let endpoints = world.endpoints(&scope("default"), "outbound|80||a.b").unwrap();
        let found: Vec<_> = endpoints.iter().map(|endpoint| endpoint.health).collect();
        assert_eq!(found, [health], "{text}");
    }
}
