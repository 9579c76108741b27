//! The debug pages of processes that have talked to each other.

use serde_json::Value;

use crate::support::{FREE, Plane, call, eventually, plain_get};

const CALLER: &str = "spiffe://cluster.local/ns/default/sa/productpage";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/reviews";

/// Whether one sample of `istio_requests_total` has all these labels and the value.
fn counted(metrics: &str, labels: &[(&str, &str)], value: u32) -> bool {
    let has = |line: &str, (name, value): &(&str, &str)| {
        line.contains(&format!("{{{name}=\"{value}\"")) || line.contains(&format!(",{name}=\"{value}\""))
    };
    let samples = metrics.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let mut matching = samples.filter(|line| labels.iter().all(|label| has(line, label)));
    matching.any(|line| line.ends_with(&format!("}} {value}")))
}

#[tokio::test]
async fn both_sides_count_the_request_and_show_what_they_know() {
    let plane = Plane::start().await;
    let server = plane.answering("reviews", "version=v1", "hello").await;
    let caller = plane.process("productpage", "version=v7").debug_address(FREE).build().await.unwrap();
    for _ in 0..3 {
        assert_eq!(call(&caller, "http://reviews:9080/", &[]).await.unwrap().1, "hello");
    }

    let both = [
        ("source_principal", CALLER),
        ("destination_principal", SERVER),
        ("destination_service", "reviews.default.svc.cluster.local"),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "default"),
        ("destination_workload", "reviews"),
        ("destination_version", "v1"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
    ];
    let (ours, theirs) = (caller.debug_address().unwrap(), server.mesh.debug_address().unwrap());
    let of_source = [("reporter", "source"), ("source_workload", "productpage"), ("source_version", "v7")];
    let of_destination = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    for (debug, own) in [(ours, &of_source[..]), (theirs, &of_destination[..])] {
        let labels = [&both[..], own].concat();
        let (_, metrics) = plain_get(debug, "/metrics").await.unwrap();
        assert!(counted(&metrics, &labels, 3), "{labels:#?}\n{metrics}");
        // The control: nothing of the kind has failed.
        let failed = [&labels[..8], &[("response_code", "503")]].concat();
        assert!(!counted(&metrics, &failed, 3), "{metrics}");
        assert!(metrics.contains("istio_request_duration_milliseconds_count{"), "{metrics}");
    }

    for debug in [ours, theirs] {
        assert_eq!(plain_get(debug, "/healthz").await.unwrap().0, 200);
        assert_eq!(plain_get(debug, "/readyz").await.unwrap().0, 200);
    }
    let resources = acknowledged(ours).await;
    for kind in ["listener", "route", "cluster", "endpoint"] {
        let found = resources.iter().any(|r| r.to_lowercase().contains(kind) && r.contains("reviews"));
        assert!(found, "{kind} in {resources:#?}");
    }
    let inbound = format!("xds.istio.io/grpc/lds/inbound/{}", server.address);
    assert!(acknowledged(theirs).await.iter().any(|resource| resource.ends_with(&inbound)));
    let (_, clusters) = plain_get(ours, "/clusters").await.unwrap();
    assert!(
        clusters.contains(&server.address.to_string()) && clusters.contains("outbound|9080||reviews"),
        "{clusters}"
    );
}

/// `type name` of every resource, once all are acknowledged.
async fn acknowledged(debug: std::net::SocketAddr) -> Vec<String> {
    eventually("all resources are acknowledged", || async {
        let (_, dump) = plain_get(debug, "/config_dump").await.unwrap();
        let dump: Value = serde_json::from_str(&dump).unwrap();
        assert_eq!(dump["status"]["connected"], true, "{dump:#}");
        let resources = dump["resources"].as_array().unwrap();
        let text = |resource: &Value, key: &str| resource[key].as_str().unwrap().to_owned();
        let all = resources.iter().all(|resource| text(resource, "state").eq_ignore_ascii_case("acked"));
        all.then(|| resources.iter().map(|r| format!("{} {}", text(r, "type_url"), text(r, "name"))).collect())
    })
    .await
}
