use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{MinRtt, PerMillion, TokenBucket};
use mesh_testkit::clock;
use tower::{ServiceExt, service_fn};

use super::*;

type Answered = Result<Response<LimitedBody<Full<Bytes>>>, BoxError>;

/// A service that answers with this status, at once.
fn answering(
    status: u16,
) -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + 'static> + Clone {
    service_fn(move |_| async move { Ok(Response::builder().status(status).body(Full::from("hello")).unwrap()) })
}

/// The code of a refusal; `None` if it was let through.
fn refused<B>(answered: &Result<Response<B>, BoxError>) -> Option<Code> {
    let error = answered.as_ref().err()?;
    Some(error.downcast_ref::<Error>().expect("the limit's own").code())
}

async fn ask<S: Service<Request<()>, Error = BoxError>>(service: &mut S) -> Result<S::Response, BoxError> {
    service.ready().await?.call(Request::new(())).await
}

#[tokio::test]
async fn a_circuit_breaker_counts_until_bodies_end_and_for_all_clones() {
    let mut one = LimitLayer::requests(2).layer(answering(200));
    let mut other = one.clone();
    let (first, second) = (ask(&mut one).await, ask(&mut other).await);
    assert_eq!((refused(&first), refused(&second)), (None, None));
    let third: Answered = ask(&mut one).await;
    assert_eq!(refused(&third), Some(Code::BREAKER_OPEN));
    // One is read to its end and kept, the other one is thrown away.
    let mut body = first.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    let third = ask(&mut one).await;
    assert_eq!(refused(&third), None);
    assert_eq!(refused(&ask(&mut other).await), Some(Code::BREAKER_OPEN));
    drop(second);
    assert_eq!(refused(&ask(&mut other).await), None);
    drop((body, third));
    // The control: another layer has a count of its own.
    assert_eq!(refused(&ask(&mut LimitLayer::requests(1).layer(answering(200))).await), None);
}

#[tokio::test]
async fn a_request_that_is_given_up_or_fails_leaves_its_place() {
    let never = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let mut stuck = LimitLayer::requests(1).layer(never);
    let given_up = stuck.call(Request::new(()));
    assert_eq!(refused(&ask(&mut stuck).await), Some(Code::BREAKER_OPEN));
    drop(given_up);
    let Limit::Requests { in_flight, .. } = &stuck.limit else { unreachable!() };
    assert_eq!(in_flight.get(), 0);

    let broken =
        service_fn(|_: Request<()>| async { Err::<Response<Full<Bytes>>, _>(std::io::Error::other("broken")) });
    let mut broken = LimitLayer::requests(1).layer(broken);
    for _ in 0..3 {
        let error = ask(&mut broken).await.unwrap_err();
        assert!(error.downcast_ref::<Error>().is_none() && error.to_string() == "broken", "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_refused_as_policy_says_and_comes_back_with_time() {
    let bucket = TokenBucket { max_tokens: 2, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) };
    let policy = LocalRateLimit {
        bucket: Some(bucket),
        enabled: PerMillion::ALL,
        enforced: PerMillion::ALL,
        status: 429,
        resource_exhausted: false,
        response_headers: Vec::new(),
        request_headers: Vec::new(),
        per_connection: false,
        quota_headers: false,
        retry_after: false,
    };
    let mut service = LimitLayer::rate(&policy).unwrap().layer(answering(200));
    for _ in 0..2 {
        assert_eq!(refused(&ask(&mut service).await), None);
    }
    let error = ask(&mut service).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Error>().unwrap().http_status(), 429);
    clock::pass(Duration::from_secs(1)).await;
    assert_eq!(refused(&ask(&mut service).await), None);
    assert!(ask(&mut service).await.is_err());
    // The control: without a bucket there is nothing to be had.
    assert!(LimitLayer::rate(&LocalRateLimit { bucket: None, ..policy }).is_err());
}

#[tokio::test(start_paused = true)]
async fn admission_spares_a_service_that_fails_and_no_other() {
    for (status, sent) in [(500, 100..400), (200, 1000..1001)] {
        let mut service = LimitLayer::admission(&AdmissionControl::default()).layer(answering(status));
        let mut through = 0;
        for _ in 0..1000 {
            if let Ok(answer) = ask(&mut service).await {
                through += 1;
                answer.into_body().collect().await.unwrap();
            }
        }
        // Four of five are refused: 200 are sent, and the standard deviation is 13.
        assert!(sent.contains(&through), "{status}: {through}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_status_of_grpc_comes_with_its_trailers() {
    let grpc = |status: &'static str| {
        service_fn(move |_: Request<()>| async move {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))]);
            let frames = VecDeque::from([Frame::data(Bytes::from("hello")), Frame::trailers(trailers)]);
            let body = StreamBody::new(futures_util::stream::iter(frames.into_iter().map(Ok::<_, Infallible>)));
            Ok::<_, Infallible>(Response::builder().header(CONTENT_TYPE, "application/grpc").body(body).unwrap())
        })
    };
    for (status, refuses) in [("14", true), ("0", false)] {
        let mut service = LimitLayer::admission(&AdmissionControl::default()).layer(grpc(status));
        let mut some = false;
        for _ in 0..200 {
            match ask(&mut service).await {
                Ok(answer) => drop(answer.into_body().collect().await.unwrap()),
                Err(error) => some |= error.downcast_ref::<Error>().unwrap().code() == Code::THROTTLED,
            }
        }
        assert_eq!(some, refuses, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_looks_like_grpc_has_the_status_of_http() {
    for (kind, refuses) in [
        ("application/grpc-web+proto", false),
        ("application/grpc-foo", false),
        // Controls: an answer of gRPC's without a status is no success.
        ("application/grpc", true),
        ("application/grpc+proto", true),
    ] {
        let answer = move |_: Request<()>| async move {
            Ok::<_, Infallible>(
                Response::builder().header(CONTENT_TYPE, kind).body(Full::new(Bytes::from_static(b"hello"))).unwrap(),
            )
        };
        let mut service = LimitLayer::throttling(2.0, Duration::from_secs(120)).layer(service_fn(answer));
        let mut some = false;
        for _ in 0..200 {
            match ask(&mut service).await {
                Ok(answer) => drop(answer.into_body().collect().await.unwrap()),
                Err(error) => some |= error.downcast_ref::<Error>().unwrap().code() == Code::THROTTLED,
            }
        }
        assert_eq!(some, refuses, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_measures_with_few_in_flight() {
    let mut service = LimitLayer::adaptive(&AdaptiveConcurrency::default()).layer(answering(200));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(ask(&mut service).await.unwrap());
    }
    let error = ask(&mut service).await.unwrap_err();
    assert!(matches!(error.downcast_ref::<Error>().unwrap().cause(), Cause::ConcurrencyLimited { limit: 3, .. }));
    held.pop();
    assert!(ask(&mut service).await.is_ok());
}

type Plain = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A server's answer whose end nobody knows before it is there.
fn of_stream(status: u16, text: &'static str, length: Option<usize>) -> Plain {
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(text.as_bytes())))]);
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().extend(length.map(|length| (CONTENT_LENGTH, length.into())));
    answer
}

fn of_text(status: u16, text: &'static str) -> Plain {
    Response::builder().status(status).body(Full::from(text).boxed_unsync()).unwrap()
}

/// How many of so many requests a server of HTTP/1.1 lets through, one after another on one connection.
async fn let_through(limit: &LimitLayer, method: &Method, answer: fn() -> Plain, asked: usize) -> usize {
    let (near, far) = tokio::io::duplex(1 << 16);
    let limited = limit.layer(service_fn(move |_: Request<Incoming>| async move { Ok::<_, Infallible>(answer()) }));
    let serve = hyper::service::service_fn(move |request| {
        let limited = limited.clone();
        async move {
            let answered = limited.oneshot(request).await.map(|answer| answer.map(BodyExt::boxed_unsync));
            Ok::<_, Infallible>(answered.unwrap_or_else(|_| of_text(429, "")))
        }
    });
    let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), serve);
    let (mut sender, client) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    let ask = async move {
        let mut through = 0;
        for _ in 0..asked {
            let request = Request::builder().method(method).uri("/").body(Empty::<Bytes>::new()).unwrap();
            sender.ready().await.unwrap();
            let answer = sender.send_request(request).await.unwrap();
            through += usize::from(answer.status() != 429);
            answer.into_body().collect().await.unwrap();
        }
        through
    };
    let (served, client, through) = tokio::join!(server, client, ask);
    served.and(client).unwrap();
    through
}

/// Answers of which a server of HTTP/1.1 never asks for the end of the body, with their requests.
const UNASKED: [(Method, fn() -> Plain); 6] = [
    (Method::GET, || of_text(204, "")),
    (Method::GET, || of_text(304, "kept")),
    (Method::GET, || of_text(200, "")),
    (Method::HEAD, || of_text(200, "hello")),
    (Method::HEAD, || of_stream(200, "hello", None)),
    (Method::GET, || of_stream(200, "hello", Some(5))),
];

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_body_is_a_success_over_http1() {
    let policy = AdmissionControl::default();
    let limits: [fn(&AdmissionControl) -> LimitLayer; 2] =
        [LimitLayer::admission, |_| LimitLayer::throttling(2.0, Duration::from_secs(120))];
    for limit in limits {
        for (method, answer) in &UNASKED {
            assert_eq!(
                let_through(&limit(&policy), method, *answer, 100).await,
                100,
                "{method} {:?}",
                answer().status()
            );
        }
        // The control: failures are what they are without a body too.
        for (method, text) in [(Method::GET, ""), (Method::HEAD, "hello")] {
            let answer = if text.is_empty() { || of_text(500, "") } else { || of_text(500, "hello") };
            assert!(let_through(&limit(&policy), &method, answer, 100).await < 90, "{method}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_learns_of_answers_without_a_body_over_http1() {
    let policy = AdaptiveConcurrency { min_rtt: MinRtt::Fixed(Duration::from_secs(1)), ..Default::default() };
    let starts_at = policy.min_limit.max(1) as usize;
    for (method, answer) in &UNASKED {
        let limit = LimitLayer::adaptive(&policy);
        assert_eq!(let_through(&limit, method, *answer, 20).await, 20);
        clock::pass(policy.interval).await;
        let mut service = limit.layer(answering(200));
        let mut held = Vec::new();
        while held.len() <= starts_at
            && let Ok(answer) = ask(&mut service).await
        {
            held.push(answer);
        }
        assert!(held.len() > starts_at, "{method} {:?}", answer().status());
    }
}

#[tokio::test(start_paused = true)]
async fn who_looks_at_the_status_alone_had_an_answer() {
    for (kind, refuses) in [("text/plain", false), ("application/grpc", true)] {
        let answer = move |_: Request<()>| async move {
            Ok::<_, Infallible>(
                Response::builder().header(CONTENT_TYPE, kind).body(Full::<Bytes>::from("hello")).unwrap(),
            )
        };
        let mut service = LimitLayer::admission(&AdmissionControl::default()).layer(service_fn(answer));
        let mut some = false;
        for _ in 0..200 {
            // Its body is dropped unread; of gRPC's nobody knows then what came of it.
            some |= ask(&mut service).await.is_err();
        }
        assert_eq!(some, refuses, "{kind}");
    }
}
