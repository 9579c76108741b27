//! What a manifest asks for and this version does not do. The policy that it makes is asked, so that nothing has to be
//! kept in step by hand: what is enforced one day is no longer reported from then on.

use mesh_core::id::ClusterName;
use mesh_core::policy::{Cluster, HeaderPolicy, RouteConfiguration, Unenforced, VirtualHost, unenforced};

use super::{World, cluster, routes};
use crate::finding::{Finding, Severity};
use crate::model::{DestinationRule, Object, TrafficPolicy, VirtualService};

/// What makes a field of a cluster, below `trafficPolicy`. The first that begins like it counts; what none does is
/// reported for the whole policy.
const OF_CLUSTER: &[(&str, &str)] = &[
    ("balancer", "loadBalancer"),
    ("hashing", "loadBalancer.consistentHash"),
    ("locality", "loadBalancer.localityLbSetting"),
    ("slow_start", "loadBalancer.warmup"),
    ("outlier", "outlierDetection"),
    ("breaker.retry_budget", "retryBudget"),
    ("breaker", "connectionPool"),
    ("connection.tcp_keepalive", "connectionPool.tcp.tcpKeepalive"),
    ("connection.max_concurrent_streams", "connectionPool.http.maxConcurrentStreams"),
    ("connection.http2_keepalive", "connectionPool.http.http2KeepAlive"),
    ("connection", "connectionPool"),
    ("tls", "tls"),
];

/// What makes a field of a route, below `http[i]`.
const OF_ROUTE: &[(&str, &str)] = &[
    ("retry", "retries"),
    ("max_stream_duration", "timeout"),
    ("hash", "route"),
    ("filters", "fault"),
    ("clusters", "route"),
];

/// Everything to say about it.
pub(super) fn findings(world: &World, findings: &mut Vec<Finding>) {
    for rule in world.model.destination_rules.values() {
        findings.extend(of_rule(rule, unenforced));
    }
    for service in world.model.virtual_services.values() {
        for (i, route) in routes::made_by(world, service) {
            let host = VirtualHost {
                name: String::new(),
                domains: Vec::new(),
                routes: vec![route],
                headers: HeaderPolicy::default(),
                retry: None,
            };
            let made = RouteConfiguration {
                name: String::new(),
                virtual_hosts: vec![host],
                headers: HeaderPolicy::default(),
                retry_budget: None,
            };
            let found = unenforced(&made);
            findings.extend(found.iter().map(|line| of_route(service, i, line)));
        }
    }
}

/// `look` gives what of a cluster is not enforced.
fn of_rule(rule: &Object<DestinationRule>, look: impl Fn(&Cluster) -> Vec<Unenforced>) -> Vec<Finding> {
    let mut found = Vec::new();
    let subsets = rule.spec.subsets.iter().enumerate();
    let subsets = subsets.map(|(i, subset)| (format!("spec.subsets[{i}].trafficPolicy"), subset.policy.as_ref()));
    let all = std::iter::once(("spec.trafficPolicy".to_owned(), rule.spec.policy.as_ref())).chain(subsets);
    for (path, policy) in all {
        let Some(TrafficPolicy { blocks, ports }) = policy else { continue };
        let ports =
            ports.iter().map(|(port, blocks)| (format!("{path}.portLevelSettings"), format!("port {port}: "), blocks));
        for (path, port, blocks) in std::iter::once((path.clone(), String::new(), blocks)).chain(ports) {
            let mut made = Cluster::new(ClusterName::new(""));
            cluster::apply(&mut made, blocks);
            for line in look(&made) {
                let (field, told) = match (port.as_str(), field(OF_CLUSTER, &line.field)) {
                    ("", Some(field)) => (format!("{path}.{field}"), String::new()),
                    (_, Some(field)) => (path.clone(), format!("{port}{field} ")),
                    (_, None) => (path.clone(), format!("{port}{} ", line.field)),
                };
                found.push(finding(rule, &field, &told, &line));
            }
        }
    }
    found
}

fn of_route(service: &Object<VirtualService>, i: usize, line: &Unenforced) -> Finding {
    let path = format!("spec.http[{i}]");
    let inside = line.field.trim_start_matches("virtual_hosts[0].routes[0].");
    match field(OF_ROUTE, inside) {
        Some(field) => finding(service, &format!("{path}.{field}"), "", line),
        None => finding(service, &path, &format!("{inside} "), line),
    }
}

fn field(table: &[(&'static str, &'static str)], policy: &str) -> Option<&'static str> {
    table.iter().find(|(prefix, _)| policy.starts_with(prefix)).map(|(_, field)| *field)
}

fn finding<T>(object: &Object<T>, field: &str, told: &str, line: &Unenforced) -> Finding {
    let message = format!("{told}accepted and not enforced by this version: {}", line.effect);
    object.finding(Severity::Warning, field, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    const MANIFESTS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec:
  host: a
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: x}}
    outlierDetection: {consecutive5xxErrors: 3}
    connectionPool: {tcp: {tcpKeepalive: {time: 5s}}, http: {maxConcurrentStreams: 5}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - route: [{destination: {host: a}}]
    mirror: {host: b}
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: '5xx,http3-post-connect-failure'}
    fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{name: http, port: 80}]}
";

    /// How much of what the manifests make is not enforced.
    fn in_vain(world: &World) -> usize {
        let rule = world.model.destination_rules.values().next().unwrap();
        let mut made = Cluster::new(ClusterName::new(""));
        cluster::apply(&mut made, &rule.spec.policy.as_ref().unwrap().blocks);
        let scope = super::super::NodeScope::namespace("default");
        let routes = world.routes(&scope, "outbound|80||a.default.svc.cluster.local").unwrap();
        unenforced(&made).len() + unenforced(&routes).len()
    }

    #[test]
    fn what_is_not_enforced_of_a_manifest_is_a_finding_of_it() {
        let world = World::build(&Model::from_texts([("a.yaml", MANIFESTS)]), &[]);
        let said = world.findings().iter().filter(|finding| finding.message.contains("not enforced by this version"));
        let said = said.count();
        assert_eq!(said, in_vain(&world), "{:#?}", world.findings());
        assert_ne!(said, 0);
    }

    #[test]
    fn fields_of_policy_are_told_in_the_words_of_the_manifest() {
        let model = Model::from_texts([("a.yaml", MANIFESTS)]);
        let service = model.virtual_services.values().next().unwrap();
        let line =
            |field: &str| Unenforced::new("routes", format!("virtual_hosts[0].routes[0].{field}"), "nothing happens");
        let told = |field: &str| of_route(service, 0, &line(field)).to_string();
        let about = "a.yaml:17: warning: VirtualService default/a spec.http[0]";
        let effect = "accepted and not enforced by this version: nothing happens";
        let retries = "a.yaml:19: warning: VirtualService default/a spec.http[0].retries";
        assert_eq!(told("retry.on.http3_post_connect_failure"), format!("{retries}: {effect}"));
        assert_eq!(told("retry.rate_limited"), told("retry.on.http3_post_connect_failure"));
        // A field that is new and that nobody has put into the table is told all the same.
        assert_eq!(told("brand_new"), format!("{about}: brand_new {effect}"));
    }

    #[test]
    fn fields_of_a_rule_are_told_with_the_subset_and_the_port_they_stand_in() {
        let rule = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec:
  host: a
  trafficPolicy:
    connectionPool: {tcp: {tcpKeepalive: {time: 5s}}}
    portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {tcpKeepalive: {time: 6s}}}}]
  subsets: [{name: v1, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 7s}}}}}]
";
        let model = Model::from_texts([("a.yaml", rule)]);
        let rule = model.destination_rules.values().next().unwrap();
        // A version that does not enforce what of a cluster is made in one place.
        let told = |field: &str| -> Vec<String> {
            let look = |made: &Cluster| {
                let time = made.connection.tcp_keepalive.as_ref().and_then(|keepalive| keepalive.time).unwrap();
                let effect = match time.as_secs() {
                    5 => "of the rule",
                    6 => "of the port",
                    _ => "of the subset",
                };
                vec![Unenforced::new("cluster", field, effect)]
            };
            let found = of_rule(rule, look);
            found.iter().map(|finding| format!("{}: {}", finding.field, finding.message)).collect()
        };
        let not = "accepted and not enforced by this version";
        let keepalive = "connectionPool.tcp.tcpKeepalive";
        assert_eq!(
            told("connection.tcp_keepalive"),
            [
                format!("spec.trafficPolicy.{keepalive}: {not}: of the rule"),
                format!("spec.trafficPolicy.portLevelSettings: port 80: {keepalive} {not}: of the port"),
                format!("spec.subsets[0].trafficPolicy.{keepalive}: {not}: of the subset"),
            ]
        );
        // A field that is new and that nobody has put into the table is told all the same.
        assert_eq!(told("brand_new")[0], format!("spec.trafficPolicy: brand_new {not}: of the rule"));
    }
}
