//! AuthorizationPolicies from the manifest to the request: who is let in, what changes while calls go on, and what a
//! broken policy does.

use mesh::Mesh;

use crate::support::{Plane, becomes, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

fn policy(spec: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: reviews }}
spec: {spec}
"
    )
}

/// Calls until the server answers with this status.
async fn status_becomes(mesh: &Mesh, uri: &str, status: u16) -> String {
    eventually(&format!("{uri} answers with {status}"), || async {
        let (got, text) = call(mesh, uri, &[]).await.ok()?;
        (got == status).then_some(text)
    })
    .await
}

#[tokio::test]
async fn a_policy_lets_in_whom_it_names_and_follows_its_manifest() {
    let plane = Plane::start().await;
    let server = plane.answering("reviews", "", "hello").await;
    let (web, other) = (plane.caller("productpage").await, plane.caller("ratings").await);
    becomes(&web, REVIEWS, &[], "hello").await;
    becomes(&other, REVIEWS, &[], "hello").await;

    plane.write(
        "authz.yaml",
        policy(
            "{selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {principals: \
             [cluster.local/ns/default/sa/productpage]}}]}]}",
        ),
    );
    let text = status_becomes(&other, REVIEWS, 403).await;
    assert_eq!(text, "RBAC: access denied\n");
    assert_eq!(call(&web, REVIEWS, &[]).await.unwrap().1, "hello");
    assert_eq!(plain_get(server.address, "/").await.unwrap().0, 403, "without a certificate nobody is anybody");
    plane.no_findings().await;

    // A path, with its tricks: the policy names one spelling of it.
    plane.write("authz.yaml", policy("{action: DENY, rules: [{to: [{operation: {paths: [/admin, '/admin/*']}}]}]}"));
    becomes(&other, REVIEWS, &[], "hello").await;
    for path in ["/admin", "/x/../admin", "//admin/y", "/%61dmin"] {
        assert_eq!(plain_get(server.address, path).await.unwrap().0, 403, "{path}");
    }
    assert_eq!(plain_get(server.address, "/x%2fadmin").await.unwrap().0, 400);
    assert_eq!(plain_get(server.address, "/administration").await.unwrap().0, 200);

    // Broken: the last good one stays, and the finding says where.
    plane.write("authz.yaml", policy("{action: DENY, rules: [{to: [{operation: {path: [/admin]}}]}]}"));
    eventually("the slip is found", || async {
        let found = plane.findings().await;
        found.iter().any(|f| f["field"] == "spec.rules[0].to[0].operation.path").then_some(())
    })
    .await;
    assert_eq!(plain_get(server.address, "/admin").await.unwrap().0, 403);
    assert_eq!(call(&other, REVIEWS, &[]).await.unwrap().1, "hello");

    // The control: with everything allowed, the same requests pass.
    plane.write("authz.yaml", policy("{rules: [{}]}"));
    eventually("/admin is open", || async {
        (plain_get(server.address, "/admin").await.unwrap().0 == 200).then_some(())
    })
    .await;
    assert_eq!(plain_get(server.address, "//admin/y").await.unwrap().0, 200);
}
