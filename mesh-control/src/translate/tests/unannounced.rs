//! Declared ports that processes of the mesh did not announce.

use super::*;

const TWO: &str = "{name: http, port: 80, targetPort: 8080}, {name: http-metrics, port: 9090}";

/// The endpoints of both ports, in two pods.
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080}, {name: http-metrics, port: 9090}]\nendpoints:\n- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: a-y}}\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: a-x}}\n---\n";

fn pod(name: &str, ip: &str, account: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: a}}}}\nspec: {{serviceAccountName: {account}}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

fn told(text: &str, registrations: &[Registration]) -> Vec<String> {
    let world = with(text, registrations);
    let of_ports = world.findings().iter().filter(|finding| finding.field == "spec.ports");
    of_ports.map(|finding| finding.message.split(':').take(3).collect::<Vec<_>>().join(":")).collect()
}

#[test]
fn a_declared_port_that_a_process_of_the_mesh_did_not_announce_is_told() {
    let text = service("a", "shop", TWO) + SLICE;
    let (first, second) = (running("a", "shop", 80, "10.0.0.1:8080"), running("a", "shop", 80, "10.0.0.2:8080"));
    let metrics = |at: &str| running("a", "shop", 9090, at);
    let bare = |ip: &str| {
        format!(
            "port 9090 leads to {ip}:9090, which was not announced, while the process there announced {ip}:8080: unless \
             that process serves it through the mesh all the same, no policy stands before what listens there; serve it \
             with the mesh and announce it, or take the port out"
        )
    };
    let all = |registrations: &[Registration]| -> Vec<String> {
        with(&text, registrations)
            .findings()
            .iter()
            .filter(|f| f.field == "spec.ports")
            .map(|f| f.message.clone())
            .collect()
    };
    assert_eq!(all(&[first.clone(), second.clone()]), [bare("10.0.0.1")]);
    assert_eq!(all(&[first.clone(), second.clone(), metrics("10.0.0.1:9090")]), [bare("10.0.0.2")]);
    // Where all is announced, under whatever name, there is nothing to say; nor of processes that announce nothing.
    let under_another = running("b", "shop", 1, "10.0.0.2:9090");
    assert_eq!(all(&[first, second, metrics("10.0.0.1:9090"), under_another]), [] as [String; 0]);
    assert_eq!(all(&[]), [] as [String; 0]);
}

#[test]
fn a_port_of_another_process_at_the_same_address_is_not_taken_for_its_own() {
    let text = service("a", "shop", TWO) + SLICE;
    let process = || running("a", "shop", 80, "10.0.0.1:8080");
    let same = pod("a-x", "10.0.0.1", "a-account");
    assert_eq!(told(&(text.clone() + &same), &[process()]).len(), 1, "the control");
    let other = pod("a-x", "10.0.0.1", "somebody");
    assert_eq!(told(&(text.clone() + &other), &[process()]), [] as [String; 0], "of another account");
    let shared = same + &pod("z", "10.0.0.1", "a-account");
    assert_eq!(told(&(text.clone() + &shared), &[process()]), [] as [String; 0], "on the host's network");
    let elsewhere = Registration { namespace: "other".into(), ..process() };
    assert_eq!(told(&text, &[elsewhere]), [] as [String; 0], "of another namespace");
}

#[test]
fn where_no_endpoints_are_known_announcements_alone_say_what_is_served() {
    let text = service("a", "shop", &format!("{TWO}, {{name: dns, port: 53, protocol: UDP}}"));
    let process = || running("a", "shop", 80, "10.0.0.1:8080");
    let unserved = "port 9090 was announced by nobody, while a process of this Service announced 10.0.0.1:8080";
    assert_eq!(told(&text, &[process()]).len(), 1);
    assert!(told(&text, &[process()])[0].starts_with(unserved), "{:?}", told(&text, &[process()]));
    for also in [running("a", "shop", 9090, "10.0.0.1:7070"), running("metrics", "shop", 1, "10.0.0.1:9090")] {
        assert_eq!(told(&text, &[process(), also]), [] as [String; 0]);
    }
    assert_eq!(told(&text, &[]), [] as [String; 0], "nobody is there");
    // What a WorkloadEntry says is no word of the process, though it announced something else at the same address.
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: e, namespace: shop}\nspec: {address: 10.0.0.1, labels: {app: a}}\n---\n";
    let named = service("a", "shop", "{name: http, port: 80}, {name: metrics, port: 9090, targetPort: m}") + entry;
    let elsewhere = Registration { labels: BTreeMap::new(), ..running("b", "shop", 1, "10.0.0.1:7070") };
    let of_entry = told(&named, &[elsewhere]);
    assert!(of_entry.len() == 1 && of_entry[0].starts_with("port 80 leads to 10.0.0.1:80, "), "{of_entry:?}");
}
