//! Who is selected: nobody yet, somebody on another port, and somebody whose Service does not select them.

use super::authorization::{GET, denied_raw, inbound};
use super::*;
use crate::finding::Severity;

fn security(kind: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// Of a field, what is said.
fn told(text: &str, registrations: &[Registration], field: &str) -> Vec<String> {
    let world = with(text, registrations);
    let about = world.findings().iter().filter(|finding| finding.field == field);
    about.map(ToString::to_string).collect()
}

#[test]
fn a_process_that_the_selector_of_its_service_does_not_match_is_told_of_with_service_selector_and_labels() {
    let service = service("httpbin", "default", HTTP);
    let unlabelled = |labels: &[(&str, &str)], address: &str| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Registration { labels, ..running("httpbin", "default", 80, address) }
    };
    let strangers = [unlabelled(&[("ap", "httpbin")], "10.0.0.1:1"), unlabelled(&[], "10.0.0.2:1")];
    let lines = told(&service, &strangers, "spec.selector");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in
        ["warning: Service default/httpbin", "labels ap=httpbin", "selector app=httpbin", "10.0.0.1:1 (and 1 more)"]
    {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
    // The controls: labels that match, and a Service that selects nobody.
    assert_eq!(told(&service, &[running("httpbin", "default", 80, "10.0.0.1:1")], "spec.selector"), [""; 0]);
    let open = service.replace("selector: {app: httpbin}, ", "");
    assert_eq!(told(&open, &strangers, "spec.selector"), [""; 0]);
}

#[test]
fn a_policy_that_selects_nobody_who_is_known_says_so_until_somebody_comes() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, labels: {app: a}}\n---\n";
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: shop}\nspec: {template: {metadata: {labels: {app: a}}}}\n---\n";
    let elsewhere = deployment.replace("shop", "other");
    let entry = istio("WorkloadEntry", "w", "shop", "{address: 10.0.0.1, labels: {app: a}}");
    for (kind, rest) in
        [("AuthorizationPolicy", ""), ("PeerAuthentication", ", mtls: {mode: STRICT}"), ("RequestAuthentication", "")]
    {
        let spec = format!("{{selector: {{matchLabels: {{app: a}}}}{rest}}}");
        let policy = security(kind, "shop", &spec);
        let lines = told(&policy, &[], "spec.selector");
        assert!(lines.len() == 1 && lines[0].contains("app=a") && lines[0].contains("IST0127"), "{kind}: {lines:?}");
        assert!(lines[0].contains("info: "), "{lines:?}");
        assert_eq!(
            told(&format!("{policy}{elsewhere}"), &[running("a", "other", 80, "10.0.0.1:1")], "spec.selector").len(),
            1
        );
        for known in [pod, deployment, entry.as_str()] {
            assert_eq!(told(&format!("{policy}{known}"), &[], "spec.selector"), [""; 0], "{kind}: {known}");
        }
        assert_eq!(told(&policy, &[running("a", "shop", 80, "10.0.0.1:1")], "spec.selector"), [""; 0], "{kind}");
        // That of the root namespace is about every namespace.
        let root = security(kind, "istio-system", &spec);
        assert_eq!(told(&root, &[running("a", "other", 80, "10.0.0.1:1")], "spec.selector"), [""; 0], "{kind}");
        assert_eq!(told(&root, &[], "spec.selector").len(), 1, "{kind}");
    }
}

#[test]
fn a_rule_about_a_services_port_on_which_its_process_does_not_listen_is_told_of() {
    let httpbin = service("httpbin", "default", "{name: http, port: 8000, targetPort: 80}");
    let at = |address: &str| running("httpbin", "default", 8000, address);
    let server = |port: u16| {
        format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: s, namespace: default}}\nspec: {{podSelector: {{matchLabels: {{app: httpbin}}}}, port: {port}}}\n---\n"
        )
    };
    let rule = |port: u16| {
        security(
            "AuthorizationPolicy",
            "default",
            &format!(
                "{{action: DENY, selector: {{matchLabels: {{app: httpbin}}}}, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}"
            ),
        )
    };
    let level = |port: u16| {
        security(
            "PeerAuthentication",
            "default",
            &format!("{{selector: {{matchLabels: {{app: httpbin}}}}, portLevelMtls: {{{port}: {{mode: STRICT}}}}}}"),
        )
    };
    let about = |policy: String, registrations: &[Registration]| {
        let world = with(&format!("{httpbin}{policy}"), registrations);
        let lines = world.findings().iter().filter(|f| f.message.contains("rules are about the port"));
        lines.map(|finding| (finding.severity, finding.field.clone(), finding.message.clone())).collect::<Vec<_>>()
    };
    let moved = [at("10.0.0.1:18001")];
    for (policy, field) in [
        (rule(8000), "spec.rules[0]"),
        (rule(80), "spec.rules[0]"),
        (level(8000), "spec.portLevelMtls.8000"),
        (server(8000), "spec.port"),
    ] {
        let lines = about(policy.clone(), &moved);
        assert_eq!(lines.len(), 1, "{policy}: {lines:?}");
        assert!(lines[0].0 == Severity::Warning && lines[0].1 == field, "{lines:?}");
        assert!(lines[0].2.contains("10.0.0.1:18001") && lines[0].2.contains("listens on port 18001"), "{lines:?}");
        // The controls: nobody is there, or one of them listens there.
        assert_eq!(about(policy.clone(), &[]), []);
        assert_eq!(about(policy, &[moved[0].clone(), at("10.0.0.2:8000"), at("10.0.0.3:80")]), []);
    }
    for right in [rule(18001), level(18001), server(18001), rule(9999)] {
        assert_eq!(about(right, &moved), []);
    }
}

#[test]
fn of_a_subset_that_two_rules_define_the_older_ones_counts_and_the_other_is_told_of() {
    let rule = |name: &str, version: &str, more: &str| {
        istio(
            "DestinationRule",
            name,
            "default",
            &format!("{{host: a, subsets: [{{name: v1, labels: {{version: {version}}}}}]{more}}}"),
        )
    };
    let text = format!("{}{}{}", service("a", "default", HTTP), rule("first", "one", ""), rule("second", "two", ""));
    let lines = told(&text, &[], "spec.subsets[0].name");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("DestinationRule default/second") && lines[0].contains("default/first (a.yaml:"),
        "{lines:?}"
    );
    let world = world(&text);
    let rules = world.rules.find(&scope("default"), "a.default.svc.cluster.local", "default");
    assert_eq!(rules.subset("v1").unwrap().labels["version"], "one");
    // The control: rules that nobody sees together.
    let apart = format!("{}{}", rule("first", "one", ", exportTo: [x]"), rule("second", "two", ""));
    assert_eq!(told(&apart, &[], "spec.subsets[0].name"), [""; 0]);
}

#[test]
fn of_peer_authentications_for_the_same_workloads_the_younger_one_is_told_that_it_counts_for_nothing() {
    let policy = |name: &str, namespace: &str, created: &str, spec: &str| {
        let created = if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: \
             {namespace}{created}}}\nspec: {spec}\n---\n"
        )
    };
    let rivals = |text: &str, registrations: &[Registration]| -> Vec<String> {
        let world = with(text, registrations);
        let about = world.findings().iter().filter(|finding| finding.message.contains("counts for nothing there"));
        about.map(ToString::to_string).collect()
    };
    let (whole, strict) = ("{mtls: {mode: PERMISSIVE}}", "{mtls: {mode: STRICT}}");
    let of = |labels: &str| format!("{{selector: {{matchLabels: {{{labels}}}}}, mtls: {{mode: STRICT}}}}");
    let young = policy("a", "shop", "2026-02-01T00:00:00Z", whole);
    let old = policy("b", "shop", "2026-01-01T00:00:00Z", strict);
    let lines = rivals(&format!("{young}{old}"), &[]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["warning: PeerAuthentication shop/a spec: ", "PeerAuthentication b (", "for the same workloads"] {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
    // The younger one's mode is what does not count.
    let same = format!("{}{}", policy("a", "shop", "", &of("app: a")), policy("b", "shop", "", &of("app: a")));
    assert!(rivals(&same, &[])[0].contains("shop/b spec.selector: "), "{:?}", rivals(&same, &[]));
    let crossing = format!("{}{}", policy("a", "shop", "", &of("app: a")), policy("b", "shop", "", &of("tier: front")));
    let mut both = running("a", "shop", 80, "10.0.0.1:1");
    both.labels.insert("tier".to_owned(), "front".to_owned());
    let lines = rivals(&crossing, &[both]);
    assert!(lines.len() == 1 && lines[0].contains("for some of the same workloads"), "{lines:?}");
    // The controls: nobody has both labels; other namespaces; a workload's beside its namespace's.
    assert_eq!(rivals(&crossing, &[running("a", "shop", 80, "10.0.0.1:1")]), [""; 0]);
    let apart = format!("{young}{}", policy("b", "other", "", strict));
    assert_eq!(rivals(&apart, &[]), [""; 0]);
    assert_eq!(rivals(&format!("{young}{}", policy("b", "shop", "", &of("app: a"))), &[]), [""; 0]);
}

#[test]
fn a_deny_rule_about_nothing_but_http_is_told_that_it_denies_every_connection() {
    let about = |action: &str, rule: &str| {
        let policy = security("AuthorizationPolicy", "shop", &format!("{{action: {action}, rules: [{rule}]}}"));
        let world = world(&policy);
        let told = world.findings().iter().filter(|finding| finding.field == "spec.rules[0]");
        let told: Vec<_> = told.map(ToString::to_string).collect();
        assert!(
            told.iter().all(|line| line.contains("warning: ") && line.contains("denies every connection")),
            "{told:?}"
        );
        (told.len(), denied_raw(&inbound(&world, "shop"), GET.peer).is_some())
    };
    for (rule, told) in [
        ("{to: [{operation: {paths: [/admin]}}]}", true),
        ("{to: [{operation: {methods: [POST], notHosts: [a.test]}}]}", true),
        ("{from: [{source: {notRequestPrincipals: ['*']}}]}", true),
        ("{when: [{key: 'request.headers[x-a]', values: [b]}]}", true),
        ("{when: [{key: 'request.auth.claims[a]', values: [b]}]}", true),
        ("{to: [{operation: {ports: ['81']}}, {operation: {paths: [/admin]}}]}", true),
        ("{to: [{operation: {ports: ['81'], paths: [/admin]}}]}", false),
        ("{from: [{source: {namespaces: [ops]}}], to: [{operation: {paths: [/admin]}}]}", false),
        ("{from: [{source: {ipBlocks: [10.8.0.0/16]}}], to: [{operation: {paths: [/admin]}}]}", false),
        ("{to: [{operation: {paths: [/admin]}}], when: [{key: connection.sni, values: [y.test]}]}", false),
    ] {
        // What is told is so.
        assert_eq!(about("DENY", rule), (usize::from(told), told), "{rule}");
        assert_eq!(about("ALLOW", rule).0, 0, "{rule}");
    }
    // Nothing else was meant.
    assert_eq!(about("DENY", "{}").0, 0);
}
