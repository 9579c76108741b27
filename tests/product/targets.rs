//! Destinations that say themselves where they are: beside a control plane, and without one.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http_body_util::BodyExt;
use mesh::{Mesh, StartError};
use mesh_core::source::ResolveError;
use mesh_testkit::FakeResolver;
use tower::ServiceExt;

use crate::support::{FREE, Plane, becomes, call, plain_get};

const NAME: &str = "direct.example.com";

/// A server that no control plane knows.
async fn outsider(text: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(FREE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(get(move || async move { text }));
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

/// What a GET over a channel to `target` is answered, with the authority that it carried.
async fn over_channel(mesh: &Mesh, target: &str) -> String {
    let channel = mesh.channel(target).unwrap();
    let response = channel.oneshot(http::Request::new(tonic::body::Body::empty())).await.unwrap();
    assert_eq!(response.status(), 200, "{target}: {:?}", response.headers());
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn standalone(resolver: &Arc<FakeResolver>) -> Result<Mesh, StartError> {
    Mesh::builder().standalone().resolver(resolver.clone()).debug_address(FREE).build().await
}

#[tokio::test]
async fn a_scheme_goes_past_the_control_plane_and_plain_names_do_not() {
    let plane = Plane::start().await;
    let _server = plane.answering("reviews", "", "mesh").await;
    let direct = outsider("direct").await;
    let resolver = FakeResolver::new();
    resolver.set(NAME, &["127.0.0.1"], None);
    resolver.set("reviews", &["127.0.0.1"], None);
    let caller = plane.process("productpage", "").resolver(resolver).build().await.unwrap();

    becomes(&caller, "http://reviews:9080/", &[], "mesh").await;
    assert_eq!(over_channel(&caller, "reviews:9080").await, "mesh");
    assert_eq!(over_channel(&caller, &format!("dns:///{NAME}:{}", direct.port())).await, "direct");
    assert_eq!(over_channel(&caller, &format!("dns:///reviews:{}", direct.port())).await, "direct");
    assert_eq!(over_channel(&caller, &format!("static:{direct}")).await, "direct");
}

#[tokio::test]
async fn without_a_control_plane_names_are_found_by_dns() {
    let direct = outsider("direct").await;
    let resolver = FakeResolver::new();
    resolver.set(NAME, &["127.0.0.1"], None);
    resolver.set_services("_http._tcp.direct", &[(0, 0, NAME, direct.port())], None);
    resolver.fail("broken.example.com", ResolveError::Failed("SERVFAIL".into()));
    let mesh = standalone(&resolver).await.unwrap();
    mesh.ready().await;

    let (status, text) = call(&mesh, &format!("http://{NAME}:{}/", direct.port()), &[]).await.unwrap();
    assert_eq!((status.as_u16(), text.as_str()), (200, "direct"));
    assert_eq!(over_channel(&mesh, "dns:///_http._tcp.direct").await, "direct");

    let error = call(&mesh, "http://broken.example.com:80/", &[]).await.unwrap_err();
    assert!(error.to_string().starts_with("MESH-1109 ") && error.to_string().contains("SERVFAIL"), "{error}");
    let (_, clusters) = plain_get(mesh.debug_address().unwrap(), "/clusters").await.unwrap();
    assert!(clusters.contains("broken.example.com: SERVFAIL"), "{clusters}");
}

#[tokio::test]
async fn an_endpoint_of_a_list_that_is_down_costs_no_request() {
    let (one, two) = (outsider("up").await, outsider("up").await);
    let down = std::net::TcpListener::bind(FREE).unwrap().local_addr().unwrap();
    let mesh = standalone(&FakeResolver::new()).await.unwrap();
    for _ in 0..50 {
        assert_eq!(over_channel(&mesh, &format!("static:{down},{one},{two}")).await, "up");
    }
}

#[tokio::test]
async fn a_disabled_mesh_takes_schemes_too() {
    let direct = outsider("direct").await;
    let mesh = Mesh::disabled().unwrap();
    assert_eq!(over_channel(&mesh, &format!("static:{direct}")).await, "direct");
    assert_eq!(over_channel(&mesh, &format!("dns:///localhost:{}", direct.port())).await, "direct");
    assert!(mesh.channel("dns:///no-port").is_err());
}
