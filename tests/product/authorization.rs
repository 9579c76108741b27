//! AuthorizationPolicies from the manifest to the request: who is let in, what changes while calls go on, and what a
//! broken policy does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3 as proto;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::rpc::Status;
use http::{HeaderMap, Request, Response};
use mesh::Mesh;
use mesh::parts::mesh_core::id::TrustDomain;
use mesh::parts::mesh_core::identity::Identity;
use mesh::parts::mesh_core::policy::InboundState;
use mesh::parts::mesh_core::source::Watched;
use mesh::parts::mesh_server::Server;
use mesh_control::model::Model;
use mesh_control::translate::{NodeScope, Options, World};
use mesh_testkit::{CertificateSpec, TestCa, crypto};
use proto::authorization_server::{Authorization, AuthorizationServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::support::{FREE, Plane, becomes, call, eventually, plain_get};

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

/// Status of the answer to a caller who proves to be that one, from a server whose mesh was called `old.test`.
async fn as_one_of_a_renamed_mesh(rules: &str, id: &str) -> u16 {
    let ca = TestCa::in_domain("new.test");
    let (new, old) = (TrustDomain::new("new.test").unwrap(), TrustDomain::new("old.test").unwrap());
    let mut options = Options::default();
    (options.trust_domain, options.trust_domain_aliases) = (new.clone(), vec![old.clone()]);
    let manifest = policy(rules);
    let world = World::build_with(&Model::from_texts([("policy.yaml", &*manifest)]), &[], options);
    let name = "xds.istio.io/grpc/lds/inbound/127.0.0.1:80";
    let listener = world.inbound(&NodeScope::namespace("default"), name).unwrap();
    let mut trusted = ca.bundles();
    trusted.alias(old, new);
    let own = ca.certified(&CertificateSpec::of(&ca.id("default", "reviews")));
    let server = Server::builder()
        .identity(Watched::fixed(Some(Arc::new(Identity::new(own, trusted, 1).unwrap()))))
        .crypto(crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(listener))))
        .build();
    let socket = TcpListener::bind(FREE).await.unwrap();
    let address = socket.local_addr().unwrap();
    let serving = tokio::spawn(server.serve(socket, Router::new().fallback(any(|| async { "hello" }))));
    let shown = ca.certified(&CertificateSpec { uris: vec![id.to_owned()], ..CertificateSpec::default() });
    let tls = TlsConnector::from(Arc::new(ca.client_showing(Some(shown), &[b"http/1.1"])));
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut tls = tls.connect("mesh".try_into().unwrap(), tcp).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    tls.read_exact(&mut answer).await.unwrap();
    serving.abort();
    String::from_utf8(answer).unwrap()[9..].parse().unwrap()
}

#[tokio::test]
async fn a_rule_that_names_a_former_name_of_the_mesh_in_part_means_its_peers_under_either_name() {
    const WEB: [&str; 2] = ["spiffe://old.test/ns/shop/sa/web", "spiffe://new.test/ns/shop/sa/web"];
    for source in [
        "principals: ['*old.test/ns/shop/sa/web']",
        "principals: ['old*']",
        "trustDomains: ['old*']",
        "trustDomains: ['*ld.test']",
        "principals: ['old.test/ns/shop/sa/web']",
    ] {
        let rules =
            |action: &str| format!("{{ action: {action}, rules: [{{ from: [{{ source: {{ {source} }} }}] }}] }}");
        for id in WEB {
            assert_eq!(as_one_of_a_renamed_mesh(&rules("DENY"), id).await, 403, "{source} {id}");
            assert_eq!(as_one_of_a_renamed_mesh(&rules("ALLOW"), id).await, 200, "{source} {id}");
        }
    }
    // The control: others that end so, and other domains.
    for source in ["principals: ['*old.test/ns/shop/sa/other']", "trustDomains: ['older*']"] {
        let rules = format!("{{ action: ALLOW, rules: [{{ from: [{{ source: {{ {source} }} }}] }}] }}");
        for id in WEB {
            assert_eq!(as_one_of_a_renamed_mesh(&rules, id).await, 403, "{source} {id}");
        }
    }
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

#[tokio::test]
async fn s53_a_policy_that_changes_its_scope_leaves_nothing_behind() {
    let plane = Plane::start().await;
    let _reviews = plane.answering("reviews", "", "hello").await;
    let _ratings = plane.answering("ratings", "", "hello").await;
    let web = plane.caller("productpage").await;
    const RATINGS: &str = "http://ratings:9080/";
    becomes(&web, REVIEWS, &[], "hello").await;
    becomes(&web, RATINGS, &[], "hello").await;
    let at = |namespace: &str, selector: &str| {
        let spec = format!("{{{selector}action: DENY, rules: [{{}}]}}");
        policy(&spec).replace("name: reviews", &format!("name: scope, namespace: {namespace}"))
    };
    let of = |app: &str| format!("selector: {{matchLabels: {{app: {app}}}}}, ");
    // The same policy: of one workload, of another, of all of a namespace, of another one, of the mesh, of nobody.
    for (text, reviews, ratings) in [
        (at("default", &of("reviews")), 403, 200),
        (at("default", &of("ratings")), 200, 403),
        (at("default", ""), 403, 403),
        (at("elsewhere", ""), 200, 200),
        (at("istio-system", ""), 403, 403),
        (at("istio-system", &of("ratings")), 200, 403),
        (at("default", &of("nobody")), 200, 200),
    ] {
        plane.write("authz.yaml", &text);
        status_becomes(&web, REVIEWS, reviews).await;
        status_becomes(&web, RATINGS, ratings).await;
    }
}

/// An external authorizer as others write them: it lets those pass who know the word, and says who they are.
struct Authorizer;

#[tonic::async_trait]
impl Authorization for Authorizer {
    async fn check(
        &self,
        request: tonic::Request<proto::CheckRequest>,
    ) -> Result<tonic::Response<proto::CheckResponse>, tonic::Status> {
        dawdle().await;
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let caller = attributes.source.unwrap_or_default().principal;
        let http = attributes.request.and_then(|request| request.http).unwrap_or_default();
        let code = if http.headers.get("x-password").is_some_and(|word| word == "sesame") { 0 } else { 16 };
        let header = HeaderValue { key: "x-caller".into(), value: caller, ..Default::default() };
        let ok = proto::OkHttpResponse {
            headers: vec![HeaderValueOption { header: Some(header), ..Default::default() }],
            ..Default::default()
        };
        let denied = proto::DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            body: "the word?".into(),
            ..Default::default()
        };
        let answer = match code {
            0 => proto::check_response::HttpResponse::OkResponse(ok),
            _ => proto::check_response::HttpResponse::DeniedResponse(denied),
        };
        let status = Some(Status { code, ..Default::default() });
        Ok(tonic::Response::new(proto::CheckResponse { status, http_response: Some(answer), ..Default::default() }))
    }
}

/// An authorizer's time for an answer: more than [`impatient`] callers say they wait.
async fn dawdle() {
    let begun = Instant::now();
    while begun.elapsed() < 5 * PATIENCE {
        tokio::task::yield_now().await;
    }
}

const PATIENCE: Duration = Duration::from_millis(1);

/// Status of the answer to somebody who says by this header that it does not wait, and waits.
async fn impatient(address: SocketAddr, header: &str) -> u16 {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: reviews:9080\r\nconnection: close\r\n{header}\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap()
}

/// A header as the application reads it: what an authorizer sets prints as sensitive.
fn told(headers: &HeaderMap, name: &str) -> String {
    format!("{:?}", headers.get(name).map(|value| value.to_str().unwrap()))
}

/// Has the service `authz` asked about requests to reviews, in this way; returns when it is.
async fn ask_for_password(plane: &Plane, web: &Mesh, way: &str, more: &str) {
    let service = "service: authz.default.svc.cluster.local, port: 9080, timeout: 5s, statusOnError: '503'";
    plane.write(
        "mesh.yaml",
        format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{ name: istio, namespace: istio-system }}
data:
  mesh: |
    extensionProviders:
    - name: password
      {way}: {{ {service}{more} }}
"
        ),
    );
    plane.write(
        "authz.yaml",
        policy("{selector: {matchLabels: {app: reviews}}, action: CUSTOM, provider: {name: password}, rules: [{}]}"),
    );
    assert_eq!(status_becomes(web, REVIEWS, 401).await, "the word?");
    plane.no_findings().await;
}

#[tokio::test]
async fn a_custom_policy_asks_a_service_of_the_mesh() {
    let plane = Plane::start().await;
    let authorizer = tonic::service::Routes::new(AuthorizationServer::new(Authorizer)).into_axum_router();
    let authorizer = plane.serve("authz", "", authorizer).await;
    let who = |headers: HeaderMap| async move { told(&headers, "x-caller") };
    let server = plane.serve("reviews", "", Router::new().fallback(any(who))).await;
    let web = plane.caller("productpage").await;
    becomes(&web, REVIEWS, &[], "None").await;

    ask_for_password(&plane, &web, "envoyExtAuthzGrpc", "").await;
    let caller = r#"Some("spiffe://cluster.local/ns/default/sa/productpage")"#;
    becomes(&web, REVIEWS, &[("x-password", "sesame")], caller).await;
    // What the caller says of itself is not what the authorizer says.
    becomes(&web, REVIEWS, &[("x-password", "sesame"), ("x-caller", "somebody")], caller).await;

    // Nobody answers: denied, as the provider says.
    authorizer.mesh.shutdown().await;
    drop(authorizer);
    status_becomes(&web, REVIEWS, 503).await;
    let (_, metrics) = plain_get(server.mesh.debug_address().unwrap(), "/metrics").await.unwrap();
    assert!(metrics.contains("policy=\"provider[password]\",action=\"custom\",decision=\"unavailable\""), "{metrics}");

    // The control: without the policy nobody is asked.
    plane.write("authz.yaml", policy("{rules: [{}]}"));
    becomes(&web, REVIEWS, &[], "None").await;
}

#[tokio::test]
async fn a_custom_policy_asks_a_service_over_http() {
    let plane = Plane::start().await;
    // It lets those pass who know the word, and says what it was asked.
    let check = |request: Request<Body>| async move {
        let headers = request.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        let host = request.uri().authority().map_or_else(|| text("host"), |authority| authority.to_string());
        let asked = format!("{host} {} {} {}", request.uri().path(), text("x-password"), text("x-secret"));
        let status = if text("x-password") == "sesame" { 200_u16 } else { 401 };
        Response::builder().status(status).header("x-asked", asked).body(Body::from("the word?")).unwrap()
    };
    let authorizer = plane.serve("authz", "", Router::new().fallback(any(check))).await;
    let who = |headers: HeaderMap| async move { told(&headers, "x-asked") };
    let server = plane.serve("reviews", "", Router::new().fallback(any(who))).await;
    let web = plane.caller("productpage").await;
    becomes(&web, REVIEWS, &[], "None").await;

    let more = ", pathPrefix: /check, includeRequestHeadersInCheck: [x-password], headersToUpstreamOnAllow: [x-asked]";
    ask_for_password(&plane, &web, "envoyExtAuthzHttp", more).await;
    // The host is that of the request in question, though the authorizer is reached by its own name.
    let asked = "Some(\"reviews:9080 /check/ sesame -\")";
    becomes(&web, REVIEWS, &[("x-password", "sesame"), ("x-secret", "1"), ("x-asked", "me")], asked).await;

    // Nobody answers: denied, as the provider says.
    authorizer.mesh.shutdown().await;
    drop(authorizer);
    status_becomes(&web, REVIEWS, 503).await;
    drop(server);
}

/// An authorizer that is slow is there all the same: no caller makes it silent by not waiting for it.
#[tokio::test]
async fn s54_no_caller_opens_a_provider_that_fails_open_by_saying_that_it_does_not_wait() {
    for (way, more) in [
        ("envoyExtAuthzGrpc", ", failOpen: true"),
        ("envoyExtAuthzHttp", ", failOpen: true, includeRequestHeadersInCheck: ['x-*', 'grpc-*']"),
    ] {
        let plane = Plane::start().await;
        let no = || async {
            dawdle().await;
            (http::StatusCode::UNAUTHORIZED, "the word?")
        };
        let over_grpc = AuthorizationServer::new(Authorizer);
        let authorizer = Router::new().route_service("/envoy.service.auth.v3.Authorization/Check", over_grpc);
        let authorizer = plane.serve("authz", "", authorizer.fallback(any(no))).await;
        let server = plane.answering("reviews", "", "open").await;
        let web = plane.caller("productpage").await;
        becomes(&web, REVIEWS, &[], "open").await;
        ask_for_password(&plane, &web, way, more).await;
        // The first of them is the control.
        for header in ["", "grpc-timeout: 1n\r\n", "x-envoy-expected-rq-timeout-ms: 1\r\n"] {
            assert_eq!(impatient(server.address, header).await, 401, "{way} {header}");
        }
        // The control: it opens where nobody answers.
        authorizer.mesh.shutdown().await;
        drop(authorizer);
        status_becomes(&web, REVIEWS, 200).await;
    }
}
