//! What an operator sees: the state of each client, and the load that clients report.

use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use serde_json::Value;

use super::*;

async fn json(plane: &ControlPlane, path: &str) -> Value {
    serde_json::from_str(&page(plane, "localhost", path).await.1).unwrap()
}

#[tokio::test]
async fn the_status_tells_each_resource_of_each_client() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    let version = Some(UserAgentVersionType::UserAgentVersion("0.9.1\n".into()));
    let node = Node { id: "productpage-1".into(), user_agent_version_type: version, ..Node::default() };
    ads.ask(Kind::Listener, &["reviews:9080", "nobody:1"], Some(node)).await;
    let response = ads.expect(Kind::Listener).await;
    let status = json(&plane, "/status").await;
    assert_eq!(status["nodes"][0]["in_sync"], false, "not answered yet: {status}");
    ads.acknowledge(&response, &["reviews:9080", "nobody:1"], None).await;
    // The answer to a later request proves that the acknowledgement was taken in.
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    let endpoints = ads.expect(Kind::Endpoints).await;
    ads.acknowledge(&endpoints, &[REVIEWS_EDS], Some("localities[0]: bad")).await;
    ads.ask(Kind::Cluster, &["nobody"], None).await;
    let clusters = ads.expect(Kind::Cluster).await;
    ads.acknowledge(&clusters, &["nobody"], None).await;

    let node = &json(&plane, "/sync?node=productpage-1&resources=true").await[0];
    assert_eq!(node["identity"], "spiffe://cluster.local/ns/default/sa/productpage");
    assert_eq!(node["user_agent_version"], "0.9.1 ", "who runs which version");
    assert_eq!((node["in_sync"].as_bool(), node["protocol"].as_str()), (Some(false), Some("state-of-the-world")));
    let of = |kind: Kind| {
        let types = node["types"].as_array().unwrap();
        types.iter().find(|ty| ty["type_url"] == kind.type_url()).unwrap().clone()
    };
    let states = |kind: Kind| {
        let resources = of(kind)["resources"].as_array().unwrap().clone();
        let state = |r: &Value| (r["name"].as_str().unwrap().to_owned(), r["state"].as_str().unwrap().to_owned());
        resources.iter().map(state).collect::<Vec<_>>()
    };
    let row = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(states(Kind::Listener), [row("nobody:1", "missing"), row("reviews:9080", "accepted")]);
    assert_eq!(states(Kind::Endpoints), [row(REVIEWS_EDS, "refused")]);
    assert_eq!(of(Kind::Endpoints)["nack"]["reason"], "localities[0]: bad");
    assert_eq!(of(Kind::Endpoints)["refused"][0], REVIEWS_EDS);
    assert_eq!(json(&plane, "/sync?node=somebody").await, Value::Array(Vec::new()));
    assert!(json(&plane, "/sync").await[0]["types"][0]["resources"].is_null(), "names only on demand");
}

#[tokio::test]
async fn load_reports_are_answered_kept_and_summed_where_they_are_asked_for() {
    let setup = Setup::new();
    let locality = UpstreamLocalityStats {
        total_issued_requests: 5,
        total_successful_requests: 4,
        total_requests_in_progress: 1,
        ..UpstreamLocalityStats::default()
    };
    let report = || LoadStatsRequest {
        node: Some(Node { id: "productpage-1".into(), ..Node::default() }),
        cluster_stats: vec![ClusterStats {
            cluster_name: REVIEWS_EDS.into(),
            upstream_locality_stats: vec![locality.clone()],
            ..ClusterStats::default()
        }],
    };
    let loopback = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    {
        let plane = setup.builder().insecure_xds(loopback).start().await.unwrap();
        let plaintext = Connection::plaintext(plane.insecure_address().unwrap()).await;
        for nobody_asked in [plaintext, join(&plane, "default", "productpage").await] {
            assert_eq!(nobody_asked.report(report()).await.unwrap_err().code(), Code::Unimplemented);
        }
    }
    let plane = setup.builder().load_reports(true).start().await.unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let denied = async || {
        let (_, metrics) = page(&plane, "localhost", "/metrics").await;
        metrics.contains("mesh_control_refusals_total{reason=\"stream\"} 1\n")
    };
    assert!(!denied().await);
    assert_eq!(anonymous.report(report()).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(denied().await);
    let member = join(&plane, "default", "productpage").await;
    let mut answers = member.report(report()).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(answer.send_all_clusters);
    assert_eq!(answer.load_reporting_interval.unwrap().seconds, 10);
    let load = json(&plane, "/load").await;
    assert_eq!((load[0]["node"].as_str(), load[0]["in_progress"].as_u64()), (Some("productpage-1"), Some(1)));
    assert_eq!(load[0]["identity"], "spiffe://cluster.local/ns/default/sa/productpage");
    // What is too large to be read is refused, and that is said and counted.
    let large = ClusterStats { cluster_name: "a".repeat(5 << 20), ..ClusterStats::default() };
    let mut answers = member.report(LoadStatsRequest { cluster_stats: vec![large], ..report() }).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("fewer clusters"), "{refused}");
    let (_, metrics) = page(&plane, "localhost", "/metrics").await;
    for line in ["mesh_control_refusals_total{reason=\"stream\"} 2\n", "mesh_control_refused_total 1\n"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let line = format!("mesh_control_load_requests_successful_total{{cluster=\"{REVIEWS_EDS}\"}} 4");
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test]
async fn s91_what_others_write_makes_no_line_of_the_log_and_of_the_findings() {
    const FORGED: &str = "\n2026-11-28T00:00:00Z  INFO mesh::audit: policy changed forged\u{1b}[2J\u{2028}";
    let log = Listening::begin();
    let forged = |text: &str| {
        text.contains(['\u{1b}', '\u{2028}'])
            || text.lines().any(|line| line.starts_with(FORGED[1..].split('\u{1b}').next().unwrap()))
    };
    let setup = Setup::new();
    let (json, file) = (serde_json::to_string(FORGED).unwrap(), format!("a{FORGED}.yaml"));
    let policy = |name: &str, rest: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n{rest}"
        )
    };
    // Names, kinds, fields and values that are lines, and a policy that is good in a file whose name is one.
    let kind = format!("apiVersion: v1\nkind: {json}\nmetadata: {{name: a}}\n");
    setup.write("bad.yaml", &policy(&json, "spec: {}\n"));
    setup.write("worse.yaml", &policy("other", &format!("spec: {{action: {json}}}\n")));
    setup.write("kind.yaml", &kind);
    let plane = setup.start().await;
    setup.write(&file, &policy("shut", &format!("{json}: 1\nspec: {{}}\n")));
    let lines = |part: &str| log.text().lines().filter(|line| line.contains(part)).count();
    let seen = async |part: &str| {
        let told = async {
            while lines(part) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told).await.unwrap_or_else(|_| panic!("{part}: {}", log.text()));
    };
    seen("change=Added").await;
    // A client that refuses what it is given in such words.
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Listener, &["reviews:9080"], None).await;
    let response = ads.expect(Kind::Listener).await;
    ads.acknowledge(&response, &["reviews:9080"], Some(FORGED)).await;
    seen("a client refused configuration").await;
    let (_, page) = page(&plane, "localhost", "/findings?format=text").await;
    for what in ["metadata.name", "unknown kind", "action", "a\\n2026"] {
        assert!(page.contains(what), "{what}: {page}");
    }
    assert!(lines("mesh::manifests") >= 3 && lines("forged") >= 4, "{}", log.text());
    assert!(!forged(&log.text()) && !forged(&page), "{page}\n{}", log.text());
    // The control: printed as it came, it is a line.
    tracing::info!("{FORGED}");
    assert!(forged(&log.text()));
}
