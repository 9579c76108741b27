//! RequestAuthentications from the manifest to the request: whose tokens are good, who must have one, and what happens
//! where the keys cannot be had.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::Mesh;
use mesh_control::jwks::FetchOptions;
use mesh_testkit::{Page, TokenIssuer};

use crate::support::{Plane, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

/// A control plane that may fetch keys from this issuer on loopback.
async fn plane(issuer: &TokenIssuer) -> Plane {
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), issuer.root_pem()).unwrap();
    Plane::with(move |builder| {
        let mut options = FetchOptions::default();
        (options.networks, options.roots) = (vec!["127.0.0.0/8".parse().unwrap()], Some(roots.path().to_owned()));
        builder.jwks(options)
    })
    .await
}

fn authentication(rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{ name: reviews }}\n\
         spec: {{selector: {{matchLabels: {{app: reviews}}}}, jwtRules: [{{{rule}}}]}}\n"
    )
}

fn policy(rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: reviews }}\n\
         spec: {{selector: {{matchLabels: {{app: reviews}}}}, rules: [{{{rule}}}]}}\n"
    )
}

/// A token of the issuer that is good for an hour.
fn token(issuer: &TokenIssuer, name: &str, more: &str) -> String {
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(3_600);
    let token = issuer.token(&format!(r#"{{"iss": "{name}", "exp": {}, {more}}}"#, ends.as_secs()));
    format!("Bearer {token}")
}

async fn status(mesh: &Mesh, token: Option<&str>) -> u16 {
    let header = token.map(|token| ("authorization", token));
    call(mesh, REVIEWS, header.as_slice()).await.unwrap().0.as_u16()
}

async fn status_becomes(mesh: &Mesh, token: Option<&str>, wanted: u16) {
    let what = format!("the answer is {wanted}");
    eventually(&what, || async { (status(mesh, token).await == wanted).then_some(()) }).await;
}

#[tokio::test]
async fn a_token_is_demanded_and_its_keys_are_fetched_from_its_issuer() {
    let (issuer, stranger) = (TokenIssuer::start().await, TokenIssuer::start().await);
    let name = issuer.url("");
    let plane = plane(&issuer).await;
    let _server = plane.answering("reviews", "", "hello").await;
    let web = plane.caller("productpage").await;
    let good = token(&issuer, &name, r#""sub": "alice", "groups": ["dev"]"#);
    let forged = token(&stranger, &name, r#""sub": "alice""#);
    let foreign = token(&stranger, &stranger.url(""), r#""sub": "alice""#);
    // The control: without policy nobody looks at tokens.
    status_becomes(&web, Some(&forged), 200).await;

    // By its OpenID configuration, and so by both documents.
    plane.write("tokens.yaml", authentication(&format!("issuer: '{name}'")));
    status_becomes(&web, Some(&forged), 401).await;
    status_becomes(&web, Some(&good), 200).await;
    assert_eq!(status(&web, Some(&foreign)).await, 401);
    assert_eq!(status(&web, Some("Bearer no.token.really")).await, 401);
    assert_eq!(status(&web, None).await, 200, "no token is no bad token");
    plane.no_findings().await;

    plane.write("authz.yaml", policy(&format!("from: [{{source: {{requestPrincipals: ['{name}/alice']}}}}]")));
    status_becomes(&web, None, 403).await;
    assert_eq!(status(&web, Some(&good)).await, 200);
    let bob = token(&issuer, &name, r#""sub": "bob""#);
    assert_eq!(status(&web, Some(&bob)).await, 403);
    assert_eq!(status(&web, Some(&forged)).await, 401);

    plane.write("authz.yaml", policy("when: [{key: 'request.auth.claims[groups]', values: [dev, ops]}]"));
    let scoped = token(&issuer, &name, r#""sub": "bob", "groups": "ops""#);
    // A text is a list of one.
    status_becomes(&web, Some(&scoped), 200).await;
    assert_eq!(status(&web, Some(&good)).await, 200);
    assert_eq!(status(&web, Some(&bob)).await, 403);

    let listed = plane.json("/jwks").await;
    assert_eq!(listed, serde_json::json!([{"source": {"issuer": name}, "keys": true, "failure": null}]));
}

#[tokio::test]
async fn s50_s49_keys_that_may_not_or_cannot_be_fetched_are_told_and_let_no_token_in() {
    let issuer = TokenIssuer::start().await;
    let mut plane = plane(&issuer).await;
    let _server = plane.answering("reviews", "", "hello").await;
    let web = plane.caller("productpage").await;
    let good = token(&issuer, "shop", r#""sub": "alice""#);
    let found = async |plane: &Plane, text: &str| {
        eventually(text, || async {
            let found = plane.findings().await;
            found.iter().any(|f| f["message"].as_str().is_some_and(|message| message.contains(text))).then_some(())
        })
        .await;
    };
    plane.write("tokens.yaml", authentication("issuer: shop, jwksUri: 'https://169.254.169.254/latest/meta-data/'"));
    found(&plane, "169.254.169.254, a link-local address").await;
    status_becomes(&web, Some(&good), 401).await;
    assert_eq!(status(&web, None).await, 200);

    issuer.page("/broken", Page::Status(500));
    plane.write("tokens.yaml", authentication(&format!("issuer: shop, jwksUri: '{}'", issuer.url("/broken"))));
    found(&plane, "500 Internal Server Error").await;
    assert_eq!(status(&web, Some(&good)).await, 401);
    assert_eq!(plane.json("/status").await["findings"]["error"], 1);

    // The control: the same URL once it has keys, which is asked again by itself.
    issuer.page("/broken", Page::Text(issuer.key_set()));
    status_becomes(&web, Some(&good), 200).await;
    plane.no_findings().await;

    // A control plane that starts while the issuer is down goes on with what it knew.
    plane.stop().await;
    issuer.page("/broken", Page::Status(500));
    plane.resume().await;
    found(&plane, "fetched last stay in force").await;
    status_becomes(&web, Some(&good), 200).await;
    let later = plane.caller("ratings").await;
    status_becomes(&later, Some(&good), 200).await;
}

/// R38 at test scale: what tokens say makes no series, be it believed or not.
#[tokio::test]
async fn callers_without_end_make_no_series_r38() {
    let issuer = TokenIssuer::start().await;
    let plane = Plane::start().await;
    let server = plane.answering("reviews", "", "hello").await;
    let web = plane.caller("productpage").await;
    let rule =
        format!("issuer: shop, jwks: '{}', outputClaimToHeaders: [{{header: x-team, claim: team}}]", issuer.key_set());
    plane.write("tokens.yaml", authentication(&rule));
    plane.write("authz.yaml", policy("from: [{source: {requestPrincipals: ['shop/*']}}]"));
    status_becomes(&web, None, 403).await;
    let good = |n: u32| token(&issuer, "shop", &format!(r#""sub": "caller-{n}", "team": "{n}", "claim-{n}": {n}"#));
    let foreign = |n: u32| token(&issuer, &format!("issuer-{n}"), r#""sub": "ann""#);
    let forged = |n: u32| {
        let (token, other) = (good(n), good(n + 1));
        format!("{}.{}", token.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1)
    };
    let ask = async |n: u32| {
        for (token, wanted) in [(good(n), 200), (foreign(n), 401), (forged(n), 401)] {
            assert_eq!(status(&web, Some(&token)).await, wanted, "{n}: {token}");
        }
    };
    let debug = server.mesh.debug_address().unwrap();
    let series = async || plain_get(debug, "/metrics").await.unwrap().1.lines().count();
    let at_first = series().await;
    ask(0).await;
    let before = series().await;
    assert!(before > at_first, "the control: an outcome that is new makes one");
    for n in 1..=300 {
        ask(n).await;
    }
    assert_eq!(series().await, before);
}
