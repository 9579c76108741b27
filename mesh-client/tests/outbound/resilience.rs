//! Retries, timeouts, limits.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use mesh_client::{Cause, Client, Error, Io};
use mesh_core::context::{RequestContext, scope};
use mesh_core::error::{BoxError, Code, Fault, Retry};
use mesh_core::health::Standing;
use mesh_core::policy::{
    Address, Balancer, CircuitBreakers, Cluster, ClusterState, ConnectionOptions, DropOverload, Endpoint, Endpoints,
    Forward, Listener, LoadReport, OutlierDetection, PerMillion, PerMillionRatio, RetryBudget, RetryOn, RetryPolicy,
    Snapshot, UpstreamProtocol,
};
use mesh_core::telemetry::load::LoadStore;
use mesh_testkit::{Behaviour, EchoServer, FixedSource, Received, policy};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::{
    TARGET, answer, client_of, cluster, fetch, forward_with, get, later, post, read, retrying, server_of, snapshot_with,
};

fn http2() -> Cluster {
    let connection = ConnectionOptions { protocol: UpstreamProtocol::Http2, ..ConnectionOptions::default() };
    Cluster { connection, ..cluster("test") }
}

/// With a budget of so many retries a second, if there is to be one.
fn budgeted(mut snapshot: Snapshot, retries: Option<u32>) -> Snapshot {
    let mut routes = (*snapshot.routes).clone();
    routes.retry_budget = retries.map(|min| RetryBudget {
        retry_ratio: PerMillionRatio(0),
        min_retries_per_second: min,
        ttl: Duration::from_secs(1),
    });
    snapshot.routes = routes.into();
    snapshot
}

fn on_503() -> RetryOn {
    RetryOn { retriable_status_codes: true, status_codes: vec![503], ..RetryOn::default() }
}

/// A destination of the server behind this many addresses at which nobody listens, tried in this order.
fn behind(dead: usize, retry: Option<RetryPolicy>, server: &EchoServer) -> Client {
    let first = Cluster { balancer: Balancer::PickFirst { shuffle: false }, ..cluster("test") };
    // All at once: a port that is free again may be the next one that is given.
    let dead: Vec<_> = (0..dead).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let dead = dead.into_iter().map(|dead| Endpoint::new(Address::Socket(dead.local_addr().unwrap())));
    let endpoints = policy::endpoints(&"test".into(), dead.chain([server.endpoint()]).collect());
    let mut snapshot = snapshot_with(forward_with(retry), first.clone(), &[]);
    snapshot.clusters.insert("test".into(), ClusterState::Ready { cluster: first.into(), endpoints: endpoints.into() });
    client_of(snapshot).0
}

#[tokio::test]
async fn a_request_for_which_no_connection_came_about_goes_to_another_member() {
    let server = EchoServer::start("alive").await;
    let client = behind(5, None, &server);
    let response = read(client.send(post("/", "pay")).await.unwrap()).await.unwrap();
    assert_eq!((server_of(&response), server.requests()), ("alive", 1));
    // So many and no more: a dead fleet costs a request no more than that.
    let client = behind(6, None, &server);
    let error = client.send(post("/", "pay")).await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::CONNECT_FAILED, 6), "{error}");
    // Those are passed over for a while.
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "alive");
    // Beyond that it is the policy's.
    let on = RetryOn { connect_failure: true, ..RetryOn::default() };
    let client = behind(6, Some(retrying(1, on)), &server);
    assert_eq!(server_of(&fetch(&client, "/").await.unwrap()), "alive");
}

/// A connector whose first connections are closed before anything can go out.
fn closing_first(count: usize, snapshot: Snapshot) -> Client {
    let made = AtomicUsize::new(0);
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |address: Address| {
        let closed = made.fetch_add(1, Ordering::Relaxed) < count;
        async move {
            let Address::Socket(address) = address else { unreachable!("it is one") };
            Ok(match closed {
                true => Box::new(tokio::io::duplex(64).0) as Box<dyn Io>,
                false => Box::new(tokio::net::TcpStream::connect(address).await?),
            })
        }
    });
    builder.build()
}

#[tokio::test]
async fn a_request_that_did_not_go_out_is_sent_to_another_member() {
    let (one, other) = (EchoServer::start("one").await, EchoServer::start("other").await);
    let client = closing_first(1, snapshot_with(forward_with(None), cluster("test"), &[&one, &other]));
    let response = client.send(post("/", "pay")).await.unwrap();
    assert_eq!((response.status().as_u16(), one.requests() + other.requests()), (200, 1));
    assert_eq!(read(response).await.unwrap().body(), "pay");
}

#[tokio::test]
async fn connections_that_close_in_a_row_before_a_request_goes_out_do_not_lose_it_a6() {
    for (closed, answered) in [(3, true), (4, false)] {
        let server = EchoServer::start("one").await;
        let client = closing_first(closed, snapshot_with(forward_with(None), cluster("test"), &[&server]));
        match client.send(post("/", "pay")).await {
            Ok(response) => assert!(answered && read(response).await.unwrap().body() == "pay"),
            Err(error) => {
                assert!(!answered && (error.code(), error.attempts()) == (Code::CONNECTION_LOST, 4), "{error}")
            }
        }
        assert_eq!(server.requests(), u64::from(answered));
    }
}

#[tokio::test]
async fn a_request_whose_http2_connection_breaks_goes_elsewhere_if_policy_says_so_and_pays() {
    let round_robin = Cluster { balancer: Balancer::RoundRobin, ..http2() };
    let told = || Some(retrying(1, RetryOn { reset: true, ..RetryOn::default() }));
    for (retry, budget, answered) in [(told(), None, true), (told(), Some(0), false), (None, None, false)] {
        let (one, other) = (EchoServer::start("one").await, EchoServer::start("other").await);
        let snapshot = snapshot_with(forward_with(retry), round_robin.clone(), &[&one, &other]);
        let (client, _) = client_of(budgeted(snapshot, budget));
        for _ in 0..4 {
            fetch(&client, "/").await.unwrap();
        }
        let explained = client.explain(&Request::get(format!("http://{TARGET}/")).body(()).unwrap());
        assert_eq!(explained.retry.and_then(|retry| retry.budget), budget.map(|retries| retries > 0));
        let before = one.requests();
        // At the same one it would break again.
        one.script([Behaviour::CloseConnection; 2]);
        let mut last = None;
        while one.requests() == before {
            last = Some(fetch(&client, "/").await);
        }
        match last.unwrap() {
            Ok(response) => assert!(answered && server_of(&response) == "other"),
            Err(error) => assert!(!answered && error.code() == Code::CONNECTION_LOST, "{error}"),
        }
    }
}

/// Sends a request for whose connection the server has an end as it comes, over a connection that served before. Gives
/// whether it was answered, and those that the server saw.
async fn meets_the_end(client: &Client, server: &EchoServer, served: RequestContext) -> (bool, Vec<Received>) {
    fetch(client, "/").await.unwrap();
    let before = server.received().len();
    server.script([Behaviour::CloseConnection]);
    let answer = scope(served.into(), async { fetch(client, "/").await }).await;
    answer.as_ref().err().iter().for_each(|error| assert_eq!(error.code(), Code::CONNECTION_LOST, "{error}"));
    (answer.is_ok(), server.received().split_off(before))
}

fn served(retried: bool) -> RequestContext {
    let mut context = RequestContext::from_headers(&HeaderMap::new());
    context.retried = retried;
    context
}

/// RFC 9112, section 9.3.1: over HTTP/1.1 it cannot be told from a connection that closed while nobody used it.
#[tokio::test]
async fn what_goes_again_as_its_kept_connection_closes_is_a_retry_made_once_and_never_for_a_retry() {
    let server = EchoServer::start("one").await;
    let no_attempts = || Some(retrying(0, RetryOn { reset: true, ..RetryOn::default() }));
    let other_wish = || Some(retrying(1, on_503()));
    for (retry, budget, retried, again) in [
        (None, None, false, true),
        (other_wish(), Some(10), false, true),
        // It has to be paid for.
        (None, Some(0), false, false),
        // Nobody retries for who is a retry.
        (None, None, true, false),
        (other_wish(), None, true, false),
        // Policy says that there are none.
        (no_attempts(), None, false, false),
    ] {
        let case = format!("{retry:?}, {budget:?}, {retried}");
        let snapshot = snapshot_with(forward_with(retry), cluster("test"), &[&server]);
        let (client, _) = client_of(budgeted(snapshot, budget));
        let (answered, seen) = meets_the_end(&client, &server, served(retried)).await;
        assert_eq!((answered, seen.len()), (again, 1 + usize::from(again)), "{case}");
        assert_eq!(seen[0].headers.contains_key("mesh-retried"), retried, "{case}");
        assert!(!again || seen[1].headers.contains_key("mesh-retried"), "those further down are told: {case}");
    }
    // Once: the fresh connection that closes as well is an answer. It was counted as a try.
    let (client, _) = client_of(snapshot_with(forward_with(None), cluster("test"), &[&server]));
    fetch(&client, "/").await.unwrap();
    server.script([Behaviour::CloseConnection; 2]);
    let error = fetch(&client, "/").await.unwrap_err();
    assert_eq!((error.code(), error.attempts()), (Code::CONNECTION_LOST, 2), "{error}");
    // A breaker that has no place for a retry has none for this one.
    let none = CircuitBreakers { max_retries: Some(0), ..CircuitBreakers::default() };
    let (client, _) =
        client_of(snapshot_with(forward_with(None), Cluster { breaker: none, ..cluster("test") }, &[&server]));
    assert!(!meets_the_end(&client, &server, served(false)).await.0);
}

#[tokio::test]
async fn what_goes_again_as_its_kept_connection_closes_takes_its_retry_out_of_the_budget() {
    let server = EchoServer::start("one").await;
    // One retry from the third request on, and none more before the sixth.
    let mut snapshot = snapshot_with(forward_with(Some(retrying(1, on_503()))), cluster("test"), &[&server]);
    let mut routes = (*snapshot.routes).clone();
    let (retry_ratio, ttl) = (PerMillionRatio(340_000), Duration::from_secs(60));
    routes.retry_budget = Some(RetryBudget { retry_ratio, min_retries_per_second: 0, ttl });
    snapshot.routes = routes.into();
    for (closes, status) in [(true, 503), (false, 200)] {
        let (client, _) = client_of(snapshot.clone());
        fetch(&client, "/").await.unwrap();
        fetch(&client, "/").await.unwrap();
        if closes {
            server.script([Behaviour::CloseConnection]);
        }
        fetch(&client, "/").await.unwrap();
        server.script([Behaviour::Status(503)]);
        assert_eq!(fetch(&client, "/").await.unwrap().status(), status);
        server.script([]);
    }
}

#[tokio::test]
async fn a_refused_stream_is_retried() {
    let server = EchoServer::start("one").await;
    let on = RetryOn { refused_stream: true, ..RetryOn::default() };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on))), http2(), &[&server]));
    // The first one costs nothing, for nobody has seen the request: the retry comes after the second.
    server.script([Behaviour::RefuseStream, Behaviour::RefuseStream]);
    assert_eq!(read(client.send(post("/", "hello")).await.unwrap()).await.unwrap().body(), "hello");
    // Control: without a policy the second refusal is the answer.
    let (client, _) = client_of(snapshot_with(forward_with(None), http2(), &[&server]));
    server.script([Behaviour::RefuseStream, Behaviour::RefuseStream]);
    let error = client.send(post("/", "hello")).await.unwrap_err();
    assert_eq!((error.code(), error.retry()), (Code::STREAM_REFUSED, Retry::Safe), "{error}");
}

/// Sends a request without a body, whose answer is read to its end; with how many requests the server saw.
async fn seen(client: &Client, server: &EchoServer, method: &Method) -> (Result<u16, Code>, u64) {
    let before = server.requests();
    let request = Request::builder().method(method).uri(format!("http://{TARGET}/")).body(Empty::<Bytes>::new());
    let answer = match client.send(request.unwrap()).await {
        Ok(answer) => read(answer).await,
        Err(error) => Err(error),
    };
    (answer.map(|answer| answer.status().as_u16()).map_err(|error| error.code()), server.requests() - before)
}

const METHODS: [(Method, bool); 8] = [
    (Method::GET, true),
    (Method::HEAD, true),
    (Method::OPTIONS, true),
    (Method::TRACE, true),
    (Method::PUT, true),
    (Method::DELETE, true),
    (Method::POST, false),
    (Method::PATCH, false),
];

/// RFC 9110, section 9.2.2: where nobody wrote a retry policy, what the server may have worked on is sent again only if
/// its method allows that, and only over HTTP/1.1, where it may as well not have been looked at.
#[tokio::test]
async fn what_may_have_been_seen_is_sent_again_by_its_method_unless_a_policy_says_otherwise() {
    let server = EchoServer::start("one").await;
    let told = RetryOn { reset: true, ..on_503() };
    for (cluster, is_http2) in [(cluster("test"), false), (http2(), true)] {
        let with = |policy| client_of(snapshot_with(forward_with(Some(policy)), cluster.clone(), &[&server])).0;
        let (default, told) = (with(RetryPolicy::istio_default()), with(retrying(1, told.clone())));
        for (method, idempotent) in METHODS {
            // The connection breaks after the request went out.
            for (client, again) in [(&default, idempotent && !is_http2), (&told, true)] {
                fetch(client, "/").await.unwrap();
                server.script([Behaviour::CloseConnection]);
                let want = if again { (Ok(200), 2) } else { (Err(Code::CONNECTION_LOST), 1) };
                assert_eq!(seen(client, &server, &method).await, want, "{method} again: {again}");
            }
            // An answer stands, as in Istio, whatever the method.
            for (client, want) in [(&default, (Ok(503), 1)), (&told, (Ok(200), 2))] {
                server.script([Behaviour::Status(503)]);
                assert_eq!(seen(client, &server, &method).await, want, "{method}");
            }
        }
    }
}

#[tokio::test]
async fn what_was_not_seen_is_sent_again_whatever_its_method() {
    let server = EchoServer::start("one").await;
    let default = || Some(RetryPolicy::istio_default());
    let refused = client_of(snapshot_with(forward_with(default()), http2(), &[&server])).0;
    for (method, _) in METHODS {
        server.script([Behaviour::RefuseStream, Behaviour::RefuseStream]);
        assert_eq!(seen(&refused, &server, &method).await, (Ok(200), 3), "{method}");
        // More dead members than a request without a policy is tried at.
        assert_eq!(seen(&behind(6, default(), &server), &server, &method).await, (Ok(200), 1), "{method}");
    }
    // Control: without a policy the request is given up.
    let control = seen(&behind(6, None, &server), &server, &Method::GET).await;
    assert_eq!(control, (Err(Code::CONNECT_FAILED), 0));
}

#[tokio::test]
async fn the_last_answer_stands_when_the_attempts_are_used_up() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Status(503));
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(2, on_503()))), cluster("test"), &[&server]));
    assert_eq!(fetch(&client, "/").await.unwrap().status(), 503);
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn the_routes_timeout_ends_the_request() {
    let server = EchoServer::start("slow").await;
    server.behave(Behaviour::Hold);
    let forward = Forward { timeout: Some(Duration::from_secs(10)), ..Forward::to("test".into()) };
    let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
    let (result, ()) = tokio::join!(client.send(get("/")), later(&server, 1, Duration::from_secs(10)));
    let error = result.unwrap_err();
    assert_eq!((error.code(), error.http_status().as_u16()), (Code::TIMEOUT, 504), "{error}");
    let told = server.received()[0].headers["x-envoy-expected-rq-timeout-ms"].to_str().unwrap().parse::<u64>().unwrap();
    assert!(told <= 10_000, "{told} ms");
}

#[tokio::test]
async fn a_timeout_ends_an_answer_of_which_there_is_always_more_to_read() {
    let server = EchoServer::start("one").await;
    for (waits, ends) in [(Duration::from_secs(10), true), (Duration::from_secs(5), false)] {
        let forward = Forward { timeout: Some(Duration::from_secs(10)), ..Forward::to("test".into()) };
        let (client, _) = client_of(snapshot_with(forward, http2(), &[&server]));
        let uri = format!("http://{TARGET}/");
        // Three frames, which are here when the answer to what follows them is.
        let request = Request::post(uri).body(Full::from(vec![b'a'; 48 * 1024])).unwrap();
        let mut answer = client.send(request).await.unwrap().into_body();
        fetch(&client, "/").await.unwrap();
        tokio::time::pause();
        tokio::time::advance(waits).await;
        tokio::time::resume();
        let frame = answer.frame().await.unwrap();
        assert_eq!(frame.map_err(|error| error.code()).is_err_and(|code| code == Code::TIMEOUT), ends);
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_made_again() {
    let server = EchoServer::start("slow").await;
    server.script([Behaviour::Hold]);
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let retry = RetryPolicy { per_try_timeout: Some(Duration::from_secs(10)), ..retrying(1, on) };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retry)), cluster("test"), &[&server]));
    let (result, ()) = tokio::join!(fetch(&client, "/"), later(&server, 1, Duration::from_secs(10)));
    assert_eq!(result.unwrap().status(), 200);
    assert_eq!(server.requests(), 2);
    // Control: with no attempt left the try's end is the request's.
    server.script([Behaviour::Hold]);
    let retry = RetryPolicy { per_try_timeout: Some(Duration::from_secs(10)), ..retrying(1, RetryOn::default()) };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retry)), cluster("test"), &[&server]));
    let (result, ()) = tokio::join!(fetch(&client, "/"), later(&server, 3, Duration::from_secs(10)));
    assert!(matches!(result.unwrap_err().cause(), Cause::PerTryTimeout(_)));
}

/// A body that comes in chunks.
fn chunks(count: usize, size: usize) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static {
    let frames = (0..count).map(move |i| Ok(Frame::data(Bytes::from(vec![b'a' + (i % 26) as u8; size]))));
    StreamBody::new(stream::iter(frames))
}

#[tokio::test]
async fn a_streamed_body_is_sent_again_up_to_the_limit() {
    let server = EchoServer::start("one").await;
    for (chunk_count, status, sent) in [(64, 200, 2), (65, 503, 1)] {
        let before = server.requests();
        let snapshot = snapshot_with(forward_with(Some(retrying(1, on_503()))), cluster("test"), &[&server]);
        let (client, _) = client_of(snapshot);
        server.script([Behaviour::Status(503)]);
        let request = Request::put(format!("http://{TARGET}/")).body(chunks(chunk_count, 1024)).unwrap();
        let response = read(client.send(request).await.unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{chunk_count} KiB");
        assert_eq!(server.requests() - before, sent, "{chunk_count} KiB");
        assert_eq!(response.body().len(), chunk_count * 1024, "nothing of the body is lost");
        assert_eq!((response.body()[0], response.body()[1024]), (b'a', b'b'));
    }
}

#[tokio::test]
async fn a_failing_request_body_is_the_callers_fault_and_not_retried() {
    let server = EchoServer::start("one").await;
    let on = RetryOn { server_error: true, reset: true, ..RetryOn::default() };
    for cluster in [cluster("test"), http2()] {
        let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(3, on.clone()))), cluster, &[&server]));
        let frames: [Result<_, BoxError>; 2] = [Ok(Frame::data(Bytes::from_static(b"x"))), Err("disk failed".into())];
        let body = StreamBody::new(stream::iter(frames));
        let error = client.send(Request::post(format!("http://{TARGET}/")).body(body).unwrap()).await.unwrap_err();
        assert_eq!(error.code(), Code::REQUEST_BODY, "{error}");
        assert!(error.to_string().contains("disk failed"));
    }
    assert_eq!(server.received().len(), 0, "no request was complete");
}

/// A body of one chunk, which breaks when it is told so.
fn breaking(told: oneshot::Receiver<()>) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static {
    let broken = stream::once(async move {
        let _ = told.await;
        Err("disk failed".into())
    });
    StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"x")))]).chain(broken).boxed())
}

#[tokio::test]
async fn an_upload_that_fails_after_the_answers_head_is_not_held_against_the_endpoint() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        // Control: the server's own body breaks.
        for (ours, code) in [(true, Code::REQUEST_BODY), (false, Code::CONNECTION_LOST)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let max_ejected = PerMillion::ALL;
            let strict = OutlierDetection { consecutive_5xx: Some(1), max_ejected, ..OutlierDetection::default() };
            let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
            let strict = Cluster { outlier: Some(strict), connection, ..cluster("test") };
            let endpoint = Endpoint::new(Address::Socket(listener.local_addr().unwrap()));
            let (client, _) = client_of(policy::snapshot_of(strict, [endpoint]));
            let ([break_upload, break_answer], [upload, answered]): ([_; 2], [_; 2]) = {
                let ((a, b), (c, d)) = (oneshot::channel(), oneshot::channel());
                ([a, c], [b, d])
            };
            let answered = Mutex::new(Some(answered));
            let serve = async {
                let (io, _) = listener.accept().await.unwrap();
                answer(io, protocol, |_| Response::new(breaking(answered.lock().take().unwrap()))).await;
                std::future::pending::<()>().await;
            };
            let call = async {
                let request = Request::post(format!("http://{TARGET}/")).body(breaking(upload)).unwrap();
                let response = client.send(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let other = if ours {
                    break_upload.send(()).unwrap();
                    break_answer
                } else {
                    break_answer.send(()).unwrap();
                    break_upload
                };
                (read(response).await.unwrap_err(), other)
            };
            let error = tokio::select! {
                (error, _) = call => error,
                () = serve => unreachable!("it does not end"),
            };
            assert_eq!(error.code(), code, "{protocol:?}: {error}");
            let standing = || client.dump().destinations[0].clusters[0].endpoints[0].standing;
            // Judged by a task of its own.
            while !ours && standing() == Standing::Good {
                tokio::task::yield_now().await;
            }
            assert_eq!(standing() == Standing::Good, ours, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn more_requests_than_allowed_fail_fast() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Hold);
    let breaker = CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() };
    let limited = Cluster { breaker, ..reported() };
    let (client, load) = reporting(snapshot_with(forward_with(None), limited, &[&server]));
    let mut first = pin!(client.send(get("/1")));
    let second = async {
        server.wait_for_requests(1).await;
        client.send(get("/2")).await.unwrap_err()
    };
    let error = tokio::select! {
        biased;
        _ = &mut first => unreachable!("it is held"),
        error = second => error,
    };
    assert_eq!((error.code(), error.code().response_flag()), (Code::BREAKER_OPEN, "UO"), "{error}");
    assert_eq!(dropped(&load), (1, vec![]), "the control plane is told, by no category (gRFC A32)");
    server.release();
    // The place is free again only when the first answer has been read.
    let first = first.await.unwrap();
    server.behave(Behaviour::Echo);
    read(first).await.unwrap();
    assert_eq!(fetch(&client, "/3").await.unwrap().status(), 200);
    assert_eq!(dropped(&load).0, 0, "control: what is served is not dropped");
}

/// A cluster whose load is reported.
fn reported() -> Cluster {
    Cluster { load_report: Some(LoadReport::default()), ..cluster("test") }
}

fn reporting(snapshot: Snapshot) -> (Client, Arc<LoadStore>) {
    let load = Arc::<LoadStore>::default();
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).load(load.clone()).build();
    (client, load)
}

/// What has been dropped since the last time: all of it, and by category.
fn dropped(load: &LoadStore) -> (u64, Vec<(String, u64)>) {
    let reports = load.take(|_| true, tokio::time::Instant::now());
    (reports.iter().map(|report| report.dropped).sum(), reports.into_iter().flat_map(|report| report.drops).collect())
}

#[tokio::test]
async fn one_connection_serves_who_waits_and_refuses_who_may_not() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        serves_who_waits_and_refuses_who_may_not(protocol).await;
    }
}

async fn serves_who_waits_and_refuses_who_may_not(protocol: UpstreamProtocol) {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Hold);
    let breaker = CircuitBreakers { max_connections: Some(1), max_pending: Some(1), ..CircuitBreakers::default() };
    let connection = ConnectionOptions { protocol, max_concurrent_streams: Some(1), ..ConnectionOptions::default() };
    let limited = Cluster { breaker, connection, ..cluster("test") };
    let (client, _) = client_of(snapshot_with(forward_with(None), limited, &[&server]));
    server.script([Behaviour::Echo]);
    fetch(&client, "/0").await.unwrap();
    let (first, second) = (fetch(&client, "/1"), fetch(&client, "/2"));
    let third = async {
        server.wait_for_requests(2).await;
        // The second waits for the connection by now: it was polled before this.
        let error = client.send(get("/3")).await.unwrap_err();
        server.behave(Behaviour::Echo);
        server.release();
        error
    };
    let (first, second, third) = tokio::join!(first, second, third);
    assert!(first.is_ok() && second.is_ok());
    assert!(matches!(third.cause(), Cause::Breaker { limit: "max_pending", .. }), "{third}");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn requests_for_which_a_connection_is_being_made_are_pending() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let server = EchoServer::start("one").await;
        for (most, answered) in [(Some(1), 1), (Some(3), 3), (None, 10)] {
            let breaker = CircuitBreakers { max_pending: most, ..CircuitBreakers::default() };
            let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
            let limited = Cluster { breaker, connection, ..cluster("test") };
            let (client, _) = client_of(snapshot_with(forward_with(None), limited, &[&server]));
            let all = futures_util::future::join_all((0..10).map(|_| client.send(get("/")))).await;
            let (good, bad): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
            assert_eq!(good.len(), answered, "{protocol:?} {most:?}");
            let limit = |error: Error| matches!(error.cause(), Cause::Breaker { limit: "max_pending", .. });
            assert!(bad.into_iter().all(|bad| limit(bad.unwrap_err())));
            // What is there is nobody's to wait for.
            drop(good);
            fetch(&client, "/").await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_retry_budget_stops_a_storm() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Status(503));
    for (budget, tries) in [(None, 20), (Some(2), 12)] {
        let before = server.requests();
        let snapshot = snapshot_with(forward_with(Some(retrying(1, on_503()))), cluster("test"), &[&server]);
        let (client, _) = client_of(budgeted(snapshot, budget));
        for _ in 0..10 {
            fetch(&client, "/").await.unwrap();
        }
        let made = server.requests() - before;
        // A run slower than a second earns more; never as many as without a budget unless it takes 5 s.
        assert!(made >= tries && (budget.is_none() || made < 20), "{made} tries with budget {budget:?}");
    }
}

#[tokio::test]
async fn the_callers_deadline_is_kept_and_passed_on() {
    let server = EchoServer::start("slow").await;
    server.behave(Behaviour::Hold);
    let client = Client::builder(FixedSource::of(TARGET, policy::snapshot_to(&[server.address()]))).build();
    let mut context = mesh_core::context::RequestContext::from_headers(&Default::default());
    context.deadline = Some(tokio::time::Instant::now() + Duration::from_secs(10));
    let call = mesh_core::context::scope(context.into(), async { client.send(get("/")).await });
    let (result, ()) = tokio::join!(call, later(&server, 1, Duration::from_secs(10)));
    assert_eq!(result.unwrap_err().code(), Code::DEADLINE);
}

#[tokio::test]
async fn the_control_planes_drop_share_is_kept() {
    let server = EchoServer::start("one").await;
    let mut snapshot = snapshot_with(forward_with(None), cluster("test"), &[&server]);
    let drops = vec![DropOverload { category: "shed".into(), share: PerMillion::ALL }];
    let endpoints = Endpoints { drops, ..policy::endpoints(&"test".into(), vec![server.endpoint()]) };
    let state = ClusterState::Ready { cluster: reported().into(), endpoints: endpoints.into() };
    snapshot.clusters.insert("test".into(), state);
    let (client, load) = reporting(snapshot);
    for _ in 0..3 {
        assert_eq!(fetch(&client, "/").await.unwrap_err().code(), Code::DROPPED);
    }
    assert_eq!(dropped(&load), (3, vec![("shed".to_owned(), 3)]), "the control plane is told");
}

/// What an Envoy makes of `max_stream_duration` of the HttpConnectionManager, of the same and of `grpc_timeout_header_max` of
/// a route, and gRFC A31 of a call. Zero lifts a limit, none leaves it to the next.
#[tokio::test]
async fn streams_have_the_time_that_the_most_specific_limit_gives_them() {
    let s = |seconds| Some(Duration::from_secs(seconds));
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::Hold);
    for (listener, stream, calls, http, grpc) in [
        (None, None, None, None, None),
        (s(30), None, None, s(30), s(30)),
        (s(30), None, s(0), s(30), None),
        (s(30), None, s(20), s(30), s(20)),
        (s(30), s(0), None, None, None),
        (s(30), s(0), s(20), None, s(20)),
        (s(30), s(10), None, s(10), s(10)),
        (s(30), s(10), s(0), s(10), None),
        (s(30), s(40), s(50), s(40), s(50)),
        (None, s(10), s(30), s(10), s(30)),
    ] {
        let limits = Forward { max_stream_duration: stream, grpc_timeout_max: calls, ..forward_with(None) };
        let mut snapshot = snapshot_with(limits, cluster("test"), &[&server]);
        let limited = Listener { max_stream_duration: listener, ..(*snapshot.listener).clone() };
        snapshot.listener = std::sync::Arc::new(limited);
        let (client, _) = client_of(snapshot);
        for (content_type, limit) in [("text/plain", http), ("application/grpc", grpc)] {
            let request = http::Request::post(format!("http://{TARGET}/a.B/C")).header("content-type", content_type);
            let mut call = std::pin::pin!(client.send(request.body(String::new()).unwrap()));
            let asked = server.requests() + 1;
            let most = limit.unwrap_or(Duration::from_secs(3600));
            tokio::select! {
                biased;
                ended = &mut call => panic!("it ended: {:?}", ended.map(|_| ())),
                () = later(&server, asked, most - Duration::from_secs(1)) => {}
            }
            assert!(futures_util::poll!(&mut call).is_pending(), "{listener:?} {stream:?} {calls:?} {content_type}");
            if limit.is_some() {
                let both = async { tokio::join!(call, later(&server, asked, Duration::from_secs(1))).0 };
                let ended = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it has its limit");
                let ended = ended.err().map(|error| error.code());
                assert_eq!(ended, Some(Code::TIMEOUT), "{listener:?} {stream:?} {calls:?} {content_type}");
            }
        }
    }
}
