//! Authorization around an axum router, without a control plane and with axum's own server.
//!
//! `cargo run --example authorize_axum` starts the router behind the mesh's inbound layer and a policy that is written
//! here: the public part is for everybody, `/admin` for nobody, `/members` for whoever has a token that the issuer signed,
//! about `/private` an authorizer of the program's own is asked, and what no rule names is refused. It fails if a request gets another
//! answer than it should, tricks with the path included, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, StatusCode};
use mesh::parts::mesh_core::authz::ExternalAuthorizers;
use mesh::parts::mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, InboundListener, InboundState,
    InboundTls, JwtAuthentication, JwtKeys, JwtProvider, JwtRule, PathMatch, Permission, Principal, RouteMatch,
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

/// The public key of an issuer of tokens, as its JSON Web Key Set has it.
const KEYS: &str =
    r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": "g8W22ZJjNPIDkucaxs8x-c7iTonxQ8pWmA9RXQw427Y"}]}"#;

/// A token of that issuer for `ann`, until the year 2100.
const ANN: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6Im9uZSJ9.\
                   eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYW5uIiwiZXhwIjo0MTAyNDQ0ODAwfQ.\
                   tkoYlJZRcgphNyU0n7588U7z5Ez-Gtuk0GWX7FfcrUwgnd-9VX0Ixm9HCJaCHW0O17e_xpv4-_bsFsadYTRjCQ";

/// One for `bob` without an end, which nobody could take back.
const BOB: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6Im9uZSJ9.\
                   eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYm9iIn0.\
                   hCLK-UJ_cPJd2yG3hpdUOFlpaTnu9cJ7DrnxkE-tXSGtelHDGhGvl02G5hgBNwpJ0M7iOe3m6qR8kOiD7PTWCQ";

/// Of what begins with `/members` a token is demanded.
fn tokens() -> JwtAuthentication {
    let issuer = JwtProvider {
        require_expiration: true,
        ..JwtProvider::new("https://issuer.example", JwtKeys::Inline(KEYS.to_owned()))
    };
    let mut tokens = JwtAuthentication::required("jwt", [("issuer".to_owned(), issuer)]);
    let elsewhere = ["/public", "/admin", "/private", "/elsewhere"].map(|prefix| JwtRule {
        matcher: RouteMatch { path: PathMatch::PathSeparatedPrefix(prefix.to_owned()), ..RouteMatch::any() },
        requirement: None,
    });
    // The first rule that matches decides.
    tokens.rules.splice(0..0, elsewhere);
    tokens
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
        about(AuthorizationAction::Allow, "open", &["/public", "/private", "/members"]),
    ];
    policy.jwt = vec![tokens()];
    let server = Server::builder()
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(policy))))
        .authorizers(Arc::new(Authorizers))
        .build();

    // Around the router and not inside of it: then the router, too, is asked for the path that was judged.
    let router = Router::new().fallback(get(|request: Request<Body>| async move {
        let claims = mesh::claims();
        let caller = claims.as_ref().and_then(|claims| claims.subject()).unwrap_or("somebody");
        format!("{caller} at {}", request.uri().path())
    }));
    let service = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| response.map(Body::new))
        .layer(server.inbound_layer())
        .service(router);
    let service = axum::ServiceExt::<Request<Body>>::into_make_service(service);
    tokio::spawn(async move { axum::serve(listener, service).await });

    let mesh = Mesh::builder().standalone().build().await?;
    let password = |word: &'static str| Some(("x-password", word.to_owned()));
    let token = |token: &str| Some(("authorization", format!("Bearer {token}")));
    for (path, with, expected) in [
        ("/public/a", None, 200),
        ("/elsewhere", None, 403),
        ("/admin", password("sesame"), 403),
        ("/public/../admin", password("sesame"), 403),
        ("/%61dmin", password("sesame"), 403),
        ("/private/a", None, 401),
        ("/private/a", password("sesame"), 200),
        ("/members/a", None, 401),
        ("/members/a", token("a.b.c"), 401),
        ("/public/../members/a", None, 401),
        ("/members/a", token(BOB), 401),
        ("/members/a", token(ANN), 200),
    ] {
        let mut request = Request::get(format!("http://{address}{path}"));
        if let Some((name, value)) = &with {
            request = request.header(*name, value);
        }
        let status = mesh.client().send(request.body(mesh::Body::empty())?).await?.status();
        println!("{path} with {}: {status}", with.map_or("nothing", |(name, _)| name));
        if status != expected {
            return Err(format!("{path} should get {expected}, and gets {status}").into());
        }
    }
    Ok(())
}
