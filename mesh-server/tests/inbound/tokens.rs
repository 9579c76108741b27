//! Tokens at the server: the tricks with them that have been somebody's CVE, each with the same request without its
//! trick; what authorization and the application learn of them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{self, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, HttpFilter, HttpFilterKind,
    InboundState, InboundTls, JwtAuthentication, JwtClaimHeader, JwtHeader, JwtKeys, JwtProvider, MetadataMatch,
    MetadataValue, PathMatch, Permission, Principal, StringMatch, StringMatcher,
};
use mesh_server::{Body, Config, ServerBuilder, claims};
use serde_json::{Value, json};

use crate::filters::bucket;
use crate::kit::{Http, World, listener, text};
use crate::transport::raw;

const ISSUER: &str = "https://issuer.test";

struct Issuer {
    key: KeyPair,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn new() -> Self {
        Self { key: KeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    fn provider(&self) -> JwtProvider {
        let public = PublicKeyComponents::<Vec<u8>>::from(self.key.public_key());
        let key = json!({"kty": "RSA", "kid": "one", "n": b64(&public.n), "e": b64(&public.e)});
        let keys = JwtKeys::Inline(json!({"keys": [key]}).to_string());
        JwtProvider {
            audiences: vec!["shop".to_owned()],
            payload_in_metadata: MetadataMatch::PAYLOAD.to_owned(),
            claim_headers: vec![JwtClaimHeader { name: "x-sub".parse().unwrap(), claim: "sub".to_owned() }],
            ..JwtProvider::new(ISSUER, keys)
        }
    }

    fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": "RS256", "kid": "one"}), claims)
    }

    fn token_with(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", b64(signature))
    }
}

#[expect(clippy::disallowed_methods, reason = "the server's clock is the system's")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn said() -> Value {
    json!({"iss": ISSUER, "sub": "ann", "aud": "shop", "exp": now() + 600, "group": ["dev"]})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = said();
    claims[name] = value;
    claims
}

fn required(provider: JwtProvider) -> JwtAuthentication {
    JwtAuthentication::required("jwt", [("issuer".to_owned(), provider)])
}

fn optional(provider: JwtProvider) -> JwtAuthentication {
    JwtAuthentication::optional("jwt", [("issuer".to_owned(), provider)])
}

fn guarded(jwt: Vec<JwtAuthentication>, authorization: Vec<AuthorizationPolicy>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    (listener.jwt, listener.authorization) = (jwt, authorization);
    InboundState::Ready(Arc::new(listener))
}

/// A server that answers with what its application learns: target, principal, and the header that tells the subject.
async fn world(state: InboundState, settings: impl FnOnce(ServerBuilder) -> ServerBuilder) -> World {
    let told = tower::service_fn(|request: Request<Body>| async move {
        let header = |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
        let claims = claims();
        let principal = claims.as_ref().and_then(|claims| claims.principal()).unwrap_or("-");
        text(format!("{} {principal} {} {}", request.uri(), header("x-sub"), header("authorization")))
    });
    World::start_with(state, Config::default(), settings, told).await
}

/// Status, head and body of the answer to a GET with further header lines.
async fn ask(world: &World, target: &str, lines: &[String]) -> (u16, String, String) {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {target} HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n{lines}\r\n");
    let answer = raw(world.address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, head.to_owned(), body.trim_end().to_owned())
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[tokio::test]
async fn s48_a_missing_or_confused_token_gets_401_and_the_same_request_with_a_good_one_passes() {
    let issuer = Issuer::new();
    let world = world(guarded(vec![required(issuer.provider())], vec![]), |server| server).await;
    let good = issuer.token(&said());
    let told = format!("/a {ISSUER}/ann ann -");
    assert_eq!(ask(&world, "/a", &[bearer(&good)]).await.2, told);
    let parts: Vec<&str> = good.split('.').collect();
    let unsigned = format!("{}.{}.", b64(r#"{"alg":"none"}"#), parts[1]);
    let public = issuer.key.public_key().as_ref();
    let confused = format!("{}.{}", b64(r#"{"alg":"HS256","kid":"one"}"#), parts[1]);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, public), confused.as_bytes());
    let climbing = issuer.token_with(&json!({"alg": "RS256", "kid": "../../x"}), &said());
    let one = |token: &str| ("/a".to_owned(), vec![bearer(token)]);
    for (what, (target, lines)) in [
        ("no token", ("/a".to_owned(), vec![])),
        ("alg none", one(&unsigned)),
        ("the public key as a secret", one(&format!("{confused}.{}", b64(tag)))),
        ("kid ../../x", one(&climbing)),
        ("another audience", one(&issuer.token(&with("aud", json!("other"))))),
        ("a list of other audiences", one(&issuer.token(&with("aud", json!(["other", "sho"]))))),
        ("an issuer with one more slash", one(&issuer.token(&with("iss", json!(format!("{ISSUER}/")))))),
        ("two Authorization headers", ("/a".to_owned(), vec![bearer(&good), bearer(&good)])),
        ("two, one of them of another kind", ("/a".to_owned(), vec![bearer(&good), "authorization: Basic x".into()])),
        ("in the query and no place for it", (format!("/a?token={good}"), vec![])),
        ("twice in the query", (format!("/a?access_token={good}&access_token={good}"), vec![])),
        ("expired by skew + 1", one(&issuer.token(&with("exp", json!(now() - 61))))),
        ("an issuer nobody knows", one(&issuer.token(&with("iss", json!("https://other.test"))))),
    ] {
        let (status, head, body) = ask(&world, &target, &lines).await;
        assert_eq!(status, 401, "{what}: {body}");
        let realm = "www-authenticate: Bearer realm=\"http://shop.test/a\"";
        let challenge = head.lines().find(|line| line.starts_with("www-authenticate")).unwrap_or_default();
        let error = if body == "Jwt is missing" { "" } else { ", error=\"invalid_token\"" };
        assert_eq!(challenge, format!("{realm}{error}"), "{what}: {body}");
        assert!(body.contains("Jw"), "{what}: {body}");
    }
    let passing = [
        ("aud as a list", "/a".to_owned(), vec![bearer(&issuer.token(&with("aud", json!(["other", "shop"]))))]),
        ("within the skew", "/a".to_owned(), vec![bearer(&issuer.token(&with("exp", json!(now() - 30))))]),
        ("in the query, in its place", format!("/a?access_token={good}"), vec![]),
    ];
    for (what, target, lines) in passing {
        assert_eq!(ask(&world, &target, &lines).await.2, told, "{what}");
    }
    // The control: without the filter everything passes, and the application would have to look itself.
    world.policy.publish(guarded(vec![], vec![]));
    assert_eq!(ask(&world, "/a", &[bearer(&unsigned)]).await.2, format!("/a - - Bearer {unsigned}"));
}

#[tokio::test]
async fn s48_a_token_that_does_not_hold_is_not_the_same_as_none() {
    let issuer = Issuer::new();
    let world = world(guarded(vec![optional(issuer.provider())], vec![]), |server| server).await;
    assert_eq!(ask(&world, "/", &[]).await.2, "/ - - -");
    assert_eq!(ask(&world, "/", &[bearer(&issuer.token(&said()))]).await.0, 200);
    let stranger = Issuer::new();
    for token in [issuer.token(&with("iss", json!("https://other.test"))), stranger.token(&said()), "x".to_owned()] {
        assert_eq!(ask(&world, "/", &[bearer(&token)]).await.0, 401, "{token}");
    }
}

#[tokio::test]
async fn only_the_filter_tells_the_application_of_a_token() {
    let issuer = Issuer::new();
    let forged = "x-sub: root".to_owned();
    let keeping = JwtProvider { forward: true, ..issuer.provider() };
    let world = world(guarded(vec![optional(issuer.provider())], vec![]), |server| server).await;
    let token = issuer.token(&said());
    assert_eq!(ask(&world, "/", std::slice::from_ref(&forged)).await.2, "/ - - -");
    assert_eq!(ask(&world, "/", &[forged.clone(), bearer(&token)]).await.2, format!("/ {ISSUER}/ann ann -"));
    world.policy.publish(guarded(vec![optional(keeping)], vec![]));
    let target = format!("/?a=b&access_token={token}");
    assert_eq!(ask(&world, &target, &[]).await.2, format!("{target} {ISSUER}/ann ann -"));
    world.policy.publish(guarded(vec![], vec![]));
    assert_eq!(ask(&world, "/", &[forged]).await.2, "/ - root -");
}

#[tokio::test]
async fn grpc_is_told_in_its_own_way() {
    let issuer = Issuer::new();
    let world = world(guarded(vec![required(issuer.provider())], vec![]), |server| server).await;
    let call = |line: String| {
        let head = "POST /a.B/C HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\ncontent-type: application/grpc\r\n";
        let address = world.address;
        async move { raw(address, format!("{head}{line}\r\n").as_bytes()).await }
    };
    let refused = call(String::new()).await;
    for part in ["HTTP/1.1 200", "grpc-status: 16\r\n", "grpc-message: Jwt is missing\r\n", "www-authenticate: Bearer "]
    {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let passed = call(format!("{}\r\n", bearer(&issuer.token(&said())))).await;
    assert!(!passed.contains("grpc-status"), "{passed}");
}

fn allow(principal: Principal) -> AuthorizationPolicy {
    one(AuthorizationAction::Allow, vec![Permission::Any], principal)
}

fn one(action: AuthorizationAction, permissions: Vec<Permission>, principal: Principal) -> AuthorizationPolicy {
    let name = "ns[default]-policy[one]-rule[0]".to_owned();
    let rules = vec![AuthorizationRule { name, permissions, principals: vec![principal] }];
    AuthorizationPolicy { rules, ..AuthorizationPolicy::new("one", action) }
}

/// As Istio writes conditions on claims.
fn claim(name: &str, value: MetadataValue) -> Principal {
    let path = vec![MetadataMatch::PAYLOAD.to_owned(), name.to_owned()];
    Principal::Metadata(MetadataMatch { filter: MetadataMatch::JWT_AUTHN.to_owned(), path, value, invert: false })
}

fn principal(pattern: StringMatch) -> Principal {
    let value = MetadataValue::Text(StringMatcher { pattern, ignore_case: false });
    let path = vec!["request.auth.principal".to_owned()];
    Principal::Metadata(MetadataMatch { filter: "istio_authn".to_owned(), path, value, invert: false })
}

#[tokio::test]
async fn what_a_token_says_decides_and_without_one_a_demand_denies() {
    let issuer = Issuer::new();
    let jwt = || vec![optional(issuer.provider())];
    let world = world(guarded(jwt(), vec![]), |server| server).await;
    let ann = bearer(&issuer.token(&said()));
    let bob = bearer(&issuer.token(&with("sub", json!("bob"))));
    let ops = bearer(&issuer.token(&with("group", json!(["ops"]))));
    let dev = || claim("group", MetadataValue::AnyText(StringMatcher::exact("dev")));
    let is_ann = || principal(StringMatch::Exact(format!("{ISSUER}/ann")));
    let any = || principal(StringMatch::Prefix(String::new()));
    let not = |principal| Principal::Not(Box::new(principal));
    let deny = |principal| one(AuthorizationAction::Deny, vec![Permission::Any], principal);
    for (what, policy, statuses) in [
        ("allow ann", allow(is_ann()), [200, 403, 200, 403]),
        ("allow developers", allow(dev()), [200, 200, 403, 403]),
        ("allow all but ann", allow(not(is_ann())), [403, 200, 403, 200]),
        ("deny whoever has no token", deny(not(any())), [200, 200, 200, 403]),
        ("deny ann", deny(is_ann()), [403, 200, 403, 200]),
    ] {
        world.policy.publish(guarded(jwt(), vec![policy.clone()]));
        for (line, status) in
            [vec![ann.clone()], vec![bob.clone()], vec![ops.clone()], vec![]].into_iter().zip(statuses)
        {
            assert_eq!(ask(&world, "/", &line).await.0, status, "{what}: {line:?}");
        }
        // A token that does not hold is no token of anybody.
        assert_eq!(ask(&world, "/", &[bearer("a.b.c")]).await.0, 401, "{what}");
    }
    // Nobody looks at tokens: they are not believed, and not known to be missing.
    world.policy.publish(guarded(vec![], vec![allow(is_ann())]));
    assert_eq!(ask(&world, "/", std::slice::from_ref(&ann)).await.0, 403);
    world.policy.publish(guarded(vec![], vec![deny(is_ann())]));
    assert_eq!(ask(&world, "/", &[bob]).await.0, 403);
    let counted = world.metrics.decisions().all();
    let count = |decision| {
        let of = counted.iter().find(|(labels, _)| labels.policy == "jwt[jwt]" && labels.decision == decision);
        of.map(|(labels, count)| (labels.action, labels.dry_run, *count))
    };
    assert_eq!((count("allowed"), count("denied")), (Some(("jwt", false, 15)), Some(("jwt", false, 5))));
}

/// Says yes to everybody.
#[derive(Debug)]
struct Yes;

impl ExternalAuthorizer for Yes {
    fn check(&self, request: CheckRequest) -> Checking<'_> {
        Box::pin(async move {
            assert!(!request.headers.contains_key("authorization"), "the token was taken out before");
            tokio::task::yield_now().await;
            Ok(CheckResponse::allowed())
        })
    }
}

impl ExternalAuthorizers for Yes {
    fn authorizer(&self, _: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        Some(Arc::new(Self))
    }
}

#[tokio::test]
async fn the_policies_after_an_external_authorizer_know_the_token_too() {
    let issuer = Issuer::new();
    let custom = AuthorizationAction::Custom(AuthorizerProvider::named("yes"));
    let asking = one(custom, vec![Permission::Path(PathMatch::Prefix("/".into()))], Principal::Any);
    let ann = allow(principal(StringMatch::Exact(format!("{ISSUER}/ann"))));
    let state = guarded(vec![optional(issuer.provider())], vec![asking, ann]);
    let world = world(state, |server| server.authorizers(Arc::new(Yes))).await;
    let told = ask(&world, "/", &[bearer(&issuer.token(&said()))]).await.2;
    assert_eq!(told, format!("/ {ISSUER}/ann ann -"));
    assert_eq!(ask(&world, "/", &[bearer(&issuer.token(&with("sub", json!("bob"))))]).await.0, 403);
    assert_eq!(ask(&world, "/", &[]).await.0, 403);
}

#[tokio::test]
async fn s52_demands_hold_while_there_is_no_word_from_the_control_plane() {
    let issuer = Issuer::new();
    let world = world(guarded(vec![required(issuer.provider())], vec![]), |server| server).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(client.get("/").await.unwrap().0, 401);
    world.policy.publish(InboundState::Failed("gone".into()));
    assert_eq!(client.get("/").await.unwrap().0, 401, "the open connection is judged by what was enforced last");
    world.policy.publish(guarded(vec![], vec![]));
    assert_eq!(client.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn s49_without_keys_tokens_are_refused_and_new_keys_count_from_the_next_request() {
    let issuer = Issuer::new();
    let none = JwtProvider { keys: JwtKeys::Inline(r#"{"keys": []}"#.to_owned()), ..issuer.provider() };
    let world = world(guarded(vec![optional(none)], vec![]), |server| server).await;
    let line = [bearer(&issuer.token(&said()))];
    let (status, _, body) = ask(&world, "/", &line).await;
    assert_eq!((status, &*body), (401, "Jwks is not available"));
    world.policy.publish(guarded(vec![optional(issuer.provider())], vec![]));
    assert_eq!(ask(&world, "/", &line).await.0, 200);
    // The issuer changes its key: what the old one signed holds no more.
    world.policy.publish(guarded(vec![optional(Issuer::new().provider())], vec![]));
    assert_eq!(ask(&world, "/", &line).await.0, 401);
}

#[tokio::test]
async fn s49_fetched_keys_that_are_out_of_date_refuse_tokens_and_nothing_else() {
    let issuer = Issuer::new();
    let JwtKeys::Inline(jwks) = issuer.provider().keys else { panic!("inline") };
    let keys = JwtKeys::Fetched { jwks, max_age: std::time::Duration::from_secs(24 * 3600) };
    let fetched = guarded(vec![optional(JwtProvider { keys, ..issuer.provider() })], vec![]);
    let InboundState::Ready(listener) = &fetched else { panic!("{fetched:?}") };
    let outdated = InboundState::Ready(Arc::new(listener.outdated()));
    let world = world(fetched.clone(), |server| server).await;
    let line = [bearer(&issuer.token(&said()))];
    assert_eq!(ask(&world, "/", &line).await.0, 200);
    world.policy.publish(outdated);
    let (status, head, body) = ask(&world, "/", &line).await;
    assert_eq!((status, &*body), (401, "Jwks is out of date"));
    assert!(head.contains("error=\"invalid_token\""), "{head}");
    assert_eq!(ask(&world, "/", &[]).await.0, 200, "who brings no token is not concerned");
    let inline = guarded(vec![optional(issuer.provider())], vec![]);
    let InboundState::Ready(listener) = &inline else { panic!("{inline:?}") };
    assert_eq!(listener.outdated(), **listener, "keys that are written down have no age");
    world.policy.publish(fetched);
    assert_eq!(ask(&world, "/", &line).await.0, 200);
}

#[tokio::test]
async fn a_provider_that_names_a_header_looks_nowhere_else() {
    let issuer = Issuer::new();
    let header = JwtHeader { name: "x-jwt".parse().unwrap(), prefix: String::new() };
    let named = JwtProvider { from_headers: vec![header], ..issuer.provider() };
    let world = world(guarded(vec![required(named)], vec![]), |server| server).await;
    let token = issuer.token(&said());
    assert_eq!(ask(&world, "/", &[format!("x-jwt: {token}")]).await.0, 200);
    assert_eq!(ask(&world, "/", &[bearer(&token)]).await.0, 401);
    assert_eq!(ask(&world, &format!("/?access_token={token}"), &[]).await.0, 401);
}

#[tokio::test]
async fn a_limit_before_tokens_keeps_a_flood_of_bad_ones_from_being_verified() {
    let issuer = Issuer::new();
    let (good, bad) = (issuer.token(&said()), Issuer::new().token(&said()));
    for (before, statuses, verified) in [
        (true, [401, 401, 429, 429, 429], 2),
        // The control: after them it is for those who may pass, and each bad token is verified.
        (false, [401, 401, 401, 401, 200], 4),
    ] {
        let mut listener = listener(InboundTls::Permissive);
        listener.jwt = vec![required(issuer.provider())];
        let limit = vec![HttpFilter { name: "limit".into(), kind: HttpFilterKind::RateLimit(bucket(2)) }];
        *(if before { &mut listener.before } else { &mut listener.filters }) = limit;
        let world = world(InboundState::Ready(Arc::new(listener)), |server| server).await;
        let mut said = Vec::new();
        for token in [&bad, &bad, &bad, &bad, &good] {
            said.push(ask(&world, "/", &[bearer(token)]).await.0);
        }
        assert_eq!(said, statuses, "before: {before}");
        let counted = world.metrics.decisions().all();
        let denied = counted.iter().find(|(of, _)| of.policy == "jwt[jwt]" && of.decision == "denied");
        assert_eq!(denied.map(|(_, count)| *count), Some(verified), "before: {before}");
    }
}
