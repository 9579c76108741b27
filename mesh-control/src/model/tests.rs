//! Validation: warnings, kinds without effect, last good versions, values.

mod policies;
mod rejections;

use super::*;

fn findings(text: &str) -> Vec<Finding> {
    Model::from_texts([("a.yaml", text)]).findings.clone()
}

/// `spec` as a VirtualService for the host `a`, indented under `http[0]` unless it begins with `spec:`.
fn virtual_service(spec: &str) -> String {
    let spec = match spec.strip_prefix("spec: ") {
        Some(whole) => whole.to_owned(),
        None => format!("{{hosts: [a], http: [{spec}]}}"),
    };
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {spec}\n")
}

fn object(api: &str, kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn rejects(text: &str, field: &str, message: &str) {
    let findings = findings(text);
    let matching = findings.iter().any(|finding| {
        finding.severity == Severity::Error && finding.field == field && finding.message.contains(message)
    });
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(matching, "no error {field:?} {message:?} in {lines:#?}\nfor {text}");
}

fn accepts(text: &str) {
    let errors: Vec<String> =
        findings(text).iter().filter(|finding| finding.severity == Severity::Error).map(ToString::to_string).collect();
    assert_eq!(errors, [""; 0], "{text}");
}

const TO_A: &str = "route: [{destination: {host: a}}]";

#[test]
fn virtual_service_warnings() {
    for (spec, field, code) in [
        (format!("{{{TO_A}}}, {{{TO_A}}}"), "spec.http[1]", Some("IST0130")),
        (
            format!("{{match: [{{uri: {{exact: /a}}}}], {TO_A}}}, {{match: [{{uri: {{exact: /a}}}}], {TO_A}}}"),
            "spec.http[1].match[0]",
            Some("IST0131"),
        ),
        (format!("{{{TO_A}, mirror: {{host: b}}, mirrorPercent: 5}}"), "spec.http[0].mirrorPercent", None),
        (format!("{{{TO_A}, fault: {{abort: {{percentage: {{value: 5}}}}}}}}"), "spec.http[0].fault.abort", None),
        (format!("{{{TO_A}, fault: {{abort: {{httpStatus: 500}}}}}}"), "spec.http[0].fault.abort.percentage", None),
        (format!("{{{TO_A}, corsPolicy: {{allowOrigin: [x]}}}}"), "spec.http[0].corsPolicy.allowOrigin", None),
        (format!("{{{TO_A}, retries: {{attempts: 1, atempts: 2}}}}"), "spec.http[0].retries.atempts", None),
    ] {
        let text = virtual_service(&spec);
        accepts(&text);
        let found = findings(&text);
        assert!(found.iter().any(|f| f.field == field && f.code == code), "{spec}: {found:#?}");
    }
}

#[test]
fn kinds_that_do_nothing_say_so() {
    for (api, kind, severity, message) in [
        ("policy.linkerd.io/v1alpha1", "EgressNetwork", Severity::Error, "not enforced by this version"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", Severity::Warning, "no effect"),
        ("networking.istio.io/v1", "VirtualServise", Severity::Warning, "did you mean VirtualService?"),
        ("networking.istio.io/v1", "ServiceProfile", Severity::Warning, "known in group \"linkerd.io\""),
        ("v1", "Secret", Severity::Info, "not mesh configuration"),
    ] {
        let found = findings(&object(api, kind, "a", "{}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].severity, severity, "{found:?}");
        assert!(found[0].message.contains(message), "{found:?}");
    }
    rejects(&object("networking.istio.io/v9", "VirtualService", "a", "{}"), "apiVersion", "not known");
}

#[test]
fn kinds_that_do_nothing_and_should_refuse_requests_are_errors() {
    let patch =
        |name: &str| format!("{{configPatches: [{{applyTo: HTTP_FILTER, patch: {{value: {{name: {name}}}}}}}]}}");
    let typed = "{applyTo: HTTP_FILTER, patch: {operation: MERGE, value: {name: a, typed_config: {'@type': \
                 type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit}}}}";
    let beside = "{applyTo: HTTP_FILTER, match: {listener: {filterChain: {filter: {subFilter: {name: envoy.filters.http.jwt_authn}}}}}, \
                  patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.gzip}}}";
    let removed = "{applyTo: HTTP_FILTER, patch: {operation: REMOVE, value: {name: envoy.filters.http.rbac}}}";
    let labelled = "{applyTo: CLUSTER, patch: {value: {metadata: {app: envoy-rbac}}}}";
    let patches = |of: &[&str]| format!("{{configPatches: [{}]}}", of.join(", "));
    let filter = |spec, at| ("networking.istio.io/v1alpha3", "EnvoyFilter", spec, at);
    let parent = |of: &str| format!("{{parentRefs: [{of}]}}");
    for (api, kind, spec, at) in [
        ("networking.istio.io/v1alpha3", "EnvoyFilter", patch("envoy.filters.http.ext_authz"), "spec.configPatches"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", patch("envoy.filters.http.lua"), "spec.configPatches"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", patch("envoy.filters.http.rbac"), "spec.configPatches"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", patch("envoy.filters.http.gzip"), ""),
        filter(patch("envoy.filters.http.ratelimit"), "spec.configPatches"),
        filter(patch("envoy.filters.http.ext_proc"), "spec.configPatches"),
        filter(patch("envoy.filters.http.csrf"), "spec.configPatches"),
        filter(patches(&[beside, removed, labelled, typed]), "spec.configPatches"),
        filter(patches(&[beside, removed, labelled]), ""),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "{phase: AUTHZ}".to_owned(), "spec.phase"),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", "{phase: STATS}".to_owned(), ""),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", parent("{kind: Gateway, name: a}"), ""),
        ("gateway.networking.k8s.io/v1", "GRPCRoute", parent("{kind: Service, name: a}"), ""),
    ] {
        let found = findings(&object(api, kind, "a", &spec));
        let (severity, words) = match at {
            "" => (Severity::Warning, "no effect"),
            _ => (Severity::Error, "are NOT refused"),
        };
        assert_eq!(
            (found.len(), found[0].severity, found[0].field.as_str()),
            (1, severity, at),
            "{kind} {spec}: {found:?}"
        );
        assert!(found[0].message.contains(words), "{kind} {spec}: {found:?}");
    }
}

#[test]
fn unknown_fields_are_warnings_with_a_suggestion_and_a_line() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: a\n  trafficpolicy: {}\n";
    let found = findings(text);
    assert_eq!(
        found[0].to_string(),
        "a.yaml:6: warning: DestinationRule default/a spec.trafficpolicy: ignored: unknown field, did you mean trafficPolicy?"
    );
}

#[test]
fn an_object_that_breaks_keeps_its_last_good_version() {
    let good = virtual_service(&format!("{{{TO_A}}}"));
    let bad = virtual_service("{route: [{destination: {host: a}, weight: -1}]}");
    let first = Model::from_texts([("a.yaml", good.as_str())]);
    let manifests = Manifests::from_texts([("a.yaml", bad.as_str())]);
    let second = Model::build(&manifests, Some(&first));
    assert_eq!(second.virtual_services.len(), 1);
    let message = &second.findings[0].message;
    assert!(message.ends_with("the last good version of this object stays in force"), "{message}");
    // Without a good version before it there is none, and a third revision still keeps the first.
    assert!(Model::build(&manifests, None).virtual_services.is_empty());
    assert_eq!(Model::build(&manifests, Some(&second)).virtual_services.len(), 1);
    // Deleting the object deletes it.
    assert!(Model::build(&Manifests::default(), Some(&second)).virtual_services.is_empty());
}

#[test]
fn a_document_that_did_not_change_keeps_its_object_and_its_warnings() {
    let warned = virtual_service(&format!("{{{TO_A}, retries: {{attempts: 1, atempts: 2}}}}"));
    let manifests = Manifests::from_texts([("a.yaml", warned.as_str())]);
    let first = Model::build(&manifests, None);
    assert_eq!(first.findings.len(), 1, "{:?}", first.findings);
    let again = Model::build(&manifests, Some(&first));
    assert_eq!(again.findings, first.findings);
    let object = |model: &Model| model.virtual_services.values().next().cloned().unwrap();
    assert!(Arc::ptr_eq(&object(&first), &object(&again)));
    // The control: the same text read again is another document.
    let read_again = Model::build(&Manifests::from_texts([("a.yaml", warned.as_str())]), Some(&first));
    assert!(!Arc::ptr_eq(&object(&first), &object(&read_again)));
}

#[test]
fn a_peer_authentication_that_is_not_valid_fails_closed_and_keeps_a_good_one() {
    use mesh_core::policy::InboundTls;

    let peer = |spec: &str| object("security.istio.io/v1", "PeerAuthentication", "a", spec);
    let mode = |model: &Model| model.peer_authentications.values().next().and_then(|policy| policy.spec.mode);
    for bad in ["{mtls: {mode: PERMISSIV}}", "{mtls: 5}"] {
        let manifests = Manifests::from_texts([("a.yaml", peer(bad).as_str())]);
        let model = Model::build(&manifests, None);
        assert_eq!(mode(&model), Some(InboundTls::Strict), "{bad}");
        assert!(model.findings[0].message.contains("mutual TLS is required"), "{:?}", model.findings);
        // Reading the same document again changes nothing, and another bad one is no better.
        let worse = Manifests::from_texts([("a.yaml", peer("{mtls: {mode: OFF}}").as_str())]);
        let worse = Model::build(&worse, Some(&model));
        assert!(worse.findings[0].message.contains("mutual TLS is required"), "{:?}", worse.findings);
        let again = Model::build(&manifests, Some(&model));
        assert_eq!((mode(&again), &again.findings), (Some(InboundTls::Strict), &model.findings));

        let good = Model::from_texts([("a.yaml", peer("{mtls: {mode: DISABLE}}").as_str())]);
        assert_eq!(mode(&Model::build(&manifests, Some(&good))), Some(InboundTls::Disable));
    }
}

#[test]
fn an_authorization_policy_that_is_not_valid_denies_and_keeps_a_good_one() {
    use mesh_core::policy::AuthorizationAction;

    let policy = |spec: &str| object("security.istio.io/v1", "AuthorizationPolicy", "a", spec);
    let one = |model: &Model| model.authorization_policies.values().next().map(|policy| policy.spec.clone());
    for (bad, selected) in [
        ("{action: DENNY, rules: [{}], selector: {matchLabels: {app: b}}}", true),
        ("{selector: {matchLabels: {app: b}}, rules: [{form: []}]}", true),
        ("{selector: {matchLabels: {app: b}}, action: DENY}", true),
        ("{rules: 5}", false),
    ] {
        let manifests = Manifests::from_texts([("a.yaml", policy(bad).as_str())]);
        let model = Model::build(&manifests, None);
        let found = one(&model).unwrap();
        assert_eq!((found.action, found.selection.labels.is_some()), (AuthorizationAction::Deny, selected), "{bad}");
        assert!(model.findings[0].message.contains("every request is denied"), "{:?}", model.findings);
        let good = Model::from_texts([("a.yaml", policy("{rules: [{}]}").as_str())]);
        let kept = Model::build(&manifests, Some(&good));
        assert_eq!(one(&kept).unwrap().action, AuthorizationAction::Allow, "{bad}");
    }
    // What would only observe closes nothing.
    for open in ["{action: AUDIT}", "{targetRefs: [{kind: Pod, name: g}], action: AUDIT, rules: [{}]}"] {
        let model = Model::from_texts([("a.yaml", policy(open).as_str())]);
        assert!(one(&model).is_none() && model.findings[0].severity == Severity::Error, "{open}");
    }
}

/// An edit that ends a dry run and has a slip in it leaves the dry run, and says what that means.
#[test]
fn a_last_good_version_that_only_observes_is_told() {
    let policy = |annotation: &str, spec: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, annotations: {{{annotation}}}}}\nspec: {spec}\n"
        );
        Manifests::from_texts([("a.yaml", text.as_str())])
    };
    let broken = policy("", "{action: DENY, rules: [{to: [{operation: {path: [/a]}}]}]}");
    let told = |before: &Manifests| {
        let before = Model::build(before, None);
        let model = Model::build(&broken, Some(&before));
        model.findings.iter().any(|f| f.severity == Severity::Error && f.message.contains("NOTHING IS DENIED"))
    };
    assert!(told(&policy("istio.io/dry-run: 'true'", "{action: DENY, rules: [{}]}")));
    assert!(told(&policy("", "{action: AUDIT, rules: [{}]}")));
    assert!(!told(&policy("", "{action: DENY, rules: [{}]}")), "the control: it denies");
}

#[test]
fn a_misspelt_kind_that_would_guard_something_is_an_error() {
    let severity = |group: &str, kind: &str| {
        let text = format!("apiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n");
        let model = Model::from_texts([("a.yaml", text.as_str())]);
        let [finding] = &model.findings[..] else { panic!("{:?}", model.findings) };
        assert_eq!(finding.message.contains("NOT refused"), finding.severity == Severity::Error, "{finding}");
        finding.severity
    };
    assert_eq!(severity("security.istio.io", "AuthorizationPolicys"), Severity::Error);
    assert_eq!(severity("security.istio.io", "Unheard"), Severity::Error);
    assert_eq!(severity("policy.linkerd.io", "Servers"), Severity::Error);
    assert_eq!(severity("security.istio.oi", "AuthorizationPolicy"), Severity::Error);
    assert_eq!(severity("networking.istio.io", "VirtualServices"), Severity::Warning, "the control");
}

#[test]
fn durations_follow_gos_grammar() {
    use std::time::Duration;
    use values::duration;

    for (text, millis) in
        [("10s", 10_000), ("1m30s", 90_000), ("0.25s", 250), (".5s", 500), ("1h", 3_600_000), ("0", 0)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "10", "s", "1.2.3s", "1d", "-1s", "1s ", "99999999999h", "1e3s"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn quantities_are_scaled_to_tenths_of_thousandths() {
    use values::quantity;

    for (text, value) in [("900m", 9000), ("100m", 1000), ("1", 10_000), ("0.5", 5000), ("50u", 0), ("1k", 10_000_000)]
    {
        assert_eq!(quantity(text), Ok(value), "{text}");
    }
    for text in ["", "m", "-1", "1x", "1.2.3", "9999999999999"] {
        assert!(quantity(text).is_err(), "{text}");
    }
}

#[test]
fn port_protocols_follow_app_protocol_then_name_then_number() {
    let of = |app: Option<&str>, name: &str, number| PortProtocol::of_port(app, name, number, "TCP");
    assert_eq!(of(Some("kubernetes.io/h2c"), "tcp", 80), PortProtocol::Http2);
    assert_eq!(of(None, "grpc-web-x", 80), PortProtocol::Http);
    assert_eq!(of(None, "grpc-x", 80), PortProtocol::Grpc);
    assert_eq!(of(None, "mongo", 80), PortProtocol::Tcp);
    assert_eq!(of(None, "web", 3306), PortProtocol::Tcp);
    assert_eq!(of(None, "web", 80), PortProtocol::Unspecified);
    assert_eq!(PortProtocol::of_port(None, "http", 53, "UDP"), PortProtocol::Udp);
}

#[test]
fn of_ports_with_one_number_that_of_tcp_counts_whichever_comes_first() {
    let (udp, tcp) = ("{name: dns, port: 53, protocol: UDP}", "{name: dns-tcp, port: 53, targetPort: 5353}");
    let (other, web) = ("{name: other, port: 53, protocol: TCP}", "{name: http, port: 80}");
    let ports = |list: &[&str]| -> Vec<(String, bool)> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns}}\nspec: {{ports: [{}]}}\n",
            list.join(", ")
        );
        let model = Model::from_texts([("a.yaml", text.as_str())]);
        let service = model.services.values().next().unwrap();
        service.spec.ports.iter().map(|port| (port.name.clone(), port.protocol == PortProtocol::Udp)).collect()
    };
    let (of_udp, of_tcp, of_web) = (("dns".into(), true), ("dns-tcp".into(), false), ("http".to_owned(), false));
    assert_eq!(ports(&[udp, web, tcp, other]), [of_tcp.clone(), of_web.clone()]);
    assert_eq!(ports(&[tcp, udp, other, web]), [of_tcp, of_web]);
    assert_eq!(ports(&[udp]), [of_udp], "the control");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "[ -~\n]{0,200}") {
        let _ = Model::from_texts([("a.yaml", text.as_str())]);
    }

    #[test]
    fn no_scalar_makes_a_value_reader_panic(text in "\\PC{0,24}") {
        let _ = values::duration(&text);
        let _ = values::quantity(&text);
        let _ = values::is_host(&text);
    }
}

#[test]
fn a_misspelt_kind_keeps_what_the_object_was_and_a_removed_object_goes() {
    let good = virtual_service(&format!("spec: {{hosts: [a], http: [{{{TO_A}}}]}}"));
    let first = Model::from_texts([("a.yaml", good.as_str())]);
    assert_eq!(first.virtual_services.len(), 1);
    let build = |text: &str| Model::build(&Manifests::from_texts([("a.yaml", text)]), Some(&first));
    for (from, to) in [("VirtualService", "VirtualServise"), ("networking.istio.io", "networking.istoi.io")] {
        let model = build(&good.replace(from, to));
        assert_eq!(model.virtual_services.len(), 1, "{to}");
        let line = model.findings()[0].to_string();
        assert!(line.contains("error") && line.ends_with("the last good VirtualService of this name stays in force"));
    }
    // The controls: a kind that is no slip, and a removal.
    assert!(build(&good.replace("VirtualService", "Gizmo")).virtual_services.is_empty());
    assert!(build("").virtual_services.is_empty());
}

#[test]
fn a_service_says_which_of_its_fields_are_unknown_or_not_performed() {
    let service = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, annotations: {{retry.linkerd.io/http: 5xx}}}}\nspec: {spec}\n"
        )
    };
    let text =
        service("{selctor: {app: a}, ports: [{port: 80, name: http}], sessionAffinity: ClientIP, externalIPs: []}");
    let model = Model::from_texts([("a.yaml", text.as_str())]);
    let fields: Vec<_> = model.findings().iter().map(|finding| finding.field.as_str()).collect();
    assert_eq!(fields, ["spec.selctor", "spec.sessionAffinity", "metadata.annotations.retry.linkerd.io/http"]);
    assert!(model.findings()[0].message.contains("did you mean selector?"), "{:?}", model.findings());
}

#[test]
fn failure_accrual_is_read_from_a_service_or_said_to_be_wrong() {
    use mesh_core::policy::{FailureAccrual, PerMillion};
    use std::time::Duration;
    let key = |end: &str| format!("balancer.linkerd.io/failure-accrual{end}");
    let read = |annotations: &[(&str, &str)]| {
        let annotations: Vec<_> = annotations.iter().map(|(end, value)| format!("{}: '{value}'", key(end))).collect();
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: n, annotations: {{{}}}}}\n\
             spec: {{ports: [{{port: 80, name: http}}]}}\n",
            annotations.join(", ")
        );
        let model = Model::from_texts([("a.yaml", text.as_str())]);
        let service = model.services.values().next().expect("a mistake does not cost the Service");
        let fields: Vec<_> = model.findings().iter().map(|finding| finding.field.clone()).collect();
        (service.spec.accrual.clone(), fields)
    };
    let on = ("", "consecutive");
    assert_eq!(read(&[on]), (Some(FailureAccrual::default()), vec![]));
    let all = [
        on,
        ("-consecutive-max-failures", "3"),
        ("-consecutive-min-penalty", "500ms"),
        ("-consecutive-max-penalty", "2m"),
        ("-consecutive-jitter-ratio", "0.25"),
    ];
    let want = FailureAccrual {
        max_failures: 3,
        min_penalty: Duration::from_millis(500),
        max_penalty: Duration::from_secs(120),
        jitter: PerMillion::new(250_000),
    };
    assert_eq!(read(&all), (Some(want), vec![]));
    for (end, value) in [
        ("-consecutive-max-failures", "0"),
        ("-consecutive-max-failures", "x"),
        ("-consecutive-min-penalty", "1.5s"),
        ("-consecutive-min-penalty", "2m"),
        ("-consecutive-min-penalty", "0"),
        ("-consecutive-max-penalty", "99999999999999999999d"),
        ("-consecutive-jitter-ratio", "1.5"),
        ("-consecutive-jitter-ratio", "NaN"),
    ] {
        assert_eq!(read(&[on, (end, value)]), (None, vec![format!("metadata.annotations.{}", key(end))]), "{value}");
    }
    let unified = format!("metadata.annotations.{}", key(""));
    assert_eq!(read(&[("", "unified")]), (None, vec![unified]));
    let alone = ("-consecutive-max-failures", "3");
    assert_eq!(read(&[alone]), (None, vec![format!("metadata.annotations.{}", key(alone.0))]));
    assert_eq!(read(&[]), (None, vec![]));
}

#[test]
fn a_service_entry_says_what_of_it_is_not_performed() {
    let spec = "{hosts: [a.b], addresses: [10.0.0.1], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.1.0.1, network: n}]}";
    let text = object("networking.istio.io/v1", "ServiceEntry", "a", spec);
    accepts(&text);
    let found = findings(&text);
    let fields: Vec<_> = found.iter().map(|finding| finding.field.as_str()).collect();
    assert_eq!(fields, ["spec.addresses", "spec.endpoints[0].network"]);
    assert!(found.iter().all(|finding| finding.message.contains("not enforced by this version")), "{found:?}");
}
