//! A listener with routes serves what they say, each with its own guards, and nothing else (gRFC A36, A39).

use std::sync::Arc;

use http::Request;
use http_body_util::{BodyExt, Empty};

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Domain, Guards, HttpFilter, HttpFilterKind,
    InboundHost, InboundListener, InboundRoute, InboundRoutes, InboundState, InboundTls, JwtAuthentication, JwtKeys,
    JwtProvider, PathMatch, Permission, Principal, RouteMatch,
};
use mesh_server::Config;

use crate::filters::bucket;
use crate::kit::{Client, Http, World, eventually, get, listener, text};

fn route(path: &str, serves: Option<Guards>) -> InboundRoute {
    let matcher = RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::any() };
    InboundRoute { name: path.into(), matcher, serves: serves.map(Arc::new) }
}

fn host(domain: &str, routes: Vec<InboundRoute>) -> InboundHost {
    InboundHost { name: domain.into(), domains: vec![Domain::new(domain).unwrap()], routes }
}

fn deny_all() -> AuthorizationPolicy {
    let any =
        AuthorizationRule { name: "all".into(), permissions: vec![Permission::Any], principals: vec![Principal::Any] };
    AuthorizationPolicy { rules: vec![any], ..AuthorizationPolicy::new("deny", AuthorizationAction::Deny) }
}

fn limited(name: &str, tokens: u32) -> Guards {
    let filter = HttpFilter { name: name.into(), kind: HttpFilterKind::RateLimit(bucket(tokens)) };
    Guards { filters: vec![filter], ..Guards::default() }
}

fn listed(hosts: Vec<InboundHost>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.routes = InboundRoutes::Listed(hosts.into());
    InboundState::Ready(Arc::new(listener))
}

async fn world(state: InboundState) -> World {
    World::start(state, Config::default(), tower::service_fn(|_| async { text("served") })).await
}

/// HTTP status, and gRPC's of the same request as a call.
async fn asked(client: &mut Client, authority: &str, path: &str) -> (u16, String) {
    let uri = format!("http://{authority}{path}");
    let plain = client.send(Request::get(&uri).body(Empty::new()).unwrap()).await.unwrap();
    let status = plain.status().as_u16();
    drop(plain.into_body().collect().await);
    let call = Request::post(&uri).header("content-type", "application/grpc").body(Empty::new()).unwrap();
    let answer = client.send(call).await.unwrap();
    let code = answer.headers().get("grpc-status").map_or("-", |code| code.to_str().unwrap()).to_owned();
    drop(answer.into_body().collect().await);
    (status, code)
}

#[tokio::test]
async fn r1_r6_r7_what_no_route_serves_is_refused_unavailable_a36() {
    let hosts = vec![
        host("a.test", vec![route("/admin", None), route("/", Some(Guards::default()))]),
        host("*.b.test", vec![route("/only", Some(Guards::default()))]),
    ];
    let world = world(listed(hosts)).await;
    let mut client = world.plain(Http::Two).await;
    let (served, refused) = ((200, "-".to_owned()), (404, "14".to_owned()));
    for (authority, path, want) in [
        ("a.test", "/x", &served),
        ("A.test:9080", "/x", &served),
        ("x.b.test", "/only/that", &served),
        // A route with another action, no route, and no virtual host.
        ("a.test", "/admin/x", &refused),
        ("x.b.test", "/x", &refused),
        ("c.test", "/x", &refused),
    ] {
        assert_eq!(asked(&mut client, authority, path).await, *want, "{authority}{path}");
    }
    // Its path is settled before: there is no way round.
    assert_eq!(client.send(get_of("http://a.test/x/../admin/x")).await.unwrap().status(), 404);
    // The control: the same listener without routes.
    world.policy.publish(InboundState::Ready(Arc::new(listener(InboundTls::Permissive))));
    let mut client = world.plain(Http::Two).await;
    assert_eq!(asked(&mut client, "c.test", "/x").await, served);
    // And one whose routes are still to come.
    let mut named = listener(InboundTls::Permissive);
    named.routes = InboundRoutes::Named("r".into());
    world.policy.publish(InboundState::Ready(Arc::new(named)));
    let mut client = world.plain(Http::Two).await;
    assert_eq!(asked(&mut client, "a.test", "/x").await, refused);
}

fn get_of(uri: &str) -> Request<Empty<bytes::Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn l3_each_route_has_its_own_guards_a39() {
    let denied = || Guards { authorization: vec![deny_all()], ..Guards::default() };
    let routes = vec![
        route("/shut", Some(denied())),
        route("/one", Some(limited("f@one", 1))),
        route("/two", Some(limited("f", 2))),
        route("/also-two", Some(limited("f", 2))),
        route("/", Some(Guards::default())),
    ];
    let world = world(listed(vec![host("*", routes)])).await;
    let mut client = world.plain(Http::Two).await;
    let mut statuses = Vec::new();
    for path in ["/shut", "/", "/one", "/one", "/two", "/also-two", "/two", "/also-two", "/", "/shut/x"] {
        statuses.push(client.send(get(path)).await.unwrap().status().as_u16());
    }
    // The two that share a filter share its bucket.
    assert_eq!(statuses, [403, 200, 200, 429, 200, 200, 429, 429, 200, 403]);
}

#[tokio::test]
async fn a_connection_whose_routes_stay_and_whose_original_client_is_another_takes_no_more_requests() {
    let trusting = |trusted_proxies| {
        let InboundState::Ready(listener) = listed(vec![host("*", vec![route("/", Some(Guards::default()))])]) else {
            panic!("it is ready")
        };
        InboundState::Ready(Arc::new(InboundListener { trusted_proxies, ..InboundListener::clone(&listener) }))
    };
    let world = world(trusting(1)).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    // The control: as many are no change.
    world.policy.publish(trusting(1));
    assert_eq!(client.send(get("/")).await.unwrap().status(), 200);
    world.policy.publish(trusting(2));
    eventually(|| client.ended.is_finished().then_some(())).await;
}

#[tokio::test]
async fn a_connection_whose_routes_change_takes_no_more_requests() {
    let open = || vec![host("*", vec![route("/a", Some(Guards::default()))])];
    let world = world(listed(open())).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(client.send(get("/a")).await.unwrap().status(), 200);
    // The control: equal ones are no change.
    world.policy.publish(listed(open()));
    assert_eq!(client.send(get("/a")).await.unwrap().status(), 200);
    world.policy.publish(listed(vec![host("*", vec![route("/b", Some(Guards::default()))])]));
    eventually(|| client.ended.is_finished().then_some(())).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(client.send(get("/a")).await.unwrap().status(), 404);
    assert_eq!(client.send(get("/b")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_connection_goes_on_where_the_keys_or_limits_of_its_routes_change() {
    let state = |jwks: &str, tokens: u32, authorization: Vec<AuthorizationPolicy>| {
        let keys = JwtKeys::Inline(jwks.to_owned());
        let jwt = JwtAuthentication::optional("jwt", [("p".to_owned(), JwtProvider::new("issuer", keys))]);
        let guards = Guards { jwt: vec![jwt], authorization, ..limited("f", tokens) };
        listed(vec![host("*", vec![route("/a", Some(guards)), route("/", Some(Guards::default()))])])
    };
    let none = r#"{"keys":[]}"#;
    for version in [Http::One, Http::Two] {
        let world = world(state(none, 1000, Vec::new())).await;
        let mut client = world.plain(version).await;
        for (jwks, tokens) in [(none, 1000), (r#"{ "keys": [] }"#, 1000), (none, 2000)] {
            world.policy.publish(state(jwks, tokens, Vec::new()));
            for _ in 0..50 {
                assert_eq!(client.get("/a").await.unwrap().0, 200, "{jwks} {tokens}");
            }
        }
        // The control: what decides who may pass.
        world.policy.publish(state(none, 1000, vec![deny_all()]));
        eventually(|| client.ended.is_finished().then_some(())).await;
    }
}
