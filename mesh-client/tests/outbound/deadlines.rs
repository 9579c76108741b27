//! Requests whose time is over before they begin, or while they are on their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_client::{Client, Error, Io};
use mesh_core::context::{GRPC_TIMEOUT, RequestContext, scope};
use mesh_core::error::{BoxError, Code, Fault};
use mesh_core::policy::{
    Address, Cluster, ConnectionOptions, Endpoint, Forward, Mirror, PerMillion, RetryOn, RetryPolicy, RouteMatch,
    UpstreamProtocol,
};
use mesh_testkit::{EchoServer, FixedSource, policy};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{TARGET, answer, client_of, cluster, fetch, forward_with, post, read, snapshot_with};

/// Runs `work` as a part of a request that must be over by then.
async fn until<T>(deadline: Instant, work: impl Future<Output = T>) -> T {
    let mut context = RequestContext::from_headers(&Default::default());
    context.deadline = Some(deadline);
    scope(context.into(), work).await
}

/// A gRPC call with this `grpc-timeout`.
async fn call(client: &Client, timeout: &'static str) -> Result<(), Error> {
    let mut request = post("/echo.Echo/Say", "x");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(&GRPC_TIMEOUT, HeaderValue::from_static(timeout));
    read(client.send(request).await?).await.map(drop)
}

#[tokio::test]
async fn what_comes_after_its_deadline_is_sent_to_nobody() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let (server, copy) = (EchoServer::start("one").await, EchoServer::start("copy").await);
        let mirror = Mirror { cluster: "copy".into(), share: PerMillion::ALL, shadow_host: false };
        let forward = Forward { mirrors: vec![mirror], ..Forward::to("test".into()) };
        let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
        let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
        let test = Cluster { connection, ..cluster("test") };
        let parts = [(test, vec![server.endpoint()]), (cluster("copy"), vec![copy.endpoint()])];
        let (client, _) = client_of(policy::snapshot(routes, parts));
        // A connection is at hand.
        fetch(&client, "/").await.unwrap();
        copy.wait_for_requests(1).await;
        while client.dump().mirrors > 0 {
            tokio::task::yield_now().await;
        }
        let late = |error: Error| {
            assert_eq!((error.code(), error.attempts()), (Code::DEADLINE, 0), "{protocol:?}: {error}");
            assert_eq!(client.dump().mirrors, 0, "{protocol:?}");
        };
        for _ in 0..20 {
            late(until(Instant::now(), fetch(&client, "/")).await.unwrap_err());
            late(until(Instant::now(), call(&client, "1H")).await.unwrap_err());
            late(call(&client, "0n").await.unwrap_err());
        }
        // The controls: who has time left is sent, over the connection that is still there.
        until(Instant::now() + Duration::from_secs(60), fetch(&client, "/")).await.unwrap();
        assert_eq!((server.requests(), server.connections()), (2, 1), "{protocol:?}");
        // A gRPC call has a connection of HTTP/2.
        call(&client, "1H").await.unwrap();
        assert_eq!(server.requests(), 3, "{protocol:?}");
        copy.wait_for_requests(3).await;
        assert_eq!(copy.requests(), 3, "{protocol:?}");
    }
}

/// The tries of a request whose first answer says 503, and which waits 10.5 ms before it goes again.
#[expect(clippy::disallowed_methods, reason = "a server of this test")]
async fn tries(deadline: Instant) -> (Result<StatusCode, Error>, usize) {
    let retry = RetryPolicy {
        backoff_base: Duration::from_micros(10_500),
        ..RetryPolicy::new(1, RetryOn { server_error: true, ..RetryOn::default() })
    };
    let mut snapshot = snapshot_with(forward_with(Some(retry)), cluster("test"), &[]);
    let list = [1, 2].map(|host| Endpoint::new(Address::Socket(([10, 0, 0, host], 80).into())));
    snapshot.clusters = policy::snapshot_of(cluster("test"), list).clusters;
    let seen = Arc::new(AtomicUsize::new(0));
    let served = seen.clone();
    let serve = move |request: Request<Incoming>| {
        let status = [503, 200][served.fetch_add(1, Ordering::Relaxed).min(1)];
        Response::builder().status(status).body(request.into_body().map_err(BoxError::from)).unwrap()
    };
    let builder = Client::builder(FixedSource::of(TARGET, snapshot)).random(|below| below - 1);
    let client = builder.connector(move |_: Address| {
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(answer(far, UpstreamProtocol::Http1, serve.clone()));
        async { Ok(Box::new(near) as Box<dyn Io>) }
    });
    let answer = until(deadline, fetch(&client.build(), "/")).await;
    (answer.map(|answer| answer.status()), seen.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_time_is_over_with_the_wait_for_a_retry_is_not_tried_again() {
    // Both timers go off in the same millisecond.
    let (answer, seen) = tries(Instant::now() + Duration::from_micros(10_900)).await;
    let error = answer.unwrap_err();
    assert_eq!((error.code(), error.attempts(), seen), (Code::DEADLINE, 1, 1), "{error}");
    // Control: with time left it is.
    let (answer, seen) = tries(Instant::now() + Duration::from_secs(60)).await;
    assert_eq!((answer.unwrap(), seen), (StatusCode::OK, 2));
}

#[tokio::test(start_paused = true)]
async fn a_raw_connection_after_its_deadline_is_not_begun() {
    let snapshot = policy::snapshot_of(cluster("test"), [Endpoint::new(Address::Socket(([10, 0, 0, 1], 80).into()))]);
    let dials = Arc::new(Mutex::new(0));
    let dialled = dials.clone();
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).connector(move |_: Address| {
        *dialled.lock() += 1;
        async { Ok(Box::new(tokio::io::duplex(64).0) as Box<dyn Io>) }
    });
    let client = client.build();
    // Control: with time left it is.
    until(Instant::now() + Duration::from_secs(1), client.connect(TARGET)).await.unwrap();
    assert_eq!(*dials.lock(), 1);
    let error = until(Instant::now(), client.connect(TARGET)).await.unwrap_err();
    assert_eq!((error.code(), error.attempts(), *dials.lock()), (Code::DEADLINE, 0, 1), "{error}");
}
