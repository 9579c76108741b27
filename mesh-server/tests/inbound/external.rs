//! External authorizers: who is asked, what they are told, and what becomes of their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use mesh_core::authz::{
    CheckBody, CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers, HeaderChange, Refusal,
    Unavailable,
};
use mesh_core::context::{self, RequestContext};
use mesh_core::policy::{
    AdaptiveConcurrency, AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, CheckedBody,
    HeaderKey, HeaderMatch, HeaderMatcher, HttpFilter, HttpFilterKind, InboundState, InboundTls, PathMatch, Permission,
    Principal, StringMatcher,
};
use mesh_server::{Body, Config};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::filters::{adaptive, bucket};
use crate::kit::{Http, World, eventually, get, listener, read, spawn, text, within};
use crate::limits::{answered, begun, end, is_given_up};

type Answer = fn(&CheckRequest) -> Result<CheckResponse, Unavailable>;

/// An authorizer that answers at once and keeps what it was asked.
#[derive(Debug)]
struct Fake {
    answer: Mutex<Answer>,
    asked: Mutex<Vec<CheckRequest>>,
    wanted: Option<CheckedBody>,
}

impl ExternalAuthorizer for Fake {
    fn body(&self) -> Option<CheckedBody> {
        self.wanted
    }

    fn check(&self, request: CheckRequest) -> Checking<'_> {
        Box::pin(async move {
            // An answer never comes at once.
            tokio::task::yield_now().await;
            let answer = *self.answer.lock();
            let answered = answer(&request);
            self.asked.lock().push(request);
            answered
        })
    }
}

/// An authorizer that takes its time: it says no for each permit that it is given.
#[derive(Debug)]
struct Slow {
    go: Semaphore,
    asked: AtomicUsize,
}

impl ExternalAuthorizer for Slow {
    fn check(&self, _: CheckRequest) -> Checking<'_> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.go.acquire().await.unwrap().forget();
            Ok(CheckResponse::Denied(Refusal::new(StatusCode::UNAUTHORIZED)))
        })
    }
}

/// An authorizer that says yes and keeps the context that it was asked in. What it calls meanwhile fails for good.
#[derive(Debug, Default)]
struct Curious(Mutex<Option<Arc<RequestContext>>>);

impl ExternalAuthorizer for Curious {
    fn check(&self, _: CheckRequest) -> Checking<'_> {
        let context = context::current().unwrap();
        context.spent.set();
        *self.0.lock() = Some(context);
        Box::pin(async { Ok(CheckResponse::allowed()) })
    }
}

struct One<A = Fake>(Arc<A>);

impl<A: ExternalAuthorizer> ExternalAuthorizers for One<A> {
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        (provider.name == "opa").then(|| self.0.clone() as _)
    }
}

fn rule(path: &str, who: Principal) -> Vec<AuthorizationRule> {
    let permissions = vec![Permission::Path(PathMatch::Prefix(path.into()))];
    vec![AuthorizationRule { name: "ns[a]-policy[one]-rule[0]".into(), permissions, principals: vec![who] }]
}

fn policy(action: AuthorizationAction, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { rules, ..AuthorizationPolicy::new("one", action) }
}

fn asking(provider: &str) -> AuthorizationPolicy {
    policy(AuthorizationAction::Custom(AuthorizerProvider::named(provider)), rule("/checked", Principal::Any))
}

fn guarded(policies: Vec<AuthorizationPolicy>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = policies;
    InboundState::Ready(Arc::new(listener))
}

/// A server whose application says which headers it got.
async fn world(policies: Vec<AuthorizationPolicy>, answer: Answer) -> (World, Arc<Fake>) {
    let fake = Arc::new(Fake { answer: Mutex::new(answer), asked: Mutex::default(), wanted: None });
    let one = Arc::new(One(fake.clone()));
    let asked = tower::service_fn(|request: http::Request<Body>| async move {
        let header = |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().unwrap());
        let ours = |name: &&HeaderName| name.as_str().starts_with("mesh") || name.as_str().ends_with("cert");
        let ours: String = request.headers().keys().filter(ours).map(|name| format!(" {name}")).collect();
        text(format!("{} {} {}{ours}", header("x-user"), header("x-secret"), header("host")))
    });
    let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
    (World::start_with(guarded(policies), Config::default(), settings, asked).await, fake)
}

fn yes(_: &CheckRequest) -> Result<CheckResponse, Unavailable> {
    Ok(CheckResponse::allowed())
}

fn no(_: &CheckRequest) -> Result<CheckResponse, Unavailable> {
    let mut headers = HeaderMap::new();
    headers.insert("location", HeaderValue::from_static("https://login.test"));
    headers.insert("content-length", HeaderValue::from_static("99"));
    Ok(CheckResponse::Denied(Refusal { status: StatusCode::FOUND, headers, body: "log in".into() }))
}

/// What was counted: policy, action, decision, number.
fn decisions(world: &World) -> Vec<String> {
    let all = world.metrics.decisions().all().into_iter();
    all.map(|(of, count)| format!("{} {} {} {count}", of.policy, of.action, of.decision)).collect()
}

async fn status(world: &World, path: &str) -> (u16, String) {
    world.plain(Http::One).await.get(path).await.unwrap()
}

#[tokio::test]
async fn an_authorizer_is_asked_about_what_the_rules_match_and_about_nothing_else() {
    let (world, fake) = world(vec![asking("opa")], yes).await;
    for version in [Http::One, Http::Two] {
        assert_eq!(world.mutual(version).await.get("/checked/a?x=1").await.unwrap().0, 200);
        assert_eq!(world.mutual(version).await.get("/other").await.unwrap().0, 200);
    }
    let asked = fake.asked.lock().clone();
    assert_eq!(asked.len(), 2);
    for question in asked {
        assert_eq!((question.path_and_query.as_str(), question.authority.as_str()), ("/checked/a?x=1", "reviews:9080"));
        let id = |id: &Option<mesh_core::id::SpiffeId>| id.as_ref().map(ToString::to_string);
        assert_eq!(id(&question.caller).as_deref(), Some("spiffe://cluster.local/ns/default/sa/productpage"));
        assert_eq!(id(&question.own).as_deref(), Some("spiffe://cluster.local/ns/default/sa/reviews"));
        assert!(question.source.is_some());
    }
    *fake.answer.lock() = no;
    assert_eq!(status(&world, "/checked").await.0, 302);
    assert_eq!(status(&world, "/other").await.0, 200);
    assert_eq!(
        decisions(&world),
        ["ns[a]-policy[one] custom asked 3", "provider[opa] custom allowed 2", "provider[opa] custom denied 1"]
    );
    // A provider that nobody knows, and no policy.
    world.policy.publish(guarded(vec![asking("other")]));
    let (code, body) = status(&world, "/checked").await;
    assert!(code == 403 && body.contains("MESH-2003"), "{code} {body}");
    world.policy.publish(guarded(Vec::new()));
    assert_eq!(status(&world, "/checked").await.0, 200);
}

#[tokio::test]
async fn s54_an_authorizer_is_asked_for_the_request_and_not_under_its_callers_orders() {
    let curious = Arc::<Curious>::default();
    let one = Arc::new(One(curious.clone()));
    let app = tower::service_fn(|_| async {
        let of = context::current().unwrap();
        // The control: the application has them.
        assert!(of.deadline.is_some() && of.retried);
        let mut failed = text("failed")?;
        *failed.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok::<_, mesh_core::error::BoxError>(failed)
    });
    let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
    let world = World::start_with(guarded(vec![asking("opa")]), Config::default(), settings, app).await;
    for name in ["grpc-timeout", "x-envoy-expected-rq-timeout-ms"] {
        let mut request = get("/checked");
        for (name, value) in [
            (name, if name == "grpc-timeout" { "9S" } else { "9000" }),
            ("mesh-retried", "1"),
            ("x-request-id", "r"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let response = world.mutual(Http::Two).await.send(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("mesh-retried"), "the tries of the question are not the request's");
        let asked_in = curious.0.lock().take().unwrap();
        assert!(asked_in.deadline.is_none() && !asked_in.retried, "{asked_in:?}");
        assert!(asked_in.trace.is_some() && asked_in.caller.is_some() && asked_in.forwarded.len() == 1);
    }
}

#[tokio::test]
async fn an_authorizer_is_told_what_it_wants_of_a_body_and_the_application_gets_all_of_it() {
    let wanted = |max: u32, allow_partial| {
        let max_bytes = max.try_into().unwrap();
        Some(CheckedBody { max_bytes, allow_partial, as_bytes: false })
    };
    for (wanted, told, status) in [
        (None, Some(None), 200),
        (wanted(10, false), Some(Some(("hello", false))), 200),
        (wanted(5, false), Some(Some(("hello", false))), 200),
        (wanted(3, true), Some(Some(("hel", true))), 200),
        (wanted(3, false), None, 413),
    ] {
        let fake = Arc::new(Fake { answer: Mutex::new(yes), asked: Mutex::default(), wanted });
        let one = Arc::new(One(fake.clone()));
        let app = tower::service_fn(|request: http::Request<Body>| async move {
            let hint = http_body::Body::size_hint(request.body()).exact();
            let body = request.into_body().collect().await?.to_bytes();
            assert!(hint.is_none_or(|hint| hint == body.len() as u64), "{hint:?}");
            text(body)
        });
        let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
        let world = World::start_with(guarded(vec![asking("opa")]), Config::default(), settings, app).await;
        for framing in
            ["content-length: 5\r\n\r\nhello", "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
        {
            let request = format!("POST /checked HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}");
            let answer = crate::transport::raw(world.address, request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{wanted:?}: {answer}");
            assert_eq!(answer.contains("hello"), status == 200, "{wanted:?}: {answer}");
            let asked = fake.asked.lock().pop().map(|question| question.body);
            let told = told.map(|told| {
                told.map(|(text, partial)| CheckBody { bytes: bytes::Bytes::from_static(text.as_bytes()), partial })
            });
            assert_eq!(asked, told, "{wanted:?}");
        }
        // One without a body, and one about which nobody is asked.
        assert_eq!(world.plain(Http::Two).await.get("/checked").await.unwrap().0, 200);
        assert_eq!(world.plain(Http::Two).await.get("/other").await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn a_body_that_is_told_is_kept_in_one_piece_and_what_follows_connect_is_none() {
    let max_bytes = 10_u32.try_into().unwrap();
    for wanted in [Some(CheckedBody { max_bytes, allow_partial: false, as_bytes: false }), None] {
        let fake = Arc::new(Fake { answer: Mutex::new(yes), asked: Mutex::default(), wanted });
        let one = Arc::new(One(fake.clone()));
        let app = tower::service_fn(|request: http::Request<Body>| async move {
            let (mut body, mut pieces) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                pieces += usize::from(frame?.is_data());
            }
            text(format!("{pieces} pieces"))
        });
        let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
        let world = World::start_with(guarded(vec![asking("opa")]), Config::default(), settings, app).await;
        let chunks = "1\r\na\r\n".repeat(5);
        let request = format!(
            "POST /checked HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        );
        let answer = crate::transport::raw(world.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.contains("\r\n1 pieces"), wanted.is_some(), "{answer}");
        // As it is asked about.
        *fake.answer.lock() = no;
        let connect = b"CONNECT public.test:80 HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n";
        let answer = crate::transport::raw(world.address, connect).await;
        assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
        assert_eq!(fake.asked.lock().pop().unwrap().body, None, "{wanted:?}");
    }
}

#[tokio::test]
async fn a_body_that_an_authorizer_waits_for_may_not_stop_whatever_it_is_of() {
    let grpc = [("content-type", "application/grpc")];
    // Of nine bytes five come. With three of them the question can be asked; after that a call may be silent.
    for (max, given_up) in [(9, true), (3, false)] {
        let wanted = CheckedBody { max_bytes: max.try_into().unwrap(), allow_partial: true, as_bytes: false };
        let fake = Arc::new(Fake { answer: Mutex::new(yes), asked: Mutex::default(), wanted: Some(wanted) });
        let one = Arc::new(One(fake.clone()));
        let app = tower::service_fn(|request: http::Request<Body>| async move {
            text(request.into_body().collect().await?.to_bytes())
        });
        let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
        let mut config = Config::default();
        config.body_idle_timeout = Some(Duration::from_millis(50));
        let world = World::start_with(guarded(vec![asking("opa")]), config, settings, app).await;
        let mut tcp = begun(&world, Http::Two, &grpc).await;
        if !given_up {
            eventually(|| (!fake.asked.lock().is_empty()).then_some(())).await;
            assert!(is_given_up(Duration::from_millis(200), Http::One, &[]).await, "time passes");
            end(&mut tcp, Http::Two).await;
        }
        let answer = answered(&mut tcp, Http::Two).await;
        assert_eq!(answer.contains("begun end"), !given_up, "{answer}");
        assert_eq!(fake.asked.lock().is_empty(), given_up);
    }
}

#[tokio::test]
async fn a_refusal_is_answered_in_the_authorizers_words() {
    let (world, _) = world(vec![asking("opa")], no).await;
    let response = world.plain(Http::One).await.send(get("/checked")).await.unwrap();
    assert_eq!(response.headers()["location"], "https://login.test");
    assert_eq!(read(response).await.unwrap(), (302, "log in".to_owned()));
    let mut request = get("/checked");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let response = world.plain(Http::Two).await.send(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["grpc-status"].to_str().unwrap()), (200, "2"));
    assert_eq!(response.headers()["grpc-message"], "log in");
}

#[tokio::test]
async fn a_yes_changes_headers_and_leaves_what_was_judged() {
    let (world, _) = world(vec![asking("opa")], |_| {
        let pair = |name: &'static str, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let set = |name, value| {
            let (name, value) = pair(name, value);
            HeaderChange::Set(name, value)
        };
        Ok(CheckResponse::Allowed {
            request: vec![
                set("x-user", "jane"),
                set("host", "other.test"),
                // Of the peer and of retries the mesh alone has a say.
                set("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin"),
                HeaderChange::Append(pair("x_forwarded_client_cert", "").0, HeaderValue::from_static("By=x")),
                set("mesh-retried", "1"),
                set("mesh_retried", "1"),
                HeaderChange::Remove(HeaderName::from_static("x-secret")),
            ],
            response: vec![set("x-checked", "1"), set("content-length", "1")],
        })
    })
    .await;
    let mut request = get("/checked");
    request.headers_mut().insert("x-secret", HeaderValue::from_static("1"));
    let response = world.plain(Http::One).await.send(request).await.unwrap();
    assert_eq!(response.headers()["x-checked"], "1");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"jane - reviews:9080");
    // The control: nobody is asked about another path.
    let mut request = get("/other");
    request.headers_mut().insert("x-secret", HeaderValue::from_static("1"));
    let response = world.plain(Http::One).await.send(request).await.unwrap();
    assert_eq!(read(response).await.unwrap().1, "- 1 reviews:9080");
}

#[tokio::test]
async fn s47_after_a_yes_the_other_policies_decide_about_what_it_left() {
    let user = |value: &str| {
        Permission::Header(HeaderMatcher {
            name: HeaderKey::parse("x-user").unwrap(),
            value: HeaderMatch::Text(StringMatcher::exact(value)),
            invert: false,
            treat_missing_as_empty: false,
        })
    };
    let only = |value: &str| {
        let rules = vec![AuthorizationRule {
            name: "r".into(),
            permissions: vec![user(value)],
            principals: vec![Principal::Any],
        }];
        policy(AuthorizationAction::Allow, rules)
    };
    let answer: Answer = |_| {
        let change = HeaderChange::Set(HeaderName::from_static("x-user"), HeaderValue::from_static("jane"));
        Ok(CheckResponse::Allowed { request: vec![change], response: Vec::new() })
    };
    let (world, fake) = world(vec![only("jane"), asking("opa")], answer).await;
    assert_eq!(status(&world, "/checked").await.0, 200);
    assert_eq!(status(&world, "/other").await.0, 403, "nobody was asked, so nobody is jane");
    world.policy.publish(guarded(vec![only("john"), asking("opa")]));
    assert_eq!(status(&world, "/checked").await, (403, "RBAC: access denied\n".to_owned()));
    let deny = policy(AuthorizationAction::Deny, rule("/checked", Principal::Any));
    world.policy.publish(guarded(vec![deny, asking("opa")]));
    assert_eq!(status(&world, "/checked").await.0, 403);
    assert_eq!(fake.asked.lock().len(), 3, "CUSTOM goes before DENY");
    // Two policies ask; each has a say.
    world.policy.publish(guarded(vec![asking("opa"), asking("opa")]));
    assert_eq!(status(&world, "/checked").await.0, 200);
    assert_eq!(fake.asked.lock().len(), 5);
}

#[tokio::test]
async fn s54_without_an_answer_a_request_is_denied_unless_the_provider_fails_open() {
    fn none(fail_open: bool) -> Result<CheckResponse, Unavailable> {
        Err(Unavailable { reason: "it is down".into(), fail_open, status: StatusCode::SERVICE_UNAVAILABLE })
    }
    let (world, fake) = world(vec![asking("opa")], |_| none(false)).await;
    let (code, body) = status(&world, "/checked").await;
    assert!(code == 503 && !body.contains("down"), "{code} {body}");
    *fake.answer.lock() = |_| none(true);
    assert_eq!(status(&world, "/checked").await.0, 200);
    // It opens this stage, and no other.
    let deny = policy(AuthorizationAction::Deny, rule("/checked", Principal::Any));
    world.policy.publish(guarded(vec![asking("opa"), deny]));
    assert_eq!(status(&world, "/checked").await.0, 403);
    assert!(decisions(&world).contains(&"provider[opa] custom unavailable 3".to_owned()), "{:?}", decisions(&world));
}

#[tokio::test]
async fn s54_a_request_without_a_path_is_asked_about_too() {
    let (world, fake) = world(vec![asking("opa")], no).await;
    let connect = b"CONNECT public.test:80 HTTP/1.1\r\nhost: public.test\r\nconnection: close\r\n\r\n";
    let answer = crate::transport::raw(world.address, connect).await;
    assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
    assert_eq!(fake.asked.lock().len(), 1);
    // The control: allowed, it comes to the application.
    *fake.answer.lock() = yes;
    let answer = crate::transport::raw(world.address, connect).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn what_no_route_takes_is_not_found() {
    let routes = policy(AuthorizationAction::Route, rule("/a", Principal::Any));
    let (world, _) = world(vec![routes], yes).await;
    assert_eq!(status(&world, "/a").await.0, 200);
    assert_eq!(status(&world, "/b").await, (404, "no such route\n".to_owned()));
    let mut request = get("/b");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let response = world.plain(Http::Two).await.send(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert_eq!(decisions(&world), ["one route not_found 2"]);
}

/// A server whose one authorizer takes its time, with limits.
async fn slow_world(filter: Option<HttpFilterKind>, limits: impl FnOnce(&mut Config)) -> (World, Arc<Slow>) {
    let slow = Arc::new(Slow { go: Semaphore::new(0), asked: AtomicUsize::new(0) });
    let one = Arc::new(One(slow.clone()));
    let mut config = Config::default();
    limits(&mut config);
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = vec![asking("opa")];
    listener.filters = filter.into_iter().map(|kind| HttpFilter { name: "limit".into(), kind }).collect();
    let settings = |server: mesh_server::ServerBuilder| server.authorizers(one);
    let state = InboundState::Ready(Arc::new(listener));
    (World::start_with(state, config, settings, tower::service_fn(|_| async { text("hello") })).await, slow)
}

/// A request that waits for the authorizer, and then one more: what becomes of the two, how many were asked about
/// before the authorizer has answered, and what becomes of a third one, about which nobody is asked.
async fn beside_one_that_waits(filter: Option<HttpFilterKind>, limits: impl FnOnce(&mut Config)) -> ([u16; 3], usize) {
    let (world, slow) = slow_world(filter, limits).await;
    let (mut client, mut other) = (world.plain(Http::Two).await, world.plain(Http::Two).await);
    let first = spawn(client.send(get("/checked")));
    eventually(|| (slow.asked.load(Ordering::Relaxed) == 1).then_some(())).await;
    let second = spawn(other.send(get("/checked")));
    let asked = eventually(|| match slow.asked.load(Ordering::Relaxed) {
        1 if !second.is_finished() => None,
        asked => Some(asked),
    });
    let asked = asked.await;
    slow.go.add_permits(10);
    let status = |answer: hyper::Result<http::Response<hyper::body::Incoming>>| answer.unwrap().status().as_u16();
    // Its answer's body is not read: a place that is held until then would not be free for the third.
    let (first, second) = (within(first).await.unwrap(), within(second).await.unwrap());
    let third = within(other.get("/other")).await.unwrap().0;
    (([status(first), status(second), third]), asked)
}

#[tokio::test]
async fn what_waits_for_an_authorizer_is_in_flight_and_what_is_beyond_the_limits_is_not_asked_about() {
    let one_place = |config: &mut Config| config.max_requests = Some(1);
    assert_eq!(beside_one_that_waits(None, one_place).await, ([401, 503, 200], 1));
    let only_one = AdaptiveConcurrency { max_limit: 1, ..adaptive() };
    let own = only_one.clone();
    let adaptive = |config: &mut Config| config.adaptive_concurrency = Some(own);
    assert_eq!(beside_one_that_waits(None, adaptive).await, ([401, 503, 200], 1));
    let adaptive = HttpFilterKind::AdaptiveConcurrency(Some(only_one));
    assert_eq!(beside_one_that_waits(Some(adaptive), |_| ()).await, ([401, 503, 200], 1));
    // A token is gone, whatever the authorizer says.
    let rate = HttpFilterKind::RateLimit(bucket(1));
    assert_eq!(beside_one_that_waits(Some(rate), |_| ()).await, ([401, 429, 429], 1));
    // The control: without a limit the authorizer is asked about both.
    assert_eq!(beside_one_that_waits(None, |_| ()).await, ([401, 401, 200], 2));
}

#[tokio::test]
async fn a_caller_that_gives_up_waiting_for_an_authorizer_frees_its_place() {
    let (world, slow) = slow_world(None, |config| config.max_requests = Some(1)).await;
    let mut client = world.plain(Http::Two).await;
    let waiting = spawn(client.send(get("/checked")));
    eventually(|| (slow.asked.load(Ordering::Relaxed) == 1).then_some(())).await;
    waiting.abort();
    drop(client);
    let mut other = world.plain(Http::Two).await;
    within(async { while other.get("/other").await.unwrap().0 != 200 {} }).await;
}
