//! Linkerd's ServiceProfile: what it does not call retryable is sent once.

use mesh_testkit::{Behaviour, EchoServer};

use crate::support::{Plane, call, eventually};

const URI: &str = "http://partner.example:9080";

fn entry(server: &EchoServer) -> String {
    let port = server.address().port();
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{ name: partner }}
spec:
  hosts: [partner.example]
  ports: [{{ number: 9080, name: http, protocol: HTTP }}]
  resolution: STATIC
  endpoints: [{{ address: 127.0.0.1, ports: {{ http: {port} }} }}]
"
    )
}

const PROFILE: &str = "
---
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: { name: partner.example }
spec:
  routes:
  - name: GET /books
    condition: { method: GET, pathRegex: /books }
  retryBudget: { retryRatio: 0.2, minRetriesPerSecond: 10, ttl: 10s }
";

/// A connection that ends as a request goes out over it may have been about to: where policy says nothing of retries, what
/// is idempotent is sent once more (RFC 9112, section 9.3.1).
#[tokio::test]
async fn what_a_profile_does_not_call_retryable_is_sent_once_whatever_happens_to_its_connection() {
    for (profile, seen) in [(PROFILE, 1), ("", 2)] {
        let (plane, server) = (Plane::start().await, EchoServer::start("partner").await);
        plane.write("partner.yaml", entry(&server) + profile);
        let mesh = plane.caller("web").await;
        eventually("the destination is known", || async { call(&mesh, URI, &[]).await.ok() }).await;
        // One of its routes, and what none of them takes.
        for path in ["/books", "/authors"] {
            let before = server.requests();
            server.script([Behaviour::CloseConnection]);
            let answer = call(&mesh, &format!("{URI}{path}"), &[]).await;
            assert_eq!((answer.is_ok(), server.requests() - before), (seen == 2, seen), "{path} {profile}: {answer:?}");
            // So that the next one goes over a connection that was used before.
            call(&mesh, URI, &[]).await.unwrap();
        }
    }
}
