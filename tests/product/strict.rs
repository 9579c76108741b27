//! Mutual TLS, demanded and taken back by manifest; and what somebody without a certificate gets.

use mesh::Mesh;
use mesh::parts::mesh_core::error::{Code, Fault};

use crate::support::{FREE, Load, Plane, becomes, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

fn mode(mode: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{ name: default }}
spec: {{ mtls: {{ mode: {mode} }} }}
"
    )
}

#[tokio::test]
async fn turning_strict_refuses_plaintext_and_costs_no_request_of_the_mesh() {
    let plane = Plane::start().await;
    plane.write("mode.yaml", mode("PERMISSIVE"));
    let server = plane.answering("reviews", "", "hello").await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "hello").await;
    let load = Load::begin(&caller, REVIEWS);
    assert_eq!(plain_get(server.address, "/").await.unwrap(), (200, "hello".to_owned()));

    plane.write("mode.yaml", mode("STRICT"));
    let refusal = eventually("plaintext is refused", || async {
        let (status, text) = plain_get(server.address, "/").await.unwrap();
        (status != 200).then_some((status, text))
    })
    .await;
    assert_eq!(refusal.0, 403);
    assert!(refusal.1.contains("MESH-2001"), "{refusal:?}");
    load.more(50).await;

    plane.write("mode.yaml", mode("PERMISSIVE"));
    eventually("plaintext is taken again", || async {
        plain_get(server.address, "/").await.is_ok_and(|(status, _)| status == 200).then_some(())
    })
    .await;
    load.more(50).await;
    load.all_well().await;
}

#[tokio::test]
async fn without_a_certificate_a_strict_server_is_out_of_reach() {
    let plane = Plane::with(|builder| builder.insecure_xds(Some(FREE))).await;
    plane.write("mode.yaml", mode("STRICT"));
    let server = plane.answering("reviews", "", "hello").await;
    eventually("the server is strict", || async {
        (plain_get(server.address, "/").await.unwrap().0 == 403).then_some(())
    })
    .await;

    // Configuration without a certificate: the port for clients on a laptop.
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": plane.insecure_address().unwrap(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
    });
    let nobody = Mesh::builder().bootstrap(bootstrap.to_string()).build().await.unwrap();
    let error = call(&nobody, REVIEWS, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::NO_IDENTITY, "{error}");
    assert!(error.to_string().starts_with("MESH-1106 ") && error.to_string().contains("join token"), "{error}");

    // The control: the token makes the difference.
    assert_eq!(call(&plane.caller("productpage").await, REVIEWS, &[]).await.unwrap().1, "hello");
}

#[tokio::test]
async fn a_refused_join_token_is_what_a_request_fails_with() {
    let plane = Plane::start().await;
    let _server = plane.answering("reviews", "", "hello").await;
    let forged = plane.stranger("productpage", "").join_token("forged").build().await.unwrap();
    let error = call(&forged, REVIEWS, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::CONTROL_PLANE_UNREACHABLE, "{error}");
    assert!(error.to_string().contains("no certificate") && error.to_string().contains("token"), "{error}");

    // The control: the same with a good one.
    assert_eq!(call(&plane.caller("productpage").await, REVIEWS, &[]).await.unwrap().1, "hello");
}

#[tokio::test]
async fn without_a_token_the_control_plane_says_why_there_is_no_configuration() {
    let plane = Plane::start().await;
    let _server = plane.answering("reviews", "", "hello").await;
    let nobody = plane.stranger("nobody", "").debug_address(FREE).build().await.unwrap();
    let error = call(&nobody, REVIEWS, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::CONTROL_PLANE_UNREACHABLE, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let (_, dump) = plain_get(nobody.debug_address().unwrap(), "/config_dump").await.unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let reason = dump["status"]["last_error"].as_str().unwrap();
    assert!(reason.contains("certificate"), "{reason}");
}
