//! Ways round a policy that stands: another server's layer around it, another method for what it guards, another spelling of
//! a host, a second value of a header. Each with its trick refused, and without it served.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{Empty, Full};
use hyper::ext::Protocol;
use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, CheckedBody, CookieMatcher,
    Guards, HeaderKey, HeaderMatch, HeaderMatcher, HttpFilter, HttpFilterKind, InboundHost, InboundListener,
    InboundRoute, InboundRoutes, InboundState, InboundTls, JwtAuthentication, JwtKeys, JwtProvider, PathMatch,
    Permission, Principal, QueryMatch, QueryMatcher, RouteMatch, StringMatch, StringMatcher,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::{Body, Config, InboundLayer, Server};
use parking_lot::Mutex;
use tower::{Layer, ServiceExt};

use crate::audit;
use crate::filters::bucket;
use crate::kit::{World, get, listener, text};
use crate::raw::{Verdict, request, verdict};
use crate::transport::raw;

fn one(action: AuthorizationAction, permission: Permission) -> AuthorizationPolicy {
    let rule = AuthorizationRule { name: "r".into(), permissions: vec![permission], principals: vec![Principal::Any] };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("one", action) }
}

fn header(name: &str, pattern: StringMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: HeaderKey::parse(name).unwrap(),
        value: HeaderMatch::Text(StringMatcher { pattern, ignore_case: false }),
        invert: false,
        treat_missing_as_empty: false,
    }
}

fn exact(name: &str, value: &str) -> Permission {
    Permission::Header(header(name, StringMatch::Exact(value.to_owned())))
}

fn with(change: impl FnOnce(&mut InboundListener)) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    change(&mut listener);
    InboundState::Ready(Arc::new(listener))
}

fn guarded(policy: AuthorizationPolicy) -> InboundState {
    with(|listener| listener.authorization = vec![policy])
}

fn admin() -> Permission {
    Permission::Path(PathMatch::Prefix("/admin".into()))
}

/// Nobody gets to `/admin`, and to the rest one may go once.
fn layer() -> (InboundLayer, Arc<Metrics>) {
    let state = with(|listener| {
        listener.authorization = vec![one(AuthorizationAction::Deny, admin())];
        listener.filters = vec![HttpFilter { name: "once".into(), kind: HttpFilterKind::RateLimit(bucket(1)) }];
    });
    let metrics = Arc::<Metrics>::default();
    let server = Server::builder().inbound(Watched::fixed(state)).metrics(metrics.clone()).build();
    (server.inbound_layer(), metrics)
}

#[tokio::test]
async fn the_layer_of_another_server_around_it_switches_no_policy_off() {
    let hello = tower::service_fn(|_: Request<Empty<Bytes>>| async { text("hello") });
    let counted = |metrics: &Metrics| {
        let text = mesh_server::debug::prometheus::encode("0", metrics, None);
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum::<u32>()
    };
    let other = || Server::builder().build().inbound_layer();
    for around in 0..4 {
        let (guarding, metrics) = layer();
        let inner = guarding.layer(hello);
        let ask = async |path: &str| match around {
            // The control, and what the application or a library may have put around it.
            0 => inner.clone().oneshot(get(path)).await.unwrap().status().as_u16(),
            1 => other().layer(inner.clone()).oneshot(get(path)).await.unwrap().status().as_u16(),
            2 => other().layer(other().layer(inner.clone())).oneshot(get(path)).await.unwrap().status().as_u16(),
            // Of its own two the outer one is the one that judges, whatever is between them.
            _ => {
                let between = other().layer(inner.clone());
                guarding.layer(between).oneshot(get(path)).await.unwrap().status().as_u16()
            }
        };
        assert_eq!([ask("/admin").await, ask("/a").await, ask("/a").await], [403, 200, 429], "{around}");
        assert_eq!(counted(&metrics), 3, "{around}: each request is treated once");
    }
}

/// Extended CONNECT: a WebSocket over HTTP/2 (RFC 8441).
fn websocket(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "reviews"),
        (":path", path),
        ("sec-websocket-version", "13"),
    ];
    request(1, &headers)
}

/// A server whose application is done if it gets what was sent.
async fn as_sent(state: InboundState, authorizer: Option<Arc<Keeps>>) -> World {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let protocol = request.extensions().get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
        let is_sent = request.method() == Method::CONNECT
            && protocol.as_deref() == Some("websocket")
            && !request.headers().contains_key(header::UPGRADE)
            && !request.headers().contains_key(header::CONNECTION);
        let mut response = Response::new(Full::<Bytes>::default());
        if !is_sent && request.method() != Method::GET {
            *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
        }
        Ok::<_, BoxError>(response)
    });
    let settings = |server: mesh_server::ServerBuilder| match authorizer {
        Some(authorizer) => server.authorizers(Arc::new(One(authorizer))),
        None => server,
    };
    World::start_with(state, Config::default(), settings, service).await
}

/// An authorizer that lets everything pass and keeps what it was asked.
#[derive(Debug, Default)]
struct Keeps(Mutex<Vec<CheckRequest>>);

impl ExternalAuthorizer for Keeps {
    fn body(&self) -> Option<CheckedBody> {
        Some(CheckedBody { max_bytes: 100.try_into().unwrap(), allow_partial: false, as_bytes: false })
    }

    fn check(&self, request: CheckRequest) -> Checking<'_> {
        self.0.lock().push(request);
        Box::pin(async { Ok(CheckResponse::allowed()) })
    }
}

struct One(Arc<Keeps>);

impl ExternalAuthorizers for One {
    fn authorizer(&self, _: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        Some(self.0.clone() as _)
    }
}

/// What has a route is served, and what has none is not.
fn routed(matcher: RouteMatch) -> InboundState {
    let route = InboundRoute { name: "r".into(), matcher, serves: Some(Arc::new(Guards::default())) };
    let domains = vec![mesh_core::policy::Domain::new("*").unwrap()];
    let host = InboundHost { name: "all".into(), domains, routes: vec![route] };
    with(|listener| listener.routes = InboundRoutes::Listed(vec![host].into()))
}

#[tokio::test]
async fn a_websocket_over_http2_is_the_get_that_it_is_over_http1() {
    let get_admin = || Permission::And(vec![exact(":method", "GET"), admin()]);
    let upgrade = || exact("upgrade", "websocket");
    let connect = || exact(":method", "CONNECT");
    let token = || {
        let provider = JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys":[]}"#.into()));
        let mut jwt = JwtAuthentication::required("jwt", [("issuer".to_owned(), provider)]);
        for rule in &mut jwt.rules {
            rule.matcher.methods = vec!["GET".to_owned()];
            rule.matcher.path = PathMatch::Prefix("/admin".into());
        }
        with(|listener| listener.jwt = vec![jwt])
    };
    let by_method = |method: &str| RouteMatch { methods: vec![method.to_owned()], ..RouteMatch::any() };
    let by_header = RouteMatch {
        headers: vec![header("upgrade", StringMatch::Exact("websocket".into()))],
        path: PathMatch::Prefix("/open".into()),
        ..RouteMatch::any()
    };
    for (what, state, refusal, admin, open) in [
        ("no policy", with(|_| {}), 0, true, true),
        ("DENY of GET", guarded(one(AuthorizationAction::Deny, get_admin())), 403, false, true),
        ("ALLOW of GET", guarded(one(AuthorizationAction::Allow, get_admin())), 403, true, false),
        ("DENY of the upgrade", guarded(one(AuthorizationAction::Deny, upgrade())), 403, false, false),
        ("ALLOW of the upgrade", guarded(one(AuthorizationAction::Allow, upgrade())), 403, true, true),
        ("DENY of CONNECT", guarded(one(AuthorizationAction::Deny, connect())), 403, true, true),
        ("a token for GET", token(), 401, false, true),
        ("a route of GET", routed(by_method("GET")), 404, true, true),
        ("a route of CONNECT", routed(by_method("CONNECT")), 404, false, false),
        ("a route of the upgrade", routed(by_header), 404, false, true),
    ] {
        let world = as_sent(state, None).await;
        let judged = |served| if served { Verdict::Served } else { Verdict::Refused(refusal) };
        assert_eq!(verdict(&world, &websocket("/admin")).await, judged(admin), "{what}");
        assert_eq!(verdict(&world, &websocket("/open")).await, judged(open), "{what}");
    }
    // An authorizer is told of it in the same way, and of no body.
    let keeps = Arc::<Keeps>::default();
    let custom = AuthorizationAction::Custom(AuthorizerProvider::named("opa"));
    let world = as_sent(guarded(one(custom, get_admin())), Some(keeps.clone())).await;
    assert_eq!(verdict(&world, &websocket("/admin")).await, Verdict::Served);
    assert_eq!(verdict(&world, &websocket("/open")).await, Verdict::Served);
    let asked = keeps.0.lock();
    let [asked] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((asked.method.as_str(), &*asked.path_and_query), ("GET", "/admin"));
    assert_eq!(
        (&asked.headers["upgrade"], &asked.headers["connection"]),
        (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
    );
    assert!(asked.body.is_none());
}

/// A server that answers with the authority of which its application is told.
async fn authority(state: InboundState) -> World {
    let service = tower::service_fn(|request: Request<Body>| async move {
        let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap()).to_owned();
        text(format!("{} {host}", request.uri().authority().map_or("-", |authority| authority.as_str())))
    });
    World::start(state, Config::default(), service).await
}

/// Status and text of the answer to a GET of that target with these lines.
async fn ask(world: &World, target: &str, lines: &str) -> (u16, String) {
    let answer =
        raw(world.address, format!("GET {target} HTTP/1.1\r\n{lines}connection: close\r\n\r\n").as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    assert_recorded(world, status, &format!("{target} {lines}"));
    (status, body.to_owned())
}

/// Each refusal has left one record that says what refused; no admission has any.
fn assert_recorded(world: &World, status: u16, what: &dyn std::fmt::Debug) {
    let state = world.policy.load_full();
    let InboundState::Ready(listener) = &*state else { panic!("{what:?}") };
    if listener.jwt.is_empty() && listener.routes.are_all() {
        return audit::assert_decided(&state, status, None, what);
    }
    let records = audit::taken();
    let said: Vec<_> =
        records.iter().map(|record| ["filter", "policy", "rule"].map(|name| record.field(name))).collect();
    match status {
        200 => assert_eq!(said, [[None; 3]; 0], "{what:?}"),
        401 => assert_eq!(said, [[Some("jwt"), None, None]], "{what:?}"),
        403 => assert_eq!(said, [[None, Some("one"), Some("r")]], "{what:?}"),
        // Two routes are possible, and no policy is asked.
        _ => assert_eq!(said, [[None; 3]], "{what:?}"),
    }
}

#[tokio::test]
async fn s18_s19_a_rule_that_names_a_host_in_its_plain_form_means_every_form_of_it() {
    let forms = ["secret.test", "SECRET.test", "secret.test.", "secret.test:80", "Secret.Test.:0080", "secret.test:"];
    let patterns = [
        StringMatch::Exact("secret.test".into()),
        StringMatch::Exact("Secret.Test.".into()),
        StringMatch::Suffix("cret.test.".into()),
        StringMatch::Regex(mesh_core::policy::Pattern::new(r"[Ss]ecret\.Test").unwrap()),
    ];
    for name in [":authority", "host"] {
        for pattern in &patterns {
            let rule = Permission::Header(header(name, pattern.clone()));
            let world = authority(guarded(one(AuthorizationAction::Deny, rule.clone()))).await;
            for host in forms {
                let (line, absolute) = (format!("host: {host}\r\n"), format!("http://{host}/"));
                assert_eq!(ask(&world, "/", &line).await.0, 403, "{name} {pattern:?} {host}");
                if !host.ends_with(':') {
                    assert_eq!(ask(&world, &absolute, "").await.0, 403, "{name} {pattern:?} {absolute}");
                }
            }
            for host in ["public.test", "secret.test.public.test:80", "secret-test"] {
                assert_eq!(ask(&world, "/", &format!("host: {host}\r\n")).await.0, 200, "{name} {pattern:?} {host}");
            }
            // All but that one.
            let others = Permission::Not(Box::new(rule));
            world.policy.publish(guarded(one(AuthorizationAction::Allow, others)));
            assert_eq!(ask(&world, "/", "host: SECRET.test.:80\r\n").await.0, 403, "{name} {pattern:?}");
            assert_eq!(ask(&world, "/", "host: public.test:80\r\n").await.0, 200, "{name} {pattern:?}");
        }
    }
    // One that names a port means that port, to allow as to deny; one without a port allows none.
    for (pattern, asked, allowed, denied) in [
        ("secret.test:80", "SECRET.test:80", 200, 403),
        ("secret.test:80", "secret.test:080", 200, 403),
        ("secret.test:80", "secret.test:81", 403, 200),
        ("secret.test", "secret.test", 200, 403),
        ("secret.test", "secret.test:80", 403, 403),
        ("[::1]:80", "[0:0::1]:80", 200, 403),
    ] {
        for (action, status) in [(AuthorizationAction::Allow, allowed), (AuthorizationAction::Deny, denied)] {
            let world = authority(guarded(one(action.clone(), exact(":authority", pattern)))).await;
            assert_eq!(ask(&world, "/", &format!("host: {asked}\r\n")).await.0, status, "{action:?} {pattern} {asked}");
        }
    }
}

#[tokio::test]
async fn s18_s19_the_application_is_told_the_authority_that_was_judged() {
    let world = authority(with(|_| {})).await;
    for (target, lines, told) in [
        ("/", "host: SECRET.test.:0080\r\n", "- secret.test:80"),
        ("/", "host: secret.test:443\r\n", "- secret.test:443"),
        ("http://Secret.test./", "", "secret.test -"),
        ("http://SECRET.test/", "host: SECRET.test\r\n", "secret.test secret.test"),
        ("http://SECRET.test/", "host: secret.test\r\n", "secret.test secret.test"),
        ("http://SECRET.test/", "host: other.test\r\n", "secret.test -"),
        ("/", "host: [FE80:0::1]:80\r\n", "- [fe80::1]:80"),
    ] {
        assert_eq!(ask(&world, target, lines).await, (200, told.to_owned()), "{target} {lines}");
    }
}

#[tokio::test]
async fn s28_s33_a_token_is_demanded_in_whatever_reading_of_a_header_demands_it() {
    let provider = JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys":[]}"#.into()));
    let mut jwt = JwtAuthentication::required("jwt", [("issuer".to_owned(), provider)]);
    // Of requests with the header; then nothing of the others.
    let mut others = jwt.rules[0].clone();
    others.requirement = None;
    jwt.rules[0].matcher.headers = vec![header("x-part", StringMatch::Exact("admin".into()))];
    jwt.rules.push(others);
    let world = authority(with(|listener| listener.jwt = vec![jwt])).await;
    for lines in [
        "x-part: admin\r\n",
        "x-part: admin\r\nx-part: user\r\n",
        "x-part: user\r\nx-part: admin\r\n",
        "x-part: user, admin\r\n",
        "x_part: admin\r\n",
        "x-part: user\r\nx_part: admin\r\n",
    ] {
        assert_eq!(ask(&world, "/", &format!("host: a\r\n{lines}")).await.0, 401, "{lines}");
    }
    for lines in ["", "x-part: user\r\n", "x-part: user\r\nx-part: guest\r\n", "x-part: administrator\r\n"] {
        assert_eq!(ask(&world, "/", &format!("host: a\r\n{lines}")).await.0, 200, "{lines}");
    }
}

#[tokio::test]
async fn s28_s33_a_token_is_demanded_in_whatever_reading_of_a_query_or_of_cookies_demands_it() {
    let by_query = RouteMatch {
        query: vec![QueryMatcher { name: "part".into(), value: QueryMatch::Text(StringMatcher::exact("admin")) }],
        ..RouteMatch::any()
    };
    let cookie = CookieMatcher { name: "part".into(), value: StringMatcher::exact("admin"), invert: false };
    let by_cookie = RouteMatch { cookies: vec![cookie.clone()], ..RouteMatch::any() };
    let but_cookie = RouteMatch { cookies: vec![CookieMatcher { invert: true, ..cookie }], ..RouteMatch::any() };
    let (query, cookies) = ("/?", "/ ");
    for (matcher, place, demanded, open) in [
        (
            by_query,
            query,
            &["part=admin", "part=user&part=admin", "part=admin&part=user", "part=user&p%61rt=%61dmin"][..],
            &["", "part=user", "part=user&part=guest", "part=administrator"][..],
        ),
        (by_cookie, cookies, &["part=admin", "part=user; part=admin", "part=admin; part=user"], &["", "part=user"]),
        (but_cookie, cookies, &["", "part=user", "part=user; part=admin", "part=admin; part=user"], &["part=admin"]),
    ] {
        let provider = JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys":[]}"#.into()));
        let mut jwt = JwtAuthentication::required("jwt", [("issuer".to_owned(), provider)]);
        let mut others = jwt.rules[0].clone();
        others.requirement = None;
        jwt.rules[0].matcher = matcher;
        jwt.rules.push(others);
        let world = authority(with(|listener| listener.jwt = vec![jwt])).await;
        for (said, status) in demanded.iter().map(|said| (said, 401)).chain(open.iter().map(|said| (said, 200))) {
            let (target, lines) = match place {
                "/?" => (format!("/?{said}"), String::new()),
                _ => ("/".to_owned(), format!("cookie: {said}\r\n")),
            };
            assert_eq!(ask(&world, &target, &format!("host: a\r\n{lines}")).await.0, status, "{place}{said}");
        }
    }
}

/// Routes are chosen as Envoy chooses them, by all values of a header in one and by the first of a query parameter, and the
/// application may read another one.
#[tokio::test]
async fn s28_a_request_that_might_have_another_route_with_other_guards_is_refused() {
    let denied = Guards { authorization: vec![one(AuthorizationAction::Deny, Permission::Any)], ..Guards::default() };
    let by_header =
        RouteMatch { headers: vec![header("x-part", StringMatch::Exact("admin".into()))], ..RouteMatch::any() };
    let by_query = RouteMatch {
        query: vec![QueryMatcher { name: "part".into(), value: QueryMatch::Text(StringMatcher::exact("admin")) }],
        ..RouteMatch::any()
    };
    let cookie = CookieMatcher { name: "part".into(), value: StringMatcher::exact("admin"), invert: false };
    let by_cookie = RouteMatch { cookies: vec![cookie], ..RouteMatch::any() };
    let alone = |guards: &Guards| if *guards == denied { 403 } else { 200 };
    for (first, others) in
        [(denied.clone(), Guards::default()), (Guards::default(), denied.clone()), (denied.clone(), denied.clone())]
    {
        let route = |matcher: &RouteMatch, guards: &Guards| InboundRoute {
            name: String::new(),
            matcher: matcher.clone(),
            serves: Some(Arc::new(guards.clone())),
        };
        let several = if first == others { 403 } else { 400 };
        for (matcher, requests) in [
            (
                &by_header,
                &[
                    ("/", "x-part: admin\r\n", alone(&first)),
                    ("/", "x-part: user\r\n", alone(&others)),
                    ("/", "", alone(&others)),
                    // One value, which is no list to who chooses the route.
                    ("/", "x-part: user,admin\r\n", alone(&others)),
                    ("/", "x-part: user\r\nx-part: guest\r\n", alone(&others)),
                    ("/", "x-part: admin\r\nx-part: user\r\n", several),
                    ("/", "x-part: user\r\nx-part: admin\r\n", several),
                    ("/", "x-part: admin\r\nx-part: admin\r\n", several),
                    ("/", "x-part: user\r\nx_part: admin\r\n", several),
                    // To who reads headers as CGI does, it is the header of the first.
                    ("/", "x_part: admin\r\n", several),
                    ("/", "x_part: admin\r\nx_part: admin\r\n", several),
                    ("/", "x_part: user\r\n", alone(&others)),
                    ("/", "x_other: admin\r\nx_par_t: admin\r\n", alone(&others)),
                ][..],
            ),
            (
                &by_query,
                &[
                    ("/?part=admin", "", alone(&first)),
                    ("/?part=user", "", alone(&others)),
                    ("/?part=admin&part=admin", "", alone(&first)),
                    ("/?part=user&part=guest", "", alone(&others)),
                    ("/?part=admin&part=user", "", several),
                    ("/?part=user&part=admin", "", several),
                ],
            ),
            (
                &by_cookie,
                &[
                    ("/", "cookie: part=admin\r\n", alone(&first)),
                    ("/", "cookie: a=b; part=user\r\n", alone(&others)),
                    ("/", "cookie: part=user; part=admin\r\n", several),
                    ("/", "cookie: part=admin\r\ncookie: part=user\r\n", several),
                ],
            ),
        ] {
            let routes = vec![route(matcher, &first), route(&RouteMatch::any(), &others)];
            let domains = vec![mesh_core::policy::Domain::new("*").unwrap()];
            let host = InboundHost { name: "all".into(), domains, routes };
            let world = authority(with(|listener| listener.routes = InboundRoutes::Listed(vec![host].into()))).await;
            for (target, lines, status) in requests {
                let answer = ask(&world, target, &format!("host: a\r\n{lines}")).await;
                assert_eq!(answer.0, *status, "{target} {lines} {first:?}");
            }
        }
    }
}
