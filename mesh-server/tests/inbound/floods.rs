//! Floods: cheap for who sends them, and what keeps them from being dear for who gets them.

use tokio::sync::{mpsc, watch};

use mesh_core::policy::InboundTls;
use mesh_server::Config;

use crate::kit::{Http, World, get as plain_get, policy, read, spawn, text, within};
use crate::raw::Verdict::{Alive, Connection, Served};
use crate::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, block, frame, get, request,
    verdict, verdict_or_alive,
};

async fn world(config: Config) -> World {
    World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await
}

/// A server whose application keeps requests and neither reads nor answers them.
async fn silent(config: Config) -> World {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        let _request = request;
        std::future::pending::<()>().await;
        text("never")
    });
    World::start(policy(InboundTls::Permissive), config, service).await
}

/// Requests that are begun and taken back at once.
fn rapid_reset(times: u32) -> Vec<u8> {
    let cancel = [0, 0, 0, 8];
    (0..times)
        .flat_map(|n| [request(2 * n + 1, &get("/", &[])), frame(RST_STREAM, 0, 2 * n + 1, &cancel)].concat())
        .collect()
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    assert_eq!(verdict(&silent(Config::default()).await, &rapid_reset(1000)).await, Connection);
}

#[tokio::test]
async fn without_the_limit_rapid_resets_go_on() {
    let mut config = Config::default();
    config.max_pending_resets = 100_000;
    assert_eq!(verdict_or_alive(&silent(config).await, &rapid_reset(1000)).await, Alive);
}

#[tokio::test]
async fn a_block_without_an_end_ends_the_connection() {
    let world = world(Config::default()).await;
    let mut flood = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    let (part, none) = (frame(CONTINUATION, 0, 1, &block(&[("a", "b")])), frame(CONTINUATION, 0, 1, &[]));
    // A few are no flood.
    let mut few = [&flood[..], &part, &part].concat();
    few.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    assert_eq!(verdict(&world, &few).await, Served);
    let mut empty = flood.clone();
    for _ in 0..20_000 {
        flood.extend(&part);
        empty.extend(&none);
    }
    assert_eq!(verdict(&world, &flood).await, Connection);
    assert_eq!(verdict(&world, &empty).await, Connection);
}

#[tokio::test]
async fn data_without_data_ends_the_connection() {
    let world = silent(Config::default()).await;
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
    let nothing = frame(DATA, 0, 1, &[]);
    assert_eq!(verdict_or_alive(&world, &[&head[..], &nothing, &nothing].concat()).await, Alive);
    let flood = [head, nothing.repeat(20_000)].concat();
    assert_eq!(verdict(&world, &flood).await, Connection);
}

#[tokio::test]
async fn floods_of_pings_and_settings_that_are_read_leave_the_connection_usable() {
    // Each is answered, and there is no limit on their number. What an unread flood of answers costs is not shown here.
    let world = world(Config::default()).await;
    let pings = frame(PING, 0, 0, &[1; 8]).repeat(10_000);
    assert_eq!(verdict_or_alive(&world, &pings).await, Alive);
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(10_000);
    assert_eq!(verdict_or_alive(&world, &settings).await, Alive);
}

#[tokio::test]
async fn more_headers_than_allowed_are_refused() {
    for (limit, count, want) in [(100, 90, 200), (100, 120, 431), (200, 120, 200), (10, 20, 431)] {
        let mut config = Config::default();
        config.max_headers = limit;
        let world = world(config).await;
        for version in [Http::One, Http::Two] {
            let mut request = plain_get("/");
            for _ in 0..count {
                request.headers_mut().append("x-many", "1".parse().unwrap());
            }
            let response = within(world.plain(version).await.send(request)).await.unwrap();
            assert_eq!(response.status(), want, "{version:?}: {count} of {limit}");
        }
    }
}

#[tokio::test]
async fn more_requests_than_allowed_do_not_reach_the_application() {
    for (most, second) in [(Some(1), 503), (None, 200)] {
        let mut config = Config::default();
        config.max_requests = most;
        let (began, mut begins) = mpsc::channel(8);
        let (open, gate) = watch::channel(false);
        let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
            let (began, mut gate) = (began.clone(), gate.clone());
            async move {
                if request.uri().path() == "/slow" {
                    began.send(()).await.unwrap();
                    gate.wait_for(|open| *open).await.unwrap();
                }
                text("done")
            }
        });
        let world = World::start(policy(InboundTls::Permissive), config, service).await;
        let mut busy = world.plain(Http::Two).await;
        let slow = spawn(busy.send(plain_get("/slow")));
        within(begins.recv()).await.unwrap();
        let mut other = world.plain(Http::One).await;
        assert_eq!(within(other.get("/")).await.unwrap().0, second);
        open.send_replace(true);
        let answer = within(slow).await.unwrap().unwrap();
        // The place is free when the body has ended.
        assert_eq!(within(read(answer)).await.unwrap(), (200, "done".to_owned()));
        assert_eq!(within(other.get("/")).await.unwrap().0, 200);
    }
}
