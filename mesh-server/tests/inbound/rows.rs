//! Classes of attack on framing, reuse of connections and counting, by their number: each with its trick refused and the
//! same request without it served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use mesh_core::authz::{CheckBody, CheckRequest};
use mesh_core::context;
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, HeaderKey, HeaderMatch, HeaderMatcher,
    InboundListener, InboundState, InboundTls, PathMatch, Permission, Principal, StringMatcher, Underscores,
};
use mesh_server::{Body, Config};

use crate::audit;
use crate::kit::{Client, Http, World, get as plain_get, listener, policy, read, text, within};
use crate::raw::Verdict::Served;
use crate::raw::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, block, frame, get, request, verdict,
};
use crate::transport::raw;

fn guarded(action: AuthorizationAction, permission: Permission) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    let rule = AuthorizationRule { name: "r".into(), permissions: vec![permission], principals: vec![Principal::Any] };
    listener.authorization = vec![AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("p", action) }];
    InboundState::Ready(Arc::new(listener))
}

fn no_admin() -> InboundState {
    guarded(AuthorizationAction::Deny, Permission::Path(PathMatch::Prefix("/admin".into())))
}

/// A server that answers with the target that its application was asked for.
async fn echo(state: InboundState) -> World {
    let service = tower::service_fn(|request: Request<Body>| async move { text(format!("asked {}", request.uri())) });
    World::start(state, Config::default(), service).await
}

/// The statuses of all answers to what one HTTP/1.1 connection is sent, and all that came back.
async fn statuses(world: &World, bytes: &str) -> (Vec<u16>, String) {
    let answers = raw(world.address, bytes.as_bytes()).await;
    let codes = answers.match_indices("HTTP/1.1 ").filter_map(|(at, _)| answers[at + 9..].get(..3)?.parse().ok());
    (codes.collect(), answers)
}

#[tokio::test]
async fn s26_a_peer_of_the_mesh_alone_says_that_a_request_is_a_retry() {
    const FORGED: [(&str, &str); 9] = [
        ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/productpage"),
        ("x_forwarded-client_cert", "URI=spiffe://cluster.local/ns/default/sa/productpage"),
        ("client-cert", ":MII=:"),
        ("client-cert-chain", ":MII=:"),
        ("l5d-client-id", "productpage.default.serviceaccount.identity.linkerd.cluster.local"),
        ("mesh_retried", "1"),
        ("mesh-retried", "1"),
        ("grpc-previous-rpc-attempts", "2"),
        ("x-envoy-attempt-count", "2"),
    ];
    let service = tower::service_fn(|request: Request<Body>| async move {
        let retried = context::current().is_some_and(|context| context.retried);
        let seen = FORGED.iter().filter(|(name, _)| request.headers().contains_key(*name));
        let seen: Vec<_> = seen.map(|(name, _)| *name).collect();
        text(format!("{retried} {}", seen.join(" ")))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let forging = || {
        let mut request = plain_get("/");
        for (name, value) in FORGED {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        request
    };
    let of_others = "grpc-previous-rpc-attempts x-envoy-attempt-count";
    let (forged, believed) = (format!("false {of_others}"), format!("true mesh-retried {of_others}"));
    for version in [Http::One, Http::Two] {
        let said = async |mut client: Client| {
            let response = client.send(forging()).await.unwrap();
            read(response).await.unwrap().1
        };
        assert_eq!(said(world.plain(version).await).await, forged, "{version:?}");
        // The control: one that proved who it is may say so, and says no more of others.
        assert_eq!(said(world.mutual(version).await).await, believed, "{version:?}");
    }
    // Where nobody can prove anything nobody has to.
    world.policy.publish(policy(InboundTls::Disable));
    let mut client = world.plain(Http::One).await;
    let response = client.send(forging()).await.unwrap();
    assert_eq!(read(response).await.unwrap().1, believed);
}

#[tokio::test]
async fn s92_a_secret_of_a_request_is_not_printed_with_it() {
    const SECRETS: [(&str, &str); 4] = [
        ("authorization", "Bearer sesame-1"),
        ("proxy-authorization", "Basic sesame-2"),
        ("cookie", "session=sesame-3"),
        ("baggage", "token=sesame-4"),
    ];
    // As an application prints what it has at hand, and as a crash report does.
    let service = tower::service_fn(|request: Request<Body>| async move {
        let context = context::current().unwrap();
        let mut question = CheckRequest::new(request.method().clone(), "/a?token=sesame-5", ([127, 0, 0, 1], 1).into());
        question.headers = request.headers().clone();
        question.body = Some(CheckBody { bytes: "sesame-6".into(), partial: false });
        // What has baggage shows it as it is: it lets nobody in. What the mesh keeps of it does not.
        let head = format!("{:?}", request.headers());
        assert!(head.contains("token=sesame-4"), "{head}");
        // Nor is a URI the mesh's: printed by the application it has its query.
        assert!(format!("{request:?}").contains("access_token=sesame-7"));
        text(format!("{} {context:?} {question:?}", head.replace("token=sesame-4", "")))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    for version in [Http::One, Http::Two] {
        let mut request = plain_get("/?access_token=sesame-7");
        request.headers_mut().insert("x-plain", HeaderValue::from_static("nothing-to-hide"));
        for (name, value) in SECRETS {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let response = world.plain(version).await.send(request).await.unwrap();
        let shown = read(response).await.unwrap().1;
        assert!(!shown.contains("sesame"), "{version:?}: {shown}");
        // The control: it is printed, and names what it does not show.
        for word in ["nothing-to-hide", "authorization", "cookie", "baggage", "/a"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
    }
}

#[tokio::test]
async fn s27_a_server_goes_nowhere_for_a_request() {
    // Somebody whom a server that forwards would call.
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    let world = echo(policy(InboundTls::Permissive)).await;
    let absolute = format!("GET http://{there}/x HTTP/1.1\r\nhost: {there}\r\nconnection: close\r\n\r\n");
    assert_eq!(statuses(&world, &absolute).await.1.lines().last(), Some(&*format!("asked http://{there}/x")));
    // Whether to make a tunnel is the application's to say; this one says 200 and has no end for it.
    let tunnel = format!("CONNECT {there} HTTP/1.1\r\nhost: {there}\r\n\r\nGET /stolen HTTP/1.1\r\n\r\n");
    assert!(!statuses(&world, &tunnel).await.1.contains("stolen"));
    let mut h2 = get("/x", &[]);
    let authority = there.to_string();
    h2[2].1 = &authority;
    assert_eq!(verdict(&world, &request(1, &h2)).await, Served);
    // Connections are taken in the order in which they were made: the first one is ours.
    let caller = TcpStream::connect(there).await.unwrap();
    let (_, first) = within(elsewhere.accept()).await.unwrap();
    assert_eq!(first, caller.local_addr().unwrap(), "somebody has called before");
}

#[tokio::test]
async fn s33_an_underscore_makes_no_other_header_of_one_that_policy_names() {
    let role = Permission::Header(HeaderMatcher {
        name: HeaderKey::parse("x-role").unwrap(),
        value: HeaderMatch::Text(StringMatcher::exact("admin")),
        invert: false,
        treat_missing_as_empty: false,
    });
    let ask = |lines: &'static str| format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{lines}\r\n");
    let denying = echo(guarded(AuthorizationAction::Deny, role.clone())).await;
    let allowing = echo(guarded(AuthorizationAction::Allow, role)).await;
    for (lines, denied, allowed) in [
        ("x_role: admin\r\n", true, false),
        ("x-role: user\r\nx_role: admin\r\n", true, false),
        ("x-role: admin\r\nx_role: user\r\n", true, false),
        ("X_ROLE: admin\r\n", true, false),
        // The controls.
        ("x-role: admin\r\n", true, true),
        ("x-role: user\r\n", false, false),
        ("x_role: user\r\n", false, false),
        ("x_rolf: admin\r\n", false, false),
    ] {
        for (world, served) in [(&denying, !denied), (&allowing, allowed)] {
            let status = if served { 200 } else { 403 };
            assert_eq!(statuses(world, &ask(lines)).await.0, [status], "{lines}");
            audit::assert_decided(&world.policy.load_full(), status, None, &lines);
        }
    }
    // What only the mesh may say is taken away under either name.
    let service = tower::service_fn(|request: Request<Body>| async move {
        let names: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
        text(names.join(" "))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let forged = "x_forwarded_client_cert: a\r\nx-forwarded_client-cert: a\r\nx_other: a\r\n";
    let seen = statuses(&world, &ask(forged)).await.1;
    assert!(seen.contains("x_other") && !seen.contains("client"), "{seen}");
}

#[tokio::test]
async fn s33_names_with_underscores_are_refused_or_taken_away_where_a_listener_says_so() {
    let role = Permission::Header(HeaderMatcher {
        name: HeaderKey::parse("x-role").unwrap(),
        value: HeaderMatch::Text(StringMatcher::exact("admin")),
        invert: false,
        treat_missing_as_empty: false,
    });
    let service = tower::service_fn(|request: Request<Body>| async move {
        let (head, body) = request.into_parts();
        let trailers = body.collect().await?.trailers().cloned().unwrap_or_default();
        let names: Vec<_> = head.headers.keys().chain(trailers.keys()).map(|name| name.as_str().to_owned()).collect();
        text(names.join(" "))
    });
    let ask = |lines: &str, trailers: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n{lines}\r\n0\r\n{trailers}\r\n"
        )
    };
    let said = |underscores| {
        let InboundState::Ready(listener) = guarded(AuthorizationAction::Deny, role.clone()) else { panic!("given") };
        let mut listener = InboundListener::clone(&listener);
        listener.limits.underscores = underscores;
        InboundState::Ready(Arc::new(listener))
    };
    for (underscores, denied, other, told) in [
        // The control.
        (Underscores::Allow, 403, 200, &["x_other", "x_last", "x-last"][..]),
        (Underscores::Reject, 400, 400, &["x-last"]),
        (Underscores::Drop, 200, 200, &["x-last"]),
    ] {
        let world = World::start(said(underscores), Config::default(), service).await;
        let (status, seen) = statuses(&world, &ask("x_role: admin\r\n", "")).await;
        assert_eq!(status, [denied], "{underscores:?}");
        assert!(!seen.contains("x_role"), "{underscores:?}: {seen}");
        assert_eq!(statuses(&world, &ask("x_other: a\r\n", "")).await.0, [other], "{underscores:?}");
        let lines = if other == 200 { "x_other: a\r\n" } else { "" };
        let (status, seen) = statuses(&world, &ask(lines, "x_last: a\r\nx-last: a\r\n")).await;
        assert_eq!(status, [200], "{underscores:?}");
        for name in ["x_other", "x_last", "x-last"] {
            assert_eq!(seen.contains(name), told.contains(&name), "{underscores:?} {name}: {seen}");
        }
        assert_eq!(statuses(&world, &ask("x-role: admin\r\n", "")).await.0, [403], "{underscores:?}");
        audit::taken();
    }
}

#[tokio::test]
async fn s64_the_name_asked_for_in_tls_and_the_authority_are_judged_each_for_itself() {
    let authority = |name: &str| {
        Permission::Header(HeaderMatcher {
            name: HeaderKey::parse(":authority").unwrap(),
            value: HeaderMatch::Text(StringMatcher::exact(name)),
            invert: false,
            treat_missing_as_empty: false,
        })
    };
    let asked = |name: &str| Permission::ServerName(StringMatcher::exact(name));
    let world = echo(policy(InboundTls::Permissive)).await;
    // The kit's clients ask for the server `mesh` and the authority `reviews:9080`.
    for (permission, status) in [
        (Permission::And(vec![asked("mesh"), authority("reviews:9080")]), 200),
        (Permission::And(vec![asked("reviews:9080"), authority("reviews:9080")]), 403),
        (Permission::And(vec![asked("mesh"), authority("mesh")]), 403),
    ] {
        world.policy.publish(guarded(AuthorizationAction::Allow, permission));
        for version in [Http::One, Http::Two] {
            assert_eq!(world.mutual(version).await.send(plain_get("/")).await.unwrap().status(), status, "{version:?}");
            let caller = "spiffe://cluster.local/ns/default/sa/productpage";
            audit::assert_decided(&world.policy.load_full(), status, Some(caller), &version);
        }
    }
    // Without TLS no name was asked for.
    world.policy.publish(guarded(AuthorizationAction::Allow, Permission::Not(Box::new(asked("")))));
    assert_eq!(world.plain(Http::Two).await.send(plain_get("/")).await.unwrap().status(), 403);
    assert_eq!(world.mutual(Http::Two).await.send(plain_get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn s74_after_an_upgrade_that_is_refused_nothing_more_is_read() {
    let world = echo(no_admin()).await;
    let next = "GET /smuggled HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for head in [
        "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        // Refused by policy, and by form.
        "GET /admin HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "GET /a%2fb HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ] {
        let (codes, answers) = statuses(&world, &format!("{head}{next}")).await;
        assert!(codes.len() == 1 && !answers.contains("smuggled"), "{head}{answers}");
        assert!(answers.contains("connection: close\r\n"), "{answers}");
    }
    // The controls: without an upgrade the connection takes the next request; one that is made belongs to the application.
    let plain = "GET /chat HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(statuses(&world, &format!("{plain}{next}")).await.0, [200, 200]);
    let refusing = tower::service_fn(|request: Request<Body>| async move {
        let mut response = Response::new(http_body_util::Full::<bytes::Bytes>::from(request.uri().to_string()));
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        Ok::<_, BoxError>(response)
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), refusing).await;
    let connect = "CONNECT b:80 HTTP/1.1\r\nhost: b:80\r\n\r\n";
    let (codes, answers) = statuses(&world, &format!("{connect}{next}")).await;
    assert!(codes == [502] && !answers.contains("smuggled"), "{answers}");
}

#[tokio::test]
async fn s75_what_http1_could_not_carry_is_refused_of_http2() {
    let world = World::hello(InboundTls::Permissive).await;
    let with = |name: &'static str, value: &'static str| request(1, &get("/", &[(name, value)]));
    let pseudo = |place: usize, value: &'static str| {
        let mut headers = get("/", &[]);
        headers[place].1 = value;
        request(1, &headers)
    };
    let body = |announced: &'static str, body: &[u8]| {
        let mut headers = get("/", &[("content-length", announced)]);
        headers[0].1 = "POST";
        let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
        [head, frame(DATA, END_STREAM, 1, body)].concat()
    };
    for (name, bytes) in [
        ("a line in a value", with("x-a", "b\r\nx-role: admin")),
        ("half a line in a value", with("x-a", "b\nx-role: admin")),
        ("an end of a head in a value", with("x-a", "b\r\n\r\nGET /admin HTTP/1.1\r\n")),
        ("a NUL in a value", with("x-a", "b\0c")),
        ("a line in a name", with("x-a: b\r\nx-role", "admin")),
        ("a colon in a name", with("x-role:", "admin")),
        ("a space in a name", with("x-role ", "admin")),
        ("a name of nothing", with("", "admin")),
        ("a body's framing", with("transfer-encoding", "chunked")),
        ("a connection's header", with("connection", "x-role")),
        ("another one", with("proxy-connection", "keep-alive")),
        ("an upgrade", with("upgrade", "websocket")),
        ("a request in the path", pseudo(3, "/ HTTP/1.1\r\nhost: b\r\n\r\nGET /admin")),
        ("a space in the path", pseudo(3, "/a b")),
        ("a request in the method", pseudo(0, "GET /admin HTTP/1.1\r\n\r\nGET")),
        ("a line in the authority", pseudo(2, "reviews\r\nx-role: admin")),
        ("two lengths", request(1, &get("/", &[("content-length", "0"), ("content-length", "1")]))),
    ] {
        assert_ne!(verdict(&world, &bytes).await, Served, "{name}");
    }
    // The body is read by whoever takes it: here nobody does, so what counts is that it makes no second message.
    let reading = tower::service_fn(|request: Request<Body>| async move {
        let read = http_body_util::BodyExt::collect(request.into_body()).await?;
        text(read.to_bytes())
    });
    let reader = World::start(policy(InboundTls::Permissive), Config::default(), reading).await;
    assert_ne!(verdict(&reader, &body("9", b"short")).await, Served, "less body than announced");
    assert_ne!(verdict(&reader, &body("1", b"GET /admin HTTP/1.1")).await, Served, "more body than announced");
    // The controls.
    assert_eq!(verdict(&reader, &body("5", b"short")).await, Served);
    for bytes in [with("x-a", "b"), with("te", "trailers"), pseudo(3, "/a%20b")] {
        assert_eq!(verdict(&world, &bytes).await, Served);
    }
}

#[tokio::test]
async fn s76_a_body_that_nobody_read_is_no_request() {
    let world = echo(no_admin()).await;
    let hidden = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let next = "GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let large = hidden.repeat(10_000);
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for target in ["/admin", "/a%2fb", "/unread"] {
        for body in [hidden, &*large] {
            let length = format!("content-length: {}\r\n\r\n{body}", body.len());
            let chunks = format!("transfer-encoding: chunked\r\n\r\n{}", chunked(body));
            for rest in [length, chunks] {
                let (codes, answers) =
                    statuses(&world, &format!("POST {target} HTTP/1.1\r\nhost: a\r\n{rest}{next}")).await;
                assert!(!answers.contains("smuggled"), "{target}: {answers}");
                // Passed over, or the connection has ended; of one that ended before all was written nothing may be left.
                assert!(codes.len() <= 2 && codes.get(1).is_none_or(|code| *code == 200), "{target}: {codes:?}");
            }
        }
    }
    // The control: without a body it is a request.
    let (codes, answers) = statuses(&world, &format!("POST /admin HTTP/1.1\r\nhost: a\r\n\r\n{hidden}{next}")).await;
    assert!(codes == [403, 200, 200] && answers.contains("smuggled"), "{answers}");
}

#[tokio::test]
async fn s79_the_limit_on_streams_holds_before_it_was_acknowledged() {
    for (limit, expected) in [(16, 16), (256, 100)] {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            async {
                std::future::pending::<()>().await;
                text("never")
            }
        });
        let mut config = Config::default();
        config.max_concurrent_streams = limit;
        let world = World::start(policy(InboundTls::Permissive), config, service).await;
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        bytes.extend((0..100).flat_map(|n| request(2 * n + 1, &get("/", &[]))));
        bytes.extend(frame(PING, 0, 0, b"the last"));
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        // All has been read when the ping is answered; the settings of the server are never acknowledged.
        within(async {
            loop {
                let mut head = [0; 9];
                tcp.read_exact(&mut head).await.unwrap();
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                tcp.read_exact(&mut payload).await.unwrap();
                if head[3] == PING && payload == b"the last" {
                    return;
                }
            }
        })
        .await;
        crate::kit::eventually(|| (begun.load(Ordering::Relaxed) >= expected).then_some(())).await;
        assert_eq!(begun.load(Ordering::Relaxed), expected, "of a limit of {limit}");
    }
}

#[tokio::test]
async fn s80_headers_are_counted_as_they_are_decoded() {
    let mut config = Config::default();
    config.max_headers = 10_000;
    let world =
        World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await;
    // One that goes into the table (RFC 7541, section 6.2.1), and references to it of one byte each.
    let crumbs = |name: &str, size: usize, times: usize| {
        let mut header = block(&[(name, &*"c".repeat(size))]);
        header[0] = 0x40;
        let block = [block(&get("/", &[])), header, vec![0x80 | 62; times]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    for name in ["cookie", "x-crumb"] {
        assert_eq!(verdict(&world, &crumbs(name, 1000, 40)).await, Served, "{name}");
        for (size, times) in [(1000, 100), (1000, 10_000), (10, 3000), (1, 5000)] {
            assert_ne!(verdict(&world, &crumbs(name, size, times)).await, Served, "{name}: {size} times {times}");
        }
    }
    // An authority counts like any other; and what was refused costs nobody else anything.
    let mut long = get("/", &[]);
    let authority = "a".repeat(70_000);
    long[2].1 = &authority;
    assert_ne!(verdict(&world, &request(1, &long)).await, Served);
    assert_eq!(verdict(&world, &request(1, &get("/", &[]))).await, Served);
}
