//! Futures of the client dropped at every point at which they can be (R39): whatever was begun, nothing stays counted,
//! and the next request finds its place free.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use futures_util::{FutureExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use mesh_client::{Breakers, Client, InFlight};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AdaptiveConcurrency, CircuitBreakers, FailureAccrual, HedgePolicy, HttpFilter, HttpFilterKind, MinRtt, PerMillion,
};
use mesh_testkit::{FixedSource, clock};

use crate::fleet::{Door, Fleet, Handler, Wire};
use crate::load::{Policy, TARGET, read, request};
use crate::seeded;

const TICK: Duration = Duration::from_millis(5);

/// Polls a future as often as it is woken, `times` times at most, and drops it. Whether it was done before.
async fn drop_after(times: usize, mut future: BoxFuture<'_, ()>) -> bool {
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Answers after a tick: `/fail` with 503, everything else with three chunks and trailers, a tick apart. `/now` is
/// answered at once.
fn in_parts() -> Handler {
    Arc::new(|request| {
        async move {
            let (fails, now) = (request.uri().path() == "/fail", request.uri().path() == "/now");
            let _ = request.into_body().collect().await;
            if !now {
                clock::pass(TICK).await;
            }
            if fails {
                let mut response = Response::new(Empty::new().boxed_unsync());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                return response;
            }
            let parts = stream::unfold(0, |part| async move {
                clock::pass(TICK).await;
                let frame = match part {
                    0..3 => Frame::data(Bytes::from_static(b"part")),
                    3 => Frame::trailers(HeaderMap::from_iter([(http::header::AGE, 1.into())])),
                    _ => return None,
                };
                Some((Ok(frame), part + 1))
            });
            Response::new(StreamBody::new(parts).boxed_unsync())
        }
        .boxed()
    })
}

/// A use of the client.
struct Case {
    name: &'static str,
    policy: Policy,
    act: fn(Client) -> BoxFuture<'static, ()>,
}

async fn fetch(client: Client, path: &'static str) {
    if let Ok(answer) = client.send(request(Method::GET, path, "")).await {
        let _ = read(answer).await;
    }
}

async fn upload(client: Client) {
    let chunks = stream::unfold(0, |chunk| async move {
        clock::pass(TICK).await;
        (chunk < 3).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"chunk"))), chunk + 1))
    });
    let upload = Request::post(format!("http://{TARGET}/")).body(StreamBody::new(Box::pin(chunks))).unwrap();
    if let Ok(answer) = client.send(upload).await {
        let _ = read(answer).await;
    }
}

async fn grpc(client: Client) {
    let call = Request::post(format!("http://{TARGET}/s/M")).header("content-type", "application/grpc");
    let call = call.header("te", "trailers").header("grpc-timeout", "1S").body(String::from("\0\0\0\0\0")).unwrap();
    if let Ok(answer) = client.send(call).await {
        let _ = read(answer).await;
    }
}

fn cases() -> Vec<Case> {
    let one_connection = |mut policy: Policy| {
        policy.cluster.breaker = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
        policy.cluster.connection.max_concurrent_streams = Some(1);
        policy
    };
    let hedge = HedgePolicy { initial_requests: 2, additional_request: PerMillion::NONE, on_per_try_timeout: true };
    let hedging = Policy { hedge: Some(hedge), ..Policy::http2().retrying(2, Some(TICK / 2)) };
    let case = |name, policy, act| Case { name, policy, act };
    vec![
        case("HTTP/1.1", Policy::default(), |client| fetch(client, "/").boxed()),
        case("HTTP/2", Policy::http2(), |client| fetch(client, "/").boxed()),
        case("a body that is streamed", Policy::default().retrying(1, None), |client| upload(client).boxed()),
        case("gRPC", Policy::http2(), |client| grpc(client).boxed()),
        case("retries", Policy::default().retrying(3, None), |client| fetch(client, "/fail").boxed()),
        case("tries that take too long", Policy::http2().retrying(2, Some(TICK / 2)), |client| {
            fetch(client, "/").boxed()
        }),
        case("tries side by side", hedging, |client| fetch(client, "/fail").boxed()),
        case("waiting for a connection", one_connection(Policy::default()), |client| {
            join(fetch(client.clone(), "/"), fetch(client, "/")).map(drop).boxed()
        }),
        case("waiting for a stream", one_connection(Policy::http2()), |client| {
            join(fetch(client.clone(), "/"), fetch(client, "/")).map(drop).boxed()
        }),
        case("a raw connection", Policy::default(), |client| async move { drop(client.connect(TARGET).await) }.boxed()),
    ]
}

/// What a client counts as under way.
fn counted(client: &Client, breakers: &Breakers) -> Vec<String> {
    let mut found = Vec::new();
    for state in breakers.snapshot() {
        for in_flight in [state.default, state.high] {
            if in_flight != InFlight::default() {
                found.push(format!("{in_flight:?}"));
            }
        }
    }
    let dump = client.dump();
    for endpoint in dump.destinations.iter().flat_map(|it| &it.clusters).flat_map(|it| &it.endpoints) {
        if endpoint.in_flight > 0 {
            found.push(format!("{} in flight at {}", endpoint.in_flight, endpoint.address));
        }
    }
    found
}

/// A client that may have two requests under way, for nobody can be left behind unnoticed then.
fn client_of(fleet: &Fleet, policy: &Policy, breakers: &Breakers) -> Client {
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let two = AdaptiveConcurrency { min_limit: 2, max_limit: 2, min_rtt, ..AdaptiveConcurrency::default() };
    let mut snapshot = policy.snapshot(fleet.endpoints());
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(two));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "two".into(), kind }];
    let fleet = fleet.clone();
    Client::builder(FixedSource::of(TARGET, snapshot))
        .breakers(breakers.clone())
        .connector(move |address| fleet.connect(&address))
        .build()
}

#[tokio::test(start_paused = true)]
async fn a_future_dropped_at_any_point_leaves_nothing_behind_r39() {
    seeded();
    for Case { name, policy, act } in cases() {
        let wire = if policy.cluster.connection.protocol == Policy::default().cluster.connection.protocol {
            Wire::Http1
        } else {
            Wire::Http2(100)
        };
        let fleet = Fleet::with(3, wire, in_parts());
        let breakers = Breakers::default();
        let client = client_of(&fleet, &policy, &breakers);
        let mut points = 0;
        // With connections to be made, and with those that are there.
        for fresh in [true, false] {
            for times in 0.. {
                let client = if fresh { client_of(&fleet, &policy, &breakers) } else { client.clone() };
                let done = drop_after(times, act(client.clone())).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "{name}: dropped after {times} polls");
                clock::pass(Duration::from_secs(1)).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "{name}: a while after {times} polls");
                points += 1;
                if done {
                    break;
                }
                assert!(times < 1000, "{name}: it never ends");
            }
        }
        println!("{name}: dropped at {points} points");
        assert!(points > 4, "{name}: {points}");
        let answered = client.send(request(Method::GET, "/now", "")).await.unwrap();
        assert_eq!(counted(&client, &breakers).len(), 2, "control: what is under way is seen");
        assert!(read(answered).await.is_ok(), "{name}: its places are free");
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_dropped_at_any_point_leaves_the_way_back_open_r39() {
    seeded();
    for times in 0..20 {
        let fleet = Fleet::with(1, Wire::Http1, in_parts());
        let mut policy = Policy::default();
        let penalty = Duration::from_secs(1);
        policy.cluster.accrual =
            Some(FailureAccrual { min_penalty: penalty, jitter: PerMillion::NONE, ..FailureAccrual::default() });
        let breakers = Breakers::default();
        let client = client_of(&fleet, &policy, &breakers);
        for _ in 0..7 {
            fetch(client.clone(), "/fail").await;
        }
        assert!(client.send(request(Method::GET, "/", "")).await.is_err(), "control: it is out");
        clock::pass(penalty + TICK).await;
        drop_after(times, fetch(client.clone(), "/").boxed()).await;
        // At once, and not when somebody's time is over.
        assert!(client.send(request(Method::GET, "/", "")).await.is_ok(), "dropped after {times} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_attempt_dropped_at_any_point_is_not_counted_r39() {
    seeded();
    for door in [Door::Shut, Door::Silent] {
        for wire in [Wire::Http1, Wire::Http2(100)] {
            let fleet = Fleet::with(2, wire, in_parts());
            fleet.iter().for_each(|server| server.change(|manner| manner.door = door));
            let mut policy = if matches!(wire, Wire::Http1) { Policy::default() } else { Policy::http2() };
            policy.cluster.connection.connect_timeout = TICK;
            let breakers = Breakers::default();
            let client = client_of(&fleet, &policy.retrying(2, None), &breakers);
            for times in 0..20 {
                drop_after(times, fetch(client.clone(), "/").boxed()).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "{door:?}, {times} polls");
                drop_after(times, async { drop(client.connect(TARGET).await) }.boxed()).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "{door:?}, raw, {times} polls");
                clock::pass(Duration::from_secs(1)).await;
                assert!(breakers.snapshot().iter().all(|state| state.connections == 0), "{door:?}, {times} polls");
            }
        }
    }
}
