//! Authorization around an axum router, without a control plane and with axum's own server.
//!
//! `cargo run --example authorize_axum` starts the router behind the mesh's inbound layer and a policy that is written
//! here: the public part is for everybody, `/admin` for nobody, and about the rest an authorizer of the program's own is
//! asked. It fails if a request gets another answer than it should, tricks with the path included, so `--smoke` changes
//! nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{HeaderMap, Request, StatusCode};
use mesh::parts::mesh_core::authz::ExternalAuthorizers;
use mesh::parts::mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, InboundListener, InboundState,
    InboundTls, PathMatch, Permission, Principal,
};
use mesh::parts::mesh_core::source::Watched;
use mesh::parts::mesh_server::Server;
use mesh::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, Mesh, Refusal};
use tower::ServiceBuilder;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Lets those pass who know the word.
#[derive(Debug)]
struct Password;

impl ExternalAuthorizer for Password {
    fn check(&self, request: CheckRequest) -> Checking<'_> {
        Box::pin(async move {
            Ok(match request.headers.get("x-password") {
                Some(word) if word == "sesame" => CheckResponse::allowed(),
                _ => CheckResponse::Denied(Refusal::new(StatusCode::UNAUTHORIZED)),
            })
        })
    }
}

struct Authorizers;

impl ExternalAuthorizers for Authorizers {
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        (provider.name == "password").then(|| Arc::new(Password) as _)
    }
}

/// A policy whose only rule is about what begins with one of these.
fn about(action: AuthorizationAction, name: &str, prefixes: &[&str]) -> AuthorizationPolicy {
    let permissions =
        prefixes.iter().map(|prefix| Permission::Path(PathMatch::PathSeparatedPrefix((*prefix).to_owned())));
    let rule = AuthorizationRule {
        name: name.to_owned(),
        permissions: permissions.collect(),
        principals: vec![Principal::Any],
    };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new(name, action) }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;

    let mut policy = InboundListener::new("example", address, InboundTls::Disable);
    policy.authorization = vec![
        about(AuthorizationAction::Custom(AuthorizerProvider::named("password")), "ask", &["/private"]),
        about(AuthorizationAction::Deny, "closed", &["/admin"]),
        about(AuthorizationAction::Allow, "open", &["/public", "/private"]),
    ];
    let server = Server::builder()
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(policy))))
        .authorizers(Arc::new(Authorizers))
        .build();

    // Around the router and not inside of it: then the router, too, is asked for the path that was judged.
    let router = Router::new().fallback(get(|request: Request<Body>| async move { request.uri().path().to_owned() }));
    let service = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| response.map(Body::new))
        .layer(server.inbound_layer())
        .service(router);
    let service = axum::ServiceExt::<Request<Body>>::into_make_service(service);
    tokio::spawn(async move { axum::serve(listener, service).await });

    let mesh = Mesh::builder().standalone().build().await?;
    for (path, password, expected) in [
        ("/public/a", "", 200),
        ("/elsewhere", "", 403),
        ("/admin", "sesame", 403),
        ("/public/../admin", "sesame", 403),
        ("/%61dmin", "sesame", 403),
        ("/private/a", "", 401),
        ("/private/a", "sesame", 200),
    ] {
        let mut request = Request::get(format!("http://{address}{path}")).body(mesh::Body::empty())?;
        add(request.headers_mut(), password)?;
        let status = mesh.client().send(request).await?.status();
        println!("{path} with {password:?}: {status}");
        if status != expected {
            return Err(format!("{path} should get {expected}, and gets {status}").into());
        }
    }
    Ok(())
}

fn add(headers: &mut HeaderMap, password: &str) -> Result<(), Failure> {
    if !password.is_empty() {
        headers.insert("x-password", password.parse()?);
    }
    Ok(())
}
