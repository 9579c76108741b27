use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::{BodyExt, Full, StreamBody};
use mesh_core::error::{Code, Fault};
use mesh_core::policy::{PerMillion, TokenBucket};
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
