//! What is logged of hostile callers. A binary of its own: tracing remembers of each place in the code whether anybody
//! listens to it, and tests that do not listen would be in the way.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use mesh_core::authz::{
    CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers, Refusal as Denied, Unavailable,
};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, Domain, InboundHost,
    InboundListener, InboundRoute, InboundRoutes, InboundState, InboundTls, JwtAuthentication, JwtKeys, JwtProvider,
    PathMatch, Permission, Principal, RouteMatch,
};
use mesh_core::source::Watched;
use mesh_server::{Body, Refusal, Server};
use mesh_testkit::{CertificateSpec, Log, TestCa, crypto, policy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tracing::subscriber::DefaultGuard;

/// Whether each line of a log begins with its time, and nothing in it moves a terminal's cursor.
fn is_orderly(log: &str) -> bool {
    let begins = |line: &str| line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T');
    log.lines().all(|line| begins(line) && !line.contains(char::is_control))
}

/// What is logged from here on, while the second lives.
fn listen() -> (Log, DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let listens = tracing::subscriber::set_default(subscriber);
    (log, listens)
}

fn server(ca: &TestCa, listener: InboundListener) -> Server {
    Server::builder()
        .identity(ca.watched("default", "reviews"))
        .crypto(crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(listener))))
        .build()
}

async fn hello(_: Request<Body>) -> Result<Response<Full<Bytes>>, BoxError> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

#[tokio::test]
async fn s91_what_a_caller_sends_makes_no_line_of_the_log() {
    let (log, _listens) = listen();
    let ca = TestCa::new();
    let listener = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Permissive);
    let server = server(&ca, listener);
    let hello = tower::service_fn(hello);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let attack = async {
        let mut answered = 0;
        for (target, more) in [
            (&b"/plain"[..], &b""[..]),
            (b"/a%0aINFO%20fake", b""),
            (b"/a\"\tcode=200", b""),
            (b"/a\"code=200", b"x-request-id: \"fake\r\n"),
            (b"/a\x1b[2Jfake", b""),
            (b"/a\xe2\x80\xa8fake", b""),
            (b"/b", b"user-agent: \x1b[2Jfake\r\n"),
            (b"/b", b"traceparent: 00-fake\"\r\nbaggage: a=\xe2\x80\xa8\r\n"),
        ] {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            let head: &[u8] = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
            tcp.write_all(&[b"GET ", target, head, more, b"\r\n"].concat()).await.unwrap();
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).await.unwrap();
            answered += usize::from(answer.starts_with(b"HTTP/1.1 200"));
        }
        assert!(answered >= 3, "the harmless ones are served");
        // One who names himself so that his name is a line.
        let name = "spiffe://cluster.local/a\n2026-01-01T00:00:00Z  INFO mesh::access: fake\u{1b}[2J";
        let named = CertificateSpec { uris: vec![name.to_owned()], ..CertificateSpec::default() };
        let tls = ca.client_showing(Some(ca.certified(&named)), &[b"http/1.1"]);
        let tcp = TcpStream::connect(address).await.unwrap();
        if let Ok(mut tls) = TlsConnector::from(Arc::new(tls)).connect("mesh".try_into().unwrap(), tcp).await {
            let _ = tls.read_to_end(&mut Vec::new()).await;
        }
        while server.stats().refused(Refusal::Handshake) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = server.serve(socket, hello) => unreachable!("it serves until it is told to stop"),
        done = tokio::time::timeout(Duration::from_secs(60), attack) => done.unwrap(),
    }
    let text = log.text();
    let of = |target: &str| text.lines().filter(|line| line.contains(target)).count();
    assert!(of("mesh::access") >= 3 && of("connection refused") == 1 && of("fake") >= 2, "{text}");
    assert!(is_orderly(&text), "{text}");
    // The control: printed as it came, such a name would be a line.
    tracing::info!("{}", "a\nfake");
    assert!(!is_orderly(&log.text()));
}

#[tokio::test]
async fn a_raw_connection_leaves_a_line_and_a_denied_one_says_which_policy() {
    let (log, _listens) = listen();
    let open = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Disable);
    let mut shut = open.clone();
    shut.authorization = vec![AuthorizationPolicy::new("default/nobody", AuthorizationAction::Allow)];
    let (published, inbound) = Watched::channel(InboundState::Ready(Arc::new(open)));
    let server = Server::builder().inbound(inbound).build();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let calls = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"four").await.unwrap();
        tcp.shutdown().await.unwrap();
        tcp.read_to_end(&mut Vec::new()).await.unwrap();
        published.publish(InboundState::Ready(Arc::new(shut)));
        let mut tcp = TcpStream::connect(address).await.unwrap();
        assert!(tcp.read(&mut [0]).await.is_err());
        while log.text().matches("mesh::access").count() < 2 {
            tokio::task::yield_now().await;
        }
    };
    let echo = |connection| async move {
        let (mut read, mut write) = tokio::io::split(connection);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    };
    tokio::select! {
        _ = server.serve_tcp(socket, echo) => unreachable!("it serves until it is told to stop"),
        done = tokio::time::timeout(Duration::from_secs(60), calls) => done.unwrap(),
    }
    let text = log.text();
    let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap_or_else(|| panic!("{with}: {text}"));
    let served = line("received=4 sent=4");
    assert!(served.contains("mesh::access") && served.contains("protocol=\"tcp\"") && served.contains("peer=127"));
    let denied = line("rbac_access_denied_matched_policy[none]");
    assert!(denied.contains("mesh::access") && denied.contains("received=0 sent=0"), "{denied}");
    let audited = line("mesh::audit");
    assert!(audited.contains("policy=\"default/nobody\"") && !audited.contains("method="), "{audited}");
}

/// What is asked to be denied: requests to a path, by a rule of that name.
fn deny(name: &str, path: &str, dry_run: bool) -> AuthorizationPolicy {
    let permissions = vec![Permission::Path(PathMatch::Exact(path.to_owned()))];
    let rule = AuthorizationRule { name: format!("{name}-rule"), permissions, principals: vec![Principal::Any] };
    AuthorizationPolicy { dry_run, rules: vec![rule], ..AuthorizationPolicy::new(name, AuthorizationAction::Deny) }
}

#[tokio::test]
async fn each_decision_against_a_request_is_one_audit_line_that_names_who_and_what_decided() {
    let (log, _listens) = listen();
    let ca = TestCa::new();
    let mut listener = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Strict);
    listener.authorization = vec![deny("shop/shut", "/shut", false), deny("shop/tried", "/tried", true)];
    let server = server(&ca, listener);
    let hello = tower::service_fn(hello);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let ask = async |path: &str| {
        let uris = vec!["spiffe://cluster.local/ns/default/sa/web".to_owned()];
        let web = ca.certified(&CertificateSpec { uris, ..CertificateSpec::default() });
        let tls = ca.client_showing(Some(web), &[b"http/1.1"]);
        let tcp = TcpStream::connect(address).await.unwrap();
        let mut tls = TlsConnector::from(Arc::new(tls)).connect("mesh".try_into().unwrap(), tcp).await.unwrap();
        tls.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes without TLS' own goodbye is none that cut the answer: its length says so.
        let _ = tls.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()[9..12].to_owned()
    };
    let asked = async { [ask("/open").await, ask("/shut").await, ask("/tried").await] };
    let statuses = tokio::select! {
        _ = server.serve(socket, hello) => unreachable!("it serves until it is told to stop"),
        done = tokio::time::timeout(Duration::from_secs(60), asked) => done.unwrap(),
    };
    assert_eq!(statuses, ["200", "403", "200"]);
    let text = log.text();
    let audited: Vec<&str> = text.lines().filter(|line| line.contains("mesh::audit")).collect();
    // A dry run records what it would have decided of every request.
    let against: Vec<_> = audited.iter().filter(|line| line.contains("decision=\"denied\"")).collect();
    let line = |path: &str| {
        let of: Vec<_> = against.iter().filter(|line| line.contains(path)).collect();
        assert_eq!(of.len(), 1, "{path}: {text}");
        **of[0]
    };
    for (path, policy, decided) in
        [("path=\"/shut\"", "shop/shut", "access denied"), ("path=\"/tried\"", "shop/tried", "kind=DryRun")]
    {
        let line = line(path);
        for part in [
            &format!("policy=\"{policy}\""),
            &format!("rule=\"{policy}-rule\""),
            "principal=spiffe://cluster.local/ns/default/sa/web",
            decided,
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    assert_eq!((against.len(), audited.len()), (2, 4), "the control: what is open is denied in no line: {text}");
}

#[tokio::test]
async fn a_request_for_what_no_route_serves_and_one_without_an_identity_are_one_audit_line_each() {
    let (log, _listens) = listen();
    let mut listener = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Permissive);
    let matcher = RouteMatch { path: PathMatch::Exact("/open".to_owned()), ..RouteMatch::any() };
    let route = InboundRoute { name: "r".into(), matcher, serves: Some(Arc::default()) };
    let domains = vec![Domain::new("*").unwrap()];
    let host = InboundHost { name: "all".into(), domains, routes: vec![route] };
    listener.routes = InboundRoutes::Listed(vec![host].into());
    let strict = InboundListener { tls: InboundTls::Strict, ..listener.clone() };
    let (published, inbound) = Watched::channel(InboundState::Ready(Arc::new(listener)));
    let layer = Server::builder().inbound(inbound).build().inbound_layer();
    let ask = async |path: &str| {
        let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        let hello = tower::service_fn(|_| async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::default())) });
        tower::ServiceExt::oneshot(tower::Layer::layer(&layer, hello), request).await.unwrap().status().as_u16()
    };
    let audited =
        || log.text().lines().filter(|line| line.contains("mesh::audit")).map(str::to_owned).collect::<Vec<_>>();
    // The control: what is served is in none.
    assert_eq!((ask("/open").await, audited().len()), (200, 0));
    assert_eq!((ask("/shut").await, audited().len()), (404, 1));
    published.publish(InboundState::Ready(Arc::new(strict)));
    assert_eq!((ask("/open").await, audited().len()), (403, 2));
    for (line, path, why) in [(&audited()[0], "/shut", "no route"), (&audited()[1], "/open", "mutual TLS")] {
        let decided = line.contains("decision=\"denied\"") && line.contains("method=GET");
        assert!(decided && line.contains(&format!("path=\"{path}\"")) && line.contains(why), "{line}");
    }
}

/// An authorizer that denies, or has no answer.
#[derive(Debug)]
struct Never {
    answers: bool,
}

impl ExternalAuthorizer for Never {
    fn check(&self, _: CheckRequest) -> Checking<'_> {
        let unavailable =
            Unavailable { reason: "nobody is there".into(), status: StatusCode::FORBIDDEN, fail_open: false };
        let answer =
            if self.answers { Ok(CheckResponse::Denied(Denied::new(StatusCode::FORBIDDEN))) } else { Err(unavailable) };
        Box::pin(std::future::ready(answer))
    }
}

struct Known;

impl ExternalAuthorizers for Known {
    fn authorizer(&self, provider: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        let answers = match &*provider.name {
            "opa" => true,
            "away" => false,
            _ => return None,
        };
        Some(Arc::new(Never { answers }))
    }
}

#[tokio::test]
async fn each_way_to_be_refused_is_one_audit_line_with_policy_rule_and_reason_and_nobody_is_asked() {
    let (log, _listens) = listen();
    let of = |action: AuthorizationAction, path: &str| {
        let mut policy = deny("shop/one", path, false);
        policy.action = action;
        vec![policy]
    };
    let custom = |name: &str| AuthorizationAction::Custom(AuthorizerProvider::named(name));
    let provider = JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys":[]}"#.into()));
    let jwt = JwtAuthentication::required("shop/tokens", [("issuer".to_owned(), provider)]);
    let named = ["policy=\"shop/one\"", "rule=\"shop/one-rule\""];
    let with = |more: &[&'static str]| [&named[..], more].concat();
    for (what, policies, jwt, parts) in [
        ("DENY", of(AuthorizationAction::Deny, "/a"), vec![], with(&["reason=\"a rule of a DENY policy matches\""])),
        (
            "ALLOW",
            of(AuthorizationAction::Allow, "/b"),
            vec![],
            vec![named[0], "reason=\"no rule of the ALLOW policies matches\""],
        ),
        (
            "CUSTOM of nobody's",
            of(custom("nobody"), "/a"),
            vec![],
            with(&["reason=\"a rule of a CUSTOM policy matches, and nobody knows its provider\""]),
        ),
        ("CUSTOM", of(custom("opa"), "/a"), vec![], with(&["provider=\"opa\"", "why=403 Forbidden"])),
        ("CUSTOM without an answer", of(custom("away"), "/a"), vec![], with(&["provider=\"away\"", "nobody is there"])),
        ("JWT", vec![], vec![jwt], vec!["filter=\"shop/tokens\"", "why=Jwt is missing", "code=MESH-2008"]),
    ] {
        let mut listener = policy::inbound(([127, 0, 0, 1], 80).into(), InboundTls::Permissive);
        (listener.authorization, listener.jwt) = (policies, jwt);
        let open = InboundListener { authorization: Vec::new(), jwt: Vec::new(), ..listener.clone() };
        let (published, inbound) = Watched::channel(InboundState::Ready(Arc::new(listener)));
        let layer = Server::builder().inbound(inbound).authorizers(Arc::new(Known)).build().inbound_layer();
        let calls = Arc::<AtomicUsize>::default();
        let ask = async || {
            let count = calls.clone();
            let request = Request::get("/a").body(Full::<Bytes>::default()).unwrap();
            let hello = tower::service_fn(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::default())) }
            });
            tower::ServiceExt::oneshot(tower::Layer::layer(&layer, hello), request).await.unwrap().status().as_u16()
        };
        let before = log.text().len();
        let status = ask().await;
        assert!(status == 403 || what == "JWT" && status == 401, "{what}: {status}");
        assert_eq!(calls.load(Ordering::Relaxed), 0, "{what}: the application was asked");
        let text = log.text()[before..].to_owned();
        let audited: Vec<_> = text.lines().filter(|line| line.contains("mesh::audit")).collect();
        let [line] = audited[..] else { panic!("{what}: {text}") };
        for part in parts.into_iter().chain(["decision=\"denied\"", "path=\"/a\"", "method=GET"]) {
            assert!(line.contains(part), "{what}: {part}: {line}");
        }
        // The control: with the policy off the application is asked, and there is no such line.
        published.publish(InboundState::Ready(Arc::new(open)));
        let before = log.text().len();
        assert_eq!((ask().await, calls.load(Ordering::Relaxed)), (200, 1), "{what}");
        assert!(!log.text()[before..].contains("mesh::audit"), "{what}");
    }
}
