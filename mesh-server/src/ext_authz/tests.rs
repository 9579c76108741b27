//! The protocol as `envoy-types` has it: what is written there and here is the same.

use std::convert::Infallible;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method};
use envoy_types::pb::envoy::config::core::v3::{HeaderValue as HeaderProto, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3 as proto;
use envoy_types::pb::google::rpc::Status;
use mesh_core::authz::{CheckBody, HeaderChange, Refusal};
use mesh_core::context::SentHost;
use mesh_core::policy::{HeaderAction, HeaderWrite, HttpCheck};
use prost::Message;
use tower::service_fn;

use super::grpc::{attributes, read, unframe};
use super::*;

fn settings() -> AuthorizerService {
    AuthorizerService {
        protocol: AuthorizerProtocol::Grpc,
        target: "opa.auth:9191".into(),
        timeout: Duration::from_secs(1),
        fail_open: false,
        status_on_error: 503,
        body: None,
    }
}

fn option(name: &str, value: &str) -> HeaderValueOption {
    let header = HeaderProto { key: name.into(), value: value.into(), ..Default::default() };
    HeaderValueOption { header: Some(header), ..Default::default() }
}

fn answer(code: i32, response: Option<proto::check_response::HttpResponse>) -> Vec<u8> {
    let status = Some(Status { code, ..Default::default() });
    proto::CheckResponse { status, http_response: response, ..Default::default() }.encode_to_vec()
}

fn understood(message: &[u8]) -> Result<CheckResponse, String> {
    read(Bytes::copy_from_slice(message))
}

fn question() -> CheckRequest {
    let mut question = CheckRequest::new(Method::POST, "/a?x=1", ([10, 0, 0, 9], 8080).into());
    question.caller = Some("spiffe://cluster.local/ns/a/sa/web".parse().unwrap());
    question.own = Some("spiffe://cluster.local/ns/b/sa/api".parse().unwrap());
    question.source = Some(([10, 0, 0, 1], 4000).into());
    question.authority = "api:8080".into();
    question.server_name = "api.test".into();
    for (name, value) in
        [("x-a", "1"), ("x-a", "2"), ("host", "api:8080"), ("content-length", "7"), ("x-request-id", "r")]
    {
        question.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    question
}

#[test]
fn the_question_is_envoys() {
    let sent = attributes(question(), false).encode_to_vec();
    let seen = proto::CheckRequest::decode(&sent[..]).unwrap().attributes.unwrap();
    let (source, destination) = (seen.source.unwrap(), seen.destination.unwrap());
    assert_eq!(source.principal, "spiffe://cluster.local/ns/a/sa/web");
    assert_eq!(destination.principal, "spiffe://cluster.local/ns/b/sa/api");
    use envoy_types::pb::envoy::config::core::v3::{address::Address, socket_address::PortSpecifier};
    let Some(Address::SocketAddress(address)) = source.address.unwrap().address else { panic!() };
    assert_eq!((address.address.as_str(), address.port_specifier), ("10.0.0.1", Some(PortSpecifier::PortValue(4000))));
    assert_eq!(seen.tls_session.unwrap().sni, "api.test");
    let http = seen.request.unwrap().http.unwrap();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        (http.method, http.path, http.host, http.scheme, http.size, http.protocol, http.id),
        (text("POST"), text("/a?x=1"), text("api:8080"), text("https"), 7, text("HTTP/1.1"), text("r"))
    );
    assert_eq!((http.headers["x-a"].as_str(), http.headers[":path"].as_str()), ("1,2", "/a?x=1"));
    assert_eq!(http.headers.get("host"), None, "it is :authority");
}

#[test]
fn a_body_is_told_as_text_or_as_bytes_and_whether_there_is_more() {
    let http = |as_bytes: bool, body: Option<(&'static [u8], bool)>| {
        let mut question = question();
        question.body = body.map(|(bytes, partial)| CheckBody { bytes: Bytes::from_static(bytes), partial });
        let sent = attributes(question, as_bytes).encode_to_vec();
        let seen = proto::CheckRequest::decode(&sent[..]).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        let partial = seen.headers.get("x-envoy-auth-partial-body").cloned();
        (seen.body, seen.raw_body.to_vec(), partial)
    };
    let (none, yes, no) = (String::new(), Some("true".to_owned()), Some("false".to_owned()));
    assert_eq!(http(false, None), (none.clone(), vec![], None));
    assert_eq!(http(false, Some((b"a=1", false))), ("a=1".to_owned(), vec![], no));
    assert_eq!(http(false, Some((b"a\xff", true))), ("a\u{fffd}".to_owned(), vec![], yes.clone()));
    assert_eq!(http(true, Some((b"a\xff", true))), (none, b"a\xff".to_vec(), yes));
}

#[test]
fn a_yes_changes_headers_as_it_says() {
    use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
    use envoy_types::pb::google::protobuf::BoolValue;
    let mut added = option("x-added", "1");
    #[allow(deprecated)]
    {
        added.append = Some(BoolValue { value: true });
    }
    let absent = HeaderValueOption { append_action: HeaderAppendAction::AddIfAbsent.into(), ..option("x-absent", "1") };
    let ok = proto::OkHttpResponse {
        headers: vec![option("x-user", "jane"), added, absent],
        headers_to_remove: vec!["x-secret".into(), ":path".into()],
        response_headers_to_add: vec![option("x-checked", "1")],
        ..Default::default()
    };
    let said = understood(&answer(0, Some(proto::check_response::HttpResponse::OkResponse(ok))));
    let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let (user, added, absent, checked) =
        (pair("x-user", "jane"), pair("x-added", "1"), pair("x-absent", "1"), pair("x-checked", "1"));
    assert_eq!(
        said,
        Ok(CheckResponse::Allowed {
            request: vec![
                HeaderChange::Set(user.0, user.1),
                HeaderChange::Append(added.0, added.1),
                HeaderChange::SetIfAbsent(absent.0, absent.1),
                HeaderChange::Remove(HeaderName::from_static("x-secret")),
            ],
            response: vec![HeaderChange::Append(checked.0, checked.1)],
        })
    );
    assert_eq!(understood(&answer(0, None)), Ok(CheckResponse::allowed()));
}

#[test]
fn a_no_has_the_authorizers_status_headers_and_body() {
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    let denied = |code| proto::DeniedHttpResponse {
        status: Some(HttpStatus { code }),
        headers: vec![option("location", "https://login.test")],
        body: "log in".into(),
    };
    let said = |status, code| {
        let response = proto::check_response::HttpResponse::DeniedResponse(denied(code));
        match understood(&answer(status, Some(response))) {
            Ok(CheckResponse::Denied(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    };
    let refusal = said(16, 302);
    assert_eq!((refusal.status.as_u16(), &refusal.body[..]), (302, &b"log in"[..]));
    assert_eq!(refusal.headers["location"], "https://login.test");
    // A status that no answer has is no permission.
    assert_eq!(said(7, 0).status, StatusCode::FORBIDDEN);
    assert_eq!(said(7, 101).status, StatusCode::FORBIDDEN);
    // Nor is a yes that comes with a refusal.
    assert_eq!(said(0, 401).status, StatusCode::UNAUTHORIZED);
    assert_eq!(understood(&answer(7, None)), Ok(CheckResponse::Denied(Refusal::new(StatusCode::FORBIDDEN))));
}

#[test]
fn s54_an_answer_that_is_not_understood_is_none() {
    assert!(understood(&[]).is_err(), "it says nothing");
    assert!(understood(&[0xff, 0xff]).is_err());
    let ok = |ok| answer(0, Some(proto::check_response::HttpResponse::OkResponse(ok)));
    let query = proto::OkHttpResponse { query_parameters_to_remove: vec!["x".into()], ..Default::default() };
    assert!(understood(&ok(query)).unwrap_err().contains("query"));
    let header = proto::OkHttpResponse { headers: vec![option("no header", "1")], ..Default::default() };
    assert!(understood(&ok(header)).is_err());
    let value = proto::OkHttpResponse { headers: vec![option("x-a", "a\nb")], ..Default::default() };
    assert!(understood(&ok(value)).is_err());
    let good = proto::OkHttpResponse { headers: vec![option("x-a", "a b")], ..Default::default() };
    assert!(matches!(understood(&ok(good)), Ok(CheckResponse::Allowed { .. })), "the control");
}

#[test]
fn an_answer_has_a_limited_number_of_headers() {
    // Many more than a map of headers can hold fit into an answer.
    let many = |count: usize| (0..count).map(|i| option(&format!("x-{i}"), "")).collect::<Vec<_>>();
    let ok = |headers, response| {
        let ok = proto::OkHttpResponse { headers, response_headers_to_add: response, ..Default::default() };
        understood(&answer(0, Some(proto::check_response::HttpResponse::OkResponse(ok))))
    };
    assert!(ok(many(50), many(50)).is_ok(), "the control");
    for (request, response) in [(50, 51), (40_000, 0), (0, 40_000)] {
        assert!(ok(many(request), many(response)).unwrap_err().contains("at most 100"), "{request} {response}");
    }
    let denied = proto::DeniedHttpResponse { headers: many(40_000), ..Default::default() };
    let said = understood(&answer(7, Some(proto::check_response::HttpResponse::DeniedResponse(denied))));
    let Ok(CheckResponse::Denied(refusal)) = said else { panic!("{said:?}") };
    assert_eq!((refusal.status.as_u16(), refusal.headers.len()), (403, 100), "a no stays one");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
        let _ = understood(&bytes);
        let _ = unframe(bytes.into());
    }
}

/// What comes of an exchange with a service that answers so.
async fn exchanged(
    response: Result<Response<Full<Bytes>>, &'static str>,
    settings: AuthorizerService,
) -> Result<CheckResponse, Unavailable> {
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        assert_eq!(request.uri(), "http://opa.auth:9191/envoy.service.auth.v3.Authorization/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let response = response.clone();
        async move { response.map_err(BoxError::from) }
    });
    ExtAuthz::new(service, settings).unwrap().check(question()).await
}

fn grpc(status: &'static str, message: &[u8]) -> Response<Full<Bytes>> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, message].concat();
    Response::builder().header("grpc-status", status).body(Full::new(body.into())).unwrap()
}

fn http(status: u16) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::default()).unwrap()
}

#[tokio::test]
async fn s54_without_an_answer_the_provider_says_what_holds() {
    for fail_open in [false, true] {
        let settings = || AuthorizerService { fail_open, ..settings() };
        let yes = exchanged(Ok(grpc("0", &answer(0, None))), settings()).await;
        assert_eq!(yes.unwrap(), CheckResponse::allowed());
        for (response, why) in [
            (Err("no route"), "no route"),
            (Ok(http(500)), "HTTP status 500"),
            (Ok(http(503)), "HTTP status 503"),
            (Ok(grpc("4", &[])), "gRPC status 4"),
            (Ok(grpc("14", &[])), "gRPC status 14"),
        ] {
            let unavailable = exchanged(response, settings()).await.unwrap_err();
            assert!(unavailable.reason.contains(why), "{unavailable}");
            assert_eq!((unavailable.fail_open, unavailable.status.as_u16()), (fail_open, 503));
        }
    }
}

#[tokio::test]
async fn s54_an_answer_that_came_and_is_not_understood_opens_nothing_for_a_provider_that_fails_open() {
    let mut compressed = grpc("0", &answer(0, None));
    *compressed.body_mut() = Full::new(Bytes::from_static(&[1, 0, 0, 0, 0]));
    let mut nothing = grpc("0", &[]);
    *nothing.body_mut() = Full::default();
    let header = proto::OkHttpResponse { headers: vec![option("x-user", "a\nb")], ..Default::default() };
    let header = answer(0, Some(proto::check_response::HttpResponse::OkResponse(header)));
    for (response, why) in [
        // What a caller with large or odd headers can bring an authorizer to say, and what is no word of one.
        (grpc("3", &[]), "gRPC status 3"),
        (grpc("8", &[]), "gRPC status 8"),
        (grpc("2", &[]), "gRPC status 2"),
        (grpc("what", &[]), "gRPC status 2"),
        (http(413), "HTTP status 413"),
        (http(431), "HTTP status 431"),
        (http(302), "HTTP status 302"),
        (http(200), "no gRPC status"),
        (compressed, "not one plain message"),
        (nothing, "no message"),
        (grpc("0", &[]), "neither yes nor no"),
        (grpc("0", &[0xff, 0xff]), "cannot be read"),
        (grpc("0", &header), "x-user"),
        (grpc("0", &[0; MAX_ANSWER]), "cannot be read"),
    ] {
        let open = AuthorizerService { fail_open: true, ..settings() };
        let garbled = exchanged(Ok(response), open).await.unwrap_err();
        assert!(garbled.reason.contains(why), "{garbled}");
        assert_eq!((garbled.fail_open, garbled.status.as_u16()), (false, 503), "{why}");
    }
    let open = AuthorizerService { fail_open: true, ..settings() };
    let understood = exchanged(Ok(grpc("0", &answer(0, None))), open).await;
    assert_eq!(understood.unwrap(), CheckResponse::allowed(), "the control");
}

#[tokio::test]
async fn s54_a_no_with_a_header_that_cannot_be_read_is_a_no_also_for_a_provider_that_fails_open() {
    let unknown = HeaderValueOption { append_action: 99, ..option("x-a", "1") };
    for odd in [option("x y", "1"), option("x-a", "a\nb"), option("", ""), unknown] {
        let headers = vec![odd.clone(), option("location", "https://login.test")];
        let denied = proto::DeniedHttpResponse { headers, ..Default::default() };
        let message = answer(7, Some(proto::check_response::HttpResponse::DeniedResponse(denied)));
        let service = service_fn(move |_: Request<Full<Bytes>>| {
            let response = grpc("0", &message);
            async move { Ok::<_, Infallible>(response) }
        });
        let open = AuthorizerService { fail_open: true, ..settings() };
        let said = ExtAuthz::new(service, open).unwrap().check(question()).await;
        let Ok(CheckResponse::Denied(refusal)) = said else { panic!("{odd:?}: {said:?}") };
        assert_eq!((refusal.status.as_u16(), refusal.headers.len()), (403, 1), "{odd:?}");
        assert_eq!(refusal.headers["location"], "https://login.test");
    }
}

#[tokio::test(start_paused = true)]
async fn s54_an_answer_that_does_not_come_in_time_is_none() {
    let never =
        service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let asked = tokio::time::Instant::now();
    let unavailable = ExtAuthz::new(never, settings()).unwrap().check(question()).await.unwrap_err();
    assert_eq!(asked.elapsed(), Duration::from_secs(1));
    assert!(unavailable.reason.contains("no answer within 1s"), "{unavailable}");
    // The control: one that comes before the time is over.
    let late = service_fn(|_: Request<Full<Bytes>>| async {
        mesh_testkit::clock::pass(Duration::from_millis(999)).await;
        Ok::<_, Infallible>(grpc("0", &answer(0, None)))
    });
    assert_eq!(ExtAuthz::new(late, settings()).unwrap().check(question()).await.unwrap(), CheckResponse::allowed());
}

#[test]
fn a_provider_that_cannot_be_asked_is_refused() {
    for (target, status) in [("no host", 403), ("", 403), ("opa:9191", 20)] {
        let settings = AuthorizerService { target: target.into(), status_on_error: status, ..settings() };
        assert!(ExtAuthz::new((), settings).is_err(), "{target} {status}");
    }
    for (most, taken) in [(CheckedBody::MOST, true), (CheckedBody::MOST + 1, false), (u32::MAX, false)] {
        let max_bytes = std::num::NonZeroU32::new(most).unwrap();
        let body = Some(CheckedBody { max_bytes, allow_partial: true, as_bytes: true });
        assert_eq!(ExtAuthz::new((), AuthorizerService { body, ..settings() }).is_ok(), taken, "{most}");
    }
}

fn over_http() -> AuthorizerService {
    let names = |list: &[&str]| list.iter().map(|name| name.parse().unwrap()).collect();
    let (name, value) = (HeaderName::from_static("x-from"), HeaderValue::from_static("mesh"));
    let how = HttpCheck {
        path_prefix: "/check".into(),
        request_headers: names(&["cookie", "x-a*", "x-from", "host", "content-length"]),
        added_headers: vec![HeaderWrite { name, value, action: HeaderAction::Overwrite }],
        upstream_on_allow: names(&["x-user", "host"]),
        downstream_on_allow: names(&["set-cookie"]),
        downstream_on_deny: names(&["*-cookie"]),
    };
    AuthorizerService { protocol: AuthorizerProtocol::Http(Box::new(how)), ..settings() }
}

/// What an authorizer over HTTP is sent, and what comes of its answer.
async fn asked(
    question: CheckRequest,
    settings: AuthorizerService,
    answer: Response<Full<Bytes>>,
) -> (Result<CheckResponse, Unavailable>, Vec<Request<Bytes>>) {
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let kept = seen.clone();
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        let (kept, answer) = (kept.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            kept.lock().push(Request::from_parts(head, body));
            Ok::<_, Infallible>(answer)
        }
    });
    let answered = ExtAuthz::new(service, settings).unwrap().check(question).await;
    let seen = std::mem::take(&mut *seen.lock());
    (answered, seen)
}

fn answers(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

#[tokio::test]
async fn over_http_an_authorizer_is_asked_by_a_request_like_the_one_in_question() {
    let mut of = question();
    for (name, value) in
        [("authorization", "Bearer t"), ("x-secret", "1"), ("x-from", "elsewhere"), ("expect", "100-continue")]
    {
        of.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    of.body = Some(CheckBody { bytes: Bytes::from_static(b"a=1"), partial: true });
    let (_, seen) = asked(of, over_http(), answers(200, &[], "")).await;
    let [seen] = &seen[..] else { panic!("one question: {seen:?}") };
    assert_eq!((seen.method(), seen.uri()), (&Method::POST, &"http://opa.auth:9191/check/a?x=1".parse().unwrap()));
    let told: Vec<_> = seen.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(
        told,
        [
            ("x-a", "1"),
            ("x-a", "2"),
            ("authorization", "Bearer t"),
            ("x-from", "mesh"),
            ("x-envoy-auth-partial-body", "true")
        ]
    );
    assert_eq!(seen.extensions().get::<SentHost>().unwrap().0, "api:8080");
    assert_eq!(&seen.body()[..], b"a=1");
    // By default it is told of no header but one.
    let plain = AuthorizerService { protocol: AuthorizerProtocol::Http(Box::default()), ..settings() };
    let (_, seen) = asked(question(), plain, answers(200, &[], "")).await;
    assert!(seen[0].uri() == "http://opa.auth:9191/a?x=1" && seen[0].headers().is_empty(), "{seen:?}");
}

/// What the caller says of time, retries and faults would be said of the question, and a provider that fails open opens
/// without an answer.
#[tokio::test]
async fn s54_over_http_the_callers_orders_about_its_request_are_none_about_the_question() {
    let orders = [
        "grpc-timeout",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-fault-abort-request",
        "x-envoy-fault-delay-request",
        "mesh-retried",
        "grpc-previous-rpc-attempts",
        "x-envoy-attempt-count",
    ];
    let mut of = question();
    for name in orders.into_iter().chain(["x-envoy-original-path"]) {
        of.headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
    }
    let request_headers = ["x-*", "grpc-*", "mesh-*"].map(|name| name.parse().unwrap()).to_vec();
    let how = HttpCheck { request_headers, ..HttpCheck::default() };
    let settings = AuthorizerService { protocol: AuthorizerProtocol::Http(Box::new(how)), ..settings() };
    let (_, seen) = asked(of, settings, answers(200, &[], "")).await;
    let told: Vec<_> = seen[0].headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(told, ["x-a", "x-request-id", "x-envoy-original-path"]);
}

#[tokio::test]
async fn over_http_200_is_a_yes_with_the_headers_that_are_wanted() {
    let headers = [
        ("x-user", "jane"),
        ("x-user", "doe"),
        ("x-other", "1"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-envoy-auth-headers-to-remove", "x-secret, :path"),
    ];
    let (said, _) = asked(question(), over_http(), answers(200, &headers, "not read")).await;
    let Ok(CheckResponse::Allowed { request, response }) = said else { panic!("{said:?}") };
    let named = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let ((user, jane), (other, doe)) = (named("x-user", "jane"), named("x-user", "doe"));
    let remove = HeaderChange::Remove(HeaderName::from_static("x-secret"));
    assert_eq!(request, [HeaderChange::Set(user, jane), HeaderChange::Append(other, doe), remove]);
    let cookie = |value| HeaderChange::Append(HeaderName::from_static("set-cookie"), HeaderValue::from_static(value));
    assert_eq!(response, [cookie("a=1"), cookie("b=2")]);
    // What is not understood is no yes, also for one that fails open.
    let garbled = answers(200, &[("x-envoy-auth-headers-to-remove", "x y")], "");
    let open = || AuthorizerService { fail_open: true, ..over_http() };
    assert!(!asked(question(), open(), garbled).await.0.unwrap_err().fail_open);
    let endless = Response::new(Full::new(Bytes::from(vec![0; MAX_ANSWER + 1])));
    assert!(!asked(question(), open(), endless).await.0.unwrap_err().fail_open);
}

#[tokio::test]
async fn over_http_another_status_is_a_no_and_a_failure_of_the_server_is_no_answer() {
    let headers = [("location", "https://login.test"), ("set-cookie", "a=1"), ("x-other", "1"), ("mesh-retried", "1")];
    for status in [302, 401, 403, 204, 429] {
        let (said, _) = asked(question(), over_http(), answers(status, &headers, "log in")).await;
        let Ok(CheckResponse::Denied(refusal)) = said else { panic!("{status}: {said:?}") };
        assert_eq!((refusal.status.as_u16(), &refusal.body[..]), (status, &b"log in"[..]));
        let told: Vec<_> = refusal.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(told, ["location", "set-cookie"], "{status}");
    }
    // Without a list the caller is told all that is not the mesh's.
    let plain = AuthorizerService { protocol: AuthorizerProtocol::Http(Box::default()), ..settings() };
    let (said, _) = asked(question(), plain, answers(401, &headers, "")).await;
    let Ok(CheckResponse::Denied(refusal)) = said else { panic!("{said:?}") };
    assert_eq!(
        refusal.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["location", "set-cookie", "x-other"]
    );
    for fail_open in [false, true] {
        let settings = AuthorizerService { fail_open, ..over_http() };
        let (said, _) = asked(question(), settings, answers(503, &[], "")).await;
        assert_eq!(said.unwrap_err().fail_open, fail_open);
    }
}

#[tokio::test]
async fn s54_a_request_without_a_path_is_denied_where_an_authorizer_is_asked_over_http() {
    for (method, path) in [(Method::CONNECT, ""), (Method::CONNECT, "/"), (Method::OPTIONS, "*")] {
        let mut of = question();
        (of.method, of.path_and_query) = (method, path.to_owned());
        let open = AuthorizerService { fail_open: true, ..over_http() };
        let (said, seen) = asked(of, open, answers(200, &[], "")).await;
        assert!(!said.unwrap_err().fail_open && seen.is_empty(), "{path}");
    }
    let (said, seen) = asked(question(), over_http(), answers(200, &[], "")).await;
    assert!(matches!(said, Ok(CheckResponse::Allowed { .. })) && seen.len() == 1, "the control: with a path");
}
