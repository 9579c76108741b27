//! Findings of objects that do not go together, each with the control in which they do.

use super::*;

/// What is told of objects of a kind at a field.
fn told(text: &str, registrations: &[Registration], kind: &str, field: &str) -> Vec<String> {
    let world = with(text, registrations);
    let about = world.findings().iter().filter(|finding| finding.kind == kind && finding.field == field);
    about.map(|finding| format!("{}: {}", finding.name, finding.message)).collect()
}

#[test]
fn a_gateway_that_is_not_there_or_does_not_serve_the_host_is_told() {
    let routes = istio(
        "VirtualService",
        "a",
        "shop",
        "{hosts: [a.test], gateways: [edge], http: [{route: [{destination: {host: a}}]}]}",
    );
    let gateway = |hosts: &str| {
        let servers = format!("{{servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{hosts}]}}]}}");
        istio("Gateway", "edge", "shop", &servers)
    };
    let base = service("a", "shop", HTTP) + &routes;
    // Others are told of the same fields.
    let of_the_gateway = |text: &str, field: &str| {
        let mut all = told(text, &[], "VirtualService", field);
        all.retain(|message| message.contains("Gateway shop/edge"));
        all
    };
    let missing = |text: &str| of_the_gateway(text, "spec.gateways");
    let unserved = |text: &str| of_the_gateway(text, "spec.hosts[0]");
    assert_eq!(missing(&base), ["a: no Gateway shop/edge"]);
    let other = base.clone() + &gateway("b.test");
    assert_eq!(unserved(&other), ["a: Gateway shop/edge does not serve host \"a.test\""]);
    for hosts in ["a.test", "'*.test'"] {
        let both = base.clone() + &gateway(hosts);
        assert_eq!((missing(&both).len(), unserved(&both).len()), (0, 0), "{hosts}");
    }
}

#[test]
fn a_profile_of_no_service_and_a_younger_split_of_one_are_told() {
    let profile = "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a.default.svc.cluster.local}\nspec: {}\n---\n";
    let of_profile = |text: String| told(&text, &[], "ServiceProfile", "metadata.name");
    let nothing =
        "a.default.svc.cluster.local: no Service \"a.default.svc.cluster.local\": the profile holds for nothing";
    assert_eq!(of_profile(profile.to_owned()), [nothing]);
    assert_eq!(of_profile(service("a", "default", HTTP) + profile), [] as [String; 0]);
    let split = |name: &str, root: &str| {
        format!(
            "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec: {{service: {root}, backends: [{{service: a, weight: 1}}]}}\n---\n"
        )
    };
    let services = service("a", "default", HTTP) + &service("b", "default", HTTP);
    let of_split = |second: &str| {
        let text = services.clone() + &split("one", "a") + &split("two", second);
        told(&text, &[], "TrafficSplit", "spec.service")
    };
    let older = "two: an older TrafficSplit holds for a.default.svc.cluster.local; this one is ignored";
    assert_eq!(of_split("a"), [older]);
    assert_eq!(of_split("b"), [] as [String; 0]);
}

#[test]
fn an_announcement_at_a_port_that_the_service_does_not_have_is_told_once() {
    let text = service("a", "shop", HTTP);
    let of = |registrations: &[Registration]| told(&text, registrations, "Service", "spec.ports");
    let (good, bad) = (running("a", "shop", 80, "10.0.0.1:8080"), |at: &str| running("a", "shop", 81, at));
    let message = "a: a process at 10.0.0.2:8080 announced port 81, which this Service does not have: it gets no \
                   requests there";
    assert_eq!(of(&[good.clone(), bad("10.0.0.2:8080"), bad("10.0.0.3:8080")]), [message]);
    assert_eq!(of(&[good]), [] as [String; 0]);
}

#[test]
fn a_second_server_of_the_same_pods_and_port_is_told() {
    let server = |name: &str, label: &str, port: u16| {
        format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {{matchLabels: {{app: {label}}}}}, port: {port}}}\n---\n"
        )
    };
    let of = |second: String| told(&(server("one", "a", 80) + &second), &[], "Server", "spec");
    let same = "two: Server one guards the same port of the same pods: this one has no effect";
    assert_eq!(of(server("two", "a", 80)), [same]);
    for other in [server("two", "b", 80), server("two", "a", 81)] {
        assert_eq!(of(other), [] as [String; 0]);
    }
}
