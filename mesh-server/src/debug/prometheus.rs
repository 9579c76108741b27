//! The Prometheus text format (version 0.0.4) of the mesh's metrics: Istio's standard names and labels,
//! in Istio's order, so that Kiali and Istio's Grafana boards work unchanged.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::health::Reason;
use mesh_core::identity::TrustBundles;
use mesh_core::source::Identities;
use mesh_core::telemetry::health::{EJECTIONS, EJECTIONS_ACTIVE, EJECTIONS_UNENFORCED, HEALTH_CHECKS, PENALTIES};
use mesh_core::telemetry::{
    BUCKETS_MS, CERTIFICATE_EXPIRY, CONFIG_RESOURCES, CONFIG_UNCONFIRMED, CONFIG_UNENFORCED, CONNECTIONS_ACTIVE,
    DECISIONS, DecisionLabels, Histogram, LIFE_LEFT, Metrics, OTHER_LISTENERS, Outcome, PEERS_BY_ROOT, PeerLabels,
    PeersByRoot, RENEWAL_FAILED_AT, RENEWAL_FAILURES, REQUEST_DURATION, REQUESTS_ACTIVE, REQUESTS_PENDING,
    REQUESTS_TOTAL, RETRIES_ACTIVE, ROUTE_LATENCY, ROUTE_RESPONSES, RUNTIME_STALLED, RUNTIME_STALLS, RequestLabels,
    RouteLabels, TCP_CLOSED, TCP_OPENED, TCP_RECEIVED_BYTES, TCP_SENT_BYTES, TcpSeries,
};

use crate::{InboundStats, Refusal};

/// The content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes every series as one exposition. `version` is the value of `istio_build`'s `tag`.
pub fn encode(version: &str, metrics: &Metrics, inbound: Option<&InboundStats>) -> String {
    // All lines of one metric must stand together, and the counters are walked once.
    let mut totals = String::new();
    let mut durations = String::new();
    metrics.visit(|labels, outcome, counters| {
        let labels = request_labels(labels, outcome);
        line(&mut totals, REQUESTS_TOTAL, "", &labels, counters.requests());
        histogram_lines(&mut durations, REQUEST_DURATION, &labels, counters.duration());
    });
    let mut out = String::with_capacity(totals.len() + durations.len() + 1024);
    head(&mut out, "istio_build", "gauge", "Build of the component.");
    line(&mut out, "istio_build", "", &format!("component=\"mesh\",tag=\"{}\"", escaped(version)), 1);
    head(&mut out, REQUESTS_TOTAL, "counter", "Requests completed.");
    out.push_str(&totals);
    head(&mut out, REQUEST_DURATION, "histogram", "Time from request start to response end.");
    out.push_str(&durations);
    tcp_lines(&mut out, metrics);
    route_lines(&mut out, metrics);
    health_lines(&mut out, metrics);
    decision_lines(&mut out, metrics);
    renewal_lines(&mut out, metrics);
    peers_by_root(&mut out, metrics.peers());
    if let Some(stats) = inbound {
        inbound_lines(&mut out, stats);
    }
    out
}

/// [`encode`] as the content of a debug server's `/metrics`, with what `more` adds.
pub fn content(
    version: &'static str,
    metrics: Arc<Metrics>,
    inbound: Arc<InboundStats>,
    more: impl Fn(&mut String) + Send + Sync + 'static,
) -> super::Content {
    Arc::new(move || {
        let mut text = encode(version, &metrics, Some(&inbound));
        more(&mut text);
        (CONTENT_TYPE, text.into())
    })
}

/// Adds the number of accepted fields that are not enforced, by kind of resource.
pub fn config_unenforced(out: &mut String, counts: impl IntoIterator<Item = (&'static str, usize)>) {
    head(out, CONFIG_UNENFORCED, "gauge", "Fields of the configuration in use that are accepted and not enforced.");
    for (kind, fields) in counts {
        line(out, CONFIG_UNENFORCED, "", &format!("kind=\"{kind}\""), fields);
    }
}

/// Writes how many resources of the configuration are in each state: kind, state, number.
pub fn config_resources<'a>(out: &mut String, counts: impl IntoIterator<Item = (&'a str, &'a str, usize)>) {
    head(out, CONFIG_RESOURCES, "gauge", "Resources of the configuration by the state they are in.");
    for (kind, state, resources) in counts {
        line(out, CONFIG_RESOURCES, "", &format!("kind=\"{kind}\",state=\"{state}\""), resources);
    }
}

/// Writes for how long no control plane has vouched for the configuration in use, in seconds.
pub fn config_unconfirmed(out: &mut String, seconds: u64) {
    let help = "Time for which no control plane has vouched for the configuration in use.";
    head(out, CONFIG_UNCONFIRMED, "gauge", help);
    let _ = writeln!(out, "{CONFIG_UNCONFIRMED} {seconds}");
}

/// Writes for how long the application's runtime has run no task (zero below a second), and how often it did so.
pub fn runtime_stalls(out: &mut String, stalled: Duration, stalls: u64) {
    head(out, RUNTIME_STALLED, "gauge", "Time for which the application's runtime has run no task; 0 below a second.");
    let _ = writeln!(out, "{RUNTIME_STALLED} {}", stalled.as_secs_f64());
    head(out, RUNTIME_STALLS, "counter", "Times that the application's runtime ran no task for a second or longer.");
    let _ = writeln!(out, "{RUNTIME_STALLS} {stalls}");
}

/// Writes how many sockets of this process listen beside the mesh's, at which it enforces no policy.
pub fn other_listeners(out: &mut String, others: u64) {
    head(
        out,
        OTHER_LISTENERS,
        "gauge",
        "Sockets of this process that listen where no policy is enforced, at the last look.",
    );
    let _ = writeln!(out, "{OTHER_LISTENERS} {others}");
}

/// Writes when this process's certificate ends, the first of those between it and its root, the first of the roots it
/// trusts and the first of their revocation lists (seconds since the Unix epoch), and the same of identities that policy names,
/// with the label `instance`. Nothing without an identity.
pub fn certificate_expiry(out: &mut String, identities: &Identities) {
    let named = identities.named().map(|(name, identity)| (format!(",instance=\"{}\"", escaped(name)), identity));
    let all = std::iter::once((String::new(), identities.own())).chain(named);
    let help = "When the certificate ends, what signed it, or the first of the trusted roots or revocation lists.";
    let mut begun = false;
    for (instance, identity) in all {
        let identity = identity.load();
        let Some(identity) = Option::as_ref(&identity) else { continue };
        if !std::mem::replace(&mut begun, true) {
            head(out, CERTIFICATE_EXPIRY, "gauge", help);
        }
        let _ = writeln!(out, "{CERTIFICATE_EXPIRY}{{of=\"leaf\"{instance}}} {}", identity.not_after());
        if let Some(issuer) = identity.issuer_not_after() {
            let _ = writeln!(out, "{CERTIFICATE_EXPIRY}{{of=\"issuer\"{instance}}} {issuer}");
        }
        trusted_expiry(out, identity.bundles(), &instance);
    }
    for (instance, roots) in identities.roots() {
        let roots = roots.load();
        let Some(roots) = Option::as_ref(&roots) else { continue };
        if !std::mem::replace(&mut begun, true) {
            head(out, CERTIFICATE_EXPIRY, "gauge", help);
        }
        trusted_expiry(out, roots, &format!(",instance=\"{}\"", escaped(instance)));
    }
}

fn trusted_expiry(out: &mut String, trusted: &TrustBundles, instance: &str) {
    for (of, end) in [("root", trusted.not_after()), ("revocation_list", trusted.lists_end())] {
        let _ = end.map(|end| writeln!(out, "{CERTIFICATE_EXPIRY}{{of=\"{of}\"{instance}}} {end}"));
    }
}

/// What is in flight in a cluster: its name, then requests, retries and pending requests with default and with high
/// priority, then open connections.
pub type InFlight = (String, [[u32; 3]; 2], u32);

/// Writes what is in flight in each cluster: the numbers that circuit breakers compare with their limits.
pub fn in_flight(out: &mut String, clusters: &[InFlight]) {
    const BY_PRIORITY: [(&str, &str); 3] = [
        (REQUESTS_ACTIVE, "Requests in flight, those waiting for a connection among them."),
        (RETRIES_ACTIVE, "Retries in flight."),
        (REQUESTS_PENDING, "Requests that wait for a connection."),
    ];
    if clusters.is_empty() {
        return;
    }
    for (i, (name, help)) in BY_PRIORITY.into_iter().enumerate() {
        head(out, name, "gauge", help);
        for (cluster, counts, _) in clusters {
            for (priority, counts) in ["default", "high"].into_iter().zip(counts) {
                let labels = format!("cluster=\"{}\",priority=\"{priority}\"", escaped(cluster));
                line(out, name, "", &labels, counts[i]);
            }
        }
    }
    head(out, CONNECTIONS_ACTIVE, "gauge", "Open connections.");
    for (cluster, _, connections) in clusters {
        line(out, CONNECTIONS_ACTIVE, "", &format!("cluster=\"{}\"", escaped(cluster)), connections);
    }
}

fn histogram_lines(out: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let counts = histogram.counts();
    let mut cumulative = 0;
    for (count, bound) in counts.iter().zip(BUCKETS_MS) {
        cumulative += count;
        line(out, name, "_bucket", &format!("{labels},le=\"{bound}\""), cumulative);
    }
    // The total is the sum of these buckets, not a second look at counters that go on counting: a
    // histogram that contradicts itself is refused by some readers.
    cumulative += counts[BUCKETS_MS.len()];
    line(out, name, "_bucket", &format!("{labels},le=\"+Inf\""), cumulative);
    line(out, name, "_sum", labels, histogram.sum_ms());
    line(out, name, "_count", labels, cumulative);
}

/// Nothing where no route is counted on its own.
fn route_lines(out: &mut String, metrics: &Metrics) {
    let routes = metrics.all_routes();
    if routes.is_empty() {
        return;
    }
    let (mut totals, mut latencies) = (String::new(), String::new());
    for (RouteLabels { dst, route }, series) in routes {
        let labels = format!("direction=\"outbound\",dst=\"{}\",rt_route=\"{}\"", escaped(&dst), escaped(&route));
        for (classification, count) in [("success", series.successes()), ("failure", series.failures())] {
            line(&mut totals, ROUTE_RESPONSES, "", &format!("{labels},classification=\"{classification}\""), count);
        }
        histogram_lines(&mut latencies, ROUTE_LATENCY, &labels, series.latency());
    }
    head(out, ROUTE_RESPONSES, "counter", "Requests completed, by route.");
    out.push_str(&totals);
    head(out, ROUTE_LATENCY, "histogram", "Time from request start to response end, by route.");
    out.push_str(&latencies);
}

/// A metric of raw connections: its name, what it counts, and where that is.
type TcpMetric = (&'static str, &'static str, fn(&TcpSeries) -> u64);

fn tcp_lines(out: &mut String, metrics: &Metrics) {
    const ALL: [TcpMetric; 4] = [
        (TCP_OPENED, "Raw connections opened.", TcpSeries::opened),
        (TCP_CLOSED, "Raw connections closed.", TcpSeries::closed),
        (TCP_SENT_BYTES, "Bytes from the server to the client.", TcpSeries::sent_bytes),
        (TCP_RECEIVED_BYTES, "Bytes from the client to the server.", TcpSeries::received_bytes),
    ];
    let mut lines: [String; 4] = Default::default();
    metrics.visit_tcp(|labels, flags, series| {
        let labels = tcp_labels(labels, flags);
        for (lines, (name, _, count)) in lines.iter_mut().zip(ALL) {
            line(lines, name, "", &labels, count(series));
        }
    });
    for (lines, (name, help, _)) in lines.iter().zip(ALL) {
        head(out, name, "counter", help);
        out.push_str(lines);
    }
}

/// Nothing where no cluster is watched.
fn decision_lines(out: &mut String, metrics: &Metrics) {
    let decisions = metrics.decisions().all();
    if decisions.is_empty() {
        return;
    }
    head(out, DECISIONS, "counter", "Decisions of authorization.");
    for (labels, count) in decisions {
        let DecisionLabels { policy, action, decision, dry_run } = labels;
        let policy = escaped(&policy);
        let labels = format!("policy=\"{policy}\",action=\"{action}\",decision=\"{decision}\",dry_run=\"{dry_run}\"");
        line(out, DECISIONS, "", &labels, count);
    }
}

fn renewal_lines(out: &mut String, metrics: &Metrics) {
    let renewals = metrics.renewals();
    head(out, RENEWAL_FAILURES, "counter", "Attempts at a certificate or roots that failed.");
    let _ = writeln!(out, "{RENEWAL_FAILURES} {}", renewals.failures());
    if let Some(last) = renewals.last_failure() {
        head(out, RENEWAL_FAILED_AT, "gauge", "When the last of them was.");
        let _ = writeln!(out, "{RENEWAL_FAILED_AT} {last}");
    }
    head(out, LIFE_LEFT, "gauge", "The mark that the life of a certificate has passed without being renewed.");
    let _ = writeln!(out, "{LIFE_LEFT} {}", renewals.life_left().percent());
}

/// Writes how many open connections each root vouches for, at either end. Nothing where there were none yet.
pub fn peers_by_root(out: &mut String, peers: &PeersByRoot) {
    let all = peers.all();
    if all.is_empty() {
        return;
    }
    head(out, PEERS_BY_ROOT, "gauge", "Open connections with mutual TLS by the root that vouches for the peer.");
    for (reporter, root, open) in all {
        let reporter = reporter.as_str();
        line(out, PEERS_BY_ROOT, "", &format!("reporter=\"{reporter}\",root=\"{root}\""), open);
    }
}

fn health_lines(out: &mut String, metrics: &Metrics) {
    let all = metrics.all_health();
    if all.is_empty() {
        return;
    }
    let all: Vec<_> =
        all.iter().map(|(name, series)| (format!("cluster=\"{}\"", escaped(name.as_str())), series)).collect();
    head(out, EJECTIONS, "counter", "Endpoints ejected, by reason.");
    for ((cluster, series), reason) in all.iter().flat_map(|one| Reason::ALL.map(|reason| (one, reason))) {
        line(out, EJECTIONS, "", &format!("{cluster},reason=\"{}\"", reason.as_str()), series.ejections(reason));
    }
    head(out, EJECTIONS_UNENFORCED, "counter", "Outliers that were not ejected, by reason and by why not.");
    for ((cluster, series), reason) in all.iter().flat_map(|one| Reason::ALL.map(|reason| (one, reason))) {
        let (share, overflow) = series.unenforced(reason);
        for (why, count) in [("enforcement_percentage", share), ("max_ejection_overflow", overflow)] {
            let labels = format!("{cluster},reason=\"{}\",unenforced_reason=\"{why}\"", reason.as_str());
            line(out, EJECTIONS_UNENFORCED, "", &labels, count);
        }
    }
    head(out, EJECTIONS_ACTIVE, "gauge", "Endpoints ejected now.");
    all.iter().for_each(|(cluster, series)| line(out, EJECTIONS_ACTIVE, "", cluster, series.active()));
    head(out, PENALTIES, "counter", "Endpoints taken out after failures in a row.");
    all.iter().for_each(|(cluster, series)| line(out, PENALTIES, "", cluster, series.penalties()));
    head(out, HEALTH_CHECKS, "counter", "Health checks made, by outcome.");
    for (cluster, series) in &all {
        let (passed, failed) = series.checks();
        line(out, HEALTH_CHECKS, "", &format!("{cluster},outcome=\"passed\""), passed);
        line(out, HEALTH_CHECKS, "", &format!("{cluster},outcome=\"failed\""), failed);
    }
}

fn inbound_lines(out: &mut String, stats: &InboundStats) {
    const REFUSED: &str = "mesh_inbound_connections_refused_total";
    const PLAINTEXT: &str = "mesh_inbound_plaintext_connections";
    head(out, REFUSED, "counter", "Connections closed before any request reached the application.");
    for reason in Refusal::ALL {
        line(out, REFUSED, "", &format!("reason=\"{}\"", reason.as_str()), stats.refused(reason));
    }
    head(
        out,
        PLAINTEXT,
        "gauge",
        "Plaintext connections open under PERMISSIVE, by peer; of those that had one open within two hours.",
    );
    for (peer, connections) in stats.plaintext_peers() {
        let peer = peer.map_or_else(|| "others".to_owned(), |ip| ip.to_string());
        line(out, PLAINTEXT, "", &format!("peer=\"{peer}\""), connections);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{suffix}{{{labels}}} {value}");
}

/// Istio's labels in Istio's order.
fn request_labels(labels: &RequestLabels, outcome: Outcome) -> String {
    let code = outcome.code.to_string();
    let grpc_status = outcome.grpc_status.map(|status| status.to_string()).unwrap_or_default();
    let mut out = peer_labels(labels);
    pair(&mut out, "request_protocol", if outcome.grpc { "grpc" } else { "http" });
    pair(&mut out, "response_code", &code);
    // Empty for HTTP, and not `unknown`: so does Istio.
    let _ = write!(out, ",grpc_response_status=\"{grpc_status}\"");
    end_labels(&mut out, outcome.flags, labels);
    out
}

/// The same of a raw connection, which has no status.
fn tcp_labels(labels: &RequestLabels, flags: &str) -> String {
    let mut out = peer_labels(labels);
    pair(&mut out, "request_protocol", "tcp");
    end_labels(&mut out, flags, labels);
    out
}

/// Who speaks to whom.
fn peer_labels(labels: &RequestLabels) -> String {
    let mut out = String::with_capacity(1024);
    pair(&mut out, "reporter", labels.reporter.as_str());
    source_labels(&mut out, &labels.source);
    destination_labels(&mut out, &labels.destination, labels);
    out
}

fn end_labels(out: &mut String, flags: &str, labels: &RequestLabels) {
    let policy = match labels.mutual_tls {
        Some(true) => "mutual_tls",
        Some(false) => "none",
        None => "unknown",
    };
    pair(out, "response_flags", flags);
    pair(out, "connection_security_policy", policy);
}

fn source_labels(out: &mut String, source: &PeerLabels) {
    pair(out, "source_workload", &source.workload);
    pair(out, "source_canonical_service", &source.canonical_service);
    pair(out, "source_canonical_revision", revision(source));
    pair(out, "source_workload_namespace", &source.namespace);
    pair(out, "source_principal", &source.principal);
    pair(out, "source_app", &source.app);
    pair(out, "source_version", &source.version);
    pair(out, "source_cluster", &source.cluster);
}

fn destination_labels(out: &mut String, destination: &PeerLabels, labels: &RequestLabels) {
    pair(out, "destination_workload", &destination.workload);
    pair(out, "destination_workload_namespace", &destination.namespace);
    pair(out, "destination_principal", &destination.principal);
    pair(out, "destination_app", &destination.app);
    pair(out, "destination_version", &destination.version);
    pair(out, "destination_service", &labels.destination_service);
    pair(out, "destination_canonical_service", &destination.canonical_service);
    pair(out, "destination_canonical_revision", revision(destination));
    pair(out, "destination_service_name", &labels.destination_service_name);
    pair(out, "destination_service_namespace", &labels.destination_service_namespace);
    pair(out, "destination_cluster", &destination.cluster);
}

fn revision(peer: &PeerLabels) -> &str {
    if peer.canonical_revision.is_empty() { "latest" } else { &peer.canonical_revision }
}

fn pair(out: &mut String, name: &str, value: &str) {
    let comma = if out.is_empty() { "" } else { "," };
    let value = if value.is_empty() { "unknown" } else { value };
    let _ = write!(out, "{comma}{name}=\"{}\"", escaped(value));
}

/// A label value with backslash, quote and line feed escaped, as the format wants.
fn escaped(value: &str) -> std::borrow::Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use mesh_core::telemetry::Reporter;

    use super::*;

    fn labels() -> RequestLabels {
        RequestLabels {
            reporter: Reporter::Destination,
            source: PeerLabels { principal: "spiffe://cluster.local/ns/a/sa/b".into(), ..PeerLabels::default() },
            destination: PeerLabels { workload: "we\"ird\\\n".into(), ..PeerLabels::default() },
            destination_service: "reviews.default.svc.cluster.local".into(),
            destination_service_name: "reviews".into(),
            destination_service_namespace: "default".into(),
            mutual_tls: Some(true),
        }
    }

    #[test]
    fn s91_a_name_makes_no_line_and_no_label_of_its_own() {
        for (name, written) in [
            ("a\nmesh_fake 1", "a\\nmesh_fake 1"),
            ("a\"} 1", "a\\\"} 1"),
            ("a\\", "a\\\\"),
            ("<script>", "<script>"),
            ("plain", "plain"),
        ] {
            assert_eq!(escaped(name), written);
            let mut label = String::new();
            pair(&mut label, "x", name);
            assert_eq!(label, format!("x=\"{written}\""));
        }
    }

    #[test]
    fn istio_names_labels_and_order() {
        let metrics = Metrics::default();
        let outcome = Outcome { code: 200, grpc_status: None, flags: "-", grpc: false };
        metrics.series(&labels()).record(outcome, Duration::from_millis(7));
        let text = encode("1.2.3", &metrics, None);
        let wanted = concat!(
            r#"istio_requests_total{reporter="destination",source_workload="unknown","#,
            r#"source_canonical_service="unknown",source_canonical_revision="latest","#,
            r#"source_workload_namespace="unknown",source_principal="spiffe://cluster.local/ns/a/sa/b","#,
            r#"source_app="unknown",source_version="unknown",source_cluster="unknown","#,
            r#"destination_workload="we\"ird\\\n",destination_workload_namespace="unknown","#,
            r#"destination_principal="unknown",destination_app="unknown",destination_version="unknown","#,
            r#"destination_service="reviews.default.svc.cluster.local","#,
            r#"destination_canonical_service="unknown",destination_canonical_revision="latest","#,
            r#"destination_service_name="reviews",destination_service_namespace="default","#,
            r#"destination_cluster="unknown",request_protocol="http",response_code="200","#,
            r#"grpc_response_status="",response_flags="-",connection_security_policy="mutual_tls"} 1"#,
        );
        assert!(text.lines().any(|line| line == wanted), "{text}");
        assert!(text.contains(r#"istio_build{component="mesh",tag="1.2.3"} 1"#));
    }

    #[test]
    fn raw_connections_have_istios_names_and_no_status() {
        let metrics = Metrics::default();
        let series = metrics.tcp(&labels(), "-");
        series.open();
        series.open();
        series.close();
        series.send(5);
        series.receive(7);
        metrics.tcp(&labels(), "UF").open();
        let text = encode("0", &metrics, None);
        let value = |name: &str, flags: &str| {
            let ends = format!(
                "request_protocol=\"tcp\",response_flags=\"{flags}\",connection_security_policy=\"mutual_tls\"}} "
            );
            let begins = format!("{name}{{reporter=\"destination\",source_workload=");
            let found = text.lines().find(|line| line.starts_with(&begins) && line.contains(&ends));
            found.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        for (name, count) in [(TCP_OPENED, "2"), (TCP_CLOSED, "1"), (TCP_SENT_BYTES, "5"), (TCP_RECEIVED_BYTES, "7")] {
            assert_eq!(value(name, "-").as_deref(), Some(count), "{name}: {text}");
            assert_eq!(text.matches(&format!("# TYPE {name} counter")).count(), 1);
        }
        assert_eq!(value(TCP_OPENED, "UF").as_deref(), Some("1"));
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let metrics = Metrics::default();
        let outcome = Outcome { code: 200, grpc_status: Some(0), flags: "-", grpc: true };
        for ms in [0, 7, 4_000_000] {
            metrics.series(&labels()).record(outcome, Duration::from_millis(ms));
        }
        let text = encode("0", &metrics, None);
        let value = |name: &str, has: &str| {
            let line = text.lines().find(|line| line.starts_with(name) && line.contains(has));
            line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        let bucket = |le: &str| value("istio_request_duration_milliseconds_bucket", &format!("le=\"{le}\""));
        assert_eq!(bucket("0.5").as_deref(), Some("1"));
        assert_eq!(bucket("5").as_deref(), Some("1"));
        assert_eq!(bucket("10").as_deref(), Some("2"));
        assert_eq!(bucket("3600000").as_deref(), Some("2"));
        assert_eq!(bucket("+Inf").as_deref(), Some("3"));
        assert_eq!(value("istio_request_duration_milliseconds_count", "").as_deref(), Some("3"));
        assert_eq!(value("istio_request_duration_milliseconds_sum", "").as_deref(), Some("4000007"));
        assert_eq!(text.matches("# TYPE istio_request_duration_milliseconds histogram").count(), 1);
    }

    #[test]
    fn the_health_of_watched_clusters_is_shown_and_of_no_other() {
        use mesh_core::health::Change;
        let metrics = Metrics::default();
        assert!(!encode("0", &metrics, None).contains("outlier"));
        let series = metrics.health(&"outbound|80||a\"b".into());
        series.changed(Change::Ejected(Reason::Consecutive5xx, Duration::ZERO));
        series.changed(Change::Overflow(Reason::SuccessRate));
        series.ejected(0, 3);
        series.ejected(3, 1);
        series.checked(false);
        let text = encode("0", &metrics, None);
        for wanted in [
            r#"mesh_outlier_ejections_total{cluster="outbound|80||a\"b",reason="consecutive_5xx"} 1"#,
            r#"mesh_outlier_ejections_active{cluster="outbound|80||a\"b"} 1"#,
            r#",reason="success_rate",unenforced_reason="max_ejection_overflow"} 1"#,
            r#"mesh_health_checks_total{cluster="outbound|80||a\"b",outcome="failed"} 1"#,
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
    }

    #[test]
    fn connections_are_shown_beside_requests() {
        let stats = Arc::<InboundStats>::default();
        stats.refuse(Refusal::Plaintext, ([10, 0, 0, 1], 1).into(), &"test");
        let _open = stats.served_plaintext(([10, 0, 0, 2], 1).into());
        let text = encode("0", &Metrics::default(), Some(&stats));
        assert!(text.contains("mesh_inbound_connections_refused_total{reason=\"plaintext\"} 1\n"), "{text}");
        assert!(text.contains("mesh_inbound_plaintext_connections{peer=\"10.0.0.2\"} 1\n"), "{text}");
    }
}
