//! Trailers of requests: an application that adds them to its headers must not be told in them what it could not be told in
//! headers.

use std::num::NonZeroU32;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt;
use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers, HeaderChange};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, CheckedBody, InboundState,
    InboundTls, JwtAuthentication, JwtClaimHeader, JwtKeys, JwtProvider, Permission, Principal,
};
use mesh_server::{Body, Config, ServerBuilder};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::kit::{World, listener, text, within};
use crate::raw as http2;
use crate::transport::raw;

/// What one may not say in a header either, under each name by which an application may know it, with what is left alone.
const SAID: [&str; 14] = [
    "x-forwarded-client-cert",
    "x_forwarded_client_cert",
    "client-cert",
    "l5d-client-id",
    "mesh-retried",
    "mesh_retried",
    "host",
    "authorization",
    "cookie",
    "x-sub",
    "x_sub",
    "x-user",
    "x_user",
    "x-checksum",
];
/// Of what no filter writes.
const LEFT_ALONE: [&str; 5] = ["x-sub", "x_sub", "x-user", "x_user", "x-checksum"];

/// Says yes, and who the user is. Reads a body first, if it is told to.
#[derive(Debug)]
struct Names(Option<CheckedBody>);

impl ExternalAuthorizer for Names {
    fn body(&self) -> Option<CheckedBody> {
        self.0
    }

    fn check(&self, _: CheckRequest) -> Checking<'_> {
        let user = HeaderChange::Set(HeaderName::from_static("x-user"), HeaderValue::from_static("jane"));
        Box::pin(async { Ok(CheckResponse::Allowed { request: vec![user], response: Vec::new() }) })
    }
}

struct One(Arc<Names>);

impl ExternalAuthorizers for One {
    fn authorizer(&self, _: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        Some(self.0.clone())
    }
}

/// A filter that tells the application the subject of a token, if there is one.
fn subject() -> JwtAuthentication {
    let provider = JwtProvider {
        claim_headers: vec![JwtClaimHeader { name: "x-sub".parse().unwrap(), claim: "sub".to_owned() }],
        ..JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys":[]}"#.into()))
    };
    JwtAuthentication::optional("jwt", [("issuer".to_owned(), provider)])
}

fn asking() -> AuthorizationPolicy {
    let rule =
        AuthorizationRule { name: "r".into(), permissions: vec![Permission::Any], principals: vec![Principal::Any] };
    let action = AuthorizationAction::Custom(AuthorizerProvider::named("opa"));
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("one", action) }
}

/// A server that answers with the body and the names of the trailers that its application is told.
async fn world(jwt: Vec<JwtAuthentication>, policies: Vec<AuthorizationPolicy>, wanted: Option<CheckedBody>) -> World {
    let mut listener = listener(InboundTls::Permissive);
    (listener.jwt, listener.authorization) = (jwt, policies);
    let told = tower::service_fn(|request: Request<Body>| async move {
        let all = request.into_body().collect().await?;
        let names: Vec<_> = all.trailers().into_iter().flat_map(|all| all.keys()).map(HeaderName::as_str).collect();
        let names = names.join(" ");
        text(format!("{} {names}", String::from_utf8_lossy(&all.to_bytes())))
    });
    let settings = |server: ServerBuilder| server.authorizers(Arc::new(One(Arc::new(Names(wanted)))));
    World::start_with(InboundState::Ready(Arc::new(listener)), Config::default(), settings, told).await
}

/// What the application is told in the trailers of a request over HTTP/1.1, which is the same over HTTP/2.
async fn told(world: &World) -> Vec<String> {
    let lines: String = SAID.iter().map(|name| format!("{name}: root\r\n")).collect();
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let answer = raw(world.address, format!("{head}1\r\nx\r\n0\r\n{lines}\r\n").as_bytes()).await;
    let (_, http1) = answer.split_once("\r\n\r\n").unwrap();
    let mut headers = http2::get("/", &[]);
    headers[0].1 = "POST";
    let head = http2::frame(http2::HEADERS, http2::END_HEADERS, 1, &http2::block(&headers));
    let trailers: Vec<_> = SAID.iter().map(|name| (*name, "root")).collect();
    let last = http2::frame(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, 1, &http2::block(&trailers));
    let bytes = [http2::PREFACE, &http2::frame(http2::SETTINGS, 0, 0, b""), &head].concat();
    let http2 = body(world, [bytes, http2::frame(http2::DATA, 0, 1, b"x"), last].concat()).await;
    let sorted = |told: &str| {
        let mut names: Vec<_> = told.strip_prefix("x ").unwrap().split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(http1), sorted(&http2), "HTTP/2 says otherwise");
    sorted(http1)
}

/// The body of the answer.
async fn body(world: &World, bytes: Vec<u8>) -> String {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(&bytes).await.unwrap();
    let mut body = Vec::new();
    while let Some((kind, flags, _, payload)) = within(http2::next(&mut tcp)).await {
        if kind == http2::DATA {
            body.extend(payload);
        }
        if matches!(kind, http2::DATA | http2::HEADERS) && flags & http2::END_STREAM != 0 {
            break;
        }
    }
    String::from_utf8(body).unwrap()
}

fn but(names: &[&str]) -> Vec<String> {
    let mut left: Vec<_> =
        LEFT_ALONE.iter().filter(|name| !names.contains(name)).map(|&name| name.to_owned()).collect();
    left.sort();
    left
}

#[tokio::test]
async fn s26_s37_trailers_say_nothing_that_only_the_mesh_and_its_filters_may_say() {
    // The control: what no filter has a say in is left alone.
    assert_eq!(told(&world(Vec::new(), Vec::new(), None).await).await, but(&[]));
    assert_eq!(told(&world(vec![subject()], Vec::new(), None).await).await, but(&["x-sub", "x_sub"]));
    let whole = CheckedBody { max_bytes: NonZeroU32::new(100).unwrap(), allow_partial: false, as_bytes: false };
    // An authorizer may have read the trailers with the body.
    for wanted in [None, Some(whole)] {
        assert_eq!(told(&world(Vec::new(), vec![asking()], wanted).await).await, but(&["x-user", "x_user"]));
        let both = told(&world(vec![subject()], vec![asking()], wanted).await).await;
        assert_eq!(both, ["x-checksum"]);
    }
}
