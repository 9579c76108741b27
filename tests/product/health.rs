//! A manifest decides who is ejected.

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use serde_json::Value;

use crate::support::{FREE, Plane, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

fn rule(outlier: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: reviews }}
spec: {{ selector: {{ app: reviews }}, ports: [{{ name: http, port: 9080 }}] }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: reviews }}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {{ simple: ROUND_ROBIN }}{outlier}
"
    )
}

#[tokio::test]
async fn a_destination_rule_ejects_who_fails_and_without_it_nobody_is() {
    let outlier = "\n    outlierDetection: { consecutive5xxErrors: 3, baseEjectionTime: 1h }";
    for (outlier, ejects) in [(outlier, true), ("", false)] {
        let plane = Plane::start().await;
        plane.write("reviews.yaml", rule(outlier));
        let failing = Router::new().fallback(any(|| async { StatusCode::INTERNAL_SERVER_ERROR }));
        let bad = plane.serve("reviews", "version=v1", failing).await;
        let _good = plane.answering("reviews", "version=v2", "good").await;
        let caller = plane.process("productpage", "").debug_address(FREE).build().await.unwrap();
        let debug = caller.debug_address().unwrap();
        let page = || async move {
            let page: Value = serde_json::from_str(&plain_get(debug, "/clusters").await.unwrap().1).unwrap();
            page.to_string()
        };
        // As many as it takes for both to be known and in turn, as the rule says: the default compares them, and would leave the bad one
        // out. And for that one to fail three times.
        eventually("both have answered, the bad one often enough", || async {
            let mut seen = Vec::new();
            for _ in 0..8 {
                seen.push(call(&caller, REVIEWS, &[]).await.ok()?.0);
            }
            let both = seen.contains(&StatusCode::OK) && (ejects || seen.contains(&StatusCode::INTERNAL_SERVER_ERROR));
            (both && !page().await.contains(r#""score":{"#)).then_some(())
        })
        .await;
        let ejected = || async move { page().await.contains(r#"{"ejected":"consecutive_5xx"}"#) };
        if ejects {
            eventually("the bad one is ejected", || async {
                // Both may not have been known when the first requests went out.
                let _ = call(&caller, REVIEWS, &[]).await;
                ejected().await.then_some(())
            })
            .await;
        }
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(call(&caller, REVIEWS, &[]).await.unwrap().0 != StatusCode::OK);
        }
        assert_eq!((failed > 0, ejected().await), (!ejects, ejects), "{failed} failed");
        let (_, metrics) = plain_get(debug, "/metrics").await.unwrap();
        let counted = r#"|reviews.default.svc.cluster.local",reason="consecutive_5xx"} 1"#;
        assert_eq!(metrics.lines().any(|line| line.ends_with(counted)), ejects, "{metrics}");
        plane.no_findings().await;
        drop(bad);
    }
}
