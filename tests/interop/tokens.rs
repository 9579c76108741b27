//! Tokens with the process `mesh control-plane`: it fetches the keys of an issuer, and a server of the mesh demands its
//! tokens. The issuer is a server over https that knows nothing of the mesh.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::Body;
use mesh_testkit::{Page, TokenIssuer};

use crate::member::{self, Server};
use crate::world::{World, eventually};

/// Whose tokens are good at `reviews`, and that one is needed.
fn manifests(issuer: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: RequestAuthentication\n\
         metadata: {{ name: reviews, namespace: default }}\n\
         spec:\n\
         \x20 selector: {{ matchLabels: {{ app: reviews }} }}\n\
         \x20 jwtRules: [{{ issuer: '{issuer}', jwksUri: '{issuer}/keys' }}]\n\
         ---\n\
         apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{ name: reviews, namespace: default }}\n\
         spec:\n\
         \x20 selector: {{ matchLabels: {{ app: reviews }} }}\n\
         \x20 rules: [{{ from: [{{ source: {{ requestPrincipals: ['{issuer}/alice'] }} }}] }}]\n"
    )
}

#[tokio::test]
async fn a_process_fetches_keys_and_a_server_demands_tokens_through_an_outage_of_both() {
    let (issuer, stranger) = (TokenIssuer::start().await, TokenIssuer::start().await);
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), issuer.root_pem()).unwrap();
    let arguments = ["--jwks-network", "127.0.0.0/8", "--jwks-roots", roots.path().to_str().unwrap()];
    let text = manifests(&issuer.url(""));
    let mut world = World::start_with(&[("tokens.yaml", text)], &arguments).await;
    let _server = Server::start(&world, "reviews", "app=reviews", "v1").await;
    let mesh = member::join(&world, "productpage", "app=productpage").await;

    let token = |by: &TokenIssuer, subject: &str| {
        let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3_600);
        let claims = format!(r#"{{"iss": "{}", "sub": "{subject}", "exp": {}}}"#, issuer.url(""), ends.as_secs());
        format!("Bearer {}", by.token(&claims))
    };
    let status = async |token: Option<&str>| {
        let mut request = http::Request::get("http://reviews:9080/");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let answer = mesh.client().send(request.body(Body::empty()).unwrap()).await;
        answer.map(|answer| answer.status().as_u16()).ok()
    };
    let good = token(&issuer, "alice");
    let cases = [(Some(good.clone()), 200), (None, 403), (Some(token(&issuer, "bob")), 403)];
    let forged = (Some(token(&stranger, "alice")), 401);
    let decided = async || {
        eventually("a good token lets in", async || (status(Some(&good)).await == Some(200)).then_some(())).await;
        for (token, wanted) in cases.iter().chain([&forged]) {
            assert_eq!(status(token.as_deref()).await, Some(*wanted), "{token:?}");
        }
    };
    decided().await;

    // Neither the end of the control plane nor a new one that cannot fetch changes what is decided.
    issuer.page("/keys", Page::Status(503));
    world.kill().await;
    decided().await;
    world.resume().await;
    eventually("the failure is found", async || {
        world.debug("/findings?format=text").await.contains("fetched last stay in force").then_some(())
    })
    .await;
    decided().await;
}
