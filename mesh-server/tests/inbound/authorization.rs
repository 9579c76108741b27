//! Authorization and what stands before it: the classes of attack of which every one has been somebody's CVE, each
//! with the same request without its trick, and with the policy off.
//!
//! Names: `sNN` counts the classes; D denies `/admin` and what is below, A allows `/public/` only, H denies the role
//! `admin`, O denies the host `secret.test`, P allows one workload.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderName, HeaderValue, Request};
use http_body_util::Empty;

use mesh_core::policy::{
    AuditCondition, AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, HeaderKey,
    HeaderMatch, HeaderMatcher, InboundState, InboundTls, OF_PEER, PathMatch, Pattern, Permission, Principal,
    StringMatch, StringMatcher,
};
use mesh_core::target::EncodedSlash;
use mesh_server::{Body, Config};

use crate::audit;
use crate::kit::{Client, Http, World, eventually, get, listener, policy, read, text};
use crate::raw::Verdict::{Connection, Refused, Served, Stream};
use crate::raw::{self as http2, Verdict};
use crate::transport::raw;

/// Whom [`World::mutual`] is.
const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/default/sa/productpage";

/// It is told of each admission, too.
fn one(action: AuthorizationAction, permissions: Vec<Permission>, principals: Vec<Principal>) -> AuthorizationPolicy {
    let rules = vec![AuthorizationRule { name: "ns[default]-policy[one]-rule[0]".to_owned(), permissions, principals }];
    AuthorizationPolicy { rules, audit: AuditCondition::OnAllow, ..AuthorizationPolicy::new("one", action) }
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
    let web = StringMatcher::exact(PRODUCTPAGE);
    one(AuthorizationAction::Allow, vec![Permission::Any], vec![Principal::Authenticated(Some(web))])
}

fn guarded(policies: Vec<AuthorizationPolicy>) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.authorization = policies;
    InboundState::Ready(Arc::new(listener))
}

/// A server, and how often its application was asked.
struct Counted {
    world: World,
    calls: Arc<AtomicUsize>,
}

impl Counted {
    /// What is refused reaches nobody, and what is served somebody; and the audit records say so, of a caller that has shown
    /// this identity.
    fn answered(&self, status: u16, caller: Option<&str>, what: &dyn std::fmt::Debug) {
        assert_eq!(
            self.calls.swap(0, Ordering::Relaxed),
            usize::from(status == 200),
            "calls of the application by {what:?}"
        );
        audit::assert_decided(&self.policy.load_full(), status, caller, what);
    }
}

impl Deref for Counted {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// A server that answers with what its application was asked for: target, and the `Host` header.
async fn world(policies: Vec<AuthorizationPolicy>) -> Counted {
    world_with(policies, Config::default()).await
}

async fn world_with(policies: Vec<AuthorizationPolicy>, config: Config) -> Counted {
    let calls = Arc::<AtomicUsize>::default();
    let count = calls.clone();
    let service = tower::service_fn(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        asked(request)
    });
    Counted { world: World::start(guarded(policies), config, service).await, calls }
}

async fn asked(
    request: Request<Body>,
) -> Result<http::Response<http_body_util::Full<bytes::Bytes>>, mesh_core::error::BoxError> {
    let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap());
    text(format!("{} {host}", request.uri()))
}

/// Status and text of the answer to a request for `target` with further header lines.
async fn ask(world: &Counted, target: &[u8], lines: &str) -> (u16, String) {
    ask_with(world, target, &format!("host: public.test\r\n{lines}")).await
}

/// The same with all header lines.
async fn ask_with(world: &Counted, target: &[u8], lines: &str) -> (u16, String) {
    let (status, answer) = send(world, &[b"GET ", target, b" HTTP/1.1\r\n", lines.as_bytes()].concat(), "").await;
    (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

/// Status and all of the answer to the beginning of a head over HTTP/1.1, and a body.
async fn send(world: &Counted, head: &[u8], body: &str) -> (u16, String) {
    let request = [head, b"connection: close\r\n\r\n", body.as_bytes()].concat();
    let answer = raw(world.address, &request).await;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    world.answered(status, None, &String::from_utf8_lossy(head));
    (status, answer)
}

/// The same over HTTP/2, as bytes that no client library would write.
async fn ask2(world: &Counted, authority: &str, path: &[u8], more: &[(&str, &str)]) -> Verdict {
    let mut headers: Vec<(&str, &[u8])> =
        vec![(":method", b"GET"), (":scheme", b"http"), (":authority", authority.as_bytes()), (":path", path)];
    headers.extend(more.iter().map(|(name, value)| (*name, value.as_bytes())));
    let verdict = http2::verdict(world, &http2::request(1, &headers)).await;
    world.answered(status_of(verdict), None, &headers);
    verdict
}

/// An answer with a status over HTTP/2.
fn with_status(status: u16) -> Verdict {
    if status == 200 { Served } else { Refused(status) }
}

/// The other way round; what never became a request has none.
fn status_of(verdict: Verdict) -> u16 {
    match verdict {
        Served => 200,
        Refused(status) => status,
        Stream | Connection | Verdict::Alive => 0,
    }
}

/// Every path gets this status over both versions, and what is refused never reaches the application.
async fn paths_get(world: &Counted, status: u16, paths: &[&str]) {
    for path in paths {
        let (got, body) = ask(world, path.as_bytes(), "").await;
        assert_eq!(got, status, "{path}: {body}");
        assert_eq!(ask2(world, "public.test", path.as_bytes(), &[]).await, with_status(status), "HTTP/2 {path}");
    }
}

/// The control: with the policy off all of them reach the application.
async fn pass_without_policy(world: &Counted, paths: &[&str]) {
    world.policy.publish(guarded(Vec::new()));
    paths_get(world, 200, paths).await;
}

#[tokio::test]
async fn what_is_allowed_passes_and_what_is_denied_gets_envoys_answer() {
    let world = world(vec![d()]).await;
    assert_eq!(ask(&world, b"/public/a?x=1", "").await, (200, "/public/a?x=1 public.test".to_owned()));
    assert_eq!(ask(&world, b"/admin", "").await, (403, "RBAC: access denied\n".to_owned()));
    let grpc = b"POST /admin HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\nconnection: close\r\n\r\n";
    let grpc = raw(world.address, grpc).await;
    // A refusal of gRPC is a 200, too.
    world.answered(403, None, &grpc);
    assert!(grpc.starts_with("HTTP/1.1 200"), "{grpc}");
    assert!(grpc.contains("grpc-status: 7\r\n") && grpc.contains("grpc-message: RBAC: access denied"), "{grpc}");
    assert!(world.metrics_text().contains("response_code=\"403\""), "{}", world.metrics_text());
    pass_without_policy(&world, &["/admin"]).await;
}

#[tokio::test]
async fn an_identity_is_let_in_and_no_other_and_nobody_without_one() {
    let world = world(vec![p()]).await;
    for version in [Http::One, Http::Two] {
        let other = world.ca.identity("default", "not-productpage");
        let id = other.id().to_string();
        for (mut client, caller, status) in [
            (world.mutual(version).await, Some(PRODUCTPAGE), 200),
            (world.mutual_as(&other, version).await.unwrap(), Some(&*id), 403),
            (world.plain(version).await, None, 403),
        ] {
            assert_eq!(client.get("/").await.unwrap().0, status, "{version:?} {caller:?}");
            world.answered(status, caller, &version);
        }
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
    // A parameter after a name makes another path of it, as with Istio: the rule for the one without does not hold, and the
    // application is asked for just that.
    let others = ["/admin;x", "/admin;a=b/x", "/admin%3Bx", "/admin;"];
    paths_get(&world, 200, &others).await;
    assert_eq!(ask(&world, b"/admin;x", "").await.1, "/admin;x public.test");
    paths_get(&world, 403, &["/admin/;x", "/admin/x;y", "/x;y/../admin"]).await;
    // Whoever takes the two for one says so, in a rule that denies, or allows what is meant and nothing else.
    let parameters = Permission::Path(PathMatch::Prefix("/admin;".into()));
    world.policy.publish(guarded(vec![deny(vec![parameters])]));
    paths_get(&world, 403, &others).await;
    paths_get(&world, 200, &["/administration;x"]).await;
    world.policy.publish(guarded(vec![a()]));
    paths_get(&world, 403, &tricks).await;
    paths_get(&world, 403, &others).await;
    pass_without_policy(&world, &tricks).await;
}

#[tokio::test]
async fn s04_encoded_slashes_are_refused_and_raw_backslashes_are_slashes() {
    let world = world(vec![d()]).await;
    paths_get(&world, 400, &["/admin%2fusers", "/%5cadmin", "/public%2f..%2fadmin", "/public%2F..%2Fadmin"]).await;
    paths_get(&world, 403, &["/public/..\\admin", "/\\admin"]).await;
    paths_get(&world, 200, &["/public\\admin"]).await;
    assert_eq!(ask(&world, b"/public\\admin", "").await, (200, "/public/admin public.test".to_owned()));
    pass_without_policy(&world, &["/public/..\\admin", "/\\admin"]).await;
    // The opt-out: data, which divides nothing.
    let mut keep = Config::default();
    keep.encoded_slash = EncodedSlash::Keep;
    let keeping = world_with(vec![d()], keep).await;
    assert_eq!(ask(&keeping, b"/files/a%2fb", "").await, (200, "/files/a%2Fb public.test".to_owned()));
}

#[tokio::test]
async fn s04_encoded_slashes_are_data_on_the_routes_that_take_them_and_refused_on_the_others() {
    let mut config = Config::default();
    config.encoded_slash_at = vec![PathMatch::Prefix("/files/".into()), PathMatch::Exact("/raw%2Fone".into())];
    let world = world_with(vec![d()], config).await;
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
        let world = world_with(vec![d()], config).await;
        paths_get(&world, status, &["/files/a%2fb", "/x%2fy"]).await;
    }
}

#[tokio::test]
async fn s06_s07_s09_s10_s11_queries_cases_and_escapes_are_what_they_look_like() {
    let world = world(vec![d()]).await;
    // A fragment is no part of a target, and what is before it is asked for.
    let denied = ["/admin?x", "/admin#x", "/admin/#x", "/admin#x?y", "/admin/", "/admin/.", "/%61dmin"];
    paths_get(&world, 403, &denied).await;
    assert_eq!(ask(&world, b"/public/#/admin", "").await, (200, "/public/ public.test".to_owned()));
    // Others than `/admin`, and the application is asked for just that; escapes in upper case, as ever.
    for (other, seen) in [
        ("/admin%23x", "/admin%23x"),
        ("/ADMIN", "/ADMIN"),
        ("/%2561dmin", "/%2561dmin"),
        ("/%252e%252e/admin", "/%252e%252e/admin"),
        ("/admin%20", "/admin%20"),
        ("/%C0%AE%C0%AE/admin", "/%C0%AE%C0%AE/admin"),
        ("/%c0%ae%c0%ae/admin", "/%C0%AE%C0%AE/admin"),
    ] {
        assert_eq!(ask(&world, other.as_bytes(), "").await, (200, format!("{seen} public.test")));
        assert_eq!(ask2(&world, "public.test", other.as_bytes(), &[]).await, Served, "{other}");
    }
    // What an application would take for one and the same is one and the same to a rule.
    world.policy.publish(guarded(vec![deny(vec![Permission::Path(PathMatch::Exact("/admin:delete".into()))])]));
    paths_get(&world, 403, &["/admin:delete", "/admin%3Adelete", "/admin%3adelete"]).await;
    assert_eq!(ask(&world, b"/admin%3ashow", "").await, (200, "/admin:show public.test".to_owned()));
    world.policy.publish(guarded(vec![d()]));
    let mut said = Vec::new();
    for bytes in [&b"/\xc0\xae\xc0\xae/admin"[..], "/админ".as_bytes()] {
        assert_eq!(ask(&world, bytes, "").await.0, 400, "{bytes:?}");
        said.push(ask2(&world, "public.test", bytes, &[]).await);
    }
    // What is no UTF-8 is no text to h2, and ends the connection.
    assert_eq!(said, [Connection, Refused(400)]);
    pass_without_policy(&world, &denied).await;
}

#[tokio::test]
async fn s08_control_characters_are_refused() {
    let world = world(vec![d()]).await;
    let tricks = ["/admin%00", "/admin%0d%0aX:y", "/admin%0D%0Ax-role:admin", "/%0a", "/%0d", "/%7f", "/a%", "/a%zz"];
    paths_get(&world, 400, &tricks).await;
    // As they are: no request line, and no path of HTTP/2.
    for path in ["/admin\0", "/admin\r\nX: y", "/a\nb", "/a\rb", "/\x7f", "/a b"] {
        assert_eq!(ask2(&world, "public.test", path.as_bytes(), &[]).await, Stream, "{path:?}");
    }
    // It is no policy that refuses them.
    world.policy.publish(guarded(Vec::new()));
    paths_get(&world, 400, &tricks).await;
    paths_get(&world, 200, &["/admin", "/a%25", "/adminX:y"]).await;
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
            world.answered(403, None, &path);
        }
    }
    // The control: another method.
    let mut request = get("/pkg.Svc/Other");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    assert_eq!(world.plain(Http::Two).await.send(request).await.unwrap().headers().get("grpc-status"), None);
    world.answered(200, None, &"another method");
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

/// `?x` is `/?x` (RFC 9110, section 4.2.3), and libraries take it as it is, but over HTTP/1.1 without an authority.
#[tokio::test]
async fn s13_an_empty_path_with_a_query_is_that_of_the_root() {
    let rule = header(":path", StringMatch::Prefix("/?debug".into()), false);
    let others = vec![Permission::Not(Box::new(rule.clone()))];
    let others = one(AuthorizationAction::Allow, others, vec![Principal::Any]);
    for policy in [deny(vec![rule]), others] {
        let world = world(vec![policy]).await;
        for line in ["GET http://public.test?debug=1 HTTP/1.1", "GET /?debug=1 HTTP/1.1"] {
            assert_eq!(raw_line(&world, line).await, 403, "{line}");
        }
        for path in ["?debug=1", "/?debug=1"] {
            assert_eq!(ask2(&world, "public.test", path.as_bytes(), &[]).await, Refused(403), "{path}");
        }
        // The controls: another query, and nobody to ask.
        let absolute = ask(&world, b"http://public.test?x", "").await;
        assert_eq!(absolute, (200, "http://public.test/?x public.test".to_owned()));
        assert_eq!(ask2(&world, "public.test", b"?x", &[]).await, Served);
        world.policy.publish(guarded(Vec::new()));
        assert_eq!(raw_line(&world, "GET ?debug=1 HTTP/1.1").await, 400);
        let absolute = ask(&world, b"http://public.test?debug=1", "").await;
        assert_eq!(absolute, (200, "http://public.test/?debug=1 public.test".to_owned()));
    }
    // What names a method of gRPC is a path that is written out.
    let world = world(Vec::new()).await;
    let request = http2::request(1, &http2::get("?x", &[("content-type", "application/grpc")]));
    assert_eq!(http2::verdict(&world, &request).await, Served, "UNIMPLEMENTED");
    assert_eq!(world.calls.load(Ordering::Relaxed), 0);
}

async fn raw_line(world: &Counted, line: &str) -> u16 {
    send(world, format!("{line}\r\nhost: public.test\r\n").as_bytes(), "").await.0
}

#[tokio::test]
async fn s17_s18_s19_a_host_is_one_in_any_case_with_a_port_and_a_dot() {
    let world = world(vec![o()]).await;
    let secret = ["secret.test", "SECRET.test", "secret.test:80", "secret.test.", "secret.test.:8080", "Secret.Test.:"];
    for host in secret {
        hosts_get(&world, 403, &[host]).await;
        let absolute = format!("http://{}/", host.trim_end_matches(':'));
        assert_eq!(ask_with(&world, absolute.as_bytes(), "host: public.test\r\n").await.0, 403, "{absolute}");
    }
    hosts_get(&world, 200, &["public.test", "xsecret.test", "secretxtest", "secret.test.public.test"]).await;
    // A label that is empty is what no rule expects.
    hosts_get(&world, 400, &["secret.test..", "secret..test", ".secret.test", ".."]).await;
    // Nobody knows which host is meant.
    assert_eq!(ask_with(&world, b"/", "host:\r\n").await.0, 403);
    world.policy.publish(guarded(Vec::new()));
    hosts_get(&world, 200, &secret).await;
}

/// Every host gets this status, as `Host` and as `:authority`.
async fn hosts_get(world: &Counted, status: u16, hosts: &[&str]) {
    for host in hosts {
        assert_eq!(ask_with(world, b"/", &format!("host: {host}\r\n")).await.0, status, "{host}");
        assert_eq!(ask2(world, host, b"/", &[]).await, with_status(status), "HTTP/2 {host}");
    }
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
    world.answered(200, None, &"the authority of the URI");
    for (authority, more, http2_says) in [
        ("public.test", &[("host", "secret.test")][..], Served),
        ("secret.test", &[("host", "public.test")], Refused(403)),
        ("public.test", &[("host", "public.test"), ("host", "secret.test")], Refused(400)),
        ("public.test", &[(":authority", "secret.test")], Stream),
    ] {
        assert_eq!(ask2(&world, authority, b"/", more).await, http2_says, "{authority} {more:?}");
    }
    let same = ask_with(&world, b"http://public.test/a", "host: public.test\r\n").await;
    assert_eq!(same, (200, "http://public.test/a public.test".to_owned()));
}

#[tokio::test]
async fn s21_s22_s23_an_authority_is_a_host_and_a_port() {
    let world = world(vec![o()]).await;
    let mut said = Vec::new();
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
        said.push(ask2(&world, host, b"/", &[]).await);
    }
    // Some are no authority to h2 either, which resets their streams.
    let refused = Refused(400);
    assert_eq!(said, [refused, refused, Stream, refused, Stream, Stream, Stream, Stream]);
    assert_eq!(ask_with(&world, b"http://user@secret.test/", "host: public.test\r\n").await.0, 400);
    hosts_get(&world, 200, &["[::1]:80", "127.0.0.1", "xn--e1afmkfd.test"]).await;
}

#[tokio::test]
async fn s28_s29_s30_s34_a_second_value_hides_nothing() {
    let world = world(vec![h()]).await;
    let tricks: [&[(&str, &str)]; 7] = [
        &[("x-role", "admin")],
        &[("X-ROLE", "admin")],
        &[("x-role", "user"), ("x-role", "admin")],
        &[("x-role", "admin"), ("x-role", "user")],
        &[("x-role", "user, admin")],
        &[("x-role", "admin\t")],
        &[("x-role", "\tadmin \t")],
    ];
    headers_get(&world, 403, &tricks).await;
    let mut said = Vec::new();
    for (lines, more) in [
        ("x-role: user\r\n admin\r\n", ("x-role", "user\r\n admin")),
        ("x-role: ad\0min\r\n", ("x-role", "ad\0min")),
        ("x-role : admin\r\n", ("x-role ", "admin")),
        ("x-role: a\rb\r\n", ("x-role", "a\rb")),
    ] {
        assert_eq!(ask(&world, b"/", lines).await.0, 400, "{lines:?}");
        said.push(ask2(&world, "public.test", b"/", &[more]).await);
    }
    assert_eq!(said, [Connection; 4]);
    headers_get(&world, 200, &[&[("x-role", "user")], &[]]).await;
    world.policy.publish(guarded(Vec::new()));
    headers_get(&world, 200, &tricks).await;
}

/// A request with each of these sets of headers gets this status over both versions. A name in upper case is none of
/// HTTP/2, and ends the connection.
async fn headers_get(world: &Counted, status: u16, sets: &[&[(&str, &str)]]) {
    for headers in sets {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        assert_eq!(ask(world, b"/", &lines).await.0, status, "{lines:?}");
        let lower = headers.iter().all(|(name, _)| name.to_ascii_lowercase() == *name);
        let want = if lower { with_status(status) } else { Connection };
        assert_eq!(ask2(world, "public.test", b"/", headers).await, want, "HTTP/2 {lines:?}");
    }
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
    let world = World::start(guarded(Vec::new()), Config::default(), service).await;
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
                audit::assert_decided(&world.policy.load_full(), status, None, &crumbs);
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
    let post = async |head: &str, trailer: &str| {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{head}transfer-encoding: chunked\r\ntrailer: x-role\r\n");
        send(&world, head.as_bytes(), &format!("1\r\nx\r\n0\r\n{trailer}\r\n")).await.0
    };
    assert_eq!(post("", "x-role: admin\r\n").await, 403);
    assert_eq!(post("x-role: admin\r\n", "").await, 200);
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
    for (head, trailer, http2_says) in [(&[][..], &admin[..], Refused(403)), (&admin[..], &[("x-a", "b")][..], Served)]
    {
        assert_eq!(http2::verdict(&world, &post(head, trailer)).await, http2_says);
        world.answered(status_of(http2_says), None, &head);
    }
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
async fn judged(world: &Counted, client: &mut Client, version: Http, path: &str) -> u16 {
    loop {
        match client.get(path).await {
            Ok((status, _)) => {
                world.answered(status, Some(PRODUCTPAGE), &path);
                return status;
            }
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
    // Capitals keep no rule from its name: TLS hands it on in small letters.
    for (name, status) in [("Mesh", 403), ("Secret.Test", 200)] {
        let asked = Permission::ServerName(StringMatcher::exact(name));
        world.policy.publish(guarded(vec![deny(vec![asked])]));
        assert_eq!(world.mutual(Http::Two).await.get("/").await.unwrap().0, status, "{name}");
    }
    // The kit's policy is for port 80.
    for (port, status) in [(80, 403), (81, 200)] {
        world.policy.publish(guarded(vec![deny(vec![Permission::DestinationPort(port)])]));
        assert_eq!(world.plain(Http::One).await.get("/").await.unwrap().0, status, "{port}");
    }
}

#[tokio::test]
async fn s26_what_only_the_mesh_may_say_is_taken_away_before_a_rule_sees_it() {
    // The control is a header that anybody may send.
    let taken = OF_PEER.into_iter().chain(["x_forwarded-client_cert"]).map(|name| (name, 403));
    for (name, status) in taken.chain([("x-asked-client-cert", 200)]) {
        let web = header(name, StringMatch::Contains("sa/productpage".into()), false);
        let world = world(vec![one(AuthorizationAction::Allow, vec![web], vec![Principal::Any])]).await;
        let mut request: Request<Empty<bytes::Bytes>> = get("/");
        let value = HeaderValue::from_static("URI=spiffe://cluster.local/ns/default/sa/productpage");
        request.headers_mut().insert(HeaderName::from_static(name), value);
        assert_eq!(world.plain(Http::One).await.send(request).await.unwrap().status(), status, "{name}");
        world.answered(status, None, &name);
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
