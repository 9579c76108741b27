//! Authorization and what stands before it: the classes of attack of which every one has been somebody's CVE, each
//! with the same request without its trick, and with the policy off.
//!
//! Names: `sNN` counts the classes; D denies `/admin` and what is below, A allows `/public/` only, H denies the role
//! `admin`, O denies the host `secret.test`, P allows one workload.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request};
use http_body_util::Empty;

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, HeaderKey, HeaderMatch,
    HeaderMatcher, InboundState, InboundTls, PathMatch, Pattern, Permission, Principal, StringMatch, StringMatcher,
};
use mesh_core::target::EncodedSlash;
use mesh_server::{Body, Config};

use crate::kit::{Client, Http, World, eventually, get, listener, policy, read, text};
use crate::raw::{self as http2, Verdict};
use crate::transport::raw;

fn one(action: AuthorizationAction, permissions: Vec<Permission>, principals: Vec<Principal>) -> AuthorizationPolicy {
    let rules = vec![AuthorizationRule { name: "ns[default]-policy[one]-rule[0]".to_owned(), permissions, principals }];
    AuthorizationPolicy { rules, ..AuthorizationPolicy::new("one", action) }
}

fn deny(permissions: Vec<Permission>) -> AuthorizationPolicy {
    one(AuthorizationAction::Deny, permissions, vec![Principal::Any])
}

fn header(name: &str, pattern: StringMatch, ignore_case: bool) -> Permission {
    Permission::Header(HeaderMatcher {
        name: HeaderKey::parse(name).unwrap(),
        value: HeaderMatch::Text(StringMatcher { pattern, ignore_case }),
        invert: false,
        treat_missing_as_empty: false,
    })
}

fn d() -> AuthorizationPolicy {
    let path = |path| Permission::Path(path);
    deny(vec![path(PathMatch::Exact("/admin".into())), path(PathMatch::Prefix("/admin/".into()))])
}

fn a() -> AuthorizationPolicy {
    let public = Permission::Path(PathMatch::Prefix("/public/".into()));
    one(AuthorizationAction::Allow, vec![public], vec![Principal::Any])
}

fn h() -> AuthorizationPolicy {
    deny(vec![header("X-Role", StringMatch::Exact("admin".into()), false)])
}

/// As the control plane writes `hosts: [secret.test]`.
fn o() -> AuthorizationPolicy {
    let pattern = Pattern::new(r"(?i)secret\.test\.?(:[0-9]*)?").unwrap();
    deny(vec![header(":authority", StringMatch::Regex(pattern), false)])
}

fn p() -> AuthorizationPolicy {
    let web = StringMatcher::exact("spiffe://cluster.local/ns/default/sa/productpage");
    one(AuthorizationAction::Allow, vec![Permission::Any], vec![Principal::Authenticated(Some(web))])
}

fn guarded(policies: Vec<AuthorizationPolicy>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = policies;
    InboundState::Ready(Arc::new(listener))
}

/// A server that answers with what its application was asked for: target, and the `Host` header.
async fn world(policies: Vec<AuthorizationPolicy>) -> World {
    World::start(guarded(policies), Config::default(), tower::service_fn(asked)).await
}

async fn asked(
    request: Request<Body>,
) -> Result<http::Response<http_body_util::Full<bytes::Bytes>>, mesh_core::error::BoxError> {
    let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap());
    text(format!("{} {host}", request.uri()))
}

/// Status and text of the answer to a request for `target` with further header lines.
async fn ask(world: &World, target: &[u8], lines: &str) -> (u16, String) {
    ask_with(world, target, &format!("host: public.test\r\n{lines}")).await
}

/// The same with all header lines.
async fn ask_with(world: &World, target: &[u8], lines: &str) -> (u16, String) {
    let request = [b"GET ", target, b" HTTP/1.1\r\nconnection: close\r\n", lines.as_bytes(), b"\r\n"].concat();
    let answer = raw(world.address, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// Every path gets this status and never reaches the application as another one.
async fn paths_get(world: &World, status: u16, paths: &[&str]) {
    for path in paths {
        let (got, body) = ask(world, path.as_bytes(), "").await;
        assert_eq!(got, status, "{path}: {body}");
    }
}

/// The control: with the policy off all of them reach the application.
async fn pass_without_policy(world: &World, paths: &[&str]) {
    world.policy.publish(guarded(Vec::new()));
    paths_get(world, 200, paths).await;
}

#[tokio::test]
async fn what_is_allowed_passes_and_what_is_denied_gets_envoys_answer() {
    let world = world(vec![d()]).await;
    assert_eq!(ask(&world, b"/public/a?x=1", "").await, (200, "/public/a?x=1 public.test".to_owned()));
    assert_eq!(ask(&world, b"/admin", "").await, (403, "RBAC: access denied\n".to_owned()));
    let grpc = raw(
        world.address,
        b"POST /admin HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(grpc.starts_with("HTTP/1.1 200"), "{grpc}");
    assert!(grpc.contains("grpc-status: 7\r\n") && grpc.contains("grpc-message: RBAC: access denied"), "{grpc}");
    assert!(world.metrics_text().contains("response_code=\"403\""), "{}", world.metrics_text());
    pass_without_policy(&world, &["/admin"]).await;
}

#[tokio::test]
async fn an_identity_is_let_in_and_no_other_and_nobody_without_one() {
    let world = world(vec![p()]).await;
    for version in [Http::One, Http::Two] {
        assert_eq!(world.mutual(version).await.get("/").await.unwrap().0, 200);
        let other = world.ca.identity("default", "not-productpage");
        assert_eq!(world.mutual_as(&other, version).await.unwrap().get("/").await.unwrap().0, 403);
        assert_eq!(world.plain(version).await.get("/").await.unwrap().0, 403);
    }
    world.policy.publish(policy(InboundTls::Permissive));
    assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn s01_s02_s03_s05_dot_segments_slashes_and_parameters_lead_where_they_lead() {
    let tricks = [
        "/public/../admin",
        "/public/./../admin/x",
        "/./admin",
        "/public/%2e%2e/admin",
        "/public/%2E./admin",
        "/public/.%2e/admin",
        "//admin",
        "/public//..//admin",
        "///admin//x",
        "/public/..;/admin",
        "/public/..;a=b/admin",
    ];
    let world = world(vec![d()]).await;
    paths_get(&world, 403, &tricks).await;
    paths_get(&world, 200, &["/public/../public/a", "/public//a", "/administration"]).await;
    // The application is asked for what was judged.
    assert_eq!(ask(&world, b"/x/..//public/%61?q=/../", "").await.1, "/public/a?q=/../ public.test");
    world.policy.publish(guarded(vec![a()]));
    paths_get(&world, 403, &tricks).await;
    pass_without_policy(&world, &tricks).await;
}

#[tokio::test]
async fn s04_encoded_slashes_are_refused_and_raw_backslashes_are_slashes() {
    let world = world(vec![d()]).await;
    paths_get(&world, 400, &["/admin%2fusers", "/%5cadmin", "/public%2f..%2fadmin", "/public%2F..%2Fadmin"]).await;
    paths_get(&world, 403, &["/public/..\\admin"]).await;
    assert_eq!(ask(&world, b"/public\\admin", "").await, (200, "/public/admin public.test".to_owned()));
    // The opt-out: data, which divides nothing.
    let mut keep = Config::default();
    keep.encoded_slash = EncodedSlash::Keep;
    let keeping = World::start(guarded(vec![d()]), keep, tower::service_fn(asked)).await;
    assert_eq!(ask(&keeping, b"/files/a%2fb", "").await, (200, "/files/a%2Fb public.test".to_owned()));
}

#[tokio::test]
async fn s04_encoded_slashes_are_data_on_the_routes_that_take_them_and_refused_on_the_others() {
    let mut config = Config::default();
    config.encoded_slash_at = vec![PathMatch::Prefix("/files/".into()), PathMatch::Exact("/raw%2Fone".into())];
    let world = World::start(guarded(vec![d()]), config, tower::service_fn(asked)).await;
    for (given, seen) in [
        ("/files/a%2fb", "/files/a%2Fb"),
        ("/files/a%5cb?x=%2f", "/files/a%5Cb?x=%2f"),
        ("/x/..//files/%61%2F", "/files/a%2F"),
        ("/raw%2fone", "/raw%2Fone"),
        // Data divides nothing, so it leads nowhere else either.
        ("/files/..%2f..%2fadmin", "/files/..%2F..%2Fadmin"),
    ] {
        assert_eq!(ask(&world, given.as_bytes(), "").await, (200, format!("{seen} public.test")), "{given}");
    }
    let elsewhere =
        ["/admin%2fusers", "/files%2fa", "/%2ffiles/a", "/files/../x%2fy", "/files/a/../../x%5c", "/raw%2fon"];
    paths_get(&world, 400, &elsewhere).await;
    // Rules see what the application sees.
    paths_get(&world, 403, &["/files/../admin", "/files/a%2fb/../../admin"]).await;
    // The control: nowhere without the option, and everywhere with the one for all.
    let mut keep = Config::default();
    keep.encoded_slash = EncodedSlash::Keep;
    keep.encoded_slash_at = vec![PathMatch::Prefix("/files/".into())];
    for (config, status) in [(Config::default(), 400), (keep, 200)] {
        let world = World::start(guarded(vec![d()]), config, tower::service_fn(asked)).await;
        paths_get(&world, status, &["/files/a%2fb", "/x%2fy"]).await;
    }
}

#[tokio::test]
async fn s06_s07_s09_s10_s11_queries_cases_and_escapes_are_what_they_look_like() {
    let world = world(vec![d()]).await;
    paths_get(&world, 403, &["/admin?x", "/admin/", "/admin/.", "/%61dmin"]).await;
    // A fragment is no part of a target: cut off, or the request is none.
    for (target, denied) in [("/admin#x", true), ("/public/#/admin", false)] {
        let (status, body) = ask(&world, target.as_bytes(), "").await;
        assert!(status == 400 || (status == 403) == denied && !body.contains('#'), "{target}: {status} {body}");
    }
    // Others than `/admin`, and the application is asked for just that.
    for other in ["/admin%23x", "/ADMIN", "/%2561dmin", "/%252e%252e/admin", "/admin%20", "/%C0%AE%C0%AE/admin"] {
        assert_eq!(ask(&world, other.as_bytes(), "").await, (200, format!("{other} public.test")));
    }
    // What an application would take for one and the same is one and the same to a rule.
    world.policy.publish(guarded(vec![deny(vec![Permission::Path(PathMatch::Exact("/admin:delete".into()))])]));
    paths_get(&world, 403, &["/admin:delete", "/admin%3Adelete", "/admin%3adelete"]).await;
    assert_eq!(ask(&world, b"/admin%3ashow", "").await, (200, "/admin:show public.test".to_owned()));
    world.policy.publish(guarded(vec![d()]));
    assert_eq!(ask(&world, b"/\xc0\xae\xc0\xae/admin", "").await.0, 400);
    assert_eq!(ask(&world, "/админ".as_bytes(), "").await.0, 400);
    pass_without_policy(&world, &["/admin?x", "/admin/.", "/%61dmin"]).await;
}

#[tokio::test]
async fn s08_control_characters_are_refused() {
    let world = world(vec![d()]).await;
    paths_get(&world, 400, &["/admin%00", "/admin%0d%0aX: y", "/%7f", "/a%", "/a%zz"]).await;
    world.policy.publish(guarded(Vec::new()));
    paths_get(&world, 400, &["/admin%00", "/a%zz"]).await;
    paths_get(&world, 200, &["/admin", "/a%25"]).await;
}

#[tokio::test]
async fn s12_a_grpc_method_has_one_spelling() {
    let method = Permission::Path(PathMatch::Exact("/pkg.Svc/Method".into()));
    let world = world(vec![deny(vec![method])]).await;
    for path in ["//pkg.Svc/Method", "/pkg.Svc//Method", "/pkg%2eSvc/Method"] {
        for (version, mut client) in [(1, world.plain(Http::One).await), (2, world.plain(Http::Two).await)] {
            let mut request = get(path);
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let response = client.send(request).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "12", "{path} HTTP/{version}");
            // Without gRPC's exactness it is the same path, and denied.
            assert_eq!(client.get(path).await.unwrap().0, 403, "{path}");
        }
    }
    // The control: another method.
    let mut request = get("/pkg.Svc/Other");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    assert_eq!(world.plain(Http::Two).await.send(request).await.unwrap().headers().get("grpc-status"), None);
    assert_eq!(ask(&world, b"pkg.Svc/Method", "").await.0, 400);
}

#[tokio::test]
async fn s13_s54_targets_without_a_path_are_no_way_round_a_rule_about_paths() {
    let world = world(vec![d()]).await;
    let send = |line: &'static str| raw_line(&world, line);
    assert_eq!(send("OPTIONS * HTTP/1.1").await, 403);
    assert_eq!(send("GET * HTTP/1.1").await, 400);
    assert_eq!(send("CONNECT public.test:80 HTTP/1.1").await, 403);
    world.policy.publish(guarded(vec![a()]));
    assert_eq!(send("OPTIONS * HTTP/1.1").await, 403);
    assert_eq!(send("CONNECT public.test:80 HTTP/1.1").await, 403);
    world.policy.publish(guarded(Vec::new()));
    // The controls: with the policy off the application has the say.
    assert_eq!(send("OPTIONS * HTTP/1.1").await, 200);
    assert_eq!(send("CONNECT public.test:80 HTTP/1.1").await, 200);
}

async fn raw_line(world: &World, line: &str) -> u16 {
    let answer =
        raw(world.address, format!("{line}\r\nhost: public.test\r\nconnection: close\r\n\r\n").as_bytes()).await;
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn s17_s18_s19_a_host_is_one_in_any_case_with_a_port_and_a_dot() {
    let world = world(vec![o()]).await;
    for host in ["secret.test", "SECRET.test", "secret.test:80", "secret.test.", "secret.test.:8080", "Secret.Test.:"] {
        assert_eq!(ask_with(&world, b"/", &format!("host: {host}\r\n")).await.0, 403, "{host}");
        let absolute = format!("http://{}/", host.trim_end_matches(':'));
        assert_eq!(ask_with(&world, absolute.as_bytes(), "host: public.test\r\n").await.0, 403, "{absolute}");
    }
    for host in ["public.test", "xsecret.test", "secretxtest", "secret.test.public.test"] {
        assert_eq!(ask_with(&world, b"/", &format!("host: {host}\r\n")).await.0, 200, "{host}");
    }
    // A label that is empty is what no rule expects.
    for host in ["secret.test..", "secret..test", ".secret.test", ".."] {
        assert_eq!(ask_with(&world, b"/", &format!("host: {host}\r\n")).await.0, 400, "{host}");
    }
    // Nobody knows which host is meant.
    assert_eq!(ask_with(&world, b"/", "host:\r\n").await.0, 403);
    world.policy.publish(guarded(Vec::new()));
    assert_eq!(ask_with(&world, b"/", "host: SECRET.test\r\n").await.0, 200);
}

#[tokio::test]
async fn s20_there_is_one_authority() {
    let world = world(vec![o()]).await;
    for hosts in ["host: public.test\r\nhost: secret.test\r\n", "host: a\r\nhost: a\r\n"] {
        assert_eq!(ask_with(&world, b"/", hosts).await.0, 400, "{hosts}");
    }
    // The target's counts, and the application sees no other.
    let absolute = ask_with(&world, b"http://public.test/a", "host: secret.test\r\n").await;
    assert_eq!(absolute, (200, "http://public.test/a -".to_owned()));
    let mut h2 = get("/a");
    *h2.uri_mut() = "http://public.test/a".parse().unwrap();
    h2.headers_mut().insert("host", HeaderValue::from_static("secret.test"));
    let answer = world.plain(Http::Two).await.send(h2).await.unwrap();
    assert_eq!(read(answer).await.unwrap(), (200, "http://public.test/a -".to_owned()));
    let same = ask_with(&world, b"http://public.test/a", "host: public.test\r\n").await;
    assert_eq!(same, (200, "http://public.test/a public.test".to_owned()));
}

#[tokio::test]
async fn s21_s22_s23_an_authority_is_a_host_and_a_port() {
    let world = world(vec![o()]).await;
    for host in [
        "user@secret.test",
        "secret.test@public.test",
        "%73ecret.test",
        "[fe80::1%25eth0]:80",
        "secret.test:80:80",
        "secret\u{3002}test",
        "secret.test/x",
        "secret.test, public.test",
    ] {
        assert_eq!(ask_with(&world, b"/", &format!("host: {host}\r\n")).await.0, 400, "{host}");
    }
    assert_eq!(ask_with(&world, b"http://user@secret.test/", "host: public.test\r\n").await.0, 400);
    for host in ["[::1]:80", "127.0.0.1", "xn--e1afmkfd.test"] {
        assert_eq!(ask_with(&world, b"/", &format!("host: {host}\r\n")).await.0, 200, "{host}");
    }
}

#[tokio::test]
async fn s28_s29_s30_s34_a_second_value_hides_nothing() {
    let world = world(vec![h()]).await;
    for lines in [
        "x-role: admin\r\n",
        "X-ROLE: admin\r\n",
        "x-role: user\r\nx-role: admin\r\n",
        "x-role: admin\r\nx-role: user\r\n",
        "x-role: user, admin\r\n",
        "x-role: \tadmin \t\r\n",
    ] {
        assert_eq!(ask(&world, b"/", lines).await.0, 403, "{lines}");
    }
    for lines in ["x-role: user\r\n admin\r\n", "x-role: ad\0min\r\n", "x-role : admin\r\n", "x-role: a\rb\r\n"] {
        assert_eq!(ask(&world, b"/", lines).await.0, 400, "{lines:?}");
    }
    assert_eq!(ask(&world, b"/", "x-role: user\r\n").await.0, 200);
    assert_eq!(ask(&world, b"/", "").await.0, 200);
    world.policy.publish(guarded(Vec::new()));
    assert_eq!(ask(&world, b"/", "x-role: admin\r\n").await.0, 200);
}

#[tokio::test]
async fn s28_s29_cookies_in_pieces_are_one() {
    let rule = |action| {
        let both = header("cookie", StringMatch::Contains("session=1; role=admin".into()), false);
        one(action, vec![both], vec![Principal::Any])
    };
    let service = tower::service_fn(|request: Request<Body>| async move {
        let cookies: Vec<_> = request.headers().get_all("cookie").iter().map(|c| c.to_str().unwrap()).collect();
        text(cookies.join("|"))
    });
    let world = World::start(guarded(vec![rule(AuthorizationAction::Deny)]), Config::default(), service).await;
    for (action, whole, other) in [(AuthorizationAction::Deny, 403, 200), (AuthorizationAction::Allow, 200, 403)] {
        world.policy.publish(guarded(vec![rule(action)]));
        for version in [Http::One, Http::Two] {
            for (crumbs, status) in [
                (&["session=1; role=admin"][..], whole),
                (&["session=1", "role=admin"], whole),
                (&["a=1", "session=1", "role=admin", "b=2"], whole),
                (&["a=1; session=1", "role=admin; b=2"], whole),
                // The controls.
                (&["role=admin", "session=1"], other),
                (&["session=1", "role=user"], other),
                (&["session=1,role=admin"], other),
            ] {
                let mut request: Request<Empty<bytes::Bytes>> = get("/");
                for crumb in crumbs {
                    request.headers_mut().append("cookie", HeaderValue::from_static(crumb));
                }
                let answer = world.plain(version).await.send(request).await.unwrap();
                let (got, body) = read(answer).await.unwrap();
                assert_eq!(got, status, "{version:?} {crumbs:?}");
                assert!(got != 200 || body == crumbs.join("; "), "the application sees what was judged: {body}");
            }
        }
    }
}

#[tokio::test]
async fn s36_connection_takes_no_header_away() {
    let world = world(vec![h()]).await;
    let with = |connection: &str| format!("host: a\r\nconnection: {connection}\r\nx-role: user\r\n");
    for named in ["x-role, authorization", "close, x-role", "Host"] {
        assert_eq!(ask_with(&world, b"/", &with(named)).await.0, 400, "{named}");
    }
    for named in ["close", "Close, TE", "keep-alive, close"] {
        assert_eq!(ask_with(&world, b"/", &with(named)).await.0, 200, "{named}");
    }
}

#[tokio::test]
async fn s37_a_trailer_is_no_header() {
    let allow = one(
        AuthorizationAction::Allow,
        vec![header("x-role", StringMatch::Exact("admin".into()), false)],
        vec![Principal::Any],
    );
    let world = world(vec![allow]).await;
    let post = |head: &str, trailer: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{head}transfer-encoding: chunked\r\ntrailer: x-role\r\n\r\n\
             1\r\nx\r\n0\r\n{trailer}\r\n"
        )
    };
    let sent = raw(world.address, post("", "x-role: admin\r\n").as_bytes()).await;
    assert!(sent.starts_with("HTTP/1.1 403"), "{sent}");
    let sent = raw(world.address, post("x-role: admin\r\n", "").as_bytes()).await;
    assert!(sent.starts_with("HTTP/1.1 200"), "{sent}");
    // The same over HTTP/2.
    let post = |head: &[(&str, &str)], trailer: &[(&str, &str)]| {
        let mut headers = http2::get("/", head);
        headers[0].1 = "POST";
        let head = http2::frame(http2::HEADERS, http2::END_HEADERS, 1, &http2::block(&headers));
        let trailer = http2::block(trailer);
        let last = http2::frame(http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, 1, &trailer);
        [head, http2::frame(http2::DATA, 0, 1, b"x"), last].concat()
    };
    let admin = [("x-role", "admin")];
    assert_eq!(http2::verdict(&world, &post(&[], &admin)).await, Verdict::Refused);
    assert_eq!(http2::verdict(&world, &post(&admin, &[("x-a", "b")])).await, Verdict::Served);
}

#[tokio::test]
async fn s51_a_live_connection_is_judged_by_the_policy_of_the_moment() {
    let world = world(Vec::new()).await;
    for version in [Http::One, Http::Two] {
        let mut client = world.mutual(version).await;
        assert_eq!(judged(&world, &mut client, version, "/admin").await, 200, "{version:?}");
        world.policy.publish(guarded(vec![d()]));
        assert_eq!(judged(&world, &mut client, version, "/admin").await, 403, "{version:?}");
        assert_eq!(judged(&world, &mut client, version, "/public/").await, 200, "{version:?}");
        world.policy.publish(guarded(Vec::new()));
        assert_eq!(judged(&world, &mut client, version, "/admin").await, 200, "{version:?}");
    }
}

/// The status of a request over a connection that is kept while the server keeps it.
async fn judged(world: &World, client: &mut Client, version: Http, path: &str) -> u16 {
    loop {
        match client.get(path).await {
            Ok((status, _)) => return status,
            // It never left: the connection had been told to take no more.
            Err(error) if error.is_canceled() || error.is_closed() => *client = world.mutual(version).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn what_needs_an_external_authorizer_is_denied_and_the_rest_is_not() {
    let asks = |path: &str| {
        let what = Permission::Path(PathMatch::Exact(path.into()));
        one(AuthorizationAction::Custom(AuthorizerProvider::named("opa")), vec![what], vec![Principal::Any])
    };
    let world = world(vec![asks("/checked")]).await;
    let (status, body) = ask(&world, b"/checked", "").await;
    assert!(status == 403 && body.contains("MESH-2003"), "{status} {body}");
    assert_eq!(ask(&world, b"/other", "").await.0, 200);
}

#[tokio::test]
async fn the_server_name_and_the_port_that_were_asked_for_can_be_demanded() {
    let named = |name: &str| {
        one(AuthorizationAction::Allow, vec![Permission::ServerName(StringMatcher::exact(name))], vec![Principal::Any])
    };
    let world = world(vec![named("mesh")]).await;
    assert_eq!(world.mutual(Http::Two).await.get("/").await.unwrap().0, 200);
    assert_eq!(world.plain(Http::Two).await.get("/").await.unwrap().0, 403);
    world.policy.publish(guarded(vec![named("other")]));
    assert_eq!(world.mutual(Http::Two).await.get("/").await.unwrap().0, 403);
    // The kit's policy is for port 80.
    for (port, status) in [(80, 403), (81, 200)] {
        world.policy.publish(guarded(vec![deny(vec![Permission::DestinationPort(port)])]));
        assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, status, "{port}");
    }
}

#[tokio::test]
async fn s26_what_only_the_mesh_may_say_is_taken_away_before_a_rule_sees_it() {
    // The control is a header that anybody may send.
    for (name, status) in [
        ("x-forwarded-client-cert", 403),
        ("client-cert", 403),
        ("client-cert-chain", 403),
        ("l5d-client-id", 403),
        ("x-envoy-peer-metadata", 403),
        ("x-asked-client-cert", 200),
    ] {
        let web = header(name, StringMatch::Contains("sa/productpage".into()), false);
        let world = world(vec![one(AuthorizationAction::Allow, vec![web], vec![Principal::Any])]).await;
        let mut request: Request<Empty<bytes::Bytes>> = get("/");
        let value = HeaderValue::from_static("URI=spiffe://cluster.local/ns/default/sa/productpage");
        request.headers_mut().insert(HeaderName::from_static(name), value);
        assert_eq!(world.plain(Http::One).await.send(request).await.unwrap().status(), status, "{name}");
    }
}

#[tokio::test]
async fn a_connection_that_outlives_its_policy_stays_under_it() {
    let world = world(vec![d()]).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(client.get("/admin").await.unwrap().0, 403);
    assert_eq!(client.get("/public").await.unwrap().0, 200);
    world.policy.publish(InboundState::Failed("no such listener".into()));
    assert_eq!(client.get("/admin").await.unwrap().0, 403, "what was enforced last still is");
    // The control: a policy that is taken away is gone, and is not what is enforced when word fails later.
    world.policy.publish(guarded(Vec::new()));
    assert_eq!(client.get("/admin").await.unwrap().0, 200);
    world.policy.publish(InboundState::Failed("no such listener".into()));
    assert_eq!(client.get("/admin").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_connection_that_never_asked_is_under_the_policy_it_came_under_when_word_fails() {
    // It was there from the beginning; or it came later, and is stricter than the first.
    for (first, later) in [(vec![d()], None), (Vec::new(), Some(vec![d()]))] {
        let world = world(first).await;
        if let Some(later) = later {
            world.policy.publish(guarded(later));
        }
        let mut client = world.plain(Http::Two).await;
        // Let in, and no request yet.
        eventually(|| (!world.server.stats().plaintext_peers().is_empty()).then_some(())).await;
        world.policy.publish(InboundState::Failed("no such listener".into()));
        assert_eq!(client.get("/admin").await.unwrap().0, 403);
        assert_eq!(client.get("/public").await.unwrap().0, 200, "the control");
    }
}
