//! What validation refuses, kind by kind: each rejection names its field.

use mesh_core::policy::MAX_PATTERNS;

use super::*;

#[test]
fn virtual_service_rejections_at_the_top() {
    for (spec, field, message) in [
        ("spec: {hosts: [a]}".to_owned(), "spec", "at least one route"),
        (format!("spec: {{gateways: [x], http: [{{{TO_A}}}]}}"), "spec.gateways", "not allowed on a delegate"),
        (format!("spec: {{hosts: ['*'], http: [{{{TO_A}}}]}}"), "spec.hosts[0]", "bare"),
        (format!("spec: {{hosts: [a, A], http: [{{{TO_A}}}]}}"), "spec.hosts[1]", "listed twice"),
        (format!("spec: {{hosts: ['*.b.com', a.b.com], http: [{{{TO_A}}}]}}"), "spec.hosts[1]", "overlap"),
        (format!("spec: {{hosts: ['*.b.com', c, '*.com'], http: [{{{TO_A}}}]}}"), "spec.hosts[2]", "overlap"),
        (format!("spec: {{hosts: ['a b'], http: [{{{TO_A}}}]}}"), "spec.hosts[0]", "not a host name"),
        (format!("spec: {{hosts: [a], gateways: [x/y/z], http: [{{{TO_A}}}]}}"), "spec.gateways[0]", "namespace/name"),
        (format!("spec: {{hosts: [a], exportTo: ['*', b], http: [{{{TO_A}}}]}}"), "spec.exportTo[0]", "stands alone"),
        (format!("spec: {{hosts: [a], exportTo: [b, b], http: [{{{TO_A}}}]}}"), "spec.exportTo[1]", "listed twice"),
        ("spec: {hosts: [a], tls: [{route: [{destination: {host: a}}]}]}".to_owned(), "spec.tls[0].match", "sniHosts"),
        (
            "spec: {hosts: [a.example.com], tls: [{match: [{sniHosts: [b.example.com]}], route: [{destination: {host: a}}]}]}"
                .to_owned(),
            "spec.tls[0].match[0].sniHosts[0]",
            "not within the hosts",
        ),
        ("spec: {hosts: [a], tcp: [{}]}".to_owned(), "spec.tcp[0].route", "destination is needed"),
        ("spec: {hosts: [a], tcp: [{route: [{}]}]}".to_owned(), "spec.tcp[0].route[0].destination", "destination is needed"),
        (
            "spec: {hosts: [a], tcp: [{route: [{destination: {host: a, port: {number: 70000}}}]}]}".to_owned(),
            "spec.tcp[0].route[0].destination.port.number",
            "1 to 65535",
        ),
        (
            "spec: {hosts: [a], tcp: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}".to_owned(),
            "spec.tcp[0].route",
            "sum to 0",
        ),
        (
            "spec: {hosts: [a], tcp: [{match: [{destinationSubnets: [10.0.0.0/99]}], route: [{destination: {host: a}}]}]}"
                .to_owned(),
            "spec.tcp[0].match[0].destinationSubnets[0]",
            "CIDR",
        ),
        (
            "spec: {hosts: [a.b], tls: [{match: [{sniHosts: [a.b], port: -1}], route: [{destination: {host: a}, weight: -1}]}]}"
                .to_owned(),
            "spec.tls[0].route[0].weight",
            "negative",
        ),
        (
            "spec: {hosts: [a.b], tls: [{match: [{sniHosts: [a.b], port: -1}], route: [{destination: {host: a}}]}]}".to_owned(),
            "spec.tls[0].match[0].port",
            "1 to 65535",
        ),
    ] {
        rejects(&virtual_service(&spec), field, message);
    }
}

#[test]
fn virtual_service_rejections_of_actions() {
    let http = |rest: &str| format!("{{{TO_A}, {rest}}}");
    for (spec, field, message) in [
        ("{}".to_owned(), "spec.http[0]", "exactly one of"),
        (http("redirect: {uri: /x}"), "spec.http[0]", "exactly one of"),
        ("{redirect: {uri: /x}, directResponse: {status: 200}}".to_owned(), "spec.http[0]", "exactly one of"),
        (
            "{redirect: {uri: /x}, fault: {abort: {httpStatus: 500, percentage: {value: 1}}}}".to_owned(),
            "spec.http[0].fault",
            "answers by itself",
        ),
        ("{directResponse: {status: 200}, rewrite: {uri: /x}}".to_owned(), "spec.http[0].rewrite", "answers by itself"),
        (http("mirror: {host: b}, mirrors: [{destination: {host: c}}]"), "spec.http[0].mirrors", "only one of"),
        ("{delegate: {}}".to_owned(), "spec.http[0].delegate.name", "name of a VirtualService"),
        ("spec: {http: [{delegate: {name: b}}]}".to_owned(), "spec.http[0].delegate", "cannot delegate"),
        ("{route: [{weight: 1}]}".to_owned(), "spec.http[0].route[0].destination", "destination is needed"),
        ("{route: [{destination: {}}]}".to_owned(), "spec.http[0].route[0].destination.host", "host is needed"),
        (
            "{route: [{destination: {host: a, subset: 'a b'}}]}".to_owned(),
            "spec.http[0].route[0].destination.subset",
            "not a subset name",
        ),
        (
            "{route: [{destination: {host: a, port: {number: 0}}}]}".to_owned(),
            "spec.http[0].route[0].destination.port.number",
            "1 to 65535",
        ),
        (
            "{route: [{destination: {host: a, port: {number: 65536}}}]}".to_owned(),
            "spec.http[0].route[0].destination.port.number",
            "1 to 65535",
        ),
        ("{route: [{destination: {host: a}, weight: -1}]}".to_owned(), "spec.http[0].route[0].weight", "negative"),
        (
            "{route: [{destination: {host: a}, weight: 9999999999}]}".to_owned(),
            "spec.http[0].route[0].weight",
            "too large",
        ),
        ("{route: [{destination: {host: a}}, {destination: {host: b}}]}".to_owned(), "spec.http[0].route", "sum to 0"),
        (
            "{route: [{destination: {host: a}, weight: 4294967295}, {destination: {host: b}, weight: 1}]}".to_owned(),
            "spec.http[0].route",
            "sum to 4294967296",
        ),
        (http("mirror: {host: b}, mirrorPercentage: {value: 101}"), "spec.http[0].mirrorPercentage", "0 and 100"),
        (http("mirror: {host: b}, mirrorPercentage: {value: 0.00001}"), "spec.http[0].mirrorPercentage", "too small"),
    ] {
        rejects(&virtual_service(&spec), field, message);
    }
}

#[test]
fn virtual_service_rejections_of_faults_and_redirects() {
    let http = |rest: &str| format!("{{{TO_A}, {rest}}}");
    for (spec, field, message) in [
        (http("fault: {}"), "spec.http[0].fault", "delay or an abort"),
        (
            http("fault: {abort: {httpStatus: 199, percentage: {value: 1}}}"),
            "spec.http[0].fault.abort.httpStatus",
            "200 and 599",
        ),
        (
            http("fault: {abort: {grpcStatus: NOPE, percentage: {value: 1}}}"),
            "spec.http[0].fault.abort.grpcStatus",
            "not a gRPC status",
        ),
        (http("fault: {delay: {percentage: {value: 1}}}"), "spec.http[0].fault.delay.fixedDelay", "needs its length"),
        (
            http("fault: {delay: {fixedDelay: 1us, percentage: {value: 1}}}"),
            "spec.http[0].fault.delay.fixedDelay",
            "1ms",
        ),
        (
            http("fault: {delay: {exponentialDelay: 1s, fixedDelay: 1s}}"),
            "spec.http[0].fault.delay.exponentialDelay",
            "not supported",
        ),
        ("{redirect: {}}".to_owned(), "spec.http[0].redirect", "nothing is redirected"),
        ("{redirect: {uri: /x, redirectCode: 304}}".to_owned(), "spec.http[0].redirect.redirectCode", "304"),
        ("{redirect: {scheme: ftp}}".to_owned(), "spec.http[0].redirect.scheme", "neither http nor https"),
        (
            "{match: [{uri: {exact: /a}}], redirect: {uri: '%PREFIX()%/x'}}".to_owned(),
            "spec.http[0].redirect.uri",
            "must be a prefix",
        ),
        (
            "{redirect: {port: 80, derivePort: FROM_REQUEST_PORT}}".to_owned(),
            "spec.http[0].redirect",
            "only one of port and derivePort",
        ),
    ] {
        rejects(&virtual_service(&spec), field, message);
    }
}

#[test]
fn virtual_service_rejections_of_conditions_and_limits() {
    let http = |rest: &str| format!("{{{TO_A}, {rest}}}");
    for (spec, field, message) in [
        (http("rewrite: {}"), "spec.http[0].rewrite", "nothing is rewritten"),
        (
            http("rewrite: {uri: /a, uriRegexRewrite: {match: a, rewrite: b}}"),
            "spec.http[0].rewrite",
            "only one of uri and uriRegexRewrite",
        ),
        (http("rewrite: {uriRegexRewrite: {match: a}}"), "spec.http[0].rewrite.uriRegexRewrite.rewrite", "needed"),
        (http("rewrite: {uriRegexRewrite: {rewrite: a}}"), "spec.http[0].rewrite.uriRegexRewrite.match", "1 to 1024"),
        (http("match: [{uri: {regex: '('}}]"), "spec.http[0].match[0].uri.regex", ""),
        (http("match: [{uri: {regex: ''}}]"), "spec.http[0].match[0].uri.regex", "1 to 1024"),
        (http("match: [{headers: {x-a: {prefix: ''}}}]"), "spec.http[0].match[0].headers.x-a.prefix", "empty prefix"),
        (http("match: [{headers: {x-a: {prefix: a, exact: b}}}]"), "spec.http[0].match[0].headers.x-a", "only one of"),
        (http("match: [{headers: {'x a': {exact: b}}}]"), "spec.http[0].match[0].headers.x a", "not a header name"),
        (
            http("match: [{headers: {'@request.auth.claims.iss': {exact: b}}}]"),
            "spec.http[0].match[0].headers.@request.auth.claims.iss",
            "only for gateways",
        ),
        (http("match: [{port: 0}]"), "spec.http[0].match[0].port", "1 to 65535"),
        (http("headers: {request: {remove: [Host]}}"), "spec.http[0].headers.request.remove[0]", "cannot be removed"),
        (
            http("headers: {request: {remove: [':path']}}"),
            "spec.http[0].headers.request.remove[0]",
            "cannot be removed",
        ),
        (http("headers: {request: {set: {x-a: '%REQ(x)%'}}}"), "spec.http[0].headers.request.set.x-a", "%REQ(x)%"),
        (
            http("headers: {request: {set: {host: a, ':authority': b}}}"),
            "spec.http[0].headers.request.set.host",
            "set twice",
        ),
        (http("timeout: 10us"), "spec.http[0].timeout", "1ms"),
        (http("timeout: -1s"), "spec.http[0].timeout", "negative"),
        (http("timeout: 10"), "spec.http[0].timeout", "text is needed, not 10"),
        (http("timeout: 10 seconds"), "spec.http[0].timeout", "not a duration"),
        (http("retries: {attempts: -1}"), "spec.http[0].retries.attempts", "not a number of retries"),
        (http("retries: {attempts: 0, retryOn: 5xx}"), "spec.http[0].retries.attempts", "turns retries off"),
        (http("retries: {attempts: 1, retryOn: sometimes}"), "spec.http[0].retries.retryOn", "sometimes"),
        (http("retries: {attempts: 1, perTryTimeout: x}"), "spec.http[0].retries.perTryTimeout", "not a duration"),
        (http("corsPolicy: {allowMethods: [FETCH]}"), "spec.http[0].corsPolicy.allowMethods[0]", "not an HTTP method"),
        (http("corsPolicy: {maxAge: 1.5s}"), "spec.http[0].corsPolicy.maxAge", "whole seconds"),
        (http("corsPolicy: {unmatchedPreflights: DROP}"), "spec.http[0].corsPolicy.unmatchedPreflights", "neither"),
        ("{directResponse: {status: 99}}".to_owned(), "spec.http[0].directResponse.status", "200 and 599"),
    ] {
        rejects(&virtual_service(&spec), field, message);
    }
}

#[test]
fn a_direct_response_of_more_than_a_mebibyte_is_refused() {
    let body = "x".repeat((1 << 20) + 1);
    let text = virtual_service(&format!("{{directResponse: {{status: 200, body: {{string: {body}}}}}}}"));
    rejects(&text, "spec.http[0].directResponse.body", "at most 1048576");
}

#[test]
fn destination_rule_rejections() {
    for (spec, field, message) in [
        ("{}", "spec.host", "a host is needed"),
        ("{host: a, trafficPolicy: {}}", "spec.trafficPolicy", "empty traffic policy"),
        (
            "{host: a, trafficPolicy: {connectionPool: {}}}",
            "spec.trafficPolicy.connectionPool",
            "empty connection pool",
        ),
        (
            "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}",
            "spec.trafficPolicy.connectionPool.tcp.maxConnections",
            "not a limit",
        ),
        (
            "{host: a, trafficPolicy: {connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}}}",
            "spec.trafficPolicy.connectionPool.http.useClientProtocol",
            "contradicts",
        ),
        (
            "{host: a, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}}",
            "spec.trafficPolicy.connectionPool.http.http2KeepAlive",
            "both needed",
        ),
        ("{host: a, subsets: [{name: v1}, {name: v1}]}", "spec.subsets[1].name", "defined twice"),
        ("{host: a, subsets: [{name: 'v 1'}]}", "spec.subsets[0].name", "not a subset name"),
        ("{host: a, subsets: [{name: v1, labels: {a: 'b c'}}]}", "spec.subsets[0].labels.a", "not a Kubernetes label"),
        (
            "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}}",
            "spec.trafficPolicy.portLevelSettings[0].port",
            "a port is needed",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {simple: BEST}}}",
            "spec.trafficPolicy.loadBalancer.simple",
            "not a load balancer",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {ttl: 0s}}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
            "needs a name",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: a, minimumRingSize: 1, maglev: {tableSize: 7}}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash",
            "only one of",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: 8}}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
            "not a prime",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: a, maglev: {tableSize: '18446744073709551557'}}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
            "not a prime below",
        ),
    ] {
        rejects(&object("networking.istio.io/v1", "DestinationRule", "a", spec), field, message);
    }
}

#[test]
fn destination_rule_rejections_of_locality_ejection_and_tls() {
    for (spec, field, message) in [
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {a: 50}}]}}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to",
            "must be 100",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0]",
            "two different regions",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {warmup: {}}}}",
            "spec.trafficPolicy.loadBalancer.warmup.duration",
            "needed",
        ),
        (
            "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 1s, aggression: 0}}}}",
            "spec.trafficPolicy.loadBalancer.warmup.aggression",
            "above 0",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 3}}}",
            "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
            "splitExternal",
        ),
        (
            "{host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
            "0 and 100",
        ),
        (
            "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: a}}}",
            "spec.trafficPolicy.tls",
            "name no files",
        ),
        ("{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "spec.trafficPolicy.tls", "clientCertificate"),
        (
            "{host: a, trafficPolicy: {tls: {mode: MUTUAL, privateKey: a, credentialName: b}}}",
            "spec.trafficPolicy.tls.credentialName",
            "exclude each other",
        ),
        ("{host: a, trafficPolicy: {tls: {mode: STRICT}}}", "spec.trafficPolicy.tls.mode", "not one of"),
        ("{host: a, trafficPolicy: {tunnel: {}}}", "spec.trafficPolicy.tunnel", "targetHost"),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [other]}", "spec.exportTo", "own namespace"),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}", "spec.exportTo", "own namespace"),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['~']}", "spec.exportTo", "own namespace"),
        ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [., other]}", "spec.exportTo", "own namespace"),
    ] {
        rejects(&object("networking.istio.io/v1", "DestinationRule", "a", spec), field, message);
    }
    for export_to in ["", ", exportTo: [.]", ", exportTo: [default]"] {
        let spec = format!("{{host: a, workloadSelector: {{matchLabels: {{a: b}}}}{export_to}}}");
        accepts(&object("networking.istio.io/v1", "DestinationRule", "a", &spec));
    }
}

#[test]
fn locality_settings_are_refused_as_istio_does() {
    let rule = |setting: &str| {
        let spec = format!(
            "{{host: a, trafficPolicy: {{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {setting}}}}}}}"
        );
        object("networking.istio.io/v1", "DestinationRule", "a", &spec)
    };
    let at = "spec.trafficPolicy.loadBalancer.localityLbSetting";
    for (setting, field, message) in [
        (
            "{distribute: [{from: a/*, to: {a: 100}}, {from: a/b, to: {a: 100}}]}",
            ".distribute[1].from",
            "overlaps \"a/*\"",
        ),
        ("{distribute: [{from: a, to: {a: 100}}, {from: a/b/c, to: {a: 100}}]}", ".distribute[1].from", "overlaps"),
        ("{distribute: [{from: a/b, to: {a: 100}}, {from: a/b, to: {a: 100}}]}", ".distribute[1].from", "overlaps"),
        ("{distribute: [{from: '*', to: {a: 100}}, {from: a, to: {a: 100}}]}", ".distribute[1].from", "overlaps \"*\""),
        ("{distribute: [{from: a, to: {b/*: 50, b/c: 50}}]}", ".distribute[0].to", "overlaps"),
        ("{distribute: [{from: a/**, to: {b: 100}}]}", ".distribute[0]", "at most one"),
        ("{distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}]}", "", "only one of"),
        (
            "{failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/region]}",
            ".failoverPriority[0]",
            "keep one of the two",
        ),
        (
            "{failover: [{from: a, to: b}], failoverPriority: [version, 'topology.istio.io/subzone=x']}",
            ".failoverPriority[1]",
            "keep one of the two",
        ),
        ("{failoverPriority: ['=x']}", ".failoverPriority[0]", "no label"),
        ("{failoverPriority: [a, b, a]}", ".failoverPriority[2]", "twice"),
    ] {
        rejects(&rule(setting), &format!("{at}{field}"), message);
    }
    for setting in [
        "{distribute: [{from: a/b, to: {a: 100}}, {from: a/c, to: {a: 100}}, {from: '*', to: {a: 100}}]}",
        "{failover: [{from: a, to: b}], failoverPriority: [version]}",
        "{failoverPriority: [topology.kubernetes.io/region, version=v1]}",
    ] {
        accepts(&rule(setting));
        assert!(findings(&rule(setting)).is_empty(), "{setting}");
    }
    // Without outlier detection failover does nothing, and that is said.
    let inert = rule("{failoverPriority: [version]}").replace("outlierDetection: {}, ", "");
    assert!(findings(&inert).iter().any(|f| f.field == at && f.message.contains("inert")), "{:?}", findings(&inert));
}

#[test]
fn gateway_rejections() {
    let gateway = |spec: &str| object("networking.istio.io/v1", "Gateway", "a", spec);
    rejects(&gateway("{}"), "spec.servers", "at least one server");
    rejects(&gateway("{servers: [{port: {number: 80, name: a, protocol: HTTP}}]}"), "spec.servers[0].hosts", "host");
    rejects(
        &gateway("{servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*']}]}"),
        "spec.servers[0].port.name",
        "name is needed",
    );
    rejects(
        &gateway("{servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*']}]}"),
        "spec.servers[0].tls",
        "HTTPS needs tls",
    );
    accepts(&gateway("{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*', ./a.b]}]}"));
}

#[test]
fn service_entry_rejections() {
    let entry = |spec: &str| object("networking.istio.io/v1", "ServiceEntry", "a", spec);
    let port = "{number: 80, name: http, protocol: HTTP}";
    for (spec, field, message) in [
        (format!("{{ports: [{port}]}}"), "spec.hosts", "1 to 256"),
        (format!("{{hosts: ['*'], ports: [{port}]}}"), "spec.hosts[0]", "bare"),
        (
            format!(
                "{{hosts: [a.b], ports: [{port}], resolution: STATIC, endpoints: [{{address: 1.2.3.4}}], workloadSelector: {{labels: {{a: b}}}}}}"
            ),
            "spec.workloadSelector",
            "only one of",
        ),
        (
            format!("{{hosts: [a.b], addresses: [10.0.0.0/8], ports: [{port}], resolution: DNS}}"),
            "spec.addresses[0]",
            "CIDR",
        ),
        (format!("{{hosts: [a.b], ports: [{port}, {port}]}}"), "spec.ports[1].number", "defined twice"),
        (format!("{{hosts: [a.b], ports: [{port}], endpoints: [{{address: 1.2.3.4}}]}}"), "spec.endpoints", "NONE"),
        (
            format!("{{hosts: [a.b], ports: [{port}], resolution: STATIC, endpoints: [{{address: b.c}}]}}"),
            "spec.endpoints[0].address",
            "IP address",
        ),
        (
            format!(
                "{{hosts: [a.b], ports: [{port}], resolution: STATIC, endpoints: [{{address: 'unix:///a', ports: {{http: 1}}}}]}}"
            ),
            "spec.endpoints[0].ports",
            "no ports",
        ),
        (format!("{{hosts: ['*.b'], ports: [{port}], resolution: DNS}}"), "spec.hosts[0]", "cannot be resolved"),
        (
            format!(
                "{{hosts: [a.b], ports: [{port}], resolution: STATIC, endpoints: [{{address: 1.2.3.4, ports: {{x: 1}}}}]}}"
            ),
            "spec.endpoints[0].ports.x",
            "no port named",
        ),
        (
            format!(
                "{{hosts: [a.b], ports: [{port}], resolution: DNS_ROUND_ROBIN, endpoints: [{{address: a.b}}, {{address: c.d}}]}}"
            ),
            "spec.endpoints",
            "one endpoint at most",
        ),
        (
            "{hosts: [a.b, c.d], ports: [{number: 1, name: t, protocol: TCP}], resolution: DNS}".to_owned(),
            "spec.ports[0]",
            "one entry a host",
        ),
        (format!("{{hosts: [a.b], ports: [{port}], resolution: MAGIC}}"), "spec.resolution", "not supported"),
    ] {
        rejects(&entry(&spec), field, message);
    }
    accepts(&entry(&format!("{{hosts: [a.b], ports: [{port}], resolution: STATIC}}")));
}

#[test]
fn keepalive_that_no_connection_could_have_is_refused() {
    let pool = |pool: &str| {
        let spec = format!("{{host: a, trafficPolicy: {{connectionPool: {pool}}}}}");
        object("networking.istio.io/v1", "DestinationRule", "a", &spec)
    };
    let tcp = |rest: &str| pool(&format!("{{tcp: {{tcpKeepalive: {{{rest}}}}}}}"));
    for (rest, field, message) in [
        ("time: 0s", "time", "1s to 32767s"),
        ("time: 999ms", "time", "1s to 32767s"),
        ("interval: 32768s", "interval", "1s to 32767s"),
        ("probes: 128", "probes", "1 to 127"),
    ] {
        rejects(&tcp(rest), &format!("spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.{field}"), message);
    }
    accepts(&tcp("time: 1s, interval: 32767s, probes: 127"));
    accepts(&tcp("probes: 0"));
    let http = |rest: &str| pool(&format!("{{http: {{http2KeepAlive: {{{rest}}}}}}}"));
    for (rest, field) in [("interval: 1s, timeout: 0s", "timeout"), ("interval: 0s, timeout: 1s", "interval")] {
        let field = format!("spec.trafficPolicy.connectionPool.http.http2KeepAlive.{field}");
        rejects(&http(rest), &field, "above 0");
    }
    accepts(&http("interval: 1s, timeout: 1s"));
}

#[test]
fn linkerd_and_smi_rejections() {
    let profile = |spec: &str| object("linkerd.io/v1alpha2", "ServiceProfile", "a.default.svc.cluster.local", spec);
    rejects(&object("linkerd.io/v1alpha2", "ServiceProfile", "a", "{}"), "metadata.name", "full host name");
    for (spec, field, message) in [
        ("{routes: [{condition: {method: GET}}]}", "spec.routes[0].name", "needs a name"),
        ("{routes: [{name: a}]}", "spec.routes[0].condition", "needs a condition"),
        ("{dstOverrides: [{authority: 'a.b:0', weight: 1}]}", "spec.dstOverrides[0].authority", "host with a port"),
        ("{dstOverrides: [{authority: 'a.b:http', weight: 1}]}", "spec.dstOverrides[0].authority", "host with a port"),
        ("{routes: [{name: a, condition: {}}]}", "spec.routes[0].condition", "needs a matcher"),
        ("{routes: [{name: a, condition: {pathRegex: '('}}]}", "spec.routes[0].condition.pathRegex", "unclosed group"),
        ("{routes: [{name: a, condition: {any: [null]}}]}", "spec.routes[0].condition.any[0]", ""),
        ("{routes: [{name: a, condition: {not: {}}}]}", "spec.routes[0].condition.not", "needs a matcher"),
        (
            "{routes: [{name: a, condition: {method: GET, not: {method: GET}}}]}",
            "spec.routes[0].condition",
            "ever matches",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, responseClasses: [{isFailure: true}]}]}",
            "spec.routes[0].responseClasses[0].condition",
            "needs a condition",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, responseClasses: [{condition: {status: {min: 500, max: 400}}}]}]}",
            "spec.routes[0].responseClasses[0].condition.status",
            "below",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, responseClasses: [{condition: {status: {min: 5}}}]}]}",
            "spec.routes[0].responseClasses[0].condition.status.min",
            "100 and 599",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, timeout: 5}]}",
            "spec.routes[0].timeout",
            "text is needed, not 5",
        ),
        ("{retryBudget: {retryRatio: -1, ttl: 10s}}", "spec.retryBudget.retryRatio", "0 and 1000"),
        ("{retryBudget: {retryRatio: 0.2}}", "spec.retryBudget.ttl", "ttl is needed"),
        ("{retryBudget: {ttl: 100s}}", "spec.retryBudget.ttl", "1s and 60s"),
        ("{dstOverrides: [{authority: '', weight: 1}]}", "spec.dstOverrides[0].authority", "not a host"),
    ] {
        rejects(&profile(spec), field, message);
    }
    let split = |spec: &str| object("split.smi-spec.io/v1alpha2", "TrafficSplit", "a", spec);
    for (spec, field, message) in [
        ("{backends: [{service: a, weight: 1}]}", "spec.service", "not a service name"),
        ("{service: a}", "spec.backends", "at least one backend"),
        ("{service: a, backends: [{service: b, weight: 0}]}", "spec.backends", "more than 0"),
        ("{service: a, backends: [{service: b, weight: -1}]}", "spec.backends[0].weight", "negative"),
        ("{service: a, backends: [{service: b, weight: 1x}]}", "spec.backends[0].weight", "not a quantity"),
        ("{service: a, backends: [{service: b.other, weight: 1}]}", "spec.backends[0].service", "within its namespace"),
    ] {
        rejects(&split(spec), field, message);
    }
    accepts(&split("{service: a, backends: [{service: a, weight: 0.5}, {service: b, weight: 500m}]}"));
}

#[test]
fn a_condition_that_would_be_lost_refuses_the_object() {
    let block = |condition: &str| virtual_service(&format!("{{match: [{{{condition}}}], {TO_A}}}"));
    let at = "spec.http[0].match[0]";
    for (condition, field, message) in [
        ("uri: {prefix: /a}, header: {end-user: {exact: jason}}", "header", "unknown field, did you mean headers?"),
        ("uri: {suffix: /x}", "uri.suffix", "unknown field"),
        ("headers: {end-user: {exat: jason}}", "headers.end-user.exat", "unknown field, did you mean exact?"),
        ("headers: {end-user: null}", "headers.end-user", "there is no value here"),
        ("uri: {}", "uri", "one of exact, prefix and regex is needed"),
        ("method: {}", "method", "one of exact, prefix and regex is needed"),
        ("uri: [/a]", "uri", "a mapping of fields is needed, not a list"),
    ] {
        rejects(&block(condition), &format!("{at}.{field}"), message);
    }
    let tls = "spec: {hosts: [a.b], tls: [{match: [{sniHosts: [a.b], prt: 1}], route: [{destination: {host: a}}]}]}";
    rejects(&virtual_service(tls), "spec.tls[0].match[0].prt", "did you mean port?");
    let profile = "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a.b}\nspec: {routes: [{name: r, condition: {method: GET, pathRegx: /a}}]}\n";
    rejects(profile, "spec.routes[0].condition.pathRegx", "did you mean pathRegex?");
    rejects(
        &virtual_service(&format!("{{mach: [{{uri: {{prefix: /a}}}}], {TO_A}}}")),
        "spec.http[0].mach",
        "mean match?",
    );
    let profile = profile.replace("condition: {method: GET, pathRegx: /a}", "conditon: {method: GET}");
    rejects(&profile, "spec.routes[0].conditon", "did you mean condition?");
    // The controls: presence is said by an empty match, and elsewhere a slip is a warning.
    accepts(&block("headers: {end-user: {}}, withoutHeaders: {x: {}}, queryParams: {q: {}}"));
    accepts(&virtual_service(&format!("{{{TO_A}, retries: {{attempts: 1, atempts: 2}}}}")));
}

#[test]
fn a_field_that_no_route_has_refuses_the_object() {
    // A transposition is no slip that a distance of one finds.
    for (field, message) in [
        ("mtach: [{uri: {prefix: /a}}]", "unknown field"),
        ("condition: {}", "unknown field"),
        ("timeuot: 5s", "did you mean timeout?"),
    ] {
        let name = field.split(':').next().unwrap();
        rejects(&virtual_service(&format!("{{{field}, {TO_A}}}")), &format!("spec.http[0].{name}"), message);
    }
    for list in ["tls", "tcp"] {
        let spec = format!(
            "spec: {{hosts: [a.b], {list}: [{{mtach: [{{port: 1}}], match: [{{port: 1, sniHosts: [a.b]}}], route: [{{destination: {{host: a}}}}]}}]}}"
        );
        rejects(&virtual_service(&spec), &format!("spec.{list}[0].mtach"), "a route has no such field");
    }
    // The control: a field that a route has.
    accepts(&virtual_service(&format!("{{match: [{{uri: {{prefix: /a}}}}], {TO_A}}}")));
}

#[test]
fn a_pattern_that_is_none_is_one_message() {
    let text = virtual_service(&format!("{{match: [{{uri: {{regex: '('}}}}], {TO_A}}}, {{{TO_A}}}"));
    let profile = "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a.b}\nspec: {routes: [{name: r, condition: {pathRegex: '('}}]}\n";
    for (text, field) in
        [(text.as_str(), "spec.http[0].match[0].uri.regex"), (profile, "spec.routes[0].condition.pathRegex")]
    {
        let found = findings(text);
        let said: Vec<_> = found.iter().map(|finding| (finding.field.as_str(), finding.message.as_str())).collect();
        assert_eq!(said, [(field, "\"(\" is not a regular expression: unclosed group")]);
    }
    // The control: a good object whose first route does take everything.
    let text = virtual_service(&format!("{{match: [{{uri: {{regex: '.*'}}}}], {TO_A}}}, {{{TO_A}}}"));
    assert_eq!(findings(&text)[0].code, Some("IST0130"));
}

#[test]
fn s40_the_patterns_of_one_manifest_have_a_common_bound() {
    let with = |patterns: usize| {
        let headers: Vec<_> = (0..patterns).map(|i| format!("x-{i}: {{regex: a+}}")).collect();
        virtual_service(&format!("{{match: [{{headers: {{{}}}}}], {TO_A}}}", headers.join(", ")))
    };
    accepts(&with(MAX_PATTERNS));
    let found = findings(&with(MAX_PATTERNS + 1));
    assert!(found.len() == 1 && found[0].message.contains("5000 regular expressions"), "{found:?}");
}

#[test]
fn peer_authentication_rejections() {
    let peer = |spec: &str| object("security.istio.io/v1", "PeerAuthentication", "a", spec);
    rejects(&peer("{mtls: {mode: MAYBE}}"), "spec.mtls.mode", "not one of");
    rejects(&peer("{portLevelMtls: {8080: {mode: STRICT}}}"), "spec.portLevelMtls", "selector");
    let selector = "selector: {matchLabels: {a: b}}";
    rejects(&peer(&format!("{{{selector}, portLevelMtls: {{}}}}")), "spec.portLevelMtls", "empty");
    rejects(&peer(&format!("{{{selector}, portLevelMtls: {{0: {{mode: STRICT}}}}}}")), "spec.portLevelMtls.0", "65535");
    accepts(&peer(&format!("{{{selector}, portLevelMtls: {{8080: {{mode: STRICT}}}}}}")));
    rejects(&peer("{mtls: {mod: STRICT}}"), "spec.mtls.mod", "did you mean mode");
    rejects(&peer("{mtsl: {mode: STRICT}}"), "spec.mtsl", "unknown field");
    let ports = format!("{{{selector}, portLevelMtls: {{8080: {{mod: STRICT}}}}}}");
    rejects(&peer(&ports), "spec.portLevelMtls.8080.mod", "did you mean mode");
}

#[test]
fn a_slip_of_the_pen_opens_no_port_that_was_strict() {
    let peer = |spec: &str| object("security.istio.io/v1", "PeerAuthentication", "a", spec);
    let mode = |model: &Model| model.peer_authentications.values().next().unwrap().spec.mode;
    let strict = Some(mesh_core::policy::InboundTls::Strict);
    for slip in ["{mtls: {mod: STRICT}}", "{mtls: {mode: STRIKT}}", "{mTLS: {mode: PERMISSIVE}}"] {
        assert_eq!(mode(&Model::from_texts([("a.yaml", &*peer(slip))])), strict, "{slip}");
    }
    assert_eq!(
        mode(&Model::from_texts([("a.yaml", &*peer("{mtls: {mode: PERMISSIVE}}"))])).unwrap(),
        mesh_core::policy::InboundTls::Permissive,
        "the control"
    );
}

#[test]
fn beside_the_spec_of_a_security_kind_nothing_is_passed_over() {
    let beside = |api: &str, kind: &str, spec: &str| {
        format!("{}selector: {{matchLabels: {{app: a}}}}\n", object(api, kind, "a", spec))
    };
    for (api, kind, spec) in [
        ("security.istio.io/v1", "AuthorizationPolicy", "{rules: [{}]}"),
        ("security.istio.io/v1", "PeerAuthentication", "{mtls: {mode: STRICT}}"),
        ("security.istio.io/v1", "RequestAuthentication", "{jwtRules: [{issuer: a, jwks: '{\"keys\": []}'}]}"),
        ("policy.linkerd.io/v1beta3", "Server", "{podSelector: {}, port: 80}"),
        ("policy.linkerd.io/v1beta1", "ServerAuthorization", "{server: {name: a}, client: {unauthenticated: true}}"),
        ("policy.linkerd.io/v1alpha1", "NetworkAuthentication", "{networks: [{cidr: 10.0.0.0/8}]}"),
    ] {
        rejects(&beside(api, kind, spec), "selector", "unknown field");
    }
    // Without effect on security it is a warning.
    let service = beside("v1", "Service", "{ports: [{port: 80}]}");
    accepts(&service);
    assert!(findings(&service).iter().any(|finding| finding.field == "selector"));
    // An ALLOW policy that lost its selector lets nobody in that its last version kept out.
    let text = beside("security.istio.io/v1", "AuthorizationPolicy", "{rules: [{}]}");
    let model = Model::from_texts([("a.yaml", &*text)]);
    assert!(model.authorization_policies.values().all(|policy| policy.stand_in), "every request is denied");
}

#[test]
fn linkerd_policy_rejections() {
    let of = |version: &str, kind: &str, spec: &str| object(&format!("policy.linkerd.io/{version}"), kind, "a", spec);
    let server = |spec: &str| of("v1beta3", "Server", spec);
    rejects(&server("{podSelector: {}}"), "spec.port", "port is needed");
    rejects(&server("{podSelector: {}, port: 0}"), "spec.port", "65535");
    rejects(&server("{port: 80}"), "spec.podSelector", "one of");
    rejects(&server("{externalWorkloadSelector: {}, port: 80}"), "spec.externalWorkloadSelector", "not supported");
    rejects(&server("{podSelector: {}, port: 80, accessPolicy: open}"), "spec.accessPolicy", "not one of deny");
    rejects(&server("{podSelector: {}, port: 80, proxyProtocol: http}"), "spec.proxyProtocol", "not a protocol");
    let at = "spec.podSelector.matchExpressions[0]";
    let expression = |text: &str| server(&format!("{{podSelector: {{matchExpressions: [{text}]}}, port: 80}}"));
    rejects(&expression("{key: a, operator: Is, values: [b]}"), &format!("{at}.operator"), "not one of In");
    rejects(&expression("{key: a, operator: In}"), &format!("{at}.values"), "need values");
    rejects(&expression("{operator: Exists}"), &format!("{at}.key"), "name of a label");
    accepts(&server("{podSelector: {}, port: http}"));

    let identities = |spec: &str| of("v1alpha1", "MeshTLSAuthentication", spec);
    rejects(&identities("{}"), "spec", "at least one");
    rejects(&identities("{identities: [web]}"), "spec.identities[0]", "not an identity");
    rejects(&identities("{identityRefs: [{kind: Pod, name: a}]}"), "spec.identityRefs[0]", "ServiceAccount");
    let networks = |spec: &str| of("v1alpha1", "NetworkAuthentication", spec);
    rejects(&networks("{}"), "spec.networks", "at least one");
    rejects(&networks("{networks: [{cidr: 10.0.0.0/40}]}"), "spec.networks[0].cidr", "neither an IP address");
    for except in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/24"] {
        let spec = format!("{{networks: [{{cidr: 10.0.0.0/8, except: [{except}]}}]}}");
        rejects(&networks(&spec), "spec.networks[0].except[0]", "not a part of");
    }
    let policy = |spec: &str| of("v1alpha1", "AuthorizationPolicy", spec);
    let target = "targetRef: {group: policy.linkerd.io, kind: Server, name: a}";
    rejects(&policy("{requiredAuthenticationRefs: []}"), "spec.targetRef", "needed");
    rejects(&policy(&format!("{{{target}}}")), "spec.requiredAuthenticationRefs", "empty list lets everybody in");
    let two = format!(
        "{{{target}, requiredAuthenticationRefs: [{{kind: ServiceAccount, name: a}}, {{kind: ServiceAccount, name: b}}]}}"
    );
    rejects(&policy(&two), "spec.requiredAuthenticationRefs[1]", "only one");
    rejects(
        &policy("{targetRef: {kind: Namespace, name: other}, requiredAuthenticationRefs: []}"),
        "spec.targetRef.name",
        "own namespace",
    );
    rejects(
        &policy("{targetRef: {kind: Pod, name: a}, requiredAuthenticationRefs: []}"),
        "spec.targetRef",
        "a Server, an HTTPRoute",
    );
    accepts(&policy(&format!("{{{target}, requiredAuthenticationRefs: []}}")));

    let older = |spec: &str| of("v1beta1", "ServerAuthorization", spec);
    rejects(&older("{client: {unauthenticated: true}}"), "spec.server", "one of name and selector");
    rejects(&older("{server: {name: a}}"), "spec.client", "needed");
    rejects(&older("{server: {name: a}, client: {}}"), "spec.client", "one of unauthenticated");
    rejects(&older("{server: {name: a}, client: {meshTLS: {}}}"), "spec.client.meshTLS", "one of identities");
    accepts(&older("{server: {name: a}, client: {meshTLS: {identities: ['*']}}}"));

    let route = |spec: &str| {
        let parent = "{group: policy.linkerd.io, kind: Server, name: a}";
        of("v1beta3", "HTTPRoute", &format!("{{parentRefs: [{parent}], {spec}}}"))
    };
    let matches = |text: &str| route(&format!("rules: [{{matches: [{text}]}}]"));
    let at = "spec.rules[0].matches[0]";
    rejects(&matches("{path: {value: '/a//b'}}"), &format!("{at}.path.value"), "write");
    rejects(&matches("{path: {type: Glob, value: /a}}"), &format!("{at}.path.value"), "not one of Exact");
    rejects(&matches("{path: {type: RegularExpression, value: '('}}"), &format!("{at}.path.value"), "unclosed");
    let escaped = "{path: {type: RegularExpression, value: '/files/%3A.*'}}";
    rejects(&matches(escaped), &format!("{at}.path.value"), "normal form");
    rejects(&matches("{queryParams: [{name: a, value: b}]}"), &format!("{at}.queryParams"), "not supported");
    rejects(&matches("{headers: [{name: 'a b', value: c}]}"), &format!("{at}.headers[0].name"), "not a header name");
    rejects(&route("hostnames: [a.test]"), "spec.hostnames", "not supported");
    accepts(&matches("{method: GET, path: {value: /a}}"));
}

/// Who follows "leave it out" opens the policy: not said where what was written is only misspelt.
#[test]
fn a_list_that_is_wrong_is_not_said_to_be_empty() {
    let policy = |rule: &str| {
        let spec = format!("spec: {{action: ALLOW, rules: [{rule}]}}\n");
        format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n{spec}")
    };
    for (rule, wrong) in [
        ("{from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]}", "without spiffe://"),
        ("{to: [{operation: {ports: [many]}}]}", "not a port"),
    ] {
        let found = findings(&policy(rule));
        assert!(found.len() == 1 && found[0].message.contains(wrong), "{found:?}");
    }
    // The control: nothing was written.
    for rule in ["{from: [{source: {}}]}", "{to: [{operation: {}}]}"] {
        let found = findings(&policy(rule));
        assert!(found.len() == 1 && found[0].message.contains("leave `"), "{found:?}");
    }
}

/// As protobuf's JSON has it.
#[test]
fn whole_numbers_of_istios_kinds_may_be_in_quotes() {
    let weights = |one: &str| virtual_service(&format!("{{route: [{{destination: {{host: a}}, weight: {one}}}]}}"));
    accepts(&weights("'100'"));
    rejects(&weights("'1e2'"), "spec.http[0].route[0].weight", "a whole number is needed");
    rejects(&weights("'-1'"), "spec.http[0].route[0].weight", "negative");
    for size in ["minimumRingSize: '2048'", "ringHash: {minimumRingSize: '2048'}", "maglev: {tableSize: '65537'}"] {
        let hash =
            format!("{{host: a, trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: a, {size}}}}}}}}}");
        accepts(&object("networking.istio.io/v1", "DestinationRule", "a", &hash));
    }
}
