//! Limits that filters of the listener or the server's own configuration set.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt, Empty};
use tower::{Layer, Service, ServiceExt};

use mesh_core::identity::PeerIdentity;
use mesh_core::policy::{
    AdaptiveConcurrency, CallerGroup, CallerRateLimit, HeaderAction, HeaderWrite, HttpFilter, HttpFilterKind,
    InboundState, InboundTls, LocalRateLimit, MinRtt, PerMillion, TokenBucket,
};
use mesh_core::source::Watched;
use mesh_server::{Config, Server};
use mesh_testkit::clock;

use crate::kit::{Client, Http, World, eventually, get, listener, read, text, within};

pub(crate) fn bucket(max_tokens: u32) -> LocalRateLimit {
    // No test takes an hour.
    let fill_interval = Duration::from_secs(3600);
    LocalRateLimit {
        bucket: Some(TokenBucket { max_tokens, tokens_per_fill: 1, fill_interval }),
        enabled: PerMillion::ALL,
        enforced: PerMillion::ALL,
        status: 429,
        resource_exhausted: false,
        response_headers: vec![write("x-limited")],
        request_headers: vec![write("x-over")],
        per_connection: false,
        quota_headers: false,
        retry_after: false,
    }
}

fn write(name: &'static str) -> HeaderWrite {
    let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static("yes"));
    HeaderWrite { name, value, action: HeaderAction::Overwrite }
}

/// A listener with one filter, and something else that a further version of it may change.
fn filtered(kind: HttpFilterKind, max_connections: u32) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    listener.filters = vec![HttpFilter { name: "limit".into(), kind }];
    listener.limits.max_connections = Some(max_connections);
    InboundState::Ready(Arc::new(listener))
}

/// A server that answers whether the request says that it went without a token.
async fn world(limit: LocalRateLimit) -> World {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        let over = request.headers().contains_key("x-over");
        text(if over { "over" } else { "within" })
    });
    World::start(filtered(HttpFilterKind::RateLimit(limit), 100), Config::default(), service).await
}

async fn statuses(client: &mut Client, asked: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..asked {
        statuses.push(within(client.get("/")).await.unwrap().0);
    }
    statuses
}

#[tokio::test]
async fn a_rate_limit_refuses_what_is_beyond_its_bucket_with_its_own_answer() {
    let limited = world(bucket(3)).await;
    // One bucket for all connections.
    let (mut one, mut two) = (limited.plain(Http::One).await, limited.plain(Http::Two).await);
    assert_eq!((statuses(&mut one, 2).await, statuses(&mut two, 3).await), (vec![200, 200], vec![200, 429, 429]));
    let refused = within(one.send(get("/"))).await.unwrap();
    assert_eq!(refused.headers()["x-limited"], "yes");
    assert_eq!(within(read(refused)).await.unwrap(), (429, "local_rate_limited\n".to_owned()));
    // Controls: without a bucket, and for no share of requests, nothing is limited.
    for limit in
        [LocalRateLimit { bucket: None, ..bucket(3) }, LocalRateLimit { enabled: PerMillion::NONE, ..bucket(3) }]
    {
        assert_eq!(statuses(&mut world(limit).await.plain(Http::Two).await, 5).await, [200; 5]);
    }
}

#[tokio::test]
async fn a_rate_limit_that_is_not_enforced_only_tells_the_application() {
    let world = world(LocalRateLimit { enforced: PerMillion::NONE, ..bucket(1) }).await;
    let mut client = world.plain(Http::One).await;
    for said in ["within", "over"] {
        assert_eq!(within(client.get("/")).await.unwrap(), (200, said.to_owned()));
    }
}

#[tokio::test]
async fn grpc_is_told_of_a_rate_limit_by_its_status() {
    for (resource_exhausted, status) in [(false, "14"), (true, "8")] {
        let world = world(LocalRateLimit { resource_exhausted, ..bucket(1) }).await;
        let mut client = world.plain(Http::Two).await;
        statuses(&mut client, 1).await;
        let mut request = get("/package.Service/Method");
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let answer = within(client.send(request)).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["grpc-status"]),
            (200, &HeaderValue::from_static(status))
        );
        assert_eq!(answer.headers()["grpc-message"], "local_rate_limited");
        assert_eq!(answer.headers()["x-limited"], "yes");
    }
}

/// What an answer says of the limit, and when to come again.
async fn told(client: &mut Client, grpc: bool) -> (u16, Vec<String>) {
    let mut request = get("/");
    if grpc {
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    let answer = within(client.send(request)).await.unwrap();
    let names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"];
    let values = names.iter().flat_map(|name| answer.headers().get_all(*name)).map(|v| v.to_str().unwrap().to_owned());
    (answer.status().as_u16(), values.collect())
}

#[tokio::test]
async fn answers_say_what_is_left_of_a_rate_limit_and_when_there_is_more() {
    let telling =
        |per_connection| LocalRateLimit { quota_headers: true, retry_after: true, per_connection, ..bucket(2) };
    for (version, per_connection) in [(Http::One, false), (Http::Two, true)] {
        let world = world(telling(per_connection)).await;
        let mut client = world.plain(version).await;
        let list = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(&mut client, false).await, (200, list(&["2", "1", "0"])), "{version:?}");
        // The next token comes in less than an hour, which is rounded up to one.
        assert_eq!(told(&mut client, false).await, (200, list(&["2", "0", "3600"])), "{version:?}");
        assert_eq!(told(&mut client, false).await, (429, list(&["2", "0", "3600", "3600"])), "{version:?}");
        assert_eq!(told(&mut client, true).await, (200, list(&["2", "0", "3600", "3600"])), "{version:?}: gRPC");
    }
    // Another status than 429 has no `retry-after`, and an own one stays.
    let own = vec![write("retry-after")];
    for (status, response_headers, says) in [(503, Vec::new(), None), (429, own, Some("yes"))] {
        let world = world(LocalRateLimit { status, response_headers, ..telling(false) }).await;
        let mut client = world.plain(Http::Two).await;
        statuses(&mut client, 2).await;
        let refused = within(client.send(get("/"))).await.unwrap();
        assert_eq!(refused.headers().get("retry-after").map(|value| value.to_str().unwrap()), says);
    }
    // The control: a limit that is not to say anything.
    let world = world(bucket(1)).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(told(&mut client, false).await, (200, Vec::new()));
    assert_eq!(told(&mut client, false).await, (429, Vec::new()));
}

#[tokio::test]
async fn a_bucket_of_each_connection_is_its_own() {
    let world = world(LocalRateLimit { per_connection: true, ..bucket(2) }).await;
    for version in [Http::One, Http::Two] {
        assert_eq!(statuses(&mut world.plain(version).await, 3).await, [200, 200, 429], "{version:?}");
    }
}

#[tokio::test]
async fn a_bucket_outlives_changes_beside_it_and_not_its_own() {
    let world = world(bucket(2)).await;
    let mut client = world.plain(Http::Two).await;
    assert_eq!(statuses(&mut client, 3).await, [200, 200, 429]);
    world.policy.publish(filtered(HttpFilterKind::RateLimit(bucket(2)), 101));
    assert_eq!(statuses(&mut client, 1).await, [429], "no new bucket");
    // Without word from the control plane it is the last one.
    world.policy.publish(InboundState::Failed("it cannot be read".into()));
    assert_eq!(statuses(&mut client, 1).await, [429], "the last limit stays");
    world.policy.publish(filtered(HttpFilterKind::RateLimit(bucket(4)), 101));
    assert_eq!(statuses(&mut client, 5).await, [200, 200, 200, 200, 429]);
    world.policy.publish(InboundState::Ready(Arc::new(listener(InboundTls::Permissive))));
    assert_eq!(statuses(&mut client, 5).await, [200; 5]);
}

#[tokio::test]
async fn a_limit_that_no_request_came_under_is_in_force_when_word_fails() {
    for per_connection in [false, true] {
        let world = world(LocalRateLimit { per_connection, ..bucket(1) }).await;
        let mut client = world.plain(Http::Two).await;
        // Let in, and no request yet.
        eventually(|| (!world.server.stats().plaintext_peers().is_empty()).then_some(())).await;
        world.policy.publish(InboundState::Failed("it cannot be read".into()));
        assert_eq!(statuses(&mut client, 2).await, [200, 429], "{per_connection}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_caller_has_its_rate_some_share_one_and_those_without_identity_do() {
    let rate = |n| std::num::NonZeroU32::new(n).unwrap();
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    let group = CallerGroup { callers: vec![id("batch"), id("cron")], per_second: rate(3) };
    let limit = CallerRateLimit { each: Some(rate(2)), groups: vec![group] };
    let inbound = Watched::fixed(filtered(HttpFilterKind::CallerRateLimit(limit), 100));
    let layer = Server::builder().inbound(inbound).build().inbound_layer();
    let peer = |account: &str| PeerIdentity {
        spiffe_id: (!account.is_empty()).then(|| id(account).parse().unwrap()),
        address: ([127, 0, 0, 1], 1).into(),
    };
    let hello = tower::service_fn(|_: http::Request<Empty<bytes::Bytes>>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::<bytes::Bytes>::default()))
    });
    // A connection of somebody's own acceptor, which says who the peer is for each connection or for each request.
    let ask = |account: &str, by_connection: bool, grpc: bool| {
        let mut request = get("/");
        let layer = if by_connection { layer.for_peer(peer(account)) } else { layer.clone() };
        if !by_connection {
            request.extensions_mut().insert(peer(account));
        }
        if grpc {
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        layer.layer(hello).oneshot(request)
    };
    for by_connection in [true, false] {
        for (account, want) in [
            ("web", [200, 200, 429]),
            ("api", [200, 200, 429]),
            ("web", [429, 429, 429]),
            ("batch", [200, 200, 200]),
            ("cron", [429, 429, 429]),
            ("", [200, 200, 429]),
            ("", [429, 429, 429]),
        ] {
            let mut got = Vec::new();
            for _ in 0..3 {
                got.push(ask(account, by_connection, false).await.unwrap().status().as_u16());
            }
            assert_eq!(got, want, "{account} {by_connection}");
        }
        let refused = ask("web", by_connection, true).await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
        clock::pass(Duration::from_secs(2)).await;
    }
}

/// A limit between 1 and 1000 for requests that take ten milliseconds.
pub(crate) fn adaptive() -> AdaptiveConcurrency {
    let min_rtt = MinRtt::Fixed(Duration::from_millis(10));
    AdaptiveConcurrency { min_limit: 1, min_rtt, ..AdaptiveConcurrency::default() }
}

/// Sends ten requests at once, two hundred times: how many of the last ten are refused.
async fn refused<S, B>(service: &S) -> usize
where
    S: Service<http::Request<Empty<bytes::Bytes>>, Response = http::Response<B>, Error = std::convert::Infallible>
        + Clone,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let mut refused = 0;
    for _ in 0..200 {
        let answers = (0..10).map(|_| async {
            let answer = service.clone().oneshot(get("/")).await.unwrap();
            let status = answer.status().as_u16();
            answer.into_body().collect().await.unwrap();
            status
        });
        let answers = futures_util::future::join_all(answers).await;
        assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
        refused = answers.iter().filter(|status| **status == 503).count();
    }
    refused
}

#[tokio::test(start_paused = true)]
async fn as_latency_rises_fewer_requests_are_let_in() {
    let own = || (listener(InboundTls::Permissive), Some(adaptive()));
    let filter = || {
        let mut listener = listener(InboundTls::Permissive);
        let kind = HttpFilterKind::AdaptiveConcurrency(Some(adaptive()));
        listener.filters = vec![HttpFilter { name: "adaptive".into(), kind }];
        (listener, None)
    };
    let off = || (listener(InboundTls::Permissive), None);
    for (name, (listener, own), limited) in
        [("own", own(), true), ("filter", filter(), true), ("control", off(), false)]
    {
        let mut config = Config::default();
        config.adaptive_concurrency = own;
        let inbound = Watched::fixed(InboundState::Ready(Arc::new(listener)));
        let server = Server::builder().inbound(inbound).config(config).build();
        let takes = |millis| {
            server.inbound_layer().layer(tower::service_fn(move |_| async move {
                clock::pass(Duration::from_millis(millis)).await;
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::<bytes::Bytes>::default()))
            }))
        };
        assert_eq!(refused(&takes(10)).await, 0, "{name}: the limit has grown");
        let slow = refused(&takes(500)).await;
        assert_eq!((slow >= 5, slow > 0), (limited, limited), "{name}: {slow} of 10 are refused");
        assert_eq!(refused(&takes(10)).await, 0, "{name}: the limit has grown again");
    }
}
